"""Alert triggers: `{{metric}}` -> the real series, and which conditions hold.

Law: whether an alert fires depends on samples and the instant alone, so a restart changes nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime

from policies.canonical import digest_value
from policies.errors import DesiredStateError
from policies.promql import Query, Sample, Series, evaluate, has_data, parse, threshold_of
from policies.terms.event import Alert
from policies.terms.metrics import AlertRule

_METRIC = re.compile(r"\{\{\s*([A-Za-z_][A-Za-z0-9_-]*)\s*\}\}")
STEP_SECONDS = 1.0
MOST_STEPS = 120
"""How finely a `for` is looked at: every second, or less often where it is longer than two minutes."""


def series_name(metric: str, axon: str) -> str:
    """The series that a metric of an axon is exported as."""
    return f"{metric}_{axon}".replace("-", "__")


def expand(condition: str, axon: str) -> str:
    """A condition with the real names of its series.

    Raises:
        DesiredStateError: Braces that are no metric's name.
    """
    text = _METRIC.sub(lambda match: series_name(match[1], axon), condition)
    if "{{" in text:
        raise DesiredStateError(f"condition: expected {{{{metric_name}}}}, got {condition!r}", reason="NotPromql")
    return text


def why_refused(condition: str, axon: str) -> str:
    """Why a condition cannot be evaluated; empty when it can."""
    try:
        parse(expand(condition, axon))
    except DesiredStateError as error:
        return error.message
    return ""


def fingerprint(alert: Alert) -> str:
    """Names an alert by rule and series, not by when or how much."""
    return digest_value([alert.axon, alert.sensor, alert.trigger, dict(alert.labels)])


def firing(rule: AlertRule, query: Query, series: Sequence[Series], now: datetime) -> Iterator[Alert]:
    """The series for which a rule's condition has held all through its `for`."""
    at = now.timestamp()
    steps = min(max(math.ceil(rule.for_seconds / STEP_SECONDS), 1), MOST_STEPS) if rule.for_seconds > 0 else 0
    instants = [at - rule.for_seconds * step / steps for step in range(1, steps + 1)]
    if rule.no_data_fires and not any(has_data(query, series, instant) for instant in (at, *instants)):
        yield _alert(rule, query, Sample(labels={}, value=math.nan), now)
        return
    holding = {_key(sample.labels): sample for sample in evaluate(query, series, at)}
    for instant in instants:
        if not holding:
            return
        then = {_key(sample.labels) for sample in evaluate(query, series, instant)}
        holding = {key: sample for key, sample in holding.items() if key in then}
    for key in sorted(holding):
        yield _alert(rule, query, holding[key], now)


def _alert(rule: AlertRule, query: Query, sample: Sample, now: datetime) -> Alert:
    return Alert(
        axon=rule.axon,
        sensor=rule.sensor,
        trigger=rule.trigger,
        condition=rule.condition,
        labels=dict(sample.labels),
        value=sample.value,
        threshold=threshold_of(query),
        since=now.astimezone(UTC),
        version=sample.labels.get("version", ""),
    )


def _key(labels: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(labels.items()))
