"""Tuning: an experiment, and its trials, rungs, brackets and budgets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One dimension of the search space."""

    name: str
    kind: Literal["UniformFloat", "UniformInteger", "Normal", "Categorical", "Ordinal", "Constant"]
    lower: float | None = None
    upper: float | None = None
    log: bool = False
    values: tuple[Any, ...] = ()
    """Of categorical, ordinal and constant parameters, as the manifest gives them."""
    default: Any = None
    mean: float | None = None
    spread: float | None = None
    """Standard deviation of a normal parameter."""
    condition: Mapping[str, tuple[Any, ...]] | None = None
    """Active only while each named parent has one of the given values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """A tuning run, whole. Immutable: another spec is another experiment."""

    id: str
    """The task run id."""
    parameters: tuple[Parameter, ...]
    optimiser: Literal["BOHB", "HyperBand", "RandomSearch"]
    min_budget: float
    max_budget: float
    reduction_factor: int
    brackets: int
    concurrency: int
    seed: int
    maximise: bool = False
    """Whether a greater metric is better; losses are negated at one place."""
    integer_budgets: bool = False
    trial_timeout_seconds: float | None = None
    max_failed_trials: int | None = None
    target_loss: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRun:
    """A configuration at one rung: a trial that is to run, runs or ran."""

    trial: str
    """`bracket_stage_index`, `1_0_14`, as in the original `--config_id`."""
    rung: int
    """Index within the bracket, from 0."""
    budget: float
    number: int
    """Of the suggestion, from 0 over the whole experiment; the seed of its draw."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A recorded suggestion: written before the trial starts."""

    run: TrialRun
    config: Mapping[str, Any]
    """Parameter name -> value in the manifest's types."""
    origin: Literal["random", "model", "default", "promoted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tell:
    """A recorded result: written before anything depends on it."""

    run: TrialRun
    loss: float | None
    """To be minimised, finite; None: the trial failed."""
    metric: float | None
    """As the program reported it."""
    reason: str = ""
    """Why it failed: `ExitCode`, `NoResult`, `NotFinite`, `TimedOut` …"""
    model: str = ""
    """Digest of the model artifact that this trial left, empty when it failed."""
