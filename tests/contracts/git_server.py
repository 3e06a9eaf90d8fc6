"""A Git server on loopback: a small HTTP server that runs Git's own `git http-backend`, and can be told to refuse."""

from __future__ import annotations

import contextlib
import os
import ssl
import subprocess
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit


class Answering:
    """What a Git server answers, without a socket: every bare repository below a folder, for reading and writing.

    Args:
        folder: Where the repositories are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: deque[tuple[str, str, bytes]] = deque(maxlen=1000)
        """Method, path and body of the newest requests."""
        self.speaks_version_2 = True
        self.refusal: int | None = None
        """Status that every request gets instead of an answer."""
        self.needs: str = ""
        """Authorization header that every request must have; empty: none."""
        self.dies_after_push = False
        """Whether the answer to a push is lost after it took effect."""

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one request: a refusal, or what Git's backend says."""
        body = _body(request)
        self.asked.append((request.command, request.path, body))
        if self.refusal is not None or (self.needs and request.headers.get("Authorization") != self.needs):
            status = self.refusal or 401
            request.send_response(status)
            if status == 401:
                request.send_header("WWW-Authenticate", 'Basic realm="git"')
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        said = self._run(request, body)
        if self.dies_after_push and request.path.endswith("/git-receive-pack"):
            request.close_connection = True
            return
        head, _, content = said.partition(b"\r\n\r\n")
        fields = [line.split(": ", 1) for line in head.decode().split("\r\n") if line]
        status = next((int(value.split()[0]) for name, value in fields if name == "Status"), 200)
        request.send_response(status)
        for name, value in fields:
            if name != "Status":
                request.send_header(name, value)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    def _run(self, request: BaseHTTPRequestHandler, body: bytes) -> bytes:
        parts = urlsplit(request.path)
        environment = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": str(self.folder),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_CONFIG_COUNT": "2",
            "GIT_CONFIG_KEY_0": "http.receivepack",
            "GIT_CONFIG_VALUE_0": "true",
            "GIT_CONFIG_KEY_1": "safe.directory",
            "GIT_CONFIG_VALUE_1": "*",
            "REQUEST_METHOD": request.command,
            "PATH_INFO": parts.path,  # also of the whole URL that a proxy is asked for
            "QUERY_STRING": parts.query,
            "CONTENT_TYPE": request.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": request.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": request.headers.get("Git-Protocol", "") if self.speaks_version_2 else "",
            "REMOTE_USER": "somebody",
            "REMOTE_ADDR": "127.0.0.1",
        }
        done = subprocess.run(["git", "http-backend"], input=body, env=environment, capture_output=True, check=False)
        return done.stdout


class GitServer(Answering):
    """Serves every bare repository below a folder, for reading and writing.

    Args:
        folder: Where the repositories are.
        tls: What it speaks TLS with; None: it speaks plain HTTP.
    """

    def __init__(self, folder: Path, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(folder)
        self._scheme = "https" if tls else "http"
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                if tls is not None:  # here, not where connections are accepted: a client that says nothing blocks only itself
                    self.request.settimeout(20)
                    self.request = tls.wrap_socket(self.request, server_side=True, do_handshake_on_connect=False)
                    try:
                        self.request.do_handshake()
                    except OSError:
                        self.request.close()
                        raise
                super().setup()

            def finish(self) -> None:
                with contextlib.suppress(OSError, ValueError):
                    super().finish()
                if tls is not None:
                    self.request.close()

            def do_GET(self) -> None:
                server.answer(self)

            def do_POST(self) -> None:
                server.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._http = _Server(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """`127.0.0.1:port`."""
        return f"127.0.0.1:{self._http.server_address[1]}"

    def url(self, name: str) -> str:
        """URL of a repository."""
        return f"{self._scheme}://{self.address}/{name}"

    def close(self) -> None:
        """Answer nobody any more."""
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(5)


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A client that does not like our certificate, or we its own, is no fault of the test."""


@contextmanager
def git_server(folder: Path, tls: ssl.SSLContext | None = None) -> Iterator[GitServer]:
    """A Git server as long as the block lasts."""
    server = GitServer(folder, tls)
    try:
        yield server
    finally:
        server.close()


def _body(request: BaseHTTPRequestHandler) -> bytes:
    if request.headers.get("Transfer-Encoding", "") != "chunked":
        return request.rfile.read(int(request.headers.get("Content-Length") or 0))
    body = b""
    while size := int(request.rfile.readline().split(b";")[0], 16):
        body += request.rfile.read(size)
        request.rfile.readline()
    request.rfile.readline()
    return body
