"""Metrics of training programs and models. Importing it is harmless anywhere; outside of a job it only logs.

In a job, what lasts is a line in the job's report; what is pushed is for alerts, and may get lost. Standard library only.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping
from typing import Any, NamedTuple

from myelin import gateway, hpo, report

TRIES = 10
PAUSE_SECONDS = 2.0
_log = logging.getLogger("myelin")


class Posted(NamedTuple):
    """What the earlier client's callers look at after a post."""

    status_code: int = 200


class MetricClient:
    """Reports gauges, counters and results of this job.

    Args:
        port: Port of the push gateway where `PUSHGATEWAY_URL` names none.
    """

    def __init__(self, port: int = 9091) -> None:
        self.port = port
        self.namespace = os.environ.get("NAMESPACE", "")
        self.myelin_installation_namespace = os.environ.get("MYELIN_NAMESPACE", "")
        self.pushgateway_namespace = os.environ.get("PUSHGATEWAY_NAMESPACE", "")
        self.pushgateway_url = os.environ.get("PUSHGATEWAY_URL", "")
        self.task_id = os.environ.get("TASK_ID", "")
        self.task_name = os.environ.get("TASK_NAME", "")
        self.axon_name = os.environ.get("AXON_NAME", "")
        self.url = gateway.gateway_url(self.pushgateway_url, self.pushgateway_namespace, port)
        self.process_id = str(uuid.uuid4())
        self._counters: dict[str, float] = {}

    def get_metric(self, name: str) -> str:
        """Name of a metric's series."""
        return f"{name}_{self.axon_name}".replace("-", "__")

    def post_update(
        self, metric: str, value: Any, job_name: str | None = None, grouping_key: Mapping[str, str] | None = None
    ) -> Posted:
        """Report the value of a gauge.

        Args:
            metric: Its name.
            value: A number.
            job_name: Label `job` of its series; None: the task's id.
            grouping_key: Other labels.

        Raises:
            TypeError: The value is no number.
            ValueError: The same.
        """
        self._report(metric, value, "gauge")
        self._push(metric, value, "gauge", job_name, grouping_key)
        return Posted()

    def post_increment(self, metric: str, amount: float = 1) -> Posted:
        """Add to a counter; it belongs to this process."""
        total = self._counters[metric] = self._counters.get(metric, 0.0) + amount
        self._report(metric, total, "counter")
        self._push(metric, total, "counter", None, None)
        return Posted()

    def post_hpo_result(
        self,
        config_id: str,
        config: Mapping[str, Any],
        budget: float | None,
        loss_metric: str | None,
        loss: Any,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, Any] | None = None,
        info_map: Mapping[str, Any] | None = None,
        additional_metrics: Mapping[str, Any] | None = None,
    ) -> None:
        """Report the result of a trial or training.

        Args:
            config_id: Of the trial, `0_0_1`; empty when this is none.
            config: What was tried.
            budget: How long it might train.
            loss_metric: Name of the metric that tuning optimises; None: as `LOSS_METRIC` says.
            loss: Its value, 0.0 included.
            params: Kept nowhere: export to MLflow is not built.
            tags: The same.
            info_map: What a train controller is told besides.
            additional_metrics: Other values by name; what is no number is passed over.
        """
        name, value = loss_metric or get_loss_metric() or "loss", report.number(loss)
        others = {str(key): report.number(item) for key, item in (additional_metrics or {}).items() if _is_number(item)}
        if (params or tags) and os.environ.get("MLFLOW_TRACKING_URI"):
            _log.warning("MLFLOW_TRACKING_URI: export of params and tags is not built yet")
        if report.append({"kind": "result", "loss": value, "lossMetric": name, "metrics": others}):
            return
        if config_id and os.environ.get("TRAIN_CONTROLLER_URL"):
            info = {str(key): _plain(item) for key, item in (info_map or {}).items()}
            body = {
                "result": {"result": {"loss": value, "info": info}, "exception": None},
                "budget": budget,
                "config_id": [int(part) for part in str(config_id).split("_")],
                "config": config,
            }
            _submit(os.environ["TRAIN_CONTROLLER_URL"].rstrip("/") + "/submit_result", json.dumps(body, default=str).encode())
            return
        _log.info("result %s = %s (not in a job)", name, value)

    def _report(self, metric: str, value: Any, kind: str) -> None:
        is_kept = report.append({"kind": "metric", "name": metric, "value": report.number(value), "type": kind})
        if not is_kept and not self.url:
            _log.info("%s %s = %s (not in a job)", kind, metric, value)

    def _push(self, metric: str, value: Any, kind: str, job: str | None, group: Mapping[str, str] | None) -> None:
        if not self.url:
            return
        name = self.get_metric(metric) + ("_total" if kind == "counter" else "")
        # A counter belongs to one process: its series is told apart by a uuid, as the earlier client did.
        labels = f'{{uuid="{self.process_id}"}}' if kind == "counter" else ""
        body = f"# TYPE {name} {kind}\n{name}{labels} {float(value)}\n".encode()
        # Empty: these labels would be the gateway's own, not the program's.
        places = {"pod": "", "service": "", **{str(key): str(item) for key, item in (group or {}).items()}}
        gateway.push(self.url, job or self.task_id or "none", places, body)


def get_loss_metric() -> str | None:
    """Name of the metric that tuning optimises."""
    return os.environ.get("LOSS_METRIC")


def post_hpo_result(
    config_id: str,
    config: Mapping[str, Any],
    budget: float | None,
    loss_metric: str | None,
    loss: Any,
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, Any] | None = None,
    info_map: Mapping[str, Any] | None = None,
    additional_metrics: Mapping[str, Any] | None = None,
) -> None:
    """Report the result of a trial; see `MetricClient.post_hpo_result`."""
    __MYELIN_CLIENT__.post_hpo_result(config_id, config, budget, loss_metric, loss, params, tags, info_map, additional_metrics)


def publish_result(
    loss_value: Any,
    loss_metric: str | None = None,
    additional_metrics: Mapping[str, Any] | None = None,
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, Any] | None = None,
) -> None:
    """Report what a training came to, once, at its end.

    The oldest client had `params` and `tags` in third and fourth place: what is no number in the third is taken as such.

    Args:
        loss_value: Value of the metric that tuning optimises, 0.0 included.
        loss_metric: Its name; None: as `LOSS_METRIC` says.
        additional_metrics: Others, by name.
        params: Taken as the earlier client's callers give it; kept nowhere.
        tags: The same.
    """
    name = loss_metric or get_loss_metric() or "loss"
    numbers = {key: item for key, item in (additional_metrics or {}).items() if _is_number(item)}
    if additional_metrics and not numbers:
        params, tags = additional_metrics, params if tags is None else tags
    hpo.publish_result(name, loss_value, params, tags, numbers)
    for key, value in {name: loss_value, **numbers}.items():
        __MYELIN_CLIENT__._push(key, value, "gauge", None, None)


def _is_number(value: Any) -> bool:
    if isinstance(value, (str, bytes)):
        return False
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _plain(value: Any) -> Any:
    return report.number(value) if _is_number(value) else str(value)


def _submit(url: str, body: bytes) -> None:
    """The earlier way: a POST to the train controller, which may be busy for a while."""
    headers = {"Content-Type": "application/json"}
    for attempt in range(1, TRIES + 1):
        try:
            request = urllib.request.Request(url, data=body, headers=headers, method="POST")
            with urllib.request.urlopen(request, timeout=10):
                return
        except (OSError, ValueError, http.client.HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            if attempt == TRIES:
                _log.warning("%s: %s; the result is lost", url, error)
                return
        time.sleep(PAUSE_SECONDS)


__MYELIN_CLIENT__ = MetricClient()
