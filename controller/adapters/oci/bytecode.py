"""What modules compile to, for images that should start quickly: the same bytes whoever compiles, once for each wheel.

Compiled by a Python of exactly the version that will load it, for other ones may write other bytes. Only wheels and the
runtime are compiled: a user's own few modules take a millisecond, and a layer of theirs would change with every commit.

Source:
    PEP 552, deterministic pycs; PEP 3147, where they lie.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from controller.adapters.oci import compile_apart
from controller.adapters.oci.compile_apart import rows, write_row
from controller.adapters.oci.layers import Content, Stored, plain_of, size_of
from controller.adapters.oci.splice import opened
from policies.canonical import digest_value
from policies.errors import DesiredStateError, SilentError
from policies.terms.digest import digest_of

FORMAT = "myelin.io/bytecode/v1"
"""Part of the names under which it is remembered; a new one compiles all again."""
OWN_VERSION = ".".join(map(str, sys.version_info[:3]))
LARGEST_MODULE_BYTES = 4 << 20
"""Larger ones are tables that somebody generated; compiling one takes a hundred times its size."""
LONGEST_SECONDS = 600.0
_TESTS = re.compile(r"/tests?/")
"""Half of all modules of the usual packages, and nobody serves them."""
_OWN_LINE = "import sys; print(*sys.version_info[:3], sep='.'); print(sys.implementation.name, sys.version_info.releaselevel)"
_DAY = (1980, 1, 2, 0, 0, 0)


class Compiler:
    """Compiles modules with one Python.

    Args:
        interpreter: Its path.
        version: `3.11.2`
        folder: What was compiled; may be deleted.
    """

    def __init__(self, interpreter: str, version: str, folder: Path) -> None:
        self.version = version
        self._interpreter, self._folder = interpreter, folder
        folder.mkdir(parents=True, exist_ok=True)

    def of_wheel(self, wheel: Path, digest: str, site: str) -> Path:
        """An archive, laid out as a wheel, of what a wheel's modules compile to; kept by the wheel's digest.

        Raises:
            DesiredStateError: The wheel is not safe to unpack, or one of its modules ends the compiler.
            TrustError: The wheel is damaged.
            SilentError: It took too long.
        """
        place = self._place({"wheel": digest, "site": site})
        if not place.exists():
            with opened([wheel], site) as found:
                modules = _modules(found[0].files, site)
                sources = ((path, b"".join(plain_of(path, item))) for path, item in modules.items())
                # As in a wheel: names from where packages go.
                self._compile(wheel.name, sources, place, cut=f"{site}/")
        return place

    def of_files(self, files: Mapping[str, Stored], site: str) -> dict[str, Stored]:
        """What the modules among these files of an image compile to, by where it goes in it.

        Raises:
            DesiredStateError: One of them ends the compiler.
            SilentError: It took too long.
        """
        modules = _modules(files, site)
        place = self._place({"files": {path: digest_of(files[path].data) for path in modules}})
        if not place.exists():
            self._compile("modules", ((path, files[path].data) for path in modules), place)
        with zipfile.ZipFile(place) as archive:
            return {name: Stored(data=archive.read(name)) for name in archive.namelist()}

    def _place(self, inputs: Mapping[str, object]) -> Path:
        key = digest_value({**inputs, "python": self.version, "format": FORMAT})
        return self._folder / f"bytecode-{key.removeprefix('sha256:')[:32]}.zip"

    def _compile(self, what: str, sources: Iterable[tuple[str, bytes]], place: Path, *, cut: str = "") -> None:
        with tempfile.TemporaryDirectory(dir=self._folder, prefix="new-") as scratch:
            given, made, packed = (Path(scratch) / name for name in ("sources", "compiled", "packed.zip"))
            with given.open("wb") as file:
                for path, data in sources:
                    write_row(file, f"/{path}".encode(), data)
            self._run(what, given, made)
            with made.open("rb") as file, zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
                for name, content in rows(file):
                    target = cached_at(name.decode()[1:], self.version).removeprefix(cut)
                    archive.writestr(zipfile.ZipInfo(target, _DAY), content)
            os.replace(packed, place)

    def _run(self, what: str, given: Path, made: Path) -> None:
        command = [self._interpreter, "-I", "-S", str(Path(compile_apart.__file__).resolve()), str(given), str(made)]
        environment = {"LANG": "C.UTF-8", "PATH": os.defpath}
        try:
            done = subprocess.run(
                command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=LONGEST_SECONDS, check=False
            )
        except subprocess.TimeoutExpired as error:
            text = f"{what}: expected its modules to compile within {LONGEST_SECONDS:.0f} s, they did not"
            raise SilentError(f"{text}; set spec.builder.precompile: false", reason="CompileTimeout") from error
        if done.returncode:
            last = (done.stderr.decode(errors="replace").strip().splitlines() or [""])[-1][:200]
            how = f"signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
            text = f"{what}: expected its modules to compile, Python {self.version} ended with {how}" + (last and f" ({last})")
            raise DesiredStateError(f"{text}; set spec.builder.precompile: false", reason="CannotCompile")


def compiler_for(version: str, folder: Path, *, among: Sequence[str] = ()) -> Compiler | None:
    """A compiler of exactly that version; None: no Python of it is on this machine.

    Args:
        version: `3.11.2`
        folder: What was compiled; may be deleted.
        among: More interpreters to look at.
    """
    own = os.path.realpath(getattr(sys, "_base_executable", "") or sys.executable)
    minor = ".".join(version.split(".")[:2])
    for interpreter in (own, *among, f"/usr/bin/python{minor}", f"/usr/local/bin/python{minor}"):
        if version and _version_of(interpreter) == version:
            return Compiler(interpreter, version, folder)
    return None


def cached_at(path: str, version: str) -> str:
    """Where Python looks for what a module compiles to: `a/b.py` -> `a/__pycache__/b.cpython-311.pyc`."""
    folder, _, name = path.rpartition("/")
    tag = "".join(version.split(".")[:2])
    return f"{folder}/__pycache__/{name.removesuffix('.py')}.cpython-{tag}.pyc".lstrip("/")


def _modules(files: Mapping[str, Content], site: str) -> dict[str, Content]:
    return {
        path: files[path]
        for path in sorted(files)
        if path.startswith(f"{site}/") and path.endswith(".py") and not _TESTS.search(path)
        if size_of(files[path]) <= LARGEST_MODULE_BYTES
    }


@lru_cache(maxsize=16)
def _version_of(interpreter: str) -> str:
    """`3.11.2`; empty where there is none, or one that is not CPython as it was released."""
    try:
        done = subprocess.run(
            [interpreter, "-I", "-S", "-c", _OWN_LINE],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    lines = done.stdout.splitlines()
    return lines[0] if len(lines) == 2 and lines[1] == "cpython final" else ""
