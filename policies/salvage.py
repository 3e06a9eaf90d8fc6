"""A document with mistakes, made whole enough to look for those mistakes that only show between its parts.

What is made up here never leaves: it only lets references, duplicates and sums be checked in the same reading.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

ROUNDS = 8
ALONE = ("hpTuning", "resources", "env", "promotion", "autoscale")
"""Parts that nothing else of a document refers to: a mistake inside takes the whole part out."""
FILLER = "made-up"
Path = tuple[str | int, ...]
Kind = TypeVar("Kind", bound=BaseModel)


def salvage(model: type[Kind], value: Any, place: Callable[[Any, Any], Path]) -> tuple[Kind, tuple[Path, ...]] | None:
    """The document without its mistakes.

    Args:
        model: Its kind.
        value: Its plain value, which stays as it is.
        place: Where in a value an error of pydantic's is.
    Returns:
        The document and the places that were changed; None where so much is wrong that nothing can be said.
    """
    value = deepcopy(value)
    repaired: list[Path] = []
    for _ in range(ROUNDS):
        try:
            return model.model_validate(value, by_alias=True, by_name=False), tuple(repaired)
        except ValidationError as error:
            for item in error.errors():
                path = _repair(value, place(item["loc"], value), item)
                if path is None:
                    return None
                repaired.append(path)
    return None


def is_made_up(path: Path, message: str, repaired: Sequence[Path], value: Any) -> bool:
    """Whether a fault between parts may only come from what was changed: at or beside such a place, or of a value there."""
    if FILLER in message or message.endswith("got nothing"):
        return True
    if any(path[: len(place)] == place or path[:-1] == place[:-1] for place in repaired):
        return True
    got = message.rpartition("got ")[2]
    removed = {str(_at(value, place)) for place in repaired}
    return "twice" not in message and got in removed | _names(value)


def _at(value: Any, path: Path) -> Any:
    for part in path:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def _repair(value: Any, path: Path, item: Any) -> Path | None:
    alone = next((index for index, part in enumerate(path) if part in ALONE), None)
    if alone is not None:
        path = path[: alone + 1]
    if not path or isinstance(path[-1], int):
        return None
    parent = value
    for part in path[:-1]:
        try:
            parent = parent[part]
        except (KeyError, IndexError, TypeError):
            return path  # an earlier repair of this round took it out
    if not isinstance(parent, dict):
        return None
    key, kind = path[-1], item["type"]
    if alone is not None or kind == "extra_forbidden":
        parent.pop(key, None)
    elif kind == "missing" or kind.startswith("string_pattern"):
        parent[key] = FILLER
    elif kind == "too_short":
        parent[key] = [{"rollback": {"deployer": FILLER}}]
    elif kind in ("literal_error", "enum") and (first := re.search(r"'([^']+)'", str(item.get("ctx", {}).get("expected")))):
        parent[key] = first[1]
    else:
        parent.pop(key, None)
    return path


def _names(value: Any) -> set[str]:
    """Every name that anything in a value has."""
    if isinstance(value, dict):
        own = {value["name"]} if isinstance(value.get("name"), str) else set()
        return own.union(*(_names(item) for item in value.values()))
    return set().union(*(_names(item) for item in value)) if isinstance(value, list) else set()
