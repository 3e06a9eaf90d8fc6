"""Two images of one build, compared entry by entry: what differs, by layer, path and kind.

Content is read block by block and never held; of each entry a digest is kept. A layer whose content is equal is not opened.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import tarfile
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from controller.adapters.oci.bases import LAYERS
from controller.adapters.oci.layout import LAYER, Layout
from policies.errors import TrustError
from policies.reproducibility import SHOWN_PATHS, Difference, Kind, Report
from policies.terms.digest import Digest

_BLOCK = 1 << 20
_LOGS = ("var/log/",)
_CACHES = ("var/cache/", "var/lib/apt/lists/", "var/lib/dpkg/info/", "root/.cache/", "root/.npm/")
_CACHE_PARTS = {".cache", "__pycache__", "pip-cache"}
_CACHE_NAMES = {"ld.so.cache", "aux-cache", "pkgcache.bin", "srcpkgcache.bin"}


@dataclass(frozen=True, slots=True)
class _Entry:
    header: bytes
    time: float
    content: bytes


@dataclass(frozen=True, slots=True)
class _Side:
    """One of the two images."""

    layout: Layout
    digest: Digest
    manifest: Mapping[str, Any]
    config: Mapping[str, Any]

    def entries(self, number: int) -> dict[str, _Entry]:
        """Path -> what is there, of one layer."""
        layers = self.manifest["layers"]
        return _entries(self.layout, layers[number]) if number < len(layers) else {}


def compare(first: tuple[Layout, Digest], second: tuple[Layout, Digest], steps: Mapping[str, str] | None = None) -> Report:
    """Say in what two images differ.

    Args:
        first: Where one of them is, and its manifest's digest, or that of an index: then platform by platform.
        second: The same of the other.
        steps: Diff id of a layer of the first -> the instruction that made it.

    Raises:
        TrustError: A layer is missing or no archive.
    """
    digests = first[1], second[1]
    if digests[0] == digests[1]:
        return Report(first=digests[0], second=digests[1])
    parts = [_by_platform(*side) for side in (first, second)]
    found: list[Difference] = []
    for platform in sorted(parts[0].keys() & parts[1].keys()):
        one, other = _side(first[0], parts[0][platform]), _side(second[0], parts[1][platform])
        found += _between(one, other, steps or {}, f"{platform}, " if platform else "")
    if only := sorted(parts[0].keys() ^ parts[1].keys()):
        found.append(Difference(layer="index", step="", kind="missing", count=len(only), paths=tuple(only)))
    if not found:
        # The content is the same, and other bytes stand for it: another compressor.
        found.append(Difference(layer="manifest", step="", kind="content", count=1, paths=("layers",)))
    return Report(first=digests[0], second=digests[1], differences=tuple(found))


def _by_platform(layout: Layout, digest: Digest) -> dict[str, Digest]:
    """The images of an index by their platform, `linux/arm64`; of an image it alone, under no name."""
    manifest = layout.manifest(digest)
    if "manifests" not in manifest:
        return {"": digest}
    named = [(item.get("platform") or {}, Digest(item["digest"])) for item in manifest["manifests"]]
    return {"/".join(str(kind[key]) for key in ("os", "architecture", "variant") if key in kind): item for kind, item in named}


def _between(one: _Side, other: _Side, steps: Mapping[str, str], where: str) -> list[Difference]:
    """What differs between two images for one platform."""
    found: list[Difference] = []
    ids = (list(one.config["rootfs"]["diff_ids"]), list(other.config["rootfs"]["diff_ids"]))
    count = max(map(len, ids))
    for number in range(count):
        pair = [side[number] if number < len(side) else "" for side in ids]
        if pair[0] == pair[1]:
            continue
        name, step = f"{where}layer {number + 1} of {count}", steps.get(pair[0], "")
        found += _differences(name, step, one.entries(number), other.entries(number))
    return found + _settings(one.config, other.config, where)


def kind_of(path: str) -> Kind:
    """What a file is, by its path, where its content differs."""
    parts = path.split("/")
    if path.endswith((".pyc", ".pyo")):
        return "pyc"
    if path.startswith(_LOGS) or path.endswith(".log"):
        return "log"
    if path.startswith(_CACHES) or _CACHE_PARTS & set(parts) or parts[-1] in _CACHE_NAMES:
        return "cache"
    return "content"


def _differences(layer: str, step: str, one: Mapping[str, _Entry], other: Mapping[str, _Entry]) -> list[Difference]:
    kinds: dict[Kind, list[str]] = defaultdict(list)
    for path in sorted({*one, *other}):
        here, there = one.get(path), other.get(path)
        if here == there:
            continue
        if here is None or there is None:
            kinds["missing"].append(path)
        elif here.content != there.content:
            kinds[kind_of(path)].append(path)
        elif here.header != there.header:
            kinds["header"].append(path)
        else:
            kinds["time"].append(path)
    if not kinds:
        kinds["header"].append("(order of its entries)")
    return [
        Difference(layer=layer, step=step, kind=kind, count=len(paths), paths=tuple(paths[:SHOWN_PATHS]))
        for kind, paths in sorted(kinds.items())
    ]


def _settings(one: Mapping[str, Any], other: Mapping[str, Any], where: str) -> list[Difference]:
    flat = [_flat({key: value for key, value in config.items() if key != "rootfs"}) for config in (one, other)]
    paths = [key for key in sorted({*flat[0], *flat[1]}) if flat[0].get(key) != flat[1].get(key)]
    if not paths:
        return []
    return [Difference(layer=f"{where}config", step="", kind="content", count=len(paths), paths=tuple(paths[:SHOWN_PATHS]))]


def _flat(value: Any, place: str = "") -> dict[str, str]:
    if isinstance(value, Mapping):
        return {path: text for key, item in value.items() for path, text in _flat(item, f"{place}/{key}").items()}
    return {place: json.dumps(value, sort_keys=True)}


def _side(layout: Layout, digest: Digest) -> _Side:
    manifest = layout.manifest(digest)
    return _Side(layout, digest, manifest, json.loads(layout.get(manifest["config"]["digest"])))


def _entries(layout: Layout, layer: Mapping[str, Any]) -> dict[str, _Entry]:
    found = {}
    try:
        with layout.path(layer["digest"]).open("rb") as raw:
            stream = gzip.GzipFile(fileobj=raw) if LAYERS.get(str(layer["mediaType"])) == LAYER else raw
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                for member in archive:
                    found[member.name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")] = _entry(
                        archive, member
                    )
    except FileNotFoundError as error:
        raise TrustError(f"blob {layer['digest']}: expected it in the store, it is missing", reason="BlobMissing") from error
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise TrustError(f"layer {layer['digest']}: expected a tar archive, got {error}", reason="BadLayer") from error
    return found


def _entry(archive: tarfile.TarFile, member: tarfile.TarInfo) -> _Entry:
    content = hashlib.sha256(str(member.size).encode())
    file = archive.extractfile(member) if member.isreg() else None
    while file is not None and (block := file.read(_BLOCK)):
        content.update(block)
    more = {key: value for key, value in member.pax_headers.items() if key not in ("mtime", "atime", "ctime", "path", "size")}
    header: Sequence[Any] = (
        member.type.decode("latin-1"),
        member.mode,
        [member.uid, member.gid, member.uname, member.gname],
        member.linkname,
        [member.devmajor, member.devminor],
        sorted(more.items()),
    )
    packed = json.dumps(header, sort_keys=True).encode()
    return _Entry(hashlib.sha256(packed).digest(), float(member.mtime), content.digest())
