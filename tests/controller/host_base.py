"""A base image of this machine's own shell, core programs and Python, for builds that run something."""

from __future__ import annotations

import gzip
import io
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

from controller.adapters.oci.layout import LAYER
from policies.terms.digest import digest_of
from tests.controller.tiny_base import Part

PROGRAMS = (
    "sh",
    "cat",
    "date",
    "mkdir",
    "od",
    "id",
    "sleep",
    "head",
    "ls",
    "rm",
    "chmod",
    "chown",
    "base64",
    "dd",
    "cp",
    "env",
    "stat",
)
_LIBRARY = re.compile(r"(?:=> )?(/\S+) \(0x")
LEFT_OUT = {"test", "idlelib", "tkinter", "lib2to3", "turtledemo", "__pycache__", "site-packages", "dist-packages", "ensurepip"}


def programs() -> Part:
    """A layer with a shell and core programs, and the libraries that they need."""
    return _layer(tuple(_found(path) for path in _paths(PROGRAMS)))


@lru_cache(maxsize=1)
def python() -> Part:
    """A layer with our own Python and its standard library, at `/usr/local`."""
    real = os.path.realpath(getattr(sys, "_base_executable", "") or sys.executable)
    name = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    standard = Path(sysconfig.get_path("stdlib"))
    found: list[tuple[str, Path | str]] = [(f"usr/local/bin/{name}", Path(real)), ("usr/local/bin/python3", name)]
    for path in sorted(standard.rglob("*")):
        inner = path.relative_to(standard)
        if path.is_file() and not LEFT_OUT & set(inner.parts) and path.suffix not in (".a", ".pyc"):
            found.append((f"usr/local/lib/{name}/{inner}", path))
    libraries = [*_libraries(real), *(one for path in standard.glob("lib-dynload/*.so") for one in _libraries(str(path)))]
    return _layer((tuple(found), tuple((path.lstrip("/"), Path(path)) for path in dict.fromkeys(libraries))))


def _found(path: str) -> tuple[tuple[str, Path | str], ...]:
    files: list[tuple[str, Path | str]] = [(f"usr/bin/{Path(path).name}", Path(path))]
    return (*files, *((library.lstrip("/"), Path(library)) for library in _libraries(path)))


def _paths(names: Iterable[str]) -> Iterator[str]:
    for name in names:
        found = shutil.which(name, path="/usr/bin:/bin")
        if found is None:
            raise FileNotFoundError(f"{name}: expected it in /usr/bin or /bin, for the base image")
        yield found


def _libraries(path: str) -> list[str]:
    told = subprocess.run(["ldd", path], capture_output=True, text=True, check=False).stdout
    return [match[1] for match in _LIBRARY.finditer(told)]


def _layer(groups: tuple[tuple[tuple[str, Path | str], ...], ...]) -> Part:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, mode in {"usr": 0o755, "usr/bin": 0o755, "etc": 0o755, "tmp": 0o1777, "root": 0o700, "var": 0o755}.items():
            info = tarfile.TarInfo(name)
            info.type, info.mode = tarfile.DIRTYPE, mode
            archive.addfile(info)
        for name in ("bin", "lib", "lib64", "sbin"):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, f"usr/{name}"
            archive.addfile(info)
        for name, source in {
            name.replace("lib64/", "usr/lib64/", 1)
            if name.startswith("lib64/")
            else name.replace("lib/", "usr/lib/", 1)
            if name.startswith("lib/")
            else name: source
            for group in groups
            for name, source in group
        }.items():
            info = tarfile.TarInfo(name)
            if isinstance(source, str):
                info.type, info.linkname = tarfile.SYMTYPE, source
                archive.addfile(info)
                continue
            data = source.read_bytes()
            info.size, info.mode = len(data), 0o755
            archive.addfile(info, io.BytesIO(data))
        for name, data in {"etc/passwd": b"root:x:0:0::/root:/bin/sh\n", "etc/group": b"root:x:0:\n"}.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o644
            archive.addfile(info, io.BytesIO(data))
    plain = out.getvalue()
    return Part(data=gzip.compress(plain, 1, mtime=0), diff_id=digest_of(plain), media_type=LAYER)
