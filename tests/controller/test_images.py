"""Images: the same bytes everywhere, signed, and nothing loads that was touched."""

import os
import tarfile
import time
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import pytest

from controller.adapters.attestor import PROVENANCE, SIGNATURE, sign_image, verify_image
from controller.adapters.clock import SystemClock
from controller.adapters.git import GitRepository, init_bare
from controller.adapters.images import PythonImages
from controller.adapters.keys import ImageKey, SshKey
from controller.adapters.oci.layers import Stored, lay, lay_wheels
from controller.adapters.oci.layout import ArtifactStore, Layout
from controller.adapters.oci.wheels import check_hashes, merged_lock
from policies.errors import ControllerError, DesiredStateError, TrustError
from policies.terms.task import ImageSpec, ImageState

SITE = "opt/venv/lib/python3.11/site-packages"
AT = datetime(2026, 1, 31, tzinfo=UTC)


def wheel(
    folder: Path, name: str, files: dict[str, bytes], *, stamp: tuple[int, int, int, int, int, int] = (2020, 1, 1, 0, 0, 0)
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for target, content in files.items():
            archive.writestr(zipfile.ZipInfo(target, stamp), content, zipfile.ZIP_STORED)
    return path


def test_a_layer_is_the_same_bytes_whoever_lays_it(tmp_path: Path) -> None:
    files = {"a/__init__.py": b"", "a/x.py": b"x = 1\n" * 100, "a-1.0.dist-info/RECORD": b"a/x.py,,\n"}
    digests = set()
    for number, umask in enumerate((0o022, 0o077)):
        before = os.umask(umask)
        try:
            made = wheel(tmp_path / str(number) / "w", "a", files, stamp=(2020 + number, 1, 1, 0, 0, 0))
            digests.add(lay_wheels(Layout(tmp_path / str(number) / "store"), [made], SITE).descriptor["digest"])
        finally:
            os.umask(before)
    assert len(digests) == 1


def test_a_layer_is_a_tar_that_others_read(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "store")
    with zipfile.ZipFile(tmp_path / "a-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/x.py", b"x = 1\n" * 1000)
        archive.writestr("a/empty.py", b"")
        archive.writestr("a-1.0.data/scripts/tool", b"#!python\nprint(1)\n")
    laid = lay_wheels(layout, [tmp_path / "a-1.0-py3-none-any.whl"], SITE)
    with tarfile.open(layout.path(laid.descriptor["digest"]), "r:gz") as archive:
        names = {member.name: member for member in archive if member.isfile()}
        assert set(names) == {f"{SITE}/a/x.py", f"{SITE}/a/empty.py", "opt/venv/bin/tool"}
        content = archive.extractfile(names[f"{SITE}/a/x.py"])
        assert content is not None
        assert content.read() == b"x = 1\n" * 1000
        assert names["opt/venv/bin/tool"].mode == 0o755
        assert {member.mtime for member in names.values()} == {315619200}


@pytest.mark.parametrize("name", ["../evil.py", "/etc/passwd", "a/../../b"])
def test_a_wheel_that_reaches_out_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DesiredStateError, match="inside of the wheel"):
        lay_wheels(Layout(tmp_path / "store"), [wheel(tmp_path, "a", {name: b""})], SITE)


def test_two_wheels_with_the_same_file_but_other_bytes_are_refused(tmp_path: Path) -> None:
    both = [wheel(tmp_path, "a", {"x.py": b"1"}), wheel(tmp_path, "b", {"x.py": b"2"})]
    with pytest.raises(DesiredStateError, match=r"x\.py comes from another wheel"):
        lay_wheels(Layout(tmp_path / "store"), both, SITE)


def test_locks_are_merged_and_checked() -> None:
    own = "numpy==2.0 \\\n    --hash=sha256:aa\n"
    runtime = "numpy==1.0 \\\n    --hash=sha256:bb\naiohttp==3.0 \\\n    --hash=sha256:cc\n"
    merged = merged_lock(own, runtime)
    assert "numpy==2.0" in merged
    assert "numpy==1.0" not in merged
    assert "aiohttp==3.0" in merged
    check_hashes(merged, "requirements.txt")
    with pytest.raises(DesiredStateError, match=r"requirements\.txt:3: expected name==version"):
        check_hashes(own + "scipy>=1\n", "requirements.txt")


def test_a_signed_image_verifies_and_a_touched_one_never(tmp_path: Path) -> None:
    layout, key = Layout(tmp_path / "store"), ImageKey.generate(tmp_path / "key.pem")
    other = ImageKey.generate(tmp_path / "other.pem")
    digest = layout.put(b'{"layers":[]}')
    with pytest.raises(TrustError, match="nothing is attached"):
        verify_image(layout, digest, (key.public_pem,))
    sign_image(layout, digest, key, {"buildDefinition": {}})
    assert set(verify_image(layout, digest, (other.public_pem, key.public_pem))) == {SIGNATURE, PROVENANCE}
    with pytest.raises(TrustError, match="another key"):
        verify_image(layout, digest, (other.public_pem,))
    bundles = [layout.path(item["layers"][0]["digest"]) for item in layout.referrers(digest)]
    for bundle in bundles:
        whole = bundle.read_bytes()
        bundle.write_bytes(whole[:200] + bytes([whole[200] ^ 1]) + whole[201:])
        with pytest.raises(TrustError):
            verify_image(layout, digest, (key.public_pem,))
        bundle.write_bytes(whole)


def test_an_artifact_comes_back_as_it_was_and_a_touched_one_never(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "store")
    store = ArtifactStore(layout)
    (tmp_path / "m" / "deep").mkdir(parents=True)
    (tmp_path / "m" / "deep" / "w.bin").write_bytes(b"weights")
    digest = store.put_folder(tmp_path / "m")
    assert store.put_folder(tmp_path / "m") == digest
    store.fetch_folder(digest, tmp_path / "back")
    assert (tmp_path / "back/deep/w.bin").read_bytes() == b"weights"
    layout.path(layout.manifest(digest)["layers"][0]["digest"]).write_bytes(b"weightz")
    with pytest.raises(TrustError, match="expected these bytes"):
        store.fetch_folder(digest, tmp_path / "again")
    (tmp_path / "m" / "out").symlink_to("/etc/passwd")
    with pytest.raises(ControllerError, match="inside of the folder"):
        store.put_folder(tmp_path / "m")


class Builds:
    def __init__(self, folder: Path) -> None:
        key = SshKey.generate(folder / "key")
        init_bare(folder / "origin.git")
        self.repository = GitRepository(str(folder / "origin.git"), folder / "git", key)
        self.layout = Layout(folder / "store")
        signer = ImageKey.generate(folder / "image.pem")
        self.images = PythonImages(self.repository, self.layout, folder / "build", signer, (signer.public_pem,), SystemClock())

    def build(self, files: dict[str, bytes | None]) -> ImageState:
        tip = self.repository.fetch("main")
        commit = self.repository.push(branch="main", parent=tip, changes=files, message="m", at=AT)
        spec = ImageSpec(repository="r", commit=commit, folder="src", tree=self.repository.tree_id(commit, "src"))
        self.images.start(spec)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            state = self.images.look(spec)
            if state is not None and state.phase != "building":
                return state
            time.sleep(0.05)
        raise AssertionError("never built")


def test_an_image_is_built_from_the_index_signed_and_checked_before_it_loads(tmp_path: Path) -> None:
    builds = Builds(tmp_path)
    state = builds.build({"src/app.py": b"print(1)\n"})
    assert state.phase == "built", state.message
    assert state.digest is not None
    builds.images.verify(state.digest)
    again = builds.build({"src/app.py": b"print(1)\n", "elsewhere": b"1"})
    assert again.digest == state.digest
    for blob in [state.digest, *(layer["digest"] for layer in builds.layout.manifest(state.digest)["layers"])]:
        path = builds.layout.path(blob)
        whole = path.read_bytes()
        path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
        with pytest.raises((TrustError, ValueError)):
            builds.images.verify(state.digest)
        path.write_bytes(whole)
    builds.repository.close()


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"src/requirements.txt": b"scikit-learn\n"}, "src/requirements.txt:1: expected name==version"),
        ({"src/.s2i/environment": b"INSTALL_SCRIPT=x.sh\n"}, "INSTALL_SCRIPT needs a container build"),
        ({"src/.s2i/environment": b"MODEL_NAM=x\n"}, "got MODEL_NAM"),
        ({"src/requirements.txt": b"idna==3.10 --hash=sha256:" + b"0" * 64 + b"\n"}, "src/requirements.txt: "),
    ],
)
def test_what_cannot_be_built_says_why(tmp_path: Path, files: dict[str, bytes | None], words: str) -> None:
    builds = Builds(tmp_path)
    state = builds.build({"src/app.py": b"", **files})
    assert state.phase == "failed"
    assert words in state.message
    builds.repository.close()


def test_a_layer_of_files_has_golden_bytes(tmp_path: Path) -> None:
    laid = lay(Layout(tmp_path / "store"), {"app/a.py": Stored(data=b"print(1)\n"), "app/run": Stored(data=b"", executable=True)})
    assert laid.descriptor["digest"] == GOLDEN_LAYER


GOLDEN_LAYER = "sha256:e58ea9e44aca688347e55748bfb2ee9e2069c0860c867add56f8a70decefe0ee"
