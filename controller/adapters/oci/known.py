"""The digests of big files that nobody wrote to since they were read, so that no unchanged file is read twice.

Law: a digest is given only for the bytes that were read. A file is told by device, inode, size and both times that the
kernel keeps of it; the time of change cannot be set by whoever writes to it. A file that changed in the same tick of the
disk's clock in which we began to read is not remembered: the next write might leave that time as it is.
"""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

from controller.adapters.oci.layout import write_whole
from policies.terms.digest import Digest, is_digest

SMALLEST_BYTES = 1 << 20
"""Of files below it nothing is remembered: they are read faster than they are looked up."""
MOST = 2048
"""How many files are remembered, the newest."""
TICK_SECONDS = 0.002
MOST_TICKS = 25
"""The slowest of our kernels' clocks tick each 10 ms."""


class KnownFiles:
    """Digests of files. Threads may share it.

    Args:
        path: Where they are kept; may be deleted. Its disk's clock is the only one that counts.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._guard = path, threading.Lock()
        self._digests: dict[str, Digest] | None = None
        self._is_new = False

    def now(self) -> os.stat_result:
        """What a file that is written to at this moment looks like."""
        probe = self._path.with_suffix(".now")
        probe.touch()
        return probe.stat()

    def digest(self, status: os.stat_result) -> Digest | None:
        """The digest of a file that was read and is as it was; None: nobody knows."""
        if status.st_size < SMALLEST_BYTES:
            return None
        with self._guard:
            return self._read().get(_key(status))

    def knows_size(self, size: int) -> bool:
        """Whether a file of exactly this size is remembered: then this one may be the same."""
        with self._guard:
            return size >= SMALLEST_BYTES and any(key.split(":")[2] == str(size) for key in self._read())

    def keep(self, status: os.stat_result, digest: Digest, *, began: os.stat_result) -> None:
        """Remember a file's digest, if no write after `began` can have left its times as they are.

        Args:
            status: The file before it was read and after, which must be equal.
            digest: Of what was read.
            began: `now()`, asked before the file was read.
        """
        is_settled = max(status.st_ctime_ns, status.st_mtime_ns) < began.st_mtime_ns and status.st_dev == began.st_dev
        if status.st_size < SMALLEST_BYTES or not is_settled:
            return
        with self._guard:
            known = self._read()
            if known.get(_key(status)) != digest:
                known.pop(_key(status), None)
                known[_key(status)] = digest
                self._is_new = True

    def settled(self, *written: os.stat_result) -> os.stat_result:
        """`now()`, once the disk's clock went on since these files were written."""
        newest = max((status.st_ctime_ns for status in written), default=0)
        for _ in range(MOST_TICKS):
            if (now := self.now()).st_mtime_ns > newest:
                break
            time.sleep(TICK_SECONDS)
        return now

    def save(self) -> None:
        """Keep what was remembered since the last time."""
        with self._guard:
            if self._is_new and self._digests is not None:
                kept = list(self._digests.items())[-MOST:]
                write_whole(self._path, json.dumps(kept).encode())
                self._digests, self._is_new = dict(kept), False

    def _read(self) -> dict[str, Digest]:
        if self._digests is None:
            try:
                found = json.loads(self._path.read_bytes())
                self._digests = {str(key): Digest(digest) for key, digest in found if is_digest(str(digest))}
            except (OSError, ValueError, TypeError):
                self._digests = {}  # nothing was kept, or nothing that can be read
        return self._digests


def _key(status: os.stat_result) -> str:
    return f"{status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}"


def is_same(one: os.stat_result, other: os.stat_result) -> bool:
    """Whether nobody wrote to a file between two looks, as far as its times tell."""
    return _key(one) == _key(other)
