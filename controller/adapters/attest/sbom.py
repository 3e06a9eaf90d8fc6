"""The door to CycloneDX: what is in an image, for scanners, written from its provenance.

Equal provenance gives equal bytes: no serial number, no clock. What lies in the base image is not listed, as we never unpack it;
the base is one component, by digest, and its own maker's list says the rest.

Source:
    CycloneDX 1.6 (ECMA-424); Package URL specification.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import count
from typing import TYPE_CHECKING, Any

from controller.adapters.attest.provenance import FROM_DOCKERFILE, MODULE
from policies.provenance import image_purl, source_purl, wheel_purl

if TYPE_CHECKING:
    from cyclonedx.model.component import Component, ComponentType

MANUFACTURED = ("serialNumber",)
"""What the library makes up, and the standard does not ask for."""


def sbom_of(digest: str, repository: str, *provenances: Mapping[str, Any]) -> dict[str, Any]:
    """What an image holds, as a CycloneDX 1.6 document.

    Args:
        digest: The image.
        repository: Its name within the registry.
        provenances: SLSA v1 predicates, as `provenance_of` or an earlier release writes them: its own, and those of images
            of ours that it is laid over.

    Raises:
        ValueError: It is no such predicate; also KeyError and TypeError.
    """
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output.json import JsonV1Dot6

    image = Component(
        type=ComponentType.CONTAINER, name=repository, version=digest, bom_ref=f"image@{digest}", hashes=_hashes(digest)
    )
    bom = Bom()
    bom.metadata.component = image
    parts: list[Component] = []
    known: set[str] = set()
    for part in (part for provenance in provenances for part in _components(provenance)):
        name = str(part.bom_ref.value)
        if name in known and any(part == other for other in parts):
            continue
        # Two of one name would be given names by chance.
        part.bom_ref.value = next(text for n in count(1) if (text := name if n == 1 else f"{name} {n}") not in known)
        known.add(part.bom_ref.value)
        parts.append(part)
    bom.components.update(parts)
    bom.register_dependency(image, parts)
    for part in parts:
        bom.register_dependency(part)
    value: dict[str, Any] = json.loads(JsonV1Dot6(bom).output_as_string())
    for key in MANUFACTURED:
        value.pop(key, None)
    value["metadata"].pop("timestamp", None)
    return value


def _components(provenance: Mapping[str, Any]) -> Iterator[Component]:
    from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, XsUri
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    definition = provenance["buildDefinition"]
    for item in definition["resolvedDependencies"]:
        name, uri, digests = str(item["name"]), str(item.get("uri", "")), item["digest"]
        kinds = {"sha256": HashAlgorithm.SHA_256, "md5": HashAlgorithm.MD5}
        hashes = [HashType(alg=kinds[kind], content=text) for kind, text in sorted(digests.items()) if kind in kinds]
        purl = wheel_purl(name) if name.endswith(".whl") and not name.startswith("app/") else ""
        if not purl and uri == source_purl(name):
            purl = uri
        if purl:
            package = PackageURL.from_string(purl)
            yield Component(
                type=ComponentType.LIBRARY,
                name=package.name,
                version=package.version,
                purl=package,
                # Wheels for several kinds of machine have one package URL.
                bom_ref=name,
                hashes=hashes,
            )
        elif name == "base" or name.startswith(FROM_DOCKERFILE):
            reference = uri if "@" in uri else f"{uri}@sha256:{digests['sha256']}"
            known = image_purl(reference)
            yield Component(
                type=ComponentType.CONTAINER,
                name=reference.partition("@")[0],
                version=f"sha256:{digests['sha256']}",
                purl=PackageURL.from_string(known) if known else None,
                bom_ref=name,
                hashes=hashes,
            )
        elif "gitCommit" in digests:
            place = [ExternalReference(type=ExternalReferenceType.VCS, url=XsUri(uri.removeprefix("git+")))] if uri else []
            kind = ComponentType.LIBRARY if name.startswith(MODULE) else ComponentType.APPLICATION
            yield Component(type=kind, name=name, version=digests["gitCommit"], bom_ref=name, external_references=place)
        else:
            yield Component(type=_kind(name), name=name, bom_ref=name, hashes=hashes)
    python = definition.get("internalParameters", {}).get("python")
    if python:
        yield Component(type=ComponentType.PLATFORM, name="python", version=str(python), bom_ref="python")


def _kind(name: str) -> ComponentType:
    from cyclonedx.model.component import ComponentType

    if name.startswith("myelin/in/model"):
        return ComponentType.MACHINE_LEARNING_MODEL
    if name.startswith(("app/", "myelin/in/")):
        return ComponentType.DATA
    return ComponentType.CONTAINER if name == "image" else ComponentType.LIBRARY


def _hashes(digest: str) -> list[Any]:
    from cyclonedx.model import HashAlgorithm, HashType

    return [HashType(alg=HashAlgorithm.SHA_256, content=digest.removeprefix("sha256:"))]
