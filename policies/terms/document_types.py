"""What all documents share: frozen, camelCase, unknown keys refused; and the scalars they are made of."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict
from pydantic.alias_generators import to_camel

_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h|d))+\Z")
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_QUANTITY = re.compile(r"\d+(?:\.\d+)?(?:[munkMGTPE]|[KMGTPE]i|[eE][+-]?\d+)?\Z")


class Document(BaseModel):
    """A part of a document."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, alias_generator=to_camel)


def parse_duration(text: str) -> float:
    """Read a Go-style duration, `1h30m`, as seconds; a bare `0` is allowed.

    Raises:
        ValueError: Not a duration.
    """
    if text == "0":
        return 0.0
    if not _DURATION.match(text):
        raise ValueError(f"expected a duration such as 30s, 5m or 36h, got {text!r}")
    return sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text))


def _check_duration(text: str) -> str:
    parse_duration(text)
    return text


def _check_quantity(text: str) -> str:
    if not _QUANTITY.match(text):
        raise ValueError(f"expected a quantity such as 500m, 2 or 1Gi, got {text!r}")
    return text


def _text(value: Any) -> Any:
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _number(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


Duration = Annotated[str, BeforeValidator(_text), AfterValidator(_check_duration)]
Quantity = Annotated[str, BeforeValidator(_text), AfterValidator(_check_quantity)]
Number = Annotated[float, BeforeValidator(_number)]
"""A number, also as quoted text: earlier manifests have both."""
Text = Annotated[str, BeforeValidator(_text)]
"""Text, also written as a bare number."""
