"""Base images in an OCI layout on this machine: read, never written to, and only where the machine is one person's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from controller.adapters.oci.access import Access
from controller.adapters.oci.assembly import PYTHON
from controller.adapters.oci.bases import Bases
from controller.adapters.oci.layout import CONFIG, MANIFEST, Layout
from policies.canonical import canonical
from policies.errors import DesiredStateError, TrustError
from policies.terms.build import BaseSigner
from policies.terms.digest import Digest
from tests.controller.tiny_base import ARCHITECTURE, USUAL, Part, part


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


def test_a_base_on_disk_that_somebody_must_have_signed_is_refused(tmp_path: Path) -> None:
    digest = laid(tmp_path / "one", [part(USUAL)])
    key = "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE" + "A" * 86 + "\n-----END PUBLIC KEY-----\n"
    with pytest.raises(TrustError):
        bases(tmp_path / "state").open(f"oci:{tmp_path / 'one'}@{digest}", signers=(BaseSigner(name="x", key=key),))
