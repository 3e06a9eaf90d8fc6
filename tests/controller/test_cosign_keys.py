"""Keys that cosign encrypted: read as image keys, changed with an overlap, refused with a reason; what they sign verifies."""

from __future__ import annotations

import base64
import hashlib
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from controller import image_keys, keyring
from controller.adapters import cosign_key
from controller.adapters.attest.signing import sign_image
from controller.adapters.attest.verifying import verify_image
from controller.adapters.keys import ImageKey, ImageSigner
from controller.adapters.oci.access import Access
from controller.adapters.oci.layout import Layout
from controller.adapters.oci.mirrored import MirroredLayout
from controller.adapters.oci.registry import Registry
from controller.trustfile import TrustFile, image_trust
from policies.errors import DesiredStateError, RefusedError, TrustError
from tests.contracts import cosign as cosigns
from tests.contracts.cosign import Cosign
from tests.contracts.registry_server import registry_server, why_no_registry
from tests.controller.test_attest import image
from tests.controller.test_projects import cluster_with, good_secrets, good_spec, opened
from tests.controller.test_projects import keys as keys
from tests.fakes.provenance import trust_in, where_from

PASSWORD = "correct horse battery staple"
MARK = "ENCRYPTED SIGSTORE PRIVATE KEY"


def sealed(private: ec.EllipticCurvePrivateKey, password: str = PASSWORD, **params: int) -> dict[str, Any]:
    """What cosign would write, with scrypt's least cost of those that it takes."""
    from nacl.secret import SecretBox

    cost = {"N": 32768, "r": 8, "p": 1, **params}
    plain = private.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    salt, nonce = b"s" * 32, b"n" * 24
    key = hashlib.scrypt(password.encode(), salt=salt, n=32768, r=8, p=1, maxmem=64 << 20, dklen=32)
    box = SecretBox(key).encrypt(plain, nonce).ciphertext
    return {
        "kdf": {"name": "scrypt", "params": cost, "salt": base64.b64encode(salt).decode()},
        "cipher": {"name": "nacl/secretbox", "nonce": base64.b64encode(nonce).decode()},
        "ciphertext": base64.b64encode(box).decode(),
    }


def pem(document: Any, mark: str = MARK) -> str:
    body = base64.encodebytes(json.dumps(document).encode()).decode()
    return f"-----BEGIN {mark}-----\n{body}-----END {mark}-----\n"


def laid(folder: Path, content: str, password: str | None = PASSWORD) -> Path:
    folder.mkdir(exist_ok=True)
    parts = {"cosign.key": content, "cosign.password": password}
    for name, text in parts.items():
        if text is not None:
            (folder / name).write_text(text)
            (folder / name).chmod(0o600)
    return folder


@pytest.fixture(scope="module")
def private() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@pytest.fixture(autouse=True)
def no_password_around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(cosign_key.PASSWORD, raising=False)


@pytest.fixture(params=[2, 3])
def cosign(request: pytest.FixtureRequest, tmp_path: Path) -> Cosign:
    if why := cosigns.missing(request.param):
        pytest.skip(why)
    return Cosign(request.param, tmp_path / "cosign")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if why_no_registry():
        pytest.skip(why_no_registry())
    with registry_server(tmp_path_factory.mktemp("registry")) as made:
        yield made.address


@pytest.mark.parametrize("password", [PASSWORD, ""], ids=["with a password", "with an empty one"])
def test_a_key_that_cosign_made_signs_and_cosign_verifies_it(address: str, cosign: Cosign, tmp_path: Path, password: str) -> None:
    folder = tmp_path / "keys"
    public = cosign.generate(folder, password)
    laid(folder, (folder / "cosign.key").read_text(), password or None)
    signer = image_keys.signer_in(folder)
    assert isinstance(signer, ImageSigner)
    assert signer.public_pem == public
    assert ImageKey.verify(public, b"data", signer.sign(b"data"))
    access = Access(repository=f"{address}/cosigns/{cosign.major}{len(password)}", unsafe_plain_http=True)
    registry = Registry(access)
    layout = MirroredLayout(tmp_path / "store", registry)
    digest = image(layout, "x")
    sign_image(layout, digest, signer, where_from())
    registry.close()
    verify_image(layout, digest, trust_in(signer))
    for words in (("verify",), ("verify-attestation", "--type", "slsaprovenance1")):
        done = cosign.verify(f"{access.repository}@{digest}", public, *words)
        assert done.returncode == 0, done.stderr


def test_the_answers_know_its_public_key_without_the_password(tmp_path: Path, private: ec.EllipticCurvePrivateKey) -> None:
    folder = laid(tmp_path / "keys", pem(sealed(private)))
    signer = image_keys.signer_in(folder)
    assert signer is not None
    (folder / "cosign.password").unlink()
    assert keyring.public_keys(tmp_path)[1] == (signer.public_pem,)
    assert PASSWORD not in repr(signer)
    with pytest.raises(TypeError):
        pickle.dumps(signer)


def test_the_password_may_lie_in_cosigns_own_variable(
    tmp_path: Path, private: ec.EllipticCurvePrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = laid(tmp_path / "keys", pem(sealed(private), "ENCRYPTED COSIGN PRIVATE KEY"), None)
    monkeypatch.setenv(cosign_key.PASSWORD, PASSWORD)
    assert image_keys.signer_in(folder) is not None
    # A file beside it comes first, and the line break that an editor leaves is not part of it.
    monkeypatch.setenv(cosign_key.PASSWORD, "another")
    laid(folder, (folder / "cosign.key").read_text(), PASSWORD + "\n")
    assert image_keys.signer_in(folder) is not None


def test_a_secret_of_cosigns_is_read_and_the_controllers_own_variable_is_not(
    private: ec.EllipticCurvePrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = pem(sealed(private))
    texts = {"cosign.key": content, "cosign.password": PASSWORD, "cosign.pub": "…"}
    signer = image_keys.signer_of(texts, "Secret a/b")
    assert ImageKey.verify(signer.public_pem, b"x", signer.sign(b"x"))
    monkeypatch.setenv(cosign_key.PASSWORD, PASSWORD)
    with pytest.raises(DesiredStateError, match=r"Secret a/b: cosign\.key: expected its password in cosign\.password, got none"):
        image_keys.signer_of({"cosign.key": content}, "Secret a/b")
    with pytest.raises(DesiredStateError, match=r"expected the right password in cosign\.password, got another") as caught:
        image_keys.signer_of({**texts, "cosign.password": "hunter22"}, "Secret a/b")
    assert "hunter22" not in caught.value.message
    with pytest.raises(DesiredStateError, match=r"expected one key for images, got image\.pem and cosign\.key"):
        image_keys.signer_of({**texts, "image.pem": "…"}, "Secret a/b")


def _changed(part: str, **values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda document: {**document, part: {**document[part], **values}}


ODD: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "another way from a password to a key": (_changed("kdf", name="pbkdf2"), "expected scrypt and nacl/secretbox, got 'pbkdf2'"),
    "another cipher": (_changed("cipher", name="aes-256-gcm"), "got 'scrypt' and 'aes-256-gcm'"),
    "a cost of gigabytes": (_changed("kdf", params={"N": 1 << 30, "r": 8, "p": 1}), "got N 1073741824, r 8, p 1"),
    "blocks of gigabytes": (_changed("kdf", params={"N": 1 << 15, "r": 1 << 20, "p": 1}), "got N 32768, r 1048576, p 1"),
    "hours": (_changed("kdf", params={"N": 1 << 15, "r": 8, "p": 1 << 20}), "got N 32768, r 8, p 1048576"),
    "hardly any cost": (_changed("kdf", params={"N": 2, "r": 8, "p": 1}), "got N 2, r 8, p 1"),
    "a cost that is no number": (_changed("kdf", params={"N": "many", "r": 8, "p": 1}), "got N many"),
    "no cost": (_changed("kdf", params=None), "got another document"),
    "a short nonce": (_changed("cipher", nonce="AAAA"), "got another document"),
    "what is no base64": (lambda document: {**document, "ciphertext": "§"}, "got another document"),
    "a list": (lambda document: [document], "got another document"),
    "no cipher": (lambda document: {"kdf": document["kdf"]}, "got another document"),
    "an empty box": (lambda document: {**document, "ciphertext": ""}, "expected the right password"),
    "a box of nothing much": (lambda document: {**document, "ciphertext": "AAAA"}, "expected the right password"),
}


@pytest.mark.parametrize("name", ODD)
def test_what_cosign_would_not_open_is_refused_and_takes_no_room(
    name: str, tmp_path: Path, private: ec.EllipticCurvePrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, words = ODD[name]
    folder = laid(tmp_path / "keys", pem(change(sealed(private))))
    costs = []
    scrypt = hashlib.scrypt

    def watched(password: bytes, **wanted: Any) -> bytes:
        costs.append(wanted["maxmem"])
        return scrypt(password, **wanted)

    monkeypatch.setattr(hashlib, "scrypt", watched)
    with pytest.raises((TrustError, RefusedError)) as caught:
        image_keys.signer_in(folder)
    assert words in caught.value.message
    assert caught.value.message.startswith(str(folder / "cosign.key"))
    assert PASSWORD not in caught.value.message
    assert sum(costs) <= (64 << 20 if caught.type is RefusedError else 0)


def test_a_project_of_a_cluster_signs_with_it(keys: dict[str, bytes], private: ec.EllipticCurvePrivateKey) -> None:
    secrets = good_secrets(keys)
    del secrets["myelin-keys"]["image.pem"]
    secrets["myelin-keys"] |= {"cosign.key": pem(sealed(private)).encode(), "cosign.password": PASSWORD.encode()}
    project = opened(cluster_with(secrets), good_spec())
    assert project.trust.images == (project.image_key.public_pem,)
    assert ImageKey.verify(project.image_key.public_pem, b"x", project.image_key.sign(b"x"))
    secrets["myelin-keys"]["cosign.password"] = b"hunter22"
    with pytest.raises(DesiredStateError, match="expected the right password") as caught:
        opened(cluster_with(secrets), good_spec())
    assert "hunter22" not in str(caught.value)


def test_a_file_that_was_cut_short_says_so(tmp_path: Path, private: ec.EllipticCurvePrivateKey) -> None:
    whole = pem(sealed(private))
    for content in (whole[: len(whole) // 2], whole.replace("\n-----END", "%\n-----END"), whole + "more"):
        with pytest.raises(TrustError, match="got one that was cut short, or changed"):
            image_keys.signer_in(laid(tmp_path / "keys", content))
    with pytest.raises(TrustError, match=r"got another file; `cosign generate-key-pair` makes one"):
        image_keys.signer_in(laid(tmp_path / "keys", "nothing"))
    with pytest.raises(TrustError, match="got more than 65536 bytes"):
        image_keys.signer_in(laid(tmp_path / "keys", "x" * 70_000))


def test_a_key_of_another_curve_is_refused(tmp_path: Path) -> None:
    content = pem(sealed(ec.generate_private_key(ec.SECP384R1())))
    with pytest.raises(TrustError, match=r"cosign\.key: expected a P-256 or Ed25519 key .*, got another kind of key"):
        image_keys.signer_in(laid(tmp_path / "keys", content))


def test_a_password_or_key_that_others_may_read_is_refused(tmp_path: Path, private: ec.EllipticCurvePrivateKey) -> None:
    for name in ("cosign.key", "cosign.password"):
        folder = laid(tmp_path / "keys", pem(sealed(private)))
        (folder / name).chmod(0o644)
        with pytest.raises(RefusedError, match=rf"{name}: expected a key that only its owner may read"):
            image_keys.signer_in(folder)


def test_a_key_of_cosigns_changes_with_an_overlap(tmp_path: Path, private: ec.EllipticCurvePrivateKey) -> None:
    folder = laid(tmp_path / "keys", pem(sealed(private)))
    keyring.controller_key(tmp_path)
    first = image_keys.signer_in(folder)
    assert first is not None
    layout = Layout(tmp_path / "store")
    digest = image(layout, "x")
    sign_image(layout, digest, first, where_from())
    kept = image_keys.rotate(folder)
    second = image_keys.signer_in(folder)
    assert second is not None
    assert second.public_pem != first.public_pem
    assert keyring.public_keys(tmp_path)[1] == (second.public_pem, first.public_pem)
    verify_image(layout, digest, image_trust(TrustFile(), keyring.public_keys(tmp_path)[1]))
    # It is somebody else's file: it is put away, not deleted.
    assert (folder / image_keys.PUT_AWAY).exists()
    assert keyring.shown(folder)["formerImages"] == [first.public_pem]
    image_keys.retire(folder, kept)
    with pytest.raises(TrustError, match="another key"):
        verify_image(layout, digest, image_trust(TrustFile(), keyring.public_keys(tmp_path)[1]))


def test_a_change_that_broke_off_before_the_old_key_was_put_away_goes_on(
    tmp_path: Path, private: ec.EllipticCurvePrivateKey
) -> None:
    folder = laid(tmp_path / "keys", pem(sealed(private)))
    kept = image_keys.rotate(folder)
    (folder / image_keys.PUT_AWAY).rename(folder / image_keys.COSIGN)
    with pytest.raises(RefusedError, match=r"expected one key for images, got image\.pem and cosign\.key"):
        image_keys.signer_in(folder)
    new = ImageKey.load(folder / image_keys.KEY).public_pem
    assert image_keys.rotate(folder) == kept
    assert keyring.public_keys(tmp_path)[1][0] == new
    # Two that somebody laid there are never taken for that.
    ImageKey.generate(tmp_path / "two" / "image.pem")
    with pytest.raises(RefusedError, match="move one away"):
        image_keys.rotate(laid(tmp_path / "two", pem(sealed(private))))
