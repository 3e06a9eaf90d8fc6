"""Files that are refused before they are read."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.hygiene import bytes_of, refusals, stays_inside, told, why_odd


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    path: str
    symlink: bool = False
    submodule: bool = False
    size_bytes: int = 1


def why(
    files: list[File], targets: dict[str, str] | None = None, *, folder: str = "src", submodules: tuple[str, ...] = ()
) -> list[tuple[str, str]]:
    found = refusals(folder, files, targets or {}, largest_bytes=100, submodules=submodules)
    return [(fault.file, fault.reason) for fault in found]


def test_plain_files_are_let_through() -> None:
    assert why([File(path="src/a.py"), File(path="src/deep/ü é.txt", size_bytes=100)]) == []


REFUSED: dict[str, tuple[File, str]] = {
    "a file over the limit": (File(path="src/weights.bin", size_bytes=101), "FileTooLarge"),
    "a submodule that nobody asked for": (File(path="src/vendored", submodule=True), "Submodule"),
    "a link whose target nobody read": (File(path="src/link", symlink=True), "LinkLeaves"),
    "a line feed in a name": (File(path="src/a\nb"), "OddName"),
    "an escape in a name": (File(path="src/\x1b[2J"), "OddName"),
    "a backslash": (File(path="src\\a"), "OddName"),
    "a step up": (File(path="src/../../a"), "OddName"),
    "Git's own folder": (File(path="src/.git/config"), "OddName"),
    "Git's own folder, as Windows reads it": (File(path="src/GIT~1/config"), "OddName"),
    "Git's own folder, as macOS reads it": (File(path="src/.g\u200cit/config"), "OddName"),
    "bytes that are no UTF-8": (File(path="src/\udcff"), "OddName"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_told_by_name_and_alone(name: str) -> None:
    file, reason = REFUSED[name]
    found = refusals("src", [File(path="src/a.py"), file], {}, largest_bytes=100)
    assert [fault.reason for fault in found] == [reason]
    text = str(found[0])
    assert "expected" in text
    assert ", got " in text
    assert text.isprintable()
    text.encode()


def test_submodules_that_are_read_too_are_let_through_but_none_inside_of_them_and_none_with_an_odd_name() -> None:
    read = ("src/vendored", "src/a\\b")
    assert why([File(path="src/vendored", submodule=True)], submodules=read) == []
    assert why([File(path="src/vendored2", submodule=True)], submodules=read) == [("src/vendored2", "Submodule")]
    assert why([File(path="src/vendored/deep", submodule=True)], submodules=read) == [("src/vendored/deep", "NestedSubmodule")]
    assert why([File(path="src/a\\b", submodule=True)], submodules=read) == [("src/a\\b", "OddName")]


def test_names_that_differ_by_case_alone_are_refused_once() -> None:
    files = [File(path="src/Data/a"), File(path="src/Data/b"), File(path="src/data/a"), File(path="src/data/c")]
    assert why(files) == [("src/data", "NamesClash")]
    assert why([File(path="src/\u00fc"), File(path="src/u\u0308")]) == [("src/ü", "NamesClash")]


LINKS: dict[str, tuple[str, str, bool]] = {
    "beside it": ("src/link", "a.py", True),
    "below it": ("src/link", "./deep/a.py", True),
    "up and down again": ("src/deep/link", "../a.py", True),
    "the folder itself": ("src/deep/link", "..", True),
    "another folder of the repository": ("src/link", "../data/a", False),
    "out of the repository": ("src/link", "../../etc/passwd", False),
    "from the root": ("src/link", "/etc/passwd", False),
    "a step up behind a name, which may be a link": ("src/deep/link", "other/../../a.py", False),
    "into Git's own folder": ("src/link", ".git/config", False),
    "nowhere": ("src/link", "", False),
    "something odd": ("src/link", "a\nb", False),
    "a folder that begins like this one": ("src/link", "../src2/a", False),
}


@pytest.mark.parametrize("name", LINKS)
def test_a_link_stays_inside_or_is_refused(name: str) -> None:
    path, target, is_fine = LINKS[name]
    assert stays_inside("src", path, target) is is_fine
    assert why([File(path=path, symlink=True)], {path: target}) == ([] if is_fine else [(path, "LinkLeaves")])


part = st.sampled_from(["a", "b", "..", ".", "link", "deep", ""])
target = st.lists(part, min_size=1, max_size=5).map("/".join)


@given(st.dictionaries(st.sampled_from(["src/link", "src/a", "src/deep/link", "src/deep/b", "src/b"]), target, max_size=5))
def test_links_that_are_let_through_never_lead_out_even_through_each_other(
    tmp_path_factory: pytest.TempPathFactory, links: dict[str, str]
) -> None:
    root = tmp_path_factory.mktemp("tree")
    for folder in ("src/deep", "deep", "a"):
        (root / folder).mkdir(parents=True)
    made = [path for path, target in links.items() if stays_inside("src", path, target)]
    for path in made:
        os.symlink(links[path], root / path)
    for path in ("src/a", "src/deep/b", "b", "deep/a"):
        if not os.path.lexists(root / path):
            (root / path).write_text("")
    inside = (root / "src").resolve()
    for path in made:
        try:
            found = Path(os.path.realpath(root / path, strict=True))
        except OSError:
            continue  # it leads nowhere, or round and round
        assert found == inside or found.is_relative_to(inside)


@given(st.permutations([item for item, _ in REFUSED.values()] + [File(path="src/a"), File(path="src/A")]))
def test_the_order_of_the_files_does_not_matter(files: list[File]) -> None:
    assert why(files) == why(sorted(files, key=lambda item: item.path))


@pytest.mark.parametrize(
    ("quantity", "size"),
    [("100Mi", 100 << 20), ("1Gi", 1 << 30), ("2G", 2 * 10**9), ("500", 500), ("1.5Ki", 1536), ("1e3", 1000), ("1500m", 1)],
)
def test_a_quantity_is_so_many_bytes(quantity: str, size: int) -> None:
    assert bytes_of(quantity) == size


@given(st.text(max_size=20))
def test_whatever_is_odd_can_be_printed(path: str) -> None:
    assert why_odd(path).isprintable()


def test_many_refusals_are_one_line() -> None:
    found = refusals("", [File(path=f"{number}", size_bytes=200) for number in range(9)], {}, largest_bytes=100)
    assert told(found).startswith("0: expected at most 100 bytes (spec.source.largestFile), got 200; 1: expected")
    assert told(found).endswith("; and 6 more")
