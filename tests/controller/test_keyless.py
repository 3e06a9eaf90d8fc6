"""Key-less signing through sigstore-python, at an instance that is served over HTTP, and verifying without one."""

from __future__ import annotations

import base64
import json
import logging
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from controller.adapters.clock import SystemClock
from controller.adapters.sigstore.authority import Authority
from controller.adapters.sigstore.embedded import Embedded, identity_of
from controller.adapters.sigstore.keyless import (
    LARGEST_BUNDLE_BYTES,
    Keyless,
    KeylessRoot,
    check_config,
    keyless_root,
    signer_of,
    token_in,
    trusted_root_of,
    verify_statement,
)
from controller.adapters.sigstore.leaves import MemoryLeaves
from controller.adapters.sigstore.served import Served, serve
from controller.adapters.sigstore.tokens import Tokens
from policies.errors import ControllerError, RefusedError, SilentError, TrustError
from policies.terms.secret import Secret
from tests.fakes.tokens import IDENTITY, ISSUER, Issuer

NOW = SystemClock().now()
CLUSTER, STRANGER = Issuer(), Issuer()
STATEMENT = b"""{
  "_type": "https://in-toto.io/Statement/v1",
  "subject": [{"name": "registry/shop", "digest": {"sha256": "%s"}}],
  "predicateType": "https://slsa.dev/provenance/v1",   "predicate": {"z": 1, "a": "\xc3\xbc"}
}""" % (b"ab" * 32)
DATA = b"an artifact"


def instance(seed: str = "01") -> Embedded:
    return Embedded(Authority(Secret(seed * 32), NOW - timedelta(days=30)), MemoryLeaves(), identity=identity_of("ml", "shop"))


class Site:
    """An instance that is served, and what asks it for signatures."""

    def __init__(self, embedded: Embedded, url: str) -> None:
        self.embedded, self.url, self.config = embedded, url, embedded.trust_config(url)
        self.asked = 0

    def token(self) -> str:
        self.asked += 1
        return CLUSTER.token()

    def signer(self, **more: Any) -> Keyless:
        return Keyless(self.config, self.token, **more)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    made = instance()
    with serve(lambda url: Served(made, Tokens(ISSUER, CLUSTER.keys), url=url)) as url:
        yield Site(made, url)


@pytest.fixture(scope="module")
def bundle(site: Site) -> bytes:
    return site.signer().sign_statement(STATEMENT)


def test_a_statement_is_signed_byte_for_byte_and_verified_by_its_root_alone(site: Site, bundle: bytes) -> None:
    held = json.loads(bundle)
    assert base64.b64decode(held["dsseEnvelope"]["payload"]) == STATEMENT
    assert held["mediaType"] == "application/vnd.dev.sigstore.bundle.v0.3+json"
    assert verify_statement(bundle, trusted_root_of(site.config), IDENTITY, ISSUER) == STATEMENT
    assert verify_statement(bundle, site.config, IDENTITY, ISSUER) == STATEMENT
    assert signer_of(bundle) == (IDENTITY, ISSUER)


def test_an_artifact_is_signed_by_its_digest(site: Site) -> None:
    made = site.signer().sign_artifact(DATA)
    assert made["verificationMaterial"]["tlogEntries"][0]["kindVersion"]["kind"] == "hashedrekord"
    raw = json.dumps(made).encode()
    keyless_root(site.config).verify_artifact(raw, DATA, IDENTITY, ISSUER)
    with pytest.raises(TrustError, match="digest"):
        keyless_root(site.config).verify_artifact(raw, DATA + b" ", IDENTITY, ISSUER)


def test_one_certificate_serves_until_its_last_minute(site: Site) -> None:
    hand = [SystemClock().now()]
    signer, before = site.signer(now=lambda: hand[0]), site.asked
    assert signer.identity == (IDENTITY, ISSUER)
    first = signer.sign_artifact(DATA)
    hand[0] += timedelta(minutes=8)
    second = signer.sign_artifact(b"another")
    assert site.asked == before + 1
    hand[0] += timedelta(minutes=1, seconds=1)
    third = signer.sign_artifact(b"a third")
    assert site.asked == before + 2
    used = [item["verificationMaterial"]["certificate"]["rawBytes"] for item in (first, second, third)]
    assert used[0] == used[1] != used[2]


def test_threads_that_sign_at_once_share_a_certificate(site: Site) -> None:
    signer, before, made = site.signer(), site.asked, []
    threads = [threading.Thread(target=lambda: made.append(signer.sign_statement(STATEMENT))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 4
    assert site.asked == before + 1
    places = {json.loads(item)["verificationMaterial"]["tlogEntries"][0]["logIndex"] for item in made}
    assert len(places) == 4


def test_a_file_with_a_token_is_read_anew_each_time(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "token"
    with pytest.raises(RefusedError, match=r"token: expected an identity token, got No such file"):
        Keyless(site.config, token_in(path)).sign_artifact(DATA)
    path.write_text(CLUSTER.token() + "\n")
    assert Keyless(site.config, token_in(path)).identity == (IDENTITY, ISSUER)


# What cannot be signed


@pytest.fixture
def odd() -> Iterator[Callable[[int, bytes], str]]:
    """Servers that give everybody one answer."""
    servers: list[ThreadingHTTPServer] = []

    def make(status: int, body: bytes) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield make
    for server in servers:
        server.shutdown()
        server.server_close()


NOBODY = "http://127.0.0.1:9"
Trial = tuple[Callable[[Site, Callable[[int, bytes], str]], Keyless], type[ControllerError], str]
REFUSALS: dict[str, Trial] = {
    "nobody is where Fulcio should be": (
        lambda site, _: Keyless(site.embedded.trust_config(NOBODY, site.url), site.token),
        SilentError,
        "certificate authority at 127.0.0.1:9: expected an answer",
    ),
    "nobody is where Rekor should be": (
        lambda site, _: Keyless(site.embedded.trust_config(site.url, NOBODY), site.token),
        SilentError,
        "transparency log at 127.0.0.1:9: expected an answer",
    ),
    "Fulcio has a bad day": (
        lambda site, odd: Keyless(site.embedded.trust_config(odd(502, b"<html>"), site.url), site.token),
        SilentError,
        "got HTTP 502",
    ),
    "Rekor has a bad day": (
        lambda site, odd: Keyless(site.embedded.trust_config(site.url, odd(503, b"{}")), site.token),
        SilentError,
        "got HTTP 503",
    ),
    "Rekor takes no more": (
        lambda site, odd: Keyless(site.embedded.trust_config(site.url, odd(403, b"{}")), site.token),
        RefusedError,
        "got HTTP 403; 127.0.0.1:",
    ),
    "Fulcio has another idea of an answer": (
        lambda site, odd: Keyless(site.embedded.trust_config(odd(200, b"{}"), site.url), site.token),
        RefusedError,
        "expected an answer that can be read",
    ),
    "there is no token": (lambda site, _: Keyless(site.config, lambda: ""), RefusedError, "got none or one that has ended; give"),
    "the token is none": (lambda site, _: Keyless(site.config, lambda: "a.b.c"), RefusedError, "identity token: expected one"),
    "the token has ended": (
        lambda site, _: Keyless(site.config, lambda: CLUSTER.token(exp=int(NOW.timestamp()) - 60)),
        RefusedError,
        "or one that has ended; give an identity token for the audience `sigstore`",
    ),
    "the token is for others": (
        lambda site, _: Keyless(site.config, lambda: CLUSTER.token(aud="vault")),
        RefusedError,
        "got none",
    ),
    "somebody else signed the token": (
        lambda site, _: Keyless(site.config, STRANGER.token),
        RefusedError,
        "expected to be served, got HTTP 401; give an identity token",
    ),
    "a token would be sent for all to read": (
        lambda site, _: Keyless(site.embedded.trust_config("http://fulcio.example"), site.token),
        RefusedError,
        "fulcio.example: expected an https address",
    ),
    "another authority answers": (
        lambda site, _: Keyless(instance("02").trust_config(site.url), site.token),
        TrustError,
        "vouches for",
    ),
    "the configuration is none": (lambda site, _: Keyless("{}", site.token), TrustError, "expected a client trust configuration"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_signed_says_why_and_shows_no_token(
    case: str, site: Site, odd: Callable[[int, bytes], str], caplog: pytest.LogCaptureFixture
) -> None:
    make, kind, words = REFUSALS[case]
    shown: list[str] = []
    signer = make(site, odd)
    inner = signer._token
    signer._token = lambda: shown.append(inner()) or shown[-1]  # type: ignore[func-returns-value]
    with caplog.at_level(logging.DEBUG), pytest.raises(kind) as caught:
        signer.sign_artifact(DATA)
    assert words in caught.value.message
    # Its parts, as a token's claims alone would tell enough; what is short may be anywhere by chance.
    secrets = [part for token in shown for part in token.split(".") if len(part) > 8]
    said = caplog.text + repr(caught.value) + repr(signer)
    assert not [part for part in secrets if part in said]


def test_what_is_no_statement_is_not_signed(site: Site) -> None:
    before = site.embedded.log.head()[0]
    with pytest.raises(TrustError, match="expected an in-toto statement"):
        site.signer().sign_statement(b'{"_type": "https://in-toto.io/Statement/v1"}')
    assert site.embedded.log.head()[0] == before


def test_a_log_that_answers_nonsense_is_found_out_before_anybody_is_given_it(site: Site) -> None:
    honest = site.embedded.log

    class Lying:
        """Proves another entry than the one that it was given."""

        def __getattr__(self, name: str) -> Any:
            return getattr(honest, name)

        def add(self, bodies: list[bytes]) -> Any:
            return (honest.at(0),)

    liar = instance()
    liar.log = Lying()  # type: ignore[assignment]
    with (
        serve(lambda url: Served(liar, Tokens(ISSUER, CLUSTER.keys), url=url)) as url,
        pytest.raises(TrustError, match="what was just signed"),
    ):
        Keyless(site.embedded.trust_config(url), site.token).sign_artifact(DATA)


# What does not verify


def changed(raw: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    held = json.loads(raw)
    change(held)
    return json.dumps(held).encode()


def entry(held: dict[str, Any]) -> dict[str, Any]:
    return dict.__getitem__(held["verificationMaterial"], "tlogEntries")[0]  # type: ignore[no-any-return]


def flipped(text: str, at: int = 40) -> str:
    data = bytearray(base64.b64decode(text))
    data[at] ^= 1
    return base64.b64encode(bytes(data)).decode()


def resigned(held: dict[str, Any]) -> None:
    """The same envelope for another kind of payload."""
    held["dsseEnvelope"]["payloadType"] = "text/plain"


SPOILED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a byte of the payload": (
        lambda b: b["dsseEnvelope"].update(payload=flipped(b["dsseEnvelope"]["payload"])),
        "invalid signature",
    ),
    "the signature": (
        lambda b: b["dsseEnvelope"]["signatures"][0].update(sig=flipped(b["dsseEnvelope"]["signatures"][0]["sig"])),
        "invalid signature",
    ),
    "the kind of payload": (resigned, "invalid signature"),
    "the certificate": (
        lambda b: b["verificationMaterial"]["certificate"].update(
            rawBytes=flipped(b["verificationMaterial"]["certificate"]["rawBytes"], -10)
        ),
        "certificate chain",
    ),
    "no proof of inclusion": (lambda b: entry(b).pop("inclusionProof"), "inclusionProof"),
    "no promise, so no time": (lambda b: entry(b).pop("inclusionPromise"), "inclusion promise"),
    "another time": (lambda b: entry(b).update(integratedTime=str(int(entry(b)["integratedTime"]) + 1)), "inclusion promise"),
    "a time after the certificate": (
        lambda b: entry(b).update(integratedTime=str(int(entry(b)["integratedTime"]) + 3600)),
        "certificate chain",
    ),
    "another place": (lambda b: entry(b).update(logIndex="5"), "inclusion promise"),
    "another entry": (lambda b: entry(b).update(canonicalizedBody=flipped(entry(b)["canonicalizedBody"])), "inclusion proof"),
    "another root of the tree": (
        lambda b: entry(b)["inclusionProof"].update(rootHash=flipped(entry(b)["inclusionProof"]["rootHash"], 3)),
        "root",
    ),
    "another checkpoint": (
        lambda b: entry(b)["inclusionProof"]["checkpoint"].update(
            envelope=entry(b)["inclusionProof"]["checkpoint"]["envelope"].replace("\n", "1\n", 1)
        ),
        "checkpoint",
    ),
    "no log entry": (lambda b: b["verificationMaterial"].update(tlogEntries=[]), "log entry"),
    "two log entries": (lambda b: b["verificationMaterial"].update(tlogEntries=[entry(b)] * 2), "log entry"),
    "no certificate but a key": (lambda b: b["verificationMaterial"].update(publicKey={"hint": "x"}), "bundle"),
    "no envelope": (lambda b: b.pop("dsseEnvelope"), "bundle"),
}


@pytest.mark.parametrize("what", SPOILED)
def test_a_bundle_with_one_thing_changed_does_not_verify(what: str, site: Site, bundle: bytes) -> None:
    change, words = SPOILED[what]
    with pytest.raises(TrustError) as caught:
        verify_statement(changed(bundle, change), site.config, IDENTITY, ISSUER)
    assert words in caught.value.message
    assert caught.value.reason == "NotSigned"


OTHERS: dict[str, tuple[Callable[[Site, bytes], object], str]] = {
    "another identity": (lambda site, b: verify_statement(b, site.config, IDENTITY + "x", ISSUER), "do not match"),
    "a part of the identity": (lambda site, b: verify_statement(b, site.config, IDENTITY[:-1], ISSUER), "do not match"),
    "another issuer": (lambda site, b: verify_statement(b, site.config, IDENTITY, "https://accounts.example"), "policies"),
    "no identity": (lambda site, b: verify_statement(b, site.config, "", ISSUER), "name both"),
    "no issuer": (lambda site, b: verify_statement(b, site.config, IDENTITY, ""), "name both"),
    "another root": (lambda _, b: verify_statement(b, instance("02").trusted_root(), IDENTITY, ISSUER), "certificate chain"),
    "the public good instance": (lambda _, b: verify_statement(b, "", IDENTITY, ISSUER), "certificate chain"),
    "nothing": (lambda site, _: verify_statement(b"", site.config, IDENTITY, ISSUER), "bundle"),
    "a list": (lambda site, _: verify_statement(b"[]", site.config, IDENTITY, ISSUER), "bundle"),
    "too much": (
        lambda site, _: verify_statement(b" " * (LARGEST_BUNDLE_BYTES + 1), site.config, IDENTITY, ISSUER),
        "more than",
    ),
    "a root that is none": (lambda _, b: verify_statement(b, '{"mediaType": "x"}', IDENTITY, ISSUER), "trusted root"),
    "an artifact's bundle": (
        lambda site, _: verify_statement(
            json.dumps(site.embedded.sign_artifact(DATA)).encode(), site.config, *site.embedded.identity
        ),
        "envelope",
    ),
}


@pytest.mark.parametrize("what", OTHERS)
def test_what_was_not_signed_by_them_does_not_verify(what: str, site: Site, bundle: bytes) -> None:
    act, words = OTHERS[what]
    with pytest.raises(TrustError) as caught:
        act(site, bundle)
    assert words in caught.value.message


def test_verifying_asks_nobody_and_is_quick(site: Site, bundle: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    held = KeylessRoot(site.config)
    held.verify_statement(bundle, IDENTITY, ISSUER)

    def no_network(*_: object) -> None:
        raise AssertionError("it asked somebody")

    monkeypatch.setattr("socket.socket.connect", no_network)
    took = []
    for _ in range(30):
        started = time.perf_counter()
        held.verify_statement(bundle, IDENTITY, ISSUER)
        took.append(time.perf_counter() - started)
    print(f"verify_statement: {statistics.median(took) * 1000:.2f} ms")
    assert min(took) < 0.004


# Configurations


def test_a_configuration_is_seen_to_be_one_before_it_is_used(site: Site) -> None:
    check_config("")
    check_config(site.config)
    assert json.loads(trusted_root_of(site.config)) == json.loads(site.embedded.trusted_root())
    assert trusted_root_of("") == ""
    later = datetime(2999, 1, 1, tzinfo=UTC).isoformat()

    def spoil(change: Callable[[dict[str, Any]], object]) -> str:
        return changed(site.config.encode(), change).decode()

    for bad in (
        "{",
        "[]",
        spoil(lambda c: c.pop("trustedRoot")),
        spoil(lambda c: c.pop("signingConfig")),
        spoil(lambda c: c["signingConfig"].update(caUrls=[])),
        spoil(lambda c: c["signingConfig"]["rekorTlogUrls"][0].update(majorApiVersion=9)),
        spoil(lambda c: c["signingConfig"]["caUrls"][0]["validFor"].update(start=later)),
        spoil(lambda c: c["trustedRoot"].update(certificateAuthorities=[])),
    ):
        with pytest.raises(TrustError, match="expected a client trust configuration as JSON, got another"):
            check_config(bad)
