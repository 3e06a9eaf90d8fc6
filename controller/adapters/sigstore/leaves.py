"""Where the leaves of the embedded transparency log lie: in memory, or as statements of the project's ledger.

A leaf counts once nothing can move it any more: whoever was given a proof of its place may show that for ever. In the ledger
that is when the branch has it, because what only waits in a write-ahead log may still be chained behind another controller's
entries, or be lost with its disk.

Law: who reads the leaves twice reads them in the same order; later on there are only more.
"""

from __future__ import annotations

import json
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from controller.adapters.sigstore.merkle import Tree, leaf_hash
from policies.canonical import canonical
from policies.errors import SilentError, TrustError
from policies.terms.digest import digest_of
from policies.terms.record import Entry, Statement
from reconcilers.ports import Ledger

KIND = "log"
"""Kind of a statement that is a leaf; folding the ledger passes it over."""
NOT_PUSHED = "LogNotPushed"
"""Reason where new leaves only wait for the ledger's next push."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """What the log has taken in."""

    body: bytes
    """Canonical JSON of an entry, as Rekor has it."""
    at_seconds: int
    """When, in seconds since 1970."""


class Leaves(Protocol):
    """Append-only leaves."""

    def append(self, leaves: Sequence[Leaf]) -> None:
        """Take leaves in, and return once they are there for good. One whose body is there already is passed over.

        Raises:
            OutsideError: Some may not be there yet; appending them again is right.
        """
        ...

    def since(self, place: int) -> Iterator[Leaf]:
        """Those from a place on, 0 for all, in the order that is theirs for good."""
        ...


class MemoryLeaves:
    """Leaves that are gone with the process: for tests, and for signing that need not be proven from elsewhere."""

    def __init__(self) -> None:
        self._leaves: list[Leaf] = []
        self._known: set[str] = set()

    def append(self, leaves: Sequence[Leaf]) -> None:
        """As `Leaves.append`."""
        for leaf in leaves:
            if (digest := digest_of(leaf.body)) not in self._known:
                self._known.add(digest)
                self._leaves.append(leaf)

    def since(self, place: int) -> Iterator[Leaf]:
        """As `Leaves.since`."""
        return iter(self._leaves[place:])


class LedgerLeaves:
    """Leaves as statements of a project's ledger.

    Like the ledger, it belongs to one thread at a time.

    Args:
        ledger: The project's.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._numbers = array("Q")
        """Ledger's numbers of the leaves, by place."""
        self._read, self._head = 0, ""
        """Number and digest of the last entry that was looked at."""
        self._is_away = False
        """Whether the branch could not be reached the last time."""

    def append(self, leaves: Sequence[Leaf]) -> None:
        """As `Leaves.append`: it pushes the ledger.

        While the branch cannot be reached nothing more is recorded: each try to sign may come with other bytes.
        """
        if self._is_away:
            self._push()
        self._ledger.record([statement_of(leaf) for leaf in leaves])
        self._push()
        if self._ledger.pending():
            text = (
                "transparency log: expected its new entries on the ledger's branch, they still wait to be pushed; looking again"
            )
            raise SilentError(text, reason=NOT_PUSHED)

    def _push(self) -> None:
        self._is_away = True
        try:
            self._ledger.push()
        except SilentError as error:
            text = "transparency log: expected the ledger's branch to take its entries, signing waits for it"
            raise SilentError(f"{text}: {error.message}", reason=error.reason) from error
        self._is_away = False

    def since(self, place: int) -> Iterator[Leaf]:
        """As `Leaves.since`.

        Raises:
            TrustError: The ledger is another one than before.
        """
        self._catch_up()
        if place < len(self._numbers):
            last = self._numbers[-1]
            for entry in self._ledger.since(self._numbers[place] - 1):
                if entry.number > last:
                    return
                if (leaf := leaf_of(entry)) is not None:
                    yield leaf

    def _catch_up(self) -> None:
        if not self._ledger.holds(self._read, self._head):
            text = f"transparency log: expected entry {self._read} of the ledger to be the one that was read, it was rewritten"
            raise TrustError(f"{text}; run `myelin verify`", reason="LogRewritten")
        # The last ones, of which that many wait, are not there for good.
        waiting, held = self._ledger.pending(), deque[Entry]()
        for entry in self._ledger.since(self._read):
            held.append(entry)
            if len(held) > waiting:
                passed = held.popleft()
                self._read, self._head = passed.number, str(passed.digest)
                if leaf_of(passed) is not None:
                    self._numbers.append(passed.number)


def statement_of(leaf: Leaf) -> Statement:
    """A leaf as a statement of the ledger; it belongs to no axon."""
    body = {"entry": json.loads(leaf.body), "integratedTime": leaf.at_seconds}
    return Statement(kind=KIND, key=f"{KIND}/{digest_of(leaf.body)}", axon="", body=body)


def leaf_of(entry: Entry) -> Leaf | None:
    """The leaf that an entry of the ledger is; None where it is none."""
    said = entry.statement
    if said.kind != KIND:
        return None
    try:
        body, at_seconds = canonical(said.body["entry"]), int(said.body["integratedTime"])
    except (KeyError, TypeError, ValueError):
        return None
    return Leaf(body=body, at_seconds=at_seconds) if said.key == f"{KIND}/{digest_of(body)}" else None


def tree_of(entries: Iterable[Entry]) -> Tree:
    """The log's tree, from the ledger's entries alone, say those of a clone: with them, every root can be checked."""
    return Tree(leaf_hash(leaf.body) for entry in entries if (leaf := leaf_of(entry)) is not None)
