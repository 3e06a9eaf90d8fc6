"""The embedded certificate authority and its keys, and what its callers show: certificate requests, keys and signed tokens.

Everything derives from one seed: the authority's key, the one that vouches for its certificates (the certificate log's), the
transparency log's, and the short-lived ones that the controller signs with. No private key leaves it, and it knows no clock.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from controller.adapters.keys import keep_private, read_private
from policies.canonical import canonical
from policies.errors import RefusedError, TrustError
from policies.terms.secret import Secret

FORM = 1
SEED_BYTES = 32
YEARS = 10
"""How long the authority lasts; a seed of its own follows it, and both roots are trusted meanwhile."""
VALID_SECONDS = 600
"""How long a certificate holds, as Fulcio's do."""
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""Of P-256's group."""
ISSUER, ISSUER_OLD = "1.3.6.1.4.1.57264.1.8", "1.3.6.1.4.1.57264.1.1"
"""Extensions of Fulcio: who vouched for the identity, as UTF8String, and as bare bytes."""
STAMPS = "1.3.6.1.4.1.11129.2.4.2"
"""Extension with the certificate log's signed timestamps (RFC 6962, 3.3)."""
SMALLEST_RSA_BITS = 2048
PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey
_SHA256 = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
_ALWAYS_DIGITAL = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
_ALWAYS_AUTHORITY = x509.KeyUsage(False, False, False, False, False, True, True, False, False)


class SigningKey:
    """A P-256 key that never shows itself. Signing twice gives the same bytes."""

    __slots__ = ("_private", "public_der")

    def __init__(self, private: ec.EllipticCurvePrivateKey) -> None:
        self._private = private
        self.public_der: bytes = private.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def __repr__(self) -> str:
        return "SigningKey(***)"

    def __reduce__(self) -> str:
        raise TypeError("a private key is not pickled")

    @property
    def key_id(self) -> bytes:
        """SHA-256 of the public key's DER."""
        return hashlib.sha256(self.public_der).digest()

    @property
    def public_pem(self) -> str:
        """The public key as PEM."""
        return pem(self.public_der, "PUBLIC KEY")

    def sign(self, data: bytes) -> bytes:
        """The ECDSA signature (DER, SHA-256, RFC 6979) over `data`."""
        return self._private.sign(data, _SHA256)


class Authority:
    """Gives certificates for minutes, and holds the log's key.

    Args:
        seed: What all keys derive from.
        since: When it began.
    """

    def __init__(self, seed: Secret, since: datetime) -> None:
        self._seed = bytes.fromhex(seed.reveal())
        self.since = since
        self._root, self._certificates, self.log = (self._key(name) for name in ("authority", "certificates", "log"))
        self._root_private = self._root._private

    def __repr__(self) -> str:
        return "Authority(***)"

    def __reduce__(self) -> str:
        raise TypeError("a private key is not pickled")

    @classmethod
    def generate(cls, path: Path, since: datetime) -> Authority:
        """Make an authority and keep its seed at `path`, for its owner's eyes only.

        Raises:
            RefusedError: Something is there already, or the folder cannot be written.
        """
        since = since.astimezone(UTC).replace(microsecond=0)
        seed = secrets.token_hex(SEED_BYTES)
        keep_private(path, canonical({"form": FORM, "seed": seed, "since": since.isoformat()}) + b"\n")
        return cls(Secret(seed), since)

    @classmethod
    def load(cls, path: Path) -> Authority:
        """Read what `generate` made.

        Raises:
            RefusedError: The file cannot be read, or others may read it.
            TrustError: It is no such file.
        """
        return cls.parse(read_private(path), str(path))

    @classmethod
    def parse(cls, content: bytes, where: str) -> Authority:
        """Read what lies at `where`, for messages.

        Raises:
            TrustError: It is no seed of an authority.
        """
        try:
            said = json.loads(content)
            since = datetime.fromisoformat(said["since"])
            if said["form"] != FORM or len(bytes.fromhex(said["seed"])) != SEED_BYTES or since.tzinfo is None:
                raise ValueError
        except (ValueError, KeyError, TypeError):
            # What was read may be a secret, so nothing of it is quoted, not even as a cause.
            raise TrustError(f"{where}: expected the seed of a Sigstore authority, got something else", reason="NoKey") from None
        return cls(Secret(said["seed"]), since)

    @property
    def name(self) -> str:
        """What it is called: the start of its key's digest."""
        return self._root.key_id.hex()[:16]

    @property
    def certificate_der(self) -> bytes:
        """Its own certificate."""
        return self._certificate.public_bytes(serialization.Encoding.DER)

    @property
    def certificate_log_der(self) -> bytes:
        """Public key of the one that vouches for its certificates."""
        return self._certificates.public_der

    @property
    def ends_at(self) -> datetime:
        """When it gives no certificates any more."""
        return self._certificate.not_valid_after_utc

    def short_lived(self, slot: int) -> SigningKey:
        """The key that the controller signs with during a stretch of time."""
        return self._key(f"leaf {slot}")

    def issue(self, public_der: bytes, identity: str, issuer: str, at: datetime) -> bytes:
        """A certificate (DER) that a key is that identity's for the next minutes. Asked again for the same it gives the same.

        Args:
            public_der: The public key, as DER.
            identity: An address, or a URI; as `is_plain` says.
            issuer: Who vouched for that.
            at: From when on.

        Raises:
            RefusedError: The authority did not exist then.
        """
        at = at.astimezone(UTC).replace(microsecond=0)
        until = at + timedelta(seconds=VALID_SECONDS)
        if not self.since <= at or until > self.ends_at:
            raise RefusedError(f"certificate authority {self.name}: expected an instant in its {YEARS} years", reason="Ended")
        public = serialization.load_der_public_key(public_der)
        named = x509.UniformResourceIdentifier(identity) if ":" in identity else x509.RFC822Name(identity)
        said = b"\0".join((public_der, identity.encode(), issuer.encode(), at.isoformat().encode()))
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self._certificate.subject)
            .public_key(public)  # type: ignore[arg-type]
            .serial_number(self._serial(said))
            .not_valid_before(at)
            .not_valid_after(until)
            .add_extension(_ALWAYS_DIGITAL, critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier(hashlib.sha1(public_der, usedforsecurity=False).digest()), critical=False)
            .add_extension(self._known_as, critical=False)
            .add_extension(x509.SubjectAlternativeName([named]), critical=True)
            .add_extension(_extension(ISSUER_OLD, issuer.encode()), critical=False)
            .add_extension(_extension(ISSUER, _der(0x0C, issuer.encode())), critical=False)
        )
        stamps = _extension(STAMPS, self._stamps(self._signed(builder).tbs_certificate_bytes, at))
        whole = self._signed(builder.add_extension(stamps, critical=False))
        return whole.public_bytes(serialization.Encoding.DER)

    @cached_property
    def _certificate(self) -> x509.Certificate:
        public = self._root_private.public_key()
        names = [(NameOID.ORGANIZATION_NAME, "Myelin"), (NameOID.COMMON_NAME, f"authority {self.name}")]
        name = x509.Name([x509.NameAttribute(kind, text) for kind, text in names])
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(public)
            .serial_number(self._serial(b"authority"))
            .not_valid_before(self.since)
            .not_valid_after(self.since + timedelta(days=365 * YEARS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_ALWAYS_AUTHORITY, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(self._known_as, critical=False)
        )
        return self._signed(builder)

    @cached_property
    def _known_as(self) -> x509.AuthorityKeyIdentifier:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(self._root_private.public_key())

    def _signed(self, builder: x509.CertificateBuilder) -> x509.Certificate:
        return builder.sign(self._root_private, hashes.SHA256(), ecdsa_deterministic=True)

    def _stamps(self, body: bytes, at: datetime) -> bytes:
        """The list of the certificate log's signed timestamps, of which there is one, as the extension holds it.

        Source:
            RFC 6962, 3.2 and 3.3: version 1, precertificate, SHA-256 (4) with ECDSA (3).
        """
        milliseconds = int(at.timestamp()) * 1000
        signed = struct.pack("!BBQH", 0, 0, milliseconds, 1) + self._root.key_id + len(body).to_bytes(3, "big") + body + b"\0\0"
        signature = self._certificates.sign(signed)
        stamp = b"\0" + self._certificates.key_id + struct.pack("!QHBBH", milliseconds, 0, 4, 3, len(signature)) + signature
        for _ in range(2):
            stamp = struct.pack("!H", len(stamp)) + stamp
        return _der(0x04, stamp)

    def _serial(self, of: bytes) -> int:
        """A number of 19 bytes that nobody can foresee, and that is never 0."""
        return int.from_bytes(b"\1" + hmac.digest(self._seed, b"serial\0" + of, "sha256")[:18], "big")

    def _key(self, name: str) -> SigningKey:
        """A key of its own for each name: 48 bytes, so that what the group's order cuts off does not show."""
        info = f"myelin sigstore {FORM} {name}".encode()
        number = int.from_bytes(HKDFExpand(algorithm=hashes.SHA256(), length=48, info=info).derive(self._seed), "big")
        return SigningKey(ec.derive_private_key(number % (ORDER - 1) + 1, ec.SECP256R1()))


def is_plain(identity: str, issuer: str) -> bool:
    """Whether a certificate can say that, and whoever reads it finds nothing else than what it says."""
    return bool(identity and issuer) and all("!" <= letter <= "~" for letter in identity + issuer)


def pem(der: bytes, what: str) -> str:
    """DER as PEM."""
    text = base64.b64encode(der).decode("ascii")
    lines = [text[start : start + 64] for start in range(0, len(text), 64)]
    return "\n".join([f"-----BEGIN {what}-----", *lines, f"-----END {what}-----", ""])


def requested_key(request: bytes) -> bytes:
    """The public key (DER) of a certificate request (PEM), whose holder made it.

    Raises:
        ValueError: It is none, or somebody else made it.
    """
    try:
        asked = x509.load_pem_x509_csr(request)
        if not asked.is_signature_valid:
            raise ValueError("expected a certificate request signed with its own key")
        return _sound(asked.public_key())
    except (UnsupportedAlgorithm, InvalidSignature, TypeError) as error:
        raise ValueError("expected a certificate request for a sound key") from error


def public_key_of(text: bytes) -> bytes:
    """A public key (DER) given as PEM or DER.

    Raises:
        ValueError: It is none, or not sound.
    """
    try:
        is_pem = text.lstrip().startswith(b"-----BEGIN")
        found = serialization.load_pem_public_key(text) if is_pem else serialization.load_der_public_key(text)
    except (UnsupportedAlgorithm, TypeError) as error:
        raise ValueError("expected a public key") from error
    return _sound(found)


def is_signed(public_der: bytes, data: bytes, signature: bytes) -> bool:
    """Whether the holder of a public key signed `data`: ECDSA and RSA (PKCS #1 v1.5) with SHA-256, or Ed25519."""
    try:
        _check(serialization.load_der_public_key(public_der), data, signature)
    except (ValueError, UnsupportedAlgorithm, InvalidSignature):
        return False
    return True


def is_digest_signed(public_der: bytes, digest: bytes, signature: bytes) -> bool:
    """Whether the holder of a public key signed what has this SHA-256 digest; not to be known of an Ed25519 key."""
    try:
        public = serialization.load_der_public_key(public_der)
        if isinstance(public, ed25519.Ed25519PublicKey):
            return False
        _check(public, digest, signature, Prehashed(hashes.SHA256()))
    except (ValueError, UnsupportedAlgorithm, InvalidSignature):
        return False
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Certified:
    """What a certificate says."""

    der: bytes
    public_der: bytes
    begins_at: datetime
    ends_at: datetime


def certified(certificate_pem: bytes, authority: Authority) -> Certified:
    """What a certificate of this authority says.

    Raises:
        ValueError: It is none, or somebody else gave it.
    """
    try:
        found = x509.load_pem_x509_certificate(certificate_pem)
        found.verify_directly_issued_by(authority._certificate)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as error:
        raise ValueError("expected a certificate of this authority") from error
    return Certified(
        der=found.public_bytes(serialization.Encoding.DER),
        public_der=_sound(found.public_key()),
        begins_at=found.not_valid_before_utc,
        ends_at=found.not_valid_after_utc,
    )


def is_token_signed(algorithm: str, key: Mapping[str, Any], data: bytes, signature: bytes) -> bool:
    """Whether a JSON Web Key signed a token's bytes with RS256 or ES256; any other algorithm has no branch here.

    Source:
        RFC 7518, 3.3, 3.4, 6.2 and 6.3.
    """
    try:
        if algorithm == "RS256" and key.get("kty") == "RSA":
            numbers = rsa.RSAPublicNumbers(e=_number(key["e"]), n=_number(key["n"]))
            public: Any = numbers.public_key()
            _sound(public)
        elif algorithm == "ES256" and key.get("kty") == "EC" and key.get("crv") == "P-256" and len(signature) == 64:
            public = ec.EllipticCurvePublicNumbers(_number(key["x"]), _number(key["y"]), ec.SECP256R1()).public_key()
            signature = encode_dss_signature(int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))
        else:
            return False
        _check(public, data, signature)
    except (ValueError, KeyError, TypeError, UnsupportedAlgorithm, InvalidSignature):
        return False
    return True


def _check(public: Any, data: bytes, signature: bytes, by: hashes.SHA256 | Prehashed | None = None) -> None:
    by = by or hashes.SHA256()
    if isinstance(public, ec.EllipticCurvePublicKey):
        public.verify(signature, data, ec.ECDSA(by))
    elif isinstance(public, rsa.RSAPublicKey):
        public.verify(signature, data, padding.PKCS1v15(), by)
    elif isinstance(public, ed25519.Ed25519PublicKey):
        public.verify(signature, data)
    else:
        raise ValueError("expected an ECDSA, RSA or Ed25519 key")


def _sound(public: Any) -> bytes:
    if isinstance(public, rsa.RSAPublicKey) and public.key_size < SMALLEST_RSA_BITS:
        raise ValueError(f"expected an RSA key of at least {SMALLEST_RSA_BITS} bits")
    if isinstance(public, ec.EllipticCurvePublicKey) and not isinstance(public.curve, ec.SECP256R1):
        raise ValueError("expected an ECDSA key on P-256")
    if not isinstance(public, PublicKey):
        raise ValueError("expected an ECDSA, RSA or Ed25519 key")
    return public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _number(text: str) -> int:
    return int.from_bytes(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), "big")


def _extension(name: str, value: bytes) -> x509.UnrecognizedExtension:
    return x509.UnrecognizedExtension(x509.ObjectIdentifier(name), value)


def _der(tag: int, value: bytes) -> bytes:
    """A value in DER with its tag and length."""
    size = len(value)
    if size < 0x80:
        return bytes((tag, size)) + value
    said = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(said))) + said + value
