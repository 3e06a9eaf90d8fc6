"""A run: one firing of a sensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Named by axon digest, sensor and event set."""

    id: str
    axon: str
    sensor: str
    events: tuple[str, ...]
    """Event ids, sorted."""
    event_set: str
    axon_digest: str
    commit: str
    """The commit whose manifest and source it works from."""
    started_at: datetime
    by: str = ""
    """Who signed that commit, by the name in `spec.trust.signers`; empty where nobody did."""
    superseded: str = ""
    """Why nothing more is done for it; empty while it counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRun:
    """How one step of a run ended."""

    id: str
    run: str
    axon: str
    task: str
    kind: str
    """`container`, `train`, `tune`, `deploy` or `rollback`."""
    state: Literal["Succeeded", "Failed"]
    at: datetime
    inputs: str = ""
    """Digest of all that it was made from; equal inputs reuse the result."""
    image: str = ""
    model: str = ""
    data: tuple[str, ...] = ()
    """Data artifacts that it read, or, for a container, that it left."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    trial: str = ""
    version: str = ""
    reason: str = ""
    message: str = ""
    reused: str = ""
    """The task run whose result this one takes over."""
