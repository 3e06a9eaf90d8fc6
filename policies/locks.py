"""Which file of a source folder says what is installed, what its lines mean, and what lock is proposed where there is none.

Laws: what a lock asks for is decided by its text and the target alone; one text at one place is one proposal. Nothing is
read, resolved or fetched here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from policies.canonical import digest_value
from policies.evidence import MARKER
from policies.terms.digest import Digest, digest_of

PYLOCK = "pylock.toml"
UV_LOCK = "uv.lock"
OWN_LOCK = "requirements.lock"
REQUIREMENTS = "requirements.txt"
PRECEDENCE = (PYLOCK, UV_LOCK, OWN_LOCK, REQUIREMENTS)
"""The first that is there counts, and no other: a lock is more exact than what it was made from."""
OURS = "myelin"
"""The earlier client's package on the index has this name; ours takes its place in every image."""
USUAL_GLIBC = 28
"""Minor number of the glibc 2 that nearly all wheels ask for: Debian 10 and RHEL 8 have it, and what came after."""
LONGEST_PLACE = 60
"""Letters of a folder that a branch's name has room for."""
MOST_LISTED = 300
"""Packages that a request lists; forges bound the length of what they show."""

_OPTION = re.compile(r"(?:^|\s)(--?[A-Za-z][A-Za-z-]*)(?:[=\s]\s*(\S+))?")
_HASH = re.compile(r"\s--hash[=\s]\s*(\S+)")
_COMMENT = re.compile(r"(^|\s+)#.*$")
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_SHA256 = re.compile(r"sha256:[0-9a-f]{64}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What wheels are chosen for."""

    python: str
    """`3.11`"""
    platform: str
    """`linux/amd64`"""
    glibc: int = USUAL_GLIBC
    """Minor number of the newest glibc 2 that a wheel may ask for."""
    is_musl: bool = False
    """Whether the system is built on musl, where wheels for glibc do not run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One release that a lock asks for."""

    name: str
    """As indexes write it: lower case, `-` between words."""
    version: str
    hashes: tuple[Digest, ...]
    """One of them must be the file's; sorted."""
    line: int
    """Where the lock asks for it, from 1; 0 where it is our runtime that does."""
    file: str = ""
    """Its file's name; empty where the lock leaves that to the index."""
    url: str = ""
    """Where the lock says the file lies; empty: on the index."""
    is_source: bool = False
    """Whether that file is a source distribution, which a wheel has to be built of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """What is installed, exactly."""

    text: str
    """The lock's own text: what was resolved, or what is in the commit; empty: nothing is asked for."""
    origin: str
    """The file that counted, from the root of the repository; empty: there was none."""
    resolved: bool
    """Whether the text was made now, as the commit has no lock; it goes into the image and is proposed."""
    wheels: tuple[Wanted, ...]
    """Sorted by name; our runtime's are among them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of a requirements file that says something."""

    number: int
    """Where it begins, from 1."""
    kind: Literal["requirement", "option"]
    text: str
    """A requirement without its options, or the option's name."""
    value: str = ""
    """Of an option."""
    hashes: tuple[str, ...] = ()
    """As they are written, `sha256:…`."""
    odd_option: str = ""
    """An option behind a requirement that is none of `--hash`."""


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


def chosen(paths: Collection[str]) -> str:
    """The file that says what is installed; empty: none does."""
    return next((name for name in PRECEDENCE if name in paths), "")


def plain_name(name: str) -> str:
    """A package's name as indexes write it (PyPA, names and normalization)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def name_in(requirement: str) -> str:
    """The package that a requirement begins with, as indexes write it; empty where it begins with none."""
    found = _NAME.match(requirement)
    return plain_name(found[0]) if found else ""


def is_sha256(text: str) -> bool:
    """Whether a hash, as locks write it, is one that counts here."""
    return _SHA256.match(text) is not None


def lines_of(text: str) -> Iterator[Line]:
    """What a requirements file says, in order; comments and empty lines are left out.

    Source:
        pip's reference, requirements file format: continued lines are joined first, then comments are cut.
    """
    number, joined = 1, ""
    begun = 1
    for raw in [*text.splitlines(), ""]:
        if not joined:
            begun = number
        number += 1
        bare = raw.rstrip("\r\n")
        is_comment = bare.lstrip().startswith("#")
        if bare.endswith("\\") and not is_comment:
            joined += bare.strip("\\")
            continue
        # A comment within a continued line ends it, as pip has it: what went before still counts.
        whole, joined = joined + ("" if is_comment else bare), ""
        line = _line(_COMMENT.sub("", whole).strip(), begun)
        if line is not None:
            yield line


def _line(text: str, number: int) -> Line | None:
    if not text:
        return None
    if text.startswith("-"):
        found = _OPTION.match(text)
        if found is None:
            return Line(number=number, kind="option", text=text.split()[0], value="")
        name, value = found[1], found[2] or ""
        if not value and not name.startswith("--") and len(name) > 2:
            name, value = name[:2], name[2:] + text[found.end() :]  # -rother.txt
        return Line(number=number, kind="option", text=name, value=value)
    hashes = tuple(match[1] for match in _HASH.finditer(text))
    rest = _HASH.sub("", text)
    odd = next((match[1] for match in _OPTION.finditer(rest) if match[0].startswith((" ", "\t"))), "")
    return Line(number=number, kind="requirement", text=rest.strip(), hashes=hashes, odd_option=odd)


def merged(own: tuple[Wanted, ...], runtime: tuple[Wanted, ...]) -> tuple[Wanted, ...]:
    """A user's packages without `myelin`, and those of our runtime that they do not have themselves, sorted by name."""
    kept = {item.name: item for item in own if item.name != OURS}
    return tuple(item for _, item in sorted({**{item.name: item for item in runtime}, **kept}.items()))


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
