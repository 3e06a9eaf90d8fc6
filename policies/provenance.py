"""What provenance must say before an image counts as ours, and how it names what went in. Never who signed it.

Source:
    SLSA provenance v1 (buildType, builder.id, resolvedDependencies); Package URL specification, types `pypi` and `oci`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import quote

from policies.terms.digest import is_digest

BUILDERS = "https://myelin.io/builders"
PYTHON_BUILD = f"{BUILDERS}/python/v2"
"""From wheels and source, without a daemon."""
DOCKERFILE_BUILD = f"{BUILDERS}/dockerfile/v1"
"""By buildah or BuildKit."""
COMPOSED = "myelin.io/builders/compose/v1"
"""Data and models laid over another image of ours."""
CONTROLLER_BUILD = "myelin.io/builders/controller/v1"
"""The controller's own image."""
BUILD_TYPES = frozenset({PYTHON_BUILD, DOCKERFILE_BUILD, COMPOSED, CONTROLLER_BUILD, "myelin.io/builders/python/v1"})
"""All that we ever wrote, so that images of earlier releases still load."""
_WHEEL = re.compile(r"(?P<name>[A-Za-z0-9._]+)-(?P<version>[A-Za-z0-9._!+]+)(-\d[A-Za-z0-9._]*)?(-[A-Za-z0-9._]+){3}\.whl")

_SOURCE = re.compile(r"(?P<name>[A-Za-z0-9._-]+)-(?P<version>[0-9][A-Za-z0-9._!+]*)\.(tar\.(gz|bz2|xz)|tgz|zip)")


def fault_of(predicate: object) -> str:
    """Why a provenance does not fit: *expected …, got …*; empty where it does.

    It fits where builder and build type are ours, and what went in is named by digests.
    """
    if not isinstance(predicate, Mapping):
        return "expected a mapping, got another value"
    definition, details = predicate.get("buildDefinition"), predicate.get("runDetails")
    builder = details.get("builder") if isinstance(details, Mapping) else None
    if not isinstance(definition, Mapping) or not isinstance(builder, Mapping):
        return "expected buildDefinition and runDetails.builder, got a provenance without"
    for what, got in (("a builder", builder.get("id")), ("a build type", definition.get("buildType"))):
        if got not in BUILD_TYPES:
            return f"expected {what} of Myelin, got {_shown(got)}"
    if not isinstance(definition.get("externalParameters"), Mapping):
        return "expected externalParameters, got none"
    listed = definition.get("resolvedDependencies")
    if not isinstance(listed, list | tuple):
        return "expected resolvedDependencies, got none"
    for item in listed:
        digest = item.get("digest") if isinstance(item, Mapping) else None
        if not isinstance(digest, Mapping) or not digest:
            name = item.get("name") if isinstance(item, Mapping) else item
            return f"expected a digest of each resolved dependency, got none of {_shown(name)}"
    return ""


def wheel_purl(file_name: str) -> str:
    """The package URL of a wheel, `pkg:pypi/name@version`; empty for what is no wheel's name."""
    match = _WHEEL.fullmatch(file_name)
    if match is None:
        return ""
    # PEP 503 names, as the purl type says; a wheel's file name has `_` where the name has `-`, `_` or `.`.
    name = re.sub(r"[-_.]+", "-", match["name"]).lower()
    return f"pkg:pypi/{name}@{quote(match['version'], safe=':')}"


def source_purl(file_name: str) -> str:
    """The package URL of a source distribution; empty for what is no such file's name."""
    match = _SOURCE.fullmatch(file_name)
    if match is None:
        return ""
    name = re.sub(r"[-_.]+", "-", match["name"]).lower()
    return f"pkg:pypi/{name}@{quote(match['version'], safe=':')}?file_name={quote(file_name, safe=':')}"


def image_purl(reference: str) -> str:
    """The package URL of an image `host/path@sha256:…`; empty for what is none."""
    repository, _, digest = reference.partition("@")
    head, _, last = repository.rpartition("/")
    name = last.partition(":")[0]
    if not name or not is_digest(digest):
        return ""
    place = quote(f"{head}/{name}" if head else name, safe="/:")
    return f"pkg:oci/{quote(name.lower())}@{quote(digest, safe=':')}?repository_url={place}"


def _shown(value: object) -> str:
    return repr(value if value is None or len(str(value)) <= 80 else str(value)[:80] + "…")
