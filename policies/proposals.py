"""What people are asked before a version comes in or goes out, and when nobody is to be asked any more.

Laws: what was declined is not asked again for the same evidence; a proposal ends once, and only because its task ended,
its run was overtaken, or its change is on the branch. The place of a change in the branch's history is no evidence.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from policies.canonical import digest_value
from policies.errors import DesiredStateError
from policies.evidence import body_of
from policies.tasks import TaskContext
from policies.terms.axon import Deployer
from policies.terms.desired import DesiredState
from policies.terms.observed import Observed
from policies.terms.plan import EndProposal
from policies.terms.project import Project, WriteBackMode
from policies.terms.proposal import Asking, Proposal
from policies.terms.release import Release
from policies.terms.version import Version
from policies.writeback import author_of

MODES: tuple[WriteBackMode, ...] = ("commit", "pull-request", "manual")
DECLINED = "Declined"
"""Reason of a task that people said no to."""
NOTHING_TO_ROLL_BACK = "NothingToRollBack"
"""Reason of a rollback that had no version to take out, or none any more."""


def promotion_mode(project: Project, deployer: Deployer) -> WriteBackMode:
    """How a deployer's versions come in: as it says itself, else as its project says.

    Raises:
        DesiredStateError: It says what is no mode.
    """
    given = deployer.promotion.mode if deployer.promotion is not None else ""
    if not given:
        return project.spec.write_back.promotion_mode
    for mode in MODES:
        if mode == given:
            return mode
    raise DesiredStateError(f"deployer {deployer.name}: promotion.mode: expected {', '.join(MODES)}, got {given}")


def branch_of(kind: Literal["promotion", "rollback"], axon: str, name: str) -> str:
    """The branch that a change is proposed on: one for each change.

    Args:
        kind: What the change does.
        axon: Whose version it is.
        name: The version; for a rollback also the beginning of the alert's event id.
    """
    return f"myelin/{'deploy' if kind == 'promotion' else 'roll-back'}/{axon}/{name}"


def evidence_of_version(version: Version, inputs: str) -> str:
    """Digest of what a version is judged by: what it is made of, and how it does.

    Args:
        version: The version.
        inputs: Digest of deployer, images and models, without the commit and the events that led to them.
    """
    spec = version.spec
    return digest_value(
        {
            "axon": version.metadata.axon,
            "inputs": inputs,
            "metrics": dict(spec.metrics),
            "parameters": dict(spec.parameters),
            "data": list(spec.data),
        }
    )


def declined(observed: Observed, evidence: str) -> Proposal | None:
    """The proposal by which people said no to this very evidence; None when they did not."""
    found = (item for item in observed.recorded.proposals.values() if item.ended == "declined" and item.evidence == evidence)
    return next(found, None)


def proposal_of(
    context: TaskContext, *, kind: Literal["promotion", "rollback"], version: str, evidence: str, name: str
) -> tuple[Proposal, bool]:
    """The proposal of a task, and whether the ledger has it already."""
    known = context.observed.recorded.proposals.get(context.id)
    if known is not None:
        return known, True
    made = Proposal(
        task_run=context.id,
        run=context.run.id,
        axon=context.axon.name,
        kind=kind,
        version=version,
        branch=branch_of(kind, context.axon.name, name),
        evidence=evidence,
        at=context.now.replace(microsecond=0),
    )
    return made, False


def asking(
    context: TaskContext,
    proposal: Proposal,
    is_recorded: bool,
    *,
    version: Version | None,
    before: Release | None,
    after: Release,
) -> Asking:
    """What people are asked about a proposal now."""
    desired = context.desired
    what = "deploy" if proposal.kind == "promotion" else "roll back"
    others = [item for item in desired.versions.values() if item.metadata.axon == context.axon.name]
    alert = next((hold.reason for hold in after.spec.holds if hold.version == proposal.version), "")
    shown = digest_value(
        {"evidence": proposal.evidence, "release": after.model_dump(mode="json", by_alias=True, exclude={"api_version"})}
    )
    body = body_of(
        proposal, version=version, others=others, before=before, after=after, commit=context.run.commit, alert=alert, shown=shown
    )
    return Asking(
        proposal=proposal,
        is_recorded=is_recorded,
        base_branch=desired.revision.branch,
        base=desired.tip,
        is_trusted=desired.is_trusted,
        title=f"{context.axon.name}: {what} {proposal.version}",
        body=body,
        forge=desired.project.spec.write_back.forge,
        review=desired.project.spec.write_back.review,
        author=context.run.by,
        committer=author_of(desired.project),
        shown=shown,
    )


def proposal_steps(desired: DesiredState, observed: Observed) -> Iterator[EndProposal]:
    """Proposals that are over as far as ledger and branch tell."""
    recorded = observed.recorded
    for proposal in recorded.proposals.values():
        if proposal.ended or proposal.kind == "lock":
            continue
        task, run = recorded.tasks.get(proposal.task_run), recorded.runs.get(proposal.run)
        if task is not None and task.state == "Succeeded" and task.reason != NOTHING_TO_ROLL_BACK:
            yield _end(desired, proposal, "merged", f"{proposal.version} is on {desired.revision.branch} as proposed")
        elif task is not None:
            yield _end(desired, proposal, "declined" if task.reason == DECLINED else "overtaken", task.message)
        elif run is not None and run.superseded:
            yield _end(desired, proposal, "overtaken", f"overtaken: {run.superseded}")


def _end(desired: DesiredState, proposal: Proposal, how: Literal["merged", "declined", "overtaken"], reason: str) -> EndProposal:
    return EndProposal(
        axon=proposal.axon,
        task=proposal.version,
        reason=reason,
        proposal=proposal,
        how=how,
        forge=desired.project.spec.write_back.forge,
    )
