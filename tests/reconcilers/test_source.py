"""What of a commit is read: files that nobody should read stop what is built from them, and nothing else."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from controller.adapters.documents import YamlDocuments
from controller.adapters.git import GitRepository, init_bare
from policies.hygiene import told
from policies.jobs import Surroundings
from policies.planning import plan
from policies.records import event_statement, fold, run_statement
from policies.terms.desired import DesiredState
from policies.terms.observed import Observed, Recorded
from policies.terms.plan import Blocked, BuildImage, RecordEvent, StartRun
from policies.terms.record import Entry
from policies.terms.revision import Revision
from policies.terms.source import Submodule
from reconcilers.source import Memory, read

AT = datetime(2026, 1, 31, 12, tzinfo=UTC)
AXON = """\
apiVersion: myelin.io/v1alpha1
kind: Axon
metadata: {{name: {name}}}
spec:
  artifacts: [{{name: source, path: /src}}]
  tasks:
    - name: work
      container:
        imageBuild: {{artifact: source, buildLocation: /src/{folder}}}
  sensors:
    - name: on-push
      tasks: [{{resourceExecutor: {{task: work}}}}]
"""
WHO = {"GIT_AUTHOR_NAME": "x", "GIT_AUTHOR_EMAIL": "x@x", "GIT_COMMITTER_NAME": "x", "GIT_COMMITTER_EMAIL": "x@x"}


class Commits:
    """A repository whose commits may hold what no work tree would."""

    def __init__(self, folder: Path) -> None:
        self.bare = folder / "origin.git"
        init_bare(self.bare)
        self.repository = GitRepository(str(self.bare), folder / "mirror", None)
        self.memory = Memory()

    def git(self, *args: str, stdin: bytes = b"") -> str:
        done = subprocess.run(
            ["git", "-C", str(self.bare), *args], input=stdin, capture_output=True, check=True, env={**os.environ, **WHO}
        )
        return done.stdout.decode().strip()

    def commit(self, files: dict[str, tuple[str, bytes]]) -> str:
        """Make a commit of `path -> (mode, content)`; of a submodule the content is its commit."""
        tree = self._tree({tuple(path.split("/")): entry for path, entry in files.items()})
        commit = self.git("commit-tree", tree, "-m", "change")
        self.git("update-ref", "refs/heads/main", commit)
        return self.repository.fetch("main")

    def _tree(self, files: dict[tuple[str, ...], tuple[str, bytes]]) -> str:
        lines = []
        for name in sorted({path[0] for path in files}):
            below = {path[1:]: entry for path, entry in files.items() if path[0] == name}
            if (entry := below.get(())) is not None:
                mode, content = entry
                kind = "commit" if mode == "160000" else "blob"
                found = content.decode() if kind == "commit" else self.git("hash-object", "-w", "--stdin", stdin=content)
                lines.append(f"{mode} {kind} {found}\t{name}")
            else:
                lines.append(f"040000 tree {self._tree(below)}\t{name}")
        return self.git(
            "mktree", "-z", "--missing", stdin="".join(f"{line}\0" for line in lines).encode(errors="surrogateescape")
        )

    def read(self, files: dict[str, tuple[str, bytes]], project: str = "") -> DesiredState:
        text = f"apiVersion: myelin.io/v1alpha1\nkind: Project\nspec: {{{project}}}\n"
        manifests = {
            f"axons/{name}/axon.yaml": ("100644", AXON.format(name=name, folder=name).encode()) for name in ("odd", "good")
        }
        plain = {"good/app.py": ("100644", b""), "odd/app.py": ("100644", b""), "myelin.yaml": ("100644", text.encode())}
        commit = self.commit({**manifests, **plain, **files})
        revision = Revision(branch="main", commit=commit, at=AT)
        return read(self.repository, YamlDocuments(), revision, memory=self.memory)


@pytest.fixture
def commits(tmp_path: Path) -> Iterator[Commits]:
    made = Commits(tmp_path)
    yield made
    made.repository.close()


def steps(desired: DesiredState) -> dict[str, tuple[str, str]]:
    """What comes of each axon once its runs have begun: nothing but an image to build, or why not."""
    observed = Observed(recorded=begun(desired))
    found = {}
    for step in plan(desired, observed, now=AT, around=Surroundings()).steps:
        if isinstance(step, BuildImage):
            found[step.axon] = ("builds", step.image.folder)
        elif isinstance(step, Blocked) and step.task:
            found[step.axon] = (step.word, step.reason)
    return found


def begun(desired: DesiredState) -> Recorded:
    """What is recorded once every run that is due has begun."""
    entries: list[Entry] = []
    for _ in range(2):
        recorded = fold(entries)
        for step in plan(desired, Observed(recorded=recorded), now=AT, around=Surroundings()).steps:
            if isinstance(step, RecordEvent | StartRun):
                statement = event_statement(step.event) if isinstance(step, RecordEvent) else run_statement(step.run)
                number = len(entries) + 1
                entries.append(Entry(number=number, at=AT, statement=statement, previous="", digest=f"{number}", signature=""))
    return fold(entries)


ODD: dict[str, tuple[dict[str, tuple[str, bytes]], str, str]] = {
    "a link out of the repository": (
        {"odd/passwd": ("120000", b"../../etc/passwd")},
        "LinkLeaves",
        "folder odd: odd/passwd: expected a link to a place inside of odd, got one to ../../etc/passwd",
    ),
    "a link to elsewhere in the repository": (
        {"odd/more": ("120000", b"../good")},
        "LinkLeaves",
        "folder odd: odd/more: expected a link to a place inside of odd, got one to ../good",
    ),
    "a submodule": (
        {"odd/vendored": ("160000", b"1" * 40)},
        "Submodule",
        "folder odd: odd/vendored: expected files of this repository, got a submodule; set spec.source.submodules,"
        " or copy its files",
    ),
    "names that differ by case": (
        {"odd/App.py": ("100644", b"")},
        "NamesClash",
        "folder odd: odd/app.py: expected names that differ by more than case, got odd/App.py too",
    ),
    "a backslash": ({"odd/a\\b": ("100644", b"")}, "OddName", "folder odd: odd/a\\b: expected a plain name, got odd/a\\b"),
    "bytes that are no UTF-8": (
        {"odd/\udcff": ("100644", b"")},
        "OddName",
        "folder odd: 'odd/\\udcff': expected a plain name, got 'odd/\\udcff', which is no UTF-8",
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_file_stops_the_axon_that_uses_it_and_no_other(commits: Commits, name: str) -> None:
    files, word, message = ODD[name]
    assert steps(commits.read(files)) == {"good": ("builds", "good"), "odd": (word, message)}


MODULES = b'[submodule "lib"]\n\tpath = odd/vendored\n\turl = ../lib.git\n'
ASKED = "source: {submodules: true}"


def test_a_submodule_that_is_asked_for_is_built_with_its_commit_and_url(commits: Commits) -> None:
    files = {"odd/vendored": ("160000", b"1" * 40), ".gitmodules": ("100644", MODULES)}
    desired = commits.read(files, ASKED)
    assert steps(desired) == {"good": ("builds", "good"), "odd": ("builds", "odd")}
    there = str(commits.bare.parent / "lib.git")
    assert desired.axons["odd"].submodules == {"odd": (Submodule(path="odd/vendored", url=there, commit="1" * 40),)}
    assert desired.axons["good"].submodules == {}
    other = commits.read({**files, "odd/vendored": ("160000", b"2" * 40)}, ASKED)
    assert other.axons["odd"].digest != desired.axons["odd"].digest
    moved = commits.read({**files, ".gitmodules": ("100644", MODULES.replace(b"../lib", b"../moved"))}, ASKED)
    assert moved.axons["odd"].digest == desired.axons["odd"].digest
    assert moved.axons["odd"].submodules["odd"][0].url.endswith("/moved.git")


def test_a_folder_that_lies_in_a_submodule_is_named_by_the_pinned_commit(commits: Commits) -> None:
    files = {
        "parts": ("160000", b"1" * 40),
        ".gitmodules": ("100644", MODULES.replace(b"odd/vendored", b"parts")),
        "axons/inner/axon.yaml": ("100644", AXON.format(name="inner", folder="parts/x").encode()),
        "axons/whole/axon.yaml": ("100644", AXON.format(name="whole", folder="parts").encode()),
    }
    desired = commits.read(files, ASKED)
    names = {axon: desired.axons[axon].trees for axon in ("inner", "whole")}
    assert set(names["whole"].values()) == {"1" * 40}
    assert {len(name) for name in names["inner"].values()} == {40}
    assert set(names["inner"].values()) != set(names["whole"].values())
    refused = commits.read(files)
    word = "parts: expected files of this repository, got a submodule; set spec.source.submodules, or copy its files"
    for axon in ("inner", "whole"):
        ((folder, faults),) = refused.axons[axon].refused.items()
        assert (folder, told(faults)) == (*names[axon], word)


def test_a_submodule_that_is_told_wrongly_stops_its_axon_until_the_telling_is_mended(commits: Commits) -> None:
    files = {"odd/vendored": ("160000", b"1" * 40)}
    link, big = ("120000", b"elsewhere"), ("100644", b"#" * (1 << 20) + b"\n" + MODULES)
    nothing = "expected a plain file of at most 1048576 bytes that tells where odd/vendored comes from, got none"
    cases = {
        nothing: [files, {**files, ".gitmodules": link}, {**files, ".gitmodules": big}],
        "expected an entry with path = odd/vendored, got none": [{**files, ".gitmodules": ("100644", b"")}],
    }
    for message, all_files in cases.items():
        for each in all_files:
            found = steps(commits.read(each, ASKED))
            assert found == {"good": ("builds", "good"), "odd": ("BadSubmodule", f"folder odd: .gitmodules: {message}")}
    assert steps(commits.read({**files, ".gitmodules": ("100644", MODULES)}, ASKED))["odd"] == ("builds", "odd")


def test_a_file_over_the_limit_is_refused_until_the_limit_is_raised(commits: Commits) -> None:
    files = {"odd/weights": ("100644", b"x" * 2000)}
    assert steps(commits.read(files)) == {"good": ("builds", "good"), "odd": ("builds", "odd")}
    found = steps(commits.read(files, "source: {largestFile: 1Ki}"))
    message = "folder odd: odd/weights: expected at most 1024 bytes (spec.source.largestFile), got 2000"
    assert found == {"good": ("builds", "good"), "odd": ("FileTooLarge", message)}
    assert steps(commits.read(files, "source: {largestFile: 2k}"))["odd"] == ("builds", "odd")


def test_a_link_that_stays_inside_is_let_through(commits: Commits) -> None:
    assert steps(commits.read({"odd/deep/link": ("120000", b"../app.py")}))["odd"] == ("builds", "odd")


def test_a_manifest_that_is_a_link_or_has_an_odd_name_is_never_read(commits: Commits) -> None:
    link, odd = ("120000", b"/etc/passwd"), ("100644", AXON.format(name="more", folder="good").encode())
    desired = commits.read({"axons/link/axon.yaml": link, "axons/a\\b/axon.yaml": odd, "other.yaml": link})
    assert {(fault.file, fault.reason) for fault in desired.faults} == {
        ("axons/link/axon.yaml", "Link"),
        ("axons/a\\b/axon.yaml", "OddName"),
    }
    assert set(desired.axons) == {"good", "odd"}


def test_a_file_elsewhere_harms_nobody(commits: Commits) -> None:
    found = steps(commits.read({"docs/link": ("120000", b"/etc"), "module": ("160000", b"1" * 40)}))
    assert found == {"good": ("builds", "good"), "odd": ("builds", "odd")}
