"""What a store promises to those who keep images and artifacts in it: a folder alone, and a folder in front of every registry."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from controller.adapters.oci.artifacts import FILE, FILES, ArtifactStore
from controller.adapters.oci.layout import EMPTY, INDEX, MANIFEST, Layout
from controller.adapters.oci.mirrored import KNOWN_SECONDS, MirroredLayout
from controller.adapters.oci.seen import Seen
from policies.canonical import canonical
from policies.errors import SilentError, TrustError
from policies.terms.digest import Digest, digest_of
from tests.contracts.registry_places import KINDS, Fake, opened_place
from tests.fakes.registry import FakeRegistry

NOBODY = digest_of(b"nobody put this")


class Disk:
    """A folder alone: whoever looks again looks at the same folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seconds = 0.0

    def again(self) -> Layout:
        return Layout(self.folder / "store")

    def lose(self, digest: str) -> None:
        """Remove a blob or manifest from where others fetch it."""
        Layout(self.folder / "store").place(digest).unlink()

    def change(self, digest: str, change: Callable[[bytes], bytes]) -> None:
        """Change its bytes there."""
        place = Layout(self.folder / "store").place(digest)
        place.write_bytes(change(place.read_bytes()))

    can_put_back = False


class Mirror(Disk):
    """A folder in front of a repository: whoever looks again has lost the folder."""

    def __init__(self, place: Fake, folder: Path) -> None:
        super().__init__(folder)
        self.place, self.path, self.number = place, place.path(), 0

    def again(self) -> MirroredLayout:
        self.number += 1
        registry = self.place.open(self.place.access(self.path))
        return MirroredLayout(self.folder / f"mirror{self.number}", registry, seconds=lambda: self.seconds)

    def lose(self, digest: str) -> None:
        self.place.forget(self.path, digest)

    def change(self, digest: str, change: Callable[[bytes], bytes]) -> None:
        self.place.tamper(self.path, digest, change)

    can_put_back = True


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Fake]]:
    """One registry of each kind, opened when the first test wants it."""
    found: dict[str, Fake] = {}
    with ExitStack() as closing:

        def place(kind: str) -> Fake:
            if kind not in found:
                found[kind] = closing.enter_context(opened_place(kind, tmp_path_factory.mktemp("registry")))
            return found[kind]

        yield place


@pytest.fixture(params=("disk", *KINDS))
def store(request: pytest.FixtureRequest, places: Callable[[str], Fake], tmp_path: Path) -> Disk:
    return Disk(tmp_path) if request.param == "disk" else Mirror(places(request.param), tmp_path)


@pytest.fixture(params=KINDS)
def mirror(request: pytest.FixtureRequest, places: Callable[[str], Fake], tmp_path: Path) -> Mirror:
    return Mirror(places(request.param), tmp_path)


def made(layout: Layout, *contents: bytes, **more: Any) -> Digest:
    """A manifest in the folder, not pushed."""
    layers = [layout.descriptor(layout.put(data), FILE) for data in contents]
    config = layout.descriptor(layout.put(canonical({"of": [digest_of(data) for data in contents]})), EMPTY)
    return layout.put(canonical({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers, **more}))


def kept(layout: Layout, name: str, *contents: bytes, **more: Any) -> Digest:
    """A manifest as its users keep it: named here, and pushed."""
    digest = made(layout, *contents, **more)
    layout.tag(name, digest)
    layout.push(digest, tags=(name,))
    return digest


def attached(layout: Layout, image: Digest, text: bytes) -> Digest:
    """What refers to an image, as signatures do."""
    digest = made(layout, text, subject=layout.descriptor(image, MANIFEST), artifactType=FILES)
    layout.tag(f"{image.replace(':', '-')}.{digest[-8:]}", digest, {"subject": image, "artifactType": FILES})
    layout.push(digest)
    return digest


# Every store


def test_what_is_kept_is_found_by_who_looks_again(store: Disk) -> None:
    one = store.again()
    digest = kept(one, "c-1-e-2", b"first layer", b"second layer")
    other = store.again()
    assert other.has(digest)
    assert other.resolve("c-1-e-2") == digest
    assert other.resolve("c-9-e-9") is None
    assert other.path(digest).read_bytes() == one.get(digest) == other.get(digest)
    assert other.manifest(digest) == one.manifest(digest)
    config, *layers = other.named(digest)
    assert other.get(config) == one.get(config)
    for layer, data in zip(layers, (b"first layer", b"second layer"), strict=True):
        other.check(layer)
        assert other.get(layer) == other.path(layer).read_bytes() == data
        assert other.is_here(layer)
    other.check_all(digest)
    assert other.mend(digest) == ()
    assert [path.name for path in other.root.iterdir() if path.name.startswith("new-")] == []


def test_what_nobody_put_is_missing(store: Disk) -> None:
    layout = store.again()
    assert not layout.has(NOBODY)
    for read in (layout.get, layout.check, layout.manifest, layout.named, layout.check_all, layout.mend):
        with pytest.raises(TrustError, match="missing") as caught:
            read(NOBODY)
        assert caught.value.reason == "BlobMissing"
        assert NOBODY in caught.value.message
    for bad in ("latest", "sha256:short", "../../x"):
        with pytest.raises(TrustError, match="expected sha256"):
            layout.get(bad)


def test_a_name_goes_over_to_what_gets_it_last(store: Disk) -> None:
    layout = store.again()
    first = kept(layout, "v1", b"first")
    second = kept(layout, "v1", b"second")
    for looked in (layout, store.again()):
        assert looked.resolve("v1") == second
        assert looked.has(first)
    assert kept(layout, "v1", b"first") == first
    assert store.again().resolve("v1") == first


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda data: data[:-1],
    "corrupted": lambda data: bytes([data[0] ^ 1]) + data[1:],
    "swapped": lambda data: b"the layer of another image altogether",
    "longer": lambda data: data + b"\n",
    "empty": lambda data: b"",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_blob_that_was_changed_is_found_before_use_and_named(store: Disk, damage: str) -> None:
    digest = kept(store.again(), "v1", b"layer that will be " + damage.encode(), b"another")
    layer = store.again().named(digest)[1]
    store.change(layer, DAMAGES[damage])
    looked = store.again()
    for read in (looked.get, looked.check):
        # docker-registry promises the length of before, so half a blob is a line that breaks.
        with pytest.raises((TrustError, SilentError), match=layer):
            read(layer)
    with pytest.raises((TrustError, SilentError), match=layer):
        ArtifactStore(looked).fetch_folder(_files(looked, digest), store.folder / "out")
    # Nothing of it is kept, so nobody can come across it later.
    assert not store.can_put_back or not looked.is_here(layer)


def _files(layout: Layout, digest: Digest) -> Digest:
    """The same layers as a folder of files."""
    layers = [
        {**layer, "annotations": {"org.opencontainers.image.title": f"f{number}"}}
        for number, layer in enumerate(layout.manifest(digest)["layers"])
    ]
    return layout.put(canonical({**layout.manifest(digest), "artifactType": FILES, "layers": layers}))


def test_folders_of_files_come_back(store: Disk) -> None:
    folder = store.folder / "m"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "w.bin").write_bytes(b"weights")
    (folder / "run").write_bytes(b"#!x")
    (folder / "run").chmod(0o755)
    digest = ArtifactStore(store.again()).put_folder(folder)
    other = store.again()
    ArtifactStore(other).fetch_folder(digest, store.folder / "back")
    assert (store.folder / "back/deep/w.bin").read_bytes() == b"weights"
    assert (store.folder / "back/run").stat().st_mode & 0o100
    assert other.resolve(f"artifact-{digest.removeprefix('sha256:')}") == digest
    # Whoever lost the disk and makes the same again needs nothing of it back.
    assert ArtifactStore(store.again()).put_folder(folder) == digest


def test_what_refers_to_an_image_is_found_with_it(store: Disk) -> None:
    one = store.again()
    image, other_image = kept(one, "v1", b"image"), kept(one, "v2", b"other image")
    assert one.referrers(image) == []
    made_of = [attached(one, image, text) for text in (b"signature", b"provenance")]
    attached(one, other_image, b"about another")
    # Once more, as after a restart: nothing doubles.
    attached(one, image, b"signature")
    for layout in (one, store.again()):
        assert sorted(digest_of(canonical(item)) for item in layout.referrers(image)) == sorted(made_of)
        assert all(layout.get(item["layers"][0]["digest"]) in (b"signature", b"provenance") for item in layout.referrers(image))
    assert store.again().mend(image) == ()


def test_an_index_goes_with_its_manifests(store: Disk) -> None:
    layout = store.again()
    children = [layout.descriptor(made(layout, data), MANIFEST) for data in (b"amd64", b"arm64")]
    digest = layout.put(canonical({"schemaVersion": 2, "mediaType": INDEX, "manifests": children}))
    layout.tag("many", digest)
    layout.push(digest, tags=("many",))
    other = store.again()
    assert other.resolve("many") == digest
    assert [other.manifest(item["digest"])["mediaType"] for item in other.manifest(digest)["manifests"]] == [MANIFEST] * 2
    for child in children:
        other.check_all(child["digest"])


def test_many_threads_keep_and_read(store: Disk) -> None:
    layout = store.again()
    contents = [os.urandom(50_000) for _ in range(6)]
    with ThreadPoolExecutor(6) as threads:
        digests = list(threads.map(lambda both: kept(layout, f"t{both[0]}", both[1], b"shared"), enumerate(contents)))
        other = store.again()
        assert list(threads.map(lambda digest: other.get(other.named(digest)[1]), digests)) == contents
    assert [store.again().resolve(f"t{number}") for number in range(6)] == digests


def test_what_is_lost_is_put_back_or_named(store: Disk) -> None:
    layout = store.again()
    digest = kept(layout, "v1", b"layer of " + str(store.folder).encode(), b"one more of it")
    bundle = attached(layout, digest, b"signature of " + str(store.folder).encode())
    layers = layout.named(digest)[1:]
    store.seconds += KNOWN_SECONDS + 1
    for lost in ((layers[0],), (layers[1], digest), (layout.named(bundle)[1], bundle), (digest, bundle, *layers)):
        for blob in lost:
            store.lose(blob)
        if store.can_put_back:
            assert set(lost) <= set(layout.mend(digest))
            assert layout.mend(digest) == ()
            store.again().check_all(digest)
            assert [digest_of(canonical(item)) for item in store.again().referrers(digest)] == [bundle]
        store.seconds += KNOWN_SECONDS + 1
        if not store.can_put_back:
            with pytest.raises(TrustError, match=lost[0]):
                layout.mend(digest)
            return
    store.lose(layers[0])
    other = store.again()
    with pytest.raises(TrustError, match=f"missing in both: {layers[0]}"):
        other.mend(digest)


# Those with a registry behind them


def test_what_is_no_tag_names_something_here_alone(mirror: Mirror) -> None:
    one = mirror.again()
    digest = kept(one, "v1", b"layer")
    one.tag("team/r:c-1-e-2", digest)
    assert one.resolve("team/r:c-1-e-2") == digest
    assert mirror.again().resolve("team/r:c-1-e-2") is None


def test_a_push_of_what_is_there_sends_nothing(mirror: Mirror) -> None:
    first = mirror.again()
    digest = made(first, b"layer")
    first.push(digest, tags=("one", "two"))
    for tags in ((), ("one",), ("one", "two")):
        registry, count, _ = mirror.place.counted(mirror.path)
        layout = MirroredLayout(first.root, registry, seen=_moved(first, registry), seconds=lambda: mirror.seconds)
        before = count()
        layout.push(digest, tags=tags)
        assert 1 <= count() - before <= 2
        before = count()
        layout.push(digest, tags=tags)
        assert count() == before
        mirror.seconds += KNOWN_SECONDS + 1
        layout.push(digest, tags=tags)
        assert 1 <= count() - before <= 2


def _moved(layout: MirroredLayout, registry: Any) -> Seen:
    """The memory of a layout, as if the gateway in between were its registry."""
    memory = layout.root / "seen"
    old, new = (place.partition("/")[0] for place in (layout.reference, registry.repository))
    moved = layout.root / f"seen-{new}"
    moved.write_text(memory.read_text().replace(old, new))
    return Seen(moved)


def test_one_small_layer_costs_six_requests_and_its_bytes(mirror: Mirror) -> None:
    registry, count, received = mirror.place.counted(mirror.path)
    layout = MirroredLayout(mirror.folder / "one", registry, seconds=lambda: mirror.seconds)
    base = [os.urandom(100_000) for _ in range(4)]
    layout.push(made(layout, *base, b"print(1)"), tags=("c-1",))
    asked, sent = count(), received()
    digest = made(layout, *base, b"print(2)")
    layout.push(digest)
    layout.push(digest, tags=("c-2",))
    # The fake looks before it takes a blob.
    assert count() - asked <= (6 if not isinstance(registry, FakeRegistry) else 8)
    assert received() - sent < 1000
    assert mirror.again().resolve("c-2") == digest


def test_the_second_service_mounts_what_the_first_has(mirror: Mirror) -> None:
    seen = Seen(mirror.folder / "seen")
    base = [os.urandom(200_000) for _ in range(5)]
    first, _, _ = mirror.place.counted(mirror.path)
    one = MirroredLayout(mirror.folder / "one", first, seen=seen)
    one.push(made(one, *base, b"print('one')"), tags=("v1",))
    second, _, received = mirror.place.counted(mirror.place.path())
    # Another process: all that it shares is the memory on disk.
    two = MirroredLayout(mirror.folder / "two", second, seen=Seen(mirror.folder / "seen"))
    before = received()
    digest = made(two, *base, b"print('two')")
    two.push(digest, tags=("v1",))
    assert received() - before <= 0.05 * 1_000_000
    for blob in two.named(digest):
        assert second.has_blob(blob)
    # Where the memory is wrong, or lost, it is sent.
    third, _, received = mirror.place.counted(mirror.place.path())
    wrong = Seen(mirror.folder / "wrong")
    wrong.note(f"{third.repository.partition('/')[0]}/no/such/place", [digest_of(data) for data in base])
    three = MirroredLayout(mirror.folder / "two", third, seen=wrong)
    before = received()
    three.push(digest, tags=("v1",))
    assert received() - before >= 1_000_000


def test_what_was_removed_from_the_registry_is_put_back_by_a_push(mirror: Mirror) -> None:
    layout = mirror.again()
    digest = made(layout, b"layer of " + mirror.path.encode())
    layer = layout.named(digest)[1]
    layout.push(digest, tags=("v1",))
    for blob in (digest, layer):
        mirror.lose(blob)
    again = MirroredLayout(layout.root, mirror.place.open(mirror.place.access(mirror.path)))
    again.push(digest, tags=("v1",))
    assert mirror.again().get(layer) == b"layer of " + mirror.path.encode()
    assert mirror.again().named(digest)[1] == layer


def test_a_blob_that_was_removed_is_no_reason_to_fail(mirror: Mirror) -> None:
    layout = mirror.again()
    base = b"base of " + mirror.path.encode()
    layout.push(made(layout, base, b"print(1)"), tags=("v1",))
    # It is relied on to be there, and is not.
    mirror.lose(digest_of(base))
    digest = made(layout, base, b"print(2)")
    layout.push(digest, tags=("v2",))
    assert mirror.again().get(digest_of(base)) == base
    assert mirror.again().resolve("v2") == digest


def test_a_name_is_given_when_all_that_refers_is_listed(mirror: Mirror) -> None:
    layout = mirror.again()
    image = made(layout, b"image of " + mirror.path.encode())
    layout.push(image)
    bundle = attached(layout, image, b"signature")
    registry = mirror.place.open(mirror.place.access(mirror.path))
    if not registry.lists_referrers(image):
        # Another writer, who read before us and wrote after us.
        index = canonical({"schemaVersion": 2, "mediaType": INDEX, "manifests": []})
        registry.put_manifest(index, image.replace(":", "-"), INDEX)
        assert mirror.again().referrers(image) == []
    layout.push(image, tags=("v1",))
    assert [digest_of(canonical(item)) for item in mirror.again().referrers(image)] == [bundle]


def test_a_layer_that_only_the_registry_has_need_not_be_here(mirror: Mirror) -> None:
    base, access = mirror.place.path(), mirror.place.access(mirror.path)
    data = b"layer of a base, " + base.encode()
    (mirror.folder / "layer").write_bytes(data)
    mirror.place.open(mirror.place.access(base)).put_blob(mirror.folder / "layer", digest_of(data))
    layout = mirror.again()
    assert layout.mount(digest_of(data), f"{access.host}/{base}")
    assert not layout.mount(digest_of(data), f"elsewhere.test/{base}")
    assert not Layout(mirror.folder / "plain").mount(digest_of(data), f"{access.host}/{base}")
    config = layout.descriptor(layout.put(b"{}"), EMPTY)
    value = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config}
    layer = {"mediaType": FILE, "digest": digest_of(data), "size": len(data)}
    digest = layout.put(canonical({**value, "layers": [layer]}))
    layout.push(digest, tags=("v1",))
    layout.check_all(digest)
    assert not layout.is_here(digest_of(data))
    missing = layout.put(canonical({**value, "layers": [{**layer, "digest": NOBODY}]}))
    with pytest.raises(TrustError, match="it is missing"):
        layout.push(missing, tags=("v2",))
    assert mirror.again().resolve("v2") is None


def test_referrers_of_both_places_are_found_once(mirror: Mirror) -> None:
    one = mirror.again()
    image = kept(one, "v1", b"image")
    here = made(one, b"here", subject=one.descriptor(image, MANIFEST), artifactType=FILES)
    one.tag(f"x.{here[-8:]}", here, {"subject": image})
    both = attached(one, image, b"both")
    there = attached(mirror.again(), image, b"there")
    assert sorted(digest_of(canonical(item)) for item in one.referrers(image)) == sorted((here, both, there))
    assert sorted(digest_of(canonical(item)) for item in mirror.again().referrers(image)) == sorted((both, there))


def test_what_else_somebody_lists_as_a_referrer_harms_nobody(mirror: Mirror) -> None:
    one = mirror.again()
    image = kept(one, "v1", b"image")
    good = attached(one, image, b"good")
    about_another = kept(one, "v2", b"about another", artifactType=FILES)
    registry = mirror.place.open(mirror.place.access(mirror.path))
    if not registry.lists_referrers(image):
        listed = [*registry.referrers(image), one.descriptor(about_another, MANIFEST)]
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": listed}
        registry.put_manifest(canonical(index), image.replace(":", "-"), INDEX)
    assert [digest_of(canonical(item)) for item in mirror.again().referrers(image)] == [good]


def test_a_registry_without_answer_stops_nothing_that_is_here(mirror: Mirror) -> None:
    layout = MirroredLayout(mirror.folder / "alone", mirror.place.silent())
    digest = made(layout, b"layer")
    assert layout.has(digest)
    assert layout.get(layout.named(digest)[1]) == b"layer"
    layout.tag("v1", digest)
    for ask in (layout.push, layout.referrers, layout.mend, layout.has, layout.path):
        with pytest.raises(SilentError):
            ask(NOBODY if ask in (layout.has, layout.path) else digest)


def test_many_threads_fetch_a_blob_once(mirror: Mirror) -> None:
    one = mirror.again()
    digest = kept(one, "v1", os.urandom(200_000))
    registry, count, _ = mirror.place.counted(mirror.path)
    other = MirroredLayout(mirror.folder / "other", registry)
    layer = other.named(digest)[1]
    before = count()
    with ThreadPoolExecutor(8) as threads:
        assert len(set(threads.map(lambda _: other.get(layer), range(16)))) == 1
    assert count() == before + 1


# The memory


def test_the_memory_says_where_a_blob_was_seen_last_and_may_be_damaged(tmp_path: Path) -> None:
    seen, other = Seen(tmp_path / "seen"), Seen(tmp_path / "seen")
    assert seen.places("h", "d") == ()
    for path in ("a", "b", "c", "d", "b"):
        seen.note(f"h/{path}", ("d",))
    assert other.places("h", "d") == seen.places("h", "d") == ("b", "d", "c")
    other.forget("h/b", ("d", "never"))
    assert seen.places("h", "d") == ("d", "c")
    assert seen.places("other", "d") == ()
    with (tmp_path / "seen").open("ab") as file:
        file.write(b"\xff\xfe nonsense\n\nh x\nh torn sha256:")
    assert Seen(tmp_path / "seen").places("h", "d") == ("d", "c")
    (tmp_path / "seen").unlink()
    seen.note("h/e", ("d",))
    assert Seen(tmp_path / "seen").places("h", "d") == ("e",)
    nowhere = Seen(tmp_path / "no" / "such" / "folder")
    nowhere.note("h/a", ("d",))
    assert nowhere.places("h", "d") == ("a",)
