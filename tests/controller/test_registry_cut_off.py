"""A push that is killed, or meets a clean-up of the registry or a full disk: no half image has a name, the next try goes on."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from controller.adapters.oci.artifacts import FILE
from controller.adapters.oci.layout import EMPTY, INDEX, MANIFEST, Layout
from controller.adapters.oci.mirrored import MirroredLayout
from controller.adapters.oci.registry import Access, Registry
from policies.canonical import canonical
from policies.errors import SilentError, TrustError
from policies.terms.digest import Digest, digest_of
from tests.contracts.registry_server import Gateway, RegistryServer, gateway, registry_server, why_no_registry

ROOT = Path(__file__).parents[2]
KIND = "application/vnd.example.signature"
TAGS = ("c-1-e-2", "i-3")
SIZES = (30_000, 70_000)
ONE_AFTER_THE_OTHER = """
import sys
from pathlib import Path
from controller.adapters.oci.mirrored import MirroredLayout
from controller.adapters.oci.registry import Access, Registry
place, root, image, bundle, *tags = sys.argv[1:]
layout = MirroredLayout(Path(root), Registry(Access(repository=place, unsafe_plain_http=True)))
layout.push(image)
layout.push(bundle)
layout.push(image, tags=tags)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    if why_no_registry():
        pytest.skip(why_no_registry())
    with registry_server(tmp_path_factory.mktemp("registry")) as running:
        yield running


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image with something that refers to it, in a folder."""

    root: Path
    digest: Digest
    bundle: Digest

    @property
    def blobs(self) -> tuple[str, ...]:
        layout = Layout(self.root)
        return (*layout.named(self.digest), *layout.named(self.bundle))

    def push(self, registry: Registry) -> MirroredLayout:
        layout = MirroredLayout(self.root, registry)
        layout.push(self.digest)
        layout.push(self.bundle)
        layout.push(self.digest, tags=TAGS)
        return layout


def image(root: Path, sizes: tuple[int, ...] = SIZES) -> Image:
    layout = Layout(root)
    layers = [layout.descriptor(layout.put(os.urandom(size)), FILE) for size in sizes]
    config = layout.descriptor(layout.put(canonical({"of": layers[0]["digest"]})), EMPTY)
    digest = layout.put(canonical({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers}))
    about = {"subject": layout.descriptor(digest, MANIFEST), "artifactType": KIND}
    signed = [layout.descriptor(layout.put(b"signature of " + digest.encode()), KIND)]
    empty = layout.descriptor(layout.put(b"{}"), EMPTY)
    value = {"schemaVersion": 2, "mediaType": MANIFEST, "config": empty, "layers": signed, **about}
    bundle = layout.put(canonical(value))
    layout.tag("bundle", bundle, {"subject": digest, "artifactType": KIND})
    return Image(root=root, digest=digest, bundle=bundle)


def tags(server: RegistryServer, path: str) -> list[str]:
    line = http.client.HTTPConnection(server.address, timeout=20)
    try:
        line.request("GET", f"/v2/{path}/tags/list")
        return list(json.loads(line.getresponse().read()).get("tags") or ())
    finally:
        line.close()


def see_that_every_name_is_of_something_whole(server: RegistryServer, path: str) -> None:
    """All that a tag names is there, to the last byte."""
    with closing(Registry(Access(repository=f"{server.address}/{path}", unsafe_plain_http=True))) as registry:

        def see(reference: str) -> None:
            data = registry.manifest(reference)
            assert data is not None, reference
            value = json.loads(data)
            for child in value.get("manifests", ()):
                see(child["digest"])
            for blob in (*([value["config"]] if "config" in value else ()), *value.get("layers", ())):
                assert registry.has_blob(blob["digest"])
                assert digest_of(server.blob(blob["digest"]).read_bytes()) == blob["digest"]

        for tag in tags(server, path):
            see(tag)


def see_that_all_is_there(server: RegistryServer, path: str, pushed: Image, fresh: Path) -> None:
    """As from another machine."""
    see_that_every_name_is_of_something_whole(server, path)
    assert set(TAGS) <= set(tags(server, path))
    with closing(Registry(Access(repository=f"{server.address}/{path}", unsafe_plain_http=True))) as registry:
        other = MirroredLayout(fresh, registry)
        assert [other.resolve(tag) for tag in TAGS] == [pushed.digest] * 2
        for blob in other.named(pushed.digest):
            other.check(blob)
        assert [digest_of(canonical(item)) for item in other.referrers(pushed.digest)] == [pushed.bundle]


# Killed


@pytest.mark.parametrize("is_answered", [False, True], ids=["before the registry hears of it", "before we hear of it"])
def test_a_push_killed_at_any_request_names_no_half_image_and_is_gone_on_with(
    server: RegistryServer, tmp_path: Path, is_answered: bool
) -> None:
    # At every second request, the other half in the other case.
    number = int(is_answered)
    while _killed_at(number, server, tmp_path / str(number), is_answered=is_answered):
        number += 2
    assert number > 12


def _killed_at(number: int, server: RegistryServer, folder: Path, *, is_answered: bool) -> bool:
    """Whether the push got so far that it was killed at its request of this number."""
    folder.mkdir()
    path, pushed = f"killed/{is_answered:d}/r{number}", image(folder / "store")
    with gateway(server.address) as between:
        access = Access(repository=f"{between.address}/{path}", unsafe_plain_http=True)
        command = [sys.executable, "-c", ONE_AFTER_THE_OTHER, access.repository, str(pushed.root)]
        pusher = subprocess.Popen([*command, pushed.digest, pushed.bundle, *TAGS], cwd=ROOT)

        def kill(at: int) -> None:
            if at == number:
                pusher.send_signal(signal.SIGKILL)
                pusher.wait(20)
                raise ConnectionAbortedError

        setattr(between, "after" if is_answered else "before", kill)
        ended = pusher.wait(60)
    assert ended in (0, -signal.SIGKILL)
    see_that_every_name_is_of_something_whole(server, path)
    with gateway(server.address) as between:
        direct = Access(repository=f"{server.address}/{path}", unsafe_plain_http=True)
        with closing(Registry(direct)) as registry:
            missing = [blob for blob in pushed.blobs if not registry.has_blob(blob)]
        with closing(Registry(Access(repository=f"{between.address}/{path}", unsafe_plain_http=True))) as registry:
            pushed.push(registry)
        assert between.received == sum(Layout(pushed.root).place(blob).stat().st_size for blob in missing)
    see_that_all_is_there(server, path, pushed, folder / "fresh")
    return ended != 0


# Cleaned up


def test_a_clean_up_at_any_request_of_a_push_loses_nothing(server: RegistryServer, tmp_path: Path) -> None:
    number, was_reached = 0, True
    while was_reached:
        path, pushed = f"cleaned/r{number}", image(tmp_path / str(number))
        name_something(server, path, tmp_path / "older")
        with gateway(server.address) as between:
            cleaning = Cleaning(server, number)
            between.before = cleaning.before
            access = Access(repository=f"{between.address}/{path}", unsafe_plain_http=True)
            with closing(Registry(access, sleep=lambda _: None)) as registry:
                pushed.push(registry)
        see_that_all_is_there(server, path, pushed, tmp_path / f"fresh{number}")
        number, was_reached = number + 1, cleaning.was_reached
    assert number > 15
    # And all of them are there still, after the last one.
    server.clean_up()
    see_that_every_name_is_of_something_whole(server, "cleaned/r0")


class Cleaning:
    """A clean-up before one request."""

    def __init__(self, server: RegistryServer, number: int) -> None:
        self._server, self._number, self.was_reached = server, number, False

    def before(self, at: int) -> None:
        if at == self._number:
            self.was_reached = True
            self._server.clean_up()


def name_something(server: RegistryServer, path: str, folder: Path) -> None:
    """Give a repository its first tag: the clean-up of Distribution 2.8 gives up at one that has none."""
    with closing(Registry(Access(repository=f"{server.address}/{path}", unsafe_plain_http=True))) as registry:
        older = image(folder, (100,))
        MirroredLayout(folder, registry).push(older.digest, tags=("older",))


def test_what_only_another_manifest_lists_outlives_a_clean_up(server: RegistryServer, tmp_path: Path) -> None:
    path, pushed = "cleaned/lists", image(tmp_path / "store")
    with closing(Registry(Access(repository=f"{server.address}/{path}", unsafe_plain_http=True))) as registry:
        layout = pushed.push(registry)
        machines = [image(tmp_path / "store") for _ in range(2)]
        children = [layout.descriptor(machine.digest, MANIFEST) for machine in machines]
        index = layout.put(canonical({"schemaVersion": 2, "mediaType": INDEX, "manifests": children}))
        layout.push(index, tags=("many",))
        server.clean_up()
        fresh = MirroredLayout(tmp_path / "fresh", registry)
        assert [digest_of(canonical(item)) for item in fresh.referrers(pushed.digest)] == [pushed.bundle]
        for machine in machines:
            fresh.check_all(machine.digest)
        assert fresh.resolve("many") == index


def test_what_a_clean_up_took_is_put_back_at_the_next_look_or_named(server: RegistryServer, tmp_path: Path) -> None:
    path, pushed = "cleaned/untagged", image(tmp_path / "store")
    with closing(Registry(Access(repository=f"{server.address}/{path}", unsafe_plain_http=True))) as registry:
        now = [0.0]
        layout = MirroredLayout(pushed.root, registry, seconds=lambda: now[0])
        name_something(server, path, tmp_path / "older")
        # Deployed by digest alone: for a clean-up it is what nobody needs.
        layout.push(pushed.digest)
        server.clean_up()
        assert not registry.has_manifest(pushed.digest)
        assert set(layout.mend(pushed.digest)) >= {pushed.digest, *Layout(pushed.root).named(pushed.digest)}
        see = MirroredLayout(tmp_path / "fresh", registry)
        see.check_all(pushed.digest)
        assert [digest_of(canonical(item)) for item in see.referrers(pushed.digest)] == [pushed.bundle]
        server.clean_up()
        lost = MirroredLayout(tmp_path / "nothing", registry)
        with pytest.raises(TrustError, match=f"missing in both: {pushed.digest}; build it again"):
            lost.mend(pushed.digest)


# A full disk


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Callable[[str], None]]:
    """A disk of its own in a folder, as long as the block lasts; gives what makes it bigger."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("mount: expected the right to mount a small disk, as root has it")
    try:
        yield lambda bigger: subprocess.run(["mount", "-o", f"remount,size={bigger}", str(folder)], check=True) and None
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_registry_with_a_full_disk_is_named_and_gone_on_with_when_it_has_room(tmp_path: Path) -> None:
    if why_no_registry():
        pytest.skip(why_no_registry())
    pushed = image(tmp_path / "store", (200_000, 300_000, 6_000_000))
    big = Layout(pushed.root).named(pushed.digest)[3]
    with small_disk(tmp_path / "disk", "3m") as grow, registry_server(tmp_path / "disk" / "registry") as full:
        with gateway(full.address) as between:
            access = Access(repository=f"{between.address}/full", unsafe_plain_http=True)
            with closing(Registry(access, sleep=lambda _: None)) as registry:
                with pytest.raises(SilentError, match=f"blob {big}: expected an answer, got status 500") as caught:
                    pushed.push(registry)
                assert caught.value.reason == "RegistrySilent"
                assert tags(full, "full") == []
                grow("64m")
                before = between.received
                pushed.push(registry)
                small = sum(Layout(pushed.root).place(blob).stat().st_size for blob in pushed.blobs if blob != big)
                # What had arrived before is not sent again; what had to be is one layer, one bundle, one config at most.
                assert between.received - before < 6_000_000 + small - 400_000
        see_that_all_is_there(full, "full", pushed, tmp_path / "fresh")


def test_a_full_disk_here_keeps_no_half_blob(server: RegistryServer, tmp_path: Path) -> None:
    pushed = image(tmp_path / "store", (3_000_000, 100))
    path = "full/here"
    with closing(Registry(Access(repository=f"{server.address}/{path}", unsafe_plain_http=True))) as registry:
        pushed.push(registry)
        with small_disk(tmp_path / "disk", "1m") as grow:
            layout = MirroredLayout(tmp_path / "disk" / "store", registry)
            big = layout.named(pushed.digest)[1]
            with pytest.raises(SilentError, match=re.escape(f"{layout.root}: No space left on device")) as caught:
                layout.check(big)
            assert caught.value.reason == "DiskFull"
            assert not layout.is_here(big)
            assert [place.name for place in layout.root.iterdir() if place.name.startswith("new-")] == []
            grow("16m")
            layout.check(big)


def test_the_gateway_counts_what_it_is_sent(server: RegistryServer, tmp_path: Path) -> None:
    with gateway(server.address) as between:
        assert isinstance(between, Gateway)
        with closing(Registry(Access(repository=f"{between.address}/counted", unsafe_plain_http=True))) as registry:
            (tmp_path / "blob").write_bytes(b"counted")
            registry.put_blob(tmp_path / "blob", digest_of(b"counted"))
        assert between.received == len(b"counted")
