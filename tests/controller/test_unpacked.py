"""Unpacked images leave the disk when nothing needs them, and never under something that runs or starts."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from controller.adapters.attest.verifying import ImageTrust
from controller.adapters.clock import SystemClock
from controller.adapters.engine_local import Unpacked
from controller.adapters.engine_local.unpacked import alone, name_of
from controller.adapters.oci.cleaning import GRACE_SECONDS, Swept
from controller.adapters.oci.layout import INDEX
from controller.caretaking import Store, remove
from policies.canonical import canonical
from policies.errors import SilentError
from policies.terms.task import ServerSpec
from tests.controller.test_engine_local import Place, image
from tests.controller.test_engine_local import place as place

DAYS = 30 * GRACE_SECONDS


def images(place: Place) -> Path:
    return place.folder / "engine" / "images"


def there(place: Place) -> set[str]:
    return {path.name for path in images(place).iterdir() if path.is_dir()}


def long_ago(place: Place, seconds: float = DAYS) -> None:
    """As if so much time had passed since anything was started."""
    for seal in images(place).glob("*.seal"):
        at = seal.stat().st_mtime - seconds
        os.utime(seal, (at, at))


def sweep(place: Place, used: Iterable[str] = (), *, dry_run: bool = False) -> Swept:
    return Unpacked(place.folder / "engine", place.layout).sweep(tuple(used), GRACE_SECONDS, dry_run)


def test_what_runs_keeps_its_image_and_what_ended_gives_it_back(place: Place) -> None:
    spec = place.job("slow", "slow")
    place.engine.start(spec)
    name = name_of(spec.image)
    long_ago(place)
    assert sweep(place) == Swept(kept=1)
    place.engine.stop("slow")
    assert place.ended("slow").phase == "failed"
    assert place.engine.jobs()["slow"].phase == "failed"
    told = sweep(place, dry_run=True)
    assert there(place) == {name}
    files = [path for path in (images(place) / name).rglob("*") if path.is_file()]
    assert told.freed_bytes == sum(path.stat().st_size for path in files) > 0
    assert [(item.name, item.digest) for item in told.removed] == [(f"unpacked {name}", "")]
    assert sweep(place) == told
    assert [path.name for path in images(place).iterdir() if name in path.name or path.is_dir()] == []
    # What is started again is unpacked again.
    place.engine.start(place.job("again", "ok"))
    assert place.ended("again").phase == "succeeded"


def test_a_server_keeps_its_image_also_while_it_is_down(place: Place) -> None:
    digest = image(place.layout, "server.py")
    place.engine.serve(ServerSpec(name="s", image=digest, config={"v": 1}))
    long_ago(place)
    assert sweep(place) == Swept(kept=1)
    server = place.folder / "engine" / "servers" / "s"
    (server / "exit.json").write_text(json.dumps({"code": 1, "reason": "ExitCode"}))
    assert sweep(place) == Swept(kept=1)
    (server / "exit.json").unlink()
    place.engine.retire("s")
    assert [item.name for item in sweep(place).removed] == [f"unpacked {name_of(digest)}"]


def test_what_was_started_lately_or_is_kept_stays_also_by_an_index(place: Place) -> None:
    spec = place.job("one", "ok")
    place.engine.start(spec)
    place.ended("one")
    long_ago(place, GRACE_SECONDS / 2)
    assert sweep(place).removed == ()
    # An hour counts at least, whatever is asked for.
    long_ago(place, -GRACE_SECONDS / 2)
    assert Unpacked(place.folder / "engine", place.layout).sweep((), 0.0) == Swept(kept=1)
    long_ago(place)
    assert sweep(place, [spec.image], dry_run=True) == Swept(kept=1)
    item = place.layout.descriptor(spec.image, "application/vnd.oci.image.manifest.v1+json")
    index = place.layout.put(canonical({"schemaVersion": 2, "mediaType": INDEX, "manifests": [item]}))
    assert sweep(place, [index]) == Swept(kept=1)
    place.engine.start(place.job("two", "ok"))
    place.ended("two")
    assert sweep(place) == Swept(kept=1)  # a start counts as use
    long_ago(place)
    assert len(sweep(place).removed) == 1


def test_what_was_left_behind_goes_and_what_may_still_run_from_it_does_not(place: Place) -> None:
    spec = place.job("slow", "slow")
    place.engine.start(spec)
    name, other = name_of(spec.image), "b" * 32
    for left in (f"{other}.new", f"{name}.new", f"{other}.touched", f"{name}.touched", "gone-x"):
        (images(place) / left).mkdir()
        (images(place) / left / "file").write_text("12345")
    for left in (f"{other}.seal", f"{other}.seal.new"):
        (images(place) / left).write_text("")
    (images(place) / "somebody-elses").mkdir()
    done = sweep(place)
    assert {item.name.removeprefix("unpacked ") for item in done.removed} == {f"{other}.new", f"{name}.new", f"{other}.touched"}
    assert done.freed_bytes == 15
    assert there(place) == {name, f"{name}.touched", "somebody-elses"}
    assert not list(images(place).glob(f"{other}*"))
    place.engine.stop("slow")
    place.ended("slow")
    assert [item.name for item in sweep(place).removed] == [f"unpacked {name}.touched"]


def test_a_supervisor_that_is_gone_holds_nothing_and_one_that_was_not_started_yet_does(place: Place) -> None:
    spec = place.job("one", "ok")
    place.engine.start(spec)
    place.ended("one")
    long_ago(place)
    job = place.folder / "engine/jobs/one"
    (job / "exit.json").unlink()
    kept = {name: (job / name).read_bytes() for name in ("supervisor.json", "program.json")}
    for name in kept:
        (job / name).unlink()
    assert sweep(place, dry_run=True) == Swept(kept=1)
    for name, content in kept.items():
        (job / name).write_bytes(content)
    deadline = time.monotonic() + 10  # the supervisor writes its last word before it is gone
    while sweep(place, dry_run=True).removed == () and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(sweep(place, dry_run=True).removed) == 1
    (job / "program.json").write_text(json.dumps({"pid": os.getpid(), "born": "another process of that number"}))
    assert len(sweep(place, dry_run=True).removed) == 1
    stat = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    (job / "program.json").write_text(json.dumps({"pid": os.getpid(), "born": stat[19]}))
    assert sweep(place, dry_run=True) == Swept(kept=1)


def test_a_start_at_the_same_moment_is_waited_for_and_seen(place: Place) -> None:
    spec = place.job("one", "ok")
    place.engine.start(spec)
    place.ended("one")
    long_ago(place)
    found: list[Swept] = []
    with alone(images(place)):  # as a start has it that unpacks
        sweeping = threading.Thread(target=lambda: found.append(sweep(place)))
        sweeping.start()
        sweeping.join(0.2)
        assert sweeping.is_alive()
        os.utime(images(place) / f"{name_of(spec.image)}.seal")
    sweeping.join(10)
    assert found == [Swept(kept=1)]


def test_starts_beside_sweeps_never_find_half_an_image(place: Place) -> None:
    ended = threading.Event()
    faults: list[Exception] = []

    def sweeps() -> None:
        try:
            while not ended.is_set():
                # What no program was started from for long, as far as it knows.
                with alone(images(place)):
                    for seal in images(place).glob("*.seal"):
                        os.utime(seal, (0, 0))
                sweep(place)
        except Exception as error:  # noqa: BLE001  it is told by the test
            faults.append(error)

    sweeping = threading.Thread(target=sweeps)
    sweeping.start()
    try:
        for number in range(10):
            # A job that was swept under before it ran says so and is no fault of the image: what is there is whole.
            place.engine._launcher.check(place.job(f"j{number}", "ok").image)
    finally:
        ended.set()
        sweeping.join(30)
    assert faults == []
    for root in there(place):
        assert (images(place) / root / "app" / "job.py").exists()


def test_it_is_part_of_what_cleaning_comes_to(place: Place) -> None:
    place.engine.start(place.job("one", "ok"))
    place.ended("one")
    long_ago(place)
    unpacked = Unpacked(place.folder / "engine", place.layout)
    store = Store(layout=place.layout, trust=ImageTrust(), state=place.folder, unpacked=unpacked.sweep)
    value = remove(store, {}, jobs=frozenset(), recorded=frozenset(), now=SystemClock().now()).value()
    (item,) = value["removed"]
    assert (item["where"], item["sizeBytes"]) == ("unpacked", value["freedBytes"])
    assert value["freedBytes"] > 0
    assert Unpacked(place.folder / "nowhere", place.layout).sweep(()) == Swept()


def test_a_disk_that_says_no_is_told(place: Place) -> None:
    place.engine.start(place.job("one", "ok"))
    place.ended("one")
    (images(place) / ".lock").unlink()
    (images(place) / ".lock").mkdir()
    with pytest.raises(SilentError):
        sweep(place)
