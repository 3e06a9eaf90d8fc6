"""Submodules: what `.gitmodules` says -> which commits of which repositories lie in a folder. Nothing is fetched here.

Laws: what is read here, Git reads the same way; a commit comes from the tree alone, never from a name that could move.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from policies.errors import Fault
from policies.terms.project import GIT_URL
from policies.terms.source import Submodule

MODULES_FILE = ".gitmodules"
LARGEST_MODULES_BYTES = 1 << 20
_NOTHING = re.compile(r"(?:[ \t\r\n]|[#;][^\n]*)*")
_SPACE, _COMMENT = re.compile(r"[ \t]*"), re.compile(r"[^\n]*")
_HEADER = re.compile(r'\[([A-Za-z0-9.-]+)(?:[ \t]+"((?:[^"\\\n]|\\[^\n])*)")?\]')
_KEY = re.compile(r"([A-Za-z][A-Za-z0-9-]*)[ \t]*(?:(=)|(?=\n)|\Z)")
_ESCAPES = {"n": "\n", "t": "\t", "b": "\b", '"': '"', "\\": "\\", "\n": ""}
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*://[^/]*)(/.*)?")
_SCP = re.compile(r"([^/:]+:)(.*)")


@dataclass(slots=True)
class _Entry:
    """One section of the file."""

    name: str
    line: int
    values: dict[str, tuple[str, int]]
    """Key -> value and line."""


def submodules_in(
    folder: str, gitlinks: Mapping[str, str], text: bytes | None, *, own: str
) -> tuple[tuple[Submodule, ...], tuple[Fault, ...]]:
    """The submodules that a folder holds or lies in, sorted by path, and what is wrong with how they are told.

    Args:
        folder: From the root of the repository; empty for the root.
        gitlinks: Path -> commit of every submodule of the repository.
        text: Content of `.gitmodules` at the same commit; None: it is no file that may be read.
        own: URL of the repository, which relative URLs start from.
    """
    wanted = [path for path in sorted(gitlinks) if _concerns(folder, path)]
    if not wanted:
        return (), ()
    if text is None:
        words = (
            f"expected a plain file of at most {LARGEST_MODULES_BYTES} bytes that tells where {wanted[0]} comes from, got none"
        )
        return (), (_fault(1, "", words),)
    entries, faults = _read(text)
    if faults:
        return (), faults
    found, wrong = [], []
    for path in wanted:
        made = _told(path, gitlinks[path], entries, own)
        if isinstance(made, Fault):
            wrong.append(made)
        else:
            found.append(made)
    return tuple(found), tuple(wrong)


def holder_of(folder: str, gitlinks: Iterable[str]) -> str:
    """The path of the submodule that a folder is, or lies in; empty where it is in none."""
    return next((path for path in gitlinks if _is_below(folder, path)), "")


def tree_within(folder: str, gitlinks: Mapping[str, str]) -> str:
    """A name, 40 hexadecimal characters, for what a folder in a submodule holds; empty where it is in none.

    It follows from the pinned commit, so it is known before anything is fetched; equal names mean equal content.
    """
    path = holder_of(folder, gitlinks)
    if not path:
        return ""
    inner = folder[len(path) + 1 :]
    return hashlib.sha256(f"submodule {gitlinks[path]} {inner}".encode()).hexdigest()[:40] if inner else gitlinks[path]


def url_from(own: str, url: str) -> str:
    """A submodule's URL, where it is relative from the repository's own; empty where that leads out of its server.

    Source:
        git-submodule(1), `add`: a URL that begins with `./` or `../`.
    """
    if not url.startswith(("./", "../")):
        return url
    base = own.rstrip("/")
    head, tail = "", base
    for pattern in (_SCHEME, _SCP):
        if (found := pattern.fullmatch(base)) is not None:
            head, tail = found[1], found[2] or ""
            break
    # `host:part` becomes `host:other`: a slash there would start from the root of that machine.
    is_absolute = tail.startswith("/") or "://" in head
    while True:
        if url.startswith("./"):
            url = url[2:]
        elif url.startswith("../"):
            url = url[3:]
            if not tail.strip("/"):
                return ""
            tail = tail.rpartition("/")[0] if "/" in tail else ""
        else:
            break
    if not url.strip("/") or ".." in url.split("/"):
        return ""
    return f"{head}{tail}{'/' if tail or is_absolute else ''}{url.rstrip('/')}"


def _told(path: str, commit: str, entries: list[_Entry], own: str) -> Submodule | Fault:
    named = [entry for entry in entries if entry.values.get("path", ("", 0))[0].rstrip("/") == path]
    if not named:
        return _fault(1, "", f"expected an entry with path = {path}, got none")
    if len(named) > 1:
        return _fault(named[1].line, "", f"expected one entry with path = {path}, line {named[0].line} has it already")
    entry = named[0]
    where = f"submodule.{entry.name}.url" if entry.name.isprintable() else "url"
    url, line = entry.values.get("url", ("", entry.line))
    if not url:
        return _fault(line, where, "expected a Git URL, got none")
    whole = url_from(own, url)
    if not whole:
        return _fault(line, where, "expected a URL that stays on its server, got one that leads out of it")
    if not re.fullmatch(GIT_URL, whole) or not whole.isprintable():
        # The text is not shown: it may hold a password.
        return _fault(line, where, "expected a Git URL without a password")
    if _is_local(whole) and not _is_local(own):
        return _fault(line, where, "expected a URL of a Git server, got a path of this machine")
    return Submodule(path=path, url=whole, commit=commit)


def _read(text: bytes) -> tuple[list[_Entry], tuple[Fault, ...]]:
    """The file's sections about submodules, as Git reads its settings; what it has besides means nothing here."""
    try:
        whole = text.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError:
        return [], (_fault(1, "", "expected UTF-8"),)
    known: dict[str, _Entry] = {}
    entry: _Entry | None = None
    is_inside, at = False, 0
    while (at := _after(_NOTHING, whole, at)) < len(whole):
        line = whole.count("\n", 0, at) + 1
        if (header := _HEADER.match(whole, at)) is not None:
            is_inside, entry, at = True, None, header.end()
            if header[1].lower() == "submodule" and header[2] is not None:
                name = re.sub(r"\\(.)", r"\1", header[2])
                entry = known.setdefault(name, _Entry(name, line, {}))
            continue
        key, value = _KEY.match(whole, at), None
        if key is not None and key[2]:
            value, at = _value(whole, key.end())
        elif key is not None:
            value, at = "", key.end()  # a key alone, which Git takes for true
        if key is None or value is None or not is_inside:
            return [], (_fault(line, "", 'expected [submodule "NAME"], path = PATH or url = URL, got something else'),)
        if entry is not None:
            entry.values[key[1].lower()] = (value, line)
    return list(known.values()), ()


def _after(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return found.end() if found is not None else at


def _value(text: str, at: int) -> tuple[str | None, int]:
    """The value that begins at a place, without quotes, escapes and comment, and where it ends; None where Git takes none."""
    made, kept, is_quoted = "", 0, False
    at = _after(_SPACE, text, at)
    while at < len(text) and text[at] != "\n":
        letter, at = text[at], at + 1
        if letter == "\\":
            escaped, at = _ESCAPES.get(text[at : at + 1]), at + 1
            if escaped is None:
                return None, at
            if not escaped:
                continue
            made += escaped
        elif letter == '"':
            is_quoted = not is_quoted
        elif letter in "#;" and not is_quoted:
            return made[:kept], _after(_COMMENT, text, at)
        elif letter in " \t" and not is_quoted:
            made += letter
            continue
        else:
            made += letter
        kept = len(made)
    return (None if is_quoted else made[:kept]), at


def _concerns(folder: str, path: str) -> bool:
    return _is_below(path, folder) or _is_below(folder, path)


def _is_below(path: str, top: str) -> bool:
    return not top or path == top or path.startswith(top + "/")


def _is_local(url: str) -> bool:
    return url.startswith("file://") or ("://" not in url and ":" not in url.split("/")[0])


def _fault(line: int, path: str, message: str) -> Fault:
    return Fault(file=MODULES_FILE, line=line, path=path, reason="BadSubmodule", message=message)
