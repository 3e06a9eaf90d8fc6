"""Whoever pushes first: where a person's edit and the controller's change commute, the release ends the same; where they do
not, a table says how it ends, and that follows from their order on the branch alone: not from who saw what, or died when.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from controller.adapters.documents import YamlDocuments
from policies.acting import Give, GoBack, HoldBack, Lift
from policies.terms.version import Version
from reconcilers.deploy import record_bytes
from tests.fakes import forge
from tests.fakes.story import RELEASE, TRAIN, Story, project_files
from tests.fakes.wiring import CONTROLLER, PERSON
from tests.fakes.world import Moment, Program, Pull
from tests.flow.test_people_and_controller import Person

DOCUMENTS = YamlDocuments()
ASKED = {"mode": "pull-request", "forge": {"type": "gitea", "url": "https://forge.localhost", "repository": "owner/digits"}}
PROMOTION, ROLLBACK = "promotion", "rollback"
MOST_MOMENTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """The outside when a third version, or an alert about the second, is on its way."""

    outside: bytes
    programs: Mapping[str, Program]
    names: tuple[str, ...]
    """The versions that there are, oldest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A telling: which change of the controller's, and whether people are asked first."""

    kind: str
    is_asked: bool = False


SCENES = tuple(Scene(kind=kind, is_asked=is_asked) for is_asked in (False, True) for kind in (PROMOTION, ROLLBACK))


class Numbers(dict[str, str]):
    """A version's number by its name. The third's name has in it the commit that its run has pinned, so it depends on people."""

    def __missing__(self, name: str) -> str:
        return "3"


class Telling:
    """One scene, with a person's deed in it."""

    def __init__(self, scene: Scene) -> None:
        self.scene, self.story = scene, Story()
        known = beginning(scene)
        self.names = known.names
        self.story.world.outside = pickle.loads(known.outside)
        self.story.world.programs = dict(known.programs)
        self.was_in = False
        """Whether the controller's change was on the branch when the person pushed."""

    def tell(
        self,
        deed: Callable[[Telling], object] = lambda _: None,
        at: tuple[int, Moment] | None = None,
        dies: tuple[int, Moment] | None = None,
    ) -> Telling:
        """From the beginning to peace; the deed is done at that port call, or else at the end."""
        done: list[None] = []

        def do() -> None:
            if not done:
                done.append(None)
                self.was_in = self.is_in()
                deed(self)

        world = self.story.world
        if at is not None:
            world.probe = lambda number, side: do() if (number, side) == at else None
        if dies is not None:
            world.crash_at, world.crash_moment = dies
        if self.scene.kind == ROLLBACK:
            address = self.story.address(self.names[1])
            world.outside.exposed[address] = [({"__name__": "deploy_accuracy_digits"}, 0.5)]
            self.settle()  # who has just started has to see whom to watch
            world.move(8)
        self.review()
        if self.scene.kind == ROLLBACK:
            self.story.recover()
            self.review()
        if not done:
            do()
            self.review()
        return self

    def review(self) -> None:
        """People merge what is asked, and what they are shown is what they get."""
        self.settle()
        while (waiting := self.open()) and sum(shares(self.story.files()).values()) in (0, 100):
            for pull in waiting:
                files = self.story.files()
                now, after = shown(pull)
                head = self.story.world.outside.commits[self.story.world.outside.branches[pull.head]]
                assert head.parents == (self.story.world.outside.branches["main"],)
                assert now == shares(files)
                assert after == shares(head.files)
                forge.merge(self.story.world, pull.number, key=PERSON)
                assert self.story.files() == head.files
            self.settle()

    def settle(self) -> None:
        """Until nothing is due; who pushes during the last pass is seen by the next."""
        branches, before = self.story.world.outside.branches, ""
        while branches["main"] != before:
            before = branches["main"]
            self.story.settle()

    def open(self) -> list[Pull]:
        return [pull for pull in self.story.world.outside.pulls.values() if pull.state == "open"]

    def is_in(self) -> bool:
        files = self.story.files()
        if self.scene.kind == PROMOTION:
            return len([path for path in files if path.startswith("versions/")]) > len(self.names)
        return any(hold.get("alert") for hold in spec(files).get("holds", ())) if RELEASE in files else False

    def end(self) -> str:
        """What the release says, with versions by their number."""
        if RELEASE not in self.story.files():
            return "no release"
        said, number = spec(self.story.files()), Numbers((name, str(at)) for at, name in enumerate(self.names, start=1))
        parts = [f"{number[item['version']]}:{item['share']}" for item in said.get("traffic", ()) if item["share"]]
        parts = sorted(parts, reverse=True) or ["no traffic"]
        parts += sorted(
            f"hold {number[item['version']]}{'' if item.get('alert') else ' (mine)'}" for item in said.get("holds", ())
        )
        return " ".join(parts + ([f"shadow {number[said['shadow']]}"] if said.get("shadow") else []))

    def edit(self, change: Callable[[dict[str, Any]], object]) -> None:
        """What an editor does to the release; nothing where it is as they want it."""
        text = self.story.files()[RELEASE]
        before = DOCUMENTS.load(text, RELEASE).value
        after = deepcopy(before)
        change(after["spec"])
        if after != before:
            self.story.push({RELEASE: DOCUMENTS.edit(text, after)}, "By hand\n")


@cache
def beginning(scene: Scene) -> Beginning:
    story = Story()
    story.begin()
    names = tuple(story.versions())
    if scene.is_asked:
        files = project_files(ASKED)
        story.push({"myelin.yaml": files["myelin.yaml"]}, "Ask us first\n")
        story.settle()
    story.world.move(60)
    if scene.kind == PROMOTION:
        story.push({TRAIN: b"# better still\n"}, "Train better still\n")
    outside, programs = pickle.dumps(story.world.outside), dict(story.world.programs)
    return Beginning(outside=outside, programs=programs, names=names)


@cache
def calls(scene: Scene) -> tuple[str, ...]:
    """All port calls of a telling that nobody disturbs."""
    return tuple(Telling(scene).tell().story.world.calls)


@cache
def moments(scene: Scene) -> tuple[tuple[int, Moment], ...]:
    """One port call, and side of it, for each state of the outside."""
    telling = Telling(scene)
    found: dict[str, tuple[int, Moment]] = {}

    telling.story.world.probe = lambda number, side: found.setdefault(telling.story.world.fingerprint(), (number, side)) and None
    telling.tell()
    return tuple(found.values())


@cache
def turning(scene: Scene) -> tuple[tuple[int, Moment], ...]:
    """The moment just before the controller's change is on the branch, and the one just after."""
    telling = Telling(scene)
    last: list[tuple[int, Moment]] = []
    found: list[tuple[int, Moment]] = []

    def probe(number: int, side: Moment) -> None:
        if telling.is_in() and not found:
            found.extend([last[-1], (number, side)])
        last.append((number, side))

    telling.story.world.probe = probe
    telling.tell()
    return tuple(found)


def spec(files: Mapping[str, bytes]) -> dict[str, Any]:
    value: dict[str, Any] = DOCUMENTS.load(files[RELEASE], RELEASE).value["spec"]
    return value


def shares(files: Mapping[str, bytes]) -> dict[str, int]:
    return {item["version"]: item["share"] for item in spec(files).get("traffic", ())} if RELEASE in files else {}


def shown(pull: Pull) -> tuple[dict[str, int], dict[str, int]]:
    """The traffic table of a request's body: now, and after."""
    rows = re.findall(r"^\| (v-\w+) \| (\d+) % \| (\d+) % \|$", pull.body, re.MULTILINE)
    assert rows
    return ({name: int(now) for name, now, _ in rows if int(now)}, {name: int(then) for name, _, then in rows if int(then)})


def out(number: int) -> Callable[[Telling], object]:
    """A person gives a version's share to another one."""

    def change(said: dict[str, Any], names: tuple[str, ...]) -> None:
        there = {item["version"]: item["share"] for item in said.get("traffic", ())}
        lost = there.pop(names[number - 1], 0)
        if lost and there:
            heir = max(there, key=lambda name: there[name])
            there[heir] += lost
            said["traffic"] = [{"version": name, "share": share} for name, share in there.items()]

    return lambda telling: telling.edit(lambda said: change(said, telling.names))


def mirror(telling: Telling) -> None:
    """Version 1 gets copies only."""
    out(1)(telling)

    def change(said: dict[str, Any]) -> None:
        if telling.names[0] not in [item["version"] for item in said["traffic"]]:
            said["shadow"] = telling.names[0]

    telling.edit(change)


def give(number: int, share: int, *, lift: bool = False) -> Callable[[Telling], object]:
    return lambda telling: Person(telling.story).wish(Give(version=telling.names[number - 1], share=share, lift=lift))


def hold(number: int) -> Callable[[Telling], object]:
    return lambda telling: Person(telling.story).wish(HoldBack(version=telling.names[number - 1], reason="mine"))


def write(telling: Telling, *shares_of: int) -> None:
    """A person writes down all shares, by the version's number, and says nothing of holds."""
    traffic = [{"version": name, "share": share} for name, share in zip(telling.names, shares_of, strict=False) if share]
    telling.edit(lambda said: said.update(traffic=traffic))


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What a person does, and how the release ends."""

    deed: Callable[[Telling], object]
    promotion: tuple[str, str] | str
    """Where the person is first, and where the controller is; one text where both are the same."""
    rollback: tuple[str, str] | str

    def ends(self, scene: Scene) -> tuple[str, str]:
        said = self.promotion if scene.kind == PROMOTION else self.rollback
        return (said, said) if isinstance(said, str) else said


# Undisturbed: 2:20 1:80 becomes 3:20 2:80 by a promotion, and 1:100 hold 2 by a rollback.
ROWS: Mapping[str, Row] = {
    # 1. They commute: what the person says is about something else, or it is the same.
    "nothing": Row(deed=lambda _: None, promotion="3:20 2:80", rollback="1:100 hold 2"),
    "holds the old one": Row(
        deed=hold(1),
        promotion="3:20 2:80 hold 1 (mine)",
        # A version on hold is given no more traffic, so there is none to go back to.
        rollback=("2:20 1:80 hold 1 (mine)", "1:100 hold 1 (mine) hold 2"),
    ),
    "takes the old one out": Row(deed=out(1), promotion="3:20 2:80", rollback="1:100 hold 2"),
    "mirrors to the old one": Row(deed=mirror, promotion="3:20 2:80 shadow 1", rollback="1:100 hold 2"),
    # 2. A hold is of what may come, and takes from nobody what they have; a bad version goes out whoever held it.
    "holds the newer one": Row(
        deed=hold(2),
        promotion=("3:20 1:80 hold 2 (mine)", "3:20 2:80 hold 2 (mine)"),
        rollback=("1:100 hold 2 (mine)", "1:100 hold 2"),
    ),
    # 3. Shares are of what the person saw: who comes in later takes their part of that, who goes out leaves it.
    "half and half": Row(
        deed=give(1, 50),
        promotion=("3:20 2:40 1:40", "3:10 2:40 1:50"),
        rollback="1:100 hold 2",
    ),
    "writes all shares down": Row(
        deed=lambda telling: write(telling, 30, 70),
        promotion=("3:20 2:56 1:24", "2:70 1:30"),
        rollback=("1:100 hold 2", "2:70 1:30 hold 2"),
    ),
    "takes the newer one out": Row(deed=out(2), promotion=("3:20 1:80", "3:100"), rollback=("1:100", "1:100 hold 2")),
    "goes back": Row(
        deed=lambda telling: Person(telling.story).wish(GoBack(reason="mine")),
        promotion=("3:20 1:80 hold 2 (mine)", "2:100 hold 3 (mine)"),
        rollback=("1:100 hold 2 (mine)", "1:100 hold 2"),
    ),
    # 4. What undoes the controller's change comes after it, or undoes nothing.
    "lifts the hold": Row(
        deed=lambda telling: Person(telling.story).wish(Lift(version=telling.names[1])),
        promotion="3:20 2:80",
        rollback=("1:100 hold 2", "1:100"),
    ),
    "lifts and promotes": Row(
        deed=give(2, 20, lift=True),
        promotion=("3:20 2:80", "3:80 2:20"),
        rollback=("1:100 hold 2", "2:20 1:80"),
    ),
    "reverts the controller's newest commit": Row(
        deed=lambda telling: Person(telling.story).revert(),
        promotion=("3:20 1:80", "2:20 1:80"),
        rollback=("1:100", "2:20 1:80"),
    ),
    # 5. Who empties or deletes a release takes all out that are in; it is no word on a version that is not there yet.
    "takes all out": Row(
        deed=lambda telling: telling.edit(lambda said: said.pop("traffic")),
        promotion=("3:100", "no traffic"),
        rollback=("no traffic", "no traffic hold 2"),
    ),
    "deletes the release": Row(
        deed=lambda telling: telling.story.push({RELEASE: None}, "Delete it\n"),
        promotion=("3:100", "no release"),
        rollback="no release",
    ),
}
scenes = pytest.mark.parametrize("scene", SCENES, ids=lambda it: f"{it.kind}{', asked first' if it.is_asked else ''}")


@scenes
@pytest.mark.parametrize("name", ROWS)
def test_how_it_ends_follows_from_the_order_on_the_branch_alone(name: str, scene: Scene) -> None:
    row, some = ROWS[name], moments(scene)
    seen = set()
    for at in dict.fromkeys((*turning(scene), *some[:: max(len(some) // (1 if scene.is_asked else MOST_MOMENTS), 1)], None)):
        telling = Telling(scene).tell(row.deed, at)
        where = f"{at and (at, calls(scene)[at[0] - 1])}, {'after' if telling.was_in else 'before'} the controller"
        assert telling.end() == row.ends(scene)[telling.was_in], where
        check(telling)
        seen.add(telling.was_in)
    assert seen == {False, True}


@settings(max_examples=25, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(
    scene=st.sampled_from(SCENES),
    name=st.sampled_from(sorted(ROWS)),
    at=st.integers(0, 10**6),
    death=st.integers(0, 10**6),
    side=st.sampled_from(["before", "after"]),
)
def test_a_death_at_any_call_changes_nothing_of_that(scene: Scene, name: str, at: int, death: int, side: Moment) -> None:
    """The person comes in at one call, the controller dies at another one, or at the same."""
    some = moments(scene)
    telling = Telling(scene).tell(ROWS[name].deed, some[at % len(some)], (1 + death % (len(calls(scene)) // 2), side))
    assert telling.story.deaths == 1
    assert telling.end() == ROWS[name].ends(scene)[telling.was_in]
    check(telling)


def check(telling: Telling) -> None:
    """It is at rest, nothing is asked any more, and every record is as it was signed."""
    files = telling.story.files()
    telling.settle()
    assert telling.story.files() == files
    assert not telling.open()
    for path, text in files.items():
        if path.startswith("versions/"):
            version = Version.model_validate(DOCUMENTS.load(text, path).value)
            assert CONTROLLER.is_signed(record_bytes(version), version.signature, CONTROLLER.public())


@scenes
def test_a_release_that_cannot_be_read_is_not_written_over_and_serves_on(scene: Scene) -> None:
    """A slip of the pen is no word: whatever is due waits until it is mended."""
    telling = Telling(scene)

    def slip(said: dict[str, Any]) -> None:
        said["traffic"][0]["share"] += 7

    serving = {name for name, item in telling.story.world.outside.servers.items() if item.spec.labels.get("axon") == "digits"}
    telling.tell(lambda it: it.edit(slip), turning(scene)[0])
    assert shares(telling.story.files()) == {telling.names[0]: 80, telling.names[1]: 27}
    assert not telling.is_in()
    assert serving <= set(telling.story.world.outside.servers)
    outcomes = {item.reason for item in telling.story.settle().outcomes if item.state == "stalled"}
    assert "UnreadableRelease" in outcomes
    write(telling, 80, 20)
    telling.review()
    assert telling.end() == ROWS["nothing"].ends(scene)[0]
    check(telling)


def test_an_old_head_that_somebody_merges_is_served_as_it_was_shown() -> None:
    """The branch moved meanwhile, by something else: nobody has to wait for the request to follow."""
    telling = Telling(Scene(kind=PROMOTION, is_asked=True))
    telling.settle()
    (pull,) = telling.open()
    _, after = shown(pull)
    telling.story.push({"README.md": b"# More\n"}, "Write more\n")
    forge.merge(telling.story.world, pull.number, key=PERSON)
    assert shares(telling.story.files()) == after
    telling.settle()
    assert shares(telling.story.files()) == after
    check(telling)


@pytest.mark.parametrize("name", ["holds the newer one", "half and half", "takes all out"])
def test_an_old_head_that_somebody_merges_by_hand_ends_as_they_wrote_it(name: str) -> None:
    """Both sides changed the release: who merges them says what it is to be, and is not asked again."""
    telling = Telling(Scene(kind=PROMOTION, is_asked=True))
    telling.settle()
    (pull,) = telling.open()
    head = telling.story.world.outside.commits[telling.story.world.outside.branches[pull.head]]
    ROWS[name].deed(telling)
    with pytest.raises(AssertionError, match="changed on both sides"):
        forge.merge(telling.story.world, pull.number, key=PERSON)
    mine = telling.story.files()
    taken = {path: text for path, text in head.files.items() if path not in mine}
    telling.story.push(taken, "Take it over, and keep my release\n")
    telling.settle()
    assert telling.story.files() == {**mine, **taken}
    check(telling)


def test_a_rollback_that_a_person_was_faster_with_is_overtaken_and_not_called_merged() -> None:
    telling = Telling(Scene(kind=ROLLBACK, is_asked=True))
    telling.story.settle()
    address = telling.story.address(telling.names[1])
    telling.story.world.outside.exposed[address] = [({"__name__": "deploy_accuracy_digits"}, 0.5)]
    telling.story.world.move(8)
    telling.settle()
    assert telling.open()
    out(2)(telling)
    telling.settle()
    assert telling.end() == "1:100"
    check(telling)
    ended = [said.body for said in telling.story.statements() if said.kind == "proposal-ended"]
    assert [body["how"] for body in ended] == ["overtaken"]
