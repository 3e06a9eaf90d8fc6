"""The door to OpenSSF model-signing: signatures of models, kept beside them as OCI referrers.

The statement is what `model_signing sign key` writes (in-toto v1, files by SHA-256, Sigstore bundle v0.3), made from the
digests that the store knows already, so nothing is read again. It is made here and not by the library, whose bytes differ
from one time to the next; signing again here gives the same. The library itself is asked by `check_folder`, and by the tests.

It never decides whom to trust.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from controller.adapters.attest.signing import StatementSigner, own_trust
from controller.adapters.attest.statements import BUNDLE, STATEMENT, bundle_of, encoding
from controller.adapters.attest.verifying import ImageTrust, bundles, verified
from controller.adapters.keys import ImageSigner
from controller.adapters.oci.artifacts import files_of
from controller.adapters.oci.layout import EMPTY, MANIFEST, Layout
from policies.canonical import canonical
from policies.errors import RefusedError, TrustError
from policies.terms.digest import Digest

SIGNED_MODEL = "https://model_signing/signature/v1.0"
SERIALIZATION: Mapping[str, Any] = {"method": "files", "hash_type": "sha256", "allow_symlinks": False}
_P256 = "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE"
"""How the DER of a P-256 public key begins, in base64."""


class Models:
    """Signs the models that jobs leave, and lets none be loaded that nobody signed whom the project trusts.

    Args:
        layout: Where they are.
        signer: A P-256 key, wherever it lies, or an identity.
        trust: Whose models may be loaded: as of images.
        identity: Signs them as well, as an identity; None: nobody does.
    """

    def __init__(
        self,
        layout: Layout,
        signer: ImageSigner | StatementSigner,
        trust: ImageTrust,
        *,
        identity: StatementSigner | None = None,
    ) -> None:
        self._layout, self._signer, self._trust, self._as_well = layout, signer, trust, identity

    def sign(self, digest: Digest) -> None:
        """Sign a model that a job of ours left; again is as good as once."""
        for signer in (self._signer, self._as_well):
            if signer is not None:
                sign_model(self._layout, digest, signer)

    def verify(self, digest: str) -> None:
        """Let a model be loaded.

        Raises:
            TrustError: Nobody signed it who is trusted.
        """
        verify_model(self._layout, digest, self._trust)


def sign_model(layout: Layout, digest: Digest, signer: ImageSigner | StatementSigner) -> None:
    """Attach a signature to a model, and push it. What the signer has signed before is only pushed.

    Raises:
        RefusedError: The key is of a kind that OpenSSF model-signing does not take.
        TrustError: It is no artifact of ours.
        OutsideError: The registry or what holds the key said no or nothing; all that was done may be done again.
    """
    if isinstance(signer, ImageSigner) and not _is_p256(signer.public_pem):
        text = "expected a P-256 key to sign with, got another kind, which OpenSSF model-signing does not take"
        raise RefusedError(f"model {digest}: {text}; make a P-256 image key with `myelin keys new`", reason="ModelKey")
    who = signer.public_pem if isinstance(signer, ImageSigner) else repr(signer.identity)
    # A name for each signer: while keys overlap, the words of both stay.
    name = f"{digest.replace(':', '-')}.model.{_hint(who)[:12]}"
    made = layout.resolve_here(name)
    if made is None or not _is_signed(layout, digest, own_trust(signer)):
        payload = canonical(statement_of(layout, digest))
        made = _attached(layout, digest, _bundle(signer, payload))
        layout.tag(name, made, {"subject": digest, "artifactType": BUNDLE})
    layout.push(made)


def verify_model(layout: Layout, digest: str, trust: ImageTrust) -> bytes:
    """Check that somebody who is trusted signed a model, with just the files that it has.

    What the files hold is checked by whoever reads them: the names of their blobs are what was signed.

    Returns:
        The Sigstore bundle that says so.

    Raises:
        TrustError: It is no artifact of ours, or no signature fits it.
        OutsideError: The registry said no or nothing.
    """
    wanted, why = _told(statement_of(layout, digest)), "nothing is attached to it"
    for bundle in bundles(layout, digest):
        try:
            if isinstance(bundle, TrustError):
                raise bundle
            if _told(json.loads(verified(bundle, trust)[1])) == wanted:
                return bundle
            why = "what is signed is something else, or a model with other files"
        except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
            why = f"a statement cannot be read: {type(error).__name__}"
        except TrustError as error:
            why = error.message
    text = f"model {digest}: expected a signature by a key of the project, got none: {why}"
    raise TrustError(text, reason="ModelNotSigned")


def statement_of(layout: Layout, digest: str) -> dict[str, Any]:
    """What is signed of a model: its files and their digests, in the library's order.

    Raises:
        TrustError: It is no artifact of ours.
    """
    files = sorted(files_of(layout, digest).items(), key=lambda item: PurePosixPath(item[0]))
    hexes = [str(layer["digest"]).removeprefix("sha256:") for _, layer in files]
    root = hashlib.sha256(b"".join(bytes.fromhex(text) for text in hexes)).hexdigest()
    resources = [{"name": name, "algorithm": "sha256", "digest": text} for (name, _), text in zip(files, hexes, strict=True)]
    return {
        "_type": STATEMENT,
        "subject": [{"name": f"model-{digest.removeprefix('sha256:')[:12]}", "digest": {"sha256": root}}],
        "predicateType": SIGNED_MODEL,
        "predicate": {"serialization": dict(SERIALIZATION), "resources": resources},
    }


def check_folder(folder: Path, bundle: bytes, public_pem: str) -> None:
    """Ask the library whether a folder holds what a signature says: all of its files are read.

    Raises:
        TrustError: It does not, by the library's own words.
    """
    from model_signing import hashing, verifying

    with tempfile.TemporaryDirectory(prefix="myelin-model-") as beside:
        signature, key = Path(beside) / "model.sig", Path(beside) / "key.pub"
        signature.write_bytes(bundle)
        key.write_text(public_pem)
        # By default it would pass over files that Git writes, and a model may have some.
        everything = hashing.Config().set_ignored_paths(paths=[], ignore_git_paths=False)  # type: ignore[no-untyped-call]
        checking = verifying.Config().use_elliptic_key_verifier(public_key=key)  # type: ignore[no-untyped-call]
        try:
            checking.set_hashing_config(everything).verify(folder, signature)
        except Exception as error:
            text = " ".join(f"{error}".split()) or type(error).__name__
            raise TrustError(f"{folder}: expected the model that was signed: {text[:500]}", reason="ModelNotSigned") from error


def signer_of(bundle: bytes, public_keys: Sequence[str]) -> str:
    """Which of these keys made a bundle that verified; the library wants to be told one. Empty: an identity did."""
    hint = json.loads(bundle)["verificationMaterial"].get("publicKey", {}).get("hint")
    return next((public for public in public_keys if _hint(public) == hint), "")


def _is_signed(layout: Layout, digest: Digest, trust: ImageTrust) -> bool:
    try:
        verify_model(layout, digest, trust)
    except TrustError:
        return False
    return True


def _bundle(signer: ImageSigner | StatementSigner, payload: bytes) -> bytes:
    if isinstance(signer, ImageSigner):
        return bundle_of(payload, signer.sign(encoding(payload)), _hint(signer.public_pem))
    return signer.sign_statement(payload)


def _attached(layout: Layout, digest: Digest, bundle: bytes) -> Digest:
    """The manifest of a bundle about a model."""
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": BUNDLE,
        "config": layout.descriptor(layout.put(b"{}"), EMPTY),
        "layers": [layout.descriptor(layout.put(bundle), BUNDLE)],
        "subject": layout.descriptor(digest, MANIFEST),
        "annotations": {"dev.sigstore.bundle.content": "dsse-envelope", "dev.sigstore.bundle.predicateType": SIGNED_MODEL},
    }
    return layout.put(canonical(manifest))


def _told(statement: Any) -> dict[str, Any]:
    """What of a statement must fit: no file more or less. The name of the folder is no part of it, for the library neither."""
    (subject,) = statement["subject"]
    return {
        "type": (statement["_type"], statement["predicateType"]),
        "root": subject["digest"],
        "serialization": {key: statement["predicate"]["serialization"][key] for key in SERIALIZATION},
        "resources": statement["predicate"]["resources"],
    }


def _hint(public_pem: str) -> str:
    """How the library names a key; it insists on just this one."""
    return hashlib.sha256(public_pem.encode()).hexdigest()


def _is_p256(public_pem: str) -> bool:
    return "".join(line for line in public_pem.splitlines() if not line.startswith("-")).startswith(_P256)
