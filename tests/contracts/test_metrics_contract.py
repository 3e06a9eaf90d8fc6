"""What metrics promise: the simulated ones, and those that really read servers over HTTP. The clock is moved by hand in both."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from controller.adapters.metrics import SampledMetrics
from policies.errors import DesiredStateError
from policies.terms.event import Alert
from policies.terms.metrics import AlertRule, Target
from tests.fakes.metrics import FakeMetrics
from tests.fakes.world import HandClock, World

DEADLINE_SECONDS = 20
Line = tuple[str, dict[str, str], float]


class Fake:
    """The simulated ones: samples are taken when the clock is moved."""

    def __init__(self, _: Path) -> None:
        self.world = World()
        self.addresses: dict[str, str] = {}
        self.restart()

    def restart(self) -> None:
        self.world.watched = ()
        self.metrics: Any = FakeMetrics(self.world)

    def expose(self, name: str, lines: list[Line]) -> Target:
        address = self.addresses.setdefault(name, f"127.0.0.1:{20000 + len(self.addresses)}")
        self.world.outside.exposed[address] = [({"__name__": series, **labels}, value) for series, labels, value in lines]
        return Target(address=address, path="/metrics", labels={"version": name})

    def second(self) -> None:
        self.world.move(1)

    def close(self) -> None:
        pass


class Real:
    """The ones that read over HTTP in a thread of their own; each second of the world waits for a reading."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.world = folder, World()
        self.pages: dict[str, bytes] = {}
        self.rounds = 0
        pages = self.pages

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200 if self.path in pages else 404)
                self.end_headers()
                self.wfile.write(pages.get(self.path, b""))

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self.metrics: Any = None
        self.restart()

    def restart(self) -> None:
        if self.metrics is not None:
            self.metrics.close()
        self.metrics = SampledMetrics(self.folder, HandClock(self.world), interval_seconds=0.01, wake=self._wake)

    def expose(self, name: str, lines: list[Line]) -> Target:
        text = []
        for series, labels, value in lines:
            inner = ",".join(f'{key}="{item}"' for key, item in labels.items())
            text.append(f"# TYPE {series} gauge\n{series}{{{inner}}} {value}\n")
        self.pages[f"/{name}"] = "".join(text).encode()
        return Target(address=f"127.0.0.1:{self.server.server_address[1]}", path=f"/{name}", labels={"version": name})

    def second(self) -> None:
        self.world.move(1)
        # The round that goes on may have begun before the clock moved; the one after it did not.
        wanted, deadline = self.rounds + 2, time.monotonic() + DEADLINE_SECONDS
        while self.rounds < wanted and time.monotonic() < deadline:
            time.sleep(0.005)

    def close(self) -> None:
        self.metrics.close()
        self.server.shutdown()
        self.server.server_close()

    def _wake(self) -> None:
        self.rounds += 1


Place = Fake | Real


@pytest.fixture(params=[Fake, Real], ids=["fake", "real"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    made: Place = request.param(tmp_path)
    yield made
    made.close()


def watch(place: Place, **lines: list[Line]) -> None:
    place.metrics.watch([place.expose(name, found) for name, found in sorted(lines.items())])


def rule(condition: str, *, name: str = "low", seconds: float = 0.0) -> AlertRule:
    return AlertRule(axon="digits", sensor="s", trigger=name, condition=condition, for_seconds=seconds)


def alerts(place: Place, *rules: AlertRule) -> tuple[Alert, ...]:
    found: tuple[Alert, ...] = place.metrics.alerts(list(rules), place.world.outside.now)
    return found


def value(place: Place, query: str) -> float | None:
    found: float | None = place.metrics.value(query, place.world.outside.now)
    return found


def test_nothing_is_known_before_anything_is_watched(place: Place) -> None:
    place.expose("v1", [("accuracy", {}, 0.5)])
    assert value(place, "accuracy") is None
    assert alerts(place, rule("accuracy < 0.8")) == ()
    assert alerts(place) == ()


def test_what_is_watched_is_read_with_the_targets_labels(place: Place) -> None:
    watch(place, v1=[("accuracy", {"kind": "a"}, 0.5)], v2=[("accuracy", {"kind": "a"}, 0.75), ("rows", {}, 3.0)])
    place.second()
    assert value(place, 'accuracy{version="v1",kind="a"}') == 0.5
    assert value(place, 'accuracy{version="v2"}') == 0.75
    assert value(place, "sum(accuracy)") == 1.25
    assert value(place, 'rows{version="v1"}') is None
    assert value(place, "rows") == 3.0


def test_what_is_not_watched_any_more_is_not_read(place: Place) -> None:
    watch(place, v1=[("accuracy", {}, 0.5)])
    place.second()
    place.expose("v1", [("accuracy", {}, 0.9)])
    watch(place, v2=[("accuracy", {}, 0.1)])
    place.second()
    place.second()
    assert value(place, 'accuracy{version="v1"}') == 0.5
    assert value(place, 'accuracy{version="v2"}') == 0.1


def test_a_target_that_does_not_answer_does_not_hide_the_others(place: Place) -> None:
    gone = Target(address="127.0.0.1:9", path="/metrics", labels={"version": "gone"})
    place.metrics.watch([gone, place.expose("v1", [("accuracy", {}, 0.5)])])
    place.second()
    assert value(place, "accuracy") == 0.5


def test_there_is_one_alert_for_each_series_sorted(place: Place) -> None:
    watch(place, v2=[("accuracy", {}, 0.5)], v1=[("accuracy", {}, 0.25)], v3=[("accuracy", {}, 0.95)])
    place.second()
    found = alerts(place, rule("accuracy < 0.8"))
    assert [(alert.version, alert.value) for alert in found] == [("v1", 0.25), ("v2", 0.5)]
    assert {(alert.axon, alert.sensor, alert.trigger, alert.condition, alert.threshold) for alert in found} == {
        ("digits", "s", "low", "accuracy < 0.8", 0.8)
    }
    assert {alert.since for alert in found} == {place.world.outside.now}


def test_a_condition_must_hold_all_through_its_time(place: Place) -> None:
    watch(place, v1=[("accuracy", {}, 0.5)])
    fired = []
    for second in range(1, 7):
        place.second()
        fired.append(second) if alerts(place, rule("accuracy < 0.8", seconds=3)) else None
    assert fired == [4, 5, 6]
    place.expose("v1", [("accuracy", {}, 0.9)])
    place.second()
    assert alerts(place, rule("accuracy < 0.8", seconds=3)) == ()
    place.expose("v1", [("accuracy", {}, 0.5)])
    place.second()
    assert alerts(place, rule("accuracy < 0.8", seconds=3)) == ()
    assert len(alerts(place, rule("accuracy < 0.8"))) == 1


def test_the_answer_is_for_the_instant_that_is_asked_about(place: Place) -> None:
    watch(place, v1=[("accuracy", {}, 0.5)])
    place.second()
    before = place.world.outside.now
    place.expose("v1", [("accuracy", {}, 0.9)])
    place.second()
    assert place.metrics.value("accuracy", before) == 0.5
    assert place.metrics.value("accuracy", place.world.outside.now) == 0.9
    assert place.metrics.value("accuracy", before - timedelta(seconds=60)) is None
    assert place.metrics.alerts([rule("accuracy < 0.8")], before) != ()


def test_a_rule_that_cannot_be_read_does_not_hide_the_others(place: Place) -> None:
    watch(place, v1=[("accuracy", {}, 0.5)])
    place.second()
    found = alerts(place, rule("accuracy <", name="broken"), rule("holt_winters(accuracy[5m], 1, 1) < 1"), rule("accuracy < 0.8"))
    assert [(alert.trigger, alert.version) for alert in found] == [("low", "v1")]


@pytest.mark.parametrize("query", ["accuracy <", "holt_winters(accuracy[5m], 1, 1)"])
def test_a_query_that_cannot_be_read_is_a_fault(place: Place, query: str) -> None:
    with pytest.raises(DesiredStateError):
        value(place, query)


def test_samples_survive_the_controller_and_watching_does_not(place: Place) -> None:
    watch(place, v1=[("accuracy", {}, 0.5)])
    for _ in range(4):
        place.second()
    before = alerts(place, rule("accuracy < 0.8", seconds=3))
    assert len(before) == 1
    place.restart()
    assert value(place, "accuracy") == 0.5
    assert alerts(place, rule("accuracy < 0.8", seconds=3)) == before
    watch(place, v1=[("accuracy", {}, 0.5)])
    place.second()
    assert len(alerts(place, rule("accuracy < 0.8", seconds=3))) == 1
