"""The controller is killed in the middle of a tuning run: started again, it ends as if nothing had happened."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller import answers, project
from controller.adapters.clock import SystemClock
from controller.adapters.keys import SshKey
from controller.adapters.ledger import read_folder
from controller.stopping import stop_servers
from policies.terms.record import Entry

SMALLER = {"minBudget: 2": "minBudget: 1", "maxBudget: 18": "maxBudget: 3", "numIteration: 2": "numIteration: 1"}
TRIALS = 4


@pytest.fixture
def twins(tmp_path: Path) -> Iterator[tuple[project.Place, project.Place]]:
    """Two controllers' places on equal copies of one repository: same commits, same keys."""
    one = project.make(tmp_path / "one", now=SystemClock().now())
    key = SshKey.load(tmp_path / "one.myelin" / "signer")
    text = (tmp_path / "one" / "axons/digits/axon.yaml").read_text()
    for old, new in SMALLER.items():
        assert old in text
        text = text.replace(old, new)
    project.push_as(one, key, {"axons/digits/axon.yaml": text.encode()}, "Tune less\n", now=SystemClock().now())
    shutil.copytree(tmp_path / "one.git", tmp_path / "two.git")
    shutil.copytree(one.state / "keys", tmp_path / "two.state" / "keys")
    other = project.Place(url=str(tmp_path / "two.git"), state=tmp_path / "two.state", trust=one.trust, work_tree=None)
    yield one, other
    for place in (one, other):
        stop_servers(place.state, jobs=True)


def run(place: project.Place) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "controller", "run", "--until-idle", "--repo", place.url, "--state", str(place.state)]
    command += ["--trust", str(place.trust)]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(controller: subprocess.Popen[str]) -> None:
    _, said = controller.communicate(timeout=300)
    assert controller.returncode == 0, said


def ledger(place: project.Place) -> list[Entry]:
    return read_folder(place.state / "ledger")


def kinds(place: project.Place) -> Counter[str]:
    return Counter(entry.statement.kind for entry in ledger(place))


def test_a_killed_controller_ends_with_the_same_version_and_trials(twins: tuple[project.Place, project.Place]) -> None:
    calm, killed = twins
    finish(run(calm))
    shutil.copytree(calm.state / "build" / "wheels", killed.state / "build" / "wheels")
    for told in (0, 2):
        controller = run(killed)
        deadline = time.monotonic() + 120
        while kinds(killed)["ask"] <= told and time.monotonic() < deadline:
            assert controller.poll() is None, controller.communicate()
            time.sleep(0.05)
        os.kill(controller.pid, signal.SIGKILL)
        controller.communicate()
    assert kinds(killed)["tell"] < TRIALS
    finish(run(killed))
    assert kinds(killed)["ask"] == kinds(killed)["tell"] == TRIALS
    assert sorted(entry.statement.key for entry in ledger(killed)) == sorted(entry.statement.key for entry in ledger(calm))
    assert answers.releases(killed) == answers.releases(calm) != {}
    assert answers.verify(killed)["ok"]
    started = Counter(path.name for path in (killed.state / "engine/jobs").iterdir())
    assert len(started) == TRIALS + 1
    statuses = json.loads((killed.state / "status.json").read_bytes())
    assert not [item for item in statuses["outcomes"] if item["state"] == "stalled"]
