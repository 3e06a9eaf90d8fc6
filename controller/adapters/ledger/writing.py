"""The one writer of a ledger: what is recorded waits in the write-ahead log, in order, until the branch has it.

If somebody else wrote to the branch meanwhile, what is left is chained anew behind that.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path

from controller.adapters.ledger.branch import BRANCH, raw_lines
from controller.adapters.ledger.copy import Copy, Known, Segment
from controller.adapters.ledger.disk import LOG, Lock, append, disk, read_log, replace
from policies.errors import ConflictError, RefusedError
from policies.ledger import Line, entry_of, line_of, read_line
from policies.segments import FOLDER, is_ledger_file, spread
from policies.terms.digest import Digest
from policies.terms.record import Entry, Statement
from reconcilers.ports import Clock, Keys, Repository

TRIES = 5


class GitLedger:
    """Implements `reconcilers.ports.Ledger`.

    Args:
        repository: Where the branch lives.
        folder: Folder of the write-ahead log; created when missing.
        keys: Signs each entry.
        clock: Tells when.
        branch: The ledger's branch.
        rest_seconds: Least time between two pushes, for a server far away: what comes meanwhile shares a commit.
        former: Public keys that signed entries before `keys` did.

    Raises:
        RefusedError: Another controller works on this folder, or the branch is no whole chain of this project's.
        OutsideError: The branch could not be read and nothing is known of it here.
    """

    def __init__(
        self,
        repository: Repository,
        folder: Path,
        keys: Keys,
        clock: Clock,
        *,
        branch: str = BRANCH,
        rest_seconds: float = 0.0,
        former: Sequence[str] = (),
    ) -> None:
        self._rest_seconds, self._rests_until = rest_seconds, 0.0
        self._repository, self._keys, self._clock, self._branch = repository, keys, clock, branch
        self._writers = (keys.public(), *former)
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = Lock(folder / "lock")
        self._log, self._copy = folder / LOG, Copy(folder)
        self._pending: list[Entry] = []
        try:
            self._known = self._copy.known()
            self._pending = self._left(read_log(self._log, mend=True))
            if not self._known.number:
                self._catch_up()
            # Where an earlier Myelin kept its copy.
            (folder / "pushed.jsonl").unlink(missing_ok=True)
        except BaseException:
            self._lock.close()
            raise

    def close(self) -> None:
        """Let another controller take over."""
        self._lock.close()

    def entries(self) -> tuple[Entry, ...]:
        """All entries, pushed and pending."""
        self._mend()
        pushed = self._copy.every(upto=self._known.number) if self._known.number else ()
        return (*pushed, *self._pending)

    def since(self, number: int) -> Iterator[Entry]:
        """The entries after that number that still say something, one at a time."""
        self._mend()
        pending = tuple(self._pending)
        if number < self._known.number:
            yield from self._copy.since(number, upto=self._known.number)
        yield from (entry for entry in pending if entry.number > number)

    def holds(self, number: int, digest: str) -> bool:
        """Whether the entry of that number is the one with that digest, still."""
        self._mend()
        if number == self._known.number:
            return digest == self._known.digest
        if number > self._known.number:
            place = number - self._known.number - 1
            return place < len(self._pending) and self._pending[place].digest == digest
        line = self._copy.line(number) if number else b""
        return read_line(line, f"entry {number}").digest == digest if line else not number and not digest

    def knows(self, keys: Sequence[str]) -> Set[str]:
        """Which of these keys are recorded."""
        self._mend()
        pending = {entry.statement.key for entry in self._pending}.intersection(keys)
        return pending | self._pushed([key for key in keys if key not in pending])

    def record(self, statements: Sequence[Statement]) -> tuple[Entry, ...]:
        """Append statements whose key is new; return once they are safe on disk."""
        seen = set(self.knows([statement.key for statement in statements]))
        new: list[Entry] = []
        for statement in statements:
            if statement.key not in seen:
                new.append(self._chain(statement, [*self._pending[-1:], *new[-1:]]))
                seen.add(statement.key)
        if new:
            with disk(self._log):
                append(self._log, new)
            self._pending += new
        return tuple(new)

    def pending(self) -> int:
        """How many entries are only in the write-ahead log."""
        return len(self._pending)

    def push(self) -> int:
        """Push what is pending as one commit; return how many entries."""
        if not self._pending or time.monotonic() < self._rests_until:
            return 0
        self._rests_until = time.monotonic() + self._rest_seconds
        self._mend()
        for _ in range(TRIES):
            self._catch_up()
            if not self._pending:
                return 0
            try:
                return self._push_once()
            except ConflictError:
                continue
        raise ConflictError(f"branch {self._branch}: expected our push to win once in {TRIES}, it never did")

    def _push_once(self) -> int:
        pushed, parent = self._pending, self._known.head
        added, _ = spread(pushed, self._copy.newest() if parent else None)
        before = self._repository.read_many(parent, list(added)) if parent else {}
        changes = {path: before.get(path, b"") + content for path, content in added.items()}
        head = self._repository.push(
            branch=self._branch,
            parent=parent,
            changes=dict(changes),
            message=f"ledger: {len(pushed)} entries, {pushed[0].number}-{pushed[-1].number}\n",
            at=self._clock.now(),
        )
        # Copy and log only save reading the branch again: what they lack is caught up with, what is twice is passed over.
        segments = {path: _segment(path, content) for path, content in changes.items()}
        self._known = self._copy.take(map(line_of, pushed), head=head, segments=segments, is_new=not self._known.number)
        self._pending = []
        with disk(self._log):
            replace(self._log, [])
        return len(pushed)

    def _catch_up(self) -> None:
        """Read what the branch has beyond what we know, and chain what is pending behind it."""
        head = self._repository.fetch(self._branch)
        if head == self._known.head:
            return
        if not head:
            raise self._rewritten()
        before = self._known.number
        self._known = self._take(head)
        if self._known.number > before:
            self._pending = self._left(self._pending)
            with disk(self._log):
                replace(self._log, self._pending)

    def _mend(self) -> None:
        """Read the branch again where the copy is lost: nothing that lies on this disk is needed, but what is pending."""
        if self._known.number and not self._copy.path.exists():
            self._known = Known()
            self._catch_up()

    def _take(self, head: str) -> Known:
        """Read the segments that changed; what is known of them must still be there."""
        files = {item.path: item.blob for item in self._repository.files(head, FOLDER) if is_ledger_file(item.path)}
        is_new = not self._known.number
        known: Mapping[str, Segment] = {} if is_new else self._copy.segments()
        touched = [path for path, item in known.items() if files.get(path) != item.blob]
        changed = [path for path, blob in files.items() if path not in known or known[path].blob != blob]
        self._check(head, changed, sum(known[path].entries for path in touched))
        read: dict[str, Segment | None] = {path: None for path in touched if path not in files}

        def fresh() -> Iterator[Line]:
            number, digest, newest = self._known.number, self._known.digest, None
            for path, line in self._lines(head, changed):
                read[path] = _grown(read.get(path), files[path], line)
                if line.number <= self._known.number:
                    continue
                if line.number != number + 1 or (line.previous or "") != digest:
                    text = f"{line.where}: expected entry {number + 1} of the chain, got {line.number}; run `myelin verify`"
                    raise RefusedError(text, reason="LedgerBroken")
                if line.digest != line.covered:
                    text = f"{line.where}: expected entry {line.number} as its digest says, it was changed; run `myelin verify`"
                    raise RefusedError(text, reason="LedgerBroken")
                number, digest, newest = line.number, line.digest, line
                yield line
            if newest is not None and not self._is_ours(newest):
                text = f"{newest.where}: expected entry {number} by this project's controller, somebody else signed it"
                text += f"; reset {self._branch} to where it was and let nobody else push to it, or, where that was a former key"
                text += " of the controller's, put its public half beside the new one as controller-NAME.pub"
                raise RefusedError(text, reason="LedgerForeign")

        with disk(self._copy.path):
            return self._copy.take(fresh(), head=head, segments=read, is_new=is_new)

    def _is_ours(self, line: Line) -> bool:
        """Whether a controller of this project signed an entry, and so all before it: none chains behind a stranger's."""
        return any(self._keys.is_signed(line.digest.encode(), line.signature, public) for public in self._writers)

    def _check(self, head: str, changed: Sequence[str], missing: int) -> None:
        """See that files that changed, or are gone, still have the lines that are known, in whatever files they lie now."""
        if not missing:
            return
        known = (line for _, line in self._lines(head, changed) if line.number <= self._known.number)
        for line, ours in self._copy.beside(known):
            if line.raw != ours:
                raise self._rewritten()
            missing -= 1
        if missing > 0:
            raise self._rewritten()

    def _lines(self, head: str, paths: Sequence[str]) -> Iterator[tuple[str, Line]]:
        for path, lines in raw_lines(self._repository, head, paths):
            yield from ((path, read_line(raw, f"{path}:{place}")) for place, raw in lines)

    def _rewritten(self) -> RefusedError:
        text = f"branch {self._branch}: expected the {self._known.number} entries that we pushed, they were rewritten"
        return RefusedError(text, reason="LedgerRewritten")

    def _left(self, logged: Sequence[Entry]) -> list[Entry]:
        """What of the write-ahead log is not pushed; chained anew where another writer's entries came in between."""
        seen = self._pushed([entry.statement.key for entry in logged])
        left: list[Entry] = []
        for entry in logged:
            if entry.statement.key in seen:
                continue
            last = left[-1].digest if left else self._known.digest
            left.append(entry if (entry.previous or "") == last else self._chain(entry.statement, left[-1:]))
        return left

    def _pushed(self, keys: Sequence[str]) -> Set[str]:
        return self._copy.knows(keys) if keys and self._known.number else frozenset()

    def _chain(self, statement: Statement, before: Sequence[Entry]) -> Entry:
        """A statement behind the last of some entries; behind what is pushed, where there are none."""
        return entry_of(
            statement,
            number=(before[-1].number if before else self._known.number) + 1,
            at=self._clock.now(),
            previous=before[-1].digest if before else Digest(self._known.digest) if self._known.digest else None,
            sign=self._keys.sign,
        )


def _segment(path: str, content: bytes) -> Segment:
    head, count = content.partition(b"\n")[0], content.count(b"\n")
    blob = hashlib.sha1(b"blob %d\0%s" % (len(content), content), usedforsecurity=False).hexdigest()
    return Segment(blob=blob, first=read_line(head, path).number, entries=count, size_bytes=len(content))


def _grown(segment: Segment | None, blob: str, line: Line) -> Segment:
    """A segment with one line more."""
    size_bytes = len(line.raw) + 1
    if segment is None:
        return Segment(blob=blob, first=line.number, entries=1, size_bytes=size_bytes)
    return Segment(blob=blob, first=segment.first, entries=segment.entries + 1, size_bytes=segment.size_bytes + size_bytes)
