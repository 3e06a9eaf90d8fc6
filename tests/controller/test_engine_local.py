"""The engine on this machine, with real processes from a real image, isolated and not."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.adapters.attest.verifying import ImageTrust
from controller.adapters.clock import SystemClock
from controller.adapters.engine_local import LocalEngine
from controller.adapters.engine_local.launch import HOST_PYTHON, bubblewrap
from controller.adapters.keys import ImageKey
from controller.adapters.models import Models
from controller.adapters.oci.artifacts import ArtifactStore
from controller.adapters.oci.assembly import SITE
from controller.adapters.oci.layers import Stored, lay
from controller.adapters.oci.layout import CONFIG, MANIFEST, Layout
from policies.canonical import canonical
from policies.errors import SilentError
from policies.terms.digest import Digest
from policies.terms.task import JobSpec, JobState, ServerSpec

PROGRAM = b"""
import json, os, sys, time
from pathlib import Path
what = sys.argv[1]
if what == "ok":
    given = Path(os.environ["DATA_PATH"] + "in.txt")
    print("rows", given.read_text() if given.exists() else 0)
    Path(os.environ["DATA_PATH"] + "out.txt").write_text("data")
    Path(os.environ["MODEL_PATH"] + "model.txt").write_text("model")
    with open(os.environ["MYELIN_REPORT_PATH"], "a") as report:
        report.write(json.dumps({"kind": "result", "loss": 0.25}) + "\\n")
elif what == "fail":
    print("no such column: age")
    sys.exit(1)
elif what == "slow":
    time.sleep(60)
elif what == "power":
    import subprocess
    for command in (["mount", "-t", "tmpfs", "none", "/tmp"], ["mknod", "/tmp/disk", "b", "8", "0"]):
        print(command[0], "works" if subprocess.run(command, capture_output=True).returncode == 0 else "refused")
    print("private", "seen" if Path("/etc/ssl/private").exists() else "hidden")
elif what == "packages":
    import locked
    import subprocess
    print(sys.prefix, locked.__file__)
    print([path for path in sys.path if "-packages" in path])
    subprocess.run(["sh", "-c", "python -c 'import locked, sys; print(sys.prefix)'"], check=True)
elif what == "env":
    print(sorted(os.environ))
    assert "MYELIN_TEST_SECRET" not in os.environ
"""
SERVER = b"""
import http.server, json, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
        self.wfile.write(open(os.environ["MYELIN_CONFIG"], "rb").read())
    def log_message(self, *args): pass
http.server.HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""


def image(layout: Layout, program: str, *, python: str = HOST_PYTHON) -> Digest:
    files = {"app/job.py": PROGRAM, "app/server.py": SERVER, f"{SITE}/locked.py": b"", "opt/venv/bin/tool": b"#!/bin/sh\n"}
    files["opt/venv/pyvenv.cfg"] = b"home = /somewhere/else\n"
    layer = lay(layout, {path: Stored(data=data) for path, data in files.items()})
    env = [f"MYELIN_PYTHON={python}", "PATH=/opt/venv/bin:/usr/bin:/bin"]
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": ["/opt/venv/bin/python", f"/app/{program}"], "Env": env},
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": layout.descriptor(layout.put(canonical(config)), CONFIG),
        "layers": [layer.descriptor],
    }
    return layout.put(canonical(manifest))


class Place:
    def __init__(self, folder: Path, isolation: str) -> None:
        self.folder, self.isolation = folder, isolation
        self.layout = Layout(folder / "store")
        self.key = ImageKey.generate(folder / "image.pem")
        self.artifacts = ArtifactStore(self.layout, Models(self.layout, self.key, ImageTrust(keys=(self.key.public_pem,))))
        self.engine = self.open()

    def open(self) -> LocalEngine:
        return LocalEngine(self.folder / "engine", self.layout, self.artifacts, SystemClock(), isolation=self.isolation)

    def job(self, name: str, what: str, **more: object) -> JobSpec:
        return JobSpec(name=name, axon="a", task="t", image=image(self.layout, "job.py"), args=(what,), **more)  # type: ignore[arg-type]

    def ended(self, name: str) -> JobState:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            state = self.engine.jobs()[name]
            if state.phase != "running":
                return state
            time.sleep(0.02)
        raise AssertionError(f"{name} never ended: {self.engine.logs(name)}")


@pytest.fixture(params=["none", "bubblewrap"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "bubblewrap" and not bubblewrap():
        pytest.skip("bubblewrap does not work on this machine")
    made = Place(tmp_path, request.param)
    yield made
    for name in made.engine.jobs():
        made.engine.stop(name)
    for name in made.engine.servers():
        made.engine.retire(name)


def test_a_job_reads_its_data_and_leaves_what_it_was_asked_to_keep(place: Place) -> None:
    (place.folder / "given").mkdir()
    (place.folder / "given" / "in.txt").write_text("7")
    given = place.artifacts.put_folder(place.folder / "given")
    place.engine.start(place.job("one", "ok", data=(given,), keeps=("model", "data"), labels={"run": "r"}))
    state = place.ended("one")
    assert (state.phase, state.exit_code, state.labels["run"]) == ("succeeded", 0, "r"), place.engine.logs("one")
    assert [line["loss"] for line in state.report] == [0.25]
    kept = place.engine.collect("one")
    assert kept == place.engine.collect("one")
    place.artifacts.fetch_folder(kept["data"], place.folder / "got")
    assert {path.name for path in (place.folder / "got").iterdir()} == {"in.txt", "out.txt"}
    assert "rows 7" in place.engine.logs("one")
    assert state.started_at is not None
    assert state.started_at <= SystemClock().now()


@pytest.mark.parametrize(
    ("what", "timeout", "reason", "words"),
    [
        ("fail", None, "ExitCode", "expected exit code 0, got 1: no such column: age"),
        ("slow", 0.5, "TimedOut", "did not end in time"),
    ],
)
def test_a_failed_job_says_why(place: Place, what: str, timeout: float | None, reason: str, words: str) -> None:
    place.engine.start(place.job("bad", what, timeout_seconds=timeout))
    state = place.ended("bad")
    assert (state.phase, state.reason) == ("failed", reason)
    assert words in state.message


def test_starting_twice_starts_once_and_a_new_engine_picks_it_up(place: Place) -> None:
    spec = place.job("slow", "slow")
    place.engine.start(spec)
    first = (place.folder / "engine/jobs/slow/supervisor.json").read_text()
    place.engine = place.open()
    place.engine.start(spec)
    assert (place.folder / "engine/jobs/slow/supervisor.json").read_text() == first
    assert place.engine.jobs()["slow"].phase == "running"
    place.engine.stop("slow")
    assert place.ended("slow").reason == "Stopped"


def test_a_supervisor_that_was_killed_is_a_lost_job(place: Place) -> None:
    place.engine.start(place.job("slow", "slow"))
    import json

    known = json.loads((place.folder / "engine/jobs/slow/supervisor.json").read_bytes())
    program = place.folder / "engine/jobs/slow/program.json"
    deadline = time.monotonic() + 10
    while not program.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(known["pid"], signal.SIGKILL)
    os.killpg(json.loads(program.read_bytes())["pid"], signal.SIGKILL)
    assert place.ended("slow").reason == "Lost"


def test_nothing_of_our_environment_reaches_a_job(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MYELIN_TEST_SECRET", "hunter2")
    place.engine.start(place.job("env", "env"))
    assert place.ended("env").phase == "succeeded", place.engine.logs("env")


def test_a_caged_job_has_no_powers_even_where_root_runs_us(place: Place) -> None:
    if place.isolation != "bubblewrap":
        pytest.skip("without bubblewrap nothing is held back, and `status` says so")
    place.engine.start(place.job("power", "power"))
    assert place.ended("power").phase == "succeeded", place.engine.logs("power")
    assert place.engine.logs("power").splitlines() == ["mount refused", "mknod refused", "private hidden"]


def test_a_caged_job_finds_what_is_locked_and_no_package_of_this_machine(place: Place) -> None:
    if place.isolation != "bubblewrap":
        pytest.skip("without bubblewrap this machine's own packages are found too")
    place.engine.start(place.job("packages", "packages"))
    assert place.ended("packages").phase == "succeeded", place.engine.logs("packages")
    assert place.engine.logs("packages").splitlines() == [
        f"/opt/venv /{SITE}/locked.py",
        f"['/{SITE}']",
        "/opt/venv",
    ]


def test_an_image_for_another_python_cannot_start(place: Place) -> None:
    other = image(place.layout, "job.py", python="3.2")
    place.engine.start(JobSpec(name="old", axon="a", task="t", image=other))
    state = place.ended("old")
    assert state.reason == "CannotStart"
    assert "made for 3.2" in state.message


def test_a_server_keeps_its_port_and_gets_a_new_config_without_a_restart(place: Place) -> None:
    def spec(value: int) -> ServerSpec:
        return ServerSpec(
            name="s", image=image(place.layout, "server.py"), config={"value": value}, labels={"config": str(value)}
        )

    def ready() -> str:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            state = place.engine.servers()["s"]
            if state.phase == "ready":
                return state.address
            place.engine.serve(spec(1))
            time.sleep(0.05)
        raise AssertionError(place.engine.logs("s"))

    place.engine.serve(spec(1))
    address = ready()
    before = (place.folder / "engine/servers/s/supervisor.json").read_text()
    place.engine.serve(spec(2))
    assert (place.folder / "engine/servers/s/supervisor.json").read_text() == before
    got = subprocess.run(
        [sys.executable, "-c", f"import urllib.request as u; print(u.urlopen('http://{address}/').read())"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert '"value": 2' in got.stdout
    place.engine = place.open()
    assert place.engine.servers()["s"].address == address
    place.engine.retire("s")
    assert "s" not in place.engine.servers()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk to fill")
def test_a_full_disk_is_said_and_leaves_nothing_half_made(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(small)], check=True)
    try:
        layout = Layout(tmp_path / "store")
        artifacts = ArtifactStore(layout)
        (tmp_path / "big").mkdir()
        (tmp_path / "big" / "data.bin").write_bytes(os.urandom(1 << 20))
        digest = artifacts.put_folder(tmp_path / "big")
        engine = LocalEngine(small / "engine", layout, artifacts, SystemClock(), isolation="none")
        job = JobSpec(name="full", axon="a", task="t", image=image(layout, "job.py"), args=("ok",), data=(digest,))
        with pytest.raises(SilentError, match="No space left"):
            engine.start(job)
        assert list((small / "engine" / "jobs").iterdir()) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_port_in_use_is_said_and_taken_once_it_is_free(place: Place) -> None:
    import socket

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        spec = ServerSpec(name="s", image=image(place.layout, "server.py"), config={}, port=port)
        place.engine.serve(spec)
        state = place.engine.servers()["s"]
        assert (state.phase, state.reason) == ("failed", "PortInUse")
        assert f"port {port} is in use" in state.message
    deadline = time.monotonic() + 20
    while place.engine.servers()["s"].phase != "ready":
        assert time.monotonic() < deadline, place.engine.logs("s")
        place.engine.serve(spec)
        time.sleep(0.05)


def test_a_job_that_is_stopped_as_it_starts_leaves_no_program_behind(place: Place) -> None:
    for number in range(8):
        place.engine.start(place.job(f"slow{number}", "slow"))
        place.engine.stop(f"slow{number}")
        assert place.ended(f"slow{number}").reason == "Stopped"
    ours = str(place.folder)
    left = [path for path in Path("/proc").glob("[0-9]*/cmdline") if ours in _said(path) and "supervise.py" not in _said(path)]
    assert left == []


def _said(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
