"""What an image, or an index of images, says of itself to whoever makes a pod of it: its program, and where it runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from controller.adapters.oci.layout import Layout
from policies.errors import DesiredStateError, TrustError


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """What an image starts, and on which machines."""

    image: str
    programs: frozenset[tuple[tuple[str, ...], tuple[str, ...]]]
    """(entrypoint, usual arguments) of its images; mostly one."""
    platforms: tuple[str, ...]
    """`linux/amd64`, sorted; empty where it does not say."""

    def program(self, *, has_args: bool = False) -> tuple[str, ...]:
        """What it starts: its entrypoint, and its usual arguments.

        Args:
            has_args: Whether other arguments go in place of the usual ones.

        Raises:
            DesiredStateError: Nothing, or not the same on each platform.
        """
        found = {entrypoint if has_args else (*entrypoint, *args) for entrypoint, args in self.programs}
        if len(found) > 1:
            text = f"image {self.image}: expected the same ENTRYPOINT and CMD on each platform, got {len(found)} of them"
            raise DesiredStateError(f"{text}; make them equal", reason="CannotStart")
        [program] = found or {()}
        if not program and not has_args:
            raise DesiredStateError(f"image {self.image}: expected an ENTRYPOINT or CMD, it has none", reason="CannotStart")
        return program


def described(layout: Layout, image: str) -> Described:
    """What an image says of itself; of an index, what its images say.

    Raises:
        TrustError: A manifest or config is missing, changed, or none.
        OutsideError: The registry said no or nothing.
    """
    try:
        found = list(_each(layout, image))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TrustError(f"image {image}: expected a manifest and a config, got others", reason="BadManifest") from error
    platforms = {platform for item in found for platform in item.platforms}
    programs = frozenset(program for item in found for program in item.programs)
    return Described(image=image, programs=programs, platforms=tuple(sorted(platforms)))


def _each(layout: Layout, image: str) -> Iterator[Described]:
    manifest = layout.manifest(image)
    if "manifests" in manifest:
        for item in manifest["manifests"]:
            yield from _each(layout, str(item["digest"]))
        return
    config = json.loads(layout.get(manifest["config"]["digest"]))
    settings = config.get("config") or {}
    program = tuple(map(str, settings.get("Entrypoint") or ())), tuple(map(str, settings.get("Cmd") or ()))
    # What says nothing of its platform may run anywhere, as far as anybody knows.
    is_told = config.get("os") and config.get("architecture")
    platforms = (f"{config['os']}/{config['architecture']}",) if is_told else ()
    yield Described(image=image, programs=frozenset({program}), platforms=platforms)
