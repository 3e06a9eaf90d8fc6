from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from policies.errors import Fault
from policies.identity import event_id, task_run_id
from policies.jobs import Surroundings
from policies.ledger import entry_of
from policies.parsing import parse_document
from policies.planning import plan
from policies.records import (
    event_statement,
    fold,
    image_statement,
    resolved_statement,
    run_statement,
    superseded_statement,
    task_statement,
)
from policies.terms.axon import Axon
from policies.terms.desired import DesiredAxon, DesiredState
from policies.terms.digest import digest_of
from policies.terms.document import LoadedDocument
from policies.terms.event import Alert, Event
from policies.terms.observed import Observed, Recorded
from policies.terms.plan import (
    AnyStep,
    Blocked,
    BuildImage,
    Deploy,
    FinishTask,
    Plan,
    RecordEvent,
    RecordImage,
    ResolveAlert,
    Retire,
    RollBack,
    RunJob,
    Serve,
    StartRun,
    SupersedeRun,
    Tune,
)
from policies.terms.project import Project
from policies.terms.record import Entry, Statement
from policies.terms.revision import Revision
from policies.terms.run import Run
from policies.terms.task import ImageState, JobState
from tests.properties.strategies import NOW

AROUND = Surroundings()
ROUNDS = 40
"""More looks than the longest of these flows needs."""
Shape = tuple[tuple[str, tuple[tuple[int, ...], ...]], ...]
"""Sensors, the first for commits: what each waits for, and its groups of tasks; even ones train, odd ones leave data."""


@st.composite
def shapes(draw: st.DrawFn, most: int = 3) -> Shape:
    sensors = []
    number = 0
    for place in range(draw(st.integers(1, most))):
        waits_for = draw(st.sampled_from(["Commit", "Lifecycle", "Rest", "Alert"])) if place else "Commit"
        count = draw(st.integers(1, 3))
        tasks = list(range(number, number + count))
        number += count
        cut = draw(st.integers(0, count))
        sensors.append((waits_for, tuple(tuple(group) for group in (tasks[:cut], tasks[cut:]) if group)))
    return tuple(sensors)


def entry(task: int) -> dict[str, Any]:
    return {"resourceExecutor" if task % 2 else "trainer": {"task": f"t{task}"}}


def axon_like(shape: Shape, name: str = "alpha", *, digest: str = "d1", ships: bool = True, **spec: Any) -> DesiredAxon:
    """An axon of a shape, with a deployer and a rollback where it `ships`."""
    build = {"artifact": "source", "buildLocation": "/src", "s2i": {"contextDir": "src"}}
    tasks: list[dict[str, Any]] = [{"name": "serve", "deploy": {"imageBuild": build}}]
    sensors: list[dict[str, Any]] = []
    for place, (waits_for, groups) in enumerate(shape):
        trigger = {"Alert": {"condition": "m > 0"}, "Lifecycle": {"task": f"t{place - 1}"}}.get(waits_for, {})
        triggers = [{"type": waits_for, "name": "a", **trigger}] if waits_for != "Commit" else []
        due = [[entry(task) for task in group] for group in groups]
        sensors.append({"name": f"s{place}", "triggers": triggers, "tasks": due})
        for task in (task for group in groups for task in group):
            tasks.append({"name": f"t{task}", "container" if task % 2 else "train": {"imageBuild": build}})
    if ships:
        models = [{"name": "M", "backendModels": [{"name": "b", "trainer": "t0", "deployer": "serve"}]}]
        wait = {"type": "Lifecycle", "name": "a", "task": "t0"}
        sensors.append({"name": "ship", "triggers": [wait], "tasks": [{"deployer": {"name": "web", "models": models}}]})
        wait = {"type": "Alert", "name": "a", "condition": "m > 0"}
        sensors.append({"name": "guard", "triggers": [wait], "tasks": [{"rollback": {"deployer": "web"}}]})
    value = {
        "apiVersion": "myelin.io/v1alpha1",
        "kind": "Axon",
        "metadata": {"name": name},
        "spec": {"artifacts": [{"name": "source", "path": "/src"}], "tasks": tasks, "sensors": sensors, **spec},
    }
    document = parse_document(LoadedDocument(file="axon.yaml", value=value, lines={(): 1}))
    assert isinstance(document, Axon)
    return DesiredAxon(name=name, file=f"axons/{name}/axon.yaml", document=document, digest=digest, trees={"src": "4" * 40})


def desired_of(*axons: DesiredAxon, **state: Any) -> DesiredState:
    revision = Revision(branch="main", commit="c" * 40, at=NOW)
    return DesiredState(revision=revision, tip="c" * 40, project=Project(), axons={axon.name: axon for axon in axons}, **state)


@dataclass
class World:
    """A desired state and all that was recorded; what a plan asks for comes true at once."""

    desired: DesiredState
    now: datetime = NOW
    entries: list[Entry] = field(default_factory=list)
    recorded: Recorded = field(default_factory=Recorded)
    images: dict[str, ImageState] = field(default_factory=dict)
    jobs: dict[str, JobState] = field(default_factory=dict)
    alerts: tuple[Alert, ...] = ()
    received: tuple[Event, ...] = ()
    image_of: Callable[[str], str] = str
    """Identity -> what its digest is made of."""
    earlier: Plan | None = None

    def say(self, *statements: Statement) -> None:
        known = {entry.statement.key for entry in self.entries}
        for statement in statements:
            if statement.key in known:
                continue
            previous = self.entries[-1].digest if self.entries else None
            self.entries.append(
                entry_of(statement, number=len(self.entries) + 1, at=self.now, previous=previous, sign=lambda _: "")
            )
            known.add(statement.key)
        self.recorded = fold(self.entries, onto=self.recorded)

    def look(self) -> Observed:
        received = tuple(event for event in self.received if event.id not in self.recorded.events)
        return Observed(recorded=self.recorded, jobs=self.jobs, images=self.images, alerts=self.alerts, received=received)

    def plan(self) -> list[AnyStep]:
        """What is due; that an earlier plan is at hand must never change it."""
        observed = self.look()
        anew = plan(self.desired, observed, now=self.now, around=AROUND)
        self.earlier = plan(self.desired, observed, now=self.now, around=AROUND, before=self.earlier)
        assert self.earlier.steps == anew.steps
        return list(anew.steps)

    def act(self, steps: Sequence[AnyStep], ends: Callable[[str], str] = lambda _: "Succeeded") -> None:
        """Do what is due.

        Args:
            steps: Of a plan.
            ends: A task's name -> `Succeeded`, `Failed` or `running`.
        """
        for step in steps:
            match step:
                case RecordEvent():
                    self.say(event_statement(step.event))
                case ResolveAlert():
                    self.say(resolved_statement(step.axon, step.event_id))
                case StartRun():
                    self.say(run_statement(step.run))
                case SupersedeRun():
                    self.jobs = {name: job for name, job in self.jobs.items() if name not in step.jobs}
                    self.say(superseded_statement(step.run, step.reason))
                case RecordImage():
                    self.say(image_statement(step.axon, step.image, step.materials))
                case BuildImage():
                    digest = digest_of(self.image_of(step.identity).encode())
                    self.images[step.identity] = ImageState(phase="built", digest=digest)
                case FinishTask():
                    self.say(task_statement(step.result))
                case RunJob():
                    if (end := ends(step.task)) == "running":
                        self.jobs[step.job.name] = JobState(name=step.job.name, phase="running", labels=step.job.labels)
                        continue
                    self.jobs.pop(step.job.name, None)
                    left = digest_of(step.result.id.encode())
                    made = {"model": left} if step.result.kind == "train" else {"data": (left,)}
                    failed = {"state": "Failed", "reason": "ExitCode", "message": "exit code 1"}
                    self.say(task_statement(replace(step.result, **(made if end == "Succeeded" else failed))))
                case Deploy():
                    versions = {**self.desired.versions, step.version.metadata.name: step.version}
                    releases = {**self.desired.releases, (step.axon, step.release.metadata.name): step.release}
                    self.desired = replace(self.desired, versions=versions, releases=releases)
                    self.say(task_statement(step.result))
                case RollBack():
                    releases = {**self.desired.releases, (step.axon, step.release.metadata.name): step.release}
                    self.desired = replace(self.desired, releases=releases)
                    self.say(task_statement(step.result))
                case _:
                    pass

    def settle(self, ends: Callable[[str], str] = lambda _: "Succeeded", rounds: int = ROUNDS) -> list[AnyStep]:
        """Look and act until nothing more comes of it; what is due then."""
        for _ in range(rounds):
            steps, before = self.plan(), (len(self.entries), len(self.images), len(self.jobs))
            self.act(steps, ends)
            if (len(self.entries), len(self.images), len(self.jobs)) == before:
                return steps
        raise AssertionError("it never settles")


def alert_of(axon: str, sensor: str) -> Alert:
    return Alert(axon=axon, sensor=sensor, trigger="a", condition="m > 0", labels={}, value=1.0, threshold=0.0, since=NOW)


def call_of(axon: str, sensor: str, number: int = 0) -> Event:
    name = event_id("Rest", axon, sensor, "a", {"source": "s", "id": str(number)})
    return Event(id=name, kind="Rest", axon=axon, sensor=sensor, trigger="a", at=NOW)


def circumstances(*axons: DesiredAxon) -> dict[str, Any]:
    """Everything that the sensors of axons wait for."""
    found = [
        (axon.name, sensor.name, trigger.type)
        for axon in axons
        for sensor in axon.document.spec.sensors
        for trigger in sensor.triggers
    ]
    return {
        "alerts": tuple(alert_of(axon, sensor) for axon, sensor, kind in found if kind == "Alert"),
        "received": tuple(call_of(axon, sensor) for axon, sensor, kind in found if kind == "Rest"),
    }


outcomes = st.sampled_from(["Succeeded", "Succeeded", "Succeeded", "Failed", "running"])
endings = st.fixed_dictionaries({f"t{number}": outcomes for number in range(9)}).map(lambda found: found.__getitem__)


@st.composite
def worlds(draw: st.DrawFn, *, names: Sequence[str] = ("alpha",), image_of: Callable[[str], str] = str) -> World:
    """A world after some looks at it, with everything that it may have come to."""
    axons = [axon_like(draw(shapes()), name) for name in names]
    world = World(desired_of(*axons), image_of=image_of, **circumstances(*axons))
    ends = draw(endings)
    for _ in range(draw(st.integers(0, 8))):
        steps = world.plan()
        world.act(steps[: draw(st.integers(0, len(steps)))] if draw(st.booleans()) else steps, ends)
    return world


def names_of(steps: Sequence[AnyStep]) -> set[tuple[str, str]]:
    """What a plan would put down, by name."""
    found: set[tuple[str, str]] = set()
    for step in steps:
        match step:
            case RecordEvent():
                found.add(("event", step.event.id))
            case ResolveAlert():
                found.add(("resolved", step.event_id))
            case StartRun():
                found.add(("run", step.run.id))
            case SupersedeRun():
                found.add(("superseded", step.run.id))
            case RecordImage():
                found.add(("image", f"{step.axon}/{step.image}"))
            case FinishTask() | RunJob() | Tune() | Deploy() | RollBack():
                found.add(("task", step.result.id))
            case _:
                pass
    return found


def of(axon: str, steps: Sequence[AnyStep]) -> list[AnyStep]:
    return [step for step in steps if step.axon == axon]


@settings(max_examples=50)
@given(worlds())
def test_planning_the_same_twice_gives_the_same_plan(world: World) -> None:
    assert world.plan() == world.plan()


def test_only_the_axon_that_a_commit_changed_is_planned_again() -> None:
    axons = [axon_like((("Commit", ((1,),)),), f"a{number}", ships=False) for number in range(20)]
    world = World(desired_of(*axons))
    world.settle()
    assert world.earlier is not None
    world.plan()
    assert world.earlier.planned == 0
    world.desired = replace(world.desired, axons={**world.desired.axons, "a7": replace(axons[7], digest="d2")})
    world.plan()
    assert world.earlier.planned == 1
    world.settle()
    assert world.earlier.planned <= 1


@settings(max_examples=50)
@given(worlds(names=("alpha", "beta")), st.randoms(use_true_random=False))
def test_the_order_of_what_was_found_does_not_matter(world: World, chance: Any) -> None:
    first = world.plan()
    for name in ("alerts", "received"):
        mixed = list(getattr(world, name))
        chance.shuffle(mixed)
        setattr(world, name, tuple(mixed))
    world.desired = replace(world.desired, axons=dict(reversed(list(world.desired.axons.items()))))
    world.images = dict(reversed(list(world.images.items())))
    assert world.plan() == first


@settings(max_examples=60)
@given(shapes(), endings)
def test_what_is_recorded_is_never_due_again(shape: Shape, ends: Callable[[str], str]) -> None:
    axon = axon_like(shape)
    world = World(desired_of(axon), **circumstances(axon))
    written = {kind: kind for kind in ("event", "resolved", "run", "superseded", "task", "image")}
    for _ in range(12):
        steps = world.plan()
        world.act(steps, ends)
        done = {(written[kind], name) for kind, _, name in (entry.statement.key.partition("/") for entry in world.entries)}
        assert not done & names_of(world.plan())


@settings(max_examples=60)
@given(shapes(), endings)
def test_acting_on_plans_comes_to_an_end(shape: Shape, ends: Callable[[str], str]) -> None:
    axon = axon_like(shape)
    world = World(desired_of(axon), **circumstances(axon))
    left = world.settle(ends)
    assert {type(step) for step in left} <= {RunJob, Blocked, Serve, Retire}
    assert {ends(step.task) for step in left if isinstance(step, RunJob)} <= {"running"}


@settings(max_examples=40)
@given(shapes())
def test_where_nothing_fails_everything_gets_done_once(shape: Shape) -> None:
    axon = axon_like(shape)
    world = World(desired_of(axon), **circumstances(axon))
    left = world.settle()
    assert {type(step) for step in left} <= {Blocked, Serve}
    for sensor in axon.document.spec.sensors:
        (run,) = [run for run in world.recorded.runs.values() if run.sensor == sensor.name]
        ended = [task for task in world.recorded.tasks.values() if task.run == run.id]
        assert len(ended) == sum(len(group) for group in sensor.tasks)
        assert all(task.state == "Succeeded" for task in ended)


@settings(max_examples=40)
@given(worlds(), st.booleans())
def test_a_suspended_axon_starts_nothing(world: World, is_for_ever: bool) -> None:
    until = {} if is_for_ever else {"until": (NOW + timedelta(hours=1)).isoformat()}
    (axon,) = world.desired.axons.values()
    spec = axon.document.spec.model_copy(update={"suspend": None})
    before = world.plan()
    suspend = parse_suspend({"reason": "budget", **until})
    document = axon.document.model_copy(update={"spec": spec.model_copy(update={"suspend": suspend})})
    world.desired = replace(world.desired, axons={axon.name: replace(axon, document=document)})
    steps = world.plan()
    assert all(isinstance(step, Serve | Retire | Blocked) for step in steps)
    assert [step.word for step in steps if isinstance(step, Blocked) and step.word == "Suspended"] == ["Suspended"]
    assert [step for step in steps if isinstance(step, Serve)] == [step for step in before if isinstance(step, Serve)]
    if not is_for_ever:
        world.now = NOW + timedelta(hours=1)
        resumed = world.plan()
        world.desired = replace(world.desired, axons={axon.name: axon})
        assert resumed == world.plan()


def parse_suspend(value: dict[str, str]) -> Any:
    return axon_like((("Commit", ((0,),)),), suspend=value).document.spec.suspend


@settings(max_examples=50)
@given(worlds())
def test_an_untrusted_tip_starts_no_run_and_what_began_goes_on(world: World) -> None:
    trusted = world.plan()
    world.desired = replace(world.desired, trust_fault="not signed", tip="f" * 40)
    assert world.plan() == [step for step in trusted if not isinstance(step, StartRun)]


@settings(max_examples=50)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=3), st.data())
def test_a_failed_task_stops_later_groups_and_the_run_says_so(sizes: list[int], data: st.DataObject) -> None:
    numbers = iter(range(9))
    groups = tuple(tuple(next(numbers) for _ in range(size)) for size in sizes)
    place = data.draw(st.integers(0, len(groups) - 1))
    bad = f"t{data.draw(st.sampled_from(groups[place]))}"
    world = World(desired_of(axon_like((("Commit", groups),), ships=False)))
    left = world.settle(lambda task: "Failed" if task == bad else "Succeeded")
    (said,) = [step for step in left if isinstance(step, Blocked)]
    assert (said.subject, said.word) == (f"alpha/{bad}", "ExitCode")
    assert "exit code 1" in said.reason
    assert left == [said]
    done = {task.task for task in world.recorded.tasks.values()}
    assert done == {f"t{task}" for group in groups[: place + 1] for task in group}


def is_done(world: World, run: Run) -> bool:
    """Whether each of a run's tasks ended well, or one of them badly."""
    ended = {task.task: task.state for task in world.recorded.tasks.values() if task.run == run.id}
    sensor = next(item for item in world.desired.axons[run.axon].document.spec.sensors if item.name == run.sensor)
    wanted = sum(len(group) for group in sensor.tasks)
    return len(ended) == wanted or "Failed" in ended.values()


@settings(max_examples=60)
@given(worlds())
def test_a_run_of_an_older_axon_digest_is_superseded(world: World) -> None:
    (axon,) = world.desired.axons.values()
    running = {job.labels["run"] for job in world.jobs.values() if job.phase == "running"}
    runs = [run for run in world.recorded.runs.values() if run.sensor != "guard"]
    old = [run for run in runs if run.id in running or not is_done(world, run)]
    world.desired = replace(world.desired, axons={axon.name: replace(axon, digest="d2")})
    steps = world.plan()
    assert [step.run.id for step in steps if isinstance(step, SupersedeRun)] == [run.id for run in old]
    world.act(steps)
    later = world.plan()
    stopped = {task_run_id(run.id, f"t{number}") for run in old for number in range(9)}
    assert not {("task", name) for name in stopped} & names_of(later)
    assert {run.axon_digest for step in later if isinstance(step, StartRun) for run in [step.run]} <= {"d2"}


@settings(max_examples=60)
@example(shape=(("Commit", ((0, 1),)),), ends={"t0": "running", "t1": "Failed"}.__getitem__)
@given(shapes(), endings)
def test_no_job_of_an_older_axon_digest_goes_on(shape: Shape, ends: Callable[[str], str]) -> None:
    axon = axon_like(shape, ships=False)
    world = World(desired_of(axon), **circumstances(axon))
    world.settle(ends)
    world.desired = replace(world.desired, axons={axon.name: replace(axon, digest="d2")})
    stopped = {job for step in world.plan() if isinstance(step, SupersedeRun) for job in step.jobs}
    assert stopped == {job.name for job in world.jobs.values()}


@settings(max_examples=40)
@given(shapes(), st.integers(0, 6))
def test_a_digest_that_comes_back_is_worked_for_again(shape: Shape, rounds: int) -> None:
    axon = axon_like(shape, ships=False)
    world = World(desired_of(axon), **circumstances(axon))
    for _ in range(rounds):
        world.act(world.plan())
    world.desired = replace(world.desired, axons={axon.name: replace(axon, digest="d2")})
    world.act(world.plan())
    world.desired = desired_of(axon)
    world.settle()
    (sensor, *_) = axon.document.spec.sensors
    runs = {run.id for run in world.recorded.runs.values() if run.sensor == sensor.name and run.axon_digest == axon.digest}
    done = {task.task for task in world.recorded.tasks.values() if task.run in runs}
    assert done == {f"t{task}" for group in shape[0][1] for task in group}


def alone(world: World, name: str) -> World:
    """The same world with one axon and its records only."""
    only = World(
        replace(
            world.desired,
            axons={key: axon for key, axon in world.desired.axons.items() if key == name},
            releases={key: release for key, release in world.desired.releases.items() if key[0] == name},
            versions={key: version for key, version in world.desired.versions.items() if version.metadata.axon == name},
        ),
        images=world.images,
        jobs=world.jobs,
        alerts=world.alerts,
        received=world.received,
    )
    only.say(*(entry.statement for entry in world.entries if entry.statement.axon == name))
    return only


@settings(max_examples=60)
@given(worlds(names=("alpha", "beta")))
def test_an_axons_plan_is_the_same_without_the_others(world: World) -> None:
    together = world.plan()
    for name in ("alpha", "beta"):
        assert of(name, together) == of(name, alone(world, name).plan())


FAULTS: Mapping[str, Callable[[DesiredAxon], DesiredAxon]] = {
    "its source is not there": lambda axon: replace(axon, trees={}),
    "a condition is not evaluated": lambda axon: with_condition(axon, "topk(1, m) > 0"),
    "a condition is no condition": lambda axon: with_condition(axon, "m[5m]"),
    "a condition has braces left open": lambda axon: with_condition(axon, "{{m > 0"),
}


def with_condition(axon: DesiredAxon, condition: str) -> DesiredAxon:
    value = axon.document.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    for sensor in value["spec"]["sensors"]:
        for trigger in sensor.get("triggers", ()):
            if trigger["type"] == "Alert":
                trigger["condition"] = condition
    value["kind"], value["apiVersion"] = "Axon", "myelin.io/v1alpha1"
    document = parse_document(LoadedDocument(file="axon.yaml", value=value, lines={(): 1}))
    assert isinstance(document, Axon)
    return replace(axon, document=document)


@pytest.mark.parametrize("fault", FAULTS)
@settings(max_examples=8)
@given(worlds(names=("alpha", "beta")))
def test_a_fault_of_one_axon_changes_nothing_for_another(fault: str, world: World) -> None:
    before = of("beta", world.plan())
    axons = {**world.desired.axons, "alpha": FAULTS[fault](world.desired.axons["alpha"])}
    world.desired = replace(world.desired, axons=axons)
    assert of("beta", world.plan()) == before


def test_a_condition_that_is_too_deep_stops_nothing_else() -> None:
    axons = [axon_like((("Commit", ((0,),)), ("Alert", ((1,),))), name) for name in ("alpha", "beta")]
    world = World(desired_of(*axons))
    before = of("beta", world.plan())
    world.desired = desired_of(with_condition(axons[0], "-" * 1500 + "m > 0"), axons[1])
    assert of("beta", world.plan()) == before


@settings(max_examples=40)
@given(worlds(names=("alpha", "beta")))
def test_an_axon_that_cannot_be_read_starts_nothing_and_goes_on_serving(world: World) -> None:
    before = world.plan()
    broken = Fault(file="axons/alpha/axon.yaml", line=1, path="", reason="NotYaml", message="expected YAML")
    world.desired = replace(world.desired, axons={"beta": world.desired.axons["beta"]}, faults=(broken,))
    steps = world.plan()
    assert of("beta", steps) == of("beta", before)
    assert all(isinstance(step, Serve | Blocked) for step in of("alpha", steps))
    assert [step for step in of("alpha", steps) if isinstance(step, Serve)] == [
        step for step in of("alpha", before) if isinstance(step, Serve)
    ]


def results(steps: Sequence[AnyStep]) -> list[tuple[AnyStep, Any]]:
    return [(step, step.result) for step in steps if isinstance(step, FinishTask | RunJob | Deploy | RollBack | Tune)]


@settings(max_examples=40)
@example(shape=(("Commit", ((0,),)),))
@given(shapes())
def test_every_record_names_its_own_axon_run_and_task(shape: Shape) -> None:
    """Two axons of equal content: the later one takes over what the other made, and stays what it is."""
    axons = [axon_like(shape, name) for name in ("alpha", "beta")]
    world = World(desired_of(axons[0]), image_of=lambda _: "the same", **circumstances(*axons))
    world.settle()
    world.desired = replace(world.desired, axons={axon.name: axon for axon in axons})
    for _ in range(12):
        steps = world.plan()
        for step, result in results(steps):
            run = world.recorded.runs[result.run]
            assert (result.axon, run.axon) == (step.axon, step.axon)
            assert result.id == task_run_id(run.id, result.task)
        world.act(steps)


def test_each_of_two_equal_axons_comes_to_a_release_of_its_own() -> None:
    axons = [axon_like((("Commit", ((0,),)),), name) for name in ("alpha", "beta")]
    world = World(desired_of(axons[0]), image_of=lambda _: "the same")
    world.settle()
    world.desired = replace(world.desired, axons={axon.name: axon for axon in axons})
    world.settle()
    assert {key[0] for key in world.desired.releases} == {"alpha", "beta"}


@settings(max_examples=40)
@given(worlds(names=("alpha", "beta")))
def test_every_step_says_why_and_for_whom(world: World) -> None:
    for step in world.plan():
        assert step.axon in ("", *world.desired.axons)
        assert step.reason
        assert "\n" not in step.reason


@given(worlds())
def test_a_job_of_an_axon_that_is_gone_is_stopped_unless_it_merely_cannot_be_read(world: World) -> None:
    running = {job.name for job in world.jobs.values() if job.phase == "running"}
    (axon,) = world.desired.axons.values()
    world.desired = replace(world.desired, axons={})
    assert {job for step in world.plan() if isinstance(step, SupersedeRun) for job in step.jobs} == running
    broken = Fault(file=axon.file, line=1, path="", reason="NotYaml", message="expected YAML")
    world.desired = replace(world.desired, faults=(broken,))
    assert not [step for step in world.plan() if isinstance(step, SupersedeRun)]
