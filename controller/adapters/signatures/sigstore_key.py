"""The controller's commits, signed as a Sigstore identity: a certificate for minutes in place of a key for years."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Protocol

from controller.adapters.clock import SystemClock
from controller.adapters.signatures.gitsign import signed_message
from policies.errors import RefusedError

Identity = tuple[str, str]
"""Whom a certificate names, and who vouches for that."""


class SignsArtifacts(Protocol):
    """A Sigstore instance, asked as one identity."""

    @property
    def identity(self) -> Identity:
        """Whom its certificates name."""
        ...

    def sign_artifact(self, data: bytes) -> Mapping[str, Any]:
        """A bundle with the signature of bytes, its certificate and the log's entry."""
        ...


class SigstoreKey:
    """Signs commits in gitsign's format, offline verifiable.

    Args:
        instance: Signs.
        expected: The identity that the project's pin names; what another one signed would not count as the controller's.
        root: Trusted root of the instance as JSON.
        now: The clock.
    """

    __slots__ = ("_instance", "_now", "expected", "root")

    def __init__(
        self, instance: SignsArtifacts, expected: Identity, root: str, *, now: Callable[[], datetime] = SystemClock().now
    ) -> None:
        self._instance, self.expected, self.root, self._now = instance, expected, root, now

    def __repr__(self) -> str:
        return f"SigstoreKey({self.expected[0]})"

    def sign_commit(self, data: bytes) -> str:
        """An armored signature over a commit.

        Raises:
            OutsideError: The instance says no or nothing, or gives certificates to another identity.
            TrustError: What it answered does not hold by its own root.
        """
        if (found := self._instance.identity) != self.expected:
            raise RefusedError(
                f"commits: expected to sign as {self.expected[0]} ({self.expected[1]}), the token is of {found[0]} ({found[1]}); "
                "give the other token, or pin this identity",
                reason="OtherIdentity",
            )
        return signed_message(data, self._now(), self._instance.sign_artifact)
