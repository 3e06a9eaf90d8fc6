"""What makes a controller look: polling alone, spread over time; and since when what went wrong has been wrong."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from controller import project
from controller.adapters.clock import SystemClock
from controller.adapters.git import GitRepository, init_bare
from controller.adapters.keys import SshKey
from controller.follow import spread, write_status
from controller.loop import Report
from controller.printing import since
from controller.settings import JITTER
from policies.terms.outcome import Outcome
from policies.terms.plan import Plan
from tests.contracts.git_server import GitServer, git_server

AT = datetime(2026, 1, 31, 12, 3, tzinfo=UTC)
POLL_SECONDS = 1.0
FOLLOW = """
import sys
from dataclasses import replace
from pathlib import Path
from controller import follow
from controller.settings import Settings
url, state, trust = sys.argv[1:4]
follow.follow(Settings(repository=url, state=Path(state), trust=Path(trust), poll_seconds=float(sys.argv[4])), tell=print)
"""


def eventually(held: Callable[[], bool], *, seconds: float = 30) -> float:
    """Seconds until it held."""
    begun = time.monotonic()
    while not held():
        assert time.monotonic() - begun < seconds, f"waited {seconds} s in vain"
        time.sleep(0.01)
    return time.monotonic() - begun


def status(state: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((state / "status.json").read_bytes()))
    except (OSError, ValueError):
        return {}


@contextlib.contextmanager
def following(url: str, place: project.Place) -> Iterator[subprocess.Popen[bytes]]:
    """A controller of its own that follows a server far away: nothing watches, nobody sends it a webhook."""
    command = [sys.executable, "-c", FOLLOW, url, str(place.state), str(place.trust), str(POLL_SECONDS)]
    made = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env={**os.environ})
    try:
        eventually(lambda: status(place.state).get("pid") == made.pid and bool(status(place.state)["revision"]))
        yield made
    finally:
        made.send_signal(signal.SIGTERM)
        made.wait(30)


@pytest.fixture
def far(tmp_path: Path) -> Iterator[tuple[GitServer, str, project.Place, SshKey]]:
    place = project.make(tmp_path / "p", now=SystemClock().now())
    key = SshKey.load(tmp_path / "p.myelin" / "signer")
    project.push_as(place, key, {"axons/digits/axon.yaml": None}, "Nothing to do\n", now=SystemClock().now())
    with git_server(tmp_path) as server:
        yield server, server.url("p.git"), place, key


def test_polling_alone_is_enough(far: tuple[GitServer, str, project.Place, SshKey]) -> None:
    _, url, place, key = far
    with following(url, place):
        for number in range(3):
            pushed = project.push_as(place, key, {"notes.txt": str(number).encode()}, "Note\n", now=SystemClock().now())
            took = eventually(lambda pushed=pushed: status(place.state)["revision"].endswith(pushed))  # type: ignore[misc]
            # A pass comes on top, and this machine may be busy with other tests.
            assert took < POLL_SECONDS * (1 + JITTER) + 3


def test_while_git_is_away_status_says_since_when(far: tuple[GitServer, str, project.Place, SshKey]) -> None:
    server, url, place, _ = far

    def troubles() -> dict[str, str]:
        return {item["subject"]: item["since"] for item in status(place.state).get("outcomes", ()) if item["state"] != "done"}

    with following(url, place):
        assert troubles() == {}
        server.refusal = 503
        eventually(lambda: "main" in troubles())
        begun = troubles()["main"]
        assert abs((datetime.fromisoformat(begun) - SystemClock().now()).total_seconds()) < 30
        looked = status(place.state)["at"]
        eventually(lambda: status(place.state)["at"] > looked)
        assert troubles()["main"] == begun
        server.refusal = None
        eventually(lambda: troubles() == {}, seconds=90)


def report(at: datetime, *outcomes: Outcome) -> Report:
    return Report(at=at, desired=None, observed=None, plan=Plan(steps=()), outcomes=outcomes)


def outcome(state: Any, subject: str, reason: str = "Silent") -> Outcome:
    return Outcome(state=state, subject=subject, reason=reason, message=f"at {time.monotonic()}")


def test_an_instant_stays_as_long_as_the_trouble_does_whoever_wrote_it_down(tmp_path: Path) -> None:
    class Wired:
        isolation = inbox_address = ""

    def seen(minutes: int, *outcomes: Outcome) -> list[str]:
        write_status(tmp_path, report(AT + timedelta(minutes=minutes), *outcomes), Wired())  # type: ignore[arg-type]
        return [item["since"] for item in status(tmp_path)["outcomes"]]

    def at(minutes: int) -> str:
        return (AT + timedelta(minutes=minutes)).isoformat()

    assert seen(0, outcome("waiting", "main"), outcome("done", "a")) == [at(0), ""]
    assert seen(1, outcome("stalled", "main"), outcome("waiting", "a")) == [at(0), at(1)]
    assert seen(2, outcome("waiting", "main", "Refused"), outcome("waiting", "a")) == [at(2), at(1)]
    assert seen(3, outcome("waiting", "main")) == [at(3)]
    assert seen(4, replace(outcome("waiting", "main"), is_quiet=True)) == []
    (tmp_path / "status.json").write_text('{"outcomes": [{"state": "waiting", "subject": "main", "reason": "Silent"}]}')
    assert seen(5, outcome("waiting", "main")) == [at(5)]
    for odd in ("{", "[]", '{"outcomes": 5}', '{"outcomes": [5]}'):
        (tmp_path / "status.json").write_text(odd)
        assert seen(6, outcome("waiting", "main")) == [at(6)]


def test_a_person_reads_the_hour_and_the_day_where_it_is_another() -> None:
    assert since({"since": "2026-01-31T12:03:07+00:00"}, "2026-01-31T13:00:00+00:00") == ", since 12:03 UTC"
    assert since({"since": "2026-01-31T12:03:07+00:00"}, "2026-02-01T00:10:00+00:00") == ", since 2026-01-31 12:03 UTC"
    assert since({}, "2026-02-01T00:10:00+00:00") == since({"since": ""}, "") == ""


def test_looks_are_spread() -> None:
    drawn = [spread(10.0) for _ in range(200)]
    assert 8.0 <= min(drawn) < 9.0
    assert 11.0 < max(drawn) <= 12.0


def test_a_stirred_repository_is_asked_at_once(tmp_path: Path) -> None:
    init_bare(tmp_path / "served" / "origin.git")
    with git_server(tmp_path / "served") as server:
        key, url = SshKey.generate(tmp_path / "key"), server.url("origin.git")
        reader = GitRepository(url, tmp_path / "reader", None, poll_seconds=600)
        writer = GitRepository(url, tmp_path / "writer", key)
        try:
            assert reader.fetch("main") == ""
            pushed = writer.push(branch="main", parent="", changes={"a": b"1"}, message="One\n", at=AT)
            assert reader.fetch("main") == ""
            reader.stir("main")
            assert reader.fetch("main") == pushed
        finally:
            reader.close()
            writer.close()
