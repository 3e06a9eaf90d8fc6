"""What the speed of Myelin is on the machine at hand: `make bench`. Each figure beside its bound and a baseline."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import hooks, images, large, ledger, projects, registry, writers
from controller import project
from controller.adapters.clock import SystemClock
from controller.adapters.keys import SshKey
from controller.loop import run_pass
from controller.stopping import stop_servers
from controller.wiring import Wired, wire

AXONS = 100
AXON = """apiVersion: myelin.io/v1alpha1
kind: Axon
metadata: {{name: a{number}}}
spec:
  artifacts: [{{name: source, path: /src}}]
  tasks:
    - name: look
      container:
        imageBuild: {{repositoryName: bench, artifact: source, buildLocation: /src, s2i: {{contextDir: src}}}}
        env: [{{name: NUMBER, value: "{number}"}}]
  sensors:
    - name: on-push
      tasks: [{{resourceExecutor: {{task: look}}}}]
"""


def main() -> None:
    """Print every figure; exit 1 when one misses its bound."""
    with tempfile.TemporaryDirectory(prefix="myelin-bench-") as folder:
        sys.exit(0 if all([*measure(Path(folder))]) else 1)


def measure(folder: Path) -> Iterator[bool]:
    python = median([seconds([sys.executable, "-c", "pass"]) for _ in range(5)])
    shown = median([seconds([sys.executable, "-m", "controller", "--help"]) for _ in range(5)])
    yield line("myelin --help", shown, "s", 0.3, ("a bare python", python))
    place = project.make(folder / "p", now=SystemClock().now())
    key = SshKey.load(folder / "p.myelin" / "signer")
    files: dict[str, bytes | None] = {"axons/digits/axon.yaml": None, "src/app.py": b"print('hello')\n"}
    push(place, key, files | {f"axons/a{number}/axon.yaml": AXON.format(number=number).encode() for number in range(AXONS)})
    ask = median([seconds(["git", "ls-remote", place.url, "main"]) for _ in range(5)])
    with wire(project.settings_of(place)) as wired:
        started = time.perf_counter()
        settle(wired)
        done = sum(task.state == "Succeeded" for task in wired.following.observed.recorded.tasks.values())  # type: ignore[union-attr]
        assert done == AXONS, f"{done} of {AXONS} axons did their task"
        line(f"{AXONS} axons: one image built, {AXONS} jobs run", time.perf_counter() - started, "s", None)
        idle = median([cpu(lambda: run_pass(wired.following, wired.ports)) for _ in range(20)])
        yield line(f"idle pass over {AXONS} axons, CPU", idle, "s", 0.050, ("git ls-remote", ask))
        found = []
        for number in range(5):
            push(place, key, {"notes.txt": str(number).encode()})
            before = len(wired.ports.ledger.entries())
            begun = time.perf_counter()
            run_pass(wired.following, wired.ports)
            found.append(time.perf_counter() - begun)
            assert len(wired.ports.ledger.entries()) == before, "a note started something"
        yield line("a commit that changes nothing relevant", median(found), "s", 0.050, ("git ls-remote", ask))
    with following(place) as controller:
        yield line("resident memory of an idle controller", resident(controller.pid), "MB", 120)
        found = [push_to_job(place, key, number) for number in range(3)]
        yield line("push to job started, with a new image", median(found), "s", 1.0, ("git ls-remote", ask))
    stop_servers(place.state, jobs=True)
    yield from hooks.measure(folder, line, manifest=AXON, push=push, settle=settle)
    yield from ledger.measure(folder / "ledger", line)
    yield from projects.measure(folder / "projects")
    yield from large.measure(folder, line)
    yield from registry.measure(folder / "registry", line)
    yield from images.measure(folder / "images", line)
    yield from writers.measure(folder / "writers", line)


def push(place: project.Place, key: SshKey, files: dict[str, bytes | None]) -> None:
    project.push_as(place, key, files, "Change\n", now=SystemClock().now())


def settle(wired: Wired) -> None:
    """Run passes until nothing is due."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        report = run_pass(wired.following, wired.ports)
        if not report.look_again and not report.is_busy:
            return
        time.sleep(0 if report.look_again else 0.05)
    raise TimeoutError("the project never came to rest")


@contextmanager
def following(place: project.Place) -> Iterator[subprocess.Popen[bytes]]:
    """A controller of its own, as users run it, once it has come to rest."""
    command = [sys.executable, "-m", "controller", "run", "--repo", place.url]
    command += ["--state", str(place.state), "--trust", str(place.trust)]
    controller = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait(lambda: status(place).get("pid") == controller.pid)
        time.sleep(2)
        yield controller
    finally:
        controller.send_signal(signal.SIGTERM)
        controller.wait(30)


def push_to_job(place: project.Place, key: SshKey, number: int) -> float:
    """Seconds from a push of new source for one axon to its first job's start."""
    jobs = place.state / "engine" / "jobs"
    known = set(os.listdir(jobs))
    text = AXON.format(number=0).replace("contextDir: src", f"contextDir: s{number}")
    push(place, key, {f"s{number}/app.py": f"print({number})\n".encode(), "axons/a0/axon.yaml": text.encode()})
    begun = time.perf_counter()
    wait(lambda: any((jobs / name / "supervisor.json").exists() for name in set(os.listdir(jobs)) - known))
    took = time.perf_counter() - begun
    time.sleep(1)
    return took


def wait(held: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not held():
        if time.monotonic() > deadline:
            raise TimeoutError("waited a minute in vain")
        time.sleep(0.005)


def status(place: project.Place) -> dict[str, object]:
    try:
        return dict(json.loads((place.state / "status.json").read_bytes()))
    except (OSError, ValueError):
        return {}


def line(what: str, got: float, unit: str, bound: float | None, baseline: tuple[str, float] | None = None) -> bool:
    is_met = bound is None or got <= bound
    aim = f"  bound {bound:g} {unit}: {'met' if is_met else 'MISSED'}" if bound is not None else ""
    beside = f"  {got / baseline[1]:.1f} x {baseline[0]}" if baseline else ""
    print(f"{what:<48} {got:9.3f} {unit:<2}{aim}{beside}", flush=True)
    return is_met


def seconds(command: list[str]) -> float:
    begun = time.perf_counter()
    subprocess.run(command, capture_output=True, check=True)
    return time.perf_counter() - begun


def cpu(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def resident(pid: int) -> float:
    words = Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()
    return int(words[0]) / 1024


if __name__ == "__main__":
    main()
