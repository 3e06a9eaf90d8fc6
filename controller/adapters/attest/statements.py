"""In-toto statements about images, and the Sigstore bundles that hold them. Signs and verifies nothing.

Source:
    in-toto attestation framework v1; DSSE protocol; Sigstore bundle v0.3.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from policies.canonical import canonical
from policies.errors import TrustError

BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
BUNDLES = (BUNDLE, "application/vnd.dev.sigstore.bundle+json;version=0.3")
"""What a bundle calls itself: two names for the same."""
IN_TOTO = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
STATEMENTS = (STATEMENT, "https://in-toto.io/Statement/v0.1")
"""The older one is what cosign 2 still attests with."""
SIGNATURE = "https://sigstore.dev/cosign/sign/v1"
PROVENANCE = "https://slsa.dev/provenance/v1"
SBOM = "https://cyclonedx.org/bom"
LARGEST_BUNDLE_BYTES = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """A bundle's envelope, before anybody verified it."""

    payload: bytes
    signature: bytes
    has_certificate: bool
    """Whether an identity signed, and not a key."""


def statement(digest: str, kind: str, predicate: Mapping[str, Any]) -> bytes:
    """A claim of some kind about an image; equal claims are equal bytes."""
    named = digest.removeprefix("sha256:")
    # The name says nothing; sigstore-python neither signs nor reads a statement without one.
    subject = [{"name": f"image-{named[:12]}", "digest": {"sha256": named}}]
    return canonical({"_type": STATEMENT, "subject": subject, "predicateType": kind, "predicate": predicate})


def bundle_of(payload: bytes, signature: bytes, hint: str) -> bytes:
    """A bundle with a statement that a key signed; the hint names the key."""
    return canonical(
        {
            "mediaType": BUNDLE,
            "verificationMaterial": {"publicKey": {"hint": hint}, "tlogEntries": []},
            "dsseEnvelope": {
                "payload": base64.b64encode(payload).decode(),
                "payloadType": IN_TOTO,
                "signatures": [{"sig": base64.b64encode(signature).decode()}],
            },
        }
    )


def read_bundle(data: bytes) -> Envelope:
    """A bundle's envelope.

    Raises:
        TrustError: It is another document, or holds anything but one signed statement.
    """
    try:
        if len(data) > LARGEST_BUNDLE_BYTES:
            raise ValueError
        value = json.loads(data)
        material, envelope = value["verificationMaterial"], value["dsseEnvelope"]
        signatures = envelope["signatures"]
        known = value["mediaType"] in BUNDLES and envelope["payloadType"] == IN_TOTO and len(signatures) == 1
        if not known or ("publicKey" in material) == ("certificate" in material or "x509CertificateChain" in material):
            raise ValueError
        return Envelope(
            payload=base64.b64decode(envelope["payload"], validate=True),
            signature=base64.b64decode(signatures[0]["sig"], validate=True),
            has_certificate="publicKey" not in material,
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise TrustError("a bundle: expected one signed statement, got another document", reason="BadBundle") from error


def claim_of(payload: bytes, digest: str) -> tuple[str, Any]:
    """Kind and predicate of a statement about an image; whoever calls has verified who signed it.

    Raises:
        TrustError: It is no statement, or one about another image.
    """
    try:
        value = json.loads(payload)
        if value["_type"] not in STATEMENTS:
            raise ValueError
        subjects = [item["digest"].get("sha256") for item in value["subject"]]
        # cosign 2 leaves an empty predicate out.
        kind, predicate = str(value["predicateType"]), value.get("predicate", {})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise TrustError("a bundle: expected an in-toto statement, got another document", reason="BadBundle") from error
    if digest.removeprefix("sha256:") not in subjects:
        raise TrustError("what is attached is about another image", reason="OtherImage")
    return kind, predicate


def encoding(payload: bytes) -> bytes:
    """What DSSE signs: type and payload with their lengths."""
    return b"DSSEv1 %d %s %d %s" % (len(IN_TOTO), IN_TOTO.encode(), len(payload), payload)
