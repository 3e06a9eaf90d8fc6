"""Fold the ledger's entries into what is done, and the statements that say so.

Laws: folding entries in one go or piece by piece gives the same. What cannot be read is passed over, never guessed.
Trials of a task that ended are let go, so entries that `spent_by` names may be left out of a fold that begins anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from policies.canonical import digest_value, short_name
from policies.terms.build import ResolvedLock
from policies.terms.event import Event
from policies.terms.observed import NOTHING, Recorded
from policies.terms.proposal import Proposal
from policies.terms.record import Entry, Statement
from policies.terms.run import Run, TaskRun
from policies.terms.source import Resolved
from policies.terms.trial import Ask, Tell, TrialRun

LOCK_WORDS = ("path", "image", "beside")
"""What only the proposal of a lock says."""
_NEVER = datetime.min.replace(tzinfo=UTC)


def fold(entries: Iterable[Entry], *, onto: Recorded | None = None) -> Recorded:
    """Fold entries into what is done.

    Args:
        entries: In the ledger's order.
        onto: The fold of all entries before these; entries that it counted are passed over.
    """
    before = onto if onto is not None and onto.entries else Recorded(slices={})
    building: _Building | None = None
    parts: dict[str, _Building] = {}
    latest: dict[str, Entry] = {}
    last: Entry | None = None
    for entry in entries:
        if entry.number <= before.entries:
            continue
        building, last = building or _Building(before), entry
        axon = entry.statement.axon
        if axon not in parts:
            parts[axon] = _Building(before.slices.get(axon, NOTHING) if before.slices is not None else before.of(axon))
        try:
            building.take(entry)
            parts[axon].take(entry)
            latest[axon] = entry
        except (KeyError, TypeError, ValueError, AttributeError):
            continue  # an entry of another Myelin, or a damaged one: what it says is not known, so it is not said
    if building is None or last is None:
        return before
    if before.slices is None:
        return building.result(last)
    slices = {**before.slices, **{axon: parts[axon].result(entry) for axon, entry in latest.items()}}
    return replace(building.result(last), slices=slices)


def spent_by(statement: Statement) -> str:
    """The task run whose trials say nothing any more once this is recorded; empty for none."""
    if statement.kind != "task":
        return ""
    try:
        return _task(statement.body, statement.axon, _NEVER).id
    except (KeyError, TypeError, ValueError, AttributeError):
        return ""


def trial_of(kind: str, key: str) -> str:
    """The task run that an entry of this kind and key tells of a trial of; empty for none."""
    return key.split("/")[1] if kind in ("ask", "tell") and key.count("/") >= 3 else ""


class _Building:
    """A fold on its way."""

    def __init__(self, before: Recorded) -> None:
        self.events, self.runs, self.tasks = dict(before.events), dict(before.runs), dict(before.tasks)
        self.asks, self.tells = dict(before.asks), dict(before.tells)
        self.inputs, self.deploying, self.resolved = dict(before.inputs), dict(before.deploying), set(before.resolved)
        self.proposals, self.statuses = dict(before.proposals), dict(before.statuses)
        self.sources, self.swept, self.images = dict(before.sources), set(before.swept), set(before.images)
        self.locks = dict(before.locks)

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
                self.swept -= {task.model, *task.data}  # made anew, to the same bytes
                self.asks.pop(task.id, None)
                self.tells.pop(task.id, None)
                if task.state == "Succeeded" and task.inputs:
                    self.inputs[task.inputs] = task
            case "ask" | "tell" if body["taskRun"] in self.tasks:
                pass
            case "ask":
                self.asks[body["taskRun"]] = (*self.asks.get(body["taskRun"], ()), _ask(body))
            case "tell":
                self.tells[body["taskRun"]] = (*self.tells.get(body["taskRun"], ()), _tell(body))
            case "image":
                self.images.add(body["digest"])
                if lock := _lock(body, axon):
                    self.locks.pop((axon, lock.folder), None)  # the newest is the last
                    self.locks[axon, lock.folder] = lock
            case "swept":
                self.swept |= set(body["digests"])
                gone = [key for key, task in self.inputs.items() if not self.swept.isdisjoint((task.model, *task.data))]
                for key in gone:
                    del self.inputs[key]
            case "deploying":
                self.deploying[body["taskRun"]] = entry.at
            case "source":
                self.sources[body["run"]] = (*self.sources.get(body["run"], ()), _source(body))
            case "proposal":
                self.proposals[body["taskRun"]] = _proposal(body, axon)
            case "proposed":
                known = self.proposals[body["taskRun"]]
                heads = {**known.heads, body["commit"]: (body["base"], body["shown"])}
                self.proposals[known.task_run] = replace(known, heads=heads)
            case "proposal-ended":
                known = self.proposals[body["taskRun"]]
                self.proposals[known.task_run] = replace(known, ended=body["how"], reason=body["reason"])
            case "status":
                place = (body["commit"], body["context"])
                self.statuses[place] = (*self.statuses.get(place, ()), body["state"])
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
            sources=self.sources,
            proposals=self.proposals,
            statuses=self.statuses,
            images=frozenset(self.images),
            locks=self.locks,
            swept=frozenset(self.swept),
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
        **({"by": run.by} if run.by else {}),
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


def source_statement(axon: str, run: str, found: Resolved) -> Statement:
    """Which commit another repository's revision is for a run: the same one whenever anything is built for it."""
    body = {
        "run": run,
        "repo": found.repo,
        "revision": found.revision,
        "commit": found.commit,
        "trees": dict(found.trees),
        **({"signer": found.signer} if found.signer else {}),
    }
    place = short_name(digest_value([found.repo, found.revision, *([found.signer] if found.signer else [])]))
    return Statement(kind="source", key=f"source/{run}/{place}", axon=axon, body=body)


def proposal_statement(proposal: Proposal) -> Statement:
    """That people are to be asked about a change."""
    body = {
        "taskRun": proposal.task_run,
        "run": proposal.run,
        "proposalKind": proposal.kind,
        "version": proposal.version,
        "branch": proposal.branch,
        "evidence": proposal.evidence,
        "at": proposal.at.isoformat(),
        **{name: value for name in LOCK_WORDS if (value := getattr(proposal, name))},
    }
    return Statement(kind="proposal", key=f"proposal/{proposal.task_run}", axon=proposal.axon, body=body)


def proposed_statement(proposal: Proposal, *, commit: str, base: str, shown: str) -> Statement:
    """Which commit a proposal's branch has, what that is based on, and the digest of what it shows."""
    body = {"taskRun": proposal.task_run, "commit": commit, "base": base, "shown": shown}
    return Statement(kind="proposed", key=f"proposed/{proposal.task_run}/{commit}", axon=proposal.axon, body=body)


def proposal_ended_statement(proposal: Proposal, how: str, reason: str) -> Statement:
    """That nobody is asked any more, and what it came to."""
    body = {"taskRun": proposal.task_run, "how": how, "reason": reason}
    return Statement(kind="proposal-ended", key=f"proposal-ended/{proposal.task_run}", axon=proposal.axon, body=body)


def status_statement(axon: str, *, commit: str, context: str, state: str) -> Statement:
    """That a forge was told how a commit fares."""
    body = {"commit": commit, "context": context, "state": state}
    return Statement(kind="status", key=f"status/{commit}/{context}/{state}", axon=axon, body=body)


def image_statement(axon: str, digest: str, materials: Mapping[str, Any]) -> Statement:
    """That an image was built, and from what."""
    return Statement(kind="image", key=f"image/{axon}/{digest}", axon=axon, body={"digest": digest, "materials": dict(materials)})


def swept_statement(axon: str, digests: Sequence[str], *, after: str) -> Statement:
    """That models and data which nothing needs any more are removed.

    Args:
        axon: Whose work left them.
        digests: Of the artifacts, sorted.
        after: Digest of the entry that was the newest when this was decided: what is made anew may be removed anew.
    """
    key = f"swept/{short_name(digest_value([axon, after, *digests]))}"
    return Statement(kind="swept", key=key, axon=axon, body={"digests": list(digests)})


def _trial_body(task_run: str, run: TrialRun) -> dict[str, Any]:
    return {"taskRun": task_run, "trial": run.trial, "rung": run.rung, "budget": run.budget, "number": run.number}


def _trial(body: Mapping[str, Any]) -> TrialRun:
    return TrialRun(trial=body["trial"], rung=int(body["rung"]), budget=float(body["budget"]), number=int(body["number"]))


def _ask(body: Mapping[str, Any]) -> Ask:
    return Ask(run=_trial(body), config=body["config"], origin=body["origin"])


def _tell(body: Mapping[str, Any]) -> Tell:
    return Tell(run=_trial(body), loss=body["loss"], metric=body["metric"], reason=body["reason"], model=body["model"])


def _source(body: Mapping[str, Any]) -> Resolved:
    return Resolved(
        repo=body["repo"],
        revision=body["revision"],
        commit=body["commit"],
        trees=body["trees"],
        signer=body.get("signer", ""),
    )


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
        by=body.get("by", ""),
    )


def _proposal(body: Mapping[str, Any], axon: str) -> Proposal:
    return Proposal(
        task_run=body["taskRun"],
        run=body["run"],
        axon=axon,
        kind=body["proposalKind"],
        version=body["version"],
        branch=body["branch"],
        evidence=body["evidence"],
        at=datetime.fromisoformat(body["at"]),
        **{name: body.get(name, "") for name in LOCK_WORDS},
    )


def _lock(body: Mapping[str, Any], axon: str) -> ResolvedLock | None:
    """The lock that was resolved for an image; None where it was not, or where its source is another repository's."""
    made = body.get("materials")
    if not isinstance(made, Mapping) or "repo" in made:
        return None
    words = [made.get(name) for name in ("folder", "tree", "lock")]
    if not all(isinstance(word, str) for word in words) or not made["lock"]:
        return None
    return ResolvedLock(axon=axon, folder=made["folder"], tree=made["tree"], digest=made["lock"], image=body["digest"])


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
