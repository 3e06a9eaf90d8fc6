"""Builds by Dockerfile with a real BuildKit: the same rules as with buildah, and what only it can."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from controller.adapters.build.buildah import BuiltByFile, DockerfileJob
from controller.adapters.build.buildkit import CA, CERTIFICATE, KEY, BuildKitDriver, Daemon
from controller.adapters.build.leaks import MountedSecret
from controller.adapters.build.pins import Pins
from controller.adapters.oci.layers import Stored
from controller.adapters.oci.layout import Layout
from controller.adapters.oci.registry import Access, Registry
from policies.errors import ControllerError, DesiredStateError, RefusedError, SilentError
from policies.terms.build import BuildRules
from policies.terms.secret import Secret
from tests.contracts import buildkit
from tests.contracts.certificates import Authority
from tests.contracts.registry_server import registry_server, why_no_registry
from tests.controller import host_base
from tests.controller.tiny_base import push

WHY = buildkit.missing() or why_no_registry()
pytestmark = pytest.mark.skipif(bool(WHY), reason=WHY or "all is there")
PASSWORD = "correct-horse-battery-staple-4711"
SECRET = MountedSecret(name="index", path="/var/secrets/index", files={"token": Secret(PASSWORD)})
GOOD = 'FROM BASE\nCOPY a /a\nRUN echo $SOURCE_DATE_EPOCH > /made && cat /a\nENTRYPOINT ["cat", "/made"]\n'


def access(repository: str) -> Access:
    return Access(repository=repository, unsafe_plain_http=True)


class Place:
    def __init__(self, address: str, base: str, folder: Path) -> None:
        self.address, self.base, self.folder = address, base, folder
        self.layout, self.said = Layout(folder / "store"), list[str]()
        self.daemon = Daemon()

    def build(self, text: str, *, folder: str = "builds", **more: Any) -> BuiltByFile:
        files = {"Dockerfile": Stored(data=text.replace("BASE", f"{self.base}:1").encode()), "a": Stored(data=b"a\n")}
        job = DockerfileJob(subject="team/app", files=files, committed_at=1_700_000_000, **more)
        driver = BuildKitDriver(self.folder / folder, Pins(self.layout, access), self.address, daemon=self.daemon)
        return driver.build(job, self.layout, self.said.append)

    def refused(self, text: str, **more: Any) -> ControllerError:
        with pytest.raises(ControllerError) as caught:
            self.build(text, **more)
        assert not list((self.folder / "builds").glob("buildkit-*"))
        return caught.value

    def content(self, built: BuiltByFile, name: str) -> bytes:
        for layer in built.layers:
            with tarfile.open(self.layout.path(layer.digest)) as archive:
                if name in archive.getnames() and (file := archive.extractfile(name)) is not None:
                    return file.read()
        raise AssertionError(f"{name} is in no layer")


@pytest.fixture(scope="module")
def around(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A daemon's address, and a base image."""
    folder = tmp_path_factory.mktemp("buildkit")
    with registry_server(folder / "registry") as server, buildkit.daemon(folder / "daemon") as address:
        base = f"{server.address}/base/tools"
        with closing(Registry(access(base))) as registry:
            digest = push(registry, folder / "parts", [host_base.programs()], settings={"Env": ["PATH=/usr/bin"]})
            registry.put_manifest(registry.manifest(digest) or b"", "1")
        yield address, base


@pytest.fixture
def place(around: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("PATH", str(buildkit.programs()), prepend=":")
    return Place(*around, tmp_path)


def test_a_dockerfile_is_built_on_a_pinned_image_and_gives_one_digest_twice(place: Place) -> None:
    first, again = place.build(GOOD), place.build(GOOD, folder="elsewhere")
    assert first.digest == again.digest
    ((written, pinned),) = first.bases
    assert (written, pinned.partition("@")[0]) == (f"{place.base}:1", place.base)
    assert place.content(first, "made") == b"1700000000\n"
    assert first.tool.startswith(f"buildkit {buildkit.VERSION.removeprefix('v')}")
    config = json.loads(place.layout.get(place.layout.manifest(first.digest)["config"]["digest"]))
    assert config["config"]["Entrypoint"] == ["cat", "/made"]
    assert "history" not in config
    assert any("step 2 of 2" in line or "RUN echo" in line for line in place.said)


def test_a_secret_is_read_and_never_kept(place: Place) -> None:
    built = place.build("FROM BASE\nRUN test -s /var/secrets/index/token && echo yes > /ok\n", secrets=(SECRET,))
    assert place.content(built, "ok") == b"yes\n"
    error = place.refused("FROM BASE\nRUN cp /var/secrets/index/token /leak\n", secrets=(SECRET,))
    assert "expected nothing of the secret index/token" in error.message
    assert PASSWORD not in error.message + "".join(place.said)
    found = [path for path in place.folder.rglob("*") if path.is_file() and PASSWORD.encode() in path.read_bytes()]
    assert found == []


def test_there_is_no_network_unless_it_is_asked_for(place: Place) -> None:
    look = "FROM BASE\nRUN ls /sys/class/net > /seen\n"
    assert place.content(place.build(look), "seen") == b"lo\n"
    assert place.content(place.build(look, network=True), "seen") != b"lo\n"


def test_a_step_that_fails_and_one_that_takes_too_long_have_an_outcome(place: Place) -> None:
    assert "exit code: 3" in place.refused("FROM BASE\nRUN exit 3\n").message
    error = place.refused("FROM BASE\nRUN sleep 60\n", rules=BuildRules(timeout_seconds=3))
    assert (error.reason, "spec.builder.limits.time" in error.message) == ("BuildTimeout", True)


def test_here_documents_are_read(place: Place) -> None:
    built = place.build("FROM BASE\nRUN <<EOF\necho here > /doc\nEOF\n")
    assert place.content(built, "doc") == b"here\n"


def test_a_step_that_is_refused_a_connection_is_no_daemon_that_is_away(place: Place) -> None:
    error = place.refused("FROM BASE\nRUN echo dial tcp: connection refused, Unavailable; exit 7\n")
    assert (type(error), error.reason) == (DesiredStateError, "BuildFailed")


def test_a_daemon_is_reached_by_who_shows_what_it_trusts_and_no_key_lies_in_a_folder(
    place: Place, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    theirs, other = Authority(tmp_path / "theirs"), Authority(tmp_path / "other", "other")
    certificate, key = theirs.signed("controller")
    strange, strange_key = other.signed("controller")

    def shown(ca: str, *pair: str) -> Daemon:
        return Daemon(shown={name: Secret(pem) for name, pem in zip((CA, CERTIFICATE, KEY), (ca, *pair), strict=False)})

    with buildkit.daemon(tmp_path_factory.mktemp("guarded"), authority=theirs) as place.address:
        place.daemon = shown(theirs.pem, certificate, key)
        assert place.content(place.build(GOOD), "made") == b"1700000000\n"
        for who in (shown(theirs.pem), shown(other.pem, certificate, key), shown(theirs.pem, strange, strange_key), Daemon()):
            place.daemon = who
            error = place.refused(GOOD)
            # A daemon may hang up on a stranger without a word, which may also be its end.
            assert (type(error), error.reason) in ((RefusedError, "BuildKitRefused"), (SilentError, "BuildKitAway"))
            assert key.splitlines()[1] not in error.message
    assert not [path for path in (place.folder / "builds").rglob("*") if path.is_file()]


def test_a_daemon_that_is_away_is_tried_again(place: Place) -> None:
    place.address = f"unix://{place.folder}/none"
    with pytest.raises(SilentError) as caught:
        place.build(GOOD)
    assert caught.value.reason == "BuildKitAway"
