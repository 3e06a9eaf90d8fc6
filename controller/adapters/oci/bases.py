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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from controller.adapters.oci.access import Access
from controller.adapters.oci.assembly import PLATFORM, PYTHON, Base, read_memo, write_memo
from controller.adapters.oci.layout import LAYER, Layout
from controller.adapters.oci.on_disk import SCHEME, LayoutOnDisk, Source
from controller.adapters.oci.registry import Registry
from policies.errors import DesiredStateError, OutsideError, RefusedError, SilentError, TrustError
from policies.terms.build import BaseSigner
from policies.terms.digest import Digest, digest_of, is_digest

PLAIN = "application/vnd.oci.image.layer.v1.tar"
LAYERS = {
    LAYER: LAYER,
    PLAIN: PLAIN,
    "application/vnd.docker.image.rootfs.diff.tar.gzip": LAYER,
    "application/vnd.docker.image.rootfs.diff.tar": PLAIN,
}
"""Media types of layers that others may have from us too, as OCI calls them; the bytes are the same under both names."""
REFERENCE = re.compile(
    r"(?P<repository>(?P<host>\[[0-9A-Fa-f:]+\](?::\d+)?|[A-Za-z0-9.-]+(?::\d+)?)/[a-z0-9][a-z0-9._/-]*)"
    r"(?::(?P<tag>\w[\w.-]{0,127}))?(?:@(?P<digest>.+))?"
)
_PROGRAM = re.compile(r"usr/(?:local/)?bin/(?:python3\.\d+|git)")
_LIBRARY = re.compile(r"usr/(?:local/)?lib/(?:[^/]+/)?libpython3\.\d+\.so\.1\.0")
"""What a program that says no version of its own is made of."""
_FORMAT = 2
"""Of what is remembered of a base."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """What a base's registry says of it, and what was found in it."""

    digest: Digest
    config: Mapping[str, Any]
    layers: tuple[Mapping[str, Any], ...]
    diff_ids: tuple[str, ...]
    programs: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    """Program or library -> the version of Python that is written in it."""


class Bases:
    """Opens base images.

    Args:
        layout: Where images that are built on them go.
        folder: What was found in a base; may be deleted.
        access_for: Repository `host[:port]/path` -> how to reach it.
        python: The minor version that a base must have, as wheels are chosen for it.
        sigstore_root: By which identities are known that sign bases, as JSON; empty: that of the public good instance.
        reads_disk: Whether a base may lie in an OCI layout on this machine.
    """

    def __init__(
        self,
        layout: Layout,
        folder: Path,
        access_for: Callable[[str], Access],
        *,
        python: str = PYTHON,
        sigstore_root: str = "",
        reads_disk: bool = False,
    ) -> None:
        self._layout, self._folder, self._access_for, self._python = layout, folder, access_for, python
        self._root, self._reads_disk = sigstore_root, reads_disk
        folder.mkdir(parents=True, exist_ok=True)

    def open(self, reference: str, *, platform: str = PLATFORM, signers: Sequence[BaseSigner] = ()) -> Base:
        """Read a base, see that its layers lie beside the images, and find its Python.

        Args:
            reference: `host[:port]/path@sha256:…`
            platform: What it shall run on, `linux/arm64`.
            signers: One of them must have signed it; empty: its digest is enough.

        Raises:
            DesiredStateError: No reference by digest, an image for another machine, without layers that may be handed on,
                or without the Python that is needed.
            TrustError: A blob is missing or not what its digest says, or none of the signers signed it.
            RefusedError: Its registry said no.
            SilentError: Its registry does not answer.
        """
        repository, digest = self._pinned(reference)
        try:
            return self._open(reference, repository, digest, platform, signers)
        except RefusedError as error:
            is_access = error.reason == "RegistryRefused"
            step = "; give the project's registry secret a right to read it" if is_access else ""
            reason = "BaseRefused" if is_access else error.reason
            raise RefusedError(f"base {reference}: {error.message}{step}", reason=reason) from error
        except SilentError as error:
            raise SilentError(f"base {reference}: {error.message}", reason=error.reason) from error

    def check_signed(self, reference: str, signers: Sequence[BaseSigner]) -> None:
        """See that one of some signers signed an image that is named by digest; no signers: nobody has to.

        Raises:
            DesiredStateError: No reference by digest.
            TrustError: None of them did.
            OutsideError: Its registry said no, or does not answer.
        """
        if signers:
            repository, digest = self._pinned(reference)
            with closing(self._source(repository)) as source:
                self._check_signed(source, reference, digest, signers)

    def _check_signed(self, source: Source, reference: str, digest: Digest, signers: Sequence[BaseSigner]) -> None:
        if signers:
            # Imported late: what checks signatures takes as long to load as a whole build.
            from controller.adapters.attest.base_signers import BaseSigners

            BaseSigners(self._folder, self._root).check(source, reference, digest, signers)

    def _open(self, reference: str, repository: str, digest: Digest, platform: str, signers: Sequence[BaseSigner]) -> Base:
        memo = self._folder / f"base-{digest.removeprefix('sha256:')[:32]}-{platform.partition('/')[2].replace('/', '-')}.json"
        known = read_memo(memo)
        with closing(self._source(repository)) as source:
            self._check_signed(source, reference, digest, signers)
            if known is not None and known.get("format") == _FORMAT:
                read = Read(**{key: known[key] for key in ("digest", "config", "layers", "diff_ids", "programs", "versions")})
                for layer in read.layers:
                    self._bring(layer, source, repository)
            else:
                read = self._searched(read_base(source, reference, digest, platform), source, repository)
                write_memo(memo, {**asdict(read), "format": _FORMAT})
        return Base(
            # Where a folder lies is no fact of its content.
            reference=f"{SCHEME}@{digest}" if repository.startswith(SCHEME) else reference,
            digest=Digest(read.digest),
            config=read.config,
            layers=tuple(read.layers),
            diff_ids=tuple(read.diff_ids),
            programs=tuple(read.programs),
            python=(python := self._interpreter(reference, read.programs)),
            version=self._python,
            exact=_exact(python, self._python, read.versions),
        )

    def _source(self, repository: str) -> Source:
        if repository.startswith(SCHEME):
            return LayoutOnDisk(Path(repository.removeprefix(SCHEME)))
        return Registry(self._access_for(repository))

    def _pinned(self, reference: str) -> tuple[str, Digest]:
        if reference.startswith(SCHEME):
            place, _, named = reference.rpartition("@")
            if not self._reads_disk:
                text = f"base {reference}: expected a registry's image, got a folder of the controller's machine"
                raise DesiredStateError(f"{text}; push it, and write host[:port]/path@sha256:…", reason="BaseNotPinned")
            if not is_digest(named):
                text = f"base {reference}: expected {SCHEME}/folder@sha256:<64 hex>, got another name"
                raise DesiredStateError(f"{text}; its index.json has the digest", reason="BaseNotPinned")
            return place, Digest(named)
        match = REFERENCE.fullmatch(reference)
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
            with closing(self._source(repository)) as source:
                found = source.manifest(tag)
        except (OutsideError, TrustError):
            return ""
        return digest_of(found) if found is not None else ""

    def _searched(self, read: Read, source: Source, repository: str) -> Read:
        """What was read, with its programs and their versions."""
        found: dict[str, str] = {}
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
        programs = tuple(sorted(f"/{path}" for path in found if _PROGRAM.fullmatch(path)))
        return replace(read, programs=programs, versions={f"/{path}": said for path, said in sorted(found.items()) if said})

    def _bring(self, layer: Mapping[str, Any], source: Source, repository: str) -> bool:
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


def read_base(source: Source, reference: str, digest: Digest, platform: str = PLATFORM) -> Read:
    """What a registry says of an image for one kind of machine; no layer is fetched.

    Args:
        source: Its registry.
        reference: What messages call it.
        digest: Of its manifest or index.
        platform: What it shall run on.

    Raises:
        DesiredStateError: It is not there, no image, for another kind of machine, or has layers that may not be handed on.
        OutsideError: The registry said no, or does not answer.
    """
    manifest = _document(source, reference, digest)
    if "manifests" in manifest:
        digest = _of_platform(reference, manifest["manifests"], platform)
        manifest = _document(source, reference, digest)
    if "layers" not in manifest or "config" not in manifest:
        raise DesiredStateError(f"base {reference}: expected an image, got another kind of artifact", reason="BaseNotAnImage")
    layers = tuple(_layer(reference, layer) for layer in manifest["layers"])
    content = io.BytesIO()
    source.fetch_blob(manifest["config"]["digest"], content)
    config = _mapping(reference, content.getvalue())
    kind = f"{config.get('os')}/{config.get('architecture')}"
    if kind != _kind(platform):
        text = f"base {reference}: expected an image for {platform}, got one for {kind}"
        raise DesiredStateError(text, reason="BasePlatform")
    diff_ids = tuple((config.get("rootfs") or {}).get("diff_ids") or ())
    if len(diff_ids) != len(layers):
        text = f"base {reference}: expected {len(layers)} diff ids in its config, got {len(diff_ids)}"
        raise DesiredStateError(text, reason="BaseDamaged")
    return Read(digest=digest, config=config, layers=layers, diff_ids=diff_ids)


def _document(source: Source, reference: str, digest: Digest) -> dict[str, Any]:
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


def _of_platform(reference: str, listed: list[dict[str, Any]], wanted: str) -> Digest:
    platforms = {}
    for item in listed:
        platform = item.get("platform") or {}
        name = f"{platform.get('os')}/{platform.get('architecture')}"
        # arm64 has one variant, v8, which many leave out.
        if name == _kind(wanted) and platform.get("variant") in (None, "", "v8"):
            return Digest(item["digest"])
        platforms[name] = item
    text = f"base {reference}: expected an image for {wanted} in its index, got {', '.join(platforms) or 'none'}"
    raise DesiredStateError(text, reason="BasePlatform")


def _kind(platform: str) -> str:
    """A platform without its variant."""
    return "/".join(platform.split("/")[:2])


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


def _programs(blob: IO[bytes], layer: Mapping[str, Any], diff_id: str, below: Mapping[str, str]) -> dict[str, str]:
    """Which programs and libraries are there once a layer lies over others -> the version that is written in them."""
    stream = _Counted(gzip.GzipFile(fileobj=blob) if layer["mediaType"] == LAYER else blob)
    added: dict[str, str] = {}
    hidden: set[str] = set()
    try:
        with tarfile.open(fileobj=stream, mode="r|") as archive:  # type: ignore[call-overload]
            for name, member, hides in _names(archive):
                if hides:
                    hidden.add(name)
                if member is not None:
                    added[name] = _written(archive.extractfile(member), name) if member.isfile() else ""
        while stream.read(1 << 20):
            pass
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DesiredStateError(
            f"base layer {layer['digest']}: expected a tar archive, got {error}", reason="BaseDamaged"
        ) from error
    if "sha256:" + stream.sha.hexdigest() != diff_id:
        text = f"base layer {layer['digest']}: expected content {diff_id}, as the base's config says, got other content"
        raise DesiredStateError(text, reason="BaseDamaged")
    kept = {name: said for name, said in below.items() if not any(name == gone or name.startswith(gone + "/") for gone in hidden)}
    return kept | added


def _written(file: IO[bytes] | None, name: str) -> str:
    """The version of Python that a program or library says it is; empty: none, or more than one."""
    minor = re.search(r"python(3\.\d+)", name)
    if file is None or minor is None:
        return ""
    # PY_VERSION as the compiler of C writes a text; a linker may let it end a longer one.
    said = re.compile(rb"[^0-9.](" + re.escape(minor[1]).encode() + rb"\.\d{1,3})\+?\0")
    found: set[bytes] = set()
    tail = b""
    while block := file.read(1 << 20):
        found.update(said.findall(tail + block))
        tail = block[-16:]
    return found.pop().decode() if len(found) == 1 else ""


def _exact(python: str, minor: str, versions: Mapping[str, str]) -> str:
    """The version of a program: its own word, or that of the one library beside it."""
    top = python.rsplit("/", 2)[0]
    said = versions.get(python) or {
        version for path, version in versions.items() if path.startswith(f"{top}/lib/") and f"libpython{minor}." in path
    }
    exact = said if isinstance(said, str) else "".join(said) if len(said) == 1 else ""
    return exact if exact.startswith(f"{minor}.") else ""


def _names(archive: tarfile.TarFile) -> Iterator[tuple[str, tarfile.TarInfo | None, bool]]:
    """(path, what it is if it is a program or library that matters, whether nothing of that name below is seen any more)"""
    for member in archive:
        path = posixpath.normpath(posixpath.join("/", member.name)).lstrip("/")
        folder, _, last = path.rpartition("/")
        if last == ".wh..wh..opq":
            yield folder, None, True
        elif last.startswith(".wh."):
            yield posixpath.join(folder, last.removeprefix(".wh.")), None, True
        else:
            is_file = member.isfile() or member.issym() or member.islnk()
            matters = is_file and (_PROGRAM.fullmatch(path) or _LIBRARY.fullmatch(path))
            yield path, member if matters else None, not member.isdir()
