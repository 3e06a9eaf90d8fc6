"""Base images that others signed with cosign: by its bundles, and by its older signature under a tag where a key made it.

Which base is built on is said by digest; this says whether somebody whom the project names vouches for that digest.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from controller.adapters.attest.signing import SIMPLE_SIGNATURE, SIMPLE_SIGNING, SIMPLE_TYPE
from controller.adapters.attest.statements import LARGEST_BUNDLE_BYTES, SIGNATURE
from controller.adapters.attest.verifying import Identity, ImageTrust, examine, signed_by
from controller.adapters.keys import hint_of, image_public
from controller.adapters.oci.assembly import read_memo, write_memo
from controller.adapters.oci.on_disk import Source
from policies.canonical import digest_value
from policies.errors import TrustError
from policies.terms.build import BaseSigner
from policies.terms.digest import digest_of

CERTIFICATE = "dev.sigstore.cosign/certificate"
"""With it, an identity made the older signature, and not a key."""


class BaseSigners:
    """Checks who signed base images.

    Args:
        folder: Who signed which; may be deleted.
        root: Trusted root of the Sigstore instance that vouches for identities, as JSON; empty: the public good one.
    """

    def __init__(self, folder: Path, root: str = "") -> None:
        self._folder, self._root = folder, root

    def check(self, source: Source, reference: str, digest: str, signers: Sequence[BaseSigner]) -> str:
        """See that one of some signers signed a base image; their name, empty where nobody has to.

        Args:
            source: The base's registry.
            reference: What messages call it.
            digest: What is built on; of an index, as it was asked for.
            signers: One of them must have signed; empty: its digest is enough.

        Raises:
            TrustError: None of them did, or what one of them is known by is no key.
            OutsideError: The registry said no, or does not answer.
        """
        if not signers:
            return ""
        # A signature that held holds: of the same bytes, by the same signers.
        if by := self.known(digest, signers):
            return by
        by = self._signer(_Remote(source), reference, digest, signers)
        memo, named = self._memo(digest, signers)
        self._folder.mkdir(parents=True, exist_ok=True)
        write_memo(memo, {"named": named, "by": by})
        return by

    def known(self, digest: str, signers: Sequence[BaseSigner]) -> str:
        """Who was found to have signed a base; empty where nobody looked yet. Nobody is asked."""
        memo, named = self._memo(digest, signers)
        known = read_memo(memo)
        return str(known["by"]) if known is not None and known.get("named") == named else ""

    def _memo(self, digest: str, signers: Sequence[BaseSigner]) -> tuple[Path, str]:
        named = digest_value(
            {"digest": digest, "signers": [[s.name, s.key, s.identity, s.issuer] for s in signers], "root": self._root}
        )
        return self._folder / f"signed-{named.removeprefix('sha256:')[:32]}.json", named

    def _signer(self, remote: _Remote, reference: str, digest: str, signers: Sequence[BaseSigner]) -> str:
        keys = {image_public(item.key, f"builder.baseSigners: {item.name}"): item.name for item in signers if item.key}
        people = {f"{item.identity} {item.issuer}": item.name for item in signers if item.identity}
        identities = (Identity(identity=item.identity, issuer=item.issuer, root=self._root) for item in signers if item.identity)
        found = examine(remote, digest, ImageTrust(keys=tuple(keys), identities=tuple(identities)))
        names = {hint_of(public): name for public, name in keys.items()} | people
        if who := found.signers.get(SIGNATURE):
            return names[min(who)]
        why = found.why_not
        for payload, signature, has_certificate in remote.older(digest):
            try:
                if has_certificate:
                    raise TrustError(
                        "its older signature is an identity's, which is read from bundles only; sign it with cosign 3"
                    )
                _check_payload(payload, digest)
                return names[signed_by(tuple(keys), payload, signature)]
            except TrustError as error:
                why = error.message
        expected = ", ".join(item.name for item in signers)
        text = f"base {reference}: expected a signature by one of builder.baseSigners, {expected}, got none: {why}"
        raise TrustError(text, reason="BaseNotSigned")


class _Remote:
    """What is attached to an image in a registry; nothing is kept."""

    def __init__(self, registry: Source) -> None:
        self._registry = registry

    def get(self, digest: str) -> bytes:
        """A blob."""
        content = io.BytesIO()
        self._registry.fetch_blob(digest, content)
        if digest_of(content.getvalue()) != digest:
            raise TrustError(f"blob {digest}: expected these bytes, got others", reason="BlobChanged")
        return content.getvalue()

    def referrers(self, digest: str) -> list[dict[str, Any]]:
        """Manifests whose subject is `digest`; what cannot be read is left out."""
        found = []
        for item in self._registry.referrers(digest):
            try:
                manifest = json.loads(self._registry.manifest(str(item["digest"])) or b"")
                if manifest["subject"]["digest"] == digest:
                    found.append(manifest)
            except (TrustError, ValueError, KeyError, TypeError):
                continue
        return found

    def older(self, digest: str) -> Iterator[tuple[bytes, bytes, bool]]:
        """(payload, signature, whether a certificate is with it) of cosign's older signatures."""
        try:
            manifest = json.loads(self._registry.manifest(f"{digest.replace(':', '-')}.sig") or b"{}")
            for layer in manifest.get("layers", ()):
                notes = layer["annotations"]
                if layer["mediaType"] == SIMPLE_SIGNING and 0 < int(layer["size"]) <= LARGEST_BUNDLE_BYTES:
                    signature = base64.b64decode(notes[SIMPLE_SIGNATURE], validate=True)
                    yield self.get(str(layer["digest"])), signature, CERTIFICATE in notes
        except (ValueError, KeyError, TypeError, AttributeError):
            return


def _check_payload(payload: bytes, digest: str) -> None:
    """See that a simple-signing payload is about an image; it may name it by any tag or place."""
    try:
        critical = json.loads(payload)["critical"]
        named, kind = critical["image"]["docker-manifest-digest"], critical["type"]
    except (ValueError, KeyError, TypeError) as error:
        raise TrustError("its older signature: expected cosign's payload, got another document") from error
    if kind != SIMPLE_TYPE or named != digest:
        raise TrustError("its older signature is about another image")
