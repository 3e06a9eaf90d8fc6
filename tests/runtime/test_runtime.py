"""The runtime as users meet it: the earlier client's calls, the model server and the proxy over real HTTP."""

import base64
import hashlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

MODEL = """
class Toy:
    class_names = ["no", "yes"]
    def __init__(self):
        self.seen = 0
    def predict(self, X, names):
        if isinstance(X, dict):
            return [[float(len(X)), 1.0 if "INPUT" in X else 0.0]]
        if X[0][0] == 13:
            raise RuntimeError("unlucky")
        return X
    def send_feedback(self, X, names, reward, truth):
        self.seen += 1
    def metrics(self):
        return [{"key": "deploy_accuracy", "type": "GAUGE", "value": self.seen / 10}]
    def tags(self):
        return {"who": __import__("os").environ["WHO"]}
"""
QUESTION = {"data": {"ndarray": [[1.0, 2.0]]}}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ask(url: str, data: bytes | None = None, headers: dict[str, str] | None = None) -> tuple[int, Any, str]:
    request = urllib.request.Request(url, data=data, headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            text = answer.read().decode()
            return answer.status, json.loads(text) if text.startswith("{") else text, answer.headers.get("Myelin-Version") or ""
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read()), error.headers.get("Myelin-Version") or ""


class Servers:
    def __init__(self, folder: Path) -> None:
        self.folder, self.running = folder, []
        (folder / "Toy.py").write_text(MODEL)

    def start(self, module: str, **env: str) -> str:
        port = free_port()
        given = {"PATH": os.environ["PATH"], "PORT": str(port), **env}
        process = subprocess.Popen([sys.executable, "-m", module], env=given, cwd=self.folder, stdout=subprocess.DEVNULL)
        self.running.append(process)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                ask(f"http://127.0.0.1:{port}/health")
                return f"127.0.0.1:{port}"
            except OSError:
                assert process.poll() is None
                time.sleep(0.05)
        raise AssertionError(f"{module} never answered")

    def model(self, who: str) -> str:
        return self.start("myelin.serve", MODEL_NAME="Toy", AXON_NAME="my-axon", WHO=who)

    def proxy(self, config: dict[str, Any]) -> str:
        self.write(config)
        return self.start("myelin.proxy", MYELIN_CONFIG=str(self.folder / "config.json"))

    def write(self, config: dict[str, Any]) -> None:
        (self.folder / "config.new").write_text(json.dumps(config))
        os.replace(self.folder / "config.new", self.folder / "config.json")

    def wait_for(self, url: str, config: dict[str, Any]) -> None:
        """Until the proxy works by this configuration, and by no earlier one."""
        digest = f"sha256:{hashlib.sha256(json.dumps(config).encode()).hexdigest()}"
        deadline = time.monotonic() + 10
        while ask(f"{url}/health")[1]["config"] != digest:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def end(self) -> None:
        for process in self.running:
            process.terminate()
        for process in self.running:
            process.wait(10)


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    made = Servers(tmp_path)
    yield made
    made.end()


def node(model: str = "M", *dependencies: str, include: bool = False) -> dict[str, Any]:
    return {
        "model": model,
        "path": "/predict",
        "dependencies": list(dependencies),
        "includeInput": include,
        "timeoutSeconds": None,
        "fullPath": None,
    }


def version(dag: list[dict[str, Any]], **models: str) -> dict[str, Any]:
    backends = {name: [{"backend": "b", "address": address, "weight": 100}] for name, address in models.items()}
    return {"routes": [{"path": "/predict", "timeoutSeconds": 5.0, "dag": dag}], "models": backends}


def test_the_model_server_reads_form_query_and_bare_json_and_says_what_is_wrong(servers: Servers) -> None:
    url = f"http://{servers.model('one')}"
    text = json.dumps(QUESTION)
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    for got in (
        ask(f"{url}/predict", text.encode(), {"Content-Type": "application/json"}),
        ask(f"{url}/predict", text.encode(), form),
        ask(f"{url}/predict", urllib.parse.urlencode({"json": text}).encode(), form),
        ask(f"{url}/predict?" + urllib.parse.urlencode({"json": text})),
    ):
        assert got[0] == 200
        assert got[1]["data"] == {"names": ["no", "yes"], "ndarray": [[1.0, 2.0]]}
        assert got[1]["meta"]["tags"] == {"who": "one"}
    tensor = ask(f"{url}/predict", b'{"data":{"tensor":{"shape":[2,1],"values":[1,2]}}}')
    assert tensor[1]["data"]["tensor"] == {"shape": [2, 1], "values": [1, 2]}
    assert ask(f"{url}/predict", b"{x")[0] == 400
    assert ask(f"{url}/predict", b'{"data":{"tensor":{"shape":[3],"values":[1]}}}')[1]["status"]["info"].startswith(
        "data.tensor: expected 3"
    )
    unlucky = ask(f"{url}/predict", b'{"data":{"ndarray":[[13]]}}')
    assert (unlucky[0], unlucky[1]["status"]["info"]) == (500, "RuntimeError: unlucky")


def test_feedback_shows_in_the_metrics_that_alerts_read(servers: Servers) -> None:
    url = f"http://{servers.model('one')}"
    for _ in range(3):
        assert ask(f"{url}/send-feedback", json.dumps({"request": QUESTION, "truth": QUESTION}).encode())[:2] == (200, {})
    assert "deploy_accuracy_my__axon 0.3" in ask(f"{url}/metrics")[1]


def test_the_proxy_shares_traffic_and_gives_every_version_a_url(servers: Servers) -> None:
    one, two = servers.model("one"), servers.model("two")
    config = {
        "axon": "a",
        "deployer": "d",
        "versions": {"v-1": version([node()], M=one), "v-2": version([node()], M=two)},
        "traffic": [{"version": "v-1", "share": 75}, {"version": "v-2", "share": 25}],
        "shadow": "",
    }
    url = f"http://{servers.proxy(config)}"
    text = json.dumps(QUESTION).encode()
    seen = Counter(ask(f"{url}/a/predict", text)[2] for _ in range(200))
    assert 20 < seen["v-2"] < 85
    assert seen["v-1"] + seen["v-2"] == 200
    got = ask(f"{url}/a/versions/v-2/predict", text)
    assert (got[0], got[1]["meta"]["tags"]["who"], got[2]) == (200, "two", "v-2")
    assert ask(f"{url}/a/predict", text, {"Myelin-Version": "v-1"})[2] == "v-1"
    assert "expected one of /predict" in ask(f"{url}/a/nope", text)[1]["status"]["info"]
    assert ask(f"{url}/a/versions/v-9/predict", text)[0] == 404
    newer = {**config, "traffic": [{"version": "v-2", "share": 100}]}
    servers.write(newer)
    servers.wait_for(url, newer)
    assert {ask(f"{url}/a/predict", text)[2] for _ in range(20)} == {"v-2"}
    (servers.folder / "config.json").write_text("{broken")
    deadline = time.monotonic() + 10
    while "myelin_proxy_refused_configs_total 1.0" not in ask(f"{url}/metrics")[1]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert {ask(f"{url}/a/predict", text)[2] for _ in range(20)} == {"v-2"}
    nobody = {**config, "traffic": []}
    servers.write(nobody)
    servers.wait_for(url, nobody)
    assert ask(f"{url}/a/predict", text)[0] == 503


def test_a_graph_joins_its_models_and_a_dead_one_is_named(servers: Servers) -> None:
    one = servers.model("one")
    dag = [node("A"), node("B"), node("J", "A", "B", include=True)]
    config = {"axon": "a", "deployer": "d", "versions": {"v-1": version(dag, A=one, B=one, J=one)}, "shadow": ""}
    config["traffic"] = [{"version": "v-1", "share": 100}]
    url = f"http://{servers.proxy(config)}"
    assert ask(f"{url}/a/predict", json.dumps(QUESTION).encode())[1]["data"]["ndarray"] == [[3.0, 1.0]]
    config["versions"] = {"v-1": version(dag, A=one, B=f"127.0.0.1:{free_port()}", J=one)}
    servers.write(config)
    servers.wait_for(url, config)
    got = ask(f"{url}/a/predict", json.dumps(QUESTION).encode())
    assert got[0] == 502
    assert got[1]["status"]["info"].startswith("model B: ")


def run(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    given = {"PATH": os.environ["PATH"], **env}
    return subprocess.run([sys.executable, "-W", "error", "-c", code], env=given, capture_output=True, text=True, check=True)


def test_the_client_is_harmless_outside_of_a_job() -> None:
    calls = "metric.publish_result(0.0, 'loss'); print(hpo.hpo_enabled(), admin.data_path('x/'))"
    said = run(f"from myelin import metric, hpo, admin; {calls}")
    assert said.stdout == "False x/\n"
    assert said.stderr == ""


def test_the_client_reports_into_the_jobs_file(tmp_path: Path) -> None:
    outer = {"config-id": "0_0_1", "budget": 3.0, "hpo-conf": json.dumps({"lr": 0.1})}
    report = tmp_path / "report.jsonl"
    code = """
from myelin import hpo, metric
assert hpo.get_hpo_params() == {"lr": 0.1} and hpo.get_hpo_config()["config-id"] == "0_0_1"
metric.MetricClient().post_update("rows", 7)
metric.publish_result(float("nan"), metric.get_loss_metric(), {"auc": 0.5})
"""
    params = base64.b64encode(json.dumps(outer).encode()).decode()
    run(code, MYELIN_REPORT_PATH=str(report), HPO_PARAMS=params, LOSS_METRIC="rmse")
    lines = [json.loads(line) for line in report.read_text().splitlines()]
    assert (lines[0]["name"], lines[0]["value"]) == ("rows", 7.0)
    assert (lines[1]["loss"], lines[1]["lossMetric"], lines[1]["metrics"]) == ("nan", "rmse", {"auc": 0.5})
