"""What a program reports: lines of JSON, appended to a file that the engine reads. Standard library only."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any


def is_reporting() -> bool:
    """Whether this program runs as a job that has a report."""
    return bool(os.environ.get("MYELIN_REPORT_PATH"))


def number(value: Any) -> float | str:
    """A number as JSON can carry it: what is not finite becomes text."""
    got = float(value)
    return got if math.isfinite(got) else str(got)


def append(line: Mapping[str, Any]) -> bool:
    """Append one line, safe on disk when this returns; False outside of a job."""
    path = os.environ.get("MYELIN_REPORT_PATH")
    if not path:
        return False
    at = datetime.now(timezone.utc)  # noqa: UP017  Python 3.10 has no datetime.UTC
    text = json.dumps({**line, "at": at.isoformat()}, allow_nan=False)
    with open(path, "ab") as file:
        file.write(text.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    return True
