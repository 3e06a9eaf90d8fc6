"""From layers to an image: what of it is the same for a project's images and for the controller's own.

Law: an image's bytes follow from its layers, base and program alone.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import posixpath
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from controller.adapters.oci.layers import BIG_WHEEL_BYTES, Laid, Stored, lay_wheels
from controller.adapters.oci.layout import CONFIG, MANIFEST, Layout
from policies.canonical import canonical, digest_value
from policies.errors import DesiredStateError
from policies.terms.digest import Digest

PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
SITE = f"opt/venv/lib/python{PYTHON}/site-packages"
INTERPRETER = "/opt/venv/bin/python"
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
USER = "65532:65532"
BASE_NAME = "org.opencontainers.image.base.name"
BASE_DIGEST = "org.opencontainers.image.base.digest"
MOST_LAYERS = 110
"""Engines take 127; the rest is room for data and models that are laid on top."""
_PATH = "/usr/local/bin:/usr/bin:/bin"
_WHEELS = "myelin.io/builders/python/v1"
"""Part of the names under which layers of wheels are remembered; a new one lays them all again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """A base image, opened: what an image that is built on it begins with."""

    reference: str
    """As it is written, `host[:port]/path@sha256:…`."""
    digest: Digest
    """Of its manifest for this platform."""
    config: Mapping[str, Any]
    layers: tuple[Mapping[str, Any], ...]
    """Descriptors, in OCI's media types."""
    diff_ids: tuple[str, ...]
    programs: tuple[str, ...]
    """Those of its programs that matter here, `/usr/bin/git`, sorted."""
    python: str
    """`/usr/bin/python3.11`"""
    version: str
    """`3.11`"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What an image starts, and how."""

    entrypoint: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    args: Sequence[str] = ()
    folder: str = "/app"


def assemble(
    layout: Layout, layers: Sequence[Laid], program: Program, *, base: Base | None = None, annotations: Mapping[str, str]
) -> Digest:
    """Write config and manifest of an image.

    Args:
        layout: Where its layers are.
        layers: On top of the base's.
        program: Runs as nobody (65532), whatever the base says.
        base: What it is built on; None: nothing, the host's system goes below it.
        annotations: Facts of the content; commit and times are none.
    """
    below = dict(item.split("=", 1) for item in _listed(base, "Env") if "=" in item)
    variables = {**below, **program.env, "PATH": f"/opt/venv/bin:{below.get('PATH') or _PATH}"}
    settings = {
        "Entrypoint": list(program.entrypoint),
        "Env": [f"{key}={value}" for key, value in sorted(variables.items())],
        "User": USER,
        "WorkingDir": program.folder,
    }
    config = {
        "architecture": ARCHITECTURE,
        "os": "linux",
        "config": {**settings, **({"Cmd": list(program.args)} if program.args else {})},
        "rootfs": {"type": "layers", "diff_ids": [*(base.diff_ids if base else ()), *(layer.diff_id for layer in layers)]},
    }
    if base and base.config.get("variant"):
        config["variant"] = base.config["variant"]
    all_layers = [*(base.layers if base else ()), *(layer.descriptor for layer in layers)]
    if len(all_layers) > MOST_LAYERS:
        text = f"image: expected at most {MOST_LAYERS} layers, got {len(all_layers)}; take a base with fewer, or fewer big wheels"
        raise DesiredStateError(text, reason="TooManyLayers")
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": layout.descriptor(layout.put(canonical(config)), CONFIG),
        "layers": all_layers,
        "annotations": dict(annotations),
    }
    return layout.put(canonical(manifest))


def based_on(base: Base | None) -> dict[str, str]:
    """The annotations that name a base."""
    return {BASE_NAME: base.reference, BASE_DIGEST: base.digest} if base else {BASE_NAME: "host"}


def venv(base: Base | None) -> tuple[dict[str, Stored], dict[str, str]]:
    """Files and links that make `/opt/venv` a virtual environment of the base's Python."""
    home = posixpath.dirname(base.python) if base else "/usr/bin"
    text = f"home = {home}\ninclude-system-site-packages = false\nversion = {PYTHON}\n"
    links = {"opt/venv/bin/python": base.python, "opt/venv/bin/python3": "python"} if base else {}
    return {"opt/venv/pyvenv.cfg": Stored(data=text.encode())}, links


class WheelLayers:
    """Lays layers of wheels. One depends on their bytes alone, so one that was laid before is taken again.

    Args:
        layout: Where layers go.
        folder: Memories of layers; may be deleted.
    """

    def __init__(self, layout: Layout, folder: Path) -> None:
        self._layout, self._folder = layout, folder

    def laid(self, wheels: Sequence[Path]) -> list[Laid]:
        """Layers of these wheels: big ones alone, the small ones together."""
        return [self._one(group) for group in _groups(wheels)]

    def _one(self, wheels: list[Path]) -> Laid:
        key = digest_value({"wheels": [file_digest(wheel) for wheel in wheels], "site": SITE, "format": _WHEELS})
        memo = self._folder / f"layer-{key.removeprefix('sha256:')[:32]}.json"
        known = read_memo(memo)
        if known is not None and self._layout.has(known["descriptor"]["digest"]):
            return Laid(descriptor=known["descriptor"], diff_id=known["diff_id"])
        laid = lay_wheels(self._layout, wheels, SITE)
        write_memo(memo, {"descriptor": laid.descriptor, "diff_id": laid.diff_id})
        return laid


def read_memo(path: Path) -> Any:
    """What was remembered; None: nothing, or what can no longer be read."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def write_memo(path: Path, value: Any) -> None:
    """Remember a value, whole or not at all."""
    temporary = path.with_suffix(".new")
    temporary.write_bytes(canonical(value))
    os.replace(temporary, path)


def package_folder(name: str) -> Path:
    """Where an installed package lies; it is not imported for that.

    Raises:
        DesiredStateError: It is not installed.
    """
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise DesiredStateError(
            f"package {name}: expected it beside the controller, it is not installed; install both", reason="RuntimeMissing"
        )
    return Path(found.submodule_search_locations[0])


def tree(folder: Path, place: str, pattern: str = "*") -> dict[str, Stored]:
    """The files below a folder, by their path in an image; what Python compiled is left out."""
    return {f"{place}/{path.relative_to(folder).as_posix()}": Stored(data=path.read_bytes()) for path in _files(folder, pattern)}


def file_digest(path: Path) -> str:
    """The digest of a file's bytes."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: Path, pattern: str) -> Iterator[Path]:
    for path in sorted(folder.rglob(pattern)):
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc":
            yield path


def _groups(wheels: Sequence[Path]) -> list[list[Path]]:
    big = [[wheel] for wheel in wheels if wheel.stat().st_size >= BIG_WHEEL_BYTES]
    small = [wheel for wheel in wheels if wheel.stat().st_size < BIG_WHEEL_BYTES]
    return [*big, *([small] if small else [])]


def _listed(base: Base | None, key: str) -> list[str]:
    found = (base.config.get("config") or {}).get(key) if base else None
    return [str(item) for item in found] if isinstance(found, list) else []
