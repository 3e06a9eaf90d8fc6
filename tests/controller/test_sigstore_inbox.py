"""Embedded Sigstores at the inbox: who is led to which, what strangers read, and what a cluster's service accounts sign there."""

from __future__ import annotations

import contextlib
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from controller import inbox, keyring, project
from controller.adapters import gauges
from controller.adapters.clock import SystemClock
from controller.adapters.git import init_bare
from controller.adapters.sigstore.authority import Authority
from controller.adapters.sigstore.choosing import make_seed
from controller.adapters.sigstore.embedded import Embedded, identity_of
from controller.adapters.sigstore.keyless import Keyless, trusted_root_of, verify_statement
from controller.adapters.sigstore.leaves import MemoryLeaves
from controller.adapters.sigstore.served import Served
from controller.adapters.sigstore.tokens import Tokens
from controller.adapters.spool import Spool
from controller.inbox import Desk
from controller.inbox.sigstores import MOST_AT_ONCE, Answer, Asked, Sigstores, asked_of
from controller.issuers import CONFIGURATION, KEYS, KNOWN_SECONDS, ClusterTokens
from controller.projects import open_project
from controller.wiring import ClusterSurroundings, wire, wire_in_cluster
from policies.errors import ControllerError, RefusedError, SilentError
from policies.terms.secret import Secret
from tests.controller.test_embedded_sigstore import statement
from tests.controller.test_projects import body_of, cluster_with, good_secrets, good_spec
from tests.fakes.cluster import FakeCluster
from tests.fakes.tokens import IDENTITY, ISSUER, Issuer

CLUSTER = Issuer()
NOW = SystemClock().now()
TEAM = "https://kubernetes.io/namespaces/team-a/serviceaccounts/ci"
TEAM_ACCOUNT = "system:serviceaccount:team-a:ci"


def embedded(namespace: str, seed: str) -> Embedded:
    since = NOW - timedelta(days=1)
    return Embedded(Authority(Secret(seed * 32), since), MemoryLeaves(), identity=identity_of(namespace, "shop"))


def ask(url: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url + path, data=body, headers=headers), timeout=30) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())["message"]


class Site:
    """An inbox, and projects that come and go."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.desk = Desk("127.0.0.1", 0, is_ready=lambda: True, is_alive=lambda: True)
        self.url = f"http://127.0.0.1:{self.desk.start()}"

    def admit(self, name: str, made: Embedded | None) -> None:
        tokens, log_url = Tokens(ISSUER, CLUSTER.keys), f"{self.url}/sigstore/{name}"
        served = Served(made, tokens, url=self.url, log_url=log_url).handle if made else None
        receivers = inbox.Receivers(
            spool=Spool(self.folder / name),
            clock=SystemClock(),
            wake=lambda: None,
            report=lambda name, line: None,
            push=lambda labels, text: None,
            newest=lambda: None,
            place=lambda name, kind: "",
            namespace=name.partition(".")[0],
            sigstore=lambda url: served,
        )
        self.desk.admit(name, receivers, token=f"token-{name}", programs=f"programs-{name}")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.desk.close()


PATHS: dict[str, Asked | None] = {
    "/trusted_root.json": Asked(project="", path="/trusted_root.json"),
    "/sigstore/ml.shop/trust_config.json": Asked(project="ml.shop", path="/trust_config.json"),
    "/api/v2/signingCert": Asked(project="", path="/api/v2/signingCert"),
    "/api/v1/log": Asked(project="", path="/api/v1/log"),
    "/sigstore/ml.shop/api/v1/log/entries?logIndex=1": Asked(project="ml.shop", path="/api/v1/log/entries?logIndex=1"),
    "/api/v1/logs": None,
    "/api/v1/axons/default/small": None,
    "/trusted_root.json/more": None,
    "/sigstore/ml.shop": None,
    "/sigstore/ml.shop/metrics": None,
    "/programs/x/trusted_root.json": None,
}


@pytest.mark.parametrize("path", PATHS)
def test_paths_of_a_sigstore_are_told_from_others(path: str) -> None:
    assert asked_of(path) == PATHS[path]


def test_of_one_sigstore_everybody_reads_the_root_and_a_service_account_signs(site: Site) -> None:
    made = embedded("ml", "01")
    site.admit("ml.shop", made)
    site.admit("ml2.none", None)
    assert ask(site.url, "/trusted_root.json") == (200, json.loads(made.trusted_root()))
    assert ask(site.url, "/sigstore/ml.shop/trusted_root.json") == (200, json.loads(made.trusted_root()))
    assert ask(site.url, "/sigstore/ml.other/trusted_root.json")[0] == 404
    code, config = ask(site.url, "/trust_config.json")
    assert code == 200
    signer = Keyless(json.dumps(config), CLUSTER.token)
    assert signer.identity == (IDENTITY, ISSUER)
    bundle = signer.sign_statement(statement(1))
    assert verify_statement(bundle, made.trusted_root(), IDENTITY, ISSUER) == statement(1)
    assert made.log.head()[0] == 1
    code, said = ask(site.url, "/api/v1/log")
    assert (code, said["treeSize"]) == (200, 1)
    before = gauges.WRONG_TOKENS._value.get()
    with pytest.raises(RefusedError):
        Keyless(json.dumps(config), Issuer().token).sign_statement(statement(2))
    assert gauges.WRONG_TOKENS._value.get() == before + 1
    assert made.log.head()[0] == 1


def test_of_several_the_token_says_which_and_the_path_all_else(site: Site) -> None:
    known = {"ml.shop": embedded("ml", "01"), "team-a.shop": embedded("team-a", "02")}
    for name, made in known.items():
        site.admit(name, made)
    accounts = {"ml.shop": (IDENTITY, {}), "team-a.shop": (TEAM, {"sub": TEAM_ACCOUNT})}
    for name, (identity, claims) in accounts.items():
        code, config = ask(site.url, f"/sigstore/{name}/trust_config.json")
        assert (code, trusted_root_of(json.dumps(config))) == (200, known[name].trusted_root())
        bundle = Keyless(json.dumps(config), lambda claims=claims: CLUSTER.token(**claims)).sign_statement(statement(1))  # type: ignore[misc]
        assert verify_statement(bundle, known[name].trusted_root(), identity, ISSUER) == statement(1)
    assert [made.log.head()[0] for made in known.values()] == [1, 1]
    code, said = ask(site.url, "/trusted_root.json")
    assert (code, said) == (404, "expected /sigstore/NAMESPACE.PROJECT/trusted_root.json of a project with a Sigstore")
    code, said = ask(site.url, "/api/v2/signingCert", b"{}", Authorization=f"Bearer {CLUSTER.token(sub=ACCOUNT_OF_NOBODY)}")
    assert (code, "in the namespace of a project with a Sigstore" in said) == (404, True)
    site.desk.dismiss("team-a.shop")
    assert ask(site.url, "/trusted_root.json") == (200, json.loads(known["ml.shop"].trusted_root()))
    site.desk.dismiss("ml.shop")
    assert ask(site.url, "/trusted_root.json")[0] == 404


ACCOUNT_OF_NOBODY = "system:serviceaccount:elsewhere:ci"


def test_too_much_is_not_read_and_pages_in_browsers_are_not_served(site: Site) -> None:
    site.admit("ml.shop", embedded("ml", "01"))
    assert ask(site.url, "/api/v1/log/entries", b" " * (1 << 20) + b" ")[0] == 413
    assert ask(site.url, "/api/v1/log/entries", b"{}", Origin="https://evil.example")[0] == 403
    assert ask(site.url, "/api/v1/log/entries", b"{}")[0] == 400
    code, words = ask(site.url, "/api/v2/signingCert", b"[]")
    assert (code, words) == (400, "not understood")


def test_no_more_wait_for_a_log_than_there_is_room_for_and_the_root_is_there_meanwhile() -> None:
    sigstores, go, waiting = Sigstores(), threading.Event(), threading.Semaphore(0)

    def slow(method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        if path.startswith("/api/v1/log"):
            waiting.release()
            assert go.wait(30)
        return 200, {}, b"{}"

    sigstores.keep("ml.shop", slow)
    log, root = Asked(project="", path="/api/v1/log"), Asked(project="", path="/trusted_root.json")
    threads = [threading.Thread(target=sigstores.answer, args=("GET", log, {}, b"")) for _ in range(MOST_AT_ONCE)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert waiting.acquire(timeout=30)
    assert sigstores.answer("GET", log, {}, b"")[0] == 503
    assert sigstores.answer("GET", root, {}, b"")[0] == 200
    go.set()
    for thread in threads:
        thread.join()
    assert sigstores.answer("GET", log, {}, b"")[0] == 200


# One machine


def test_on_one_machine_the_root_is_there_and_nobody_is_given_a_certificate(tmp_path: Path) -> None:
    place = project.make(tmp_path / "p", now=NOW)
    make_seed(place.state / "keys", NOW - timedelta(minutes=1))
    with wire(project.settings_of(place, inbox_port=0)) as wired:
        url = wired.inbox_address
        shown = keyring.shown(place.state / "keys")
        assert ask(url, "/trusted_root.json") == (200, json.loads(shown["trustedRoot"]))
        code, config = ask(url, "/trust_config.json")
        assert (code, config["signingConfig"]["caUrls"][0]["url"]) == (200, url)
        code, words = ask(url, "/api/v2/signingCert", b"{}", Authorization=f"Bearer {CLUSTER.token()}")
        assert (code, "nobody does on one machine" in words) == (401, True)
    with contextlib.suppress(OSError):
        (place.state / "keys" / "sigstore.seed").unlink()
    with wire(project.settings_of(place, inbox_port=0)) as wired:
        code, words = ask(wired.inbox_address, "/trusted_root.json")
        assert (code, "`myelin keys new --sigstore` makes one" in words) == (404, True)


# A cluster


@pytest.fixture
def cluster() -> FakeCluster:
    made = FakeCluster()
    made.texts = {CONFIGURATION: json.dumps({"issuer": ISSUER}), KEYS: CLUSTER.keys()}
    return made


def test_a_clusters_keys_are_asked_for_once_a_minute(cluster: FakeCluster) -> None:
    now = [0.0]
    tokens = ClusterTokens(cluster.read, namespace="ml", monotonic=lambda: now[0])
    for _ in range(3):
        assert tokens(CLUSTER.token()) == (IDENTITY, ISSUER)
    assert cluster.calls == [f"read {CONFIGURATION}", f"read {KEYS}"]
    other = Issuer()
    cluster.texts[KEYS] = other.keys()
    with pytest.raises(RefusedError):
        tokens(other.token())
    now[0] += KNOWN_SECONDS
    assert tokens(other.token()) == (IDENTITY, ISSUER)


def forbids(cluster: FakeCluster) -> None:
    cluster.fail(f"read {KEYS}", RefusedError("cluster: forbidden", reason="Forbidden"))


TROUBLES: dict[str, tuple[Callable[[FakeCluster], object], dict[str, str], type[ControllerError], str]] = {
    "an account of another namespace": (lambda _: None, {"sub": TEAM_ACCOUNT}, RefusedError, "of the namespace ml"),
    "one whose name begins alike": (
        lambda _: None,
        {"sub": "system:serviceaccount:ml-2:ci"},
        RefusedError,
        "of the namespace ml",
    ),
    "another issuer": (lambda _: None, {"iss": "https://other"}, RefusedError, "expected one of"),
    "a cluster that says something else": (lambda c: c.texts.update({CONFIGURATION: "<html>"}), {}, SilentError, "its name"),
    "a cluster that forbids it": (forbids, {}, RefusedError, "forbidden"),
}


@pytest.mark.parametrize("what", TROUBLES)
def test_who_is_not_certified_hears_why(what: str, cluster: FakeCluster) -> None:
    act, claims, error, words = TROUBLES[what]
    act(cluster)
    with pytest.raises(error, match=words) as caught:
        ClusterTokens(cluster.read, namespace="ml")(CLUSTER.token(**claims))
    assert CLUSTER.token().split(".")[2][:20] not in caught.value.message


def test_a_projects_seed_in_its_secret_signs_and_serves_its_namespace(tmp_path: Path) -> None:
    keyring.make(tmp_path / "keys", seed_at=NOW - timedelta(minutes=1))
    keys = {path.name: path.read_bytes() for path in (tmp_path / "keys").iterdir()}
    init_bare(tmp_path / "origin.git")
    spec = good_spec() | {"repository": {"url": f"file://{tmp_path}/origin.git"}}
    cluster = cluster_with(good_secrets(keys))
    cluster.texts = {CONFIGURATION: json.dumps({"issuer": ISSUER}), KEYS: CLUSTER.keys()}
    found = open_project(cluster, body_of(spec))  # type: ignore[arg-type]
    assert found.keyless is not None
    known = found.keyless.identity
    assert (known.identity, known.issuer) == ("https://myelin/team-a/digits", "https://myelin/embedded")
    assert [item.root for item in found.trust.image_identities] == [known.root]
    assert known.root == keyring.shown(tmp_path / "keys", ("team-a", "digits"))["trustedRoot"]
    desk = Desk("127.0.0.1", 0, is_ready=lambda: True, is_alive=lambda: True)
    url = f"http://127.0.0.1:{desk.start()}"
    shared = ClusterSurroundings(cluster=cluster, desk=desk, inbox=url, state=tmp_path / "state")  # type: ignore[arg-type]
    woken = threading.Event()
    with contextlib.closing(desk), wire_in_cluster(found, shared, wake=woken.set, stirred=lambda engine: None) as wired:
        code, config = ask(url, "/sigstore/team-a.digits/trust_config.json")
        assert code == 200
        signed: list[bytes] = []

        def sign() -> None:
            keyless = Keyless(json.dumps(config), lambda: CLUSTER.token(sub=TEAM_ACCOUNT))
            signed.extend(keyless.sign_statement(statement(number)) for number in range(2))

        thread = threading.Thread(target=sign)
        thread.start()
        while thread.is_alive():  # as a follower does between two passes
            woken.wait(0.05)
            woken.clear()
            wired.turn.work()
        thread.join()
        assert verify_statement(signed[1], known.root, TEAM, ISSUER) == statement(1)
        with pytest.raises(RefusedError):
            Keyless(json.dumps(config), CLUSTER.token).sign_statement(statement(2))
        entries = wired.ports.ledger.entries()
        assert [entry.statement.kind for entry in entries] == ["log", "log"]
        assert wired.ports.ledger.pending() == 0


def test_a_secret_with_both_is_refused(tmp_path: Path) -> None:
    keyring.make(tmp_path, seed_at=NOW)
    keys = {path.name: path.read_bytes() for path in tmp_path.iterdir()} | {"sigstore.json": b"{}"}
    with pytest.raises(ControllerError) as caught:
        open_project(cluster_with(good_secrets(keys)), body_of(good_spec()))  # type: ignore[arg-type]
    assert keys["sigstore.seed"].decode()[20:40] not in caught.value.message
