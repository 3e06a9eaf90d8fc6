"""A real BuildKit on a socket of its own: daemon and client, built once from their Go module.

Never downloads a ready-made binary: Go fetches sources through its module proxy and checks them against its checksum database.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cluster import cache

MODULE, VERSION = "github.com/moby/buildkit", "v0.26.3"
PROGRAMS = ("buildctl", "buildkitd")
OLDEST_GO = (1, 24)
START_SECONDS = 60.0


def given() -> Path | None:
    """The folder that `MYELIN_BUILDKIT` names, if it does."""
    said = os.environ.get("MYELIN_BUILDKIT")
    return Path(said).resolve() if said else None


def missing() -> str:
    """What is missing here for a BuildKit, in words; empty: nothing."""
    if os.geteuid() != 0:
        return "BuildKit: expected root, whose daemon mounts what steps see"
    if shutil.which("runc") is None:
        return "BuildKit: expected runc, with which its daemon runs steps"
    if given() is not None or (cache.root() / "buildkit" / _digest()).is_dir():
        return ""
    words = (
        f"Go {'.'.join(map(str, OLDEST_GO))} or newer (it builds BuildKit, once), or MYELIN_BUILDKIT, a folder with its programs"
    )
    if not shutil.which("go"):
        return f"BuildKit: expected {words}"
    said = subprocess.run(["go", "env", "GOVERSION"], capture_output=True, text=True, check=False).stdout
    number = re.match(r"go(\d+)\.(\d+)", said)
    if number is None or (int(number[1]), int(number[2])) < OLDEST_GO:
        return f"BuildKit: expected {words}; got {said.strip() or 'no answer'}"
    return ""


def programs() -> Path:
    """A folder with daemon and client; built now, in about 4 minutes on two cores, if they were never built before."""
    return given() or cache.keep("buildkit", _digest(), _build)


@contextmanager
def daemon(folder: Path) -> Iterator[str]:
    """A running daemon; its address.

    Args:
        folder: Where it keeps everything.
    """
    folder.mkdir(parents=True, exist_ok=True)
    address = f"unix://{folder / 'socket'}"
    command = [str(programs() / "buildkitd"), "--root", str(folder / "state"), "--addr", address, "--containerd-worker=false"]
    command += ["--oci-worker-snapshotter=native", "--oci-worker-net=host"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + START_SECONDS
        client = [str(programs() / "buildctl"), "--addr", address, "debug", "workers"]
        while subprocess.run(client, capture_output=True, check=False).returncode:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"BuildKit did not start: {(folder / 'log').read_text()[-2000:]}")
            time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait(30)


def _digest() -> str:
    return cache.digest_of(Path(__file__).read_bytes())


def _build(place: Path) -> None:
    started = time.monotonic()
    cache.say(f"buildkit: building BuildKit {VERSION}, once")
    module = place / "module"
    module.mkdir()
    environment = {**os.environ, "GOFLAGS": "-mod=mod", "CGO_ENABLED": "0"}

    def go(*arguments: str) -> None:
        subprocess.run(["go", *arguments], cwd=module, env=environment, check=True, capture_output=True, text=True)

    go("mod", "init", "builder")
    go("get", f"{MODULE}@{VERSION}")
    flags = f"-s -w -X {MODULE}/version.Version={VERSION}"
    go("build", "-trimpath", "-ldflags", flags, "-o", f"{place}/", *(f"{MODULE}/cmd/{name}" for name in PROGRAMS))
    shutil.rmtree(module)
    cache.say(f"buildkit: built it in {time.monotonic() - started:.0f} s")
