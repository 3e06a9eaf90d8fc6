"""The engine on Kubernetes without a cluster: what only a death in the wrong moment shows. The rest is asked on a real node."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from controller.adapters.cluster import JOB, Cluster
from controller.adapters.engine_cluster import ClusterEngine, KeptJobs, KeptServers
from controller.adapters.oci.layout import Layout
from policies.errors import SilentError
from reconcilers.manifests.names import Placement, labels
from tests.fakes.cluster import FakeCluster
from tests.fakes.wiring import CONTROLLER
from tests.fakes.world import HandClock, World

PLACEMENT = Placement(namespace="team-a", project="digits", registry="registry.test/digits")
OVER = {"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "lastTransitionTime": "2026-01-31T12:00:09Z"}


def engine(folder: Path, cluster: FakeCluster) -> ClusterEngine:
    """One that starts now, with the disk of those before it."""
    layout = Layout(folder / "store")
    return ClusterEngine(
        cast(Cluster, cluster),
        PLACEMENT,
        layout,
        lambda image, places: image,
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
