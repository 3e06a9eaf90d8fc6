"""Bringing a job's result home by HTTP, until somebody has made it safe."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

from myelin.job.folders import Entry
from myelin.job.given import Given, JobError, disk_error, say
from myelin.job.parcel import Parcel, stream
from myelin.job.program import Signals

SAFE = 201
LONGEST_PAUSE = 30
"""In first pauses, like the next one."""
FAILED_GIVES_UP = 60
"""How long a failed job tries."""
CONNECT_SECONDS = 10.0
WELCOME_SECONDS = 2.0
"""How long a server may take to say that a body is welcome; one that does not know the question gets the body then."""
SEND_SECONDS = 120.0
ANSWER_SECONDS = 3600.0
"""How long making a large result safe may take; that the other side is there at all is seen within a minute."""
_ANSWER_BYTES = len(b"HTTP/1.1 100")


class SilenceError(Exception):
    """Nobody took the result for longer than this job may try."""


def bring(given: Given, signals: Signals, parcel: Parcel) -> None:
    """Send the result until somebody has made it safe.

    A job that succeeded tries on for ever, one that failed or that is asked to end for a while.

    Raises:
        SilenceError: That while is over.
        JobError: It was refused, or can be read no more.
    """
    pause, said, began = given.pause_seconds, "", time.monotonic()
    while True:
        status, words = put(given.url, parcel)
        if status == SAFE:
            return
        if 0 < status < 500:
            raise JobError(f"expected the inbox to take it, got {status}: {words}")
        if words != said:
            say(f"result: not taken yet: {words}; trying on")
            said = words
        is_asked = signals.until is not None
        pause = given.pause_seconds if is_asked else pause
        limits = [began + given.pause_seconds * FAILED_GIVES_UP] if parcel.code else []
        limits += [signals.until] if signals.until is not None else []
        wake = time.monotonic() + pause
        if limits and wake > min(limits):
            raise SilenceError(f"nobody took it in time: {words}")
        while time.monotonic() < wake and (is_asked or signals.until is None):
            time.sleep(min(pause, 0.1))
        pause = min(pause * 2, given.pause_seconds * LONGEST_PAUSE)


def put(url: str, parcel: Parcel) -> tuple[int, str]:
    """Try once to send the result: the answer's status, 0 when there was none, and words.

    Raises:
        JobError: The address is none, or a file can be read no more.
    """
    try:
        place = urlsplit(url)
        kind = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}[place.scheme]
        connection = kind(place.hostname or "", place.port, timeout=CONNECT_SECONDS)
    except (KeyError, ValueError) as error:
        raise JobError("expected an address with http or https") from error
    try:
        connection.connect()
        _keep_alive(connection.sock)
        connection.putrequest("PUT", place.path, skip_accept_encoding=True)
        connection.putheader("Content-Type", "application/x-tar")
        connection.putheader("Content-Length", str(parcel.size))
        connection.putheader("Myelin-Digest", parcel.digest)
        connection.putheader("Expect", "100-continue")
        connection.endheaders()
        if place.scheme == "https" or _is_welcome(connection.sock):
            connection.sock.settimeout(SEND_SECONDS)
            _send(connection.sock, parcel.entries)
        connection.sock.settimeout(ANSWER_SECONDS)
        answer = connection.getresponse()
        return answer.status, _words(answer.read(65536)) or answer.reason
    except (OSError, http.client.HTTPException) as error:
        return 0, f"{place.hostname}: {getattr(error, 'strerror', None) or str(error) or type(error).__name__}"
    finally:
        connection.close()


def _send(sock: socket.socket, entries: Sequence[Entry]) -> None:
    """Send the body; where the other side hangs up in the middle, its answer may already be there."""
    blocks = stream(entries)
    while True:
        try:
            block = next(blocks, None)
        except OSError as error:
            raise disk_error(error) from error
        if block is None:
            return
        try:
            sock.sendall(block)
        except (BrokenPipeError, ConnectionResetError):
            return


def _is_welcome(sock: socket.socket) -> bool:
    """Whether the other side wants the body; False when it answered already, or hung up."""
    until, start = time.monotonic() + WELCOME_SECONDS, b""
    try:
        while len(start) < _ANSWER_BYTES and (left := until - time.monotonic()) > 0:
            sock.settimeout(left)
            before, start = start, sock.recv(_ANSWER_BYTES, socket.MSG_PEEK)
            if not start:
                return False
            if start == before:
                time.sleep(0.01)
    except TimeoutError:
        pass
    return len(start) < _ANSWER_BYTES or start.endswith(b" 100")


def _keep_alive(sock: socket.socket) -> None:
    """See within a minute that the other side is gone, however long its answer may take."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _words(body: bytes) -> str:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return " ".join(body[:300].decode(errors="replace").split())
    return str(value.get("message", "")) if isinstance(value, dict) else ""
