"""Compiles modules in a process of its own, run by the Python that will load them; standard library only.

Usage: python -I -S compile_apart.py SOURCES COMPILED. Both files are rows of (name, content), each part after its length.
A module that does not compile has no row in COMPILED, as pip passes such a one over.
"""

from __future__ import annotations

import importlib.util
import marshal
import resource
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO

MEMORY_BYTES = 4 << 30
_UNCHECKED = (1).to_bytes(4, "little")
"""Flags of PEP 552: named by a hash of its source, which is not looked at when it is loaded."""
_MARSHAL = 2
"""The last format without references. Whether an object is written as one depends on who else holds it, so that two
processes would write other bytes."""


def main(sources: Path, compiled: Path) -> None:
    """Compile all rows of one file into another."""
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    bound = MEMORY_BYTES if most == resource.RLIM_INFINITY else min(MEMORY_BYTES, most)
    resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
    warnings.simplefilter("ignore")
    with sources.open("rb") as given, compiled.open("wb") as made:
        for name, data in rows(given):
            try:
                code = compile(data, name.decode(), "exec", dont_inherit=True, optimize=0)
            except Exception:  # noqa: BLE001  whatever Python says of a module, it will say again when it is imported
                continue
            content = importlib.util.MAGIC_NUMBER + _UNCHECKED + importlib.util.source_hash(data) + marshal.dumps(code, _MARSHAL)
            write_row(made, name, content)


def rows(file: IO[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """The rows of a file."""
    while size := file.read(8):
        name = file.read(int.from_bytes(size, "big"))
        yield name, file.read(int.from_bytes(file.read(8), "big"))


def write_row(file: IO[bytes], name: bytes, content: bytes) -> None:
    """Append a row."""
    for part in (name, content):
        file.write(len(part).to_bytes(8, "big"))
        file.write(part)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
