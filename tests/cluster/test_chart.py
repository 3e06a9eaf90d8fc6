"""The chart: what it renders, what it refuses, and what a real API server makes of it.

Tests with `node` need a node; the others only need helm.
"""

from __future__ import annotations

import copy
import difflib
import http.server
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.cluster import binaries, cache
from tests.cluster.node import Node

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts/myelin"
VALUES = Path(__file__).with_name("values")
GOLDEN = Path(__file__).with_name("golden")
EVERY_VALUES = sorted(path.stem for path in VALUES.glob("*.yaml"))
HEX = "0123456789abcdef" * 4
IMAGE = f"registry.test:5000/team/program@sha256:{HEX}"
# Helm builds that were not stamped take the cluster for one of 1.20.
KUBERNETES = ("--kube-version", binaries.KUBERNETES)
DEADLINE_SECONDS = 30.0

Documents = dict[tuple[str, str, str], dict[str, Any]]
"""Kind, namespace and name -> object."""


def helm_program() -> str:
    """Helm where it lies already; nothing is built for it."""
    places = [binaries.given(), *sorted((cache.root() / "cluster").glob("*"))]
    found = [str(place / "helm") for place in places if place is not None and os.access(place / "helm", os.X_OK)]
    return found[0] if found else shutil.which("helm") or ""


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    program = helm_program()
    if not program:
        pytest.skip("needs helm: in PATH, in MYELIN_CLUSTER_BIN, or built by a test that starts a node")
    home = tmp_path_factory.mktemp("helm")
    homes = {f"HELM_{name}_HOME": str(home / name.lower()) for name in ("CACHE", "CONFIG", "DATA")}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **homes, "KUBECONFIG": str(home / "none")}
        return subprocess.run([program, *words], capture_output=True, text=True, env=environment, check=False, timeout=60)

    return run


Helm = Callable[..., subprocess.CompletedProcess[str]]


def parsed(text: str) -> Documents:
    documents = [item for item in YAML(typ="safe").load_all(text) if item]
    found = {(item["kind"], item["metadata"].get("namespace", ""), item["metadata"]["name"]): item for item in documents}
    assert len(found) == len(documents), "two objects of one name"
    return found


def rendered(helm: Helm, *words: str, values: str = "minimal", chart: Path = CHART, namespace: str = "sys") -> Documents:
    done = helm(
        "template", "myelin", str(chart), "--namespace", namespace, "-f", str(VALUES / f"{values}.yaml"), *KUBERNETES, *words
    )
    assert done.returncode == 0, done.stderr
    return parsed(done.stdout)


def only(documents: Documents, kind: str) -> dict[str, Any]:
    (found,) = [item for key, item in documents.items() if key[0] == kind]
    return found


def pod_of(documents: Documents) -> dict[str, Any]:
    return dict(only(documents, "Deployment")["spec"]["template"])


def settings(*pairs: str) -> list[str]:
    return [word for pair in pairs for word in ("--set-json", pair)]


# What helm alone can say.


@pytest.mark.parametrize("values", EVERY_VALUES)
def test_lint_finds_nothing(helm: Helm, values: str) -> None:
    done = helm("lint", "--strict", str(CHART), "-f", str(VALUES / f"{values}.yaml"), *KUBERNETES)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout


REFUSED = {
    "an image by tag": ('image.tag="1.2"', "additional properties 'tag' not allowed"),
    "a tag in the image's repository": ('image.repository="registry.test:5000/myelin:1"', "/image/repository"),
    "an image without a host": ('image.repository="myelin/controller"', "/image/repository"),
    "a digest that is none": ('image.digest="latest"', "/image/digest"),
    "a BuildKit image by tag": ('buildkit.image.repository="registry.test:5000/buildkit:1"', "/buildkit/image/repository"),
    "a BuildKit image without a digest": (
        'buildkit.image.repository="registry.test:5000/buildkit"',
        "buildkit.image: expected repository and digest",
    ),
    "a BuildKit that is a program here": ('project.builder.buildkit="docker-container://x"', "/project/builder/buildkit"),
    "no repository": ('image.repository=""', "image.repository: expected where the controller's image lies"),
    "no digest": ('image.digest=""', "image.digest: expected sha256:<64 hex>"),
    "an unknown key": ("replica=2", "additional properties 'replica' not allowed"),
    "an unknown key deep inside": ("networkPolicy.job={}", "additional properties 'job' not allowed"),
    "a namespace that cannot be": ('namespaces=["Team"]', "/namespaces/0"),
    "a namespace twice": ('namespaces=["a", "a"]', "items at 0 and 1 are equal"),
    "no replicas": ("replicas=0", "/replicas"),
    "replicas on one claim": ("state.claim.enabled=true;replicas=2", "replicas: expected 1 with state.claim.enabled, got 2"),
    "a size that is none": ('state.claim.size="lots"', "/state/claim/size"),
    "an inbox with a path": ('inboxUrl="http://inbox/x"', "/inboxUrl"),
    "a variable that is the chart's": ('extraEnv=[{"name": "MYELIN_STATE", "value": "/tmp"}]', "/extraEnv/0/name"),
    "a variable with no value": ('extraEnv=[{"name": "X"}]', "/extraEnv/0"),
    "a folder of the node": ('extraVolumes=[{"name": "x", "hostPath": {"path": "/"}}]', "/extraVolumes/0/hostPath"),
    "a peer that is none": ('networkPolicy.monitoring=[{"cidr": "10.0.0.0/8"}]', "/networkPolicy/monitoring/0"),
    "an empty peer, which would be everybody": ("networkPolicy.monitoring=[{}]", "/networkPolicy/monitoring/0"),
    "labels that the Service picks by": ('podLabels={"app.kubernetes.io/name": "other"}', "/podLabels"),
    "a password in a URL": ('project.repository.url="https://me:secret@git.test/x"', "/project/repository/url"),
    "a signer without a key": ('project.trust.signers=[{"name": "you"}]', "/project/trust/signers/0"),
    "a base image by tag": ('project.builder.base="registry.test:5000/python:3"', "/project/builder/base"),
    "half a Project": (
        "project.create=true",
        "project.keys.secretName, project.name, project.registry.repository, project.repository.url, project.trust.signers: "
        "expected values because project.create is true",
    ),
    "a Project where nobody looks": (
        'project={"create": true, "name": "p", "namespace": "elsewhere", "keys": {"secretName": "k"}, "trust": '
        '{"unsafeUnsignedCommits": true}, "repository": {"url": "https://git.test/x"}, "registry": {"repository": "r.test:1/x"}}',
        "project.namespace: expected one of the managed namespaces (sys), got elsewhere",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_values_are_refused_with_words(helm: Helm, what: str) -> None:
    given, words = REFUSED[what]
    minimal = str(VALUES / "minimal.yaml")
    done = helm("template", "myelin", str(CHART), "--namespace", "sys", "-f", minimal, *KUBERNETES, *settings(*given.split(";")))
    assert done.returncode != 0
    assert words in done.stderr


def test_a_cluster_without_admission_policies_is_refused(helm: Helm) -> None:
    done = helm("template", "myelin", str(CHART), "-f", str(VALUES / "minimal.yaml"), "--kube-version", "1.29.9")
    assert done.returncode != 0
    assert "kubeVersion" in done.stderr


def test_every_value_is_in_the_schema_and_every_key_of_the_schema_is_a_value() -> None:
    values = YAML(typ="safe").load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())

    def paths(value: Any, schema: dict[str, Any], at: str) -> Iterator[str]:
        known = schema.get("properties")
        if not isinstance(value, dict) or known is None or not value:
            return
        assert schema["additionalProperties"] is False, at
        for name in sorted({*value, *known} - {"global"}):
            if (name in value) != (name in known):
                yield f"{at}{name}"
            else:
                yield from paths(value[name], known[name], f"{at}{name}.")

    assert list(paths(values, schema, "")) == []


def test_every_value_says_what_it_means() -> None:
    lines = (CHART / "values.yaml").read_text().splitlines()
    keys = [at for at, line in enumerate(lines) if re.match(r" *[a-zA-Z]+:", line)]

    def is_explained(at: int) -> bool:
        """A comment above it, or above the first of a block of lines without a gap at its depth, or above what it is in."""
        depth = len(lines[at]) - len(lines[at].lstrip())
        before = lines[at - 1] if at else ""
        if before.lstrip().startswith("#"):
            return True
        above = [line for line in range(at) if line in keys and len(lines[line]) - len(lines[line].lstrip()) <= depth]
        return bool(above) and bool(before) and is_explained(above[-1])

    assert [lines[at].strip() for at in keys if not is_explained(at)] == []


def test_every_rule_of_rbac_has_its_reason() -> None:
    lines = (CHART / "templates/rbac.yaml").read_text().splitlines()
    rules = [at for at, line in enumerate(lines) if line.lstrip().startswith("- apiGroups:")]
    assert len(rules) >= 10
    assert [lines[at] for at in rules if not lines[at - 1].lstrip().startswith("# ")] == []


def test_nothing_in_the_chart_names_a_registry() -> None:
    hosts = re.compile(r"docker\.io|ghcr\.io|quay\.io|gcr\.io|pkg\.dev|registry\.k8s\.io|public\.ecr\.aws|mcr\.microsoft")
    assert [path.name for path in CHART.rglob("*") if path.is_file() and hosts.search(path.read_text())] == []


@pytest.mark.parametrize("values", EVERY_VALUES)
def test_every_image_is_the_one_digest_but_that_of_a_client(helm: Helm, values: str) -> None:
    documents = [item["spec"] for key, item in rendered(helm, values=values).items() if key[0] in ("Deployment", "Pod")]
    pods = [spec["template"]["spec"] if "template" in spec else spec for spec in documents]
    found = {kind: {item["image"] for pod in pods for item in pod.get(kind, ())} for kind in ("containers", "initContainers")}
    controller, client = (f"registry.test:5000/{path}@sha256:{HEX}" for path in ("myelin/controller", "tools/buildkit"))
    assert found == {"containers": {controller}, "initContainers": {client} if values == "wide" else set()}


@pytest.mark.parametrize("values", EVERY_VALUES)
def test_nothing_is_granted_in_the_cluster_but_the_finalizer(helm: Helm, values: str) -> None:
    documents = rendered(helm, values=values)
    rules = [rule for key, item in documents.items() if key[0] == "ClusterRole" for rule in item["rules"]]
    assert all(rule == {"apiGroups": ["myelin.io"], "resources": ["projects"], "verbs": ["get", "patch"]} for rule in rules)
    everywhere = [rule for key, item in documents.items() if key[0] in ("Role", "ClusterRole") for rule in item["rules"]]
    assert not [rule for rule in everywhere if "*" in (*rule["apiGroups"], *rule["resources"], *rule["verbs"])]
    assert bool(everywhere) == (values != "bare")


def test_the_controller_runs_as_the_strictest_pod(helm: Helm) -> None:
    documents = rendered(helm)
    spec = pod_of(documents)["spec"]
    assert (
        spec["securityContext"] | {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}} == spec["securityContext"]
    )
    (container,) = spec["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert "command" not in container
    assert "args" not in container
    assert spec["enableServiceLinks"] is False
    env = {item["name"]: item for item in container["env"]}
    assert set(env) == {"POD_NAME", "POD_NAMESPACE", "MYELIN_INBOX_URL", "MYELIN_STATE", "HOME"}
    assert env["MYELIN_INBOX_URL"]["value"] == "http://myelin.sys.svc:8090"
    assert container["livenessProbe"]["httpGet"] == {"path": "/health", "port": "http"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/ready", "port": "http"}
    assert spec["terminationGracePeriodSeconds"] == 30
    assert only(documents, "ServiceAccount")["automountServiceAccountToken"] is False
    assert only(documents, "Service")["spec"]["selector"]["myelin.io/leader"] == "true"


def test_a_buildkit_client_is_copied_by_a_strict_container_and_found_by_its_path(helm: Helm) -> None:
    spec = pod_of(rendered(helm))["spec"]
    assert "initContainers" not in spec
    spec = pod_of(rendered(helm, values="wide"))["spec"]
    (first,), (container,) = spec["initContainers"], spec["containers"]
    assert first["command"] == ["cp", "/usr/bin/buildctl", "/buildkit/"]
    assert first["securityContext"] == container["securityContext"]
    env = {item["name"]: item.get("value") for item in container["env"]}
    assert env["MYELIN_BUILDCTL"] == "/buildkit/buildctl"
    mounts = {item["name"]: item for item in container["volumeMounts"]}
    assert mounts["buildkit"] == {"name": "buildkit", "mountPath": "/buildkit", "readOnly": True}
    assert [item["name"] for item in spec["volumes"]].count("buildkit") == 1
    assert only(rendered(helm, values="wide"), "Project")["spec"]["builder"]["buildkit"] == "tcp://buildkitd.builds:1234"


def test_the_state_is_a_claim_or_not(helm: Helm) -> None:
    volumes = {item["name"]: item for item in pod_of(rendered(helm))["spec"]["volumes"]}
    assert volumes["state"] == {"name": "state", "emptyDir": {"sizeLimit": "20Gi"}}
    assert only(rendered(helm), "Deployment")["spec"]["strategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
    }
    documents = rendered(helm, values="claim")
    volumes = {item["name"]: item for item in pod_of(documents)["spec"]["volumes"]}
    assert volumes["state"] == {"name": "state", "persistentVolumeClaim": {"claimName": "myelin-state"}}
    assert only(documents, "Deployment")["spec"]["strategy"] == {"type": "Recreate"}
    claim = only(documents, "PersistentVolumeClaim")
    assert claim["spec"]["storageClassName"] == "fast"
    assert claim["spec"]["resources"]["requests"]["storage"] == "5Gi"
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    documents = rendered(helm, values="bare")
    volumes = {item["name"]: item for item in pod_of(documents)["spec"]["volumes"]}
    assert volumes["state"] == {"name": "state", "persistentVolumeClaim": {"claimName": "myelin-disk"}}
    assert {key[0] for key in documents} == {"Deployment", "Service", "ConfigMap", "Pod"}


def test_a_disruption_budget_needs_a_second_replica(helm: Helm) -> None:
    assert not [key for key in rendered(helm) if key[0] == "PodDisruptionBudget"]
    assert only(rendered(helm, values="wide"), "PodDisruptionBudget")["spec"]["minAvailable"] == 1


def test_managed_namespaces_are_the_own_one_or_those_that_are_named(helm: Helm) -> None:
    for words, wanted in (((), ["sys"]), (settings('namespaces=["team-b", "team-a"]'), ["team-a", "team-b"])):
        documents = rendered(helm, *words)
        assert json.loads(only(documents, "ConfigMap")["data"]["config.json"]) == {"namespaces": wanted}
        assert sorted(key[1] for key in documents if key[0] == "Role" and key[2] == "myelin") == wanted
        assert sorted(key[1] for key in documents if key[0] == "NetworkPolicy" and key[2] == "myelin-jobs") == wanted
        selected = only(documents, "ValidatingAdmissionPolicyBinding")["spec"]["matchResources"]["namespaceSelector"]
        assert selected["matchExpressions"] == [{"key": "kubernetes.io/metadata.name", "operator": "In", "values": wanted}]


def test_a_service_monitor_is_there_when_it_can_be_or_is_forced(helm: Helm) -> None:
    def monitors(*words: str) -> int:
        return sum(key[0] == "ServiceMonitor" for key in rendered(helm, *words))

    known = ("--api-versions", "monitoring.coreos.com/v1/ServiceMonitor")
    assert monitors(*known) == 0
    assert monitors(*settings("serviceMonitor.enabled=true")) == 0
    assert monitors(*settings("serviceMonitor.enabled=true"), *known) == 1
    assert monitors(*settings("serviceMonitor.enabled=true", "serviceMonitor.force=true")) == 1


WITHOUT_RESTART = {
    "one namespace more": ['namespaces=["sys", "team-a"]'],
    "other rules of the network": ["networkPolicy.jobs.enabled=false", "networkPolicy.controller.limitEgress=true"],
    "who may reach it": ['networkPolicy.monitoring=[{"namespaceSelector": {"matchLabels": {"a": "b"}}}]'],
    "fewer Secrets": ['rbac.secretNames=["myelin-keys"]'],
    "admission off": ["admission.enabled=false"],
    "a monitor": ["serviceMonitor.enabled=true", "serviceMonitor.force=true"],
    "an annotated account": ['serviceAccount.annotations={"a": "b"}'],
    "one replica more": ["replicas=2"],
    "a Project": [
        'project={"create": true, "name": "p", "keys": {"secretName": "k"}, "trust": {"unsafeUnsignedCommits": true}, '
        '"repository": {"url": "https://git.test/x"}, "registry": {"repository": "r.test:1/x"}}'
    ],
}
WITH_RESTART = {
    "another image": [f'image.digest="sha256:{HEX[::-1]}"'],
    "a variable": ['extraEnv=[{"name": "A", "value": "b"}]'],
    "more memory": ['resources={"limits": {"memory": "3Gi"}}'],
    "another inbox": ['inboxUrl="http://10.92.0.7:8090"'],
    "a client of BuildKit": [f'buildkit.image={{"repository": "registry.test:5000/tools/buildkit", "digest": "sha256:{HEX}"}}'],
}


@pytest.mark.parametrize("what", WITHOUT_RESTART)
def test_an_upgrade_restarts_nothing(helm: Helm, what: str) -> None:
    before, after = rendered(helm), rendered(helm, *settings(*WITHOUT_RESTART[what]))
    assert pod_of(before) == pod_of(after)
    assert before != after


@pytest.mark.parametrize("what", WITH_RESTART)
def test_an_upgrade_restarts_what_it_must(helm: Helm, what: str) -> None:
    assert pod_of(rendered(helm)) != pod_of(rendered(helm, *settings(*WITH_RESTART[what])))


def test_a_new_version_of_the_chart_alone_restarts_nothing(helm: Helm, tmp_path: Path) -> None:
    newer = shutil.copytree(CHART, tmp_path / "myelin")
    text = (newer / "Chart.yaml").read_text()
    (newer / "Chart.yaml").write_text(re.sub(r"^(version|appVersion): .*$", r"\1: 9.9.9", text, flags=re.MULTILINE))
    before, after = rendered(helm), rendered(helm, chart=newer)
    assert pod_of(before) == pod_of(after)
    assert only(before, "Deployment")["spec"] == only(after, "Deployment")["spec"]
    assert only(before, "Deployment") != only(after, "Deployment")


def test_network_policies_let_through_what_is_needed_and_no_more(helm: Helm) -> None:
    policies = {
        key[2]: item["spec"]
        for key, item in rendered(helm, *settings('namespaces=["team"]')).items()
        if key[0] == "NetworkPolicy"
    }
    inbox = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "sys"}},
        "podSelector": {"matchLabels": only(rendered(helm), "Deployment")["spec"]["selector"]["matchLabels"]},
    }
    names = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}}
    dns = {"to": [names], "ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]}
    to_inbox = {"to": [inbox], "ports": [{"protocol": "TCP", "port": 8090}]}
    serving = [{"protocol": "TCP", "port": 8080}]

    def ours(kind: str) -> dict[str, Any]:
        return {"podSelector": {"matchLabels": {"app.kubernetes.io/managed-by": "myelin", "myelin.io/kind": kind}}}

    jobs = policies["myelin-jobs"]
    assert jobs == {**ours("job"), "policyTypes": ["Ingress", "Egress"], "ingress": [], "egress": [dns, to_inbox]}
    servers = {"from": [ours("proxy"), inbox], "ports": serving}
    assert policies["myelin-servers"] == {**ours("server"), "policyTypes": ["Ingress"], "ingress": [servers]}
    assert policies["myelin-proxies"] == {
        **ours("proxy"),
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"ports": serving}],
        "egress": [dns, {"to": [ours("server")], "ports": serving}, to_inbox],
    }
    (controller,) = policies["myelin"]["ingress"]
    assert policies["myelin"]["policyTypes"] == ["Ingress"]
    assert controller["ports"] == [{"protocol": "TCP", "port": 8090}]
    assert controller["from"][0]["namespaceSelector"]["matchExpressions"][0]["values"] == ["team"]
    assert controller["from"][0]["podSelector"] == {"matchLabels": {"app.kubernetes.io/managed-by": "myelin"}}
    assert len(controller["from"]) == 2  # and `helm test`


def test_given_peers_and_ranges_are_let_through(helm: Helm) -> None:
    policies = {key[1:]: item["spec"] for key, item in rendered(helm, values="wide").items() if key[0] == "NetworkPolicy"}
    monitoring = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    ingress = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ingress"}}}
    assert monitoring in policies["sys", "myelin"]["ingress"][0]["from"]
    assert {**ingress, "podSelector": {"matchLabels": {"app": "ingress"}}} in policies["sys", "myelin"]["ingress"][0]["from"]
    assert policies["sys", "myelin"]["egress"][-1]["to"] == [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.9.0.0/16"]}}]
    for namespace in ("team-a", "team-b"):
        assert policies[namespace, "myelin-jobs"]["egress"][-1]["ports"] == [{"protocol": "TCP", "port": 9000, "endPort": 9010}]
        assert policies[namespace, "myelin-servers"]["policyTypes"] == ["Ingress", "Egress"]
        assert monitoring in policies[namespace, "myelin-servers"]["ingress"][0]["from"]
        sources = policies[namespace, "myelin-proxies"]["ingress"][0]["from"]
        assert ingress in sources
        assert monitoring in sources
        assert {"ipBlock": {"cidr": "169.254.20.10/32"}} in policies[namespace, "myelin-jobs"]["egress"][0]["to"]


def test_what_helm_test_runs_asks_the_inbox(helm: Helm) -> None:
    asked: list[str] = []

    class Inbox(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"status":"OK"}')

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Inbox) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        (container,) = only(rendered(helm, *settings(f'inboxUrl="{url}"')), "Pod")["spec"]["containers"]
        assert container["command"][0] == "/opt/venv/bin/python"
        done = subprocess.run(
            [sys.executable, *container["command"][1:]], capture_output=True, text=True, check=False, timeout=30
        )
        server.shutdown()
    assert (done.returncode, done.stdout.strip(), asked) == (0, '200 {"status":"OK"}', ["/health"])


# What only an API server can say.


def wait_until(holds: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + DEADLINE_SECONDS
    while not holds():
        assert time.monotonic() < end, f"not within {DEADLINE_SECONDS} s: {what}"
        time.sleep(0.1)


class Places:
    """Namespaces of one test, under names that no other test has."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.made: list[str] = []
        self.mark = secrets.token_hex(3)

    def namespace(self, name: str, **labels: str) -> str:
        """Make one; pods can be made in it when this returns."""
        full = f"{name}-{self.mark}"
        meta = {"name": full, "labels": labels}
        self.node.kubectl("create", "-f", "-", input=json.dumps({"apiVersion": "v1", "kind": "Namespace", "metadata": meta}))
        self.made.append(full)
        wait_until(
            lambda: "default" in self.node.kubectl("-n", full, "get", "serviceaccounts", "-o", "name", check=False),
            f"{full} has its service account",
        )
        return full


@pytest.fixture
def places(node: Node) -> Iterator[Places]:
    found = Places(node)
    yield found
    for namespace in found.made:
        if "myelin" in node.helm("list", "-n", namespace, "-q"):
            node.helm("uninstall", "myelin", "-n", namespace)
    if found.made:
        node.kubectl("delete", "namespace", "--wait=false", *found.made)


def install(node: Node, namespace: str, *words: str, verb: str = "install", values: str = "minimal") -> str:
    return node.helm(verb, "myelin", str(CHART), "-n", namespace, "-f", str(VALUES / f"{values}.yaml"), *words)


def pod(image: str, **spec: Any) -> str:
    meta = {"generateName": "pod-"}
    body = {"containers": [{"name": "main", "image": image}], **spec}
    return json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": body})


def said_of(node: Node, namespace: str, document: str) -> str:
    return node.kubectl("-n", namespace, "create", "--dry-run=server", "-f", "-", input=document, check=False)


RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
STRICT_POD = {
    "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
    "automountServiceAccountToken": False,
}
STRICT_CONTAINER = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True}


@pytest.mark.parametrize("values", EVERY_VALUES)
def test_the_api_server_takes_every_object(helm: Helm, node: Node, places: Places, values: str) -> None:
    node.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CHART / "crds"))
    namespace = places.namespace("sys", **RESTRICTED)
    words = []
    if values == "wide":
        teams = [places.namespace("team-a"), places.namespace("team-b")]
        words = settings(f"namespaces={json.dumps(teams)}", f'project.namespace="{teams[1]}"')
    documents = rendered(helm, *words, values=values, namespace=namespace)
    # Whether another project's kind is right, this server cannot say.
    known = [item for key, item in documents.items() if key[0] != "ServiceMonitor"]
    for name in {item["spec"]["serviceAccountName"] for item in known if item["kind"] == "Pod"}:
        node.kubectl("-n", namespace, "create", "serviceaccount", name)
    # The Deployment's pod is judged like the others, as the pod that it becomes.
    becomes = {"apiVersion": "v1", "kind": "Pod", **copy.deepcopy(pod_of(documents))}
    becomes["metadata"] |= {"name": "becomes", "namespace": namespace}
    listed = json.dumps({"apiVersion": "v1", "kind": "List", "items": [*known, becomes]})
    done = node.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", "-", input=listed)
    assert len(done.splitlines()) == len(known) + 1


def rights(node: Node, namespace: str, account: str) -> list[str]:
    """What an account may do in a namespace, and a newly made one may not."""

    def listed(name: str) -> set[str]:
        text = node.kubectl("auth", "can-i", "--list", f"--as=system:serviceaccount:{account}:{name}", "-n", namespace)
        return {re.sub(r" {2,}", "  ", line).strip() for line in text.splitlines()}

    return sorted(listed("myelin") - listed("nobody"))


def test_the_rights_of_the_controller_are_those_of_the_golden_files(node: Node, places: Places) -> None:
    own, team, other = (places.namespace(name) for name in ("sys", "team", "other"))
    install(node, own, *settings(f'namespaces=["{team}"]'))
    differences: list[str] = []
    for name, namespace in (("own", own), ("managed", team), ("other", other)):
        golden = GOLDEN / f"rights-{name}.txt"
        got = [f"{line}\n" for line in rights(node, namespace, own)]
        if os.environ.get("MYELIN_WRITE_GOLDEN"):
            golden.write_text("".join(got))
        differences += difflib.unified_diff(golden.read_text().splitlines(keepends=True), got, golden.name, namespace)
    assert "".join(differences) == "", "set MYELIN_WRITE_GOLDEN=1 to write what is right now"


def test_only_named_secrets_can_be_read_where_they_are_named(node: Node, places: Places) -> None:
    own = places.namespace("sys")
    install(node, own, *settings('rbac.secretNames=["myelin-keys"]'))

    def may(verb: str, secret: str) -> bool:
        words = ("auth", "can-i", verb, secret, "-n", own, f"--as=system:serviceaccount:{own}:myelin")
        return node.kubectl(*words, check=False).startswith("yes")

    assert may("get", "secrets/myelin-keys")
    assert not may("get", "secrets/other")
    assert not may("list", "secrets")


def is_enforced(node: Node, namespace: str) -> bool:
    return "expected every image by digest" in said_of(node, namespace, pod("registry.test:5000/x:1"))


def test_only_images_by_digest_get_into_managed_namespaces(node: Node, places: Places) -> None:
    own, team, other = (places.namespace(name) for name in ("sys", "team", "other"))
    older = node.kubectl("-n", team, "create", "-o", "name", "-f", "-", input=pod("registry.test:5000/old:1")).strip()
    install(node, own, *settings(f'namespaces=["{team}"]'))
    wait_until(lambda: is_enforced(node, team), "the policy is known to the API server")

    tagged = said_of(node, team, pod("registry.test:5000/x:1"))
    assert "expected every image by digest, repository@sha256:<64 hex>, got registry.test:5000/x:1" in tagged
    assert "this namespace is managed by Myelin" in tagged
    first = [{"name": "more", "image": "busybox"}]
    assert "got busybox" in said_of(node, team, pod(IMAGE, initContainers=first))
    for image in ("x", "x@sha256:abc", f"x@sha256:{HEX}0", f"x@sha256:{HEX.upper()}", f"x@md5:{HEX}"):
        assert f"got {image}" in said_of(node, team, pod(image)), image
    assert said_of(node, team, pod(IMAGE)).startswith("pod/")
    assert said_of(node, team, pod(IMAGE.replace("@", ":1@"))).startswith("pod/")
    assert said_of(node, other, pod("registry.test:5000/x:1")).startswith("pod/")

    # What is there can be changed, but not to a tag; and a debug container is an image as well.
    ours = node.kubectl("-n", team, "create", "-o", "name", "-f", "-", input=pod(IMAGE)).strip()
    assert "got registry.test:5000/x:2" in node.kubectl(
        "-n", team, "set", "image", ours, "main=registry.test:5000/x:2", check=False
    )
    assert "got busybox" in node.kubectl("-n", team, "debug", ours, "--image=busybox", check=False)
    # A pod that is older than the policy can lose its finalizers, and cannot get another image.
    node.kubectl("-n", team, "label", older, "touched=yes")
    assert "got registry.test:5000/x:2" in node.kubectl(
        "-n", team, "set", "image", older, "main=registry.test:5000/x:2", check=False
    )


def test_the_types_of_the_admission_policy_are_right(node: Node, places: Places) -> None:
    own = places.namespace("sys")
    install(node, own)
    name = f"myelin-{own}-images-by-digest"

    def status() -> dict[str, Any]:
        return dict(json.loads(node.kubectl("get", "validatingadmissionpolicy", name, "-o", "json"))["status"])

    wait_until(lambda: "typeChecking" in status(), "the controller manager checked the policy's types")
    assert status()["typeChecking"] == {}


def test_a_pod_that_asks_for_privileges_is_refused(node: Node, places: Places) -> None:
    own = places.namespace("sys", **RESTRICTED)
    main = {"name": "main", "image": IMAGE}
    asked = {**STRICT_POD, "containers": [{**main, "securityContext": {"privileged": True}}]}
    assert 'violates PodSecurity "restricted' in said_of(node, own, pod(IMAGE, **asked))
    modest = {**STRICT_POD, "containers": [{**main, "securityContext": STRICT_CONTAINER}]}
    assert said_of(node, own, pod(IMAGE, **modest)).startswith("pod/")


def test_upgrades_restart_only_what_they_must(node: Node, places: Places) -> None:
    own, team = places.namespace("sys", **RESTRICTED), places.namespace("team")
    said = install(node, own)
    assert f"follows the Projects of: {own}" in said

    def deployment() -> tuple[int, list[str]]:
        found = json.loads(node.kubectl("-n", own, "get", "deployment", "myelin", "-o", "json"))
        pods = json.loads(node.kubectl("-n", own, "get", "pods", "-l", "app.kubernetes.io/name=myelin", "-o", "json"))["items"]
        return found["metadata"]["generation"], [item["metadata"]["uid"] for item in pods]

    wait_until(lambda: len(deployment()[1]) == 1, "Pod Security admits the controller's pod")
    before = deployment()
    narrower = ["networkPolicy.controller.limitEgress=true", 'rbac.secretNames=["myelin-keys"]', "serviceMonitor.enabled=true"]
    said = install(node, own, *settings(f'namespaces=["{own}", "{team}"]', *narrower), verb="upgrade")
    assert "No ServiceMonitor was made" in said
    assert deployment() == before
    assert json.loads(node.kubectl("-n", team, "get", "role", "myelin", "-o", "json"))["rules"]
    config = json.loads(node.kubectl("-n", own, "get", "configmap", "myelin", "-o", "json"))["data"]["config.json"]
    assert json.loads(config) == {"namespaces": sorted([own, team])}

    # What somebody deleted, with its namespace or alone, comes back.
    node.kubectl("-n", team, "delete", "role,rolebinding,networkpolicy", "--all")
    install(node, own, *settings(f'namespaces=["{own}", "{team}"]', *narrower), verb="upgrade")
    assert len(node.kubectl("-n", team, "get", "role,rolebinding,networkpolicy", "-o", "name").split()) == 5
    assert deployment() == before

    # One namespace less: its Role goes, and nothing restarts.
    install(node, own, verb="upgrade")
    assert deployment() == before
    assert "NotFound" in node.kubectl("-n", team, "get", "role", "myelin", check=False)

    install(node, own, *settings(*WITH_RESTART["a variable"]), verb="upgrade")
    assert deployment()[0] == before[0] + 1


def test_a_namespace_has_one_controller(node: Node, places: Places) -> None:
    first, second, team = (places.namespace(name) for name in ("first", "second", "team"))
    install(node, first, *settings(f'namespaces=["{team}"]'))
    said = node.helm(
        "install",
        "myelin",
        str(CHART),
        "-n",
        second,
        "-f",
        str(VALUES / "minimal.yaml"),
        *settings(f'namespaces=["{team}"]'),
        check=False,
    )
    assert "cannot be imported into the current release" in said
    # Each with its own namespace: both are there.
    install(node, second)


def test_what_serves_outlives_the_chart(node: Node, places: Places) -> None:
    own = places.namespace("sys")
    project = WITHOUT_RESTART["a Project"]
    node.claims(1, storage_class=f"fast-{places.mark}")
    claim = ["state.claim.enabled=true", f'state.claim.storageClassName="fast-{places.mark}"', 'state.claim.size="1Gi"']
    install(node, own, *settings(*project, *claim))
    node.helm("uninstall", "myelin", "-n", own)
    left = node.kubectl("-n", own, "get", "projects.myelin.io,persistentvolumeclaims", "-o", "name").split()
    assert left == ["project.myelin.io/p", "persistentvolumeclaim/myelin-state"]
    assert "projects.myelin.io" in node.kubectl("get", "crds", "-o", "name")
    # Installed again, it takes both up.
    install(node, own, *settings(*project, *claim))
