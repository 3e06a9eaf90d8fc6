"""What a job brings home, as one tar file that is never written down: that would take its room twice."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tarfile
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from myelin.job.folders import Entry, scan
from myelin.job.given import FAILED, LONGEST_WORDS, Ended, Given, JobError, disk_error
from myelin.job.program import Printed

EPOCH = 315619200
"""1980-01-02 UTC, as in image layers."""
_BLOCK = 1 << 20


class Parcel(NamedTuple):
    """A result, ready to be sent."""

    code: int
    entries: Sequence[Entry]
    size: int
    digest: str


def packed(given: Given, ended: Ended, printed: Printed) -> Parcel:
    """What this job brings. Where a folder cannot be kept, the job failed.

    Raises:
        JobError: Not even that can be read which every job brings.
    """
    try:
        kept = scan(given) if ended.code == 0 else []
        if ended.message:
            printed.say(ended.message)
        return pack(ended.code, [*kept, *papers(given, ended, printed.end())])
    except JobError as error:
        ended = Ended(FAILED, str(error))
        printed.say(ended.message)
        return pack(ended.code, papers(given, ended, printed.end()))


def papers(given: Given, ended: Ended, log: bytes) -> list[Entry]:
    """What every job brings: how it ended, the end of what it printed, and what it reported."""
    told: dict[str, Any] = {"code": ended.code}
    if ended.message:
        told["message"] = ended.message[:LONGEST_WORDS]
    code = json.dumps(told, sort_keys=True).encode()
    found = [Entry("exit.json", len(code), code), Entry("output.log", len(log), log)]
    report = os.path.join(given.work, "report", "report.jsonl")
    try:
        seen = os.lstat(report)
    except OSError:
        return found  # it reported nothing
    if stat.S_ISREG(seen.st_mode):
        found.append(Entry("report.jsonl", seen.st_size, path=report))
    return found


def pack(code: int, entries: Sequence[Entry]) -> Parcel:
    """Put entries in order, and see what their tar file comes to.

    Raises:
        JobError: A file cannot be read.
    """
    entries = sorted(entries, key=lambda entry: entry.name.encode())
    sha, size = hashlib.sha256(), 0
    try:
        for block in stream(entries):
            sha.update(block)
            size += len(block)
    except OSError as error:
        raise disk_error(error) from error
    return Parcel(code, entries, size, f"sha256:{sha.hexdigest()}")


def stream(entries: Sequence[Entry]) -> Iterator[bytes]:
    """A tar file, block by block; equal entries give equal bytes.

    Raises:
        OSError: A file cannot be read, or is shorter than it was.
    """
    for entry in entries:
        info = tarfile.TarInfo(entry.name)
        info.type = tarfile.DIRTYPE if entry.is_folder else tarfile.REGTYPE
        info.size, info.mtime = entry.size, EPOCH
        info.mode = 0o755 if entry.is_folder or entry.is_executable else 0o644
        yield info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")
        if entry.path:
            yield from _content(entry)
        else:
            yield entry.data
        yield bytes(-entry.size % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _content(entry: Entry) -> Iterator[bytes]:
    left = entry.size
    with open(entry.path, "rb", buffering=0) as file:
        while left:
            block = file.read(min(_BLOCK, left))
            if not block:
                raise OSError(0, "got shorter while it was read", entry.path)
            yield block
            left -= len(block)
