"""The golden image: one digest, whoever builds it, where, when, with which Python and whatever zlib it has."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.controller.golden_image import main

RECIPE = Path(__file__).with_name("golden_image.py")
GOLDEN = "sha256:7291763371f146cdc3d1a195b17e91e4413fef061afed7a64a60925d0e0a4967"
NOBODY = 65534
MINORS = ("3.11", "3.12", "3.13")


@cache
def pythons() -> dict[str, str]:
    """Interpreters on this machine that the controller supports, by minor version."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    places = [Path(sys.executable)]
    for minor in MINORS:
        places += [Path(f"/usr/bin/python{minor}"), Path(f"/usr/local/bin/python{minor}")]
        places += sorted(pyenv.glob(f"versions/{minor}.*/bin/python{minor}"))
    found: dict[str, str] = {}
    for place in places:
        if os.access(place, os.X_OK):
            said = subprocess.run(
                [place, "-c", "import sys; print(*sys.version_info[:2], sep='.')"], capture_output=True, text=True
            )
            found.setdefault(said.stdout.strip(), str(place))
    return found


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that anybody may write to, unlike a test's usual one."""
    with tempfile.TemporaryDirectory(prefix="golden-") as name:
        Path(name).chmod(0o777)
        (Path(name) / "packages").mkdir()
        found = find_spec("rfc8785")
        assert found is not None
        assert found.submodule_search_locations
        (Path(name) / "packages" / "rfc8785").symlink_to(found.submodule_search_locations[0])
        yield Path(name)


def built(
    folder: Path,
    *words: str,
    python: str = sys.executable,
    variables: Mapping[str, str] | None = None,
    umask: int = 0o022,
    user: int | None = None,
    place: str = "place",
) -> str:
    environment = {
        "PATH": os.defpath,
        "GOLDEN_PATH": str(folder / "packages"),
        "PYTHONDONTWRITEBYTECODE": "1",
        **(variables or {}),
    }
    done = subprocess.run(
        [python, "-W", "error", str(RECIPE), str(folder / place), *words],
        env=environment,
        umask=umask,
        user=user,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


VARIED: dict[str, tuple[Mapping[str, str], int, str]] = {
    "an umask that lets nobody else read": ({}, 0o077, "place"),
    "an umask that lets a group write": ({}, 0o002, "place"),
    "a seed of hashes": ({"PYTHONHASHSEED": "0"}, 0o022, "place"),
    "another seed of hashes": ({"PYTHONHASHSEED": "4242"}, 0o022, "place"),
    "a day ahead of Greenwich": ({"TZ": "Pacific/Kiritimati"}, 0o022, "place"),
    "Turkish, where I is not the capital of i": ({"LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8"}, 0o022, "place"),
    "no locale, no UTF-8": ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, 0o022, "place"),
    "another folder": ({}, 0o022, "else where/ž"),
    "another machine's idea of where builds are": (
        {"HOME": "/nowhere", "TMPDIR": "/tmp", "SOURCE_DATE_EPOCH": "1"},
        0o022,
        "place",
    ),
}


@pytest.mark.parametrize("circumstance", VARIED)
def test_the_golden_image_has_one_digest_under(circumstance: str, folder: Path) -> None:
    variables, umask, place = VARIED[circumstance]
    assert built(folder, variables=variables, umask=umask, place=place) == GOLDEN


def test_the_golden_image_has_one_digest_in_whatever_order_its_files_come(folder: Path) -> None:
    assert built(folder, "backwards") == GOLDEN


@pytest.mark.parametrize("words", [(), ("zlib",)])
def test_it_does_not_matter_who_unpacks_streams(folder: Path, words: tuple[str, ...]) -> None:
    assert built(folder, *words) == GOLDEN


def test_neither_a_clock_nor_a_compressor_is_asked(folder: Path) -> None:
    assert built(folder, "without") == GOLDEN


@pytest.mark.parametrize("minor", MINORS)
def test_every_supported_python_builds_the_golden_image(minor: str, folder: Path) -> None:
    if minor not in pythons():
        pytest.skip(f"Python {minor} is not on this machine")
    assert built(folder, "without", python=pythons()[minor]) == GOLDEN


def test_nobody_builds_the_golden_image_too(folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may become another user")
    places = [f"{top}/bin/python{minor}" for minor in MINORS for top in ("/usr", "/usr/local")]
    readable = [place for place in places if os.access(place, os.X_OK)]
    if not readable:
        pytest.skip("no Python of the system's own, which another user may run")
    assert built(folder, python=readable[0], user=NOBODY) == GOLDEN
    assert (folder / "place" / "store").stat().st_uid == NOBODY


def test_the_golden_image_is_built_in_this_process_as_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(tmp_path, [])
    assert capsys.readouterr().out.strip() == GOLDEN
