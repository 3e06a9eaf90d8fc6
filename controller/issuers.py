"""Who vouches for whom at an embedded Sigstore: a cluster for its service accounts, and on one machine nobody."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable

from controller.adapters.sigstore.tokens import ACCOUNTS, Tokens
from policies.errors import RefusedError, SilentError

CONFIGURATION, KEYS = ".well-known/openid-configuration", "openid/v1/jwks"
"""Where an API server says how it is called as an issuer, and publishes its keys."""
KNOWN_SECONDS = 60.0
"""How long what it says is not asked again: whoever sends tokens must not make us ask for each."""


class ClusterTokens:
    """Says whose a token of a cluster's service account is, for the accounts of one namespace.

    Others have their own project, or none: whatever is certified may be logged, and makes the project's ledger grow.

    Args:
        read: Gives what the API server says at a path.
        namespace: Whose service accounts.
        monotonic: Seconds on a clock that only goes forward.
    """

    def __init__(self, read: Callable[[str], str], *, namespace: str, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._read, self._namespace, self._monotonic = read, namespace, monotonic
        self._known: dict[str, tuple[str, float]] = {}
        self._guard = threading.Lock()

    def __call__(self, token: str) -> tuple[str, str]:
        """Whose a token is, and who says so.

        Raises:
            RefusedError: It is no token of this cluster for a Sigstore, or the cluster does not let us read its keys.
            SilentError: The cluster does not answer.
        """
        try:
            issuer = str(json.loads(self._said(CONFIGURATION))["issuer"])
        except (ValueError, KeyError, TypeError) as error:
            raise SilentError("cluster: expected its name as an issuer of tokens, got something else") from error
        identity, issuer = Tokens(issuer, lambda: self._said(KEYS))(token)
        if not identity.startswith(f"{ACCOUNTS}/{self._namespace}/"):
            text = f"identity token: expected a service account of the namespace {self._namespace}, got one of another"
            raise RefusedError(f"{text}; ask where its own project is", reason="WrongToken")
        return identity, issuer

    def _said(self, path: str) -> str:
        with self._guard:
            text, until = self._known.get(path, ("", 0.0))
            if not text or self._monotonic() >= until:
                text = self._read(path)
                self._known[path] = (text, self._monotonic() + KNOWN_SECONDS)
            return text


def nobody(token: str) -> tuple[str, str]:
    """The answer on one machine, where nobody vouches for anybody.

    Raises:
        RefusedError: Always.
    """
    text = "identity token: expected a controller in a cluster, which vouches for service accounts; nobody does on one machine"
    raise RefusedError(f"{text}; read `trusted_root.json`, or sign with a Sigstore of your own", reason="WrongToken")
