"""cosign 2 and 3, which check what we sign and sign what we check: each built once from its Go module.

Never downloads a ready-made binary: Go fetches sources through its module proxy and checks them against its checksum database.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from tests.cluster import cache, golang

MODULES = {
    2: "github.com/sigstore/cosign/v2/cmd/cosign@v2.6.5",
    3: "github.com/sigstore/cosign/v3/cmd/cosign@v3.1.3",
}
OLDEST_GO = (1, 26)
EMPTY_ROOT = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "empty-trusted-root.json"
"""The trusted root that our documentation gives to those who check with a key alone."""


def missing(major: int) -> str:
    """What is missing here for a cosign, in words; empty: nothing."""
    if _given(major) is not None:
        return ""
    if (cache.root() / f"cosign{major}" / _digest(major)).is_dir() or _of_the_cluster_tests(major) is not None:
        return ""
    why = golang.missing(OLDEST_GO, "cosign", f"MYELIN_COSIGN{major}, the path of a cosign program")
    return f"cosign {major}: expected {why}" if why else ""


def program(major: int) -> Path:
    """A cosign; built now, in about 2 minutes on two cores, if it was never built before."""
    found = _given(major) or _of_the_cluster_tests(major)
    return found or cache.keep(f"cosign{major}", _digest(major), lambda place: _build(major, place)) / "cosign"


class Cosign:
    """One cosign, with a home and a configuration of its own.

    Args:
        major: 2 or 3.
        folder: Its home.
    """

    def __init__(self, major: int, folder: Path) -> None:
        self.major, self.folder, self._program = major, folder, program(major)
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, *words: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run it and hear what it says, without a network beyond this machine's."""
        around = {"HOME": str(self.folder), "PATH": "/usr/bin:/bin", "SIGSTORE_NO_CACHE": "1", **(environment or {})}
        command = [str(self._program), *words]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            env=around,
            cwd=self.folder,
            timeout=60,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    def verify(
        self, reference: str, public_pem: str, *words: str, root: Path | None = EMPTY_ROOT
    ) -> subprocess.CompletedProcess[str]:
        """Check an image with a public key; `words` say what of it, nothing: its signature."""
        public = self.folder / "cosign.pub"
        public.write_text(public_pem)
        known = ["--key", str(public), "--insecure-ignore-tlog=true", "--allow-http-registry"]
        known += ["--trusted-root", str(root)] if root is not None else []
        return self(*(words or ("verify",)), *known, reference)

    def generate(self, folder: Path, password: str = "") -> str:
        """Make a key pair `cosign.key` and `cosign.pub` in a folder; returns the public one."""
        folder.mkdir(parents=True, exist_ok=True)
        prefix = str(folder / "cosign")
        done = self("generate-key-pair", f"--output-key-prefix={prefix}", environment={"COSIGN_PASSWORD": password})
        assert done.returncode == 0, done.stderr
        return Path(f"{prefix}.pub").read_text()

    def sign(self, reference: str, key: Path, *, bundles: bool) -> None:
        """Sign an image with a key pair alone, without any log: as a bundle, or under the tag `sha256-<hex>.sig`."""
        alone = ["--tlog-upload=false", f"--new-bundle-format={str(bundles).lower()}"]
        if self.major == 3 and bundles:
            # It takes the services of the public instance, unless a configuration names none.
            config = self.folder / "signing_config.json"
            config.write_text(json.dumps({"mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json"}))
            alone = ["--signing-config", str(config)]
        elif self.major == 3:
            alone.append("--use-signing-config=false")
        known = ["--yes", "--key", str(key), "--allow-http-registry", *alone]
        done = self("sign", *known, reference, environment={"COSIGN_PASSWORD": ""})
        assert done.returncode == 0, done.stderr


def _given(major: int) -> Path | None:
    said = os.environ.get(f"MYELIN_COSIGN{major}")
    return Path(said).resolve() if said else None


def _of_the_cluster_tests(major: int) -> Path | None:
    """The one that was built for the cluster tests, which have cosign 2 as well."""
    if major != 2:
        return None
    said = os.environ.get("MYELIN_CLUSTER_BIN")
    places = [Path(said)] if said else []
    places += sorted((cache.root() / "cluster").glob("*"))
    return next((place / "cosign" for place in places if os.access(place / "cosign", os.X_OK)), None)


def _digest(major: int) -> str:
    return cache.digest_of(MODULES[major].encode())


def _build(major: int, place: Path) -> None:
    started = time.monotonic()
    cache.say(f"building cosign {major}, once")
    environment = {**os.environ, "GOFLAGS": "-mod=mod -buildvcs=false", "GOBIN": str(place)}
    command = ["go", "install", "-trimpath", "-ldflags", "-s -w", MODULES[major]]
    subprocess.run(command, cwd=place, env=environment, check=True)
    cache.say(f"built cosign {major} in {time.monotonic() - started:.0f} s")
