"""The front of the inbox: one thread that accepts connections and waits until a request is worth a worker.

However many connections are open, idle or drip-fed, the workers are few and only ever get requests whose head is here;
junk is answered without one. It knows HTTP no further than to see where a head ends.
"""

from __future__ import annotations

import queue
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

LARGEST_HEAD_BYTES = 65536
TURN_SECONDS = 30.0
"""How long a whole request may wait for a worker."""
MOST_OPEN = 400
"""Connections without a worker; the oldest is closed for one more. Well below the usual bound of 1,024 open files."""
MOST_WORKERS = 64
ACCEPTED_AT_ONCE = 64
REST_SECONDS = 0.002
"""Pause after junk was answered. A thread that makes many short calls keeps the interpreter from the others for 5 ms at a
time, because it takes it back sooner than they wake; one that answers several callers at once and then sleeps does not."""
END = b"\r\n\r\n"
"""Of a head."""
SERVE: Final = "serve"
"""For a worker, when one is free."""
Judged = str | bytes | int
"""`SERVE`, or the whole answer, after which the connection is closed, or how many bytes must be here before it is asked again."""


@dataclass(eq=False, slots=True)
class Caller:
    """A connection that no worker has yet."""

    connection: socket.socket
    address: tuple[Any, ...]
    until: float
    received: bytearray = field(default_factory=bytearray)
    needs: int = 0
    """How many bytes must be here for it to be judged; 0: those up to the end of its head."""


class Front:
    """Accepts, waits and sorts.

    Args:
        judge: What becomes of what a caller sent so far: at least its head, or as much as a head may have. The second is
            who sent it. It must not wait for anything.
        serve: Answers a caller's requests in a worker, from the bytes that came already on, and closes the connection.
        turned_away: Told why a connection was closed without an answer.
        patience_seconds: How long a sender may take until its request is worth a worker.
    """

    def __init__(
        self,
        *,
        judge: Callable[[bytes, str], Judged],
        serve: Callable[[socket.socket, tuple[Any, ...], bytes], None],
        turned_away: Callable[[str], None],
        patience_seconds: float,
    ) -> None:
        self._patience_seconds = patience_seconds
        self._judge, self._serve, self._turned_away = judge, serve, turned_away
        self._waiting: dict[int, Caller] = {}
        """File descriptor -> caller, the oldest first."""
        self._ready: deque[Caller] = deque()
        self._work: queue.SimpleQueue[Caller | None] = queue.SimpleQueue()
        self._guard = threading.Lock()
        self._workers = self._busy = 0
        self._is_ending = self._is_junk = False
        self._ended = threading.Event()
        self._ended.set()
        self._bell, self._ear = socket.socketpair()
        self._selector = selectors.DefaultSelector()

    def run(self, listener: socket.socket, look_seconds: float) -> None:
        """Work until `end`.

        Args:
            listener: A bound socket that listens.
            look_seconds: How often it is looked whether callers were too slow.
        """
        with self._guard:
            if self._is_ending:
                return
            self._ended.clear()
        for end in (listener, self._bell, self._ear):
            end.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(self._ear, selectors.EVENT_READ)
        try:
            while not self._is_ending:
                for key, _ in self._selector.select(look_seconds):
                    if key.fileobj is listener:
                        self._accept(listener)
                    elif key.fileobj is self._ear:
                        self._hear()
                    elif (caller := self._waiting.get(key.fd)) is not None:
                        self._receive(caller)
                self._hand_out()
                self._tidy(time.monotonic())
                if self._is_junk:
                    self._is_junk = False
                    time.sleep(REST_SECONDS)
        finally:
            for caller in [*self._waiting.values(), *self._ready]:
                caller.connection.close()
            self._waiting.clear()
            self._ready.clear()
            for _ in range(self._workers):
                self._work.put(None)
            self._selector.close()
            self._ended.set()

    def end(self) -> None:
        """End `run`, and wait until it has."""
        with self._guard:
            self._is_ending = True
        self._ring()
        self._ended.wait()

    def close(self) -> None:
        """Give back what was taken."""
        self._bell.close()
        self._ear.close()
        self._selector.close()

    def _ring(self) -> None:
        try:
            self._bell.send(b"!")
        except OSError:
            pass  # it rings already, or nobody is there any more

    def _hear(self) -> None:
        try:
            self._ear.recv(4096)
        except OSError:
            pass

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                connection, address = listener.accept()
            except BlockingIOError:
                return  # nobody is there any more
            except OSError:
                self._is_junk = True  # no file is left: those that end make room, and to ask at once again is of no use
                return
            connection.setblocking(False)
            caller = Caller(connection, address, time.monotonic() + self._patience_seconds)
            self._waiting[connection.fileno()] = caller
            self._selector.register(connection, selectors.EVENT_READ)
            self._receive(caller)
            if len(self._waiting) + len(self._ready) > MOST_OPEN:
                oldest = next(iter(self._waiting.values()), None) or self._ready.popleft()
                self._drop(oldest, "too many")

    def _receive(self, caller: Caller) -> None:
        try:
            found = caller.connection.recv(LARGEST_HEAD_BYTES)
        except BlockingIOError:
            return
        except OSError:
            found = b""
        looked = max(0, len(caller.received) - len(END) + 1)
        caller.received += found
        size = len(caller.received)
        # Whoever sends byte by byte costs no more than that: nothing is read twice.
        is_enough = size >= caller.needs if caller.needs else caller.received.find(END, looked) >= 0 or size >= LARGEST_HEAD_BYTES
        if found and not is_enough:
            return
        judged = self._judge(bytes(caller.received), str(caller.address[0])) if found else b""
        if isinstance(judged, int):
            caller.needs = judged
            return
        self._forget(caller)
        if judged == SERVE:
            caller.until = time.monotonic() + TURN_SECONDS
            self._ready.append(caller)
        else:
            assert isinstance(judged, bytes)
            self._is_junk = True
            answer(caller.connection, judged)

    def _hand_out(self) -> None:
        with self._guard:
            while self._ready and self._busy < MOST_WORKERS:
                if self._busy == self._workers and not self._hire():
                    return
                self._busy += 1
                self._work.put(self._ready.popleft())

    def _worker(self) -> None:
        while (caller := self._work.get()) is not None:
            caller.connection.setblocking(True)
            self._serve(caller.connection, caller.address, bytes(caller.received))
            with self._guard:
                self._busy -= 1
            if self._ready:
                self._ring()

    def _hire(self) -> bool:
        try:
            threading.Thread(target=self._worker, name="inbox-worker", daemon=True).start()
        except RuntimeError:
            return False  # no thread is to be had just now
        self._workers += 1
        return True

    def _tidy(self, now: float) -> None:
        """Close what took too long."""
        while (caller := next(iter(self._waiting.values()), None)) is not None and caller.until < now:
            self._drop(caller, "too slow")
        while self._ready and self._ready[0].until < now:
            self._drop(self._ready.popleft(), "no worker")

    def _drop(self, caller: Caller, why: str) -> None:
        self._turned_away(why)
        self._forget(caller)
        caller.connection.close()

    def _forget(self, caller: Caller) -> None:
        if self._waiting.pop(caller.connection.fileno(), None) is not None:
            self._selector.unregister(caller.connection)


def answer(connection: socket.socket, words: bytes) -> None:
    """Say a few words without waiting, and close."""
    try:
        if words:
            connection.send(words)
            connection.shutdown(socket.SHUT_WR)
            # What lies unread when a connection is closed may cost its sender the answer.
            while connection.recv(LARGEST_HEAD_BYTES, socket.MSG_DONTWAIT):
                pass
    except OSError:
        pass
    finally:
        connection.close()
