"""The trust file: the first trust, which comes from outside of the repository."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from controller.adapters.documents import YamlDocuments
from policies.errors import DesiredStateError, TrustError
from policies.terms.document_types import Document
from policies.terms.project import Project, Signer
from policies.terms.revision import Pin, TrustedKey
from policies.writeback import same_key

CONTROLLER = "myelin"
"""What the controller is called where people are called by their names."""


class TrustFile(Document):
    """What a pin says."""

    signers: tuple[Signer, ...] = ()
    controller: str = ""
    """The controller's own public key, `ssh-ed25519 AAAA…`; it has power over the write-back paths only."""
    images: tuple[str, ...] = ()
    """Public keys of images, PEM."""
    since: str = ""
    unsafe_unsigned_commits: bool = False


def read_trust(path: Path | None) -> TrustFile:
    """What a trust file says; an empty one, which trusts nobody, when there is no file.

    Raises:
        DesiredStateError: It cannot be read; names what was expected.
    """
    if path is None:
        return TrustFile()
    try:
        value = YamlDocuments().load(path.read_bytes(), str(path)).value
        return TrustFile.model_validate(value or {})
    except OSError as error:
        raise DesiredStateError(f"trust file {path}: expected a file, got {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DesiredStateError(f"trust file {path}: {place}: expected `signers` with name and ssh: {first['msg']}") from error


def pin_of(trust: TrustFile, own: str) -> Pin:
    """The pin that a trust file sets.

    Args:
        trust: The file.
        own: The controller's public key that this machine has; empty when it has none.

    Raises:
        TrustError: The file pins another key of the controller.
    """
    if trust.controller and own and not same_key(trust.controller, own):
        raise TrustError("trust file: `controller` pins another key than this state folder has; take that key, or pin this one")
    key = trust.controller or own
    return Pin(
        signers=_keys(trust.signers),
        controller=TrustedKey(name=CONTROLLER, key=" ".join(key.split()[:2])) if key else None,
        since=trust.since,
        unsafe_unsigned=trust.unsafe_unsigned_commits,
    )


def signers_of(text: bytes) -> tuple[TrustedKey, ...]:
    """The signers that a `myelin.yaml` names; none where it cannot be read, so that nobody is trusted by accident."""
    try:
        return _keys(Project.model_validate(YamlDocuments().load(text, "myelin.yaml").value).spec.trust.signers)
    except (ValueError, DesiredStateError):
        return ()


def _keys(signers: tuple[Signer, ...]) -> tuple[TrustedKey, ...]:
    return tuple(TrustedKey(name=signer.name, key=" ".join(signer.ssh.split()[:2])) for signer in signers if signer.ssh)
