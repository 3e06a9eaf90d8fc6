"""What documents promise. They are pure, so the simulated outside has the real ones, which only remember what they read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controller.adapters.documents import YamlDocuments
from policies.errors import DesiredStateError
from reconcilers.ports import Documents
from tests.fakes.wiring import open_ports
from tests.fakes.world import World

TEXT = b"""# who serves
kind: Release   # by hand
spec:
  traffic:
    - {version: v-1, share: 80}   # the old one
    - version: "v-2"
      share: 20
  shadow: ''
"""
SETTINGS = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
ODD = (
    "yes",
    "no",
    "on",
    "null",
    "~",
    "1",
    "1.0",
    "0x1f",
    "1e3",
    "01",
    "12:30",
    "2026-01-31",
    "- a",
    "a: b",
    "# c",
    "'",
    "&a",
    "!t",
)
words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12) | st.sampled_from(ODD)
numbers = st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | numbers | words
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3), max_leaves=12
)
documents_of_people = st.dictionaries(words, values, max_size=4)


def told(value: object) -> str:
    """A value as text: `1`, `1.0` and `true` are three things."""
    return json.dumps(value, sort_keys=True)


@pytest.fixture(params=["fake", "real"])
def documents(request: pytest.FixtureRequest) -> Documents:
    return open_ports(World()).documents if request.param == "fake" else YamlDocuments()


@SETTINGS
@given(value=documents_of_people)
def test_what_is_rendered_reads_back(documents: Documents, value: Mapping[str, Any]) -> None:
    text = documents.render(value)
    assert told(documents.load(text, "a.yaml").value) == told(value)
    assert documents.render(value) == text


@SETTINGS
@given(before=documents_of_people, after=documents_of_people)
def test_an_edit_says_what_it_was_asked_to(documents: Documents, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    edited = documents.edit(documents.render(before), after)
    assert told(documents.load(edited, "a.yaml").value) == told(after)


@SETTINGS
@given(value=documents_of_people)
def test_an_edit_that_changes_nothing_changes_no_byte(documents: Documents, value: Mapping[str, Any]) -> None:
    text = b"# first line\n" + documents.render(value)
    assert documents.edit(text, value) == text


def test_an_edit_keeps_comments_order_and_quotes_of_the_rest(documents: Documents) -> None:
    value = documents.load(TEXT, "a.yaml").value
    value["spec"]["traffic"][1]["share"] = 30
    value["spec"]["traffic"][0]["share"] = 70
    edited = documents.edit(TEXT, value)
    assert edited == TEXT.replace(b"80", b"70").replace(b"20", b"30")


def test_a_document_is_read_with_the_lines_of_its_keys_and_items(documents: Documents) -> None:
    loaded = documents.load(TEXT, "releases/a.yaml")
    assert loaded.file == "releases/a.yaml"
    assert loaded.value["spec"]["traffic"][1] == {"version": "v-2", "share": 20}
    places: list[tuple[str | int, ...]] = [(), ("kind",), ("spec", "traffic", 0), ("spec", "traffic", 1, "share")]
    assert [loaded.lines[place] for place in places] == [1, 2, 5, 7]


def test_reading_again_is_reading_the_same(documents: Documents) -> None:
    loaded = documents.load(TEXT, "a.yaml")
    loaded.value["spec"]["traffic"].clear()
    assert len(documents.load(TEXT, "a.yaml").value["spec"]["traffic"]) == 2


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (b"a: 1\nb: [1\n", 2),
        (b"a: 1\na: 2\n", 2),
        (b"a: 1\nb: \xff\n", 2),
        (b"a: 1\n---\nb: 2\n", 2),
        (b"a:\n\tb: 1\n", 2),
        (b"a: *none\n", 1),
    ],
)
def test_what_is_no_document_says_where(documents: Documents, text: bytes, line: int) -> None:
    with pytest.raises(DesiredStateError) as caught:
        documents.load(text, "axons/a.yaml")
    assert caught.value.message.startswith("axons/a.yaml:")
    assert abs(int(caught.value.message.split(":")[1]) - line) <= 1
    assert "\n" not in caught.value.message
