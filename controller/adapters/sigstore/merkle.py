"""The Merkle tree of a transparency log, as RFC 6962 and 9162 say: roots, and proofs that a leaf is in and nothing was changed.

Laws: a root depends on the leaves and their order alone; a proof verifies against the root of its size and against no other;
appending hashes as many nodes as it completes, never the whole tree. It knows nothing of what the leaves say.

It keeps the hash of every complete subtree, 64 bytes for each leaf: a million leaves take 64 MB.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

SIZE = 32
"""Bytes of a hash."""
EMPTY = hashlib.sha256(b"").digest()
"""The root of no leaves."""


def leaf_hash(body: bytes) -> bytes:
    """The hash of a leaf."""
    return hashlib.sha256(b"\0" + body).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of what two subtrees make."""
    return hashlib.sha256(b"\1" + left + right).digest()


class Tree:
    """A tree that grows at its right end.

    Args:
        leaves: Hashes of the leaves that it begins with.
    """

    def __init__(self, leaves: Iterable[bytes] = ()) -> None:
        self._levels: list[bytearray] = [bytearray()]
        """Level k: hashes of the complete subtrees of 2**k leaves, side by side."""
        for leaf in leaves:
            self.append(leaf)

    @property
    def size(self) -> int:
        """How many leaves it has."""
        return len(self._levels[0]) // SIZE

    def append(self, leaf: bytes) -> int:
        """Add the hash of a leaf, and return its place, from 0."""
        place = self.size
        level, at, node = 0, place, leaf
        while True:
            self._levels[level] += node
            if not at & 1:
                return place
            node = node_hash(self._node(level, at - 1), node)
            level, at = level + 1, at >> 1
            if level == len(self._levels):
                self._levels.append(bytearray())

    def find(self, leaf: bytes, since: int = 0) -> int | None:
        """The first place of a leaf's hash from a place on; None where it is not there. It looks at all: 14 ms for a million."""
        found = self._levels[0].find(leaf, since * SIZE)
        while found >= 0 and found % SIZE:
            found = self._levels[0].find(leaf, found + 1)
        return found // SIZE if found >= 0 else None

    def root(self, size: int | None = None) -> bytes:
        """The root that the tree has, or had when it was of that size.

        Raises:
            ValueError: It was never so large.
        """
        size = self._known(size)
        return self._hash(0, size) if size else EMPTY

    def inclusion(self, place: int, size: int | None = None) -> tuple[bytes, ...]:
        """The proof that a leaf is in the tree of a size: what its hash is combined with on the way to the root.

        Raises:
            ValueError: There is no such leaf in that tree.
        """
        size = self._known(size)
        if not 0 <= place < size:
            raise ValueError(f"expected a leaf below {size}, got {place}")
        path: list[bytes] = []
        start, end = 0, size
        while end - start > 1:
            middle = start + _largest_half(end - start)
            if place < middle:
                path.append(self._hash(middle, end))
                end = middle
            else:
                path.append(self._hash(start, middle))
                start = middle
        return tuple(reversed(path))

    def consistency(self, first: int, second: int | None = None) -> tuple[bytes, ...]:
        """The proof that the tree of a size begins with all leaves of the one of another, smaller one.

        Raises:
            ValueError: The sizes are none that it had, or the first is larger.
        """
        second = self._known(second)
        if not 0 <= first <= second:
            raise ValueError(f"expected a size up to {second}, got {first}")
        if first in (0, second):
            return ()
        path: list[bytes] = []
        start, end, is_whole = 0, second, True
        while first != end:
            middle = start + _largest_half(end - start)
            if first <= middle:
                path.append(self._hash(middle, end))
                end = middle
            else:
                path.append(self._hash(start, middle))
                start, is_whole = middle, False
        if not is_whole:
            path.append(self._hash(start, end))
        return tuple(reversed(path))

    def _known(self, size: int | None) -> int:
        if size is None:
            return self.size
        if not 0 <= size <= self.size:
            raise ValueError(f"expected a size up to {self.size}, got {size}")
        return size

    def _node(self, level: int, at: int) -> bytes:
        return bytes(self._levels[level][at * SIZE : (at + 1) * SIZE])

    def _hash(self, start: int, end: int) -> bytes:
        """The hash over some leaves, of which `start` is a multiple of the power of two that their number needs."""
        peaks: list[bytes] = []
        while start < end:
            level = (end - start).bit_length() - 1
            peaks.append(self._node(level, start >> level))
            start += 1 << level
        whole = peaks.pop()
        while peaks:
            whole = node_hash(peaks.pop(), whole)
        return whole


def is_included(leaf: bytes, *, place: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Whether a proof shows that a leaf's hash has that place in the tree of that size and root.

    Source:
        RFC 9162, 2.1.3.2.
    """
    if not 0 <= place < size:
        return False
    at, last, found = place, size - 1, leaf
    for sibling in proof:
        if last == 0:
            return False
        if at & 1 or at == last:
            found = node_hash(sibling, found)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            found = node_hash(found, sibling)
        at, last = at >> 1, last >> 1
    return last == 0 and found == root


def is_consistent(*, first: int, second: int, first_root: bytes, second_root: bytes, proof: Sequence[bytes]) -> bool:
    """Whether a proof shows that the second tree begins with all leaves of the first.

    Source:
        RFC 9162, 2.1.4.2.
    """
    if not 0 <= first <= second:
        return False
    if first == second:
        return not proof and first_root == second_root
    if first == 0:
        return not proof and first_root == EMPTY
    path = [first_root, *proof] if first & (first - 1) == 0 else list(proof)
    if not path:
        return False
    at, last = first - 1, second - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    old = new = path[0]
    for sibling in path[1:]:
        if last == 0:
            return False
        if at & 1 or at == last:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            new = node_hash(new, sibling)
        at, last = at >> 1, last >> 1
    return last == 0 and old == first_root and new == second_root


def _largest_half(count: int) -> int:
    """The largest power of two below a number above 1."""
    return 1 << ((count - 1).bit_length() - 1)
