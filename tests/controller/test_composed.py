"""Composed images: data and models as layers over a code image, laid once, signed, found again by their inputs."""

from __future__ import annotations

import json
import subprocess
import tarfile
import tracemalloc
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from controller.adapters.attest.signing import sign_image
from controller.adapters.attest.statements import PROVENANCE
from controller.adapters.attest.verifying import ImageTrust, verify_image
from controller.adapters.clock import SystemClock
from controller.adapters.keys import ImageKey
from controller.adapters.models import Models
from controller.adapters.oci.artifacts import FILE, FILES, TITLE, ArtifactStore
from controller.adapters.oci.assembly import Program, assemble, based_on
from controller.adapters.oci.composed import COMPOSER, Composer, inputs_of
from controller.adapters.oci.layers import Stored, lay
from controller.adapters.oci.layout import EMPTY, MANIFEST, Layout
from controller.adapters.oci.mirrored import MirroredLayout
from controller.adapters.oci.registry import Access, Registry
from policies.canonical import canonical
from policies.errors import DesiredStateError, OutsideError, TrustError
from policies.terms.digest import Digest, digest_of
from tests.contracts.registry_server import RegistryServer, registry_server, why_no_registry
from tests.fakes.provenance import trust_in, where_from

needs_registry = pytest.mark.skipif(bool(why_no_registry()), reason=why_no_registry() or "there is one")
DATA, MODEL, EARLIER = "myelin/in/data", "myelin/in/model", "myelin/in/earlier/prep"
BIG_BYTES = 64 << 20
BOUND_BYTES = 8 << 20


class Place:
    """A store with a signed code image in it; whoever composes may lose his memories."""

    def __init__(self, layout: Layout, folder: Path) -> None:
        self.layout, self.folder = layout, folder
        path = folder / "image.pem"
        self.key = ImageKey.load(path) if path.exists() else ImageKey.generate(path)
        self.artifacts = ArtifactStore(layout, Models(layout, self.key, ImageTrust(keys=(self.key.public_pem,))))

    def image(self, text: str = "print(1)\n", *, key: ImageKey | None = None) -> Digest:
        laid = lay(self.layout, {"app/app.py": Stored(data=text.encode())})
        program = Program(entrypoint=("/opt/venv/bin/python", "/app/app.py"), env={"MYELIN_PYTHON": "3.11"})
        digest = assemble(self.layout, [laid], program, annotations=based_on(None))
        sign_image(self.layout, digest, key or self.key, where_from())
        self.layout.push(digest)
        return digest

    def artifact(self, files: Mapping[str, bytes]) -> Digest:
        top = self.folder / f"a-{digest_of(repr(sorted(files.items())).encode())[7:19]}"
        for name, data in files.items():
            (top / name).parent.mkdir(parents=True, exist_ok=True)
            (top / name).write_bytes(data)
        top.mkdir(exist_ok=True)
        return self.artifacts.keep("model", top)

    def composer(self, memories: str = "composed") -> Composer:
        return Composer(self.layout, self.folder / memories, self.key, trust_in(self.key), SystemClock())

    def odd(self, name: str) -> Digest:
        blob = self.layout.put(b"x")
        layers = [{**self.layout.descriptor(blob, FILE), "annotations": {TITLE: name}}]
        config = self.layout.descriptor(self.layout.put(b"{}"), EMPTY)
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "artifactType": FILES, "config": config, "layers": layers}
        return self.layout.put(canonical(manifest))

    def seen(self, image: Digest) -> dict[str, bytes]:
        """The files that a container of an image sees."""
        found = {}
        for layer in self.layout.manifest(image)["layers"]:
            with tarfile.open(self.layout.path(layer["digest"]), "r:gz") as archive:
                for member in archive:
                    content = archive.extractfile(member)
                    found[member.name] = content.read() if content else b"/"
        return found

    def config(self, image: Digest) -> dict[str, Any]:
        return dict(json.loads(self.layout.get(self.layout.manifest(image)["config"]["digest"])))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(Layout(tmp_path / "store"), tmp_path)


def test_nothing_to_lay_is_the_image_itself(place: Place) -> None:
    image = place.image()
    before = sorted(path.name for path in place.layout.root.rglob("*"))
    assert place.composer().compose(image, {}) == image
    assert place.composer().compose(image, {DATA: ()}) == image
    assert sorted(path.name for path in place.layout.root.rglob("*")) == before
    assert inputs_of(place.layout, image) == {}


def test_artifacts_lie_in_their_places_and_later_ones_win(place: Place) -> None:
    image = place.image()
    one, two = place.artifact({"a.csv": b"1", "deep/b.csv": b"2"}), place.artifact({"a.csv": b"3"})
    model = place.artifact({"w.bin": b"weights"})
    places = {DATA: (one, two), MODEL: (model,), EARLIER: (one,)}
    composed = place.composer().compose(image, places)
    seen = {path: data for path, data in place.seen(composed).items() if data != b"/"}
    assert seen == {
        "app/app.py": b"print(1)\n",
        f"{DATA}/a.csv": b"3",
        f"{DATA}/deep/b.csv": b"2",
        f"{MODEL}/w.bin": b"weights",
        f"{EARLIER}/a.csv": b"1",
        f"{EARLIER}/deep/b.csv": b"2",
    }
    below, on_top = place.layout.manifest(image), place.layout.manifest(composed)
    assert on_top["layers"][: len(below["layers"])] == below["layers"]
    assert len(on_top["layers"]) == len(below["layers"]) + 4 == len(place.config(composed)["rootfs"]["diff_ids"])
    assert place.config(composed)["config"] == place.config(image)["config"]
    assert on_top["annotations"] == {
        **below["annotations"],
        "io.myelin.image": image,
        "io.myelin.data": f"{one},{two}",
        "io.myelin.model": model,
        "io.myelin.earlier.prep": one,
    }
    assert inputs_of(place.layout, composed) == {
        "image": (image,),
        "data": (one, two),
        "model": (model,),
        "earlier/prep": (one,),
    }


def test_what_is_composed_is_signed_and_says_of_what(place: Place) -> None:
    image, data = place.image(), place.artifact({"a": b"1"})
    composed = place.composer().compose(image, {DATA: (data,)})
    definition = verify_image(place.layout, composed, trust_in(place.key))[PROVENANCE]["buildDefinition"]
    assert definition["buildType"] == COMPOSER
    assert definition["externalParameters"] == {"image": image, "places": {DATA: [data]}}
    assert [item["name"] for item in definition["resolvedDependencies"]] == ["image", DATA]


def test_equal_inputs_are_equal_bytes_for_anybody(place: Place, tmp_path: Path) -> None:
    places = {DATA: (place.artifact({"a": b"1"}),), MODEL: (place.artifact({"b": b"2"}),)}
    other = Place(Layout(tmp_path / "other"), tmp_path)
    again = {MODEL: (other.artifact({"b": b"2"}),), DATA: (other.artifact({"a": b"1"}),)}
    assert again == places
    assert other.composer("others").compose(other.image(), again) == place.composer().compose(place.image(), places)


def test_trials_with_the_same_data_share_one_layer_and_the_same_trial_one_image(place: Place) -> None:
    image, data = place.image(), place.artifact({"a": b"1" * 1000})
    composer, found = place.composer(), set()
    for number in range(5):
        places = {DATA: (data,), MODEL: (place.artifact({"w": b"%d" % number}),)}
        composed = composer.compose(image, places)
        assert composer.compose(image, places) == composed
        found.add(place.layout.manifest(composed)["layers"][1]["digest"])
        assert len(list((place.folder / "composed").glob("files-*.json"))) == number + 2
    assert len(found) == 1
    kept = place.layout.path(found.pop())
    stamp = kept.stat().st_mtime_ns
    composer.compose(image, {DATA: (data,), MODEL: (place.artifact({"w": b"new"}),)})
    assert kept.stat().st_mtime_ns == stamp


def test_a_place_with_an_empty_artifact_is_a_folder(place: Place) -> None:
    composed = place.composer().compose(place.image(), {MODEL: (place.artifact({}),)})
    assert place.seen(composed)[MODEL] == b"/"


def test_what_is_executable_stays_so(place: Place) -> None:
    top = place.folder / "programs"
    top.mkdir()
    (top / "run").write_bytes(b"#!/bin/sh\n")
    (top / "run").chmod(0o755)
    composed = place.composer().compose(place.image(), {DATA: (place.artifacts.put_folder(top),)})
    with tarfile.open(place.layout.path(place.layout.manifest(composed)["layers"][-1]["digest"]), "r:gz") as archive:
        assert archive.getmember(f"{DATA}/run").mode == 0o755


def test_a_big_file_is_never_held_in_memory_and_others_can_read_the_layer(place: Place) -> None:
    (place.folder / "big").mkdir()
    with (place.folder / "big" / "w.bin").open("wb") as file:
        file.truncate(BIG_BYTES)
    artifact, image, composer = place.artifacts.keep("model", place.folder / "big"), place.image(), place.composer()
    tracemalloc.start()
    try:
        composed = composer.compose(image, {MODEL: (artifact,)})
        assert tracemalloc.get_traced_memory()[1] < BOUND_BYTES
    finally:
        tracemalloc.stop()
    layer = place.layout.path(place.layout.manifest(composed)["layers"][-1]["digest"])
    listed = subprocess.run(["tar", "-tvzf", layer], capture_output=True, text=True, check=True)
    assert listed.stderr == ""
    assert f"{BIG_BYTES} 1980-01-02" in listed.stdout


def test_only_what_the_project_signed_is_laid_over(place: Place) -> None:
    data = place.artifact({"a": b"1"})
    foreign = place.image("print(2)\n", key=ImageKey.generate(place.folder / "other.pem"))
    with pytest.raises(TrustError, match="by a key of the project"):
        place.composer().compose(foreign, {DATA: (data,)})


def test_a_touched_or_missing_artifact_is_not_laid(place: Place) -> None:
    image, data = place.image(), place.artifact({"a": b"12345"})
    blob = place.layout.path(place.layout.manifest(data)["layers"][0]["digest"])
    blob.write_bytes(b"1234x")
    with pytest.raises(TrustError, match="expected the bytes of"):
        place.composer().compose(image, {DATA: (data,)})
    with pytest.raises(TrustError, match="missing"):
        place.composer().compose(image, {DATA: (digest_of(b"none"),)})
    with pytest.raises(TrustError, match=f"expected {FILES}"):
        place.composer().compose(image, {DATA: (image,)})
    assert [path.name for path in place.layout.root.iterdir() if path.name.startswith("new-")] == []


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "a//b", "./a", "", ".", "a\0b"])
def test_names_that_leave_their_place_are_refused(place: Place, name: str) -> None:
    with pytest.raises(TrustError, match="expected plain file names"):
        place.composer().compose(place.image(), {DATA: (place.odd(name),)})


def test_a_file_that_would_hide_another_is_refused(place: Place) -> None:
    with pytest.raises(DesiredStateError, match="rename it"):
        place.composer().compose(place.image(), {DATA: (place.artifact({"sub/.wh.a": b""}),)})


@pytest.mark.parametrize(
    "name", ["app", "etc", "myelin/in", "myelin/in/", "myelin/in/../../etc", "/myelin/in/data", "myelin/in//x"]
)
def test_nothing_is_laid_elsewhere(place: Place, name: str) -> None:
    with pytest.raises(DesiredStateError, match="expected a folder below myelin/in"):
        place.composer().compose(place.image(), {name: (place.artifact({"a": b""}),)})


def test_more_layers_than_engines_take_are_refused(place: Place) -> None:
    artifacts = [place.artifact({"a": b"%d" % number}) for number in range(127)]
    with pytest.raises(DesiredStateError, match="at most 127 layers with all data and models, got 128"):
        place.composer().compose(place.image(), {DATA: artifacts})


class Shared:
    """A project in a registry, and controllers that may lose their stores."""

    def __init__(self, server: RegistryServer, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.repository = f"{server.address}/team/{folder.name.replace('_', '-').lower()[:50]}"

    @contextmanager
    def controller(self, state: str) -> Iterator[Place]:
        with closing(Registry(Access(repository=self.repository, unsafe_plain_http=True), tries=1)) as registry:
            yield Place(MirroredLayout(self.folder / state, registry), self.folder)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    with registry_server(tmp_path_factory.mktemp("registry")) as running:
        yield running


def here(layout: Layout) -> int:
    return sum(path.stat().st_size for path in (layout.root / "blobs").rglob("*") if path.is_file())


@needs_registry
def test_a_composed_image_is_pushed_and_found_again_by_whoever_lost_everything(server: RegistryServer, tmp_path: Path) -> None:
    shared = Shared(server, tmp_path)
    with shared.controller("one") as place:
        image, data = place.image(), place.artifact({"a": b"x" * 100_000})
        composed = place.composer("memories-1").compose(image, {DATA: (data,)})
        registry = registry_of(place)
        assert registry.has_manifest(composed)
        assert [item for item in place.layout.manifest(composed)["layers"] if not registry.has_blob(item["digest"])] == []
    with shared.controller("two") as place:
        assert place.composer("memories-2").compose(image, {DATA: (data,)}) == composed
        assert list((tmp_path / "memories-2").glob("files-*.json")) == []
        assert here(place.layout) < 50_000
        assert inputs_of(place.layout, composed) == {"image": (image,), "data": (data,)}


@needs_registry
def test_with_other_code_the_data_is_not_sent_again(server: RegistryServer, tmp_path: Path) -> None:
    shared = Shared(server, tmp_path)
    with shared.controller("one") as place:
        data = place.artifact({"a": b"y" * 100_000})
        first = place.composer("memories-1").compose(place.image(), {DATA: (data,)})
    with shared.controller("two") as place:
        other = place.image("print(2)\n")
        second = place.composer("memories-1").compose(other, {DATA: (data,)})
        assert place.layout.manifest(second)["layers"][-1] == place.layout.manifest(first)["layers"][-1]
        assert here(place.layout) < 50_000


@needs_registry
def test_a_tag_that_somebody_moved_is_not_believed(server: RegistryServer, tmp_path: Path) -> None:
    shared = Shared(server, tmp_path)
    with shared.controller("one") as place:
        image, data, more = place.image(), place.artifact({"a": b"1"}), place.artifact({"a": b"2"})
        composer = place.composer("memories-1")
        good, wrong = composer.compose(image, {DATA: (data,)}), composer.compose(image, {DATA: (more,)})
        registry = registry_of(place)
        [tag] = [path.stem for path in (tmp_path / "memories-1").glob("run-*.json") if good in path.read_text()]
        registry.put_manifest(place.layout.get(wrong), tag)
    with shared.controller("two") as place:
        assert place.composer("memories-2").compose(image, {DATA: (data,)}) == good
        assert registry_of(place).resolve(tag) == good
        # The code image is signed by us, and no composed one.
        registry_of(place).put_manifest(place.layout.get(image), tag)
    with shared.controller("three") as place:
        assert place.composer("memories-3").compose(image, {DATA: (data,)}) == good


@needs_registry
def test_a_registry_that_went_away_is_told(tmp_path: Path) -> None:
    with registry_server(tmp_path / "registry") as server:
        shared = Shared(server, tmp_path)
        with shared.controller("one") as place:
            image, data = place.image(), place.artifact({"a": b"1"})
            composed = place.composer().compose(image, {DATA: (data,)})
    with shared.controller("one") as place:
        assert place.composer().compose(image, {DATA: (data,)}) == composed
        with pytest.raises(OutsideError):
            place.composer().compose(image, {MODEL: (data,)})


def registry_of(place: Place) -> Registry:
    assert isinstance(place.layout, MirroredLayout)
    return place.layout.registry
