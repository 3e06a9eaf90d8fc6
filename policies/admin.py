"""What programs ask of the controller by HTTP -> answers in the shape that the earlier client reads.

Laws: only what was recorded or seen is told, never a guess; equal looks give equal answers; a name that desired state
does not have is an error that says which there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

from policies.errors import DesiredStateError
from policies.sensors import triggers_of
from policies.serving import proxy_name, server_name
from policies.terms.desired import DesiredAxon, DesiredState
from policies.terms.observed import Observed, Recorded
from policies.terms.run import Run, TaskRun
from policies.terms.task import JobState, ServerState
from policies.terms.version import BackendRecord, Version

ANY_PROJECT = "project"
"""What a sender may say that does not know the project's name."""
Places = Callable[[str, str], str]
"""(job or server, `model` or `data`) -> path of that folder with a slash at its end; empty where there is none."""


def axon_runs(desired: DesiredState, observed: Observed, axon: str, *, place: Places) -> dict[str, Any]:
    """All recorded runs of an axon: `sensors[].children[]` are runs, their `children[]` are task runs.

    A task run's `name` is its `TASK_ID`; `startedAtTs` is when its job started, or when its end was recorded where the
    job is gone, in milliseconds since 1970.

    Raises:
        DesiredStateError: No axon of that name.
    """
    document = _axon(desired, axon).document
    by_sensor: dict[str, list[dict[str, Any]]] = {sensor.name: [] for sensor in document.spec.sensors}
    tasks: dict[str, list[TaskRun]] = {}
    for task in observed.recorded.tasks.values():
        tasks.setdefault(task.run, []).append(task)
    for run in observed.recorded.runs.values():
        if run.axon == axon:
            children = [_task_node(task, observed, place) for task in tasks.get(run.id, ())]
            by_sensor.setdefault(run.sensor, []).append(_run_node(run, children))
    sensors = [{"name": name, "children": children} for name, children in by_sensor.items()]
    return {"name": axon, "sensors": sensors}


def deployed_graphs(desired: DesiredState, observed: Observed, axon: str, graph: str, *, place: Places) -> dict[str, Any]:
    """The versions of a deployer that have servers, newest first, as `deployedModelGraphs[].models[].backends[]`.

    `url` and `clusterUrl` lead to the server itself, `publicUrl` through the proxy to its version.

    Raises:
        DesiredStateError: No axon, or no deployer, of that name.
    """
    known = _deployers(_axon(desired, axon), desired)
    if graph not in known:
        raise DesiredStateError(f"model graph {graph} of {axon}: expected {_one_of(known)}", reason="NoSuchName")
    versions = [item for item in desired.versions.values() if (item.metadata.axon, item.spec.deployer) == (axon, graph)]
    versions.sort(key=lambda item: (item.spec.created_at, item.metadata.name), reverse=True)
    graphs = (_graph_node(version, observed.servers, place) for version in versions)
    return {"deployedModelGraphs": [node for node in graphs if node["models"]]}


def check_target(desired: DesiredState, *, project: str, axon: str, sensor: str, trigger: str) -> None:
    """Check that an event that came in by HTTP has somebody who waits for it.

    Args:
        desired: The newest desired state.
        project: The project's name, or `project`.
        axon: The axon.
        sensor: A sensor of it.
        trigger: A trigger of type Rest of it; empty: any.

    Raises:
        DesiredStateError: Nobody does.
    """
    name = desired.project.metadata.name
    if project not in (name, ANY_PROJECT):
        raise DesiredStateError(f"project {project}: expected {_one_of(dict.fromkeys((name, ANY_PROJECT)))}", reason="NoSuchName")
    waiting: dict[str, list[str]] = {}
    for item in _axon(desired, axon).document.spec.sensors:
        names = [name for name, rule in triggers_of(item) if rule is not None and rule.type == "Rest"]
        if names:
            waiting[item.name] = names
    if sensor not in waiting:
        raise DesiredStateError(
            f"sensor {sensor} of {axon}: expected {_one_of(waiting)} with a trigger of type Rest", reason="NoSuchName"
        )
    if trigger and trigger not in waiting[sensor]:
        raise DesiredStateError(f"trigger {trigger} of {axon}/{sensor}: expected {_one_of(waiting[sensor])}", reason="NoSuchName")


def _axon(desired: DesiredState, axon: str) -> DesiredAxon:
    if axon not in desired.axons:
        raise DesiredStateError(f"axon {axon}: expected {_one_of(sorted(desired.axons))}", reason="NoSuchName")
    return desired.axons[axon]


def _one_of(names: Iterable[str]) -> str:
    found = list(names)
    if len(found) < 2:
        return found[0] if found else "one, there is none"
    return f"one of {', '.join(found)}"


def _deployers(axon: DesiredAxon, desired: DesiredState) -> list[str]:
    """Names of an axon's deployers: those of the manifest, and those whose versions are still there."""
    groups = (group for sensor in axon.document.spec.sensors for group in sensor.tasks)
    named = [item.deployer.name for group in groups for item in group if item.deployer is not None]
    made = [version.spec.deployer for version in desired.versions.values() if version.metadata.axon == axon.name]
    return sorted({*named, *made})


def _run_node(run: Run, children: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "name": run.id,
        "id": run.id,
        "superseded": run.superseded,
        "startedAtTs": _milliseconds(run.started_at),
        "children": children,
    }


def _task_node(task: TaskRun, observed: Observed, place: Places) -> dict[str, Any]:
    job = _job(_source(task, observed.recorded), observed.jobs)
    started = job.started_at if job is not None and not task.reused else None
    env = []
    if job is not None:
        kinds = {"MODEL_PATH": "model" if task.model else "", "DATA_PATH": "data" if task.data else ""}
        env = _env({name: place(job.name, kind) for name, kind in kinds.items() if kind})
    return {
        "taskName": task.task,
        "name": task.id,
        "id": task.id,
        "type": task.kind,
        "status": task.state,
        "message": task.message,
        "startedAtTs": _milliseconds(started or task.at),
        "finishedAtTs": _milliseconds(task.at),
        "template": {"container": {"env": env}},
    }


def _source(task: TaskRun, recorded: Recorded) -> TaskRun:
    """The task run that made a result which others take over."""
    seen = {task.id}
    while task.reused in recorded.tasks and task.reused not in seen:
        seen.add(task.reused)
        task = recorded.tasks[task.reused]
    return task


def _job(task: TaskRun, jobs: Mapping[str, JobState]) -> JobState | None:
    """The job behind a task run; of a tuning run the winning trial's at its longest budget."""
    found = [job for job in jobs.values() if job.labels.get("taskRun") == task.id and job.labels.get("trial", "") == task.trial]
    return max(found, key=lambda job: int(job.labels.get("rung", 0)), default=None)


def _graph_node(version: Version, servers: Mapping[str, ServerState], place: Places) -> dict[str, Any]:
    models: dict[str, list[dict[str, Any]]] = {}
    for backend in version.spec.backends:
        state = servers.get(server_name(version, backend))
        if state is not None:
            models.setdefault(backend.model, []).append(_backend_node(version, backend, state, servers, place))
    return {
        "name": version.metadata.name,
        "id": version.metadata.name,
        "startedAtTs": _milliseconds(version.spec.created_at),
        "models": [{"modelName": name, "backends": backends} for name, backends in models.items()],
    }


def _backend_node(
    version: Version, backend: BackendRecord, state: ServerState, servers: Mapping[str, ServerState], place: Places
) -> dict[str, Any]:
    axon, url = version.metadata.axon, f"http://{state.address}/"
    proxy = servers.get(proxy_name(axon, version.spec.deployer))
    return {
        "modelBackendName": backend.backend,
        "name": state.name,
        "id": state.name,
        "url": url,
        "clusterUrl": url,
        "publicUrl": f"http://{proxy.address}/{axon}/versions/{version.metadata.name}/" if proxy is not None else "",
        "status": state.phase.capitalize(),
        "startedAtTs": _milliseconds(version.spec.created_at),
        "env": _env({"MODEL_PATH": place(state.name, "model") if backend.artifact else ""}),
    }


def _env(values: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "value": value} for name, value in values.items() if value]


def _milliseconds(at: datetime) -> int:
    return int(at.timestamp() * 1000)
