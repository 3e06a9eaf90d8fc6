"""Runs one program and writes down how it ended. Started by the engine, it outlives it; standard library only.

Usage: python -I -S supervise.py FOLDER, where FOLDER/launch.json says what to run.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

LARGEST_LOG_BYTES = 16 << 20
GRACE_SECONDS = 5.0
SUBREAPER = 36
"""Linux' `PR_SET_CHILD_SUBREAPER`."""


def main(folder: Path) -> None:
    """Run what the folder says, to its end."""
    try:
        os.close(os.open(folder / "claim", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return  # somebody started it already, and died before writing that down
    adopt()
    program: subprocess.Popen[bytes] | None = None
    is_over = False

    def end(*_: object) -> None:
        nonlocal is_over
        is_over = True
        if program is not None:
            stop(program, signal.SIGTERM)

    # Before anybody knows whom to end: who is ended between two lines below would leave a program that nobody knows.
    signal.signal(signal.SIGTERM, end)
    write(folder / "supervisor.json", {"pid": os.getpid(), "born": born(os.getpid())})
    launch: dict[str, Any] = json.loads((folder / "launch.json").read_bytes())
    ended: dict[str, Any]
    if is_over:
        write(folder / "exit.json", {"code": None, "reason": "Stopped"})
        return
    try:
        program = subprocess.Popen(
            launch["argv"],
            env=launch["env"],
            cwd=launch["cwd"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        ended = {"code": None, "reason": "CannotStart", "message": f"{launch['argv'][0]}: {error.strerror}"}
        write(folder / "exit.json", ended)
        return
    write(folder / "program.json", {"pid": program.pid, "born": born(program.pid)})
    if is_over:
        stop(program, signal.SIGTERM)
    assert program.stdout is not None
    copier = threading.Thread(target=copy, args=(program.stdout, folder / "output.log"), daemon=True)
    copier.start()
    reason = "ExitCode"
    try:
        program.wait(launch.get("timeout_seconds"))
    except subprocess.TimeoutExpired:
        reason = "TimedOut"
        stop(program, signal.SIGTERM)
        try:
            program.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            pass
    stop(program, signal.SIGKILL)
    program.wait()
    end_left_behind()
    copier.join(1.0)
    write(folder / "exit.json", {"code": program.returncode, "reason": reason})


def born(pid: int) -> str:
    """When a process was born, in the kernel's ticks: pid and birth together name one process for ever."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


def stop(program: subprocess.Popen[bytes], number: int) -> None:
    """Signal a program and all that it started."""
    try:
        os.killpg(program.pid, number)
    except ProcessLookupError:
        pass


def adopt() -> None:
    """Be the parent of whatever loses its own: of what left the program's session, or a cage whose maker was ended first."""
    try:
        ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    except (OSError, AttributeError):
        return  # no Linux: then the program's session is all that is ended


def end_left_behind() -> None:
    """End what a program left running, as the end of a container does."""
    deadline = time.monotonic() + GRACE_SECONDS
    while (left := children()) and time.monotonic() < deadline:
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            except (ProcessLookupError, ChildProcessError):
                continue


def children() -> list[int]:
    """Processes whose parent we are."""
    found = []
    for name in os.listdir("/proc"):
        try:
            fields = Path(f"/proc/{int(name)}/stat").read_text().rpartition(")")[2].split()
        except (ValueError, OSError):
            continue
        if fields[1:2] == [str(os.getpid())]:
            found.append(int(name))
    return found


def copy(source: IO[bytes], log: Path) -> None:
    """Keep what a program prints; what is beyond the limit is dropped, oldest half first."""
    with log.open("ab", buffering=0) as file:
        while block := os.read(source.fileno(), 65536):
            if file.tell() + len(block) > LARGEST_LOG_BYTES:
                kept = log.read_bytes()[-LARGEST_LOG_BYTES // 2 :]
                file.truncate(0)
                file.write(kept)
            try:
                file.write(block)
            except OSError:
                continue


def write(path: Path, value: dict[str, Any]) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_suffix(".new")
    with temporary.open("w") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
