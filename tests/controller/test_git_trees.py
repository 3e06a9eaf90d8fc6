"""Folders that are written without Git have the ids that Git gives them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controller.adapters.git import init_bare
from controller.adapters.git.trees import changed_tree, write_object

names = st.sampled_from(["a", "a.b", "a-b", "a0", "b", "ü", "A"])
paths = st.lists(names, min_size=1, max_size=3).map("/".join)
changes = st.dictionaries(paths, st.none() | st.binary(max_size=3), max_size=5)


def git(mirror: Path, *args: str, stdin: bytes = b"") -> str:
    index = {"GIT_INDEX_FILE": str(mirror / "index"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(["git", "-C", str(mirror), *args], input=stdin, capture_output=True, check=True, env=index)
    return done.stdout.decode().strip()


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mirror") / "git"
    init_bare(folder)
    return folder


def plain(found: dict[str, bytes | None]) -> dict[str, bytes | None]:
    """Without what is a file and a folder at once."""
    return {path: content for path, content in found.items() if not any(other.startswith(f"{path}/") for other in found)}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(changes.map(plain), min_size=1, max_size=3))
def test_a_changed_folder_has_the_id_that_git_gives_it(mirror: Path, found: list[dict[str, bytes | None]]) -> None:
    def read(tree: str) -> bytes:
        done = subprocess.run(["git", "-C", str(mirror), "cat-file", "tree", tree], capture_output=True, check=True)
        return done.stdout

    tree, files = "", dict[str, bytes]()
    for some in found:
        blobs = {path: None if text is None else write_object(mirror, "blob", text) for path, text in some.items()}
        tree = changed_tree(tree, blobs, read=read, write=lambda content: write_object(mirror, "tree", content))
        for path, text in some.items():
            if text is None:
                files.pop(path, None)
                continue
            # What is written where a folder was takes its place, and the other way round.
            files = {
                name: old for name, old in files.items() if not name.startswith(f"{path}/") and not path.startswith(f"{name}/")
            }
            files[path] = text
        (mirror / "index").unlink(missing_ok=True)
        lines = [f"100644 {git(mirror, 'hash-object', '--stdin', stdin=text)}\t{path}\0" for path, text in files.items()]
        git(mirror, "update-index", "-z", "--index-info", stdin="".join(lines).encode())
        assert tree == git(mirror, "write-tree")
    git(mirror, "fsck", "--strict")


def test_an_object_that_is_there_is_left_alone(mirror: Path) -> None:
    name = write_object(mirror, "blob", b"once")
    place = mirror / "objects" / name[:2] / name[2:]
    before = place.stat()
    assert write_object(mirror, "blob", b"once") == name
    assert place.stat() == before
    assert git(mirror, "cat-file", "blob", name) == "once"
    assert place.stat().st_mode & 0o777 == 0o444
