"""From layers to an image: what of it is the same for a project's images and for the controller's own.

Law: an image's bytes follow from its layers, base and program alone.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import posixpath
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from platform import machine
from typing import Any

from controller.adapters.oci.bytecode import FORMAT as BYTECODE
from controller.adapters.oci.bytecode import Compiler
from controller.adapters.oci.layers import Laid, Stored
from controller.adapters.oci.layout import CONFIG, INDEX, MANIFEST, Layout, write_whole
from controller.adapters.oci.splice import INTERPRETER as INTERPRETER
from controller.adapters.oci.splice import Wheel, lay_opened, opened
from policies.canonical import canonical, digest_value
from policies.errors import DesiredStateError
from policies.terms.digest import Digest

PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
SITE = f"opt/venv/lib/python{PYTHON}/site-packages"
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(machine(), machine())
PLATFORM = f"linux/{ARCHITECTURE}"
"""This machine's own."""
USER = "65532:65532"
BASE_NAME = "org.opencontainers.image.base.name"
BASE_DIGEST = "org.opencontainers.image.base.digest"
MOST_LAYERS = 100
"""Engines take 127; the rest is room for data and models that are laid on top."""
BIG_WHEEL_BYTES = 512 * 1024
"""A wheel of that size has a layer of its own, so that a new version of another one leaves it where it is."""
_OWN_LAYERS = 4
"""Those of an image besides its base's and those of wheels: the runtime, what it compiles to, the source, one to spare."""
_MOST_WHEEL_LAYERS = 40
_THREADS = 2
_DIGESTS = "digests.json"
_MOST_DIGESTS = 10_000
_PATH = "/usr/local/bin:/usr/bin:/bin"
_WHEELS = "myelin.io/builders/python/v2"
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
    exact: str = ""
    """`3.11.2`; empty where that could not be told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What an image starts, and how."""

    entrypoint: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    args: Sequence[str] = ()
    folder: str = "/app"


def assemble(
    layout: Layout,
    layers: Sequence[Laid],
    program: Program,
    *,
    base: Base | None = None,
    platform: str = PLATFORM,
    annotations: Mapping[str, str],
) -> Digest:
    """Write config and manifest of an image.

    Args:
        layout: Where its layers are.
        layers: On top of the base's.
        program: Runs as nobody (65532), whatever the base says.
        base: What it is built on; None: nothing, the host's system goes below it.
        platform: What it runs on, `linux/arm64`; a base says so itself.
        annotations: Facts of the content; commit and times are none.

    Raises:
        DesiredStateError: It would have too many layers.
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
        **(_platform(base.config) if base else _platform_of(platform)),
        "config": {**settings, **({"Cmd": list(program.args)} if program.args else {})},
        "rootfs": {"type": "layers", "diff_ids": [*(base.diff_ids if base else ()), *(layer.diff_id for layer in layers)]},
    }
    all_layers = [*(base.layers if base else ()), *(layer.descriptor for layer in layers)]
    if len(all_layers) > MOST_LAYERS:
        text = f"image: expected at most {MOST_LAYERS} layers, got {len(all_layers)}; take a base with fewer"
        raise DesiredStateError(text, reason="TooManyLayers")
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": layout.descriptor(layout.put(canonical(config)), CONFIG),
        "layers": all_layers,
        "annotations": dict(annotations),
    }
    return layout.put(canonical(manifest))


def assemble_index(layout: Layout, images: Mapping[str, Digest], *, annotations: Mapping[str, str] | None = None) -> Digest:
    """Write the index of images that are one image on several kinds of machine.

    Args:
        layout: Where they are.
        images: Platform, `linux/amd64` -> manifest; at least one.
        annotations: Facts of the content.
    """
    assert images, "an index without images names nothing"
    listed = [
        {**layout.descriptor(digest, MANIFEST), "platform": _platform_of(platform)} for platform, digest in sorted(images.items())
    ]
    notes = {"annotations": dict(annotations)} if annotations else {}
    return layout.put(canonical({"schemaVersion": 2, "mediaType": INDEX, "manifests": listed, **notes}))


def based_on(base: Base | None) -> dict[str, str]:
    """The annotations that name a base."""
    return {BASE_NAME: base.reference, BASE_DIGEST: base.digest} if base else {BASE_NAME: "host"}


def venv(base: Base | None, *, version: str = PYTHON) -> tuple[dict[str, Stored], dict[str, str]]:
    """Files and links that make `/opt/venv` a virtual environment of the base's Python."""
    home = posixpath.dirname(base.python) if base else "/usr/bin"
    text = f"home = {home}\ninclude-system-site-packages = false\nversion = {version}\n"
    links = {"opt/venv/bin/python": base.python, "opt/venv/bin/python3": "python"} if base else {}
    return {"opt/venv/pyvenv.cfg": Stored(data=text.encode())}, links


class WheelLayers:
    """Lays layers of wheels. One depends on their bytes alone, so one that was laid before is taken again.

    Args:
        layout: Where layers go.
        folder: Memories of layers; may be deleted.
        site: Where packages go in an image.
    """

    def __init__(self, layout: Layout, folder: Path, *, site: str = SITE) -> None:
        self._layout, self._folder, self._site = layout, folder, site
        self._guard = threading.Lock()
        self._digests: dict[str, Any] | None = None
        self._is_new = False

    def laid(self, wheels: Sequence[Path], *, most: int = _MOST_WHEEL_LAYERS) -> list[Laid]:
        """Layers of these wheels: big ones alone, the small ones together.

        Args:
            wheels: All that go into an image; they are looked at side by side.
            most: Layers, at least 1; where there are more big wheels, the smaller ones of them go to the small ones.

        Raises:
            DesiredStateError: A wheel that is not safe to unpack, or two that do not lie side by side.
            TrustError: A damaged wheel.
        """
        groups = _groups(wheels, most)
        keys = [self._key(group) for group in groups]
        self._keep_digests()

        def lay_missing() -> list[Laid]:
            # Whether wheels fit together is seen on all of them, whatever was laid before.
            with opened([wheel for group in groups for wheel in group], self._site) as found:
                by_path = {wheel.path: wheel for wheel in found}
                return self._laid(keys, [[by_path[path] for path in group] for group in groups])

        return self._remembered(digest_value(keys), lay_missing)

    def bytecode(self, wheels: Sequence[Path], compiler: Compiler, *, most: int = _MOST_WHEEL_LAYERS) -> list[Laid]:
        """Layers of what the modules of these wheels compile to, one for each layer of wheels that has any.

        Raises:
            DesiredStateError: A wheel cannot be compiled, or is not safe to unpack.
            TrustError: A damaged wheel.
            SilentError: Compiling took too long.
        """
        groups = _groups(wheels, most)
        names = {"bytecode": BYTECODE, "python": compiler.version}
        keys = [digest_value({**names, "of": self._key(group)}) for group in groups]

        def lay_missing() -> list[Laid]:
            largest_first = sorted(wheels, key=lambda path: (-path.stat().st_size, path.name))
            with ThreadPoolExecutor(_THREADS) as threads:
                made = threads.map(lambda path: compiler.of_wheel(path, self.digest(path), self._site), largest_first)
                by_path = dict(zip(largest_first, made, strict=True))
            with opened([by_path[path] for group in groups for path in group], self._site) as found:
                ready = {wheel.path: wheel for wheel in found}
                parts = [[ready[by_path[path]] for path in group] for group in groups]
                kept = [number for number, part in enumerate(parts) if any(wheel.files for wheel in part)]
                return self._laid([keys[number] for number in kept], [parts[number] for number in kept])

        return self._remembered(digest_value(keys), lay_missing)

    def digest(self, path: Path) -> str:
        """The digest of a file's bytes, which are read once as long as nobody writes to it."""
        status = path.stat()
        # The time of the last change of any kind cannot be set back by whoever writes to it.
        stamp = [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        with self._guard:
            if self._digests is None:
                found = read_memo(self._folder / _DIGESTS)
                self._digests = found if isinstance(found, dict) else {}
            known = self._digests.get(str(path))
        if isinstance(known, list) and known[:1] == [stamp]:
            return str(known[1])
        digest = file_digest(path)
        with self._guard:
            self._digests = {**dict(list(self._digests.items())[-_MOST_DIGESTS:]), str(path): [stamp, digest]}
            self._is_new = True
        return digest

    def _keep_digests(self) -> None:
        with self._guard:
            if self._is_new:
                # Of two processes that write at once, one has to read a few wheels again.
                write_whole(self._folder / _DIGESTS, json.dumps(self._digests).encode())
                self._is_new = False

    def _key(self, wheels: Sequence[Path]) -> Digest:
        return digest_value({"wheels": [self.digest(wheel) for wheel in wheels], "site": self._site, "format": _WHEELS})

    def _laid(self, keys: Sequence[Digest], parts: Sequence[Sequence[Wheel]]) -> list[Laid]:
        """Layers, two at a time and the largest first: most of the work is done in C, which lets others run."""

        def one(number: int) -> list[Laid]:
            return self._remembered(keys[number], lambda: [lay_opened(self._layout, parts[number])])

        sizes = [sum(wheel.path.stat().st_size for wheel in part) for part in parts]
        order = sorted(range(len(keys)), key=lambda number: -sizes[number])
        with ThreadPoolExecutor(_THREADS) as threads:
            made = dict(zip(order, threads.map(one, order), strict=True))
        return [layer for number in range(len(keys)) for layer in made[number]]

    def _remembered(self, key: Digest, lay_them: Callable[[], list[Laid]]) -> list[Laid]:
        memo = self._folder / f"layer-{key.removeprefix('sha256:')[:32]}.json"
        known = read_memo(memo)
        if known is not None and all(self._layout.has(item["descriptor"]["digest"]) for item in known):
            return [Laid(descriptor=item["descriptor"], diff_id=item["diff_id"]) for item in known]
        laid = lay_them()
        write_memo(memo, [{"descriptor": layer.descriptor, "diff_id": layer.diff_id} for layer in laid])
        return laid


def room_for_wheels(base: Base | None) -> int:
    """How many layers of wheels an image on this base may have, so that as many of bytecode find room beside them."""
    below = len(base.layers) if base else 0
    return max(1, min(_MOST_WHEEL_LAYERS, (MOST_LAYERS - below - _OWN_LAYERS) // 2))


def read_memo(path: Path) -> Any:
    """What was remembered; None: nothing, or what can no longer be read."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def write_memo(path: Path, value: Any) -> None:
    """Remember a value, whole or not at all."""
    # A name of its own: two builders of one folder may remember the same thing at once.
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix="new-", delete=False) as file:
        file.write(canonical(value))
    os.replace(file.name, path)


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


def _groups(wheels: Sequence[Path], most: int) -> list[list[Path]]:
    """Which wheels share a layer; which does not depend on where they lie or in which order they came."""
    ordered = sorted(wheels, key=lambda path: (path.name, str(path)))
    sizes = {path: path.stat().st_size for path in ordered}
    big = [path for path in ordered if sizes[path] >= BIG_WHEEL_BYTES]
    if len(big) + (len(big) < len(ordered)) > most:
        largest = sorted(big, key=lambda path: -sizes[path])[: most - 1]
        big = [path for path in big if path in largest]
    small = [path for path in ordered if path not in big]
    return [*([path] for path in big), *([small] if small else [])]


def _platform_of(name: str) -> dict[str, str]:
    """`linux/arm64/v8` as manifests have it."""
    return dict(zip(("os", "architecture", "variant"), name.split("/"), strict=False))


def _platform(config: Mapping[str, Any]) -> dict[str, str]:
    found = {"os": "linux", "architecture": ARCHITECTURE} | dict(config)
    return {key: str(found[key]) for key in ("os", "architecture", "variant") if found.get(key)}


def _listed(base: Base | None, key: str) -> list[str]:
    found = (base.config.get("config") or {}).get(key) if base else None
    return [str(item) for item in found] if isinstance(found, list) else []
