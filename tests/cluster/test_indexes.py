"""Indexes of several platforms on a real node: it takes the image of its own, and pods land nowhere else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import tests.contracts.test_engine_contract as contract
from controller.adapters.attest.signing import sign_image
from controller.adapters.oci.artifacts import ArtifactStore, files_of
from controller.adapters.oci.assembly import PLATFORM, assemble_index
from controller.adapters.oci.layout import CONFIG
from policies.canonical import canonical
from policies.terms.digest import Digest
from policies.terms.task import JobSpec, ServerSpec
from tests.cluster.node import Node
from tests.cluster.test_engine_on_kubernetes import Kubernetes
from tests.fakes.provenance import where_from

FOREIGN = next(item for item in ("linux/amd64", "linux/arm64") if item != PLATFORM)


@pytest.fixture
def place(node: Node, namespace: str, tmp_path: Path) -> Iterator[Kubernetes]:
    made = Kubernetes(node, namespace, tmp_path)
    yield made
    made.close()


def foreign(place: Kubernetes, image: Digest) -> Digest:
    """An image that says it is for another kind of machine."""
    manifest = place.layout.manifest(image)
    config = json.loads(place.layout.get(manifest["config"]["digest"]))
    system, machine = FOREIGN.split("/")
    described = place.layout.put(canonical({**config, "os": system, "architecture": machine}))
    return place.layout.put(canonical({**manifest, "config": place.layout.descriptor(described, CONFIG)}))


def signed(place: Kubernetes, image: Digest) -> Digest:
    sign_image(place.layout, image, place.image_key, where_from())
    place.layout.push(image, tags=(f"image-{image[7:19]}",))
    return image


def index(place: Kubernetes, image: Digest) -> Digest:
    return signed(place, assemble_index(place.layout, {PLATFORM: image, FOREIGN: foreign(place, image)}))


def test_jobs_and_servers_run_from_an_index_with_data_laid_over_it(place: Kubernetes, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.csv").write_text("1\n")
    data = ArtifactStore(place.layout).keep("data", tmp_path / "data")
    job = JobSpec(
        name="one", axon="a", task="t", image=index(place, place.image), args=("ok",), data=(data,), keeps=("data", "model")
    )
    place.engine.start(job)
    state = place.job("one")
    assert state.phase == "succeeded", (state.reason, state.message)
    kept = place.engine.collect("one")
    model = {name: place.layout.get(item["digest"]) for name, item in files_of(place.layout, kept["model"]).items()}
    assert model == {"model.txt": b"a.csv,out.txt"}
    spec = ServerSpec(name="two", image=index(place, place.server_image), data=(data,), config={"n": 1})
    place.server("two", spec)
    assert place.ask("two")["n"] == 1
    composed = place.node.kubectl("get", "deployment", "two", "-n", place.namespace, "-o", "json")
    pod = json.loads(composed)["spec"]["template"]["spec"]
    digest = pod["containers"][0]["image"].rpartition("@")[2]
    assert [item["platform"]["architecture"] for item in place.layout.manifest(digest)["manifests"]] == ["amd64", "arm64"]


def test_an_image_for_another_kind_of_machine_waits_for_one(place: Kubernetes) -> None:
    place.engine.start(JobSpec(name="one", axon="a", task="t", image=signed(place, foreign(place, place.image)), args=("ok",)))
    state = contract.until(lambda: place.engine.jobs()["one"], lambda state: state.reason == "Unschedulable")
    assert state.phase == "running"
    assert "build for these nodes (`builder.platforms`)" in state.message
    place.engine.stop("one")
    assert place.job("one").reason == "Stopped"
