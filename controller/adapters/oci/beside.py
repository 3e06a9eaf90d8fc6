"""A store that reads another one's blobs as its own and writes nothing to it: for what is made once, to be looked at."""

from __future__ import annotations

from pathlib import Path
from typing import IO

from controller.adapters.oci.layout import Layout
from policies.terms.digest import Digest


class Beside(Layout):
    """A folder of its own, with another store behind it.

    Args:
        root: Where what is new goes; may be deleted.
        other: What is there already.
    """

    def __init__(self, root: Path, other: Layout) -> None:
        super().__init__(root)
        self._other = other

    def place(self, digest: str) -> Path:
        """Where a blob lies: here, else in the other folder where it has it."""
        here, there = super().place(digest), self._other.place(digest)
        return there if there.exists() and not here.exists() else here

    def path(self, digest: str) -> Path:
        """A blob's file, which the other store may have to fetch."""
        place = self.place(digest)
        return place if place.exists() or not self._other.has(digest) else self._other.path(digest)

    def note(self, digest: str, *, elsewhere: bool = False) -> bool:
        """Nobody sweeps here; of the other store's blobs no use is noted, so that a look leaves no trace."""
        return elsewhere or self.place(digest).exists()

    def has(self, digest: str) -> bool:
        """Whether a blob is to be had."""
        return self.is_here(digest) or self._other.has(digest)

    def adopt(self, file: IO[bytes], digest: Digest) -> None:
        """Take a file in, unless the other store has the same: it keeps its own."""
        if not self._other.place(digest).exists():
            super().adopt(file, digest)
