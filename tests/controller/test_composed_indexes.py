"""Data and models laid over an index: one index of images, each as it would be alone, signed and named as one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from controller import answers
from controller.adapters.attest.signing import sign_image
from controller.adapters.attest.statements import PROVENANCE
from controller.adapters.attest.verifying import verify_image
from controller.adapters.keys import ImageKey
from controller.adapters.oci.assembly import Program, assemble, assemble_index, based_on
from controller.adapters.oci.composed import COMPOSER, inputs_of
from controller.adapters.oci.layers import Stored, lay
from controller.adapters.oci.layout import INDEX, Layout
from controller.adapters.oci.mirrored import MirroredLayout
from controller.adapters.oci.registry import Access, Registry
from policies.errors import DesiredStateError, TrustError
from policies.terms.digest import Digest
from tests.contracts.registry_server import registry_server, why_no_registry
from tests.controller.test_composed import DATA, MODEL, Place, here
from tests.controller.verified_project import Project
from tests.fakes.provenance import trust_in, where_from
from tests.fakes.registry import FakeRegistry, Host

needs_registry = pytest.mark.skipif(bool(why_no_registry()), reason=why_no_registry() or "there is one")
PLATFORMS = ("linux/amd64", "linux/arm64")
LARGE = b"x" * 100_000


def index_in(place: Place, text: str = "print(1)\n", *, layers: Mapping[str, int] | None = None, signs: bool = True) -> Digest:
    """An index of two images, of which each has a program of its own, as a wheel for one kind of machine is."""
    images = {}
    for platform in PLATFORMS:
        files = [{"app/app.py": text}, {"opt/own.so": platform}]
        files += [{f"opt/{number}": "x"} for number in range((layers or {}).get(platform, 0))]
        laid = [lay(place.layout, {path: Stored(data=data.encode()) for path, data in item.items()}) for item in files]
        program = Program(entrypoint=("/opt/venv/bin/python", "/app/app.py"))
        images[platform] = assemble(place.layout, laid, program, annotations=based_on(None), platform=platform)
    index = assemble_index(place.layout, images, annotations={"org.example.kept": "yes"})
    if signs:
        sign_image(place.layout, index, place.key, where_from())
    place.layout.push(index)
    return index


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(Layout(tmp_path / "store"), tmp_path)


def test_what_comes_of_an_index_is_an_index_of_what_comes_of_its_images(place: Place) -> None:
    image, data, model = index_in(place), place.artifact({"a": b"1"}), place.artifact({"w": b"2"})
    places = {DATA: (data,), MODEL: (model,)}
    composed = place.composer().compose(image, places)
    below, on_top = place.layout.manifest(image), place.layout.manifest(composed)
    assert (on_top["mediaType"], on_top["schemaVersion"]) == (INDEX, 2)
    assert [item["platform"] for item in on_top["manifests"]] == [item["platform"] for item in below["manifests"]]
    assert on_top["annotations"] == {
        "org.example.kept": "yes",
        "io.myelin.image": image,
        "io.myelin.data": data,
        "io.myelin.model": model,
    }
    assert inputs_of(place.layout, composed) == {"image": (image,), "data": (data,), "model": (model,)}
    added = []
    for before, after in zip(below["manifests"], on_top["manifests"], strict=True):
        child = Digest(before["digest"])
        sign_image(place.layout, child, place.key, where_from())
        assert place.composer("alone").compose(child, places) == after["digest"]
        assert after["size"] == place.layout.path(after["digest"]).stat().st_size
        own, layers = (place.layout.manifest(item["digest"])["layers"] for item in (before, after))
        assert layers[: len(own)] == own
        added.append(layers[len(own) :])
        assert len(place.config(after["digest"])["rootfs"]["diff_ids"]) == len(layers)
        assert place.seen(after["digest"])[f"{MODEL}/w"] == b"2"
        assert place.config(after["digest"])["architecture"] == before["platform"]["architecture"]
    assert added[0] == added[1], "the layers of artifacts are the same for all of them"


def test_it_is_signed_as_one_and_says_of_what(place: Place) -> None:
    image, data = index_in(place), place.artifact({"a": b"1"})
    composed = place.composer().compose(image, {DATA: (data,)})
    said = verify_image(place.layout, composed, trust_in(place.key))
    definition = said[PROVENANCE]["buildDefinition"]
    assert (definition["buildType"], definition["externalParameters"]) == (COMPOSER, {"image": image, "places": {DATA: [data]}})
    for item in place.layout.manifest(composed)["manifests"]:
        assert place.layout.referrers(item["digest"]) == []
    [referrer] = [item for item in place.layout.referrers(composed) if "cosign/sign" in json.dumps(item)]
    assert referrer["subject"]["mediaType"] == INDEX
    listed = {item["mediaType"] for item in place.layout.listed() if item["digest"] == composed}
    assert listed == {INDEX}, "other tools read the store by it"


def test_equal_inputs_are_equal_bytes_for_anybody_and_nothing_is_laid_twice(place: Place, tmp_path: Path) -> None:
    places = {DATA: (place.artifact({"a": b"1"}),), MODEL: (place.artifact({"b": b"2"}),)}
    image, composer = index_in(place), place.composer()
    first = composer.compose(image, places)
    blobs = {path: path.stat().st_mtime_ns for path in (place.layout.root / "blobs").rglob("*")}
    assert composer.compose(image, dict(reversed(places.items()))) == place.composer().compose(image, places) == first
    assert {path: path.stat().st_mtime_ns for path in (place.layout.root / "blobs").rglob("*")} == blobs
    other = Place(Layout(tmp_path / "other"), tmp_path)
    other.artifact({"a": b"1"})
    other.artifact({"b": b"2"})
    assert other.composer("others").compose(index_in(other), places) == first


def test_signatures_of_the_images_are_none_of_the_index(place: Place) -> None:
    image, data = index_in(place, signs=False), place.artifact({"a": b"1"})
    for item in place.layout.manifest(image)["manifests"]:
        sign_image(place.layout, Digest(item["digest"]), place.key, where_from())
    with pytest.raises(TrustError, match="by a key of the project"):
        place.composer().compose(image, {DATA: (data,)})
    sign_image(place.layout, image, ImageKey.generate(place.folder / "other.pem"), where_from())
    with pytest.raises(TrustError, match="by a key of the project"):
        place.composer().compose(image, {DATA: (data,)})


BLOBS: dict[str, Callable[[Layout, Digest], str]] = {
    "the index": lambda layout, digest: digest,
    "an image's manifest": lambda layout, digest: str(layout.manifest(digest)["manifests"][1]["digest"]),
    "an image's config": lambda layout, digest: child(layout, digest)["config"]["digest"],
    "a layer of one image": lambda layout, digest: child(layout, digest)["layers"][1]["digest"],
    "a layer of data": lambda layout, digest: child(layout, digest)["layers"][-1]["digest"],
}


def child(layout: Layout, digest: Digest) -> Any:
    return layout.manifest(layout.manifest(digest)["manifests"][1]["digest"])


@pytest.mark.parametrize("blob", BLOBS)
@pytest.mark.parametrize("below", [False, True], ids=["composed", "below"])
def test_a_flipped_byte_anywhere_is_found(place: Place, blob: str, below: bool) -> None:
    image, data = index_in(place), place.artifact({"a": b"1"})
    composed = place.composer().compose(image, {DATA: (data,)})
    digest = image if below else composed
    path = place.layout.path(BLOBS[blob](place.layout, digest))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(TrustError, match="expected these bytes"):
        verify_image(place.layout, digest, trust_in(place.key))
    if below:
        with pytest.raises(TrustError, match="expected these bytes"):
            place.composer("another").compose(image, {DATA: (place.artifact({"a": b"2"}),)})
    elif blob in ("the index", "an image's manifest"):
        with pytest.raises(TrustError, match="expected these bytes"):
            place.composer().compose(image, {DATA: (data,)})


def test_too_many_layers_for_one_platform_are_too_many(place: Place) -> None:
    image = index_in(place, layers={"linux/arm64": 98})
    arm = place.layout.manifest(image)["manifests"][1]["digest"]
    before = place.layout.listed()
    artifacts = [place.artifact({"a": b"%d" % number}) for number in range(28)]
    place.composer().compose(image, {DATA: artifacts[1:]})
    known = [item for item in place.layout.listed() if item not in before]
    with pytest.raises(DesiredStateError, match=f"image {arm}: expected at most 127 layers .* got 128"):
        place.composer().compose(image, {DATA: artifacts})
    assert [item for item in place.layout.listed() if item not in before] == known, "nothing half-made has a name"


def test_a_signed_document_that_is_no_index_is_refused(place: Place) -> None:
    odd = place.layout.put(b'{"mediaType":"x","manifests":[{"digest":"sha256:%s"}]}' % (b"1" * 64))
    with pytest.raises(TrustError):
        place.composer().compose(odd, {DATA: (place.artifact({"a": b"1"}),)})


def test_two_versions_of_indexes_differ_by_files_and_layers(tmp_path: Path) -> None:
    made = Project(tmp_path, tmp_path / "wheels")
    place = Place(made.layout, tmp_path)
    images = [index_in(place, text) for text in ("print(1)\n", "print(2)\n")]
    one, two = (made.version(image) for image in images)
    [found] = answers.diff(made.place, one.metadata.name, two.metadata.name)["images"]
    assert (found["before"], found["after"], found["missing"]) == (*images, "")
    assert found["files"] == ["~ app/app.py"]
    assert [len(found["layers"][sign]) for sign in ("added", "removed")] == [1, 1]


class Died(BaseException):
    """As a kill is: nobody catches it."""


@pytest.mark.parametrize("lists_referrers", [False, True], ids=["tags", "referrers"])
def test_a_death_anywhere_leaves_nothing_half_and_the_next_goes_on(tmp_path: Path, lists_referrers: bool) -> None:
    host, left = Host(lists_referrers=lists_referrers), [10_000]

    class Mortal(FakeRegistry):
        def _keep(self, data: bytes, reference: str) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise Died
            super()._keep(data, reference)

    def start(name: str) -> Place:
        registry = Mortal(host, Access(repository=f"{host.name}/team/digits"))
        return Place(MirroredLayout(tmp_path / name, registry), tmp_path)  # type: ignore[arg-type]

    place = start("first")
    image, data = index_in(place), place.artifact({"a": LARGE})
    found: set[Digest] = set()
    for life in range(100):
        left[0] = life % 12
        place = start(f"life-{life}")
        try:
            found.add(place.composer(f"memories-{life}").compose(image, {DATA: (data,)}))
        except Died:
            pass
        tags = {tag: digest for tag, digest in host.repositories["team/digits"].tags.items() if tag.startswith("run-")}
        for digest in tags.values():
            left[0] = 10_000
            verify_image(start(f"looks-{life}").layout, digest, trust_in(place.key))
        if found:
            break
    assert len(found) == 1
    assert {*tags.values()} == found
    held = host.repositories["team/digits"].tags
    for item in start("last").layout.manifest(next(iter(found)))["manifests"]:
        assert item["digest"] in host.repositories["team/digits"].manifests
        assert lists_referrers or item["digest"] in held.values(), "a clean-up of the registry would take it"


@needs_registry
def test_an_index_is_found_again_by_whoever_lost_everything(tmp_path: Path) -> None:
    with registry_server(tmp_path / "registry") as server:
        access = Access(repository=f"{server.address}/team/digits", unsafe_plain_http=True)
        with closing(Registry(access, tries=1)) as registry:
            place = Place(MirroredLayout(tmp_path / "one", registry), tmp_path)
            image, data = index_in(place), place.artifact({"a": LARGE})
            composed = place.composer("memories-1").compose(image, {DATA: (data,)})
            for item in place.layout.manifest(composed)["manifests"]:
                assert registry.has_manifest(item["digest"])
                layers = place.layout.manifest(item["digest"])["layers"]
                assert [layer for layer in layers if not registry.has_blob(layer["digest"])] == []
        with closing(Registry(access, tries=1)) as registry:
            place = Place(MirroredLayout(tmp_path / "two", registry), tmp_path)
            assert place.composer("memories-2").compose(image, {DATA: (data,)}) == composed
            assert list((tmp_path / "memories-2").glob("files-*.json")) == []
            assert here(place.layout) < len(LARGE) // 2
            verify_image(place.layout, composed, trust_in(place.key))
