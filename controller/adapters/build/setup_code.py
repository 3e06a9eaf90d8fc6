"""Runs inside of an enclosure: unpacks a source distribution and calls the backend that it names. It stands alone.

Nothing here is to be trusted once a backend was called: whoever started it looks at what came of it as at a stranger's file.

Source:
    PEP 517, build backend interface; PEP 706, filters of tarfile; PyPA, source distribution format.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

MOST_FILES = 200_000
LARGEST_BYTES = 8 << 30
"""All files of one source distribution together."""
FREE_BYTES = 64 << 20
"""Up to here, no ratio is a bomb."""
LARGEST_RATIO = 200
LARGEST_TOML_BYTES = 1 << 20
REFUSED = 3
"""Exit code for a source distribution that is not unpacked."""


class Refused(Exception):
    """Why a source distribution is not unpacked."""


def unpack(archive: Path, place: Path) -> dict[str, Any]:
    """Unpack an archive that holds one folder into that folder, and say what it is built by.

    Raises:
        Refused: It is no such archive, a name in it leads out, or it is far larger than it looks.
    """
    loose = place.with_name("unpacked")
    loose.mkdir()
    try:
        if archive.name.endswith(".zip"):
            _unzip(archive, loose)
        else:
            _untar(archive, loose)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, NotImplementedError, UnicodeError, ValueError) as error:
        raise Refused(f"expected an archive that can be unpacked, got one that cannot: {error}") from error
    found = sorted(loose.iterdir())
    if len(found) != 1 or not found[0].is_dir() or found[0].is_symlink():
        raise Refused(f"expected one folder in it, got {', '.join(path.name for path in found[:5]) or 'nothing'}")
    found[0].rename(place)
    project = place / "pyproject.toml"
    text = ""
    if project.is_file():
        if project.stat().st_size > LARGEST_TOML_BYTES:
            raise Refused(f"pyproject.toml: expected at most {LARGEST_TOML_BYTES} bytes, got {project.stat().st_size}")
        text = project.read_bytes().decode("utf-8", "replace")
    return {"project": text, "hasSetup": (place / "setup.py").is_file()}


def _untar(archive: Path, loose: Path) -> None:
    size, total, count = archive.stat().st_size, 0, 0
    with tarfile.open(archive, "r:*") as tar:
        for member in tar:
            total, count = total + max(member.size, 0), count + 1
            _check_size(size, total, count)
            _check_place(member)
            try:
                if hasattr(tarfile, "data_filter"):
                    tar.extract(member, loose, filter="data")
                else:  # Pythons before 3.11.4, Debian's among them
                    member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
                    member.uid = member.gid = os.getuid()
                    tar.extract(member, loose)
            except getattr(tarfile, "FilterError", ()) as error:
                raise Refused(f"expected names inside of its folder, got {member.name[:100]!r}") from error


def _check_place(member: tarfile.TarInfo) -> None:
    """See that what an archive has is a file, a folder or a link, and stays in its folder; the filter knows a few tricks more."""
    if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
        raise Refused(f"expected names inside of its folder, got {member.name[:100]!r}")
    names = [member.name]
    if member.issym():
        names.append(os.path.join(os.path.dirname(member.name), member.linkname))
    elif member.islnk():
        names.append(member.linkname)
    for name in names:
        if os.path.isabs(name) or os.path.normpath(name).split("/")[0] == "..":
            raise Refused(f"expected names inside of its folder, got {name[:100]!r}")


def _unzip(archive: Path, loose: Path) -> None:
    with zipfile.ZipFile(archive) as box:
        entries = box.infolist()
        _check_size(archive.stat().st_size, sum(entry.file_size for entry in entries), len(entries))
        for entry in entries:
            parts = entry.filename.rstrip("/").split("/")
            if entry.filename.startswith("/") or {"..", ""} & set(parts) or "\\" in entry.filename:
                raise Refused(f"expected names inside of its folder, got {entry.filename[:100]!r}")
            box.extract(entry, loose)


def _check_size(packed: int, unpacked: int, count: int) -> None:
    if count > MOST_FILES:
        raise Refused(f"expected at most {MOST_FILES} files, got more")
    if unpacked > LARGEST_BYTES:
        raise Refused(f"expected at most {LARGEST_BYTES} bytes unpacked, got more")
    if unpacked > FREE_BYTES and unpacked > LARGEST_RATIO * packed:
        raise Refused(f"expected at most {LARGEST_RATIO} bytes unpacked for each one, got {unpacked} of {packed}")


def call(hook: str, name: str, paths: list[str], source: Path, out: Path) -> Any:
    """Call a backend, in the folder that is built.

    Args:
        hook: What is asked of it; one that it may leave out is answered for it.
        name: The backend, `module` or `module:object`.
        paths: Of a backend that lies in the source itself, from it.
        source: The folder.
        out: Where a wheel goes.
    """
    os.chdir(source)
    sys.argv = ["setup.py"]
    sys.path[:0] = [str((source / path).resolve()) for path in paths]
    module, _, inner = name.partition(":")
    backend: Any = importlib.import_module(module)
    for part in filter(None, inner.split(".")):
        backend = getattr(backend, part)
    if hook == "build_wheel":
        return backend.build_wheel(str(out), None)
    asked = getattr(backend, "get_requires_for_build_wheel", None)
    return list(asked(None)) if asked is not None else []


def main() -> int:
    """`unpack ARCHIVE SOURCE ANSWER`, or `call HOOK BACKEND PATHS SOURCE OUT ANSWER`."""
    deed, *rest = sys.argv[1:]
    answer = Path(rest[-1])
    if deed == "unpack":
        try:
            said: Any = unpack(Path(rest[0]), Path(rest[1]))
        except Refused as error:
            said = {"refused": str(error)}
    else:
        hook, name, paths, source, out = rest[:5]
        shutil.rmtree(out, ignore_errors=True)
        Path(out).mkdir()
        said = {"answer": call(hook, name, json.loads(paths), Path(source), Path(out))}
    answer.unlink(missing_ok=True)
    answer.write_text(json.dumps(said))
    return 0


if __name__ == "__main__":
    sys.exit(main())
