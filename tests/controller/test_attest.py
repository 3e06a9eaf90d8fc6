"""What we say of images, in the eyes of cosign 2 and 3 and of Sigstore's verifier for Node; and what we say of others' images."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controller.adapters.attest.base_signers import BaseSigners
from controller.adapters.attest.sbom import sbom_of
from controller.adapters.attest.signing import IdentitySigner, sign_image, verify_and_renew
from controller.adapters.attest.statements import BUNDLE, IN_TOTO, PROVENANCE, SBOM, SIGNATURE, bundle_of, encoding, statement
from controller.adapters.attest.verifying import Identity, ImageTrust, attested, examine, verify_image
from controller.adapters.clock import SystemClock
from controller.adapters.keys import ImageKey, ImageKeyKind
from controller.adapters.oci.bases import Bases
from controller.adapters.oci.layers import Stored, lay
from controller.adapters.oci.layout import CONFIG, EMPTY, MANIFEST, REF_NAME, Layout
from controller.adapters.oci.mirrored import MirroredLayout
from controller.adapters.oci.registry import Access, Registry
from controller.adapters.sigstore.authority import Authority
from controller.adapters.sigstore.embedded import Embedded, identity_of
from controller.adapters.sigstore.leaves import MemoryLeaves
from policies.canonical import canonical
from policies.errors import DesiredStateError, RefusedError, TrustError
from policies.terms.build import BaseSigner
from policies.terms.digest import Digest
from policies.terms.secret import Secret
from tests.contracts import cosign as cosigns
from tests.contracts import sigstore_js
from tests.contracts.cosign import Cosign
from tests.contracts.registry_server import RegistryServer, registry_server, why_no_registry
from tests.fakes.provenance import trust_in, where_from

needs_registry = pytest.mark.skipif(bool(why_no_registry()), reason=why_no_registry())
NOW = SystemClock().now()
ALL = {SIGNATURE, PROVENANCE, SBOM}


def image(layout: Layout, text: str) -> Digest:
    laid = lay(layout, {"app/app.py": Stored(data=text.encode())})
    config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [laid.diff_id]}}
    named = layout.descriptor(layout.put(canonical(config)), CONFIG)
    value = {"schemaVersion": 2, "mediaType": MANIFEST, "config": named, "layers": [laid.descriptor]}
    return layout.put(canonical(value))


def sign(layout: Layout, digest: Digest, key: ImageKey, commit: str = "c" * 40) -> None:
    provenance = where_from(commit)
    sign_image(layout, digest, key, provenance, sbom_of(digest, "digits", provenance))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    if why_no_registry():
        pytest.skip(why_no_registry())
    with registry_server(tmp_path_factory.mktemp("registry")) as made:
        yield made


@pytest.fixture(params=[2, 3])
def cosign(request: pytest.FixtureRequest, tmp_path: Path) -> Cosign:
    if why := cosigns.missing(request.param):
        pytest.skip(why)
    return Cosign(request.param, tmp_path / "cosign")


class Pushed:
    """A signed image in a real registry."""

    def __init__(self, server: RegistryServer, folder: Path, kind: ImageKeyKind = "p256") -> None:
        self.folder = folder
        self.access = Access(repository=f"{server.address}/attest/{folder.name.lower()}", unsafe_plain_http=True)
        self.registry = Registry(self.access)
        self.layout = MirroredLayout(folder / "store", self.registry)
        self.key = ImageKey.generate(folder / "image.pem", kind)
        self.digest = image(self.layout, folder.name)
        self.reference = f"{self.access.repository}@{self.digest}"

    def close(self) -> None:
        self.registry.close()


@pytest.fixture(params=["p256", "ed25519"])
def pushed(request: pytest.FixtureRequest, server: RegistryServer, tmp_path: Path) -> Iterator[Pushed]:
    made = Pushed(server, tmp_path, request.param)
    sign(made.layout, made.digest, made.key)
    yield made
    made.close()


def test_cosign_verifies_all_that_we_attach(pushed: Pushed, cosign: Cosign) -> None:
    public = pushed.key.public_pem
    done = cosign.verify(pushed.reference, public)
    assert done.returncode == 0, done.stderr
    for kind, predicate in (("slsaprovenance1", where_from()), ("cyclonedx", sbom_of(pushed.digest, "digits", where_from()))):
        done = cosign.verify(pushed.reference, public, "verify-attestation", "--type", kind)
        assert done.returncode == 0, done.stderr
        payload = json.loads(base64.b64decode(json.loads(done.stdout.splitlines()[0])["payload"]))
        assert payload["predicate"] == predicate
    stranger = ImageKey.generate(pushed.folder / "stranger.pem").public_pem
    for words in (("verify",), ("verify-attestation", "--type", "cyclonedx")):
        assert cosign.verify(pushed.reference, stranger, *words).returncode != 0
    unsigned = image(pushed.layout, "nobody signed this")
    pushed.layout.push(unsigned)
    assert cosign.verify(f"{pushed.access.repository}@{unsigned}", public).returncode != 0


def test_cosign_3_needs_no_trusted_root_for_keys(pushed: Pushed, tmp_path: Path) -> None:
    if why := cosigns.missing(3):
        pytest.skip(why)
    cosign = Cosign(3, tmp_path / "cosign")
    for words in (("verify",), ("verify", "--new-bundle-format=false"), ("verify-attestation", "--type", "slsaprovenance1")):
        done = cosign.verify(pushed.reference, pushed.key.public_pem, *words, root=None)
        assert done.returncode == 0, done.stderr


def test_cosign_verifies_the_older_signature_where_there_is_no_bundle(
    server: RegistryServer, pushed: Pushed, tmp_path: Path, cosign: Cosign
) -> None:
    access = replace(pushed.access, repository=f"{server.address}/older/{tmp_path.name.lower()}")
    registry = Registry(access)
    tag = pushed.digest.replace(":", "-") + ".sig"
    found, copied = pushed.layout.resolve(tag), MirroredLayout(pushed.layout.root, registry)
    assert found is not None
    copied.push(pushed.digest)
    copied.push(found, tags=(tag,))
    registry.close()
    done = cosign.verify(f"{access.repository}@{pushed.digest}", pushed.key.public_pem, root=None)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["critical"]["image"]["docker-manifest-digest"] == pushed.digest


def test_sigstores_verifier_for_node_takes_our_bundles(tmp_path: Path) -> None:
    if why := sigstore_js.why_no_node():
        pytest.skip(why)
    for kind in ("p256", "ed25519"):
        folder = tmp_path / kind
        layout, key = Layout(folder / "store"), ImageKey.generate(folder / "image.pem", kind)  # type: ignore[arg-type]
        digest = image(layout, kind)
        sign(layout, digest, key)
        for number, referrer in enumerate(layout.referrers(digest)):
            file = folder / f"{number}.json"
            file.write_bytes(layout.get(referrer["layers"][0]["digest"]))
            assert sigstore_js.verify(file, key.public_pem) == ""
            stranger = ImageKey.generate(folder / f"stranger{number}.pem", kind)  # type: ignore[arg-type]
            assert sigstore_js.verify(file, stranger.public_pem) != ""
        assert number == 2


@needs_registry
@pytest.mark.parametrize("bundles", [False, True], ids=["by the older signature", "by a bundle"])
def test_a_base_that_cosign_signed_is_verified_by_us(
    server: RegistryServer, tmp_path: Path, cosign: Cosign, bundles: bool
) -> None:
    base = Pushed(server, tmp_path)
    base.layout.push(base.digest)
    public = cosign.generate(tmp_path / "theirs")
    stranger = base.key.public_pem
    signers, memories = (BaseSigner(name="upstream", key=public),), tmp_path / "memories"

    def check(*wanted: BaseSigner, folder: str = "one") -> str:
        return BaseSigners(memories / folder).check(base.registry, base.reference, base.digest, wanted)

    with pytest.raises(TrustError, match=r"one of builder\.baseSigners, upstream, got none: nothing is attached"):
        check(*signers)
    cosign.sign(base.reference, tmp_path / "theirs" / "cosign.key", bundles=bundles)
    assert check(*signers) == "upstream"
    assert check() == ""
    other = BaseSigner(name="other", key=stranger)
    person = BaseSigner(name="person", identity="a@b.example", issuer="https://issuer.example")
    assert check(other, *signers, person) == "upstream"
    with pytest.raises(TrustError, match=r"baseSigners, other, person, got none: (it is|its)? ?signed by another key"):
        check(other, person)
    junk = BaseSigner(name="junk", key="-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n")
    with pytest.raises(TrustError, match="baseSigners: junk: expected a public key as PEM"):
        check(junk)
    bases = Bases(Layout(tmp_path / "built"), tmp_path / "bases", lambda repository: base.access)
    with pytest.raises(TrustError, match=r"one of builder\.baseSigners, other"):
        bases.open(base.reference, signers=(other,))
    # It is signed, and goes on to be looked at: it has no Python.
    with pytest.raises(DesiredStateError, match="expected Python"):
        bases.open(base.reference, signers=signers)
    bases.check_signed(base.reference, signers)
    # Once it held, nobody is asked again; other signers are another question.
    base.close()
    assert check(*signers) == "upstream"


@needs_registry
def test_an_image_that_an_identity_signed_is_verified_by_us_and_by_cosign(
    server: RegistryServer, tmp_path: Path, cosign: Cosign
) -> None:
    made = Embedded(Authority(Secret("07" * 32), NOW - timedelta(days=30)), MemoryLeaves(), identity=identity_of("ml", "shop"))
    signer, root = IdentitySigner(made, made.trusted_root()), tmp_path / "root.json"
    root.write_text(signer.root)
    place, provenance = Pushed(server, tmp_path), where_from()
    for _ in range(2):
        sign_image(place.layout, place.digest, signer, provenance, sbom_of(place.digest, "digits", provenance))
    assert len(place.registry.referrers(place.digest)) == 3
    identity, issuer = signer.identity
    trust = ImageTrust(identities=(Identity(identity=identity, issuer=issuer, root=signer.root),))
    assert set(verify_image(place.layout, place.digest, trust)) == ALL
    other = Embedded(Authority(Secret("08" * 32), NOW - timedelta(days=30)), MemoryLeaves(), identity=signer.identity[0])
    for wrong, words in (
        (Identity(identity=identity + "x", issuer=issuer, root=signer.root), "who is not trusted to sign images"),
        (Identity(identity=identity, issuer=issuer + "x", root=signer.root), "who is not trusted to sign images"),
        (Identity(identity=identity, issuer=issuer, root=other.trusted_root()), "expected a proof that holds"),
    ):
        with pytest.raises(TrustError) as caught:
            verify_image(place.layout, place.digest, ImageTrust(identities=(wrong,)))
        assert words in caught.value.message
    with pytest.raises(TrustError, match="who is not trusted to sign images"):
        verify_image(place.layout, place.digest, trust_in(place.key))
    known = ["--trusted-root", str(root), "--allow-http-registry", "--certificate-oidc-issuer", issuer]
    known += ["--new-bundle-format"] if cosign.major == 2 else []
    for words in (["verify"], ["verify-attestation", "--type", "slsaprovenance1"], ["verify-attestation", "--type", "cyclonedx"]):
        done = cosign(*words, *known, "--certificate-identity", identity, place.reference)
        assert done.returncode == 0, done.stderr
        assert cosign(*words, *known, "--certificate-identity", identity + "x", place.reference).returncode != 0
    # A base that an identity signed is asked for in the same way.
    person = BaseSigner(name="shop", identity=identity, issuer=issuer)
    signers = BaseSigners(tmp_path / "memories", signer.root)
    assert signers.check(place.registry, place.reference, place.digest, (person,)) == "shop"
    stranger = BaseSigner(name="other", identity="else@example.org", issuer=issuer)
    with pytest.raises(TrustError, match=r"expected a signature by one of builder\.baseSigners, other, got none"):
        signers.check(place.registry, place.reference, place.digest, (stranger,))
    place.close()


class Kept:
    """A signed image in a folder, whose files can be spoiled."""

    def __init__(self, folder: Path) -> None:
        self.layout, self.key = Layout(folder / "store"), ImageKey.generate(folder / "image.pem")
        self.digest = image(self.layout, "print(1)\n")
        sign(self.layout, self.digest, self.key)
        manifest = self.layout.manifest(self.digest)
        referrers = {
            item["annotations"]["dev.sigstore.bundle.predicateType"]: item for item in self.layout.referrers(self.digest)
        }
        self.files = {
            "manifest": str(self.digest),
            "config": manifest["config"]["digest"],
            "layer": manifest["layers"][0]["digest"],
            "signature's bundle": referrers[SIGNATURE]["layers"][0]["digest"],
            "provenance's bundle": referrers[PROVENANCE]["layers"][0]["digest"],
            "signature's manifest": self.layout.put(canonical(referrers[SIGNATURE])),
            "provenance's manifest": self.layout.put(canonical(referrers[PROVENANCE])),
        }

    def verify(self) -> dict[str, Any]:
        # A folder that nobody read yet, as on another machine.
        return verify_image(Layout(self.layout.root), self.digest, trust_in(self.key))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    return Kept(tmp_path_factory.mktemp("kept"))


PARTS = ["manifest", "config", "layer", "signature's bundle", "provenance's bundle"]
PARTS += ["signature's manifest", "provenance's manifest"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)
@given(data=st.data())
@pytest.mark.parametrize("part", PARTS)
def test_no_image_passes_with_one_bit_flipped_anywhere(kept: Kept, part: str, data: st.DataObject) -> None:
    path = kept.layout.place(kept.files[part])
    whole = path.read_bytes()
    at, bit = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7))
    path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << bit)]) + whole[at + 1 :])
    try:
        with pytest.raises(TrustError) as caught:
            kept.verify()
    finally:
        path.write_bytes(whole)
    assert "expected" in caught.value.message
    assert set(kept.verify()) == ALL


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(data=st.data())
@pytest.mark.parametrize("kind", [SIGNATURE, PROVENANCE])
def test_no_bundle_counts_with_one_bit_flipped_though_its_digest_fits(kept: Kept, kind: str, data: st.DataObject) -> None:
    """As whoever may write to the registry can do it: with a manifest that fits the spoiled bundle."""
    (whole,) = [
        kept.layout.get(item["layers"][0]["digest"])
        for item in kept.layout.referrers(kept.digest)
        if item["annotations"]["dev.sigstore.bundle.predicateType"] == kind
    ]
    at, bit = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7))
    spoiled = whole[:at] + bytes([whole[at] ^ (1 << bit)]) + whole[at + 1 :]
    found = attested_by(kept, spoiled)
    # Base64 has bits that say nothing, and a hint only helps to find a key; what is said is never another thing.
    said = {claimed: predicate for claimed, _, predicate in found.claims}
    assert said in ({}, {kind: {} if kind == SIGNATURE else where_from()})


def attested_by(kept: Kept, bundle: bytes) -> Any:
    class Spoiled:
        def get(self, digest: str) -> bytes:
            return bundle

        def referrers(self, digest: str) -> list[dict[str, Any]]:
            return [{"artifactType": BUNDLE, "layers": [{"digest": digest, "size": len(bundle)}]}]

    return examine(Spoiled(), kept.digest, trust_in(kept.key))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(data=st.data())
def test_a_flipped_bit_in_the_list_of_a_folder_never_lets_another_thing_be_said(kept: Kept, data: st.DataObject) -> None:
    path = kept.layout.root / "index.json"
    whole = path.read_bytes()
    at, bit = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7))
    path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << bit)]) + whole[at + 1 :])
    try:
        said = kept.verify()
    except TrustError:
        said = {}
    finally:
        path.write_bytes(whole)
    known = kept.verify()
    assert {kind: known[kind] for kind in said} == said


def test_the_older_signature_alone_lets_nothing_load(tmp_path: Path) -> None:
    layout, key = Layout(tmp_path / "store"), ImageKey.generate(tmp_path / "image.pem")
    digest = image(layout, "x")
    sign(layout, digest, key)
    layout.unlist([item["annotations"][REF_NAME] for item in layout.listed() if "artifactType" in item])
    assert layout.resolve(digest.replace(":", "-") + ".sig") is not None
    with pytest.raises(TrustError, match="expected a signature by a key of the project, got none: nothing is attached to it"):
        verify_image(layout, digest, trust_in(key))


def attach(layout: Layout, digest: Digest, bundle: bytes, name: str = "x") -> None:
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": BUNDLE,
        "config": layout.descriptor(layout.put(b"{}"), EMPTY),
        "layers": [layout.descriptor(layout.put(bundle), BUNDLE)],
        "subject": layout.descriptor(digest, MANIFEST),
    }
    layout.tag(f"{digest.replace(':', '-')}.{name}", layout.put(canonical(manifest)), {"subject": digest, "artifactType": BUNDLE})


def bundle(key: ImageKey, payload: bytes) -> bytes:
    return bundle_of(payload, key.sign(encoding(payload)), key.hint)


def in_bundle(key: ImageKey, digest: Digest, **changes: Any) -> bytes:
    """A bundle with the signature of an image, and something about it changed."""
    value = json.loads(bundle(key, statement(digest, SIGNATURE, {})))
    for place, item in changes.items():
        within = value
        *folders, last = place.split("__")
        for folder in folders:
            within = within[folder]
        within[last] = item
    return canonical(value)


def built(**changes: Any) -> dict[str, Any]:
    value = where_from()
    return {**value, "buildDefinition": {**value["buildDefinition"], **changes}}


OTHER = Digest("sha256:" + "0" * 64)
WRONG: dict[str, tuple[Callable[[ImageKey, ImageKey, Digest], bytes], str]] = {
    "signed by a stranger": (lambda key, other, digest: in_bundle(other, digest), "it is signed by another key"),
    "about another image": (lambda key, other, digest: bundle(key, statement(OTHER, SIGNATURE, {})), "about another image"),
    "a stranger's signature with our hint": (
        lambda key, other, digest: in_bundle(other, digest, verificationMaterial={"publicKey": {"hint": key.hint}}),
        "it is signed by another key",
    ),
    "two signatures": (
        lambda key, other, digest: in_bundle(key, digest, dsseEnvelope__signatures=[{"sig": "AAAA"}, {"sig": "AAAA"}]),
        "expected one signed statement",
    ),
    "no signature": (
        lambda key, other, digest: in_bundle(key, digest, dsseEnvelope__signatures=[]),
        "expected one signed statement",
    ),
    "an empty signature": (
        lambda key, other, digest: in_bundle(key, digest, dsseEnvelope__signatures=[{"sig": ""}]),
        "it is signed by another key",
    ),
    "another type of payload": (
        lambda key, other, digest: in_bundle(key, digest, dsseEnvelope__payloadType="application/json"),
        "expected one signed statement",
    ),
    "no bundle": (lambda key, other, digest: b"[]", "expected one signed statement"),
    "no JSON": (lambda key, other, digest: b"\xff" * 9, "expected one signed statement"),
    "deep JSON": (lambda key, other, digest: b"[" * 100_000, "expected one signed statement"),
    "a statement that is none": (lambda key, other, digest: bundle(key, b'{"_type":"x"}'), "expected an in-toto statement"),
    "key and certificate": (
        lambda key, other, digest: in_bundle(key, digest, verificationMaterial__certificate={"rawBytes": "AAAA"}),
        "expected one signed statement",
    ),
    "a certificate that is none": (
        lambda key, other, digest: in_bundle(key, digest, verificationMaterial={"certificate": {"rawBytes": "AAAA"}}),
        "expected a proof that holds",
    ),
    "provenance of a foreign builder": (
        lambda key, other, digest: bundle(key, statement(digest, PROVENANCE, built(buildType="https://elsewhere.example/v1"))),
        "its provenance: expected a build type of Myelin, got 'https://elsewhere.example/v1'",
    ),
    "provenance without digests": (
        lambda key, other, digest: bundle(key, statement(digest, PROVENANCE, built(resolvedDependencies=[{"name": "source"}]))),
        "expected a digest of each resolved dependency, got none of 'source'",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_lets_nothing_load_and_says_why(tmp_path: Path, name: str) -> None:
    layout, key = Layout(tmp_path / "store"), ImageKey.generate(tmp_path / "image.pem")
    other, digest = ImageKey.generate(tmp_path / "other.pem"), image(layout, "x")
    make, why = WRONG[name]
    attach(layout, digest, make(key, other, digest))
    with pytest.raises(TrustError) as caught:
        verify_image(layout, digest, trust_in(key))
    assert why in caught.value.message
    # Whoever attaches nonsense keeps nobody from signing, and what is signed from loading.
    sign(layout, digest, key)
    assert set(verify_image(layout, digest, trust_in(key))) == ALL


def test_signature_and_provenance_are_both_needed(tmp_path: Path) -> None:
    layout, key = Layout(tmp_path / "store"), ImageKey.generate(tmp_path / "image.pem")
    digest = image(layout, "x")
    attach(layout, digest, bundle(key, statement(digest, SIGNATURE, {})))
    with pytest.raises(TrustError, match="expected a provenance by a key of the project, got none"):
        verify_image(layout, digest, trust_in(key))


def test_an_empty_trust_denies(tmp_path: Path) -> None:
    layout, key = Layout(tmp_path / "store"), ImageKey.generate(tmp_path / "image.pem")
    digest = image(layout, "x")
    sign(layout, digest, key)
    with pytest.raises(TrustError, match="nobody is trusted to sign images"):
        verify_image(layout, digest, ImageTrust())


def test_signing_again_changes_nothing_and_other_times_are_the_same_provenance(tmp_path: Path) -> None:
    layout, key = Layout(tmp_path / "store"), ImageKey.generate(tmp_path / "image.pem")
    digest = image(layout, "x")

    def files() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (layout.root / "blobs" / "sha256").iterdir()} | {
            "index": (layout.root / "index.json").read_bytes()
        }

    sign(layout, digest, key)
    before = files()
    sign(Layout(layout.root), digest, key)
    assert files() == before
    later = where_from()
    later["runDetails"] = {**later["runDetails"], "metadata": {"finishedOn": "2031-01-01T00:00:00+00:00"}}
    sign_image(layout, digest, key, later)
    assert files() == before
    sign(layout, digest, key, "d" * 40)
    assert len(files()) > len(before)


class Retold(ImageKey):
    """A key whose signatures differ each time, as those of a token do."""

    def sign(self, data: bytes) -> bytes:
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec

        assert isinstance(self._private, ec.EllipticCurvePrivateKey)
        return self._private.sign(data, ec.ECDSA(hashes.SHA256()))


def test_a_signer_that_never_writes_the_same_twice_signs_once(tmp_path: Path) -> None:
    ImageKey.generate(tmp_path / "image.pem")
    layout, key = Layout(tmp_path / "store"), Retold.load(tmp_path / "image.pem")
    assert key.sign(b"x") != key.sign(b"x")
    digest = image(layout, "x")
    sign(layout, digest, key)
    before = (layout.root / "index.json").read_bytes()
    sign(layout, digest, key)
    assert (layout.root / "index.json").read_bytes() == before


def test_what_a_former_key_signed_is_signed_by_the_new_one_and_the_former_can_go(tmp_path: Path) -> None:
    layout, digest = Layout(tmp_path / "store"), Digest("")
    former, new = ImageKey.generate(tmp_path / "former.pem"), ImageKey.generate(tmp_path / "new.pem")
    stranger = ImageKey.generate(tmp_path / "stranger.pem")
    digest = image(layout, "x")
    sign(layout, digest, former)
    with pytest.raises(TrustError, match="another key"):
        verify_and_renew(layout, digest, stranger, trust_in(stranger))
    with pytest.raises(TrustError, match="another key"):
        verify_image(layout, digest, trust_in(new))
    said = verify_and_renew(layout, digest, new, trust_in(new, former))
    found = attested(layout, digest, trust_in(new))
    assert found.predicates == said
    assert set(said) == ALL
    before = (layout.root / "index.json").read_bytes()
    verify_and_renew(layout, digest, new, trust_in(new, former))
    assert (layout.root / "index.json").read_bytes() == before
    assert set(verify_image(layout, digest, trust_in(new))) == ALL


def test_where_nothing_can_be_attached_now_the_former_key_is_enough(tmp_path: Path) -> None:
    class Closed(Layout):
        is_closed = False

        def push(self, digest: str, *, tags: Any = ()) -> None:
            if self.is_closed:
                raise RefusedError("registry.test: it may only be read")

    layout = Closed(tmp_path / "store")
    former, new = ImageKey.generate(tmp_path / "former.pem"), ImageKey.generate(tmp_path / "new.pem")
    digest = image(layout, "x")
    sign(layout, digest, former)
    layout.is_closed = True
    assert set(verify_and_renew(layout, digest, new, trust_in(former))) == ALL


def test_of_several_builds_of_equal_content_the_newest_provenance_is_told(tmp_path: Path) -> None:
    layout, key = Layout(tmp_path / "store"), ImageKey.generate(tmp_path / "image.pem")
    digest = image(layout, "x")
    for day, commit in ((2, "b" * 40), (3, "a" * 40), (1, "d" * 40)):
        value = where_from(commit)
        value["runDetails"]["metadata"] = {"finishedOn": f"2026-01-0{day}T00:00:00+00:00"}
        attach(layout, digest, bundle(key, statement(digest, PROVENANCE, value)), name=commit)
    attach(layout, digest, bundle(key, statement(digest, SIGNATURE, {})))
    told = verify_image(layout, digest, trust_in(key))[PROVENANCE]
    assert told["buildDefinition"]["externalParameters"]["source"]["commit"] == "a" * 40


def test_an_index_of_images_is_checked_to_its_last_layer(tmp_path: Path) -> None:
    layout, key = Layout(tmp_path / "store"), ImageKey.generate(tmp_path / "image.pem")
    children = [image(layout, text) for text in ("amd64", "arm64")]
    index = "application/vnd.oci.image.index.v1+json"
    listed = [layout.descriptor(child, MANIFEST) for child in children]
    digest = layout.put(canonical({"schemaVersion": 2, "mediaType": index, "manifests": listed}))
    sign(layout, digest, key)
    assert set(verify_image(layout, digest, trust_in(key))) == ALL
    layer = layout.place(layout.manifest(children[1])["layers"][0]["digest"])
    whole = layer.read_bytes()
    layer.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(TrustError, match="expected these bytes"):
        verify_image(layout, digest, trust_in(key))


def test_the_encoding_that_is_signed_is_that_of_dsse() -> None:
    # The example of the protocol's own text, with another type.
    assert encoding(b"hello world") == b"DSSEv1 %d %s 11 hello world" % (len(IN_TOTO), IN_TOTO.encode())


@needs_registry
def test_signing_attaching_pushing_and_verifying_all_are_quick(server: RegistryServer, tmp_path: Path) -> None:
    place = Pushed(server, tmp_path)
    place.layout.push(place.digest)
    provenance = where_from()
    sbom = sbom_of(place.digest, "digits", provenance)
    began = time.perf_counter()
    sign_image(place.layout, place.digest, place.key, provenance, sbom)
    signed_seconds = time.perf_counter() - began
    offline = Layout(place.layout.root)
    began = time.perf_counter()
    assert set(verify_image(offline, place.digest, trust_in(place.key))) == ALL
    verified_seconds = time.perf_counter() - began
    place.close()
    print(f"signed, attached and pushed in {signed_seconds * 1000:.0f} ms, verified offline in {verified_seconds * 1000:.1f} ms")
    # Wide bounds: other tests run beside it.
    assert signed_seconds < 2
    assert verified_seconds < 0.5
