"""What a key promises: the simulated outside's, one made new, and one read back from its file."""

from __future__ import annotations

import base64
import hashlib
import pickle
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controller.adapters.keys import ImageKey, ImageSigner, SshKey
from reconcilers.ports import Keys
from tests.fakes.wiring import STRANGER, open_ports
from tests.fakes.world import World


@pytest.fixture(params=["fake", "real", "real read back"])
def keys(request: pytest.FixtureRequest, tmp_path: Path) -> Keys:
    if request.param == "fake":
        return open_ports(World()).keys
    made = SshKey.generate(tmp_path / "key")
    return made if request.param == "real" else SshKey.load(tmp_path / "key")


def test_a_public_key_is_two_words(keys: Keys) -> None:
    kind, blob = keys.public().split(" ")
    assert kind == "ssh-ed25519"
    assert base64.b64decode(blob, validate=True)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=20)
@given(data=st.binary(max_size=64), other=st.binary(max_size=64))
def test_a_signature_fits_its_data_and_its_key_and_nothing_else(keys: Keys, data: bytes, other: bytes) -> None:
    signature = keys.sign(data)
    assert keys.sign(data) == signature
    assert keys.is_signed(data, signature, keys.public())
    assert STRANGER.is_signed(data, signature, keys.public())
    assert keys.is_signed(other, signature, keys.public()) is (other == data)
    assert not keys.is_signed(data, signature, STRANGER.public())
    assert not keys.is_signed(data, STRANGER.sign(data), keys.public())


@pytest.mark.parametrize("signature", ["", "AAAA", "no base64!", "ü", "A" * 88, "\n"])
def test_what_is_no_signature_is_none(keys: Keys, signature: str) -> None:
    assert not keys.is_signed(b"data", signature, keys.public())


@pytest.mark.parametrize("public", ["", "ssh-ed25519", "ssh-ed25519 AAAA", "ssh-rsa AAAAB3NzaC1yc2E=", "ü", "sk-x y z"])
def test_what_is_no_key_signed_nothing(keys: Keys, public: str) -> None:
    assert not keys.is_signed(b"data", keys.sign(b"data"), public)


def test_a_comment_behind_a_key_does_not_matter(keys: Keys) -> None:
    assert keys.is_signed(b"data", keys.sign(b"data"), keys.public() + " somebody@somewhere")


def test_a_private_key_is_not_shown_and_not_pickled(tmp_path: Path) -> None:
    key = SshKey.generate(tmp_path / "key")
    assert repr(key) == "SshKey(***)"
    with pytest.raises(TypeError):
        pickle.dumps(key)


@pytest.fixture(params=["p256", "ed25519", "p256 read back"])
def signer(request: pytest.FixtureRequest, tmp_path: Path) -> ImageSigner:
    made = ImageKey.generate(tmp_path / "image.pem", "ed25519" if request.param == "ed25519" else "p256")
    return ImageKey.load(tmp_path / "image.pem") if request.param.endswith("read back") else made


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=20)
@given(data=st.binary(max_size=64), other=st.binary(max_size=64))
def test_a_signature_of_an_image_fits_its_data_and_its_key_and_nothing_else(
    signer: ImageSigner, data: bytes, other: bytes
) -> None:
    signature = signer.sign(data)
    assert signer.sign(data) == signature
    assert ImageKey.verify(signer.public_pem, data, signature)
    assert ImageKey.verify(signer.public_pem, other, signature) is (other == data)
    assert not ImageKey.verify(signer.public_pem, data, signature[:-1])


def test_the_hint_of_an_image_key_names_its_public_half(signer: ImageSigner) -> None:
    der = base64.b64decode("".join(line for line in signer.public_pem.splitlines() if not line.startswith("-----")))
    assert base64.b64decode(signer.hint) == hashlib.sha256(der).digest()
