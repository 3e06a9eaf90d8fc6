"""An OCI layout that somebody else wrote, read as a registry is: nothing is written to it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import IO, Any, Protocol

from policies.errors import DesiredStateError, SilentError, TrustError
from policies.terms.digest import digest_of, is_digest

SCHEME = "oci:"
"""What begins a reference to a layout, `oci:/folder@sha256:…`, as other tools write it."""
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
        """A manifest by digest; layouts are asked for no tags."""
        place = self._place(reference)
        if place is None or not place.exists():
            return None
        data = place.read_bytes()
        if digest_of(data) != reference:
            raise TrustError(f"manifest {reference}: expected these bytes, got {digest_of(data)}", reason="BlobChanged")
        return data

    def fetch_blob(self, digest: str, out: IO[bytes]) -> None:
        """Write a blob's bytes."""
        place, sha = self._place(digest), hashlib.sha256()
        if place is None or not place.exists():
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
        """None: a layout's index does not say what refers to what."""
        return []

    def close(self) -> None:
        """Nothing is open."""

    def _place(self, digest: str) -> Path | None:
        if not is_digest(digest):
            return None
        return self._folder / "blobs" / "sha256" / digest.removeprefix("sha256:")
