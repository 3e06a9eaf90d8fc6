"""What all pods of ours have in common: nobody's privileges, no token, a read-only root, an image by digest."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from policies.terms.digest import Digest
from reconcilers.manifests.names import Placement

USER = 65532
PYTHON = "/opt/venv/bin/python"
ANY_PYTHON = "python3"
"""That of an image which Myelin did not lay, as its PATH finds it."""
INPUTS, WORK = "/myelin/in", "/myelin/work"
_SETTINGS = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1", "HOME": "/tmp", "LANG": "C.UTF-8"}


def container(
    placement: Placement,
    image: Digest,
    *,
    command: Sequence[str],
    env: Mapping[str, str],
    mounts: Mapping[str, str],
    needs: Mapping[str, Any] | None = None,
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The one container of a pod.

    Args:
        placement: Where its image lies.
        image: Digest of the image.
        command: What runs.
        env: Its environment.
        mounts: Volume name -> path.
        needs: Requests and limits.
        more: Probes and ports.
    """
    return {
        "name": "main",
        "image": f"{placement.registry}@{image}",
        "imagePullPolicy": "IfNotPresent",
        "command": [_plain(part) for part in command],
        "env": [{"name": name, "value": _plain(value)} for name, value in sorted({**_SETTINGS, **env}.items())],
        "volumeMounts": [{"name": name, "mountPath": path} for name, path in sorted(mounts.items())],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
        },
        **({"resources": dict(needs)} if needs else {}),
        **(more or {}),
    }


def _plain(text: str) -> str:
    """Text that Kubernetes hands on as it is: `$(NAME)` would become what NAME is, and `$$` one `$`."""
    return text.replace("$", "$$")


def pod(
    placement: Placement,
    main: Mapping[str, Any],
    volumes: Sequence[Mapping[str, Any]],
    *,
    restart: str,
    platforms: Collection[str] = (),
    node_selector: Mapping[str, str] | None = None,
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A pod's spec around its container; Pod Security `restricted` admits it.

    Args:
        placement: Whose it is.
        main: Its container.
        volumes: Besides `/tmp`.
        restart: When Kubernetes starts it again.
        platforms: What its image runs on, `linux/arm64`; it lands on no other node. Empty: on any.
        node_selector: Labels that its node must have.
        more: Further fields.
    """
    return {
        "containers": [dict(main)],
        "volumes": [{"name": "tmp", "emptyDir": {}}, *volumes],
        "restartPolicy": restart,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        **({"serviceAccountName": placement.service_account} if placement.service_account else {}),
        **({"imagePullSecrets": [{"name": placement.pull_secret}]} if placement.pull_secret else {}),
        **({"nodeSelector": dict(node_selector)} if node_selector else {}),
        **({"affinity": {"nodeAffinity": _nodes_for(platforms)}} if platforms else {}),
        **(more or {}),
    }


def _nodes_for(platforms: Collection[str]) -> dict[str, Any]:
    """The nodes that an image runs on, by the labels that each kubelet gives its node."""
    terms = []
    for platform in sorted({"/".join(item.split("/")[:2]) for item in platforms}):
        system, _, machine = platform.partition("/")
        wanted = (("kubernetes.io/os", system), ("kubernetes.io/arch", machine))
        terms.append({"matchExpressions": [{"key": key, "operator": "In", "values": [value]} for key, value in wanted]})
    return {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
