"""The door to hpbandster and ConfigSpace: draws configurations from what trials came to. Nothing is kept that counts.

A draw is a function of experiment, results in their order, and the number of the draw: drawn again after a crash it
is the same. hpbandster's BOHB is used with three corrections, measured in docs/decisions/0005: categorical kernels
that cannot turn negative, models of finite losses only, and scoring of all candidates at once.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from policies.terms.trial import Experiment, Parameter, Tell

TRIES_FOR_NEW = 16
CANDIDATES = 64
RANDOM_FRACTION = 1 / 3
TOP_PERCENT = 15
BANDWIDTH_FACTOR = 3.0
LEAST_BANDWIDTH = 1e-3
_lock = threading.Lock()


class BohbSampler:
    """Implements `reconcilers.ports.Sampler`."""

    def suggest(
        self, experiment: Experiment, tells: Sequence[tuple[Tell, Mapping[str, Any]]], number: int
    ) -> tuple[Mapping[str, Any], str]:
        """Draw suggestion `number`; origin `default`, `random` or `model`."""
        defaults = {item.name: item.default for item in experiment.parameters if item.default is not None}
        free = [item for item in experiment.parameters if item.kind != "Constant"]
        if number == 0 and free and all(item.name in defaults for item in free):
            return {**_constants(experiment), **_active(free, defaults)}, "default"
        if not free:
            return _constants(experiment), "random"
        with _lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logging.getLogger("hpbandster").setLevel(logging.ERROR)
            import numpy

            before = numpy.random.get_state()
            try:
                return _draw(experiment, free, tells, number)
            finally:
                numpy.random.set_state(before)


def _draw(
    experiment: Experiment, free: Sequence[Parameter], tells: Sequence[tuple[Tell, Mapping[str, Any]]], number: int
) -> tuple[Mapping[str, Any], str]:
    import numpy

    space = _space(free)
    seen = {_key(free, config) for _, config in tells}
    model = _model(space, experiment, free, tells) if experiment.optimiser == "BOHB" else None
    config: Mapping[str, Any] = {}
    origin = "random"
    for attempt in range(TRIES_FOR_NEW):
        generator = numpy.random.default_rng([experiment.seed, number, attempt])
        numpy.random.seed(int(generator.integers(2**31)))
        space.seed(int(generator.integers(2**31)))
        values, origin = (model.draw(generator) if model is not None else None, "model")
        if values is None:
            values, origin = dict(space.sample_configuration()), "random"
        config = _config(free, values)
        if _key(free, config) not in seen:
            break
    return {**_constants(experiment), **config}, origin


def _model(space: Any, experiment: Experiment, free: Sequence[Parameter], tells: Sequence[tuple[Tell, Mapping[str, Any]]]) -> Any:
    """The densities of the largest budget that has enough finite results, None where none has."""
    by_budget: dict[float, list[tuple[Mapping[str, Any], float]]] = {}
    for tell, config in tells:
        if tell.loss is not None:
            by_budget.setdefault(tell.run.budget, []).append((config, tell.loss))
    needed = len(free) + 1
    for budget in sorted(by_budget, reverse=True):
        results = by_budget[budget]
        if len(results) >= 2 * needed:
            return _corrected(space, experiment, free, results)
    return None


def _corrected(
    space: Any, experiment: Experiment, free: Sequence[Parameter], results: Sequence[tuple[Mapping[str, Any], float]]
) -> Any:
    import ConfigSpace
    import numpy
    from hpbandster.optimizers.config_generators.bohb import BOHB
    from scipy.special import ndtr, ndtri

    class Corrected(BOHB):  # type: ignore[misc]
        """hpbandster's generator; its model, kernels and candidates are made here."""

        def __init__(self) -> None:
            super().__init__(space, top_n_percent=TOP_PERCENT)
            self.levels = numpy.array(self.vartypes)
            self.is_choice = self.levels > 0
            points = numpy.array([_vector(space, free, config) for config, _ in results])
            losses = numpy.array([loss for _, loss in results])
            least = len(free) + 1
            good = max(least, len(losses) * TOP_PERCENT // 100)
            bad = max(least, len(losses) * (100 - TOP_PERCENT) // 100)
            order = numpy.argsort(losses, kind="stable")
            generator = numpy.random.default_rng([experiment.seed, len(losses)])
            self.good = self.impute(points[order[:good]], generator)
            self.bad = self.impute(points[order[good : good + bad]], generator)
            self.good_width, self.bad_width = self.width(self.good), self.width(self.bad)

        def width(self, points: Any) -> Any:
            """The normal reference rule; a choice's kernel stays a probability by its top, (m - 1) / m."""
            reference = 1.06 * points.std(0) * len(points) ** (-1.0 / (4 + points.shape[1]))
            top = numpy.where(self.is_choice, (self.levels - 1) / numpy.maximum(self.levels, 1), numpy.inf)
            return numpy.minimum(numpy.maximum(reference, LEAST_BANDWIDTH), numpy.maximum(top, LEAST_BANDWIDTH))

        def impute(self, points: Any, generator: Any) -> Any:
            """Inactive parameters take a value that others have, or any."""
            filled = points.copy()
            for row, column in numpy.argwhere(numpy.isnan(filled)):
                known = filled[numpy.isfinite(filled[:, column]), column]
                if len(known):
                    filled[row, column] = generator.choice(known)
                else:
                    levels = self.levels[column]
                    filled[row, column] = generator.integers(levels) if levels else generator.random()
            return filled

        def density(self, points: Any, width: Any, candidates: Any) -> Any:
            """Log density of each candidate, shape (candidates,)."""
            plain = ~self.is_choice
            distance = (candidates[:, None, plain] - points[None, :, plain]) / width[plain]
            total = -0.5 * (distance * distance).sum(2) - numpy.log(width[plain]).sum()
            if self.is_choice.any():
                same = candidates[:, None, self.is_choice] == points[None, :, self.is_choice]
                part, others = width[self.is_choice], numpy.maximum(self.levels[self.is_choice] - 1, 1)
                total = total + numpy.where(same, numpy.log(numpy.maximum(1 - part, 1e-12)), numpy.log(part / others)).sum(2)
            top = total.max(1)
            return top + numpy.log(numpy.exp(total - top[:, None]).mean(1))

        def draw(self, generator: Any) -> dict[str, Any] | None:
            """The best of the candidates around good points; None leaves it to chance."""
            if generator.random() < RANDOM_FRACTION or len(self.bad) == 0:
                return None
            centres = self.good[generator.integers(len(self.good), size=CANDIDATES)]
            spread = self.good_width * BANDWIDTH_FACTOR
            low, high = ndtr(-centres / spread), ndtr((1 - centres) / spread)
            drawn = ndtri(numpy.clip(low + generator.random(centres.shape) * (high - low), 1e-15, 1 - 1e-15))
            found = numpy.clip(centres + spread * drawn, 0, 1)
            if self.is_choice.any():
                choice = self.is_choice
                stays = generator.random((CANDIDATES, int(choice.sum()))) < 1 - self.good_width[choice]
                other = generator.integers(0, self.levels[choice], (CANDIDATES, int(choice.sum())))
                found[:, choice] = numpy.where(stays, centres[:, choice], other)
            score = self.density(self.bad, self.bad_width, found) - self.density(self.good, self.good_width, found)
            for index in numpy.argsort(score, kind="stable"):
                try:
                    made = ConfigSpace.Configuration(space, vector=found[index])
                    return dict(
                        ConfigSpace.util.deactivate_inactive_hyperparameters(configuration_space=space, configuration=dict(made))
                    )
                except (ValueError, TypeError):
                    continue
            return None

    return Corrected()


def _space(free: Sequence[Parameter]) -> Any:
    import ConfigSpace

    space = ConfigSpace.ConfigurationSpace()
    made = {item.name: _dimension(ConfigSpace, item) for item in free}
    for item in made.values():
        space.add(item)
    for item in free:
        for parent, values in (item.condition or {}).items():
            if parent in made:
                known = next(other for other in free if other.name == parent)
                texts = [_index(known, value) if known.values else value for value in values]
                space.add(ConfigSpace.InCondition(made[item.name], made[parent], texts))
    return space


def _dimension(space: Any, item: Parameter) -> Any:
    if item.kind == "Categorical":
        return space.CategoricalHyperparameter(item.name, [str(index) for index in range(len(item.values))])
    if item.kind == "Ordinal":
        return space.UniformIntegerHyperparameter(item.name, 0, max(len(item.values) - 1, 1))
    lower, upper = item.lower if item.lower is not None else 0.0, item.upper if item.upper is not None else 1.0
    if item.kind == "UniformInteger":
        return space.UniformIntegerHyperparameter(item.name, int(lower), int(upper), log=item.log)
    if item.kind == "Normal":
        mean = item.mean if item.mean is not None else (lower + upper) / 2
        spread = item.spread if item.spread is not None else (upper - lower) / 6
        return space.NormalFloatHyperparameter(item.name, mu=mean, sigma=spread, lower=lower, upper=upper)
    return space.UniformFloatHyperparameter(item.name, lower, upper, log=item.log)


def _config(free: Sequence[Parameter], values: Mapping[str, Any]) -> dict[str, Any]:
    """ConfigSpace's values in the manifest's types."""
    config: dict[str, Any] = {}
    for item in free:
        if item.name not in values:
            continue
        value = values[item.name]
        if item.kind in ("Categorical", "Ordinal"):
            config[item.name] = item.values[min(int(value), len(item.values) - 1)]
        else:
            config[item.name] = int(value) if item.kind == "UniformInteger" else float(value)
    return config


def _vector(space: Any, free: Sequence[Parameter], config: Mapping[str, Any]) -> Any:
    import ConfigSpace

    values = {}
    for item in free:
        if item.name in config:
            value = config[item.name]
            if item.kind == "Categorical":
                value = str(item.values.index(value))
            elif item.kind == "Ordinal":
                value = item.values.index(value)
            values[item.name] = value
    return ConfigSpace.Configuration(space, values=values).get_array()


def _index(item: Parameter, value: Any) -> Any:
    """How ConfigSpace knows a value: by its place, as text in a choice and as a number in an order."""
    place = item.values.index(value)
    return str(place) if item.kind == "Categorical" else place


def _active(free: Sequence[Parameter], config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without those parameters whose condition does not hold in it, parents before children."""
    kept: dict[str, Any] = {}
    waiting = [item for item in free if item.name in config]
    for _ in range(len(waiting) + 1):
        for item in waiting:
            condition = item.condition or {}
            if all(parent in kept and kept[parent] in values for parent, values in condition.items()):
                kept[item.name] = config[item.name]
    return {item.name: kept[item.name] for item in free if item.name in kept}


def _constants(experiment: Experiment) -> dict[str, Any]:
    return {item.name: item.values[0] for item in experiment.parameters if item.kind == "Constant" and item.values}


def _key(free: Sequence[Parameter], config: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((item.name, repr(config.get(item.name))) for item in free)
