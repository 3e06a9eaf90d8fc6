"""Zip archives written byte by byte: as they should be, and as nobody's tool would write them. Standard library only."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

DAY = 0x5021
"""1 January 2020 as DOS writes it."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One entry, and what the archive says of it."""

    name: str
    packed: bytes
    size: int
    crc: int
    method: int = 8
    mode: int = 0o100644
    flags: int = 0x800
    local_name: str | None = None
    """What the entry itself says its name is; None: the same as the directory."""
    packed_size: int | None = None
    """What the directory says; None: how it is."""
    shares: int | None = None
    """The number of an entry whose bytes the directory names instead of its own."""


def stored(name: str, data: bytes, *, mode: int = 0o100644, local_name: str | None = None) -> Entry:
    """An entry that is not compressed."""
    return Entry(name=name, packed=data, size=len(data), crc=zlib.crc32(data), method=0, mode=mode, local_name=local_name)


def deflated(name: str, data: bytes, *, level: int = 6) -> Entry:
    """An entry as a tool would compress it."""
    packer = zlib.compressobj(level, zlib.DEFLATED, -15)
    return Entry(name=name, packed=packer.compress(data) + packer.flush(), size=len(data), crc=zlib.crc32(data))


def archive(path: Path, entries: Sequence[Entry], *, before: bytes = b"") -> Path:
    """Write an archive."""
    path.parent.mkdir(parents=True, exist_ok=True)
    out, directory, places = bytearray(before), bytearray(), []
    for item in entries:
        places.append(len(out) if item.shares is None else places[item.shares])
        name, own = item.name.encode(), (item.local_name if item.local_name is not None else item.name).encode()
        said = len(item.packed) if item.packed_size is None else item.packed_size
        facts = struct.pack("<HHHHHIII", 20, item.flags, item.method, 0, DAY, item.crc, said, item.size)
        if item.shares is None:
            out += b"PK\x03\x04" + facts + struct.pack("<HH", len(own), 0) + own + item.packed
        directory += b"PK\x01\x02" + struct.pack("<H", 3 << 8 | 20) + facts
        directory += struct.pack("<HHHHHII", len(name), 0, 0, 0, 0, item.mode << 16, places[-1] - len(before)) + name
    count = len(entries) & 0xFFFF
    end = struct.pack("<HHHHIIH", 0, 0, count, count, len(directory), len(out) - len(before), 0)
    path.write_bytes(bytes(out + directory) + b"PK\x05\x06" + end)
    return path
