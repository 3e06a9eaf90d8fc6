"""Wheels -> layers, as an installer would unpack them, out of the wheels' own compressed bytes.

What an installer makes itself, scripts that start with the environment's Python, is made here too. Modes and dates of a
wheel count for nothing but whether a file may be run.

Source:
    PyPA, Binary distribution format; Entry points specification.
"""

from __future__ import annotations

import configparser
import hashlib
import re
import stat
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from controller.adapters.oci.layers import Content, Laid, Stored, Zipped, lay, parents, plain_of
from controller.adapters.oci.layout import Layout
from policies.errors import DesiredStateError, TrustError

INTERPRETER = "/opt/venv/bin/python"
LARGEST_FILE_BYTES = 2 << 30
LARGEST_WHEEL_BYTES = 16 << 30
"""All files of a wheel, unpacked."""
FREELY_BYTES = 256 << 20
MOST_TIMES_LARGER = 100
"""A wheel may unpack to that many times its own size, or to `FREELY_BYTES` if that is more."""
MOST_ENTRIES = 100_000
_DIRECTORY_BYTES = 16 << 20
_SCRIPT_BYTES = 4 << 20
_LONGEST_NAME_BYTES, _LONGEST_PATH_BYTES = 255, 1024
_UNREADABLE = 0x1 | 0x20 | 0x40
"""Flags of entries that are encrypted or patches (PKWARE, APPNOTE.TXT, 4.4.4)."""
_VENV = "opt/venv"
_OWN = re.compile(r"opt/venv/(?:pyvenv\.cfg|bin/python[0-9.]*)")
"""What makes the environment; no wheel has a say in it."""
_NAME = re.compile(r"\w[\w.-]*(?: [\w.-]+)*")
_OBJECT = re.compile(r"(?P<module>\w+(?:\.\w+)*)\s*:\s*(?P<attribute>\w+(?:\.\w+)*)\s*(?:\[[^\]]*\])?")
_SCRIPT = """#!{interpreter}
import sys
from {module} import {first}

if __name__ == "__main__":
    sys.exit({attribute}())
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """An opened wheel."""

    path: Path
    files: Mapping[str, Content]
    """Where each of its files goes in an image."""


@contextmanager
def opened(paths: Sequence[Path], site: str) -> Iterator[list[Wheel]]:
    """Open wheels that go into one image, and see that they may lie in it side by side.

    Args:
        paths: The wheels.
        site: Where packages go, `opt/venv/lib/python3.11/site-packages`.

    Raises:
        DesiredStateError: An unsafe name, an entry that is encrypted or too large, two wheels with the same file but other bytes.
        TrustError: A wheel is damaged.
    """
    with ExitStack() as closing_all:
        wheels = [Wheel(path=path, files=_files(closing_all.enter_context(_archive(path)), path, site)) for path in paths]
        _check_apart(wheels)
        yield wheels


def lay_wheels(layout: Layout, paths: Sequence[Path], site: str) -> Laid:
    """Write a layer of unpacked wheels.

    Raises:
        DesiredStateError: As `opened`.
        TrustError: A wheel is damaged.
    """
    with opened(paths, site) as wheels:
        return lay_opened(layout, wheels)


def lay_opened(layout: Layout, wheels: Sequence[Wheel]) -> Laid:
    """Write a layer of opened wheels.

    Raises:
        TrustError: A wheel is damaged.
    """
    return lay(layout, {target: item for wheel in wheels for target, item in wheel.files.items()})


@contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    with path.open("rb") as file:
        _check_directory(file, path.name)
        try:
            archive = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError, EOFError) as error:
            raise TrustError(f"{path.name}: expected a wheel, got {error}; fetch it again", reason="DamagedWheel") from error
        yield archive


def _check_directory(file: IO[bytes], name: str) -> None:
    """See that the directory is of a size that may be read, before it is.

    Source:
        PKWARE, APPNOTE.TXT, 4.3.14 to 4.3.16: the end of the central directory.
    """
    whole = file.seek(0, 2)
    start = max(0, whole - 22 - 65535 - 76)
    file.seek(start)
    tail = file.read()
    at = len(tail) - 22 if tail[-22:-18] == b"PK\x05\x06" else tail.rfind(b"PK\x05\x06")
    size = int.from_bytes(tail[at + 12 : at + 16], "little") if at >= 0 else 0
    if at >= 76 and tail[at - 20 : at - 16] == b"PK\x06\x07":
        size = int.from_bytes(tail[at - 36 : at - 28], "little")
    if size > _DIRECTORY_BYTES:
        raise _unsafe(name, f"expected a list of files of at most {_DIRECTORY_BYTES >> 20} MiB, got {size >> 20} MiB")


def _files(archive: zipfile.ZipFile, path: Path, site: str) -> dict[str, Content]:
    entries = archive.infolist()
    _check_sizes(entries, path)
    ends = _ends(entries, archive.start_dir, path)
    assert archive.fp is not None
    files: dict[str, Content] = {}
    tables = []
    for info in entries:
        name = info.orig_filename
        kind = stat.S_IFMT(info.external_attr >> 16)
        if name.endswith("/") and not info.file_size:
            _check_name(name.rstrip("/"), path)
            continue
        _check_name(name, path)
        if info.flag_bits & _UNREADABLE or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _unsafe(path.name, f"{name}: expected an entry that is stored or deflated, got another or an encrypted one")
        if kind not in (0, stat.S_IFREG):
            raise _unsafe(path.name, f"{name}: expected a plain file, got a link or a device")
        executable = bool((info.external_attr >> 16) & 0o111)
        item = Zipped(file=archive.fp, info=info, end=ends[info.header_offset], executable=executable)
        if re.fullmatch(r"[^/]+\.dist-info/entry_points\.txt", name):
            tables.append((name, item))
        for target, content in _placed(name, item, path, site):
            _check_new(target, files, path)
            files[target] = content
    if len(tables) > 1:
        raise _unsafe(path.name, f"expected one entry_points.txt, got {tables[0][0]} and {tables[1][0]}")
    for name, item in tables:
        # As installers do: what a wheel brings for a script that is made here is left out.
        files.update(_console_scripts(name, item, path))
    return files


def _check_sizes(entries: Sequence[zipfile.ZipInfo], path: Path) -> None:
    largest = max(entries, key=lambda info: info.file_size, default=None)
    if largest is not None and largest.file_size > LARGEST_FILE_BYTES:
        raise _unsafe(path.name, f"{largest.orig_filename}: expected at most 2 GiB, got {largest.file_size >> 20} MiB")
    total, packed = sum(info.file_size for info in entries), path.stat().st_size
    most = min(LARGEST_WHEEL_BYTES, max(FREELY_BYTES, MOST_TIMES_LARGER * packed))
    if total > most:
        raise _unsafe(path.name, f"expected to unpack to at most {most >> 20} MiB, its {packed} bytes say {total >> 20} MiB")
    if len(entries) > MOST_ENTRIES:
        raise _unsafe(path.name, f"expected at most {MOST_ENTRIES} files, got {len(entries)}")


def _ends(entries: Sequence[zipfile.ZipInfo], directory: int, path: Path) -> dict[int, int]:
    """Where each entry's bytes end at the latest: a small archive could otherwise name the same bytes a thousand times."""
    starts = sorted({info.header_offset for info in entries})
    if starts and not 0 <= starts[0] <= starts[-1] < directory:
        text = f"{path.name}: expected files between its beginning and their list, got one elsewhere; fetch it again"
        raise TrustError(text, reason="DamagedWheel")
    return dict(zip(starts, [*starts[1:], directory], strict=True)) if starts else {}


def _check_name(name: str, path: Path) -> None:
    parts = name.split("/")
    if name.startswith("/") or "\\" in name or "\0" in name or any(part in ("", ".", "..") for part in parts):
        raise _unsafe(path.name, f"expected names inside of the wheel, got {name[:200]!r}")
    if any(part.startswith(".wh.") for part in parts):
        raise _unsafe(path.name, f"expected names that do not begin with .wh., they hide other layers' files, got {name[:200]!r}")
    lengths = [len(part.encode()) for part in parts]
    if max(lengths) > _LONGEST_NAME_BYTES or sum(lengths) + len(parts) > _LONGEST_PATH_BYTES:
        raise _unsafe(path.name, f"expected names of at most {_LONGEST_NAME_BYTES} bytes a part, got {name[:60]!r}…")


def _check_new(target: str, files: Mapping[str, Content], path: Path) -> None:
    if target in files:
        raise _unsafe(path.name, f"expected each file once, got {target} twice")
    if _OWN.fullmatch(target):
        raise _unsafe(path.name, f"expected files beside the environment's own, got {target}")


def _placed(name: str, item: Zipped, path: Path, site: str) -> Iterator[tuple[str, Content]]:
    """Where an entry goes."""
    top, _, rest = name.partition("/")
    if not top.endswith(".data") or not rest:
        yield f"{site}/{name}", item
        return
    kind, _, rest = rest.partition("/")
    package = top.removesuffix(".data").partition("-")[0]
    include = f"{_VENV}/include/site/{site.split('/')[-2]}/{package}"
    places = {"purelib": site, "platlib": site, "scripts": f"{_VENV}/bin", "headers": include, "data": _VENV}
    if kind not in places or not rest:
        raise _unsafe(path.name, f"{name}: expected {', '.join(places)} below {top}")
    yield f"{places[kind]}/{rest}", _script(item, name, path) if kind == "scripts" else item


def _script(item: Zipped, name: str, path: Path) -> Content:
    """A script that the environment's Python runs where it says so; any other program as it is."""
    info = item.info
    begins = b"".join(_first(plain_of(name, item), 8))
    if not begins.startswith(b"#!python"):
        return Zipped(file=item.file, info=info, end=item.end, executable=True)
    if info.file_size > _SCRIPT_BYTES:
        raise _unsafe(path.name, f"{name}: expected a script of at most {_SCRIPT_BYTES >> 20} MiB, got {info.file_size} bytes")
    _, line, rest = b"".join(plain_of(name, item)).partition(b"\n")
    return Stored(data=f"#!{INTERPRETER}".encode() + line + rest, executable=True)


def _first(pieces: Iterator[bytes], size: int) -> Iterator[bytes]:
    for piece in pieces:
        yield piece
        size -= len(piece)
        if size <= 0:
            return


def _console_scripts(name: str, item: Zipped, path: Path) -> Iterator[tuple[str, Stored]]:
    """The scripts that installers make of a wheel's entry points."""
    if item.info.file_size > _SCRIPT_BYTES:
        raise _unsafe(path.name, f"{name}: expected at most {_SCRIPT_BYTES >> 20} MiB, got {item.info.file_size} bytes")
    table = configparser.ConfigParser(
        delimiters=("=",), interpolation=None, strict=False, default_section="", allow_no_value=True
    )
    table.optionxform = str  # type: ignore[method-assign,assignment]  # names of scripts have a case
    try:
        table.read_string(b"".join(plain_of(name, item)).decode())
    except (configparser.Error, UnicodeDecodeError) as error:
        raise _unsafe(path.name, f"{name}: expected entry points, got {' '.join(str(error).split())[:200]}") from error
    for section in ("console_scripts", "gui_scripts"):
        for script, said in table.items(section) if table.has_section(section) else ():
            found = _OBJECT.fullmatch((said or "").strip())
            target = f"{_VENV}/bin/{script}"
            if not _NAME.fullmatch(script) or found is None or _OWN.fullmatch(target):
                text = f"{name}: expected script = module:function, got {script[:100]} = {(said or '')[:100]}"
                raise _unsafe(path.name, text)
            first = found["attribute"].partition(".")[0]
            text = _SCRIPT.format(interpreter=INTERPRETER, first=first, module=found["module"], attribute=found["attribute"])
            yield target, Stored(data=text.encode(), executable=True)


def _check_apart(wheels: Sequence[Wheel]) -> None:
    """See that no two wheels have the same file with other bytes, and none has a folder where another one has a file."""
    owners: dict[str, Wheel] = {}
    for wheel in wheels:
        for target, item in wheel.files.items():
            other = owners.setdefault(target, wheel)
            if other is not wheel and not _is_same(target, other.files[target], item):
                text = f"{wheel.path.name}: {target} comes from {other.path.name} too, with other bytes"
                raise DesiredStateError(f"{text}; leave one of the two out", reason="WheelsCollide")
    seen: set[str] = set()
    for target in owners:
        for folder in parents(target):
            if folder in seen:
                break
            seen.add(folder)
            if folder in owners:
                text = f"{owners[target].path.name}: {target} lies in {folder}, which is a file of {owners[folder].path.name}"
                raise DesiredStateError(f"{text}; leave one of the two out", reason="WheelsCollide")


def _is_same(path: str, one: Content, other: Content) -> bool:
    """Whether two files have equal bytes; a CRC-32 says little, anybody can make two files with the same one."""
    if isinstance(one, Zipped) and isinstance(other, Zipped):
        facts = [(item.info.file_size, item.info.CRC) for item in (one, other)]
        if facts[0] != facts[1]:
            return False
    digests = []
    for item in (one, other):
        sha = hashlib.sha256()
        for piece in plain_of(path, item):
            sha.update(piece)
        digests.append(sha.digest())
    return digests[0] == digests[1]


def _unsafe(name: str, text: str) -> DesiredStateError:
    return DesiredStateError(f"{name}: {text}; take another version of it", reason="UnsafeWheel")
