"""The inbox over real HTTP: what it takes, what it refuses and why, and what it tells of runs and deployed models."""

import json
import os
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
from controller.adapters.spool import Spool
from policies.admin import axon_runs, deployed_graphs
from policies.errors import DesiredStateError, OutsideError, RefusedError
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
