"""Packs a mirror when it has many loose objects: a ledger's segments are alike, so that of 50 bytes one is left.

No object is lost by it: what is packed was written whole before its loose form goes.
"""

from __future__ import annotations

from pathlib import Path

from controller.adapters.git.program import GitFailed, Program

MOST_LOOSE = 3000
"""About 600 pushes of the ledger, 20 MB; packing them takes about half a second."""


def is_due(mirror: Path) -> bool:
    """Whether a mirror has many loose objects, by one of the 256 folders that they are spread over."""
    try:
        return sum(1 for _ in (mirror / "objects/17").iterdir()) * 256 > MOST_LOOSE
    except OSError:
        return False


def pack(program: Program, mirror: Path) -> None:
    """Pack loose objects; packs that are small beside the others become one, so that their number stays small."""
    # Of objects that a server promised, Git keeps packs apart; merged with others they would be missing ones.
    is_partial = any((mirror / "objects/pack").glob("*.promisor"))
    for how in ((),) if is_partial else (("--geometric=2",), ()):
        try:
            program.run("repack", "-d", "-l", "-q", *how)
        except GitFailed:
            continue  # a Git that knows no such packing, or a full disk: it is tried again after the next push
        return
