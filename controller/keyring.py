"""The controller's keys of one project: they lie in `keys/` of its state folder, and are made when it first runs."""

from __future__ import annotations

from pathlib import Path

from controller.adapters.keys import ImageKey, SshKey


def controller_key(state: Path) -> SshKey:
    """The controller's own key, made on first use: it signs commits, ledger entries and version records."""
    path = _folder(state) / "controller"
    return SshKey.load(path) if path.exists() else SshKey.generate(path)


def image_key(state: Path) -> ImageKey:
    """The key that images are signed with, made on first use."""
    path = _folder(state) / "image.pem"
    return ImageKey.load(path) if path.exists() else ImageKey.generate(path)


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


def make(folder: Path) -> dict[str, str]:
    """Make both keys in a folder and return the public ones.

    Raises:
        RefusedError: One is there already, or the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    SshKey.generate(folder / "controller")
    ImageKey.generate(folder / "image.pem")
    return shown(folder)


def shown(folder: Path) -> dict[str, str]:
    """The public keys of a folder.

    Raises:
        RefusedError: One is not there, or others may read it.
    """
    return {
        "controller": SshKey.load(folder / "controller").public(),
        "image": ImageKey.load(folder / "image.pem").public_pem,
    }
