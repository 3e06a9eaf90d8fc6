import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from controller.adapters.clock import SystemClock
from controller.adapters.git import GitRepository, init_bare, packing
from controller.adapters.keys import SshKey
from controller.adapters.ledger import GitLedger
from policies.errors import ConflictError, RefusedError, SilentError
from policies.ledger import check_chain
from policies.terms.record import Statement

AT = datetime(2026, 1, 31, 12, tzinfo=UTC)


class Place:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = SshKey.generate(folder / "key")
        init_bare(folder / "origin.git")
        self.opened: list[GitRepository] = []

    def repository(self, name: str) -> GitRepository:
        made = GitRepository(str(self.folder / "origin.git"), self.folder / name, self.key)
        self.opened.append(made)
        return made


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    for repository in made.opened:
        repository.close()


def statement(key: str) -> Statement:
    return Statement(kind="event", key=key, axon="digits", body={"value": 0.5})


def test_what_is_pushed_is_read_back_at_its_commit(place: Place) -> None:
    one, other = place.repository("one"), place.repository("other")
    assert one.fetch("main") == ""
    first = one.push(branch="main", parent="", changes={"a": b"1", "b/c": b"2"}, message="first", at=AT)
    second = one.push(branch="main", parent=first, changes={"b/c": None, "b/d": b"3"}, message="second", at=AT)
    assert other.fetch("main") == second
    assert dict(other.read_many(first, ["a", "b/c", "none"])) == {"a": b"1", "b/c": b"2"}
    assert [item.path for item in other.files(second)] == ["a", "b/d"]
    assert other.tree_id(first, "b") != other.tree_id(second, "b") != ""
    assert other.tree_id(second, "none") == ""
    facts = other.facts(since="", until=second)
    assert [item.commit for item in facts] == [first, second]
    assert facts[1].changed_paths == ("b/c", "b/d")
    assert all(item.signature is not None and item.signature.valid for item in facts)
    assert facts[0].signature is not None
    assert facts[0].signature.key == place.key.public()


def test_a_lost_race_is_a_conflict_and_writes_nothing(place: Place) -> None:
    one, other = place.repository("one"), place.repository("other")
    first = one.push(branch="main", parent="", changes={"a": b"1"}, message="first", at=AT)
    second = one.push(branch="main", parent=first, changes={"a": b"2"}, message="second", at=AT)
    other.fetch("main")
    with pytest.raises(ConflictError):
        other.push(branch="main", parent=first, changes={"a": b"3"}, message="late", at=AT)
    assert other.fetch("main") == second


def test_a_hook_that_says_no_is_a_refusal(place: Place) -> None:
    hook = place.folder / "origin.git" / "hooks" / "pre-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho not on this branch >&2\nexit 1\n")
    hook.chmod(0o755)
    with pytest.raises(RefusedError, match="push to main"):
        place.repository("one").push(branch="main", parent="", changes={"a": b"1"}, message="m", at=AT)


def test_a_repository_that_vanished_and_came_back(place: Place) -> None:
    one = place.repository("one")
    commit = one.push(branch="main", parent="", changes={"a": b"1"}, message="m", at=AT)
    origin = place.folder / "origin.git"
    shutil.move(origin, place.folder / "away")
    with pytest.raises(SilentError, match="there is none"):
        one.fetch("main")
    shutil.move(place.folder / "away", origin)
    assert one.fetch("main") == commit


def test_odd_paths_are_never_written(place: Place) -> None:
    for path in ("../a", "/a", ".git/config", "a/../b"):
        with pytest.raises(Exception, match="plain path"):
            place.repository("one").push(branch="main", parent="", changes={path: b""}, message="m", at=AT)


def test_the_ledger_survives_its_controller_and_keeps_its_chain(place: Place) -> None:
    repository = place.repository("one")
    ledger = GitLedger(repository, place.folder / "ledger", place.key, SystemClock())
    ledger.record([statement("a"), statement("b"), statement("a")])
    ledger.close()
    ledger = GitLedger(repository, place.folder / "ledger", place.key, SystemClock())
    assert [entry.statement.key for entry in ledger.entries()] == ["a", "b"]
    assert ledger.push() == 2
    assert ledger.push() == 0
    ledger.record([statement("c")])
    assert ledger.push() == 1
    ledger.close()
    fresh = GitLedger(place.repository("two"), place.folder / "elsewhere", place.key, SystemClock())
    assert [entry.statement.key for entry in fresh.entries()] == ["a", "b", "c"]
    public = place.key.public()
    assert list(check_chain(fresh.entries(), lambda data, proof: place.key.is_signed(data, proof, public))) == []
    fresh.close()


def test_a_torn_last_line_is_cut_off(place: Place) -> None:
    repository = place.repository("one")
    ledger = GitLedger(repository, place.folder / "ledger", place.key, SystemClock())
    ledger.record([statement("a")])
    ledger.close()
    with (place.folder / "ledger" / "pending.jsonl").open("ab") as file:
        file.write(b'{"number":2,"at":"20')
    ledger = GitLedger(repository, place.folder / "ledger", place.key, SystemClock())
    ledger.record([statement("b")])
    ledger.close()
    ledger = GitLedger(repository, place.folder / "ledger", place.key, SystemClock())
    assert [entry.statement.key for entry in ledger.entries()] == ["a", "b"]
    ledger.close()


def test_entries_queue_while_somebody_else_wrote(place: Place) -> None:
    one = GitLedger(place.repository("one"), place.folder / "l1", place.key, SystemClock())
    two = GitLedger(place.repository("two"), place.folder / "l2", place.key, SystemClock())
    one.record([statement("a")])
    two.record([statement("b"), statement("a")])
    assert one.push() == 1
    assert two.push() == 1
    assert [entry.statement.key for entry in two.entries()] == ["a", "b"]
    one.close()
    two.close()


def test_one_writer_for_each_folder(place: Place) -> None:
    ledger = GitLedger(place.repository("one"), place.folder / "ledger", place.key, SystemClock())
    with pytest.raises(RefusedError, match="another controller"):
        GitLedger(place.repository("two"), place.folder / "ledger", place.key, SystemClock())
    ledger.close()


def test_two_threads_read_side_by_side_and_each_gets_its_own(place: Place) -> None:
    repository = place.repository("one")
    files: dict[str, bytes | None] = {f"f{number}": f"{number}\n".encode() * (number * 50 + 1) for number in range(40)}
    tip = repository.push(branch="main", parent="", changes=files, message="many", at=AT)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: dict(repository.read_many(tip, list(files))), range(24)))
    assert all(item == files for item in found)


def test_a_mirror_with_many_loose_objects_is_packed_and_loses_none(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "MOST_LOOSE", 0)
    repository = place.repository("one")
    tips = [""]
    for number in range(160):
        tips.append(repository.push(branch="main", parent=tips[-1], changes={"a": b"%d" % number}, message="m", at=AT))
    assert len(list((place.folder / "one" / "objects" / "pack").glob("*.pack"))) in range(1, 8)
    assert len([*(place.folder / "one" / "objects").glob("[0-9a-f][0-9a-f]/*")]) < 480
    assert [repository.read(tip, "a") for tip in tips[1:]] == [b"%d" % number for number in range(160)]
