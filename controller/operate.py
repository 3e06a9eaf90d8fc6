"""The controller of a cluster: one process, one pass thread for each Project, one inbox for all, one leader.

Watches and the clock only say *look now*; who does not hold the Lease does nothing.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from controller import handlers
from controller.adapters.clock import SystemClock
from controller.adapters.cluster import AXON, PROJECT, RELEASE, VERSION, Cluster
from controller.follow import Told, count, keep_faults, write_status
from controller.inbox import Desk
from controller.leadership import Leadership
from controller.loop import run_pass
from controller.mirroring import Mirroring, Seen, say
from controller.projects import open_project, read_project
from controller.wiring import ClusterSurroundings, Stirred, Waker, wire_in_cluster
from policies.errors import ControllerError, DesiredStateError, RefusedError, TrustError
from policies.retries import pause_seconds
from policies.terms.outcome import Outcome
from policies.unbuilt import object_notes

faults = logging.getLogger("myelin.faults")
IDLE_SECONDS, BUSY_SECONDS = 5.0, 1.0
"""Time between two looks while nothing, and while something runs; wake-ups make both shorter."""
AWAY_SECONDS = 0.5
SHOWN_SECONDS = 1.0
"""So often the objects are brought up to date while the passes follow each other."""
LONGEST_PAUSE_SECONDS = 30.0
RESYNC_SECONDS = 60.0
"""A watch may miss that something went; so often all is listed."""
REACH_SECONDS = 5.0
"""So often the namespaces that we may not watch (yet) are tried."""
WATCH_PAUSE_SECONDS = 2.0
"""After watches that ended by themselves."""
STUCK_SECONDS = 900.0
"""A pass that lasts longer will not end."""
LEASE = "myelin"


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorSettings:
    """What the controller's pod is told by its environment."""

    namespace: str
    """The pod's own."""
    pod: str
    """Its name; empty outside of a cluster."""
    state: Path
    """Caches, write-ahead logs and what is kept of ended jobs; may be lost."""
    inbox: str
    """The inbox's address for other pods."""
    host: str = "0.0.0.0"
    port: int = 8090
    config: Path = Path("/etc/myelin/config.json")
    """`{"namespaces": […]}`: whose Projects are followed; read again when it changes."""
    kubeconfig: Path | None = None
    """How to reach the cluster from outside of it."""


def settings_from(environ: Mapping[str, str] = os.environ) -> OperatorSettings:
    """Settings as the chart's environment gives them.

    Raises:
        RefusedError: This is no pod of the chart, and no KUBECONFIG says where the cluster is.
    """
    kubeconfig = environ.get("KUBECONFIG")
    if not kubeconfig and "KUBERNETES_SERVICE_HOST" not in environ:
        raise RefusedError("operate: expected to run in a pod of the chart, or with KUBECONFIG; `myelin run` needs no cluster")
    namespace, port = environ.get("POD_NAMESPACE", "default"), environ.get("MYELIN_INBOX_PORT", "8090")
    if not port.isdecimal():
        raise RefusedError(f"MYELIN_INBOX_PORT: expected a port, got {port}")
    return OperatorSettings(
        namespace=namespace,
        pod=environ.get("POD_NAME", ""),
        state=Path(environ.get("MYELIN_STATE", "/state")),
        inbox=environ.get("MYELIN_INBOX_URL") or f"http://myelin.{namespace}.svc:8090",
        host=environ.get("MYELIN_INBOX_HOST", "0.0.0.0"),
        port=int(port),
        config=Path(environ.get("MYELIN_CONFIG_FILE", "/etc/myelin/config.json")),
        kubeconfig=Path(kubeconfig) if kubeconfig else None,
    )


def operate(settings: OperatorSettings, *, tell: Callable[[str], None], stopping: threading.Event | None = None) -> None:
    """Follow all Projects of the managed namespaces until a signal says stop."""
    stop = stopping or threading.Event()
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
    keep_faults(settings.state)
    cluster, clock = Cluster(settings.kubeconfig), SystemClock()
    fleet = Fleet(cluster, settings, tell=tell)
    identity = settings.pod or f"{os.uname().nodename}-{os.getpid()}"
    leadership = Leadership(cluster, settings.namespace, LEASE, identity, clock, changed=fleet.wake_all, pod=settings.pod)
    fleet.leads, fleet.is_replaced = lambda: leadership.is_leader, lambda: leadership.is_replaced
    desk = Desk(
        settings.host,
        settings.port,
        is_ready=lambda: leadership.is_in_touch,
        is_alive=fleet.is_alive,
        is_settled=fleet.is_settled,
    )
    fleet.shared = ClusterSurroundings(cluster=cluster, desk=desk, inbox=settings.inbox, state=settings.state)
    leadership.start()
    desk.start()
    tell(f"operating on {', '.join(fleet.namespaces())}; inbox at {settings.inbox}; waiting for the Lease as {identity}")
    try:
        while not stop.is_set():
            if not leadership.is_leader:
                stop.wait(0.1)
                continue
            tell("leading")
            _lead(fleet, leadership, stop, is_outside=settings.kubeconfig is not None)
    finally:
        fleet.end()
        leadership.end()
        desk.close()


def _lead(fleet: Fleet, leadership: Leadership, stop: threading.Event, *, is_outside: bool) -> None:
    """Watch for as long as we lead and the same namespaces are ours."""
    namespaces, over = fleet.reachable(), threading.Event()
    watcher = threading.Thread(target=_watch, args=(fleet, namespaces, over, is_outside), name="watches", daemon=True)
    if namespaces:
        watcher.start()
    listed_at = looked_at = 0.0
    while not stop.is_set() and leadership.is_leader and not over.is_set():
        now = time.monotonic()
        if now - listed_at > RESYNC_SECONDS:
            listed_at = now
            fleet.resync(namespaces)
        if now - looked_at > REACH_SECONDS:
            looked_at = now
            if set(namespaces) != set(fleet.namespaces()) and fleet.reachable() != namespaces:
                break
        stop.wait(0.1)
    over.set()
    if namespaces:
        watcher.join(15)


def _watch(fleet: Fleet, namespaces: Sequence[str], over: threading.Event, is_outside: bool) -> None:
    try:
        handlers.watch(fleet.callbacks(), namespaces, over, kubeconfig=is_outside)
    except Exception as error:  # noqa: BLE001  kopf gives up when the cluster stays away, or refuses; we do not
        faults.error("the watches ended", exc_info=error)
    if not over.is_set():
        over.wait(WATCH_PAUSE_SECONDS)
    over.set()


class Fleet:
    """All projects that are followed."""

    def __init__(self, cluster: Cluster, settings: OperatorSettings, *, tell: Callable[[str], None]) -> None:
        self.cluster, self.settings, self.tell = cluster, settings, tell
        self.seen = Seen()
        self.shared: ClusterSurroundings | None = None
        self.leads: Callable[[], bool] = lambda: False
        self.is_replaced: Callable[[], bool] = lambda: not self.leads()
        self._followers: dict[tuple[str, str], Follower] = {}
        self._guard = threading.Lock()
        self._namespaces: tuple[str, ...] = (settings.namespace,)
        self._read_at: tuple[int, int] = (0, 0)
        self._ending = self._is_listed = False
        self._refused: dict[str, str] = {}

    def namespaces(self) -> tuple[str, ...]:
        """The managed namespaces, as the chart's configuration says now."""
        try:
            status = self.settings.config.stat()
            stamp = (status.st_mtime_ns, status.st_size)
            if stamp != self._read_at:
                listed = json.loads(self.settings.config.read_bytes())["namespaces"]
                if isinstance(listed, list):
                    self._namespaces, self._read_at = tuple(sorted(str(item) for item in listed)), stamp
        except (OSError, ValueError, KeyError, TypeError):
            pass  # what was read last counts
        return self._namespaces

    def reachable(self) -> tuple[str, ...]:
        """Those of the managed namespaces in which we may work; one that is gone has taken our rights with it."""
        found = []
        for namespace in self.namespaces():
            try:
                self.cluster.list(PROJECT, namespace)
            except RefusedError as error:
                if self._refused.get(namespace) != error.message:
                    self._refused[namespace] = error.message
                    self.tell(f"namespace {namespace}: {error.message}; it is passed over, see the chart's `namespaces`")
                continue
            except ControllerError:
                pass  # silent for the moment
            self._refused.pop(namespace, None)
            found.append(namespace)
        return tuple(found)

    def callbacks(self) -> handlers.Callbacks:
        """Who hears of what."""
        return handlers.Callbacks(project=self._project, mirror=self._mirror, work=self._work, removed=self._removed)

    def resync(self, namespaces: Sequence[str]) -> None:
        """Take all objects of our kinds as they are now: a watch does not tell of what went while it was broken."""
        is_all = True
        for namespace in namespaces:
            try:
                for kind in (AXON, RELEASE, VERSION, PROJECT):
                    mark = self.seen.mark()
                    self.seen.reset(kind.kind, namespace, self.cluster.list(kind, namespace), since=mark)
            except ControllerError:
                is_all = False  # what is known of it stays; the next time tells
        for namespace in {str(body["metadata"]["namespace"]) for body in self.seen.all("Project")} - set(namespaces):
            for kind in (AXON, RELEASE, VERSION, PROJECT):
                self.seen.reset(kind.kind, namespace, ())
        for body in self.seen.all("Project"):
            self._follow(body)
        with self._guard:
            followed = list(self._followers)
        for key in followed:
            if self.seen.get("Project", *key) is None:
                self._drop(key)
        self._is_listed = self._is_listed or is_all
        self.wake_all()

    def rival(self, namespace: str, name: str) -> Outcome | None:
        """Why a Project may not be followed beside the others: the older one comes first."""
        mine = self.seen.get("Project", namespace, name)
        if mine is None:
            return None
        followed: list[Mapping[str, Any]] = []  # who is refused itself takes nothing
        for body in sorted((item for item in self.seen.all("Project") if _age(item) < _age(mine)), key=_age):
            if "deletionTimestamp" not in body["metadata"] and next(_conflicts(body, followed), None) is None:
                followed.append(body)
        reason, words = next(_conflicts(mine, followed), ("", ""))
        return Outcome(state="stalled", subject=name, reason=reason, message=words) if reason else None

    def wake_all(self) -> None:
        """Ask for a look at every project."""
        with self._guard:
            followers = list(self._followers.values())
        for follower in followers:
            follower.wake()

    def is_alive(self) -> bool:
        """Whether no pass hangs."""
        with self._guard:
            return all(follower.is_well() for follower in self._followers.values())

    def is_settled(self) -> bool:
        """Whether we lead, and every Project that we know of was opened, or said why it was not."""
        if not self._is_listed or not self.leads():
            return False
        with self._guard:
            return all(follower.is_settled for follower in self._followers.values() if follower.is_alive())

    def end(self) -> None:
        """End every pass cleanly: what it began is finished, nothing more is begun."""
        self._ending = True
        with self._guard:
            keys = list(self._followers)
        for key in keys:
            self._followers[key].stop()
        for key in keys:
            self._drop(key)

    def _project(self, body: Mapping[str, Any], is_gone: bool) -> None:
        meta = body["metadata"]
        matters = self.seen.tell("Project", body, is_gone=is_gone)
        if is_gone:
            self._drop((meta["namespace"], meta["name"]), wait_seconds=0)  # the watches go on
            self.wake_all()  # another one may have waited for its repository
        elif matters:
            self._follow(body)

    def _follow(self, body: Mapping[str, Any]) -> None:
        key = (str(body["metadata"]["namespace"]), str(body["metadata"]["name"]))
        if "deletionTimestamp" in body["metadata"] or self._ending:
            return
        with self._guard:
            follower = self._followers.get(key)
            if follower is None or not follower.is_alive() or follower.is_ending:
                follower = self._followers[key] = Follower(self, *key)
                follower.start()
        follower.wake()

    def _mirror(self, kind: str, body: Mapping[str, Any], is_gone: bool) -> None:
        if self.seen.tell(kind, body, is_gone=is_gone):
            self._wake_in(str(body["metadata"]["namespace"]))

    def _work(self, kind: str, body: Mapping[str, Any], is_gone: bool) -> None:
        for follower in self._in(str(body["metadata"]["namespace"])):
            follower.stir(kind, body, is_gone)
            follower.wake()

    def _wake_in(self, namespace: str) -> None:
        for follower in self._in(namespace):
            follower.wake()

    def _in(self, namespace: str) -> list[Follower]:
        with self._guard:
            return [follower for (of, _), follower in self._followers.items() if of == namespace]

    def _removed(self, namespace: str, name: str) -> bool:
        return self._drop((namespace, name))

    def _drop(self, key: tuple[str, str], *, wait_seconds: float = 30.0) -> bool:
        """End a follower after its pass; whether it has ended."""
        with self._guard:
            follower = self._followers.get(key)
        if follower is None:
            return True
        follower.stop()
        if wait_seconds:
            follower.join(wait_seconds)
        if wait_seconds and follower.is_alive():
            return False
        with self._guard:
            if self._followers.get(key) is follower:
                del self._followers[key]
        return True


class Follower(threading.Thread):
    """Follows one Project for as long as it is there and we lead. One project's fault never stops another's pass."""

    def __init__(self, fleet: Fleet, namespace: str, name: str) -> None:
        super().__init__(name=f"project-{namespace}-{name}", daemon=True)
        self._fleet, self._namespace, self._project = fleet, namespace, name
        self._waker, self._ending = Waker(), threading.Event()
        self._engine: Stirred | None = None
        self._began_at: float | None = None
        self.is_settled = False
        """Whether the project was opened, or its conditions say why it was not."""
        self._told = Told(lambda line: fleet.tell(f"{namespace}/{name}: {line}"))

    def wake(self) -> None:
        """Ask for a look."""
        self._waker.wake()

    def stir(self, kind: str, body: Mapping[str, Any], is_gone: bool) -> None:
        """An object of the project's jobs or servers changed."""
        if self._engine is not None:
            self._engine.stir(kind, body, is_gone)

    def stop(self) -> None:
        """End after the pass that runs."""
        self._ending.set()
        self._waker.wake()

    @property
    def is_ending(self) -> bool:
        """Whether it was told to end."""
        return self._ending.is_set()

    def is_well(self) -> bool:
        """Whether its pass does not hang."""
        began_at = self._began_at
        return began_at is None or time.monotonic() - began_at < STUCK_SECONDS

    def run(self) -> None:
        """Open the project and run passes; what keeps it from being opened is said in its conditions."""
        failures = 0
        while not self._ending.is_set():
            body = self._fleet.seen.get("Project", self._namespace, self._project)
            if body is None or not self._fleet.leads():
                self._waker.wait(1.0)
                continue
            try:
                if (rival := self._fleet.rival(self._namespace, self._project)) is not None:
                    self._say(rival)
                    self._waker.wait(IDLE_SECONDS)
                    continue
                try:
                    self._follow(body)
                finally:
                    self._engine, self._began_at, self.is_settled = None, None, False
                failures = 0
                continue
            except ControllerError as error:
                stalled = isinstance(error, (DesiredStateError, TrustError, RefusedError))
                outcome = Outcome(
                    state="stalled" if stalled else "waiting", subject=self._project, reason=error.reason, message=error.message
                )
            except Exception as error:  # noqa: BLE001  a fault of ours in one project must not stop the others
                faults.error("fault at project %s/%s", self._namespace, self._project, exc_info=error)
                text = " ".join(f"{type(error).__name__}: {error}".split())
                outcome = Outcome(
                    state="stalled", subject=self._project, reason="Bug", message=f"a fault in Myelin itself: {text}"
                )
            failures += 1
            self._say(outcome)
            self._waker.wait(pause_seconds(failures, longest=LONGEST_PAUSE_SECONDS))

    def _follow(self, body: Mapping[str, Any]) -> None:
        fleet = self._fleet
        assert fleet.shared is not None
        project = open_project(fleet.cluster, body)
        mirroring = Mirroring(fleet.cluster, fleet.seen, namespace=project.namespace, project=project.name, owner=project.owner)
        state = fleet.shared.state_of(project)
        notes = [
            Outcome(state="done", subject=self._project, reason="NoEffect", message=f"{why}, so this has no effect: {key}")
            for why, key in object_notes(project.document)
        ]
        shown_at, troubles = 0.0, list[Outcome]()
        with wire_in_cluster(project, fleet.shared, wake=self.wake, stirred=self._take_engine) as wired:
            self.is_settled = True
            note_place(state, project.url, project.document.spec.branch, project.trust.model_dump(mode="json", by_alias=True))
            while not self._ending.is_set() and not fleet.is_replaced() and self._is_current(project.uid, project.generation):
                if not fleet.leads():  # the cluster is away: what comes in is taken, and nothing is done
                    self._waker.wait(AWAY_SECONDS)
                    continue
                self._began_at = time.monotonic()
                report = run_pass(wired.following, wired.ports)
                count(report)
                # While there is more to do at once, doing it comes before telling of it.
                if not report.look_again or time.monotonic() - shown_at > SHOWN_SECONDS:
                    shown_at = time.monotonic()
                    told = replace(report, outcomes=(*notes, *report.outcomes))
                    troubles = mirroring.present(told, wired.ports.clock.now())
                    write_status(state, report, wired)
                self._began_at = None
                self._told.tell((*report.outcomes, *troubles))
                if not report.look_again:
                    is_busy = report.is_busy or troubles or wired.ports.ledger.pending()
                    self._waker.wait(BUSY_SECONDS if is_busy else IDLE_SECONDS)

    def _take_engine(self, engine: Stirred) -> None:
        self._engine = engine

    def _is_current(self, uid: str, generation: int) -> bool:
        body = self._fleet.seen.get("Project", self._namespace, self._project)
        if body is None or "deletionTimestamp" in body["metadata"]:
            return False
        meta = body["metadata"]
        return (str(meta["uid"]), int(meta.get("generation", 1))) == (uid, generation) and (
            self._fleet.rival(self._namespace, self._project) is None
        )

    def _say(self, outcome: Outcome) -> None:
        self.is_settled = True
        self._told.tell((outcome,))
        try:
            say(self._fleet.cluster, self._fleet.seen, self._namespace, self._project, [outcome], now=SystemClock().now())
        except ControllerError:
            pass  # the cluster is away; the next try says it again


def note_place(state: Path, url: str, branch: str, trust: Mapping[str, Any]) -> None:
    """Leave what the answers need: they read the controller's own mirror, so they need no credentials."""
    state.mkdir(parents=True, exist_ok=True)
    place = {"url": str(state / "git"), "of": _shown(url), "branch": branch}
    for name, value in (("trust.yaml", trust), ("place.json", place)):
        (state / f"{name}.new").write_text(json.dumps(value))
        (state / f"{name}.new").replace(state / name)


def _shown(url: str) -> str:
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}" if parts.scheme and host else url


def _conflicts(body: Mapping[str, Any], followed: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """What a Project may not share with those that are followed already."""
    for other in followed:
        who = f"Project {other['metadata']['namespace']}/{other['metadata']['name']}"
        if other["metadata"]["namespace"] == body["metadata"]["namespace"]:
            words = f"{who} is followed in this namespace already; give this one a namespace of its own, or delete one"
            yield "NamespaceTaken", words
        if _place(other) == _place(body):
            words = f"{who} follows this repository and branch already; delete one of them, or follow another branch"
            yield "RepositoryTaken", words
        if _registry(other) == _registry(body) != "":
            words = f"{who} keeps its images in this registry repository already; give this Project one of its own"
            yield "RegistryTaken", words


def _age(body: Mapping[str, Any]) -> tuple[str, str, str]:
    meta = body["metadata"]
    return (str(meta.get("creationTimestamp", "")), str(meta["namespace"]), str(meta["name"]))


def _registry(body: Mapping[str, Any]) -> str:
    return str((body.get("spec", {}).get("registry") or {}).get("repository", ""))


def _place(body: Mapping[str, Any]) -> tuple[str, str]:
    try:
        spec = read_project(body).spec
    except DesiredStateError:
        return (str(body["metadata"]["uid"]), "")
    url = spec.repository.url if spec.repository is not None else str(body["metadata"]["uid"])
    return (_shown(url).rstrip("/").removesuffix(".git").lower(), spec.branch)
