"""How the commits that started runs fare, for their forge: pending once, then exactly one end.

Law: a (commit, context) that was told an end state is told nothing more; what is planned follows from the ledger alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

from policies.terms.axon import Sensor
from policies.terms.desired import DesiredState
from policies.terms.observed import Observed, Recorded
from policies.terms.plan import SetStatus
from policies.terms.proposal import StatusState
from policies.terms.run import Run

RECENT = timedelta(days=2)
"""Runs that started before are told no more, so that a forge which is new to a project is not flooded."""
REVIEW = "myelin/review"
"""Context of a proposal's own commits: whether as many people as asked for approved its evidence."""
ENDS = ("success", "failure", "error")


def has_ended(recorded: Recorded, commit: str, context: str) -> bool:
    """Whether a commit was told its end under a context."""
    return any(state in ENDS for state in recorded.statuses.get((commit, context), ()))


def status_steps(
    desired: DesiredState, observed: Observed, names: Iterator[tuple[Run, Sensor]], now: datetime
) -> Iterator[SetStatus]:
    """What the forge is to be told of the commits that started runs.

    Args:
        desired: Whether there is a forge.
        observed: What the ledger says, and what the forge was told already.
        names: Runs that may still count, each with its sensor; of several runs of one commit and sensor the first counts.
        now: This instant, UTC.
    """
    forge, recorded = desired.project.spec.write_back.forge, observed.recorded
    if forge is None:
        return
    seen: set[tuple[str, str]] = set()
    for run, sensor in names:
        place = (run.commit, f"myelin/{run.axon}/{run.sensor}")
        if place in seen or run.started_at < now - RECENT or has_ended(recorded, *place):
            continue
        seen.add(place)
        state, why = _state_of(run, sensor, recorded)
        if state not in recorded.statuses.get(place, ()):
            yield SetStatus(
                axon=run.axon, task=run.sensor, reason=why, commit=place[0], context=place[1], state=state, forge=forge
            )


def _state_of(run: Run, sensor: Sensor, recorded: Recorded) -> tuple[StatusState, str]:
    if run.superseded:
        return "error", f"overtaken: {run.superseded}"
    done = [task for task in recorded.tasks.values() if task.run == run.id]
    if failed := next((task for task in done if task.state == "Failed"), None):
        return "failure", f"{failed.task}: {failed.message or failed.reason}"
    if len(done) >= sum(len(group) for group in sensor.tasks):
        version = next((task.version for task in reversed(done) if task.version), "")
        return "success", f"done: {version}" if version else "done"
    return "pending", "under way"
