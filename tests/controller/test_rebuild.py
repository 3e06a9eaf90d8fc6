"""`myelin verify --rebuild` of each way to build: the digest is proved, or what cannot be built again is named, and why."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from copy import deepcopy
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from controller import project
from controller.adapters.attest.signing import sign_image
from controller.adapters.attest.statements import PROVENANCE
from controller.adapters.attest.verifying import verify_image
from controller.adapters.build.drivers import secrets_in
from controller.adapters.build.enclosure import why_not
from controller.adapters.clock import SystemClock
from controller.adapters.git import GitRepository, OtherRepositories
from controller.adapters.images import SignedImages
from controller.adapters.oci.access import Access
from controller.adapters.oci.assembly import PLATFORM
from controller.adapters.oci.composed import Composer
from controller.adapters.oci.registry import Registry
from policies.provenance import DOCKERFILE_BUILD
from policies.submodules import submodules_in
from policies.terms.build import BuildRules, BuildSecret
from policies.terms.digest import Digest
from policies.terms.task import ImageSpec, ImageState
from tests.contracts.registry_server import RegistryServer, registry_server, why_no_registry
from tests.controller import host_base
from tests.controller.people import NOW
from tests.controller.test_base_on_disk import laid
from tests.controller.test_verify import later
from tests.controller.tiny_base import USUAL, Part, part, push, push_index
from tests.controller.verified_project import APP, EVENTS, Project
from tests.controller.wheel_index import wheel_index
from tests.fakes.provenance import trust_in

WHY = why_not()
needs_buildah = pytest.mark.skipif(bool(WHY), reason=WHY or "it is here")
needs_registry = pytest.mark.skipif(bool(why_no_registry()), reason=why_no_registry() or "there is one")
PLATFORMS = ("linux/amd64", "linux/arm64")
SETTINGS = {"Env": ["PATH=/usr/local/bin:/usr/bin"]}
MODULES = b'[submodule "lib"]\n\tpath = src/lib\n\turl = ../lib.git\n'
WHO = {"GIT_AUTHOR_NAME": "x", "GIT_AUTHOR_EMAIL": "x@x", "GIT_COMMITTER_NAME": "x", "GIT_COMMITTER_EMAIL": "x@x"}


class Made(Project):
    """A project of a machine whose images are built with all that it has: secrets, other repositories, bases on its disk."""

    def images(self, repository: GitRepository) -> SignedImages:
        """What builds and checks images here."""
        self.others = OtherRepositories(self.folder / "mirrors", self.place.url, self.place.access)
        return SignedImages(
            repository,
            self.layout,
            self.build,
            self.key,
            trust_in(self.key),
            SystemClock(),
            secrets=secrets_in(self.place.state / "secrets"),
            reads_disk=True,
            sources=self.others,
        )

    def commit(self, files: Mapping[str, bytes | None], at: datetime = NOW) -> str:
        """Push as a person, at some time."""
        return project.push_as(self.place, self.signer, dict(files), "m\n", now=at)

    def state(self, commit: str, **more: Any) -> ImageState:
        """Build a commit's image."""
        repository = GitRepository(self.place.url, self.place.state / "git", self.own)
        try:
            repository.fetch("main", fresh=True)
            tree = repository.tree_id(commit, "src") or "1" * 40
            if text := repository.read_many(commit, [".gitmodules"]).get(".gitmodules"):
                links = {item.path: item.blob for item in repository.files(commit) if item.submodule}
                more["submodules"], faults = submodules_in("src", links, text, own=repository.url)
                assert faults == ()
            spec = ImageSpec(repository="src", commit=commit, folder="src", tree=tree, event_set=EVENTS, **more)
            images = self.images(repository)
            images.start(spec)
            deadline = time.monotonic() + 120
            while (state := images.look(spec)) is None or state.phase == "building":
                assert time.monotonic() < deadline, "never built"
                time.sleep(0.02)
            self.others.close()
            return state
        finally:
            repository.close()

    def built(self, commit: str, **more: Any) -> Digest:
        """The digest of a commit's image."""
        state = self.state(commit, **more)
        assert state.digest is not None, state.message
        return state.digest

    def rebuilt(self, image: str) -> dict[str, Any]:
        """What is said of building it again."""
        found = self.verify(image, rebuild=True)
        assert found["image"]["ok"] is True, found["image"]
        return found["rebuild"]

    def proves(self, image: str) -> bool:
        """Whether an image comes out the same again."""
        said = self.rebuilt(image)
        assert said["ok"] is True, said
        return bool(said["details"]["digest"] == image)

    def says_otherwise(self, image: Digest, **inner: Any) -> None:
        """Have the project's key say, later on, that an image was made in another way."""
        provenance = deepcopy(verify_image(self.layout, image, trust_in(self.key))[PROVENANCE])
        provenance["buildDefinition"]["internalParameters"] |= inner
        sign_image(self.layout, image, self.key, later(provenance))


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("wheels")


@pytest.fixture
def made(tmp_path: Path, wheels: Path) -> Made:
    return Made(tmp_path, wheels)


class Bases:
    """A registry with base images."""

    def __init__(self, server: RegistryServer, folder: Path) -> None:
        self.address, self._folder = server.address, folder

    def push(self, name: str, parts: list[Part], *architectures: str) -> Digest:
        """One more, under the tag 1: an image, or an index where there are several architectures."""
        with closing(Registry(Access(repository=f"{self.address}/{name}", unsafe_plain_http=True))) as registry:
            if not architectures:
                digest = push(registry, self._folder / name, parts, settings=SETTINGS)
            else:
                each = {item: push(registry, self._folder / f"{name}-{item}", parts, architecture=item) for item in architectures}
                return push_index(registry, each)
            registry.put_manifest(registry.manifest(digest) or b"", "1")
            return digest


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bases]:
    if why_no_registry():
        pytest.skip(why_no_registry())
    with registry_server(tmp_path_factory.mktemp("registry")) as server:
        yield Bases(server, tmp_path_factory.mktemp("parts"))


def test_an_index_of_two_platforms_is_proved_and_so_is_what_is_laid_over_it(made: Made, bases: Bases) -> None:
    base = f"{bases.address}/two@{bases.push('two', [part(USUAL)], 'amd64', 'arm64')}"
    with wheel_index() as index:
        # For one kind of machine the wheel of its own is taken, for the other the one that fits any.
        for tags in ("cp311-cp311-manylinux_2_17_x86_64", "py3-none-any"):
            index.add("pick", "1.0", tags=tags)
        # Of this one there are two versions, one for each kind of machine, and each fits both.
        index.add("split", "1.0")
        index.add("split", "2.0")
        lines = [
            index.line("pick", "1.0"),
            index.line("split", "1.0").replace("==1.0", '==1.0 ; platform_machine == "x86_64"'),
            index.line("split", "2.0").replace("==2.0", '==2.0 ; platform_machine == "aarch64"'),
        ]
        # The runtime's own come from where they always do, and are here from now on.
        made.built(made.commit(APP), base=base, rules=BuildRules(platforms=PLATFORMS))
        commit = made.commit({"src/requirements.txt": "".join(lines).encode()})
        image = made.built(commit, base=base, rules=BuildRules(platforms=PLATFORMS, index=index.address))
    manifests = made.layout.manifest(image)["manifests"]
    assert [item["platform"]["architecture"] for item in manifests] == ["amd64", "arm64"]
    assert made.proves(image)
    model = made.model({"w.bin": b"weights"})
    composer = Composer(made.layout, made.build / "composed", made.key, trust_in(made.key), SystemClock())
    composed = composer.compose(image, {"myelin/in/model": [model]})
    assert len(made.layout.manifest(composed)["manifests"]) == 2
    assert made.proves(composed)
    version = made.version(image, model)
    found = made.verify(version.metadata.name, rebuild=True)
    assert (found["rebuild"]["subject"], found["rebuild"]["ok"]) == (image, True)


def test_of_an_index_that_is_not_as_it_says_layer_and_platform_are_named(made: Made, bases: Bases) -> None:
    base = f"{bases.address}/two@{bases.push('two', [part(USUAL)], 'amd64', 'arm64')}"
    image = made.built(made.commit(APP), base=base, rules=BuildRules(platforms=PLATFORMS))
    other = made.commit({"src/app.py": b"print('other')\n"})
    provenance = deepcopy(verify_image(made.layout, image, trust_in(made.key))[PROVENANCE])
    provenance["buildDefinition"]["externalParameters"]["source"]["commit"] = other
    sign_image(made.layout, image, made.key, later(provenance))
    said = made.rebuilt(image)
    assert said["ok"] is False
    assert [item["paths"] for item in said["details"]["differences"]] == [["app/app.py"], ["app/app.py"]]
    assert [item["layer"].split(",")[0] for item in said["details"]["differences"]] == list(PLATFORMS)


def test_an_image_is_built_again_for_the_machine_that_it_was_made_on(made: Made, bases: Bases) -> None:
    base = f"{bases.address}/two@{bases.push('two', [part(USUAL)], 'amd64', 'arm64')}"
    foreign = next(item for item in PLATFORMS if item != PLATFORM)
    image = made.built(made.commit(APP), base=base, rules=BuildRules(platforms=(foreign,)))
    provenance = deepcopy(verify_image(made.layout, image, trust_in(made.key))[PROVENANCE])
    del provenance["buildDefinition"]["externalParameters"]["platforms"]
    sign_image(made.layout, image, made.key, later(provenance))
    assert made.proves(image)
    # By Dockerfile nothing is built for another machine.
    outer = {"commit": "c" * 40, "folder": "src", "tree": "t" * 40, "eventSet": "", "dockerfile": "src/Dockerfile"}
    by_file = {"buildType": DOCKERFILE_BUILD, "externalParameters": outer, "internalParameters": {"tool": "buildah 1"}}
    outer["commit"] = str(provenance["buildDefinition"]["externalParameters"]["source"]["commit"])
    provenance |= {"buildDefinition": {**by_file, "resolvedDependencies": []}}
    provenance["runDetails"]["builder"] = {"id": DOCKERFILE_BUILD}
    newest = {**provenance["runDetails"], "metadata": {"finishedOn": "2199-01-01T00:00:00+00:00"}}
    sign_image(made.layout, image, made.key, {**provenance, "runDetails": newest})
    said = made.rebuilt(image)
    assert said["ok"] is None
    assert f"expected to build it on {foreign}, as it was made, this machine is {PLATFORM}" in said["reason"]


def test_a_base_on_this_machines_disk_is_built_on_again(made: Made) -> None:
    folder = made.folder / "on-disk"
    digest = laid(folder, [part(USUAL)])
    image = made.built(made.commit(APP), base=f"oci:{folder}@{digest}")
    assert made.proves(image)
    folder.rename(made.folder / "elsewhere")
    said = made.rebuilt(image)
    assert said["ok"] is None
    assert "expected an absolute path of an OCI layout on this machine, got none" in said["reason"]


@needs_buildah
def test_a_dockerfile_is_built_on_what_its_tag_named_then(made: Made, bases: Bases) -> None:
    first = bases.push("tools", [host_base.programs()])
    text = f'FROM {bases.address}/tools:1 AS one\nRUN cat /etc/who > /said || echo none > /said\nENTRYPOINT ["/x"]\n'
    image = made.built(made.commit({**APP, "src/Dockerfile": text.encode()}), builder="dockerfile", dockerfile="src/Dockerfile")
    assert bases.push("tools", [host_base.programs(), part({"etc/who": b"another\n"})]) != first
    assert made.proves(image)
    assert made.value["complete"] is True


@needs_buildah
def test_an_install_script_runs_again_and_what_it_makes_follows_from_it_alone(made: Made, bases: Bases) -> None:
    base = f"{bases.address}/python@{bases.push('python', [host_base.programs(), host_base.python()])}"
    script = b'echo "$SOURCE_DATE_EPOCH" > /installed\n'
    files = {**APP, "src/.s2i/environment": b"INSTALL_SCRIPT=setup.sh\n", "src/setup.sh": script}
    made.built(made.commit(files), base=base)
    # The next commit, of another day, finds what the script made; whoever builds it alone does not.
    image = made.built(made.commit({"src/app.py": b"print(2)\n"}, NOW + timedelta(days=3)), base=base)
    assert len(list((made.build / "installed").glob("install-*.json"))) == 1
    assert made.proves(image)
    made.says_otherwise(image, script={"digest": "sha256:" + "1" * 64, "made": "sha256:" + "2" * 64, "tool": "buildah 0.9"})
    said = made.rebuilt(image)
    assert said["ok"] is None
    assert "INSTALL_SCRIPT: expected what buildah 0.9 made of it" in said["reason"]
    assert "build it where that is" in said["reason"]


@needs_buildah
def test_an_install_script_that_says_something_else_each_time_is_named_by_its_file(made: Made, bases: Bases) -> None:
    base = f"{bases.address}/python@{bases.push('python', [host_base.programs(), host_base.python()])}"
    script = b"head -c 8 /dev/urandom > /chance\n"
    files = {**APP, "src/.s2i/environment": b"INSTALL_SCRIPT=setup.sh\n", "src/setup.sh": script}
    said = made.rebuilt(made.built(made.commit(files), base=base))
    assert said["ok"] is False
    assert [item["paths"] for item in said["details"]["differences"]] == [["chance"]]


def test_an_install_script_runs_for_its_own_kind_of_machine_alone(made: Made, bases: Bases) -> None:
    base = f"{bases.address}/two@{bases.push('two', [part(USUAL)], 'amd64', 'arm64')}"
    files = {**APP, "src/.s2i/environment": b"INSTALL_SCRIPT=setup.sh\n", "src/setup.sh": b"true\n"}
    foreign = next(item for item in PLATFORMS if item != PLATFORM)
    state = made.state(made.commit(files), base=base, rules=BuildRules(platforms=(foreign,)))
    assert (state.phase, state.reason) == ("failed", "BasePlatform")
    assert f"INSTALL_SCRIPT: expected to run it for {PLATFORM}, as this machine is, got {foreign}" in state.message


def git(folder: Path, *args: str, stdin: str = "") -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *args], input=stdin, capture_output=True, text=True, check=True, env={**os.environ, **WHO}
    )
    return done.stdout.strip()


def test_submodules_are_read_again_at_the_commits_that_were_pinned(made: Made) -> None:
    bare, lib = Path(made.place.url), made.folder / "lib.git"
    git(made.folder, "init", "-q", "--bare", "-b", "main", str(lib))
    pinned = ""
    for text in ("print('lib')\n", "print('newer')\n"):
        blob = git(lib, "hash-object", "-w", "--stdin", stdin=text)
        tree = git(lib, "mktree", stdin=f"100644 blob {blob}\tlib.py\n")
        tip = git(lib, "commit-tree", tree, "-m", "x", *(["-p", pinned] if pinned else []))
        git(lib, "update-ref", "refs/heads/main", tip)
        pinned = pinned or tip
    blobs = {
        name: git(bare, "hash-object", "-w", "--stdin", stdin=text)
        for name, text in (("a", "print(1)\n"), ("m", MODULES.decode()))
    }
    source = git(bare, "mktree", "--missing", stdin=f"100644 blob {blobs['a']}\tapp.py\n160000 commit {pinned}\tlib\n")
    root = git(bare, "ls-tree", git(bare, "rev-parse", "main"))
    kept = [line for line in root.splitlines() if not line.endswith("\tsrc")]
    tree = git(
        bare, "mktree", stdin="\n".join([*kept, f"040000 tree {source}\tsrc", f"100644 blob {blobs['m']}\t.gitmodules"]) + "\n"
    )
    commit = git(bare, "commit-tree", tree, "-p", git(bare, "rev-parse", "main"), "-m", "x")
    git(bare, "update-ref", "refs/heads/main", commit)
    image = made.built(commit)
    assert made.proves(image)
    lib.rename(made.folder / "gone.git")
    assert made.proves(image), "what was fetched once is here"
    shutil.rmtree(made.place.state / "mirrors")
    said = made.rebuilt(image)
    assert said["ok"] is None, said
    assert "lib.git" in said["reason"]


def test_loose_requirements_are_laid_as_they_were_chosen_then(made: Made) -> None:
    with wheel_index() as index:
        made.built(made.commit(APP))
        index.add("loose", "1.0")
        commit = made.commit({"src/requirements.txt": b"loose>=1\n"})
        image = made.built(commit, rules=BuildRules(index=index.address))
        index.add("loose", "2.0")
        assert made.proves(image)
    provenance = verify_image(made.layout, image, trust_in(made.key))[PROVENANCE]
    assert "loose==1.0" in provenance["buildDefinition"]["internalParameters"]["lock"]["text"]
    # With the wheel gone from here and from its index, nothing is said of the image.
    (made.build / "wheels").unlink()
    said = made.rebuilt(image)
    assert said["ok"] is None
    assert said["reason"].startswith("not rebuilt: ")


@needs_buildah
def test_a_build_with_secrets_asks_for_them_again_and_says_where_they_go(made: Made, bases: Bases) -> None:
    bases.push("tools", [host_base.programs()])
    text = f'FROM {bases.address}/tools:1\nRUN od -An -c /run/index/token | head -c 4 > /first\nENTRYPOINT ["/x"]\n'
    folder = made.place.state / "secrets" / "index"
    folder.mkdir(parents=True)
    (folder / "token").write_text("xyz-this-is-the-token")
    (folder / "token").chmod(0o600)
    image = made.built(
        made.commit({**APP, "src/Dockerfile": text.encode()}),
        builder="dockerfile",
        dockerfile="src/Dockerfile",
        secrets=(BuildSecret(name="index", path="/run/index"),),
    )
    assert made.proves(image)
    folder.rename(made.folder / "away")
    said = made.rebuilt(image)
    assert said["ok"] is None
    assert said["reason"].startswith("not rebuilt: secret index: expected its files in ")
    assert said["reason"].endswith("lay them there")
    # Another secret makes another image, and which file it is in is said; never the secret.
    folder.mkdir()
    (folder / "token").write_text("another-token-entirely")
    (folder / "token").chmod(0o600)
    said = made.rebuilt(image)
    assert said["ok"] is False
    assert said["details"]["differences"][0]["paths"] == ["first"]
    assert "another-token" not in str(made.value)


@needs_buildah
def test_of_what_another_builder_made_nothing_is_said_where_it_comes_out_otherwise(made: Made) -> None:
    files = {**APP, "src/Dockerfile": b'FROM scratch\nCOPY app.py /app.py\nENTRYPOINT ["/app.py"]\n'}
    image = made.built(made.commit(files), builder="dockerfile", dockerfile="src/Dockerfile")
    made.says_otherwise(image, tool="buildkit 0.99")
    assert made.proves(image), "who builds it does not matter where it comes out the same"
    provenance = deepcopy(verify_image(made.layout, image, trust_in(made.key))[PROVENANCE])
    provenance["buildDefinition"]["externalParameters"]["commit"] = made.commit({"src/app.py": b"print(2)\n"})
    sign_image(made.layout, image, made.key, later(provenance))
    said = made.rebuilt(image)
    assert said["ok"] is None
    assert "expected to build it by buildkit 0.99, as it was made, there is buildah" in said["reason"]
