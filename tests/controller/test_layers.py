"""Wheels become layers as installers would unpack them; what no installer should unpack is refused with its reason."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from controller.adapters.attest.signing import sign_image
from controller.adapters.attest.statements import PROVENANCE, SIGNATURE
from controller.adapters.attest.verifying import verify_image
from controller.adapters.keys import ImageKey
from controller.adapters.oci.access import Access
from controller.adapters.oci.assembly import (
    BIG_WHEEL_BYTES,
    MOST_LAYERS,
    Base,
    Program,
    WheelLayers,
    assemble,
    assemble_index,
    based_on,
    room_for_wheels,
)
from controller.adapters.oci.layers import Stored, lay
from controller.adapters.oci.layout import INDEX, Layout
from controller.adapters.oci.mirrored import MirroredLayout
from controller.adapters.oci.registry import Registry
from controller.adapters.oci.splice import LARGEST_FILE_BYTES, MOST_ENTRIES, lay_wheels
from policies.errors import DesiredStateError, TrustError
from policies.terms.digest import Digest, digest_of
from tests.contracts.registry_server import registry_server, why_no_registry
from tests.controller.hand_made_zips import Entry, archive, deflated, stored
from tests.fakes.provenance import trust_in, where_from

SITE = "opt/venv/lib/python3.11/site-packages"
LINK, PIPE = 0o120777, 0o010644


def wheel(folder: Path, name: str, *entries: Entry) -> Path:
    return archive(folder / f"{name}-1.0-py3-none-any.whl", entries)


def read(layout: Layout, digest: str) -> dict[str, tuple[bytes, int]]:
    with tarfile.open(layout.path(digest), "r:gz") as opened:
        found = {}
        for member in opened:
            content = opened.extractfile(member)
            if content is not None:
                found[member.name] = (content.read(), member.mode)
        return found


def unpacked(folder: Path, *wheels: Path) -> dict[str, tuple[bytes, int]]:
    layout = Layout(folder / "store")
    return read(layout, lay_wheels(layout, wheels, SITE).descriptor["digest"])


def test_a_wheel_is_laid_out_as_installers_do(tmp_path: Path) -> None:
    made = wheel(
        tmp_path,
        "tool",
        deflated("tool/__init__.py", b"x = 1\n" * 50),
        stored("tool/run.sh", b"#!/bin/sh\n", mode=0o100755),
        stored("tool-1.0.data/purelib/tool/pure.py", b"pure"),
        stored("tool-1.0.data/platlib/tool/plat.py", b"plat"),
        stored("tool-1.0.data/headers/tool.h", b"int x;"),
        stored("tool-1.0.data/data/share/man/tool.1", b"man"),
        stored("tool-1.0.data/scripts/old", b"#!python -O\nprint(1)\n"),
        stored("tool-1.0.data/scripts/window", b"#!pythonw\nprint(1)\n"),
        stored("tool-1.0.data/scripts/short", b"#!python"),
        deflated("tool-1.0.data/scripts/program", b"\x7fELF" + bytes(100_000)),
        stored("tool-1.0.dist-info/RECORD", b"tool/__init__.py,,\n"),
    )
    found = unpacked(tmp_path, made)
    assert {path: mode for path, (_, mode) in found.items() if mode != 0o644} == {
        f"{SITE}/tool/run.sh": 0o755,
        "opt/venv/bin/old": 0o755,
        "opt/venv/bin/window": 0o755,
        "opt/venv/bin/short": 0o755,
        "opt/venv/bin/program": 0o755,
    }
    assert {path: content for path, (content, _) in found.items()} == {
        f"{SITE}/tool/__init__.py": b"x = 1\n" * 50,
        f"{SITE}/tool/run.sh": b"#!/bin/sh\n",
        f"{SITE}/tool/pure.py": b"pure",
        f"{SITE}/tool/plat.py": b"plat",
        "opt/venv/include/site/python3.11/tool/tool.h": b"int x;",
        "opt/venv/share/man/tool.1": b"man",
        "opt/venv/bin/old": b"#!/opt/venv/bin/python\nprint(1)\n",
        "opt/venv/bin/window": b"#!/opt/venv/bin/python\nprint(1)\n",
        "opt/venv/bin/short": b"#!/opt/venv/bin/python",
        "opt/venv/bin/program": b"\x7fELF" + bytes(100_000),
        f"{SITE}/tool-1.0.dist-info/RECORD": b"tool/__init__.py,,\n",
    }


def points(text: str) -> Entry:
    return stored("tool-1.0.dist-info/entry_points.txt", text.encode())


def test_scripts_of_entry_points_run(tmp_path: Path) -> None:
    text = """# a remark
[console_scripts]
tool = tool.main:Commands.start
Tool-2.0=tool.main:start [extra]
[gui_scripts]
tool-window = tool.main : start

[somebody.else]
tool = what:ever this is
alone
"""
    code = (
        b"import sys\n\n\nclass Commands:\n    @staticmethod\n    def start():\n        print(sys.argv[1:])\n        return 3\n"
    )
    code += b"\n\nstart = Commands.start\n"
    made = wheel(
        tmp_path,
        "tool",
        points(text),
        stored("tool/main.py", code),
        stored("tool/__init__.py", b""),
    )
    found = unpacked(tmp_path, made)
    scripts = {path.rpartition("/")[2]: item for path, item in found.items() if path.startswith("opt/venv/bin/")}
    assert set(scripts) == {"tool", "Tool-2.0", "tool-window"}
    for path, (content, _) in found.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    for name, (content, mode) in scripts.items():
        assert (content.splitlines()[0], mode) == (b"#!/opt/venv/bin/python", 0o755)
        done = subprocess.run(
            [sys.executable, tmp_path / "opt/venv/bin" / name, "a"],
            env={"PYTHONPATH": str(tmp_path / SITE)},
            capture_output=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (3, b"['a']\n"), done.stderr


def test_what_a_wheel_brings_for_a_script_of_its_entry_points_is_left_out(tmp_path: Path) -> None:
    made = wheel(tmp_path, "tool", points("[console_scripts]\ntool = tool:main\n"), stored("tool-1.0.data/scripts/tool", b"old"))
    assert b"from tool import main\n" in unpacked(tmp_path, made)["opt/venv/bin/tool"][0]


A = stored("a.py", b"a")
BAD: dict[str, tuple[Callable[[], list[Entry]], str]] = {
    "a name that climbs out": (lambda: [stored("../evil.py", b"")], "inside of the wheel"),
    "a name that climbs out from below": (lambda: [stored("a/../../b", b"")], "inside of the wheel"),
    "a name that climbs out of a scheme": (lambda: [stored("a-1.0.data/data/../../../etc/passwd", b"")], "inside of the wheel"),
    "an absolute name": (lambda: [stored("/etc/passwd", b"")], "inside of the wheel"),
    "an absolute name below a scheme": (lambda: [stored("a-1.0.data/data//etc/passwd", b"")], "inside of the wheel"),
    "a name of Windows": (lambda: [stored("a\\b.py", b"")], "inside of the wheel"),
    "a name with NUL in it": (lambda: [stored("a.py\0.txt", b"")], "inside of the wheel"),
    "a name that says nothing": (lambda: [stored("a/./b.py", b"")], "inside of the wheel"),
    "a folder that climbs out": (lambda: [stored("../evil/", b"")], "inside of the wheel"),
    "a whiteout": (lambda: [stored("a/.wh.b.py", b"")], "hide other layers' files"),
    "an opaque whiteout": (lambda: [stored("a/.wh..wh..opq", b"")], "hide other layers' files"),
    "a whiteout as a folder": (lambda: [stored(".wh.a/b.py", b"")], "hide other layers' files"),
    "a name that no disk takes": (lambda: [stored("a" * 256, b"")], "at most 255 bytes"),
    "a path that no disk takes": (lambda: [stored("/".join(["abcdefghi"] * 103), b"")], "at most 255 bytes"),
    "a file twice": (lambda: [A, A], "each file once"),
    "a file twice by way of a scheme": (lambda: [A, stored("a-1.0.data/purelib/a.py", b"a")], "each file once"),
    "a file that is a folder": (lambda: [stored("a", b""), stored("a/b.py", b"")], "which is a file of"),
    "a link": (lambda: [stored("a", b"/etc", mode=LINK)], "a plain file"),
    "a pipe": (lambda: [stored("a", b"", mode=PIPE)], "a plain file"),
    "an encrypted entry": (lambda: [replace(A, flags=0x801)], "stored or deflated"),
    "a patch": (lambda: [replace(A, flags=0x820)], "stored or deflated"),
    "another compressor": (lambda: [replace(A, method=14)], "stored or deflated"),
    "another scheme": (lambda: [stored("a-1.0.data/system/x", b"")], "expected purelib, platlib, scripts"),
    "the environment's settings": (lambda: [stored("a-1.0.data/data/pyvenv.cfg", b"")], "the environment's own"),
    "the environment's Python": (lambda: [stored("a-1.0.data/scripts/python3.11", b"")], "the environment's own"),
    "a script in place of Python": (lambda: [points("[console_scripts]\npython = a:b\n")], "script = module:function"),
    "a script elsewhere": (lambda: [points("[console_scripts]\n../../x = a:b\n")], "script = module:function"),
    "a script that is more than a call": (
        lambda: [points("[console_scripts]\nx = os:system('x')\n")],
        "script = module:function",
    ),
    "a script with lines of its own": (lambda: [points("[console_scripts]\nx = a:b\n  import c\n")], "script = module:function"),
    "a script without a function": (lambda: [points("[console_scripts]\nx = a\n")], "script = module:function"),
    "entry points in no language": (lambda: [points("x = 1\n")], "expected entry points"),
    "entry points of two packages": (
        lambda: [points(""), stored("b-1.0.dist-info/entry_points.txt", b"")],
        "one entry_points.txt",
    ),
    "a file that is too large": (lambda: [replace(A, size=LARGEST_FILE_BYTES + 1)], "at most 2 GiB"),
    "a bomb that says so": (
        lambda: [replace(stored(f"{number}", b"a"), size=200 << 20) for number in range(2)],
        "unpack to at most 256 MiB",
    ),
    "more files than any package has": (
        lambda: [stored(f"{number}", b"") for number in range(MOST_ENTRIES + 1)],
        "at most 100000 files",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_a_wheel_is_refused_that_has(what: str, tmp_path: Path) -> None:
    entries, words = BAD[what]
    layout = Layout(tmp_path / "store")
    with pytest.raises(DesiredStateError, match=words) as caught:
        lay_wheels(layout, [wheel(tmp_path, "a", *entries())], SITE)
    assert caught.value.message.startswith("a-1.0-py3-none-any.whl: ")
    assert left(layout) == []


BOMB = deflated("bomb", bytes(64 << 20))
DAMAGED: dict[str, tuple[Callable[[], list[Entry]], str]] = {
    "more in an entry than it says": (lambda: [replace(BOMB, size=1000)], "more than 1000 bytes"),
    "less in an entry than it says": (lambda: [replace(deflated("a", b"abc"), size=4)], "3 of 4 bytes"),
    "another checksum": (lambda: [replace(deflated("a", b"abc"), crc=1)], "another checksum"),
    "another checksum of what is not compressed": (lambda: [replace(A, crc=1)], "another size or checksum"),
    "another size of what is not compressed": (lambda: [replace(A, size=2)], "another size or checksum"),
    "a stream that goes on": (
        lambda: [replace(deflated("a", b"abc"), packed=deflated("a", b"abc").packed + b"x")],
        "bytes after its end",
    ),
    "a stream that does not end": (
        lambda: [replace(deflated("a", b"abc" * 99), packed=deflated("a", b"abc" * 99).packed[:-1], size=297)],
        "bytes|a stream without an end",
    ),
    "no stream": (lambda: [replace(A, method=8)], "a damaged stream|of 1 bytes"),
    "another name in the entry": (
        lambda: [stored("a.py", b"a", local_name="b.py")],
        "an entry that its directory does not describe",
    ),
    "the same bytes twice": (
        lambda: [A, replace(stored("b.py", b"a"), shares=0)],
        "an entry that its directory does not describe",
    ),
    "bytes of the next entry": (
        lambda: [replace(stored("a", b"a"), packed_size=60, size=60), A],
        "its directory does not describe",
    ),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_wheel_is_damaged_that_has(what: str, tmp_path: Path) -> None:
    entries, words = DAMAGED[what]
    layout = Layout(tmp_path / "store")
    with pytest.raises(TrustError, match=words) as caught:
        lay_wheels(layout, [wheel(tmp_path, "a", *entries())], SITE)
    assert caught.value.message.startswith("a-1.0-py3-none-any.whl: ")
    assert left(layout) == []


def left(layout: Layout) -> list[str]:
    return [path.name for path in layout.root.iterdir() if path.name.startswith("new-")]


def test_what_is_no_archive_is_damaged(tmp_path: Path) -> None:
    for content in (b"", b"a wheel", b"PK\x05\x06", b"PK\x03\x04" + bytes(100)):
        (tmp_path / "a-1.0-py3-none-any.whl").write_bytes(content)
        with pytest.raises(TrustError, match="expected a wheel"):
            unpacked(tmp_path, tmp_path / "a-1.0-py3-none-any.whl")


def test_a_list_of_files_that_would_fill_the_memory_is_not_read(tmp_path: Path) -> None:
    made = wheel(tmp_path, "a", A)
    whole = bytearray(made.read_bytes())
    whole[-10:-6] = (17 << 20).to_bytes(4, "little")
    made.write_bytes(bytes(whole))
    with pytest.raises(DesiredStateError, match="list of files of at most 16 MiB"):
        unpacked(tmp_path, made)


def test_something_before_an_archive_is_passed_over(tmp_path: Path) -> None:
    made = archive(tmp_path / "a-1.0-py3-none-any.whl", [A, deflated("b.py", b"b" * 99)], before=b"#!/bin/sh\n" * 9)
    assert unpacked(tmp_path, made)[f"{SITE}/b.py"][0] == b"b" * 99


def test_names_that_differ_in_case_alone_are_two_files(tmp_path: Path) -> None:
    found = unpacked(tmp_path, wheel(tmp_path, "a", stored("a/x.py", b"1"), stored("A/x.py", b"2"), stored("a/X.py", b"3")))
    assert [content for content, _ in found.values()] == [b"2", b"3", b"1"]


def forged(content: bytes, like: bytes) -> bytes:
    """Content with four bytes appended, so that it has the CRC-32 of other content."""
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = (value >> 1) ^ (0xEDB88320 if value & 1 else 0)
        table.append(value)
    by_top = {value >> 24: byte for byte, value in enumerate(table)}
    state = zlib.crc32(like) ^ 0xFFFFFFFF
    for _ in range(4):
        byte = by_top[state >> 24]
        state = ((state ^ table[byte]) << 8 & 0xFFFFFFFF) | byte
    return content + (state ^ zlib.crc32(content) ^ 0xFFFFFFFF).to_bytes(4, "little")


def test_two_files_of_one_name_must_have_equal_bytes_and_not_just_an_equal_checksum(tmp_path: Path) -> None:
    good = b"import safe  # 1234"
    evil = forged(b"import evil  # ", good)
    assert (len(evil), zlib.crc32(evil)) == (len(good), zlib.crc32(good))
    assert evil != good
    for other in (stored("x.py", evil), deflated("x.py", evil)):
        with pytest.raises(
            DesiredStateError, match=r"x\.py comes from a-1\.0-py3-none-any\.whl too, with other bytes; leave one"
        ):
            unpacked(tmp_path, wheel(tmp_path, "a", stored("x.py", good)), wheel(tmp_path, "b", other))
    same = unpacked(tmp_path, wheel(tmp_path, "a", stored("x.py", good)), wheel(tmp_path, "b", deflated("x.py", good)))
    assert same == {f"{SITE}/x.py": (good, 0o644)}


def test_packages_that_share_a_folder_lie_side_by_side(tmp_path: Path) -> None:
    one = wheel(tmp_path, "a", stored("space/__init__.py", b""), stored("space/a/__init__.py", b"a"))
    other = wheel(tmp_path, "b", stored("space/__init__.py", b""), stored("space/b/__init__.py", b"b"))
    assert [path.removeprefix(SITE) for path in unpacked(tmp_path, one, other)] == [
        "/space/__init__.py",
        "/space/a/__init__.py",
        "/space/b/__init__.py",
    ]


def test_a_file_of_one_wheel_is_no_folder_of_another(tmp_path: Path) -> None:
    one, other = wheel(tmp_path, "a", stored("x", b"")), wheel(tmp_path, "b", stored("x/y/z.py", b""))
    for both in ((one, other), (other, one)):
        with pytest.raises(
            DesiredStateError, match=r"b-1\.0-py3-none-any\.whl: .*/x/y/z\.py lies in .*/x, which is a file of a-1\.0"
        ):
            unpacked(tmp_path, *both)


@pytest.mark.parametrize(
    ("files", "links", "words"),
    [
        ({"a/b": Stored(data=b"")}, {"a": "/etc"}, "got a file and a folder"),
        ({"a": Stored(data=b""), "a/b": Stored(data=b"")}, {}, "got a file and a folder"),
        ({"a": Stored(data=b"")}, {"a": "b"}, "got a file and a link"),
        ({}, {"a": "/etc", "a/b": "c"}, "got a file and a folder"),
    ],
)
def test_nothing_lies_below_a_link_or_a_file(files: dict[str, Stored], links: dict[str, str], words: str, tmp_path: Path) -> None:
    with pytest.raises(DesiredStateError, match=words):
        lay(Layout(tmp_path / "store"), files, links)


class Wheels:
    """Big wheels and small ones, the layers of which are laid with a memory."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.layout = folder, Layout(folder / "store")
        self.layers = WheelLayers(self.layout, folder, site=SITE)

    def big(self, name: str, extra: int = 0) -> Path:
        return wheel(self.folder / "wheels", name, stored(f"{name}/data.bin", bytes(BIG_WHEEL_BYTES + extra)))

    def small(self, name: str, content: bytes = b"1") -> Path:
        return wheel(self.folder / "wheels", name, stored(f"{name}.py", content))


def test_big_wheels_have_layers_of_their_own_in_whatever_order_they_come(tmp_path: Path) -> None:
    wheels = Wheels(tmp_path)
    given = [wheels.big("b"), wheels.small("a"), wheels.big("c"), wheels.small("d")]
    laid = wheels.layers.laid(given)
    assert [len(read(wheels.layout, layer.descriptor["digest"])) for layer in laid] == [1, 1, 2]
    (tmp_path / "elsewhere").mkdir()
    assert WheelLayers(wheels.layout, tmp_path / "elsewhere", site=SITE).laid(given[::-1]) == laid


def test_of_too_many_big_wheels_the_smallest_share_the_last_layer(tmp_path: Path) -> None:
    wheels = Wheels(tmp_path)
    given = [wheels.big(f"w{number}", extra=number % 3) for number in range(6)] + [wheels.small("s")]
    for most, expected in ((7, [1] * 6 + [1]), (6, [1] * 5 + [2]), (3, [1, 1, 5]), (1, [7])):
        laid = wheels.layers.laid(given, most=most)
        assert [len(read(wheels.layout, layer.descriptor["digest"])) for layer in laid] == expected
        assert WheelLayers(wheels.layout, tmp_path, site=SITE).laid(given[::-1], most=most) == laid
    alone = [next(iter(read(wheels.layout, layer.descriptor["digest"]))) for layer in wheels.layers.laid(given, most=3)[:2]]
    assert alone == [f"{SITE}/w2/data.bin", f"{SITE}/w5/data.bin"]
    assert len(wheels.layers.laid(given[:6], most=6)) == 6


def test_wheels_are_looked_at_side_by_side_whatever_was_laid_before(tmp_path: Path) -> None:
    wheels = Wheels(tmp_path)
    wheels.layers.laid([wheels.big("b"), wheels.small("a")])
    clash = wheel(tmp_path / "wheels", "clash", stored("b/data.bin", b"other"))
    with pytest.raises(DesiredStateError, match="too, with other bytes"):
        wheels.layers.laid([wheels.big("b"), clash])


def test_layers_that_were_laid_are_taken_again_without_a_look_at_the_wheels(tmp_path: Path) -> None:
    wheels = Wheels(tmp_path)
    given = [wheels.big("b"), wheels.small("a")]
    laid = wheels.layers.laid(given)
    blobs = {layer.descriptor["digest"]: wheels.layout.path(layer.descriptor["digest"]) for layer in laid}
    before = {digest: path.stat().st_ino for digest, path in blobs.items()}
    assert WheelLayers(wheels.layout, tmp_path, site=SITE).laid(given) == laid
    assert {digest: path.stat().st_ino for digest, path in blobs.items()} == before
    blobs[laid[0].descriptor["digest"]].unlink()
    assert wheels.layers.laid(given) == laid
    assert blobs[laid[1].descriptor["digest"]].stat().st_ino == before[laid[1].descriptor["digest"]]
    wheels.small("a", b"2")
    assert wheels.layers.laid(given)[1] != laid[1]


def test_a_file_is_read_again_once_it_was_written_to_even_with_its_old_times(tmp_path: Path) -> None:
    layers = WheelLayers(Layout(tmp_path / "store"), tmp_path)
    path = tmp_path / "a.whl"
    path.write_bytes(b"1")
    assert layers.digest(path) == digest_of(b"1")
    status = path.stat()
    path.write_bytes(b"2")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert layers.digest(path) == digest_of(b"2")


@pytest.mark.parametrize("memory", [b"", b"[]", b"{", b"1", b'{"a": 1}'])
def test_what_was_read_is_remembered_by_the_next_process_and_a_broken_memory_is_none(memory: bytes, tmp_path: Path) -> None:
    wheels = Wheels(tmp_path)
    given = [wheels.small("a")]
    laid = wheels.layers.laid(given)
    kept = tmp_path / "digests.json"
    assert list(json.loads(kept.read_bytes())) == [str(given[0])]
    kept.write_bytes(memory)
    assert WheelLayers(wheels.layout, tmp_path, site=SITE).laid(given) == laid
    assert list(json.loads(kept.read_bytes()))[-1] == str(given[0])


def base(layers: int) -> Base:
    made = digest_of(b"base")
    return Base(
        reference=f"h.example/base@{made}",
        digest=made,
        config={"os": "linux", "architecture": "arm64", "variant": "v8"},
        layers=({"mediaType": "x", "digest": made, "size": 1},) * layers,
        diff_ids=(str(made),) * layers,
        programs=(),
        python="/usr/bin/python3.11",
        version="3.11",
    )


@pytest.mark.parametrize("below", [0, 1, 20, 60, 95, 200])
def test_wheels_and_their_bytecode_find_room_beside_a_base(below: int) -> None:
    room = room_for_wheels(base(below))
    assert room >= 1
    assert below + 2 * room + 4 <= MOST_LAYERS or room == 1
    assert room_for_wheels(None) == 40


def test_an_image_with_too_many_layers_is_refused(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "store")
    laid = lay(layout, {"a": Stored(data=b"")})
    program = Program(entrypoint=("x",))
    assemble(layout, [laid] * 40, program, base=base(60), annotations={})
    with pytest.raises(DesiredStateError, match="expected at most 100 layers, got 101; take a base with fewer"):
        assemble(layout, [laid] * 41, program, base=base(60), annotations={})


def image(layout: Layout, platform: str) -> Digest:
    laid = lay(layout, {f"app/{platform}": Stored(data=platform.encode())})
    return assemble(layout, [laid], Program(entrypoint=("x",)), platform=platform, annotations=based_on(None))


def test_an_image_says_what_it_runs_on(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "store")

    def said(digest: Digest) -> dict[str, str]:
        config = json.loads(layout.get(layout.manifest(digest)["config"]["digest"]))
        return {key: config[key] for key in ("os", "architecture", "variant") if key in config}

    assert said(image(layout, "linux/amd64")) == {"os": "linux", "architecture": "amd64"}
    assert said(image(layout, "linux/arm64/v8")) == {"os": "linux", "architecture": "arm64", "variant": "v8"}
    built = assemble(layout, [], Program(entrypoint=("x",)), base=base(1), annotations={})
    assert said(built) == {"os": "linux", "architecture": "arm64", "variant": "v8"}


def test_an_index_lists_an_image_for_each_platform_in_one_order(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "store")
    images = {platform: image(layout, platform) for platform in ("linux/arm64/v8", "linux/amd64")}
    notes = {"org.opencontainers.image.base.name": "host"}
    digest = assemble_index(layout, images, annotations=notes)
    assert assemble_index(layout, dict(reversed(images.items())), annotations=notes) == digest
    index = layout.manifest(digest)
    assert (index["schemaVersion"], index["mediaType"], index["annotations"]) == (2, INDEX, notes)
    assert [(item["digest"], item["platform"]) for item in index["manifests"]] == [
        (images["linux/amd64"], {"os": "linux", "architecture": "amd64"}),
        (images["linux/arm64/v8"], {"os": "linux", "architecture": "arm64", "variant": "v8"}),
    ]
    assert all(item["size"] == layout.path(item["digest"]).stat().st_size for item in index["manifests"])


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with registry_server(tmp_path / "registry") as server:
        access = Access(repository=f"{server.address}/team/r", unsafe_plain_http=True)
        with closing(Registry(access)) as opened:
            yield opened


@pytest.mark.skipif(bool(why_no_registry()), reason=why_no_registry() or "there is one")
def test_an_index_is_pushed_with_all_of_its_images(tmp_path: Path, registry: Registry) -> None:
    layout = MirroredLayout(tmp_path / "store", registry)
    images = {platform: image(layout, platform) for platform in ("linux/arm64", "linux/amd64")}
    digest = assemble_index(layout, images)
    layout.push(digest, tags=("both",))
    assert registry.resolve("both") == digest
    elsewhere = MirroredLayout(tmp_path / "elsewhere", registry)
    for item in elsewhere.manifest(digest)["manifests"]:
        elsewhere.check_all(item["digest"])
        assert {elsewhere.path(blob).is_file() for blob in elsewhere.named(item["digest"])} == {True}


@pytest.mark.skipif(bool(why_no_registry()), reason=why_no_registry() or "there is one")
def test_an_index_is_signed_and_verified_with_its_images(tmp_path: Path, registry: Registry) -> None:
    layout = MirroredLayout(tmp_path / "store", registry)
    key = ImageKey.generate(tmp_path / "key.pem")
    images = {platform: image(layout, platform) for platform in ("linux/arm64", "linux/amd64")}
    digest = assemble_index(layout, images)
    sign_image(layout, digest, key, where_from())
    elsewhere = MirroredLayout(tmp_path / "elsewhere", registry)
    assert set(verify_image(elsewhere, digest, trust_in(key))) == {SIGNATURE, PROVENANCE}
    layer = elsewhere.manifest(images["linux/arm64"])["layers"][0]["digest"]
    # What is damaged here is fetched again; what is damaged in both places is not trusted.
    elsewhere.path(layer).write_bytes(b"touched")
    assert set(verify_image(elsewhere, digest, trust_in(key))) == {SIGNATURE, PROVENANCE}
    assert digest_of(elsewhere.path(layer).read_bytes()) == layer
    alone = Layout(tmp_path / "store")
    alone.path(layer).write_bytes(b"touched")
    with pytest.raises(TrustError, match="expected these bytes"):
        verify_image(alone, digest, trust_in(key))


def test_a_second_service_on_the_same_stack_shares_its_wheels(tmp_path: Path) -> None:
    wheels = Wheels(tmp_path)
    given = [wheels.big(name) for name in "abc"] + [wheels.small(name) for name in "de"]

    def service(source: bytes) -> dict[str, int]:
        layers = [*wheels.layers.laid(given), lay(wheels.layout, {"app/app.py": Stored(data=source)})]
        digest = assemble(wheels.layout, layers, Program(entrypoint=("x",)), annotations={})
        return {item["digest"]: item["size"] for item in wheels.layout.manifest(digest)["layers"]}

    one, other = service(b"print(1)\n"), service(b"print(2)\n" * 100)
    shared = sum(size for digest, size in other.items() if digest in one)
    assert shared >= 0.95 * sum(other.values())
    assert len(other.keys() - one.keys()) == 1


MEASURE = """
import re, sys
from pathlib import Path
from controller.adapters.oci.assembly import Program, WheelLayers, assemble
from controller.adapters.oci.layout import Layout
folder = Path(sys.argv[1])
layout = Layout(folder / "store")
layers = WheelLayers(layout, folder).laid([folder / name for name in sys.argv[2:]])
assemble(layout, layers, Program(entrypoint=("x",)), annotations={})
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


def test_large_wheels_take_little_memory(tmp_path: Path) -> None:
    names = [wheel(tmp_path, "stored", stored("stored.bin", os.urandom(1 << 20) * 200)).name]
    pad = stored("pad", os.urandom(3 << 20))
    names.append(wheel(tmp_path, "deflated", deflated("deflated.bin", bytes(250 << 20), level=1), pad).name)
    done = subprocess.run([sys.executable, "-c", MEASURE, tmp_path, *names], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 150 << 10, "expected less than 150 MB at the most"
