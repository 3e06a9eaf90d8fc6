"""A registry on a bad line: pauses, half answers, uploads that break."""

from __future__ import annotations

import hashlib
import io
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from controller.adapters.oci import uploads
from controller.adapters.oci.layout import EMPTY, MANIFEST
from controller.adapters.oci.registry import RELIED_SECONDS, Access, Registry
from policies.canonical import canonical
from policies.errors import RefusedError, SilentError, TrustError
from policies.terms.digest import digest_of
from tests.contracts.registry_server import LOST, SLOW, RegistryServer, Said, registry_server, why_no_registry
from tests.controller.registry_line import DATA, DIGEST, Line, said

needs_registry = pytest.mark.skipif(bool(why_no_registry()), reason=why_no_registry())
ROOT = Path(__file__).parents[2]
BIG_BYTES = 1 << 30
BOUND_BYTES = 150 << 20


@pytest.fixture
def line() -> Iterator[Line]:
    made = Line()
    yield made
    made.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    if why_no_registry():
        pytest.skip(why_no_registry())
    with registry_server(tmp_path_factory.mktemp("registry")) as running:
        yield running


# A bad line


def test_who_asks_for_a_pause_gets_it(line: Line) -> None:
    line.gateway.tell(Said(status=429, headers={"Retry-After": "7"}))
    line.gateway.tell(Said(status=429))
    line.gateway.tell(Said(body=DATA))
    assert line.fetched() == DATA
    # Others were told the same, so nobody comes back at that very moment.
    assert 7.0 <= line.pauses[0] <= 7.25
    assert 0.5 <= line.pauses[1] <= 1.0
    assert len(line.pauses) == 2


def test_who_asks_for_a_long_pause_is_left_alone(line: Line) -> None:
    line.gateway.tell(Said(status=429, headers={"Retry-After": "3600"}))
    with pytest.raises(SilentError, match="got status 429 and the wish to wait 3600 s at try 1"):
        line.registry.manifest("v1")
    assert line.pauses == []
    line.gateway.tell(Said(status=503, headers={"Retry-After": "Fri, 31 Dec 9999 23:59:59 GMT"}))
    with pytest.raises(SilentError, match="the wish to wait"):
        line.registry.manifest("v1")
    line.gateway.tell(Said(status=503, headers={"Retry-After": "soon"}))
    assert line.registry.manifest("v1") is None


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_who_is_ill_is_asked_again_but_not_for_ever(line: Line, status: int) -> None:
    line.gateway.tell(Said(status=status, body=b"<html>oh</html>"), times=2)
    assert line.registry.manifest("v1") is None
    assert len(line.pauses) == 2
    line.gateway.tell(Said(status=status), times=9)
    with pytest.raises(SilentError) as caught:
        line.fetched()
    assert caught.value.message == (
        f"registry {line.access.repository}: blob {DIGEST}: expected an answer, got status {status} at try 4"
    )
    assert caught.value.reason == "RegistrySilent"
    assert len(line.gateway.asked) == 7
    assert all(pause <= 8.0 for pause in line.pauses)
    assert len(set(line.pauses)) == len(line.pauses)


def test_half_a_blob_is_fetched_again(line: Line) -> None:
    line.gateway.tell(Said(body=DATA, sent=20))
    line.gateway.tell(Said(body=b"x" * 100, sent=99))
    line.gateway.tell(Said(body=DATA))
    assert line.fetched() == DATA
    line.gateway.tell(Said(body=DATA, sent=len(DATA) - 1), times=4)
    with pytest.raises(SilentError, match="got a broken connection at try 4"):
        line.fetched()


def test_what_came_of_a_blob_is_not_fetched_twice(line: Line) -> None:
    line.gateway.tell(Said(body=DATA, sent=20))
    line.gateway.tell(Said(status=206, body=DATA[20:], sent=5, headers={"Content-Range": f"bytes 20-50/{len(DATA)}"}))
    line.gateway.tell(Said(status=206, body=DATA[25:], headers={"Content-Range": f"bytes 25-50/{len(DATA)}"}))
    assert line.fetched() == DATA
    assert [headers.get("range") for headers in line.gateway.headers] == [None, "bytes=20-", "bytes=25-"]
    # A line that broke after the last byte.
    line.gateway.tell(Said(body=DATA, headers={"Content-Length": str(len(DATA) + 1)}, sent=len(DATA)))
    line.gateway.tell(Said(status=416))
    assert line.fetched() == DATA


def test_parts_that_do_not_fit_are_fetched_anew_and_whole(line: Line) -> None:
    for other in (b"z" * 20 + DATA[20:], DATA):
        line.gateway.tell(Said(body=other, sent=20))
        start = 20 if other != DATA else 3
        fields = {"Content-Range": f"bytes {start}-{len(DATA) - 1}/{len(DATA)}"}
        line.gateway.tell(Said(status=206, body=DATA[start:], headers=fields))
        line.gateway.tell(Said(body=DATA))
        assert line.fetched() == DATA
        line.gateway.answers.clear()
    line.gateway.tell(Said(body=DATA, sent=20))
    line.gateway.tell(Said(status=206, body=DATA[20:].upper(), headers={"Content-Range": "bytes 20-"}))
    line.gateway.tell(Said(body=DATA.upper()))
    with pytest.raises(TrustError, match=f"blob {DIGEST}: expected these bytes from"):
        line.fetched()


@needs_registry
def test_a_real_registry_goes_on_where_a_line_broke(server: RegistryServer, tmp_path: Path) -> None:
    line = Line(server.address)
    data = b"a blob of this test alone, long enough to be cut in half"
    (tmp_path / "blob").write_bytes(data)
    line.registry.put_blob(tmp_path / "blob", digest_of(data))
    line.gateway.tell(Said(body=data, sent=20), method="GET")
    out = io.BytesIO()
    line.registry.fetch_blob(digest_of(data), out)
    assert out.getvalue() == data
    assert line.gateway.asked[-1].endswith(" 206")
    line.close()


def test_half_a_manifest_is_fetched_again(line: Line) -> None:
    line.gateway.tell(Said(body=DATA, sent=20))
    line.gateway.tell(LOST)
    line.gateway.tell(Said(body=DATA))
    assert line.registry.manifest(DIGEST) == DATA


def test_other_bytes_of_the_right_length_are_not_trusted(line: Line) -> None:
    line.gateway.tell(Said(body=DATA.upper()), times=2)
    for ask in (line.fetched, lambda: line.registry.manifest(DIGEST)):
        with pytest.raises(TrustError, match="expected these bytes from") as caught:
            ask()
        assert caught.value.reason == "BlobChanged"
    assert line.pauses == []


def test_a_manifest_of_no_sensible_size_is_not_read(line: Line) -> None:
    line.gateway.tell(Said(body=b" " * (9 << 20)))
    with pytest.raises(TrustError, match="expected at most"):
        line.registry.manifest("v1")


def test_who_is_slow_is_not_waited_for() -> None:
    line = Line(read_seconds=0.2, tries=2)
    line.gateway.tell(SLOW, times=2)
    began = time.monotonic()
    with pytest.raises(SilentError, match="got nothing in time at try 2"):
        line.registry.manifest("v1")
    assert time.monotonic() - began < 5
    line.close()


def test_a_closed_port_and_a_name_without_address_have_words() -> None:
    for host, words in (("127.0.0.1:1", "connection refused"), ("no-such-host.invalid:5000", "no address for its name")):
        registry = Registry(Access(repository=f"{host}/x", unsafe_plain_http=True), sleep=lambda _: None, tries=2)
        with pytest.raises(SilentError, match=f"expected an answer, got {words} at try 2"):
            registry.manifest("v1")


# Uploads


def sent_again(line: Line) -> list[str]:
    return [text.split()[0] for text in line.gateway.asked]


@needs_registry
def test_an_upload_that_never_arrived_goes_on_where_it_was_begun(server: RegistryServer, tmp_path: Path) -> None:
    line = Line(server.address)
    (tmp_path / "blob").write_bytes(DATA)
    line.gateway.tell(LOST, method="PUT")
    line.registry.put_blob(tmp_path / "blob", DIGEST)
    assert sent_again(line) == ["POST", "PUT", "GET", "PATCH", "PUT"]
    assert line.fetched() == DATA
    line.close()


@needs_registry
def test_a_big_upload_goes_on_after_the_last_piece_that_arrived(server: RegistryServer, tmp_path: Path) -> None:
    line = Line(server.address)
    block = os.urandom(1 << 20)
    (tmp_path / "blob").write_bytes(block * 40)
    digest = digest_of(block * 40)
    line.gateway.tell(LOST, method="PUT")
    line.gateway.answers.append(at_second("PATCH"))
    line.registry.put_blob(tmp_path / "blob", digest)
    assert sent_again(line) == ["POST", "PUT", "GET", "PATCH", "PATCH", "GET", "PATCH", "PATCH", "PUT"]
    piece, size = uploads.PIECE_BYTES, 40 << 20
    ranges = [headers.get("content-range") for headers in line.gateway.headers if "content-range" in headers]
    second = f"{piece}-{2 * piece - 1}"
    assert ranges == [f"0-{piece - 1}", second, second, f"{2 * piece}-{size - 1}"]
    assert len(line.pauses) == 1
    assert server.blob(digest).stat().st_size == size
    line.close()


def at_second(verb: str) -> Callable[[str, str], Said | None]:
    """The line dies at the second request of a kind."""
    seen = []

    def answer(method: str, path: str) -> Said | None:
        seen.extend([1] if method == verb else [])
        return LOST if method == verb and len(seen) == 2 else None

    return answer


@needs_registry
def test_an_upload_whose_answer_was_lost_is_not_sent_twice(server: RegistryServer, tmp_path: Path) -> None:
    line = Line(server.address)
    data = b"arrives, but nobody hears of it"
    (tmp_path / "blob").write_bytes(data)
    line.gateway.takes_effect = True
    line.gateway.tell(LOST, method="PUT")
    line.registry.put_blob(tmp_path / "blob", digest_of(data))
    assert sent_again(line) == ["POST", "PUT", "GET", "POST"]
    assert line.gateway.asked[-1].endswith(" 201")
    line.close()


@needs_registry
def test_an_upload_that_broke_within_is_begun_again_where_the_registry_knows_no_more(
    server: RegistryServer, tmp_path: Path
) -> None:
    """Distribution 2.8 forgets an upload that broke within a request."""
    line = Line()
    (tmp_path / "blob").write_bytes(DATA)
    for _ in range(2):
        line.gateway.tell(Said(status=202, headers={"Location": "/v2/team/digits/blobs/uploads/1?_state=a%3D"}), method="POST")
        line.gateway.tell(LOST, method="PUT")
        line.gateway.tell(Said(status=404, body=said("BLOB_UPLOAD_INVALID", "blob upload invalid")), method="GET")
    line.gateway.tell(Said(status=202, headers={"Location": "/v2/team/digits/blobs/uploads/2"}), method="POST")
    line.gateway.tell(Said(status=201), method="PUT")
    line.registry.put_blob(tmp_path / "blob", DIGEST)
    assert sent_again(line) == ["POST", "PUT", "GET"] * 2 + ["POST", "PUT"]
    assert f"_state=a%3D&digest=sha256%3A{DIGEST[7:]}" in line.gateway.asked[1]
    line.close()


class Keeping:
    """A registry as the specification has it: of an upload that breaks within it keeps what arrived, and says how much.

    Args:
        breaks: After how many bytes each request breaks, in turn.
    """

    def __init__(self, line: Line, breaks: list[int]) -> None:
        self.kept, self.sent, self._line, self._breaks = b"", 0, line, breaks
        self.done = ""
        line.gateway.answers.append(self._answer)

    def _answer(self, method: str, path: str) -> Said:
        self._line.gateway.answers.append(self._answer)
        place = {"Location": f"/v2/team/digits/blobs/uploads/{len(self.kept)}"}
        where = {**place, "Range": f"0-{max(len(self.kept) - 1, 0)}"}
        if method == "POST":
            self.kept = b""
            return Said(status=202, headers={"Location": "/v2/team/digits/blobs/uploads/0"})
        if method == "GET":
            return Said(status=204, headers=where)
        body = self._line.gateway.body
        start = re.match(r"(\d+)-", self._line.gateway.headers[-1].get("content-range", f"{len(self.kept)}-"))
        assert start is not None
        if int(start[1]) != len(self.kept):
            return Said(status=416, headers=where)
        arrived = body[: self._breaks.pop(0)] if self._breaks and body else body
        self.kept, self.sent = self.kept + arrived, self.sent + len(arrived)
        if len(arrived) < len(body):
            return LOST
        place = {"Location": f"/v2/team/digits/blobs/uploads/{len(self.kept)}"}
        if method == "PATCH":
            return Said(status=202, headers=place)
        self.done = digest_of(self.kept)
        return Said(status=201 if self.done in path.replace("%3A", ":") else 400, body=said("DIGEST_INVALID", "no"))


def test_what_arrived_of_a_broken_upload_is_not_sent_twice(tmp_path: Path) -> None:
    line = Line()
    data = os.urandom(1 << 20) * 40
    (tmp_path / "blob").write_bytes(data)
    keeping = Keeping(line, [5_000_001, 300, 17, 9_000_000, 12_345_678])
    assert line.registry.put_blob(tmp_path / "blob", digest_of(data))
    assert keeping.done == digest_of(data)
    assert keeping.sent == len(data)
    line.close()


def test_a_line_that_breaks_and_breaks_is_given_up_and_named(tmp_path: Path) -> None:
    line = Line()
    data = os.urandom(1 << 20) * 20
    (tmp_path / "blob").write_bytes(data)
    Keeping(line, [7] * 1000)
    with pytest.raises(SilentError, match=f"blob {digest_of(data)}: expected an answer"):
        line.registry.put_blob(tmp_path / "blob", digest_of(data))
    assert len(line.gateway.asked) < 60
    line.close()


def test_a_registry_that_mixed_up_an_upload_is_sent_it_again(tmp_path: Path) -> None:
    line = Line()
    (tmp_path / "blob").write_bytes(DATA)
    place = {"Location": "/v2/team/digits/blobs/uploads/1"}
    line.gateway.tell(Said(status=202, headers=place), method="POST", times=2)
    line.gateway.tell(Said(status=400, body=said("DIGEST_INVALID", "other bytes")), method="PUT")
    line.gateway.tell(Said(status=201), method="PUT")
    assert line.registry.put_blob(tmp_path / "blob", DIGEST)
    # Who has other bytes itself is told so.
    (tmp_path / "blob").write_bytes(b"other")
    line.gateway.tell(Said(status=202, headers=place), method="POST")
    line.gateway.tell(Said(status=400, body=said("DIGEST_INVALID", "other bytes")), method="PUT")
    digest = digest_of(b"these")
    with pytest.raises(TrustError, match=f"blob {digest}: expected these bytes, got {digest_of(b'other')}"):
        line.registry.put_blob(tmp_path / "blob", digest)
    line.close()


@pytest.mark.parametrize("status", [429, 500, 503])
def test_an_upload_is_sent_again_when_the_registry_asks_for_it(tmp_path: Path, status: int) -> None:
    line = Line()
    (tmp_path / "blob").write_bytes(DATA)
    line.gateway.tell(Said(status=202, headers={"Location": "/v2/team/digits/blobs/uploads/1"}), method="POST", times=9)
    line.gateway.tell(Said(status=status, headers={"Retry-After": "3"}), method="PUT", times=2)
    line.gateway.tell(Said(status=201), method="PUT")
    assert line.registry.put_blob(tmp_path / "blob", DIGEST)
    assert sent_again(line) == ["POST", "PUT"] * 3
    assert all(3.0 <= pause <= 3.5 for pause in line.pauses)
    assert len(line.pauses) == 2
    line.gateway.answers.clear()
    other = digest_of(b"other")
    (tmp_path / "blob").write_bytes(b"other")
    line.gateway.tell(Said(status=202, headers={"Location": "/v2/team/digits/blobs/uploads/1"}), method="POST", times=9)
    line.gateway.tell(Said(status=status, headers={"Retry-After": "600"}), method="PUT", times=9)
    with pytest.raises(SilentError, match=f"status {status} and the wish to wait 600 s"):
        line.registry.put_blob(tmp_path / "blob", other)
    assert len(line.pauses) == 2
    line.close()


def test_a_registry_that_takes_nothing_over_is_asked_in_the_long_way(tmp_path: Path) -> None:
    line = Line()
    for number, text in enumerate((b"one", b"two")):
        (tmp_path / "blob").write_bytes(text)
        line.gateway.tell(Said(status=400, body=said("UNSUPPORTED", "no mounts")), method="POST", path="mount=", times=2)
        line.gateway.tell(Said(status=404), method="HEAD")
        line.gateway.tell(Said(status=202, headers={"Location": "/v2/team/digits/blobs/uploads/1"}), method="POST")
        line.gateway.tell(Said(status=201), method="PUT")
        assert line.registry.put_blob(tmp_path / "blob", digest_of(text), source="" if number else "team/other")
        line.gateway.answers.clear()
    assert sent_again(line) == ["POST", "POST", "HEAD", "POST", "PUT", "HEAD", "POST", "PUT"]
    line.close()


def test_who_refuses_what_is_sent_says_why(tmp_path: Path) -> None:
    line = Line()
    (tmp_path / "blob").write_bytes(DATA)
    line.gateway.tell(Said(status=202, headers={"Location": "/v2/team/digits/blobs/uploads/1"}), method="POST")
    line.gateway.tell(Said(status=413, body=b"<html>too large</html>"), method="PUT")
    with pytest.raises(RefusedError, match=f"blob {DIGEST}: got 413$"):
        line.registry.put_blob(tmp_path / "blob", DIGEST)
    line.close()


def test_a_manifest_that_the_registry_mixed_up_is_sent_again() -> None:
    """Distribution 2.8 says DIGEST_INVALID when it reads a link that another request writes at that moment."""
    line = Line()
    line.gateway.tell(Said(status=400, body=said("DIGEST_INVALID", "provided digest did not match")), method="PUT")
    line.gateway.tell(Said(status=201), method="PUT")
    line.registry.put_manifest(b"{}", digest_of(b"{}"))
    assert len(line.pauses) == 1
    line.gateway.tell(Said(status=400, body=said("DIGEST_INVALID", "provided digest did not match")), method="PUT", times=9)
    with pytest.raises(RefusedError, match="got 400"):
        line.registry.put_manifest(b"{}", "v1")
    line.close()


def test_a_list_that_others_always_write_over_is_not_written_for_ever() -> None:
    line = Line()
    manifest = canonical({"mediaType": MANIFEST, "config": {"mediaType": EMPTY}})
    line.gateway.tell(Said(status=201), method="PUT", times=99)
    with pytest.raises(SilentError, match="expected our entry to stay, others wrote 5 times") as caught:
        line.registry.attach(DIGEST, manifest)
    assert caught.value.reason == "RegistryBusy"
    line.close()


@needs_registry
def test_a_blob_is_not_relied_on_for_ever(server: RegistryServer, tmp_path: Path) -> None:
    now = [0.0]
    registry = Registry(Access(repository=f"{server.address}/relied/on", unsafe_plain_http=True), seconds=lambda: now[0])
    (tmp_path / "blob").write_bytes(DATA)
    assert registry.put_blob(tmp_path / "blob", DIGEST)
    server.forget("relied/on", DIGEST)
    assert not registry.put_blob(tmp_path / "never read", DIGEST)
    now[0] += RELIED_SECONDS + 1
    assert registry.put_blob(tmp_path / "blob", DIGEST)
    registry.close()


PUSH = """
import sys
from pathlib import Path
from controller.adapters.oci.registry import Access, Registry
registry = Registry(Access(repository=sys.argv[1], unsafe_plain_http=True))
assert registry.put_blob(Path(sys.argv[2]), sys.argv[3])
class Nowhere:
    tell = seek = truncate = write = lambda self, *_: 0
registry.fetch_blob(sys.argv[3], Nowhere())
# Not `getrusage`: its peak is that of whoever started us, too.
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""


@needs_registry
def test_a_blob_of_a_gibibyte_is_never_held_in_memory(server: RegistryServer, tmp_path: Path) -> None:
    with (tmp_path / "big").open("w+b") as file:
        file.truncate(BIG_BYTES)
        digest = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
    command = [sys.executable, "-c", PUSH, f"{server.address}/big/one", str(tmp_path / "big"), digest]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) << 10 < BOUND_BYTES
    print(f"peak {int(done.stdout) >> 10} MiB")
    server.blob(digest).unlink()
