"""Settings of one controller: frozen; meaning, unit, default and why under each field."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

JITTER = 0.2
"""Polling is spread by this share both ways, so that many projects do not ask a server at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a person may set; everything else is in the repository."""

    repository: str
    """URL or path of the repository that is followed."""
    state: Path
    """Folder of keys, caches, write-ahead log, image store and jobs.

    While no controller runs, nothing waits in the inbox and the ledger is pushed, all but `keys/` and `store/` may be deleted."""
    trust: Path | None = None
    """File that pins the first trust; None: nothing is acted on, and the message says how to pin."""
    branch: str = "main"
    """The branch that is the truth."""
    git_access: Path | None = None
    """Folder of files that say how the Git server is reached; None: the user's own set-up of Git and SSH counts."""
    poll_seconds: float = 5.0
    """Time between two looks while nothing happens, a fifth more or less; wake-ups make it shorter, polling alone is enough."""
    busy_seconds: float = 0.2
    """Time between two looks while something runs: a finished job is noticed this fast."""
    inbox_port: int | None = None
    """Port of the inbox; None: any free one, kept."""
    proxy_port: int | None = None
    """Port of the first deployer's proxy; None: any free one, kept."""
    isolation: str | None = None
    """`bubblewrap` or `none`; None: bubblewrap where it works."""
    scrape_seconds: float = 1.0
    """Time between two readings of the servers' metrics."""
    namespace: str = "default"
    """What jobs are told as their namespace."""


def state_folder(repository: str, environ: Mapping[str, str] = os.environ) -> Path:
    """Where a repository's state lies when nobody says otherwise."""
    root = environ.get("MYELIN_STATE")
    if root:
        return Path(root)
    home = Path(environ.get("XDG_STATE_HOME") or Path(environ.get("HOME", "/")) / ".local" / "state")
    place = repository if "://" in repository else str(Path(repository).resolve())
    return home / "myelin" / hashlib.sha256(place.encode()).hexdigest()[:16]
