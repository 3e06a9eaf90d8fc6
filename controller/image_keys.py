"""The keys that images are signed with: one that signs, and former ones whose images still load. They change with an overlap.

In a folder or Secret: `image.pem`, or `image.pkcs11` with a token's URI, signs; each `image-<id>.pub.pem` is a former one.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Mapping
from pathlib import Path

from controller.adapters.keys import ImageKey, ImageKeyKind, ImageSigner, hint_of, image_public, read_private
from controller.adapters.oci.layout import write_whole
from controller.adapters.token_key import TokenKey
from policies.errors import DesiredStateError, RefusedError

KEY, TOKEN, TOKEN_PIN, PUBLIC = "image.pem", "image.pkcs11", "image.pin", "image.pub.pem"
NEXT = "image.next.pem"
"""A new key before it takes the old one's place."""
_FORMER = re.compile(r"image-[A-Za-z0-9._-]+\.pub\.pem")


def signer_in(folder: Path) -> ImageSigner | None:
    """The key of a folder; None where there is none.

    Raises:
        DesiredStateError: The token's URI cannot be read.
        RefusedError: There are two, others may read it, or the token says no.
        TrustError: It is no such key.
        SilentError: The token does not answer.
    """
    if not (folder / TOKEN).exists():
        return ImageKey.load(folder / KEY) if (folder / KEY).exists() else None
    if (folder / KEY).exists():
        text = f"{folder}: expected one key for images, got {KEY} and {TOKEN}"
        raise RefusedError(f"{text}; keep the public one of {KEY} as image-1.pub.pem, and move {KEY} away", reason="TwoKeys")
    signer = TokenKey.load(folder / TOKEN)
    # For the answers, which ask no token.
    if not (folder / PUBLIC).exists() or (folder / PUBLIC).read_text() != signer.public_pem:
        write_whole(folder / PUBLIC, signer.public_pem.encode())
    return signer


def public_in(folder: Path) -> tuple[str, ...]:
    """Public keys of a folder, that of the one that signs first; no token is asked.

    Raises:
        RefusedError: Others may read the private key.
        TrustError: One is no such key.
    """
    if (folder / KEY).exists():
        own = [ImageKey.load(folder / KEY).public_pem]
    else:
        own = [image_public((folder / PUBLIC).read_text(), str(folder / PUBLIC))] if (folder / PUBLIC).exists() else []
    return tuple(dict.fromkeys([*own, *former_in(folder).values()]))


def former_in(folder: Path) -> dict[str, str]:
    """File name -> public key, of the former keys of a folder.

    Raises:
        TrustError: One is no such key.
    """
    files = sorted(path for path in folder.glob("image-*.pub.pem") if _FORMER.fullmatch(path.name))
    return {path.name: image_public(path.read_text(errors="replace"), str(path)) for path in files}


def signer_of(texts: Mapping[str, str], origin: str) -> ImageSigner:
    """The key of a Secret, by what it says under its keys.

    Raises:
        DesiredStateError: It holds two, a URI with options, or no PIN.
        RefusedError: The token says no, or the controller has no library for it.
        TrustError: It is no such key.
        SilentError: The token does not answer.
    """
    if TOKEN not in texts:
        return ImageKey.parse(texts[KEY].encode(), f"{origin}: {KEY}")
    if KEY in texts:
        text = f"{origin}: expected one key for images, got {KEY} and {TOKEN}; take one away"
        raise DesiredStateError(text, reason="TwoKeys")
    return TokenKey.parse(texts[TOKEN], texts.get(TOKEN_PIN, ""), f"{origin}: {TOKEN}")


def is_former(name: str) -> bool:
    """Whether a file, or a Secret's key, of that name is the public half of a former key."""
    return _FORMER.fullmatch(name) is not None


def keep_public(folder: Path, public: str, former: Mapping[str, str]) -> None:
    """Leave the public keys of a project whose private ones lie elsewhere; those that are no more are taken away."""
    for name, pem in {PUBLIC: public, **former}.items():
        write_whole(folder / name, pem.encode())
    for name in former_in(folder):
        if name not in former:
            (folder / name).unlink(missing_ok=True)


def rotate(folder: Path, kind: ImageKeyKind = "p256") -> str:
    """Make a new key, and keep the public one of the old: what that signed goes on loading. Returns the kept file's name.

    Broken off anywhere, it may be done again: no key is ever lost before its public one is kept.

    Raises:
        RefusedError: There is no key in a file to begin with, or the folder cannot be written.
        TrustError: It is no such key.
    """
    if (folder / TOKEN).exists():
        text = f"{folder}: expected a key in a file, got one in a token; make the new one there, copy {PUBLIC} to image-1.pub.pem"
        raise RefusedError(f"{text}, and write the new one's URI to {TOKEN}", reason="KeyInToken")
    old = ImageKey.load(folder / KEY)
    name = f"image-{short_id(old.public_pem)}.pub.pem"
    try:
        write_whole(folder / name, old.public_pem.encode())
        if not (folder / NEXT).exists():
            ImageKey.generate(folder / NEXT, kind)
        read_private(folder / NEXT)
        os.replace(folder / NEXT, folder / KEY)
    except OSError as error:
        raise RefusedError(f"{folder}: expected to write a key, got {error.strerror or error}", reason="NoKey") from error
    return name


def retire(folder: Path, name: str) -> str:
    """Take a former key away: what it alone signed loads nowhere any more. Returns its public key.

    Args:
        folder: Where.
        name: Its file's name, or the part between `image-` and `.pub.pem`.

    Raises:
        RefusedError: There is no such former key, or it cannot be removed.
    """
    known = former_in(folder)
    wanted = name if name in known else f"image-{name}.pub.pem"
    if wanted not in known:
        there = ", ".join(known) or "none"
        raise RefusedError(f"{folder}: expected one of the former keys, {there}, got {name}", reason="NoKey")
    try:
        (folder / wanted).unlink()
    except OSError as error:
        raise RefusedError(f"{folder / wanted}: expected to remove it, got {error.strerror or error}", reason="NoKey") from error
    return known[wanted]


def short_id(public_pem: str) -> str:
    """The first 8 hexadecimal characters of the SHA-256 of a public key's DER."""
    return base64.b64decode(hint_of(public_pem))[:4].hex()
