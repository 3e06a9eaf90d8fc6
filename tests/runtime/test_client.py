"""The client package as programs use it: the earlier client's calls, in a job, beside a gateway, and outside of both."""

import base64
import json
import os
import socket
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import myelin
from myelin.gateway import gateway_url

HPO = base64.b64encode(json.dumps({"config-id": "0_0_1", "budget": 3.5, "hpo-conf": json.dumps({"lr": 0.1})}).encode()).decode()
IMPORTS = "from myelin import admin, hpo, metric\n"


def run(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    """A program of a user's, for whom every warning is an error."""
    given = {"PATH": os.environ["PATH"], **env}
    argv = [sys.executable, "-W", "error", "-c", IMPORTS + code]
    done = subprocess.run(argv, env=given, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done


def result_of(code: str, folder: Path, **env: str) -> list[dict[str, Any]]:
    """What a program reported."""
    report = folder / "report.jsonl"
    run(code, MYELIN_REPORT_PATH=str(report), **env)
    lines = [json.loads(line) for line in report.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "at"} for line in lines]


class Listener(BaseHTTPRequestHandler):
    """Keeps what it was asked; answers as the test says."""

    asked: list[tuple[str, str, dict[str, str], str]]
    answers: dict[str, Any]

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        self.asked.append((self.command, self.path, dict(self.headers), body))
        answer = self.answers.get(self.path, {})
        text = json.dumps(answer).encode()
        self.send_response(answer if isinstance(answer, int) else 200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


class Listening:
    def __init__(self) -> None:
        self.asked: list[tuple[str, str, dict[str, str], str]] = []
        self.answers: dict[str, Any] = {}
        handler = type("One", (Listener,), {"asked": self.asked, "answers": self.answers})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.address = f"127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def listening() -> Iterator[Listening]:
    made = Listening()
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_the_client_is_harmless_outside_of_a_job() -> None:
    calls = """
metric.publish_result(0.0, 'loss')
assert metric.MetricClient().post_update("a", 1).status_code == 200
metric.MetricClient(port=9092).post_increment("a")
hpo.publish_result("rmse", 0.5, {}, {}, {})
assert metric.get_loss_metric() is None and hpo.get_hpo_config() == {} and hpo.get_hpo_params() == {}
assert admin.task("a", default_value=4) == 4 and admin.task("a") is None
assert admin.model_backend("g", "m", "b", default_value=5) == 5
assert admin.get_axon() is None and admin.get_namespace("x") == "x"
print(hpo.hpo_enabled(), admin.data_path('x/'), admin.model_path(default_value='y/'))
"""
    said = run(calls)
    assert said.stdout == "False x/ y/\n"
    assert said.stderr == ""


def test_empty_variables_count_as_unset() -> None:
    assert run("print(admin.data_path('x/'), hpo.hpo_enabled())", DATA_PATH="", HPO_PARAMS="").stdout == "x/ False\n"
    assert run("print(admin.data_path('x/'))", DATA_PATH="/d/").stdout == "/d/\n"


def test_a_trial_finds_what_to_try_and_reports_into_the_jobs_file(tmp_path: Path) -> None:
    code = """
assert hpo.hpo_enabled() and hpo.get_hpo_params() == {"lr": 0.1}
config = hpo.get_hpo_config()
assert config["config-id"] == "0_0_1" and config["budget"] == 3.5 and hpo.extract_hpo_params(config) == {"lr": 0.1}
metric.MetricClient().post_update("rows", 7)
metric.publish_result(float("nan"), metric.get_loss_metric(), {"auc": 0.5})
"""
    assert result_of(code, tmp_path, HPO_PARAMS=HPO, LOSS_METRIC="rmse") == [
        {"kind": "metric", "name": "rows", "value": 7.0, "type": "gauge"},
        {"kind": "result", "loss": "nan", "lossMetric": "rmse", "metrics": {"auc": 0.5}},
    ]


RESULTS = {
    "metric.publish_result(0.0, 'rmse')": (0.0, {}),
    "metric.publish_result(0.5, 'rmse', {'auc': 0.75})": (0.5, {"auc": 0.75}),
    "metric.publish_result(loss_value=0.5, loss_metric='rmse', additional_metrics={}, params={'a': 'b'}, tags={})": (0.5, {}),
    "metric.publish_result(0.5, 'rmse', {'kernel': 'rbf'}, {'who': 'me'})": (0.5, {}),
    "metric.publish_result(0.5, 'rmse', {'kernel': 'rbf', 'auc': 0.75})": (0.5, {"auc": 0.75}),
    "metric.publish_result(0.5, 'rmse', {'auc': None, 'f1': 0.25})": (0.5, {"f1": 0.25}),
    "metric.publish_result('0.5', 'rmse')": (0.5, {}),
    "hpo.publish_result('rmse', 0.5, {'kernel': 'rbf'}, {'who': 'me'}, {'auc': 0.75})": (0.5, {"auc": 0.75}),
    "hpo.publish_result('rmse', 0.5, {}, {})": (0.5, {}),
    "hpo.publish_result(loss_value=0.5, loss_metric='rmse')": (0.5, {}),
    "metric.post_hpo_result('0_0_1', {}, 3.5, 'rmse', 0.5, {}, {}, {'loss value': 0.5}, {'auc': 0.75})": (0.5, {"auc": 0.75}),
    "metric.__MYELIN_CLIENT__.post_hpo_result('0_0_1', {}, 3.5, 'rmse', 0.5, {}, {}, {'loss value': 0.5})": (0.5, {}),
}


def test_results_are_taken_as_the_earlier_clients_gave_them(tmp_path: Path) -> None:
    reported = result_of("\n".join(RESULTS), tmp_path, HPO_PARAMS=HPO)
    assert dict(zip(RESULTS, reported, strict=True)) == {
        call: {"kind": "result", "loss": loss, "lossMetric": "rmse", "metrics": metrics}
        for call, (loss, metrics) in RESULTS.items()
    }


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    code = "import numpy; metric.publish_result(numpy.float32(0.5), 'rmse', {'auc': numpy.array([0.25])[0]})"
    assert result_of(code, tmp_path)[0]["metrics"] == {"auc": 0.25}


def test_a_trial_of_another_controller_reports_by_http(listening: Listening) -> None:
    place = f"http://{listening.address}/trials/job-1/"
    run("metric.publish_result(0.0, 'rmse', {'auc': 1})", HPO_PARAMS=HPO, TRAIN_CONTROLLER_URL=place)
    ((command, path, _, body),) = listening.asked
    assert (command, path) == ("POST", "/trials/job-1/submit_result")
    assert json.loads(body) == {
        "result": {"result": {"loss": 0.0, "info": {"loss value": 0.0}}, "exception": None},
        "budget": 3.5,
        "config_id": [0, 0, 1],
        "config": {"lr": 0.1},
    }


JOB = {"AXON_NAME": "my-axon", "TASK_ID": "sha256:ab", "TASK_NAME": "fit", "NAMESPACE": "n", "MYELIN_NAMESPACE": "m"}
PLACES = "/pod@base64/=/service@base64/="


def test_samples_are_pushed_once_under_the_tasks_name(listening: Listening, tmp_path: Path) -> None:
    code = """
client = metric.MetricClient()
assert client.get_metric("drift-p") == "drift__p_my__axon"
assert (client.namespace, client.task_id, client.task_name, client.axon_name) == ("n", "sha256:ab", "fit", "my-axon")
client.post_update("drift-p", 0.8, job_name="a/b", grouping_key={"who": "me", "pod": "p"})
client.post_increment("rows")
client.post_increment("rows", 2)
metric.publish_result(0.5, "rmse", {"auc": 0.75})
print(client.process_id, client.url)
"""
    said = run(code, PUSHGATEWAY_URL=listening.address, MYELIN_REPORT_PATH=str(tmp_path / "r"), **JOB).stdout.split()
    paths = [path for _, path, _, _ in listening.asked]
    job = f"/metrics/job/sha256%3Aab{PLACES}"
    assert paths == ["/metrics/job@base64/YS9i/pod/p/service@base64/=/who/me", job, job, job, job]
    assert [body.splitlines()[1] for *_, body in listening.asked] == [
        "drift__p_my__axon 0.8",
        f'rows_my__axon_total{{uuid="{said[0]}"}} 1.0',
        f'rows_my__axon_total{{uuid="{said[0]}"}} 3.0',
        "rmse_my__axon 0.5",
        "auc_my__axon 0.75",
    ]
    assert said[1] == f"http://{listening.address}"


@pytest.mark.parametrize(
    ("name", "namespace", "url"),
    [
        ("gateway", "monitoring", "http://gateway.monitoring.svc.cluster.local:9091"),
        ("gateway", "", "http://gateway:9091"),
        ("gateway.example.com", "monitoring", "http://gateway.example.com:9091"),
        ("gateway.monitoring.svc.cluster.local", "other", "http://gateway.monitoring.svc.cluster.local"),
        ("127.0.0.1:8090", "default", "http://127.0.0.1:8090"),
        ("http://127.0.0.1:8090/", "default", "http://127.0.0.1:8090"),
        ("https://gateway/base", "default", "https://gateway/base"),
        ("", "default", ""),
    ],
)
def test_the_gateway_is_found_as_the_earlier_client_found_it(name: str, namespace: str, url: str) -> None:
    assert gateway_url(name, namespace, 9091) == url


def test_a_gateway_that_does_not_answer_holds_nobody_up_for_long(listening: Listening) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        started = time.monotonic()
        post = "print(metric.MetricClient().post_update('a', 1).status_code)"
        said = run(post, PUSHGATEWAY_URL=f"127.0.0.1:{silent.getsockname()[1]}", AXON_NAME="x")
        assert time.monotonic() - started < 10  # one try of at most 2 s; ten tries with pauses were 38 s
        assert said.stdout == "200\n"
        assert len(said.stderr.splitlines()) == 1
    listening.answers[f"/metrics/job/none{PLACES}"] = 500
    code = f"""
import os
for broken in ("127.0.0.1:1", "http://[", "ftp://127.0.0.1:1", "http://a b/", "{listening.address}"):
    os.environ["PUSHGATEWAY_URL"] = broken
    {post}
"""
    assert run(code, AXON_NAME="x").stdout == "200\n" * 5


def node(task: str, name: str, started: int, status: str = "Succeeded", **env: str) -> dict[str, Any]:
    variables = [{"name": key, "value": value} for key, value in env.items()]
    container = {"container": {"env": variables}}
    return {"taskName": task, "name": name, "id": "i", "status": status, "startedAtTs": started, "template": container}


def test_the_latest_run_of_a_task_is_found(listening: Listening) -> None:
    old, new = node("prep", "t-1", 1, DATA_PATH="/old/"), node("prep", "t-2", 2, "Failed", DATA_PATH="/new/", MODEL_PATH="/m/")
    sensors = [{"children": [{"children": [new, node("other", "t-3", 3)]}]}, {"children": [{"children": [old]}]}]
    listening.answers["/api/v1/axons/n/my-axon"] = {"sensors": sensors}
    job = {**JOB, "ADMIN_URL": f"http://{listening.address}", "ADMIN_JWT_TOKEN": "secret"}
    show = "found = admin.task('prep'); print(tuple(found)); assert found.data_path == found[4]; "
    show += "print(admin.task('gone', None, None, 5))"
    assert run(show, **job).stdout == "('t-2', 'prep', 'Failed', '/m/', '/new/', 2)\n5\n"
    assert listening.asked[0][2]["Authorization"] == "Bearer secret"
    assert run(show, **job, DATA_PATH_prep="/mine/").stdout == "('t-2', 'prep', 'Failed', '/m/', '/mine/', 2)\n5\n"
    assert run("print(admin.task('prep', 'other', 'x', default_value=5))", **job).stdout == "5\n"
    assert listening.asked[-1][1] == "/api/v1/axons/x/other"
    fields = "('id', 'name', 'status', 'model_path', 'data_path', 'timestamp')\n"
    assert run("print(admin.task('prep')._fields)", **job).stdout == fields


def test_the_latest_backend_is_found(listening: Listening) -> None:
    def graph(started: int, name: str) -> dict[str, Any]:
        urls = {"url": "http://u/", "publicUrl": "http://p/", "clusterUrl": "http://c/"}
        backend = {"modelBackendName": "b", "name": name, "status": "Ready", "startedAtTs": started, **urls}
        env = [{"name": "MODEL_PATH", "value": f"/{name}/"}]
        return {"startedAtTs": started, "models": [{"modelName": "m", "backends": [{**backend, "env": env}]}]}

    listening.answers["/model-graphs/g"] = {"deployedModelGraphs": [graph(1, "old"), graph(2, "new")]}
    job = {**JOB, "ADMIN_URL": f"http://{listening.address}/"}
    show = "print(admin.model_backend('g', 'm', 'b')); print(admin.model_backend('g', 'm', 'x', default_value=5))"
    said = run(show, **job).stdout.splitlines()
    assert said[0] == (
        "ModelBackendMetadata(id='new', name='b', url='http://u/', publicUrl='http://p/', clusterUrl='http://c/', "
        "status='Ready', model_path='/new/', timestamp=2)"
    )
    assert said[1] == "5"
    assert [json.loads(body) for *_, body in listening.asked] == [{"namespace": "n", "axon": "my-axon"}] * 2


def test_an_answer_that_is_none_is_the_default(listening: Listening) -> None:
    strange: tuple[Any, ...] = ({}, [], "x", {"sensors": {}}, {"sensors": [5, {"children": None}]}, {"sensors": None}, 404, 500)
    bare = {"taskName": "prep", "template": None}
    answers = [*strange, {"sensors": [{"children": [{"children": [bare]}]}]}]
    listening.answers.update({f"/api/v1/axons/n/{number}": answer for number, answer in enumerate(answers)})
    job = {**JOB, "ADMIN_URL": f"http://{listening.address}"}
    code = f"print([admin.task('prep', str(number), default_value=5) for number in range({len(strange)})])\n"
    code += f"print(tuple(admin.task('prep', '{len(strange)}')))"
    assert run(code, **job).stdout == f"{[5] * len(strange)}\n('', 'prep', '', None, None, 0)\n"
    assert run("print(admin.task('prep', default_value=5))", **{**job, "ADMIN_URL": "http://127.0.0.1:1"}).stdout == "5\n"


def test_the_pods_own_token_is_used_where_there_is_one(tmp_path: Path) -> None:
    place = tmp_path / "token"
    code = f"admin.TOKEN_FILE = {str(place)!r}; print(admin.MyelinAdmin().jwt_token)"
    assert run(code).stdout == "None\n"
    place.write_text("from-the-pod\n")
    assert run(code).stdout == "from-the-pod\n"
    assert run(code, ADMIN_JWT_TOKEN="given").stdout == "given\n"


def test_the_package_says_which_it_is() -> None:
    project = tomllib.loads((Path(myelin.__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert (myelin.__project__, myelin.__version__) == ("myelin", project["version"])
