"""Other repositories: one commit at a time, without history, for those who build from it."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Protocol

from controller.adapters.git.access import GitAccess, scan
from controller.adapters.git.commits import facts_of
from controller.adapters.git.lfs import LargeFiles
from controller.adapters.git.mirror import FETCH, Mirror
from controller.adapters.git.program import GitFailed
from controller.adapters.git.refusals import outside
from controller.adapters.git.urls import host_of, is_ssh, local_path, mirror_name, shown
from policies.errors import DesiredStateError, OutsideError, RefusedError
from policies.pointers import Pointer
from policies.submodules import tree_within
from policies.terms.revision import CommitFacts, Signature, TagFacts
from policies.terms.source import Elsewhere, Resolved, Submodule
from reconcilers.ports import TreeFile

_COMMIT = re.compile(r"[0-9a-f]{40}")
_UNASKED = ("not our ref", "unadvertised object", "couldn't find remote ref")
"""What a server says that gives out its branches and tags, but no commit by its name."""


class Pinned(Mirror):
    """Single commits of a repository. Its mirror knows no history, so it is never that of a branch that is followed."""

    def resolve(self, revision: str) -> str:
        """The commit that a branch, tag or commit is now, which is then here.

        Args:
            revision: As Git reads names, tags before branches; empty for the repository's default branch.

        Raises:
            OutsideError: The repository does not answer, refuses, or has nothing of that name.
        """
        if _COMMIT.fullmatch(revision):
            self.bring(revision)
            return revision
        ref = f"refs/myelin/named/{mirror_name(revision)}"
        with self._writing():
            self._ask(f"{revision or 'the default branch'} of {shown(self.url)}", f"+{revision or 'HEAD'}:{ref}", "--depth=1")
            commit = self._run("rev-parse", "--verify", f"{ref}^{{commit}}").strip()
            self._keep(commit)
        return commit

    def signed(self, revision: str, commit: str, signatures: ReadsSignatures) -> TagFacts | CommitFacts | None:
        """What vouches for a revision that was resolved: the annotated tag of that name, else the commit."""
        if not _COMMIT.fullmatch(revision):
            named = f"refs/myelin/named/{mirror_name(revision)}"
            info = self._objects.info(named)
            if info is not None and info[1] == "tag":
                return signatures.read_tag(self._objects.content(named) or b"")
        raw = self._objects.content(commit)
        if raw is None:
            return None
        return facts_of(commit, raw, paths=(), project=None, signers_of=lambda _: (), read_signature=signatures.read)

    def bring(self, commit: str) -> None:
        """Make one commit be here, with all of its files and nothing before it.

        Raises:
            OutsideError: The repository does not answer, refuses, or has no such commit.
        """
        if self._is_here(commit):
            return
        what = f"{commit[:12]} of {shown(self.url)}"
        with self._writing():
            try:
                self._ask(what, f"+{commit}:{_place(commit)}", "--depth=1")
                return
            except _NotGiven:
                pass
            # The server gives out no commit by its name: all branches and tags are asked for, and then it is among them or not.
            args = ["--unshallow"] if (self._mirror / "shallow").exists() else []
            self._ask(what, "+refs/heads/*:refs/myelin/all/heads/*", "+refs/tags/*:refs/myelin/all/tags/*", *args)
            if not self._objects.info(commit):
                raise RefusedError(f"{what}: expected this commit there, there is none", reason="RevisionMissing")
            self._keep(commit)

    def prove(self) -> None:
        """See that the server lets us read: what others brought here may be nothing for us.

        Raises:
            OutsideError: It does not, or it does not answer.
        """
        if local_path(self.url) is None:
            try:
                self._git.run("ls-remote", "--quiet", self.url, "HEAD", env=self._login.environment)
            except GitFailed as error:
                raise outside(f"look at {shown(self.url)}", str(error), scan=scan(self.url)) from error

    def _is_here(self, commit: str) -> bool:
        return (self._mirror / _place(commit)).exists() and self._objects.info(commit) is not None

    def _keep(self, commit: str) -> None:
        self._run("update-ref", _place(commit), commit)

    def _ask(self, what: str, *args: str) -> None:
        options, refspecs = [item for item in args if item.startswith("--")], [item for item in args if not item.startswith("--")]
        try:
            self._git.run(*FETCH, *options, self.url, *refspecs, env=self._login.environment)
        except GitFailed as error:
            if any(word in str(error) for word in _UNASKED):
                raise _NotGiven(f"{what}: expected a branch, tag or commit of that name, there is none") from error
            raise outside(what, str(error), scan=scan(self.url)) from error


class ReadsSignatures(Protocol):
    """Tells what signatures say, before anybody trusts them."""

    def read(self, armored: str, data: bytes) -> Signature:
        """What an armored signature says of `data`."""
        ...

    def read_tag(self, raw: bytes) -> TagFacts | None:
        """What an annotated tag says; None where it is none."""
        ...


class _NotGiven(RefusedError):
    default_reason = "RevisionMissing"


class OtherRepositories:
    """Implements `reconcilers.ports.Sources`.

    Args:
        folder: Where mirrors go, one for each repository; several projects may share it.
        url: The repository that is followed.
        access: How its server is reached; others on the same host are reached the same way.
        secret: Reads the access that a manifest names; None: a machine's user has their own set-up, and secrets mean nothing.
        signatures: Reads those of tags and commits; None: sources that must be signed are refused.
        is_shared: Whether the machine is shared with other projects, whose paths on disk are no repositories for this one.
    """

    def __init__(
        self,
        folder: Path,
        url: str,
        access: GitAccess | None = None,
        *,
        secret: Callable[[Elsewhere], GitAccess] | None = None,
        signatures: ReadsSignatures | None = None,
        is_shared: bool = False,
    ) -> None:
        self._folder, self._url, self._access = folder, url, access
        self._secret, self._is_shared, self._signatures = secret, is_shared, signatures
        self._open: dict[Elsewhere, Pinned] = {}
        self._guard = threading.Lock()

    def resolve(self, source: Elsewhere, folders: Sequence[str]) -> Resolved:
        """Which commit a revision is now, with the tree ids of folders in it."""
        mirror = self._mirror(source)
        commit = mirror.resolve(source.revision)
        trees = {folder: mirror.tree_id(commit, folder) for folder in folders}
        if not all(trees.values()):
            gitlinks = {item.path: item.blob for item in mirror.files(commit) if item.submodule}
            trees = {folder: tree or tree_within(folder, gitlinks) for folder, tree in trees.items()}
        signed = None
        if source.verify and self._signatures is not None:
            signed = mirror.signed(source.revision, commit, self._signatures)
        return Resolved(repo=source.repo, revision=source.revision, commit=commit, trees=trees, signed=signed)

    def beside(self, source: Elsewhere | None, module: Submodule) -> Elsewhere:
        """Where a submodule is, with the access of the repository that names it when its server is the same.

        Args:
            source: The repository that it lies in; None: the one that is followed.
            module: The submodule.
        """
        found = Elsewhere(repo=module.url, revision=module.commit)
        if source is None or host_of(source.repo) != host_of(module.url) or is_ssh(source.repo) != is_ssh(module.url):
            return found
        return replace(found, secret=source.secret, secret_key=source.secret_key)

    def files(self, source: Elsewhere, commit: str, folder: str) -> tuple[TreeFile, ...]:
        """All files below a folder of a commit, which is fetched again where it is not here any more."""
        mirror = self._mirror(source)
        mirror.bring(commit)
        return mirror.files(commit, folder)

    def committed_at(self, source: Elsewhere, commit: str) -> datetime:
        """The committer's instant of a commit, UTC."""
        mirror = self._mirror(source)
        mirror.bring(commit)
        return mirror.committed_at(commit)

    def read_many(self, source: Elsewhere, commit: str, paths: Sequence[str]) -> Mapping[str, bytes]:
        """Contents of several files of a commit."""
        return self._mirror(source).read_many(commit, paths)

    def large_files(self, source: Elsewhere | None, pointers: Sequence[Pointer], folder: Path) -> Mapping[str, bytes]:
        """Content of Git LFS, by digest.

        Args:
            source: The repository with the pointers; None: the one that is followed.
            pointers: What is wanted.
            folder: Where content is kept; nobody but this project may have it, as a digest alone opens what is there.
        """
        url, access = (self._url, self._access) if source is None else (source.repo, self._access_for(source))
        return LargeFiles(url, access, folder).fetch(pointers)

    def close(self) -> None:
        """End helper processes, and forget logins."""
        with self._guard:
            for mirror in self._open.values():
                mirror.close()
            self._open.clear()

    def _mirror(self, source: Elsewhere) -> Pinned:
        with self._guard:
            if source not in self._open:
                if self._is_shared and local_path(source.repo) is not None:
                    text = f"{source}: expected a URL of a Git server, got a path of the controller's machine"
                    raise DesiredStateError(text, reason="BadUrl")
                access = self._access_for(source)
                mirror = Pinned(source.repo, self._folder / f"{mirror_name(source.repo)}-pinned", access)
                try:
                    mirror.prove()
                except OutsideError:
                    mirror.close()
                    raise
                self._open[source] = mirror
            return self._open[source]

    def _access_for(self, source: Elsewhere) -> GitAccess | None:
        if source.secret and self._secret is not None:
            return self._secret(source)
        return self._access if host_of(source.repo) == host_of(self._url) else None


def _place(commit: str) -> str:
    return f"refs/myelin/pins/{commit}"
