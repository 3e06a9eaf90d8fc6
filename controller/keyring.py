"""The controller's keys of one project: they lie in `keys/` of its state folder.

Two are made when it first runs. One for OpenPGP and those of Sigstore are never made by themselves: where OpenPGP's lies there,
it signs the commits, and what Sigstore's sign is decided in `adapters.sigstore.choosing`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controller import image_keys
from controller.adapters.keys import ImageKey, ImageKeyKind, ImageSigner, SshKey, fingerprint
from controller.adapters.signatures.openpgp import OpenpgpKey
from controller.adapters.signatures.sigstore_key import SigstoreKey
from controller.adapters.sigstore.files import CONFIG, IDENTITY, SEED, TOKEN, TOKEN_VARIABLE
from controller.trustfile import OwnIdentity
from policies.admin import ANY_PROJECT
from policies.errors import DesiredStateError, RefusedError, TrustError

if TYPE_CHECKING:  # the authority's library takes its time, and few have one
    from controller.adapters.attest.verifying import Identity
    from controller.adapters.sigstore.choosing import Chosen
    from reconcilers.ports import Clock

OPENPGP = "controller.asc"
FORMER_CONTROLLERS = "controller-*.pub"
"""Name of the OpenPGP key's file, and of its key in a Secret."""
LOCAL = ("default", ANY_PROJECT)
"""Namespace and name of a project that is followed on one machine, as an embedded instance's certificates say it."""


def controller_key(state: Path) -> SshKey:
    """The controller's own key, made on first use: it signs commits, ledger entries and version records."""
    path = _folder(state) / "controller"
    return SshKey.load(path) if path.exists() else SshKey.generate(path)


def image_key(state: Path) -> ImageSigner:
    """The key that images are signed with, in a file or a token; made on first use as a file.

    Raises:
        DesiredStateError: A token's URI cannot be read.
        RefusedError: There are two, others may read it, or a token says no.
        TrustError: It is no such key.
        SilentError: A token does not answer.
    """
    folder = _folder(state)
    return image_keys.signer_in(folder) or ImageKey.generate(folder / image_keys.KEY)


def openpgp_key(state: Path) -> OpenpgpKey | None:
    """The OpenPGP key that signs commits in place of the controller's own; None where none was laid there.

    Raises:
        RefusedError: Others may read it, or it may not sign.
        TrustError: It is no such key.
    """
    path = state / "keys" / OPENPGP
    return OpenpgpKey.load(path).check() if path.exists() else None


def sigstore_key(state: Path, environ: Mapping[str, str]) -> SigstoreKey | None:
    """The Sigstore identity that signs commits in place of the controller's own key; None where none was named there.

    Raises:
        TrustError: The configuration or the identity cannot be read.
    """
    folder = state / "keys"
    if not (folder / CONFIG).exists() or not (folder / IDENTITY).exists():
        return None
    token = Path(environ.get(TOKEN_VARIABLE) or folder / TOKEN)
    return identified((folder / CONFIG).read_text().strip(), (folder / IDENTITY).read_text(), token, where=str(folder))


def identified(config: str, identity: str, token: Path, *, where: str) -> SigstoreKey:
    """Signs as an identity of a Sigstore instance.

    Args:
        config: The instance's client trust configuration.
        identity: `<identity> <issuer>`.
        token: File with the identity token, read anew for each certificate.
        where: Where the two lie, for messages.

    Raises:
        TrustError: One of the two cannot be read.
    """
    from controller.adapters.sigstore.choosing import named_in
    from controller.adapters.sigstore.keyless import Keyless, check_config, token_in, trusted_root_of

    check_config(config)
    return SigstoreKey(Keyless(config, token_in(token)), named_in(identity, where), trusted_root_of(config))


def own_identity(state: Path) -> OwnIdentity | None:
    """The Sigstore identity that this state folder has, without asking anybody."""
    key = sigstore_key(state, {})
    return identity_of(key) if key is not None else None


def keyless(state: Path, clock: Clock) -> Chosen | None:
    """The identity that images and models are signed as besides the key; None where nothing of Sigstore lies there.

    Raises:
        RefusedError: Two instances lie there, a file cannot be read, or an instance that has to be asked says no.
        TrustError: A file is none of its kind.
        SilentError: An instance has to be asked and does not answer.
    """
    if not _has_identity(state / "keys"):
        return None
    from controller.adapters.sigstore.choosing import chosen_in

    return chosen_in(state / "keys", clock, owner=LOCAL)


def _has_identity(folder: Path) -> bool:
    return (folder / SEED).exists() or (folder / CONFIG).exists()


def image_identity(state: Path) -> Identity | None:
    """The identity that images are signed as by this state folder, without asking anybody; None where none is named.

    Raises:
        RefusedError: A file cannot be read.
        TrustError: A file is none of its kind.
    """
    return _named_in(state / "keys", LOCAL)


def _named_in(folder: Path, owner: tuple[str, str]) -> Identity | None:
    if not _has_identity(folder):
        return None
    from controller.adapters.sigstore.choosing import pinned_in

    return pinned_in(folder, owner=owner)


def identity_of(key: SigstoreKey) -> OwnIdentity:
    """What a trust file says of it."""
    return OwnIdentity(identity=key.expected[0], issuer=key.expected[1], root=key.root)


def public_certificate(state: Path) -> str:
    """The certificate of the OpenPGP key that this state folder has; empty for none."""
    path = state / "keys" / OPENPGP
    return OpenpgpKey.load(path).certificate if path.exists() else ""


def keep_public(
    state: Path,
    key: SshKey,
    signer: ImageSigner,
    former_images: Mapping[str, str] | None = None,
    former: Mapping[str, str] | None = None,
) -> None:
    """Leave the public keys of a project whose private ones lie elsewhere, for the answers; those that are no more go."""
    folder = _folder(state)
    known = {"controller.pub": key.public(), **(former or {})}
    for path in folder.glob(FORMER_CONTROLLERS):
        if path.name not in known:
            path.unlink()
    for name, public in known.items():
        (folder / name).write_text(public.strip() + "\n")
    image_keys.keep_public(folder, signer.public_pem, former_images or {})


def former_controllers(state: Path) -> tuple[str, ...]:
    """Public keys by which the controller signed before: what they say in the ledger stays said.

    Raises:
        TrustError: A file holds no public key.
    """
    return tuple(former_controller(path.read_text(), path.name) for path in sorted((state / "keys").glob(FORMER_CONTROLLERS)))


def former_controller(text: str, where: str) -> str:
    """A former public key of the controller's.

    Raises:
        TrustError: It is none.
    """
    public = " ".join(text.split()[:2])
    if not fingerprint(public):
        raise TrustError(f"{where}: expected the public key of a former controller, ssh-ed25519 AAAA…", reason="BadKey")
    return public


def public_keys(state: Path) -> tuple[str, tuple[str, ...]]:
    """Public keys of controller and images that this state folder has, former ones of images too; none are made here."""
    folder = state / "keys"
    own = SshKey.load(folder / "controller").public() if (folder / "controller").exists() else ""
    if not own and (folder / "controller.pub").exists():
        own = (folder / "controller.pub").read_text().strip()
    return own, image_keys.public_in(folder)


def _folder(state: Path) -> Path:
    folder = state / "keys"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def make(
    folder: Path,
    *,
    openpgp: str = "",
    kind: ImageKeyKind = "p256",
    seed_at: datetime | None = None,
    owner: tuple[str, str] = LOCAL,
) -> dict[str, Any]:
    """Make the keys in a folder and return the public ones.

    Args:
        folder: Where.
        openpgp: `Name <address>` of an OpenPGP key for commits, which is laid beside the others if these are there
            already; empty for none.
        kind: Of the image key; model-signing takes P-256 only.
        seed_at: Also the seed of an embedded Sigstore that begins then, beside the others as OpenPGP's; None: none.
        owner: Namespace and name of the project, which that names in its certificates.

    Raises:
        RefusedError: One is there already, or the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    has_keys = (folder / "controller").exists() and any((folder / name).exists() for name in image_keys.KINDS)
    if not (openpgp or seed_at) or not has_keys:
        SshKey.generate(folder / "controller")
        ImageKey.generate(folder / image_keys.KEY, kind)
    if openpgp:
        OpenpgpKey.generate(folder / OPENPGP, openpgp)
    if seed_at is not None:
        from controller.adapters.sigstore.choosing import make_seed

        make_seed(folder, seed_at)
    return shown(folder, owner)


def owner_of(project: str) -> tuple[str, str]:
    """Namespace and name in `NAMESPACE/NAME`; those of one machine where it is empty.

    Raises:
        DesiredStateError: It is something else.
    """
    if not project:
        return LOCAL
    namespace, _, name = project.partition("/")
    if not all(re.fullmatch(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?", part) for part in (namespace, name)):
        raise DesiredStateError(f"--project {project[:100]}: expected NAMESPACE/NAME of a Project in a cluster")
    return namespace, name


def write_root(value: Mapping[str, Any], place: Path) -> None:
    """Write the trusted root among what `shown` says to a file.

    Raises:
        DesiredStateError: There is none, or it is that of the public good instance, which every client knows.
        RefusedError: It cannot be written.
    """
    if not value.get("trustedRoot"):
        got = "the public good instance's, which clients bring along" if "identity" in value else "no identity there"
        raise DesiredStateError(f"{place}: expected the trusted root of an instance, got {got}; see `myelin keys new --sigstore`")
    try:
        place.write_text(f"{value['trustedRoot']}\n")
    except OSError as error:
        raise RefusedError(f"{place}: expected a place to write to, got {error.strerror}", reason="NoPlace") from error


def shown(folder: Path, owner: tuple[str, str] = LOCAL) -> dict[str, Any]:
    """The public keys of a folder; the OpenPGP certificate, former image keys and the identity where there are some.

    Args:
        folder: Where.
        owner: Namespace and name of the project, for what an embedded Sigstore calls it.

    Raises:
        TrustError: What names an identity cannot be read.
        RefusedError: One is not there, or others may read it.
    """
    signer = image_keys.signer_in(folder) or ImageKey.load(folder / image_keys.KEY)
    found: dict[str, Any] = {"controller": SshKey.load(folder / "controller").public(), "image": signer.public_pem}
    if former := image_keys.former_in(folder):
        found["formerImages"] = list(former.values())
    if (folder / OPENPGP).exists():
        found["openpgp"] = OpenpgpKey.load(folder / OPENPGP).certificate
    if (identity := _named_in(folder, owner)) is not None:
        found["sigstore"] = f"{identity.identity} {identity.issuer}"
        found |= {"identity": identity.identity, "issuer": identity.issuer, "trustedRoot": identity.root}
    return found
