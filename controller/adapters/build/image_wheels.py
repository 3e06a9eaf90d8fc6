"""The wheels of one image: what its lock means, fetched or, where that is allowed, built; and the same once more."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from controller.adapters.build.enclosure import USUAL, Surroundings
from controller.adapters.build.fetching import fetch_wheels
from controller.adapters.build.locks import read_lock
from controller.adapters.build.resolving import Needs, Resolver, needs_of
from controller.adapters.build.source_builds import SourceBuilds
from controller.adapters.build.wheel_store import MadeOf, Wheel, WheelStore, read_made_of
from policies.locks import Lock, Target, Wanted
from policies.terms.build import BuildRules

SECOND = Surroundings(host="other", umask=0o077)
"""What a second build sees. The folder is called the same inside, as it is on every machine: compilers write it down."""


@dataclass(frozen=True, kw_only=True)
class ImageWheels:
    """For one image and one kind of machine.

    Args:
        folder: Wheels and what is known of them; may be deleted.
        rules: What the project says.
        target: The system that the image is for.
        is_host: Whether that is this machine's own.
        progress: Told what goes on.
    """

    folder: Path
    rules: BuildRules
    target: Target
    is_host: bool
    progress: Callable[[str], None]

    def lock(self, texts: Mapping[str, bytes], folder: str, runtime: str) -> Lock:
        """What is installed, as `locks.read_lock` says."""
        learn = self._learn if self.rules.builds_wheels else None
        return read_lock(texts, folder, self.target, self._resolver(), rules=self.rules, runtime=runtime, learn=learn)

    def of(self, lock: Lock) -> tuple[Wheel, ...]:
        """The wheels of a lock, as `fetching.fetch_wheels` says."""
        builder = self._builder(preferred=lock.wheels) if self.rules.builds_wheels else None
        return self._fetched(lock, self.folder / "wheels", builder)

    def recorded(self, lock: Lock, builds: Mapping[str, Any]) -> tuple[Wheel, ...]:
        """Wheels that went into an image before: those that were built are built again, by what built them then.

        Args:
            lock: All of them, by their digests.
            builds: File of a wheel that was built -> what it was built of, as `MadeOf.told` has it.

        Raises:
            ValueError: It is no such thing; also KeyError and TypeError.
        """
        plain = tuple(item for item in lock.wheels if item.file not in builds)
        found = self._fetched(replace(lock, wheels=plain), self.folder / "wheels", None)
        made = [(item, read_made_of(builds[item.file])) for item in lock.wheels if item.file in builds]
        again = self._built(
            [(_source_of(item.name, item.version, of), of) for item, of in made], self.folder / "made-again", USUAL
        )
        expected = {item.name: item for item, _ in made}
        for wheel in again:
            if wheel.digest not in expected[wheel.name].hashes:
                text = f"{wheel.name} {wheel.version}: expected wheel {expected[wheel.name].hashes[0]} of its source, as before"
                self.progress(f"{text}, got {wheel.digest}: its build is not reproducible")
        return tuple(sorted((*found, *again), key=lambda wheel: wheel.name))

    def once_more(self, wheels: Sequence[Wheel], place: Path) -> tuple[Wheel, ...]:
        """The same wheels, those that were built being built a second time, elsewhere.

        Args:
            wheels: What the image has.
            place: Where the others go.
        """
        made = [(_source_of(wheel.name, wheel.version, wheel.made_of), wheel.made_of) for wheel in wheels if wheel.made_of]
        again = {wheel.name: wheel for wheel in self._built(made, place, SECOND)}
        return tuple(again.get(wheel.name, wheel) for wheel in wheels)

    def _built(self, made: Sequence[tuple[Wanted, MadeOf]], place: Path, surroundings: Surroundings) -> tuple[Wheel, ...]:
        if not made:
            return ()
        here, there = WheelStore(self.folder / "wheels", self.target), WheelStore(place, self.target)
        for item, _ in made:
            if (source := here.source(item)) is not None:
                there.adopt_source(item, source.path)
        lock = Lock(text="", origin="provenance", resolved=True, wheels=tuple(item for item, _ in made))
        known = {str(of.digest): of for _, of in made}
        return self._fetched(lock, place, self._builder(known=known, surroundings=surroundings))

    def _learn(self, item: Wanted) -> Needs:
        lock = Lock(text="", origin="what was resolved", resolved=True, wheels=(item,))
        return needs_of(self._fetched(lock, self.folder / "wheels", self._builder())[0].path)

    def _fetched(self, lock: Lock, place: Path, builder: SourceBuilds | None) -> tuple[Wheel, ...]:
        return fetch_wheels(lock, place, self.target, index=self.rules.index, progress=self.progress, builder=builder)

    def _resolver(self) -> Resolver:
        return Resolver(self.folder / "resolved")

    def _builder(
        self,
        *,
        preferred: tuple[Wanted, ...] = (),
        known: Mapping[str, MadeOf] | None = None,
        surroundings: Surroundings = USUAL,
    ) -> SourceBuilds:
        return SourceBuilds(
            folder=self.folder / "made",
            wheels=self.folder / "wheels",
            resolver=self._resolver(),
            rules=self.rules,
            target=self.target,
            is_host=self.is_host,
            preferred=preferred,
            known=known or {},
            surroundings=surroundings,
            progress=self.progress,
        )


def builds_of(wheels: Sequence[Wheel]) -> dict[str, dict[str, Any]]:
    """Which of these wheels were built, and of what: for provenance, and for `ImageWheels.recorded`."""
    return {wheel.file: wheel.made_of.told() for wheel in wheels if wheel.made_of is not None}


def sources_of(wheels: Sequence[Wheel]) -> dict[str, str]:
    """The source distributions among what went in: file -> digest."""
    return {wheel.made_of.file: str(wheel.made_of.digest) for wheel in wheels if wheel.made_of is not None}


def _source_of(name: str, version: str, made_of: MadeOf) -> Wanted:
    return Wanted(name=name, version=version, hashes=(made_of.digest,), line=1, file=made_of.file, is_source=True)
