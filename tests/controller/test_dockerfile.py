"""What asks for a build by Dockerfile, and what is made of its answer; nothing is built here."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from controller.adapters.build.buildah import BuiltByFile, DockerfileJob, Opened
from controller.adapters.build.buildkit import FLAGS, BuildKitDriver, Daemon, lay_out, source_policy
from controller.adapters.build.by_file import DockerfileBuilder
from controller.adapters.build.dockerfile import read_dockerfile
from controller.adapters.build.enclosure import what_is_missing
from controller.adapters.build.leaks import MountedSecret, Needles
from controller.adapters.build.pins import Ground, Pins
from controller.adapters.build.s2i import InstallScripts, install_dockerfile, profile_of, script_of
from controller.adapters.build.scanning import Scanner
from controller.adapters.image_source import ImageSource
from controller.adapters.oci.access import Access
from controller.adapters.oci.assembly import Base
from controller.adapters.oci.layers import Stored, lay
from controller.adapters.oci.layout import CONFIG, MANIFEST, Layout
from policies.canonical import canonical
from policies.errors import DesiredStateError
from policies.terms.build import BuildRules, BuildSecret
from policies.terms.digest import Digest
from policies.terms.secret import Secret
from policies.terms.task import ImageSpec

PINNED = "registry.example/base@sha256:" + "1" * 64
KEY = "correct-horse-battery-staple"
SPEC = ImageSpec(
    repository="team/app", commit="c" * 40, folder="src", tree="t" * 40, builder="dockerfile", dockerfile="src/docker/Dockerfile"
)


class FakeDriver:
    """Builds what it is told to: an image of one file, its content the number of the build where it is to differ."""

    def __init__(self, layout: Layout, *, differs: bool = False) -> None:
        self.layout, self.differs = layout, differs
        self.jobs: list[DockerfileJob] = []

    def build(self, job: DockerfileJob, layout: Layout, progress: Callable[[str], None]) -> BuiltByFile:
        self.jobs.append(job)
        content = str(len(self.jobs) if self.differs else 0).encode()
        digest = image(layout, {"made": Stored(data=content)})
        return BuiltByFile(
            digest=digest,
            bases=(("registry.example/base:1", PINNED),),
            network=job.network,
            tool="fake 1",
            layers=(),
        )


class FakeReader:
    """A source folder."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = files

    def read(self, spec: ImageSpec) -> ImageSource:
        return ImageSource(files={path: Stored(data=data) for path, data in self.files.items()}, links={})


def image(layout: Layout, files: Mapping[str, Stored]) -> Digest:
    laid = lay(layout, files)
    config = layout.put(canonical({"os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": [laid.diff_id]}}))
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": layout.descriptor(config, CONFIG),
        "layers": [laid.descriptor],
    }
    return layout.put(canonical(manifest))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "store")


def builder(layout: Layout, driver: FakeDriver, secrets: Mapping[str, Secret] | None = None) -> DockerfileBuilder:
    reader: Any = FakeReader({"docker/Dockerfile": b"FROM registry.example/base:1\n", "a": b"1"})
    return DockerfileBuilder(
        reader,
        layout,
        lambda address: driver,
        lambda address: driver,
        lambda spec: 1_700_000_000,
        lambda secret: secrets or {},
        Scanner(layout.root.parent / "build"),
    )


def test_a_spec_is_built_from_its_folder_and_the_provenance_says_of_what(layout: Layout) -> None:
    driver = FakeDriver(layout)
    spec = replace(SPEC, network=True, secrets=(BuildSecret(name="index", path="/var/index"),))
    built = builder(layout, driver, {"token": Secret(KEY)}).build(spec, lambda text: None)
    (job,) = driver.jobs
    assert (job.dockerfile, sorted(job.files), job.network) == ("docker/Dockerfile", ["a", "docker/Dockerfile"], True)
    assert job.committed_at == 1_700_000_000
    definition = built.provenance["buildDefinition"]
    assert definition["resolvedDependencies"] == [
        {"name": "source", "digest": {"gitCommit": "c" * 40}},
        {"name": "from registry.example/base:1", "uri": PINNED, "digest": {"sha256": "1" * 64}},
    ]
    assert definition["externalParameters"]["network"] is True
    assert definition["externalParameters"]["secrets"] == [{"name": "index", "path": "/var/index"}]
    assert definition["internalParameters"] == {"sourceDateEpoch": 1_700_000_000, "tool": "fake 1"}
    assert built.materials["bases"] == {"registry.example/base:1": PINNED}
    assert KEY not in json.dumps([built.provenance, built.materials])


@pytest.mark.parametrize(("differs", "expected"), [(False, True), (True, ["made"])])
def test_where_it_is_required_an_image_is_built_twice_and_compared(layout: Layout, differs: bool, expected: Any) -> None:
    driver = FakeDriver(layout, differs=differs)
    spec = replace(SPEC, rules=BuildRules(reproducibility="required"))
    built = builder(layout, driver).build(spec, lambda text: None)
    said = built.provenance["buildDefinition"]["internalParameters"]["reproducible"]
    assert len(driver.jobs) == 2
    assert (said if said is True else said[0]["paths"]) == expected
    assert built.materials["reproducible"] == said


def test_what_was_built_is_known_again_by_its_provenance_and_not_taken_for_another(layout: Layout) -> None:
    made = builder(layout, FakeDriver(layout))
    built = made.build(SPEC, lambda text: None)
    assert made.materials(built.provenance, SPEC) == built.materials
    assert made.materials(built.provenance, replace(SPEC, tree="u" * 40)) is None
    assert made.materials(built.provenance, replace(SPEC, network=True)) is None
    assert made.materials(built.provenance, replace(SPEC, rules=BuildRules(reproducibility="required"))) is None
    assert made.identity(SPEC) != made.identity(replace(SPEC, dockerfile="src/Other"))
    with pytest.raises(ValueError, match="else"):
        made.materials({"buildDefinition": {"buildType": "something else"}}, SPEC)


@pytest.mark.parametrize(
    "name",
    [
        "registry.example/myelinio/myelin-deployer-s2i-py3:v0.1.4",
        "registry.example/myelinio/myelin-deployer-s2i-python:v0.1.1",
        "myelinio/myelin-deployer-s2i-py3-cuda10:v0.1.5",
        "registry.example/x/deployer-s2i-py3@sha256:" + "0" * 64,
    ],
)
def test_a_builder_image_of_the_earlier_myelin_is_a_profile_with_a_note(name: str) -> None:
    profile = profile_of(name, "team/app")
    assert profile is not None
    assert profile.name == "python"
    assert name in profile.note
    assert ("CUDA" in profile.note) == ("cuda" in name)


@pytest.mark.parametrize("name", ["registry.example/builder:1", "x/myelin-deployer-s2i-py2:v1", "x/myelin-deployer-s2i-r:v1"])
def test_another_builder_image_is_refused_with_what_to_do(name: str) -> None:
    with pytest.raises(DesiredStateError, match=r"team/app: builderImage: expected one .*; ") as caught:
        profile_of(name, "team/app")
    assert caught.value.reason == "UnknownBuilder"
    assert profile_of("", "team/app") is None


FILES = {"bin/install.sh": Stored(data=b"echo 1\n"), "setup": Stored(data=b"#!/bin/sh\n", executable=True)}


def test_an_install_script_is_run_as_it_is_written_down() -> None:
    script = script_of({"INSTALL_SCRIPT": "./bin/install.sh --fast 'a b'"}, FILES)
    assert script is not None
    text = install_dockerfile(script, PINNED)
    assert text.splitlines() == [
        f"FROM {PINNED}",
        "USER 0:0",
        "WORKDIR /app",
        'COPY ["bin/install.sh", "/app/bin/install.sh"]',
        'RUN ["sh", "bin/install.sh", "--fast", "a b"]',
    ]
    assert read_dockerfile(text, "D").base == PINNED
    other = script_of({"INSTALL_SCRIPT": "setup"}, FILES)
    assert other is not None
    assert 'RUN ["./setup"]' in install_dockerfile(other, PINNED)
    assert script_of({}, FILES) is None
    for bad in ("missing.sh", "'", "../x"):
        with pytest.raises(DesiredStateError, match=r"src/\.s2i/environment: INSTALL_SCRIPT: expected a file"):
            script_of({"INSTALL_SCRIPT": bad}, FILES, "src")


def test_a_script_runs_once_for_each_base_and_content(layout: Layout, tmp_path: Path) -> None:
    driver = FakeDriver(layout)
    scripts = InstallScripts(driver, layout, tmp_path / "memos")
    base = Base(
        reference=PINNED,
        digest=Digest("sha256:" + "1" * 64),
        config={},
        layers=(),
        diff_ids=(),
        programs=("/usr/bin/python3.11",),
        python="/usr/bin/python3.11",
        version="3.11",
    )
    script = script_of({"INSTALL_SCRIPT": "setup"}, FILES)
    assert script is not None

    def run(base: Base, *, network: bool = False) -> Any:
        return scripts.derived(base, script, subject="x", progress=lambda text: None, network=network)

    first, second = run(base), run(base)
    assert first == second
    assert len(driver.jobs) == 1
    assert len(first.base.layers) == len(first.base.diff_ids) == 1
    assert (first.base.reference, first.base.python) == (base.reference, base.python)
    run(replace(base, digest=Digest("sha256:" + "2" * 64)))
    run(base, network=True)
    assert len(driver.jobs) == 3
    assert sorted(driver.jobs[0].files) == ["Dockerfile", "setup"]


def test_buildkit_is_told_the_same_rules(layout: Layout, tmp_path: Path) -> None:
    laid = lay(layout, {"x": Stored(data=b"1")})
    ground = Ground(reference=PINNED, digest=Digest(PINNED[-71:]), config={}, layers=(laid.descriptor,), diff_ids=(laid.diff_id,))
    text = "# syntax=registry.example/other\nFROM registry.example/base:1\nRUN a \\\n  && b\nrun c\n"
    job = DockerfileJob(
        subject="x",
        files={"Dockerfile": Stored(data=text.encode()), "Dockerfile.dockerignore": Stored(data=b"y\n")},
        committed_at=7,
        args={"A": "1"},
        secrets=[MountedSecret(name="index", path="/var/index", files={"token": Secret(KEY)})],
    )
    opened = Opened(
        dockerfile=read_dockerfile(text, "Dockerfile"),
        pinned={"registry.example/base:1": PINNED},
        grounds={PINNED: ground},
    )
    work = tmp_path / "work"
    work.mkdir()
    handed = lay_out(job, opened, layout, work)
    mount = "--mount=type=secret,id=index.token,target=/var/index/token,mode=0444"
    written = (work / "dockerfile" / "Dockerfile").read_text()
    assert written == f"FROM pinned-0\nARG SOURCE_DATE_EPOCH\nRUN {mount} a \\\n  && b\nrun {mount} c\n"
    assert (work / "dockerfile" / "Dockerfile.dockerignore").read_text() == "y\n"
    daemon = Daemon(shown={name: Secret(KEY) for name in FLAGS}, program="/client")
    driver = BuildKitDriver(tmp_path, Pins(layout, _never), "tcp://builder:1234", daemon=daemon)
    files = {("", name): number for number, name in enumerate(FLAGS, start=10)}
    command = driver.command(job, work, handed, {("/var/index", "token"): 9, **files})
    assert command[0] == "/client"
    pairs = list(pairwise(command))
    for pair in (
        ("--addr", "tcp://builder:1234"),
        ("--tlscacert", "/proc/self/fd/10"),
        ("--tlskey", "/proc/self/fd/12"),
        ("--opt", "build-arg:SOURCE_DATE_EPOCH=7"),
        ("--opt", "build-arg:A=1"),
        ("--opt", "force-network-mode=none"),
        ("--oci-layout", f"pinned-0={work}/bases/pinned-0"),
        ("--opt", f"context:pinned-0=oci-layout://pinned-0@{handed['pinned-0']}"),
        ("--secret", "id=index,src=/proc/self/fd/9"),
        ("--source-policy-file", f"{work}/policy.json"),
    ):
        assert pair in pairs
    assert "rewrite-timestamp=true" in command[-1]
    assert KEY not in json.dumps(command)
    assert "force-network-mode=sandbox" in driver.command(replace(job, network=True, secrets=()), work, handed, files)
    layout_file = json.loads((work / "bases" / "pinned-0" / "index.json").read_text())
    assert layout_file["manifests"][0]["digest"] == handed["pinned-0"]
    assert {rule["action"] for rule in _rules(has_network=False)} == {"DENY"}
    assert len(_rules(has_network=True)) < len(_rules(has_network=False))


def _rules(*, has_network: bool) -> list[dict[str, Any]]:
    found: Any = source_policy(has_network=has_network)["rules"]
    return list(found)


def _never(repository: str) -> Access:
    raise AssertionError(repository)


def test_without_buildah_it_is_said_what_to_install(tmp_path: Path) -> None:
    text = what_is_missing(str(tmp_path))
    assert text.startswith("buildah, bwrap, unshare, prlimit: expected on the machine that builds, not installed")
    assert "apt install buildah bubblewrap" in text


def test_short_secrets_are_not_looked_for_and_long_ones_in_each_line() -> None:
    lines = "-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQ\nshort\n-----END KEY-----\n"
    needles = Needles([MountedSecret(name="k", path="/k", files={"key": Secret(lines), "user": Secret("admin")})])
    assert needles.in_bytes(b"x MIIEvQIBADANBgkqhkiG9w0BAQ y") == "k/key"
    assert not needles.in_bytes(b"admin short -----BEGIN KEY-----")
    assert needles.redacted("see MIIEvQIBADANBgkqhkiG9w0BAQ") == "see ***"
    assert not Needles([])
