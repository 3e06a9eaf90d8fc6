"""The ledger as a commit of its branch has it, read segment by segment."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from heapq import merge

from policies.ledger import Line, read_line
from policies.segments import FOLDER, in_order
from reconcilers.ports import Repository

BRANCH = "myelin/ledger"
AT_ONCE = 64
"""Segments that are read at once: some megabytes."""


def lines_of(repository: Repository, head: str) -> Iterator[Line]:
    """All lines of the ledger in order, without holding more than some segments.

    Raises:
        DesiredStateError: A line is no entry.
    """
    for path, lines in raw_lines(repository, head, [item.path for item in repository.files(head, FOLDER)]):
        yield from (read_line(raw, f"{path}:{place}") for place, raw in lines)


def raw_lines(repository: Repository, head: str, paths: Iterable[str]) -> Iterator[tuple[str, Iterable[tuple[int, bytes]]]]:
    """Lines of some files with their places, from 1, file by file in the ledger's order.

    Entries of the first form's files may interleave, where a clock was set back over a month's border; only where they
    do, pieces of a file come one line at a time.
    """
    shards, segments = in_order(paths)
    if len(shards) > 1:
        yield from ((path, [(place, raw)]) for _, path, place, raw in merge(*(_shard(repository, head, item) for item in shards)))
    for start in range(0, len(rest := segments if len(shards) > 1 else [*shards, *segments]), AT_ONCE):
        some = rest[start : start + AT_ONCE]
        texts = repository.read_many(head, some)
        yield from ((path, split(texts[path])) for path in some if path in texts)


def split(text: bytes) -> Iterator[tuple[int, bytes]]:
    """Lines that are not empty, with their places from 1."""
    return ((place, raw) for place, raw in enumerate(text.split(b"\n"), start=1) if raw)


def _shard(repository: Repository, head: str, path: str) -> Sequence[tuple[int, str, int, bytes]]:
    """Lines of a file with what they are merged by: the highest number up to there, so that disorder within a file stays."""
    found, highest = [], 0
    for place, raw in split(repository.read(head, path)):
        highest = max(highest, read_line(raw, f"{path}:{place}").number)
        found.append((highest, path, place, raw))
    return found
