"""What differs between two plain values, by path: for records that never change, and for two versions side by side.

Law: two values differ nowhere exactly when they say the same; `1`, `1.0` and `true` are three things only where they are
of different kinds of JSON.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

LONGEST_SHOWN = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One place where two values differ."""

    path: str
    before: Any
    """None: there was nothing."""
    after: Any
    """None: there is nothing any more."""

    def told(self) -> str:
        """For people."""
        return f"{self.path or 'the whole'}: was {_shown(self.before)}, is {_shown(self.after)}"


def first_difference(before: Any, after: Any, *, path: str = "") -> Difference | None:
    """The first place, in the order of `before`, where two values differ; None where they say the same."""
    return next(differences(before, after, path=path), None)


def differences(before: Any, after: Any, *, path: str = "") -> Iterator[Difference]:
    """All places where two plain values differ, in the order of `before`; what is only in `after` comes last.

    Args:
        before: A JSON value.
        after: Another.
        path: Where both are, for the paths of what differs.
    """
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in (*before, *(key for key in after if key not in before)):
            yield from differences(before.get(key), after.get(key), path=f"{path}.{key}".lstrip("."))
    elif isinstance(before, list) and isinstance(after, list):
        for index in range(max(len(before), len(after))):
            pair = (items[index] if index < len(items) else None for items in (before, after))
            yield from differences(*pair, path=f"{path}[{index}]")
    elif isinstance(before, bool) != isinstance(after, bool) or before != after:
        yield Difference(path=path, before=before, after=after)


def _shown(value: Any) -> str:
    if value is None:
        return "not there"
    text = " ".join(str(value).split())
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"
