"""The programs of the node that Debian does not have, built from Go modules.

Never downloads a ready-made binary: Go fetches sources through its module proxy and checks them against `go.sum` or its
checksum database.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from tests.cluster import cache

MODULES = Path(__file__).with_name("go")
KUBERNETES = "v1.34.4"
# In this order: the first one compiles what the others share.
OF_KUBERNETES = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl")
INSTALLED = {
    "helm": "helm.sh/helm/v3/cmd/helm@v3.22.0",
    "cosign": "github.com/sigstore/cosign/v2/cmd/cosign@v2.6.5",
}
NAMES = (*OF_KUBERNETES, *INSTALLED, "dns")
OLDEST_GO = (1, 26)
"""What helm's module asks for."""


def given() -> Path | None:
    """The folder that `MYELIN_CLUSTER_BIN` names, if it does."""
    said = os.environ.get("MYELIN_CLUSTER_BIN")
    return Path(said).resolve() if said else None


def digest() -> str:
    """Name of what this recipe builds."""
    files = [path for path in sorted(MODULES.rglob("*")) if path.is_file()]
    return cache.digest_of(*(path.read_bytes() for path in files), Path(__file__).read_bytes())


def are_built() -> bool:
    """Whether nothing needs to be built."""
    return given() is not None or (cache.root() / "cluster" / digest()).is_dir()


def folder() -> Path:
    """The folder with all programs; built now, in about 8 minutes on two cores, if this recipe was never built before.

    Raises:
        FileNotFoundError: `MYELIN_CLUSTER_BIN` names a folder that lacks some.
    """
    own = given()
    if own is None:
        return cache.keep("cluster", digest(), build)
    lacking = [name for name in NAMES if not os.access(own / name, os.X_OK)]
    if lacking:
        raise FileNotFoundError(f"MYELIN_CLUSTER_BIN={own}: expected {', '.join(NAMES)}, got none of these: {', '.join(lacking)}")
    return own


def build(place: Path) -> None:
    """Build every program into a folder."""
    started = time.monotonic()
    # Go may want to complete go.mod and go.sum: in a copy, so that building never changes the work tree.
    with tempfile.TemporaryDirectory(prefix="myelin-build-") as scratch:
        modules = shutil.copytree(MODULES, Path(scratch) / "go")
        for at, name in enumerate(NAMES, 1):
            cache.say(f"cluster binaries: building {name} ({at} of {len(NAMES)})")
            before = time.monotonic()
            _build_one(name, modules, place)
            cache.say(f"cluster binaries: built {name} in {time.monotonic() - before:.0f} s")
    cache.say(f"cluster binaries: built all in {time.monotonic() - started:.0f} s")


def _build_one(name: str, modules: Path, place: Path) -> None:
    flags = "-s -w"
    if name in OF_KUBERNETES:
        major, minor = KUBERNETES.removeprefix("v").split(".")[:2]
        facts = {"gitVersion": KUBERNETES, "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
        # Without these the server says v0.0.0-master, which kubectl and helm refuse.
        flags += "".join(f" -X k8s.io/component-base/version.{key}={value}" for key, value in facts.items())
        flags += f" -X k8s.io/client-go/pkg/version.gitVersion={KUBERNETES}"
        _go(modules, place, "build", "-trimpath", "-ldflags", flags, "-o", f"{place}/", f"k8s.io/kubernetes/cmd/{name}")
    elif name in INSTALLED:
        _go(modules, place, "install", "-trimpath", "-ldflags", flags, INSTALLED[name])
    else:
        _go(modules / name, place, "build", "-trimpath", "-ldflags", flags, "-o", str(place / name), ".")


def _go(folder: Path, place: Path, *arguments: str) -> None:
    environment = {**os.environ, "GOFLAGS": "-mod=mod -buildvcs=false", "GOBIN": str(place)}
    subprocess.run(["go", *arguments], cwd=folder, env=environment, check=True)
