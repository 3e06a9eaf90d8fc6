"""What a project's BuildKit is shown: which files make sense together, and that no key shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from controller import keyring
from controller.adapters.build.buildkit import CA, CERTIFICATE, KEY
from controller.daemon_keys import daemon_in, daemon_of
from policies.errors import ControllerError
from policies.unbuilt import object_notes
from tests.contracts.certificates import Authority
from tests.controller.test_projects import cluster_with, good_secrets, good_spec, opened

PEM = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
FINE = {
    "nothing": {},
    "an authority alone, for a daemon that asks nobody": {CA: PEM},
    "all three": {CA: PEM, CERTIFICATE: PEM, KEY: PEM},
    "other keys beside": {"image.pem": "anything", CA: PEM},
}
WRONG = {
    "a certificate without its key": ({CA: PEM, CERTIFICATE: PEM}, "got buildkit-ca.pem and buildkit-cert.pem"),
    "a key without its certificate": ({CA: PEM, KEY: PEM}, "got buildkit-ca.pem and buildkit-key.pem"),
    "no authority": ({CERTIFICATE: PEM, KEY: PEM}, "expected buildkit-ca.pem alone, or with"),
    "an empty authority": ({CA: "", CERTIFICATE: PEM, KEY: PEM}, "expected buildkit-ca.pem alone, or with"),
    "no PEM": ({CA: "hunter2-hunter2"}, "buildkit-ca.pem: expected PEM, got something else"),
}


@pytest.mark.parametrize("texts", FINE.values(), ids=list(FINE))
def test_what_belongs_together_is_shown(texts: dict[str, str]) -> None:
    daemon = daemon_of(texts, "Secret team/keys", {}, address="tcp://b:1")
    assert {name: secret.reveal() for name, secret in daemon.shown.items()} == {
        name: text for name, text in texts.items() if name in (CA, CERTIFICATE, KEY)
    }
    assert (daemon.address, daemon.program) == ("tcp://b:1", "buildctl")


@pytest.mark.parametrize(("texts", "words"), WRONG.values(), ids=list(WRONG))
def test_what_does_not_is_refused_in_words(texts: dict[str, str], words: str) -> None:
    with pytest.raises(ControllerError) as caught:
        daemon_of(texts, "Secret team/keys", {})
    assert words in caught.value.message
    assert caught.value.message.startswith("Secret team/keys: ")
    assert "hunter2" not in caught.value.message


def test_the_client_may_lie_elsewhere() -> None:
    assert daemon_of({}, "here", {"MYELIN_BUILDCTL": "/buildkit/buildctl"}).program == "/buildkit/buildctl"
    assert daemon_of({}, "here", {"MYELIN_BUILDCTL": ""}).program == "buildctl"


def test_a_folder_is_read_as_a_secret_is_and_keeps_its_key_to_itself(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    certificate, key = authority.signed("controller")
    folder = tmp_path / "keys"
    folder.mkdir()
    assert not daemon_in(folder, {}).shown
    for name, text in ((CA, authority.pem), (CERTIFICATE, certificate), (KEY, key)):
        (folder / name).write_text(text)
    (folder / KEY).chmod(0o644)
    with pytest.raises(ControllerError, match="expected a key that only its owner may read") as caught:
        daemon_in(folder, {})
    assert caught.value.reason == "OpenKey"
    (folder / KEY).chmod(0o600)
    daemon = daemon_in(folder, {})
    assert daemon.shown[KEY].reveal() == key
    assert key.splitlines()[1] not in repr(daemon)


def test_a_project_brings_its_own_and_says_where(tmp_path: Path) -> None:
    made = keyring.make(tmp_path / "keys")
    keys = {name: (tmp_path / "keys" / name).read_bytes() for name in ("controller", "image.pem")}
    secrets = good_secrets({**keys, CA: PEM.encode(), CERTIFICATE: PEM.encode(), KEY: PEM.encode()})
    project = opened(cluster_with(secrets), {**good_spec(), "builder": {"buildkit": "tcp://b.builds:1234"}})
    assert (project.buildkit.address, set(project.buildkit.shown)) == ("tcp://b.builds:1234", {CA, CERTIFICATE, KEY})
    assert list(object_notes(project.document)) == []
    assert made["image"] == project.image_key.public_pem
    del secrets["myelin-keys"][KEY]
    with pytest.raises(ControllerError, match=r"Secret team-a/myelin-keys: expected buildkit-ca\.pem alone, or with"):
        opened(cluster_with(secrets), good_spec())
