"""What all documents share: frozen, camelCase, unknown keys refused; and the scalars they are made of."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from math import isfinite
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict
from pydantic.alias_generators import to_camel

_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h|d))+\Z")
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?\Z")
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


def _check_finite(value: float) -> float:
    if not isfinite(value):
        raise ValueError(f"expected a finite number, got {value}")
    return value


def _check_name(text: str) -> str:
    if not _NAME.match(text):
        raise ValueError(f"expected a name of letters, digits, `-`, `_` and `.`, at most 63, got {text!r}")
    return text


def _in_utc(value: datetime) -> datetime:
    return value.astimezone(UTC) if value.tzinfo is not None else value.replace(tzinfo=UTC)


Duration = Annotated[str, BeforeValidator(_text), AfterValidator(_check_duration)]
Quantity = Annotated[str, BeforeValidator(_text), AfterValidator(_check_quantity)]
Number = Annotated[float, BeforeValidator(_number), AfterValidator(_check_finite)]
"""A finite number, also as quoted text: earlier manifests have both."""
Text = Annotated[str, BeforeValidator(_text)]
"""Text, also written as a bare number."""

Name = Annotated[str, AfterValidator(_check_name)]
"""A name that may be part of a path, a URL or an environment variable."""
Instant = Annotated[datetime, AfterValidator(_in_utc)]
"""An instant; without a zone it is UTC."""


def check_resources(resources: dict[str, Any]) -> dict[str, Any]:
    """Kubernetes' `requests` and `limits`: quantities by resource.

    Raises:
        ValueError: Another key, or what is no quantity.
    """
    for part, amounts in resources.items():
        if part not in ("requests", "limits", "claims"):
            raise ValueError(f"expected requests or limits, got {part}")
        if part == "claims":
            continue
        if not isinstance(amounts, dict):
            raise ValueError(f"expected a mapping of quantities in {part}")
        for name, amount in amounts.items():
            try:
                _check_quantity(str(_text(amount)))
            except ValueError as error:
                raise ValueError(f"{part}.{name}: {error}") from None
    return resources
