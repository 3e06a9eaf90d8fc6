"""Folders of files as OCI artifacts: one blob a file, so an unchanged file is neither read nor moved again.

What a job can still write to is never linked into the store: files are copied, by the disk itself where it can. What is
given to a job is a copy too, and what is hashed is always the copy.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import IO, Any, Protocol

from controller.adapters.oci.known import KnownFiles, is_same
from controller.adapters.oci.layout import EMPTY, MANIFEST, Layout, disk_error
from policies.canonical import canonical
from policies.errors import RefusedError, TrustError
from policies.terms.digest import Digest, is_digest

FILES = "application/vnd.myelin.files.v1"
FILE = "application/octet-stream"
TITLE = "org.opencontainers.image.title"
MODE = "io.myelin.file.executable"
_CHUNK = 1 << 30
_BLOCK = 1 << 20


class Gate(Protocol):
    """Signs models, and says which may be loaded."""

    def sign(self, digest: Digest) -> None:
        """Sign a model that a job of ours left."""
        ...

    def verify(self, digest: str) -> None:
        """Let a model be loaded.

        Raises:
            TrustError: No key of the project signed it.
        """
        ...


class ArtifactStore:
    """Folders of files, named by their content. Threads may share it.

    Args:
        layout: Where they are.
        models: Who signs and admits models; without it none is kept and none is loaded.
    """

    def __init__(self, layout: Layout, models: Gate | None = None) -> None:
        self._layout, self._models = layout, models
        self._known = KnownFiles(layout.root / "known-files.json")

    def put_folder(self, folder: Path) -> Digest:
        """Keep all files below a folder; equal content gives an equal digest.

        Raises:
            RefusedError: A link that leaves the folder, no plain file, or the registry says no.
            SilentError: The disk is full, or the registry gives no answer.
        """
        try:
            began = self._known.now()
            paths = [path for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir()]
            layers = [self._file(folder, path, began) for path in paths]
            config = self._layout.descriptor(self._layout.put(b"{}"), EMPTY)
            manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "artifactType": FILES, "config": config, "layers": layers}
            digest = self._layout.put(canonical(manifest))
            name = f"artifact-{digest.removeprefix('sha256:')}"
            self._layout.tag(name, digest)
            self._known.save()
            self._layout.push(digest, tags=(name,))
        except OSError as error:
            raise disk_error(self._layout.root, error) from error
        return digest

    def keep(self, kind: str, folder: Path) -> Digest:
        """Keep what a job left: a `model` is signed, `data` is named by its content alone.

        Raises:
            RefusedError: As for `put_folder`, or the project's key signs no models.
            SilentError: As for `put_folder`.
        """
        digest = self.put_folder(folder)
        if kind == "model":
            self._gate(digest).sign(digest)
        return digest

    def fetch_model(self, digest: str, destination: Path) -> None:
        """Lay a model's files into a folder, once a key of the project is found to have signed it.

        Raises:
            TrustError: Nobody did, or as for `fetch_folder`.
            SilentError: As for `fetch_folder`.
        """
        self._gate(digest).verify(digest)
        self.fetch_folder(digest, destination)

    def fetch_folder(self, digest: str, destination: Path) -> None:
        """Lay an artifact's files into a folder, over what is there.

        Raises:
            TrustError: Anything is missing, changed or would leave the folder.
            SilentError: The disk is full.
        """
        layers = files_of(self._layout, digest)
        laid: list[tuple[os.stat_result, Digest]] = []
        try:
            destination.mkdir(parents=True, exist_ok=True)
            for name, layer in layers.items():
                target = destination / name
                if not target.resolve().is_relative_to(destination.resolve()):
                    raise TrustError(f"artifact {digest}: expected plain file names, got {name!r}")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.unlink(missing_ok=True)
                self._lay(layer["digest"], target)
                target.chmod(0o755 if layer["annotations"].get(MODE) == "true" else 0o644)
                laid.append((target.stat(), Digest(layer["digest"])))
            # What a job finds and leaves as it was needs no reading when the job has ended.
            began = self._known.settled(*(status for status, _ in laid))
            for status, content in laid:
                self._known.keep(status, content, began=began)
            self._known.save()
        except OSError as error:
            raise disk_error(destination, error) from error

    def _lay(self, digest: str, target: Path) -> None:
        """Copy a blob to a place where nothing is yet, and see that it is what its digest says."""
        try:
            source = self._layout.path(digest).open("rb")
        except FileNotFoundError as error:
            raise TrustError(f"blob {digest}: expected it in the store, it is missing", reason="BlobMissing") from error
        with source, target.open("xb+") as copy:
            got = _copied(source, copy)
        if got != digest:
            target.unlink()
            raise TrustError(f"blob {digest}: expected these bytes, got {got}", reason="BlobChanged")

    def _file(self, folder: Path, path: Path, began: os.stat_result) -> dict[str, Any]:
        name, real = path.relative_to(folder).as_posix(), path.resolve()
        if not real.is_relative_to(folder.resolve()) or not real.is_file():
            raise RefusedError(f"{name}: expected a plain file inside of the folder that is kept", reason="OddFile")
        with os.fdopen(os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as source:
            status = os.fstat(source.fileno())
            digest = self._known.digest(status)
            size = status.st_size
            if digest is None or not self._holds(digest, size):
                digest, size = self._taken(source, status, began)
        annotations = {TITLE: name} | ({MODE: "true"} if os.access(real, os.X_OK) and status.st_mode & 0o100 else {})
        return {"mediaType": FILE, "digest": digest, "size": size, "annotations": annotations}

    def _taken(self, source: IO[bytes], status: os.stat_result, began: os.stat_result) -> tuple[Digest, int]:
        """The digest and size of a file of which the store now has a copy."""
        digest, size = None, status.st_size
        if self._known.knows_size(size):
            # Probably what another job left: then there is nothing to copy.
            digest = _hashed(source)
            source.seek(0)
        if digest is None or not self._holds(digest, size):
            with self._layout.writing() as file:
                digest = _copied(source, file)
                size = os.fstat(file.fileno()).st_size
                if not self._holds(digest, size):
                    self._layout.adopt(file, digest)
        if is_same(status, os.fstat(source.fileno())) and size == status.st_size:
            self._known.keep(status, digest, began=began)
        return digest, size

    def _holds(self, digest: Digest, size: int) -> bool:
        """Whether the store has a blob, here and whole as far as its size tells, or behind here."""
        if self._layout.place(digest).exists():
            return self._layout.is_whole(digest, size)
        return self._layout.has(digest)

    def _gate(self, digest: str) -> Gate:
        if self._models is None:
            raise TrustError(f"model {digest}: expected a key that signs and admits models, there is none", reason="NoKey")
        return self._models


def files_of(layout: Layout, digest: str) -> dict[str, dict[str, Any]]:
    """The files of an artifact: path -> descriptor of its blob.

    Raises:
        TrustError: It is missing, changed, none of ours, or has a name that would leave a folder.
    """
    manifest = layout.manifest(digest)
    if manifest.get("artifactType") != FILES:
        raise TrustError(f"artifact {digest}: expected {FILES}, got {manifest.get('artifactType')}")
    found: dict[str, dict[str, Any]] = {}
    try:
        for layer in manifest["layers"]:
            name = str(layer["annotations"][TITLE])
            parts = name.split("/")
            if name in found or "\0" in name or any(part in ("", ".", "..") for part in parts) or not is_digest(layer["digest"]):
                raise TrustError(f"artifact {digest}: expected plain file names, got {name!r}")
            found[name] = layer
    except (KeyError, TypeError, AttributeError) as error:
        raise TrustError(f"artifact {digest}: expected files with names", reason="BadManifest") from error
    return found


def _copied(source: IO[bytes], copy: IO[bytes]) -> Digest:
    """Copy a file to an empty one, by the disk itself where it can, and hash what has arrived."""
    try:
        while os.copy_file_range(source.fileno(), copy.fileno(), _CHUNK):
            pass
    except OSError:
        # Two disks, or one that cannot; a full one says so again.
        source.seek(0)
        copy.seek(0)
        copy.truncate()
        shutil.copyfileobj(source, copy, _BLOCK)
        copy.flush()
    copy.seek(0)
    return _hashed(copy)


def _hashed(file: IO[bytes]) -> Digest:
    return Digest("sha256:" + hashlib.file_digest(file, "sha256").hexdigest())  # type: ignore[arg-type]
