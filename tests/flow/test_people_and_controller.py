"""People and the controller edit the same releases: a person's word stays, whoever pushes first and whoever dies in between."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from controller.adapters.documents import YamlDocuments
from policies.acting import Give, GoBack, HoldBack, Wish, grant
from policies.parsing import parse_document
from policies.terms.release import Release
from reconcilers.deploy import release_text
from tests.fakes.story import RELEASE, TRAIN, Story
from tests.fakes.world import Moment


class Person:
    """What a person does to a story's release, by the rules of the commands."""

    def __init__(self, story: Story) -> None:
        self.story = story

    def release(self) -> Release:
        document = parse_document(YamlDocuments().load(self.story.files()[RELEASE], RELEASE))
        assert isinstance(document, Release)
        return document

    def wish(self, wish: Wish) -> bool:
        """Whether it was granted; a refused one is no word of theirs."""
        names = self.story.versions()[::-1]
        after = grant(self.release(), wish, axon="digits", deployer="deployer", versions=names, now=self.story.world.outside.now)
        if isinstance(after, Release):
            text = release_text(after, self.story.files()[RELEASE], YamlDocuments())
            self.story.push({RELEASE: text}, f"{type(wish).__name__}\n")
        return isinstance(after, Release)

    def revert(self) -> None:
        """What `git revert` of the controller's newest commit does, as far as it still applies."""
        commits = self.story.commits()
        number = max(index for index, commit in enumerate(commits) if commit.author.startswith("Myelin"))
        before, after = commits[number - 1].files, commits[number].files
        changes: dict[str, bytes | None] = {
            path: before.get(path) for path in {*before, *after} if before.get(path) != after.get(path)
        }
        if all(self.story.files().get(path) == after.get(path) for path in changes):
            self.story.push(changes, 'Revert "…"\n')


def one(story: Story) -> str:
    return story.versions()[0]


def two(story: Story) -> str:
    return story.versions()[1]


def shares(story: Story) -> dict[str, int]:
    return {item["version"]: item["share"] for item in story.release().get("traffic", ())}


def holds(story: Story) -> dict[str, str]:
    return {item["version"]: item["reason"] for item in story.release().get("holds", ())}


Deed = Callable[[Story], object]
Kept = Callable[[Story], bool]
WORDS: Mapping[str, tuple[Deed, Kept]] = {
    "a hold on the old one": (
        lambda story: Person(story).wish(HoldBack(version=one(story), reason="mine")),
        lambda story: holds(story).get(one(story)) == "mine",
    ),
    "a hold on the new one": (
        lambda story: Person(story).wish(HoldBack(version=two(story), reason="mine")),
        lambda story: two(story) in holds(story),
    ),
    "a way back": (
        lambda story: Person(story).wish(GoBack(reason="mine")),
        lambda story: two(story) not in shares(story) and two(story) in holds(story),
    ),
    "everything to the old one": (
        lambda story: Person(story).wish(Give(version=one(story), share=100)),
        lambda story: shares(story) == {one(story): 100},
    ),
}


@cache
def moments() -> tuple[tuple[int, Moment], ...]:
    """One port call, and side of it, for each state of the outside between the alert and its end."""
    story = Story()
    story.begin()
    found: dict[str, tuple[int, Moment]] = {}
    story.world.probe = lambda number, moment: found.setdefault(story.world.fingerprint(), (number, moment)) and None
    story.go_bad()
    story.recover()
    return tuple(found.values())


def disturbed(number: int, moment: Moment, deed: Deed, *, dies: bool) -> Story:
    """The story with a person's deed at a port call, at which the controller may die as well."""
    story = Story()
    story.begin()
    done: list[None] = []

    def probe(at: int, side: Moment) -> None:
        if (at, side) == (number, moment) and not done:
            done.append(None)
            deed(story)

    story.world.probe = probe
    if dies:
        story.world.crash_at, story.world.crash_moment = number, moment
    story.go_bad()
    story.recover()
    assert done
    assert story.deaths == int(dies)
    return story


@pytest.mark.parametrize("dies", [False, True], ids=["goes on", "dies there"])
@pytest.mark.parametrize("name", WORDS)
def test_a_persons_word_stays_whenever_it_comes(name: str, dies: bool) -> None:
    deed, kept = WORDS[name]
    for number, moment in moments():
        story = disturbed(number, moment, deed, dies=dies)
        where = f"{moment} call {number}, {story.world.calls[number - 1]}: {story.release()}"
        assert kept(story), where
        assert sum(shares(story).values()) == 100, where
        before = story.files()[RELEASE]
        story.settle()
        assert story.files()[RELEASE] == before, where


@cache
def is_rolled_back_at(number: int, moment: Moment) -> bool:
    """Whether the undisturbed story has rolled back by then."""
    story = Story()
    story.begin()
    seen: list[bool] = []

    def probe(at: int, side: Moment) -> None:
        if (at, side) == (number, moment):
            seen.append(bool(holds(story)))

    story.world.probe = probe
    story.go_bad()
    story.recover()
    return seen[0]


@pytest.mark.parametrize("dies", [False, True], ids=["goes on", "dies there"])
@pytest.mark.parametrize("how", ["reverts it", "lifts and promotes"])
def test_a_rollback_that_a_person_undid_is_not_done_again(how: str, dies: bool) -> None:
    """The alert goes on, but it is the same event."""

    def undo(story: Story) -> None:
        if how == "reverts it":
            Person(story).revert()
        else:
            Person(story).wish(Give(version=two(story), share=20, lift=True))

    tried = 0
    for number, moment in moments():
        if not is_rolled_back_at(number, moment):
            continue
        story = disturbed(number, moment, undo, dies=dies)
        where = f"{moment} call {number}, {story.world.calls[number - 1]}: {story.release()}"
        assert holds(story) == {}, where
        assert shares(story) == {one(story): 80, two(story): 20}, where
        tried += 1
    assert tried > 3


def test_a_deployment_that_a_person_reverted_is_not_made_again_whoever_dies_in_between() -> None:
    calm = Story()
    calm.begin()
    number = [at for at, call in enumerate(calm.world.calls, start=1) if call == "repository.push"]
    for at in number[-2:]:  # the version's commit, and the ledger's behind it
        for dies in (False, True):
            story = Story()
            done: list[None] = []

            def probe(call: int, side: Moment, story: Story = story, at: int = at, done: list[None] = done) -> None:
                if (call, side) == (at, "after") and not done and len(story.versions()) == 2:
                    done.append(None)
                    Person(story).revert()

            story.world.probe = probe
            if dies:
                story.world.crash_at, story.world.crash_moment = at, "after"
            story.begin()
            assert done
            assert story.deaths == int(dies)
            assert shares(story) == {one(story): 100}
            assert not [path for path in story.files() if path.endswith(f"/{two(story)}.yaml")]
            files = story.files()
            story.settle()
            assert story.files() == files


@given(
    people=st.lists(st.tuples(st.integers(1, 400), st.sampled_from(sorted(WORDS))), min_size=1, max_size=3),
    death=st.none() | st.integers(1, 400),
)
@settings(max_examples=25, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
def test_any_interleaving_ends_in_peace_with_the_last_word_kept(people: list[tuple[int, str]], death: int | None) -> None:
    """People come in at any port calls, in any order, and the controller may die at one more."""
    story = Story()
    story.begin()
    start = len(story.world.calls)
    due = sorted((start + 1 + at % 60, name) for at, name in people)
    said: list[str] = []

    def probe(at: int, side: Moment) -> None:
        while due and due[0][0] <= at and side == "before":
            name = due.pop(0)[1]
            if WORDS[name][0](story):
                said.append(name)

    story.world.probe = probe
    if death is not None:
        story.world.crash_at = start + 1 + death % 60
    story.go_bad()
    story.recover()
    assert sum(shares(story).values()) == 100
    assert set(holds(story)) >= {
        {"a hold on the old one": one, "a hold on the new one": two}[name](story) for name in said if name.startswith("a hold")
    }
    if said:
        assert WORDS[said[-1]][1](story), (said, story.release())
    files = story.files()
    story.settle()
    assert story.files() == files


def test_a_new_version_comes_in_beside_those_whom_a_person_put_in() -> None:
    story = Story()
    story.begin()
    Person(story).wish(Give(version=two(story), share=50))
    assert shares(story) == {one(story): 50, two(story): 50}
    story.settle()
    story.world.move(60)
    story.push({TRAIN: b"# better still\n"}, "Train better still\n")
    story.settle()
    assert shares(story) == {story.versions()[2]: 20, one(story): 40, two(story): 40}
    # What the controller divided is divided by the rule again.
    story.world.move(60)
    story.push({TRAIN: b"# better yet\n"}, "Train better yet\n")
    story.settle()
    assert shares(story) == {story.versions()[3]: 20, story.versions()[2]: 80}
