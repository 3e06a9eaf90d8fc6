"""In which repositories blobs were last seen: a memory on disk that may be lost, and may be wrong.

Nothing is believed because of it. It says where to ask first, so that what another repository of the same registry has is taken
over from there and not sent again.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from pathlib import Path

from controller.adapters.oci.layout import write_whole

MOST_PLACES = 3
"""Repositories remembered of one blob; the last one is the likeliest to have it still."""
MOST_BLOBS = 20_000
LARGEST_BYTES = 8 << 20
_GONE = "-"


class Seen:
    """Where blobs lie. Threads and processes may share the file; each line of it says one thing.

    Args:
        path: The file; its folder must be there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._guard = threading.Lock()
        self._places: dict[tuple[str, str], tuple[str, ...]] = {}
        self._read: tuple[int, int] = (0, 0)
        """Which file was read, and how far."""

    def places(self, host: str, digest: str) -> tuple[str, ...]:
        """Paths of repositories on a host in which a blob was seen, the last one first."""
        with self._guard:
            self._catch_up()
            return self._places.get((host, digest), ())

    def note(self, repository: str, digests: Iterable[str]) -> None:
        """Remember that blobs were seen in a repository `host/path`."""
        host, _, path = repository.partition("/")
        with self._guard:
            self._catch_up()
            new = [digest for digest in digests if self._places.get((host, digest), ("",))[0] != path]
            self._write("".join(f"{host} {path} {digest}\n" for digest in new))

    def forget(self, repository: str, digests: Iterable[str]) -> None:
        """Remember that blobs are no longer in a repository."""
        host, _, path = repository.partition("/")
        with self._guard:
            self._catch_up()
            gone = [digest for digest in digests if path in self._places.get((host, digest), ())]
            self._write("".join(f"{host} {path} {digest} {_GONE}\n" for digest in gone))

    def _write(self, lines: str) -> None:
        if not lines:
            return
        try:
            if self._read[1] > LARGEST_BYTES:
                kept = [(host, path, digest) for (host, digest), paths in self._places.items() for path in reversed(paths)]
                write_whole(self._path, "".join(f"{host} {path} {digest}\n" for host, path, digest in kept).encode())
            # One write to the end of a file is not mixed with another's.
            file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(file, lines.encode())
            finally:
                os.close(file)
        except OSError:
            # A memory is worth no push: whoever finds the disk full says so where it matters.
            for line in lines.splitlines():
                self._take(line)
            return
        self._catch_up()

    def _catch_up(self) -> None:
        """Read what was written since we looked, by others too."""
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_ino != self._read[0] or status.st_size < self._read[1]:
                    self._read = (status.st_ino, 0)
                if status.st_size == self._read[1]:
                    return
                file.seek(self._read[1])
                data = file.read()
        except OSError:
            return
        whole = data[: data.rfind(b"\n") + 1]
        for line in whole.decode(errors="replace").splitlines():
            self._take(line)
        self._read = (self._read[0], self._read[1] + len(whole))
        while len(self._places) > MOST_BLOBS:
            del self._places[next(iter(self._places))]

    def _take(self, line: str) -> None:
        words = line.split(" ")
        if len(words) not in (3, 4):
            return
        host, path, digest = words[:3]
        others = tuple(item for item in self._places.pop((host, digest), ()) if item != path)
        left = others if words[3:] == [_GONE] else (path, *others)[:MOST_PLACES]
        if left:
            self._places[host, digest] = left
