"""The controller's keys of one project: they lie in `keys/` of its state folder.

Two are made when it first runs. One for OpenPGP is never made by itself: where it lies there, it signs the commits.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from controller import image_keys
from controller.adapters.keys import ImageKey, ImageKeyKind, ImageSigner, SshKey
from controller.adapters.signatures.openpgp import OpenpgpKey
from controller.adapters.signatures.sigstore_key import SigstoreKey
from controller.trustfile import OwnIdentity
from policies.errors import TrustError

OPENPGP = "controller.asc"
"""Name of the OpenPGP key's file, and of its key in a Secret."""
SIGSTORE, IDENTITY = "sigstore.json", "sigstore.identity"
"""Names of a Sigstore instance's client trust configuration, and of the line `<identity> <issuer>`, whom it calls us."""
TOKEN = "identity.token"
TOKEN_VARIABLE = "MYELIN_IDENTITY_TOKEN_FILE"
"""Names a file with an identity token that somebody renews; else it is `keys/identity.token`."""


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
    """The Sigstore identity that signs commits in place of the controller's own key; None where none was laid there.

    Raises:
        TrustError: The configuration or the identity cannot be read.
    """
    folder = state / "keys"
    if not (folder / SIGSTORE).exists():
        return None
    identity = (folder / IDENTITY).read_text() if (folder / IDENTITY).exists() else ""
    token = Path(environ.get(TOKEN_VARIABLE) or folder / TOKEN)
    return identified((folder / SIGSTORE).read_text(), identity, token, where=str(folder))


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
    from controller.adapters.sigstore.keyless import Keyless, check_config, token_in, trusted_root_of

    check_config(config)
    words = identity.split()
    if len(words) != 2:
        text = f"{where}: {IDENTITY}: expected one line `<identity> <issuer>`, which says whom certificates must name"
        raise TrustError(f"{text}, got {len(words)} words", reason="NoIdentity")
    return SigstoreKey(Keyless(config, token_in(token)), (words[0], words[1]), trusted_root_of(config))


def own_identity(state: Path) -> OwnIdentity | None:
    """The Sigstore identity that this state folder has, without asking anybody."""
    key = sigstore_key(state, {})
    return identity_of(key) if key is not None else None


def identity_of(key: SigstoreKey) -> OwnIdentity:
    """What a trust file says of it."""
    return OwnIdentity(identity=key.expected[0], issuer=key.expected[1], root=key.root)


def public_certificate(state: Path) -> str:
    """The certificate of the OpenPGP key that this state folder has; empty for none."""
    path = state / "keys" / OPENPGP
    return OpenpgpKey.load(path).certificate if path.exists() else ""


def keep_public(state: Path, key: SshKey, signer: ImageSigner, former: Mapping[str, str] | None = None) -> None:
    """Leave the public keys of a project whose private ones lie elsewhere, for the answers."""
    folder = _folder(state)
    (folder / "controller.pub").write_text(key.public() + "\n")
    image_keys.keep_public(folder, signer.public_pem, former or {})


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


def make(folder: Path, *, openpgp: str = "", kind: ImageKeyKind = "p256") -> dict[str, Any]:
    """Make the keys in a folder and return the public ones.

    Args:
        folder: Where.
        openpgp: `Name <address>` of an OpenPGP key for commits, which is laid beside the others if these are there
            already; empty for none.
        kind: Of the image key; model-signing takes P-256 only.

    Raises:
        RefusedError: One is there already, or the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not openpgp or not all((folder / name).exists() for name in ("controller", image_keys.KEY)):
        SshKey.generate(folder / "controller")
        ImageKey.generate(folder / image_keys.KEY, kind)
    if openpgp:
        OpenpgpKey.generate(folder / OPENPGP, openpgp)
    return shown(folder)


def shown(folder: Path) -> dict[str, Any]:
    """The public keys of a folder; the OpenPGP certificate and former image keys where there are some.

    Raises:
        RefusedError: One is not there, or others may read it.
    """
    signer = image_keys.signer_in(folder) or ImageKey.load(folder / image_keys.KEY)
    found: dict[str, Any] = {"controller": SshKey.load(folder / "controller").public(), "image": signer.public_pem}
    if former := image_keys.former_in(folder):
        found["formerImages"] = list(former.values())
    if (folder / OPENPGP).exists():
        found["openpgp"] = OpenpgpKey.load(folder / OPENPGP).certificate
    if (folder / SIGSTORE).exists():
        found["sigstore"] = (folder / IDENTITY).read_text().strip() if (folder / IDENTITY).exists() else ""
    return found
