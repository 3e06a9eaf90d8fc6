"""What is asked of a forge how often, and what of it is remembered: with a Gitea that counts."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from controller.adapters.forge.forge import RestForge
from controller.adapters.forge.gitea import GiteaForge
from policies.errors import SilentError
from policies.terms.proposal import PullRequest
from policies.terms.secret import Secret
from tests.forge.recorded import TOKEN, Exchange, Recorded, recorded

PULLS = "/api/v1/repos/team/digits/pulls"
FIRST = f"GET {PULLS}?state=all&limit=50&page=1"
NEW = f"GET {PULLS}?state=all&limit=10&page=1"


class Hand:
    """A clock moved by hand, and a forge that looks at it."""

    def __init__(self, server: Recorded) -> None:
        self.now = 0.0
        self.forge = GiteaForge(server.url, "team/digits", Secret(TOKEN), poll_seconds=10.0, monotonic=lambda: self.now)


@pytest.fixture
def server() -> Iterator[Recorded]:
    with recorded() as running:
        yield running


@pytest.fixture
def hand(server: Recorded) -> Iterator[Hand]:
    made = Hand(server)
    yield made
    made.forge.close_connections()


def pull(number: int, branch: str, *, repo: int = 1, state: str = "open") -> dict[str, object]:
    return {
        "number": number,
        "html_url": f"https://git.example.com/team/digits/pulls/{number}",
        "state": state,
        "merged": False,
        "title": "t",
        "body": "b",
        "merge_commit_sha": None,
        "updated_at": "2026-01-31T12:00:00Z",
        "head": {"label": branch, "ref": branch, "sha": "a" * 40, "repo_id": repo},
        "base": {"label": "main", "ref": "main", "sha": "b" * 40, "repo_id": 1},
    }


def test_a_branch_is_asked_for_once_in_a_while_and_at_once_after_a_stir(server: Recorded, hand: Hand) -> None:
    server.expect(Exchange(ask=FIRST, answer=[pull(7, "x")]), Exchange(ask=f"GET {PULLS}/7", answer=pull(7, "x")))
    for moment in (0.0, 5.0, 9.9):
        hand.now = moment
        assert hand.forge.find("x") is not None
    assert server.asked == 2
    again = (Exchange(ask=NEW, answer=[pull(7, "x")]), Exchange(ask=f"GET {PULLS}/7", answer=pull(7, "x")))
    server.expect(*again)
    hand.now = 10.1
    assert hand.forge.find("x") is not None
    server.expect(*again)
    hand.forge.stir()
    assert hand.forge.find("x") is not None
    assert server.asked == 6


def test_that_there_is_none_is_remembered_as_well(server: Recorded, hand: Hand) -> None:
    server.expect(Exchange(ask=FIRST, answer=[pull(7, "x"), pull(6, "y", repo=2)]))
    assert [hand.forge.find("y") for _ in range(3)] == [None, None, None]
    server.expect(Exchange(ask=NEW, answer=[pull(8, "y"), pull(7, "x")]), Exchange(ask=f"GET {PULLS}/8", answer=pull(8, "y")))
    hand.now = 11.0
    found = hand.forge.find("y")
    assert found is not None
    assert found.number == 8


def test_older_ones_are_looked_through_only_for_a_branch_that_is_not_known(server: Recorded, hand: Hand) -> None:
    more = {"Link": '<{url}/more>; rel="next"'}
    server.expect(
        Exchange(ask=FIRST, answer=[pull(9, "x")], headers=more),
        Exchange(ask=f"GET {PULLS}/9", answer=pull(9, "x")),
        Exchange(ask=FIRST, answer=[pull(9, "x")], headers=more),
        Exchange(ask=FIRST.replace("page=1", "page=2"), answer=[pull(3, "y"), pull(2, "x")]),
        Exchange(ask=f"GET {PULLS}/3", answer=pull(3, "y")),
        Exchange(ask=FIRST, answer=[pull(9, "x")], headers=more),
        Exchange(ask=FIRST.replace("page=1", "page=2"), answer=[pull(3, "y"), pull(2, "x")]),
        Exchange(ask=NEW, answer=[pull(9, "x")], headers=more),
    )
    heads = ("x", "y", "z", "none")
    assert [found and found.number for found in map(hand.forge.find, heads)] == [9, 3, None, None]


def test_a_stir_during_an_answer_is_not_lost() -> None:
    class Slow(RestForge):
        def __init__(self) -> None:
            self.asked = 0
            self.is_asked, self.may_go = threading.Event(), threading.Event()
            super().__init__(None, "", poll_seconds=1000.0)  # type: ignore[arg-type]

        def newest(self, head: str) -> PullRequest | None:
            self.asked += 1
            self.is_asked.set()
            assert self.may_go.wait(10)
            return None

    forge = Slow()
    asking = threading.Thread(target=forge.find, args=("x",))
    asking.start()
    assert forge.is_asked.wait(10)
    forge.stir()
    forge.may_go.set()
    asking.join(10)
    forge.find("x")
    forge.find("x")
    assert forge.asked == 2


def test_a_failure_is_not_remembered_as_an_answer(server: Recorded, hand: Hand) -> None:
    server.expect(Exchange(ask=FIRST, status=429, headers={"Retry-After": "60"}))
    with pytest.raises(SilentError):
        hand.forge.find("x")
    with pytest.raises(SilentError, match="not asked for"):
        hand.forge.find("x")
