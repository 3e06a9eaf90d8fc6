"""What each commit of a branch did to its files, and how large they were: by object ids, without reading contents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from controller.adapters.git.objects import Objects
from controller.adapters.git.program import Program

AT_ONCE = 500
"""Questions that are written before their answers are read: 20 KB, which is less than any pipe holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """What a commit did to one file."""

    path: str
    before: str
    """Git object id of its content in the first parent; empty when it was not there."""
    after: str
    """In the commit; empty when it is gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One commit of a branch."""

    commit: str
    parents: tuple[str, ...]
    edits: tuple[Edit, ...]


class Past:
    """The history of a mirror's branches.

    Args:
        program: Git, in the folder of the mirror.
        objects: Reads its objects.
    """

    def __init__(self, program: Program, objects: Objects) -> None:
        self._program, self._objects = program, objects

    def steps(self, tip: str, folder: str) -> Iterator[Step]:
        """Commits from a tip to its roots, newest first, with what they did below a folder."""
        args = ("--topo-order", "--raw", "--no-abbrev", "--no-renames", "--root", "--diff-merges=first-parent", "--full-history")
        log = self._program.start("log", *args, "--format=%H %P", tip, "--")
        try:
            head, edits = "", list[Edit]()
            while line := log.line().decode(errors="surrogateescape"):
                text = line.rstrip("\n")
                if text.startswith(":"):
                    names, _, path = text.partition("\t")
                    _, _, before, after, _ = names.split(" ")
                    if path.startswith(f"{folder}/"):
                        edits.append(Edit(path=path, before=before.strip("0") and before, after=after.strip("0") and after))
                elif text:
                    if head:
                        yield _step(head, edits)
                    head, edits = text, []
            if head:
                yield _step(head, edits)
        finally:
            log.end()

    def sizes(self, blobs: Sequence[str]) -> Mapping[str, int]:
        """Sizes in bytes of contents; one that is not here is left out."""
        process = self._program.start("cat-file", "--batch-check")
        found = {}
        try:
            for start in range(0, len(blobs), AT_ONCE):
                some = blobs[start : start + AT_ONCE]
                process.write("".join(f"{blob}\n" for blob in some).encode())
                for blob in some:
                    words = process.line().split()
                    if len(words) == 3 and words[2].isdigit():
                        found[blob] = int(words[2])
        finally:
            process.end()
        return found

    def content(self, blob: str) -> bytes:
        """A content by its id; empty when it is not here."""
        return (self._objects.content(blob) or b"") if blob else b""


def _step(head: str, edits: list[Edit]) -> Step:
    commit, *parents = head.split()
    return Step(commit=commit, parents=tuple(parents), edits=tuple(edits))
