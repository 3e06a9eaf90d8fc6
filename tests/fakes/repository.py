"""A Git repository in memory: the same object ids as Git's, every branch moved by compare-and-swap."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

from controller.adapters.git.repository import check_ours
from controller.adapters.keys import SshKey
from policies.errors import ConflictError, DesiredStateError
from policies.terms.revision import CommitFacts, Signature, TrustedKey
from policies.writeback import is_plain
from reconcilers.ports import TreeFile
from tests.fakes.world import Commit, World


class FakeRepository:
    """Implements `reconcilers.ports.Repository`."""

    url = "simulated:origin"

    def __init__(
        self,
        world: World,
        key: SshKey | None,
        *,
        author: str = "Myelin",
        email: str = "myelin@localhost",
        signers_of: Callable[[bytes], tuple[TrustedKey, ...]] = lambda _: (),
    ) -> None:
        self._world, self._key, self._signers_of = world, key, signers_of
        self._who = f"{author} <{email}>"

    def fetch(self, branch: str, *, fresh: bool = False) -> str:
        return self._world.outside.branches.get(branch, "")

    def facts(self, *, since: str, until: str) -> tuple[CommitFacts, ...]:
        known = {commit.id for commit in self._line(since)}
        return tuple(self._facts_of(commit) for commit in reversed(self._line(until)) if commit.id not in known)

    def committed_at(self, commit: str) -> datetime:
        found = self._world.outside.commits.get(commit)
        if found is None:
            raise DesiredStateError(f"commit {commit[:12]}: expected it here, there is none", reason="CommitMissing")
        return found.at

    def tree_id(self, commit: str, path: str) -> str:
        files = self._files(commit)
        if path in files:
            return _object("blob", files[path])
        top = f"{path}/" if path else ""
        below = {name[len(top) :]: content for name, content in files.items() if name.startswith(top)}
        return _tree(below) if below else ""

    def files(self, commit: str, folder: str = "") -> tuple[TreeFile, ...]:
        top = folder.rstrip("/") + "/" if folder else ""
        return tuple(
            TreeFile(path=path, blob=_object("blob", content), executable=False, symlink=False, size_bytes=len(content))
            for path, content in sorted(self._files(commit).items())
            if path.startswith(top)
        )

    def read(self, commit: str, path: str) -> bytes:
        files = self._files(commit)
        if path not in files:
            raise DesiredStateError(f"{path}: expected this file in commit {commit[:12]}, there is none", reason="FileMissing")
        return files[path]

    def read_many(self, commit: str, paths: Sequence[str]) -> Mapping[str, bytes]:
        files = self._files(commit)
        return {path: files[path] for path in paths if path in files}

    def push(
        self, *, branch: str, parent: str, changes: Mapping[str, bytes | None], message: str, at: datetime, author: str = ""
    ) -> str:
        return self._move(branch, parent, changes, message, at, author, expected=parent)

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
        check_ours(branch)
        return self._move(branch, parent, changes, message, at, author, expected=expected)

    def withdraw(self, *, branch: str, expected: str) -> None:
        check_ours(branch)
        tip = self._world.outside.branches.get(branch, "")
        if tip and tip != expected:
            raise ConflictError(f"push to {branch}: remote moved from {expected[:12] or 'nothing'} while we wrote; looking again")
        self._world.outside.branches.pop(branch, None)

    def _move(
        self,
        branch: str,
        parent: str,
        changes: Mapping[str, bytes | None],
        message: str,
        at: datetime,
        author: str,
        *,
        expected: str,
    ) -> str:
        for path in changes:
            if not is_plain(path):
                raise DesiredStateError(f"{path!r}: expected a plain path inside of the repository", reason="OddPath")
        files = {**(self._files(parent) if parent else {}), **changes}
        commit = self._commit(
            parent, {path: content for path, content in files.items() if content is not None}, message, at, author
        )
        outside = self._world.outside
        # As Git has it: a branch that is there already needs no lease.
        if outside.branches.get(branch, "") not in (expected, commit.id):
            raise ConflictError(f"push to {branch}: remote moved from {expected[:12] or 'nothing'} while we wrote; looking again")
        outside.commits[commit.id] = commit
        outside.branches[branch] = commit.id
        return commit.id

    def _commit(self, parent: str, files: Mapping[str, bytes], message: str, at: datetime, author: str) -> Commit:
        text = message if message.endswith("\n") else message + "\n"
        who = author or self._who
        stamp = f"{who} {int(at.timestamp())} +0000"
        head = f"tree {_tree(files)}\n" + (f"parent {parent}\n" if parent else "")
        head += f"author {stamp}\ncommitter {stamp}\n"
        signature, proof = None, ""
        if self._key is not None:
            armored = self._key.sign_ssh(f"{head}\n{text}".encode()).strip("\n")
            proof = "gpgsig " + armored.replace("\n", "\n ") + "\n"
            signature = Signature(key=self._key.public(), fingerprint=self._key.fingerprint, valid=True)
        return Commit(
            id=_object("commit", f"{head}{proof}\n{text}".encode()),
            parents=(parent,) if parent else (),
            files=files,
            at=at.astimezone(UTC).replace(microsecond=0),
            author=who,
            message=text,
            signature=signature,
        )

    def _facts_of(self, commit: Commit) -> CommitFacts:
        before = self._files(commit.parents[0]) if commit.parents else {}
        paths = sorted(path for path in {*before, *commit.files} if before.get(path) != commit.files.get(path))
        return CommitFacts(
            commit=commit.id,
            parents=commit.parents,
            at=commit.at,
            author=commit.author,
            subject=commit.message.split("\n", 1)[0],
            message=commit.message,
            signature=commit.signature,
            changed_paths=tuple(paths),
            signers=self._signers_of(commit.files.get("myelin.yaml", b"")) if "myelin.yaml" in paths else None,
        )

    def _line(self, tip: str) -> list[Commit]:
        """A commit and all before it, by whichever parent; children before parents."""
        found: dict[str, Commit] = {}
        waiting = [(tip, False)] if tip else []
        while waiting:
            name, is_ready = waiting.pop()
            if name in found:
                continue
            commit = self._world.outside.commits[name]
            if is_ready:
                found[name] = commit
            else:
                waiting.append((name, True))
                waiting += [(parent, False) for parent in reversed(commit.parents)]
        return list(reversed(found.values()))

    def _files(self, commit: str) -> Mapping[str, bytes]:
        return self._world.outside.commits[commit].files


def _object(kind: str, data: bytes) -> str:
    return hashlib.sha1(b"%s %d\0%s" % (kind.encode(), len(data), data), usedforsecurity=False).hexdigest()


def _tree(files: Mapping[str, bytes]) -> str:
    """Git's id of a folder. It sorts folders as if their names ended in a slash."""
    folders: dict[str, dict[str, bytes]] = {}
    entries: list[tuple[str, str, str]] = []
    for path, content in files.items():
        name, _, rest = path.partition("/")
        if rest:
            folders.setdefault(name, {})[rest] = content
        else:
            entries.append((name, f"100644 {name}", _object("blob", content)))
    entries += [(f"{name}/", f"40000 {name}", _tree(below)) for name, below in folders.items()]
    return _object("tree", b"".join(head.encode() + b"\0" + bytes.fromhex(name) for _, head, name in sorted(entries)))
