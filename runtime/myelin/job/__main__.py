"""The steps of a job; see `myelin.job`."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    # The folder of the program comes first here, and may hold a `queue.py` of its own: that is its business, not ours.
    _given = {os.path.abspath(place) for place in os.environ.get("PYTHONPATH", "").split(os.pathsep)}
    sys.path[:] = [place for place in sys.path[1:] if os.path.abspath(place) not in _given]

from collections.abc import Sequence

from myelin.job.folders import lay_out
from myelin.job.given import FAILED, Ended, Given, JobError, earlier_folders, read, say, visible
from myelin.job.program import Printed, Signals, StoppedError


def main(argv: Sequence[str]) -> int:
    """Do the whole job; returns the exit code."""
    try:
        given, program = read(argv, os.environ)
    except JobError as error:
        say(str(error))
        return FAILED
    signals, printed = Signals(given), Printed()
    # 1. Lay out the folders and run the program.
    try:
        signals.install()
        with signals.preparing():
            lay_out(given, earlier_folders(os.environ, given.work))
        ended = signals.run(program, visible(os.environ), printed)
    except JobError as error:
        ended = Ended(FAILED, str(error))
    except StoppedError:
        ended = Ended(-signals.number, "was asked to end before its program began")
    # 2. Bring home what came of it, also when it failed.
    try:
        code = _bring_home(given, ended, signals, printed)
    except JobError as error:
        say(f"result: {error}")
        return FAILED
    return 128 - code if code < 0 else code


def _bring_home(given: Given, ended: Ended, signals: Signals, printed: Printed) -> int:
    """What the job comes to; it is 0 only when somebody has made its result safe."""
    # Only now: these take a while to load, which a program should not wait for.
    from myelin.job.bringing import SilenceError, bring
    from myelin.job.parcel import packed

    parcel = packed(given, ended, printed)
    try:
        bring(given, signals, parcel)
    except SilenceError as error:
        say(f"result: {error}")
        return parcel.code or FAILED
    return parcel.code


if __name__ == "__main__":
    # Not by the usual way: a thread may still wait for what some stray process prints.
    os._exit(main(sys.argv[1:]))
