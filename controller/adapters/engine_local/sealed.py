"""Whether an unpacked image is still as it was unpacked: told by what the disk notes of each file, without reading any."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path


def seal_of(root: Path) -> str:
    """What differs once a file below a folder was written to, made, removed or replaced.

    Of files it takes the time of their last change of any kind, which nobody who writes to one can set back.
    """
    seen = hashlib.sha256()
    for line in _lines(str(root), ""):
        seen.update(line.encode(errors="surrogateescape"))
    return seen.hexdigest()


def is_sealed(root: Path) -> bool:
    """Whether a folder is as it was when it was sealed; one that never was is not."""
    try:
        return seal_file(root).read_text() == seal_of(root)
    except OSError:
        return False


def seal(root: Path) -> None:
    """Note how a folder is now."""
    temporary = seal_file(root).with_suffix(".seal.new")
    temporary.write_text(seal_of(root))
    temporary.replace(seal_file(root))


def seal_file(root: Path) -> Path:
    """What a folder's seal is kept in; when that was last written tells when the folder was last used."""
    return root.with_name(f"{root.name}.seal")


def _lines(folder: str, place: str) -> Iterator[str]:
    with os.scandir(folder) as entries:
        listed = sorted(entries, key=lambda entry: entry.name)
    for entry in listed:
        name, seen = f"{place}/{entry.name}", entry.stat(follow_symlinks=False)
        if stat.S_ISDIR(seen.st_mode):
            # Its own times change with every look of some programs; what is in it is listed.
            yield json.dumps([name, seen.st_mode, seen.st_ino])
            yield from _lines(entry.path, name)
        else:
            yield json.dumps([name, seen.st_mode, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns])
