"""An outcome: what a try came to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from policies.terms.record import Statement


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one attempt at one step came to; shown in `status` until it changes."""

    state: Literal["done", "waiting", "stalled"]
    subject: str
    """What it is about: `axon digits`, `digits/tune`, `digits/v-7k3q9d0m2x`."""
    reason: str
    """Stable CamelCase word."""
    message: str
    """One line for a person."""
    look_again: bool = False
    """Whether the next pass has more to do at once."""
    is_patient: bool = False
    """Whether it waits for a person or for access, so that looking again soon brings nothing."""
    is_quiet: bool = False
    """Housekeeping that nobody need be told of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Files to commit to the main branch, and what is true once they are there."""

    subject: str
    body: str
    files: Mapping[str, bytes]
    trailers: Mapping[str, Sequence[str]]
    statements: tuple[Statement, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """All that one attempt gives back: how it stands, what is now true, and what is to be committed."""

    outcome: Outcome
    statements: tuple[Statement, ...] = field(default=())
    change: Change | None = None
