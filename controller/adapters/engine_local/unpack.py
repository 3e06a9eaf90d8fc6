"""Layers of an image -> a folder: checked by their content, and nothing of them lands outside of it."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import stat
import tarfile
from pathlib import Path
from typing import IO

from policies.errors import TrustError

LONGEST_CHAIN = 40
"""Of symbolic links that lead to links, as Linux has it."""
_HIDES, _HIDES_ALL = ".wh.", ".wh..wh..opq"


class _Hashing:
    def __init__(self, source: IO[bytes]) -> None:
        self._source, self.sha = source, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        block = self._source.read(size)
        self.sha.update(block)
        return block


def unpack(blob: Path, diff_id: str, root: Path) -> None:
    """Lay one layer over a root.

    Raises:
        TrustError: Its content is not what the image's config says, or a name of it leads out of the root.
    """
    with blob.open("rb") as file:
        is_packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        with gzip.open(file) if is_packed else file as plain:
            source = _Hashing(plain)  # type: ignore[arg-type]
            try:
                with tarfile.open(fileobj=source, mode="r|") as archive:  # type: ignore[call-overload]
                    for member in archive:
                        _lay(archive, member, root)
            except (tarfile.TarError, EOFError, gzip.BadGzipFile) as error:
                raise TrustError(
                    f"layer {blob.name}: expected a whole archive, got another: {error}", reason="BlobChanged"
                ) from error
            while source.read(1 << 20):
                pass
    got = "sha256:" + source.sha.hexdigest()
    if got != diff_id:
        raise TrustError(f"layer {blob.name}: expected content {diff_id}, got {got}", reason="BlobChanged")


def _lay(archive: tarfile.TarFile, member: tarfile.TarInfo, root: Path) -> None:
    name = member.name.rstrip("/")
    if name in ("", "."):
        return
    target = _place(root, name)
    _make_folder(target.parent, root)
    if target.name == _HIDES_ALL:
        for path in target.parent.iterdir():
            _remove(path)
    elif target.name.startswith(_HIDES):
        _remove(target.with_name(target.name.removeprefix(_HIDES)))
    elif member.isdir():
        if target.is_symlink() or not target.is_dir():
            _remove(target)
            target.mkdir()
    elif member.issym():
        _remove(target)
        target.symlink_to(member.linkname)
    elif member.islnk():
        source = _place(root, member.linkname)
        _remove(target)
        os.link(source, target, follow_symlinks=False)
    elif member.isfile():
        content = archive.extractfile(member)
        assert content is not None
        _remove(target)
        with target.open("wb") as file:
            shutil.copyfileobj(content, file, 1 << 20)
        # Never a bit that lends somebody's powers.
        target.chmod(0o755 if member.mode & 0o111 else 0o644)
    elif not (member.ischr() or member.isblk() or member.isfifo()):
        raise TrustError(f"layer: expected files, folders and links, got something else at {name!r}", reason="UnsafeLayer")


def _place(root: Path, name: str) -> Path:
    """Where a name lies: links on the way lead as they will for whoever has this folder as root, so never out of it."""
    waiting = name.split("/")
    if name.startswith("/") or ".." in waiting:
        raise TrustError(f"layer: expected names inside of the image, got {name!r}", reason="UnsafeLayer")
    found: list[str] = []
    followed = 0
    *waiting, last = [part for part in waiting if part not in ("", ".")]
    while waiting:
        part = waiting.pop(0)
        if part in ("", "."):
            continue
        if part == "..":
            found = found[:-1]
            continue
        path = root.joinpath(*found, part)
        if path.is_symlink():
            followed += 1
            target = os.readlink(path)
            if followed > LONGEST_CHAIN:
                raise TrustError(f"layer: expected links that lead somewhere, got a circle at {name!r}", reason="UnsafeLayer")
            found = [] if target.startswith("/") else found
            waiting = [*target.split("/"), *waiting]
        else:
            found.append(part)
    return root.joinpath(*found, last)


def _make_folder(folder: Path, root: Path) -> None:
    for path in reversed([folder, *folder.parents]):
        if path.is_relative_to(root) and path != root and not path.is_dir():
            _remove(path)
            path.mkdir()


def _remove(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except OSError:
        return
    if stat.S_ISDIR(mode):
        shutil.rmtree(path)
    else:
        path.unlink()
