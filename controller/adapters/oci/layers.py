"""Layers whose bytes follow from their content alone: no compressor, clock, user or machine has a say.

A wheel is a zip of raw DEFLATE streams and a gzip file may have many members (RFC 1952), so a layer of wheels is
made of the wheels' own compressed bytes between stored blocks that hold the tar headers. Nothing is compressed here.
"""

from __future__ import annotations

import hashlib
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from controller.adapters.oci.layout import LAYER, Layout
from policies.errors import DesiredStateError, TrustError
from policies.terms.digest import Digest

EPOCH = 315619200
"""1980-01-02 UTC: zip tools refuse what is older than 1980-01-01 in local time."""
BIG_WHEEL_BYTES = 512 * 1024
LARGEST_FILE_BYTES = 2 << 30
_MEMBER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
_BLOCK = 65535
"""What one stored block of DEFLATE holds at the most (RFC 1951, 3.2.4)."""
_HIDES = ".wh."
"""A file of such a name would hide another one of a lower layer (OCI image spec, whiteouts)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Laid:
    """A layer in the store."""

    descriptor: Mapping[str, Any]
    diff_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A file of a layer, given as bytes."""

    data: bytes
    executable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Zipped:
    """A file of a layer, given as it lies compressed in a wheel."""

    file: IO[bytes]
    info: zipfile.ZipInfo
    executable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Filed:
    """A file of a layer, given as a blob on disk, which is read block by block and checked on the way."""

    path: Path
    digest: str
    size: int
    executable: bool = False


class _Writer:
    def __init__(self, out: IO[bytes]) -> None:
        self._out, self._plain, self._packed = out, hashlib.sha256(), hashlib.sha256()
        self._pending: list[bytes] = []

    def stored(self, data: bytes) -> None:
        self._pending.append(data)

    def member(self, packed: bytes, plain: bytes, crc: int) -> None:
        self.flush()
        self._plain.update(plain)
        self._write(_MEMBER + packed + struct.pack("<II", crc, len(plain) & 0xFFFFFFFF))

    def streamed(self, source: IO[bytes], size: int) -> str:
        """A member of its own for the next `size` bytes, more than 0, of a file; returns the digest of what came."""
        self.flush()
        sha, crc, left = hashlib.sha256(), 0, size
        self._write(_MEMBER)
        while left and (block := source.read(min(left, _BLOCK))):
            left -= len(block)
            crc = zlib.crc32(block, crc)
            sha.update(block)
            self._plain.update(block)
            self._write(struct.pack("<BHH", not left, len(block), len(block) ^ 0xFFFF) + block)
        self._write(struct.pack("<II", crc, size & 0xFFFFFFFF))
        return "sha256:" + sha.hexdigest()

    def flush(self) -> None:
        data = b"".join(self._pending)
        self._pending = []
        if not data:
            return
        self._plain.update(data)
        parts = [_MEMBER]
        for start in range(0, len(data), _BLOCK):
            block = data[start : start + _BLOCK]
            is_last = start + _BLOCK >= len(data)
            parts += [struct.pack("<BHH", is_last, len(block), len(block) ^ 0xFFFF), block]
        parts.append(struct.pack("<II", zlib.crc32(data), len(data) & 0xFFFFFFFF))
        self._write(b"".join(parts))

    def end(self) -> tuple[Digest, str]:
        self.stored(b"\0" * 1024)
        self.flush()
        return Digest("sha256:" + self._packed.hexdigest()), "sha256:" + self._plain.hexdigest()

    def _write(self, data: bytes) -> None:
        self._packed.update(data)
        self._out.write(data)


def lay(
    layout: Layout,
    files: Mapping[str, Stored | Zipped | Filed],
    links: Mapping[str, str] | None = None,
    folders: Iterable[str] = (),
) -> Laid:
    """Write a layer.

    Args:
        layout: Where it goes.
        files: Path without leading slash -> content.
        links: Path -> target, of symbolic links.
        folders: Those that are there even when nothing lies in them.

    Raises:
        DesiredStateError: A name that would hide files of other layers.
        TrustError: A blob is not what its digest says, or a wheel is damaged.
    """
    links = links or {}
    hiding = [path for path in (*files, *links) if any(part.startswith(_HIDES) for part in path.split("/"))]
    if hiding:
        text = f"{hiding[0]}: expected a name that does not begin with {_HIDES}, it would hide a file of another layer"
        raise DesiredStateError(f"{text}; rename it", reason="OddFile")
    with layout.writing() as out:
        writer = _Writer(out)
        above = {*folders, *(parent for path in (*files, *links, *folders) for parent in _parents(path))}
        for path in sorted({*files, *above, *links}, key=lambda text: text.encode("utf-8", "surrogateescape")):
            if path in files:
                _file(writer, path, files[path])
            elif path in above:
                writer.stored(_header(path + "/", 0, 0o755, tarfile.DIRTYPE))
            else:
                writer.stored(_header(path, 0, 0o777, tarfile.SYMTYPE, links[path]))
        digest, diff_id = writer.end()
        layout.adopt(out, digest)
    return Laid(descriptor=layout.descriptor(digest, LAYER), diff_id=diff_id)


def lay_wheels(layout: Layout, wheels: Sequence[Path], site: str) -> Laid:
    """Write a layer of unpacked wheels.

    Raises:
        DesiredStateError: An unsafe name, an encrypted or damaged entry, two wheels with the same file but other bytes.
    """
    opened = [zipfile.ZipFile(path) for path in wheels]
    try:
        files: dict[str, Stored | Zipped | Filed] = {}
        for archive, path in zip(opened, wheels, strict=True):
            for target, item in _entries(archive, path, site):
                if target in files and not _is_same(files[target], item):
                    raise DesiredStateError(
                        f"{path.name}: {target} comes from another wheel too, with other bytes", reason="WheelsCollide"
                    )
                files[target] = item
        return lay(layout, files)
    finally:
        for archive in opened:
            archive.close()


def _entries(archive: zipfile.ZipFile, path: Path, site: str) -> Iterable[tuple[str, Stored | Zipped]]:
    assert archive.fp is not None
    for info in archive.infolist():
        name = info.filename
        if name.endswith("/"):
            continue
        if name.startswith("/") or ".." in name.split("/") or "\\" in name or "\0" in name:
            raise DesiredStateError(f"{path.name}: expected names inside of the wheel, got {name!r}", reason="UnsafeWheel")
        if info.flag_bits & 1 or info.compress_type not in (0, 8) or info.file_size > LARGEST_FILE_BYTES:
            raise DesiredStateError(f"{path.name}: {name}: expected a plain entry of at most 2 GiB", reason="UnsafeWheel")
        executable = bool((info.external_attr >> 16) & 0o111)
        top, _, rest = name.partition("/")
        if top.endswith(".data"):
            kind, _, rest = rest.partition("/")
            if kind == "scripts":
                yield f"opt/venv/bin/{rest}", Stored(data=_script(archive.read(info)), executable=True)
                continue
            place = {"purelib": site, "platlib": site, "headers": "opt/venv/include", "data": "opt/venv"}.get(kind, site)
            yield f"{place}/{rest}", Zipped(file=archive.fp, info=info, executable=executable)
            continue
        yield f"{site}/{name}", Zipped(file=archive.fp, info=info, executable=executable)


def _script(data: bytes) -> bytes:
    if data.startswith(b"#!python"):
        return b"#!/opt/venv/bin/python" + data[data.index(b"\n") :]
    return data


def _is_same(one: Stored | Zipped | Filed, other: Stored | Zipped | Filed) -> bool:
    if isinstance(one, Zipped) and isinstance(other, Zipped):
        return (one.info.CRC, one.info.file_size) == (other.info.CRC, other.info.file_size)
    return isinstance(one, Stored) and isinstance(other, Stored) and one.data == other.data


def _file(writer: _Writer, path: str, item: Stored | Zipped | Filed) -> None:
    mode = 0o755 if item.executable else 0o644
    if isinstance(item, Stored):
        writer.stored(_header(path, len(item.data), mode) + item.data + _padding(len(item.data)))
        return
    if isinstance(item, Filed):
        _filed(writer, path, item, mode)
        return
    size = item.info.file_size
    writer.stored(_header(path, size, mode))
    if not size:
        return
    packed = _raw(item)
    if item.info.compress_type == zipfile.ZIP_DEFLATED:
        unpacker = zlib.decompressobj(-15)
        try:
            plain = unpacker.decompress(packed, size + 1)
        except zlib.error as error:
            raise TrustError(f"{path}: expected the wheel's bytes, got damaged ones", reason="DamagedWheel") from error
        if len(plain) != size or zlib.crc32(plain) != item.info.CRC:
            raise TrustError(f"{path}: expected {size} bytes with the wheel's checksum, got others", reason="DamagedWheel")
        writer.member(packed, plain, item.info.CRC)
    else:
        if zlib.crc32(packed) != item.info.CRC:
            raise TrustError(f"{path}: expected bytes with the wheel's checksum, got others", reason="DamagedWheel")
        writer.stored(packed)
    writer.stored(_padding(size))


def _filed(writer: _Writer, path: str, item: Filed, mode: int) -> None:
    writer.stored(_header(path, item.size, mode))
    if not item.size:
        return
    with item.path.open("rb") as source:
        got = writer.streamed(source, item.size)
    if got != item.digest:
        raise TrustError(f"{path}: expected the bytes of {item.digest}, got {got}", reason="BlobChanged")
    writer.stored(_padding(item.size))


def _raw(item: Zipped) -> bytes:
    item.file.seek(item.info.header_offset + 26)
    name, extra = struct.unpack("<HH", item.file.read(4))
    item.file.seek(item.info.header_offset + 30 + name + extra)
    return item.file.read(item.info.compress_size)


def _header(path: str, size: int, mode: int, kind: bytes = tarfile.REGTYPE, target: str = "") -> bytes:
    info = tarfile.TarInfo(path)
    info.size, info.mode, info.mtime, info.type, info.linkname = size, mode, EPOCH, kind, target
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _padding(size: int) -> bytes:
    return b"\0" * (-size % 512)


def _parents(path: str) -> Iterable[str]:
    while "/" in path:
        path = path.rsplit("/", 1)[0]
        yield path
