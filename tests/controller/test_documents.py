import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.adapters.documents import LARGEST_INTEGER, YamlDocuments
from policies.errors import DesiredStateError, Fault

DOCUMENTS = YamlDocuments()

texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-LARGEST_INTEGER, LARGEST_INTEGER)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
    | st.sampled_from(["yes", "null", "~", "007", "1e3", "0o7", "1_0", "2026-01-01", "<<", "- a", "a: b", "#", "a\nb\n", " x "])
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=8
)
documents = st.dictionaries(texts, values, max_size=4)


def faults_of(text: bytes) -> tuple[Fault, ...]:
    with pytest.raises(DesiredStateError) as caught:
        DOCUMENTS.load(text, "a.yaml")
    return caught.value.faults


def identical(one: Any, other: Any) -> bool:
    return repr(one) == repr(other)


@given(documents)
def test_what_is_rendered_is_read_back(value: dict[str, Any]) -> None:
    assert identical(DOCUMENTS.load(DOCUMENTS.render(value), "a").value, value)


@given(documents, documents)
def test_an_edited_document_says_exactly_what_was_asked(before: dict[str, Any], after: dict[str, Any]) -> None:
    edited = DOCUMENTS.load(DOCUMENTS.edit(DOCUMENTS.render(before), after), "a").value
    assert edited.keys() == after.keys()
    assert all(identical(edited[key], after[key]) or edited[key] == after[key] for key in after)


@given(documents)
def test_an_edit_that_changes_nothing_leaves_every_byte(value: dict[str, Any]) -> None:
    text = DOCUMENTS.render(value)
    assert DOCUMENTS.edit(text, value) == text


@given(st.binary(max_size=60) | st.text(alphabet="{}[]:,-*&!|>'\"# \t\nab1<?%@`", max_size=40).map(str.encode))
def test_bytes_are_a_document_or_a_fault_never_a_crash(text: bytes) -> None:
    faults: tuple[Fault, ...] | None = None
    try:
        DOCUMENTS.load(text, "a")
    except DesiredStateError as error:
        faults = error.faults
    assert faults is None or faults
    assert all(fault.line >= 1 and "\n" not in str(fault) for fault in faults or ())


@pytest.mark.parametrize(
    ("text", "line", "reason", "words"),
    [
        (b"a: 1\nb:\n\tc: 1\n", 3, "NotYaml", "cannot start any token"),
        (b"a: 1\n---\nb: 1\n", 2, "NotYaml", "another document"),
        (b"a: *x\n", 1, "NotYaml", "undefined alias"),
        (b"a: 1\nb: \xff\n", 2, "NotYaml", "expected UTF-8, got byte 0xff"),
        (b"a: 1\nb: \x00\n", 2, "NotYaml", "unacceptable character"),
        (b"a: 1\nb: {c: 1, c: 2}\n", 2, "DuplicateKey", "line 2 has it already"),
        (b"? [a]\n: 1\n", 1, "NotAKey", "expected a key of text"),
        (b"a: " + b"9" * 5000, 1, "NotExact", "of 5000 digits"),
        (b"a: 1\nb: 9007199254740992\n", 2, "NotExact", "9007199254740991"),
        (b"a: .inf\n", 1, "NotFinite", "expected a finite number, got .inf"),
        (b"a: &a\n  b: *a\n", 1, "TooLarge", "aliases"),
        (b"a: 1\nb: " + b"[" * 5000, 2, "TooLarge", "100 deep"),
        (b"a: 1\nb: " + b"[" * 500 + b"]" * 500, 2, "TooLarge", "100 deep"),
        (b"#" * ((1 << 20) + 1), 1, "TooLarge", "1048576 bytes"),
        (b"a: {<<: [1]}\n", 1, "NotAMapping", "expected a mapping to merge"),
    ],
)
def test_bad_text_is_one_clear_fault_with_its_line(text: bytes, line: int, reason: str, words: str) -> None:
    (fault,) = faults_of(text)
    assert (fault.file, fault.line, fault.reason) == ("a.yaml", line, reason)
    assert words in fault.message


def test_aliases_that_multiply_are_refused_in_little_time() -> None:
    bomb = b"a: &a [x,x,x,x,x,x,x,x,x,x]\n" + b"".join(
        b"%c: &%c [%s]\n" % (98 + n, 98 + n, b",".join([b"*%c" % (97 + n)] * 10)) for n in range(9)
    )
    before = time.monotonic()
    (fault,) = faults_of(bomb)
    assert fault.reason == "TooLarge"
    assert time.monotonic() - before < 5


def test_lines_of_keys_and_items_are_known() -> None:
    loaded = DOCUMENTS.load(b"a: 1\nb:\n  - x\n  - c: |\n      two\n      lines\n    d: 2\n", "a.yaml")
    assert loaded.value == {"a": 1, "b": ["x", {"c": "two\nlines\n", "d": 2}]}
    assert {path: line for path, line in loaded.lines.items() if path} == {
        ("a",): 1,
        ("b",): 2,
        ("b", 0): 3,
        ("b", 1): 4,
        ("b", 1, "c"): 4,
        ("b", 1, "d"): 7,
    }


def test_a_merge_key_brings_in_what_is_not_there() -> None:
    loaded = DOCUMENTS.load(b"a: &x {p: 1, q: 1}\nb: &y {q: 2, r: 2}\nc:\n  <<: [*x, *y]\n  p: 3\n", "a.yaml")
    assert loaded.value["c"] == {"p": 3, "q": 1, "r": 2}
    assert loaded.lines["c", "p"] == 5
    assert loaded.lines["c", "r"] == 2


def test_numbers_are_read_as_yaml_1_2_and_quoted_ones_stay_text() -> None:
    text = b"a: 010\nb: 0o10\nc: 0x10\nd: 1e3\ne: '10'\nf: yes\ng: true\nh: 2026-01-01\ni: 1_0\nj: ~\n"
    assert DOCUMENTS.load(text, "a").value == {
        "a": 10,
        "b": 8,
        "c": 16,
        "d": 1000.0,
        "e": "10",
        "f": "yes",
        "g": True,
        "h": "2026-01-01",
        "i": 10,
        "j": None,
    }


@pytest.mark.parametrize(
    ("before", "value", "after"),
    [
        (
            b"# why\nspec:\n  traffic:   # shares\n  - version: v-1   # first\n    share: 100\n",
            {"spec": {"traffic": [{"version": "v-1", "share": 80}, {"version": "v-2", "share": 20}]}},
            b"# why\nspec:\n  traffic:   # shares\n  - version: v-1   # first\n    share: 80\n  - version: v-2\n    share: 20\n",
        ),
        (b"---\nb: 'q'\na: 1\n", {"a": 2, "b": "q"}, b"---\nb: 'q'\na: 2\n"),
        (b"a: 1\r\nb: 2 # c\r\n", {"a": 1, "b": 3}, b"a: 1\r\nb: 3 # c\r\n"),
        (b"a: |\n  one\n  two\nb: 1\n", {"a": "one\ntwo\n", "b": 2}, b"a: |\n  one\n  two\nb: 2\n"),
        (b"at: 2026-01-31T12:00:00Z\nb: 1\n", {"at": "2026-01-31T12:00:00Z", "b": 2}, b"at: 2026-01-31T12:00:00Z\nb: 2\n"),
        (b"a: '1'\nb: x\n", {"a": 1, "b": "x"}, b"a: 1\nb: x\n"),
    ],
    ids=["list below its key", "document start", "windows line ends", "block text", "bare instant", "text becomes a number"],
)
def test_an_edit_touches_only_what_changes(before: bytes, value: dict[str, Any], after: bytes) -> None:
    assert DOCUMENTS.edit(before, value) == after


def test_an_edit_inside_of_an_alias_changes_one_place_only() -> None:
    value = {"a": {"p": 1}, "b": {"p": 2}}
    assert DOCUMENTS.load(DOCUMENTS.edit(b"a: &x {p: 1}\nb: *x\n", value), "a").value == value


@pytest.mark.parametrize("text", [b"a: [\n", b"a: 1\na: 2\n", b"\xff"])
def test_an_edit_of_what_is_no_document_is_refused(text: bytes) -> None:
    with pytest.raises(DesiredStateError):
        DOCUMENTS.edit(text, {"a": 1})
