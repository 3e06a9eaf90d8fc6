"""Mistakes that parse: known to machine learning, or to those who wrote the earlier manifests. They stop nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from policies import promql
from policies.alerts import expand
from policies.errors import DesiredStateError, Fault
from policies.experiment import experiment_of
from policies.ladder import describe, rungs
from policies.sources import build_folder, image_builds
from policies.terms.axon import Axon
from policies.terms.document import LoadedDocument

Path = tuple[str | int, ...]


def lint(axon: Axon, *, has_folder: Callable[[str], bool] | None, loaded: LoadedDocument) -> tuple[Fault, ...]:
    """All that looks like a mistake, with file and line.

    Args:
        axon: The manifest.
        has_folder: Whether a folder is in the repository; None where that is not known.
        loaded: Where its lines are.
    """
    faults = []
    for path, reason, message in (*_training(axon), *_folders(axon, has_folder), *_alerts(axon), *_rollouts(axon)):
        line = next(loaded.lines[path[:end]] for end in range(len(path), -1, -1) if path[:end] in loaded.lines)
        dotted = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
        faults.append(Fault(file=loaded.file, line=line, path=dotted, reason=reason, message=message))
    return tuple(sorted(faults))


def _training(axon: Axon) -> Iterator[tuple[Path, str, str]]:
    for index, task in enumerate(axon.spec.tasks):
        path: Path = ("spec", "tasks", index, "train")
        train = task.train
        if train is None or train.hp_tuning is None:
            continue
        if "accuracy" in train.loss_metric.lower() and train.loss_metric_selector == "less":
            text = f"{train.loss_metric} would be minimised; expected lossMetricSelector: greater"
            yield (*path, "lossMetric"), "MinimisedAccuracy", text
        if not train.loss_metric:
            yield (*path, "hpTuning"), "NoLossMetric", "tuning without lossMetric: no trial can be the best"
        try:
            experiment = experiment_of(task, experiment_id="", axon=axon.metadata.name)
        except DesiredStateError as error:
            yield (*path, "hpTuning"), error.reason, error.message
            continue
        facts, budgets = describe(experiment), rungs(experiment)
        if any(budget != int(budget) for budget in budgets):
            shown = ", ".join(f"{budget:g}" for budget in budgets)
            yield (
                (*path, "hpTuning", "minBudget"),
                "FractionalBudget",
                f"budgets will be {shown}; say budgetType: integer if the program needs whole ones",
            )
        if budgets[0] > experiment.min_budget + 1e-9:
            yield (
                (*path, "hpTuning", "minBudget"),
                "UnusedBudget",
                f"{experiment.min_budget:g} is never used: the smallest budget is {budgets[0]:g}",
            )
        if experiment.optimiser == "BOHB" and not facts.model_from:
            needed = 2 * (len(experiment.parameters) + 1)
            yield (
                (*path, "hpTuning", "optimiser"),
                "NeverAModel",
                f"BOHB needs {needed} results at one budget for its model and gets fewer: the same as HyperBand",
            )


def _folders(axon: Axon, has_folder: Callable[[str], bool] | None) -> Iterator[tuple[Path, str, str]]:
    for task, build in image_builds(axon):
        index = axon.spec.tasks.index(task)
        path: Path = ("spec", "tasks", index)
        try:
            folder = build_folder(axon, build)
        except DesiredStateError as error:
            yield path, error.reason, error.message
            continue
        if has_folder is not None and not has_folder(folder):
            yield path, "FolderMissing", f"expected a folder {folder or '/'} in the repository, there is none"


def _alerts(axon: Axon) -> Iterator[tuple[Path, str, str]]:
    for index, sensor in enumerate(axon.spec.sensors):
        for position, trigger in enumerate(sensor.triggers):
            if trigger.type != "Alert":
                continue
            path: Path = ("spec", "sensors", index, "triggers", position, "condition")
            try:
                why = promql.check(expand(trigger.condition, axon.metadata.name))
            except DesiredStateError as error:
                why = error.message
            if why:
                yield path, "PromqlRefused", why


def _rollouts(axon: Axon) -> Iterator[tuple[Path, str, str]]:
    for index, sensor in enumerate(axon.spec.sensors):
        for position, entry in enumerate(item for group in sensor.tasks for item in group):
            for number, rule in enumerate(entry.deployer.rollout_spec if entry.deployer is not None else ()):
                path: Path = ("spec", "sensors", index, "tasks", position, "deployer", "rolloutSpec", number)
                indices = [destination.destination_index for destination in rule.destinations if destination.weight]
                if indices and 0 not in indices:
                    yield path, "NoNewest", "no weight for index 0: the first version gets everything, later ones nothing"
