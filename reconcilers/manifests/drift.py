"""Whether an object still is as it was applied; what others set beside that is theirs."""

from __future__ import annotations

from typing import Any


def drift_of(applied: Any, live: Any, path: str = "") -> str:
    """Path of the first field that is not as it was applied; empty when all are.

    Entries of a list that have names, each its own, are found by them; more of them may be there. Other lists must be equal.
    """
    if isinstance(applied, dict):
        if not isinstance(live, dict):
            # The API leaves out what is empty: `{}` for a folder is no field at all in some answers.
            return "" if live is None and not applied else path or "."
        for key, value in applied.items():
            if found := drift_of(value, live.get(key), f"{path}.{key}"):
                return found
        return ""
    if isinstance(applied, list):
        wanted = _by_name(applied)
        if len(wanted) < len(applied) or not applied:
            return "" if (applied or None) == (live or None) else path
        there = _by_name(live)
        for name, item in wanted.items():
            if found := drift_of(item, there.get(name), f"{path}[{name}]"):
                return found
        return ""
    if applied == "" and live is None:
        return ""
    return "" if applied == live else path


def _by_name(items: Any) -> dict[str, Any]:
    named = items if isinstance(items, list) else ()
    return {item["name"]: item for item in named if isinstance(item, dict) and isinstance(item.get("name"), str)}
