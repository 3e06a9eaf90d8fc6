"""The wheels that pods install from, since a pod of the node reaches no package index.

Never installs anything on this machine.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from controller.adapters.build.standards import host, platforms_of, rank_of
from policies.locks import Target
from tests.cluster import cache

ROOT = Path(__file__).resolve().parents[2]
# A date that zip files can carry; what is built from sources then has the same bytes each time.
EPOCH = "315619200"


def locks() -> list[Path]:
    """The hashed lock files whose wheels pods need."""
    return [
        ROOT / "requirements/controller.txt",
        ROOT / "runtime/myelin/requirements.txt",
        *sorted(ROOT.glob("example-repo/axons/*/*/requirements.txt")),
    ]


def folder() -> Path:
    """A folder of wheels for this Python, fetched now if these lock files are new."""
    digest = cache.digest_of(sys.version.encode(), Path(__file__).read_bytes(), *(path.read_bytes() for path in locks()))
    return cache.keep("wheels", digest, _fetch)


def _fetch(place: Path) -> None:
    # `wheel`, not `download`: what has no wheel is built from its (hashed) source, once, here.
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--require-hashes", "--wheel-dir", str(place)]
    for lock in locks():
        cache.say(f"wheels: fetching those of {lock.relative_to(ROOT)}")
        subprocess.run([*command, "-r", str(lock)], env={**os.environ, "SOURCE_DATE_EPOCH": EPOCH}, check=True)
    # Images take wheels that run on older systems than this one may be; this machine's own pip prefers the newest.
    machine = host()
    target = Target(python=machine.python, platform=machine.platform)
    others = sorted(path for path in place.glob("*.whl") if rank_of(path.name, target) is None)
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(place)]
    download += [word for name in platforms_of(target) for word in ("--platform", name)]
    for path in others:
        name, version = path.name.split("-")[:2]
        cache.say(f"wheels: fetching {name} {version} for older systems")
        subprocess.run([*download, f"{name}=={version}"], check=True)
