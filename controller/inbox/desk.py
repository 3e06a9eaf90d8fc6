"""The desk of the inbox: one HTTP server for all projects, which finds the project of each request by its secret."""

from __future__ import annotations

import hashlib
import json
import secrets
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import HTTPServer
from typing import Any

from controller.adapters import gauges
from controller.adapters.clock import SystemClock
from controller.adapters.results import programs_path
from controller.inbox.front import LARGEST_HEAD_BYTES, SERVE, Front, Judged
from controller.inbox.handler import TIMEOUT_SECONDS, Handler
from controller.inbox.heads import Head, body_size, read_head
from controller.inbox.hooks import ADDRESS, Hooks, is_known, refusal, wrong
from controller.inbox.receivers import Admitted, Receivers
from controller.inbox.sigstores import Sigstores
from controller.inbox.strangers import Strangers
from controller.inbox.uploads import forget_received
from policies.admin import ANY_PROJECT
from policies.errors import RefusedError
from policies.hooks import provider_of
from policies.terms.secret import NO_SECRET, Secret
from reconcilers.ports import Clock

LOOK_SECONDS = 0.1
"""How often it is looked whether callers were too slow."""
BACKLOG = 512
"""Connections that the kernel keeps until they are accepted."""


class Desk(HTTPServer):
    """Takes what comes in for every project that was admitted. It listens from the start, and answers from `start` on.

    Whoever shows a project's secret is served; for all others there is a little time each second, and junk is answered
    without a worker, so that it slows no pass down.

    Args:
        host: Address to listen on; `0.0.0.0` or `::` for all.
        port: Its port; 0: any.
        is_ready: Whether this controller should be asked at all. It must not wait for anything, nor `is_alive`.
        is_alive: Whether it should be left running.
        is_settled: Whether every project that it knows of was admitted. Until then, a secret that nobody here knows is
            answered with "ask again" instead of "no": an event that is sent while a controller starts must not be lost.
            (A job's result is never answered with "no" for that.) None: as soon as it is ready.
        clock: What signed instants of webhooks are measured against.
        patience_seconds: How long a sender may take for the head of a request, and for a body that is no result.

    Raises:
        RefusedError: The port is in use, or is not ours to take.
    """

    request_queue_size = BACKLOG

    def __init__(
        self,
        host: str,
        port: int,
        *,
        is_ready: Callable[[], bool],
        is_alive: Callable[[], bool],
        is_settled: Callable[[], bool] | None = None,
        clock: Clock | None = None,
        patience_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        self.patience_seconds = patience_seconds
        self.is_ready, self.is_alive, self.is_settled = is_ready, is_alive, is_settled or is_ready
        self.clock = clock or SystemClock()
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._admitted: dict[str, Admitted] = {}
        self._hooks: dict[str, Hooks] = {}
        self.sigstores = Sigstores()
        # Secrets are looked up by a digest that nobody can foresee, which takes as long for a wrong one as for a right one.
        self._salt = secrets.token_bytes(32)
        self._tokens: Mapping[bytes, Admitted] = {}
        self._programs: Mapping[bytes, Admitted] = {}
        self._strangers = Strangers()
        self._guard = threading.Lock()
        self._thread: threading.Thread | None = None
        self._front = Front(
            judge=self._judge,
            serve=self._serve,
            turned_away=lambda why: gauges.TURNED_AWAY.labels(why).inc(),
            patience_seconds=patience_seconds,
        )
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

    def serve_forever(self, poll_interval: float = LOOK_SECONDS) -> None:
        """Answer until `shutdown`."""
        self._front.run(self.socket, poll_interval)

    def shutdown(self) -> None:
        """End `serve_forever`."""
        self._front.end()

    def server_close(self) -> None:
        """Give the port back."""
        super().server_close()
        self._front.close()
        with self._guard:
            for hooks in self._hooks.values():
                hooks.close()

    def close(self) -> None:
        """Answer nobody any more."""
        if self._thread is not None:
            self.shutdown()
            self._thread.join()
        self.server_close()

    def admit(self, project: str, receivers: Receivers, *, token: str, programs: str, hook: Secret = NO_SECRET) -> None:
        """Take things for a project from now on; one of that name that is here already is replaced.

        Args:
            project: Its name, unlike any other's here, or `policies.admin.ANY_PROJECT`: then the receivers' newest look
                says what it may be called.
            receivers: Who takes them.
            token: What senders of events show.
            programs: The project's own secret, the same after a restart, since running jobs keep the addresses that were
                made of it. Programs are told `results.programs_path` of it, and a job `results.job_path`: who knows the
                secret itself can send any job's result.
            hook: What senders of webhooks prove that they know; none: no webhook is genuine.

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
            self._close_hooks(project)
            self._hooks = {**self._hooks, project: Hooks(hook, receivers)}
            self.sigstores.keep(project, receivers.sigstore(f"http://127.0.0.1:{self.server_port}"))
            self._keep({**self._admitted, project: item})

    def dismiss(self, project: str) -> None:
        """Take nothing for a project any more; one that is not here is dismissed already."""
        with self._guard:
            self._close_hooks(project)
            self._hooks = {name: hooks for name, hooks in self._hooks.items() if name != project}
            self.sigstores.keep(project, None)
            self._keep({name: item for name, item in self._admitted.items() if name != project})

    def by_programs(self, secret: str) -> Admitted | None:
        """The project whose programs have this secret in their addresses. Takes as long for a wrong one as for a right one."""
        return self._programs.get(self._digest(secret))

    def by_token(self, token: str) -> Admitted | None:
        """The project whose senders have this token. Takes as long for a wrong one as for a right one."""
        return self._tokens.get(self._digest(token))

    def hooks_of(self, project: str) -> Hooks | None:
        """Who takes the webhooks of a project, by its name or, where there is only one, by any."""
        return self._hooks.get(project) or self._hooks.get(ANY_PROJECT)

    def probe(self, path: str) -> tuple[int, dict[str, str]] | None:
        """What is answered to who asks how we are; None when that is not what the path asks."""
        if path == "/health":
            is_alive = self.is_alive()
            return 200 if is_alive else 503, {"status": "OK" if is_alive else "stuck"}
        if path == "/ready":
            is_ready = self.is_ready()
            return 200 if is_ready else 503, {"status": "OK" if is_ready else "not ready"}
        return None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that went away."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def _keep(self, admitted: dict[str, Admitted]) -> None:
        self._admitted = admitted
        self._tokens = {self._digest(item.token): item for item in admitted.values()}
        told = [(programs_path(item.programs).rpartition("/")[2], item) for item in admitted.values()]
        told += [(item.programs, item) for item in admitted.values()]
        self._programs = {self._digest(secret): item for secret, item in told}

    def _close_hooks(self, project: str) -> None:
        if project in self._hooks:
            self._hooks[project].close()

    def _digest(self, secret: str) -> bytes:
        return hashlib.blake2b(secret.encode(errors="replace"), key=self._salt, digest_size=32).digest()

    def _serve(self, connection: socket.socket, address: tuple[Any, ...], received: bytes) -> None:
        try:
            Handler(connection, address, self, received)
        except Exception:  # noqa: BLE001  one caller's trouble is not another's; as in the standard library's server
            self.handle_error(connection, address)
        finally:
            self.shutdown_request(connection)

    def _judge(self, received: bytes, address: str) -> Judged:
        """What becomes of a request of which this came so far."""
        head = read_head(received)
        if head is None:
            return _answer(431, f"expected a head of at most {LARGEST_HEAD_BYTES} bytes")
        if head.method == "GET" and (probed := self.probe(head.path)) is not None:
            return _canned(*probed)
        parts = head.parts
        if head.method == "POST" and parts[0] == ADDRESS:
            return self._judge_hook(head, received, address)
        bearer = head.headers.get("authorization", "").removeprefix("Bearer ")
        is_known = parts[0] == "programs" and len(parts) > 2 and self.by_programs(parts[1]) is not None
        return SERVE if is_known or self.by_token(bearer) is not None else self._as_stranger(address)

    def _judge_hook(self, head: Head, received: bytes, address: str) -> Judged:
        """A webhook is checked before a worker has it, unless it is large: then its sender must have been quiet lately."""
        parts, size, now = head.parts, body_size(head.headers), self.clock.now()
        if (why_not := refusal(parts, head.headers, size, now=now)) is not None:
            return _answer(*why_not)
        whole = head.size_bytes + size
        if whole > LARGEST_HEAD_BYTES or head.headers.get("expect"):
            return self._as_stranger(address)
        if len(received) < whole:
            return whole
        kind = provider_of(parts[2])
        if is_known(self.hooks_of(parts[1]), kind, head.headers, received[head.size_bytes : whole], now=now):
            return SERVE
        return _answer(*self.unknown_hook(kind))

    def unknown_hook(self, kind: str) -> tuple[int, str]:
        """The answer to a webhook that proves nothing."""
        return wrong(kind) if self.is_settled() else (503, "not every project is known here yet; ask again")

    def _as_stranger(self, address: str) -> Judged:
        if self._strangers.may(address, time.monotonic()):
            return SERVE
        gauges.TURNED_AWAY.labels("too often").inc()
        return _answer(429, "expected fewer requests without a secret of a project; ask again in a second")


def _answer(code: int, words: str) -> bytes:
    return _canned(code, {"message": words})


def _canned(code: int, value: Mapping[str, str]) -> bytes:
    """A whole answer."""
    body = json.dumps(value).encode()
    again = "Retry-After: 1\r\n" if code in (429, 503) else ""
    head = f"HTTP/1.1 {code} {HTTPStatus(code).phrase}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"{head}{again}Connection: close\r\n\r\n".encode() + body
