"""What a manifest says of itself in two places: names that must fit, cycles, sums."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from policies.cron import parse_cron
from policies.errors import Fault
from policies.terms.axon import Axon, Deployer, Destination, Sensor, SensorTask, Trigger, Tuning
from policies.terms.document import LoadedDocument
from policies.terms.release import Release

Path = tuple[str | int, ...]


def cross_faults(document: Axon | Release, loaded: LoadedDocument) -> Iterator[Fault]:
    """All references that lead nowhere, names given twice, cycles and weights that are no whole."""
    found = _axon(document, loaded.value) if isinstance(document, Axon) else _release(document)
    for path, reason, message in found:
        line = next(loaded.lines[path[:end]] for end in range(len(path), -1, -1) if path[:end] in loaded.lines)
        dotted = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
        yield Fault(file=loaded.file, line=line, path=dotted, reason=reason, message=message)


def entries_of(sensor: Sensor, index: int, document: Any) -> Iterator[tuple[Path, SensorTask]]:
    """A sensor's tasks, each with its path in the document, which may have them flat or in groups.

    Args:
        sensor: The sensor.
        index: Its place in `spec.sensors`.
        document: The document's plain value.
    """
    path: Path = ("spec", "sensors", index, "tasks")
    written = document
    for part in path:
        known = isinstance(written, Mapping) or (isinstance(written, list) and isinstance(part, int) and part < len(written))
        written = written[part] if known and (not isinstance(written, Mapping) or part in written) else []
    for number, group in enumerate(sensor.tasks):
        is_group = number < len(written) and isinstance(written[number], list)
        for place, entry in enumerate(group):
            yield ((*path, number, place) if is_group else (*path, number)), entry


def _release(release: Release) -> Iterator[tuple[Path, str, str]]:
    path: Path = ("spec", "traffic")
    yield from _twice(path, [share.version for share in release.spec.traffic], "version")
    total = sum(share.share for share in release.spec.traffic)
    if release.spec.traffic and total != 100:
        yield path, "NotAHundred", f"expected shares that sum to 100, got {total}"


def _axon(axon: Axon, written: Any) -> Iterator[tuple[Path, str, str]]:
    yield from _twice(("spec", "tasks"), [task.name for task in axon.spec.tasks])
    yield from _twice(("spec", "sensors"), [sensor.name for sensor in axon.spec.sensors])
    yield from _twice(("spec", "artifacts"), [artifact.name for artifact in axon.spec.artifacts])
    yield from _twice(("spec", "parameters"), [parameter.name for parameter in axon.spec.parameters])
    artifacts = {artifact.name for artifact in axon.spec.artifacts}
    for index, artifact in enumerate(axon.spec.artifacts):
        if artifact.git is not None and artifact.git.revision and not artifact.git.repo:
            message = "expected `repo` beside `revision`; without `git` it is this repository at the reconciled commit"
            yield ("spec", "artifacts", index, "git", "revision"), "Missing", message
    for index, task in enumerate(axon.spec.tasks):
        if task.train is not None and task.train.hp_tuning is not None:
            yield from _space(task.train.hp_tuning, ("spec", "tasks", index, "train", "hpTuning", "params"))
        body = task.container or task.train or task.deploy or task.spark
        kind = next(name for name in ("container", "train", "deploy", "spark") if getattr(task, name) is not None)
        if body is not None and body.image_build is not None and body.image_build.artifact not in artifacts:
            path: Path = ("spec", "tasks", index, kind, "imageBuild", "artifact")
            yield path, "UnknownName", f"expected one of spec.artifacts ({_names(artifacts)}), got {body.image_build.artifact}"
    for index, sensor in enumerate(axon.spec.sensors):
        yield from _sensor(axon, sensor, ("spec", "sensors", index), list(entries_of(sensor, index, written)))


def _sensor(axon: Axon, sensor: Sensor, path: Path, entries: list[tuple[Path, SensorTask]]) -> Iterator[tuple[Path, str, str]]:
    tasks = {task.name: task for task in axon.spec.tasks}
    deployers = {
        entry.deployer.name
        for other in axon.spec.sensors
        for group in other.tasks
        for entry in group
        if entry.deployer is not None
    }
    given = [trigger.name for trigger in sensor.triggers]
    yield from _twice((*path, "triggers"), [name or f" {index}" for index, name in enumerate(given)])
    seen: set[str] = set()
    for here, entry in entries:
        what, place = _what(entry)
        if what in seen:
            yield (*here, *place), "Duplicate", f"expected each task once in a sensor, got {what} twice"
        seen.add(what)
    for index, trigger in enumerate(sensor.triggers):
        if trigger.type == "Lifecycle" and trigger.task not in tasks:
            yield (
                (*path, "triggers", index, "task"),
                "UnknownName",
                f"expected one of spec.tasks ({_names(tasks)}), got {trigger.task or 'nothing'}",
            )
        for key, reason, message in _trigger(trigger):
            yield (*path, "triggers", index, key), reason, message
    for index, condition in enumerate(sensor.conditions):
        if condition.task and condition.task not in tasks:
            message = f"expected one of spec.tasks ({_names(tasks)}), got {condition.task}"
            yield (*path, "conditions", index, "task"), "UnknownName", message
    for here, entry in entries:
        if entry.rollback is not None and entry.rollback.deployer not in deployers:
            message = f"expected one of the deployers ({_names(deployers)}), got {entry.rollback.deployer}"
            yield (*here, "rollback", "deployer"), "UnknownName", message
        if entry.trainer is not None:
            named = tasks.get(entry.trainer.task)
            if named is None or named.train is None:
                yield (*here, "trainer", "task"), "UnknownName", f"expected a train task, got {entry.trainer.task}"
        if entry.resource_executor is not None:
            named = tasks.get(entry.resource_executor.task)
            if named is None or (named.container is None and named.spark is None):
                yield (
                    (*here, "resourceExecutor", "task"),
                    "UnknownName",
                    f"expected a container or spark task, got {entry.resource_executor.task}",
                )
        if entry.deployer is not None:
            yield from _deployer(axon, entry.deployer, (*here, "deployer"))


def _what(entry: SensorTask) -> tuple[str, Path]:
    """What an entry of a sensor makes due, and where that is said."""
    if entry.resource_executor is not None:
        return entry.resource_executor.task, ("resourceExecutor", "task")
    if entry.trainer is not None:
        return entry.trainer.task, ("trainer", "task")
    if entry.deployer is not None:
        return f"deployer {entry.deployer.name}", ("deployer", "name")
    return f"rollback of {entry.rollback.deployer if entry.rollback else ''}", ("rollback", "deployer")


def _space(tuning: Tuning, path: Path) -> Iterator[tuple[Path, str, str]]:
    """A search space: each parameter once, whole bounds of whole numbers, conditions that can come true."""
    yield from _twice(path, [parameter.name for parameter in tuning.params])
    known = {parameter.name: parameter for parameter in tuning.params}
    for index, parameter in enumerate(tuning.params):
        here = (*path, index)
        if parameter.type == "UniformInteger" and parameter.numerical is not None:
            for key in ("lower", "upper", "default_value"):
                value = getattr(parameter.numerical, key)
                if value is not None and value != int(value):
                    yield (*here, "numerical", key), "WrongType", f"expected a whole number with UniformInteger, got {value:g}"
        for name, values in (parameter.condition or {}).items():
            parent = known.get(name)
            if parent is None or parent.type == "Constant" or name == parameter.name:
                others = _names(other for other in known if other != parameter.name and known[other].type != "Constant")
                yield (*here, "condition"), "UnknownName", f"expected another parameter that varies ({others}), got {name}"
            elif parent.categorical is not None:
                for value in values:
                    if value not in parent.categorical.values:
                        shown = ", ".join(str(item) for item in parent.categorical.values)
                        yield (*here, "condition"), "UnknownName", f"expected one of the values of {name} ({shown}), got {value}"


def _trigger(trigger: Trigger) -> Iterator[tuple[str, str, str]]:
    if trigger.type == "Lifecycle" and trigger.condition not in ("", "Succeeded", "Failed"):
        yield "condition", "NotAllowed", f"expected Succeeded or Failed, got {trigger.condition}"
    if trigger.type == "Alert" and not trigger.condition:
        yield "condition", "Missing", "expected `condition` in PromQL, got nothing"
    if trigger.type == "Calendar":
        try:
            parse_cron(trigger.schedule)
        except ValueError as error:
            yield "schedule", "NotASchedule", str(error)


def _deployer(axon: Axon, deployer: Deployer, path: Path) -> Iterator[tuple[Path, str, str]]:
    tasks = {task.name: task for task in axon.spec.tasks}
    models = {model.name for model in deployer.models}
    yield from _twice((*path, "models"), [model.name for model in deployer.models])
    if not any(model.backend_models for model in deployer.models):
        yield (*path, "models"), "Missing", "expected at least one model with a backend to deploy, got none"
    for index, model in enumerate(deployer.models):
        if model.name in ("data", "strData", "binData", "meta"):
            message = f"expected a name that is no part of a message, got {model.name}"
            yield (*path, "models", index, "name"), "NotAllowed", message
    for index, model in enumerate(deployer.models):
        names = [backend.name for backend in model.backend_models]
        yield from _twice((*path, "models", index, "backendModels"), names)
        for position, strategy in enumerate(model.routing_strategy):
            place: Path = (*path, "models", index, "routingStrategy", position, "destinations")
            yield from _weights(strategy.destinations, place)
            for number, destination in enumerate(strategy.destinations):
                if destination.destination_name not in names:
                    got = destination.destination_name or "nothing"
                    message = f"expected one of the model's backends ({_names(names)}), got {got}"
                    yield (*place, number, "destinationName"), "UnknownName", message
        for position, backend in enumerate(model.backend_models):
            here = (*path, "models", index, "backendModels", position)
            if backend.trainer and (backend.trainer not in tasks or tasks[backend.trainer].train is None):
                yield (*here, "trainer"), "UnknownName", f"expected a train task, got {backend.trainer}"
            if backend.deployer not in tasks or tasks[backend.deployer].deploy is None:
                yield (*here, "deployer"), "UnknownName", f"expected a deploy task, got {backend.deployer or 'nothing'}"
    for index, rule in enumerate(deployer.rollout_spec):
        yield from _weights(rule.destinations, (*path, "rolloutSpec", index, "destinations"))
    yield from _twice((*path, "routes"), [route.path for route in deployer.routes], "path")
    for index, route in enumerate(deployer.routes):
        yield from _twice((*path, "routes", index, "dag"), [node.model for node in route.dag], "model")
        nodes = {node.model: node for node in route.dag if node.model}
        for position, node in enumerate(route.dag):
            here = (*path, "routes", index, "dag", position)
            if node.model not in models and not node.full_path:
                yield (
                    (*here, "model"),
                    "UnknownName",
                    f"expected one of the models ({_names(models)}), got {node.model or 'nothing'}",
                )
            for name in node.dependencies:
                if name not in nodes:
                    yield (
                        (*here, "dependencies"),
                        "UnknownName",
                        f"expected a node of the same route ({_names(nodes)}), got {name}",
                    )
        if cycle := _cycle({name: node.dependencies for name, node in nodes.items()}):
            yield (*path, "routes", index, "dag"), "Cycle", f"expected no cycle, got {' -> '.join(cycle)}"


def _weights(destinations: Iterable[Destination], path: Path) -> Iterator[tuple[Path, str, str]]:
    weights = [destination.weight for destination in destinations if destination.weight]
    if weights and sum(weights) != 100:
        yield path, "NotAHundred", f"expected weights that sum to 100, got {sum(weights)}"


def _twice(path: Path, names: list[str], key: str = "name") -> Iterator[tuple[Path, str, str]]:
    seen: Counter[str] = Counter()
    for index, name in enumerate(names):
        seen[name] += 1
        if seen[name] == 2:
            yield (*path, index, key), "Duplicate", f"expected each {key} once, got {name} twice"


def _cycle(graph: dict[str, tuple[str, ...]]) -> list[str]:
    done: set[str] = set()

    def walk(name: str, trail: list[str]) -> list[str]:
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name in done or name not in graph:
            return []
        for other in graph[name]:
            if found := walk(other, [*trail, name]):
                return found
        done.add(name)
        return []

    for name in graph:
        if found := walk(name, []):
            return found
    return []


def _names(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "there is none"
