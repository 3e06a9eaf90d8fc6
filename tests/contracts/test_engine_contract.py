"""What an engine promises: the simulated one, and the one on this machine with real processes.

The one on Kubernetes is asked the same in `tests/cluster/test_engine_on_kubernetes.py`.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest

from controller.adapters.attest.verifying import ImageTrust
from controller.adapters.clock import SystemClock
from controller.adapters.engine_local import LocalEngine
from controller.adapters.engine_local.launch import HOST_PYTHON
from controller.adapters.keys import ImageKey
from controller.adapters.models import Models
from controller.adapters.oci.artifacts import ArtifactStore
from controller.adapters.oci.layers import Stored, lay
from controller.adapters.oci.layout import CONFIG, MANIFEST, Layout
from policies.canonical import canonical
from policies.errors import OutsideError, TrustError
from policies.terms.digest import Digest, digest_of
from policies.terms.task import JobSpec, JobState, ServerSpec, ServerState
from tests.fakes.engine import FakeEngine, work
from tests.fakes.world import Box, World

DEADLINE_SECONDS = 20
T = TypeVar("T")
PROGRAM = b"""
import json, os, sys, time
from pathlib import Path
what, data, model = sys.argv[1], Path(os.environ["DATA_PATH"]), Path(os.environ["MODEL_PATH"])
print("started", flush=True)
if what == "slow":
    time.sleep(600)
if what == "fail":
    print("no such column: age")
    sys.exit(3)
with open(os.environ["MYELIN_REPORT_PATH"], "a") as report:
    for number in range(2):
        report.write(json.dumps({"kind": "metric", "name": "step", "value": number}) + "\\n")
    report.write(json.dumps({"kind": "result", "loss": 0.25}) + "\\n")
(data / "out.txt").write_text(what + os.environ.get("SUFFIX", ""))
(model / "model.txt").write_text(",".join(sorted(path.name for path in data.iterdir())))
"""
SERVER = b"""
import http.server, json, os
print("up", flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/die":
            os._exit(1)
        content = json.loads(open(os.environ["MYELIN_CONFIG"]).read())
        content["suffix"] = os.environ.get("SUFFIX", "")
        self.send_response(200); self.end_headers()
        self.wfile.write(json.dumps(content).encode())
    def log_message(self, *args): pass
host = os.environ.get("HOST", "127.0.0.1")
http.server.ThreadingHTTPServer((host, int(os.environ["PORT"])), Handler).serve_forever()
"""


class Place(Protocol):
    """An engine, and what its outside can be asked for in a test."""

    engine: Any
    image: Digest
    server_image: Digest

    def restart(self) -> None:
        """Another controller takes over."""

    def job(self, name: str) -> JobState:
        """A job once it ended."""
        ...

    def server(self, name: str, spec: ServerSpec | None) -> ServerState:
        """A server once it is ready; asked for again and again where a spec is given."""
        ...

    def ask(self, name: str) -> dict[str, Any]:
        """What a server answers."""
        ...

    def kill(self, name: str) -> ServerState:
        """End a server's program, and see that it was noticed."""
        ...

    def close(self) -> None:
        """End everything."""


class Fake:
    """The simulated engine, whose programs run when somebody waits for them."""

    def __init__(self, _: Path) -> None:
        self.world = World()
        self.image = Digest(digest_of(b"an image"))
        self.world.programs[self.image] = _program
        self.server_image = Digest(digest_of(b"a server"))
        self.world.programs[self.server_image] = lambda _: None
        self.restart()

    def restart(self) -> None:
        self.engine: Any = FakeEngine(self.world)

    def job(self, name: str) -> JobState:
        work(self.world)
        state: JobState = self.engine.jobs()[name]
        return state

    def server(self, name: str, spec: ServerSpec | None) -> ServerState:
        work(self.world)
        if spec is not None:
            self.engine.serve(spec)
            work(self.world)
        state: ServerState = self.engine.servers()[name]
        return state

    def ask(self, name: str) -> dict[str, Any]:
        spec = self.world.outside.servers[name].spec
        return {**(spec.config or {}), "suffix": spec.env.get("SUFFIX", "")}

    def kill(self, name: str) -> ServerState:
        self.world.outside.servers[name].phase = "failed"
        state: ServerState = self.engine.servers()[name]
        return state

    def close(self) -> None:
        pass


class Real:
    """The engine on this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.layout = folder, Layout(folder / "store")
        self.image = self._image("job.py", PROGRAM)
        self.server_image = self._image("server.py", SERVER)
        self.restart()

    def restart(self) -> None:
        path = self.folder / "image.pem"
        key = ImageKey.load(path) if path.exists() else ImageKey.generate(path)
        artifacts = ArtifactStore(self.layout, Models(self.layout, key, ImageTrust(keys=(key.public_pem,))))
        self.engine: Any = LocalEngine(self.folder / "engine", self.layout, artifacts, SystemClock(), isolation="none")

    def job(self, name: str) -> JobState:
        def look() -> JobState:
            state: JobState = self.engine.jobs()[name]
            return state

        return until(look, lambda state: state.phase != "running")

    def server(self, name: str, spec: ServerSpec | None) -> ServerState:
        def look() -> ServerState:
            if spec is not None:
                self.engine.serve(spec)
            state: ServerState = self.engine.servers()[name]
            return state

        return until(look, lambda state: state.phase == "ready")

    def ask(self, name: str) -> dict[str, Any]:
        address = self.engine.servers()[name].address
        with urllib.request.urlopen(f"http://{address}/", timeout=5) as answer:
            return dict(json.loads(answer.read()))

    def kill(self, name: str) -> ServerState:
        address = self.engine.servers()[name].address
        with pytest.raises((OSError, urllib.error.URLError)):
            urllib.request.urlopen(f"http://{address}/die", timeout=5)
        return until(lambda: self.engine.servers()[name], lambda state: state.phase == "failed")

    def close(self) -> None:
        for name in self.engine.jobs():
            self.engine.stop(name)
        for name in self.engine.servers():
            self.engine.retire(name)

    def _image(self, program: str, text: bytes) -> Digest:
        layer = lay(self.layout, {f"app/{program}": Stored(data=text)})
        config = {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Entrypoint": ["/opt/venv/bin/python", f"/app/{program}"], "Env": [f"MYELIN_PYTHON={HOST_PYTHON}"]},
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self.layout.descriptor(self.layout.put(canonical(config)), CONFIG),
            "layers": [layer.descriptor],
        }
        return self.layout.put(canonical(manifest))


@pytest.fixture(params=[Fake, Real], ids=["fake", "real"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    made: Place = request.param(tmp_path)
    yield made
    made.close()


def job(place: Place, name: str, what: str = "ok", **more: Any) -> JobSpec:
    return JobSpec(name=name, axon="a", task="t", image=place.image, args=(what,), **more)


def server(place: Place, value: int = 1, **more: Any) -> ServerSpec:
    return ServerSpec(name="s", image=place.server_image, config={"value": value}, labels={"config": str(value)}, **more)


def test_a_job_ends_with_its_code_its_report_and_its_labels(place: Place) -> None:
    place.engine.start(job(place, "one", labels={"run": "r"}))
    state = place.job("one")
    assert (state.name, state.phase, state.exit_code, state.reason, state.message) == ("one", "succeeded", 0, "", "")
    assert [dict(line) for line in state.report] == [
        {"kind": "metric", "name": "step", "value": 0},
        {"kind": "metric", "name": "step", "value": 1},
        {"kind": "result", "loss": 0.25},
    ]
    assert dict(state.labels) == {"run": "r"}
    assert state.started_at is not None
    assert state.ended_at is not None
    assert state.started_at <= state.ended_at
    assert state.ended_at.utcoffset() is not None


def test_a_job_that_runs_says_so(place: Place) -> None:
    place.engine.start(job(place, "slow", "slow", labels={"run": "r"}))
    state = place.engine.jobs()["slow"]
    assert (state.phase, state.exit_code, state.ended_at, dict(state.labels)) == ("running", None, None, {"run": "r"})


@pytest.mark.parametrize(
    ("what", "timeout", "code", "reason", "words"),
    [
        ("fail", None, 3, "ExitCode", "expected exit code 0, got 3: no such column: age"),
        ("slow", 0.4, None, "TimedOut", "did not end in time"),
    ],
)
def test_a_job_that_fails_says_why(
    place: Place, what: str, timeout: float | None, code: int | None, reason: str, words: str
) -> None:
    place.engine.start(job(place, "bad", what, timeout_seconds=timeout))
    state = place.job("bad")
    assert (state.phase, state.reason) == ("failed", reason)
    assert words in state.message
    if code is not None:
        assert state.exit_code == code


def test_starting_twice_starts_once_also_after_the_end_and_by_another_controller(place: Place) -> None:
    for _ in range(2):
        place.engine.start(job(place, "one"))
    first = place.job("one")
    place.engine.start(job(place, "one"))
    place.restart()
    place.engine.start(job(place, "one"))
    assert place.job("one") == first
    assert place.engine.logs("one").count("started") == 1


def test_a_job_outlives_the_controller(place: Place) -> None:
    place.engine.start(job(place, "slow", "slow"))
    place.restart()
    place.engine.start(job(place, "slow", "slow"))
    assert place.engine.jobs()["slow"].phase == "running"
    place.engine.start(job(place, "one"))
    place.restart()
    assert place.job("one").phase == "succeeded"


def test_what_a_job_was_asked_to_keep_is_there_for_the_next_one(place: Place) -> None:
    place.engine.start(job(place, "one", "a", keeps=("model", "data")))
    place.engine.start(job(place, "two", "a", keeps=("data",)))
    place.engine.start(job(place, "three", "b", keeps=("data",)))
    for name in ("one", "two", "three"):
        assert place.job(name).phase == "succeeded"
    kept = dict(place.engine.collect("one"))
    assert set(kept) == {"model", "data"}
    assert dict(place.engine.collect("one")) == kept
    assert dict(place.engine.collect("two")) == {"data": kept["data"]}
    assert dict(place.engine.collect("three"))["data"] != kept["data"]
    place.restart()
    assert dict(place.engine.collect("one")) == kept
    # The next job finds the data in its own folder, and the model of one that found none is another.
    place.engine.start(job(place, "next", "c", data=(kept["data"],), model=kept["model"], keeps=("model", "data")))
    assert place.job("next").phase == "succeeded"
    place.engine.start(job(place, "plain", "c", keeps=("model", "data")))
    assert place.job("plain").phase == "succeeded"
    assert dict(place.engine.collect("next")) == dict(place.engine.collect("plain"))


def test_what_is_not_there_cannot_be_collected(place: Place) -> None:
    with pytest.raises(OutsideError):
        place.engine.collect("none")


def test_a_stopped_job_has_failed_and_an_ended_one_cannot_be_stopped(place: Place) -> None:
    place.engine.start(job(place, "slow", "slow"))
    place.engine.stop("slow")
    state = place.job("slow")
    assert (state.phase, state.reason) == ("failed", "Stopped")
    place.engine.stop("slow")
    place.engine.start(job(place, "slow", "slow"))
    assert place.job("slow") == state
    place.engine.start(job(place, "one"))
    ended = place.job("one")
    place.engine.stop("one")
    assert place.job("one") == ended
    place.engine.stop("none")


def test_a_removed_job_is_forgotten_and_may_start_anew(place: Place) -> None:
    place.engine.start(job(place, "one", "fail"))
    assert place.job("one").phase == "failed"
    place.engine.remove("one")
    place.engine.remove("one")
    assert "one" not in place.engine.jobs()
    with pytest.raises(OutsideError):
        place.engine.collect("one")
    place.engine.start(job(place, "one"))
    assert place.job("one").phase == "succeeded"


def test_a_cleaned_job_keeps_its_report_and_its_log(place: Place) -> None:
    place.engine.start(job(place, "one", keeps=("model",)))
    ended = place.job("one")
    place.engine.collect("one")
    for _ in range(2):
        place.engine.clean("one")
    place.engine.clean("none")
    assert place.engine.jobs()["one"] == replace(ended, is_freed=True)
    place.restart()
    assert place.engine.jobs()["one"] == replace(ended, is_freed=True)
    assert "started" in place.engine.logs("one")
    place.engine.start(job(place, "one", keeps=("model",)))
    assert place.job("one") == replace(ended, is_freed=True)


def test_a_cleaned_job_cannot_be_collected_as_if_it_had_left_nothing(place: Place) -> None:
    place.engine.start(job(place, "one", keeps=("model",)))
    assert place.job("one").phase == "succeeded"
    place.engine.clean("one")
    with pytest.raises(OutsideError):
        place.engine.collect("one")


def test_a_job_that_runs_is_not_cleaned(place: Place) -> None:
    place.engine.start(job(place, "slow", "slow"))
    place.engine.clean("slow")
    state = place.engine.jobs()["slow"]
    assert (state.phase, state.is_freed) == ("running", False)


def test_logs_are_the_end_of_what_was_printed(place: Place) -> None:
    place.engine.start(job(place, "one", "fail"))
    place.job("one")
    assert place.engine.logs("one") == "started\nno such column: age\n"
    assert place.engine.logs("one", last_bytes=5) == " age\n"
    assert place.engine.logs("none") == ""


def test_an_image_that_is_not_there_starts_nothing_and_leaves_nothing(place: Place) -> None:
    unknown = Digest(digest_of(b"unknown"))
    with pytest.raises(TrustError):
        place.engine.start(JobSpec(name="bad", axon="a", task="t", image=unknown))
    with pytest.raises(TrustError):
        place.engine.serve(ServerSpec(name="bad", image=unknown))
    assert dict(place.engine.jobs()) == {}
    assert dict(place.engine.servers()) == {}


def test_data_that_is_not_there_starts_nothing_and_leaves_nothing(place: Place) -> None:
    with pytest.raises(TrustError):
        place.engine.start(job(place, "bad", data=(Digest(digest_of(b"unknown")),)))
    assert dict(place.engine.jobs()) == {}


def test_a_server_becomes_ready_with_its_labels_and_its_image(place: Place) -> None:
    place.engine.serve(server(place))
    assert place.engine.servers()["s"].phase in ("starting", "ready")
    state = place.server("s", None)
    assert (state.name, state.phase, state.image, state.restarts) == ("s", "ready", place.server_image, 0)
    assert dict(state.labels) == {"config": "1"}
    assert place.ask("s") == {"value": 1, "suffix": ""}


def test_a_new_config_or_label_reaches_a_server_without_a_restart(place: Place) -> None:
    place.engine.serve(server(place, 1))
    address = place.server("s", None).address
    for spec in (server(place, 2), server(place, 2)):
        place.engine.serve(spec)
        state = place.engine.servers()["s"]
        assert (state.phase, state.address, dict(state.labels)) == ("ready", address, {"config": "2"})
    assert answer(place, {"value": 2, "suffix": ""}) == {"value": 2, "suffix": ""}
    assert place.engine.logs("s").count("up") == 1


def test_other_content_replaces_a_server_at_the_same_address(place: Place) -> None:
    place.engine.serve(server(place))
    address = place.server("s", None).address
    changed = server(place, env={"SUFFIX": "x"})
    state = place.server("s", changed)
    assert (state.phase, state.address) == ("ready", address)
    assert answer(place, {"value": 1, "suffix": "x"}) == {"value": 1, "suffix": "x"}
    assert place.engine.logs("s").count("up") == 2


def test_a_server_outlives_the_controller(place: Place) -> None:
    place.engine.serve(server(place))
    before = place.server("s", None)
    place.restart()
    assert place.server("s", None) == before
    place.engine.serve(server(place))
    assert place.engine.logs("s").count("up") == 1


def test_a_server_that_died_is_failed_until_it_is_served_again(place: Place) -> None:
    place.engine.serve(server(place))
    address = place.server("s", None).address
    state = place.kill("s")
    if state.phase == "failed":  # Kubernetes may have started it again before anybody could look
        assert state.reason in ("ExitCode", "CrashLoop")
        assert "expected exit code 0, got 1" in state.message
    state = place.server("s", server(place))
    assert (state.phase, state.address, state.restarts) == ("ready", address, 1)
    assert place.ask("s") == {"value": 1, "suffix": ""}


def test_a_retired_server_is_gone(place: Place) -> None:
    place.engine.serve(server(place))
    place.server("s", None)
    place.engine.retire("s")
    place.engine.retire("s")
    place.engine.retire("none")
    assert dict(place.engine.servers()) == {}
    place.restart()
    assert dict(place.engine.servers()) == {}


def test_servers_have_addresses_of_their_own(place: Place) -> None:
    for name in ("one", "two"):
        place.engine.serve(ServerSpec(name=name, image=place.server_image, config={"value": name}))
    assert place.server("one", None).address != place.server("two", None).address


def answer(place: Place, wanted: dict[str, Any]) -> dict[str, Any]:
    """What the server answers, once it is what is wanted."""
    return until(lambda: place.ask("s"), lambda got: got == wanted)


def until(look: Callable[[], T], is_met: Callable[[T], bool]) -> T:
    """What a look finds once a condition is met; the last one when it never is in time."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not is_met(found := look()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def _program(box: Box) -> int | None:
    """What `PROGRAM` does."""
    [what] = box.args
    box.printed.append("started")
    if what == "slow":
        return None
    if what == "fail":
        box.printed.append("no such column: age")
        return 3
    box.report += [{"kind": "metric", "name": "step", "value": number} for number in range(2)]
    box.report.append({"kind": "result", "loss": 0.25})
    box.data["out.txt"] = (what + box.env.get("SUFFIX", "")).encode()
    box.model["model.txt"] = ",".join(sorted(box.data)).encode()
    return 0
