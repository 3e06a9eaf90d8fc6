"""The door to Sigstore: signatures of commits and tags in gitsign's format, made, and checked offline against a trusted root.

Such a signature is a detached CMS message. It holds the certificate that Fulcio gave for an identity, and, where gitsign
runs with `rekorMode = offline`, the transparency log's entry. It never asks a server: what it cannot check alone is refused.
"""

from __future__ import annotations

import base64
import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from controller.adapters.signatures.logentry import entry_json, entry_message
from policies.errors import TrustError
from policies.terms.revision import Signature

if TYPE_CHECKING:
    from sigstore.models import TrustedRoot
    from sigstore.verify import Verifier

BEGIN = "-----BEGIN SIGNED MESSAGE-----"
END = "-----END SIGNED MESSAGE-----"
LARGEST_CHARACTERS = 65536
"""Of an armored signature."""
PUBLIC_GOOD = "https://tuf-repo-cdn.sigstore.dev"
"""Whose root sigstore-python brings along."""
LOG_ENTRY = "1.3.6.1.4.1.57264.3.1"
"""Unsigned attribute in which gitsign embeds the log's entry."""
ISSUER, ISSUER_OLD = "1.3.6.1.4.1.57264.1.8", "1.3.6.1.4.1.57264.1.1"
"""Extensions of Fulcio: who vouched for the identity, as UTF8String, and as bare bytes before that."""
SHA256, ECDSA_SHA256 = "2.16.840.1.101.3.4.2.1", "1.2.840.10045.4.3.2"
HOW_TO_EMBED = "set `git config gitsign.rekorMode offline`, and sign it again"
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"


class Gitsign:
    """Checks signatures of one Sigstore instance.

    Args:
        root: Its trusted root as JSON; empty: that of the public good instance, as sigstore-python brings it.
    """

    def __init__(self, root: str = "") -> None:
        self._root = root

    @cached_property
    def _verifier(self) -> Verifier:
        from sigstore.verify import Verifier

        return Verifier(trusted_root=trusted_root(self._root))

    def check_root(self) -> None:
        """See that the trusted root can be read.

        Raises:
            TrustError: It cannot.
        """
        trusted_root(self._root)

    def read(self, armored: str, data: bytes) -> Signature:
        """What an armored signature says of `data`. Valid means: by the root, that identity signed this, at that time."""
        from sigstore.models import Bundle
        from sigstore.verify.policy import AllOf, AnyOf, Identity, OIDCIssuer, OIDCIssuerV2

        named, key = "", ""
        try:
            if len(armored) > LARGEST_CHARACTERS:
                raise ValueError(f"it has more than {LARGEST_CHARACTERS} characters")
            message = _Message(armored)
            named, issuer = message.identity
            key = f"{named} {issuer}"
            message.check(data)
            bundle = Bundle.from_json(json.dumps(message.bundle))
            # Whether that identity may sign is decided elsewhere; here it only has to be proven.
            policy = AllOf([Identity(identity=named), AnyOf([OIDCIssuer(issuer), OIDCIssuerV2(issuer)])])
            self._verifier.verify_artifact(message.attributes, bundle, policy)
            at = datetime.fromtimestamp(int(message.entry["integratedTime"]), UTC)
        except TrustError:
            raise
        except Exception as error:  # noqa: BLE001  whatever a crafted message makes the libraries raise, it does not count
            who = f" of {named}" if named else ""
            fault = f"the Sigstore signature{who} does not hold: {first_line(error)}"
            return Signature(kind="sigstore", key=key, fingerprint=named, valid=False, fault=fault)
        return Signature(kind="sigstore", key=key, fingerprint=f"{named} ({issuer})", valid=True, at=at)


class _Message:
    """A CMS message: one signer, one certificate that is theirs, signed attributes, and the log's entry.

    Raises:
        ValueError: It is another; from a library, also other errors.
    """

    def __init__(self, armored: str) -> None:
        from pyasn1.codec.der.decoder import decode  # type: ignore[import-untyped]
        from pyasn1.codec.der.encoder import encode  # type: ignore[import-untyped]
        from pyasn1_modules import rfc5280, rfc5652  # type: ignore[import-untyped]

        lines = [line.strip() for line in armored.strip().splitlines()]
        if len(lines) < 3 or lines[0] != BEGIN or lines[-1] != END:
            raise ValueError("expected one signed message")
        outer, rest = decode(base64.b64decode("".join(lines[1:-1]), validate=True), asn1Spec=rfc5652.ContentInfo())
        if rest or outer["contentType"] != rfc5652.id_signedData:
            raise ValueError("expected signed data")
        signed, rest = decode(outer["content"], asn1Spec=rfc5652.SignedData())
        content = signed["encapContentInfo"]
        if rest or content["eContentType"] != rfc5652.id_data or content["eContent"].isValue:
            raise ValueError("expected a detached signature")
        if len(signed["signerInfos"]) != 1:
            raise ValueError("expected one signer")
        signer = signed["signerInfos"][0]
        algorithms = str(signer["digestAlgorithm"]["algorithm"]), str(signer["signatureAlgorithm"]["algorithm"])
        if algorithms != (SHA256, ECDSA_SHA256):
            raise ValueError("expected ECDSA with SHA-256")
        if not signer["signedAttrs"].isValue:
            raise ValueError("expected signed attributes")
        attributes = rfc5652.SignedAttributes()
        attributes.extend(signer["signedAttrs"])
        self.attributes: bytes = encode(attributes)
        """What is signed: the attributes, as a set (RFC 5652, 5.4)."""
        self._signed, self._unsigned = _by_type(signer["signedAttrs"]), _by_type(signer["unsignedAttrs"])
        self._signature = bytes(signer["signature"])
        issuer_and_serial = signer["sid"]["issuerAndSerialNumber"]
        own = [
            choice["certificate"]
            for choice in signed["certificates"]
            if choice.getName() == "certificate"
            and choice["certificate"]["tbsCertificate"]["serialNumber"] == issuer_and_serial["serialNumber"]
            and encode(choice["certificate"]["tbsCertificate"]["issuer"]) == encode(issuer_and_serial["issuer"])
        ]
        if len(own) != 1:
            raise ValueError("expected the signer's certificate")
        self._certificate: bytes = encode(own[0])
        self.identity: tuple[str, str] = _identity(
            {str(item["extnID"]): bytes(item["extnValue"]) for item in own[0]["tbsCertificate"]["extensions"]},
            san=str(rfc5280.id_ce_subjectAltName),
        )
        """Whom the certificate names, and who vouched for that."""

    def check(self, data: bytes) -> None:
        """See that the signed attributes are those of `data`."""
        from pyasn1.codec.der.decoder import decode
        from pyasn1_modules import rfc5652

        kind, _ = decode(self._signed[str(rfc5652.id_contentType)])
        digest, _ = decode(self._signed[str(rfc5652.id_messageDigest)])
        if kind != rfc5652.id_data or bytes(digest) != hashlib.sha256(data).digest():
            raise ValueError("what it signs was changed afterwards")

    @cached_property
    def entry(self) -> dict[str, Any]:
        """The log's entry, as JSON."""
        from pyasn1.codec.der.decoder import decode

        if LOG_ENTRY not in self._unsigned:
            raise ValueError(f"the log's entry is not in it, so it cannot be checked offline; {HOW_TO_EMBED}")
        value, _ = decode(self._unsigned[LOG_ENTRY])
        pem = base64.b64encode(self._certificate).decode("ascii")
        lines = [pem[start : start + 64] for start in range(0, len(pem), 64)]
        text = "\n".join(["-----BEGIN CERTIFICATE-----", *lines, "-----END CERTIFICATE-----", ""])
        body = {
            "apiVersion": "0.0.1",
            "kind": "hashedrekord",
            "spec": {
                "data": {"hash": {"algorithm": "sha256", "value": hashlib.sha256(self.attributes).hexdigest()}},
                "signature": {"content": _text64(self._signature), "publicKey": {"content": _text64(text.encode())}},
            },
        }
        return entry_json(bytes(value), json.dumps(body, sort_keys=True, separators=(",", ":")).encode())

    @property
    def bundle(self) -> dict[str, Any]:
        """The same as a Sigstore bundle, whose artifact is the signed attributes."""
        digest = hashlib.sha256(self.attributes).digest()
        return {
            "mediaType": BUNDLE,
            "verificationMaterial": {"certificate": {"rawBytes": _text64(self._certificate)}, "tlogEntries": [self.entry]},
            "messageSignature": {
                "messageDigest": {"algorithm": "SHA2_256", "digest": _text64(digest)},
                "signature": _text64(self._signature),
            },
        }


def signed_message(data: bytes, at: datetime, sign: Callable[[bytes], Mapping[str, Any]]) -> str:
    """What gitsign would write for `data`, with the log's entry embedded.

    Args:
        data: A commit or tag without its signature.
        at: Now; the log says when it was in truth.
        sign: Signs bytes by a Sigstore instance; a bundle (v0.3, `hashedrekord`) with the certificate and the log's entry.
    """
    from pyasn1.codec.der.decoder import decode
    from pyasn1.codec.der.encoder import encode
    from pyasn1.type import univ, useful  # type: ignore[import-untyped]
    from pyasn1_modules import rfc5280, rfc5652

    attributes = rfc5652.SignedAttributes()
    attributes.extend(
        [
            _attribute(rfc5652.id_contentType, rfc5652.id_data),
            _attribute(rfc5652.id_signingTime, useful.UTCTime(at.astimezone(UTC).strftime("%y%m%d%H%M%SZ"))),
            _attribute(rfc5652.id_messageDigest, univ.OctetString(hashlib.sha256(data).digest())),
        ]
    )
    bundle = sign(encode(attributes))
    material = bundle["verificationMaterial"]
    certificate, _ = decode(base64.b64decode(material["certificate"]["rawBytes"]), asn1Spec=rfc5280.Certificate())
    signer = rfc5652.SignerInfo()
    signer["version"] = 1
    signer["sid"]["issuerAndSerialNumber"]["issuer"] = certificate["tbsCertificate"]["issuer"]
    signer["sid"]["issuerAndSerialNumber"]["serialNumber"] = certificate["tbsCertificate"]["serialNumber"]
    signer["digestAlgorithm"]["algorithm"] = SHA256
    signer["signedAttrs"].extend(attributes)
    signer["signatureAlgorithm"]["algorithm"] = ECDSA_SHA256
    signer["signature"] = base64.b64decode(bundle["messageSignature"]["signature"])
    entry = univ.OctetString(entry_message(material["tlogEntries"][0]))
    signer["unsignedAttrs"].extend([_attribute(univ.ObjectIdentifier(LOG_ENTRY), entry)])
    signed = rfc5652.SignedData()
    signed["version"] = 1
    signed["digestAlgorithms"].append(signer["digestAlgorithm"])
    signed["encapContentInfo"]["eContentType"] = rfc5652.id_data
    choice = rfc5652.CertificateChoices()
    choice["certificate"] = certificate
    signed["certificates"].append(choice)
    signed["signerInfos"].append(signer)
    outer = rfc5652.ContentInfo()
    outer["contentType"] = rfc5652.id_signedData
    outer["content"] = univ.Any(encode(signed))
    text = _text64(encode(outer))
    return "\n".join([BEGIN, *(text[start : start + 64] for start in range(0, len(text), 64)), END, ""])


def _attribute(name: Any, value: Any) -> Any:
    from pyasn1.codec.der.encoder import encode
    from pyasn1.type import univ
    from pyasn1_modules import rfc5652

    made = rfc5652.Attribute()
    made["attrType"] = name
    made["attrValues"].extend([univ.Any(encode(value))])
    return made


def _by_type(attributes: Any) -> dict[str, bytes]:
    """Type of an attribute -> its only value, as DER."""
    found: dict[str, bytes] = {}
    for attribute in attributes if attributes.isValue else ():
        name, values = str(attribute["attrType"]), attribute["attrValues"]
        if name in found or len(values) != 1:
            raise ValueError(f"expected attribute {name} once")
        found[name] = bytes(values[0])
    return found


def _identity(extensions: dict[str, bytes], *, san: str) -> tuple[str, str]:
    from pyasn1.codec.der.decoder import decode
    from pyasn1_modules import rfc5280

    names, rest = decode(extensions[san], asn1Spec=rfc5280.SubjectAltName())
    if rest or len(names) != 1 or names[0].getName() not in ("rfc822Name", "uniformResourceIdentifier"):
        raise ValueError("expected a certificate for one address or URI")
    name = str(names[0].getComponent())
    if ISSUER in extensions:
        value, _ = decode(extensions[ISSUER])
        issuer = str(value)
    else:
        issuer = extensions[ISSUER_OLD].decode()
    if not name or not issuer or any(letter.isspace() or not letter.isprintable() for letter in name + issuer):
        raise ValueError("expected an identity and an issuer without spaces")
    return name, issuer


def trusted_root(text: str) -> TrustedRoot:
    """The trusted root in a text; empty: that of the public good instance.

    Raises:
        TrustError: It is none.
    """
    from importlib import resources
    from urllib.parse import quote

    from sigstore.models import TrustedRoot

    if not text:
        root = resources.files("sigstore._store").joinpath(quote(PUBLIC_GOOD, safe=""), "trusted_root.json")
        with resources.as_file(root) as path:
            return TrustedRoot.from_file(str(path))
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(text)
        file.flush()
        try:
            return TrustedRoot.from_file(file.name)
        except Exception as error:
            why = first_line(error)
            text = f"sigstoreRoot: expected a trusted root of Sigstore as JSON, got another text ({why})"
            raise TrustError(text, reason="NoRoot") from error


def _text64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def first_line(error: Exception) -> str:
    """What an error says, on one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].strip().rstrip(".")[:200]
