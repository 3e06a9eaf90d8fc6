"""Keys of images: made, changed with an overlap, taken away, and kept in a token."""

from __future__ import annotations

import base64
import os
import pickle
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from typer.testing import CliRunner

from controller import image_keys, keyring
from controller.adapters.attest.signing import sign_image
from controller.adapters.attest.verifying import ImageTrust, verify_image
from controller.adapters.clock import SystemClock
from controller.adapters.git import GitRepository, init_bare
from controller.adapters.images import SignedImages
from controller.adapters.keys import ImageKey, ImageSigner, SshKey, image_public
from controller.adapters.oci.assembly import write_memo
from controller.adapters.oci.layout import Layout
from controller.adapters.token_key import MODULE, PIN, TokenKey, parse_uri
from controller.cli import app
from controller.trustfile import TrustFile, image_trust
from policies.errors import DesiredStateError, RefusedError, TrustError
from policies.terms.task import ImageSpec
from tests.controller.test_attest import image
from tests.fakes.provenance import trust_in, where_from

LIBRARIES = ("/usr/lib/softhsm/libsofthsm2.so", "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so", "/usr/lib64/libsofthsm2.so")
SECRET_PIN = "correct horse"


def library() -> str:
    return next((path for path in LIBRARIES if os.path.exists(path)), "")


def why_no_token() -> str:
    if not library() or not shutil.which("softhsm2-util"):
        return "softhsm2: expected Debian's package softhsm2, it is not installed"
    try:
        import pkcs11  # noqa: F401
    except ImportError:
        return "python-pkcs11: expected the extra `pkcs11`, it is not installed"
    return ""


@pytest.fixture(params=["p256", "ed25519"])
def key(request: pytest.FixtureRequest, tmp_path: Path) -> ImageKey:
    return ImageKey.generate(tmp_path / "image.pem", request.param)


def test_a_key_signs_the_same_bytes_twice_and_is_read_back(key: ImageKey, tmp_path: Path) -> None:
    again = ImageKey.load(tmp_path / "image.pem")
    assert isinstance(key, ImageSigner)
    assert (again.public_pem, again.hint) == (key.public_pem, key.hint)
    assert key.sign(b"data") == again.sign(b"data")
    assert ImageKey.verify(key.public_pem, b"data", key.sign(b"data"))
    assert not ImageKey.verify(key.public_pem, b"other", key.sign(b"data"))
    assert not ImageKey.verify(key.public_pem, b"data", b"")
    assert not ImageKey.verify("no key", b"data", key.sign(b"data"))
    stranger = ImageKey.generate(tmp_path / "stranger.pem")
    assert not ImageKey.verify(stranger.public_pem, b"data", key.sign(b"data"))
    assert repr(key) == "ImageKey(***)"
    with pytest.raises(TypeError):
        pickle.dumps(key)


def test_a_hint_is_what_openssl_comes_to(key: ImageKey, tmp_path: Path) -> None:
    (tmp_path / "public.pem").write_text(key.public_pem)
    command = f"openssl pkey -pubin -in {tmp_path}/public.pem -outform DER | openssl dgst -sha256 -binary"
    done = subprocess.run(["sh", "-c", command], capture_output=True, check=True)
    assert base64.b64encode(done.stdout).decode() == key.hint


def pem(private: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey, password: str = "") -> bytes:
    lock = serialization.BestAvailableEncryption(password.encode()) if password else serialization.NoEncryption()
    return private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock)


WRONG = {
    "another curve": (pem(ec.generate_private_key(ec.SECP384R1())), "got another kind of key"),
    "RSA": (pem(rsa.generate_private_key(65537, 2048)), "got another kind of key"),
    "with a password": (pem(ed25519.Ed25519PrivateKey.generate(), "secret"), "got something else"),
    "cosign's own": (b"-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\n", "got cosign's own encrypted kind"),
    "no key": (b"nothing", "got something else"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_image_key_says_so(name: str) -> None:
    content, words = WRONG[name]
    with pytest.raises(TrustError, match=r"image\.pem: expected a P-256 or Ed25519 key as PKCS#8 PEM") as caught:
        ImageKey.parse(content, "image.pem")
    assert words in caught.value.message


def test_a_public_key_has_one_form_and_what_is_none_is_refused(key: ImageKey) -> None:
    assert image_public(f"\n  {key.public_pem.strip()}\r\n", "here") == key.public_pem
    for text in ("", "ssh-ed25519 AAAA", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"):
        with pytest.raises(TrustError, match=r"trust file: images\[1\]: expected a public key as PEM"):
            image_trust(TrustFile(images=(key.public_pem, text)), ())


def test_a_key_changes_with_an_overlap_and_the_former_one_can_go(tmp_path: Path) -> None:
    keyring.make(tmp_path / "keys")
    layout, folder = Layout(tmp_path / "store"), tmp_path / "keys"
    first = ImageKey.load(folder / "image.pem")
    digest = image(layout, "x")
    sign_image(layout, digest, first, where_from())
    kept = image_keys.rotate(folder)
    second = ImageKey.load(folder / "image.pem")
    assert second.public_pem != first.public_pem
    assert keyring.public_keys(tmp_path)[1] == (second.public_pem, first.public_pem)
    assert (folder / "image.pem").stat().st_mode & 0o077 == 0
    verify_image(layout, digest, image_trust(TrustFile(), keyring.public_keys(tmp_path)[1]))
    assert keyring.shown(folder)["formerImages"] == [first.public_pem]
    assert image_keys.retire(folder, kept) == first.public_pem
    with pytest.raises(TrustError, match="another key"):
        verify_image(layout, digest, image_trust(TrustFile(), keyring.public_keys(tmp_path)[1]))
    with pytest.raises(RefusedError, match=f"expected one of the former keys, none, got {kept}"):
        image_keys.retire(folder, kept)


def test_a_change_that_broke_off_goes_on_where_it_was(tmp_path: Path) -> None:
    keyring.make(tmp_path)
    first = ImageKey.load(tmp_path / "image.pem")
    # As after a crash between the new key and its taking the old one's place.
    new = ImageKey.generate(tmp_path / image_keys.NEXT)
    kept = image_keys.rotate(tmp_path)
    assert ImageKey.load(tmp_path / "image.pem").public_pem == new.public_pem
    assert image_keys.former_in(tmp_path) == {kept: first.public_pem}
    assert not (tmp_path / image_keys.NEXT).exists()
    image_keys.rotate(tmp_path)
    assert len(image_keys.former_in(tmp_path)) == 2


def test_the_commands_change_and_retire_a_key(tmp_path: Path) -> None:
    run = CliRunner().invoke
    assert run(app, ["keys", "new", str(tmp_path / "keys")]).exit_code == 0
    done = run(app, ["keys", "rotate", "--ed25519", str(tmp_path / "keys"), "-o", "json"])
    assert done.exit_code == 0, done.output
    (name,) = image_keys.former_in(tmp_path / "keys")
    assert name in done.output
    middle = name.removeprefix("image-").removesuffix(".pub.pem")
    done = run(app, ["keys", "retire", str(tmp_path / "keys"), middle])
    assert done.exit_code == 0, done.output
    assert image_keys.former_in(tmp_path / "keys") == {}
    assert "PRIVATE" not in done.output


def test_public_keys_of_a_project_elsewhere_are_kept_and_taken_away(tmp_path: Path) -> None:
    first, second = ImageKey.generate(tmp_path / "1.pem"), ImageKey.generate(tmp_path / "2.pem")
    folder = tmp_path / "keys"
    folder.mkdir()
    image_keys.keep_public(folder, second.public_pem, {"image-1.pub.pem": first.public_pem})
    assert image_keys.public_in(folder) == (second.public_pem, first.public_pem)
    image_keys.keep_public(folder, second.public_pem, {})
    assert image_keys.public_in(folder) == (second.public_pem,)


URIS = {
    "pkcs11:token=a;object=b": "",
    "pkcs11:serial=12;id=%01%02?module-path=/lib/x.so&pin-source=file:/run/pin": "",
    "pkcs11:token=a;object=b?pin-value=1234": "expected no PIN in the URI",
    "pkcs11:token=a": "expected token or serial, and object or id, got token",
    "pkcs11:object=b": "expected token or serial, and object or id, got object",
    "pkcs11:token=a;object=b;slot-id=4": "each once, got 'slot-id'",
    "pkcs11:token=a;token=b;object=c": "each once, got 'token'",
    "pkcs11:token=a;object=b?pin-source=http://x/y": "expected file:/path",
    "https://token.example": "expected one PKCS#11 URI",
    "pkcs11:token=a b;object=c": "expected one PKCS#11 URI",
}


@pytest.mark.parametrize("uri", URIS)
def test_a_uri_names_a_key_and_never_holds_a_pin(uri: str) -> None:
    if not URIS[uri]:
        assert str(parse_uri(uri, "here")).startswith("pkcs11:")
        return
    with pytest.raises(DesiredStateError) as caught:
        parse_uri(uri, "here")
    assert URIS[uri] in caught.value.message
    assert "1234" not in caught.value.message


def test_attributes_are_decoded() -> None:
    place = parse_uri("pkcs11:token=My%20Token;object=image;id=%0A?pin-source=file:///run/pin&module-path=%2Flib%2Fx.so", "x")
    assert (place.token, place.id, place.pin_file, place.module) == ("My Token", b"\n", "/run/pin", "/lib/x.so")


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A token of SoftHSM with two keys, `image` and `edwards`; its label."""
    if why := why_no_token():
        pytest.skip(why)
    import pkcs11
    from pkcs11 import Attribute, KeyType, Mechanism
    from pkcs11.util.ec import encode_named_curve_parameters

    folder = tmp_path_factory.mktemp("softhsm")
    (folder / "tokens").mkdir()
    text = f"directories.tokendir = {folder}/tokens\nobjectstore.backend = file\nlog.level = ERROR\n"
    (folder / "softhsm2.conf").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOFTHSM2_CONF", str(folder / "softhsm2.conf"))
        command = ["softhsm2-util", "--init-token", "--free", "--label", "myelin", "--pin", SECRET_PIN, "--so-pin", "12345678"]
        subprocess.run(command, check=True, capture_output=True)
        with pkcs11.lib(library()).get_token(token_label="myelin").open(rw=True, user_pin=SECRET_PIN) as session:
            for label, kind, curve, mechanism in (
                ("image", KeyType.EC, "secp256r1", Mechanism.EC_KEY_PAIR_GEN),
                ("edwards", KeyType.EC_EDWARDS, "1.3.101.112", Mechanism.EC_EDWARDS_KEY_PAIR_GEN),
                ("wrong", KeyType.EC, "secp384r1", Mechanism.EC_KEY_PAIR_GEN),
            ):
                parameters = {Attribute.EC_PARAMS: encode_named_curve_parameters(curve)}
                domain = session.create_domain_parameters(kind, parameters, local=True)
                domain.generate_keypair(mechanism=mechanism, store=True, label=label)
        yield "myelin"


def laid(folder: Path, label: str, *, pin: str = SECRET_PIN) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "image.pkcs11").write_text(f"pkcs11:token=myelin;object={label}?module-path={library()}\n")
    if pin:
        (folder / "image.pin").write_text(pin + "\n")
        (folder / "image.pin").chmod(0o600)
    return folder


@pytest.mark.parametrize("label", ["image", "edwards"])
def test_a_key_in_a_token_signs_images(token: str, tmp_path: Path, label: str) -> None:
    signer = image_keys.signer_in(laid(tmp_path / "keys", label))
    assert isinstance(signer, TokenKey)
    assert isinstance(signer, ImageSigner)
    assert ImageKey.verify(signer.public_pem, b"data", signer.sign(b"data"))
    layout = Layout(tmp_path / "store")
    digest = image(layout, "x")
    sign_image(layout, digest, signer, where_from())
    before = (layout.root / "index.json").read_bytes()
    sign_image(layout, digest, signer, where_from())
    assert (layout.root / "index.json").read_bytes() == before
    verify_image(layout, digest, trust_in(signer))
    # The answers know its public key without asking the token.
    assert keyring.public_keys(tmp_path)[1] == (signer.public_pem,)
    assert SECRET_PIN not in repr(signer)
    with pytest.raises(TypeError):
        pickle.dumps(signer)


def test_a_token_that_does_not_give_the_key_says_why(token: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PIN, raising=False)
    monkeypatch.delenv(MODULE, raising=False)
    cases = {
        "expected a private and a public key of that name, got none": laid(tmp_path / "a", "nobody"),
        "expected the right PIN, got another": laid(tmp_path / "b", "image", pin="another"),
        "expected a PIN in image.pin beside it": laid(tmp_path / "c", "image", pin=""),
        "expected a P-256 or Ed25519 key, got another kind": laid(tmp_path / "d", "wrong"),
    }
    for words, folder in cases.items():
        with pytest.raises((RefusedError, TrustError)) as caught:
            image_keys.signer_in(folder)
        assert words in caught.value.message
        assert "another\n" not in caught.value.message
    folder = laid(tmp_path / "e", "image")
    (folder / "image.pin").chmod(0o644)
    with pytest.raises(RefusedError, match="only its owner may read"):
        image_keys.signer_in(folder)
    (folder / "image.pkcs11").write_text("pkcs11:token=other;object=image?module-path=" + library())
    (folder / "image.pin").chmod(0o600)
    with pytest.raises(RefusedError, match="expected that token, there is none"):
        image_keys.signer_in(folder)
    ImageKey.generate(folder / "image.pem")
    with pytest.raises(RefusedError, match=r"expected one key for images, got image\.pem and image\.pkcs11"):
        image_keys.signer_in(folder)


def test_a_pin_may_lie_in_a_variable_and_the_library_too(token: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "image.pkcs11").write_text("pkcs11:token=myelin;object=image")
    monkeypatch.setenv(PIN, SECRET_PIN)
    monkeypatch.delenv(MODULE, raising=False)
    with pytest.raises(RefusedError, match=f"expected the token's library in {MODULE}, got none"):
        image_keys.signer_in(tmp_path)
    monkeypatch.setenv(MODULE, library())
    assert image_keys.signer_in(tmp_path) is not None


def test_a_secret_says_neither_which_library_is_loaded_nor_which_file_is_read(
    token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MODULE, library())
    for options in ("?module-path=/tmp/x.so", "?pin-source=file:/etc/passwd"):
        texts = {"image.pkcs11": f"pkcs11:token=myelin;object=image{options}", "image.pin": SECRET_PIN}
        with pytest.raises(DesiredStateError, match="expected no module-path and no pin-source"):
            image_keys.signer_of(texts, "Secret a/b")
    with pytest.raises(DesiredStateError, match=r"expected the PIN under image\.pin, got none"):
        image_keys.signer_of({"image.pkcs11": "pkcs11:token=myelin;object=image"}, "Secret a/b")
    signer = image_keys.signer_of({"image.pkcs11": "pkcs11:token=myelin;object=image", "image.pin": SECRET_PIN}, "Secret a/b")
    assert ImageKey.verify(signer.public_pem, b"x", signer.sign(b"x"))


def test_a_trust_file_adds_keys_and_identities(tmp_path: Path) -> None:
    own, other = ImageKey.generate(tmp_path / "own.pem"), ImageKey.generate(tmp_path / "other.pem")
    value = {
        "images": [other.public_pem, own.public_pem],
        "imageIdentities": [{"identity": "ci@example.org", "issuer": "https://issuer.example"}],
        "sigstoreRoot": "{}",
    }
    found = image_trust(TrustFile.model_validate(value), (own.public_pem,))
    assert found.keys == (own.public_pem, other.public_pem)
    (person,) = found.identities
    assert (person.identity, person.issuer, person.root) == ("ci@example.org", "https://issuer.example", "{}")
    assert image_trust(TrustFile(), ()) == ImageTrust()


def test_what_a_retired_key_signed_is_built_again_and_what_a_former_one_signed_is_not(tmp_path: Path) -> None:
    init_bare(tmp_path / "origin.git")
    repository = GitRepository(str(tmp_path / "origin.git"), tmp_path / "git", SshKey.generate(tmp_path / "ssh"))
    former, new = ImageKey.generate(tmp_path / "former.pem"), ImageKey.generate(tmp_path / "new.pem")
    layout = Layout(tmp_path / "store")
    digest = image(layout, "x")
    sign_image(layout, digest, former, where_from())
    spec = ImageSpec(repository="r", commit="c" * 40, folder="src", tree="d" * 40)

    def images(trust: ImageTrust) -> SignedImages:
        return SignedImages(repository, layout, tmp_path / "build", new, trust, SystemClock())

    overlapping, alone = images(trust_in(new, former)), images(trust_in(new))
    known = {"digest": digest, "materials": {}, "place": layout.reference, "signer": former.hint}
    write_memo(overlapping._memo(overlapping._identity(spec)), known)
    assert alone.look(spec) is None
    with pytest.raises(TrustError, match="another key"):
        alone.verify(digest)
    state = overlapping.look(spec)
    assert state is not None
    assert state.digest == digest
    # A look at it lets the new key sign it as well.
    overlapping.verify(digest)
    alone.verify(digest)
