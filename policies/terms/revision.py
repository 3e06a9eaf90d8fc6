"""A revision: a commit pinned as `branch@sha1:<40 hex>`, and the facts about commits that trust is decided on."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """One commit of the watched branch."""

    branch: str
    commit: str
    """40 hexadecimal characters."""
    at: datetime
    """The committer's instant, UTC."""
    signer: str = ""
    """Name of the trusted signer, empty before trust was decided."""

    def __str__(self) -> str:
        return f"{self.branch}@sha1:{self.commit}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """What is written in a commit's signature, before anybody decided to trust it."""

    key: str
    """The public key that made it, `ssh-ed25519 AAAA…` without comment; empty when it could not be read."""
    fingerprint: str
    """`SHA256:<base64>` of the key, as ssh-keygen prints it."""
    valid: bool
    """Whether the signature fits the commit's bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitFacts:
    """What trust needs to know of one commit."""

    commit: str
    parents: tuple[str, ...]
    at: datetime
    author: str
    """`Name <email>`, as claimed; carries no trust."""
    subject: str
    message: str
    signature: Signature | None
    changed_paths: tuple[str, ...]
    """Paths that differ from the first parent (all paths for a root commit), sorted."""
    signers: tuple[TrustedKey, ...] | None = None
    """The `spec.trust.signers` of `myelin.yaml` in this commit when the commit changed that file, else None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustedKey:
    """A key that may change desired state, and the name that people know it by."""

    name: str
    key: str
    """`ssh-ed25519 AAAA…`, without comment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """The first trust, which comes from outside of the repository."""

    signers: tuple[TrustedKey, ...]
    controller: TrustedKey | None
    """The controller's own key; it has power over the write-back paths only."""
    since: str = ""
    """Commit that is trusted without looking further back; empty: from the root."""
    unsafe_unsigned: bool = False
    write_back_paths: tuple[str, ...] = ("versions/", "releases/")
