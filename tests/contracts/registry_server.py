"""A real registry on loopback: Debian's docker-registry, with or without passwords, TLS and tokens; and peers for the tests."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPSConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

USER = "tester"
PASSWORD = "a password with ünïcode: and colon"
PASSWORD_LINE = f"{USER}:$2b$04$abcdefghijklmnopqrstuu97ti944uRQiFK3J5vFFjEGjQctizy2e\n"
"""As `htpasswd -nbB -C 4` writes it: the registry takes bcrypt only."""
START_SECONDS = 20.0


def why_no_registry() -> str:
    """Why there is no registry to test with; empty when there is one."""
    return (
        ""
        if shutil.which("docker-registry")
        else "docker-registry: expected Debian's package docker-registry, it is not installed"
    )


class RegistryServer:
    """A docker-registry process.

    Args:
        folder: Where it keeps what it is given.
        settings: More of its configuration, merged on top.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any] | None = None) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        more = dict(settings or {})
        config = {
            "version": 0.1,
            "log": {"level": "info", "accesslog": {"disabled": True}},
            "storage": {"filesystem": {"rootdirectory": str(folder / "data")}, "delete": {"enabled": True}},
            **more,
            "http": {"addr": "127.0.0.1:0", "secret": "x", **more.get("http", {})},
        }
        # Its configuration is YAML, which JSON is a part of.
        (folder / "config.yml").write_text(json.dumps(config))
        self._log = folder / "log"
        with self._log.open("wb") as log:
            command = ["docker-registry", "serve", str(folder / "config.yml")]
            environment = {"PATH": os.environ["PATH"]}
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment)
        self.address = self._listening()

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(5)

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def requests(self) -> int:
        """How many it answered."""
        return self._log.read_text(errors="replace").count("response completed")

    def clean_up(self) -> str:
        """Let it collect its garbage as people do who follow its handbook, untagged manifests too; what it says."""
        command = ["docker-registry", "garbage-collect", "--delete-untagged", str(self._folder / "config.yml")]
        environment = {"PATH": os.environ["PATH"]}
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, env=environment).stdout

    def blob(self, digest: str) -> Path:
        """Where it keeps a blob's bytes."""
        text = digest.removeprefix("sha256:")
        return self._folder / "data" / "docker" / "registry" / "v2" / "blobs" / "sha256" / text[:2] / text / "data"

    def forget(self, path: str, digest: str) -> None:
        """Remove a blob or manifest from one repository, as a clean-up of the registry would."""
        text = digest.removeprefix("sha256:")
        place = self._folder / "data" / "docker" / "registry" / "v2" / "repositories" / path
        for folder in ("_layers/sha256", "_manifests/revisions/sha256"):
            shutil.rmtree(place / folder / text, ignore_errors=True)

    def _listening(self) -> str:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            text = self._log.read_text(errors="replace")
            found = re.search(r"listening on (127\.0\.0\.1:\d+)", text)
            if found:
                return found[1]
            if self._process.poll() is not None:
                break
            time.sleep(0.01)
        self.close()
        raise AssertionError(f"docker-registry does not serve: {self._log.read_text(errors='replace')[-2000:]}")


def with_passwords(folder: Path) -> dict[str, Any]:
    """Settings with which only USER is let in."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "htpasswd").write_text(PASSWORD_LINE)
    return {"auth": {"htpasswd": {"realm": "myelin-tests", "path": str(folder / "htpasswd")}}}


@contextmanager
def registry_server(folder: Path, settings: Mapping[str, Any] | None = None) -> Iterator[RegistryServer]:
    """A registry as long as the block lasts."""
    server = RegistryServer(folder, settings)
    try:
        yield server
    finally:
        server.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """An answer that a gateway gives by itself."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    sent: int | None = None
    """How many bytes of the body are sent before the line goes dead; None: all, and it lives."""


SLOW = Said(status=200)
"""Nothing, until the gateway's `stuck` is set."""
LOST = Said(sent=0, status=0)
"""No answer at all: the line goes dead."""


class Gateway:
    """What stands between us and a registry: it counts, and gives other answers than the registry's when told so.

    Args:
        upstream: Address of the registry; empty: there is none, and what nobody told it to answer is 404.
        trusted: With what to speak TLS to it; None: it speaks none.
    """

    def __init__(self, upstream: str = "", *, trusted: ssl.SSLContext | None = None) -> None:
        self._upstream, self._trusted = upstream, trusted
        self.body = b""
        """That of the last request."""
        self.received = 0
        """Bytes of bodies that blobs were sent with."""
        self.before: Callable[[int], None] = lambda number: None
        """Called before the registry hears of a request, with its number from 0."""
        self.after: Callable[[int], None] = lambda number: None
        """Called when the registry has answered, before anybody hears of it."""
        self._numbers = itertools.count()
        self.asked: list[str] = []
        """`GET /v2/… 200`, in order."""
        self.headers: list[dict[str, str]] = []
        """Those of the requests, in lower case."""
        self.answers: list[Callable[[str, str], Said | None]] = []
        """Asked in turn with method and path; the first that answers is used up by it."""
        self.takes_effect = False
        """Whether what is answered here still reaches the registry, so that only its answer is lost."""
        self.stuck = threading.Event()
        """Set it to let those go on who wait for a slow answer."""
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def handle_any(self) -> None:
                gateway.answer(self)

            do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = handle_any

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                """A client that hangs up is what some tests are about."""

        self._http = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """`127.0.0.1:port`."""
        return f"127.0.0.1:{self._http.server_address[1]}"

    def close(self) -> None:
        """Answer nobody any more."""
        self.stuck.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(5)

    def tell(self, said: Said, *, method: str = "", path: str = "", times: int = 1) -> None:
        """Answer so to the next requests of this kind."""
        for _ in range(times):
            self.answers.append(lambda asked, place: said if asked.startswith(method) and path in place else None)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        self.headers.append({key.lower(): value for key, value in request.headers.items()})
        self.body = body
        number = next(self._numbers)
        self.before(number)
        if "/blobs/uploads/" in request.path:
            self.received += len(body)
        said = None
        for choice in self.answers:
            said = choice(request.command, request.path)
            if said is not None:
                self.answers.remove(choice)
                break
        if said is SLOW:
            self.stuck.wait(30)
        if said is None or (self.takes_effect and self._upstream):
            real = self._forwarded(request, body)
            said = said or real
        self.after(number)
        self.asked.append(f"{request.command} {request.path} {said.status}")
        if said is LOST or said.sent is not None:
            request.close_connection = True
        if said is LOST:
            return
        request.send_response(said.status)
        length = said.headers.get("Content-Length") or str(len(said.body))
        for name, value in {**said.headers, "Content-Length": length}.items():
            request.send_header(name, value)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(said.body if said.sent is None else said.body[: said.sent])

    def _forwarded(self, request: BaseHTTPRequestHandler, body: bytes) -> Said:
        if not self._upstream:
            return Said(status=404)
        host, trusted = self._upstream, self._trusted
        line = HTTPSConnection(host, timeout=20, context=trusted) if trusted else HTTPConnection(host, timeout=20)
        try:
            # Its own address stays in `Host`, so that the registry sends clients back here.
            line.request(request.command, request.path, body=body, headers=dict(request.headers.items()))
            real = line.getresponse()
            kept = {key: value for key, value in real.getheaders() if key.lower() not in ("connection", "transfer-encoding")}
            return Said(status=real.status, body=real.read(), headers=kept)
        finally:
            line.close()


@contextmanager
def gateway(upstream: str = "") -> Iterator[Gateway]:
    """A gateway as long as the block lasts."""
    opened = Gateway(upstream)
    try:
        yield opened
    finally:
        opened.close()
