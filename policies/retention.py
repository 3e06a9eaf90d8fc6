"""What may go: jobs whose result is in the ledger, and images, models and data that nothing names any more.

Laws: a job that runs, or whose result is not recorded and pushed yet, is left alone: what a lost disk would take with it
can still be read off the engine. Nothing goes that a release, a hold, an open proposal, a run that goes on, a server, the
plan, or one of a deployer's last versions uses; where that cannot be told, nothing goes at all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta

from policies.deploying import versions_of
from policies.identity import task_run_id
from policies.jobs import Surroundings
from policies.selection import best_of
from policies.terms.desired import DesiredAxon, DesiredState
from policies.terms.digest import is_digest
from policies.terms.document_types import parse_duration
from policies.terms.observed import Observed, Recorded
from policies.terms.plan import AnyStep, Deploy, FinishTask, Plan, RunJob, Serve, Tune
from policies.terms.run import Run, TaskRun
from policies.terms.task import JobSpec, JobState, ServerSpec
from policies.terms.version import Version

KEPT_LOGS = 500
"""Ended jobs whose log is kept for `myelin logs`, the newest ones; older ones are forgotten whole."""


def freeable(observed: Observed) -> tuple[str, ...]:
    """Jobs whose folders may go, sorted; their logs and reports stay."""
    return tuple(sorted(job.name for job in _over(observed) if not job.is_freed))


def forgettable(observed: Observed) -> tuple[str, ...]:
    """Jobs of which nothing need be kept, oldest first."""
    ended = sorted((job for job in _over(observed) if job.ended_at is not None), key=lambda job: (job.ended_at, job.name))
    return tuple(job.name for job in ended[: max(len(ended) - KEPT_LOGS, 0)])


def why_nothing_goes(desired: DesiredState, observed: Observed) -> str:
    """Why it cannot be told what is in use; empty where it can."""
    if not desired.is_trusted:
        return f"the tip of {desired.revision.branch} is not trusted"
    if not observed.is_pushed:
        return "what was recorded is not pushed yet"
    unread = next((fault for fault in desired.faults if fault.file.split("/")[0] == "versions"), None)
    return f"{unread.file}: a version's record cannot be read, so what it uses is not known" if unread is not None else ""


def in_use(
    desired: DesiredState,
    observed: Observed,
    *,
    around: Surroundings,
    now: datetime,
    plan: Plan | None = None,
) -> Mapping[str, str]:
    """What must be kept: digest of an image, model or data artifact -> why, in words.

    Args:
        desired: The newest trusted revision; it says how long versions and results are kept whether anything uses them or not.
        observed: What one look found; its `recorded` is the whole ledger.
        around: Says how many versions of a deployer are kept.
        now: This instant, UTC.
        plan: What the pass is about to do.
    """
    recorded, found = observed.recorded, dict[str, str]()
    since = now - timedelta(seconds=parse_duration(desired.project.spec.builder.store.keep_results))

    def keep(why: str, digests: Iterable[str]) -> None:
        for digest in digests:
            if is_digest(digest):
                found.setdefault(digest, why)

    for version, why in _versions(desired, observed, around, since):
        keep(f"{version.metadata.name}: {why}", _of_version(version, recorded))
    by_run: dict[str, list[TaskRun]] = defaultdict(list)
    for task in recorded.tasks.values():
        by_run[task.run].append(task)
    for run in recorded.runs.values():
        if why := _why_live(run, by_run[run.id], desired, observed):
            keep(f"run {run.id[7:19]} of {run.axon}: {why}", _of_run(run, by_run[run.id], desired, recorded))
    for task, why in _results(desired, recorded, since):
        keep(f"{task.axon}/{task.task}: {why}", _of_task(task))
    for proposal in recorded.proposals.values():
        if not proposal.ended:
            keep(f"people are asked about {proposal.subject}", [proposal.image])
    for state in observed.images.values():
        keep("an image that a run asks for", [state.digest or ""])
    for server in observed.servers.values():
        keep(f"server {server.name} runs it", [server.image])
    for step in plan.steps if plan is not None else ():
        keep(f"{step.axon}/{step.task}: {step.reason}", _of_step(step))
    return found


def swept_of(recorded: Recorded, used: Mapping[str, str]) -> Mapping[str, tuple[str, ...]]:
    """Axon -> models and data of its results that are not in use, sorted: what is to be written down before they go."""
    found: dict[str, set[str]] = defaultdict(set)
    for task in recorded.tasks.values():
        found[task.axon] |= {digest for digest in (task.model, *task.data) if digest}
    left = {axon: tuple(sorted(digests - set(used) - recorded.swept)) for axon, digests in sorted(found.items())}
    return {axon: digests for axon, digests in left.items() if digests}


def _versions(desired: DesiredState, observed: Observed, around: Surroundings, since: datetime) -> Iterator[tuple[Version, str]]:
    asked = {item.version: item for item in observed.recorded.proposals.values() if not item.ended}
    for axon, deployer in sorted({(item.metadata.axon, item.spec.deployer) for item in desired.versions.values()}):
        versions = versions_of(desired, axon, deployer)
        release = desired.releases.get((axon, deployer))
        spec = release.spec if release is not None else None
        named = {share.version: "the release gives it a share" for share in spec.traffic} if spec else {}
        named |= {spec.shadow: "the release gives it mirrored traffic"} if spec and spec.shadow else {}
        held = {hold.version: "it is on hold" for hold in spec.holds} if spec else {}
        before = {item.spec.parent: "one would go back to it" for item in versions if item.metadata.name in named}
        last = {item.metadata.name: "one of the last versions" for item in versions[: max(around.kept_versions, 1)]}
        unread = desired.unread_release(axon)
        for version in versions:
            name = version.metadata.name
            why = named.get(name) or held.get(name) or last.get(name) or before.get(name) or ""
            if not why and name in asked:
                why = "people are asked about it"
            if not why and version.spec.created_at >= since:
                why = "it is young"
            if not why and unread is not None:
                why = "its release cannot be read"
            if why:
                yield version, why


def _why_live(run: Run, tasks: Sequence[TaskRun], desired: DesiredState, observed: Observed) -> str:
    """Why the work of a run is still needed; empty when it is over."""
    if any(job.phase == "running" and job.labels.get("run") == run.id for job in observed.jobs.values()):
        return "a job runs"
    if any(item.run == run.id and not item.ended for item in observed.recorded.proposals.values()):
        return "people are asked about what came of it"
    axon = desired.axons.get(run.axon)
    if run.superseded or (axon is None and not desired.faults):
        return ""
    if axon is None:
        return "its axon cannot be read"
    sensor = next((item for item in axon.document.spec.sensors if item.name == run.sensor), None)
    if sensor is None or run.axon_digest != axon.digest:
        return ""
    is_over = any(task.state == "Failed" for task in tasks) or len(tasks) >= sum(len(group) for group in sensor.tasks)
    return "" if is_over else "it goes on"


def _results(desired: DesiredState, recorded: Recorded, since: datetime) -> Iterator[tuple[TaskRun, str]]:
    """Results that later work takes over: of each task the newest, the best where a backend asks for it, and young ones."""
    groups: dict[tuple[str, str], list[TaskRun]] = defaultdict(list)
    for task in recorded.tasks.values():
        if task.state == "Succeeded" and (task.axon in desired.axons or desired.faults):
            groups[task.axon, task.task].append(task)
            if task.at >= since:
                yield task, "a young result"
    for (axon, name), tasks in groups.items():
        yield tasks[-1], "its newest result"
        left = [task for task in tasks if task.model]
        if left:
            yield left[-1], "its newest model"
        if axon in desired.axons:
            for best in _best(desired.axons[axon], name, left, recorded):
                yield best, "its best model"


def _best(axon: DesiredAxon, name: str, tasks: Iterable[TaskRun], recorded: Recorded) -> Iterator[TaskRun]:
    """The best training on the same data, of those that are comparable still."""
    spec = axon.document.spec
    train = next((task.train for task in spec.tasks if task.name == name), None)
    wanted = any(
        backend.trainer == name and backend.model_selection_strategy == "best"
        for sensor in spec.sensors
        for group in sensor.tasks
        for entry in group
        if entry.deployer is not None
        for model in entry.deployer.models
        for backend in model.backend_models
    )
    if train is None or not train.loss_metric or not wanted:
        return
    by_data: dict[tuple[str, ...], list[TaskRun]] = defaultdict(list)
    for task in tasks:
        run = recorded.runs.get(task.run)
        if run is not None and run.axon_digest == axon.digest and task.model not in recorded.swept:
            by_data[task.data].append(task)
    yield from (best_of(comparable, train) for comparable in by_data.values())


def _of_version(version: Version, recorded: Recorded) -> Iterator[str]:
    yield from version.spec.data
    for backend in version.spec.backends:
        yield from (backend.image, backend.artifact)
        trained = recorded.tasks.get(backend.task_run)
        if trained is not None:
            yield from _of_task(trained)


def _of_run(run: Run, tasks: Sequence[TaskRun], desired: DesiredState, recorded: Recorded) -> Iterator[str]:
    causes = [str(event.data.get("taskRun", "")) for key in run.events if (event := recorded.events.get(key)) is not None]
    before = (recorded.tasks.get(key) for key in causes)
    for task in (*tasks, *(item for item in before if item is not None)):
        yield from _of_task(task)
    axon = desired.axons.get(run.axon)
    # A tuning's trials are told by the task; of an axon that cannot be read it is not known which tasks it has.
    tunings = {task_run_id(run.id, task.name) for task in axon.document.spec.tasks} if axon else recorded.tells.keys()
    for key in tunings & recorded.tells.keys():
        yield from (tell.model for tell in recorded.tells[key])


def _of_task(task: TaskRun) -> tuple[str, ...]:
    return (task.image, task.model, *task.data)


def _of_step(step: AnyStep) -> Iterator[str]:
    if isinstance(step, RunJob | Tune):
        yield from (*_of_job(step.job), *_of_task(step.result))
    elif isinstance(step, FinishTask):
        yield from _of_task(step.result)
    elif isinstance(step, Serve):
        yield from _of_server(step.server)
    elif isinstance(step, Deploy):
        yield from step.version.spec.data
        for backend in step.version.spec.backends:
            yield from (backend.image, backend.artifact)
        for server in step.servers:
            yield from _of_server(server)


def _of_job(job: JobSpec) -> tuple[str, ...]:
    return (job.image, *job.data, *job.earlier_data.values(), job.model or "")


def _of_server(server: ServerSpec) -> tuple[str, ...]:
    return (server.image, *server.data, server.model or "")


def _over(observed: Observed) -> Iterator[JobState]:
    if not observed.is_pushed:
        return
    recorded = observed.recorded
    told = {(run, tell.run.trial, str(tell.run.rung)) for run, tells in recorded.tells.items() for tell in tells}
    for job in observed.jobs.values():
        labels = job.labels
        task_run, run = labels.get("taskRun", ""), recorded.runs.get(labels.get("run", ""))
        is_told = (task_run, labels.get("trial", ""), labels.get("rung", "")) in told
        if job.phase != "running" and (task_run in recorded.tasks or is_told or (run is not None and run.superseded)):
            yield job
