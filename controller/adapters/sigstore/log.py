"""The embedded transparency log: what Rekor says of its entries, made from leaves that somebody else keeps.

Laws: the same body has one place for ever; every checkpoint that was signed is of a tree that all later ones begin with.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from controller.adapters.sigstore.leaves import Leaf, Leaves
from controller.adapters.sigstore.merkle import Tree, leaf_hash
from policies.canonical import canonical
from policies.errors import DesiredStateError

RECENT = 65536
"""Leaves among which one is looked for that may be there already: what is done again after a crash is done soon."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Logged:
    """An entry with its place, and the proof of it."""

    leaf: Leaf
    place: int
    log_id: bytes
    promise: bytes
    """The log's signature that it has the entry since then (SET)."""
    size: int
    """Of the tree that the proof is for."""
    root: bytes
    proof: tuple[bytes, ...]
    checkpoint: str
    """The signed note about that tree."""

    @property
    def uuid(self) -> str:
        """How Rekor names it: the hash of the leaf."""
        return leaf_hash(self.leaf.body).hex()

    def in_bundle(self) -> dict[str, Any]:
        """As a Sigstore bundle has it."""
        said = json.loads(self.leaf.body)
        return {
            "logIndex": str(self.place),
            "logId": {"keyId": _text64(self.log_id)},
            "kindVersion": {"kind": said["kind"], "version": said["apiVersion"]},
            "integratedTime": str(self.leaf.at_seconds),
            "inclusionPromise": {"signedEntryTimestamp": _text64(self.promise)},
            "inclusionProof": {
                "logIndex": str(self.place),
                "rootHash": _text64(self.root),
                "treeSize": str(self.size),
                "hashes": [_text64(item) for item in self.proof],
                "checkpoint": {"envelope": self.checkpoint},
            },
            "canonicalizedBody": _text64(self.leaf.body),
        }

    def in_rekor(self) -> dict[str, Any]:
        """As Rekor's first API answers."""
        proof = {
            "checkpoint": self.checkpoint,
            "hashes": [item.hex() for item in self.proof],
            "logIndex": self.place,
            "rootHash": self.root.hex(),
            "treeSize": self.size,
        }
        verification = {"inclusionProof": proof, "signedEntryTimestamp": _text64(self.promise)}
        return {self.uuid: {**_promised(self.leaf, self.place, self.log_id), "verification": verification}}


class Log:
    """The log over some leaves.

    Args:
        leaves: What it has taken in.
        sign: The log's ECDSA signature (DER, SHA-256) of some bytes.
        log_id: SHA-256 of its public key's DER.
        origin: Its name, without spaces.
        now: The clock.
        recent: Among how many of the last leaves one is looked for before the leaves are asked.
    """

    def __init__(
        self,
        leaves: Leaves,
        sign: Callable[[bytes], bytes],
        *,
        log_id: bytes,
        origin: str,
        now: Callable[[], datetime],
        recent: int = RECENT,
    ) -> None:
        self._leaves, self._sign, self._now, self._recent = leaves, sign, now, recent
        self.log_id, self.origin, self.tree_id = log_id, origin, int.from_bytes(log_id[:8], "big") >> 1
        self._tree = Tree()
        self._lock = threading.Lock()

    def add(self, bodies: Sequence[bytes]) -> tuple[Logged, ...]:
        """Take entries in together; those that are in already keep their place and time.

        Raises:
            OutsideError: They may not be in for good yet; adding them again is right.
            TrustError: What was in before is not any more.
        """
        with self._lock:
            seen = self._catch_up()
            hashes = [leaf_hash(body) for body in bodies]
            at_seconds, recent = int(self._now().timestamp()), max(0, self._tree.size - self._recent)
            places = {named: self._tree.find(named, recent) for named in hashes}
            # The leaves pass over what they have already: what is longer ago, and a body that comes twice in one call.
            missing = [
                Leaf(body=body, at_seconds=at_seconds)
                for body, named in zip(bodies, hashes, strict=True)
                if places[named] is None
            ]
            if missing:
                self._leaves.append(missing)
                new = self._catch_up()
                seen |= new
                places |= {leaf_hash(leaf.body): place for place, leaf in new.items()}
            return tuple(self._logged(self._place(named) if (at := places[named]) is None else at, seen) for named in hashes)

    def at(self, place: int) -> Logged:
        """The entry of a place.

        Raises:
            DesiredStateError: There is none.
        """
        with self._lock:
            self._catch_up()
            if not 0 <= place < self._tree.size:
                raise DesiredStateError(f"log entry {place}: expected one below {self._tree.size}", reason="NoSuchName")
            return self._logged(place, {})

    def find(self, named: bytes) -> Logged:
        """The entry with the hash of its leaf.

        Raises:
            DesiredStateError: There is none.
        """
        with self._lock:
            self._catch_up()
            return self._logged(self._place(named), {})

    def head(self) -> tuple[int, bytes, str]:
        """Size, root and checkpoint of the whole log, now."""
        with self._lock:
            self._catch_up()
            size, root = self._tree.size, self._tree.root()
            return size, root, self._checkpoint(size, root)

    def consistency(self, first: int, second: int) -> tuple[bytes, ...]:
        """The proof that the tree of one size begins with that of another.

        Raises:
            ValueError: It never had such a size.
        """
        with self._lock:
            self._catch_up()
            return self._tree.consistency(first, second)

    def _catch_up(self) -> dict[int, Leaf]:
        """Take in what came meanwhile, by whomever; returns it by place."""
        seen = {}
        for leaf in self._leaves.since(self._tree.size):
            seen[self._tree.append(leaf_hash(leaf.body))] = leaf
        return seen

    def _place(self, named: bytes) -> int:
        if (place := self._tree.find(named)) is None:
            raise DesiredStateError(f"log entry {named.hex()}: expected one of the log, got none", reason="NoSuchName")
        return place

    def _logged(self, place: int, seen: dict[int, Leaf]) -> Logged:
        leaf = seen[place] if place in seen else next(iter(self._leaves.since(place)))
        size, root = self._tree.size, self._tree.root()
        return Logged(
            leaf=leaf,
            place=place,
            log_id=self.log_id,
            promise=self._sign(canonical(_promised(leaf, place, self.log_id))),
            size=size,
            root=root,
            proof=self._tree.inclusion(place),
            checkpoint=self._checkpoint(size, root),
        )

    def _checkpoint(self, size: int, root: bytes) -> str:
        """The signed note of a tree: its text, and a line with the signer's name and the start of the key's digest.

        Clients tell by the number behind the origin that this is a log of Rekor's first kind.
        """
        note = f"{self.origin} - {self.tree_id}\n{size}\n{_text64(root)}\n"
        return f"{note}\n\u2014 {self.origin} {_text64(self.log_id[:4] + self._sign(note.encode()))}\n"


def _promised(leaf: Leaf, place: int, log_id: bytes) -> dict[str, Any]:
    return {"body": _text64(leaf.body), "integratedTime": leaf.at_seconds, "logID": log_id.hex(), "logIndex": place}


def _text64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
