"""How fast a long ledger is: `python -m benchmarks.ledger [ENTRIES]`, and a part of `make bench`.

The ledger is made up: ten axons in a hundred tune for years. Each entry is signed; each commit has fifty of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO

from controller.adapters.clock import SystemClock
from controller.adapters.git import GitRepository, init_bare
from controller.adapters.keys import SshKey
from controller.adapters.ledger import BRANCH, GitLedger
from controller.answers.proof import check_ledger, of_axon
from policies.records import fold
from policies.segments import MOST_BYTES, MOST_ENTRIES
from policies.terms.record import Statement

ENTRIES = 1_000_000
A_COMMIT = 50
AXONS = 100
TRIALS = 100
"""Of each task that tunes: an ask and a tell for each, then the task's own entry; an event and a run before them."""
BEGAN = datetime(2020, 1, 1, tzinfo=UTC)
Line = Callable[..., bool]


def measure(folder: Path, line: Line, entries: int = ENTRIES) -> Iterator[bool]:
    """Print each figure; yields whether it met its bound.

    Args:
        folder: An empty one.
        line: Prints a figure.
        entries: How long the ledger is.
    """
    folder.mkdir(exist_ok=True)
    key = SshKey.generate(folder / "key")
    origin = folder / "origin.git"
    begun = time.perf_counter()
    write(origin, key, entries)
    line(f"a ledger of {entries:,} entries made up", time.perf_counter() - begun, "s", None)
    line("its repository", size(origin), "MB", None)
    first = in_child(folder, "start")
    line("first start, by reading the branch", first["seconds"], "s", None)
    line("resident memory at most, of that", first["megabytes"], "MB", None)
    line("copy on local disk", size(folder / "state"), "MB", None)
    again = in_child(folder, "start")
    line("next start, with the fold", again["seconds"], "s", None)
    line("resident memory at most, of that", again["megabytes"], "MB", None)
    found = in_child(folder, "append")
    line("append of one entry, safe on disk: p50", found["record_p50"] * 1000, "ms", None)
    yield line("append of one entry, safe on disk: p99", found["record_p99"] * 1000, "ms", 50)
    yield line("append and push, local repository: p50", found["push_p50"] * 1000, "ms", 50)
    line("append and push, local repository: p99", found["push_p99"] * 1000, "ms", None)
    found = in_child(folder, "axon")
    yield line(f"the {found['entries']:.0f} entries of one axon", found["seconds"], "s", 1.0)
    line("the same from a clone alone", found["alone"], "s", None)
    found = in_child(folder, "verify")
    line(f"verify: {found['entries']:,.0f} entries, {found['commits']:,.0f} commits", found["seconds"], "s", None)
    line("that is entries a second", found["rate"], "", None)
    line("resident memory at most, of that", found["megabytes"], "MB", None)


def write(origin: Path, key: SshKey, entries: int) -> None:
    """Make up a ledger and its branch."""
    init_bare(origin)
    command = ["git", "-C", str(origin), "-c", "core.fsync=none", "fast-import", "--quiet"]
    importer = subprocess.Popen(command, stdin=subprocess.PIPE)
    assert importer.stdin is not None
    path, text, lines, previous, number = "", b"", 0, "null", 0
    with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
        while number < entries:
            parts: list[tuple[str, str, str]] = []
            for _ in range(min(2000, entries - number)):
                number += 1
                at = BEGAN + timedelta(seconds=number * 200)
                head, tail = made_up(number, at, previous)
                digest = "sha256:" + hashlib.sha256(f"{head}{tail}}}".encode()).hexdigest()
                previous = f'"{digest}"'
                parts.append((head, digest, tail))
            signatures = list(threads.map(key.sign, [digest.encode() for _, digest, _ in parts], chunksize=200))
            first = number - len(parts) + 1
            for place, ((head, digest, tail), signature) in enumerate(zip(parts, signatures, strict=True), start=first):
                said = f'{head}"digest":"{digest}",{tail},"signature":"{signature}"}}\n'.encode()
                month = head[7:14]
                if f"/{month}/" not in path or lines == MOST_ENTRIES or len(text) + len(said) > MOST_BYTES:
                    commit(importer.stdin, path, text, place - 1)
                    path, text, lines = f"ledger/{month}/{place:012}.jsonl", b"", 0
                text, lines = text + said, lines + 1
                if place % A_COMMIT == 0:
                    commit(importer.stdin, path, text, place)
        commit(importer.stdin, path, text, number)
    importer.stdin.close()
    assert importer.wait() == 0


def commit(importer: IO[bytes], path: str, text: bytes, number: int) -> None:
    """One more commit, with a segment as it is now."""
    if path:
        stamp = f"Myelin <myelin@localhost> {int((BEGAN + timedelta(seconds=number * 200)).timestamp())} +0000"
        importer.write(f"commit refs/heads/{BRANCH}\ncommitter {stamp}\ndata 7\nledger\n\n".encode())
        importer.write(f"M 100644 inline {path}\ndata {len(text)}\n".encode() + text + b"\n")


def made_up(number: int, at: datetime, previous: str) -> tuple[str, str]:
    """The two parts of an entry's line around its digest, in canonical form."""
    a_task, place = 2 * TRIALS + 3, (number - 1) % (2 * TRIALS + 3)
    task = f"sha256:{(number - 1) // a_task:064x}"
    axon = f"a{(number - 1) // a_task % AXONS}"
    trial = f'"rung":0,"taskRun":"{task}","trial":"0_0_{(place - 2) // 2}"'
    about = f"{task}/0_0_{(place - 2) // 2}/0"
    if place == 0:
        body = f'{{"at":"{at.isoformat()}","data":{{}},"id":"{task}","kind":"Commit","sensor":"on-push","trigger":"0"}}'
        kind, about = "event", task
    elif place == 1:
        body = f'{{"axonDigest":"{task}","commit":"c","eventSet":"{task}","events":["{task}"],"run":"{task}",'
        body += f'"sensor":"on-push","startedAt":"{at.isoformat()}"}}'
        kind, about = "run", task
    elif place == a_task - 1:
        body = f'{{"inputs":"{task}","metrics":{{"loss":0.5}},"run":"{task}","state":"Succeeded","task":"fit",'
        body += f'"taskKind":"train","taskRun":"{task}"}}'
        kind, about = "task", task
    elif place % 2 == 0:
        body = f'{{"budget":1,"config":{{"layers":3,"rate":0.001}},"number":{place},"origin":"random",{trial}}}'
        kind = "ask"
    else:
        body = f'{{"budget":1,"loss":0.5,"metric":0.5,"model":"{task}","number":{place},"reason":"",{trial}}}'
        kind = "tell"
    head = f'{{"at":"{at.isoformat()}","axon":"{axon}","body":{body},'
    return head, f'"key":"{kind}/{about}","kind":"{kind}","number":{number},"previous":{previous}'


def in_child(folder: Path, what: str) -> dict[str, float]:
    """Figures of a process of its own, so that its memory is its own."""
    command = [sys.executable, "-m", "benchmarks.ledger", "--part", what, str(folder)]
    return dict(json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout))


def part(what: str, folder: Path) -> dict[str, float]:
    """What one of those processes measures."""
    key = SshKey.load(folder / "key")
    if what in ("axon", "verify"):
        return {"axon": one_axon, "verify": verified}[what](folder, key)
    repository = GitRepository(str(folder / "origin.git"), folder / "state" / "git", key)
    begun = time.perf_counter()
    ledger = GitLedger(repository, folder / "state" / "ledger", key, SystemClock())
    recorded = fold(ledger.since(0)) if what == "start" else None
    took = time.perf_counter() - begun
    try:
        if recorded is not None:
            return {"seconds": took, "megabytes": peak(), "entries": recorded.entries}
        return appended(ledger)
    finally:
        ledger.close()
        repository.close()


def appended(ledger: GitLedger) -> dict[str, float]:
    """Entries recorded and pushed one by one."""
    begun, recorded, pushed = time.time_ns(), [], []
    for number in range(200):
        said = Statement(kind="event", key=f"event/{begun}-{number}", axon="a1", body={"value": number})
        start = time.perf_counter()
        ledger.record([said])
        safe = time.perf_counter()
        assert ledger.push() == 1
        recorded.append(safe - start)
        pushed.append(time.perf_counter() - start)
    found = {"record": sorted(recorded[1:]), "push": sorted(pushed[1:])}
    return {f"{name}_p{share}": took[len(took) * share // 100] for name, took in found.items() for share in (50, 99)}


def one_axon(folder: Path, key: SshKey) -> dict[str, float]:
    """All of one axon's entries, with the copy of a controller and without."""
    repository = GitRepository(str(folder / "origin.git"), folder / "state" / "git", None)
    try:
        head = repository.fetch(BRANCH)
        begun = time.perf_counter()
        count = sum(1 for _ in of_axon(repository, head, folder / "state" / "ledger", "a1"))
        took = time.perf_counter() - begun
        begun = time.perf_counter()
        assert sum(1 for _ in of_axon(repository, head, folder / "none", "a1")) == count
        return {"entries": count, "seconds": took, "alone": time.perf_counter() - begun}
    finally:
        repository.close()


def verified(folder: Path, key: SshKey) -> dict[str, float]:
    """All that `verify` does for a ledger."""
    repository = GitRepository(str(folder / "origin.git"), folder / "state" / "git", None)
    try:
        proof = check_ledger(repository, repository.fetch(BRANCH), [key.public()])
        assert not proof.faults, proof.reason
        return {
            "entries": proof.entries,
            "commits": proof.commits,
            "seconds": proof.seconds,
            "rate": proof.entries_per_second,
            "megabytes": peak(),
        }
    finally:
        repository.close()


def peak() -> float:
    """The most memory that this process ever held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def size(folder: Path) -> float:
    """Of all files below a folder, in MB."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def main() -> None:
    """Print all figures, or, as one of the processes that are measured, a part of them as JSON."""
    if sys.argv[1:2] == ["--part"]:
        print(json.dumps(part(sys.argv[2], Path(sys.argv[3]))))
        return
    from benchmarks.run import line

    entries = int(sys.argv[1]) if len(sys.argv) > 1 else ENTRIES
    with tempfile.TemporaryDirectory(prefix="myelin-bench-") as folder:
        sys.exit(0 if all([*measure(Path(folder), line, entries)]) else 1)


if __name__ == "__main__":
    main()
