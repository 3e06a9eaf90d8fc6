"""The door to PyNaCl: a private key that cosign encrypted with a password, `cosign.key`, becomes a key of images.

Neither the password nor the key is kept, written or shown by anything here.

Source:
    go-securesystemslib, `encrypted`: scrypt makes the key of a NaCl secretbox with the private key in PKCS#8.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from controller.adapters.keys import ImageKey, read_private
from policies.errors import DesiredStateError, RefusedError, TrustError
from policies.terms.secret import Secret

PASSWORD = "COSIGN_PASSWORD"
"""Variable with the password, where no file holds it: cosign's own name."""
MARKS = (b"ENCRYPTED SIGSTORE PRIVATE KEY", b"ENCRYPTED COSIGN PRIVATE KEY")
"""What cosign calls such a key, now and before version 2."""
LARGEST_BYTES = 64 << 10
COSTS = (1 << 15, 1 << 16, 1 << 17)
"""Those of scrypt's that cosign takes, with r = 8 and p = 1; another one might ask for gigabytes."""
_R, _P = 8, 1
_KEY_BYTES, _NONCE_BYTES = 32, 24


def load(path: Path) -> ImageKey:
    """The key in a file. Its password lies in `cosign.password` beside it, or in `COSIGN_PASSWORD`; with neither it is empty.

    Raises:
        RefusedError: A file cannot be read or others may read it, the password is wrong.
        TrustError: It is no such key.
    """
    beside = path.with_suffix(".password")
    text = read_private(beside).decode(errors="surrogateescape") if beside.exists() else os.environ.get(PASSWORD)
    password = Secret(text) if text is not None else None
    return opened(read_private(path), password, str(path), asked=f"{beside.name} beside it, or in {PASSWORD}")


def parse(content: str, password: str | None, where: str) -> ImageKey:
    """The key that lies in a Secret, with the password beside it.

    Raises:
        DesiredStateError: The password is wrong.
        TrustError: It is no such key.
    """
    try:
        return opened(content.encode(), Secret(password) if password is not None else None, where, asked="cosign.password")
    except RefusedError as error:
        raise DesiredStateError(error.message, reason=error.reason) from error


def opened(content: bytes, password: Secret | None, where: str, *, asked: str) -> ImageKey:
    """Open an encrypted key.

    Args:
        content: PEM around a JSON document.
        password: None counts as an empty one, which cosign takes too.
        where: Where it lies, for messages.
        asked: Where its password is looked for, for messages.

    Raises:
        RefusedError: The password is wrong.
        TrustError: It is no such key.
    """
    document = _document(content, where)
    try:
        kdf, cipher = document["kdf"], document["cipher"]
        params = kdf["params"]
        kinds = (kdf["name"], cipher["name"])
        cost, r, p = params["N"], params["r"], params["p"]
        salt, nonce, box = (_bytes(part) for part in (kdf["salt"], cipher["nonce"], document["ciphertext"]))
    except (KeyError, TypeError, ValueError) as error:
        raise _odd(where, "another document") from error
    if kinds != ("scrypt", "nacl/secretbox"):
        raise _odd(where, f"{str(kinds[0])[:40]!r} and {str(kinds[1])[:40]!r}", "scrypt and nacl/secretbox")
    if type(cost) is not int or cost not in COSTS or (r, p) != (_R, _P):
        costs = ", ".join(map(str, COSTS))
        got = f"N {str(cost)[:20]}, r {str(r)[:20]}, p {str(p)[:20]}"
        raise _odd(where, got, f"scrypt with N of {costs}, r {_R} and p {_P}")
    if not salt or len(nonce) != _NONCE_BYTES:
        raise _odd(where, "another document")
    for attempt in _spellings(password):
        private = _unboxed(_stretched(attempt, salt, cost), nonce, box)
        if private is not None:
            return ImageKey.parse(_as_pem(private), where)
    if password is None:
        raise RefusedError(f"{where}: expected its password in {asked}, got none", reason="NoPassword")
    raise RefusedError(
        f"{where}: expected the right password in {asked}, got another (or the file was changed)", reason="WrongPassword"
    )


def _document(content: bytes, where: str) -> dict[str, Any]:
    """The JSON in a PEM."""
    if len(content) > LARGEST_BYTES:
        raise _odd(where, f"more than {LARGEST_BYTES} bytes")
    kinds = b"|".join(MARKS)
    found = re.fullmatch(rb"-----BEGIN (" + kinds + rb")-----\s+([A-Za-z0-9+/=\s]+)-----END \1-----", content.strip())
    if found is None:
        is_cut = any(mark in content for mark in MARKS)
        raise _odd(where, "one that was cut short, or changed" if is_cut else "another file")
    try:
        value = json.loads(base64.b64decode(b"".join(found[2].split()), validate=True))
    except (ValueError, RecursionError) as error:
        raise _odd(where, "one that was cut short, or changed") from error
    if not isinstance(value, dict):
        raise _odd(where, "another document")
    return value


def _spellings(password: Secret | None) -> tuple[bytes, ...]:
    """The password as it is, and without the line break that an editor may have left behind it."""
    text = (password.reveal() if password is not None else "").encode(errors="surrogateescape")
    return tuple(dict.fromkeys((text, text.rstrip(b"\r\n"))))


def _stretched(password: bytes, salt: bytes, cost: int) -> bytes:
    # OpenSSL asks for some room beside the block that scrypt itself fills.
    room = 128 * cost * _R + (1 << 20)
    return hashlib.scrypt(password, salt=salt, n=cost, r=_R, p=_P, maxmem=room, dklen=_KEY_BYTES)


def _unboxed(key: bytes, nonce: bytes, box: bytes) -> bytes | None:
    """What lies in a box; None where that is not its key."""
    from nacl.exceptions import CryptoError
    from nacl.secret import SecretBox

    try:
        return SecretBox(key).decrypt(box, nonce)
    except CryptoError:
        return None


def _as_pem(der: bytes) -> bytes:
    return b"-----BEGIN PRIVATE KEY-----\n" + base64.encodebytes(der) + b"-----END PRIVATE KEY-----\n"


def _bytes(text: Any) -> bytes:
    return base64.b64decode(str(text), validate=True)


def _odd(where: str, got: str, expected: str = "") -> TrustError:
    wanted = expected or "a private key that cosign encrypted"
    text = f"{where}: expected {wanted}, got {got}"
    return TrustError(f"{text}; `cosign generate-key-pair` makes one", reason="NoKey")
