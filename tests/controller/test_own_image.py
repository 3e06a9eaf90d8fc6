"""The controller's own image: made of the same parts as everybody's, equal for equal inputs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from controller import own_image
from controller.adapters.attest.verifying import verify_image
from controller.adapters.keys import ImageKey
from controller.adapters.oci.access import Access, access_from_docker_config
from controller.adapters.oci.assembly import PYTHON, SITE, Base
from controller.adapters.oci.bytecode import OWN_VERSION, cached_at
from controller.adapters.oci.layout import Layout
from controller.adapters.oci.mirrored import MirroredLayout
from controller.adapters.oci.registry import Registry
from policies.errors import DesiredStateError
from policies.terms.digest import digest_of
from tests.contracts.registry_server import PASSWORD, USER, registry_server, why_no_registry, with_passwords
from tests.controller.tiny_base import ARCHITECTURE, USUAL, part, push
from tests.fakes.provenance import trust_in

BASE = Base(
    reference=f"h.example/base@{digest_of(b'base')}",
    digest=digest_of(b"base"),
    config={"architecture": ARCHITECTURE, "os": "linux", "config": {"Env": ["PATH=/usr/bin:/bin"]}},
    layers=({"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest_of(b"layer"), "size": 5},),
    diff_ids=(digest_of(b"layer"),),
    programs=("/usr/bin/git", f"/usr/bin/python{PYTHON}"),
    python=f"/usr/bin/python{PYTHON}",
    version=PYTHON,
)


def short_lock(folder: Path) -> Path:
    """Two packages of the controller's lock: one with a wheel, one without."""
    text = own_image.REQUIREMENTS.read_text()
    blocks = re.split(r"(?m)^(?=[A-Za-z0-9])", text)
    path = folder / "short.txt"
    path.write_text("".join(block for block in blocks if block.startswith(("rfc8785==", "hpbandster=="))))
    return path


@pytest.fixture(scope="module")
def memories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("memories")


def seen(layout: Layout, digest: str) -> dict[str, tuple[bytes, int]]:
    """The files that the image puts on top of its base."""
    found = {}
    for layer in layout.manifest(digest)["layers"][1:]:
        with tarfile.open(layout.path(layer["digest"]), "r:gz") as archive:
            for member in archive:
                content = archive.extractfile(member) if member.isfile() else None
                found[member.name] = (content.read() if content else member.linkname.encode(), member.mode)
    return found


def test_it_holds_what_a_controller_needs_and_starts_as_nobody(tmp_path: Path, memories: Path) -> None:
    layout = Layout(tmp_path / "store")
    digest = own_image.build(layout, memories, BASE, requirements=short_lock(tmp_path))
    files = seen(layout, digest)
    for name in (
        "rfc8785/__init__.py",
        "hpbandster/optimizers/bohb.py",
        "controller/__main__.py",
        "controller/adapters/oci/layout.py",
        "controller/example-repo/myelin.yaml",
        "controller/example-repo/axons/digits/training/.s2i/environment",
        "reconcilers/ports.py",
        "policies/errors.py",
        "myelin/requirements.txt",
        "myelin/serve/__init__.py",
    ):
        assert f"{SITE}/{name}" in files, name
    assert [name for name in files if "__pycache__" in name or name.endswith(".pyc")] == []
    assert files["opt/venv/bin/python"][0] == f"/usr/bin/python{PYTHON}".encode()
    assert files["opt/venv/bin/myelin"][1] == 0o755
    config = json.loads(layout.get(layout.manifest(digest)["config"]["digest"]))["config"]
    assert (config["Entrypoint"], config["Cmd"]) == (["/opt/venv/bin/python", "-m", "controller"], ["operate"])
    assert (config["User"], config["WorkingDir"]) == ("65532:65532", "/tmp")
    assert {"HOME=/tmp", "PATH=/opt/venv/bin:/usr/bin:/bin"} <= set(config["Env"])


def test_equal_inputs_are_an_equal_image(tmp_path: Path, memories: Path) -> None:
    lock, key = short_lock(tmp_path), ImageKey.generate(tmp_path / "key.pem")
    one, other = Layout(tmp_path / "one"), Layout(tmp_path / "other")
    other.put(b"layer")  # of its base, without which an image is not whole
    digest = own_image.build(one, memories, BASE, requirements=lock)
    assert own_image.build(other, memories, BASE, requirements=lock, key=key) == digest
    assert own_image.build(one, memories, replace(BASE, digest=digest_of(b"2")), requirements=lock) != digest
    verify_image(other, digest, trust_in(key))


def test_where_the_bases_python_is_here_its_modules_are_compiled_and_count(tmp_path: Path, memories: Path) -> None:
    lock, base = short_lock(tmp_path), replace(BASE, exact=OWN_VERSION)
    one, other = Layout(tmp_path / "one"), Layout(tmp_path / "other")
    said: list[str] = []
    digest = own_image.build(one, memories, base, requirements=lock, progress=said.append)
    assert own_image.build(other, tmp_path / "afresh", base, requirements=lock) == digest
    assert f"compiling modules for Python {OWN_VERSION}" in said
    files = seen(one, digest)
    for module in (
        "controller/operate.py",
        "policies/errors.py",
        "myelin/job/__main__.py",
        "rfc8785/_impl.py",
        "hpbandster/__init__.py",
    ):
        # Unchecked (PEP 552): files of an image have one time, which would say nothing of what they were compiled from.
        assert files[cached_at(f"{SITE}/{module}", OWN_VERSION)][0][4:8] == b"\1\0\0\0", module
    env = json.loads(one.get(one.manifest(digest)["config"]["digest"]))["config"]["Env"]
    assert "PYTHONDONTWRITEBYTECODE=1" in env
    assert not [item for item in env if item.startswith("PYTHONPYCACHEPREFIX=")]


def test_where_it_is_not_a_pod_compiles_for_itself(tmp_path: Path, memories: Path) -> None:
    said: list[str] = []
    layout, base = Layout(tmp_path / "store"), replace(BASE, exact=f"{PYTHON}.99")
    digest = own_image.build(layout, memories, base, requirements=short_lock(tmp_path), progress=said.append)
    assert f"no Python {PYTHON}.99 here: modules are not compiled, so its pod starts slowly" in said
    env = json.loads(layout.get(layout.manifest(digest)["config"]["digest"]))["config"]["Env"]
    assert "PYTHONPYCACHEPREFIX=/tmp/pycache" in env


def test_what_was_packed_runs(tmp_path: Path, memories: Path) -> None:
    layout = Layout(tmp_path / "store")
    files = seen(layout, own_image.build(layout, memories, BASE, requirements=short_lock(tmp_path)))
    site = tmp_path / "site"
    for name, (content, _) in files.items():
        if name.startswith(f"{SITE}/") and content:
            (site / name.removeprefix(f"{SITE}/")).parent.mkdir(parents=True, exist_ok=True)
            (site / name.removeprefix(f"{SITE}/")).write_bytes(content)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import controller.project, controller.adapters.sampler, hpbandster; "
        "print(controller.project.example_folder()); print(hpbandster.__file__)"
    )
    done = subprocess.run([sys.executable, "-c", code, site], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.split() == [str(site / "controller/example-repo"), str(site / "hpbandster/__init__.py")]


def test_what_cannot_be_built_says_why(tmp_path: Path, memories: Path) -> None:
    layout, lock = Layout(tmp_path / "store"), short_lock(tmp_path)
    with pytest.raises(DesiredStateError, match="expected git, which the controller reads repositories with"):
        own_image.build(layout, memories, replace(BASE, programs=BASE.programs[1:]), requirements=lock)
    with pytest.raises(DesiredStateError, match="run this from a checkout"):
        own_image.build(layout, memories, BASE, requirements=tmp_path / "none.txt")
    lock.write_text(lock.read_text().replace("hpbandster==0.7.4", "hpbandster==0.7.5"))
    with pytest.raises(DesiredStateError, match=r"hpbandster: expected version 0\.7\.5 in this environment, got 0\.7\.4"):
        own_image.build(layout, memories, BASE, requirements=lock)


@pytest.mark.skipif(bool(why_no_registry()), reason=why_no_registry() or "there is one")
def test_the_command_pushes_and_prints_the_reference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = ImageKey.generate(tmp_path / "key.pem")
    with registry_server(tmp_path / "registry", with_passwords(tmp_path / "registry")) as server:
        secret = {"auths": {server.address: {"username": USER, "password": PASSWORD}}}
        (tmp_path / "docker.json").write_text(json.dumps(secret))
        target = f"{server.address}/myelin/controller"
        bare = Access(repository=f"{server.address}/base", unsafe_plain_http=True)
        access = access_from_docker_config(json.dumps(secret), bare.repository, unsafe_plain_http=True)
        with closing(Registry(access)) as registry:
            base = f"{bare.repository}@{push(registry, tmp_path / 'parts', [part(USUAL)])}"
        common = ["--base", base, "--push", target, "--layout", str(tmp_path / "store"), "--unsafe-plain-http"]
        common += ["--requirements", str(short_lock(tmp_path))]
        assert (
            own_image.main([*common, "--key", str(tmp_path / "key.pem"), "--docker-config", str(tmp_path / "docker.json")]) == 0
        )
        reference = capsys.readouterr().out.strip()
        assert re.fullmatch(rf"{target}@sha256:[0-9a-f]{{64}}", reference)
        with closing(Registry(replace(access, repository=target))) as registry:
            layout = MirroredLayout(tmp_path / "elsewhere", registry)
            digest = reference.split("@")[1]
            layout.check_all(digest)
            verify_image(layout, digest, trust_in(key))
        assert own_image.main(common) == 1
        assert capsys.readouterr().err.startswith(f"own_image: base {base}: ")
        assert own_image.main([*common, "--docker-config", str(tmp_path / "none.json")]) == 1
        assert capsys.readouterr().err == f"own_image: {tmp_path / 'none.json'}: No such file or directory\n"
        wrong = [*common, "--docker-config", str(tmp_path / "docker.json")]
        wrong[1] = f"{bare.repository}:3"
        assert own_image.main(wrong) == 1
        assert "expected a digest, got the tag 3" in capsys.readouterr().err
