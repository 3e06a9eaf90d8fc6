"""Calls of the user's code from the event loop: in a thread, one at a time, each within a bound."""

from __future__ import annotations

import asyncio
import sys
import traceback
from collections.abc import Callable
from typing import Any

from myelin.serve.message import BadRequest
from myelin.serve.plain import ModelFault


class TimedOut(Exception):
    """The user's code did not come back in time; the text is for the caller."""


class Caller:
    """Calls the user's code.

    A call that takes too long cannot be ended: it keeps its turn until it comes back, so that code that must not run
    side by side never does, and the callers behind it wait for their turn within the same bound.

    Args:
        side_by_side: Whether calls may run at the same time.
        timeout_seconds: Bound of one call, and of the wait for one's turn; None: none.
    """

    def __init__(self, *, side_by_side: bool, timeout_seconds: float | None = None) -> None:
        self._side_by_side, self._timeout = side_by_side, timeout_seconds
        self._turn = asyncio.Lock()
        self._running = 0

    @property
    def is_busy(self) -> bool:
        """Whether a call has not come back."""
        return self._running > 0

    async def call(self, name: str, work: Callable[[], Any]) -> Any:
        """Do `work` in a thread.

        Args:
            name: What is called, for messages.
            work: The call.

        Raises:
            BadRequest: The caller's message cannot be read.
            ModelFault: The user's code raised, with type and message; its trace went to standard error.
            TimedOut: It did not come back in time, or an earlier call did not.
        """
        if not self._side_by_side:
            try:
                await asyncio.wait_for(self._turn.acquire(), self._timeout)
            except (TimeoutError, asyncio.TimeoutError) as error:  # noqa: UP041  two classes before Python 3.11
                raise TimedOut(f"{name}: an earlier call has not come back for {self._timeout:g} s (TIMEOUT)") from error
        self._running += 1
        future = asyncio.get_running_loop().run_in_executor(None, _outcome, name, work)
        future.add_done_callback(self._ended)
        done, _ = await asyncio.wait({future}, timeout=self._timeout)
        if not done:
            raise TimedOut(f"{name}: no answer within {self._timeout:g} s (TIMEOUT)")
        value, fault = future.result()
        if fault is not None:
            raise fault
        return value

    def _ended(self, future: asyncio.Future[Any]) -> None:
        del future
        self._running -= 1
        if not self._side_by_side:
            self._turn.release()


def _outcome(name: str, work: Callable[[], Any]) -> tuple[Any, Exception | None]:
    """Result or error as values: some errors, StopIteration among them, cannot travel from thread to loop otherwise."""
    try:
        return work(), None
    except BadRequest as error:
        return None, error
    except ModelFault as error:
        print(f"{name}: {error}", file=sys.stderr)
        return None, error
    except BaseException as error:  # noqa: BLE001  the user's code may raise anything, SystemExit too, and the server goes on
        traceback.print_exception(type(error), error, error.__traceback__)
        return None, ModelFault(f"{type(error).__name__}: {error}")
