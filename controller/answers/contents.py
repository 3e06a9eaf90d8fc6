"""What is said of an image or a model by those who signed it, for people: who, by what, of which commit, on which base.

Whether it holds is decided elsewhere: what is told here was verified before.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from controller import image_keys
from controller.adapters.attest.provenance import FROM_DOCKERFILE, MODULE
from controller.adapters.attest.statements import PROVENANCE, SBOM, SIGNATURE, read_bundle
from controller.adapters.attest.verifying import Attested
from controller.adapters.keys import hint_of
from controller.adapters.models import signer_of
from controller.project import Place
from policies.provenance import COMPOSED


def names_of(place: Place, keys: Iterable[str]) -> dict[str, str]:
    """Hint of a key -> what people call it: the file that it lies in here, else where it is trusted by."""
    folder, found = place.state / "keys", {hint_of(key): "by the trust file" for key in keys}
    if not folder.is_dir():
        return found
    former = image_keys.former_in(folder)
    found |= {hint_of(public): name for name, public in former.items()}
    own = next((public for public in image_keys.public_in(folder) if public not in former.values()), "")
    file = next((name for name in image_keys.KINDS if (folder / name).exists()), image_keys.PUBLIC)
    return found | ({hint_of(own): file} if own else {})


def told_of_image(found: Attested, names: Mapping[str, str], is_trusted: Callable[[str], bool | None]) -> dict[str, Any]:
    """What is said of an image.

    Args:
        found: What was verified.
        names: Hint of a key -> what people call it.
        is_trusted: Whether a commit of the watched repository is trusted; None: it cannot be told.
    """
    definition = found.predicates[PROVENANCE]["buildDefinition"]
    outer, inner = definition["externalParameters"], definition.get("internalParameters") or {}
    source = outer.get("source", outer)
    parts = definition["resolvedDependencies"]
    base = next((item for item in parts if item.get("name") == "base"), None)
    commit = str(source.get("commit", ""))
    said: dict[str, Any] = {
        "signers": [_signer(who, names) for who in sorted(found.signers[SIGNATURE])],
        "builder": str(definition["buildType"]),
        "commit": commit,
        "commitTrusted": is_trusted(commit) if commit else None,
        "folder": str(source.get("folder", "")),
        "eventSet": str(outer.get("eventSet", "")),
        "base": str(outer.get("base", inner.get("base", ""))),
        "baseDigest": _digest(base) if base else "",
        "wheels": sum(_is_wheel(item) for item in parts),
        "sbom": SBOM in found.predicates,
        "reproducible": inner.get("reproducible"),
    }
    if "repo" in source:
        said["source"] = {"repo": source["repo"], "commit": source.get("sourceCommit", "")}
    if modules := {item["name"].removeprefix(MODULE): item.get("uri", "") for item in parts if _begins(item, MODULE)}:
        said["submodules"] = modules
    if images := {item["name"].removeprefix(FROM_DOCKERFILE): _digest(item) for item in parts if _begins(item, FROM_DOCKERFILE)}:
        said["images"] = images
    if definition["buildType"] == COMPOSED:
        said["composedOf"] = {"image": outer["image"], "places": outer["places"]}
    return said


def told_of_model(bundle: bytes, trusted: Iterable[str], names: Mapping[str, str]) -> dict[str, Any]:
    """Who signed a model, by the bundle that verified."""
    if read_bundle(bundle).has_certificate:
        # Heavy, and only for those who sign without keys.
        from controller.adapters.sigstore.keyless import signer_of as identity_of

        return {"signers": [_signer(" ".join(identity_of(bundle)), names)]}
    public = signer_of(bundle, tuple(trusted))
    return {"signers": [_signer(hint_of(public), names)] if public else []}


def lines_of(details: Mapping[str, Any]) -> Iterator[str]:
    """The same as lines of text."""
    yield (
        "signed by " + ", ".join(_named(item) for item in details.get("signers", ())) if details.get("signers") else "not signed"
    )
    if "builder" not in details:
        return
    yield f"built by {details['builder']}"
    if details["commit"]:
        words = {True: "trusted", False: "NOT TRUSTED", None: "trust not known here"}[details["commitTrusted"]]
        yield f"of commit {details['commit']} ({words}), {details['folder'] or '/'}, event set {details['eventSet'] or 'none'}"
    if other := details.get("source"):
        yield f"source {other['repo']} at {other['commit']}"
    for path, uri in details.get("submodules", {}).items():
        yield f"submodule {path} of {uri}"
    if made := details.get("composedOf"):
        places = "; ".join(f"{place} {', '.join(parts)}" for place, parts in made["places"].items())
        yield f"laid over {made['image']}: {places}"
    if details["base"]:
        by = f", signed by {details['baseSignedBy']}" if details.get("baseSignedBy") else ""
        yield f"base {details['base']}{by}"
    for name, digest in details.get("images", {}).items():
        yield f"from {name}, which was {digest}"
    parts = [f"{details['wheels']} wheels", "bill of materials" if details["sbom"] else "NO bill of materials"]
    report = details["reproducible"]
    parts += (
        []
        if report is None
        else ["came out the same twice" if report is True else f"differed in {len(report)} ways when built twice"]
    )
    yield ", ".join(parts)


def _signer(who: str, names: Mapping[str, str]) -> dict[str, str]:
    if " " in who:
        identity, _, issuer = who.rpartition(" ")
        return {"identity": identity, "issuer": issuer}
    return {"key": who, "id": base64.b64decode(who)[:4].hex(), "name": names.get(who, "")}


def _named(signer: Mapping[str, str]) -> str:
    if "identity" in signer:
        return f"{signer['identity']} ({signer['issuer']})"
    return f"key {signer['id']}" + (f" ({signer['name']})" if signer["name"] else "")


def _is_wheel(item: Mapping[str, Any]) -> bool:
    name = str(item.get("name", ""))
    return name.endswith(".whl") and not name.startswith("app/")


def _begins(item: Mapping[str, Any], prefix: str) -> bool:
    return str(item.get("name", "")).startswith(prefix)


def _digest(item: Mapping[str, Any]) -> str:
    return ":".join(next(iter(item["digest"].items())))
