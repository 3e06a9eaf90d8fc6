"""The node that the other tests stand on is a real Kubernetes, and is gone when it is over."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import select
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import cache, guard, parts
from tests.cluster.node import CommandError, Node

DEADLINE_SECONDS = 60
CAREFUL = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
NOBODY = {"runAsNonRoot": True, "runAsUser": 65532, "runAsGroup": 65532, "seccompProfile": {"type": "RuntimeDefault"}}


def until(look: Callable[[], Any], holds: Callable[[Any], bool] = bool) -> Any:
    end = time.monotonic() + DEADLINE_SECONDS
    while True:
        seen = look()
        if holds(seen):
            return seen
        assert time.monotonic() < end, seen
        time.sleep(0.1)


def pod(node: Node, name: str, *command: str, **container: Any) -> dict[str, Any]:
    """A pod of the kind that Myelin makes: restricted, its image by digest."""
    one = {"name": "main", "image": node.base, "command": list(command), "securityContext": CAREFUL, **container}
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        # Deleting a namespace waits for half of it at least.
        "terminationGracePeriodSeconds": 1,
        "automountServiceAccountToken": False,
        "imagePullSecrets": [{"name": "registry-pull"}],
        "securityContext": NOBODY,
        "volumes": [{"name": "tmp", "emptyDir": {}}],
        "containers": [{**one, "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, *container.get("volumeMounts", ())]}],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"name": name}}, "spec": spec}


def create(node: Node, namespace: str, *documents: dict[str, Any]) -> None:
    listed = {"apiVersion": "v1", "kind": "List", "items": list(documents)}
    node.kubectl("create", "--namespace", namespace, "-f", "-", input=json.dumps(listed))


def phase(node: Node, namespace: str, name: str) -> str:
    return node.kubectl("get", "pod", name, "--namespace", namespace, "-o", "jsonpath={.status.phase}")


def output(node: Node, namespace: str, document: dict[str, Any]) -> str:
    """What a pod prints until it ends well."""
    create(node, namespace, document)
    name = document["metadata"]["name"]
    ended = until(lambda: phase(node, namespace, name), lambda seen: seen in ("Succeeded", "Failed"))
    said = node.kubectl("logs", "--namespace", namespace, name)
    assert ended == "Succeeded", said
    return said


@pytest.fixture
def ready(node: Node, namespace: str) -> str:
    """A namespace whose pods may pull."""
    node.pull_secret(namespace)
    return namespace


def test_a_restricted_pod_runs_python_from_the_base_image_by_digest(node: Node, ready: str) -> None:
    said = output(node, ready, pod(node, "python", "python3", "-c", "import sys, os; print(sys.version_info[:2], os.getuid())"))
    assert said == f"{sys.version_info[:2]} 65532\n"


def test_nothing_is_pulled_without_the_secret(node: Node, namespace: str, tmp_path: Path) -> None:
    other = node.push(_layout_like(node.facts.base, tmp_path), "private/thing")
    document = pod(node, "stranger", "true", image=other)
    del document["spec"]["imagePullSecrets"]
    create(node, namespace, document)
    why = "jsonpath={.status.containerStatuses[0].state.waiting}"
    said = until(lambda: node.kubectl("get", "pod", "stranger", "--namespace", namespace, "-o", why), lambda seen: "Pull" in seen)
    assert "401 Unauthorized" in said


def test_a_privileged_pod_is_refused(node: Node, namespace: str) -> None:
    with pytest.raises(CommandError, match=r'violates PodSecurity "restricted.*privileged'):
        create(node, namespace, pod(node, "king", "true", securityContext={"privileged": True}))


def test_a_service_is_found_by_name_and_leads_to_its_pod(node: Node, ready: str) -> None:
    """From another pod, and from the pod itself, which needs its own packets turned around."""
    server = pod(node, "server", "python3", "-m", "http.server", "8080", "--directory", "/usr/share/python3")
    server["spec"]["containers"][0]["readinessProbe"] = {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1}
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "things"}}
    create(
        node, ready, server, {**service, "spec": {"selector": {"name": "server"}, "ports": [{"port": 80, "targetPort": 8080}]}}
    )
    node.kubectl("wait", "--namespace", ready, "pod/server", "--for=condition=Ready", f"--timeout={DEADLINE_SECONDS}s")
    address = node.kubectl("get", "service", "things", "--namespace", ready, "-o", "jsonpath={.spec.clusterIP}")
    until(lambda: _answers(f"http://{address}/"))  # kube-proxy writes its rules once a second
    ask = "import sys, urllib.request as r; print([r.urlopen(f'http://{name}/', timeout=20).status for name in sys.argv[1:]])"
    names = ["things", f"things.{ready}", f"things.{ready}.svc", f"things.{ready}.svc.cluster.local"]
    assert output(node, ready, pod(node, "client", "python3", "-c", ask, *names)) == "[200, 200, 200, 200]\n"
    assert node.kubectl("exec", "--namespace", ready, "server", "--", "python3", "-c", ask, "things") == "[200]\n"
    lost = "import socket\ntry: socket.gethostbyname('nothing.nowhere.svc')\nexcept socket.gaierror as error: print(error.errno)"
    assert output(node, ready, pod(node, "lost", "python3", "-c", lost)) == "-2\n"  # EAI_NONAME: no such name, said at once


def test_a_pod_clones_over_http_with_credentials_only(node: Node, ready: str, tmp_path: Path) -> None:
    name = f"things-{secrets.token_hex(4)}"
    bare, work = node.new_bare(name), tmp_path / "work"
    run = ["git", "-c", "user.name=you", "-c", "user.email=you@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run([*run, "init", "--quiet", "--initial-branch=main", str(work)], check=True)
    (work / "file").write_text("from the repository\n")
    subprocess.run([*run, "-C", str(work), "add", "file"], check=True)
    subprocess.run([*run, "-C", str(work), "commit", "--quiet", "-m", "Add a file"], check=True)
    subprocess.run([*run, "-C", str(work), "push", "--quiet", str(bare), "main"], check=True)
    clone = 'git clone --quiet "$1" /tmp/clone 2>&1; cat /tmp/clone/file'
    url = node.git_url(name)
    inside = url.replace("http://", f"http://{node.git_user}:{node.git_password}@")
    assert output(node, ready, pod(node, "git", "sh", "-c", clone, "-", inside)) == "from the repository\n"
    without = pod(node, "stranger", "sh", "-c", f"{clone}; true", "-", url, env=[{"name": "GIT_TERMINAL_PROMPT", "value": "0"}])
    assert "could not read Username" in output(node, ready, without)


def test_a_pod_installs_from_the_wheels(node: Node, ready: str) -> None:
    (pip,) = node.facts.wheels.glob("pip-*.whl")
    fetch = f"import urllib.request as r; r.urlretrieve('{node.wheels_url}{pip.name}', '/tmp/{pip.name}')"
    install = f"python3 /tmp/{pip.name}/pip install --quiet --target /tmp/site idna"
    script = f'python3 -c "{fetch}" && {install} && PYTHONPATH=/tmp/site python3 -c "import idna; print(idna.__file__)"'
    settings = [{"name": name, "value": value} for name, value in node.pip_environment.items()]
    assert output(node, ready, pod(node, "pip", "sh", "-c", script, env=settings)) == "/tmp/site/idna/__init__.py\n"


def test_claims_bind_again_after_their_namespace_was_deleted(node: Node) -> None:
    for wait in ("--wait=true", "--wait=false"):
        node.claims(1)
        name = f"test-{secrets.token_hex(4)}"
        node.kubectl("create", "namespace", name)
        node.pull_secret(name)
        spec = {"storageClassName": "", "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
        claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "claim"}, "spec": spec}
        script = "ls /claim; echo content >/claim/file; cat /claim/file"
        writer = pod(node, "writer", "sh", "-c", script, volumeMounts=[{"name": "claim", "mountPath": "/claim"}])
        writer["spec"]["volumes"].append({"name": "claim", "persistentVolumeClaim": {"claimName": "claim"}})
        create(node, name, claim)
        assert output(node, name, writer) == "content\n"
        node.kubectl("delete", "namespace", name, wait)


def test_pods_go_on_while_the_api_server_is_away(node: Node, ready: str) -> None:
    script = "import itertools, time\nfor n in itertools.count(): print(n, flush=True); time.sleep(0.2)"
    create(node, ready, pod(node, "counter", "python3", "-c", script))
    until(lambda: phase(node, ready, "counter"), lambda seen: seen == "Running")
    until(lambda: _last_count(node, ready) > 0)
    node.stop_api_server()
    try:
        assert node.run("kubectl", "version", check=False).returncode != 0
    finally:
        node.start_api_server()
    before = _last_count(node, ready)
    until(lambda: _last_count(node, ready), lambda seen: seen > before)
    counted = node.kubectl("logs", "--namespace", ready, "counter").split()
    assert counted == [str(number) for number in range(len(counted))]


def test_a_token_is_good_for_what_its_account_may(node: Node, namespace: str) -> None:
    node.kubectl("create", "serviceaccount", "reader", "--namespace", namespace)
    node.kubectl("create", "role", "reader", "--verb=list", "--resource=pods", "--namespace", namespace)
    node.kubectl(
        "create", "rolebinding", "reader", "--role=reader", f"--serviceaccount={namespace}:reader", "--namespace", namespace
    )
    only = f"--kubeconfig={node.token_kubeconfig('reader', namespace)}"
    assert node.kubectl(only, "auth", "can-i", "list", "pods").strip() == "yes"
    assert node.kubectl(only, "auth", "can-i", "list", "secrets", check=False).startswith("no")
    assert node.kubectl(only, "auth", "can-i", "list", "pods", "-n", "default", check=False).startswith("no")


def test_the_node_leaves_the_machine_alone(node: Node) -> None:
    """No mount, no network namespace and no kernel setting of the machine is the node's."""
    of_first = Path("/proc/1/mounts").read_text() if os.getpid() != 1 else ""
    assert str(node.state) not in Path("/proc/self/mounts").read_text() + of_first
    for place in ("/var/lib/cni", "/var/log/pods", "/run/containerd/s", "/var/lib/kubelet"):
        assert not Path(place).exists() or not list(Path(place).rglob("*test-*")), place


def test_a_node_dies_with_the_process_that_started_it(node: Node) -> None:
    """A second node, beside the first, whose owner is killed: its processes, control groups and files go."""
    code = "import signal, tests.cluster.node as n\nwith n.Node() as node: print(node.state, flush=True); signal.pause()"
    environment = {**os.environ, "PYTHONPATH": str(parts.ROOT)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as owner:
        assert owner.stdout is not None
        state = Path(owner.stdout.readline().strip())
        living = guard.read_guard(state)
        assert living is not None
        name = parts.read_facts(state).name
        assert list(guard.CONTROL_GROUPS.rglob(f"{name}/kubepods"))
        processes = [os.pidfd_open(number) for number in living]
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    for process in processes:
        assert select.select([process], [], [], DEADLINE_SECONDS)[0]
        os.close(process)
    until(lambda: not state.exists())
    assert not list(guard.CONTROL_GROUPS.rglob(name))
    assert node.kubectl("get", "nodes", "-o", "name") == "node/node1\n"


def test_what_a_killed_guard_left_is_removed_by_the_next_node(node: Node, tmp_path: Path) -> None:
    state = Path(f"/tmp/myelin-test-{secrets.token_hex(4)}")
    first = Node(state)
    first.up()
    living = guard.read_guard(state)
    assert living is not None
    name = first.facts.name
    processes = [os.pidfd_open(number) for number in living]
    os.kill(living[0], signal.SIGKILL)
    for process in processes:
        assert select.select([process], [], [], DEADLINE_SECONDS)[0]
        os.close(process)
    assert list(guard.CONTROL_GROUPS.glob(f"*/{name}")) or (guard.CONTROL_GROUPS / name).exists()
    with pytest.raises(RuntimeError, match="expected a running node"):
        Node.at(state)
    try:
        with Node(state) as second:
            assert second.facts != first.facts
            assert second.kubectl("get", "nodes", "-o", "name") == "node/node1\n"
    finally:
        first.down()
        assert {entry.name for entry in state.iterdir()} == set(guard.KEPT)
        for folder, _, files in os.walk(state, topdown=False):
            for file in files:
                Path(folder, file).unlink()
            Path(folder).rmdir()
    assert not list(guard.CONTROL_GROUPS.rglob(name))


def test_forgotten_nodes_are_swept_and_no_others(tmp_path: Path) -> None:
    for name in ("myelin-node-dead", "myelin-node-alive", "other"):
        (tmp_path / name).mkdir()
        parts.Facts(
            state=tmp_path / name,
            programs=tmp_path,
            base=tmp_path,
            wheels=tmp_path,
            base_digest="",
            registry_password="",
            git_password="",
            temporary=True,
        ).write()
    (tmp_path / "myelin-node-link").symlink_to(tmp_path / "other")
    (tmp_path / "myelin-node-strange").mkdir()
    cache.hold(tmp_path / "myelin-node-alive")
    guard.sweep_forgotten(tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"myelin-node-alive", "myelin-node-link", "myelin-node-strange", "other"}


def test_a_folder_of_somebody_else_is_not_taken(tmp_path: Path, node: Node) -> None:
    place = Path(f"/tmp/myelin-test-{secrets.token_hex(4)}")
    place.mkdir()
    (place / "thesis").write_text("mine")
    try:
        with pytest.raises(RuntimeError, match="expected a new folder or that of a node, got one with thesis"):
            Node(place).up()
        Node(place).down()
        assert (place / "thesis").read_text() == "mine"
    finally:
        (place / "thesis").unlink()
        place.rmdir()
    with pytest.raises(RuntimeError, match="a node runs here already"):
        Node(node.state).up()
    with pytest.raises(RuntimeError, match="at most 50 characters"):
        Node(Path("/tmp", "x" * 60)).up()
    with pytest.raises(RuntimeError, match="expected a path outside of"):
        Node(Path("/run/node")).up()


def test_the_cache_shows_nothing_half_made_and_keeps_what_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def fail(place: Path) -> None:
        (place / "half").touch()
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        cache.keep("things", "aa", fail)
    shelf = tmp_path / "myelin/things"
    assert not (shelf / "aa").exists()
    first = cache.keep("things", "aa", lambda place: (place / "whole").touch())
    assert [path.name for path in first.iterdir()] == ["whole"]
    assert cache.keep("things", "aa", fail) == first
    (shelf / "old").mkdir()
    assert cache.keep("things", "bb", lambda place: None).is_dir()
    assert {path.name for path in shelf.iterdir()} == {"lock", "aa", "bb"}


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _last_count(node: Node, namespace: str) -> int:
    said = node.kubectl("logs", "--namespace", namespace, "--tail=1", "counter", check=False).strip()
    return int(said) if re.fullmatch(r"\d+", said) else -1


def _layout_like(base: Path, place: Path) -> Path:
    """The layout of another image: the base with another label, so that its digest is not on the node yet."""
    blobs = place / "layout/blobs/sha256"
    blobs.mkdir(parents=True)
    index = json.loads((base / "index.json").read_text())
    manifest = json.loads((base / "blobs" / index["manifests"][0]["digest"].replace(":", "/")).read_text())
    for blob in (manifest["config"], *manifest["layers"]):
        (place / "layout/blobs" / blob["digest"].replace(":", "/")).symlink_to(base / "blobs" / blob["digest"].replace(":", "/"))
    data = json.dumps({**manifest, "annotations": {"is": place.name}}).encode()
    name = hashlib.sha256(data).hexdigest()
    (blobs / name).write_bytes(data)
    descriptor = {"mediaType": manifest["mediaType"], "digest": f"sha256:{name}", "size": len(data)}
    (place / "layout/index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [descriptor]}))
    return place / "layout"
