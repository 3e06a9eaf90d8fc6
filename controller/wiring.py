"""The composition root: settings -> ports. The one place that knows the adapters."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from controller import inbox
from controller.adapters.clock import SystemClock
from controller.adapters.documents import YamlDocuments
from controller.adapters.engine_local import LocalEngine
from controller.adapters.git import GitRepository
from controller.adapters.images import PythonImages
from controller.adapters.keys import ImageKey, SshKey
from controller.adapters.ledger import GitLedger
from controller.adapters.metrics import SampledMetrics
from controller.adapters.oci.layout import ArtifactStore, Layout
from controller.adapters.sampler import BohbSampler
from controller.adapters.spool import Spool
from controller.loop import Following
from controller.settings import Settings
from controller.trustfile import read_pin, signers_of
from policies.jobs import Surroundings
from policies.terms.revision import TrustedKey
from reconcilers.ports import Ports


@dataclass(frozen=True, slots=True, kw_only=True)
class Wired:
    """A controller, ready to run passes."""

    following: Following
    ports: Ports
    inbox_address: str
    isolation: str


def controller_key(state: Path) -> SshKey:
    """The controller's own key, made on first use."""
    path = state / "keys" / "controller"
    return SshKey.load(path) if path.exists() else SshKey.generate(path)


def image_key(state: Path) -> ImageKey:
    """The key that images are signed with, made on first use."""
    path = state / "keys" / "image.pem"
    return ImageKey.load(path) if path.exists() else ImageKey.generate(path)


@contextmanager
def wire(settings: Settings, *, wake: Callable[[], None] = lambda: None) -> Iterator[Wired]:
    """Open everything that one project's controller needs, and close it at the end.

    Raises:
        RefusedError: Another controller works on this state, or a port is in use.
        OutsideError: The repository was never read and does not answer.
    """
    state = settings.state
    (state / "keys").mkdir(parents=True, exist_ok=True, mode=0o700)
    clock, key = SystemClock(), controller_key(state)
    repository = GitRepository(settings.repository, state / "git", key, signers_of=signers_of, poll_seconds=settings.poll_seconds)
    ledger = GitLedger(repository, state / "ledger", key, clock)
    layout = Layout(state / "store")
    engine = LocalEngine(state / "engine", layout, ArtifactStore(layout), clock, isolation=settings.isolation)
    signer = image_key(state)
    metrics = SampledMetrics(state / "samples", clock, interval_seconds=settings.scrape_seconds, wake=wake)
    spool = Spool(state / "inbox")
    receivers = inbox.Receivers(spool=spool, clock=clock, wake=wake, report=engine.report, push=metrics.push)
    server, address = inbox.serve(state / "inbox", receivers, port=settings.inbox_port)
    ports = Ports(
        repository=repository,
        ledger=ledger,
        engine=engine,
        images=PythonImages(repository, layout, state / "build", signer, (signer.public_pem,), clock),
        sampler=BohbSampler(),
        metrics=metrics,
        inbox=spool,
        keys=key,
        documents=YamlDocuments(),
        clock=clock,
    )
    pin = read_pin(settings.trust, TrustedKey(name="myelin", key=key.public()))
    around = Surroundings(namespace=settings.namespace, inbox=address, proxy_port=settings.proxy_port)
    following = Following(branch=settings.branch, pin=pin, around=around)
    try:
        yield Wired(following=following, ports=ports, inbox_address=address, isolation=engine.isolation)
    finally:
        server.shutdown()
        server.server_close()
        metrics.close()
        ledger.close()
        repository.close()


class Waker:
    """Wake-ups of a following loop: they only say *look now*."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def wake(self) -> None:
        """Ask for a look."""
        self._event.set()

    def wait(self, seconds: float) -> None:
        """Sleep until woken, at the longest this long."""
        self._event.wait(seconds)
        self._event.clear()
