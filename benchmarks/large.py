"""One large repository: 20,000 signed commits, 1,000 axons. What a look at it costs, and what a commit to one axon costs.

The history is made with Git's own fast-import and then signed commit by commit, as people would have.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from controller import project
from controller.adapters.clock import SystemClock
from controller.adapters.git.commits import commit_text
from controller.adapters.keys import SshKey
from controller.loop import Report, run_pass
from controller.wiring import wire

COMMITS = int(os.environ.get("MYELIN_BENCH_COMMITS", "20000"))
AXONS = int(os.environ.get("MYELIN_BENCH_AXONS", "1000"))
Line = Callable[..., bool]
AXON = """apiVersion: myelin.io/v1alpha1
kind: Axon
metadata: {{name: a{number}}}
spec:
  artifacts: [{{name: source, path: /src}}]
  tasks:
    - name: look
      container:
        imageBuild: {{repositoryName: bench, artifact: source, buildLocation: /src, s2i: {{contextDir: axons/a{number}/src}}}}
  sensors:
    - name: on-call
      triggers: [{{type: Rest, name: call}}]
      tasks: [{{resourceExecutor: {{task: look}}}}]
    - name: on-bad
      triggers: [{{type: Alert, name: low, condition: "deploy_accuracy_a{number} < 0.8"}}]
      tasks: [{{resourceExecutor: {{task: look}}}}]
"""


def measure(folder: Path, line: Line) -> Iterator[bool]:
    """Make the repository, follow it in this process, and print a line for each figure."""
    place = project.make(folder / "large", now=SystemClock().now())
    key = SshKey.load(folder / "large.myelin" / "signer")
    begun = time.perf_counter()
    make_history(Path(place.url), key)
    line(f"{COMMITS} signed commits, {AXONS} axons: made", time.perf_counter() - begun, "s", None)
    command = [sys.executable, "-m", "benchmarks.large", str(place.state), str(place.trust), place.url]
    yield subprocess.run(command, check=False).returncode == 0


def make_history(bare: Path, key: SshKey) -> None:
    """Put `COMMITS` signed commits on main, each of which changes one axon's source."""
    tip = _git(bare, "rev-parse", "main").strip().decode()
    stream = [b"feature done\nreset refs/heads/large\nfrom " + tip.encode() + b"\n"]
    at = int(_git(bare, "log", "-1", "--format=%ct", "main"))
    for number in range(COMMITS):
        stream.append(f"commit refs/heads/large\ncommitter you <you@localhost> {at + number} +0000\n".encode())
        text = f"Change {number}\n".encode()
        stream.append(b"data %d\n%s" % (len(text), text))
        if number == 0:
            stream += [_file(f"axons/a{axon}/axon.yaml", AXON.format(number=axon).encode()) for axon in range(AXONS)]
            stream += [_file(f"axons/a{axon}/src/app.py", b"print(0)\n") for axon in range(AXONS)]
            stream.append(b"D axons/digits\n")
        else:
            stream.append(_file(f"axons/a{number % AXONS}/src/app.py", f"print({number})\n".encode()))
    stream.append(b"done\n")
    subprocess.run(["git", "fast-import", "--quiet"], cwd=bare, input=b"".join(stream), check=True)
    lines = _git(bare, "log", "--reverse", "--format=%T %ct", f"{tip}..large").decode().splitlines()
    _git(bare, "update-ref", "refs/heads/main", _signed(bare, key, tip, lines))
    _git(bare, "update-ref", "-d", "refs/heads/large")
    _git(bare, "repack", "-adq")


def _signed(bare: Path, key: SshKey, parent: str, lines: list[str]) -> str:
    """The same line of commits, signed; the last one."""
    for number, text in enumerate(lines):
        tree, at = text.split()
        raw = commit_text(
            tree=tree,
            parent=parent,
            who="you <you@localhost>",
            at=datetime.fromtimestamp(int(at), UTC),
            message=f"Change {number}\n",
            key=key,
        )
        whole = b"commit %d\0%s" % (len(raw), raw)
        parent = hashlib.sha1(whole).hexdigest()
        place = bare / "objects" / parent[:2] / parent[2:]
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(zlib.compress(whole, 1))
    return parent


def _file(path: str, content: bytes) -> bytes:
    return b"M 100644 inline %s\ndata %d\n%s\n" % (path.encode(), len(content), content)


def _git(bare: Path, *args: str) -> bytes:
    return subprocess.run(["git", *args], cwd=bare, check=True, capture_output=True).stdout


def follow(state: Path, trust: Path, url: str) -> int:
    """In a process of its own, so that its memory is a controller's: the figures, one line each."""
    from benchmarks.run import line, median, resident
    from controller.settings import Settings

    key = SshKey.load(trust.parent / "signer")
    place = project.Place(url=url, state=state, trust=trust, work_tree=None)
    ask = median([_seconds(lambda: subprocess.run(["git", "ls-remote", url, "main"], capture_output=True)) for _ in range(5)])
    met = []
    with wire(Settings(repository=url, state=state, trust=trust)) as wired:
        report: Report | None = None

        def look() -> None:
            nonlocal report
            report = run_pass(wired.following, wired.ports)

        line(f"first look at {COMMITS} commits, {AXONS} axons", _seconds(look), "s", None)
        assert report is not None
        assert report.desired is not None
        assert len(report.desired.axons) == AXONS, report.outcomes
        for _ in range(5):
            look()
        quiet = [_seconds(look) for _ in range(20)]
        met.append(line("a look that finds nothing new", median(quiet), "s", 0.100, ("git ls-remote", ask)))
        took, planned = [], []
        for number in range(5):
            files: dict[str, bytes | None] = {f"axons/a{number}/src/app.py": f"print('new {number}')\n".encode()}
            project.push_as(place, key, files, "Change one\n", now=SystemClock().now())
            took.append(_seconds(look))
            planned.append(report.plan.planned)
            look()
        line("a look that finds a commit to one axon", median(took), "s", None, ("git ls-remote", ask))
        met.append(line("axons planned again for it", float(max(planned)), "", 2))
        met.append(line("resident memory then", resident(os.getpid()), "MB", 200))
    asked = [sys.executable, "-m", "controller", "history", "a0", "--repo", url, "--state", str(state), "--trust", str(trust)]
    said = median([_seconds(lambda: subprocess.run(asked, capture_output=True, check=True)) for _ in range(3)])
    met.append(line("history of one axon, as a command", said, "s", 1.0, ("git ls-remote", ask)))
    return 0 if all(met) else 1


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


if __name__ == "__main__":
    sys.exit(follow(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
