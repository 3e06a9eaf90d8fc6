"""The story on a real node, and what must hold when parts of it are taken away in the middle.

The tests of this file share one installation and are asked in order: each leaves things as the next one finds them.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator

import pytest

from tests.cluster.node import Node
from tests.cluster.story import SYSTEM, TEAM, Story, quick, single_training

SOON = 60.0
OWNED = ("jobs", "pods", "deployments", "services", "configmaps", "axons", "releases", "versions")


@pytest.fixture(scope="module")
def story(node: Node, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    told = Story(node, tmp_path_factory.mktemp("story"))
    told.build_controller()
    told.make_project(quick)
    told.prepare()
    told.install()
    told.apply(told.project_object())
    yield told
    node.kubectl("delete", "project", "--all", "-n", TEAM, "--wait=true", "--timeout=60s", check=False)
    node.helm("uninstall", "myelin", "--namespace", SYSTEM, check=False)
    node.kubectl("delete", "namespace", TEAM, SYSTEM, "--wait=false", check=False)


@pytest.fixture(scope="module")
def versions(story: Story) -> tuple[str, str]:
    """The first version, and the second one, which is on hold."""
    first = story.wait("the first version", story.newest)
    story.push_worse()
    second = story.wait("the second version", lambda: story.newest(first))
    assert story.shares() == {first: 80, second: 20}
    assert (story.feed_back(first), story.feed_back(second)) != (0, 0)
    story.wait("the rollback", lambda: second in story.held(), SOON)
    story.wait("the shares after it", lambda: story.shares() == {first: 100}, SOON)
    return first, second


def test_versions_serve_by_traffic_and_by_their_own_url(story: Story, versions: tuple[str, str]) -> None:
    first, second = versions
    truth = str(story.samples()[3]["digit"])
    assert story.classify() == (truth, first)
    assert story.classify(first) == (truth, first)
    assert story.classify(second)[1] == second


def test_kubectl_shows_what_git_says(story: Story, versions: tuple[str, str]) -> None:
    first, second = versions
    story.wait("a quiet project", lambda: story.condition("projects", "digits").get("status") == "True", SOON)
    tip = story.log("rev-parse", "HEAD").strip()
    axon, release = story.get("axons", "digits"), story.get("releases")[0]
    assert axon["status"]["revision"].startswith("main@sha1:")
    assert (axon["status"]["version"], axon["status"]["share"]) == (first, 100)
    assert (release["status"]["traffic"], [hold["version"] for hold in release["spec"]["holds"]]) == (f"{first} 100", [second])
    assert story.get("projects", "digits")["status"]["revision"] == f"main@sha1:{tip}"
    shown = story.node.kubectl("get", "axons,projects,releases,versions", "-n", TEAM)
    for word in ("REVISION", "VERSION", "SHARE", "READY", "REASON", "AsDesired", first, second):
        assert word in shown
    for kind in ("projects", "axons", "releases", "versions"):
        for item in story.get(kind):
            assert item["status"]["observedGeneration"] == item["metadata"]["generation"]
            assert [entry["type"] for entry in item["status"]["conditions"]] == ["Ready"], item["status"]
    story.node.kubectl("wait", "--for=condition=Ready", "project/digits", "axon/digits", "-n", TEAM, "--timeout=30s")


def test_the_answers_in_the_controllers_pod_say_the_same(story: Story, versions: tuple[str, str]) -> None:
    first, second = versions
    assert "everything is as it should be" in story.myelin("status")
    history = json.loads(story.myelin("history", "digits", "-o", "json"))
    assert [(item["version"], item["what"]) for item in history] == [
        (second, "rollback"),
        (second, "promotion"),
        (first, "promotion"),
    ]
    why = json.loads(story.myelin("why", first, "-o", "json"))
    assert why["version"] == first
    assert story.myelin("verify").rstrip().endswith("everything fits")


def test_why_tells_of_the_image_that_a_pod_has(story: Story, versions: tuple[str, str]) -> None:
    pods = story.get("pods")
    images = {
        pod["metadata"]["labels"]["myelin.io/name"]: pod["spec"]["containers"][0]["image"]
        for pod in pods
        if pod["metadata"]["labels"].get("myelin.io/kind") == "server"
    }
    assert images
    for image in images.values():
        assert re.fullmatch(rf"{re.escape(story.node.registry)}/team-a/digits@sha256:[0-9a-f]{{64}}", image)
        assert json.loads(story.myelin("why", image, "-o", "json"))["version"] in versions


def test_images_are_signed_as_cosign_checks_it(story: Story, versions: tuple[str, str]) -> None:
    images = {pod["spec"]["containers"][0]["image"] for pod in story.get("pods")}
    assert images
    public = story.folder / "image.pub"
    public.write_text(story.public_image_key())
    for image in images:
        assert "critical" in story.verify_by_cosign(image, public)
        story.verify_by_cosign(image, public, "verify-attestation", "--type", "slsaprovenance1")


def test_commits_are_the_persons_and_the_controllers(story: Story, versions: tuple[str, str]) -> None:
    first, second = versions
    assert story.log("log", "--reverse", "--format=%an %s").splitlines() == [
        "you Start a project from the example",
        "you Change the example",
        f"Myelin digits: deploy {first}",
        "you Train on fewer digits, it is faster",
        f"Myelin digits: deploy {second}",
        f"Myelin digits: roll back {second}",
    ]


@pytest.mark.parametrize("kind", OWNED)
def test_what_somebody_deletes_comes_back_and_nothing_is_trained_again(
    story: Story, versions: tuple[str, str], kind: str
) -> None:
    first, second = versions
    before, urls = story.trained(), {version: story.get("versions", version)["status"]["url"] for version in versions}
    story.node.kubectl("delete", kind, "--all", "-n", TEAM, "--wait=true", "--timeout=60s")
    story.wait("both versions by their URLs", lambda: story.answers(first) and story.answers(second) and story.answers(), SOON)
    story.wait("the shares", lambda: story.shares() == {first: 100}, SOON)
    assert {version: story.get("versions", version)["status"]["url"] for version in versions} == urls
    assert story.trained() == before


def test_what_somebody_edits_is_put_back_and_said(story: Story, versions: tuple[str, str]) -> None:
    patch = json.dumps({"spec": {"parameters": [{"name": "epochs", "value": "1"}]}})
    story.node.kubectl("patch", "axon", "digits", "-n", TEAM, "--type=merge", "-p", patch)
    said = story.wait("the words", lambda: story.condition("axons", "digits", "PutBack"), SOON)
    assert said["reason"] == "EditedByHand"
    assert "kubectl-patch" in said["message"]
    assert "axons/digits/axon.yaml in Git" in said["message"]
    assert "parameters" not in story.get("axons", "digits")["spec"]
    name = next(item["metadata"]["name"] for item in story.get("deployments") if "proxy" in item["metadata"]["name"])
    story.node.kubectl("scale", "deployment", name, "-n", TEAM, "--replicas=0")
    story.wait("one replica again", lambda: story.get("deployments", name)["spec"]["replicas"] == 1, SOON)
    story.wait("answers", story.answers, SOON)


def test_an_axon_that_is_not_in_git_is_refused_and_left_alone(story: Story, versions: tuple[str, str]) -> None:
    meta = {"name": "homemade", "namespace": TEAM}
    story.apply({"apiVersion": "myelin.io/v1alpha1", "kind": "Axon", "metadata": meta, "spec": {}})
    said = story.wait("the words", lambda: story.condition("axons", "homemade", "Stalled"), SOON)
    assert said["reason"] == "NotInGit"
    assert "commit it to the repository" in said["message"]
    assert story.condition("projects", "digits")["status"] == "True"
    story.node.kubectl("delete", "axon", "homemade", "-n", TEAM)


def test_an_upgrade_restarts_only_what_its_values_are_for(story: Story, versions: tuple[str, str]) -> None:
    pod, pods = story.controller(), {item["metadata"]["name"] for item in story.get("pods")}
    story.install(namespaces=[SYSTEM, TEAM], serviceMonitor={"enabled": False}, admission={"enabled": False})
    story.install()
    assert story.controller() == pod
    assert {item["metadata"]["name"] for item in story.get("pods")} == pods
    story.install(podAnnotations={"example.org/restart": "yes"})
    story.wait("another controller", lambda: story.controller() not in ("", pod), SOON)
    story.wait("it leads", lambda: story.condition("projects", "digits").get("status") == "True", SOON)
    assert {item["metadata"]["name"] for item in story.get("pods")} == pods
    story.install()


def test_serving_goes_on_while_the_api_server_is_away_and_no_job_is_lost_or_doubled(
    story: Story, versions: tuple[str, str]
) -> None:
    first, _ = versions
    url, before = story.url(), story.trained()
    failed: list[str] = []
    asked = [0]
    over = threading.Event()
    question = {"data": {"ndarray": [story.samples()[0]["pixels"]]}}

    def ask_on() -> None:
        from controller.demo import ask

        while not over.is_set():
            asked[0] += 1
            try:
                status, answer, _ = ask(url + "predict", question)
                if status != 200:
                    failed.append(f"{status} {answer}")
            except OSError as error:
                failed.append(str(error))
            over.wait(0.2)

    asking = threading.Thread(target=ask_on)
    asking.start()
    try:
        story.push(lambda text: single_training(text, epochs=9), "Train once\n")
        gone = story.wait("a job", lambda: story.get("jobs"), SOON)[0]["metadata"]["uid"]
        story.node.kubectl("delete", "jobs", "--all", "-n", TEAM)
        story.wait("a job in its place", lambda: [item for item in story.get("jobs") if item["metadata"]["uid"] != gone], SOON)
        story.node.stop_api_server()
        away = time.monotonic() + 60
        while time.monotonic() < away:
            over.wait(1.0)
        story.node.start_api_server()
        third = story.wait("the third version", lambda: next((v for v in story.shares() if v not in versions), ""))
        # A kubelet that lost the API server looks for it less and less often, and brings the proxy its routes only then.
        story.wait("its answer", lambda: story.answers(third), 4 * SOON)
    finally:
        over.set()
        asking.join()
    assert failed == []
    assert asked[0] > 100
    after = story.trained()
    # One run of two tasks, and the deployment that its end fired.
    assert {kind: after[kind] - before[kind] for kind in after} == {"run": 2, "task": 3, "ask": 0, "tell": 0}
    assert story.shares() == {first: 80, third: 20}


def test_a_namespace_that_was_deleted_whole_comes_back_from_git_and_registry(story: Story) -> None:
    shares, before = story.shares(), story.trained()
    urls = {version: story.get("versions", version)["status"]["url"] for version in shares}
    story.node.kubectl("delete", "namespace", TEAM, "--wait=true", "--timeout=120s")
    story.prepare()
    story.install()
    story.apply(story.project_object())
    story.wait("the same shares", lambda: story.shares() == shares, 120)
    for version in shares:
        story.wait(f"{version} by its URL", lambda version=version: story.answers(version), 120)
    assert {version: story.get("versions", version)["status"]["url"] for version in shares} == urls
    assert story.trained() == before


def test_a_controller_that_lost_its_disk_too_trains_nothing_again(story: Story) -> None:
    shares, before = story.shares(), story.trained()
    # The controller writes on meanwhile, so a folder may not be empty yet when its turn comes.
    gone = " || ".join(["rm -rf /state/*"] * 5)
    story.node.kubectl("exec", "-n", SYSTEM, story.controller(), "--", "sh", "-c", gone)
    story.node.kubectl("delete", "pod", "-n", SYSTEM, story.controller(), "--force", "--grace-period=0")
    story.node.kubectl("delete", "deployments", "--all", "-n", TEAM)
    story.wait("it leads", lambda: story.condition("projects", "digits").get("status") == "True", 120)
    for version in shares:
        story.wait(f"{version} by its URL", lambda version=version: story.answers(version), 120)
    assert story.shares() == shares
    assert story.trained() == before
