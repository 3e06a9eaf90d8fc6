"""From an image in the store to a command line: unpack once, run under bubblewrap or the host's Python.

An image of the Python builder without a base runs on the host's own system; any other one has the system that it brings along.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controller.adapters.engine_local.sealed import is_sealed, seal, seal_file
from controller.adapters.engine_local.unpack import unpack
from controller.adapters.engine_local.unpacked import NEW, TOUCHED, alone, name_of
from controller.adapters.oci.assembly import BASE_NAME, PLATFORM
from controller.adapters.oci.layout import Layout, write_whole
from policies.errors import DesiredStateError

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
OWN_FOLDERS = ("dev", "proc", "sys", "tmp")
"""Folders of an image's root that are the machine's own, whatever lies in them."""
HOSTS_FILES = ("/etc/resolv.conf", "/etc/hosts")
_PLATFORM = dict(zip(("os", "architecture"), PLATFORM.split("/"), strict=True))
SEALED_SECONDS = 0.5
"""How long a look at an unpacked image counts: one pass may start hundreds of jobs from it."""
_VENV = "/opt/venv"
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
        self._whole_at: dict[Path, float] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self._home = folder / "pyvenv.cfg"
        text = f"home = {os.path.dirname(_own_python())}\ninclude-system-site-packages = false\nversion = {HOST_PYTHON}\n"
        if not self._home.exists() or self._home.read_text() != text:
            write_whole(self._home, text.encode())

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
        root, config, is_bare = self._unpacked(image)
        variables = dict(item.split("=", 1) for item in config["config"].get("Env") or ())
        shared = {"PYTHONNOUSERSITE": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1", "LANG": "C.UTF-8"}
        shared |= {"USER": "myelin", "LOGNAME": "myelin", "HOME": tempfile.gettempdir()}
        if not is_bare:
            return self._whole(image, root, config["config"], [*command], [*args], {**shared, **variables, **env}, writable)
        wanted = variables.get("MYELIN_PYTHON", HOST_PYTHON)
        if wanted != HOST_PYTHON:
            raise DesiredStateError(
                f"image {image}: expected Python {HOST_PYTHON}, it was made for {wanted}", reason="CannotStart"
            )
        argv = [*(command or config["config"]["Entrypoint"]), *args]
        if not self._wrap:
            argv[0] = _own_python() if argv[0] in PYTHONS else argv[0]
            places = {"PYTHONPATH": f"{root}/app:{root}/opt/venv/lib/python{HOST_PYTHON}/site-packages"}
            path = {"PATH": os.environ.get("PATH", "/usr/bin:/bin")}
            plain = [str(root) + item if item.startswith("/app/") else item for item in argv]
            return Program(argv=tuple(plain), env={**variables, **shared, **path, **places, **env}, cwd=str(root / "app"))
        argv[0] = f"{_VENV}/bin/python" if argv[0] in PYTHONS else argv[0]
        places = {"PYTHONPATH": "/app", "HOME": "/tmp"}
        return Program(argv=(*self._cage(root, writable), *argv), env={**variables, **shared, **env, **places}, cwd="/")

    def _whole(
        self,
        image: str,
        root: Path,
        settings: Mapping[str, Any],
        command: list[str],
        args: list[str],
        env: Mapping[str, str],
        writable: Sequence[Path],
    ) -> Program:
        """How to run an image that brings its own system along."""
        if not self._wrap:
            text = f"image {image}: expected bubblewrap to run an image with a system of its own, it is not here or may not run"
            raise DesiredStateError(f"{text}; install it, or leave out builder.base", reason="CannotStart")
        entry = command or list(settings.get("Entrypoint") or ())
        argv = [*entry, *(args or ([] if command else list(settings.get("Cmd") or ())))]
        if not argv:
            raise DesiredStateError(f"image {image}: expected an ENTRYPOINT or CMD, it has none", reason="CannotStart")
        cage = self._walls()
        cage += _bound(root, "", [*HOSTS_FILES, *(str(folder) for folder in writable)])
        for file in HOSTS_FILES:
            cage += ["--ro-bind-try", file, file]
        for folder in writable:
            cage += ["--bind", str(folder), str(folder)]
        cage += ["--chdir", str(settings.get("WorkingDir") or "/")]
        return Program(argv=(*cage, *argv), env={**env, "HOME": "/tmp"}, cwd="/")

    def _walls(self) -> list[str]:
        walls = [self._wrap, "--die-with-parent", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--new-session"]
        # Also where root runs the controller, a program gets none of root's powers: no mount, no device, no other user.
        walls += ["--unshare-user-try", "--cap-drop", "ALL"]
        return [*walls, "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]

    def _cage(self, root: Path, writable: Sequence[Path]) -> list[str]:
        cage = self._walls()
        for place in SYSTEM_FOLDERS:
            cage += ["--ro-bind-try", place, place]
        prefix = os.path.realpath(sys.base_prefix)
        if not prefix.startswith("/usr"):
            cage += ["--ro-bind", prefix, prefix]
        for folder in writable:
            cage += ["--bind", str(folder), str(folder)]
        return [*cage, *self._environment(root), "--ro-bind-try", str(root / "app"), "/app", "--chdir", "/app"]

    def _environment(self, root: Path) -> Iterator[str]:
        """The image's packages as a virtual environment of this machine's Python, whose own packages are not seen there."""
        if (root / "opt").is_dir():
            yield from _bound(root / "opt", "/opt", [f"{_VENV}/bin/python"])
        yield from ("--dir", f"{_VENV}/bin", "--ro-bind", str(self._home), f"{_VENV}/pyvenv.cfg")
        yield from ("--symlink", _own_python(), f"{_VENV}/bin/python", "--symlink", "python", f"{_VENV}/bin/python3")

    def check(self, image: str) -> None:
        """See that an image that was unpacked before is still as it was; one that was touched is unpacked again.

        Raises:
            TrustError: A layer is not what it should be.
        """
        self._unpacked(image)

    def _is_whole(self, root: Path) -> bool:
        if time.monotonic() - self._whole_at.get(root, -SEALED_SECONDS) < SEALED_SECONDS and root.exists():
            return True
        if not is_sealed(root):
            return False
        self._whole_at[root] = time.monotonic()
        return True

    def _unpacked(self, image: str) -> tuple[Path, dict[str, Any], bool]:
        """Where an image lies, its config, and whether it has no system of its own."""
        manifest = self._layout.manifest(image)
        if "manifests" in manifest:
            own = [item["digest"] for item in manifest["manifests"] if item.get("platform") == _PLATFORM]
            if not own:
                raise DesiredStateError(f"image {image}: expected one for {PLATFORM}, there is none in it", reason="CannotStart")
            return self._unpacked(own[0])
        config = json.loads(self._layout.get(manifest["config"]["digest"]))
        root = self._folder / name_of(image)
        with alone(self._folder):
            if not self._is_whole(root):
                temporary = root.with_suffix(NEW)
                shutil.rmtree(temporary, ignore_errors=True)
                (temporary / "app").mkdir(parents=True)
                try:
                    for layer, diff_id in zip(manifest["layers"], config["rootfs"]["diff_ids"], strict=True):
                        unpack(self._layout.path(layer["digest"]), diff_id, temporary)
                except BaseException:
                    shutil.rmtree(temporary, ignore_errors=True)
                    raise
                if root.exists():
                    # What runs from it goes on with the files that it has; nothing new starts from them.
                    shutil.rmtree(root.with_suffix(TOUCHED), ignore_errors=True)
                    os.rename(root, root.with_suffix(TOUCHED))
                os.rename(temporary, root)
                seal(root)
                self._whole_at[root] = time.monotonic()
            os.utime(seal_file(root))
        name = (manifest.get("annotations") or {}).get(BASE_NAME)
        return root, config, name == "host" or (name is None and not (root / "usr").exists())


def _own_python() -> str:
    """The interpreter that this one's environment was made of."""
    return os.path.realpath(getattr(sys, "_base_executable", "") or sys.executable)


def _bound(folder: Path, place: str, writable: Sequence[str]) -> Iterator[str]:
    """What shows a folder at a place, but for what the machine or a job has there.

    A place in a folder that is bound read-only cannot be made, so whatever leads to a writable one is bound entry by entry.
    """
    for path in sorted(folder.iterdir()):
        at = f"{place}/{path.name}"
        if at in HOSTS_FILES or (not place and path.name in OWN_FOLDERS):
            continue
        if path.is_symlink():
            yield from ("--symlink", os.readlink(path), at)
        elif path.is_dir() and any(item == at or item.startswith(f"{at}/") for item in writable):
            yield from ("--dir", at)
            yield from _bound(path, at, writable)
        else:
            yield from ("--ro-bind", str(path), at)
