"""`make cluster-bench`: how fast and how quiet the controller is on a node, by what the API server saw. Each figure beside
its bound; nothing here is a test.

The baseline of each figure is what the same request costs when nobody has to think about it: a Job applied by kubectl's
own API calls, an annotation written and read back.
"""

from __future__ import annotations

import http.client
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from controller.adapters.clock import SystemClock
from controller.adapters.cluster import DEPLOYMENT, JOB, Cluster
from controller.demo import AXON
from tests.cluster.needs import missing
from tests.cluster.node import Node
from tests.cluster.story import SYSTEM, TEAM, Story

USER = f"system:serviceaccount:{SYSTEM}:myelin"
IDLE_SECONDS, EVENTS, A_SECOND, DRIFTS = 60.0, 200, 20, 20
# Its jobs find no node, so that what is measured is the controller and not the pods of 200 jobs.
REST = """apiVersion: myelin.io/v1alpha1
kind: Axon
metadata: {name: digits}
spec:
  artifacts: [{name: source, path: /src}]
  tasks:
    - name: prepare
      container:
        imageBuild: {repositoryName: digits-data, artifact: source, buildLocation: /src/axons/digits, s2i: {contextDir: data}}
        nodeSelector: {example.org/nowhere: "true"}
  sensors:
    - name: asked
      triggers: [{type: Rest, name: call}]
      tasks: [{resourceExecutor: {task: prepare}}]
"""


def main() -> int:
    """Print every figure; 1 when one misses its bound."""
    if lacking := missing():
        print("a Kubernetes node needs here:\n" + "\n".join(f"  - {item}" for item in lacking), file=sys.stderr)
        return 4
    with Node() as node, tempfile.TemporaryDirectory(prefix="myelin-bench-") as folder:
        before = node.enter()
        try:
            return 0 if all([*measure(Story(node, Path(folder)))]) else 1
        finally:
            node.leave(before)


def measure(story: Story) -> Iterator[bool]:
    """Figures, in the order of their making."""
    story.build_controller()
    story.make_project()
    story.prepare()
    story.install()
    story.apply(story.project_object())
    story.wait("a version", story.newest)
    story.wait("rest", lambda: story.condition("projects", "digits").get("status") == "True")
    yield from idle(story)
    yield from drift(story)
    yield from events(story)


def idle(story: Story) -> Iterator[bool]:
    """API calls, memory and CPU of a controller with one project that serves and nothing to do."""
    threading.Event().wait(20)
    process = controller_process()
    began, used, calls = time.monotonic(), sum(process.cpu_times()[:2]), len(list(audited(story)))
    threading.Event().wait(IDLE_SECONDS)
    seconds = time.monotonic() - began
    yield line("idle: API calls a second", (len(list(audited(story))) - calls) / seconds, "", 2.0)
    yield line("idle: resident memory", process.memory_info().rss / 1e6, "MB", 150.0)
    yield line("idle: CPU", 100 * (sum(process.cpu_times()[:2]) - used) / seconds, "% of a core", 3.0)


def drift(story: Story) -> Iterator[bool]:
    """From an edit of a Deployment by hand to its being put back."""
    cluster = Cluster(story.node.kubeconfig)
    name = next(item["metadata"]["name"] for item in story.get("deployments") if "proxy" in item["metadata"]["name"])
    took, baseline = [], []
    for number in range(DRIFTS):
        started = time.monotonic()
        cluster.merge(DEPLOYMENT, TEAM, name, {"metadata": {"annotations": {"example.org/look": str(number)}}})
        baseline.append(time.monotonic() - started)
        started = time.monotonic()
        cluster.merge(DEPLOYMENT, TEAM, name, {"spec": {"revisionHistoryLimit": 7}})
        while (cluster.get(DEPLOYMENT, TEAM, name) or {})["spec"]["revisionHistoryLimit"] == 7:
            threading.Event().wait(0.01)
        took.append(time.monotonic() - started)
        threading.Event().wait(0.3)
    print(f"   baseline: one write of an annotation {1000 * statistics.median(baseline):.0f} ms")
    yield line("drift put back, p95", percentile(took, 95), "s", 2.0)


def events(story: Story) -> Iterator[bool]:
    """From a REST event's sending to its Job's creation, at 20 a second."""
    body = story.project_object()
    story.push_files({"myelin.yaml": with_limit(story), f"axons/{AXON}/axon.yaml": REST.encode()}, "Only look when asked\n")
    story.apply(body)
    token = json.loads(story.node.kubectl("exec", "-n", SYSTEM, story.controller(), "--", "cat", address_file()))["token"]
    service = story.services_in(SYSTEM)["myelin"]
    story.wait("the sensor", lambda: send(service, token, "warm") == 202)
    story.wait("its job", lambda: len(created(story)) >= 1)
    threading.Event().wait(5)
    known, clock = set(created(story)), SystemClock()
    sent: list[float] = []
    for number in range(EVENTS):
        began = time.monotonic()
        sent.append(clock.now().timestamp())
        assert send(service, token, str(number)) == 202
        threading.Event().wait(max(1 / A_SECOND - (time.monotonic() - began), 0))
    story.wait("all jobs", lambda: len(created(story)) >= len(known) + EVENTS, 120)
    made = sorted(at for name, at in created(story).items() if name not in known)
    # Events are acted on in the order in which they came, so the nth Job is the nth event's.
    took = [at - began for at, began in zip(made, sent, strict=False)]
    print(f"   baseline: one Job applied by itself {1000 * job_alone(story):.0f} ms")
    yield line("event to Job created, p50", percentile(took, 50), "s", None)
    yield line("event to Job created, p99", percentile(took, 99), "s", 0.3)


def with_limit(story: Story) -> bytes:
    """The project's document with room for all jobs."""
    text = (story.clone / "myelin.yaml").read_text()
    return (text.rstrip("\n") + "\n  limits: {maxConcurrentJobs: 1000}\n").encode()


def address_file() -> str:
    """Where the inbox's token lies in the controller's pod."""
    return f"/state/{TEAM}/digits/inbox/address.json"


def send(service: str, token: str, identity: str) -> int:
    """Send an event; the answer's status."""
    connection = http.client.HTTPConnection(service, timeout=10)
    try:
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        value = json.dumps({"source": "bench", "id": identity})
        connection.request("POST", f"/sensors/digits/{AXON}/asked/call", value, headers)
        return connection.getresponse().status
    finally:
        connection.close()


def created(story: Story) -> dict[str, float]:
    """Name of each Job that the controller created -> when the API server heard of it."""
    found: dict[str, float] = {}
    for item in audited(story):
        reference = item.get("objectRef", {})
        if reference.get("resource") == "jobs" and item["verb"] in ("patch", "create") and item["responseStatus"]["code"] == 201:
            found[reference["name"]] = datetime.fromisoformat(item["requestReceivedTimestamp"].replace("Z", "+00:00")).timestamp()
    return found


def audited(story: Story) -> Iterator[Mapping[str, Any]]:
    """Every finished API call of the controller."""
    for text in (story.node.state / "logs/audit.jsonl").read_text().splitlines():
        try:
            item = json.loads(text)
        except ValueError:
            continue
        if item.get("user", {}).get("username") == USER and item.get("stage") == "ResponseComplete":
            yield item


def job_alone(story: Story) -> float:
    """Seconds for one Job by a bare client."""
    cluster = Cluster(story.node.kubeconfig)
    took = []
    for number in range(10):
        container = {"name": "main", "image": story.image, "command": ["true"]}
        spec = {"template": {"spec": {"containers": [container], "restartPolicy": "Never", "nodeSelector": {"none": "x"}}}}
        started = time.monotonic()
        cluster.apply(JOB, {"metadata": {"name": f"alone-{number}", "namespace": SYSTEM}, "spec": spec})
        took.append(time.monotonic() - started)
    return statistics.median(took)


def controller_process() -> psutil.Process:
    """The controller's process, as this machine sees it."""
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if words[-2:] == ["controller", "operate"]:
            return process
    raise AssertionError("no process of the controller is to be seen from here")


def percentile(values: list[float], percent: int) -> float:
    """The value that so many percent stay below."""
    return sorted(values)[min(len(values) * percent // 100, len(values) - 1)]


def line(what: str, value: float, unit: str, bound: float | None) -> bool:
    """Print a figure; whether it keeps its bound."""
    fits = bound is None or value <= bound
    print(
        f"{'  ' if fits else '! '}{what:<32} {value:8.3f} {unit:<12} {f'bound {bound:g}' if bound is not None else ''}",
        flush=True,
    )
    return fits


if __name__ == "__main__":
    sys.exit(main())
