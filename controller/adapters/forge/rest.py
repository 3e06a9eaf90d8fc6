"""The door to httpx: a forge's REST API, asked with patience and a token, answered with our own errors.

Never follows an answer to another host, and never shows the token.
"""

from __future__ import annotations

import json
import logging
import os
import random
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from policies.errors import DesiredStateError, RefusedError, SilentError
from policies.retries import pause_seconds
from policies.terms.secret import Secret

if TYPE_CHECKING:
    import httpx

TRIES = 3
CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 15.0
LONGEST_ANSWER_SECONDS = 60.0
"""However slowly it drips."""
LONGEST_PAUSE_SECONDS = 4.0
LONGEST_ASKED_PAUSE_SECONDS = 10.0
"""A forge that wants to be left alone for longer is silent: the pass has other things to do meanwhile."""
LONGEST_SILENCE_SECONDS = 3600.0
LARGEST_ANSWER_BYTES = 32 << 20
PAGE_ITEMS = 50
"""What Gitea gives at most unless it is set up otherwise; the others give up to 100."""
MOST_PAGES = 2000
MOST_REDIRECTS = 3
MOST_REFUSALS = 1000
PASSING = (429, 500, 502, 503, 504)
REDIRECTS = (301, 302, 307, 308)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One question to a forge."""

    method: str
    path: str
    """Below the root of the API, `/repos/team/digits/pulls`."""
    what: str
    """What it is for, in messages: `pull request 7`."""
    needs: str
    """The permission that a token lacks when this is refused."""
    query: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] | None = None
    fine: tuple[int, ...] = ()
    """Statuses besides 200 to 299 that the caller understands."""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What it said."""

    status: int
    value: Any
    """The JSON; None where the body was empty."""
    headers: Mapping[str, str]
    """Names in lower case."""


class Rest:
    """One forge's API.

    Whoever gave no answer is left alone for a while, longer and longer: until then each call is refused at once, so that a pass
    does not wait for every one of them.

    Args:
        root: The API's root, `https://git.example.com/api/v1`.
        token: Whose owner we act as.
        headers: What every request says besides.
        ca: Certificates in PEM that may vouch for the forge, besides the system's (and those of `SSL_CERT_FILE`).
        tries: How often a question is asked that gets no answer.
        refused_seconds: For how long what was refused is not asked again.
        sleep: Waits; for tests.
        monotonic: Seconds; for tests.
    Raises:
        DesiredStateError: The token has characters that no header may have.
        RefusedError: The environment names a proxy that is none.
    """

    def __init__(
        self,
        root: str,
        token: Secret,
        *,
        headers: Mapping[str, str] | None = None,
        ca: str = "",
        tries: int = TRIES,
        refused_seconds: float = 0.0,
        sleep: Callable[[float], None] = time.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        import httpx

        # It tells of every request at the level of information; a pass is silent when nothing changed.
        logging.getLogger("httpx").setLevel(logging.WARNING)
        self.root, self.host = root.rstrip("/"), urlsplit(root).netloc
        self._token = Secret(token.reveal().strip())
        if not re.fullmatch(r"[\x21-\x7e]*", self._token.reveal()):
            raise DesiredStateError(
                f"forge {self.host}: expected a token in printable ASCII, got other characters", reason="BadToken"
            )
        self._tries, self._sleep, self._monotonic = tries, sleep, monotonic
        self._guard = threading.Lock()
        self._failures, self._again_at, self._silence = 0, 0.0, ""
        self._refused_seconds = refused_seconds
        self._refusals: dict[tuple[str, str], tuple[float, str]] = {}
        fields = {"User-Agent": "myelin", "Accept": "application/json", **(headers or {})}
        if self._token:
            fields["Authorization"] = f"Bearer {self._token.reveal()}"
        try:
            self._http = httpx.Client(
                verify=_trusting(ca),
                headers=fields,
                timeout=httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS),
                limits=httpx.Limits(max_connections=4, max_keepalive_connections=2),
            )
        except (ImportError, ValueError, httpx.InvalidURL):
            # Only the proxies of the environment are read here; a URL of one may hold a password.
            text = "expected proxies as http(s)://host:port in HTTPS_PROXY, HTTP_PROXY and ALL_PROXY, got something else"
            raise RefusedError(f"forge {self.host}: {text}", reason="BadProxy") from None

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def ask(self, call: Call) -> Answer:
        """Ask, with patience.

        What makes something new (POST) is only asked again where it certainly made nothing: the caller looks at what there is
        before it asks anew.

        Raises:
            RefusedError: The forge says no; the message names the permission that is missing.
            SilentError: It does not answer, or wants to be left alone.
        """
        self._respect_silence(call)
        self._respect_refusal(call)
        failures = 0
        while True:
            answer, got, is_repeatable = self._try(call)
            if answer is not None and (200 <= answer.status < 300 or answer.status in call.fine):
                self._heard()
                return answer
            asked = 0.0
            if answer is not None:
                asked = min(self._asked_pause(answer), LONGEST_SILENCE_SECONDS)
                if not asked and answer.status not in PASSING:
                    self._heard()
                    error = self._refusal(call, answer)
                    self._remember(call, error)
                    raise error
                got = f"status {answer.status}" + (" and the wish to be left alone" if asked else "")
                is_repeatable = call.method != "POST" or answer.status == 429 or asked > 0
            failures += 1
            if failures >= self._tries or asked > LONGEST_ASKED_PAUSE_SECONDS or not is_repeatable:
                raise self._silent(call, got, failures, asked)
            # Not all at once: somebody who is busy has many callers.
            own = pause_seconds(failures, longest=LONGEST_PAUSE_SECONDS) * random.uniform(0.5, 1.0)
            self._sleep(max(asked, own))

    def pages(self, call: Call, *, limit_name: str = "per_page", items: int = PAGE_ITEMS) -> Iterator[Mapping[str, Any]]:
        """All items of a list, page after page, asked for only as far as somebody reads on."""
        seen = 0
        for number in range(1, MOST_PAGES + 1):
            query = {**call.query, limit_name: str(items), "page": str(number)}
            answer = self.ask(replace(call, query=query))
            page = answer.value
            if not isinstance(page, list):
                raise self.odd(call.what, "a list")
            yield from page
            seen += len(page)
            total = answer.headers.get("x-total-count", "")
            if 'rel="next"' in answer.headers.get("link", ""):
                is_more = True
            elif total.isdigit():
                is_more = seen < int(total)
            else:
                is_more = "link" not in answer.headers and len(page) >= items
            if not page or not is_more:
                return

    @contextmanager
    def reading(self, what: str) -> Iterator[None]:
        """Turn what goes wrong while an answer is taken apart into a refusal: it is not what the API promises."""
        try:
            yield
        except (KeyError, TypeError, ValueError, IndexError, AttributeError):
            # No cause is carried along: it may hold any part of the answer.
            raise self.odd(what, "an answer as its API promises") from None

    def odd(self, what: str, expected: str) -> RefusedError:
        """An answer that cannot be what we talk to."""
        return RefusedError(
            f"forge {self.host}: {what}: expected {expected}, got something else; look at spec.writeBack.forge.type and url",
            reason="ForgeOdd",
        )

    def refused(self, call: Call, answer: Answer, *, expected: str = "") -> RefusedError:
        """A refusal with the forge's own words."""
        said = self.said(answer)
        words = f"got {answer.status}" + (f" ({said})" if said else "")
        text = f"expected {expected}, {words}" if expected else words
        return RefusedError(f"forge {self.host}: {call.what}: {text}", reason="ForgeRefused")

    def _try(self, call: Call) -> tuple[Answer | None, str, bool]:
        """One try: an answer, or why there is none, and whether it is certain that nothing happened."""
        import httpx

        try:
            return self._send(call), "", False
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError) as error:
            self._refuse_certificate(error, call)
            return None, _words(error), True
        except httpx.TransportError as error:
            return None, _words(error), call.method != "POST"
        except (httpx.HTTPError, httpx.InvalidURL):
            # What it says may hold anything that the forge said.
            raise self.odd(call.what, "an answer by HTTP") from None

    def _send(self, call: Call) -> Answer:
        url = self.root + call.path
        content = json.dumps(call.body).encode() if call.body is not None else None
        headers = {**call.headers, **({"Content-Type": "application/json"} if content is not None else {})}
        for number in range(MOST_REDIRECTS + 1):
            # The query is sent once: a forge that moves us on repeats it.
            query = dict(call.query) if not number and call.query else None
            request = self._http.build_request(call.method, url, params=query, content=content, headers=headers)
            response = self._http.send(request, stream=True)
            try:
                target = response.headers.get("location", "")
                if response.status_code in REDIRECTS and target:
                    url = self._nearby(urljoin(str(request.url), target), call)
                    continue
                return self._whole(response, call)
            finally:
                response.close()
        raise self.odd(call.what, f"an answer after {MOST_REDIRECTS} redirects at most")

    def _nearby(self, url: str, call: Call) -> str:
        """Where we are sent, if that is the same host: the token goes nowhere else."""
        old, new = urlsplit(self.root), urlsplit(url)
        if (old.scheme, old.netloc) != (new.scheme, new.netloc):
            raise RefusedError(
                f"forge {self.host}: {call.what}: expected an answer, got sent on to {new.scheme}://{new.hostname}; "
                "set spec.writeBack.forge.url to where it is now",
                reason="ForgeMoved",
            )
        return url

    def _whole(self, response: httpx.Response, call: Call) -> Answer:
        end = self._monotonic() + LONGEST_ANSWER_SECONDS
        parts, size = [], 0
        for block in response.iter_bytes():
            parts.append(block)
            size += len(block)
            if size > LARGEST_ANSWER_BYTES or self._monotonic() > end:
                raise self.odd(call.what, f"{LARGEST_ANSWER_BYTES} bytes in {LONGEST_ANSWER_SECONDS:.0f} s at most")
        headers = {key.lower(): value for key, value in response.headers.items()}
        body = b"".join(parts)
        value: Any = None
        try:
            value = json.loads(body) if body.strip() else None
        except ValueError:
            if 200 <= response.status_code < 300:
                raise self.odd(call.what, "JSON") from None
        return Answer(status=response.status_code, value=value, headers=headers)

    def _respect_silence(self, call: Call) -> None:
        with self._guard:
            left, words = self._again_at - self._monotonic(), self._silence
        if left > 0:
            raise SilentError(f"forge {self.host}: {call.what}: not asked for {left:.0f} s more: {words}", reason="ForgeSilent")

    def _respect_refusal(self, call: Call) -> None:
        """Who was refused a moment ago is refused again without asking: passes follow each other five times a second."""
        with self._guard:
            known = self._refusals.get((call.method, call.path))
        if known is not None and self._monotonic() < known[0]:
            raise RefusedError(known[1], reason="ForgeRefused")

    def _remember(self, call: Call, error: RefusedError) -> None:
        if self._refused_seconds <= 0:
            return
        with self._guard:
            if len(self._refusals) >= MOST_REFUSALS:
                self._refusals.clear()
            self._refusals[call.method, call.path] = (self._monotonic() + self._refused_seconds, error.message)

    def _heard(self) -> None:
        with self._guard:
            self._failures, self._again_at = 0, 0.0

    def _silent(self, call: Call, got: str, tries: int, asked: float) -> SilentError:
        with self._guard:
            self._failures += 1
            wait = asked or pause_seconds(self._failures)
            # 500 is about one question (Gitea answers it where it should say 404), the others are about all of them.
            self._again_at = self._monotonic() + (0.0 if got == "status 500" else wait)
            self._silence = got
        limit = f"; it asks to be left alone for {asked:.0f} s" if asked else ""
        text = f"forge {self.host}: {call.what}: expected an answer, got {got} at try {tries}{limit}"
        return SilentError(text, reason="ForgeRateLimit" if asked else "ForgeSilent")

    def _asked_pause(self, answer: Answer) -> float:
        """How long it wants to be left alone, in seconds; 0: it does not say so.

        Source: GitHub, "Rate limits for the REST API": a primary limit is 403 or 429 with `x-ratelimit-remaining: 0` and the
        instant in `x-ratelimit-reset`, a secondary one 403 or 429 with `retry-after`, or a minute where neither is there.
        """
        if answer.status not in (403, *PASSING):
            return 0.0
        headers = answer.headers
        after = headers.get("retry-after", "")
        if after.strip().isdigit():
            return max(1.0, float(after))
        for name in ("x-ratelimit", "ratelimit"):
            reset = headers.get(f"{name}-reset", "")
            if headers.get(f"{name}-remaining") == "0" and reset.isdigit() and answer.status in (403, 429):
                return max(1.0, float(reset) - _server_time(headers))
        is_limit = answer.status == 429 or (answer.status == 403 and "rate limit" in self.said(answer).lower())
        return 60.0 if is_limit else 0.0

    def _refusal(self, call: Call, answer: Answer) -> RefusedError:
        if answer.status in (401, 403, 404):
            expected = f"a token with {call.needs}" + (", and that to be there" if answer.status == 404 else "")
            if answer.status == 401:
                expected = f"a token that is valid, with {call.needs}"
            error = self.refused(call, answer, expected=expected)
            return RefusedError(f"{error.message}; look at spec.writeBack.forge.tokenFrom", reason="ForgeRefused")
        return self.refused(call, answer)

    def said(self, answer: Answer) -> str:
        """The forge's own words, in one line and without the token."""
        value = answer.value
        words: list[str] = []
        if isinstance(value, dict):
            for name in ("message", "error", "error_description"):
                if value.get(name):
                    words.append(value[name] if isinstance(value[name], str) else json.dumps(value[name]))
            errors = value.get("errors")
            for item in errors if isinstance(errors, list) else ():
                words.append(
                    str(item.get("message") or f"{item.get('field')}: {item.get('code')}")
                    if isinstance(item, dict)
                    else str(item)
                )
        text = " ".join(" ".join(words).split())[:300]
        token = self._token.reveal()
        return text.replace(token, "***") if token else text

    def _refuse_certificate(self, error: Exception, call: Call) -> None:
        """Whoever is not the forge that we mean, or speaks no TLS, will not do so at the next try."""
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, ssl.SSLError):
            cause = cause.__cause__ or cause.__context__
        if isinstance(cause, ssl.SSLCertVerificationError):
            text = (
                f"expected a certificate of a known authority: {cause.verify_message}; name the authority's file in SSL_CERT_FILE"
            )
        elif cause is not None and ("WRONG_VERSION_NUMBER" in str(cause) or "RECORD_LAYER_FAILURE" in str(cause)):
            text = "expected TLS, got something else; set spec.writeBack.forge.url to http:// if it is to be so"
        else:
            return
        raise RefusedError(f"forge {self.host}: {call.what}: {text}", reason="ForgeCertificate") from error


def _trusting(ca: str) -> ssl.SSLContext:
    context = ssl.create_default_context()
    # OpenSSL reads SSL_CERT_FILE by itself, instead of the system's; private authorities are often given that way.
    if ca:
        context.load_verify_locations(cadata=ca)
    return context


def _server_time(headers: Mapping[str, str]) -> float:
    """The forge's own time, in seconds since 1970: its limits are told by its clock, which need not be ours."""
    from email.utils import parsedate_to_datetime

    try:
        return parsedate_to_datetime(headers["date"]).timestamp()
    except (KeyError, ValueError):
        # Without it: as if the whole hour, which is the longest window of all three forges, were still to come.
        return float(headers.get("x-ratelimit-reset") or headers["ratelimit-reset"]) - LONGEST_SILENCE_SECONDS


def _words(error: Exception) -> str:
    import httpx

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return os.strerror(cause.errno).lower() if cause.errno and cause.errno > 0 else cause.strerror.lower()
        cause = cause.__cause__ or cause.__context__
    return "nothing in time" if isinstance(error, httpx.TimeoutException) else "a broken connection"
