from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import records
from policies.identity import event_id, event_set
from policies.ledger import check_chain, decode, encode
from policies.sensors import due_events, ended_alerts, fired
from policies.terms.desired import DesiredAxon
from policies.terms.event import Alert, Event
from policies.terms.observed import Observed, Recorded
from policies.terms.record import Entry, Statement
from policies.terms.run import Run, TaskRun
from policies.terms.trial import Ask, Tell, TrialRun
from tests.properties.strategies import NOW, axon_of, chain, instants, unicode

texts = st.text(unicode, max_size=5)
names = st.sampled_from(["fit", "Ünit", " "])
ids = st.sampled_from("abcd").map("sha256:{}".format)
numbers = st.floats(-1e9, 1e9)
scalars = st.none() | st.booleans() | st.integers(-99, 99) | numbers | texts
json_values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=2))
mappings = st.dictionaries(texts, json_values, max_size=2)
tuples = st.lists(texts, max_size=2).map(tuple)
metrics = st.dictionaries(texts, numbers, max_size=2)

events = st.builds(
    Event,
    id=ids,
    kind=st.sampled_from(["Commit", "Lifecycle", "Calendar", "Rest", "Alert", "Release"]),
    axon=texts,
    sensor=texts,
    trigger=texts,
    at=instants,
    data=mappings,
)
made = st.fixed_dictionaries({"folder": names, "tree": texts, "lock": ids})
"""What went into an image by requirements that were resolved."""
runs = st.builds(
    Run,
    id=ids,
    axon=texts,
    sensor=texts,
    events=tuples,
    event_set=texts,
    axon_digest=texts,
    commit=texts,
    started_at=instants,
    superseded=st.just(""),
)
tasks = st.builds(
    TaskRun,
    id=ids,
    run=ids,
    axon=texts,
    task=names,
    kind=names,
    state=st.sampled_from(["Succeeded", "Failed"]),
    at=st.just(NOW),
    inputs=texts,
    image=texts,
    model=texts,
    data=tuples,
    metrics=metrics,
    parameters=mappings,
    trial=texts,
    version=texts,
    reason=texts,
    message=texts,
    reused=texts,
)
trials = st.builds(TrialRun, trial=texts, rung=st.integers(0, 4), budget=st.floats(0.01, 100), number=st.integers(0, 99))
asks = st.builds(Ask, run=trials, config=mappings, origin=st.sampled_from(["random", "model", "default", "promoted"]))
tells = st.builds(Tell, run=trials, loss=st.none() | numbers, metric=st.none() | numbers, reason=texts, model=texts)

statements: st.SearchStrategy[Statement] = st.one_of(
    events.map(records.event_statement),
    st.builds(records.resolved_statement, texts, ids),
    runs.map(records.run_statement),
    st.builds(records.superseded_statement, runs, texts),
    tasks.map(records.task_statement),
    st.builds(records.ask_statement, texts, ids, asks),
    st.builds(records.tell_statement, texts, ids, tells),
    st.builds(records.deploying_statement, texts, ids, texts),
    st.builds(records.image_statement, texts, ids, mappings | made),
)


def kept(*found: Statement, at: datetime = NOW) -> list[Entry]:
    """Entries as they come back from where they were written."""
    return [decode(encode(entry)) for entry in chain(found, at=at)]


@settings(max_examples=60)
@given(st.lists(statements, max_size=6), st.data())
def test_folding_piece_by_piece_equals_folding_at_once(found: list[Statement], data: st.DataObject) -> None:
    entries = kept(*found)
    recorded = Recorded()
    at = 0
    while at < len(entries):
        # Each piece may begin with entries that were folded before.
        begin, at = data.draw(st.integers(0, at)), data.draw(st.integers(at + 1, len(entries)))
        recorded = records.fold(entries[begin:at], onto=recorded)
    assert recorded == records.fold(entries)
    assert list(recorded.tasks) == list(records.fold(entries).tasks)
    assert (recorded.slices or {}) == records.fold(entries).slices
    assert (recorded.entries, recorded.head) == (len(entries), entries[-1].digest if entries else "")


@settings(max_examples=60)
@given(st.lists(statements, max_size=8, unique_by=lambda item: item.key.partition("/")[2]))
def test_what_is_kept_of_an_axon_is_what_is_recorded_of_it(found: list[Statement]) -> None:
    recorded = records.fold(kept(*found))
    for axon in {statement.axon for statement in found} | {"nobody"}:
        kept_of, sifted = recorded.of(axon), replace(recorded, slices=None).of(axon)
        for name in ("events", "runs", "tasks", "proposals", "locks"):
            assert getattr(kept_of, name) == getattr(sifted, name)
            assert list(getattr(kept_of, name)) == list(getattr(sifted, name))


@settings(max_examples=60)
@given(st.lists(statements | st.builds(records.ask_statement, texts, ids, asks), max_size=9))
def test_a_fold_without_what_is_spent_equals_the_fold_of_everything(found: list[Statement]) -> None:
    entries = kept(*found)
    living: list[Entry] = []
    for entry in entries:
        if run := records.spent_by(entry.statement):
            living = [one for one in living if records.trial_of(one.statement.kind, one.statement.key) != run]
        living.append(entry)
    assert records.fold(living) == records.fold(entries)


@settings(max_examples=40)
@given(st.lists(statements, max_size=6), st.sampled_from(["axon", "unknown"]))
def test_what_others_write_changes_nothing_of_ours(found: list[Statement], kind: str) -> None:
    foreign = Statement(kind=kind, key="x", axon="other", body={"id": "x", "run": "x"})
    mixed = records.fold(kept(*[item for one in found for item in (foreign, one)]))
    assert replace(mixed, entries=0, head="") == replace(records.fold(kept(*found)), entries=0, head="")


RUN = Run(id="r", axon="digits", sensor="go", events=("e",), event_set="s", axon_digest="d1", commit="c", started_at=NOW)
EVENT = Event(id="e", kind="Rest", axon="digits", sensor="go", trigger="a", at=NOW)
TASK = TaskRun(id="t", run="r", axon="digits", task="fit", kind="train", state="Succeeded", at=NOW, inputs="i")
TRIAL = TrialRun(trial="0_0_0", rung=0, budget=1.0, number=0)
EACH_KIND = (
    records.event_statement(EVENT),
    records.resolved_statement("digits", "e"),
    records.run_statement(RUN),
    records.superseded_statement(RUN, "newer"),
    records.task_statement(TASK),
    records.ask_statement("digits", "t", Ask(run=TRIAL, config={}, origin="random")),
    records.tell_statement("digits", "t", Tell(run=TRIAL, loss=1.0, metric=1.0)),
    records.deploying_statement("digits", "t", "v-1"),
)


@pytest.mark.parametrize("whole", EACH_KIND, ids=lambda item: item.kind)
def test_what_cannot_be_read_is_passed_over(whole: Statement) -> None:
    other = records.run_statement(replace(RUN, id="other"))
    for missing in whole.body:
        for wrong in ({}, {missing: None}, {missing: {}}):
            body = {**{name: value for name, value in whole.body.items() if name != missing}, **wrong}
            found = records.fold(kept(replace(whole, body=body), other))
            assert found.runs["other"] == replace(RUN, id="other")


@given(events)
def test_an_event_reads_back_as_it_was(event: Event) -> None:
    assert records.fold(kept(records.event_statement(event))).events == {event.id: event}


@given(runs, texts)
def test_a_run_reads_back_as_it_was_and_as_superseded(run: Run, reason: str) -> None:
    entries = kept(records.run_statement(run), records.superseded_statement(run, reason))
    assert records.fold(entries[:1]).runs == {run.id: run}
    assert records.fold(entries).runs == {run.id: replace(run, superseded=reason)}


@given(tasks)
def test_a_task_reads_back_as_it_was(task: TaskRun) -> None:
    recorded = records.fold(kept(records.task_statement(task)))
    assert recorded.tasks == {task.id: task}
    assert recorded.inputs == ({task.inputs: task} if task.inputs and task.state == "Succeeded" else {})


@given(st.lists(tasks, max_size=6))
def test_equal_inputs_lead_to_the_newest_task_that_succeeded(found: list[TaskRun]) -> None:
    numbered = [replace(task, id=f"{number}") for number, task in enumerate(found)]
    recorded = records.fold(kept(*map(records.task_statement, numbered)))
    good = {task.inputs: task for task in numbered if task.state == "Succeeded" and task.inputs}
    assert recorded.inputs == good


@given(st.lists(st.tuples(ids, asks), max_size=4), st.lists(st.tuples(ids, tells), max_size=4))
def test_trials_read_back_in_order(asked: list[tuple[str, Ask]], told: list[tuple[str, Tell]]) -> None:
    entries = kept(
        *(records.ask_statement("digits", run, ask) for run, ask in asked),
        *(records.tell_statement("digits", run, tell) for run, tell in told),
    )
    recorded = records.fold(entries)
    assert {run: list(found) for run, found in recorded.asks.items()} == {
        run: [ask for other, ask in asked if other == run] for run, _ in asked
    }
    assert {run: list(found) for run, found in recorded.tells.items()} == {
        run: [tell for other, tell in told if other == run] for run, _ in told
    }


@given(ids, texts)
def test_an_ended_alert_and_a_deployment_read_back(name: str, version: str) -> None:
    entries = kept(records.resolved_statement("digits", name), records.deploying_statement("digits", name, version))
    recorded = records.fold(entries)
    assert recorded.resolved == {name}
    assert recorded.deploying == {name: NOW}


def of(statement: Statement) -> str:
    """Several axons may use one image, and each says so."""
    return statement.axon if statement.kind == "image" else ""


@given(st.lists(statements, max_size=8, unique_by=lambda item: item.key.partition("/")[2]))
def test_statements_of_different_things_have_different_keys(found: list[Statement]) -> None:
    subjects = {
        (one.kind, of(one), *(str(one.body.get(name)) for name in ("id", "event", "run", "taskRun", "trial", "rung", "digest")))
        for one in found
        if one.kind not in ("task", "deploying")
    }
    assert len({one.key for one in found if one.kind not in ("task", "deploying")}) == len(subjects)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([2.0**53, 1.7e18, 1e20]), max_size=4))
def test_a_chain_with_any_number_in_it_holds_when_it_is_read_again(values: list[float]) -> None:
    metrics = {f"m{number}": value for number, value in enumerate(values)}
    task = TaskRun(id="a", run="r", axon="digits", task="fit", kind="train", state="Succeeded", at=NOW, metrics=metrics)
    entries = kept(records.task_statement(task))
    assert list(check_chain(entries, lambda *_: True)) == []
    assert records.fold(entries).tasks["a"].metrics == task.metrics


def axon_with(names: Sequence[str], digest: str = "d1", **sensor: Any) -> DesiredAxon:
    """An axon with a sensor that waits for REST triggers of these names."""
    triggers = [{"type": "Rest", "name": name} for name in names]
    return axon_of(sensors=[{"name": "hook", "triggers": triggers, **sensor}], digest=digest)


def rest(trigger: str, number: int, at: datetime = NOW) -> Event:
    name = event_id("Rest", "digits", "hook", trigger, {"source": "s", "id": str(number)})
    return Event(id=name, kind="Rest", axon="digits", sensor="hook", trigger=trigger, at=at + timedelta(seconds=number))


def fires(axon: DesiredAxon, found: Sequence[Event], now: datetime = NOW) -> list[Run]:
    """All runs that a sensor starts on these events, until it starts no more."""
    said = [records.event_statement(event) for event in found]
    for _ in range(len(found) + 1):
        due = list(fired(axon, records.fold(kept(*said)), now))
        if not due:
            return list(records.fold(kept(*said)).runs.values())
        said += [records.run_statement(run) for run in due]
    raise AssertionError("it never ends")


occurrences = st.lists(st.sampled_from("ab"), max_size=6).map(lambda found: [rest(name, at) for at, name in enumerate(found)])


@pytest.mark.parametrize(("names", "when"), [("a", "all"), ("ab", "any"), ("ab", "all")])
@given(occurrences, st.randoms(use_true_random=False))
def test_the_order_of_events_does_not_matter_for_which_runs_fire(names: str, when: str, found: list[Event], chance: Any) -> None:
    axon, mixed = axon_with(names, when=when), list(found)
    chance.shuffle(mixed)
    assert {run.id for run in fires(axon, mixed)} == {run.id for run in fires(axon, found)}


@pytest.mark.parametrize(("names", "when"), [("a", "all"), ("ab", "any"), ("ab", "all")])
@given(occurrences)
def test_an_event_fires_a_sensor_once(names: str, when: str, found: list[Event]) -> None:
    ours = [event for event in found if event.trigger in names]
    used = [event for run in fires(axon_with(names, when=when), found) for event in run.events]
    assert len(used) == len(set(used))
    pairs = min(sum(event.trigger == name for event in ours) for name in names)
    assert len(used) == (len(names) * pairs if when == "all" else len(ours))


@given(occurrences)
def test_all_of_a_sensors_triggers_take_part_in_each_of_its_runs(found: list[Event]) -> None:
    trigger_of = {event.id: event.trigger for event in found}
    for run in fires(axon_with("ab"), found):
        assert sorted(trigger_of[event] for event in run.events) == ["a", "b"]
        assert run.event_set == event_set(run.events)


@given(occurrences, st.booleans())
def test_a_run_that_is_recorded_is_not_fired_again_by_more_events(found: list[Event], backwards: bool) -> None:
    axon = axon_with("ab", when="any")
    before, after = fires(axon, found[:3]), fires(axon, found[::-1] if backwards else found)
    assert {run.id for run in before} <= {run.id for run in after}


def simulate(axon: DesiredAxon, arrivals: Sequence[int], step: timedelta) -> list[Run]:
    """Looks at regular intervals; each finds as many new events as the list says."""
    said: list[Statement] = []
    number = 0
    for look, count in enumerate([*arrivals, *[0] * 4]):
        now = NOW + step * look
        for _ in range(count):
            said.append(records.event_statement(rest("a", number, now)))
            number += 1
        said += [records.run_statement(run) for run in fired(axon, records.fold(kept(*said)), now)]
    return list(records.fold(kept(*said)).runs.values())


arrivals = st.lists(st.integers(0, 3), max_size=8)


@settings(max_examples=50)
@given(arrivals, st.sampled_from(["90s", "5m"]))
def test_between_two_runs_lies_the_cooldown(found: list[int], cooldown: str) -> None:
    least = {"90s": timedelta(seconds=90), "5m": timedelta(minutes=5)}[cooldown]
    starts = sorted(run.started_at for run in simulate(axon_with("a", cooldown=cooldown), found, timedelta(seconds=40)))
    assert all(after - before >= least for before, after in pairwise(starts))


@settings(max_examples=50)
@given(arrivals, st.integers(0, 3))
def test_no_day_has_more_runs_than_it_may(found: list[int], most: int) -> None:
    starts = sorted(run.started_at for run in simulate(axon_with("a", maxPerDay=most), found, timedelta(hours=7)))
    for first in starts:
        assert sum(first <= at < first + timedelta(days=1) for at in starts) <= most


@settings(max_examples=50)
@given(arrivals)
def test_without_limits_every_event_fires_at_the_look_that_finds_it(found: list[int]) -> None:
    starts = [run.started_at for run in simulate(axon_with("a"), found, timedelta(hours=7))]
    assert starts == [NOW + timedelta(hours=7) * look for look, count in enumerate(found) for _ in range(count)]


@settings(max_examples=50)
@given(arrivals.filter(any))
def test_a_cooldown_holds_back_and_loses_nothing(found: list[int]) -> None:
    axon = axon_with("a", cooldown="1s")
    late = [*found, *[0] * sum(found)]
    assert len(simulate(axon, late, timedelta(seconds=1))) == sum(found)


ALERT = Alert(
    axon="digits",
    sensor="guard",
    trigger="a",
    condition="m > 0",
    labels={"version": "v-1"},
    value=1.0,
    threshold=0.0,
    since=NOW,
)
GUARDED = axon_of(sensors=[{"name": "guard", "triggers": [{"type": "Alert", "name": "a", "condition": "m > 0"}]}])


@given(st.lists(st.sets(st.sampled_from(["v-1", "v-2"])), max_size=8))
def test_an_alert_is_one_event_for_as_long_as_it_holds(looks: list[set[str]]) -> None:
    said: list[Statement] = []
    began: list[str] = []
    before: set[str] = set()
    for number, holding in enumerate(looks):
        now = NOW + timedelta(seconds=number)
        alerts = tuple(replace(ALERT, labels={"version": name}, version=name, since=now) for name in sorted(holding))
        observed = Observed(recorded=records.fold(kept(*said)), alerts=alerts)
        found = list(due_events(GUARDED, observed, now))
        assert sorted(event.data["version"] for event in found if event.kind == "Alert") == sorted(holding - before)
        ended = list(ended_alerts(GUARDED, observed))
        assert sorted(event.data["version"] for event in ended) == sorted(before - holding)
        said += [records.event_statement(event) for event in found]
        said += [records.resolved_statement("digits", event.id) for event in ended]
        began += sorted(holding - before)
        before = holding
    recorded = records.fold(kept(*said))
    assert [event.data["version"] for event in recorded.events.values() if event.kind == "Alert"] == began
    used = [run.events for run in fired(GUARDED, recorded, NOW)]
    assert len(used) == len(set(used)) == len(began)


def received(names: Sequence[str], trigger: str) -> Callable[[Recorded], list[Event]]:
    event = rest(trigger, 0)
    return lambda recorded: list(due_events(axon_with(names), Observed(recorded=recorded, received=(event,)), NOW))


@pytest.mark.parametrize("trigger", ["", "a"])
@pytest.mark.parametrize("names", ["a", "ab"])
def test_what_came_in_is_one_event_and_fires_what_it_was_sent_to(names: str, trigger: str) -> None:
    due = received(names, trigger)
    found = [event for event in due(Recorded()) if event.kind == "Rest"]
    assert len(found) == 1
    recorded = records.fold(kept(*map(records.event_statement, found)))
    assert [event for event in due(recorded) if event.kind == "Rest"] == []
    assert len(list(fired(axon_with(names, when="any"), recorded, NOW))) == 1
