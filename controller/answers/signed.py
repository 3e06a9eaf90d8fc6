"""Who signed single commits, and whether that counted when they came: for answers about a few commits of a long history.

A commit is judged by the signers that its branch named before it; whether all of its ancestors may be trusted as well is
what `verify` says.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace

from policies.terms.revision import CommitFacts, Pin, TrustedKey
from policies.trust import judge
from policies.writeback import is_by

PROJECT_FILE = "myelin.yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A commit, and whether its signature counted."""

    facts: CommitFacts
    by: str
    """Who signed it, by the name that people know; the key where nobody knows it; the claimed author where nobody signed."""
    is_trusted: bool | None
    """None: nobody is pinned here, so that it cannot be said."""
    fault: str
    """Why it did not count; empty when it did."""


def judge_alone(pin: Pin, facts: CommitFacts, signers: tuple[TrustedKey, ...], *, branch: str) -> str:
    """Why a commit does not count, given who might sign when it came; empty when it does."""
    before = "before"
    # As many parents as it has, because some keys never merge.
    one = replace(facts, parents=(before,) * len(facts.parents) or (before,))
    return judge(replace(pin, signers=signers, since=before), [one], trusted=None, branch=branch).fault


def judge_each(pin: Pin, line: Iterable[CommitFacts], *, pinned: Collection[str], branch: str) -> Iterator[Judged]:
    """Commits of one line, each judged by itself.

    Args:
        pin: Whom to trust first.
        line: Oldest first; all that touch `myelin.yaml` are among them.
        pinned: Those that the pin takes as they are, because they are not after `trust.since`.
        branch: For messages.
    """
    signers = pin.signers
    known = dict.fromkeys((*pin.signers, *pin.own))
    for facts in line:
        by = name_among(facts, known)
        known |= dict.fromkeys(facts.signers or ())
        if not pin.signers and not pin.unsafe_unsigned:
            yield Judged(facts=facts, by=by, is_trusted=None, fault="")
            continue
        if facts.commit in pinned:
            yield Judged(facts=facts, by=by, is_trusted=True, fault="")
            continue
        fault = judge_alone(pin, facts, signers, branch=branch)
        yield Judged(facts=facts, by=by, is_trusted=not fault, fault=fault)
        if not fault and facts.signers and facts.signature is not None:
            signers = facts.signers


def name_among(facts: CommitFacts, known: Iterable[TrustedKey]) -> str:
    """Who signed a commit, among the keys that are known; its key where it is none of them."""
    if facts.signature is None or not facts.signature.valid:
        return f"{facts.author} (not signed)"
    return next((key.name for key in known if is_by(facts.signature, key)), facts.signature.fingerprint)
