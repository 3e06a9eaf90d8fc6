"""The process that outlives nobody: it starts a node's namespaces, watches the owner, and takes everything away at the end.

The end comes when it is told to (SIGTERM), when the node's first process ends, or when the owner does, by whatever death. When
this process itself is killed, the kernel ends the node all the same; what then stays are empty control groups and files, which
the next `up` in the same folder removes.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.cluster import cache, parts

CONTROL_GROUPS = Path("/sys/fs/cgroup")
PR_SET_PDEATHSIG = 1
KEPT = ("logs", "var-log")
"""What stays of a folder that somebody chose: for reading, after the end."""


def born_at(pid: int) -> str:
    """When a process started, in the kernel's ticks: with its number, the name of no other process; empty: it is gone."""
    try:
        said = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    fields = said.rpartition(")")[2].split()
    return "" if fields[0] == "Z" else fields[19]


def read_guard(state: Path) -> tuple[int, int] | None:
    """Process numbers of a living node's guard and of its first process; nothing where no node lives."""
    try:
        said = json.loads((state / "guard.json").read_text())
    except (FileNotFoundError, ValueError):
        return None
    if born_at(said["guard"]) != said["guard_born"] or born_at(said["first"]) != said["first_born"]:
        return None
    return said["guard"], said["first"]


def sweep(facts: parts.Facts) -> None:
    """Remove what a node that ended has left: control groups, files."""
    for top in CONTROL_GROUPS.glob(f"*/{facts.name}"):
        _remove_group(top)
    _remove_group(CONTROL_GROUPS / facts.name)
    if facts.temporary:
        shutil.rmtree(facts.state, ignore_errors=True)
        return
    for entry in facts.state.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            if entry.name not in KEPT:
                shutil.rmtree(entry)
        else:
            entry.unlink()


def sweep_forgotten(folder: Path) -> None:
    """Sweep the temporary nodes in a folder that ended with their guards killed, so that nobody else will."""
    for state in folder.glob("myelin-node-*"):
        # Somebody else's folder is none of ours to read, and one in use is locked, from before it has a `node.json`.
        if state.is_symlink() or state.stat().st_uid != os.geteuid() or not (state / "node.json").exists():
            continue
        if cache.is_unused(state):
            sweep(parts.read_facts(state))


def guard(facts: parts.Facts, owner: int, teller: int) -> None:
    """Run the node until the end, then sweep.

    Args:
        facts: Which node.
        owner: Process that the node must not outlive; 0: none.
        teller: Descriptor of a pipe, which gets `ready` or what went wrong.
    """
    for place in (facts.state, facts.programs, facts.base, facts.wheels):
        cache.hold(place)
    told, tell = socket.socketpair()
    told.setblocking(False)
    tell.setblocking(False)
    signal.set_wakeup_fd(tell.fileno())
    signal.signal(signal.SIGTERM, lambda *_: None)
    watched = [told.fileno(), *_open_process(owner)]
    if owner and len(watched) == 1:
        return sweep(facts)
    for top in _hierarchies():
        (top / facts.name).mkdir(exist_ok=True)
    command = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"]
    command += [sys.executable, "-m", "tests.cluster.inside", str(facts.state), str(teller)]
    outer = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=(teller,), preexec_fn=_die_with_parent)
    os.close(teller)
    first = _only_child(outer)
    ends: list[int] = []
    if first:
        said = {"guard": os.getpid(), "guard_born": born_at(os.getpid()), "first": first, "first_born": born_at(first)}
        (facts.state / "guard.part").write_text(json.dumps(said))
        (facts.state / "guard.part").rename(facts.state / "guard.json")
        ends = _open_process(first)
        select.select([*watched, *ends], [], [])
    ending = time.monotonic()
    outer.kill()
    outer.wait()
    if ends:
        # Readable when the first process is gone, which it is when all others in its namespace are.
        select.select(ends, [], [], 30)
    print(f"all processes ended after {time.monotonic() - ending:.1f} s", flush=True)
    sweep(facts)
    print(f"swept after {time.monotonic() - ending:.1f} s", flush=True)
    return None


def _open_process(pid: int) -> list[int]:
    if not pid:
        return []
    with contextlib.suppress(ProcessLookupError):
        return [os.pidfd_open(pid)]
    return []


def _only_child(outer: subprocess.Popen[bytes]) -> int:
    listed = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
    while outer.poll() is None:
        with contextlib.suppress(FileNotFoundError):
            children = listed.read_text().split()
            if children:
                return int(children[0])
        time.sleep(0.01)
    return 0


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _hierarchies() -> list[Path]:
    """Tops of the control group trees: one with version 2, one for each controller with version 1."""
    lines = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    if any(line[1:3] == [str(CONTROL_GROUPS), "cgroup2"] for line in lines):
        return [CONTROL_GROUPS]
    return [Path(line[1]) for line in lines if line[2] == "cgroup"]


def _remove_group(top: Path) -> None:
    if not top.is_dir():
        return
    for folder, _, _ in os.walk(top, topdown=False):
        # Processes that were just killed may take a moment to leave.
        end = time.monotonic() + 5
        while True:
            try:
                os.rmdir(folder)
            except FileNotFoundError:
                break
            except OSError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.02)
            else:
                break


if __name__ == "__main__":  # python -m tests.cluster.guard STATE OWNER DESCRIPTOR
    guard(parts.read_facts(Path(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3]))
