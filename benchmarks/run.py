"""What the speed of Myelin is on the machine at hand: `make bench`."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from controller import project
from controller.adapters.clock import SystemClock
from controller.adapters.keys import SshKey
from controller.loop import run_pass
from controller.wiring import wire

AXONS = 100


def main() -> None:
    """Print each figure beside its target."""
    with tempfile.TemporaryDirectory(prefix="myelin-bench-") as folder:
        measure(Path(folder))


def measure(folder: Path) -> None:
    line("myelin --help, seconds", median([seconds([sys.executable, "-m", "controller", "--help"]) for _ in range(5)]), 0.3)
    place = project.make(folder / "p", now=SystemClock().now())
    key = SshKey.load(folder / "p.myelin" / "signer")
    text = (folder / "p" / "axons/digits/axon.yaml").read_text()
    text = text.replace("  sensors:", "  suspend: {reason: only measured}\n  sensors:")
    files: dict[str, bytes | None] = {
        f"axons/a{number}/axon.yaml": text.replace("name: digits\nspec", f"name: a{number}\nspec").encode()
        for number in range(AXONS)
    }
    project.push_as(place, key, {"axons/digits/axon.yaml": text.encode(), **files}, "Many axons\n", now=SystemClock().now())
    with wire(project.settings_of(place)) as wired:
        first = cpu(lambda: run_pass(wired.following, wired.ports))
        line(f"first pass over {AXONS} axons, CPU seconds", first, None)
        idle = median([cpu(lambda: run_pass(wired.following, wired.ports)) for _ in range(20)])
        line(f"idle pass over {AXONS} axons, CPU seconds", idle, 0.050)
        found = []
        for number in range(5):
            project.push_as(place, key, {"notes.txt": str(number).encode()}, "Write a note\n", now=SystemClock().now())
            started = time.perf_counter()
            run_pass(wired.following, wired.ports)
            found.append(time.perf_counter() - started)
        line("a commit that changes nothing relevant, seconds", median(found), 0.050)
        line("resident memory, idle, MB", resident(), 120)


def line(what: str, got: float, target: float | None) -> None:
    aim = f"  (target {target:g}: {'met' if got <= target else 'MISSED'})" if target is not None else ""
    print(f"{what:<50} {got:10.4f}{aim}")


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, capture_output=True, check=True)
    return time.perf_counter() - started


def cpu(work: object) -> float:
    started = time.process_time()
    work()  # type: ignore[operator]
    return time.process_time() - started


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def resident() -> float:
    words = Path("/proc/self/status").read_text().split("VmRSS:")[1].split()
    return int(words[0]) / 1024


if __name__ == "__main__":
    main()
