"""Stage 5: what happened -> signed, chained entries, safe on disk before anything follows from them."""

from __future__ import annotations

from collections.abc import Sequence

from policies.records import event_statement, resolved_statement, run_statement, superseded_statement, task_statement
from policies.terms.outcome import Outcome, Result
from policies.terms.plan import FinishTask, RecordEvent, ResolveAlert, StartRun, SupersedeRun
from reconcilers.ports import Ports


def event(step: RecordEvent, ports: Ports) -> Result:
    """Write down that something happened."""
    ports.ledger.record([event_statement(step.event)])
    return _done(f"{step.axon}/{step.event.sensor}", "EventRecorded", step.reason)


def alert_ended(step: ResolveAlert, ports: Ports) -> Result:
    """Write down that an alert does not hold any more."""
    ports.ledger.record([resolved_statement(step.axon, step.event_id)])
    return _done(step.axon, "AlertEnded", step.reason)


def run(step: StartRun, ports: Ports) -> Result:
    """Write down that a sensor fired; its tasks are due from the next look on."""
    ports.ledger.record([run_statement(step.run)])
    return _done(f"{step.axon}/{step.run.sensor}", "Fired", step.reason)


def supersede(step: SupersedeRun, ports: Ports) -> Result:
    """Stop what a newer commit does not need."""
    for job in step.jobs:
        ports.engine.stop(job)
    ports.ledger.record([superseded_statement(step.run, step.reason)])
    return _done(f"{step.axon}/{step.run.sensor}", "Superseded", step.reason)


def task(step: FinishTask, ports: Ports) -> Result:
    """Write down a task whose end is decided without running anything."""
    ports.ledger.record([task_statement(step.result)])
    state = "done" if step.result.state == "Succeeded" else "stalled"
    message = step.result.message or step.reason
    outcome = Outcome(
        state="done" if state == "done" else "stalled",
        subject=f"{step.axon}/{step.task}",
        reason=step.result.reason or step.result.state,
        message=message,
        look_again=True,
    )
    return Result(outcome=outcome)


def write(results: Sequence[Result], ports: Ports) -> None:
    """Record what the attempts of a pass found to be true."""
    statements = [statement for result in results for statement in result.statements]
    if statements:
        ports.ledger.record(statements)


def _done(subject: str, reason: str, message: str) -> Result:
    return Result(outcome=Outcome(state="done", subject=subject, reason=reason, message=message, look_again=True))
