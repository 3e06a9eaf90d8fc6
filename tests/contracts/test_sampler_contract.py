"""What a sampler promises, whatever it makes of the results: a pure function within the manifest's bounds and types."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal

import numpy
import pytest

from controller.adapters.sampler import BohbSampler
from controller.adapters.sampler_apart import SamplerApart
from policies.canonical import canonical
from policies.terms.trial import Experiment, Parameter, Tell, TrialRun
from reconcilers.ports import Sampler
from tests.fakes.sampler import FakeSampler

RATE = Parameter(name="rate", kind="UniformFloat", lower=0.001, upper=0.1, log=True)
MOMENTUM = Parameter(name="momentum", kind="UniformFloat", lower=-1.0, upper=1.0)
UNITS = Parameter(name="units", kind="UniformInteger", lower=16.0, upper=96.0)
SPREAD = Parameter(name="spread", kind="Normal", lower=0.0, upper=2.0, mean=1.0, spread=0.5)
ACTIVATION = Parameter(name="activation", kind="Categorical", values=("relu", "tanh", 3))
SIZE = Parameter(name="size", kind="Ordinal", values=(8, 16, 32))
FIXED = Parameter(name="fixed", kind="Constant", values=("always",))
SLOPE = Parameter(name="slope", kind="UniformFloat", lower=0.0, upper=1.0, condition={"activation": ("relu",)})
EVERY = (RATE, MOMENTUM, UNITS, SPREAD, ACTIVATION, SIZE, FIXED, SLOPE)
FEW = (RATE, UNITS)

Optimiser = Literal["BOHB", "HyperBand", "RandomSearch"]
History = Sequence[tuple[Tell, Mapping[str, Any]]]


@pytest.fixture(scope="module")
def apart() -> Iterator[SamplerApart]:
    made = SamplerApart()
    yield made
    made.close()


@pytest.fixture(params=["fake", "real", "apart"])
def sampler(request: pytest.FixtureRequest) -> Sampler:
    if request.param == "apart":
        made: Sampler = request.getfixturevalue("apart")
        return made
    return FakeSampler() if request.param == "fake" else BohbSampler()


def experiment(parameters: tuple[Parameter, ...] = EVERY, *, optimiser: Optimiser = "BOHB", seed: int = 7) -> Experiment:
    return Experiment(
        id="sha256:" + "0" * 64,
        parameters=parameters,
        optimiser=optimiser,
        min_budget=1.0,
        max_budget=9.0,
        reduction_factor=3,
        brackets=2,
        concurrency=1,
        seed=seed,
    )


def told(sampler: Sampler, wanted: Experiment, count: int) -> History:
    """A history of draws and what they came to, some of which failed."""
    history: list[tuple[Tell, Mapping[str, Any]]] = []
    for number in range(count):
        config, _ = sampler.suggest(wanted, history, number)
        loss = None if number % 5 == 4 else abs(float(config["rate"]) - 0.02) + float(config["units"]) / 1000
        run = TrialRun(trial=f"0_0_{number}", rung=0, budget=1.0, number=number)
        history.append((Tell(run=run, loss=loss, metric=loss, reason="" if loss is not None else "ExitCode"), config))
    return history


def assert_in_bounds(parameters: Sequence[Parameter], config: Mapping[str, Any]) -> None:
    active = {
        item.name for item in parameters if all(config.get(parent) in values for parent, values in (item.condition or {}).items())
    }
    assert set(config) == active
    for item in parameters:
        if item.name not in active:
            continue
        value = config[item.name]
        if item.values:
            assert any(type(value) is type(known) and value == known for known in item.values)
        else:
            assert type(value) is (int if item.kind == "UniformInteger" else float)
            assert item.lower is not None
            assert item.upper is not None
            assert item.lower <= value <= item.upper
    canonical(config)


@pytest.mark.parametrize("optimiser", ["BOHB", "HyperBand", "RandomSearch"])
def test_every_draw_is_within_bounds_in_the_manifests_types(sampler: Sampler, optimiser: Optimiser) -> None:
    wanted = experiment(optimiser=optimiser)
    history = told(sampler, wanted, 24)
    for number in range(24, 32):
        config, origin = sampler.suggest(wanted, history, number)
        assert_in_bounds(EVERY, config)
        assert origin in ("random", "model")
        assert optimiser == "BOHB" or origin == "random"


def test_the_same_arguments_are_the_same_draw_by_any_sampler(sampler: Sampler) -> None:
    wanted = experiment()
    history = told(sampler, wanted, 20)
    for length in (0, 3, 20):
        for number in (length, length + 1):
            first = sampler.suggest(wanted, history[:length], number)
            numpy.random.seed(number)
            random.seed(number)
            sampler.suggest(experiment(seed=99), history[:2], 5)
            assert sampler.suggest(wanted, list(history[:length]), number) == first
            assert type(sampler)().suggest(wanted, copy.deepcopy(history[:length]), number) == first


def test_arguments_are_left_alone(sampler: Sampler) -> None:
    wanted = experiment()
    history = told(sampler, wanted, 20)
    before = copy.deepcopy((wanted, history))
    sampler.suggest(wanted, history, 20)
    assert (wanted, history) == before


def test_a_draw_does_not_disturb_the_chance_of_others(sampler: Sampler) -> None:
    wanted = experiment()
    history = told(sampler, wanted, 20)
    numpy.random.seed(1)
    random.seed(1)
    before = (repr(numpy.random.get_state(legacy=False)), random.getstate())
    for number in (0, 20, 21, 22):
        sampler.suggest(wanted, history, number)
    assert (repr(numpy.random.get_state(legacy=False)), random.getstate()) == before


def test_number_and_seed_make_different_draws(sampler: Sampler) -> None:
    draws = [sampler.suggest(experiment(FEW), (), number)[0] for number in range(10)]
    draws += [sampler.suggest(experiment(FEW, seed=seed), (), 1)[0] for seed in (8, 9)]
    assert len({repr(sorted(draw.items())) for draw in draws}) == 12


def test_no_configuration_is_tried_twice_while_there_are_others(sampler: Sampler) -> None:
    history = told(sampler, experiment(FEW), 30)
    assert len({repr(sorted(config.items())) for _, config in history}) == 30


def test_the_first_draw_takes_the_defaults_where_all_have_one(sampler: Sampler) -> None:
    with_defaults = (replace(RATE, default=0.003), replace(UNITS, default=48), FIXED)
    assert sampler.suggest(experiment(with_defaults), (), 0) == ({"rate": 0.003, "units": 48, "fixed": "always"}, "default")
    config, origin = sampler.suggest(experiment(with_defaults), (), 1)
    assert origin == "random"
    assert config != {"rate": 0.003, "units": 48, "fixed": "always"}
    config, origin = sampler.suggest(experiment((*with_defaults, MOMENTUM)), (), 0)
    assert origin == "random"


def test_constants_alone_are_no_search(sampler: Sampler) -> None:
    assert sampler.suggest(experiment((FIXED,)), (), 0) == ({"fixed": "always"}, "random")


def test_a_small_space_that_is_used_up_goes_on(sampler: Sampler) -> None:
    wanted = experiment((Parameter(name="only", kind="Categorical", values=("a", "b")),))
    seen = []
    history: list[tuple[Tell, Mapping[str, Any]]] = []
    for number in range(6):
        config, _ = sampler.suggest(wanted, history, number)
        seen.append(config["only"])
        run = TrialRun(trial=f"0_0_{number}", rung=0, budget=1.0, number=number)
        history.append((Tell(run=run, loss=0.5, metric=0.5), config))
    assert set(seen) <= {"a", "b"}


def test_a_log_scale_draws_as_often_below_as_above_its_middle(sampler: Sampler) -> None:
    wanted = experiment((RATE,), optimiser="RandomSearch")
    draws = sorted(sampler.suggest(wanted, (), number)[0]["rate"] for number in range(200))
    assert all(one <= other for one, other in pairwise(draws))
    assert 60 < sum(draw < 0.01 for draw in draws) < 140
