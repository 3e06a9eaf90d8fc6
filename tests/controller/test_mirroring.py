"""A project as its cluster shows it: what Git says stands there, what people change there is put back, and each says why."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.adapters.cluster import AXON, PROJECT, RELEASE, VERSION, Kind
from controller.loop import Report
from controller.mirroring import Mirroring, Seen, say
from policies.errors import ConflictError, ControllerError, Fault, RefusedError, SilentError
from policies.serving import proxy_name, server_name
from policies.terms.axon import Axon
from policies.terms.desired import DesiredState
from policies.terms.digest import Digest
from policies.terms.observed import Observed, Recorded
from policies.terms.outcome import Outcome
from policies.terms.plan import Plan
from policies.terms.project import Project
from policies.terms.release import Release, ReleaseMetadata, ReleaseSpec, Share
from policies.terms.revision import Revision
from policies.terms.task import ServerState
from policies.terms.version import BackendRecord
from tests.fakes.cluster import FakeCluster
from tests.properties.strategies import axon_of, version_of

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
OWNER = {"apiVersion": "myelin.io/v1alpha1", "kind": "Project", "name": "digits", "uid": "u-1", "controller": True}
BACKEND = BackendRecord(model="M", backend="b", image="sha256:" + "1" * 64)
V1 = version_of("v-1", at=NOW, backends=(BACKEND,))
SERVERS = {
    name: ServerState(name=name, phase="ready", address=f"{name}.team-a.svc:8080", image=Digest(""))
    for name in (proxy_name("digits", "web"), server_name(V1, BACKEND))
}
TASKS = axon_of(sensors=[]).document.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)["spec"][
    "tasks"
]
ALL = Observed(recorded=Recorded(), servers=SERVERS)


def state(commit: str = "a", *, share: int = 100, **more: Any) -> DesiredState:
    release = Release(
        metadata=ReleaseMetadata(name="web", axon="digits"),
        spec=ReleaseSpec(traffic=(Share(version="v-1", share=share),)),
    )
    value: dict[str, Any] = {
        "revision": Revision(branch="main", commit=commit * 40, at=NOW, signer="you"),
        "tip": commit * 40,
        "project": Project(),
        "axons": {"digits": axon_of(sensors=[])},
        "releases": {("digits", "web"): release},
        "versions": {"v-1": V1},
        **more,
    }
    return DesiredState(**value)


def report(desired: DesiredState | None, *outcomes: Outcome, observed: Observed | None = ALL) -> Report:
    return Report(at=NOW, desired=desired, observed=observed, plan=Plan(steps=()), outcomes=outcomes)


class World:
    """A cluster with one Project, what watches told of it, and a clock moved by hand."""

    def __init__(self) -> None:
        self.now = NOW
        self.cluster, self.seen = FakeCluster(lambda: self.now), Seen()
        self.cluster.create(PROJECT, {"metadata": {"name": "digits", "namespace": "team-a"}, "spec": {"branch": "main"}})
        self.watch()
        self.restart()

    def restart(self) -> None:
        self.mirroring = Mirroring(
            self.cluster,  # type: ignore[arg-type]
            self.seen,
            namespace="team-a",
            project="digits",
            owner=OWNER,
        )

    def watch(self) -> None:
        """All watches tell."""
        for kind in (PROJECT, AXON, RELEASE, VERSION):
            self.seen.reset(kind.kind, "team-a", self.cluster.list(kind, "team-a"))

    def present(self, given: Report) -> list[Outcome]:
        """One pass, a minute later; returns what could not be written."""
        self.now += timedelta(minutes=1)
        self.cluster.calls.clear()
        troubles = self.mirroring.present(given, self.now)
        writes = self.cluster.writes()
        self.watch()
        self.cluster.calls[:] = writes
        return troubles

    def object(self, kind: Kind, name: str) -> dict[str, Any]:
        found = self.cluster.get(kind, "team-a", name)
        assert found is not None
        return found

    def names(self) -> list[str]:
        return sorted(f"{kind} {name}" for kind, _, name in self.cluster.objects if kind != "Project")

    def condition(self, kind: Kind, name: str, of: str) -> Mapping[str, Any] | None:
        found = self.object(kind, name).get("status", {}).get("conditions", ())
        return next((item for item in found if item["type"] == of), None)

    def ready(self, kind: Kind, name: str) -> tuple[str, str, str]:
        item = self.condition(kind, name, "Ready")
        assert item is not None
        return item["status"], item["reason"], item["message"]


@pytest.fixture
def world() -> World:
    made = World()
    made.present(report(state()))
    return made


ALL_NAMES = ["Axon digits", "Release digits-web", "Version v-1"]


def test_what_git_says_is_shown_with_where_to_change_it(world: World) -> None:
    assert world.names() == ALL_NAMES
    axon = world.object(AXON, "digits")
    document = state().axons["digits"].document
    assert axon["spec"] == document.spec.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)
    meta = axon["metadata"]
    assert meta["labels"] == {
        "app.kubernetes.io/managed-by": "myelin",
        "myelin.io/project": "digits",
        "myelin.io/axon": "digits",
    }
    assert meta["annotations"] == {"myelin.io/file": "axons/digits/axon.yaml"}
    assert meta["ownerReferences"] == [OWNER]
    assert world.object(VERSION, "v-1")["signature"] == V1.signature
    for kind, name in ((AXON, "digits"), (RELEASE, "digits-web"), (VERSION, "v-1"), (PROJECT, "digits")):
        assert world.ready(kind, name) == ("True", "AsDesired", "everything is as it should be")
        status = world.object(kind, name)["status"]
        assert (status["observedGeneration"], status["reason"], status["message"]) == (1, "AsDesired", "")
    project = world.object(PROJECT, "digits")["status"]
    assert (project["revision"], project["signer"], project["unsigned"]) == (f"main@sha1:{'a' * 40}", "you", 0)


def test_a_pass_that_finds_all_as_it_was_writes_nothing(world: World) -> None:
    before = world.cluster.objects
    assert world.present(report(state())) == []
    assert world.cluster.calls == []
    world.restart()
    assert world.present(report(state())) == []
    assert world.cluster.calls == []
    assert world.cluster.objects == before


def test_another_revision_is_shown_and_nobody_is_said_to_have_edited(world: World) -> None:
    world.present(report(state("b", share=40)))
    release = world.object(RELEASE, "digits-web")
    assert release["spec"] == {"traffic": [{"version": "v-1", "share": 40}]}
    assert (release["status"]["share"], release["status"]["observedGeneration"]) == (40, 2)
    assert world.condition(RELEASE, "digits-web", "PutBack") is None
    assert world.object(VERSION, "v-1")["status"]["share"] == 40


EDITS: dict[str, tuple[Kind, str, dict[str, Any], str]] = {
    "a share that somebody moved": (
        RELEASE,
        "digits-web",
        {"spec": {"traffic": [{"version": "v-1", "share": 1}]}},
        "spec.traffic",
    ),
    "a hold that somebody set": (
        RELEASE,
        "digits-web",
        {"spec": {"holds": [{"version": "v-1", "reason": "bad", "since": "2026-01-31T12:00:00Z"}]}},
        "spec.holds",
    ),
    "a task that somebody added": (AXON, "digits", {"spec": {"tasks": [{"name": "mine", "train": {}}]}}, "spec.tasks[fit]"),
    "tasks that somebody put in another order": (AXON, "digits", {"spec": {"tasks": TASKS[::-1]}}, "spec"),
    "a key that nobody knows": (AXON, "digits", {"spec": {"more": 1}}, "spec.more"),
    "a signature that somebody made up": (VERSION, "v-1", {"signature": "x"}, "signature"),
    "a signature that somebody took away": (VERSION, "v-1", {"signature": None}, "signature"),
    "a spec that somebody took away": (VERSION, "v-1", {"spec": None}, "spec"),
    "a part beside the spec that nobody knows": (VERSION, "v-1", {"more": {"x": 1}}, "more"),
    "a label that says whose it is": (AXON, "digits", {"metadata": {"labels": {"myelin.io/axon": "x"}}}, "metadata.labels"),
    "a file that somebody named": (
        AXON,
        "digits",
        {"metadata": {"annotations": {"myelin.io/file": "x"}}},
        "metadata.annotations",
    ),
    "an owner that somebody took away": (AXON, "digits", {"metadata": {"ownerReferences": None}}, "metadata.ownerReferences"),
}


@pytest.mark.parametrize(("kind", "name", "patch", "where"), EDITS.values(), ids=list(EDITS))
def test_what_is_edited_in_the_cluster_is_put_back_and_told(
    world: World, kind: Kind, name: str, patch: dict[str, Any], where: str
) -> None:
    if "signature" in patch:
        world.present(report(state(versions={"v-1": V1.model_copy(update={"signature": "s"})})))
    before = world.object(kind, name)
    desired = state() if "signature" not in patch else state(versions={"v-1": V1.model_copy(update={"signature": "s"})})
    world.cluster.edit(kind, "team-a", name, patch, by="kubectl-edit")
    world.watch()
    assert world.present(report(desired)) == []
    after = world.object(kind, name)
    parts = [key for key in {*before, *after} if key not in ("metadata", "status")]
    assert {key: after.get(key) for key in parts} == {key: before.get(key) for key in parts}
    for key in ("labels", "annotations", "ownerReferences"):
        assert after["metadata"][key] == before["metadata"][key]
    told = world.condition(kind, name, "PutBack")
    assert told is not None
    assert (told["status"], told["reason"]) == ("True", "EditedByHand")
    at = (world.now - timedelta(minutes=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert told["message"].startswith(where)
    assert f"was changed in the cluster by kubectl-edit at {at} and is put back; change " in told["message"]
    assert told["message"].endswith(f"{before['metadata']['annotations']['myelin.io/file']} in Git instead")
    # It stays told until the next revision, and is written once.
    assert world.present(report(desired)) == []
    assert world.cluster.calls == []
    world.present(report(replace(desired, revision=replace(desired.revision, commit="b" * 40))))
    assert world.condition(kind, name, "PutBack") is None


@pytest.mark.parametrize("patch", [{"metadata": {"labels": {"team": "a"}}}, {"metadata": {"annotations": {"note": "x"}}}])
def test_what_others_note_beside_ours_stays(world: World, patch: dict[str, Any]) -> None:
    world.cluster.edit(AXON, "team-a", "digits", patch)
    world.watch()
    assert world.present(report(state())) == []
    assert world.cluster.calls == []
    world.present(report(state("b", share=40)))
    ((part, noted),) = patch["metadata"].items()
    assert noted.items() <= world.object(AXON, "digits")["metadata"][part].items()


def test_a_status_that_somebody_wrote_is_put_back_too(world: World) -> None:
    before = world.object(AXON, "digits")["status"]
    world.cluster.edit(AXON, "team-a", "digits", {"status": {"revision": "mine"}})
    world.watch()
    world.present(report(state()))
    assert world.object(AXON, "digits")["status"] == before
    assert world.condition(AXON, "digits", "PutBack") is None


def test_what_was_deleted_by_hand_is_there_again(world: World) -> None:
    for kind, name in ((AXON, "digits"), (RELEASE, "digits-web"), (VERSION, "v-1")):
        world.cluster.delete(kind, "team-a", name)
    world.watch()
    assert world.present(report(state())) == []
    assert world.names() == ALL_NAMES


def test_what_git_has_no_more_goes(world: World) -> None:
    world.present(report(state("b", axons={}, releases={}, versions={})))
    assert world.names() == []


KEPT: dict[str, dict[str, Any]] = {
    "another file cannot be read": {
        "faults": (Fault(file="axons/other/axon.yaml", line=1, path="", reason="NotYaml", message="expected YAML"),)
    },
    "the tip is not trusted": {"trust_fault": "signed by nobody"},
}


@pytest.mark.parametrize("trouble", KEPT.values(), ids=list(KEPT))
def test_nothing_goes_while_git_cannot_be_read(world: World, trouble: dict[str, Any]) -> None:
    world.present(report(state("b", axons={}, releases={}, versions={}, **trouble)))
    assert world.names() == ALL_NAMES


@pytest.mark.parametrize(
    ("kind", "name", "file"),
    [
        (AXON, "digits", "axons/digits/axon.yaml"),
        (RELEASE, "digits-web", "releases/digits/web.yaml"),
        (VERSION, "v-1", "versions/digits/v-1.yaml"),
    ],
)
def test_a_document_that_cannot_be_read_is_told_where_it_was_shown(world: World, kind: Kind, name: str, file: str) -> None:
    fault = Fault(file=file, line=3, path="spec.x", reason="UnknownKey", message="unknown key `x`")
    broken = report(state("b", axons={}, releases={}, versions={}, faults=(fault,)))
    assert world.present(broken) == []
    assert world.names() == ALL_NAMES
    assert world.ready(kind, name) == ("False", "UnknownKey", f"{file}: {fault}")
    stalled = world.condition(kind, name, "Stalled")
    assert stalled is not None
    assert world.object(kind, name)["status"]["axon"] == "digits"
    # Said once.
    assert world.present(broken) == []
    assert world.cluster.calls == []


def test_what_somebody_made_by_hand_is_refused_and_left_alone(world: World) -> None:
    mine = {"metadata": {"name": "mine", "namespace": "team-a"}, "spec": {"traffic": []}}
    world.cluster.create(RELEASE, mine)
    world.watch()
    assert world.present(report(state())) == []
    found = world.object(RELEASE, "mine")
    assert found["spec"] == {"traffic": []}
    assert world.ready(RELEASE, "mine") == (
        "False",
        "NotInGit",
        "mine: is not in Git, so nothing is done about it; commit it to the repository, and delete this object",
    )
    assert world.present(report(state())) == []
    assert world.cluster.calls == []


def test_an_object_that_somebody_made_before_git_said_so_becomes_a_mirror() -> None:
    made = World()
    made.cluster.create(AXON, {"metadata": {"name": "digits", "namespace": "team-a"}, "spec": {"tasks": []}, "more": 1})
    made.watch()
    assert made.present(report(state())) == []
    found = made.object(AXON, "digits")
    assert "more" not in found
    assert found["metadata"]["labels"]["myelin.io/project"] == "digits"
    assert made.ready(AXON, "digits")[0] == "True"


@pytest.mark.parametrize(
    ("error", "state_of"),
    [
        (SilentError("cluster: no answer"), "waiting"),
        (ConflictError("cluster: written since"), "waiting"),
        (RefusedError("cluster: forbidden", reason="Forbidden"), "stalled"),
    ],
)
@pytest.mark.parametrize("call", ["apply Axon digits", "apply_status Axon digits", "apply_status Project digits"])
def test_one_object_that_cannot_be_written_keeps_no_other_from_it(call: str, error: ControllerError, state_of: str) -> None:
    made = World()
    made.cluster.fail(call, error)
    (trouble,) = made.present(report(state()))
    assert (trouble.state, trouble.reason, trouble.message) == (state_of, error.reason, error.message)
    assert trouble.subject == " ".join(call.split()[1:])
    assert {"Release digits-web", "Version v-1"} <= set(made.names())
    if "Project" not in call:
        assert made.ready(PROJECT, "digits")[:2] == ("False", error.reason)
    assert made.present(report(state())) == []
    assert made.names() == ALL_NAMES
    assert made.ready(PROJECT, "digits")[0] == "True"


def test_an_object_that_goes_while_its_status_is_written_is_no_trouble(world: World) -> None:
    world.cluster.delete(VERSION, "team-a", "v-1")  # the watch has not told yet
    assert world.present(report(state("b"), Outcome(state="waiting", subject="digits/v-1", reason="Starting", message="m"))) == []
    assert world.present(report(state("b"))) == []
    assert world.names() == ALL_NAMES


def test_while_git_was_never_read_the_project_says_why() -> None:
    made = World()
    made.present(report(None, Outcome(state="waiting", subject="main", reason="Silent", message="no answer"), observed=None))
    assert made.names() == []
    assert made.ready(PROJECT, "digits") == ("False", "Silent", "main: no answer")
    assert made.condition(PROJECT, "digits", "Reconciling") is not None


def test_what_a_pass_came_to_is_listed(world: World) -> None:
    done = Outcome(state="done", subject="digits/fit", reason="Succeeded", message="loss 0.1")
    waits = Outcome(state="waiting", subject="digits/tune", reason="Running", message="3 of 9")
    world.present(report(state(), done, waits))
    listed = [
        {"state": "waiting", "subject": "digits/tune", "reason": "Running", "message": "3 of 9"},
        {"state": "done", "subject": "digits/fit", "reason": "Succeeded", "message": "loss 0.1"},
    ]
    assert world.object(PROJECT, "digits")["status"]["outcomes"] == listed
    assert world.object(AXON, "digits")["status"]["outcomes"] == listed
    assert world.ready(AXON, "digits") == ("False", "Running", "digits/tune: 3 of 9")


def test_an_instant_stays_while_a_condition_does(world: World) -> None:
    first = world.condition(PROJECT, "digits", "Ready")
    world.present(report(state("b")))
    assert first is not None
    later = world.condition(PROJECT, "digits", "Ready")
    assert later is not None
    assert later["lastTransitionTime"] == first["lastTransitionTime"]
    world.present(report(state("b"), Outcome(state="stalled", subject="main", reason="Untrusted", message="m")))
    after = world.condition(PROJECT, "digits", "Ready")
    assert after is not None
    assert after["lastTransitionTime"] == world.now.strftime("%Y-%m-%dT%H:%M:%SZ")


def test_a_project_that_is_gone_is_not_spoken_of() -> None:
    made = World()
    made.cluster.delete(PROJECT, "team-a", "digits")
    outcome = Outcome(state="stalled", subject="digits", reason="Invalid", message="m")
    say(made.cluster, made.seen, "team-a", "digits", [outcome], now=NOW)  # type: ignore[arg-type]
    made.watch()
    made.cluster.calls.clear()
    say(made.cluster, made.seen, "team-a", "digits", [outcome], now=NOW)  # type: ignore[arg-type]
    assert made.cluster.calls == []


def test_no_key_of_a_status_is_unknown_to_its_definition(world: World) -> None:
    faults = tuple(
        Fault(file=file, line=3, path="", reason="NotYaml", message="expected YAML")
        for file in ("axons/digits/axon.yaml", "releases/digits/web.yaml", "versions/digits/v-1.yaml")
    )
    world.cluster.create(RELEASE, {"metadata": {"name": "mine", "namespace": "team-a"}, "spec": {}})
    world.watch()
    outcome = Outcome(state="waiting", subject="digits", reason="Running", message="m")
    world.present(report(state("b"), outcome))
    world.present(report(state("c", axons={}, releases={}, versions={}, faults=faults), outcome))
    assert sum(call.startswith("apply_status") for call in world.cluster.calls) == 4
    assert world.cluster.warned == []


commits = st.sampled_from("abc")
shares = st.integers(0, 100)
deeds = st.lists(
    st.one_of(
        st.tuples(st.just("commit"), commits, shares),
        st.tuples(st.just("edit"), st.sampled_from(list(EDITS.values())), st.just(0)),
        st.tuples(st.just("delete"), st.sampled_from([(AXON, "digits"), (RELEASE, "digits-web"), (VERSION, "v-1")]), st.just(0)),
        st.tuples(st.just("restart"), st.just(""), st.just(0)),
        st.tuples(st.just("fail"), st.sampled_from(["apply", "apply_status", "replace"]), st.just(0)),
    ),
    max_size=6,
)


@given(deeds)
def test_whatever_people_do_in_the_cluster_two_passes_later_it_says_what_git_says(
    history: Sequence[tuple[str, Any, int]],
) -> None:
    made, desired = World(), state()
    made.present(report(desired))
    for deed, what, share in history:
        if deed == "commit":
            desired = state(what, share=share)
        elif deed == "edit" and (what[0].kind, "team-a", what[1]) in made.cluster.objects:
            made.cluster.edit(what[0], "team-a", what[1], what[2])
        elif deed == "delete":
            made.cluster.delete(what[0], "team-a", what[1])
        elif deed == "restart":
            made.restart()
        elif deed == "fail":
            made.cluster.fail(what, SilentError("cluster: no answer"))
        made.watch()
        made.present(report(desired))
    for _ in range(6):  # as many as calls fail
        made.present(report(desired))
    assert made.present(report(desired)) == []
    assert made.cluster.calls == []
    fresh = World()
    fresh.present(report(desired))
    assert made.names() == fresh.names() == ALL_NAMES
    for kind, name in ((AXON, "digits"), (RELEASE, "digits-web"), (VERSION, "v-1")):
        one, other = made.object(kind, name), fresh.object(kind, name)
        assert {key: item for key, item in one.items() if key not in ("metadata", "status")} == {
            key: item for key, item in other.items() if key not in ("metadata", "status")
        }
        assert one["status"]["revision"] == other["status"]["revision"]


# What watches tell.


def body(name: str = "digits", **more: Any) -> dict[str, Any]:
    meta = {"name": name, "namespace": "team-a", "uid": "u", "resourceVersion": "1", **more.pop("metadata", {})}
    return {"metadata": meta, "spec": {"a": 1}, **more}


MATTERS: dict[str, tuple[dict[str, Any], bool]] = {
    "the same again": (body(), False),
    "our own status": (body(status={"reason": "AsDesired"}), False),
    "what the API server notes": (body(metadata={"resourceVersion": "2", "generation": 7, "managedFields": []}), False),
    "another spec": (body(spec={"a": 2}), True),
    "another part": (body(signature="x"), True),
    "a label": (body(metadata={"labels": {"a": "b"}}), True),
    "an annotation": (body(metadata={"annotations": {"a": "b"}}), True),
    "the begin of its end": (body(metadata={"deletionTimestamp": "2026-01-31T12:00:00Z"}), True),
    "another object of that name": (body(metadata={"uid": "v"}), True),
}


@pytest.mark.parametrize(("told", "matters"), MATTERS.values(), ids=list(MATTERS))
def test_a_watch_that_tells_of_our_own_words_wakes_nobody(told: dict[str, Any], matters: bool) -> None:
    seen = Seen()
    assert seen.tell("Axon", body(), is_gone=False)
    assert seen.tell("Axon", told, is_gone=False) is matters
    assert seen.get("Axon", "team-a", "digits") == told


def test_what_is_gone_is_not_seen_and_its_end_matters() -> None:
    seen = Seen()
    seen.tell("Axon", body(), is_gone=False)
    assert seen.tell("Axon", body(), is_gone=True)
    assert seen.get("Axon", "team-a", "digits") is None
    assert seen.all("Axon") == []
    assert seen.tell("Axon", body(), is_gone=True)


def test_a_list_replaces_what_was_seen_of_one_kind_in_one_namespace() -> None:
    seen = Seen()
    elsewhere = body("other", metadata={"namespace": "team-b"})
    for kind, item in (("Axon", body("old")), ("Axon", elsewhere), ("Release", body("old"))):
        seen.tell(kind, item, is_gone=False)
    seen.reset("Axon", "team-a", [body("new")])
    assert [item["metadata"]["name"] for item in seen.all("Axon", "team-a")] == ["new"]
    assert len(seen.all("Axon")) == 2
    assert len(seen.all("Release", "team-a")) == 1


def test_an_axon_of_git_is_read_as_the_axon_that_is_shown(world: World) -> None:
    shown = world.object(AXON, "digits")
    value = {**{key: item for key, item in shown.items() if key not in ("status",)}, "metadata": {"name": "digits"}}
    assert Axon.model_validate(value).spec == state().axons["digits"].document.spec
