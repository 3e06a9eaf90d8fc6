from hypothesis import given
from hypothesis import strategies as st

from policies.canonical import canonical, digest_value, short_name
from policies.identity import event_set, object_name, run_id, version_id
from policies.terms.digest import is_digest

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), VALUES, max_size=5))
def test_the_order_of_keys_does_not_matter(value: dict[str, object]) -> None:
    backwards = dict(reversed(list(value.items())))
    assert canonical(value) == canonical(backwards)
    assert is_digest(digest_value(value))


@given(st.lists(st.text(max_size=5), max_size=6), st.randoms())
def test_an_event_set_is_a_set(events: list[str], chance: object) -> None:
    shuffled = list(events)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    assert event_set(events) == event_set([*shuffled, *shuffled])
    assert run_id("a", "d", "s", events) == run_id("a", "d", "s", shuffled)


@given(st.lists(st.text(alphabet="ab", min_size=1), min_size=2, max_size=4, unique=True))
def test_a_version_is_named_by_what_is_in_it_in_any_order(digests: list[str]) -> None:
    name = version_id(commit="c", events="e", images=digests, models=digests)
    assert name == version_id(commit="c", events="e", images=digests[::-1], models=digests[::-1])
    assert name != version_id(commit="d", events="e", images=digests, models=digests)
    assert len(name) == 12


@given(
    st.lists(st.text(min_size=1, max_size=40), min_size=1, max_size=4),
    st.lists(st.text(min_size=1, max_size=40), min_size=1, max_size=4),
)
def test_different_parts_give_different_object_names(one: list[str], other: list[str]) -> None:
    name = object_name(*one)
    assert len(name) <= 63
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    if one != other and "-".join(one) != "-".join(other):
        assert name != object_name(*other)


def test_names_are_the_same_on_any_machine() -> None:
    digest = digest_value({"b": [1, 2.5, "ä"], "a": None})
    assert digest == "sha256:" + __import__("hashlib").sha256('{"a":null,"b":[1,2.5,"ä"]}'.encode()).hexdigest()
    assert len(short_name(digest)) == 10
