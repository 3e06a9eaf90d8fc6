"""An OCI image layout as a content-addressed store, and folders of files as OCI artifacts in it."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from policies.canonical import canonical
from policies.errors import OutsideError, RefusedError, SilentError, TrustError
from policies.terms.digest import Digest, digest_of, is_digest

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
FILES = "application/vnd.myelin.files.v1"
FILE = "application/octet-stream"
REF_NAME = "org.opencontainers.image.ref.name"
TITLE = "org.opencontainers.image.title"
MODE = "io.myelin.file.executable"
_BLOCK = 1 << 20


class Layout:
    """A folder in the OCI image layout; every blob is checked when it is read.

    `MirroredLayout` puts such a folder in front of a registry; whoever keeps something here calls `push` when it is whole.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
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
        """Whether a blob lies in this folder, whatever a registry has."""
        return self.place(digest).exists()

    def put(self, data: bytes) -> Digest:
        """Keep bytes under their digest."""
        digest = digest_of(data)
        if not self.is_here(digest):
            write_whole(self.place(digest), data)
        return digest

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

    def stamp(self, digest: str) -> tuple[object, ...]:
        """What differs once a file of a manifest's was touched, without reading all of them.

        Raises:
            TrustError: Anything is missing.
        """
        return tuple(self._touched(blob) for blob in (digest, *self.named(digest)))

    def named(self, digest: str) -> tuple[str, ...]:
        """The blobs that a manifest names: its config, then its layers."""
        manifest = self.manifest(digest)
        try:
            return tuple(item["digest"] for item in (manifest["config"], *manifest["layers"]))
        except (KeyError, TypeError) as error:
            raise TrustError(f"manifest {digest}: expected a config and layers", reason="BadManifest") from error

    def _touched(self, digest: str) -> tuple[int, int]:
        try:
            status = self.place(digest).stat()
        except FileNotFoundError as error:
            raise TrustError(f"blob {digest}: expected it in the store, it is missing", reason="BlobMissing") from error
        return status.st_mtime_ns, status.st_size

    def descriptor(self, digest: str, media_type: str) -> dict[str, Any]:
        """How manifests refer to a blob."""
        return {"mediaType": media_type, "digest": digest, "size": self.path(digest).stat().st_size}

    def manifest(self, digest: str) -> dict[str, Any]:
        """A manifest's content."""
        value = json.loads(self.get(digest))
        if not isinstance(value, dict):
            raise TrustError(f"manifest {digest}: expected a mapping")
        return value

    def tag(self, name: str, digest: Digest, extra: Mapping[str, Any] | None = None) -> None:
        """List a manifest in the index under a name; another one of that name is replaced."""
        with self._locked():
            index = self._index()
            entry = {**self.descriptor(digest, MANIFEST), "annotations": {REF_NAME: name}, **(extra or {})}
            others = [item for item in index["manifests"] if item.get("annotations", {}).get(REF_NAME) != name]
            index["manifests"] = sorted([*others, entry], key=lambda item: str(item["annotations"][REF_NAME]))
            write_whole(self.root / "index.json", canonical(index))

    def resolve(self, tag: str) -> Digest | None:
        """The manifest that a name stands for; None when nothing has that name."""
        found = [item["digest"] for item in self._index()["manifests"] if item.get("annotations", {}).get(REF_NAME) == tag]
        return Digest(found[0]) if found else None

    def push(self, digest: str, *, tags: Sequence[str] = ()) -> None:
        """Bring a manifest, with all that it names, to where others fetch it; here it is there already."""

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

    def _index(self) -> dict[str, Any]:
        try:
            value = json.loads((self.root / "index.json").read_bytes())
        except FileNotFoundError:
            return {"schemaVersion": 2, "mediaType": INDEX, "manifests": []}
        return dict(value)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.root / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


class ArtifactStore:
    """Folders of files, named by their content."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def put_folder(self, folder: Path) -> Digest:
        """Keep all files below a folder; equal content gives an equal digest.

        Raises:
            RefusedError: A link that leaves the folder, no plain file, or the registry says no.
            SilentError: The disk is full, or the registry gives no answer.
        """
        try:
            layers = [self._file(folder, path) for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir()]
            config = self._layout.descriptor(self._layout.put(b"{}"), EMPTY)
            manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "artifactType": FILES, "config": config, "layers": layers}
            digest = self._layout.put(canonical(manifest))
            name = f"artifact-{digest.removeprefix('sha256:')}"
            self._layout.tag(name, digest)
            self._layout.push(digest, tags=(name,))
        except OSError as error:
            raise disk_error(self._layout.root, error) from error
        return digest

    def fetch_folder(self, digest: str, destination: Path) -> None:
        """Lay an artifact's files into a folder, over what is there.

        Raises:
            TrustError: Anything is missing, changed or would leave the folder.
            SilentError: The disk is full.
        """
        manifest = self._layout.manifest(digest)
        if manifest.get("artifactType") != FILES:
            raise TrustError(f"artifact {digest}: expected {FILES}, got {manifest.get('artifactType')}")
        try:
            destination.mkdir(parents=True, exist_ok=True)
            for layer in manifest["layers"]:
                name = str(layer["annotations"][TITLE])
                target = destination / name
                if name.startswith("/") or ".." in Path(name).parts or not target.resolve().is_relative_to(destination.resolve()):
                    raise TrustError(f"artifact {digest}: expected plain file names, got {name!r}")
                self._layout.check(layer["digest"])
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self._layout.path(layer["digest"]), target)
                target.chmod(0o755 if layer["annotations"].get(MODE) == "true" else 0o644)
        except OSError as error:
            raise disk_error(destination, error) from error

    def _file(self, folder: Path, path: Path) -> dict[str, Any]:
        name = path.relative_to(folder).as_posix()
        if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
            raise RefusedError(f"{name}: expected a plain file inside of the folder that is kept", reason="OddFile")
        with self._layout.writing() as file, path.open("rb") as source:
            sha = hashlib.sha256()
            while block := source.read(_BLOCK):
                sha.update(block)
                file.write(block)
            digest = Digest("sha256:" + sha.hexdigest())
            if not self._layout.is_here(digest):
                self._layout.adopt(file, digest)
        annotations = {TITLE: name} | ({MODE: "true"} if os.access(path, os.X_OK) and path.stat().st_mode & 0o100 else {})
        return {**self._layout.descriptor(digest, FILE), "annotations": annotations}


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
