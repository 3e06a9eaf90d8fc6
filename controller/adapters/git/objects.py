"""One helper process that reads a mirror's objects, for as long as it is asked now and then."""

from __future__ import annotations

import threading
from collections import OrderedDict

from controller.adapters.git.program import Process, Program

LARGEST_NUMBER = 16
"""How many helper processes wait for questions at once: each holds some megabytes, and a controller may have 1,000 mirrors."""

_recent: OrderedDict[Objects, None] = OrderedDict()
_recent_guard = threading.Lock()


class Objects:
    """Reads objects by name: `COMMIT`, `COMMIT:path`, `COMMIT^{tree}`.

    Args:
        program: Git, in the folder of the mirror.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._process: Process | None = None
        # One question at a time: a pass and a build in its thread read through the same process.
        self._asking = threading.Lock()

    def info(self, name: str) -> tuple[str, str, int] | None:
        """Id, kind and size of an object; None when there is none."""
        with self._asking:
            head = self._ask(name)
            if head is not None and self._process is not None:
                self._process.read(head[2] + 1)
        self._used()
        return head

    def content(self, name: str) -> bytes | None:
        """Content of a file or commit; None for a folder, and when there is none."""
        with self._asking:
            head = self._ask(name)
            content = self._process.read(head[2] + 1)[:-1] if head is not None and self._process is not None else None
        self._used()
        return content if head is not None and head[1] != "tree" else None

    def folder(self, name: str) -> bytes:
        """A folder as Git stores it; empty when there is none of that name."""
        with self._asking:
            head = self._ask(name)
            content = self._process.read(head[2] + 1)[:-1] if head is not None and self._process is not None else b""
        self._used()
        return content if head is not None and head[1] == "tree" else b""

    def close(self) -> None:
        """End the helper process; the next question starts another."""
        with self._asking:
            if self._process is not None:
                self._process.end()
            self._process = None
        with _recent_guard:
            _recent.pop(self, None)

    def _used(self) -> None:
        """Note that this one is in use; whoever was not asked for longest ends."""
        with _recent_guard:
            _recent[self] = None
            _recent.move_to_end(self)
            over = [next(iter(_recent))] if len(_recent) > LARGEST_NUMBER else []
        for other in over:
            other.close()

    def _ask(self, name: str) -> tuple[str, str, int] | None:
        if "\n" in name:
            return None
        if self._process is None or self._process.is_over:
            self._process = self._program.start("cat-file", "--batch")
        self._process.write(name.encode(errors="surrogateescape") + b"\n")
        head = self._process.line().decode(errors="replace").rstrip("\n")
        if head.endswith((" missing", " ambiguous", " submodule")) or not head:
            return None
        blob, kind, size = head.rsplit(" ", 2)
        return blob, kind, int(size)
