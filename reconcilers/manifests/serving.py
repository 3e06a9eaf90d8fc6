"""A server -> Deployment, Service and ConfigMap. A change of its config alone never restarts it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import Any

from policies.canonical import canonical, digest_value
from policies.terms.digest import Digest
from policies.terms.task import ServerSpec
from reconcilers.manifests.names import IMAGE, KIND, LABELS, NAME, SPEC, Placement, encoded, kube_name, labels, metadata
from reconcilers.manifests.pod import INPUTS, PYTHON, container, pod

PORT = 8080
CONFIG_FOLDER = "/myelin/config"


def inputs(spec: ServerSpec) -> dict[str, tuple[Digest, ...]]:
    """Folder of the image -> artifacts that are laid there over each other."""
    places: dict[str, tuple[Digest, ...]] = {}
    if spec.data:
        places[f"{INPUTS}/data"] = spec.data
    if spec.model is not None:
        places[f"{INPUTS}/model"] = (spec.model,)
    return {place.lstrip("/"): digests for place, digests in places.items()}


def identity(spec: ServerSpec) -> Digest:
    """Names all of a server but its config and labels, which may change while it runs."""
    return digest_value({**asdict(spec), "config": None, "labels": None})


def kind_of(spec: ServerSpec) -> str:
    """`proxy` for a deployer's proxy, `server` for what serves a model."""
    return "proxy" if spec.labels.get("job") == "proxy" else "server"


def address(spec_name: str, placement: Placement) -> str:
    """Where a server answers, without scheme. It stays the same when everything is made anew."""
    return f"{kube_name(spec_name)}.{placement.namespace}.svc:{PORT}"


def deployment(
    spec: ServerSpec, placement: Placement, *, image: Digest, entrypoint: Sequence[str], platforms: Collection[str] = ()
) -> dict[str, Any]:
    """The Deployment: a new pod answers before the old one goes.

    Args:
        spec: What is to be up.
        placement: Where.
        image: The image with the server's data and model in it.
        entrypoint: The image's own program.
        platforms: What the image runs on, `linux/amd64`; empty: anything.
    """
    kind, name = kind_of(spec), kube_name(spec.name)
    env = {**spec.env, "HOST": "0.0.0.0", "PORT": str(PORT), "MODEL_PATH": f"{INPUTS}/model/", "DATA_PATH": f"{INPUTS}/data/"}
    mounts, volumes = {"tmp": "/tmp"}, []
    if spec.config is not None:
        env["MYELIN_CONFIG"] = f"{CONFIG_FOLDER}/config.json"
        mounts["config"] = CONFIG_FOLDER
        volumes.append({"name": "config", "configMap": {"name": name}})
    # An image's own program is the image's business, a `python` of its own too.
    command = [PYTHON if (part, place) == ("python", 0) else part for place, part in enumerate(spec.command)] or [*entrypoint]
    check = {"httpGet": {"path": spec.health_path, "port": PORT}}
    main = container(
        placement,
        image,
        command=command,
        env=env,
        mounts=mounts,
        more={
            "ports": [{"name": "http", "containerPort": PORT}],
            "startupProbe": {**check, "periodSeconds": 1, "failureThreshold": 120, "timeoutSeconds": 2},
            "readinessProbe": {**check, "periodSeconds": 2, "failureThreshold": 2, "timeoutSeconds": 2},
            "livenessProbe": {**check, "periodSeconds": 10, "failureThreshold": 6, "timeoutSeconds": 5},
        },
    )
    # Not the labels, which name the config: each change of an annotation here is a new generation of the Deployment.
    annotations = {SPEC: str(identity(spec)), IMAGE: str(spec.image)}
    return {
        "metadata": metadata(placement, name, kind, shown=spec.name, annotations=annotations),
        "spec": {
            "replicas": 1,
            "revisionHistoryLimit": 1,
            "selector": {"matchLabels": {NAME: spec.name, KIND: kind}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {
                "metadata": {
                    "labels": labels(placement, kind, spec.name),
                    "annotations": {SPEC: str(identity(spec)), IMAGE: str(spec.image)},
                },
                "spec": pod(placement, main, volumes, restart="Always", platforms=platforms),
            },
        },
    }


def service(spec: ServerSpec, placement: Placement) -> dict[str, Any]:
    """The Service, whose name is the server's address."""
    annotations = {LABELS: encoded(spec.labels)}
    return {
        "metadata": metadata(placement, kube_name(spec.name), kind_of(spec), shown=spec.name, annotations=annotations),
        "spec": {
            "selector": {NAME: spec.name, KIND: kind_of(spec)},
            "ports": [{"name": "http", "port": PORT, "targetPort": PORT, "protocol": "TCP"}],
        },
    }


def config_map(spec: ServerSpec, placement: Placement) -> dict[str, Any] | None:
    """The ConfigMap with a server's config; None for one without."""
    if spec.config is None:
        return None
    return {
        "metadata": metadata(placement, kube_name(spec.name), kind_of(spec), shown=spec.name),
        "data": {"config.json": canonical(dict(spec.config)).decode()},
    }
