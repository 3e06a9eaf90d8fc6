"""What a commit did to a release, for people: which version came in, went out, was held or let go.

Law: it follows from the release before and after alone; a message or trailer has no say.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from policies.terms.release import Release

What = Literal["version", "promotion", "rollback", "hold", "lift", "shadow", "removal", "rewrite"]
"""The last two are of the version's record: it was taken off the branch, or changed, which a record never should be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """One version that fares differently after a commit."""

    version: str
    what: What
    why: str
    alert: str = ""
    """Event id of the alert that a hold names; empty where it names none."""


def changes_of(before: Release | None, after: Release | None) -> Iterator[Changed]:
    """How each version fares after a commit, compared with before it.

    A share that only makes room for another version is told with that one.
    """
    old = {item.version: item.share for item in before.spec.traffic if item.share} if before else {}
    new = {item.version: item.share for item in after.spec.traffic if item.share} if after else {}
    held_before = {hold.version for hold in before.spec.holds} if before else set()
    holds = {hold.version: hold for hold in after.spec.holds} if after else {}
    taken_out = [version for version in old if version not in new and version in holds]
    for version in taken_out:
        yield Changed(version=version, what="rollback", why=holds[version].reason, alert=holds[version].alert)
    for version, hold in holds.items():
        if version not in held_before and version not in taken_out:
            yield Changed(version=version, what="hold", why=hold.reason, alert=hold.alert)
    for version in sorted(held_before - set(holds)):
        yield Changed(version=version, what="lift", why="")
    risen = [version for version in new if new[version] > old.get(version, 0)]
    for version in risen:
        # When one falls, the others only take over what it had.
        if not taken_out or version not in old:
            before_text = f"share {old[version]} -> {new[version]}" if version in old else f"share {new[version]}"
            yield Changed(version=version, what="promotion", why=before_text)
    for version in old:
        if version not in new and version not in holds and (not risen or not new):
            yield Changed(version=version, what="rollback", why=f"share {old[version]} -> 0")
    shadow_before, shadow = before.spec.shadow if before else "", after.spec.shadow if after else ""
    if shadow and shadow != shadow_before:
        yield Changed(version=shadow, what="shadow", why="gets mirrored traffic")
