"""Builders that build on what a provenance recorded: a tag in a Dockerfile stands for what it stood for then."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from controller.adapters.attest.provenance import FROM_DOCKERFILE
from controller.adapters.build.buildkit import Daemon
from controller.adapters.build.driver import Driver
from controller.adapters.build.drivers import Secrets, drivers
from controller.adapters.build.pins import Pins
from controller.adapters.image_source import SourceReader
from controller.adapters.oci.access import Access
from controller.adapters.oci.layout import Layout
from policies.errors import DesiredStateError


class RecordedPins(Pins):
    """Pins references as they were pinned before.

    Args:
        layout: Where images go that are built on them.
        access_for: Repository `host[:port]/path` -> how to reach it.
        known: Reference as a Dockerfile has it -> by digest.
    """

    def __init__(self, layout: Layout, access_for: Callable[[str], Access], known: Mapping[str, str]) -> None:
        super().__init__(layout, access_for)
        self._known = known

    def pin(self, reference: str) -> str:
        """The same image by its digest, as it was recorded.

        Raises:
            DesiredStateError: Nothing was.
        """
        if "@" in reference:
            return super().pin(reference)
        if reference not in self._known:
            text = f"{reference}: expected one of the images that the provenance names, {', '.join(self._known) or 'none'}"
            raise DesiredStateError(text, reason="BaseNotPinned")
        return self._known[reference]


def recorded_drivers(
    reader: SourceReader,
    layout: Layout,
    folder: Path,
    access_for: Callable[[str], Access],
    secrets: Secrets,
    *,
    bases: Mapping[str, str],
    buildkit: Daemon | None = None,
) -> Mapping[str, Driver]:
    """As `drivers`, with the bases of Dockerfiles as they were recorded; each base is known by its digest, wherever it lies.

    Args:
        reader: Reads source.
        layout: Where images go.
        folder: Memories and storage of this build.
        access_for: Repository `host[:port]/path` -> how to reach it.
        secrets: Reads the secrets that builds name.
        bases: Reference as a Dockerfile has it -> by digest.
        buildkit: How a BuildKit is reached; None: as on a machine that was told nothing.
    """
    pins = RecordedPins(layout, access_for, bases)
    return drivers(reader, layout, folder, access_for, secrets, reads_disk=True, pins=pins, buildkit=buildkit)


def bases_of(provenance: Mapping[str, Any]) -> dict[str, str]:
    """Reference as a Dockerfile has it -> `host/path@sha256:…`, out of a provenance."""
    found = {}
    for item in provenance["buildDefinition"]["resolvedDependencies"]:
        name = str(item.get("name", ""))
        if name.startswith(FROM_DOCKERFILE):
            written = name.removeprefix(FROM_DOCKERFILE)
            uri = str(item.get("uri", ""))
            repository = (uri if "@" in uri else written).partition("@")[0]
            head, _, last = repository.rpartition("/")
            plain = f"{head}/{last.partition(':')[0]}" if head else last
            found[written] = uri if "@sha256:" in uri else f"{plain}@sha256:{item['digest']['sha256']}"
    return found
