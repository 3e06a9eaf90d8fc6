"""Whether Go is here, and new enough to build what tests run against."""

from __future__ import annotations

import re
import shutil
import subprocess


def missing(oldest: tuple[int, int], what: str, otherwise: str) -> str:
    """What is missing here to build something, in words; empty: nothing.

    Args:
        oldest: The oldest Go that builds it.
        what: What it builds, once.
        otherwise: What would do instead.
    """
    words = f"Go {'.'.join(map(str, oldest))} or newer (it builds {what}, once), or {otherwise}"
    if not shutil.which("go"):
        return words
    said = subprocess.run(["go", "env", "GOVERSION"], capture_output=True, text=True, check=False).stdout
    number = re.match(r"go(\d+)\.(\d+)", said)
    if number is None or (int(number[1]), int(number[2])) < oldest:
        return f"{words}; got {said.strip() or 'no answer'}"
    return ""
