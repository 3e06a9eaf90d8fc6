"""Which file of a source folder says what is installed, and what its lines mean.

Law: what a lock asks for is decided by its text and the target alone. Nothing is read, resolved or fetched here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal

from policies.terms.digest import Digest

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
