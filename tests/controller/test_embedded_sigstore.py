"""The embedded Sigstore: what it signs is verified by programs of others, and its log forgets nothing."""

from __future__ import annotations

import base64
import json
import shutil
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from controller.adapters.attest.signing import IdentitySigner
from controller.adapters.clock import SystemClock
from controller.adapters.git import GitRepository, init_bare
from controller.adapters.ledger import BRANCH, GitLedger, lines_of
from controller.adapters.sigstore.authority import Authority, pem
from controller.adapters.sigstore.choosing import Chosen, chosen_in, make_seed, pinned_in
from controller.adapters.sigstore.embedded import ISSUER as OWN
from controller.adapters.sigstore.embedded import (
    SLOT_SECONDS,
    Embedded,
    artifact_body,
    envelope_data,
    identity_of,
    merged_roots,
)
from controller.adapters.sigstore.keyless import Keyless, keyless_root, verify_statement
from controller.adapters.sigstore.leaves import NOT_PUSHED, Leaf, Leaves, LedgerLeaves, MemoryLeaves, leaf_of, tree_of
from controller.adapters.sigstore.log import Log
from controller.adapters.sigstore.merkle import is_consistent
from controller.adapters.sigstore.served import LARGEST_BODY_BYTES, Answer, Served, serve
from controller.adapters.sigstore.tokens import Tokens
from controller.adapters.sigstore.turn import Turn
from controller.answers.proof import check_ledger
from policies.errors import DesiredStateError, RefusedError, SilentError, TrustError
from policies.ledger import decode
from policies.records import fold
from policies.terms.record import Entry, Statement
from policies.terms.secret import Secret
from tests.contracts import sigstore_js
from tests.contracts.cosign import Cosign, missing
from tests.fakes.tokens import IDENTITY, ISSUER, Issuer
from tests.fakes.wiring import CONTROLLER
from tests.fakes.world import HandClock, World

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
NOW = datetime(2026, 1, 30, 12, tzinfo=UTC)
SHOP = identity_of("ml", "shop")
DATA = b"an artifact"
CLUSTER = Issuer()


def statement(of: int = 0) -> bytes:
    subject = {"name": "registry/shop", "digest": {"sha256": f"{of:064x}"}}
    predicate = {"_type": "https://in-toto.io/Statement/v1", "predicateType": "https://slsa.dev/provenance/v1", "predicate": {}}
    return json.dumps({**predicate, "subject": [subject]}, indent=1).encode()


class Hand:
    """A clock that is set by hand."""

    def __init__(self, at: datetime = NOW) -> None:
        self.at = at

    def now(self) -> datetime:
        return self.at


def instance(leaves: Leaves | None = None, *, seed: str = "01", hand: Hand | None = None) -> Embedded:
    return Embedded(Authority(Secret(seed * 32), BEGAN), leaves or MemoryLeaves(), identity=SHOP, now=(hand or Hand()).now)


def logged(bundle: bytes | dict[str, Any]) -> dict[str, Any]:
    held = bundle if isinstance(bundle, dict) else json.loads(bundle)
    found: dict[str, Any] = held["verificationMaterial"]["tlogEntries"][0]
    return found


def leaf_body(number: int) -> bytes:
    return artifact_body(number.to_bytes(32, "big"), b"signature", b"certificate")


# Keys


def test_its_keys_come_from_one_file_that_only_its_owner_reads(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "sigstore.seed"
    made = Authority.generate(path, NOW)
    again = Authority.load(path)
    assert (again.certificate_der, again.certificate_log_der, again.log.public_der, again.since) == (
        made.certificate_der,
        made.certificate_log_der,
        made.log.public_der,
        NOW,
    )
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(RefusedError, match="never written over"):
        Authority.generate(path, NOW)
    path.chmod(0o644)
    with pytest.raises(RefusedError, match="chmod 600"):
        Authority.load(path)
    seed = json.loads(path.read_bytes())["seed"]
    for bad in (b"", b"{}", path.read_bytes()[:-20], json.dumps({"form": 1, "seed": seed[:-2], "since": "x"}).encode()):
        with pytest.raises(TrustError, match="expected the seed of a Sigstore authority") as caught:
            Authority.parse(bad, "a Secret")
        assert seed[:8] not in repr(caught.value)
    assert seed not in repr(made) + repr(made.log) + repr(vars(made.log.__class__))


def test_another_seed_is_another_authority_and_each_key_is_another() -> None:
    one, two = (Authority(Secret(seed * 32), BEGAN) for seed in ("01", "02"))
    keys = {item.public_der for item in (one.log, two.log, one.short_lived(1), one.short_lived(2))}
    keys |= {one.certificate_log_der, two.certificate_log_der}
    assert len(keys) == 6
    assert one.name != two.name


def test_the_authority_of_a_seed_is_the_same_for_ever() -> None:
    # A change of how keys derive would make every signature worthless that was made before it.
    made = Authority(Secret("01" * 32), BEGAN)
    assert made.log.key_id.hex() == "d0e49d8d64f73d8190418824a934ea35f4af10c9b5176f819e24125eb2661459"
    assert made.name == "28627bec5ffbc978"


def test_certificates_are_given_only_while_it_lasts() -> None:
    made = Authority(Secret("01" * 32), BEGAN)
    for at in (BEGAN - timedelta(seconds=1), made.ends_at):
        with pytest.raises(RefusedError, match="in its 10 years"):
            made.issue(made.log.public_der, SHOP, OWN, at)
    assert instance(hand=Hand(BEGAN + timedelta(seconds=1))).sign_statement(statement())


def test_an_identity_that_reads_as_another_is_refused() -> None:
    for name in ("", "https://myelin/ml/shop x", "https://myelin/mľ/shop", "a\nb"):
        with pytest.raises(RefusedError, match="expected an address or a URI"):
            Embedded(Authority(Secret("01" * 32), BEGAN), MemoryLeaves(), identity=name)


# Signing


def test_what_it_signs_verifies_by_its_root() -> None:
    made = instance()
    bundle, artifact = made.sign_statement(statement()), made.sign_artifact(DATA)
    assert made.identity == (SHOP, OWN)
    assert verify_statement(bundle, made.trusted_root(), SHOP, OWN) == statement()
    keyless_root(made.trusted_root()).verify_artifact(json.dumps(artifact).encode(), DATA, SHOP, OWN)
    with pytest.raises(TrustError, match="certificate chain"):
        verify_statement(bundle, instance(seed="02").trusted_root(), SHOP, OWN)


def test_signing_the_same_again_gives_the_same_and_fills_no_log() -> None:
    leaves, hand = MemoryLeaves(), Hand()
    first = instance(leaves, hand=hand).sign_statement(statement())
    hand.at += timedelta(seconds=SLOT_SECONDS // 4)
    # A restart in between: nothing of the first one is left but its leaves and its seed.
    assert instance(leaves, hand=hand).sign_statement(statement()) == first
    assert len(list(leaves.since(0))) == 1
    hand.at += timedelta(seconds=SLOT_SECONDS)
    later = instance(leaves, hand=hand).sign_statement(statement())
    assert logged(later)["logIndex"] == "1"
    assert verify_statement(later, instance().trusted_root(), SHOP, OWN) == statement()


def test_statements_that_are_signed_together_are_logged_together() -> None:
    class Counting(MemoryLeaves):
        calls = 0

        def append(self, leaves: Sequence[Leaf]) -> None:
            self.calls += 1
            super().append(leaves)

    leaves = Counting()
    made = instance(leaves)
    bundles = made.sign_statements([statement(1), statement(2), statement(1)])
    assert leaves.calls == 1
    assert [logged(item)["logIndex"] for item in bundles] == ["0", "1", "0"]
    for of, bundle in zip((1, 2, 1), bundles, strict=True):
        assert verify_statement(bundle, made.trusted_root(), SHOP, OWN) == statement(of)


def test_what_is_no_statement_is_not_signed() -> None:
    leaves = MemoryLeaves()
    for bad in (b"", b"[]", b"{}", json.dumps({**json.loads(statement()), "subject": []}).encode()):
        with pytest.raises(TrustError, match="expected an in-toto statement"):
            instance(leaves).sign_statements([statement(), bad])
    assert not list(leaves.since(0))


def test_signing_takes_less_than_five_milliseconds() -> None:
    made = instance()
    made.log.add([leaf_body(number) for number in range(1000)])
    took = []
    for number in range(30):
        started = time.perf_counter()
        made.sign_statement(statement(number))
        took.append(time.perf_counter() - started)
    print(f"sign_statement: {statistics.median(took) * 1000:.2f} ms")
    assert min(took) < 0.005


def test_a_root_trusts_an_older_one_too_after_the_authority_was_renewed() -> None:
    old, new = instance(), instance(seed="02")
    root = merged_roots(new.trusted_root(), old.trusted_root(), new.trusted_root())
    for made in (old, new):
        assert verify_statement(made.sign_statement(statement()), root, SHOP, OWN) == statement()
    assert len(json.loads(root)["tlogs"]) == 2
    with pytest.raises(TrustError, match="expected trusted roots"):
        merged_roots(new.trusted_root(), "[]")


# Programs of others


def test_sigstores_own_verifier_for_node_takes_what_it_signs_and_refuses_what_was_changed(tmp_path: Path) -> None:
    if why := sigstore_js.why_no_node():
        pytest.skip(why)
    made, root = instance(), instance().trusted_root()
    for number in range(5):
        made.sign_statement(statement(number))
    path = tmp_path / "bundle.json"
    path.write_bytes(made.sign_statement(statement(9)))
    assert sigstore_js.verify(path, root, identity=SHOP, issuer=OWN) == ""
    assert "certificate identity error" in sigstore_js.verify(path, root, identity="https://myelin/ml/other", issuer=OWN)
    assert "issuer" in sigstore_js.verify(path, root, identity=SHOP, issuer="https://other")
    assert sigstore_js.verify(path, instance(seed="02").trusted_root(), identity=SHOP, issuer=OWN)
    held = json.loads(path.read_bytes())
    held["dsseEnvelope"]["payload"] = base64.b64encode(statement(8)).decode()
    path.write_text(json.dumps(held))
    assert sigstore_js.verify(path, root, identity=SHOP, issuer=OWN)
    path.write_text(json.dumps(made.sign_artifact(DATA)))
    assert sigstore_js.verify(path, root, identity=SHOP, issuer=OWN, artifact=DATA) == ""
    assert "SIGNATURE_ERROR" in sigstore_js.verify(path, root, identity=SHOP, issuer=OWN, artifact=DATA + b" ")


@pytest.mark.parametrize("major", [2, 3])
def test_cosign_verifies_what_it_signs_and_signs_there_itself(major: int, tmp_path: Path) -> None:
    if why := missing(major):
        pytest.skip(why)
    cosign = Cosign(major, tmp_path / "home")
    made = Embedded(Authority(Secret("03" * 32), BEGAN), MemoryLeaves(), identity=SHOP)
    for number in range(3):
        made.log.add([leaf_body(number)])
    artifact, root = tmp_path / "artifact", tmp_path / "root.json"
    artifact.write_bytes(DATA)
    root.write_text(made.trusted_root())
    (tmp_path / "statement.json").write_bytes(statement())
    (tmp_path / "ours.json").write_text(json.dumps(made.sign_artifact(DATA)))

    def judged(bundle: Path, identity: str, issuer: str, file: Path = artifact) -> str:
        who = ["--certificate-identity", identity, "--certificate-oidc-issuer", issuer]
        done = cosign("verify-blob", "--new-bundle-format", "--trusted-root", str(root), "--bundle", str(bundle), *who, str(file))
        return "" if done.returncode == 0 else done.stderr

    assert judged(tmp_path / "ours.json", SHOP, OWN) == ""
    assert "no matching CertificateIdentity found" in judged(tmp_path / "ours.json", SHOP + "x", OWN)
    other = tmp_path / "other"
    other.write_bytes(DATA + b" ")
    assert judged(tmp_path / "ours.json", SHOP, OWN, other)

    with serve(lambda url: Served(made, Tokens(ISSUER, CLUSTER.keys), url=url)) as url:
        services, token = tmp_path / "services.json", tmp_path / "token"
        services.write_text(json.dumps(json.loads(made.trust_config(url))["signingConfig"]))
        token.write_text(CLUSTER.token())
        known = ["--yes", "--identity-token", str(token), "--signing-config", str(services), "--trusted-root", str(root)]
        done = cosign("sign-blob", *known, "--new-bundle-format", "--bundle", str(tmp_path / "theirs.json"), str(artifact))
        assert done.returncode == 0, done.stderr
        words = ["--statement", str(tmp_path / "statement.json"), "--new-bundle-format", "--bundle", str(tmp_path / "said.json")]
        done = cosign("attest-blob", *known, *words)
        assert done.returncode == 0, done.stderr
    assert judged(tmp_path / "theirs.json", IDENTITY, ISSUER) == ""
    keyless_root(made.trusted_root()).verify_artifact((tmp_path / "theirs.json").read_bytes(), DATA, IDENTITY, ISSUER)
    said = verify_statement((tmp_path / "said.json").read_bytes(), made.trusted_root(), IDENTITY, ISSUER)
    assert json.loads(said)["predicateType"] == "https://slsa.dev/provenance/v1"


# The log in the ledger


class Site:
    """A project's ledger, and controllers that come and go."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.world, self.hand = folder, World(), Hand()
        init_bare(folder / "origin.git")
        self._open: dict[str, GitLedger] = {}
        self.repositories: list[GitRepository] = []

    def repository(self) -> GitRepository:
        place = self.folder / f"mirror-{len(self.repositories)}"
        self.repositories.append(GitRepository(str(self.folder / "origin.git"), place, CONTROLLER))
        return self.repositories[-1]

    def ledger(self, name: str = "one") -> GitLedger:
        """The ledger of a controller; the one that had it open before is gone without a word."""
        if name in self._open:
            self._open.pop(name).close()
        self._open[name] = GitLedger(self.repository(), self.folder / name, CONTROLLER, HandClock(self.world))
        return self._open[name]

    def wipe(self, name: str) -> None:
        """Lose a controller's disk."""
        self._open.pop(name).close()
        shutil.rmtree(self.folder / name)

    def controller(self, name: str = "one") -> Embedded:
        return instance(LedgerLeaves(self.ledger(name)), hand=self.hand)

    def clone(self) -> list[Entry]:
        """What somebody sees who only has the branch."""
        reader = self.repository()
        return [decode(line.raw) for line in lines_of(reader, reader.fetch(BRANCH))]

    def lose_git(self) -> None:
        (self.folder / "origin.git").rename(self.folder / "away.git")

    def find_git(self) -> None:
        (self.folder / "away.git").rename(self.folder / "origin.git")

    def close(self) -> None:
        for ledger in self._open.values():
            ledger.close()
        for repository in self.repositories:
            repository.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.close()


def holds(bundle: bytes, made: Embedded) -> bool:
    """Whether a bundle's proof leads to a root that the log's tree had, and that today's tree begins with."""
    proof = logged(bundle)["inclusionProof"]
    first, (second, root, _) = int(proof["treeSize"]), made.log.head()
    old = base64.b64decode(proof["rootHash"])
    path = made.log.consistency(first, second)
    return is_consistent(first=first, second=second, first_root=old, second_root=root, proof=path)


def test_the_log_goes_on_after_a_restart_where_it_was(site: Site) -> None:
    made = site.controller()
    bundles = [made.sign_statement(statement(number)) for number in range(5)]
    again = site.controller()
    bundles.append(again.sign_statement(statement(5)))
    assert [logged(item)["logIndex"] for item in bundles] == ["0", "1", "2", "3", "4", "5"]
    assert all(holds(item, again) for item in bundles)
    assert logged(again.sign_statement(statement(2)))["logIndex"] == "2"
    site.wipe("one")
    assert all(holds(item, site.controller()) for item in bundles)


def test_its_roots_can_be_made_again_from_a_clone_alone(site: Site) -> None:
    made, ledger = site.controller(), None
    for number in range(3):
        made.sign_statement(statement(number))
    ledger = site._open["one"]
    ledger.record([Statement(kind="event", key="event/1", axon="shop", body={"id": "1"})])
    made.sign_artifact(DATA)
    size, root, checkpoint = made.log.head()
    tree = tree_of(site.clone())
    assert (tree.size, tree.root()) == (size, root) == (4, root)
    assert base64.b64encode(root).decode() in checkpoint
    assert [leaf_of(entry) is None for entry in site.clone()] == [False, False, False, True, False]


def test_the_rest_of_the_ledger_does_not_mind(site: Site) -> None:
    made = site.controller()
    site._open["one"].record([Statement(kind="resolved", key="resolved/1", axon="shop", body={"event": "1"})])
    made.sign_statement(statement())
    entries = site.clone()
    assert [entry.statement.kind for entry in entries] == ["resolved", "log"]
    folded = fold(entries)
    assert folded.resolved == {"1"}
    assert folded.entries == 2
    assert not folded.tasks | folded.runs | folded.events
    assert folded == fold(entries[1:], onto=fold(entries[:1]))
    reader = site.repository()
    proof = check_ledger(reader, reader.fetch(BRANCH), [CONTROLLER.public()], signer=lambda _: "", folder=site.folder / "one")
    assert (proof.entries, proof.reason) == (2, "")


def test_two_controllers_lose_none_of_their_leaves(site: Site) -> None:
    one, two = site.controller("one"), site.controller("two")
    bundles = []
    for number in range(4):
        bundles.append(one.sign_statement(statement(number)))
        bundles.append(two.sign_statement(statement(100 + number)))
    assert sorted(int(logged(item)["logIndex"]) for item in bundles) == list(range(8))
    # What the other one pushed last is seen at the next push of one's own; until then the shorter tree is a part of the longer.
    (size, root, _), (whole, newest, _) = one.log.head(), two.log.head()
    assert (size, whole, tree_of(site.clone()).root()) == (7, 8, newest)
    path = two.log.consistency(size, whole)
    assert is_consistent(first=size, second=whole, first_root=root, second_root=newest, proof=path)
    assert all(holds(item, two) for item in bundles)
    bundles.append(one.sign_statement(statement(8)))
    assert all(holds(item, one) for item in bundles)


def test_nothing_is_proven_that_could_still_move(site: Site) -> None:
    one = site.controller("one")
    one.sign_statement(statement(0))
    site.lose_git()
    with pytest.raises(SilentError):
        one.sign_statement(statement(1))
    assert one.log.head()[0] == 1
    site.find_git()
    # Somebody else is faster; what waited is chained behind it.
    other = site.controller("two").sign_statement(statement(2))
    mine = one.sign_statement(statement(1))
    assert (logged(other)["logIndex"], logged(mine)["logIndex"]) == ("1", "2")
    assert holds(other, one)
    assert holds(mine, one)


CRASHES = ("before the push", "after the push")


@pytest.mark.parametrize("when", CRASHES)
def test_a_crash_while_signing_leaves_one_entry_for_one_signature(site: Site, when: str) -> None:
    class Killed(Exception):
        pass

    ledger = site.ledger()
    push = ledger.push

    def dying() -> int:
        if when == "after the push":
            push()
        raise Killed

    ledger.push = dying  # type: ignore[method-assign]
    with pytest.raises(Killed):
        instance(LedgerLeaves(ledger), hand=site.hand).sign_statement(statement())
    again = site.controller()
    assert logged(again.sign_statement(statement()))["logIndex"] == "0"
    assert again.log.head()[0] == 1
    assert len(site.clone()) == 1


def test_a_log_that_was_rewritten_is_noticed(site: Site) -> None:
    made = site.controller()
    made.sign_statement(statement(0))
    made.sign_statement(statement(1))
    leaves = LedgerLeaves(site._open["one"])
    assert len(list(leaves.since(0))) == 2
    leaves._head = "sha256:" + "0" * 64
    with pytest.raises(TrustError, match=r"it was rewritten; run `myelin verify`"):
        list(leaves.since(0))


def test_an_entry_that_only_looks_like_a_leaf_is_none(site: Site) -> None:
    ledger = site.ledger()
    good = json.loads(leaf_body(1))
    ledger.record(
        [
            Statement(kind="log", key="log/sha256:" + "0" * 64, axon="", body={"entry": good, "integratedTime": 1}),
            Statement(kind="log", key="log/2", axon="", body={"integratedTime": 1}),
            Statement(kind="log", key="log/3", axon="", body={"entry": good}),
        ]
    )
    ledger.push()
    assert list(LedgerLeaves(ledger).since(0)) == []


# Served


class Front:
    """The embedded instance behind its HTTP face, without HTTP."""

    def __init__(self) -> None:
        self.hand, self.leaves = Hand(SystemClock().now()), MemoryLeaves()
        self.embedded = instance(self.leaves, hand=self.hand)
        tokens = Tokens(ISSUER, CLUSTER.keys)
        self.served = Served(self.embedded, tokens, url="http://127.0.0.1:1", now=self.hand.now)
        self.key = ec.generate_private_key(ec.SECP256R1())

    def ask(self, method: str, path: str, body: object = b"", **headers: str) -> Answer:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.served.handle(method, path, headers, raw)

    def request(self, key: ec.EllipticCurvePrivateKey | None = None) -> dict[str, str]:
        asked = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key or self.key, hashes.SHA256())
        return {"certificateSigningRequest": text64(asked.public_bytes(serialization.Encoding.PEM))}

    def certificate(self) -> str:
        status, _, body = self.ask("POST", "/api/v2/signingCert", self.request(), authorization=f"Bearer {CLUSTER.token()}")
        assert status == 200, body
        return str(json.loads(body)["signedCertificateEmbeddedSct"]["chain"]["certificates"][0])

    def entry(self, data: bytes = DATA, certificate: str = "") -> dict[str, Any]:
        digest = hashes.Hash(hashes.SHA256())
        digest.update(data)
        spec = {
            "data": {"hash": {"algorithm": "sha256", "value": digest.finalize().hex()}},
            "signature": {
                "content": text64(self.key.sign(data, ec.ECDSA(hashes.SHA256()))),
                "publicKey": {"content": text64((certificate or self.certificate()).encode())},
            },
        }
        return {"apiVersion": "0.0.1", "kind": "hashedrekord", "spec": spec}

    def envelope(self) -> dict[str, Any]:
        signature = self.key.sign(envelope_data("application/vnd.in-toto+json", statement()), ec.ECDSA(hashes.SHA256()))
        envelope = {
            "payload": text64(statement()),
            "payloadType": "application/vnd.in-toto+json",
            "signatures": [{"sig": text64(signature), "keyid": ""}],
        }
        content = {"envelope": json.dumps(envelope), "verifiers": [text64(self.certificate().encode())]}
        return {"apiVersion": "0.0.1", "kind": "dsse", "spec": {"proposedContent": content}}


def text64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.fixture
def front() -> Front:
    return Front()


def test_what_rekor_is_asked_it_answers(front: Front) -> None:
    status, headers, body = front.ask("POST", "/api/v1/log/entries", front.entry())
    assert status == 201
    ((uuid, held),) = json.loads(body).items()
    assert headers["Location"] == f"/api/v1/log/entries/{uuid}"
    assert held["logIndex"] == 0
    assert json.loads(front.ask("POST", "/api/v1/log/entries", front.envelope())[2]).popitem()[1]["logIndex"] == 1
    for path in (f"/api/v1/log/entries/{uuid}", "/api/v1/log/entries?logIndex=0", f"/api/v1/log/entries/{'0' * 16}{uuid}"):
        status, _, again = front.ask("GET", path)
        assert status == 200
        assert json.loads(again)[uuid]["body"] == held["body"]
    status, _, body = front.ask("GET", "/api/v1/log")
    said = json.loads(body)
    size, root, checkpoint = front.embedded.log.head()
    assert (
        (said["treeSize"], said["rootHash"], said["signedTreeHead"])
        == (size, root.hex(), checkpoint)
        == (2, root.hex(), checkpoint)
    )
    status, _, body = front.ask("GET", "/api/v1/log/proof?firstSize=1&lastSize=2")
    proof = [bytes.fromhex(item) for item in json.loads(body)["hashes"]]
    first = bytes.fromhex(held["verification"]["inclusionProof"]["rootHash"])
    assert is_consistent(first=1, second=2, first_root=first, second_root=root, proof=proof)
    assert front.ask("GET", "/api/v1/log/publicKey")[2].decode() == front.embedded.authority.log.public_pem
    assert front.ask("GET", "/trusted_root.json")[2].decode() == front.embedded.trusted_root()
    assert front.ask("GET", "/trust_config.json")[2].decode() == front.embedded.trust_config("http://127.0.0.1:1")
    bundle = json.loads(front.ask("GET", "/api/v2/trustBundle")[2])["chains"][0]["certificates"]
    assert bundle == [pem(front.embedded.authority.certificate_der, "CERTIFICATE")]


def test_an_entry_that_comes_twice_is_in_once(front: Front) -> None:
    entry = front.entry()
    one, two = (front.ask("POST", "/api/v1/log/entries", entry) for _ in range(2))
    assert one[0] == two[0] == 201
    assert one[1] == two[1]
    assert len(list(front.leaves.since(0))) == 1


def spoiled(entry: dict[str, Any], change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    change(entry)
    return entry


def asks_for_certificate(front: Front, token: str, body: object = None) -> Answer:
    return front.ask("POST", "/api/v2/signingCert", front.request() if body is None else body, authorization=f"Bearer {token}")


def with_proof(front: Front, said: bytes) -> dict[str, Any]:
    public = front.key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    proof = text64(front.key.sign(said, ec.ECDSA(hashes.SHA256())))
    return {"publicKeyRequest": {"publicKey": {"algorithm": "ECDSA", "content": public.decode()}, "proofOfPossession": proof}}


def unsound(front: Front) -> dict[str, str]:
    """A certificate request whose signature is of another request."""
    asked = bytearray(
        base64.b64decode("".join(base64.b64decode(front.request()["certificateSigningRequest"]).decode().splitlines()[1:-1]))
    )
    asked[-1] ^= 1
    return {"certificateSigningRequest": text64(pem(bytes(asked), "CERTIFICATE REQUEST").encode())}


def after_it_ended(front: Front) -> Answer:
    entry = front.entry()
    front.hand.at += timedelta(minutes=11)
    return front.ask("POST", "/api/v1/log/entries", entry)


def foreign(front: Front) -> str:
    public = front.key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    other = Authority(Secret("02" * 32), BEGAN)
    return pem(other.issue(public, SHOP, OWN, front.hand.at), "CERTIFICATE")


REFUSED: dict[str, tuple[Callable[[Front], Answer], int, str]] = {
    "no token": (lambda f: f.ask("POST", "/api/v2/signingCert", f.request()), 401, "expected a signed identity token"),
    "junk for a token": (lambda f: asks_for_certificate(f, "a.b.c"), 401, "identity token"),
    "somebody else's token": (lambda f: asks_for_certificate(f, Issuer().token()), 401, "signed by its issuer"),
    "a token that has ended": (lambda f: asks_for_certificate(f, CLUSTER.token(exp=1)), 401, "one that holds now"),
    "an odd certificate request": (
        lambda f: asks_for_certificate(f, CLUSTER.token(), unsound(f)),
        400,
        "expected a certificate request",
    ),
    "no request": (lambda f: asks_for_certificate(f, CLUSTER.token(), {}), 400, "not understood"),
    "a list": (lambda f: asks_for_certificate(f, CLUSTER.token(), []), 400, "not understood"),
    "a proof for somebody else": (
        lambda f: asks_for_certificate(f, CLUSTER.token(), with_proof(f, b"system:serviceaccount:ml:other")),
        400,
        "proofOfPossession",
    ),
    "junk": (lambda f: f.ask("POST", "/api/v1/log/entries", b"{"), 400, "not understood"),
    "another kind of entry": (
        lambda f: f.ask("POST", "/api/v1/log/entries", {**f.entry(), "kind": "alpine"}),
        400,
        "expected a hashedrekord or dsse entry",
    ),
    "an entry by another authority": (
        lambda f: f.ask("POST", "/api/v1/log/entries", f.entry(certificate=foreign(f))),
        400,
        "expected a certificate of this authority",
    ),
    "an entry by a certificate that has ended": (after_it_ended, 400, "expected a certificate that holds now"),
    "a signature of something else": (
        lambda f: f.ask(
            "POST", "/api/v1/log/entries", spoiled(f.entry(), lambda e: e["spec"]["data"]["hash"].update(value="0" * 64))
        ),
        400,
        "expected a signature of that digest",
    ),
    "a digest that is none": (
        lambda f: f.ask("POST", "/api/v1/log/entries", spoiled(f.entry(), lambda e: e["spec"]["data"]["hash"].update(value="x"))),
        400,
        "expected a SHA-256 digest",
    ),
    "an envelope of something else": (
        lambda f: f.ask(
            "POST",
            "/api/v1/log/entries",
            spoiled(
                f.envelope(),
                lambda e: e["spec"]["proposedContent"].update(
                    envelope=e["spec"]["proposedContent"]["envelope"].replace("in-toto+json", "in-toto+yaml")
                ),
            ),
        ),
        400,
        "expected a signature of that envelope",
    ),
    "too much": (lambda f: f.ask("POST", "/api/v1/log/entries", b" " * (LARGEST_BODY_BYTES + 1)), 413, "at most"),
    "an entry that is not there": (lambda f: f.ask("GET", "/api/v1/log/entries?logIndex=7"), 404, "log entry 7"),
    "a negative place": (lambda f: f.ask("GET", "/api/v1/log/entries?logIndex=-1"), 404, "log entry -1"),
    "a hash that is not there": (lambda f: f.ask("GET", f"/api/v1/log/entries/{'0' * 64}"), 404, "log entry 000"),
    "a size that it never had": (lambda f: f.ask("GET", "/api/v1/log/proof?lastSize=9"), 400, "expected a size up to 0"),
    "another address": (lambda f: f.ask("GET", "/api/v1/index/retrieve"), 404, "nothing here"),
    "another method": (lambda f: f.ask("DELETE", "/api/v1/log/entries"), 404, "nothing here"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_right_is_refused_and_leaves_nothing_in_the_log(what: str, front: Front) -> None:
    act, status, words = REFUSED[what]
    got, headers, body = act(front)
    said = json.loads(body)
    assert (got, said["code"]) == (status, status), said
    assert words in said["message"]
    assert headers["Content-Type"] == "application/json"
    assert not list(front.leaves.since(0))


def test_a_key_is_certified_for_whoever_signs_their_subject_with_it(front: Front) -> None:
    status, _, body = asks_for_certificate(front, CLUSTER.token(), with_proof(front, b"system:serviceaccount:ml:ci"))
    assert status == 200
    held = x509.load_pem_x509_certificate(json.loads(body)["signedCertificateEmbeddedSct"]["chain"]["certificates"][0].encode())
    names = held.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [IDENTITY]


def test_nobody_is_given_a_certificate_for_the_controller_itself(front: Front) -> None:
    for identity in ((SHOP, OWN), ("https://myelin/ml/shop x", ISSUER), ("", ISSUER)):
        served = Served(front.embedded, lambda _, who=identity: who, url="")  # type: ignore[misc]
        status, _, body = served.handle("POST", "/api/v2/signingCert", {}, json.dumps(front.request()).encode())
        assert status == 401
        assert "of another issuer than the controller itself" in json.loads(body)["message"]


# Tokens


def claimed(**claims: Any) -> Callable[[Issuer], str]:
    return lambda issuer: issuer.token(**claims)


NOT_TAKEN: dict[str, tuple[Callable[[Issuer], str], str]] = {
    "nothing": (lambda _: "", "a signed identity token"),
    "two parts": (lambda i: i.token().rpartition(".")[0], "a signed identity token"),
    "no signature": (lambda i: i.token().rpartition(".")[0] + ".", "a signed identity token"),
    "algorithm none": (lambda i: i.token({"alg": "none"}), "signed by its issuer"),
    "a symmetric algorithm": (lambda i: i.token({"alg": "HS256"}), "signed by its issuer"),
    "the algorithm of another key": (
        lambda i: i.token({"alg": "RS256" if i.algorithm == "ES256" else "ES256"}),
        "signed by its issuer",
    ),
    "the name of another key": (lambda i: i.token({"kid": "key-2"}), "signed by its issuer"),
    "another key of that name": (lambda i: Issuer(i.algorithm).token(), "signed by its issuer"),
    "an extension that must be understood": (lambda i: i.token({"crit": ["b64"]}), "a signed identity token"),
    "changed claims": (
        lambda i: ".".join(
            [i.token().split(".")[0], i.token(sub="system:serviceaccount:ml:admin").split(".")[1], i.token().split(".")[2]]
        ),
        "signed by its issuer",
    ),
    "another issuer": (claimed(iss="https://other"), f"one of {ISSUER}"),
    "another audience": (claimed(aud="vault"), "for the audience `sigstore`"),
    "no audience": (claimed(aud=None), "for the audience `sigstore`"),
    "no end": (claimed(exp=None), "one that holds now"),
    "an end that is no number": (claimed(exp="never"), "one that holds now"),
    "an end in the past": (claimed(exp=1), "one that holds now"),
    "a beginning in the future": (claimed(nbf=32503680000), "one that holds now"),
    "a person": (claimed(sub="ada"), "a service account"),
    "a service account with a path in its name": (claimed(sub="system:serviceaccount:ml:ci/../../x"), "a service account"),
    "very long": (lambda i: i.token(more="x" * 20000), "a signed identity token"),
}


@pytest.mark.parametrize("algorithm", ["ES256", "RS256"])
@pytest.mark.parametrize("what", NOT_TAKEN)
def test_a_token_that_is_not_right_is_not_taken_and_not_shown(what: str, algorithm: str, issuers: dict[str, Issuer]) -> None:
    make, words = NOT_TAKEN[what]
    issuer = issuers[algorithm]
    token = make(issuer)
    with pytest.raises(RefusedError, match="ask for a new one") as caught:
        Tokens(ISSUER, issuer.keys)(token)
    assert words in caught.value.message
    assert not [part for part in token.split(".") if len(part) > 8 and part in caught.value.message]
    assert caught.value.__cause__ is None


@pytest.fixture(scope="module")
def issuers() -> dict[str, Issuer]:
    return {"ES256": CLUSTER, "RS256": Issuer("RS256")}


@pytest.mark.parametrize("algorithm", ["ES256", "RS256"])
def test_a_token_says_whose_it_is(algorithm: str, issuers: dict[str, Issuer]) -> None:
    tokens = Tokens(ISSUER, issuers[algorithm].keys)
    assert tokens(issuers[algorithm].token()) == (IDENTITY, ISSUER)
    assert tokens(issuers[algorithm].token({"kid": None}, aud="sigstore")) == (IDENTITY, ISSUER)
    with pytest.raises(RefusedError):
        Tokens(ISSUER, lambda: '{"keys": []}')(issuers[algorithm].token())
    with pytest.raises(RefusedError):
        Tokens(ISSUER, lambda: "<html>")(issuers[algorithm].token())


# Turns


def test_what_others_ask_is_done_by_whom_the_ledger_belongs_to(site: Site) -> None:
    made, woken = site.controller(), threading.Event()
    turn = Turn(woken.set, patience_seconds=30)
    signer: list[str] = []
    with serve(lambda url: Served(made, Tokens(ISSUER, CLUSTER.keys), url=url, in_turn=turn)) as url:
        config, seen = made.trust_config(url), []

        def sign() -> None:
            signer.append(Keyless(config, CLUSTER.token).sign_statement(statement(7)).decode())

        thread = threading.Thread(target=sign)
        site.hand.at = SystemClock().now()
        thread.start()
        while thread.is_alive():
            if woken.wait(0.05):
                woken.clear()
                seen.append(threading.current_thread())
                turn.work()
        thread.join()
    assert verify_statement(signer[0].encode(), config, IDENTITY, ISSUER) == statement(7)
    assert seen == [threading.main_thread()]
    assert tree_of(site.clone()).size == 1


def test_who_waits_too_long_is_told_to_ask_again_and_nothing_is_done_behind_their_back() -> None:
    turn, done = Turn(lambda: None, patience_seconds=0.01), []
    with pytest.raises(SilentError, match="ask again"):
        turn(lambda: done.append(1))
    turn.work()
    assert done == []


def test_a_fault_in_a_turn_is_that_of_who_asked() -> None:
    turn = Turn(lambda: threading.Thread(target=turn.work).start())

    def act() -> None:
        raise DesiredStateError("log entry 1: expected one below 0", reason="NoSuchName")

    with pytest.raises(DesiredStateError, match="log entry 1"):
        turn(act)


def test_a_log_of_many_leaves_grows_without_being_hashed_anew() -> None:
    leaves = MemoryLeaves()
    log = Log(leaves, lambda _: b"", log_id=bytes(32), origin="log", now=Hand().now, recent=10)
    leaves.append([Leaf(body=b"%d" % number, at_seconds=0) for number in range(20_000)])
    log.head()
    started = time.perf_counter()
    for number in range(100):
        log.add([b"new %d" % number])
    each = (time.perf_counter() - started) / 100
    (old,) = log.add([b"7"])
    assert (old.place, log.head()[0]) == (7, 20_100)
    print(f"adding to 20,000 leaves: {each * 1000:.2f} ms")
    assert each < 0.005


# Choosing


def test_what_lies_in_the_folder_of_keys_decides_who_signs(site: Site, tmp_path: Path) -> None:
    folder, ledger, clock = tmp_path / "keys", site.ledger(), Hand(BEGAN + timedelta(days=1))
    folder.mkdir()

    def chosen(**environ: str) -> Chosen | None:
        return chosen_in(folder, clock, owner=("ml", "shop"), environ=environ)

    assert chosen() is None
    assert pinned_in(folder, owner=("ml", "shop")) is None
    made = make_seed(folder, BEGAN)
    found = chosen()
    assert found is not None
    assert found.identity == pinned_in(folder, owner=("ml", "shop"))
    assert (found.identity.identity, found.identity.issuer) == (SHOP, OWN)
    assert found.identity.root == Embedded(made, MemoryLeaves(), identity=SHOP).trusted_root()
    embedded, turn = found.embedded(ledger, clock), Turn(lambda: None)
    turn.work()
    assert embedded is not None
    signer = found.signer(embedded, turn)
    assert signer.identity == (SHOP, OWN)
    bundle = signer.sign_statement(statement())
    assert verify_statement(bundle, signer.root, SHOP, OWN) == statement()
    assert tree_of(site.clone()).size == 1

    (folder / "sigstore.json").write_text(embedded.trust_config("http://127.0.0.1:9") + "\n")
    with pytest.raises(RefusedError, match="got both; remove the one"):
        chosen()
    (folder / "sigstore.seed").unlink()
    # Whom the instance calls us is not said, so it is asked, with a token.
    assert pinned_in(folder, owner=("ml", "shop")) is None
    with pytest.raises(RefusedError, match=r"keys/identity.token: expected an identity token"):
        chosen()
    with pytest.raises(RefusedError, match=r"projected: expected an identity token"):
        chosen(MYELIN_IDENTITY_TOKEN_FILE=str(tmp_path / "projected"))
    (folder / "sigstore.identity").write_text(f"{IDENTITY} {ISSUER}\n")
    asked = chosen()
    assert asked is not None
    assert asked.identity == pinned_in(folder, owner=("ml", "shop"))
    assert asked.embedded(ledger, clock) is None
    assert asked.signer(None, turn).identity == (IDENTITY, ISSUER)
    with pytest.raises(RefusedError, match=r"keys/identity.token: expected an identity token"):
        asked.signer(None, turn).sign_statement(statement())
    (folder / "sigstore.json").write_text("{}")
    with pytest.raises(TrustError, match="expected a client trust configuration"):
        chosen()
    (folder / "sigstore.json").write_text("")
    public = chosen()
    assert public is not None
    assert (public.identity.identity, public.identity.root) == (IDENTITY, "")


def test_an_instance_that_calls_us_otherwise_signs_nothing() -> None:
    made = instance()
    signer = IdentitySigner(made, made.trusted_root(), expected=(IDENTITY, ISSUER))
    with pytest.raises(RefusedError, match=f"expected to sign as {IDENTITY}") as caught:
        signer.sign_statement(statement())
    assert (caught.value.reason, made.log.head()[0]) == ("OtherIdentity", 0)


def test_what_only_waits_for_the_next_push_is_tried_again_and_only_by_who_has_no_turn() -> None:
    tries: list[int] = []
    turn = Turn(lambda: threading.Thread(target=turn.work).start(), patience_seconds=30)

    def act() -> int:
        tries.append(1)
        if len(tries) < 3:
            raise SilentError("transparency log: still waits to be pushed", reason=NOT_PUSHED)
        return len(tries)

    assert turn(act) == 3
    tries.clear()
    turn.work()
    with pytest.raises(SilentError):
        turn(act)
    assert len(tries) == 1


def test_while_git_is_away_no_try_to_sign_makes_the_ledger_longer(site: Site) -> None:
    made, ledger = site.controller(), site._open["one"]
    made.sign_statement(statement(0))
    site.lose_git()
    for number in range(1, 4):
        with pytest.raises(SilentError, match="signing waits for it"):
            made.sign_statement(statement(number))
    assert ledger.pending() == 1
    site.find_git()
    assert logged(made.sign_statement(statement(3)))["logIndex"] == "2"
    assert logged(made.sign_statement(statement(1)))["logIndex"] == "1"
