"""What a commit of the ledger's branch did to lines that were there before: it may only add some behind them.

Packing the lines of several files into others changes no line, so it is none of these faults.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any

from policies.canonical import parse
from policies.differences import first_difference
from policies.errors import DesiredStateError
from policies.ledger import ChainFault, read_line

_ORDER = ("body", "at", "key", "kind", "axon", "number", "previous", "digest", "signature")
"""What a person changes first; digest and signature follow from it."""


def rewrites(before: Sequence[bytes], after: Sequence[bytes]) -> Iterator[ChainFault]:
    """What became of lines that were there before.

    Args:
        before: Lines of all files that a commit touched, as its parent has them, in order.
        after: Lines of those files as the commit has them, in order.
    """
    old, new = _numbered(before), _numbered(after)
    gone = [number for number in old if number not in new]
    for place, number in enumerate(gone):
        if place and gone[place - 1] == number - 1:
            continue
        last = number + next(more for more in count() if gone[place + more : place + more + 1] != [number + more]) - 1
        text = f"was removed, and all up to entry {last}" if last > number else "was removed"
        yield ChainFault(number=number, field="number", message=text)
    for number, line in old.items():
        if number in new and line != new[number]:
            name, message = changed_field(line, new[number])
            yield ChainFault(number=number, field=name, message=message)
    kept = [number for number in new if number in old]
    for number, expected in zip(kept, [number for number in old if number in new], strict=True):
        if number != expected:
            yield ChainFault(number=number, field="number", message=f"was moved to where entry {expected} stood")
            break
    newest = max(old, default=0)
    for number in new:
        if number not in old and number < newest:
            yield ChainFault(number=number, field="number", message=f"was slipped in before entry {newest}")
    if len(new) < len(after) and not len(old) < len(before):
        yield ChainFault(number=0, field="", message="a line was added that is no entry, or one that is there already")


def changed_field(old: bytes, new: bytes) -> tuple[str, str]:
    """The first field in which two lines differ, and what it was and is."""
    try:
        before, after = _ordered(parse(old)), _ordered(parse(new))
    except (ValueError, AttributeError):
        return "line", "is no entry any more"
    found = first_difference(before, after)
    return (found.path, found.told().removeprefix(f"{found.path}: ")) if found else ("line", "says the same in another form")


def _ordered(value: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value[name] for name in (*_ORDER, *sorted({*value.keys()} - {*_ORDER})) if name in value}


def _numbered(lines: Sequence[bytes]) -> dict[int, bytes]:
    """Lines by number, in the order in which they stand; of two with one number, the first."""
    found: dict[int, bytes] = {}
    for line in lines:
        try:
            found.setdefault(read_line(line, "").number, line)
        except DesiredStateError:
            continue  # the chain names a line that cannot be read
    return found
