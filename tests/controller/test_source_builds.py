"""Wheels of source distributions: the same each time, pinned, and built where setup code can do no harm."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import stat
import sys
import tarfile
import textwrap
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from controller.adapters.build import setup_code
from controller.adapters.build.enclosure import OTHER, USUAL, Surroundings, nobody, what_nobody_misses
from controller.adapters.build.fetching import fetch_wheels
from controller.adapters.build.repacking import repack
from controller.adapters.build.requirements import wanted_of
from controller.adapters.build.resolving import Needs, Resolver, needs_of
from controller.adapters.build.source_builds import LEGACY, LEGACY_NEEDS, SourceBuilds, way_of
from controller.adapters.build.wheel_store import MadeOf, Source, Wheel, WheelStore
from policies.errors import DesiredStateError, SilentError
from policies.locks import Lock, Target, Wanted
from policies.terms.build import BuildRules
from policies.terms.digest import digest_of
from tests.controller.sdists import HOST, TREE, base_target, packed, sdist, wanted
from tests.controller.wheel_index import WheelIndex, wheel_bytes, wheel_index

try:
    nobody()
except DesiredStateError as error:
    WHY = error.message
else:
    WHY = ""
pytestmark = pytest.mark.skipif(bool(WHY), reason=WHY or "setup code can be walled in here")

BOUNDS = BuildRules(builds_wheels=True, timeout_seconds=60, memory_bytes=1 << 30, disk_bytes=256 << 20)


@pytest.fixture
def index() -> Iterator[WheelIndex]:
    with wheel_index() as found:
        yield found


def builds(
    folder: Path,
    index: WheelIndex,
    *,
    rules: BuildRules = BOUNDS,
    target: Target = HOST,
    is_host: bool = True,
    known: Mapping[str, MadeOf] | None = None,
    preferred: tuple[Wanted, ...] = (),
    surroundings: Surroundings = USUAL,
    said: list[str] | None = None,
) -> SourceBuilds:
    return SourceBuilds(
        folder=folder / "made",
        wheels=folder / "wheels",
        resolver=Resolver(folder / "resolved"),
        rules=replace(rules, index=index.address),
        target=target,
        is_host=is_host,
        known=known or {},
        preferred=preferred,
        surroundings=surroundings,
        progress=(said if said is not None else []).append,
    )


def got(folder: Path, index: WheelIndex, item: Wanted, builder: SourceBuilds | None = None) -> Wheel:
    builder = builder or builds(folder, index)
    lock = Lock(text="", origin="src/pylock.toml", resolved=False, wheels=(item,))
    (wheel,) = fetch_wheels(lock, folder / "wheels", builder.target, index=index.address, builder=builder)
    return wheel


def put(index: WheelIndex, data: bytes, name: str = "a", version: str = "1.0") -> Wanted:
    index.add(name, version, data=data, file=f"{name}-{version}.tar.gz")
    return wanted(data, name, version)


def text_in(wheel: Wheel, name: str) -> str:
    with zipfile.ZipFile(wheel.path) as archive:
        return archive.read(name).decode()


# What comes of it


def test_a_source_distribution_becomes_a_wheel_once(index: WheelIndex, tmp_path: Path) -> None:
    item = put(index, sdist())
    wheel = got(tmp_path, index, item)
    assert (wheel.file, text_in(wheel, "a.py")) == ("a-1.0-py3-none-any.whl", "VALUE = 1\n")
    made = wheel.made_of
    assert made is not None
    assert (made.file, made.digest, made.backend) == ("a-1.0.tar.gz", item.hashes[0], {})
    before = len(index.asked)
    assert got(tmp_path, index, item) == wheel
    assert len(index.asked) == before
    # With the choice forgotten, what was built is still there.
    for path in (tmp_path / "wheels").glob("choice-*"):
        path.unlink()
    assert got(tmp_path, index, item) == wheel
    assert len(index.asked) == before
    assert [path.name for path in (tmp_path / "wheels").glob("new-*")] == []


def test_folder_umask_hour_and_order_do_not_show(index: WheelIndex, tmp_path: Path) -> None:
    item = put(index, sdist())
    first = got(tmp_path / "one", index, item)
    old = os.umask(0o077)
    try:
        place = tmp_path / "another folder"
        second = got(place, index, item, builds(place, index, surroundings=OTHER))
    finally:
        os.umask(old)
    assert first.digest == second.digest
    assert stat.S_IMODE(second.path.stat().st_mode) == 0o644


def test_a_build_that_is_never_the_same_gives_the_wheel_that_it_gave_first(index: WheelIndex, tmp_path: Path) -> None:
    item = put(index, sdist(body='import uuid\nfiles["a.py"] = f"ID = {uuid.uuid4().hex!r}\\n"'))
    first = got(tmp_path / "one", index, item)
    assert got(tmp_path / "one", index, item) == first
    assert got(tmp_path / "two", index, item).digest != first.digest


def test_what_builds_it_is_pinned_and_taken_again(index: WheelIndex, tmp_path: Path) -> None:
    def backend(version: str) -> bytes:
        code = textwrap.dedent(
            f"""
            import os, sys
            sys.path.insert(0, os.getcwd())
            from inner import wheel
            def build_wheel(out, settings=None, metadata=None):
                return wheel(out, "a", "1.0", {{"a.py": "BY = '{version}'\\n"}})
            """
        )
        return wheel_bytes("maker", version, {"maker.py": code.encode()})

    index.add("maker", "1.0", data=backend("1.0"))
    project = '[build-system]\nrequires = ["maker>=1"]\nbuild-backend = "maker"\n'
    data = packed("a", "1.0", {"pyproject.toml": project, "inner.py": _backend_of()})
    item = put(index, data)
    first = got(tmp_path, index, item)
    assert first.made_of is not None
    assert text_in(first, "a.py") == "BY = '1.0'\n"
    assert list(first.made_of.backend) == ["maker-1.0-py3-none-any.whl"]
    index.add("maker", "2.0", data=backend("2.0"))
    assert got(tmp_path, index, item) == first
    # Elsewhere the newer one builds it; with what is known of the first build, the same one does.
    newer = got(tmp_path / "new", index, item)
    assert text_in(newer, "a.py") == "BY = '2.0'\n"
    said: list[str] = []
    place = tmp_path / "again"
    again = got(place, index, item, builds(place, index, known={item.hashes[0]: first.made_of}, said=said))
    assert (again.digest, again.made_of) == (first.digest, first.made_of)
    # A lock that has it says which one.
    place = tmp_path / "preferred"
    own = (Wanted(name="maker", version="1.0", hashes=(digest_of(b""),), line=1),)
    assert text_in(got(place, index, item, builds(place, index, preferred=own)), "a.py") == "BY = '1.0'\n"


def _backend_of() -> str:
    data = sdist()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        file = tar.extractfile("a-1.0/backend.py")
        assert file is not None
        return file.read().decode()


def test_what_a_backend_asks_for_beyond_is_there_when_it_builds(index: WheelIndex, tmp_path: Path) -> None:
    index.add("tool", "1.0", data=wheel_bytes("tool", "1.0", {"tool.py": b"NAME = 'tool'\n"}))
    more = '\ndef get_requires_for_build_wheel(settings=None):\n    return ["tool"]\n'
    item = put(index, sdist(body='import tool\nfiles["a.py"] = tool.NAME', more=more))
    wheel = got(tmp_path, index, item)
    assert text_in(wheel, "a.py") == "tool"
    assert wheel.made_of is not None
    assert list(wheel.made_of.backend) == ["tool-1.0-py3-none-any.whl"]


def test_one_that_names_nothing_is_built_by_setuptools(index: WheelIndex, tmp_path: Path) -> None:
    bundled = sorted(Path(sys.base_prefix).glob("lib/python3.*/ensurepip/_bundled/setuptools-*.whl"))
    if not bundled:
        pytest.skip("this Python brings no setuptools along")
    index.add("setuptools", "65.5.0", data=bundled[-1].read_bytes())
    setup = "from setuptools import setup\nsetup(name='a', version='1.0', py_modules=['a'])\n"
    item = put(index, packed("a", "1.0", {"setup.py": setup, "a.py": "X = 1\n"}))
    with pytest.raises(DesiredStateError) as error:
        got(tmp_path, index, item)
    # This one asks for `wheel` besides, which is not on the index: it was asked, and what it answered was looked for.
    assert "wheel" in error.value.message
    assert error.value.reason == "NoSolution"


# For whom


def test_what_was_compiled_here_is_for_this_system_alone(index: WheelIndex, tmp_path: Path) -> None:
    machine = {"linux/amd64": "x86_64", "linux/arm64": "aarch64"}[HOST.platform]
    short = f"cp{HOST.python.replace('.', '')}"
    item = put(index, sdist(tag=f"{short}-{short}-linux_{machine}"))
    assert got(tmp_path, index, item).file.endswith(f"linux_{machine}.whl")
    # Of a base image, only the libc's version is known; that it is equal does not make it the same system.
    for target in (HOST, base_target()):
        with pytest.raises(
            DesiredStateError, match=r"pylock.toml:7: a 1\.0: expected a wheel for the system of the base image"
        ) as error:
            got(tmp_path, index, item, builds(tmp_path, index, target=target, is_host=False))
        assert error.value.reason == "OtherSystem"
        assert "set spec.builder.base to host, or take a release that has a wheel" in error.value.message


def test_one_that_is_pure_is_for_all(index: WheelIndex, tmp_path: Path) -> None:
    item = put(index, sdist())
    arm = Target(python=HOST.python, platform="linux/arm64")
    wheels = [got(tmp_path, index, item, builds(tmp_path, index, target=each, is_host=False)) for each in (base_target(), arm)]
    assert wheels[0].digest == wheels[1].digest


def test_without_leave_nothing_that_was_built_is_taken(index: WheelIndex, tmp_path: Path) -> None:
    item = put(index, sdist())
    got(tmp_path, index, item)
    lock = Lock(text="", origin="src/pylock.toml", resolved=False, wheels=(item,))
    with pytest.raises(DesiredStateError, match=r"built only where spec.builder.allowSourceDistributions says so"):
        fetch_wheels(lock, tmp_path / "wheels", HOST, index=index.address)


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    assert what_nobody_misses(str(tmp_path)) == (
        "bwrap, prlimit: expected on the machine that runs setup code, not installed; apt install bubblewrap util-linux"
    )


# Fetched, and not opened


def test_requirements_with_the_hash_of_a_source_distribution_are_built_where_there_is_no_wheel(
    index: WheelIndex, tmp_path: Path
) -> None:
    data = sdist()
    put(index, data)
    index.add("b", "1.0")
    text = index.line("a", "1.0") + index.line("b", "1.0")
    lock = Lock(text=text, origin="src/requirements.txt", resolved=False, wheels=wanted_of(text, "src/requirements.txt", HOST))
    said: list[str] = []
    wheels = fetch_wheels(
        lock, tmp_path / "wheels", HOST, index=index.address, builder=builds(tmp_path, index), progress=said.append
    )
    assert [(wheel.name, wheel.made_of is not None) for wheel in wheels] == [("a", True), ("b", False)]
    assert "building a wheel of a 1.0" in said
    # Where the lock has a wheel too, that is taken; where it names the source distribution alone, that is.
    pure = index.add("a", "1.0")
    assert (
        fetch_wheels(
            lock_of(index.line("a", "1.0")), tmp_path / "two", HOST, index=index.address, builder=builds(tmp_path, index)
        )[0].digest
        == pure
    )
    alone = f"a==1.0 --hash={digest_of(data)}\n"
    assert fetch_wheels(lock_of(alone), tmp_path / "three", HOST, index=index.address, builder=builds(tmp_path, index))[0].made_of


def lock_of(text: str) -> Lock:
    return Lock(text=text, origin="src/requirements.txt", resolved=False, wheels=wanted_of(text, "src/requirements.txt", HOST))


class Never:
    """A builder that was handed something."""

    def __init__(self) -> None:
        self.sources: list[Source] = []

    def fits(self, file: str) -> bool:
        return True

    def built(self, wanted: Wanted, source: Source, folder: Path, where: str) -> tuple[Path, MadeOf]:
        self.sources.append(source)
        raise DesiredStateError("not built", reason="BuildFailed")


def test_nothing_is_run_to_fetch_it(index: WheelIndex, tmp_path: Path) -> None:
    mark = tmp_path / "was run"
    setup = f"open({str(mark)!r}, 'w').write('x')\n"
    for name, files in {"a": {"setup.py": setup}, "b": {"pyproject.toml": TREE, "backend.py": setup}}.items():
        data = packed(name, "1.0", files)
        never = Never()
        with pytest.raises(DesiredStateError, match="not built"):
            fetch_wheels(
                Lock(text="", origin="r", resolved=False, wheels=(put(index, data, name),)),
                tmp_path / "wheels",
                HOST,
                index=index.address,
                builder=never,
            )
        (source,) = never.sources
        assert (source.digest, source.path.read_bytes()) == (digest_of(data), data)
    assert not mark.exists()


def test_a_folder_of_the_machines_own_files_keeps_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = sdist("own")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "own-1.0.tar.gz").write_bytes(data)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    never = Never()
    with pytest.raises(DesiredStateError, match="not built"):
        fetch_wheels(
            Lock(text="", origin="r", resolved=False, wheels=(wanted(data, "own"),)), tmp_path / "wheels", HOST, builder=never
        )
    assert never.sources[0].digest == digest_of(data)
    assert (tmp_path / "links" / "own-1.0.tar.gz").read_bytes() == data


def test_other_bytes_than_the_lock_has_are_not_unpacked(
    index: WheelIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_RETRIES", "0")
    item = put(index, sdist())
    index.faults["a-1.0.tar.gz"] = "other"
    never = Never()
    lock = Lock(text="", origin="src/pylock.toml", resolved=False, wheels=(item,))
    with pytest.raises(DesiredStateError, match=r"pylock.toml:7: a 1\.0: expected a file with a hash of the lock") as error:
        fetch_wheels(lock, tmp_path / "wheels", HOST, index=index.address, builder=never)
    assert (error.value.reason, never.sources) == ("HashMismatch", [])
    index.faults["a-1.0.tar.gz"] = "500"
    with pytest.raises(SilentError):
        fetch_wheels(lock, tmp_path / "wheels", HOST, index=index.address, builder=never)
    # A wheel that was tampered with is told, and its source distribution is not taken in its place.
    index.faults.clear()
    index.add("a", "1.0")
    index.faults["a-1.0-py3-none-any.whl"] = "other"
    with pytest.raises(DesiredStateError) as error:
        fetch_wheels(lock_of(index.line("a", "1.0")), tmp_path / "wheels", HOST, index=index.address, builder=never)
    assert (error.value.reason, never.sources) == ("HashMismatch", [])


def test_a_source_that_was_touched_is_fetched_anew(index: WheelIndex, tmp_path: Path) -> None:
    data = sdist()
    store = WheelStore(tmp_path, HOST)
    path = tmp_path / "a-1.0.tar.gz"
    path.write_bytes(data)
    source = store.adopt_source(wanted(data), path)
    assert store.source(wanted(data)) == source
    source.path.write_bytes(b"other")
    assert store.source(wanted(data)) is None


# What setup code can do


def test_setup_code_sees_its_folder_and_nothing_else(index: WheelIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MYELIN_FORGE_TOKEN", "the-token")
    monkeypatch.setenv("SECRET", "the-secret")
    beside = tmp_path / "beside"
    beside.write_text("a key")
    outside = tmp_path / "outside"
    body = f"""
        import json, socket
        def tried(deed):
            try:
                return str(deed())
            except Exception as error:
                return type(error).__name__
        seen = {{
            "environment": dict(os.environ),
            "read": tried(lambda: open({str(beside)!r}).read()),
            "written": tried(lambda: open({str(outside)!r}, "w")),
            "root": tried(lambda: open("/x", "w")),
            "usr": tried(lambda: open("/usr/x", "w")),
            "python": tried(lambda: open({sys.base_prefix!r} + "/x", "w")),
            "archive": tried(lambda: open("/source/a-1.0.tar.gz", "ab")),
            "passwords": tried(lambda: open("/etc/shadow").read()),
            "users": open("/etc/passwd").read(),
            "network": tried(lambda: socket.create_connection(("127.0.0.1", {index.address.split(":")[2].split("/")[0]}), 2)),
            "interfaces": [name for _, name in socket.if_nameindex()],
            "processes": sorted(name for name in os.listdir("/proc") if name.isdigit()),
            "who": os.getuid(),
            "powers": [line.split()[1] for line in open("/proc/self/status") if line.startswith("Cap")],
            "host": socket.gethostname(),
            "home": os.listdir("/home") if os.path.exists("/home") else [],
            "root user": os.path.exists(os.path.join("/root", ".ssh")),
        }}
        files["seen.json"] = json.dumps(seen)
    """
    item = put(index, sdist(body=textwrap.dedent(body).strip()))
    seen = json.loads(text_in(got(tmp_path, index, item), "seen.json"))
    assert not {"the-token", "the-secret"} & set(seen["environment"].values())
    assert set(seen["environment"]) <= {
        "PATH",
        "LC_ALL",
        "HOME",
        "XDG_RUNTIME_DIR",
        "TMPDIR",
        "PWD",
        "VIRTUAL_ENV",
        "SOURCE_DATE_EPOCH",
        "PYTHONHASHSEED",
        "PYTHONDONTWRITEBYTECODE",
        "TZ",
        "NO_COLOR",
    }
    assert seen["environment"]["SOURCE_DATE_EPOCH"] == "315619200"
    assert (seen["read"], seen["written"]) == ("FileNotFoundError", "FileNotFoundError")
    assert {seen[name] for name in ("root", "usr", "python", "archive")} <= {"OSError", "PermissionError"}
    assert (seen["passwords"], seen["network"]) == ("FileNotFoundError", "ConnectionRefusedError")
    assert seen["interfaces"] == ["lo"]
    assert len(seen["processes"]) < 5
    assert seen["who"] == 65534
    assert set(seen["powers"]) == {"0000000000000000"}
    assert (seen["host"], seen["home"], seen["root user"]) == ("build", [], False)
    assert not outside.exists()


CAUGHT: dict[str, tuple[bytes, str, str]] = {
    "it raises": (
        sdist(body="raise ValueError('no such luck')"),
        "BuildFailed",
        r"setup code, build_wheel: expected exit code 0, got 1; it said: .*no such luck",
    ),
    "it asks the network": (
        sdist(body="import urllib.request\nurllib.request.urlopen('http://example.invalid/x')"),
        "BuildFailed",
        "setup code has no network here$",
    ),
    "it answers another wheel": (
        sdist(body="return wheel(out, 'b', '1.0', files)"),
        "BuildFailed",
        r"expected a wheel of a 1\.0, got b-1\.0",
    ),
    "it answers no name": (sdist(body="return None"), "BuildFailed", "expected a wheel of its backend, got None"),
    "it answers a path": (sdist(body="return '../../a-1.0-py3-none-any.whl'"), "BuildFailed", "expected a wheel"),
    "its wheel is a link to a file of the system": (
        sdist(body="os.symlink('/etc/passwd', os.path.join(out, 'a-1.0-py3-none-any.whl'))\nreturn 'a-1.0-py3-none-any.whl'"),
        "BuildFailed",
        "got none that can be read",
    ),
    "its wheel never ends": (
        sdist(body="os.mkfifo(os.path.join(out, 'a-1.0-py3-none-any.whl'))\nreturn 'a-1.0-py3-none-any.whl'"),
        "BuildFailed",
        "as a plain file, got another kind",
    ),
    "its folder is a link elsewhere": (
        sdist(body="os.rmdir(out)\nos.symlink('/usr', out)\nreturn 'a-1.0-py3-none-any.whl'"),
        "BuildFailed",
        "got none that can be read",
    ),
    "its wheel has names that lead out": (
        sdist(body="return wheel(out, 'a', '1.0', {'../x.py': ''})"),
        "UnsafeWheel",
        "expected names inside of the wheel",
    ),
    "its wheel is no zip": (
        sdist(body="open(os.path.join(out, 'a-1.0-py3-none-any.whl'), 'w').write('x')\nreturn 'a-1.0-py3-none-any.whl'"),
        "UnsafeWheel",
        "no whole zip",
    ),
    "it asks for an address": (
        sdist(more="\ndef get_requires_for_build_wheel(settings=None):\n    return ['x @ http://127.0.0.1/x.whl']\n"),
        "BadSource",
        "x: expected a release of an index to build it by, got an address",
    ),
    "it asks for an option": (
        sdist(more="\ndef get_requires_for_build_wheel(settings=None):\n    return ['--index-url http://127.0.0.1/']\n"),
        "BadSource",
        "expected requirements of its build, got '--index-url",
    ),
    "it asks for no list": (
        sdist(more="\ndef get_requires_for_build_wheel(settings=None):\n    return [1]\n"),
        "BuildFailed",
        "expected a list of requirements",
    ),
    "it has no such backend": (packed("a", "1.0", {"pyproject.toml": TREE}), "BuildFailed", "No module named 'backend'"),
    "it names neither": (packed("a", "1.0", {"a.py": ""}), "BadSource", "expected pyproject.toml or setup.py in it, got neither"),
    "its pyproject.toml is none": (packed("a", "1.0", {"pyproject.toml": "["}), "BadSource", "expected TOML"),
    "it is no archive": (b"x" * 100, "UnsafeSource", "expected an archive that can be unpacked"),
}


@pytest.mark.parametrize("case", CAUGHT)
def test_what_setup_code_does_wrong_is_told(index: WheelIndex, tmp_path: Path, case: str) -> None:
    data, reason, words = CAUGHT[case]
    with pytest.raises(DesiredStateError, match=words) as error:
        got(tmp_path, index, put(index, data))
    assert error.value.reason == reason
    assert error.value.message.startswith(("src/pylock.toml:7: a 1.0: ", "wheel a-1.0-py3-none-any.whl: "))
    assert "root:x" not in error.value.message
    assert [path.name for path in (tmp_path / "wheels").glob("new-*")] == []


GREEDY: dict[str, tuple[str, BuildRules, str]] = {
    "it never ends": ("import time\ntime.sleep(600)", BuildRules(timeout_seconds=3), "BuildTimeout"),
    "it takes all memory": (
        "held = [bytearray(32 << 20) for _ in range(64)]",
        BuildRules(memory_bytes=192 << 20, timeout_seconds=60),
        "",
    ),
    "it takes all of the disk": (
        "import time\nos.mkdir('h')\nfor n in range(8):\n    open(f'h/{n}', 'wb').write(bytes(8 << 20))\n"
        "os.chmod('h', 0)\ntime.sleep(60)",
        BuildRules(disk_bytes=32 << 20, timeout_seconds=60),
        "BuildDisk",
    ),
}


@pytest.mark.parametrize("case", GREEDY)
def test_what_takes_too_much_is_ended(index: WheelIndex, tmp_path: Path, case: str) -> None:
    body, rules, reason = GREEDY[case]
    with pytest.raises(DesiredStateError) as error:
        got(tmp_path, index, put(index, sdist(body=body)), builds(tmp_path, index, rules=rules))
    assert error.value.reason in ((reason,) if reason else ("BuildMemory", "BuildFailed"))
    assert "spec.builder.limits." in error.value.message
    assert [path.name for path in (tmp_path / "wheels").glob("new-*")] == []


def hand_made(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


UNSAFE: dict[str, tuple[bytes, str]] = {
    "a name that leads out": (hand_made((member("a-1.0/../../x"), b"")), "inside of its folder, got 'a-1.0/../../x'"),
    "a link that leads out": (hand_made((member("a-1.0/x", tarfile.SYMTYPE, "/etc/passwd"), b"")), "expected names inside"),
    "a device": (hand_made((member("a-1.0/x", tarfile.CHRTYPE), b"")), "expected names inside"),
    "two folders": (hand_made((member("a-1.0/x"), b""), (member("b/x"), b"")), "expected one folder in it, got a-1.0, b"),
    "nothing": (hand_made(), "expected one folder in it, got nothing"),
    "a bomb": (hand_made((member("a-1.0/x"), bytes(80 << 20))), "expected at most 200 bytes unpacked for each one"),
}


@pytest.mark.parametrize("case", UNSAFE)
def test_what_is_not_unpacked(index: WheelIndex, tmp_path: Path, case: str) -> None:
    data, words = UNSAFE[case]
    with pytest.raises(DesiredStateError) as error:
        got(tmp_path, index, put(index, data))
    assert error.value.reason == "UnsafeSource"
    assert words in error.value.message


@pytest.mark.parametrize("has_filter", [True, False], ids=["this Python", "a Python before 3.11.4"])
def test_whatever_python_unpacks_takes_and_refuses_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_filter: bool
) -> None:
    if not has_filter:
        monkeypatch.delattr(tarfile, "data_filter", raising=False)
    script = member("a-1.0/src/configure")
    script.mode = 0o6777
    good = [
        (member("a-1.0/setup.py"), b"x"),
        (script, b"#!/bin/sh"),
        (member("a-1.0/src/up", tarfile.SYMTYPE, "../setup.py"), b""),
    ]
    (tmp_path / "good.tar.gz").write_bytes(hand_made(*good))
    assert setup_code.unpack(tmp_path / "good.tar.gz", tmp_path / "good") == {"project": "", "hasSetup": True}
    assert (tmp_path / "good/src/up").read_bytes() == b"x"
    assert (tmp_path / "good/src/configure").stat().st_mode & 0o7111 == 0o111
    for number, (data, words) in enumerate(UNSAFE.values()):
        place = tmp_path / str(number)
        place.mkdir()
        (place / "bad.tar.gz").write_bytes(data)
        with pytest.raises(setup_code.Refused, match=re.escape(words)):
            setup_code.unpack(place / "bad.tar.gz", place / "src")


def test_a_zip_is_unpacked_too(index: WheelIndex, tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(sdist())) as tar, zipfile.ZipFile(out, "w") as archive:
        for info in tar:
            file = tar.extractfile(info)
            assert file is not None
            archive.writestr(info.name, file.read())
    index.add("a", "1.0", data=out.getvalue(), file="a-1.0.zip")
    assert got(tmp_path, index, wanted(out.getvalue())).made_of
    bad = io.BytesIO()
    with zipfile.ZipFile(bad, "w") as archive:
        archive.writestr("a-1.0/../../x", "")
    index.add("a", "1.0", data=bad.getvalue(), file="a-1.0.zip")
    with pytest.raises(DesiredStateError, match="expected names inside of its folder"):
        got(tmp_path, index, wanted(bad.getvalue()))


# What it says of itself


def test_how_it_is_built_is_read_as_the_standards_have_it() -> None:
    assert way_of("", True, "a") == way_of("[project]\nname='a'\n", False, "a")
    assert (way_of("", True, "a").backend, way_of("", True, "a").requires) == (LEGACY, LEGACY_NEEDS)
    # PEP 517: without a name of the backend, setuptools is meant, and what is required is what is there.
    partial = way_of("[build-system]\nrequires = ['setuptools', 'cython; sys_platform == \"win32\"']\n", False, "a")
    assert (partial.backend, partial.requires) == (LEGACY, ("setuptools",))
    assert way_of(TREE, False, "a").paths == (".",)


ODD = {
    "requires is no list": "[build-system]\nrequires = 'x'\n",
    "requires is missing": "[build-system]\nbuild-backend = 'x'\n",
    "the backend is no name": "[build-system]\nrequires = []\nbuild-backend = 'os; import sys'\n",
    "the path leads out": "[build-system]\nrequires = []\nbuild-backend = 'x'\nbackend-path = ['..']\n",
    "the table is a number": "build-system = 1\n",
    "a requirement is a path": "[build-system]\nrequires = ['./x']\nbuild-backend = 'x'\n",
    "a requirement is two lines": "[build-system]\nrequires = ['x\\n--index-url http://127.0.0.1']\nbuild-backend = 'x'\n",
}


@pytest.mark.parametrize("case", ODD)
def test_what_it_says_of_itself_in_another_way_is_refused(case: str) -> None:
    with pytest.raises(DesiredStateError) as error:
        way_of(ODD[case], True, "src/pylock.toml:7: a 1.0")
    assert error.value.reason == "BadSource"
    assert error.value.message.startswith("src/pylock.toml:7: a 1.0: ")
    assert "\n" not in error.value.message


def test_a_wheel_is_packed_by_its_files_alone(tmp_path: Path) -> None:
    for number, (order, date, mode, level) in enumerate(
        [(("a.py", "b"), (1999, 1, 1, 0, 0, 0), 0o644, 0), (("b", "a.py"), (2030, 5, 5, 1, 2, 4), 0o600, 8)]
    ):
        with zipfile.ZipFile(tmp_path / f"{number}.whl", "w", level) as archive:
            for name in order:
                info = zipfile.ZipInfo(name, date)
                info.external_attr, info.compress_type = (0o100000 | mode | (0o100 if name == "b" else 0)) << 16, level
                archive.writestr(info, name * 100)
        repack(tmp_path / f"{number}.whl", tmp_path / f"{number}.new")
    first, second = (tmp_path / "0.new").read_bytes(), (tmp_path / "1.new").read_bytes()
    assert first == second
    with zipfile.ZipFile(tmp_path / "0.new") as archive:
        assert [(info.filename, info.external_attr >> 16 & 0o777, info.compress_type) for info in archive.infolist()] == [
            ("a.py", 0o644, 0),
            ("b", 0o755, 0),
        ]


# Resolved


def test_loose_requirements_may_come_to_releases_without_a_wheel(index: WheelIndex, tmp_path: Path) -> None:
    mark = tmp_path / "was run"
    evil = f"\nopen({str(mark)!r}, 'w').write('x')\n"
    for version in ("1.0", "2.0"):
        data = sdist(
            "a",
            version,
            needs=("b>=1", "extra-one; extra == 'x'"),
            more=f"\ntry:\n    {evil.strip()}\nexcept OSError:\n    pass\n",
        )
        index.add("a", version, data=data, file=f"a-{version}.tar.gz")
    index.add("b", "0.5")
    index.add("b", "1.5")
    learned: list[str] = []

    def learn(item: Wanted) -> Needs:
        learned.append(f"{item.name} {item.version}")
        return needs_of(got(tmp_path, index, item).path)

    resolver = Resolver(tmp_path / "resolved")

    def resolved(text: str) -> str:
        return resolver.resolved(text, "", "", targets=[HOST], index=index.address, origin="src/requirements.txt", learn=learn)

    lock = wanted_of(resolved("a<2\n"), "lock", HOST)
    assert [(item.name, item.version) for item in lock] == [("a", "1.0"), ("b", "1.5")]
    assert learned == ["a 1.0"]
    # What was learned is asked for again only where nothing is kept.
    assert wanted_of(resolved("a<2\n"), "lock", HOST) == lock
    with pytest.raises(DesiredStateError, match="expected requirements that fit together"):
        resolved("a<2\nb<1\n")
    with pytest.raises(DesiredStateError, match="expected requirements that fit together"):
        resolver.resolved("a\n", "", "", targets=[HOST], index=index.address, origin="src/requirements.txt")
    assert not mark.exists()
    shutil.rmtree(tmp_path / "resolved")
    assert wanted_of(resolved("a\n"), "lock", HOST)[0].version == "2.0"
