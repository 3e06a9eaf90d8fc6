"""The door to OCI registries: one repository over HTTP (OCI distribution 1.1).

It checks every digest that it is asked by, and never decides whom to trust. Secrets are in no message.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit, urlunsplit

import urllib3
from urllib3.exceptions import HTTPError, InvalidHeader, NameResolutionError, SSLError, TimeoutError
from urllib3.util import Retry, Timeout

from controller.adapters.oci.access import Access, access_from_docker_config
from controller.adapters.oci.layout import INDEX, MANIFEST
from controller.adapters.oci.references import checked_digest, checked_reference, index_entry, index_of, index_tag, is_tag, listed
from policies.errors import DesiredStateError, RefusedError, SilentError, TrustError
from policies.retries import pause_seconds
from policies.terms.digest import Digest, digest_of, is_digest

DOCKER_MANIFESTS = (
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
LARGEST_MANIFEST_BYTES = 8 << 20
"""Twice what registries promise to take."""
LONGEST_PAUSE_SECONDS = 8.0
LONGEST_ASKED_PAUSE_SECONDS = 30.0
"""Whoever asks for a longer pause is left alone by us, and by the whole pass."""
PASSING = (408, 429, 500, 502, 503, 504)
NO_REFERRERS = (400, 404, 405, 406)
"""What servers without the referrers API answer to it."""
MOST_REDIRECTS = 5
MOST_PAGES = 50
MOST_INTRODUCTIONS = 3
"""Another thread may have fetched a token for less than we need."""
__all__ = ["Access", "Registry", "access_from_docker_config", "is_tag"]
T = TypeVar("T")
_ACCEPT = {"Accept": ", ".join((MANIFEST, INDEX, *DOCKER_MANIFESTS))}
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """One question, and which answers to it are fine."""

    method: str
    url: str
    what: str
    """What it is about, for messages."""
    fine: tuple[int, ...]
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | Path | None = None
    tries: int = 0
    """0: as many as the registry's."""
    authorization: str | None = None
    """Replaces what the repository's host gets; with it, nobody is asked for a token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes


class Registry:
    """One repository of a registry. Threads may share it.

    Args:
        access: Where it is, and as whom to go there.
        connect_seconds: How long to wait for a connection.
        read_seconds: How long to wait for each piece of an answer.
        tries: How often to ask somebody who does not answer, or asks us to come back. At least 1.
        sleep: Waits between tries.

    Raises:
        DesiredStateError: The access has a ca that is no certificate.

    Every method may raise `SilentError` (no answer, or one that asks to come back, after all tries) and `RefusedError`
    (reason `RegistryRefused`: not let in, or a request that it does not take).
    """

    def __init__(
        self,
        access: Access,
        *,
        connect_seconds: float = 10.0,
        read_seconds: float = 60.0,
        tries: int = 4,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.access = access
        self._tries, self._sleep = tries, sleep
        self._root = f"{'http' if access.unsafe_plain_http else 'https'}://{access.host}"
        self._url = f"{self._root}/v2/{access.path}"
        try:
            context = _trusting(access.ca)
        except (ssl.SSLError, ValueError) as error:
            raise DesiredStateError(
                f"ca of {access.repository}: expected certificates in PEM", reason="BadCertificate"
            ) from error
        self._http = urllib3.PoolManager(
            num_pools=4,
            maxsize=4,
            timeout=Timeout(connect=connect_seconds, read=read_seconds),
            ssl_context=context,
            blocksize=1 << 16,
        )
        self._guard = threading.Lock()
        self._attaching = threading.Lock()
        self._authorization = ""
        self._there: set[str] = set()

    @property
    def repository(self) -> str:
        """`host[:port]/path`."""
        return self.access.repository

    def close(self) -> None:
        """End all connections."""
        self._http.clear()

    def has_blob(self, digest: str) -> bool:
        """Whether a blob is in the repository, as it says now."""
        answer = self._ask("HEAD", f"/blobs/{checked_digest(digest)}", f"blob {digest}", (200, 404))
        with self._guard:
            if answer.status == 200:
                self._there.add(digest)
            else:
                self._there.discard(digest)
        return answer.status == 200

    def put_blob(self, path: Path, digest: str) -> None:
        """Bring a file into the repository, unless it is there; it is never held in memory.

        Raises:
            TrustError: The file is not what its digest says.
        """
        with self._guard:
            if digest in self._there:
                return
        for failures in count(1):
            # An answer may have been lost after the blob was taken, so each try begins with a look.
            if self.has_blob(digest):
                return
            begun = self._ask("POST", "/blobs/uploads/", f"blob {digest}", (202,))
            url = self._upload_url(begun, digest)
            fields = {"Content-Type": "application/octet-stream", "Content-Length": str(path.stat().st_size)}
            try:
                # An upload that broke off cannot be sent again to the same place: the server may have a part of it.
                answer = self._ask("PUT", url, f"blob {digest}", (201, 400), headers=fields, body=path, tries=1)
            except SilentError:
                if failures >= self._tries:
                    raise
                self._sleep(_pause(failures))
                continue
            if answer.status == 400:
                if "DIGEST_INVALID" in _said(answer.body):
                    raise TrustError(f"blob {digest}: expected these bytes, got others", reason="BlobChanged")
                raise self._refusal(answer, f"blob {digest}")
            with self._guard:
                self._there.add(digest)
            return

    def mount_blob(self, digest: str, source: str) -> bool:
        """Take a blob over from another repository of the same host, without sending it.

        Args:
            digest: The blob.
            source: The other repository's path on the host.

        Returns:
            Whether that was possible.
        """
        query = urlencode({"mount": checked_digest(digest), "from": source})
        try:
            answer = self._ask("POST", f"/blobs/uploads/?{query}", f"blob {digest}", (201, 202))
        except RefusedError:
            # Servers differ in how they say that we may not read there; whoever may write here is told so by `put_blob`.
            return False
        if answer.status == 202:
            # It began an upload instead, which nobody will end.
            self._ask("DELETE", self._upload_url(answer), f"blob {digest}", (204, 404, 405))
            return False
        with self._guard:
            self._there.add(digest)
        return True

    def fetch_blob(self, digest: str, out: IO[bytes]) -> None:
        """Write a blob to `out`, an empty file that can seek; after an error, what is in it is worth nothing.

        Raises:
            TrustError: It is missing or not what its digest says.
        """
        start = out.tell()

        def take(response: urllib3.BaseHTTPResponse) -> str:
            if response.status == 404:
                return ""
            out.seek(start)
            out.truncate()
            sha = hashlib.sha256()
            for block in response.stream(_BLOCK, decode_content=False):
                sha.update(block)
                out.write(block)
            return "sha256:" + sha.hexdigest()

        url = f"{self._url}/blobs/{checked_digest(digest)}"
        got = self._take(_Request(method="GET", url=url, what=f"blob {digest}", fine=(200, 404)), take)
        if not got:
            with self._guard:
                self._there.discard(digest)
            raise TrustError(f"blob {digest}: expected it in {self.repository}, it is missing", reason="BlobMissing")
        if got != digest:
            raise TrustError(f"blob {digest}: expected these bytes from {self.repository}, got {got}", reason="BlobChanged")

    def manifest(self, reference: str) -> bytes | None:
        """A manifest or index by tag or digest; None when there is none.

        Raises:
            TrustError: It is not what its digest says, or of no sensible size.
        """
        answer = self._manifest("GET", reference)
        if answer.status == 404:
            return None
        if len(answer.body) > LARGEST_MANIFEST_BYTES:
            text = f"manifest {reference}: expected at most {LARGEST_MANIFEST_BYTES} bytes from {self.repository}, got more"
            raise TrustError(text, reason="ManifestTooBig")
        if is_digest(reference) and digest_of(answer.body) != reference:
            got = digest_of(answer.body)
            text = f"manifest {reference}: expected these bytes from {self.repository}, got {got}"
            raise TrustError(text, reason="BlobChanged")
        return answer.body

    def put_manifest(self, data: bytes, reference: str, media_type: str = MANIFEST) -> Digest:
        """Keep a manifest or index whose blobs are there, under a tag or its digest.

        Raises:
            TrustError: `reference` is the digest of something else.
        """
        self._put_manifest(data, reference, media_type)
        return digest_of(data)

    def has_manifest(self, reference: str) -> bool:
        """Whether there is a manifest of this tag or digest."""
        return self.resolve(reference) is not None

    def resolve(self, reference: str) -> Digest | None:
        """The digest of the manifest that a tag names, or of a digest if it is there; None when there is none."""
        answer = self._manifest("HEAD", reference)
        if answer.status == 404:
            return None
        said = answer.headers.get("docker-content-digest", "")
        if is_digest(said):
            return Digest(said)
        data = self.manifest(reference)
        return None if data is None else digest_of(data)

    def referrers(self, digest: str) -> list[dict[str, Any]]:
        """Descriptors of the manifests whose subject is `digest`, as the registry lists them: nothing here is proved."""
        found: list[dict[str, Any]] = []
        url = f"/referrers/{checked_digest(digest)}"
        for _ in range(MOST_PAGES):
            answer = self._ask("GET", url, f"referrers of {digest}", (200, *NO_REFERRERS))
            if answer.status != 200 or INDEX not in answer.headers.get("content-type", ""):
                return listed(self.manifest(index_tag(digest)))
            found += listed(answer.body)
            further = re.match(r'\s*<([^>]+)>\s*;\s*rel="?next"?', answer.headers.get("link", ""))
            if not further:
                break
            url = self._nearby(urljoin(self._url, further[1]))
        return found

    def attach(self, subject: str, manifest: bytes) -> None:
        """Keep a manifest that has a subject, so that `referrers` lists it on servers with that API and without.

        Without it there is an index under the tag `sha256-<hex>`, which is read, changed and written: one writer at a time.
        """
        entry, tag = index_entry(manifest), index_tag(subject)
        answer = self._put_manifest(manifest, entry["digest"], entry["mediaType"])
        if answer.headers.get("oci-subject"):
            return
        with self._attaching:
            there = listed(self.manifest(tag))
            if any(item["digest"] == entry["digest"] for item in there):
                return
            try:
                self._put_manifest(index_of([*there, entry]), tag, INDEX)
            except RefusedError:
                # An index that names what a clean-up of the registry removed is not taken.
                left = [item for item in there if self.has_manifest(item["digest"])]
                if left == there:
                    raise
                self._put_manifest(index_of([*left, entry]), tag, INDEX)

    def _manifest(self, method: str, reference: str) -> _Answer:
        return self._ask(
            method, f"/manifests/{checked_reference(reference)}", f"manifest {reference}", (200, 404), headers=_ACCEPT
        )

    def _put_manifest(self, data: bytes, reference: str, media_type: str) -> _Answer:
        if is_digest(reference) and digest_of(data) != reference:
            raise TrustError(f"manifest {reference}: expected these bytes, got {digest_of(data)}", reason="BlobChanged")
        url, fields = f"/manifests/{checked_reference(reference)}", {"Content-Type": media_type}
        try:
            answer = self._ask("PUT", url, f"manifest {reference}", (201,), headers=fields, body=data)
        except RefusedError:
            # Perhaps what we took to be there was removed: the next push looks again.
            with self._guard:
                self._there.clear()
            raise
        kept = answer.headers.get("docker-content-digest", "")
        if is_digest(kept) and kept != digest_of(data):
            text = f"manifest {reference}: expected {self.repository} to keep these bytes, it kept {kept}"
            raise TrustError(text, reason="BlobChanged")
        return answer

    def _upload_url(self, begun: _Answer, digest: str = "") -> str:
        parts = urlsplit(self._nearby(urljoin(f"{self._url}/blobs/uploads/", begun.headers.get("location", ""))))
        query = [*parse_qsl(parts.query, keep_blank_values=True), *([("digest", digest)] if digest else [])]
        return urlunsplit(parts._replace(query=urlencode(query)))

    def _nearby(self, url: str) -> str:
        """An address that the registry gave: its own host keeps our scheme, any other must be as safe.

        Servers behind a proxy that ends TLS often call themselves `http`.
        """
        parts = urlsplit(url)
        if parts.netloc == self.access.host:
            return urlunsplit(parts._replace(scheme=urlsplit(self._root).scheme))
        if parts.scheme != "https" and not (parts.scheme == "http" and self.access.unsafe_plain_http):
            raise self._refused(f"sent us on to {parts.scheme}://{parts.netloc}; expected https, or set unsafePlainHttp")
        return url

    def _ask(self, method: str, url: str, what: str, fine: tuple[int, ...], **more: Any) -> _Answer:
        """A short answer; `url` may be a path below the repository's."""
        url = f"{self._url}{url}" if url.startswith("/") else url
        return self._take(_Request(method=method, url=url, what=what, fine=fine, **more), _whole)

    def _take(self, request: _Request, read: Callable[[urllib3.BaseHTTPResponse], T]) -> T:
        """What `read` makes of an answer that is fine; it may have to begin again."""
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
                    raise self._refusal(answer, request.what)
                asked = _asked_pause(answer)
            failures += 1
            if failures >= (request.tries or self._tries) or asked > LONGEST_ASKED_PAUSE_SECONDS:
                got = f"status {answer.status}" if answer is not None else _words(cause)
                got += f" and the wish to wait {asked:.0f} s" if asked else ""
                text = f"registry {self.repository}: {request.what}: expected an answer, got {got} at try {failures}"
                raise SilentError(text, reason="RegistrySilent") from cause
            self._sleep(max(asked, _pause(failures)))

    def _send(self, request: _Request, authorization: str, closing: ExitStack) -> urllib3.BaseHTTPResponse:
        """Ask once; a redirect of a read is followed. Our credentials go to one host."""
        url, body = request.url, request.body
        home = self.access.host if request.authorization is None else urlsplit(url).netloc
        for _ in range(MOST_REDIRECTS):
            fields = dict(request.headers)
            if authorization and urlsplit(url).netloc == home:
                fields["Authorization"] = authorization
            content = closing.enter_context(body.open("rb")) if isinstance(body, Path) else body
            response = self._http.request(
                request.method, url, body=content, headers=fields, retries=False, redirect=False, preload_content=False
            )
            closing.callback(response.close)
            if request.method not in ("GET", "HEAD") or response.status not in (301, 302, 303, 307, 308):
                return response
            response.drain_conn()
            url = self._nearby(urljoin(url, response.headers.get("Location", "")))
        raise self._refused(f"{request.what}: sent us on more than {MOST_REDIRECTS} times")

    def _introduce(self, answer: _Answer, used: str, what: str, *, is_first: bool) -> None:
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
            raise self._refusal(answer, what)
        if header == used:
            raise self._refusal(answer, what)
        with self._guard:
            self._authorization = header

    def _basic(self) -> str:
        text = f"{self.access.username}:{self.access.password.reveal()}"
        return "Basic " + base64.b64encode(text.encode()).decode("ascii")

    def _token(self, asked: Mapping[str, str]) -> str:
        """A token of the server that the registry names (the Docker registry's token protocol)."""
        realm = self._nearby(asked.get("realm", ""))
        query = urlencode({key: asked[key] for key in ("service", "scope") if asked.get(key)})
        url = f"{realm}{'&' if '?' in realm else '?'}{query}"
        basic = self._basic() if self.access.username else ""
        answer = self._ask("GET", url, f"token of {urlsplit(realm).netloc}", (200,), authorization=basic)
        try:
            said = json.loads(answer.body)
            return f"Bearer {said.get('token') or said['access_token']}"
        except (ValueError, KeyError, AttributeError):
            raise self._refused(f"{urlsplit(realm).netloc} gave no token, but something else") from None

    def _refusal(self, answer: _Answer, what: str) -> RefusedError:
        said = _said(answer.body)
        for secret in (self.access.password.reveal(), self._authorization.partition(" ")[2]):
            said = said.replace(secret, "***") if secret else said
        words = f"{what}: got {answer.status}" + (f" ({said})" if said else "")
        if answer.status in (401, 403, 405) or "DENIED" in said:
            place = self.access.origin or "the registry's secret"
            who = f"user {self.access.username!r}; look at {place}" if self.access.username else f"nobody; name a user in {place}"
            return self._refused(f"{words} as {who}")
        return self._refused(words)

    def _refused(self, text: str) -> RefusedError:
        return RefusedError(f"registry {self.repository}: {text}", reason="RegistryRefused")

    def _refuse_certificate(self, error: HTTPError) -> None:
        """What is not the registry that we mean, or speaks no TLS, will not do so at the next try."""
        if not isinstance(error, SSLError):
            return
        cause = error.args[0] if error.args else None
        if isinstance(cause, ssl.SSLCertVerificationError):
            text = f"expected a certificate that a known authority vouches for: {cause.verify_message}; give its authority as ca"
            raise RefusedError(f"registry {self.repository}: {text}", reason="RegistryCertificate") from error
        if "WRONG_VERSION_NUMBER" in str(error) or "RECORD_LAYER_FAILURE" in str(error):
            text = "expected TLS, got something else; set unsafePlainHttp if it is to be so"
            raise RefusedError(f"registry {self.repository}: {text}", reason="RegistryCertificate") from error


@lru_cache(maxsize=16)
def _trusting(ca: str) -> ssl.SSLContext:
    """Reading the system's authorities takes longer than most questions, so all clients share it."""
    context = ssl.create_default_context()
    if ca:
        context.load_verify_locations(cadata=ca)
    return context


def _whole(response: urllib3.BaseHTTPResponse) -> _Answer:
    """An answer whose body is short; of a longer one, enough to see that it is too long."""
    parts, size = [], 0
    for block in response.stream(1 << 16, decode_content=True):
        parts.append(block)
        size += len(block)
        if size > LARGEST_MANIFEST_BYTES:
            break
    headers = {key.lower(): value for key, value in response.headers.items()}
    return _Answer(status=response.status, headers=headers, body=b"".join(parts))


def _said(body: bytes) -> str:
    """A registry's own words: code and message of its first error."""
    try:
        first = json.loads(body)["errors"][0]
        text = f"{first.get('code', '')} {first.get('message', '')}"
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        text = body[:200].decode(errors="replace") if body[:1] not in (b"<", b"{") else ""
    return " ".join(text.split())[:200]


def _pause(failures: int) -> float:
    # Not all at once: somebody who is busy has many callers.
    return pause_seconds(failures, longest=LONGEST_PAUSE_SECONDS) * random.uniform(0.5, 1.0)


def _asked_pause(answer: _Answer) -> float:
    try:
        return float(Retry().parse_retry_after(answer.headers.get("retry-after", "0")))
    except InvalidHeader:
        return 0.0


def _words(error: HTTPError | None) -> str:
    if isinstance(error, NameResolutionError):
        return "no address for its name"
    causes = [item for item in (*error.args, error.__cause__, error.__context__) if isinstance(item, OSError)] if error else []
    said = next((item.strerror.lower() for item in causes if item.strerror), "")
    return said or ("nothing in time" if isinstance(error, TimeoutError) else "a broken connection")
