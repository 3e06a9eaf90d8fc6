"""Folders of files in the store: nothing unchanged is read or moved twice, and nothing changed comes out."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from controller.adapters.oci.artifacts import FILES, ArtifactStore, files_of
from controller.adapters.oci.known import SMALLEST_BYTES, KnownFiles
from controller.adapters.oci.layout import EMPTY, MANIFEST, Layout
from controller.adapters.oci.mirrored import MirroredLayout
from controller.adapters.oci.registry import Access
from policies.canonical import canonical
from policies.errors import RefusedError, TrustError
from policies.terms.digest import Digest, digest_of
from tests.fakes.registry import FakeRegistry, Host

BIG = os.urandom(SMALLEST_BYTES)


class Counting(ArtifactStore):
    """Counts the files that it read."""

    def __init__(self, layout: Layout) -> None:
        super().__init__(layout)
        self.read: list[int] = []

    def _taken(self, source: Any, status: os.stat_result, began: os.stat_result) -> tuple[Digest, int]:
        self.read.append(status.st_size)
        return super()._taken(source, status, began)


def folder(top: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(data)
    settle(top)
    return top


def settle(top: Path) -> None:
    """Let the disk's clock go on, as it has when a job was found to have ended."""
    KnownFiles(top.parent / "known").settled(*(path.stat() for path in top.rglob("*")))


@contextmanager
def counted_blobs(layout: Layout) -> Iterator[list[str]]:
    """The blobs that were written anew."""
    before = {path.name: path.stat().st_ino for path in (layout.root / "blobs/sha256").iterdir()}
    new: list[str] = []
    yield new
    new += [path.name for path in (layout.root / "blobs/sha256").iterdir() if before.get(path.name) != path.stat().st_ino]


def test_an_unchanged_file_is_read_once_and_moved_once(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "store")
    model = folder(tmp_path / "m", {"w.bin": BIG, "small": b"x"})
    first, later = Counting(layout), Counting(layout)  # another process has the same memory
    digest = first.put_folder(model)
    assert first.read == [1, len(BIG)]
    with counted_blobs(layout) as new:
        assert later.put_folder(model) == first.put_folder(model) == digest
    assert later.read == [1]
    assert new == []


def test_what_a_job_found_and_left_as_it_was_is_not_read(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "store")
    store = Counting(layout)
    digest = store.put_folder(folder(tmp_path / "d", {"data.bin": BIG}))
    store.read.clear()
    place = tmp_path / "job.new"
    store.fetch_folder(digest, place / "data")
    place.rename(tmp_path / "job")
    (tmp_path / "job/data/more").write_bytes(b"more")
    kept = store.put_folder(tmp_path / "job/data")
    assert store.read == [4]
    assert files_of(layout, kept)["data.bin"]["digest"] == digest_of(BIG)


def test_the_same_bytes_of_another_job_are_read_and_not_moved(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "store")
    store = Counting(layout)
    digest = store.put_folder(folder(tmp_path / "one", {"w.bin": BIG}))
    with counted_blobs(layout) as new:
        assert store.put_folder(folder(tmp_path / "two", {"w.bin": BIG})) == digest
    assert new == []


@pytest.mark.parametrize("keeps_times", [False, True])
def test_a_file_that_was_written_to_is_read_again(tmp_path: Path, keeps_times: bool) -> None:
    store = Counting(Layout(tmp_path / "store"))
    model = folder(tmp_path / "m", {"w.bin": BIG})
    first = store.put_folder(model)
    status = (model / "w.bin").stat()
    with (model / "w.bin").open("r+b") as file:
        file.write(bytes([BIG[0] ^ 1]))
    if keeps_times:
        os.utime(model / "w.bin", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert store.put_folder(model) != first
    assert store.read == [len(BIG)] * 2


def test_a_file_as_young_as_the_clock_is_coarse_is_read_again(tmp_path: Path) -> None:
    known = KnownFiles(tmp_path / "known")
    path = tmp_path / "w.bin"
    path.write_bytes(BIG)
    status = path.stat()
    known.keep(status, digest_of(BIG), began=status)  # the clock has not gone on since it was written
    assert known.digest(status) is None
    known.keep(status, digest_of(BIG), began=known.settled(status))
    assert known.digest(status) == digest_of(BIG)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'[["1:2:3:4:5", "no digest"]]', b'{"a": 1}'])
def test_a_damaged_memory_is_none(tmp_path: Path, content: bytes) -> None:
    layout = Layout(tmp_path / "store")
    model = folder(tmp_path / "m", {"w.bin": BIG})
    digest = ArtifactStore(layout).put_folder(model)
    (layout.root / "known-files.json").write_bytes(content)
    store = Counting(layout)
    assert store.put_folder(model) == digest
    assert store.read == [len(BIG)]


def test_a_memory_of_a_blob_that_is_gone_or_torn_puts_it_back(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "store")
    store, model = Counting(layout), folder(tmp_path / "m", {"w.bin": BIG})
    digest = store.put_folder(model)
    layout.place(digest_of(BIG)).unlink()
    assert store.put_folder(model) == digest
    os.truncate(layout.place(digest_of(BIG)), 10)
    assert store.put_folder(model) == digest
    store.fetch_folder(digest, tmp_path / "back")
    assert (tmp_path / "back/w.bin").read_bytes() == BIG


@pytest.mark.parametrize("how", ["truncated", "flipped", "flipped in its time", "swapped", "gone", "its manifest"])
def test_a_blob_that_is_not_what_it_was_is_named_and_comes_out_nowhere(tmp_path: Path, how: str) -> None:
    layout = Layout(tmp_path / "store")
    store = ArtifactStore(layout)
    other = os.urandom(len(BIG))
    digest = store.put_folder(folder(tmp_path / "m", {"w.bin": BIG, "v.bin": other}))
    store.fetch_folder(digest, tmp_path / "earlier")  # whoever was well once is looked at again
    wrong = layout.place(digest if how == "its manifest" else digest_of(BIG))
    status = wrong.stat()
    if how == "truncated":
        os.truncate(wrong, 100)
    elif how == "swapped":
        wrong.write_bytes(other)
    elif how == "gone":
        wrong.unlink()
    else:
        data = wrong.read_bytes()
        wrong.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        if how == "flipped in its time":
            os.utime(wrong, ns=(status.st_atime_ns, status.st_mtime_ns))
    named = digest if how == "its manifest" else digest_of(BIG)
    with pytest.raises(TrustError, match=f"blob {named}: expected"):
        store.fetch_folder(digest, tmp_path / "back")
    assert not (tmp_path / "back/w.bin").exists()


def test_a_stamp_tells_of_a_write_whose_time_was_set_back(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "store")
    digest = ArtifactStore(layout).put_folder(folder(tmp_path / "m", {"w.bin": BIG}))
    before, blob = layout.stamp(digest), layout.place(digest_of(BIG))
    status = blob.stat()
    KnownFiles(tmp_path / "known").settled(status)
    with blob.open("r+b") as file:
        file.write(b"x")
    os.utime(blob, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert layout.stamp(digest) != before


def test_what_a_job_can_still_write_to_does_not_change_the_store(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "store")
    store = ArtifactStore(layout)
    model = folder(tmp_path / "m", {"w.bin": BIG})
    digest = store.put_folder(model)
    store.fetch_folder(digest, tmp_path / "job")
    for path in (model / "w.bin", tmp_path / "job/w.bin"):
        assert path.stat().st_nlink == 1
        path.write_bytes(b"other")
    layout.check_all(digest)


def test_links_out_of_the_folder_and_odd_files_are_refused(tmp_path: Path) -> None:
    store = ArtifactStore(Layout(tmp_path / "store"))
    (tmp_path / "secret").write_text("x")
    for make in (
        lambda top: (top / "link").symlink_to(tmp_path / "secret"),
        lambda top: (top / "gone").symlink_to("nowhere"),
        lambda top: os.mkfifo(top / "pipe"),
    ):
        top = tmp_path / f"m{len(list(tmp_path.iterdir()))}"
        top.mkdir()
        make(top)
        with pytest.raises(RefusedError, match="expected a plain file"):
            store.put_folder(top)


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "", "a//b", "./x", "x\0y"])
def test_a_name_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    layout = Layout(tmp_path / "store")
    blob = layout.descriptor(layout.put(b"x"), "application/octet-stream")
    layers = [{**blob, "annotations": {"org.opencontainers.image.title": name}}]
    config = layout.descriptor(layout.put(b"{}"), EMPTY)
    value = {"schemaVersion": 2, "mediaType": MANIFEST, "artifactType": FILES, "config": config, "layers": layers}
    digest = layout.put(canonical(value))
    with pytest.raises(TrustError, match="expected plain file names"):
        ArtifactStore(layout).fetch_folder(digest, tmp_path / "back")


class Behind:
    """A registry in memory, and folders in front of it."""

    def __init__(self, top: Path) -> None:
        self.host, self.top, self.number = Host(), top, 0

    def layout(self) -> MirroredLayout:
        self.number += 1
        registry: Any = FakeRegistry(self.host, Access(repository=f"{self.host.name}/team/digits"))
        return MirroredLayout(self.top / f"mirror{self.number}", registry)


def test_in_front_of_a_registry_nothing_goes_twice(tmp_path: Path) -> None:
    behind, model = Behind(tmp_path), folder(tmp_path / "m", {"w.bin": BIG, "v": b"v"})
    layout = behind.layout()
    store = Counting(layout)
    digest = store.put_folder(model)
    sent = behind.host.received
    assert sent >= len(BIG)
    # The cache lost the big file; the registry has it, and nothing is moved either way.
    layout.place(digest_of(BIG)).unlink()
    store.read.clear()
    assert store.put_folder(model) == digest
    assert store.read == [1]
    assert not layout.place(digest_of(BIG)).exists()
    # Another controller, and another job with one file more.
    again = Counting(behind.layout())
    assert again.put_folder(folder(tmp_path / "two", {"w.bin": BIG, "v": b"v", "u": b"u"})) != digest
    assert behind.host.received - sent < 1000


def test_many_threads_keep_the_same_folder(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "store")
    store, model = ArtifactStore(layout), folder(tmp_path / "m", {"w.bin": BIG, "v": b"v"})
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(store.put_folder(model))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(found) == 8
    assert len(set(found)) == 1
    layout.check_all(found[0])
    assert not list(layout.root.glob("new-*"))
    assert json.loads((layout.root / "known-files.json").read_bytes())
