"""The node's wheel index and Git server, one process inside the node's network namespace.

Never knows Kubernetes.
"""

from __future__ import annotations

import base64
import functools
import os
import socketserver
import sys
import threading
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.contracts.git_server import Answering


class Repositories(Answering):
    """What the contract tests' server answers, without its socket on loopback.

    Args:
        folder: Where the bare repositories are.
        user: Whose credentials every request needs.
        password: Theirs.
    """

    def __init__(self, folder: Path, user: str, password: str) -> None:
        super().__init__(folder)
        self.needs = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


class Wheels(SimpleHTTPRequestHandler):
    """A static folder, whose listing is what `PIP_FIND_LINKS` reads."""

    protocol_version = "HTTP/1.1"


class Listener(ThreadingHTTPServer):
    """A server that asks nobody for its own name: there may be no name server yet."""

    daemon_threads = True

    def server_bind(self) -> None:
        """Bind, and nothing more."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])


def serve(address: str, wheels: Path, repositories: Repositories) -> None:
    """Serve wheels on port 8000 and repositories on port 8001, for ever."""

    class Git(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            repositories.answer(self)

        def do_POST(self) -> None:
            repositories.answer(self)

    static = Listener((address, 8000), functools.partial(Wheels, directory=str(wheels)))
    threading.Thread(target=static.serve_forever, daemon=True).start()
    Listener((address, 8001), Git).serve_forever()


if __name__ == "__main__":  # python -m tests.cluster.servers ADDRESS WHEELS REPOSITORIES USER
    serve(sys.argv[1], Path(sys.argv[2]), Repositories(Path(sys.argv[3]), sys.argv[4], os.environ["GIT_PASSWORD"]))
