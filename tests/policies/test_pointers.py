"""Git LFS and DVC pointers are digests of data."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.pointers import LARGEST_LFS_BYTES, Pointer, pointer_of, pointers_of_dvc, why_not_built_from

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %d\n"
hexadecimal = st.text("0123456789abcdef", min_size=64, max_size=64)


@given(hexadecimal, st.integers(0, 10**15))
def test_a_pointer_is_read_as_it_was_written(digest: str, size: int) -> None:
    found = pointer_of(LFS % (digest.encode(), size))
    assert found is not None
    assert (found.kind, found.identity, found.size_bytes) == ("lfs", f"sha256:{digest}", size)


@given(st.binary(max_size=300))
def test_content_is_no_pointer(text: bytes) -> None:
    assert pointer_of(text) is None


NONE: dict[str, bytes] = {
    "another version": LFS.replace(b"v1", b"v2") % (b"a" * 64, 1),
    "another digest": LFS.replace(b"sha256", b"sha1") % (b"a" * 64, 1),
    "a short digest": LFS % (b"a" * 63, 1),
    "no size": LFS.partition(b"size")[0] % (b"a" * 64),
    "more behind it": LFS % (b"a" * 64, 1) + b"content\n",
    "too long": LFS.replace(b"oid", b"ext-0-x %s\noid" % (b"y" * LARGEST_LFS_BYTES)) % (b"a" * 64, 1),
}


@pytest.mark.parametrize("name", NONE)
def test_what_only_looks_like_a_pointer_is_content(name: str) -> None:
    assert pointer_of(NONE[name]) is None


def test_a_pointer_with_extensions_is_one() -> None:
    assert pointer_of(LFS.replace(b"oid", b"ext-0-foo sha256:%s\noid" % (b"b" * 64)) % (b"a" * 64, 1)) == Pointer(
        kind="lfs", algorithm="sha256", digest="a" * 64, size_bytes=1, is_extended=True
    )


DVC: dict[str, tuple[Any, list[tuple[str, str, int | None]]]] = {
    "a file": ({"outs": [{"md5": "a" * 32, "size": 5, "hash": "md5", "path": "x.csv"}]}, [("x.csv", "md5:" + "a" * 32, 5)]),
    "a folder": ({"outs": [{"md5": "a" * 32 + ".dir", "nfiles": 3, "path": "data"}]}, [("data", f"md5:{'a' * 32}.dir", None)]),
    "a stronger digest": ({"outs": [{"sha256": "b" * 64, "path": "x"}]}, [("x", "sha256:" + "b" * 64, None)]),
    "two of them": (
        {"outs": [{"md5": "a" * 32, "path": "x"}, {"md5": "b" * 32, "path": "y"}]},
        [("x", "md5:" + "a" * 32, None), ("y", "md5:" + "b" * 32, None)],
    ),
    "nothing yet": ({"outs": [{"path": "x"}]}, []),
    "a digest that is none": ({"outs": [{"md5": "../../etc", "path": "x"}]}, []),
    "another document": (["outs"], []),
    "no list": ({"outs": "x"}, []),
    "a size that is none": ({"outs": [{"md5": "a" * 32, "size": -1, "path": "x"}]}, [("x", "md5:" + "a" * 32, None)]),
}


@pytest.mark.parametrize("name", DVC)
def test_a_dvc_file_says_what_it_stands_for(name: str) -> None:
    value, wanted = DVC[name]
    assert [(item.path, item.identity, item.size_bytes) for item in pointers_of_dvc(value)] == wanted


@given(st.recursive(st.none() | st.text() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_no_document_makes_it_fall(value: Any) -> None:
    assert pointers_of_dvc({"outs": value}) == () or isinstance(value, list)


def test_a_refusal_names_files_and_what_they_stand_for() -> None:
    found = pointer_of(LFS % (b"a" * 64, 7))
    assert found is not None
    text = why_not_built_from([(f"src/{number}", found) for number in range(5)])
    assert text.startswith(f"src/0: expected its content, got a Git LFS pointer to sha256:{'a' * 64} (7 bytes); src/1:")
    assert "and 2 more" in text
    assert "git lfs" in text
