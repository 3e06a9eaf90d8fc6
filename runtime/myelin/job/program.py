"""The program of a job: started, told what this process is told, heard out, and seen to its end."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from myelin.job.given import CANNOT_START, Ended, Given, JobError, say, write

LOG_BYTES = 1 << 20
STOPPED_GIVES_UP = 10
"""How long a job goes on that was asked to end, in first pauses: soon it is killed."""
DRAIN_SECONDS = 5.0
"""How long what a program printed last may take to come through."""
_HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)


class StoppedError(Exception):
    """The job was asked to end before its program began."""


class Printed:
    """Passes on what a program prints while it comes, and keeps the end of it."""

    def __init__(self) -> None:
        self._kept, self._guard, self._is_open = bytearray(), threading.Lock(), True

    def copy(self, source: int) -> None:
        """Read to the end."""
        while block := os.read(source, 65536):
            self._keep(block)
            if self._is_open:
                try:
                    write(1, block)
                except OSError:
                    self._is_open = False  # nobody reads what we print: the program should not notice

    def say(self, text: str) -> None:
        """Say something of our own, as if the program had printed it last."""
        self._keep(say(text))

    def end(self) -> bytes:
        """The end of all that was printed."""
        with self._guard:
            return bytes(self._kept[-LOG_BYTES:])

    def _keep(self, block: bytes) -> None:
        with self._guard:
            self._kept += block
            if len(self._kept) > 2 * LOG_BYTES:
                del self._kept[:-LOG_BYTES]


class Signals:
    """Hands on to the program what this process is told, and waits for its end."""

    def __init__(self, given: Given) -> None:
        self._grace_seconds, self._patience = given.grace_seconds, given.pause_seconds * STOPPED_GIVES_UP
        self._program, self._is_preparing, self._is_over = 0, False, False
        self.number: int = signal.SIGTERM
        self.until: float | None = None
        """When to give up at the latest, on the monotonic clock; None while nobody asked to end."""

    def install(self) -> None:
        """Listen from now on."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)
        signal.signal(signal.SIGALRM, self._kill)

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """A block that ends at once when this process is asked to end.

        Raises:
            StoppedError: It was.
        """
        try:
            self._is_preparing = True
            yield
        finally:
            self._is_preparing = False

    def run(self, program: Sequence[str], environ: Mapping[str, str], printed: Printed) -> Ended:
        """Run a program to its end; nothing that it started stays.

        Raises:
            StoppedError: This process was asked to end before.
            JobError: There is no thread to be had.
        """
        source, sink = os.pipe()
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, sink, 1),
            (os.POSIX_SPAWN_DUP2, sink, 2),
        ]
        # A signal must find either no program yet or a known one; and the thread must take none, or waiting goes on.
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
            if self.until is not None:
                raise StoppedError
            # Before the program, so that it never runs unheard; without one, it reads nothing and ends.
            copier = threading.Thread(target=printed.copy, args=(source,), daemon=True)
            copier.start()
            self._program = os.posix_spawnp(
                program[0],
                list(program),
                dict(environ),
                file_actions=actions,
                setsid=True,
                setsigmask=(),
                setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
            )
        except OSError as error:
            return Ended(CANNOT_START, f"{program[0]}: {error.strerror}")
        except RuntimeError as error:
            raise JobError(f"expected to start one thread: {error}") from error
        finally:
            os.close(sink)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)
        code = self._wait()
        copier.join(DRAIN_SECONDS)
        return Ended(code)

    def _wait(self) -> int:
        while True:
            pid, status = os.waitpid(-1, 0)  # as the first process of a container, we inherit all that lose their parent
            if pid == self._program:
                break
        self._is_over = True
        signal.setitimer(signal.ITIMER_REAL, 0)
        self._signal(signal.SIGKILL)
        if os.getpid() == 1:
            _end_all()
        return os.waitstatus_to_exitcode(status)

    def _ask(self, number: int, frame: object) -> None:
        """Somebody asks to end: hand it on, and see that it is done."""
        is_first = self.until is None
        if is_first:
            self.number, self.until = number, time.monotonic() + self._patience
        if self._is_preparing:
            raise StoppedError
        if self._program and not self._is_over:
            self._signal(number)
            if is_first:
                signal.setitimer(signal.ITIMER_REAL, self._grace_seconds)

    def _kill(self, number: int, frame: object) -> None:
        if not self._is_over:
            self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        """To the program and all that it started."""
        try:
            os.killpg(self._program, number)
        except (ProcessLookupError, PermissionError):
            pass


def _end_all() -> None:
    """End whatever else runs in this container, and wait for it: it might still write to the folders that are kept."""
    try:
        os.kill(-1, signal.SIGKILL)
        while True:
            os.waitpid(-1, 0)
    except (ProcessLookupError, PermissionError, ChildProcessError):
        pass
