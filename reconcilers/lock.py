"""Stage 6: a lock that was resolved while an image was built, as a pull request of one file.

Its text comes from the image's signed provenance, and is the one whose digest the ledger has, or nothing is proposed.
"""

from __future__ import annotations

from dataclasses import replace

from policies.errors import ConflictError, TrustError
from policies.lock_files import ProposedLock, beside, lock_fate, proposed_lock
from policies.locks import PRECEDENCE, REQUIREMENTS, Lock
from policies.terms.digest import Digest
from policies.terms.observed import Recorded
from policies.terms.outcome import Change, Outcome, Result
from policies.terms.plan import EndProposal, ProposeLock
from reconcilers import propose
from reconcilers.ports import Ports


def propose_lock(step: ProposeLock, ports: Ports, *, recorded: Recorded) -> Result:
    """Ask people to keep a lock, or see what became of that.

    Args:
        step: What is due.
        ports: The outside.
        recorded: What the ledger says of proposals and statuses.

    Raises:
        TrustError: The text is not to be had as it was recorded.
        OutsideError: Repository, image store or forge failed us; the next pass goes on from what is there.
    """
    asking, made = step.asking, None
    if asking.is_trusted:
        names = {f"{step.folder}/{name}".lstrip("/"): name for name in PRECEDENCE}
        there = {names[path]: text for path, text in ports.repository.read_many(asking.base, list(names)).items()}
        if not asking.is_recorded:
            asking = replace(asking, proposal=replace(asking.proposal, beside=beside(there)))
        how, why = lock_fate(asking.proposal.evidence, step.folder, asking.proposal.beside, there)
        if how:
            return _over(step, how, why, ports, recorded=recorded)
        made = _read(step, ports)
        asking = replace(asking, body=made.body if made is not None else "")
    path = asking.proposal.path

    def change() -> Change:
        if made is None:
            raise ConflictError(f"branch {asking.proposal.branch}: moved while we looked; looking again")
        text = f"Resolved for image {asking.proposal.image}, which is the same with it."
        return Change(subject=asking.title, body=text, files={path: made.content}, trailers={})

    return propose.ask(asking, change, None, ports, recorded=recorded, paths=(path,))


def _over(step: ProposeLock, how: str, why: str, ports: Ports, *, recorded: Recorded) -> Result:
    """The followed branch has the answer."""
    if not step.asking.is_recorded:
        return Result(outcome=Outcome(state="done", subject=step.axon, reason="Locked", message=why, is_quiet=True))
    ended = EndProposal(
        axon=step.axon,
        task=step.task,
        reason=why,
        proposal=step.asking.proposal,
        how="merged" if how == "merged" else "overtaken",
        forge=step.asking.forge,
    )
    return propose.end(ended, ports, recorded=recorded)


def _read(step: ProposeLock, ports: Ports) -> ProposedLock | None:
    """The proposed file: off the branch, once it is there, so that the image may go; None where nobody needs it any more."""
    proposal = step.asking.proposal
    tip = ports.repository.fetch(proposal.branch)
    for commit in dict.fromkeys((tip, proposal.head)):
        if commit in proposal.heads and ports.repository.tree_id(commit, proposal.path):
            return _made(step, ports.repository.read(commit, proposal.path).decode(errors="replace"))
    if proposal.heads and not tip:
        return None
    return _made(step, ports.images.lock(Digest(proposal.image)))


def _made(step: ProposeLock, text: str) -> ProposedLock:
    origin = f"{step.folder}/{REQUIREMENTS}".lstrip("/")
    lock = Lock(text=text, origin=origin, resolved=True, wheels=())
    made = proposed_lock(step.folder, lock, base=step.asking.base_branch, bounded=step.bounded)
    proposal = step.asking.proposal
    if made.evidence != proposal.evidence:
        text = f"image {proposal.image}: expected the lock that was recorded for {proposal.path} in its provenance, got another"
        raise TrustError(text, reason="OtherLock")
    return made
