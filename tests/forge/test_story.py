"""The whole way on a real Gitea, with the program as users run it: push, hook, pull request, approval, merge, deployment."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from controller.adapters.documents import YamlDocuments
from controller.adapters.keys import SshKey
from controller.keyring import controller_key
from controller.stopping import stop_servers
from tests.forge.gitea import ForgeRefusal, Gitea, Served

Found = TypeVar("Found")
FILES = {
    "axons/echo/axon.yaml": """apiVersion: myelin.io/v1alpha1
kind: Axon
metadata: {name: echo}
spec:
  artifacts: [{name: source, path: /src}]
  tasks:
    - name: fit
      train:
        lossMetric: accuracy
        lossMetricSelector: greater
        imageBuild: {artifact: source, buildLocation: /src, s2i: {contextDir: axons/echo/training}}
    - name: serve
      deploy:
        imageBuild: {artifact: source, buildLocation: /src, s2i: {contextDir: axons/echo/serving}}
  sensors:
    - name: on-push
      tasks: [{trainer: {task: fit}}]
    - name: on-trained
      triggers: [{type: Lifecycle, name: fitted, task: fit, condition: Succeeded}]
      tasks:
        - deployer:
            name: web
            models: [{name: M, backendModels: [{name: b, trainer: fit, deployer: serve}]}]
            routes: [{path: /predict, dag: [{model: M, path: /predict}]}]
""",
    "axons/echo/training/.s2i/environment": "APP_FILE=train.py\n",
    "axons/echo/training/train.py": """import os
from myelin import metric
open(os.environ["MODEL_PATH"] + "model.txt", "w").write("1")
metric.publish_result(0.91, "accuracy")
""",
    "axons/echo/serving/.s2i/environment": "MODEL_NAME=Echo\nAPI_TYPE=REST\nSERVICE_TYPE=MODEL\nPERSISTENCE=0\n",
    "axons/echo/serving/Echo.py": """class Echo:
    def predict(self, X, names):
        return X
""",
}


class Team:
    """A repository on a forge, people who push to it, and a controller that follows it."""

    def __init__(self, served: Served, folder: Path) -> None:
        self.served, self.gitea, self.folder = served, served.gitea, folder
        self.clone, self.state = folder / "clone", folder / "state"
        self.controller: subprocess.Popen[bytes] | None = None
        self.key = SshKey.generate(folder / "signer")
        own = controller_key(self.state)
        signers = [{"name": "contributor", "ssh": self.key.public()}]
        forge = {"name": "forge", "ssh": self.gitea.signing_key, "paths": ["releases/", "versions/"]}
        self.signers = [*signers, forge]
        pinned = {"signers": self.signers, "controller": own.public()}
        (folder / "trust.yaml").write_bytes(YamlDocuments().render(pinned))
        access = folder / "access"
        access.mkdir(mode=0o700)
        (access / "username").write_text("myelin")
        (access / "password").write_text(self.gitea.people["myelin"].token)
        for file in access.iterdir():
            file.chmod(0o600)
        self.git("clone", "--quiet", served.url, str(self.clone), at=folder)
        for name, value in (
            ("gpg.format", "ssh"),
            ("user.signingKey", str(folder / "signer")),
            ("commit.gpgSign", "true"),
            ("myelin.state", str(self.state)),
            ("myelin.trust", str(folder / "trust.yaml")),
            ("myelin.gitAccess", str(access)),
        ):
            self.git("config", name, value)

    def git(self, *args: str, at: Path | None = None) -> str:
        return self.served.git(at or self.clone, *args, by="contributor")

    def push(self, files: dict[str, str], message: str) -> str:
        for path, text in files.items():
            (self.clone / path).parent.mkdir(parents=True, exist_ok=True)
            (self.clone / path).write_text(text)
        self.git("checkout", "--quiet", "-B", "main")
        self.git("add", "--all")
        self.git("commit", "--quiet", "-m", message)
        self.git("push", "--quiet", "origin", "main")
        return self.git("rev-parse", "HEAD").strip()

    def project(self, **write_back: Any) -> str:
        value = {
            "apiVersion": "myelin.io/v1alpha1",
            "kind": "Project",
            "metadata": {"name": "echo"},
            "spec": {"trust": {"signers": self.signers}, "writeBack": write_back},
        }
        return YamlDocuments().render(value).decode()

    def start(self) -> None:
        command = [sys.executable, "-m", "controller", "run", "--repo", self.served.url, "--state", str(self.state)]
        command += ["--trust", str(self.folder / "trust.yaml"), "--git-access", str(self.folder / "access")]
        environment = {
            **os.environ,
            "MYELIN_FORGE_TOKEN": self.gitea.people["myelin"].token,
            "MYELIN_FORGE_URL": self.gitea.url,
        }
        with (self.folder / "controller.log").open("ab") as log:
            self.controller = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        self.until(lambda: self.status().get("pid") == self.controller.pid)  # type: ignore[union-attr]

    def stop(self) -> None:
        if self.controller is not None:
            self.controller.send_signal(signal.SIGTERM)
            self.controller.wait(30)
            self.controller = None
        stop_servers(self.state, jobs=True)

    def status(self) -> dict[str, Any]:
        try:
            return dict(json.loads((self.state / "status.json").read_bytes()))
        except (OSError, ValueError):
            return {}

    def myelin(self, *args: str) -> Any:
        command = [sys.executable, "-m", "controller", *args, "--repo", str(self.clone), "-o", "json"]
        return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)

    def outcome(self, reason: str) -> dict[str, Any] | None:
        return next((item for item in self.status().get("outcomes", ()) if item["reason"] == reason), None)

    def until(self, found: Callable[[], Found | None], seconds: float = 120) -> Found:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.controller is not None and self.controller.poll() is not None:
                break
            if value := found():
                return value
            time.sleep(0.1)
        log = (self.folder / "controller.log").read_text()
        raise AssertionError(f"{self.status().get('outcomes')}\n{log[-3000:]}")


@pytest.fixture
def team(gitea: Gitea, tmp_path: Path) -> Iterator[Team]:
    made = Team(gitea.repository(), tmp_path)
    try:
        yield made
    finally:
        made.stop()


def statuses(team: Team, commit: str, context: str) -> list[str]:
    found = team.gitea.ask("GET", f"{team.served.path}/commits/{commit}/statuses?limit=50")
    return [item["status"] for item in reversed(found) if item["context"] == context]


def test_push_hook_request_approval_merge_deployment(team: Team) -> None:
    review = {"approvals": 1, "authorIsEnough": False, "reviewers": ["reviewer"]}
    asked = team.project(mode="pull-request", forge={"type": "gitea"}, review=review)
    team.push({"myelin.yaml": asked}, "Start a project")
    team.start()
    hooks = team.myelin("hooks")
    team.served.hook(hooks["urls"]["gitea"], hooks["secret"])
    training = team.push(FILES, "Add a model")

    pull = team.until(lambda: next(iter(team.served.pulls()), None))
    version = pull["head"]["ref"].rpartition("/")[2]
    assert pull["title"] == f"echo: deploy {version}"
    assert pull["user"]["login"] == "myelin"
    assert "| accuracy | 0.91 |" in pull["body"]
    assert [label["name"] for label in pull["labels"]] == ["myelin"]
    head = pull["head"]["sha"]
    team.until(lambda: statuses(team, head, "myelin/review") == ["pending"])
    assert "waits for 1 more approvals" in team.until(lambda: team.outcome("InReview"))["message"]
    team.served.protect(approvals=1, statuses=("myelin/review",))
    with pytest.raises(ForgeRefusal):
        team.served.merge(pull["number"], style="squash")

    team.served.approve(pull["number"])
    team.until(lambda: statuses(team, head, "myelin/review") == ["pending", "success"])
    team.served.merge(pull["number"], style="squash", delete_branch=True)
    endpoint = team.until(lambda: next(iter(team.myelin("endpoint", "echo")), None))
    body = json.dumps({"data": {"ndarray": [[1, 2]]}}).encode()
    request = urllib.request.Request(
        endpoint["modelStable"]["publicUrl"] + "predict", data=body, headers={"Content-Type": "application/json"}
    )

    def answered() -> str:
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return str(answer.headers["Myelin-Version"])
        except OSError:
            return ""

    assert team.until(answered) == version
    team.until(lambda: statuses(team, training, "myelin/echo/on-push") == ["pending", "success"])
    assert not [item for item in team.status()["outcomes"] if item["state"] == "stalled"]
    assert [row["what"] for row in team.myelin("history", "echo")] == ["promotion"]
    assert team.myelin("verify")["ok"]
    restored_elsewhere(team, version)


def restored_elsewhere(team: Team, version: str) -> None:
    """Another server, another machine: only keys and images come along. The same version serves, and nothing is trained."""
    team.stop()
    moved, state = team.folder / "moved.git", team.folder / "other-state"
    team.git("clone", "--quiet", "--mirror", team.served.url, str(moved), at=team.folder)
    for part in ("keys", "store"):
        shutil.copytree(team.state / part, state / part)
    before = team.served.git(moved, "rev-parse", "main")
    command = [sys.executable, "-m", "controller", "run", "--until-idle", "--repo", str(moved), "--state", str(state)]
    environment = {**os.environ, "MYELIN_FORGE_TOKEN": "none-here", "MYELIN_FORGE_URL": team.gitea.url}
    try:
        subprocess.run(
            [*command, "--trust", str(team.folder / "trust.yaml")], check=True, capture_output=True, timeout=120, env=environment
        )
        servers = json.loads((state / "status.json").read_bytes())["servers"]
        assert {item["labels"].get("version") for item in servers if item["phase"] == "ready"} == {version, None}
        jobs = state / "engine" / "jobs"
        assert not jobs.exists() or not any(jobs.iterdir())
        assert team.served.git(moved, "rev-parse", "main") == before
    finally:
        stop_servers(state, jobs=True)


def test_a_protected_branch_that_refuses_us_is_said_clearly_and_the_other_way_is_offered(team: Team) -> None:
    team.push({"myelin.yaml": team.project(mode="commit"), **FILES}, "Start a project")
    team.served.protect()
    team.start()
    said = team.until(lambda: team.outcome("BranchProtected"))
    assert "spec.writeBack.mode: pull-request" in said["message"]
    assert "protected branch main" in said["message"].lower()
