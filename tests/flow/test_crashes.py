"""The flow on the simulated outside, undisturbed and disturbed: wherever a controller dies or is failed, the end is the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from controller.adapters.documents import YamlDocuments
from controller.adapters.ledger import GitLedger
from policies.errors import SilentError
from policies.experiment import trial_args
from policies.ledger import check_chain
from policies.terms.version import Version
from reconcilers.deploy import record_bytes
from reconcilers.ports import Clock, Keys, Ledger, Repository
from tests.fakes.story import RELEASE, TRIALS, Ending, Story
from tests.fakes.wiring import CONTROLLER, PERSON, MakeLedger
from tests.fakes.world import Moment, World

PARTS = 4
"""Into how many tests the many deaths are dealt, so that they share the cores."""


@cache
def calm() -> Ending:
    """How it ends when nobody disturbs."""
    return Story().tell()


@cache
def calls() -> tuple[str, ...]:
    """All port calls of an undisturbed story."""
    story = Story()
    story.tell()
    return tuple(story.world.calls)


@cache
def deaths() -> tuple[tuple[int, Moment], ...]:
    """One port call, and side of it, for each state of the outside that a dying controller can leave behind.

    A controller that starts again knows nothing but the outside: two deaths that leave the same one go on alike.
    """
    story = Story()
    found: dict[str, tuple[int, Moment]] = {}
    story.world.probe = lambda number, moment: found.setdefault(story.world.fingerprint(), (number, moment)) and None
    story.tell()
    return tuple(found.values())


def test_a_project_gets_its_versions_and_the_bad_one_is_rolled_back() -> None:
    story = Story()
    story.begin()
    one, two = story.versions()
    assert story.release() == {"traffic": [{"version": two, "share": 20}, {"version": one, "share": 80}]}
    story.go_bad()
    assert story.release()["traffic"] == [{"version": one, "share": 100}]
    assert [(hold["version"], "value 0.5, threshold 0.8" in hold["reason"]) for hold in story.release()["holds"]] == [(two, True)]
    story.recover()
    commits = story.commits()
    subjects = [commit.message.split("\n")[0] for commit in commits]
    assert subjects == [
        "Start a project",
        f"digits: deploy {one}",
        "Train better",
        f"digits: deploy {two}",
        f"digits: roll back {two}",
    ]
    assert [commit.signature and commit.signature.key for commit in commits] == [
        key.public() for key in (PERSON, CONTROLLER, PERSON, CONTROLLER, CONTROLLER)
    ]
    trailers = [line.split(":")[0] for line in commits[-1].message.splitlines() if line.startswith("Myelin-")]
    assert trailers == ["Myelin-Run", "Myelin-Event", "Myelin-Version", "Myelin-Alert"]
    for name in (one, two):
        file = f"versions/digits/{name}.yaml"
        version = Version.model_validate(YamlDocuments().load(commits[-1].files[file], file).value)
        assert CONTROLLER.is_signed(record_bytes(version), version.signature, CONTROLLER.public())
    assert story.kinds() == {
        "event": 5,
        "run": 5,
        "ask": 2 * TRIALS,
        "tell": 2 * TRIALS,
        "task": 7,
        "deploying": 2,
        "image": 4,
        "resolved": 1,
    }
    assert len(story.world.outside.started) == 1 + 2 * TRIALS
    entries = story.entries()
    assert list(check_chain(entries, lambda data, proof: CONTROLLER.is_signed(data, proof, CONTROLLER.public()))) == []


def test_the_same_story_told_twice_is_the_same_story() -> None:
    assert Story().tell() == calm()


@pytest.mark.parametrize("part", range(PARTS))
def test_a_controller_that_dies_at_any_port_call_ends_as_if_it_had_not(part: int) -> None:
    assert len(deaths()) > 100
    for number, moment in deaths()[part::PARTS]:
        story = Story()
        story.world.crash_at, story.world.crash_moment = number, moment
        ending = story.tell()
        assert story.deaths == 1
        assert ending == calm(), f"died {moment} call {number}, {calls()[number - 1]}"


@settings(max_examples=40, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(lives=st.lists(st.integers(1, 120), max_size=20), moment=st.sampled_from(["before", "after"]))
def test_a_controller_that_dies_again_and_again_ends_as_if_it_had_not(lives: list[int], moment: Moment) -> None:
    story = Story(lives=lives)
    story.world.crash_moment = moment
    assert story.tell() == calm()
    assert story.deaths > 0 or not lives


@pytest.mark.parametrize("loses_disk", [False, True], ids=["keeps its disk", "loses its disk"])
@pytest.mark.parametrize("part", range(PARTS))
def test_what_goes_on_while_no_controller_lives_is_taken_for_what_it_is(part: int, loses_disk: bool) -> None:
    """Who is away sees results later, so it may draw others; but each job ran what the ledger says, once.

    Also when all that was not pushed is lost with it: jobs and results tell it again.
    """
    for number, moment in deaths()[part::PARTS]:
        story = Story(goes_on=True, loses_disk=loses_disk)
        story.world.crash_at, story.world.crash_moment = number, moment
        story.tell()
        where = f"died {moment} call {number}, {calls()[number - 1]}"
        asked = Counter(pairs(trial_args(ask.run, ask.config, integer_budgets=True)) for ask in story.asks())
        assert Counter(pairs(job.spec.args) for job in story.world.outside.jobs.values() if job.spec.task == "tune") == asked, (
            where
        )
        assert len(set(story.world.outside.started)) == len(story.world.outside.started) == 1 + 2 * TRIALS, where
        kinds = Counter(key.split("/")[0] for key in keys(calm()))
        # Servers that are up already when somebody looks again were never waited for.
        assert {**story.kinds(), "deploying": 2} == kinds, where
        one, two = story.versions()
        assert story.release()["traffic"] == [{"version": one, "share": 100}], where
        assert [hold["version"] for hold in story.release()["holds"]] == [two], where


@pytest.mark.parametrize("name", ["repository.push", "ledger.record", "ledger.push"])
def test_the_law_holds_with_the_real_ledger_on_disk(name: str, tmp_path: Path) -> None:
    with on_disk(tmp_path / "calm") as ledger:
        first = Story(ledger=ledger)
        assert first.tell() == calm()
    numbers = [number for number, call in enumerate(first.world.calls, start=1) if call == name]
    for number in numbers[:: max(len(numbers) // 6, 1)]:
        for moment in ("before", "after"):
            with on_disk(tmp_path / f"{number}-{moment}") as ledger:
                story = Story(ledger=ledger)
                story.world.crash_at, story.world.crash_moment = number, moment
                assert story.tell() == calm(), f"died {moment} call {number}"
                assert story.deaths == 1


PORTS = ("repository", "ledger", "engine", "images", "sampler", "metrics", "inbox", "keys", "documents")
"""All but the clock, which never fails."""
EFFECTS = (
    "repository.push",
    "ledger.record",
    "ledger.push",
    "engine.start",
    "engine.collect",
    "engine.serve",
    "images.start",
    "sampler.suggest",
)


@pytest.mark.parametrize("port", PORTS)
def test_a_port_that_fails_once_changes_nothing_of_the_end(port: str) -> None:
    tried = 0
    for call in sorted({call for call in calls() if call.startswith(f"{port}.")}):
        times = calls().count(call)
        for skip in range(0, times, max(times // 10, 1)) if call in EFFECTS else sorted({0, times // 2, times - 1}):
            for after in (False, True) if call in EFFECTS else (False,):
                story = Story()
                story.world.fail(call, SilentError("no answer"), skip=skip, after=after)
                assert story.tell() == calm(), f"{call} failed {'after' if after else 'before'} its effect, time {skip + 1}"
                assert story.world.faults_met == 1
                tried += 1
    assert tried > 0


@pytest.mark.parametrize("push", [0, 1, 2])
def test_an_unrelated_commit_that_comes_first_is_kept_and_planned_upon(push: int) -> None:
    story = Story()
    race(story, pushes("main")[push], lambda story: story.push({"notes.md": b"written meanwhile\n"}, "Write a note\n"))
    ending = story.tell()
    assert ending.files["notes.md"] == b"written meanwhile\n"
    assert len(story.commits()) == len(calm().commits) + 1
    assert len(ending.started) == len(calm().started)
    if push:
        # Before the first version it moves the person's next commit as well, whose version then has another name.
        assert {path: text for path, text in ending.files.items() if path != "notes.md"} == calm().files
        assert ending.started == calm().started
        assert keys(ending) == keys(calm())


def test_a_persons_hold_that_comes_first_keeps_a_version_out() -> None:
    one, two = story_versions()
    release = f"""# kept by hand
apiVersion: myelin.io/v1alpha1
kind: Release
metadata: {{name: deployer, axon: digits}}
spec:
  traffic: [{{version: {one}, share: 100}}]
  holds:
    - {{version: {two}, reason: not before Monday, since: "2026-01-31T12:00:00Z"}}
""".encode()
    story = Story()
    race(story, pushes("main")[1], lambda story: story.push({RELEASE: release}, f"Hold {two}\n"))
    story.begin()
    assert story.files()[RELEASE] == release
    assert story.versions() == [one]
    assert story.kinds()["task"] == 6
    last = [said.body for said in story.statements() if said.kind == "task"][-1]
    assert (last["state"], last["reason"]) == ("Failed", "Held")
    story.settle()
    assert story.files()[RELEASE] == release


def test_a_person_who_takes_the_bad_version_out_first_is_not_overruled() -> None:
    one, _ = story_versions()
    release = f"""apiVersion: myelin.io/v1alpha1
kind: Release
metadata: {{name: deployer, axon: digits}}
spec:
  traffic: [{{version: {one}, share: 100}}]  # by hand
""".encode()
    story = Story()
    race(story, pushes("main")[2], lambda story: story.push({RELEASE: release}, "Take it out\n"))
    story.tell()
    assert story.files()[RELEASE] == release
    last = [said.body for said in story.statements() if said.kind == "task"][-1]
    assert (last["state"], last["reason"]) == ("Succeeded", "NothingToRollBack")


def test_a_rollback_that_lost_the_race_is_planned_on_the_persons_text() -> None:
    one, two = story_versions()
    release = f"""# shares by hand
apiVersion: myelin.io/v1alpha1
kind: Release
metadata: {{name: deployer, axon: digits}}
spec:
  traffic:
    - {{version: {one}, share: 50}}  # the old one
    - {{version: {two}, share: 50}}
""".encode()
    story = Story()
    race(story, pushes("main")[2], lambda story: story.push({RELEASE: release}, "Half and half\n"))
    story.tell()
    assert story.release()["traffic"] == [{"version": one, "share": 100}]
    assert [hold["version"] for hold in story.release()["holds"]] == [two]
    assert story.files()[RELEASE].startswith(b"# shares by hand\n")
    assert b"# the old one" in story.files()[RELEASE]


@cache
def pushes(branch: str) -> tuple[int, ...]:
    """Which of the calls of `repository.push`, from 0, go to a branch."""
    world = Story()
    found: list[str] = []
    seen = dict(world.world.outside.branches)

    def probe(number: int, moment: Moment) -> None:
        nonlocal seen
        if moment == "after" and world.world.calls[number - 1] == "repository.push":
            now = world.world.outside.branches
            found.append(next(name for name in now if now[name] != seen.get(name)))
        seen = dict(world.world.outside.branches)

    world.world.probe = probe
    world.tell()
    return tuple(index for index, name in enumerate(found) if name == branch)


@cache
def story_versions() -> tuple[str, str]:
    """Names of the two versions: they follow from their inputs, so a person may know them before they are pushed."""
    story = Story()
    story.begin()
    one, two = story.versions()
    return one, two


def keys(ending: Ending) -> list[str]:
    """Keys of all statements; their bodies may name other commits."""
    return [statement.split(" ")[0] for statement in ending.statements]


def pairs(args: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Options with their values, sorted."""
    return tuple(sorted(zip(args[::2], args[1::2], strict=True)))


def race(story: Story, push: int, deed: Callable[[Story], object]) -> None:
    """Let a person be faster than the push of that number."""
    for _ in range(push):
        story.world.meanwhile("repository.push", lambda: None)
    story.world.meanwhile("repository.push", lambda: deed(story))


@contextmanager
def on_disk(folder: Path) -> Iterator[MakeLedger]:
    """The real ledger; its lock is freed when the controller dies, as the kernel would."""
    opened: list[GitLedger] = []

    def make(_: World, repository: Repository, keys: Keys, clock: Clock) -> Ledger:
        while opened:
            opened.pop().close()
        opened.append(GitLedger(repository, folder, keys, clock))
        return opened[-1]

    try:
        yield make
    finally:
        while opened:
            opened.pop().close()
