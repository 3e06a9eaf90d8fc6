"""The base image with Python and Git, made of Debian's packages from this machine's own apt sources, as an OCI layout.

Never runs anything from a registry, and names no mirror.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.cluster import cache

# The whole standard library (venv and ensurepip are apart in Debian), and what a controller's pod needs for Git.
PACKAGES = ["python3", "python3-venv", "git", "openssh-client", "ca-certificates"]
if sys.version_info < (3, 12):
    PACKAGES.append("python3-distutils")
LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*")
USER = 65532
# ssh wants its user to have a name.
NAMED = f"echo 'nonroot:x:{USER}:{USER}::/tmp:/usr/sbin/nologin' >>\"$1/etc/passwd\"; echo 'nonroot:x:{USER}:' >>\"$1/etc/group\""
EPOCH = "315619200"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def sources() -> list[str]:
    """The lines of sources.list for this machine's own release of Debian, as apt itself understands its files."""
    release = _codename()
    suites = (release, f"{release}-updates", f"{release}-security")
    said = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = dict.fromkeys(said.stdout.splitlines())
    found = [f"deb {line}" for line in lines if line.split()[1] in suites and line.split()[2] == "main"]
    if not found:
        raise FileNotFoundError(f"apt's sources: expected one for {release} main, got none; the base image is made from it")
    return found


def digest() -> str:
    """Name of what this recipe makes. Reads apt's files itself, since asking apt takes a second."""
    files = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    files = [path for path in (Path(__file__), Path("/etc/os-release"), *files) if path.is_file()]
    return cache.digest_of(_architecture().encode(), *(path.read_bytes() for path in files))


def is_made() -> bool:
    """Whether nothing needs to be made."""
    return (cache.root() / "base" / digest()).is_dir()


def folder() -> Path:
    """The OCI layout of the base image, made now if this recipe is new."""
    return cache.keep("base", digest(), make)


def manifest_digest(layout: Path) -> str:
    """Digest of the only manifest of a layout."""
    index = json.loads((layout / "index.json").read_text())
    return str(index["manifests"][0]["digest"])


def make(place: Path) -> None:
    """Make the layout.

    Raises:
        ValueError: Debian's Python here is another one than ours, so that wheels fetched by ours would not fit.
    """
    cache.say(f"base image: {', '.join(PACKAGES)} from {_codename()}'s packages")
    with tempfile.TemporaryDirectory(prefix="myelin-base-") as scratch:
        tar = Path(scratch) / "base.tar"
        command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
        command += [f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT]
        command += [f"--customize-hook={NAMED}", f"--customize-hook=readlink \"$1/usr/bin/python3\" >'{scratch}/python'"]
        subprocess.run([*command, _codename(), str(tar), *sources()], env={**os.environ, "SOURCE_DATE_EPOCH": EPOCH}, check=True)
        python = (Path(scratch) / "python").read_text().strip()
        ours = f"python{sys.version_info.major}.{sys.version_info.minor}"
        if python != ours:
            raise ValueError(f"base image: expected {ours}, which runs the tests and fetches the wheels, got {python}")
        _write_layout(place, tar)


def _write_layout(place: Path, tar: Path) -> None:
    blobs = place / "blobs/sha256"
    blobs.mkdir(parents=True)
    with tar.open("rb") as source:
        diff_id = hashlib.file_digest(source, "sha256").hexdigest()
    packed = place / "layer"
    with tar.open("rb") as source, packed.open("wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as target:
        shutil.copyfileobj(source, target, 1 << 20)
    with packed.open("rb") as source:
        name = hashlib.file_digest(source, "sha256").hexdigest()
    layer = {"mediaType": LAYER, "digest": f"sha256:{name}", "size": packed.stat().st_size}
    packed.rename(blobs / name)
    settings = {"Env": ["PATH=/usr/local/bin:/usr/bin:/bin"], "User": f"{USER}:{USER}", "WorkingDir": "/"}
    content = {"type": "layers", "diff_ids": [f"sha256:{diff_id}"]}
    config = {"architecture": _architecture(), "os": "linux", "config": settings, "rootfs": content}
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": _blob(blobs, config, CONFIG), "layers": [layer]}
    index = {"schemaVersion": 2, "manifests": [_blob(blobs, manifest, MANIFEST)]}
    (place / "index.json").write_text(json.dumps(index))
    (place / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


def _blob(blobs: Path, document: Mapping[str, object], media_type: str) -> dict[str, object]:
    data = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    name = hashlib.sha256(data).hexdigest()
    (blobs / name).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{name}", "size": len(data)}


def _codename() -> str:
    facts = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    return facts.get("VERSION_CODENAME", "").strip('"')


def _architecture() -> str:
    return subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True).stdout.strip()
