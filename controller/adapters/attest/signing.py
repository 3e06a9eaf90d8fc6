"""Attaches signature, provenance and bill of materials to images, so that cosign and other verifiers find them.

Bundles are what we verify ourselves. For those who cannot read bundles yet there is cosign's older signature too, under the tag
`sha256-<hex>.sig`. What a signer has said of an image before is not said again.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from controller.adapters.attest.statements import BUNDLE, PROVENANCE, SBOM, SIGNATURE, bundle_of, encoding, statement
from controller.adapters.attest.verifying import REQUIRED, Attested, Identity, ImageTrust, attested, examine
from controller.adapters.keys import ImageKey, ImageSigner
from controller.adapters.oci.layout import CONFIG, EMPTY, INDEX, MANIFEST, Layout
from policies.canonical import canonical
from policies.errors import OutsideError, RefusedError, TrustError
from policies.terms.digest import Digest

SIMPLE_SIGNING = "application/vnd.dev.cosign.simplesigning.v1+json"
SIMPLE_SIGNATURE = "dev.cosignproject.cosign/signature"
SIMPLE_TYPE = "cosign container image signature"
WORDS = {SIGNATURE: "signature", PROVENANCE: "provenance", SBOM: "sbom"}


class StatementSigner(Protocol):
    """What signs as an identity, without a key."""

    @property
    def identity(self) -> tuple[str, str]:
        """Who it is, and who vouches for that."""
        ...

    @property
    def root(self) -> str:
        """The trusted root by which what it signs is verified, as JSON; empty: that of the public good instance."""
        ...

    def sign_statement(self, statement: bytes) -> bytes:
        """A bundle around these bytes."""
        ...

    def sign_statements(self, statements: Sequence[bytes]) -> tuple[bytes, ...]:
        """A bundle around each of these."""
        ...


class _Instance(Protocol):
    @property
    def identity(self) -> tuple[str, str]: ...

    def sign_statements(self, statements: Sequence[bytes]) -> tuple[bytes, ...]: ...


class IdentitySigner:
    """A Sigstore instance that signs for us, and the root by which that is verified.

    Args:
        instance: Signs.
        root: Its trusted root, as JSON.
        expected: Whom its certificates must name, and who vouches for that; None: whomever they name.
        in_turn: Does what needs the instance, where that belongs to another thread.
    """

    def __init__(
        self,
        instance: _Instance,
        root: str,
        *,
        expected: tuple[str, str] | None = None,
        in_turn: Callable[[Callable[[], tuple[bytes, ...]]], tuple[bytes, ...]] = lambda act: act(),
    ) -> None:
        self._instance, self.root, self._expected, self._in_turn = instance, root, expected, in_turn

    def __repr__(self) -> str:
        return "IdentitySigner(***)"

    @property
    def identity(self) -> tuple[str, str]:
        """Who it is, and who vouches for that."""
        return self._expected or self._instance.identity

    def sign_statement(self, statement: bytes) -> bytes:
        """A bundle around these bytes.

        Raises:
            OutsideError: As `sign_statements`.
            TrustError: As `sign_statements`.
        """
        return self.sign_statements([statement])[0]

    def sign_statements(self, statements: Sequence[bytes]) -> tuple[bytes, ...]:
        """A bundle around each of these.

        Raises:
            OutsideError: The instance says no or nothing, or gives certificates to another identity.
            TrustError: What it answered does not hold.
        """
        return self._in_turn(lambda: self._signed(statements)) if statements else ()

    def _signed(self, statements: Sequence[bytes]) -> tuple[bytes, ...]:
        if self._expected is not None and (found := self._instance.identity) != self._expected:
            text = f"images: expected to sign as {' '.join(self._expected)}, the instance calls us {' '.join(found)}"
            raise RefusedError(f"{text}; give the other token, or name this identity", reason="OtherIdentity")
        return self._instance.sign_statements(statements)


def sign_image(
    layout: Layout,
    digest: Digest,
    signer: ImageSigner | StatementSigner,
    provenance: Mapping[str, Any],
    sbom: Mapping[str, Any] | None = None,
) -> None:
    """Attach signature, provenance and bill of materials to an image, and push the image with them.

    Done again, it changes nothing: what differs in the times of its run alone is the same provenance.

    Args:
        layout: Where the image is.
        digest: An image, or an index of images.
        signer: A key, wherever it lies, or an identity. An identity leaves no older signature.
        provenance: SLSA v1 predicate.
        sbom: CycloneDX document; None: none is attached.

    Raises:
        TrustError: A blob of the image is missing.
        OutsideError: The registry or what holds the key said no or nothing; all that was done may be done again.
    """
    layout.push(digest)
    said = examine(layout, digest, own_trust(signer))
    wanted: list[tuple[str, Mapping[str, Any]]] = [(SIGNATURE, {}), (PROVENANCE, provenance)]
    wanted += [(SBOM, sbom)] if sbom is not None else []
    unsaid = [(kind, statement(digest, kind, predicate)) for kind, predicate in wanted if not _is_said(said, kind, predicate)]
    # Together, as a log takes its time over each time that it is asked.
    bundles = _bundles(signer, [payload for _, payload in unsaid])
    # What was said and lies here may not have reached the registry.
    known = [Digest(item["digest"]) for item in layout.listed() if _is_bundle_of(item, digest)] if said.claims else []
    with ThreadPoolExecutor(len(WORDS) + 1) as threads:
        # Disk and registry take their time over each of them, and none waits for another.
        work = [threads.submit(layout.push, item) for item in known]
        if isinstance(signer, ImageSigner):
            work.append(threads.submit(_sign_simply, layout, digest, signer))
        work += [
            threads.submit(_attach, layout, digest, kind, bundle, signer)
            for (kind, _), bundle in zip(unsaid, bundles, strict=True)
        ]
    for item in work:
        item.result()


def verify_and_renew(
    layout: Layout,
    digest: Digest,
    signer: ImageSigner | StatementSigner,
    trust: ImageTrust,
    *,
    also: StatementSigner | None = None,
    postponed: Callable[[OutsideError], None] = lambda error: None,
) -> dict[str, Any]:
    """`verify_image`; and what only former signers said of an image, those of now say again.

    So nothing depends on a former key any more that was looked at since, and it can be retired. Where the image lies so that
    nothing can be attached to it now, or who signs is away, the former signer's word is enough until another look.

    Args:
        layout: Where the image is.
        digest: The image.
        signer: Who signs.
        trust: Who is trusted.
        also: Who signs as well.
        postponed: Told why one of the two could not sign now.

    Raises:
        TrustError: As `verify_image`: what nobody vouches for, the new signer does not vouch for either.
        OutsideError: As `verify_image`.
    """
    found = attested(layout, digest, trust)
    for each in (signer, also):
        if each is None or all(name_of(each) in found.signers[kind] for kind in REQUIRED):
            continue
        try:
            sign_image(layout, digest, each, found.predicates[PROVENANCE], found.predicates.get(SBOM))
        except OutsideError as error:
            postponed(error)
    return dict(found.predicates)


def say_again(layout: Layout, digest: Digest, signer: StatementSigner, first: ImageSigner) -> None:
    """Have an identity say what a key said of an image. Tried again, it is the same again, and leaves one entry in a log.

    Raises:
        TrustError: The key said nothing, or a blob of the image is missing.
        OutsideError: As `sign_image`.
    """
    said = examine(layout, digest, own_trust(first))
    if PROVENANCE not in said.predicates:
        raise TrustError(
            f"image {digest}: expected a provenance by the project's key, got none: {said.why_not}", reason="NotSigned"
        )
    sign_image(layout, digest, signer, said.predicates[PROVENANCE], said.predicates.get(SBOM))


def name_of(signer: ImageSigner | StatementSigner) -> str:
    """What a signer is told by: the hint of a key, `identity issuer`."""
    return signer.hint if isinstance(signer, ImageSigner) else " ".join(signer.identity)


def own_trust(signer: ImageSigner | StatementSigner) -> ImageTrust:
    """Trust in one signer alone."""
    if isinstance(signer, ImageSigner):
        return ImageTrust(keys=(signer.public_pem,))
    return ImageTrust(identities=(Identity(identity=signer.identity[0], issuer=signer.identity[1], root=signer.root),))


def _is_bundle_of(entry: Mapping[str, Any], digest: Digest) -> bool:
    return entry.get("subject") == digest and entry.get("artifactType") == BUNDLE


def _is_said(said: Attested, kind: str, predicate: Mapping[str, Any]) -> bool:
    known = [_timeless(kind, other) for claimed, _, other in said.claims if claimed == kind]
    return _timeless(kind, predicate) in known


def _timeless(kind: str, predicate: Mapping[str, Any]) -> bytes:
    if kind != PROVENANCE:
        return canonical(predicate)
    details = {key: value for key, value in predicate["runDetails"].items() if key != "metadata"}
    return canonical({**predicate, "runDetails": details})


def _bundles(signer: ImageSigner | StatementSigner, payloads: Sequence[bytes]) -> Sequence[bytes]:
    if isinstance(signer, ImageSigner):
        return [bundle_of(payload, signer.sign(encoding(payload)), signer.hint) for payload in payloads]
    return signer.sign_statements(payloads)


def _attach(layout: Layout, digest: Digest, kind: str, bundle: bytes, signer: ImageSigner | StatementSigner) -> None:
    layer = layout.descriptor(layout.put(bundle), BUNDLE)
    subject_type = str(layout.manifest(digest).get("mediaType", MANIFEST))
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": BUNDLE,
        "config": layout.descriptor(layout.put(b"{}"), EMPTY),
        "layers": [layer],
        "subject": layout.descriptor(digest, INDEX if subject_type == INDEX else MANIFEST),
        "annotations": {"dev.sigstore.bundle.content": "dsse-envelope", "dev.sigstore.bundle.predicateType": kind},
    }
    # In the folder each signer has one word of each kind: a later build's provenance takes the place of an earlier one's.
    who = hashlib.sha256(name_of(signer).encode()).hexdigest()[:12]
    name = f"{digest.replace(':', '-')}.{WORDS[kind]}.{who}"
    made = layout.put(canonical(manifest))
    layout.tag(name, made, {"subject": digest, "artifactType": BUNDLE})
    layout.push(made)


def _sign_simply(layout: Layout, digest: Digest, signer: ImageSigner) -> None:
    """Write and push what cosign 1 and 2, Kyverno, CRI-O and podman look for, beside what others signed.

    Source:
        The "simple signing" payload of cosign's SIGNATURE_SPEC.
    """
    payload = canonical(
        {
            "critical": {
                "identity": {"docker-reference": layout.reference},
                "image": {"docker-manifest-digest": digest},
                "type": SIMPLE_TYPE,
            },
            "optional": None,
        }
    )
    tag = f"{digest.replace(':', '-')}.sig"
    found, layers = _signed_simply(layout, tag)
    name = layout.put(payload)
    if found is not None and any(_is_ours(item, name, payload, signer) for item in layers):
        layout.push(found, tags=(tag,))
        return
    signature = base64.b64encode(signer.sign(payload)).decode("ascii")
    layers.append({**layout.descriptor(name, SIMPLE_SIGNING), "annotations": {SIMPLE_SIGNATURE: signature}})
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


def _is_ours(layer: Mapping[str, Any], name: str, payload: bytes, signer: ImageSigner) -> bool:
    try:
        signature = base64.b64decode(layer["annotations"][SIMPLE_SIGNATURE], validate=True)
    except ValueError:
        return False
    return layer["digest"] == name and ImageKey.verify(signer.public_pem, payload, signature)


def _signed_simply(layout: Layout, tag: str) -> tuple[Digest | None, list[dict[str, Any]]]:
    """The manifest of the signatures that are there, and they; what is none is not carried on."""
    found = layout.resolve(tag)
    try:
        listed = layout.manifest(found)["layers"] if found is not None else []
        kept = [dict(item) for item in listed if item["mediaType"] == SIMPLE_SIGNING and SIMPLE_SIGNATURE in item["annotations"]]
    except (TrustError, ValueError, KeyError, TypeError):
        return None, []
    return (found if len(kept) == len(listed) else None), kept
