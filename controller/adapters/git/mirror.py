"""A bare mirror on disk: who may write to it when, and what its commits hold. No work tree."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from controller.adapters.git.access import GitAccess, Login
from controller.adapters.git.objects import Objects
from controller.adapters.git.program import GitFailed, Program
from controller.adapters.git.refusals import outside
from controller.adapters.git.urls import is_ssh
from controller.adapters.signatures import instant_of
from policies.errors import DesiredStateError, OutsideError
from reconcilers.ports import TreeFile

FETCH = ("fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules")


class Mirror:
    """Commits of one repository, as far as they were brought here.

    Args:
        url: URL or path of the repository.
        mirror: Folder; made anew when it is damaged. Several may share one.
        access: What the server is shown and must show; None: the user's own set-up counts.
    """

    def __init__(self, url: str, mirror: Path, access: GitAccess | None = None) -> None:
        self.url, self._mirror = url, mirror
        mirror.mkdir(parents=True, exist_ok=True)
        self._git = Program(mirror)
        self._objects = Objects(self._git)
        self._prepare()
        own_ssh = is_ssh(url) and access is None and self._has_own_ssh()
        self._login = Login(access, url, own_ssh=own_ssh)

    def tree_id(self, commit: str, path: str) -> str:
        """Git object id at `path`; empty when there is none."""
        info = self._objects.info(f"{commit}:{path}" if path else f"{commit}^{{tree}}")
        return info[0] if info else ""

    def committed_at(self, commit: str) -> datetime:
        """The committer's instant, UTC."""
        for line in (self._objects.content(commit) or b"").partition(b"\n\n")[0].split(b"\n"):
            if line.startswith(b"committer "):
                return instant_of(line.decode(errors="replace"))
        raise DesiredStateError(f"commit {commit[:12]}: expected it here, there is none", reason="CommitMissing")

    def files(self, commit: str, folder: str = "") -> tuple[TreeFile, ...]:
        """All files below `folder`, sorted by path."""
        args = ["ls-tree", "-r", "-z", "-l", "--full-tree", commit]
        text = self._run(*args, *(["--", folder.rstrip("/") + "/"] if folder else []))
        found = []
        for line in text.split("\0"):
            if not line:
                continue
            head, path = line.split("\t", 1)
            mode, kind, blob, size = head.split()
            found.append(
                TreeFile(
                    path=path,
                    blob=blob,
                    executable=mode == "100755",
                    symlink=mode == "120000",
                    size_bytes=int(size) if kind == "blob" else 0,
                    submodule=kind == "commit",
                )
            )
        return tuple(sorted(found, key=lambda item: item.path))

    def read(self, commit: str, path: str) -> bytes:
        """Content of one file."""
        found = self.read_many(commit, [path])
        if path not in found:
            raise DesiredStateError(f"{path}: expected this file in commit {commit[:12]}, there is none", reason="FileMissing")
        return found[path]

    def read_many(self, commit: str, paths: Sequence[str]) -> Mapping[str, bytes]:
        """Contents of several files; those that are not there are left out."""
        found = {}
        for path in paths:
            content = self._objects.content(f"{commit}:{path}")
            if content is not None:
                found[path] = content
        return found

    def close(self) -> None:
        """End the helper process, and forget the login."""
        self._objects.close()
        self._login.close()

    def _has_own_ssh(self) -> bool:
        if os.environ.get("GIT_SSH_COMMAND") or os.environ.get("GIT_SSH"):
            return True
        try:
            return bool(self._git.run("config", "--get", "core.sshCommand").strip())
        except GitFailed:
            return False

    def _run(self, *args: str, stdin: bytes = b"", env: Mapping[str, str] | None = None) -> str:
        try:
            return self._git.run(*args, stdin=stdin, env=env)
        except GitFailed as error:
            raise outside(f"git {args[0]}", str(error)) from error

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the mirror's refs: other projects and commands may write to the same ones."""
        with (self._mirror / "myelin.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _prepare(self) -> None:
        with self._writing():
            if (self._mirror / "HEAD").exists():
                try:
                    self._run("rev-parse", "--git-dir")
                    return
                except OutsideError:
                    for part in self._mirror.iterdir():
                        if part.name != "myelin.lock":
                            shutil.rmtree(part) if part.is_dir() else part.unlink()
            self._run("init", "--quiet", "--bare", "--template=", ".")


def read_ref(repository: Path, ref: str) -> str:
    """Commit of a ref of a local repository without starting a process; empty when that cannot tell."""
    top = repository / ".git" if (repository / ".git").is_dir() else repository
    try:
        return (top / ref).read_text().strip()
    except OSError:
        pass
    try:
        for line in (top / "packed-refs").read_text().splitlines():
            if line.endswith(f" {ref}"):
                return line.split(" ", 1)[0]
    except OSError:
        pass
    return ""
