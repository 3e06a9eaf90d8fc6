"""The files of the ledger's branch: which entry lies where, and in which order they are read.

`ledger/<YYYY-MM>/<number of its first entry>.jsonl` holds one entry a line. Only the newest of these segments grows, and
only up to a bound, so that a commit changes one small file and a few small folders however long the ledger is. Myelin's
first form, `ledger/<YYYY-MM>.jsonl`, is read and never written.

Law: the lines of all segments in order are the lines that were written, each once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from policies.ledger import encode
from policies.terms.record import Entry

FOLDER = "ledger"
MOST_ENTRIES = 256
MOST_BYTES = 128 * 1024
"""A push sends half of that on average; measured in docs/decisions/0018-ledger-in-segments.md."""
_SEGMENT = re.compile(r"ledger/\d{4}-\d{2}/(\d{12,})\.jsonl")
_SHARD = re.compile(r"ledger/\d{4}-\d{2}\.jsonl")


@dataclass(frozen=True, slots=True, kw_only=True)
class Newest:
    """The segment that still grows."""

    path: str
    entries: int
    size_bytes: int


def segment_path(at: datetime, first: int) -> str:
    """The file of a segment.

    Args:
        at: Of its first entry; aware.
        first: Number of its first entry.
    """
    return f"{FOLDER}/{at.astimezone(UTC):%Y-%m}/{first:012}.jsonl"


def is_ledger_file(path: str) -> bool:
    """Whether a file of the branch holds entries."""
    return bool(_SEGMENT.fullmatch(path) or _SHARD.fullmatch(path))


def is_segment(path: str) -> bool:
    """Whether a file may grow: the first form never does."""
    return _SEGMENT.fullmatch(path) is not None


def in_order(paths: Iterable[str]) -> tuple[list[str], list[str]]:
    """Files of the ledger as they are read: those of the first form, whose entries may interleave, then the segments."""
    found = [path for path in paths if is_ledger_file(path)]
    segments = [(int(match[1]), path) for path in found if (match := _SEGMENT.fullmatch(path))]
    return sorted(path for path in found if _SHARD.fullmatch(path)), [path for _, path in sorted(segments)]


def spread(entries: Sequence[Entry], newest: Newest | None) -> tuple[Mapping[str, bytes], Newest | None]:
    """Where entries are appended.

    Args:
        entries: In order; they follow what is in the ledger.
        newest: The segment that was written last; None for a ledger that has none.

    Returns:
        For each file what is added to it, and the segment that grows from here.
    """
    added: dict[str, bytes] = {}
    for entry in entries:
        line, month = encode(entry), f"{entry.at.astimezone(UTC):%Y-%m}"
        if newest is None or newest.path.split("/")[1] != month or not _has_room(newest, len(line)):
            newest = Newest(path=segment_path(entry.at, entry.number), entries=0, size_bytes=0)
        newest = Newest(path=newest.path, entries=newest.entries + 1, size_bytes=newest.size_bytes + len(line))
        added[newest.path] = added.get(newest.path, b"") + line
    return added, newest


def _has_room(segment: Newest, size_bytes: int) -> bool:
    return segment.entries < MOST_ENTRIES and segment.size_bytes + size_bytes <= MOST_BYTES
