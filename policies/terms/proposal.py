"""A proposal: a change of ours that somebody is asked about, and what the forge says of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class PullRequest:
    """One pull request (on GitLab: a merge request), as its forge tells of it."""

    number: int
    """What people call it by; on GitLab the `iid`."""
    url: str
    """Its page."""
    state: Literal["open", "merged", "closed"]
    head: str
    """The branch that is to be merged."""
    head_commit: str
    """That branch's tip, 40 hexadecimal characters; what it was at the end when it is not open any more."""
    base: str
    """The branch that it is to be merged into."""
    merge_commit: str = ""
    """What it became on `base`; empty until it is merged."""
    ended_by: str = ""
    """Who merged or closed it, by user name; empty while it is open or where the forge does not tell."""
    title: str = ""
    body: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """Somebody approved a pull request, looking at one commit of it."""

    by: str
    """User name on the forge."""
    commit: str
    """The head's tip that was looked at, 40 hexadecimal characters."""
    at: datetime


StatusState = Literal["pending", "success", "failure", "error"]
