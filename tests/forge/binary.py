"""Gitea, built once from its Go module, with the templates that it reads at run time.

Never downloads a ready-made binary: Go fetches sources through its module proxy and checks them against `go.sum`.
"""

from __future__ import annotations

import inspect
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from tests.cluster import cache, golang

MODULES = Path(__file__).with_name("go")
MODULE = "code.gitea.io/gitea"
VERSION = "1.26.0"
OLDEST_GO = (1, 26)
"""What Gitea's module asks for."""
STATIC = ("templates", "options", "public")
"""Folders of the module that it reads at run time, as long as they are not part of the binary."""


def given() -> Path | None:
    """The binary that `MYELIN_GITEA` names, if it does."""
    said = os.environ.get("MYELIN_GITEA")
    return Path(said).resolve() if said else None


def digest() -> str:
    """Name of what this recipe builds."""
    files = [path for path in sorted(MODULES.iterdir()) if path.is_file()]
    # What is asked of this machine, and how the program is started, changes nothing of what is built.
    recipe = "\n".join((VERSION, *STATIC, inspect.getsource(build), inspect.getsource(_go)))
    return cache.digest_of(*(path.read_bytes() for path in files), recipe.encode())


def missing() -> str:
    """What is missing here for a Gitea, in words; empty: nothing."""
    if not shutil.which("git"):
        return "git"
    own = given()
    if own is not None:
        return "" if os.access(own, os.X_OK) else f"the program that MYELIN_GITEA names, {own}"
    if (cache.root() / "forge" / digest()).is_dir():
        return ""
    return golang.missing(OLDEST_GO, "Gitea", "MYELIN_GITEA, the path of a gitea program")


def program() -> tuple[Path, Path | None]:
    """Gitea, and the folder of its templates; None where they are part of the program, as in Gitea's own releases.

    Built now, in about 5 minutes on two cores, if this recipe was never built before.
    """
    own = given()
    if own is None:
        place = cache.keep("forge", digest(), build)
        return place / "gitea", place / "static"
    beside = own.with_name("static")
    return own, beside if beside.is_dir() else _of_module()


def build(place: Path) -> None:
    """Build into a folder."""
    started = time.monotonic()
    cache.say(f"forge: building Gitea {VERSION}, once")
    # Go may want to complete go.mod and go.sum: in a copy, so that building never changes the work tree.
    with tempfile.TemporaryDirectory(prefix="myelin-build-") as scratch:
        modules = shutil.copytree(MODULES, Path(scratch) / "go")
        flags = f"-s -w -X main.Version={VERSION}"
        command = [
            "build",
            "-trimpath",
            "-tags",
            "sqlite sqlite_unlock_notify",
            "-ldflags",
            flags,
            "-o",
            str(place / "gitea"),
            MODULE,
        ]
        _go(modules, *command)
        source = Path(_go(modules, "list", "-m", "-f", "{{.Dir}}", MODULE).strip())
        for name in STATIC:
            shutil.copytree(source / name, place / "static" / name)
    for folder, _, names in os.walk(place / "static"):
        # Files of Go's module cache cannot be written, and so not be removed.
        for path in (Path(folder), *(Path(folder) / name for name in names)):
            path.chmod(0o755 if path.is_dir() else 0o644)
    cache.say(f"forge: built Gitea in {time.monotonic() - started:.0f} s")


def _of_module() -> Path | None:
    """The templates in Go's module cache, for a program that was built from there."""
    if not shutil.which("go"):
        return None
    top = subprocess.run(["go", "env", "GOMODCACHE"], capture_output=True, text=True, check=False).stdout.strip()
    place = Path(top) / f"{MODULE}@v{VERSION}"
    return place if (place / "templates").is_dir() else None


def _go(folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "GOFLAGS": "-mod=mod -buildvcs=false"}
    return subprocess.run(["go", *arguments], cwd=folder, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
