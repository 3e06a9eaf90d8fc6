"""Identity tokens (OpenID Connect), checked offline against their issuer's published keys: a cluster's service accounts, say.

It never asks anybody, and no token is in what it says.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from controller.adapters.clock import SystemClock
from controller.adapters.sigstore.authority import is_token_signed
from policies.errors import RefusedError

AUDIENCE = "sigstore"
LARGEST_CHARACTERS = 16384
ACCOUNTS = "https://kubernetes.io/namespaces"
"""How Fulcio calls service accounts: `…/<namespace>/serviceaccounts/<name>`."""
LEEWAY_SECONDS = 5
"""What the clocks of issuer and controller may be apart."""
_ACCOUNT = re.compile(r"system:serviceaccount:([a-z0-9-]{1,63}):([a-z0-9.-]{1,253})")


class Tokens:
    """Says whose a token is.

    Args:
        issuer: Who has to have made it.
        keys: Gives that issuer's JSON Web Key Set, anew each time: a cluster's is at `/openid/v1/jwks`.
        named: What its claims call its holder in a certificate.
        audience: Whom it has to be for.
        now: The clock.
    """

    def __init__(
        self,
        issuer: str,
        keys: Callable[[], str],
        *,
        named: Callable[[Mapping[str, Any]], str] | None = None,
        audience: str = AUDIENCE,
        now: Callable[[], datetime] = SystemClock().now,
    ) -> None:
        self._issuer, self._keys, self._named = issuer, keys, named or service_account_of
        self._audience, self._now = audience, now

    def __call__(self, token: str) -> tuple[str, str]:
        """Whose a token is, and who says so.

        Raises:
            RefusedError: It is no token of that issuer for this audience, it has ended, or was never signed by that issuer.
        """
        try:
            head, claims, signed, signature = _parts(token)
            keys = json.loads(self._keys())["keys"]
        except (ValueError, KeyError, TypeError, binascii.Error, RecursionError):
            raise _refused("a signed identity token") from None
        algorithm, named = head.get("alg"), head.get("kid")
        # Whose key a token names is only believed once that key signed it.
        fitting = [key for key in keys if isinstance(key, dict) and named in (None, key.get("kid"))]
        if not any(is_token_signed(str(algorithm), key, signed, signature) for key in fitting):
            raise _refused("one signed by its issuer with RS256 or ES256")
        if claims.get("iss") != self._issuer:
            raise _refused(f"one of {self._issuer}")
        audience = claims.get("aud")
        if self._audience not in (audience if isinstance(audience, list) else [audience]):
            raise _refused(f"one for the audience `{self._audience}`")
        now, begins, ends = self._now().timestamp(), claims.get("nbf", claims.get("iat", 0)), claims.get("exp")
        if not isinstance(ends, int | float) or not isinstance(begins, int | float) or not begins - LEEWAY_SECONDS <= now < ends:
            raise _refused("one that holds now")
        return self._named(claims), self._issuer


def service_account_of(claims: Mapping[str, Any]) -> str:
    """What Fulcio calls a cluster's service account.

    Raises:
        RefusedError: The claims are those of somebody else.
    """
    found = _ACCOUNT.fullmatch(str(claims.get("sub")))
    if found is None:
        raise _refused("one of a service account")
    return f"{ACCOUNTS}/{found[1]}/serviceaccounts/{found[2]}"


def subject_of(token: str) -> tuple[str, ...]:
    """What the holder of a token may have signed to prove that they hold a key: its subject, or its address.

    Raises:
        ValueError: It is no token.
    """
    claims = _parts(token)[1]
    return tuple(str(claims[name]) for name in ("email", "sub") if name in claims)


def _parts(token: str) -> tuple[Mapping[str, Any], Mapping[str, Any], bytes, bytes]:
    """Head, claims, what is signed, and the signature."""
    if len(token) > LARGEST_CHARACTERS:
        raise ValueError("expected a token")
    first, second, third = token.split(".")
    head, claims = (json.loads(_decoded(part)) for part in (first, second))
    if not isinstance(head, dict) or not isinstance(claims, dict) or "crit" in head:
        raise ValueError("expected a token")
    return head, claims, f"{first}.{second}".encode("ascii"), _decoded(third)


def _decoded(part: str) -> bytes:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", part):
        raise ValueError("expected base64url")
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def _refused(expected: str) -> RefusedError:
    return RefusedError(f"identity token: expected {expected}, got another; ask for a new one", reason="WrongToken")
