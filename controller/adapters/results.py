"""What a job brings back, as one tar file, and the address that it brings it to.

The tar comes from a program that nobody watched, so it is read by a reader of its own that takes only what
`runtime/myelin/job/` writes: it never holds a file in memory, makes no link, and writes nothing outside of its folder.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import json
import math
import os
import re
import shutil
import tarfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from policies.canonical import canonical
from policies.errors import RefusedError, SilentError

LARGEST_LOG_BYTES = 1 << 20
LARGEST_REPORT_BYTES = 16 << 20
LARGEST_REPORT_LINES = 100_000
"""Of a longer report the end counts, where the result is."""
LARGEST_ENTRIES = 100_000
LARGEST_NAME_BYTES = 1024
LARGEST_EXIT_BYTES = 65536
REPORT, LOG, EXIT = "report.jsonl", "output.log", "exit.json"
_BLOCK = 1 << 20
_RECORD = tarfile.BLOCKSIZE
_IGNORED = (b"mtime", b"atime", b"ctime", b"uid", b"gid", b"uname", b"gname")
_JOB = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a job came to."""

    code: int
    """Its program's exit code; -n when signal n killed it, 127 when it could not be started, 70 when the job itself failed."""
    report: tuple[Mapping[str, Any], ...]
    log: str
    """The end of what it printed."""
    folders: Mapping[str, Path]
    """What was asked to be kept, by name; empty unless the code is 0."""
    message: str = ""
    """Why, where it was not the program that failed."""


def is_job(name: str) -> bool:
    """Whether a job may have this name."""
    return _JOB.fullmatch(name) is not None


def programs_path(programs: str) -> str:
    """Path of what programs are told, before `/trials`, `/metrics` and the rest; it says nothing of the secret itself.

    Args:
        programs: The project's programs secret. Programs never learn it: who knows it can send any job's result.
    """
    # No job is called `/programs`, so this is no job's secret.
    return f"/programs/{_derived(programs, '/programs')}"


def job_path(programs: str, job: str) -> str:
    """Path that a job sends its result to; it is of no use for another job.

    Args:
        programs: The project's programs secret.
        job: The job's name.
    """
    return f"{programs_path(programs)}/jobs/{job}.{job_secret(programs, job)}/result"


def job_secret(programs: str, job: str) -> str:
    """What a job proves itself with."""
    return _derived(programs, job)


def unpack(tar: Path, into: Path, *, keeps: Collection[str]) -> Result:
    """Read what a job brought; each folder that is kept becomes one of that name below `into`.

    A kept folder that is missing from a job that succeeded becomes an empty one. Lines of the report that are torn or no
    objects are passed over.

    Args:
        tar: What came in.
        into: A folder that has no entries of these names yet.
        keeps: Folders that the job was asked for, of `model` and `data`.

    Raises:
        RefusedError: It is not what a job writes; nothing of it stays.
        SilentError: The disk is full.
    """
    try:
        into.mkdir(parents=True, exist_ok=True)
        with tar.open("rb") as file:
            return _read(file, tar.stat().st_size, into, keeps)
    except OSError as error:
        _drop(into, keeps)
        if error.errno in (errno.ENAMETOOLONG, errno.EINVAL):
            raise RefusedError(
                f"result: expected file names that this disk takes: {error.strerror}", reason="OddResult"
            ) from error
        reason = "DiskFull" if error.errno == errno.ENOSPC else "Disk"
        raise SilentError(f"{into}: {error.strerror or error}", reason=reason) from error
    except BaseException:
        _drop(into, keeps)
        raise


def report_of(text: bytes) -> tuple[Mapping[str, Any], ...]:
    """The last lines that a program reported; one that is torn, no object, or more than JSON can carry is passed over.

    Numbers that are not finite, which `json.dumps` writes too, become text.
    """
    found = []
    for line in text.rsplit(b"\n", LARGEST_REPORT_LINES)[-LARGEST_REPORT_LINES:]:
        try:
            value = json.loads(line, parse_float=_number, parse_constant=_number, parse_int=_whole)
            canonical(value)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            found.append(value)
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    name: str
    size: int
    is_folder: bool
    is_executable: bool


def _read(file: IO[bytes], size: int, into: Path, keeps: Collection[str]) -> Result:
    kinds: dict[str, bool] = {}
    texts: dict[str, bytes] = {}
    for entry in _entries(file, size):
        _check(entry, kinds, keeps)
        kinds[entry.name] = entry.is_folder
        if entry.name in (REPORT, LOG, EXIT):
            texts[entry.name] = _text(file, entry)
        elif entry.is_folder:
            (into / entry.name).mkdir(parents=True, exist_ok=True)
        else:
            (into / entry.name).parent.mkdir(parents=True, exist_ok=True)
            _file(file, entry, into / entry.name)
    code, message = _exit(texts.get(EXIT))
    if code and (found := sorted({name.split("/")[0] for name in kinds} & set(keeps))):
        raise _odd(f"expected no folders of a job that ended with {code}, got {', '.join(found)}")
    folders = {name: into / name for name in sorted(keeps)} if code == 0 else {}
    for folder in folders.values():
        folder.mkdir(exist_ok=True)
    log = texts.get(LOG, b"").decode(errors="replace")
    return Result(code=code, report=report_of(texts.get(REPORT, b"")), log=log, folders=folders, message=message)


def _entries(file: IO[bytes], size: int) -> Iterator[_Entry]:
    """Headers of a tar file, each with the file standing at its content; the next one is found wherever it stands then."""
    place, name, wide, count = 0, "", -1, 0
    while True:
        file.seek(place)
        block = file.read(_RECORD)
        if len(block) == _RECORD and not any(block):
            rest = file.read(tarfile.RECORDSIZE)
            if name or wide >= 0 or len(rest) < _RECORD or any(rest) or size > place + tarfile.RECORDSIZE:
                raise _odd("expected a tar file that ends after its last entry")
            return
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        except (tarfile.TarError, ValueError) as error:
            raise _odd("expected a whole tar file with names in UTF-8") from error
        count += 1
        length = wide if wide >= 0 and header.type == tarfile.REGTYPE else header.size
        start = place + _RECORD
        if not 0 <= length <= size - start or count > 2 * LARGEST_ENTRIES:
            raise _odd(f"expected a whole tar file of at most {LARGEST_ENTRIES} entries")
        place = start + length + -length % _RECORD
        if header.type == tarfile.XHDTYPE and not name and wide < 0:
            name, wide = _extended(file, length)
            continue
        if header.type not in (tarfile.REGTYPE, tarfile.DIRTYPE) or (header.type == tarfile.DIRTYPE and length):
            raise _odd(f"{header.name[:200]!r}: expected a plain file or folder")
        yield _Entry(
            name=name.rstrip("/") if header.type == tarfile.DIRTYPE and name else name or header.name,
            size=length,
            is_folder=header.type == tarfile.DIRTYPE,
            is_executable=bool(header.mode & 0o100),
        )
        name, wide = "", -1


def _extended(file: IO[bytes], length: int) -> tuple[str, int]:
    """Name and size of a header that has no room for them; empty and -1 where it has."""
    name, size = "", -1
    if length > 2 * LARGEST_NAME_BYTES:
        raise _odd(f"expected names of at most {LARGEST_NAME_BYTES} bytes")
    text = file.read(length)
    try:
        while text:
            digits = text[: text.index(b" ")]
            end = int(digits)
            if not digits.isdigit() or not len(digits) < end <= len(text):
                raise ValueError(digits)
            key, _, value = text[len(digits) + 1 : end].removesuffix(b"\n").partition(b"=")
            text = text[end:]
            if key == b"path":
                name = value.decode()
            elif key == b"size" and value.isdigit():
                size = int(value)
            elif key not in _IGNORED:
                raise ValueError(key)
    except ValueError as error:
        raise _odd("expected extended headers that say where a file goes and how long it is") from error
    return name, size


def _check(entry: _Entry, kinds: dict[str, bool], keeps: Collection[str]) -> None:
    name, parts = entry.name, entry.name.split("/")
    if (name in kinds and not (entry.is_folder and kinds[name])) or len(kinds) >= LARGEST_ENTRIES:
        raise _odd(f"{name[:200]!r}: expected at most {LARGEST_ENTRIES} entries, each once")
    if name in (REPORT, LOG, EXIT) and not entry.is_folder:
        return
    if parts[0] not in keeps or (len(parts) == 1 and not entry.is_folder):
        raise _odd(f"{name[:200]!r}: expected {', '.join((REPORT, LOG, EXIT, *sorted(f'{keep}/' for keep in keeps)))}")
    if len(name.encode()) > LARGEST_NAME_BYTES or "\0" in name or any(part in ("", ".", "..") for part in parts):
        raise _odd(f"{name[:200]!r}: expected a name inside of its folder")
    for length in range(1, len(parts)):
        if not kinds.setdefault("/".join(parts[:length]), True):
            raise _odd(f"{name[:200]!r}: expected a folder around it, got a file")


def _text(file: IO[bytes], entry: _Entry) -> bytes:
    """The end of a text, as much of it as counts."""
    most = {REPORT: LARGEST_REPORT_BYTES, LOG: LARGEST_LOG_BYTES, EXIT: LARGEST_EXIT_BYTES}[entry.name]
    if entry.name == EXIT and entry.size > most:
        raise _odd(f"{EXIT}: expected at most {most} bytes, got {entry.size}")
    file.seek(max(entry.size - most, 0), os.SEEK_CUR)
    return file.read(min(entry.size, most))


def _file(file: IO[bytes], entry: _Entry, target: Path) -> None:
    handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o755 if entry.is_executable else 0o644)
    with os.fdopen(handle, "wb") as out:
        left = entry.size
        while left:
            block = file.read(min(_BLOCK, left))
            if not block:
                raise _odd("expected a whole tar file")
            out.write(block)
            left -= len(block)


def _exit(text: bytes | None) -> tuple[int, str]:
    if text is None:
        raise _odd(f"expected {EXIT}, there is none")
    try:
        value = json.loads(text)
        code, message = value["code"], value.get("message", "")
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise _odd(f"{EXIT}: expected an object with `code`") from error
    if type(code) is not int or not -64 <= code <= 255 or not isinstance(message, str):
        raise _odd(f"{EXIT}: expected a `code` from -64 to 255 and a `message`")
    return code, " ".join(message.split())


def _number(text: str) -> float | str:
    found = float(text)
    return found if math.isfinite(found) else str(found)


def _whole(text: str) -> int | float | str:
    # Longer ones are no exact numbers in JSON, and a very long one would take Python long to read.
    return int(text) if len(text) < 16 else _number(text)


def _derived(secret: str, name: str) -> str:
    return hmac.new(secret.encode(), name.encode(), hashlib.sha256).hexdigest()[:32]


def _drop(into: Path, keeps: Collection[str]) -> None:
    for name in keeps:
        shutil.rmtree(into / name, ignore_errors=True)


def _odd(message: str) -> RefusedError:
    return RefusedError(f"result: {message}", reason="OddResult")
