"""Images that a container builder wrote to a folder -> our store: its layers, with canonical config and manifest.

Law: equal layers and settings give equal digests: neither times nor history are kept, and a base's layers stay its own bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controller.adapters.build.leaks import Needles, refuse_leak
from controller.adapters.build.pins import Ground
from controller.adapters.oci.assembly import BASE_DIGEST, BASE_NAME, MOST_LAYERS
from controller.adapters.oci.bases import LAYERS
from controller.adapters.oci.layout import CONFIG, LAYER, MANIFEST, Layout
from policies.canonical import canonical
from policies.errors import DesiredStateError, TrustError
from policies.terms.digest import Digest, digest_of, is_digest

_KEPT = ("architecture", "os", "variant", "author")
LEVEL = 3
"""Of zlib: a third of the time of its usual 6, for a tenth more bytes."""
PACKER = f"zlib {zlib.ZLIB_RUNTIME_VERSION}"
"""What packs layers; another one may give other bytes for equal content."""
_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
"""Of gzip: no name, no time, no machine."""
_BLOCK = 1 << 20
_NO_OPERATION = re.compile(r"^/bin/sh -c #\(nop\)\s+")
_ARGUMENTS = re.compile(r"^\|\d+ .*?(?=/bin/|\[)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """What a builder wrote."""

    folder: Path
    manifest: Mapping[str, Any]
    config: Mapping[str, Any]

    @property
    def diff_ids(self) -> tuple[str, ...]:
        """Of its layers, from the lowest."""
        return tuple(self.config["rootfs"]["diff_ids"])

    def path(self, digest: str) -> Path:
        """Where a blob lies."""
        if not is_digest(digest):
            raise TrustError(f"blob {digest[:80]!r}: expected sha256:<64 hex>")
        name = digest.removeprefix("sha256:")
        plain = self.folder / name
        return plain if plain.exists() else self.folder / "blobs" / "sha256" / name


@dataclass(frozen=True, slots=True, kw_only=True)
class LaidByFile:
    """A layer that a step of a Dockerfile made."""

    digest: Digest
    diff_id: str
    step: str
    """The instruction, as far as the builder tells."""


def read_export(folder: Path) -> Export:
    """Read the only image of an OCI layout, or of a folder as the transport `dir` of buildah writes it.

    Raises:
        TrustError: It is not what its digests say.
    """
    blank = Export(folder=folder, manifest={}, config={})
    if (folder / "manifest.json").exists():
        manifest = json.loads((folder / "manifest.json").read_bytes())
    else:
        manifest = _checked(blank, json.loads((folder / "index.json").read_bytes())["manifests"][0]["digest"])
    config = _checked(blank, manifest["config"]["digest"])
    if len(config["rootfs"]["diff_ids"]) != len(manifest["layers"]):
        raise TrustError(f"{folder.name}: expected as many diff ids as layers in what the builder wrote, got others")
    return Export(folder=folder, manifest=manifest, config=config)


def check_leaks(export: Export, needles: Needles, grounds: Sequence[Ground], subject: str) -> None:
    """See that no secret is in settings, history or layers that the build made.

    Raises:
        DesiredStateError: One is.
    """
    if not needles:
        return
    for place, document in (("manifest", export.manifest), ("config and history", export.config)):
        for text in (json.dumps(document, ensure_ascii=False), *_texts(document)):
            if found := needles.in_bytes(text.encode("utf-8", "surrogateescape")):
                raise refuse_leak(found, f"{subject}: {place}")
    ground, count = _below(export, grounds), len(export.manifest["layers"])
    below = len(ground.layers) if ground else 0
    for number, layer in enumerate(export.manifest["layers"][below:], start=below + 1):
        packed = LAYERS.get(str(layer["mediaType"])) == LAYER
        secret, path = needles.in_layer(export.path(layer["digest"]), is_packed=packed)
        if secret:
            step = needles.redacted(_steps(export.config)[number - 1])
            raise refuse_leak(secret, f"{subject}: layer {number} of {count} ({step}): {path}")


def adopt(export: Export, layout: Layout, grounds: Sequence[Ground]) -> tuple[Digest, tuple[LaidByFile, ...]]:
    """Keep an image; the answer is its digest, and the layers that are not a base's.

    Args:
        export: What the builder wrote.
        layout: Where it goes; the layers of `grounds` are there.
        grounds: What it may be built on; that with most of its lowest layers is its base.

    Raises:
        TrustError: A blob is not what its digest says.
        DesiredStateError: It has too many layers.
    """
    ground = _below(export, grounds)
    count = len(ground.layers) if ground else 0
    if len(export.manifest["layers"]) > MOST_LAYERS:
        text = f"image: expected at most {MOST_LAYERS} layers, got {len(export.manifest['layers'])}; put steps together"
        raise DesiredStateError(text, reason="TooManyLayers")
    steps, laid, layers = _steps(export.config), [], list(ground.layers if ground else ())
    if ground:
        for layer in ground.layers:
            layout.mount(layer["digest"], ground.repository)
    for layer, diff_id, step in zip(export.manifest["layers"][count:], export.diff_ids[count:], steps[count:], strict=True):
        kind = LAYERS.get(str(layer["mediaType"]))
        if kind is None:
            raise TrustError(f"layer {layer['digest']}: expected tar or tar+gzip, got {layer['mediaType']}")
        digest = _bring(export.path(layer["digest"]), layer["digest"], diff_id, layout, is_packed=kind == LAYER)
        layers.append(layout.descriptor(digest, LAYER))
        laid.append(LaidByFile(digest=digest, diff_id=diff_id, step=step))
    config = {
        **{key: export.config[key] for key in _KEPT if export.config.get(key)},
        "config": export.config.get("config") or {},
        "rootfs": {"type": "layers", "diff_ids": list(export.diff_ids)},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": layout.descriptor(layout.put(canonical(config)), CONFIG),
        "layers": layers,
        "annotations": {BASE_NAME: ground.reference, BASE_DIGEST: ground.digest} if ground else {BASE_NAME: "scratch"},
    }
    return layout.put(canonical(manifest)), tuple(laid)


def _below(export: Export, grounds: Sequence[Ground]) -> Ground | None:
    """The base whose layers an image begins with; of several, the one with most."""
    fitting = [item for item in grounds if item.diff_ids and export.diff_ids[: len(item.diff_ids)] == tuple(item.diff_ids)]
    return max(fitting, key=lambda item: (len(item.diff_ids), item.reference), default=None)


def _bring(source: Path, digest: str, diff_id: str, layout: Layout, *, is_packed: bool) -> Digest:
    """Keep a layer; one that is not packed is packed here, so that a builder need not pack its base's layers for nothing."""
    sha, packed, crc, size = hashlib.sha256(), hashlib.sha256(), 0, 0
    packer = zlib.compressobj(LEVEL, zlib.DEFLATED, -15)
    with source.open("rb") as file, layout.writing() as out:

        def write(data: bytes) -> None:
            packed.update(data)
            out.write(data)

        if not is_packed:
            write(_HEADER)
        while block := file.read(_BLOCK):
            sha.update(block)
            crc, size = zlib.crc32(block, crc), size + len(block)
            write(block if is_packed else packer.compress(block))
        if "sha256:" + sha.hexdigest() != (digest if is_packed else diff_id):
            raise TrustError(f"layer {digest}: expected these bytes, got others", reason="BlobChanged")
        if not is_packed:
            write(packer.flush() + struct.pack("<II", crc, size & 0xFFFFFFFF))
        kept = Digest("sha256:" + packed.hexdigest())
        if not layout.is_here(kept):
            layout.adopt(out, kept)
    return kept


def _checked(export: Export, digest: str) -> dict[str, Any]:
    data = export.path(digest).read_bytes()
    if digest_of(data) != digest:
        raise TrustError(f"blob {digest}: expected these bytes, got {digest_of(data)}", reason="BlobChanged")
    return dict(json.loads(data))


def _steps(config: Mapping[str, Any]) -> list[str]:
    """The instruction of each layer, from the lowest; empty where it is not told."""
    told = [str(item.get("created_by", "")) for item in config.get("history") or () if not item.get("empty_layer")]
    count = len(config["rootfs"]["diff_ids"])
    steps = [_NO_OPERATION.sub("", _ARGUMENTS.sub("", text)).replace("/bin/sh -c ", "RUN ", 1).strip() for text in told]
    return steps if len(steps) == count else [""] * count


def _texts(value: Any) -> list[str]:
    """All texts in a document, as they are outside of JSON."""
    if isinstance(value, Mapping):
        return [text for key, item in value.items() for text in (str(key), *_texts(item))]
    if isinstance(value, list | tuple):
        return [text for item in value for text in _texts(item)]
    return [value] if isinstance(value, str) else []
