"""How a registry names manifests, and the index in which one that has no referrers API lists them. Nothing here is proved."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from controller.adapters.oci.layout import INDEX, MANIFEST
from policies.canonical import canonical
from policies.errors import DesiredStateError, TrustError
from policies.terms.digest import digest_of, is_digest

_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


def is_tag(text: str) -> bool:
    """Whether a registry takes `text` as a tag."""
    return _TAG.fullmatch(text) is not None


def checked_reference(text: str) -> str:
    """A tag or digest, as it stands in an address.

    Raises:
        DesiredStateError: It is neither.
    """
    if not is_digest(text) and not is_tag(text):
        raise DesiredStateError(f"tag {text[:200]!r}: expected at most 128 of A-Z a-z 0-9 . _ -", reason="BadTag")
    return text


def checked_digest(text: str) -> str:
    """A digest, as it stands in an address.

    Raises:
        TrustError: It is none.
    """
    if not is_digest(text):
        raise TrustError(f"blob {text[:80]!r}: expected sha256:<64 hex>")
    return text


def index_tag(subject: str) -> str:
    """The tag of the index that lists the referrers of a manifest."""
    return checked_digest(subject).replace(":", "-")


def held_tag(parent: str, digest: str) -> str:
    """A tag for a manifest that only another one lists, so that no clean-up takes it for something that nobody needs."""
    return f"{index_tag(parent)}.{checked_digest(digest).removeprefix('sha256:')[:12]}"


def index_of(entries: Sequence[dict[str, Any]]) -> bytes:
    """An index that lists these manifests."""
    return canonical({"schemaVersion": 2, "mediaType": INDEX, "manifests": list(entries)})


def index_entry(manifest: bytes) -> dict[str, Any]:
    """How an index lists a referrer: with its kind and annotations, which verifiers look for before they fetch it."""
    value = json.loads(manifest)
    media_type = str(value.get("mediaType", MANIFEST))
    kind = value.get("artifactType") or value["config"]["mediaType"]
    entry = {"mediaType": media_type, "digest": digest_of(manifest), "size": len(manifest), "artifactType": kind}
    return {**entry, "annotations": value.get("annotations", {})}


def tags_in(answer: bytes) -> list[str]:
    """The tags that a registry's list names."""
    try:
        return [str(item) for item in json.loads(answer).get("tags") or [] if is_tag(str(item))]
    except (ValueError, AttributeError, TypeError):
        return []


def listed(index: bytes | None) -> list[dict[str, Any]]:
    """What an index lists; anybody may have written it, so what makes no sense is left out."""
    try:
        found = json.loads(index or b"{}").get("manifests") or []
        return [item for item in found if isinstance(item, dict) and is_digest(str(item.get("digest")))]
    except (ValueError, AttributeError, TypeError):
        return []
