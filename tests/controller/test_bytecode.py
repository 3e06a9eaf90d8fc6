"""Bytecode: the same whoever compiles, loaded without a look at its source, and never by a Python that did not make it."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from controller.adapters.oci.access import Access
from controller.adapters.oci.assembly import PYTHON, Base, WheelLayers
from controller.adapters.oci.bases import Bases
from controller.adapters.oci.bytecode import LARGEST_MODULE_BYTES, OWN_VERSION, Compiler, cached_at, compiler_for
from controller.adapters.oci.layers import Laid, Stored
from controller.adapters.oci.layout import Layout
from controller.adapters.oci.registry import Registry
from policies.errors import DesiredStateError
from tests.contracts.registry_server import registry_server, why_no_registry
from tests.controller.hand_made_zips import Entry, archive, deflated, stored
from tests.controller.test_golden_images import MINORS, pythons
from tests.controller.tiny_base import part, push

SITE = f"opt/venv/lib/python{PYTHON}/site-packages"
TAG = PYTHON.replace(".", "")
HARD = b'''"""Constants that a process could write in many ways."""

WORDS = {"a", "b", "c", "some", "more", "words"}


def f(x: int, *, y: str = "some") -> bool:
    return x in {1, 2, 3, 4, 5, 6, 7, 8, 9} and y in {"a", "b", "c", "some", "more", "words", None, 1.5, b"b", (1, "a")}


class Some:
    a = lambda self: [z for z in range(10) if z in {"one", "two", "three"}]
'''


def wheel(folder: Path, name: str, *entries: Entry) -> Path:
    return archive(folder / f"{name}-1.0-py3-none-any.whl", entries)


def own(folder: Path) -> Compiler:
    found = compiler_for(OWN_VERSION, folder)
    assert found is not None
    return found


def of_wheel(compiler: Compiler, made: Path) -> dict[str, bytes]:
    place = compiler.of_wheel(made, "sha256:" + hashlib.sha256(made.read_bytes()).hexdigest(), SITE)
    with zipfile.ZipFile(place) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def test_modules_lie_where_python_looks_for_them(tmp_path: Path) -> None:
    made = wheel(
        tmp_path,
        "a",
        deflated("a/__init__.py", b"x = 1\n"),
        stored("single.py", b"y = 1\n"),
        stored("a-1.0.data/purelib/a/pure.py", b"z = 1\n"),
        stored("a/data.txt", b"no module"),
        stored("a-1.0.data/data/share/x.py", b"x = 1\n"),
        stored("a-1.0.data/scripts/tool.py", b"#!python\n"),
    )
    found = of_wheel(own(tmp_path / "folder"), made)
    assert set(found) == {
        f"a/__pycache__/__init__.cpython-{TAG}.pyc",
        f"__pycache__/single.cpython-{TAG}.pyc",
        f"a/__pycache__/pure.cpython-{TAG}.pyc",
    }
    assert cached_at("a/b.py", "3.12.1") == "a/__pycache__/b.cpython-312.pyc"
    assert cached_at("b.py", OWN_VERSION) == importlib.util.cache_from_source("b.py")
    content = found[f"__pycache__/single.cpython-{TAG}.pyc"]
    assert content[:16] == importlib.util.MAGIC_NUMBER + b"\x01\0\0\0" + importlib.util.source_hash(b"y = 1\n")


def test_what_does_not_compile_or_is_only_tested_with_is_passed_over(tmp_path: Path) -> None:
    odd = {
        "syntax.py": b"def (:\n",
        "python2.py": b"print 1\n",
        "coding.py": b"# coding: nothing-like-it\n",
        "bytes.py": b"\xff\xfe\n",
        "nul.py": b"x = 1\0\n",
        "deep.py": b"(" * 5000 + b")" * 5000,
        "minus.py": b"x = " + b"-" * 200_000 + b"1\n",
        "long.py": b"#" * (LARGEST_MODULE_BYTES + 1),
        "a/tests/test_x.py": b"x = 1\n",
        "a/test/x.py": b"x = 1\n",
    }
    fine = {
        "warns.py": b"x = '\\d' is 1\n",
        "latin.py": "# coding: latin-1\nx = 'é'\n".encode("latin-1"),
        "empty.py": b"",
        "a/testing/x.py": b"",
        "a/pytest.py": b"",
    }
    made = wheel(tmp_path, "a", *(deflated(name, data) for name, data in {**odd, **fine}.items()))
    assert set(of_wheel(own(tmp_path / "folder"), made)) == {cached_at(name, OWN_VERSION) for name in fine}


def test_bytes_are_the_same_in_every_process_folder_and_order_and_beside_others(tmp_path: Path) -> None:
    entries = [deflated(f"p/m{number}.py", HARD + b"N = %d\n" % number) for number in range(20)]
    made = wheel(tmp_path, "a", *entries)
    turned = wheel(tmp_path / "turned", "a", *reversed(entries))
    with ThreadPoolExecutor(4) as threads:
        jobs = [(own(tmp_path / f"folder{number}"), made if number % 2 else turned) for number in range(6)]
        found = list(threads.map(lambda job: of_wheel(*job), jobs))
    assert all(item == found[0] for item in found)
    assert len(found[0]) == 20
    # Alone, and in a process that has seen many others.
    alone = of_wheel(own(tmp_path / "alone"), wheel(tmp_path / "one", "a", entries[7]))
    assert alone == {name: data for name, data in found[0].items() if "m7." in name}


def test_a_wheel_is_compiled_once_for_each_python(tmp_path: Path) -> None:
    made = wheel(tmp_path, "a", stored("a.py", b"x = 1\n"))
    compiler = own(tmp_path / "folder")
    first = compiler.of_wheel(made, "sha256:1", SITE)
    before = first.stat().st_mtime_ns
    assert compiler.of_wheel(made, "sha256:1", SITE) == first
    assert first.stat().st_mtime_ns == before
    assert compiler.of_wheel(made, "sha256:2", SITE) != first
    assert compiler.of_wheel(made, "sha256:1", "elsewhere/site-packages") != first
    assert [path.name for path in (tmp_path / "folder").iterdir() if not path.name.startswith("bytecode-")] == []


@pytest.mark.parametrize("minor", MINORS)
def test_every_python_compiles_for_itself(minor: str, tmp_path: Path) -> None:
    if minor not in pythons():
        pytest.skip(f"Python {minor} is not on this machine")
    python = pythons()[minor]
    version = said_by(python)
    made = wheel(tmp_path, "a", stored("a.py", HARD))
    found = []
    for number in range(2):
        compiler = compiler_for(version, tmp_path / f"folder{number}", among=(python,))
        assert compiler is not None
        assert compiler.version == version
        found.append(of_wheel(compiler, made))
    assert found[0] == found[1]
    assert list(found[0]) == [f"__pycache__/a.cpython-{minor.replace('.', '')}.pyc"]


def said_by(python: str) -> str:
    command = [python, "-c", "import sys; print(*sys.version_info[:3], sep='.')"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_there_is_no_compiler_for_a_python_that_is_not_here(tmp_path: Path) -> None:
    assert compiler_for("3.11.99", tmp_path) is None
    assert compiler_for("", tmp_path) is None
    assert compiler_for(OWN_VERSION + ".1", tmp_path, among=("/nowhere/python", "/bin/true", "/bin/false")) is None


def test_a_compiler_that_dies_says_so(tmp_path: Path) -> None:
    (tmp_path / "python").write_text("#!/bin/sh\necho 'out of luck' >&2\nkill -SEGV $$\n")
    (tmp_path / "python").chmod(0o755)
    compiler = Compiler(str(tmp_path / "python"), OWN_VERSION, tmp_path / "folder")
    with pytest.raises(
        DesiredStateError, match=r"a-1\.0-py3-none-any\.whl: .* ended with signal 11 \(out of luck\); set spec.builder.precompile"
    ):
        compiler.of_wheel(wheel(tmp_path, "a", stored("a.py", b"")), "sha256:1", SITE)
    assert list((tmp_path / "folder").iterdir()) == []


class Layers:
    """Layers of wheels and of bytecode, as images have them."""

    def __init__(self, folder: Path) -> None:
        self.layout, self.layers = Layout(folder / "store"), WheelLayers(Layout(folder / "store"), folder)
        self.compiler = own(folder / "bytecode")

    def files(self, layers: Sequence[Laid]) -> dict[str, bytes]:
        found = {}
        for layer in layers:
            with tarfile.open(self.layout.path(layer.descriptor["digest"]), "r:gz") as opened:
                for member in opened:
                    content = opened.extractfile(member)
                    if content is not None:
                        found[member.name] = content.read()
        return found


def test_python_loads_the_layer_and_does_not_look_at_the_source(tmp_path: Path) -> None:
    made = Layers(tmp_path)
    wheels = [
        wheel(
            tmp_path / "w",
            "a",
            deflated("a/__init__.py", b"from a.b import where\nx = 'compiled'\n"),
            stored("a/b.py", b"def where(): raise KeyError\n"),
        )
    ]
    files = made.files([*made.layers.laid(wheels), *made.layers.bytecode(wheels, made.compiler)])
    for path, content in files.items():
        (tmp_path / "root" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / path).write_bytes(content)
    site = tmp_path / "root" / SITE
    (site / "a/__init__.py").write_bytes(b"from a.b import where\nx = 'source!!'\n")
    code = "import a, traceback; print(a.x)\ntry: a.where()\n"
    code += "except KeyError as error: print(traceback.extract_tb(error.__traceback__)[-1].filename)"
    environment = {"PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["compiled", str(site / "a/b.py")]


def test_bytecode_has_a_layer_beside_each_layer_of_wheels_that_has_modules(tmp_path: Path) -> None:
    made = Layers(tmp_path)
    wheels = [
        wheel(tmp_path / "w", "big", stored("big.py", b"x = 1\n"), stored("big.bin", bytes(600_000))),
        wheel(tmp_path / "w", "data", stored("data.bin", bytes(600_000))),
        wheel(tmp_path / "w", "one", stored("one.py", b"x = 1\n")),
        wheel(tmp_path / "w", "two", stored("two.py", b"x = 1\n")),
    ]
    assert len(made.layers.laid(wheels)) == 3
    layers = made.layers.bytecode(wheels, made.compiler)
    assert [sorted(made.files([layer])) for layer in layers] == [
        [f"{SITE}/__pycache__/big.cpython-{TAG}.pyc"],
        [f"{SITE}/__pycache__/one.cpython-{TAG}.pyc", f"{SITE}/__pycache__/two.cpython-{TAG}.pyc"],
    ]
    assert made.layers.bytecode(wheels[::-1], made.compiler) == layers
    (tmp_path / "other").mkdir()
    other = Layers(tmp_path / "other")
    assert other.layers.bytecode(wheels, other.compiler) == layers


def test_packages_that_share_a_module_share_its_bytecode(tmp_path: Path) -> None:
    made = Layers(tmp_path)
    wheels = [wheel(tmp_path / "w", name, stored("space/__init__.py", b""), stored(f"space/{name}.py", b"")) for name in "ab"]
    assert len(made.files(made.layers.bytecode(wheels, made.compiler))) == 3


def test_the_runtime_is_compiled_too(tmp_path: Path) -> None:
    compiler = own(tmp_path)
    files = {
        f"{SITE}/myelin/__init__.py": Stored(data=b""),
        f"{SITE}/myelin/x.py": Stored(data=HARD),
        "app/app.py": Stored(data=b"x = 1\n"),
    }
    found = compiler.of_files(files, SITE)
    assert set(found) == {f"{SITE}/myelin/__pycache__/{name}.cpython-{TAG}.pyc" for name in ("__init__", "x")}
    assert compiler.of_files(dict(reversed(files.items())), SITE) == found
    assert len(list(tmp_path.glob("bytecode-*.zip"))) == 1
    assert own(tmp_path / "other").of_files(files, SITE) == found


@contextmanager
def opened(folder: Path, *layers: dict[str, bytes | str]) -> Iterator[Base]:
    """A base of these layers, opened."""
    with registry_server(folder / "registry") as server:

        def access(repository: str) -> Access:
            return Access(repository=repository, unsafe_plain_http=True)

        with closing(Registry(access(f"{server.address}/base"))) as registry:
            digest = push(registry, folder / "parts", [part(item) for item in layers])
            bases = Bases(Layout(folder / "store"), folder / "bases", access)
            first = bases.open(f"{registry.repository}@{digest}")
            assert bases.open(f"{registry.repository}@{digest}") == first, "what is remembered is what was found"
            yield first


def says(version: str) -> bytes:
    return b"\x7fELF" + os.urandom(3000).replace(b"\0", b"1") + b"\0" + version.encode() + b"\0" + bytes(3000)


LIBRARY = f"libpython{PYTHON}.so.1.0"
EXACT: dict[str, tuple[list[dict[str, bytes | str]], str]] = {
    "in its program": ([{f"usr/bin/python{PYTHON}": says(f"{PYTHON}.2")}], f"{PYTHON}.2"),
    "in its library": (
        [{f"usr/local/bin/python{PYTHON}": b"small", f"usr/local/lib/{LIBRARY}": says(f"{PYTHON}.9")}],
        f"{PYTHON}.9",
    ),
    "in the library of its machine": (
        [{f"usr/bin/python{PYTHON}": b"x", f"usr/lib/x86_64-linux-gnu/{LIBRARY}": says(f"{PYTHON}.4")}],
        f"{PYTHON}.4",
    ),
    "in a later layer": (
        [{f"usr/bin/python{PYTHON}": says(f"{PYTHON}.2")}, {f"usr/bin/python{PYTHON}": says(f"{PYTHON}.3")}],
        f"{PYTHON}.3",
    ),
    "across the blocks it is read in": (
        [{f"usr/bin/python{PYTHON}": b"x" * ((1 << 20) - 4) + f"\0{PYTHON}.12\0".encode()}],
        f"{PYTHON}.12",
    ),
    "nowhere": ([{f"usr/bin/python{PYTHON}": b"#!/bin/sh\n"}], ""),
    "twice": ([{f"usr/bin/python{PYTHON}": says(f"{PYTHON}.2") + says(f"{PYTHON}.3")}], ""),
    "for another minor version alone": ([{f"usr/bin/python{PYTHON}": says("3.9.2")}], ""),
    "in a library that is gone": (
        [{f"usr/bin/python{PYTHON}": b"x", f"usr/lib/{LIBRARY}": says(f"{PYTHON}.2")}, {f"usr/lib/.wh.{LIBRARY}": b""}],
        "",
    ),
    "in a library of another Python": ([{f"usr/bin/python{PYTHON}": b"x", f"usr/local/lib/{LIBRARY}": says(f"{PYTHON}.2")}], ""),
}


@pytest.mark.skipif(bool(why_no_registry()), reason=why_no_registry() or "there is one")
@pytest.mark.parametrize("where", EXACT)
def test_the_exact_version_of_a_base_is_written(where: str, tmp_path: Path) -> None:
    layers, version = EXACT[where]
    with opened(tmp_path, *layers) as base:
        assert base.exact == version


@pytest.mark.skipif(not Path(f"/usr/bin/python{PYTHON}").is_file(), reason="no Python of the system's own to read")
def test_a_real_python_says_which_it_is(tmp_path: Path) -> None:
    if why_no_registry():
        pytest.skip(why_no_registry())
    real = Path(f"/usr/bin/python{PYTHON}")
    layer: dict[str, bytes | str] = {f"usr/bin/python{PYTHON}": real.read_bytes()}
    for library in Path("/usr/lib").glob(f"*/{LIBRARY}"):
        layer[str(library)[1:]] = library.read_bytes()
    with opened(tmp_path, layer) as base:
        assert base.exact == said_by(str(real))
