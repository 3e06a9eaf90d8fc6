"""The kinds of documents as JSON Schema for editors, and as CustomResourceDefinition for Kubernetes: plain values.

Never talks to a cluster. In a cluster `metadata` is Kubernetes' own, so that what ours says besides the name (the axon of a
release) lies in labels and in the status there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from policies.parsing import KINDS
from policies.shapes import draft_7, shape_of, structural

GROUP, API_VERSION = "myelin.io", "v1alpha1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """What a kind is in a cluster, besides its document."""

    about: str
    short_name: str
    columns: tuple[str, ...]
    """What `kubectl get` shows; `URL` is `.status.url`, and so on."""
    wide: tuple[str, ...] = ()
    """What `kubectl get -o wide` shows as well."""
    status: tuple[str, ...] = ()
    """Keys of the status that not every kind has."""
    is_mirror: bool = False
    """Whether the object only shows what Git says."""


DEFINITIONS: Mapping[str, Definition] = {
    "Project": Definition(
        about="A repository and branch that Myelin follows, and whose commits it acts on.",
        short_name="mproj",
        columns=("Revision", "Ready", "Reason", "Age"),
        wide=("Message",),
        status=("signer", "unsigned", "outcomes"),
    ),
    "Axon": Definition(
        about="Tasks, sensors and deployments of one service, as the followed commit has them.",
        short_name="ax",
        columns=("Revision", "Version", "Share", "Ready", "Reason"),
        status=("axon", "outcomes"),
        is_mirror=True,
    ),
    "Release": Definition(
        about="Which versions of an axon serve, with which share, as the followed commit has it.",
        short_name="mrel",
        columns=("Axon", "Version", "Share", "Traffic", "Ready", "Reason"),
        status=("axon", "traffic"),
        is_mirror=True,
    ),
    "Version": Definition(
        about="The signed record of what serves, and of what it was made from.",
        short_name="mver",
        columns=("Axon", "Share", "Ready", "Reason"),
        wide=("URL",),
        status=("axon",),
        is_mirror=True,
    ),
}
_ELSEWHERE = {"Ready": '.status.conditions[?(@.type=="Ready")].status', "Age": ".metadata.creationTimestamp"}
_TYPES = {"Share": "integer", "Age": "date"}


def json_schema(kind: str) -> dict[str, Any]:
    """The JSON Schema of a document as it lies in Git.

    Args:
        kind: One of `policies.parsing.KINDS`.
    """
    shape = shape_of(KINDS[kind])
    # `kind` has a default in its type, but a document without it is none of ours.
    shape = replace(shape, about=DEFINITIONS[kind].about, required=("kind", *shape.required))
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": kind, **draft_7(shape)}


def custom_resource_definition(kind: str) -> dict[str, Any]:
    """What tells an API server of a kind.

    Args:
        kind: One of `policies.parsing.KINDS`.
    """
    definition, singular = DEFINITIONS[kind], kind.lower()
    names = {
        "kind": kind,
        "listKind": f"{kind}List",
        "plural": f"{singular}s",
        "singular": singular,
        "shortNames": [definition.short_name],
        "categories": ["myelin"],
    }
    version = {
        "name": API_VERSION,
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "additionalPrinterColumns": [
            *(_column(name) for name in definition.columns),
            *({**_column(name), "priority": 1} for name in definition.wide),
        ],
        "schema": {"openAPIV3Schema": _object(kind)},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{singular}s.{GROUP}"},
        "spec": {"group": GROUP, "scope": "Namespaced", "names": names, "versions": [version]},
    }


def as_yaml(value: Any) -> str:
    """Plain values as YAML that says the same in version 1.2, and in 1.1, which kubectl and helm read.

    `policies[].on` is a key of ours, and a bare `on` is true in 1.1.
    """
    return "".join(f"{line}\n" for line in _lines(value))


def _object(kind: str) -> dict[str, Any]:
    """The schema of a whole object: the document with Kubernetes' metadata and a status."""
    shape, definition = shape_of(KINDS[kind]), DEFINITIONS[kind]
    keys = {key: structural(item) for key, item in shape.keys.items() if key not in ("apiVersion", "kind", "metadata")}
    if definition.is_mirror:
        # One unit for server-side apply: what somebody adds inside is gone once Git's word is applied again. For the same
        # reason no list of a document is merged by key.
        keys["spec"] = {"x-kubernetes-map-type": "atomic", **keys["spec"]}
    # Nothing but the name may be ruled here; the API server has rules of its own for the rest.
    rules = shape.keys["metadata"].keys["name"].rules
    metadata = {"type": "object", **({"properties": {"name": {"type": "string", **rules}}} if rules else {})}
    required = [key for key in shape.required if key in keys]
    return {
        "description": definition.about,
        "type": "object",
        **({"required": required} if required else {}),
        "properties": {
            "apiVersion": _TEXT,
            "kind": _TEXT,
            "metadata": metadata,
            **keys,
            "status": {
                "description": "What was seen and done; Myelin alone writes it.",
                "type": "object",
                "properties": {key: _STATUS[key] for key in (*_EVERY_STATUS, *definition.status)},
            },
        },
    }


def _column(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": _TYPES.get(name, "string"),
        "jsonPath": _ELSEWHERE.get(name, f".status.{name.lower()}"),
    }


_TEXT: Mapping[str, Any] = {"type": "string"}
_COUNT: Mapping[str, Any] = {"type": "integer", "format": "int64", "minimum": 0}
_CONDITION: Mapping[str, Any] = {
    "type": "object",
    "required": ["type", "status", "lastTransitionTime", "reason", "message"],
    "properties": {
        "type": {"type": "string", "minLength": 1, "maxLength": 316},
        "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
        "observedGeneration": _COUNT,
        "lastTransitionTime": {"type": "string", "format": "date-time"},
        "reason": {"type": "string", "maxLength": 1024, "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
        "message": {"type": "string", "maxLength": 32768},
    },
}
"""Source: metav1.Condition."""
_STATUS: Mapping[str, Mapping[str, Any]] = {
    "observedGeneration": {"description": "The generation of the object that this is about.", **_COUNT},
    "conditions": {
        "description": "Ready, and Reconciling and Stalled while they are true, as kstatus reads them.",
        "type": "array",
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": _CONDITION,
    },
    "revision": {"description": "The commit that was acted on, as branch@sha1 and its 40 digits.", **_TEXT},
    "version": {"description": "The version with the greatest share.", **_TEXT},
    "share": {"description": "Percent of the traffic.", "type": "integer", "format": "int32", "minimum": 0, "maximum": 100},
    "reason": {"description": "Why it is as it is, in one word.", **_TEXT},
    "message": {"description": "Why it is as it is, and what to do next.", **_TEXT},
    "url": {"description": "Where it answers.", **_TEXT},
    "axon": {"description": "The axon that it belongs to.", **_TEXT},
    "traffic": {"description": "All versions that serve, with their shares.", **_TEXT},
    "signer": {"description": "Who signed the commit that was acted on.", **_TEXT},
    "unsigned": {"description": "How many unsigned commits were accepted, as the pin allows it.", **_COUNT},
    "outcomes": {
        "description": "What the last pass came to.",
        "type": "array",
        "items": {
            "type": "object",
            "required": ["state", "subject", "reason"],
            "properties": {
                "state": {"type": "string", "enum": ["done", "waiting", "stalled"]},
                "subject": _TEXT,
                "reason": _TEXT,
                "message": _TEXT,
            },
        },
    },
}
_EVERY_STATUS = ("observedGeneration", "conditions", "revision", "version", "share", "reason", "message", "url")

_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./'-]*([,;]? [A-Za-z0-9(][A-Za-z0-9_./()'-]*)*")
_READ_OTHERWISE = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}


def _lines(value: Any) -> Iterator[str]:
    """A value, line by line; the entries of a list stand right below their key."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            lines = list(_lines(item))
            if isinstance(item, (Mapping, list)) and item:
                yield f"{_scalar(key)}:"
                yield from (f"  {line}" if isinstance(item, Mapping) else line for line in lines)
            else:
                yield f"{_scalar(key)}: {lines[0]}"
    elif isinstance(value, list) and value:
        for item in value:
            first, *rest = _lines(item)
            yield f"- {first}"
            yield from (f"  {line}" for line in rest)
    else:
        yield _scalar(value)


def _scalar(value: Any) -> str:
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _READ_OTHERWISE:
        return value
    # Any text that JSON writes is text to YAML.
    return json.dumps(value, ensure_ascii=False)
