"""What a real API server makes of the CustomResourceDefinitions: it takes what the parser takes, and refuses what is unknown."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from controller.adapters.documents import YamlDocuments
from policies.crds import as_yaml, custom_resource_definition
from policies.parsing import KINDS
from tests.cluster.node import Node
from tests.policies.test_crds import MANIFESTS, in_cluster

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "example-repo/axons/digits/axon.yaml"
NOW = "2026-01-31T12:00:00Z"
REVISION = f"main@sha1:{'c' * 40}"


class Cluster:
    """A Kubernetes namespace of its own."""

    def __init__(self, node: Node, namespace: str) -> None:
        self._node, self.namespace = node, namespace

    def say(self, *words: str, value: Any = None) -> str:
        """What kubectl says, whether it works or not."""
        text = None if value is None else json.dumps(value)
        return self._node.kubectl("--namespace", self.namespace, *words, input=text, check=False)

    def apply(self, value: Mapping[str, Any], *words: str) -> str:
        return self.say("apply", "-f", "-", *words, value=value)

    def get(self, what: str) -> dict[str, Any]:
        return dict(json.loads(self.say("get", what, "-o", "json")))

    def rows(self, what: str, *words: str) -> list[list[str]]:
        """A table, its columns where the headings begin."""
        lines = self.say("get", what, *words).splitlines()
        starts = [
            index for index, _ in enumerate(lines[0]) if lines[0][index] != " " and (not index or lines[0][index - 1] == " ")
        ]
        ends = [*starts[1:], None]
        return [[line[start:end].strip() for start, end in zip(starts, ends, strict=True)] for line in lines]


@pytest.fixture(scope="module")
def served(node: Node) -> Node:
    for kind in KINDS:
        text = as_yaml(custom_resource_definition(kind))
        node.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", input=text)
    names = [f"crd/{kind.lower()}s.myelin.io" for kind in KINDS]
    node.kubectl("wait", "--for=condition=Established", "--timeout=30s", *names)
    return node


@pytest.fixture
def cluster(served: Node) -> Iterator[Cluster]:
    name = f"crds-{secrets.token_hex(4)}"
    served.kubectl("create", "namespace", name)
    yield Cluster(served, name)
    served.kubectl("delete", "namespace", name, "--wait=false")


def object_of(kind: str, spec: Any, name: str = "it", **more: Any) -> dict[str, Any]:
    return {"apiVersion": "myelin.io/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec, **more}


RECORD: Mapping[str, Any] = {
    "deployer": "d",
    "commit": "c",
    "axonDigest": "a",
    "eventSet": "e",
    "events": [],
    "run": "r",
    "backends": [{"model": "m", "backend": "b", "image": "i"}],
    "routes": [{"path": "/"}],
    "metrics": {"accuracy": 0.9},
    "createdAt": NOW,
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_api_server_has_nothing_against_a_definition(served: Node, kind: str) -> None:
    found = json.loads(served.kubectl("get", f"crd/{kind.lower()}s.myelin.io", "-o", "json"))
    conditions = {item["type"]: item["status"] for item in found["status"]["conditions"]}
    assert conditions == {"NamesAccepted": "True", "Established": "True"}
    # What it was given is what it has: nothing was dropped as unknown.
    (version,), (wanted,) = found["spec"]["versions"], custom_resource_definition(kind)["spec"]["versions"]
    assert version == wanted


def test_what_the_command_writes_is_what_the_chart_has(served: Node) -> None:
    text = "".join(f"---\n{as_yaml(custom_resource_definition(kind))}" for kind in KINDS)
    assert served.kubectl("diff", "--server-side", "--force-conflicts", "-f", str(ROOT / "charts/myelin/crds")) == ""
    assert served.kubectl("diff", "--server-side", "--force-conflicts", "-f", "-", input=text) == ""


def test_the_example_is_taken_as_it_is(cluster: Cluster) -> None:
    assert cluster.say("apply", "-f", str(EXAMPLE)) == "axon.myelin.io/digits created\n"
    assert cluster.say("apply", "-f", str(ROOT / "example-repo/myelin.yaml")) == "project.myelin.io/digits created\n"
    assert cluster.get("axon/digits")["spec"] == YamlDocuments().load(EXAMPLE.read_bytes(), "axon.yaml").value["spec"]


@pytest.mark.parametrize("way", ["--server-side=false", "--server-side"], ids=["by the client", "by the server"])
@pytest.mark.parametrize("file", MANIFESTS, ids=lambda path: path.name)
def test_a_manifest_is_taken_and_nothing_is_added_or_lost(cluster: Cluster, file: Path, way: str) -> None:
    value = in_cluster(YamlDocuments().load(file.read_bytes(), file.name).value)
    value["metadata"].pop("namespace", None)
    said = cluster.apply(value, way)
    assert said.endswith(("created\n", "applied\n")), said
    found = cluster.get(f"{value['kind']}/{value['metadata']['name']}")["spec"]
    # kubectl itself leaves out what is null.
    assert without_nulls(found) == without_nulls(value["spec"])


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def axon(**spec: Any) -> dict[str, Any]:
    return object_of("Axon", spec)


def deployed(**deployer: Any) -> dict[str, Any]:
    return axon(sensors=[{"name": "s", "tasks": [[{"deployer": deployer}]]}])


def tuned(**parameter: Any) -> dict[str, Any]:
    params = [{"name": "p", "type": "UniformFloat", **parameter}]
    return axon(tasks=[{"name": "t", "train": {"hpTuning": {"minBudget": 1, "maxBudget": 2, "params": params}}}])


UNKNOWN = {
    "at the top": ({**axon(), "sepc": {}}, "sepc"),
    "in a spec": (axon(serviceAcountName="a"), "spec.serviceAcountName"),
    "in a task": (axon(tasks=[{"name": "t", "train": {"lossMetrik": "a"}}]), "spec.tasks[0].train.lossMetrik"),
    "in a deployer of a group": (deployed(replica=1), "spec.sensors[0].tasks[0][0].deployer.replica"),
    "in a deployer that stands alone": (
        axon(sensors=[{"name": "s", "tasks": [{"deployer": {"models": [{"name": "m", "x": 1}]}}]}]),
        "spec.sensors[0].tasks[0].deployer.models[0].x",
    ),
    "in a project": (object_of("Project", {"registry": {"repository": "r.example/a", "secret": "a"}}), "spec.registry.secret"),
    "in a release": (object_of("Release", {"traffic": [{"version": "v", "weight": 1}]}), "spec.traffic[0].weight"),
    "in a version": (object_of("Version", {**RECORD, "digest": "a"}), "spec.digest"),
    "in metadata": ({**object_of("Release", {}), "metadata": {"name": "it", "axon": "a"}}, "metadata.axon"),
}


@pytest.mark.parametrize(("value", "place"), UNKNOWN.values(), ids=list(UNKNOWN))
def test_an_unknown_key_is_refused_with_its_place(cluster: Cluster, value: Mapping[str, Any], place: str) -> None:
    said = cluster.apply(value)
    assert f'unknown field "{place}"' in said
    assert "NotFound" in cluster.say("get", f"{value['kind']}/it")


@pytest.mark.parametrize(("value", "place"), UNKNOWN.values(), ids=list(UNKNOWN))
def test_an_unknown_key_is_never_stored(cluster: Cluster, value: Mapping[str, Any], place: str) -> None:
    """Server-side apply refuses it too, but drops it without a word inside of a place that may be a list or an object."""
    said = cluster.apply(value, "--server-side")
    if "[0].deployer." in place:
        assert said.endswith("serverside-applied\n")
        assert f'"{place.rpartition(".")[2]}"' not in json.dumps(cluster.get(f"{value['kind']}/it")["spec"])
    else:
        assert f"{place}: field not declared in schema" in said


WRONG = {
    "a choice that there is not": (
        axon(sensors=[{"name": "s", "tasks": [], "when": "some"}]),
        "spec.sensors[0].when: Unsupported",
    ),
    "no sensor's task": (axon(sensors=[{"name": "s", "tasks": []}]), "spec.sensors[0].tasks"),
    "a key that is none, alone": (axon(sensors=[{"name": "s", "tasks": [{"trainr": {}}]}]), "spec.sensors[0].tasks[0]"),
    "a key that is none, in a group": (axon(sensors=[{"name": "s", "tasks": [[{"trainr": {}}]]}]), "spec.sensors[0].tasks[0][0]"),
    "a key that is none, beside one": (
        axon(sensors=[{"name": "s", "tasks": [{"trainer": {"task": "t"}, "envv": []}]}]),
        "spec.sensors[0].tasks[0]",
    ),
    "a task that is text": (axon(sensors=[{"name": "s", "tasks": ["t"]}]), "spec.sensors[0].tasks[0]"),
    "no duration": (axon(sensors=[{"name": "s", "tasks": [["t"]], "cooldown": "5 minutes"}]), "spec.sensors[0].cooldown"),
    "another number than 0 as duration": (
        axon(sensors=[{"name": "s", "tasks": [["t"]], "cooldown": 5}]),
        "spec.sensors[0].cooldown",
    ),
    "no number": (tuned(numerical={"lower": "low", "upper": 1}), "numerical.lower"),
    "a list as number": (tuned(numerical={"lower": [1], "upper": 1}), "numerical.lower"),
    "true as number": (tuned(numerical={"lower": True, "upper": 1}), "numerical.lower"),
    "a share above 100": (deployed(rolloutSpec=[{"destinations": [{"weight": 101}]}]), "destinations[0].weight"),
    "a step that is none": (deployed(promotion={"steps": [{"shares": 5}]}), "promotion.steps[0]"),
    "a task without a name": (axon(tasks=[{"train": {}}]), "spec.tasks[0].name: Required"),
    "a name that is too long": ({**axon(), "metadata": {"name": "a" * 54}}, "metadata.name"),
    "no spec": ({key: item for key, item in axon().items() if key != "spec"}, "spec: Required"),
    "a password in a URL": (object_of("Project", {"repository": {"url": "https://ada:x@git.example/a"}}), "spec.repository.url"),
    "a registry with a scheme": (
        object_of("Project", {"registry": {"repository": "https://r.example/a"}}),
        "spec.registry.repository",
    ),
    "no Secret's name": (object_of("Project", {"keys": {"secretName": ""}}), "spec.keys.secretName"),
    "no instant": (object_of("Version", {**RECORD, "createdAt": "today"}), "spec.createdAt"),
}


@pytest.mark.parametrize(("value", "place"), WRONG.values(), ids=list(WRONG))
def test_what_a_place_does_not_take_is_refused_with_the_place(cluster: Cluster, value: Mapping[str, Any], place: str) -> None:
    said = cluster.apply(value)
    assert "is invalid" in said
    assert place in said


def test_what_old_readers_take_for_true_is_a_key_when_it_is_quoted(cluster: Cluster) -> None:
    policy = {"name": "p", "on": "promotion", "require": "true"}
    assert cluster.apply(object_of("Project", {"policies": [policy]})) == "project.myelin.io/it created\n"
    assert cluster.get("project/it")["spec"] == {"policies": [policy]}


def status(**more: Any) -> dict[str, Any]:
    ready = {"type": "Ready", "status": "False", "reason": "NotServing", "message": "its servers do not answer yet"}
    conditions = [{**ready, "lastTransitionTime": NOW, "observedGeneration": 1}]
    return {
        "observedGeneration": 1,
        "conditions": conditions,
        "reason": "NotServing",
        "message": "wait",
        "revision": REVISION,
        **more,
    }


def test_the_columns_show_the_status(cluster: Cluster) -> None:
    outcomes = [{"state": "waiting", "subject": "digits", "reason": "NotServing", "message": "wait"}]
    for value in (
        object_of("Project", {}, status=status(signer="ada", unsigned=0, outcomes=outcomes)),
        object_of("Axon", {}, status=status(axon="it", version="v-1", share=80, outcomes=outcomes, url="http://it/")),
        object_of("Release", {}, status=status(axon="it", version="v-1", share=80, traffic="v-1 80, v-2 20")),
        object_of("Version", RECORD, "v-1", signature="c2ln", status=status(axon="it", share=0, url="http://v-1/")),
    ):
        assert "created" in cluster.apply(value)
        assert "serverside-applied" in cluster.apply(value, "--server-side", "--subresource=status", "--field-manager=myelin")
    assert cluster.rows("axons") == [
        ["NAME", "REVISION", "VERSION", "SHARE", "READY", "REASON"],
        ["it", REVISION, "v-1", "80", "False", "NotServing"],
    ]
    assert cluster.rows("releases") == [
        ["NAME", "AXON", "VERSION", "SHARE", "TRAFFIC", "READY", "REASON"],
        ["it", "it", "v-1", "80", "v-1 80, v-2 20", "False", "NotServing"],
    ]
    assert cluster.rows("versions") == [["NAME", "AXON", "SHARE", "READY", "REASON"], ["v-1", "it", "0", "False", "NotServing"]]
    assert [row[-1] for row in cluster.rows("versions", "-o", "wide")] == ["URL", "http://v-1/"]
    (heading, row), (_, wide) = cluster.rows("projects"), cluster.rows("projects", "-o", "wide")
    assert heading == ["NAME", "REVISION", "READY", "REASON", "AGE"]
    assert row[:4] == ["it", REVISION, "False", "NotServing"]
    assert wide[-1] == "wait"
    together = cluster.say("get", "axons,projects,releases")
    assert [word in together for word in ("axon.myelin.io/it", "project.myelin.io/it", "release.myelin.io/it")] == [True] * 3
    assert cluster.say("get", "myelin", "-o", "name").split() == cluster.say("get", "ax,mproj,mrel,mver", "-o", "name").split()


def test_only_the_subresource_writes_a_status(cluster: Cluster) -> None:
    cluster.apply(object_of("Project", {"branch": "main"}, status=status(revision="made up")))
    assert "status" not in cluster.get("project/it")
    cluster.apply(object_of("Project", {"branch": "other"}, status=status()), "--server-side", "--subresource=status")
    found = cluster.get("project/it")
    assert (found["spec"]["branch"], found["status"]["revision"], found["metadata"]["generation"]) == ("main", REVISION, 1)
    cluster.apply(object_of("Project", {"branch": "other"}, status=status(revision="made up")))
    found = cluster.get("project/it")
    assert (found["spec"]["branch"], found["status"]["revision"], found["metadata"]["generation"]) == ("other", REVISION, 2)
    said = cluster.apply(
        object_of("Project", {}, status={"share": 101}), "--server-side", "--subresource=status", "--force-conflicts"
    )
    assert "status.share" in said


def test_what_somebody_adds_to_a_mirror_goes_when_git_is_applied_again(cluster: Cluster) -> None:
    value = object_of("Axon", {"tasks": [{"name": "t", "train": {"image": "i"}}]})
    apply = ("--server-side", "--force-conflicts", "--field-manager=myelin")
    cluster.apply(value, *apply)
    patch = {"spec": {"suspend": {"reason": "by hand"}, "tasks": [{"name": "u", "train": {"image": "j"}}]}}
    assert "patched" in cluster.say("patch", "axon/it", "--type=merge", "--field-manager=somebody", "-p", json.dumps(patch))
    assert cluster.get("axon/it")["spec"] == patch["spec"]
    cluster.apply(value, *apply)
    assert cluster.get("axon/it")["spec"] == value["spec"]
