"""The embedded Sigstore over HTTP: what Fulcio and Rekor answer their clients, so that theirs sign here.

Whoever shows an identity token that the project trusts is given a certificate for that identity; the log takes in only what
such a certificate signed, so nobody else can make it grow. All may read.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from controller.adapters.clock import SystemClock
from controller.adapters.sigstore.authority import (
    Certified,
    certified,
    is_digest_signed,
    is_plain,
    is_signed,
    pem,
    public_key_of,
    requested_key,
)
from controller.adapters.sigstore.embedded import ISSUER, Embedded, artifact_body, envelope_body, envelope_data
from controller.adapters.sigstore.tokens import subject_of
from policies.errors import ControllerError, DesiredStateError, RefusedError, SilentError

LARGEST_BODY_BYTES = 1 << 20
LARGEST_PAYLOAD_BYTES = 256 * 1024
"""Of an envelope, as base64; the log keeps its digest, not it."""
_HEX = re.compile(r"[0-9a-f]{64}")
_UUID = re.compile(r"(?:[0-9a-f]{16})?([0-9a-f]{64})")
_ENTRY = "/api/v1/log/entries/"
Answer = tuple[int, Mapping[str, str], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposed:
    """An entry that somebody wants in the log, and the certificate that signed it."""

    body: bytes
    by: Certified


class Served:
    """Answers requests to one embedded Sigstore.

    Args:
        embedded: Which.
        verify: Says whose an identity token is, and who says so; raises `RefusedError`. See `tokens.Tokens`.
        url: Where it is reached, for the client trust configuration.
        log_url: Where its log is reached, if elsewhere.
        in_turn: Does what needs the log, where the ledger belongs to another thread; see `turn.Turn`.
        now: The clock.
    """

    def __init__(
        self,
        embedded: Embedded,
        verify: Callable[[str], tuple[str, str]],
        *,
        url: str,
        log_url: str = "",
        in_turn: Callable[[Callable[[], Any]], Any] = lambda act: act(),
        now: Callable[[], datetime] = SystemClock().now,
    ) -> None:
        self._embedded, self._verify, self._in_turn, self._now = embedded, verify, in_turn, now
        self._url, self._log_url = url, log_url

    def handle(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Answer a request.

        Args:
            method: `GET` or `POST`.
            path: With its query, without what it is mounted under.
            headers: By name in lower case.
            body: All of it.
        """
        if len(body) > LARGEST_BODY_BYTES:
            return _said(413, f"expected a body of at most {LARGEST_BODY_BYTES} bytes")
        try:
            return self._routed(method, path, headers, body)
        except SilentError as error:
            return _said(503, error.message)
        except DesiredStateError as error:
            return _said(404, error.message)
        except RefusedError as error:
            return _said(401 if error.reason == "WrongToken" else 403, error.message)
        except ControllerError as error:
            return _said(503, error.message)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, binascii.Error, RecursionError) as error:
            # What a stranger sent is not repeated; only our own words are.
            words = str(error) if type(error) is ValueError and str(error).startswith("expected ") else "not understood"
            return _said(400, words[:300])

    def _routed(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        parts = urlsplit(path)
        where, query = parts.path, parse_qs(parts.query)
        match method, where:
            case "POST", "/api/v2/signingCert":
                return self._certify(headers, json.loads(body))
            case "GET", "/api/v2/trustBundle":
                return _json(200, {"chains": [{"certificates": [self._authority_pem()]}]})
            case "POST", "/api/v1/log/entries":
                return self._log(json.loads(body))
            case "GET", "/api/v1/log/entries":
                place = int(query["logIndex"][0])
                return _json(200, self._in_turn(lambda: self._embedded.log.at(place)).in_rekor())
            case "GET", _ if where.startswith(_ENTRY) and (named := _UUID.fullmatch(where.removeprefix(_ENTRY))):
                leaf = bytes.fromhex(named[1])
                return _json(200, self._in_turn(lambda: self._embedded.log.find(leaf)).in_rekor())
            case "GET", "/api/v1/log":
                size, root, checkpoint = self._in_turn(self._embedded.log.head)
                known = {
                    "rootHash": root.hex(),
                    "signedTreeHead": checkpoint,
                    "treeID": str(self._embedded.log.tree_id),
                    "treeSize": size,
                }
                return _json(200, {**known, "inactiveShards": []})
            case "GET", "/api/v1/log/proof":
                return self._consistency(int(query.get("firstSize", ["1"])[0]), int(query["lastSize"][0]))
            case "GET", "/api/v1/log/publicKey":
                return 200, {"Content-Type": "application/x-pem-file"}, self._embedded.authority.log.public_pem.encode()
            case "GET", "/trusted_root.json":
                return _text(200, self._embedded.trusted_root())
            case "GET", "/trust_config.json":
                return _text(200, self._embedded.trust_config(self._url, self._log_url))
        return _said(404, "nothing here")

    def _certify(self, headers: Mapping[str, str], asked: Mapping[str, Any]) -> Answer:
        """Give a certificate for the identity of a token to whoever proves that they hold its key."""
        kind, _, shown = headers.get("authorization", "").partition(" ")
        token = shown.strip() if kind.lower() == "bearer" else asked.get("credentials", {}).get("oidcIdentityToken", "")
        identity, issuer = self._verify(token)
        if issuer == ISSUER or not is_plain(identity, issuer):
            words = "identity token: expected an identity in ASCII without spaces, of another issuer than the controller itself"
            raise RefusedError(words, reason="WrongToken")
        if "certificateSigningRequest" in asked:
            public = requested_key(_decoded(asked["certificateSigningRequest"]))
        else:
            wanted = asked["publicKeyRequest"]
            public = public_key_of(wanted["publicKey"]["content"].encode())
            proof = _decoded(wanted["proofOfPossession"])
            if not any(is_signed(public, subject.encode(), proof) for subject in subject_of(token)):
                raise ValueError("expected the token's subject signed with that key as proofOfPossession")
        certificate = self._embedded.authority.issue(public, identity, issuer, self._now())
        chain = [pem(certificate, "CERTIFICATE"), self._authority_pem()]
        return _json(200, {"signedCertificateEmbeddedSct": {"chain": {"certificates": chain}}})

    def _log(self, asked: Mapping[str, Any]) -> Answer:
        proposed = self._proposed(asked)
        if not proposed.by.begins_at <= self._now() <= proposed.by.ends_at:
            raise ValueError("expected a certificate that holds now")
        (logged,) = self._in_turn(lambda: self._embedded.log.add([proposed.body]))
        status, headers, body = _json(201, logged.in_rekor())
        return status, {**headers, "ETag": logged.uuid, "Location": f"{_ENTRY}{logged.uuid}"}, body

    def _proposed(self, asked: Mapping[str, Any]) -> Proposed:
        """What an entry is to the log, once its signature holds."""
        kind, spec = (asked["kind"], asked["apiVersion"]), asked["spec"]
        if kind == ("hashedrekord", "0.0.1"):
            by = self._certified(spec["signature"]["publicKey"]["content"])
            named, signature = spec["data"]["hash"], _decoded(spec["signature"]["content"])
            if named["algorithm"] != "sha256" or not _HEX.fullmatch(named["value"]):
                raise ValueError("expected a SHA-256 digest")
            digest = bytes.fromhex(named["value"])
            if not is_digest_signed(by.public_der, digest, signature):
                raise ValueError("expected a signature of that digest by that certificate")
            return Proposed(body=artifact_body(digest, signature, by.der), by=by)
        if kind == ("dsse", "0.0.1"):
            raw, verifiers = spec["proposedContent"]["envelope"], spec["proposedContent"]["verifiers"]
            envelope = json.loads(raw)
            if len(verifiers) != 1 or len(envelope["signatures"]) != 1 or len(envelope["payload"]) > LARGEST_PAYLOAD_BYTES:
                raise ValueError(f"expected one signature over at most {LARGEST_PAYLOAD_BYTES} characters")
            by, signature = self._certified(verifiers[0]), _decoded(envelope["signatures"][0]["sig"])
            signed = envelope_data(envelope["payloadType"], _decoded(envelope["payload"]))
            if not is_signed(by.public_der, signed, signature):
                raise ValueError("expected a signature of that envelope by that certificate")
            plain = {**envelope, "signatures": [{"sig": base64.b64encode(signature).decode("ascii")}]}
            return Proposed(body=envelope_body(plain, by.der, raw.encode()), by=by)
        raise ValueError("expected a hashedrekord or dsse entry, version 0.0.1")

    def _certified(self, content: str) -> Certified:
        return certified(_decoded(content), self._embedded.authority)

    def _consistency(self, first: int, second: int) -> Answer:
        log = self._embedded.log
        hashes, (_, root, _) = self._in_turn(lambda: (log.consistency(first, second), log.head()))
        return _json(200, {"hashes": [item.hex() for item in hashes], "rootHash": root.hex()})

    def _authority_pem(self) -> str:
        return pem(self._embedded.authority.certificate_der, "CERTIFICATE")


@contextmanager
def serve(answer: Callable[[str], Served]) -> Iterator[str]:
    """Answer on loopback, at any free port; gives the address. For tests, and for trying things out.

    Args:
        answer: Makes what answers, from its address.
    """
    made: list[Served] = []

    class Handler(BaseHTTPRequestHandler):
        timeout = 10.0

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: headers hold tokens."""

        def do_GET(self) -> None:
            self._answer(b"")

        def do_POST(self) -> None:
            size = int(self.headers.get("Content-Length", 0))
            self._answer(self.rfile.read(min(size, LARGEST_BODY_BYTES + 1)))

        def _answer(self, body: bytes) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, said, content = made[0].handle(self.command, self.path, headers, body)
            self.send_response(status)
            for name, value in {**said, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        made.append(answer(url))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield url
        finally:
            server.shutdown()
            thread.join()


def _decoded(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _said(status: int, words: str) -> Answer:
    return _json(status, {"code": status, "message": words})


def _json(status: int, value: Mapping[str, Any]) -> Answer:
    return _text(status, json.dumps(value))


def _text(status: int, text: str) -> Answer:
    return status, {"Content-Type": "application/json"}, text.encode()
