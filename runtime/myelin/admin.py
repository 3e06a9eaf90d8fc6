"""Where this job's data and model are, and what the controller knows of others.

What cannot be found out is the caller's default, never an error. Standard library only.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

ANSWER_SECONDS = 10.0
TOKEN_FILE = "/var/run/secrets/kubernetes.io/serviceaccount/token"
_log = logging.getLogger("myelin")


class TaskMetadata(NamedTuple):
    """The latest run of a task."""

    id: str
    name: str
    status: str
    model_path: str | None
    data_path: str | None
    timestamp: float
    """When it started, in milliseconds since 1970."""


class ModelBackendMetadata(NamedTuple):
    """The latest deployed backend of a model."""

    id: str
    name: str
    url: str
    publicUrl: str
    clusterUrl: str
    status: str
    model_path: str | None
    timestamp: float
    """When it was deployed, in milliseconds since 1970."""


class MyelinAdmin:
    """Asks the controller at `ADMIN_URL`, with `ADMIN_JWT_TOKEN` or the pod's own token where there is one."""

    def __init__(self) -> None:
        self.admin_url = os.environ.get("ADMIN_URL") or None
        self.jwt_token = os.environ.get("ADMIN_JWT_TOKEN") or _read(TOKEN_FILE)

    def task(self, axon: str | None, task_name: str, namespace: str | None, default_value: Any = None) -> Any:
        """The latest run of a task as `TaskMetadata`; the default when there is none or nobody answers."""
        axon, namespace = get_axon(axon) or "", get_namespace(namespace) or "default"
        value = self._ask(f"/api/v1/axons/{quote(namespace, safe='')}/{quote(axon, safe='')}", None)
        runs = [
            node
            for sensor in _list(value, "sensors")
            for run in _list(sensor, "children")
            for node in _list(run, "children")
            if node.get("taskName") == task_name
        ]
        if not runs:
            return default_value
        newest = max(runs, key=_instant)
        template = newest.get("template")
        env = _list(template.get("container") if isinstance(template, Mapping) else None, "env")
        return TaskMetadata(
            id=str(newest.get("name", "")),
            name=task_name,
            status=str(newest.get("status", "")),
            model_path=self.get_env(env, "MODEL_PATH"),
            # A path of another job may be closed to this one; its own copy is not.
            data_path=os.environ.get(f"DATA_PATH_{task_name}") or self.get_env(env, "DATA_PATH"),
            timestamp=_instant(newest),
        )

    def model_backend(
        self, axon: str | None, model_graph: str, model: str, model_backend: str, namespace: str | None, default_value: Any = None
    ) -> Any:
        """The latest deployed backend as `ModelBackendMetadata`; the default when there is none or nobody answers."""
        asked = {"namespace": get_namespace(namespace) or "default", "axon": get_axon(axon) or ""}
        graphs = _list(self._ask(f"/model-graphs/{quote(model_graph, safe='')}", asked), "deployedModelGraphs")
        newest = max(graphs, key=_instant, default=None)
        for found in _list(newest, "models"):
            for backend in _list(found, "backends"):
                if found.get("modelName") == model and backend.get("modelBackendName") == model_backend:
                    return ModelBackendMetadata(
                        id=str(backend.get("name", "")),
                        name=model_backend,
                        url=str(backend.get("url", "")),
                        publicUrl=str(backend.get("publicUrl", "")),
                        clusterUrl=str(backend.get("clusterUrl", "")),
                        status=str(backend.get("status", "")),
                        model_path=self.get_env(_list(backend, "env"), "MODEL_PATH"),
                        timestamp=_instant(backend),
                    )
        return default_value

    @staticmethod
    def get_env(env: Iterable[Mapping[str, Any]], evn_name: str) -> str | None:
        """Value of a variable in a list of `name` and `value`."""
        return next((item.get("value") for item in env if item.get("name") == evn_name), None)

    def _ask(self, path: str, body: Mapping[str, Any] | None) -> Any:
        if not self.admin_url:
            return None
        headers = {"Content-Type": "application/json"}
        if self.jwt_token:
            headers["Authorization"] = f"Bearer {self.jwt_token}"
        url, data = self.admin_url.rstrip("/") + path, json.dumps(body).encode() if body is not None else None
        try:
            with urllib.request.urlopen(urllib.request.Request(url, data=data, headers=headers), timeout=ANSWER_SECONDS) as got:
                return json.load(got)
        except urllib.error.HTTPError as error:
            with error:
                _log.warning("%s: %s %s", url, error.code, error.read(300).decode(errors="replace"))
        except (OSError, ValueError, http.client.HTTPException) as error:
            _log.warning("%s: %s", url, error)
        return None


def data_path(default_value: str | None = None) -> str | None:
    """Folder of the data, with a slash at its end."""
    return os.environ.get("DATA_PATH") or default_value


def model_path(default_value: str | None = None) -> str | None:
    """Folder of the model, with a slash at its end."""
    return os.environ.get("MODEL_PATH") or default_value


def task(task_name: str, axon: str | None = None, namespace: str | None = None, default_value: Any = None) -> Any:
    """The latest run of a task.

    Args:
        task_name: The task.
        axon: Its axon; None: this job's.
        namespace: Its namespace; None: this job's.
        default_value: What is returned when there is none, or nobody to ask.

    Returns:
        A `TaskMetadata`: `id name status model_path data_path timestamp`.
    """
    return __ADMIN_CLIENT__.task(axon, task_name, namespace, default_value)


def model_backend(
    model_graph: str,
    model: str,
    model_backend_name: str,
    axon: str | None = None,
    namespace: str | None = None,
    default_value: Any = None,
) -> Any:
    """The latest deployed backend of a model.

    Args:
        model_graph: Its deployer.
        model: The model, a node of the graph.
        model_backend_name: One of its backends.
        axon: Its axon; None: this job's.
        namespace: Its namespace; None: this job's.
        default_value: What is returned when there is none, or nobody to ask.

    Returns:
        A `ModelBackendMetadata`: `id name url publicUrl clusterUrl status model_path timestamp`.
    """
    return __ADMIN_CLIENT__.model_backend(axon, model_graph, model, model_backend_name, namespace, default_value)


def get_axon(axon: str | None = None) -> str | None:
    """The axon, this job's by default."""
    return axon or os.environ.get("AXON_NAME")


def get_namespace(namespace: str | None = None) -> str | None:
    """The namespace, this job's by default."""
    return namespace or os.environ.get("NAMESPACE")


def _list(value: Any, key: str) -> list[Any]:
    """The objects in a list of an answer; nothing where the answer has another shape."""
    found = value.get(key) if isinstance(value, Mapping) else None
    return [item for item in found if isinstance(item, Mapping)] if isinstance(found, list) else []


def _instant(node: Mapping[str, Any]) -> float:
    value = node.get("startedAtTs")
    return value if isinstance(value, (int, float)) else 0


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip() or None
    except (OSError, ValueError):
        return None


__ADMIN_CLIENT__ = MyelinAdmin()
