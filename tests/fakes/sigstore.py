"""The embedded Sigstore in memory, made to vouch for whomever it is told to, and to sign as gitsign does."""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pyasn1.codec.der.decoder import decode
from pyasn1.codec.der.encoder import encode
from pyasn1.type import univ, useful
from pyasn1_modules import rfc5280, rfc5652

from controller.adapters.clock import SystemClock
from controller.adapters.sigstore.authority import Authority
from controller.adapters.sigstore.embedded import Embedded, artifact_body
from controller.adapters.sigstore.leaves import MemoryLeaves
from controller.adapters.sigstore.log import Logged
from policies.terms.secret import Secret

ISSUER = "https://issuer.example"
SHA256, ECDSA = ec.ECDSA(hashes.SHA256()), "1.2.840.10045.4.3.2"


@dataclass
class Instance:
    """A certificate authority (Fulcio), its certificates' log, and a log of signatures (Rekor)."""

    now: datetime = field(default_factory=lambda: SystemClock().now().replace(microsecond=0))

    def __post_init__(self) -> None:
        self.authority = Authority(Secret(secrets.token_hex(32)), self.now - timedelta(days=365))
        self._log_clock = self.now
        self._inner = Embedded(self.authority, MemoryLeaves(), identity="https://nobody", now=lambda: self._log_clock)

    def root(self) -> str:
        """Its trusted root, as JSON."""
        return self._inner.trusted_root()

    def sign(
        self,
        data: bytes,
        identity: str,
        *,
        issuer: str = ISSUER,
        logged_after: timedelta = timedelta(minutes=1),
        embed: bool = True,
        body_of: bytes = b"",
    ) -> str:
        """What gitsign writes for `data`.

        Args:
            data: A commit or tag without its signature.
            identity: An address or a URI.
            issuer: Who vouched for it.
            logged_after: When the log took it in, after the certificate's beginning; that ends after 10 minutes.
            embed: Whether the log's entry is embedded, as gitsign does where `rekorMode` is `offline`.
            body_of: Embeds the entry of this instead.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        public = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        certificate = self.authority.issue(public, identity, issuer, self.now)
        attributes = _attributes(data, self.now)
        signature = key.sign(encode(attributes), SHA256)
        entry = b""
        if embed:
            logged = encode(_attributes(body_of, self.now)) if body_of else encode(attributes)
            entry = self._add(logged, key.sign(logged, SHA256) if body_of else signature, certificate, self.now + logged_after)
        message = _message(certificate, attributes, signature, entry)
        text = base64.b64encode(message).decode()
        lines = [text[start : start + 64] for start in range(0, len(text), 64)]
        return "\n".join(["-----BEGIN SIGNED MESSAGE-----", *lines, "-----END SIGNED MESSAGE-----", ""])

    def _add(self, artifact: bytes, signature: bytes, certificate: bytes, at: datetime) -> bytes:
        """Take a signature into the log; its entry as protobuf, without the body, as gitsign embeds it."""
        self._log_clock = at
        (logged,) = self._inner.log.add([artifact_body(hashlib.sha256(artifact).digest(), signature, certificate)])
        return _protobuf(logged)


def _protobuf(logged: Logged) -> bytes:
    proof = _field(1, logged.place) + _field(2, logged.root) + _field(3, logged.size)
    proof += b"".join(_field(4, item) for item in logged.proof) + _field(5, _field(1, logged.checkpoint.encode()))
    return (
        _field(1, logged.place)
        + _field(2, _field(1, logged.log_id))
        + _field(3, _field(1, b"hashedrekord") + _field(2, b"0.0.1"))
        + _field(4, logged.leaf.at_seconds)
        + _field(5, _field(1, logged.promise))
        + _field(6, proof)
    )


def _field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    found = b""
    while value > 0x7F:
        found, value = found + bytes([value & 0x7F | 0x80]), value >> 7
    return found + bytes([value])


def _attribute(name: univ.ObjectIdentifier, values: Iterable[object]) -> rfc5652.Attribute:
    made = rfc5652.Attribute()
    made["attrType"] = name
    made["attrValues"].extend([univ.Any(encode(value)) for value in values])
    return made


def _attributes(data: bytes, at: datetime) -> rfc5652.SignedAttributes:
    made = rfc5652.SignedAttributes()
    made.extend(
        [
            _attribute(rfc5652.id_contentType, [rfc5652.id_data]),
            _attribute(rfc5652.id_signingTime, [useful.UTCTime(at.strftime("%y%m%d%H%M%SZ"))]),
            _attribute(rfc5652.id_messageDigest, [univ.OctetString(hashlib.sha256(data).digest())]),
        ]
    )
    return made


def _message(certificate: bytes, attributes: rfc5652.SignedAttributes, signature: bytes, entry: bytes) -> bytes:
    parsed, _ = decode(certificate, asn1Spec=rfc5280.Certificate())
    signer = rfc5652.SignerInfo()
    signer["version"] = 1
    signer["sid"]["issuerAndSerialNumber"]["issuer"] = parsed["tbsCertificate"]["issuer"]
    signer["sid"]["issuerAndSerialNumber"]["serialNumber"] = parsed["tbsCertificate"]["serialNumber"]
    signer["digestAlgorithm"]["algorithm"] = "2.16.840.1.101.3.4.2.1"
    signer["signedAttrs"].extend(attributes)
    signer["signatureAlgorithm"]["algorithm"] = ECDSA
    signer["signature"] = signature
    if entry:
        name = univ.ObjectIdentifier("1.3.6.1.4.1.57264.3.1")
        signer["unsignedAttrs"].extend([_attribute(name, [univ.OctetString(entry)])])
    signed = rfc5652.SignedData()
    signed["version"] = 1
    signed["digestAlgorithms"].append(signer["digestAlgorithm"])
    signed["encapContentInfo"]["eContentType"] = rfc5652.id_data
    choice = rfc5652.CertificateChoices()
    choice["certificate"] = parsed
    signed["certificates"].append(choice)
    signed["signerInfos"].append(signer)
    outer = rfc5652.ContentInfo()
    outer["contentType"] = rfc5652.id_signedData
    outer["content"] = univ.Any(encode(signed))
    return bytes(encode(outer))
