"""Unpacked images leave the disk once nothing runs from them, nothing kept is made of them, and nobody started one lately.

Laws: what a job or server that is there was started from stays, also where it was touched since. Nobody who starts something
meanwhile finds half an image: names go under the lock that unpacking takes, and a removed image is unpacked anew.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from controller.adapters.engine_local.processes import born
from controller.adapters.engine_local.sealed import seal_file
from controller.adapters.oci.cleaning import GRACE_SECONDS, LARGEST_MANIFEST_BYTES, SHORTEST_GRACE_SECONDS, Removed, Swept
from controller.adapters.oci.layout import Layout, disk_error

NEW, TOUCHED = ".new", ".touched"
"""What is being unpacked, and what was changed by somebody and may have programs that still run from it."""
_NAME = re.compile(r"[0-9a-f]{32}")
_NAMED = re.compile(r"/images/([0-9a-f]{32})(?![0-9a-f])")
"""An image's folder in a command line, whichever way leads there."""


def name_of(digest: str) -> str:
    """What an image's folder is called."""
    return digest.removeprefix("sha256:")[:32]


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """While it is held, nobody else unpacks into a folder, or removes anything from it."""
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class Unpacked:
    """The images that one machine has unpacked.

    Args:
        engine: Folder with jobs, servers and unpacked images.
        layout: Where images are; it says which images an index is of.
    """

    def __init__(self, engine: Path, layout: Layout) -> None:
        self._tops, self._folder, self._layout = (engine / "jobs", engine / "servers"), engine / "images", layout

    def sweep(self, used: Collection[str], grace_seconds: float = GRACE_SECONDS, dry_run: bool = False) -> Swept:
        """Remove what nothing needs; what a start left behind that broke off goes too.

        Args:
            used: Digests that must stay.
            grace_seconds: What was started this lately stays; at least an hour counts.
            dry_run: Only tell what would go.

        Raises:
            SilentError: The disk failed us.
        """
        if not self._folder.is_dir():
            return Swept()
        try:
            with alone(self._folder):
                going = dict(self._going(used, _now(self._folder) - max(grace_seconds, SHORTEST_GRACE_SECONDS)))
                removed = tuple(
                    Removed(name=f"unpacked {path.name}", digest="", size_bytes=_bytes(path), why=why)
                    for path, why in going.items()
                )
                kept = sum(1 for path in self._roots() if path not in going)
                gone = [] if dry_run else self._put_away(list(going))
            # Outside of the lock: this is what takes long. With it goes what somebody left who died here.
            for folder in gone:
                shutil.rmtree(folder, ignore_errors=True)
        except OSError as error:
            raise disk_error(self._folder, error) from error
        return Swept(removed=removed, kept=kept)

    def _going(self, used: Collection[str], since: float) -> Iterator[tuple[Path, str]]:
        """What goes, and why."""
        running, kept = self._running(), self._of(used)
        for path in sorted(self._folder.iterdir()):
            name = path.name.partition(".")[0]
            if not _NAME.fullmatch(name) or not path.is_dir():
                continue
            if path.suffix == NEW:
                yield path, "a start that broke off left it"
            elif path.suffix == TOUCHED and name not in running:
                yield path, "it was changed since it was unpacked, and nothing runs from it any more"
            elif not path.suffix and name not in running | kept and _used_at(path) < since:
                yield path, "nothing that is kept is made of it, and nothing was started from it lately"

    def _put_away(self, paths: list[Path]) -> list[Path]:
        """Take names away; what is left to be deleted."""
        if paths:
            place = Path(tempfile.mkdtemp(dir=self._folder, prefix="gone-"))
            for path in paths:
                if not path.suffix:
                    seal_file(path).unlink(missing_ok=True)
                os.rename(path, place / path.name)
        for seal in self._folder.glob("*.seal*"):
            if not (self._folder / seal.name.partition(".")[0]).exists():
                seal.unlink(missing_ok=True)
        return list(self._folder.glob("gone-*"))

    def _roots(self) -> Iterator[Path]:
        return (path for path in self._folder.iterdir() if _NAME.fullmatch(path.name))

    def _running(self) -> frozenset[str]:
        """Names of images that a program which runs, or is about to, was started from."""
        found: set[str] = set()
        for top in self._tops:
            for place in top.iterdir() if top.is_dir() else ():
                # A server starts again by itself; a job only goes on.
                if top == self._tops[1] or _may_run(place):
                    for text in _texts(_load(place / "launch.json")):
                        found.update(_NAMED.findall(text))
        return frozenset(found)

    def _of(self, used: Collection[str]) -> frozenset[str]:
        """Names of images, and of those that an index lists."""
        found = {name_of(digest) for digest in used}
        for digest in used:
            path = self._layout.place(digest)
            if path.is_file() and path.stat().st_size <= LARGEST_MANIFEST_BYTES:
                listed = _load(path).get("manifests")
                for item in listed if isinstance(listed, list) else ():
                    found.add(name_of(str(item.get("digest")) if isinstance(item, dict) else ""))
        return frozenset(found)


def _may_run(place: Path) -> bool:
    """Whether a job runs or was prepared to; where it cannot be told, it does."""
    if (place / "exit.json").exists():
        return False
    processes = [found for name in ("supervisor.json", "program.json") if (found := _load(place / name))]
    return not processes or any(_is_alive(process) for process in processes)


def _is_alive(process: dict[str, Any]) -> bool:
    try:
        return bool(process["born"]) and born(int(process["pid"])) == process["born"]
    except (ValueError, KeyError, IndexError, TypeError):
        return False


def _now(folder: Path) -> float:
    """This instant, as the disk tells it that notes when things are used."""
    os.utime(folder / ".lock")
    return (folder / ".lock").stat().st_mtime


def _used_at(root: Path) -> float:
    """When something was last started from an image; one that nobody sealed broke off, long ago or not."""
    try:
        return seal_file(root).stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _bytes(path: Path) -> int:
    """What a folder takes; what lies there twice by one name each counts once."""
    seen, total = set(), 0
    for folder, _, names in os.walk(path):
        for name in names:
            found = os.lstat(os.path.join(folder, name))
            if found.st_ino not in seen:
                seen.add(found.st_ino)
                total += found.st_size
    return total


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def _load(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
