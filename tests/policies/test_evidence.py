"""What people are shown before they merge."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from policies.evidence import BARS, MARKER, body_of, sparkline
from policies.terms.proposal import Proposal
from policies.terms.release import Hold, Release, ReleaseMetadata, ReleaseSpec, Share
from policies.terms.version import BackendRecord, Version, VersionMetadata, VersionSpec

AT = datetime(2026, 1, 31, 12, tzinfo=UTC)
IMAGE, MODEL, DATA = ("sha256:" + letter * 64 for letter in "abc")


def version(name: str, accuracy: float = 0.9, *, minute: int = 0, **parameters: object) -> Version:
    return Version(
        metadata=VersionMetadata(name=name, axon="digits"),
        spec=VersionSpec(
            deployer="deployer",
            commit="1" * 40,
            axon_digest="sha256:" + "d" * 64,
            event_set="sha256:" + "e" * 64,
            events=("sha256:" + "f" * 64,),
            run="r-1",
            backends=(BackendRecord(model="m", backend="b", image=IMAGE, artifact=MODEL, trial="0_0_3"),),
            routes=(),
            data=(DATA,),
            parameters=parameters,
            metrics={"accuracy": accuracy},
            created_at=AT.replace(minute=minute),
        ),
    )


def release(*holds: Hold, **shares: int) -> Release:
    return Release(
        metadata=ReleaseMetadata(name="deployer", axon="digits"),
        spec=ReleaseSpec(
            traffic=tuple(Share(version=f"v-{name}", share=share) for name, share in shares.items()), holds=tuple(holds)
        ),
    )


def proposal(kind: str = "promotion", name: str = "v-new") -> Proposal:
    return Proposal(
        task_run="t",
        run="r-1",
        axon="digits",
        kind=kind,
        version=name,
        branch="myelin/x",
        evidence="sha256:0",
        at=AT,  # type: ignore[arg-type]
    )


def shown(made: Version, others: list[Version], before: Release | None, after: Release) -> str:
    return body_of(
        proposal(), version=made, others=others, before=before, after=after, commit="1" * 40, alert="", shown="sha256:9"
    )


def test_a_candidate_is_shown_beside_the_incumbent() -> None:
    others = [version("v-old", 0.8, rate=0.1), version("v-older", 0.7, minute=0, rate=0.2)]
    text = shown(version("v-new", 0.9, minute=5, rate=0.01), others, release(old=80, older=20), release(new=100))
    assert text.startswith(MARKER)
    assert "| v-new | 0 % | 100 % |" in text
    assert "| v-old | 80 % | 0 % |" in text
    assert "| accuracy | 0.9 | 0.8 | +0.1 |" in text
    assert "| rate | 0.01 | 0.1 |" in text
    assert f"data `{DATA}` (the incumbent's too)" in text
    assert f"image of b `{IMAGE}`" in text
    assert "trial 0&#95;0&#95;3" in text
    assert "sha256:9" in text


def test_the_first_version_has_nobody_beside_it() -> None:
    text = shown(version("v-new"), [], None, release(new=100))
    assert "| Metric | v-new | incumbent | difference | versions |" in text
    assert "| accuracy | 0.9 | – | – | ▄ |" in text


def test_a_rollback_names_its_alert_and_says_that_traffic_moved() -> None:
    hold = Hold(version="v-bad", reason="accuracy value 0.5, threshold 0.8", alert="e", since=AT)
    bad, good = version("v-bad", 0.5, minute=2), version("v-good", 0.9)
    text = body_of(
        proposal("rollback", "v-bad"),
        version=None,
        others=[bad, good],
        before=release(bad=100),
        after=release(hold, good=100),
        commit="1" * 40,
        alert=hold.reason,
        shown="sha256:9",
    )
    assert "accuracy value 0.5, threshold 0.8" in text
    assert "It has no traffic already" in text
    assert "| accuracy | 0.5 | – | – |" in text


@given(st.lists(st.one_of(st.none(), st.floats()), max_size=20))
def test_a_sparkline_has_one_bar_for_each_value(values: list[float | None]) -> None:
    line = sparkline(values)
    assert set(line) <= {*BARS, "·"}
    assert len(line) in (0, len(values))


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=2, max_size=20))
def test_a_larger_value_never_has_a_lower_bar(values: list[float]) -> None:
    line = sparkline(values)
    for one, bar in zip(values, line, strict=True):
        for other, its in zip(values, line, strict=True):
            assert one > other or BARS.index(bar) <= BARS.index(its)


@given(st.text(max_size=40), st.text(max_size=40))
def test_no_name_or_value_can_break_a_table_mention_a_person_or_write_markup(name: str, value: str) -> None:
    made = version("v-new", **{name or "x": value})
    text = shown(made, [], None, release(new=100))
    plain = shown(version("v-new", x="y"), [], None, release(new=100))
    assert text.count("\n") == plain.count("\n")
    assert text.count("|") == plain.count("|")
    assert not re.search(r"[<>@!\[\]]", text.replace(MARKER, ""))


def test_two_looks_at_one_state_write_one_text() -> None:
    made, others = version("v-new", minute=5), [version("v-a"), version("v-b", minute=1)]
    assert shown(made, others, release(a=100), release(new=100)) == shown(made, others[::-1], release(a=100), release(new=100))
