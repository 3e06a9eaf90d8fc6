"""An outcome: what a try came to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


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
