"""The laws of trust where signers have paths, a time or a revocation, and where the tip alone must be signed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.terms.revision import Pin, Signature, TagFacts, TrustedKey
from policies.trust import CLOCK_SKEW, SIGNED_LATER, TrustState, judge_tag
from policies.writeback import may_touch
from tests.properties.strategies import NOW
from tests.properties.test_trust_laws import (
    CONTROLLER,
    FAULTS,
    MERGED,
    RELEASE,
    SIGNERS_FILE,
    SOURCE,
    History,
    key_of,
    pin_of,
    signature_of,
    tip_of,
)

HOUR = timedelta(hours=1)
LIMITS = (
    {},
    {},
    {"paths": ("src/",)},
    {"paths": ("src/", SIGNERS_FILE)},
    {"valid_until": NOW + 3 * HOUR},
    {"valid_from": NOW + 2 * HOUR},
    {"revoked": "left"},
)


@st.composite
def lists(draw: st.DrawFn) -> tuple[TrustedKey, ...]:
    """Alice may do everything; the others come and go, with limits."""
    others = [key_of(name, **draw(st.sampled_from(LIMITS))) for name in ("bob", "carol") if draw(st.booleans())]
    return (key_of("alice"), *others)


@st.composite
def bounded(draw: st.DrawFn, signers: Sequence[str] = ("bob", "carol", "bob", "carol", CONTROLLER, *FAULTS)) -> History:
    """Histories of several lines, with clocks that go on, and now and then back."""
    history = History()
    signing = st.sampled_from(["alice"] * len(signers) + list(signers))
    history.add((), {SIGNERS_FILE: draw(lists()), RELEASE: 0, SOURCE: 0}, draw(signing))
    at = NOW
    for number in range(1, draw(st.integers(1, 8))):
        last, before = f"{number - 1:040x}", f"{max(number - draw(st.integers(2, 3)), 0):040x}"
        shapes = [(last,), (last,), (before,), (last, before), (before, last)]
        parents = draw(st.sampled_from(shapes if number > 1 else shapes[:1]))
        parents = tuple(dict.fromkeys(parents))
        ours, theirs = history.trees[parents[0]], history.trees[parents[-1]]
        taken = draw(st.sampled_from(MERGED)) if len(parents) > 1 else MERGED[0]
        tree = {path: (ours if path in taken else theirs)[path] for path in ours}
        if path := draw(st.sampled_from(["", RELEASE, SOURCE, SOURCE, SIGNERS_FILE, SIGNERS_FILE])):
            tree[path] = draw(lists()) if path == SIGNERS_FILE else number
        at += draw(st.sampled_from([HOUR, HOUR, timedelta(0), -HOUR]))
        history.add(parents, tree, draw(signing), at)
    return history


@st.composite
def pins(draw: st.DrawFn, ancestors: bool | None = None, unsafe: bool | None = None) -> Pin:
    everyone = draw(st.booleans())
    found = pin_of(
        *(("alice", "bob", "carol") if everyone else ("alice",)),
        unsafe=draw(st.integers(0, 3)) == 0 if unsafe is None else unsafe,
    )
    return replace(found, ancestors=draw(st.booleans()) if ancestors is None else ancestors)


def relist(history: History, change: dict[str, TrustedKey | None]) -> History:
    """The same commits, with other entries in every list; None takes one out."""
    made = History()
    for facts in history.facts:
        listed = facts.signers
        if listed is not None:
            named = [change.get(key.name, key) for key in listed]
            listed = tuple(key for key in named if key is not None)
        made.facts.append(replace(facts, signers=listed))
    return made


@settings(max_examples=400)
@given(bounded(), pins(), st.data())
def test_judging_in_pieces_equals_judging_at_once(history: History, pin: Pin, data: st.DataObject) -> None:
    line = history.first_parents(tip_of(history))
    stops = sorted(data.draw(st.sets(st.integers(0, len(line) - 1))))
    *_, pieces = history.judge(pin, *(line[stop] for stop in stops), line[-1])
    (once,) = history.judge(pin, line[-1])
    assert (pieces.head, pieces.signers, pieces.fault, pieces.unsigned) == (once.head, once.signers, once.fault, once.unsigned)
    assert pieces.signer_of == once.signer_of
    assert pieces.standing == once.standing


@settings(max_examples=300)
@given(bounded(), pins(ancestors=True, unsafe=False), st.sampled_from(["bob", "carol"]))
def test_taking_a_signer_out_trusts_nothing_more(history: History, pin: Pin, name: str) -> None:
    # One who is revoked does more than be missing: what they signed elsewhere may not come in either.
    history = relist(history, {name: key_of(name)})
    (before,) = history.judge(pin, tip_of(history))
    without = relist(history, {name: None})
    (after,) = without.judge(replace(pin, signers=tuple(key for key in pin.signers if key.name != name)), tip_of(history))
    assert set(after.signer_of) <= set(before.signer_of)


@settings(max_examples=300)
@given(bounded(), pins(ancestors=True, unsafe=False), st.sampled_from(["bob", "carol"]), st.sampled_from(LIMITS[2:]))
def test_a_limit_trusts_nothing_more(history: History, pin: Pin, name: str, limits: dict[str, object]) -> None:
    history = relist(history, {name: key_of(name)})
    (before,) = history.judge(pin, tip_of(history))
    limited = key_of(name, **limits)
    there = tuple(limited if key.name == name else key for key in pin.signers)
    (after,) = relist(history, {name: limited}).judge(replace(pin, signers=there), tip_of(history))
    assert set(after.signer_of) <= set(before.signer_of)


def entries(history: History, pin: Pin, state: TrustState, commit: str, name: str) -> list[TrustedKey]:
    """What each parent's list says of somebody."""
    lists = [state.standing[parent].signers for parent in history.parents(commit)] or [pin.signers]
    return [key for named in lists for key in named if key.name == name]


@settings(max_examples=300)
@given(bounded(signers=("bob", "bob", "carol", "carol")), pins())
def test_who_may_change_some_paths_changes_those_and_merges_nothing(history: History, pin: Pin) -> None:
    (state,) = history.judge(pin, tip_of(history))
    for commit, name in state.signer_of.items():
        for key in entries(history, pin, state, commit, name) if name != CONTROLLER else ():
            if key.paths:
                facts = history.facts[int(commit, 16)]
                assert len(facts.parents) < 2
                assert all(may_touch(path, key.paths) for path in facts.changed_paths)
                assert facts.signers is None or SIGNERS_FILE in key.paths


@settings(max_examples=300)
@given(bounded(signers=("bob", "bob", "carol", "carol")), pins())
def test_who_counts_for_a_time_signs_within_it_and_nothing_older_than_what_it_follows(history: History, pin: Pin) -> None:
    (state,) = history.judge(pin, tip_of(history))
    for commit, name in state.signer_of.items():
        facts = history.facts[int(commit, 16)]
        for key in entries(history, pin, state, commit, name) if name != CONTROLLER else ():
            assert key.valid_from is None or facts.at >= key.valid_from
            assert key.valid_until is None or facts.at < key.valid_until
            if key.kind != "sigstore" and (key.valid_from or key.valid_until):
                assert all(facts.at >= history.facts[int(parent, 16)].at - CLOCK_SKEW for parent in facts.parents)


@settings(max_examples=500)
@given(bounded(signers=("bob", "bob", "carol", "carol", CONTROLLER)), pins())
def test_what_a_revoked_key_signed_counts_below_its_revocation_only(history: History, pin: Pin) -> None:
    (state,) = history.judge(pin, tip_of(history))
    for commit, standing in state.standing.items():
        for key, revocation in standing.revoked.items():
            signed = {one for one in history.reachable(commit) if state.standing[one].key == key}
            for revoking in revocation.at:
                assert revoking in history.reachable(commit)
                assert signed <= history.reachable(revoking)


@given(bounded(), pins(ancestors=False))
def test_only_somebody_who_may_change_everything_vouches_for_what_lies_below(history: History, pin: Pin) -> None:
    (state,) = history.judge(pin, tip_of(history))
    trusted = set(state.signer_of)
    passed = {commit for commit, name in state.signer_of.items() if not name}
    for commit in trusted:
        assert set(history.parents(commit)) <= trusted
        name = state.signer_of[commit]
        if name and passed & set(history.parents(commit)):
            assert name != CONTROLLER
            assert not all(key.paths for key in entries(history, pin, state, commit, name))
    if not pin.unsafe_unsigned and state.head:
        assert state.signer_of[state.head]


@given(bounded(), pins(ancestors=True))
def test_the_tip_alone_trusts_whatever_all_ancestors_would(history: History, pin: Pin) -> None:
    (strict,) = history.judge(pin, tip_of(history))
    (loose,) = history.judge(replace(pin, ancestors=False), tip_of(history))
    assert set(strict.signer_of) <= set(loose.signer_of)


def started(*entries: TrustedKey) -> tuple[History, str]:
    history = History()
    return history, history.add((), {SIGNERS_FILE: entries, RELEASE: 0, SOURCE: 0}, "alice")


@pytest.mark.parametrize("kind", ["ssh alice2", "bob", "carol"])
def test_an_old_line_of_a_revoked_key_is_merged_by_nobody(kind: str) -> None:
    name = kind.removeprefix("ssh ")
    history, root = started(key_of("alice"), key_of(name))
    tree = history.trees[root]
    side = history.add([root], {**tree, SOURCE: "side"}, name)
    main = history.add([root], {**tree, SIGNERS_FILE: (key_of("alice"), key_of(name, revoked="stolen laptop"))}, "alice")
    for parents in ([main, side], [side, main]):
        merge = history.add(parents, history.trees[main], "alice")
        *_, state = history.judge(pin_of("alice"), main, merge)
        assert state.head == main
        assert f"merges {side[:6]}… by {name}, whose key was revoked in {main[:6]}…: stolen laptop" in state.fault


def test_a_line_from_before_a_revocation_is_merged_where_the_revoked_signed_none_of_it() -> None:
    history, root = started(key_of("alice"), key_of("bob"))
    tree = history.trees[root]
    bobs = history.add([root], {**tree, SOURCE: "bob's"}, "bob")
    side = history.add([bobs], {**tree, SOURCE: "side"}, "alice")
    main = history.add([bobs], {**tree, SIGNERS_FILE: (key_of("alice"), key_of("bob", revoked="left"))}, "alice")
    merge = history.add([main, side], {**history.trees[main], SOURCE: "side"}, "alice")
    (state,) = history.judge(pin_of("alice"), merge)
    assert (state.head, state.fault) == (merge, "")


def test_a_revoked_key_does_not_come_back_when_it_is_named_again() -> None:
    history, root = started(key_of("alice"), key_of("bob", revoked="left"))
    again = history.add([root], {**history.trees[root], SIGNERS_FILE: (key_of("alice"), key_of("bob"))}, "alice")
    tip = history.add([again], {**history.trees[again], SOURCE: 1}, "bob")
    (state,) = history.judge(pin_of("alice"), tip)
    assert state.head == again
    assert "signed by bob, whose key was revoked in 000000…: left" in state.fault


def test_a_merge_that_takes_the_list_of_before_does_not_bring_a_revoked_key_back() -> None:
    history, root = started(key_of("alice"), key_of("bob"))
    side = history.add([root], {**history.trees[root], SOURCE: "side"}, "alice")
    revoking = {**history.trees[root], SIGNERS_FILE: (key_of("alice"), key_of("bob", revoked="left"))}
    main = history.add([root], revoking, "alice")
    for parents in ([side, main], [main, side]):
        merge = history.add(parents, history.trees[side], "alice")
        tip = history.add([merge], {**history.trees[merge], SOURCE: 1}, "bob")
        (state,) = history.judge(pin_of("alice"), tip)
        assert state.head == merge
        assert "signed by bob, whose key was revoked" in state.fault


TIMES = {
    "before the first instant": (NOW + HOUR - timedelta(seconds=1), False),
    "at the first instant": (NOW + HOUR, True),
    "before the last instant": (NOW + 2 * HOUR - timedelta(seconds=1), True),
    "at the last instant, which does not count any more": (NOW + 2 * HOUR, False),
}


@pytest.mark.parametrize("name", ["dave", "bob", "carol"])
@pytest.mark.parametrize("case", TIMES)
def test_the_time_of_a_signer_has_a_first_instant_and_an_end(case: str, name: str) -> None:
    at, counts = TIMES[case]
    history, root = started(key_of("alice"), key_of(name, valid_from=NOW + HOUR, valid_until=NOW + 2 * HOUR))
    tip = history.add([root], {**history.trees[root], SOURCE: 1}, name, at)
    (state,) = history.judge(pin_of("alice"), tip)
    assert (state.head == tip) is counts


def test_another_certificate_of_the_same_key_is_another_signer_and_as_revoked() -> None:
    altered = replace(key_of("bob"), certificate="the same key, without what it revoked")
    history, root = started(key_of("alice"), altered)
    tip = history.add([root], {**history.trees[root], SOURCE: 1}, "bob")
    (state,) = history.judge(pin_of("alice"), tip)
    assert state.head == root
    assert "none of the 2 keys" in state.fault


@pytest.mark.parametrize("pinned", [True, False])
def test_a_revocation_in_the_pin_reaches_back_to_its_beginning(pinned: bool) -> None:
    history, root = started(key_of("alice"), key_of("bob"))
    tip = history.add([root], {**history.trees[root], SOURCE: 1}, "bob")
    pin = pin_of("alice")
    if pinned:
        pin = replace(pin, signers=(*pin.signers, key_of("bob", revoked="stolen")))
    (state,) = history.judge(pin, tip)
    assert state.head == (root if pinned else tip)


def test_who_has_paths_cannot_take_the_branch_back_by_a_merge() -> None:
    history, old = started(key_of("alice"), key_of("bob", paths=("src/",)))
    new = history.add([old], {**history.trees[old], RELEASE: 1}, "alice")
    merge = history.add([old, new], history.trees[old], "bob")
    *_, state = history.judge(pin_of("alice"), new, merge)
    assert state.head == new
    assert "the key of bob, which never merges" in state.fault


@pytest.mark.parametrize(("paths", "counts"), [(("src/",), False), (("src/", "myelin.yam"), False), ((SIGNERS_FILE,), True)])
def test_the_signers_are_changed_by_who_may_change_that_very_file(paths: tuple[str, ...], counts: bool) -> None:
    history, root = started(key_of("alice"), key_of("bob", paths=paths))
    change = {**history.trees[root], SIGNERS_FILE: (key_of("alice"), key_of("bob"), key_of("carol"))}
    tip = history.add([root], change, "bob")
    (state,) = history.judge(pin_of("alice"), tip)
    assert (state.head == tip) is counts
    assert counts or f"may not touch {SIGNERS_FILE}, only {', '.join(paths)}" in state.fault


AGES = {
    "a commit that says when it was": (timedelta(0), timedelta(0), True),
    "a commit with a date of before its parent": (-2 * HOUR, -2 * HOUR, False),
    "a commit by a clock that is a little late": (-CLOCK_SKEW, -CLOCK_SKEW, True),
    "a signature made later than its commit": (timedelta(0), 5 * HOUR, True),
    "a signature that claims to be older than its commit": (timedelta(0), -SIGNED_LATER - CLOCK_SKEW, False),
}


@pytest.mark.parametrize("case", AGES)
def test_an_openpgp_signature_is_not_older_than_what_it_signs(case: str) -> None:
    """Else a key that has expired signs on, with a date of before."""
    since, signed, counts = AGES[case]
    history, root = started(key_of("alice"), key_of("bob"))
    tip = history.add([root], {**history.trees[root], SOURCE: 1}, "bob", NOW + since)
    facts = history.facts[-1]
    assert facts.signature is not None
    history.facts[-1] = replace(facts, signature=replace(facts.signature, at=NOW + signed))
    (state,) = history.judge(pin_of("alice"), tip)
    assert (state.head == tip) is counts


def test_a_time_that_a_log_proves_counts_before_the_one_that_is_claimed() -> None:
    for proven, counts in ((NOW, True), (NOW + 4 * HOUR, False)):
        history, root = started(key_of("alice"), key_of("carol", valid_until=NOW + 3 * HOUR))
        tip = history.add([root], {**history.trees[root], SOURCE: 1}, "carol", NOW - 9 * HOUR)
        facts = history.facts[-1]
        assert facts.signature is not None
        history.facts[-1] = replace(facts, signature=replace(facts.signature, at=proven))
        (state,) = history.judge(pin_of("alice"), tip)
        assert (state.head == tip) is counts


def test_a_trusted_tip_vouches_for_the_signers_that_it_leaves_and_a_key_with_paths_does_not() -> None:
    limited = key_of("bob", paths=("releases/",))
    for by, counts in (("alice", True), ("bob", False), (CONTROLLER, False)):
        history, root = started(key_of("alice"), limited)
        added = {**history.trees[root], SIGNERS_FILE: (key_of("alice"), limited, key_of("carol"))}
        unsigned = history.add([root], added, "unsigned")
        tip = history.add([unsigned], {**added, RELEASE: 1}, by)
        last = history.add([tip], {**added, SOURCE: 1}, "carol")
        pin = replace(pin_of("alice"), ancestors=False)
        *_, state = history.judge(pin, root, unsigned, tip, last)
        assert state.head == (last if counts else root)
        assert state.unsigned == (1 if counts else 0)


def test_a_revoked_signer_is_not_let_pass_where_the_tip_alone_must_be_signed() -> None:
    history, root = started(key_of("alice"), key_of("bob", revoked="left"))
    bobs = history.add([root], {**history.trees[root], SOURCE: 1}, "bob")
    tip = history.add([bobs], {**history.trees[bobs], SOURCE: 2}, "alice")
    (state,) = history.judge(replace(pin_of("alice"), ancestors=False), tip)
    assert state.head == root
    assert "whose key was revoked" in state.fault


def tag(by: str = "alice", at: datetime = NOW, **values: object) -> TagFacts:
    signature: Signature | None = signature_of(by, at) if by != "unsigned" else None
    facts = TagFacts(name="v1", target="a" * 40, target_kind="commit", at=at, signature=signature)
    return replace(facts, **values)  # type: ignore[arg-type]


EVERYONE = (
    key_of("alice"),
    key_of("bob", paths=("src/",)),
    key_of("carol", valid_until=NOW),
    key_of("dave", revoked="left"),
)
TAGS = {
    "a tag by somebody who may change everything": (tag(), ("alice", "")),
    "an unsigned tag": (tag("unsigned"), ("", "got an unsigned one")),
    "a tag by a stranger": (tag("mallory"), ("", "none of the 4 keys")),
    "a tag by somebody who may change some paths": (tag("bob"), ("", "may change src/ only, and no tag")),
    "a tag by somebody whose time is over": (tag("carol"), ("", "who counted until")),
    "a tag by somebody of whose time it still is": (tag("carol", NOW - HOUR), ("carol", "")),
    "a tag by a revoked signer": (tag("dave"), ("", "whose key was revoked: left")),
    "a tag under another name than it was signed with": (tag(name="v2"), ("", "signed as v2")),
    "a tag of a tag": (tag(target_kind="tag"), ("", "expected the tag of a commit")),
    "a tag that was changed": (tag(signature=signature_of("alice", NOW, valid=False)), ("", "does not fit the tag")),
}


@pytest.mark.parametrize("case", TAGS)
def test_whose_tags_count(case: str) -> None:
    facts, (name, fault) = TAGS[case]
    found = judge_tag(facts, EVERYONE, name="v1")
    assert found[0] == name
    assert fault in found[1]
    assert bool(found[1]) is bool(fault)


def test_nobody_signs_a_tag_where_nobody_is_named() -> None:
    assert judge_tag(tag(), (), name="v1")[0] == ""
