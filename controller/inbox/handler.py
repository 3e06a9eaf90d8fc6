"""One request at the inbox: whose it is, what it brings or asks, and the answer."""

from __future__ import annotations

import hmac
import io
import json
import re
import secrets
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from controller.adapters import gauges
from controller.adapters.results import is_job, job_secret
from controller.inbox.heads import body_size, path_parts
from controller.inbox.hooks import ADDRESS, is_known, refusal
from controller.inbox.parsing import group_labels, result_line
from controller.inbox.receivers import Admitted
from controller.inbox.sigstores import Asked, asked_of
from controller.inbox.uploads import DAMAGED, received
from policies.admin import ANY_PROJECT, axon_runs, check_target, deployed_graphs
from policies.canonical import canonical
from policies.errors import ControllerError, DesiredStateError, OutsideError, RefusedError, TrustError
from policies.hooks import provider_of
from policies.identity import event_id
from policies.terms.desired import DesiredState
from policies.terms.event import Event
from policies.terms.observed import Observed

if TYPE_CHECKING:
    from controller.inbox.desk import Desk

LARGEST_BODY_BYTES = 1 << 20
MOST_DISCARDED_BYTES = 4 << 20
"""What is read of a body that is too large: what lies unread when a connection is closed may cost its sender the answer."""
TIMEOUT_SECONDS = 10.0
UPLOAD_SECONDS = 300.0
"""How long a job that brings a large result may say nothing."""
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_ADDRESS = "expected the address that jobs are given, with its secret"
_BROWSER = "expected a program, got a page in a browser"
_TOKEN = "expected the inbox's token as Authorization: Bearer …"


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    server: Desk
    timeout = TIMEOUT_SECONDS
    protocol_version = "HTTP/1.1"

    def __init__(self, request: socket.socket, client_address: Any, server: Desk, received: bytes = b"") -> None:
        self._received = received
        self._is_known = False
        super().__init__(request, client_address, server)

    def setup(self) -> None:
        """Read what came already before what comes."""
        super().setup()
        self.rfile.close()
        self.rfile = io.BufferedReader(Joined(self._received, self.connection))

    def parse_request(self) -> bool:
        """Nobody is known by what an earlier request on this connection showed."""
        self._is_known = False
        return super().parse_request()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: paths and headers may hold secrets."""

    def handle_expect_100(self) -> bool:
        """Say nothing yet to who asks whether to send a body: what it comes to is seen when its address was looked at."""
        return True

    def do_GET(self) -> None:
        """Health, metrics, what a Sigstore shows, and the runs of an axon."""
        if (asked := asked_of(self.path)) is not None:
            self._sigstore("GET", asked, b"")
            return
        parts, project = self._parts()
        if (probed := self.server.probe(self.path)) is not None:
            self._say(*probed)
        elif self.path == "/metrics":
            self._send(200, gauges.render(), "text/plain; version=0.0.4")
        elif parts[:3] == ["api", "v1", "axons"] and len(parts) == 5:
            if project is None:
                self._deny(*self._stranger(_ADDRESS))
                return
            place = project.receivers.place
            self._tell(project, parts[3], lambda look: axon_runs(*look, parts[4], place=place))
        else:
            self._deny(404, f"/{'/'.join(parts)}: nothing here")

    def do_POST(self) -> None:
        """Events, results and samples, what a Sigstore is sent; and the question for a deployer's models."""
        size = self._length()
        if not 0 <= size <= LARGEST_BODY_BYTES:
            self.close_connection = True
            if not self._is_asked():
                self._discard(min(size, MOST_DISCARDED_BYTES))
            self._deny(413, f"expected a body of at most {LARGEST_BODY_BYTES} bytes with its Content-Length")
            return
        parts, project = self._parts()
        hooked = {name.lower(): value for name, value in reversed(self.headers.items())} if parts[0] == ADDRESS else {}
        if hooked and (why_not := refusal(parts, hooked, size, now=self.server.clock.now())) is not None:
            self._deny(*why_not)
            return
        self._go_on()
        body = self._body(size)
        if self.headers.get("Origin"):
            self._deny(403, _BROWSER)
            return
        if (asked := asked_of(self.path)) is not None:
            self._sigstore("POST", asked, body)
            return
        try:
            if hooked:
                self._hook(parts, hooked, body)
            elif parts[0] == "sensors" and len(parts) in (4, 5):
                self._event(parts[1], parts[2:], body)
            elif parts[0] not in ("trials", "metrics", "model-graphs"):
                self._deny(404, f"/{'/'.join(parts)}: nothing here")
            elif project is None:
                self._deny(*self._stranger(_ADDRESS))
            elif parts[0] == "trials" and len(parts) == 3 and parts[2] == "submit_result":
                project.receivers.report(parts[1], result_line(json.loads(body)))
                self._say(200, {})
            elif parts[:2] in (["metrics", "job"], ["metrics", "job@base64"]) and len(parts) >= 3:
                project.receivers.push(group_labels(parts[1:]), body.decode(errors="replace"))
                self._say(202, {})
            elif parts[0] == "model-graphs" and len(parts) == 2:
                self._graphs(project, parts[1], body)
            else:
                self._deny(404, f"/{'/'.join(parts)}: nothing here")
        except (OutsideError, DesiredStateError) as error:
            self._deny(404, error.message)
        except (ValueError, KeyError, TypeError, RecursionError, ControllerError) as error:
            self._deny(400, " ".join(str(error).split())[:300])
        except OSError as error:
            self._deny(507, f"not kept: {error.strerror}")

    def do_PUT(self) -> None:
        """What a job brings back; else as POST."""
        parts, project = self._parts()
        if len(parts) != 3 or parts[0] != "jobs" or parts[2] != "result":
            self.do_POST()
            return
        self.close_connection = True  # one result, one connection
        job, _, secret = parts[1].rpartition(".")
        size, digest = self._length(), self.headers.get("Myelin-Digest", "")
        denied = self._why_not(project, job, secret, size, digest)
        if denied is None:
            assert project is not None
            self._result(project, job, size, digest)
            return
        if not self._is_asked() and 0 < size <= LARGEST_BODY_BYTES:
            self.rfile.read(size)  # what lies unread when a connection is closed may cost its sender the answer
        self._deny(*denied)

    def _why_not(self, project: Admitted | None, job: str, secret: str, size: int, digest: str) -> tuple[int, str] | None:
        """Why a result is not even read; None when it is."""
        if self.headers.get("Origin"):
            return 403, _BROWSER
        if project is None:
            # A "no" would end the job and lose what it did, and its project may only be being opened, or opened again.
            return 503, "no project is known here by this address; ask again"
        if not is_job(job) or project.receivers.result is None or project.receivers.results is None:
            return 404, f"job {job[:80]!r}: nobody here takes a result of it"
        if not hmac.compare_digest(secret.encode(), job_secret(project.programs, job).encode()):
            gauges.WRONG_TOKENS.inc()
            return 401, "expected the address that this job was given, with its secret"
        if size < 0:
            return 411, "expected a body with its Content-Length"
        if size > (most := project.receivers.largest_result_bytes):
            return 413, f"result: expected at most {most} bytes, got {size}"
        if not _DIGEST.fullmatch(digest):
            return 400, "expected the body's digest as Myelin-Digest: sha256:<64 hex>"
        return None

    def _parts(self) -> tuple[list[str], Admitted | None]:
        """The path's parts, without what programs are given in front; and the project that this leads to."""
        parts = path_parts(self.path)
        if parts[0] != "programs" or len(parts) < 3:
            return parts, None
        project = self.server.by_programs(parts[1])
        self._is_known = project is not None
        return parts[2:], project

    def _length(self) -> int:
        """How long the body says it is; -1 where it does not."""
        names = ("Content-Length", "Transfer-Encoding")
        return body_size({name.lower(): self.headers[name] for name in names if self.headers[name] is not None})

    def _body(self, size: int) -> bytes:
        """The whole body, which may not take longer than a head may.

        Raises:
            TimeoutError: It does.
        """
        until, body = time.monotonic() + self.server.patience_seconds, bytearray()
        while len(body) < size:
            self.connection.settimeout(max(until - time.monotonic(), 0.001))
            if not (found := self.rfile.read1(size - len(body))):
                break
            body += found
        self.connection.settimeout(TIMEOUT_SECONDS)
        return bytes(body)

    def _discard(self, size: int) -> None:
        """Read some of a body and keep nothing of it, in the time that a body may take."""
        try:
            self._body(size)
        except OSError:
            pass  # then the answer is all that is left to give

    def _is_asked(self) -> bool:
        """Whether the sender waits to hear that its body is welcome."""
        return self.headers.get("Expect", "").lower() == "100-continue"

    def _go_on(self) -> None:
        if self._is_asked():
            self.send_response_only(100)
            self.end_headers()

    def _stranger(self, words: str) -> tuple[int, str]:
        """The answer to whose secret is nobody's."""
        if not self.server.is_settled():
            return 503, "not every project is known here yet; ask again"
        gauges.WRONG_TOKENS.inc()
        return 401, words

    def _deny(self, code: int, words: str) -> None:
        self._say(code, {"message": words})

    def _event(self, named: str, parts: Sequence[str], body: bytes) -> None:
        project = self.server.by_token(self.headers.get("Authorization", "").removeprefix("Bearer "))
        if project is None:
            self._deny(*self._stranger(_TOKEN))
            return
        self._is_known = True
        # Who has a token of one project learns nothing of others: what is another's and what is nobody's are answered alike.
        own = project.project.partition(".")[2]  # a cluster's is called `namespace.name`
        if named not in (project.project, own, ANY_PROJECT) and project.project != ANY_PROJECT:
            raise DesiredStateError(f"project {named}: expected {project.project}", reason="NoSuchName")
        axon, sensor, trigger = parts[0], parts[1], parts[2] if len(parts) > 2 else ""
        if (look := project.receivers.newest()) is not None:  # what nothing is known of yet is kept, and looked at later
            known = ANY_PROJECT if named in (project.project, own) else named
            check_target(look[0], project=known, axon=axon, sensor=sensor, trigger=trigger)
        data = json.loads(body or b"{}")
        data = data if isinstance(data, dict) else {"data": data}
        canonical(data)  # what JSON cannot carry exactly is refused here, not when it is to be recorded
        source = data.get("source") or self.headers.get("ce-source")
        identity = data.get("id") or self.headers.get("ce-id")
        subject = {"source": str(source), "id": str(identity)} if source and identity else {"id": secrets.token_hex(16)}
        event = Event(
            id=event_id("Rest", axon, sensor, trigger, subject),
            kind="Rest",
            axon=axon,
            sensor=sensor,
            trigger=trigger,
            at=project.receivers.clock.now(),
            data=data,
        )
        project.receivers.spool.put(event)
        project.receivers.wake()
        self._say(202, {"id": event.id})

    def _hook(self, parts: Sequence[str], headers: Mapping[str, str], body: bytes) -> None:
        kind, hooks = provider_of(parts[2]), self.server.hooks_of(parts[1])
        if not is_known(hooks, kind, headers, body, now=self.server.clock.now()):
            self._deny(*self.server.unknown_hook(kind))
            return
        assert hooks is not None
        self._is_known = True
        self._say(200, hooks.take(kind, headers, body))

    def _sigstore(self, method: str, asked: Asked, body: bytes) -> None:
        headers = {name.lower(): value for name, value in reversed(self.headers.items())}
        code, more, content = self.server.sigstores.answer(method, asked, headers, body)
        if code == 404 and not self.server.is_settled():
            self._deny(503, "not every project is known here yet; ask again")
            return
        if code == 401:
            gauges.WRONG_TOKENS.inc()
        kind = more.get("Content-Type", "application/json")
        self._send(code, content, kind, {name: value for name, value in more.items() if name != "Content-Type"})

    def _result(self, project: Admitted, job: str, size: int, digest: str) -> None:
        receivers = project.receivers
        assert receivers.result is not None
        assert receivers.results is not None
        self.connection.settimeout(UPLOAD_SECONDS)
        self._go_on()
        try:
            with received(self.rfile, receivers.results, size_bytes=size, digest=digest) as tar:
                kept = receivers.result(job, tar)
        except (RefusedError, TrustError, DesiredStateError) as error:
            self._deny(400 if error.reason == DAMAGED else 422, error.message)
        except (ControllerError, OSError) as error:
            # Whatever else is in the way may be out of it soon, and the job has time; only a job that is gone stays gone.
            is_gone = isinstance(error, OutsideError) and error.reason == "JobGone"
            self._deny(404 if is_gone else 503, " ".join(str(error).split())[:300])
        else:
            self._say(201, dict(kept))

    def _graphs(self, project: Admitted, graph: str, body: bytes) -> None:
        asked = json.loads(body or b"{}")
        if not isinstance(asked, dict) or not isinstance(asked.get("axon"), str):
            raise ValueError("expected an object with `namespace` and `axon`")
        namespace, axon = str(asked.get("namespace") or project.receivers.namespace), asked["axon"]
        place = project.receivers.place
        self._tell(project, namespace, lambda look: deployed_graphs(*look, axon, graph, place=place))

    def _tell(
        self, project: Admitted, namespace: str, answer: Callable[[tuple[DesiredState, Observed]], Mapping[str, Any]]
    ) -> None:
        """Answer a question about the last look."""
        look = project.receivers.newest()
        if namespace != project.receivers.namespace:
            self._deny(404, f"namespace {namespace}: expected {project.receivers.namespace}")
        elif look is None:
            self._deny(503, "the first look is not over yet; ask again")
        else:
            try:
                self._say(200, answer(look))
            except DesiredStateError as error:
                self._deny(404, error.message)

    def _say(self, code: int, value: Mapping[str, Any]) -> None:
        self._send(code, json.dumps(value).encode(), "application/json")

    def _send(self, code: int, body: bytes, kind: str, more: Mapping[str, str] = MappingProxyType({})) -> None:
        # Further requests of who is not known are sorted anew at the front, and not answered here.
        self.close_connection = self.close_connection or not self._is_known
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in more.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)


class Joined(io.RawIOBase):
    """What came already, and then what comes."""

    def __init__(self, received: bytes, connection: socket.socket) -> None:
        self._received, self._connection = memoryview(received), connection

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """As `io.RawIOBase` says."""
        if not self._received:
            return self._connection.recv_into(buffer)
        taken = self._received[: len(buffer)]
        buffer[: len(taken)] = taken
        self._received = self._received[len(taken) :]
        return len(taken)
