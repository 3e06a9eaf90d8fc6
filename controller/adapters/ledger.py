"""The ledger: a write-ahead log on local disk, fsynced before anything acts on it, pushed to a branch.

The branch is the truth. What is only in the log keeps its order until Git takes it; if somebody else wrote to the
branch meanwhile, what is left is chained anew behind that.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from policies.errors import ConflictError, RefusedError, SilentError
from policies.ledger import decode, encode, entry_of, shard_name
from policies.terms.record import Entry, Statement
from reconcilers.ports import Clock, Keys, Repository

BRANCH = "myelin/ledger"
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

    Raises:
        RefusedError: Another controller works on this folder.
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
    ) -> None:
        self._rest_seconds, self._rests_until = rest_seconds, 0.0
        self._repository, self._keys, self._clock, self._branch = repository, keys, clock, branch
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = _Lock(folder / "lock")
        self._log, self._cache = folder / "pending.jsonl", folder / "pushed.jsonl"
        self._pushed = _read(self._cache)
        self._pending = self._left(_read(self._log))
        self._keys_seen = {entry.statement.key for entry in (*self._pushed, *self._pending)}
        self._all: tuple[Entry, ...] | None = None
        self._head = ""
        try:
            if not self._pushed:
                self._catch_up()
        except BaseException:
            self._lock.close()
            raise

    def close(self) -> None:
        """Let another controller take over."""
        self._lock.close()

    def entries(self) -> tuple[Entry, ...]:
        """All entries, pushed and pending."""
        if self._all is None:
            self._all = (*self._pushed, *self._pending)
        return self._all

    def record(self, statements: Sequence[Statement]) -> tuple[Entry, ...]:
        """Append statements whose key is new; return once they are safe on disk."""
        new: list[Entry] = []
        for statement in statements:
            if statement.key in self._keys_seen:
                continue
            new.append(self._chain(statement, after=new[-1] if new else self._last()))
            self._keys_seen.add(statement.key)
        if new:
            try:
                with _disk(self._log):
                    _append(self._log, new)
            except SilentError:
                self._keys_seen -= {entry.statement.key for entry in new}
                raise
            self._pending += new
            self._all = None
        return tuple(new)

    def pending(self) -> int:
        """How many entries are only in the write-ahead log."""
        return len(self._pending)

    def push(self) -> int:
        """Push what is pending as one commit; return how many entries."""
        if not self._pending or time.monotonic() < self._rests_until:
            return 0
        self._rests_until = time.monotonic() + self._rest_seconds
        for _ in range(TRIES):
            self._catch_up()
            if not self._pending:
                return 0
            try:
                self._push_once()
            except ConflictError:
                continue
            pushed = self._pending
            self._pushed += pushed
            self._pending, self._all = [], None
            # Both files only save reading the branch again: what they lack is caught up with, what is twice is passed over.
            with _disk(self._cache):
                _append(self._cache, pushed)
                _replace(self._log, [])
            return len(pushed)
        raise ConflictError(f"branch {self._branch}: expected our push to win once in {TRIES}, it never did")

    def _push_once(self) -> None:
        shards: dict[str, list[Entry]] = {}
        for entry in self._pending:
            shards.setdefault(shard_name(entry.at), []).append(entry)
        before = dict.fromkeys(shards, b"")
        if self._head:
            before |= dict(self._repository.read_many(self._head, list(shards)))
        changes = {shard: before[shard] + b"".join(map(encode, entries)) for shard, entries in shards.items()}
        first, last = self._pending[0].number, self._pending[-1].number
        self._head = self._repository.push(
            branch=self._branch,
            parent=self._head,
            changes=changes,
            message=f"ledger: {len(self._pending)} entries, {first}-{last}\n",
            at=self._clock.now(),
        )

    def _catch_up(self) -> None:
        """Read what the branch has beyond what we know, and chain what is pending behind it."""
        head = self._repository.fetch(self._branch)
        if head == self._head:
            return
        remote: list[Entry] = []
        if head:
            remote = read_branch(self._repository, head)
        known = self._pushed[-1].digest if self._pushed else None
        place = len(self._pushed)
        if len(remote) < place or (place and remote[place - 1].digest != known):
            text = f"branch {self._branch}: expected the {place} entries that we pushed, they were rewritten"
            raise RefusedError(text, reason="LedgerRewritten")
        new = remote[place:]
        self._head = head
        if not new:
            return
        seen = {entry.statement.key for entry in new}
        with _disk(self._cache):
            _append(self._cache, new)
        self._pushed += new
        statements = [entry.statement for entry in self._pending if entry.statement.key not in seen]
        self._pending = []
        for statement in statements:
            self._pending.append(self._chain(statement, after=self._last()))
        with _disk(self._log):
            _replace(self._log, self._pending)
        self._keys_seen |= seen
        self._all = None

    def _left(self, logged: Sequence[Entry]) -> list[Entry]:
        """What of the write-ahead log is not pushed; chained anew where another writer's entries came in between."""
        seen = {entry.statement.key for entry in self._pushed}
        left: list[Entry] = []
        for entry in logged:
            if entry.statement.key in seen:
                continue
            last = left[-1] if left else self._pushed[-1] if self._pushed else None
            fits = entry.previous == (last.digest if last else None)
            left.append(entry if fits else self._chain(entry.statement, after=last))
        return left

    def _last(self) -> Entry | None:
        return self._pending[-1] if self._pending else self._pushed[-1] if self._pushed else None

    def _chain(self, statement: Statement, *, after: Entry | None) -> Entry:
        return entry_of(
            statement,
            number=after.number + 1 if after else 1,
            at=self._clock.now(),
            previous=after.digest if after else None,
            sign=self._keys.sign,
        )


def read_branch(repository: Repository, head: str) -> list[Entry]:
    """The ledger as a commit of its branch has it, by number: a clock that was set back over a month's border counts nothing."""
    paths = sorted(item.path for item in repository.files(head, "ledger"))
    texts = repository.read_many(head, paths)
    entries = [decode(line, where=path) for path in paths for line in texts[path].splitlines() if line]
    return sorted(entries, key=lambda entry: entry.number)


class _Lock:
    """Held as long as the process lives: one writer for each folder."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.seek(0)
            holder = self._file.read().strip() or "?"
            self._file.close()
            raise RefusedError(
                f"{path.parent}: another controller (process {holder}) works on this state", reason="Locked"
            ) from error
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()

    def close(self) -> None:
        """Give the folder free."""
        self._file.close()


@contextmanager
def _disk(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SilentError(f"{place}: {error.strerror or error}", reason="DiskFull" if error.errno == 28 else "Disk") from error


def _read(path: Path) -> list[Entry]:
    """Entries of a log. A torn last line was never acted on: it is cut off."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    whole, _, torn = data.rpartition(b"\n")
    if torn:
        with path.open("r+b") as file:
            file.truncate(len(data) - len(torn))
    return [decode(line, where=f"{path}:{number}") for number, line in enumerate(whole.splitlines(), start=1) if line]


def _append(path: Path, entries: Sequence[Entry]) -> None:
    is_new = not path.exists()
    with path.open("ab") as file:
        start = file.tell()
        try:
            file.write(b"".join(map(encode, entries)))
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            os.truncate(path, start)
            raise
    if is_new:
        _sync_folder(path.parent)


def _replace(path: Path, entries: Sequence[Entry]) -> None:
    temporary = path.with_suffix(".new")
    with temporary.open("wb") as file:
        file.write(b"".join(map(encode, entries)))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
