"""May we act on this commit? The keys decide; a name, a trailer or a branch has no power.

It never verifies a signature itself: whether one fits its commit is a fact that it is given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from policies.terms.revision import CommitFacts, Pin, TrustedKey
from policies.writeback import is_own, may_touch, same_key

HOW_TO_PIN = "pin who may change this repository: `myelin run --trust FILE`, or spec.trust.signers of the Project object"
HOW_TO_SIGN = "sign it: `git config gpg.format ssh`, `git config user.signingKey FILE`, `git commit -S --amend`"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustState:
    """What is known of a branch's trust, up to some tip."""

    signers: tuple[TrustedKey, ...] = ()
    """Who may sign the commit after `head`."""
    head: str = ""
    """Newest commit of the branch that is trusted with all of its ancestors; empty when there is none."""
    signer_of: Mapping[str, str] = field(default_factory=dict)
    """Trusted commit -> name of who signed it; empty for an unsigned one that was let pass."""
    fault: str = ""
    """Why the branch's tip is not trusted; empty when it is."""
    unsigned: int = 0
    """Unsigned commits that were let pass."""
    signers_after: Mapping[str, tuple[TrustedKey, ...]] = field(default_factory=dict)
    """Trusted commit -> who may sign its children."""


def judge(pin: Pin, commits: Sequence[CommitFacts], *, trusted: TrustState | None, branch: str = "main") -> TrustState:
    """Fold new commits into what is trusted.

    A commit is trusted when all of its parents are, and its signature is by someone whom every parent's `spec.trust.signers`
    names (so a key that was taken out cannot come back by a merge of an old line). The controller's key may touch the
    write-back paths only, and merges nothing. A change of the signers counts from the next commit on. The head never
    leaves its own line:
    it moves only to descendants of itself, along first parents.

    Judging in several steps gives the same answer as judging at once.

    Args:
        pin: The first trust, from outside of the repository.
        commits: Those reachable from the branch's tip and not from the head so far (or `pin.since`), parents first, tip last.
        trusted: What came out of the commits before.
        branch: For messages.
    """
    state = trusted if trusted is not None else TrustState(signers=pin.signers, head=pin.since)
    if not pin.signers and not pin.unsafe_unsigned:
        return TrustState(fault=f"{branch}: nobody is trusted yet; {HOW_TO_PIN}")
    if not commits:
        return state
    signer_of, after, unsigned = dict(state.signer_of), dict(state.signers_after), state.unsigned
    here = {facts.commit: facts for facts in commits}
    refused: dict[str, str] = {}
    for facts in commits:
        if facts.commit in signer_of:
            continue
        if any(parent in refused for parent in facts.parents):
            refused[facts.commit] = ""
            continue
        lists = [after.get(parent, pin.signers) for parent in facts.parents] or [pin.signers]
        name, fault = _judge_one(pin, facts, lists)
        if fault:
            refused[facts.commit] = f"{branch}@sha1:{facts.commit[:6]}…: {fault}"
            continue
        signer_of[facts.commit] = name
        unsigned += facts.signature is None
        after[facts.commit] = facts.signers if facts.signers and facts.signature is not None else lists[0]
    head = _head(state.head, commits, here, signer_of)
    tip = commits[-1].commit
    fault = next((text for text in refused.values() if text), "")
    if not fault and head != tip:
        fault = (
            f"{branch}@sha1:{tip[:6]}…: expected a descendant of the trusted {state.head[:6]}…, the branch was rewritten; "
            "start `myelin run` again if that was meant"
        )
    return TrustState(
        signers=after.get(head, pin.signers),
        head=head,
        signer_of=signer_of,
        fault=fault,
        unsigned=unsigned,
        signers_after=after,
    )


def _judge_one(pin: Pin, facts: CommitFacts, lists: Sequence[tuple[TrustedKey, ...]]) -> tuple[str, str]:
    """The signer's name, and why this commit is not trusted, given who may sign after each of its parents."""
    signature = facts.signature
    if signature is None:
        if not pin.unsafe_unsigned:
            return "", f"expected a signed commit, got an unsigned one; {HOW_TO_SIGN}"
        if any(other != lists[0] for other in lists):
            return "", "merges lines with other spec.trust.signers without a signature"
        if facts.signers and lists[0] and facts.signers != lists[0]:
            return "", "changes spec.trust.signers without a signature, which not even unsafeUnsignedCommits allows"
        return "", ""
    if not signature.key:
        return "", "signed in a way that cannot be read here (OpenPGP or damaged); sign it with an SSH key"
    if not signature.valid:
        return "", f"the signature by {signature.fingerprint} does not fit the commit, which was changed after signing"
    if is_own(facts, pin.controller):
        if len(facts.parents) > 1:
            # What a merge takes from one line and leaves of the other is not among its changed paths.
            return "", "signed by the controller's key, which never merges"
        for path in facts.changed_paths:
            if not may_touch(path, pin.write_back_paths):
                return "", f"signed by the controller's key, which may not touch {path}, only {', '.join(pin.write_back_paths)}"
        return pin.controller.name if pin.controller else "", ""
    name = ""
    for signers in lists:
        name = next((signer.name for signer in signers if same_key(signer.key, signature.key)), "")
        if not name:
            keys = f"none of the {len(signers)} keys" if len(signers) != 1 else "not the 1 key"
            return "", f"signed by {signature.fingerprint}, which is {keys} in spec.trust.signers"
    return name, ""


def _head(head: str, commits: Sequence[CommitFacts], here: Mapping[str, CommitFacts], signer_of: Mapping[str, str]) -> str:
    """The newest trusted commit along the tip's first parents that descends from `head`."""
    onward = {head} if head else set(here)
    for facts in commits:
        if any(parent in onward for parent in facts.parents):
            onward.add(facts.commit)
    at = commits[-1].commit
    while at in here:
        if at in onward and at in signer_of:
            return at
        at = here[at].parents[0] if here[at].parents else ""
    return head
