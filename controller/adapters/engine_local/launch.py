"""From an image in the store to a command line: unpack once, run under bubblewrap or the host's Python."""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controller.adapters.oci.layout import Layout
from policies.errors import DesiredStateError, TrustError

HOST_PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
SYSTEM_FOLDERS = (
    "/usr",
    "/bin",
    "/lib",
    "/lib32",
    "/lib64",
    "/etc/ld.so.cache",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/etc/ca-certificates",
    "/etc/pki/tls",
    "/etc/localtime",
    "/etc/resolv.conf",
    "/etc/hosts",
)
PYTHONS = ("python", "python3", "/opt/venv/bin/python", "/opt/venv/bin/python3")


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What a process is started with."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str


def bubblewrap() -> str:
    """Path of bubblewrap where it works; empty elsewhere."""
    found = shutil.which("bwrap")
    if found is None:
        return ""
    probe = [found, "--ro-bind", "/", "/", "--unshare-pid", "--proc", "/proc", "--dev", "/dev", "true"]
    done = subprocess.run(probe, capture_output=True, check=False)
    return found if done.returncode == 0 else ""


class Launcher:
    """Unpacks images and says how to run them.

    Args:
        layout: Where images are.
        folder: Where they are unpacked, once for each digest.
        wrap: Path of bubblewrap; empty: no isolation.
    """

    def __init__(self, layout: Layout, folder: Path, wrap: str) -> None:
        self._layout, self._folder, self._wrap = layout, folder, wrap
        folder.mkdir(parents=True, exist_ok=True)

    def program(
        self, image: str, *, command: Sequence[str], args: Sequence[str], env: Mapping[str, str], writable: Sequence[Path]
    ) -> Program:
        """How to run an image's program.

        Args:
            image: Digest of the image.
            command: Instead of the image's entrypoint; empty: the entrypoint.
            args: Appended.
            env: On top of the image's own environment.
            writable: Folders that the program may write to.

        Raises:
            DesiredStateError: The image was made for another Python.
            TrustError: A layer is not what it should be.
        """
        root, config = self._unpacked(image)
        variables = dict(item.split("=", 1) for item in config["config"].get("Env", ()))
        wanted = variables.get("MYELIN_PYTHON", HOST_PYTHON)
        if wanted != HOST_PYTHON:
            raise DesiredStateError(
                f"image {image}: expected Python {HOST_PYTHON}, it was made for {wanted}", reason="CannotStart"
            )
        argv = [*(command or config["config"]["Entrypoint"]), *args]
        python = os.path.realpath(getattr(sys, "_base_executable", "") or sys.executable)
        argv[0] = python if argv[0] in PYTHONS else argv[0]
        shared = {"PYTHONNOUSERSITE": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1", "LANG": "C.UTF-8"}
        shared |= {"USER": "myelin", "LOGNAME": "myelin", "HOME": tempfile.gettempdir()}
        site = f"opt/venv/lib/python{HOST_PYTHON}/site-packages"
        if not self._wrap:
            places = {"PYTHONPATH": f"{root}/app:{root}/{site}"}
            path = {"PATH": os.environ.get("PATH", "/usr/bin:/bin")}
            plain = [str(root) + item if item.startswith("/app/") else item for item in argv]
            return Program(argv=tuple(plain), env={**variables, **shared, **path, **places, **env}, cwd=str(root / "app"))
        places = {"PYTHONPATH": f"/app:/{site}", "HOME": "/tmp"}
        return Program(argv=(*self._cage(root, writable), *argv), env={**variables, **shared, **env, **places}, cwd="/")

    def _cage(self, root: Path, writable: Sequence[Path]) -> list[str]:
        cage = [self._wrap, "--die-with-parent", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--new-session"]
        # Also where root runs the controller, a program gets none of root's powers: no mount, no device, no other user.
        cage += ["--unshare-user-try", "--cap-drop", "ALL"]
        cage += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]
        for place in SYSTEM_FOLDERS:
            cage += ["--ro-bind-try", place, place]
        prefix = os.path.realpath(sys.base_prefix)
        if not prefix.startswith("/usr"):
            cage += ["--ro-bind", prefix, prefix]
        for folder in writable:
            cage += ["--bind", str(folder), str(folder)]
        cage += ["--ro-bind-try", str(root / "opt"), "/opt", "--ro-bind-try", str(root / "app"), "/app", "--chdir", "/app"]
        return cage

    def _unpacked(self, image: str) -> tuple[Path, dict[str, Any]]:
        manifest = self._layout.manifest(image)
        config = json.loads(self._layout.get(manifest["config"]["digest"]))
        root = self._folder / image.removeprefix("sha256:")[:32]
        with (self._folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not root.exists():
                temporary = root.with_suffix(".new")
                shutil.rmtree(temporary, ignore_errors=True)
                (temporary / "app").mkdir(parents=True)
                try:
                    for layer, diff_id in zip(manifest["layers"], config["rootfs"]["diff_ids"], strict=True):
                        _unpack(self._layout.path(layer["digest"]), diff_id, temporary)
                except BaseException:
                    shutil.rmtree(temporary, ignore_errors=True)
                    raise
                os.rename(temporary, root)
        return root, config


class _Hashing:
    def __init__(self, source: gzip.GzipFile) -> None:
        self._source, self.sha = source, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        block = self._source.read(size)
        self.sha.update(block)
        return block


def _unpack(blob: Path, diff_id: str, root: Path) -> None:
    """Lay one layer over a root; nothing may land outside of it."""
    with gzip.open(blob) as packed:
        source = _Hashing(packed)
        with tarfile.open(fileobj=source, mode="r|") as archive:  # type: ignore[call-overload]
            for member in archive:
                _lay(archive, member, root)
        while source.read(1 << 20):
            pass
    got = "sha256:" + source.sha.hexdigest()
    if got != diff_id:
        raise TrustError(f"layer {blob.name}: expected content {diff_id}, got {got}", reason="BlobChanged")


def _lay(archive: tarfile.TarFile, member: tarfile.TarInfo, root: Path) -> None:
    name = member.name.rstrip("/")
    target = root / name
    inside = not name.startswith("/") and ".." not in Path(name).parts
    if not inside or not target.parent.resolve().is_relative_to(root.resolve()):
        raise TrustError(f"layer: expected names inside of the image, got {name!r}", reason="UnsafeLayer")
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.name.startswith(".wh."):
        hidden = target.with_name(target.name.removeprefix(".wh."))
        shutil.rmtree(hidden) if hidden.is_dir() and not hidden.is_symlink() else hidden.unlink(missing_ok=True)
    elif member.isdir():
        target.mkdir(exist_ok=True)
    elif member.issym():
        target.unlink(missing_ok=True)
        target.symlink_to(member.linkname)
    elif member.isfile():
        content = archive.extractfile(member)
        assert content is not None
        target.unlink(missing_ok=True)
        with target.open("wb") as file:
            shutil.copyfileobj(content, file)
        target.chmod(0o755 if member.mode & 0o100 else 0o644)
    else:
        raise TrustError(f"layer: expected files, folders and links, got something else at {name!r}", reason="UnsafeLayer")
