"""Seldon's message: `data` with ndarray or tensor, binData or strData; what a model gets, and what it answers.

Pure: values in, values out. What the caller did wrong is a `BadRequest`, what the user's class did wrong a `ModelFault`.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from myelin.serve.plain import ModelFault, plain

KEYS = ("data", "strData", "binData")


class BadRequest(Exception):
    """The caller's message cannot be read; the text is for the caller."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A message as a model is given it."""

    values: Any
    """An array where numpy is there, else a nested list; bytes, a text, or in a join a dict by upstream model."""
    names: list[Any] | None = None
    """Of the features; None where the caller gave none, as the earlier wrapper did."""
    encoding: str = "ndarray"
    """`ndarray`, `tensor`, `strData` or `binData`; an answer comes in the same one."""
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """What a caller says of an answer."""

    question: Question
    reward: Any = None
    truth: Any = None


def decode(message: Any) -> Question:
    """What a model is given.

    Raises:
        BadRequest: Not a message.
    """
    try:
        return _decode(message)
    except RecursionError as error:
        raise BadRequest("expected a message, got one that is nested too deeply") from error


def decode_feedback(message: Any) -> Feedback:
    """What a model learns from. A part that is not there is an empty array, a reward that is not there is None.

    Raises:
        BadRequest: Not feedback.
    """
    if not isinstance(message, Mapping) or not any(part in message for part in ("request", "truth", "reward")):
        raise BadRequest("expected a JSON object with `request`, `truth` or `reward`")
    truth = _part(message, "truth").values
    return Feedback(question=_part(message, "request"), reward=message.get("reward"), truth=truth)


def encode(answer: Any, encoding: str, names: list[str] | None) -> dict[str, Any]:
    """A model's answer as a message, in the encoding of the question.

    Args:
        answer: What the model's `predict` returned.
        encoding: Of the question.
        names: The model's class names; None: `t:0`, `t:1` … for a table.

    Raises:
        ModelFault: JSON, or a tensor, cannot carry it.
    """
    if isinstance(answer, (bytes, bytearray)):
        return {"binData": base64.b64encode(answer).decode()}
    if isinstance(answer, str):
        return {"strData": str(answer)}
    try:
        if encoding == "tensor":
            shape, flat = _flat(answer)
            width = shape[1] if len(shape) > 1 else 0
            return {"data": {"names": _names(names, width), "tensor": {"shape": shape, "values": flat}}}
        values = plain(answer)
    except RecursionError as error:
        raise ModelFault("expected an answer that JSON can carry, got one that is nested too deeply") from error
    is_table = isinstance(values, list) and bool(values) and isinstance(values[0], list)
    return {"data": {"names": _names(names, len(values[0]) if is_table else 0), "ndarray": values}}


def _decode(message: Any) -> Question:
    if not isinstance(message, Mapping):
        raise BadRequest(f"expected a JSON object with `data`, `binData` or `strData`, got {_kind(message)}")
    meta = message.get("meta")
    meta = meta if isinstance(meta, Mapping) else {}
    if _is_join(message):
        return Question(values={name: _named(name, item).values for name, item in message.items()})
    if "strData" in message:
        if not isinstance(message["strData"], str):
            raise BadRequest(f"strData: expected a text, got {_kind(message['strData'])}")
        return Question(values=message["strData"], encoding="strData", meta=meta)
    if "binData" in message:
        return Question(values=_bytes(message["binData"]), encoding="binData", meta=meta)
    data = message.get("data")
    if isinstance(data, Mapping) and "ndarray" in data:
        if not isinstance(data["ndarray"], list):
            raise BadRequest(f"data.ndarray: expected a list, got {_kind(data['ndarray'])}")
        return Question(values=_array(data["ndarray"]), names=_given(data), encoding="ndarray", meta=meta)
    if isinstance(data, Mapping) and "tensor" in data:
        return Question(values=_tensor(data["tensor"]), names=_given(data), encoding="tensor", meta=meta)
    raise BadRequest("expected `data` with `ndarray` or `tensor`, `binData` or `strData`, or a map of model to such messages")


def _is_join(message: Mapping[str, Any]) -> bool:
    """Whether this is a map of model to message. A model may be called `data`: a message lies where content would."""
    return bool(message) and all(
        isinstance(item, Mapping)
        and not ("ndarray" in item or "tensor" in item)
        and (any(key in item for key in KEYS) or _is_join(item))
        for item in message.values()
    )


def _named(name: str, message: Any) -> Question:
    try:
        return _decode(message)
    except BadRequest as error:
        raise BadRequest(f"{name}: {error}") from error


def _part(message: Mapping[str, Any], name: str) -> Question:
    part = message.get(name)
    if part is None or part in ({}, {"data": {}}, {"data": None}):
        return Question(values=_array([]))
    try:
        return decode(part)
    except BadRequest as error:
        raise BadRequest(f"{name}: {error}") from error


def _given(data: Mapping[str, Any]) -> list[Any] | None:
    names = data.get("names")
    if names is not None and not isinstance(names, list):
        raise BadRequest(f"data.names: expected a list of names, got {_kind(names)}")
    return names or None


def _names(names: list[str] | None, width: int) -> list[str]:
    return names if names is not None else [f"t:{index}" for index in range(width)]


def _bytes(value: Any) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (TypeError, ValueError) as error:
        raise BadRequest("binData: expected base64") from error


def _array(values: list[Any]) -> Any:
    try:
        import numpy
    except ImportError:
        return values
    try:
        return numpy.array(values)
    except (ValueError, OverflowError):
        return numpy.array(values, dtype=object)


def _tensor(value: Any) -> Any:
    if not isinstance(value, Mapping) or not isinstance(value.get("shape"), list) or not isinstance(value.get("values"), list):
        raise BadRequest("data.tensor: expected lists `shape` and `values`")
    shape, values = value["shape"], value["values"]
    if any(type(size) is not int or size < 0 for size in shape):
        raise BadRequest("data.tensor.shape: expected whole numbers of at least 0")
    if any(isinstance(item, (list, Mapping)) for item in values):
        raise BadRequest("data.tensor.values: expected a flat list")
    if math.prod(shape) != len(values):
        raise BadRequest(f"data.tensor: expected {math.prod(shape)} values for shape {shape}, got {len(values)}")
    made = _array(values)
    if not hasattr(made, "reshape"):
        return _nested(values, shape)
    try:
        return made.reshape(shape)
    except (ValueError, OverflowError) as error:
        raise BadRequest(f"data.tensor.shape: {error}") from error


def _nested(values: list[Any], shape: list[int]) -> Any:
    if not shape:
        return values[0]
    step = len(values) // shape[0] if shape[0] else 0
    return [_nested(values[index * step : (index + 1) * step], shape[1:]) for index in range(shape[0])]


def _flat(answer: Any) -> tuple[list[int], list[Any]]:
    """Shape and flat values of an answer of equal rows."""
    if hasattr(answer, "reshape") and hasattr(answer, "shape"):
        shape, flat = [int(size) for size in answer.shape], list(plain(answer.reshape(-1)))
    else:
        shape, flat = _rows(plain(answer))
    if any(isinstance(item, (list, dict)) for item in flat):
        raise ModelFault("expected an answer of plain values to a tensor question, got lists or objects among them")
    return shape, flat


def _rows(values: Any) -> tuple[list[int], list[Any]]:
    if not isinstance(values, list):
        return [], [values]
    rows = [_rows(item) for item in values]
    if any(shape != rows[0][0] for shape, _ in rows):
        raise ModelFault("expected an answer of equal rows to a tensor question, got rows of different shapes")
    return [len(rows), *(rows[0][0] if rows else [])], [item for _, flat in rows for item in flat]


def _kind(value: Any) -> str:
    names = {"dict": "an object", "list": "a list", "str": "a text", "bool": "a boolean", "NoneType": "null"}
    return names.get(type(value).__name__, "a number")
