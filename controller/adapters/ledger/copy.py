"""A copy of the ledger's branch on local disk, with an index: SQLite, one file, made anew from the branch when it is damaged.

It is opened for each question, so that a controller of many projects holds neither files nor memory for those at rest.
Lines never change, so who reads in pieces reads one ledger.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from controller.adapters.ledger.disk import LOG, read_log, sync_folder
from policies.errors import DesiredStateError, SilentError
from policies.ledger import Line, decode, read_line
from policies.records import spent_by, trial_of
from policies.segments import Newest
from policies.terms.record import Entry

NAME = "pushed.sqlite"
FORM = 1
"""Of the tables; a copy of another form is made anew."""
AT_ONCE = 2000
WAIT_SECONDS = 10.0
_TABLES = """
create table entries (number integer primary key, mark integer not null, trial integer, spent integer not null,
    axon text not null, line blob not null);
create table segments (path text primary key, blob text not null, first integer not null, entries integer not null,
    size integer not null) without rowid;
create table state (head text not null, number integer not null, digest text not null);
insert into state values ('', 0, '');
"""
_INDEXES = """
create index if not exists marks on entries (mark);
create index if not exists trials on entries (trial) where trial is not null;
create index if not exists axons on entries (axon);
create index if not exists living on entries (number) where spent = 0;
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """How far the copy goes."""

    head: str = ""
    """The commit of the branch that it is a copy of; empty for none."""
    number: int = 0
    digest: str = ""
    """Of the newest entry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A file of the branch."""

    blob: str
    """Git object id of its content."""
    first: int
    entries: int
    size_bytes: int


class Copy:
    """The copy in a folder.

    Args:
        folder: Where it lies.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME

    def known(self) -> Known:
        """How far it goes; nowhere when there is none, or none that can be read."""
        try:
            with self._open() as rows:
                if rows.execute("pragma user_version").fetchone()[0] != FORM:
                    return Known()
                head, number, digest = rows.execute("select head, number, digest from state").fetchone()
                found = rows.execute("select max(number) from entries").fetchone()[0]
                return Known(head=head, number=number, digest=digest) if found == (number or None) else Known()
        except (SilentError, TypeError):
            return Known()

    def take(
        self,
        lines: Iterable[Line],
        *,
        head: str,
        segments: Mapping[str, Segment | None],
        is_new: bool = False,
    ) -> Known:
        """Add lines behind those that are here, all or none.

        Args:
            lines: In order. Whatever they raise, nothing was added.
            head: The commit that has them.
            segments: Files of that commit that are others than before; None for one that is gone.
            is_new: Begin with an empty copy.
        """
        path = self.path.with_suffix(".new") if is_new else self.path
        if is_new:
            path.unlink(missing_ok=True)
        with self._open(path, fills=is_new) as rows, rows:
            if is_new:
                rows.executescript(f"begin; {_TABLES} pragma user_version = {FORM};")
            known = self._known_in(rows)
            number, digest = known.number, known.digest
            ended: list[str] = []
            for some in _pieces(lines):
                rows.executemany("insert into entries values (?, ?, ?, 0, ?, ?)", map(_row, some))
                number, digest = some[-1].number, some[-1].digest
                ended += [run for line in some if line.kind == "task" and (run := spent_by(decode(line.raw).statement))]
            for statement in _INDEXES.split(";") if is_new else ():
                rows.execute(statement)
            rows.executemany("update entries set spent = 1 where trial = ? and spent = 0", [(_mark(run),) for run in ended])
            for name, item in segments.items():
                if item is None:
                    rows.execute("delete from segments where path = ?", (name,))
                else:
                    values = (name, item.blob, item.first, item.entries, item.size_bytes)
                    rows.execute("insert or replace into segments values (?, ?, ?, ?, ?)", values)
            rows.execute("update state set head = ?, number = ?, digest = ?", (head, number, digest))
        if is_new:
            path.replace(self.path)
            sync_folder(path.parent)
        return Known(head=head, number=number, digest=digest)

    def segments(self) -> Mapping[str, Segment]:
        """Files of the branch, by path, oldest first."""
        with self._open() as rows:
            found = rows.execute("select path, blob, first, entries, size from segments order by first, path").fetchall()
        return {
            path: Segment(blob=blob, first=first, entries=entries, size_bytes=size) for path, blob, first, entries, size in found
        }

    def newest(self) -> Newest | None:
        """The file that was written last."""
        with self._open() as rows:
            found = rows.execute("select path, entries, size from segments order by first desc limit 1").fetchone()
        return Newest(path=found[0], entries=found[1], size_bytes=found[2]) if found else None

    def knows(self, keys: Sequence[str]) -> Set[str]:
        """Which of these keys are here."""
        return {entry.statement.key for entry in self.find(keys)}

    def find(self, keys: Iterable[str]) -> list[Entry]:
        """The entries of some keys, in order."""
        found = []
        with self._open() as rows:
            for key in keys:
                lines = rows.execute("select line from entries where mark = ?", (_mark(key),))
                found += [entry for (line,) in lines if (entry := decode(line)).statement.key == key]
        return sorted(found, key=lambda entry: entry.number)

    def line(self, number: int) -> bytes:
        """The line of an entry; empty when there is none."""
        with self._open() as rows:
            return _line(rows, number)

    def beside(self, lines: Iterable[Line]) -> Iterator[tuple[Line, bytes]]:
        """Lines with what is here under their numbers; empty for none."""
        with self._open() as rows:
            yield from ((line, _line(rows, line.number)) for line in lines)

    def since(self, number: int, *, upto: int) -> Iterator[Entry]:
        """Entries after a number, in order, without those that `records.spent_by` says are spent; but the last one always.

        Args:
            number: 0 for all.
            upto: The last one.
        """
        yield from map(self._entry, self._pages("spent = 0 and number < ? and", (upto,), after=number))
        if number < upto:
            yield self._entry((upto, self.line(upto)))

    def every(self, *, upto: int) -> Iterator[Entry]:
        """All entries up to a number, in order."""
        yield from map(self._entry, self._pages("number <= ? and", (upto,), after=0))

    def of_axon(self, axon: str) -> Iterator[tuple[int, bytes]]:
        """Numbers and lines of one axon's entries, in order."""
        yield from self._pages("axon = ? and", (axon,), after=0)

    def _pages(self, condition: str, values: tuple[object, ...], *, after: int) -> Iterator[tuple[int, bytes]]:
        """Lines after a number that a condition holds for. The file is free between two pages: its writer never waits long."""
        while True:
            with self._open() as rows:
                query = f"select number, line from entries where {condition} number > ? order by number limit {AT_ONCE}"
                found = rows.execute(query, (*values, after)).fetchall()
            yield from found
            if len(found) < AT_ONCE:
                return
            after = found[-1][0]

    def _entry(self, found: tuple[int, bytes]) -> Entry:
        """An entry whose bytes are what its digest says; where they are not, the copy is given up."""
        number, raw = found
        try:
            line = read_line(raw, f"entry {number}")
            if line.digest == line.covered:
                return decode(raw, where=line.where)
        except DesiredStateError:
            pass
        self.path.unlink(missing_ok=True)
        text = f"entry {number} is not what its digest says; the copy is made anew from the branch"
        raise SilentError(f"{self.path}: {text}", reason="LedgerCopyDamaged")

    def _known_in(self, rows: sqlite3.Connection) -> Known:
        head, number, digest = rows.execute("select head, number, digest from state").fetchone()
        return Known(head=head, number=number, digest=digest)

    @contextmanager
    def _open(self, path: Path | None = None, *, fills: bool = False) -> Iterator[sqlite3.Connection]:
        mode = "rwc" if fills else "rw"
        try:
            place = f"{(path or self.path).absolute().as_uri()}?mode={mode}"
            with closing(sqlite3.connect(place, uri=True, timeout=WAIT_SECONDS)) as rows:
                rows.execute("pragma synchronous = normal")
                if fills:
                    # Larger than usual: of lines of half a kilobyte, a page of 4 KB would stay empty in part.
                    rows.execute("pragma page_size = 16384")
                    rows.execute("pragma cache_size = -65536")
                yield rows
        except sqlite3.Error as error:
            if not isinstance(error, sqlite3.OperationalError):
                self.path.unlink(missing_ok=True)  # damaged: it costs reading the branch again, no more
            raise SilentError(f"{self.path}: {error}; it is made anew where it is damaged", reason="Disk") from error


def read_folder(folder: Path) -> list[Entry]:
    """What the folder of a ledger holds, beside a controller that may be writing."""
    copy = Copy(folder)
    pushed = [*copy.every(upto=copy.known().number)] if copy.path.exists() else []
    number = pushed[-1].number if pushed else 0
    return [*pushed, *(entry for entry in read_log(folder / LOG, mend=False) if entry.number > number)]


def _row(line: Line) -> tuple[object, ...]:
    run = trial_of(line.kind, line.key)
    return line.number, _mark(line.key), _mark(run) if run else None, line.axon, line.raw


def _line(rows: sqlite3.Connection, number: int) -> bytes:
    found = rows.execute("select line from entries where number = ?", (number,)).fetchone()
    return bytes(found[0]) if found else b""


def _mark(text: str) -> int:
    """64 bits that stand for a text in an index; who finds them compares the text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big", signed=True)


def _pieces(lines: Iterable[Line]) -> Iterator[list[Line]]:
    some: list[Line] = []
    for line in lines:
        some.append(line)
        if len(some) == AT_ONCE:
            yield some
            some = []
    if some:
        yield some
