"""An OCI layout that somebody else wrote, read as a registry is: nothing is written to it.

What is attached to an image is looked for among the blobs, as cosign does it: `cosign save` lists bundles in no index, and
other tools do as they like. Nothing that is found here is proved.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any, Protocol

from controller.adapters.oci.layout import REF_NAME
from controller.adapters.oci.references import listed
from policies.errors import DesiredStateError, SilentError, TrustError
from policies.terms.digest import digest_of, is_digest

SCHEME = "oci:"
"""What begins a reference to a layout, `oci:/folder@sha256:…`, as other tools write it."""
LARGEST_MANIFEST_BYTES = 8 << 20
LARGEST_REFERRER_BYTES = 1 << 20
MOST_BLOBS = 100_000
"""How many blobs of a layout are looked through for what refers to an image."""
SIGNATURES = {"kind": "dev.cosignproject.cosign/sigs"}
"""How `cosign save` marks the older signatures of the one image in a layout."""
_BLOCK = 1 << 20


class Source(Protocol):
    """Where a base image lies: a registry's repository, or a layout."""

    def manifest(self, reference: str) -> bytes | None:
        """A manifest by tag or digest; None when there is none."""
        ...

    def fetch_blob(self, digest: str, out: IO[bytes]) -> None:
        """Write a blob's bytes, checked by its digest."""
        ...

    def referrers(self, digest: str) -> list[dict[str, Any]]:
        """Descriptors of what refers to a manifest."""
        ...

    def close(self) -> None:
        """End connections."""
        ...


class LayoutOnDisk:
    """Implements `Source` for a folder.

    Raises:
        DesiredStateError: It is no such folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        if not folder.is_absolute() or not (folder / "oci-layout").is_file():
            text = f"{SCHEME}{folder}: expected an absolute path of an OCI layout on this machine, got none"
            raise DesiredStateError(f"{text}; write one with `skopeo copy … oci:{folder}`", reason="BaseMissing")

    def manifest(self, reference: str) -> bytes | None:
        """A manifest by digest, or by the tag of an image's older signatures; None when there is none.

        Raises:
            TrustError: It is not what its digest says, or no manifest.
            SilentError: The disk failed us.
        """
        digest = reference if is_digest(reference) else self._older(reference)
        place = self._place(digest)
        if place is None or not place.is_file():
            return None
        data = self._read(place, LARGEST_MANIFEST_BYTES)
        if data is None:
            text = f"manifest {digest}: expected at most {LARGEST_MANIFEST_BYTES} bytes, got more"
            raise TrustError(text, reason="BlobChanged")
        if digest_of(data) != digest:
            raise TrustError(f"manifest {digest}: expected these bytes, got {digest_of(data)}", reason="BlobChanged")
        return data

    def fetch_blob(self, digest: str, out: IO[bytes]) -> None:
        """Write a blob's bytes."""
        place, sha = self._place(digest), hashlib.sha256()
        if place is None or not place.is_file():
            raise TrustError(f"blob {digest}: expected it in {self._folder}, it is missing", reason="BlobMissing")
        try:
            with place.open("rb") as file:
                while block := file.read(_BLOCK):
                    sha.update(block)
                    out.write(block)
        except OSError as error:
            raise SilentError(f"{place}: {error.strerror or error}", reason="Disk") from error
        if f"sha256:{sha.hexdigest()}" != digest:
            raise TrustError(f"blob {digest}: expected these bytes, got sha256:{sha.hexdigest()}", reason="BlobChanged")

    def referrers(self, digest: str) -> list[dict[str, Any]]:
        """What refers to a manifest, by its digest, sorted; whoever reads it checks that it does."""
        return [{"digest": name} for name in sorted(self._referring(digest))]

    def close(self) -> None:
        """Nothing is open."""

    def _referring(self, digest: str) -> Iterator[str]:
        named = digest.removeprefix("sha256:").encode()
        try:
            with os.scandir(self._folder / "blobs" / "sha256") as entries:
                small = [
                    entry
                    for entry in islice(entries, MOST_BLOBS)
                    if is_digest(f"sha256:{entry.name}") and entry.is_file() and entry.stat().st_size <= LARGEST_REFERRER_BYTES
                ]
        except OSError:
            return
        for entry in small:
            data = self._read(Path(entry.path), LARGEST_REFERRER_BYTES) or b""
            # Most blobs are layers and bundles: only what can be a manifest about this image is read as one.
            if data[:1] == b"{" and named in data and _subject_of(data) == digest:
                yield f"sha256:{entry.name}"

    def _older(self, tag: str) -> str:
        """The digest of an image's older signatures; empty where there are none."""
        index = self._folder / "index.json"
        entries = listed(self._read(index, LARGEST_MANIFEST_BYTES) if index.is_file() else None)
        notes = [(item, found if isinstance(found := item.get("annotations"), dict) else {}) for item in entries]
        # Some tools write the tag alone, some the whole name.
        tagged = [item for item, said in notes if str(said.get(REF_NAME, "")).rpartition(":")[2] == tag]
        saved = [item for item, said in notes if tag.endswith(".sig") and said.items() >= SIGNATURES.items()]
        return next((str(item["digest"]) for item in (*tagged, *saved)), "")

    def _read(self, place: Path, most_bytes: int) -> bytes | None:
        """A file's bytes; None where it has more."""
        try:
            with place.open("rb") as file:
                data = file.read(most_bytes + 1)
        except OSError as error:
            raise SilentError(f"{place}: {error.strerror or error}", reason="Disk") from error
        return data if len(data) <= most_bytes else None

    def _place(self, digest: str) -> Path | None:
        if not is_digest(digest):
            return None
        return self._folder / "blobs" / "sha256" / digest.removeprefix("sha256:")


def _subject_of(data: bytes) -> str:
    try:
        return str(json.loads(data)["subject"]["digest"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
