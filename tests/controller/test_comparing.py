"""Two images, entry by entry."""

from __future__ import annotations

import gzip
import io
import tarfile
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from controller.adapters.build.comparing import compare, kind_of
from controller.adapters.oci.layout import CONFIG, LAYER, MANIFEST, Layout
from policies.canonical import canonical
from policies.errors import TrustError
from policies.reproducibility import Report
from policies.terms.digest import Digest, digest_of

BIG_BYTES = 64 << 20
BOUND_BYTES = 16 << 20
Entry = tuple[str, bytes, dict[str, Any]]


def layer(layout: Layout, entries: Sequence[Entry]) -> tuple[dict[str, Any], str]:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data, more in entries:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for key, value in more.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(data))
    packed = gzip.compress(out.getvalue(), 1, mtime=0)
    return layout.descriptor(layout.put(packed), LAYER), digest_of(out.getvalue())


def image(layout: Layout, *layers: Sequence[Entry], settings: dict[str, Any] | None = None) -> Digest:
    made = [layer(layout, entries) for entries in layers]
    config = {"os": "linux", "config": settings or {}, "rootfs": {"type": "layers", "diff_ids": [item[1] for item in made]}}
    described = layout.descriptor(layout.put(canonical(config)), CONFIG)
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": described, "layers": [item[0] for item in made]}
    return layout.put(canonical(manifest))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "store")


@pytest.fixture
def told(layout: Layout) -> Callable[..., Any]:
    def between(one: Digest, other: Digest) -> Any:
        report = compare((layout, one), (layout, other))
        assert isinstance(report, Report)
        return report.told()

    return between


SAME: Entry = ("app/a", b"1", {})


def test_equal_images_are_equal(layout: Layout, told: Callable[..., Any]) -> None:
    assert told(image(layout, [SAME]), image(layout, [SAME])) is True


CASES: dict[str, tuple[Entry | None, Entry | None, str]] = {
    "content": (("x", b"1", {}), ("x", b"2", {}), "content"),
    "its length": (("x", b"1", {}), ("x", b"11", {}), "content"),
    "a time": (("x", b"1", {"mtime": 1}), ("x", b"1", {"mtime": 2}), "time"),
    "a mode": (("x", b"1", {"mode": 0o600}), ("x", b"1", {"mode": 0o644}), "header"),
    "an owner": (("x", b"1", {"uid": 1}), ("x", b"1", {"uid": 2}), "header"),
    "a target": (
        ("x", b"", {"type": tarfile.SYMTYPE, "linkname": "a"}),
        ("x", b"", {"type": tarfile.SYMTYPE, "linkname": "b"}),
        "header",
    ),
    "one more": (None, ("x", b"1", {}), "missing"),
    "one less": (("x", b"1", {}), None, "missing"),
    "compiled Python": (("a/__pycache__/x.pyc", b"1", {}), ("a/__pycache__/x.pyc", b"2", {}), "pyc"),
    "a log": (("var/log/apt/x", b"1", {}), ("var/log/apt/x", b"2", {}), "log"),
    "a cache": (("var/cache/ldconfig/aux-cache", b"1", {}), ("var/cache/ldconfig/aux-cache", b"2", {}), "cache"),
}


@pytest.mark.parametrize(("one", "other", "kind"), CASES.values(), ids=CASES)
def test_what_differs_is_named_by_layer_path_and_kind(
    layout: Layout, told: Callable[..., Any], one: Entry | None, other: Entry | None, kind: str
) -> None:
    sides = [[SAME, *([entry] if entry else [])] for entry in (one, other)]
    path = (one or other or SAME)[0]
    found = told(image(layout, [SAME], sides[0]), image(layout, [SAME], sides[1]))
    assert found == [{"layer": "layer 2 of 2", "step": "", "class": kind, "count": 1, "paths": [path]}]


def test_the_step_that_made_a_layer_is_named(layout: Layout) -> None:
    one, other = image(layout, [("x", b"1", {})]), image(layout, [("x", b"2", {})])
    below = digest_of(gzip.decompress(layout.get(layout.manifest(one)["layers"][0]["digest"])))
    assert compare((layout, one), (layout, other), {below: "RUN date > x"}).differences[0].step == "RUN date > x"


def test_of_many_paths_the_first_twenty_are_named(layout: Layout, told: Callable[..., Any]) -> None:
    sides: list[list[Entry]] = [[(f"f{number:03}", text, {}) for number in range(30)] for text in (b"1", b"2")]
    found = told(image(layout, sides[0]), image(layout, sides[1]))
    assert found[0]["count"] == 30
    assert found[0]["paths"] == [f"f{number:03}" for number in range(20)]


def test_another_order_of_entries_and_other_settings_are_differences_too(layout: Layout, told: Callable[..., Any]) -> None:
    two: list[Entry] = [("a", b"1", {}), ("b", b"2", {})]
    one, other = image(layout, two), image(layout, two[::-1])
    assert told(one, other)[0]["paths"] == ["(order of its entries)"]
    other = image(layout, two, settings={"User": "7", "Env": ["A=1"]})
    assert told(one, other) == [
        {"layer": "config", "step": "", "class": "content", "count": 2, "paths": ["/config/Env", "/config/User"]}
    ]


def test_a_layer_that_only_one_image_has_is_missing_in_the_other(layout: Layout, told: Callable[..., Any]) -> None:
    found = told(image(layout, [SAME]), image(layout, [SAME], [("x", b"1", {})]))
    assert found == [{"layer": "layer 2 of 2", "step": "", "class": "missing", "count": 1, "paths": ["x"]}]


def test_equal_content_in_other_bytes_is_a_difference_of_the_manifest(layout: Layout, told: Callable[..., Any]) -> None:
    one = image(layout, [SAME])
    manifest = layout.manifest(one)
    plain = gzip.decompress(layout.get(manifest["layers"][0]["digest"]))
    manifest["layers"] = [layout.descriptor(layout.put(gzip.compress(plain, 9, mtime=1)), LAYER)]
    assert told(one, layout.put(canonical(manifest)))[0]["layer"] == "manifest"


def test_content_is_never_held_in_memory(layout: Layout, told: Callable[..., Any]) -> None:
    one, other = (image(layout, [("big", bytes(BIG_BYTES) + text, {})]) for text in (b"1", b"2"))
    tracemalloc.start()
    try:
        found = told(one, other)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found[0]["paths"] == ["big"]
    assert peak < BOUND_BYTES


def test_a_layer_that_is_missing_or_no_archive_is_a_broken_proof(layout: Layout, told: Callable[..., Any]) -> None:
    one, other = image(layout, [("x", b"1", {})]), image(layout, [("x", b"2", {})])
    blob = layout.path(layout.manifest(other)["layers"][0]["digest"])
    blob.write_bytes(b"no archive")
    with pytest.raises(TrustError, match="expected a tar archive"):
        told(one, other)
    blob.unlink()
    with pytest.raises(TrustError, match="missing"):
        told(one, other)


def test_kinds_follow_from_paths() -> None:
    assert kind_of("usr/lib/python3/x.pyc") == "pyc"
    assert kind_of("opt/x.log") == "log"
    assert kind_of("root/.cache/pip/x") == "cache"
    assert kind_of("etc/passwd") == "content"
