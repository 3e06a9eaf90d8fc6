"""One repository through its bare mirror: fetched, read at pinned commits, written by compare-and-swap. No work tree.

Commits are signed here by the key that is given, without ssh-keygen or gpg.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from controller.adapters.git import packing
from controller.adapters.git.access import GitAccess, scan
from controller.adapters.git.commits import CommitKey, commit_text, facts_of
from controller.adapters.git.mirror import FETCH, Mirror, read_ref
from controller.adapters.git.past import Past
from controller.adapters.git.program import GitFailed
from controller.adapters.git.reach import TRUSTED_SECONDS, is_direct, says_nothing
from controller.adapters.git.refusals import outside, pushed
from controller.adapters.git.trees import changed_tree, write_object
from controller.adapters.git.urls import local_path, shown
from controller.adapters.keys import read_signature
from policies.errors import ConflictError, DesiredStateError, OutsideError, RefusedError, SilentError
from policies.retries import pause_seconds
from policies.terms.revision import CommitFacts, Signature, TrustedKey
from policies.writeback import is_plain

OURS = "myelin/"
"""Branches below it are the controller's own."""
LEDGER = "myelin/ledger"
WATCHED_SECONDS = 60.0
"""For how long a branch that somebody asked for is asked for together with others."""
SEEN_SECONDS = 1.0
"""For how long what a server said of a branch beside another's counts."""


class GitRepository(Mirror):
    """Implements `reconcilers.ports.Repository`.

    Args:
        url: URL or path of the repository.
        mirror: Folder of the bare mirror; made anew when it is damaged. Several may share one.
        key: Signs commits; None leaves them unsigned.
        author: Name in commits.
        email: Address in commits.
        signers_of: Reads `spec.trust.signers` out of a `myelin.yaml`.
        read_signature: Reads an armored signature over some bytes; SSH alone where nothing else is given.
        poll_seconds: A server far away is asked for a branch this often at most; a local one costs a file's read.
        heads: Where the branches of `url` lie; those that a clone remembers of its origin: `refs/remotes/origin`.
        access: What the server is shown and must show; None: the user's own set-up counts.
    """

    def __init__(
        self,
        url: str,
        mirror: Path,
        key: CommitKey | None,
        *,
        author: str = "Myelin",
        email: str = "myelin@localhost",
        signers_of: Callable[[bytes], tuple[TrustedKey, ...]] = lambda _: (),
        read_signature: Callable[[str, bytes], Signature] = read_signature,
        poll_seconds: float = 0.0,
        heads: str = "refs/heads",
        access: GitAccess | None = None,
    ) -> None:
        super().__init__(url, mirror, access)
        self._key, self._who = key, f"{author} <{email}>"
        self._signers_of, self._read_signature = signers_of, read_signature
        self._tips: dict[str, str] = {}
        self._poll_seconds, self._heads = poll_seconds, heads
        self._again_at: dict[str, float] = {}
        self._silent: dict[str, tuple[int, SilentError]] = {}
        self._asked_at: dict[str, float] = {}
        self._answered_at, self._is_direct = float("-inf"), None if local_path(url) is None else False
        self._seen: dict[str, tuple[float, str]] = {}
        """Branch -> until when its tip, as the server told it beside another's, counts."""

    def stir(self, branch: str) -> None:
        """Ask the server at the next fetch, however short ago it was asked; a server that is silent keeps its pause."""
        if branch not in self._silent:
            self._again_at.pop(branch, None)
            self._seen.pop(branch, None)

    def fetch(self, branch: str, *, fresh: bool = False) -> str:
        """Bring the branch here and return its tip; empty when it has no commit."""
        now = time.monotonic()
        if fresh:
            self._again_at.pop(branch, None)
            self._seen.pop(branch, None)
        if (local := local_path(self.url)) is not None:
            if not (local / "HEAD").exists() and not (local / ".git").exists():
                raise SilentError(f"repository {local}: expected a Git repository, there is none", reason="RepositoryGone")
            tip = read_ref(local, f"{self._heads}/{branch}")
            if not tip or not self._has(branch, tip):
                tip = self._bring(branch)[branch]
        elif now < self._again_at.get(branch, 0.0):
            if branch in self._silent:
                raise self._silent[branch][1]
            return self._tips.get(branch, "")
        else:
            self._again_at[branch], self._asked_at[branch] = now + self._poll_seconds, now
            tip = self._look(branch, now)
        if tip:
            self._tips[branch] = tip
        else:
            self._tips.pop(branch, None)
        return tip

    def _look(self, branch: str, now: float) -> str:
        """Tip of a branch on a server. All branches that were there and asked for of late are asked for at once."""
        if branch in self._seen and now < self._seen[branch][0]:
            return self._seen.pop(branch)[1]
        others = [name for name in self._tips if name != branch and now - self._asked_at.get(name, 0.0) < WATCHED_SECONDS]
        found = self._bring(branch, *others)
        self._silent.pop(branch, None)
        until = time.monotonic() + min(self._poll_seconds, SEEN_SECONDS)
        self._seen = {name: (until, tip) for name, tip in found.items() if name != branch}
        return found[branch]

    def _has(self, branch: str, tip: str) -> bool:
        """Whether this tip is here already: brought by us, or by another who shares the mirror."""
        if self._tips.get(branch) == tip:
            return True
        return read_ref(self._mirror, f"refs/heads/{branch}") == tip and self._objects.info(tip) is not None

    def _bring(self, branch: str, *others: str) -> dict[str, str]:
        """Ask for branches by name, and fetch what is new of them; the tip of one that has no commit is empty."""
        self._knock(f"fetch of {branch} from {shown(self.url)}", branch)
        names = (branch, *others)
        refspecs = [f"+{self._heads}/{name}:refs/heads/{name}" for name in names]
        try:
            with self._writing():
                self._git.run(*FETCH, self.url, *refspecs, env=self._login.environment)
                self._answered_at = time.monotonic()
                return {name: self._mirrored(name) for name in names}
        except GitFailed as error:
            if "couldn't find remote ref" in str(error):
                return self._bring(branch) if others else {branch: ""}
            what = f"fetch of {branch} from {shown(self.url)}"
            raise self._unanswered(branch, outside(what, str(error), scan=scan(self.url))) from error

    def _knock(self, what: str, branch: str) -> None:
        """See that the server takes connections, where it was not heard of lately: Git would wait for it for minutes."""
        if self._is_direct is None:
            self._is_direct = is_direct(self.url, proxy=self._proxy())
        if self._is_direct and time.monotonic() - self._answered_at > TRUSTED_SECONDS and says_nothing(self.url):
            raise self._unanswered(branch, SilentError(f"{what}: the host takes no connection"))

    def _proxy(self) -> str:
        try:
            return self._git.run("config", "--get-urlmatch", "http.proxy", self.url).strip()
        except GitFailed:
            return ""  # it is not set

    def _mirrored(self, branch: str) -> str:
        return read_ref(self._mirror, f"refs/heads/{branch}") or self._run("rev-parse", f"refs/heads/{branch}").strip()

    def _unanswered(self, branch: str, error: OutsideError) -> OutsideError:
        """Note that the server did not answer: it is asked less and less often."""
        if branch and isinstance(error, SilentError) and local_path(self.url) is None:
            failures = self._silent[branch][0] + 1 if branch in self._silent else 1
            self._silent[branch] = (failures, error)
            self._again_at[branch] = time.monotonic() + max(self._poll_seconds, pause_seconds(failures))
        return error

    def facts(self, *, since: str, until: str, paths: Sequence[str] = (), most: int = 0) -> tuple[CommitFacts, ...]:
        """All commits reachable from `until` and not from `since`, parents before children.

        With `paths`, only those of the branch's own line (first parents) that touch one of them: that is quick in a long history.
        With `most`, no more than the newest so many.
        """
        if since:
            # Its signers may sign what follows: whoever reads their signatures gets to know them.
            self._signers_of(self._objects.content(f"{since}:myelin.yaml") or b"")
        args = ["log", "--topo-order", "--reverse", "--format=%H", "-z", "--raw", "--no-renames", "--root"]
        args += ["--diff-merges=first-parent", *(["--first-parent", "--full-diff"] if paths else [])]
        args += [f"--max-count={most}"] if most else []
        text = self._run(*args, until, *([f"^{since}"] if since else []), "--", *paths)
        changed: dict[str, list[str]] = {}
        commit = ""
        words = iter(text.split("\0"))
        for word in words:
            if word.startswith((":", "\n:")):
                changed[commit].append(next(words))  # the path, whatever its name looks like
            elif word.strip("\n"):
                commit = word.strip("\n")
                changed[commit] = []
        return tuple(self._facts_of(commit, tuple(sorted(paths))) for commit, paths in changed.items())

    def push(
        self, *, branch: str, parent: str, changes: Mapping[str, bytes | None], message: str, at: datetime, author: str = ""
    ) -> str:
        """Commit `changes` on `parent` and push by compare-and-swap."""
        commit = self._commit(parent, changes, message, at, author)
        self._send(branch, commit, expected=parent)
        return commit

    def propose(
        self,
        *,
        branch: str,
        parent: str,
        changes: Mapping[str, bytes | None],
        message: str,
        at: datetime,
        expected: str,
        author: str = "",
    ) -> str:
        """Commit `changes` on `parent` and make it the tip of a branch of ours, whatever that was based on before."""
        check_ours(branch)
        commit = self._commit(parent, changes, message, at, author)
        self._send(branch, commit, expected=expected)
        return commit

    def withdraw(self, *, branch: str, expected: str) -> None:
        """Delete a branch of ours if its tip still is `expected`; one that is gone is passed over."""
        check_ours(branch)
        try:
            self._send(branch, "", expected=expected)
        except ConflictError:
            # Git's words for a branch that is gone are those for one that moved.
            if self.fetch(branch, fresh=True):
                raise

    def _send(self, branch: str, commit: str, *, expected: str) -> None:
        """Make `commit` the tip of a branch that still has the tip `expected`; an empty commit deletes it."""
        if branch in self._silent and time.monotonic() < self._again_at.get(branch, 0.0):
            raise self._silent[branch][1]
        self._knock(f"push to {branch} of {shown(self.url)}", branch)
        ref = f"refs/heads/{branch}"
        lease = f"--force-with-lease={ref}:{expected}"
        try:
            environment = self._login.environment
            self._git.run("push", "--quiet", "--porcelain", "--no-verify", lease, self.url, f"{commit}:{ref}", env=environment)
        except GitFailed as error:
            self._again_at.pop(branch, None)
            self._seen.pop(branch, None)
            if commit or "remote ref does not exist" not in str(error):
                raise pushed(branch, expected, shown(self.url), str(error), scan=scan(self.url)) from error
        with self._writing():
            self._run("update-ref", *((ref, commit) if commit else ("-d", ref)))
            if packing.is_due(self._mirror):
                packing.pack(self._git, self._mirror)
        self._seen.pop(branch, None)
        if commit:
            self._tips[branch] = commit
        else:
            self._tips.pop(branch, None)

    def _commit(self, parent: str, changes: Mapping[str, bytes | None], message: str, at: datetime, author: str) -> str:
        for path in changes:
            if not is_plain(path):
                raise DesiredStateError(f"{path!r}: expected a plain path inside of the repository", reason="OddPath")
        before = self.tree_id(parent, "") if parent else ""
        if parent and not before:
            raise SilentError(f"commit {parent[:12]}: expected it in the mirror, it is not there", reason="CommitMissing")
        try:
            blobs = {path: None if content is None else self._keep("blob", content) for path, content in changes.items()}
            tree = changed_tree(before, blobs, read=self._objects.folder, write=lambda content: self._keep("tree", content))
            text = commit_text(tree=tree, parent=parent, who=author or self._who, at=at, message=message, key=self._key)
            return self._keep("commit", text)
        except OSError as error:
            reason = "DiskFull" if error.errno == errno.ENOSPC else "Disk"
            raise SilentError(f"mirror {self._mirror}: {error.strerror or error}", reason=reason) from error

    def _keep(self, kind: str, content: bytes) -> str:
        return write_object(self._mirror, kind, content)

    def _facts_of(self, commit: str, paths: tuple[str, ...]) -> CommitFacts:
        project = (self._objects.content(f"{commit}:myelin.yaml") or b"") if "myelin.yaml" in paths else None
        raw = self._objects.content(commit) or b""
        return facts_of(
            commit, raw, paths=paths, project=project, signers_of=self._signers_of, read_signature=self._read_signature
        )

    def past(self) -> Past:
        """What the commits that are here did."""
        return Past(self._git, self._objects)


def check_ours(branch: str) -> None:
    """See that a branch is one that the controller may move and delete as it likes.

    Raises:
        RefusedError: It is not.
    """
    if not branch.startswith(OURS) or branch == LEDGER:
        raise RefusedError(f"branch {branch}: expected one below {OURS} that is not the ledger", reason="OutOfBounds")
