"""Once a day the store is cleaned beside the passes; `clean` and `fetch` are the same by hand."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from controller import caretaking
from controller.adapters.attest.verifying import ImageTrust
from controller.adapters.models import Models
from controller.adapters.oci.artifacts import ArtifactStore
from controller.adapters.oci.layout import Layout
from controller.caretaking import EVERY, Caretaker, Store
from controller.keyring import image_key
from policies.errors import RefusedError
from policies.records import task_statement
from policies.terms.digest import Digest
from tests.controller.test_answers import Told
from tests.fakes.story import Story


class Keeping:
    """A story with a store that has real bytes in it."""

    def __init__(self, top: Path) -> None:
        self.top, self.layout, self.told = top, Layout(top / "store"), list[str]()
        self.story = Story()
        self.story.begin()
        self.caretaker = self.again()

    def again(self) -> Caretaker:
        """One of a controller that starts now."""
        return Caretaker(Store(layout=self.layout, trust=ImageTrust(), state=self.top), tell=self.told.append)

    def artifact(self, text: str) -> Digest:
        folder = self.top / f"f-{text}"
        folder.mkdir()
        (folder / "w").write_text(text)
        return ArtifactStore(self.layout).put_folder(folder)

    def look(self, *, days: float = 0.0) -> None:
        """A look after so many days, in which nobody used anything in the store."""
        self.story.world.move(int(timedelta(days=days).total_seconds()))
        self.story.settle()
        for path in (self.layout.root / "blobs/sha256").iterdir():
            os.utime(path, ns=(0, path.stat().st_mtime_ns - int(days * 86400e9)))
        for path in (self.layout.root / "used").glob("*"):
            os.utime(path, ns=(0, path.stat().st_mtime_ns - int(days * 86400e9)))
        self.caretaker.look(self.story.following, self.story.ports)
        self.caretaker.join(30)


@pytest.fixture
def keeping(tmp_path: Path) -> Keeping:
    return Keeping(tmp_path)


def test_a_new_store_is_cleaned_when_a_day_has_passed_and_then_once_a_day(keeping: Keeping) -> None:
    one = keeping.artifact("one")
    keeping.look()
    keeping.look(days=0.9)
    assert keeping.layout.place(one).exists()
    keeping.look(days=1.2)
    assert not keeping.layout.place(one).exists()
    assert len(keeping.told) == 1
    assert "store cleaned: " in keeping.told[0]
    two = keeping.artifact("two")
    keeping.caretaker = keeping.again()  # who starts again counts on from what is on disk
    keeping.look(days=0.5)
    assert keeping.layout.place(two).exists()
    keeping.look(days=1.5)
    assert not keeping.layout.place(two).exists()
    assert timedelta(days=1) == EVERY


def test_results_that_go_are_written_down_before_and_once(keeping: Keeping) -> None:
    keeping.look()
    recorded = keeping.story.following.observed
    assert recorded is not None
    done = next(task for task in recorded.recorded.tasks.values() if task.model)
    old = [
        replace(done, id=f"old{number}", model=keeping.artifact(f"{number}"), inputs=f"i{number}", task="fit")
        for number in range(2)
    ]
    keeping.story.ports.ledger.record([task_statement(task) for task in old])
    keeping.story.settle()
    keeping.look(days=40)
    swept = [said for said in keeping.story.statements() if said.kind == "swept"]
    keeping.story.settle()
    swept = swept or [said for said in keeping.story.statements() if said.kind == "swept"]
    assert [old[0].model in said.body["digests"] for said in swept] == [True]
    assert not any(old[1].model in said.body["digests"] for said in swept)  # the newest of its task
    assert [keeping.layout.place(task.model).exists() for task in old] == [False, True]
    after = keeping.story.following.observed
    assert after is not None
    assert "i0" not in after.recorded.inputs
    assert "i1" in after.recorded.inputs
    keeping.look(days=2)
    keeping.story.settle()
    assert keeping.story.kinds()["swept"] == 1


def test_nothing_goes_while_the_tip_is_not_trusted_and_that_is_told_once(keeping: Keeping) -> None:
    keeping.look()
    one = keeping.artifact("one")
    desired = keeping.story.following.memory.desired
    assert desired is not None
    keeping.story.following.memory.desired = replace(desired, trust_fault="signed by nobody")
    for _ in range(2):
        keeping.story.world.move(int(EVERY.total_seconds()) * 2)
        keeping.caretaker.look(keeping.story.following, keeping.story.ports)
        keeping.caretaker.join(30)
    assert keeping.layout.place(one).exists()
    assert [line for line in keeping.told if "not trusted" in line] == keeping.told
    assert len(keeping.told) == 1


def test_by_hand_it_tells_first_and_does_the_same(keeping: Keeping) -> None:
    one = keeping.artifact("one")
    keeping.look(days=2)
    keeping.layout._noted.clear()
    store, story = keeping.caretaker.store, keeping.story
    told = caretaking.clean(store, story.following, story.ports, dry_run=True).value()
    assert keeping.layout.place(one).exists()
    done = caretaking.clean(store, story.following, story.ports).value()
    assert done == told
    assert f"artifact-{one[7:]}" in [item["name"] for item in done["removed"]]
    assert {"where", "name", "digest", "sizeBytes", "why"} == set(done["removed"][0])
    assert not keeping.layout.place(one).exists()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Told:
    return Told(tmp_path_factory.mktemp("told"))


def test_the_command_tells_what_would_go_beside_a_running_controller(world: Told, tmp_path: Path) -> None:
    layout = Layout(world.place.state / "store")
    (tmp_path / "f").mkdir()
    (tmp_path / "f/w").write_text("lost")
    lost = ArtifactStore(layout).put_folder(tmp_path / "f")
    assert world.run("clean", "--dry-run")["removed"] == []
    for path in (layout.root / "blobs/sha256").iterdir():
        os.utime(path, ns=(0, 0))
    for path in (layout.root / "used").iterdir():
        os.utime(path, ns=(0, 0))
    found: dict[str, Any] = world.run("clean", "--dry-run")
    assert [item["digest"] for item in found["removed"] if item["name"]] == [lost]
    assert found["freedBytes"] == sum(item["sizeBytes"] for item in found["removed"]) > 0
    assert layout.place(lost).exists()
    assert world.run("clean")["removed"] == found["removed"]
    assert not layout.place(lost).exists()


def test_a_model_is_fetched_with_its_signature_and_checked(world: Told, tmp_path: Path) -> None:
    layout, key = Layout(world.place.state / "store"), image_key(world.place.state)
    store = ArtifactStore(layout, Models(layout, key, ImageTrust(keys=(key.public_pem,))))
    (tmp_path / "m/deep").mkdir(parents=True)
    (tmp_path / "m/deep/w").write_text("weights")
    model = store.keep("model", tmp_path / "m")
    found = world.run("fetch", model, str(tmp_path / "back"))
    assert (tmp_path / "back/deep/w").read_text() == "weights"
    assert (tmp_path / "back.pub").read_text() == key.public_pem
    assert {Path(found[name]).name for name in ("folder", "signature", "publicKey")} == {"back", "back.sig", "back.pub"}
    with pytest.raises(RefusedError, match="expected nothing there yet"):
        world.run("fetch", model, str(tmp_path / "back"))
