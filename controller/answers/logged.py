"""The embedded transparency log's part of `verify`: its tree made anew from the ledger, and what bundles say that it was.

It asks nobody: the leaves are entries of the ledger, and each bundle brings its place, proof and signed checkpoint along.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from controller.adapters.attest.verifying import ImageTrust, bundles, verified
from controller.adapters.oci.layout import Layout
from controller.adapters.sigstore.leaves import KIND, leaf_of
from controller.adapters.sigstore.merkle import Tree, leaf_hash
from policies.errors import ControllerError, TrustError
from policies.terms.record import Entry

SHOWN = 5
"""Faults that are told; how many more there are is said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What a verified bundle says of the log."""

    subject: str
    """Digest of what was signed."""
    place: int
    """Of its entry, from 0."""
    body: bytes
    size: int
    """Of the tree that the log signed a checkpoint of."""
    root: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LogProof:
    """What checking the log came to."""

    entries: int
    compared: int
    """How many bundles were there to compare it with."""
    faults: tuple[str, ...]
    root: bytes

    @property
    def reason(self) -> str:
        """What is wrong, on one line; where nothing is, what it could not be compared with."""
        if not self.faults:
            return "" if self.compared else f"root {self.root.hex()}; no bundle is here to compare it with"
        more = f"; and {len(self.faults) - SHOWN} more" if len(self.faults) > SHOWN else ""
        return "; ".join(self.faults[:SHOWN]) + more


def check_log(entries: Iterable[Entry], said: Sequence[Said]) -> LogProof:
    """Make the log's tree anew, and see that it is the one that bundles say it was.

    Args:
        entries: The ledger's.
        said: What verified bundles say.
    """
    tree, faults, numbers = Tree(), list[str](), list[int]()
    for entry in entries:
        if entry.statement.kind != KIND:
            continue
        leaf = leaf_of(entry)
        if leaf is None:
            faults.append(
                f"entry {entry.number} of the ledger: expected a leaf of the log with the digest in its key, it was changed"
            )
            continue
        tree.append(leaf_hash(leaf.body))
        numbers.append(entry.number)
    faults += dict.fromkeys(fault for item in said for fault in _against(tree, numbers, item))
    return LogProof(entries=tree.size, compared=len(said), faults=tuple(faults), root=tree.root())


def said_in(layout: Layout | None, subjects: Iterable[str], trust: ImageTrust) -> list[Said]:
    """What the bundles of images and models say of embedded logs that are trusted; those that do not verify say nothing."""
    if layout is None or not trust.identities or not (logs := logs_of(trust)):
        return []
    return [said for subject in subjects for said in _of(layout, subject, trust, logs)]


def logs_of(trust: ImageTrust) -> frozenset[str]:
    """Names (base64 of the key's digest) of the embedded logs that vouch for somebody who is trusted."""
    # Heavy, and only for those who trust somebody without a key.
    from controller.adapters.sigstore.embedded import ISSUER

    found = set()
    for known in trust.identities:
        if known.issuer == ISSUER:
            try:
                found |= {str(log["logId"]["keyId"]) for log in json.loads(known.root)["tlogs"]}
            except (ValueError, KeyError, TypeError) as error:
                raise TrustError(
                    "image identities: expected a trusted root as JSON, got another text", reason="NoRoot"
                ) from error
    return frozenset(found)


def _of(layout: Layout, subject: str, trust: ImageTrust, logs: frozenset[str]) -> Iterator[Said]:
    try:
        attached = list(bundles(layout, subject))
    except ControllerError:
        return  # that it cannot be read is told of the image or model itself
    for bundle in attached:
        if isinstance(bundle, TrustError):
            continue
        try:
            entry = _entry(bundle)
            if entry is None or entry["logId"]["keyId"] not in logs:
                continue
            verified(bundle, trust)
            proof = entry["inclusionProof"]
            yield Said(
                subject=subject,
                place=int(proof.get("logIndex", 0)),
                body=base64.b64decode(entry["canonicalizedBody"]),
                size=int(proof["treeSize"]),
                root=base64.b64decode(proof["rootHash"]),
            )
        except (TrustError, ValueError, KeyError, TypeError, AttributeError):
            continue  # what does not verify says nothing


def _entry(bundle: bytes) -> Mapping[str, Any] | None:
    found: Sequence[Mapping[str, Any]] = json.loads(bundle)["verificationMaterial"].get("tlogEntries", ())
    return found[0] if found else None


def _against(tree: Tree, numbers: Sequence[int], said: Said) -> Iterator[str]:
    """What of the tree does not fit a bundle."""
    named, size = leaf_hash(said.body), tree.size
    at, of = tree.find(named), said.subject[:19]
    what = f"leaf {said.place} ({named.hex()[:12]}, of {of})"
    if at is None:
        yield f"{what}: expected it in the ledger, it was removed or changed"
    elif at != said.place:
        where = f"got place {at} (entry {numbers[at]} of the ledger)"
        yield f"{what}: expected it at its place, {where}; others were removed or put before it"
    if said.size > size:
        yield f"the log: expected at least {said.size} leaves, as {of} was signed with, got {size}"
    elif at == said.place and (root := tree.root(said.size)) != said.root:
        yield f"the log: expected the root {said.root.hex()[:12]} of its first {said.size} leaves, got {root.hex()[:12]}"
