"""Source distributions -> wheels. Setup code is code of strangers: it runs as nobody, walled in, without network and secrets.

Laws: nothing of a source distribution is opened outside of the wall, and what comes out of it is looked at as a stranger's file.
What builds it is pinned by hash, as what is installed is; equal sources and builders give the wheel that they gave before.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import stat
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from controller.adapters.build import setup_code
from controller.adapters.build.enclosure import USUAL, Bounds, Enclosure, Ended, Surroundings, nobody
from controller.adapters.build.fetching import fetch_wheels
from controller.adapters.build.repacking import repack
from controller.adapters.build.requirements import shown, wanted_of
from controller.adapters.build.resolving import uv_program
from controller.adapters.build.standards import host, is_pure, rank_of, read_requirement, same_version, wheel_parts
from controller.adapters.build.wheel_checks import check_wheel
from controller.adapters.build.wheel_store import MadeOf, Source, Wheel
from controller.adapters.oci.tar import EPOCH
from policies.canonical import canonical, digest_value, parse
from policies.errors import DesiredStateError
from policies.locks import Lock, Target, Wanted, name_in
from policies.terms.build import BuildRules
from policies.terms.digest import Digest

FORMAT = 1
"""Part of the names under which wheels are kept; a new one builds them again."""
LEGACY = "setuptools.build_meta:__legacy__"
"""What builds a source distribution that names nothing (PEP 517)."""
LEGACY_NEEDS = ("setuptools>=40.8.0",)
MOST_REQUIREMENTS = 200
LARGEST_ANSWER_BYTES = 4 << 20
_ARCHIVE, _WHEELS, _TOOLS = "/source", "/wheels", "/tools"
_BACKEND = re.compile(r"[A-Za-z_][\w.]*(:[A-Za-z_][\w.]*)?")
_NO_NETWORK = re.compile(
    r"urlopen error|name resolution|name or service not known|network is unreachable|getaddrinfo|could not resolve host|"
    r"failed to establish a new connection|nodename nor servname",
    re.IGNORECASE,
)
_USERS = {
    "passwd": "nobody:x:65534:65534:nobody:/tmp:/bin/sh\n",
    "group": "nogroup:x:65534:\n",
}
_SHOWN_TO_COMPILERS = ("/etc/alternatives", "/etc/ld.so.cache")


class Resolves(Protocol):
    """What is asked of `resolving.Resolver`."""

    def resolved(
        self, requirements: str, limits: str, previous: str, *, targets: Sequence[Target], index: str, origin: str
    ) -> str:
        """Loose requirements as a lock with hashes."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How a source distribution wants to be built."""

    backend: str
    requires: tuple[str, ...]
    paths: tuple[str, ...] = ()
    """Where in the source its backend lies; empty: among what it requires."""


@dataclass(frozen=True, kw_only=True)
class SourceBuilds:
    """Implements `controller.adapters.build.fetching.BuildsWheels`.

    Args:
        folder: Wheels that were built, and what they were built by; may be deleted.
        wheels: Where what builds them is kept.
        resolver: Asked what that is, where nothing says it.
        rules: Bounds of time, memory and disk, and the index.
        target: The system that the image is for.
        is_host: Whether that is this machine's own.
        preferred: Releases of the lock, which builds use too where they fit.
        known: Of what was built before, source -> what it was made of: it is built by exactly that again, and nothing is kept.
        surroundings: What a build sees; a second one is given others.
        progress: Told what goes on.
    """

    folder: Path
    wheels: Path
    resolver: Resolves
    rules: BuildRules
    target: Target
    is_host: bool
    preferred: tuple[Wanted, ...] = ()
    known: Mapping[str, MadeOf] = field(default_factory=dict)
    surroundings: Surroundings = USUAL
    progress: Callable[[str], None] = lambda _: None

    def fits(self, file: str) -> bool:
        """Whether a wheel that was built here is one for the system that the image is for: its libraries are those of here."""
        return rank_of(file, self.target) is not None and (self.is_host or is_pure(file))

    def built(self, wanted: Wanted, source: Source, folder: Path, where: str) -> tuple[Path, MadeOf]:
        """A wheel in `folder`, and what it was made of.

        Args:
            wanted: The release.
            source: Its source distribution.
            folder: Where the wheel goes.
            where: What messages begin with.

        Raises:
            DesiredStateError: It cannot be built: not here, not within bounds, or not at all.
            OutsideError: The index does not answer, or the disk is full.
        """
        try:
            nobody()
        except DesiredStateError as error:
            text = f"{where}: expected a wheel, got a source distribution, which is built behind a wall; {error.message}"
            raise DesiredStateError(text, reason=error.reason) from error
        if recorded := self.known.get(source.digest):
            backend = self._pinned(recorded, where)
            with self._opened(source, where) as work:
                return work.wheel(backend, wanted, folder), self._made(source, backend)
        asked = self._asked(source, where)
        backend = self._resolved(asked["requires"], where)
        more = asked["dynamic"].get(_key(backend))
        if more is None:
            with self._opened(source, where) as work:
                more = work.further(backend)
            # What a backend asks for beyond that depends on the backend.
            asked["dynamic"][_key(backend)] = more
            _keep(self._note(source), asked)
        if more:
            backend = self._resolved([*asked["requires"], *more], where)
        made = self._made(source, backend)
        place = self.folder / digest_value({"made": made.told(), "format": FORMAT}).removeprefix("sha256:")[:32]
        if (kept := _kept(place)) is None:
            with self._opened(source, where) as work, tempfile.TemporaryDirectory(dir=self.folder, prefix="new-") as name:
                new = Path(name) / "wheel"
                new.mkdir()
                work.wheel(backend, wanted, new)
                shutil.rmtree(place, ignore_errors=True)
                new.rename(place)
            kept = _kept(place)
            assert kept is not None
        return Path(shutil.copyfile(kept, folder / kept.name)), made

    def _made(self, source: Source, backend: Sequence[Wheel]) -> MadeOf:
        files = {wheel.file: str(wheel.digest) for wheel in sorted(backend, key=lambda wheel: wheel.file)}
        return MadeOf(file=source.path.name, digest=source.digest, backend=files, python=platform.python_version())

    def _asked(self, source: Source, where: str) -> dict[str, Any]:
        """How a source wants to be built, as it was read before or is read now."""
        try:
            said = parse(self._note(source).read_bytes())
            if isinstance(said, dict) and said.get("format") == str(FORMAT):
                return said
        except (FileNotFoundError, ValueError):
            pass
        with self._opened(source, where) as work:
            said = {"format": str(FORMAT), "requires": list(work.way.requires), "dynamic": {}}
        _keep(self._note(source), said)
        return said

    def _note(self, source: Source) -> Path:
        return self.folder / f"asked-{source.digest.removeprefix('sha256:')[:32]}.json"

    def _resolved(self, requires: Sequence[str], where: str) -> tuple[Wheel, ...]:
        """What builds a source, on this disk; one version of each, chosen once."""
        if not requires:
            return ()
        needs = sorted(set(requires))
        names = {name_in(text) for text in needs}
        previous = "".join(f"{item.name}=={item.version}\n" for item in self.preferred if item.name in names)
        origin = f"what builds {where}"
        # It runs on this machine, whatever the image is for.
        target = host()
        index = self.rules.index
        text = self.resolver.resolved("\n".join(needs) + "\n", "", previous, targets=[target], index=index, origin=origin)
        return self._fetched(wanted_of(text, origin, target), origin)

    def _pinned(self, recorded: MadeOf, where: str) -> tuple[Wheel, ...]:
        """What built a source before."""
        found = []
        for file, digest in recorded.backend.items():
            name, version, _ = wheel_parts(file)
            found.append(Wanted(name=name, version=version, hashes=(Digest(digest),), line=1, file=file))
        if recorded.python != platform.python_version():
            self.progress(f"{where}: built by Python {recorded.python} then, by {platform.python_version()} now")
        return self._fetched(tuple(found), f"what built {where}")

    def _fetched(self, wanted: tuple[Wanted, ...], origin: str) -> tuple[Wheel, ...]:
        lock = Lock(text="", origin=origin, resolved=True, wheels=tuple(sorted(wanted, key=lambda item: item.name)))
        return fetch_wheels(lock, self.wheels, host(), index=self.rules.index, progress=self.progress)

    @contextmanager
    def _opened(self, source: Source, where: str) -> Iterator[_Work]:
        """A source, unpacked behind a wall of its own."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.wheels.mkdir(parents=True, exist_ok=True)
        # There, what a kill leaves is removed some hours later.
        with tempfile.TemporaryDirectory(dir=self.wheels, prefix="new-built-", ignore_cleanup_errors=True) as name:
            inside, beside = Path(name) / "inside", Path(name) / "beside"
            inside.mkdir()
            beside.mkdir()
            for file, text in _USERS.items():
                (beside / file).write_text(text)
            seconds = self.rules.timeout_seconds
            bounds = Bounds(
                memory_bytes=self.rules.memory_bytes,
                disk_bytes=self.rules.disk_bytes,
                until=time.monotonic() + seconds,
                seconds=seconds,
            )
            shown = {f"{_ARCHIVE}/{source.path.name}": source.path, f"{_TOOLS}/setup_code.py": Path(setup_code.__file__)}
            shown |= {f"/etc/{file}": beside / file for file in _USERS}
            shown |= {path: Path(path) for path in _SHOWN_TO_COMPILERS if Path(path).exists()}
            prefix = Path(sys.base_prefix).resolve()
            shown |= {} if prefix.is_relative_to("/usr") else {str(prefix): prefix}
            wall = Enclosure(
                folder=inside,
                bounds=bounds,
                subject=where,
                readable=shown,
                surroundings=self.surroundings,
                has_root=False,
            )
            wall.prepare()
            try:
                yield _Work(wall, source, where, prefix / "bin" / f"python{sys.version_info[0]}.{sys.version_info[1]}")
            finally:
                wall.clear()


class _Work:
    """One source, unpacked, and what is done with it. Once its setup code ran, nothing in its folder is trusted."""

    def __init__(self, wall: Enclosure, source: Source, where: str, python: Path) -> None:
        self._wall, self._where, self._python = wall, where, str(python)
        self._inside = wall.surroundings.inside
        archive = f"{_ARCHIVE}/{source.path.name}"
        arguments = ["unpack", archive, f"{self._inside}/src", f"{self._inside}/answer.json"]
        ended = wall.run([self._python, "-I", f"{_TOOLS}/setup_code.py", *arguments])
        if ended.code:
            raise wall.failed(ended, "unpacking")
        said = self._answer()
        if "refused" in said:
            raise DesiredStateError(f"{where}: {source.path.name}: {_line(said['refused'])}", reason="UnsafeSource")
        self.way = way_of(str(said.get("project", "")), bool(said.get("hasSetup")), where)

    def further(self, backend: Sequence[Wheel]) -> list[str]:
        """What the backend asks for, besides what the source says."""
        said = self._called("get_requires_for_build_wheel", backend)
        found = said.get("answer")
        if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
            raise DesiredStateError(
                f"{self._where}: expected a list of requirements of its backend, got none", reason="BuildFailed"
            )
        return list(_checked(found, self._where))

    def wheel(self, backend: Sequence[Wheel], wanted: Wanted, folder: Path) -> Path:
        """Build a wheel, and take it out."""
        answer = self._called("build_wheel", backend).get("answer")
        file = str(answer)
        try:
            name, version, _ = wheel_parts(file)
        except ValueError as error:
            raise DesiredStateError(
                f"{self._where}: expected a wheel of its backend, got {_line(answer)}", reason="BuildFailed"
            ) from error
        if name != wanted.name or not same_version(version, wanted.version) or "/" in file:
            text = f"{self._where}: expected a wheel of {wanted.name} {wanted.version}, got {_line(file)}"
            raise DesiredStateError(text, reason="BuildFailed")
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix="new-") as place:
            loose = Path(place) / file
            with os.fdopen(self._opened("out", file), "rb") as stream, loose.open("wb") as out:
                shutil.copyfileobj(stream, out)
            check_wheel(loose)
            repack(loose, folder / file)
        check_wheel(folder / file)
        return folder / file

    def _called(self, hook: str, backend: Sequence[Wheel]) -> dict[str, Any]:
        inside = self._inside
        readable = {**self._wall.readable, f"{_TOOLS}/uv": Path(uv_program())}
        readable |= {f"{_WHEELS}/{wheel.file}": wheel.path for wheel in backend}
        wall = replace(self._wall, readable=readable)
        venv = f"{inside}/venv"
        steps = [[self._python, "-I", "-m", "venv", "--clear", "--without-pip", venv]]
        if backend:
            uv = [
                f"{_TOOLS}/uv",
                "pip",
                "install",
                "--quiet",
                "--offline",
                "--no-index",
                "--no-deps",
                "--no-cache",
                "--no-config",
            ]
            steps.append(
                [*uv, "--link-mode", "copy", "--python", f"{venv}/bin/python", *(f"{_WHEELS}/{w.file}" for w in backend)]
            )
        for step in steps:
            ended = wall.run(step)
            if ended.code:
                raise wall.failed(ended, "laying out what builds it")
        rest = [hook, self.way.backend, json.dumps(self.way.paths), f"{inside}/src", f"{inside}/out", f"{inside}/answer.json"]
        command = ["env", *_environment(inside), f"{venv}/bin/python", "-P", "-s", f"{_TOOLS}/setup_code.py", "call", *rest]
        ended = wall.run(command)
        if ended.code:
            raise self._failed(wall, ended, hook)
        return self._answer()

    def _failed(self, wall: Enclosure, ended: Ended, hook: str) -> DesiredStateError:
        error = wall.failed(ended, f"setup code, {hook}")
        if any(_NO_NETWORK.search(line) for line in ended.last):
            return DesiredStateError(f"{error.message}; setup code has no network here", reason=error.reason)
        return error

    def _answer(self) -> dict[str, Any]:
        """What was written for us; it may come from a stranger."""
        try:
            with os.fdopen(self._opened("answer.json"), "rb") as file:
                said = json.loads(file.read(LARGEST_ANSWER_BYTES + 1)[: LARGEST_ANSWER_BYTES + 1])
        except (ValueError, RecursionError) as error:
            raise DesiredStateError(
                f"{self._where}: expected an answer of its backend, got other bytes", reason="BuildFailed"
            ) from error
        if not isinstance(said, dict):
            raise DesiredStateError(f"{self._where}: expected an answer of its backend, got another value", reason="BuildFailed")
        return said

    def _opened(self, *parts: str) -> int:
        """A plain file behind the wall, opened without following any link."""
        held = os.open(self._wall.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for part in parts[:-1]:
                deeper = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=held)
                os.close(held)
                held = deeper
            found = os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=held)
        except OSError as error:
            text = f"{self._where}: expected {parts[-1]} of its setup code, got none that can be read"
            raise DesiredStateError(text, reason="BuildFailed") from error
        finally:
            os.close(held)
        if not stat.S_ISREG(os.fstat(found).st_mode):
            os.close(found)
            text = f"{self._where}: expected {parts[-1]} of its setup code as a plain file, got another kind"
            raise DesiredStateError(text, reason="BuildFailed")
        return found


def way_of(project: str, has_setup: bool, where: str) -> Way:
    """How a source distribution wants to be built.

    Args:
        project: Text of its `pyproject.toml`; empty: it has none.
        has_setup: Whether it has a `setup.py`.
        where: What messages begin with.

    Raises:
        DesiredStateError: It does not say so in a way that can be read.
    """
    try:
        said = tomllib.loads(project).get("build-system")
    except tomllib.TOMLDecodeError as error:
        raise DesiredStateError(
            f"{where}: pyproject.toml: expected TOML, got something else: {error}", reason="BadSource"
        ) from error
    if said is None:
        if not project and not has_setup:
            raise DesiredStateError(f"{where}: expected pyproject.toml or setup.py in it, got neither", reason="BadSource")
        return Way(backend=LEGACY, requires=LEGACY_NEEDS)
    table = said if isinstance(said, dict) else {}
    requires: Any = table.get("requires")
    paths: Any = table.get("backend-path", [])
    backend = table.get("build-backend", LEGACY)
    if not _are_texts(requires) or not _are_texts(paths) or not isinstance(backend, str) or not _BACKEND.fullmatch(backend):
        text = f"{where}: pyproject.toml: build-system: expected requires, build-backend and backend-path as PEP 517 has them"
        raise DesiredStateError(f"{text}, got others", reason="BadSource")
    if any(path.startswith("/") or ".." in path.split("/") for path in paths):
        text = f"{where}: pyproject.toml: build-system.backend-path: expected folders of the source, got others"
        raise DesiredStateError(text, reason="BadSource")
    needs = list(requires)
    if "build-backend" not in table and "setuptools" not in {name_in(text) for text in needs}:
        needs += LEGACY_NEEDS
    return Way(backend=backend, requires=_checked(needs, where), paths=tuple(paths))


def _checked(requires: Sequence[str], where: str) -> tuple[str, ...]:
    """Requirements of a build that hold here: releases of an index, and nothing else that could be a line of a file."""
    if len(requires) > MOST_REQUIREMENTS:
        text = f"{where}: expected at most {MOST_REQUIREMENTS} requirements of its build, got {len(requires)}"
        raise DesiredStateError(text, reason="BadSource")
    found = []
    for text in requires:
        try:
            need = read_requirement(text, host())
        except ValueError as error:
            text = f"{where}: expected requirements of its build, got {shown(_line(text))}"
            raise DesiredStateError(text, reason="BadSource") from error
        if need.url or "\n" in text or "\r" in text:
            text = f"{where}: {need.name}: expected a release of an index to build it by, got an address"
            raise DesiredStateError(text, reason="BadSource")
        if need.applies:
            found.append(text.strip())
    return tuple(sorted(set(found)))


def _environment(inside: str) -> list[str]:
    return [
        f"PATH={inside}/venv/bin:/usr/bin:/usr/sbin:/bin:/sbin",
        f"VIRTUAL_ENV={inside}/venv",
        f"SOURCE_DATE_EPOCH={EPOCH}",
        "PYTHONHASHSEED=0",
        "PYTHONDONTWRITEBYTECODE=1",
        "TZ=UTC",
        "NO_COLOR=1",
    ]


def _key(backend: Sequence[Wheel]) -> str:
    return digest_value(sorted(str(wheel.digest) for wheel in backend)).removeprefix("sha256:")[:32]


def _kept(place: Path) -> Path | None:
    return next(iter(sorted(place.glob("*.whl"))), None)


def _keep(note: Path, value: Mapping[str, Any]) -> None:
    temporary = note.with_suffix(".new")
    temporary.write_bytes(canonical(value))
    os.replace(temporary, note)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _line(value: Any) -> str:
    """What a stranger said, in a line."""
    return " ".join(str(value).split())[:200]
