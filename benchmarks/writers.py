"""Fifty people push to one branch of a real Git server for two minutes while the controller writes to it as well.

Real: the server (Git's own http-backend), every push of every writer, the controller's repository, ledger and passes.
Simulated: jobs and servers of the controller, so that what is measured is how its commits get through.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from controller.adapters.clock import SystemClock
from controller.adapters.documents import YamlDocuments
from controller.adapters.git import GitRepository
from controller.adapters.ledger import GitLedger
from controller.loop import Following, run_pass
from controller.trustfile import signers_of
from policies.errors import ConflictError, OutsideError
from policies.identity import event_id
from policies.jobs import Surroundings
from policies.terms.digest import Digest, digest_of
from policies.terms.event import Event
from policies.terms.revision import Pin, TrustedKey
from policies.terms.task import ImageSpec, ImageState
from tests.contracts.git_server import git_server
from tests.fakes.engine import work
from tests.fakes.wiring import CONTROLLER, PERSON, open_ports
from tests.fakes.world import World

WRITERS = int(os.environ.get("MYELIN_BENCH_WRITERS", "50"))
SECONDS = float(os.environ.get("MYELIN_BENCH_SECONDS", "120"))
CHANGES = int(os.environ.get("MYELIN_BENCH_CHANGES", "200"))
AXONS = 20
GRACE_SECONDS = 180.0
PATIENCE_SECONDS = (1.0, 5.0)
"""How long a person leaves it alone, after a push that got through or did not. The controller does not wait."""
IMAGE = digest_of(b"an image")
Line = Callable[..., bool]
PIN = Pin(signers=(TrustedKey(name="you", key=PERSON.public()),), controller=TrustedKey(name="myelin", key=CONTROLLER.public()))
AXON = """apiVersion: myelin.io/v1alpha1
kind: Axon
metadata: {{name: a{number}}}
spec:
  artifacts: [{{name: source, path: /src}}]
  tasks:
    - name: serve
      deploy:
        cache: false
        imageBuild: {{artifact: source, buildLocation: /src, s2i: {{contextDir: src}}}}
  sensors:
    - name: on-call
      triggers: [{{type: Rest, name: call}}]
      tasks:
        - deployer:
            name: web
            models: [{{name: M, backendModels: [{{name: b, deployer: serve}}]}}]
            routes: [{{path: /predict, dag: [{{model: M, path: /predict}}]}}]
"""


@dataclass(slots=True)
class Told:
    """What everybody did, and when."""

    pushed: list[str] = field(default_factory=list)
    """Commits of people that the server took."""
    lost: int = 0
    """Races that people lost, and went on from."""
    asked: dict[str, float] = field(default_factory=dict)
    """Event -> when it came in."""
    written: dict[str, float] = field(default_factory=dict)
    """Event -> when its commit was on the server."""
    races: int = 0
    """Races that the controller lost."""
    over: threading.Event = field(default_factory=threading.Event)


class Watched:
    """The controller's repository: notes when its commits got through, and how often they did not."""

    def __init__(self, inner: GitRepository, told: Told) -> None:
        self._inner, self._told = inner, told

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def push(self, *, branch: str, message: str, **more: Any) -> str:
        try:
            commit = self._inner.push(branch=branch, message=message, **more)
        except ConflictError:
            self._told.races += branch == "main"
            raise
        if branch == "main":
            now = time.monotonic()
            for line in message.splitlines():
                if line.startswith("Myelin-Event: "):
                    self._told.written.setdefault(line.removeprefix("Myelin-Event: "), now)
        return commit


class Built:
    """Images that are there already: what building costs is measured elsewhere."""

    def look(self, spec: ImageSpec) -> ImageState:
        return ImageState(phase="built", digest=IMAGE)

    def start(self, spec: ImageSpec) -> None:
        pass

    def verify(self, digest: Digest) -> None:
        pass

    def lock(self, digest: Digest) -> str:
        return ""


def measure(folder: Path, line: Line) -> Iterator[bool]:
    """Let them write, then look at what is on the server."""
    told = Told()
    folder.mkdir(exist_ok=True)
    with git_server(folder) as server:
        bare = folder / "origin.git"
        subprocess.run(["git", "init", "--quiet", "--bare", "--initial-branch=main", str(bare)], check=True)
        for name, value in (("http.receivepack", "true"), ("core.logAllRefUpdates", "always"), ("receive.autogc", "false")):
            subprocess.run(["git", "-C", str(bare), "config", name, value], check=True)
        _begin(server.url("origin.git"), folder)
        people = [
            threading.Thread(target=_write, args=(server.url("origin.git"), folder / f"w{number}", number, told), daemon=True)
            for number in range(WRITERS)
        ]
        for person in people:
            person.start()
        _follow(server.url("origin.git"), folder, told)
        told.over.set()
        for person in people:
            person.join(60)
    latencies = sorted(told.written[event] - at for event, at in told.asked.items() if event in told.written)
    names = _found(bare)
    print(f"{WRITERS} writers, {SECONDS:.0f} s: {len(told.pushed)} commits of theirs, {told.lost} races lost by them", flush=True)
    print(f"{len(told.asked)} changes of the controller's, {told.races} races lost by it, {_ours(bare)} commits", flush=True)
    yield line("commits of people that are not on the branch", float(len(set(told.pushed) - _commits(bare))), "", 0)
    yield line("changes of the controller's that are not", float(sum(event not in names for event in told.asked)), "", 0)
    yield line("changes of the controller's that are twice", float(sum(count > 1 for count in names.values())), "", 0)
    yield line("moves of the branch that were no fast-forward", float(_forced(bare)), "", 0)
    if latencies:
        line("event to commit on the server, p50", latencies[len(latencies) // 2], "s", None)
        line("event to commit on the server, p99", latencies[int(len(latencies) * 0.99)], "s", None)


def _begin(url: str, folder: Path) -> None:
    """The first commit, by a person."""
    signers = [{"name": "you", "ssh": PERSON.public()}]
    value = {
        "apiVersion": "myelin.io/v1alpha1",
        "kind": "Project",
        "metadata": {"name": "busy"},
        "spec": {"trust": {"signers": signers}},
    }
    files: dict[str, bytes | None] = {"myelin.yaml": YamlDocuments().render(value), "src/app.py": b"pass\n"}
    files |= {f"axons/a{number}/axon.yaml": AXON.format(number=number).encode() for number in range(AXONS)}
    repository = GitRepository(url, folder / "first", PERSON, author="you", email="you@localhost")
    try:
        repository.push(branch="main", parent="", changes=files, message="Start\n", at=SystemClock().now())
    finally:
        repository.close()


def _write(url: str, mirror: Path, number: int, told: Told) -> None:
    """One person: changes a file of their own again and again, and tries again where somebody was first."""
    chance = random.Random(number)
    repository = GitRepository(url, mirror, PERSON, author=f"w{number}", email=f"w{number}@localhost")
    end, count = time.monotonic() + SECONDS, 0
    try:
        while time.monotonic() < end and not told.over.is_set():
            count += 1
            while time.monotonic() < end:
                try:
                    commit = repository.push(
                        branch="main",
                        parent=repository.fetch("main"),
                        changes={f"notes/{number}.txt": f"{count}\n".encode()},
                        message=f"Note {count} of {number}\n",
                        at=SystemClock().now(),
                    )
                except OutsideError:
                    told.lost += 1
                    told.over.wait(chance.uniform(*PATIENCE_SECONDS))
                    continue
                told.pushed.append(commit)
                break
            told.over.wait(chance.uniform(*PATIENCE_SECONDS))
    finally:
        repository.close()


def _follow(url: str, folder: Path, told: Told) -> None:
    """The controller: events come in evenly, passes follow each other until each has its commit."""
    world = World()
    world.programs[IMAGE] = lambda _: None
    repository = Watched(GitRepository(url, folder / "controller", CONTROLLER, signers_of=signers_of), told)
    clock = SystemClock()
    ledger = GitLedger(repository, folder / "ledger", CONTROLLER, clock)  # type: ignore[arg-type]
    ports = replace(open_ports(world), repository=repository, ledger=ledger, images=Built(), clock=clock)  # type: ignore[arg-type]
    following = Following(branch="main", pin=PIN, around=Surroundings(kept_versions=1))
    begun, sent = time.monotonic(), 0
    try:
        while len(told.written) < CHANGES and time.monotonic() - begun < SECONDS + GRACE_SECONDS:
            due = min(int((time.monotonic() - begun) / SECONDS * CHANGES) + 1, CHANGES)
            for number in range(sent, due):
                event = _event(f"a{number % AXONS}", number)
                world.outside.spool[event.id] = event
                told.asked[event.id] = time.monotonic()
            sent = max(sent, due)
            report = run_pass(following, ports)
            if not work(world) and not report.look_again:
                time.sleep(0.05)
    finally:
        ledger.close()
        repository.close()


def _event(axon: str, number: int) -> Event:
    name = event_id("Rest", axon, "on-call", "call", {"source": "bench", "id": str(number)})
    return Event(id=name, kind="Rest", axon=axon, sensor="on-call", trigger="call", at=datetime.now(UTC))


def _git(bare: Path, *args: str) -> str:
    return subprocess.run(["git", "-C", str(bare), *args], check=True, capture_output=True, text=True).stdout


def _commits(bare: Path) -> set[str]:
    return set(_git(bare, "rev-list", "main").split())


def _ours(bare: Path) -> int:
    return len(_git(bare, "rev-list", "--author=Myelin", "main").split())


def _found(bare: Path) -> Mapping[str, int]:
    """Event -> how many version records on the branch came from it."""
    documents, found = YamlDocuments(), Counter[str]()
    for path in _git(bare, "ls-tree", "-r", "--name-only", "main", "versions/").split():
        text = _git(bare, "show", f"main:{path}").encode()
        found.update(documents.load(text, path).value["spec"]["events"])
    return found


def _forced(bare: Path) -> int:
    """How many moves of the branch, by the server's own log of them, left something behind."""
    moves = [text.split()[:2] for text in (bare / "logs/refs/heads/main").read_text().splitlines()]
    line = {commit: number for number, commit in enumerate(reversed(_git(bare, "rev-list", "--first-parent", "main").split()))}
    return sum(new not in line or (set(old) != {"0"} and (old not in line or line[old] >= line[new])) for old, new in moves)


def main() -> None:
    """Run it alone."""
    from benchmarks.run import line

    folder = Path(tempfile.mkdtemp(prefix="myelin-writers-"))
    try:
        sys.exit(0 if all([*measure(folder, line)]) else 1)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
