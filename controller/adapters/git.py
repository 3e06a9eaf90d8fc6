"""The door to GitPython: one bare mirror, read at pinned commits, written by compare-and-swap. No work tree.

Commits are signed here by the key that is given, without ssh-keygen; hooks, templates and signing settings of the
user do not reach in, proxies and certificates do.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from subprocess import PIPE
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from controller.adapters.keys import SshKey, read_signature
from policies.errors import ConflictError, DesiredStateError, OutsideError, RefusedError, SilentError
from policies.retries import pause_seconds
from policies.terms.revision import CommitFacts, TrustedKey
from policies.terms.secret import Secret
from policies.writeback import is_plain
from reconcilers.ports import TreeFile

_LOST = ("fetch first", "non-fast-forward", "stale info", "cannot lock ref", "incorrect old value", "failed to update ref")
_LOGIN = ("authentication failed", "returned error: 401", "could not read username", "could not read password")
_NO = (
    "remote rejected",
    "hook declined",
    "denied",
    "not allowed",
    "permission",
    "returned error: 403",
    *_LOGIN,
)
_ENVIRONMENT = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_OPTIONAL_LOCKS": "0",
    "LC_ALL": "C",
    # A server that sends less than this many bytes a second for so many seconds is silent.
    "GIT_HTTP_LOW_SPEED_LIMIT": "100",
    "GIT_HTTP_LOW_SPEED_TIME": "30",
    "GIT_CONFIG_COUNT": "4",
    "GIT_CONFIG_KEY_0": "core.hooksPath",
    "GIT_CONFIG_VALUE_0": "/dev/null",
    "GIT_CONFIG_KEY_1": "commit.gpgSign",
    "GIT_CONFIG_VALUE_1": "false",
    "GIT_CONFIG_KEY_2": "gc.auto",
    "GIT_CONFIG_VALUE_2": "0",
    "GIT_CONFIG_KEY_3": "safe.directory",
    "GIT_CONFIG_VALUE_3": "*",
}


def shown(url: str) -> str:
    """A URL without user, password and query, for messages."""
    if "://" not in url:
        return url
    parts = urlsplit(url)
    host = parts.hostname or ""
    return urlunsplit((parts.scheme, f"{host}:{parts.port}" if parts.port else host, parts.path, "", ""))


class GitRepository:
    """Implements `reconcilers.ports.Repository`.

    Args:
        url: URL or path of the repository.
        mirror: Folder of the bare mirror; made anew when it is damaged.
        key: Signs commits; None leaves them unsigned.
        author: Name in commits.
        email: Address in commits.
        signers_of: Reads `spec.trust.signers` out of a `myelin.yaml`.
        poll_seconds: A server far away is asked for a branch this often at most; a local one costs a file's read.
        heads: Where the branches of `url` lie; those that a clone remembers of its origin: `refs/remotes/origin`.
        login: Value of the header `Authorization`, for a server over HTTP that asks for one.
    """

    def __init__(
        self,
        url: str,
        mirror: Path,
        key: SshKey | None,
        *,
        author: str = "Myelin",
        email: str = "myelin@localhost",
        signers_of: Callable[[bytes], tuple[TrustedKey, ...]] = lambda _: (),
        poll_seconds: float = 0.0,
        heads: str = "refs/heads",
        login: Secret | None = None,
    ) -> None:
        self.url = url
        self._mirror, self._key, self._author, self._email = mirror, key, author, email
        self._signers_of = signers_of
        self._tips: dict[str, str] = {}
        self._poll_seconds, self._heads = poll_seconds, heads
        self._again_at: dict[str, float] = {}
        self._silent: dict[str, tuple[int, SilentError]] = {}
        self._batch: Any = None
        self._asking = threading.Lock()
        """One question at a time: a pass and a build in its thread read through the same helper process."""
        self._git = _git(mirror)
        # In the environment, not among the arguments, which every process of this machine may read.
        self._login = _header(login) if login is not None else None
        self._prepare()

    def fetch(self, branch: str) -> str:
        """Bring the branch here and return its tip; empty when it has no commit."""
        if (local := _local(self.url)) is not None:
            if not (local / "HEAD").exists() and not (local / ".git").exists():
                raise SilentError(f"repository {local}: expected a Git repository, there is none", reason="RepositoryGone")
            tip = _read_ref(local, f"{self._heads}/{branch}")
            if tip and self._tips.get(branch) == tip:
                return tip
        elif time.monotonic() < self._again_at.get(branch, 0.0):
            if branch in self._silent:
                raise self._silent[branch][1]
            return self._tips.get(branch, "")
        ref = f"refs/heads/{branch}"
        self._again_at[branch] = time.monotonic() + self._poll_seconds
        try:
            self._git.execute(
                ["git", "fetch", "--quiet", "--no-tags", "--no-write-fetch-head", self.url, f"+{self._heads}/{branch}:{ref}"],
                env=self._login,
            )
        except Exception as error:
            text = str(getattr(error, "stderr", error))
            if "couldn't find remote ref" in text:
                self._tips.pop(branch, None)
                return ""
            raise self._unanswered(branch, _outside(f"fetch of {branch} from {shown(self.url)}", text)) from error
        self._silent.pop(branch, None)
        self._tips[branch] = _read_ref(self._mirror, ref) or self._run("rev-parse", ref).strip()
        return self._tips[branch]

    def _unanswered(self, branch: str, error: OutsideError) -> OutsideError:
        """Note that the server did not answer: it is asked less and less often."""
        if isinstance(error, SilentError) and _local(self.url) is None:
            failures = self._silent[branch][0] + 1 if branch in self._silent else 1
            self._silent[branch] = (failures, error)
            self._again_at[branch] = time.monotonic() + max(self._poll_seconds, pause_seconds(failures))
        return error

    def facts(self, *, since: str, until: str) -> tuple[CommitFacts, ...]:
        """All commits reachable from `until` and not from `since`, parents before children."""
        args = ["log", "--topo-order", "--reverse", "--format=%H", "-z", "--raw", "--no-renames", "--root"]
        text = self._run(*args, "--diff-merges=first-parent", until, *([f"^{since}"] if since else []), "--")
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

    def tree_id(self, commit: str, path: str) -> str:
        """Git object id at `path`; empty when there is none."""
        info = self._object_info(f"{commit}:{path}" if path else f"{commit}^{{tree}}")
        return info[0] if info else ""

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
            if kind == "blob":
                found.append(
                    TreeFile(path=path, blob=blob, executable=mode == "100755", symlink=mode == "120000", size_bytes=int(size))
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
            content = self._object(f"{commit}:{path}")
            if content is not None:
                found[path] = content
        return found

    def push(self, *, branch: str, parent: str, changes: Mapping[str, bytes | None], message: str, at: datetime) -> str:
        """Commit `changes` on `parent` and push by compare-and-swap."""
        commit = self._commit(parent, changes, message, at)
        ref = f"refs/heads/{branch}"
        lease = f"--force-with-lease={ref}:{parent}"
        try:
            command = ["git", "push", "--quiet", "--porcelain", "--no-verify", lease, self.url, f"{commit}:{ref}"]
            self._git.execute(command, env=self._login)
        except Exception as error:
            text = f"{getattr(error, 'stderr', '')} {getattr(error, 'stdout', '')} {error}"
            self._again_at.pop(branch, None)
            raise _pushed(branch, parent, shown(self.url), text) from error
        self._run("update-ref", ref, commit)
        self._tips[branch] = commit
        return commit

    def _commit(self, parent: str, changes: Mapping[str, bytes | None], message: str, at: datetime) -> str:
        for path in changes:
            if not is_plain(path):
                raise DesiredStateError(f"{path!r}: expected a plain path inside of the repository", reason="OddPath")
        with tempfile.TemporaryDirectory(prefix="index-", dir=self._mirror) as folder:
            index = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
            if parent:
                self._run("read-tree", parent, env=index)
            lines = []
            for number, (path, content) in enumerate(sorted(changes.items())):
                if content is None:
                    lines.append(f"0 {'0' * 40}\t{path}")
                    continue
                place = Path(folder) / f"blob-{number}"
                place.write_bytes(content)
                blob = self._run("hash-object", "-w", "--no-filters", str(place)).strip()
                lines.append(f"100644 {blob}\t{path}")
            self._run("update-index", "-z", "--index-info", stdin="".join(line + "\0" for line in lines).encode(), env=index)
            tree = self._run("write-tree", env=index).strip()
        who = f"{self._author} <{self._email}> {int(at.timestamp())} +0000"
        head = f"tree {tree}\n" + (f"parent {parent}\n" if parent else "") + f"author {who}\ncommitter {who}\n"
        text = message if message.endswith("\n") else message + "\n"
        signature = ""
        if self._key is not None:
            armored = self._key.sign_ssh(f"{head}\n{text}".encode()).strip("\n")
            signature = "gpgsig " + armored.replace("\n", "\n ") + "\n"
        raw = f"{head}{signature}\n{text}".encode()
        return self._run("hash-object", "-t", "commit", "-w", "--stdin", stdin=raw).strip()

    def _facts_of(self, commit: str, paths: tuple[str, ...]) -> CommitFacts:
        raw = self._object(commit) or b""
        head, _, body = raw.partition(b"\n\n")
        fields: list[tuple[bytes, bytes]] = []
        for line in head.split(b"\n"):
            if line.startswith(b" ") and fields:
                fields[-1] = (fields[-1][0], fields[-1][1] + b"\n" + line[1:])
            else:
                name, _, value = line.partition(b" ")
                fields.append((name, value))
        armored = next((value.decode(errors="replace") for name, value in fields if name == b"gpgsig"), "")
        payload = re.sub(rb"(?m)^gpgsig(?:-sha256)? .*\n(?: .*\n)*", b"", head + b"\n") + b"\n" + body
        signer = None
        if "myelin.yaml" in paths:
            signer = self._signers_of(self._object(f"{commit}:myelin.yaml") or b"")
        author = next((value.decode(errors="replace") for name, value in fields if name == b"author"), "")
        committed = next((value.decode(errors="replace") for name, value in fields if name == b"committer"), "")
        message = body.decode(errors="replace")
        return CommitFacts(
            commit=commit,
            parents=tuple(value.decode() for name, value in fields if name == b"parent"),
            at=_instant(committed),
            author=author.rsplit(" ", 2)[0],
            subject=message.split("\n", 1)[0],
            message=message,
            signature=read_signature(armored, payload) if armored else None,
            changed_paths=paths,
            signers=signer,
        )

    def _object_info(self, name: str) -> tuple[str, str, int] | None:
        with self._asking:
            head = self._ask(name)
            if head is not None:
                self._batch.stdout.read(head[2] + 1)
            return head

    def _object(self, name: str) -> bytes | None:
        with self._asking:
            head = self._ask(name)
            if head is None:
                return None
            content: bytes = self._batch.stdout.read(head[2] + 1)
            return content[:-1] if head[1] != "tree" else None

    def _ask(self, name: str) -> tuple[str, str, int] | None:
        if "\n" in name:
            return None
        if self._batch is None or self._batch.proc.poll() is not None:
            # In a session of its own: Ctrl-C in a terminal is for us, who end the pass first.
            self._batch = self._git.execute(["git", "cat-file", "--batch"], as_process=True, istream=PIPE, start_new_session=True)
        self._batch.stdin.write(name.encode() + b"\n")
        self._batch.stdin.flush()
        head = self._batch.stdout.readline().decode(errors="replace").rstrip("\n")
        if head.endswith((" missing", " ambiguous")) or not head:
            return None
        blob, kind, size = head.rsplit(" ", 2)
        return blob, kind, int(size)

    def close(self) -> None:
        """End the helper process."""
        from git.exc import GitError

        with self._asking:
            if self._batch is not None:
                try:
                    self._batch.stdin.close()
                    self._batch.wait()
                except (GitError, OSError):
                    pass  # it is gone, which is what was wanted
                self._batch = None

    def _run(self, *args: str, stdin: bytes = b"", env: Mapping[str, str] | None = None) -> str:
        try:
            with tempfile.TemporaryFile() as source:
                source.write(stdin)
                source.seek(0)
                out = self._git.execute(
                    ["git", *args], istream=source, env=dict(env or {}), strip_newline_in_stdout=False, stdout_as_string=False
                )
        except Exception as error:
            raise _outside(f"git {args[0]}", str(getattr(error, "stderr", error))) from error
        return bytes(out).decode(errors="surrogateescape")

    def _prepare(self) -> None:
        if (self._mirror / "HEAD").exists():
            try:
                self._run("rev-parse", "--git-dir")
                return
            except OutsideError:
                shutil.rmtree(self._mirror)
        self._mirror.mkdir(parents=True, exist_ok=True)
        self._run("init", "--quiet", "--bare", "--template=", ".")


def _git(folder: Path) -> Any:
    from git.cmd import Git

    git = Git(str(folder))
    git.update_environment(**_ENVIRONMENT)
    return git


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


def _execute(folder: Path, *args: str) -> None:
    from git.exc import GitError

    try:
        _git(folder).execute(["git", *args])
    except (GitError, OSError) as error:
        raise _outside(f"git {args[0]} in {folder}", str(getattr(error, "stderr", error))) from error


def config_get(path: Path, name: str) -> str:
    """A setting of a clone; empty when it has none or is no clone."""
    from git.exc import GitError

    try:
        return str(_git(path).execute(["git", "config", "--get", name]))
    except (GitError, OSError):
        return ""


def config_set(path: Path, name: str, value: str) -> None:
    """Set a setting of a clone."""
    _execute(path, "config", name, value)


def top_of(path: Path) -> Path:
    """The top folder of the work tree that `path` is in; `path` itself where there is none."""
    from git.exc import GitError

    try:
        return Path(str(_git(path).execute(["git", "rev-parse", "--show-toplevel"])) or path)
    except (GitError, OSError):
        return path


def would_commit(path: Path) -> list[str] | None:
    """Files below a folder that are tracked or would be, sorted; None where Git does not know the folder."""
    from git.exc import GitError

    try:
        listed = _git(path).execute(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"])
    except (GitError, OSError):
        return None
    return sorted({name for name in str(listed).split("\0") if name})


def origin_of(path: Path) -> str:
    """URL that a clone was made from; the path itself where it is bare; empty where it is no repository."""
    from git.exc import GitError

    try:
        if str(_git(path).execute(["git", "rev-parse", "--is-bare-repository"])) == "true":
            return str(path)
    except (GitError, OSError):
        return ""
    url = config_get(path, "remote.origin.url")
    return str((path / url).resolve()) if url and "://" not in url and ":" not in url.split("/")[0] else url


def _local(url: str) -> Path | None:
    if url.startswith("file://"):
        return Path(url.removeprefix("file://"))
    return None if "://" in url or ":" in url.split("/")[0] else Path(url)


def _read_ref(repository: Path, ref: str) -> str:
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


def _header(login: Secret) -> dict[str, str]:
    number = int(_ENVIRONMENT["GIT_CONFIG_COUNT"])
    return {
        "GIT_CONFIG_COUNT": str(number + 1),
        f"GIT_CONFIG_KEY_{number}": "http.extraHeader",
        f"GIT_CONFIG_VALUE_{number}": f"Authorization: {login.reveal()}",
    }


def _instant(committer: str) -> datetime:
    try:
        return datetime.fromtimestamp(int(committer.rsplit(" ", 2)[1]), UTC)
    except (IndexError, ValueError):
        return datetime.fromtimestamp(0, UTC)


def _outside(what: str, text: str) -> OutsideError:
    if "no space left" in text.lower():
        return SilentError(f"{what}: no space left on the disk", reason="DiskFull")
    words = _last_words(text)
    if re.search(r"repository '.*' not found", text):
        return RefusedError(f"{what}: there is no such repository, or no access to it", reason="RepositoryGone")
    if any(word in text.lower() for word in _LOGIN):
        return RefusedError(f"{what}: the server refuses this login; look at user and password", reason="LoginRefused")
    if any(word in text.lower() for word in _NO):
        return RefusedError(f"{what}: {words}")
    return SilentError(f"{what}: {words}")


def _pushed(branch: str, parent: str, url: str, text: str) -> OutsideError:
    lowered = text.lower()
    if any(word in lowered for word in _LOST):
        return ConflictError(f"push to {branch}: remote moved from {parent[:12] or 'nothing'} while we wrote; looking again")
    if any(word in lowered for word in _NO):
        return RefusedError(f"push to {branch} of {url}: refused: {_last_words(text)}; let this user push there")
    return SilentError(f"push to {branch} of {url}: {_last_words(text)}")


def _last_words(text: str) -> str:
    # GitPython puts what the program said into quotes behind a word of its own.
    plain = re.sub(r"(?m)^\s*stderr: '", "", re.sub(r"\w+://[^@\s/]*@", "", text))
    lines = [line.strip().removeprefix("fatal: ") for line in plain.splitlines()]
    useful = [line for line in lines if line and not line.startswith(("cmdline:", "stdout:", "hint:", "Done", "To "))]
    return (useful[0] if useful else "no answer")[:300].rstrip("'").lower()
