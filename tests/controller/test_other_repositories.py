"""Source in other repositories: found once, fetched without history, and read by nobody who may not."""

from __future__ import annotations

import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from controller.adapters.clock import SystemClock
from controller.adapters.git import GitAccess, GitRepository, OtherRepositories, access_from, init_bare
from controller.adapters.images import SignedImages
from controller.adapters.keys import ImageKey, SshKey
from controller.adapters.oci.layout import Layout
from controller.adapters.signatures import SignatureReader
from policies.errors import DesiredStateError, OutsideError, RefusedError
from policies.terms.revision import TagFacts, TrustedKey
from policies.terms.source import Elsewhere
from policies.terms.task import ImageSpec, ImageState
from policies.trust import judge_source
from tests.contracts.git_server import GitServer, git_server
from tests.contracts.ssh_server import SshServer, ssh_server
from tests.fakes.provenance import trust_in

AT = datetime(2026, 1, 31, 12, tzinfo=UTC)


class There:
    """Another repository with three commits, a branch and two tags; and those who build from it."""

    def __init__(self, folder: Path, kind: str, closing: ExitStack, sshd: SshServer | None) -> None:
        self.folder, self.bare = folder, folder / "served" / "other.git"
        init_bare(self.bare)
        self.writer = GitRepository(str(self.bare), folder / "writer", None)
        closing.callback(self.writer.close)
        self.commits: list[str] = []
        for number in range(3):
            self.write({"src/app.py": f"print({number})\n".encode(), "src/big": b"x" * 1000 * number})
        self.git("update-ref", "refs/heads/old", self.commits[0])
        self.git("tag", "v1", self.commits[1])
        self.git("-c", "user.name=x", "-c", "user.email=x@x", "tag", "-a", "-m", "x", "v1-told", self.commits[1])
        self.server: GitServer | None = None
        self.access: GitAccess | None = None
        self.url = str(self.bare)
        if kind.startswith("http"):
            self.server = closing.enter_context(git_server(folder / "served"))
            self.server.speaks_version_2 = kind == "http"
            self.url = self.server.url("other.git")
        if sshd is not None:
            self.url = sshd.url(self.bare)
            self.access = access_from({"identity": sshd.key(), "known_hosts": sshd.known_hosts}, self.url, origin="test")
        self._closing = closing

    def git(self, *args: str) -> str:
        return subprocess.run(["git", "-C", str(self.bare), *args], check=True, capture_output=True, text=True).stdout.strip()

    def write(self, files: dict[str, bytes | None]) -> str:
        parent = self.commits[-1] if self.commits else ""
        self.commits.append(self.writer.push(branch="main", parent=parent, changes=files, message="x", at=AT))
        return self.commits[-1]

    def opened(
        self, name: str = "mirrors", *, is_shared: bool = False, signatures: SignatureReader | None = None
    ) -> OtherRepositories:
        made = OtherRepositories(self.folder / name, self.url, self.access, is_shared=is_shared, signatures=signatures)
        self._closing.callback(made.close)
        return made

    def at(self, revision: str) -> Elsewhere:
        return Elsewhere(repo=self.url, revision=revision)


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    with ssh_server(tmp_path_factory.mktemp("sshd") / "server") as server:
        yield server


@pytest.fixture(params=["path", "http", "http, version 0", "ssh"])
def there(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[There]:
    server = request.getfixturevalue("sshd") if request.param == "ssh" else None
    with ExitStack() as closing:
        yield There(tmp_path, request.param, closing, server)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[There]:
    with ExitStack() as closing:
        yield There(tmp_path, "http", closing, None)


def test_branches_tags_and_commits_are_found_by_their_names(there: There) -> None:
    others = there.opened()
    first, second, third = there.commits
    wanted = {"": third, "main": third, "refs/heads/main": third, "old": first, "v1": second, "v1-told": second, first: first}
    assert {name: others.resolve(there.at(name), ["src"]).commit for name in wanted} == wanted
    found = others.resolve(there.at("old"), ["src", "none", ""])
    assert found.trees == {
        "src": there.git("rev-parse", f"{first}:src"),
        "none": "",
        "": there.git("rev-parse", f"{first}^{{tree}}"),
    }
    assert [item.path for item in others.files(there.at("old"), first, "src")] == ["src/app.py", "src/big"]
    assert others.read_many(there.at("old"), second, ["src/app.py"]) == {"src/app.py": b"print(1)\n"}


def test_a_branch_that_moved_is_another_commit_the_next_time(there: There) -> None:
    others = there.opened()
    assert others.resolve(there.at("main"), []).commit == there.commits[2]
    fourth = there.write({"src/app.py": b"4"})
    assert others.resolve(there.at("main"), []).commit == fourth
    assert others.read_many(there.at("main"), there.commits[2], ["src/app.py"]) == {"src/app.py": b"print(2)\n"}


@pytest.mark.parametrize("revision", ["none", "f" * 40])
def test_a_revision_that_is_not_there_is_refused(there: There, revision: str) -> None:
    with pytest.raises(OutsideError) as caught:
        there.opened().resolve(there.at(revision), [])
    assert caught.value.reason in ("RevisionMissing", "Silent")
    assert "other.git" in caught.value.message


def test_what_was_lost_is_fetched_again_at_its_commit(there: There) -> None:
    there.opened("one").resolve(there.at("v1"), [])
    others = there.opened("two")
    assert [item.path for item in others.files(there.at("v1"), there.commits[1], "src")] == ["src/app.py", "src/big"]


def test_no_history_is_fetched(served: There) -> None:
    served.opened().resolve(served.at("main"), [])
    mirror = next((served.folder / "mirrors").iterdir())
    log = subprocess.run(["git", "-C", str(mirror), "log", "--all", "--format=%H"], check=True, capture_output=True, text=True)
    assert log.stdout.split() == [served.commits[2]]


def test_a_commit_that_is_here_is_not_fetched_again(served: There) -> None:
    assert served.server is not None
    others = served.opened()
    others.resolve(served.at("v1"), [])
    served.server.asked.clear()
    others.files(served.at("v1"), served.commits[1], "src")
    assert not served.server.asked


def test_a_mirror_of_others_is_nothing_for_somebody_who_may_not_read_there(served: There) -> None:
    assert served.server is not None
    pinned = served.at(served.commits[0])
    served.opened().resolve(pinned, [])
    served.server.needs = "Basic bm90IHlvdTo="
    for deed in (lambda it: it.resolve(pinned, []), lambda it: it.files(pinned, served.commits[0], "src")):
        with pytest.raises(RefusedError) as caught:
            deed(served.opened())
        assert caught.value.reason == "LoginRefused"


def test_the_projects_own_login_is_shown_to_its_own_host_alone(served: There) -> None:
    assert served.server is not None
    access = access_from({"bearerToken": "hunter2"}, served.url, origin="test")
    assert access.header is not None
    served.server.needs = access.header.reveal()
    own = OtherRepositories(served.folder / "a", served.server.url("project.git"), access)
    assert own.resolve(served.at("main"), []).commit == served.commits[2]
    own.close()
    other = OtherRepositories(served.folder / "b", "http://elsewhere.test/project.git", access)
    with pytest.raises(RefusedError) as caught:
        other.resolve(served.at("main"), [])
    assert caught.value.reason == "LoginRefused"
    other.close()


def test_a_path_of_a_shared_machine_is_no_repository(tmp_path: Path) -> None:
    with ExitStack() as closing:
        there = There(tmp_path, "path", closing, None)
        for repo in (there.url, f"file://{there.url}"):
            with pytest.raises(DesiredStateError, match="expected a URL of a Git server"):
                there.opened(is_shared=True).resolve(Elsewhere(repo=repo, revision="main"), [])


SIGNED = ["-c", "user.name=x", "-c", "user.email=x@x", "-c", "gpg.format=ssh"]


@pytest.mark.parametrize("revision", ["v2", "tags/v2", "refs/tags/v2", "signed", "of a commit"])
def test_who_signed_a_tag_or_a_commit_is_told_and_believed_where_trusted(there: There, revision: str) -> None:
    key = SshKey.generate(there.folder / "ada")
    with_key = (*SIGNED, "-c", f"user.signingKey={there.folder / 'ada'}")
    there.git(*with_key, "tag", "-s", "-m", "two", "v2", there.commits[1])
    tree = there.git("rev-parse", f"{there.commits[2]}^{{tree}}")
    commit = there.git(*with_key, "commit-tree", "-S", tree, "-p", there.commits[2], "-m", "signed")
    there.git("update-ref", "refs/heads/signed", commit)
    others = there.opened(signatures=SignatureReader())
    named = commit if revision == "of a commit" else revision
    found = others.resolve(replace(there.at(named), verify=True), [])
    ada, bob = (TrustedKey(name=name, key=text) for name, text in (("ada", key.public()), ("bob", "ssh-ed25519 AAAA")))
    assert judge_source(found, [bob, ada]) == ("ada", "")
    assert "none of the 1 keys" in judge_source(found, [bob])[1] or "not the 1 key" in judge_source(found, [bob])[1]
    assert "revoked: lost" in judge_source(found, [replace(ada, revoked="lost")])[1]
    assert "only, and no" in judge_source(found, [replace(ada, paths=("versions/",))])[1]
    # A signed tag that somebody serves under another name, or for another commit, vouches for nothing.
    if isinstance(found.signed, TagFacts):
        there.git("update-ref", "refs/tags/v3", there.git("rev-parse", "refs/tags/v2"))
        moved = others.resolve(replace(there.at("v3"), verify=True), [])
        assert judge_source(moved, [ada])[1] == "tag v3: expected a tag of this name, got one that was signed as v2"
        assert "expected the tag of" in judge_source(replace(found, commit=there.commits[0]), [ada])[1]


@pytest.mark.parametrize("revision", ["v1", "v1-told", "main", ""])
def test_what_nobody_signed_is_refused_where_a_signature_is_asked_for(there: There, revision: str) -> None:
    key = SshKey.generate(there.folder / "ada")
    ada = TrustedKey(name="ada", key=key.public())
    found = there.opened(signatures=SignatureReader()).resolve(replace(there.at(revision), verify=True), [])
    assert "got an unsigned one" in judge_source(found, [ada])[1]
    unread = there.opened("others").resolve(replace(there.at(revision), verify=True), [])
    assert "got an unsigned one" in judge_source(unread, [ada])[1]


class Builds:
    """An image store that builds from other repositories."""

    def __init__(self, there: There) -> None:
        folder, self.there = there.folder, there
        init_bare(folder / "own.git")
        self.repository = GitRepository(str(folder / "own.git"), folder / "own", SshKey.generate(folder / "key"))
        signer = ImageKey.generate(folder / "image.pem")
        self.layout = Layout(folder / "store")
        self.images = SignedImages(
            self.repository,
            self.layout,
            folder / "build",
            signer,
            trust_in(signer),
            SystemClock(),
            sources=there.opened(),
        )

    def build(self, *, largest_bytes: int = 1 << 20) -> ImageState:
        found = self.there.opened().resolve(self.there.at("main"), ["src"])
        spec = ImageSpec(
            repository="r",
            commit="c" * 40,
            folder="src",
            tree=found.trees["src"],
            source=self.there.at("main"),
            source_commit=found.commit,
            largest_bytes=largest_bytes,
        )
        self.images.start(spec)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            state = self.images.look(spec)
            if state is not None and state.phase != "building":
                return state
            time.sleep(0.05)
        raise AssertionError("never built")


def test_an_image_is_built_from_another_repository_and_says_so(served: There) -> None:
    builds = Builds(served)
    state = builds.build()
    assert state.phase == "built", state.message
    assert state.digest is not None
    builds.images.verify(state.digest)
    assert state.materials["repo"] == served.url
    assert state.materials["sourceCommit"] == served.commits[2]
    builds.repository.close()


def test_links_inside_and_data_by_digest_go_along(served: There) -> None:
    builds = Builds(served)
    tree = served.git("rev-parse", "main:src")
    link = subprocess.run(
        ["git", "-C", str(served.bare), "hash-object", "-w", "--stdin"], input=b"app.py", capture_output=True, check=True
    ).stdout.decode()
    listed = served.git("ls-tree", tree) + f"\n120000 blob {link.strip()}\tmain.py\n"
    made = subprocess.run(["git", "-C", str(served.bare), "mktree"], input=listed.encode(), capture_output=True, check=True)
    top = f"040000 tree {made.stdout.decode().strip()}\tsrc\n"
    made = subprocess.run(["git", "-C", str(served.bare), "mktree"], input=top.encode(), capture_output=True, check=True)
    who = ["-c", "user.name=x", "-c", "user.email=x@x"]
    commit = served.git(*who, "commit-tree", made.stdout.decode().strip(), "-p", "main", "-m", "x")
    served.git("update-ref", "refs/heads/main", commit)
    served.writer.fetch("main")
    served.commits.append(commit)
    pointer = "outs:\n- md5: " + "a" * 32 + "\n  size: 3\n  path: digits.csv\n"
    served.write({"src/data/digits.csv.dvc": pointer.encode(), "src/broken.dvc": b"{"})
    state = builds.build()
    assert state.phase == "built", state.message
    assert state.digest is not None
    assert state.materials["data"] == {"app/data/digits.csv": "md5:" + "a" * 32}
    layers = [layer["digest"] for layer in builds.layout.manifest(state.digest)["layers"]]
    with tarfile.open(builds.layout.path(layers[-1]), "r:gz") as archive:
        member = archive.getmember("app/main.py")
    assert (member.issym(), member.linkname) == (True, "app.py")
    builds.repository.close()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 5000000\n"


@pytest.mark.parametrize(
    ("files", "reason", "words"),
    [
        ({"src/big": b"x" * 4000}, "FileTooLarge", "src/big: expected at most 3000 bytes"),
        ({"src/weights": LFS}, "FileTooLarge", "src/weights: expected at most 3000 bytes (spec.source.largestFile), got 5000000"),
    ],
)
def test_what_must_not_be_read_there_stops_the_build(
    served: There, files: dict[str, bytes | None], reason: str, words: str
) -> None:
    builds = Builds(served)
    served.write(files)
    state = builds.build(largest_bytes=3000)
    assert (state.phase, state.reason, state.is_passing) == ("failed", reason, False)
    assert words in state.message
    builds.repository.close()


def test_a_server_that_is_away_is_tried_again(served: There) -> None:
    assert served.server is not None
    builds = Builds(served)
    served.opened("known").resolve(served.at("main"), ["src"])
    served.server.refusal = 503
    spec = ImageSpec(
        repository="r", commit="c" * 40, folder="src", tree="1" * 40, source=served.at("main"), source_commit=served.commits[2]
    )
    builds.images.start(spec)
    deadline = time.monotonic() + 60
    state = builds.images.look(spec)
    while (state is None or state.phase == "building") and time.monotonic() < deadline:
        time.sleep(0.05)
        state = builds.images.look(spec)
    assert state is not None
    assert (state.phase, state.is_passing) == ("failed", True)
    builds.repository.close()
