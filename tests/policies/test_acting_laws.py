"""Laws of what a person asks for by command."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from policies.acting import Give, GoBack, HoldBack, Lift, Wish, grant, instant_of, known, resumed, suspended, with_signer
from policies.errors import DesiredStateError
from policies.identity import axon_digest
from policies.terms.release import Release
from policies.terms.verdict import Verdict
from tests.properties.test_rollout_laws import NEW, VERSIONS, held, releases, shares

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
names = st.sampled_from((NEW, *VERSIONS))
befores = st.none() | releases()
wishes = st.one_of(
    st.builds(HoldBack, version=names, reason=st.just("bad")),
    st.builds(Lift, version=names),
    st.builds(Give, version=names, share=st.integers(0, 100), lift=st.booleans()),
    st.builds(GoBack, reason=st.sampled_from(["", "bad"])),
)


def granted(release: Release | None, wish: Wish, versions: Sequence[str] = (NEW, *VERSIONS)) -> Release | Verdict:
    return grant(release, wish, axon="digits", deployer="web", versions=versions, now=NOW)


@given(befores, wishes)
def test_shares_sum_to_a_hundred_or_there_are_none(before: Release | None, wish: Wish) -> None:
    after = granted(before, wish)
    if isinstance(after, Release):
        assert sum(shares(after).values()) == (100 if after.spec.traffic else 0)
        assert len(shares(after)) == len(after.spec.traffic)


@given(befores, wishes)
def test_a_version_on_hold_is_given_no_traffic(before: Release | None, wish: Wish) -> None:
    after = granted(before, wish)
    if isinstance(after, Release):
        had = shares(before) if before else {}
        assert all(shares(after).get(name, 0) <= had.get(name, 0) for name in held(after))


@given(befores, names)
def test_lifting_a_hold_that_was_just_set_changes_nothing(before: Release | None, version: str) -> None:
    after = granted(before, HoldBack(version=version, reason="bad"))
    assume(isinstance(after, Release))
    assert isinstance(after, Release)
    assert version in held(after)
    again = granted(after, Lift(version=version))
    assert isinstance(again, Release)
    assert again.spec == (before.spec if before else Release.model_fields["spec"].default)


@given(befores, wishes)
def test_a_wish_is_not_granted_twice(before: Release | None, wish: Wish) -> None:
    assume(not isinstance(wish, GoBack))  # that goes back one more
    after = granted(before, wish)
    if isinstance(after, Release):
        assert isinstance(granted(after, wish), Verdict)


@given(befores, names, st.integers(0, 100), st.booleans())
def test_who_is_promoted_has_that_share_and_the_others_keep_their_order(
    before: Release | None, version: str, share: int, lift: bool
) -> None:
    after = granted(before, Give(version=version, share=share, lift=lift))
    if isinstance(after, Release):
        assert shares(after).get(version, 0) == share
        had = {name: item for name, item in (shares(before) if before else {}).items() if item and name != version}
        left = {name: item for name, item in shares(after).items() if name != version}
        assert left.keys() <= had.keys()
        assert all(left.get(one, 0) >= left.get(other, 0) for one in left for other in left if had[one] > had[other])
        assert after.spec.shadow not in shares(after)


@given(releases(), names, st.integers(0, 100))
def test_a_version_on_hold_is_promoted_only_with_its_hold_lifted(given: Release, version: str, share: int) -> None:
    there = granted(given, HoldBack(version=version, reason="bad"))
    before = there if isinstance(there, Release) else given
    refused = granted(before, Give(version=version, share=share))
    assert isinstance(refused, Verdict)
    assert refused.answer == "hold"
    assert "--lift" in refused.reasons[0]
    after = granted(before, Give(version=version, share=100, lift=True))
    assert isinstance(after, Release)
    assert version not in held(after)


@given(befores, wishes)
def test_no_wish_touches_another_versions_hold(before: Release | None, wish: Wish) -> None:
    after = granted(before, wish)
    if isinstance(after, Release):
        kept = {hold for hold in (before.spec.holds if before else ()) if hold.version != getattr(wish, "version", "")}
        gone = kept - set(after.spec.holds)
        # Going back may take out a version that was served in spite of its hold: then it has a new one.
        assert isinstance(wish, GoBack) or not gone
        assert {hold.version for hold in gone} <= held(after)


@given(releases(holds=st.just([])))
def test_going_back_takes_out_the_newest_that_serves_and_holds_it(before: Release) -> None:
    after = granted(before, GoBack(reason="bad"))
    served = [name for name in VERSIONS if shares(before).get(name)]
    if isinstance(after, Release):
        assert served[0] not in shares(after)
        assert held(after) == {served[0]}
        assert set(shares(after)) <= set(VERSIONS[VERSIONS.index(served[0]) + 1 :])
    else:
        assert not served or served == [VERSIONS[-1]]


@pytest.mark.parametrize("share", [-1, 101])
def test_a_share_out_of_bounds_is_refused(share: int) -> None:
    with pytest.raises(DesiredStateError, match="within 0-100"):
        granted(None, Give(version=NEW, share=share))


def test_a_version_is_known_by_its_beginning_and_a_slip_is_told_the_nearest() -> None:
    names = ["v-7k3q9d0m2x", "v-7k3q000000", "v-1a2b3c4d5e"]
    assert known("v-1a2", names) == "v-1a2b3c4d5e"
    for wrong, words in (("v-7k3q", "write more of it"), ("v-1a2b3c4d5f", "the nearest is v-1a2b3c4d5e"), ("v-", "recorded")):
        with pytest.raises(DesiredStateError, match=words):
            known(wrong, names)
    with pytest.raises(DesiredStateError, match="there is none yet"):
        known("v-7", [])


def test_an_end_is_an_instant_or_a_duration_and_lies_ahead() -> None:
    assert instant_of("36h", NOW) == NOW + timedelta(hours=36)
    assert instant_of("2026-02-01T08:00:00Z", NOW) == datetime(2026, 2, 1, 8, tzinfo=UTC)
    assert instant_of("2026-02-01T08:00:00+01:00", NOW) == datetime(2026, 2, 1, 7, tzinfo=UTC)
    for wrong in ("tomorrow", "2026-01-31T12:00:00Z", "2025-01-01", "0s", ""):
        with pytest.raises(DesiredStateError):
            instant_of(wrong, NOW)


manifests = st.dictionaries(st.sampled_from("abc"), st.integers(-9, 9), max_size=2).map(
    lambda spec: {"kind": "Axon", "spec": spec}
)


@given(manifests, st.text(), st.none() | st.just(NOW))
def test_resuming_undoes_suspending_and_nothing_else(manifest: dict[str, Any], reason: str, until: datetime | None) -> None:
    there = suspended(manifest, reason=reason, until=until)
    assert there["spec"]["suspend"]["reason"] == reason
    assert resumed(there) == manifest == resumed(manifest)
    named = {"kind": "Axon", "spec": {**manifest["spec"], "suspend": None}}
    assert axon_digest({**there, "spec": {**named["spec"], **there["spec"]}}, {}) == axon_digest(named, {})


def test_a_signer_comes_in_once_by_name_and_by_key() -> None:
    first = with_signer({"kind": "Project"}, {"name": "ada", "ssh": "ssh-ed25519 AAAA ada@home"})
    both = with_signer(first, {"name": "bob", "identity": "bob@example.com", "issuer": "https://example.com"})
    assert [signer["name"] for signer in both["spec"]["trust"]["signers"]] == ["ada", "bob"]
    for again in ({"name": "ada", "ssh": "ssh-ed25519 BBBB"}, {"name": "eve", "ssh": "ssh-ed25519 AAAA other"}):
        with pytest.raises(DesiredStateError, match="already"):
            with_signer(both, again)
