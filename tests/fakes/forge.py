"""A forge in memory, of the fake repository; and what people do there.

It takes branches from the world, as a forge takes them from its own repository: nothing needs to be told to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC
from typing import Literal

from controller.adapters.forge.forge import CLOSING, LONGEST_STATUS
from controller.adapters.forge.reviews import Review, approvals_in
from controller.adapters.keys import SshKey
from policies.errors import RefusedError
from policies.terms.proposal import Approval, PullRequest, StatusState
from policies.terms.revision import Signature
from tests.fakes.repository import _object, _tree
from tests.fakes.world import Commit, Opinion, Pull, World

US = "myelin"
WRITERS = ("owner", "reviewer", "contributor", US)
"""Who may write, and so be asked for a review."""
Style = Literal["merge", "fast-forward-only", "squash", "rebase"]


class FakeForge:
    """Implements `reconcilers.ports.Forge`, acting as the user `myelin`."""

    def __init__(self, world: World) -> None:
        self._world = world

    def stir(self) -> None:
        pass

    def find(self, head: str) -> PullRequest | None:
        found = [pull for pull in _pulls(self._world) if pull.head == head and not pull.is_fork]
        return _shown(found[-1]) if found else None

    def open(
        self, *, head: str, base: str, title: str, body: str, labels: Sequence[str], reviewers: Sequence[str]
    ) -> PullRequest:
        for pull in _pulls(self._world):
            if (pull.state, pull.head, pull.base, pull.is_fork) == ("open", head, base, False):
                return _shown(pull)
        number = make_pull(self._world, head, base, title=title, body=body, by=US)
        made = self._world.outside.pulls[number]
        made.labels = list(dict.fromkeys(labels))
        made.reviewers = [name for name in reviewers if name in WRITERS and name != US]
        return _shown(made)

    def update(self, number: int, *, title: str, body: str) -> None:
        pull = _pull(self._world, number)
        pull.title, pull.body = title, body

    def close(self, number: int, *, comment: str) -> None:
        if _pull(self._world, number).state == "open":
            self.comment(number, marker=CLOSING, body=comment)
            close(self._world, number, by=US)

    def comment(self, number: int, *, marker: str, body: str) -> None:
        pull, text = _pull(self._world, number), body if marker in body else f"{marker}\n{body}"
        for at, (by, said) in enumerate(pull.comments):
            if by == US and marker in said:
                pull.comments[at] = (US, text)
                return
        pull.comments.append((US, text))

    def approvals(self, number: int) -> tuple[Approval, ...]:
        opinions = _pull(self._world, number).opinions
        return approvals_in(
            Review(by=it.by, commit=it.commit, at=it.at, verdict=it.verdict) for it in opinions if it.by in WRITERS
        )

    def set_status(self, commit: str, *, context: str, state: StatusState, text: str, url: str = "") -> None:
        if commit not in self._world.outside.commits:
            raise RefusedError(f"forge simulated: status {context} of {commit[:12]}: expected that commit to be there")
        text = text if len(text) <= LONGEST_STATUS else text[: LONGEST_STATUS - 1] + "…"
        history = self._world.outside.statuses.setdefault((commit, context), [])
        if not history or history[-1] != (state, text, url):
            history.append((state, text, url))


def make_pull(
    world: World,
    head: str,
    base: str = "main",
    *,
    title: str = "please",
    body: str = "",
    by: str = "contributor",
    is_fork: bool = False,
) -> int:
    """Somebody asks for a merge; its number."""
    branches = world.outside.branches
    if head not in branches or base not in branches or branches[head] in _before(world, branches[base]):
        raise RefusedError(f"forge simulated: pull request of {head}: expected two branches that differ")
    number = len(world.outside.pulls) + 1
    made = Pull(number=number, head=head, head_commit=branches[head], base=base, title=title, body=body, by=by, is_fork=is_fork)
    world.outside.pulls[number] = made
    return number


def approve(world: World, number: int, *, by: str = "reviewer") -> None:
    """Somebody approves what is there now."""
    _say(world, number, by, "approved")


def ask_for_changes(world: World, number: int, *, by: str = "reviewer") -> None:
    """Somebody objects to what is there now."""
    _say(world, number, by, "withdrawn")


def close(world: World, number: int, *, by: str = "reviewer") -> None:
    """Somebody closes it without merging."""
    pull = _pull(world, number)
    if pull.state == "open":
        pull.state, pull.ended_by = "closed", by


def reopen(world: World, number: int) -> None:
    """Somebody opens it again."""
    pull = _pull(world, number)
    if pull.state == "closed":
        pull.state, pull.ended_by = "open", ""


def merge(
    world: World,
    number: int,
    *,
    by: str = "owner",
    style: Style = "merge",
    key: SshKey | None = None,
    delete_branch: bool = False,
) -> str:
    """Somebody presses the button; the commit that the base's tip becomes.

    Args:
        world: The world.
        number: Which one.
        by: Who presses it.
        style: What the forge makes of it.
        key: The forge's own, which signs what the forge makes; None: unsigned. A fast-forward makes nothing.
        delete_branch: Whether the head goes.
    """
    pull, outside = _pull(world, number), world.outside
    assert pull.state == "open", f"expected an open pull request, got one that is {pull.state}"
    base, head = outside.branches[pull.base], pull.head_commit
    fork_point = next((name for name in _before(world, base) if name in set(_before(world, head))), "")
    if style == "fast-forward-only":
        assert fork_point == base, "expected the base to be an ancestor of the head, as a fast-forward needs"
    if style == "fast-forward-only" or (style == "rebase" and fork_point == base):
        made = head
    else:
        old, new = _files(world, fork_point), _files(world, head)
        files = dict(_files(world, base))
        for path in {*old, *new}:
            if old.get(path) != new.get(path):
                assert files.get(path) in (old.get(path), new.get(path)), f"{path}: changed on both sides"
                if path in new:
                    files[path] = new[path]
                else:
                    files.pop(path, None)
        parents = (base, head) if style == "merge" else (base,)
        title = f"Merge pull request '{pull.title}' (#{number}) from {pull.head} into {pull.base}"
        message = (
            title if style == "merge" else f"{pull.title} (#{number})" if style == "squash" else outside.commits[head].message
        )
        made = _commit(world, parents, files, message, by, key)
    outside.branches[pull.base] = made
    pull.state, pull.merge_commit, pull.ended_by = "merged", made, by
    if delete_branch:
        outside.branches.pop(pull.head, None)
    return made


def statuses(world: World, commit: str) -> dict[str, tuple[str, str, str]]:
    """Context -> newest state, text and URL of a commit."""
    return {context: history[-1] for (name, context), history in world.outside.statuses.items() if name == commit}


def _say(world: World, number: int, by: str, verdict: Literal["approved", "withdrawn"]) -> None:
    pull = _pull(world, number)
    assert by != pull.by, "nobody reviews their own"
    pull.opinions.append(Opinion(by=by, commit=pull.head_commit, at=world.outside.now, verdict=verdict))


def _pulls(world: World) -> list[Pull]:
    """All, each with its head as it is now: an open one follows its branch, and ends when that goes."""
    for pull in world.outside.pulls.values():
        if pull.state == "open" and not pull.is_fork:
            tip = world.outside.branches.get(pull.head, "")
            if tip:
                pull.head_commit = tip
            else:
                pull.state = "closed"
    return list(world.outside.pulls.values())


def _pull(world: World, number: int) -> Pull:
    found = [pull for pull in _pulls(world) if pull.number == number]
    if not found:
        raise RefusedError(f"forge simulated: pull request {number}: expected that to be there")
    return found[0]


def _shown(pull: Pull) -> PullRequest:
    return PullRequest(
        number=pull.number,
        url=f"simulated:forge/pulls/{pull.number}",
        state=pull.state,
        head=pull.head,
        head_commit=pull.head_commit,
        base=pull.base,
        merge_commit=pull.merge_commit,
        ended_by=pull.ended_by,
        title=pull.title,
        body=pull.body,
    )


def _files(world: World, commit: str) -> Mapping[str, bytes]:
    return world.outside.commits[commit].files if commit else {}


def _before(world: World, tip: str) -> Iterator[str]:
    """A commit and all before it, nearest first."""
    waiting, seen = [tip], {tip}
    while waiting:
        name = waiting.pop(0)
        yield name
        for parent in world.outside.commits[name].parents:
            if parent not in seen:
                seen.add(parent)
                waiting.append(parent)


def _commit(world: World, parents: tuple[str, ...], files: Mapping[str, bytes], message: str, by: str, key: SshKey | None) -> str:
    text = message if message.endswith("\n") else message + "\n"
    who = f"{by} <{by}@localhost>"
    stamp = f"{who} {int(world.outside.now.timestamp())} +0000"
    head = f"tree {_tree(files)}\n" + "".join(f"parent {parent}\n" for parent in parents)
    head += f"author {stamp}\ncommitter {stamp}\n"
    signature, proof = None, ""
    if key is not None:
        armored = key.sign_ssh(f"{head}\n{text}".encode()).strip("\n")
        proof = "gpgsig " + armored.replace("\n", "\n ") + "\n"
        signature = Signature(key=key.public(), fingerprint=key.fingerprint, valid=True)
    made = Commit(
        id=_object("commit", f"{head}{proof}\n{text}".encode()),
        parents=parents,
        files=files,
        at=world.outside.now.astimezone(UTC).replace(microsecond=0),
        author=who,
        message=text,
        signature=signature,
    )
    world.outside.commits[made.id] = made
    return made.id
