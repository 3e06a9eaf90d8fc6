"""Webhooks of one project: what came before is known, and however many come, the project is stirred once in a while."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from controller.adapters import gauges
from controller.inbox.receivers import Receivers
from policies.hooks import KINDS, delivery_of, has_proof, is_genuine, judge, provider_of, read_hook, reads_of
from policies.terms.secret import Secret

REST_SECONDS = 1.0
"""Least time between two looks at a server far away that webhooks ask for: nobody can make us hammer it."""
MOST_DELIVERIES = 1024
ADDRESS = "hooks"
"""First part of the path of every webhook."""
LARGEST_BODY_BYTES = 1 << 20
NOBODY = Secret(secrets.token_hex(32))
"""Stands for the secret of a project that is not here."""
PROOFS = {
    "github": "X-Hub-Signature-256: sha256=…",
    "gitlab": "X-Gitlab-Token, or webhook-signature with an instant of the last 5 minutes",
    "gitea": "X-Gitea-Signature",
    "bitbucket": "X-Hub-Signature: sha256=…",
    "generic": "X-Myelin-Signature: t=<seconds since 1970, of the last 5 minutes>,v1=<HMAC>",
}


class Calm:
    """Passes on that something happened, at most once in so many seconds; what comes in between is passed on at their end.

    Args:
        act: Takes everything that happened since it was called last.
        rest_seconds: Least time between two calls.
    """

    def __init__(self, act: Callable[[frozenset[str]], None], *, rest_seconds: float = REST_SECONDS) -> None:
        self._act, self._rest_seconds = act, rest_seconds
        self._guard = threading.Lock()
        self._waiting: set[str] = set()
        self._acted_at = -rest_seconds
        self._timer: threading.Timer | None = None
        self._is_closed = False

    def tell(self, what: str) -> None:
        """Something of this kind happened."""
        with self._guard:
            self._waiting.add(what)
            left = self._acted_at + self._rest_seconds - time.monotonic()
            if self._timer is not None or self._is_closed:
                return
            if left > 0:
                self._timer = threading.Timer(left, self._pass_on)
                self._timer.daemon = True
                self._timer.start()
                return
        self._pass_on()

    def close(self) -> None:
        """Pass nothing on any more."""
        with self._guard:
            self._is_closed = True
            if self._timer is not None:
                self._timer.cancel()

    def _pass_on(self) -> None:
        with self._guard:
            self._timer = None
            if self._is_closed or not self._waiting:
                return
            happened, self._waiting = frozenset(self._waiting), set()
            self._acted_at = time.monotonic()
        self._act(happened)


class Hooks:
    """Takes the webhooks of one project.

    Args:
        secret: What its senders prove that they know; an empty one is known by nobody.
        receivers: Who is stirred and woken.
        rest_seconds: Least time between two wakes.
    """

    def __init__(self, secret: Secret, receivers: Receivers, *, rest_seconds: float = REST_SECONDS) -> None:
        self._secret, self._receivers = secret, receivers
        self._guard = threading.Lock()
        self._known: OrderedDict[str, None] = OrderedDict()
        self._calm = Calm(self._wake, rest_seconds=rest_seconds)

    @property
    def secret(self) -> Secret:
        """What senders prove that they know."""
        return self._secret

    def close(self) -> None:
        """Wake nobody any more."""
        self._calm.close()

    def take(self, kind: str, headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
        """Take a webhook that is genuine; returns the answer.

        Raises:
            ValueError: Its body is not what such a webhook has.
        """
        hook, delivery = read_hook(kind, headers, body), delivery_of(kind, headers)
        if delivery and not self._is_new(f"{kind} {delivery}"):
            gauges.HOOKS.labels(kind, "known").inc()
            return {"woke": False, "why": "this delivery came before"}
        look = self._receivers.newest()
        heard = judge(hook, branch=self._receivers.branch, reads=reads_of(look[0] if look else None))
        if heard.woke:
            self._calm.tell(hook.what)
        gauges.HOOKS.labels(kind, "woke" if heard.woke else "passed over").inc()
        return {"woke": heard.woke, "why": heard.why}

    def _is_new(self, delivery: str) -> bool:
        with self._guard:
            if delivery in self._known:
                self._known.move_to_end(delivery)
                return False
            self._known[delivery] = None
            if len(self._known) > MOST_DELIVERIES:
                self._known.popitem(last=False)
            return True

    def _wake(self, happened: frozenset[str]) -> None:
        for what in sorted(happened):
            self._receivers.stirred(what)
        self._receivers.wake()


def refusal(parts: Sequence[str], headers: Mapping[str, str], size: int, *, now: datetime) -> tuple[int, str] | None:
    """Why a webhook's body is not even read, status and words; None when it is.

    Args:
        parts: Its path, `hooks`, project and kind.
        headers: By name in lower case.
        size: How long the body says it is; -1 where it does not.
        now: This instant.
    """
    kind = provider_of(parts[2]) if len(parts) == 3 else ""
    if not kind:
        return 404, f"webhook: expected /{ADDRESS}/<project>/<kind> with one of {', '.join(KINDS)} as kind"
    if not 0 <= size <= LARGEST_BODY_BYTES:
        return 413, f"webhook: expected a body of at most {LARGEST_BODY_BYTES} bytes with its Content-Length"
    return None if has_proof(kind, headers, now=now) else wrong(kind)


def is_known(hooks: Hooks | None, kind: str, headers: Mapping[str, str], body: bytes, *, now: datetime) -> bool:
    """Whether a webhook is genuine; one for a project that is not here takes as long to refuse."""
    return is_genuine(kind, headers, body, hooks.secret if hooks else NOBODY, now=now) and hooks is not None


def wrong(kind: str) -> tuple[int, str]:
    """The answer to a webhook without the right proof; it is counted."""
    gauges.WRONG_HOOKS.labels(kind).inc()
    return 401, f"webhook: expected {PROOFS[kind]}, made with the secret that `myelin hooks` prints"
