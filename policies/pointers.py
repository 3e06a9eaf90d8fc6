"""Pointers to data that is not in Git itself: Git LFS and DVC. They name content by digest, so deciding needs no content.

Nothing is fetched here, and a pointer that cannot be read is none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

LARGEST_POINTER_BYTES = 4096
LARGEST_LFS_BYTES = 1024
"""Git LFS takes nothing larger for a pointer."""
SHOWN = 3
_LFS = re.compile(
    rb"version https://git-lfs\.github\.com/spec/v1\n(ext-\d[^\n]*\n)*oid sha256:([0-9a-f]{64})\nsize (\d{1,18})\n?\Z"
)
_DIGESTS = {"md5": re.compile(r"[0-9a-f]{32}(\.dir)?"), "sha256": re.compile(r"[0-9a-f]{64}(\.dir)?")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pointer:
    """What a pointer says of its content."""

    kind: Literal["lfs", "dvc"]
    algorithm: str
    """`sha256` or `md5`."""
    digest: str
    """Hexadecimal; of DVC's folders with `.dir` at the end."""
    size_bytes: int | None = None
    is_extended: bool = False
    """Whether a program of the user's makes the file out of the content that Git LFS has."""
    path: str = ""
    """Where DVC puts the content, beside the pointer; empty for Git LFS, which puts it in the pointer's own place."""

    @property
    def identity(self) -> str:
        """`sha256:…` or `md5:…`: equal for equal content."""
        return f"{self.algorithm}:{self.digest}"


def pointer_of(text: bytes) -> Pointer | None:
    """The Git LFS pointer that a file's content is; None when it is content.

    Source:
        Git LFS, Specification, "The Pointer", version 1.
    """
    if len(text) > LARGEST_LFS_BYTES:
        return None
    found = _LFS.match(text)
    if found is None:
        return None
    return Pointer(
        kind="lfs", algorithm="sha256", digest=found[2].decode(), size_bytes=int(found[3]), is_extended=found[1] is not None
    )


def pointers_of_dvc(value: Any) -> tuple[Pointer, ...]:
    """What a `.dvc` file points to, from its content as YAML; nothing where it says nothing that can be read.

    Source:
        DVC, "`.dvc` Files": `outs[]` with `path`, one of `md5` and other hashes, `size`.
    """
    outs = value.get("outs") if isinstance(value, dict) else None
    found = []
    for out in outs if isinstance(outs, list) else []:
        if not isinstance(out, dict) or not isinstance(out.get("path"), str):
            continue
        for algorithm, pattern in _DIGESTS.items():
            digest = out.get(algorithm)
            if isinstance(digest, str) and pattern.fullmatch(digest):
                size = out.get("size")
                size = size if isinstance(size, int) and not isinstance(size, bool) and size >= 0 else None
                found.append(Pointer(kind="dvc", algorithm=algorithm, digest=digest, size_bytes=size, path=out["path"]))
                break
    return tuple(found)


def why_not_built_from(found: Sequence[tuple[str, Pointer]]) -> str:
    """Why a folder with pointers in the place of content is not built from, in one line.

    Args:
        found: Path and pointer, at least one.
    """
    named = "; ".join(
        f"{path}: expected its content, got a Git LFS pointer to {pointer.identity} ({pointer.size_bytes} bytes)"
        for path, pointer in found[:SHOWN]
    )
    more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return f"{named}{more}; nothing is fetched from Git LFS here: keep what an image is built from in Git (`git lfs untrack`)"
