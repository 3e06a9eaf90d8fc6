"""A Sigstore instance of our own, in memory: it vouches for whomever it is told to, and signs as gitsign does."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from pyasn1.codec.der.decoder import decode
from pyasn1.codec.der.encoder import encode
from pyasn1.type import univ, useful
from pyasn1_modules import rfc5280, rfc5652

from controller.adapters.clock import SystemClock

ISSUER = "https://issuer.example"
ORIGIN = "log.example"
SHA256, ECDSA = ec.ECDSA(hashes.SHA256()), "1.2.840.10045.4.3.2"


def _der(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _text64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@dataclass
class Instance:
    """A certificate authority (Fulcio), its certificates' log, and a log of signatures (Rekor)."""

    now: datetime = field(default_factory=lambda: SystemClock().now().replace(microsecond=0))
    _authority: ec.EllipticCurvePrivateKey = field(default_factory=_new_key)
    _certificates: ec.EllipticCurvePrivateKey = field(default_factory=_new_key)
    _log: ec.EllipticCurvePrivateKey = field(default_factory=_new_key)
    _leaves: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "an authority")])
        key = self._authority
        self._ca = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self.now - timedelta(days=365))
            .not_valid_after(self.now + timedelta(days=365))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(x509.KeyUsage(False, False, False, False, False, True, True, False, False), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )

    def root(self) -> str:
        """Its trusted root, as JSON."""
        always = {"start": "2020-01-01T00:00:00Z"}

        def log(key: ec.EllipticCurvePrivateKey, url: str) -> dict[str, object]:
            public = {"rawBytes": _text64(_der(key)), "keyDetails": "PKIX_ECDSA_P256_SHA_256", "validFor": always}
            known = {"keyId": _text64(hashlib.sha256(_der(key)).digest())}
            return {"baseUrl": url, "hashAlgorithm": "SHA2_256", "publicKey": public, "logId": known}

        chain = {"certificates": [{"rawBytes": _text64(self._ca.public_bytes(serialization.Encoding.DER))}]}
        authority = {
            "subject": {"organization": "", "commonName": "an authority"},
            "uri": "https://authority.example",
            "certChain": chain,
            "validFor": always,
        }
        return json.dumps(
            {
                "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
                "tlogs": [log(self._log, f"https://{ORIGIN}")],
                "ctlogs": [log(self._certificates, "https://certificates.example")],
                "certificateAuthorities": [authority],
                "timestampAuthorities": [],
            }
        )

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
        key = _new_key()
        certificate = self._issue(key, identity, issuer)
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

    def _issue(self, key: ec.EllipticCurvePrivateKey, identity: str, issuer: str) -> x509.Certificate:
        name = x509.UniformResourceIdentifier(identity) if "://" in identity else x509.RFC822Name(identity)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self._ca.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self.now)
            .not_valid_after(self.now + timedelta(minutes=10))
            .add_extension(x509.KeyUsage(True, False, False, False, False, False, False, False, False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._authority.public_key()), critical=False)
            .add_extension(x509.SubjectAlternativeName([name]), critical=True)
            .add_extension(_extension("1.3.6.1.4.1.57264.1.1", issuer.encode()), critical=False)
            .add_extension(_extension("1.3.6.1.4.1.57264.1.8", b"\x0c" + bytes([len(issuer)]) + issuer.encode()), critical=False)
        )
        body = builder.sign(self._authority, hashes.SHA256()).tbs_certificate_bytes
        at = int(self.now.timestamp() * 1000)
        signed = struct.pack("!BBQH", 0, 0, at, 1) + hashlib.sha256(_der(self._authority)).digest()
        signed += len(body).to_bytes(3, "big") + body + b"\0\0"
        proof = self._certificates.sign(signed, SHA256)
        stamp = b"\0" + hashlib.sha256(_der(self._certificates)).digest() + struct.pack("!QH", at, 0)
        stamp += b"\x04\x03" + struct.pack("!H", len(proof)) + proof
        for _ in range(2):
            stamp = struct.pack("!H", len(stamp)) + stamp
        octets = encode(univ.OctetString(stamp))
        return builder.add_extension(_extension("1.3.6.1.4.1.11129.2.4.2", octets), critical=False).sign(
            self._authority, hashes.SHA256()
        )

    def _add(self, artifact: bytes, signature: bytes, certificate: x509.Certificate, at: datetime) -> bytes:
        """Take a signature into the log; its entry as protobuf, without the body, as gitsign embeds it."""
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        spec = {
            "data": {"hash": {"algorithm": "sha256", "value": hashlib.sha256(artifact).hexdigest()}},
            "signature": {"content": _text64(signature), "publicKey": {"content": _text64(pem)}},
        }
        body = _canonical({"apiVersion": "0.0.1", "kind": "hashedrekord", "spec": spec})
        self._leaves.append(hashlib.sha256(b"\0" + body).digest())
        index, size = len(self._leaves) - 1, len(self._leaves)
        root, log_id, seconds = _root(self._leaves), hashlib.sha256(_der(self._log)).digest(), int(at.timestamp())
        note = f"{ORIGIN}\n{size}\n{_text64(root)}\n"
        checkpoint = f"{note}\n\u2014 {ORIGIN} {_text64(log_id[:4] + self._log.sign(note.encode(), SHA256))}\n"
        promise = _canonical({"body": _text64(body), "integratedTime": seconds, "logID": log_id.hex(), "logIndex": index})
        proof = _field(1, index) + _field(2, root) + _field(3, size)
        proof += b"".join(_field(4, item) for item in _path(index, self._leaves)) + _field(5, _field(1, checkpoint.encode()))
        return (
            _field(1, index)
            + _field(2, _field(1, log_id))
            + _field(3, _field(1, b"hashedrekord") + _field(2, b"0.0.1"))
            + _field(4, seconds)
            + _field(5, _field(1, self._log.sign(promise, SHA256)))
            + _field(6, proof)
        )


def _extension(name: str, value: bytes) -> x509.UnrecognizedExtension:
    return x509.UnrecognizedExtension(x509.ObjectIdentifier(name), value)


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    found = b""
    while value > 0x7F:
        found, value = found + bytes([value & 0x7F | 0x80]), value >> 7
    return found + bytes([value])


def _root(leaves: list[bytes]) -> bytes:
    if len(leaves) == 1:
        return leaves[0]
    half = 1 << ((len(leaves) - 1).bit_length() - 1)
    return hashlib.sha256(b"\1" + _root(leaves[:half]) + _root(leaves[half:])).digest()


def _path(index: int, leaves: list[bytes]) -> list[bytes]:
    if len(leaves) == 1:
        return []
    half = 1 << ((len(leaves) - 1).bit_length() - 1)
    if index < half:
        return [*_path(index, leaves[:half]), _root(leaves[half:])]
    return [*_path(index - half, leaves[half:]), _root(leaves[:half])]


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


def _message(certificate: x509.Certificate, attributes: rfc5652.SignedAttributes, signature: bytes, entry: bytes) -> bytes:
    parsed, _ = decode(certificate.public_bytes(serialization.Encoding.DER), asn1Spec=rfc5280.Certificate())
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
