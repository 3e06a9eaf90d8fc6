"""Metrics of training programs. Importing it is harmless anywhere; outside of a job it only logs."""

from __future__ import annotations

import json
import logging
import os
import time
import urllib.request
import uuid
from typing import Any

from myelin import hpo, report

TRIES = 10
PAUSE_SECONDS = 2.0
_log = logging.getLogger("myelin")


class MetricClient:
    """Reports gauges, counters and results of this job.

    Args:
        port: Port of the push gateway where `PUSHGATEWAY_URL` names none.
    """

    def __init__(self, port: int = 9091) -> None:
        self.port = port
        self.axon = os.environ.get("AXON_NAME", "")
        self.task_id = os.environ.get("TASK_ID", "")
        self._counters: dict[str, float] = {}
        self._uuid = uuid.uuid4().hex

    def post_update(
        self, metric: str, value: float, job_name: str | None = None, grouping_key: dict[str, str] | None = None
    ) -> None:
        """Report the value of a gauge."""
        self._post(metric, value, "gauge", job_name, grouping_key)

    def post_increment(self, metric: str, amount: float = 1) -> None:
        """Add to a counter."""
        self._post(metric, amount, "counter", None, None)

    def post_hpo_result(
        self,
        loss_value: float,
        loss_metric: str | None = None,
        additional_metrics: dict[str, float] | None = None,
        params: dict[str, Any] | None = None,
        tags: dict[str, str] | None = None,
    ) -> None:
        """Report the result of a trial or training."""
        del params, tags
        name = loss_metric or get_loss_metric() or "loss"
        others = {key: report.number(value) for key, value in (additional_metrics or {}).items()}
        line = {"kind": "result", "loss": report.number(loss_value), "lossMetric": name, "metrics": others}
        is_kept = report.append(line)
        for key, value in {name: loss_value, **(additional_metrics or {})}.items():
            self._expose(key, value, "gauge", None, None, tries=1)
        if is_kept:
            return
        if hpo.hpo_enabled() and os.environ.get("TRAIN_CONTROLLER_URL"):
            _submit(line)
            return
        _log.info("result %s = %s (not in a job)", line["lossMetric"], line["loss"])

    def _post(self, metric: str, value: float, kind: str, job: str | None, group: dict[str, str] | None) -> None:
        if kind == "counter":
            value = self._counters[metric] = self._counters.get(metric, 0.0) + value
        is_kept = report.append({"kind": "metric", "name": metric, "value": report.number(value), "type": kind})
        # In a job the report is what lasts; what is pushed is for alerts, and may get lost.
        self._expose(metric, value, kind, job, group, tries=1 if is_kept else TRIES)
        if not is_kept and not os.environ.get("PUSHGATEWAY_URL"):
            _log.info("%s %s = %s (not in a job)", kind, metric, value)

    def _expose(self, metric: str, value: float, kind: str, job: str | None, group: dict[str, str] | None, *, tries: int) -> None:
        if os.environ.get("PUSHGATEWAY_URL"):
            self._push(metric, value, kind, job, group, tries)

    def _push(self, metric: str, value: float, kind: str, job: str | None, group: dict[str, str] | None, tries: int) -> None:
        address = os.environ["PUSHGATEWAY_URL"].rstrip("/")
        if "://" not in address:
            address = f"http://{address}" if ":" in address else f"http://{address}:{self.port}"
        place = "".join(f"/{name}/{text}" for name, text in (group or {}).items())
        name = f"{metric}_{self.axon}".replace("-", "__") + ("_total" if kind == "counter" else "")
        # A counter belongs to one process: its series is told apart by a uuid, as the earlier client did.
        labels = f'{{uuid="{self._uuid}"}}' if kind == "counter" else ""
        body = f"# TYPE {name} {kind}\n{name}{labels} {float(value)}\n".encode()
        _send(f"{address}/metrics/job/{job or self.task_id or 'none'}{place}", body, "text/plain", tries=tries)


def get_loss_metric() -> str | None:
    """Name of the metric that tuning optimises."""
    return os.environ.get("LOSS_METRIC")


def publish_result(
    loss_value: float,
    loss_metric: str,
    additional_metrics: dict[str, float] | None = None,
    params: dict[str, Any] | None = None,
    tags: dict[str, str] | None = None,
) -> None:
    """Report what a training came to, once, at its end.

    Args:
        loss_value: Value of the metric that tuning optimises, 0.0 included.
        loss_metric: Its name.
        additional_metrics: Others, by name.
        params: Kept for the earlier client's callers.
        tags: Kept for the earlier client's callers.
    """
    __MYELIN_CLIENT__.post_hpo_result(loss_value, loss_metric, additional_metrics, params, tags)


def _submit(line: dict[str, Any]) -> None:
    """The earlier way: a POST to the train controller."""
    config = hpo.get_hpo_config()
    body = {
        "result": {"result": {"loss": line["loss"], "info": line["metrics"]}, "exception": None},
        "budget": config["budget"],
        "config_id": [int(part) for part in str(config["config-id"]).split("_")],
        "config": hpo.get_hpo_params(),
    }
    _send(os.environ["TRAIN_CONTROLLER_URL"].rstrip("/") + "/submit_result", json.dumps(body).encode(), "application/json")


def _send(url: str, body: bytes, kind: str, *, tries: int = TRIES) -> None:
    request = urllib.request.Request(url, data=body, headers={"Content-Type": kind}, method="POST")
    for attempt in range(1, tries + 1):
        try:
            with urllib.request.urlopen(request, timeout=10 if tries > 1 else 2):
                return
        except (OSError, ValueError) as error:
            if attempt == tries:
                _log.warning("%s: %s", url.split("?")[0], error)
                return
            time.sleep(PAUSE_SECONDS)


__MYELIN_CLIENT__ = MetricClient()
