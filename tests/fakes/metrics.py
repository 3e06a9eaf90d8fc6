"""Samples that the world takes whenever its clock is moved; PromQL over them as everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from policies.alerts import firing
from policies.errors import ControllerError
from policies.promql import Series, evaluate, parse
from policies.terms.event import Alert
from policies.terms.metrics import AlertRule, Target
from tests.fakes.world import World


class FakeMetrics:
    """Implements `reconcilers.ports.Metrics`."""

    def __init__(self, world: World) -> None:
        self._world = world

    def watch(self, targets: Sequence[Target]) -> None:
        self._world.watched = tuple(targets)

    def alerts(self, rules: Sequence[AlertRule], now: datetime) -> tuple[Alert, ...]:
        found: list[Alert] = []
        for rule in rules:
            try:
                found += firing(rule, parse(rule.condition), self._series(), now)
            except ControllerError:
                continue
        return tuple(found)

    def value(self, query: str, now: datetime) -> float | None:
        found = evaluate(parse(query), self._series(), now.timestamp())
        return found[0].value if found else None

    def _series(self) -> list[Series]:
        return [Series(labels=dict(key), points=tuple(points)) for key, points in self._world.outside.samples.items()]
