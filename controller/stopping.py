"""End what a controller that has ended left serving: servers and jobs outlive it on purpose."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

from controller.adapters.engine_local.supervise import born


def stop_servers(state: Path, *, jobs: bool = False) -> int:
    """End the servers of a state folder; returns how many. Only processes that are still the ones noted there.

    Args:
        state: The state folder.
        jobs: End jobs as well; whoever follows the project again finds them failed.
    """
    ended = 0
    tops = ("servers", "jobs") if jobs else ("servers",)
    for place in (place for top in tops for place in (state / "engine" / top).glob("*")):
        try:
            known = json.loads((place / "supervisor.json").read_bytes())
            if born(known["pid"]) == known["born"]:
                os.kill(known["pid"], signal.SIGTERM)
                ended += 1
        except (OSError, ValueError, KeyError):
            continue
    return ended
