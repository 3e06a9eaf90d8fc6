"""Projects that cannot be followed: each says why in one condition, with the next step, and the others go on.

The controller runs in this process, with the node's admin, so that these cases need no image.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from controller.adapters.clock import SystemClock
from controller.adapters.cluster import Cluster
from controller.leadership import DURATION_SECONDS, Leadership
from controller.operate import OperatorSettings, operate
from tests.cluster.node import Node
from tests.cluster.parts import ROOT
from tests.cluster.story import Story

SYSTEM = "operating"
SOON = 60.0
Spec = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """What is wrong with a Project, and what it must say."""

    reason: str
    words: str
    spec: Callable[[Story, Spec], Spec] = lambda _, spec: spec
    secrets: Mapping[str, Mapping[str, str] | None] = ()  # type: ignore[assignment]
    files: Mapping[str, str | None] | None = None


def without(key: str) -> Callable[[Story, Spec], Spec]:
    return lambda _, spec: {name: value for name, value in spec.items() if name != key}


def changed(key: str, **more: Any) -> Callable[[Story, Spec], Spec]:
    return lambda _, spec: {**spec, key: {**spec.get(key, {}), **more}}


CASES = {
    "a-project-without-keys": Case("KeyMissing", "make them with `myelin keys new DIR`", without("keys")),
    "a-secret-that-is-not-there": Case(
        "SecretMissing", "spec.keys.secretName: expected Secret", changed("keys", secretName="none"), {}
    ),
    "keys-without-an-image-key": Case(
        "SecretIncomplete", "expected the key image.pem, got controller", secrets={"myelin-keys": {"image.pem": ""}}
    ),
    "a-key-that-is-none": Case("NoKey", "controller: expected an OpenSSH key", secrets={"myelin-keys": {"controller": "hello"}}),
    "a-git-secret-without-a-password": Case(
        "SecretIncomplete", "expected the key password, got username", secrets={"git-credentials": {"password": ""}}
    ),
    "a-wrong-git-password": Case(
        "LoginRefused", "the server refuses this login", secrets={"git-credentials": {"password": "wrong"}}
    ),
    "a-repository-that-does-not-exist": Case(
        "RepositoryGone",
        "there is no such repository",
        lambda story, spec: {**spec, "repository": {**spec["repository"], "url": story.node.git_url("nowhere")}},
    ),
    "a-project-without-registry": Case("RegistryMissing", "spec.registry.repository: expected host/path", without("registry")),
    "a-registry-that-refuses": Case(
        "RegistryRefused",
        "look at Secret a-registry-that-refuses/registry",
        secrets={"registry": {".dockerconfigjson": "wrong password"}},
    ),
    "a-registry-secret-that-is-none": Case("BadSecret", "expected", secrets={"registry": {".dockerconfigjson": "{}"}}),
    "nobody-is-trusted": Case("Untrusted", "spec.trust.signers", changed("trust", signers=[])),
    "no-base-image": Case("BaseMissing", "expected a base image by digest", without("builder")),
    "a-base-by-tag": Case(
        "BaseNotPinned",
        "expected a digest, got the tag latest",
        lambda story, spec: {**spec, "builder": {"base": story.node.base.partition("@")[0] + ":latest"}},
    ),
    "a-manifest-with-an-unknown-key": Case(
        "UnknownKey",
        "axons/bad/axon.yaml:4",
        files={"axons/bad/axon.yaml": "apiVersion: myelin.io/v1alpha1\nkind: Axon\nmetadata: {name: bad}\nspec: {taskz: []}\n"},
    ),
    "a-manifest-that-only-lint-refuses": Case(
        "UnknownName",
        "axons/bad/axon.yaml",
        files={
            "axons/digits/axon.yaml": None,
            "axons/bad/axon.yaml": "apiVersion: myelin.io/v1alpha1\nkind: Axon\nmetadata: {name: bad}\n"
            "spec:\n  sensors:\n    - name: s\n      tasks: [{resourceExecutor: {task: nowhere}}]\n",
        },
    ),
}


@pytest.fixture(scope="module")
def controller(node: Node, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A controller in this process; the file with its namespaces."""
    folder = tmp_path_factory.mktemp("operating")
    node.kubectl("apply", "--server-side", "-f", str(ROOT / "charts/myelin/crds"))
    node.kubectl("create", "namespace", SYSTEM)
    config = folder / "config.json"
    config.write_text(json.dumps({"namespaces": [*sorted(CASES), "good", "rival"]}))
    for name in (*CASES, "good", "rival"):
        node.kubectl("create", "namespace", name)
    stopping = threading.Event()
    told: list[str] = []
    settings = OperatorSettings(
        namespace=SYSTEM,
        pod="",
        state=folder / "state",
        inbox=f"http://{node.address}:18090",
        host=node.address,
        port=18090,
        config=config,
        kubeconfig=node.kubeconfig,
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("KUBECONFIG", str(node.kubeconfig))
        running = threading.Thread(target=operate, args=(settings,), kwargs={"tell": told.append, "stopping": stopping})
        running.start()
        yield config
        stopping.set()
        running.join(60)
        assert not running.is_alive(), told[-20:]
    node.kubectl("delete", "namespace", SYSTEM, "good", "rival", *CASES, "--wait=false")


@pytest.fixture(scope="module")
def projects(node: Node, controller: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Story]:
    """A Project for each case, and a good one, all applied at once."""
    found = {}
    for name in (*CASES, "good"):
        case = CASES.get(name, Case("AsDesired", ""))
        folder = tmp_path_factory.mktemp(name[:20])
        story = found[name] = Story(node, folder, repository=name, team=name)
        story.make_project(files=case.files if case.files is not None or name != "good" else {"axons/digits/axon.yaml": None})
        secrets = {
            "myelin-keys": {part: (folder / "keys" / part).read_text() for part in ("controller", "image.pem")},
            "git-credentials": {"username": node.git_user, "password": node.git_password},
            "registry": {".dockerconfigjson": node.registry_login},
        }
        for secret, values in dict(case.secrets).items():
            secrets[secret] = {key: value for key, value in {**secrets[secret], **(values or {})}.items() if value}
        if secrets["registry"][".dockerconfigjson"] == "wrong password":
            secrets["registry"] = {
                ".dockerconfigjson": node.registry_login.replace(node.registry_password, "wrong").replace(
                    json.loads(node.registry_login)["auths"][node.registry]["auth"], "bXllbGluOndyb25n"
                )
            }
        for secret, values in secrets.items():
            kind = "kubernetes.io/dockerconfigjson" if secret == "registry" else "Opaque"
            meta = {"name": secret, "namespace": name}
            story.apply({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "type": kind, "stringData": values})
        body = story.project_object()
        body["spec"] = case.spec(story, body["spec"])
        story.apply(body)
    return found


@pytest.mark.parametrize("name", CASES)
def test_a_bad_project_says_why_and_what_to_do(projects: dict[str, Story], name: str) -> None:
    case, story = CASES[name], projects[name]
    said = story.wait("its reason", lambda: spoken(story, case), SOON)
    assert case.words in said["message"], said
    assert said["status"] == "False"


def spoken(story: Story, case: Case) -> dict[str, str]:
    """The Ready condition, once it gives the reason."""
    found = story.condition("projects", "digits")
    return found if found.get("reason") == case.reason else {}


def test_the_good_one_goes_on_beside_them(projects: dict[str, Story]) -> None:
    story = projects["good"]
    story.wait("it is ready", lambda: story.condition("projects", "digits").get("status") == "True", SOON)


def test_two_projects_on_one_repository_and_branch(projects: dict[str, Story], node: Node) -> None:
    good = projects["good"]
    body = good.project_object()
    body["metadata"]["namespace"] = "rival"
    good.apply(body)
    second = Story(node, good.folder, repository="good", team="rival")
    said = second.wait("the words", lambda: spoken(second, Case("RepositoryTaken", "")), SOON)
    assert "Project good/digits follows this repository and branch already; delete one of them" in said["message"]
    assert good.condition("projects", "digits")["status"] == "True"
    good.node.kubectl("delete", "project", "digits", "-n", "good")
    said = second.wait("another word", lambda: not spoken(second, Case("RepositoryTaken", "")), SOON)


def test_a_mended_project_is_followed_without_a_restart(projects: dict[str, Story]) -> None:
    story = projects["a-project-without-keys"]
    story.wait("its reason", lambda: spoken(story, CASES["a-project-without-keys"]), SOON)
    story.apply(story.project_object())
    story.wait("another word", lambda: story.condition("projects", "digits").get("reason") != "KeyMissing", SOON)
    assert story.get("projects", "digits")["status"]["revision"].startswith("main@sha1:")


def test_no_secret_shows_in_any_condition(projects: dict[str, Story], node: Node) -> None:
    text = "\n".join(json.dumps(story.get("projects")) for story in projects.values())
    for secret in (node.registry_password, node.git_password, "PRIVATE KEY"):
        assert secret not in text


def test_a_deleted_project_goes_with_all_that_it_owns(projects: dict[str, Story]) -> None:
    story = projects["a-base-by-tag"]
    story.node.kubectl("delete", "project", "digits", "-n", story.team, "--wait=true", "--timeout=60s")
    story.wait("nothing is left", lambda: not story.get("axons"), SOON)


def test_one_leads_and_another_takes_over(node: Node, namespace: str) -> None:
    cluster, clock = Cluster(node.kubeconfig), SystemClock()
    one, two, three = (Leadership(cluster, namespace, "myelin", name, clock) for name in ("one", "two", "three"))
    one.start()
    wait(lambda: one.is_leader)
    two.start()
    assert not waits(lambda: two.is_leader, 3.0)
    one.end()
    wait(lambda: two.is_leader)
    assert not one.is_leader
    two._ending.set()  # it dies: nothing is given back
    three.start()
    began = time.monotonic()
    wait(lambda: three.is_leader)
    assert not two.is_leader
    assert time.monotonic() - began > DURATION_SECONDS - 4
    three.end()


def wait(look: Callable[[], bool]) -> None:
    assert waits(look, SOON)


def waits(look: Callable[[], bool], seconds: float) -> bool:
    """Whether something comes true in time."""
    pause, deadline = threading.Event(), time.monotonic() + seconds
    while time.monotonic() < deadline:
        if look():
            return True
        pause.wait(0.1)
    return False
