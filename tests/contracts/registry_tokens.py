"""A server that gives tokens of the Docker registry's kind, for all that it is asked for."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from controller.adapters.clock import SystemClock
from tests.contracts.certificates import Authority
from tests.contracts.registry_server import Gateway, Said


class TokenServer:
    """Gives tokens to everybody, and remembers what for.

    Args:
        authority: Vouches for its key, to registries too.
    """

    def __init__(self, authority: Authority) -> None:
        certificate, key = authority.signed("tokens")
        found = serialization.load_pem_private_key(key.encode(), None)
        assert isinstance(found, ec.EllipticCurvePrivateKey)
        self._key, self._authority = found, authority
        self._der = x509.load_pem_x509_certificate(certificate.encode()).public_bytes(serialization.Encoding.DER)
        self.gateway = Gateway()
        self.gateway.answers.append(self._granted)
        self.scopes: list[str] = []
        """What was asked for, in order."""
        self.who: list[str] = []
        """As whom."""

    @property
    def realm(self) -> str:
        """Its address, as registries name it."""
        return f"http://{self.gateway.address}/token"

    def settings(self) -> dict[str, Any]:
        """Settings of a registry that lets in who has one of these tokens."""
        token = {"realm": self.realm, "service": "reg", "issuer": "tests", "rootcertbundle": str(self._authority.file)}
        return {"auth": {"token": token}}

    def _granted(self, method: str, path: str) -> Said:
        self.gateway.answers.append(self._granted)
        scopes = parse_qs(urlsplit(path).query)["scope"]
        self.scopes += scopes
        self.who.append(self.gateway.headers[-1].get("authorization", ""))
        now = int(SystemClock().now().timestamp())
        return Said(body=json.dumps({"token": self._token(" ".join(scopes), now - 60)}).encode())

    def _token(self, scope: str, lives_from: int) -> str:
        access = []
        for item in scope.split():
            kind, name, actions = item.split(":")
            access.append({"type": kind, "name": name, "actions": actions.split(",")})
        head = {"typ": "JWT", "alg": "ES256", "x5c": [base64.b64encode(self._der).decode()]}
        claims = {"iss": "tests", "sub": "robot", "aud": "reg", "nbf": lives_from, "exp": lives_from + 3600, "jti": "1"}
        text = f"{_packed(json.dumps(head).encode())}.{_packed(json.dumps({**claims, 'access': access}).encode())}"
        first, second = decode_dss_signature(self._key.sign(text.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{text}.{_packed(first.to_bytes(32, 'big') + second.to_bytes(32, 'big'))}"


def tls(authority: Authority, folder: Path) -> dict[str, Any]:
    """Settings of a registry that speaks TLS with a certificate of this authority."""
    certificate, key = authority.signed("registry")
    places = {"certificate": folder / "registry.crt", "key": folder / "registry.key"}
    for name, text in (("certificate", certificate), ("key", key)):
        places[name].write_text(text)
    return {"http": {"tls": {name: str(place) for name, place in places.items()}}}


@contextmanager
def token_server(authority: Authority) -> Iterator[TokenServer]:
    """A token server as long as the block lasts."""
    server = TokenServer(authority)
    try:
        yield server
    finally:
        server.gateway.close()


def _packed(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
