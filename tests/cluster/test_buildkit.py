"""Dockerfiles in a cluster, by a BuildKit that runs in it: from the push to the program that ran in the image."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from ruamel.yaml import YAML

from controller.adapters.build.buildkit import CA, CERTIFICATE, KEY
from policies.provenance import DOCKERFILE_BUILD
from tests.cluster import buildkit_image
from tests.cluster.node import Node
from tests.cluster.parts import ROOT
from tests.cluster.story import SYSTEM, Story
from tests.contracts import buildkit
from tests.contracts.certificates import Authority

WHY = buildkit.missing()
pytestmark = pytest.mark.skipif(bool(WHY), reason=WHY or "all is there")
BUILDS, TEAM, SOON = "builds", "team-made", 120.0
AXON = """apiVersion: myelin.io/v1alpha1
kind: Axon
metadata: {name: made}
spec:
  artifacts: [{name: source, path: /src}]
  tasks:
    - name: look
      container:
        imageBuild:
          artifact: source
          buildLocation: /src/src
          dockerfile: {path: Dockerfile}
          volumes: [{name: index, secret: {secretName: index}}]
          volumeMounts: [{name: index, mountPath: /var/secrets/index}]
  sensors:
    - name: go
      tasks: [{resourceExecutor: {task: look}}]
"""
PASSWORD = "correct-horse-battery-staple-4711"
DOCKERFILE = """FROM BASE
USER root
RUN test -s /var/secrets/index/token && echo "built at $SOURCE_DATE_EPOCH" > /made
COPY look.sh /look.sh
USER 65532:65532
ENTRYPOINT ["sh", "/look.sh"]
"""


@pytest.fixture(scope="module")
def image(node: Node, tmp_path_factory: pytest.TempPathFactory) -> str:
    """BuildKit's image in the node's registry, by digest."""
    return node.push(buildkit_image.write(tmp_path_factory.mktemp("buildkit") / "layout"), "tools/buildkit")


@pytest.fixture(scope="module")
def story(node: Node, image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """A project whose Dockerfiles are built by the daemon of the documentation."""
    folder = tmp_path_factory.mktemp("made")
    told = Story(node, folder, repository="made", team=TEAM)
    authority = Authority(folder / "authority")
    start_daemon(told, image, authority)
    told.build_controller()
    dockerfile = DOCKERFILE.replace("BASE", f"{node.registry}/base/python:latest")
    program = 'cat /made > "$DATA_PATH/out"; cat /made\n'
    files = {"axons/made/axon.yaml": AXON, "src/Dockerfile": dockerfile, "src/look.sh": program, "axons/digits/axon.yaml": None}
    told.make_project(files=files)
    told.prepare()
    certificate, key = authority.signed("controller")
    known = {name: (folder / "keys" / name).read_text() for name in ("controller", "image.pem")}
    told.secret("myelin-keys", {**known, CA: authority.pem, CERTIFICATE: certificate, KEY: key})
    told.secret("index", {"token": PASSWORD})
    repository, _, digest = image.partition("@")
    told.install(buildkit={"image": {"repository": repository, "digest": digest}})
    told.apply(told.project_object(builder={"base": node.base, "buildkit": f"tcp://buildkitd.{BUILDS}:1234"}))
    yield told
    node.kubectl("delete", "project", "--all", "-n", TEAM, "--wait=true", "--timeout=60s", check=False)
    node.helm("uninstall", "myelin", "--namespace", SYSTEM, check=False)
    node.kubectl("delete", "namespace", TEAM, SYSTEM, BUILDS, "--wait=false", check=False)


def start_daemon(told: Story, image: str, authority: Authority) -> None:
    """Apply the documentation's manifest, with the node's image and a fresh certificate."""
    namespace, *others = YAML(typ="safe").load_all((ROOT / "docs/how-to/buildkitd.yaml").read_text())
    told.apply(namespace)
    certificate, key = authority.signed("buildkitd", f"buildkitd.{BUILDS}", f"buildkitd.{BUILDS}.svc")
    told.secret("buildkitd", {"ca.pem": authority.pem, "cert.pem": certificate, "key.pem": key}, namespace=BUILDS)
    told.node.pull_secret(BUILDS, "registry")
    for item in others:
        if item["kind"] == "Deployment":
            spec = item["spec"]["template"]["spec"]
            spec["containers"][0]["image"], spec["imagePullSecrets"] = image, [{"name": "registry"}]
        told.apply(item)


def ended(story: Story) -> dict[str, Any] | None:
    """What the ledger says of the task that ended; None before there is one."""
    try:
        return next((item for item in story.recorded() if item["kind"] == "task"), None)
    except subprocess.CalledProcessError:
        return None


def test_a_dockerfile_is_built_signed_and_run_in_a_cluster(story: Story) -> None:
    task = story.wait("the task's end", lambda: ended(story), SOON)
    body = task["body"]
    assert body["state"] == "Succeeded", body
    made_at = story.log("log", "-1", "--author=you", "--format=%ct").strip()
    assert story.myelin("logs", body["taskRun"]).splitlines()[1:] == [f"built at {made_at}"]
    (image,) = [item["body"] for item in story.recorded() if item["kind"] == "image"]
    assert (image["digest"], image["materials"]["network"]) == (body["image"], False)
    assert image["materials"]["tool"].startswith(f"buildkit {buildkit.VERSION.removeprefix('v')}")
    checked = json.loads(story.myelin("verify", body["image"], "-o", "json"))
    assert (checked["ok"], checked["checked"][-1]["details"]["builder"]) == (True, DOCKERFILE_BUILD)
    public = story.folder / "image.pub"
    public.write_text(story.public_image_key())
    assert "critical" in story.verify_by_cosign(f"{story.node.registry}/{TEAM}/digits@{body['image']}", public)
