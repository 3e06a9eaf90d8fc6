"""The controller's commits under an OpenPGP key: made without gpg, verified by the real one."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from controller import keyring, project
from controller.adapters.clock import SystemClock
from controller.adapters.documents import YamlDocuments
from controller.adapters.keys import SshKey
from controller.adapters.signatures.openpgp import OpenpgpKey, is_same, primary_fingerprint
from controller.answers.opened import opened
from controller.answers.proof import check_ledger
from controller.cli import app
from controller.project import Place
from controller.projects import open_project
from controller.trustfile import TrustFile, pin_of, read_trust, signature_reader, with_certificate
from controller.wiring import wire
from policies.errors import ControllerError, RefusedError, TrustError
from policies.terms.record import Statement
from policies.trust import judge
from policies.writeback import is_own
from tests.controller.test_projects import body_of, cluster_with, good_secrets, good_spec
from tests.controller.test_signatures import Gpg

RELEASE, VERSION = "releases/digits/web.yaml", "versions/digits/v-0000000000.yaml"
SECRET_LINE = "PRIVATE KEY"


@pytest.fixture(scope="module")
def gpg(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gpg]:
    made = Gpg(tmp_path_factory.mktemp("g"))
    yield made
    made.close()


def secret_of(gpg: Gpg, name: str, *more: str) -> bytes:
    return gpg("--armor", "--export-secret-keys", *more, name)


def tip(place: Place, branch: str) -> bytes:
    return subprocess.run(["git", "cat-file", "commit", branch], cwd=place.url, capture_output=True, check=True).stdout


def git_with(gpg: Gpg, place: Place, *args: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "GNUPGHOME": str(gpg.home / "gnupg"), "GIT_CONFIG_NOSYSTEM": "1", "LC_ALL": "C"}
    return subprocess.run(["git", *args], cwd=place.url, env=environment, capture_output=True, text=True, check=False)


# The key.


def test_a_key_is_made_once_for_its_owners_eyes_and_never_shows(tmp_path: Path) -> None:
    path = tmp_path / "controller.asc"
    key = OpenpgpKey.generate(path, "Myelin <myelin@example.org>").check()
    assert path.stat().st_mode & 0o777 == 0o600
    assert is_same(OpenpgpKey.load(path).certificate, key.certificate)
    assert SECRET_LINE in path.read_text()
    assert (repr(key), SECRET_LINE in key.certificate) == ("OpenpgpKey(***)", False)
    assert len(primary_fingerprint(key.certificate)) == 40
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(key)
    with pytest.raises(RefusedError, match="a key is never written over"):
        OpenpgpKey.generate(path, "Myelin")
    path.chmod(0o640)
    with pytest.raises(RefusedError, match="only its owner may read"):
        OpenpgpKey.load(path)


def _expired(gpg: Gpg) -> bytes:
    gpg.key("olga", until="20200201T000000", at="20200101T000000")
    return secret_of(gpg, "olga")


def _certifying_only(gpg: Gpg) -> bytes:
    gpg("--quick-generate-key", "cleo", "ed25519", "cert", "never")
    return secret_of(gpg, "cleo")


def _with_passphrase(gpg: Gpg) -> bytes:
    gpg("--passphrase", "hunter2", "--quick-generate-key", "paul", "ed25519", "sign", "never")
    return secret_of(gpg, "paul", "--passphrase", "hunter2")


def _public(gpg: Gpg) -> bytes:
    return gpg.key("petra").encode()


def _two(gpg: Gpg) -> bytes:
    gpg.key("una")
    gpg.key("dora")
    return secret_of(gpg, "una", "dora")


WRONG_KEYS: dict[str, tuple[Callable[[Gpg], bytes], str]] = {
    "the public part of one": (_public, "one secret key as `gpg --armor --export-secret-keys` writes it, got its public part"),
    "two": (_two, "expected one secret key as .* got something else"),
    "no key at all": (lambda _: b"hunter2 is no key", "got something else"),
    "nothing": (lambda _: b"", "got something else"),
    "more than a key is long": (lambda _: b"A" * 70000, "got more than 65536 characters"),
    "one that has expired": (_expired, r"without passphrase that may sign now, got one that may not \(No suitable signing"),
    "one that may only certify": (_certifying_only, r"got one that may not \(No suitable signing"),
    "one with a passphrase": (_with_passphrase, r"got one that may not \(.*encrypted"),
}


@pytest.mark.parametrize("case", WRONG_KEYS)
def test_a_key_that_cannot_sign_commits_is_refused_by_its_place(case: str, gpg: Gpg, tmp_path: Path) -> None:
    make, fault = WRONG_KEYS[case]
    path = tmp_path / "keys" / "controller.asc"
    path.parent.mkdir()
    path.write_bytes(make(gpg))
    path.chmod(0o600)
    with pytest.raises(ControllerError, match=fault) as raised:
        keyring.openpgp_key(tmp_path)
    assert (raised.value.reason, raised.value.message.startswith(f"{path}: expected ")) == ("NoKey", True)
    assert "hunter2" not in raised.value.message


def test_an_offline_primary_key_stays_offline(gpg: Gpg, tmp_path: Path) -> None:
    gpg("--quick-generate-key", "offa", "ed25519", "cert", "never")
    gpg("--quick-add-key", primary_fingerprint(gpg.certificate("offa")), "ed25519", "sign", "never")
    key = OpenpgpKey.parse(gpg("--armor", "--export-secret-subkeys", "offa"), "x").check()
    assert is_same(key.certificate, gpg.certificate("offa"))


# Commits.


class World:
    """A project whose controller has an OpenPGP key."""

    def __init__(self, folder: Path) -> None:
        self.place = project.make(folder / "p", now=SystemClock().now())
        self.number = 0

    def lay_key(self) -> str:
        """The certificate."""
        return keyring.make(self.place.state / "keys", openpgp="Myelin <myelin@localhost>")["openpgp"]

    def commit(self, path: str = RELEASE) -> str:
        """One of the controller's, as its next life makes it."""
        self.number += 1
        with wire(project.settings_of(self.place, inbox_port=0)) as wired:
            repository, now = wired.ports.repository, wired.ports.clock.now()
            text = f"# {self.number}\n".encode()
            message = f"change {self.number}\n"
            return repository.push(branch="main", parent=repository.fetch("main"), changes={path: text}, message=message, at=now)

    def judged(self, pinned: TrustFile | None = None) -> tuple[str, list[bool]]:
        """Why the tip is not trusted, and which commits are the controller's own, as any clone with the trust file sees it."""
        place = self.place
        if pinned is not None:
            file = place.state.parent / "other-trust.yaml"
            file.write_bytes(YamlDocuments().render(pinned.model_dump(mode="json", by_alias=True)))
            place = replace(place, trust=file, state=place.state.parent / "elsewhere")
        with opened(place) as it:
            facts = it.facts()
            return judge(it.pin, facts, trusted=None).fault, [is_own(one, it.pin.own) for one in facts]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_main_proposals_and_ledger_are_signed_under_it_and_gpg_verifies_them(world: World, gpg: Gpg) -> None:
    certificate = world.lay_key()
    gpg("--import", stdin=certificate.encode())
    with wire(project.settings_of(world.place, inbox_port=0)) as wired:
        ports = wired.ports
        parent, now = ports.repository.fetch("main"), ports.clock.now()
        made = {"parent": parent, "changes": {RELEASE: b"# 1\n"}, "message": "deploy: ünïcode\n\nbody\n", "at": now}
        ports.repository.propose(branch="myelin/p", expected="", **made)
        ports.repository.push(branch="main", **made)
        ports.ledger.record([Statement(kind="event", key="event/1", axon="digits", body={})])
        assert ports.ledger.push() == 1
        assert [key.kind for key in ports.own] == ["ssh", "openpgp"]
    with opened(world.place) as it:
        # Entries are signed by the SSH key all the same.
        assert it.pin.controller is not None
        found = check_ledger(it.repository, it.ledger_head(), [it.pin.controller.key], signer=it.name_of)
        assert (found.entries, found.faults) == (1, ())
    for branch in ("main", "myelin/p", "myelin/ledger"):
        assert b"\ngpgsig -----BEGIN PGP SIGNATURE-----\n \n " in tip(world.place, branch)
        verified = git_with(gpg, world.place, "verify-commit", branch)
        assert (verified.returncode, 'Good signature from "Myelin <myelin@localhost>"' in verified.stderr) == (0, True), verified
    shown = git_with(gpg, world.place, "log", "-1", "--show-signature", "--format=%G? %GF", "main")
    assert "Good signature" in shown.stdout
    assert shown.stdout.splitlines()[-1].startswith(("G ", "U "))
    forged = tip(world.place, "main").replace(b"body", b"BODY")
    name = subprocess.run(
        ["git", "hash-object", "-t", "commit", "-w", "--stdin"],
        cwd=world.place.url,
        input=forged,
        capture_output=True,
        check=True,
    ).stdout.decode()
    assert git_with(gpg, world.place, "verify-commit", name.strip()).returncode != 0


def test_who_changes_from_ssh_to_openpgp_keeps_the_history(world: World) -> None:
    before = read_trust(world.place.trust)
    world.commit()
    certificate = world.lay_key()
    world.commit()
    assert world.judged() == ("", [False, True, True])
    # Elsewhere nobody knows the certificate, until it is pinned.
    fault, own = world.judged(before)
    assert "which is in no certificate" in fault
    assert own == [False, True, False]
    pinned = before.model_copy(update={"controller_openpgp": certificate + "\n"})
    assert world.judged(pinned) == ("", [False, True, True])
    # And back: what it signed stays its own where it is pinned.
    (world.place.state / "keys" / "controller.asc").unlink()
    assert world.place.trust is not None
    world.place.trust.write_bytes(YamlDocuments().render(pinned.model_dump(mode="json", by_alias=True)))
    world.commit()
    assert world.judged() == ("", [False, True, True, True])


def test_the_certificate_has_power_over_the_write_back_paths_only(world: World) -> None:
    world.lay_key()
    world.commit(VERSION)
    assert world.judged() == ("", [False, True])
    world.commit("axons/digits/axon.yaml")
    fault, _ = world.judged()
    assert "signed by the controller's key, which may not touch axons/digits/axon.yaml" in fault


def test_a_key_that_the_trust_file_does_not_pin_is_refused(world: World, tmp_path: Path) -> None:
    world.lay_key()
    other = OpenpgpKey.generate(tmp_path / "other.asc", "x").certificate
    own = keyring.public_certificate(world.place.state)
    assert with_certificate(TrustFile(controller_openpgp=f"\n{own}\n"), own).controller_openpgp.strip() == own
    with pytest.raises(TrustError, match="`controllerOpenpgp` pins another certificate"):
        with_certificate(TrustFile(controller_openpgp=other), own)
    with pytest.raises(TrustError, match="controllerOpenpgp: OpenPGP certificate: expected one as"):
        pin_of(TrustFile(controller_openpgp="-----BEGIN PGP"), "")
    with pytest.raises(TrustError, match="controllerOpenpgp: OpenPGP certificate: expected the public part"):
        pin_of(TrustFile(controller_openpgp=(tmp_path / "other.asc").read_text()), "")
    assert pin_of(TrustFile(), "").own == ()
    assert (world.place.state.parent / "elsewhere").exists() is False


def test_no_private_key_is_in_what_a_controller_leaves(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    world.lay_key()
    world.commit()
    kept = (world.place.state / "keys" / "controller.asc").read_text().splitlines()[4]
    left = [path for path in world.place.state.parent.rglob("*") if path.is_file() and kept.encode() in path.read_bytes()]
    assert left == [world.place.state / "keys" / "controller.asc"]
    assert kept not in "".join(capfd.readouterr())


# In a cluster.


def test_a_secret_may_hold_one_and_its_project_pins_the_certificate(tmp_path: Path) -> None:
    keyring.make(tmp_path, openpgp="Myelin <bot@example.org>")
    keys = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(keys) == {"controller", "image.pem", "controller.asc"}
    found = open_project(cluster_with(good_secrets(keys)), body_of(good_spec()))  # type: ignore[arg-type]
    assert found.openpgp is not None
    assert found.trust.controller_openpgp == found.openpgp.certificate
    assert SECRET_LINE not in repr(found) + found.trust.model_dump_json()
    signature = signature_reader(found.trust).read(found.openpgp.sign_commit(b"x"), b"x")
    assert signature.valid
    pin = pin_of(found.trust, found.key.public())
    assert [(key.name, key.kind) for key in pin.own] == [("myelin", "ssh"), ("myelin", "openpgp")]
    # Without it, all is as before.
    del keys["controller.asc"]
    plain = open_project(cluster_with(good_secrets(keys)), body_of(good_spec()))  # type: ignore[arg-type]
    assert (plain.openpgp, plain.trust.controller_openpgp) == (None, "")


def test_a_secret_with_another_text_there_is_refused_and_not_shown(tmp_path: Path) -> None:
    keyring.make(tmp_path)
    keys: dict[str, Any] = {path.name: path.read_bytes() for path in tmp_path.iterdir()} | {"controller.asc": b"hunter2"}
    with pytest.raises(TrustError, match=r"Secret team-a/myelin-keys: controller\.asc: expected one secret key") as raised:
        open_project(cluster_with(good_secrets(keys)), body_of(good_spec()))  # type: ignore[arg-type]
    assert "hunter2" not in str(raised.value)


# By command.


def test_keys_are_made_and_shown_with_a_certificate_and_laid_beside_those_that_are_there(tmp_path: Path) -> None:
    def run(*args: str) -> str:
        done = CliRunner().invoke(app, ["keys", *args])
        assert done.exit_code == 0, done.output
        assert SECRET_LINE not in done.output
        return done.stdout

    plain = json.loads(run("new", str(tmp_path / "a"), "-o", "json"))
    assert set(plain) == {"controller", "image"}
    both = json.loads(run("new", "--openpgp", "--user-id", "Bot <bot@example.org>", str(tmp_path / "a"), "-o", "json"))
    assert {**both, "openpgp": ""} == {**plain, "openpgp": ""}
    assert json.loads(run("show", str(tmp_path / "a"), "-o", "json")) == both
    text = run("show", str(tmp_path / "a"))
    assert text.count("-----BEGIN PGP PUBLIC KEY BLOCK-----") == 1
    assert "Bot <bot@example.org>" in text
    assert text.endswith("-----END PGP PUBLIC KEY BLOCK-----\n")
    run("new", "--openpgp", str(tmp_path / "b"))
    assert {path.name for path in (tmp_path / "b").iterdir()} == {"controller", "image.pem", "controller.asc"}
    with pytest.raises(RefusedError, match="a key is never written over"):
        keyring.make(tmp_path / "b", openpgp="x")
    assert SshKey.load(tmp_path / "b" / "controller").public()
