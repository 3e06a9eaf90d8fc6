"""What the controller's own commits may touch, what they say, and which commits are its own.

It never looks at an author's name or at a trailer to decide anything: only a signature says whose a commit is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from policies.errors import RefusedError
from policies.terms.project import Project
from policies.terms.revision import CommitFacts, Signature, TrustedKey

TRAILERS = ("Myelin-Run", "Myelin-Event", "Myelin-Version", "Myelin-Alert")
"""The order in which trailers are written; others follow, sorted."""


_NO_WIDTH = frozenset(map(chr, (*range(0x200C, 0x2010), *range(0x202A, 0x202F), *range(0x206A, 0x2070), 0xFEFF)))
"""Letters that HFS+ leaves out of a name."""


def is_plain(path: str) -> bool:
    """Whether a path is relative, normalised and safe to write in any Git repository.

    `.git` is refused in any case and with the disguises that some file systems see through.
    """
    if not path or len(path) > 4096 or any(ord(letter) < 32 or ord(letter) == 127 for letter in path) or "\\" in path:
        return False
    return not any(part in ("", ".", "..") or _undisguised(part) in (".git", "git~1") for part in path.split("/"))


def _undisguised(part: str) -> str:
    """A name as file systems may read it: without letters that have no width, a stream's name, and dots at its end."""
    seen = "".join(letter for letter in part if letter not in _NO_WIDTH)
    return seen.partition(":")[0].rstrip(" .").lower()


def may_touch(path: str, allowed: Iterable[str]) -> bool:
    """Whether `path` lies below one of the folders in `allowed`, or is one of the files there.

    Args:
        path: From the root of the repository. Anything but a plain path is refused.
        allowed: Folders, with or without `/` at the end, or single files. An empty entry allows nothing.
    """
    if not is_plain(path):
        return False
    return any(top and (path == top or path.startswith(top + "/")) for top in (entry.strip("/") for entry in allowed))


def check_changes(changes: Collection[str], allowed: Iterable[str]) -> None:
    """Refuse a commit of ours that would touch anything else.

    Raises:
        RefusedError: With the first path, in sorted order, that is not allowed.
    """
    allowed = tuple(allowed)
    for path in sorted(changes):
        if not may_touch(path, allowed):
            tops = ", ".join(allowed) or "nothing"
            raise RefusedError(f"{path!r}: expected a path in spec.writeBack.paths ({tops}), got another", reason="OutOfBounds")


def message(subject: str, body: str, trailers: Mapping[str, Sequence[str]]) -> str:
    """The message of a commit: subject, body, trailers, each apart by an empty line.

    No text can forge a trailer: whatever would read as one in subject or body is indented.
    """
    order = [*(name for name in TRAILERS if name in trailers), *sorted(set(trailers) - set(TRAILERS))]
    lines = [f"{name}: {_line(value)}" for name in order for value in trailers[name] if _line(value)]
    parts = [_line(subject) or "update", _body(body, is_last=not lines), "\n".join(lines)]
    return "\n\n".join(part for part in parts if part) + "\n"


def is_own(facts: CommitFacts, own: Iterable[TrustedKey]) -> bool:
    """Whether the controller made this commit, which only a signature by one of its own keys can say."""
    return facts.signature is not None and any(is_by(facts.signature, key) for key in own)


def is_by(signature: Signature, key: TrustedKey) -> bool:
    """Whether a signature is valid and was made by a key; for OpenPGP, as the very certificate has it."""
    if not signature.valid or signature.kind != key.kind:
        return False
    if key.kind == "openpgp":
        return key.certificate in signature.certificates
    return same_key(signature.key, key.key)


def author_of(project: Project) -> str:
    """`Name <address>` of the project's own choice for our commits; empty where it made none."""
    if "author" not in project.spec.write_back.model_fields_set:
        return ""
    author = project.spec.write_back.author
    name, address = (
        _line(text).translate({ord(letter): None for letter in "<>"}).strip() for text in (author.name, author.email)
    )
    return f"{name or 'Myelin'} <{address}>"


def same_key(one: str, other: str) -> bool:
    """Whether two public keys are the same, whatever their comments. An empty key equals none."""
    return bool(one.split()[:2]) and one.split()[:2] == other.split()[:2]


def _line(text: str) -> str:
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def _body(text: str, *, is_last: bool) -> str:
    """A body in which Git finds neither a trailer of ours, nor the end of the message; nor any trailer where it is last."""
    lines = [
        "".join(letter if letter.isprintable() or letter == "\t" else " " for letter in line).rstrip()
        for line in text.splitlines()
    ]
    lines = [f" {line}" if _is_odd(line, is_last=is_last) else line for line in lines]
    return "\n".join(lines).strip("\n")


def _is_odd(line: str, *, is_last: bool) -> bool:
    return line.lower().startswith(("myelin-", "#")) or (is_last and (":" in line or line.startswith("(cherry")))
