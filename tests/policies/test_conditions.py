"""What a cluster shows: conditions as kstatus reads them, and the mirrors of what Git says."""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.conditions import AS_DESIRED, LONGEST_MESSAGE, conditions
from policies.crds import DEFINITIONS, custom_resource_definition
from policies.mirrors import LONGEST_OUTCOMES, Mirror, mirrors, shown
from policies.serving import proxy_name, server_name
from policies.terms.desired import DesiredState
from policies.terms.digest import Digest
from policies.terms.observed import Observed, Recorded
from policies.terms.outcome import Outcome
from policies.terms.project import Project
from policies.terms.release import Release, ReleaseMetadata, ReleaseSpec, Share
from policies.terms.revision import Revision
from policies.terms.task import ServerState
from policies.terms.version import BackendRecord, Version
from tests.properties.strategies import axon_of, version_of

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
states = st.sampled_from(["done", "waiting", "stalled"])
reasons = st.sampled_from(["AsDesired", "Running", "Untrusted", "Bug"])
outcome_lists = st.lists(
    st.builds(
        Outcome, state=states, subject=st.sampled_from(["digits", "digits/fit"]), reason=reasons, message=st.text(max_size=9)
    ),
    max_size=4,
)


def instant(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def by_type(found: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    assert len({item["type"] for item in found}) == len(found)
    return {str(item["type"]): item for item in found}


def kstatus(found: Sequence[Mapping[str, Any]]) -> str:
    """What `kstatus.Compute` makes of an object with these conditions, whose generation was observed.

    Source: checkGenericProperties in sigs.k8s.io/cli-utils/pkg/kstatus/status/generic.go.
    """
    for item in found:
        if item["status"] == "True" and item["type"] in ("Reconciling", "Stalled"):
            return "InProgress" if item["type"] == "Reconciling" else "Failed"
    ready = next((item["status"] for item in found if item["type"] == "Ready"), "True")
    return "Current" if ready == "True" else "InProgress"


# Laws of conditions.


@given(outcome_lists, st.integers(1, 9))
def test_ready_is_always_there_and_the_others_only_while_they_are_true(outcomes: list[Outcome], generation: int) -> None:
    found = by_type(conditions(outcomes, now=NOW, generation=generation))
    told = {item.state for item in outcomes}
    assert found["Ready"]["status"] == ("False" if told & {"waiting", "stalled"} else "True")
    assert set(found) == {"Ready"} | ({"Reconciling"} if "waiting" in told else set()) | (
        {"Stalled"} if "stalled" in told else set()
    )
    assert all(item["status"] == "True" for kind, item in found.items() if kind != "Ready")
    assert {item["observedGeneration"] for item in found.values()} == {generation}


@given(outcome_lists)
def test_kstatus_waits_for_what_moves_and_gives_up_what_a_person_must_mend(outcomes: list[Outcome]) -> None:
    told = {item.state for item in outcomes}
    expected = "Failed" if "stalled" in told else "InProgress" if "waiting" in told else "Current"
    assert kstatus(conditions(outcomes, now=NOW, generation=1)) == expected


@given(st.lists(outcome_lists, min_size=1, max_size=5))
def test_an_instant_moves_only_with_its_status(history: list[list[Outcome]]) -> None:
    before: list[dict[str, Any]] = []
    for number, outcomes in enumerate(history):
        at = NOW + timedelta(minutes=number)
        found = conditions(outcomes, now=at, generation=1, before=before)
        for kind, item in by_type(found).items():
            earlier = by_type(before).get(kind)
            stays = earlier is not None and earlier["status"] == item["status"]
            assert item["lastTransitionTime"] == (earlier["lastTransitionTime"] if earlier and stays else instant(at))
        before = found


@given(outcome_lists, outcome_lists)
def test_the_same_outcomes_later_say_the_same(outcomes: list[Outcome], earlier: list[Outcome]) -> None:
    before = conditions(earlier, now=NOW, generation=1)
    once = conditions(outcomes, now=NOW + timedelta(minutes=1), generation=2, before=before)
    assert conditions(outcomes, now=NOW + timedelta(hours=1), generation=2, before=once) == once
    assert before == conditions(earlier, now=NOW, generation=1)


@given(outcome_lists)
def test_the_first_of_the_worst_is_named(outcomes: list[Outcome]) -> None:
    found = by_type(conditions(outcomes, now=NOW, generation=1))
    worst = next((item for state in ("stalled", "waiting") for item in outcomes if item.state == state), None)
    ready = found["Ready"]
    assert (ready["reason"], ready["message"]) == (
        (worst.reason, f"{worst.subject}: {worst.message}") if worst else ("AsDesired", AS_DESIRED)
    )


@given(outcome_lists, st.sampled_from(["True", "False"]))
def test_further_conditions_keep_their_instant_like_the_others(outcomes: list[Outcome], status: str) -> None:
    more = [{"type": "PutBack", "status": status, "reason": "EditedByHand", "message": "m"}]
    once = conditions(outcomes, now=NOW, generation=1, more=more)
    later = conditions(outcomes, now=NOW + timedelta(hours=1), generation=1, more=more, before=once)
    assert later == once
    assert more == [{"type": "PutBack", "status": status, "reason": "EditedByHand", "message": "m"}]


@given(st.builds(Outcome, state=states, subject=st.just("digits"), reason=reasons | st.just(""), message=st.text(max_size=3000)))
def test_the_api_server_takes_every_condition(outcome: Outcome) -> None:
    version = custom_resource_definition("Axon")["spec"]["versions"][0]
    rules = version["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]["conditions"]["items"]
    for item in conditions([outcome], now=NOW, generation=1):
        assert set(rules["required"]) <= item.keys() <= rules["properties"].keys()
        assert re.search(rules["properties"]["reason"]["pattern"], item["reason"])
        assert item["status"] in rules["properties"]["status"]["enum"]
        assert len(item["message"]) <= LONGEST_MESSAGE <= rules["properties"]["message"]["maxLength"]
        assert datetime.fromisoformat(item["lastTransitionTime"]) == NOW


# Mirrors.

REVISION = Revision(branch="main", commit="a" * 40, at=NOW)
BACKEND = BackendRecord(model="M", backend="b", image="sha256:" + "1" * 64)
V1 = version_of("v-1", at=NOW, backends=(BACKEND,))
V2 = version_of("v-2", at=NOW + timedelta(hours=1), backends=(BACKEND,))


def server(name: str, phase: Any = "ready", message: str = "") -> ServerState:
    return ServerState(name=name, phase=phase, address=f"{name}.team-a.svc:8080", image=Digest(""), message=message)


def look(*servers: ServerState) -> Observed:
    return Observed(recorded=Recorded(), servers={item.name: item for item in servers})


def release(axon: str = "digits", deployer: str = "web", **shares: int) -> Release:
    traffic = tuple(Share(version=name.replace("_", "-"), share=share) for name, share in shares.items())
    return Release(metadata=ReleaseMetadata(name=deployer, axon=axon), spec=ReleaseSpec(traffic=traffic))


def state(*releases: Release, versions: Sequence[Version] = (), axons: Sequence[str] = ("digits",)) -> DesiredState:
    return DesiredState(
        revision=REVISION,
        tip=REVISION.commit,
        project=Project(),
        axons={name: axon_of(name, sensors=[]) for name in axons},
        releases={(item.metadata.axon, item.metadata.name): item for item in releases},
        versions={item.metadata.name: item for item in versions},
    )


def found(kind: str, name: str, desired: DesiredState, observed: Observed, *outcomes: Outcome) -> Mirror:
    (mirror,) = [item for item in mirrors(desired, observed, outcomes) if (item.kind, item.name) == (kind, name)]
    return mirror


def said(word: str, subject: str, reason: str, message: str = "m", **more: Any) -> Outcome:
    state_of: Any = word
    return Outcome(state=state_of, subject=subject, reason=reason, message=message, **more)


PROXY, SERVER_1, SERVER_2 = proxy_name("digits", "web"), server_name(V1, BACKEND), server_name(V2, BACKEND)
ALL = look(server(PROXY), server(SERVER_1), server(SERVER_2))
ONE_SERVES = state(release(v_1=100), versions=[V1])
TWO_SERVE = state(release(v_1=80, v_2=20), versions=[V1, V2])

STATUSES: dict[str, tuple[Mirror, dict[str, Any]]] = {
    "an axon of which nothing serves": (
        found("Axon", "digits", state(), look()),
        {"axon": "digits", "revision": f"main@sha1:{'a' * 40}", "outcomes": []},
    ),
    "an axon shows its version with the greatest share, and where it answers": (
        found("Axon", "digits", TWO_SERVE, ALL),
        {
            "axon": "digits",
            "revision": f"main@sha1:{'a' * 40}",
            "outcomes": [],
            "version": "v-1",
            "share": 80,
            "url": f"http://{PROXY}.team-a.svc:8080/digits/",
        },
    ),
    "a release tells all shares, the greatest first": (
        found("Release", "digits-web", state(release(v_2=20, v_1=80, v_3=0), versions=[V1, V2]), ALL),
        {
            "axon": "digits",
            "revision": f"main@sha1:{'a' * 40}",
            "traffic": "v-1 80, v-2 20",
            "url": f"http://{PROXY}.team-a.svc:8080/digits/",
            "version": "v-1",
            "share": 80,
        },
    ),
    "a release of which nothing serves": (
        found("Release", "digits-web", state(release()), look()),
        {"axon": "digits", "revision": f"main@sha1:{'a' * 40}", "traffic": "", "url": ""},
    ),
    "a version that serves has an address of its own": (
        found("Version", "v-1", TWO_SERVE, ALL),
        {
            "axon": "digits",
            "version": "v-1",
            "share": 80,
            "revision": f"main@sha1:{'c' * 40}",
            "url": f"http://{PROXY}.team-a.svc:8080/digits/versions/v-1/",
        },
    ),
    "a version that rests has none": (
        found("Version", "v-1", state(release(v_2=100), versions=[V1, V2]), look(server(PROXY), server(SERVER_2))),
        {"axon": "digits", "version": "v-1", "share": 0, "revision": f"main@sha1:{'c' * 40}", "url": ""},
    ),
}


@pytest.mark.parametrize(("mirror", "status"), STATUSES.values(), ids=list(STATUSES))
def test_a_status_says_what_serves(mirror: Mirror, status: dict[str, Any]) -> None:
    assert mirror.status == status


WAITS: dict[str, tuple[Mirror, tuple[tuple[str, str], ...]]] = {
    "a release whose proxy and servers answer waits for nothing": (found("Release", "digits-web", TWO_SERVE, ALL), ()),
    "a release whose proxy is not there waits": (
        found("Release", "digits-web", ONE_SERVES, look(server(SERVER_1))),
        (("waiting", "its proxy is not there yet"),),
    ),
    "a release whose proxy starts waits": (
        found("Release", "digits-web", ONE_SERVES, look(server(PROXY, "starting"), server(SERVER_1))),
        (("waiting", "its proxy does not answer yet"),),
    ),
    "a release whose proxy failed says why": (
        found(
            "Release", "digits-web", ONE_SERVES, look(server(PROXY, "failed", "expected exit code 0, got 1"), server(SERVER_1))
        ),
        (("waiting", "expected exit code 0, got 1"),),
    ),
    "a release one of whose versions does not answer is not ready": (
        found("Release", "digits-web", TWO_SERVE, look(server(PROXY), server(SERVER_1), server(SERVER_2, "starting"))),
        (("waiting", "the servers of v-2 do not answer yet"),),
    ),
    "a version without traffic may rest while its release is ready": (
        found("Release", "digits-web", state(release(v_1=100), versions=[V1, V2]), look(server(PROXY), server(SERVER_1))),
        (),
    ),
    "a release of which no version was made has nothing to wait for": (
        found("Release", "digits-web", state(release()), look()),
        (),
    ),
    "a release says what stalls one of its versions": (
        found("Release", "digits-web", ONE_SERVES, look(server(PROXY)), said("stalled", "digits/v-1", "ImagePull", "no access")),
        (("stalled", "no access"),),
    ),
    "what stalls a version that rests is no word on the release": (
        found("Release", "digits-web", ONE_SERVES, ALL, said("stalled", "digits/v-2", "ImagePull", "no access")),
        (),
    ),
    "a release that names an unknown version is stalled": (
        found(
            "Release", "digits-web", state(release(v_9=100)), look(), said("stalled", "digits/web", "UnknownVersion", "no record")
        ),
        (("stalled", "no record"),),
    ),
    "a version that has traffic and does not answer waits": (
        found("Version", "v-1", ONE_SERVES, look()),
        (("waiting", "its servers do not answer yet"),),
    ),
    "a version that rests waits for nothing": (found("Version", "v-1", state(versions=[V1]), look()), ()),
    "a version says what happened to it": (
        found("Version", "v-1", ONE_SERVES, look(), said("stalled", "digits/v-1", "ImagePull", "no access")),
        (("stalled", "no access"),),
    ),
    "an axon has all that concerns it": (
        found(
            "Axon", "digits", state(), look(), said("waiting", "digits/fit", "Running", "runs"), said("done", "digits", "Noted")
        ),
        (("waiting", "runs"), ("done", "m")),
    ),
    "an axon has nothing of another whose name only begins like its own": (
        found(
            "Axon",
            "digits",
            state(axons=["digits", "digits2"]),
            look(),
            said("stalled", "digits2/fit", "Bug"),
            said("done", "main", "x"),
        ),
        (),
    ),
    "nobody is told of housekeeping": (
        found("Axon", "digits", state(), look(), said("done", "digits/jobs", "Freed", is_quiet=True)),
        (),
    ),
}


@pytest.mark.parametrize(("mirror", "expected"), WAITS.values(), ids=list(WAITS))
def test_a_mirror_says_what_keeps_it_from_being_ready(mirror: Mirror, expected: tuple[tuple[str, str], ...]) -> None:
    assert tuple((item.state, item.message) for item in mirror.outcomes) == expected


def test_mirrors_say_what_git_says_and_where_to_change_it() -> None:
    found_all = list(mirrors(TWO_SERVE, ALL, ()))
    assert [(item.kind, item.name, item.file) for item in found_all] == [
        ("Axon", "digits", "axons/digits/axon.yaml"),
        ("Release", "digits-web", "releases/digits/web.yaml"),
        ("Version", "v-1", "versions/digits/v-1.yaml"),
        ("Version", "v-2", "versions/digits/v-2.yaml"),
    ]
    axon, first, *_ = found_all
    document = TWO_SERVE.axons["digits"].document
    assert {"spec": document.spec.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)} == axon.content
    assert first.content == {"spec": {"traffic": [{"version": "v-1", "share": 80}, {"version": "v-2", "share": 20}]}}
    assert found_all[2].content["signature"] == V1.signature
    assert all(set(item.status) <= status_keys(item.kind) for item in found_all)


def status_keys(kind: str) -> set[str]:
    version = custom_resource_definition(kind)["spec"]["versions"][0]
    return set(version["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"])


def test_releases_and_versions_of_different_axons_never_share_a_mirror() -> None:
    desired = state(release("a", "b-c"), release("a-b", "c"), release("a", "B-C"), axons=())
    assert len({item.name for item in mirrors(desired, look(), ())}) == 3


@given(outcome_lists)
def test_mirrors_follow_from_what_they_are_made_of(outcomes: list[Outcome]) -> None:
    assert list(mirrors(TWO_SERVE, ALL, outcomes)) == list(mirrors(TWO_SERVE, ALL, list(outcomes)))


@given(
    st.lists(st.builds(Outcome, state=states, subject=st.just("s"), reason=reasons, message=st.text(), is_quiet=st.booleans()))
)
def test_a_status_lists_what_does_not_go_well_first_and_nothing_quiet(outcomes: list[Outcome]) -> None:
    listed = shown(outcomes * 20)
    assert len(listed) == min(20 * sum(not item.is_quiet for item in outcomes), LONGEST_OUTCOMES)
    order = [("stalled", "waiting", "done").index(item["state"]) for item in listed]
    assert order == sorted(order)
    told = [item for item in outcomes if not item.is_quiet]
    assert [item["message"] for item in shown(outcomes)] == [
        item.message for state_of in ("stalled", "waiting", "done") for item in told if item.state == state_of
    ][:LONGEST_OUTCOMES]


def test_a_long_message_is_cut() -> None:
    (item,) = shown([said("done", "s", "Noted", "x" * 5000)])
    assert len(item["message"]) == 1024


def test_every_mirror_has_a_definition_in_the_cluster() -> None:
    assert {item.kind for item in mirrors(TWO_SERVE, ALL, ())} == {
        kind for kind, definition in DEFINITIONS.items() if definition.is_mirror
    }
