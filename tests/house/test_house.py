"""The house rules that a machine can check."""

import ast
import importlib.util
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("policies", "reconcilers", "controller")
SPOKEN_EVERYWHERE = {"pydantic", "typer"}
"""What we write documents and commands in."""
CORE = {"hpbandster", "ConfigSpace", "numpy", "scipy"}
"""One door for all: they make one sampler."""
TWO_DOORS = {
    # One reads and writes signatures of commits, which each answer does; the other asks servers, and verifies bundles.
    "sigstore": {"controller/adapters/signatures/gitsign.py", "controller/adapters/sigstore/keyless.py"},
    # Keys that sign and verify are wanted everywhere; certificates, of which an authority is made, only where one is.
    "cryptography": {"controller/adapters/keys.py", "controller/adapters/sigstore/authority.py"},
}
"""Packages with two doors that have nothing in common: each is small, and no type of the package goes through either."""


def modules() -> list[Path]:
    return [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {*ROOMS, "myelin"}


def test_each_package_has_one_door() -> None:
    doors: dict[str, list[str]] = defaultdict(list)
    for path in modules():
        for package in imported(path) - SPOKEN_EVERYWHERE:
            doors[package].append(path.relative_to(ROOT).as_posix())
    assert {package: places for package, places in doors.items() if len(places) > 1 and package not in TWO_DOORS} == {}
    assert {package: set(doors[package]) for package in TWO_DOORS} == TWO_DOORS
    assert {places[0] for package, places in doors.items() if package in CORE} == {"controller/adapters/sampler.py"}


def test_policies_import_nothing_that_touches_the_outside() -> None:
    outside = {package for path in modules() if path.is_relative_to(ROOT / "policies") for package in imported(path)}
    assert outside <= {"pydantic", "rfc8785", "promql_parser"}


def test_the_directions_between_rooms_hold() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_modules_stay_readable() -> None:
    long = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in modules()}
    assert {name: lines for name, lines in long.items() if lines > 540} == {}
    assert not [path for path in modules() if path.stem in ("utils", "helpers", "common", "manager", "base")]


def test_every_dependency_says_why() -> None:
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    needs = [line for line in lines if re.match(r'\s+"[A-Za-z0-9-]+[>=]', line)]
    assert len(needs) > 20
    assert [line for line in needs if "#" not in line] == []


def test_the_commands_of_the_readme_are_there() -> None:
    text = (ROOT / "README.md").read_text()
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^ +make ([a-z]+)", text, re.MULTILINE)) <= targets
    said = subprocess.run([sys.executable, "-m", "controller", "--help"], capture_output=True, text=True, check=True).stdout
    for command in set(re.findall(r"^ +myelin ([a-z]+)", text, re.MULTILINE)):
        assert f" {command} " in said, command


@pytest.mark.parametrize("word", ["pypi.org", "pythonhosted", "registry.npmjs", "proxy.golang", "/work/", "/root/"])
def test_no_file_names_a_registry_or_a_machine(word: str) -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    own = Path(__file__).relative_to(ROOT).as_posix()
    assert [name for name in listed if name != own and word in (ROOT / name).read_text(errors="replace")] == []


def test_the_reference_of_the_documents_is_what_the_types_say() -> None:
    place = ROOT / "docs/reference/generate.py"
    found = importlib.util.spec_from_file_location("generate", place)
    assert found is not None
    assert found.loader is not None
    generate = importlib.util.module_from_spec(found)
    found.loader.exec_module(generate)
    assert "\n".join(generate.written()) + "\n" == generate.PAGE.read_text(), "run `make docs`"


def test_every_command_is_in_the_reference_and_no_other() -> None:
    text = (ROOT / "docs/reference/commands.md").read_text()
    said = subprocess.run([sys.executable, "-m", "controller", "--help"], capture_output=True, text=True, check=True).stdout
    commands = set(re.findall(r"^  ([a-z]+) ", said.split("Commands:")[1], re.MULTILINE))
    assert set(re.findall(r"^## `myelin ([a-z]+)", text, re.MULTILINE)) == commands


def test_no_message_names_a_command_that_is_not_there() -> None:
    said = subprocess.run([sys.executable, "-m", "controller", "--help"], capture_output=True, text=True, check=True).stdout
    commands = set(re.findall(r"^  ([a-z]+) ", said.split("Commands:")[1], re.MULTILINE))
    named = {
        (path.relative_to(ROOT).as_posix(), word)
        for path in [
            *modules(),
            *(ROOT / "runtime").rglob("*.py"),
            *(ROOT / "docs").rglob("*.md"),
            ROOT / "README.md",
            ROOT / "SECURITY.md",
        ]
        for word in re.findall(r"`myelin ([a-z]+)", path.read_text())
    }
    assert {item for item in named if item[1] not in commands} == set()
