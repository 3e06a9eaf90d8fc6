"""Where this job's data and model are, and what the controller knows of others."""

from __future__ import annotations

import json
import os
import urllib.request
from typing import Any


def data_path(default: str | None = None) -> str | None:
    """Folder of the data, with a slash at its end."""
    return os.environ.get("DATA_PATH", default)


def model_path(default: str | None = None) -> str | None:
    """Folder of the model, with a slash at its end."""
    return os.environ.get("MODEL_PATH", default)


def task(
    task_name: str, axon: str | None = None, namespace: str | None = None, default_value: Any = None
) -> dict[str, Any] | Any:
    """The latest run of a task: id, name, status, model_path, data_path, timestamp; `default_value` when there is none."""
    axon = axon or os.environ.get("AXON_NAME", "")
    namespace = namespace or os.environ.get("NAMESPACE", "default")
    value = _ask(f"/api/v1/axons/{namespace}/{axon}", None)
    if value is None:
        return default_value
    runs = [
        node
        for sensor in value.get("sensors", ())
        for child in sensor.get("children", ())
        for node in child.get("children", ())
        if node.get("taskName") == task_name
    ]
    if not runs:
        return default_value
    newest = max(runs, key=lambda node: node.get("startedAtTs", 0))
    env = {item["name"]: item.get("value") for item in newest.get("template", {}).get("container", {}).get("env", ())}
    return {
        "id": newest.get("id"),
        "name": newest.get("taskName"),
        "status": newest.get("phase"),
        "model_path": env.get("MODEL_PATH"),
        "data_path": env.get("DATA_PATH"),
        "timestamp": newest.get("startedAtTs"),
    }


def model_backend(
    graph: str, model: str, backend: str, axon: str | None = None, namespace: str | None = None, default_value: Any = None
) -> dict[str, Any] | Any:
    """The latest deployed backend of a graph; `default_value` when there is none."""
    body = {
        "namespace": namespace or os.environ.get("NAMESPACE", "default"),
        "axon": axon or os.environ.get("AXON_NAME", ""),
    }
    value = _ask(f"/model-graphs/{graph}", body)
    found = [
        item
        for deployed in (value or {}).get("deployedModelGraphs", ())
        for entry in deployed.get("models", ())
        if entry.get("name") == model
        for item in entry.get("backends", ())
        if item.get("name") == backend
    ]
    return max(found, key=lambda item: item.get("timestamp", 0)) if found else default_value


def _ask(path: str, body: dict[str, Any] | None) -> dict[str, Any] | None:
    address = os.environ.get("ADMIN_URL")
    if not address:
        return None
    headers = {"Content-Type": "application/json"}
    if token := os.environ.get("ADMIN_JWT_TOKEN"):
        headers["Authorization"] = f"Bearer {token}"
    data = json.dumps(body).encode() if body is not None else None
    try:
        with urllib.request.urlopen(
            urllib.request.Request(address.rstrip("/") + path, data=data, headers=headers), timeout=10
        ) as got:
            return dict(json.load(got))
    except (OSError, ValueError):
        return None
