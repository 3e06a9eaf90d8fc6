"""Streams of DEFLATE and checksums: by zlib-ng where there is a wheel of it, which takes half the time, else by zlib.

Both take and refuse the same streams, so which of the two it was is nowhere to be seen. Intel's ISA-L is quicker still, but
takes a few streams that other readers of an image refuse. Nothing that is kept is compressed by either.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from types import ModuleType

_library: ModuleType
try:
    from zlib_ng import zlib_ng
except ImportError:
    _library = zlib
else:
    _library = zlib_ng
_PIECE = 1 << 20


def crc32(data: bytes, value: int = 0) -> int:
    """The CRC-32 of bytes, after what `value` is the CRC-32 of."""
    return int(_library.crc32(data, value))


class Damaged(ValueError):
    """A stream of DEFLATE is not what was said of it."""


def inflated(packed: Iterable[bytes], *, size: int, crc: int) -> Iterator[bytes]:
    """The content of a stream of raw DEFLATE, piece by piece; never more than was said is unpacked.

    Raises:
        Damaged: It does not hold `size` bytes of that CRC-32, or does not end where it should.
    """
    unpacker, left, got = _library.decompressobj(-15), size, 0
    for block in packed:
        rest = block
        while True:
            most = min(left + 1, _PIECE)
            try:
                plain = unpacker.decompress(rest, most)
            except _library.error as error:
                raise Damaged("a damaged stream") from error
            rest, left, got = unpacker.unconsumed_tail, left - len(plain), crc32(plain, got)
            if left < 0:
                raise Damaged(f"more than {size} bytes")
            if plain:
                yield plain
            if len(plain) < most and not rest:
                break
        if unpacker.unused_data:
            raise Damaged("bytes after its end")
    if left or not unpacker.eof:
        raise Damaged(f"{size - left} of {size} bytes" if left else "a stream without an end")
    if got != crc:
        raise Damaged("another checksum")
