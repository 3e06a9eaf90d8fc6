"""What a registry promises: the one in memory, and Debian's docker-registry open, with passwords, tokens and a private CA."""

from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from controller.adapters.oci.artifacts import FILE, FILES
from controller.adapters.oci.layout import EMPTY, MANIFEST
from policies.canonical import canonical
from policies.errors import DesiredStateError, RefusedError, SilentError, TrustError
from policies.terms.digest import Digest, digest_of
from policies.terms.secret import Secret
from tests.contracts.registry_places import KINDS, Fake, opened_place


@pytest.fixture(scope="module", params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fake]:
    with opened_place(request.param, tmp_path_factory.mktemp("registry")) as opened:
        yield opened


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


def test_what_is_attached_side_by_side_is_listed_and_waits_for_nobody_who_failed(place: Fake, tmp_path: Path) -> None:
    registry = place.open(place.access(place.path()))
    image = manifest(registry, tmp_path, b"image")
    subject = registry.put_manifest(image, digest_of(image))
    made = [manifest(registry, tmp_path, b"%d" % number, subject=described(image, MANIFEST)) for number in range(4)]
    all_there = threading.Barrier(len(made), timeout=20)

    def bring(data: bytes) -> None:
        all_there.wait()
        if data == made[0]:
            raise SilentError("away")

    with ThreadPoolExecutor(len(made)) as threads:
        asked = [threads.submit(registry.attach, subject, data, partial(bring, data)) for data in made]
    with pytest.raises(SilentError, match="away"):
        asked[0].result()
    for item in asked[1:]:
        item.result()
    assert {item["digest"] for item in registry.referrers(subject)} == {digest_of(data) for data in made[1:]}
    registry.attach(subject, made[0])
    assert len(registry.referrers(subject)) == len(made)


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
        # The others let everybody in; who asks the token server for what, and as whom, is in test_registry_access.
        return
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


def test_a_blob_that_another_repository_is_said_to_have_is_sent_only_if_it_has_not(place: Fake, tmp_path: Path) -> None:
    one, other = place.path(), place.path()
    data = b"perhaps shared, " + one.encode()
    put(place.open(place.access(one)), tmp_path, data)
    for source, content, sent in ((one, data, 0), ("no/such/repository", b"mine, " + data, 1), (one, b"theirs? " + data, 1)):
        registry, count, received = place.counted(other)
        before = received()
        (tmp_path / "file").write_bytes(content)
        assert registry.put_blob(tmp_path / "file", digest_of(content), source=source) == bool(sent)
        assert received() - before == sent * len(content)
        assert fetched(registry, digest_of(content)) == content
        asked = count()
        assert not registry.put_blob(tmp_path / "never read", digest_of(content), source=source)
        assert count() == asked


def test_what_it_was_relied_on_for_may_be_forgotten(place: Fake, tmp_path: Path) -> None:
    path = place.path()
    registry = place.open(place.access(path))
    data = b"removed behind our back, " + path.encode()
    digest = put(registry, tmp_path, data)
    place.forget(path, digest)
    registry.forget()
    (tmp_path / "again").write_bytes(data)
    registry.put_blob(tmp_path / "again", digest)
    assert fetched(registry, digest) == data


def test_many_writers_keep_each_others_work(place: Fake, tmp_path: Path) -> None:
    access = place.access(place.path())
    writers = [place.open(access) for _ in range(3)]
    image = manifest(writers[0], tmp_path, b"image")
    subject = writers[0].put_manifest(image, "v1")
    made = [manifest(writers[0], tmp_path, b"%d" % number, subject=described(image, MANIFEST)) for number in range(3)]
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(lambda both: both[0].attach(subject, both[1]), zip(writers, made, strict=True)))
    listed = {item["digest"] for item in writers[0].referrers(subject)}
    assert len(listed) >= 1
    # No server compares before it writes: who was overwritten after it had looked finds out at its next look.
    for writer, data in zip(writers, made, strict=True):
        writer.attach(subject, data)
    assert {item["digest"] for item in writers[0].referrers(subject)} == {digest_of(data) for data in made}
