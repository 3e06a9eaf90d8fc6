from dataclasses import replace
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from policies.ledger import check_chain, decode, encode, entry_of
from policies.terms.record import Entry, Statement

AT = datetime(2026, 1, 31, 12, tzinfo=UTC)


def sign(data: bytes) -> str:
    return "signed:" + data.decode()


def is_signed(data: bytes, signature: str) -> bool:
    return signature == sign(data)


def chain(count: int) -> list[Entry]:
    entries: list[Entry] = []
    for number in range(1, count + 1):
        statement = Statement(kind="event", key=f"event/{number}", axon="digits", body={"value": number / 3})
        previous = entries[-1].digest if entries else None
        entries.append(entry_of(statement, number=number, at=AT, previous=previous, sign=sign))
    return entries


@given(st.integers(1, 12))
def test_an_entry_reads_back_as_it_was_written(count: int) -> None:
    entries = chain(count)
    assert [decode(encode(entry)) for entry in entries] == entries
    assert list(check_chain(entries, is_signed)) == []


@given(st.integers(2, 12), st.data())
def test_a_dropped_entry_is_found_where_it_stood(count: int, data: st.DataObject) -> None:
    entries = chain(count)
    gone = data.draw(st.integers(0, count - 2))
    faults = list(check_chain(entries[:gone] + entries[gone + 1 :], is_signed))
    assert faults[0].field == "number"
    assert faults[0].number == gone + 1


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
    assert any(fault.field == "number" for fault in check_chain(entries, is_signed))
