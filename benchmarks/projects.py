"""How many projects one controller of a cluster carries: `python -m benchmarks.projects`. The API server is the fake one.

Each project has a repository of its own, with an axon that ran and one that differs from all others'. The controller is a
process of its own, looked at from outside; the fake API server and its objects live in it and count as its memory.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from hashlib import sha1
from pathlib import Path
from typing import Any

import psutil

PROJECTS = int(os.environ.get("MYELIN_BENCH_PROJECTS", "1000"))
IDLE_SECONDS = float(os.environ.get("MYELIN_BENCH_IDLE_SECONDS", "60"))
PASS_BOUND_SECONDS, MEMORY_BOUND_MB = 60.0, 250.0
PATIENCE_SECONDS = 900.0
ROOT = Path(__file__).resolve().parent.parent
SMALL = """apiVersion: myelin.io/v1alpha1
kind: Axon
metadata: {name: small}
spec:
  artifacts: [{name: source, path: /src}]
  tasks:
    - name: look
      container:
        imageBuild: {repositoryName: bench, artifact: source, buildLocation: /src, s2i: {contextDir: src}}
  sensors:
    - name: on-push
      tasks: [{resourceExecutor: {task: look}}]
"""
OWN = """apiVersion: myelin.io/v1alpha1
kind: Axon
metadata: {{name: own-{number}}}
spec:
  artifacts: [{{name: source, path: /src}}]
  tasks:
    - name: look
      container:
        imageBuild: {{repositoryName: bench, artifact: source, buildLocation: /src, s2i: {{contextDir: src}}}}
        env: [{{name: NUMBER, value: "{number}"}}]
  sensors:
    - name: when-asked
      triggers: [{{name: ask, type: Rest}}]
      tasks: [{{resourceExecutor: {{task: look}}}}]
"""


def main() -> None:
    """Print every figure; exit 1 when one misses its bound."""
    with tempfile.TemporaryDirectory(prefix="myelin-bench-") as folder:
        sys.exit(0 if all([*measure(Path(folder))]) else 1)


def measure(folder: Path, numbers: Sequence[int] = (100, PROJECTS)) -> Iterator[bool]:
    """Figures of a few and of many, to see what grows with their number."""
    from benchmarks.run import line

    made = Path(os.environ.get("MYELIN_BENCH_MADE", folder / "made"))
    if not (made / "known.json").exists():
        make_projects(made, max(numbers))
    for number in numbers:
        with _served(made) as root, controller(folder / f"state-{number}", made, number, root) as told:
            what, is_all = f"{number} projects", number == max(numbers)
            bound, most = (PASS_BOUND_SECONDS, MEMORY_BOUND_MB) if is_all else (None, None)
            line(f"{what}: the controller before it leads", told["before_mb"], "MB", None)
            line(f"{what}: all opened, first pass of each", told["first_seconds"], "s", None)
            yield line(f"{what}: a pass of no change of each", told["pass_seconds"], "s", bound)
            yield line(f"{what}: resident memory at rest", told["resident_mb"], "MB", most)
            line(f"{what}: its share of pages (PSS)", told["pss_mb"], "MB", None)
            line(f"{what}: the same, with waiting programs", told["with_children_mb"], "MB", None)
            line(f"{what}: highest resident memory", told["highest_mb"], "MB", None)
            line(f"{what}: threads", told["threads"], "", None)
            line(f"{what}: programs of Git that wait", told["children"], "", None)
            line(f"{what}: CPU in {IDLE_SECONDS:g} s at rest", told["idle_cpu_seconds"], "s", None)
            line(f"{what}: passes in {IDLE_SECONDS:g} s at rest", told["idle_passes"], "", None)
            line(f"{what}: told to end, until it has", told["end_seconds"], "s", None)


@contextmanager
def _served(made: Path) -> Iterator[str]:
    """What the repositories' URLs begin with: their folder, or where MYELIN_BENCH_GIT is `http`, a server of its own."""
    if os.environ.get("MYELIN_BENCH_GIT") != "http":
        yield str(made)
        return
    from tests.contracts.git_server import git_server

    with git_server(made) as server:
        yield server.url("").rstrip("/")


@contextmanager
def controller(state: Path, made: Path, number: int, root: str) -> Iterator[dict[str, float]]:
    """What a controller that follows so many projects comes to.

    Args:
        state: Its folder.
        made: Where the projects were made.
        number: How many of them it follows.
        root: What the URLs of their repositories begin with.
    """
    command = [sys.executable, "-m", "benchmarks.projects", "--follow", str(state), str(made), str(number), root]
    program = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert program.stdin is not None
    assert program.stdout is not None
    seen = psutil.Process(program.pid)
    told: dict[str, float] = {}

    def ask(word: str) -> dict[str, Any]:
        assert program.stdin is not None
        assert program.stdout is not None
        program.stdin.write(word + "\n")
        program.stdin.flush()
        answer = program.stdout.readline()
        if not answer:
            raise RuntimeError(f"the controller ended with {program.wait(30)}")
        return dict(json.loads(answer))

    try:
        ask("ready")
        told["before_mb"] = seen.memory_info().rss / 2**20
        begun = time.perf_counter()
        ask("lead")
        told["first_seconds"] = time.perf_counter() - begun
        ask("settle")
        begun = time.perf_counter()
        ask("wake")
        told["pass_seconds"] = time.perf_counter() - begun
        before, passes = _cpu(seen), ask("passes")["passes"]
        time.sleep(IDLE_SECONDS)
        told["idle_cpu_seconds"] = _cpu(seen) - before
        told["idle_passes"] = ask("passes")["passes"] - passes
        told["resident_mb"] = seen.memory_info().rss / 2**20
        told["pss_mb"] = _pss_mb(seen)
        told["highest_mb"] = _highest_mb(program.pid)
        told["threads"], told["children"] = seen.num_threads(), len(seen.children())
        told["with_children_mb"] = told["pss_mb"] + sum(_pss_mb(child) for child in seen.children(recursive=True))
        begun = time.perf_counter()
        ask("end")
        told["end_seconds"] = time.perf_counter() - begun
        yield told
        program.stdin.close()
        program.wait(60)
    finally:
        if program.poll() is None:
            program.kill()
            program.wait(30)


def _cpu(seen: psutil.Process) -> float:
    times = seen.cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)


def _pss_mb(seen: psutil.Process) -> float:
    try:
        return float(seen.memory_full_info().pss) / 2**20
    except psutil.Error:
        return 0.0  # it ended meanwhile


def _highest_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def make_projects(folder: Path, number: int) -> None:
    """A repository for each project, signed, with what it has to do done."""
    from benchmarks.run import settle
    from controller import project
    from controller.adapters import git
    from controller.adapters.clock import SystemClock
    from controller.adapters.git.commits import commit_text
    from controller.adapters.keys import SshKey
    from controller.wiring import wire

    clock = SystemClock()
    place = project.make(folder / "p", now=clock.now())
    key = SshKey.load(folder / "p.myelin" / "signer")
    files: dict[str, bytes | None] = {"axons/digits/axon.yaml": None, "src/app.py": b"print('hello')\n"}
    project.push_as(place, key, files | {"axons/small/axon.yaml": SMALL.encode()}, "Change\n", now=clock.now())
    with wire(project.settings_of(place)) as wired:
        settle(wired)
        assert wired.following.observed is not None
        assert [task.state for task in wired.following.observed.recorded.tasks.values()] == ["Succeeded"]
    repository = git.GitRepository(place.url, folder / "mirror", None)
    tip = repository.fetch("main")
    known = {item.path: repository.read(tip, item.path) for item in repository.files(tip)}
    repository.close()
    for count in range(number):
        bare = folder / f"{count}.git"
        shutil.copytree(place.url, bare)
        tree = _tree(bare, {**known, "axons/own/axon.yaml": OWN.format(number=count).encode()})
        who = "you <you@localhost>"
        raw = commit_text(tree=tree, parent=tip, who=who, at=clock.now(), message="Own axon\n", key=key)
        (bare / "refs/heads/main").write_text(_put(bare, b"commit", raw) + "\n")
    keys = {"controller": (place.state / "keys" / "controller"), "image.pem": place.state / "keys" / "image.pem"}
    known_keys = {name: path.read_text() for name, path in keys.items()}
    trust = {"signers": [{"name": "you", "ssh": key.public()}]}
    (folder / "known.json").write_text(json.dumps({"keys": known_keys, "trust": trust}))


def _tree(bare: Path, files: Mapping[str, bytes]) -> str:
    """A tree of plain files; returns its id."""
    entries: dict[str, tuple[bytes, str]] = {}
    for top in {path.partition("/")[0] for path in files}:
        if top in files:
            entries[top] = (b"100644", _put(bare, b"blob", files[top]))
        else:
            below = {path.partition("/")[2]: data for path, data in files.items() if path.startswith(top + "/")}
            entries[top] = (b"40000", _tree(bare, below))
    ordered = sorted(entries.items(), key=lambda item: item[0] + ("/" if item[1][0] == b"40000" else ""))
    return _put(bare, b"tree", b"".join(b"%s %s\0%s" % (mode, name.encode(), bytes.fromhex(to)) for name, (mode, to) in ordered))


def _put(bare: Path, kind: bytes, data: bytes) -> str:
    """Keep an object as Git does; returns its id."""
    whole = b"%s %d\0%s" % (kind, len(data), data)
    name = sha1(whole, usedforsecurity=False).hexdigest()
    place = bare / "objects" / name[:2] / name[2:]
    if not place.exists():
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(zlib.compress(whole))
    return name


def follow(state: Path, made: Path, number: int, root: str) -> None:
    """The controller's process: it does what each line of its standard input says, and answers with a line."""
    from controller import operate
    from controller.inbox import Desk
    from controller.wiring import ClusterSurroundings

    operate.bound_memory()
    cluster = _cluster(made, number, root)
    settings = operate.OperatorSettings(namespace="system", pod="", state=state, inbox="http://inbox", config=state / "none")
    fleet: Any = operate.Fleet(cluster, settings, tell=lambda line: print(line, file=sys.stderr, flush=True))
    desk = Desk("127.0.0.1", 0, is_ready=lambda: True, is_alive=fleet.is_alive, is_settled=fleet.is_settled)
    fleet.shared = ClusterSurroundings(
        cluster=cluster, desk=desk, inbox="http://inbox", state=state, poll_seconds=fleet.poll_seconds
    )

    def passes() -> dict[tuple[str, str], int]:
        return {follower.key: follower.passes for follower in fleet.followers()}

    def have_run(before: Mapping[tuple[str, str], int], more: int) -> bool:
        now = passes()
        return len(now) == number and all(found >= before.get(key, 0) + more for key, found in now.items())

    desk.start()
    for line in sys.stdin:
        word, answer, before = line.strip(), dict[str, Any](), passes()
        if word == "lead":
            fleet.leads = lambda: True
            fleet.resync([f"n-{count}" for count in range(number)])
            _until(partial(have_run, {}, 1))
        elif word == "settle":
            _until(partial(have_run, before, 2))
        elif word == "wake":
            fleet.wake_all()
            _until(partial(have_run, before, 1))
        elif word == "passes":
            answer["passes"] = sum(before.values())
        elif word == "end":
            fleet.end()
            desk.close()
        jobs = [key for key in cluster.objects if key[0] == "Job"]
        assert not jobs, f"{len(jobs)} jobs were started, though all was done"
        print(json.dumps(answer), flush=True)


def _cluster(made: Path, number: int, root: str) -> Any:
    from controller.adapters.cluster import PROJECT, SECRET
    from tests.fakes.cluster import FakeCluster

    class Indexed(FakeCluster):
        """Finds objects of a namespace as quickly as a server does, and does not remember who called."""

        def _called(self, call: str) -> None:
            pass

        def list(self, kind: Any, namespace: str, selector: str = "", *, fields: str = "") -> Any:
            if kind.kind in ("Project", "Axon"):
                names = {"Project": ("p",), "Axon": ("small", f"own-{namespace.removeprefix('n-')}")}[kind.kind]
                return [found for name in names if (found := self.get(kind, namespace, name)) is not None]
            return []  # there are no other objects in this benchmark

    known = json.loads((made / "known.json").read_bytes())
    cluster = Indexed()
    keys = {name: base64.b64encode(text.encode()).decode() for name, text in known["keys"].items()}
    for count in range(number):
        where = {"namespace": f"n-{count}"}
        spec = {
            "repository": {"url": f"{root}/{count}.git"},
            "registry": {"repository": f"127.0.0.1:9/n-{count}/p", "unsafePlainHttp": True},
            "keys": {"secretName": "keys"},
            "trust": known["trust"],
        }
        cluster.create(SECRET, {"metadata": {"name": "keys", **where}, "data": keys})
        cluster.create(PROJECT, {"metadata": {"name": "p", **where}, "spec": spec})
    return cluster


def _until(held: Any) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not held():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {PATIENCE_SECONDS:g} s in vain")
        time.sleep(0.02)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--follow"]:
        follow(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
    else:
        main()
