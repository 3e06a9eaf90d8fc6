"""The door to the kubernetes client: plain documents in and out, over its configuration, authentication and transport.

Writes are server-side applies by the field manager `myelin`, so that what others set beside ours stays theirs.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import kubernetes.client
import kubernetes.config

from policies.errors import ConflictError, ControllerError, RefusedError, SilentError

MANAGER = "myelin"
CONNECT_SECONDS, READ_SECONDS = 5.0, 20.0
PAGE = 500
"""Objects that one answer to a list holds at most."""
APPLY, MERGE = "application/apply-patch+yaml", "application/merge-patch+json"


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of object, as the API addresses it."""

    api: str
    """`v1` or `group/version`."""
    kind: str
    plural: str


JOB = Kind("batch/v1", "Job", "jobs")
POD = Kind("v1", "Pod", "pods")
DEPLOYMENT = Kind("apps/v1", "Deployment", "deployments")
SERVICE = Kind("v1", "Service", "services")
CONFIG_MAP = Kind("v1", "ConfigMap", "configmaps")
SECRET = Kind("v1", "Secret", "secrets")
EVENT = Kind("v1", "Event", "events")
LEASE = Kind("coordination.k8s.io/v1", "Lease", "leases")
PROJECT = Kind("myelin.io/v1alpha1", "Project", "projects")
AXON = Kind("myelin.io/v1alpha1", "Axon", "axons")
RELEASE = Kind("myelin.io/v1alpha1", "Release", "releases")
VERSION = Kind("myelin.io/v1alpha1", "Version", "versions")


class Cluster:
    """A Kubernetes API server, as one service account sees it. Threads may share it.

    Args:
        kubeconfig: How to reach it; None: as a pod in it does.

    Raises:
        RefusedError: There is no such configuration.
    """

    def __init__(self, kubeconfig: Path | None = None) -> None:
        configuration = kubernetes.client.Configuration()
        try:
            if kubeconfig is None:
                kubernetes.config.load_incluster_config(configuration)  # type: ignore[no-untyped-call]
            else:
                kubernetes.config.load_kube_config(str(kubeconfig), client_configuration=configuration)  # type: ignore[no-untyped-call]
        except kubernetes.config.ConfigException as error:
            where = str(kubeconfig) if kubeconfig else "this pod"
            text = f"cluster: expected a service account or kubeconfig in {where}, got {error}"
            raise RefusedError(text, reason="NoCluster") from error
        configuration.retries = False  # a pass tries again by itself, and a write must not be sent twice unseen
        configuration.connection_pool_maxsize = 8
        self._configuration = configuration
        self._http: Any = kubernetes.client.ApiClient(configuration).rest_client
        self.calls = 0
        """Requests that were sent."""
        self._counting = threading.Lock()

    def get(self, kind: Kind, namespace: str, name: str) -> dict[str, Any] | None:
        """One object; None when there is none."""
        return self._ask("GET", _path(kind, namespace, name), may_miss=True)

    def list(self, kind: Kind, namespace: str, selector: str = "", *, fields: str = "") -> list[dict[str, Any]]:
        """All objects of a kind in a namespace (empty: in all) that fit a label selector."""
        found: list[dict[str, Any]] = []
        query = {key: value for key, value in (("labelSelector", selector), ("fieldSelector", fields)) if value}
        query["limit"] = str(PAGE)
        while True:
            answer = self._ask("GET", _path(kind, namespace), query) or {}
            found += answer.get("items") or ()
            following = answer.get("metadata", {}).get("continue")
            if not following:
                return found
            query["continue"] = following

    def apply(self, kind: Kind, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Make an object be as the manifest says, also where somebody else set the same field."""
        meta = manifest["metadata"]
        query = {"fieldManager": MANAGER, "force": "true", "fieldValidation": "Strict"}
        body = {"apiVersion": kind.api, "kind": kind.kind, **manifest}
        return self._ask("PATCH", _path(kind, meta["namespace"], meta["name"]), query, body=body, content=APPLY) or {}

    def apply_status(self, kind: Kind, namespace: str, name: str, status: Mapping[str, Any]) -> dict[str, Any] | None:
        """Write an object's status; None when the object is gone."""
        body = {
            "apiVersion": kind.api,
            "kind": kind.kind,
            "metadata": {"name": name, "namespace": namespace},
            "status": dict(status),
        }
        path = _path(kind, namespace, name) + "/status"
        return self._ask("PATCH", path, {"fieldManager": MANAGER, "force": "true"}, body=body, content=APPLY, may_miss=True)

    def merge(self, kind: Kind, namespace: str, name: str, patch: Mapping[str, Any]) -> dict[str, Any] | None:
        """Change some fields; None when the object is gone."""
        path = _path(kind, namespace, name)
        return self._ask("PATCH", path, {"fieldManager": MANAGER}, body=patch, content=MERGE, may_miss=True)

    def create(self, kind: Kind, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Make a new object.

        Raises:
            ConflictError: There is one of that name.
        """
        body = {"apiVersion": kind.api, "kind": kind.kind, **manifest}
        path = _path(kind, manifest["metadata"]["namespace"])
        return self._ask("POST", path, {"fieldManager": MANAGER}, body=body) or {}

    def replace(self, kind: Kind, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Replace an object as it was read.

        Raises:
            ConflictError: Somebody wrote it since.
        """
        meta = manifest["metadata"]
        body = {"apiVersion": kind.api, "kind": kind.kind, **manifest}
        return self._ask("PUT", _path(kind, meta["namespace"], meta["name"]), {"fieldManager": MANAGER}, body=body) or {}

    def delete(self, kind: Kind, namespace: str, name: str, *, grace_seconds: int | None = None) -> None:
        """Delete an object and what it owns; one that is gone is passed over."""
        options: dict[str, Any] = {"propagationPolicy": "Background"}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        self._ask("DELETE", _path(kind, namespace, name), body=options, may_miss=True)

    def read(self, path: str) -> str:
        """What the server says at a path, `openid/v1/jwks`."""
        return self._send("GET", path).decode(errors="replace")

    def logs(self, namespace: str, pod: str, *, last_lines: int, previous: bool = False) -> str:
        """The last lines that a pod's program printed; empty when there are none (any more)."""
        query = {"tailLines": str(last_lines)} | ({"previous": "true"} if previous else {})
        try:
            return self._send("GET", _path(POD, namespace, pod) + "/log", query).decode(errors="replace")
        except RefusedError:
            return ""  # gone, or its container never started

    def _ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        body: Mapping[str, Any] | None = None,
        content: str = "application/json",
        may_miss: bool = False,
    ) -> dict[str, Any] | None:
        try:
            value = json.loads(self._send(method, path, query, body, content))
            if not isinstance(value, dict):
                raise ValueError("no object")
        except _MissingError:
            if may_miss:
                return None
            raise
        except ValueError as error:
            raise SilentError(f"cluster: {method} {path}: expected JSON, got something else") from error
        return value

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content: str = "application/json",
    ) -> bytes:
        with self._counting:
            self.calls += 1
        url = f"{self._configuration.host}/{path}" + (f"?{urlencode(query)}" if query else "")
        headers = {"Accept": "application/json, */*"}
        auth: dict[str, Any] = dict(self._configuration.auth_settings())
        for given in auth.values():
            headers[str(given["key"])] = str(given["value"])
        if body is not None:
            headers["Content-Type"] = content
        data: Any = json.dumps(body) if content == APPLY else body
        try:
            answer = self._http.request(method, url, headers=headers, body=data, _request_timeout=(CONNECT_SECONDS, READ_SECONDS))
            text = answer.read()
        except Exception as error:  # the client lets the errors of its transport through, which are another door's
            raise SilentError(f"cluster: no answer to {method} {path}: {type(error).__name__}") from error
        if answer.status < 300:
            return bytes(text)
        raise _refusal(answer.status, method, path, text)


class _MissingError(RefusedError):
    """There is no such object, or no such kind."""


def _refusal(code: int, method: str, path: str, text: bytes) -> ControllerError:
    try:
        value = json.loads(text)
        words = " ".join(str(value.get("message", "")).split())[:400]
    except (ValueError, AttributeError):
        words = " ".join(text.decode(errors="replace").split())[:200]
    what = f"cluster: {method} {path}: {words or code}"
    if code == 404:
        return _MissingError(what, reason="NotFound")
    if code == 409:
        return ConflictError(what)
    if code in (401, 403):
        return RefusedError(what, reason="Forbidden")
    if code in (410, 429) or code >= 500:  # 410: the rest of a long list is too old; the next try begins anew
        return SilentError(what)
    return RefusedError(what, reason="Invalid")


def _path(kind: Kind, namespace: str, name: str = "") -> str:
    root = f"api/{kind.api}" if "/" not in kind.api else f"apis/{kind.api}"
    middle = f"/namespaces/{quote(namespace, safe='')}" if namespace else ""
    return f"{root}{middle}/{kind.plural}" + (f"/{quote(name, safe='')}" if name else "")
