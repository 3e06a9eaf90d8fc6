"""Large bodies: streamed to a temporary file and checked against their digest, and gone again whatever comes of them."""

from __future__ import annotations

import errno
import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from policies.errors import RefusedError, SilentError

DAMAGED = "Damaged"
"""Reason of what came cut short or changed on its way."""
_PREFIX = "incoming-"
_BLOCK = 1 << 20


class Source(Protocol):
    """Where a body is read from."""

    def read(self, size: int, /) -> bytes:
        """At most so many bytes; none at its end."""
        ...


@contextmanager
def received(source: Source, folder: Path, *, size_bytes: int, digest: str) -> Iterator[Path]:
    """Read a body into a file that is there for as long as the block lasts.

    Args:
        source: Where the body comes from.
        folder: Where the file lies.
        size_bytes: How much there is to read.
        digest: What it must come to, `sha256:<64 hex>`.

    Raises:
        RefusedError: It is cut short, or not what its digest says.
        SilentError: The disk is full.
    """
    path: Path | None = None
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=folder, prefix=_PREFIX, suffix=".tar", delete=False) as file:
                path = Path(file.name)
                sha, left = hashlib.sha256(), size_bytes
                while left:
                    block = _read(source, min(_BLOCK, left))
                    sha.update(block)
                    file.write(block)
                    left -= len(block)
        except OSError as error:
            reason = "DiskFull" if error.errno == errno.ENOSPC else "Disk"
            raise SilentError(f"{folder}: {error.strerror or error}", reason=reason) from error
        if (got := f"sha256:{sha.hexdigest()}") != digest:
            raise RefusedError(f"body: expected {digest}, got {got}", reason=DAMAGED)
        yield path
    finally:
        if path is not None:
            path.unlink(missing_ok=True)


def forget_received(folder: Path) -> None:
    """Remove what a controller that ended in the middle left behind."""
    for path in folder.glob(f"{_PREFIX}*"):
        path.unlink(missing_ok=True)


def _read(source: Source, most: int) -> bytes:
    try:
        block = source.read(most)
    except OSError as error:
        raise RefusedError(f"body: expected more of it: {error.strerror or error}", reason=DAMAGED) from error
    if not block:
        raise RefusedError("body: expected more of it, it ended early", reason=DAMAGED)
    return block
