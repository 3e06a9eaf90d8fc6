"""Layers: what goes in comes out, and nothing but what goes in has a say in the bytes."""

from __future__ import annotations

import gzip
import io
import tarfile
import tempfile
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from controller.adapters.oci.inflating import Damaged, inflated
from controller.adapters.oci.layers import Stored, lay, parents
from controller.adapters.oci.layout import Layout
from controller.adapters.oci.splice import lay_wheels
from controller.adapters.oci.tar import BLOCK_BYTES, EPOCH, TarWriter, header
from policies.errors import ControllerError, TrustError
from tests.controller.hand_made_zips import Entry, archive, deflated, stored
from tests.properties import strategies  # noqa: F401  its settings

SITE = "opt/venv/lib/python3.11/site-packages"
parts = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/\\"), min_size=1, max_size=12).filter(
    lambda part: part not in (".", "..") and not part.startswith(".wh.") and len(part.encode()) < 200
)
paths = st.lists(parts, min_size=1, max_size=4).map("/".join)
contents = st.one_of(st.binary(max_size=300), st.binary(min_size=1, max_size=40).map(lambda data: data * 3000))


@st.composite
def trees(draw: st.DrawFn) -> dict[str, bytes]:
    """Files none of which lies in another one."""
    found = draw(st.dictionaries(paths, contents, max_size=6))
    assume(not any(parent in found for path in found for parent in parents(path)))
    assume(not any(path.split("/")[0].endswith((".data", ".dist-info")) for path in found))
    return found


def read(layout: Layout, digest: str) -> dict[str, bytes]:
    with tarfile.open(layout.path(digest), "r:gz") as opened:
        return {member.name: (opened.extractfile(member) or io.BytesIO()).read() for member in opened if member.isfile()}


@given(trees(), st.randoms())
def test_files_come_back_whatever_their_order(files: dict[str, bytes], chance: object) -> None:
    with tempfile.TemporaryDirectory() as place:
        layout = Layout(Path(place))
        given_files = {path: Stored(data=data) for path, data in files.items()}
        laid = lay(layout, given_files)
        shuffled = list(given_files.items())
        chance.shuffle(shuffled)  # type: ignore[attr-defined]
        assert lay(layout, dict(shuffled)) == laid
        assert read(layout, laid.descriptor["digest"]) == files


@given(st.lists(st.binary(max_size=400), max_size=6), st.sampled_from([1, 7, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1]))
@example([b"x" * BLOCK_BYTES], BLOCK_BYTES)
@example([b"x" * (2 * BLOCK_BYTES)], 1)
def test_how_bytes_are_handed_over_has_no_say(pieces: list[bytes], step: int) -> None:
    whole = b"".join(pieces)
    written = []
    for given_pieces in ([whole], pieces, [whole[start : start + step] for start in range(0, len(whole), step)][:3000]):
        if b"".join(given_pieces) != whole:
            continue
        out = io.BytesIO()
        writer = TarWriter(out)
        for piece in given_pieces:
            writer.stored(piece)
        written.append((writer.end(), out.getvalue()))
    assert all(item == written[0] for item in written)
    assert gzip.decompress(written[0][1]) == whole + b"\0" * 1024


@given(trees(), st.data())
def test_a_wheel_comes_back_however_it_was_packed(files: dict[str, bytes], data: st.DataObject) -> None:
    def entry(path: str, content: bytes) -> Entry:
        level = data.draw(st.integers(-1, 9))
        return stored(path, content) if level < 0 else deflated(path, content, level=level)

    with tempfile.TemporaryDirectory() as place:
        layout = Layout(Path(place) / "store")
        wheel = archive(Path(place) / "a-1.0-py3-none-any.whl", [entry(path, content) for path, content in files.items()])
        laid = lay_wheels(layout, [wheel], SITE)
        assert read(layout, laid.descriptor["digest"]) == {f"{SITE}/{path}": content for path, content in files.items()}
        # The content has a name that the packing has no say in.
        assert laid.diff_id == lay(layout, {f"{SITE}/{path}": Stored(data=item) for path, item in files.items()}).diff_id


@given(
    paths | st.text("ab/", min_size=95, max_size=105),
    st.integers(0, 2**40),
    st.sampled_from([0o644, 0o755, 0o777]),
    st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE]),
    st.just("") | paths | st.text("ab", min_size=95, max_size=105),
)
def test_a_header_is_what_everybody_elses_would_be(path: str, size: int, mode: int, kind: bytes, target: str) -> None:
    path = path.rstrip("/") + "/" if kind == tarfile.DIRTYPE else path
    info = tarfile.TarInfo(path)
    info.size, info.mode, info.mtime, info.type, info.linkname = size, mode, EPOCH, kind, target
    assert header(path, size, mode, kind, target) == info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


@given(st.binary(max_size=5000), st.data())
def test_a_stream_holds_what_was_said_or_nothing(content: bytes, data: st.DataObject) -> None:
    packed = deflated("x", content).packed
    at = data.draw(st.integers(0, len(packed) - 1))
    bad = packed[:at] + bytes([packed[at] ^ data.draw(st.integers(1, 255))]) + packed[at + 1 :]
    step = data.draw(st.integers(1, len(packed)))

    def taken(stream: bytes) -> bytes:
        blocks = [stream[start : start + step] for start in range(0, len(stream), step)]
        return b"".join(inflated(blocks, size=len(content), crc=zlib.crc32(content)))

    assert taken(packed) == content
    for stream in (bad, packed[:at], packed + b"x"):
        try:
            assert taken(stream) == content  # a bit of DEFLATE that nobody reads
        except Damaged:
            continue


@given(st.binary(max_size=3000) | st.text("ab", max_size=3000).map(str.encode), st.data())
def test_zlib_ng_and_zlib_say_the_same_of_a_stream(content: bytes, data: st.DataObject) -> None:
    quick = pytest.importorskip("zlib_ng.zlib_ng", reason="zlib-ng has no wheel for this machine")
    stream = bytearray(deflated("x", content).packed)
    for _ in range(data.draw(st.integers(0, 2))):
        stream[data.draw(st.integers(0, len(stream) - 1))] ^= data.draw(st.integers(1, 255))

    def said(library: Any, error: type[Exception]) -> bytes | None:
        unpacker = library.decompressobj(-15)
        try:
            plain = unpacker.decompress(bytes(stream), 100_000)
        except error:
            return None
        return bytes(plain) if unpacker.eof and not unpacker.unused_data else None

    assert said(quick, quick.error) == said(zlib, zlib.error)


@given(trees(), st.data())
def test_a_damaged_wheel_is_refused_or_gives_the_same_content(files: dict[str, bytes], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as place:
        layout = Layout(Path(place) / "store")
        wheel = archive(Path(place) / "a-1.0-py3-none-any.whl", [deflated(path, item) for path, item in files.items()])
        whole = wheel.read_bytes()
        at = data.draw(st.integers(0, len(whole) - 1))
        wheel.write_bytes(whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :])
        try:
            laid = lay_wheels(layout, [wheel], SITE)
        except ControllerError:
            return
        # What it was about, names, modes and dates in the directory, is proved by the wheel's own digest.
        assert set(read(layout, laid.descriptor["digest"]).values()) <= {*files.values(), b""}


@pytest.mark.parametrize("cut", [1, 5, 20, 40])
def test_a_wheel_without_its_end_is_refused(tmp_path: Path, cut: int) -> None:
    wheel = archive(tmp_path / "a-1.0-py3-none-any.whl", [deflated("a.py", b"a" * 100)])
    wheel.write_bytes(wheel.read_bytes()[:-cut])
    with pytest.raises(TrustError, match="expected a wheel"):
        lay_wheels(Layout(tmp_path / "store"), [wheel], SITE)
