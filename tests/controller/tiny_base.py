"""Base images as small as they can be, pushed to a registry: layers with a few names in them."""

from __future__ import annotations

import gzip
import io
import platform
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controller.adapters.oci.assembly import PYTHON
from controller.adapters.oci.layout import CONFIG, INDEX, LAYER, MANIFEST
from controller.adapters.oci.registry import Registry
from policies.canonical import canonical
from policies.terms.digest import Digest, digest_of

ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
USUAL = {f"usr/bin/python{PYTHON}": b"#!/bin/sh\n", "usr/bin/git": b"#!/bin/sh\n", "etc/os-release": b"ID=tiny\n"}


@dataclass(frozen=True, kw_only=True)
class Part:
    """A layer of a base."""

    data: bytes
    diff_id: str
    media_type: str = LAYER


def part(files: Mapping[str, bytes | str], media_type: str = LAYER) -> Part:
    """A layer of files (bytes), links (text: their target) and folders (a name that ends in a slash)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name.rstrip("/"))
            if name.endswith("/"):
                info.type = tarfile.DIRTYPE
                archive.addfile(info)
            elif isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                archive.addfile(info)
            else:
                info.size, info.mode = len(content), 0o755
                archive.addfile(info, io.BytesIO(content))
    plain = out.getvalue()
    packed = gzip.compress(plain, 1, mtime=0) if media_type.endswith("gzip") else plain
    return Part(data=packed, diff_id=digest_of(plain), media_type=media_type)


def push(
    registry: Registry,
    folder: Path,
    parts: Sequence[Part],
    *,
    settings: Mapping[str, Any] | None = None,
    architecture: str = ARCHITECTURE,
    media_type: str = MANIFEST,
) -> Digest:
    """Push a base of these layers; the answer is its manifest's digest."""
    rootfs = {"type": "layers", "diff_ids": [item.diff_id for item in parts]}
    config = {"architecture": architecture, "os": "linux", "config": dict(settings or {}), "rootfs": rootfs}
    layers = [_blob(registry, folder, item.data, item.media_type) for item in parts]
    manifest = {"schemaVersion": 2, "mediaType": media_type, "layers": layers}
    manifest["config"] = _blob(registry, folder, canonical(config), CONFIG)
    data = canonical(manifest)
    return registry.put_manifest(data, digest_of(data), media_type)


def push_index(registry: Registry, manifests: Mapping[str, Digest], media_type: str = INDEX) -> Digest:
    """Push an index; architecture -> manifest."""
    listed = [
        {
            "mediaType": DOCKER_MANIFEST if media_type == DOCKER_LIST else MANIFEST,
            "digest": digest,
            "size": len(registry.manifest(digest) or b""),
            "platform": {"os": "linux", "architecture": architecture},
        }
        for architecture, digest in manifests.items()
    ]
    data = canonical({"schemaVersion": 2, "mediaType": media_type, "manifests": listed})
    return registry.put_manifest(data, digest_of(data), media_type)


def _blob(registry: Registry, folder: Path, data: bytes, media_type: str) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    digest = digest_of(data)
    path = folder / digest.removeprefix("sha256:")
    path.write_bytes(data)
    registry.put_blob(path, digest)
    return {"mediaType": media_type, "digest": digest, "size": len(data)}
