"""Which jobs may go: their result is in the ledger, or nobody waits for it any more.

Law: a job that runs, or whose result is not recorded and pushed yet, is left alone: what a lost disk would take with it
can still be read off the engine.
"""

from __future__ import annotations

from collections.abc import Iterator

from policies.terms.observed import Observed
from policies.terms.task import JobState

KEPT_LOGS = 500
"""Ended jobs whose log is kept for `myelin logs`, the newest ones; older ones are forgotten whole."""


def freeable(observed: Observed) -> tuple[str, ...]:
    """Jobs whose folders may go, sorted; their logs and reports stay."""
    return tuple(sorted(job.name for job in _over(observed) if not job.is_freed))


def forgettable(observed: Observed) -> tuple[str, ...]:
    """Jobs of which nothing need be kept, oldest first."""
    ended = sorted((job for job in _over(observed) if job.ended_at is not None), key=lambda job: (job.ended_at, job.name))
    return tuple(job.name for job in ended[: max(len(ended) - KEPT_LOGS, 0)])


def _over(observed: Observed) -> Iterator[JobState]:
    if not observed.is_pushed:
        return
    recorded = observed.recorded
    told = {(run, tell.run.trial, str(tell.run.rung)) for run, tells in recorded.tells.items() for tell in tells}
    for job in observed.jobs.values():
        labels = job.labels
        task_run, run = labels.get("taskRun", ""), recorded.runs.get(labels.get("run", ""))
        is_told = (task_run, labels.get("trial", ""), labels.get("rung", "")) in told
        if job.phase != "running" and (task_run in recorded.tasks or is_told or (run is not None and run.superseded)):
            yield job
