"""A real BuildKit on a socket of its own: daemon and client, built once from their Go module.

Never downloads a ready-made binary: Go fetches sources through its module proxy and checks them against its checksum database.
"""

from __future__ import annotations

import inspect
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.cluster import cache, golang
from tests.contracts.certificates import Authority

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
    why = golang.missing(OLDEST_GO, "BuildKit", "MYELIN_BUILDKIT, a folder with its programs")
    return f"BuildKit: expected {why}" if why else ""


def programs() -> Path:
    """A folder with daemon and client; built now, in about 4 minutes on two cores, if they were never built before."""
    return given() or cache.keep("buildkit", _digest(), _build)


@contextmanager
def daemon(folder: Path, *, authority: Authority | None = None) -> Iterator[str]:
    """A running daemon; its address.

    Args:
        folder: Where it keeps everything.
        authority: It listens on a port of this machine, proves who it is, and answers whoever has a certificate of this
            authority; None: it listens on a socket of its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    address, known = f"unix://{folder / 'socket'}", list[str]()
    if authority is not None:
        address = f"tcp://127.0.0.1:{_free_port()}"
        for name in ("server", "client"):
            for ending, pem in zip(("pem", "key"), authority.signed(name), strict=True):
                (folder / f"{name}.{ending}").write_text(pem)
        known = ["--tlscacert", str(authority.file)]
    command = [str(programs() / "buildkitd"), "--root", str(folder / "state"), "--addr", address, "--containerd-worker=false"]
    command += ["--oci-worker-snapshotter=native", "--oci-worker-net=host", *known, *_certified(folder, "server", known)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + START_SECONDS
        client = [
            str(programs() / "buildctl"),
            "--addr",
            address,
            *known,
            *_certified(folder, "client", known),
            "debug",
            "workers",
        ]
        while subprocess.run(client, capture_output=True, check=False).returncode:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"BuildKit did not start: {(folder / 'log').read_text()[-2000:]}")
            time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait(30)


def _certified(folder: Path, name: str, known: Sequence[str]) -> list[str]:
    return ["--tlscert", str(folder / f"{name}.pem"), "--tlskey", str(folder / f"{name}.key")] if known else []


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _digest() -> str:
    """Of what they are made of and how, whatever else this file says."""
    return cache.digest_of(inspect.getsource(_build).encode(), f"{MODULE} {VERSION} {PROGRAMS}".encode())


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
