"""An issuer of identity tokens, as a cluster is one for its service accounts."""

from __future__ import annotations

import base64
import json
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from controller.adapters.clock import SystemClock

ISSUER = "https://kubernetes.default.svc"
ACCOUNT = "system:serviceaccount:ml:ci"
IDENTITY = "https://kubernetes.io/namespaces/ml/serviceaccounts/ci"


class Issuer:
    """Signs tokens with a key of its own.

    Args:
        algorithm: `ES256` or `RS256`.
        name: The key's.
    """

    def __init__(self, algorithm: str = "ES256", name: str = "key-1") -> None:
        self.algorithm, self.name = algorithm, name
        self._ec = ec.generate_private_key(ec.SECP256R1())
        self._rsa = rsa.generate_private_key(65537, 2048) if algorithm == "RS256" else None

    def keys(self) -> str:
        """Its key set, as it publishes it."""
        if self._rsa is not None:
            numbers = self._rsa.public_key().public_numbers()
            key = {"kty": "RSA", "n": number(numbers.n, 256), "e": number(numbers.e, 3)}
        else:
            point = self._ec.public_key().public_numbers()
            key = {"kty": "EC", "crv": "P-256", "x": number(point.x, 32), "y": number(point.y, 32)}
        return json.dumps({"keys": [{**key, "kid": self.name, "use": "sig", "alg": self.algorithm}]})

    def token(self, head: dict[str, Any] | None = None, **claims: Any) -> str:
        """A token that is good for ten minutes; a claim or a part of its head that is None is left out."""
        now = int(SystemClock().now().timestamp())
        usual = {"iss": ISSUER, "aud": ["sigstore"], "sub": ACCOUNT, "iat": now, "nbf": now, "exp": now + 600}
        heads = {"alg": self.algorithm, "kid": self.name, "typ": "JWT", **(head or {})}
        signed = ".".join(part({k: v for k, v in item.items() if v is not None}) for item in (heads, {**usual, **claims}))
        return f"{signed}.{text64(self._signature(signed.encode()))}"

    def _signature(self, data: bytes) -> bytes:
        if self._rsa is not None:
            return self._rsa.sign(data, padding.PKCS1v15(), hashes.SHA256())
        first, second = decode_dss_signature(self._ec.sign(data, ec.ECDSA(hashes.SHA256())))
        return first.to_bytes(32, "big") + second.to_bytes(32, "big")


def part(value: dict[str, Any]) -> str:
    return text64(json.dumps(value).encode())


def number(value: int, size: int) -> str:
    return text64(value.to_bytes(size, "big"))


def text64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
