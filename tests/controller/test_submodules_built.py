"""Submodules and Git LFS: what a tree pins goes into an image, and nothing else of it is fetched."""

from __future__ import annotations

import os
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from controller.adapters.attest.statements import PROVENANCE
from controller.adapters.attest.verifying import verify_image
from controller.adapters.build.drivers import drivers, no_secrets
from controller.adapters.clock import SystemClock
from controller.adapters.git import GitRepository, OtherRepositories, access_from, init_bare
from controller.adapters.image_source import SourceReader
from controller.adapters.images import SignedImages
from controller.adapters.keys import ImageKey
from controller.adapters.oci.access import Access
from controller.adapters.oci.layout import Layout
from policies.submodules import submodules_in
from policies.terms.source import Elsewhere, Submodule
from policies.terms.task import ImageSpec, ImageState
from tests.contracts.lfs_server import lfs_server
from tests.fakes.provenance import trust_in

WHO = {"GIT_AUTHOR_NAME": "x", "GIT_AUTHOR_EMAIL": "x@x", "GIT_COMMITTER_NAME": "x", "GIT_COMMITTER_EMAIL": "x@x"}
MODULES = b'[submodule "lib"]\n\tpath = src/lib\n\turl = ../lib.git\n'
Entry = tuple[str, bytes]


def plain(text: bytes) -> Entry:
    return "100644", text


class Served:
    """Repositories on one server, and an image store that builds from them."""

    def __init__(self, folder: Path, closing: ExitStack) -> None:
        self.folder, self._closing = folder, closing
        (folder / "served").mkdir()
        self.server = closing.enter_context(lfs_server(folder / "served"))
        for name in ("own", "lib", "other"):
            init_bare(folder / "served" / f"{name}.git")
        self.access = access_from({"bearerToken": "hunter2"}, self.server.url("own.git"), origin="test")
        assert self.access.header is not None
        self.server.needs = self.access.header.reveal()
        self.repository = GitRepository(self.server.url("own.git"), folder / "own", None, access=self.access)
        closing.callback(self.repository.close)
        self.others = OtherRepositories(folder / "mirrors", self.server.url("own.git"), self.access)
        closing.callback(self.others.close)
        signer = ImageKey.generate(folder / "image.pem")
        self.layout, self.public = Layout(folder / "store"), trust_in(signer)
        self.images = SignedImages(
            self.repository,
            self.layout,
            folder / "build",
            signer,
            self.public,
            SystemClock(),
            sources=self.others,
        )

    def git(self, name: str, *args: str, stdin: bytes = b"") -> str:
        bare = self.folder / "served" / f"{name}.git"
        done = subprocess.run(
            ["git", "-C", str(bare), *args], input=stdin, capture_output=True, check=True, env={**os.environ, **WHO}
        )
        return done.stdout.decode().strip()

    def commit(self, name: str, files: dict[str, Entry]) -> str:
        """Make a commit of `path -> (mode, content)`; of a submodule the content is its commit."""
        commit = self.git(name, "commit-tree", self._tree(name, files), "-m", "x")
        self.git(name, "update-ref", "refs/heads/main", commit)
        return commit

    def _tree(self, name: str, files: dict[str, Entry]) -> str:
        lines = []
        for first in sorted({path.split("/")[0] for path in files}):
            if first in files:
                mode, content = files[first]
                kind = "commit" if mode == "160000" else "blob"
                found = content.decode() if kind == "commit" else self.git(name, "hash-object", "-w", "--stdin", stdin=content)
                lines.append(f"{mode} {kind} {found}\t{first}")
            else:
                below = {path.removeprefix(f"{first}/"): entry for path, entry in files.items() if path.startswith(f"{first}/")}
                lines.append(f"040000 tree {self._tree(name, below)}\t{first}")
        return self.git(name, "mktree", "--missing", stdin="".join(f"{line}\n" for line in lines).encode())

    def spec(self, commit: str, folder: str = "src", *, largest_bytes: int = 1 << 20) -> ImageSpec:
        """What a project that asks for submodules builds from its own repository."""
        self.repository.fetch("main", fresh=True)
        gitlinks = {item.path: item.blob for item in self.repository.files(commit) if item.submodule}
        text = self.repository.read_many(commit, [".gitmodules"]).get(".gitmodules")
        modules, faults = submodules_in(folder, gitlinks, text, own=self.repository.url)
        assert faults == ()
        tree = self.repository.tree_id(commit, folder) or "1" * 40
        return ImageSpec(repository="r", commit=commit, folder=folder, tree=tree, submodules=modules, largest_bytes=largest_bytes)

    def build(self, spec: ImageSpec) -> ImageState:
        self.images.start(spec)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            state = self.images.look(spec)
            if state is not None and state.phase != "building":
                return state
            time.sleep(0.05)
        raise AssertionError("never built")

    def content(self, state: ImageState) -> dict[str, bytes]:
        """What lies in the image's folder `app`."""
        assert state.digest is not None, state.message
        last = self.layout.manifest(state.digest)["layers"][-1]["digest"]
        with tarfile.open(self.layout.path(last), "r:gz") as archive:
            members = {item.name: archive.extractfile(item) for item in archive if item.name.startswith("app/") and item.isfile()}
            return {name.removeprefix("app/"): file.read() for name, file in members.items() if file is not None}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with ExitStack() as closing:
        yield Served(tmp_path, closing)


def test_a_folder_that_holds_a_submodule_has_its_files_at_the_pinned_commit(served: Served) -> None:
    pinned = served.commit("lib", {"a.py": plain(b"a"), "deep/b.py": plain(b"b"), "link": ("120000", b"deep/b.py")})
    served.commit("lib", {"a.py": plain(b"newer")})
    served.git("lib", "update-ref", "refs/heads/kept", pinned)
    files = {"src/app.py": plain(b"app"), "src/lib": ("160000", pinned.encode()), ".gitmodules": plain(MODULES)}
    spec = served.spec(served.commit("own", files))
    state = served.build(spec)
    assert served.content(state) == {"app.py": b"app", "lib/a.py": b"a", "lib/deep/b.py": b"b"}
    url = served.server.url("lib.git")
    assert state.materials["submodules"] == {"src/lib": f"{url}@sha1:{pinned}"}
    mirror = next((served.folder / "mirrors").iterdir())
    log = subprocess.run(["git", "-C", str(mirror), "log", "--all", "--format=%H"], check=True, capture_output=True, text=True)
    assert log.stdout.split() == [pinned]
    assert state.digest is not None
    # Whoever finds the image again, by its signed provenance alone, says the same of it.
    provenance = verify_image(served.layout, state.digest, served.public)[PROVENANCE]
    reader = SourceReader(served.repository, served.others, served.folder / "lfs")
    builder = drivers(reader, served.layout, served.folder / "build", lambda place: Access(repository=place), no_secrets)[
        "python"
    ]
    assert builder.materials(provenance, spec) == state.materials
    assert builder.materials(provenance, replace(spec, tree="2" * 40)) is None


def test_a_folder_that_lies_in_a_submodule_is_built_from_there_alone(served: Served) -> None:
    pinned = served.commit("lib", {"a.py": plain(b"a"), "deep/app.py": plain(b"b")})
    files = {"src/app.py": plain(b"app"), "src/lib": ("160000", pinned.encode()), ".gitmodules": plain(MODULES)}
    commit = served.commit("own", files)
    assert served.content(served.build(served.spec(commit, "src/lib/deep"))) == {"app.py": b"b"}
    whole = replace(served.spec(commit, "src/lib"), tree="2" * 40)
    assert served.content(served.build(whole)) == {"a.py": b"a", "deep/app.py": b"b"}
    state = served.build(replace(served.spec(commit, "src/lib/none"), tree="3" * 40))
    assert (state.reason, state.is_passing) == ("FolderMissing", False)
    assert f"commit {pinned[:12]} of" in state.message


ODD: dict[str, tuple[dict[str, Entry], str, str]] = {
    "a link out of the folder": ({"x": ("120000", b"../../etc")}, "LinkLeaves", "src/lib/x: expected a link to a place inside"),
    "a file over the limit": ({"x": plain(b"x" * 4000)}, "FileTooLarge", "src/lib/x: expected at most 3000 bytes"),
    "an odd name": ({"a\\b": plain(b"")}, "OddName", "src/lib/a\\b: expected a plain name"),
    "names that differ by case": ({"x": plain(b""), "X": plain(b"")}, "NamesClash", "src/lib/x: expected names that differ"),
    "a submodule of its own": (
        {"deep/x": ("160000", b"1" * 40)},
        "NestedSubmodule",
        "src/lib/deep/x: expected files, got a submodule inside of the submodule src/lib, which is not followed",
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_odd_in_a_submodule_stops_the_build_before_it_is_read(served: Served, name: str) -> None:
    inside, reason, words = ODD[name]
    pinned = served.commit("lib", {"a.py": plain(b"a"), **inside})
    files = {"src/lib": ("160000", pinned.encode()), ".gitmodules": plain(MODULES)}
    state = served.build(served.spec(served.commit("own", files), largest_bytes=3000))
    assert (state.phase, state.reason, state.is_passing) == ("failed", reason, False)
    assert words in state.message


def test_a_commit_that_nobody_pushed_is_told_and_tried_again(served: Served) -> None:
    served.commit("lib", {"a.py": plain(b"a")})
    files = {"src/lib": ("160000", b"1" * 40), ".gitmodules": plain(MODULES)}
    state = served.build(served.spec(served.commit("own", files)))
    assert (state.phase, state.is_passing) == ("failed", True)
    assert "lib.git" in state.message


@pytest.mark.parametrize("folder", ["src", "src/lib"])
def test_another_repository_has_submodules_too_where_they_are_asked_for(served: Served, folder: str) -> None:
    pinned = served.commit("lib", {"app.py": plain(b"a")})
    files = {"src/lib": ("160000", pinned.encode()), ".gitmodules": plain(MODULES)}
    served.commit("other", files)
    source = Elsewhere(repo=served.server.url("other.git"), revision="main")
    found = served.others.resolve(source, [folder, "none"])
    assert found.trees["none"] == ""
    spec = ImageSpec(
        repository="r",
        commit="c" * 40,
        folder=folder,
        tree=found.trees[folder],
        source=source,
        source_commit=found.commit,
        reads_submodules=True,
    )
    assert served.content(served.build(spec)) == {"lib/app.py" if folder == "src" else "app.py": b"a"}
    served.commit("other", {**files, ".gitmodules": plain(b"")})
    wrong = served.others.resolve(source, [folder])
    state = served.build(replace(spec, source_commit=wrong.commit, tree="3" * 40))
    assert (state.reason, state.is_passing) == ("BadSubmodule", False)
    assert "other.git: .gitmodules: expected an entry with path = src/lib, got none" in state.message
    state = served.build(replace(spec, reads_submodules=False, tree="4" * 40))
    assert (state.reason, state.is_passing) == ("Submodule", False)
    state = served.build(replace(spec, reads_submodules=False, folder="src/lib/deep", tree="5" * 40))
    assert (state.reason, state.is_passing) == ("FolderMissing", False)
    assert state.message.endswith("; submodules are read with spec.source.submodules")


def test_a_submodule_has_the_access_of_the_repository_that_names_it_on_the_same_host_alone(served: Served) -> None:
    source = Elsewhere(repo="git@git.test:team/other.git", revision="main", secret="deploy", secret_key="key")

    def beside(url: str, source: Elsewhere | None = source) -> Elsewhere:
        return served.others.beside(source, Submodule(path="lib", url=url, commit="1" * 40))

    same = Elsewhere(repo="ssh://git@git.test/lib", revision="1" * 40, secret="deploy", secret_key="key")
    assert beside(same.repo) == same
    for url in ("git@elsewhere.test:lib", "https://git.test/lib"):
        assert beside(url) == Elsewhere(repo=url, revision="1" * 40)
    assert beside(same.repo, None) == Elsewhere(repo=same.repo, revision="1" * 40)


def test_pointers_of_git_lfs_become_their_content_in_submodules_too(served: Served) -> None:
    own, inner = served.server.put(b"own weights"), served.server.put(b"inner weights")
    pinned = served.commit("lib", {"a.bin": plain(inner), "twice.bin": plain(own)})
    files = {"src/w.bin": plain(own), "src/lib": ("160000", pinned.encode()), ".gitmodules": plain(MODULES)}
    spec = served.spec(served.commit("own", files))
    content = served.content(served.build(spec))
    assert content == {"w.bin": b"own weights", "lib/a.bin": b"inner weights", "lib/twice.bin": b"own weights"}
    asked = [path for path, _ in served.server.shown if path.endswith("/batch")]
    assert asked == ["/own.git/info/lfs/objects/batch", "/lib.git/info/lfs/objects/batch"]


def test_content_of_git_lfs_over_the_limit_is_refused_before_it_is_asked_for(served: Served) -> None:
    commit = served.commit("own", {"src/w.bin": plain(served.server.put(b"x" * 4000))})
    state = served.build(served.spec(commit, largest_bytes=3000))
    assert (state.reason, state.is_passing) == ("FileTooLarge", False)
    assert "src/w.bin: expected at most 3000 bytes (spec.source.largestFile), got 4000 in Git LFS" in state.message
    assert served.server.shown == []


def test_content_of_git_lfs_that_nobody_pushed_is_told_and_tried_again(served: Served) -> None:
    commit = served.commit("own", {"src/w.bin": plain(served.server.put(b"x"))})
    served.server.contents.clear()
    state = served.build(served.spec(commit))
    assert (state.reason, state.is_passing) == ("LargeFileMissing", True)
    assert "`git lfs push` it there" in state.message


def test_a_pointer_whose_content_a_program_would_have_to_change_is_refused(served: Served) -> None:
    first, rest = served.server.put(b"x").split(b"\n", 1)
    extended = first + b"\next-0-zip sha256:" + b"a" * 64 + b"\n" + rest
    state = served.build(served.spec(served.commit("own", {"src/w.bin": plain(extended)})))
    assert (state.reason, state.is_passing) == ("NotBuilt", False)
    assert "src/w.bin: expected content, got a Git LFS pointer with extensions" in state.message
