"""Wheels of a lock: each once, by its hash, from an index that fails in the ways that indexes do."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.adapters.build.fetching import fetch_wheels
from controller.adapters.build.indexes import check_index, index_of
from controller.adapters.build.requirements import wanted_of
from controller.adapters.build.wheel_checks import check_wheel
from controller.adapters.build.wheel_store import Wheel, WheelStore
from policies.errors import ControllerError, DesiredStateError, RefusedError, SilentError
from policies.locks import Lock, Target, Wanted
from policies.terms.digest import Digest, digest_of
from tests.controller.wheel_index import WheelIndex, wheel_bytes, wheel_index

AMD = Target(python="3.11", platform="linux/amd64")
ARM = Target(python="3.12", platform="linux/arm64")


@pytest.fixture
def index() -> Iterator[WheelIndex]:
    with wheel_index() as found:
        yield found


def lock_of(text: str, target: Target = AMD) -> Lock:
    return Lock(text=text, origin="src/requirements.txt", resolved=False, wheels=wanted_of(text, "src/requirements.txt", target))


def fetched(index: WheelIndex, cache: Path, text: str, target: Target = AMD) -> tuple[Wheel, ...]:
    return fetch_wheels(lock_of(text, target), cache, target, index=index.address)


def test_wheels_come_once_each_and_lie_under_their_hash(index: WheelIndex, tmp_path: Path) -> None:
    digests = {name: index.add(name, "1.0") for name in ("b", "a-c", "d")}
    text = "".join(index.line(name, "1.0") for name in digests)
    said: list[str] = []
    wheels = fetch_wheels(lock_of(text), tmp_path, AMD, index=index.address, progress=said.append)
    assert [(wheel.name, wheel.version, wheel.digest) for wheel in wheels] == [
        (name, "1.0", digests[name]) for name in ("a-c", "b", "d")
    ]
    assert [wheel.file for wheel in wheels] == ["a_c-1.0-py3-none-any.whl", "b-1.0-py3-none-any.whl", "d-1.0-py3-none-any.whl"]
    assert all(wheel.path.parent.name == wheel.digest.removeprefix("sha256:") for wheel in wheels)
    assert (said[0], said[-1]) == ("fetching wheels: 0 of 3", "fetching wheels: 3 of 3")
    before = len(index.asked)
    assert fetched(index, tmp_path, text) == wheels
    assert len(index.asked) == before
    assert [path.name for path in tmp_path.glob("new-*")] == []


def test_one_changed_requirement_fetches_that_one(index: WheelIndex, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        index.add(name, "1.0")
    index.add("b", "1.1")
    fetched(index, tmp_path, "".join(index.line(name, "1.0") for name in "abc"))
    index.asked.clear()
    wheels = fetched(index, tmp_path, index.line("a", "1.0") + index.line("b", "1.1") + index.line("c", "1.0"))
    assert [wheel.version for wheel in wheels] == ["1.0", "1.1", "1.0"]
    assert index.fetched() == ["b-1.1-py3-none-any.whl"]


def test_thirty_wheels_that_are_here_take_less_than_a_tenth_of_a_second(tmp_path: Path) -> None:
    wanted = []
    for number in range(30):
        data = wheel_bytes(f"p{number}", "1.0", {"x.py": b"x" * number})
        wanted.append(
            Wanted(name=f"p{number}", version="1.0", hashes=tuple(sorted((digest_of(data), digest_of(b"other")))), line=1)
        )
        (tmp_path / f"p{number}-1.0-py3-none-any.whl").write_bytes(data)
        WheelStore(tmp_path / "cache", AMD).adopt(wanted[-1], tmp_path / f"p{number}-1.0-py3-none-any.whl")
    lock = Lock(text="", origin="r", resolved=False, wheels=tuple(wanted))
    before = time.process_time()
    assert len(fetch_wheels(lock, tmp_path / "cache", AMD)) == 30
    assert time.process_time() - before < 0.1


TAGS = (
    "cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64",
    "cp311-cp311-manylinux_2_28_x86_64",
    "cp311-cp311-manylinux_2_34_x86_64",
    "cp312-cp312-manylinux_2_17_aarch64.manylinux2014_aarch64",
    "cp39-abi3-manylinux_2_17_x86_64",
    "py3-none-any",
)


@pytest.mark.parametrize(
    ("target", "tags"),
    [
        (AMD, "cp311-cp311-manylinux_2_28_x86_64"),
        (Target(python="3.11", platform="linux/amd64", glibc=40), "cp311-cp311-manylinux_2_28_x86_64"),
        (Target(python="3.11", platform="linux/amd64", glibc=17), "cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64"),
        (Target(python="3.12", platform="linux/amd64"), "cp39-abi3-manylinux_2_17_x86_64"),
        (ARM, "cp312-cp312-manylinux_2_17_aarch64.manylinux2014_aarch64"),
        (Target(python="3.13", platform="linux/arm64"), "py3-none-any"),
        (Target(python="3.11", platform="linux/amd64", is_musl=True), "py3-none-any"),
    ],
)
def test_the_wheel_that_fits_a_target_best_comes_on_any_machine(
    index: WheelIndex, tmp_path: Path, target: Target, tags: str
) -> None:
    for each in TAGS:
        index.add("a", "1.0", tags=each)
    (wheel,) = fetched(index, tmp_path, index.line("a", "1.0"), target)
    assert wheel.file == f"a-1.0-{tags}.whl"
    (other,) = fetched(index, tmp_path, index.line("a", "1.0"), ARM)
    assert other.file == "a-1.0-cp312-cp312-manylinux_2_17_aarch64.manylinux2014_aarch64.whl"
    assert fetched(index, tmp_path, index.line("a", "1.0"), target) == (wheel,)


def test_newer_wheels_are_taken_where_the_machine_is_newer_and_there_are_no_others(index: WheelIndex, tmp_path: Path) -> None:
    for minor in (36, 34):
        index.add("a", "1.0", tags=f"cp311-cp311-manylinux_2_{minor}_x86_64")
    (wheel,) = fetched(index, tmp_path, index.line("a", "1.0"), Target(python="3.11", platform="linux/amd64", glibc=36))
    assert wheel.file == "a-1.0-cp311-cp311-manylinux_2_34_x86_64.whl"
    with pytest.raises(
        DesiredStateError, match=r"requirements.txt:1: a 1\.0: expected a wheel .*, got cp311-cp311-manylinux_2_34"
    ):
        fetched(index, tmp_path, index.line("a", "1.0"))


FAULTS: dict[str, tuple[str, str, type[ControllerError], str]] = {
    "the index has too much to do": ("a", "429", SilentError, "it did not answer"),
    "the index is broken": ("a", "500", SilentError, "it did not answer"),
    "a file is asked for too often": ("a-1.0-py3-none-any.whl", "429", SilentError, "it did not answer"),
    "a file cannot be read there": ("a-1.0-py3-none-any.whl", "500", SilentError, "it did not answer"),
    "half a file comes": ("a-1.0-py3-none-any.whl", "half", SilentError, "it did not answer"),
    "other bytes come": (
        "a-1.0-py3-none-any.whl",
        "other",
        DesiredStateError,
        "expected a file with a hash of the lock, got sha256:",
    ),
    "the index wants a password": ("a", "401", RefusedError, "other credentials"),
    "the index is closed to us": ("a", "403", RefusedError, "other credentials"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_what_the_index_does_wrong_is_told_and_the_next_try_goes_on(
    index: WheelIndex, tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_RESUME_RETRIES", "0")
    place, fault, kind, words = FAULTS[case]
    for name in ("a", "b", "c"):
        index.add(name, "1.0")
    index.faults[place] = fault
    text = "".join(index.line(name, "1.0") for name in "abc")
    with pytest.raises(kind, match=words) as error:
        fetched(index, tmp_path, text)
    assert "127.0.0.1" not in error.value.message
    assert list(tmp_path.rglob("a-1.0*")) == []
    index.faults.clear()
    assert len(fetched(index, tmp_path, text)) == 3


def test_one_wheel_that_is_not_to_be_had_loses_no_other(index: WheelIndex, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        index.add(name, "1.0")
    text = "".join(index.line(name, "1.0") for name in "abc") + "z==1.0 --hash=" + digest_of(b"z") + "\n"
    text += "y==1.0 --hash=" + digest_of(b"y") + "\n"
    with pytest.raises(DesiredStateError) as error:
        fetched(index, tmp_path, text)
    assert "src/requirements.txt:7: z 1.0: expected a wheel" in error.value.message
    assert "src/requirements.txt:8: y 1.0: expected a wheel" in error.value.message
    index.asked.clear()
    fetched(index, tmp_path, "".join(index.line(name, "1.0") for name in "abc"))
    assert index.fetched() == []


def test_only_a_source_distribution_says_so(index: WheelIndex, tmp_path: Path) -> None:
    index.files["a"] = {"a-1.0.tar.gz": b"not looked into"}
    with pytest.raises(DesiredStateError, match=r"got a source distribution alone"):
        fetched(index, tmp_path, "a==1.0 --hash=" + digest_of(b"not looked into"))


def test_what_a_killed_fetch_brought_is_taken_over(index: WheelIndex, tmp_path: Path) -> None:
    data = {name: wheel_bytes(name, "1.0", {"x.py": name.encode()}) for name in ("a", "b")}
    for name, each in data.items():
        index.add(name, "1.0", data=each)
    store = WheelStore(tmp_path, AMD)
    with store.coming() as name:
        place = Path(f"{name}-killed") / "pip-unpack-1"
    place.mkdir(parents=True)
    (place / "a-1.0-py3-none-any.whl").write_bytes(data["a"])
    (place / "b-1.0-py3-none-any.whl").write_bytes(data["b"][:100])
    fetched(index, tmp_path, index.line("a", "1.0") + index.line("b", "1.0"))
    assert index.fetched() == ["b-1.0-py3-none-any.whl"]
    os.utime(place.parent, (0, 0))
    index.add("c", "1.0")
    fetched(index, tmp_path, index.line("c", "1.0"))
    assert list(tmp_path.glob("new-*")) == []


def test_a_fetch_that_is_killed_goes_on_next_time(index: WheelIndex, tmp_path: Path) -> None:
    """For real: the program dies while pip waits for the last file."""
    for name in ("a", "b"):
        index.add(name, "1.0")
    text = index.line("a", "1.0") + index.line("b", "1.0")
    (tmp_path / "lock").write_text(text)
    code = (
        "import sys, pathlib, os\n"
        "from controller.adapters.build import fetching\n"
        "from controller.adapters.build.wheel_store import WheelStore\n"
        "from tests.controller.test_fetching import lock_of, AMD\n"
        "adopt = WheelStore.adopt\n"
        "WheelStore.adopt = lambda *args, **more: (adopt(*args, **more), os._exit(9))\n"
        "lock = lock_of(pathlib.Path(sys.argv[1]).read_text())\n"
        "fetching.fetch_wheels(lock, pathlib.Path(sys.argv[2]), AMD, index=sys.argv[3])\n"
    )
    argv = [sys.executable, "-c", code, str(tmp_path / "lock"), str(tmp_path / "cache"), index.address]
    assert subprocess.run(argv, check=False).returncode == 9
    assert len(fetched(index, tmp_path / "cache", text)) == 2


def test_a_wheel_that_was_touched_is_fetched_again(index: WheelIndex, tmp_path: Path) -> None:
    index.add("a", "1.0")
    (wheel,) = fetched(index, tmp_path, index.line("a", "1.0"))
    whole = wheel.path.read_bytes()
    seen = wheel.path.stat()
    wheel.path.write_bytes(whole[:50] + bytes([whole[50] ^ 1]) + whole[51:])
    os.utime(wheel.path, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    assert fetched(index, tmp_path, index.line("a", "1.0")) == (wheel,)
    assert wheel.path.read_bytes() == whole


def test_a_full_disk_is_waited_for(index: WheelIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index.add("a", "1.0", data=wheel_bytes("a", "1.0", {"x": os.urandom(400_000)}))
    fake = tmp_path / "bin"
    fake.mkdir()
    program = fake / "python"
    program.write_text(
        '#!/bin/sh\necho "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device" >&2\nexit 1\n'
    )
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(SilentError, match="no space left on the disk") as error:
        fetched(index, tmp_path, index.line("a", "1.0"))
    assert error.value.reason == "DiskFull"


def test_the_index_takes_a_password_out_of_netrc(index: WheelIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index.passwords["ada"] = "hunter2 is not it".replace(" ", "-")
    index.add("a", "1.0")
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login ada password {index.passwords['ada']}\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert len(fetched(index, tmp_path / "cache", index.line("a", "1.0"))) == 1
    monkeypatch.delenv("NETRC")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(RefusedError):
        fetched(index, tmp_path / "other", index.line("a", "1.0"))


def test_a_lock_with_addresses_is_fetched_from_there_unless_an_index_is_named(index: WheelIndex, tmp_path: Path) -> None:
    digest = index.add("a", "1.0")
    far = Wanted(
        name="a",
        version="1.0",
        hashes=(digest,),
        line=1,
        file="a-1.0-py3-none-any.whl",
        url="http://127.0.0.1:9/a-1.0-py3-none-any.whl",
    )
    lock = Lock(text="", origin="uv.lock", resolved=False, wheels=(far,))
    assert len(fetch_wheels(lock, tmp_path / "one", AMD, index=index.address)) == 1
    near = Wanted(
        name="a",
        version="1.0",
        hashes=(digest,),
        line=1,
        file="a-1.0-py3-none-any.whl",
        url=index.address + "a/a-1.0-py3-none-any.whl",
    )
    index.asked.clear()
    assert len(fetch_wheels(Lock(text="", origin="uv.lock", resolved=False, wheels=(near,)), tmp_path / "two", AMD)) == 1
    assert index.asked == ["/simple/a/a-1.0-py3-none-any.whl"]


@pytest.mark.parametrize(
    "url", ["file:///etc", "https://ada:pw@h/simple", "h/simple", "https://", "https://h/simple?token=x", "http://[::1"]
)
def test_an_index_that_cannot_be_one_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(DesiredStateError, match=r"spec\.builder\.index: expected") as error:
        check_index(url)
    assert "pw" not in error.value.message
    assert "token=x" not in error.value.message


def test_the_settings_of_pip_are_read_as_pip_ranks_them(tmp_path: Path) -> None:
    listed = (
        "global.index-url='https://one.example/simple'\n:env:.index-url='https://ada:pw@two.example/simple'\n"
        "download.index-url='https://three.example/simple'\nglobal.extra-index-url='\\nhttps://x.example\\nhttps://y.example'\n"
        f"global.find-links='/nowhere {tmp_path}'\nglobal.cert='/etc/ca.pem'\ninstall.no-index='1'\nnonsense\n"
    )
    found = index_of(listed)
    assert found.url.reveal() == "https://ada:pw@two.example/simple"
    assert [item.reveal() for item in found.more] == ["https://x.example", "https://y.example"]
    assert [item.reveal() for item in found.find_links] == [str(tmp_path)]
    assert (found.certificates, found.is_off) == ("/etc/ca.pem", False)
    assert "pw" not in repr(found)


def zipped(entries: list[tuple[str, bytes]], *, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in [*entries, ("a-1.0.dist-info/METADATA", b"Name: a\nVersion: 1.0\n")]:
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return out.getvalue()


def patched(data: bytes, old: bytes, new: bytes) -> bytes:
    assert old in data
    return data.replace(old, new)


BAD_WHEELS: dict[str, tuple[bytes, str]] = {
    "not a zip": (b"<html>moved</html>", "no whole zip"),
    "half a zip": (wheel_bytes("a", "1.0")[:200], "no whole zip"),
    "nothing": (b"", "no whole zip"),
    "another project": (wheel_bytes("a", "1.0", said=("b", "1.0")), "expected a 1.0 in it, as its name says, got b 1.0"),
    "another version": (wheel_bytes("a", "1.0", said=("a", "1.1")), "expected a 1.0 in it, as its name says, got a 1.1"),
    "no metadata": (
        patched(wheel_bytes("a", "1.0"), b"dist-info/METADATA", b"dist-info/METADATX"),
        "expected one .dist-info/METADATA in it, got 0",
    ),
    "a name that leads out": (zipped([("../evil.py", b"")]), "names inside of the wheel"),
    "a name that leads out later": (zipped([("a/../../evil.py", b"")]), "names inside of the wheel"),
    "an absolute name": (zipped([("/etc/passwd", b"")]), "names inside of the wheel"),
    "a name of another system": (zipped([("a\\..\\b", b"")]), "names inside of the wheel"),
    "an empty part in a name": (zipped([("a//b", b"")]), "names inside of the wheel"),
    "a bomb": (zipped([("zeros", bytes(100 << 20))]), "bytes unpacked for each one"),
    "twice the same name": (
        patched(zipped([("a/x.py", b"1"), ("a/y.py", b"2")]), b"a/y.py", b"a/x.py"),
        "expected it once, got it twice",
    ),
    "an odd packing": (zipped([("x", b"1" * 100)], method=zipfile.ZIP_BZIP2), "encrypted or oddly packed"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("case", BAD_WHEELS)
def test_a_bad_wheel_is_refused_when_it_comes_in(index: WheelIndex, tmp_path: Path, case: str) -> None:
    data, words = BAD_WHEELS[case]
    path = tmp_path / "a-1.0-py3-none-any.whl"
    path.write_bytes(data)
    with pytest.raises(DesiredStateError, match=r"wheel a-1\.0-py3-none-any\.whl: ") as error:
        check_wheel(path)
    assert words in error.value.message
    assert error.value.reason == "UnsafeWheel"
    wanted = Wanted(name="a", version="1.0", hashes=(digest_of(data),), line=1)
    with pytest.raises(DesiredStateError):
        WheelStore(tmp_path / "cache", AMD).adopt(wanted, path)
    assert list((tmp_path / "cache").rglob("*.whl")) == []


def test_a_bomb_that_says_too_much_is_refused_by_its_size(tmp_path: Path) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("x", b"1" * 100)
        archive.writestr("a-1.0.dist-info/METADATA", b"Name: a\nVersion: 1.0\n")
        archive.filelist[0].file_size = 9 << 30
    path = tmp_path / "a-1.0-py3-none-any.whl"
    path.write_bytes(out.getvalue())
    with pytest.raises(DesiredStateError, match=r"expected at most 8589934592 bytes unpacked, got 96636764"):
        check_wheel(path)


IN_THE_INDEX: dict[str, tuple[bytes, str]] = {
    "a name that leads out": (wheel_bytes("a", "1.0", {"../evil.py": b""}), "names inside of the wheel"),
    "not a zip": (b"<html>moved</html>", "expected a wheel of that name and version, got another file"),
    "another project": (
        wheel_bytes("a", "1.0", said=("b", "1.0")),
        "expected a wheel of that name and version, got another file",
    ),
}


@pytest.mark.parametrize("case", IN_THE_INDEX)
def test_a_bad_wheel_of_the_index_goes_into_no_store(index: WheelIndex, tmp_path: Path, case: str) -> None:
    data, words = IN_THE_INDEX[case]
    index.add("a", "1.0", data=data)
    with pytest.raises(DesiredStateError, match=words) as error:
        fetched(index, tmp_path, index.line("a", "1.0"))
    assert error.value.reason == "UnsafeWheel"
    assert list(tmp_path.rglob("*.whl")) == []


def test_bytes_with_another_hash_are_never_adopted(tmp_path: Path) -> None:
    path = tmp_path / "a-1.0-py3-none-any.whl"
    path.write_bytes(wheel_bytes("a", "1.0"))
    with pytest.raises(DesiredStateError, match="expected a file with a hash of the lock, got sha256:"):
        WheelStore(tmp_path / "cache", AMD).adopt(Wanted(name="a", version="1.0", hashes=(Digest(digest_of(b"")),), line=1), path)
