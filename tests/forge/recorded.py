"""A server on loopback that knows what it will be asked, in which order, and what a documented API answers to that.

GitHub and GitLab have no server that can run here: what our clients are held to is the shape of their documented requests and
answers, shortened to the fields that their documentation calls required or that we read.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

TOKEN = "tok-0123456789abcdef"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One question and its answer."""

    ask: str
    """`GET /repos/o/r/pulls?state=all`; queries are compared without their order."""
    body: Any = None
    says: Mapping[str, str] = field(default_factory=dict)
    """Headers that the question must have."""
    status: int = 200
    answer: Any = None
    """JSON; bytes: as they are; None: nothing."""
    headers: Mapping[str, str] = field(default_factory=dict)
    dies: bool = False
    """Whether the connection ends instead."""


class Recorded:
    """The server."""

    def __init__(self) -> None:
        self.expected: list[Exchange] = []
        self.wrong: list[str] = []
        self.asked = 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server.answer(self)

            do_POST = do_PATCH = do_PUT = do_DELETE = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Its root."""
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def expect(self, *exchanges: Exchange) -> None:
        """What it will be asked next."""
        self.expected += exchanges

    def close(self) -> None:
        """Answer nobody any more."""
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(5)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one question, or note that it was another one."""
        self.asked += 1
        raw = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        body = json.loads(raw) if raw else None
        if not self.expected:
            self.wrong.append(f"{request.command} {request.path}: expected no question")
            return self._send(request, Exchange(ask="", status=418))
        due = self.expected.pop(0)
        for got, wanted in (
            (_plain(f"{request.command} {request.path}"), _plain(due.ask)),
            (body, due.body),
            ({name: request.headers.get(name) for name in due.says}, dict(due.says)),
            (request.headers.get("Authorization"), f"Bearer {TOKEN}"),
        ):
            if got != wanted:
                self.wrong.append(f"{due.ask}: expected {wanted}, got {got}")
        return self._send(request, due)

    def _send(self, request: BaseHTTPRequestHandler, due: Exchange) -> None:
        if due.dies:
            request.close_connection = True
            return
        content = (
            due.answer if isinstance(due.answer, bytes) else json.dumps(due.answer).encode() if due.answer is not None else b""
        )
        request.send_response_only(due.status)
        for name, value in due.headers.items():
            request.send_header(name, value.replace("{url}", self.url))
        if due.status != 304:
            request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)


@contextmanager
def recorded() -> Iterator[Recorded]:
    """A server as long as the block lasts, which must have been asked everything and nothing else."""
    server = Recorded()
    try:
        yield server
        assert server.wrong == []
        assert [due.ask for due in server.expected] == []
    finally:
        server.close()


def _plain(line: str) -> tuple[str, str, list[tuple[str, str]]]:
    method, _, target = line.partition(" ")
    parts = urlsplit(target)
    return method, parts.path, sorted(parse_qsl(parts.query, keep_blank_values=True))
