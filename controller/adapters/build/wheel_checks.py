"""Whether a file is a wheel that may be unpacked: looked at once, when it comes in, before anything is made of it.

What is checked is what a zip's directory says; the bytes themselves are checked against it when they are laid into a layer.
"""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Sequence
from pathlib import Path

from controller.adapters.build.standards import same_version, wheel_parts
from policies.errors import DesiredStateError
from policies.locks import plain_name

LARGEST_UNPACKED_BYTES = 8 << 30
"""All files of one wheel together; the largest ones on the index, with CUDA in them, come to about 5 GiB."""
FREE_UNPACKED_BYTES = 64 << 20
"""Up to here, no ratio is a bomb."""
LARGEST_RATIO = 200
"""DEFLATE makes at most 1032 bytes of one; modules and shared libraries come to 2 to 10, tables of zeros to more."""
MOST_FILES = 200_000
_METADATA = ".dist-info/METADATA"
_FEW_BYTES = 1 << 20


def check_wheel(path: Path) -> None:
    """See that a wheel is one, is what its name says, and unpacks to something of a sensible size inside of its own folder.

    Raises:
        DesiredStateError: It is not; says what was found.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _check_entries(path.name, entries, path.stat().st_size)
            _check_name(path.name, archive, entries)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, UnicodeDecodeError) as error:
        raise _unsafe(path.name, "expected a wheel, got a file that is no whole zip") from error


def _check_entries(name: str, entries: Sequence[zipfile.ZipInfo], size: int) -> None:
    if len(entries) > MOST_FILES:
        raise _unsafe(name, f"expected at most {MOST_FILES} files, got {len(entries)}")
    seen: set[str] = set()
    for entry in entries:
        inner = entry.filename
        if not is_inside(inner):
            raise _unsafe(name, f"expected names inside of the wheel, got {inner[:100]!r}")
        if inner in seen:
            raise _unsafe(name, f"{inner[:100]}: expected it once, got it twice")
        seen.add(inner)
        if entry.flag_bits & 1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _unsafe(name, f"{inner[:100]}: expected a plain entry, got an encrypted or oddly packed one")
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise _unsafe(name, f"{inner[:100]}: expected a file, got a link")
    unpacked, packed = sum(entry.file_size for entry in entries), sum(entry.compress_size for entry in entries)
    if unpacked > LARGEST_UNPACKED_BYTES:
        raise _unsafe(name, f"expected at most {LARGEST_UNPACKED_BYTES} bytes unpacked, got {unpacked}")
    if packed > size:
        # Entries that overlap say more than the file holds: one megabyte is then unpacked a thousand times.
        raise _unsafe(name, f"expected entries of at most its own {size} bytes, got {packed}")
    if unpacked > FREE_UNPACKED_BYTES and unpacked > LARGEST_RATIO * size:
        raise _unsafe(name, f"expected at most {LARGEST_RATIO} bytes unpacked for each one, got {unpacked} of {size}")


def _check_name(name: str, archive: zipfile.ZipFile, entries: Sequence[zipfile.ZipInfo]) -> None:
    try:
        project, version, _ = wheel_parts(name)
    except ValueError as error:
        raise _unsafe(name, "expected a wheel's file name, name-version-python-abi-platform.whl") from error
    found = [entry for entry in entries if entry.filename.count("/") == 1 and entry.filename.endswith(_METADATA)]
    if len(found) != 1:
        raise _unsafe(name, f"expected one .dist-info/METADATA in it, got {len(found)}")
    if found[0].file_size > _FEW_BYTES * 16:
        raise _unsafe(name, f"{found[0].filename[:100]}: expected at most 16 MiB, got {found[0].file_size} bytes")
    with archive.open(found[0]) as file:
        head = file.read(_FEW_BYTES).decode("utf-8", "replace").split("\n\n", 1)[0].split("\r\n\r\n", 1)[0]
    said: dict[str, str] = {}
    for line in head.splitlines():
        key, separator, value = line.partition(":")
        if separator and key.lower() in ("name", "version"):
            said.setdefault(key.lower(), value.strip())
    if plain_name(said.get("name", "")) != project or not same_version(said.get("version", ""), version):
        got = f"{said.get('name', 'none')[:60]} {said.get('version', 'none')[:40]}"
        raise _unsafe(name, f"expected {project} {version} in it, as its name says, got {got}")


def is_inside(name: str) -> bool:
    """Whether an entry's name leads to a place inside of the folder that it is unpacked to, on any file system."""
    parts = name.rstrip("/").split("/")
    return bool(name) and not name.startswith("/") and not {"..", ".", ""} & set(parts) and "\\" not in name and "\0" not in name


def _unsafe(name: str, text: str) -> DesiredStateError:
    return DesiredStateError(f"wheel {name}: {text}", reason="UnsafeWheel")
