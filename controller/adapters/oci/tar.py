"""A tar archive in gzip whose bytes follow from what is put into it alone: nothing is compressed here.

What is given plain goes into stored blocks of DEFLATE, what is given compressed is taken over as it is: a gzip file may
have many members (RFC 1952, 2.2), and one member is one stream of DEFLATE. At most a few hundred kilobytes are held.
"""

from __future__ import annotations

import hashlib
import struct
import tarfile
from collections.abc import Iterable, Iterator
from typing import IO

from controller.adapters.oci.inflating import crc32, inflated
from policies.terms.digest import Digest

EPOCH = 315619200
"""1980-01-02 UTC: zip tools refuse what is older than 1980-01-01 in local time."""
BLOCK_BYTES = 65535
"""What one stored block of DEFLATE holds at the most (RFC 1951, 3.2.4)."""
_MEMBER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
"""No name, no time, no machine."""
_LARGEST = 8**11
"""From that size on a number has another form (POSIX, pax, ustar interchange format)."""
_OWNERS = b"0000000\0" * 2
_TIME = b"%011o\0" % EPOCH + b" " * 8
"""With blanks where the checksum goes."""
_REST = b"ustar\x0000".ljust(255, b"\0")
_WAITING = 1 << 18
"""Hashing and writing many small pieces one by one would take longer than the pieces."""


class TarWriter:
    """Writes one archive.

    Args:
        out: Where it goes; it is thrown away by whoever gave it when anything is raised.
    """

    def __init__(self, out: IO[bytes]) -> None:
        self._out, self._plain, self._packed = out, hashlib.sha256(), hashlib.sha256()
        self._buffer = bytearray()
        self._is_open, self._crc, self._size = False, 0, 0
        self._waiting = bytearray()

    def stored(self, data: bytes) -> None:
        """Plain bytes, which share a member with those before and after them."""
        view = memoryview(data)
        for start in range(0, len(view), BLOCK_BYTES):
            self._buffer += view[start : start + BLOCK_BYTES]
            # A full block waits for the next byte: only then is it known not to be the last one.
            if len(self._buffer) > BLOCK_BYTES:
                self._block(bytes(self._buffer[:BLOCK_BYTES]), is_last=False)
                del self._buffer[:BLOCK_BYTES]

    def copied(self, source: IO[bytes], size: int) -> str:
        """A member of its own for the next `size` bytes, more than 0, of a file; returns the digest of what came."""
        self._close()
        sha, left = hashlib.sha256(), size
        while left and (block := source.read(min(left, BLOCK_BYTES))):
            left -= len(block)
            sha.update(block)
            self._block(block, is_last=not left)
        self._end_member(size)
        return "sha256:" + sha.hexdigest()

    def spliced(self, packed: Iterable[bytes], *, size: int, crc: int) -> None:
        """A member of its own out of a stream of raw DEFLATE, which is unpacked on the way to see what it holds.

        Raises:
            Damaged: It does not hold `size` bytes, more than 0, of that CRC-32, or does not end where it should.
        """
        self._close()
        self._write(_MEMBER)
        for plain in inflated(self._passed(packed), size=size, crc=crc):
            self._plain.update(plain)
        self._write(struct.pack("<II", crc, size & 0xFFFFFFFF))

    def end(self) -> tuple[Digest, str]:
        """Close the archive; (digest of it as it was written, digest of the tar in it)."""
        self.stored(b"\0" * 1024)
        self._close()
        self._flush()
        return Digest("sha256:" + self._packed.hexdigest()), "sha256:" + self._plain.hexdigest()

    def _passed(self, packed: Iterable[bytes]) -> Iterator[bytes]:
        for block in packed:
            self._write(block)
            yield block

    def _close(self) -> None:
        """End the member of plain bytes, if there is one."""
        if self._buffer:
            self._block(bytes(self._buffer), is_last=True)
            self._buffer.clear()
            self._end_member(self._size)

    def _block(self, data: bytes, *, is_last: bool) -> None:
        if not self._is_open:
            self._write(_MEMBER)
            self._is_open, self._crc, self._size = True, 0, 0
        self._crc = crc32(data, self._crc)
        self._size += len(data)
        self._plain.update(data)
        self._write(struct.pack("<BHH", is_last, len(data), len(data) ^ 0xFFFF))
        self._write(data)

    def _end_member(self, size: int) -> None:
        self._write(struct.pack("<II", self._crc, size & 0xFFFFFFFF))
        self._is_open = False

    def _write(self, data: bytes) -> None:
        self._waiting += data
        if len(self._waiting) >= _WAITING:
            self._flush()

    def _flush(self) -> None:
        self._packed.update(self._waiting)
        self._out.write(self._waiting)
        self._waiting.clear()


def header(path: str, size: int, mode: int, kind: bytes = tarfile.REGTYPE, target: str = "") -> bytes:
    """What stands before a file, folder or link: nobody's, and of no day."""
    if path.isascii() and target.isascii() and len(path) <= 100 and len(target) <= 100 and size < _LARGEST:
        # The same bytes as below, several times as quickly: an image has ten thousands of them.
        text = b"%b%07o\0%b%011o\0%b%b%b%b" % (
            path.encode().ljust(100, b"\0"),
            mode,
            _OWNERS,
            size,
            _TIME,
            kind,
            target.encode().ljust(100, b"\0"),
            _REST,
        )
        return b"%b%06o\0%b" % (text[:148], sum(text), text[155:])
    info = tarfile.TarInfo(path)
    info.size, info.mode, info.mtime, info.type, info.linkname = size, mode, EPOCH, kind, target
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def padding(size: int) -> bytes:
    """What stands behind a file's bytes."""
    return b"\0" * (-size % 512)
