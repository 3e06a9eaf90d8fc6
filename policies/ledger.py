"""The ledger's chain: each entry names the one before by digest, and is signed.

Laws: an entry reads back as it was written; changing, dropping, repeating or reordering an entry breaks the chain at
a place that `Chain` names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from policies.canonical import canonical, digest_value, parse
from policies.errors import DesiredStateError
from policies.terms.digest import Digest, digest_of
from policies.terms.record import Entry, Statement

_TEXT = rb'"((?:[^"\\]|\\.)*)"'
_LINE = re.compile(
    rb'(\{"at":"([^"\\]*)","axon":' + _TEXT + rb',"body":.*,)"digest":"(sha256:[0-9a-f]{64})",'
    rb'("key":' + _TEXT + rb',"kind":' + _TEXT + rb',"number":(\d{1,15}),"previous":(?:null|"(sha256:[0-9a-f]{64})")),'
    rb'"signature":"([A-Za-z0-9+/=]*)"\}'
)
"""An entry as `encode` writes it. What is left without digest and signature is what the digest was made over."""
_NAMED = {
    "event": ("id",),
    "run": ("run",),
    "superseded": ("run",),
    "resolved": ("event",),
    "task": ("taskRun",),
    "deploying": ("taskRun",),
    "ask": ("taskRun", "trial", "rung"),
    "tell": ("taskRun", "trial", "rung"),
    "image": ("digest",),
}
"""Which fields of its body an entry's key repeats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainFault:
    """Where the ledger is not what was written."""

    number: int
    """Of the entry; the one that was expected when it is missing."""
    field: str
    """The first field that is wrong: `number`, `previous`, `digest`, `signature`, `key`, or a path, `body.value`."""
    message: str
    where: str = ""
    """File and line; empty for an entry that is missing."""
    commit: str = ""
    """The commit of the branch that did it, and who signed that; empty where its history does not tell."""

    def __str__(self) -> str:
        subject = f"entry {self.number}: {self.field}: {self.message}" if self.number else self.message
        place = "; ".join(part for part in (self.where, self.commit) if part)
        return f"{subject} ({place})" if place else subject


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the ledger: an entry whose body nobody looked at yet."""

    raw: bytes
    """Without its line end."""
    where: str
    """File and line, from 1."""
    number: int
    at: str
    axon: str
    kind: str
    key: str
    previous: str | None
    digest: str
    signature: str
    covered: str
    """The digest that fits the rest."""


def entry_of(statement: Statement, *, number: int, at: datetime, previous: Digest | None, sign: Callable[[bytes], str]) -> Entry:
    """Give a statement its place in the chain.

    What is recorded is what is read back: keys in their canonical order, whole numbers as such. Otherwise a restart
    would change the bytes of what follows from it.
    """
    statement = replace(statement, body=parse(canonical(statement.body)))
    digest = _digest(statement, number, at, previous)
    return Entry(number=number, at=at, statement=statement, previous=previous, digest=digest, signature=sign(digest.encode()))


def encode(entry: Entry) -> bytes:
    """One line of canonical JSON, with its line end."""
    body = _body(entry.statement, entry.number, entry.at, entry.previous)
    return canonical({**body, "digest": entry.digest, "signature": entry.signature}) + b"\n"


def decode(line: bytes, *, where: str = "ledger") -> Entry:
    """Read one line.

    Raises:
        DesiredStateError: Not an entry.
    """
    try:
        value = parse(line)
        statement = Statement(kind=value["kind"], key=value["key"], axon=value["axon"], body=value["body"])
        return Entry(
            number=int(value["number"]),
            at=datetime.fromisoformat(value["at"]),
            statement=statement,
            previous=value["previous"],
            digest=Digest(value["digest"]),
            signature=value["signature"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise _broken(line, where) from error


def read_line(raw: bytes, where: str) -> Line:
    """Read one line as far as its place in the chain goes: several times as fast as `decode`.

    Raises:
        DesiredStateError: Not an entry.
    """
    found = _LINE.fullmatch(raw)
    if found is None:
        return line_of(decode(raw, where=where), raw=raw, where=where)
    head, at, axon, digest, tail, key, kind, number, previous, signature = found.groups()
    try:
        return Line(
            raw,
            where,
            int(number),
            at.decode(),
            _text(axon),
            _text(kind),
            _text(key),
            previous.decode() if previous else None,
            digest.decode(),
            signature.decode(),
            digest_of(head + tail + b"}"),
        )
    except ValueError as error:
        raise _broken(raw, where) from error


def line_of(entry: Entry, *, raw: bytes = b"", where: str = "") -> Line:
    """An entry as a line.

    Raises:
        DesiredStateError: Its values cannot be written.
    """
    said = entry.statement
    try:
        return Line(
            raw or encode(entry)[:-1],
            where,
            entry.number,
            entry.at.astimezone(UTC).isoformat(),
            said.axon,
            said.kind,
            said.key,
            entry.previous,
            entry.digest,
            entry.signature,
            _digest(said, entry.number, entry.at, entry.previous),
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise _broken(raw, where) from error


@dataclass(slots=True)
class Chain:
    """Follows a chain line by line, and keeps nothing of it but what is wrong."""

    faults: list[ChainFault] = field(default_factory=list)
    _last: Line | None = None
    """The one with the highest number."""
    _missing: list[tuple[int, int]] = field(default_factory=list)
    """First and last number of each gap."""
    _unlike: Line | None = None
    """The last line, if its digest does not fit: the next one tells which of the two was changed."""

    def take(self, line: Line) -> None:
        """The next line, in the order in which they stand."""
        last, self._last = self._last, line
        expected = last.number + 1 if last else 1
        if self._unlike is not None:
            self._judge(self._unlike, line)
        self._unlike = line if line.digest != line.covered else None
        if line.number > expected:
            self._missing.append((expected, line.number - 1))
        elif last and line.number < expected:
            self._last = last
            if self._filled(line.number):
                self._note(line, "number", f"stands behind entry {last.number}")
            else:
                self._note(line, "number", "is there twice: the chain forks")
        elif line.previous != (last.digest if last else None) and not (last and line.previous == last.covered):
            self._note(line, "previous", "names another entry as the one before")

    def end(self) -> list[ChainFault]:
        """Everything that is wrong, by number."""
        if self._unlike is not None:
            self._judge(self._unlike, None)
            self._unlike = None
        for first, last in self._missing:
            text = "is missing" if first == last else f"is missing, and all up to entry {last}"
            self.faults.append(ChainFault(number=first, field="number", message=text))
        self._missing = []
        self.faults.sort(key=lambda fault: fault.number)
        return self.faults

    def _judge(self, line: Line, following: Line | None) -> None:
        """Name what was changed in a line whose digest does not fit."""
        if following is not None and following.number == line.number + 1 and following.previous == line.covered:
            self._note(line, "digest", "was changed after it was written: the next entry names another")
        elif (odd := _odd_key(line)) is not None:
            self._note(line, "key", f"was changed after it was written: it is none of {odd}")
        else:
            self._note(line, "digest", "does not fit the entry, which was changed after it was written")

    def _filled(self, number: int) -> bool:
        """Whether a number was missing; it is not, from here."""
        for place, (first, last) in enumerate(self._missing):
            if first <= number <= last:
                rest = [(first, number - 1), (number + 1, last)]
                self._missing[place : place + 1] = [(start, stop) for start, stop in rest if start <= stop]
                return True
        return False

    def _note(self, line: Line, name: str, message: str) -> None:
        self.faults.append(ChainFault(number=line.number, field=name, message=message, where=line.where))


def unsigned(line: Line) -> ChainFault:
    """That nobody who may signed a line."""
    return ChainFault(number=line.number, field="signature", message="is not of a key of the project", where=line.where)


def check_chain(entries: Iterable[Entry], is_signed: Callable[[bytes, str], bool]) -> list[ChainFault]:
    """Everything that is wrong with a chain, by number.

    Args:
        entries: In the order in which they stand.
        is_signed: Whether a signature over these bytes was made by a key of the project.
    """
    chain = Chain()
    for position, entry in enumerate(entries, start=1):
        line = line_of(entry, where=f"line {position}")
        chain.take(line)
        if not is_signed(line.digest.encode(), line.signature):
            chain.faults.append(unsigned(line))
    return chain.end()


def _odd_key(line: Line) -> str | None:
    """What a key should repeat of the body, if it does not."""
    if line.kind not in _NAMED:
        return None
    try:
        body = json.loads(line.raw)["body"]
        named = "/".join(str(body[name]) for name in _NAMED[line.kind])
    except (ValueError, KeyError, TypeError):
        return None
    return f"body.{_NAMED[line.kind][0]}" if line.key != f"{line.kind}/{named}" else None


def _text(escaped: bytes) -> str:
    return str(json.loads(b'"' + escaped + b'"')) if b"\\" in escaped else escaped.decode()


def _broken(line: bytes, where: str) -> DesiredStateError:
    return DesiredStateError(f"{where}: expected a ledger entry, got {line[:60]!r}", reason="BrokenEntry")


def _body(statement: Statement, number: int, at: datetime, previous: Digest | None) -> Mapping[str, Any]:
    return {
        "number": number,
        "at": at.astimezone(UTC).isoformat(),
        "kind": statement.kind,
        "key": statement.key,
        "axon": statement.axon,
        "body": statement.body,
        "previous": previous,
    }


def _digest(statement: Statement, number: int, at: datetime, previous: Digest | None) -> Digest:
    return digest_value(_body(statement, number, at, previous))
