"""One controller acts at a time: whoever holds the Lease. A second replica waits for it.

A leader that cannot renew stops acting before anybody else may start: it counts from when it asked, not from when it was
answered. Source: the rules of client-go's leader election, with shorter times.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from controller.adapters.cluster import LEASE, POD, Cluster
from policies.errors import ControllerError
from reconcilers.ports import Clock

faults = logging.getLogger("myelin.faults")
DURATION_SECONDS = 8
"""After which a Lease that nobody renewed may be taken."""
RENEW_WITHIN_SECONDS = 6.0
"""How long a leader acts after it last renewed."""
RENEW_EVERY_SECONDS = 2.0
LEADER = "myelin.io/leader"
"""Label of the leader's pod, which the inbox's Service points at."""


class Leadership:
    """The Lease `name` in `namespace`.

    Args:
        cluster: The API server.
        namespace: Where the Lease lies.
        name: What it is called.
        identity: Who we are; unique among replicas.
        clock: Tells when.
        changed: Called when we begin or cease to lead.
        pod: Our pod, which is labelled while it leads; empty: there is none.
    """

    def __init__(
        self,
        cluster: Cluster,
        namespace: str,
        name: str,
        identity: str,
        clock: Clock,
        *,
        changed: Callable[[], None] = lambda: None,
        pod: str = "",
    ) -> None:
        self._cluster, self._namespace, self._name, self._identity = cluster, namespace, name, identity
        self._clock, self._changed, self._pod = clock, changed, pod
        self._renewed_at: float | None = None
        self._held: dict[str, Any] | None = None
        self.is_replaced = True
        """Whether somebody else was seen to lead since we did; who only cannot ask keeps what it has open."""
        self._seen_at: float | None = None
        self._seen: tuple[str, str] = ("", "")
        self._seen_since = 0.0
        self._marked: bool | None = None
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def is_leader(self) -> bool:
        """Whether we may act now."""
        renewed_at = self._renewed_at  # the thread that keeps the Lease may forget it meanwhile
        return renewed_at is not None and time.monotonic() - renewed_at < RENEW_WITHIN_SECONDS

    @property
    def is_in_touch(self) -> bool:
        """Whether we lead, or saw lately who does."""
        return self.is_leader or (self._seen_at is not None and time.monotonic() - self._seen_at < 3 * DURATION_SECONDS)

    def start(self) -> None:
        """Try for the Lease, and keep it, until `end`."""
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Give the Lease back, so that another may lead at once."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join(10)
        if self._renewed_at is None:
            return
        self._renewed_at = None
        try:
            lease = self._cluster.get(LEASE, self._namespace, self._name)
            if lease is not None and (lease.get("spec") or {}).get("holderIdentity") == self._identity:
                lease["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1}
                self._cluster.replace(LEASE, lease)
        except ControllerError:
            pass  # it runs out by itself

    def look(self) -> None:
        """Renew the Lease, or take it when nobody holds it any more."""
        asked_at = time.monotonic()
        # As we left it, while we lead: one request renews it, and fails when somebody else wrote since.
        lease, self._held = self._held, None
        lease = lease or self._cluster.get(LEASE, self._namespace, self._name)
        now = self._clock.now()
        if lease is None:
            spec = self._spec(now, transitions=0)
            meta = {"name": self._name, "namespace": self._namespace}
            self._held = self._cluster.create(LEASE, {"metadata": meta, "spec": spec})
        else:
            self._seen_at = asked_at
            spec = lease.get("spec") or {}
            holder = str(spec.get("holderIdentity") or "")
            if holder not in ("", self._identity) and not self._is_over(holder, spec, asked_at):
                self._renewed_at, self.is_replaced = None, True
                return
            is_ours = holder == self._identity
            transitions = int(spec.get("leaseTransitions") or 0) + (0 if is_ours else 1)
            lease["spec"] = self._spec(now, transitions=transitions, acquired=spec.get("acquireTime") if is_ours else None)
            self._held = self._cluster.replace(LEASE, lease)
        self._renewed_at, self.is_replaced = asked_at, False

    def _is_over(self, holder: str, spec: Mapping[str, Any], now: float) -> bool:
        """Whether a holder was silent for the Lease's time, by our own clock: theirs may be wrong."""
        seen = (holder, str(spec.get("renewTime", "")))
        if seen != self._seen:
            self._seen, self._seen_since = seen, now
            return False
        return now - self._seen_since > float(spec.get("leaseDurationSeconds") or DURATION_SECONDS)

    def _spec(self, now: datetime, *, transitions: int, acquired: str | None = None) -> dict[str, Any]:
        instant = now.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": DURATION_SECONDS,
            "acquireTime": acquired or instant,
            "renewTime": instant,
            "leaseTransitions": transitions,
        }

    def _keep(self) -> None:
        led = False
        while not self._ending.is_set():
            try:
                self.look()
            except ControllerError:
                pass  # who cannot ask does not lead for long; where somebody wrote first, the next look tells who
            except Exception as error:  # noqa: BLE001  without this thread nobody would ever lead again
                faults.error("fault at the Lease", exc_info=error)
            if led != self.is_leader:
                led = self.is_leader
                self._changed()
            self._mark(led)
            self._ending.wait(RENEW_EVERY_SECONDS if led else 1.0)

    def _mark(self, led: bool) -> None:
        if not self._pod or self._marked == led:
            return
        patch = {"metadata": {"labels": {LEADER: "true" if led else None}}}
        try:
            self._cluster.merge(POD, self._namespace, self._pod, patch)
            self._marked = led
        except ControllerError:
            pass  # the next look tries again
