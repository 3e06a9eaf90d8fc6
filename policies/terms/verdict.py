"""A verdict: a policy's answer, with its reasons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Allow, hold or deny; an empty gate denies."""

    answer: Literal["allow", "hold", "deny"]
    reasons: tuple[str, ...] = ()
