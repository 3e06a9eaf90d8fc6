"""The folders of a job: laid out before its program runs, and looked through after it."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from typing import NamedTuple

from myelin.job.given import Given, JobError, disk_error

FOLDERS = ("data", "model", "report", "earlier")


class Entry(NamedTuple):
    """A file or folder of the result."""

    name: str
    size: int
    data: bytes = b""
    """Its content, where it lies in no file."""
    path: str = ""
    is_folder: bool = False
    is_executable: bool = False


def lay_out(given: Given, earlier: Collection[str]) -> None:
    """Make the program's folders, and copy its inputs there.

    Raises:
        JobError: The disk is full, there is an odd file, or the work folder was worked in before.
    """
    try:
        for name in FOLDERS:
            place = os.path.join(given.work, name)
            os.makedirs(place, exist_ok=True)
            if os.listdir(place):
                raise JobError(f"{place}: expected an empty folder; a job runs once")
        for task in earlier:
            os.makedirs(os.path.join(given.work, "earlier", task), exist_ok=True)
        for name in ("data", "model", "earlier"):
            if os.path.isdir(source := os.path.join(given.inputs, name)):
                copy_files(source, os.path.join(given.work, name))
        event = os.path.join(given.work, "report", "event.json")
        if given.event is not None:
            with open(event, "w", encoding="utf-8") as file:
                file.write(given.event)
        elif os.path.isfile(source := os.path.join(given.inputs, "event.json")):
            copy_file(source, event)
    except OSError as error:
        raise disk_error(error) from error


def copy_files(source: str, target: str) -> None:
    """Copy all files below a folder; copies may be written to.

    Raises:
        JobError: There is something else than files and folders.
    """
    left = [(source, target)]
    while left:
        source, target = left.pop()
        os.makedirs(target, exist_ok=True)
        with os.scandir(source) as found:
            for entry in found:
                place = os.path.join(target, entry.name)
                if entry.is_dir(follow_symlinks=False):
                    left.append((entry.path, place))
                elif entry.is_file(follow_symlinks=False):
                    copy_file(entry.path, place)
                else:
                    raise JobError(f"{entry.path}: expected a plain file among the inputs")


def copy_file(source: str, target: str) -> None:
    """Copy a file with its mode; whoever owns the copy may write to it."""
    import shutil  # only where there is something to copy: it takes a moment to load

    shutil.copyfile(source, target)
    os.chmod(target, stat.S_IMODE(os.stat(source).st_mode) & 0o777 | 0o600)


def scan(given: Given) -> list[Entry]:
    """What is in the folders that are kept.

    Raises:
        JobError: A link that leaves its folder, something else than files and folders, or a name that is not UTF-8.
    """
    found: list[Entry] = []
    try:
        for kept in given.keeps:
            top = os.path.join(given.work, kept)
            if os.path.islink(top) or (os.path.exists(top) and not os.path.isdir(top)):
                raise JobError(f"{kept}: expected the folder that was there at the start")
            left = [kept] if os.path.isdir(top) else []
            while left:
                folder = left.pop()
                found.append(Entry(folder, 0, is_folder=True))
                with os.scandir(os.path.join(given.work, folder)) as entries:
                    for entry in entries:
                        name = _utf8(f"{folder}/{entry.name}")
                        if entry.is_dir(follow_symlinks=False):
                            left.append(name)
                        else:
                            found.append(_file(name, entry.path, top))
    except OSError as error:
        raise disk_error(error) from error
    return found


def _file(name: str, path: str, top: str) -> Entry:
    """A file, or what a link that stays in its folder leads to."""
    real = os.path.realpath(path)
    is_inside = real.startswith(os.path.realpath(top) + os.sep)
    if not is_inside or not os.path.isfile(real):
        raise JobError(f"{name}: expected a plain file inside of the folder that is kept")
    seen = os.stat(real)
    return Entry(name, seen.st_size, path=real, is_executable=bool(seen.st_mode & 0o100))


def _utf8(name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise JobError(f"{name!r}: expected a file name in UTF-8") from error
    return name
