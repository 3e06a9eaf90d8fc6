"""The keys that images are signed with: one that signs, and former ones whose images still load. They change with an overlap.

In a folder or Secret one signs: `image.pem`, `cosign.key` as cosign encrypted it, or `image.pkcs11` with a token's URI; each
`image-<id>.pub.pem` is a former one.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Mapping
from pathlib import Path

from controller.adapters import cosign_key
from controller.adapters.keys import ImageKey, ImageKeyKind, ImageSigner, hint_of, image_public, read_private
from controller.adapters.oci.layout import write_whole
from controller.adapters.token_key import TokenKey
from policies.errors import DesiredStateError, RefusedError

KEY, TOKEN, TOKEN_PIN, PUBLIC = "image.pem", "image.pkcs11", "image.pin", "image.pub.pem"
COSIGN, COSIGN_PASSWORD = "cosign.key", "cosign.password"
KINDS = (KEY, COSIGN, TOKEN)
"""Names under which a key that signs may lie: one of them."""
PUT_AWAY = "cosign.key.former"
"""What a key of cosign is called once another one took its place: it is not ours to delete."""
NEXT = "image.next.pem"
"""A new key before it takes the old one's place."""
_FORMER = re.compile(r"image-[A-Za-z0-9._-]+\.pub\.pem")


def signer_in(folder: Path) -> ImageSigner | None:
    """The key of a folder; None where there is none.

    Raises:
        DesiredStateError: The token's URI cannot be read.
        RefusedError: There are two, others may read it, its password is wrong, or the token says no.
        TrustError: It is no such key.
        SilentError: The token does not answer.
    """
    there = [name for name in KINDS if (folder / name).exists()]
    if len(there) > 1:
        text = f"{folder}: expected one key for images, got {' and '.join(there)}"
        raise RefusedError(
            f"{text}; keep the public one of {there[0]} as image-1.pub.pem, and move {there[0]} away", reason="TwoKeys"
        )
    if not there:
        return None
    if there == [KEY]:
        return ImageKey.load(folder / KEY)
    signer: ImageSigner = cosign_key.load(folder / COSIGN) if there == [COSIGN] else TokenKey.load(folder / TOKEN)
    # For the answers, which ask no token and have no password.
    if not (folder / PUBLIC).exists() or (folder / PUBLIC).read_text() != signer.public_pem:
        write_whole(folder / PUBLIC, signer.public_pem.encode())
    return signer


def public_in(folder: Path) -> tuple[str, ...]:
    """Public keys of a folder, that of the one that signs first; no token is asked, and no password.

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
        DesiredStateError: It holds two, a URI with options, no PIN, or a wrong password.
        RefusedError: The token says no, or the controller has no library for it.
        TrustError: It is no such key.
        SilentError: The token does not answer.
    """
    there = [name for name in KINDS if name in texts]
    if len(there) > 1:
        text = f"{origin}: expected one key for images, got {' and '.join(there)}; take one away"
        raise DesiredStateError(text, reason="TwoKeys")
    if there == [COSIGN]:
        return cosign_key.parse(texts[COSIGN], texts.get(COSIGN_PASSWORD), f"{origin}: {COSIGN}")
    if there == [TOKEN]:
        return TokenKey.parse(texts[TOKEN], texts.get(TOKEN_PIN, ""), f"{origin}: {TOKEN}")
    return ImageKey.parse(texts[KEY].encode(), f"{origin}: {KEY}")


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

    Broken off anywhere, it may be done again: no key is ever lost before its public one is kept. The new one is always
    `image.pem`; a key of cosign stays under another name.

    Raises:
        RefusedError: There is no key in a file to begin with, its password is wrong, or the folder cannot be written.
        TrustError: It is no such key.
    """
    if (folder / TOKEN).exists():
        text = f"{folder}: expected a key in a file, got one in a token; make the new one there, copy {PUBLIC} to image-1.pub.pem"
        raise RefusedError(f"{text}, and write the new one's URI to {TOKEN}", reason="KeyInToken")
    is_cosigns = (folder / COSIGN).exists()
    old = cosign_key.load(folder / COSIGN) if is_cosigns else ImageKey.load(folder / KEY)
    name = f"image-{short_id(old.public_pem)}.pub.pem"
    is_begun = is_cosigns and (folder / KEY).exists() and (folder / name).exists()
    if is_cosigns and not is_begun and (folder / KEY).exists():
        raise RefusedError(f"{folder}: expected one key for images, got {KEY} and {COSIGN}; move one away", reason="TwoKeys")
    try:
        if not is_begun:
            write_whole(folder / name, old.public_pem.encode())
            if not (folder / NEXT).exists():
                ImageKey.generate(folder / NEXT, kind)
            read_private(folder / NEXT)
            os.replace(folder / NEXT, folder / KEY)
        if is_cosigns:
            os.replace(folder / COSIGN, folder / PUT_AWAY)
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
