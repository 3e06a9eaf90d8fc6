"""The controller of a cluster: one process, a few workers for the passes of all Projects, one inbox for all, one leader.

Watches and the clock only say *look now*; who does not hold the Lease does nothing.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controller import handlers
from controller.adapters.clock import SystemClock
from controller.adapters.cluster import AXON, PROJECT, RELEASE, VERSION, Cluster
from controller.follow import keep_faults
from controller.follower import Follower
from controller.inbox import Desk
from controller.leadership import Leadership
from controller.mirroring import Seen
from controller.rivals import Rivals
from controller.turns import Turns
from controller.wiring import CLUSTER_POLL_SECONDS, ClusterSurroundings
from policies.errors import ControllerError, RefusedError
from policies.terms.outcome import Outcome

faults = logging.getLogger("myelin.faults")
RESYNC_SECONDS = 60.0
"""A watch may miss that something went; so often all is listed."""
REACH_SECONDS = 5.0
"""So often the namespaces that we may not watch (yet) are tried."""
WATCH_PAUSE_SECONDS = 2.0
"""After watches that ended by themselves."""
END_SECONDS = 30.0
"""So long the passes that run at the end may take."""
LOOKS_A_SECOND = 25.0
"""Questions to Git servers: each costs 20 ms of a core, for the program that asks."""
LEASE = "myelin"
M_ARENA_MAX, HEAPS = -8, 2
"""Number of the setting in glibc's malloc.h, and how many heaps there may be: 14 MB less for 250 projects."""


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
    bound_memory()
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
    fleet.shared = ClusterSurroundings(
        cluster=cluster, desk=desk, inbox=settings.inbox, state=settings.state, poll_seconds=fleet.poll_seconds
    )
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


def bound_memory() -> None:
    """Let few threads have a heap of their own: what many leave free in theirs cannot be used by others, nor given back."""
    try:
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, HEAPS)
    except (OSError, AttributeError):
        pass  # another C library has other heaps


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
        self.seen, self.turns = Seen(), Turns()
        self.rivals = Rivals(self.seen)
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
        for namespace in self.seen.namespaces("Project") - set(namespaces):
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
        return self.rivals.of(namespace, name)

    def poll_seconds(self) -> float:
        """How often each project's Git server is asked, so that all together are not asked too often; webhooks go before."""
        return max(CLUSTER_POLL_SECONDS, len(self.seen.all("Project")) / LOOKS_A_SECOND)

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

    def followers(self) -> list[Follower]:
        """Who follows a project and has not ended."""
        with self._guard:
            return [follower for follower in self._followers.values() if follower.is_alive()]

    def end(self) -> None:
        """End every pass cleanly: what it began is finished, nothing more is begun."""
        self._ending = True
        with self._guard:
            keys = list(self._followers)
        for key in keys:
            self._followers[key].stop()
        deadline = time.monotonic() + END_SECONDS
        for key in keys:
            self._drop(key, wait_seconds=max(0.1, deadline - time.monotonic()))
        self.turns.end(wait_seconds=1.0)

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
