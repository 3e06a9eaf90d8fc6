"""Who is let in to a registry and how: secrets, Docker configurations, closed doors, TLS, tokens and proxies."""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from controller.adapters.oci.layout import EMPTY, INDEX, MANIFEST
from controller.adapters.oci.proxies import proxy_for
from controller.adapters.oci.registry import Access, Registry, access_from_docker_config
from controller.adapters.oci.wire import Wire
from policies.canonical import canonical
from policies.errors import DesiredStateError, RefusedError, SilentError, TrustError
from policies.terms.digest import digest_of
from policies.terms.secret import NO_SECRET, Secret
from tests.contracts.certificates import Authority
from tests.contracts.registry_server import Said, gateway, registry_server, why_no_registry
from tests.contracts.registry_tokens import tls, token_server
from tests.controller.registry_line import DATA, DIGEST, PASSWORD, Line, auth, said

needs_registry = pytest.mark.skipif(bool(why_no_registry()), reason=why_no_registry())
HOST = "registry.test:5000"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def line() -> Iterator[Line]:
    made = Line()
    yield made
    made.close()


# What a secret shows


def test_a_secret_shows_itself_to_nobody_by_accident() -> None:
    secret = Secret(PASSWORD)
    access = Access(repository=f"{HOST}/x", username="robot", password=secret)
    for text in (
        repr(secret),
        str(secret),
        f"{secret}",
        f"{secret:>40}",
        f"{secret} {secret!r}",
        repr(access),
        f"{[access]}",
    ):
        assert PASSWORD not in text
    for copied in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError):
            copied(secret)
    with pytest.raises(TypeError):
        json.dumps({"password": secret})
    assert secret.reveal() == PASSWORD
    assert (secret == Secret(PASSWORD), secret == Secret("other"), secret == PASSWORD) == (True, False, False)
    assert len({secret, Secret(PASSWORD)}) == 1
    assert bool(secret)
    assert not NO_SECRET


# What a Docker configuration says


FITTING = {
    "as kubectl writes it": {HOST: {"username": "robot", "password": PASSWORD, "email": "", "auth": auth(f"robot:{PASSWORD}")}},
    "as docker writes it": {HOST: {"auth": auth(f"robot:{PASSWORD}")}},
    "without auth": {HOST: {"username": "robot", "password": PASSWORD}},
    "as a URL": {f"https://{HOST}/v1/": {"auth": auth(f"robot:{PASSWORD}")}},
    "for the path alone": {
        HOST: {"auth": auth("other:one")},
        f"{HOST}/team": {"auth": auth(f"robot:{PASSWORD}")},
        f"{HOST}/teams": {"auth": auth("other:two")},
    },
}


@pytest.mark.parametrize("sentence", FITTING)
def test_credentials_are_found(sentence: str) -> None:
    text = json.dumps({"auths": {"other.test": {"auth": "x"}, **FITTING[sentence]}})
    access = access_from_docker_config(text, f"{HOST}/team/digits", origin="Secret a/b", unsafe_plain_http=True, ca="PEM")
    assert (access.username, access.password.reveal()) == ("robot", PASSWORD)
    assert (access.repository, access.origin, access.unsafe_plain_http, access.ca) == (
        f"{HOST}/team/digits",
        "Secret a/b",
        True,
        "PEM",
    )
    assert (access.host, access.path) == (HOST, "team/digits")


def test_a_password_may_hold_any_character() -> None:
    for password in ("with:colon", "ünïcode", " ", '"}'):
        for entry in ({"auth": auth(f"u:{password}")}, {"username": "u", "password": password}):
            text = json.dumps({"auths": {HOST: entry}})
            assert access_from_docker_config(text, f"{HOST}/x").password.reveal() == password


def only(**entry: Any) -> str:
    return json.dumps({"auths": {HOST: entry}})


NO_MAPPING = 'expected a mapping {"auths": {host: …}}'
NO_ENTRY = f'expected auths."{HOST}", got entries for'
NO_FIELD = f'auths."{HOST}": expected auth, or username and password;'
NO_AUTH = f'auths."{HOST}".auth: expected base64 of username:password'
MISSING = {
    "no JSON": ("{nope " + PASSWORD, "expected JSON, got something else at line 1 column 2"),
    "empty": ("", "expected JSON, got something else at line 1 column 1"),
    "no auths": (json.dumps({"credsStore": "desktop"}), NO_MAPPING),
    "auths as a list": (json.dumps({"auths": [PASSWORD]}), NO_MAPPING),
    "an entry that is text": (json.dumps({"auths": {HOST: PASSWORD}}), NO_MAPPING),
    "a list": ("[1]", NO_MAPPING),
    "no host": (json.dumps({"auths": {}}), f"{NO_ENTRY} none"),
    "another host": (json.dumps({"auths": {"https://b.test/v2/": {}, "a.test": {}}}), f"{NO_ENTRY} a.test, b.test"),
    "another port": (json.dumps({"auths": {"registry.test": {}}}), f"{NO_ENTRY} registry.test"),
    "an empty entry": (only(), f"{NO_FIELD} username is missing"),
    "no password": (only(username="u"), f"{NO_FIELD} password is missing"),
    "an empty password": (only(username="u", password=""), f"{NO_FIELD} password is missing"),
    "a password that is no text": (only(username="u", password=5), f"{NO_FIELD} password is missing"),
    "auth that is no base64": (only(auth=PASSWORD + "!"), NO_AUTH),
    "auth without a colon": (only(auth=auth(PASSWORD)), NO_AUTH),
    "auth without a user": (only(auth=auth(":" + PASSWORD)), NO_AUTH),
    "auth without a password": (only(auth=auth("u:")), NO_AUTH),
    "auth that is no text": (only(auth="/w=="), NO_AUTH),
}


@pytest.mark.parametrize("sentence", MISSING)
def test_what_is_missing_is_named_and_no_secret_is(sentence: str) -> None:
    text, words = MISSING[sentence]
    with pytest.raises(DesiredStateError) as caught:
        access_from_docker_config(text, f"{HOST}/team/digits", origin="Secret a/b")
    assert words in caught.value.message
    assert caught.value.message.startswith("Secret a/b: ")
    assert caught.value.__cause__ is None
    assert caught.value.reason == "BadSecret"
    assert PASSWORD not in caught.value.message
    assert auth(PASSWORD) not in caught.value.message


@pytest.mark.parametrize(
    "repository",
    [
        "",
        "digits",
        "host/",
        "/digits",
        "https://host/digits",
        "host/digits:tag",
        "host/Digits",
        "host/a//b",
        "host/digits@sha256:00",
        "ho st/x",
    ],
)
def test_what_is_no_repository_is_said(repository: str) -> None:
    with pytest.raises(DesiredStateError, match="expected a repository as host"):
        Access(repository=repository)


def test_what_is_no_certificate_is_said() -> None:
    with pytest.raises(DesiredStateError, match=r"ca of registry\.test:5000/x: expected certificates in PEM"):
        Registry(Access(repository=f"{HOST}/x", ca="nonsense"))


# Closed doors


@pytest.mark.parametrize("status", [401, 403, 405])
def test_who_is_not_let_in_is_told_which_secret_to_look_at(line: Line, status: int, tmp_path: Path) -> None:
    body = said("DENIED", f"not you,\n robot with {PASSWORD}")
    line.gateway.tell(Said(status=status, body=body, headers={"WWW-Authenticate": 'Basic realm="x"'}), times=20)
    (tmp_path / "blob").write_bytes(DATA)
    asks: list[Callable[[], object]] = [
        lambda: line.registry.manifest("v1"),
        lambda: line.registry.put_manifest(b"{}", "v1"),
        lambda: line.registry.put_blob(tmp_path / "blob", DIGEST),
        line.fetched,
    ]
    for ask in asks:
        with pytest.raises(RefusedError) as caught:
            ask()
        assert caught.value.reason == "RegistryRefused"
        assert f"got {status}" in caught.value.message
        assert "as user 'robot'; look at Secret team-a/registry-push" in caught.value.message
        assert PASSWORD not in caught.value.message
    assert "DENIED not you, robot with ***" in caught.value.message
    assert line.pauses == []


def test_who_has_no_secret_is_told_so(line: Line) -> None:
    registry = Registry(replace(line.access, username="", password=NO_SECRET))
    line.gateway.tell(Said(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'}))
    with pytest.raises(RefusedError, match="as nobody; name a user in Secret team-a/registry-push"):
        registry.manifest("v1")
    registry.close()


def test_what_is_refused_for_another_reason_says_it(line: Line) -> None:
    line.gateway.tell(Said(status=400, body=said("MANIFEST_INVALID", "no such layer")))
    with pytest.raises(RefusedError, match=r"manifest v1: got 400 \(MANIFEST_INVALID no such layer\)$"):
        line.registry.put_manifest(b"{}", "v1")
    line.gateway.tell(Said(status=413, body=b"<html>" + b"x" * 10_000))
    with pytest.raises(RefusedError, match=r"got 413$"):
        line.registry.put_manifest(b"{}", "v1")


def test_the_password_goes_to_no_other_host(line: Line) -> None:
    with gateway() as storage:
        storage.tell(Said(body=DATA))
        line.gateway.tell(Said(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'}))
        line.gateway.tell(Said(status=307, headers={"Location": f"http://{storage.address}/bucket/x?signature=1"}))
        assert line.fetched() == DATA
        assert "authorization" not in storage.headers[0]
        assert line.gateway.headers[-1]["authorization"] == "Basic " + auth(f"robot:{PASSWORD}")
        line.gateway.tell(Said(status=307, headers={"Location": f"http://{line.gateway.address}/round"}), times=9)
        with pytest.raises(RefusedError, match="sent us on more than 5 times"):
            line.fetched()
        line.gateway.answers.clear()
        line.gateway.tell(Said(status=202, headers={"Location": f"http://{storage.address}/upload?state=1"}), method="POST")
        assert not line.registry.mount_blob(DIGEST, "other")
        assert storage.asked[-1] == "DELETE /upload?state=1 404"
        assert "authorization" not in storage.headers[-1]


def test_a_token_is_fetched_once_and_again_when_it_is_old(line: Line) -> None:
    realm = f"http://{line.gateway.address}/token"
    challenge = {"WWW-Authenticate": f'Bearer realm="{realm}",service="reg",scope="repository:team/digits:pull,push"'}
    for number, field in enumerate(("token", "access_token")):
        line.gateway.tell(Said(status=401, headers=challenge), path="/v2/")
        line.gateway.tell(Said(body=json.dumps({field: f"t{number}"}).encode()), path="/token")
        for _ in range(3):
            assert line.registry.manifest("v1") is None
    asked = [text for text in line.gateway.asked if "/token" in text]
    assert asked == ["GET /token?service=reg&scope=repository%3Ateam%2Fdigits%3Apull%2Cpush 200"] * 2
    sent = [headers.get("authorization", "") for headers in line.gateway.headers]
    basic = "Basic " + auth(f"robot:{PASSWORD}")
    assert sent == ["", basic, "Bearer t0", "Bearer t0", "Bearer t0", "Bearer t0", basic, "Bearer t1", "Bearer t1", "Bearer t1"]


def test_a_token_that_does_not_open_is_not_fetched_for_ever(line: Line) -> None:
    realm = f"http://{line.gateway.address}/token"
    for _ in range(9):
        line.gateway.tell(Said(status=401, headers={"WWW-Authenticate": f'Bearer realm="{realm}"'}), path="/v2/")
        line.gateway.tell(Said(body=b'{"token": "the-very-token"}'), path="/token")
    with pytest.raises(RefusedError, match="look at Secret team-a/registry-push") as caught:
        line.registry.manifest("v1")
    assert len(line.gateway.asked) < 8
    assert "the-very-token" not in caught.value.message


def test_a_token_server_that_says_no_or_nonsense_is_named(line: Line) -> None:
    realm = f"http://{line.gateway.address}/token?x=1"
    challenge = Said(status=401, headers={"WWW-Authenticate": f'Bearer realm="{realm}"'})
    for body, status, words in (
        (said("UNAUTHORIZED", f"bad {PASSWORD}"), 401, "look at Secret team-a/registry-push"),
        (b"<html>", 200, "gave no token, but something else"),
        (b"[]", 200, "gave no token, but something else"),
        (b"{}", 200, "gave no token, but something else"),
    ):
        line.gateway.tell(challenge, path="/v2/")
        line.gateway.tell(Said(status=status, body=body), path="/token")
        with pytest.raises(RefusedError, match=words) as caught:
            line.registry.manifest("v1")
        assert PASSWORD not in caught.value.message
        assert caught.value.reason == "RegistryRefused"


def test_a_registry_that_lists_referrers_itself_needs_no_index(line: Line) -> None:
    subject, manifest = digest_of(b"image"), canonical({"mediaType": MANIFEST, "config": {"mediaType": EMPTY}})
    line.gateway.tell(Said(status=201, headers={"OCI-Subject": subject}), method="PUT")
    line.registry.attach(subject, manifest)
    assert len(line.gateway.asked) == 1
    pages = [canonical({"manifests": [{"digest": digest_of(text)}]}) for text in (b"a", b"b")]
    further = f'</v2/team/digits/referrers/{subject}?last=x>; rel="next"'
    line.gateway.tell(Said(body=pages[0], headers={"Content-Type": INDEX, "Link": further}))
    line.gateway.tell(Said(body=pages[1], headers={"Content-Type": INDEX}))
    assert [item["digest"] for item in line.registry.referrers(subject)] == [digest_of(b"a"), digest_of(b"b")]
    assert line.gateway.asked[-1] == f"GET /v2/team/digits/referrers/{subject}?last=x 200"


@pytest.mark.parametrize("body", [b"", b"nonsense", b"[]", b'{"manifests": null}', b'{"manifests": ["x", 5]}'])
def test_an_index_of_nonsense_lists_nothing(line: Line, body: bytes) -> None:
    line.gateway.tell(Said(status=404))
    line.gateway.tell(Said(body=body))
    assert line.registry.referrers(digest_of(b"image")) == []


def test_a_registry_that_keeps_other_bytes_is_not_trusted(line: Line) -> None:
    line.gateway.tell(Said(status=201, headers={"Docker-Content-Digest": DIGEST}))
    with pytest.raises(TrustError, match=f"manifest v1: expected .* to keep these bytes, it kept {DIGEST}"):
        line.registry.put_manifest(b"{}", "v1")


def test_a_registry_that_names_no_digest_is_asked_for_the_bytes(line: Line) -> None:
    line.gateway.tell(Said(body=DATA), times=2)
    assert line.registry.resolve("v1") == DIGEST
    assert [text.split()[0] for text in line.gateway.asked] == ["HEAD", "GET"]


# TLS, tokens and proxies of the real registry


@needs_registry
def test_tls_is_checked(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ours")
    other = Authority(tmp_path / "theirs", name="others")
    with registry_server(tmp_path / "tls", tls(authority, tmp_path)) as safe, ExitStack() as closing:

        def opened(**more: Any) -> Registry:
            registry = Registry(Access(**{"repository": f"{safe.address}/x", **more}), sleep=lambda _: None)
            closing.callback(registry.close)
            return registry

        assert opened(ca=authority.pem).manifest("v1") is None
        for ca in ("", other.pem):
            with pytest.raises(
                RefusedError, match=r"certificate that a known authority vouches for: .*; give its authority as ca"
            ) as caught:
                opened(ca=ca).manifest("v1")
            assert caught.value.reason == "RegistryCertificate"
        with pytest.raises(RefusedError, match="got 400"):
            opened(unsafe_plain_http=True).manifest("v1")
        with registry_server(tmp_path / "plain") as plain, pytest.raises(RefusedError, match="expected TLS, got something else"):
            opened(repository=f"{plain.address}/x").manifest("v1")


@needs_registry
def test_the_environment_may_name_more_authorities(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ours")
    program = "import sys; from controller.adapters.oci.registry import *\n"
    program += "print(Registry(Access(repository=sys.argv[1])).manifest('v1'))"
    with registry_server(tmp_path / "tls", tls(authority, tmp_path)) as safe:
        command = [sys.executable, "-c", program, f"{safe.address}/x"]
        environment = {**os.environ, "SSL_CERT_FILE": str(authority.file)}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.stdout == "None\n", done.stderr


@needs_registry
def test_a_password_is_not_sent_without_tls_to_whom_a_safe_registry_names(tmp_path: Path, line: Line) -> None:
    authority = Authority(tmp_path / "ours")
    token = {"realm": f"http://{line.gateway.address}/token", "service": "reg", "issuer": "tests"}
    settings = {**tls(authority, tmp_path), "auth": {"token": {**token, "rootcertbundle": str(authority.file)}}}
    with registry_server(tmp_path / "registry", settings) as running:
        access = replace(line.access, repository=f"{running.address}/x", unsafe_plain_http=False, ca=authority.pem)
        registry = Registry(access)
        with pytest.raises(RefusedError, match=f"sent us on to http://{line.gateway.address}; expected https"):
            registry.manifest("v1")
        registry.close()
    assert line.gateway.asked == []


@needs_registry
def test_a_registry_behind_tokens_is_used_with_the_least_that_it_asks_for(tmp_path: Path) -> None:
    with ExitStack() as closing:
        tokens = closing.enter_context(token_server(Authority(tmp_path / "ours")))
        running = closing.enter_context(registry_server(tmp_path / "registry", tokens.settings()))

        def opened(path: str) -> Registry:
            place = f"{running.address}/{path}"
            registry = Registry(Access(repository=place, username="robot", password=Secret(PASSWORD), unsafe_plain_http=True))
            closing.callback(registry.close)
            return registry

        reader, writer, other = opened("team/a"), opened("team/a"), opened("team/b")
        assert reader.manifest("v1") is None
        assert tokens.scopes == ["repository:team/a:pull"]
        (tmp_path / "blob").write_bytes(DATA)
        writer.put_blob(tmp_path / "blob", DIGEST)
        assert other.mount_blob(DIGEST, "team/a")
        assert reader.has_blob(DIGEST)
        assert all(scope.startswith(("repository:team/a:", "repository:team/b:")) for scope in tokens.scopes)
        assert len(tokens.scopes) <= 4
        assert set(tokens.who) == {"Basic " + auth(f"robot:{PASSWORD}")}


PROXIES = {
    "one for TLS": ("https://a.test/v2/", {"HTTPS_PROXY": "http://p:1"}, "http://p:1"),
    "in lower case": ("https://a.test/v2/", {"https_proxy": "http://q:1", "HTTPS_PROXY": "http://p:1"}, "http://q:1"),
    "without a scheme": ("https://a.test/v2/", {"HTTPS_PROXY": "p:1"}, "http://p:1"),
    "not for plain HTTP": ("http://a.test/v2/", {"HTTPS_PROXY": "http://p:1"}, ""),
    "for plain HTTP": ("http://a.test/v2/", {"HTTP_PROXY": "http://p:1"}, "http://p:1"),
    "for all": ("https://a.test/v2/", {"ALL_PROXY": "http://p:1"}, "http://p:1"),
    "none": ("https://a.test/v2/", {"NO_PROXY": "*"}, ""),
    "this machine": ("https://127.0.0.1:5000/v2/", {"HTTPS_PROXY": "http://p:1"}, ""),
    "this machine by name": ("https://localhost/v2/", {"HTTPS_PROXY": "http://p:1"}, ""),
    "this machine, newer": ("https://[::1]:5000/v2/", {"HTTPS_PROXY": "http://p:1"}, ""),
    "all excepted": ("https://a.test/v2/", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "*"}, ""),
    "a name excepted": ("https://a.test/v2/", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "b.test, A.test"}, ""),
    "a domain excepted": ("https://r.a.test/v2/", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "a.test"}, ""),
    "a domain with a dot": ("https://r.a.test/v2/", {"HTTPS_PROXY": "http://p:1", "no_proxy": ".a.test"}, ""),
    "a domain with a star": ("https://r.a.test/v2/", {"HTTPS_PROXY": "http://p:1", "no_proxy": "*.a.test"}, ""),
    "another name's end": ("https://ra.test/v2/", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "a.test"}, "http://p:1"),
    "the port": ("https://a.test:5000/v2/", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "a.test:5000"}, ""),
    "another port": ("https://a.test:5001/v2/", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "a.test:5000"}, "http://p:1"),
    "an address": ("https://10.1.2.3/v2/", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "10.1.2.3"}, ""),
    "a network": ("https://10.1.2.3:5000/v2/", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "10.0.0.0/8"}, ""),
    "another network": ("https://11.1.2.3/v2/", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "10.0.0.0/8,x"}, "http://p:1"),
}


@pytest.mark.parametrize("sentence", PROXIES)
def test_the_environment_says_which_proxy_leads_there(sentence: str) -> None:
    url, environ, proxy = PROXIES[sentence]
    assert proxy_for(url, environ) == proxy


def test_a_registry_is_asked_through_the_proxy_that_the_environment_names() -> None:
    with gateway() as proxy:
        environ = {
            "HTTP_PROXY": f"http://me:its%20secret@{proxy.address}",
            "HTTPS_PROXY": f"http://me:its%20secret@{proxy.address}",
        }
        wire = Wire(Access(repository="registry.test:5000/x", unsafe_plain_http=True), sleep=lambda _: None, environ=environ)
        proxy.tell(Said(body=DATA))
        assert wire.ask("GET", "/blobs/x", "blob x", (200,)).body == DATA
        assert proxy.asked == ["GET http://registry.test:5000/v2/x/blobs/x 200"]
        assert proxy.headers[0]["proxy-authorization"] == "Basic " + auth("me:its secret")
        wire.close()
        safe = Wire(Access(repository="registry.test/x"), sleep=lambda _: None, environ=environ, tries=2)
        # It is asked to connect us, and does not know how.
        with pytest.raises(SilentError, match=r"got tunnel connection failed: 501 .* from the proxy at try 2") as caught:
            safe.ask("GET", "/blobs/x", "blob x", (200,))
        assert "secret" not in caught.value.message
        safe.close()


def test_a_proxy_that_is_away_or_none_is_said() -> None:
    access = Access(repository="registry.test/x")
    away = Wire(access, sleep=lambda _: None, environ={"HTTPS_PROXY": "http://u:its-secret@127.0.0.1:1"}, tries=2)
    with pytest.raises(SilentError, match="got connection refused from the proxy at try 2") as caught:
        away.ask("GET", "/blobs/x", "blob x", (200,))
    assert "its-secret" not in caught.value.message
    none = Wire(access, environ={"HTTPS_PROXY": "socks5://u:its-secret@127.0.0.1:1"})
    with pytest.raises(RefusedError, match=r"expected proxies as http\(s\)://host:port") as refused:
        none.ask("GET", "/blobs/x", "blob x", (200,))
    assert refused.value.reason == "BadProxy"
    assert "its-secret" not in refused.value.message
