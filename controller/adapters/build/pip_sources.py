"""A pip that fetches source distributions and goes no further. It stands alone: it is run, and never imported.

pip unpacks what it fetched and runs the setup code in it, only to learn what it needs. This one ends when it has checked a file's
hash and is about to unpack it: it writes down which file that is. And it can start no other program.
"""

from __future__ import annotations

import os
import runpy
import sys
import tarfile
import zipfile
from typing import Any, NoReturn

FETCHED = 75
"""Exit code of a pip that has a file, and its hash is right."""
_PROGRAMS = ("subprocess.Popen", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "os.fork", "os.forkpty", "pty.spawn")


def stop_at(note: str) -> None:
    """Make this process end when it opens an archive."""

    def ended(archive: Any = None, *_: object, **__: object) -> NoReturn:
        with open(note, "w", encoding="utf-8") as file:
            file.write(os.path.abspath(os.fspath(getattr(archive, "name", archive))))
        sys.stderr.flush()
        os._exit(FETCHED)

    unzip = zipfile.ZipFile.__init__

    def zip_ended(box: zipfile.ZipFile, archive: Any = None, *more: Any, **named: Any) -> None:
        # Python itself looks for modules in archives of its path.
        if isinstance(archive, str) and archive in sys.path:
            return unzip(box, archive, *more, **named)
        ended(archive)

    def refuse(event: str, _: tuple[object, ...]) -> None:
        if event in _PROGRAMS:
            # pip asks a few programs for its user agent, and does without those that are not there.
            raise FileNotFoundError(event)

    tarfile.open = ended  # type: ignore[assignment]
    zipfile.ZipFile.__init__ = zip_ended  # type: ignore[method-assign,assignment]
    sys.addaudithook(refuse)


if __name__ == "__main__":
    stop_at(sys.argv[1])
    sys.argv = ["pip", *sys.argv[2:]]
    runpy.run_module("pip", run_name="__main__", alter_sys=True)
