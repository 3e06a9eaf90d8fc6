"""Which events are due to be written down, and which sensors fire on those that were.

Law: an event fires a sensor once; the order in which events came does not matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from math import isfinite
from typing import Any

from policies.alerts import fingerprint
from policies.identity import event_id, event_set, run_id
from policies.terms.axon import Sensor, Trigger
from policies.terms.desired import DesiredAxon
from policies.terms.document_types import parse_duration
from policies.terms.event import Alert, Event
from policies.terms.observed import Observed, Recorded
from policies.terms.run import Run

COMMIT_TRIGGER = "commit"
"""Name of the trigger that a sensor without triggers has."""


def triggers_of(sensor: Sensor) -> tuple[tuple[str, Trigger | None], ...]:
    """A sensor's triggers with the names that events carry; None stands for a new axon digest."""
    if not sensor.triggers:
        return ((COMMIT_TRIGGER, None),)
    return tuple((trigger.name or f"{trigger.type}-{index}", trigger) for index, trigger in enumerate(sensor.triggers))


def is_commit(trigger: Trigger | None) -> bool:
    """Whether a trigger waits for a new axon digest."""
    return trigger is None or trigger.type == "Commit"


def due_events(axon: DesiredAxon, observed: Observed, now: datetime) -> Iterator[Event]:
    """Occurrences that hold now and are not recorded yet."""
    recorded = observed.recorded
    for sensor in axon.document.spec.sensors:
        heard: set[str] = set()
        for name, trigger in triggers_of(sensor):
            found: list[Event] = []
            if is_commit(trigger):
                found = list(_commit(axon, sensor, name, recorded, now))
            elif trigger is not None and trigger.type == "Lifecycle":
                found = list(_lifecycle(axon, sensor, name, trigger, recorded, now))
            elif trigger is not None and trigger.type == "Alert":
                found = list(_alerts(axon, sensor, name, observed))
            elif trigger is not None and trigger.type == "Rest":
                # What names no trigger is for the first that takes events by HTTP: one event fires once.
                found = [
                    replace(event, trigger=name)
                    for event in observed.received
                    if (event.axon, event.sensor) == (axon.name, sensor.name)
                    and event.trigger in ("", name)
                    and event.id not in heard
                ]
                heard |= {event.id for event in found}
            yield from (event for event in found if event.id not in recorded.events)


def ended_alerts(axon: DesiredAxon, observed: Observed) -> Iterator[Event]:
    """Recorded alerts whose condition does not hold any more."""
    holding = {fingerprint(alert) for alert in observed.alerts if alert.axon == axon.name}
    for event in observed.recorded.events.values():
        is_open = event.kind == "Alert" and event.axon == axon.name and event.id not in observed.recorded.resolved
        if is_open and event.data.get("fingerprint") not in holding:
            yield event


def fired(axon: DesiredAxon, recorded: Recorded, now: datetime) -> Iterator[Run]:
    """Runs that are due: sensors whose triggers all (or any) have an event that no run of theirs used."""
    for sensor in axon.document.spec.sensors:
        places = _places(axon.name, sensor, recorded, now)
        if places == 0:
            continue
        used = {
            event
            for run in recorded.runs.values()
            if run.axon == axon.name and run.sensor == sensor.name and not run.superseded
            for event in run.events
        }
        fresh: dict[str, list[Event]] = {name: [] for name, _ in triggers_of(sensor)}
        for event in sorted(recorded.events.values(), key=lambda item: (item.at, item.id)):
            is_ours = (event.axon, event.sensor) == (axon.name, sensor.name) and event.trigger in fresh
            if is_ours and event.id not in used and _is_current(event, axon, recorded):
                fresh[event.trigger].append(event)
        for events in _sets(fresh, sensor.when or "all"):
            ids = tuple(sorted(event.id for event in events))
            identity = run_id(axon.name, axon.digest, sensor.name, ids)
            if identity not in recorded.runs and places != 0:
                places = places - 1 if places is not None else None
                yield Run(
                    id=identity,
                    axon=axon.name,
                    sensor=sensor.name,
                    events=ids,
                    event_set=event_set(ids),
                    axon_digest=axon.digest,
                    commit="",
                    started_at=now,
                )


def _sets(fresh: Mapping[str, list[Event]], when: str) -> Iterator[tuple[Event, ...]]:
    if when == "any":
        for events in fresh.values():
            yield from ((event,) for event in events)
    elif len(fresh) == 1:
        # One trigger: every occurrence is a run of its own.
        for events in fresh.values():
            yield from ((event,) for event in events)
    elif all(fresh.values()):
        yield tuple(events[0] for events in fresh.values())


def _is_current(event: Event, axon: DesiredAxon, recorded: Recorded) -> bool:
    """Events of an older axon digest fire nothing: the newer one has its own."""
    if event.kind == "Commit":
        return event.data.get("axonDigest") == axon.digest
    if event.kind == "Lifecycle":
        task = recorded.tasks.get(str(event.data.get("taskRun", "")))
        run = recorded.runs.get(task.run) if task else None
        return run is not None and run.axon_digest == axon.digest and not run.superseded
    return True


def _places(axon: str, sensor: Sensor, recorded: Recorded, now: datetime) -> int | None:
    """How many runs a sensor may start now: its cooldown lets one at a time, its day so many; None: as many as it likes."""
    starts = sorted(run.started_at for run in recorded.runs.values() if run.axon == axon and run.sensor == sensor.name)
    cooldown = timedelta(seconds=parse_duration(sensor.cooldown))
    if starts and now - starts[-1] < cooldown:
        return 0
    places = 1 if cooldown else None
    if sensor.max_per_day is not None:
        left = max(sensor.max_per_day - sum(now - at < timedelta(days=1) for at in starts), 0)
        places = left if places is None else min(places, left)
    return places


def _commit(axon: DesiredAxon, sensor: Sensor, name: str, recorded: Recorded, now: datetime) -> Iterator[Event]:
    """That the axon's digest is another one than when this trigger last fired.

    A digest that comes back, by a revert, is an occurrence of its own: it is told apart by how often it came.
    """
    seen = [
        event.data.get("axonDigest")
        for event in recorded.events.values()
        if event.kind == "Commit" and (event.axon, event.sensor, event.trigger) == (axon.name, sensor.name, name)
    ]
    if seen and seen[-1] == axon.digest:
        return
    subject: dict[str, Any] = {"axonDigest": axon.digest}
    if times := seen.count(axon.digest):
        subject["occurrence"] = times + 1
    yield _event("Commit", axon.name, sensor.name, name, subject, now)


def _lifecycle(
    axon: DesiredAxon, sensor: Sensor, name: str, trigger: Trigger, recorded: Recorded, now: datetime
) -> Iterator[Event]:
    phase = trigger.condition or "Succeeded"
    for task in recorded.tasks.values():
        run = recorded.runs.get(task.run)
        if task.axon != axon.name or task.task != trigger.task or task.state != phase or run is None:
            continue
        if run.axon_digest == axon.digest and not run.superseded:
            yield _event("Lifecycle", axon.name, sensor.name, name, {"taskRun": task.id, "phase": phase}, now)


def _alerts(axon: DesiredAxon, sensor: Sensor, name: str, observed: Observed) -> Iterator[Event]:
    active = {
        event.data.get("fingerprint")
        for event in observed.recorded.events.values()
        if event.kind == "Alert" and event.id not in observed.recorded.resolved
    }
    for alert in observed.alerts:
        if (alert.axon, alert.sensor, alert.trigger) == (axon.name, sensor.name, name) and fingerprint(alert) not in active:
            yield _alert_event(alert)


def _alert_event(alert: Alert) -> Event:
    subject = {"fingerprint": fingerprint(alert), "since": alert.since.isoformat()}
    event = _event("Alert", alert.axon, alert.sensor, alert.trigger, subject, alert.since)
    data = {
        **subject,
        "condition": alert.condition,
        "labels": dict(alert.labels),
        "value": alert.value if isfinite(alert.value) else str(alert.value),
        "threshold": alert.threshold if alert.threshold is not None and isfinite(alert.threshold) else None,
        "version": alert.version,
    }
    return replace(event, data=data)


def _event(kind: str, axon: str, sensor: str, trigger: str, subject: Mapping[str, Any], at: datetime) -> Event:
    identity = event_id(kind, axon, sensor, trigger, subject)
    return Event(id=identity, kind=kind, axon=axon, sensor=sensor, trigger=trigger, at=at, data=dict(subject))  # type: ignore[arg-type]
