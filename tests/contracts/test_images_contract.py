"""What an image store promises: the simulated one, and the one that really builds, signs and checks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from controller.adapters.clock import SystemClock
from controller.adapters.images import SignedImages
from controller.adapters.keys import ImageKey
from controller.adapters.oci.layout import CONFIG, MANIFEST, Layout
from policies.canonical import canonical
from policies.errors import TrustError
from policies.terms.digest import Digest, digest_of
from policies.terms.task import ImageSpec, ImageState
from tests.fakes.engine import work
from tests.fakes.images import FakeImages
from tests.fakes.provenance import trust_in
from tests.fakes.repository import FakeRepository
from tests.fakes.wiring import CONTROLLER
from tests.fakes.world import START, World

DEADLINE_SECONDS = 180
"""The first build may have to fetch wheels."""


class Source:
    """A repository in memory, whose commits images are built from."""

    def __init__(self) -> None:
        self.world = World()
        self.repository = FakeRepository(self.world, CONTROLLER)

    def spec(self, files: dict[str, bytes], *, folder: str = "src", name: str = "r") -> ImageSpec:
        """Commit these files, and nothing else, below a folder."""
        tip = self.repository.fetch("main")
        before = {item.path: None for item in self.repository.files(tip)} if tip else {}
        changes = {**before, "notes": str(len(self.world.outside.commits)).encode()}
        changes |= {f"{folder}/{path}": content for path, content in files.items()}
        commit = self.repository.push(branch="main", parent=tip, changes=changes, message="m", at=START)
        return ImageSpec(repository=name, commit=commit, folder=folder, tree=self.repository.tree_id(commit, folder))


class Fake(Source):
    """The simulated store."""

    def __init__(self, _: Path) -> None:
        super().__init__()
        self.restart()

    def restart(self) -> None:
        self.world.building, self.world.failed = {}, {}
        self.images: Any = FakeImages(self.world)

    def ended(self, spec: ImageSpec) -> ImageState:
        work(self.world)
        state = self.images.look(spec)
        assert isinstance(state, ImageState)
        return state

    @contextmanager
    def touched(self, digest: Digest) -> Iterator[None]:
        self.world.outside.tampered.add(digest)
        yield
        self.world.outside.tampered.clear()

    def foreign(self) -> Digest:
        return Digest(digest_of(b"made elsewhere"))


class Real(Source):
    """The store on disk. All tests share one, so that wheels are fetched once."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder, self.layout = folder, Layout(folder / "store")
        self.key = ImageKey.generate(folder / "image.pem")
        self.restart()

    def restart(self) -> None:
        public = trust_in(self.key)
        self.images: Any = SignedImages(self.repository, self.layout, self.folder / "build", self.key, public, SystemClock())

    def ended(self, spec: ImageSpec) -> ImageState:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while time.monotonic() < deadline:
            state = self.images.look(spec)
            if isinstance(state, ImageState) and state.phase != "building":
                return state
            time.sleep(0.02)
        raise AssertionError("never built")

    @contextmanager
    def touched(self, digest: Digest) -> Iterator[None]:
        path = self.layout.path(self.layout.manifest(digest)["layers"][-1]["digest"])
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        yield
        path.write_bytes(whole)

    def foreign(self) -> Digest:
        config = self.layout.descriptor(self.layout.put(canonical({"os": "linux"})), CONFIG)
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": []}
        return self.layout.put(canonical(manifest))


Place = Fake | Real


@pytest.fixture(scope="module", params=[Fake, Real], ids=["fake", "real"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Place:
    make: Callable[[Path], Place] = request.param
    return make(tmp_path_factory.mktemp("images"))


def built(place: Place, spec: ImageSpec) -> Digest:
    place.images.start(spec)
    state = place.ended(spec)
    assert (state.phase, state.reason) == ("built", ""), state.message
    assert state.digest is not None
    return state.digest


def test_nobody_knows_an_image_before_it_is_started(place: Place) -> None:
    spec = place.spec({"app.py": b"print('nobody')\n"})
    assert place.images.look(spec) is None
    place.images.start(spec)
    assert place.images.look(spec).phase in ("building", "built")
    state = place.ended(spec)
    assert state.phase == "built", state.message
    assert dict(state.materials) != {}
    place.images.verify(state.digest)


def test_starting_again_changes_nothing(place: Place) -> None:
    spec = place.spec({"app.py": b"print('again')\n"})
    place.images.start(spec)
    digest = built(place, spec)
    place.images.start(spec)
    assert place.images.look(spec).phase == "built"
    assert built(place, spec) == digest


def test_equal_source_is_an_equal_image_at_any_commit(place: Place) -> None:
    one = place.spec({"app.py": b"print('equal')\n"})
    digest = built(place, one)
    other = place.spec({"app.py": b"print('equal')\n"})
    assert other.commit != one.commit
    assert place.images.look(other).digest == digest
    assert built(place, place.spec({"app.py": b"print('other')\n"})) != digest


def test_several_builds_all_come_to_their_end(place: Place) -> None:
    specs = [place.spec({"app.py": b"print(%d)\n" % number}, folder=f"src{number}") for number in range(3)]
    for spec in specs:
        place.images.start(spec)
    assert len({place.ended(spec).digest for spec in specs}) == 3


def test_what_was_built_survives_the_controller(place: Place) -> None:
    spec = place.spec({"app.py": b"print('survives')\n"})
    digest = built(place, spec)
    place.restart()
    assert place.images.look(spec).digest == digest
    place.images.verify(digest)


def test_a_build_whose_controller_died_is_started_again(place: Place) -> None:
    spec = place.spec({"app.py": b"print('died')\n"})
    place.images.start(spec)
    place.restart()
    place.images.verify(built(place, spec))


def test_what_cannot_be_built_says_why_and_may_be_tried_again(place: Place) -> None:
    spec = place.spec({"app.py": b"", "x.sh": b"", ".s2i/environment": b"INSTALL_SCRIPT=x.sh\n"})
    for _ in range(2):
        place.images.start(spec)
        state = place.ended(spec)
        assert (state.phase, state.digest, state.reason) == ("failed", None, "BaseMissing")
        assert "INSTALL_SCRIPT: expected a base image to run it on" in state.message
        assert "\n" not in state.message
    good = place.spec({"app.py": b"print('good')\n"})
    place.images.verify(built(place, good))


def test_an_image_that_is_not_there_or_not_ours_is_not_trusted(place: Place) -> None:
    with pytest.raises(TrustError):
        place.images.verify(Digest(digest_of(b"never built")))
    with pytest.raises(TrustError):
        place.images.verify(place.foreign())


def test_a_touched_image_is_not_trusted_even_if_it_was_before(place: Place) -> None:
    digest = built(place, place.spec({"app.py": b"print('touched')\n"}))
    place.images.verify(digest)
    with place.touched(digest), pytest.raises(TrustError):
        place.images.verify(digest)
    place.images.verify(digest)


def test_a_lock_that_was_resolved_is_told_and_gives_the_same_image(place: Place) -> None:
    files = {"app.py": b"print('loose')\n", "requirements.txt": b"idna>=3,<4\n"}
    spec = place.spec(files)
    loose = built(place, spec)
    text = place.images.lock(loose)
    assert "idna==3" in text
    told = place.images.look(spec).materials
    assert (told["folder"], told["tree"], told["lock"]) == ("src", spec.tree, digest_of(text.encode()))
    locked = place.spec({**files, "requirements.lock": text.encode()})
    assert built(place, locked) == loose
    assert "lock" not in place.images.look(locked).materials
    without = built(place, place.spec({"app.py": b"print('none')\n"}))
    with pytest.raises(TrustError, match="expected provenance with the lock that it was built by, got none"):
        place.images.lock(without)
