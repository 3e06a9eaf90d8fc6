"""Attempt number -> pause: whoever gives no answer is asked again, less and less often."""

from __future__ import annotations

FIRST_SECONDS = 0.5
LONGEST_SECONDS = 60.0


def pause_seconds(failures: int, *, longest: float = LONGEST_SECONDS) -> float:
    """How long to leave somebody alone who did not answer.

    Args:
        failures: How often in a row it did not answer. At least 1.
        longest: Bound, in seconds.
    Returns:
        0.5, 1, 2, 4 … seconds, at most `longest`.
    """
    return float(min(FIRST_SECONDS * 2 ** min(failures - 1, 20), longest))
