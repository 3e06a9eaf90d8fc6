"""Answers in the pod of a cluster's controller: its projects' registry and pods, by the pod's own service account."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from controller.adapters.clock import SystemClock
from controller.adapters.oci.layout import Layout
from controller.project import Place
from policies.terms.task import JobState, ServerState

if TYPE_CHECKING:  # the client takes a second to import, and most answers do without
    from controller.adapters.cluster import Cluster
    from controller.adapters.oci.mirrored import MirroredLayout
    from controller.projects import ProjectObject


@dataclass(frozen=True, slots=True, kw_only=True)
class Printed:
    """What one job or server printed."""

    name: str
    at: float
    """Since when, in seconds of the epoch; 0 where nobody knows."""
    labels: Mapping[str, str]
    text: str


def is_here(place: Place) -> bool:
    """Whether a project is followed by this pod's controller."""
    return "KUBERNETES_SERVICE_HOST" in os.environ and (place.state / "place.json").exists()


def store(place: Place) -> Layout:
    """The project's store: the state folder, and behind it the registry.

    Raises:
        OutsideError: The cluster does not let us read the Project, or does not answer.
    """
    opened = _opened(place)
    return Layout(place.state / "store") if opened is None else opened[2]


def printed(place: Place) -> list[Printed]:
    """What all jobs and servers printed, those of jobs whose objects are gone too.

    Raises:
        OutsideError: The cluster does not let us read the Project, or does not answer.
    """
    from controller.adapters.engine_cluster import ClusterEngine, KeptJobs, KeptServers
    from reconcilers.manifests.names import Placement

    opened = _opened(place)
    if opened is None:
        return []
    cluster, project, layout = opened
    engine = ClusterEngine(
        cluster,
        Placement(namespace=project.namespace, project=project.name, registry=project.access.repository),
        layout,
        lambda image, places: image,
        programs="",
        jobs=KeptJobs(place.state / "engine" / "jobs", layout, project.key),
        servers=KeptServers(place.state / "engine" / "servers"),
        clock=SystemClock(),
        is_watched=True,
    )
    states: list[JobState | ServerState] = [*engine.jobs().values(), *engine.servers().values()]
    return [
        Printed(name=state.name, at=_since(state), labels=state.labels, text=engine.logs(state.name, last_bytes=1 << 20))
        for state in states
    ]


def _opened(place: Place) -> tuple[Cluster, ProjectObject, MirroredLayout] | None:
    """The cluster, the project and its store; None when the Project is gone."""
    from controller.adapters.cluster import PROJECT, Cluster
    from controller.adapters.oci.mirrored import MirroredLayout
    from controller.adapters.oci.registry import Registry
    from controller.projects import open_project

    cluster = Cluster()
    body = cluster.get(PROJECT, place.state.parent.name, place.state.name)
    if body is None:
        return None
    project = open_project(cluster, body)
    return cluster, project, MirroredLayout(place.state / "store", Registry(project.access))


def _since(state: JobState | ServerState) -> float:
    return state.started_at.timestamp() if isinstance(state, JobState) and state.started_at is not None else 0.0
