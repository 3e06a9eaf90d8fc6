"""Signatures and provenance of images: in-toto statements in Sigstore bundles, kept as OCI referrers.

The formats are cosign's (`https://sigstore.dev/cosign/sign/v1`, bundle v0.3) and SLSA v1, made with a key pair. For those
who cannot read bundles yet there is cosign's older signature too, under the tag `sha256-<hex>.sig`; we do not rely on it.
Signing again gives the same bytes.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from typing import Any

from controller.adapters.keys import ImageKey
from controller.adapters.oci.layout import CONFIG, EMPTY, MANIFEST, Layout
from policies.canonical import canonical
from policies.errors import TrustError
from policies.terms.digest import Digest

BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
IN_TOTO = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
SIGNATURE = "https://sigstore.dev/cosign/sign/v1"
PROVENANCE = "https://slsa.dev/provenance/v1"
SIMPLE_SIGNING = "application/vnd.dev.cosign.simplesigning.v1+json"
SIMPLE_SIGNATURE = "dev.cosignproject.cosign/signature"


def sign_image(layout: Layout, digest: Digest, key: ImageKey, provenance: Mapping[str, Any]) -> None:
    """Attach the signature and the provenance of an image, and push the image with them.

    Raises:
        TrustError: A blob of the image is missing.
        OutsideError: The registry said no or nothing; all that was done may be done again.
    """
    layout.push(digest)
    _sign_simply(layout, digest, key)
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


def _sign_simply(layout: Layout, digest: Digest, key: ImageKey) -> None:
    """Write what cosign 1 and 2, Kyverno, CRI-O and podman look for, beside what others signed.

    Source:
        The "simple signing" payload of cosign's SIGNATURE_SPEC.
    """
    payload = canonical(
        {
            "critical": {
                "identity": {"docker-reference": layout.reference},
                "image": {"docker-manifest-digest": digest},
                "type": "cosign container image signature",
            },
            "optional": None,
        }
    )
    signature = base64.b64encode(key.sign(payload)).decode("ascii")
    layer = {**layout.descriptor(layout.put(payload), SIMPLE_SIGNING), "annotations": {SIMPLE_SIGNATURE: signature}}
    tag = f"{digest.replace(':', '-')}.sig"
    layers = _signed_simply(layout, tag)
    if layer not in layers:
        layers.append(layer)
    unborn = "0001-01-01T00:00:00Z"
    config = {
        "architecture": "",
        "config": {},
        "created": unborn,
        "history": [{"created": unborn}] * len(layers),
        "os": "",
        "rootfs": {"type": "layers", "diff_ids": [item["digest"] for item in layers]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": layout.descriptor(layout.put(canonical(config)), CONFIG),
        "layers": layers,
    }
    made = layout.put(canonical(manifest))
    layout.tag(tag, made, {"subject": digest})
    layout.push(made, tags=(tag,))


def _signed_simply(layout: Layout, tag: str) -> list[dict[str, Any]]:
    """The signatures that are there; what is none is not carried on."""
    found = layout.resolve(tag)
    try:
        listed = layout.manifest(found)["layers"] if found is not None else []
        return [dict(item) for item in listed if item["mediaType"] == SIMPLE_SIGNING and SIMPLE_SIGNATURE in item["annotations"]]
    except (TrustError, ValueError, KeyError, TypeError):
        return []


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
    made = layout.put(canonical(manifest))
    layout.tag(name, made, {"subject": digest, "artifactType": BUNDLE})
    layout.push(made)


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
