"""The composition root: settings -> ports. The one place that knows the adapters."""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from controller import inbox
from controller.adapters.clock import SystemClock
from controller.adapters.documents import YamlDocuments
from controller.adapters.engine_local import LocalEngine
from controller.adapters.git import GitRepository
from controller.adapters.images import PythonImages
from controller.adapters.ledger import GitLedger
from controller.adapters.metrics import SampledMetrics
from controller.adapters.oci.layout import ArtifactStore, Layout
from controller.adapters.sampler import BohbSampler
from controller.adapters.spool import Spool
from controller.keyring import controller_key, image_key
from controller.loop import Following
from controller.settings import Settings
from controller.trustfile import pin_of, read_trust, signers_of
from policies.jobs import Surroundings
from policies.terms.desired import DesiredState
from policies.terms.observed import Observed
from reconcilers.ports import Ports


@dataclass(frozen=True, slots=True, kw_only=True)
class Wired:
    """A controller, ready to run passes."""

    following: Following
    ports: Ports
    inbox_address: str
    isolation: str


@contextmanager
def wire(settings: Settings, *, wake: Callable[[], None] = lambda: None) -> Iterator[Wired]:
    """Open everything that one project's controller needs, and close it at the end.

    Raises:
        RefusedError: Another controller works on this state, or a port is in use.
        TrustError: The trust file pins other keys than this state folder has.
        OutsideError: The repository was never read and does not answer.
    """
    state, clock, trust = settings.state, SystemClock(), read_trust(settings.trust)
    key, signer = controller_key(state), image_key(state)
    pin, image_keys = pin_of(trust, key.public()), tuple(dict.fromkeys((signer.public_pem, *trust.images)))
    with ExitStack() as closing:
        repository = GitRepository(
            settings.repository, state / "git", key, signers_of=signers_of, poll_seconds=settings.poll_seconds
        )
        closing.callback(repository.close)
        ledger = GitLedger(repository, state / "ledger", key, clock)
        closing.callback(ledger.close)
        layout = Layout(state / "store")
        engine = LocalEngine(state / "engine", layout, ArtifactStore(layout), clock, isolation=settings.isolation)
        metrics = SampledMetrics(state / "samples", clock, interval_seconds=settings.scrape_seconds, wake=wake)
        closing.callback(metrics.close)
        spool = Spool(state / "inbox")
        following: Following | None = None

        def newest() -> tuple[DesiredState, Observed] | None:
            desired, observed = (following.memory.desired, following.observed) if following else (None, None)
            return (desired, observed) if desired and observed else None

        def place(name: str, kind: str) -> str:
            found = [folder for top in ("jobs", "servers") if (folder := state / "engine" / top / name / kind).is_dir()]
            return f"{found[0]}/" if found else ""

        receivers = inbox.Receivers(
            spool=spool,
            clock=clock,
            wake=wake,
            report=engine.report,
            push=metrics.push,
            newest=newest,
            place=place,
            namespace=settings.namespace,
        )
        server, address = inbox.serve(state / "inbox", receivers, port=settings.inbox_port)
        closing.callback(server.server_close)
        closing.callback(server.shutdown)
        ports = Ports(
            repository=repository,
            ledger=ledger,
            engine=engine,
            images=PythonImages(repository, layout, state / "build", signer, image_keys, clock, wake),
            sampler=BohbSampler(),
            metrics=metrics,
            inbox=spool,
            keys=key,
            documents=YamlDocuments(),
            clock=clock,
        )
        around = Surroundings(
            namespace=settings.namespace,
            inbox=address,
            proxy_port=settings.proxy_port,
            places=os.cpu_count() or 1,
            node=platform.node() or "localhost",
        )
        following = Following(branch=settings.branch, pin=pin, around=around)
        public = address.split("/programs/")[0]
        yield Wired(following=following, ports=ports, inbox_address=public, isolation=engine.isolation)


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
