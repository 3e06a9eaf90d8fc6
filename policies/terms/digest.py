"""A digest: the name of any artifact, `sha256:<64 hex>`."""

from __future__ import annotations

import hashlib
import re
from typing import NewType

Digest = NewType("Digest", str)

_SHAPE = re.compile(r"sha256:[0-9a-f]{64}\Z")


def digest_of(data: bytes) -> Digest:
    """Name bytes by their SHA-256."""
    return Digest("sha256:" + hashlib.sha256(data).hexdigest())


def is_digest(text: str) -> bool:
    """Whether `text` is a digest as Myelin writes it."""
    return _SHAPE.match(text) is not None


def parse_digest(text: str) -> Digest:
    """Read a digest.

    Raises:
        ValueError: `text` is not `sha256:` and 64 lower-case hexadecimal characters.
    """
    if not is_digest(text):
        raise ValueError(f"expected sha256:<64 hex>, got {text!r}")
    return Digest(text)
