"""The file that keeps what was resolved: its place, the request that brings it, and what became of that.

Law: one text at one place is one proposal, whatever commit or image it was resolved for.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from policies.canonical import digest_value
from policies.evidence import MARKER
from policies.locks import OWN_LOCK, PRECEDENCE, REQUIREMENTS, Lock, chosen
from policies.terms.digest import Digest, digest_of

LONGEST_PLACE = 60
"""Letters of a folder that a branch's name has room for."""
MOST_LISTED = 300
"""Packages that a request lists; forges bound the length of what they show."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposedLock:
    """The change that keeps a resolution: its file says next time what was resolved this time."""

    path: str
    """From the root of the repository."""
    content: bytes
    branch: str
    """A branch of ours; one for each text, so that what was declined is not asked again."""
    evidence: Digest
    title: str
    body: str


def lock_path(folder: str) -> str:
    """Where the lock of a source folder lies, from the root of the repository; empty for the root's folder."""
    return f"{folder}/{OWN_LOCK}".lstrip("/")


def lock_evidence(path: str, digest: Digest) -> Digest:
    """Digest of what people are asked to judge: this text at this place, whatever image and commit it was resolved for."""
    return digest_value({"path": path, "lock": digest})


def lock_branch(folder: str, evidence: Digest) -> str:
    """The branch that a lock is proposed on: one for each text."""
    place = re.sub(r"[^a-z0-9]+", "-", folder.lower())[:LONGEST_PLACE].strip("-") or "root"
    return f"myelin/lock/{place}/{evidence.removeprefix('sha256:')[:12]}"


def lock_title(folder: str) -> str:
    """What the change is called."""
    return f"{folder or 'requirements'}: lock what was installed"


def proposed_lock(folder: str, lock: Lock, *, base: str = "main", bounded: Collection[str] = ()) -> ProposedLock:
    """The file to propose for a resolution: `requirements.lock` beside the requirements.

    The image that was built of the resolution has that very file in it, so the commit that brings it gives the same image.

    Args:
        folder: The source folder, from the root of the repository; empty for the root.
        lock: One that was resolved.
        base: The branch that it is for.
        bounded: Names of signers who may not change that file.
    """
    path = lock_path(folder)
    evidence = lock_evidence(path, digest_of(lock.text.encode()))
    branch = lock_branch(folder, evidence)
    own = [line for line in lock.text.splitlines() if line and not line[0].isspace() and not line.startswith("#")]
    names = [line.rstrip(" \\") for line in own]
    listed = [f"- {_code(name)}" for name in names[:MOST_LISTED]]
    listed += [f"- and {len(names) - MOST_LISTED} more"] if len(names) > MOST_LISTED else []
    not_by = f" Not with the key of {' or '.join(map(_code, bounded))}, which may not change it: then by hand." if bounded else ""
    body = "\n".join(
        (
            MARKER,
            "",
            f"{_code(lock.origin)} does not say which files are installed, so they were chosen when the image was built.",
            f"With {_code(path)} the same ones are installed every time, each by its SHA-256, until somebody changes it.",
            "The image is the same with and without this change.",
            "",
            "**Squash it, or take it by hand.** The commit on this branch is Myelin's, whose key may not change source. A merge"
            f" commit, a rebase or a fast-forward brings it into {_code(base)}, whose tip is then not trusted: nothing more is"
            " done until it is taken back.",
            "",
            f"- *Squash*: makes one new commit, which counts if whoever signs it may change {_code(path)}.{not_by}",
            "- *By hand*, signed by you:",
            "",
            f"      git fetch origin {branch}",
            "      git cherry-pick -S FETCH_HEAD",
            "",
            "Closing this without a merge is a no that is kept for this very text.",
            "",
            f"{len(names)} package{'' if len(names) == 1 else 's'}:",
            "",
            *listed,
            "",
        )
    )
    return ProposedLock(
        path=path,
        content=lock.text.encode(),
        branch=branch,
        evidence=evidence,
        title=lock_title(folder),
        body=body,
    )


def beside(files: Mapping[str, bytes]) -> Digest:
    """Names what a folder says of its requirements: which of the files that count are there, and what is in them.

    Args:
        files: Those that are there, of `PRECEDENCE`, by name.
    """
    return digest_value({name: digest_of(files[name]) for name in PRECEDENCE if name in files})


def lock_fate(evidence: str, folder: str, was: str, files: Mapping[str, bytes]) -> tuple[Literal["", "merged", "overtaken"], str]:
    """What became of a proposed lock on the branch that is followed, and why; empty while it is still to be asked about.

    Args:
        evidence: Of the proposal.
        folder: The source folder.
        was: What `beside` said when it was proposed.
        files: What the folder has now, of `PRECEDENCE`, by name.
    """
    path = lock_path(folder)
    if OWN_LOCK in files and lock_evidence(path, digest_of(files[OWN_LOCK])) == evidence:
        return "merged", f"{path} is there as proposed"
    if beside(files) == was:
        return "", ""
    name = chosen(files)
    if not name:
        return "overtaken", f"{folder or 'the root'} has no requirements any more"
    what = "are others now" if name == REQUIREMENTS else f"are locked by {name} now"
    return "overtaken", f"the requirements of {folder or 'the root'} {what}"


def _code(text: str) -> str:
    """Text that Markdown takes as it is, without mentions and references."""
    return "`" + "".join(letter for letter in text if letter.isprintable() and letter != "`") + "`"
