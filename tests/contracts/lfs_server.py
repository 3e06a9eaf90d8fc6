"""Git LFS on loopback: a Git server that answers the batch API too, and can be told to answer it wrongly."""

from __future__ import annotations

import hashlib
import json
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.contracts.git_server import GitServer


class LfsServer(GitServer):
    """Serves repositories, and content by digest from `/store/DIGEST`.

    Args:
        folder: Where the repositories are.
        tls: What it speaks TLS with; None: it speaks plain HTTP.
    """

    def __init__(self, folder: Path, tls: ssl.SSLContext | None = None) -> None:
        self.contents: dict[str, bytes] = {}
        """Digest -> content."""
        self.action: dict[str, Any] = {}
        """What is said of every download beside, or in place of, where it is here."""
        self.object: dict[str, Any] = {}
        """The same of every object."""
        self.answer_with: tuple[int, bytes] | None = None
        """Status and body of every answer of the batch API."""
        self.moved: str = ""
        """Where every download is sent on to, `%s` for the digest."""
        self.shown: list[tuple[str, str]] = []
        """Path and Authorization header of every question about Git LFS."""
        super().__init__(folder, tls)

    def put(self, content: bytes) -> bytes:
        """Keep content; its pointer."""
        digest = hashlib.sha256(content).hexdigest()
        self.contents[digest] = content
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {len(content)}\n".encode()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = urlsplit(request.path).path
        if not path.startswith("/store/") and "/info/lfs/" not in path:
            super().answer(request)
            return
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        self.shown.append((path, request.headers.get("Authorization", "")))
        if path.startswith("/store/"):
            digest = path.rpartition("/")[2]
            if self.moved:
                _say(request, 302, b"", Location=self.moved % digest)
            else:
                _say(request, 200 if digest in self.contents else 404, self.contents.get(digest, b""))
        elif self.needs and request.headers.get("Authorization") != self.needs:
            _say(request, 401, b"")
        elif self.answer_with is not None:
            _say(request, *self.answer_with)
        else:
            _say(request, 200, json.dumps(self._batch(json.loads(body))).encode())

    def _batch(self, asked: dict[str, Any]) -> dict[str, Any]:
        assert (asked["operation"], asked["transfers"]) == ("download", ["basic"])
        objects = []
        for item in asked["objects"]:
            if item["oid"] in self.contents:
                action = {"href": self.url(f"store/{item['oid']}"), **self.action}
                objects.append({**item, "actions": {"download": action}, **self.object})
            else:
                objects.append({**item, "error": {"code": 404, "message": "no such object"}})
        return {"transfer": "basic", "objects": objects}


@contextmanager
def lfs_server(folder: Path, tls: ssl.SSLContext | None = None) -> Iterator[LfsServer]:
    """A server as long as the block lasts."""
    server = LfsServer(folder, tls)
    try:
        yield server
    finally:
        server.close()


def _say(request: BaseHTTPRequestHandler, status: int, body: bytes, **fields: str) -> None:
    request.send_response(status)
    for name, value in fields.items():
        request.send_header(name, value)
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)
