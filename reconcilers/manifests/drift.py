"""Whether an object still is as it was applied; what others set beside that is theirs."""

from __future__ import annotations

from typing import Any


def drift_of(applied: Any, live: Any, path: str = "") -> str:
    """Path of the first field that is not as it was applied; empty when all are.

    Entries of a list that have names are found by them; more of them may be there. Other lists must be equal.
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
        if all(isinstance(item, dict) and "name" in item for item in applied) and applied:
            by_name = {item.get("name"): item for item in live or () if isinstance(item, dict)}
            for item in applied:
                if found := drift_of(item, by_name.get(item["name"]), f"{path}[{item['name']}]"):
                    return found
            return ""
        return "" if (applied or None) == (live or None) else path
    if applied == "" and live is None:
        return ""
    return "" if applied == live else path
