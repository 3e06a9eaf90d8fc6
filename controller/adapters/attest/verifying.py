"""One entry point for all that is loaded: is an image whole, did somebody sign it who is trusted, and where is it from?

An empty trust denies. cosign's older signature under a tag is never relied on: it says nothing of where an image comes from.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from controller.adapters.attest.statements import (
    BUNDLE,
    LARGEST_BUNDLE_BYTES,
    PROVENANCE,
    SIGNATURE,
    claim_of,
    encoding,
    read_bundle,
)
from controller.adapters.keys import ImageKey, hint_of
from controller.adapters.oci.layout import Layout
from policies.errors import TrustError
from policies.provenance import fault_of

REQUIRED = {SIGNATURE: "signature", PROVENANCE: "provenance"}
MOST_REFERRERS = 1000
"""Whoever may write to a registry may attach to an image what they like; more is not read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Somebody whom a Sigstore instance vouches for."""

    identity: str
    issuer: str
    root: str = ""
    """The instance's trusted root as JSON; empty: that of the public good instance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageTrust:
    """Whose images may be loaded; empty: nobody's."""

    keys: tuple[str, ...] = ()
    """Public keys, PEM."""
    identities: tuple[Identity, ...] = ()

    @property
    def names(self) -> frozenset[str]:
        """What those who are trusted are told by: hints of keys, `identity issuer`."""
        return frozenset((*map(hint_of, self.keys), *(f"{item.identity} {item.issuer}" for item in self.identities)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Attested:
    """What is said of an image by those who are trusted."""

    predicates: Mapping[str, Any] = field(default_factory=dict)
    """Predicate type -> predicate; of several, that of the newest build."""
    signers: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Predicate type -> who says so: hints of keys, `identity issuer`."""
    claims: tuple[tuple[str, str, Any], ...] = ()
    """(predicate type, who, predicate) of all of them."""
    why_not: str = "nothing is attached to it"
    """Why the last thing that did not count does not."""


class Attachments(Protocol):
    """Where an image and what is attached to it lie."""

    def get(self, digest: str) -> bytes:
        """A blob, checked by its digest."""
        ...

    def referrers(self, digest: str) -> list[dict[str, Any]]:
        """Manifests whose subject is `digest`."""
        ...


def verify_image(layout: Layout, digest: str, trust: ImageTrust) -> dict[str, Any]:
    """Check that an image is whole, that somebody who is trusted signed it, and that its provenance fits.

    Returns:
        Predicate type -> predicate, of all that is attached and verified.

    Raises:
        TrustError: A blob is missing or changed; or no signature or no provenance holds; the message says why.
        OutsideError: The registry said no or nothing.
    """
    return dict(attested(layout, digest, trust).predicates)


def attested(layout: Layout, digest: str, trust: ImageTrust) -> Attested:
    """The same as `verify_image`, with who said it.

    Raises:
        TrustError: As `verify_image`.
        OutsideError: As `verify_image`.
    """
    check_content(layout, digest)
    found = examine(layout, digest, trust)
    for kind, word in REQUIRED.items():
        if kind not in found.predicates:
            text = f"image {digest}: expected a {word} by a key of the project, got none"
            raise TrustError(f"{text}: {found.why_not}", reason="NotSigned")
    return found


def check_content(layout: Layout, digest: str) -> None:
    """Check the blobs that an image, or an index of images, names.

    Raises:
        TrustError: One is missing or changed.
    """
    try:
        listed = layout.manifest(digest).get("manifests")
        children = [str(item["digest"]) for item in listed] if listed is not None else None
    except (ValueError, KeyError, TypeError) as error:
        raise TrustError(f"image {digest}: expected a manifest, got another document", reason="BadManifest") from error
    if children is None:
        layout.check_all(digest)
    for child in children or ():
        layout.check_all(child)


def examine(place: Attachments, digest: str, trust: ImageTrust) -> Attested:
    """What those who are trusted say of an image; nothing is required here."""
    if not trust.keys and not trust.identities:
        return Attested(why_not="nobody is trusted to sign images; write `images` in the trust file")
    claims, why = [], Attested().why_not
    for bundle in bundles(place, digest):
        try:
            who, payload = verified(bundle, trust) if isinstance(bundle, bytes) else _raised(bundle)
            kind, predicate = claim_of(payload, digest)
            if kind == PROVENANCE and (fault := fault_of(predicate)):
                raise TrustError(f"its provenance: {fault}", reason="OddProvenance")
        except TrustError as error:
            why = error.message
            continue
        claims.append((kind, who, predicate))
    # Of equal content, several builds may have been attested; the same one is taken on every machine.
    predicates = {kind: predicate for kind, _, predicate in sorted(claims, key=lambda claim: _age(claim[2]))}
    signers = {kind: frozenset(who for other, who, _ in claims if other == kind) for kind in predicates}
    return Attested(predicates=predicates, signers=signers, claims=tuple(claims), why_not=why)


def bundles(place: Attachments, digest: str) -> Iterator[bytes | TrustError]:
    """What is attached to an image or model, before anybody verified it; an error where it cannot be read.

    Raises:
        TrustError: The list cannot be read, or something in it is not what its digest says.
    """
    try:
        listed = place.referrers(digest)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TrustError(f"image {digest}: expected a list of what is attached to it, got another document") from error
    for referrer in listed[:MOST_REFERRERS]:
        if referrer.get("artifactType") != BUNDLE:
            continue
        try:
            (layer,) = referrer["layers"]
            if int(layer["size"]) > LARGEST_BUNDLE_BYTES:
                raise ValueError
            data = place.get(str(layer["digest"]))
        except TrustError as error:
            if error.reason == "BlobChanged":
                # Nobody can attach that: it was touched where it lies.
                raise
            yield error
        except (ValueError, KeyError, TypeError):
            yield TrustError("a bundle's manifest: expected one layer, got another document", reason="BadBundle")
        else:
            yield data


def _raised(error: TrustError) -> tuple[str, bytes]:
    raise error


def verified(bundle: bytes, trust: ImageTrust) -> tuple[str, bytes]:
    """(who, statement) of a bundle that somebody who is trusted signed."""
    envelope = read_bundle(bundle)
    if not envelope.has_certificate:
        return signed_by(trust.keys, encoding(envelope.payload), envelope.signature), envelope.payload
    # Heavy, and only for those who sign without keys.
    from controller.adapters.sigstore.keyless import signer_of, verify_statement

    claimed = signer_of(bundle)
    why = TrustError(f"it is signed by {claimed[0]} ({claimed[1]}), who is not trusted to sign images", reason="NotSigned")
    for known in trust.identities:
        if (known.identity, known.issuer) == claimed:
            try:
                return " ".join(claimed), verify_statement(bundle, known.root, *claimed)
            except TrustError as error:
                why = error
    raise why


def signed_by(keys: Sequence[str], data: bytes, signature: bytes) -> str:
    """The hint of the key that made a signature.

    Raises:
        TrustError: None of them did.
    """
    for public in keys:
        if ImageKey.verify(public, data, signature):
            return hint_of(public)
    raise TrustError("it is signed by another key", reason="NotSigned")


def _age(predicate: Any) -> tuple[str, str]:
    try:
        finished = str(predicate["runDetails"]["metadata"]["finishedOn"])
    except (KeyError, TypeError):
        finished = ""
    return finished, json.dumps(predicate, sort_keys=True)
