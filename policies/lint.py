"""Mistakes that parse: known to machine learning, or to those who wrote the earlier manifests. They stop nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from policies.alerts import why_refused
from policies.crossing import entries_of
from policies.errors import DesiredStateError, Fault
from policies.experiment import experiment_of
from policies.ladder import describe, rungs
from policies.sources import build_folder, elsewhere_of, image_builds
from policies.terms.axon import KINDS, Axon
from policies.terms.document import LoadedDocument

Path = tuple[str | int, ...]
_TEMPLATED = re.compile(r"\{\{\s*([^{}]+?)\s*\}\}")


def lint(axon: Axon, *, has_folder: Callable[[str], bool] | None, loaded: LoadedDocument) -> tuple[Fault, ...]:
    """All that looks like a mistake, with file and line.

    Args:
        axon: The manifest.
        has_folder: Whether a folder is in the repository; None where that is not known.
        loaded: Where its lines are.
    """
    faults = []
    found = (
        *_training(axon),
        *_images(axon),
        *_folders(axon, has_folder),
        *_alerts(axon),
        *_deployers(axon, loaded.value),
        *_volume(axon),
    )
    for path, reason, message in found:
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
        if train.hp_tuning.optimiser == "RandomSearch" and train.hp_tuning.min_budget < train.hp_tuning.max_budget:
            text = f"RandomSearch trains every configuration at maxBudget, {train.hp_tuning.max_budget:g}"
            yield (*path, "hpTuning", "minBudget"), "UnusedBudget", text
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
        if budgets[0] > experiment.min_budget * 1.01:
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
        kind = next(name for name in KINDS if getattr(task, name) is not None)
        path: Path = ("spec", "tasks", index, kind, "imageBuild")
        try:
            folder, source = build_folder(axon, build), elsewhere_of(axon, build)
        except DesiredStateError as error:
            yield path, error.reason, error.message
            continue
        if source is None and has_folder is not None and not has_folder(folder):
            yield path, "FolderMissing", f"expected a folder {folder or '/'} in the repository, there is none"


def _alerts(axon: Axon) -> Iterator[tuple[Path, str, str]]:
    for index, sensor in enumerate(axon.spec.sensors):
        for position, trigger in enumerate(sensor.triggers):
            if trigger.type != "Alert":
                continue
            path: Path = ("spec", "sensors", index, "triggers", position, "condition")
            if why := why_refused(trigger.condition, axon.metadata.name):
                yield path, "PromqlRefused", why
            missing = sorted({name for name in _TEMPLATED.findall(trigger.condition) if name not in _trained(axon)})
            if missing and "no_data" not in trigger.model_fields_set:
                text = f"no training reports {', '.join(missing)}: it is there only after feedback; say noData: pause or fire"
                yield path, "FeedbackOnly", text


def _deployers(axon: Axon, written: Any) -> Iterator[tuple[Path, str, str]]:
    silent = {task.name for task in axon.spec.tasks if task.train is not None and not task.train.loss_metric}
    for index, sensor in enumerate(axon.spec.sensors):
        for here, entry in entries_of(sensor, index, written):
            deployer = entry.deployer
            for number, rule in enumerate(deployer.rollout_spec if deployer is not None else ()):
                indices = [destination.destination_index for destination in rule.destinations if destination.weight]
                if indices and 0 not in indices:
                    text = "no weight for index 0: the first version gets everything, later ones nothing"
                    yield (*here, "deployer", "rolloutSpec", number), "NoNewest", text
            for number, model in enumerate(deployer.models if deployer is not None else ()):
                for place, backend in enumerate(model.backend_models):
                    if backend.trainer in silent and "best" in (model.model_selection_strategy, backend.model_selection_strategy):
                        text = f"`best` of {backend.trainer}, which has no lossMetric: the newest training is taken"
                        path = (*here, "deployer", "models", number, "backendModels", place)
                        yield path, "BestOfNothing", text


def _images(axon: Axon) -> Iterator[tuple[Path, str, str]]:
    for index, task in enumerate(axon.spec.tasks):
        for kind in KINDS:
            body = getattr(task, kind)
            path: Path = ("spec", "tasks", index, kind)
            if body is None or body.image_build is None:
                continue
            if body.image:
                yield (*path, "image"), "ImageWins", "`image` and `imageBuild` together: the image is used, nothing is built"
            if any("secret" in volume for volume in body.image_build.volumes):
                text = "a secret inside of a build can end up in the image"
                yield (*path, "imageBuild", "volumes"), "SecretInBuild", text


def _volume(axon: Axon) -> Iterator[tuple[Path, str, str]]:
    template = axon.spec.volume_claim_template or {}
    claim = template.get("spec")
    modes = claim.get("accessModes") if isinstance(claim, dict) else None
    if not isinstance(modes, list) or set(modes) - {"ReadWriteOnce", "ReadWriteOncePod"} or not modes:
        return
    groups = [group for sensor in axon.spec.sensors for group in sensor.tasks]
    tuned = [
        task.name for task in axon.spec.tasks if task.train and task.train.hp_tuning and task.train.hp_tuning.concurrency > 1
    ]
    why = (
        "tasks of one group"
        if any(len(group) > 1 for group in groups)
        else f"the trials of {tuned[0]}"
        if tuned
        else "training and serving"
        if any(entry.deployer is not None for group in groups for entry in group)
        else ""
    )
    if why:
        text = f"a {modes[0]} volume cannot be shared by {why} on several nodes; expected ReadWriteMany"
        yield ("spec", "volumeClaimTemplate", "spec", "accessModes"), "SharedOnce", text


def _trained(axon: Axon) -> set[str]:
    """Metrics that trainings report."""
    trains = [task.train for task in axon.spec.tasks if task.train is not None]
    return {train.loss_metric for train in trains} | {metric.name for train in trains for metric in train.metrics}
