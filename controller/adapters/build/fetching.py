"""Locked releases -> wheels on disk. pip fetches them: it knows the machine's index, proxies, passwords and certificates.

Laws: only bytes with a hash of the lock count; what is here is not fetched again, not after a kill in the middle either; equal
locks give equal wheels. Nothing that is fetched is run: a source distribution is handed, unopened, to what builds it.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Protocol

from controller.adapters.build import pip_sources
from controller.adapters.build.indexes import check_index, machine_index, pip_environment
from controller.adapters.build.standards import platforms_of, same_version, wheel_parts
from controller.adapters.build.wheel_store import MadeOf, Source, Wheel, WheelStore
from policies.errors import ControllerError, DesiredStateError, Fault, OutsideError, RefusedError, SilentError
from policies.locks import Lock, Target, Wanted

BATCH = 16
"""Wheels that one pip fetches: what is lost when it fails."""
AT_ONCE = 2
"""How many pips there are at once: reading the index's pages takes more of a processor than of the network."""
FETCH_SECONDS = 3600.0
_SHOWN_TAGS = 6
_SILENT = re.compile(
    r"connection error|connection broken|timed out|temporary failure|max retries|name resolution|newconnectionerror|"
    r"remotedisconnected|incompleteread|incomplete-download|readtimeout|http error 429|http error 5\d\d|"
    r"\b(429|5\d\d) (client|server) error|too many 5\d\d|protocolerror",
    re.IGNORECASE,
)
_REFUSED = re.compile(r"http error 40[13]|\b40[13] client error", re.IGNORECASE)
_FULL = re.compile(r"no space left on device|disk quota exceeded", re.IGNORECASE)
_CHANGED = re.compile(r"^\s*Got\s+([0-9a-f]{64})", re.MULTILINE)
_OTHER_TAGS = re.compile(r"none of the wheel's tags \(([^)]*)\) are compatible")
_TELLING = re.compile(r"\berror\b|could not fetch url|no matching distribution|incomplete", re.IGNORECASE)
_OTHERS = re.compile(r"against \d+ hashes \(0 matches, 0 no digest\)")
"""The index has files of that release, and none of them is said to have a hash of the lock."""
_ODD = re.compile(r"has an invalid wheel|wheel '.*' located at .* is invalid|inconsistent (name|version)", re.IGNORECASE)
_SOURCE = re.compile(r"No sources permitted for|source (archive|distribution)", re.IGNORECASE)


class BuildsWheels(Protocol):
    """Makes wheels of source distributions."""

    def fits(self, file: str) -> bool:
        """Whether a wheel of that name, built here, is one for the system that the image is for."""
        ...

    def built(self, wanted: Wanted, source: Source, folder: Path, where: str) -> tuple[Path, MadeOf]:
        """A wheel in `folder`, and what it was made of; `where` begins messages."""
        ...


def fetch_wheels(
    lock: Lock,
    cache: Path,
    target: Target,
    *,
    index: str = "",
    progress: Callable[[str], None] = lambda _: None,
    builder: BuildsWheels | None = None,
) -> tuple[Wheel, ...]:
    """All wheels of a lock, sorted by name; only what is missing is fetched.

    Args:
        lock: What is wanted.
        cache: Where wheels are kept; may be deleted.
        target: What they are chosen for, where the lock leaves that open.
        index: What the project names; empty: what the machine is set up with.
        progress: Told what goes on.
        builder: Builds source distributions; None: they are refused.

    Raises:
        DesiredStateError: A hash does not fit, there is no wheel, or one may not be unpacked; all that is so at once.
        RefusedError: The index wants other credentials.
        SilentError: The index does not answer, or the disk is full; what came is kept.
    """
    store = WheelStore(cache, target)

    def find(item: Wanted) -> Wheel | None:
        found = store.find(item)
        # One that was built while that was allowed, or for a system that is not this image's, does not count.
        is_usable = found is None or found.made_of is None or (builder is not None and builder.fits(found.file))
        return found if is_usable else None

    known = {item.name: found for item in lock.wheels if (found := find(item)) is not None}
    missing = [item for item in lock.wheels if item.name not in known]
    if missing:
        if index:
            check_index(index)
        cache.mkdir(parents=True, exist_ok=True)
        store.take_over(missing)
        known |= {item.name: found for item in missing if (found := find(item)) is not None}
        missing = [item for item in missing if item.name not in known]
    if missing:
        fetch = _Fetch(store, lock.origin or "requirements", index, builder)
        known |= {wheel.name: wheel for wheel in fetch.all(missing, progress)}
    return tuple(known[item.name] for item in lock.wheels)


class _Fetch:
    """One go at what is missing."""

    def __init__(self, store: WheelStore, origin: str, index: str, builder: BuildsWheels | None) -> None:
        self._store, self._origin, self._index, self._builder = store, origin, index, builder
        self._without: dict[str, DesiredStateError] = {}
        """Releases that have no wheel, and what would be said of them where nothing is built."""
        # Where the machine or the project has an index of its own, wheels come from there, by their hashes; the addresses
        # in a lock are those of whoever made it.
        self._takes_addresses = not index and not machine_index().url and not machine_index().is_off

    def all(self, missing: Sequence[Wanted], progress: Callable[[str], None]) -> Iterator[Wheel]:
        """Fetch in batches; what one brought is kept whatever becomes of the others."""
        wheels = [item for item in missing if not item.is_source]
        size = min(BATCH, max(1, -(-len(wheels) // AT_ONCE)))
        batches = [wheels[start : start + size] for start in range(0, len(wheels), size)]
        done, errors, found = 0, list[ControllerError](), list[Wheel]()
        progress(f"fetching wheels: 0 of {len(missing)}")
        with ThreadPoolExecutor(max_workers=AT_ONCE, thread_name_prefix="fetch") as pool:
            running = [pool.submit(self._batch, batch) for batch in batches]
            for future in as_completed(running):
                try:
                    found += future.result()
                except ControllerError as error:
                    errors.append(error)
                done = len(found)
                progress(f"fetching wheels: {done} of {len(missing)}")
        for item in missing:
            if (item.is_source or item.name in self._without) and not errors:
                progress(f"building a wheel of {item.name} {item.version}")
                try:
                    found.append(self._built(item))
                except ControllerError as error:
                    errors.append(error)
        if errors:
            raise _worst(errors)
        yield from found

    def _batch(self, batch: Sequence[Wanted]) -> list[Wheel]:
        with self._store.coming() as name:
            folder = Path(name)
            done, log = self._pip(batch, folder, "wheels")
            if done.returncode:
                return self._one_by_one(batch, done.stderr + log, folder)
            brought = {wheel_parts(path.name)[0]: path for path in sorted((folder / "wheels").glob("*.whl"))}
            found = []
            for item in batch:
                path = brought.get(item.name)
                if path is None or not same_version(wheel_parts(path.name)[1], item.version):
                    text = f"{self._where(item)}{item.name} {item.version}: expected its wheel, got none"
                    raise DesiredStateError(text, reason="NoWheel")
                found.append(self._store.adopt(item, path))
            return found

    def _pip(self, batch: Sequence[Wanted], folder: Path, name: str) -> tuple[subprocess.CompletedProcess[str], str]:
        target = self._store.target
        more = ["--only-binary", ":all:", "--implementation", "cp", "--python-version", target.python]
        more += ["--abi", f"cp{target.python.replace('.', '')}"]
        for place in platforms_of(target):
            more += ["--platform", place]
        return self._download(["-m", "pip"], batch, folder, [*more, "--dest", str(folder / name)])

    def _download(
        self, pip: Sequence[str], batch: Sequence[Wanted], folder: Path, more: Sequence[str]
    ) -> tuple[subprocess.CompletedProcess[str], str]:
        lines, log = folder / "requirements.txt", folder / "pip.log"
        lines.write_text("".join(self._line(item) for item in batch))
        command = [sys.executable, *pip, "--no-cache-dir", "--log", str(log), "download", "--quiet", "--no-deps"]
        command += ["--require-hashes", "--progress-bar", "off", *more]
        try:
            done = subprocess.run(
                [*command, "-r", str(lines)],
                capture_output=True,
                text=True,
                errors="replace",
                stdin=subprocess.DEVNULL,
                env=pip_environment(self._index, folder),
                timeout=FETCH_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise SilentError(f"wheels of {self._origin}: expected them in {FETCH_SECONDS:.0f} s, they did not come") from error
        return done, log.read_text(errors="replace") if log.exists() else ""

    def _line(self, item: Wanted) -> str:
        is_address = item.url and self._takes_addresses
        asked = f"{item.name} @ {item.url}" if is_address else f"{item.name}=={item.version}"
        return asked + "".join(f" --hash={digest}" for digest in item.hashes) + "\n"

    def _one_by_one(self, batch: Sequence[Wanted], said: str, folder: Path) -> list[Wheel]:
        """What of a batch can be had all the same, or why it cannot, of the one whose fault it is where that can be told."""
        first = self._fault(batch[0], said)
        if isinstance(first, OutsideError):
            raise first
        if len(batch) == 1:
            return self._none(batch[0], first, said)
        # One wheel that is not to be had keeps pip from handing out the others: they are asked for one by one.
        errors, found = list[ControllerError](), list[Wheel]()
        for item in batch:
            place = folder / item.name
            place.mkdir()
            one, said = self._pip([item], place, "wheels")
            try:
                if one.returncode:
                    found += self._none(item, self._fault(item, one.stderr + said), said)
                    continue
                found += [self._store.adopt(item, path) for path in (place / "wheels").glob("*.whl")]
            except ControllerError as error:
                errors.append(error)
        if errors:
            raise _worst(errors)
        return found

    def _none(self, item: Wanted, error: ControllerError, log: str) -> list[Wheel]:
        """Note that a release has no wheel, where one may be built."""
        if self._builder is None or not isinstance(error, DesiredStateError):
            raise error
        # A lock may name the source distribution alone. That is not so where the index says that it has what the lock names.
        if error.reason != "NoWheel" and not (error.reason == "HashMismatch" and _OTHERS.search(log)):
            raise error
        self._without[item.name] = error
        return []

    def _fault(self, item: Wanted, text: str) -> ControllerError:
        # That a page was asked for again is said too, and means nothing when it came in the end.
        told = "\n".join(line for line in text.splitlines() if _TELLING.search(line))
        subject = f"{self._where(item)}{item.name} {item.version}"
        if _FULL.search(text):
            return SilentError(f"wheels of {self._origin}: no space left on the disk", reason="DiskFull")
        if _REFUSED.search(told):
            return RefusedError(f"wheels of {self._origin}: the index wants other credentials than it was given")
        if (got := _CHANGED.search(text)) and not _SILENT.search(told):
            expected = f"expected a file with a hash of the lock, got sha256:{got[1][:12]}…"
            return DesiredStateError(f"{subject}: {expected}; lock it again if that is what you want", reason="HashMismatch")
        if _SILENT.search(told):
            return SilentError(f"wheels of {self._origin}: expected {item.name} {item.version} from the index, it did not answer")
        if _ODD.search(text):
            return DesiredStateError(
                f"{subject}: expected a wheel of that name and version, got another file", reason="UnsafeWheel"
            )
        tags = sorted({tag.strip() for found in _OTHER_TAGS.finditer(text) for tag in found[1].split(",")})
        target = self._store.target
        expected = f"expected a wheel for Python {target.python} on {target.platform}"
        if tags:
            shown = ", ".join(tags[:_SHOWN_TAGS]) + (" …" if len(tags) > _SHOWN_TAGS else "")
            return DesiredStateError(f"{subject}: {expected}, got {shown}", reason="NoWheel")
        if _SOURCE.search(text):
            return DesiredStateError(f"{subject}: {expected}, got a source distribution alone", reason="NoWheel")
        return DesiredStateError(f"{subject}: {expected} on the index, got none with a hash of the lock", reason="NoWheel")

    def _built(self, item: Wanted) -> Wheel:
        where = f"{self._where(item)}{item.name} {item.version}"
        if self._builder is None:
            text = f"{where}: expected a wheel, got a source distribution, which is built only where"
            raise DesiredStateError(f"{text} spec.builder.allowSourceDistributions says so", reason="NoWheel")
        source = self._store.source(item) or self._source(item)
        with self._store.coming() as name:
            path, made_of = self._builder.built(item, source, Path(name), where)
            if not self._builder.fits(path.name):
                tags = path.stem.rpartition("-")[2]
                text = f"{where}: expected a wheel for the system of the base image, got one for {tags}, which was built on"
                step = "set spec.builder.base to host, or take a release that has a wheel"
                raise DesiredStateError(f"{text} this machine's own; {step}", reason="OtherSystem")
            return self._store.adopt(item, path, made_of=made_of)

    def _source(self, item: Wanted) -> Source:
        """Fetch a source distribution, without looking into it."""
        with self._store.coming() as name:
            folder = Path(name)
            note = folder / "fetched"
            # What is there only to be built is left out: nothing is.
            more = ["--no-binary", ":all:", "--no-build-isolation", "--dest", str(folder / "sources")]
            done, log = self._download(["-P", pip_sources.__file__, str(note)], [item], folder, more)
            if done.returncode == pip_sources.FETCHED and note.exists():
                return self._store.adopt_source(item, Path(note.read_text()))
            error = self._fault(item, done.stderr + log)
            if error.reason == "NoWheel":
                text = f"{self._where(item)}{item.name} {item.version}: expected its source distribution on the index, got none"
                error = DesiredStateError(f"{text} with a hash of the lock", reason="NoWheel")
            # That it has no wheel is the fault of a release that has nothing else either.
            raise self._without.get(item.name, error) if error.reason in ("NoWheel", "HashMismatch") else error

    def _where(self, item: Wanted) -> str:
        return f"{self._origin}:{item.line}: " if item.line else "our runtime's requirements: "


def _worst(errors: Sequence[ControllerError]) -> ControllerError:
    """One error for all: what a later try may mend comes first, so that it is tried."""
    outside = [error for error in errors if isinstance(error, OutsideError)]
    if outside:
        return outside[0]
    if len(errors) == 1:
        return errors[0]
    text = "; ".join(error.message for error in errors[:3]) + (f"; and {len(errors) - 3} more" if len(errors) > 3 else "")
    faults = tuple(Fault(file="", line=0, path="", reason=error.reason, message=error.message) for error in errors)
    return DesiredStateError(text, reason=errors[0].reason, faults=faults)
