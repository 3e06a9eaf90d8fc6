"""A revision: a commit pinned as `branch@sha1:<40 hex>`, and the facts about commits and tags that trust is decided on."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

KeyKind = Literal["ssh", "openpgp", "sigstore"]
"""How somebody signs: with an SSH key, with an OpenPGP certificate, or as an identity that Sigstore vouches for."""


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
    """What is written in a commit's or a tag's signature, before anybody decided to trust it."""

    kind: KeyKind = "ssh"
    key: str
    """What made it, two words: `ssh-ed25519 AAAA…` without comment, `openpgp <FINGERPRINT>` of the very key, or
    `<identity> <issuer>`; empty when it could not be read."""
    fingerprint: str
    """What people know the key by: `SHA256:<base64>` as ssh-keygen prints it, an OpenPGP fingerprint, or an identity."""
    valid: bool
    """Whether the signature fits the signed bytes, and was made with a key that was good then."""
    fault: str = ""
    """Why it is not valid, where more can be said than that."""
    at: datetime | None = None
    """When it was made: as the log proves (Sigstore) or as the signer claims (OpenPGP); SSH signatures do not say."""
    certificates: tuple[str, ...] = field(default=(), repr=False)
    """The OpenPGP certificates, as lists of signers have them, under which it is valid; a certificate is more than its
    primary key: it says which other keys may sign, until when, and which are revoked."""


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
class TagFacts:
    """What trust needs to know of one annotated tag."""

    name: str
    """The name in the tag itself, which its signature covers; the ref's name is not signed by anybody."""
    target: str
    """The object that it names, 40 hexadecimal characters."""
    target_kind: str
    """`commit`, mostly; Git lets a tag name a tag, a tree or a blob too."""
    at: datetime
    """The tagger's instant, as claimed."""
    signature: Signature | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustedKey:
    """A key that may change desired state, the name that people know it by, and how far it goes."""

    name: str
    kind: KeyKind = "ssh"
    key: str
    """`ssh-ed25519 AAAA…` without comment, `openpgp <FINGERPRINT>` of the primary key, or `<identity> <issuer>`."""
    certificate: str = field(default="", repr=False)
    """The armored OpenPGP certificate; empty for other kinds."""
    paths: tuple[str, ...] = ()
    """Folders and files that its commits may change; empty: everything."""
    valid_from: datetime | None = None
    valid_until: datetime | None = None
    """The first instant that does not count any more."""
    revoked: str = ""
    """Why nothing that it signs counts any more; empty while it does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """The first trust, which comes from outside of the repository."""

    signers: tuple[TrustedKey, ...]
    controller: TrustedKey | None
    """The controller's own key; it has power over the write-back paths only."""
    controller_openpgp: TrustedKey | None = None
    """The OpenPGP certificate that its commits may be signed under as well, with the same power."""
    controller_sigstore: TrustedKey | None = None
    """The identity that a Sigstore instance knows it by, with the same power."""
    since: str = ""
    """Commit that is trusted without looking further back; empty: from the root."""
    ancestors: bool = True
    """Whether every commit since then must be signed; else a trusted tip vouches for what lies below it."""
    unsafe_unsigned: bool = False
    write_back_paths: tuple[str, ...] = ("versions/", "releases/")

    @property
    def own(self) -> tuple[TrustedKey, ...]:
        """All that the controller's commits may be signed by; both count, so that who changes from one keeps the history."""
        keys = (self.controller, self.controller_openpgp, self.controller_sigstore)
        return tuple(key for key in keys if key is not None)
