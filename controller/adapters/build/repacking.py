"""A wheel that was built here, packed so that its bytes follow from its files alone: no date, umask, order or compressor shows.

Nothing is compressed, as compressors differ; the layer that such a wheel goes into is the same everywhere.
"""

from __future__ import annotations

import shutil
import zipfile
import zlib
from pathlib import Path

from policies.errors import DesiredStateError

DATE = (1980, 1, 2, 0, 0, 0)
"""A day after the first that zip knows: some programs read it in their own time zone."""
_CHUNK = 1 << 20
_UNIX = 3
_FILE, _EXECUTABLE = 0o100644 << 16, 0o100755 << 16
_OWNER_RUNS = 0o100 << 16


def repack(wheel: Path, target: Path) -> None:
    """Write a wheel anew. It was checked before: its names are distinct and lead nowhere else.

    Raises:
        DesiredStateError: Its content is not what its directory says.
    """
    try:
        with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as out:
            for entry in sorted(source.infolist(), key=lambda item: item.filename.encode()):
                if entry.is_dir():
                    continue
                info = zipfile.ZipInfo(entry.filename, DATE)
                info.create_system = _UNIX
                info.external_attr = _EXECUTABLE if entry.external_attr & _OWNER_RUNS else _FILE
                info.file_size = entry.file_size
                with source.open(entry) as read, out.open(info, "w") as written:
                    shutil.copyfileobj(read, written, _CHUNK)
    except (zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise DesiredStateError(f"wheel {wheel.name}: expected a whole zip, got: {error}", reason="UnsafeWheel") from error
