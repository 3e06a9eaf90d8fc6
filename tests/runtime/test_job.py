"""Jobs as a pod runs them: a real process, a real inbox on loopback, and whatever goes wrong between the two."""

import hashlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from controller import inbox
from controller.adapters.results import Result, job_path, programs_path, unpack
from controller.adapters.spool import Spool
from policies.errors import RefusedError, SilentError

DEADLINE_SECONDS = 30
SECRET = "a-secret-of-the-project"
REPORT = """
import json, os
with open(os.environ["MYELIN_REPORT_PATH"], "a") as file:
    file.write(json.dumps({"kind": "result", "loss": 0.25}) + "\\n")
"""


class Home:
    """An inbox that takes the results of one project's jobs."""

    def __init__(self, folder: Path, port: int = 0) -> None:
        self.folder, self.troubles = folder, list[Exception]()
        self.results: dict[str, Result] = {}
        self.digests: list[str] = []
        self.names: list[str] = []
        receivers = inbox.Receivers(
            spool=Spool(folder / "spool"),
            clock=None,  # type: ignore[arg-type]
            wake=lambda: None,
            report=lambda name, line: None,
            push=lambda labels, text: None,
            newest=lambda: None,
            place=lambda name, kind: "",
            namespace="default",
            result=self.take,
            results=folder / "incoming",
        )
        self.desk = inbox.Desk("127.0.0.1", port, is_ready=lambda: True, is_alive=lambda: True)
        self.desk.admit("mine", receivers, token="t", programs=SECRET)
        self.port = self.desk.start()

    def take(self, name: str, tar: Path) -> Mapping[str, str]:
        if self.troubles:
            raise self.troubles.pop(0)
        self.digests.append(hashlib.sha256(tar.read_bytes()).hexdigest())
        with tarfile.open(tar) as archive:
            self.names = archive.getnames()
        place = self.folder / f"{name}-{len(self.digests)}"
        keeps = {item.split("/")[0] for item in self.names} & {"data", "model"}
        self.results[name] = unpack(tar, place, keeps=keeps)
        return {}


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path / "home")
    yield made
    made.desk.close()


class Job:
    """A job's process, in folders of its own."""

    def __init__(self, folder: Path, port: int, *program: str, name: str = "one", wrap: tuple[str, ...] = (), **env: str) -> None:
        self.folder = folder
        (folder / "app").mkdir(parents=True, exist_ok=True)
        work = folder / "space"
        given = {
            "PATH": os.environ["PATH"],
            "HOME": "/tmp",
            "LANG": "C.UTF-8",
            "DATA_PATH": f"{work}/data/",
            "MODEL_PATH": f"{work}/model/",
            "MYELIN_REPORT_PATH": f"{work}/report/report.jsonl",
            "MYELIN_JOB_INPUTS": str(folder / "in"),
            "MYELIN_JOB_WORK": str(work),
            "MYELIN_JOB_KEEPS": "model,data",
            "MYELIN_JOB_RESULT_URL": f"http://127.0.0.1:{port}{job_path(SECRET, name)}",
            "MYELIN_JOB_PAUSE_SECONDS": "0.05",
            **env,
        }
        argv = [*wrap, sys.executable, "-W", "error", "-m", "myelin.job", "--", *program]
        self.process = subprocess.Popen(
            argv, env=given, cwd=folder / "app", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self.printed, self.said = b"", ""

    def wait(self, seconds: float = DEADLINE_SECONDS) -> int:
        try:
            self.printed, said = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            if seconds == DEADLINE_SECONDS:
                self.process.kill()
                self.process.communicate()
            raise
        self.said = said.decode()
        return self.process.returncode


Start = Callable[..., Job]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Job] = []

    def begin(port: int, *program: str, folder: str = "job", **more: Any) -> Job:
        started.append(Job(tmp_path / folder, port, *program, **more))
        return started[-1]

    yield begin
    for job in started:
        if job.process.poll() is None:
            job.process.kill()
            job.process.wait(DEADLINE_SECONDS)
        for stream in (job.process.stdin, job.process.stdout, job.process.stderr):
            if stream is not None:
                stream.close()


def python(text: str) -> tuple[str, str, str]:
    return (sys.executable, "-c", text)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def files(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def until(is_met: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not is_met():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def can(*argv: str) -> bool:
    return shutil.which(argv[0]) is not None and subprocess.run(argv, capture_output=True, check=False).returncode == 0


CONTAINER = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "--kill-child")
DISK = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", 'mount -t tmpfs -o size=1m none "$0" && exec "$@"')


def test_a_program_that_succeeds_finds_its_folders_and_what_it_leaves_comes_home(
    home: Home, start: Start, tmp_path: Path
) -> None:
    for name, text in {"data/a/x.csv": "1", "model/old": "m", "earlier/prep/y": "2", "data/run.sh": "#!/bin/sh\nexit 0"}.items():
        path = tmp_path / "job/in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o555 if name.endswith(".sh") else 0o444)
    code = (
        REPORT
        + """
import sys
from pathlib import Path
data, model, earlier = Path(os.environ["DATA_PATH"]), Path(os.environ["MODEL_PATH"]), Path(os.environ["DATA_PATH_prep"])
(data / "a/x.csv").write_text("changed")
(model / "sub").mkdir()
(model / "sub/new").write_text((earlier / "y").read_text())
(model / "empty").mkdir()
print(sorted(name for name in os.environ if name.startswith("MYELIN")), sys.stdin.read() == "", os.getcwd(), flush=True)
print(os.environ["EVENT_PATH"], Path(os.environ["EVENT_PATH"]).read_text(), os.listdir(os.environ["DATA_PATH_none"]), flush=True)
print(os.access(data / "run.sh", os.X_OK), os.getpgid(0) == os.getpid() == os.getsid(0), file=sys.stderr, flush=True)
"""
    )
    work = tmp_path / "job/space"
    more = {"EVENT_PATH": f"{work}/report/event.json", "MYELIN_JOB_EVENT": '{"rows":"ü"}'}
    more |= {"DATA_PATH_prep": f"{work}/earlier/prep/", "DATA_PATH_none": f"{work}/earlier/none/"}
    job = start(home.port, *python(code), **more)
    assert job.wait() == 0
    assert job.said == ""
    assert job.printed.decode().splitlines() == [
        f"['MYELIN_REPORT_PATH'] True {tmp_path}/job/app",
        f'{work}/report/event.json {{"rows":"ü"}} []',
        "True True",
    ]
    result = home.results["one"]
    assert (result.code, result.message, result.log.encode()) == (0, "", job.printed)
    assert [dict(line) for line in result.report] == [{"kind": "result", "loss": 0.25}]
    assert files(result.folders["model"]) == {"old": "m", "sub/new": "2"}
    assert files(result.folders["data"]) == {"a/x.csv": "changed", "run.sh": "#!/bin/sh\nexit 0"}
    assert os.access(result.folders["data"] / "run.sh", os.X_OK)
    assert not os.access(result.folders["data"] / "a/x.csv", os.X_OK)
    assert (tmp_path / "job/in/data/a/x.csv").read_text() == "1"


def test_only_what_is_kept_comes_home_and_a_lost_folder_is_an_empty_one(home: Home, start: Start) -> None:
    assert start(home.port, "rm", "-r", "../space/model", MYELIN_JOB_KEEPS="model").wait() == 0
    assert home.names == ["exit.json", "output.log"]
    assert start(home.port, "true", folder="other", MYELIN_JOB_KEEPS="").wait() == 0
    assert home.names == ["exit.json", "output.log"]


def test_a_program_that_fails_says_so_and_keeps_nothing(home: Home, start: Start) -> None:
    job = start(home.port, *python(REPORT + "print('no such column: age'); raise SystemExit(3)"))
    assert job.wait() == 3
    result = home.results["one"]
    assert (result.code, result.log, result.folders) == (3, "no such column: age\n", {})
    assert len(result.report) == 1


def test_a_program_that_is_killed_says_by_what(home: Home, start: Start) -> None:
    job = start(home.port, "sh", "-c", "echo one; kill -9 $$")
    assert job.wait() == 128 + 9
    assert (home.results["one"].code, home.results["one"].log) == (-9, "one\n")


@pytest.mark.parametrize(
    ("program", "words"), [("./nothing", "./nothing: No such file or directory"), ("./plain", "./plain: Permission denied")]
)
def test_a_program_that_cannot_be_started_says_why(program: str, words: str, home: Home, start: Start, tmp_path: Path) -> None:
    (tmp_path / "job/app").mkdir(parents=True)
    (tmp_path / "job/app/plain").write_text("text")
    job = start(home.port, program)
    assert job.wait() == 127
    assert job.said == f"myelin: {words}\n"
    result = home.results["one"]
    assert (result.code, result.message, result.log) == (127, words, job.said)


def test_megabytes_come_through_whole_and_their_end_is_kept(home: Home, start: Start) -> None:
    job = start(home.port, *python("for number in range(700_000): print(number)"))
    assert job.wait() == 0
    expected = "".join(f"{number}\n" for number in range(700_000)).encode()
    assert job.printed == expected
    assert home.results["one"].log.encode() == expected[-(1 << 20) :]


def test_what_is_printed_comes_at_once(home: Home, start: Start) -> None:
    job = start(home.port, "sh", "-c", "echo now; exec sleep 600")
    assert job.process.stdout is not None
    assert job.process.stdout.readline() == b"now\n"
    job.process.send_signal(signal.SIGTERM)
    assert job.wait() == 128 + 15


def test_nobody_who_reads_is_no_trouble_for_the_program(home: Home, start: Start) -> None:
    job = start(home.port, *python("for number in range(100_000): print(number)"))
    assert job.process.stdout is not None
    job.process.stdout.close()
    assert job.process.wait(DEADLINE_SECONDS) == 0
    assert home.results["one"].log.endswith("99999\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_handed_to_the_program_and_all_it_started(number: signal.Signals, home: Home, start: Start) -> None:
    text = """
import os, signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; print('child', flush=True); time.sleep(600)"])
def end(number, frame):
    print("told", number, child.wait(), flush=True)
    sys.exit(5)
signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGINT, end)
while True:
    time.sleep(600)
"""
    job = start(home.port, *python(text))
    assert job.process.stdout is not None
    assert job.process.stdout.readline() == b"child\n"
    job.process.send_signal(number)
    assert job.wait() == 5
    assert f"told {int(number)} " in home.results["one"].log
    assert home.results["one"].code == 5


def test_a_program_that_does_not_end_when_told_is_killed(home: Home, start: Start) -> None:
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    job = start(home.port, *python(deaf), MYELIN_JOB_GRACE_SECONDS="0.3")
    assert job.process.stdout is not None
    assert job.process.stdout.readline() == b"up\n"
    began = time.monotonic()
    job.process.send_signal(signal.SIGTERM)
    assert job.wait() == 128 + 9
    assert time.monotonic() - began > 0.25
    assert home.results["one"].code == -9


def test_nothing_that_a_program_started_outlives_it(home: Home, start: Start) -> None:
    job = start(home.port, "sh", "-c", "sleep 600 & echo $!")
    assert job.wait() == 0
    until(lambda: not Path(f"/proc/{int(job.printed)}").exists())


def test_a_job_that_is_asked_to_end_while_it_copies_does_not_begin(home: Home, start: Start, tmp_path: Path) -> None:
    (tmp_path / "job/in/data").mkdir(parents=True)
    large = tmp_path / "job/in/data/large"
    with large.open("wb") as file:
        file.truncate(64 << 20)
    for number in range(500):  # what takes no room here, and would take minutes to copy
        large.with_name(f"large-{number}").hardlink_to(large)
    job = start(home.port, "true")
    until(lambda: any((tmp_path / "job/space/data").glob("*")))
    job.process.send_signal(signal.SIGTERM)
    assert job.wait() == 128 + 15
    assert home.results["one"].code == -15
    assert home.results["one"].message == "was asked to end before its program began"


def test_a_job_that_is_ended_while_the_inbox_is_down_ends_soon(start: Start) -> None:
    job = start(free_port(), "sh", "-c", "echo up; exec sleep 600")
    assert job.process.stdout is not None
    assert job.process.stdout.readline() == b"up\n"
    job.process.send_signal(signal.SIGTERM)
    assert job.wait() == 128 + 15
    assert "nobody took it in time: 127.0.0.1: Connection refused" in job.said


def test_a_job_that_succeeded_and_is_ended_while_the_inbox_is_down_has_not_succeeded(start: Start) -> None:
    job = start(free_port(), "true", MYELIN_JOB_PAUSE_SECONDS="0.2")
    assert job.process.stderr is not None
    assert b"not taken yet" in job.process.stderr.readline()
    job.process.send_signal(signal.SIGTERM)
    assert job.wait() == 70
    assert "nobody took it in time" in job.said


def test_a_result_waits_until_the_inbox_is_up(start: Start, tmp_path: Path) -> None:
    port = free_port()
    job = start(port, *python(REPORT), MYELIN_JOB_PAUSE_SECONDS="0.01")
    with pytest.raises(subprocess.TimeoutExpired):  # the job of a program that succeeded does not give up
        job.wait(3.0)
    home = Home(tmp_path / "home", port)
    try:
        assert job.wait() == 0
        assert len(home.results["one"].report) == 1
        assert len(home.digests) == 1
    finally:
        home.desk.close()
    assert job.said.count("myelin: result: not taken yet: 127.0.0.1: Connection refused; trying on") == 1


def test_a_failed_job_gives_up_and_ends_with_its_own_code(start: Start) -> None:
    began = time.monotonic()
    job = start(free_port(), "sh", "-c", "exit 3", MYELIN_JOB_PAUSE_SECONDS="0.02")
    assert job.wait() == 3
    assert 0.5 < time.monotonic() - began < 10
    assert "nobody took it in time" in job.said


def test_an_inbox_that_cannot_take_it_now_is_asked_again(home: Home, start: Start) -> None:
    home.troubles = [SilentError("registry: no answer"), SilentError("registry: no answer"), OSError(28, "No space left")]
    job = start(home.port, "true")
    assert job.wait() == 0
    assert home.results["one"].code == 0
    assert [line for line in job.said.splitlines() if "not taken yet" in line] == [
        "myelin: result: not taken yet: registry: no answer; trying on",
        "myelin: result: not taken yet: [Errno 28] No space left; trying on",
    ]


def test_a_result_that_is_refused_ends_the_job_with_the_words(home: Home, start: Start) -> None:
    home.troubles = [RefusedError("job one: there is none of that name")]
    job = start(home.port, "true")
    assert job.wait() == 70
    assert job.said == "myelin: result: expected the inbox to take it, got 422: job one: there is none of that name\n"


def test_a_job_with_another_jobs_address_is_refused_before_it_sends_anything(home: Home, start: Start) -> None:
    url = f"http://127.0.0.1:{home.port}{job_path(SECRET, 'two')}".replace("/two.", "/one.")
    job = start(home.port, "true", MYELIN_JOB_RESULT_URL=url)
    assert job.wait() == 70
    assert "got 401: expected the address that this job was given" in job.said
    assert home.digests == []


@pytest.mark.parametrize(
    ("make", "words"),
    [
        ("ln -s /etc/passwd out", "model/out: expected a plain file inside of the folder that is kept"),
        ("ln -s ../data/x out; echo 1 > ../data/x", "model/out: expected a plain file inside of the folder that is kept"),
        ("ln -s nowhere out", "model/out: expected a plain file inside of the folder that is kept"),
        ("mkdir a; ln -s a out", "model/out: expected a plain file inside of the folder that is kept"),
        ("mkfifo out", "model/out: expected a plain file inside of the folder that is kept"),
        ("touch $(printf 'a\\377')", "'model/a\\udcff': expected a file name in UTF-8"),
        ("rmdir ../model; ln -s ../data ../model", "model: expected the folder that was there at the start"),
    ],
)
def test_what_cannot_be_kept_fails_the_job_and_says_why(make: str, words: str, home: Home, start: Start) -> None:
    job = start(home.port, "sh", "-c", f"echo printed; cd ../space/model; {make}")
    assert job.wait() == 70
    assert job.said == f"myelin: {words}\n"
    result = home.results["one"]
    assert (result.code, result.message, result.folders) == (70, words, {})
    assert result.log == f"printed\nmyelin: {words}\n"


def test_a_link_that_stays_in_its_folder_is_a_file(home: Home, start: Start) -> None:
    job = start(home.port, "sh", "-c", "cd ../space/model; mkdir v1; echo 1 > v1/model; ln -s v1/model latest")
    assert job.wait() == 0
    assert files(home.results["one"].folders["model"]) == {"v1/model": "1\n", "latest": "1\n"}
    assert not (home.results["one"].folders["model"] / "latest").is_symlink()


def test_equal_results_are_equal_bytes(home: Home, start: Start) -> None:
    text = "cd ../space/model; umask %s; for n in %s; do mkdir -p d/$n; echo $n > d/$n/ä-$n.txt; done; touch -d %s d/*/*"
    for folder, words in (("a", ("022", "1 2 3", "2020-01-01")), ("b", ("077", "3 1 2", "2024-01-01"))):
        assert start(home.port, "sh", "-c", text % words, folder=folder).wait() == 0
    assert len(home.digests) == 2
    assert len(set(home.digests)) == 1


def test_a_name_and_a_file_that_need_long_headers_come_home(home: Home, start: Start) -> None:
    text = "cd ../space/model; mkdir -p {0}/{0}; echo 1 > {0}/{0}/ü; truncate -s 3M {0}/sparse".format("x" * 200)
    assert start(home.port, "sh", "-c", text).wait() == 0
    place = home.results["one"].folders["model"] / ("x" * 200)
    assert (place / ("x" * 200) / "ü").read_text() == "1\n"
    assert (place / "sparse").stat().st_size == 3 << 20


def test_the_modules_of_the_program_are_not_ours(home: Home, start: Start, tmp_path: Path) -> None:
    app = tmp_path / "job/app"
    app.mkdir(parents=True)
    for name in ("tarfile", "json", "threading", "typing", "socket", "http", "given", "signal"):
        (app / f"{name}.py").write_text("raise RuntimeError('not for you')")
    (app / "mine.py").write_text("print('mine')")
    job = start(home.port, "sh", "-c", 'test "$PYTHONPATH" = .; cat mine.py', PYTHONPATH=".")
    assert job.wait() == 0, job.said
    assert home.results["one"].log == "print('mine')"


@pytest.mark.parametrize(
    ("program", "env", "words"),
    [
        ((), {}, "expected python -m myelin.job -- PROGRAM ARGS…"),
        (("true",), {"MYELIN_JOB_RESULT_URL": ""}, "MYELIN_JOB_RESULT_URL: expected a value, there is none"),
        (("true",), {"MYELIN_JOB_KEEPS": "model,all"}, "MYELIN_JOB_KEEPS: expected model and data, got all"),
        (("true",), {"MYELIN_JOB_PAUSE_SECONDS": "soon"}, "MYELIN_JOB_PAUSE_SECONDS: expected a number of seconds"),
        (("true",), {"MYELIN_JOB_GRACE_SECONDS": "0"}, "MYELIN_JOB_GRACE_SECONDS: expected a number above 0 and below 3600"),
        (("true",), {"MYELIN_JOB_RESULT_URL": "ftp://x/y"}, "result: expected an address with http or https"),
    ],
)
def test_an_engine_that_says_too_little_is_told(program: tuple[str, ...], env: dict[str, str], words: str, start: Start) -> None:
    job = start(free_port(), *program, **env)
    assert job.wait() == 70
    assert job.said == f"myelin: {words}\n"


def test_a_job_runs_once(home: Home, start: Start) -> None:
    assert start(home.port, "touch", "../space/data/x").wait() == 0
    job = start(home.port, "touch", "../ran-again")
    assert job.wait() == 70
    assert "space/data: expected an empty folder; a job runs once" in job.said
    assert home.results["one"].code == 70
    assert not (job.folder / "ran-again").exists()


def test_an_odd_input_is_told(home: Home, start: Start, tmp_path: Path) -> None:
    (tmp_path / "job/in/data").mkdir(parents=True)
    (tmp_path / "job/in/data/link").symlink_to("/etc/passwd")
    assert start(home.port, "true").wait() == 70
    assert home.results["one"].message == f"{tmp_path}/job/in/data/link: expected a plain file among the inputs"


def test_a_large_event_comes_as_an_input(home: Home, start: Start, tmp_path: Path) -> None:
    (tmp_path / "job/in").mkdir(parents=True)
    (tmp_path / "job/in/event.json").write_text("{}")
    assert start(home.port, "cat", "../space/report/event.json").wait() == 0
    assert home.results["one"].log == "{}"


def test_a_full_disk_is_told(home: Home, start: Start, tmp_path: Path) -> None:
    (tmp_path / "job/space").mkdir(parents=True)
    if not can(*DISK, str(tmp_path / "job/space"), "true"):
        pytest.skip("no user namespaces here: a small disk cannot be mounted")
    (tmp_path / "job/in/data").mkdir(parents=True)
    (tmp_path / "job/in/data/large").write_bytes(bytes(2 << 20))
    job = start(home.port, "true", wrap=(*DISK, str(tmp_path / "job/space")))
    assert job.wait() == 70
    assert "large: No space left on device" in job.said
    assert home.results["one"].code == 70
    assert home.results["one"].message.endswith("No space left on device")
    # A disk that is full to the last byte is no trouble for what is brought home.
    (tmp_path / "job/in/data/large").write_bytes(bytes(1 << 19))
    job = start(home.port, "sh", "-c", "cat /dev/zero > ../space/model/full; true", wrap=(*DISK, str(tmp_path / "job/space")))
    assert job.wait() == 0
    assert (home.results["one"].folders["model"] / "full").stat().st_size > 1 << 18


def test_as_the_first_process_it_reaps_and_ends_whatever_is_left(home: Home, start: Start, tmp_path: Path) -> None:
    if not can(*CONTAINER, "true"):
        pytest.skip("no user namespaces here: nothing can be the first process")
    text = """
import os, pathlib, subprocess, sys, time
# An orphan that ends at once, and one that went away from our group and writes for ever.
subprocess.run(["sh", "-c", "(true &) ; true"], check=True)
writer = "while true; do echo 1 >> ../space/model/grows; done"
subprocess.run(["sh", "-c", f"setsid sh -c '{writer}' &"], check=True, stdout=subprocess.DEVNULL)
def zombies():
    states = [path.read_text().rpartition(")")[2].split()[0] for path in pathlib.Path("/proc").glob("[0-9]*/stat")]
    return states.count("Z")
deadline = time.monotonic() + 10
while zombies() or not os.path.exists("../space/model/grows"):
    assert time.monotonic() < deadline
    time.sleep(0.01)
print(os.getppid(), zombies())
"""
    job = start(home.port, *python(text), wrap=CONTAINER)
    assert job.wait() == 0, job.said
    assert job.printed == b"1 0\n"
    kept = home.results["one"].folders["model"] / "grows"
    assert kept.stat().st_size == (tmp_path / "job/space/model/grows").stat().st_size > 0


def test_the_first_process_hands_signals_on_too(home: Home, start: Start) -> None:
    if not can(*CONTAINER, "true"):
        pytest.skip("no user namespaces here: nothing can be the first process")
    # In there, `kill 1` is what a node does from outside.
    job = start(home.port, "sh", "-c", "trap 'exit 4' TERM; kill 1; while true; do sleep 0.01; done", wrap=CONTAINER)
    assert job.wait() == 4
    assert home.results["one"].code == 4


def test_a_program_begins_at_once(home: Home, start: Start) -> None:
    # A clock of the whole machine; the best of several, because others work beside this test.
    tell = "import time; print(time.clock_gettime(time.CLOCK_MONOTONIC))"
    best = float("inf")
    for number in range(20):
        began = time.clock_gettime(time.CLOCK_MONOTONIC)
        job = start(home.port, *python(tell), folder=f"job-{number}")
        assert job.wait() == 0
        best = min(best, float(job.printed) - began)
        if best < 0.1:
            break
    assert best < 0.1


class Odd(BaseHTTPRequestHandler):
    """A server that does what the test says with the first request, and takes the others."""

    asked: list[bytes]
    first: str

    def handle_expect_100(self) -> bool:
        return self.first == "knows nothing" or super().handle_expect_100()

    def do_PUT(self) -> None:
        size = int(self.headers["Content-Length"])
        if self.first == "cuts" and not self.asked:
            self.asked.append(self.rfile.read(512))
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if self.first == "refuses in the middle":
            self.asked.append(self.rfile.read(512))
            self.send_error(413, "enough")
            return
        body = self.rfile.read(size)
        self.asked.append(body)
        if self.first == "breaks" and len(self.asked) == 1:
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        is_whole = self.headers["Myelin-Digest"] == f"sha256:{hashlib.sha256(body).hexdigest()}"
        self.send_response(201 if is_whole else 400)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def odd(request: pytest.FixtureRequest) -> Iterator[ThreadingHTTPServer]:
    handler = type("Handler", (Odd,), {"asked": [], "first": request.param, "protocol_version": "HTTP/1.1"})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("odd", "tries"), [("cuts", 2), ("breaks", 2), ("knows nothing", 1)], indirect=["odd"])
def test_an_upload_that_breaks_off_is_done_again_from_the_start(odd: Any, tries: int, start: Start) -> None:
    job = start(odd.server_address[1], "sh", "-c", "head -c 3000000 /dev/urandom > ../space/model/m")
    assert job.wait() == 0, job.said
    asked = odd.RequestHandlerClass.asked
    assert len(asked) == tries
    with tarfile.open(fileobj=io.BytesIO(asked[-1])) as archive:
        assert archive.getmember("model/m").size == 3_000_000
        members = {(item.uid, item.gid, item.mtime, item.uname) for item in archive}
        assert members == {(0, 0, 315619200, "")}
        text = archive.extractfile("exit.json")
        assert text is not None
        assert json.loads(text.read()) == {"code": 0}


@pytest.mark.parametrize("odd", ["refuses in the middle"], indirect=True)
def test_an_answer_that_comes_before_all_was_sent_is_heard(odd: Any, start: Start) -> None:
    job = start(odd.server_address[1], "sh", "-c", "head -c 30000000 /dev/zero > ../space/model/m")
    assert job.wait() == 70
    assert "expected the inbox to take it, got 413" in job.said


def test_programs_are_told_an_address_that_gives_nothing_away() -> None:
    assert SECRET not in job_path(SECRET, "one")
    assert job_path(SECRET, "one").startswith(programs_path(SECRET) + "/jobs/one.")
