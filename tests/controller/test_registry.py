"""The registry's door on a bad line, in front of closed doors, and with cosign looking on."""

from __future__ import annotations

import base64
import copy
import hashlib
import io
import json
import pickle
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID

from controller.adapters.attestor import BUNDLE, PROVENANCE, SIGNATURE, sign_image, verify_image
from controller.adapters.clock import SystemClock
from controller.adapters.keys import ImageKey
from controller.adapters.oci.layers import Stored, lay
from controller.adapters.oci.layout import CONFIG, EMPTY, INDEX, MANIFEST, Layout
from controller.adapters.oci.mirrored import MirroredLayout
from controller.adapters.oci.registry import Access, Registry, access_from_docker_config
from policies.canonical import canonical
from policies.errors import DesiredStateError, RefusedError, SilentError, TrustError
from policies.terms.digest import Digest, digest_of
from policies.terms.secret import NO_SECRET, Secret
from tests.contracts.registry_server import (
    LOST,
    SLOW,
    Gateway,
    RegistryServer,
    Said,
    find_cosign,
    gateway,
    registry_server,
    why_no_registry,
)

needs_registry = pytest.mark.skipif(bool(why_no_registry()), reason=why_no_registry())
DATA = b"some bytes of a blob, long enough to be cut in half"
DIGEST = digest_of(DATA)
PASSWORD = "hunter2-but-longer"
HOST = "registry.test:5000"


class Line:
    """A registry client on a line that a gateway spoils; pauses are noted, not made."""

    def __init__(self, upstream: str = "", **more: Any) -> None:
        self.gateway, self.pauses = Gateway(upstream), []
        self.access = Access(
            repository=f"{self.gateway.address}/team/digits",
            username="robot",
            password=Secret(PASSWORD),
            unsafe_plain_http=True,
            origin="Secret team-a/registry-push",
        )
        self.registry = Registry(self.access, sleep=self.pauses.append, **more)

    def fetched(self) -> bytes:
        out = io.BytesIO()
        self.registry.fetch_blob(DIGEST, out)
        return out.getvalue()

    def close(self) -> None:
        self.registry.close()
        self.gateway.close()


@pytest.fixture
def line() -> Iterator[Line]:
    made = Line()
    yield made
    made.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    if why_no_registry():
        pytest.skip(why_no_registry())
    with registry_server(tmp_path_factory.mktemp("registry")) as running:
        yield running


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


def auth(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


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


# A bad line


def test_who_asks_for_a_pause_gets_it(line: Line) -> None:
    line.gateway.tell(Said(status=429, headers={"Retry-After": "7"}))
    line.gateway.tell(Said(status=429))
    line.gateway.tell(Said(body=DATA))
    assert line.fetched() == DATA
    assert line.pauses[0] == 7.0
    assert 0.5 <= line.pauses[1] <= 1.0
    assert len(line.pauses) == 2


def test_who_asks_for_a_long_pause_is_left_alone(line: Line) -> None:
    line.gateway.tell(Said(status=429, headers={"Retry-After": "3600"}))
    with pytest.raises(SilentError, match="got status 429 and the wish to wait 3600 s at try 1"):
        line.registry.manifest("v1")
    assert line.pauses == []
    line.gateway.tell(Said(status=503, headers={"Retry-After": "Fri, 31 Dec 9999 23:59:59 GMT"}))
    with pytest.raises(SilentError, match="the wish to wait"):
        line.registry.manifest("v1")
    line.gateway.tell(Said(status=503, headers={"Retry-After": "soon"}))
    assert line.registry.manifest("v1") is None


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_who_is_ill_is_asked_again_but_not_for_ever(line: Line, status: int) -> None:
    line.gateway.tell(Said(status=status, body=b"<html>oh</html>"), times=2)
    assert line.registry.manifest("v1") is None
    assert len(line.pauses) == 2
    line.gateway.tell(Said(status=status), times=9)
    with pytest.raises(SilentError) as caught:
        line.fetched()
    assert caught.value.message == (
        f"registry {line.access.repository}: blob {DIGEST}: expected an answer, got status {status} at try 4"
    )
    assert caught.value.reason == "RegistrySilent"
    assert len(line.gateway.asked) == 7
    assert all(pause <= 8.0 for pause in line.pauses)
    assert len(set(line.pauses)) == len(line.pauses)


def test_half_a_blob_is_fetched_again(line: Line) -> None:
    line.gateway.tell(Said(body=DATA, sent=20))
    line.gateway.tell(Said(body=b"x" * 100, sent=99))
    line.gateway.tell(Said(body=DATA))
    assert line.fetched() == DATA
    line.gateway.tell(Said(body=DATA, sent=len(DATA) - 1), times=4)
    with pytest.raises(SilentError, match="got a broken connection at try 4"):
        line.fetched()


def test_half_a_manifest_is_fetched_again(line: Line) -> None:
    line.gateway.tell(Said(body=DATA, sent=20))
    line.gateway.tell(LOST)
    line.gateway.tell(Said(body=DATA))
    assert line.registry.manifest(DIGEST) == DATA


def test_other_bytes_of_the_right_length_are_not_trusted(line: Line) -> None:
    line.gateway.tell(Said(body=DATA.upper()), times=2)
    for ask in (line.fetched, lambda: line.registry.manifest(DIGEST)):
        with pytest.raises(TrustError, match="expected these bytes from") as caught:
            ask()
        assert caught.value.reason == "BlobChanged"
    assert line.pauses == []


def test_a_manifest_of_no_sensible_size_is_not_read(line: Line) -> None:
    line.gateway.tell(Said(body=b" " * (9 << 20)))
    with pytest.raises(TrustError, match="expected at most"):
        line.registry.manifest("v1")


def test_who_is_slow_is_not_waited_for() -> None:
    line = Line(read_seconds=0.2, tries=2)
    line.gateway.tell(SLOW, times=2)
    began = time.monotonic()
    with pytest.raises(SilentError, match="got nothing in time at try 2"):
        line.registry.manifest("v1")
    assert time.monotonic() - began < 5
    line.close()


@needs_registry
def test_an_upload_that_breaks_is_begun_again(server: RegistryServer, tmp_path: Path) -> None:
    line = Line(server.address)
    (tmp_path / "blob").write_bytes(DATA)
    line.gateway.tell(LOST, method="PUT")
    line.gateway.tell(Said(status=503), method="PUT")
    line.registry.put_blob(tmp_path / "blob", DIGEST)
    assert [text.split()[0] for text in line.gateway.asked] == ["HEAD", "POST", "PUT"] * 3
    assert line.fetched() == DATA
    line.gateway.tell(LOST, method="PUT", times=9)
    (tmp_path / "other").write_bytes(b"other")
    with pytest.raises(SilentError):
        line.registry.put_blob(tmp_path / "other", digest_of(b"other"))
    assert len([text for text in line.gateway.asked if text.startswith("PUT")]) == 3 + 4
    line.close()


@needs_registry
def test_an_upload_whose_answer_was_lost_is_not_sent_twice(server: RegistryServer, tmp_path: Path) -> None:
    line = Line(server.address)
    data = b"arrives, but nobody hears of it"
    (tmp_path / "blob").write_bytes(data)
    line.gateway.takes_effect = True
    line.gateway.tell(LOST, method="PUT")
    line.registry.put_blob(tmp_path / "blob", digest_of(data))
    assert [text.split()[0] for text in line.gateway.asked] == ["HEAD", "POST", "PUT", "HEAD"]
    line.close()


@needs_registry
@pytest.mark.parametrize("takes_effect", [False, True], ids=["never arrived", "answer lost"])
def test_a_push_that_broke_anywhere_is_whole_after_the_next(server: RegistryServer, tmp_path: Path, takes_effect: bool) -> None:
    line = Line(server.address)
    line.gateway.takes_effect = takes_effect
    key = ImageKey.generate(tmp_path / "key.pem")
    digest = image(Layout(tmp_path / "store"), "broken push")

    def push(access: Access) -> None:
        # Nothing is known from before, as after a restart.
        registry = Registry(access, tries=1)
        layout = MirroredLayout(tmp_path / "store", registry)
        try:
            sign_image(layout, digest, key, WHERE_FROM)
            layout.push(digest, tags=("v1",))
        finally:
            registry.close()

    # At every second request, the other half in the other case: all of them take long on a slow disk.
    at = int(takes_effect)
    while True:
        access = replace(line.access, repository=f"{line.access.host}/broken{takes_effect:d}/r{at}")
        line.gateway.answers = [dies_at(at)]
        try:
            push(access)
        except SilentError:
            line.gateway.answers = []
            push(access)
            registry = Registry(access)
            fresh = MirroredLayout(tmp_path / f"fresh{at}", registry)
            assert fresh.resolve("v1") == digest
            assert set(verify_image(fresh, digest, (key.public_pem,))) == {SIGNATURE, PROVENANCE}
            fresh.check_all(digest)
            registry.close()
            at += 2
            continue
        break
    assert at > 20
    line.close()


def dies_at(number: int) -> Callable[[str, str], Said | None]:
    left = [number]

    def answer(method: str, path: str) -> Said | None:
        left[0] -= 1
        return LOST if left[0] < 0 else None

    return answer


def test_a_closed_port_and_a_name_without_address_have_words() -> None:
    for host, words in (("127.0.0.1:1", "connection refused"), ("no-such-host.invalid:5000", "no address for its name")):
        registry = Registry(Access(repository=f"{host}/x", unsafe_plain_http=True), sleep=lambda _: None, tries=2)
        with pytest.raises(SilentError, match=f"expected an answer, got {words} at try 2"):
            registry.manifest("v1")


# Closed doors


def said(code: str, message: str) -> bytes:
    return json.dumps({"errors": [{"code": code, "message": message}]}).encode()


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


# TLS and tokens of the real registry


class Authority:
    """Signs a certificate for loopback, and tokens."""

    def __init__(self, folder: Path) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
        now = datetime(2026, 1, 1, tzinfo=UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self.key.public_key())
            .serial_number(1)
            .not_valid_before(now - timedelta(days=3650))
            .not_valid_after(now + timedelta(days=36500))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        self.pem = certificate.public_bytes(serialization.Encoding.PEM).decode()
        self.der = certificate.public_bytes(serialization.Encoding.DER)
        bare = serialization.NoEncryption()
        private = self.key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, bare)
        self.certificate_path, self.key_path = folder / "tests.crt", folder / "tests.key"
        self.certificate_path.write_text(self.pem)
        self.key_path.write_bytes(private)

    def token(self, scope: str, lives_from: int) -> str:
        """A token of the Docker registry's kind for all that a scope names."""

        def packed(data: bytes) -> str:
            return base64.urlsafe_b64encode(data).decode().rstrip("=")

        access = []
        for item in scope.split():
            kind, name, actions = item.split(":")
            access.append({"type": kind, "name": name, "actions": actions.split(",")})
        head = {"typ": "JWT", "alg": "ES256", "x5c": [base64.b64encode(self.der).decode()]}
        claims = {
            "iss": "tests",
            "sub": "robot",
            "aud": "reg",
            "nbf": lives_from,
            "exp": lives_from + 3600,
            "jti": "1",
            "access": access,
        }
        text = f"{packed(json.dumps(head).encode())}.{packed(json.dumps(claims).encode())}"
        first, second = decode_dss_signature(self.key.sign(text.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{text}.{packed(first.to_bytes(32, 'big') + second.to_bytes(32, 'big'))}"


@needs_registry
def test_tls_is_checked(tmp_path: Path, server: RegistryServer) -> None:
    authority = Authority(tmp_path)
    tls = {"http": {"tls": {"certificate": str(authority.certificate_path), "key": str(authority.key_path)}}}
    with registry_server(tmp_path / "tls", tls) as safe, ExitStack() as closing:

        def opened(**more: Any) -> Registry:
            registry = Registry(Access(**{"repository": f"{safe.address}/x", **more}), sleep=lambda _: None)
            closing.callback(registry.close)
            return registry

        assert opened(ca=authority.pem).manifest("v1") is None
        with pytest.raises(RefusedError, match=r"certificate that a known authority vouches for: self.signed") as caught:
            opened().manifest("v1")
        assert caught.value.reason == "RegistryCertificate"
        with pytest.raises(RefusedError, match="got 400"):
            opened(unsafe_plain_http=True).manifest("v1")
        with pytest.raises(RefusedError, match="expected TLS, got something else; set unsafePlainHttp"):
            opened(repository=f"{server.address}/x").manifest("v1")


@needs_registry
def test_a_password_is_not_sent_without_tls_to_whom_a_safe_registry_names(tmp_path: Path, line: Line) -> None:
    authority = Authority(tmp_path)
    token = {"realm": f"http://{line.gateway.address}/token", "service": "reg", "issuer": "tests"}
    settings = {
        "http": {"tls": {"certificate": str(authority.certificate_path), "key": str(authority.key_path)}},
        "auth": {"token": {**token, "rootcertbundle": str(authority.certificate_path)}},
    }
    with registry_server(tmp_path / "registry", settings) as running:
        access = replace(line.access, repository=f"{running.address}/x", unsafe_plain_http=False, ca=authority.pem)
        registry = Registry(access)
        with pytest.raises(RefusedError, match=f"sent us on to http://{line.gateway.address}; expected https"):
            registry.manifest("v1")
        registry.close()
    assert line.gateway.asked == []


@needs_registry
def test_a_registry_behind_tokens_is_used_with_the_least_that_it_asks_for(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    tokens = Gateway()

    def grant(method: str, path: str) -> Said | None:
        tokens.answers.append(grant)
        query = dict(item.split("=", 1) for item in path.partition("?")[2].split("&"))
        scope = query["scope"].replace("%3A", ":").replace("%2F", "/").replace("%2C", ",").replace("+", " ")
        scopes.append(scope)
        return Said(body=json.dumps({"token": authority.token(scope, int(SystemClock().now().timestamp()) - 60)}).encode())

    scopes: list[str] = []
    tokens.answers.append(grant)
    token = {"realm": f"http://{tokens.address}/token", "service": "reg", "issuer": "tests"}
    settings = {"auth": {"token": {**token, "rootcertbundle": str(authority.certificate_path)}}}
    with registry_server(tmp_path / "registry", settings) as running:
        access = Access(
            repository=f"{running.address}/team/a", username="robot", password=Secret(PASSWORD), unsafe_plain_http=True
        )
        registry = Registry(access)
        layout = MirroredLayout(tmp_path / "one", registry)
        digest = image(layout, "behind tokens")
        layout.push(digest, tags=("v1",))
        layer = layout.named(digest)[-1]
        other = Registry(replace(access, repository=f"{running.address}/team/b"))
        assert other.mount_blob(layer, "team/a")
        fresh = MirroredLayout(tmp_path / "two", Registry(access))
        fresh.check_all(digest)
        assert fresh.get(layer) == layout.get(layer)
        assert scopes[0] == "repository:team/a:pull"
        assert "repository:team/a:pull,push" in scopes
        assert len(scopes) <= 6
        for opened in (registry, other, fresh.registry):
            opened.close()
    tokens.close()


# Signatures


def image(layout: Layout, text: str) -> Digest:
    """A small image, not pushed."""
    laid = lay(layout, {"app/app.py": Stored(data=text.encode())})
    config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [laid.diff_id]}}
    value = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": layout.descriptor(layout.put(canonical(config)), CONFIG),
        "layers": [laid.descriptor],
    }
    return layout.put(canonical(value))


WHERE_FROM = {
    "buildDefinition": {"buildType": "x", "externalParameters": {"commit": "c"}, "resolvedDependencies": []},
    "runDetails": {"builder": {"id": "x"}},
}


class Signed:
    """A signed image in a real registry."""

    def __init__(self, server: RegistryServer, folder: Path, name: str) -> None:
        self.access = Access(repository=f"{server.address}/signed/{name}", unsafe_plain_http=True)
        self.folder, self.registry = folder, Registry(self.access)
        self.layout = MirroredLayout(folder / "store", self.registry)
        self.key = ImageKey.generate(folder / "key.pem")
        self.digest = image(self.layout, name)
        sign_image(self.layout, self.digest, self.key, WHERE_FROM)

    @property
    def sig(self) -> str:
        return self.digest.replace(":", "-") + ".sig"

    def fresh(self) -> MirroredLayout:
        """As from another machine."""
        return MirroredLayout(self.folder / f"fresh{len(list(self.folder.iterdir()))}", Registry(self.access))


@pytest.fixture
def signed(server: RegistryServer, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Signed]:
    made = Signed(server, tmp_path, hashlib.sha256(request.node.name.encode()).hexdigest()[:12])
    yield made
    made.registry.close()


def test_a_signed_image_is_verified_on_another_machine(signed: Signed) -> None:
    fresh = signed.fresh()
    assert set(verify_image(fresh, signed.digest, (signed.key.public_pem,))) == {SIGNATURE, PROVENANCE}
    other = ImageKey.generate(signed.folder / "other.pem")
    with pytest.raises(TrustError, match="another key"):
        verify_image(signed.fresh(), signed.digest, (other.public_pem,))
    unsigned = image(signed.layout, "never signed")
    signed.layout.push(unsigned)
    with pytest.raises(TrustError, match="nothing is attached"):
        verify_image(signed.fresh(), unsigned, (signed.key.public_pem,))


def test_signing_again_gives_the_same_bytes_and_keeps_what_others_signed(signed: Signed) -> None:
    def all_of_it() -> tuple[object, ...]:
        listed = sorted(item["digest"] for item in signed.registry.referrers(signed.digest))
        return signed.registry.resolve(signed.sig), listed, len(listed)

    before = all_of_it()
    assert before[2] == 2
    for layout in (signed.layout, signed.fresh()):
        sign_image(layout, signed.digest, signed.key, WHERE_FROM)
        assert all_of_it() == before
    other = ImageKey.generate(signed.folder / "other.pem")
    sign_image(signed.fresh(), signed.digest, other, WHERE_FROM)
    sign_image(signed.fresh(), signed.digest, signed.key, WHERE_FROM)
    found = signed.registry.resolve(signed.sig)
    assert found is not None
    assert len(signed.fresh().manifest(found)["layers"]) == 2
    assert all_of_it()[2] == 4
    for key in (signed.key, other):
        verify_image(signed.fresh(), signed.digest, (key.public_pem,))


def test_the_older_signature_is_as_cosign_writes_it(signed: Signed) -> None:
    fresh = signed.fresh()
    found = fresh.resolve(signed.sig)
    assert found is not None
    manifest = fresh.manifest(found)
    (layer,) = manifest["layers"]
    payload = fresh.get(layer["digest"])
    assert json.loads(payload) == {
        "critical": {
            "identity": {"docker-reference": signed.access.repository},
            "image": {"docker-manifest-digest": signed.digest},
            "type": "cosign container image signature",
        },
        "optional": None,
    }
    assert layer["mediaType"] == "application/vnd.dev.cosign.simplesigning.v1+json"
    proof = base64.b64decode(layer["annotations"]["dev.cosignproject.cosign/signature"])
    assert ImageKey.verify(signed.key.public_pem, payload, proof)
    config = json.loads(fresh.get(manifest["config"]["digest"]))
    assert config["rootfs"]["diff_ids"] == [layer["digest"]]
    index = signed.registry.manifest(signed.digest.replace(":", "-"))
    assert index is not None
    entries = json.loads(index)["manifests"]
    assert {item["artifactType"] for item in entries} == {BUNDLE}
    assert {item["annotations"]["dev.sigstore.bundle.predicateType"] for item in entries} == {SIGNATURE, PROVENANCE}


def test_junk_under_the_signatures_tag_is_not_carried_on(signed: Signed) -> None:
    junk = [{"layers": 5}, {"layers": [{"mediaType": "x"}]}, {"layers": [5]}]
    for value in junk:
        layout = signed.fresh()
        text = canonical({"schemaVersion": 2, "mediaType": MANIFEST, **value})
        layout.tag(signed.sig, layout.put(text))
        plain = Layout(layout.root)
        digest = plain.put(b'{"layers":[]}')
        plain.tag(digest.replace(":", "-") + ".sig", plain.put(text))
        sign_image(plain, digest, signed.key, WHERE_FROM)
        found = plain.resolve(digest.replace(":", "-") + ".sig")
        assert found is not None
        assert len(plain.manifest(found)["layers"]) == 1


def test_signatures_are_no_images(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "store")
    digest = image(layout, "x")
    layout.tag("team/x:v1", digest)
    sign_image(layout, digest, ImageKey.generate(tmp_path / "key.pem"), WHERE_FROM)
    assert layout.images() == [("team/x:v1", digest)]
    assert layout.resolve("team/x:v1") == digest
    assert layout.resolve("nothing") is None


class Cosign:
    """The real cosign, asked about a signed image."""

    def __init__(self, folder: Path, key: ImageKey) -> None:
        found = find_cosign()
        if found is None:
            pytest.skip("cosign: expected it in MYELIN_CLUSTER_BIN, the cache of the cluster tests or the path; it is nowhere")
        self._program, self._folder = found, folder
        self.public = folder / "cosign.pub"
        self.public.write_text(key.public_pem)
        empty = ("tlogs", "certificateAuthorities", "ctlogs", "timestampAuthorities")
        root = {"mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1", **{name: [] for name in empty}}
        (folder / "root.json").write_text(json.dumps(root))

    def __call__(self, *words: str, reference: str, trusted_root: bool = True) -> subprocess.CompletedProcess[str]:
        root = ("--trusted-root", str(self._folder / "root.json")) if trusted_root else ()
        common = ("--key", str(self.public), "--insecure-ignore-tlog=true", "--allow-http-registry", *root)
        environment = {"HOME": str(self._folder), "PATH": "/usr/bin:/bin", "SIGSTORE_NO_CACHE": "1"}
        command = [str(self._program), *words, *common, reference]
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)


def test_cosign_verifies_what_we_sign(signed: Signed) -> None:
    cosign = Cosign(signed.folder, signed.key)
    reference = f"{signed.access.repository}@{signed.digest}"
    done = cosign("verify", reference=reference)
    assert done.returncode == 0, done.stderr
    done = cosign("verify-attestation", "--type", "slsaprovenance1", reference=reference)
    assert done.returncode == 0, done.stderr
    payload = json.loads(base64.b64decode(json.loads(done.stdout.splitlines()[0])["payload"]))
    assert payload["predicate"] == WHERE_FROM
    cosign.public.write_text(ImageKey.generate(signed.folder / "other.pem").public_pem)
    for words in (("verify",), ("verify-attestation", "--type", "slsaprovenance1")):
        assert cosign(*words, reference=reference).returncode != 0
    unsigned = image(signed.layout, "not signed")
    signed.layout.push(unsigned)
    assert cosign("verify", reference=f"{signed.access.repository}@{unsigned}").returncode != 0


def test_cosign_verifies_the_older_signature_where_there_is_no_bundle(server: RegistryServer, signed: Signed) -> None:
    cosign = Cosign(signed.folder, signed.key)
    access = replace(signed.access, repository=f"{server.address}/older/{signed.digest[-8:]}")
    registry = Registry(access)
    copied = MirroredLayout(signed.layout.root, registry)
    found = signed.layout.resolve(signed.sig)
    assert found is not None
    copied.push(signed.digest)
    copied.push(found, tags=(signed.sig,))
    reference = f"{access.repository}@{signed.digest}"
    done = cosign("verify", reference=reference, trusted_root=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["critical"]["image"]["docker-manifest-digest"] == signed.digest
    cosign.public.write_text(ImageKey.generate(signed.folder / "other.pem").public_pem)
    assert cosign("verify", reference=reference, trusted_root=False).returncode != 0
    registry.close()
