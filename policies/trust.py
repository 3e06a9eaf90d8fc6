"""May we act on this commit? The keys decide; a name, a trailer or a branch has no power.

It never verifies a signature itself: whether one fits its commit is a fact that it is given.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from policies.terms.revision import CommitFacts, Pin, Signature, TagFacts, TrustedKey
from policies.terms.source import Resolved
from policies.writeback import is_by, is_own, may_touch

HOW_TO_PIN = "pin who may change this repository: `myelin run --trust FILE`, or spec.trust.signers of the Project object"
HOW_TO_SIGN = "sign it: `git config gpg.format ssh`, `git config user.signingKey FILE`, `git commit -S --amend`"
CLOCK_SKEW = timedelta(minutes=5)
"""How much older than its parents a commit may claim to be: clocks differ."""
SIGNED_LATER = timedelta(hours=1)
"""How much older than its commit an OpenPGP signature may claim to be. It is made last, so it is in truth never older; a
key that has expired can only sign with a date of before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocation:
    """A key that counts no more."""

    name: str
    reason: str
    at: frozenset[str]
    """Commits that say so; an empty one for the pin, which is before them all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What holds after one commit, for those that follow it."""

    signers: tuple[TrustedKey, ...]
    """Who may sign its children."""
    listed: tuple[TrustedKey, ...]
    """Whom its `myelin.yaml` names; others than `signers` where nobody has vouched for that yet."""
    revoked: Mapping[str, Revocation]
    """Key -> its revocation."""
    key: str = ""
    """What signed the commit."""
    at: datetime | None = None
    """The committer's instant; None for what is before the pin."""
    parents: tuple[str, ...] = ()
    is_vouched: bool = False
    """Whether the commit is trusted for one that follows it alone. Then it is never what is worked towards."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustState:
    """What is known of a branch's trust, up to some tip."""

    signers: tuple[TrustedKey, ...] = ()
    """Who may sign the commit after `head`."""
    head: str = ""
    """Newest commit of the branch that is trusted with all of its ancestors; empty when there is none."""
    signer_of: Mapping[str, str] = field(default_factory=dict)
    """Trusted commit -> name of who signed it; empty for one that was let pass without a signature that counts."""
    fault: str = ""
    """Why the branch's tip is not trusted; empty when it is."""
    unsigned: int = 0
    """Commits that were let pass without a signature that counts."""
    standing: Mapping[str, Standing] = field(default_factory=dict)
    """Trusted commit -> what holds after it."""


def judge(pin: Pin, commits: Sequence[CommitFacts], *, trusted: TrustState | None, branch: str = "main") -> TrustState:
    """Fold new commits into what is trusted.

    A commit is trusted when all of its parents are, and its signature is by someone whom every parent's `spec.trust.signers`
    names (so a key that was taken out cannot come back by a merge of an old line), within that signer's time and paths. The
    controller's key may touch the write-back paths only, and merges nothing; nor does a signer with paths. What a revoked key
    signed counts where it is an ancestor of the commit that revoked it, and nowhere else. A change of the signers counts from
    the next commit on. The head never leaves its own line: it moves only to descendants of itself, along first parents.

    Where the pin says that ancestors need no signature, a commit whose signer may change everything vouches for all below it;
    a revoked key's commits stay refused.

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
    fold = _Fold(pin, state)
    for facts in commits:
        fold.add(facts)
    here = {facts.commit: facts for facts in commits}
    head = _head(state.head, commits, here, fold.standing)
    tip = commits[-1].commit
    commit, fault = next(((commit, text) for commit, text in fold.refused.items() if text), (tip, fold.passed_over.get(tip, "")))
    if fault:
        fault = f"{branch}@sha1:{commit[:6]}…: {fault}"
    elif head != tip:
        fault = (
            f"{branch}@sha1:{tip[:6]}…: expected a descendant of the trusted {state.head[:6]}…, the branch was rewritten; "
            "start `myelin run` again if that was meant"
        )
    return TrustState(
        signers=fold.standing[head].signers if head in fold.standing else pin.signers,
        head=head,
        signer_of=fold.signer_of,
        fault=fault,
        unsigned=fold.unsigned,
        standing=fold.standing,
    )


def judge_tag(tag: TagFacts, signers: Iterable[TrustedKey], *, name: str) -> tuple[str, str]:
    """Who signed an annotated tag, and why it is not trusted; one of both is empty.

    A tag stands for all that it names, so a signer with paths signs none.

    Args:
        tag: What it says.
        signers: Who may sign it.
        name: The name that it was asked for by: a signed tag that is served under another name is refused.
    """
    subject = f"tag {name}"
    if tag.name != name:
        return "", f"{subject}: expected a tag of this name, got one that was signed as {tag.name}"
    if tag.target_kind != "commit":
        return "", f"{subject}: expected the tag of a commit, got one of a {tag.target_kind}"
    if tag.signature is None:
        return "", f"{subject}: expected a signed tag, got an unsigned one; sign it: `git tag -s`"
    return _judge_alone(tag.signature, tag.at, signers, subject=subject, thing="tag")


def judge_source(found: Resolved, signers: Iterable[TrustedKey]) -> tuple[str, str]:
    """Who signed what another repository's revision came to, and why it is not trusted; one of both is empty.

    A tag is judged by its own signature; a branch or a commit by that of the one commit that it names.
    """
    signed = found.signed
    if isinstance(signed, TagFacts):
        if signed.target != found.commit:
            return "", f"tag {found.revision}: expected the tag of {found.commit[:12]}, got one of {signed.target[:12]}"
        return judge_tag(signed, signers, name=found.revision.removeprefix("refs/").removeprefix("tags/"))
    subject = f"commit {found.commit[:12]}"
    if signed is None or signed.signature is None:
        return "", f"{subject}: expected a signed tag or commit, got an unsigned one; sign it: `git tag -s`, `git commit -S`"
    return _judge_alone(signed.signature, signed.at, signers, subject=subject, thing="commit")


def _judge_alone(
    signature: Signature, at: datetime, signers: Iterable[TrustedKey], *, subject: str, thing: str
) -> tuple[str, str]:
    """The same for a signature that stands alone, without a history that would say more."""
    if fault := _fault_of(signature, at, thing=thing):
        return "", f"{subject}: {fault}"
    keys = tuple(signers)
    found = [key for key in keys if is_by(signature, key)]
    if not found:
        return "", f"{subject}: {_stranger(signature, len(keys))}"
    if revoked := next((key for key in found if key.revoked), None):
        return "", f"{subject}: signed by {revoked.name}, whose key was revoked: {revoked.revoked}"
    if found[0].paths:
        return (
            "",
            f"{subject}: signed by {found[0].name}, who may change {', '.join(found[0].paths)} only, and no {thing} elsewhere",
        )
    if fault := _out_of_time(found[0], signature, at, ()):
        return "", f"{subject}: {fault}"
    return found[0].name, ""


class _Fold:
    """Judges one commit after another, parents first."""

    def __init__(self, pin: Pin, state: TrustState) -> None:
        self.pin = pin
        self.signer_of, self.standing, self.unsigned = dict(state.signer_of), dict(state.standing), state.unsigned
        self.refused: dict[str, str] = {}
        """Commit -> why; empty where it is a parent's fault."""
        self.passed_over: dict[str, str] = {}
        """Commit that somebody may yet vouch for -> why it is not trusted by itself."""
        self.passed: dict[str, Standing] = {}
        self._start = Standing(signers=pin.signers, listed=pin.signers, revoked=_revoked({}, pin.signers, ""))

    def add(self, facts: CommitFacts) -> None:
        """Judge one commit."""
        if facts.commit in self.signer_of:
            return
        if any(parent in self.refused for parent in facts.parents):
            self.refused[facts.commit] = ""
            return
        before = [self._standing(parent) for parent in facts.parents] or [self._start]
        if fault := self._revoked_fault(facts, before):
            self.refused[facts.commit] = fault
            return
        signer, fault = _judge_one(self.pin, facts, before)
        unvouched = [parent for parent in facts.parents if parent in self.passed]
        vouches = signer is not None and not signer.paths and not is_own(facts, self.pin.own)
        if not fault and unvouched and not vouches:
            fault = f"follows {unvouched[0][:6]}…, which nobody vouched for; only a signer who may change everything does"
        if fault and self.pin.ancestors:
            self.refused[facts.commit] = fault
            return
        after = self._after(facts, before, signer, is_passed=bool(fault), vouches=vouches)
        if fault:
            self.passed_over[facts.commit], self.passed[facts.commit] = fault, after
            return
        self._vouch(unvouched)
        self.signer_of[facts.commit] = signer.name if signer is not None else ""
        self.standing[facts.commit] = after
        self.unsigned += facts.signature is None

    def _after(
        self, facts: CommitFacts, before: Sequence[Standing], signer: TrustedKey | None, *, is_passed: bool, vouches: bool
    ) -> Standing:
        first = before[0]
        listed = facts.signers or first.listed
        if is_passed:
            # Nobody whom one of the lines has taken out.
            signers = tuple(key for key in first.signers if all(key in other.signers for other in before[1:]))
        elif facts.signers and facts.signature is not None:
            signers = facts.signers
        else:
            signers = listed if vouches and not self.pin.ancestors else first.signers
        revoked = first.revoked
        for other in before[1:]:
            revoked = _joined(revoked, other.revoked)
        if signers is not first.signers:
            revoked = _revoked(revoked, signers, facts.commit)
        return Standing(
            signers=signers,
            listed=listed,
            revoked=revoked,
            key=_two_words(signer.key) if signer is not None else _proven(facts.signature),
            at=facts.at,
            parents=facts.parents,
        )

    def _vouch(self, commits: list[str]) -> None:
        """Trust commits that were let pass, and what lies below them."""
        waiting = list(commits)
        while waiting:
            commit = waiting.pop()
            if (standing := self.passed.pop(commit, None)) is not None:
                del self.passed_over[commit]
                self.standing[commit], self.signer_of[commit] = replace(standing, is_vouched=True), ""
                self.unsigned += 1
                waiting += standing.parents

    def _revoked_fault(self, facts: CommitFacts, before: Sequence[Standing]) -> str:
        """Why this commit brings in what a revoked key signed; empty when it does not."""
        signature = facts.signature
        if signature is not None and signature.valid:
            known = [key.key for standing in before for key in (*standing.signers, *self.pin.own) if is_by(signature, key)]
            keys = sorted({_two_words(text) for text in (signature.key, *known)})
            for revocation in (standing.revoked[key] for standing in before for key in keys if key in standing.revoked):
                return f"signed by {revocation.name}, whose key was revoked{_where(revocation)}: {revocation.reason}"
        if all(other.revoked is before[0].revoked or other.revoked == before[0].revoked for other in before[1:]):
            return ""
        # What each line brings was judged by its own revocations; now it has to hold for those of all the others.
        brought = self._ancestors(facts.parents)
        for key in sorted({key for standing in before for key in standing.revoked}):
            signed = {commit for commit in brought if self._standing(commit).key == key}
            for revocation in (standing.revoked[key] for standing in before if key in standing.revoked):
                for commit in sorted(revocation.at):
                    if late := min(signed - self._ancestors([commit]), default=""):
                        return (
                            f"merges {late[:6]}… by {revocation.name}, whose key was revoked{_where(revocation)}: "
                            f"{revocation.reason}; leave that commit out, or have somebody else make it"
                        )
        return ""

    def _standing(self, commit: str) -> Standing:
        return self.standing.get(commit) or self.passed.get(commit) or self._start

    def _ancestors(self, commits: Iterable[str]) -> set[str]:
        """Commits since the pin that are reachable from these, with them."""
        found: set[str] = set()
        waiting = list(commits)
        while waiting:
            commit = waiting.pop()
            if commit not in found and (commit in self.standing or commit in self.passed):
                found.add(commit)
                waiting += self._standing(commit).parents
        return found


def _judge_one(pin: Pin, facts: CommitFacts, before: Sequence[Standing]) -> tuple[TrustedKey | None, str]:
    """The signer, and why this commit is not trusted, given what holds after each of its parents."""
    signature, first = facts.signature, before[0]
    if signature is None:
        if not pin.unsafe_unsigned:
            return None, f"expected a signed commit, got an unsigned one; {HOW_TO_SIGN}"
        if any(other.signers != first.signers for other in before):
            return None, "merges lines with other spec.trust.signers without a signature"
        if facts.signers and first.signers and facts.signers != first.signers:
            return None, "changes spec.trust.signers without a signature, which not even unsafeUnsignedCommits allows"
        return None, ""
    if fault := _fault_of(signature, facts.at, thing="commit"):
        return None, fault
    if own := next((key for key in pin.own if is_by(signature, key)), None):
        return own, _out_of_bounds(pin.write_back_paths, facts, "the controller's key")
    signer: TrustedKey | None = None
    for standing in before:
        found = [key for key in standing.signers if is_by(signature, key)]
        if not found:
            return None, _stranger(signature, len(standing.signers))
        faults = [_out_of_time(key, signature, facts.at, before) or _out_of_paths(key, facts) for key in found]
        if all(faults):
            return None, faults[0]
        signer = found[faults.index("")]
    return signer, ""


def _fault_of(signature: Signature, at: datetime, *, thing: str) -> str:
    """Why a signature counts for nobody; empty when it may count."""
    if not signature.valid and signature.fault:
        return signature.fault
    if not signature.key:
        return "signed in a way that cannot be read here; sign it with an SSH key, OpenPGP or gitsign"
    if not signature.valid:
        return f"the signature by {signature.fingerprint} does not fit the {thing}, which was changed after signing"
    if signature.kind == "openpgp" and signature.at is not None and signature.at < at - SIGNED_LATER:
        return (
            f"the signature by {signature.fingerprint} claims to be of {_day(signature.at)}, before the {thing} that it signs, "
            f"which is of {_day(at)}"
        )
    return ""


def _out_of_time(key: TrustedKey, signature: Signature, at: datetime, before: Sequence[Standing]) -> str:
    """Why a signature is outside of the time in which its key counts; empty when it is not."""
    is_proven = signature.kind == "sigstore" and signature.at is not None
    # What is only claimed counts at its earliest for the beginning, at its latest for the end.
    earliest = signature.at if is_proven and signature.at is not None else at
    latest = max(earliest, signature.at) if signature.at is not None else earliest
    if key.valid_from is not None and earliest < key.valid_from:
        return f"signed by {key.name}, who counts from {_day(key.valid_from)} on, and it is of {_day(earliest)}"
    if key.valid_until is not None and latest >= key.valid_until:
        return f"signed by {key.name}, who counted until {_day(key.valid_until)}, and it is of {_day(latest)}"
    is_bounded = key.valid_from is not None or key.valid_until is not None or key.kind == "openpgp"
    newest = max((standing.at for standing in before if standing.at is not None), default=None)
    if is_bounded and not is_proven and newest is not None and at < newest - CLOCK_SKEW:
        return (
            f"signed by {key.name}, who counts for a time only, so it must not claim to be older than its parents: "
            f"expected {_day(newest)} or later, got {_day(at)}; look at the clock, and commit it again"
        )
    return ""


def _out_of_paths(key: TrustedKey, facts: CommitFacts) -> str:
    return _out_of_bounds(key.paths, facts, f"the key of {key.name}") if key.paths else ""


def _out_of_bounds(paths: Sequence[str], facts: CommitFacts, whose: str) -> str:
    """Why a commit goes beyond the paths of its signer; empty when it does not."""
    if len(facts.parents) > 1:
        # What a merge takes from one line and leaves of the other is not among its changed paths.
        return f"signed by {whose}, which never merges"
    for path in facts.changed_paths:
        if not may_touch(path, paths):
            return f"signed by {whose}, which may not touch {path}, only {', '.join(paths) or 'nothing'}"
    return ""


def _stranger(signature: Signature, number: int) -> str:
    keys = f"none of the {number} keys" if number != 1 else "not the 1 key"
    return f"signed by {signature.fingerprint}, which is {keys} in spec.trust.signers"


def _joined(one: Mapping[str, Revocation], other: Mapping[str, Revocation]) -> Mapping[str, Revocation]:
    """Revocations of two lines, as one of the two where that says it all."""
    if one is other or one == other:
        return one
    found = dict(one)
    for key, revocation in other.items():
        known = found.get(key)
        at = revocation.at | known.at if known is not None else revocation.at
        said = min([item for item in (known, revocation) if item is not None], key=lambda item: (item.name, item.reason))
        found[key] = Revocation(name=said.name, reason=said.reason, at=at)
    return found


def _revoked(known: Mapping[str, Revocation], signers: Iterable[TrustedKey], commit: str) -> Mapping[str, Revocation]:
    """What is revoked after a commit that names these signers. A revocation is final: no later list takes it back."""
    new = {
        _two_words(signer.key): Revocation(name=signer.name, reason=signer.revoked, at=frozenset({commit}))
        for signer in signers
        if signer.revoked and _two_words(signer.key) not in known
    }
    return {**known, **new} if new else known


def _proven(signature: Signature | None) -> str:
    return _two_words(signature.key) if signature is not None and signature.valid else ""


def _two_words(key: str) -> str:
    return " ".join(key.split()[:2])


def _where(revocation: Revocation) -> str:
    commits = sorted(commit for commit in revocation.at if commit)
    return f" in {commits[0][:6]}…" if commits else ""


def _day(at: datetime) -> str:
    return at.strftime("%Y-%m-%d %H:%MZ")


def _head(head: str, commits: Sequence[CommitFacts], here: Mapping[str, CommitFacts], standing: Mapping[str, Standing]) -> str:
    """The newest trusted commit along the tip's first parents that descends from `head`."""
    onward = {head} if head else set(here)
    for facts in commits:
        if any(parent in onward for parent in facts.parents):
            onward.add(facts.commit)
    at = commits[-1].commit
    while at in here:
        if at in onward and at in standing and not standing[at].is_vouched:
            return at
        at = here[at].parents[0] if here[at].parents else ""
    return head
