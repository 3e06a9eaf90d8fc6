"""Stage 4: look up which commit another repository's revision is, once for a run. -> a statement in the ledger."""

from __future__ import annotations

from dataclasses import replace

from policies.errors import TrustError
from policies.records import source_statement
from policies.terms.outcome import Outcome, Result
from policies.terms.plan import ResolveSource
from policies.trust import judge_source
from reconcilers.ports import Ports


def resolve(step: ResolveSource, ports: Ports) -> Result:
    """Ask the other repository, and write down what it came to: a run never asks twice.

    Raises:
        TrustError: It must be signed by somebody whom the project trusts, and is not.
    """
    found = ports.sources.resolve(step.source, step.folders)
    if step.source.verify:
        signer, fault = judge_source(found, step.signers)
        if fault:
            raise TrustError(f"{step.source}: {fault}", reason="NotSigned")
        found = replace(found, signer=signer)
    ports.ledger.record([source_statement(step.axon, step.run, found)])
    signed = f", signed by {found.signer}" if found.signer else ""
    message = f"{step.source} is {found.commit[:12]} for this run{signed}"
    outcome = Outcome(state="done", subject=f"{step.axon}/{step.task}", reason="Resolved", message=message, look_again=True)
    return Result(outcome=outcome)
