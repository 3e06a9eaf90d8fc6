"""Content of Git LFS: fetched by digest, checked, kept; logins go to their own host and nowhere else."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.adapters.git import GitAccess, access_from
from controller.adapters.git.lfs import LargeFiles
from policies.errors import ControllerError, DesiredStateError, RefusedError, SilentError, TrustError
from policies.pointers import Pointer, pointer_of
from tests.contracts.certificates import Authority
from tests.contracts.lfs_server import LfsServer, lfs_server

CONTENT = b"weights" * 100


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LfsServer]:
    with lfs_server(tmp_path / "served") as server:
        yield server


def pointer_to(server: LfsServer, content: bytes = CONTENT) -> Pointer:
    found = pointer_of(server.put(content))
    assert found is not None
    return found


def login(server: LfsServer, **given: str) -> GitAccess:
    access = access_from(given or {"bearerToken": "hunter2"}, server.url("a/b.git"), origin="test")
    assert access.header is not None
    server.needs = access.header.reveal()
    return access


def fetched(
    server: LfsServer, folder: Path, *pointers: Pointer, access: GitAccess | None = None, name: str = "a/b"
) -> dict[str, bytes]:
    return dict(LargeFiles(server.url(name), access, folder / "kept").fetch(pointers))


@pytest.mark.parametrize("name", ["a/b", "a/b.git", "a/b/"])
def test_content_comes_from_where_the_repository_is(server: LfsServer, tmp_path: Path, name: str) -> None:
    pointer, other = pointer_to(server), pointer_to(server, b"")
    assert fetched(server, tmp_path, pointer, other, pointer, name=name) == {pointer.digest: CONTENT, other.digest: b""}
    assert [path for path, _ in server.shown] == [
        "/a/b.git/info/lfs/objects/batch",
        f"/store/{pointer.digest}",
        f"/store/{other.digest}",
    ]


def test_what_was_fetched_is_kept_and_what_was_damaged_is_fetched_again(server: LfsServer, tmp_path: Path) -> None:
    pointer = pointer_to(server)
    fetched(server, tmp_path, pointer)
    server.shown.clear()
    assert fetched(server, tmp_path, pointer) == {pointer.digest: CONTENT}
    assert server.shown == []
    assert [path.name for path in (tmp_path / "kept").iterdir()] == [pointer.digest]
    (tmp_path / "kept" / pointer.digest).write_bytes(CONTENT[:-1] + b"x")
    assert fetched(server, tmp_path, pointer) == {pointer.digest: CONTENT}
    assert len(server.shown) == 2


def test_many_contents_are_asked_for_together(server: LfsServer, tmp_path: Path) -> None:
    pointers = [pointer_to(server, b"%d" % number) for number in range(120)]
    assert len(fetched(server, tmp_path, *pointers)) == 120
    assert sum(path.endswith("/batch") for path, _ in server.shown) == 2


@pytest.mark.parametrize("given", [{"bearerToken": "hunter2"}, {"username": "ada", "password": "hunter2"}])
def test_the_repositorys_login_is_shown_and_never_told(server: LfsServer, tmp_path: Path, given: dict[str, str]) -> None:
    access, pointer = login(server, **given), pointer_to(server)
    assert fetched(server, tmp_path, pointer, access=access) == {pointer.digest: CONTENT}
    assert {shown for _, shown in server.shown} == {server.needs}
    server.needs = "Bearer another"
    with pytest.raises(RefusedError) as caught:
        fetched(server, tmp_path / "fresh", pointer, access=access)
    assert caught.value.reason == "LoginRefused"
    assert "hunter2" not in repr(caught.value)


def test_a_login_goes_to_no_other_host_and_what_the_server_gives_goes_only_where_it_says(tmp_path: Path) -> None:
    with lfs_server(tmp_path / "one") as server, lfs_server(tmp_path / "two") as store, lfs_server(tmp_path / "three") as third:
        access, pointer = login(server), pointer_to(server)
        for other in (store, third):
            other.put(CONTENT)
        # 1. Another host, with nothing for it.
        server.action = {"href": store.url(f"store/{pointer.digest}")}
        assert fetched(server, tmp_path / "1", pointer, access=access) == {pointer.digest: CONTENT}
        # 2. Another host, with a header for it.
        server.action["header"] = {"Authorization": "Bearer once"}
        assert fetched(server, tmp_path / "2", pointer, access=access) == {pointer.digest: CONTENT}
        # 3. That host sends us on.
        store.moved = third.url("store/%s")
        assert fetched(server, tmp_path / "3", pointer, access=access) == {pointer.digest: CONTENT}
        assert [shown for _, shown in store.shown] == ["", "Bearer once", "Bearer once"]
        assert [shown for _, shown in third.shown] == [""]
        # 4. The repository's own host, which says that no login is needed, or gives another one, or sends us on.
        server.shown.clear()
        server.action, server.object = {}, {"authenticated": True}
        fetched(server, tmp_path / "4", pointer, access=access)
        server.action, server.object = {"header": {"Authorization": "Bearer once"}}, {}
        fetched(server, tmp_path / "5", pointer, access=access)
        server.action, server.moved = {}, store.url("store/%s")
        fetched(server, tmp_path / "6", pointer, access=access)
        assert [shown for path, shown in server.shown if path.startswith("/store/")] == ["", "Bearer once", server.needs]
        assert store.shown[-1][1] == ""


def wrong_content(server: LfsServer, pointer: Pointer) -> None:
    server.contents[pointer.digest] = b"x" * len(CONTENT)


def too_much(server: LfsServer, pointer: Pointer) -> None:
    server.contents[pointer.digest] = CONTENT + b"x" * 1000


def too_little(server: LfsServer, pointer: Pointer) -> None:
    server.contents[pointer.digest] = CONTENT[:-1]


def nothing(server: LfsServer, pointer: Pointer) -> None:
    del server.contents[pointer.digest]


def a_file(server: LfsServer, _: Pointer) -> None:
    server.action = {"href": "file:///etc/passwd"}


def round_and_round(server: LfsServer, _: Pointer) -> None:
    server.moved = "/store/%s"


def busy(server: LfsServer, _: Pointer) -> None:
    server.answer_with = (503, b"")


def no_lfs(server: LfsServer, _: Pointer) -> None:
    server.answer_with = (404, b"{}")


def rubbish(server: LfsServer, _: Pointer) -> None:
    server.answer_with = (200, b'{"objects": 3}')


def another_way(server: LfsServer, _: Pointer) -> None:
    server.answer_with = (200, b'{"transfer": "tus", "objects": []}')


def away(server: LfsServer, _: Pointer) -> None:
    server.close()


def odd_header(server: LfsServer, _: Pointer) -> None:
    server.action = {"header": {"X": "a\r\nHost: b"}}


WRONG = {
    wrong_content: (TrustError, "LargeFileDiffers"),
    too_much: (TrustError, "LargeFileDiffers"),
    too_little: (SilentError, "Silent"),
    nothing: (RefusedError, "LargeFileMissing"),
    a_file: (RefusedError, "BadUrl"),
    round_and_round: (SilentError, "Silent"),
    busy: (SilentError, "Silent"),
    no_lfs: (RefusedError, "LargeFileMissing"),
    rubbish: (SilentError, "Silent"),
    another_way: (SilentError, "Silent"),
    away: (SilentError, "Silent"),
    odd_header: (SilentError, "Silent"),
}


@pytest.mark.parametrize("wrong", WRONG, ids=lambda item: item.__name__)
def test_whatever_the_server_does_wrong_is_told_by_name_and_nothing_is_kept(tmp_path: Path, wrong: object) -> None:
    with lfs_server(tmp_path / "served") as server:
        pointer = pointer_to(server)
        wrong(server, pointer)  # type: ignore[operator]
        with pytest.raises(ControllerError) as caught:
            fetched(server, tmp_path, pointer)
    kind, reason = WRONG[wrong]  # type: ignore[index]
    assert (type(caught.value), caught.value.reason) == (kind, reason)
    assert "a/b" in caught.value.message
    assert list((tmp_path / "kept").iterdir()) == []


def test_an_authority_and_a_certificate_of_ones_own_are_used(tmp_path: Path) -> None:
    authority, other = Authority(tmp_path / "pki"), Authority(tmp_path / "other", "others")
    certificate, key = authority.signed("ada")
    with lfs_server(tmp_path / "served", authority.context(people=True)) as server:
        pointer, url = pointer_to(server), server.url("a/b")
        values = {"ca.crt": authority.pem, "tls.crt": certificate, "tls.key": key}
        access = access_from(values, url, origin="test")
        assert fetched(server, tmp_path, pointer, access=access) == {pointer.digest: CONTENT}
        for wrong in (None, access_from({**values, "ca.crt": other.pem}, url, origin="test")):
            with pytest.raises(RefusedError) as caught:
                fetched(server, tmp_path / "fresh", pointer, access=wrong)
            assert caught.value.reason == "CertificateUnknown"
        with lfs_server(tmp_path / "plain") as plain:
            server.action = {"href": plain.url("store/x")}
            with pytest.raises(RefusedError, match="as safe as the repository's") as caught:
                fetched(server, tmp_path / "fresh", pointer, access=access)
            assert (caught.value.reason, plain.shown) == ("BadUrl", [])


@pytest.mark.parametrize("told", ["environment", "settings"])
def test_a_proxy_is_used(server: LfsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str) -> None:
    for name in ("no_proxy", "NO_PROXY", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    if told == "environment":
        monkeypatch.setenv("http_proxy", f"http://{server.address}")
    else:
        (tmp_path / "gitconfig").write_text(f'[http "http://git.invalid"]\n\tproxy = http://{server.address}\n')
        monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    pointer = pointer_to(server)
    server.action = {"href": f"http://git.invalid/store/{pointer.digest}"}
    found = LargeFiles("http://git.invalid/a/b", None, tmp_path / "kept").fetch([pointer])
    assert found == {pointer.digest: CONTENT}


def test_the_users_own_credential_helper_is_asked_where_no_login_is_given(
    server: LfsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    login(server, username="ada", password="hunter2")
    helper = tmp_path / "helper"
    helper.write_text("#!/bin/sh\necho username=ada\necho password=hunter2\n")
    helper.chmod(0o700)
    (tmp_path / "gitconfig").write_text(f"[credential]\n\thelper = {helper}\n")
    pointer = pointer_to(server)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    with pytest.raises(RefusedError) as caught:
        fetched(server, tmp_path, pointer)
    assert caught.value.reason == "LoginRefused"
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    assert fetched(server, tmp_path, pointer) == {pointer.digest: CONTENT}


@pytest.mark.parametrize("top", ["", ".git"])
def test_a_repository_on_this_machine_has_its_content_beside_it(server: LfsServer, tmp_path: Path, top: str) -> None:
    pointer, place = pointer_to(server), tmp_path / "own"
    large = LargeFiles(str(place), None, tmp_path / "kept")
    with pytest.raises(RefusedError, match="`git lfs fetch` it") as caught:
        large.fetch([pointer])
    assert caught.value.reason == "LargeFileMissing"
    there = place / top / "lfs" / "objects" / pointer.digest[:2] / pointer.digest[2:4]
    there.mkdir(parents=True)
    (there / pointer.digest).write_bytes(CONTENT)
    assert large.fetch([pointer]) == {pointer.digest: CONTENT}
    assert hashlib.sha256((tmp_path / "kept" / pointer.digest).read_bytes()).hexdigest() == pointer.digest


def test_what_is_reached_by_ssh_says_what_to_do(server: LfsServer, tmp_path: Path) -> None:
    with pytest.raises(DesiredStateError, match="follow the repository over HTTPS") as caught:
        LargeFiles("git@git.test:a/b", None, tmp_path / "kept").fetch([pointer_to(server)])
    assert caught.value.reason == "NotBuilt"
