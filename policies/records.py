"""Fold the ledger's entries into what is done, and the statements that say so.

Law: folding entries in one go or piece by piece gives the same. What cannot be read is passed over, never guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from policies.terms.event import Event
from policies.terms.observed import Recorded
from policies.terms.record import Entry, Statement
from policies.terms.run import Run, TaskRun
from policies.terms.trial import Ask, Tell, TrialRun


def fold(entries: Sequence[Entry], *, onto: Recorded | None = None) -> Recorded:
    """Fold entries into what is done.

    Args:
        entries: In the ledger's order.
        onto: The fold of all entries before these; entries that it counted are passed over.
    """
    before = onto or Recorded()
    new = [entry for entry in entries if entry.number > before.entries]
    if not new:
        return before
    building = _Building(before)
    for entry in new:
        try:
            building.take(entry)
        except (KeyError, TypeError, ValueError, AttributeError):
            continue  # an entry of another Myelin, or a damaged one: what it says is not known, so it is not said
    return building.result(new[-1])


class _Building:
    """A fold on its way."""

    def __init__(self, before: Recorded) -> None:
        self.events, self.runs, self.tasks = dict(before.events), dict(before.runs), dict(before.tasks)
        self.asks, self.tells = dict(before.asks), dict(before.tells)
        self.inputs, self.deploying, self.resolved = dict(before.inputs), dict(before.deploying), set(before.resolved)

    def take(self, entry: Entry) -> None:
        body, axon = entry.statement.body, entry.statement.axon
        match entry.statement.kind:
            case "event":
                self.events[body["id"]] = _event(body, axon)
            case "resolved":
                self.resolved.add(body["event"])
            case "run":
                self.runs[body["run"]] = _run(body, axon)
            case "superseded":
                if run := self.runs.get(body["run"]):
                    self.runs[run.id] = replace(run, superseded=body["reason"])
            case "task":
                task = _task(body, axon, entry.at)
                self.tasks[task.id] = task
                if task.state == "Succeeded" and task.inputs:
                    self.inputs[task.inputs] = task.id
            case "ask":
                self.asks[body["taskRun"]] = (*self.asks.get(body["taskRun"], ()), _ask(body))
            case "tell":
                self.tells[body["taskRun"]] = (*self.tells.get(body["taskRun"], ()), _tell(body))
            case "deploying":
                self.deploying[body["taskRun"]] = entry.at
            case _:
                pass

    def result(self, last: Entry) -> Recorded:
        return Recorded(
            entries=last.number,
            head=last.digest,
            events=self.events,
            runs=self.runs,
            tasks=self.tasks,
            asks=self.asks,
            tells=self.tells,
            resolved=frozenset(self.resolved),
            inputs=self.inputs,
            deploying=self.deploying,
        )


def event_statement(event: Event) -> Statement:
    """That something happened."""
    body = {
        "id": event.id,
        "kind": event.kind,
        "sensor": event.sensor,
        "trigger": event.trigger,
        "at": event.at.isoformat(),
        "data": dict(event.data),
    }
    return Statement(kind="event", key=f"event/{event.id}", axon=event.axon, body=body)


def resolved_statement(axon: str, event_id: str) -> Statement:
    """That an alert does not hold any more."""
    return Statement(kind="resolved", key=f"resolved/{event_id}", axon=axon, body={"event": event_id})


def run_statement(run: Run) -> Statement:
    """That a sensor fired."""
    body = {
        "run": run.id,
        "sensor": run.sensor,
        "events": list(run.events),
        "eventSet": run.event_set,
        "axonDigest": run.axon_digest,
        "commit": run.commit,
        "startedAt": run.started_at.isoformat(),
    }
    return Statement(kind="run", key=f"run/{run.id}", axon=run.axon, body=body)


def superseded_statement(run: Run, reason: str) -> Statement:
    """That nothing more is done for a run."""
    return Statement(kind="superseded", key=f"superseded/{run.id}", axon=run.axon, body={"run": run.id, "reason": reason})


def task_statement(task: TaskRun) -> Statement:
    """How a task ended."""
    body = {
        "taskRun": task.id,
        "run": task.run,
        "task": task.task,
        "taskKind": task.kind,
        "state": task.state,
        "inputs": task.inputs,
        "image": task.image,
        "model": task.model,
        "data": list(task.data),
        "metrics": dict(task.metrics),
        "parameters": dict(task.parameters),
        "trial": task.trial,
        "version": task.version,
        "reason": task.reason,
        "message": task.message,
        "reused": task.reused,
    }
    kept = {name: value for name, value in body.items() if value not in ("", [], {})}
    return Statement(kind="task", key=f"task/{task.id}", axon=task.axon, body=kept)


def ask_statement(axon: str, task_run: str, ask: Ask) -> Statement:
    """That a configuration is to be tried at a rung."""
    body = {**_trial_body(task_run, ask.run), "config": dict(ask.config), "origin": ask.origin}
    return Statement(kind="ask", key=f"ask/{task_run}/{ask.run.trial}/{ask.run.rung}", axon=axon, body=body)


def tell_statement(axon: str, task_run: str, tell: Tell) -> Statement:
    """What a trial came to."""
    body = {
        **_trial_body(task_run, tell.run),
        "loss": tell.loss,
        "metric": tell.metric,
        "reason": tell.reason,
        "model": tell.model,
    }
    return Statement(kind="tell", key=f"tell/{task_run}/{tell.run.trial}/{tell.run.rung}", axon=axon, body=body)


def deploying_statement(axon: str, task_run: str, version: str) -> Statement:
    """That a version's servers are being started."""
    return Statement(kind="deploying", key=f"deploying/{task_run}", axon=axon, body={"taskRun": task_run, "version": version})


def image_statement(axon: str, digest: str, materials: Mapping[str, Any]) -> Statement:
    """That an image was built, and from what."""
    return Statement(kind="image", key=f"image/{digest}", axon=axon, body={"digest": digest, "materials": dict(materials)})


def _trial_body(task_run: str, run: TrialRun) -> dict[str, Any]:
    return {"taskRun": task_run, "trial": run.trial, "rung": run.rung, "budget": run.budget, "number": run.number}


def _trial(body: Mapping[str, Any]) -> TrialRun:
    return TrialRun(trial=body["trial"], rung=int(body["rung"]), budget=float(body["budget"]), number=int(body["number"]))


def _ask(body: Mapping[str, Any]) -> Ask:
    return Ask(run=_trial(body), config=body["config"], origin=body["origin"])


def _tell(body: Mapping[str, Any]) -> Tell:
    return Tell(run=_trial(body), loss=body["loss"], metric=body["metric"], reason=body["reason"], model=body["model"])


def _event(body: Mapping[str, Any], axon: str) -> Event:
    return Event(
        id=body["id"],
        kind=body["kind"],
        axon=axon,
        sensor=body["sensor"],
        trigger=body["trigger"],
        at=datetime.fromisoformat(body["at"]),
        data=body["data"],
    )


def _run(body: Mapping[str, Any], axon: str) -> Run:
    return Run(
        id=body["run"],
        axon=axon,
        sensor=body["sensor"],
        events=tuple(body["events"]),
        event_set=body["eventSet"],
        axon_digest=body["axonDigest"],
        commit=body["commit"],
        started_at=datetime.fromisoformat(body["startedAt"]),
    )


def _task(body: Mapping[str, Any], axon: str, at: datetime) -> TaskRun:
    return TaskRun(
        id=body["taskRun"],
        run=body["run"],
        axon=axon,
        task=body["task"],
        kind=body["taskKind"],
        state=body["state"],
        at=at,
        inputs=body.get("inputs", ""),
        image=body.get("image", ""),
        model=body.get("model", ""),
        data=tuple(body.get("data", ())),
        metrics=body.get("metrics", {}),
        parameters=body.get("parameters", {}),
        trial=body.get("trial", ""),
        version=body.get("version", ""),
        reason=body.get("reason", ""),
        message=body.get("message", ""),
        reused=body.get("reused", ""),
    )
