"""Provenance of images, SLSA v1: written from what went in, and read back. Pure: no clock, no disk.

What a person asked for lies in `externalParameters`, what the builder chose in `internalParameters`, and what went in, by
digest, in `resolvedDependencies`; nothing else is needed to build the image again. Times are in `runDetails.metadata` alone.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from policies.provenance import BUILD_TYPES, PYTHON_BUILD, source_purl, wheel_purl
from policies.terms.build import NO_RULES, BuildRules, BuildSecret
from policies.terms.source import Elsewhere, Submodule
from policies.terms.task import ImageSpec

MODULE = "submodule "
"""What a submodule is called, before its path."""
FROM_DOCKERFILE = "from "
"""What an image that a Dockerfile names is called, before its name there."""
ELSEWHERE = ("repo", "revision", "sourceCommit")


@dataclass(frozen=True, slots=True, kw_only=True)
class Making:
    """How an image was built, besides what was asked for and what went in."""

    build_type: str = PYTHON_BUILD
    repository: str = ""
    """URL of the watched repository, without a login."""
    base_digest: str = ""
    """Of the manifest that was built on; empty for none."""
    internal: Mapping[str, Any] = field(default_factory=dict)
    """What the builder chose: python, platform, epoch, compressor, runtime (digest), the report on reproducibility …"""
    arguments: Mapping[str, str] = field(default_factory=dict)
    """Arguments of a Dockerfile's build; never secrets."""
    images: Mapping[str, str] = field(default_factory=dict)
    """Name in a Dockerfile -> digest of what it was pinned to."""
    tools: Mapping[str, str] = field(default_factory=dict)
    """Program -> version; they make no difference to the bytes, or `internal` has them."""


def provenance_of(spec: ImageSpec, materials: Mapping[str, Any], making: Making) -> dict[str, Any]:
    """Where an image comes from, without the times of the run.

    Args:
        spec: What was asked for.
        materials: What went in, as the ledger has it: `wheels` (file -> digest), `sources` (file of a source distribution
            that a wheel was built of -> digest), `data` (path -> digest), `submodules` (path -> `url@sha1:commit`).
        making: How.
    """
    return {
        "buildDefinition": {
            "buildType": making.build_type,
            "externalParameters": _outer(spec, making),
            "internalParameters": {"base": spec.base, **making.internal},
            "resolvedDependencies": _dependencies(spec, materials, making),
        },
        "runDetails": {
            "builder": {"id": making.build_type, **({"version": dict(making.tools)} if making.tools else {})},
        },
    }


def finished(provenance: Mapping[str, Any], at: datetime, *, started_at: datetime | None = None) -> dict[str, Any]:
    """The same, with the times of its run."""
    times = {"finishedOn": at.isoformat(), **({"startedOn": started_at.isoformat()} if started_at else {})}
    return {**provenance, "runDetails": {**provenance["runDetails"], "metadata": times}}


def materials_of(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What went into an image, as its provenance says.

    Raises:
        ValueError: It is no provenance of ours that says so; also KeyError and TypeError.
    """
    definition = provenance["buildDefinition"]
    if definition["buildType"] not in BUILD_TYPES:
        raise ValueError(definition["buildType"])
    outer, inner = definition["externalParameters"], definition["internalParameters"]
    listed = definition["resolvedDependencies"]
    source = outer.get("source", outer)
    within = {
        item["name"].removeprefix(MODULE): f"{_url(item['uri'])}@sha1:{item['digest']['gitCommit']}"
        for item in listed
        if item["name"].startswith(MODULE)
    }
    data = [item for item in listed if item["name"].startswith("app/")]
    wheels = [item for item in listed if item["name"].endswith(".whl") and not item["name"].startswith("app/")]
    sources = [item for item in listed if source_purl(item["name"]) and item.get("uri") == source_purl(item["name"])]
    return {
        **{key: source[key] for key in ("commit", "folder", "tree", *ELSEWHERE) if key in source},
        **{key: inner[key] for key in ("base", "python", "runtime") if key in inner},
        "wheels": {item["name"]: "sha256:" + item["digest"]["sha256"] for item in wheels},
        **({"sources": {item["name"]: "sha256:" + item["digest"]["sha256"] for item in sources}} if sources else {}),
        **({"data": {item["name"]: ":".join(*item["digest"].items()) for item in data}} if data else {}),
        **({"submodules": within} if within else {}),
    }


def spec_of(provenance: Mapping[str, Any], rules: BuildRules = NO_RULES) -> ImageSpec:
    """What was asked for, so that it can be asked for again; what went in is pinned by the provenance itself.

    Args:
        provenance: Of an image of ours.
        rules: Where and within which bounds it is built; what the provenance says of the rest goes before them.

    Raises:
        ValueError: It is no provenance of an image that was built from source; also KeyError and TypeError.
    """
    definition = provenance["buildDefinition"]
    kind, outer, inner = str(definition["buildType"]), definition["externalParameters"], definition["internalParameters"]
    builder = next((name for name in ("python", "dockerfile") if f"/{name}/" in kind), "")
    if kind not in BUILD_TYPES or not builder:
        raise ValueError(kind)
    source = outer.get("source", outer)
    listed = definition["resolvedDependencies"]
    modules = tuple(
        Submodule(path=item["name"].removeprefix(MODULE), url=_url(item["uri"]), commit=item["digest"]["gitCommit"])
        for item in listed
        if item["name"].startswith(MODULE)
    )
    elsewhere = Elsewhere(repo=source["repo"], revision=source.get("revision", "")) if "repo" in source else None
    return ImageSpec(
        repository=source["folder"] or "image",
        commit=source["commit"],
        folder=source["folder"],
        tree=source["tree"],
        base=str(outer.get("base", inner.get("base", "host"))),
        builder=builder,
        dockerfile=outer.get("dockerfile", ""),
        event_set=outer.get("eventSet", ""),
        source=elsewhere,
        source_commit=source["sourceCommit"] if elsewhere is not None else "",
        # What was once within the project's bounds is read whatever they are now: its digest is known.
        largest_bytes=sys.maxsize,
        submodules=modules if elsewhere is None else (),
        reads_submodules=bool(modules) and elsewhere is not None,
        rules=replace(
            rules,
            precompile=outer.get("precompile"),
            platforms=tuple(outer.get("platforms", ())),
            stamps=outer.get("stamp") == "commit",
            reproducibility="off",
            requires_hashes=False,
            # Which base was built on is known by its digest.
            base_signers=(),
        ),
        builder_image=outer.get("builderImage", ""),
        network=bool(outer.get("network", False)),
        secrets=tuple(BuildSecret(name=item["name"], path=item["path"]) for item in outer.get("secrets", ())),
    )


def _outer(spec: ImageSpec, making: Making) -> dict[str, Any]:
    source: dict[str, Any] = {"commit": spec.commit, "folder": spec.folder, "tree": spec.tree}
    if making.repository:
        source["uri"] = making.repository
    if spec.source is not None:
        source |= {"repo": spec.source.repo, "revision": spec.source.revision, "sourceCommit": spec.source_commit}
    said: dict[str, Any] = {"source": source, "eventSet": spec.event_set, "builder": spec.builder, "base": spec.base}
    said |= {"dockerfile": spec.dockerfile} if spec.dockerfile else {}
    said |= {"builderImage": spec.builder_image} if spec.builder_image else {}
    said |= {"arguments": dict(making.arguments)} if making.arguments else {}
    said |= {"network": True} if spec.network else {}
    # Their names and places, so that somebody who builds it again knows what to bring; what they say is nowhere.
    said |= {"secrets": [{"name": item.name, "path": item.path} for item in spec.secrets]} if spec.secrets else {}
    rules = spec.rules
    said |= {"precompile": rules.precompile} if rules.precompile is not None else {}
    said |= {"platforms": list(rules.platforms)} if rules.platforms else {}
    said |= {"stamp": "commit"} if rules.stamps else {}
    return said


def _dependencies(spec: ImageSpec, materials: Mapping[str, Any], making: Making) -> list[dict[str, Any]]:
    commit, url = (spec.commit, making.repository) if spec.source is None else (spec.source_commit, spec.source.repo)
    found: list[dict[str, Any]] = [{"name": "source", **_uri(url), "digest": {"gitCommit": commit}}]
    for path, pinned in materials.get("submodules", {}).items():
        address, _, module = pinned.rpartition("@sha1:")
        found.append({"name": f"{MODULE}{path}", **_uri(address), "digest": {"gitCommit": module}})
    if making.base_digest:
        found.append({"name": "base", "uri": spec.base, "digest": _sha256(making.base_digest)})
    found += [
        {"name": f"{FROM_DOCKERFILE}{name}", "uri": name, "digest": _sha256(digest)} for name, digest in making.images.items()
    ]
    for name, digest in materials.get("wheels", {}).items():
        purl = wheel_purl(name)
        found.append({"name": name, **({"uri": purl} if purl else {}), "digest": _sha256(digest)})
    for name, digest in materials.get("sources", {}).items():
        found.append({"name": name, **_uri(source_purl(name)), "digest": _sha256(digest)})
    for path, digest in materials.get("data", {}).items():
        found.append({"name": path, "digest": dict([digest.split(":", 1)])})
    if runtime := making.internal.get("runtime"):
        found.append({"name": "runtime", "digest": _sha256(runtime)})
    return found


def _uri(url: str) -> dict[str, str]:
    """How SLSA writes a Git repository."""
    return {"uri": f"git+{url}" if "://" in url else url} if url else {}


def _url(uri: str) -> str:
    return uri.removeprefix("git+")


def _sha256(digest: str) -> dict[str, str]:
    return {"sha256": digest.removeprefix("sha256:")}
