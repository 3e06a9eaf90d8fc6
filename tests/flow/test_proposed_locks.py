"""Locks on the simulated forge: one request for each text, what each button does to the branch's trust, and its one end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from controller.loop import Report, run_pass
from policies.errors import ControllerError, RefusedError, SilentError
from policies.lock_proposals import READY
from policies.statuses import REVIEW
from policies.terms.revision import Pin
from tests.fakes import forge
from tests.fakes.engine import work
from tests.fakes.repository import FakeRepository
from tests.fakes.story import PIN, TRAIN, Ending, Story, project_files
from tests.fakes.wiring import PERSON, hand_key
from tests.fakes.world import Moment, Pull

FORGE = {"type": "gitea", "url": "https://forge.localhost", "repository": "owner/digits"}
WRITE_BACK = {"mode": "commit", "forge": FORGE}
STILL = {"mode": "pull-request", "forge": FORGE}
"""The branch stays where it was: a version waits to be let in, too."""
FOLDER = "axons/digits/training"
LOOSE, LOCK = f"{FOLDER}/requirements.txt", f"{FOLDER}/requirements.lock"
REQUIREMENTS = b"idna>=3\n"
BUTTON = hand_key(9)
"""The forge's own key."""
PARTS = 3


class Pinned(Story):
    """A story under another pin."""

    pin = PIN

    def _open(self) -> None:
        super()._open()
        self.following.pin = self.pin


def begun(
    write_back: Mapping[str, Any] = WRITE_BACK, *, pin: Pin = PIN, builder: str = "", signers: str = ""
) -> tuple[Pinned, Report]:
    story = Pinned(write_back=write_back)
    story.pin = pin
    files = project_files(write_back)
    text = (files["myelin.yaml"] or b"").decode()
    if builder:
        text = text.rstrip() + f"\n  builder: {builder}\n"
    if signers:
        text = text.replace("    signers:\n", f"    signers:\n{signers}", 1)
        assert signers in text
    story.push({**files, "myelin.yaml": text.encode(), LOOSE: REQUIREMENTS}, "Start a project\n")
    return story, story.settle()


def asked(story: Story) -> list[Pull]:
    return [pull for pull in story.world.outside.pulls.values() if pull.head.startswith("myelin/lock/")]


def ended(story: Story) -> list[tuple[str, str]]:
    """How proposals of locks ended, and why."""
    said = [item for item in story.statements() if item.kind in ("proposal", "proposal-ended")]
    locks = {item.body["taskRun"] for item in said if item.body.get("proposalKind") == "lock"}
    over = [item.body for item in said if item.kind == "proposal-ended" and item.body["taskRun"] in locks]
    return [(body["how"], body["reason"]) for body in over]


def training(story: Story) -> set[str]:
    """Digests of all images of the folder, whatever commit it is of."""
    trees = {story.person.tree_id(commit.id, FOLDER) for commit in story.commits()}
    return {str(state.digest) for state in story.world.outside.built.values() if state.materials["tree"] in trees}


def test_a_lock_that_was_resolved_is_asked_about_as_one_file() -> None:
    story, report = begun({**WRITE_BACK, "review": {"labels": ["myelin"], "reviewers": ["reviewer"]}})
    (pull,) = asked(story)
    assert (pull.title, pull.base, pull.by) == (f"{FOLDER}: lock what was installed", "main", "myelin")
    assert (pull.labels, pull.reviewers) == (["myelin"], ["reviewer"])
    for words in ("`idna==3.1 --hash=", "**Squash it, or take it by hand.**", f"git fetch origin {pull.head}", "1 package:"):
        assert words in pull.body
    head = story.world.outside.commits[pull.head_commit]
    before = story.world.outside.commits[head.parents[0]].files
    assert {path for path in {*before, *head.files} if before.get(path) != head.files.get(path)} == {LOCK}
    assert head.files[LOCK].startswith(b"# Resolved\nidna==3.1 --hash=sha256:")
    assert head.signature is not None
    said = [item for item in report.outcomes if item.subject == f"digits/{LOCK}"]
    assert [(item.state, item.reason, item.is_patient) for item in said] == [("waiting", "InReview", True)]
    assert said[0].message == f"simulated:forge/pulls/{pull.number}: {READY}"
    told = [(state, text) for state, text, _ in story.world.outside.statuses[pull.head_commit, REVIEW]]
    assert told == [("pending", "the evidence is being looked at"), ("success", READY)]
    # It stops nothing: the version was brought in meanwhile.
    assert len(story.versions()) == 1


# What each button makes of the head: whether its tip is trusted, and what is said where it is not.
OURS = f"signed by the controller's key, which may not touch {LOCK}, only versions/, releases/"
SIGNER = "      - {{name: forge, ssh: {key}, paths: [{paths}]}}\n"
ALL, SOME, THIS = "", "versions/, releases/", f"versions/, releases/, {LOCK}"
BUTTONS: dict[str, tuple[forge.Style, str, str]] = {
    "a squash that somebody signs who may change it": ("squash", "a person", ""),
    "a squash with the forge's key, which may change this file": ("squash", THIS, ""),
    "a squash with the forge's key, which may change versions only": (
        "squash",
        SOME,
        f"signed by the key of forge, which may not touch {LOCK}, only versions/, releases/",
    ),
    "a squash that nobody signs": ("squash", "nobody", "expected a signed commit, got an unsigned one"),
    "a merge commit by a person": ("merge", "a person", OURS),
    "a merge commit with the forge's key": ("merge", ALL, OURS),
    "a fast-forward": ("fast-forward-only", "a person", OURS),
    "a rebase with nothing to do": ("rebase", "a person", OURS),
}


@pytest.mark.parametrize("case", BUTTONS)
def test_what_each_button_does_to_trust(case: str) -> None:
    style, whose, fault = BUTTONS[case]
    people = {"a person": PERSON, "nobody": None}
    key = people.get(whose, BUTTON)
    signer = SIGNER.format(key=BUTTON.public(), paths=SOME if whose in people else whose)
    story, _ = begun(STILL, signers=signer.replace(", paths: []", ""))
    (pull,) = asked(story)
    assert ("Not with the key of `forge`" in pull.body) == (whose in (SOME, *people))
    images = training(story)
    forge.merge(story.world, pull.number, style=style, key=key)
    report = story.settle()
    untrusted = [item.message for item in report.outcomes if item.reason == "Untrusted" and item.state == "stalled"]
    if fault:
        assert [fault in text for text in untrusted] == [True]
        assert ended(story) == []  # the forge's word decides nothing
        return
    assert untrusted == []
    assert ended(story) == [("merged", f"{LOCK} is there as proposed")]
    assert pull.head not in story.world.outside.branches
    assert (training(story), len(images)) == (images, 1)


@pytest.mark.parametrize(("style", "is_trusted"), [("merge", True), ("fast-forward-only", False), ("squash", True)])
def test_where_ancestors_need_no_signature_a_merge_commit_vouches(style: forge.Style, is_trusted: bool) -> None:
    story, _ = begun(STILL, pin=replace(PIN, ancestors=False))
    (pull,) = asked(story)
    forge.merge(story.world, pull.number, style=style, key=PERSON)
    report = story.settle()
    assert bool([item for item in report.outcomes if item.state == "stalled"]) != is_trusted
    assert [how for how, _ in ended(story)] == (["merged"] if is_trusted else [])


@pytest.mark.parametrize(("style", "is_trusted"), [("squash", True), ("merge", False), ("fast-forward-only", False)])
def test_without_signers_our_own_commit_still_may_not_change_source(style: forge.Style, is_trusted: bool) -> None:
    story, _ = begun(STILL, pin=replace(PIN, unsafe_unsigned=True))
    (pull,) = asked(story)
    forge.merge(story.world, pull.number, style=style)
    report = story.settle()
    assert bool([item for item in report.outcomes if item.state == "stalled"]) != is_trusted
    assert [how for how, _ in ended(story)] == (["merged"] if is_trusted else [])


def test_a_wrong_button_that_is_taken_back_costs_the_request_and_nothing_else() -> None:
    story, _ = begun()
    (pull,) = asked(story)
    before = story.world.outside.branches["main"]
    forge.merge(story.world, pull.number, key=PERSON)
    story.settle()
    story.world.outside.branches["main"] = before
    report = story.settle()
    assert not [item for item in report.outcomes if item.state == "stalled"]
    assert [how for how, _ in ended(story)] == ["declined"]
    assert "was merged and taken back" in ended(story)[0][1]


def test_taken_by_hand_it_is_merged_and_the_request_is_closed() -> None:
    story, _ = begun()
    (pull,) = asked(story)
    text = story.world.outside.commits[pull.head_commit].files[LOCK]
    images = training(story)
    story.push({LOCK: text}, "Lock what was installed\n")
    story.settle()
    assert ended(story) == [("merged", f"{LOCK} is there as proposed")]
    assert (pull.state, pull.head in story.world.outside.branches) == ("closed", False)
    assert pull.comments[-1][1].endswith(f"Myelin closes this: {LOCK} is there as proposed.")
    assert training(story) == images


def test_a_closed_request_is_a_no_for_that_text_and_another_text_is_asked_about() -> None:
    story, _ = begun()
    (pull,) = asked(story)
    forge.close(story.world, pull.number)
    report = story.settle()
    assert [how for how, _ in ended(story)] == ["declined"]
    assert pull.head not in story.world.outside.branches
    assert not [item for item in report.outcomes if item.state != "done"]
    story.push({TRAIN: b"# better\n"}, "Train better\n")
    story.settle()
    assert len(asked(story)) == 1
    story.world.newest = "3.2"
    story.push({TRAIN: b"# best\n"}, "Train best\n")
    story.settle()
    assert [pull.state for pull in asked(story)] == ["closed", "open"]
    assert "idna==3.2" in asked(story)[1].body


def test_a_deleted_branch_is_a_no() -> None:
    story, _ = begun()
    (pull,) = asked(story)
    del story.world.outside.branches[pull.head]
    story.settle()
    assert [how for how, _ in ended(story)] == ["declined"]
    story.settle()
    assert len(asked(story)) == 1


OVERTAKEN: dict[str, tuple[dict[str, bytes | None], str]] = {
    "the requirements are others": ({LOOSE: b"idna>=2\n"}, f"the requirements of {FOLDER} are others now"),
    "a lock of theirs is there": (
        {LOCK: b"idna==3.0 --hash=sha256:0\n"},
        f"the requirements of {FOLDER} are locked by requirements.lock now",
    ),
    "another kind of lock is there": (
        {f"{FOLDER}/pylock.toml": b"x"},
        f"the requirements of {FOLDER} are locked by pylock.toml now",
    ),
    "nothing is required any more": ({LOOSE: None}, f"{FOLDER} has no requirements any more"),
    "its axon is gone": ({"axons/digits/axon.yaml": None}, f"nothing is built of {FOLDER} any more"),
}


@pytest.mark.parametrize("case", OVERTAKEN)
def test_what_was_overtaken_is_closed_with_the_reason(case: str) -> None:
    files, reason = OVERTAKEN[case]
    story, _ = begun()
    (pull,) = asked(story)
    story.push(files, "Change it\n")
    story.settle()
    assert ended(story) == [("overtaken", reason)]
    assert (pull.state, pull.head in story.world.outside.branches) == ("closed", False)
    assert reason in pull.comments[-1][1]


def test_another_text_overtakes_the_first() -> None:
    story, _ = begun()
    story.world.newest = "3.2"
    story.push({TRAIN: b"# better\n"}, "Train better\n")
    story.settle()
    assert ended(story) == [("overtaken", "another lock was resolved since then")]
    assert [pull.state for pull in asked(story)] == ["closed", "open"]


def test_a_base_that_moves_changes_nothing_of_it() -> None:
    story, _ = begun()
    (pull,) = asked(story)
    head, entries = pull.head_commit, len(story.entries())
    story.push({"README.md": b"# More\n"}, "Write more\n")
    story.settle()
    assert (pull.head_commit, len(story.entries()), len(asked(story))) == (head, entries, 1)
    forge.merge(story.world, pull.number, style="squash", key=PERSON)
    story.settle()
    assert [how for how, _ in ended(story)] == ["merged"]
    assert story.files()["README.md"] == b"# More\n"


def test_approvals_are_waited_for_and_the_button_is_named_all_the_same() -> None:
    story, _ = begun({**WRITE_BACK, "review": {"approvals": 1}})
    (pull,) = asked(story)
    forge.approve(story.world, pull.number)
    story.settle()
    told = [(state, text) for state, text, _ in story.world.outside.statuses[pull.head_commit, REVIEW]]
    assert told == [("pending", "waits for 1 more approvals of this evidence"), ("success", READY)]


def test_who_pushes_to_the_branch_owns_it() -> None:
    story, _ = begun()
    (pull,) = asked(story)
    made = story.person.push(
        branch=pull.head, parent=pull.head_commit, changes={LOCK: b"mine\n"}, message="Mine\n", at=story.world.outside.now
    )
    report = story.settle()
    assert story.world.outside.branches[pull.head] == made
    assert "somebody else pushed to it" in next(item.message for item in report.outcomes if item.reason == "InReview")


@pytest.mark.parametrize("error", [SilentError("forge: no answer"), RefusedError("forge: the token lacks a permission")])
@pytest.mark.parametrize("call", ["forge.open", "forge.set_status", "forge.find", "repository.propose", "images.lock"])
def test_what_fails_loses_nothing_and_stops_nothing(error: ControllerError, call: str) -> None:
    story = Story(write_back=WRITE_BACK)
    story.world.fail(call, error, times=3)
    story.push({**project_files(WRITE_BACK), LOOSE: REQUIREMENTS}, "Start a project\n")
    story.settle()
    assert [pull.state for pull in asked(story)] == ["open"]
    assert len(story.versions()) == 1


def test_an_untrusted_tip_is_waited_for() -> None:
    story = Story(write_back=WRITE_BACK)
    story.world.fail("images.lock", SilentError("store: no answer"), times=1000)
    story.push({**project_files(WRITE_BACK), LOOSE: REQUIREMENTS}, "Start a project\n")
    with pytest.raises(AssertionError, match="never at rest"):
        story.settle()
    good = story.world.outside.branches["main"]
    stranger = FakeRepository(story.world, hand_key(3))
    stranger.push(branch="main", parent=good, changes={"x": b"1"}, message="x\n", at=story.world.outside.now)
    story.world.answer_again()
    report = story.settle()
    assert asked(story) == []
    assert "nothing is proposed on top of it" in next(
        item.message for item in report.outcomes if item.subject == f"digits/{LOCK}"
    )
    story.world.outside.branches["main"] = good
    story.settle()
    assert len(asked(story)) == 1


def test_a_text_that_is_not_the_recorded_one_is_not_proposed() -> None:
    story = Story(write_back=WRITE_BACK)
    story.world.meanwhile(
        "images.lock", lambda: story.world.outside.locks.update(dict.fromkeys(story.world.outside.locks, "evil==1\n"))
    )
    story.push({**project_files(WRITE_BACK), LOOSE: REQUIREMENTS}, "Start a project\n")
    report = story.settle()
    assert asked(story) == []
    (said,) = [item for item in report.outcomes if item.state == "stalled"]
    assert (said.reason, said.subject) == ("OtherLock", f"digits/{LOCK}")
    assert "expected the lock that was recorded" in said.message


NOT_ASKED: dict[str, tuple[Mapping[str, Any], str]] = {
    "without a forge": ({"mode": "commit"}, ""),
    "where the project says no": (WRITE_BACK, "{proposeLocks: false}"),
}


@pytest.mark.parametrize("case", NOT_ASKED)
def test_where_nobody_is_asked_the_other_way_is_told_once(case: str) -> None:
    write_back, builder = NOT_ASKED[case]
    story, _ = begun(write_back, builder=builder)
    story.push({LOOSE: b"idna>=2\n"}, "Ask for more\n")
    told: list[str] = []
    for _ in range(200):
        report = run_pass(story.following, story.ports)
        told += [item.message for item in report.outcomes if "its requirements are not locked" in item.message]
        if not report.look_again and not work(story.world):
            break
    assert [text.partition("; ")[2] for text in told] == [
        "its requirements are not locked: `myelin lock --into .` keeps what was chosen"
    ]
    assert not [branch for branch in story.world.outside.branches if branch.startswith("myelin/lock/")]
    assert asked(story) == []


def test_turned_off_later_the_request_is_closed() -> None:
    story, _ = begun()
    text = story.files()["myelin.yaml"].rstrip() + b"\n  builder: {proposeLocks: false}\n"
    story.push({"myelin.yaml": text}, "No locks\n")
    story.settle()
    assert ended(story) == [("overtaken", "locks are not proposed any more")]
    assert [pull.state for pull in asked(story)] == ["closed"]


LOOK = b"""apiVersion: myelin.io/v1alpha1
kind: Axon
metadata: {name: digits}
spec:
  artifacts: [{name: source, path: /src}]
  tasks:
    - name: look
      container: {imageBuild: {artifact: source, buildLocation: /src, s2i: {contextDir: axons/digits/training}}}
  sensors:
    - name: go
      tasks: [{resourceExecutor: {task: look}}]
"""


class Asked(Story):
    """Requirements, another lock of them, its merge, other requirements, and a no."""

    def tell(self) -> Ending:
        self.world.programs[FOLDER] = lambda _: 0
        files = {path: text for path, text in project_files(WRITE_BACK).items() if path == "myelin.yaml"}
        self.push({**files, "axons/digits/axon.yaml": LOOK, LOOSE: REQUIREMENTS}, "Start a project\n")
        self.settle()
        self.world.newest = "3.2"
        self.push({TRAIN: b"# better\n"}, "Look better\n")
        self.settle()
        forge.merge(self.world, self.open_one(), style="squash", key=PERSON)
        self.settle()
        self.world.newest = "3.3"
        self.push({LOOSE: b"idna>=2\n", LOCK: None}, "Ask for more\n")
        self.settle()
        forge.close(self.world, self.open_one())
        self.settle()
        return self.ending()

    def open_one(self) -> int:
        (number,) = [pull.number for pull in self.world.outside.pulls.values() if pull.state == "open"]
        return number


@cache
def calm() -> Ending:
    return Asked(write_back=WRITE_BACK).tell()


@cache
def deaths() -> tuple[tuple[int, Moment], ...]:
    story = Asked(write_back=WRITE_BACK)
    found: dict[str, tuple[int, Moment]] = {}
    story.world.probe = lambda number, moment: found.setdefault(story.world.fingerprint(), (number, moment)) and None
    story.tell()
    assert [pull.state for pull in story.world.outside.pulls.values()] == ["closed", "merged", "closed"]
    assert [how for how, _ in ended(story)] == ["overtaken", "merged", "declined"]
    return tuple(found.values())


@pytest.mark.parametrize("part", range(PARTS))
def test_dying_before_or_after_any_call_leaves_the_same_requests_branches_and_records(part: int) -> None:
    for number, moment in deaths()[part::PARTS]:
        story = Asked(write_back=WRITE_BACK)
        story.world.crash_at, story.world.crash_moment = number, moment
        ending = story.tell()
        assert story.deaths == 1
        assert ending == calm(), f"died {moment} call {number}: {story.world.calls[number - 1]}"
        assert [pull.state for pull in story.world.outside.pulls.values()] == ["closed", "merged", "closed"]
        assert not [branch for branch in story.world.outside.branches if branch.startswith("myelin/lock/")]
