"""The door to PKCS#11: a key of images in a token or security module, which never leaves it.

A key is named by a URI (RFC 7512) that never holds its PIN: `pkcs11:token=myelin;object=image?module-path=/usr/lib/….so`.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from controller.adapters.keys import ImageKey, ImageKeyKind, as_der, hint_of, public_of_point, read_private
from policies.errors import DesiredStateError, RefusedError, SilentError, TrustError
from policies.terms.secret import Secret

if TYPE_CHECKING:
    from pkcs11.types import Session

PIN = "MYELIN_PKCS11_PIN"
"""Variable with the PIN, where no file holds it."""
MODULE = "MYELIN_PKCS11_MODULE"
"""Variable with the path of the token's library, where the URI does not name it, or must not."""
ADVICE = "write pkcs11:token=NAME;object=NAME?module-path=/path/of/library.so"
WITH_HEAD = (67, 34)
"""Bytes of a point of P-256 and of Ed25519 as DER."""
_NAMES = ("token", "serial", "object", "id", "type", "manufacturer", "model")
_OPTIONS = ("module-path", "pin-source")
_ONE_AT_A_TIME = threading.Lock()
"""A library knows one login for each token and process, whoever asked for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPlace:
    """Where a key lies."""

    token: str = ""
    serial: str = ""
    label: str = ""
    id: bytes = b""
    module: str = ""
    """Path of the token's library; empty: what the machine is set up with."""
    pin_file: str = ""

    def __str__(self) -> str:
        """Without options: for messages."""
        names = {"token": self.token, "serial": self.serial, "object": self.label, "id": self.id.hex()}
        return "pkcs11:" + ";".join(f"{name}={value}" for name, value in names.items() if value)


def parse_uri(text: str, where: str) -> TokenPlace:
    """Read a PKCS#11 URI that lies at `where`, for messages, which never show it.

    Raises:
        DesiredStateError: It names no key, holds a PIN, or says something else that is not understood.
    """
    scheme, _, rest = text.strip().partition(":")
    path, _, query = rest.partition("?")
    if scheme != "pkcs11" or any(sign.isspace() for sign in rest):
        raise DesiredStateError(f"{where}: expected one PKCS#11 URI, got another text; {ADVICE}", reason="BadKeyUri")
    named = _attributes(path, ";", _NAMES, where)
    options = _attributes(query, "&", _OPTIONS, where)
    if not (named.get("token") or named.get("serial")) or not (named.get("object") or named.get("id")):
        text = f"{where}: expected token or serial, and object or id, got {', '.join(sorted(named)) or 'none of these'}"
        raise DesiredStateError(f"{text}; {ADVICE}", reason="BadKeyUri")
    source = options.get("pin-source", b"").decode()
    if source and not source.removeprefix("file:").startswith("/"):
        raise DesiredStateError(f"{where}: pin-source: expected file:/path, got something else", reason="BadKeyUri")
    return TokenPlace(
        token=named.get("token", b"").decode(),
        serial=named.get("serial", b"").decode(),
        label=named.get("object", b"").decode(),
        id=named.get("id", b""),
        module=options.get("module-path", b"").decode(),
        pin_file=_rooted(source),
    )


class TokenKey:
    """A P-256 or Ed25519 key in a token, which signs images. ECDSA in a token is mostly not deterministic.

    Threads may share it; one signs at a time.

    Args:
        place: Where the key lies.
        pin: Opens the token.
        where: What names the key, for messages.

    Raises:
        RefusedError: The token, the key or its public half is not there, the PIN is wrong, or PKCS#11 is not installed.
        TrustError: Public and private half do not fit.
        SilentError: The token does not answer.
    """

    __slots__ = ("_kind", "_pin", "_place", "_public", "_where")

    def __init__(self, place: TokenPlace, pin: Secret, where: str) -> None:
        self._place, self._pin, self._where = place, pin, where
        self._kind, self._public = self._read_public()
        if not ImageKey.verify(self._public, b"myelin", self.sign(b"myelin")):
            text = f"{where}: {place}: expected a public key that fits the private one of that name, got another"
            raise TrustError(text, reason="NoKey")

    def __repr__(self) -> str:
        return "TokenKey(***)"

    def __reduce__(self) -> str:
        raise TypeError("a private key is not pickled")

    @classmethod
    def load(cls, path: Path) -> TokenKey:
        """The key that a file with a URI names. Its PIN lies in `<name>.pin` beside it, in the URI's `pin-source`, or in
        `MYELIN_PKCS11_PIN`.

        Raises:
            DesiredStateError: The URI cannot be read.
            RefusedError: As the class; or there is no PIN, or others may read it.
            TrustError: As the class.
            SilentError: As the class.
        """
        try:
            place = parse_uri(path.read_text(), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise RefusedError(f"{path}: expected a PKCS#11 URI, got no file that can be read", reason="NoKey") from error
        beside = path.with_suffix(".pin")
        file = beside if beside.exists() else Path(place.pin_file) if place.pin_file else None
        pin = read_private(file).decode().strip() if file is not None else os.environ.get(PIN, "")
        if not pin:
            text = f"{path}: expected a PIN in {beside.name} beside it, in the URI's pin-source or in {PIN}, got none"
            raise RefusedError(text, reason="NoPin")
        return cls(place, Secret(pin), str(path))

    @classmethod
    def parse(cls, uri: str, pin: str, where: str) -> TokenKey:
        """The key that somebody named at `where` whom the machine does not belong to, with their PIN.

        Which library is loaded and which files are read is for the machine to say, so the URI must say neither.

        Raises:
            DesiredStateError: The URI cannot be read, or has options; or there is no PIN.
            RefusedError: As the class; or the machine has no library set up.
            TrustError: As the class.
            SilentError: As the class.
        """
        place = parse_uri(uri, where)
        if place.module or place.pin_file:
            text = (
                f"{where}: expected no module-path and no pin-source, which the controller's own {MODULE} and image.pin are for"
            )
            raise DesiredStateError(text, reason="BadKeyUri")
        if not pin.strip():
            raise DesiredStateError(f"{where}: expected the PIN under image.pin, got none", reason="NoPin")
        return cls(place, Secret(pin.strip()), where)

    @property
    def public_pem(self) -> str:
        """The public key, SubjectPublicKeyInfo as PEM."""
        return self._public

    @property
    def hint(self) -> str:
        """Base64 of the SHA-256 of the public key's DER: how cosign names a key."""
        return hint_of(self._public)

    def sign(self, data: bytes) -> bytes:
        """The signature over `data`: ECDSA (DER, SHA-256) or Ed25519.

        Raises:
            RefusedError: The token said no.
            SilentError: The token does not answer.
        """
        with self._session(self._pin) as session:
            from pkcs11 import Mechanism, ObjectClass

            key: Any = session.get_key(
                object_class=ObjectClass.PRIVATE_KEY, label=self._place.label or None, id=self._place.id or None
            )
            if self._kind == "ed25519":
                return bytes(key.sign(data, mechanism=Mechanism.EDDSA))
            return as_der(key.sign(hashlib.sha256(data).digest(), mechanism=Mechanism.ECDSA))

    def _read_public(self) -> tuple[ImageKeyKind, str]:
        with self._session(self._pin) as session:
            from pkcs11 import Attribute, KeyType, ObjectClass

            key: Any = session.get_key(
                object_class=ObjectClass.PUBLIC_KEY, label=self._place.label or None, id=self._place.id or None
            )
            kind: ImageKeyKind = "ed25519" if key.key_type is KeyType.EC_EDWARDS else "p256"
            point = bytes(key[Attribute.EC_POINT]) if key.key_type in (KeyType.EC, KeyType.EC_EDWARDS) else b""
        try:
            # CKA_EC_POINT is an octet string in DER; some tokens leave the two bytes of its head out.
            return kind, public_of_point(kind, point[2:] if len(point) in WITH_HEAD else point)
        except ValueError as error:
            text = f"{self._where}: {self._place}: expected a P-256 or Ed25519 key, got another kind"
            raise TrustError(text, reason="NoKey") from error

    @contextmanager
    def _session(self, pin: Secret) -> Iterator[Session]:
        try:
            import pkcs11
        except ImportError as error:
            text = f"{self._where}: expected PKCS#11, it is not installed; install the extra `pkcs11`"
            raise RefusedError(text, reason="NoPkcs11") from error
        path = self._place.module or os.environ.get(MODULE, "")
        if not path:
            raise RefusedError(f"{self._where}: expected the token's library in {MODULE}, got none", reason="NoModule")
        subject = f"{self._where}: {self._place}"
        with _ONE_AT_A_TIME:
            try:
                library = pkcs11.lib(path)
                wanted: dict[str, Any] = {"token_label": self._place.token or None}
                if self._place.serial:
                    wanted["token_serial"] = self._place.serial.encode()
                with library.get_token(**wanted).open(user_pin=pin.reveal()) as session:
                    yield session
            except (pkcs11.PinIncorrect, pkcs11.PinInvalid, pkcs11.PinLenRange) as error:
                # A token locks itself after some wrong ones, so nobody should try it again by themselves.
                raise RefusedError(f"{subject}: expected the right PIN, got another", reason="WrongPin") from error
            except pkcs11.PinLocked as error:
                raise RefusedError(f"{subject}: its PIN is locked after too many wrong ones", reason="WrongPin") from error
            except pkcs11.NoSuchToken as error:
                raise RefusedError(f"{subject}: expected that token, there is none", reason="NoToken") from error
            except pkcs11.NoSuchKey as error:
                text = f"{subject}: expected a private and a public key of that name, got none"
                raise RefusedError(text, reason="NoKey") from error
            except (pkcs11.MultipleObjectsReturned, pkcs11.MultipleTokensReturned) as error:
                raise RefusedError(f"{subject}: expected one, got several; name it by id or serial", reason="NoKey") from error
            except (pkcs11.MechanismInvalid, pkcs11.FunctionNotSupported) as error:
                raise RefusedError(f"{subject}: expected a key that signs, got one that may not", reason="NoKey") from error
            except pkcs11.PKCS11Error as error:
                text = f"{subject}: expected an answer of the token, got {type(error).__name__}"
                raise SilentError(text, reason="TokenSilent") from error


def _attributes(text: str, separator: str, known: tuple[str, ...], where: str) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for item in filter(None, text.split(separator)):
        name, _, value = item.partition("=")
        if name == "pin-value":
            text = f"{where}: expected no PIN in the URI, got one; put it into a file, and the file's name into pin-source"
            raise DesiredStateError(text, reason="BadKeyUri")
        if name not in known or name in found:
            raise DesiredStateError(f"{where}: expected {', '.join(known)}, each once, got {name[:40]!r}", reason="BadKeyUri")
        found[name] = unquote_to_bytes(value)
    return found


def _rooted(source: str) -> str:
    """The path in `file:/path` or `file:///path`."""
    path = source.removeprefix("file:")
    return path.removeprefix("//") if path.startswith("///") else path
