"""The inbox over real HTTP: what it takes, what it refuses and why, and what it tells of runs and deployed models."""

import hashlib
import http.client
import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from controller import inbox
from controller.adapters import gauges
from controller.adapters.results import job_path, job_secret, programs_path
from controller.adapters.spool import Spool
from policies.admin import ANY_PROJECT, axon_runs, deployed_graphs
from policies.errors import (
    ConflictError,
    ControllerError,
    DesiredStateError,
    OutsideError,
    RefusedError,
    SilentError,
    TrustError,
)
from policies.serving import proxy_name, server_name
from policies.terms.axon import Axon
from policies.terms.desired import DesiredAxon, DesiredState
from policies.terms.digest import Digest
from policies.terms.observed import Observed, Recorded
from policies.terms.project import Metadata, Project
from policies.terms.revision import Revision
from policies.terms.run import Run, TaskRun
from policies.terms.task import JobState, ServerState
from policies.terms.version import BackendRecord, Version, VersionMetadata, VersionSpec

START = datetime(2026, 1, 1, tzinfo=UTC)
IMAGE = Digest("sha256:" + "1" * 64)
MANIFEST = {
    "apiVersion": "myelin.io/v1alpha1",
    "kind": "Axon",
    "metadata": {"name": "small"},
    "spec": {
        "tasks": [{"name": "prep", "container": {}}, {"name": "fit", "train": {}}, {"name": "serve", "deploy": {}}],
        "sensors": [
            {"name": "begin", "tasks": [{"resourceExecutor": {"task": "prep"}}]},
            {
                "name": "again",
                "triggers": [{"type": "Rest", "name": "asked"}, {"type": "Rest"}, {"type": "Alert", "name": "bad"}],
                "tasks": [{"trainer": {"task": "fit"}}, {"deployer": {"name": "web"}}],
            },
        ],
    },
}


def minutes(number: float) -> datetime:
    return START + timedelta(minutes=number)


def milliseconds(number: float) -> int:
    return int(minutes(number).timestamp() * 1000)


def run(name: str, sensor: str, at: float, axon: str = "small") -> Run:
    return Run(
        id=name, axon=axon, sensor=sensor, events=(), event_set="", axon_digest="", commit="c" * 40, started_at=minutes(at)
    )


def task(name: str, task: str, of: str, at: float, **more: Any) -> TaskRun:
    usual = {"axon": "small", "kind": "train", "state": "Succeeded"}
    return TaskRun(id=name, task=task, run=of, at=minutes(at), **{**usual, **more})


def job(name: str, of: str, at: float, **labels: str) -> JobState:
    return JobState(name=name, phase="succeeded", started_at=minutes(at), labels={"taskRun": of, **labels})


def version(name: str, at: float) -> Version:
    backends = (
        BackendRecord(model="M", backend="b", image=IMAGE, artifact=IMAGE),
        BackendRecord(model="M", backend="c", image=IMAGE),
    )
    known = {"deployer": "web", "commit": "c" * 40, "axonDigest": "", "eventSet": "", "events": (), "run": "", "routes": ()}
    spec = VersionSpec.model_validate({**known, "backends": backends, "createdAt": minutes(at)})
    return Version(metadata=VersionMetadata(name=name, axon="small"), spec=spec)


def server(name: str, port: int, phase: Any = "ready") -> ServerState:
    return ServerState(name=name, phase=phase, address=f"127.0.0.1:{port}", image=IMAGE)


VERSIONS = {name: version(name, at) for at, name in enumerate(("v-1", "v-2", "v-3"))}
DESIRED = DesiredState(
    revision=Revision(branch="main", commit="c" * 40, at=START),
    tip="c" * 40,
    project=Project(metadata=Metadata(name="mine")),
    axons={"small": DesiredAxon(name="small", file="axon.yaml", document=Axon.model_validate(MANIFEST), digest="", trees={})},
    versions=VERSIONS,
)
RUNS = {
    item.id: item for item in (run("r-1", "begin", 0), run("r-2", "again", 5), run("r-3", "gone", 9), run("r-x", "s", 1, "b"))
}
TASKS = {
    item.id: item
    for item in (
        task("t-1", "prep", "r-1", 2, kind="container", data=("sha256:d",)),
        task("t-2", "fit", "r-2", 7, model="sha256:m", data=("sha256:d",), kind="tune", trial="0_0_1"),
        task("t-3", "fit", "r-2", 8, model="sha256:m", reused="t-2", trial="0_0_1"),
        task("t-4", "prep", "r-3", 9, state="Failed", message="no luck"),
        task("t-x", "prep", "r-x", 9, axon="b"),
    )
}
JOBS = {
    item.name: item
    for item in (
        job("small-prep", "t-1", 1),
        job("small-fit-low", "t-2", 5.5, trial="0_0_1", rung="0"),
        job("small-fit-high", "t-2", 6, trial="0_0_1", rung="2"),
        job("small-fit-other", "t-2", 6, trial="0_0_0", rung="9"),
    )
}
SERVERS = {
    item.name: item
    for item in (
        server(server_name(VERSIONS["v-1"], VERSIONS["v-1"].spec.backends[0]), 1),
        server(server_name(VERSIONS["v-2"], VERSIONS["v-2"].spec.backends[0]), 2),
        server(server_name(VERSIONS["v-2"], VERSIONS["v-2"].spec.backends[1]), 3, "starting"),
        server(proxy_name("small", "web"), 9),
    )
}
OBSERVED = Observed(recorded=Recorded(runs=RUNS, tasks=TASKS), jobs=JOBS, servers=SERVERS)


def place(name: str, kind: str) -> str:
    return f"/{name}/{kind}/"


class Clock:
    def now(self) -> datetime:
        return START


class Opened:
    """An inbox that serves, and what it was given."""

    def __init__(self, folder: Path) -> None:
        self.look: tuple[DesiredState, Observed] | None = (DESIRED, OBSERVED)
        self.spool, self.woken = Spool(folder / "spool"), 0
        self.reports: list[tuple[str, Mapping[str, Any]]] = []
        self.samples: list[tuple[Mapping[str, str], str]] = []
        self.folder = folder
        receivers = inbox.Receivers(
            spool=self.spool,
            clock=Clock(),
            wake=self.wake,
            report=self.report,
            push=lambda labels, text: self.samples.append((labels, text)),
            newest=lambda: self.look,
            place=place,
            namespace="default",
        )
        self.server, self.url = inbox.serve(folder, receivers, port=None)
        self.token = json.loads((folder / "address.json").read_text())["token"]

    def wake(self) -> None:
        self.woken += 1

    def report(self, name: str, line: Mapping[str, Any]) -> None:
        if name != "job-1":
            raise OutsideError(f"job {name}: there is none of that name", reason="JobGone")
        self.reports.append((name, line))

    def ask(self, path: str, body: str | None = None, method: str | None = None, **headers: str) -> tuple[int, Any]:
        data = body.encode() if body is not None else None
        request = urllib.request.Request(self.url + path, data=data, headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())["message"]

    def fire(self, path: str, body: str = "{}") -> tuple[int, Any]:
        return self.ask(f"/sensors/{path}", body, Authorization=f"Bearer {self.token}")


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    made = Opened(tmp_path / "inbox")
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.mark.parametrize("path", ["project/small/again", "mine/small/again/asked", "mine/small/again/Rest-1"])
def test_an_event_somebody_waits_for_is_kept(path: str, opened: Opened) -> None:
    code, answer = opened.fire(path, '{"rows": 3}')
    assert code == 202
    (event,) = opened.spool.received()
    assert (event.id, event.axon, event.sensor, event.data) == (answer["id"], "small", "again", {"rows": 3})
    assert opened.woken == 1


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("other/small/again", "project other: expected one of mine, project"),
        ("mine/tiny/again", "axon tiny: expected small"),
        ("mine/small/begin", "sensor begin of small: expected again with a trigger of type Rest"),
        ("mine/small/nope/asked", "sensor nope of small: expected again with a trigger of type Rest"),
        ("mine/small/again/bad", "trigger bad of small/again: expected one of asked, Rest-1"),
        ("mine/small/again/a%20b", "trigger a b of small/again: expected one of asked, Rest-1"),
    ],
)
def test_an_event_nobody_waits_for_is_refused_with_the_names_there_are(path: str, said: str, opened: Opened) -> None:
    assert opened.fire(path) == (404, said)
    assert opened.spool.received() == ()


def test_an_event_before_the_first_look_is_kept(opened: Opened) -> None:
    opened.look = None
    assert opened.fire("any/thing/at/all")[0] == 202
    assert len(opened.spool.received()) == 1


def test_an_event_without_the_token_learns_nothing(opened: Opened) -> None:
    expected = (401, "expected the inbox's token as Authorization: Bearer …")
    assert opened.ask("/sensors/mine/small/again", "{}") == expected
    assert opened.ask("/sensors/mine/nope/again", "{}", Authorization="Bearer wrong") == expected


def test_fire_sends_as_any_client_could_and_passes_on_why_not(opened: Opened) -> None:
    assert inbox.fire(opened.folder, "small/again/asked", b"") == opened.spool.received()[0].id
    with pytest.raises(RefusedError, match="trigger a b of small/again: expected one of asked, Rest-1"):
        inbox.fire(opened.folder, "small/again/a b", b"")


@pytest.mark.parametrize(
    ("told", "line"),
    [
        ({"result": {"loss": 0.5, "info": {"auc": 1}}, "exception": None}, {"loss": 0.5, "metrics": {"auc": 1.0}}),
        ({"result": {"loss": 0.0, "info": {}}, "exception": None}, {"loss": 0.0, "metrics": {}}),
        ({"result": None, "exception": "Traceback: no luck"}, {"loss": "nan", "metrics": {}}),
        (None, {"loss": "nan", "metrics": {}}),
        ({"result": {"loss": 0.5}, "exception": "no luck"}, {"loss": "nan", "metrics": {}}),
        ({"result": {"loss": float("nan"), "info": {"a": float("inf")}}}, {"loss": "nan", "metrics": {"a": "inf"}}),
        ({"result": {"loss": "-inf", "info": None}}, {"loss": "-inf", "metrics": {}}),
        ({"result": {"info": "text"}}, {"loss": "nan", "metrics": {}}),
        ({"result": {"loss": 2**60, "info": {"note": "text"}}}, {"loss": float(2**60), "metrics": {"note": "nan"}}),
    ],
)
def test_a_trials_report_is_taken_failures_too(told: Any, line: Any, opened: Opened) -> None:
    body = json.dumps({"result": told, "budget": 1.0, "config_id": [0, 0, 1], "config": {}})
    assert opened.ask("/trials/job-1/submit_result", body) == (200, {})
    assert opened.reports == [("job-1", {"kind": "result", **line})]


def test_what_is_no_report_is_refused(opened: Opened) -> None:
    said = "expected `result`, null or an object with `result` and `exception`"
    for body in ("{}", "5", '{"result": 5}', '{"result": [1]}'):
        assert opened.ask("/trials/job-1/submit_result", body) == (400, said)
    assert opened.ask("/trials/job-1/submit_result", "{")[0] == 400
    assert opened.ask("/trials/job-1/submit_result", "[" * 100_000)[0] == 400
    assert opened.ask("/trials/job-2/submit_result", '{"result": null}') == (404, "job job-2: there is none of that name")


@pytest.mark.parametrize(
    ("path", "labels"),
    [
        ("job/sha256%3Aab", {"job": "sha256:ab"}),
        ("job/a/pod@base64/=/service@base64/%3D/who/me", {"job": "a", "who": "me"}),
        ("job@base64/YS9i/pod/", {"job": "a/b"}),
    ],
)
def test_samples_come_with_the_labels_of_their_path(path: str, labels: Any, opened: Opened) -> None:
    for method in ("POST", "PUT"):
        assert opened.ask(f"/metrics/{path}", "a 1\n", method) == (202, {})
        assert opened.samples.pop() == (labels, "a 1\n")


def test_an_axons_runs_are_told_as_the_earlier_client_reads_them(opened: Opened) -> None:
    code, answer = opened.ask("/api/v1/axons/default/small")
    assert code == 200
    assert [(item["name"], [child["id"] for child in item["children"]]) for item in answer["sensors"]] == [
        ("begin", ["r-1"]),
        ("again", ["r-2"]),
        ("gone", ["r-3"]),
    ]
    nodes = {node["name"]: node for item in answer["sensors"] for child in item["children"] for node in child["children"]}
    assert sorted(nodes) == ["t-1", "t-2", "t-3", "t-4"]
    shown = {
        name: (node["taskName"], node["status"], node["startedAtTs"], node["template"]["container"]["env"])
        for name, node in nodes.items()
    }
    fitted = [
        {"name": "MODEL_PATH", "value": "/small-fit-high/model/"},
        {"name": "DATA_PATH", "value": "/small-fit-high/data/"},
    ]
    assert shown == {
        "t-1": ("prep", "Succeeded", milliseconds(1), [{"name": "DATA_PATH", "value": "/small-prep/data/"}]),
        "t-2": ("fit", "Succeeded", milliseconds(6), fitted),
        "t-3": ("fit", "Succeeded", milliseconds(8), fitted[:1]),
        "t-4": ("prep", "Failed", milliseconds(9), []),
    }


def test_deployed_models_are_told_as_the_earlier_client_reads_them(opened: Opened) -> None:
    code, answer = opened.ask("/model-graphs/web", json.dumps({"namespace": "default", "axon": "small"}))
    assert code == 200
    graphs = answer["deployedModelGraphs"]
    assert [(graph["name"], graph["startedAtTs"]) for graph in graphs] == [("v-2", milliseconds(1)), ("v-1", milliseconds(0))]
    (model,) = graphs[0]["models"]
    assert model["modelName"] == "M"
    name = server_name(VERSIONS["v-2"], VERSIONS["v-2"].spec.backends[0])
    assert model["backends"][0] == {
        "modelBackendName": "b",
        "name": name,
        "id": name,
        "url": "http://127.0.0.1:2/",
        "clusterUrl": "http://127.0.0.1:2/",
        "publicUrl": "http://127.0.0.1:9/small/versions/v-2/",
        "status": "Ready",
        "startedAtTs": milliseconds(1),
        "env": [{"name": "MODEL_PATH", "value": f"/{name}/model/"}],
    }
    assert (model["backends"][1]["status"], model["backends"][1]["env"]) == ("Starting", [])


def test_names_that_are_not_there_are_answered_with_one_sentence(opened: Opened) -> None:
    assert opened.ask("/api/v1/axons/default/tiny") == (404, "axon tiny: expected small")
    assert opened.ask("/api/v1/axons/other/small") == (404, "namespace other: expected default")
    small = json.dumps({"axon": "small"})
    assert opened.ask("/model-graphs/gone", small) == (404, "model graph gone of small: expected web")
    assert opened.ask("/model-graphs/web", '{"axon": "tiny"}') == (404, "axon tiny: expected small")
    for body in ("{}", "[]", '{"axon": 5}'):
        assert opened.ask("/model-graphs/web", body) == (400, "expected an object with `namespace` and `axon`")
    assert opened.ask("/api/v1/axons") == (404, "/api/v1/axons: nothing here")
    opened.look = None
    assert opened.ask("/api/v1/axons/default/small") == (503, "the first look is not over yet; ask again")
    assert opened.ask("/model-graphs/web", small)[0] == 503


def test_a_deployer_without_versions_and_a_lost_folder_are_no_errors() -> None:
    nothing = replace(DESIRED, versions={})
    assert deployed_graphs(nothing, OBSERVED, "small", "web", place=place) == {"deployedModelGraphs": []}
    answer = axon_runs(DESIRED, OBSERVED, "small", place=lambda *_: "")
    runs = [run for item in answer["sensors"] for run in item["children"]]
    envs = [node["template"]["container"]["env"] for run in runs for node in run["children"]]
    assert envs == [[], [], [], []]
    with pytest.raises(DesiredStateError, match="axon gone: expected one, there is none"):
        axon_runs(replace(DESIRED, axons={}), OBSERVED, "gone", place=place)


def test_the_client_in_a_job_reads_what_the_inbox_tells(opened: Opened) -> None:
    code = """
from myelin import admin
found = admin.task("fit")
print(found.id, found.name, found.status, found.model_path, found.data_path)
print(admin.task("prep").status, admin.task("deploy:web", default_value="none yet"))
backend = admin.model_backend("web", "M", "b")
print(backend.name, backend.url, backend.model_path == f"/{backend.id}/model/")
"""
    env = {"PATH": os.environ["PATH"], "ADMIN_URL": opened.url, "AXON_NAME": "small", "NAMESPACE": "default"}
    env["DATA_PATH_fit"] = "/mine/"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "t-3 fit Succeeded /small-fit-high/model/ /mine/",
        "Failed none yet",
        "b http://127.0.0.1:2/ True",
    ]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/metrics/job/x", "a 1\n"),
        ("/trials/job-1/submit_result", "{}"),
        ("/model-graphs/d", "{}"),
        ("/api/v1/axons/default/small", None),
    ],
)
def test_who_was_not_given_the_jobs_address_can_neither_push_nor_ask(path: str, body: str | None, opened: Opened) -> None:
    opened.url = opened.url.split("/programs/")[0]
    words = "expected the address that jobs are given, with its secret"
    assert opened.ask(path, body) == (401, words)
    assert opened.ask(f"/programs/guess{path}", body) == (401, words)
    assert opened.samples == []
    assert opened.reports == []


def test_a_page_in_a_browser_cannot_push(opened: Opened) -> None:
    assert opened.ask("/metrics/job/x", "a 1\n", Origin="https://elsewhere.example")[0] == 403
    assert opened.samples == []


class Several:
    """A desk of two projects, with the receivers of a controller in a cluster."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.is_ready, self.is_alive = folder, True, True
        self.events: dict[str, Spool] = {}
        self.reports: list[tuple[str, str, Any]] = []
        self.results: list[tuple[str, str, bytes]] = []
        self.trouble: Exception | None = None
        self.desk = inbox.Desk("127.0.0.1", 0, is_ready=lambda: self.is_ready, is_alive=lambda: self.is_alive)
        for project in ("red", "blue"):
            self.admit(project)
        self.port = self.desk.start()

    def admit(self, project: str, **more: Any) -> None:
        spool = self.events[project] = Spool(self.folder / project)

        def take(name: str, tar: Path) -> Mapping[str, str]:
            self.results.append((project, name, tar.read_bytes()))
            if self.trouble is not None:
                raise self.trouble
            return {"model": IMAGE}

        receivers = inbox.Receivers(
            spool=spool,
            clock=Clock(),
            wake=lambda: None,
            report=lambda name, line: self.reports.append((project, name, dict(line))),
            push=lambda labels, text: None,
            newest=lambda: None,
            place=place,
            namespace="default",
            result=take,
            results=self.incoming(project),
            largest_result_bytes=4 << 20,
        )
        given = {"token": f"token-of-{project}", "programs": f"secret-of-{project}"}
        self.desk.admit(project, replace(receivers, **more), **given)

    def incoming(self, project: str) -> Path:
        return self.folder / f"{project}-incoming"

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, path, body or None, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            value = json.loads(answer.read())
            return answer.status, value.get("message", value)
        finally:
            connection.close()

    def fire(self, project: str, token: str) -> tuple[int, Any]:
        return self.ask("POST", f"/sensors/{project}/small/again", b"{}", Authorization=f"Bearer {token}")

    def bring(self, path: str, body: bytes = b"a tar", **headers: str) -> tuple[int, Any]:
        given = {"Myelin_Digest": f"sha256:{hashlib.sha256(body).hexdigest()}", **headers}
        return self.ask("PUT", path, body, **given)

    def left(self) -> list[str]:
        return [path.name for project in ("red", "blue") for path in self.incoming(project).glob("*")]


def wrong_tokens() -> float:
    samples = gauges.parse_exposition(gauges.render().decode())
    return next(value for labels, value in samples if labels["__name__"] == "myelin_wrong_tokens_total")


@pytest.fixture
def several(tmp_path: Path) -> Iterator[Several]:
    made = Several(tmp_path)
    yield made
    made.desk.close()


def test_each_project_hears_its_own_senders(several: Several) -> None:
    assert several.fire("red", "token-of-red")[0] == 202
    assert several.fire("blue", "token-of-blue")[0] == 202
    assert several.fire(ANY_PROJECT, "token-of-blue")[0] == 202
    assert (len(several.events["red"].received()), len(several.events["blue"].received())) == (1, 2)


def test_a_sender_learns_nothing_of_other_projects(several: Several) -> None:
    unknown = (401, "expected the inbox's token as Authorization: Bearer …")
    assert several.fire("red", "wrong") == several.fire("green", "wrong") == several.fire("green", "") == unknown
    assert several.fire("blue", "token-of-red") == (404, "project blue: expected red")
    assert several.fire("green", "token-of-red") == (404, "project green: expected red")
    assert several.events["blue"].received() == ()


def test_programs_are_told_apart_by_their_address(several: Several) -> None:
    for project in ("blue", "red"):
        path = programs_path(f"secret-of-{project}")
        assert several.ask("POST", f"{path}/trials/job-1/submit_result", b'{"result": null}') == (200, {})
        assert several.reports[-1][:2] == (project, "job-1")
    assert several.ask("POST", "/programs/nobody/trials/job-1/submit_result", b'{"result": null}')[0] == 401


def test_a_project_that_was_dismissed_is_as_one_that_never_was(several: Several) -> None:
    several.desk.dismiss("red")
    several.desk.dismiss("red")
    assert several.fire("red", "token-of-red") == several.fire("red", "wrong")
    assert several.fire("blue", "token-of-blue")[0] == 202
    several.admit("red")
    assert several.fire("red", "token-of-red")[0] == 202


@pytest.mark.parametrize(
    ("token", "programs", "words"),
    [
        ("", "p", "expected a token and a secret for its programs, got an empty one"),
        ("t", "", "expected a token and a secret for its programs, got an empty one"),
        ("token-of-red", "p", "expected secrets of its own, got those of red"),
        ("t", "secret-of-red", "expected secrets of its own, got those of red"),
    ],
)
def test_a_project_needs_secrets_of_its_own(token: str, programs: str, words: str, several: Several) -> None:
    receivers = several.desk.by_token("token-of-red")
    assert receivers is not None
    with pytest.raises(RefusedError, match=f"project green: {words}"):
        several.desk.admit("green", receivers.receivers, token=token, programs=programs)
    assert "token-of-red" not in repr(receivers)
    assert "secret-of-red" not in repr(receivers)


def test_a_port_in_use_is_said(several: Several) -> None:
    with pytest.raises(RefusedError, match=f"inbox port {several.port}: Address already in use"):
        inbox.Desk("127.0.0.1", several.port, is_ready=lambda: True, is_alive=lambda: True)


def test_a_desk_that_never_started_can_be_closed() -> None:
    inbox.Desk("127.0.0.1", 0, is_ready=lambda: True, is_alive=lambda: True).close()


def test_probes_are_told_what_the_controller_says(several: Several) -> None:
    assert (several.ask("GET", "/health")[0], several.ask("GET", "/ready")[0]) == (200, 200)
    several.is_ready = False
    assert (several.ask("GET", "/health")[0], several.ask("GET", "/ready")[0]) == (200, 503)
    several.is_alive = False
    assert several.ask("GET", "/health")[0] == 503


def test_while_a_controller_starts_what_it_does_not_know_yet_is_to_ask_again(several: Several) -> None:
    several.is_ready = False
    again = (503, "not every project is known here yet; ask again")
    before = wrong_tokens()
    assert several.fire("green", "token-of-green") == again
    assert several.ask("POST", f"{programs_path('secret-of-green')}/metrics/job/x", b"a 1") == again
    assert several.fire("red", "token-of-red")[0] == 202
    assert wrong_tokens() == before
    several.is_ready = True
    assert several.fire("green", "token-of-green")[0] == 401
    assert wrong_tokens() == before + 1


def test_a_result_whose_project_is_not_there_is_never_lost(several: Several) -> None:
    again = (503, "no project is known here by this address; ask again")
    several.desk.dismiss("red")
    for several.is_ready in (False, True):
        assert several.bring(job_path("secret-of-red", "one")) == again
    several.admit("red")
    assert several.bring(job_path("secret-of-red", "one"))[0] == 201


def test_a_result_goes_to_its_project_and_leaves_nothing_behind(several: Several) -> None:
    body = os.urandom(3 << 20)
    assert several.bring(job_path("secret-of-blue", "one"), body) == (201, {"model": IMAGE})
    assert several.bring(job_path("secret-of-red", "a" * 63), b"") == (201, {"model": IMAGE})
    assert several.results == [("blue", "one", body), ("red", "a" * 63, b"")]
    assert several.left() == []


def test_no_job_can_send_for_another_nor_with_what_all_are_told(several: Several) -> None:
    told = programs_path("secret-of-red").rpartition("/")[2]
    words = "expected the address that this job was given, with its secret"
    for guess in (job_secret("secret-of-red", "two"), job_secret(told, "one"), told, "", "ü"):
        path = f"{programs_path('secret-of-red')}/jobs/one.{urllib.parse.quote(guess)}/result"
        assert several.bring(path) == (401, words)
    assert (
        several.bring(job_path("secret-of-blue", "one").replace(programs_path("secret-of-blue"), f"/programs/{told}"))[0] == 401
    )
    assert several.results == []


@pytest.mark.parametrize("name", ["", "..", "A", "a_b", "-a", "a-", "a" * 64, "a%2Fb", "a%0A", "%C3%BC"])
def test_odd_names_are_no_jobs(name: str, several: Several) -> None:
    path = f"{programs_path('secret-of-red')}/jobs/{name}.{job_secret('secret-of-red', urllib.parse.unquote(name))}/result"
    assert several.bring(path)[0] == 404
    assert several.results == []


def test_where_nobody_takes_results_there_is_nothing(several: Several, opened: Opened) -> None:
    several.admit("red", result=None)
    assert several.bring(job_path("secret-of-red", "one")) == (404, "job 'one': nobody here takes a result of it")
    programs = json.loads((opened.folder / "address.json").read_text())["programs"]
    opened.url = opened.url.split("/programs/")[0]
    assert opened.ask(job_path(programs, "one"), "a tar", "PUT")[0] == 404


def test_only_a_put_brings_a_result(several: Several) -> None:
    path = job_path("secret-of-red", "one")
    assert several.ask("POST", path, b"a tar")[0] == 404
    assert several.ask("GET", path)[0] == 404
    assert several.bring(path, Origin="https://elsewhere.example")[0] == 403
    assert several.results == []


@pytest.mark.parametrize(
    ("headers", "code", "words"),
    [
        ({"Myelin_Digest": "sha256:" + "0" * 64}, 400, "body: expected sha256:0000"),
        ({"Myelin_Digest": "md5:" + "0" * 32}, 400, "expected the body's digest as Myelin-Digest: sha256:<64 hex>"),
        ({"Myelin_Digest": ""}, 400, "expected the body's digest as Myelin-Digest: sha256:<64 hex>"),
        ({"Content_Length": "4194305"}, 413, "result: expected at most 4194304 bytes, got 4194305"),
        ({"Content_Length": "-1"}, 411, "expected a body with its Content-Length"),
        ({"Content_Length": "9" * 40}, 411, "expected a body with its Content-Length"),
        ({"Transfer_Encoding": "chunked"}, 411, "expected a body with its Content-Length"),
    ],
)
def test_what_is_not_what_it_says_is_not_taken(headers: dict[str, str], code: int, words: str, several: Several) -> None:
    got = several.bring(job_path("secret-of-red", "one"), **headers)
    assert (got[0], got[1].startswith(words)) == (code, True), got
    assert several.results == []
    assert several.left() == []


def test_a_body_that_is_cut_short_is_not_taken(several: Several) -> None:
    head = f"PUT {job_path('secret-of-red', 'one')} HTTP/1.1\r\nMyelin-Digest: sha256:{'0' * 64}\r\nContent-Length: 99\r\n\r\n"
    with socket.create_connection(("127.0.0.1", several.port), timeout=10) as sender:
        sender.sendall(head.encode() + b"half")
        sender.shutdown(socket.SHUT_WR)
        answer = sender.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"body: expected more of it, it ended early" in answer
    assert several.left() == []
    with socket.create_connection(("127.0.0.1", several.port), timeout=10) as sender:
        sender.sendall(head.encode() + b"half")
    assert several.bring(job_path("secret-of-red", "two"))[0] == 201
    assert [name for _, name, _ in several.results] == ["two"]


def test_who_asks_first_hears_no_before_sending_anything(several: Several) -> None:
    for path, answer in (
        (job_path("secret-of-red", "one"), b"HTTP/1.1 100 "),
        (job_path("secret-of-red", "one").replace("one.", "two."), b"HTTP/1.1 401 "),
        (f"{programs_path('secret-of-red')}/metrics/job/x", b"HTTP/1.1 100 "),
    ):
        head = f"PUT {path} HTTP/1.1\r\nExpect: 100-continue\r\nMyelin-Digest: sha256:{'0' * 64}\r\nContent-Length: 9\r\n\r\n"
        with socket.create_connection(("127.0.0.1", several.port), timeout=10) as sender:
            sender.sendall(head.encode())
            assert sender.recv(13) == answer


@pytest.mark.parametrize(
    ("trouble", "code"),
    [
        (SilentError("registry: no answer"), 503),
        (ConflictError("registry: somebody wrote first"), 503),
        (OutsideError("registry: odd"), 503),
        (ControllerError("odd"), 503),
        (OSError(28, "No space left on device"), 503),
        (RefusedError("result: expected a tar file"), 422),
        (TrustError("result: not ours"), 422),
        (DesiredStateError("job one: expected no result"), 422),
        (OutsideError("job one: gone", reason="JobGone"), 404),
    ],
)
def test_what_a_receiver_says_decides_whether_the_job_tries_again(trouble: Exception, code: int, several: Several) -> None:
    several.trouble = trouble
    got = several.bring(job_path("secret-of-red", "one"))
    assert (got[0], str(trouble) in got[1] or trouble.args[0] in got[1]) == (code, True)
    assert len(several.results) == 1
    assert several.left() == []


def test_a_disk_that_takes_no_more_is_to_ask_again(several: Several) -> None:
    several.incoming("red").parent.mkdir(exist_ok=True)
    several.incoming("red").write_text("no folder")
    assert several.bring(job_path("secret-of-red", "one"))[0] == 503
    assert several.results == []


def test_what_an_earlier_controller_was_receiving_is_gone_when_its_project_is_back(several: Several) -> None:
    several.incoming("green").mkdir()
    (several.incoming("green") / "incoming-x.tar").write_text("half")
    (several.incoming("green") / "other").write_text("not ours")
    several.admit("green")
    assert [path.name for path in several.incoming("green").iterdir()] == ["other"]


def test_a_receiver_may_keep_the_file_itself(several: Several, tmp_path: Path) -> None:
    def take(name: str, tar: Path) -> Mapping[str, str]:
        tar.rename(tmp_path / "kept")
        return {}

    several.admit("red", result=take)
    assert several.bring(job_path("secret-of-red", "one")) == (201, {})
    assert (tmp_path / "kept").read_bytes() == b"a tar"
