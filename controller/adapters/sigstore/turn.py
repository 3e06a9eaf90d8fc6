"""Turns: other threads have something done by the one that runs a project's passes, to which its ledger belongs."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from controller.adapters.sigstore.leaves import NOT_PUSHED
from policies.errors import SilentError

TURN_SECONDS = 20.0
"""How long somebody who asks over HTTP waits at most."""
SIGNING_SECONDS = 60.0
"""The same of a build that is done but for its signature."""
PUSH_SECONDS = 0.25
"""Pause until it is tried again whether the ledger's branch has what the log took in: a ledger rests between two pushes."""
T = TypeVar("T")


class Turn:
    """Lets other threads have something done by the one that the project's ledger belongs to.

    Args:
        wake: Tells that thread that somebody waits.
        patience_seconds: How long somebody waits at most.
    """

    def __init__(self, wake: Callable[[], None], *, patience_seconds: float = TURN_SECONDS) -> None:
        self._wake, self._patience_seconds = wake, patience_seconds
        self._asked: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._owner: threading.Thread | None = None

    def __call__(self, act: Callable[[], T], *, patience_seconds: float | None = None) -> T:
        """Have something done, and return what came of it. Whoever has the turn does it at once.

        What only waits for the ledger's next push is tried again, for as long as there is patience.

        Raises:
            SilentError: Nobody did it in time; it is not done afterwards either.
        """
        if threading.current_thread() is self._owner:
            return act()
        until = time.monotonic() + (self._patience_seconds if patience_seconds is None else patience_seconds)
        while True:
            try:
                return self._ask(act, max(0.0, until - time.monotonic()))
            except SilentError as error:
                if error.reason != NOT_PUSHED or time.monotonic() + PUSH_SECONDS >= until:
                    raise
            time.sleep(PUSH_SECONDS)

    def work(self) -> None:
        """Take the turn, and do what others wait for; called by the thread that the ledger belongs to from now on."""
        self._owner = threading.current_thread()
        while True:
            try:
                act, told = self._asked.get_nowait()
            except queue.Empty:
                return
            if told.set_running_or_notify_cancel():
                try:
                    told.set_result(act())
                except BaseException as error:  # noqa: BLE001  it is that of who asked, and is raised there
                    told.set_exception(error)

    def _ask(self, act: Callable[[], T], seconds: float) -> T:
        told: Future[T] = Future()
        self._asked.put((act, told))
        self._wake()
        try:
            return told.result(seconds)
        except TimeoutError:
            if told.cancel():
                raise SilentError("transparency log: expected the project's turn soon, it is busy; ask again") from None
            return told.result()
