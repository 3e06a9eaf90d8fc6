"""The controller's commits as a Sigstore identity: asked of a served instance, verified without one, and by OpenSSL."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from controller import keyring, project
from controller.adapters.clock import SystemClock
from controller.adapters.documents import YamlDocuments
from controller.adapters.signatures import SignatureReader
from controller.adapters.signatures.gitsign import BEGIN, Gitsign
from controller.adapters.signatures.sigstore_key import SigstoreKey
from controller.adapters.sigstore.authority import Authority
from controller.adapters.sigstore.embedded import Embedded, identity_of
from controller.adapters.sigstore.files import TOKEN_VARIABLE
from controller.adapters.sigstore.keyless import trusted_root_of
from controller.adapters.sigstore.leaves import MemoryLeaves
from controller.adapters.sigstore.served import Served, serve
from controller.adapters.sigstore.tokens import Tokens
from controller.answers.opened import opened
from controller.answers.proof import check_ledger
from controller.cli import app
from controller.project import Place
from controller.projects import open_project
from controller.trustfile import OwnIdentity, TrustFile, pin_of, read_trust, signature_reader, with_identity
from controller.wiring import wire
from policies.errors import DesiredStateError, RefusedError, SilentError, TrustError
from policies.terms.record import Statement
from policies.terms.secret import Secret
from policies.trust import judge
from policies.writeback import is_own
from tests.controller.test_projects import body_of, cluster_with, good_secrets, good_spec
from tests.fakes.sigstore import Instance
from tests.fakes.tokens import IDENTITY, ISSUER, Issuer

CLUSTER = Issuer()
RELEASE, VERSION = "releases/digits/web.yaml", "versions/digits/v-0000000000.yaml"
NOW = SystemClock().now()


def embedded(seed: str = "01") -> Embedded:
    return Embedded(Authority(Secret(seed * 32), NOW - timedelta(days=30)), MemoryLeaves(), identity=identity_of("ml", "shop"))


class Site:
    """A Sigstore instance that is served, and may go away."""

    def __init__(self) -> None:
        self.made = embedded()

    def open(self) -> Iterator[str]:
        with serve(lambda url: Served(self.made, Tokens(ISSUER, CLUSTER.keys), url=url)) as url:
            yield url


@pytest.fixture
def config() -> Iterator[str]:
    site = Site()
    for url in site.open():
        yield site.made.trust_config(url)


class World:
    """A project whose controller signs as an identity."""

    def __init__(self, folder: Path, config: str) -> None:
        self.place, self.config, self.number = project.make(folder / "p", now=SystemClock().now()), config, 0
        self.keys = self.place.state / "keys"

    def lay(self, identity: str = f"{IDENTITY} {ISSUER}\n", token: str = "") -> None:
        self.keys.mkdir(parents=True, exist_ok=True)
        (self.keys / "sigstore.json").write_text(self.config)
        (self.keys / "sigstore.identity").write_text(identity)
        (self.keys / "identity.token").write_text(token or CLUSTER.token())

    def commit(self, path: str = RELEASE) -> str:
        """One of the controller's, as its next life makes it."""
        self.number += 1
        with wire(project.settings_of(self.place, inbox_port=0)) as wired:
            repository, now = wired.ports.repository, wired.ports.clock.now()
            text, message = f"# {self.number}\n".encode(), f"change {self.number}\n"
            return repository.push(branch="main", parent=repository.fetch("main"), changes={path: text}, message=message, at=now)

    def judged(self, pinned: TrustFile | None = None) -> tuple[str, list[bool]]:
        """Why the tip is not trusted, and which commits are the controller's own, as any clone with the trust file sees it."""
        place = self.place
        if pinned is not None:
            file = place.state.parent / "other-trust.yaml"
            file.write_bytes(YamlDocuments().render(pinned.model_dump(mode="json", by_alias=True, exclude_none=True)))
            place = replace(place, trust=file, state=place.state.parent / "elsewhere")
        with opened(place) as it:
            facts = it.facts()
            return judge(it.pin, facts, trusted=None).fault, [is_own(one, it.pin.own) for one in facts]


@pytest.fixture
def world(tmp_path: Path, config: str) -> World:
    return World(tmp_path, config)


def tip(place: Place, branch: str) -> bytes:
    return subprocess.run(["git", "cat-file", "commit", branch], cwd=place.url, capture_output=True, check=True).stdout


def test_what_we_write_in_gitsigns_format_is_read_by_us_and_by_openssl(tmp_path: Path) -> None:
    instance, data = embedded(), b"tree 00\n\nmessage\n"
    key = SigstoreKey(instance, instance.identity, instance.trusted_root())
    for number in range(3):  # the log's first entry has the number 0, which protobuf leaves out
        armored = key.sign_commit(data + b"%d" % number)
        found = Gitsign(instance.trusted_root()).read(armored, data + b"%d" % number)
        assert (found.valid, found.key) == (True, " ".join(instance.identity)), found.fault
        assert not Gitsign(instance.trusted_root()).read(armored, data).valid
        assert not Gitsign(embedded("02").trusted_root()).read(armored, data + b"%d" % number).valid
    if shutil.which("openssl") is None:
        pytest.skip("openssl: expected the program, to check the message once more; it is not installed")
    lines = armored.splitlines()
    assert lines[0] == BEGIN
    (tmp_path / "message.der").write_bytes(base64.b64decode("".join(lines[1:-1])))
    (tmp_path / "data").write_bytes(data + b"2")
    # Who the certificate's authority is, OpenSSL is not asked: it knows no certificates that ended.
    command = ["openssl", "cms", "-verify", "-binary", "-inform", "DER", "-in", "message.der", "-content", "data"]
    done = subprocess.run([*command, "-noverify", "-out", "out"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (tmp_path / "data").write_bytes(data)
    done = subprocess.run([*command, "-noverify", "-out", "out"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert repr(key) == f"SigstoreKey({instance.identity[0]})"


def test_main_proposals_and_ledger_are_signed_as_it_and_verified_while_the_instance_is_gone(tmp_path: Path) -> None:
    site = Site()
    for url in site.open():
        world = World(tmp_path, site.made.trust_config(url))
        world.lay()
        with wire(project.settings_of(world.place, inbox_port=0)) as wired:
            ports = wired.ports
            parent, now = ports.repository.fetch("main"), ports.clock.now()
            made = {"parent": parent, "changes": {RELEASE: b"# 1\n"}, "message": "deploy: ünïcode\n\nbody\n", "at": now}
            ports.repository.propose(branch="myelin/p", expected="", **made)
            ports.repository.push(branch="main", **made)
            ports.ledger.record([Statement(kind="event", key="event/1", axon="digits", body={})])
            assert ports.ledger.push() == 1
            assert [key.kind for key in ports.own] == ["ssh", "sigstore"]
    for branch in ("main", "myelin/p", "myelin/ledger"):
        assert b"\ngpgsig -----BEGIN SIGNED MESSAGE-----\n" in tip(world.place, branch)
    with opened(world.place) as it:
        assert it.pin.controller is not None
        found = check_ledger(it.repository, it.ledger_head(), [it.pin.controller.key], signer=it.name_of)
        assert (found.entries, found.faults) == (1, ())
    assert world.judged() == ("", [False, True])


def test_who_changes_to_it_and_back_keeps_the_history(world: World) -> None:
    before = read_trust(world.place.trust)
    world.commit()
    world.lay()
    world.commit()
    assert world.judged() == ("", [False, True, True])
    fault, own = world.judged(before)
    assert (IDENTITY in fault or "Sigstore" in fault, own) == (True, [False, True, False])
    pinned = before.model_copy(
        update={"controller_sigstore": OwnIdentity(identity=IDENTITY, issuer=ISSUER, root=trusted_root_of(world.config))}
    )
    assert world.judged(pinned) == ("", [False, True, True])
    (world.keys / "sigstore.json").unlink()
    assert world.place.trust is not None
    world.place.trust.write_bytes(YamlDocuments().render(pinned.model_dump(mode="json", by_alias=True, exclude_none=True)))
    world.commit()
    assert world.judged() == ("", [False, True, True, True])


def test_the_identity_has_power_over_the_write_back_paths_only(world: World) -> None:
    world.lay()
    world.commit(VERSION)
    assert world.judged() == ("", [False, True])
    world.commit("axons/digits/axon.yaml")
    assert "signed by the controller's key, which may not touch axons/digits/axon.yaml" in world.judged()[0]


def test_its_instance_vouches_for_nobody_else_and_people_s_instance_not_for_it() -> None:
    own, people, data = embedded(), Instance(), b"a commit"
    us = " ".join(own.identity)
    reader = SignatureReader(sigstore_root=people.root(), own=(us, own.trusted_root()))
    assert reader.read(SigstoreKey(own, own.identity, "").sign_commit(data), data).valid
    assert reader.read(people.sign(data, "ada@example.org"), data).valid
    # Whoever has the controller's own authority makes it say that somebody else signed.
    ada = Embedded(own.authority, MemoryLeaves(), identity="ada@example.org")
    found = reader.read(SigstoreKey(ada, ada.identity, "").sign_commit(data), data)
    assert (found.valid, found.key) == (False, f"ada@example.org {own.identity[1]}")
    # And the other way round.
    found = reader.read(people.sign(data, own.identity[0], issuer=own.identity[1]), data)
    assert not found.valid


def test_a_token_of_somebody_else_signs_nothing(world: World) -> None:
    world.lay(identity=f"{IDENTITY}-other {ISSUER}")
    with pytest.raises(RefusedError, match=r"expected to sign as .*-other") as raised:
        world.commit()
    assert raised.value.reason == "OtherIdentity"
    world.lay(token=Issuer().token())
    with pytest.raises(RefusedError):
        world.commit()
    (world.keys / "identity.token").unlink()
    with pytest.raises(RefusedError, match="expected an identity token"):
        world.commit()
    world.lay()
    assert world.commit()


def test_writes_wait_while_the_instance_is_away(tmp_path: Path) -> None:
    site = Site()
    for url in site.open():
        world = World(tmp_path, site.made.trust_config(url))
    world.lay()
    with pytest.raises(SilentError):
        world.commit()
    assert world.judged()[1] == [False]


@pytest.mark.parametrize("line", ["", "one", "one two three"])
def test_an_identity_that_is_none_is_refused_in_words(world: World, line: str) -> None:
    world.lay(identity=line)
    with pytest.raises(TrustError, match=r"sigstore\.identity: expected one line `<identity> <issuer>`"):
        world.commit()


def test_another_identity_or_root_than_the_trust_file_pins_is_refused() -> None:
    own = OwnIdentity(identity=IDENTITY, issuer=ISSUER, root="{}")
    assert with_identity(TrustFile(), own).controller_sigstore == own
    assert with_identity(TrustFile(controller_sigstore=own), None).controller_sigstore == own
    with pytest.raises(TrustError, match="`controllerSigstore` pins another identity or root"):
        with_identity(TrustFile(controller_sigstore=own), own.model_copy(update={"root": ""}))
    with pytest.raises(TrustError, match="expected a trusted root of Sigstore"):
        pin_of(TrustFile(controller_sigstore=own), "")


def test_no_token_is_in_what_a_controller_leaves(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    world.lay()
    world.commit()
    token = (world.keys / "identity.token").read_text().split(".")[2]
    left = [path for path in world.place.state.parent.rglob("*") if path.is_file() and token.encode() in path.read_bytes()]
    assert left == [world.keys / "identity.token"]
    assert token not in "".join(capfd.readouterr())


def test_a_secret_may_name_one_and_its_project_pins_it(tmp_path: Path, config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    keyring.make(tmp_path)
    keys: dict[str, Any] = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    keys |= {"sigstore.json": config.encode(), "sigstore.identity": f"{IDENTITY} {ISSUER}".encode()}
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    with pytest.raises(TrustError, match=f"expected {TOKEN_VARIABLE} to name"):
        open_project(cluster_with(good_secrets(keys)), body_of(good_spec()))  # type: ignore[arg-type]
    (tmp_path / "token").write_text(CLUSTER.token())
    monkeypatch.setenv(TOKEN_VARIABLE, str(tmp_path / "token"))
    found = open_project(cluster_with(good_secrets(keys)), body_of(good_spec()))  # type: ignore[arg-type]
    assert found.sigstore is not None
    signature = signature_reader(found.trust).read(found.sigstore.sign_commit(b"x"), b"x")
    assert signature.valid, signature.fault
    pin = pin_of(found.trust, found.key.public())
    assert [(key.name, key.kind) for key in pin.own] == [("myelin", "ssh"), ("myelin", "sigstore")]
    broken = keys | {"sigstore.json": b"hunter2"}
    with pytest.raises((TrustError, DesiredStateError)):
        open_project(cluster_with(good_secrets(broken)), body_of(good_spec()))  # type: ignore[arg-type]


def test_the_identity_is_shown_with_the_public_keys(tmp_path: Path, config: str) -> None:
    keyring.make(tmp_path)
    (tmp_path / "sigstore.json").write_text(config)
    (tmp_path / "sigstore.identity").write_text(f"{IDENTITY} {ISSUER}\n")
    done = CliRunner().invoke(app, ["keys", "show", str(tmp_path), "-o", "json"])
    said = json.loads(done.stdout)
    assert said["sigstore"] == f"{IDENTITY} {ISSUER}"
    assert (said["identity"], said["issuer"], said["trustedRoot"]) == (IDENTITY, ISSUER, trusted_root_of(config))
