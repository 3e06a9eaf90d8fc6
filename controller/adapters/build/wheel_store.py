"""Wheels on this disk, each under its SHA-256, and what was chosen where a lock lets several files do.

Laws: a wheel is handed out only if its bytes have a hash of the lock and it may be unpacked; one that was touched is not.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controller.adapters.build.standards import platforms_of, rank_of, wheel_parts
from controller.adapters.build.wheel_checks import check_wheel
from policies.canonical import canonical, digest_value, parse
from policies.errors import DesiredStateError
from policies.locks import Target, Wanted
from policies.terms.digest import Digest

CHECKS = 1
"""Raised when wheels are checked for more: those that are here are looked at again."""
LEFT_SECONDS = 6 * 3600.0
"""After which a folder of a fetch that was killed is removed."""
SOURCE_ENDINGS = (".tar.gz", ".zip", ".tar.bz2", ".tar.xz", ".tgz")
_MARK = "checked.json"
_SOURCES = "sources"
_PLAIN_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeOf:
    """What a wheel was built of here."""

    file: str
    """Name of the source distribution."""
    digest: Digest
    backend: Mapping[str, str]
    """What built it: file of each wheel -> its digest, sorted."""
    python: str
    """Exact version of the Python that it was built with."""

    def told(self) -> dict[str, Any]:
        """As provenance and this store have it."""
        return {"file": self.file, "digest": self.digest, "backend": dict(self.backend), "python": self.python}


def read_made_of(told: Mapping[str, Any]) -> MadeOf:
    """The same, read back.

    Raises:
        ValueError: It is no such thing; also KeyError and TypeError.
    """
    backend = {str(file): str(digest) for file, digest in sorted(dict(told["backend"]).items())}
    return MadeOf(file=str(told["file"]), digest=Digest(told["digest"]), backend=backend, python=str(told["python"]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """A wheel on this disk, checked."""

    name: str
    version: str
    path: Path
    """Its last part is the wheel's own file name."""
    digest: Digest
    made_of: MadeOf | None = None
    """What it was built of here; None: it came as it is."""

    @property
    def file(self) -> str:
        """Its file name."""
        return self.path.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A source distribution on this disk; nobody has looked into it."""

    path: Path
    digest: Digest


class WheelStore:
    """Wheels for one target.

    Args:
        folder: Where they are; may be deleted, and shared by several targets and controllers.
        target: Which of several files are taken.
    """

    def __init__(self, folder: Path, target: Target) -> None:
        self.folder, self.target = folder, target
        places = {"platforms": list(platforms_of(target)), "python": target.python}
        self._coming = f"new-{digest_value(places).removeprefix('sha256:')[:12]}-"

    def coming(self) -> tempfile.TemporaryDirectory[str]:
        """A folder for what is on its way. What a kill leaves in it is taken over by the next one for the same target."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(dir=self.folder, prefix=self._coming, ignore_cleanup_errors=True)

    def find(self, wanted: Wanted) -> Wheel | None:
        """The wheel for what is wanted, if it is here and has not been touched."""
        if len(wanted.hashes) == 1 and not wanted.is_source and (found := self._open(wanted, wanted.hashes[0], None)):
            return found
        said = _read(self._choice(wanted))
        if not isinstance(said, dict) or not isinstance(said.get("digest"), str):
            return None
        try:
            origin = read_made_of(said["madeOf"]) if "madeOf" in said else None
        except (ValueError, KeyError, TypeError):
            return None
        if (origin.digest if origin is not None else said["digest"]) not in wanted.hashes:
            return None
        return self._open(wanted, Digest(said["digest"]), origin)

    def adopt(self, wanted: Wanted, path: Path, *, made_of: MadeOf | None = None, is_copied: bool = False) -> Wheel:
        """Take a file in, if it is what is wanted and may be unpacked.

        Args:
            wanted: What it is for.
            path: The file; moved.
            made_of: What it was built of here, which then must be what is wanted; None: it came as it is.
            is_copied: Whether it is left where it was.

        Raises:
            DesiredStateError: It is not, or may not.
        """
        digest = _sha(path)
        if (made_of.digest if made_of is not None else digest) not in wanted.hashes:
            raise DesiredStateError(f"{path.name}: expected a file with a hash of the lock, got {digest}", reason="HashMismatch")
        check_wheel(path)
        place = self.folder / digest.removeprefix("sha256:") / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        if is_copied:
            temporary = place.with_suffix(".new")
            temporary.unlink(missing_ok=True)
            try:
                os.link(path, temporary)
            except OSError:
                shutil.copyfile(path, temporary)
            path = temporary
        os.replace(path, place)
        place.chmod(0o644)
        self._mark(place)
        if len(wanted.hashes) > 1 or made_of is not None:
            said = {"digest": digest, "file": place.name, **({"madeOf": made_of.told()} if made_of else {})}
            _write(self._choice(wanted), said)
        return Wheel(name=wanted.name, version=wanted.version, path=place, digest=digest, made_of=made_of)

    def source(self, wanted: Wanted) -> Source | None:
        """The source distribution of a release, if it is here and has not been touched."""
        for digest in wanted.hashes:
            for path in sorted((self.folder / _SOURCES / digest.removeprefix("sha256:")).glob("*")):
                if is_source_name(path.name) and _sha(path) == digest:
                    return Source(path=path, digest=digest)
        return None

    def adopt_source(self, wanted: Wanted, path: Path) -> Source:
        """Take a source distribution in, if it is what is wanted. It is not opened.

        Raises:
            DesiredStateError: It is not.
        """
        digest = _sha(path)
        if digest not in wanted.hashes:
            raise DesiredStateError(f"{path.name}: expected a file with a hash of the lock, got {digest}", reason="HashMismatch")
        if not is_source_name(path.name):
            text = f"{path.name[:100]}: expected a source distribution, {' or '.join(SOURCE_ENDINGS)}, got another file"
            raise DesiredStateError(text, reason="UnsafeSource")
        place = self.folder / _SOURCES / digest.removeprefix("sha256:") / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        # It may lie in a folder of the machine's own wheels, where it stays.
        temporary = place.with_name(f".{place.name}.new")
        shutil.copyfile(path, temporary)
        os.replace(temporary, place)
        return Source(path=place, digest=digest)

    def take_over(self, missing: Sequence[Wanted]) -> None:
        """Take in what a fetch that was killed had brought already, and remove what is left of old ones."""
        by_name = {item.name: item for item in missing if not item.is_source}
        for left in self.folder.glob(f"{self._coming}*"):
            for path in left.rglob("*.whl"):
                try:
                    wanted = by_name.get(wheel_parts(path.name)[0])
                    if wanted is not None and _sha(path) in wanted.hashes:
                        self.adopt(wanted, path, is_copied=True)
                except (ValueError, DesiredStateError, FileNotFoundError):
                    continue  # whoever left it may still be at work on it
        now = self._now()
        for left in self.folder.glob("new-*"):
            if now - left.stat().st_mtime > LEFT_SECONDS:
                shutil.rmtree(left, ignore_errors=True)

    def _now(self) -> float:
        """The disk's own clock, which it stamps files with."""
        mark = self.folder / "now"
        mark.touch()
        return mark.stat().st_mtime

    def _open(self, wanted: Wanted, digest: Digest, made_of: MadeOf | None) -> Wheel | None:
        folder = self.folder / digest.removeprefix("sha256:")
        path = next(iter(sorted(folder.glob("*.whl"))), None)
        if path is None or rank_of(path.name, self.target) is None:
            return None
        if _read(folder / _MARK) != _stamp(path):
            # Touched, or brought in by an older version of us: it is looked at as if it had just come.
            if _sha(path) != digest:
                shutil.rmtree(folder, ignore_errors=True)
                return None
            check_wheel(path)
            self._mark(path)
        return Wheel(name=wanted.name, version=wanted.version, path=path, digest=digest, made_of=made_of)

    def _mark(self, path: Path) -> None:
        _write(path.with_name(_MARK), _stamp(path))

    def _choice(self, wanted: Wanted) -> Path:
        asked = {
            "name": wanted.name,
            "version": wanted.version,
            "hashes": list(wanted.hashes),
            "platforms": list(platforms_of(self.target)),
            "python": self.target.python,
            "source": wanted.is_source,
        }
        return self.folder / f"choice-{digest_value(asked).removeprefix('sha256:')[:32]}.json"


def is_source_name(file: str) -> bool:
    """Whether a file may be a source distribution, by its name."""
    return file.endswith(SOURCE_ENDINGS) and _PLAIN_FILE.fullmatch(file) is not None


def _stamp(path: Path) -> dict[str, Any]:
    """What changes when somebody writes to a file, even one who sets its time back: the inode's own change time."""
    seen = path.stat()
    return {"checks": CHECKS, "size": str(seen.st_size), "changed": str(seen.st_ctime_ns), "inode": str(seen.st_ino)}


def _read(path: Path) -> Any:
    try:
        return parse(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def _write(path: Path, value: Any) -> None:
    temporary = path.with_suffix(".new")
    temporary.write_bytes(canonical(value))
    os.replace(temporary, path)


def _sha(path: Path) -> Digest:
    with path.open("rb") as file:
        return Digest("sha256:" + hashlib.file_digest(file, "sha256").hexdigest())
