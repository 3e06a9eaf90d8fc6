"""Content of Git LFS: asked for by digest where a repository is, and checked before anybody sees it.

A server may send us on to another host. A login is shown to the repository's own host alone; what the server itself gives for
a download goes to the address that it was given for, and is not taken along when that sends us further.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import ssl
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from controller.adapters.git.access import GitAccess, Login
from controller.adapters.git.program import GitFailed, Program
from controller.adapters.git.urls import local_path, shown
from policies.errors import DesiredStateError, OutsideError, RefusedError, SilentError, TrustError
from policies.pointers import Pointer
from policies.terms.secret import Secret

if TYPE_CHECKING:
    from urllib.request import OpenerDirector

MEDIA = "application/vnd.git-lfs+json"
MOST_AT_ONCE = 100
"""How many objects one question names; Git LFS's own client asks for as many."""
LARGEST_ANSWER_BYTES = 4 << 20
TIMEOUT_SECONDS = 30.0
MOST_STEPS = 5
"""How often a download may be sent on."""
_MOVED = (301, 302, 303, 307, 308)
_PASSING = (408, 429, 500, 502, 503, 504)


class LargeFiles:
    """Git LFS of one repository.

    Args:
        url: The repository.
        access: What its server is shown and must show; None: the user's own set-up counts.
        folder: Where content is kept, by digest. Nobody who may not read the repository may have the same one.

    Source:
        Git LFS, Batch API and Basic Transfer API, `docs/api` of its repository.
    """

    def __init__(self, url: str, access: GitAccess | None, folder: Path) -> None:
        self._url, self._access, self._folder = url, access, folder
        self._base = shown(url).rstrip("/").removesuffix(".git") + ".git/info/lfs"

    def fetch(self, pointers: Sequence[Pointer]) -> Mapping[str, bytes]:
        """The content of pointers, by digest.

        Raises:
            OutsideError: The server does not answer, refuses, or has no such content.
            TrustError: It gives something else than what was asked for.
            DesiredStateError: The repository is reached in a way that has no Git LFS.
        """
        wanted = {pointer.digest: pointer for pointer in pointers}
        found = {digest: content for digest, pointer in wanted.items() if (content := self._kept(pointer)) is not None}
        missing = [pointer for digest, pointer in wanted.items() if digest not in found]
        if missing:
            for pointer, content in self._bring(missing):
                self._keep(pointer, content)
                found[pointer.digest] = content
        return found

    def _bring(self, missing: Sequence[Pointer]) -> Iterator[tuple[Pointer, bytes]]:
        place = local_path(self._url)
        if place is not None:
            for pointer in missing:
                yield pointer, self._local(place, pointer)
            return
        if urlsplit(self._url).scheme not in ("http", "https"):
            text = f"{shown(self._url)}: expected a URL of HTTP, as Git LFS is fetched over nothing else"
            raise DesiredStateError(
                f"{text}; keep {_named(missing[0])} in Git, or follow the repository over HTTPS", reason="NotBuilt"
            )
        login = Login(self._access, self._url)
        try:
            client = _Client(self._base, self._url, self._access, login.environment, self._folder)
            for first in range(0, len(missing), MOST_AT_ONCE):
                part = missing[first : first + MOST_AT_ONCE]
                actions = client.ask(part)
                for pointer in part:
                    yield pointer, _checked(pointer, client.download(pointer, actions[pointer.digest]), shown(self._url))
        finally:
            login.close()

    def _local(self, place: Path, pointer: Pointer) -> bytes:
        parts = Path("lfs", "objects", pointer.digest[:2], pointer.digest[2:4], pointer.digest)
        for top in (place / ".git", place):
            try:
                return _checked(pointer, (top / parts).read_bytes(), str(place))
            except OSError:
                continue
        text = f"{place}: expected {_named(pointer)}, there is none; `git lfs push` it there, or `git lfs fetch` it"
        raise RefusedError(text, reason="LargeFileMissing")

    def _kept(self, pointer: Pointer) -> bytes | None:
        try:
            content = (self._folder / pointer.digest).read_bytes()
        except OSError:
            return None
        return content if hashlib.sha256(content).hexdigest() == pointer.digest else None

    def _keep(self, pointer: Pointer, content: bytes) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix="tmp-", dir=self._folder)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.replace(temporary, self._folder / pointer.digest)
        except OSError:
            os.unlink(temporary)
            raise


class _Client:
    """Questions to one server of Git LFS."""

    def __init__(self, base: str, url: str, access: GitAccess | None, files: Mapping[str, str], folder: Path) -> None:
        self._base, self._url, self._access = base, url, access
        folder.mkdir(parents=True, exist_ok=True)
        self._git = Program(folder)
        self._header = access.header if access is not None else None
        self._asked_user = access is not None
        proxy, authority = self._setting("http.proxy"), self._setting("http.sslCAInfo")
        authority = files.get("GIT_SSL_CAINFO") or os.environ.get("GIT_SSL_CAINFO") or authority
        certificate = files.get("GIT_SSL_CERT") or os.environ.get("GIT_SSL_CERT", "")
        certificate_key = files.get("GIT_SSL_KEY") or os.environ.get("GIT_SSL_KEY", "")
        try:
            own, other = ssl.create_default_context(cafile=authority or None), ssl.create_default_context()
            if authority:
                other.load_verify_locations(authority)
            if certificate:
                own.load_cert_chain(certificate, certificate_key or None)
        except (OSError, ValueError) as error:
            raise RefusedError(
                f"{shown(url)}: expected certificates that can be read: {error}", reason="CertificateUnknown"
            ) from error
        self._own, self._other = _opener(own, proxy), _opener(other, proxy)

    def ask(self, pointers: Sequence[Pointer]) -> Mapping[str, Mapping[str, Any]]:
        """Where each content is: digest -> the answer's `download`, with whether it needs no login beside it."""
        body = {
            "operation": "download",
            "transfers": ["basic"],
            "objects": [{"oid": pointer.digest, "size": pointer.size_bytes} for pointer in pointers],
            "hash_algo": "sha256",
        }
        what = f"Git LFS of {shown(self._url)}"
        fields = {"Accept": MEDIA, "Content-Type": MEDIA}
        try:
            text = self._send(what, f"{self._base}/objects/batch", fields, LARGEST_ANSWER_BYTES, json.dumps(body).encode())
        except RefusedError as error:
            if error.reason != "LoginRefused" or not self._ask_user():
                raise
            text = self._send(what, f"{self._base}/objects/batch", fields, LARGEST_ANSWER_BYTES, json.dumps(body).encode())
        try:
            answer = json.loads(text)
            known = {item["oid"]: item for item in answer["objects"]}
            if answer.get("transfer", "basic") != "basic":
                raise ValueError("transfer")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SilentError(f"{what}: expected an answer of its batch API, got something else") from error
        return {pointer.digest: _action(what, pointer, known.get(pointer.digest)) for pointer in pointers}

    def download(self, pointer: Pointer, action: Mapping[str, Any]) -> bytes:
        """One content, as it comes; at most one byte more than it should have."""
        href, fields = action["href"], dict(action["header"])
        size = pointer.size_bytes or 0
        what = f"{_named(pointer)} of {shown(self._url)}"
        for _ in range(MOST_STEPS):
            if urlsplit(href).scheme not in (("https",) if self._base.startswith("https:") else ("http", "https")):
                raise RefusedError(f"{what}: expected an address as safe as the repository's, got {shown(href)}", reason="BadUrl")
            try:
                content = self._send(what, href, fields, size + 1, with_login=not action["authenticated"])
            except _Moved as moved:
                there = urljoin(href, moved.place)
                fields = fields if _origin(there) == _origin(href) else {}
                href = there
                continue
            if len(content) < size:
                raise SilentError(f"{what}: the answer ended after {len(content)} bytes")
            return content
        raise SilentError(f"{what}: expected content, was sent on {MOST_STEPS} times")

    def _send(
        self,
        what: str,
        url: str,
        fields: Mapping[str, str],
        largest_bytes: int,
        body: bytes | None = None,
        *,
        with_login: bool = True,
    ) -> bytes:
        from urllib.error import HTTPError, URLError
        from urllib.request import Request

        is_own = _origin(url) == _origin(self._base)
        # http or https alone: `download` lets nothing else through, and the base is one of them.
        request = Request(url, data=body, headers={"User-Agent": "myelin", **fields})
        if is_own and with_login and self._header is not None and not request.has_header("Authorization"):
            request.add_header("Authorization", self._header.reveal())
        try:
            with (self._own if is_own else self._other).open(request, timeout=TIMEOUT_SECONDS) as answer:
                return bytes(answer.read(largest_bytes))
        except HTTPError as error:
            with error:
                if error.code in _MOVED and body is None and error.headers.get("Location"):
                    raise _Moved(error.headers["Location"]) from None
                raise _refused(what, error.code) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = error.reason if isinstance(error, URLError) else error
            if isinstance(reason, ssl.SSLCertVerificationError):
                words = "the server's certificate is signed by no authority that is known here; give its authority as ca.crt"
                raise RefusedError(f"{what}: {words}", reason="CertificateUnknown") from error
            raise SilentError(f"{what}: no answer: {type(reason).__name__}") from error

    def _ask_user(self) -> bool:
        """Take the login that the user's own credential helpers know, once; whether there is one."""
        if self._asked_user:
            return False
        self._asked_user = True
        parts = urlsplit(self._url)
        lines = [f"protocol={parts.scheme}", f"host={parts.netloc.rpartition('@')[2]}", f"path={parts.path.lstrip('/')}"]
        lines += [f"username={parts.username}"] if parts.username else []
        try:
            said = self._git.run("credential", "fill", stdin=("\n".join(lines) + "\n\n").encode())
        except GitFailed:
            return False
        found = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
        if not found.get("password"):
            return False
        login = GitAccess(origin="git credential", username=found.get("username", ""), password=Secret(found["password"]))
        self._header = login.header
        return True

    def _setting(self, name: str) -> str:
        try:
            return self._git.run("config", "--get-urlmatch", name, shown(self._url)).strip()
        except GitFailed:
            return ""


class _Moved(Exception):
    def __init__(self, place: str) -> None:
        super().__init__(place)
        self.place = place


def _opener(context: ssl.SSLContext, proxy: str) -> OpenerDirector:
    """Opens URLs over HTTP alone, through the proxies of Git's settings or of the environment, and follows nothing."""
    from urllib.request import (
        HTTPDefaultErrorHandler,
        HTTPErrorProcessor,
        HTTPHandler,
        HTTPSHandler,
        OpenerDirector,
        ProxyHandler,
    )

    made = OpenerDirector()
    proxies = {"http": proxy, "https": proxy} if proxy else None
    for handler in (
        ProxyHandler(proxies),
        HTTPHandler(),
        HTTPSHandler(context=context),
        HTTPDefaultErrorHandler(),
        HTTPErrorProcessor(),
    ):
        made.add_handler(handler)
    return made


def _action(what: str, pointer: Pointer, item: Any) -> Mapping[str, Any]:
    error = item.get("error") if isinstance(item, dict) else None
    if isinstance(error, dict) and error.get("code") in _PASSING:
        raise SilentError(f"{what}: expected {_named(pointer)}, got status {error['code']}")
    try:
        action = item["actions"]["download"]
        href, fields = action["href"], action.get("header") or {}
        if not isinstance(href, str) or not all(isinstance(text, str) for pair in fields.items() for text in pair):
            raise TypeError("action")
    except (KeyError, TypeError, AttributeError):
        text = f"{what}: expected {_named(pointer)}, there is none; `git lfs push` it there"
        raise RefusedError(text, reason="LargeFileMissing") from None
    return {"href": href, "header": fields, "authenticated": item.get("authenticated") is True}


def _checked(pointer: Pointer, content: bytes, where: str) -> bytes:
    if len(content) == pointer.size_bytes and hashlib.sha256(content).hexdigest() == pointer.digest:
        return content
    raise TrustError(f"{where}: expected {_named(pointer)}, got other content under that name", reason="LargeFileDiffers")


def _refused(what: str, status: int) -> OutsideError:
    if status in (401, 403, 407):
        return RefusedError(f"{what}: the server refuses this login; look at user, password and key", reason="LoginRefused")
    if status in _PASSING:
        return SilentError(f"{what}: no answer: status {status}")
    if status in (404, 410, 501):
        return RefusedError(f"{what}: there is no Git LFS, or no access to it", reason="LargeFileMissing")
    return RefusedError(f"{what}: refused with status {status}", reason="LargeFileMissing")


def _named(pointer: Pointer) -> str:
    return f"content {pointer.identity} ({pointer.size_bytes} bytes)"


def _origin(url: str) -> tuple[str, str, int]:
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or (443 if parts.scheme == "https" else 80)
