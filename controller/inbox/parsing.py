"""What programs send -> what the receivers take. Nothing here reads or answers."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any


def result_line(value: Any) -> dict[str, Any]:
    """HpBandSter's report of a trial -> a line of the job's report.

    A report of a failure, which has an exception or no result, counts as one: its loss is `nan`.

    Raises:
        ValueError: It is no report.
    """
    outer = value["result"] if isinstance(value, Mapping) and "result" in value else ()
    if outer is not None and not isinstance(outer, Mapping):
        raise ValueError("expected `result`, null or an object with `result` and `exception`")
    result = outer.get("result") if outer else None
    if not isinstance(result, Mapping) or (outer and outer.get("exception")):
        return {"kind": "result", "loss": "nan", "metrics": {}}
    info = result.get("info")
    metrics = {str(name): number(item) for name, item in info.items()} if isinstance(info, Mapping) else {}
    return {"kind": "result", "loss": number(result.get("loss")), "metrics": metrics}


def number(value: Any) -> float | str:
    """A number as a report carries it: what is not finite, and what is none, becomes text."""
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return "nan"
    return found if math.isfinite(found) else str(found)


def group_labels(parts: Sequence[str]) -> dict[str, str]:
    """Labels of a push gateway's path, `job/<name>/<label>/<value>…`; a value with `@base64` after its label is so encoded.

    An empty value says that there is no such label.

    Raises:
        ValueError: A value is not base64.
    """
    labels = {}
    for name, value in zip(parts[::2], parts[1::2], strict=False):
        if name.endswith("@base64"):
            padded = value.rstrip("=") + "=" * (-len(value.rstrip("=")) % 4)
            name, value = name.removesuffix("@base64"), base64.urlsafe_b64decode(padded).decode()
        labels[name] = value
    return {name: value for name, value in labels.items() if value}
