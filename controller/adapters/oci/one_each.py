"""One at a time for each name: whoever comes second waits, and then finds done what it came for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class OneEach:
    """Locks by name, which are there only while somebody holds or awaits them."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: dict[str, tuple[threading.Lock, int]] = {}

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """As long as the block lasts nobody else is in one of this name."""
        with self._guard:
            lock, waiting = self._locks.get(name, (threading.Lock(), 0))
            self._locks[name] = (lock, waiting + 1)
        try:
            with lock:
                yield
        finally:
            with self._guard:
                lock, waiting = self._locks.pop(name)
                if waiting > 1:
                    self._locks[name] = (lock, waiting - 1)
