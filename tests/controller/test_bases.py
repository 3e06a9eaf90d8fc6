"""Base images: by digest alone, for this machine, with our Python; whatever else comes says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.adapters.oci.assembly import PYTHON
from controller.adapters.oci.bases import Bases
from controller.adapters.oci.layout import LAYER, Layout
from controller.adapters.oci.mirrored import MirroredLayout
from controller.adapters.oci.registry import Access, Registry
from policies.errors import DesiredStateError, RefusedError, SilentError, TrustError
from policies.terms.digest import digest_of
from tests.contracts.registry_server import RegistryServer, registry_server, why_no_registry, with_passwords
from tests.controller.tiny_base import (
    ARCHITECTURE,
    DOCKER_LAYER,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    USUAL,
    part,
    push,
    push_index,
)

pytestmark = pytest.mark.skipif(bool(why_no_registry()), reason=why_no_registry() or "there is one")
ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
OTHER = "3.9"
FOLDERS = {"usr/": b"", "usr/bin/": b""}


class Place:
    """A registry with a repository of bases, and the store of a project beside it."""

    def __init__(self, server: RegistryServer, folder: Path) -> None:
        self.host, self.folder = server.address, folder
        self.opened: list[Registry] = []
        self.bases = self.registry(f"{self.host}/base/{folder.name.replace('_', '-').lower()}")
        self.layout = MirroredLayout(folder / "store", self.registry(f"{self.host}/team/{folder.name.replace('_', '-').lower()}"))

    def registry(self, repository: str) -> Registry:
        self.opened.append(Registry(access(repository), sleep=lambda _: None))
        return self.opened[-1]

    def reference(self, digest: str) -> str:
        return f"{self.bases.repository}@{digest}"

    def reader(self, layout: Layout | None = None) -> Bases:
        return Bases(layout or self.layout, self.folder / "memories", access)

    def parts(self, *layers: dict[str, bytes | str]) -> str:
        return self.reference(push(self.bases, self.folder / "parts", [part(item) for item in layers]))


def access(repository: str) -> Access:
    return Access(repository=repository, unsafe_plain_http=True)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    with registry_server(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture
def place(server: RegistryServer, tmp_path: Path) -> Iterator[Place]:
    made = Place(server, tmp_path)
    yield made
    for registry in made.opened:
        registry.close()


def test_a_base_is_opened_and_its_layers_lie_beside_the_images_without_a_copy(place: Place) -> None:
    reference = place.parts(USUAL, {"etc/more": b"1"})
    base = place.reader().open(reference)
    assert (base.reference, base.python, base.version) == (reference, f"/usr/bin/python{PYTHON}", PYTHON)
    assert base.programs == ("/usr/bin/git", f"/usr/bin/python{PYTHON}")
    assert base.digest == reference.split("@")[1]
    assert len(base.layers) == len(base.diff_ids) == 2
    for layer in base.layers:
        assert place.layout.registry.has_blob(layer["digest"])
        assert not place.layout.is_here(layer["digest"])


def test_a_base_is_searched_once(place: Place, server: RegistryServer) -> None:
    reference = place.parts(USUAL)
    first = place.reader().open(reference)
    manifest = place.bases.manifest(first.digest)
    assert manifest is not None
    server.forget(place.bases.access.path, first.digest)
    assert place.reader().open(reference) == first


def test_a_base_of_another_registry_is_copied(place: Place, tmp_path: Path) -> None:
    with registry_server(tmp_path / "other") as other:
        elsewhere = place.registry(f"{other.address}/base")
        digest = push(elsewhere, tmp_path / "parts", [part(USUAL)])
        base = place.reader().open(f"{elsewhere.repository}@{digest}")
    assert place.layout.is_here(base.layers[0]["digest"])


def test_a_plain_folder_takes_a_base_whole(place: Place) -> None:
    layout = Layout(place.folder / "plain")
    base = place.reader(layout).open(place.parts(USUAL))
    layout.check(base.layers[0]["digest"])


def test_of_an_index_the_image_for_this_machine_is_taken(place: Place) -> None:
    ours = push(place.bases, place.folder / "parts", [part(USUAL)])
    theirs = push(place.bases, place.folder / "parts", [part({"x": b""})], architecture="s390x")
    index = push_index(place.bases, {"s390x": theirs, ARCHITECTURE: ours})
    base = place.reader().open(place.reference(index))
    assert (base.digest, base.reference) == (ours, place.reference(index))
    only = push_index(place.bases, {"s390x": theirs})
    with pytest.raises(DesiredStateError, match=f"for linux/{ARCHITECTURE} in its index, got linux/s390x") as caught:
        place.reader().open(place.reference(only))
    assert caught.value.reason == "BasePlatform"
    with pytest.raises(DesiredStateError, match=f"for linux/{ARCHITECTURE}, got one for linux/s390x"):
        place.reader().open(place.reference(theirs))


def test_of_an_index_the_image_for_another_kind_of_machine_is_taken_too(place: Place) -> None:
    made = {kind: push(place.bases, place.folder / "parts", [part(USUAL)], architecture=kind) for kind in ("amd64", "arm64")}
    reference = place.reference(push_index(place.bases, made))
    for kind, digest in made.items():
        base = place.reader().open(reference, platform=f"linux/{kind}")
        assert (base.digest, base.config["architecture"]) == (digest, kind)
        assert place.reader().open(reference, platform=f"linux/{kind}") == base, "what is remembered is what was found"
    with pytest.raises(DesiredStateError, match=r"for linux/s390x in its index, got linux/amd64, linux/arm64"):
        place.reader().open(reference, platform="linux/s390x")


def test_dockers_own_media_types_become_ocis(place: Place) -> None:
    digest = push(place.bases, place.folder / "parts", [part(USUAL, DOCKER_LAYER)], media_type=DOCKER_MANIFEST)
    index = push_index(place.bases, {ARCHITECTURE: digest}, DOCKER_LIST)
    base = place.reader().open(place.reference(index))
    assert [layer["mediaType"] for layer in base.layers] == [LAYER]


def test_a_layer_that_nobody_packed_is_read_as_well(place: Place) -> None:
    plain = "application/vnd.oci.image.layer.v1.tar"
    digest = push(place.bases, place.folder / "parts", [part(USUAL, plain)])
    base = place.reader().open(place.reference(digest))
    assert [layer["mediaType"] for layer in base.layers] == [plain]


@pytest.mark.parametrize("media_type", [ZSTD, FOREIGN, "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"])
def test_layers_that_cannot_be_read_or_handed_on_are_refused(place: Place, media_type: str) -> None:
    digest = push(place.bases, place.folder / "parts", [part(USUAL, media_type)])
    with pytest.raises(DesiredStateError, match="may be handed on") as caught:
        place.reader().open(place.reference(digest))
    assert caught.value.reason == "BaseLayers"


PYTHONS: dict[str, tuple[list[dict[str, bytes | str]], str]] = {
    "it lies in usr/bin": ([USUAL], f"/usr/bin/python{PYTHON}"),
    "names begin with a dot": ([{f"./usr/bin/python{PYTHON}": b""}], f"/usr/bin/python{PYTHON}"),
    "it is a link": ([{f"usr/bin/python{PYTHON}": "/opt/python"}], f"/usr/bin/python{PYTHON}"),
    "what is in usr/local goes first": ([{**USUAL, f"usr/local/bin/python{PYTHON}": b""}], f"/usr/local/bin/python{PYTHON}"),
    "another one is there too": ([{**USUAL, f"usr/local/bin/python{OTHER}": b""}], f"/usr/bin/python{PYTHON}"),
    "a later layer brings it": ([{"etc/x": b""}, USUAL], f"/usr/bin/python{PYTHON}"),
    "a later layer names its folder again": ([USUAL, {**FOLDERS, "usr/bin/x": b""}], f"/usr/bin/python{PYTHON}"),
    "it was hidden and came back": (
        [USUAL, {f"usr/bin/.wh.python{PYTHON}": b""}, {f"usr/bin/python{PYTHON}": b""}],
        f"/usr/bin/python{PYTHON}",
    ),
    "it was replaced in a folder emptied by the same layer": (
        [USUAL, {f"usr/bin/python{PYTHON}": b"", "usr/bin/.wh..wh..opq": b""}],
        f"/usr/bin/python{PYTHON}",
    ),
    "there is none": ([{"etc/x": b""}], "none"),
    "it is another version": ([{f"usr/bin/python{OTHER}": b""}], f"Python {OTHER}"),
    "a later layer hides it": ([USUAL, {f"usr/bin/.wh.python{PYTHON}": b""}], "none"),
    "a later layer hides its folder": ([USUAL, {"usr/.wh.bin": b""}], "none"),
    "a later layer empties its folder": ([USUAL, {"usr/bin/.wh..wh..opq": b""}], "none"),
    "a later layer has a link in its folder's place": ([USUAL, {"usr/bin": "/bin"}], "none"),
    "it is a folder": ([{f"usr/bin/python{PYTHON}/": b""}], "none"),
    "it lies elsewhere": ([{f"opt/usr/bin/python{PYTHON}": b""}], "none"),
}


@pytest.mark.parametrize("case", list(PYTHONS), ids=lambda text: text.replace(" ", "-"))
def test_the_python_that_a_container_would_see_is_found(place: Place, case: str) -> None:
    layers, expected = PYTHONS[case]
    reference = place.parts(*layers)
    if expected.startswith("/"):
        assert place.reader().open(reference).python == expected
        return
    with pytest.raises(DesiredStateError, match=f"expected Python {PYTHON}, as the controller has, got {expected}") as caught:
        place.reader().open(reference)
    assert caught.value.reason == "BasePython"


def test_a_base_by_tag_is_refused_with_the_digest_to_write(place: Place) -> None:
    digest = place.parts(USUAL).split("@")[1]
    place.bases.put_manifest(place.bases.manifest(digest) or b"", "3")
    repository = place.bases.repository
    with pytest.raises(DesiredStateError, match=f"got the tag 3, which may .*; write {repository}@{digest}") as caught:
        place.reader().open(f"{repository}:3")
    assert caught.value.reason == "BaseNotPinned"
    with pytest.raises(DesiredStateError, match=r"got the tag 4, which may .*; append @sha256"):
        place.reader().open(f"{repository}:4")
    with pytest.raises(DesiredStateError, match="expected a digest, got none; append @sha256"):
        place.reader().open(repository)
    assert place.reader().open(f"{repository}:3@{digest}").digest == digest


@pytest.mark.parametrize("name", ["python", "python:3", "team/python", "hort.example/Path@sha256:1", "h.example/p@md5:12", ""])
def test_what_names_no_image_by_digest_is_refused(tmp_path: Path, name: str) -> None:
    def nobody(_: str) -> Access:
        raise AssertionError("nobody is asked")

    with pytest.raises(DesiredStateError, match="expected") as caught:
        Bases(Layout(tmp_path / "store"), tmp_path / "memories", nobody).open(name)
    assert caught.value.reason == "BaseNotPinned"


def test_a_base_that_is_not_there_says_where_it_was_looked_for(place: Place, server: RegistryServer) -> None:
    with pytest.raises(DesiredStateError, match="it is not there; check path and digest") as caught:
        place.reader().open(place.reference(digest_of(b"none")))
    assert caught.value.reason == "BaseMissing"
    reference = place.parts({**USUAL, "etc/gone": place.folder.name.encode()})
    layer = place.reader().open(reference).layers[0]["digest"]
    for registry in (place.bases, place.layout.registry):
        server.forget(registry.access.path, layer)
    (place.folder / "memories").rename(place.folder / "lost")
    with pytest.raises(TrustError, match="it is missing"):
        place.reader().open(reference)


def test_a_registry_that_refuses_or_is_silent_is_told_apart(place: Place, tmp_path: Path) -> None:
    with (
        registry_server(tmp_path / "closed", with_passwords(tmp_path / "closed")) as closed,
        pytest.raises(RefusedError, match="give the project's registry secret a right to read it") as caught,
    ):
        place.reader().open(f"{closed.address}/base@{digest_of(b'1')}")
    assert caught.value.reason == "BaseRefused"
    # Nothing listens at port 1.
    silent = f"127.0.0.1:1/base@{digest_of(b'1')}"
    with pytest.raises(SilentError, match=f"base {silent}: "):
        place.reader().open(silent)


DAMAGED: dict[str, tuple[bytes, str]] = {
    "it is no gzip": (b"plain", "Not a gzipped file"),
    "it ends too soon": (part(USUAL).data[:-20], "ended before"),
}


@pytest.mark.parametrize("case", list(DAMAGED), ids=lambda text: text.replace(" ", "-"))
def test_a_layer_that_is_no_archive_is_refused(place: Place, case: str) -> None:
    data, words = DAMAGED[case]
    made = part(USUAL)
    digest = push(place.bases, place.folder / "parts", [type(made)(data=data, diff_id=made.diff_id)])
    with pytest.raises(DesiredStateError, match=f"expected a tar archive, got .*{words}") as caught:
        place.reader().open(place.reference(digest))
    assert caught.value.reason == "BaseDamaged"


def test_a_layer_with_other_content_than_its_config_says_is_refused(place: Place) -> None:
    made = part(USUAL)
    digest = push(place.bases, place.folder / "parts", [type(made)(data=made.data, diff_id=digest_of(b"other"))])
    with pytest.raises(DesiredStateError, match="got other content"):
        place.reader().open(place.reference(digest))
