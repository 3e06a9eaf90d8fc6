"""A registry client on a line that a gateway spoils."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

from controller.adapters.oci.registry import Access, Registry
from policies.terms.digest import digest_of
from policies.terms.secret import Secret
from tests.contracts.registry_server import Gateway

DATA = b"some bytes of a blob, long enough to be cut in half"
DIGEST = digest_of(DATA)
PASSWORD = "hunter2-but-longer"


class Line:
    """Pauses are noted, not made."""

    def __init__(self, upstream: str = "", **more: Any) -> None:
        self.gateway = Gateway(upstream)
        self.pauses: list[float] = []
        self.access = Access(
            repository=f"{self.gateway.address}/team/digits",
            username="robot",
            password=Secret(PASSWORD),
            unsafe_plain_http=True,
            origin="Secret team-a/registry-push",
        )
        self.registry = Registry(self.access, sleep=self.pauses.append, **more)

    def fetched(self) -> bytes:
        out = io.BytesIO()
        self.registry.fetch_blob(DIGEST, out)
        return out.getvalue()

    def close(self) -> None:
        self.registry.close()
        self.gateway.close()


def auth(text: str) -> str:
    """As a Docker configuration and a header hold it."""
    return base64.b64encode(text.encode()).decode()


def said(code: str, message: str) -> bytes:
    """A registry's own words."""
    return json.dumps({"errors": [{"code": code, "message": message}]}).encode()
