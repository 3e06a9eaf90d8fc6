"""Images: the same bytes everywhere, signed, and nothing loads that was touched."""

import json
import os
import tarfile
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from controller.adapters.attest.signing import sign_image
from controller.adapters.attest.statements import PROVENANCE, SIGNATURE
from controller.adapters.attest.verifying import verify_image
from controller.adapters.clock import SystemClock
from controller.adapters.git import GitRepository, init_bare
from controller.adapters.images import SignedImages
from controller.adapters.keys import ImageKey, SshKey
from controller.adapters.oci.artifacts import ArtifactStore
from controller.adapters.oci.assembly import PYTHON
from controller.adapters.oci.layers import Filed, Stored, lay
from controller.adapters.oci.layout import Layout
from controller.adapters.oci.mirrored import MirroredLayout
from controller.adapters.oci.registry import Access, Registry
from controller.adapters.oci.splice import lay_wheels
from policies.canonical import canonical
from policies.errors import ControllerError, DesiredStateError, TrustError
from policies.terms.build import NO_RULES, BuildRules
from policies.terms.digest import Digest, digest_of
from policies.terms.task import ImageSpec, ImageState
from tests.contracts.registry_server import RegistryServer, registry_server, why_no_registry, with_passwords
from tests.controller.tiny_base import USUAL, part, push, push_index
from tests.fakes.provenance import trust_in, where_from

needs_registry = pytest.mark.skipif(bool(why_no_registry()), reason=why_no_registry() or "there is one")
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
    with pytest.raises(DesiredStateError, match=r"x\.py comes from a-1\.0-py3-none-any\.whl too"):
        lay_wheels(Layout(tmp_path / "store"), both, SITE)


def test_a_signed_image_verifies_and_a_touched_one_never(tmp_path: Path) -> None:
    layout, key = Layout(tmp_path / "store"), ImageKey.generate(tmp_path / "key.pem")
    other = ImageKey.generate(tmp_path / "other.pem")
    config = layout.descriptor(layout.put(b"{}"), "application/vnd.oci.image.config.v1+json")
    digest = layout.put(canonical({"schemaVersion": 2, "config": config, "layers": []}))
    with pytest.raises(TrustError, match="nothing is attached"):
        verify_image(layout, digest, trust_in(key))
    sign_image(layout, digest, key, where_from())
    assert set(verify_image(layout, digest, trust_in(other, key))) == {SIGNATURE, PROVENANCE}
    with pytest.raises(TrustError, match="another key"):
        verify_image(layout, digest, trust_in(other))
    bundles = [layout.path(item["layers"][0]["digest"]) for item in layout.referrers(digest)]
    for bundle in bundles:
        whole = bundle.read_bytes()
        bundle.write_bytes(whole[:200] + bytes([whole[200] ^ 1]) + whole[201:])
        with pytest.raises(TrustError):
            verify_image(layout, digest, trust_in(key))
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
        self.images = SignedImages(self.repository, self.layout, folder / "build", signer, trust_in(signer), SystemClock())

    def build(self, files: dict[str, bytes | None], *, base: str = "host", rules: BuildRules = NO_RULES) -> ImageState:
        tip = self.repository.fetch("main")
        commit = self.repository.push(branch="main", parent=tip, changes=files, message="m", at=AT)
        tree = self.repository.tree_id(commit, "src")
        spec = ImageSpec(repository="r", commit=commit, folder="src", tree=tree, base=base, rules=rules)
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
        ({"src/.s2i/environment": b"INSTALL_SCRIPT=x.sh\n"}, "INSTALL_SCRIPT: expected a file of the source folder, got 'x.sh'"),
        ({"src/.s2i/environment": b"INSTALL_SCRIPT=x.sh\n", "src/x.sh": b""}, "expected a base image to run it on"),
        ({"src/.s2i/environment": b"MODEL_NAM=x\n"}, "got MODEL_NAM"),
        (
            {"src/requirements.txt": b"idna==3.10 --hash=sha256:" + b"0" * 64 + b"\n"},
            "src/requirements.txt:1: idna 3.10: expected",
        ),
    ],
)
def test_what_cannot_be_built_says_why(tmp_path: Path, files: dict[str, bytes | None], words: str) -> None:
    builds = Builds(tmp_path)
    state = builds.build({"src/app.py": b"", **files}, rules=BuildRules(requires_hashes=True))
    assert state.phase == "failed"
    assert words in state.message
    builds.repository.close()


def test_a_layer_of_files_has_golden_bytes(tmp_path: Path) -> None:
    laid = lay(Layout(tmp_path / "store"), {"app/a.py": Stored(data=b"print(1)\n"), "app/run": Stored(data=b"", executable=True)})
    assert laid.descriptor["digest"] == GOLDEN_LAYER


GOLDEN_LAYER = "sha256:e58ea9e44aca688347e55748bfb2ee9e2069c0860c867add56f8a70decefe0ee"


def test_a_streamed_file_has_golden_bytes_and_comes_back(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "store")
    content = {"d/small": b"1", "d/empty": b"", "d/full": b"x" * 65535, "d/big": bytes(range(256)) * 1000}
    files = {}
    for name, data in content.items():
        digest = layout.put(data)
        files[name] = Filed(path=layout.path(digest), digest=digest, size=len(data), executable=name == "d/big")
    laid = lay(layout, files, folders=("d", "e/f"))
    with tarfile.open(layout.path(laid.descriptor["digest"]), "r:gz") as archive:
        members = {member.name: member for member in archive}
        assert set(members) == {"d", "e", "e/f", *content}
        assert {name for name, member in members.items() if member.isdir()} == {"d", "e", "e/f"}
        for name, data in content.items():
            file = archive.extractfile(members[name])
            assert file is not None
            assert file.read() == data
        assert (members["d/big"].mode, members["d/small"].mode) == (0o755, 0o644)
    assert laid.descriptor["digest"] == GOLDEN_STREAMED


def test_a_streamed_file_with_other_bytes_is_refused(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "store")
    digest = layout.put(b"weights")
    for touched in (b"weightz", b"weight"):
        layout.path(digest).write_bytes(touched)
        with pytest.raises(TrustError, match="expected the bytes of"):
            lay(layout, {"w": Filed(path=layout.path(digest), digest=digest, size=7)})
    assert [path.name for path in layout.root.iterdir() if path.name.startswith("new-")] == []


@pytest.mark.parametrize("name", [".wh.x", "a/.wh.x", "a/.wh..wh..opq", ".wh.a/x"])
def test_a_name_that_would_hide_files_of_other_layers_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DesiredStateError, match="hide a file of another layer; rename it"):
        lay(Layout(tmp_path / "store"), {name: Stored(data=b"")})


GOLDEN_STREAMED = "sha256:63b0da09be254a36985020c3adc99568c594acfeabfb72e137c27b5742b2d627"


class Pushes:
    """A project in a registry: its repository, and controllers that may lose everything but their keys."""

    def __init__(self, server: RegistryServer, folder: Path, wheels: Path) -> None:
        self.server, self.folder, self.wheels = server, folder, wheels
        self.name = folder.name.replace("_", "-").lower()[:40]
        key = SshKey.generate(folder / "key")
        init_bare(folder / "origin.git")
        self.repository = GitRepository(str(folder / "origin.git"), folder / "git", key)
        self.key = ImageKey.generate(folder / "image.pem")

    def access(self, repository: str) -> Access:
        return Access(repository=repository, unsafe_plain_http=True)

    def base(self) -> str:
        repository = f"{self.server.address}/base"
        with closing(Registry(self.access(repository))) as registry:
            settings = {"Env": ["PATH=/usr/games:/bin", "LANG=C.UTF-8", "MYELIN_PYTHON=2"], "User": "root", "Cmd": ["x"]}
            return f"{repository}@{push(registry, self.folder / 'parts', [part(USUAL)], settings=settings)}"

    def spec(self, files: dict[str, bytes | None], base: str) -> ImageSpec:
        tip = self.repository.fetch("main")
        commit = self.repository.push(branch="main", parent=tip, changes=files, message="m", at=AT)
        tree = self.repository.tree_id(commit, "src")
        return ImageSpec(repository="team/r", commit=commit, folder="src", tree=tree, base=base, event_set=digest_of(b"e"))

    @contextmanager
    def controller(self, state: str, address: str = "") -> Iterator[tuple[SignedImages, MirroredLayout]]:
        place = f"{address or self.server.address}/team/{self.name}"
        with closing(Registry(self.access(place), tries=1)) as registry:
            layout = MirroredLayout(self.folder / state / "store", registry)
            build = self.folder / state / "build"
            build.mkdir(parents=True, exist_ok=True)
            if not (build / "wheels").exists():
                (build / "wheels").symlink_to(self.wheels)
            trust = trust_in(self.key)
            yield SignedImages(self.repository, layout, build, self.key, trust, SystemClock(), access_for=self.access), layout


def ended(images: SignedImages, spec: ImageSpec) -> ImageState:
    images.start(spec)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        state = images.look(spec)
        if state is not None and state.phase != "building":
            return state
        time.sleep(0.02)
    raise AssertionError("never built")


def built(images: SignedImages, spec: ImageSpec) -> Digest:
    state = ended(images, spec)
    assert state.phase == "built", state.message
    assert state.digest is not None
    return state.digest


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    with registry_server(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("wheels")


@pytest.fixture
def pushes(server: RegistryServer, tmp_path: Path, wheels: Path) -> Iterator[Pushes]:
    made = Pushes(server, tmp_path, wheels)
    yield made
    made.repository.close()


@needs_registry
def test_an_image_on_a_base_is_pushed_whole_and_named_for_people_and_for_us(pushes: Pushes) -> None:
    base = pushes.base()
    spec = pushes.spec({"src/app.py": b"print(1)\n"}, base)
    with pushes.controller("one") as (images, layout):
        digest = built(images, spec)
        images.verify(digest)
        manifest = layout.manifest(digest)
        assert manifest["annotations"] == {
            "org.opencontainers.image.base.name": base,
            "org.opencontainers.image.base.digest": base.split("@")[1],
        }
        config = json.loads(layout.get(manifest["config"]["digest"]))
        assert config["config"]["User"] == "65532:65532"
        assert "Cmd" not in config["config"]
        env = dict(item.split("=", 1) for item in config["config"]["Env"])
        assert env == {"PATH": "/opt/venv/bin:/usr/games:/bin", "LANG": "C.UTF-8", "MYELIN_PYTHON": PYTHON}
        assert len(config["rootfs"]["diff_ids"]) == len(manifest["layers"])
        with tarfile.open(layout.path(manifest["layers"][-1]["digest"]), "r:gz") as archive:
            links = {member.name: member.linkname for member in archive if member.issym()}
            assert links == {"opt/venv/bin/python": f"/usr/bin/python{PYTHON}", "opt/venv/bin/python3": "python"}
            settings = archive.extractfile("opt/venv/pyvenv.cfg")
            assert settings is not None
            assert b"home = /usr/bin\n" in settings.read()
        registry = layout.registry
        label = f"team-r-c-{spec.commit[:12]}-e-{spec.event_set.removeprefix('sha256:')[:12]}"
        assert registry.resolve(label) == digest
        assert registry.has_manifest(digest)
        assert [item for item in manifest["layers"] if not registry.has_blob(item["digest"])] == []
        assert not layout.is_here(manifest["layers"][0]["digest"])
        assert layout.reference == registry.repository


@needs_registry
def test_a_controller_that_lost_its_state_finds_what_was_built_and_builds_nothing(pushes: Pushes) -> None:
    spec = pushes.spec({"src/app.py": b"print(2)\n"}, pushes.base())
    with pushes.controller("one") as (images, _):
        first = ended(images, spec)
    assert first.digest is not None
    with pushes.controller("two") as (images, layout):
        assert images.look(spec) is None
        again = ended(images, spec)
        assert (again.phase, again.digest, again.materials) == ("built", first.digest, first.materials)
        images.verify(first.digest)
        assert list((pushes.folder / "two" / "build").glob("layer-*.json")) == []
        assert [item for item in layout.manifest(first.digest)["layers"] if layout.is_here(item["digest"])] == []
    with pushes.controller("two") as (images, _):
        assert images.look(spec) == again


@needs_registry
def test_an_image_that_exists_is_taken_as_it_is_where_the_manifest_says_so(pushes: Pushes) -> None:
    spec = pushes.spec({"src/app.py": b"print(8)\n"}, pushes.base())
    with pushes.controller("one") as (images, _):
        digest = built(images, spec)
    # Built by other rules it would be another image.
    other = replace(spec, rules=BuildRules(stamps=True))
    with pushes.controller("two") as (images, _):
        assert built(images, replace(other, checks_exists=True)) == digest
    with pushes.controller("three") as (images, layout):
        stamped = built(images, other)
        assert stamped != digest
        notes = layout.manifest(stamped)["annotations"]
        assert notes["org.opencontainers.image.revision"] == spec.commit
        assert notes["org.opencontainers.image.created"] == "2026-01-31T00:00:00Z"


@needs_registry
def test_an_index_of_two_kinds_of_machine_has_the_wheels_of_each(pushes: Pushes) -> None:
    repository = f"{pushes.server.address}/bases"
    with closing(Registry(pushes.access(repository))) as registry:
        parts = [part(USUAL)]
        machines = {name: push(registry, pushes.folder / name, parts, architecture=name) for name in ("amd64", "arm64")}
        base = f"{repository}@{push_index(registry, machines)}"
    spec = pushes.spec({"src/app.py": b"print(10)\n"}, base)
    spec = replace(spec, rules=BuildRules(platforms=("linux/amd64", "linux/arm64")))
    with pushes.controller("one") as (images, layout):
        digest = built(images, spec)
        images.verify(digest)
        index = layout.manifest(digest)
        assert [item["platform"]["architecture"] for item in index["manifests"]] == ["amd64", "arm64"]
        wheels = images.look(spec).materials["wheels"]  # type: ignore[union-attr]
        machines_of = {name: [file for file in wheels if name in file] for name in ("x86_64", "aarch64")}
        assert len(machines_of["x86_64"]) == len(machines_of["aarch64"]) > 2
        for item in index["manifests"]:
            own = {"amd64": "x86_64", "arm64": "aarch64"}[item["platform"]["architecture"]]
            names = set()
            for layer in layout.manifest(item["digest"])["layers"]:
                with tarfile.open(layout.path(layer["digest"])) as archive:
                    names |= {name for name in archive.getnames() if name.endswith(".so")}
            assert names
            assert all(own in name for name in names), names
    # Whoever has nothing pulls all of it.
    with pushes.controller("two") as (images, _):
        images.verify(digest)
        assert built(images, spec) == digest


@needs_registry
def test_a_tag_that_somebody_moved_is_not_believed(pushes: Pushes) -> None:
    base = pushes.base()
    one, other = pushes.spec({"src/app.py": b"print(3)\n"}, base), pushes.spec({"src/app.py": b"print(4)\n"}, base)
    with pushes.controller("one") as (images, layout):
        good, wrong = built(images, one), built(images, other)
        tags = [tag for tag in _tags(layout) if tag.startswith("i-") and layout.registry.resolve(tag) == good]
        layout.registry.put_manifest(layout.get(wrong), tags[0])
    with pushes.controller("two") as (images, layout):
        assert built(images, one) == good
        assert layout.registry.resolve(tags[0]) == good
    # What another key signed says nothing either.
    pushes.key = ImageKey.generate(pushes.folder / "other.pem")
    with pushes.controller("three") as (images, _):
        assert built(images, one) == good
        assert list((pushes.folder / "three" / "build").glob("layer-*.json")) != []


@needs_registry
def test_a_registry_that_refuses_or_is_silent_is_asked_again_later(pushes: Pushes, tmp_path: Path) -> None:
    spec = pushes.spec({"src/app.py": b"print(5)\n"}, pushes.base())
    with (
        registry_server(tmp_path / "closed", with_passwords(tmp_path / "closed")) as closed,
        pushes.controller("one", closed.address) as (images, _),
    ):
        state = ended(images, spec)
    assert (state.phase, state.reason, state.is_passing) == ("failed", "RegistryRefused", True)
    with pushes.controller("one", closed.address) as (images, _):
        state = ended(images, spec)
    assert (state.phase, state.is_passing) == ("failed", True)
    assert closed.address in state.message
    with pushes.controller("one") as (images, _):
        images.verify(built(images, spec))


@needs_registry
def test_what_was_pushed_to_one_registry_is_pushed_to_the_next(pushes: Pushes, tmp_path: Path) -> None:
    spec = pushes.spec({"src/app.py": b"print(6)\n"}, pushes.base())
    with pushes.controller("one") as (images, _):
        digest = built(images, spec)
    with registry_server(tmp_path / "next") as after, pushes.controller("one", after.address) as (images, layout):
        assert images.look(spec) is None
        assert built(images, spec) == digest
        assert [item for item in layout.manifest(digest)["layers"] if not layout.registry.has_blob(item["digest"])] == []


@needs_registry
def test_a_layer_that_the_registry_lost_is_missed_before_a_pod_would(pushes: Pushes, server: RegistryServer) -> None:
    spec = pushes.spec({"src/app.py": b"print(7)\n"}, pushes.base())
    with pushes.controller("one") as (images, layout):
        digest = built(images, spec)
        layer = layout.manifest(digest)["layers"][-1]["digest"]
    server.forget(layout.registry.access.path, layer)
    with pushes.controller("two") as (images, _), pytest.raises(TrustError, match="missing in both") as caught:
        images.verify(digest)
    assert caught.value.reason == "BlobMissing"


@needs_registry
def test_a_base_that_will_not_do_says_so_once(pushes: Pushes) -> None:
    spec = pushes.spec({"src/app.py": b""}, f"{pushes.server.address}/base:3")
    with pushes.controller("one") as (images, _):
        state = ended(images, spec)
    assert (state.phase, state.reason, state.is_passing) == ("failed", "BaseNotPinned", False)


def _tags(layout: MirroredLayout) -> list[str]:
    place = layout.registry.access
    with urllib.request.urlopen(f"http://{place.host}/v2/{place.path}/tags/list") as answer:
        return list(json.load(answer)["tags"])
