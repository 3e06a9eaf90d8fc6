"""Which locks people are asked to keep, and when nobody is to be asked any more.

Laws: one text at one place is asked about once; it is asked about only while the newest image of its folder, as that is now,
was built by it. The text itself is not here: the ledger has its digest, the image's provenance has the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from policies.lock_files import lock_branch, lock_evidence, lock_path, lock_title
from policies.locks import OWN_LOCK
from policies.terms.build import ResolvedLock
from policies.terms.desired import DesiredAxon, DesiredState
from policies.terms.observed import Observed, Recorded
from policies.terms.plan import EndProposal, ProposeLock
from policies.terms.proposal import Asking, Proposal
from policies.writeback import author_of, may_touch

READY = "squash it or take it by hand: a merge brings in a commit by Myelin, which may not change source"
"""What is said beside the button that people press."""


def lock_steps(desired: DesiredState, observed: Observed, now: datetime) -> Iterator[ProposeLock | EndProposal]:
    """Locks to ask people about, and proposals of them that are over as far as ledger and manifests tell.

    Args:
        desired: Says whether there is a forge, and what is built of which folder.
        observed: What the ledger says.
        now: This instant, UTC.
    """
    recorded = observed.recorded
    wanted = {item.path: item for item in _wanted(desired, recorded, now)} if is_asked(desired) else {}
    for proposal in recorded.proposals.values():
        if proposal.kind != "lock" or proposal.ended:
            continue
        if why := _why_over(desired, proposal, wanted.get(proposal.path)):
            yield EndProposal(
                axon=proposal.axon,
                task=proposal.path,
                reason=why,
                proposal=proposal,
                how="overtaken",
                forge=desired.project.spec.write_back.forge,
            )
        else:
            yield _step(desired, proposal, is_recorded=True)
    for made in wanted.values():
        if made.task_run not in recorded.proposals:
            yield _step(desired, made, is_recorded=False)


def is_asked(desired: DesiredState) -> bool:
    """Whether people are asked about locks: there is a forge to ask them on, and nobody said that they are not to be."""
    spec = desired.project.spec
    return spec.write_back.forge is not None and spec.builder.propose_locks


def _wanted(desired: DesiredState, recorded: Recorded, now: datetime) -> Iterator[Proposal]:
    """The proposals that the newest locks make, one for each folder."""
    # In the order of record: of several locks of one folder, the last one counts.
    newest = {
        lock.folder: lock
        for lock in recorded.locks.values()
        if (axon := desired.axons.get(lock.axon)) is not None and _is_now(axon, lock)
    }
    for folder, lock in sorted(newest.items()):
        path = lock_path(folder)
        evidence = lock_evidence(path, lock.digest)
        yield Proposal(
            task_run=evidence,
            run="",
            axon=lock.axon,
            kind="lock",
            version="",
            branch=lock_branch(folder, evidence),
            evidence=evidence,
            at=now.replace(microsecond=0),
            path=path,
            image=lock.image,
        )


def _is_now(axon: DesiredAxon, lock: ResolvedLock) -> bool:
    """Whether a lock was resolved for a folder as it is now, and that folder is ours to propose a file in."""
    within = (module.path for module in axon.submodules.get(lock.folder, ()))
    is_elsewhere = any(lock.folder == path or lock.folder.startswith(path + "/") for path in within)
    return axon.trees.get(lock.folder) == lock.tree and not is_elsewhere


def _why_over(desired: DesiredState, proposal: Proposal, newest: Proposal | None) -> str:
    """Why a lock is not to be asked about any more; empty while it is, or where that cannot be told."""
    if not is_asked(desired):
        return "locks are not proposed any more"
    if newest is not None and newest.evidence != proposal.evidence:
        return "another lock was resolved since then"
    folder = proposal.path.removesuffix(OWN_LOCK).rstrip("/")
    if desired.is_trusted and not desired.faults and not any(axon.trees.get(folder) for axon in desired.axons.values()):
        return f"nothing is built of {folder or 'the root'} any more"
    return ""


def _step(desired: DesiredState, proposal: Proposal, *, is_recorded: bool) -> ProposeLock:
    project = desired.project
    folder = proposal.path.removesuffix(OWN_LOCK).rstrip("/")
    asking = Asking(
        proposal=proposal,
        is_recorded=is_recorded,
        base_branch=desired.revision.branch,
        base=desired.tip,
        is_trusted=desired.is_trusted,
        title=lock_title(folder),
        body="",
        forge=project.spec.write_back.forge,
        review=project.spec.write_back.review,
        author="",
        committer=author_of(project),
        shown=proposal.evidence,
        ready=READY,
        follows_base=False,
    )
    return ProposeLock(
        axon=proposal.axon,
        task=proposal.path,
        reason=f"{folder or 'the root'} has no lock that fits",
        asking=asking,
        folder=folder,
        bounded=tuple(key.name for key in desired.signers if key.paths and not may_touch(proposal.path, key.paths)),
    )
