"""Builds by Dockerfile with a real buildah: what goes in is pinned, what comes out is the same twice and holds no secret."""

from __future__ import annotations

import base64
import ensurepip
import io
import json
import os
import tarfile
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from controller.adapters.build.buildah import BuildahDriver, BuiltByFile, DockerfileJob, write_context
from controller.adapters.build.comparing import compare
from controller.adapters.build.enclosure import OTHER, USUAL, Surroundings, why_not
from controller.adapters.build.leaks import MountedSecret
from controller.adapters.build.pins import Pins
from controller.adapters.build.s2i import InstallScripts, script_of
from controller.adapters.oci.access import Access
from controller.adapters.oci.assembly import Base
from controller.adapters.oci.layers import Stored
from controller.adapters.oci.layout import Layout
from controller.adapters.oci.registry import Registry
from policies.errors import ControllerError, DesiredStateError, RefusedError, SilentError
from policies.reproducibility import judge
from policies.terms.build import BaseSigner, BuildRules
from policies.terms.digest import digest_of
from policies.terms.secret import Secret
from tests.contracts.registry_server import RegistryServer, registry_server, why_no_registry
from tests.controller import host_base
from tests.controller.tiny_base import push

WHY = why_not() or why_no_registry()
pytestmark = pytest.mark.skipif(bool(WHY), reason=WHY or "all is there")
COMMITTED_AT = 1_700_000_000
KEY = "correct-horse-battery-staple-4711"
SECRET = MountedSecret(name="index", path="/var/secrets/index", files={"token": Secret(KEY)})


class Place:
    """A registry with base images, a store, and a driver beside it."""

    def __init__(self, server: RegistryServer, folder: Path) -> None:
        self.folder, self.host = folder, server.address
        self.layout = Layout(folder / "store")
        self.said: list[str] = []

    def driver(self, *, surroundings: Surroundings = USUAL, folder: str = "builds") -> BuildahDriver:
        return BuildahDriver(self.folder / folder, Pins(self.layout, access), surroundings=surroundings)

    def job(self, text: str, files: Mapping[str, str | Stored] | None = None, **more: Any) -> DockerfileJob:
        known = {"Dockerfile": text.replace("BASE", f"{self.host}/base/tools:1").replace("PYTHON", f"{self.host}/base/python:1")}
        given = {**known, **(files or {})}
        context = {path: item if isinstance(item, Stored) else Stored(data=item.encode()) for path, item in given.items()}
        more = {"subject": "team/app", "folder": "axons/app", "committed_at": COMMITTED_AT, **more}
        return DockerfileJob(files=context, **more)

    def build(self, job: DockerfileJob, driver: BuildahDriver | None = None) -> BuiltByFile:
        return (driver or self.driver()).build(job, self.layout, self.said.append)

    def refused(self, job: DockerfileJob) -> ControllerError:
        with pytest.raises(ControllerError) as caught:
            self.build(job)
        assert not self.left()
        return caught.value

    def left(self) -> list[str]:
        """What builds left behind."""
        place = self.folder / "builds"
        return [path.name for path in place.iterdir() if path.name != "lock"] if place.exists() else []

    def files(self, built: BuiltByFile) -> dict[str, bytes]:
        """What the build's own layers have, by path."""
        found = {}
        for layer in built.layers:
            with tarfile.open(self.layout.path(layer.digest)) as archive:
                for member in archive:
                    content = archive.extractfile(member) if member.isreg() else None
                    if content is not None:
                        found[member.name] = content.read()
        return found

    def config(self, built: BuiltByFile) -> dict[str, Any]:
        return dict(json.loads(self.layout.get(self.layout.manifest(built.digest)["config"]["digest"])))


def access(repository: str) -> Access:
    return Access(repository=repository, unsafe_plain_http=True)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    with registry_server(tmp_path_factory.mktemp("registry")) as running:
        for name, parts in {"tools": [host_base.programs()], "python": [host_base.programs(), host_base.python()]}.items():
            registry = Registry(access(f"{running.address}/base/{name}"), sleep=lambda _: None)
            digest = push(registry, tmp_path_factory.mktemp(name), parts, settings={"Env": ["PATH=/usr/local/bin:/usr/bin"]})
            registry.put_manifest(registry.manifest(digest) or b"", "1")
            registry.close()
        yield running


@pytest.fixture
def place(server: RegistryServer, tmp_path: Path) -> Place:
    return Place(server, tmp_path)


def test_a_dockerfile_is_built_on_what_its_tag_named_and_says_so(place: Place) -> None:
    text = 'FROM BASE\nCOPY app.py /app/\nRUN echo $SOURCE_DATE_EPOCH > /epoch\nUSER 7\nENTRYPOINT ["/app/app.py"]\n'
    built = place.build(place.job(text, {"app.py": Stored(data=b"hello\n", executable=True)}))
    pinned = place.layout.manifest(built.digest)["annotations"]["org.opencontainers.image.base.name"]
    assert built.bases == ((f"{place.host}/base/tools:1", pinned),)
    assert "@sha256:" in pinned
    assert place.layout.manifest(built.digest)["annotations"]["org.opencontainers.image.base.digest"] == pinned.partition("@")[2]
    assert built.tool.startswith("buildah 1.")
    assert not built.network
    files = place.files(built)
    assert files["app/app.py"] == b"hello\n"
    assert files["epoch"] == f"{COMMITTED_AT}\n".encode()
    config = place.config(built)
    assert config["config"]["User"] == "7"
    assert config["config"]["Entrypoint"] == ["/app/app.py"]
    assert not {"created", "history"} & set(config)
    # The base's own layer is taken over byte by byte, whatever buildah would have packed.
    base = place.layout.manifest(built.digest)["layers"][0]
    assert base["digest"] == digest_of(host_base.programs().data)
    assert [layer.step.split()[0] for layer in built.layers] == ["COPY", "RUN"]
    assert any(text.startswith("step 3 of") for text in place.said)
    assert not place.left()


TWICE = {
    "files and a step": ("FROM BASE\nCOPY . /app\nRUN mkdir /x && cp /app/a /x/a && chmod 600 /x/a\n", {"a": "1", "b/c": "2"}),
    "several stages": (
        "ARG V=1\nFROM BASE AS Build\nRUN echo made > /made\nFROM build AS more\nRUN echo more > /more\n"
        "FROM scratch AS bare\nCOPY --from=more /more /more\nFROM BASE\nCOPY --from=Build /made /made\nCOPY --from=bare / /\n",
        {},
    ),
    "compiled Python": (
        'FROM PYTHON\nCOPY pkg /opt/pkg\nRUN python3 -m compileall -q /opt/pkg\nCMD ["python3", "-m", "pkg"]\n',
        {"pkg/__init__.py": "X = {1, 2, 3}\n", "pkg/__main__.py": "print('hello')\n"},
    ),
}

_TINY = "tiny-1-py3-none-any.whl"


def test_what_pip_installs_below_a_prefix_is_the_same_twice(place: Place) -> None:
    bundled = sorted(Path(ensurepip.__file__).parent.glob("_bundled/pip-*.whl"))
    if not bundled:
        pytest.skip("ensurepip: expected its own wheel of pip, this Python comes without")
    files = {"pip.whl": Stored(data=bundled[0].read_bytes()), _TINY: Stored(data=_wheel())}
    text = f"FROM PYTHON\nCOPY . /w\nRUN cd /tmp && python3 /w/pip.whl/pip install --no-index --prefix=/opt/x /w/{_TINY}\n"
    first = place.build(place.job(text, files))
    second = place.build(place.job(text, files), place.driver(surroundings=OTHER))
    assert first.digest == second.digest
    compiled = [path for path in place.files(first) if path.endswith(".pyc") and "tiny" in path]
    assert len(compiled) == 1
    # What pip finds SOURCE_DATE_EPOCH with is checked by the hash of its source, not by its time (PEP 552).
    assert place.files(first)[compiled[0]][4] & 1


def _wheel() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("tiny.py", "X = {1, 2, 3}\n")
        archive.writestr("tiny-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1\n")
        archive.writestr("tiny-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("tiny-1.dist-info/RECORD", "tiny.py,,\ntiny-1.dist-info/METADATA,,\ntiny-1.dist-info/WHEEL,,\n")
    return out.getvalue()


@pytest.mark.parametrize(("text", "files"), TWICE.values(), ids=TWICE)
def test_two_builds_in_other_surroundings_give_one_digest(place: Place, text: str, files: dict[str, str]) -> None:
    first = place.build(place.job(text, files))
    before = os.umask(0o077)
    try:
        second = place.build(place.job(text, files), place.driver(surroundings=OTHER, folder="elsewhere"))
    finally:
        os.umask(before)
    report = compare((place.layout, first.digest), (place.layout, second.digest))
    assert report.told() is True


def test_what_depends_on_the_hour_or_on_chance_is_named_by_layer_path_and_kind(place: Place) -> None:
    text = (
        "FROM PYTHON\nCOPY pkg /opt/pkg\nRUN unset SOURCE_DATE_EPOCH; python3 -m compileall -q /opt/pkg\n"
        "RUN date +%s%N > /stamp; mkdir -p /var/log; date +%N > /var/log/build.log\nRUN head -c 8 /dev/urandom | od > /chance\n"
    )
    job = place.job(text, {"pkg/__init__.py": "X = 1\n"})
    first, second = place.build(job), place.build(job, place.driver(surroundings=OTHER))
    steps = {layer.diff_id: layer.step for layer in first.layers}
    report = compare((place.layout, first.digest), (place.layout, second.digest), steps)
    told = report.told()
    assert isinstance(told, list)
    found = {(item["class"], tuple(item["paths"])): item for item in told}
    assert ("log", ("var/log/build.log",)) in found
    assert ("content", ("stamp",)) in found
    assert ("content", ("chance",)) in found
    assert found["content", ("chance",)]["layer"] == "layer 6 of 6"
    assert "urandom" in found["content", ("chance",)]["step"]
    verdict = judge("required", told)
    assert verdict.answer == "deny"
    assert "layer" in verdict.reasons[0]
    assert judge("sampled", told).answer == "allow"


def test_steps_reach_no_network_unless_the_manifest_asks_for_one(place: Place) -> None:
    port = place.host.rpartition(":")[2]
    probe = f"import socket\nprint(socket.socket().connect_ex(('127.0.0.1', {port})) or 'reached')\n"
    text = "FROM PYTHON\nCOPY probe.py /\nRUN python3 /probe.py > /answer\n"
    alone = place.build(place.job(text, {"probe.py": probe}))
    asked = place.build(place.job(text, {"probe.py": probe}, network=True))
    assert place.files(alone)["answer"] != b"reached\n"
    assert not alone.network
    assert place.files(asked)["answer"] == b"reached\n"
    assert asked.network


def test_steps_see_neither_our_processes_nor_our_files_nor_devices(place: Place) -> None:
    text = "FROM PYTHON\nRUN ls /dev > /devices; ls /proc > /processes; cat /proc/self/status > /status; ls / > /top\n"
    files = place.files(place.build(place.job(text)))
    devices, processes = files["devices"].split(), files["processes"].split()
    assert not [name for name in devices if name.startswith((b"vd", b"sd", b"nvme", b"kmsg", b"mem"))]
    assert len([name for name in processes if name.isdigit()]) < 12
    powers = int(next(line for line in files["status"].splitlines() if line.startswith(b"CapBnd")).split()[1], 16)
    may_change_root, may_mount, may_make_devices = 1 << 18, 1 << 21, 1 << 27
    assert not powers & (may_change_root | may_mount | may_make_devices)
    assert not {b"build", b"secrets"} & set(files["top"].split())


ENDED = {
    "time": (
        "FROM BASE\nRUN echo begun; sleep 600\n",
        BuildRules(timeout_seconds=2.5),
        "BuildTimeout",
        "expected an end within 2.5 s",
    ),
    "memory of one process": (
        "FROM PYTHON\nRUN python3 -c 'x = bytearray(1 << 30); print(len(x))'\n",
        BuildRules(memory_bytes=256 << 20),
        "BuildFailed",
        "a process may have 268435456 bytes (spec.builder.limits.memory)",
    ),
    "memory of many processes": (
        "FROM PYTHON\nCOPY many.py /\nRUN python3 /many.py\n",
        BuildRules(memory_bytes=256 << 20),
        "BuildMemory",
        "expected at most 268435456 bytes of memory",
    ),
    "disk": (
        "FROM BASE\nCOPY many.sh /\nRUN sh /many.sh; sleep 60\n",
        BuildRules(disk_bytes=96 << 20),
        "BuildDisk",
        "expected at most 100663296 bytes of disk",
    ),
    "one file": (
        "FROM BASE\nRUN dd if=/dev/zero of=/big bs=1M count=200\n",
        BuildRules(disk_bytes=96 << 20),
        "Build",
        "spec.builder.limits.disk",
    ),
}
MANY = {
    "many.py": "import os, time\n[os.fork() for _ in range(2)]\nx = bytearray(b'x') * (100 << 20)\ntime.sleep(60)\n",
    "many.sh": "for i in 1 2 3 4 5 6 7 8; do dd if=/dev/zero of=/big$i bs=1M count=30; done\n",
}


@pytest.mark.parametrize(("text", "rules", "reason", "message"), ENDED.values(), ids=ENDED)
def test_a_build_that_takes_too_much_is_ended_and_says_what_it_took(
    place: Place, text: str, rules: BuildRules, reason: str, message: str
) -> None:
    began = time.monotonic()
    error = place.refused(place.job(text, MANY, rules=rules))
    assert time.monotonic() - began < 30
    assert isinstance(error, DesiredStateError)
    assert error.reason.startswith(reason)
    assert message in error.message
    assert not _running("sleep 600")
    assert not _running("many.py")


def _running(text: str) -> bool:
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if text.encode() in (entry / "cmdline").read_bytes().replace(b"\0", b" ").strip() and entry.name != str(
                    os.getpid()
                ):
                    return True
            except OSError:
                continue
    return False


def test_a_step_that_fails_shows_its_last_words(place: Place) -> None:
    error = place.refused(place.job("FROM BASE\nRUN echo one; echo two >&2; exit 3\n"))
    assert error.reason == "BuildFailed"
    assert "one | two" in error.message
    assert "exit status 3" in error.message
    assert "\n" not in error.message


def test_a_secret_is_there_for_the_steps_and_nowhere_after(place: Place) -> None:
    text = (
        'FROM BASE\nRUN test "$(cat /var/secrets/index/token)" = ' + KEY[:8] + "'" + KEY[8:] + "' && echo fits > /fits\n"
        "RUN --mount=type=secret,id=index cp /run/secrets/index /dev/null && echo mounted > /mounted\n"
    )
    built = place.build(place.job(text, secrets=[SECRET]))
    assert place.files(built)["fits"] == b"fits\n"
    assert place.files(built)["mounted"] == b"mounted\n"
    for path in (place.folder / "store").rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes()
    assert not [text for text in place.said if KEY in text]


LEAKS = {
    "in a file": ("RUN cp /var/secrets/index/token /kept\n", "layer 2 of 2 (RUN cp /var/secrets/index/token /kept): kept"),
    "in a file that a later step removes": ("RUN cp /var/secrets/index/token /kept\nRUN rm /kept\n", "layer 2 of 3"),
    "within another file": ("RUN (echo a; cat /var/secrets/index/token; echo b) > /kept\n", "kept"),
    "as base64": ("RUN (echo user:; cat /var/secrets/index/token) | base64 > /kept\n", "kept"),
    "as hexadecimal": (
        "RUN python3 -c \"print(open('/var/secrets/index/token', 'rb').read().hex())\" > /kept\n",
        "layer 3 of 3",
    ),
    "in a name": ("RUN echo > /$(cat /var/secrets/index/token)\n", "layer 2 of 2"),
    "in the log": ("RUN cat /var/secrets/index/token\n", "log of the build"),
    "as an argument": (f"ENV TOKEN={KEY}\n", "log of the build"),
}


@pytest.mark.parametrize(("step", "where"), LEAKS.values(), ids=LEAKS)
def test_a_secret_that_comes_out_refuses_the_build_and_is_not_shown(place: Place, step: str, where: str) -> None:
    image = "PYTHON" if "python3" in step else "BASE"
    error = place.refused(place.job(f"FROM {image}\n{step}", secrets=[SECRET]))
    assert error.reason == "SecretLeaked"
    assert "index/token" in error.message
    assert where in error.message
    coded = base64.b64encode(KEY.encode()).decode()
    for text in (*place.said, error.message):
        assert KEY not in text
        assert coded[:20] not in text
    for path in (place.folder / "store").rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes()


REFUSED = {
    "no Dockerfile": (None, DesiredStateError, "axons/app/Dockerfile: expected a Dockerfile in the commit"),
    "no image of that tag": ("FROM HOST/base/tools:9\n", DesiredStateError, "axons/app/Dockerfile:1: FROM: HOST/base/tools:9"),
    "no place": (
        "\nFROM python:3.11\n",
        DesiredStateError,
        "axons/app/Dockerfile:2: FROM: python:3.11: expected host[:port]/path",
    ),
    "an image to copy from that cannot be pinned": (
        "FROM BASE\nCOPY --from=tools /a /b\n",
        DesiredStateError,
        "Dockerfile:2: COPY from=: tools",
    ),
    "a registry that does not answer": ("FROM 127.0.0.1:9/x/y:1\n", SilentError, "axons/app/Dockerfile:1: FROM: "),
    "another kind of machine": (
        "FROM --platform=linux/mips BASE\n",
        DesiredStateError,
        "axons/app/Dockerfile:1: FROM --platform",
    ),
    "a file from elsewhere": (
        "FROM BASE\nADD https://x.example/a.tgz?key=1 /\n",
        DesiredStateError,
        "Dockerfile:2: ADD: expected files of the context, got https://x.example/a.tgz, and",
    ),
    "a here-document": (
        "FROM BASE\nRUN <<EOF\necho a\nEOF\n",
        DesiredStateError,
        "Dockerfile:2: expected an instruction on lines of its own",
    ),
}


@pytest.mark.parametrize(("text", "kind", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_built_is_refused_with_file_and_line(
    place: Place, text: str | None, kind: type[ControllerError], message: str
) -> None:
    job = place.job((text or "").replace("HOST", place.host))
    if text is None:
        job = replace(job, files={})
    error = place.refused(job)
    assert type(error) is kind
    assert message.replace("HOST", place.host) in error.message


def test_the_project_may_refuse_an_image_before_anything_of_it_is_fetched(place: Place) -> None:
    def refuse(reference: str, signers: Sequence[BaseSigner]) -> None:
        raise RefusedError(f"{reference}: expected a signature", reason="BaseUnsigned")

    driver = BuildahDriver(place.folder / "builds", Pins(place.layout, access, refuse))
    with pytest.raises(RefusedError, match=r"Dockerfile:1: FROM: .*expected a signature"):
        place.build(place.job("FROM BASE\n"), driver)
    assert not list((place.folder / "store" / "blobs" / "sha256").iterdir())


def test_what_dockerignore_names_is_not_copied(place: Place) -> None:
    files = place.files(
        place.build(place.job("FROM BASE\nCOPY . /app\n", {".dockerignore": "secret*\n", "a": "1", "secret.txt": "2"}))
    )
    assert "app/a" in files
    assert "app/secret.txt" not in files


def test_what_a_killed_build_left_is_removed_by_the_next_one(place: Place) -> None:
    left = place.folder / "builds" / "build-left" / "work"
    left.mkdir(parents=True)
    (left / "x").write_text("x")
    place.build(place.job("FROM BASE\nRUN echo 1 > /one\n"))
    assert not place.left()


def test_an_install_script_makes_a_base_that_the_next_layers_go_on(place: Place) -> None:
    pins = Pins(place.layout, access)
    ground = pins.open(pins.pin(f"{place.host}/base/tools:1"))
    base = Base(
        reference=ground.reference,
        digest=ground.digest,
        config=ground.config,
        layers=ground.layers,
        diff_ids=ground.diff_ids,
        programs=(),
        python="/usr/bin/python3",
        version="3",
    )
    files = {"setup.sh": Stored(data=b'echo "$1 $(id -u) $PWD" > /installed\n')}
    script = script_of({"INSTALL_SCRIPT": "setup.sh quick"}, files)
    assert script is not None
    scripts = InstallScripts(place.driver(), place.layout, place.folder / "memos")
    made = scripts.derived(base, script, subject="team/app", progress=place.said.append)
    assert made.base.layers[: len(base.layers)] == base.layers
    assert made.tool.startswith("buildah")
    with tarfile.open(place.layout.path(made.base.layers[-1]["digest"])) as archive:
        content = archive.extractfile("installed")
        assert content is not None
        assert content.read() == b"quick 0 /app\n"


def test_a_context_is_written_the_same_whatever_the_umask(place: Place) -> None:
    job = replace(place.job("FROM BASE\n", {"a/b": Stored(data=b"1", executable=True), "c": "2"}), links={"a/link": "../c"})
    seen = []
    for mask in (0o077, 0o002):
        before = os.umask(mask)
        try:
            write_context(job, place.folder / f"context-{mask}")
        finally:
            os.umask(before)
        paths = sorted((place.folder / f"context-{mask}").rglob("*"))
        seen.append([(path.name, path.lstat().st_mode, path.lstat().st_mtime) for path in paths])
    assert seen[0] == seen[1]
    assert len(seen[0]) == 5
