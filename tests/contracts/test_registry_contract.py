"""What a registry promises: the one in memory, and Debian's docker-registry with and without passwords."""

from __future__ import annotations

import io
import json
import os
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from controller.adapters.oci.layout import EMPTY, FILE, FILES, INDEX, MANIFEST, ArtifactStore, Layout
from controller.adapters.oci.mirrored import KNOWN_SECONDS, MirroredLayout
from controller.adapters.oci.registry import Access, Registry
from policies.canonical import canonical
from policies.errors import DesiredStateError, RefusedError, SilentError, TrustError
from policies.terms.digest import Digest, digest_of
from policies.terms.secret import Secret
from tests.contracts.registry_server import (
    PASSWORD,
    USER,
    Gateway,
    RegistryServer,
    registry_server,
    why_no_registry,
    with_passwords,
)
from tests.fakes.registry import FakeRegistry, Host

BIG_BYTES = 64 << 20
BOUND_BYTES = 12 << 20


class Fake:
    """The registry in memory."""

    def __init__(self, *, needs: bool = False, lists_referrers: bool = False) -> None:
        self.host = Host(needs=(USER, PASSWORD) if needs else None, lists_referrers=lists_referrers)
        self.secret = (USER, PASSWORD) if needs else ("", "")
        self.number = 0

    def access(self, path: str) -> Access:
        user, password = self.secret
        return Access(repository=f"{self.host.name}/{path}", username=user, password=Secret(password), origin="Secret a/b")

    def path(self) -> str:
        """A repository that nobody used yet."""
        self.number += 1
        return f"team-a/digits{self.number}"

    def open(self, access: Access) -> Any:
        return FakeRegistry(self.host, access)

    def counted(self, path: str) -> tuple[Any, Callable[[], int]]:
        """A repository, and how many requests were answered there or on its host."""
        return self.open(self.access(path)), lambda: self.host.requests

    def silent(self) -> Any:
        return FakeRegistry(Host(is_silent=True), self.access("x"))

    def tamper(self, path: str, digest: str) -> None:
        held = self.host.repositories[path]
        store = held.blobs if digest in held.blobs else held.manifests
        store[digest] = b"x" + store[digest][1:]

    def forget(self, path: str, digest: str) -> None:
        self.host.repositories[path].blobs.pop(digest, None)
        self.host.repositories[path].manifests.pop(digest, None)


class Real(Fake):
    """docker-registry. All tests of one kind share a process; each has its own repositories."""

    def __init__(self, server: RegistryServer, *, needs: bool) -> None:
        super().__init__(needs=needs)
        self.server, self.opened = server, []
        self.between: Gateway | None = None

    def access(self, path: str) -> Access:
        return replace(super().access(path), repository=f"{self.server.address}/{path}", unsafe_plain_http=True)

    def open(self, access: Access) -> Any:
        registry = Registry(access, sleep=lambda _: None)
        self.opened.append(registry)
        return registry

    def counted(self, path: str) -> tuple[Any, Callable[[], int]]:
        self.between = self.between or Gateway(self.server.address)
        asked = self.between.asked
        # Each client with a password begins with a question that is not answered.
        return (
            self.open(replace(self.access(path), repository=f"{self.between.address}/{path}")),
            lambda: len([text for text in asked if not text.endswith(" 401")]),
        )

    def close(self) -> None:
        for registry in self.opened:
            registry.close()
        if self.between:
            self.between.close()

    def silent(self) -> Any:
        # Nothing listens at port 1.
        return self.open(replace(self.access("x"), repository="127.0.0.1:1/x"))

    def tamper(self, path: str, digest: str) -> None:
        place = self.server.blob(digest)
        place.write_bytes(b"x" + place.read_bytes()[1:])

    def forget(self, path: str, digest: str) -> None:
        self.server.forget(path, digest)


@pytest.fixture(scope="module", params=["fake", "fake-referrers", "fake-passwords", "real", "real-passwords"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fake]:
    needs = request.param.endswith("passwords")
    if request.param.startswith("fake"):
        yield Fake(needs=needs, lists_referrers=request.param == "fake-referrers")
        return
    if why_no_registry():
        pytest.skip(why_no_registry())
    folder = tmp_path_factory.mktemp("registry")
    with registry_server(folder, with_passwords(folder) if needs else None) as server:
        real = Real(server, needs=needs)
        yield real
        real.close()


def put(registry: Any, folder: Path, data: bytes) -> Digest:
    path = folder / f"blob-{len(list(folder.iterdir()))}"
    path.write_bytes(data)
    registry.put_blob(path, digest_of(data))
    return digest_of(data)


def fetched(registry: Any, digest: str) -> bytes:
    out = io.BytesIO()
    registry.fetch_blob(digest, out)
    return out.getvalue()


def described(data: bytes, media_type: str = FILE) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}


def manifest(registry: Any, folder: Path, *contents: bytes, **more: Any) -> bytes:
    """A manifest whose blobs are in the registry."""
    for data in (b"{}", *contents):
        put(registry, folder, data)
    layers = [described(data) for data in contents]
    value = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": FILES,
        "config": described(b"{}", EMPTY),
        "layers": layers,
    }
    return canonical({**value, **more})


def test_a_blob_comes_back_as_it_was(place: Fake, tmp_path: Path) -> None:
    registry = place.open(place.access(place.path()))
    for data in (b"some bytes", b"", os.urandom(3 << 20)):
        assert not registry.has_blob(digest_of(data))
        digest = put(registry, tmp_path, data)
        assert registry.has_blob(digest)
        assert fetched(registry, digest) == data
        registry.put_blob(tmp_path / "never read", digest)


def test_a_blob_that_is_not_what_its_digest_says_is_not_taken(place: Fake, tmp_path: Path) -> None:
    registry = place.open(place.access(place.path()))
    (tmp_path / "file").write_bytes(b"other bytes")
    with pytest.raises(TrustError, match="expected these bytes"):
        registry.put_blob(tmp_path / "file", digest_of(b"these bytes"))
    assert not registry.has_blob(digest_of(b"these bytes"))


def test_a_blob_that_is_missing_is_not_trusted(place: Fake) -> None:
    registry = place.open(place.access(place.path()))
    with pytest.raises(TrustError, match="it is missing") as caught:
        fetched(registry, digest_of(b"nobody put this"))
    assert caught.value.reason == "BlobMissing"
    for bad in ("latest", "sha256:short", "sha256:" + "0" * 63 + "G", "../../x"):
        with pytest.raises(TrustError):
            fetched(registry, bad)


def test_what_was_changed_in_the_registry_is_not_trusted(place: Fake, tmp_path: Path) -> None:
    path = place.path()
    registry = place.open(place.access(path))
    digest = put(registry, tmp_path, b"bytes that somebody changes " + path.encode())
    made = manifest(registry, tmp_path, b"layer " + path.encode())
    registry.put_manifest(made, digest_of(made))
    place.tamper(path, digest)
    place.tamper(path, digest_of(made))
    with pytest.raises(TrustError) as caught:
        fetched(registry, digest)
    assert caught.value.reason == "BlobChanged"
    # docker-registry looks for itself, and has no words for it but 500.
    with pytest.raises((TrustError, SilentError)):
        registry.manifest(digest_of(made))


def test_a_blob_of_another_repository_is_taken_over(place: Fake, tmp_path: Path) -> None:
    one, other = place.path(), place.path()
    digest = put(place.open(place.access(one)), tmp_path, b"shared by " + one.encode())
    registry = place.open(place.access(other))
    assert registry.mount_blob(digest, one)
    assert fetched(registry, digest) == b"shared by " + one.encode()
    assert not registry.mount_blob(digest_of(b"nowhere"), one)
    assert not registry.mount_blob(digest_of(b"nowhere"), "no/such/repository")
    assert not registry.has_blob(digest_of(b"nowhere"))


def test_a_manifest_has_a_digest_and_tags(place: Fake, tmp_path: Path) -> None:
    registry = place.open(place.access(place.path()))
    one, other = (manifest(registry, tmp_path, name) for name in (b"one", b"other"))
    assert registry.manifest("v1") is None
    assert registry.resolve("v1") is None
    assert not registry.has_manifest(digest_of(one))
    assert registry.put_manifest(one, digest_of(one)) == digest_of(one)
    assert registry.manifest(digest_of(one)) == one
    assert registry.manifest("v1") is None
    for data in (one, other):
        assert registry.put_manifest(data, "v1") == digest_of(data)
        assert registry.manifest("v1") == data
        assert registry.resolve("v1") == digest_of(data)
        assert registry.has_manifest("v1")
    assert registry.manifest(digest_of(one)) == one
    with pytest.raises(TrustError):
        registry.put_manifest(one, digest_of(other))
    for bad in ("../../v1", "a b", "x" * 129, "", "digits:v1"):
        with pytest.raises(DesiredStateError, match="expected at most 128"):
            registry.manifest(bad)


def test_a_manifest_whose_blobs_are_not_there_is_refused(place: Fake, tmp_path: Path) -> None:
    registry = place.open(place.access(place.path()))
    value = json.loads(manifest(registry, tmp_path, b"there"))
    value["layers"].append(described(b"not there"))
    with pytest.raises(RefusedError) as caught:
        registry.put_manifest(canonical(value), "v1")
    assert caught.value.reason == "RegistryRefused"
    assert registry.manifest("v1") is None


def test_what_is_attached_is_listed_once(place: Fake, tmp_path: Path) -> None:
    registry = place.open(place.access(place.path()))
    image = manifest(registry, tmp_path, b"image")
    subject = registry.put_manifest(image, digest_of(image))
    assert registry.referrers(subject) == []
    notes = {"dev.sigstore.bundle.predicateType": "x"}
    made = [
        manifest(registry, tmp_path, text, subject=described(image, MANIFEST), annotations=notes)
        for text in (b"first", b"second")
    ]
    for data in (*made, made[0]):
        registry.attach(subject, data)
    listed = registry.referrers(subject)
    assert sorted(item["digest"] for item in listed) == sorted(digest_of(data) for data in made)
    assert {item["artifactType"] for item in listed} == {FILES}
    assert [item["annotations"] for item in listed] == [notes, notes]
    assert registry.manifest(listed[0]["digest"]) in made
    assert registry.referrers(digest_of(made[0])) == []


def test_two_writers_one_after_the_other_keep_each_others_work(place: Fake, tmp_path: Path) -> None:
    access = place.access(place.path())
    writers = [place.open(access), place.open(access)]
    image = manifest(writers[0], tmp_path, b"image")
    subject = writers[0].put_manifest(image, "v1")
    made = []
    for number in range(4):
        writer = writers[number % 2]
        made.append(manifest(writer, tmp_path, b"%d" % number, subject=described(image, MANIFEST)))
        writer.attach(subject, made[-1])
    for writer in writers:
        assert {item["digest"] for item in writer.referrers(subject)} == {digest_of(data) for data in made}


def test_what_a_clean_up_removed_stops_nobody_who_attaches_more(place: Fake, tmp_path: Path) -> None:
    path = place.path()
    registry = place.open(place.access(path))
    image = manifest(registry, tmp_path, b"image of " + path.encode())
    subject = registry.put_manifest(image, "v1")
    made = [manifest(registry, tmp_path, b"%d" % number, subject=described(image, MANIFEST)) for number in range(3)]
    for data in made[:2]:
        registry.attach(subject, data)
    place.forget(path, digest_of(made[0]))
    registry.attach(subject, made[2])
    assert sorted(item["digest"] for item in registry.referrers(subject)) == sorted(digest_of(data) for data in made[1:])
    registry.attach(subject, made[0])
    assert len(registry.referrers(subject)) == 3


def test_threads_share_a_registry(place: Fake, tmp_path: Path) -> None:
    registry = place.open(place.access(place.path()))
    contents = [os.urandom(100_000) for _ in range(12)]
    paths = []
    for number, data in enumerate(contents):
        paths.append(tmp_path / str(number))
        paths[-1].write_bytes(data)
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(lambda both: registry.put_blob(both[0], digest_of(both[1])), zip(paths, contents, strict=True)))
        assert list(threads.map(lambda data: fetched(registry, digest_of(data)), contents)) == contents


def test_who_has_no_key_is_told_where_to_look(place: Fake) -> None:
    if place.secret[0] == "":
        pytest.skip("it lets everybody in")
    access = place.access(place.path())
    for wrong in (replace(access, username="", password=Secret("")), replace(access, password=Secret("not the password"))):
        registry = place.open(wrong)
        for ask in (registry.has_blob, registry.manifest, registry.referrers, partial(fetched, registry)):
            with pytest.raises(RefusedError, match="Secret a/b") as caught:
                ask(digest_of(b"x"))
            assert caught.value.reason == "RegistryRefused"
            assert "not the password" not in f"{caught.value!r} {caught.value.__cause__!r}"
            assert "\n" not in caught.value.message


def test_who_does_not_answer_is_silent(place: Fake, tmp_path: Path) -> None:
    registry = place.silent()
    (tmp_path / "x").write_bytes(b"x")
    asks = [
        lambda: registry.has_blob(digest_of(b"x")),
        lambda: registry.put_blob(tmp_path / "x", digest_of(b"x")),
        lambda: registry.mount_blob(digest_of(b"x"), "y"),
        lambda: fetched(registry, digest_of(b"x")),
        lambda: registry.manifest("v1"),
        lambda: registry.put_manifest(b"{}", "v1"),
        lambda: registry.referrers(digest_of(b"x")),
    ]
    for ask in asks:
        with pytest.raises(SilentError, match="expected an answer") as caught:
            ask()
        assert caught.value.reason == "RegistrySilent"


def test_a_big_blob_is_never_held_in_memory(place: Fake, tmp_path: Path) -> None:
    if not isinstance(place, Real):
        pytest.skip("the fake holds everything in memory")
    registry = place.open(place.access(place.path()))
    block = os.urandom(1 << 20)
    with (tmp_path / "big").open("wb") as file:
        for number in range(BIG_BYTES >> 20):
            file.write(number.to_bytes(4, "big") + block[4:])
    layout = Layout(tmp_path / "store")
    tracemalloc.start()
    try:
        digest = ArtifactStore(layout).put_folder(_only(tmp_path / "big"))
        blob = layout.manifest(digest)["layers"][0]["digest"]
        registry.put_blob(layout.place(blob), blob)
        with (tmp_path / "back").open("wb") as out:
            registry.fetch_blob(blob, out)
        assert (tmp_path / "back").stat().st_size == BIG_BYTES
        assert tracemalloc.get_traced_memory()[1] < BOUND_BYTES
    finally:
        tracemalloc.stop()
    Layout.check(layout, blob)


def _only(path: Path) -> Path:
    folder = path.with_name("folder")
    folder.mkdir()
    path.rename(folder / path.name)
    return folder


class Mirror:
    """A folder in front of a repository; a new one after the disk was lost is `again`."""

    def __init__(self, place: Fake, folder: Path) -> None:
        self.place, self.folder, self.path, self.number = place, folder, place.path(), 0
        self.seconds = 0.0

    def again(self) -> MirroredLayout:
        self.number += 1
        registry = self.place.open(self.place.access(self.path))
        return MirroredLayout(self.folder / f"mirror{self.number}", registry, seconds=lambda: self.seconds)


@pytest.fixture
def mirror(place: Fake, tmp_path: Path) -> Mirror:
    return Mirror(place, tmp_path)


def kept(layout: Layout, *contents: bytes, **more: Any) -> Digest:
    """A manifest in the folder, not pushed."""
    layers = [layout.descriptor(layout.put(data), FILE) for data in contents]
    value = {"schemaVersion": 2, "mediaType": MANIFEST, "config": layout.descriptor(layout.put(b"{}"), EMPTY), "layers": layers}
    return layout.put(canonical({**value, **more}))


def test_what_was_pushed_is_fetched_by_who_lost_the_disk(mirror: Mirror) -> None:
    one = mirror.again()
    digest = kept(one, b"first layer", b"second layer")
    one.tag("team/r:c-1-e-2", digest)
    one.push(digest, tags=("i-0123", "r-c-1-e-2"))
    other = mirror.again()
    assert other.has(digest)
    assert not other.is_here(digest)
    assert not other.has(digest_of(b"nobody put this"))
    assert other.resolve("i-0123") == other.resolve("r-c-1-e-2") == digest
    assert other.resolve("team/r:c-1-e-2") is None
    assert one.resolve("team/r:c-1-e-2") == digest
    assert other.path(digest).read_bytes() == one.get(digest)
    for layer, data in zip(other.manifest(digest)["layers"], (b"first layer", b"second layer"), strict=True):
        other.check(layer["digest"])
        assert other.get(layer["digest"]) == other.path(layer["digest"]).read_bytes() == data
        assert other.is_here(layer["digest"])
    for read in (other.get, other.check, other.path, other.manifest):
        with pytest.raises(TrustError, match="missing"):
            read(digest_of(b"nobody put this"))
    assert [path.name for path in other.root.iterdir() if path.name.startswith("new-")] == []


def test_folders_of_files_go_through_the_registry(mirror: Mirror) -> None:
    folder = mirror.folder / "m"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "w.bin").write_bytes(b"weights")
    (folder / "run").write_bytes(b"#!x")
    (folder / "run").chmod(0o755)
    digest = ArtifactStore(mirror.again()).put_folder(folder)
    other = mirror.again()
    ArtifactStore(other).fetch_folder(digest, mirror.folder / "back")
    assert (mirror.folder / "back/deep/w.bin").read_bytes() == b"weights"
    assert (mirror.folder / "back/run").stat().st_mode & 0o100
    assert other.resolve(f"artifact-{digest.removeprefix('sha256:')}") == digest
    # Whoever lost the disk and makes the same again needs nothing of it back.
    assert ArtifactStore(mirror.again()).put_folder(folder) == digest


def test_a_push_of_what_is_there_sends_nothing(mirror: Mirror) -> None:
    first = mirror.again()
    digest = kept(first, b"layer")
    first.push(digest, tags=("one", "two"))
    for tags in ((), ("one",), ("one", "two")):
        registry, count = mirror.place.counted(mirror.path)
        layout = MirroredLayout(first.root, registry, seconds=lambda: mirror.seconds)
        before = count()
        layout.push(digest, tags=tags)
        assert 1 <= count() - before <= 2
        before = count()
        layout.push(digest, tags=tags)
        assert count() == before
        mirror.seconds += KNOWN_SECONDS + 1
        layout.push(digest, tags=tags)
        assert 1 <= count() - before <= 2


def test_what_was_removed_from_the_registry_is_put_back(mirror: Mirror) -> None:
    layout = mirror.again()
    digest = kept(layout, b"layer of " + mirror.path.encode())
    layer = layout.manifest(digest)["layers"][0]["digest"]
    layout.push(digest, tags=("v1",))
    for blob in (digest, layer):
        mirror.place.forget(mirror.path, blob)
    again = MirroredLayout(layout.root, mirror.place.open(mirror.place.access(mirror.path)))
    again.push(digest, tags=("v1",))
    assert mirror.again().get(layer) == b"layer of " + mirror.path.encode()
    assert mirror.again().manifest(digest)["layers"][0]["digest"] == layer


def test_a_layer_that_only_the_registry_has_need_not_be_here(mirror: Mirror, tmp_path: Path) -> None:
    base, path = mirror.place.path(), mirror.place.access(mirror.path)
    layer = put(mirror.place.open(mirror.place.access(base)), tmp_path, b"layer of a base, " + base.encode())
    layout = mirror.again()
    assert layout.mount(layer, f"{path.host}/{base}")
    assert not layout.mount(layer, f"elsewhere.test/{base}")
    assert not Layout(tmp_path / "plain").mount(layer, f"{path.host}/{base}")
    config = layout.descriptor(layout.put(b"{}"), EMPTY)
    size = len(b"layer of a base, " + base.encode())
    value = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config}
    digest = layout.put(canonical({**value, "layers": [{"mediaType": FILE, "digest": layer, "size": size}]}))
    layout.push(digest, tags=("v1",))
    assert not layout.is_here(layer)
    missing = layout.put(canonical({**value, "layers": [described(b"nowhere")]}))
    with pytest.raises(TrustError, match="it is missing"):
        layout.push(missing)


def test_an_index_goes_with_its_manifests(mirror: Mirror) -> None:
    layout = mirror.again()
    children = [layout.descriptor(kept(layout, data), MANIFEST) for data in (b"amd64", b"arm64")]
    digest = layout.put(canonical({"schemaVersion": 2, "mediaType": INDEX, "manifests": children}))
    layout.push(digest, tags=("many",))
    other = mirror.again()
    found = other.resolve("many")
    assert found == digest
    assert [other.manifest(item["digest"])["mediaType"] for item in other.manifest(digest)["manifests"]] == [MANIFEST] * 2


def test_referrers_of_both_places_are_found_once(mirror: Mirror) -> None:
    one = mirror.again()
    image = kept(one, b"image")
    one.push(image)
    made = [kept(one, text, subject=one.descriptor(image, MANIFEST), artifactType=FILES) for text in (b"here", b"there", b"both")]
    for digest in (made[0], made[2]):
        one.tag(f"x.{digest[-8:]}", digest, {"subject": image})
    for digest in made[1:]:
        one.push(digest)
    assert sorted(digest_of(canonical(item)) for item in one.referrers(image)) == sorted(made)
    other = mirror.again()
    assert sorted(digest_of(canonical(item)) for item in other.referrers(image)) == sorted(made[1:])


def test_what_else_somebody_lists_as_a_referrer_harms_nobody(mirror: Mirror, tmp_path: Path) -> None:
    one = mirror.again()
    image = kept(one, b"image")
    one.push(image)
    good = kept(one, b"good", subject=one.descriptor(image, MANIFEST), artifactType=FILES)
    one.push(good)
    about_another = kept(one, b"about another", artifactType=FILES)
    one.push(about_another)
    registry = mirror.place.open(mirror.place.access(mirror.path))
    if not (isinstance(registry, FakeRegistry) and mirror.place.host.lists_referrers):
        listed = [*registry.referrers(image), one.descriptor(about_another, MANIFEST)]
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": listed}
        registry.put_manifest(canonical(index), image.replace(":", "-"), INDEX)
    assert [digest_of(canonical(item)) for item in mirror.again().referrers(image)] == [good]


def test_a_registry_without_answer_stops_nothing_that_is_here(mirror: Mirror) -> None:
    layout = MirroredLayout(mirror.folder / "alone", mirror.place.silent())
    digest = kept(layout, b"layer")
    assert layout.has(digest)
    assert layout.get(layout.manifest(digest)["layers"][0]["digest"]) == b"layer"
    layout.tag("v1", digest)
    for ask in (layout.push, layout.referrers, layout.has, layout.path):
        with pytest.raises(SilentError):
            ask(digest_of(b"elsewhere") if ask in (layout.has, layout.path) else digest)


def test_many_threads_fetch_a_blob_once(mirror: Mirror) -> None:
    one = mirror.again()
    digest = kept(one, os.urandom(200_000))
    one.push(digest)
    registry, count = mirror.place.counted(mirror.path)
    other = MirroredLayout(mirror.folder / "other", registry)
    layer = other.manifest(digest)["layers"][0]["digest"]
    before = count()
    with ThreadPoolExecutor(8) as threads:
        assert len(set(threads.map(lambda _: other.get(layer), range(16)))) == 1
    assert count() == before + 1
