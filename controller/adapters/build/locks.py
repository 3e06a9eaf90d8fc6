"""Lock files -> the exact releases that go into an image, for one target.

Laws: a lock that asks for anything that is not named by SHA-256 is refused; all faults are told at once, with file and line.
Nothing is fetched here. Where requirements are not locked, the resolver is asked.
"""

from __future__ import annotations

import posixpath
import re
import tomllib
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, requires
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

from controller.adapters.build.requirements import HINT, Faults, Read, RequirementsReader, decoded, shown, wanted_of
from controller.adapters.build.resolving import Learn
from controller.adapters.build.standards import (
    Locked,
    read_pylock,
    read_requirement,
    same_specifier,
    same_version,
    within,
)
from policies.errors import DesiredStateError
from policies.locks import (
    OURS,
    OWN_LOCK,
    PYLOCK,
    REQUIREMENTS,
    UV_LOCK,
    Lock,
    Target,
    Wanted,
    chosen,
    is_sha256,
    merged,
    name_in,
    plain_name,
)
from policies.terms.build import NO_RULES, BuildRules
from policies.terms.digest import Digest

RUNTIME = "myelin-runtime"
"""What our runtime is called where it is installed; its metadata says which versions of others it needs."""
_PROJECT = "pyproject.toml"
_SHOWN_TAGS = 6


class Resolves(Protocol):
    """What is asked of `resolving.Resolver`."""

    def exported(self, texts: Mapping[str, str], origin: str) -> str:
        """A `uv.lock` as a `pylock.toml`."""
        ...

    def resolved(
        self,
        requirements: str,
        limits: str,
        previous: str,
        *,
        targets: Sequence[Target],
        index: str,
        origin: str,
        learn: Learn | None = None,
    ) -> str:
        """Loose requirements as a lock with hashes."""
        ...


def read_lock(
    files: Mapping[str, bytes],
    folder: str,
    target: Target,
    resolver: Resolves,
    *,
    rules: BuildRules = NO_RULES,
    runtime: str = "",
    learn: Learn | None = None,
) -> Lock:
    """What is installed into the image of a source folder.

    Args:
        files: The folder's files, by path from it.
        folder: Where it is, from the root of the repository; for messages.
        target: What it is installed for.
        resolver: Asked where requirements are not locked, and what a `uv.lock` means.
        rules: What the project says.
        runtime: Our runtime's own lock, in the form of requirements with hashes.
        learn: Asked for what releases need that have no wheel; None: no such release is taken.

    Raises:
        DesiredStateError: The lock cannot be read, has no wheel for the target, or does not fit our runtime; all faults at once.
        SilentError: Requirements are not locked, and the index does not answer.
    """
    name = chosen(files)
    origin = f"{folder}/{name}".lstrip("/") if name else ""
    place = _Place(files, folder, target, resolver, rules, learn)
    text, is_resolved = "", False
    if name == PYLOCK:
        text = place.text(PYLOCK)
        own = place.of_pylock(text, origin, text)
    elif name == UV_LOCK:
        text = place.text(UV_LOCK)
        own = place.of_uv(text, origin)
    elif name:
        text, is_resolved, own = place.of_requirements(name)
        origin = place.label(REQUIREMENTS) if is_resolved else origin
    else:
        own = ()
    ours = _runtime_wanted(runtime, target)
    _check_runtime(own, origin, target)
    return Lock(text=text, origin=origin, resolved=is_resolved, wheels=merged(own, ours))


class _Place:
    """A source folder whose lock is read."""

    def __init__(
        self,
        files: Mapping[str, bytes],
        folder: str,
        target: Target,
        resolver: Resolves,
        rules: BuildRules,
        learn: Learn | None,
    ) -> None:
        self._files, self._folder, self._target, self._resolver, self._rules = files, folder, target, resolver, rules
        self._learn = learn

    def text(self, name: str) -> str:
        return decoded(self._files[name], self.label(name))

    def label(self, name: str) -> str:
        return f"{self._folder}/{name}".lstrip("/")

    def of_pylock(self, text: str, origin: str, shown: str) -> tuple[Wanted, ...]:
        """Releases of a `pylock.toml`; lines are looked for in `shown`."""
        try:
            packages = read_pylock(_toml(text, origin), self._target)
        except ValueError as error:
            raise DesiredStateError(f"{origin}: {error}", reason="NotLocked") from error
        faults, found = Faults(), []
        for package in packages:
            line = _line_of(shown, package.name)
            if package.name != OURS and (item := self._wanted(package, origin, line, faults)) is not None:
                found.append(item)
        faults.tell()
        return tuple(sorted(found, key=lambda item: item.name))

    def _wanted(self, package: Locked, origin: str, line: int, faults: Faults) -> Wanted | None:
        subject = f"{package.name} {package.version}".strip()
        if package.origin:
            faults.add(origin, line, f"{subject}: expected a release of an index, got {_KINDS[package.origin]}", "NotARelease")
            return None
        if not package.file:
            faults.add(origin, line, f"{subject}: {_no_wheel(self._target, package.tags)}", "NoWheel")
            return None
        if package.is_source and not self._rules.builds_wheels:
            text = f"{subject}: {_no_wheel(self._target, package.tags)}, and a source distribution, which is built only where"
            faults.add(origin, line, f"{text} spec.builder.allowSourceDistributions says so", "NoWheel")
            return None
        digest = f"sha256:{package.hashes.get('sha256', '').lower()}"
        if not is_sha256(digest):
            faults.add(origin, line, f"{subject}: expected the sha256 of {package.file}, got {_listed(package.hashes)}")
            return None
        return Wanted(
            name=package.name,
            version=package.version,
            hashes=(Digest(digest),),
            line=line,
            file=package.file,
            url=_bare_url(package.url),
            is_source=package.is_source,
        )

    def of_uv(self, text: str, origin: str) -> tuple[Wanted, ...]:
        """Releases of a `uv.lock`."""
        label = self.label(_PROJECT)
        if _PROJECT not in self._files:
            raise DesiredStateError(f"{origin}: expected {_PROJECT} beside it, there is none", reason="NotLocked")
        lock, project = _toml(text, origin), _toml(self.text(_PROJECT), label)
        faults = Faults()
        _check_fresh(lock, project, origin, self._target, faults)
        faults.tell()
        texts = {UV_LOCK: text}
        texts |= {path: self.text(path) for path in self._files if posixpath.basename(path) == _PROJECT}
        return self.of_pylock(self._resolver.exported(texts, origin), origin, text)

    def of_requirements(self, name: str) -> tuple[str, bool, tuple[Wanted, ...]]:
        """Text, whether it was resolved now, and releases, of a folder with requirements and maybe a lock of them."""
        faults = Faults()
        reader = RequirementsReader(self._files, self._folder, self._target, faults)
        lock = reader.all(OWN_LOCK) if name == OWN_LOCK else None
        asked = reader.all(REQUIREMENTS) if REQUIREMENTS in self._files else None
        if lock is not None and lock.loose:
            faults.add(*lock.first, f"expected name==version with --hash=sha256:…, got {shown(lock.loose[0])}; {HINT}")
        faults.tell()
        if lock is not None:
            misfit = self._misfit(lock, asked) if asked is not None else None
            if misfit is None:
                return self.text(OWN_LOCK), False, lock.wanted
            if self._rules.requires_hashes:
                raise DesiredStateError(f"{misfit}; lock it again", reason="NotLocked")
        assert asked is not None
        if not asked.loose:
            return self.text(REQUIREMENTS), False, asked.wanted
        file, line = asked.first
        if asked.wanted or self._rules.requires_hashes:
            faults.add(file, line, f"expected name==version with --hash=sha256:…, got {shown(asked.loose[0])}; {HINT}")
            faults.tell()
        text = self._resolved(asked, self.text(OWN_LOCK) if lock is not None else "")
        return text, True, wanted_of(text, self.label(OWN_LOCK), self._target)

    def _resolved(self, asked: Read, previous: str) -> str:
        needs = [text for text in asked.loose if name_in(text) != OURS]
        limits = [*asked.limits, *_runtime_needs()]
        platforms = self._rules.platforms or (self._target.platform,)
        targets = [Target(python=self._target.python, platform=name, is_musl=self._target.is_musl) for name in platforms]
        if not needs:
            body = ""
        else:
            body = self._resolver.resolved(
                "\n".join(needs) + "\n",
                "\n".join(limits) + "\n",
                previous,
                targets=targets,
                index=self._rules.index,
                origin=self.label(REQUIREMENTS),
                learn=self._learn,
            )
        made_for = f"Python {self._target.python} on {' and '.join(platforms)}"
        return f"# Resolved by Myelin from {REQUIREMENTS}, for {made_for}.\n# Delete this file to resolve it again.\n{body}"

    def _misfit(self, lock: Read, asked: Read) -> str | None:
        """Why a lock is not one of these requirements; None: it is."""
        pinned = {item.name: item.version for item in lock.wanted}
        needs = [read_requirement(text, self._target) for text in asked.loose]
        label = self.label(OWN_LOCK)
        for need in needs:
            if need.applies and need.name != OURS:
                got = pinned.get(need.name)
                if got is None or not within(got, need.specifier):
                    return f"{label}: expected {need.name}{need.specifier}, as {REQUIREMENTS} says, got {got or 'none'}"
        for item in asked.wanted:
            got = pinned.get(item.name)
            if got is None or not same_version(got, item.version):
                return f"{label}: expected {item.name}=={item.version}, as {REQUIREMENTS} says, got {got or 'none'}"
        return None


_KINDS = {
    "vcs": "a commit of another repository",
    "directory": "a folder; code of this repository goes in as source",
    "archive": "an address",
}


def _check_fresh(lock: Mapping[str, Any], project: Mapping[str, Any], origin: str, target: Target, faults: Faults) -> None:
    """See that a `uv.lock` was made of this `pyproject.toml`: by names and specifiers, as uv writes them down."""
    asked = (project.get("project") or {}).get("dependencies")
    packages = lock.get("package")
    if not isinstance(asked, list) or not isinstance(packages, list):
        return
    roots = [item for item in packages if isinstance(item, dict) and _is_root(item)]
    if not roots:
        return
    noted = (roots[0].get("metadata") or {}).get("requires-dist") or []
    plain = [item for item in noted if isinstance(item, dict) and "extra ==" not in str(item.get("marker", ""))]
    known = {plain_name(str(item.get("name", ""))): item for item in plain}
    for text in asked:
        try:
            need = read_requirement(str(text), target)
        except ValueError:
            continue  # uv would not have locked it
        item = known.get(need.name)
        is_elsewhere = item is not None and any(key in item for key in ("git", "url", "path", "directory", "editable", "virtual"))
        if item is None or (not is_elsewhere and not need.url and not _has(noted, need.name, need.specifier)):
            what = f"{need.name}{need.specifier}"
            faults.add(origin, 1, f"expected {what}, as {_PROJECT} says, got another; run `uv lock`")


def _has(noted: Sequence[Any], name: str, specifier: str) -> bool:
    same = (item for item in noted if isinstance(item, dict) and plain_name(str(item.get("name", ""))) == name)
    return any(same_specifier(str(item.get("specifier", "")), specifier) for item in same)


def _is_root(package: Mapping[str, Any]) -> bool:
    source = package.get("source")
    return isinstance(source, dict) and "." in (source.get("virtual"), source.get("editable"))


def _runtime_wanted(text: str, target: Target) -> tuple[Wanted, ...]:
    found = wanted_of(text, "our runtime's requirements", target) if text else ()
    return tuple(Wanted(name=item.name, version=item.version, hashes=item.hashes, line=0) for item in found)


def _runtime_needs() -> tuple[str, ...]:
    """What our runtime says that it needs; nothing where it lies here without metadata."""
    try:
        return tuple(requires(RUNTIME) or ())
    except PackageNotFoundError:
        return ()


def _check_runtime(own: Sequence[Wanted], origin: str, target: Target) -> None:
    """See that what a user pins is something that our runtime works with."""
    pinned, faults = {item.name: item for item in own}, Faults()
    for text in _runtime_needs():
        need = read_requirement(text, target)
        item = pinned.get(need.name)
        if need.applies and item is not None and not within(item.version, need.specifier):
            wrong = f"{item.name}: expected {need.specifier}, which Myelin's runtime in the image needs, got {item.version}"
            faults.add(origin, item.line, wrong, "RuntimeConflict")
    faults.tell()


def _no_wheel(target: Target, tags: Sequence[str]) -> str:
    got = "none at all" if not tags else f"{', '.join(tags[:_SHOWN_TAGS])}{' …' if len(tags) > _SHOWN_TAGS else ''}"
    libc = "musl" if target.is_musl else f"glibc up to 2.{target.glibc}"
    return f"expected a wheel for Python {target.python} on {target.platform} with {libc}, got {got}"


def _listed(hashes: Mapping[str, str]) -> str:
    return ", ".join(sorted(hashes)) or "none"


def _line_of(text: str, name: str) -> int:
    """Where a TOML lock begins to speak of a package; 1 where it cannot be told."""
    for number, line in enumerate(text.splitlines(), start=1):
        found = re.match(r"""\s*name\s*=\s*["']([^"']+)["']""", line)
        if found and plain_name(found[1]) == name:
            return number
    return 1


def _toml(text: str, origin: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise DesiredStateError(f"{origin}: expected TOML, got something else: {error}", reason="NotLocked") from error


def _bare_url(url: str) -> str:
    """An address of the web without name and password; empty for what is none."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return ""
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, parts.query, ""))
