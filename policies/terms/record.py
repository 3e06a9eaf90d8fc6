"""A ledger entry: one signed statement of what happened, chained to the one before by digest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from policies.terms.digest import Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """What is to be recorded, before it has a place in the chain.

    Law: recording a statement whose `key` is in the ledger already changes nothing.
    """

    kind: str
    """`event`, `run`, `image`, `task`, `ask`, `tell`, `version`, `alert`, `change`, `superseded` …"""
    key: str
    """Unique for ever: `event/<id>`, `task/<task run id>`, `tell/<task run id>/<trial>/<rung>` …"""
    axon: str
    body: Mapping[str, Any]
    """JSON values only. Never a secret."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A statement with its place: number, instant, predecessor and signature."""

    number: int
    """From 1."""
    at: datetime
    statement: Statement
    previous: Digest | None
    """Digest of the entry before; None for the first."""
    digest: Digest
    """Over the canonical form of everything but digest and signature."""
    signature: str
    """Base64 of the controller key's signature over the digest text."""
