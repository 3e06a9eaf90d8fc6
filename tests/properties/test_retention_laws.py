"""Retention, as laws: nothing goes that anything still uses, and what nothing uses goes."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from policies.errors import Fault
from policies.jobs import Surroundings
from policies.parsing import parse_document
from policies.records import fold, swept_statement, task_statement
from policies.retention import in_use, swept_of, why_nothing_goes
from policies.terms.axon import Axon
from policies.terms.desired import DesiredAxon, DesiredState
from policies.terms.digest import Digest, digest_of
from policies.terms.document import LoadedDocument
from policies.terms.observed import Observed, Recorded
from policies.terms.plan import Plan, Serve
from policies.terms.project import Builder, Project, ProjectSpec, StoreLimits
from policies.terms.proposal import Proposal
from policies.terms.record import Entry, Statement
from policies.terms.release import Hold, Release, ReleaseMetadata, ReleaseSpec, Share
from policies.terms.revision import Revision
from policies.terms.run import Run, TaskRun
from policies.terms.task import ImageState, JobState, ServerSpec, ServerState
from policies.terms.trial import Ask, Tell, TrialRun
from policies.terms.version import BackendRecord, Version, VersionMetadata, VersionSpec

NOW = datetime(2026, 6, 30, 12, tzinfo=UTC)
AROUND = Surroundings(kept_versions=2)
PROJECT_VALUE = {"apiVersion": "myelin.io/v1alpha1", "kind": "Project", "metadata": {"name": "p"}}
PROJECT = parse_document(LoadedDocument(file="myelin.yaml", value=PROJECT_VALUE, lines={}))
MANIFEST: dict[str, Any] = {
    "apiVersion": "myelin.io/v1alpha1",
    "kind": "Axon",
    "metadata": {"name": "digits"},
    "spec": {
        "artifacts": [{"name": "source"}],
        "tasks": [
            {
                "name": "fit",
                "train": {
                    "lossMetric": "loss",
                    "imageBuild": {
                        "artifact": "source",
                        "buildLocation": "/src",
                        "s2i": {"contextDir": "fit", "builderImage": "python"},
                    },
                },
            }
        ],
        "sensors": [{"name": "on-commit", "tasks": [[{"trainer": {"task": "fit"}}]]}],
    },
}


def name(*parts: object) -> Digest:
    return digest_of("/".join(map(str, parts)).encode())


def desired(**more: Any) -> DesiredState:
    assert isinstance(PROJECT, Project)
    document = parse_document(LoadedDocument(file="axons/digits/axon.yaml", value=MANIFEST, lines={}))
    assert isinstance(document, Axon)
    axon = DesiredAxon(name="digits", file="axons/digits/axon.yaml", document=document, digest="now", trees={})
    revision = Revision(branch="main", commit="c" * 40, at=NOW)
    value = {"revision": revision, "tip": "c" * 40, "project": PROJECT, "axons": {"digits": axon}}
    return DesiredState(**{**value, **more})


def version(number: int, *, days: int, parent: str = "") -> Version:
    backend = BackendRecord(
        model="M", backend="b", image=name("image", number), artifact=name("model", number), taskRun=name("fit", number)
    )
    spec = VersionSpec(
        deployer="deployer",
        commit="c" * 40,
        axonDigest="x",
        eventSet="e",
        events=(),
        run=name("run", number),
        backends=(backend,),
        routes=(),
        data=(name("data", number),),
        createdAt=NOW - timedelta(days=days, minutes=-number),
        parent=parent,
    )
    return Version(metadata=VersionMetadata(name=f"v-{number}", axon="digits"), spec=spec)


def parts(item: Version) -> set[str]:
    return {*item.spec.data, *(digest for backend in item.spec.backends for digest in (backend.image, backend.artifact))}


def release(*shares: int, shadow: str = "", holds: tuple[str, ...] = ()) -> Release:
    spec = ReleaseSpec(
        traffic=tuple(Share(version=f"v-{number}", share=100 if number == shares[0] else 0) for number in shares),
        shadow=shadow,
        holds=tuple(Hold(version=item, reason="bad", since=NOW) for item in holds),
    )
    return Release(metadata=ReleaseMetadata(name="deployer", axon="digits"), spec=spec)


def task(number: int, *, run: str = "", axon: str = "digits", days: int = 100, of: str = "fit", loss: float = 1.0) -> TaskRun:
    return TaskRun(
        id=name("fit", number),
        run=run or name("run", number),
        axon=axon,
        task=of,
        kind="train",
        state="Succeeded",
        at=NOW - timedelta(days=days),
        inputs=name("inputs", number),
        image=name("train image", number),
        model=name("model", number),
        data=(name("data", number),),
        metrics={"loss": loss},
    )


def run(number: int, **more: Any) -> Run:
    value = {
        "id": name("run", number),
        "axon": "digits",
        "sensor": "on-commit",
        "events": (),
        "event_set": "e",
        "axon_digest": "now",
        "commit": "c" * 40,
        "started_at": NOW,
    }
    return Run(**{**value, **more})


def used(state: DesiredState, observed: Observed, plan: Plan | None = None) -> set[str]:
    return set(in_use(state, observed, around=AROUND, now=NOW, plan=plan))


numbers = st.integers(0, 7)


@given(
    days=st.lists(st.integers(0, 200), min_size=1, max_size=8),
    shares=st.lists(numbers, unique=True, max_size=3),
    shadow=st.one_of(st.just(""), numbers.map("v-{}".format)),
    holds=st.sets(numbers.map("v-{}".format), max_size=3),
    young=st.integers(0, 100),
)
def test_what_a_release_names_or_holds_or_is_young_is_never_chosen(
    days: list[int], shares: list[int], shadow: str, holds: set[str], young: int
) -> None:
    versions = {f"v-{number}": version(number, days=age) for number, age in enumerate(days)}
    releases = {("digits", "deployer"): release(*shares, shadow=shadow, holds=tuple(sorted(holds)))}
    builder = Builder(store=StoreLimits(keep_results=f"{24 * young}h"))
    state = desired(versions=versions, releases=releases, project=Project(spec=ProjectSpec(builder=builder)))
    kept = used(state, Observed(recorded=Recorded()))
    newest = sorted(versions.values(), key=lambda item: (item.spec.created_at, item.metadata.name))[-AROUND.kept_versions :]
    for key, item in versions.items():
        is_young = NOW - item.spec.created_at <= timedelta(days=young)
        if key in {f"v-{number}" for number in shares} | {shadow} | holds or item in newest or is_young:
            assert parts(item) <= kept
        else:
            assert parts(item).isdisjoint(kept)


def test_the_version_that_one_would_go_back_to_stays() -> None:
    versions = {f"v-{number}": version(number, days=190 - 10 * number, parent=f"v-{number - 5}") for number in range(8)}
    state = desired(versions=versions, releases={("digits", "deployer"): release(5)})
    kept = used(state, Observed(recorded=Recorded()))
    assert [number for number in range(8) if parts(versions[f"v-{number}"]) <= kept] == [0, 5, 6, 7]


@given(st.lists(st.integers(0, 200), min_size=3, max_size=8))
def test_where_a_release_cannot_be_read_no_version_of_its_axon_goes(days: list[int]) -> None:
    versions = {f"v-{number}": version(number, days=age) for number, age in enumerate(days)}
    fault = Fault(file="releases/digits/deployer.yaml", line=1, path="", reason="BadDocument", message="nonsense")
    kept = used(desired(versions=versions, faults=(fault,)), Observed(recorded=Recorded()))
    assert all(parts(item) <= kept for item in versions.values())


def test_where_it_cannot_be_told_what_is_in_use_nothing_goes() -> None:
    observed = Observed(recorded=Recorded())
    assert why_nothing_goes(desired(), observed) == ""
    assert "not trusted" in why_nothing_goes(desired(trust_fault="signed by nobody"), observed)
    assert "not pushed" in why_nothing_goes(desired(), replace(observed, is_pushed=False))
    fault = Fault(file="versions/digits/v-1.yaml", line=1, path="", reason="BadDocument", message="nonsense")
    assert "versions/digits/v-1.yaml" in why_nothing_goes(desired(faults=(fault,)), observed)


@given(tasks=st.lists(st.tuples(st.booleans(), st.integers(0, 200)), min_size=1, max_size=8))
def test_what_a_run_that_goes_on_made_or_reads_is_never_chosen(tasks: list[tuple[bool, int]]) -> None:
    """A run goes on while its axon wants it and not all is done, a job of it runs, or people are asked about it."""
    live, dead = run(100), run(101, superseded="a newer commit")
    found = {}
    for number, (is_live, days) in enumerate(tasks):
        item = task(number, run=live.id if is_live else dead.id, days=days, of=f"other{number}")
        found[item.id] = replace(item, state="Succeeded")
    recorded = Recorded(runs={live.id: live, dead.id: dead}, tasks=found)
    asked = Proposal(task_run="t", run=dead.id, axon="digits", kind="promotion", version="v-1", branch="b", evidence="e", at=NOW)
    running = JobState(name="j", phase="running", labels={"run": dead.id})
    newest = {item.id for item in found.values()}
    for observed, is_all in (
        (Observed(recorded=recorded), False),
        (Observed(recorded=replace(recorded, proposals={"t": asked})), True),
        (Observed(recorded=recorded, jobs={"j": running}), True),
    ):
        kept = used(desired(), observed)
        for item in found.values():
            if is_all or item.run == live.id or item.id in newest:
                assert {item.model, item.image, *item.data} <= kept


@given(losses=st.lists(st.floats(0, 10), min_size=2, max_size=8))
def test_of_old_results_the_newest_stays_and_the_others_go(losses: list[float]) -> None:
    tasks = {name("fit", number): task(number, loss=loss) for number, loss in enumerate(losses)}
    runs = {item.run: run(number, axon_digest="before") for number, item in enumerate(tasks.values())}
    kept = used(desired(), Observed(recorded=Recorded(runs=runs, tasks=tasks)))
    models = [item.model for item in tasks.values()]
    assert [model in kept for model in models] == [False] * (len(models) - 1) + [True]


def test_trials_stay_while_their_tuning_goes_on_and_the_losers_go_when_it_has_ended() -> None:
    from policies.identity import task_run_id

    live = run(1)
    tuning = task_run_id(live.id, "fit")
    trial = TrialRun(trial="0_0_0", rung=0, budget=1, number=0)
    tells = tuple(Tell(run=replace(trial, number=item), loss=0.1, metric=0.1, model=name("trial", item)) for item in range(3))
    asks = tuple(Ask(run=tell.run, config={}, origin="random") for tell in tells)
    going = Recorded(runs={live.id: live}, asks={tuning: asks}, tells={tuning: tells})
    assert {tell.model for tell in tells} <= used(desired(), Observed(recorded=going))
    ended = replace(task(1, run=live.id), id=tuning, kind="tune", model=tells[1].model)
    done = Recorded(runs={live.id: live}, tasks={tuning: ended})
    assert {tell.model for tell in tells} & used(desired(), Observed(recorded=done)) == {tells[1].model}


def test_what_a_server_the_plan_or_a_build_uses_is_never_chosen() -> None:
    server = ServerState(name="s", phase="ready", address="x", image=name("served"))
    built = ImageState(phase="built", digest=name("built"))
    spec = ServerSpec(name="t", image=name("planned"), model=name("planned model"), data=(name("planned data"),))
    plan = Plan(steps=(Serve(axon="digits", reason="due", server=spec),))
    observed = Observed(recorded=Recorded(), servers={"s": server}, images={"i": built})
    kept = used(desired(), observed, plan)
    assert {name("served"), name("built"), name("planned"), name("planned model"), name("planned data")} <= kept


@given(st.lists(st.tuples(st.sampled_from(["task", "sweep"]), st.integers(0, 3)), max_size=12))
def test_nothing_that_was_removed_is_taken_over_and_what_was_made_anew_is(deeds: list[tuple[str, int]]) -> None:
    """Whatever the order of work and clean-ups: equal work is reused exactly while its result is there."""
    there: set[str] = set()
    entries = []
    for number, (deed, which) in enumerate(deeds, start=1):
        item = replace(task(which), id=name("run", number, which))
        statement = task_statement(item)
        if deed == "sweep":
            statement = swept_statement("digits", sorted({item.model, *item.data}), after=f"{number}")
        (there.add if deed == "task" else there.discard)(item.model)
        entries.append(entry(number, statement))
    whole = fold(entries)
    piecewise = None
    for item in entries:
        piecewise = fold([item], onto=piecewise)
    for recorded in (whole, piecewise or whole, whole.of("digits")):
        assert {item.model for item in recorded.inputs.values()} == there
        assert there.isdisjoint(recorded.swept)


def entry(number: int, statement: Statement) -> Entry:
    return Entry(number=number, at=NOW, statement=statement, previous=None, digest=name("entry", number), signature="")


def test_what_is_to_be_removed_is_told_once_by_axon() -> None:
    tasks = {name("fit", number): task(number, axon="a" if number < 2 else "b") for number in range(4)}
    recorded = Recorded(tasks=tasks)
    keep = {name("model", 0): "why", name("data", 3): "why"}
    told = swept_of(recorded, keep)
    assert told == {
        "a": tuple(sorted([name("data", 0), name("data", 1), name("model", 1)])),
        "b": tuple(sorted([name("data", 2), name("model", 2), name("model", 3)])),
    }
    gone = frozenset(digest for digests in told.values() for digest in digests)
    assert swept_of(replace(recorded, swept=gone), keep) == {}
