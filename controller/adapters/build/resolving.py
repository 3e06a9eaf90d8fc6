"""What uv answers: which files a `uv.lock` means, and which releases loose requirements come to. It runs no code of a package.

Law: equal questions are asked once; the answer is kept, so that a build tomorrow installs what a build today did. What a source
distribution needs is told to uv, which would run its setup code to learn it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email.parser import HeaderParser
from functools import lru_cache
from pathlib import Path, PurePosixPath

from controller.adapters.build.indexes import check_index, uv_environment
from controller.adapters.build.requirements import wanted_of
from controller.adapters.build.standards import uv_platform
from policies.canonical import digest_value
from policies.errors import ControllerError, DesiredStateError, RefusedError, SilentError
from policies.locks import OWN_LOCK, REQUIREMENTS, UV_LOCK, Target, Wanted

FORMAT = 1
"""Part of the names under which answers are kept; a new one asks again."""
EXPORT_SECONDS = 60.0
RESOLVE_SECONDS = 900.0
SHOWN = 400
"""Characters of what uv says that a message has room for."""
LIMITS = "constraints.txt"
SETTINGS = "settings.toml"
MOST_LEARNED = 50
"""How many source distributions one resolution may ask for."""
_NO_WHEEL = re.compile(r"Wheels are required for `([^`]+)` because building from source is disabled")
_SILENT = re.compile(
    r"failed to fetch|request failed|connect error|client error|timed out|dns error|error sending request|status code 5\d\d|"
    r"\b429\b|incomplete message|error decoding response|unexpected end of file",
    re.IGNORECASE,
)
_REFUSED = re.compile(r"\b40[13]\b|unauthorized|forbidden|missing credentials", re.IGNORECASE)
_FULL = re.compile(r"no space left|os error 28\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a release needs, as its wheel's metadata has it."""

    requires: tuple[str, ...]
    extras: tuple[str, ...] = ()


def needs_of(wheel: Path) -> Needs:
    """What a wheel's metadata says that it needs. The wheel was checked before."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.count("/") == 1 and name.endswith(".dist-info/METADATA"))
        said = HeaderParser().parsestr(archive.read(name).decode("utf-8", "replace"))
    requires, extras = said.get_all("Requires-Dist", []), said.get_all("Provides-Extra", [])
    return Needs(requires=tuple(map(str, requires)), extras=tuple(map(str, extras)))


Learn = Callable[[Wanted], Needs]
"""What a release needs that has no wheel: it is built to learn it."""


class Resolver:
    """Asks uv, and remembers.

    Args:
        folder: Answers and what uv knows of releases; may be deleted.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def exported(self, texts: Mapping[str, str], origin: str) -> str:
        """A `uv.lock` as a `pylock.toml`: without extras, and of the groups only the defaults, never `dev`.

        Args:
            texts: `uv.lock`, and each `pyproject.toml`, by path.
            origin: What the lock is called in messages.

        Raises:
            DesiredStateError: It is of an unknown version, or it cannot be read.
        """
        # The project itself goes in as source; what else is local is left in, for the caller to refuse by name.
        more = ["--format", "pylock.toml", "--frozen", "--offline", "--no-dev", "--no-emit-project"]
        return self._kept({"export": dict(texts)}, ["export", *more], texts, origin, EXPORT_SECONDS, "")

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
        """Loose requirements as a lock with hashes.

        Args:
            requirements: Lines of names, versions and markers; no options.
            limits: Lines that bound versions without asking for packages.
            previous: A lock that no longer fits: what it says is kept where it can be; empty for none.
            targets: What it must do for; of several, one lock is made for all.
            index: What the project names; empty: what the machine is set up with.
            origin: What the requirements are called in messages.
            learn: Asked for what source distributions need; None: they are left out.

        Raises:
            DesiredStateError: Nothing fits all of them.
            SilentError: The index does not answer.
            RefusedError: It wants other credentials.
        """
        if index:
            check_index(index)
        first = targets[0]
        more = ["--generate-hashes", "--no-header", "--python-version", first.python]
        more += ["--universal"] if len(targets) > 1 else ["--python-platform", uv_platform(first)]
        # To learn what a source distribution needs, uv would have to run its setup code, here.
        more += ["--only-binary", ":all:"]
        texts = {REQUIREMENTS: requirements, LIMITS: limits, **({OWN_LOCK: previous} if previous else {})}

        def ask(sources: Mapping[str, _Known]) -> str:
            """With what is known of releases that have no wheel."""
            if not sources:
                return self._asked(texts, more, index, origin)
            pins = "".join(f"{name}=={known.version}\n" for name, known in sources.items() if known.version)
            told = {**texts, LIMITS: limits + pins, SETTINGS: _metadata(sources)}
            named = [option for name in sources for option in ("--no-binary", name)]
            return self._asked(told, [*more, *named, "--config-file", SETTINGS], index, origin)

        return _with_sources(ask, learn, origin, first) if learn is not None else ask({})

    def _asked(self, texts: Mapping[str, str], more: Sequence[str], index: str, origin: str) -> str:
        command = ["pip", "compile", REQUIREMENTS, *more, "-c", LIMITS, "-o", OWN_LOCK]
        asked = {"resolve": dict(texts), "options": list(more), "index": index}
        return self._kept(asked, command, texts, origin, RESOLVE_SECONDS, OWN_LOCK, index)

    def _kept(
        self,
        asked: Mapping[str, object],
        command: Sequence[str],
        texts: Mapping[str, str],
        origin: str,
        seconds: float,
        made: str,
        index: str = "",
    ) -> str:
        key = digest_value({**asked, "format": FORMAT}).removeprefix("sha256:")[:32]
        memory = self._folder / f"answer-{key}.txt"
        try:
            return memory.read_text()
        except (FileNotFoundError, UnicodeDecodeError):
            pass
        self._folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._folder, prefix="new-") as name:
            place = Path(name)
            for path, text in texts.items():
                target = place / PurePosixPath(path)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(text)
            told = self._run(command, place, origin, seconds, index)
            answer = (place / made).read_text() if made else told
        temporary = memory.with_suffix(".new")
        temporary.write_text(answer)
        os.replace(temporary, memory)
        return answer

    def _run(self, command: Sequence[str], place: Path, origin: str, seconds: float, index: str) -> str:
        fixed = [] if "--config-file" in command else ["--no-config"]
        fixed += ["--quiet", "--python", sys.executable, "--cache-dir", str(self._folder / "uv")]
        try:
            done = subprocess.run(
                [uv_program(), *command, *fixed],
                cwd=place,
                env=uv_environment(index),
                capture_output=True,
                text=True,
                stdin=subprocess.DEVNULL,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise SilentError(f"requirements of {origin}: expected an answer of uv in {seconds:.0f} s, got none") from error
        if done.returncode:
            raise failure_of(done.stderr, origin)
        return done.stdout


def failure_of(text: str, origin: str) -> ControllerError:
    """What uv's words about a failure mean; addresses are left out, they may hold passwords."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("hint:")]
    words = " ".join(re.sub(r"^(error|cause|warning):\s*", "", line) for line in lines)
    words = re.sub(r"/\S*/new-\w+/", "", re.sub(r"\w+://[^\s`')]+", "the index", words))[:SHOWN]
    words = words.strip().rstrip(".") or "uv gave no reason"
    if _FULL.search(text):
        return SilentError(f"requirements of {origin}: no space left on the disk", reason="DiskFull")
    if _REFUSED.search(text):
        return RefusedError(f"requirements of {origin}: the index wants other credentials than it was given")
    if _SILENT.search(text):
        return SilentError(f"requirements of {origin}: {words}")
    if "no solution found" in text.lower():
        words = re.sub(r"^No solution found when resolving dependencies\s*", "", words)
        told = f"{origin}: expected requirements that fit together, got: {words}"
        return _NoWheelError(told, tuple(sorted(set(_NO_WHEEL.findall(text)))))
    hint = "; make it again with `uv lock`" if origin.endswith(UV_LOCK) else ""
    return DesiredStateError(f"{origin}: {words}{hint}", reason="NotLocked")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """What is known of a release that has no wheel."""

    version: str = ""
    """Empty: nothing yet, and it is taken to need nothing."""
    needs: Needs = Needs(requires=())


class _NoWheelError(DesiredStateError):
    """Nothing fits together, and some of what was asked for has no wheel."""

    def __init__(self, message: str, names: tuple[str, ...]) -> None:
        super().__init__(message, reason="NoSolution")
        self.names = names


def _with_sources(ask: Callable[[Mapping[str, _Known]], str], learn: Learn, origin: str, target: Target) -> str:
    """An answer with releases that have no wheel: each is chosen, then learned of, until all that were chosen are known."""
    sources: dict[str, _Known] = {}
    while True:
        try:
            text = ask(sources)
        except _NoWheelError as error:
            new = [name for name in error.names if name not in sources]
            if not new:
                raise
            sources |= {name: _Known() for name in new}
            if len(sources) > MOST_LEARNED:
                said = f"{origin}: expected at most {MOST_LEARNED} releases without a wheel, got more"
                raise DesiredStateError(f"{said}; lock them elsewhere", reason="NoSolution") from error
            continue
        chosen = {item.name: item for item in wanted_of(text, origin, target)}
        unknown = [name for name, known in sources.items() if not known.version and name in chosen]
        if not unknown:
            return text
        sources |= {name: _Known(version=chosen[name].version, needs=learn(chosen[name])) for name in unknown}


def _metadata(sources: Mapping[str, _Known]) -> str:
    """Settings that tell uv what releases need. No version is named, so that it builds none to learn of it."""
    lines = []
    for name, known in sources.items():
        needs, extras = json.dumps(list(known.needs.requires)), json.dumps(list(known.needs.extras))
        lines += ["[[dependency-metadata]]", f'name = "{name}"', f"requires-dist = {needs}", f"provides-extra = {extras}", ""]
    return "\n".join(lines)


@lru_cache(maxsize=1)
def uv_program() -> str:
    """Where uv lies."""
    # The package only knows where its program lies, and importing it is quick.
    from uv import find_uv_bin

    return os.fspath(find_uv_bin())
