"""Reviews in order -> who approves. Pure; the same rule for every forge that has reviews."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from policies.terms.proposal import Approval


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """One opinion of one person on one commit."""

    by: str
    commit: str
    at: datetime
    verdict: Literal["approved", "withdrawn"]
    """`withdrawn`: changes are asked for, or an approval or objection was dismissed."""


def approvals_in(reviews: Iterable[Review]) -> tuple[Approval, ...]:
    """Each person's last opinion, where it is an approval; oldest first.

    Args:
        reviews: Oldest first.
    """
    last: dict[str, Review] = {}
    for review in reviews:
        last[review.by] = review
    kept = [Approval(by=item.by, commit=item.commit, at=item.at) for item in last.values() if item.verdict == "approved"]
    return tuple(sorted(kept, key=lambda item: (item.at, item.by)))


def instant(text: str) -> datetime:
    """An instant as forges write it, aware, UTC."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(UTC)
