"""The ledger's chain: each entry names the one before by digest, and is signed.

Laws: an entry reads back as it was written; changing, dropping, repeating or reordering an entry breaks the chain at
a place that `check_chain` names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from policies.canonical import canonical, digest_value, parse
from policies.errors import DesiredStateError
from policies.terms.digest import Digest
from policies.terms.record import Entry, Statement


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainFault:
    """Where the chain is broken."""

    number: int
    """Of the entry; the one that was expected when it is missing."""
    field: str
    """`digest`, `previous`, `number` or `signature`."""
    message: str


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
        raise DesiredStateError(f"{where}: expected a ledger entry, got {line[:60]!r}", reason="BrokenEntry") from error


def check_chain(entries: Sequence[Entry], is_signed: Callable[[bytes, str], bool]) -> Iterator[ChainFault]:
    """Everything that is wrong with a chain, in order.

    Args:
        entries: In the order in which they stand.
        is_signed: Whether a signature over these bytes was made by a key of the project.
    """
    previous: Entry | None = None
    for position, entry in enumerate(entries, start=1):
        expected = previous.number + 1 if previous else 1
        if entry.number != expected:
            yield ChainFault(
                number=expected, field="number", message=f"expected entry {expected}, got {entry.number} at line {position}"
            )
        if entry.previous != (previous.digest if previous else None):
            yield ChainFault(number=entry.number, field="previous", message="names another entry as the one before")
        if entry.digest != _digest(entry.statement, entry.number, entry.at, entry.previous):
            yield ChainFault(number=entry.number, field="digest", message="was changed after it was written")
        if not is_signed(entry.digest.encode(), entry.signature):
            yield ChainFault(number=entry.number, field="signature", message="is not signed by a key of the project")
        previous = entry


def shard_name(at: datetime) -> str:
    """The file that holds the entries of a month."""
    return f"ledger/{at.astimezone(UTC):%Y-%m}.jsonl"


def _body(statement: Statement, number: int, at: datetime, previous: Digest | None) -> dict[str, object]:
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
