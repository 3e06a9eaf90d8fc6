"""A proposal: a change of ours that somebody is asked about, and what the forge says of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from policies.terms.project import Forge, Review


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """What the ledger says of one change that people are asked about: one for each task run that makes one, or each lock."""

    task_run: str
    """For a lock, which no task makes, its evidence."""
    run: str
    """Empty for a lock."""
    axon: str
    kind: Literal["promotion", "rollback", "lock"]
    version: str
    """Empty for a lock."""
    branch: str
    """The head: a branch of our own."""
    evidence: str
    """Digest of what people are asked to judge; the place of the change in the branch's history is no part of it."""
    at: datetime
    """When it was decided on: author and committer instant of its commits, so that making one twice makes it once."""
    heads: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Commit that was the branch's tip -> (what it was based on, the evidence it showed), oldest first."""
    ended: Literal["", "merged", "declined", "overtaken"] = ""
    reason: str = ""
    """Why it ended, for people."""
    path: str = ""
    """Of a lock: the file, from the root of the repository."""
    image: str = ""
    """Of a lock: the image whose provenance has its text."""
    beside: str = ""
    """Of a lock: names what the folder said of its requirements when it was proposed."""

    @property
    def subject(self) -> str:
        """What it is about, for people."""
        return f"{self.axon}/{self.version or self.path}"

    @property
    def head(self) -> str:
        """The newest commit that we made of it; empty before the first."""
        return next(reversed(tuple(self.heads)), "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """One look at a proposal: what the pull request is to be now."""

    proposal: Proposal
    is_recorded: bool
    """Whether the ledger knows of it; else that is the first thing to do."""
    base_branch: str
    base: str
    """Tip of the branch that it is for, 40 hexadecimal characters."""
    is_trusted: bool
    """Whether that tip is; nothing is proposed on top of one that is not."""
    title: str
    body: str
    """The evidence, Markdown."""
    forge: Forge | None
    """None: a branch is all there is."""
    review: Review
    author: str
    """Who signed the commit that it came from."""
    committer: str
    """`Name <address>` for its commits; empty: Myelin's own."""
    shown: str
    """Digest of all that the body shows; approvals are bound to it."""
    ready: str = "the evidence is complete"
    """What is said where nobody is waited for."""
    follows_base: bool = True
    """Whether the change is made anew when the base moves; a file of its own stays what it is."""
