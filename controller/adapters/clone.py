"""A person's clone: commits that the person makes by command, with the person's own Git program, identity and signing.

The work tree and the index are never touched, hooks are not run, and a branch is only moved from the tip that was read.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from controller.adapters.git import init_bare, shown
from controller.adapters.git.refusals import outside, pushed
from policies.errors import DesiredStateError, RefusedError
from policies.writeback import is_plain

_SETTINGS = (
    ("core.hooksPath", "/dev/null"),
    ("submodule.recurse", "false"),
    ("fetch.recurseSubmodules", "false"),
    ("push.recurseSubmodules", "no"),
    ("push.followTags", "false"),
    ("gc.auto", "0"),
    ("maintenance.auto", "false"),
)
_LEFT_OUT = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_PREFIX", "GIT_COMMON_DIR")
"""What a hook or alias that calls us sets for its own Git."""
HOW_TO_SIGN_HERE = "set it up to sign: `git config gpg.format ssh` and `git config user.signingKey FILE`"
LONGEST_SECONDS = 300.0
"""How long one step may take, a passphrase and its typing included."""


class Clone:
    """Reads a branch of the clone's origin, and commits on it.

    Args:
        folder: Any folder of the clone.
        remote: Name or URL of where it is fetched from and pushed to.
        url: The same for messages.
    """

    def __init__(self, folder: Path, *, remote: str = "origin", url: str = "") -> None:
        self._folder, self._remote, self._url = folder, remote, shown(url or remote)

    def fetch(self, branch: str) -> str:
        """Bring a branch of the remote here, and return its tip; empty when there is no such branch.

        Raises:
            OutsideError: The remote does not answer or refuses.
        """
        ref = f"refs/remotes/origin/{branch}"
        try:
            self._try("fetch", "--quiet", "--no-tags", "--no-write-fetch-head", self._remote, f"+refs/heads/{branch}:{ref}")
        except _FailedError as error:
            if "couldn't find remote ref" in str(error).lower():
                return ""
            raise outside(f"fetch of {branch} from {self._url}", str(error)) from error
        return self._run("rev-parse", "--verify", f"{ref}^{{commit}}").decode().strip()

    def resolve(self, revision: str) -> str:
        """The commit that a branch, tag or short name means in the clone; empty when it means none."""
        try:
            return self._try("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}").decode().strip()
        except _FailedError:
            return ""

    def paths(self, commit: str, folder: str = "") -> list[str]:
        """All files below a folder of a commit, sorted."""
        listed = self._run("ls-tree", "-r", "-z", "--name-only", "--full-tree", commit, *(["--", f"{folder}/"] if folder else []))
        return sorted(name for name in listed.decode(errors="surrogateescape").split("\0") if name)

    def read(self, commit: str, path: str) -> bytes | None:
        """Content of a file of a commit; None when there is none."""
        try:
            return self._try("cat-file", "blob", f"{commit}:{path}")
        except _FailedError:
            return None

    def raw(self, commit: str) -> bytes:
        """A commit as Git stores it."""
        return self._run("cat-file", "commit", commit)

    def search(self, commit: str, pattern: str, names: Sequence[str]) -> list[str]:
        """Files of a commit with a line that fits an extended regular expression.

        Args:
            commit: Where to look.
            pattern: What to look for.
            names: Patterns of paths, `*.yaml`.
        """
        try:
            found = self._try("grep", "-l", "-z", "-I", "-E", "-e", pattern, commit, "--", *names)
        except _FailedError:
            return []  # none has it
        listed = found.decode(errors="surrogateescape").split("\0")
        return sorted(name.removeprefix(f"{commit}:") for name in listed if name)

    def commit(self, parent: str, changes: Mapping[str, bytes], message: str, *, may_be_unsigned: bool) -> str:
        """Make a commit by the person; no branch moves.

        Args:
            parent: What it is based on.
            changes: Path -> new content.
            message: Its message.
            may_be_unsigned: Whether a clone that is not set up to sign is no reason to refuse.
        Raises:
            RefusedError: The clone does not sign, or its signing program says no.
        """
        signs = self._signs()
        if not signs and not may_be_unsigned:
            raise RefusedError(f"{self._folder}: expected a clone that signs commits, this one does not; {HOW_TO_SIGN_HERE}")
        with tempfile.TemporaryDirectory(prefix="myelin-") as scratch:
            index = {"GIT_INDEX_FILE": str(Path(scratch) / "index")}
            self._run("read-tree", parent, env=index)
            for path, content in sorted(changes.items()):
                if not is_plain(path):
                    raise DesiredStateError(f"{path!r}: expected a plain path inside of the repository", reason="OddPath")
                mode = self._mode(parent, path)
                blob = self._run("hash-object", "-w", "--stdin", "--no-filters", stdin=content).decode().strip()
                self._run("update-index", "-z", "--index-info", stdin=f"{mode} {blob}\t{path}\0".encode(), env=index)
            tree = self._run("write-tree", env=index).decode().strip()
        arguments = ["commit-tree", tree, "-p", parent, *(["-S"] if signs else ["--no-gpg-sign"])]
        try:
            return self._try(*arguments, stdin=message.encode()).decode().strip()
        except _FailedError as error:
            words = " ".join(str(error).split())[:300]
            raise RefusedError(f"{self._folder}: commit not made: {words}", reason="NotSigned") from error

    def push(self, branch: str, commit: str, *, expected: str) -> None:
        """Make `commit`, a child of `expected`, the tip of a branch whose tip still is `expected`.

        Args:
            branch: The branch.
            commit: Its new tip.
            expected: Its tip until now; empty when it must not exist yet.
        Raises:
            ConflictError: Somebody was faster.
            RefusedError: The server refuses the push.
            SilentError: It does not answer.
        """
        ref = f"refs/heads/{branch}"
        lease = f"--force-with-lease={ref}:{expected}"
        try:
            self._try("push", "--quiet", "--porcelain", "--no-verify", lease, self._remote, f"{commit}:{ref}")
        except _FailedError as error:
            raise pushed(branch, expected, self._url, str(error)) from error

    def _signs(self) -> bool:
        """Whether the person's settings say with what to sign."""
        if self._setting("commit.gpgSign", "--type=bool") == "true":
            return True
        by_program = self._setting("gpg.format") == "x509" and self._setting("gpg.x509.program")
        return any((self._setting("user.signingKey"), self._setting("gpg.ssh.defaultKeyCommand"), by_program))

    def _setting(self, name: str, *more: str) -> str:
        try:
            return self._try("config", *more, "--get", name).decode().strip()
        except _FailedError:
            return ""

    def _mode(self, commit: str, path: str) -> str:
        listed = self._run("ls-tree", "-z", "--full-tree", commit, "--", path).decode(errors="surrogateescape")
        mode = listed.split(" ", 1)[0] if listed else "100644"
        if mode not in ("100644", "100755"):
            raise DesiredStateError(f"{path}: expected a file, got a link or folder", reason="OddPath")
        return mode

    def _run(self, *args: str, stdin: bytes = b"", env: Mapping[str, str] | None = None) -> bytes:
        try:
            return self._try(*args, stdin=stdin, env=env)
        except _FailedError as error:
            raise outside(f"git {args[0]} in {self._folder}", str(error)) from error

    def _try(self, *args: str, stdin: bytes = b"", env: Mapping[str, str] | None = None) -> bytes:
        """What Git prints.

        Raises:
            _FailedError: It ended with an error.
        """
        given = {name: value for name, value in os.environ.items() if name not in _LEFT_OUT}
        number = int(given.get("GIT_CONFIG_COUNT", "0") or 0)
        for key, value in _SETTINGS:
            given |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
            number += 1
        given |= {"GIT_CONFIG_COUNT": str(number), "LC_ALL": "C", **(env or {})}
        try:
            done = subprocess.run(
                ["git", *args],
                cwd=self._folder,
                input=stdin,
                env=given,
                capture_output=True,
                timeout=LONGEST_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise _FailedError(f"no answer within {LONGEST_SECONDS:.0f} s") from error
        except OSError as error:
            raise _FailedError(f"git: {error.strerror}") from error
        if done.returncode:
            said = done.stderr.decode(errors="replace") + "\n" + done.stdout.decode(errors="replace")
            raise _FailedError(said.strip() or f"exit code {done.returncode}")
        return done.stdout


class _FailedError(Exception):
    """`git` ended with an error; the text is what it said."""


@contextmanager
def cloned(work_tree: Path | None, url: str) -> Iterator[Clone]:
    """The clone that a person works in; where there is none, a bare one that is gone afterwards, with the person's settings.

    Args:
        work_tree: A folder of the clone.
        url: The repository.
    """
    if work_tree is not None:
        yield Clone(work_tree, url=url)
        return
    with tempfile.TemporaryDirectory(prefix="myelin-") as folder:
        init_bare(Path(folder))
        yield Clone(Path(folder), remote=url, url=url)
