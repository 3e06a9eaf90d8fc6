"""Outcomes -> the conditions Ready, Reconciling and Stalled of a Kubernetes object, as kstatus reads them.

Law: conditions follow from outcomes alone; an instant changes only when its condition does. Reconciling and Stalled are
there only while they are true, so that their absence means that all is well.
Source: kstatus of sigs.k8s.io/cli-utils.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from policies.terms.outcome import Outcome

LONGEST_MESSAGE = 1024
AS_DESIRED = "everything is as it should be"


def conditions(
    outcomes: Sequence[Outcome],
    *,
    now: datetime,
    generation: int,
    before: Iterable[Mapping[str, Any]] = (),
    more: Sequence[Mapping[str, str]] = (),
) -> list[dict[str, Any]]:
    """What an object's status says.

    Args:
        outcomes: What concerns the object; the first that is stalled, else the first that waits, is named.
        now: This instant, UTC.
        generation: Of the object that was looked at.
        before: Its conditions until now.
        more: Further conditions, with `type`, `status`, `reason` and `message`.
    """
    stalled, waiting = _first(outcomes, "stalled"), _first(outcomes, "waiting")
    worst = worst_of(outcomes)
    found = [_condition("Ready", worst is None, worst.reason if worst else "AsDesired", _words(worst))]
    # Of these two kstatus takes the first: what waits for a person has failed, whatever else still moves.
    if stalled is not None:
        found.append(_condition("Stalled", True, stalled.reason, _words(stalled)))
    if waiting is not None:
        found.append(_condition("Reconciling", True, waiting.reason, _words(waiting)))
    found += [dict(item) for item in more]
    known = {str(item["type"]): item for item in before}
    for item in found:
        earlier = known.get(str(item["type"]), {})
        since = earlier.get("lastTransitionTime") if earlier.get("status") == item["status"] else None
        item["lastTransitionTime"] = since or now.strftime("%Y-%m-%dT%H:%M:%SZ")
        item["observedGeneration"] = generation
    return found


def worst_of(outcomes: Sequence[Outcome]) -> Outcome | None:
    """The first that is stalled, else the first that waits; None when all is well."""
    return _first(outcomes, "stalled") or _first(outcomes, "waiting")


def _first(outcomes: Sequence[Outcome], state: str) -> Outcome | None:
    return next((item for item in outcomes if item.state == state), None)


def _condition(kind: str, holds: bool, reason: str, message: str) -> dict[str, Any]:
    return {"type": kind, "status": "True" if holds else "False", "reason": reason or "Unknown", "message": message}


def _words(outcome: Outcome | None) -> str:
    return f"{outcome.subject}: {outcome.message}"[:LONGEST_MESSAGE] if outcome is not None else AS_DESIRED
