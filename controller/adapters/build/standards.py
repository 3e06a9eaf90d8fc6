"""What Python's packaging standards say of names, versions, markers and tags. This is the one file that imports `packaging`.

Law: nothing depends on the machine that asks, but `host`.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from policies.errors import DesiredStateError
from policies.locks import USUAL_GLIBC, Target, plain_name

_MACHINES = {"linux/amd64": "x86_64", "linux/arm64": "aarch64"}
_OLDEST_GLIBC = {"x86_64": 5, "aarch64": 17}
_LEGACY = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
"""Names from before PEP 600."""
_NEWEST_MUSL = 2
_MOST_PATCHES = 100
"""More patch releases than a Python has ever had."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """One requirement, read."""

    name: str
    """As indexes write it."""
    extras: tuple[str, ...]
    specifier: str
    """`>=1,<2`; empty: any version."""
    pin: str
    """The one version that it takes; empty: several, or none."""
    url: str
    """Where it is to be taken from; empty: an index."""
    applies: bool
    """Whether its marker holds for the target."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Locked:
    """One package of a `pylock.toml` that is installed on the target."""

    name: str
    version: str
    origin: str
    """`vcs`, `directory` or `archive`, where it is no release of an index; else empty."""
    file: str
    """Of the wheel that fits best; else of the source distribution; empty: neither is there."""
    url: str
    hashes: Mapping[str, str]
    is_source: bool
    tags: tuple[str, ...]
    """Of all wheels that the lock names, sorted: what there was to choose from."""


def host() -> Target:
    """This machine, as a target."""
    found = {machine: name for name, machine in _MACHINES.items()}.get(platform.machine(), f"linux/{platform.machine()}")
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    except (ValueError, OSError, AttributeError):
        name, version = "", ""
    if name != "glibc":
        return Target(python=python, platform=found, is_musl=sys.platform == "linux")
    return Target(python=python, platform=found, glibc=int(version.split(".")[1]))


@lru_cache(maxsize=16)
def platforms_of(target: Target) -> tuple[str, ...]:
    """Platform tags that a target takes, best first.

    Those that run nearly everywhere come first, then older ones, then newer ones from the oldest on: so one lock gives the
    same wheels on every machine that can run them, however new its libc is.

    Raises:
        DesiredStateError: No wheels are known for the platform.
    """
    machine = _machine(target)
    if target.is_musl:
        return (*(f"musllinux_1_{minor}_{machine}" for minor in range(_NEWEST_MUSL, -1, -1)), f"linux_{machine}")
    usual = min(USUAL_GLIBC, target.glibc)
    found: list[str] = []
    for minor in [*range(usual, _OLDEST_GLIBC[machine] - 1, -1), *range(usual + 1, target.glibc + 1)]:
        found.append(f"manylinux_2_{minor}_{machine}")
        if minor in _LEGACY:
            found.append(f"{_LEGACY[minor]}_{machine}")
    return (*found, f"linux_{machine}")


def uv_platform(target: Target) -> str:
    """The same target, as uv calls it."""
    return f"{_machine(target)}-" + ("unknown-linux-musl" if target.is_musl else f"manylinux_2_{min(USUAL_GLIBC, target.glibc)}")


@lru_cache(maxsize=16)
def ranks_of(target: Target) -> Mapping[str, int]:
    """Tags that a target takes -> how well each fits, 0 is best."""
    from packaging.tags import compatible_tags, cpython_tags

    major, minor = (int(part) for part in target.python.split("."))
    short, places = f"cp{major}{minor}", platforms_of(target)
    every = [*cpython_tags((major, minor), [short], places), *compatible_tags((major, minor), short, places)]
    ranks: dict[str, int] = {}
    for tag in every:
        ranks.setdefault(str(tag), len(ranks))
    return ranks


def wheel_parts(file: str) -> tuple[str, str, tuple[str, ...]]:
    """Name, version and tags of a wheel, out of its file's name.

    Raises:
        ValueError: It is no wheel's name.
    """
    from packaging.utils import InvalidWheelFilename, parse_wheel_filename

    try:
        name, version, _, tags = parse_wheel_filename(file)
    except InvalidWheelFilename as error:
        raise ValueError(f"expected a wheel's file name, got {file!r}") from error
    return str(name), str(version), tuple(sorted(str(tag) for tag in tags))


def rank_of(file: str, target: Target) -> int | None:
    """How well a wheel fits a target, 0 is best; None: not at all, or it is no wheel."""
    try:
        tags = wheel_parts(file)[2]
    except ValueError:
        return None
    ranks = ranks_of(target)
    return min((ranks[tag] for tag in tags if tag in ranks), default=None)


def is_pure(file: str) -> bool:
    """Whether a wheel, by its file's name, holds nothing that was compiled for one kind of machine."""
    try:
        return all(tag.endswith("-any") for tag in wheel_parts(file)[2])
    except ValueError:
        return False


def same_version(one: str, other: str) -> bool:
    """Whether two versions are one, `1.0` and `1.0.0`; what is no version is only itself."""
    from packaging.version import InvalidVersion, Version

    try:
        return Version(one) == Version(other)
    except InvalidVersion:
        return one == other


def within(version: str, specifier: str) -> bool:
    """Whether a version is one of those that a specifier takes."""
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    try:
        return SpecifierSet(specifier).contains(version, prereleases=True)
    except InvalidSpecifier:
        return False


def same_specifier(one: str, other: str) -> bool:
    """Whether two specifiers say the same, in whatever order."""
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    try:
        return SpecifierSet(one) == SpecifierSet(other)
    except InvalidSpecifier:
        return one == other


def read_requirement(text: str, target: Target) -> Requirement:
    """Read one requirement.

    Raises:
        ValueError: It is none.
    """
    from packaging.markers import UndefinedEnvironmentName
    from packaging.requirements import InvalidRequirement
    from packaging.requirements import Requirement as Parsed

    try:
        parsed = Parsed(text)
        applies = parsed.marker is None or parsed.marker.evaluate({**_variables(target), "extra": ""})
    except (InvalidRequirement, UndefinedEnvironmentName) as error:
        raise ValueError(str(error).partition("\n")[0]) from error
    pins = [item.version for item in parsed.specifier if item.operator == "==" and not item.version.endswith(".*")]
    return Requirement(
        name=plain_name(parsed.name),
        extras=tuple(sorted(plain_name(extra) for extra in parsed.extras)),
        specifier=str(parsed.specifier),
        pin=pins[0] if len(pins) == 1 and len(parsed.specifier) == 1 else "",
        url=parsed.url or "",
        applies=applies,
    )


def read_pylock(document: Mapping[str, Any], target: Target) -> tuple[Locked, ...]:
    """The packages of a `pylock.toml` that are installed on a target: default groups, no extras.

    Raises:
        ValueError: It is no such document, it is of an unknown version, or it is not meant for the target.
    Source:
        PyPA, pylock.toml specification, installation. All faults of packages are left to the caller, who tells all of them.
    """
    from packaging.pylock import Pylock, PylockUnsupportedVersionError, PylockValidationError

    try:
        lock = Pylock.from_dict(document)
    except PylockUnsupportedVersionError as error:
        raise ValueError(f"lock-version: expected 1.0, got {str(document.get('lock-version'))[:20]}") from error
    except PylockValidationError as error:
        raise ValueError(str(error)) from error
    if not _takes(lock.requires_python, target):
        raise ValueError(f"requires-python: {lock.requires_python}: expected a lock for Python {target.python}")
    plain = dict(_variables(target))
    if lock.environments and not any(marker.evaluate(plain, context="requirement") for marker in lock.environments):
        raise ValueError(
            f"environments: expected one for Python {target.python} on {target.platform}, got none; lock it for that"
        )
    variables: dict[str, Any] = {**plain, "extras": frozenset(), "dependency_groups": frozenset(lock.default_groups or ())}
    found: dict[str, Locked] = {}
    for index, package in enumerate(lock.packages):
        if package.marker is not None and not package.marker.evaluate(variables, context="lock_file"):
            continue
        if not _takes(package.requires_python, target):
            raise ValueError(f"packages[{index}] {package.name}: expected one for Python {target.python}, got one for others")
        if package.name in found:
            raise ValueError(f"packages[{index}] {package.name}: expected one version for the target, got two")
        found[package.name] = _locked(package, target)
    return tuple(found.values())


def _locked(package: Any, target: Target) -> Locked:
    origin = next((kind for kind in ("vcs", "directory", "archive") if getattr(package, kind) is not None), "")
    # Of two that fit alike, the later build is taken (PyPA, binary distribution format, build tags).
    wheels = sorted(package.wheels or (), key=lambda wheel: _build_of(wheel.filename), reverse=True)
    fitting = [(rank, wheel) for wheel in wheels if (rank := rank_of(wheel.filename, target)) is not None]
    best = min(fitting, key=lambda pair: pair[0])[1] if fitting else None
    taken = best or package.sdist
    return Locked(
        name=str(package.name),
        version=str(package.version or ""),
        origin=origin,
        file=taken.filename if taken is not None else "",
        # A path beside the lock is no place that wheels are taken from; whatever index has those bytes will do.
        url=(taken.url or "") if taken is not None else "",
        hashes=dict(taken.hashes) if taken is not None else {},
        is_source=best is None and package.sdist is not None,
        tags=tuple(sorted({tag for wheel in wheels for tag in wheel_parts(wheel.filename)[2]})),
    )


def _build_of(file: str) -> tuple[int, str, str]:
    from packaging.utils import parse_wheel_filename

    build = parse_wheel_filename(file)[2]
    return (build[0], build[1], file) if build else (-1, "", file)


def _takes(requires: Any, target: Target) -> bool:
    """Whether some patch release of the target's Python is taken: which one a base has is not told."""
    return requires is None or any(requires.contains(f"{target.python}.{patch}") for patch in range(_MOST_PATCHES))


def _machine(target: Target) -> str:
    machine = _MACHINES.get(target.platform)
    if machine is None:
        text = f"platform {target.platform}: expected {' or '.join(sorted(_MACHINES))}"
        raise DesiredStateError(f"{text}, for others no wheels are chosen", reason="Platform")
    return machine


@lru_cache(maxsize=16)
def _variables(target: Target) -> Mapping[str, str]:
    """The variables of markers (PyPA, dependency specifiers).

    The first release of a Python speaks for all: with the patch that a machine happens to have, a lock would mean other
    packages elsewhere.
    """
    return {
        "implementation_name": "cpython",
        "implementation_version": f"{target.python}.0",
        "os_name": "posix",
        "platform_machine": _machine(target),
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": "Linux",
        "platform_version": "",
        "python_full_version": f"{target.python}.0",
        "python_version": target.python,
        "sys_platform": "linux",
    }
