"""The inbox: REST triggers, results and metrics that programs send by HTTP, the controller's own metrics, and what it
knows of runs and deployed models, to be read.
"""

from __future__ import annotations

import base64
import hmac
import http.client
import json
import math
import os
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from controller.adapters import gauges
from controller.adapters.spool import Spool
from policies.admin import ANY_PROJECT, Places, axon_runs, check_target, deployed_graphs
from policies.canonical import canonical
from policies.errors import ControllerError, DesiredStateError, OutsideError, RefusedError, SilentError
from policies.identity import event_id
from policies.terms.desired import DesiredState
from policies.terms.event import Event
from policies.terms.observed import Observed
from reconcilers.ports import Clock

LARGEST_BODY_BYTES = 1 << 20
TIMEOUT_SECONDS = 10.0
LOOK_SECONDS = 0.1
"""How long closing may take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Receivers:
    """Who takes what comes in, and who knows what is asked for."""

    spool: Spool
    clock: Clock
    wake: Callable[[], None]
    report: Callable[[str, Mapping[str, Any]], None]
    """Takes a line of a job's report."""
    push: Callable[[Mapping[str, str], str], None]
    """Takes samples: labels and exposition text."""
    newest: Callable[[], tuple[DesiredState, Observed] | None]
    """What the last look came to; None before the first."""
    place: Places
    """Where the folders of jobs and servers are."""
    namespace: str
    """The one that jobs are told."""


def serve(folder: Path, receivers: Receivers, *, port: int | None) -> tuple[ThreadingHTTPServer, str]:
    """Listen on loopback; address and tokens lie in `address.json`, readable by the owner alone.

    Returns:
        The server (already serving in a thread), and the address that jobs and servers are given,
        `http://127.0.0.1:<port>/programs/<secret>`: whoever else is on this machine can neither report nor push.

    Raises:
        RefusedError: The port is in use.
    """
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / "address.json"
    known = json.loads(place.read_bytes()) if place.exists() else {}
    token = known.get("token") or secrets.token_urlsafe(32)
    programs = known.get("programs") or secrets.token_urlsafe(16)
    wanted = port if port is not None else int(known.get("port", 0))
    handler = type("Handler", (_Handler,), {"receivers": receivers, "token": token, "programs": programs})
    try:
        server = ThreadingHTTPServer(("127.0.0.1", wanted), handler)
    except OSError as error:
        if port is not None:
            raise RefusedError(
                f"inbox port {port}: {error.strerror}; choose another with --inbox-port", reason="PortInUse"
            ) from error
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    got = int(server.server_address[1])
    handle = os.open(place.with_suffix(".new"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w") as file:
        json.dump({"address": f"http://127.0.0.1:{got}", "port": got, "token": token, "programs": programs}, file)
    place.with_suffix(".new").replace(place)
    threading.Thread(target=server.serve_forever, args=(LOOK_SECONDS,), name="inbox", daemon=True).start()
    return server, f"http://127.0.0.1:{got}/programs/{programs}"


def fire(folder: Path, path: str, body: bytes) -> str:
    """Send a REST trigger's event as any client could; returns its id.

    Args:
        folder: The inbox's folder.
        path: `<axon>/<sensor>` or `<axon>/<sensor>/<trigger>`.
        body: JSON, or empty.
    """
    try:
        known = json.loads((folder / "address.json").read_bytes())
    except OSError as error:
        raise SilentError("inbox: expected a running controller, there is none; start `myelin run`") from error
    connection = http.client.HTTPConnection("127.0.0.1", known["port"], timeout=TIMEOUT_SECONDS)
    try:
        headers = {"Authorization": f"Bearer {known['token']}", "Content-Type": "application/json"}
        connection.request("POST", f"/sensors/{ANY_PROJECT}/{quote(path)}", body or b"{}", headers)
        answer = connection.getresponse()
        value = json.loads(answer.read())
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise SilentError(f"inbox at {known['address']}: no answer; is `myelin run` running?") from error
    finally:
        connection.close()
    if answer.status != 202:
        raise RefusedError(f"inbox: {value.get('message', answer.status)}")
    return str(value["id"])


def result_line(value: Any) -> dict[str, Any]:
    """HpBandSter's report of a trial -> a line of the job's report.

    A report of a failure, which has an exception or no result, counts as one: its loss is `nan`.

    Raises:
        ValueError: It is no report.
    """
    outer = value["result"] if isinstance(value, Mapping) and "result" in value else ()
    if outer is not None and not isinstance(outer, Mapping):
        raise ValueError("expected `result`, null or an object with `result` and `exception`")
    result = outer.get("result") if outer else None
    if not isinstance(result, Mapping) or (outer and outer.get("exception")):
        return {"kind": "result", "loss": "nan", "metrics": {}}
    info = result.get("info")
    metrics = {str(name): number(item) for name, item in info.items()} if isinstance(info, Mapping) else {}
    return {"kind": "result", "loss": number(result.get("loss")), "metrics": metrics}


def number(value: Any) -> float | str:
    """A number as a report carries it: what is not finite, and what is none, becomes text."""
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return "nan"
    return found if math.isfinite(found) else str(found)


def group_labels(parts: Sequence[str]) -> dict[str, str]:
    """Labels of a push gateway's path, `job/<name>/<label>/<value>…`; a value with `@base64` after its label is so encoded.

    An empty value says that there is no such label.

    Raises:
        ValueError: A value is not base64.
    """
    labels = {}
    for name, value in zip(parts[::2], parts[1::2], strict=False):
        if name.endswith("@base64"):
            padded = value.rstrip("=") + "=" * (-len(value.rstrip("=")) % 4)
            name, value = name.removesuffix("@base64"), base64.urlsafe_b64decode(padded).decode()
        labels[name] = value
    return {name: value for name, value in labels.items() if value}


class _Handler(BaseHTTPRequestHandler):
    receivers: Receivers
    token: str
    programs: str
    timeout = TIMEOUT_SECONDS
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: paths and headers may hold secrets."""

    def do_GET(self) -> None:
        """Health, metrics, and the runs of an axon."""
        parts, is_program = self._parts()
        if self.path == "/health":
            self._say(200, {"status": "OK"})
        elif self.path == "/metrics":
            self._send(200, gauges.render(), "text/plain; version=0.0.4")
        elif parts[:3] == ["api", "v1", "axons"] and len(parts) == 5:
            if not is_program:
                self._refuse()
                return
            self._tell(parts[3], lambda look: axon_runs(*look, parts[4], place=self.receivers.place))
        else:
            self._say(404, {"message": f"/{'/'.join(parts)}: nothing here"})

    def do_POST(self) -> None:
        """Events, results and samples; and the question for a deployer's models."""
        try:
            size = int(self.headers.get("Content-Length") or -1)
        except ValueError:
            size = -1
        if not 0 <= size <= LARGEST_BODY_BYTES:
            self.close_connection = True
            self._say(413, {"message": f"expected a body of at most {LARGEST_BODY_BYTES} bytes with its Content-Length"})
            return
        body = self.rfile.read(size)
        if self.headers.get("Origin"):
            self._say(403, {"message": "expected a program, got a page in a browser"})
            return
        parts, is_program = self._parts()
        try:
            if parts[0] == "sensors" and len(parts) in (4, 5):
                self._event(parts[1], parts[2:], body)
            elif parts[0] in ("trials", "metrics", "model-graphs") and not is_program:
                self._refuse()
            elif parts[0] == "trials" and len(parts) == 3 and parts[2] == "submit_result":
                self._result(parts[1], body)
            elif parts[:2] in (["metrics", "job"], ["metrics", "job@base64"]) and len(parts) >= 3:
                self.receivers.push(group_labels(parts[1:]), body.decode(errors="replace"))
                self._say(202, {})
            elif parts[0] == "model-graphs" and len(parts) == 2:
                self._graphs(parts[1], body)
            else:
                self._say(404, {"message": f"/{'/'.join(parts)}: nothing here"})
        except (OutsideError, DesiredStateError) as error:
            self._say(404, {"message": error.message})
        except (ValueError, KeyError, TypeError, RecursionError, ControllerError) as error:
            self._say(400, {"message": " ".join(str(error).split())[:300]})
        except OSError as error:
            self._say(507, {"message": f"not kept: {error.strerror}"})

    do_PUT = do_POST

    def _parts(self) -> tuple[list[str], bool]:
        """The path's parts, without what jobs are given in front; and whether that was in front."""
        parts = [unquote(part) for part in self.path.split("?")[0].strip("/").split("/")]
        if parts[0] != "programs" or len(parts) < 3:
            return parts, False
        return parts[2:], hmac.compare_digest(parts[1].encode(), self.programs.encode())

    def _refuse(self) -> None:
        gauges.WRONG_TOKENS.inc()
        self._say(401, {"message": "expected the address that jobs are given, with its secret"})

    def _event(self, project: str, parts: Sequence[str], body: bytes) -> None:
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), self.token.encode()):
            gauges.WRONG_TOKENS.inc()
            self._say(401, {"message": "expected the inbox's token as Authorization: Bearer …"})
            return
        axon, sensor, trigger = parts[0], parts[1], parts[2] if len(parts) > 2 else ""
        if (look := self.receivers.newest()) is not None:  # what nothing is known of yet is kept, and looked at later
            check_target(look[0], project=project, axon=axon, sensor=sensor, trigger=trigger)
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
            at=self.receivers.clock.now(),
            data=data,
        )
        self.receivers.spool.put(event)
        self.receivers.wake()
        self._say(202, {"id": event.id})

    def _result(self, job: str, body: bytes) -> None:
        self.receivers.report(job, result_line(json.loads(body)))
        self._say(200, {})

    def _graphs(self, graph: str, body: bytes) -> None:
        asked = json.loads(body or b"{}")
        if not isinstance(asked, dict) or not isinstance(asked.get("axon"), str):
            raise ValueError("expected an object with `namespace` and `axon`")
        namespace, axon = str(asked.get("namespace") or self.receivers.namespace), asked["axon"]
        self._tell(namespace, lambda look: deployed_graphs(*look, axon, graph, place=self.receivers.place))

    def _tell(self, namespace: str, answer: Callable[[tuple[DesiredState, Observed]], Mapping[str, Any]]) -> None:
        """Answer a question about the last look."""
        look = self.receivers.newest()
        if namespace != self.receivers.namespace:
            self._say(404, {"message": f"namespace {namespace}: expected {self.receivers.namespace}"})
        elif look is None:
            self._say(503, {"message": "the first look is not over yet; ask again"})
        else:
            try:
                self._say(200, answer(look))
            except DesiredStateError as error:
                self._say(404, {"message": error.message})

    def _say(self, code: int, value: Mapping[str, Any]) -> None:
        self._send(code, json.dumps(value).encode(), "application/json")

    def _send(self, code: int, body: bytes, kind: str) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
