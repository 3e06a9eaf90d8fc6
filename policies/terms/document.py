"""A document as it was read: plain values, and the line where each of them stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedDocument:
    """A YAML document as plain values, and where each of them stands."""

    file: str
    value: Any
    """Plain dicts, lists, strings, numbers, booleans, None."""
    lines: Mapping[tuple[str | int, ...], int]
    """Path of keys and indices -> line of its key (or list item), from 1. `()` is the document."""
