"""Stage 6, where people are asked first: a change as a branch of our own and, with a forge, as a pull request.

The ledger knows of a proposal before anything of it is visible; its commits have the instant that the ledger tells. So
dying between any two lines and starting again leaves one branch and one request. The followed branch is never touched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from policies.errors import ConflictError
from policies.proposals import DECLINED
from policies.records import proposal_ended_statement, proposal_statement, proposed_statement, status_statement, task_statement
from policies.statuses import REVIEW, has_ended
from policies.terms.observed import Recorded
from policies.terms.outcome import Change, Outcome, Result
from policies.terms.plan import EndProposal, SetStatus
from policies.terms.proposal import Approval, Asking, Proposal, PullRequest, StatusState
from policies.terms.run import TaskRun
from policies.writeback import check_changes, is_own, message
from reconcilers.ports import Forge, Ports


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """One look at what became of a proposal."""

    asking: Asking
    change: Callable[[], Change]
    result: TaskRun | None
    paths: tuple[str, ...]
    recorded: Recorded
    ports: Ports
    forge: Forge | None
    request: PullRequest | None

    @property
    def proposal(self) -> Proposal:
        return self.asking.proposal

    @property
    def subject(self) -> str:
        return self.proposal.subject


def ask(
    asking: Asking,
    change: Callable[[], Change],
    result: TaskRun | None,
    ports: Ports,
    *,
    recorded: Recorded,
    paths: tuple[str, ...],
) -> Result:
    """Ask people about a change, and see what they said.

    Args:
        asking: What the request is to say now.
        change: Makes the files, where the branch needs them anew; what its statements say counts only once they are on the
            followed branch.
        result: How the task's record looks; people's no makes it a failed one. None: no task waits for the answer, a no ends
            the proposal at once.
        ports: The outside.
        recorded: What the forge was told already.
        paths: What the change may touch: `spec.writeBack.paths`, or the one file of a lock.

    Raises:
        OutsideError: Repository or forge failed us; the next pass goes on from what is there.
    """
    proposal = asking.proposal
    subject = proposal.subject
    if not asking.is_trusted:
        text = f"the tip of {asking.base_branch} is not trusted: nothing is proposed on top of it"
        return Result(outcome=_waits(subject, "Untrusted", text, is_patient=True))
    if not asking.is_recorded:
        return Result(
            outcome=_waits(subject, "Proposing", f"{asking.title}: people are to be asked", look_again=True),
            statements=(proposal_statement(proposal),),
        )
    forge = ports.forges.of(asking.forge) if asking.forge is not None else None
    # The request first, then the branches: what was merged in between is on the branch that is read after it.
    request = forge.find(proposal.branch) if forge is not None and proposal.heads else None
    asked = _Asked(
        asking=asking,
        change=change,
        result=result,
        paths=paths,
        recorded=recorded,
        ports=ports,
        forge=forge,
        request=request,
    )
    tip = ports.repository.fetch(proposal.branch)
    if request is not None and request.state != "open":
        return _answered(asked, request)
    if not tip and proposal.heads:
        return _withdrawn(asked)
    if tip and tip not in proposal.heads and not _is_ours(asked, tip):
        text = f"{proposal.branch}: somebody else pushed to it, so it is left to them; a merge makes it so, deleting it is a no"
        return Result(outcome=_waits(subject, "InReview", text, is_patient=True))
    return _refresh(asked, tip)


def end(step: EndProposal, ports: Ports, *, recorded: Recorded) -> Result:
    """Close the request, end its status, delete its branch, then write down that it ended."""
    proposal = step.proposal
    forge = ports.forges.of(step.forge) if step.forge is not None else None
    statements = []
    if forge is not None:
        request = forge.find(proposal.branch)
        if request is not None and request.state == "open":  # also one whose change came to the branch by hand
            forge.close(request.number, comment=f"Myelin closes this: {step.reason}.")
        state: StatusState = "success" if step.how == "merged" else "failure" if step.how == "declined" else "error"
        for commit in proposal.heads:
            pending = recorded.statuses.get((commit, REVIEW), ())
            if pending and not has_ended(recorded, commit, REVIEW):
                how = state if commit == proposal.head else "error"
                forge.set_status(commit, context=REVIEW, state=how, text=step.reason)
                statements.append(status_statement(proposal.axon, commit=commit, context=REVIEW, state=how))
    tip = ports.repository.fetch(proposal.branch)
    if tip in proposal.heads:
        try:
            ports.repository.withdraw(branch=proposal.branch, expected=tip)
        except ConflictError:
            pass  # somebody took it over in this moment: it is theirs
    outcome = Outcome(state="done", subject=proposal.subject, reason="ProposalEnded", message=step.reason, look_again=True)
    return Result(outcome=outcome, statements=(*statements, proposal_ended_statement(proposal, step.how, step.reason)))


def set_status(step: SetStatus, ports: Ports) -> Result:
    """Tell the forge how a commit fares; told twice is told once."""
    ports.forges.of(step.forge).set_status(step.commit, context=step.context, state=step.state, text=step.reason)
    outcome = Outcome(state="done", subject=step.axon, reason="StatusSet", message=f"{step.context}: {step.state}", is_quiet=True)
    statement = status_statement(step.axon, commit=step.commit, context=step.context, state=step.state)
    return Result(outcome=outcome, statements=(statement,))


def _refresh(asked: _Asked, tip: str) -> Result:
    """Make branch and request what they are to be now, and say how far the review is."""
    proposal, asking, ports = asked.proposal, asked.asking, asked.ports
    if tip and tip == proposal.head:
        base, shown = proposal.heads[tip]
        if shown == asking.shown and (base == asking.base or not asking.follows_base):
            return _review(asked, tip)
    change = asked.change()
    check_changes(change.files, asked.paths)
    trailers = {**change.trailers, "Myelin-Evidence": [asking.shown]}
    commit = ports.repository.propose(
        branch=proposal.branch,
        parent=asking.base,
        changes=change.files,
        message=message(change.subject, change.body, trailers),
        at=proposal.at,
        expected=tip,
        author=asking.committer,
    )
    recorded = proposed_statement(proposal, commit=commit, base=asking.base, shown=asking.shown)
    heads = {**proposal.heads, commit: (asking.base, asking.shown)}
    renewed = replace(asked, asking=replace(asking, proposal=replace(proposal, heads=heads)))
    # Written down before the forge is asked: whatever it says, the branch is ours.
    ports.ledger.record([recorded])
    return _review(renewed, commit)


def _review(asked: _Asked, commit: str) -> Result:
    proposal, asking, forge = asked.proposal, asked.asking, asked.forge
    if forge is None:
        text = f"branch {proposal.branch} waits to be merged into {asking.base_branch}; deleting it is a no"
        return Result(outcome=_waits(asked.subject, "InReview", text, is_patient=True))
    request = asked.request or forge.open(
        head=proposal.branch,
        base=asking.base_branch,
        title=asking.title,
        body=asking.body,
        labels=asking.review.labels,
        reviewers=asking.review.reviewers,
    )
    if (request.title, request.body.strip()) != (asking.title, asking.body.strip()):
        forge.update(request.number, title=asking.title, body=asking.body)
    counted, missing = _counted(asked, forge.approvals(request.number) if asking.review.approvals else ())
    # Which button to press goes before who approved it.
    text = missing or (f"approved by {', '.join(counted)}" if counted and proposal.kind != "lock" else asking.ready)
    statements = []
    told = asked.recorded.statuses.get((commit, REVIEW), ())
    steps: tuple[StatusState, ...] = ("pending",) if missing else ("pending", "success")
    for word in steps:
        # An end state stays: what was approved once is not taken back by a status, the forge's own rules may do that.
        if word not in told and not has_ended(asked.recorded, commit, REVIEW):
            said = text if word == steps[-1] else "the evidence is being looked at"
            forge.set_status(commit, context=REVIEW, state=word, text=said, url=request.url)
            statements.append(status_statement(proposal.axon, commit=commit, context=REVIEW, state=word))
    for older in proposal.heads:
        if older != commit and asked.recorded.statuses.get((older, REVIEW)) and not has_ended(asked.recorded, older, REVIEW):
            forge.set_status(older, context=REVIEW, state="error", text=f"replaced by {commit[:12]}", url=request.url)
            statements.append(status_statement(proposal.axon, commit=older, context=REVIEW, state="error"))
    outcome = _waits(asked.subject, "InReview", f"{request.url}: {text}", is_patient=True)
    return Result(outcome=outcome, statements=tuple(statements))


def _counted(asked: _Asked, approvals: tuple[Approval, ...]) -> tuple[list[str], str]:
    """Who approved this very evidence, and what is missing still; nothing when it is enough."""
    review, proposal, author = asked.asking.review, asked.proposal, asked.asking.author
    seen = {commit for commit, (_, shown) in proposal.heads.items() if shown == asked.asking.shown}
    people = list(dict.fromkeys(item.by for item in approvals if item.commit in seen))
    others = [name for name in people if name.casefold() != author.casefold()]
    if len(people) < review.approvals:
        return people, f"waits for {review.approvals - len(people)} more approvals of this evidence"
    if review.approvals and not review.author_is_enough and not others:
        return people, f"waits for an approval by somebody else than {author}, who signed the commit"
    return people, ""


def _answered(asked: _Asked, request: PullRequest) -> Result:
    """The request was merged or closed."""
    ports, asking = asked.ports, asked.asking
    if request.state == "closed":
        by = f" by {request.ended_by}" if request.ended_by else ""
        return _declined(asked, f"{request.url} was closed without a merge{by}")
    is_here = bool(request.merge_commit) and bool(ports.repository.tree_id(request.merge_commit, ""))
    if is_here and ports.repository.fetch(asking.base_branch) == asking.base:
        # It was merged, we have read the branch since then, and what it brought is not there.
        return _declined(asked, f"{request.url} was merged and taken back")
    text = f"{request.url} was merged; the branch is looked at again"
    return Result(outcome=_waits(asked.subject, "Merged", text, is_patient=True))


def _withdrawn(asked: _Asked) -> Result:
    """The branch is gone, and no request says why."""
    ports, asking = asked.ports, asked.asking
    if ports.repository.fetch(asking.base_branch, fresh=True) != asking.base:
        raise ConflictError(f"{asking.base_branch}: moved while branch {asked.proposal.branch} went; looking again")
    return _declined(asked, f"branch {asked.proposal.branch} was deleted")


def _declined(asked: _Asked, text: str) -> Result:
    proposal = asked.proposal
    said = f"{proposal.version or proposal.path} was declined: {text}"
    outcome = Outcome(state="done", subject=asked.subject, reason=DECLINED, message=said, look_again=True)
    if asked.result is not None:
        ended = replace(asked.result, state="Failed", reason=DECLINED, message=said)
        return Result(outcome=outcome, statements=(task_statement(ended),))
    step = EndProposal(
        axon=proposal.axon, task=proposal.path, reason=said, proposal=proposal, how="declined", forge=asked.asking.forge
    )
    return replace(end(step, asked.ports, recorded=asked.recorded), outcome=outcome)


def _is_ours(asked: _Asked, tip: str) -> bool:
    """Whether a tip that the ledger does not know is one that we made and did not get to write down."""
    facts = asked.ports.repository.facts(since=asked.asking.base, until=tip)
    return bool(facts) and is_own(facts[-1], asked.ports.own)


def _waits(subject: str, reason: str, text: str, *, look_again: bool = False, is_patient: bool = False) -> Outcome:
    return Outcome(state="waiting", subject=subject, reason=reason, message=text, look_again=look_again, is_patient=is_patient)
