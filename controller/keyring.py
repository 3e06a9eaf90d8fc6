"""The controller's keys of one project: they lie in `keys/` of its state folder.

Two are made when it first runs. One for OpenPGP is never made by itself: where it lies there, it signs the commits.
"""

from __future__ import annotations

from pathlib import Path

from controller.adapters.keys import ImageKey, SshKey
from controller.adapters.signatures.openpgp import OpenpgpKey

OPENPGP = "controller.asc"
"""Name of the OpenPGP key's file, and of its key in a Secret."""


def controller_key(state: Path) -> SshKey:
    """The controller's own key, made on first use: it signs commits, ledger entries and version records."""
    path = _folder(state) / "controller"
    return SshKey.load(path) if path.exists() else SshKey.generate(path)


def image_key(state: Path) -> ImageKey:
    """The key that images are signed with, made on first use."""
    path = _folder(state) / "image.pem"
    return ImageKey.load(path) if path.exists() else ImageKey.generate(path)


def openpgp_key(state: Path) -> OpenpgpKey | None:
    """The OpenPGP key that signs commits in place of the controller's own; None where none was laid there.

    Raises:
        RefusedError: Others may read it, or it may not sign.
        TrustError: It is no such key.
    """
    path = state / "keys" / OPENPGP
    return OpenpgpKey.load(path).check() if path.exists() else None


def public_certificate(state: Path) -> str:
    """The certificate of the OpenPGP key that this state folder has; empty for none."""
    path = state / "keys" / OPENPGP
    return OpenpgpKey.load(path).certificate if path.exists() else ""


def keep_public(state: Path, key: SshKey, signer: ImageKey) -> None:
    """Leave the public keys of a project whose private ones lie elsewhere, for the answers."""
    folder = _folder(state)
    (folder / "controller.pub").write_text(key.public() + "\n")
    (folder / "image.pub.pem").write_text(signer.public_pem)


def public_keys(state: Path) -> tuple[str, tuple[str, ...]]:
    """Public keys of controller and images that this state folder has; none are made here."""
    folder = state / "keys"
    own = SshKey.load(folder / "controller").public() if (folder / "controller").exists() else ""
    images = (ImageKey.load(folder / "image.pem").public_pem,) if (folder / "image.pem").exists() else ()
    if not own and (folder / "controller.pub").exists():
        own = (folder / "controller.pub").read_text().strip()
    if not images and (folder / "image.pub.pem").exists():
        images = ((folder / "image.pub.pem").read_text(),)
    return own, images


def _folder(state: Path) -> Path:
    folder = state / "keys"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def make(folder: Path, *, openpgp: str = "") -> dict[str, str]:
    """Make the keys in a folder and return the public ones.

    Args:
        folder: Where.
        openpgp: `Name <address>` of an OpenPGP key for commits, which is laid beside the others if these are there
            already; empty for none.

    Raises:
        RefusedError: One is there already, or the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not openpgp or not all((folder / name).exists() for name in ("controller", "image.pem")):
        SshKey.generate(folder / "controller")
        ImageKey.generate(folder / "image.pem")
    if openpgp:
        OpenpgpKey.generate(folder / OPENPGP, openpgp)
    return shown(folder)


def shown(folder: Path) -> dict[str, str]:
    """The public keys of a folder; the OpenPGP certificate where there is one.

    Raises:
        RefusedError: One is not there, or others may read it.
    """
    found = {
        "controller": SshKey.load(folder / "controller").public(),
        "image": ImageKey.load(folder / "image.pem").public_pem,
    }
    if (folder / OPENPGP).exists():
        found["openpgp"] = OpenpgpKey.load(folder / OPENPGP).certificate
    return found
