"""Who looks when: a few workers for many followers, each of which has one turn at a time.

A follower that is woken while its turn goes on gets one more after it. A turn that lasts long takes no worker from the others.
"""

from __future__ import annotations

import heapq
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from itertools import count
from typing import Protocol

faults = logging.getLogger("myelin.faults")
WORKERS = 12
"""Turns at once. They mostly wait for others: a Git server, a registry, the cluster."""
SLOW_SECONDS = 2.0
"""A turn that lasts longer is not counted among those."""
MOST_WORKERS = 200
"""Turns at once with the slow ones."""
REST_SECONDS = 10.0
"""After so long without a turn a worker ends."""
AGAIN_SECONDS = 30.0
"""After a turn that ended with a fault of ours."""


class Follower(Protocol):
    """Who has turns."""

    def turn(self) -> float | None:
        """Do what is due; returns after how many seconds to come again at the latest, None: never again."""
        ...


class Turns:
    """Gives followers their turns.

    Args:
        workers: Turns at once. At least 1.
        slow_seconds: After so long a turn is not counted among those.
        most: Turns at once with those that are slow.
        rest_seconds: After so long without a turn a worker ends.
        seconds: A clock that only goes forward.
    """

    def __init__(
        self,
        *,
        workers: int = WORKERS,
        slow_seconds: float = SLOW_SECONDS,
        most: int = MOST_WORKERS,
        rest_seconds: float = REST_SECONDS,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self._workers, self._slow_seconds, self._most = workers, slow_seconds, most
        self._rest_seconds, self._seconds = rest_seconds, seconds
        self._later: list[tuple[float, int, Follower]] = []
        """Heap; an entry counts only where `_at` says the same."""
        self._at: dict[Follower, float] = {}
        self._ready: OrderedDict[Follower, None] = OrderedDict()
        self._running: dict[Follower, float] = {}
        """Follower -> when its turn began."""
        self._again: set[Follower] = set()
        self._numbers = count()
        self._free = self._alive = 0
        self._guard = threading.Lock()
        self._changed = threading.Condition(self._guard)
        """Something is due earlier, or a worker became free: the thread that hands out looks again."""
        self._due = threading.Condition(self._guard)
        """Somebody is ready: a free worker takes him."""
        self._giver: threading.Thread | None = None
        self._is_over = False

    def wake(self, follower: Follower, *, first: bool = False) -> None:
        """Give a turn now: after the one that goes on, and before all that are ready where it is to be the first."""
        with self._guard:
            if self._is_over:
                return
            if follower in self._running:
                self._again.add(follower)
                return
            self._at.pop(follower, None)
            self._ready[follower] = None
            if first:
                self._ready.move_to_end(follower, last=False)
            self._call()

    def began_at(self, follower: Follower) -> float | None:
        """When the turn that goes on began; None when there is none."""
        return self._running.get(follower)

    def end(self, *, wait_seconds: float = 0.0) -> bool:
        """Give no more turns; whether those that went on ended in time."""
        deadline = self._seconds() + wait_seconds
        with self._guard:
            self._is_over = True
            self._ready.clear()
            self._later.clear()
            self._at.clear()
            self._due.notify_all()
            self._changed.notify_all()
            while self._alive and (left := deadline - self._seconds()) > 0:
                self._changed.wait(left)
            return not self._alive

    def _call(self) -> None:
        """See that whoever is ready is served: by a free worker, else by one that the giver starts."""
        if self._giver is None:
            self._giver = threading.Thread(target=self._give, name="turns", daemon=True)
            self._giver.start()
        self._due.notify()
        if len(self._ready) > self._free:
            self._changed.notify_all()

    def _give(self) -> None:
        """Move who is due to those that are ready, and start workers where there are too few."""
        with self._guard:
            while not self._is_over:
                now = self._seconds()
                while self._later and self._later[0][0] <= now:
                    at, _, follower = heapq.heappop(self._later)
                    if self._at.get(follower) == at:
                        del self._at[follower]
                        self._ready[follower] = None
                        self._due.notify()
                # Who is told to take one has not taken him yet.
                if len(self._ready) > self._free and self._may_grow(now):
                    self._alive += 1
                    self._free += 1
                    threading.Thread(target=self._work, name="turn", daemon=True).start()
                    continue
                self._changed.wait(self._pause(now))

    def _may_grow(self, now: float) -> bool:
        return self._alive < self._most and self._alive - self._slow(now) < self._workers

    def _slow(self, now: float) -> int:
        return sum(now - began_at > self._slow_seconds for began_at in self._running.values())

    def _pause(self, now: float) -> float | None:
        """Seconds until somebody is due, or it may be that somebody who is ready gets a worker because a turn became slow."""
        ends = [self._later[0][0]] if self._later else []
        if len(self._ready) > self._free and self._alive < self._most:
            ends.append(now + self._slow_seconds / 4)
        return max(0.0, min(ends) - now) if ends else None

    def _work(self) -> None:
        with self._guard:
            while (follower := self._next()) is not None:
                self._running[follower] = self._seconds()
                self._free -= 1
                self._guard.release()
                try:
                    pause = _turn(follower)
                finally:
                    self._guard.acquire()
                self._free += 1
                del self._running[follower]
                self._come_again(follower, pause)
            self._free -= 1
            self._alive -= 1
            self._changed.notify_all()

    def _next(self) -> Follower | None:
        """Who is to have a turn; None when this worker is one too many."""
        until = self._seconds() + self._rest_seconds
        while not self._is_over:
            now = self._seconds()
            if self._alive - self._slow(now) > self._workers:
                return None  # it was started beside slow ones
            if self._ready:
                return self._ready.popitem(last=False)[0]
            if now >= until:
                return None
            self._due.wait(until - now)
        return None

    def _come_again(self, follower: Follower, pause: float | None) -> None:
        is_woken = follower in self._again
        self._again.discard(follower)
        if pause is None or self._is_over:
            return
        if is_woken or pause <= 0:
            self._ready[follower] = None
            return  # this worker, or another that is free, takes it
        at = self._at[follower] = self._seconds() + pause
        heapq.heappush(self._later, (at, next(self._numbers), follower))
        if self._later[0][2] is follower:
            self._changed.notify_all()


def _turn(follower: Follower) -> float | None:
    try:
        return follower.turn()
    except Exception as error:  # noqa: BLE001  without its worker nobody would have turns any more
        faults.error("fault in a turn", exc_info=error)
        return AGAIN_SECONDS
