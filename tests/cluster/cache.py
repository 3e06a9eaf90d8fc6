"""Things that are slow to make, kept in the user's cache folder under the digest of what makes them.

Never shows a half-made thing, and never takes away one that somebody uses.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

_HELD: dict[Path, int] = {}
"""Open folders with a shared lock on them, for as long as this process lives."""


def root() -> Path:
    """Myelin's folder among the user's caches."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "myelin"


def digest_of(*parts: bytes) -> str:
    """Name of what these parts make: 32 hex digits."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(hashlib.sha256(part).digest())
    return whole.hexdigest()[:32]


def keep(kind: str, digest: str, make: Callable[[Path], None]) -> Path:
    """The folder of this kind and digest; made now if it is not there.

    It appears under its name only when `make` is through, so that a crash leaves nothing that looks whole. Folders of the same
    kind under other digests are removed, except those in use.

    Args:
        kind: Name of the folder of folders.
        digest: What the thing's name derives from.
        make: Fills an empty folder.
    """
    shelf = root() / kind
    shelf.mkdir(parents=True, exist_ok=True)
    place = shelf / digest
    with (shelf / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.is_dir():
            part = shelf / f"{digest}.part"
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            make(part)
            part.rename(place)
        hold(place)
        for other in shelf.iterdir():
            if other.is_dir() and other != place and is_unused(other):
                shutil.rmtree(other)
    return place


def hold(place: Path) -> None:
    """Keep a folder from being removed while this process lives."""
    if place in _HELD:
        return
    opened = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(opened, fcntl.LOCK_SH)
    _HELD[place] = opened


def is_unused(place: Path) -> bool:
    """Whether no process holds a folder."""
    opened = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(opened)
    return True


def say(text: str) -> None:
    """One line of progress, on standard error."""
    print(text, file=sys.stderr, flush=True)
