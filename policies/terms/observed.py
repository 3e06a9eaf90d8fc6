"""Observed state: what one look found outside of Git's main branch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from policies.terms.event import Alert, Event
from policies.terms.run import Run, TaskRun
from policies.terms.task import ImageState, JobState, ServerState
from policies.terms.trial import Ask, Tell


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What the ledger says was done: the fold of its entries."""

    entries: int = 0
    head: str = ""
    """Digest of the newest entry."""
    events: Mapping[str, Event] = field(default_factory=dict)
    """Event id -> event, in the order of record."""
    runs: Mapping[str, Run] = field(default_factory=dict)
    tasks: Mapping[str, TaskRun] = field(default_factory=dict)
    """Task run id -> how it ended, in the order of record."""
    asks: Mapping[str, tuple[Ask, ...]] = field(default_factory=dict)
    """Task run id -> its suggestions, in the order of record."""
    tells: Mapping[str, tuple[Tell, ...]] = field(default_factory=dict)
    resolved: frozenset[str] = frozenset()
    """Event ids of alerts that ended."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Inputs digest -> the newest succeeded task run made from them."""
    deploying: Mapping[str, datetime] = field(default_factory=dict)
    """Task run id of a deployment -> since when its servers are being started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """One look."""

    recorded: Recorded
    is_pushed: bool = True
    """Whether all that is recorded has left this machine's write-ahead log."""
    jobs: Mapping[str, JobState] = field(default_factory=dict)
    servers: Mapping[str, ServerState] = field(default_factory=dict)
    images: Mapping[str, ImageState] = field(default_factory=dict)
    """Image identity -> what is known; absent when nobody started it."""
    alerts: tuple[Alert, ...] = ()
    """Conditions that hold now."""
    received: tuple[Event, ...] = ()
    """What came in by HTTP and is not recorded yet."""
