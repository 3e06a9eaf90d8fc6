"""What is measured: an address whose metrics are read, and a condition on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """An address whose metrics are read."""

    address: str
    path: str
    labels: Mapping[str, str]
    """Added to every series: axon, deployer, version, model, backend, job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertRule:
    """An alert trigger of a sensor."""

    axon: str
    sensor: str
    trigger: str
    condition: str
    """PromQL, with `{{metric}}` already expanded."""
    for_seconds: float = 0.0
    no_data_fires: bool = False
    """`noData: fire`: that nothing is measured counts as the condition."""
