"""Desired minus observed -> plan: what is due now, in order, with the reason for each step.

Laws: planning the same twice gives the same plan, also where an earlier plan is at hand; what is recorded is never due
again; an axon that cannot be read, or is suspended, starts nothing, and what serves goes on serving.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from datetime import datetime
from typing import Literal

from policies.alerts import why_refused
from policies.deploying import deploy_steps, rollback_steps, serving_steps
from policies.errors import DesiredStateError
from policies.identity import task_run_id
from policies.jobs import Surroundings
from policies.lock_proposals import lock_steps
from policies.proposals import DECLINED, proposal_steps
from policies.rest import circumstances, is_at_rest, is_same
from policies.retention import forgettable, freeable
from policies.sensors import due_events, ended_alerts, fired, triggers_of
from policies.statuses import status_steps
from policies.tasks import TaskContext, task_steps
from policies.terms.axon import Sensor, SensorTask
from policies.terms.desired import DesiredAxon, DesiredState
from policies.terms.observed import Observed
from policies.terms.plan import (
    AnyStep,
    AtRest,
    Blocked,
    FreeJobs,
    Plan,
    RecordEvent,
    ResolveAlert,
    RunJob,
    StartRun,
    SupersedeRun,
    Tune,
)
from policies.terms.run import Run, TaskRun
from policies.unbuilt import axon_notes, check_gate, project_notes, why_never


def plan(desired: DesiredState, observed: Observed, *, now: datetime, around: Surroundings, before: Plan | None = None) -> Plan:
    """What one pass is to do.

    Args:
        desired: What the newest trusted revision asks for.
        observed: What one look found.
        now: This instant, UTC.
        around: Where jobs and servers run.
        before: The plan of an earlier pass: an axon that was at rest in it, and about which nothing is new, is not planned
            again. It changes nothing but the time that this takes.
    """
    steps: list[AnyStep] = [*_project_steps(desired)]
    found = circumstances(desired, observed, around)
    at_rest: dict[str, AtRest] = {}
    planned = 0
    for name in sorted(desired.axons):
        known = before.at_rest.get(name) if before is not None else None
        if known is not None and is_same(known.seen, found[name]):
            at_rest[name] = known
            steps += known.steps
            continue
        planned += 1
        own = replace(observed, recorded=observed.recorded.of(name))
        made = tuple(_axon_steps(desired, desired.axons[name], own, now, around))
        steps += made
        if is_at_rest(desired.axons[name], made):
            at_rest[name] = AtRest(seen=found[name], steps=made)
    steps += _gone(desired, observed)
    steps = list(_within_limits(steps, desired, observed, around))
    steps += serving_steps(desired, observed, around, steps)
    steps += proposal_steps(desired, observed)
    steps += lock_steps(desired, observed, now)
    steps += status_steps(desired, observed, _with_sensors(desired, observed), now)
    free, forget = freeable(observed), forgettable(observed)
    if free or forget:
        steps.append(FreeJobs(axon="", reason="their results are recorded", free=free, forget=forget))
    return Plan(steps=tuple(steps), at_rest=at_rest, planned=planned)


def task_name(entry: SensorTask) -> str:
    """How a sensor's task is called within its run."""
    if entry.resource_executor is not None:
        return entry.resource_executor.task
    if entry.trainer is not None:
        return entry.trainer.task
    if entry.rollback is not None:
        return f"rollback:{entry.rollback.deployer}"
    if entry.deployer is not None:
        return f"deploy:{entry.deployer.name}"
    return ""


def _axon_steps(
    desired: DesiredState, axon: DesiredAxon, observed: Observed, now: datetime, around: Surroundings
) -> Iterator[AnyStep]:
    suspend = axon.document.spec.suspend
    if suspend is not None and (suspend.until is None or now < suspend.until):
        end = f" until {suspend.until:%Y-%m-%d %H:%M} UTC" if suspend.until else ""
        yield _blocked(axon, "", f"suspended{end}: {suspend.reason}", word="Suspended", state="done")
        return
    yield from _notes(axon, around, desired.project.spec.builder.platforms)
    recorded = observed.recorded
    for event in due_events(axon, observed, now):
        yield RecordEvent(axon=axon.name, reason=f"{event.kind.lower()} event of {event.sensor}", event=event)
    for event in ended_alerts(axon, observed):
        yield ResolveAlert(axon=axon.name, reason="the alert's condition does not hold any more", event_id=event.id)
    for run in _live_runs(axon, observed):
        sensor = next((item for item in axon.document.spec.sensors if item.name == run.sensor), None)
        only_rolls_back = sensor is not None and all(entry.rollback for group in sensor.tasks for entry in group)
        if sensor is None or (run.axon_digest != axon.digest and not only_rolls_back):
            jobs = _running_jobs(run, observed)
            if jobs or not _is_over(run, sensor, observed):
                yield SupersedeRun(axon=axon.name, reason="a newer commit does not need it", run=run, jobs=jobs)
            continue
        yield from _run_steps(desired, axon, sensor, run, observed, now, around)
    if desired.is_trusted:
        due = list(fired(axon, recorded, now))
        try:
            check_gate(desired.project, "run")
        except DesiredStateError as error:
            if due:
                yield _blocked(axon, "", error.message, word=error.reason)
            return
        for run in due:
            if _never_fires(axon, run.sensor):
                continue
            pinned = Run(
                id=run.id,
                axon=run.axon,
                sensor=run.sensor,
                events=run.events,
                event_set=run.event_set,
                axon_digest=run.axon_digest,
                commit=desired.revision.commit,
                started_at=run.started_at,
                by=desired.revision.signer,
            )
            yield StartRun(axon=axon.name, reason=f"sensor {run.sensor} fired", run=pinned)


def _live_runs(axon: DesiredAxon, observed: Observed) -> list[Run]:
    return [run for run in observed.recorded.runs.values() if run.axon == axon.name and not run.superseded]


def _running_jobs(run: Run, observed: Observed) -> tuple[str, ...]:
    return tuple(job.name for job in observed.jobs.values() if job.phase == "running" and job.labels.get("run") == run.id)


def _with_sensors(desired: DesiredState, observed: Observed) -> Iterator[tuple[Run, Sensor]]:
    for run in observed.recorded.runs.values():
        axon = desired.axons.get(run.axon)
        sensor = next((item for item in axon.document.spec.sensors if item.name == run.sensor), None) if axon else None
        if sensor is not None:
            yield run, sensor


def _is_over(run: Run, sensor: Sensor | None, observed: Observed) -> bool:
    """Whether nothing of a run is left to do, as far as its records tell."""
    tasks = [task for task in observed.recorded.tasks.values() if task.run == run.id]
    if any(task.state == "Failed" for task in tasks):
        return True
    if sensor is None:
        return False
    done = {task.task for task in tasks}
    return all(task_name(entry) in done for group in sensor.tasks for entry in group)


def _run_steps(
    desired: DesiredState,
    axon: DesiredAxon,
    sensor: Sensor,
    run: Run,
    observed: Observed,
    now: datetime,
    around: Surroundings,
) -> Iterator[AnyStep]:
    before: list[TaskRun] = []
    for group in sensor.tasks:
        results = []
        for entry in group:
            identity = task_run_id(run.id, task_name(entry))
            result = observed.recorded.tasks.get(identity)
            if result is not None:
                results.append(result)
                continue
            context = TaskContext(
                desired=desired,
                axon=axon,
                sensor=sensor,
                run=run,
                entry=entry,
                id=identity,
                before=tuple(before),
                observed=observed,
                now=now,
                around=around,
            )
            yield from _guarded(context)
        failed = [result for result in results if result.state == "Failed"]
        for result in failed:
            text = f"{result.message}; push a commit to try again"
            is_said = result.reason == DECLINED  # people's word is no fault
            yield _blocked(axon, result.task, text, word=result.reason or "TaskFailed", state="done" if is_said else "stalled")
        if failed or len(results) < len(group):
            return
        before += results


def _guarded(context: TaskContext) -> Iterator[AnyStep]:
    try:
        if context.entry.rollback is not None:
            yield from rollback_steps(context)
        elif context.entry.deployer is not None:
            yield from deploy_steps(context)
        else:
            yield from task_steps(context)
    except DesiredStateError as error:
        yield _blocked(context.axon, task_name(context.entry), error.message, word=error.reason)


def _never_fires(axon: DesiredAxon, sensor: str) -> bool:
    return any(item.name == sensor and item.conditions for item in axon.document.spec.sensors)


def _gone(desired: DesiredState, observed: Observed) -> Iterator[AnyStep]:
    """Runs of axons that no commit has any more. A manifest that cannot be read is not gone: what runs goes on."""
    if desired.faults or not desired.is_trusted:
        return
    for run in observed.recorded.runs.values():
        if run.axon in desired.axons or run.superseded:
            continue
        jobs = _running_jobs(run, observed)
        is_asked = any(item.run == run.id and not item.ended for item in observed.recorded.proposals.values())
        if jobs or is_asked:
            yield SupersedeRun(axon=run.axon, reason="its axon is gone from the branch", run=run, jobs=jobs)


def _project_steps(desired: DesiredState) -> Iterator[AnyStep]:
    """What the project's document asks for in vain, and releases that cannot be as they say."""
    for why, keys in _by_reason(project_notes(desired.project, branch=desired.revision.branch)).items():
        text = f"{why}, so this has no effect: {', '.join(keys)}"
        yield Blocked(axon="", reason=text, subject="myelin.yaml", state="done")
    for (axon, deployer), release in sorted(desired.releases.items()):
        file, _ = desired.release_files.get((axon, deployer), ("", b""))
        held = {hold.version for hold in release.spec.holds}
        for name in dict.fromkeys((*(share.version for share in release.spec.traffic), release.spec.shadow)):
            version = desired.versions.get(name)
            fits = version is not None and (version.metadata.axon, version.spec.deployer) == (axon, deployer)
            if name and not fits:
                text = f"{file}: {name}: expected a version of {axon}/{deployer}, there is no record of one"
                yield Blocked(axon=axon, task=deployer, reason=text, subject=f"{axon}/{deployer}", word="UnknownVersion")
            elif name in held and any(share.version == name and share.share for share in release.spec.traffic):
                text = f"{file}: {name} has traffic and is on hold; a person's word counts, so it is served"
                yield Blocked(
                    axon=axon, task=deployer, reason=text, subject=f"{axon}/{deployer}", word="HeldServed", state="done"
                )


def _notes(axon: DesiredAxon, around: Surroundings, platforms: Collection[str]) -> Iterator[AnyStep]:
    notes = axon_notes(axon.document, engine=around.engine, platforms=platforms)
    for why, keys in _by_reason(notes).items():
        yield _blocked(axon, "", f"{why}, so this has no effect: {', '.join(keys)}", state="done")
    for sensor in axon.document.spec.sensors:
        for trigger, text in why_never(sensor):
            yield _blocked(axon, f"{sensor.name}/{trigger}" if trigger else sensor.name, text)
        for trigger_name, given in triggers_of(sensor):
            if given is not None and given.type == "Alert" and (why := why_refused(given.condition, axon.name)):
                yield _blocked(axon, f"{sensor.name}/{trigger_name}", f"{why}; this one never fires", word="PromqlRefused")


def _by_reason(notes: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for why, key in notes:
        found.setdefault(why, []).append(key)
    return found


def _blocked(
    axon: DesiredAxon, task: str, text: str, *, word: str = "NotBuilt", state: Literal["stalled", "waiting", "done"] = "stalled"
) -> Blocked:
    subject = f"{axon.name}/{task}" if task else axon.name
    return Blocked(axon=axon.name, task=task, reason=text, subject=subject, word=word, state=state)


def _within_limits(
    steps: Iterable[AnyStep], desired: DesiredState, observed: Observed, around: Surroundings
) -> Iterator[AnyStep]:
    """The steps, with no more jobs to start than may run at once; the others wait for a place."""
    limit = desired.project.spec.limits.max_concurrent_jobs or around.places
    running = [job for job in observed.jobs.values() if job.phase == "running"]
    free = max(limit - len(running), 0)
    for step in steps:
        if not limit or not isinstance(step, RunJob | Tune):
            yield step
        elif isinstance(step, Tune):
            wanted = step.experiment.concurrency - sum(job.labels.get("taskRun") == step.experiment.id for job in running)
            places = min(free, max(wanted, 0))
            free -= places
            yield replace(step, places=places)
        elif step.job.name in observed.jobs or free > 0:
            free -= step.job.name not in observed.jobs
            yield step
        else:
            text = f"waits for a place: {limit} jobs may run at once (spec.limits.maxConcurrentJobs)"
            subject = f"{step.axon}/{step.task}"
            yield Blocked(axon=step.axon, task=step.task, reason=text, subject=subject, word="Queued", state="waiting")
