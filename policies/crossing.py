"""What a manifest says of itself in two places: names that must fit, cycles, sums."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from policies.errors import Fault
from policies.terms.axon import Axon, Deployer, Sensor
from policies.terms.document import LoadedDocument

Path = tuple[str | int, ...]


def cross_faults(axon: Axon, loaded: LoadedDocument) -> Iterator[Fault]:
    """All references of an axon that lead nowhere, names given twice, cycles and weights that are no whole."""
    for path, reason, message in _all(axon):
        line = next(loaded.lines[path[:end]] for end in range(len(path), -1, -1) if path[:end] in loaded.lines)
        dotted = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
        yield Fault(file=loaded.file, line=line, path=dotted, reason=reason, message=message)


def _all(axon: Axon) -> Iterator[tuple[Path, str, str]]:
    yield from _twice(("spec", "tasks"), [task.name for task in axon.spec.tasks])
    yield from _twice(("spec", "sensors"), [sensor.name for sensor in axon.spec.sensors])
    artifacts = {artifact.name for artifact in axon.spec.artifacts}
    for index, task in enumerate(axon.spec.tasks):
        body = task.container or task.train or task.deploy or task.spark
        kind = next(name for name in ("container", "train", "deploy", "spark") if getattr(task, name) is not None)
        if body is not None and body.image_build is not None and body.image_build.artifact not in artifacts:
            path: Path = ("spec", "tasks", index, kind, "imageBuild", "artifact")
            yield path, "UnknownName", f"expected one of spec.artifacts ({_names(artifacts)}), got {body.image_build.artifact}"
    for index, sensor in enumerate(axon.spec.sensors):
        yield from _sensor(axon, sensor, ("spec", "sensors", index))


def _sensor(axon: Axon, sensor: Sensor, path: Path) -> Iterator[tuple[Path, str, str]]:
    tasks = {task.name: task for task in axon.spec.tasks}
    for index, trigger in enumerate(sensor.triggers):
        if trigger.type == "Lifecycle" and trigger.task not in tasks:
            yield (
                (*path, "triggers", index, "task"),
                "UnknownName",
                f"expected one of spec.tasks ({_names(tasks)}), got {trigger.task or 'nothing'}",
            )
        if trigger.type == "Alert" and not trigger.condition:
            yield (*path, "triggers", index), "Missing", "expected `condition` in PromQL, got nothing"
    flat = [(group, entry) for group, entries in enumerate(sensor.tasks) for entry in entries]
    for position, entry in flat:
        here = (*path, "tasks", position)
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


def _deployer(axon: Axon, deployer: Deployer, path: Path) -> Iterator[tuple[Path, str, str]]:
    tasks = {task.name: task for task in axon.spec.tasks}
    models = {model.name for model in deployer.models}
    yield from _twice((*path, "models"), [model.name for model in deployer.models])
    for index, model in enumerate(deployer.models):
        for position, backend in enumerate(model.backend_models):
            here = (*path, "models", index, "backendModels", position)
            if backend.trainer and (backend.trainer not in tasks or tasks[backend.trainer].train is None):
                yield (*here, "trainer"), "UnknownName", f"expected a train task, got {backend.trainer}"
            if backend.deployer not in tasks or tasks[backend.deployer].deploy is None:
                yield (*here, "deployer"), "UnknownName", f"expected a deploy task, got {backend.deployer or 'nothing'}"
    for index, rule in enumerate(deployer.rollout_spec):
        weights = [destination.weight for destination in rule.destinations if destination.weight]
        if weights and sum(weights) != 100:
            yield (
                (*path, "rolloutSpec", index, "destinations"),
                "NotAHundred",
                f"expected weights that sum to 100, got {sum(weights)}",
            )
    for index, route in enumerate(deployer.routes):
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


def _twice(path: Path, names: list[str]) -> Iterator[tuple[Path, str, str]]:
    seen: Counter[str] = Counter()
    for index, name in enumerate(names):
        seen[name] += 1
        if seen[name] == 2:
            yield (*path, index, "name"), "Duplicate", f"expected each name once, got {name} twice"


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
