"""A forge's webhook -> whether it is genuine, and whether it deserves a look. It carries no orders: it only wakes.

Laws: nothing of a body counts before its proof was checked over the very bytes that came; a push is passed over only where
it says all that it changed and nothing of that is read; whatever a hook leaves open wakes.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from urllib.parse import parse_qs

from policies.terms.desired import DesiredState
from policies.terms.secret import Secret

KINDS = ("github", "gitlab", "gitea", "bitbucket", "generic")
ALIASES = {"forgejo": "gitea"}
"""Forgejo sends what Gitea sends."""
TOLERANCE_SECONDS = 300.0
"""How far a signed instant may be from now."""
TOKEN_PREFIX = "whsec_"
"""Standard Webhooks: the key is what this text says in base64. GitLab signs so."""
LISTED_COMMITS = 20
"""GitLab lists so many commits of a push at most, and so did GitHub; a push with as many may have more."""
LISTED_PATHS = 1000
"""A commit with as many changed paths may have more: GitHub lists 3,000 at most."""
_HEX = re.compile(r"[0-9a-f]{64}")
_GENERIC = re.compile(r"t=([0-9]{1,15}),v1=([0-9a-f]{64})")
_EVENT_HEADERS = {
    "github": ("x-github-event",),
    "gitlab": ("x-gitlab-event",),
    "gitea": ("x-gitea-event", "x-forgejo-event"),
    "bitbucket": ("x-event-key",),
    "generic": ("x-myelin-event",),
}
_DELIVERY_HEADERS = {
    "github": ("x-github-delivery",),
    "gitlab": ("x-gitlab-event-uuid", "idempotency-key", "webhook-id"),
    "gitea": ("x-gitea-delivery", "x-forgejo-delivery"),
    "bitbucket": ("x-request-uuid", "x-request-id"),
    "generic": ("x-myelin-delivery", "x-myelin-signature"),
}
_REVIEWS = re.compile(r"pull_request|merge_request|issue_comment|note|pullrequest:|pr:")
_PUSHES = ("push", "repo:push", "repo:refs_changed")
_PINGS = ("ping", "diagnostics:ping")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hook:
    """What a genuine webhook tells."""

    what: Literal["push", "review", "ping", "other"]
    event: str
    """The forge's own word."""
    branches: tuple[str, ...] | None = None
    """Branches that were pushed, or the one that a pull request goes to; None: it does not say."""
    paths: tuple[str, ...] | None = None
    """All that was changed; None: it does not say, or not all of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What a webhook comes to."""

    woke: bool
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reads:
    """What of its repository a project reads."""

    tops: tuple[str, ...]
    """Folders and files; an empty one is the whole tree."""

    def has(self, path: str) -> bool:
        """Whether a change of this path may change what is desired."""
        name = path.rpartition("/")[2]
        is_document = name.endswith((".yaml", ".yml")) or name in (".gitattributes", ".gitmodules")
        return is_document or any(not top or path == top or path.startswith(f"{top}/") for top in self.tops)


def hook_text(random: bytes) -> str:
    """A hook secret of so many random bytes, in the form that every forge takes."""
    return TOKEN_PREFIX + base64.b64encode(random).decode()


def provider_of(word: str) -> str:
    """The kind of webhook that an address names; empty when there is none of that name."""
    kind = ALIASES.get(word, word)
    return kind if kind in KINDS else ""


def has_proof(kind: str, headers: Mapping[str, str], *, now: datetime) -> bool:
    """Whether there is a well-formed proof at all: what can be said before the body was read.

    Args:
        kind: One of `KINDS`.
        headers: By name in lower case.
        now: Signed instants are measured against it.
    """
    if kind == "gitlab":
        return bool(headers.get("x-gitlab-token")) or _standard(headers, now) is not None
    if kind == "generic":
        return _generic(headers, now) is not None
    return any(_HEX.fullmatch(given) for given in _signatures(kind, headers))


def is_genuine(kind: str, headers: Mapping[str, str], body: bytes, secret: Secret, *, now: datetime) -> bool:
    """Whether whoever sent these bytes knows the secret. Takes as long for a wrong proof as for a right one.

    Args:
        kind: One of `KINDS`.
        headers: By name in lower case.
        body: The bytes that came, before anything was made of them.
        secret: The project's hook secret.
        now: Signed instants are measured against it.
    Source:
        The forges' own documents on securing webhooks; Standard Webhooks for GitLab's signatures.
    """
    if not secret:
        return False
    key = secret.reveal().encode()
    if kind == "gitlab":
        # A GitLab that signs with a token of its own may show ours as well: either is a proof, since who has seen the
        # one could leave the other out.
        return _same(headers.get("x-gitlab-token", ""), secret.reveal()) | _is_standard(headers, body, secret, now)
    if kind == "generic":
        found = _generic(headers, now)
        signed = f"{found[0]}.".encode() + body if found else body
        return _same(found[1] if found else "", _hmac(key, signed)) and found is not None
    expected = _hmac(key, body)
    matches = [_same(given, expected) for given in _signatures(kind, headers)]  # every one is compared
    return any(matches)


def delivery_of(kind: str, headers: Mapping[str, str]) -> str:
    """The name that the forge gave this delivery; the same when it is sent again. Empty where there is none."""
    return next((headers[name][:200] for name in _DELIVERY_HEADERS[kind] if headers.get(name)), "")


def read_hook(kind: str, headers: Mapping[str, str], body: bytes) -> Hook:
    """What a genuine webhook tells.

    Raises:
        ValueError: It is no JSON object.
    """
    if headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        # GitHub and Gitea may be set to send their JSON as a field of a form.
        body = next(iter(parse_qs(body.decode()).get("payload", [""]))).encode()
    value = json.loads(body or b"{}")
    if not isinstance(value, dict):
        raise ValueError("expected a JSON object")
    event = next((headers[name] for name in _EVENT_HEADERS[kind] if headers.get(name)), "")
    if kind == "gitlab":
        named = event.removesuffix(" Hook").lower().replace(" ", "_")
        event = str(value.get("object_kind") or value.get("event_name") or named)
    if kind == "generic":
        return _read_generic(event, value)
    if event in _PINGS:
        return Hook(what="ping", event=event)
    if event in _PUSHES:
        return _read_bitbucket(event, value) if kind == "bitbucket" else _read_push(kind, event, value)
    if event == "tag_push":
        return Hook(what="push", event=event, branches=())
    if _REVIEWS.match(event):
        base = _base_of(value)
        return Hook(what="review", event=event, branches=(base,) if base else None)
    return Hook(what="other", event=event)


def judge(hook: Hook, *, branch: str, reads: Reads | None) -> Heard:
    """Whether a webhook deserves a look.

    Args:
        hook: What it tells.
        branch: The branch that is followed.
        reads: What of it is read; None where that is not known.
    """
    if hook.what == "ping":
        return Heard(woke=False, why="heard; pushes and reviews wake")
    if hook.what == "other":
        return Heard(woke=False, why=f"event {hook.event[:80] or 'without a name'}: expected a push, a pull request or a comment")
    if hook.branches is not None and branch not in hook.branches:
        got = ", ".join(hook.branches)[:200] or "tags only"
        return Heard(woke=False, why=f"branch: expected {branch}, got {got}")
    if hook.what == "push" and hook.paths is not None and reads is not None and not any(map(reads.has, hook.paths)):
        return Heard(woke=False, why="none of the changed paths is read by this project")
    return Heard(woke=True, why=f"{hook.what} to {branch}")


def reads_of(desired: DesiredState | None) -> Reads | None:
    """What of its repository a project reads; None while that is not known, or while any commit may mend it."""
    if desired is None or desired.faults or not desired.is_trusted:
        return None
    folders = {folder for axon in desired.axons.values() for folder in axon.trees}
    tops = {path.strip("/") for path in desired.project.spec.paths if path.strip("./")}
    # Where a folder lies in a submodule, what changes is the submodule, above it.
    modules = {item.path for axon in desired.axons.values() for held in axon.submodules.values() for item in held}
    return Reads(tops=tuple(sorted({"releases", "versions", *folders, *tops, *modules})))


def _signatures(kind: str, headers: Mapping[str, str]) -> Iterator[str]:
    """The signatures of a body that came along, as hexadecimal digits."""
    prefixed = {"github": ("x-hub-signature-256",), "gitea": ("x-hub-signature-256",), "bitbucket": ("x-hub-signature",)}
    plain = {"gitea": ("x-gitea-signature", "x-forgejo-signature")}
    for name in prefixed.get(kind, ()):
        if headers.get(name, "").startswith("sha256="):
            yield headers[name].removeprefix("sha256=").lower()
    for name in plain.get(kind, ()):
        if headers.get(name):
            yield headers[name].lower()


def _generic(headers: Mapping[str, str], now: datetime) -> tuple[str, str] | None:
    """Signed instant and signature of a generic webhook; None where one is missing or the instant is not near."""
    found = _GENERIC.fullmatch(headers.get("x-myelin-signature", "").replace(" ", ""))
    return (found[1], found[2]) if found is not None and _is_near(found[1], now) else None


def _standard(headers: Mapping[str, str], now: datetime) -> tuple[str, str, tuple[str, ...]] | None:
    """Name, signed instant and signatures by Standard Webhooks; None where one is missing or the instant is not near."""
    name, at = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    given = tuple(word[3:] for word in headers.get("webhook-signature", "").split(" ")[:8] if word.startswith("v1,"))
    return (name, at, given) if name and given and at.isdecimal() and _is_near(at, now) else None


def _is_standard(headers: Mapping[str, str], body: bytes, secret: Secret, now: datetime) -> bool:
    found = _standard(headers, now)
    if found is None:
        return False
    try:
        key = base64.b64decode(secret.reveal().removeprefix(TOKEN_PREFIX), validate=True)
    except binascii.Error:
        return False
    signed = f"{found[0]}.{found[1]}.".encode() + body
    expected = base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
    matches = [_same(given, expected) for given in found[2]]  # every one is compared
    return any(matches)


def _is_near(seconds: str, now: datetime) -> bool:
    return len(seconds) < 16 and abs(int(seconds) - now.timestamp()) <= TOLERANCE_SECONDS


def _hmac(key: bytes, data: bytes) -> str:
    return hmac.digest(key, data, hashlib.sha256).hex()


def _same(given: str, known: str) -> bool:
    return hmac.compare_digest(given.encode(errors="replace"), known.encode())


def _read_push(kind: str, event: str, value: Mapping[str, Any]) -> Hook:
    """A push as GitHub, GitLab and Gitea tell it: one ref, and the commits that are new."""
    ref = str(value.get("ref", ""))
    if not ref.startswith("refs/heads/"):
        return Hook(what="push", event=event, branches=() if ref else None)
    branches = (ref.removeprefix("refs/heads/"),)
    return Hook(what="push", event=event, branches=branches, paths=_paths_of(kind, value))


def _paths_of(kind: str, value: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Every path that a push changed; None where the payload may leave one out."""
    commits, before, after = value.get("commits"), str(value.get("before", "")), value.get("after")
    if not isinstance(commits, list) or not 0 < len(commits) < LISTED_COMMITS:
        return None
    total = value.get({"gitlab": "total_commits_count", "gitea": "total_commits"}.get(kind, ""), len(commits))
    if total != len(commits) or value.get("forced") or value.get("created") or not before.strip("0"):
        return None
    paths: set[str] = set()
    for commit in commits:
        lists = [commit.get(name) for name in ("added", "removed", "modified")] if isinstance(commit, dict) else []
        if not lists or not all(isinstance(item, list | None) for item in lists) or len(lists) != 3:
            return None
        found = [path for item in lists for path in item or ()]
        # What a merge changed is not always listed, and a commit that changes nothing is too rare to matter.
        if not 0 < len(found) < LISTED_PATHS or not all(isinstance(path, str) for path in found):
            return None
        paths.update(found)
    return tuple(sorted(paths)) if any(commit.get("id") == after for commit in commits) else None


def _read_bitbucket(event: str, value: Mapping[str, Any]) -> Hook:
    """A push as Bitbucket tells it, in the cloud and in the data centre: several refs, no paths."""
    push = value.get("push")
    changes = push.get("changes") if isinstance(push, dict) else value.get("changes")
    if not isinstance(changes, list):
        return Hook(what="push", event=event)
    branches: set[str] = set()
    for change in changes:
        ref = (change.get("new") or change.get("old") or change.get("ref")) if isinstance(change, dict) else None
        if not isinstance(ref, dict):
            return Hook(what="push", event=event)
        if str(ref.get("type", "")).lower() in ("branch", "named_branch"):
            branches.add(str(ref.get("name") or ref.get("displayId") or ""))
    return Hook(what="push", event=event, branches=tuple(sorted(branches)))


def _read_generic(event: str, value: Mapping[str, Any]) -> Hook:
    """A webhook of anything else: `{"branch", "paths"}`, both optional."""
    branch, paths = value.get("branch"), value.get("paths")
    if not isinstance(branch, str | None) or not isinstance(paths, list | None):
        raise ValueError("expected `branch`, a text, and `paths`, a list of texts")
    if event in ("ping", "review"):
        return Hook(what="ping" if event == "ping" else "review", event=event, branches=(branch,) if branch else None)
    told = tuple(sorted(map(str, paths))) if paths is not None else None
    return Hook(what="push", event="push", branches=(branch,) if branch else None, paths=told)


def _base_of(value: Mapping[str, Any]) -> str:
    """The branch that a pull request goes to; empty where it is not said."""
    for place in (
        ("pull_request", "base", "ref"),
        ("object_attributes", "target_branch"),
        ("merge_request", "target_branch"),
        ("pullrequest", "destination", "branch", "name"),
        ("pullRequest", "toRef", "displayId"),
    ):
        found: Any = value
        for name in place:
            found = found.get(name) if isinstance(found, dict) else None
        if isinstance(found, str) and found:
            return found
    return ""
