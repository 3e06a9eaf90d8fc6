"""Pull requests on the simulated forge: one for each change, with its evidence, to its one end; whoever dies meanwhile."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from controller.loop import Report
from policies.statuses import ENDS, REVIEW
from tests.fakes import forge
from tests.fakes.story import RELEASE, TRAIN, Ending, Story, project_files
from tests.fakes.wiring import PERSON
from tests.fakes.world import Moment, Opinion

FORGE = {"type": "gitea", "url": "https://forge.localhost", "repository": "owner/digits"}
ASKED = {"mode": "pull-request", "rollbacks": "commit", "forge": FORGE}
EVERYTHING = {"mode": "pull-request", "forge": FORGE}
PARTS = 4


def begun(**write_back: Any) -> tuple[Story, Report]:
    write_back = {**ASKED, **write_back}
    story = Story(write_back=write_back)
    story.push(project_files(write_back), "Start a project\n")
    return story, story.settle()


def reviewed(story: Story, number: int = 1) -> list[str]:
    """States that a request's newest head was told, in order."""
    pull = story.world.outside.pulls[number]
    return [state for state, _, _ in story.world.outside.statuses.get((pull.head_commit, REVIEW), [])]


def test_a_version_is_asked_for_with_its_evidence_and_a_merge_serves_it() -> None:
    story, report = begun(review={"labels": ["myelin", "models"], "reviewers": ["reviewer", "nobody"]})
    (pull,) = story.world.outside.pulls.values()
    (version,) = {pull.head.rpartition("/")[2]}
    assert (pull.title, pull.base, pull.by) == (f"digits: deploy {version}", "main", "myelin")
    assert (pull.labels, pull.reviewers) == (["myelin", "models"], ["reviewer"])
    for words in ("| Metric |", "accuracy", "learning&#95;rate", "data `sha256:", "image of mlp", f"| {version} | 0 % | 100 % |"):
        assert words in pull.body
    assert [item.message for item in report.outcomes if item.reason == "InReview"] == [
        "simulated:forge/pulls/1: the evidence is complete"
    ]
    assert reviewed(story) == ["pending", "success"]
    assert RELEASE not in story.files()
    forge.merge(story.world, 1, key=PERSON)
    report = story.settle()
    assert story.release()["traffic"] == [{"version": version, "share": 100}]
    assert pull.head not in story.world.outside.branches
    assert reviewed(story) == ["pending", "success"]
    assert not [item for item in report.outcomes if item.state != "done"]
    ended = [said.body["how"] for said in story.statements() if said.kind == "proposal-ended"]
    assert ended == ["merged"]


@pytest.mark.parametrize("style", ["merge", "fast-forward-only", "squash", "rebase"])
def test_however_it_is_merged_it_is_acted_on_like_any_commit(style: forge.Style) -> None:
    story, _ = begun()
    forge.merge(story.world, 1, style=style, key=PERSON, delete_branch=True)
    report = story.settle()
    (version,) = story.versions()
    assert story.release()["traffic"] == [{"version": version, "share": 100}]
    assert [item.reason for item in report.outcomes if item.state == "stalled"] == []


def test_a_merge_that_nobody_trusted_signed_changes_nothing_and_is_no_no() -> None:
    story, _ = begun()
    forge.merge(story.world, 1)
    report = story.settle()
    assert {"Untrusted"} <= {item.reason for item in report.outcomes}
    assert story.kinds()["proposal-ended"] == 0


def test_a_closed_request_is_a_no_that_is_kept() -> None:
    story, _ = begun()
    forge.close(story.world, 1)
    report = story.settle()
    (said,) = [item for item in report.outcomes if item.reason == "Declined"]
    assert "was closed without a merge by reviewer" in said.message
    assert said.state == "done"
    assert reviewed(story) == ["pending", "success"]
    # A commit that changes nothing of the evidence is not asked about again.
    story.push({"README.md": b"# More\n"}, "Write more\n")
    story.settle()
    assert len(story.world.outside.pulls) == 1
    # Another training is another evidence.
    story.push({TRAIN: b"# better\n"}, "Train better\n")
    story.settle()
    assert len(story.world.outside.pulls) in (1, 2)


def test_an_approval_counts_for_the_evidence_that_it_saw() -> None:
    story, report = begun(review={"approvals": 1})
    assert reviewed(story) == ["pending"]
    assert "waits for 1 more approvals" in next(item.message for item in report.outcomes if item.reason == "InReview")
    forge.approve(story.world, 1)
    first = story.world.outside.pulls[1].head_commit
    story.settle()
    assert reviewed(story) == ["pending", "success"]
    # The base moves, the evidence does not: the approval still counts.
    story.push({"README.md": b"# More\n"}, "Write more\n")
    story.settle()
    assert story.world.outside.pulls[1].head_commit != first
    assert reviewed(story) == ["pending", "success"]


def test_an_approval_of_other_evidence_does_not_count() -> None:
    story, _ = begun(review={"approvals": 1})
    forge.approve(story.world, 1)
    first = story.world.outside.pulls[1].head_commit
    # What it would do to traffic is evidence: somebody held another version meanwhile.
    text = """apiVersion: myelin.io/v1alpha1
kind: Release
metadata: {name: deployer, axon: digits}
spec:
  holds: [{version: v-0000000000, reason: by hand, since: 2026-01-01T00:00:00Z}]
"""
    story.push({RELEASE: text.encode()}, "Hold another\n")
    story.settle()
    assert story.world.outside.pulls[1].head_commit != first
    assert reviewed(story) == ["pending"]
    told = [state for state, _, _ in story.world.outside.statuses[first, REVIEW]]
    assert sum(state in ENDS for state in told) == 1


def test_the_author_is_not_the_only_one_who_approves_where_the_project_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    story, _ = begun(review={"approvals": 1, "authorIsEnough": False})
    pull = story.world.outside.pulls[1]
    author = Opinion(by="you", commit=pull.head_commit, at=story.world.outside.now, verdict="approved")
    monkeypatch.setattr(forge, "WRITERS", (*forge.WRITERS, "you"))
    pull.opinions.append(author)
    story.settle()
    assert reviewed(story) == ["pending"]
    forge.approve(story.world, 1)
    story.settle()
    assert reviewed(story) == ["pending", "success"]


def test_the_commit_that_started_it_is_told_how_it_fared_once() -> None:
    story, _ = begun()
    forge.merge(story.world, 1, key=PERSON)
    story.settle()
    started = story.commits()[0].id
    told = {
        context: [state for state, _, _ in history]
        for (commit, context), history in story.world.outside.statuses.items()
        if commit == started
    }
    assert {context for context in told if context.startswith("myelin/digits/")}
    for states in told.values():
        assert states[0] == "pending"
        assert [state in ENDS for state in states].count(True) == 1
        assert states[-1] == "success"


def test_an_overtaken_request_is_closed_with_the_reason() -> None:
    story, _ = begun()
    story.world.move(60)
    story.push({TRAIN: b"# better\n"}, "Train better\n")
    story.settle()
    older, newer = story.world.outside.pulls.values()
    assert (older.state, newer.state) == ("closed", "open")
    assert "overtaken" in older.comments[-1][1]
    assert older.head not in story.world.outside.branches


def test_a_forge_that_is_away_or_refuses_stops_nothing_else() -> None:
    from policies.errors import RefusedError, SilentError

    for error in (SilentError("forge: no answer"), RefusedError("forge: the token lacks a permission")):
        story = Story(write_back=ASKED)
        story.world.fail("forge.open", error, times=2)
        story.world.fail("forge.set_status", error, times=3)
        story.push(project_files(ASKED), "Start a project\n")
        story.settle()
        assert [pull.state for pull in story.world.outside.pulls.values()] == ["open"]


def test_a_rollback_moves_traffic_at_once_and_asks_for_the_rest() -> None:
    story, _ = begun(rollbacks="pull-request")
    forge.merge(story.world, 1, key=PERSON)
    story.settle()
    story.world.move(60)
    story.push({TRAIN: b"# better\n"}, "Train better\n")
    story.settle()
    forge.merge(story.world, 2, key=PERSON)
    story.settle()
    one, two = story.versions()
    before = story.release()
    story.go_bad()
    assert story.release() == before
    pull = story.world.outside.pulls[3]
    assert pull.title == f"digits: roll back {two}"
    assert "value 0.5, threshold 0.8" in pull.body
    (proxy,) = [item for item in story.world.outside.servers.values() if item.spec.labels.get("job") == "proxy"]
    assert proxy.spec.config["traffic"] == [{"version": one, "share": 100}]
    forge.close(story.world, 3)
    story.settle()
    (proxy,) = [item for item in story.world.outside.servers.values() if item.spec.labels.get("job") == "proxy"]
    assert {share["version"] for share in proxy.spec.config["traffic"]} == {one, two}
    assert len(story.world.outside.pulls) == 3


class Reviewed(Story):
    """The whole story with pull requests for everything, each merged as soon as it is there."""

    def settle(self) -> Report:
        while True:
            report = super().settle()
            waiting = [pull for pull in self.world.outside.pulls.values() if pull.state == "open"]
            if not waiting:
                return report
            for pull in waiting:
                forge.merge(self.world, pull.number, key=PERSON)


@cache
def calm() -> Ending:
    return Reviewed(write_back=EVERYTHING).tell()


@cache
def deaths() -> tuple[tuple[int, Moment], ...]:
    story = Reviewed(write_back=EVERYTHING)
    found: dict[str, tuple[int, Moment]] = {}
    story.world.probe = lambda number, moment: found.setdefault(story.world.fingerprint(), (number, moment)) and None
    story.tell()
    return tuple(found.values())


@pytest.mark.parametrize("part", range(PARTS))
def test_dying_before_or_after_any_call_leaves_the_same_requests_commits_and_records(part: int) -> None:
    for number, moment in deaths()[part::PARTS]:
        story = Reviewed(write_back=EVERYTHING)
        story.world.crash_at, story.world.crash_moment = number, moment
        ending = story.tell()
        assert story.deaths == 1
        assert ending == calm(), f"died {moment} call {number}: {story.world.calls[number - 1]}"
        assert len(story.world.outside.pulls) == 3
        for history in story.world.outside.statuses.values():
            # Who died between telling and writing it down may tell the same again, in other words.
            assert len({state for state, _, _ in history if state in ENDS}) == 1
