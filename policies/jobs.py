"""A task of a run -> the job that does it: image, environment, data and the digest of all of its inputs.

Law: equal inputs give an equal inputs digest, so an earlier equal result is found; ids and instants are no inputs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from policies.building import build_rules, build_secrets
from policies.canonical import digest_value, short_name
from policies.errors import DesiredStateError
from policies.hygiene import bytes_of, told
from policies.identity import object_name
from policies.sources import build_folder, elsewhere_of
from policies.terms.axon import KINDS, Axon, EnvVar, ImageBuild, Sensor, Task
from policies.terms.desired import DesiredAxon, DesiredState
from policies.terms.digest import Digest
from policies.terms.event import Event
from policies.terms.observed import Recorded
from policies.terms.project import ProjectSpec
from policies.terms.run import Run, TaskRun
from policies.terms.source import Elsewhere, Resolved
from policies.terms.task import ImageSpec, JobSpec, Kept
from policies.unbuilt import refuse

_PARAMETER = re.compile(r"\{\{\s*workflow\.parameters\.([A-Za-z0-9_.-]+)\s*\}\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What jobs and servers are told of where they are."""

    namespace: str = "default"
    node: str = "localhost"
    inbox: str = ""
    """`http://127.0.0.1:8090`, without slash at the end; empty when nothing listens."""
    base: str = "host"
    """Base image of the Python builder: `host`, or a reference by digest."""
    proxy_port: int | None = None
    """Port wanted for the first deployer's proxy; others take any."""
    places: int = 0
    """How many jobs may run at once where the project does not say; 0: no bound."""
    engine: Literal["one machine", "Kubernetes"] = "one machine"
    """What runs jobs and servers; it decides what of a manifest has an effect."""
    patience_seconds: float = 120.0
    """How long a version's servers may take to answer; nodes may have to pull their images first."""
    kept_versions: int = 3
    """How many versions keep their own URL besides those with traffic."""


def built_on(desired: DesiredState, around: Surroundings) -> Surroundings:
    """The surroundings with the base image that the repository asks for."""
    builder = desired.project.spec.builder
    if "base" not in builder.model_fields_set:
        return around
    return replace(around, base=builder.base)


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """What came before a task: its data, and each earlier task's own."""

    data: tuple[Digest, ...]
    by_task: Mapping[str, Digest]


def upstream(run: Run, before: Sequence[TaskRun], recorded: Recorded) -> Upstream:
    """Data that a task of `run` starts from.

    Args:
        run: The run.
        before: Tasks of earlier groups of the run, in order.
        recorded: Where the tasks behind the run's lifecycle events are found.
    """
    causes = [recorded.tasks.get(str(recorded.events[event].data.get("taskRun", ""))) for event in run.events]
    tasks = [task for task in causes if task is not None] + list(before)
    data: tuple[str, ...] = ()
    by_task: dict[str, Digest] = {}
    for task in tasks:
        if not task.data:
            continue
        # A container's data folder began with what was there before, so it replaces it; others add what they read.
        data = task.data if task.kind == "container" else tuple(dict.fromkeys((*data, *task.data)))
        by_task[task.task] = Digest(task.data[-1])
    return Upstream(data=tuple(Digest(item) for item in data), by_task=by_task)


def image_spec(
    axon: DesiredAxon, build: ImageBuild, run: Run, around: Surroundings, *, recorded: Recorded, project: ProjectSpec
) -> ImageSpec:
    """The image that a task is built as.

    Args:
        axon: The axon.
        build: How the task's image is built.
        run: What it is built for.
        around: Where jobs and servers run.
        recorded: Knows what other repositories came to.
        project: What of a repository is read, and how images are built.

    Raises:
        DesiredStateError: Its source folder cannot be found, or may not be read, or was not looked for in its repository yet.
    """
    folder, source = build_folder(axon.document, build), elsewhere_of(axon.document, build)
    found = resolved(run, source, recorded) if source is not None else None
    if source is not None and found is None:
        raise DesiredStateError(f"{source}: it is not known yet which commit that is", reason="Unresolved")
    tree = (found.trees if found is not None else axon.trees).get(folder, "")
    if not tree:
        where = f"commit {found.commit[:12]} of {found.repo}" if found is not None else "this commit"
        raise DesiredStateError(
            f"folder {folder}: expected source to build from, there is none in {where}", reason="FolderMissing"
        )
    if found is None and (refused := axon.refused.get(folder)):
        raise DesiredStateError(f"folder {folder or '/'}: {told(refused)}", reason=refused[0].reason)
    dockerfile = build.dockerfile.path if build.dockerfile is not None else ""
    return ImageSpec(
        repository=build.repository_name or axon.name,
        commit=run.commit,
        folder=folder,
        tree=tree,
        base=around.base,
        builder="dockerfile" if dockerfile else "python",
        dockerfile=dockerfile,
        event_set=run.event_set,
        source=source,
        source_commit=found.commit if found is not None else "",
        largest_bytes=bytes_of(project.source.largest_file),
        submodules=axon.submodules.get(folder, ()) if source is None else (),
        reads_submodules=project.source.submodules,
        rules=build_rules(project.builder),
        builder_image=build.s2i.builder_image if build.s2i is not None else "",
        network=build.dockerfile is not None and build.dockerfile.network,
        secrets=build_secrets(build),
        checks_exists=build.check_image_exists,
    )


def resolved(run: Run, source: Elsewhere, recorded: Recorded) -> Resolved | None:
    """What another repository came to for a run; None when that is not recorded yet."""
    known = recorded.sources.get(run.id, ())
    wanted = (source.repo, source.revision, source.verify)
    return next((item for item in known if (item.repo, item.revision, bool(item.signer)) == wanted), None)


def environment(axon: Axon, env: Sequence[EnvVar], *, sensor: Sensor | None = None) -> dict[str, str]:
    """A task's own environment, with `{{workflow.parameters.NAME}}` expanded.

    Args:
        axon: Declares parameters.
        env: Variables; later ones win.
        sensor: The one that made the task due; its parameters go before the axon's.

    Raises:
        DesiredStateError: A parameter that nobody declares, or a value from a secret.
    """
    known = {item.name: item.value for item in (*axon.spec.parameters, *(sensor.parameters if sensor else ()))}

    def expand(match: re.Match[str]) -> str:
        if match[1] not in known:
            raise DesiredStateError(f"{{{{workflow.parameters.{match[1]}}}}}: no parameter of that name in spec.parameters")
        return str(known[match[1]])

    for item in env:
        if item.value_from is not None:
            raise refuse(f"env {item.name}: values from secrets and other objects (valueFrom) are")
    return {item.name: _PARAMETER.sub(expand, item.value or "") for item in env}


def identity_environment(axon: str, task: str, task_run: str, job: str, around: Surroundings) -> dict[str, str]:
    """Who a job is and whom it may talk to, see axon-reference 6; no secret among it."""
    told = {
        "AXON_NAME": axon,
        "NAMESPACE": around.namespace,
        "MYELIN_NAMESPACE": around.namespace,
        "TASK_ID": task_run,
        "TASK_NAME": task,
        "MYELIN_POD_NAME": job,
        "MYELIN_NODE_NAME": around.node,
    }
    if around.inbox:
        told |= {
            "PUSHGATEWAY_URL": around.inbox,
            "PUSHGATEWAY_NAMESPACE": around.namespace,
            "TRAIN_CONTROLLER_URL": f"{around.inbox}/trials/{job}",
            "ADMIN_URL": around.inbox,
        }
    return told


def inputs_digest(*, image: str, env: Mapping[str, str], before: Upstream, event: Event | None, extra: Any = None) -> str:
    """Name all that a task's result depends on."""
    return digest_value(
        {
            "image": image,
            "env": dict(env),
            "data": list(before.data),
            "earlier": dict(before.by_task),
            "event": event.id if event else "",
            "extra": extra,
        }
    )


def cause(run: Run, recorded: Recorded) -> Event | None:
    """The event whose content tasks may read: one that came from outside of the repository and the flow itself."""
    for event in (recorded.events[item] for item in run.events):
        if event.kind in ("Rest", "Calendar", "Alert"):
            return event
    return None


def job_spec(
    axon: DesiredAxon,
    task: Task,
    run: Run,
    task_run: str,
    *,
    image: Digest,
    env: Mapping[str, str],
    before: Upstream,
    event: Event | None,
    keeps: tuple[Kept, ...],
    around: Surroundings,
    loss_metric: str = "",
    timeout_seconds: float | None = None,
    seed: int | None = None,
) -> JobSpec:
    """The job of a task run."""
    name = object_name(axon.name, task.name, short_name(Digest(task_run)))
    body = next(getattr(task, kind) for kind in KINDS if getattr(task, kind) is not None)
    told = identity_environment(axon.name, task.name, task_run, name, around)
    if loss_metric:
        told["LOSS_METRIC"] = loss_metric
    if seed is not None:
        told["SEED"] = str(seed)
    return JobSpec(
        name=name,
        axon=axon.name,
        task=task.name,
        image=image,
        is_laid_by_us=body.image_build is None or body.image_build.dockerfile is None,
        env={**env, **told},
        data=before.data,
        earlier_data=before.by_task,
        keeps=keeps,
        event=dict(event.data) if event else None,
        timeout_seconds=timeout_seconds,
        resources=body.resources,
        node_selector=body.node_selector,
        labels={"axon": axon.name, "task": task.name, "run": run.id, "taskRun": task_run},
    )
