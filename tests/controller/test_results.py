"""What a job brings back: what is taken of it, what is refused and why, and that nothing of it lands elsewhere."""

import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controller.adapters import results
from controller.adapters.results import job_path, programs_path, report_of, unpack
from myelin.job.folders import Entry
from myelin.job.parcel import pack, stream
from policies.errors import RefusedError, SilentError

DONE = {"exit.json": b'{"code": 0}', "output.log": b"done\n", "report.jsonl": b'{"kind": "result", "loss": 0.5}\n'}
MODEL = {**DONE, "model": None, "model/m": b"1"}
LIMITS = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def packed(files: dict[str, bytes | None]) -> bytes:
    """What a job's own packer writes; None is a folder."""
    entries = [Entry(name, len(data or b""), data or b"", is_folder=data is None) for name, data in files.items()]
    return b"".join(stream(pack(0, entries).entries))


def tarred(*members: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    """What anybody can write."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for name, data in DONE.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, **more: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type = kind
    for key, value in more.items():
        setattr(info, key, value)
    return info, b"x" * info.size


FOLDER = member("model", tarfile.DIRTYPE)


def take(folder: Path, data: bytes, *keeps: str) -> results.Result:
    (folder / "result.tar").write_bytes(data)
    return unpack(folder / "result.tar", folder / "into", keeps=keeps)


def below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_result_is_read(tmp_path: Path) -> None:
    files = {**MODEL, "model/sub": None, "model/sub/ü": b"2", "model/empty": None, "data": None}
    found = take(tmp_path, packed(files), "data", "model")
    assert (found.code, found.log, found.message) == (0, "done\n", "")
    assert [dict(line) for line in found.report] == [{"kind": "result", "loss": 0.5}]
    assert dict(found.folders) == {name: tmp_path / "into" / name for name in ("data", "model")}
    assert below(tmp_path / "into") == ["data", "model", "model/empty", "model/m", "model/sub", "model/sub/ü"]
    assert (tmp_path / "into/model/sub/ü").read_bytes() == b"2"


def test_a_result_that_another_packer_wrote_is_read_too(tmp_path: Path) -> None:
    (tmp_path / "m").write_text("1")
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in DONE.items():
            archive.addfile(member(name, size=len(data))[0], io.BytesIO(data))
        archive.add(tmp_path / "m", "model/v1/m")
        archive.addfile(member("model/v1", tarfile.DIRTYPE)[0])
    take(tmp_path, out.getvalue(), "model")
    assert below(tmp_path / "into") == ["model", "model/v1", "model/v1/m"]


def test_a_folder_that_a_job_lost_is_an_empty_one(tmp_path: Path) -> None:
    assert dict(take(tmp_path, packed({**DONE}), "model").folders) == {"model": tmp_path / "into/model"}
    assert below(tmp_path / "into") == ["model"]


def test_a_failed_job_has_no_folders(tmp_path: Path) -> None:
    failed = {**DONE, "exit.json": b'{"code": -9, "message": "no\\nluck"}'}
    found = take(tmp_path, packed(failed), "data", "model")
    assert (found.code, found.message, found.folders) == (-9, "no luck", {})
    assert below(tmp_path / "into") == []


def test_a_result_needs_no_report_and_no_log(tmp_path: Path) -> None:
    found = take(tmp_path, packed({"exit.json": b'{"code": 127}'}))
    assert (found.code, found.report, found.log) == (127, (), "")


def test_of_a_long_log_and_a_long_report_the_end_counts(tmp_path: Path) -> None:
    lines = b'{"kind": "metric", "name": "m", "value": 1, "text": "%s"}\n' % (b"x" * 1000)
    long = {**DONE, "output.log": b"a" * (2 << 20) + b"\xff end", "report.jsonl": lines * 20_000 + DONE["report.jsonl"]}
    found = take(tmp_path, packed(long))
    assert len(found.log) <= results.LARGEST_LOG_BYTES
    assert found.log.endswith("a� end")
    assert (len(found.report) - 1) * len(lines) <= results.LARGEST_REPORT_BYTES
    assert dict(found.report[-1]) == {"kind": "result", "loss": 0.5}


def test_of_modes_only_who_may_run_it_counts(tmp_path: Path) -> None:
    modes = [FOLDER, member("model/a", mode=0o4777), member("model/b", mode=0o000), member("model/c", mode=0o655)]
    take(tmp_path, tarred(*modes), "model")
    found = {name: (tmp_path / "into/model" / name).stat().st_mode & 0o7777 for name in "abc"}
    umask = os.umask(0)
    os.umask(umask)
    assert found == {"a": 0o755 & ~umask, "b": 0o644 & ~umask, "c": 0o644 & ~umask}


@pytest.mark.parametrize(
    ("line", "value"),
    [
        (b'{"loss": NaN, "a": [Infinity, -Infinity, 1e999]}', {"loss": "nan", "a": ["inf", "-inf", "inf"]}),
        (b'{"n": 123456789012345678901234567890}', {"n": 1.2345678901234568e29}),
        (b'{"n": 900719925474099}', {"n": 900719925474099}),
        (b'{"n": %s}' % (b"9" * 5000), {"n": "inf"}),
        (b'{"text": "\xc3\xbc"}', {"text": "ü"}),
        (b'{"kind": "met', None),
        (b"[1]", None),
        (b"5", None),
        (b"", None),
        (b"\xff\xfe", None),
        (b'{"a": "\\ud800"}', None),
        (b"[" * 100_000, None),
    ],
)
def test_lines_that_are_torn_or_foreign_are_passed_over(line: bytes, value: Any) -> None:
    assert report_of(b'{"a": 1}\n' + line + b'\n{"b": 2}\n') == tuple(
        item for item in ({"a": 1}, value, {"b": 2}) if item is not None
    )


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: tarred(FOLDER, member("model/l", tarfile.SYMTYPE, linkname="/etc/passwd")), "expected a plain file or folder"),
        (lambda: tarred(FOLDER, member("model/l", tarfile.LNKTYPE, linkname="exit.json")), "expected a plain file or folder"),
        (lambda: tarred(FOLDER, member("model/l", tarfile.CHRTYPE)), "expected a plain file or folder"),
        (lambda: tarred(FOLDER, member("model/l", tarfile.FIFOTYPE)), "expected a plain file or folder"),
        (lambda: tarred(FOLDER, member("model/l", tarfile.CONTTYPE, size=1)), "expected a plain file or folder"),
        (lambda: tarred(FOLDER, member("model/l", tarfile.GNUTYPE_SPARSE)), "expected a plain file or folder"),
        (lambda: tarred(member("model", tarfile.DIRTYPE, size=512)), "expected a"),
        (lambda: tarred(FOLDER, member("model/" + "x" * 120), form=tarfile.GNU_FORMAT), "expected a plain file or folder"),
        (lambda: tarred(member("model", tarfile.SYMTYPE, linkname="/tmp"), member("model/x")), "expected a plain file"),
        (lambda: tarred(member("model", size=1)), "'model': expected report.jsonl, output.log, exit.json, model/"),
        (lambda: tarred(member("exit.json", tarfile.DIRTYPE)), "expected at most 100000 entries, each once"),
        (lambda: tarred(member("data", tarfile.DIRTYPE)), "'data': expected report.jsonl, output.log, exit.json, model/"),
        (lambda: tarred(member("other")), "'other': expected report.jsonl"),
        (lambda: tarred(member("/model/x")), "'/model/x': expected report.jsonl"),
        (lambda: tarred(member("../model")), "'../model': expected report.jsonl"),
        (lambda: tarred(FOLDER, member("model/../../x")), "expected a name inside of its folder"),
        (lambda: tarred(FOLDER, member("model/..", tarfile.DIRTYPE)), "expected a name inside of its folder"),
        (lambda: tarred(FOLDER, member("model/./x")), "expected a name inside of its folder"),
        (lambda: tarred(FOLDER, member("model//x")), "expected a name inside of its folder"),
        (lambda: tarred(FOLDER, member("model/x/")), "expected a name inside of its folder"),
        (lambda: tarred(FOLDER, member("model/x", pax_headers={"path": "model/\0"})), "expected a name inside of its folder"),
        (lambda: tarred(FOLDER, member("model/" + "a/" * 2100 + "x")), "expected"),
        (lambda: tarred(FOLDER, member("model/x"), member("model/x/y")), "expected a folder around it, got a file"),
        (lambda: tarred(member("model/x/y"), member("model/x")), "each once"),
        (lambda: tarred(FOLDER, member("model/x"), member("model/x")), "each once"),
        (lambda: tarred(FOLDER, member("model/x", pax_headers={"comment": "hello"})), "expected extended headers that say where"),
        (lambda: tarred(FOLDER, member("model/x", pax_headers={"size": "-5"})), "expected extended headers that say where"),
        (lambda: tarred(FOLDER, member("model/x", pax_headers={"size": str(1 << 60)})), "expected a whole tar file"),
        (lambda: tarred(FOLDER, member("model/x", pax_headers={"path": "model/" + "x" * 9000})), "expected names of at most"),
        (lambda: tarred(FOLDER, member("model/" + "x" * 300)), "expected file names that this disk takes"),
        (lambda: packed(MODEL)[:-512], "expected a tar file that ends after its last entry"),
        (lambda: packed(MODEL) + b"\0" * 10240, "expected a tar file that ends after its last entry"),
        (lambda: packed(MODEL)[:-1024], "expected a whole tar file"),
        (lambda: packed(MODEL)[:700], "expected a whole tar file"),
        (lambda: packed(MODEL).replace(b"model/m", b"model/n"), "expected a whole tar file"),
        (lambda: b"", "expected a whole tar file"),
        (lambda: b"\x1f\x8b" + b"x" * 5000, "expected a whole tar file"),
        (lambda: packed({"output.log": b""}), "expected exit.json, there is none"),
        (lambda: packed({"exit.json": b"{}"}), "exit.json: expected an object with `code`"),
        (lambda: packed({"exit.json": b"[]"}), "exit.json: expected an object with `code`"),
        (lambda: packed({"exit.json": b"\xff"}), "exit.json: expected an object with `code`"),
        (lambda: packed({"exit.json": b"[" * 60_000}), "exit.json: expected an object with `code`"),
        (lambda: packed({"exit.json": b'{"code": true}'}), "exit.json: expected a `code` from -64 to 255 and a `message`"),
        (lambda: packed({"exit.json": b'{"code": 0.0}'}), "exit.json: expected a `code` from -64 to 255 and a `message`"),
        (lambda: packed({"exit.json": b'{"code": 256}'}), "exit.json: expected a `code` from -64 to 255 and a `message`"),
        (lambda: packed({"exit.json": b'{"code": 1, "message": 1}'}), "exit.json: expected a `code` from -64 to 255 and"),
        (lambda: packed({"exit.json": b" " * 70_000}), "exit.json: expected at most 65536 bytes, got 70000"),
        (lambda: packed({**MODEL, "exit.json": b'{"code": 3}'}), "expected no folders of a job that ended with 3, got model"),
    ],
)
def test_what_no_job_writes_is_refused_and_nothing_stays(make: Callable[[], bytes], words: str, tmp_path: Path) -> None:
    with pytest.raises(RefusedError) as caught:
        take(tmp_path, make(), "model")
    assert words in caught.value.message
    assert caught.value.message.startswith("result: ")
    assert "\n" not in str(caught.value)
    assert below(tmp_path) == ["into", "result.tar"]


def test_too_many_entries_are_refused_before_they_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "LARGEST_ENTRIES", 10)
    with pytest.raises(RefusedError, match="expected at most 10 entries"):
        take(tmp_path, packed({**MODEL, **{f"model/{number}": b"" for number in range(10)}}), "model")
    assert below(tmp_path) == ["into", "result.tar"]


def test_a_disk_that_takes_nothing_is_the_outsides_fault(tmp_path: Path) -> None:
    (tmp_path / "into").write_text("no folder")
    with pytest.raises(SilentError):
        take(tmp_path, packed(MODEL), "model")
    with pytest.raises(SilentError):
        unpack(tmp_path / "gone.tar", tmp_path / "new", keeps=())


NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=60).filter(
    lambda name: name not in (".", "..") and len(name.encode()) < 256
)
TREES = st.recursive(st.binary(max_size=1500), lambda below: st.dictionaries(NAMES, below, max_size=4), max_leaves=12)


def flat(prefix: str, tree: Any) -> Iterator[tuple[str, bytes | None]]:
    yield prefix, None if isinstance(tree, dict) else tree
    for name, part in tree.items() if isinstance(tree, dict) else ():
        yield from flat(f"{prefix}/{name}", part)


@LIMITS
@given(tree=st.dictionaries(NAMES, TREES, max_size=4))
def test_what_was_packed_is_what_is_unpacked(tree: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("law")
    files = dict(flat("model", tree))
    top = take(folder, packed({**DONE, **files}), "model").folders["model"]
    found = {f"model/{path.relative_to(top)}": None if path.is_dir() else path.read_bytes() for path in top.rglob("*")}
    assert {"model": None, **found} == files


@LIMITS
@given(
    changes=st.lists(st.tuples(st.integers(0, 8000), st.binary(min_size=1, max_size=20)), min_size=1, max_size=6),
    length=st.integers(0, 8200),
)
def test_whatever_comes_it_is_taken_or_refused_and_lands_nowhere_else(
    changes: list[tuple[int, bytes]], length: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("law")
    data = bytearray(packed({**MODEL, "model/" + "x" * 200: b"2" * 600}))
    for place, part in changes:
        data[place : place + len(part)] = part
    try:
        take(folder, bytes(data[:length]), "model")
    except RefusedError:
        assert below(folder) == ["into", "result.tar"]
    assert {name.split("/")[0] for name in below(folder)} == {"into", "result.tar"}
    assert {name.split("/")[1] for name in below(folder) if "/" in name} <= {"model"}


def test_addresses_follow_from_the_secret_and_the_name_alone() -> None:
    assert job_path("s", "one") == job_path("s", "one")
    paths = {job_path(secret, job) for secret in ("s", "t") for job in ("one", "two", "programs")}
    assert len(paths) == 6
    assert all(path.startswith(("/programs/",)) and path.endswith("/result") for path in paths)
    assert programs_path("s").rpartition("/")[2] not in {job_path("s", "programs").split(".")[1].split("/")[0]}
    assert json.dumps(job_path("s", "one")).isascii()
