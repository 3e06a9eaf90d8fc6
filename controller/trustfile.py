"""The trust file: the first trust, which comes from outside of the repository."""

from __future__ import annotations

from pathlib import Path

from controller.adapters.documents import YamlDocuments
from policies.errors import DesiredStateError
from policies.terms.document_types import Document
from policies.terms.project import Project, Signer
from policies.terms.revision import Pin, TrustedKey


class TrustFile(Document):
    """What a pin says."""

    signers: tuple[Signer, ...] = ()
    since: str = ""
    unsafe_unsigned_commits: bool = False


def read_pin(path: Path | None, controller: TrustedKey) -> Pin:
    """The pin in a trust file; an empty one, which trusts nobody, when there is no file.

    Raises:
        DesiredStateError: It cannot be read.
    """
    if path is None:
        return Pin(signers=(), controller=controller)
    try:
        value = YamlDocuments().load(path.read_bytes(), str(path)).value
        file = TrustFile.model_validate(value or {})
    except (OSError, ValueError) as error:
        raise DesiredStateError(f"trust file {path}: expected `signers` with name and ssh: {error}") from error
    return Pin(
        signers=_keys(file.signers),
        controller=controller,
        since=file.since,
        unsafe_unsigned=file.unsafe_unsigned_commits,
    )


def signers_of(text: bytes) -> tuple[TrustedKey, ...]:
    """The signers that a `myelin.yaml` names; none where it cannot be read, so that nobody is trusted by accident."""
    try:
        return _keys(Project.model_validate(YamlDocuments().load(text, "myelin.yaml").value).spec.trust.signers)
    except (ValueError, DesiredStateError):
        return ()


def _keys(signers: tuple[Signer, ...]) -> tuple[TrustedKey, ...]:
    return tuple(TrustedKey(name=signer.name, key=" ".join(signer.ssh.split()[:2])) for signer in signers if signer.ssh)
