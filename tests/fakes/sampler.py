"""A sampler without a model: each draw is a digest of all that it may depend on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from policies.canonical import digest_value
from policies.terms.trial import Experiment, Parameter, Tell


class FakeSampler:
    """Implements `reconcilers.ports.Sampler`. The order of results counts, so whoever loses it draws something else."""

    def suggest(
        self, experiment: Experiment, tells: Sequence[tuple[Tell, Mapping[str, Any]]], number: int
    ) -> tuple[Mapping[str, Any], str]:
        free = [item for item in experiment.parameters if item.kind != "Constant"]
        constants = {item.name: item.values[0] for item in experiment.parameters if item.kind == "Constant"}
        if number == 0 and free and all(item.default is not None for item in free):
            return {**constants, **{item.name: item.default for item in free}}, "default"
        history = [[tell.run.trial, tell.run.rung, tell.loss] for tell, _ in tells]
        config: dict[str, Any] = {}
        for item in sorted(free, key=lambda item: len(item.condition or {})):
            if all(config.get(parent) in values for parent, values in (item.condition or {}).items()):
                config[item.name] = _value(item, _chance([experiment.seed, number, history, item.name]))
        return {**constants, **config}, "random"


def _chance(inputs: list[Any]) -> float:
    """A number from 0 to below 1."""
    return int(digest_value(inputs).removeprefix("sha256:")[:12], 16) / 16**12


def _value(item: Parameter, chance: float) -> Any:
    if item.values:
        return item.values[int(chance * len(item.values))]
    lower, upper = float(item.lower or 0.0), float(item.upper if item.upper is not None else 1.0)
    if item.kind == "UniformInteger":
        return int(lower) + int(chance * (int(upper) - int(lower) + 1))
    if item.log:
        return math.exp(math.log(lower) + chance * (math.log(upper) - math.log(lower)))
    return lower + chance * (upper - lower)
