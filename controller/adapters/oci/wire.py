"""The door to HTTP with registries: questions, redirects, credentials, pauses. What is asked is the caller's affair.

Our credentials go to the registry and to the token server that it names, to nobody else. Secrets are in no message.
"""

from __future__ import annotations

import base64
import json
import os
import random
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import unquote, urlencode, urljoin, urlsplit, urlunsplit

import urllib3
from urllib3.exceptions import HTTPError, InvalidHeader, NameResolutionError, ProxyError, SSLError, TimeoutError
from urllib3.util import Retry, Timeout

from controller.adapters.oci.access import Access
from controller.adapters.oci.proxies import proxy_for
from policies.errors import DesiredStateError, RefusedError, SilentError
from policies.retries import pause_seconds

LARGEST_ANSWER_BYTES = 8 << 20
"""Twice what registries promise to take as a manifest."""
LONGEST_PAUSE_SECONDS = 8.0
LONGEST_ASKED_PAUSE_SECONDS = 30.0
"""Whoever asks for a longer pause is left alone by us, and by the whole pass."""
PASSING = (408, 429, 500, 502, 503, 504)
MOST_REDIRECTS = 5
MOST_INTRODUCTIONS = 3
"""Another thread may have fetched a token for less than we need."""
CONNECTIONS = 4
T = TypeVar("T")
_BLOCK = 1 << 20


class NoAnswerError(SilentError):
    """Nobody answered, or asked us to come back.

    Args:
        asked_seconds: How long we were asked to wait.
    """

    def __init__(self, message: str, *, asked_seconds: float = 0.0) -> None:
        super().__init__(message, reason="RegistrySilent")
        self.asked_seconds = asked_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of a file, which is sent without being held in memory."""

    path: Path
    start: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One question, and which answers to it are fine."""

    method: str
    url: str
    what: str
    """What it is about, for messages."""
    fine: tuple[int, ...]
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | Part | None = None
    tries: int = 0
    """0: as many as the wire's."""
    authorization: str | None = None
    """Replaces what the registry's host gets; with it, nobody is asked for a token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A whole answer; the names of its headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Arriving:
    """An answer whose bytes still come."""

    status: int
    headers: Mapping[str, str]
    blocks: Iterator[bytes]


class Wire:
    """HTTP with one registry, as one user. Threads may share it.

    Args:
        access: Where it is, and as whom to go there.
        connect_seconds: How long to wait for a connection.
        read_seconds: How long to wait for each piece of an answer.
        tries: How often to ask somebody who does not answer, or asks us to come back. At least 1.
        sleep: Waits between tries.
        environ: Names the proxies.

    Raises:
        DesiredStateError: The access has a ca that is no certificate.
    """

    def __init__(
        self,
        access: Access,
        *,
        connect_seconds: float = 10.0,
        read_seconds: float = 60.0,
        tries: int = 4,
        sleep: Callable[[float], None] = time.sleep,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self.access, self.tries = access, tries
        self.root = f"{'http' if access.unsafe_plain_http else 'https'}://{access.host}"
        self.url = f"{self.root}/v2/{access.path}"
        self._sleep, self._environ = sleep, environ
        try:
            self._trusted = _trusting(access.ca)
        except (ssl.SSLError, ValueError) as error:
            text = f"ca of {access.repository}: expected certificates in PEM"
            raise DesiredStateError(text, reason="BadCertificate") from error
        self._timeout = Timeout(connect=connect_seconds, read=read_seconds)
        self._guard = threading.Lock()
        self._pools: dict[str, urllib3.PoolManager] = {}
        self._authorization = ""

    def close(self) -> None:
        """End all connections."""
        with self._guard:
            for pool in self._pools.values():
                pool.clear()

    def ask(self, method: str, url: str, what: str, fine: tuple[int, ...], **more: Any) -> Answer:
        """A short answer; `url` may be a path below the repository's.

        Raises:
            NoAnswerError: None came, or one that asks to come back, after all tries.
            RefusedError: The answer is not one of `fine`.
        """
        url = f"{self.url}{url}" if url.startswith("/") else url
        return self.take(Request(method=method, url=url, what=what, fine=fine, **more), _whole)

    def arriving(
        self, url: str, what: str, fine: tuple[int, ...], read: Callable[[Arriving], T], headers: Mapping[str, str]
    ) -> T:
        """What `read` makes of a long answer; it may have to begin again, and `headers` may say otherwise then."""

        def opened(response: urllib3.BaseHTTPResponse) -> T:
            blocks = response.stream(_BLOCK, decode_content=False)
            return read(Arriving(status=response.status, headers=_fields(response), blocks=blocks))

        return self.take(Request(method="GET", url=f"{self.url}{url}", what=what, fine=fine, headers=headers), opened)

    def take(self, request: Request, read: Callable[[urllib3.BaseHTTPResponse], T]) -> T:
        """What `read` makes of an answer that is fine."""
        failures = introductions = 0
        while True:
            used, asked = self._authorization, 0.0
            cause: HTTPError | None = None
            answer = None
            try:
                with ExitStack() as closing:
                    response = self._send(request, used if request.authorization is None else request.authorization, closing)
                    if response.status in request.fine:
                        return read(response)
                    answer = _whole(response)
            except HTTPError as error:
                self._refuse_certificate(error)
                cause = error
            if answer is not None:
                if answer.status == 401 and request.authorization is None and introductions < MOST_INTRODUCTIONS:
                    introductions += 1
                    self._introduce(answer, used, request.what, is_first=introductions == 1)
                    continue
                if answer.status not in PASSING:
                    raise self.refusal(answer, request.what)
                asked = _asked_pause(answer)
            failures += 1
            if failures >= (request.tries or self.tries) or asked > LONGEST_ASKED_PAUSE_SECONDS:
                got = f"status {answer.status}" if answer is not None else _words(cause)
                got += f" and the wish to wait {asked:.0f} s" if asked else ""
                text = f"registry {self.access.repository}: {request.what}: expected an answer, got {got} at try {failures}"
                raise NoAnswerError(text, asked_seconds=asked) from cause
            self.pause(failures, asked)

    def pause(self, failures: int, asked_seconds: float = 0.0) -> None:
        """Leave a registry alone that did not answer, for as long as it asks, and not as long as others do."""
        own = pause_seconds(failures, longest=LONGEST_PAUSE_SECONDS)
        # Somebody who is busy has many callers, all of whom were told the same.
        self._sleep(asked_seconds + own * random.uniform(0.0, 0.5) if asked_seconds else own * random.uniform(0.5, 1.0))

    def nearby(self, url: str) -> str:
        """An address that the registry gave: its own host keeps our scheme, any other must be as safe.

        Servers behind a proxy that ends TLS often call themselves `http`.
        """
        parts = urlsplit(url)
        if parts.netloc == self.access.host:
            return urlunsplit(parts._replace(scheme=urlsplit(self.root).scheme))
        if parts.scheme != "https" and not (parts.scheme == "http" and self.access.unsafe_plain_http):
            raise self.refused(f"sent us on to {parts.scheme}://{parts.netloc}; expected https, or set unsafePlainHttp")
        return url

    def refusal(self, answer: Answer, what: str) -> RefusedError:
        """What to raise for an answer that says no."""
        said = said_in(answer.body)
        for secret in (self.access.password.reveal(), self._authorization.partition(" ")[2]):
            said = said.replace(secret, "***") if secret else said
        words = f"{what}: got {answer.status}" + (f" ({said})" if said else "")
        if answer.status in (401, 403, 405) or "DENIED" in said:
            place = self.access.origin or "the registry's secret"
            who = f"user {self.access.username!r}; look at {place}" if self.access.username else f"nobody; name a user in {place}"
            return self.refused(f"{words} as {who}")
        return self.refused(words)

    def refused(self, text: str) -> RefusedError:
        """What to raise when the registry says no in another way."""
        return RefusedError(f"registry {self.access.repository}: {text}", reason="RegistryRefused")

    def _send(self, request: Request, authorization: str, closing: ExitStack) -> urllib3.BaseHTTPResponse:
        """Ask once; a redirect of a read is followed. Our credentials go to one host."""
        url, body = request.url, request.body
        home = self.access.host if request.authorization is None else urlsplit(url).netloc
        for _ in range(MOST_REDIRECTS):
            fields = dict(request.headers)
            if authorization and urlsplit(url).netloc == home:
                fields["Authorization"] = authorization
            content: Any = None
            if isinstance(body, Part):
                content = _Piece(closing.enter_context(body.path.open("rb")), body)
                fields["Content-Length"] = str(body.length)
            else:
                content = body
            response = self._pool(url).request(
                request.method, url, body=content, headers=fields, retries=False, redirect=False, preload_content=False
            )
            closing.callback(response.close)
            if request.method not in ("GET", "HEAD") or response.status not in (301, 302, 303, 307, 308):
                return response
            response.drain_conn()
            url = self.nearby(urljoin(url, response.headers.get("Location", "")))
        raise self.refused(f"{request.what}: sent us on more than {MOST_REDIRECTS} times")

    def _pool(self, url: str) -> urllib3.PoolManager:
        """Connections to where `url` is, through the proxy that leads there."""
        proxy = proxy_for(url, self._environ)
        with self._guard:
            pool = self._pools.get(proxy)
            if pool is None:
                pool = self._pools[proxy] = self._opened(proxy)
        return pool

    def _opened(self, proxy: str) -> urllib3.PoolManager:
        more: dict[str, Any] = {"num_pools": CONNECTIONS, "maxsize": CONNECTIONS, "timeout": self._timeout}
        more |= {"ssl_context": self._trusted, "blocksize": 1 << 16}
        if not proxy:
            return urllib3.PoolManager(**more)
        parts = urlsplit(proxy)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            text = "expected proxies as http(s)://host:port in HTTPS_PROXY, HTTP_PROXY and ALL_PROXY, got something else"
            raise RefusedError(f"registry {self.access.repository}: {text}", reason="BadProxy")
        named = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}" if parts.username else ""
        place = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        fields = urllib3.make_headers(proxy_basic_auth=named) if named else None
        return urllib3.ProxyManager(place, proxy_headers=fields, proxy_ssl_context=self._trusted, **more)

    def _introduce(self, answer: Answer, used: str, what: str, *, is_first: bool) -> None:
        """Say who we are, in the way that the registry asks for."""
        with self._guard:
            if is_first and self._authorization != used:
                # Another thread did so in the meantime.
                return
        challenge = answer.headers.get("www-authenticate", "")
        bearer = re.search(r"(?i)\bbearer\s+(.*)", challenge)
        if bearer:
            header = self._token(dict(re.findall(r'(\w+)="([^"]*)"', bearer[1])))
        elif re.search(r"(?i)\bbasic\b", challenge) and self.access.username:
            header = self._basic()
        else:
            raise self.refusal(answer, what)
        if header == used:
            raise self.refusal(answer, what)
        with self._guard:
            self._authorization = header

    def _basic(self) -> str:
        text = f"{self.access.username}:{self.access.password.reveal()}"
        return "Basic " + base64.b64encode(text.encode()).decode("ascii")

    def _token(self, asked: Mapping[str, str]) -> str:
        """A token of the server that the registry names (the Docker registry's token protocol)."""
        realm = self.nearby(asked.get("realm", ""))
        query = urlencode({key: asked[key] for key in ("service", "scope") if asked.get(key)})
        url = f"{realm}{'&' if '?' in realm else '?'}{query}"
        basic = self._basic() if self.access.username else ""
        answer = self.ask("GET", url, f"token of {urlsplit(realm).netloc}", (200,), authorization=basic)
        try:
            said = json.loads(answer.body)
            return f"Bearer {said.get('token') or said['access_token']}"
        except (ValueError, KeyError, AttributeError):
            raise self.refused(f"{urlsplit(realm).netloc} gave no token, but something else") from None

    def _refuse_certificate(self, error: HTTPError) -> None:
        """What is not the registry that we mean, or speaks no TLS, will not do so at the next try."""
        if not isinstance(error, SSLError):
            return
        cause = error.args[0] if error.args else None
        if isinstance(cause, ssl.SSLCertVerificationError):
            text = f"expected a certificate that a known authority vouches for: {cause.verify_message}; give its authority as ca"
            raise RefusedError(f"registry {self.access.repository}: {text}", reason="RegistryCertificate") from error
        if "WRONG_VERSION_NUMBER" in str(error) or "RECORD_LAYER_FAILURE" in str(error):
            text = "expected TLS, got something else; set unsafePlainHttp if it is to be so"
            raise RefusedError(f"registry {self.access.repository}: {text}", reason="RegistryCertificate") from error


class _Piece:
    """A part of an open file, as urllib3 reads it."""

    def __init__(self, file: IO[bytes], part: Part) -> None:
        self._file, self._left = file, part.length
        file.seek(part.start)

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(data)
        return data


def said_in(body: bytes) -> str:
    """A registry's own words: code and message of its first error."""
    try:
        first = json.loads(body)["errors"][0]
        text = f"{first.get('code', '')} {first.get('message', '')}"
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        text = body[:200].decode(errors="replace") if body[:1] not in (b"<", b"{") else ""
    return " ".join(text.split())[:200]


@lru_cache(maxsize=16)
def _trusting(ca: str) -> ssl.SSLContext:
    """Reading the system's authorities takes longer than most questions, so all clients share it."""
    context = ssl.create_default_context()
    if ca:
        context.load_verify_locations(cadata=ca)
    return context


def _whole(response: urllib3.BaseHTTPResponse) -> Answer:
    """An answer whose body is short; of a longer one, enough to see that it is too long."""
    parts, size = [], 0
    for block in response.stream(1 << 16, decode_content=True):
        parts.append(block)
        size += len(block)
        if size > LARGEST_ANSWER_BYTES:
            break
    return Answer(status=response.status, headers=_fields(response), body=b"".join(parts))


def _fields(response: urllib3.BaseHTTPResponse) -> dict[str, str]:
    return {key.lower(): value for key, value in response.headers.items()}


def _asked_pause(answer: Answer) -> float:
    try:
        return float(Retry().parse_retry_after(answer.headers.get("retry-after", "0")))
    except InvalidHeader:
        return 0.0


def _words(error: HTTPError | None) -> str:
    if isinstance(error, NameResolutionError):
        return "no address for its name"
    causes = [item for item in (*error.args, error.__cause__, error.__context__) if isinstance(item, OSError)] if error else []
    if isinstance(error, ProxyError):
        inner = error.original_error
        causes += [item for item in (inner, inner.__cause__, inner.__context__) if isinstance(item, OSError)]
        told = next((str(item).lower() for item in causes if str(item).startswith("Tunnel")), "")
        return f"{told or next((item.strerror.lower() for item in causes if item.strerror), 'nothing')} from the proxy"
    said = next((item.strerror.lower() for item in causes if item.strerror), "")
    return said or ("nothing in time" if isinstance(error, TimeoutError) else "a broken connection")
