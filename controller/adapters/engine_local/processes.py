"""Which process a pid names: pids come back, and a birth does not."""

from __future__ import annotations

from pathlib import Path


def born(pid: int) -> str:
    """When a process was born, in the kernel's ticks; empty when it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]
