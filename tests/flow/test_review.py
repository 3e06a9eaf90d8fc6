"""People are asked first: branches and pull requests instead of commits, from the first proposal to its one end."""

from __future__ import annotations

from typing import Any

import pytest

from controller.loop import Report
from policies.terms.outcome import Outcome
from tests.fakes.story import RELEASE, TRAIN, Story, project_files

BRANCH = {"mode": "pull-request", "rollbacks": "commit"}


def begun(write_back: dict[str, Any]) -> tuple[Story, Report]:
    story = Story(write_back=write_back)
    story.push(project_files(write_back), "Start a project\n")
    return story, story.settle()


def proposed(story: Story) -> list[str]:
    return sorted(name for name in story.world.outside.branches if name.startswith("myelin/") and name != "myelin/ledger")


def in_review(report: Report) -> Outcome:
    found = [item for item in report.outcomes if item.reason == "InReview"]
    assert len(found) == 1, report.outcomes
    return found[0]


def merge(story: Story, branch: str) -> None:
    """What a person does without a forge: takes the branch's files over in a signed commit."""
    tip = story.world.outside.branches[branch]
    before = story.files()
    files = story.world.outside.commits[tip].files
    story.push({path: content for path, content in files.items() if before.get(path) != content}, f"Merge {branch}\n")


def test_a_version_waits_on_its_branch_and_serves_once_that_is_merged() -> None:
    story, report = begun(BRANCH)
    (branch,) = proposed(story)
    assert branch.startswith("myelin/deploy/digits/v-")
    assert "waits to be merged into main" in in_review(report).message
    assert not report.is_busy
    assert RELEASE not in story.files()
    merge(story, branch)
    report = story.settle()
    assert proposed(story) == []
    version = branch.rpartition("/")[2]
    assert story.release()["traffic"] == [{"version": version, "share": 100}]
    assert story.kinds()["proposal-ended"] == 1
    assert not [item for item in report.outcomes if item.state == "stalled"]


def test_a_deleted_branch_is_a_no_that_is_kept() -> None:
    story, _ = begun(BRANCH)
    (branch,) = proposed(story)
    del story.world.outside.branches[branch]
    report = story.settle()
    assert [item.reason for item in report.outcomes if item.subject == "digits/deploy:deployer"] == ["Declined"]
    assert proposed(story) == []
    assert story.kinds()["proposal"] == 1
    # The same evidence again, by a commit that changes nothing of it.
    story.push({"axons/digits/training/NOTES.txt": b"nothing that counts\n"}, "Note\n")
    story.settle()
    asked_again = story.kinds()["proposal"] - 1
    assert asked_again == len(proposed(story))


def test_the_branch_follows_its_base_and_stays_one() -> None:
    story, _ = begun(BRANCH)
    (branch,) = proposed(story)
    before = story.world.outside.branches[branch]
    story.push({"README.md": b"# More\n"}, "Write more\n")
    story.settle()
    after = story.world.outside.branches[branch]
    assert after != before
    assert story.world.outside.commits[after].parents == (story.world.outside.branches["main"],)
    assert proposed(story) == [branch]


def test_a_newer_commit_overtakes_what_was_proposed() -> None:
    story, _ = begun(BRANCH)
    (older,) = proposed(story)
    story.world.move(60)
    story.push({TRAIN: b"# better\n"}, "Train better\n")
    story.settle()
    (newer,) = proposed(story)
    assert newer != older
    ended = [said.body for said in story.statements() if said.kind == "proposal-ended"]
    assert [(body["how"], body["reason"]) for body in ended] == [("overtaken", "overtaken: a newer commit does not need it")]


def test_a_branch_that_somebody_else_pushed_to_is_left_to_them() -> None:
    story, _ = begun(BRANCH)
    (branch,) = proposed(story)
    tip = story.world.outside.branches[branch]
    theirs = story.person.push(
        branch=branch, parent=tip, changes={"README.md": b"mine\n"}, message="More\n", at=story.world.outside.now
    )
    story.push({"NEWS.md": b"news\n"}, "News\n")
    report = story.settle()
    assert story.world.outside.branches[branch] == theirs
    assert "somebody else pushed to it" in in_review(report).message


def test_nothing_is_proposed_on_a_tip_that_is_not_trusted() -> None:
    story, _ = begun(BRANCH)
    (branch,) = proposed(story)
    before = story.world.outside.branches[branch]
    from tests.fakes.repository import FakeRepository

    stranger = FakeRepository(story.world, None, author="x", email="x@localhost")
    tip = stranger.fetch("main")
    stranger.push(branch="main", parent=tip, changes={"x.txt": b"x"}, message="x\n", at=story.world.outside.now)
    report = story.settle()
    assert story.world.outside.branches[branch] == before
    assert "Untrusted" in {item.reason for item in report.outcomes}


def test_with_manual_a_version_is_recorded_and_a_person_lets_it_in() -> None:
    story, report = begun({"mode": "manual"})
    (version,) = story.versions()
    assert RELEASE not in story.files()
    assert proposed(story) == []
    text = f"""apiVersion: myelin.io/v1alpha1
kind: Release
metadata: {{name: deployer, axon: digits}}
spec:
  traffic: [{{version: {version}, share: 100}}]
"""
    story.push({RELEASE: text.encode()}, f"Let {version} in\n")
    report = story.settle()
    assert not [item for item in report.outcomes if item.state == "stalled"]
    proxies = [server for server in story.world.outside.servers.values() if server.spec.labels.get("job") == "proxy"]
    assert [proxy.spec.config["traffic"] for proxy in proxies] == [[{"version": version, "share": 100}]]


@pytest.mark.parametrize("mode", ["commit", "pull-request", "manual"])
def test_the_deployers_own_word_goes_before_the_projects(mode: str) -> None:
    other = {"commit": "manual", "pull-request": "commit", "manual": "commit"}[mode]
    story = Story()
    files = project_files({"mode": other, "rollbacks": "commit"})
    axon = (files["axons/digits/axon.yaml"] or b"").decode()
    named = "            name: deployer\n"
    assert named in axon
    files["axons/digits/axon.yaml"] = axon.replace(named, f"{named}            promotion: {{mode: {mode}}}\n").encode()
    story.push(files, "Start\n")
    story.settle()
    assert (RELEASE in story.files(), len(story.versions()), len(proposed(story))) == {
        "commit": (True, 1, 0),
        "pull-request": (False, 0, 1),
        "manual": (False, 1, 0),
    }[mode]
