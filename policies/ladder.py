"""Brackets and rungs; who advances; no sampling.

Laws: a bracket keeps the best, ties by earlier trial; nobody is drawn to fill up for a failed one; what is due
depends only on what was asked and told.

Source: Li et al., Hyperband, JMLR 18 (2018), algorithm 1, in the whole-number form of HpBandSter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from policies.errors import DesiredStateError
from policies.terms.trial import Ask, Experiment, Tell, TrialRun


@dataclass(frozen=True, slots=True, kw_only=True)
class Bracket:
    """A ladder of rungs: how many trials at which budget."""

    number: int
    sizes: tuple[int, ...]
    budgets: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What an experiment will come to, before it starts."""

    rungs: tuple[float, ...]
    brackets: tuple[Bracket, ...]
    runs: int
    full_budgets: float
    """Sum of all budgets over the largest."""
    model_from: int
    """Results at one budget before BOHB has a model; 0 when it never will."""


def rungs(experiment: Experiment) -> tuple[float, ...]:
    """Budgets from the smallest to the largest.

    Raises:
        DesiredStateError: A bound that no ladder fits in.
    """
    low, high, eta = experiment.min_budget, experiment.max_budget, experiment.reduction_factor
    if not 0 < low <= high or eta < 2:
        raise DesiredStateError(
            f"hpTuning: expected 0 < minBudget <= maxBudget and eta of at least 2, got {low:g}, {high:g}, {eta}"
        )
    steps = math.floor(math.log(high / low) / math.log(eta) + 1e-9)
    budgets = [high / eta**step for step in range(steps, -1, -1)]
    if experiment.integer_budgets:
        budgets = sorted({float(math.ceil(budget - 1e-9)) for budget in budgets})
    return tuple(budgets)


def lay_brackets(experiment: Experiment) -> tuple[Bracket, ...]:
    """All brackets of an experiment, in order."""
    budgets, eta = rungs(experiment), experiment.reduction_factor
    count = len(budgets)
    laid = []
    for number in range(experiment.brackets):
        if experiment.optimiser == "RandomSearch":
            laid.append(Bracket(number=number, sizes=(count,), budgets=budgets[-1:]))
            continue
        steps = count - 1 - number % count
        first = (count // (steps + 1)) * eta**steps
        sizes = tuple(max(first // eta**step, 1) for step in range(steps + 1))
        laid.append(Bracket(number=number, sizes=sizes, budgets=budgets[-steps - 1 :]))
    return tuple(laid)


def describe(experiment: Experiment) -> Facts:
    """What an experiment will come to if no trial fails."""
    brackets = lay_brackets(experiment)
    spent = sum(size * budget for bracket in brackets for size, budget in zip(bracket.sizes, bracket.budgets, strict=True))
    runs = sum(sum(bracket.sizes) for bracket in brackets)
    needed = 2 * (len(experiment.parameters) + 1)
    per_budget: dict[float, int] = {}
    for bracket in brackets:
        for size, budget in zip(bracket.sizes, bracket.budgets, strict=True):
            per_budget[budget] = per_budget.get(budget, 0) + size
    has_model = experiment.optimiser == "BOHB" and max(per_budget.values(), default=0) >= needed
    return Facts(
        rungs=rungs(experiment),
        brackets=brackets,
        runs=runs,
        full_budgets=spent / experiment.max_budget,
        model_from=needed if has_model else 0,
    )


def next_runs(experiment: Experiment, asks: Sequence[Ask], tells: Sequence[Tell]) -> tuple[TrialRun, ...]:
    """The runs that are due to start now, the first of them first.

    Args:
        experiment: The experiment.
        asks: All that were started, in order.
        tells: All that ended, in order; an ask without tell runs.
    """
    if _is_stopped(experiment, tells):
        return ()
    free = experiment.concurrency - (len(asks) - len(tells))
    due: list[TrialRun] = []
    suggested = sum(1 for ask in asks if ask.run.rung == 0)
    for bracket in lay_brackets(experiment):
        if len(due) >= free:
            break
        runs = _due_in(bracket, asks, tells)
        for run in runs[: free - len(due)]:
            due.append(run if run.rung else TrialRun(trial=run.trial, rung=0, budget=run.budget, number=suggested))
            suggested += run.rung == 0
    return tuple(due)


def is_finished(experiment: Experiment, asks: Sequence[Ask], tells: Sequence[Tell]) -> bool:
    """Whether nothing is left to start or to wait for."""
    if _is_stopped(experiment, tells):
        return True
    if len(asks) > len(tells):
        return False
    return not any(_due_in(bracket, asks, tells) for bracket in lay_brackets(experiment))


def incumbent(experiment: Experiment, tells: Sequence[Tell]) -> Tell | None:
    """The best result: lowest finite loss at the largest budget that any trial survived; ties by earlier trial."""
    del experiment
    finished = [tell for tell in tells if tell.loss is not None]
    if not finished:
        return None
    largest = max(tell.run.budget for tell in finished)
    return min((tell for tell in finished if tell.run.budget == largest), key=_rank)


def _is_stopped(experiment: Experiment, tells: Sequence[Tell]) -> bool:
    failed = sum(1 for tell in tells if tell.loss is None)
    if experiment.max_failed_trials is not None and failed > experiment.max_failed_trials:
        return True
    if experiment.target_loss is None:
        return False
    full = [tell.loss for tell in tells if tell.loss is not None and tell.run.budget == rungs(experiment)[-1]]
    return any(loss <= experiment.target_loss for loss in full)


def _due_in(bracket: Bracket, asks: Sequence[Ask], tells: Sequence[Tell]) -> list[TrialRun]:
    """Runs of a bracket's open rung that nobody asked for yet."""
    prefix = f"{bracket.number}_"
    asked = {(ask.run.trial, ask.run.rung): ask.run for ask in asks if ask.run.trial.startswith(prefix)}
    told = {(tell.run.trial, tell.run.rung): tell for tell in tells if tell.run.trial.startswith(prefix)}
    entering = [
        TrialRun(trial=f"{prefix}0_{index}", rung=0, budget=bracket.budgets[0], number=0) for index in range(bracket.sizes[0])
    ]
    for rung, budget in enumerate(bracket.budgets):
        missing = [run for run in entering if (run.trial, rung) not in asked]
        if missing:
            return missing
        ended = [told[run.trial, rung] for run in entering if (run.trial, rung) in told]
        if len(ended) < len(entering) or rung + 1 == len(bracket.budgets):
            return []
        survivors = sorted((tell for tell in ended if tell.loss is not None), key=_rank)[: bracket.sizes[rung + 1]]
        entering = [
            TrialRun(trial=tell.run.trial, rung=rung + 1, budget=bracket.budgets[rung + 1], number=tell.run.number)
            for tell in sorted(survivors, key=lambda item: _order(item.run.trial))
        ]
        del budget
    return []


def _rank(tell: Tell) -> tuple[float, tuple[int, ...]]:
    assert tell.loss is not None
    return tell.loss, _order(tell.run.trial)


def _order(trial: str) -> tuple[int, ...]:
    return tuple(int(part) for part in trial.split("_"))
