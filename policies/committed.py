"""What the controller has committed once, read off its own commits: a person who undid it is not overruled.

The ledger says the same, but not yet where the controller died between a push and its record. Only commits with the
controller's own signature are read; in anybody else's a trailer has no power.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from policies.terms.revision import CommitFacts, TrustedKey
from policies.writeback import is_own


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """What was on the branch by the controller's word, whether it still is or not."""

    versions: frozenset[str] = frozenset()
    """Versions whose record it wrote."""
    rollbacks: frozenset[tuple[str, str]] = frozenset()
    """(event id of the alert, the release's file)."""

    def with_more(self, commits: Iterable[CommitFacts], own: Sequence[TrustedKey]) -> Committed:
        """The same and what those of these commits did that the controller signed with one of its own keys."""
        versions, rollbacks = set(self.versions), set(self.rollbacks)
        for facts in commits:
            if not is_own(facts, own):
                continue
            files = [path.split("/") for path in facts.changed_paths]
            versions |= {parts[-1].removesuffix(".yaml") for parts in files if parts[0] == "versions"}
            said = trailers_of(facts.message)
            if said.get("Myelin-Alert"):
                releases = [path for path in facts.changed_paths if path.startswith("releases/")]
                rollbacks |= {(event, path) for event in said.get("Myelin-Event", ()) for path in releases}
        if len(versions) == len(self.versions) and len(rollbacks) == len(self.rollbacks):
            return self
        return Committed(versions=frozenset(versions), rollbacks=frozenset(rollbacks))


def below(commits: Sequence[CommitFacts], tip: str) -> list[CommitFacts]:
    """Those of these commits that `tip` has behind it, itself among them: what waits on an untrusted tip is on no branch yet.

    Args:
        commits: Parents before children.
        tip: Empty for none.
    """
    wanted, found = {tip}, []
    for facts in reversed(commits):
        if facts.commit in wanted:
            wanted.update(facts.parents)
            found.append(facts)
    return found[::-1]


def trailers_of(message: str) -> Mapping[str, tuple[str, ...]]:
    """The trailers of a message as `policies.writeback.message` writes them: its last paragraph."""
    found: dict[str, tuple[str, ...]] = {}
    for line in message.rstrip("\n").rpartition("\n\n")[2].split("\n"):
        name, colon, value = line.partition(": ")
        if colon and name.startswith("Myelin-"):
            found[name] = (*found.get(name, ()), value)
    return found
