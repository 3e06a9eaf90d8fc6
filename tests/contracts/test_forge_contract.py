"""What a forge promises: the one in memory, and a real Gitea through our own client."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from controller.adapters.forge import forge_of
from policies.errors import OutsideError, RefusedError
from policies.terms.project import Forge as ForgeSettings
from policies.terms.proposal import PullRequest
from policies.terms.secret import Secret
from reconcilers.ports import Forge
from tests.fakes import forge as fake
from tests.fakes.forge import FakeForge
from tests.fakes.repository import FakeRepository
from tests.fakes.world import World
from tests.forge.gitea import Gitea, Served

HEAD = "myelin/deploy/digits/v-1"


class Fake:
    """The forge in memory, and people there."""

    def __init__(self) -> None:
        self.world = World()
        self.forge: Forge = FakeForge(self.world)
        self.commit("main", {"README": "hello\n"})

    def commit(self, branch: str, files: dict[str, str], *, base: str = "main") -> str:
        """Commit on a branch, which is made from `base` if it is not there."""
        branches, made = self.world.outside.branches, FakeRepository(self.world, None)
        parent = branches.get(branch) or branches.get(base, "")
        if branch not in branches and parent:
            branches[branch] = parent
        changes: dict[str, bytes | None] = {path: text.encode() for path, text in files.items()}
        return made.push(branch=branch, parent=parent, changes=changes, message="change\n", at=self.world.outside.now)

    def rewrite(self, branch: str, files: dict[str, str]) -> str:
        """Make a branch anew from `main`."""
        del self.world.outside.branches[branch]
        return self.commit(branch, files)

    def make_pull(self, head: str, *, base: str = "main") -> int:
        return fake.make_pull(self.world, head, base)

    def make_pull_of_fork(self, head: str) -> int:
        self.commit("of-fork", {"theirs": "x\n"})
        self.world.outside.branches[head] = self.world.outside.branches.pop("of-fork")
        number = fake.make_pull(self.world, head, by="stranger", is_fork=True)
        del self.world.outside.branches[head]
        return number

    def approve(self, number: int, by: str = "reviewer") -> None:
        fake.approve(self.world, number, by=by)

    def ask_for_changes(self, number: int, by: str = "reviewer") -> None:
        fake.ask_for_changes(self.world, number, by=by)

    def merge(self, number: int, style: Any = "merge", *, delete_branch: bool = False) -> str:
        return fake.merge(self.world, number, style=style, delete_branch=delete_branch)

    def close(self, number: int) -> None:
        fake.close(self.world, number)

    def reopen(self, number: int) -> None:
        fake.reopen(self.world, number)

    def delete_branch(self, branch: str) -> None:
        del self.world.outside.branches[branch]

    def tip(self, branch: str) -> str:
        return self.world.outside.branches.get(branch, "")

    def say(self, number: int, text: str) -> None:
        self.world.outside.pulls[number].comments.append(("reviewer", text))

    def comments(self, number: int) -> list[tuple[str, str]]:
        return self.world.outside.pulls[number].comments

    def labels(self, number: int) -> list[str]:
        return self.world.outside.pulls[number].labels

    def reviewers(self, number: int) -> list[str]:
        return self.world.outside.pulls[number].reviewers

    def statuses(self, commit: str) -> dict[str, tuple[str, str, str]]:
        return fake.statuses(self.world, commit)

    def history(self, commit: str, context: str) -> list[str]:
        return [state for state, _, _ in self.world.outside.statuses.get((commit, context), [])]


class Real(Fake):
    """A Gitea; each test has a repository of its own."""

    def __init__(self, served: Served) -> None:
        self.served = served
        token = Secret(served.gitea.people["myelin"].token)
        self.forge = forge_of(ForgeSettings(type="gitea"), served.url, token, poll_seconds=0)
        self.commit("main", {"README": "hello\n"})

    def commit(self, branch: str, files: dict[str, str], *, base: str = "main") -> str:
        return self.served.commit(branch, files, base=base, by="owner")

    def rewrite(self, branch: str, files: dict[str, str]) -> str:
        self.commit("scratch", files)
        self.served.move(branch, "scratch")
        self.served.delete_branch("scratch")
        return self.tip(branch)

    def make_pull(self, head: str, *, base: str = "main") -> int:
        return self.served.make_pull(head, base)

    def make_pull_of_fork(self, head: str) -> int:
        gitea, served = self.served.gitea, self.served
        gitea.ask("POST", f"{served.path}/forks", {"name": f"fork-{served.name}"}, by="stranger")
        fork = Served(gitea=gitea, name=f"fork-{served.name}", owner="stranger")
        fork.commit(head, {"theirs": "x\n"}, by="stranger")
        return served.make_pull(f"stranger:{head}", by="stranger")

    def approve(self, number: int, by: str = "reviewer") -> None:
        self.served.approve(number, by=by)

    def ask_for_changes(self, number: int, by: str = "reviewer") -> None:
        self.served.ask_for_changes(number, by=by)

    def merge(self, number: int, style: Any = "merge", *, delete_branch: bool = False) -> str:
        return self.served.merge(number, style=style, delete_branch=delete_branch)

    def close(self, number: int) -> None:
        self.served.close(number)

    def reopen(self, number: int) -> None:
        self.served.reopen(number)

    def delete_branch(self, branch: str) -> None:
        self.served.delete_branch(branch)

    def tip(self, branch: str) -> str:
        return self.served.tip(branch)

    def say(self, number: int, text: str) -> None:
        self.served.say(number, text)

    def comments(self, number: int) -> list[tuple[str, str]]:
        return self.served.comments(number)

    def labels(self, number: int) -> list[str]:
        return [item["name"] for item in self.served.pull(number)["labels"]]

    def reviewers(self, number: int) -> list[str]:
        return [item["login"] for item in self.served.pull(number)["requested_reviewers"]]

    def statuses(self, commit: str) -> dict[str, tuple[str, str, str]]:
        return self.served.statuses(commit)

    def history(self, commit: str, context: str) -> list[str]:
        return self.served.status_history(commit, context)


@pytest.fixture(params=["fake", "gitea"])
def place(request: pytest.FixtureRequest) -> Iterator[Fake]:
    if request.param == "fake":
        yield Fake()
        return
    gitea: Gitea = request.getfixturevalue("gitea")
    made = Real(gitea.repository(private=False))
    yield made
    made.forge.close_connections()  # type: ignore[attr-defined]


def propose(place: Fake, head: str = HEAD, *, labels: tuple[str, ...] = (), reviewers: tuple[str, ...] = ()) -> PullRequest:
    return place.forge.open(head=head, base="main", title="Promote", body="**why**", labels=labels, reviewers=reviewers)


def found(place: Fake, head: str = HEAD, *, when: Callable[[PullRequest], bool] = lambda _: True) -> PullRequest:
    """What is found, as soon as it is so: a forge sees pushes a moment later."""
    end = time.monotonic() + 10
    while True:
        item = place.forge.find(head)
        assert item is not None
        if when(item) or time.monotonic() > end:
            return item


def test_nothing_is_found_where_nobody_asked(place: Fake) -> None:
    place.commit(HEAD, {"a": "1\n"})
    assert place.forge.find(HEAD) is None
    assert place.forge.find("none") is None


def test_what_was_opened_is_found_with_its_head(place: Fake) -> None:
    commit = place.commit(HEAD, {"a": "1\n"})
    made = propose(place)
    assert (made.state, made.head, made.head_commit, made.base) == ("open", HEAD, commit, "main")
    assert (made.title, made.body, made.merge_commit, made.ended_by) == ("Promote", "**why**", "", "")
    assert made.url.endswith(f"/{made.number}")
    assert found(place) == made


def test_asking_twice_is_asking_once(place: Fake) -> None:
    place.commit(HEAD, {"a": "1\n"})
    first = propose(place)
    assert place.forge.open(head=HEAD, base="main", title="Other", body="other", labels=(), reviewers=()) == first


def test_two_branches_have_two_requests(place: Fake) -> None:
    for number in (1, 2):
        place.commit(f"myelin/{number}", {f"a{number}": "1\n"})
    first, second = (propose(place, f"myelin/{number}") for number in (1, 2))
    assert found(place, "myelin/1").number == first.number != second.number == found(place, "myelin/2").number


def test_the_newest_one_of_a_branch_is_found_also_when_somebody_else_made_it(place: Fake) -> None:
    place.commit(HEAD, {"a": "1\n"})
    first = propose(place)
    place.forge.close(first.number, comment="overtaken")
    assert found(place).state == "closed"
    second = place.make_pull(HEAD)
    assert found(place).number == second != first.number
    assert place.forge.open(head=HEAD, base="main", title="x", body="", labels=(), reviewers=()).number == second


def test_a_branch_of_that_name_in_a_fork_does_not_count(place: Fake) -> None:
    theirs = place.make_pull_of_fork(HEAD)
    assert place.forge.find(HEAD) is None
    place.commit(HEAD, {"a": "1\n"})
    mine = propose(place)
    assert mine.number != theirs
    assert found(place).number == mine.number


def test_labels_are_made_and_reviewers_whom_the_forge_refuses_are_left_out(place: Fake) -> None:
    place.commit(HEAD, {"a": "1\n"})
    made = propose(place, labels=("myelin", "model", "myelin"), reviewers=("reviewer", "nobody", "myelin", "contributor"))
    assert sorted(place.labels(made.number)) == ["model", "myelin"]
    assert sorted(place.reviewers(made.number)) == ["contributor", "reviewer"]
    place.commit("myelin/2", {"b": "1\n"})
    assert place.labels(propose(place, "myelin/2", labels=("model",)).number) == ["model"]


def test_title_and_body_are_rewritten(place: Fake) -> None:
    place.commit(HEAD, {"a": "1\n"})
    made = propose(place)
    place.forge.update(made.number, title="Again", body="| a | b |\n| --- | --- |\n| 1 | 2 |")
    place.forge.update(made.number, title="Again", body="| a | b |\n| --- | --- |\n| 1 | 2 |")
    now = found(place)
    assert (now.title, now.body) == ("Again", "| a | b |\n| --- | --- |\n| 1 | 2 |")


def test_a_request_follows_its_branch(place: Fake) -> None:
    place.commit(HEAD, {"a": "1\n"})
    made = propose(place)
    place.commit("main", {"b": "1\n"})
    after = place.rewrite(HEAD, {"a": "2\n"})
    assert after != made.head_commit
    now = found(place, when=lambda item: item.head_commit == after)
    assert (now.number, now.head_commit, now.state) == (made.number, after, "open")


@pytest.mark.parametrize("style", ["merge", "fast-forward-only", "squash", "rebase"])
def test_a_merged_one_tells_what_became_of_it_and_who_did_it(place: Fake, style: str) -> None:
    commit = place.commit(HEAD, {"a": "1\n"})
    made = propose(place)
    merged = place.merge(made.number, style, delete_branch=True)
    now = found(place)
    assert (now.number, now.state, now.merge_commit, now.ended_by) == (made.number, "merged", merged, "owner")
    assert (now.head, now.head_commit) == (HEAD, commit)
    assert place.tip("main") == merged
    # The head stands on the base's tip already, so there is nothing to rebase.
    assert (merged == commit) == (style in ("fast-forward-only", "rebase"))


def test_what_happens_to_the_branch_after_the_end_does_not_matter(place: Fake) -> None:
    commit = place.commit(HEAD, {"a": "1\n"})
    made = propose(place)
    place.merge(made.number)
    place.rewrite(HEAD, {"a": "2\n"})
    now = found(place)
    assert (now.number, now.state, now.head, now.head_commit) == (made.number, "merged", HEAD, commit)


def test_one_that_a_person_closed_is_closed_by_them(place: Fake) -> None:
    place.commit(HEAD, {"a": "1\n"})
    made = propose(place)
    place.close(made.number)
    now = found(place)
    assert (now.state, now.ended_by, now.merge_commit) == ("closed", "reviewer", "")
    place.reopen(made.number)
    assert (found(place).state, found(place).ended_by) == ("open", "")


def test_one_whose_branch_was_deleted_is_closed(place: Fake) -> None:
    commit = place.commit(HEAD, {"a": "1\n"})
    made = propose(place)
    place.delete_branch(HEAD)
    now = found(place, when=lambda item: item.state == "closed")
    assert (now.number, now.state, now.head, now.head_commit) == (made.number, "closed", HEAD, commit)


def test_closing_says_why_once_and_leaves_what_is_not_open_alone(place: Fake) -> None:
    place.commit(HEAD, {"a": "1\n"})
    made = propose(place)
    place.forge.close(made.number, comment="overtaken by v-2")
    place.forge.close(made.number, comment="again")
    assert (found(place).state, found(place).ended_by) == ("closed", "myelin")
    ((by, said),) = place.comments(made.number)
    assert (by, said.splitlines()[-1]) == ("myelin", "overtaken by v-2")
    place.commit("myelin/2", {"b": "1\n"})
    other = propose(place, "myelin/2")
    place.merge(other.number)
    place.forge.close(other.number, comment="too late")
    assert found(place, "myelin/2").state == "merged"
    assert place.comments(other.number) == []


def test_a_comment_is_said_once_and_rewritten_and_those_of_others_are_never(place: Fake) -> None:
    place.commit(HEAD, {"a": "1\n"})
    number = propose(place).number
    place.say(number, "<!-- m1 --> mine")
    place.forge.comment(number, marker="<!-- m1 -->", body="one")
    place.forge.comment(number, marker="<!-- m2 -->", body="<!-- m2 -->\nother")
    place.forge.comment(number, marker="<!-- m1 -->", body="two")
    place.forge.comment(number, marker="<!-- m1 -->", body="two")
    assert place.comments(number) == [
        ("reviewer", "<!-- m1 --> mine"),
        ("myelin", "<!-- m1 -->\ntwo"),
        ("myelin", "<!-- m2 -->\nother"),
    ]


def test_an_approval_names_the_commit_that_was_seen(place: Fake) -> None:
    first = place.commit(HEAD, {"a": "1\n"})
    number = propose(place).number
    assert place.forge.approvals(number) == ()
    place.approve(number)
    assert [(item.by, item.commit) for item in place.forge.approvals(number)] == [("reviewer", first)]
    second = place.rewrite(HEAD, {"a": "2\n"})
    found(place, when=lambda item: item.head_commit == second)
    assert [(item.by, item.commit) for item in place.forge.approvals(number)] == [("reviewer", first)]
    place.approve(number, "contributor")
    place.approve(number)
    assert {(item.by, item.commit) for item in place.forge.approvals(number)} == {("reviewer", second), ("contributor", second)}
    assert all(item.at.tzinfo is not None for item in place.forge.approvals(number))


def test_an_objection_takes_the_own_approval_back_and_no_others(place: Fake) -> None:
    place.commit(HEAD, {"a": "1\n"})
    number = propose(place).number
    place.approve(number)
    place.approve(number, "contributor")
    place.ask_for_changes(number)
    assert [item.by for item in place.forge.approvals(number)] == ["contributor"]
    place.approve(number)
    assert {item.by for item in place.forge.approvals(number)} == {"contributor", "reviewer"}


def test_whoever_may_not_write_approves_nothing(place: Fake) -> None:
    place.commit(HEAD, {"a": "1\n"})
    number = propose(place).number
    place.approve(number, "stranger")
    assert place.forge.approvals(number) == ()


def test_statuses_go_from_pending_to_one_end_each_under_its_name(place: Fake) -> None:
    commit = place.commit(HEAD, {"a": "1\n"})
    place.forge.set_status(commit, context="myelin/digits", state="pending", text="x" * 200)
    place.forge.set_status(commit, context="myelin/review", state="error", text="no", url="https://example.invalid/why")
    state, text, url = place.statuses(commit)["myelin/digits"]
    assert (state, len(text), text[:139], url) == ("pending", 140, "x" * 139, "")
    for _ in range(2):
        place.forge.set_status(commit, context="myelin/digits", state="success", text="fine")
    assert place.statuses(commit) == {
        "myelin/digits": ("success", "fine", ""),
        "myelin/review": ("error", "no", "https://example.invalid/why"),
    }
    assert place.history(commit, "myelin/digits") == ["pending", "success"]


def test_what_is_not_there_is_a_refusal(place: Fake) -> None:
    with pytest.raises(RefusedError):
        propose(place, "no-such-branch")
    for deed in (
        lambda: place.forge.update(99, title="x", body=""),
        lambda: place.forge.close(99, comment="x"),
        lambda: place.forge.approvals(99),
    ):
        with pytest.raises(RefusedError, match="pull request 99"):
            deed()
    # Gitea answers these two with 500, as if it were its own fault.
    with pytest.raises(OutsideError):
        place.forge.comment(99, marker="<!-- m -->", body="x")
    with pytest.raises(OutsideError):
        place.forge.set_status("0" * 40, context="myelin/x", state="pending", text="")
