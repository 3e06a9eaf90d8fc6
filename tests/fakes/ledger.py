"""A ledger whose write-ahead log is the world's; its branch is on whatever repository it is given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set

from policies.errors import ConflictError, RefusedError
from policies.ledger import decode, encode, entry_of
from policies.segments import Newest, in_order, spread
from policies.terms.record import Entry, Statement
from reconcilers.ports import Clock, Keys, Repository
from tests.fakes.world import Disk, World

BRANCH = "myelin/ledger"
TRIES = 5


class FakeLedger:
    """Implements `reconcilers.ports.Ledger`."""

    def __init__(self, world: World, repository: Repository, keys: Keys, clock: Clock, *, folder: str = "ledger") -> None:
        self._repository, self._keys, self._clock = repository, keys, clock
        self._disk = world.outside.disks.setdefault(folder, Disk())
        # What is remembered is what was said; only who starts again sees it as it was written.
        self._pushed = [decode(line) for line in self._disk.pushed]
        self._pending = [decode(line) for line in self._disk.pending]
        if not self._pushed:
            self._catch_up()

    def entries(self) -> tuple[Entry, ...]:
        return (*self._pushed, *self._pending)

    def since(self, number: int) -> Iterator[Entry]:
        return iter([entry for entry in self.entries() if entry.number > number])

    def holds(self, number: int, digest: str) -> bool:
        found = {entry.number: str(entry.digest) for entry in self.entries()}
        return {0: "", **found}.get(number) == digest

    def knows(self, keys: Sequence[str]) -> Set[str]:
        return {entry.statement.key for entry in self.entries()}.intersection(keys)

    def record(self, statements: Sequence[Statement]) -> tuple[Entry, ...]:
        known = {entry.statement.key for entry in self.entries()}
        new: list[Entry] = []
        for statement in statements:
            if statement.key not in known:
                new.append(self._chain(statement, [*self.entries(), *new]))
                known.add(statement.key)
        self._pending += new
        self._disk.pending += map(encode, new)
        return tuple(new)

    def pending(self) -> int:
        return len(self._pending)

    def push(self) -> int:
        if not self._pending:
            return 0
        for _ in range(TRIES):
            head = self._catch_up()
            if not self._pending:
                return 0
            try:
                self._push_once(head)
            except ConflictError:
                continue
            count = len(self._pending)
            self._pushed += self._pending
            self._disk.pushed += self._disk.pending
            self._pending, self._disk.pending = [], []
            return count
        raise ConflictError(f"branch {BRANCH}: expected our push to win once in {TRIES}, it never did")

    def _push_once(self, head: str) -> None:
        newest, before = None, {}
        if head:
            _, segments = in_order(item.path for item in self._repository.files(head, "ledger"))
            before = dict(self._repository.read_many(head, segments[-1:]))
            newest = next(
                (Newest(path=name, entries=text.count(b"\n"), size_bytes=len(text)) for name, text in before.items()), None
            )
        added, _ = spread(self._pending, newest)
        changes = {path: before.get(path, b"") + text for path, text in added.items()}
        text = f"ledger: {len(self._pending)} entries\n"
        self._repository.push(branch=BRANCH, parent=head, changes=dict(changes), message=text, at=self._clock.now())

    def _catch_up(self) -> str:
        """Read what the branch has beyond what we know; what we have beyond it is chained anew behind that."""
        head = self._repository.fetch(BRANCH)
        shards, segments = in_order(item.path for item in self._repository.files(head, "ledger")) if head else ([], [])
        paths = [*shards, *segments]
        texts = self._repository.read_many(head, paths) if head else {}
        there = [decode(line) for path in paths for line in texts[path].splitlines()]
        if there[: len(self._pushed)] != self._pushed:
            text = f"branch {BRANCH}: expected the {len(self._pushed)} entries that we pushed, they were rewritten"
            raise RefusedError(text, reason="LedgerRewritten")
        if len(there) > len(self._pushed):
            seen = {entry.statement.key for entry in there}
            left = [entry.statement for entry in self._pending if entry.statement.key not in seen]
            pending: list[Entry] = []
            for statement in left:
                pending.append(self._chain(statement, [*there, *pending]))
            new = there[len(self._pushed) :]
            self._pushed, self._pending = [*self._pushed, *new], pending
            self._disk.pushed += map(encode, new)
            self._disk.pending = list(map(encode, pending))
        return head

    def _chain(self, statement: Statement, before: Sequence[Entry]) -> Entry:
        last = before[-1] if before else None
        return entry_of(
            statement,
            number=last.number + 1 if last else 1,
            at=self._clock.now(),
            previous=last.digest if last else None,
            sign=self._keys.sign,
        )
