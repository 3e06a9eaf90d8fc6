"""A blob on its way from a registry into a file: hashed as it comes, and gone on with after a break."""

from __future__ import annotations

import hashlib
import re
from typing import IO

from controller.adapters.oci.wire import Arriving

ANSWERS = (200, 206, 404, 416)
"""All of it, the rest of it, nothing of that name, nothing beyond what came already."""


class Fetched:
    """What came of a blob so far.

    Args:
        out: The file, which can seek; what is in it from here on is replaced.
    """

    def __init__(self, out: IO[bytes]) -> None:
        self._out, self._start = out, out.tell()
        self.headers: dict[str, str] = {}
        """What to ask the registry for next."""
        self.is_patched = False
        """Whether it is of several answers."""
        self.begin()

    @property
    def digest(self) -> str:
        """That of what came."""
        return "sha256:" + self._sha.hexdigest()

    def begin(self) -> None:
        """Rely on nothing that came."""
        self._sha, self._size = hashlib.sha256(), 0
        self._out.seek(self._start)
        self._out.truncate()
        self.headers.clear()
        self.is_patched = False

    def take(self, arriving: Arriving) -> bool:
        """Take an answer in; False when there is no such blob. If the line breaks, what came is kept."""
        if arriving.status == 404:
            return False
        if arriving.status == 416:
            return True
        begins = re.match(r"bytes (\d+)-", arriving.headers.get("content-range", ""))
        if arriving.status == 206:
            self.is_patched = True
            if begins is None or int(begins[1]) != self._size:
                return True  # what came does not fit, and is asked for anew
        else:
            self.begin()
        for block in arriving.blocks:
            self._sha.update(block)
            self._out.write(block)
            self._size += len(block)
            self.headers["Range"] = f"bytes={self._size}-"
        return True
