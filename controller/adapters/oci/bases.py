"""Base images, named by digest: opened from their own registry, searched for their Python once, never unpacked.

A base by tag is refused: what a tag names may be other bytes tomorrow, and equal inputs would give other images.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import posixpath
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

from controller.adapters.oci.access import Access
from controller.adapters.oci.assembly import ARCHITECTURE, PYTHON, Base, read_memo, write_memo
from controller.adapters.oci.layout import LAYER, Layout
from controller.adapters.oci.registry import Registry
from policies.errors import DesiredStateError, OutsideError, RefusedError, SilentError, TrustError
from policies.terms.digest import Digest, digest_of, is_digest

PLAIN = "application/vnd.oci.image.layer.v1.tar"
LAYERS = {
    LAYER: LAYER,
    PLAIN: PLAIN,
    "application/vnd.docker.image.rootfs.diff.tar.gzip": LAYER,
    "application/vnd.docker.image.rootfs.diff.tar": PLAIN,
}
"""Media types of layers that others may have from us too, as OCI calls them; the bytes are the same under both names."""
_REFERENCE = re.compile(
    r"(?P<repository>(?P<host>\[[0-9A-Fa-f:]+\](?::\d+)?|[A-Za-z0-9.-]+(?::\d+)?)/[a-z0-9][a-z0-9._/-]*)"
    r"(?::(?P<tag>\w[\w.-]{0,127}))?(?:@(?P<digest>.+))?"
)
_PROGRAM = re.compile(r"usr/(?:local/)?bin/(?:python3\.\d+|git)")
_FORMAT = 1
"""Of what is remembered of a base."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Read:
    """What a base's registry says of it, and what was found in it."""

    digest: Digest
    config: Mapping[str, Any]
    layers: tuple[Mapping[str, Any], ...]
    diff_ids: tuple[str, ...]
    programs: tuple[str, ...] = ()


class Bases:
    """Opens base images.

    Args:
        layout: Where images that are built on them go.
        folder: What was found in a base; may be deleted.
        access_for: Repository `host[:port]/path` -> how to reach it.
        python: The minor version that a base must have, as wheels are chosen for it.
    """

    def __init__(self, layout: Layout, folder: Path, access_for: Callable[[str], Access], *, python: str = PYTHON) -> None:
        self._layout, self._folder, self._access_for, self._python = layout, folder, access_for, python
        folder.mkdir(parents=True, exist_ok=True)

    def open(self, reference: str) -> Base:
        """Read a base, see that its layers lie beside the images, and find its Python.

        Raises:
            DesiredStateError: No reference by digest, an image for another machine, without layers that may be handed on,
                or without the Python that is needed.
            TrustError: A blob is missing or not what its digest says.
            RefusedError: Its registry said no.
            SilentError: Its registry does not answer.
        """
        repository, digest = self._pinned(reference)
        try:
            return self._open(reference, repository, digest)
        except RefusedError as error:
            is_access = error.reason == "RegistryRefused"
            step = "; give the project's registry secret a right to read it" if is_access else ""
            reason = "BaseRefused" if is_access else error.reason
            raise RefusedError(f"base {reference}: {error.message}{step}", reason=reason) from error
        except SilentError as error:
            raise SilentError(f"base {reference}: {error.message}", reason=error.reason) from error

    def _open(self, reference: str, repository: str, digest: Digest) -> Base:
        memo = self._folder / f"base-{digest.removeprefix('sha256:')[:32]}-{ARCHITECTURE}.json"
        known = read_memo(memo)
        with closing(Registry(self._access_for(repository))) as source:
            if known is not None and known.get("format") == _FORMAT:
                read = _Read(**{key: known[key] for key in ("digest", "config", "layers", "diff_ids", "programs")})
                for layer in read.layers:
                    self._bring(layer, source, repository)
            else:
                read = _manifest(source, reference, digest)
                read = replace(read, programs=self._searched(read, source, repository))
                write_memo(memo, {**asdict(read), "format": _FORMAT})
        return Base(
            reference=reference,
            digest=Digest(read.digest),
            config=read.config,
            layers=tuple(read.layers),
            diff_ids=tuple(read.diff_ids),
            programs=tuple(read.programs),
            python=self._interpreter(reference, read.programs),
            version=self._python,
        )

    def _pinned(self, reference: str) -> tuple[str, Digest]:
        match = _REFERENCE.fullmatch(reference)
        if match is None or not any(sign in match["host"] for sign in (".", ":", "localhost")):
            text = f"base {reference}: expected host[:port]/path@sha256:…, got no such name; write where the image lies"
            raise DesiredStateError(text, reason="BaseNotPinned")
        if match["digest"] is None:
            kind = f"the tag {match['tag']}, which may name other bytes tomorrow" if match["tag"] else "none"
            now = self._named(match["repository"], match["tag"] or "latest")
            step = f"write {match['repository']}@{now}" if now else "append @sha256:… of the image that you mean"
            raise DesiredStateError(f"base {reference}: expected a digest, got {kind}; {step}", reason="BaseNotPinned")
        if not is_digest(match["digest"]):
            text = f"base {reference}: expected a digest sha256:<64 hex>, got {match['digest'][:80]}"
            raise DesiredStateError(text, reason="BaseNotPinned")
        return match["repository"], Digest(match["digest"])

    def _named(self, repository: str, tag: str) -> str:
        """What a tag names now, where its registry tells."""
        try:
            with closing(Registry(self._access_for(repository))) as source:
                found = source.manifest(tag)
        except (OutsideError, TrustError):
            return ""
        return digest_of(found) if found is not None else ""

    def _searched(self, read: _Read, source: Registry, repository: str) -> tuple[str, ...]:
        found: set[str] = set()
        for layer, diff_id in zip(read.layers, read.diff_ids, strict=True):
            if self._bring(layer, source, repository):
                with self._layout.place(layer["digest"]).open("rb") as blob:
                    found = _programs(blob, layer, diff_id, found)
                continue
            # It was mounted in the registry and its bytes are needed here this once.
            with self._layout.writing() as blob:
                source.fetch_blob(layer["digest"], blob)
                blob.seek(0)
                found = _programs(blob, layer, diff_id, found)
        return tuple(sorted(f"/{path}" for path in found))

    def _bring(self, layer: Mapping[str, Any], source: Registry, repository: str) -> bool:
        """See that a layer lies beside the images; returns whether it lies in the local folder."""
        digest = Digest(layer["digest"])
        if self._layout.is_here(digest):
            return True
        if self._layout.mount(digest, repository):  # it asks first whether it is there already
            return False
        with self._layout.writing() as blob:
            source.fetch_blob(digest, blob)
            self._layout.adopt(blob, digest)
        return True

    def _interpreter(self, reference: str, programs: tuple[str, ...]) -> str:
        for folder in ("/usr/local/bin", "/usr/bin"):
            if f"{folder}/python{self._python}" in programs:
                return f"{folder}/python{self._python}"
        others = [posixpath.basename(path).removeprefix("python") for path in programs if "/python3." in path]
        got = f"Python {', '.join(others)}" if others else "none in usr/local/bin or usr/bin"
        text = f"base {reference}: expected Python {self._python}, as the controller has, got {got}"
        raise DesiredStateError(f"{text}; take a base with Python {self._python}", reason="BasePython")


def _manifest(source: Registry, reference: str, digest: Digest) -> _Read:
    manifest = _document(source, reference, digest)
    if "manifests" in manifest:
        digest = _for_this_machine(reference, manifest["manifests"])
        manifest = _document(source, reference, digest)
    if "layers" not in manifest or "config" not in manifest:
        raise DesiredStateError(f"base {reference}: expected an image, got another kind of artifact", reason="BaseNotAnImage")
    layers = tuple(_layer(reference, layer) for layer in manifest["layers"])
    content = io.BytesIO()
    source.fetch_blob(manifest["config"]["digest"], content)
    config = _mapping(reference, content.getvalue())
    platform = f"{config.get('os')}/{config.get('architecture')}"
    if platform != f"linux/{ARCHITECTURE}":
        text = f"base {reference}: expected an image for linux/{ARCHITECTURE}, got one for {platform}"
        raise DesiredStateError(text, reason="BasePlatform")
    diff_ids = tuple((config.get("rootfs") or {}).get("diff_ids") or ())
    if len(diff_ids) != len(layers):
        text = f"base {reference}: expected {len(layers)} diff ids in its config, got {len(diff_ids)}"
        raise DesiredStateError(text, reason="BaseDamaged")
    return _Read(digest=digest, config=config, layers=layers, diff_ids=diff_ids)


def _document(source: Registry, reference: str, digest: Digest) -> dict[str, Any]:
    found = source.manifest(digest)
    if found is None:
        text = f"base {reference}: expected it in its registry, it is not there; check path and digest"
        raise DesiredStateError(text, reason="BaseMissing")
    return _mapping(reference, found)


def _mapping(reference: str, content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise DesiredStateError(f"base {reference}: expected a manifest and a config in JSON, got others", reason="BaseDamaged")
    return value


def _for_this_machine(reference: str, listed: list[dict[str, Any]]) -> Digest:
    platforms = {}
    for item in listed:
        platform = item.get("platform") or {}
        name = f"{platform.get('os')}/{platform.get('architecture')}"
        # arm64 has one variant, v8, which many leave out.
        if name == f"linux/{ARCHITECTURE}" and platform.get("variant") in (None, "", "v8"):
            return Digest(item["digest"])
        platforms[name] = item
    text = f"base {reference}: expected an image for linux/{ARCHITECTURE} in its index, got {', '.join(platforms) or 'none'}"
    raise DesiredStateError(text, reason="BasePlatform")


def _layer(reference: str, layer: Mapping[str, Any]) -> Mapping[str, Any]:
    kind = str(layer.get("mediaType"))
    if kind not in LAYERS or layer.get("urls"):
        text = f"base {reference}: expected layers as tar or tar+gzip that may be handed on, got {kind}"
        raise DesiredStateError(f"{text}; take a base without foreign or zstd layers", reason="BaseLayers")
    return {"mediaType": LAYERS[kind], "digest": layer["digest"], "size": layer["size"]}


class _Counted:
    """A stream whose digest is known at its end."""

    def __init__(self, source: IO[bytes] | gzip.GzipFile) -> None:
        self._source, self.sha = source, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        block = self._source.read(size)
        self.sha.update(block)
        return block


def _programs(blob: IO[bytes], layer: Mapping[str, Any], diff_id: str, below: set[str]) -> set[str]:
    """Which programs are there once a layer lies over others; only names are read."""
    stream = _Counted(gzip.GzipFile(fileobj=blob) if layer["mediaType"] == LAYER else blob)
    added: set[str] = set()
    hidden: set[str] = set()
    try:
        with tarfile.open(fileobj=stream, mode="r|") as archive:  # type: ignore[call-overload]
            for name, is_program, hides in _names(archive):
                if hides:
                    hidden.add(name)
                if is_program:
                    added.add(name)
        while stream.read(1 << 20):
            pass
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DesiredStateError(
            f"base layer {layer['digest']}: expected a tar archive, got {error}", reason="BaseDamaged"
        ) from error
    if "sha256:" + stream.sha.hexdigest() != diff_id:
        text = f"base layer {layer['digest']}: expected content {diff_id}, as the base's config says, got other content"
        raise DesiredStateError(text, reason="BaseDamaged")
    return {name for name in below if not any(name == gone or name.startswith(gone + "/") for gone in hidden)} | added


def _names(archive: tarfile.TarFile) -> Iterator[tuple[str, bool, bool]]:
    """(path, whether it is a program that matters, whether nothing of that name below is seen any more)"""
    for member in archive:
        path = posixpath.normpath(posixpath.join("/", member.name)).lstrip("/")
        folder, _, last = path.rpartition("/")
        if last == ".wh..wh..opq":
            yield folder, False, True
        elif last.startswith(".wh."):
            yield posixpath.join(folder, last.removeprefix(".wh.")), False, True
        else:
            is_file = member.isfile() or member.issym() or member.islnk()
            yield path, is_file and _PROGRAM.fullmatch(path) is not None, not member.isdir()
