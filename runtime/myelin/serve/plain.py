"""Whatever a user's class returns -> values that JSON carries, without importing numpy, pandas or a framework."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any


class ModelFault(Exception):
    """The user's class raised, or returned what it must not; the text is for the caller."""


def plain(value: Any) -> Any:
    """A value as JSON carries it: arrays become lists, what is not finite becomes None.

    Args:
        value: Numbers, texts, booleans, None, mappings and sequences of them, and arrays, tables or tensors of numpy,
            pandas and the frameworks that can be turned into either.

    Raises:
        ModelFault: JSON cannot carry it.
        RecursionError: It is nested too deeply, or holds itself.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, (bytes, bytearray)):
        return _text(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return value.tolist() if _is_finite(value) else plain(value.tolist())
    if hasattr(value, "__array__"):
        return plain(value.__array__())
    raise ModelFault(f"expected a value that JSON can carry, got one of type {type(value).__name__}")


def _is_finite(array: Any) -> bool:
    """Whether an array holds finite numbers alone, so that its items need no second look; may be False for large sums."""
    kind = getattr(getattr(array, "dtype", None), "kind", "")
    return kind in ("b", "i", "u") or (kind == "f" and math.isfinite(float(array.sum())))


def _text(value: bytes | bytearray) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise ModelFault("expected bytes inside of an answer to be UTF-8; answer with bytes alone for binData") from error
