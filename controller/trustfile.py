"""The trust file: the first trust, which comes from outside of the repository."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError, model_validator

from controller.adapters.attest.verifying import Identity, ImageTrust
from controller.adapters.documents import YamlDocuments
from controller.adapters.keys import image_public
from controller.adapters.signatures import SignatureReader
from controller.adapters.signatures.gitsign import Gitsign
from controller.adapters.signatures.openpgp import is_same, primary_fingerprint
from policies.errors import DesiredStateError, TrustError
from policies.terms.document_types import Document
from policies.terms.project import Project, Signer, Trust
from policies.terms.revision import Pin, TrustedKey
from policies.writeback import same_key

CONTROLLER = "myelin"
"""What the controller is called where people are called by their names."""


class OwnIdentity(Document):
    """Whom a Sigstore instance calls the controller."""

    identity: str
    issuer: str
    root: str = ""
    """Trusted root of that instance as JSON; empty: the one that people's signatures are checked by, too."""


class TrustFile(Document):
    """What a pin says."""

    signers: tuple[Signer, ...] = ()
    controller: str = ""
    """The controller's own public key, `ssh-ed25519 AAAA…`; it has power over the write-back paths only."""
    controller_openpgp: str = ""
    """The armored OpenPGP certificate that the controller's commits may be signed under as well, with the same power."""
    controller_sigstore: OwnIdentity | None = None
    """The identity that the controller's commits may be signed as, with the same power. Its root vouches for nobody else."""
    images: tuple[str, ...] = ()
    """Public keys of images, PEM; several while keys change."""
    image_identities: tuple[OwnIdentity, ...] = ()
    """Sigstore identities that sign images without keys; without a root of their own, `sigstore_root` vouches for them."""
    since: str = ""
    ancestors: bool = True
    """Whether every commit since then must be signed; else a trusted tip vouches for what lies below it."""
    sigstore_root: str = ""
    """A Sigstore trusted root as JSON, for signers with an identity; empty: that of the public good instance."""
    unsafe_unsigned_commits: bool = False

    @model_validator(mode="after")
    def _as_in_a_project(self) -> TrustFile:
        Trust(signers=self.signers, since=self.since)
        return self


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
        raise DesiredStateError(f"trust file {path}: {_first_fault(error)}") from error


def with_certificate(trust: TrustFile, own: str) -> TrustFile:
    """What a trust file says, and the OpenPGP certificate of the controller's that this machine has.

    Args:
        trust: The file.
        own: The certificate; empty when it has none.

    Raises:
        TrustError: The file pins another one.
    """
    if not own or is_same(trust.controller_openpgp, own):
        return trust
    if trust.controller_openpgp:
        text = "`controllerOpenpgp` pins another certificate than this state folder's keys/controller.asc has"
        raise TrustError(f"trust file: {text}; take that key, or pin what `myelin keys show` prints")
    return trust.model_copy(update={"controller_openpgp": own})


def with_identity(trust: TrustFile, own: OwnIdentity | None) -> TrustFile:
    """What a trust file says, and the Sigstore identity of the controller's that this machine has.

    Raises:
        TrustError: The file pins another one.
    """
    if own is None or trust.controller_sigstore == own:
        return trust
    if trust.controller_sigstore is not None:
        text = "`controllerSigstore` pins another identity or root than this state folder's keys/sigstore.json and .identity"
        raise TrustError(f"trust file: {text}; take those, or pin what `myelin keys show` prints")
    return trust.model_copy(update={"controller_sigstore": own})


def image_trust(trust: TrustFile, own: Iterable[str], identity: Identity | None = None) -> ImageTrust:
    """Whose images may be loaded.

    Args:
        trust: The file.
        own: Public keys that this machine has, PEM.
        identity: The identity that this machine signs as, with its root; None: none.

    Raises:
        TrustError: The file names a key that is none.
    """
    listed = [image_public(text, f"trust file: images[{at}]") for at, text in enumerate(trust.images)]
    identities = tuple(
        Identity(identity=item.identity, issuer=item.issuer, root=item.root or trust.sigstore_root)
        for item in trust.image_identities
    )
    signing = (identity,) if identity is not None else ()
    return ImageTrust(keys=tuple(dict.fromkeys((*own, *listed))), identities=tuple(dict.fromkeys((*signing, *identities))))


def pin_of(trust: TrustFile, own: str) -> Pin:
    """The pin that a trust file sets.

    Args:
        trust: The file.
        own: The controller's public key that this machine has; empty when it has none.

    Raises:
        TrustError: The file pins another key of the controller, or an OpenPGP certificate or Sigstore root that cannot be read.
    """
    if trust.controller and own and not same_key(trust.controller, own):
        raise TrustError("trust file: `controller` pins another key than this state folder has; take that key, or pin this one")
    key = trust.controller or own
    if trust.sigstore_root:
        Gitsign(trust.sigstore_root).check_root()
    certificate, identity = trust.controller_openpgp.strip(), trust.controller_sigstore
    if identity is not None and identity.root:
        Gitsign(identity.root).check_root()
    return Pin(
        signers=tuple(_trusted(signer) for signer in trust.signers),
        controller=TrustedKey(name=CONTROLLER, key=" ".join(key.split()[:2])) if key else None,
        controller_openpgp=_certified(CONTROLLER, certificate, "controllerOpenpgp") if certificate else None,
        controller_sigstore=_identified(identity) if identity is not None else None,
        since=trust.since,
        ancestors=trust.ancestors,
        unsafe_unsigned=trust.unsafe_unsigned_commits,
    )


def signature_reader(trust: TrustFile) -> SignatureReader:
    """What reads the signatures of a repository that is pinned like this.

    Raises:
        TrustError: As for `pin_of`.
    """
    signers = tuple(_trusted(signer) for signer in trust.signers)
    if certificate := trust.controller_openpgp.strip():
        signers += (_certified(CONTROLLER, certificate, "controllerOpenpgp"),)
    own = trust.controller_sigstore
    return SignatureReader(
        signers,
        list_of=signers_of,
        sigstore_root=trust.sigstore_root,
        own=(_identified(own).key, own.root) if own is not None and own.root else None,
    )


def signers_of(text: bytes) -> tuple[TrustedKey, ...]:
    """The signers that a `myelin.yaml` names; none where it cannot be read, so that nobody is trusted by accident."""
    try:
        project = Project.model_validate(YamlDocuments().load(text, "myelin.yaml").value)
        return tuple(_trusted(signer) for signer in project.spec.trust.signers)
    except (ValueError, DesiredStateError, TrustError):
        return ()


def _trusted(signer: Signer) -> TrustedKey:
    """A signer as trust knows it.

    Raises:
        TrustError: The OpenPGP certificate cannot be read.
    """
    kind, certificate = signer.kind, ""
    if signer.openpgp is not None:
        known = _certified(signer.name, signer.openpgp.strip(), f"signer {signer.name}")
        key, certificate = known.key, known.certificate
    elif signer.ssh is not None:
        key = " ".join(signer.ssh.split()[:2])
    else:
        key = f"{signer.identity} {signer.issuer}"
    return TrustedKey(
        name=signer.name,
        kind=kind,
        key=key,
        certificate=certificate,
        paths=signer.paths,
        valid_from=signer.valid_from,
        valid_until=signer.valid_until,
        revoked=signer.revoked,
    )


def _identified(own: OwnIdentity) -> TrustedKey:
    return TrustedKey(name=CONTROLLER, kind="sigstore", key=f"{own.identity} {own.issuer}")


def _certified(name: str, certificate: str, where: str) -> TrustedKey:
    """Somebody with an OpenPGP certificate, that is written `where`, for messages.

    Raises:
        TrustError: It cannot be read.
    """
    try:
        key = f"openpgp {primary_fingerprint(certificate)}"
    except TrustError as error:
        raise TrustError(f"{where}: {error.message}", reason=error.reason) from error
    return TrustedKey(name=name, kind="openpgp", key=key, certificate=certificate)


def _first_fault(error: ValidationError) -> str:
    """The first thing that is wrong: field, and what was expected."""
    first = error.errors()[0]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
    what = first["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if first["type"] == "extra_forbidden":
        what = "expected a key that a trust file has, got this one"
    return f"{where}: {what}" if where else what
