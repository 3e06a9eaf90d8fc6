from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from hypothesis import assume, given
from hypothesis import strategies as st

from policies.deploying import decide_rollback
from policies.rollout import promote, roll_back
from policies.terms.desired import DesiredState
from policies.terms.event import Event
from policies.terms.project import Project
from policies.terms.release import Hold, Release, ReleaseMetadata, ReleaseSpec, Share
from policies.terms.revision import Revision
from policies.terms.verdict import Verdict
from tests.properties.strategies import NOW, version_of

VERSIONS = ("v-5", "v-4", "v-3", "v-2", "v-1")
"""Newest first."""
NEW = "v-6"
subsets = st.lists(st.sampled_from(VERSIONS), unique=True, max_size=4)


def parts_of_a_hundred(draw: st.DrawFn, count: int) -> list[int]:
    cuts = sorted(draw(st.lists(st.integers(0, 100), min_size=count - 1, max_size=count - 1)))
    return [after - before for before, after in zip([0, *cuts], [*cuts, 100], strict=True)]


@st.composite
def releases(draw: st.DrawFn, holds: st.SearchStrategy[list[str]] = subsets) -> Release:
    """What a person or an earlier pass may have left, also a version on hold that still has its traffic."""
    serving = draw(subsets)
    shares = parts_of_a_hundred(draw, len(serving)) if serving else []
    resting = [version for version in VERSIONS if version not in serving]
    return Release(
        metadata=ReleaseMetadata(name="web", axon="digits"),
        spec=ReleaseSpec(
            traffic=tuple(Share(version=version, share=share) for version, share in zip(serving, shares, strict=True)),
            shadow=draw(st.sampled_from(["", *resting])),
            holds=tuple(Hold(version=version, reason="bad", since=NOW) for version in draw(holds)),
        ),
    )


@st.composite
def weights(draw: st.DrawFn) -> dict[int, int]:
    indices = draw(st.lists(st.integers(0, 6), unique=True, max_size=3))
    return dict(zip(indices, parts_of_a_hundred(draw, len(indices)), strict=True)) if indices else {}


def let_in(release: Release | None, version: str, rule: dict[int, int], shadow: int | None) -> Release | Verdict:
    return promote(release, axon="digits", deployer="web", version=version, weights=rule, shadow_index=shadow, earlier=VERSIONS)


def take_out(release: Release, version: str, earlier: Sequence[str] = VERSIONS) -> Release | Verdict:
    return roll_back(release, version=version, reason="alert", alert="sha256:e", since=NOW, earlier=earlier)


def shares(release: Release) -> dict[str, int]:
    return {share.version: share.share for share in release.spec.traffic}


def held(release: Release | None) -> set[str]:
    return {hold.version for hold in release.spec.holds} if release else set()


shadows = st.none() | st.integers(0, 6)
candidates = st.sampled_from((NEW, *VERSIONS))
befores = st.none() | releases()
versions = st.sampled_from(VERSIONS)


@given(befores, candidates, weights(), shadows)
def test_shares_sum_to_a_hundred_after_a_promotion(before: Release | None, version: str, rule: Any, shadow: Any) -> None:
    after = let_in(before, version, rule, shadow)
    if isinstance(after, Release):
        assert sum(shares(after).values()) == 100
        assert len(shares(after)) == len(after.spec.traffic)


@given(befores, candidates, weights(), shadows)
def test_a_promotion_gives_a_version_on_hold_nothing(before: Release | None, version: str, rule: Any, shadow: Any) -> None:
    after = let_in(before, version, rule, shadow)
    if isinstance(after, Verdict):
        assert after.answer == "hold"
        assert version in held(before)
        assert any(version in reason for reason in after.reasons)
    else:
        assert not held(before) & ({*shares(after)} | {after.spec.shadow})
        assert version not in held(before)


@given(befores, candidates, weights(), shadows)
def test_a_promotion_keeps_holds_as_they_are(before: Release | None, version: str, rule: Any, shadow: Any) -> None:
    after = let_in(before, version, rule, shadow)
    if isinstance(after, Release):
        assert after.spec.holds == (before.spec.holds if before else ())


@given(befores, candidates, weights(), shadows)
def test_promoting_twice_is_promoting_once(before: Release | None, version: str, rule: Any, shadow: Any) -> None:
    after = let_in(before, version, rule, shadow)
    if isinstance(after, Release):
        assert let_in(after, version, rule, shadow) == after


@given(befores, weights(), shadows)
def test_the_rule_gives_shares_by_recency(before: Release | None, rule: dict[int, int], shadow: int | None) -> None:
    after = let_in(before, NEW, rule, shadow)
    assert isinstance(after, Release)
    order = [NEW, *(version for version in VERSIONS if version not in held(before))]
    wanted = {order[index]: weight for index, weight in rule.items() if index < len(order) and weight} or {NEW: 100}
    total = sum(wanted.values())
    assert shares(after).keys() == wanted.keys()
    assert all(abs(share - wanted[version] * 100 / total) < 1 for version, share in shares(after).items())
    if total == 100:
        assert shares(after) == wanted


@given(befores, candidates, weights(), shadows)
def test_who_gets_mirrored_traffic_has_no_share(before: Release | None, version: str, rule: Any, shadow: Any) -> None:
    after = let_in(before, version, rule, shadow)
    assert isinstance(after, Verdict) or after.spec.shadow not in shares(after)


@given(releases(), versions)
def test_shares_sum_to_a_hundred_after_a_rollback(before: Release, version: str) -> None:
    after = take_out(before, version)
    if isinstance(after, Release):
        assert sum(shares(after).values()) == 100
        assert len(shares(after)) == len(after.spec.traffic)
        assert all(share > 0 for share in shares(after).values())


@given(releases(), versions)
def test_a_version_that_was_rolled_back_has_no_share_and_one_hold(before: Release, version: str) -> None:
    after = take_out(before, version)
    if isinstance(after, Release):
        assert version not in shares(after)
        assert after.spec.shadow != version
        (hold,) = [hold for hold in after.spec.holds if hold.version == version]
        if version in held(before):
            assert after.spec.holds == before.spec.holds
        else:
            assert (hold.reason, hold.alert, hold.since) == ("alert", "sha256:e", NOW)
            assert after.spec.holds[:-1] == before.spec.holds


@given(releases(), versions)
def test_a_rollback_leaves_another_version_on_hold_what_it_had(before: Release, version: str) -> None:
    after = take_out(before, version)
    if isinstance(after, Release):
        assert all(shares(after).get(name, 0) == shares(before).get(name, 0) for name in held(before) - {version})


@given(releases(), versions)
def test_a_bad_version_goes_out_whoever_held_it(before: Release, version: str) -> None:
    assume(shares(before).get(version))
    after = take_out(before, version)
    assert isinstance(after, Release) or after.answer == "deny"


@given(releases(), candidates, weights(), shadows, st.booleans())
def test_mirrored_traffic_that_a_person_chose_stays_where_it_can(
    before: Release, version: str, rule: dict[int, int], shadow: int | None, is_by_hand: bool
) -> None:
    args = {"axon": "digits", "deployer": "web", "version": version, "weights": rule, "earlier": VERSIONS}
    after = promote(before, **args, shadow_index=shadow, is_shadow_by_hand=is_by_hand)  # type: ignore[arg-type]
    if isinstance(after, Release) and (is_by_hand or shadow is None):
        busy = {*shares(after), *held(after)}
        assert after.spec.shadow == ("" if before.spec.shadow in busy else before.spec.shadow)


@given(releases(holds=st.just([])), versions)
def test_the_versions_that_stay_keep_their_proportion(before: Release, version: str) -> None:
    stays = {name: share for name, share in shares(before).items() if share and name != version}
    assume(stays)
    after = take_out(before, version)
    assert isinstance(after, Release)
    assert shares(after).keys() == stays.keys()
    total = sum(stays.values())
    assert all(abs(shares(after)[name] - share * 100 / total) < 1 for name, share in stays.items())
    assert all(shares(after)[one] >= shares(after)[other] for one in stays for other in stays if stays[one] > stays[other])


@given(releases(), versions, subsets)
def test_where_none_stays_the_newest_earlier_version_without_a_hold_takes_all(
    before: Release, version: str, earlier: list[str]
) -> None:
    assume(not {name for name, share in shares(before).items() if share} - {version})
    after = take_out(before, version, earlier)
    good = [name for name in earlier if name not in {version, *held(before)}]
    if version in held(before) and not shares(before).get(version):
        assert isinstance(after, Verdict)
        assert after.answer == "hold"
    elif good:
        assert isinstance(after, Release)
        assert shares(after) == {good[0]: 100}
    else:
        assert isinstance(after, Verdict)
        assert after.answer == "deny"


@given(releases(), versions)
def test_who_gets_mirrored_traffic_after_a_rollback_has_no_share(before: Release, version: str) -> None:
    after = take_out(before, version)
    assert isinstance(after, Verdict) or after.spec.shadow not in shares(after)


@given(releases(), versions)
def test_rolling_back_twice_is_rolling_back_once(before: Release, version: str) -> None:
    after = take_out(before, version)
    if isinstance(after, Release):
        again = take_out(after, version)
        assert isinstance(again, Verdict)
        assert again.answer == "hold"


@given(releases(holds=st.just([])), st.permutations(VERSIONS))
def test_rollbacks_one_after_the_other_end_with_the_last_good_version(before: Release, bad: list[str]) -> None:
    release, gone = before, set[str]()
    for version in bad:
        after = take_out(release, version)
        if isinstance(after, Verdict):
            assert (after.answer, gone) == ("deny", set(bad) - {version})
            continue
        release, gone = after, gone | {version}
        assert not gone & shares(release).keys()
        assert sum(shares(release).values()) == 100


@given(releases(), versions, weights())
def test_what_was_rolled_back_stays_out_until_its_hold_is_lifted(before: Release, version: str, rule: dict[int, int]) -> None:
    after = take_out(before, version)
    assume(isinstance(after, Release))
    assert isinstance(after, Release)
    assert isinstance(let_in(after, version, rule, None), Verdict)
    other = let_in(after, NEW, rule, None)
    assert isinstance(other, Release)
    assert version not in shares(other)
    lifted = after.model_copy(update={"spec": after.spec.model_copy(update={"holds": ()})})
    assert isinstance(let_in(lifted, version, rule, None), Release)


@given(releases(), st.sampled_from(["", *VERSIONS]))
def test_a_rollback_goes_back_and_never_forward(before: Release, named: str) -> None:
    days = {name: NOW - timedelta(days=number) for number, name in enumerate(VERSIONS)}
    desired = DesiredState(
        revision=Revision(branch="main", commit="c" * 40, at=NOW),
        tip="c" * 40,
        project=Project(),
        releases={("digits", "web"): before},
        versions={name: version_of(name, at=at) for name, at in days.items()},
    )
    event = Event(id="e", kind="Alert", axon="digits", sensor="guard", trigger="a", at=NOW, data={"version": named})
    decided = decide_rollback(desired, "digits", "web", event)
    if not isinstance(decided, Verdict):
        version, after = decided
        new = shares(after).keys() - {name for name, share in shares(before).items() if share}
        assert shares(before)[version] > 0
        assert named in ("", version)
        assert all(days[name] < days[version] for name in new)


@given(releases(holds=st.just([])), weights(), shadows)
def test_who_a_person_put_in_stays_in_while_the_rule_leaves_room(
    before: Release, rule: dict[int, int], shadow: int | None
) -> None:
    args = {"axon": "digits", "deployer": "web", "version": NEW, "weights": rule, "shadow_index": shadow, "earlier": VERSIONS}
    after = promote(before, **args, is_by_hand=True)  # type: ignore[arg-type]
    by_rule = promote(before, **args)  # type: ignore[arg-type]
    assert isinstance(after, Release)
    assert isinstance(by_rule, Release)
    assert sum(shares(after).values()) == 100
    assert after.spec.shadow not in shares(after)
    had = {name: share for name, share in shares(before).items() if share}
    if not had:
        assert after == by_rule
        return
    own = shares(by_rule).get(NEW, 0)
    assert shares(after).get(NEW, 0) == own
    left = {name: share for name, share in shares(after).items() if name != NEW}
    assert left.keys() <= had.keys()
    assert all(abs(left.get(name, 0) - share * (100 - own) / 100) < 1 for name, share in had.items())
