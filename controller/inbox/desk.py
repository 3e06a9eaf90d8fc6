"""The desk of the inbox: one HTTP server for all projects, which finds the project of each request by its secret."""

from __future__ import annotations

import hmac
import socket
import socketserver
import sys
import threading
from collections.abc import Callable
from http.server import ThreadingHTTPServer
from typing import Any

from controller.adapters.results import programs_path
from controller.inbox.handler import Handler
from controller.inbox.receivers import Admitted, Receivers
from controller.inbox.uploads import forget_received
from policies.errors import RefusedError

LOOK_SECONDS = 0.1
"""How long closing may take."""


class Desk(ThreadingHTTPServer):
    """Takes what comes in for every project that was admitted. It listens from the start, and answers from `start` on.

    Args:
        host: Address to listen on; `0.0.0.0` or `::` for all.
        port: Its port; 0: any.
        is_ready: Whether this controller should be asked at all.
        is_alive: Whether it should be left running.
        is_settled: Whether every project that it knows of was admitted. Until then, a secret that nobody here knows is
            answered with "ask again" instead of "no": an event that is sent while a controller starts must not be lost.
            (A job's result is never answered with "no" for that.) None: as soon as it is ready.

    Raises:
        RefusedError: The port is in use, or is not ours to take.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        host: str,
        port: int,
        *,
        is_ready: Callable[[], bool],
        is_alive: Callable[[], bool],
        is_settled: Callable[[], bool] | None = None,
    ) -> None:
        self.is_ready, self.is_alive, self.is_settled = is_ready, is_alive, is_settled or is_ready
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._admitted: dict[str, Admitted] = {}
        self._guard = threading.Lock()
        self._thread: threading.Thread | None = None
        try:
            super().__init__((host, port), Handler)
        except OSError as error:
            raise RefusedError(f"inbox port {port}: {error.strerror}; choose another", reason="PortInUse") from error

    def server_bind(self) -> None:
        """Take the port, and do not look up what this machine is called, as the standard library does: that may take long."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def start(self) -> int:
        """Answer from now on, in a thread of its own; returns the port."""
        self._thread = threading.Thread(target=self.serve_forever, args=(LOOK_SECONDS,), name="inbox", daemon=True)
        self._thread.start()
        return self.server_port

    def close(self) -> None:
        """Answer nobody any more."""
        if self._thread is not None:
            self.shutdown()
            self._thread.join()
        self.server_close()

    def admit(self, project: str, receivers: Receivers, *, token: str, programs: str) -> None:
        """Take things for a project from now on; one of that name that is here already is replaced.

        Args:
            project: Its name, unlike any other's here, or `policies.admin.ANY_PROJECT`: then the receivers' newest look
                says what it may be called.
            receivers: Who takes them.
            token: What senders of events show.
            programs: The project's own secret, the same after a restart, since running jobs keep the addresses that were
                made of it. Programs are told `results.programs_path` of it, and a job `results.job_path`: who knows the
                secret itself can send any job's result.

        Raises:
            RefusedError: A secret is empty, or another project's.
        """
        if not token or not programs:
            raise RefusedError(f"project {project}: expected a token and a secret for its programs, got an empty one")
        with self._guard:
            others = [item for item in self._admitted.values() if item.project != project]
            if found := [item.project for item in others if token == item.token or programs == item.programs]:
                raise RefusedError(f"project {project}: expected secrets of its own, got those of {', '.join(found)}")
            if receivers.results is not None and project not in self._admitted:
                forget_received(receivers.results)
            item = Admitted(project=project, receivers=receivers, token=token, programs=programs)
            self._admitted = {**self._admitted, project: item}

    def dismiss(self, project: str) -> None:
        """Take nothing for a project any more; one that is not here is dismissed already."""
        with self._guard:
            self._admitted = {name: item for name, item in self._admitted.items() if name != project}

    def by_programs(self, secret: str) -> Admitted | None:
        """The project whose programs have this secret in their addresses. Takes as long for a wrong one as for a right one."""
        found = None
        for item in self._admitted.values():
            told = programs_path(item.programs).rpartition("/")[2]
            if _is_same(secret, told) | _is_same(secret, item.programs):
                found = item
        return found

    def by_token(self, token: str) -> Admitted | None:
        """The project whose senders have this token. Takes as long for a wrong one as for a right one."""
        found = None
        for item in self._admitted.values():
            if _is_same(token, item.token):
                found = item
        return found

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that went away."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


def _is_same(given: str, known: str) -> bool:
    return hmac.compare_digest(given.encode(errors="replace"), known.encode())
