"""Work trees and bare repositories of people: made, asked for settings, brought up to date."""

from __future__ import annotations

from pathlib import Path

from controller.adapters.git.program import GitFailed, Program
from controller.adapters.git.refusals import outside


def init_bare(path: Path, *, branch: str = "main") -> None:
    """Make an empty bare repository."""
    path.mkdir(parents=True, exist_ok=True)
    _execute(path, "init", "--quiet", "--bare", f"--initial-branch={branch}", ".")


def clone(url: str, path: Path) -> None:
    """Make a work tree of a repository."""
    _execute(path.parent, "clone", "--quiet", url, str(path))


def pull(path: Path) -> None:
    """Bring a work tree to the tip of its branch."""
    _execute(path, "pull", "--quiet", "--ff-only")


def config_get(path: Path, name: str) -> str:
    """A setting of a clone; empty when it has none or is no clone."""
    return _asked(path, "config", "--get", name) or ""


def config_set(path: Path, name: str, value: str) -> None:
    """Set a setting of a clone."""
    _execute(path, "config", name, value)


def top_of(path: Path) -> Path:
    """The top folder of the work tree that `path` is in; `path` itself where there is none."""
    return Path(_asked(path, "rev-parse", "--show-toplevel") or path)


def would_commit(path: Path) -> list[str] | None:
    """Files below a folder that are tracked or would be, sorted; None where Git does not know the folder."""
    listed = _asked(path, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    return None if listed is None else sorted({name for name in listed.split("\0") if name})


def origin_of(path: Path) -> str:
    """URL that a clone was made from; the path itself where it is bare; empty where it is no repository."""
    is_bare = _asked(path, "rev-parse", "--is-bare-repository")
    if is_bare is None or is_bare == "true":
        return str(path) if is_bare else ""
    url = config_get(path, "remote.origin.url")
    return str((path / url).resolve()) if url and "://" not in url and ":" not in url.split("/")[0] else url


def _asked(folder: Path, *args: str) -> str | None:
    """What Git prints, without the end of the line; None where it does not know."""
    try:
        return Program(folder).run(*args).removesuffix("\n")
    except GitFailed:
        return None


def _execute(folder: Path, *args: str) -> None:
    try:
        Program(folder).run(*args)
    except GitFailed as error:
        raise outside(f"git {args[0]} in {folder}", str(error)) from error
