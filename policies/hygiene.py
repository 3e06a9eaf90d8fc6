"""Which files of a commit are refused before anybody reads them: too large, links that lead out, odd names, submodules.

Laws: a link that is let through leads, on any file system and through any other such link, to a place inside of its folder;
the order of the files does not matter. Nothing is read here: sizes, modes and link targets are arguments.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from decimal import Decimal
from posixpath import dirname, normpath
from typing import Protocol

from policies.errors import Fault
from policies.writeback import is_plain

LONGEST_LINK_BYTES = 4096
"""A link's target is at most as long as a path may be."""
SHOWN = 3
"""How many refused files one message names."""
_UNITS = {"m": Decimal("0.001"), "u": Decimal("1e-6"), "n": Decimal("1e-9"), "": Decimal(1)}
_UNITS |= {letter: Decimal(1000) ** power for power, letter in enumerate("kMGTPE", start=1)}
_UNITS |= {f"{letter}i": Decimal(1024) ** power for power, letter in enumerate("KMGTPE", start=1)}


class Listed(Protocol):
    """A file as a commit lists it."""

    @property
    def path(self) -> str:
        """From the root of the repository."""
        ...

    @property
    def symlink(self) -> bool:
        """Whether it is a link."""
        ...

    @property
    def submodule(self) -> bool:
        """Whether it is a commit of another repository."""
        ...

    @property
    def size_bytes(self) -> int:
        """Of its content; of its target where it is a link."""
        ...


def bytes_of(quantity: str) -> int:
    """A quantity as Kubernetes writes it, `100Mi`, in bytes, rounded down."""
    number = quantity.rstrip("mukKMGTPEin")
    unit = quantity[len(number) :]
    return int(Decimal(number) * _UNITS[unit])


def refusals(
    folder: str, files: Sequence[Listed], targets: Mapping[str, str], *, largest_bytes: int, submodules: Collection[str] = ()
) -> tuple[Fault, ...]:
    """What keeps a folder from being read, sorted by path; nothing when it may be.

    Args:
        folder: From the root of the repository; empty for the root.
        files: All files below it.
        targets: Path -> where it leads to, for links; one that is not told is refused.
        largest_bytes: Files above it are refused.
        submodules: Paths of submodules that are read too; others are refused, and those that lie in one of them.
    """
    found = [*_clashes(files)]
    for item in files:
        if why := why_odd(item.path):
            found.append(_fault(item.path, "OddName", f"expected a plain name, got {why}"))
        elif item.submodule:
            if item.path not in submodules:
                found.append(_submodule(item.path, submodules))
        elif item.symlink:
            target = targets.get(item.path)
            if target is None or not stays_inside(folder, item.path, target):
                text = f"expected a link to a place inside of {folder or 'the repository'}, got one to {_shown(target or '?')}"
                found.append(_fault(item.path, "LinkLeaves", text))
        elif item.size_bytes > largest_bytes:
            text = f"expected at most {largest_bytes} bytes (spec.source.largestFile), got {item.size_bytes}"
            found.append(_fault(item.path, "FileTooLarge", text))
    return tuple(sorted(found))


def why_odd(path: str) -> str:
    """What is odd about a path, in words; empty when nothing is."""
    if any(0xD800 <= ord(letter) < 0xE000 for letter in path):
        return f"{_shown(path)}, which is no UTF-8"
    return "" if is_plain(path) else _shown(path)


def stays_inside(folder: str, path: str, target: str) -> bool:
    """Whether a link leads to a place inside of `folder`, whatever other links that stay inside it passes on its way.

    A step up that comes after a name is refused: the name may be a link to elsewhere, and then the step leads out of there.

    Args:
        folder: From the root of the repository; empty for the root.
        path: Of the link, from the root of the repository.
        target: As the link has it.
    """
    if not target or len(target) > LONGEST_LINK_BYTES or "\0" in target or target.startswith("/"):
        return False
    parts = [part for part in target.split("/") if part not in ("", ".")]
    ups = next((number for number, part in enumerate(parts) if part != ".."), len(parts))
    if ".." in parts[ups:]:
        return False
    place = normpath("/".join([dirname(path) or ".", *parts]))
    if place == ".." or place.startswith("../"):
        return False
    inside = "" if place == "." else place
    if inside and why_odd(inside):
        return False
    return not folder or inside == folder or inside.startswith(folder + "/")


def told(faults: Sequence[Fault]) -> str:
    """Refused files in one line: the first ones, and how many more there are."""
    more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
    return "; ".join(_line(fault) for fault in faults[:SHOWN]) + more


def _line(fault: Fault) -> str:
    """A refused file by its name, a document with the place in it."""
    return f"{fault.file}: {fault.message}" if fault.line <= 1 and not fault.path else str(fault)


def _clashes(files: Iterable[Listed]) -> Iterable[Fault]:
    """Names that one file system takes for one and another for two."""
    known: dict[str, str] = {}
    said: set[str] = set()
    for path in sorted(item.path for item in files):
        parts = path.split("/")
        for number in range(1, len(parts) + 1):
            part = "/".join(parts[:number])
            first = known.setdefault(unicodedata.normalize("NFC", part).casefold(), part)
            if first != part and part not in said:
                said.add(part)
                yield _fault(part, "NamesClash", f"expected names that differ by more than case, got {_shown(first)} too")
                break  # what lies below would only say it again


def _submodule(path: str, read: Collection[str]) -> Fault:
    outer = next((other for other in read if path.startswith(f"{other}/")), "")
    if outer:
        text = f"expected files, got a submodule inside of the submodule {outer}, which is not followed; copy its files"
        return _fault(path, "NestedSubmodule", text)
    text = "expected files of this repository, got a submodule; set spec.source.submodules, or copy its files"
    return _fault(path, "Submodule", text)


def _fault(path: str, reason: str, message: str) -> Fault:
    return Fault(file=_shown(path), line=1, path="", reason=reason, message=message)


def _shown(path: str) -> str:
    """A path that can be printed, whatever is in it."""
    return path if path.isprintable() and path else ascii(path)
