"""The write-ahead log: lines that are safe on disk before anybody acts on them, and the lock of their folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from policies.errors import DesiredStateError, RefusedError, SilentError
from policies.ledger import decode, encode, read_line
from policies.terms.record import Entry

LOG = "pending.jsonl"


class Lock:
    """Held as long as the process lives: one writer for each folder."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.seek(0)
            holder = self._file.read().strip() or "?"
            self._file.close()
            raise RefusedError(
                f"{path.parent}: another controller (process {holder}) works on this state", reason="Locked"
            ) from error
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()

    def close(self) -> None:
        """Give the folder free."""
        self._file.close()


@contextmanager
def disk(place: Path) -> Iterator[None]:
    """Say what a disk refused in our words."""
    try:
        yield
    except OSError as error:
        raise SilentError(f"{place}: {error.strerror or error}", reason="DiskFull" if error.errno == 28 else "Disk") from error


def read_log(path: Path, *, mend: bool) -> list[Entry]:
    """Entries of a log. A torn last line was never acted on: it is passed over.

    Args:
        path: The log; none is an empty one.
        mend: Cut the torn line off. Only its writer may.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    whole, _, torn = data.rpartition(b"\n")
    if torn and mend:
        with path.open("r+b") as file:
            file.truncate(len(data) - len(torn))
    return [_checked(line, f"{path}:{number}") for number, line in enumerate(whole.splitlines(), start=1) if line]


def _checked(raw: bytes, where: str) -> Entry:
    line = read_line(raw, where)
    if line.digest != line.covered:
        raise DesiredStateError(f"{where}: expected an entry as its digest says, it was changed", reason="BrokenEntry")
    return decode(raw, where=where)


def append(path: Path, entries: Sequence[Entry]) -> None:
    """Add entries and return once they are on the disk; all of them or none."""
    is_new = not path.exists()
    with path.open("ab") as file:
        start = file.tell()
        try:
            file.write(b"".join(map(encode, entries)))
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            os.truncate(path, start)
            raise
    if is_new:
        sync_folder(path.parent)


def replace(path: Path, entries: Sequence[Entry]) -> None:
    """Make a log hold just these entries."""
    temporary = path.with_suffix(".new")
    with temporary.open("wb") as file:
        file.write(b"".join(map(encode, entries)))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make new names in a folder last."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
