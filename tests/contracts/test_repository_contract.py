"""What a repository promises: the simulated one, and a real one by path, by HTTP and by SSH."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from controller.adapters.git import GitAccess, GitRepository, access_from, init_bare
from controller.adapters.keys import SshKey
from controller.trustfile import signers_of
from policies.errors import ConflictError, ControllerError, DesiredStateError, RefusedError, SilentError
from reconcilers.ports import Repository
from tests.contracts.git_server import GitServer, git_server
from tests.contracts.ssh_server import SshServer, ssh_server
from tests.fakes.repository import FakeRepository
from tests.fakes.wiring import CONTROLLER, PERSON
from tests.fakes.world import World

AT = datetime(2026, 1, 31, 12, 0, 7, 250_000, tzinfo=UTC)


class Origin:
    """A repository that several people open, each with a mirror of their own."""

    def __init__(self, kind: str, folder: Path, url: str = "", access: GitAccess | None = None) -> None:
        self.kind, self.folder, self.url, self.access = kind, folder, url, access
        self.world = World()
        self.opened: list[GitRepository] = []

    def open(self, key: SshKey | None = CONTROLLER) -> Repository:
        if self.kind == "fake":
            return FakeRepository(self.world, key, signers_of=signers_of)
        mirror = self.folder / f"mirror-{len(self.opened)}"
        made = GitRepository(self.url, mirror, key, signers_of=signers_of, access=self.access)
        self.opened.append(made)
        return made


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    with ssh_server(tmp_path_factory.mktemp("sshd") / "server") as server:
        yield server


@pytest.fixture(params=["fake", "path", "http", "ssh"])
def origin(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Origin]:
    if request.param == "fake":
        yield Origin("fake", tmp_path)
        return
    bare = tmp_path / "served" / "origin.git"
    init_bare(bare)
    with ExitStack() as closing:
        url, access = str(bare), None
        if request.param == "http":
            url = closing.enter_context(git_server(tmp_path / "served")).url("origin.git")
        if request.param == "ssh":
            server: SshServer = request.getfixturevalue("sshd")
            url = server.url(bare)
            access = access_from({"identity": server.key(), "known_hosts": server.known_hosts}, url, origin="test")
        made = Origin(request.param, tmp_path, url, access)
        yield made
        for repository in made.opened:
            repository.close()


def push(
    repository: Repository, parent: str, changes: dict[str, bytes | None], *, branch: str = "main", message: str = "change\n"
) -> str:
    return repository.push(branch=branch, parent=parent, changes=changes, message=message, at=AT)


def test_a_branch_without_commits_has_no_tip(origin: Origin) -> None:
    assert origin.open().fetch("main") == ""


def test_what_one_pushed_another_reads_at_its_commit(origin: Origin) -> None:
    one, other = origin.open(), origin.open()
    first = push(one, "", {"a": b"1", "b/c": b"\0\xff\r\n", "b/deep/d": b""})
    second = push(one, first, {"b/c": None, "e f/ü.txt": b"3"})
    assert other.fetch("main") == one.fetch("main") == second
    assert dict(other.read_many(first, ["a", "b/c", "none", "b/deep/d"])) == {"a": b"1", "b/c": b"\0\xff\r\n", "b/deep/d": b""}
    assert other.read(second, "e f/ü.txt") == b"3"
    assert [(item.path, item.size_bytes) for item in other.files(second)] == [("a", 1), ("b/deep/d", 0), ("e f/ü.txt", 1)]
    assert not any(item.executable or item.symlink for item in other.files(second))
    assert other.committed_at(second) == AT.replace(microsecond=0)
    with pytest.raises(DesiredStateError):
        other.committed_at("0" * 40)


def test_a_folder_is_what_lies_below_it_and_not_what_begins_like_it(origin: Origin) -> None:
    repository = origin.open()
    commit = push(repository, "", {"a/x": b"1", "a/b/y": b"2", "ab/z": b"3", "a.txt": b"4"})
    assert [item.path for item in repository.files(commit, "a")] == ["a/b/y", "a/x"]
    assert repository.files(commit, "none") == ()
    assert {item.path: item.blob for item in repository.files(commit)} == {
        path: repository.tree_id(commit, path) for path in ("a.txt", "a/b/y", "a/x", "ab/z")
    }


@pytest.mark.parametrize("path", ["none", "a", "a/x/y"])
def test_a_file_that_is_not_there_is_a_fault_of_the_commit(origin: Origin, path: str) -> None:
    repository = origin.open()
    commit = push(repository, "", {"a/x": b"1"})
    with pytest.raises(DesiredStateError, match="expected this file"):
        repository.read(commit, path)
    assert dict(repository.read_many(commit, [path, "a/x"])) == {"a/x": b"1"}


def test_a_tree_id_names_content_and_nothing_else(origin: Origin) -> None:
    repository = origin.open()
    first = push(repository, "", {"src/a": b"1", "src/b/c": b"2", "copy/a": b"1", "copy/b/c": b"2"})
    second = push(repository, first, {"notes": b"unrelated"})
    third = push(repository, second, {"src/b/c": b"3"})
    assert repository.tree_id(first, "src") == repository.tree_id(first, "copy") == repository.tree_id(second, "src") != ""
    assert repository.tree_id(third, "src") != repository.tree_id(second, "src")
    assert repository.tree_id(third, "src/a") == repository.tree_id(first, "copy/a")
    assert repository.tree_id(third, "none") == ""
    assert repository.tree_id(third, "") != repository.tree_id(second, "")


def test_equal_pushes_are_equal_commits_on_any_machine(origin: Origin) -> None:
    first = push(origin.open(), "", {"a": b"1", "a.b/c": b"2", "a/d": None}, message="first\n\nMyelin-Run: x\n")
    assert first == "02d007063070eed5c082c7975281a9da3106a5bd"
    second = push(origin.open(None), "", {"x/y": b"1", "x.z": b"2", "x0": b"3"}, branch="other")
    assert second == "ac96ab89edad93bee5ae3f39b8663ab2b34010dd"


def test_facts_are_told_in_order_with_signatures_paths_and_signers(origin: Origin) -> None:
    one, person, nobody = origin.open(), origin.open(PERSON), origin.open(None)
    first = push(one, "", {"a": b"1", "b/c": b"2"}, message="first\n\nbody\n")
    project = b"spec:\n  trust:\n    signers:\n      - {name: you, ssh: %s}\n" % PERSON.public().encode()
    assert person.fetch("main") == first
    second = push(person, first, {"b/c": None, "myelin.yaml": project})
    assert nobody.fetch("main") == second
    third = push(nobody, second, {"a": b"2"})
    reader = origin.open()
    assert reader.fetch("main") == third
    facts = reader.facts(since="", until=third)
    assert [item.commit for item in facts] == [first, second, third]
    assert [item.parents for item in facts] == [(), (first,), (second,)]
    assert [item.changed_paths for item in facts] == [("a", "b/c"), ("b/c", "myelin.yaml"), ("a",)]
    assert [item.subject for item in facts] == ["first", "change", "change"]
    assert facts[0].message == "first\n\nbody\n"
    assert facts[0].author == "Myelin <myelin@localhost>"
    assert facts[0].at == AT - timedelta(microseconds=AT.microsecond)
    signatures = [item.signature for item in facts]
    assert [item and (item.key, item.fingerprint, item.valid) for item in signatures] == [
        (CONTROLLER.public(), CONTROLLER.fingerprint, True),
        (PERSON.public(), PERSON.fingerprint, True),
        None,
    ]
    assert [item.signers and [signer.key for signer in item.signers] for item in facts] == [None, [PERSON.public()], None]
    assert [item.commit for item in reader.facts(since=first, until=third)] == [second, third]
    assert reader.facts(since=third, until=third) == ()


def test_somebody_else_may_be_named_as_author(origin: Origin) -> None:
    repository = origin.open()
    named = "Ada <ada@example.com>"
    first = repository.push(branch="main", parent="", changes={"a": b"1"}, message="x\n", at=AT, author=named)
    second = repository.propose(
        branch="myelin/x", parent=first, changes={"a": b"2"}, message="x\n", at=AT, expected="", author=named
    )
    facts = repository.facts(since="", until=second)
    assert [item.author for item in facts] == [named, named]
    assert [item.signature and item.signature.key for item in facts] == [CONTROLLER.public()] * 2


@pytest.mark.parametrize("late", ["behind", "empty"])
def test_a_lost_race_is_a_conflict_and_changes_nothing(origin: Origin, late: str) -> None:
    one, other = origin.open(), origin.open()
    first = push(one, "", {"a": b"1"})
    assert other.fetch("main") == first
    second = push(one, first, {"a": b"2"})
    with pytest.raises(ConflictError) as caught:
        push(other, first if late == "behind" else "", {"a": b"3"})
    assert "\n" not in caught.value.message
    assert other.fetch("main") == second
    assert other.read(second, "a") == b"2"
    third = push(other, second, {"a": b"3"})
    assert one.fetch("main") == third


def test_branches_do_not_know_of_each_other(origin: Origin) -> None:
    repository = origin.open()
    main = push(repository, "", {"a": b"1"})
    ledger = push(repository, "", {"b": b"1"}, branch="myelin/ledger")
    assert (repository.fetch("main"), repository.fetch("myelin/ledger")) == (main, ledger)
    assert [item.path for item in repository.files(ledger)] == ["b"]


def propose(repository: Repository, parent: str, content: bytes, *, expected: str, branch: str = "myelin/release-x") -> str:
    return repository.propose(branch=branch, parent=parent, changes={"a": content}, message="ask\n", at=AT, expected=expected)


def test_a_proposal_is_rebased_onto_whatever_its_base_became(origin: Origin) -> None:
    one, other = origin.open(), origin.open()
    first = push(one, "", {"a": b"1", "b": b"1"})
    asked = propose(one, first, b"2", expected="")
    second = push(one, first, {"b": b"2"})
    again = propose(one, second, b"2", expected=asked)
    assert other.fetch("myelin/release-x") == one.fetch("myelin/release-x") == again != asked
    assert dict(other.read_many(again, ["a", "b"])) == {"a": b"2", "b": b"2"}
    assert other.fetch("main") == second
    assert [item.parents for item in other.facts(since=second, until=again)] == [(second,)]


def test_equal_proposals_are_one_whoever_saw_what(origin: Origin) -> None:
    one, other = origin.open(), origin.open()
    first = push(one, "", {"a": b"1"})
    assert other.fetch("main") == first
    assert propose(one, first, b"2", expected="") == propose(other, first, b"2", expected="") == one.fetch("myelin/release-x")


def test_a_proposal_that_somebody_else_moved_is_left_alone(origin: Origin) -> None:
    one, person = origin.open(), origin.open(PERSON)
    first = push(one, "", {"a": b"1"})
    asked = propose(one, first, b"2", expected="")
    assert person.fetch("myelin/release-x") == asked
    theirs = push(person, asked, {"a": b"3"}, branch="myelin/release-x")
    for expected in (asked, "", first):
        with pytest.raises(ConflictError):
            propose(one, first, b"4", expected=expected)
    with pytest.raises(ConflictError):
        one.withdraw(branch="myelin/release-x", expected=asked)
    assert one.fetch("myelin/release-x") == theirs


def test_a_proposal_is_withdrawn_once_and_may_be_made_again(origin: Origin) -> None:
    one, other = origin.open(), origin.open()
    first = push(one, "", {"a": b"1"})
    asked = propose(one, first, b"2", expected="")
    assert other.fetch("myelin/release-x") == asked
    one.withdraw(branch="myelin/release-x", expected=asked)
    one.withdraw(branch="myelin/release-x", expected=asked)
    assert one.fetch("myelin/release-x") == other.fetch("myelin/release-x") == ""
    assert propose(other, first, b"2", expected="") == asked == one.fetch("myelin/release-x")
    assert one.fetch("main") == first


@pytest.mark.parametrize("branch", ["main", "myelin/ledger", "people/myelin/x"])
def test_branches_of_people_and_the_ledger_are_neither_rewritten_nor_deleted(origin: Origin, branch: str) -> None:
    one = origin.open()
    first = push(one, "", {"a": b"1"}, branch=branch)
    with pytest.raises(RefusedError, match="expected one below myelin/"):
        propose(one, first, b"2", expected=first, branch=branch)
    with pytest.raises(RefusedError, match="expected one below myelin/"):
        one.withdraw(branch=branch, expected=first)
    assert one.fetch(branch) == first


@pytest.mark.parametrize("path", ["../a", "/a", ".git/config", "a/../b", "a//b", ""])
def test_odd_paths_are_never_written(origin: Origin, path: str) -> None:
    repository = origin.open()
    with pytest.raises(ControllerError, match="plain path"):
        push(repository, "", {path: b""})
    assert repository.fetch("main") == ""


class Served:
    """A real repository behind a server that can be told to refuse."""

    def __init__(self, folder: Path, server: GitServer) -> None:
        self.server, self.origin = server, folder / "served" / "origin.git"
        self.repository = GitRepository(server.url("origin.git"), folder / "mirror", CONTROLLER)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    init_bare(tmp_path / "served" / "origin.git")
    with git_server(tmp_path / "served") as server:
        made = Served(tmp_path, server)
        yield made
        made.repository.close()


@pytest.mark.parametrize("status", [401, 403])
def test_a_server_that_refuses_access_is_a_refusal(served: Served, status: int) -> None:
    commit = push(served.repository, "", {"a": b"1"})
    served.server.refusal = status
    with pytest.raises(RefusedError):
        served.repository.fetch("main")
    with pytest.raises(RefusedError):
        push(served.repository, commit, {"a": b"2"})


@pytest.mark.parametrize("status", [500, 503])
def test_a_server_in_trouble_is_silence_and_forgotten_when_it_is_over(served: Served, status: int) -> None:
    commit = push(served.repository, "", {"a": b"1"})
    served.server.refusal = status
    with pytest.raises(SilentError):
        served.repository.fetch("main")
    with pytest.raises(SilentError):
        push(served.repository, commit, {"a": b"2"})
    served.server.refusal = None
    assert served.repository.fetch("main", fresh=True) == commit


def test_a_server_that_is_not_there_is_silence(served: Served) -> None:
    served.server.close()
    with pytest.raises(SilentError):
        served.repository.fetch("main")
    with pytest.raises(SilentError):
        push(served.repository, "", {"a": b"1"})


def test_a_push_whose_answer_is_lost_is_found_by_the_next_fetch(served: Served) -> None:
    served.server.dies_after_push = True
    with pytest.raises(SilentError):
        push(served.repository, "", {"a": b"1"})
    served.server.dies_after_push = False
    commit = served.repository.fetch("main")
    assert served.repository.read(commit, "a") == b"1"


def test_user_and_password_of_a_url_are_used_and_never_told(served: Served, tmp_path: Path) -> None:
    served.server.needs = "Basic dXNlcjpodW50ZXIy"
    url = f"http://user:hunter2@{served.server.address}/origin.git"
    repository = GitRepository(url, tmp_path / "other", CONTROLLER)
    try:
        commit = push(repository, "", {"a": b"1"})
        assert repository.fetch("main") == commit
        served.server.needs = "Basic c29tZXRoaW5nIGVsc2U="
        with pytest.raises(RefusedError) as fetched:
            repository.fetch("main")
        with pytest.raises(RefusedError) as pushed:
            push(repository, commit, {"a": b"2"})
        assert "hunter2" not in fetched.value.message + pushed.value.message
    finally:
        repository.close()


def test_a_hook_that_says_no_is_a_refusal_by_path_and_by_http(served: Served, tmp_path: Path) -> None:
    hook = served.origin / "hooks" / "pre-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho not on this branch >&2\nexit 1\n")
    hook.chmod(0o755)
    by_path = GitRepository(str(served.origin), tmp_path / "other", CONTROLLER)
    try:
        for repository in (served.repository, by_path):
            with pytest.raises(RefusedError, match="push to main"):
                push(repository, "", {"a": b"1"})
            assert repository.fetch("main") == ""
    finally:
        by_path.close()


def test_a_branch_that_was_rewritten_or_deleted_is_followed(served: Served, tmp_path: Path) -> None:
    first = push(served.repository, "", {"a": b"1"})
    push(served.repository, first, {"a": b"2"})
    by_path = GitRepository(str(served.origin), tmp_path / "other", CONTROLLER)
    try:
        (served.origin / "refs" / "heads" / "main").write_text(first + "\n")
        assert served.repository.fetch("main") == by_path.fetch("main") == first
        (served.origin / "refs" / "heads" / "main").unlink()
        assert served.repository.fetch("main") == by_path.fetch("main") == ""
        assert push(served.repository, "", {"b": b"1"}) == by_path.fetch("main")
    finally:
        by_path.close()


def test_a_mirror_that_was_damaged_is_made_anew(served: Served, tmp_path: Path) -> None:
    commit = push(served.repository, "", {"a": b"1"})
    served.repository.close()
    shutil.rmtree(tmp_path / "mirror" / "objects")
    repository = GitRepository(served.server.url("origin.git"), tmp_path / "mirror", CONTROLLER)
    try:
        assert repository.fetch("main") == commit
        assert repository.read(commit, "a") == b"1"
    finally:
        repository.close()
