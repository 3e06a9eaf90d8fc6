"""Whole passes on real parts: a real repository, real images, real processes; one small program a case."""

import contextlib
import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from controller import project
from controller.adapters.clock import SystemClock
from controller.adapters.git import GitRepository
from controller.adapters.keys import SshKey
from controller.loop import Report, run_pass
from controller.stopping import stop_servers
from controller.wiring import Wired, wire
from policies.terms.outcome import Outcome

AXON = """apiVersion: myelin.io/v1alpha1
kind: Axon
metadata: {name: small}
spec:
  artifacts: [{name: source, path: /src}]
  tasks:
    - name: fit
      train:
        lossMetric: rmse
        imageBuild: {artifact: source, buildLocation: /src, s2i: {contextDir: src}}
        hpTuning:
          optimiser: RandomSearch
          minBudget: 1
          maxBudget: 1
          trialTimeout: 2s
          params: [{name: lr, type: UniformFloat, numerical: {lower: 0, upper: 1}}]
  sensors:
    - name: go
      tasks: [{trainer: {task: fit}}]
"""
GOOD = "from myelin import metric; metric.publish_result(0.5, 'rmse')"


class Project:
    def __init__(self, folder: Path) -> None:
        self.place = project.make(folder / "p", now=SystemClock().now())
        self.key = SshKey.load(folder / "p.myelin" / "signer")
        self.stranger = SshKey.generate(folder / "stranger")

    def push(self, files: dict[str, str | None], *, key: SshKey | str | None = "") -> str:
        signer = self.key if key == "" else key
        content = {path: text.encode() if text is not None else None for path, text in files.items()}
        mirror = self.place.state / f"m{id(signer)}"
        repository = GitRepository(self.place.url, mirror, signer, author="x", email="x@localhost")  # type: ignore[arg-type]
        try:
            tip = repository.fetch("main")
            return repository.push(branch="main", parent=tip, changes=content, message="change\n", at=SystemClock().now())
        finally:
            repository.close()

    def start(self, program: str = GOOD, axon: str = AXON) -> None:
        gone = {"axons/digits/axon.yaml": None}
        self.push({**gone, "axons/small/axon.yaml": axon, "src/app.py": program})


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Project]:
    made = Project(tmp_path)
    yield made
    stop_servers(made.place.state, jobs=True)


def until(wired: Wired, found: Callable[[Report], Outcome | None], seconds: float = 90) -> tuple[Report, Outcome]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        report = run_pass(wired.following, wired.ports)
        if outcome := found(report):
            return report, outcome
        if not report.look_again:
            time.sleep(0.05)
    raise AssertionError([(item.subject, item.reason, item.message) for item in report.outcomes])


def with_reason(*reasons: str) -> Callable[[Report], Outcome | None]:
    return lambda report: next((item for item in report.outcomes if item.reason in reasons), None)


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (
            "import sys; print('no such file: x.csv'); sys.exit(1)",
            "(ExitCode); the last one: expected exit code 0, got 1: no such file: x.csv",
        ),
        ("pass", "(NoResult)"),
        ("from myelin import metric; metric.publish_result(float('nan'), 'rmse')", "(NotFinite)"),
        ("import time; time.sleep(600)", "(TimedOut); the last one: did not end in time"),
    ],
)
def test_a_training_program_that_goes_wrong_has_one_clear_outcome(made: Project, program: str, words: str) -> None:
    made.start(program)
    with wire(project.settings_of(made.place)) as wired:
        _, outcome = until(wired, with_reason("NoTrialSucceeded"))
        assert outcome.state == "stalled"
        assert words in outcome.message
        report = run_pass(wired.following, wired.ports)
        stalled = [item for item in report.outcomes if item.state == "stalled"]
        assert [(item.subject, item.reason) for item in stalled] == [("small/fit", "NoTrialSucceeded")]
        made.push({"src/app.py": GOOD})
        until(wired, with_reason("Tuned"))


@pytest.mark.parametrize(
    ("who", "words"), [("nobody", "an unsigned one"), ("stranger", "which is not the 1 key in spec.trust.signers")]
)
def test_an_unsigned_or_foreign_tip_starts_nothing_and_says_so(made: Project, who: str, words: str) -> None:
    made.start()
    with wire(project.settings_of(made.place)) as wired:
        until(wired, with_reason("Tuned"))
        entries = len(wired.ports.ledger.entries())
        made.push({"src/app.py": "print('evil')"}, key=made.stranger if who == "stranger" else None)
        report = run_pass(wired.following, wired.ports)
        outcome = next(item for item in report.outcomes if item.reason == "Untrusted")
        assert words in outcome.message
        assert len(wired.ports.ledger.entries()) == entries
        assert len(wired.ports.engine.jobs()) == 1


def test_a_broken_manifest_is_told_line_by_line_and_what_was_there_goes_on(made: Project) -> None:
    made.start()
    with wire(project.settings_of(made.place)) as wired:
        until(wired, with_reason("Tuned"))
        made.push({"axons/small/axon.yaml": AXON.replace("lossMetric", "lossMetrc").replace("minBudget: 1", "minBudget: no")})
        report = run_pass(wired.following, wired.ports)
        messages = [item.message for item in report.outcomes if item.state == "stalled"]
        assert [message.split(": ")[0] for message in messages] == ["axons/small/axon.yaml:9", "axons/small/axon.yaml:13"]
        assert "`lossMetrc`; the nearest known is `lossMetric`" in messages[0]
        made.push({"axons/small/axon.yaml": AXON})
        report = run_pass(wired.following, wired.ports)
        assert [item for item in report.outcomes if item.state == "stalled"] == []
        assert len(wired.ports.engine.jobs()) == 1


def test_a_folder_that_is_missing_and_a_part_that_is_not_built_say_so(made: Project) -> None:
    calendar = (
        "    - name: nightly\n      triggers: [{type: Calendar, schedule: '0 3 * * *'}]\n      tasks: [{trainer: {task: fit}}]\n"
    )
    made.start(axon=AXON.replace("contextDir: src", "contextDir: sources") + calendar)
    with wire(project.settings_of(made.place)) as wired:
        report, outcome = until(wired, with_reason("FolderMissing"))
        assert "folder sources" in outcome.message
        built = next(item for item in report.outcomes if item.reason == "NotBuilt")
        assert "Calendar triggers are not built into Myelin yet" in built.message


def test_a_repository_that_is_away_for_a_while_stops_nothing(made: Project) -> None:
    made.start()
    with wire(project.settings_of(made.place)) as wired:
        run_pass(wired.following, wired.ports)
        origin = Path(made.place.url)
        origin.rename(origin.with_suffix(".away"))
        report, _ = until(wired, with_reason("Tuned"))
        assert {item.reason for item in report.outcomes if item.state == "waiting"} >= {"RepositoryGone"}
        origin.with_suffix(".away").rename(origin)
        report = run_pass(wired.following, wired.ports)
        assert not [item for item in report.outcomes if item.reason == "RepositoryGone"]
        assert wired.ports.ledger.push() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk to fill")
def test_a_full_disk_is_said_and_work_goes_on_when_there_is_room_again(made: Project, tmp_path: Path) -> None:
    made.start()
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", str(small)], check=True)
    try:
        shutil.copytree(made.place.state / "keys", small / "keys")
        with wire(replace(project.settings_of(made.place), state=small)) as wired:
            with (small / "junk").open("wb") as junk, contextlib.suppress(OSError):
                while True:
                    junk.write(bytes(1 << 20))
            for _ in range(3):
                report = run_pass(wired.following, wired.ports)
            assert [item.reason for item in report.outcomes if item.reason == "Bug"] == []
            assert any("no space left" in item.message.lower() for item in report.outcomes), report.outcomes
            (small / "junk").unlink()
            until(wired, with_reason("Tuned"))
            assert Counter(entry.statement.kind for entry in wired.ports.ledger.entries())["run"] == 1
    finally:
        stop_servers(small, jobs=True)
        subprocess.run(["umount", str(small)], check=True)
