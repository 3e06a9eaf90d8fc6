"""Embedded Sigstores at the inbox: which project's a request is for, and how many may wait for one at once.

Their clients ask at paths of their own, and drop what stands before that of the certificate authority. So who asks for a
certificate is led by their token, whose namespace has one project, and all else has the project in its path, unless there is only
one Sigstore here.
"""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

TOP = "sigstore"
"""Below this and a project's name are the paths of its Sigstore."""
OWN_PATHS = re.compile(r"/(trusted_root\.json|trust_config\.json|api/v2/(signingCert|trustBundle)|api/v1/log(/.*)?)(\?.*)?")
AUTHORITY, LOG = "/api/v2/signingCert", "/api/v1/log"
MOST_AT_ONCE = 8
"""Requests that need a log and are worked on at once: each may wait for a turn, and other senders need workers too."""
BUSY = "the log is busy; ask again"
_ACCOUNT = re.compile(r"system:serviceaccount:([^:]+):[^:]+")
Answer = tuple[int, Mapping[str, str], bytes]
Sigstore = Callable[[str, str, Mapping[str, str], bytes], Answer]
"""Method, path with its query, headers by name in lower case, body -> answer. See `adapters.sigstore.served.Served.handle`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What of a Sigstore is asked for."""

    project: str
    """Empty where the path does not say."""
    path: str
    """As the Sigstore knows it."""


def asked_of(path: str) -> Asked | None:
    """What a path asks of a Sigstore; None where it is none of theirs."""
    if path.startswith(f"/{TOP}/"):
        project, slash, rest = path.removeprefix(f"/{TOP}/").partition("/")
        return Asked(project=project, path=f"/{rest}") if slash and OWN_PATHS.fullmatch(f"/{rest}") else None
    return Asked(project="", path=path) if OWN_PATHS.fullmatch(path) else None


class Sigstores:
    """All of an inbox."""

    def __init__(self) -> None:
        self._known: Mapping[str, Sigstore] = {}
        self._free = threading.BoundedSemaphore(MOST_AT_ONCE)

    def keep(self, project: str, sigstore: Sigstore | None) -> None:
        """Answer for a project's from now on; None: not any more."""
        others = {name: known for name, known in self._known.items() if name != project}
        self._known = others if sigstore is None else {**others, project: sigstore}

    def answer(self, method: str, asked: Asked, headers: Mapping[str, str], body: bytes) -> Answer:
        """The answer to a request.

        Args:
            method: `GET` or `POST`.
            asked: What for.
            headers: By name in lower case.
            body: All of it.
        """
        found = self._of(asked, headers, body)
        if found is None:
            return _said(404, self._nobody(asked))
        if not asked.path.startswith(LOG):
            return found(method, asked.path, headers, body)
        if not self._free.acquire(blocking=False):
            return _said(503, BUSY)
        try:
            return found(method, asked.path, headers, body)
        finally:
            self._free.release()

    def _of(self, asked: Asked, headers: Mapping[str, str], body: bytes) -> Sigstore | None:
        known = self._known
        if len(known) == 1:
            ((name, only),) = known.items()
            # On one machine nobody knows what the project is called.
            return only if asked.project in ("", name) or "." not in name else None
        if asked.project:
            return known.get(asked.project)
        fitting = [name for name in known if name.partition(".")[0] == _namespace(headers, body)]
        if asked.path != AUTHORITY or len(fitting) != 1:
            return None
        return known[fitting[0]]

    def _nobody(self, asked: Asked) -> str:
        if not self._known:
            return "no project here has an embedded Sigstore; `myelin keys new --sigstore` makes one"
        if asked.path == AUTHORITY:
            return "expected an identity token of a service account in the namespace of a project with a Sigstore"
        return f"expected /{TOP}/NAMESPACE.PROJECT{asked.path} of a project with a Sigstore"


def _namespace(headers: Mapping[str, str], body: bytes) -> str:
    """The namespace that a token claims, which the Sigstore then checks; empty for none."""
    kind, _, token = headers.get("authorization", "").partition(" ")
    try:
        if kind.lower() != "bearer":
            token = json.loads(body)["credentials"]["oidcIdentityToken"]
        part = str(token).strip().split(".")[1]
        claimed = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
        found = _ACCOUNT.fullmatch(str(claimed["sub"]))
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        return ""
    return found[1] if found else ""


def _said(status: int, words: str) -> Answer:
    return status, {"Content-Type": "application/json"}, json.dumps({"code": status, "message": words}).encode()
