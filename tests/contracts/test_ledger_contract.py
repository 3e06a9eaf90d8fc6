"""What a ledger promises: the simulated one, and the real one on a simulated and on a real repository."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from controller.adapters.git import GitRepository, init_bare
from controller.adapters.ledger import GitLedger
from policies.errors import OutsideError, RefusedError, SilentError
from policies.ledger import check_chain
from policies.records import ask_statement, fold, task_statement, tell_statement
from policies.segments import MOST_ENTRIES
from policies.terms.record import Entry, Statement
from policies.terms.run import TaskRun
from policies.terms.trial import Ask, Tell, TrialRun
from reconcilers.ports import Ledger
from tests.fakes.ledger import BRANCH, FakeLedger
from tests.fakes.repository import FakeRepository
from tests.fakes.wiring import CONTROLLER, PERSON, STRANGER, gate
from tests.fakes.world import HandClock, World


def statement(key: str, body: dict[str, object] | None = None) -> Statement:
    return Statement(kind="event", key=key, axon="digits", body=body or {"value": 0.5, "text": "ü", "list": [1, None, True]})


def keys(ledger: Ledger) -> list[str]:
    return [entry.statement.key for entry in ledger.entries()]


class Place:
    """Folders of ledgers, all on one branch. The repository can be made to fail through the world."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.folder, self.world = kind, folder, World()
        self._open: dict[str, GitLedger] = {}
        self._repositories: list[GitRepository] = []
        if kind == "real":
            init_bare(folder / "origin.git")

    def open(self, name: str = "one") -> Ledger:
        """A ledger on a folder; the one that had it open before is gone without a word."""
        if self.kind == "real":
            inner = GitRepository(str(self.folder / "origin.git"), self.folder / f"mirror-{len(self._repositories)}", CONTROLLER)
            self._repositories.append(inner)
            repository = gate(self.world, "repository", inner)
        else:
            repository = gate(self.world, "repository", FakeRepository(self.world, CONTROLLER))
        if self.kind == "fake":
            return FakeLedger(self.world, repository, CONTROLLER, HandClock(self.world), folder=name)
        if name in self._open:
            self._open.pop(name).close()
        self._open[name] = GitLedger(repository, self.folder / name, CONTROLLER, HandClock(self.world))
        return self._open[name]

    def wipe(self, name: str = "one") -> None:
        """Lose the folder of a ledger."""
        self.world.outside.disks.pop(name, None)
        if name in self._open:
            self._open.pop(name).close()
            shutil.rmtree(self.folder / name)

    def close(self) -> None:
        for ledger in self._open.values():
            ledger.close()
        for repository in self._repositories:
            repository.close()


@pytest.fixture(params=["fake", "real on simulated", "real"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    made = Place(request.param, tmp_path)
    yield made
    made.close()


def assert_whole(entries: tuple[Entry, ...]) -> None:
    assert [entry.number for entry in entries] == list(range(1, len(entries) + 1))
    signed: Callable[[bytes, str], bool] = lambda data, proof: CONTROLLER.is_signed(data, proof, CONTROLLER.public())  # noqa: E731
    assert list(check_chain(entries, signed)) == []


def test_what_is_recorded_is_there_at_once_in_order_signed_and_chained(place: Place) -> None:
    ledger = place.open()
    assert ledger.entries() == ()
    assert [entry.statement for entry in ledger.record([statement("b"), statement("a")])] == [statement("b"), statement("a")]
    ledger.record([statement("c")])
    assert keys(ledger) == ["b", "a", "c"]
    assert {entry.at for entry in ledger.entries()} == {place.world.outside.now}
    assert_whole(ledger.entries())


def test_a_known_key_is_passed_over_even_within_one_call(place: Place) -> None:
    ledger = place.open()
    assert len(ledger.record([statement("a"), statement("a"), statement("b")])) == 2
    assert ledger.record([statement("a", {"value": 1}), statement("b")]) == ()
    assert ledger.push() == 2
    assert ledger.record([statement("a")]) == ()
    assert place.open().record([statement("a")]) == ()
    assert keys(ledger) == ["a", "b"]


def test_recording_nothing_is_nothing(place: Place) -> None:
    ledger = place.open()
    assert ledger.record([]) == ()
    assert ledger.push() == 0
    assert ledger.entries() == ()


@pytest.mark.parametrize("pushed", [0, 1, 2])
def test_what_was_recorded_survives_the_controller(place: Place, pushed: int) -> None:
    ledger = place.open()
    for number in range(3):
        ledger.record([statement(f"{number}")])
        if number < pushed:
            assert ledger.push() == 1
    before = ledger.entries()
    ledger = place.open()
    assert ledger.entries() == before
    assert ledger.push() == 3 - pushed
    assert ledger.push() == 0
    assert place.open().entries() == before


def test_a_statement_reads_the_same_before_and_after_a_restart(place: Place) -> None:
    ledger = place.open()
    body = {"zeta": 1, "alpha": {"b": 1, "a": [1, 2]}, "event": 0.1}
    [said] = ledger.record([statement("a", body)])
    [read] = place.open().entries()
    assert read == said
    # In what order its keys come may end up in a file that is committed, so it counts.
    assert repr(read.statement.body) == repr(said.statement.body)


def test_what_is_not_pushed_yet_is_counted(place: Place) -> None:
    ledger = place.open()
    assert ledger.pending() == 0
    ledger.record([statement("one"), statement("two")])
    assert ledger.pending() == 2
    ledger.push()
    assert ledger.pending() == 0


def test_pushes_rest_where_that_is_asked_for(tmp_path: Path) -> None:
    world = World()
    repository = FakeRepository(world, CONTROLLER)
    ledger = GitLedger(repository, tmp_path / "one", CONTROLLER, HandClock(world), rest_seconds=3600)
    ledger.record([statement("one")])
    assert ledger.push() == 1
    ledger.record([statement("two")])
    assert (ledger.push(), ledger.pending()) == (0, 1)
    assert [entry.statement.key for entry in ledger.entries()] == ["one", "two"]
    ledger.close()


def test_push_says_how_many_and_another_machine_reads_them(place: Place) -> None:
    ledger = place.open()
    ledger.record([statement("a"), statement("b")])
    assert ledger.push() == 2
    ledger.record([statement("c")])
    place.world.outside.now += timedelta(days=31)
    ledger.record([statement("d")])
    assert ledger.push() == 2
    assert place.open("elsewhere").entries() == ledger.entries()
    assert_whole(ledger.entries())


def test_a_lost_folder_costs_only_what_was_not_pushed(place: Place) -> None:
    ledger = place.open()
    ledger.record([statement("a")])
    ledger.push()
    ledger.record([statement("b")])
    place.wipe()
    ledger = place.open()
    assert keys(ledger) == ["a"]
    ledger.record([statement("b")])
    assert ledger.push() == 1
    assert_whole(ledger.entries())


def test_while_git_is_away_entries_queue_in_order_and_are_pushed_once(place: Place) -> None:
    ledger = place.open()
    for number in range(3):
        ledger.record([statement(f"{number}")])
        place.world.fail("repository.push", SilentError("away"))
        with pytest.raises(SilentError, match="away"):
            ledger.push()
        ledger = place.open() if number == 1 else ledger
    assert keys(ledger) == ["0", "1", "2"]
    assert ledger.push() == 3
    assert place.open("elsewhere").entries() == ledger.entries()
    assert_whole(ledger.entries())


@pytest.mark.parametrize("restarted", [False, True])
def test_a_push_whose_answer_is_lost_is_not_made_twice(place: Place, restarted: bool) -> None:
    ledger = place.open()
    ledger.record([statement("a"), statement("b")])
    place.world.fail("repository.push", SilentError("no answer"), after=True)
    with pytest.raises(SilentError):
        ledger.push()
    ledger = place.open() if restarted else ledger
    ledger.record([statement("c")])
    ledger.push()
    assert keys(place.open("elsewhere")) == keys(ledger) == ["a", "b", "c"]
    assert_whole(place.open("elsewhere").entries())


def test_two_writers_end_with_one_chain_of_everything(place: Place) -> None:
    one, two = place.open("one"), place.open("two")
    one.record([statement("a"), statement("shared")])
    two.record([statement("shared"), statement("b")])
    assert one.push() == 2
    assert two.push() == 1
    assert keys(two) == ["a", "shared", "b"]
    one.record([statement("c")])
    assert one.push() == 1
    assert keys(one) == keys(place.open("elsewhere")) == ["a", "shared", "b", "c"]
    assert_whole(one.entries())
    assert place.open("one").entries() == one.entries()


def test_a_writer_that_loses_the_race_for_the_branch_tries_again(place: Place) -> None:
    one, two = place.open("one"), place.open("two")
    one.record([statement("a")])
    two.record([statement("b")])
    place.world.meanwhile("repository.push", two.push)
    assert one.push() == 1
    assert keys(one) == ["b", "a"]
    assert_whole(one.entries())


def test_what_was_recorded_is_never_lost_to_another_writer(place: Place) -> None:
    one, two = place.open("one"), place.open("two")
    two.record([statement("b"), statement("c")])
    two.push()
    one.record([statement("a")])
    # It chains its entry behind the other's, and then it is gone before the push.
    place.world.fail("repository.push", SilentError("away"))
    with pytest.raises(OutsideError):
        one.push()
    one = place.open("one")
    assert keys(one) == ["b", "c", "a"]
    assert one.push() == 1


def test_a_rewritten_branch_is_refused_and_nothing_is_lost(place: Place) -> None:
    if place.kind == "real":
        branch = place.folder / "origin.git" / "refs" / "heads" / BRANCH
        cut: Callable[[str], object] = lambda commit: branch.write_text(commit + "\n")  # noqa: E731
        tip: Callable[[], str] = lambda: branch.read_text().strip()  # noqa: E731
    else:
        cut = lambda commit: place.world.outside.branches.update({BRANCH: commit})  # noqa: E731
        tip = lambda: place.world.outside.branches[BRANCH]  # noqa: E731
    ledger = place.open()
    ledger.record([statement("a")])
    ledger.push()
    first = tip()
    ledger.record([statement("b")])
    ledger.push()
    cut(first)
    ledger.record([statement("c")])
    with pytest.raises(OutsideError, match="rewritten"):
        ledger.push()
    assert keys(ledger) == ["a", "b", "c"]


def test_entries_of_another_year_stay_in_order(place: Place) -> None:
    ledger = place.open()
    place.world.outside.now = datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC)
    ledger.record([statement("a")])
    place.world.move(1)
    ledger.record([statement("b")])
    ledger.push()
    assert keys(place.open("elsewhere")) == ["a", "b"]


def test_the_real_one_reads_what_the_simulated_one_wrote(tmp_path: Path) -> None:
    world = World()
    repository, clock = FakeRepository(world, CONTROLLER), HandClock(world)
    fake = FakeLedger(world, repository, CONTROLLER, clock)
    fake.record([statement("a"), statement("b")])
    fake.push()
    real = GitLedger(repository, tmp_path / "ledger", CONTROLLER, clock)
    try:
        assert real.entries() == fake.entries()
    finally:
        real.close()


def strangers_entry(world: World, folder: Path) -> None:
    """Somebody who may push, and has no key of the project, adds an entry to the branch."""
    other = GitLedger(FakeRepository(world, STRANGER), folder, STRANGER, HandClock(world), former=[CONTROLLER.public()])
    other.record([statement("invented")])
    other.push()
    other.close()


@pytest.mark.parametrize("known", [0, 1], ids=["at a start", "in the middle of work"])
def test_an_entry_that_somebody_else_signed_is_not_believed(tmp_path: Path, known: int) -> None:
    world = World()
    repository = FakeRepository(world, CONTROLLER)
    ours = GitLedger(repository, tmp_path / "ours", CONTROLLER, HandClock(world))
    try:
        ours.record([statement("a")])
        ours.push()
        good = repository.fetch(BRANCH)
        strangers_entry(world, tmp_path / "theirs")
        if known:
            ours.record([statement("b")])
            with pytest.raises(RefusedError, match="entry 2 by this project's controller, somebody else signed it") as caught:
                ours.push()
            assert keys(ours) == ["a", "b"], "what we have is what we had"
        else:
            with pytest.raises(RefusedError, match="somebody else signed it") as caught:
                GitLedger(repository, tmp_path / "new", CONTROLLER, HandClock(world))
        assert caught.value.reason == "LedgerForeign"
        world.outside.branches[BRANCH] = good
        assert ours.push() == known, "and it goes on once the branch is as it was"
    finally:
        ours.close()


def test_what_a_former_key_signed_stays_said(tmp_path: Path) -> None:
    world = World()
    before = GitLedger(FakeRepository(world, PERSON), tmp_path / "before", PERSON, HandClock(world))
    before.record([statement("a")])
    before.push()
    before.close()
    repository = FakeRepository(world, CONTROLLER)
    after = GitLedger(repository, tmp_path / "after", CONTROLLER, HandClock(world), former=[PERSON.public()])
    after.record([statement("b")])
    after.push()
    assert keys(after) == ["a", "b"]
    after.close()
    # The newest entry vouches for those before it, so the former key is not needed for ever.
    without = GitLedger(repository, tmp_path / "without", CONTROLLER, HandClock(world))
    assert keys(without) == ["a", "b"]
    without.close()


def test_a_controller_that_dies_between_its_two_files_loses_nothing(tmp_path: Path) -> None:
    """Catching up writes what others pushed first, and then its own log anew: it may die in between."""
    world = World()
    repository, clock = gate(world, "repository", FakeRepository(world, CONTROLLER)), HandClock(world)
    one = GitLedger(repository, tmp_path / "one", CONTROLLER, clock)
    one.record([statement("a")])
    log = (tmp_path / "one" / "pending.jsonl").read_bytes()
    two = GitLedger(repository, tmp_path / "two", CONTROLLER, clock)
    two.record([statement("b"), statement("c")])
    two.push()
    two.close()
    world.fail("repository.push", SilentError("away"))
    with pytest.raises(SilentError):
        one.push()
    one.close()
    (tmp_path / "one" / "pending.jsonl").write_bytes(log)
    one = GitLedger(repository, tmp_path / "one", CONTROLLER, clock)
    try:
        assert sorted(keys(one)) == ["a", "b", "c"]
        one.push()
        assert_whole(one.entries())
    finally:
        one.close()


def test_a_ledger_that_cannot_start_lets_another_one_try(tmp_path: Path) -> None:
    world = World()
    repository = gate(world, "repository", FakeRepository(world, CONTROLLER))
    world.fail("repository.fetch", SilentError("away"))
    kept: list[BaseException] = []
    try:
        GitLedger(repository, tmp_path / "one", CONTROLLER, HandClock(world)).close()
    except SilentError as error:
        kept.append(error)
    assert kept
    GitLedger(repository, tmp_path / "one", CONTROLLER, HandClock(world)).close()


@pytest.mark.parametrize("pushed", [0, 1, 3])
def test_what_is_new_since_a_number_comes_in_order(place: Place, pushed: int) -> None:
    ledger = place.open()
    for number in range(3):
        ledger.record([statement(f"{number}")])
        if number < pushed:
            ledger.push()
    for number in range(4):
        assert tuple(ledger.since(number)) == ledger.entries()[number:]


def test_it_tells_whether_an_entry_is_still_the_same(place: Place) -> None:
    one, two = place.open("one"), place.open("two")
    one.record([statement("a")])
    one.push()
    [said] = two.record([statement("b")])
    assert two.holds(0, "")
    assert two.holds(1, said.digest)
    # It gets another number behind the other's.
    two.push()
    assert not two.holds(1, said.digest)
    assert two.holds(2, two.entries()[1].digest)
    assert not two.holds(3, said.digest)
    two.record([statement("c")])
    assert [two.holds(entry.number, entry.digest) for entry in two.entries()] == [True, True, True]


def test_it_tells_which_keys_are_recorded(place: Place) -> None:
    ledger = place.open()
    assert ledger.knows([]) == ledger.knows(["a"]) == set()
    ledger.record([statement("a")])
    ledger.push()
    ledger.record([statement("b")])
    assert ledger.knows(["a", "b", "c"]) == {"a", "b"}
    assert place.open().knows(["a", "b", "c"]) == {"a", "b"}


def test_a_ledger_longer_than_a_segment_reads_back(place: Place) -> None:
    ledger = place.open()
    for start in range(0, 3 * MOST_ENTRIES, MOST_ENTRIES // 2 + 1):
        ledger.record([statement(f"{start + number}") for number in range(MOST_ENTRIES // 2 + 1)])
        ledger.push()
    ledger.record([statement("last")])
    assert_whole(ledger.entries())
    assert place.open().entries() == ledger.entries()
    ledger = place.open()
    ledger.push()
    assert place.open("elsewhere").entries() == ledger.entries()


def test_trials_of_a_task_that_ended_are_left_out_and_the_fold_is_the_same(place: Place) -> None:
    task = TaskRun(id="t", run="r", axon="digits", task="fit", kind="train", state="Succeeded", at=place.world.outside.now)
    trials = [TrialRun(trial=f"0_0_{number}", rung=0, budget=1.0, number=number) for number in range(3)]
    ledger = place.open()
    for run in ("t", "other"):
        ledger.record([ask_statement("digits", run, Ask(run=trial, config={}, origin="random")) for trial in trials])
        ledger.push()
    ledger.record([tell_statement("digits", "t", Tell(run=trials[0], loss=1.0, metric=1.0)), task_statement(task)])
    ledger.push()
    for lives in ("one", "one", "elsewhere"):
        ledger = place.open(lives)
        assert fold(ledger.since(0)) == fold(ledger.entries())
        assert list(fold(ledger.since(0)).asks) == ["other"]
        if place.kind != "fake":
            assert [entry.number for entry in ledger.since(0)] == [4, 5, 6, 8]


def test_only_segments_that_changed_are_read_again(tmp_path: Path) -> None:
    world = World()
    inner = FakeRepository(world, CONTROLLER)
    read: list[str] = []

    class Watched:
        url = inner.url

        def __getattr__(self, name: str) -> Any:
            return getattr(inner, name)

        def read_many(self, commit: str, paths: Sequence[str]) -> Mapping[str, bytes]:
            read.extend(paths)
            return inner.read_many(commit, paths)

    one = GitLedger(Watched(), tmp_path / "one", CONTROLLER, HandClock(world))  # type: ignore[arg-type]
    two = GitLedger(inner, tmp_path / "two", CONTROLLER, HandClock(world))
    for ledger, begin in ((one, 0), (two, 1)):
        ledger.record([statement(f"{begin}-{number}") for number in range(MOST_ENTRIES)])
        ledger.push()
    read.clear()
    one.record([statement("mine")])
    one.push()
    second, third = (f"ledger/{world.outside.now:%Y-%m}/{1 + MOST_ENTRIES * number:012}.jsonl" for number in (1, 2))
    assert set(read) == {second, third}
    assert one.entries()[: 2 * MOST_ENTRIES] == two.entries()
    one.close()
    two.close()


def test_who_packs_files_into_one_is_followed_and_who_loses_a_line_is_refused(tmp_path: Path) -> None:
    world = World()
    repository = FakeRepository(world, CONTROLLER)
    ledger = GitLedger(repository, tmp_path / "one", CONTROLLER, HandClock(world))
    for month in range(3):
        ledger.record([statement(f"{month}-{number}") for number in range(3)])
        ledger.push()
        world.outside.now += timedelta(days=31)
    head = repository.fetch(BRANCH)
    files = [item.path for item in repository.files(head)]
    whole = b"".join(repository.read(head, path) for path in files)
    for packed in (whole, whole.replace(b"0-2", b"0-9"), b"".join(whole.splitlines(keepends=True)[1:])):
        head = repository.push(
            branch=BRANCH,
            parent=head,
            changes={**dict.fromkeys(files), files[0]: packed},
            message="pack",
            at=world.outside.now,
        )
        ledger.record([statement(f"after {len(packed)} {packed.count(b'0-9')}")])
        if packed == whole:
            assert ledger.push() == 1
            head = repository.fetch(BRANCH)
        else:
            with pytest.raises(RefusedError, match="rewritten"):
                ledger.push()
    assert len(ledger.entries()) == 9 + 3
    ledger.close()


def test_a_branch_that_is_no_whole_chain_is_not_gone_on_from(tmp_path: Path) -> None:
    world = World()
    repository = FakeRepository(world, CONTROLLER)
    ledger = GitLedger(repository, tmp_path / "one", CONTROLLER, HandClock(world))
    ledger.record([statement(f"{number}") for number in range(3)])
    ledger.push()
    ledger.close()
    head = repository.fetch(BRANCH)
    [path] = [item.path for item in repository.files(head)]
    one, _, three = repository.read(head, path).splitlines(keepends=True)
    repository.push(branch=BRANCH, parent=head, changes={path: one + three}, message="cut", at=world.outside.now)
    with pytest.raises(RefusedError, match=r"jsonl:2: expected entry 2 of the chain, got 3; run `myelin verify`"):
        GitLedger(repository, tmp_path / "two", CONTROLLER, HandClock(world))
