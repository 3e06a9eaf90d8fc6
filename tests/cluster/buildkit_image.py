"""An image of BuildKit for a node: daemon and client as its authors' image has them, with a shell's programs and runc beside.

Never holds anything that was not built or installed on this machine.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

from tests.cluster import base_image
from tests.contracts import buildkit

LINKS = ("cp", "mkdir", "sh")


def write(place: Path) -> Path:
    """Write the image as an OCI layout, and return its folder."""
    blobs = place / "blobs/sha256"
    blobs.mkdir(parents=True)
    tar = place / "layer.tar"
    with tarfile.open(tar, "w") as archive:
        for name in buildkit.PROGRAMS:
            _add(archive, buildkit.programs() / name, f"usr/bin/{name}")
        runc = shutil.which("runc", path="/usr/sbin:/usr/bin:/sbin:/bin")
        assert runc is not None
        _add(archive, Path(runc), "usr/bin/runc")
        listed = subprocess.run(["ldd", runc], capture_output=True, text=True, check=True).stdout
        for path in re.findall(r"(/\S+) \(0x", listed):
            _add(archive, Path(path), path.lstrip("/"))
        _add(archive, Path("/bin/busybox"), "bin/busybox")
        for name in LINKS:
            entry = tarfile.TarInfo(f"bin/{name}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(entry)
        entry = tarfile.TarInfo("tmp")
        entry.type, entry.mode = tarfile.DIRTYPE, 0o1777
        archive.addfile(entry)
        _write(archive, "etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
    with tar.open("rb") as source:
        diff_id = hashlib.file_digest(source, "sha256").hexdigest()
    packed = io.BytesIO()
    with tar.open("rb") as source, gzip.GzipFile("", "wb", 1, packed, mtime=0) as target:
        shutil.copyfileobj(source, target, 1 << 20)
    tar.unlink()
    architecture = subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True).stdout.strip()
    settings = {"Env": ["PATH=/usr/bin:/bin"], "Entrypoint": ["buildkitd"]}
    content = {"type": "layers", "diff_ids": [f"sha256:{diff_id}"]}
    config = {"architecture": architecture, "os": "linux", "config": settings, "rootfs": content}
    layer = _blob(blobs, packed.getvalue(), base_image.LAYER)
    parts = {"config": _blob(blobs, json.dumps(config).encode(), base_image.CONFIG), "layers": [layer]}
    manifest = {"schemaVersion": 2, "mediaType": base_image.MANIFEST, **parts}
    index = {"schemaVersion": 2, "manifests": [_blob(blobs, json.dumps(manifest).encode(), base_image.MANIFEST)]}
    (place / "index.json").write_text(json.dumps(index))
    return place


def _add(archive: tarfile.TarFile, path: Path, name: str) -> None:
    _write(archive, name, path.read_bytes())


def _write(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.mode, entry.size = 0o755, len(data)
    archive.addfile(entry, io.BytesIO(data))


def _blob(blobs: Path, data: bytes, media_type: str) -> dict[str, object]:
    name = hashlib.sha256(data).hexdigest()
    (blobs / name).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{name}", "size": len(data)}
