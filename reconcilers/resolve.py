"""Stage 4: look up which commit another repository's revision is, once for a run. -> a statement in the ledger."""

from __future__ import annotations

from policies.records import source_statement
from policies.terms.outcome import Outcome, Result
from policies.terms.plan import ResolveSource
from reconcilers.ports import Ports


def resolve(step: ResolveSource, ports: Ports) -> Result:
    """Ask the other repository, and write down what it came to: a run never asks twice."""
    found = ports.sources.resolve(step.source, step.folders)
    ports.ledger.record([source_statement(step.axon, step.run, found)])
    message = f"{step.source} is {found.commit[:12]} for this run"
    outcome = Outcome(state="done", subject=f"{step.axon}/{step.task}", reason="Resolved", message=message, look_again=True)
    return Result(outcome=outcome)
