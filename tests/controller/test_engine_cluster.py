"""The engine on Kubernetes without a cluster: what only a death in the wrong moment shows. The rest is asked on a real node."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from controller.adapters.cluster import DEPLOYMENT, JOB, Cluster
from controller.adapters.engine_cluster import ClusterEngine, KeptJobs, KeptServers
from controller.adapters.engine_cluster.runner import keep_runner
from controller.adapters.oci.artifacts import ArtifactStore
from controller.adapters.oci.assembly import Program, assemble, assemble_index
from controller.adapters.oci.layout import Layout
from policies.errors import DesiredStateError, SilentError, TrustError
from policies.terms.digest import Digest
from policies.terms.task import JobSpec, ServerSpec
from reconcilers.manifests.names import Placement, labels
from tests.fakes.cluster import FakeCluster
from tests.fakes.wiring import CONTROLLER
from tests.fakes.world import HandClock, World

PLACEMENT = Placement(namespace="team-a", project="digits", registry="registry.test/digits")
OVER = {"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "lastTransitionTime": "2026-01-31T12:00:09Z"}


def engine(folder: Path, cluster: FakeCluster, composed: list[Mapping[str, Sequence[Digest]]] | None = None) -> ClusterEngine:
    """One that starts now, with the disk of those before it; it notes what it would lay over images."""
    layout = Layout(folder / "store")

    def compose(image: Digest, places: Mapping[str, Sequence[Digest]]) -> Digest:
        if composed is not None:
            composed.append(places)
        return image

    return ClusterEngine(
        cast(Cluster, cluster),
        PLACEMENT,
        layout,
        compose,
        programs="secret",
        jobs=KeptJobs(folder / "jobs", layout, CONTROLLER),
        servers=KeptServers(folder / "servers"),
        clock=HandClock(World()),
    )


def test_a_job_that_was_kept_and_not_deleted_is_cleaned_by_the_next_look(tmp_path: Path) -> None:
    cluster = FakeCluster()
    meta: dict[str, Any] = {"name": "one", "namespace": "team-a", "labels": labels(PLACEMENT, "job", "one")}
    cluster.create(JOB, {"metadata": meta, "spec": {}})
    cluster.objects[JOB.kind, "team-a", "one"]["status"] = {"conditions": [OVER]}
    first = engine(tmp_path, cluster)
    assert (first.jobs()["one"].phase, first.jobs()["one"].is_freed) == ("failed", False)
    cluster.fail("delete", SilentError("cluster: no answer"))
    with pytest.raises(SilentError):
        first.clean("one")
    second = engine(tmp_path, cluster)
    assert second.jobs()["one"].is_freed is False
    second.clean("one")
    assert cluster.get(JOB, "team-a", "one") is None
    assert second.jobs()["one"].is_freed is True
    assert engine(tmp_path, cluster).jobs()["one"] == second.jobs()["one"]


def image(folder: Path, platform: str, *entrypoint: str, args: tuple[str, ...] = ()) -> Digest:
    program = Program(entrypoint=entrypoint, args=args)
    return assemble(Layout(folder / "store"), [], program, platform=platform, annotations={})


def pods(folder: Path, made: Digest, *args: str) -> list[dict[str, Any]]:
    """The specs of the pods that an image's job and server get."""
    cluster = FakeCluster()
    place = engine(folder, cluster)
    place.start(JobSpec(name="one", axon="a", task="t", image=made, args=args))
    place.serve(ServerSpec(name="two", image=made))
    found = [*cluster.list(JOB, "team-a"), *cluster.list(DEPLOYMENT, "team-a")]
    return [item["spec"]["template"]["spec"] for item in found]


def machines(pod: dict[str, Any]) -> list[str]:
    terms = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    return ["/".join(item["values"][0] for item in term["matchExpressions"]) for term in terms]


def test_pods_of_an_image_go_where_it_runs(tmp_path: Path) -> None:
    for pod in pods(tmp_path, image(tmp_path, "linux/arm64", "/run")):
        assert machines(pod) == ["linux/arm64"]


def test_pods_of_an_index_go_where_one_of_its_images_runs(tmp_path: Path) -> None:
    images = {name: image(tmp_path, name, "/run", args=("usual",)) for name in ("linux/amd64", "linux/arm64")}
    index = assemble_index(Layout(tmp_path / "store"), images)
    job, server = pods(tmp_path, index)
    for pod in (job, server):
        assert machines(pod) == ["linux/amd64", "linux/arm64"]
        assert pod["containers"][0]["image"] == f"registry.test/digits@{index}"
        assert pod["containers"][0]["command"][-2:] == ["/run", "usual"]
    assert pods(tmp_path, index, "own")[0]["containers"][0]["command"][-2:] == ["/run", "own"]


def test_what_starts_nothing_or_not_the_same_everywhere_is_said(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "store")
    with pytest.raises(DesiredStateError, match="expected an ENTRYPOINT or CMD"):
        pods(tmp_path, image(tmp_path, "linux/amd64"))
    other = {"linux/amd64": image(tmp_path, "linux/amd64", "/a"), "linux/arm64": image(tmp_path, "linux/arm64", "/b")}
    index = assemble_index(layout, other)
    with pytest.raises(DesiredStateError, match="expected the same ENTRYPOINT and CMD on each platform, got 2"):
        pods(tmp_path, index)
    # What has a program of its own, as a proxy has, needs none of the image's.
    engine(tmp_path, cluster := FakeCluster()).serve(ServerSpec(name="two", image=index, command=("python", "-m", "x")))
    assert len(cluster.list(DEPLOYMENT, "team-a")) == 1
    with pytest.raises(TrustError, match="expected a manifest and a config"):
        pods(tmp_path, layout.put(b'{"manifests":[{}]}'))


def test_an_image_that_myelin_did_not_lay_gets_the_program_that_runs_its_job(tmp_path: Path) -> None:
    made, cluster, layout = image(tmp_path, "linux/amd64", "/run"), FakeCluster(), Layout(tmp_path / "store")
    composed: list[Mapping[str, Sequence[Digest]]] = []
    place = engine(tmp_path, cluster, composed)
    for name, is_ours in (("a-ours", True), ("b-theirs", False), ("c-theirs", False)):
        place.start(JobSpec(name=name, axon="a", task="t", image=made, is_laid_by_us=is_ours))
    commands = {
        item["metadata"]["name"]: item["spec"]["template"]["spec"]["containers"][0]["command"]
        for item in cluster.list(JOB, "team-a")
    }
    theirs = ["python3", "-I", "/myelin/in/run", "--", "/run"]
    assert list(commands.values()) == [["/opt/venv/bin/python", "-I", "-m", "myelin.job", "--", "/run"], theirs, theirs]
    runner = keep_runner(layout)
    assert composed == [{}, {"myelin/in/run": (runner,)}, {"myelin/in/run": (runner,)}]


def test_that_program_runs_by_any_python_without_what_is_installed_there(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "store")
    ArtifactStore(layout).fetch_folder(keep_runner(layout), tmp_path / "run")
    command = [sys.executable, "-I", "-S", str(tmp_path / "run"), "--", "true"]
    done = subprocess.run(command, env={}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (70, "")
    assert "MYELIN_JOB_" in done.stderr
