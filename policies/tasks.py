"""One container or train task of a run -> the step that brings it on: image, reuse, job or tuning."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from policies.errors import DesiredStateError
from policies.experiment import experiment_of
from policies.identity import image_identity
from policies.jobs import (
    Surroundings,
    Upstream,
    cause,
    environment,
    image_spec,
    inputs_digest,
    job_spec,
    resolved,
    upstream,
)
from policies.lock_proposals import is_asked
from policies.sources import elsewhere_of, folders_elsewhere
from policies.terms.axon import ContainerTask, DeployTask, Sensor, SensorTask, Task, TrainTask
from policies.terms.desired import DesiredAxon, DesiredState
from policies.terms.digest import Digest
from policies.terms.observed import Observed
from policies.terms.plan import AnyStep, BuildImage, FinishTask, RecordImage, ResolveSource, RunJob, Tune
from policies.terms.run import Run, TaskRun
from policies.terms.task import ImageSpec
from policies.unbuilt import check_base, check_build, check_gate, check_task, refuse


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskContext:
    """One task of one run, and all that its next step depends on."""

    desired: DesiredState
    axon: DesiredAxon
    sensor: Sensor
    run: Run
    entry: SensorTask
    id: str
    """Task run id."""
    before: tuple[TaskRun, ...]
    """Tasks of earlier groups of the run."""
    observed: Observed
    now: datetime
    around: Surroundings

    def task(self, name: str) -> Task:
        """The axon's task of that name.

        Raises:
            DesiredStateError: There is none.
        """
        for task in self.axon.document.spec.tasks:
            if task.name == name:
                return task
        raise DesiredStateError(f"task {name}: no task of that name in spec.tasks")


def task_steps(context: TaskContext) -> Iterator[AnyStep]:
    """What is due for a container or train task.

    Raises:
        DesiredStateError: It cannot be done as the manifest says.
    """
    entry = context.entry
    name = entry.resource_executor.task if entry.resource_executor else entry.trainer.task if entry.trainer else ""
    task = context.task(name)
    check_task(task)
    body = task.container or task.train
    if body is None:
        raise DesiredStateError(f"task {name}: expected a container or train task")
    image = yield from image_steps(context, name, body)
    if image is None:
        return
    before = upstream(context.run, context.before, context.observed.recorded)
    env = environment(context.axon.document, (*body.env, *entry.env), sensor=context.sensor)
    if task.train is not None and task.train.hp_tuning is not None:
        yield _tune(context, task, task.train, image, env, before)
    else:
        yield _job(context, task, image, env, before)


def image_steps(
    context: TaskContext, name: str, body: ContainerTask | TrainTask | DeployTask
) -> Generator[AnyStep, None, Digest | None]:
    """Yield the step that an image still needs; return its digest once it is built."""
    if body.image:
        raise refuse(f"task {name}: running ready-made images (`image`; use imageBuild) is")
    if body.image_build is None:
        raise DesiredStateError(f"task {name}: expected `image` or `imageBuild`, got neither")
    check_build(body.image_build)
    check_base(context.around.base, engine=context.around.engine)
    recorded = context.observed.recorded
    source = elsewhere_of(context.axon.document, body.image_build)
    if source is not None and resolved(context.run, source, recorded) is None:
        yield ResolveSource(
            axon=context.axon.name,
            task=name,
            reason=f"{name} is built from {source}",
            run=context.run.id,
            source=source,
            folders=folders_elsewhere(context.axon.document, source),
            signers=context.desired.signers if source.verify else (),
        )
        return None
    spec = image_spec(
        context.axon,
        body.image_build,
        context.run,
        context.around,
        recorded=recorded,
        project=context.desired.project.spec,
    )
    identity = image_identity(spec)
    state = context.observed.images.get(identity)
    if state is not None and state.phase == "built" and state.digest is not None:
        if state.digest not in recorded.images:
            reason = f"{name} uses image {state.digest[7:19]}{_unlocked(context, state.materials)}"
            yield RecordImage(axon=context.axon.name, task=name, reason=reason, image=state.digest, materials=state.materials)
        return state.digest
    phase = state.phase if state else "absent"
    message = state.message if state else ""
    if state is not None and state.phase == "failed" and not state.is_passing:
        result = context_result(context, name, "image", "")
        text = f"image {spec.repository}: {state.message}"
        yield FinishTask(
            axon=context.axon.name,
            task=name,
            reason="its image cannot be built",
            result=replace_state(result, "Failed", state.reason or "BuildFailed", text),
        )
        return None
    check_gate(context.desired.project, "image")
    yield BuildImage(
        axon=context.axon.name,
        task=name,
        reason=f"{name} needs an image of {_place(spec)}",
        image=spec,
        identity=identity,
        phase=phase,
        message=message,
    )
    return None


def _unlocked(context: TaskContext, materials: Mapping[str, Any]) -> str:
    """What a person can do about requirements that are not locked, where nobody is going to be asked."""
    if not materials.get("lock") or "repo" in materials or is_asked(context.desired):
        return ""
    return "; its requirements are not locked: `myelin lock --into .` keeps what was chosen"


def _place(spec: ImageSpec) -> str:
    if spec.source is not None:
        return f"{spec.folder or 'all'} of {spec.source.repo} at {spec.source_commit[:12]}"
    return f"{spec.folder or 'the repository'} at {spec.commit[:12]}"


def context_result(context: TaskContext, task: str, kind: str, inputs: str) -> TaskRun:
    """The record that a task run will leave, as far as it is known before."""
    return TaskRun(
        id=context.id,
        run=context.run.id,
        axon=context.axon.name,
        task=task,
        kind=kind,
        state="Succeeded",
        at=context.now,
        inputs=inputs,
    )


def replace_state(result: TaskRun, state: str, reason: str = "", message: str = "") -> TaskRun:
    """The same record with another end."""
    return replace(result, state=state, reason=reason, message=message)  # type: ignore[arg-type]


def reused(context: TaskContext, result: TaskRun) -> TaskRun | None:
    """The record that takes over an earlier result of equal inputs, None when there is none."""
    earlier = context.observed.recorded.inputs.get(result.inputs)
    if earlier is None or earlier.id == result.id:
        return None
    return replace(
        earlier,
        id=result.id,
        run=result.run,
        axon=result.axon,
        task=result.task,
        at=result.at,
        reused=earlier.id,
        reason="Reused",
        message="equal inputs, same result",
    )


def _job(context: TaskContext, task: Task, image: Digest, env: Mapping[str, str], before: Upstream) -> AnyStep:
    body = task.container or task.train
    assert body is not None
    is_train = task.train is not None
    event = cause(context.run, context.observed.recorded)
    loss_metric = (task.train.loss_metric or "") if task.train is not None else ""
    extra = {"lossMetric": loss_metric, "task": task.name, "seed": task.train.seed if task.train is not None else None}
    inputs = inputs_digest(image=image, env=env, before=before, event=event, extra=extra)
    result = context_result(context, task.name, "train" if is_train else "container", inputs)
    if body.cache is not False and (earlier := reused(context, result)):
        return FinishTask(
            axon=context.axon.name, task=task.name, reason="equal inputs: the earlier result is used", result=earlier
        )
    job = job_spec(
        context.axon,
        task,
        context.run,
        context.id,
        image=image,
        env=env,
        before=before,
        event=event,
        keeps=("model", "data") if is_train else ("data",),
        around=context.around,
        loss_metric=loss_metric,
        seed=_seed(context, task),
    )
    return RunJob(
        axon=context.axon.name,
        task=task.name,
        reason=f"{task.name} of {context.run.sensor}",
        job=job,
        result=replace(result, image=image, data=before.data if is_train else ()),
        loss_metric=loss_metric,
    )


def _tune(context: TaskContext, task: Task, train: TrainTask, image: Digest, env: Mapping[str, str], before: Upstream) -> AnyStep:
    event = cause(context.run, context.observed.recorded)
    tuning = train.hp_tuning.model_dump(mode="json", by_alias=True) if train.hp_tuning is not None else None
    extra = {
        "tuning": tuning,
        "lossMetric": train.loss_metric,
        "selector": train.loss_metric_selector,
        "task": task.name,
        "seed": train.seed,
    }
    inputs = inputs_digest(image=image, env=env, before=before, event=event, extra=extra)
    result = context_result(context, task.name, "tune", inputs)
    if train.cache is not False and (earlier := reused(context, result)):
        return FinishTask(
            axon=context.axon.name, task=task.name, reason="equal inputs: the earlier result is used", result=earlier
        )
    experiment = experiment_of(task, experiment_id=context.id, axon=context.axon.name)
    job = job_spec(
        context.axon,
        task,
        context.run,
        context.id,
        image=image,
        env=env,
        before=before,
        event=event,
        keeps=("model",),
        around=context.around,
        loss_metric=train.loss_metric or "",
        timeout_seconds=experiment.trial_timeout_seconds,
        seed=_seed(context, task),
    )
    return Tune(
        axon=context.axon.name,
        task=task.name,
        reason=f"{task.name} of {context.run.sensor}",
        experiment=experiment,
        job=job,
        result=replace(result, image=image, data=before.data),
        loss_metric=train.loss_metric or "",
    )


def _seed(context: TaskContext, task: Task) -> int | None:
    """What a training is told as `SEED`: the manifest's, else one of its run; no input, so equal work is still reused."""
    if task.train is None:
        return None
    return task.train.seed if task.train.seed is not None else int(context.run.id[7:15], 16) % 2**31
