"""Tuning, as a trial sees it: what to try, and how to say what came of it. Standard library only."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from typing import Any


def hpo_enabled() -> bool:
    """Whether this program runs as a trial."""
    return bool(os.environ.get("HPO_PARAMS"))


def get_hpo_config() -> dict[str, Any]:
    """`config-id`, `budget` and `hpo-conf` (a JSON text of the chosen values); empty outside of a trial."""
    if not hpo_enabled():
        return {}
    value: dict[str, Any] = json.loads(base64.b64decode(os.environ["HPO_PARAMS"]))
    return value


def get_hpo_params() -> dict[str, Any]:
    """The chosen values by name; empty outside of a trial."""
    config = get_hpo_config()
    return extract_hpo_params(config) if config else {}


def extract_hpo_params(config_map: Mapping[str, Any]) -> dict[str, Any]:
    """The chosen values by name, of what `get_hpo_config` gave."""
    return dict(json.loads(config_map["hpo-conf"]))


def publish_result(
    loss_metric: str | None,
    loss_value: Any,
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, Any] | None = None,
    additional_metrics: Mapping[str, Any] | None = None,
) -> None:
    """Say what came of a trial. `myelin.metric.publish_result` does the same with its arguments in another order.

    Args:
        loss_metric: Name of the metric that tuning optimises.
        loss_value: Its value, 0.0 included.
        params: Taken as the earlier client's callers give it; kept nowhere.
        tags: The same.
        additional_metrics: Other values by name.
    """
    from myelin import metric  # it imports this module

    config = get_hpo_config()
    metric.post_hpo_result(
        config.get("config-id", ""),
        extract_hpo_params(config) if config else {},
        config.get("budget"),
        loss_metric,
        loss_value,
        params,
        tags,
        {"loss value": loss_value},
        additional_metrics,
    )
