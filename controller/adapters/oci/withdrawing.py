"""Clearing a registry of what nothing names any more: manifests by digest, where the registry lets us.

Laws: as of `cleaning.py`. A registry does not tell how old anything is, so something goes only after it was found unnamed
for the whole time of grace; who lost that memory waits again. Only what is ours goes: others may write to the same
repository. Blobs are the registry's own business.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from controller.adapters.attest.verifying import ImageTrust, bundles, verified
from controller.adapters.oci.cleaning import GRACE_SECONDS, SHORTEST_GRACE_SECONDS, Removed, Swept, manifest_of, used_lately
from controller.adapters.oci.layout import write_whole
from controller.adapters.oci.mirrored import MirroredLayout
from policies.errors import RefusedError, TrustError

_ATTACHED = re.compile(r"sha256-([0-9a-f]{64})(\..*)?")
"""Tags of what refers to a manifest: cosign's, those of our own, and those of registries without the referrers API."""
_ARTIFACT = re.compile(r"artifact-([0-9a-f]{64})")
JOB = "job-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ours:
    """How to tell what is ours in a repository that others may write to."""

    trust: ImageTrust
    """Whose signatures make something ours."""
    recorded: Collection[str]
    """Digests that our ledger names: what is not signed, as data."""
    is_job: Callable[[str], bool] = lambda name: False
    """Whether the result of a job of this name is there, and signed by us."""


def clear(
    layout: MirroredLayout,
    named: Collection[str],
    ours: Ours,
    *,
    jobs: Collection[str],
    memory: Path,
    now: datetime,
    grace_seconds: float = GRACE_SECONDS,
    dry_run: bool = False,
) -> Swept:
    """Remove from the registry what nothing names, and did not for the time of grace.

    Args:
        layout: The registry, and the folder in front of it, which knows what was used lately.
        named: Digests of images and artifacts that must stay.
        ours: What may be removed at all.
        jobs: Jobs whose results must stay.
        memory: File that says since when something is unnamed; lost, the time begins anew.
        now: This instant, UTC.
        grace_seconds: How long; at least an hour counts.
        dry_run: Only tell what would go.

    Raises:
        OutsideError: The registry does not answer, or the disk failed us. A refusal to remove is told in the answer.
    """
    grace = max(grace_seconds, SHORTEST_GRACE_SECONDS)
    known, since = _remembered(memory), dict[str, str]()
    tags = layout.registry.tags()
    attached = [tag for tag in tags if _ATTACHED.fullmatch(tag)]
    removed: list[Removed] = []
    refused, kept = "", 0
    there = _digests(layout, [tag for tag in tags if tag not in attached])
    for digest, names in sorted(there.items()):
        why = _why_unnamed(layout, digest, names, named, jobs)
        if not why or used_lately(layout, digest, grace) or not _is_ours(layout, digest, names, ours):
            kept += 1
            continue
        since[digest] = known.get(digest, now.isoformat())
        if (now - datetime.fromisoformat(since[digest])).total_seconds() < grace:
            kept += 1
            continue
        removed.append(Removed(name=min(names), digest=digest, size_bytes=_size(layout, digest), why=why))
    # What an index that stays lists may have had a name of its own once, or be listed by one that goes as well.
    left = known.keys() - there.keys()
    needed = _listed_by(layout, there.keys() - {item.digest for item in removed}) if removed or left else frozenset()
    kept += sum(item.digest in needed for item in removed)
    removed = [item for item in removed if item.digest not in needed]
    spared = needed | (there.keys() - {item.digest for item in removed})
    if not dry_run:
        gone = set()
        try:
            # Of what went before somebody died, what refers to it may be left.
            for digest in left:
                if not layout.registry.has_manifest(digest):
                    _withdraw_attached(layout, digest, attached, spared)
            for item in removed:
                if layout.withdraw(item.digest, lambda: not used_lately(layout, item.digest, grace)):  # noqa: B023  called at once
                    _withdraw_attached(layout, item.digest, attached, spared)
                    gone.add(item.digest)
                    since.pop(item.digest, None)
        except RefusedError as error:
            refused = error.message
        removed = [item for item in removed if item.digest in gone]
        write_whole(memory, json.dumps(since, sort_keys=True).encode())
    return Swept(removed=tuple(removed), kept=kept, refused=refused)


def _digests(layout: MirroredLayout, tags: Collection[str]) -> dict[str, list[str]]:
    """Digest -> its tags. Names of artifacts say it themselves; of others the registry is asked."""
    found: dict[str, list[str]] = {}
    for tag in tags:
        artifact = _ARTIFACT.fullmatch(tag)
        digest = f"sha256:{artifact[1]}" if artifact else layout.registry.resolve(tag)
        if digest is not None:
            found.setdefault(digest, []).append(tag)
    return found


def _why_unnamed(
    layout: MirroredLayout, digest: str, names: Collection[str], named: Collection[str], jobs: Collection[str]
) -> str:
    """Why nothing needs it any more; empty where something does."""
    if digest in named or any(name.removeprefix(JOB) in jobs for name in names if name.startswith(JOB)):
        return ""
    if all(name.startswith(JOB) for name in names):
        return "its job is forgotten"
    manifest = manifest_of(_manifest(layout, digest))
    if manifest is None or (manifest.parts and all(part in named for part in manifest.parts)):
        return ""
    return "what it is composed of is not in use any more" if manifest.parts else "nothing names it"


def _is_ours(layout: MirroredLayout, digest: str, names: Collection[str], ours: Ours) -> bool:
    if digest in ours.recorded:
        return True
    if all(name.startswith(JOB) for name in names):
        return all(ours.is_job(name.removeprefix(JOB)) for name in names)
    signed = list(_signed(layout, digest, ours.trust))
    return bool(signed) and all(signed)


def _signed(layout: MirroredLayout, digest: str, trust: ImageTrust) -> Iterator[bool]:
    """Of each bundle that is attached, whether one of ours made it."""
    for bundle in bundles(layout, digest):
        try:
            yield not isinstance(bundle, TrustError) and bool(verified(bundle, trust))
        except TrustError:
            yield False


def _listed_by(layout: MirroredLayout, digests: Collection[str]) -> frozenset[str]:
    """The images of the indexes among these."""
    found = (manifest_of(_manifest(layout, digest)) for digest in digests)
    return frozenset(child for manifest in found if manifest is not None for child in manifest.children)


def _withdraw_attached(layout: MirroredLayout, digest: str, attached: Collection[str], spared: Collection[str]) -> None:
    """Remove what refers to a manifest that is gone, and what only it listed: as the registry lists it, and by our tags."""
    referrers = [str(item.get("digest", "")) for item in layout.registry.referrers(digest)]
    tags = [tag for tag in attached if (found := _ATTACHED.fullmatch(tag)) and found[1] == digest.removeprefix("sha256:")]
    named = (layout.registry.resolve(tag) for tag in tags)
    for other in dict.fromkeys((*referrers, *(item for item in named if item is not None))):
        if other not in spared:
            layout.withdraw(other)


def _manifest(layout: MirroredLayout, digest: str) -> Any:
    try:
        data = layout.registry.manifest(digest)
        return json.loads(data) if data is not None else None
    except (TrustError, ValueError):
        return None


def _size(layout: MirroredLayout, digest: str) -> int:
    """How many bytes a manifest names; the registry may share them with others."""
    value = _manifest(layout, digest)
    try:
        if "manifests" in value:
            return sum(_size(layout, str(item["digest"])) for item in value["manifests"])
        return sum(int(item["size"]) for item in (value["config"], *value["layers"]))
    except (KeyError, TypeError, ValueError):
        return 0


def _remembered(memory: Path) -> Mapping[str, str]:
    try:
        found = json.loads(memory.read_bytes())
        return {str(key): str(at) for key, at in found.items() if datetime.fromisoformat(str(at)).tzinfo is not None}
    except (OSError, ValueError, AttributeError):
        return {}
