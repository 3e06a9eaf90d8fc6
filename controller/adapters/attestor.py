"""Signatures and provenance of images: in-toto statements in Sigstore bundles, kept as OCI referrers.

The formats are cosign's (`https://sigstore.dev/cosign/sign/v1`, bundle v0.3) and SLSA v1, made with a key pair.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from typing import Any

from controller.adapters.keys import ImageKey
from controller.adapters.oci.layout import EMPTY, MANIFEST, Layout
from policies.canonical import canonical
from policies.errors import TrustError
from policies.terms.digest import Digest

BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
IN_TOTO = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
SIGNATURE = "https://sigstore.dev/cosign/sign/v1"
PROVENANCE = "https://slsa.dev/provenance/v1"


def sign_image(layout: Layout, digest: Digest, key: ImageKey, provenance: Mapping[str, Any]) -> None:
    """Attach the signature and the provenance of an image."""
    for kind, predicate in ((SIGNATURE, {}), (PROVENANCE, provenance)):
        statement = canonical(
            {
                "_type": STATEMENT,
                "subject": [{"digest": {"sha256": digest.removeprefix("sha256:")}}],
                "predicateType": kind,
                "predicate": predicate,
            }
        )
        _attach(layout, digest, kind, _bundle(key, statement))


def verify_image(layout: Layout, digest: str, public_keys: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """Check that a key of the project signed an image and said where it comes from.

    Returns:
        Predicate type -> predicate, of all that verified.

    Raises:
        TrustError: No signature or no provenance verifies.
    """
    found: dict[str, Mapping[str, Any]] = {}
    why = "nothing is attached to it"
    for referrer in layout.referrers(digest):
        if referrer.get("artifactType") != BUNDLE:
            continue
        try:
            statement = _verify(layout.get(referrer["layers"][0]["digest"]), public_keys)
        except (KeyError, ValueError, TypeError, IndexError) as error:
            why = f"a bundle cannot be read: {error}"
            continue
        except TrustError as error:
            why = error.message
            continue
        subjects = [item.get("digest", {}).get("sha256") for item in statement["subject"]]
        if digest.removeprefix("sha256:") in subjects:
            found[statement["predicateType"]] = statement["predicate"]
        else:
            why = "what is attached is about another image"
    for kind, word in ((SIGNATURE, "signature"), (PROVENANCE, "provenance")):
        if kind not in found:
            raise TrustError(f"image {digest}: expected a {word} by a key of the project, got none: {why}", reason="NotSigned")
    return found


def _attach(layout: Layout, digest: Digest, kind: str, bundle: bytes) -> None:
    layer = layout.descriptor(layout.put(bundle), BUNDLE)
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": BUNDLE,
        "config": layout.descriptor(layout.put(b"{}"), EMPTY),
        "layers": [layer],
        "subject": layout.descriptor(digest, MANIFEST),
        "annotations": {"dev.sigstore.bundle.content": "dsse-envelope", "dev.sigstore.bundle.predicateType": kind},
    }
    name = f"{digest.replace(':', '-')}.{kind.rsplit('/', 2)[-2]}"
    layout.tag(name, layout.put(canonical(manifest)), {"subject": digest, "artifactType": BUNDLE})


def _bundle(key: ImageKey, statement: bytes) -> bytes:
    signature = base64.b64encode(key.sign(_encoding(statement))).decode()
    return canonical(
        {
            "mediaType": BUNDLE,
            "verificationMaterial": {"publicKey": {"hint": key.hint}, "tlogEntries": []},
            "dsseEnvelope": {
                "payload": base64.b64encode(statement).decode(),
                "payloadType": IN_TOTO,
                "signatures": [{"sig": signature}],
            },
        }
    )


def _verify(bundle: bytes, public_keys: Sequence[str]) -> Mapping[str, Any]:
    envelope = json.loads(bundle)["dsseEnvelope"]
    try:
        payload = base64.b64decode(envelope["payload"], validate=True)
        signature = base64.b64decode(envelope["signatures"][0]["sig"], validate=True)
    except binascii.Error as error:
        raise TrustError("its bundle is damaged") from error
    if envelope["payloadType"] != IN_TOTO or len(envelope["signatures"]) != 1:
        raise TrustError("its bundle holds something else")
    if not any(ImageKey.verify(public, _encoding(payload), signature) for public in public_keys):
        raise TrustError("it is signed by another key")
    statement = json.loads(payload)
    if statement.get("_type") != STATEMENT:
        raise TrustError("its bundle holds something else")
    return dict(statement)


def _encoding(payload: bytes) -> bytes:
    """What DSSE signs: type and payload with their lengths."""
    return b"DSSEv1 %d %s %d %s" % (len(IN_TOTO), IN_TOTO.encode(), len(payload), payload)
