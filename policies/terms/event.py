"""An event: one recorded occurrence of a trigger's circumstance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

TriggerKind = Literal["Commit", "Lifecycle", "Calendar", "Rest", "Alert", "Release"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Named by its inputs: the same occurrence seen twice is one event."""

    id: str
    """A digest of what makes it unique, see `policies.identity.event_id`."""
    kind: TriggerKind
    axon: str
    sensor: str
    trigger: str
    """Name of the trigger within its sensor."""
    at: datetime
    data: Mapping[str, Any] = field(default_factory=dict)
    """What the tasks may read as a file (`EVENT_PATH`), JSON values only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """An alert condition of a sensor that holds now, for one series."""

    axon: str
    sensor: str
    trigger: str
    condition: str
    """The PromQL text, after `{{metric}}` was expanded."""
    labels: Mapping[str, str]
    value: float
    """Not a number where nothing is measured."""
    threshold: float | None
    """The number that the condition compares with, where it has that shape."""
    since: datetime
    """When it began to fire: the end of its `for`."""
    version: str = ""
    """Label `version` of the series, when it has one."""
