"""What the engine says to a job, and the words that a job has for a person."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

FAILED = 70
CANNOT_START = 127
LONGEST_WORDS = 2000
KEEPABLE = ("model", "data")
OWN = "MYELIN_JOB_"
PAUSE_SECONDS = 1.0
GRACE_SECONDS = 5.0


class JobError(Exception):
    """What ends a job with 70, in words."""


class Given(NamedTuple):
    """What the engine says."""

    inputs: str
    work: str
    keeps: tuple[str, ...]
    url: str
    event: str | None
    pause_seconds: float
    grace_seconds: float


class Ended(NamedTuple):
    """How the program, or the job before it, ended."""

    code: int
    """-n when signal n killed it."""
    message: str = ""
    """Why, when it was not the program that failed."""


def read(argv: Sequence[str], environ: Mapping[str, str]) -> tuple[Given, list[str]]:
    """What the engine says, and the program's command line.

    Raises:
        JobError: Something is missing, or nothing that we know.
    """
    if len(argv) < 2 or argv[0] != "--":
        raise JobError("expected python -m myelin.job -- PROGRAM ARGS…")
    for name in ("INPUTS", "WORK", "RESULT_URL"):
        if not environ.get(OWN + name):
            raise JobError(f"{OWN}{name}: expected a value, there is none")
    keeps = tuple(sorted({name for name in environ.get(f"{OWN}KEEPS", "").split(",") if name}))
    if unknown := [name for name in keeps if name not in KEEPABLE]:
        raise JobError(f"{OWN}KEEPS: expected {' and '.join(KEEPABLE)}, got {', '.join(unknown)}")
    waits = []
    for name, usual in (("PAUSE_SECONDS", PAUSE_SECONDS), ("GRACE_SECONDS", GRACE_SECONDS)):
        try:
            waits.append(float(environ.get(OWN + name) or usual))
        except ValueError as error:
            raise JobError(f"{OWN}{name}: expected a number of seconds") from error
        if not 0 < waits[-1] < 3600:
            raise JobError(f"{OWN}{name}: expected a number above 0 and below 3600")
    given = Given(
        inputs=environ[f"{OWN}INPUTS"],
        work=os.path.abspath(environ[f"{OWN}WORK"]),
        keeps=keeps,
        url=environ[f"{OWN}RESULT_URL"],
        event=environ.get(f"{OWN}EVENT"),
        pause_seconds=waits[0],
        grace_seconds=waits[1],
    )
    return given, list(argv[1:])


def visible(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without what only this module is told."""
    return {name: value for name, value in environ.items() if not name.startswith(OWN)}


def earlier_folders(environ: Mapping[str, str], work: str) -> list[str]:
    """Names of earlier tasks whose folder the program is told, also where it is an empty one that the inputs lack."""
    top, found = os.path.join(work, "earlier"), []
    for name, value in environ.items():
        head, task = os.path.split(value.rstrip("/"))
        if name.startswith("DATA_PATH_") and head == top and task:
            found.append(task)
    return found


def disk_error(error: OSError) -> JobError:
    """What the disk said."""
    return JobError(f"{error.filename2 or error.filename or 'work folder'}: {error.strerror or error}")


def say(text: str) -> bytes:
    """Say a line on standard error, and return it."""
    line = f"myelin: {' '.join(text.split())[:LONGEST_WORDS]}\n".encode(errors="backslashreplace")
    try:
        write(2, line)
    except OSError:
        pass  # nobody reads it
    return line


def write(target: int, block: bytes) -> None:
    """Write all of a block to a file descriptor."""
    while block:
        block = block[os.write(target, block) :]
