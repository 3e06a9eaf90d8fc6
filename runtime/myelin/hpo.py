"""Tuning, as a trial sees it: what to try, and how to say what came of it."""

from __future__ import annotations

import base64
import json
import os
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
    return dict(json.loads(config["hpo-conf"])) if config else {}


def publish_result(
    loss_value: float,
    loss_metric: str | None = None,
    additional_metrics: dict[str, float] | None = None,
    params: dict[str, Any] | None = None,
    tags: dict[str, str] | None = None,
) -> None:
    """Say what came of a trial; the same as `myelin.metric.publish_result`."""
    from myelin import metric

    metric.publish_result(loss_value, loss_metric or metric.get_loss_metric() or "loss", additional_metrics, params, tags)
