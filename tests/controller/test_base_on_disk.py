"""Base images in an OCI layout on this machine: read, never written to, and only where the machine is one person's."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from controller.adapters.attest.signing import sign_image
from controller.adapters.keys import ImageKey
from controller.adapters.oci.access import Access
from controller.adapters.oci.assembly import PYTHON
from controller.adapters.oci.bases import Bases
from controller.adapters.oci.layout import CONFIG, INDEX, MANIFEST, REF_NAME, Layout
from controller.adapters.oci.mirrored import MirroredLayout
from controller.adapters.oci.on_disk import LayoutOnDisk
from controller.adapters.oci.registry import Registry
from policies.canonical import canonical
from policies.errors import DesiredStateError, TrustError
from policies.terms.build import BaseSigner
from policies.terms.digest import Digest
from tests.contracts import cosign as cosigns
from tests.contracts.cosign import Cosign
from tests.contracts.registry_server import registry_server, why_no_registry
from tests.controller.tiny_base import ARCHITECTURE, USUAL, Part, part
from tests.fakes.provenance import where_from


def laid(folder: Path, parts: Sequence[Part]) -> Digest:
    """What another tool would have written."""
    layout = Layout(folder)
    layers = [layout.descriptor(layout.put(item.data), item.media_type) for item in parts]
    rootfs = {"type": "layers", "diff_ids": [item.diff_id for item in parts]}
    config = canonical({"architecture": ARCHITECTURE, "os": "linux", "config": {}, "rootfs": rootfs})
    described = layout.descriptor(layout.put(config), CONFIG)
    return layout.put(canonical({"schemaVersion": 2, "mediaType": MANIFEST, "config": described, "layers": layers}))


def nobody(repository: str) -> Access:
    raise AssertionError(f"{repository}: no registry is asked")


def bases(folder: Path, *, reads_disk: bool = True) -> Bases:
    return Bases(Layout(folder / "store"), folder / "memories", nobody, reads_disk=reads_disk)


def test_a_base_is_read_and_called_by_its_content_alone(tmp_path: Path) -> None:
    found = []
    for name in ("one", "other"):
        digest = laid(tmp_path / name, [part(USUAL)])
        before = sorted(path.name for path in (tmp_path / name).rglob("*"))
        found.append(bases(tmp_path / f"{name}-state").open(f"oci:{tmp_path / name}@{digest}"))
        assert sorted(path.name for path in (tmp_path / name).rglob("*")) == before
        assert (tmp_path / f"{name}-state" / "store" / "blobs" / "sha256" / found[-1].layers[0]["digest"][7:]).exists()
    assert found[0] == found[1]
    assert found[0].python == f"/usr/bin/python{PYTHON}"
    assert str(tmp_path) not in found[0].reference


def test_a_damaged_or_missing_blob_is_found_and_named(tmp_path: Path) -> None:
    digest = laid(tmp_path / "one", [part(USUAL)])
    layer = Layout(tmp_path / "one").manifest(digest)["layers"][0]["digest"]
    path = tmp_path / "one" / "blobs" / "sha256" / layer[7:]
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(TrustError, match=layer):
        bases(tmp_path / "state").open(f"oci:{tmp_path / 'one'}@{digest}")
    path.unlink()
    with pytest.raises(TrustError, match="it is missing"):
        bases(tmp_path / "state").open(f"oci:{tmp_path / 'one'}@{digest}")
    path.write_bytes(whole)
    assert bases(tmp_path / "state").open(f"oci:{tmp_path / 'one'}@{digest}").layers


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("oci:{folder}/none@{digest}", "expected an absolute path of an OCI layout"),
        ("oci:one@{digest}", "expected an absolute path of an OCI layout"),
        ("oci:{folder}/one:latest", "expected oci:/folder@sha256:<64 hex>"),
        ("oci:{folder}/one@{other}", "expected it in its registry, it is not there"),
    ],
)
def test_what_is_no_base_is_said_in_words(tmp_path: Path, name: str, words: str) -> None:
    digest = laid(tmp_path / "one", [part(USUAL)])
    named = name.format(folder=tmp_path, digest=digest, other="sha256:" + "1" * 64)
    with pytest.raises(DesiredStateError, match=words):
        bases(tmp_path / "state").open(named)


def test_a_shared_controller_reads_no_folder_of_its_machine(tmp_path: Path) -> None:
    digest = laid(tmp_path / "one", [part(USUAL)])
    with pytest.raises(DesiredStateError, match="got a folder of the controller's machine"):
        bases(tmp_path / "state", reads_disk=False).open(f"oci:{tmp_path / 'one'}@{digest}")


def signer_of(public: str, name: str = "upstream") -> tuple[BaseSigner, ...]:
    return (BaseSigner(name=name, key=public),)


def opens(tmp_path: Path, folder: Path, digest: str, public: str) -> None:
    """See that a base is taken with its signer, and with nobody else."""
    reference, stranger = f"oci:{folder}@{digest}", ImageKey.generate(tmp_path / "strangers" / folder.name)
    before = sorted(path.name for path in folder.rglob("*"))
    with pytest.raises(TrustError, match=r"baseSigners, other, got none: (it is|its)? ?signed by another key"):
        bases(tmp_path / "state").open(reference, signers=signer_of(stranger.public_pem, "other"))
    assert bases(tmp_path / "state").open(reference, signers=signer_of(public)).layers
    assert sorted(path.name for path in folder.rglob("*")) == before


def test_a_base_on_disk_that_somebody_must_have_signed_is_refused_where_nobody_did(tmp_path: Path) -> None:
    digest, key = laid(tmp_path / "one", [part(USUAL)]), ImageKey.generate(tmp_path / "key")
    with pytest.raises(TrustError, match=r"one of builder\.baseSigners, upstream, got none: nothing is attached"):
        bases(tmp_path / "state").open(f"oci:{tmp_path / 'one'}@{digest}", signers=signer_of(key.public_pem))
    # What somebody signed is one image, and no other that lies beside it.
    other = laid(tmp_path / "one", [part({**USUAL, "etc/other": b"x"})])
    sign_image(Layout(tmp_path / "one"), other, key, where_from())
    with pytest.raises(TrustError, match="got none: nothing is attached"):
        bases(tmp_path / "state").open(f"oci:{tmp_path / 'one'}@{digest}", signers=signer_of(key.public_pem))


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if why_no_registry():
        pytest.skip(why_no_registry())
    with registry_server(tmp_path_factory.mktemp("registry")) as made:
        yield made.address


@pytest.mark.parametrize("major", [2, 3])
@pytest.mark.parametrize("bundles", [False, True], ids=["by the older signature", "by a bundle"])
def test_a_base_that_cosign_signed_and_saved_is_taken(address: str, tmp_path: Path, major: int, bundles: bool) -> None:
    if why := cosigns.missing(major):
        pytest.skip(why)
    cosign, saved = Cosign(major, tmp_path / "cosign"), tmp_path / "saved"
    registry = Registry(Access(repository=f"{address}/saved/{major}{bundles}".lower(), unsafe_plain_http=True))
    layout = MirroredLayout(tmp_path / "one", registry)
    digest = laid(tmp_path / "one", [part(USUAL)])
    layout.push(digest)
    registry.close()
    reference = f"{registry.access.repository}@{digest}"
    public = cosign.generate(tmp_path / "theirs")
    cosign.sign(reference, tmp_path / "theirs" / "cosign.key", bundles=bundles)
    done = cosign("save", "--dir", str(saved), "--allow-http-registry", reference)
    assert done.returncode == 0, done.stderr
    if major == 2 and bundles:
        # It leaves bundles behind in the registry, and says nothing of it.
        with pytest.raises(TrustError, match="got none: nothing is attached"):
            bases(tmp_path / "state").open(f"oci:{saved}@{digest}", signers=signer_of(public))
        return
    opens(tmp_path, saved, digest, public)


def entry(folder: Path, digest: str, name: str = "") -> dict[str, object]:
    size = (folder / "blobs" / "sha256" / digest[7:]).stat().st_size
    return {"mediaType": MANIFEST, "digest": digest, "size": size} | ({"annotations": {REF_NAME: name}} if name else {})


@pytest.mark.parametrize(
    "kind", ["bundles in the index", "bundles in an index of their own", "bundles in no index", "tag", "name"]
)
def test_whatever_tool_laid_it_a_signature_is_found(tmp_path: Path, kind: str) -> None:
    folder, key = tmp_path / "one", ImageKey.generate(tmp_path / "key")
    layout, digest = Layout(folder), laid(folder, [part(USUAL)])
    sign_image(layout, digest, key, where_from())
    tag = digest.replace(":", "-")
    older = layout.resolve(f"{tag}.sig")
    assert older is not None
    referring = [item["digest"] for item in LayoutOnDisk(folder).referrers(digest)]
    assert len(referring) == 2
    if kind in ("tag", "name"):
        for referrer in referring:
            (folder / "blobs" / "sha256" / referrer[7:]).unlink()
        entries = [entry(folder, digest), entry(folder, older, f"{tag}.sig" if kind == "tag" else f"a.example:50/b:{tag}.sig")]
    elif kind == "bundles in the index":
        entries = [entry(folder, item) for item in (digest, *referring)]
    elif kind == "bundles in an index of their own":
        listed = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry(folder, item) for item in referring]}
        entries = [entry(folder, digest), entry(folder, layout.put(canonical(listed)), tag)]
    else:
        entries = [entry(folder, digest)]
    if kind.startswith("bundles"):
        (folder / "blobs" / "sha256" / older[7:]).unlink()
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": entries}))
    opens(tmp_path, folder, digest, key.public_pem)


def test_a_layout_that_somebody_made_up_is_refused_and_hangs_nobody(tmp_path: Path) -> None:
    folder, key = tmp_path / "one", ImageKey.generate(tmp_path / "key")
    digest = laid(folder, [part(USUAL)])
    blobs = folder / "blobs" / "sha256"
    subject = json.dumps({"subject": {"digest": digest}})
    (blobs / ("1" * 64)).write_text(subject)  # its name is not its digest
    (blobs / ("2" * 64)).write_text("{" * 100_000 + digest[7:])
    (blobs / ("3" * 64)).write_text(json.dumps([digest]))
    os.mkfifo(blobs / ("4" * 64))
    (blobs / ("5" * 64)).symlink_to("/nowhere")
    (blobs / ("6" * 64)).mkdir()
    (blobs / "junk").write_text(subject)
    tag = f"{digest.replace(':', '-')}.sig"
    for index in (
        "",
        "[]",
        "{",
        '{"manifests": 3}',
        json.dumps({"manifests": [{"digest": f"sha256:{'4' * 64}", "annotations": 3}]}),
    ):
        (folder / "index.json").write_text(index)
        with pytest.raises(TrustError, match=r"one of builder\.baseSigners, upstream"):
            bases(tmp_path / "state").open(f"oci:{folder}@{digest}", signers=signer_of(key.public_pem))
    for wrong in ("4" * 64, "1" * 64):
        named = {"digest": f"sha256:{wrong}", "annotations": {REF_NAME: tag}}
        (folder / "index.json").write_text(json.dumps({"manifests": [named]}))
        with pytest.raises(TrustError):
            bases(tmp_path / "state").open(f"oci:{folder}@{digest}", signers=signer_of(key.public_pem))
    (folder / "index.json").unlink()
    os.mkfifo(folder / "index.json")
    with pytest.raises(TrustError):
        bases(tmp_path / "state").open(f"oci:{folder}@{digest}", signers=signer_of(key.public_pem))
