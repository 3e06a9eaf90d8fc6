"""The best of several trainings, by the metric that they were to optimise.

Law: the answer is one of those given, and none given is better; ties go to the later one.
"""

from __future__ import annotations

from collections.abc import Sequence

from policies.terms.axon import TrainTask
from policies.terms.run import TaskRun


def best_of(tasks: Sequence[TaskRun], train: TrainTask) -> TaskRun:
    """The training with the best value of the loss metric.

    Args:
        tasks: In the order of record; at least one. One without a value is worse than any with one.
        train: Says which metric, and whether greater is better.
    """
    sign = 1.0 if train.loss_metric_selector == "greater" else -1.0

    def rank(task: TaskRun) -> tuple[bool, float]:
        value = task.metrics.get(train.loss_metric)
        return value is not None, sign * value if value is not None else 0.0

    best = tasks[0]
    for task in tasks[1:]:
        if rank(task) >= rank(best):
            best = task
    return best
