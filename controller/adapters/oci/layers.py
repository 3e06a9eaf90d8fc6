"""Layers whose bytes follow from their content alone: no compressor, clock, user or machine has a say."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from controller.adapters.oci.inflating import Damaged, crc32, inflated
from controller.adapters.oci.layout import LAYER, Layout
from controller.adapters.oci.tar import TarWriter, header, padding
from policies.errors import DesiredStateError, TrustError

_BLOCK = 1 << 18
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
    """A file of a layer, given as it lies compressed in a zip archive; read block by block and checked on the way."""

    file: IO[bytes]
    """The archive; one thread at a time reads it."""
    info: zipfile.ZipInfo
    end: int
    """Where in the archive its bytes end at the latest, as something else begins there."""
    executable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Filed:
    """A file of a layer, given as a blob on disk, which is read block by block and checked on the way."""

    path: Path
    digest: str
    size: int
    executable: bool = False


Content = Stored | Zipped | Filed


def lay(
    layout: Layout, files: Mapping[str, Content], links: Mapping[str, str] | None = None, folders: Iterable[str] = ()
) -> Laid:
    """Write a layer.

    Args:
        layout: Where it goes.
        files: Path without leading slash -> content.
        links: Path -> target, of symbolic links.
        folders: Those that are there even when nothing lies in them.

    Raises:
        DesiredStateError: A name that would hide files of other layers, or that is two things at once.
        TrustError: A blob is not what its digest says, or a wheel is damaged.
    """
    links = links or {}
    above = _folders_of(files, links, folders)
    with layout.writing() as out:
        writer = TarWriter(out)
        for path in sorted({*files, *above, *links}, key=lambda text: text.encode("utf-8", "surrogateescape")):
            if path in files:
                _file(writer, path, files[path])
            elif path in above:
                writer.stored(header(path + "/", 0, 0o755, tarfile.DIRTYPE))
            else:
                writer.stored(header(path, 0, 0o777, tarfile.SYMTYPE, links[path]))
        digest, diff_id = writer.end()
        layout.adopt(out, digest)
    return Laid(descriptor=layout.descriptor(digest, LAYER), diff_id=diff_id)


def plain_of(path: str, item: Content) -> Iterator[bytes]:
    """A file's bytes, piece by piece.

    Raises:
        TrustError: They are not those that were named.
    """
    if isinstance(item, Stored):
        yield item.data
    elif isinstance(item, Filed):
        with item.path.open("rb") as source:
            while block := source.read(_BLOCK):
                yield block
    elif item.info.file_size:
        packed = _packed(path, item)
        pieces = inflated(packed, **_said(item)) if _is_deflated(item) else _same(packed, item)
        yield from _checked(path, item, pieces)


def size_of(item: Content) -> int:
    """How many bytes a file has."""
    if isinstance(item, Stored):
        return len(item.data)
    return item.size if isinstance(item, Filed) else item.info.file_size


def parents(path: str) -> Iterator[str]:
    """The folders that a path lies in, from the innermost."""
    while "/" in path:
        path = path.rsplit("/", 1)[0]
        yield path


def _folders_of(files: Mapping[str, Content], links: Mapping[str, str], folders: Iterable[str]) -> set[str]:
    above = set(folders)
    for path in (*files, *links, *above):
        for parent in parents(path):
            if parent in above:
                break
            above.add(parent)
    for path in (*files, *links):
        if _HIDES in path and any(part.startswith(_HIDES) for part in path.split("/")):
            text = f"{path}: expected a name that does not begin with {_HIDES}, it would hide a file of another layer"
            raise DesiredStateError(f"{text}; rename it", reason="OddFile")
        if path in above or (path in files and path in links):
            kind = "a folder" if path in above else "a link"
            raise DesiredStateError(f"{path}: expected one thing of that name, got a file and {kind}", reason="OddFile")
    return above


def _file(writer: TarWriter, path: str, item: Content) -> None:
    size = size_of(item)
    writer.stored(header(path, size, 0o755 if item.executable else 0o644))
    if not size:
        return
    if isinstance(item, Filed):
        with item.path.open("rb") as source:
            got = writer.copied(source, size)
        if got != item.digest:
            raise TrustError(f"{path}: expected the bytes of {item.digest}, got {got}", reason="BlobChanged")
    elif isinstance(item, Zipped) and _is_deflated(item):
        try:
            writer.spliced(_packed(path, item), **_said(item))
        except Damaged as error:
            raise _damaged(path, item, error) from error
    else:
        for block in plain_of(path, item):
            writer.stored(block)
    writer.stored(padding(size))


def _is_deflated(item: Zipped) -> bool:
    return item.info.compress_type == zipfile.ZIP_DEFLATED


def _said(item: Zipped) -> dict[str, int]:
    return {"size": item.info.file_size, "crc": item.info.CRC}


def _packed(path: str, item: Zipped) -> Iterator[bytes]:
    """The bytes of an entry as they lie in the archive.

    Source:
        PKWARE, APPNOTE.TXT, 4.3.7: the local file header.
    """
    info, file = item.info, item.file
    file.seek(info.header_offset)
    head = file.read(30)
    name_bytes, extra_bytes = int.from_bytes(head[26:28], "little"), int.from_bytes(head[28:30], "little")
    name = file.read(name_bytes).decode("utf-8" if info.flag_bits & 0x800 else "cp437", "replace")
    begin = info.header_offset + 30 + name_bytes + extra_bytes
    # Whoever reads entries one after the other would see other files than whoever reads the directory.
    if head[:4] != b"PK\x03\x04" or name != info.orig_filename or begin + info.compress_size > item.end:
        raise _damaged(path, item, "an entry that its directory does not describe")
    file.seek(begin)
    left = info.compress_size
    while left and (block := file.read(min(left, _BLOCK))):
        left -= len(block)
        yield block
    if left:
        raise _damaged(path, item, "fewer")


def _same(packed: Iterable[bytes], item: Zipped) -> Iterator[bytes]:
    """The bytes of an entry that is not compressed."""
    size = crc = 0
    for block in packed:
        size, crc = size + len(block), crc32(block, crc)
        yield block
    if (size, crc) != (item.info.file_size, item.info.CRC):
        raise Damaged("another size or checksum")


def _checked(path: str, item: Zipped, pieces: Iterable[bytes]) -> Iterator[bytes]:
    try:
        yield from pieces
    except Damaged as error:
        raise _damaged(path, item, error) from error


def _damaged(path: str, item: Zipped, got: object) -> TrustError:
    name = Path(item.file.name).name
    return TrustError(
        f"{name}: {path}: expected the wheel's bytes, got damaged ones: {got}; fetch it again", reason="DamagedWheel"
    )
