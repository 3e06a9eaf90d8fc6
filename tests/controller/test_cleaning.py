"""Mark and sweep: what is named, needed or lately used stays, whoever writes, pushes, dies or flips bytes meanwhile."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from controller.adapters.attest.signing import sign_image
from controller.adapters.attest.verifying import ImageTrust, verify_image
from controller.adapters.clock import SystemClock
from controller.adapters.keys import ImageKey
from controller.adapters.models import Models
from controller.adapters.oci.artifacts import ArtifactStore
from controller.adapters.oci.assembly import Program, assemble, assemble_index, based_on
from controller.adapters.oci.cleaning import GRACE_SECONDS, evict, sweep
from controller.adapters.oci.composed import MODEL, Composer
from controller.adapters.oci.layers import Stored, lay
from controller.adapters.oci.layout import Layout
from controller.adapters.oci.mirrored import MirroredLayout
from controller.adapters.oci.registry import Access, Registry
from controller.adapters.oci.withdrawing import Ours, clear
from policies.errors import OutsideError, TrustError
from policies.terms.digest import Digest
from tests.contracts.registry_server import registry_server, why_no_registry
from tests.fakes.provenance import where_from
from tests.fakes.registry import FakeRegistry, Host

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
OLD = 2 * GRACE_SECONDS


class Place:
    """A store with images and artifacts in it, of which time may pass."""

    def __init__(self, top: Path, layout: Layout | None = None) -> None:
        self.top, self.layout = top, layout or Layout(top / "store")
        self.key = ImageKey.generate(top / f"image{len(list(top.glob('image*')))}.pem")
        self.trust = ImageTrust(keys=(self.key.public_pem,))
        self.store = ArtifactStore(self.layout, Models(self.layout, self.key, self.trust))
        self.number = 0

    def image(self, text: str, *, shared: str = "shared") -> Digest:
        """A signed image of two layers, one of which others have too."""
        laid = [lay(self.layout, {name: Stored(data=name.encode())}) for name in (shared, f"app/{text}.py")]
        program = Program(entrypoint=("python", "/app/app.py"), env={"NAME": text})
        digest = assemble(self.layout, laid, program, annotations=based_on(None))
        sign_image(self.layout, digest, self.key, where_from())
        self.layout.tag(f"team:{text}", digest)
        self.layout.push(digest, tags=(f"i-{text}",))
        return digest

    def index(self, *texts: str) -> Digest:
        """A signed index of images, one for each kind of machine; who has been pushed before is the same again."""
        platforms = dict(zip(("linux/amd64", "linux/arm64"), texts, strict=True))
        images = {}
        for platform, text in platforms.items():
            laid = [lay(self.layout, {f"app/{text}.py": Stored(data=text.encode())})]
            images[platform] = assemble(self.layout, laid, Program(entrypoint=("python",)), annotations={}, platform=platform)
        digest = assemble_index(self.layout, images)
        sign_image(self.layout, digest, self.key, where_from())
        self.layout.tag(f"team:{'-'.join(texts)}", digest)
        self.layout.push(digest, tags=(f"i-{'-'.join(texts)}",))
        return digest

    def images_of(self, index: Digest) -> list[Digest]:
        return [Digest(item["digest"]) for item in self.layout.manifest(index)["manifests"]]

    def artifact(self, text: str, kind: str = "model") -> Digest:
        folder = self.top / f"folder-{text}"
        folder.mkdir()
        (folder / "w.bin").write_bytes(text.encode() * 1000)
        (folder / "same").write_bytes(b"same")
        return self.store.keep(kind, folder)

    def compose(self, image: Digest, model: Digest) -> Digest:
        return Composer(self.layout, self.top / "composed", self.key, self.trust, SystemClock()).compose(image, {MODEL: (model,)})

    def age(self, seconds: float = OLD) -> Layout:
        """Let time pass: nobody used anything for so long. Returns the store as another process has it."""
        for path in [*(self.layout.root / "blobs/sha256").iterdir(), *(self.layout.root / "used").glob("*")]:
            status = path.stat()
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns - int(seconds * 1e9)))
        self.layout._noted.clear()
        return self.layout

    def blobs(self) -> set[str]:
        return {f"sha256:{path.name}" for path in (self.layout.root / "blobs/sha256").iterdir()}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def is_whole(layout: Layout) -> bool:
    """Whether everything that the index lists is there, with all that it needs."""
    for item in layout.listed():
        layout.check(item["digest"])
        layout.check_all(item["digest"])
    return True


def test_what_nothing_names_goes_with_what_refers_to_it(place: Place) -> None:
    one, two = place.image("one"), place.image("two")
    kept, lost = place.artifact("kept"), place.artifact("lost")
    layout = place.age()
    before = place.blobs()
    told = sweep(layout, {one, kept}, dry_run=True)
    assert place.blobs() == before
    done = sweep(layout, {one, kept})
    assert [item.value() for item in done.removed] == [item.value() for item in told.removed]
    why = {item.name.split(".")[-2] if "sha256-" in item.name else item.name: item.why for item in done.removed if item.name}
    assert why["team:two"] == why[f"artifact-{lost[7:]}"] == "nothing names it"
    assert "what it is about goes too" in why.values()
    assert done.freed_bytes == sum(item.size_bytes for item in done.removed) > 0
    assert is_whole(layout)
    verify_image(layout, one, place.trust)
    place.store.fetch_model(kept, place.top / "back")
    for digest in (two, lost):
        assert digest not in place.blobs()
        assert layout.referrers(digest) == []
        assert not any(item.get("subject") == digest for item in layout.listed())
    assert sweep(layout, {one, kept}).removed == ()
    assert not list(layout.root.glob("gone-*"))
    assert {path.name for path in (layout.root / "used").iterdir()} <= {digest[7:] for digest in place.blobs()}


def test_what_is_composed_of_what_stays_stays(place: Place) -> None:
    image, model, other = place.image("one"), place.artifact("m"), place.artifact("n")
    stays, goes = place.compose(image, model), place.compose(image, other)
    layout = place.age()
    done = sweep(layout, {image, model})
    verify_image(layout, stays, place.trust)
    assert goes not in place.blobs()
    assert "what it is composed of is not in use any more" in {item.why for item in done.removed}
    assert is_whole(layout)


def test_what_was_used_lately_stays_with_all_that_it_needs(place: Place) -> None:
    one, two = place.image("one"), place.artifact("two")
    layout = place.age()
    assert Layout(layout.root).has(one)  # somebody else relies on the image, and says nothing of its layers
    sweep(layout, ())
    verify_image(layout, one, place.trust)
    assert two not in place.blobs()
    assert is_whole(layout)


def test_a_grace_shorter_than_an_hour_counts_as_an_hour(place: Place) -> None:
    one = place.image("one")
    sweep(place.layout, (), grace_seconds=0.0)
    assert place.layout.has(one)
    place.age(3700)
    sweep(place.layout, (), grace_seconds=0.0)
    assert place.blobs() == set()


def test_a_manifest_that_is_not_listed_and_blobs_of_nobody_go_when_they_are_old(place: Place) -> None:
    place.layout.put(b"nobody's")
    (place.layout.root / "new-torn").write_bytes(b"torn")
    layout = place.age()
    os.utime(layout.root / "new-torn", ns=(0, 0))
    (done,) = sweep(layout, ()).removed
    assert (done.name, done.why) == ("", "no manifest names it")
    assert not (layout.root / "new-torn").exists()


@pytest.mark.parametrize("how", ["flipped", "gone"])
def test_nothing_goes_while_a_named_manifest_is_damaged(place: Place, how: str) -> None:
    one, two = place.image("one"), place.image("two")
    layout = place.age()
    blob = layout.place(one)
    before = place.blobs()
    if how == "flipped":
        blob.write_bytes(blob.read_bytes().replace(b"sha256:", b"sha256;", 1))
        with pytest.raises(TrustError, match=f"manifest {one}: expected one that can be read"):
            sweep(layout, {one, two})
        assert place.blobs() == before
    else:
        blob.unlink()
        sweep(layout, {one, two})  # there is nothing more to lose of it
        verify_image(layout, two, place.trust)


class Died(BaseException):
    """The process ends here."""


@contextmanager
def dying(module: Any, name: str, after: int) -> Iterator[None]:
    """Die at a call of the operating system: not one of our own functions is replaced."""
    real, left = getattr(module, name), [after]

    def call(*args: Any, **more: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise Died
        return real(*args, **more)

    setattr(module, name, call)
    try:
        yield
    finally:
        setattr(module, name, real)


@pytest.mark.parametrize("name", ["rename", "replace", "unlink"])
@pytest.mark.parametrize("after", [0, 1, 4, 9])
def test_a_death_anywhere_leaves_a_whole_store(place: Place, name: str, after: int) -> None:
    one, two = place.image("one"), place.image("two")
    lost = place.artifact("lost")
    layout = place.age()
    with dying(os, name, after):
        try:
            sweep(layout, {one})
        except Died:
            pass
    assert is_whole(layout)
    verify_image(layout, one, place.trust)
    again = Layout(layout.root)
    sweep(again, {one})
    assert is_whole(again)
    assert {two, lost}.isdisjoint(place.blobs())
    assert not list(layout.root.glob("gone-*"))


def test_a_full_disk_is_said(place: Place) -> None:
    place.image("one")
    layout = place.age()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    real = os.replace
    os.replace = full
    try:
        with pytest.raises(OutsideError, match="No space left"):
            sweep(layout, ())
    finally:
        os.replace = real
    assert is_whole(layout)


def test_builds_beside_sweeps_lose_nothing(place: Place) -> None:
    """Writers take up old blobs again that nothing names, at the moment in which others sweep them away."""
    for number in range(6):
        place.image(f"{number}")
        place.artifact(f"{number}")
    faults: list[BaseException] = []

    def build(own: Place, chance: random.Random) -> None:
        try:
            for _ in range(5):
                digest = own.image(f"{chance.randrange(6)}")
                verify_image(own.layout, digest, own.trust)
                own.layout.check_all(own.store.keep("data", own.top / f"folder-{chance.randrange(6)}"))
        except Exception as error:  # noqa: BLE001  told below
            faults.append(error)

    for turn in range(8):
        place.age()
        others = [Place(place.top, Layout(place.layout.root)) for _ in range(3)]
        threads = [threading.Thread(target=build, args=(own, random.Random(turn))) for own in others]
        threads += [threading.Thread(target=lambda: [sweep(Layout(place.layout.root), ()) for _ in range(10)])]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert faults == []
        assert is_whole(place.layout)


class Behind:
    """A registry, in memory or Debian's, with a folder in front of it."""

    def __init__(self, top: Path, open_: Callable[[], Any], host: Host | None = None) -> None:
        self.top, self.open, self.host = top, open_, host
        self.number = 0

    def place(self) -> Place:
        """A controller that starts without disk, with a key of its own."""
        self.number += 1
        top = self.top / f"c{self.number}"
        top.mkdir()
        return Place(top, MirroredLayout(top / "store", self.open()))


@pytest.fixture(params=["memory", "memory-referrers", "real"])
def behind(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Behind]:
    if request.param != "real":
        host = Host(lists_referrers=request.param.endswith("referrers"))
        yield Behind(tmp_path, lambda: FakeRegistry(host, Access(repository=f"{host.name}/team/digits")), host)
        return
    if why_no_registry():
        pytest.skip(why_no_registry())
    with registry_server(tmp_path / "registry") as server:
        access = Access(repository=f"{server.address}/team/digits", unsafe_plain_http=True)
        yield Behind(tmp_path, lambda: Registry(access, sleep=lambda _: None))


def cleared(place: Place, named: Any = (), *, after: float = 0.0, recorded: Any = (), **more: Any) -> Any:
    layout: Any = place.layout
    ours = Ours(trust=place.trust, recorded=frozenset(recorded), is_job=more.pop("is_job", lambda name: True))
    at = NOW + timedelta(seconds=after)
    jobs = more.pop("jobs", ())
    return clear(layout, frozenset(named), ours, jobs=frozenset(jobs), memory=place.top / "unnamed.json", now=at, **more)


def test_a_registry_is_cleared_of_what_was_unnamed_for_long(behind: Behind) -> None:
    place = behind.place()
    one, two = place.image("one"), place.image("two")
    kept, lost, data = place.artifact("kept"), place.artifact("lost"), place.artifact("data", "data")
    stays, goes = place.compose(one, kept), place.compose(two, lost)
    place.age()
    assert cleared(place, {one, kept}).removed == ()  # it is seen unnamed for the first time
    assert cleared(place, {one, kept}, after=GRACE_SECONDS - 1).removed == ()
    told = cleared(place, {one, kept}, after=GRACE_SECONDS, dry_run=True)
    done = cleared(place, {one, kept}, after=GRACE_SECONDS)
    assert {item.digest for item in done.removed} == {item.digest for item in told.removed} == {two, lost, goes}
    registry = place.layout.registry  # type: ignore[attr-defined]
    for digest in (two, lost, goes):
        assert registry.resolve(digest) is None
        assert not any(digest[7:] in tag for tag in registry.tags())
    other = behind.place()
    verify_image(other.layout, one, place.trust)
    verify_image(other.layout, stays, place.trust)
    assert registry.has_manifest(data)  # nobody signed it, and our ledger does not name it: perhaps it is another's
    cleared(place, {one, kept}, after=GRACE_SECONDS, recorded={data})
    assert [item.digest for item in cleared(place, {one, kept}, after=OLD, recorded={data}).removed] == [data]
    # What was removed may be made and pushed again at once.
    assert place.image("two") == two
    verify_image(behind.place().layout, two, place.trust)


def test_images_of_an_index_stay_as_long_as_it_and_go_with_it(place: Place) -> None:
    one, two, model = place.index("a", "b"), place.index("a", "c"), place.artifact("m")
    stays, goes = place.compose(one, model), place.compose(two, model)
    layout = place.age()
    done = sweep(layout, {one, model})
    assert is_whole(layout)
    for digest in (one, stays):
        verify_image(layout, digest, place.trust)
    assert {two, goes}.isdisjoint(place.blobs())
    assert sum(item.size_bytes for item in done.removed) == done.freed_bytes
    sweep(layout, ())
    assert place.blobs() == set()


def test_an_image_that_another_index_lists_stays_in_a_registry(behind: Behind) -> None:
    place = behind.place()
    one, two, model = place.index("a", "b"), place.index("a", "c"), place.artifact("m")
    shared, only = place.images_of(one)
    composed = place.compose(two, model)
    place.age()
    cleared(place, {two, model})
    told = cleared(place, {two, model}, after=GRACE_SECONDS, dry_run=True)
    assert [(item.digest, item.size_bytes > 0) for item in told.removed] == [(one, True)]
    assert [item.digest for item in cleared(place, {two, model}, after=GRACE_SECONDS).removed] == [one]
    registry = place.layout.registry  # type: ignore[attr-defined]
    assert not registry.has_manifest(one)
    other = behind.place()
    for digest in (two, composed):
        verify_image(other.layout, digest, place.trust)
    assert registry.has_manifest(shared)
    if not registry.lists_referrers(two):
        assert not registry.has_manifest(only)
        assert any(registry.resolve(tag) == shared for tag in registry.tags() if two[7:] in tag), "it is held by who needs it"
    # Once nothing is needed, all of it goes.
    place.age()
    for after in (2 * OLD, 3 * OLD):
        cleared(place, after=after)
    assert not any(registry.has_manifest(digest) for digest in (two, composed))
    if not registry.lists_referrers(two):
        assert not registry.has_manifest(shared)


def test_an_image_that_had_a_name_of_its_own_stays_with_the_index_that_lists_it(behind: Behind) -> None:
    place = behind.place()
    index = place.index("a", "b")
    alone = place.images_of(index)[0]
    sign_image(place.layout, alone, place.key, where_from())
    place.layout.push(alone, tags=("i-alone",))
    place.age()
    cleared(place, {index})
    assert cleared(place, {index}, after=GRACE_SECONDS).removed == ()
    verify_image(behind.place().layout, index, place.trust)


@pytest.mark.parametrize("lists_referrers", [False, True])
@pytest.mark.parametrize("deletions", [1, 2, 3])
def test_who_dies_while_clearing_a_registry_goes_on_where_he_was(tmp_path: Path, deletions: int, lists_referrers: bool) -> None:
    host = Host(lists_referrers=lists_referrers)

    class Dying(FakeRegistry):
        left = deletions

        def delete_manifest(self, digest: str) -> bool:
            Dying.left -= 1
            if Dying.left < 0:
                raise Died
            return super().delete_manifest(digest)

    place = Behind(tmp_path, lambda: Dying(host, Access(repository=f"{host.name}/team/digits"))).place()
    one, two = place.image("one"), place.image("two")
    place.age()
    cleared(place, {two})
    with pytest.raises(Died):
        cleared(place, {two}, after=OLD)
    Dying.left = 1000
    cleared(place, {two}, after=OLD)
    held = host.repositories["team/digits"]
    assert not any(one[7:] in tag for tag in held.tags)
    assert not any(one in data.decode() for data in held.manifests.values())
    verify_image(place.layout, two, place.trust)


def test_what_was_used_meanwhile_stays_in_a_registry(behind: Behind) -> None:
    place = behind.place()
    one = place.image("one")
    place.age()
    cleared(place)
    assert place.image("one") == one
    assert cleared(place, after=OLD).removed == ()
    place.age()
    assert [item.digest for item in cleared(place, after=OLD).removed] == []  # the time of grace began anew
    verify_image(behind.place().layout, one, place.trust)


def test_what_others_wrote_to_the_same_repository_stays(behind: Behind) -> None:
    ours, theirs = behind.place(), behind.place()
    one, two = ours.image("one"), theirs.image("two")
    both = ours.artifact("both")
    assert theirs.artifact("both") == both
    for place in (ours, theirs):
        place.age()
    cleared(ours)
    done = cleared(ours, after=OLD)
    assert [item.digest for item in done.removed] == [one]
    verify_image(behind.place().layout, two, theirs.trust)
    theirs.store.fetch_model(both, theirs.top / "back")


def test_a_registry_that_removes_nothing_is_told_of_and_nothing_more_happens(tmp_path: Path) -> None:
    host = Host(deletes=False)
    place = Behind(tmp_path, lambda: FakeRegistry(host, Access(repository=f"{host.name}/team/digits"))).place()
    one = place.image("one")
    place.age()
    cleared(place)
    done = cleared(place, after=OLD)
    assert "lets nobody" in done.refused
    assert done.removed == ()
    verify_image(place.layout, one, place.trust)


@pytest.mark.skipif(bool(why_no_registry()), reason=why_no_registry() or "there is one")
def test_debians_registry_without_deletion_is_told_of(tmp_path: Path) -> None:
    settings = {"storage": {"filesystem": {"rootdirectory": str(tmp_path / "data")}, "delete": {"enabled": False}}}
    with registry_server(tmp_path / "registry", settings) as server:
        access = Access(repository=f"{server.address}/team/digits", unsafe_plain_http=True)
        place = Behind(tmp_path, lambda: Registry(access, sleep=lambda _: None)).place()
        place.image("one")
        place.age()
        cleared(place)
        assert "turn deletion on there" in cleared(place, after=OLD).refused


def test_results_go_with_their_jobs(behind: Behind) -> None:
    place = behind.place()
    for name in ("one", "two"):
        place.layout.push(place.artifact(name, "data"), tags=(f"job-{name}",))
    place.age()
    cleared(place, jobs={"one"}, is_job=lambda name: True)
    done = cleared(place, after=OLD, jobs={"one"})
    assert done.removed == ()  # the data is no result: it has a name of its own besides
    assert {tag for tag in place.layout.registry.tags() if tag.startswith("job-")} == {"job-one", "job-two"}  # type: ignore[attr-defined]


def test_a_cache_stays_below_its_bound_and_what_was_used_last_stays_longest(behind: Behind) -> None:
    place = behind.place()
    sizes = 100_000
    folders = []
    for number in range(5):
        folder = place.top / f"big-{number}"
        folder.mkdir()
        (folder / "w.bin").write_bytes(os.urandom(sizes))
        folders.append(place.store.keep("data", folder))
        place.age(7200)
    (place.top / "mine").mkdir()
    only_here = place.layout.put(os.urandom(sizes))  # not pushed: it is nowhere else
    place.age(90000)
    registry = place.layout.registry  # type: ignore[attr-defined]
    done = evict(place.layout, 3 * sizes + 50_000, is_elsewhere=registry.has_blob)
    assert len(done.removed) == 3
    big = [place.layout.manifest(digest)["layers"][0]["digest"] for digest in folders]
    assert [place.layout.place(digest).exists() for digest in big] == [False, False, False, True, True]
    assert place.layout.place(only_here).exists()
    for number, digest in enumerate(folders):
        place.store.fetch_folder(digest, place.top / f"back-{number}")  # what went comes back
    assert evict(place.layout, 0, is_elsewhere=registry.has_blob).removed == ()  # it is in use now


def test_thousands_of_blobs_are_swept_and_the_named_ones_stay(place: Place) -> None:
    blobs = place.layout.root / "blobs/sha256"
    named = place.image("one")
    for number in range(3000):
        (blobs / f"{number:064x}").write_bytes(b"x")
    layout = place.age()
    assert len(sweep(layout, {named}).removed) == 3000
    verify_image(layout, named, place.trust)
