"""Seldon's message: `data` with ndarray or tensor, binData or strData; what a model gets, and what it answers."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from typing import Any


class BadRequest(Exception):
    """The caller's message cannot be read; the text is for the caller."""


def decode(message: Any) -> tuple[Any, list[str], str]:
    """What a model is given.

    Returns:
        The input (an array where numpy is there), its feature names, and its encoding.

    Raises:
        BadRequest: Not a message.
    """
    if not isinstance(message, Mapping):
        raise BadRequest(f"expected a JSON object with `data`, `binData` or `strData`, got {type(message).__name__}")
    if "strData" in message:
        return str(message["strData"]), [], "strData"
    if "binData" in message:
        try:
            return base64.b64decode(message["binData"], validate=True), [], "binData"
        except ValueError as error:
            raise BadRequest("binData: expected base64") from error
    data = message.get("data")
    if isinstance(data, Mapping) and "ndarray" in data:
        if not isinstance(data["ndarray"], list):
            raise BadRequest("data.ndarray: expected a list")
        return _array(data["ndarray"]), list(data.get("names") or []), "ndarray"
    if isinstance(data, Mapping) and "tensor" in data:
        return _tensor(data["tensor"]), list(data.get("names") or []), "tensor"
    if message and all(isinstance(item, Mapping) for item in message.values()) and "data" not in message:
        return {name: decode(item)[0] for name, item in message.items()}, [], "ndarray"
    raise BadRequest("expected `data` with `ndarray` or `tensor`, `binData` or `strData`")


def encode(answer: Any, encoding: str, names: list[str] | None) -> dict[str, Any]:
    """A model's answer as a message, in the encoding of the question."""
    if isinstance(answer, bytes):
        return {"binData": base64.b64encode(answer).decode()}
    if isinstance(answer, str):
        return {"strData": answer}
    values = answer.tolist() if hasattr(answer, "tolist") else answer
    if names is None:
        is_table = isinstance(values, list) and bool(values) and isinstance(values[0], list)
        names = [f"t:{index}" for index in range(len(values[0]))] if is_table else []
    if encoding == "tensor":
        shape, flat = _flat(values)
        return {"data": {"names": names, "tensor": {"shape": shape, "values": [_plain(item) for item in flat]}}}
    return {"data": {"names": names, "ndarray": _plain(values)}}


def _array(values: list[Any]) -> Any:
    try:
        import numpy
    except ImportError:
        return values
    try:
        return numpy.array(values)
    except ValueError:
        return numpy.array(values, dtype=object)


def _tensor(value: Any) -> Any:
    try:
        shape, values = [int(size) for size in value["shape"]], list(value["values"])
    except (KeyError, TypeError, ValueError) as error:
        raise BadRequest("data.tensor: expected `shape` and `values`") from error
    if math.prod(shape) != len(values):
        raise BadRequest(f"data.tensor: expected {math.prod(shape)} values for shape {shape}, got {len(values)}")
    try:
        import numpy
    except ImportError:
        for size in reversed(shape[1:]):
            values = [values[start : start + size] for start in range(0, len(values), size)]
        return values
    return numpy.array(values).reshape(shape)


def _flat(values: Any) -> tuple[list[int], list[Any]]:
    """Shape and flat values of a nested list of equal rows."""
    shape: list[int] = []
    while isinstance(values, list) and values and isinstance(values[0], list):
        shape.append(len(values) // (math.prod(shape) or 1))
        values = [item for row in values for item in row]
    return [*shape, len(values) // (math.prod(shape) or 1)], list(values)


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
