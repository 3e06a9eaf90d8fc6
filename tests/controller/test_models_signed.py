"""Models are signed as OpenSSF model-signing signs them, without being read again; what nobody signed loads nowhere."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from controller.adapters.attest.signing import sign_image
from controller.adapters.attest.verifying import ImageTrust
from controller.adapters.clock import SystemClock
from controller.adapters.engine_cluster import KeptJobs
from controller.adapters.engine_local import LocalEngine
from controller.adapters.keys import ImageKey, SshKey
from controller.adapters.models import SIGNED_MODEL, Models, check_folder, sign_model, signer_of, statement_of, verify_model
from controller.adapters.oci.artifacts import ArtifactStore
from controller.adapters.oci.assembly import Program, assemble, based_on
from controller.adapters.oci.composed import MODEL, Composer
from controller.adapters.oci.layers import Stored, lay
from controller.adapters.oci.layout import Layout
from controller.adapters.oci.mirrored import MirroredLayout
from controller.adapters.oci.registry import Access
from policies.errors import RefusedError, TrustError
from policies.terms.digest import Digest
from policies.terms.task import JobSpec, ServerSpec
from tests.fakes.provenance import where_from
from tests.fakes.registry import FakeRegistry, Host

FILES = {"a/b": b"1", "a.b": b"2", 'übel "x\\n': b"3", ".gitattributes": b"* -text", "weights.bin": b"\0" * 5000}


class Place:
    """A store, a key, and a model in a folder."""

    def __init__(self, top: Path, layout: Layout | None = None) -> None:
        self.top, self.layout = top, layout or Layout(top / "store")
        self.key = ImageKey.generate(top / "image.pem")
        self.trust = ImageTrust(keys=(self.key.public_pem,))
        self.store = ArtifactStore(self.layout, Models(self.layout, self.key, self.trust))

    def folder(self, name: str = "m", **more: bytes) -> Path:
        for path, data in {**FILES, **more}.items():
            (self.top / name / path).parent.mkdir(parents=True, exist_ok=True)
            (self.top / name / path).write_bytes(data)
        return self.top / name

    def unsigned(self) -> Digest:
        return self.store.keep("data", self.folder("u", other=b"4"))

    def image(self) -> Digest:
        laid = lay(self.layout, {"app/app.py": Stored(data=b"print(1)\n")})
        program = Program(entrypoint=("/opt/venv/bin/python", "/app/app.py"), env={})
        digest = assemble(self.layout, [laid], program, annotations=based_on(None))
        sign_image(self.layout, digest, self.key, where_from())
        return digest


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_the_librarys_own_command_verifies_what_we_sign(place: Place) -> None:
    digest = place.store.keep("model", place.folder())
    bundle = verify_model(place.layout, digest, place.trust)
    place.store.fetch_model(digest, place.top / "back")
    (place.top / "model.sig").write_bytes(bundle)
    (place.top / "key.pub").write_text(place.key.public_pem)
    command = [str(Path(sys.executable).with_name("model_signing")), "verify", "key", str(place.top / "back")]
    command += ["--signature", str(place.top / "model.sig"), "--public_key", str(place.top / "key.pub"), "--no-ignore-git-paths"]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (said.returncode, said.stdout) == (0, "Verification succeeded\n"), said.stderr
    assert signer_of(bundle, ("other", place.key.public_pem)) == place.key.public_pem
    check_folder(place.top / "back", bundle, place.key.public_pem)
    for change in (
        lambda: (place.top / "back/a.b").write_bytes(b"3"),
        lambda: (place.top / "back/a.b").unlink(),
        lambda: ((place.top / "back/a.b").write_bytes(b"2"), (place.top / "back/more").write_bytes(b"")),
    ):
        change()
        assert subprocess.run(command, capture_output=True, check=False).returncode == 1
        with pytest.raises(TrustError, match="expected the model that was signed"):
            check_folder(place.top / "back", bundle, place.key.public_pem)


def test_our_statement_is_the_librarys(place: Place) -> None:
    from model_signing import hashing, signing

    digest = place.store.keep("model", place.folder())
    everything = hashing.Config().set_ignored_paths(paths=[], ignore_git_paths=False)
    config = signing.Config().use_elliptic_key_signer(private_key=place.top / "image.pem").set_hashing_config(everything)
    config.sign(place.top / "m", place.top / "lib.sig")
    theirs = json.loads(base64.b64decode(json.loads((place.top / "lib.sig").read_bytes())["dsseEnvelope"]["payload"]))
    ours = statement_of(place.layout, digest)
    assert theirs.pop("subject")[0]["digest"] == ours.pop("subject")[0]["digest"]
    assert theirs == ours
    ours_bundle = json.loads(verify_model(place.layout, digest, place.trust))
    theirs_bundle = json.loads((place.top / "lib.sig").read_bytes())
    assert theirs_bundle["verificationMaterial"] == ours_bundle["verificationMaterial"]
    assert theirs_bundle["mediaType"] == ours_bundle["mediaType"]


def test_a_model_that_the_librarys_command_signed_may_be_loaded(place: Place) -> None:
    digest = place.unsigned()
    signature = place.top / "cli.sig"
    command = [str(Path(sys.executable).with_name("model_signing")), "sign", "key", str(place.top / "u"), "--no-ignore-git-paths"]
    command += ["--signature", str(signature), "--private_key", str(place.top / "image.pem")]
    subprocess.run(command, check=True, capture_output=True)
    attach(place.layout, digest, signature.read_bytes())
    place.store.fetch_model(digest, place.top / "back")


def attach(layout: Layout, digest: Digest, bundle: bytes, name: str = "theirs") -> None:
    from controller.adapters.models import _attached

    layout.tag(name, _attached(layout, digest, bundle), {"subject": digest})


def test_signing_again_changes_nothing(place: Place) -> None:
    digest = place.store.keep("model", place.folder())
    kept = [*(place.layout.root / "blobs/sha256").iterdir(), place.layout.root / "index.json"]
    before = {path: (path.stat().st_ino, path.stat().st_ctime_ns) for path in kept}
    sign_model(place.layout, digest, place.key)
    assert place.store.keep("model", place.top / "m") == digest
    kept = [*(place.layout.root / "blobs/sha256").iterdir(), place.layout.root / "index.json"]
    assert {path: (path.stat().st_ino, path.stat().st_ctime_ns) for path in kept} == before
    assert len(place.layout.referrers(digest)) == 1


def test_while_keys_overlap_the_words_of_both_stay(place: Place) -> None:
    digest = place.store.keep("model", place.folder())
    new = ImageKey.generate(place.top / "new.pem")
    with pytest.raises(TrustError, match="another key"):
        verify_model(place.layout, digest, ImageTrust(keys=(new.public_pem,)))
    sign_model(place.layout, digest, new)
    for key in (place.key, new):
        verify_model(place.layout, digest, ImageTrust(keys=(key.public_pem,)))


def test_an_ed25519_key_is_told_that_it_signs_no_models(place: Place) -> None:
    key = ImageKey.generate(place.top / "ed.pem", "ed25519")
    store = ArtifactStore(place.layout, Models(place.layout, key, place.trust))
    with pytest.raises(RefusedError, match="expected a P-256 key to sign with, got another kind") as caught:
        store.keep("model", place.folder())
    assert caught.value.reason == "ModelKey"


def test_nobody_trusted_admits_nothing(place: Place) -> None:
    digest = place.store.keep("model", place.folder())
    with pytest.raises(TrustError):
        verify_model(place.layout, digest, ImageTrust())
    for work in (lambda: ArtifactStore(place.layout).fetch_model(digest, place.top / "x"),):
        with pytest.raises(TrustError, match="there is none"):
            work()
    assert not (place.top / "x").exists()


def blobs_of(layout: Layout, digest: str) -> dict[str, str]:
    """What a signed model consists of."""
    (referrer,) = layout.referrers(digest)
    entry = next(item for item in layout.listed() if item.get("subject") == digest)
    named = {"manifest": digest, "signature": referrer["layers"][0]["digest"], "its manifest": entry["digest"]}
    return named | {"file": layout.manifest(digest)["layers"][-1]["digest"]}


@pytest.mark.parametrize("what", ["manifest", "file", "signature", "its manifest"])
def test_one_flipped_byte_anywhere_and_the_model_loads_nowhere(place: Place, what: str) -> None:
    digest = place.store.keep("model", place.folder())
    blob = place.layout.place(blobs_of(place.layout, digest)[what])
    whole = blob.read_bytes()
    for at in {0, len(whole) // 3, len(whole) // 2, len(whole) - 1}:
        blob.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(TrustError):
            place.store.fetch_model(digest, place.top / "back")
    blob.write_bytes(whole)
    place.store.fetch_model(digest, place.top / "back")


def test_a_signature_of_another_model_does_not_count(place: Place) -> None:
    signed, other = place.store.keep("model", place.folder()), place.unsigned()
    attach(place.layout, other, verify_model(place.layout, signed, place.trust))
    with pytest.raises(TrustError, match="with other files") as caught:
        place.store.fetch_model(other, place.top / "back")
    assert caught.value.reason == "ModelNotSigned"


@pytest.mark.parametrize("bundle", [b"", b"{}", b"[]", b"nonsense", b'{"mediaType": 1}', b"[" * 5000])
def test_what_is_no_bundle_does_not_count(place: Place, bundle: bytes) -> None:
    other = place.unsigned()
    attach(place.layout, other, bundle)
    with pytest.raises(TrustError, match="expected a signature"):
        verify_model(place.layout, other, place.trust)


def test_a_signature_on_something_else_does_not_count(place: Place) -> None:
    """What the project's key signed for another purpose lets no model in."""
    from controller.adapters.attest.statements import bundle_of, encoding

    other = place.unsigned()
    for statement in (
        {**statement_of(place.layout, other), "predicateType": "https://slsa.dev/provenance/v1"},
        {**statement_of(place.layout, other), "_type": "https://in-toto.io/Statement/v2"},
        {**statement_of(place.layout, other), "subject": []},
        {"predicateType": SIGNED_MODEL},
        [],
    ):
        payload = json.dumps(statement).encode()
        attach(place.layout, other, bundle_of(payload, place.key.sign(encoding(payload)), "x"))
        with pytest.raises(TrustError, match="expected a signature"):
            verify_model(place.layout, other, place.trust)


def test_no_job_and_no_server_starts_with_it(place: Place) -> None:
    engine = LocalEngine(place.top / "engine", place.layout, place.store, SystemClock(), isolation="none")
    image, model = place.image(), place.unsigned()
    with pytest.raises(TrustError, match="expected a signature"):
        engine.start(JobSpec(name="one", axon="a", task="t", image=image, model=model))
    assert "one" not in engine.jobs()
    with pytest.raises(TrustError, match="expected a signature"):
        engine.serve(ServerSpec(name="s", image=image, model=model))
    assert engine.servers() == {}


def test_no_image_is_composed_with_it(place: Place) -> None:
    composer = Composer(place.layout, place.top / "composed", place.key, place.trust, SystemClock())
    with pytest.raises(TrustError, match="expected a signature"):
        composer.compose(place.image(), {MODEL: (place.unsigned(),)})
    composer.compose(place.image(), {MODEL: (place.store.keep("model", place.folder()),)})


def test_what_a_job_of_a_cluster_brings_is_signed_and_lies_in_the_registry(tmp_path: Path) -> None:
    host = Host()
    registry: Any = FakeRegistry(host, Access(repository=f"{host.name}/team/digits"))
    place = Place(tmp_path, MirroredLayout(tmp_path / "mirror", registry))
    kept = KeptJobs(
        tmp_path / "jobs", place.layout, SshKey.generate(tmp_path / "key"), Models(place.layout, place.key, place.trust)
    )
    result = tmp_path / "result.tar"
    tar(result, tmp_path)
    model = kept.take("one", result, keeps=("model", "data"))["model"]
    assert kept.is_ours("one")
    assert not kept.is_ours("two")
    other = MirroredLayout(tmp_path / "other", registry)
    verify_model(other, model, place.trust)
    before = host.received
    sign_model(place.layout, model, place.key)
    assert host.received == before


def tar(path: Path, top: Path) -> None:
    import tarfile

    (top / "exit.json").write_text('{"code": 0}')
    (top / "w.bin").write_bytes(b"weights")
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        archive.add(top / "w.bin", "model/w.bin", filter=plain)
        archive.add(top / "exit.json", "exit.json", filter=plain)


def plain(info: Any) -> Any:
    info.pax_headers, info.mtime = {}, 0
    return info
