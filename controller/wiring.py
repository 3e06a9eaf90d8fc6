"""The composition root: settings -> ports. The one place that knows the adapters, of both engines."""

from __future__ import annotations

import hashlib
import os
import platform
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from controller import inbox
from controller.adapters.build.drivers import secrets_in
from controller.adapters.clock import SystemClock
from controller.adapters.cluster import Cluster
from controller.adapters.documents import YamlDocuments
from controller.adapters.engine_cluster import ClusterEngine, KeptJobs, KeptServers
from controller.adapters.engine_local import LocalEngine, Unpacked
from controller.adapters.git import GitRepository, OtherRepositories, access_from_folder, mirror_name
from controller.adapters.images import SignedImages
from controller.adapters.ledger import GitLedger
from controller.adapters.metrics import SampledMetrics
from controller.adapters.models import Models
from controller.adapters.oci.artifacts import ArtifactStore
from controller.adapters.oci.composed import Composer
from controller.adapters.oci.layout import Layout
from controller.adapters.oci.mirrored import MirroredLayout
from controller.adapters.oci.registry import Registry
from controller.adapters.oci.seen import Seen
from controller.adapters.results import programs_path
from controller.adapters.sampler import BohbSampler
from controller.adapters.sampler_apart import SamplerApart
from controller.adapters.sigstore.turn import Turn
from controller.adapters.spool import Spool
from controller.caretaking import Caretaker, Store
from controller.daemon_keys import daemon_in
from controller.forges import ProjectForges
from controller.inbox import Desk
from controller.inbox.sigstores import TOP, Sigstore
from controller.keyring import (
    controller_key,
    former_controllers,
    identity_of,
    image_key,
    keep_public,
    keyless,
    openpgp_key,
    public_keys,
    sigstore_key,
)
from controller.loop import Following
from controller.projects import ProjectObject, build_secret, source_access
from controller.settings import JITTER, Settings
from controller.trustfile import image_trust, pin_of, read_trust, signature_reader, with_certificate, with_identity
from policies.hooks import hook_text
from policies.jobs import Surroundings
from policies.terms.desired import DesiredState
from policies.terms.observed import Observed
from policies.terms.secret import Secret
from reconcilers.manifests.names import Placement
from reconcilers.ports import Ports, Sampler

if TYPE_CHECKING:
    from controller.adapters.sigstore.embedded import Embedded

CLUSTER_POLL_SECONDS = 5.0
CLUSTER_PATIENCE_SECONDS = 600.0
CLUSTER_PUSH_SECONDS = 1.0
"""Least time between two pushes of the ledger: a pass waits for each, and events that come meanwhile wait with it."""
CLUSTER_PLACES = 8
"""How many jobs of one project run at once where it does not say; the cluster's own limits come first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wired:
    """A controller, ready to run passes."""

    following: Following
    ports: Ports
    inbox_address: str
    isolation: str
    caretaker: Caretaker
    """Cleans the store, when it is told to look."""
    turn: Turn
    """What others wait for who need the ledger: whoever runs the passes works it off before each."""


@contextmanager
def wire(settings: Settings, *, wake: Callable[[], None] = lambda: None) -> Iterator[Wired]:
    """Open everything that one project's controller needs, and close it at the end.

    Raises:
        RefusedError: Another controller works on this state, or a port is in use.
        TrustError: The trust file pins other keys than this state folder has.
        OutsideError: The repository was never read and does not answer.
    """
    state, clock, trust = settings.state, SystemClock(), read_trust(settings.trust)
    key, signer, openpgp = controller_key(state), image_key(state), openpgp_key(state)
    sigstore, chosen = sigstore_key(state, os.environ), keyless(state, clock)
    trust = with_certificate(trust, openpgp.certificate if openpgp is not None else "")
    trust = with_identity(trust, identity_of(sigstore) if sigstore is not None else None)
    pin = pin_of(trust, key.public())
    images_of = image_trust(trust, (signer.public_pem, *public_keys(state)[1]), chosen.identity if chosen else None)
    signatures = signature_reader(trust)
    access = access_from_folder(settings.git_access, settings.repository) if settings.git_access else None
    with ExitStack() as closing:
        repository = GitRepository(
            settings.repository,
            state / "git",
            sigstore or openpgp or key,
            signers_of=signatures.signers_of,
            read_signature=signatures.read,
            poll_seconds=settings.poll_seconds * (1 - JITTER),
            access=access,
        )
        closing.callback(repository.close)
        sources = OtherRepositories(state / "mirrors", settings.repository, access, signatures=signatures)
        closing.callback(sources.close)
        forges = ProjectForges(settings.repository)
        closing.callback(forges.close)
        ledger = GitLedger(repository, state / "ledger", key, clock, former=former_controllers(state))
        closing.callback(ledger.close)
        turn = Turn(wake)
        embedded = chosen.embedded(ledger, clock) if chosen else None
        identity = chosen.signer(embedded, turn) if chosen else None
        layout = Layout(state / "store")
        artifacts = ArtifactStore(layout, Models(layout, signer, images_of, identity=identity))
        engine = LocalEngine(state / "engine", layout, artifacts, clock, isolation=settings.isolation)
        metrics = SampledMetrics(state / "samples", clock, interval_seconds=settings.scrape_seconds, wake=wake)
        closing.callback(metrics.close)
        spool = Spool(state / "inbox")
        following: Following | None = None

        def place(name: str, kind: str) -> str:
            found = [folder for top in ("jobs", "servers") if (folder := state / "engine" / top / name / kind).is_dir()]
            return f"{found[0]}/" if found else ""

        receivers = inbox.Receivers(
            spool=spool,
            clock=clock,
            wake=wake,
            report=engine.report,
            push=metrics.push,
            newest=lambda: _newest(following),
            place=place,
            namespace=settings.namespace,
            branch=settings.branch,
            stirred=_stirring(repository, forges, settings.branch),
            sigstore=lambda url: _served(embedded, turn, url) if embedded else None,
        )
        server, address = inbox.serve(state / "inbox", receivers, port=settings.inbox_port)
        closing.callback(server.server_close)
        closing.callback(server.shutdown)
        ports = Ports(
            repository=repository,
            ledger=ledger,
            engine=engine,
            sources=sources,
            images=SignedImages(
                repository,
                layout,
                state / "build",
                signer,
                images_of,
                clock,
                wake,
                secrets=secrets_in(state / "secrets"),
                reads_disk=True,
                sigstore_root=trust.sigstore_root,
                sources=sources,
                identity=identity,
                buildkit=daemon_in(state / "keys", os.environ),
            ),
            sampler=BohbSampler(),
            metrics=metrics,
            inbox=spool,
            keys=key,
            own=pin.own,
            documents=YamlDocuments(),
            clock=clock,
            forges=forges,
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
        unpacked = Unpacked(state / "engine", layout)
        caretaker = Caretaker(Store(layout=layout, trust=images_of, state=state, unpacked=unpacked.sweep))
        turn.work()
        yield Wired(
            following=following,
            ports=ports,
            inbox_address=public,
            isolation=engine.isolation,
            caretaker=caretaker,
            turn=turn,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSurroundings:
    """What all projects of a controller in a cluster share."""

    cluster: Cluster
    desk: Desk
    inbox: str
    """The inbox's address for pods, `http://myelin.system.svc:8090`."""
    state: Path
    """Folder with one folder for each project."""
    sampler: Sampler = field(default_factory=SamplerApart)
    poll_seconds: Callable[[], float] = lambda: CLUSTER_POLL_SECONDS
    """Time between two questions to a Git server far away that nobody sends webhooks for."""

    @property
    def mirrors(self) -> Path:
        """Folder with one mirror for each repository, whoever follows it or builds from it."""
        return self.state / "mirrors"

    def mirror_of(self, project: ProjectObject) -> Path:
        """Where the mirror of the repository is that a project follows."""
        return self.mirrors / mirror_name(project.url)

    def state_of(self, project: ProjectObject) -> Path:
        """Where a project's caches and write-ahead log lie."""
        return self.state / project.namespace / project.name


class Stirred(Protocol):
    """What looks at the cluster, and is told of changes."""

    def stir(self, kind: str, body: Mapping[str, Any], is_gone: bool) -> None:
        """An object changed."""
        ...


@contextmanager
def wire_in_cluster(
    project: ProjectObject,
    shared: ClusterSurroundings,
    *,
    wake: Callable[[], None],
    stirred: Callable[[Stirred], None],
) -> Iterator[Wired]:
    """Open everything that one project of a cluster needs, and close it at the end.

    Args:
        project: The project.
        shared: What it has in common with the others.
        wake: Asks for a pass.
        stirred: Takes what is to be told when the cluster changes.

    Raises:
        OutsideError: The repository was never read and does not answer.
    """
    state, clock, spec = shared.state_of(project), SystemClock(), project.document.spec
    key, signer, chosen = project.key, project.image_key, project.keyless
    keep_public(state, key, signer, project.former_image_keys, project.former_keys)
    # Secrets of the inbox follow from the key, so jobs that run find it again after the controller lost its disk.
    programs = hashlib.sha256(key.sign(f"inbox programs of {project.namespace}/{project.name}".encode()).encode()).hexdigest()[
        :32
    ]
    token = hashlib.sha256(key.sign(f"inbox token of {project.namespace}/{project.name}".encode()).encode()).hexdigest()[:40]
    hook = hook_text(hashlib.sha256(key.sign(f"inbox webhooks of {project.namespace}/{project.name}".encode()).encode()).digest())
    pin, signatures = pin_of(project.trust, key.public()), signature_reader(project.trust)
    with ExitStack() as closing:
        repository = GitRepository(
            project.url,
            shared.mirror_of(project),
            project.sigstore or project.openpgp or key,
            signers_of=signatures.signers_of,
            read_signature=signatures.read,
            poll_seconds=shared.poll_seconds() * (1 - JITTER),
            access=project.git_access,
        )
        closing.callback(repository.close)
        sources = OtherRepositories(
            shared.mirrors,
            project.url,
            project.git_access,
            secret=lambda source: source_access(shared.cluster, project.namespace, source),
            signatures=signatures,
            is_shared=True,
        )
        closing.callback(sources.close)
        forge = spec.write_back.forge
        forges = ProjectForges(project.url, environ={}, pinned=forge, pinned_token=project.forge_token)
        closing.callback(forges.close)
        rest, former = CLUSTER_PUSH_SECONDS, tuple(project.former_keys.values())
        ledger = GitLedger(repository, state / "ledger", key, clock, rest_seconds=rest, former=former)
        closing.callback(ledger.close)
        registry = Registry(project.access)
        closing.callback(registry.close)
        layout = MirroredLayout(state / "store", registry, seen=Seen(shared.state / "seen"))
        placement = Placement(
            namespace=project.namespace,
            project=project.name,
            registry=project.access.repository,
            owner=project.owner,
            pull_secret=project.pull_secret,
            inbox=shared.inbox,
        )
        images_of = image_trust(project.trust, ())
        turn = Turn(wake)
        embedded = chosen.embedded(ledger, clock) if chosen else None
        identity = chosen.signer(embedded, turn) if chosen else None
        composer = Composer(layout, state / "composed", signer, images_of, clock, identity=identity)
        jobs = KeptJobs(state / "engine" / "jobs", layout, key, Models(layout, signer, images_of, identity=identity))
        engine = ClusterEngine(
            shared.cluster,
            placement,
            layout,
            composer.compose,
            programs=programs,
            jobs=jobs,
            servers=KeptServers(state / "engine" / "servers"),
            clock=clock,
            is_watched=True,
        )
        stirred(engine)
        metrics = SampledMetrics(state / "samples", clock, wake=wake)
        closing.callback(metrics.close)
        spool = Spool(state / "inbox")
        following: Following | None = None
        admitted = f"{project.namespace}.{project.name}"

        receivers = inbox.Receivers(
            spool=spool,
            clock=clock,
            wake=wake,
            report=engine.report,
            push=metrics.push,
            newest=lambda: _newest(following),
            place=lambda name, kind: "",
            namespace=project.namespace,
            branch=spec.branch,
            stirred=_stirring(repository, forges, spec.branch),
            result=engine.take_result,
            results=state / "incoming",
            sigstore=lambda url: _served_in_cluster(embedded, turn, shared, admitted) if embedded else None,
        )
        shared.desk.admit(admitted, receivers, token=token, programs=programs, hook=Secret(hook))
        closing.callback(shared.desk.dismiss, admitted)
        known = {"token": token, "hook": hook, "project": admitted, "public": shared.inbox}
        inbox.leave_address(state / "inbox", port=shared.desk.server_port, **known)
        images = SignedImages(
            repository,
            layout,
            state / "build",
            signer,
            images_of,
            clock,
            wake,
            access_for=project.access_for,
            secrets=lambda secret: build_secret(shared.cluster, project, secret),
            sigstore_root=spec.trust.sigstore_root,
            sources=sources,
            identity=identity,
            buildkit=project.buildkit,
        )
        ports = Ports(
            repository=repository,
            ledger=ledger,
            engine=engine,
            sources=sources,
            images=images,
            sampler=shared.sampler,
            metrics=metrics,
            inbox=spool,
            keys=key,
            own=pin.own,
            documents=YamlDocuments(),
            clock=clock,
            forges=forges,
        )
        around = Surroundings(
            namespace=project.namespace,
            node=project.namespace,
            inbox=f"{shared.inbox}{programs_path(programs)}",
            base=spec.builder.base,
            engine="Kubernetes",
            patience_seconds=CLUSTER_PATIENCE_SECONDS,
            places=spec.limits.max_concurrent_jobs or CLUSTER_PLACES,
        )
        following = Following(branch=spec.branch, pin=pin, around=around, forge=forge)
        yield Wired(
            following=following,
            ports=ports,
            inbox_address=shared.inbox,
            isolation=f"Kubernetes in namespace {project.namespace}",
            caretaker=Caretaker(Store(layout=layout, trust=images_of, state=state, is_job=jobs.is_ours)),
            turn=turn,
        )


def _served(embedded: Embedded, turn: Turn, url: str) -> Sigstore:
    """The embedded Sigstore of a project on one machine: to be read."""
    # Heavy, and only for those who have one.
    from controller.adapters.sigstore.served import Served
    from controller.issuers import nobody

    return Served(embedded, nobody, url=url, in_turn=turn).handle


def _served_in_cluster(embedded: Embedded, turn: Turn, shared: ClusterSurroundings, project: str) -> Sigstore:
    """The embedded Sigstore of a project in a cluster, for the service accounts of its namespace."""
    from controller.adapters.sigstore.served import Served
    from controller.issuers import ClusterTokens

    tokens = ClusterTokens(shared.cluster.read, namespace=project.partition(".")[0])
    return Served(embedded, tokens, url=shared.inbox, log_url=f"{shared.inbox}/{TOP}/{project}", in_turn=turn).handle


def _newest(following: Following | None) -> tuple[DesiredState, Observed] | None:
    """What the last look came to; None before the first."""
    desired, observed = (following.memory.desired, following.observed) if following else (None, None)
    return (desired, observed) if desired and observed else None


def _stirring(repository: GitRepository, forges: ProjectForges, branch: str) -> Callable[[str], None]:
    """What a webhook stirs before it wakes: whoever has news is asked again, however short ago that was."""

    def stir(what: str) -> None:
        repository.stir(branch)
        if what == "review":
            forges.stir()

    return stir


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
