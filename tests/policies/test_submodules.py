"""Where submodules come from: read as Git reads it, and refused with the place that is wrong."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.submodules import holder_of, submodules_in, tree_within, url_from
from policies.terms.source import Submodule

OWN = "https://git.test/team/own.git"
LIB = '[submodule "lib"]\n\tpath = src/lib\n\turl = ../lib.git\n'
LINKS = {"src/lib": "1" * 40}


def told(text: str | bytes | None, folder: str = "src", own: str = OWN, links: dict[str, str] = LINKS) -> dict[str, str]:
    """Path -> URL; or what is wrong, under an empty path."""
    found, faults = submodules_in(folder, links, text.encode() if isinstance(text, str) else text, own=own)
    assert not (found and faults)
    return {item.path: item.url for item in found} | ({"": "; ".join(map(str, faults))} if faults else {})


@pytest.mark.parametrize("folder", ["", "src", "src/lib", "src/lib/deep"])
def test_a_folder_that_holds_a_submodule_or_lies_in_one_needs_it(folder: str) -> None:
    found, faults = submodules_in(folder, LINKS, LIB.encode(), own=OWN)
    assert found == (Submodule(path="src/lib", url="https://git.test/team/lib.git", commit="1" * 40),)
    assert faults == ()


@pytest.mark.parametrize("folder", ["other", "src/library", "sr"])
def test_a_folder_without_submodules_does_not_care_what_the_file_says(folder: str) -> None:
    assert submodules_in(folder, LINKS, b"[[[", own=OWN) == ((), ())


FAULTS: dict[str, tuple[str | bytes | None, str]] = {
    "there is no file": (
        None,
        ".gitmodules:1: expected a plain file of at most 1048576 bytes that tells where src/lib comes from",
    ),
    "it says nothing": ("", ".gitmodules:1: expected an entry with path = src/lib, got none"),
    "it tells of others": (LIB.replace("src/lib", "lib"), "expected an entry with path = src/lib, got none"),
    "it tells twice": (LIB + LIB.replace('"lib"', '"more"'), ".gitmodules:4: expected one entry with path = src/lib, line 1 has"),
    "it tells no URL": ('[submodule "lib"]\npath=src/lib', ".gitmodules:1: submodule.lib.url: expected a Git URL, got none"),
    "a password": (
        LIB.replace("../lib.git", "https://me:hunter2@git.test/lib.git"),
        ".gitmodules:3: submodule.lib.url: expected a Git URL without a password",
    ),
    "a program": (LIB.replace("../lib.git", "ext::sh -c id"), "submodule.lib.url: expected a Git URL without a password"),
    "an option": (LIB.replace("../lib.git", "--upload-pack=id"), "submodule.lib.url: expected a Git URL without a password"),
    "a path of this machine": (LIB.replace("../lib.git", "/srv/lib.git"), "expected a URL of a Git server, got a path"),
    "a file of this machine": (LIB.replace("../lib.git", "file:///srv/lib.git"), "expected a URL of a Git server, got a path"),
    "out of the server": (LIB.replace("../lib", "../../../lib"), "expected a URL that stays on its server"),
    "up behind a name": (LIB.replace("../lib", "../a/../lib"), "expected a URL that stays on its server"),
    "no settings": ("path src/lib", '.gitmodules:1: expected [submodule "NAME"], path = PATH or url = URL'),
    "an open quote": (LIB + 'x = "', ".gitmodules:4: expected"),
    "an open header": ('\n[submodule "lib"\npath=src/lib\n', ".gitmodules:2: expected"),
    "bytes that are no UTF-8": (b"\xff", ".gitmodules:1: expected UTF-8"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_wrong_is_told_with_its_place(name: str) -> None:
    text, words = FAULTS[name]
    said = told(text)
    assert words in said[""]
    assert "hunter2" not in said[""]


RELATIVE: dict[tuple[str, str], str] = {
    ("https://git.test/team/own.git", "../lib.git"): "https://git.test/team/lib.git",
    ("https://git.test/team/own.git/", "../../other/lib"): "https://git.test/other/lib",
    ("https://git.test/own", "./lib/"): "https://git.test/own/lib",
    ("https://git.test/own", "../../lib"): "",
    ("ssh://git@git.test:22/team/own", "../lib"): "ssh://git@git.test:22/team/lib",
    ("git@git.test:team/own.git", "../lib.git"): "git@git.test:team/lib.git",
    ("git@git.test:own.git", "../lib.git"): "git@git.test:lib.git",
    ("git@git.test:/srv/own.git", "../../lib.git"): "git@git.test:/lib.git",
    ("git@git.test:own.git", "../../lib.git"): "",
    ("file:///srv/own", "../lib"): "file:///srv/lib",
    ("/srv/git/own", "../lib"): "/srv/git/lib",
    ("/srv/git/own", "../.././lib"): "/srv/lib",
    ("/own", "../../lib"): "",
    (OWN, "https://elsewhere.test/x"): "https://elsewhere.test/x",
    (OWN, "../"): "",
}


@pytest.mark.parametrize(("own", "url"), RELATIVE)
def test_a_relative_url_starts_from_the_repositorys_own(own: str, url: str) -> None:
    assert url_from(own, url) == RELATIVE[own, url]


def test_a_repository_on_this_machine_may_have_submodules_on_it() -> None:
    assert told(LIB, own="/srv/own.git") == {"src/lib": "/srv/lib.git"}


WORDS = '[submodule |"lib"|]|[core]|path|url| = |=|src/lib|../x|"|#|;| |\\n|\\t|é|[submodule.lib]|Path|u2|a b|  '
part = st.sampled_from([*WORDS.replace("\\\\", "\\").split("|"), "\n", "\r\n", "\\", "\\\n"])
line = st.sampled_from(['[submodule "lib"]\n', "\tpath = src/lib\n", "\turl = ../x\n", "url = a # b\n", 'path = "src/lib" ; c\n'])
texts = st.lists(st.one_of(part, line), max_size=14).map("".join)


@settings(max_examples=150)
@given(texts)
def test_what_is_read_git_reads_the_same_way(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    found, _ = submodules_in("", LINKS, text.encode(), own=OWN)
    if not found:
        return
    file = tmp_path_factory.mktemp("git") / "modules"
    file.write_bytes(text.encode())
    said = _git(file)
    names = [key.removesuffix(".path") for key, value in said.items() if key.endswith(".path") and value.rstrip("/") == "src/lib"]
    assert [url_from(OWN, said[f"{name}.url"]) for name in names] == [found[0].url]


def _git(file: Path) -> dict[str, str]:
    done = subprocess.run(["git", "config", "-f", str(file), "-z", "--list"], capture_output=True, check=True)
    pairs = [entry.split("\n", 1) for entry in done.stdout.decode().split("\0") if entry]
    return {pair[0]: pair[1] if len(pair) > 1 else "" for pair in pairs}


def test_names_with_quotes_and_lines_that_go_on_are_read() -> None:
    text = (
        '# told by hand\n[submodule "a \\"b\\"]"]\n path = "src/\\\nlib" ; here\n update = none\n URL = https://git.test/x \\\n\n'
    )
    text = text.replace("\n", "\r\n")
    assert told(text) == {"src/lib": "https://git.test/x"}


def test_the_name_of_a_folder_in_a_submodule_follows_from_the_commit_and_the_folder() -> None:
    links = {"src/lib": "1" * 40, "src/more": "2" * 40}
    names = [tree_within(folder, links) for folder in ("src/lib", "src/lib/a", "src/lib/b", "src/more/a")]
    assert names[0] == "1" * 40
    assert len({*names}) == 4
    assert all(len(name) == 40 for name in names)
    assert tree_within("src/lib/a", {"src/lib": "2" * 40}) == tree_within("other/a", {"other": "2" * 40})
    assert [tree_within(folder, links) for folder in ("", "src", "src/library")] == ["", "", ""]
    assert holder_of("src/lib/a/b", links) == "src/lib"
