"""What signing leaves in a registry: the same bytes each time, beside what others signed, whole after a broken push."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from controller.adapters.attest.sbom import sbom_of
from controller.adapters.attest.signing import sign_image
from controller.adapters.attest.statements import BUNDLE, PROVENANCE, SBOM, SIGNATURE
from controller.adapters.attest.verifying import verify_image
from controller.adapters.keys import ImageKey
from controller.adapters.oci.layers import Stored, lay
from controller.adapters.oci.layout import CONFIG, MANIFEST, Layout
from controller.adapters.oci.mirrored import MirroredLayout
from controller.adapters.oci.registry import Access, Registry
from policies.canonical import canonical
from policies.errors import OutsideError, TrustError
from policies.terms.digest import Digest
from tests.contracts.registry_server import LOST, Gateway, RegistryServer, Said, registry_server, why_no_registry
from tests.controller.registry_line import Line
from tests.fakes.provenance import trust_in, where_from

ALL = {SIGNATURE, PROVENANCE, SBOM}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    if why_no_registry():
        pytest.skip(why_no_registry())
    with registry_server(tmp_path_factory.mktemp("registry")) as running:
        yield running


def image(layout: Layout, text: str) -> Digest:
    """A small image, not pushed."""
    laid = lay(layout, {"app/app.py": Stored(data=text.encode())})
    config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [laid.diff_id]}}
    value = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": layout.descriptor(layout.put(canonical(config)), CONFIG),
        "layers": [laid.descriptor],
    }
    return layout.put(canonical(value))


def sign(layout: Layout, digest: Digest, key: ImageKey) -> None:
    sign_image(layout, digest, key, where_from(), sbom_of(digest, "x", where_from()))


class Signed:
    """A signed image in a real registry."""

    def __init__(self, server: RegistryServer, folder: Path, name: str) -> None:
        self.access = Access(repository=f"{server.address}/signed/{name}", unsafe_plain_http=True)
        self.folder, self.registry = folder, Registry(self.access)
        self.layout = MirroredLayout(folder / "store", self.registry)
        self.key = ImageKey.generate(folder / "key.pem")
        self.digest = image(self.layout, name)
        sign(self.layout, self.digest, self.key)

    @property
    def sig(self) -> str:
        return self.digest.replace(":", "-") + ".sig"

    def fresh(self) -> MirroredLayout:
        """As from another machine."""
        return MirroredLayout(self.folder / f"fresh{len(list(self.folder.iterdir()))}", Registry(self.access))


@pytest.fixture
def signed(server: RegistryServer, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Signed]:
    made = Signed(server, tmp_path, hashlib.sha256(request.node.name.encode()).hexdigest()[:12])
    yield made
    made.registry.close()


def test_a_signed_image_is_verified_on_another_machine(signed: Signed) -> None:
    fresh = signed.fresh()
    assert set(verify_image(fresh, signed.digest, trust_in(signed.key))) == ALL
    other = ImageKey.generate(signed.folder / "other.pem")
    with pytest.raises(TrustError, match="another key"):
        verify_image(signed.fresh(), signed.digest, trust_in(other))
    unsigned = image(signed.layout, "never signed")
    signed.layout.push(unsigned)
    with pytest.raises(TrustError, match="nothing is attached"):
        verify_image(signed.fresh(), unsigned, trust_in(signed.key))


def test_signing_again_gives_the_same_bytes_and_keeps_what_others_signed(signed: Signed) -> None:
    def all_of_it() -> tuple[object, ...]:
        listed = sorted(item["digest"] for item in signed.registry.referrers(signed.digest))
        return signed.registry.resolve(signed.sig), listed, len(listed)

    before = all_of_it()
    assert before[2] == 3
    for layout in (signed.layout, signed.fresh()):
        sign(layout, signed.digest, signed.key)
        assert all_of_it() == before
    other = ImageKey.generate(signed.folder / "other.pem")
    sign(signed.fresh(), signed.digest, other)
    sign(signed.fresh(), signed.digest, signed.key)
    found = signed.registry.resolve(signed.sig)
    assert found is not None
    assert len(signed.fresh().manifest(found)["layers"]) == 2
    assert all_of_it()[2] == 6
    for key in (signed.key, other):
        assert set(verify_image(signed.fresh(), signed.digest, trust_in(key))) == ALL


def test_the_older_signature_is_as_cosign_writes_it(signed: Signed) -> None:
    fresh = signed.fresh()
    found = fresh.resolve(signed.sig)
    assert found is not None
    manifest = fresh.manifest(found)
    (layer,) = manifest["layers"]
    payload = fresh.get(layer["digest"])
    assert json.loads(payload) == {
        "critical": {
            "identity": {"docker-reference": signed.access.repository},
            "image": {"docker-manifest-digest": signed.digest},
            "type": "cosign container image signature",
        },
        "optional": None,
    }
    assert layer["mediaType"] == "application/vnd.dev.cosign.simplesigning.v1+json"
    proof = base64.b64decode(layer["annotations"]["dev.cosignproject.cosign/signature"])
    assert ImageKey.verify(signed.key.public_pem, payload, proof)
    config = json.loads(fresh.get(manifest["config"]["digest"]))
    assert config["rootfs"]["diff_ids"] == [layer["digest"]]
    index = signed.registry.manifest(signed.digest.replace(":", "-"))
    assert index is not None
    entries = json.loads(index)["manifests"]
    assert {item["artifactType"] for item in entries} == {BUNDLE}
    assert {item["annotations"]["dev.sigstore.bundle.predicateType"] for item in entries} == ALL


def test_junk_under_the_signatures_tag_is_not_carried_on(signed: Signed) -> None:
    junk = [{"layers": 5}, {"layers": [{"mediaType": "x"}]}, {"layers": [5]}]
    for value in junk:
        layout = signed.fresh()
        text = canonical({"schemaVersion": 2, "mediaType": MANIFEST, **value})
        layout.tag(signed.sig, layout.put(text))
        plain = Layout(layout.root)
        digest = plain.put(b'{"layers":[]}')
        plain.tag(digest.replace(":", "-") + ".sig", plain.put(text))
        sign(plain, digest, signed.key)
        found = plain.resolve(digest.replace(":", "-") + ".sig")
        assert found is not None
        assert len(plain.manifest(found)["layers"]) == 1


def test_signatures_are_no_images(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "store")
    digest = image(layout, "x")
    layout.tag("team/x:v1", digest)
    sign(layout, digest, ImageKey.generate(tmp_path / "key.pem"))
    assert layout.images() == [("team/x:v1", digest)]
    assert layout.resolve("team/x:v1") == digest
    assert layout.resolve("nothing") is None


@pytest.mark.parametrize("takes_effect", [False, True], ids=["never arrived", "answer lost"])
def test_signing_that_broke_anywhere_is_whole_after_the_next(server: RegistryServer, tmp_path: Path, takes_effect: bool) -> None:
    line = Line(server.address)
    line.gateway.takes_effect = takes_effect
    key = ImageKey.generate(tmp_path / "key.pem")

    def signing(access: Access, digest: Digest) -> None:
        # Nothing is known from before, as after a restart.
        registry = Registry(access, tries=1, sleep=lambda _: None)
        try:
            sign(MirroredLayout(tmp_path / "store", registry), digest, key)
        finally:
            registry.close()

    # At every third request, the others in the other case: all of them take long on a slow disk.
    at, broken = int(takes_effect), 0
    while True:
        access = replace(line.access, repository=f"{line.access.host}/signing{takes_effect:d}/r{at}")
        digest = image(Layout(tmp_path / "store"), f"broken {takes_effect} {at}")
        line.gateway.answers = [dies_at(line.gateway, at)]
        try:
            signing(access, digest)
        except OutsideError:
            line.gateway.answers = []
            signing(access, digest)
            registry = Registry(access)
            assert set(verify_image(MirroredLayout(tmp_path / f"fresh{at}", registry), digest, trust_in(key))) == ALL
            registry.close()
            at, broken = at + 3, broken + 1
            continue
        break
    assert broken > 6
    line.close()


def dies_at(gateway: Gateway, number: int) -> Callable[[str, str], Said | None]:
    """The line is dead from that request on."""
    left = number

    def answer(method: str, path: str) -> Said | None:
        nonlocal left
        left -= 1
        if left >= 0:
            return None
        # Each answer is used up by who hears it.
        gateway.answers.append(answer)
        return LOST

    return answer
