"""Names, labels and annotations of Kubernetes objects: the length rules, and how an object is found again."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from policies.canonical import canonical, digest_value, short_name
from policies.identity import object_name

LONGEST_JOB = 52
"""A Job's name becomes part of its pods' names and labels; cluster.md."""
LONGEST = 63
PROJECT, KIND, NAME = "myelin.io/project", "myelin.io/kind", "myelin.io/name"
LABELS, SPEC, STOPPED, CONFIG = "myelin.io/labels", "myelin.io/spec", "myelin.io/stopped", "myelin.io/config"
IMAGE = "myelin.io/image"
"""Annotation: digest of the code image, where the pod's own has data or a model laid over it."""
MANAGED_BY = {"app.kubernetes.io/managed-by": "myelin"}
_PLAIN = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")
"""What Kubernetes lets a Service be called: RFC 1035."""
_SHORTENED = re.compile(r".*--[0-9a-z]{9}")
"""What `kube_name` makes; names by `policies.identity.object_name` end in one character less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where the objects of one project go, and what they need to know."""

    namespace: str
    project: str
    registry: str
    """`host[:port]/path`: all images of the project lie there."""
    owner: Mapping[str, Any] | None = None
    """The Project object; what it owns goes when it goes."""
    pull_secret: str = ""
    inbox: str = ""
    """Address of the inbox, `http://myelin.system.svc:8090`."""
    service_account: str = ""
    """Account of every pod, without a token; empty: the namespace's default one."""
    extra: Mapping[str, str] = field(default_factory=dict)
    """More labels for every object."""


def kube_name(name: str, limit: int = LONGEST) -> str:
    """The object's name of a job or server: the same where the rules allow it, which say that a letter comes first.

    Law: different names give different object names.
    """
    if len(name) <= limit and _PLAIN.fullmatch(name) and not _SHORTENED.fullmatch(name):
        return name
    plain = re.sub("[^a-z0-9-]", "-", name.lower())
    shown = plain if _PLAIN.match(plain) else f"x-{plain}"
    return f"{shown[: limit - 11].strip('-')}--{short_name(digest_value([name]), length=9)}"


def job_name(name: str) -> str:
    """The object's name of a job."""
    return kube_name(name, LONGEST_JOB)


def mirror_name(axon: str, deployer: str) -> str:
    """The object's name of a release's mirror."""
    return object_name(axon, deployer)


def metadata(
    placement: Placement, name: str, kind: str, *, shown: str, annotations: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Metadata of an object of ours.

    Args:
        placement: Whose it is.
        name: The object's name.
        kind: `job`, `server` or `proxy`.
        shown: The job's or server's own name, by which it is found again.
        annotations: What more is noted on it.
    """
    meta: dict[str, Any] = {
        "name": name,
        "namespace": placement.namespace,
        "labels": labels(placement, kind, shown),
    }
    if annotations:
        meta["annotations"] = dict(annotations)
    if placement.owner is not None:
        meta["ownerReferences"] = [dict(placement.owner)]
    return meta


def labels(placement: Placement, kind: str, name: str) -> dict[str, str]:
    """Labels of an object and of its pods."""
    return {**MANAGED_BY, **placement.extra, PROJECT: placement.project, KIND: kind, NAME: name}


def selector(placement: Placement, *kinds: str) -> str:
    """A label selector for all objects of some kinds; one without a name was made by somebody else."""
    return f"{PROJECT}={placement.project},{KIND} in ({','.join(kinds)}),{NAME}"


def encoded(value: Mapping[str, str]) -> str:
    """The port's labels as an annotation: task run ids and digests are longer than a Kubernetes label may be."""
    return canonical(dict(value)).decode()


def decoded(meta: Mapping[str, Any]) -> dict[str, str]:
    """The port's labels of an object; none where somebody damaged them."""
    try:
        value = json.loads(meta.get("annotations", {}).get(LABELS, "{}"))
    except (ValueError, RecursionError):
        return {}
    return {str(key): str(item) for key, item in value.items()} if isinstance(value, dict) else {}
