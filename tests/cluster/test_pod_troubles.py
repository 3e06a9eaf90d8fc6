"""What goes wrong with pods on a real node becomes a reason and words that a person can act on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import tests.contracts.test_engine_contract as contract
from controller.adapters.oci.layers import Stored
from policies.terms.task import JobSpec, JobState
from tests.cluster.node import Node
from tests.cluster.test_engine_on_kubernetes import Kubernetes

GREEDY = b"data = []\nwhile True:\n    data.append(bytearray(8 << 20))\n"


@pytest.fixture
def place(node: Node, namespace: str, tmp_path: Path) -> Iterator[Kubernetes]:
    made = Kubernetes(node, namespace, tmp_path)
    yield made
    made.close()


def job(place: Kubernetes, what: str = "ok") -> JobSpec:
    return JobSpec(name="one", axon="a", task="t", image=place.image, args=(what,))


def waiting(place: Kubernetes, reason: str) -> JobState:
    """The job, once it says why it waits."""
    return contract.until(lambda: place.engine.jobs()["one"], lambda state: state.reason == reason)


def test_no_node_fits(place: Kubernetes) -> None:
    place.engine.start(replace(job(place), node_selector={"example.org/accelerator": "h100"}))
    state = waiting(place, "Unschedulable")
    assert state.phase == "running"
    assert "no node takes it: 0/1 nodes are available" in state.message
    assert "ask for less in `resources` or `nodeSelector`" in state.message
    place.engine.stop("one")
    assert place.job("one").reason == "Stopped"


def test_an_image_cannot_be_pulled(place: Kubernetes) -> None:
    place.node.kubectl("delete", "secret", "registry-pull", "-n", place.namespace)
    # A layer that this node has never had, so that it must ask the registry.
    place.image = place.made("fresh.py", Stored(data=f"# {place.namespace}\n".encode()))
    place.engine.start(job(place))
    state = waiting(place, "ImagePull")
    assert state.phase == "running"
    assert "see registry.pullSecretName of the Project" in state.message


def test_a_program_takes_more_memory_than_it_may(place: Kubernetes) -> None:
    place.image = place.made("greedy.py", Stored(data=GREEDY))
    place.engine.start(replace(job(place), resources={"limits": {"memory": "64Mi"}}))
    state = place.job("one")
    assert (state.phase, state.reason) == ("failed", "OutOfMemory")
    assert "it needed more memory than its limit of 64Mi" in state.message


def test_the_cluster_admits_no_pod(place: Kubernetes) -> None:
    meta = {"name": "none", "namespace": place.namespace}
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": meta, "spec": {"hard": {"pods": "0"}}}
    place.node.kubectl("create", "-f", "-", input=json.dumps(quota))
    place.engine.start(job(place))
    state = waiting(place, "Refused")
    assert state.phase == "running"
    assert "the cluster admits no pod of it" in state.message
    assert "exceeded quota" in state.message


def test_a_program_that_is_killed_says_by_what(place: Kubernetes) -> None:
    place.image = place.made("killed.py", Stored(data=b"import os\nprint('so far', flush=True)\nos.kill(os.getpid(), 9)\n"))
    place.engine.start(job(place))
    state = place.job("one")
    assert (state.phase, state.reason) == ("failed", "ExitCode")
    assert "was killed by signal 9: so far" in state.message
