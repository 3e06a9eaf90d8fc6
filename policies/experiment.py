"""A train task's `hpTuning` -> an experiment; a trial -> what its program is given."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

from policies.canonical import digest_value
from policies.errors import DesiredStateError
from policies.terms.axon import Task, TuningParameter
from policies.terms.document_types import parse_duration
from policies.terms.trial import Experiment, Parameter, TrialRun

UNBUILT = ("maxDuration", "patience", "warmStart", "stragglerFactor")


def experiment_of(task: Task, *, experiment_id: str, axon: str) -> Experiment:
    """The experiment that a train task asks for.

    The seed is the manifest's, or else made of axon, task and search space, so that equal inputs draw equally.

    Raises:
        DesiredStateError: No `hpTuning`, or a part of it that is not built yet.
    """
    tuning = task.train.hp_tuning if task.train is not None else None
    if task.train is None or tuning is None:
        raise DesiredStateError(f"task {task.name}: expected train.hpTuning")
    space = tuning.model_dump(mode="json", by_alias=True)
    for name in UNBUILT:
        if space[name] not in (None, False):
            raise DesiredStateError(f"hpTuning.{name}: not built into Myelin yet; leave it out", reason="NotBuilt")
    seed = tuning.seed if tuning.seed is not None else int(digest_value([axon, task.name, space])[7:15], 16)
    return Experiment(
        id=experiment_id,
        parameters=tuple(_parameter(item) for item in tuning.params),
        optimiser=tuning.optimiser,
        min_budget=tuning.min_budget,
        max_budget=tuning.max_budget,
        reduction_factor=tuning.eta,
        brackets=tuning.num_iteration,
        concurrency=tuning.concurrency,
        seed=seed % 2**32,
        maximise=task.train.loss_metric_selector == "greater",
        integer_budgets=tuning.budget_type == "integer",
        trial_timeout_seconds=parse_duration(tuning.trial_timeout) if tuning.trial_timeout else None,
        max_failed_trials=tuning.max_failed_trials,
        target_loss=tuning.target_loss,
    )


def typed(experiment: Experiment, config: Mapping[str, Any]) -> dict[str, Any]:
    """A recorded configuration in the manifest's types: JSON does not tell 1.0 from 1, programs may."""
    found = dict(config)
    for item in experiment.parameters:
        if item.name in found and item.kind in ("UniformFloat", "Normal"):
            found[item.name] = float(found[item.name])
        elif item.name in found and found[item.name] in item.values:
            found[item.name] = item.values[item.values.index(found[item.name])]
    return found


def trial_args(run: TrialRun, config: Mapping[str, Any], *, integer_budgets: bool) -> tuple[str, ...]:
    """Arguments of a trial's program: `--config_id 0_0_1 --budget 3.33 --<param> <value> …`."""
    args = ["--config_id", run.trial, "--budget", str(_budget(run, integer_budgets))]
    for name, value in config.items():
        args += [f"--{name}", str(value)]
    return tuple(args)


def hpo_params(run: TrialRun, config: Mapping[str, Any], *, integer_budgets: bool) -> str:
    """`HPO_PARAMS`: base64 of JSON with the same values as the arguments."""
    inner = {name: value if isinstance(value, (int, float, bool)) else str(value) for name, value in config.items()}
    outer = {"config-id": run.trial, "budget": _budget(run, integer_budgets), "hpo-conf": json.dumps(inner)}
    return base64.b64encode(json.dumps(outer).encode()).decode()


def _budget(run: TrialRun, integer: bool) -> float | int:
    return int(run.budget) if integer else run.budget


def _parameter(item: TuningParameter) -> Parameter:
    if item.numerical is not None and item.type not in ("Categorical", "Ordinal", "Constant"):
        whole = item.type == "UniformInteger"
        default = item.numerical.default_value
        return Parameter(
            name=item.name,
            kind=item.type,
            lower=item.numerical.lower,
            upper=item.numerical.upper,
            log=item.numerical.log,
            default=int(default) if whole and default is not None else default,
            mean=item.numerical.mean,
            spread=item.numerical.spread,
            condition=item.condition,
        )
    values = item.categorical.values if item.categorical is not None else ()
    return Parameter(
        name=item.name,
        kind=item.type,
        values=values,
        default=item.categorical.default_value if item.categorical is not None else None,
        condition=item.condition,
    )
