"""Raw commits: read into facts, and written. Nothing is opened.

Equal arguments make equal commits, but for an OpenPGP key or a Sigstore identity: their signatures hold their time, and chance.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from typing import Protocol

from controller.adapters.signatures import instant_of
from policies.terms.revision import CommitFacts, Signature, TrustedKey


class CommitKey(Protocol):
    """What signs commits."""

    def sign_commit(self, data: bytes) -> str:
        """An armored signature over a commit that has none yet.

        Raises:
            RefusedError: The key may not sign any more.
        """
        ...


def commit_text(*, tree: str, parent: str, who: str, at: datetime, message: str, key: CommitKey | None) -> bytes:
    """A commit as Git stores it, signed without ssh-keygen or gpg.

    Args:
        tree: Git tree id.
        parent: The one parent; empty for none.
        who: `Name <address>`.
        at: Author and committer instant.
        message: Its end of line is added where it lacks.
        key: Signs; None leaves it unsigned.
    """
    stamp = f"{who} {int(at.timestamp())} +0000"
    head = f"tree {tree}\n" + (f"parent {parent}\n" if parent else "") + f"author {stamp}\ncommitter {stamp}\n"
    text = message if message.endswith("\n") else message + "\n"
    signature = ""
    if key is not None:
        armored = key.sign_commit(f"{head}\n{text}".encode()).strip("\n")
        signature = "gpgsig " + armored.replace("\n", "\n ") + "\n"
    return f"{head}{signature}\n{text}".encode()


def facts_of(
    commit: str,
    raw: bytes,
    *,
    paths: tuple[str, ...],
    project: bytes | None,
    signers_of: Callable[[bytes], tuple[TrustedKey, ...]],
    read_signature: Callable[[str, bytes], Signature],
) -> CommitFacts:
    """What a commit says of itself.

    Args:
        commit: Its id.
        raw: As Git stores it.
        paths: What it changed, against its first parent.
        project: Its `myelin.yaml`, where it changed that.
        signers_of: Reads `spec.trust.signers` out of one.
        read_signature: Reads an armored signature over some bytes.
    """
    head, _, body = raw.partition(b"\n\n")
    fields: list[tuple[bytes, bytes]] = []
    for line in head.split(b"\n"):
        if line.startswith(b" ") and fields:
            fields[-1] = (fields[-1][0], fields[-1][1] + b"\n" + line[1:])
        else:
            name, _, value = line.partition(b" ")
            fields.append((name, value))
    armored = next((value.decode(errors="replace") for name, value in fields if name == b"gpgsig"), "")
    payload = re.sub(rb"(?m)^gpgsig(?:-sha256)? .*\n(?: .*\n)*", b"", head + b"\n") + b"\n" + body
    author = next((value.decode(errors="replace") for name, value in fields if name == b"author"), "")
    committed = next((value.decode(errors="replace") for name, value in fields if name == b"committer"), "")
    message = body.decode(errors="replace")
    return CommitFacts(
        commit=commit,
        parents=tuple(value.decode() for name, value in fields if name == b"parent"),
        at=instant_of(committed),
        author=author.rsplit(" ", 2)[0],
        subject=message.split("\n", 1)[0],
        message=message,
        signature=read_signature(armored, payload) if armored else None,
        changed_paths=paths,
        signers=signers_of(project) if project is not None else None,
    )
