"""Mark and sweep: what nothing names any more leaves the store, and a bounded cache loses what was not used for longest.

Laws: nothing goes that is named, that a named manifest needs, that refers to one, or that was used lately. Whoever dies
anywhere here leaves a whole store: names go first, then manifests and blobs together, and what is on its way out is not in
the store any more. Nobody who writes beside a sweep loses anything: what is relied on is noted under the same lock.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from controller.adapters.oci.composed import IMAGE, parts_of
from controller.adapters.oci.layout import REF_NAME, Layout, disk_error
from policies.errors import TrustError
from policies.terms.digest import Digest, digest_of, is_digest

GRACE_SECONDS = 86400.0
"""What was used this lately stays: a build or a push may need it that has not named it yet."""
SHORTEST_GRACE_SECONDS = 3600.0
"""Uses are noted once in ten minutes, and a build may take half an hour."""
LARGEST_MANIFEST_BYTES = 8 << 20
SMALLEST_EVICTED_BYTES = 64 << 10
"""What is smaller stays in a cache: it takes a request to have it again, and hardly any room."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """Something that goes, or would."""

    name: str
    """What it was called; empty for a blob that no manifest names."""
    digest: str
    size_bytes: int
    why: str

    def value(self) -> dict[str, Any]:
        """As the contract has it."""
        return {"name": self.name, "digest": self.digest, "sizeBytes": self.size_bytes, "why": self.why}


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """What a sweep came to."""

    removed: tuple[Removed, ...] = ()
    kept: int = 0
    """How many blobs stay."""
    refused: str = ""
    """Why a registry let nothing be removed; empty where it did."""

    @property
    def freed_bytes(self) -> int:
        """How much room that makes."""
        return sum(item.size_bytes for item in self.removed)


def sweep(layout: Layout, named: Collection[str], *, grace_seconds: float = GRACE_SECONDS, dry_run: bool = False) -> Swept:
    """Remove from a folder what nothing names, and was not used lately.

    Args:
        layout: The folder; a registry behind it is left alone.
        named: Digests of images and artifacts that must stay.
        grace_seconds: What was used this lately stays; at least an hour counts.
        dry_run: Only tell what would go.

    Raises:
        TrustError: A named manifest is damaged, so what it needs is not known; nothing goes.
        SilentError: The disk failed us.
    """
    try:
        with layout.using(alone=True):
            look = _Look(layout, named, max(grace_seconds, SHORTEST_GRACE_SECONDS))
            removed = tuple(look.removed())
            if not dry_run and removed:
                layout.unlist({item.name for item in removed if item.name})
                folder = Path(tempfile.mkdtemp(dir=layout.root, prefix="gone-"))
                for digest in look.condemned:
                    os.rename(layout.place(digest), folder / layout.place(digest).name)
                    layout.mark(digest).unlink(missing_ok=True)
            for torn in look.torn() if not dry_run else ():
                torn.unlink(missing_ok=True)
            gone = list(layout.root.glob("gone-*")) if not dry_run else []
        # Outside of the lock: this is what takes long. With it goes what somebody left who died here.
        for folder in gone:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise disk_error(layout.root, error) from error
    return Swept(removed=removed, kept=len(look.sizes) - len(look.condemned))


def evict(
    layout: Layout, most_bytes: int, *, is_elsewhere: Callable[[str], bool], unused_seconds: float = SHORTEST_GRACE_SECONDS
) -> Swept:
    """Bring a cache below its bound: what was not used for longest goes first, and nothing that is not elsewhere too.

    Args:
        layout: The folder in front of a registry.
        most_bytes: How big it may be.
        is_elsewhere: Whether the registry has a blob.
        unused_seconds: What was used this lately stays, whatever the bound: somebody may be reading it.

    Raises:
        OutsideError: The registry said no or nothing, or the disk failed us; what went is in the registry.
    """
    try:
        sizes = _blobs(layout)
        left, newest = sum(size for size, _ in sizes.values()), _now(layout) - int(max(unused_seconds, 0.0) * 1e9)
        removed = []
        for digest, (size, used_ns) in sorted(sizes.items(), key=lambda item: item[1][1]):
            if left <= most_bytes or used_ns > newest:
                break
            if size < SMALLEST_EVICTED_BYTES or not is_elsewhere(digest):
                continue
            with layout.using(alone=True):
                if _used_ns(layout, digest) > newest:
                    continue
                layout.place(digest).unlink(missing_ok=True)
                layout.mark(digest).unlink(missing_ok=True)
            left -= size
            removed.append(Removed(name="", digest=digest, size_bytes=size, why="not used for longest; the registry has it"))
    except OSError as error:
        raise disk_error(layout.root, error) from error
    return Swept(removed=tuple(removed), kept=len(sizes) - len(removed))


@dataclass(slots=True)
class _Manifest:
    """What a manifest needs, and whom it refers to."""

    needs: tuple[str, ...] = ()
    children: tuple[str, ...] = ()
    subject: str = ""
    parts: tuple[str, ...] = ()
    """Of a composed image: the image and the artifacts that it is made of."""


@dataclass(slots=True)
class _Look:
    """One look at a folder, while nobody writes: what of it lives, and what is condemned."""

    layout: Layout
    named: Collection[str]
    grace_seconds: float
    sizes: dict[str, tuple[int, int]] = field(init=False)
    condemned: list[str] = field(init=False)
    _entries: list[Mapping[str, Any]] = field(init=False)
    _live: set[str] = field(init=False)
    _cutoff: int = field(init=False)
    _read: dict[str, _Manifest | None] = field(init=False)

    def __post_init__(self) -> None:
        self.sizes, self._read = _blobs(self.layout), {}
        self._cutoff = _now(self.layout) - int(self.grace_seconds * 1e9)
        self._entries = [item for item in self.layout.listed() if is_digest(str(item.get("digest")))]
        self._live = set()
        for digest in self.named:
            if digest in self.sizes:
                if self._manifest(digest) is None:
                    text = f"manifest {digest}: expected one that can be read, as something names it; nothing is removed"
                    raise TrustError(text, reason="BlobChanged")
                self._mark(digest)
        for digest in self._young():
            self._mark(digest)
        self._mark_listed()
        self.condemned = sorted(item for item in self.sizes if item not in self._live and not self._is_young(item))

    def removed(self) -> Iterator[Removed]:
        """What goes: first what has a name, with all that goes with it, then what has none."""
        told: set[str] = set()
        going = set(self.condemned)
        for item in self._entries:
            if item["digest"] in self._live:
                continue
            manifest = self._manifest(item["digest"]) or _Manifest()
            with_it = {item["digest"], *manifest.needs, *manifest.children} & going - told
            told |= with_it
            size = sum(self.sizes[digest][0] for digest in with_it)
            yield Removed(name=str(item["annotations"][REF_NAME]), digest=item["digest"], size_bytes=size, why=_why(manifest))
        for digest in self.condemned:
            if digest not in told:
                yield Removed(name="", digest=digest, size_bytes=self.sizes[digest][0], why="no manifest names it")

    def torn(self) -> list[Path]:
        """Temporary files that somebody left behind, and notes on what is not here."""
        found = [*self.layout.root.glob("new-*"), *(self.layout.root / "blobs" / "sha256").glob("new-*")]
        found += [path for path in (self.layout.root / "used").glob("*") if f"sha256:{path.name}" not in self.sizes]
        return [path for path in found if _is_older(path, self._cutoff)]

    def _is_young(self, digest: str) -> bool:
        return digest in self.sizes and self.sizes[digest][1] > self._cutoff

    def _young(self) -> list[str]:
        """Manifests that were used lately: what they need is used too, though nobody may have said so of each blob."""
        young = [digest for digest in self.sizes if self._is_young(digest)]
        listed = {item["digest"] for item in self._entries}
        return [digest for digest in young if digest in listed or self._manifest(digest) is not None]

    def _mark(self, digest: str) -> None:
        waiting = [digest]
        while waiting:
            found = waiting.pop()
            if found in self._live:
                continue
            self._live.add(found)
            manifest = self._manifest(found)
            if manifest is not None:
                self._live.update(manifest.needs)
                waiting += manifest.children

    def _mark_listed(self) -> None:
        """What refers to something that lives lives too, and so does what is composed of it."""
        is_more = True
        while is_more:
            is_more = False
            for item in self._entries:
                if item["digest"] in self._live:
                    continue
                manifest = self._manifest(item["digest"])
                subject = str(item.get("subject") or (manifest.subject if manifest else ""))
                parts = manifest.parts if manifest is not None else ()
                if (subject and subject in self._live) or (parts and all(part in self.named for part in parts)):
                    self._mark(item["digest"])
                    is_more = True

    def _manifest(self, digest: str) -> _Manifest | None:
        """A manifest as it lies here; None: it is none, or cannot be read."""
        if digest not in self._read:
            self._read[digest] = self._opened(digest)
        return self._read[digest]

    def _opened(self, digest: str) -> _Manifest | None:
        if self.sizes.get(digest, (LARGEST_MANIFEST_BYTES, 0))[0] >= LARGEST_MANIFEST_BYTES:
            return None
        try:
            with self.layout.place(digest).open("rb") as file:
                data = file.read() if (begin := file.read(1)) == b"{" else b""
            # What was changed says nothing: what it needed may be something else.
            return manifest_of(json.loads(begin + data)) if data and digest_of(begin + data) == digest else None
        except (OSError, ValueError, RecursionError):
            return None


def manifest_of(value: Any) -> _Manifest | None:
    """What a manifest needs; None: it is none."""
    try:
        if not isinstance(value, dict) or not ("layers" in value or "manifests" in value):
            return None
        needs = [*([value["config"]] if "config" in value else []), *value.get("layers", ())]
        notes = value.get("annotations") or {}
        return _Manifest(
            needs=tuple(str(item["digest"]) for item in needs),
            children=tuple(str(item["digest"]) for item in value.get("manifests", ())),
            subject=str((value.get("subject") or {}).get("digest", "")),
            parts=parts_of(notes) if IMAGE in notes else (),
        )
    except (KeyError, TypeError, AttributeError):
        return None


def _why(manifest: _Manifest) -> str:
    if manifest.parts:
        return "what it is composed of is not in use any more"
    return "what it is about goes too" if manifest.subject else "nothing names it"


def _blobs(layout: Layout) -> dict[str, tuple[int, int]]:
    """Digest -> size, and when it was used last by the disk's clock."""
    found = {}
    marks = {}
    used = layout.root / "used"
    if used.is_dir():
        with os.scandir(used) as entries:
            marks = {entry.name: entry.stat().st_mtime_ns for entry in entries}
    with os.scandir(layout.root / "blobs" / "sha256") as entries:
        for entry in entries:
            if is_digest(f"sha256:{entry.name}"):
                status = entry.stat()
                found[f"sha256:{entry.name}"] = (status.st_size, max(status.st_mtime_ns, marks.get(entry.name, 0)))
    return found


def used_lately(layout: Layout, digest: str, seconds: float) -> bool:
    """Whether a blob or manifest that lies here was used in the last so many seconds."""
    return _used_ns(layout, digest) > _now(layout) - int(seconds * 1e9)


def _used_ns(layout: Layout, digest: str) -> int:
    times = [path.stat().st_mtime_ns for path in (layout.place(Digest(digest)), layout.mark(digest)) if path.exists()]
    return max(times, default=0)


def _is_older(path: Path, cutoff_ns: int) -> bool:
    try:
        return path.stat().st_mtime_ns <= cutoff_ns
    except FileNotFoundError:
        return False  # whoever wrote it is done with it


def _now(layout: Layout) -> int:
    """Now, by the disk's clock, which the times of blobs are of."""
    probe = layout.root / ".sweep"
    probe.touch()
    return probe.stat().st_mtime_ns
