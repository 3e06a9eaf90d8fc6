"""Webhooks as the forges send them: headers that prove who sent them, and what a push says."""

from __future__ import annotations

import base64
import hashlib
import hmac
from datetime import datetime
from typing import Any

from policies.terms.secret import Secret

EVENT = {
    "github": "x-github-event",
    "gitlab": "x-gitlab-event",
    "gitea": "x-gitea-event",
    "bitbucket": "x-event-key",
    "generic": "x-myelin-event",
}
"""Kind -> the header that names the event."""


def proof(kind: str, secret: Secret, body: bytes, *, at: datetime) -> dict[str, str]:
    """The headers that a sender with this secret sends.

    Args:
        kind: One of `policies.hooks.KINDS`, or `gitlab signed` or `gitea by another name`.
        secret: What the sender knows.
        body: What it sends.
        at: When, where that is signed too.
    """
    seconds = int(at.timestamp())
    if kind == "gitlab signed":
        key = base64.b64decode(secret.reveal().removeprefix("whsec_"))
        signed = base64.b64encode(hmac.new(key, f"id-1.{seconds}.".encode() + body, hashlib.sha256).digest()).decode()
        return {"webhook-id": "id-1", "webhook-timestamp": str(seconds), "webhook-signature": f"v1a,xx v1,{signed}"}
    return {
        "github": {"x-hub-signature-256": f"sha256={hexed(secret, body)}"},
        "gitlab": {"x-gitlab-token": secret.reveal()},
        "gitea": {"x-gitea-signature": hexed(secret, body)},
        "gitea by another name": {"x-forgejo-signature": hexed(secret, body)},
        "bitbucket": {"x-hub-signature": f"sha256={hexed(secret, body)}"},
        "generic": {"x-myelin-signature": f"t={seconds},v1={hexed(secret, f'{seconds}.'.encode() + body)}"},
    }[kind]


def hexed(secret: Secret, data: bytes) -> str:
    """HMAC-SHA256 as hexadecimal digits."""
    return hmac.new(secret.reveal().encode(), data, hashlib.sha256).hexdigest()


def commit(number: int, *, modified: tuple[str, ...] = (), added: tuple[str, ...] = (), removed: tuple[str, ...] = ()) -> Any:
    """A commit of a push."""
    return {"id": f"{number:040x}", "modified": list(modified), "added": list(added), "removed": list(removed)}


def push(*commits: Any, ref: str = "refs/heads/main", **more: Any) -> dict[str, Any]:
    """A push of these commits, the last one its tip."""
    return {"ref": ref, "before": "a" * 40, "after": commits[-1]["id"] if commits else "b" * 40, "commits": commits, **more}


NOTES = commit(1, modified=("notes.txt",))
"""Changes nothing that a project reads."""
SOURCE = commit(2, modified=("axons/digits/training/train.py",))
"""Changes a source folder."""
