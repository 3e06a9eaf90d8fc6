"""A Git server whose host says nothing costs a pass seconds, not minutes; one that refuses is told as what it is."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.adapters.git import GitRepository
from controller.adapters.git.reach import is_direct, says_nothing
from controller.adapters.git.urls import host_of, name_of
from policies.errors import SilentError


@pytest.fixture
def deaf() -> Iterator[int]:
    """A port that takes no more connections: its queue is full, and nobody empties it."""
    with contextlib.ExitStack() as closing:
        listening = closing.enter_context(socket.socket())
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for _ in range(4):
            waiting = closing.enter_context(socket.socket())
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect(listening.getsockname())
        yield listening.getsockname()[1]


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def test_a_host_that_says_nothing_is_silent_soon_and_is_left_alone_then(deaf: int, tmp_path: Path) -> None:
    repository = GitRepository(f"http://127.0.0.1:{deaf}/x.git", tmp_path / "git", None)
    begun = time.monotonic()
    with pytest.raises(SilentError, match="takes no connection"):
        repository.fetch("main")
    assert time.monotonic() - begun < 30
    begun = time.monotonic()
    for _ in range(20):
        with pytest.raises(SilentError):
            repository.fetch("main")
        with pytest.raises(SilentError):
            repository.push(branch="main", parent="", changes={"a": b"1"}, message="x\n", at=_now())
    assert time.monotonic() - begun < 25
    repository.close()


def test_a_host_that_refuses_says_something() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        assert not says_nothing(f"http://127.0.0.1:{taken.getsockname()[1]}/x", seconds=1)


@pytest.mark.parametrize(
    ("url", "proxy", "variable", "expected"),
    [
        ("https://git.example/x", "", "", True),
        ("https://git.example/x", "http://proxy:3128", "", False),
        ("https://git.example/x", "", "HTTPS_PROXY", False),
        ("ssh://git.example/x", "", "", False),
        ("git.example:x", "", "", False),
    ],
)
def test_only_a_direct_http_server_is_tried_beforehand(
    url: str, proxy: str, variable: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable:
        monkeypatch.setenv(variable, "http://proxy:3128")
    assert is_direct(url, proxy=proxy) is expected


@pytest.mark.parametrize(
    ("url", "name", "host"),
    [
        ("https://Git.Example:8443/x", "git.example", "git.example:8443"),
        ("ssh://git@git.example:2222/x", "git.example", "git.example:2222"),
        ("git@Git.Example:team/x.git", "git.example", "git.example"),
        ("https://[2001:db8::1]/x", "2001:db8::1", "2001:db8::1"),
        ("https://[2001:db8::2]:8443/x", "2001:db8::2", "2001:db8::2:8443"),
        ("/srv/x.git", "", ""),
    ],
)
def test_a_token_is_bound_to_the_whole_name_of_a_host(url: str, name: str, host: str) -> None:
    assert (name_of(url), host_of(url)) == (name, host)


def _now():  # type: ignore[no-untyped-def]
    from controller.adapters.clock import SystemClock

    return SystemClock().now()
