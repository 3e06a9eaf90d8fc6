"""Images that a Dockerfile is built on: their tags pinned to digests, their bytes brought here by our own registry client.

What builds gets neither credentials nor a way to a registry.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controller.adapters.oci.access import Access
from controller.adapters.oci.bases import REFERENCE, read_base
from controller.adapters.oci.layout import CONFIG, MANIFEST, REF_NAME, Layout
from controller.adapters.oci.registry import Registry
from policies.canonical import canonical
from policies.errors import (
    ConflictError,
    ControllerError,
    DesiredStateError,
    OutsideError,
    RefusedError,
    SilentError,
    TrustError,
)
from policies.terms.build import BaseSigner
from policies.terms.digest import Digest, digest_of, is_digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """An image that is built on or copied from; its layers lie in the store's own folder."""

    reference: str
    """`host[:port]/path@sha256:…`"""
    digest: Digest
    """Of its manifest for this machine."""
    config: Mapping[str, Any]
    layers: tuple[Mapping[str, Any], ...]
    """Descriptors, in OCI's media types."""
    diff_ids: tuple[str, ...]

    @property
    def repository(self) -> str:
        """`host[:port]/path`."""
        return self.reference.partition("@")[0]


class Pins:
    """Pins references and opens what they stand for.

    Args:
        layout: Where images go that are built on them.
        access_for: Repository `host[:port]/path` -> how to reach it.
        allowed: Called with each pinned reference, and who may have signed it, before anything of it is fetched; raises where
            none of them has.
    """

    def __init__(
        self,
        layout: Layout,
        access_for: Callable[[str], Access],
        allowed: Callable[[str, Sequence[BaseSigner]], None] = lambda reference, signers: None,
    ) -> None:
        self._layout, self._access_for, self._allowed = layout, access_for, allowed

    def pin(self, reference: str) -> str:
        """The same image by its digest.

        Raises:
            DesiredStateError: It does not say where the image lies, or nothing has that name there.
            OutsideError: Its registry said no, or does not answer.
        """
        match = REFERENCE.fullmatch(reference)
        if match is None or not any(sign in match["host"] for sign in (".", ":", "localhost")):
            text = f"{reference}: expected host[:port]/path with a tag or digest, got no such name; write where the image lies"
            raise DesiredStateError(text, reason="BaseNotPinned")
        if match["digest"] is not None:
            if not is_digest(match["digest"]):
                text = f"{reference}: expected a digest sha256:<64 hex>, got {match['digest'][:80]}"
                raise DesiredStateError(text, reason="BaseNotPinned")
            return f"{match['repository']}@{match['digest']}"
        tag = match["tag"] or "latest"
        with closing(Registry(self._access_for(match["repository"]))) as source:
            found = source.manifest(tag)
        if found is None:
            text = f"{reference}: expected the tag {tag} in its registry, it is not there; check path and tag"
            raise DesiredStateError(text, reason="BaseMissing")
        return f"{match['repository']}@{digest_of(found)}"

    def open(self, pinned: str, signers: Sequence[BaseSigner] = ()) -> Ground:
        """Fetch an image that is not here yet.

        Args:
            pinned: By digest.
            signers: One of them must have signed it; empty: its digest is enough.

        Raises:
            DesiredStateError: It is no image for this machine, or not there.
            TrustError: A blob is not what its digest says, or the project does not trust the image.
            OutsideError: Its registry said no, or does not answer.
        """
        self._allowed(pinned, signers)
        repository, _, digest = pinned.partition("@")
        with closing(Registry(self._access_for(repository))) as source:
            read = read_base(source, pinned, Digest(digest))
            for layer in read.layers:
                if not self._layout.is_here(layer["digest"]):
                    with self._layout.writing() as blob:
                        source.fetch_blob(layer["digest"], blob)
                        self._layout.adopt(blob, Digest(layer["digest"]))
        return Ground(reference=pinned, digest=read.digest, config=read.config, layers=read.layers, diff_ids=read.diff_ids)


def with_place(error: ControllerError, place: str) -> ControllerError:
    """The same fault, with the file and line that it comes from."""
    kinds = (SilentError, RefusedError, ConflictError, OutsideError, TrustError)
    kind = next((kind for kind in kinds if isinstance(error, kind)), DesiredStateError)
    return kind(f"{place}: {error.message}", reason=error.reason)


def write_ground(ground: Ground, layout: Layout, folder: Path) -> tuple[str, Digest]:
    """Write an image as a layout of its own, for a builder to read; the answer is its id there, and its manifest's digest.

    Some builders refuse an image whose history does not fit its layers, and not all images have one. What is written has
    a history of nothing but the right length.
    """
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def put(data: bytes, media_type: str) -> dict[str, Any]:
        digest = digest_of(data)
        (blobs / digest.removeprefix("sha256:")).write_bytes(data)
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    for layer in ground.layers:
        _link(layout.place(layer["digest"]), blobs / layer["digest"].removeprefix("sha256:"))
    history = [{"created_by": f"layer {number} of {ground.reference}"} for number, _ in enumerate(ground.layers, start=1)]
    rootfs = {"type": "layers", "diff_ids": list(ground.diff_ids)}
    config = put(canonical({**ground.config, "rootfs": rootfs, "history": history}), CONFIG)
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": list(ground.layers)}
    entry = {**put(canonical(manifest), MANIFEST), "annotations": {REF_NAME: "image"}}
    (folder / "index.json").write_bytes(json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode())
    (folder / "oci-layout").write_bytes(b'{"imageLayoutVersion":"1.0.0"}')
    return str(config["digest"]).removeprefix("sha256:"), Digest(entry["digest"])


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)  # another disk, or one without hard links
