"""Git is away for half an hour: what serves and runs goes on, alerts count, what is to be written queues, in order, once."""

from __future__ import annotations

from datetime import timedelta

from controller.loop import run_pass
from policies.errors import SilentError
from tests.fakes.engine import work
from tests.fakes.story import RELEASE, TRIALS, Story

AWAY = SilentError("fetch of main: no answer")
CALLS = ("repository.fetch", "repository.push", "ledger.push")
MINUTES = 30


def away(story: Story) -> None:
    for call in CALLS:
        story.world.fail(call, AWAY, times=10_000)


def look(story: Story, passes: int) -> None:
    """Passes while Git is away, after each of which what goes on ends."""
    for _ in range(passes):
        run_pass(story.following, story.ports)
        work(story.world)


def test_training_goes_on_and_its_version_comes_once_git_is_back() -> None:
    story = Story()
    story.begin()
    before, commits = story.world.outside.started[:], len(story.commits())
    # A person's push is seen, then Git goes away while its trials run.
    story.push({"axons/digits/training/train.py": b"# better still\n"}, "Train better still\n")
    look(story, 3)
    away(story)
    for _ in range(MINUTES):
        look(story, 3)
        story.world.outside.now += timedelta(minutes=1)
    assert len(story.commits()) == commits + 1
    assert len(story.world.outside.started) == len(before) + TRIALS
    pending = story.ports.ledger.pending()
    assert pending > TRIALS
    story.world.answer_again()
    story.settle()
    assert len(story.commits()) == commits + 2
    assert story.ports.ledger.pending() == 0
    entries = story.entries()
    assert [entry.number for entry in entries] == list(range(1, len(entries) + 1))
    assert len({entry.statement.key for entry in entries}) == len(entries)
    assert len(story.world.outside.started) == len(before) + TRIALS


def test_an_alert_takes_a_bad_version_out_of_traffic_and_is_committed_once_git_is_back() -> None:
    story = Story()
    story.begin()
    one, two = story.versions()
    before = story.files()[RELEASE]
    away(story)
    story.world.outside.exposed[story.address(two)] = [({"__name__": "deploy_accuracy_digits"}, 0.5)]
    story.world.move(8)
    look(story, 6)
    (proxy,) = [item for item in story.world.outside.servers.values() if item.spec.labels.get("job") == "proxy"]
    assert proxy.spec.config["traffic"] == [{"version": one, "share": 100}]
    assert story.files()[RELEASE] == before
    story.world.outside.now += timedelta(minutes=MINUTES)
    look(story, 6)
    story.world.answer_again()
    story.settle()
    assert story.release()["traffic"] == [{"version": one, "share": 100}]
    assert [hold["version"] for hold in story.release()["holds"]] == [two]
    assert [commit.message.split("\n")[0] for commit in story.commits()].count(f"digits: roll back {two}") == 1
