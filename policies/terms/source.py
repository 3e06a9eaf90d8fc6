"""Source in another repository: where a manifest says that it is, and which commit that came to for one run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from policies.terms.revision import CommitFacts, TagFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class Elsewhere:
    """What a manifest says of another repository."""

    repo: str
    """URL, without a password."""
    revision: str
    """Branch, tag or commit; empty: the repository's own default branch."""
    secret: str = ""
    """Name of the Secret with an SSH key for it; empty for none."""
    secret_key: str = ""
    """Which of its keys is the private one; empty: `identity`."""
    verify: bool = False
    """Whether it must be signed by somebody whom the project trusts."""

    def __str__(self) -> str:
        return f"{self.repo} at {self.revision or 'its default branch'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Submodule:
    """A commit of another repository that lies in a folder of one."""

    path: str
    """From the root of the repository that it lies in."""
    url: str
    """Where it comes from, without a password; never relative."""
    commit: str
    """40 hexadecimal characters, out of the tree that it lies in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """What another repository's revision came to."""

    repo: str
    revision: str
    commit: str
    """40 hexadecimal characters."""
    trees: Mapping[str, str] = field(default_factory=dict)
    """Source folder of that commit -> Git tree id, or what names a folder of a submodule; empty where the folder is missing."""
    signed: TagFacts | CommitFacts | None = None
    """What vouches for it, where that was asked for: the annotated tag of that name, else the commit."""
    signer: str = ""
    """Name of the signer who counts; empty where none was asked for, or before that was decided."""
