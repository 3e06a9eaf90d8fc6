"""Images that bring their own system along, unpacked and run on this machine: nothing of them gets out of their folder."""

from __future__ import annotations

import io
import os
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from controller.adapters.attest.verifying import ImageTrust
from controller.adapters.clock import SystemClock
from controller.adapters.engine_local import LocalEngine
from controller.adapters.engine_local.launch import bubblewrap
from controller.adapters.engine_local.unpack import unpack
from controller.adapters.keys import ImageKey
from controller.adapters.models import Models
from controller.adapters.oci.artifacts import ArtifactStore
from controller.adapters.oci.assembly import BASE_NAME
from controller.adapters.oci.layout import CONFIG, MANIFEST, Layout
from policies.canonical import canonical
from policies.errors import TrustError
from policies.terms.digest import Digest, digest_of
from policies.terms.task import JobSpec, JobState
from tests.controller import host_base
from tests.controller.tiny_base import Part, part

SCRIPT = """#!/usr/bin/sh
echo "args $*"
echo data > "$DATA_PATH/out.txt"
cat /etc/who
ls -a / /tmp
echo x > /etc/who || echo read-only
id
"""


class Place:
    def __init__(self, folder: Path) -> None:
        self.layout = Layout(folder / "store")
        key = ImageKey.generate(folder / "image.pem")
        self.artifacts = ArtifactStore(self.layout, Models(self.layout, key, ImageTrust(keys=(key.public_pem,))))
        self.engine = LocalEngine(folder / "engine", self.layout, self.artifacts, SystemClock(), isolation="bubblewrap")

    def image(self, parts: Sequence[Part], **settings: object) -> Digest:
        layers = [self.layout.descriptor(self.layout.put(item.data), item.media_type) for item in parts]
        rootfs = {"type": "layers", "diff_ids": [item.diff_id for item in parts]}
        config = {"architecture": "amd64", "os": "linux", "config": settings, "rootfs": rootfs}
        described = self.layout.descriptor(self.layout.put(canonical(config)), CONFIG)
        notes = {BASE_NAME: "registry.example/base@sha256:…"}
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": described, "layers": layers, "annotations": notes}
        return self.layout.put(canonical(manifest))

    def run(self, image: Digest, *args: str) -> tuple[JobState, str]:
        self.engine.start(JobSpec(name="one", axon="a", task="t", image=image, args=args, keeps=("data",)))
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            state = self.engine.jobs()["one"]
            if state.phase != "running":
                return state, self.engine.logs("one")
            time.sleep(0.02)
        raise AssertionError(self.engine.logs("one"))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    if not bubblewrap():
        pytest.skip("bubblewrap: expected it to work here, it is not installed or may not run")
    made = Place(tmp_path)
    yield made
    for name in made.engine.jobs():
        made.engine.stop(name)


def test_a_program_sees_its_own_system_and_writes_where_it_may(place: Place) -> None:
    own = part({"app/run.sh": SCRIPT.encode(), "etc/who": b"the image's own\n", "home/": b"", "var/lib/x": b"x"})
    image = place.image(
        [host_base.programs(), own], Entrypoint=["/app/run.sh"], Cmd=["usual"], WorkingDir="/app", Env=["PATH=/usr/bin"]
    )
    state, log = place.run(image)
    assert (state.phase, state.exit_code) == ("succeeded", 0), log
    assert "args usual" in log
    assert "the image's own" in log
    assert "read-only" in log
    assert "home" in log
    assert place.artifacts is not None
    digest = place.engine.collect("one")["data"]
    assert [item["annotations"]["org.opencontainers.image.title"] for item in place.layout.manifest(digest)["layers"]] == [
        "out.txt"
    ]


def test_arguments_of_a_task_go_in_place_of_the_usual_ones(place: Place) -> None:
    own = part({"app/run.sh": SCRIPT.encode(), "etc/who": b"x"})
    image = place.image([host_base.programs(), own], Entrypoint=["/app/run.sh"], Cmd=["usual"], Env=["PATH=/usr/bin"])
    assert "args --rate 1" in place.run(image, "--rate", "1")[1]


def test_an_image_that_starts_nothing_says_so(place: Place) -> None:
    state, _ = place.run(place.image([part({"usr/bin/x": b"x"})]))
    assert (state.phase, state.reason) == ("failed", "CannotStart")
    assert "expected an ENTRYPOINT or CMD" in state.message


def blob(folder: Path, *members: tarfile.TarInfo, data: bytes = b"") -> tuple[Path, str]:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for member in members:
            member.size = len(data) if member.isreg() else 0
            archive.addfile(member, io.BytesIO(data))
    (folder / "blob").write_bytes(out.getvalue())
    return folder / "blob", digest_of(out.getvalue())


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, target, mode
    return info


@pytest.mark.parametrize(
    "members",
    [
        [member("../out")],
        [member("/out")],
        [member("a/../../out")],
        [member("a", tarfile.LNKTYPE, "../secret")],
        [member("a", tarfile.SYMTYPE, "b"), member("b", tarfile.SYMTYPE, "a"), member("a/out")],
    ],
)
def test_a_layer_that_reaches_out_is_refused(tmp_path: Path, members: list[tarfile.TarInfo]) -> None:
    (tmp_path / "secret").write_text("secret")
    root = tmp_path / "root"
    root.mkdir()
    with pytest.raises(TrustError):
        unpack(*blob(tmp_path, *members, data=b"x"), root)
    assert not (tmp_path / "out").exists()


def test_links_lead_as_they_will_inside_and_never_out(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    found = blob(
        tmp_path,
        member("var/run", tarfile.SYMTYPE, str(outside)),
        member("var/run/pid"),
        member("up", tarfile.SYMTYPE, "../../.."),
        member("up/top"),
        member("one", mode=0o4755),
        member("two", tarfile.LNKTYPE, "one"),
        member("dev/null", tarfile.CHRTYPE),
        data=b"x",
    )
    unpack(*found, root)
    assert list(outside.iterdir()) == []
    assert (root / str(outside).lstrip("/") / "pid").read_bytes() == b"x"
    assert (root / "top").read_bytes() == b"x"
    assert (root / "two").stat().st_ino == (root / "one").stat().st_ino
    assert (root / "one").stat().st_mode & 0o7777 == 0o755
    assert not os.path.lexists(root / "dev" / "null")


def test_whiteouts_hide_what_lower_layers_have(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    unpack(*blob(tmp_path, member("a/one"), member("a/two"), member("b/one"), data=b"x"), root)
    unpack(*blob(tmp_path, member("a/.wh.one"), member("b/.wh..wh..opq"), member("b/new"), data=b"y"), root)
    assert sorted(path.relative_to(root).as_posix() for path in root.rglob("*")) == ["a", "a/two", "b", "b/new"]


def test_a_layer_of_other_bytes_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    path, _ = blob(tmp_path, member("a"), data=b"x")
    with pytest.raises(TrustError, match="expected content"):
        unpack(path, digest_of(b"other"), root)
    path.write_bytes(b"no archive")
    with pytest.raises(TrustError):
        unpack(path, digest_of(b"no archive "), root)
