from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.canonical import canonical, parse
from policies.errors import DesiredStateError
from policies.ledger import Chain, ChainFault, check_chain, decode, encode, entry_of, line_of, read_line, unsigned
from policies.rewrites import rewrites
from policies.segments import MOST_BYTES, MOST_ENTRIES, Newest, in_order, spread
from policies.terms.record import Entry, Statement
from tests.properties.strategies import unicode

AT = datetime(2026, 1, 31, 12, tzinfo=UTC)

texts = st.text(unicode, max_size=6)
bodies = st.dictionaries(texts, st.none() | st.booleans() | st.integers(-99, 99) | st.floats(-9, 9) | texts, max_size=3)
said = st.builds(Statement, kind=texts, key=texts, axon=texts, body=bodies)


def sign(data: bytes) -> str:
    return "c2ln" + data.decode()[-8:]


def is_signed(data: bytes, signature: str) -> bool:
    return signature == sign(data)


def chain(count: int, *, step: timedelta = timedelta(0), size: int = 0) -> list[Entry]:
    entries: list[Entry] = []
    for number in range(1, count + 1):
        body = {"value": number / 3, "id": f"{number}", **({"text": "x" * size} if size else {})}
        statement = Statement(kind="event", key=f"event/{number}", axon="digits", body=body)
        previous = entries[-1].digest if entries else None
        entries.append(entry_of(statement, number=number, at=AT + step * number, previous=previous, sign=sign))
    return entries


@given(st.integers(1, 12))
def test_an_entry_reads_back_as_it_was_written(count: int) -> None:
    entries = chain(count)
    assert [decode(encode(entry)) for entry in entries] == entries
    assert list(check_chain(entries, is_signed)) == []


@given(said, st.integers(1, 10**9))
def test_a_line_is_read_without_its_body_as_it_is_with_it(statement: Statement, number: int) -> None:
    entry = entry_of(statement, number=number, at=AT, previous=None, sign=sign)
    raw = encode(entry)[:-1]
    assert read_line(raw, "here") == line_of(entry, where="here")
    assert read_line(raw, "here").digest == read_line(raw, "here").covered


@given(said, bodies, texts)
def test_whatever_is_changed_in_a_line_its_digest_does_not_fit(statement: Statement, body: dict[str, object], axon: str) -> None:
    raw = encode(entry_of(statement, number=1, at=AT, previous=None, sign=sign))[:-1]
    changed = canonical({**parse(raw), "body": body, "axon": axon})
    assert (read_line(changed, "").digest == read_line(changed, "").covered) == (changed == raw)


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b"x", b'{"at":"2026', b"null", b"\xff"])
def test_what_is_no_entry_is_said_to_be_none(raw: bytes) -> None:
    with pytest.raises(DesiredStateError, match="file:7: expected a ledger entry"):
        read_line(raw, "file:7")


@given(st.integers(2, 12), st.data())
def test_a_dropped_entry_is_found_where_it_stood(count: int, data: st.DataObject) -> None:
    entries = chain(count)
    gone = data.draw(st.integers(0, count - 2))
    [fault] = check_chain(entries[:gone] + entries[gone + 1 :], is_signed)
    assert (fault.number, fault.field, fault.message) == (gone + 1, "number", "is missing")


@given(st.integers(1, 12), st.data())
def test_a_changed_entry_is_named(count: int, data: st.DataObject) -> None:
    entries = chain(count)
    place = data.draw(st.integers(0, count - 1))
    entries[place] = replace(entries[place], statement=replace(entries[place].statement, axon="other"))
    assert [(fault.number, fault.field) for fault in check_chain(entries, is_signed)] == [(place + 1, "digest")]


@given(st.integers(2, 12), st.data())
def test_reordered_entries_are_found(count: int, data: st.DataObject) -> None:
    entries = chain(count)
    place = data.draw(st.integers(0, count - 2))
    entries[place], entries[place + 1] = entries[place + 1], entries[place]
    [fault] = check_chain(entries, is_signed)
    assert (fault.number, fault.field) == (place + 1, "number")
    assert "stands behind" in fault.message


Change = Callable[[list[Entry]], list[Entry]]


def with_body(entry: Entry, **body: object) -> Entry:
    return replace(entry, statement=replace(entry.statement, body={**entry.statement.body, **body}))


def signed_anew(entry: Entry, **values: object) -> Entry:
    changed = with_body(entry, **values)
    return entry_of(changed.statement, number=entry.number, at=entry.at, previous=entry.previous, sign=lambda _: "c3RyYW5nZXI=")


DEFECTS: dict[str, tuple[Change, list[tuple[int, str]]]] = {
    "nothing": (lambda e: e, []),
    "the last entry says something else": (lambda e: [*e[:5], with_body(e[5], value=9)], [(6, "digest")]),
    "an entry was made at another time": (lambda e: [*e[:2], replace(e[2], at=AT + timedelta(1)), *e[3:]], [(3, "digest")]),
    "an entry has the key of another": (
        lambda e: [*e[:2], replace(e[2], statement=replace(e[2].statement, key="event/9")), *e[3:]],
        [(3, "key")],
    ),
    "a body is not what its key says": (lambda e: [*e[:2], with_body(e[2], id="9"), *e[3:]], [(3, "key")]),
    "an entry names itself otherwise": (
        lambda e: [*e[:2], replace(e[2], digest=e[4].digest), *e[3:]],
        [(3, "digest"), (3, "signature")],
    ),
    "an entry names another before it": (
        lambda e: [*e[:2], replace(e[2], previous=e[0].digest), *e[3:]],
        [(3, "digest"), (3, "previous")],
    ),
    "a signature is another's": (lambda e: [*e[:2], replace(e[2], signature=e[3].signature), *e[3:]], [(3, "signature")]),
    "a stranger wrote an entry anew": (
        lambda e: [*e[:2], signed_anew(e[2], value=9), *e[3:]],
        [(3, "signature"), (4, "previous")],
    ),
    "the first entries are gone": (lambda e: e[2:], [(1, "number")]),
    "three in the middle are gone": (lambda e: [e[0], *e[4:]], [(2, "number")]),
    "two places have a gap": (lambda e: [e[0], e[2], e[4], e[5]], [(2, "number"), (4, "number")]),
    "an entry is there twice": (lambda e: [*e[:3], e[2], *e[3:]], [(3, "number")]),
    "two entries have one number": (lambda e: [*e[:3], signed_anew(e[2], value=9), *e[3:]], [(3, "number"), (3, "signature")]),
    "the last comes first": (
        lambda e: [e[5], *e[:5]],
        [(1, "number"), (2, "number"), (3, "number"), (4, "number"), (5, "number")],
    ),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_is_named_by_entry_and_first_field(defect: str) -> None:
    change, expected = DEFECTS[defect]
    found = check_chain(change(chain(6)), is_signed)
    assert sorted((fault.number, fault.field) for fault in found) == sorted(expected), [*map(str, found)]


def test_a_gap_says_how_far_it_goes() -> None:
    entries = chain(9)
    [fault] = check_chain([*entries[:2], *entries[6:]], is_signed)
    assert str(fault) == "entry 3: number: is missing, and all up to entry 6"


def test_a_chain_is_followed_without_keeping_it() -> None:
    followed = Chain()
    for entry in chain(50):
        followed.take(line_of(entry))
    assert followed.end() == []
    assert unsigned(line_of(chain(1)[0], where="f:1")) == ChainFault(
        number=1, field="signature", message="is not of a key of the project", where="f:1"
    )


# Segments


@given(st.integers(0, 40), st.lists(st.integers(1, 9), max_size=8), st.sampled_from([0, 3, 9, 20]), st.sampled_from([0, 40_000]))
def test_segments_have_each_line_once_in_order_within_their_bounds(count: int, pushes: list[int], days: int, size: int) -> None:
    entries = chain(count, step=timedelta(days=days), size=size)
    files: dict[str, bytes] = {}
    newest: Newest | None = None
    left = list(entries)
    while left:
        some = pushes.pop() if pushes else len(left)
        added, newest = spread(left[:some], newest)
        changed = {path: files.get(path, b"") + text for path, text in added.items()}
        # Only the newest of those that were there grows.
        assert all(path == max(files) for path in added if path in files)
        files |= changed
        left = left[some:]
        assert newest is not None
        assert (newest.entries, newest.size_bytes) == (files[newest.path].count(b"\n"), len(files[newest.path]))
    _, segments = in_order(files)
    assert sorted(segments) == sorted(files)
    assert b"".join(files[path] for path in segments) == b"".join(map(encode, entries))
    for path, text in files.items():
        lines = text.splitlines()
        assert path == f"ledger/{decode(lines[0]).at:%Y-%m}/{decode(lines[0]).number:012}.jsonl"
        assert len(lines) <= MOST_ENTRIES
        assert len(text) <= MOST_BYTES or len(lines) == 1
        assert {f"{decode(line).at:%Y-%m}" for line in lines} == {path.split("/")[1]}


def test_a_segment_that_is_full_grows_no_more() -> None:
    added, newest = spread(chain(MOST_ENTRIES + 1), None)
    assert [text.count(b"\n") for text in added.values()] == [MOST_ENTRIES, 1]
    assert newest is not None
    assert newest.path == f"ledger/2026-01/{MOST_ENTRIES + 1:012}.jsonl"


def test_files_of_the_first_form_come_first_and_others_are_none_of_the_ledgers() -> None:
    paths = [
        "ledger/2026-03/000000000007.jsonl",
        "ledger/2026-02.jsonl",
        "ledger/x",
        "README.md",
        "ledger/2026-01/1000000000000.jsonl",
    ]
    paths += ["ledger/2025-12.jsonl", "ledger/2026-01/999999999999.jsonl"]
    assert in_order(paths) == (
        ["ledger/2025-12.jsonl", "ledger/2026-02.jsonl"],
        ["ledger/2026-03/000000000007.jsonl", "ledger/2026-01/999999999999.jsonl", "ledger/2026-01/1000000000000.jsonl"],
    )


@given(st.integers(1, 30), st.sets(st.integers(1, 29)), st.integers(0, 5))
def test_packing_lines_into_other_files_and_adding_some_is_no_rewrite(count: int, borders: set[int], more: int) -> None:
    lines = [encode(entry)[:-1] for entry in chain(count + more)]
    cuts = sorted({0, count, *(border for border in borders if border < count)})
    packed = [line for start, stop in pairwise(cuts) for line in lines[start:stop]]
    assert list(rewrites(lines[:count], [*packed, *lines[count:]])) == []


REWRITES: dict[str, tuple[Callable[[list[bytes]], list[bytes]], list[str]]] = {
    "a value": (lambda e: [*e[:2], e[2].replace(b'"value":1', b'"value":2'), *e[3:]], ["entry 3: body.value: was 1, is 2"]),
    "an instant": (
        lambda e: [e[0].replace(b"T12:", b"T13:"), *e[1:]],
        ["entry 1: at: was 2026-01-31T12:00:00+00:00, is 2026-01-31T13:00:00+00:00"],
    ),
    "removed ones": (lambda e: [e[0], *e[3:]], ["entry 2: number: was removed, and all up to entry 3"]),
    "all": (lambda _: [], ["entry 1: number: was removed, and all up to entry 4"]),
    "two swapped": (lambda e: [e[1], e[0], *e[2:]], ["entry 2: number: was moved to where entry 1 stood"]),
    "one twice": (lambda e: [*e, e[2]], ["a line was added that is no entry, or one that is there already"]),
    "blanks": (
        lambda e: [e[0].replace(b'":', b'": '), *e[1:]],
        ["entry 1: line: says the same in another form"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REWRITES)
def test_a_rewrite_is_named_by_the_first_field_that_differs(what: str) -> None:
    change, expected = REWRITES[what]
    lines = [encode(entry)[:-1] for entry in chain(4)]
    assert [*map(str, rewrites(lines, change(lines)))] == expected


def test_an_entry_that_is_slipped_in_is_named() -> None:
    lines = [encode(entry)[:-1] for entry in chain(4)]
    [fault] = rewrites([lines[0], lines[3]], lines[:2] + lines[3:])
    assert str(fault) == "entry 2: number: was slipped in before entry 4"
