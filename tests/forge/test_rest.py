"""The door to forges: patience, refusals in words, and a token that nobody sees."""

from __future__ import annotations

import logging
import socket
import threading
import traceback
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from controller.adapters.forge.rest import Call, Rest
from policies.errors import DesiredStateError, OutsideError, RefusedError, SilentError
from policies.terms.secret import Secret
from tests.contracts.certificates import Authority
from tests.forge.recorded import TOKEN, Exchange, Recorded, recorded

GET = Call(method="GET", path="/thing", what="thing 7", needs="the permission to see things")
POST = Call(method="POST", path="/things", what="thing", needs="the permission to make things", body={"name": "a"})


class Asker:
    """A client whose pauses are noted instead of slept, on a clock moved by hand."""

    def __init__(self, server: Recorded) -> None:
        self.paused: list[float] = []
        self.now = 1000.0
        self.rest = Rest(server.url, Secret(TOKEN), sleep=self.paused.append, monotonic=lambda: self.now)


@pytest.fixture
def server() -> Iterator[Recorded]:
    with recorded() as running:
        yield running


@pytest.fixture
def asker(server: Recorded) -> Iterator[Asker]:
    made = Asker(server)
    with closing(made.rest):
        yield made


def test_json_goes_there_and_comes_back(server: Recorded, asker: Asker) -> None:
    server.expect(
        Exchange(ask="GET /thing", answer={"a": [1]}, headers={"X-Some": "y"}),
        Exchange(ask="POST /things", body={"name": "a"}, says={"Content-Type": "application/json"}, status=201, answer={}),
        Exchange(ask="GET /thing", status=204),
    )
    answer = asker.rest.ask(GET)
    assert (answer.value, answer.headers["x-some"]) == ({"a": [1]}, "y")
    assert asker.rest.ask(POST).status == 201
    assert asker.rest.ask(GET).value is None


REFUSALS = {
    "a token that is not valid": (
        401,
        {"message": "Bad credentials"},
        ("401 (Bad credentials)", "valid", "see things", "tokenFrom"),
    ),
    "a token that may not": (403, {"message": "Not you"}, ("403 (Not you)", "the permission to see things", "tokenFrom")),
    "a thing that is hidden": (404, {"error": "404 Not Found"}, ("404 (404 Not Found)", "see things", "to be there")),
    "words in a list": (409, {"message": ["Another one: !5"]}, ('409 (["Another one: !5"])',)),
    "words below": (
        422,
        {"message": "Failed", "errors": [{"message": "no commits"}, {"field": "head", "code": "x"}]},
        ("no commits head: x",),
    ),
    "no JSON at all": (400, b"<html>", ("got 400",)),
    "a token that is said back": (400, {"message": f"what is {TOKEN}?"}, ("what is ***?",)),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_no_is_a_refusal_in_the_forges_words(server: Recorded, asker: Asker, case: str) -> None:
    status, said, words = REFUSALS[case]
    server.expect(Exchange(ask="GET /thing", status=status, answer=said))
    with pytest.raises(RefusedError) as caught:
        asker.rest.ask(GET)
    message = caught.value.message
    assert message.startswith("forge 127.0.0.1:")
    assert [word for word in ("thing 7", *words) if word not in message] == []
    assert TOKEN not in message
    assert asker.paused == []


def test_what_was_refused_is_not_asked_at_every_pass(server: Recorded) -> None:
    now = [1000.0]
    rest = Rest(server.url, Secret(TOKEN), refused_seconds=10.0, monotonic=lambda: now[0])
    with closing(rest):
        refusal = Exchange(ask="GET /thing", status=403, answer={"message": "Not you"})
        server.expect(refusal, Exchange(ask="GET /thing", answer={}))
        for _ in range(5):
            with pytest.raises(RefusedError, match="Not you"):
                rest.ask(GET)
        now[0] += 11
        assert rest.ask(GET).status == 200


def test_who_stumbles_once_is_asked_again(server: Recorded, asker: Asker) -> None:
    server.expect(
        Exchange(ask="GET /thing", status=502),
        Exchange(ask="GET /thing", dies=True),
        Exchange(ask="GET /thing", answer=1),
    )
    assert asker.rest.ask(GET).value == 1
    assert len(asker.paused) == 2
    assert 0 < asker.paused[0] <= 0.5 < 1.0 >= asker.paused[1] > 0


@pytest.mark.parametrize(
    "trouble",
    [Exchange(ask="POST /things", body={"name": "a"}, status=502), Exchange(ask="POST /things", body={"name": "a"}, dies=True)],
)
def test_what_may_have_made_something_is_not_asked_twice(server: Recorded, asker: Asker, trouble: Exchange) -> None:
    server.expect(trouble)
    with pytest.raises(SilentError, match="at try 1"):
        asker.rest.ask(POST)


def test_what_certainly_made_nothing_is_asked_again(server: Recorded, asker: Asker) -> None:
    server.expect(
        Exchange(ask="POST /things", body={"name": "a"}, status=429, headers={"Retry-After": "2"}),
        Exchange(ask="POST /things", body={"name": "a"}, status=201, answer={"id": 1}),
    )
    assert asker.rest.ask(POST).value == {"id": 1}
    assert asker.paused == [2.0]


LIMITS = {
    "GitHub's hourly limit": (
        403,
        {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1800000600", "Date": "Fri, 15 Jan 2027 08:00:00 GMT"},
        600,
    ),
    "GitHub's secondary limit": (403, {"Retry-After": "61"}, 61),
    "GitLab's limit": (429, {"Retry-After": "30", "RateLimit-Remaining": "0"}, 30),
    "a limit that says nothing": (429, {}, 60),
    "a server that is being mended": (503, {"Retry-After": "120"}, 120),
}


@pytest.mark.parametrize("case", LIMITS)
def test_who_wants_to_be_left_alone_is(server: Recorded, asker: Asker, case: str) -> None:
    status, headers, seconds = LIMITS[case]
    server.expect(Exchange(ask="GET /thing", status=status, headers=headers, answer={"message": "slow down"}))
    with pytest.raises(SilentError) as caught:
        asker.rest.ask(GET)
    assert caught.value.reason == "ForgeRateLimit"
    assert f"{seconds} s" in caught.value.message
    asked = server.asked
    asker.now += seconds - 1
    with pytest.raises(SilentError, match="not asked for 1 s more"):
        asker.rest.ask(POST)
    assert server.asked == asked
    asker.now += 2
    server.expect(Exchange(ask="GET /thing", answer=1))
    assert asker.rest.ask(GET).value == 1
    assert asker.paused == []


def test_a_forge_that_is_not_there_is_silent_longer_and_longer(asker: Asker, server: Recorded) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        gone = Rest(
            f"http://127.0.0.1:{probe.getsockname()[1]}", Secret(TOKEN), sleep=asker.paused.append, monotonic=lambda: asker.now
        )
    with closing(gone):
        for seconds in (0.5, 1.0, 2.0):
            with pytest.raises(SilentError, match="connection refused at try 3"):
                gone.ask(POST)
            with pytest.raises(SilentError, match="not asked for"):
                gone.ask(POST)
            asker.now += seconds + 0.01
    assert len(asker.paused) == 6


def test_a_list_is_read_page_by_page_as_far_as_somebody_reads(server: Recorded, asker: Asker) -> None:
    more = {"Link": '<{url}/thing?page=2>; rel="next", <{url}/thing?page=9>; rel="last"'}
    server.expect(
        Exchange(ask="GET /thing?per_page=2&page=1", answer=[1, 2], headers=more),
        Exchange(ask="GET /thing?per_page=2&page=2", answer=[3, 4], headers=more),
    )
    pages = asker.rest.pages(GET, items=2)
    assert [next(pages) for _ in range(3)] == [1, 2, 3]
    server.expect(
        Exchange(ask="GET /thing?limit=2&page=1", answer=[1, 2], headers={"X-Total-Count": "3"}),
        Exchange(ask="GET /thing?limit=2&page=2", answer=[3], headers={"X-Total-Count": "3"}),
        Exchange(ask="GET /thing?limit=2&page=1", answer=[1, 2]),
        Exchange(ask="GET /thing?limit=2&page=2", answer=[]),
        Exchange(ask="GET /thing?limit=2&page=1", answer=[1, 2], headers={"Link": '<{url}/thing?page=1>; rel="last"'}),
        Exchange(ask="GET /thing?limit=2&page=1", answer={"a": 1}),
    )
    assert list(asker.rest.pages(GET, limit_name="limit", items=2)) == [1, 2, 3]
    assert list(asker.rest.pages(GET, limit_name="limit", items=2)) == [1, 2]
    assert list(asker.rest.pages(GET, limit_name="limit", items=2)) == [1, 2]
    with pytest.raises(RefusedError, match="expected a list"):
        list(asker.rest.pages(GET, limit_name="limit", items=2))


def test_the_token_goes_to_one_host(server: Recorded, asker: Asker) -> None:
    server.expect(
        Exchange(ask="GET /thing", status=301, headers={"Location": "{url}/repositories/1/thing"}),
        Exchange(ask="GET /repositories/1/thing", answer=1),
        Exchange(ask="GET /thing", status=301, headers={"Location": "http://127.0.0.2:1/thing?secret=x"}),
    )
    assert asker.rest.ask(GET).value == 1
    with pytest.raises(RefusedError, match=r"got sent on to http://127\.0\.0\.2; set spec\.writeBack\.forge\.url"):
        asker.rest.ask(GET)


def test_a_forge_that_is_none_is_said_to_be(server: Recorded, asker: Asker) -> None:
    server.expect(Exchange(ask="GET /thing", answer=b"<!doctype html>"))
    with pytest.raises(RefusedError, match=r"expected JSON, got something else; look at spec\.writeBack\.forge\.type"):
        asker.rest.ask(GET)
    with pytest.raises(RefusedError, match="as its API promises"), asker.rest.reading("thing"):
        raise KeyError("a secret part of the answer")


def test_the_token_is_in_no_error_and_no_log(server: Recorded, asker: Asker, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.DEBUG if name == "httpx" else logging.INFO)
    server.expect(
        Exchange(ask="GET /thing", status=401, answer={"message": f"{TOKEN} is no good"}),
        Exchange(ask="GET /thing", answer=b"{"),
        Exchange(ask="POST /things", body={"name": "a"}, dies=True),
        Exchange(ask="GET /thing", status=403, headers={"Retry-After": "100"}, answer={"message": TOKEN}),
    )
    told = []
    for call in (GET, GET, POST, GET):
        with pytest.raises(OutsideError) as caught:
            asker.rest.ask(call)
        asker.now += 10
        told.append("".join(traceback.format_exception(caught.value)))
    assert [text for text in told if TOKEN in text] == []
    assert TOKEN not in caplog.text
    assert TOKEN not in repr(asker.rest.__dict__)


@pytest.mark.parametrize("token", ["a b", "a\nb: c", "ä"])
def test_a_token_that_no_header_can_hold_is_not_told(token: str) -> None:
    with pytest.raises(DesiredStateError) as caught:
        Rest("http://127.0.0.1:1", Secret(token))
    assert token not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("proxy", ["socks5://user:hunter2@127.0.0.1:1", "gopher://user:hunter2@127.0.0.1:1"])
def test_a_proxy_that_is_none_is_said_to_be_without_its_password(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(RefusedError, match="HTTPS_PROXY") as caught:
        Rest("http://git.example.com", Secret(TOKEN))
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def test_proxies_of_the_environment_are_used(server: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", server.url)
    monkeypatch.setenv("NO_PROXY", "")
    server.expect(Exchange(ask="GET http://git.example.com/thing", answer=1))
    with closing(Rest("http://git.example.com", Secret(TOKEN))) as rest:
        assert rest.ask(GET).value == 1


def test_a_token_from_a_file_may_end_in_a_new_line(server: Recorded) -> None:
    server.expect(Exchange(ask="GET /thing", answer=1))
    with closing(Rest(server.url, Secret(f"{TOKEN}\n"))) as rest:
        assert rest.ask(GET).value == 1


class Secure(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "13")
        self.end_headers()
        self.wfile.write(b'{"tls": true}')

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def tls_server(authority: Authority) -> Iterator[str]:
    """The URL of a server whose certificate that authority signed."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Secure)
    # Whoever does not trust us goes away in the middle of the handshake.
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    server.socket = authority.context().wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"https://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def test_certificates_of_a_private_authority_are_honoured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = Authority(tmp_path)
    with tls_server(authority) as url:
        stranger = Rest(url, Secret(TOKEN), sleep=lambda _: None)
        with closing(stranger), pytest.raises(RefusedError, match="SSL_CERT_FILE") as caught:
            stranger.ask(GET)
        assert caught.value.reason == "ForgeCertificate"
        with closing(Rest(url, Secret(TOKEN), ca=authority.pem)) as rest:
            assert rest.ask(GET).value == {"tls": True}
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
        with closing(Rest(url, Secret(TOKEN))) as rest:
            assert rest.ask(GET).value == {"tls": True}


def test_plain_http_where_tls_is_expected_is_said_to_be(server: Recorded) -> None:
    rest = Rest(server.url.replace("http://", "https://"), Secret(TOKEN), sleep=lambda _: None)
    with closing(rest), pytest.raises(RefusedError, match="expected TLS, got something else"):
        rest.ask(GET)
