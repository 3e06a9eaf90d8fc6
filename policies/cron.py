"""Five-field cron: minute, hour, day of month, month, day of week; what is no schedule is said in one line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_LONGEST_MONTH = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The instants that a cron text names, as the values that each field may have."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    """0 is Sunday."""
    any_day: bool
    any_weekday: bool
    """Both fields restricted: either fits, as cron has always done it."""


def parse_cron(text: str) -> Schedule:
    """Read `minute hour day month weekday`: `*`, numbers, names, `a-b`, `/n` and lists of these; 7 is Sunday too.

    Raises:
        ValueError: Not five fields, one out of its bounds, or a day that no month has.
    """
    fields = text.split()
    if len(fields) != 5:
        raise ValueError(f"expected five fields, minute hour day month weekday, got {len(fields)} in {text!r}")
    month_names = {name: index + 1 for index, name in enumerate(_MONTHS)}
    day_names = {name: index for index, name in enumerate(_DAYS)}
    months = _field(fields[3], "month", 1, 12, month_names)
    days = _field(fields[2], "day", 1, 31, {})
    weekdays = frozenset(day % 7 for day in _field(fields[4], "weekday", 0, 7, day_names))
    any_weekday = fields[4].startswith("*")
    if any_weekday and not any(day <= _LONGEST_MONTH[month - 1] for day in days for month in months):
        raise ValueError(f"expected a day that one of the months has, got {text!r}")
    return Schedule(
        minutes=_field(fields[0], "minute", 0, 59, {}),
        hours=_field(fields[1], "hour", 0, 23, {}),
        days=days,
        months=months,
        weekdays=weekdays,
        any_day=fields[2].startswith("*"),
        any_weekday=any_weekday,
    )


def _field(text: str, name: str, lowest: int, highest: int, names: Mapping[str, int]) -> frozenset[int]:
    found: set[int] = set()
    for part in text.lower().split(","):
        span, slash, step_text = part.partition("/")
        first_text, dash, last_text = span.partition("-")
        step = _number(step_text, name, 1, highest, {}) if slash else 1
        if span == "*":
            first, last = lowest, highest
        else:
            first = _number(first_text, name, lowest, highest, names)
            last = _number(last_text, name, lowest, highest, names) if dash else highest if slash else first
        if first > last:
            raise ValueError(f"expected a {name} range that goes up, got {span}")
        found.update(range(first, last + 1, step))
    return frozenset(found)


def _number(text: str, name: str, lowest: int, highest: int, names: Mapping[str, int]) -> int:
    value = names.get(text, int(text) if text.isascii() and text.isdigit() and len(text) < 4 else None)
    if value is None or not lowest <= value <= highest:
        raise ValueError(f"expected a {name} from {lowest} to {highest}, got {text or 'nothing'}")
    return value
