"""Recent samples of servers, read over HTTP and kept on disk within bounds; PromQL over them."""

from __future__ import annotations

import http.client
import json
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path

from controller.adapters import gauges
from controller.adapters.gauges import parse_exposition
from policies.alerts import firing
from policies.errors import ControllerError
from policies.promql import Query, Series, evaluate, parse
from policies.terms.event import Alert
from policies.terms.metrics import AlertRule, Target
from reconcilers.ports import Clock

MOST_POINTS = 3600
"""Samples kept of one series: an hour at one a second."""
MOST_SERIES = 5000
SEGMENT_BYTES = 8 << 20
"""Two segments are kept on disk; a full one pushes out the older."""
TIMEOUT_SECONDS = 1.0
LARGEST_ANSWER_BYTES = 4 << 20
MOST_PUSHED = 500
"""Series that somebody sent and that count until they are sent anew; the one that was sent longest ago is dropped."""
SKIPPED = ("python_", "process_")

Key = tuple[tuple[str, str], ...]


class SampledMetrics:
    """Implements `reconcilers.ports.Metrics`.

    Args:
        folder: Where samples are kept.
        clock: Tells when.
        interval_seconds: Time between two readings of all targets.
        wake: Called after each round that read anything.
    """

    def __init__(
        self, folder: Path, clock: Clock, *, interval_seconds: float = 1.0, wake: Callable[[], None] = lambda: None
    ) -> None:
        self._folder, self._clock, self._interval, self._wake = folder, clock, interval_seconds, wake
        self._series: dict[Key, deque[tuple[float, float]]] = {}
        self._pushed: dict[Key, float] = {}
        self._targets: tuple[Target, ...] = ()
        self._guard = threading.Lock()
        self._changed = threading.Condition()
        self._closing = False
        folder.mkdir(parents=True, exist_ok=True)
        self._restore()
        # It runs while there is something to read: a controller may have 1,000 of these, most of which have nothing.
        self._thread: threading.Thread | None = None
        self._stir()

    def watch(self, targets: Sequence[Target]) -> None:
        """From now on, read these addresses."""
        if tuple(targets) != self._targets:
            with self._changed:
                self._targets = tuple(targets)
            self._stir()

    def alerts(self, rules: Sequence[AlertRule], now: datetime) -> tuple[Alert, ...]:
        """Which conditions hold, one alert for each series."""
        if not rules:
            return ()
        series = self._snapshot()
        found: list[Alert] = []
        for rule in rules:
            try:
                found += firing(rule, _query(rule.condition), series, now)
            except ControllerError:
                gauges.REFUSED_RULES.inc()  # `status` and lint say which cannot be evaluated; the other rules go on
        return tuple(found)

    def value(self, query: str, now: datetime) -> float | None:
        """The first value that a query gives."""
        found = evaluate(_query(query), self._snapshot(), now.timestamp())
        return found[0].value if found else None

    def push(self, labels: Mapping[str, str], text: str) -> None:
        """Take samples that somebody sent; as with a push gateway, they count until they are sent anew.

        Raises:
            ValueError: Not the exposition format.
        """
        samples = [({**found, **labels}, value) for found, value in parse_exposition(text)]
        with self._guard:
            for found, value in samples:
                key = tuple(sorted(found.items()))
                self._pushed.pop(key, None)
                self._pushed[key] = value
            for key in list(self._pushed)[:-MOST_PUSHED]:
                del self._pushed[key]
            kept = json.dumps([[value, dict(key)] for key, value in self._pushed.items()])
        try:
            place = self._folder / "pushed.json"
            place.with_suffix(".new").write_text(kept)
            place.with_suffix(".new").replace(place)
        except OSError:
            pass  # a full disk costs samples after a restart, never the alert now
        self._keep(samples)
        self._wake()
        self._stir()

    def close(self) -> None:
        """Stop reading."""
        with self._changed:
            self._closing, thread = True, self._thread
            self._changed.notify()
        if thread is not None:
            thread.join(5.0)

    def _stir(self) -> None:
        """See that what there is to read is read, from now on."""
        with self._changed:
            if self._thread is None and not self._closing and (self._targets or self._pushed):
                self._thread = threading.Thread(target=self._run, name="samples", daemon=True)
                self._thread.start()
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._closing or not (self._targets or self._pushed):
                    self._thread = None
                    return
            with self._guard:
                found: list[tuple[Mapping[str, str], float]] = [(dict(key), value) for key, value in self._pushed.items()]
            for target in self._targets:
                found += _read(target)
            if found:
                self._keep(found)
                self._wake()
            with self._changed:
                if not self._closing:
                    self._changed.wait(self._interval)

    def _keep(self, samples: Sequence[tuple[Mapping[str, str], float]]) -> None:
        at = self._clock.now().timestamp()
        lines = []
        with self._guard:
            for labels, value in samples:
                key = tuple(sorted(labels.items()))
                points = self._series.get(key)
                if points is None:
                    if len(self._series) >= MOST_SERIES:
                        # The one that has been silent for longest makes room.
                        del self._series[min(self._series, key=lambda other: self._series[other][-1][0])]
                    points = self._series[key] = deque(maxlen=MOST_POINTS)
                points.append((at, value))
                lines.append(json.dumps([at, value, dict(labels)]))
        self._write("\n".join(lines) + "\n")

    def _write(self, text: str) -> None:
        current = self._folder / "samples.jsonl"
        try:
            if current.exists() and current.stat().st_size > SEGMENT_BYTES:
                current.replace(self._folder / "samples.1.jsonl")
            with current.open("a") as file:
                file.write(text)
        except OSError:
            return  # a full disk costs samples after a restart, never the alert now

    def _restore(self) -> None:
        known = _load(self._folder / "pushed.json")
        self._pushed = {tuple(sorted(labels.items())): float(value) for value, labels in known}
        for name in ("samples.1.jsonl", "samples.jsonl"):
            try:
                lines = (self._folder / name).read_text().splitlines()
            except OSError:
                continue
            for line in lines:
                try:
                    at, value, labels = json.loads(line)
                    key = tuple(sorted(labels.items()))
                    self._series.setdefault(key, deque(maxlen=MOST_POINTS)).append((float(at), float(value)))
                except (ValueError, AttributeError, TypeError):
                    continue

    def _snapshot(self) -> list[Series]:
        with self._guard:
            return [Series(labels=dict(key), points=tuple(points)) for key, points in self._series.items()]


def _load(path: Path) -> list[tuple[float, dict[str, str]]]:
    try:
        return [(value, labels) for value, labels in json.loads(path.read_bytes())]
    except (OSError, ValueError, TypeError):
        return []


@lru_cache(maxsize=4096)
def _query(text: str) -> Query:
    return parse(text)


def _read(target: Target) -> list[tuple[Mapping[str, str], float]]:
    host, _, port = target.address.partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=TIMEOUT_SECONDS)
    try:
        connection.request("GET", target.path)
        answer = connection.getresponse()
        text = answer.read(LARGEST_ANSWER_BYTES).decode(errors="replace")
        if answer.status != 200:
            return []
        return [
            ({**labels, **target.labels}, value)
            for labels, value in parse_exposition(text)
            if not labels["__name__"].startswith(SKIPPED) and not labels["__name__"].endswith(("_bucket", "_created"))
        ]
    except (OSError, http.client.HTTPException, ValueError):
        return []
    finally:
        connection.close()
