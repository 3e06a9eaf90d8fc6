"""An OCI image layout as a content-addressed store.

Whoever relies on a blob that is there notes that it is used, in `used/`: what was used lately is never swept away, so a
build or a push beside a clean-up (`cleaning.py`) loses nothing.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import tempfile
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from policies.canonical import canonical
from policies.errors import OutsideError, SilentError, TrustError
from policies.terms.digest import Digest, digest_of, is_digest

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
Stamp = tuple[tuple[str, tuple[int, ...]], ...]
"""Blobs, each with what changes when somebody writes to its file."""
REF_NAME = "org.opencontainers.image.ref.name"
MOST_NOTED = 4096
LARGEST_COMPARED_BYTES = 1 << 20
"""What is put again is compared with what is here up to that size, so that a changed manifest comes back by itself."""
NOTED_SECONDS = 600.0
"""How long a use that was noted counts as noted: who uses a blob all the time writes no more than that."""


class Layout:
    """A folder in the OCI image layout; every blob is checked when it is read.

    `MirroredLayout` puts such a folder in front of a registry; whoever keeps something here calls `push` when it is whole.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._noted: dict[str, float] = {}
        self._noting = threading.Lock()
        (root / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
        if not (root / "oci-layout").exists():
            write_whole(root / "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')

    @property
    def reference(self) -> str:
        """What signatures call this place: the repository in the registry, here the folder's name."""
        return self.root.name

    def path(self, digest: str) -> Path:
        """A blob's file; it may not be there."""
        return self.place(digest)

    def place(self, digest: str) -> Path:
        """Where in this folder a blob lies, or would."""
        if not is_digest(digest):
            raise TrustError(f"blob {digest[:80]!r}: expected sha256:<64 hex>")
        return self.root / "blobs" / "sha256" / digest.removeprefix("sha256:")

    def has(self, digest: str) -> bool:
        """Whether a blob is to be had."""
        return self.is_here(digest)

    def is_here(self, digest: str) -> bool:
        """Whether a blob lies in this folder, whatever a registry has; from now on it is used."""
        return self.place(digest).exists() and self.note(digest)

    def note(self, digest: str, *, elsewhere: bool = False) -> bool:
        """Note that a blob or manifest, here or behind here, is relied on from now on; False when it is not here any more."""
        now = time.monotonic()
        with self._noting:
            if self._noted.get(digest, 0.0) > now:
                return True
        try:
            mark = self.mark(digest)
            with self.using():
                if not elsewhere and not self.place(digest).exists():
                    return False
                mark.parent.mkdir(exist_ok=True)
                mark.touch()
        except OSError:
            # Who may only read, or has a full disk, makes nothing that relies on it.
            return elsewhere or self.place(digest).exists()
        with self._noting:
            if len(self._noted) >= MOST_NOTED:
                self._noted.clear()
            self._noted[digest] = now + NOTED_SECONDS
        return True

    def mark(self, digest: str) -> Path:
        """The file whose time says when a blob was relied on last; it may not be there."""
        return self.root / "used" / self.place(digest).name

    @contextmanager
    def using(self, *, alone: bool = False) -> Iterator[None]:
        """As long as the block lasts nobody sweeps; `alone`: nobody else notes a use either."""
        with (self.root / ".sweep").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
            yield

    def put(self, data: bytes) -> Digest:
        """Keep bytes under their digest."""
        digest = digest_of(data)
        if not self._holds(digest, data):
            with self.using():
                write_whole(self.place(digest), data)
        return digest

    def _holds(self, digest: str, data: bytes) -> bool:
        """Whether a blob lies here as it should; of what is large, its size has to do."""
        if not self.is_whole(digest, len(data)):
            return False
        return len(data) > LARGEST_COMPARED_BYTES or self.place(digest).read_bytes() == data

    def is_whole(self, digest: str, size: int) -> bool:
        """Whether a blob lies in this folder with all of its bytes, as far as their number tells."""
        return self.is_here(digest) and self.place(digest).stat().st_size == size

    @contextmanager
    def writing(self) -> Iterator[IO[bytes]]:
        """A temporary file in the store; `adopt` it when it is whole."""
        with tempfile.NamedTemporaryFile(dir=self.root, prefix="new-", delete=False) as file:
            try:
                yield file
            finally:
                Path(file.name).unlink(missing_ok=True)

    def adopt(self, file: IO[bytes], digest: Digest) -> None:
        """Keep a written file under its digest."""
        file.flush()
        os.fsync(file.fileno())
        # Not while somebody sweeps, who may be about to take away what was here before.
        with self.using():
            os.replace(file.name, self.place(digest))

    def get(self, digest: str) -> bytes:
        """A blob's bytes.

        Raises:
            TrustError: It is missing or not what its digest says.
        """
        try:
            data = self.path(digest).read_bytes()
        except FileNotFoundError as error:
            raise TrustError(f"blob {digest}: expected it in the store, it is missing", reason="BlobMissing") from error
        if digest_of(data) != digest:
            raise TrustError(f"blob {digest}: expected these bytes, got {digest_of(data)}", reason="BlobChanged")
        return data

    def check(self, digest: str) -> None:
        """Check a blob without holding it in memory.

        Raises:
            TrustError: It is missing or not what its digest says.
        """
        try:
            with self.path(digest).open("rb") as file:
                got = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError as error:
            raise TrustError(f"blob {digest}: expected it in the store, it is missing", reason="BlobMissing") from error
        if got != digest:
            raise TrustError(f"blob {digest}: expected these bytes, got {got}", reason="BlobChanged")

    def check_all(self, digest: str) -> None:
        """Check all that a manifest names.

        Raises:
            TrustError: Anything is missing or not what its digest says.
        """
        for blob in self.named(digest):
            self.check(blob)

    def stamp(self, digest: str) -> Stamp:
        """What differs once a file of a manifest's, or of what is attached to it here, was touched; not all of them are read.

        Raises:
            TrustError: Anything is missing.
        """
        attached = [str(item["digest"]) for item in self.listed() if item.get("subject") == digest]
        blobs = [*self.below(digest), *(blob for item in attached for blob in self.below(item))]
        return tuple((blob, self._touched(blob)) for blob in blobs)

    def is_stamped(self, seen: Stamp) -> bool:
        """Whether nothing of what a stamp is of was touched since."""
        try:
            return all(self._touched(blob) == touched for blob, touched in seen)
        except TrustError:
            return False

    def below(self, digest: str) -> tuple[str, ...]:
        """A manifest with the blobs that it names; an index with those of all of its manifests.

        Raises:
            TrustError: One is missing or changed, or is no manifest.
        """
        listed = self.manifest(digest).get("manifests")
        if listed is None:
            return (digest, *self.named(digest))
        try:
            children = [str(item["digest"]) for item in listed]
        except (KeyError, TypeError) as error:
            raise TrustError(f"manifest {digest}: expected a list of manifests", reason="BadManifest") from error
        return (digest, *(blob for child in children for blob in (child, *self.named(child))))

    def named(self, digest: str) -> tuple[str, ...]:
        """The blobs that a manifest names: its config, then its layers. Of an index: its manifests, and what they name."""
        manifest = self.manifest(digest)
        try:
            if "manifests" in manifest:
                inner = [item["digest"] for item in manifest["manifests"]]
                return tuple(name for item in inner for name in (item, *self.named(item)))
            return tuple(item["digest"] for item in (manifest["config"], *manifest["layers"]))
        except (KeyError, TypeError) as error:
            raise TrustError(f"manifest {digest}: expected a config and layers", reason="BadManifest") from error

    def _touched(self, digest: str) -> tuple[int, ...]:
        try:
            status = self.place(digest).stat()
        except FileNotFoundError as error:
            raise TrustError(f"blob {digest}: expected it in the store, it is missing", reason="BlobMissing") from error
        # The time of change cannot be set back by whoever writes to a file, as the time of its content can.
        return status.st_ctime_ns, status.st_mtime_ns, status.st_size, status.st_ino

    def descriptor(self, digest: str, media_type: str) -> dict[str, Any]:
        """How manifests refer to a blob, which is used from now on."""
        self.note(digest)
        return {"mediaType": media_type, "digest": digest, "size": self.path(digest).stat().st_size}

    def manifest(self, digest: str) -> dict[str, Any]:
        """A manifest's content."""
        value = json.loads(self.get(digest))
        if not isinstance(value, dict):
            raise TrustError(f"manifest {digest}: expected a mapping")
        return value

    def tag(self, name: str, digest: Digest, extra: Mapping[str, Any] | None = None) -> None:
        """List a manifest in the index under a name; another one of that name is replaced."""
        # Noted before the index is locked: a sweep locks the other way round.
        entry = {**self.descriptor(digest, self._kind(digest)), "annotations": {REF_NAME: name}, **(extra or {})}
        with self._locked():
            index = self._index()
            if entry in index["manifests"]:
                return
            others = [item for item in index["manifests"] if item.get("annotations", {}).get(REF_NAME) != name]
            index["manifests"] = sorted([*others, entry], key=lambda item: str(item["annotations"][REF_NAME]))
            write_whole(self.root / "index.json", canonical(index))

    def _kind(self, digest: str) -> str:
        """The media type of what is listed; other tools read the folder by it."""
        try:
            value = json.loads(self.path(digest).read_bytes())
            return INDEX if isinstance(value, dict) and "manifests" in value else MANIFEST
        except ValueError:
            return MANIFEST

    def resolve(self, tag: str) -> Digest | None:
        """The manifest that a name stands for; None when nothing has that name."""
        found = [item["digest"] for item in self._index()["manifests"] if item.get("annotations", {}).get(REF_NAME) == tag]
        return Digest(found[0]) if found else None

    def resolve_here(self, name: str) -> Digest | None:
        """What a name stands for in this folder, whatever a registry says."""
        return Layout.resolve(self, name)

    def push(self, digest: str, *, tags: Sequence[str] = ()) -> None:
        """Bring a manifest, with all that it names, to where others fetch it; here it is there already."""

    def mend(self, digest: str) -> tuple[str, ...]:
        """Put back, to where others fetch it, what is gone there of a manifest and what refers to it; here nothing can be.

        Raises:
            TrustError: Something is missing and cannot be put back.
        """
        gone = [blob for blob in self.below(digest) if not self.has(blob)]
        if gone:
            text = f"image {digest}: expected all of it in the store, missing: {', '.join(gone)}; build it again"
            raise TrustError(text, reason="BlobMissing")
        return ()

    def mount(self, digest: str, repository: str) -> bool:
        """Whether a blob of another repository `host/path` is now where `push` brings things, without a copy; here never."""
        return False

    def referrers(self, digest: str) -> list[dict[str, Any]]:
        """Manifests whose subject is `digest`."""
        found = [self.manifest(item["digest"]) for item in self._index()["manifests"] if item.get("subject") == digest]
        return [item for item in found if item.get("subject", {}).get("digest") == digest]

    def images(self) -> list[tuple[str, str]]:
        """(name, digest) of all that is listed and is no referrer."""
        return [(item["annotations"][REF_NAME], item["digest"]) for item in self._index()["manifests"] if "subject" not in item]

    def listed(self) -> list[dict[str, Any]]:
        """The index's entries."""
        return list(self._index()["manifests"])

    def unlist(self, names: Collection[str]) -> None:
        """Take names off the index; what they stood for stays until it is swept."""
        with self._locked():
            index = self._index()
            kept = [item for item in index["manifests"] if item.get("annotations", {}).get(REF_NAME) not in names]
            if len(kept) != len(index["manifests"]):
                write_whole(self.root / "index.json", canonical({**index, "manifests": kept}))

    def _index(self) -> dict[str, Any]:
        try:
            value = json.loads((self.root / "index.json").read_bytes())
        except FileNotFoundError:
            return {"schemaVersion": 2, "mediaType": INDEX, "manifests": []}
        except ValueError:
            value = None
        listed = value.get("manifests") if isinstance(value, dict) else None
        if not isinstance(listed, list) or not all(isinstance(item, dict) and "digest" in item for item in listed):
            text = (
                "expected the list of what is in the store, got another document; delete it, and what is needed is listed again"
            )
            raise TrustError(f"{self.root / 'index.json'}: {text}", reason="StoreDamaged")
        return dict(value)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.root / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def disk_error(place: Path, error: OSError) -> OutsideError:
    """What the disk's own error means here."""
    return SilentError(f"{place}: {error.strerror or error}", reason="DiskFull" if error.errno == 28 else "Disk")


def write_whole(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, safe on disk."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix="new-", delete=False) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(file.name, path)
