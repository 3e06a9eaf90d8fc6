"""The golden image: three wheels, a little source, no base. Plain code, for any Python that can run the controller.

Usage: python golden_image.py FOLDER [without] [backwards] [zlib]; prints its digest. `without`: neither clock nor compressor
answers. `zlib`: streams are unpacked by zlib, as where there is no zlib-ng.
"""

from __future__ import annotations

import os
import sys
import time
import zlib
from pathlib import Path

SITE = "opt/venv/lib/python3.11/site-packages"
DEFLATED = bytes.fromhex("4b494d5348d3d0b4e2520082a2d492d2a23c0543ae9451d1412e0a00")
"""A stream that was compressed once, of `TEXT`: no compressor of today has a say in it."""


def main(folder: Path, words: list[str]) -> None:
    """Build it and print its digest."""
    if "zlib" in words:
        sys.modules["zlib_ng"] = None  # type: ignore[assignment]  # as Python has it: it cannot be imported
    from controller.adapters.oci.assembly import Program, WheelLayers, assemble, based_on, venv
    from controller.adapters.oci.layers import Stored, lay
    from controller.adapters.oci.layout import Layout

    if "without" in words:
        _forbid()
    layout = Layout(folder / "store")
    wheels = made(folder / "wheels")
    files, links = venv(None, version="3.11")
    source = {
        "app/Model.py": Stored(data=b"class Model:\n    pass\n"),
        "app/run": Stored(data=b"#!/bin/sh\n", executable=True),
        "app/\u017elu\u0165ou\u010dk\u00fd/\u0131.txt": Stored(data="\u0130\u0131\n".encode()),
        "app/" + "long/" * 25 + "name": Stored(data=b""),
        **files,
    }
    links |= {"app/link": "Model.py"}
    if "backwards" in words:
        wheels.reverse()
        source, links = dict(reversed(source.items())), dict(reversed(links.items()))
    layers = [*WheelLayers(layout, folder, site=SITE).laid(wheels), lay(layout, source, links)]
    program = Program(entrypoint=("/opt/venv/bin/python", "-m", "myelin.serve"), env={"MODEL_NAME": "Model"})
    print(assemble(layout, layers, program, platform="linux/amd64", annotations=based_on(None)))


def made(folder: Path) -> list[Path]:
    """Its wheels: one that is big enough for a layer of its own, two that share one."""
    from tests.controller.hand_made_zips import Entry, archive, stored

    text = Entry(name="small/text.py", packed=DEFLATED, size=len(TEXT), crc=zlib.crc32(TEXT))
    record = "small/text.py,,\nsmall-1.0.dist-info/RECORD,,\n"
    points = "[console_scripts]\nsmall-tool = small.text:main\n"
    return [
        archive(
            folder / "big-1.0-py3-none-any.whl",
            [stored("big/table.bin", bytes(range(256)) * 3000), stored("big/__init__.py", b"")],
        ),
        archive(
            folder / "small-1.0-py3-none-any.whl",
            [
                text,
                stored("small-1.0.dist-info/entry_points.txt", points.encode()),
                stored("small-1.0.dist-info/RECORD", record.encode()),
            ],
        ),
        archive(
            folder / "tool-2.0-py3-none-any.whl",
            [
                stored("tool-2.0.data/scripts/tool", b"#!python\nprint(2)\n"),
                stored("tool-2.0.data/data/share/tool.txt", b"t\n"),
                stored("tool-2.0.data/purelib/tool/__init__.py", b"", mode=0o100755),
            ],
        ),
    ]


TEXT = b"def f():\n    return 1\n" * 20


def _forbid() -> None:
    def refused(*_: object, **__: object) -> None:
        raise AssertionError("neither the clock nor a compressor has a say in an image")

    for name in ("time", "time_ns", "localtime", "gmtime", "ctime"):
        setattr(time, name, refused)
    for name in ("compress", "compressobj"):
        setattr(zlib, name, refused)


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[2]), *filter(None, os.environ.get("GOLDEN_PATH", "").split(os.pathsep))]
    main(Path(sys.argv[1]), sys.argv[2:])
