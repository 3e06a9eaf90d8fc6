"""Our client of GitHub against the documented shapes of its API: no GitHub can run here, see `recorded.py`.

Source: "REST API endpoints for pull requests", "… for issues", "… for commit statuses", "… for collaborators", docs.github.com.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from controller.adapters.forge import RestForge, forge_of
from controller.adapters.forge.forge import CLOSING
from controller.adapters.forge.github import LONGEST_BODY, api_of
from policies.errors import ConflictError, RefusedError
from policies.terms.project import Forge as ForgeSettings
from policies.terms.proposal import Approval, PullRequest
from policies.terms.secret import Secret
from tests.forge.recorded import TOKEN, Exchange, Recorded, recorded

API = "/api/v3/repos/team/digits"
HEAD = "myelin/deploy/digits/v-1"
LIST = f"GET {API}/pulls?state=all&head=team:{HEAD}&sort=created&direction=desc&per_page=30"
SHA, MERGED = "6dcb09b5b57875f334f61aebed695e2e4193db5e", "e5bd3914e2e596debea16f433f57875b5b90bcd6"
SAYS = {"Accept": "application/vnd.github+json", "X-GitHub-Api-Version": "2022-11-28"}


def pull(**changes: Any) -> dict[str, Any]:
    """A pull request as the list has it: one that is open has a trial merge's commit."""
    item = {
        "number": 1347,
        "state": "open",
        "html_url": "https://github.example/team/digits/pull/1347",
        "title": "Promote",
        "body": "**why**",
        "user": {"login": "myelin-bot"},
        "head": {"label": f"team:{HEAD}", "ref": HEAD, "sha": SHA, "repo": {"full_name": "team/digits"}},
        "base": {"label": "team:main", "ref": "main", "sha": "1" * 40, "repo": {"full_name": "team/digits"}},
        "merged_at": None,
        "merge_commit_sha": MERGED,
        "closed_at": None,
        "updated_at": "2026-01-26T19:01:12Z",
    }
    return {**item, **changes}


def of_fork(owner: str = "team", *, gone: bool = False) -> dict[str, Any]:
    head = {"label": f"{owner}:{HEAD}", "ref": HEAD, "sha": SHA, "repo": None if gone else {"full_name": f"{owner}/digits-fork"}}
    return pull(number=1348, head=head)


@pytest.fixture
def server() -> Iterator[Recorded]:
    with recorded() as running:
        yield running


@pytest.fixture
def forge(server: Recorded) -> Iterator[RestForge]:
    settings = ForgeSettings(type="github", url=server.url)
    made = forge_of(settings, "git@github.example:team/digits.git", Secret(TOKEN), poll_seconds=0)
    yield made
    made.close_connections()


OPEN = PullRequest(
    number=1347,
    url="https://github.example/team/digits/pull/1347",
    state="open",
    head=HEAD,
    head_commit=SHA,
    base="main",
    title="Promote",
    body="**why**",
)
FOUND = {
    "nobody asked": ([], [], None),
    "only forks have a branch of that name": ([of_fork(), of_fork(gone=True)], [], None),
    "an open one has no merge commit yet": ([of_fork(), pull()], [], OPEN),
    "the newest of several": ([pull(), pull(number=1, state="closed", merged_at="2025-01-01T00:00:00Z")], [], OPEN),
    "names are the same in whatever case": ([pull(head={**pull()["head"], "repo": {"full_name": "Team/Digits"}})], [], OPEN),
    "a merged one": (
        [pull(state="closed", merged_at="2026-01-26T19:01:12Z")],
        [
            Exchange(
                ask=f"GET {API}/pulls/1347",
                answer=pull(state="closed", merged_at="2026-01-26T19:01:12Z", merged=True, merged_by={"login": "octocat"}),
            )
        ],
        PullRequest(
            number=1347,
            url=OPEN.url,
            state="merged",
            head=HEAD,
            head_commit=SHA,
            base="main",
            merge_commit=MERGED,
            ended_by="octocat",
            title="Promote",
            body="**why**",
        ),
    ),
    "a closed one": (
        [pull(state="closed", closed_at="2026-01-26T19:01:12Z", body=None)],
        [Exchange(ask=f"GET {API}/issues/1347", answer={"number": 1347, "state": "closed", "closed_by": {"login": "octocat"}})],
        PullRequest(
            number=1347,
            url=OPEN.url,
            state="closed",
            head=HEAD,
            head_commit=SHA,
            base="main",
            ended_by="octocat",
            title="Promote",
        ),
    ),
}


@pytest.mark.parametrize("case", FOUND)
def test_what_is_found(server: Recorded, forge: RestForge, case: str) -> None:
    listed, more, wanted = FOUND[case]
    server.expect(Exchange(ask=LIST, says=SAYS, answer=listed), *more)
    assert forge.find(HEAD) == wanted


def test_what_did_not_change_is_asked_under_condition(server: Recorded, forge: RestForge) -> None:
    server.expect(
        Exchange(ask=LIST, says={"If-None-Match": None}, answer=[pull()], headers={"ETag": 'W/"a1"'}),  # type: ignore[dict-item]
        Exchange(ask=LIST, says={"If-None-Match": 'W/"a1"'}, status=304),
        Exchange(ask=LIST, says={"If-None-Match": 'W/"a1"'}, answer=[pull(title="Other")], headers={"ETag": 'W/"a2"'}),
        Exchange(ask=LIST, says={"If-None-Match": 'W/"a2"'}, status=304),
    )
    assert [forge.find(HEAD).title for _ in range(4)] == ["Promote", "Promote", "Other", "Other"]  # type: ignore[union-attr]


def test_one_is_made_with_labels_and_reviewers(server: Recorded, forge: RestForge) -> None:
    body = {"head": HEAD, "base": "main", "title": "Promote", "body": "**why**"}
    ask = f"POST {API}/pulls/1347/requested_reviewers"
    not_one = {"message": "Reviews may only be requested from collaborators."}
    server.expect(
        Exchange(ask=f"POST {API}/pulls", body=body, says=SAYS, status=201, answer=pull()),
        Exchange(ask=f"POST {API}/labels", body={"name": "myelin", "color": "6f5bd6"}, status=201, answer={"id": 1}),
        Exchange(
            ask=f"POST {API}/labels",
            body={"name": "model", "color": "6f5bd6"},
            status=422,
            answer={"message": "Validation Failed", "errors": [{"resource": "Label", "code": "already_exists", "field": "name"}]},
        ),
        Exchange(ask=f"POST {API}/issues/1347/labels", body={"labels": ["myelin", "model"]}, answer=[{"name": "myelin"}]),
        Exchange(ask=ask, body={"reviewers": ["nobody"]}, status=422, answer=not_one),
        Exchange(ask=ask, body={"reviewers": ["octocat"]}, status=201, answer=pull()),
    )
    labels, reviewers = ("myelin", "model", "myelin"), ("nobody", "octocat")
    assert forge.open(head=HEAD, base="main", title="Promote", body="**why**", labels=labels, reviewers=reviewers) == OPEN


EXISTS = {
    "message": "Validation Failed",
    "errors": [{"resource": "PullRequest", "code": "custom", "message": f"A pull request already exists for team:{HEAD}."}],
}


def test_one_that_is_open_is_returned(server: Recorded, forge: RestForge) -> None:
    body = {"head": HEAD, "base": "main", "title": "x", "body": ""}
    listed = f"GET {API}/pulls?state=open&head=team:{HEAD}&base=main&per_page=50&page=1"
    for answer in ([of_fork(), pull()], []):
        server.expect(
            Exchange(ask=f"POST {API}/pulls", body=body, status=422, answer=EXISTS), Exchange(ask=listed, answer=answer)
        )
    assert forge.open(head=HEAD, base="main", title="x", body="", labels=(), reviewers=()) == OPEN
    with pytest.raises(ConflictError, match="closed meanwhile"):
        forge.open(head=HEAD, base="main", title="x", body="", labels=(), reviewers=())


def test_what_cannot_be_asked_for_is_a_refusal(server: Recorded, forge: RestForge) -> None:
    said = {"message": "Validation Failed", "errors": [{"resource": "PullRequest", "message": "No commits between main and x"}]}
    body = {"head": HEAD, "base": "main", "title": "x", "body": ""}
    server.expect(Exchange(ask=f"POST {API}/pulls", body=body, status=422, answer=said))
    with pytest.raises(RefusedError, match="No commits between main and x"):
        forge.open(head=HEAD, base="main", title="x", body="", labels=(), reviewers=())
    server.expect(
        Exchange(
            ask=f"POST {API}/pulls", body=body, status=403, answer={"message": "Resource not accessible by personal access token"}
        )
    )
    with pytest.raises(RefusedError, match="expected a token with the permission pull requests: read and write, got 403"):
        forge.open(head=HEAD, base="main", title="x", body="", labels=(), reviewers=())


def test_a_body_that_is_too_long_is_cut(server: Recorded, forge: RestForge) -> None:
    long = "x" * (LONGEST_BODY + 1)
    note = "\n\n… cut here: GitHub takes no more."
    cut = long[: LONGEST_BODY - len(note)] + note
    server.expect(
        Exchange(ask=f"GET {API}/pulls/1347", answer=pull()),
        Exchange(ask=f"PATCH {API}/pulls/1347", body={"title": "Promote", "body": cut}, answer=pull()),
    )
    forge.update(1347, title="Promote", body=long)
    assert len(cut) == LONGEST_BODY


def test_what_says_so_already_is_left_alone(server: Recorded, forge: RestForge) -> None:
    server.expect(Exchange(ask=f"GET {API}/pulls/1347", answer=pull(body="**why**\r\n")))
    forge.update(1347, title="Promote", body="**why**")


def test_closing_says_why_first(server: Recorded, forge: RestForge) -> None:
    said = {"id": 7, "user": {"login": "octocat"}, "body": f"{CLOSING} not mine"}
    server.expect(
        Exchange(ask=f"GET {API}/pulls/1347", answer=pull()),
        Exchange(ask="GET /api/v3/user", answer={"login": "myelin-bot"}),
        Exchange(ask=f"GET {API}/issues/1347/comments?per_page=100&page=1", answer=[said]),
        Exchange(ask=f"POST {API}/issues/1347/comments", body={"body": f"{CLOSING}\novertaken"}, status=201, answer={"id": 8}),
        Exchange(ask=f"PATCH {API}/pulls/1347", body={"state": "closed"}, answer=pull(state="closed")),
        Exchange(ask=f"GET {API}/pulls/1347", answer=pull(state="closed")),
    )
    forge.close(1347, comment="overtaken")
    forge.close(1347, comment="again")


def test_a_comment_is_rewritten_also_by_an_app_that_is_no_user(server: Recorded, forge: RestForge) -> None:
    said = {"id": 9, "user": {"login": "myelin[bot]"}, "body": "<!-- m -->\none"}
    listed = f"GET {API}/issues/1347/comments?per_page=100&page=1"
    server.expect(
        Exchange(ask="GET /api/v3/user", status=403, answer={"message": "Resource not accessible by integration"}),
        Exchange(ask=f"GET {API}/pulls/1347", answer=pull(user={"login": "myelin[bot]"})),
        Exchange(ask=listed, answer=[said]),
        Exchange(ask=f"PATCH {API}/issues/comments/9", body={"body": "<!-- m -->\ntwo"}, answer=said),
        Exchange(ask=listed, answer=[{**said, "body": "<!-- m -->\ntwo"}]),
    )
    forge.comment(1347, marker="<!-- m -->", body="two")
    forge.comment(1347, marker="<!-- m -->", body="two")


def review(by: str | None, state: str, commit: str | None = SHA, minute: int = 0) -> dict[str, Any]:
    at = {"submitted_at": f"2026-01-17T17:{minute:02}:54Z"} if state != "PENDING" else {}
    return {"id": minute, "user": {"login": by} if by else None, "state": state, "commit_id": commit, **at}


def test_approvals_are_those_of_people_who_may_write_and_did_not_change_their_mind(server: Recorded, forge: RestForge) -> None:
    reviews = [
        review("writer", "APPROVED", "a" * 40, 0),
        review("writer", "COMMENTED", SHA, 1),
        review("writer", "APPROVED", SHA, 2),
        review("sceptic", "APPROVED", SHA, 3),
        review("sceptic", "CHANGES_REQUESTED", SHA, 4),
        review("dismissed", "DISMISSED", SHA, 5),
        review("stranger", "APPROVED", SHA, 6),
        review("gone", "APPROVED", SHA, 7),
        review(None, "APPROVED", SHA, 8),
        review("draft", "PENDING", SHA, 9),
        review("admin", "APPROVED", "b" * 40, 10),
    ]
    server.expect(
        Exchange(ask=f"GET {API}/pulls/1347/reviews?per_page=100&page=1", answer=reviews),
        Exchange(ask=f"GET {API}/collaborators/writer/permission", answer={"permission": "write", "role_name": "maintain"}),
        Exchange(ask=f"GET {API}/collaborators/stranger/permission", answer={"permission": "read", "role_name": "read"}),
        Exchange(ask=f"GET {API}/collaborators/gone/permission", status=404, answer={"message": "gone is not a user"}),
        Exchange(ask=f"GET {API}/collaborators/admin/permission", answer={"permission": "admin", "role_name": "admin"}),
    )
    assert forge.approvals(1347) == (
        Approval(by="writer", commit=SHA, at=datetime(2026, 1, 17, 17, 2, 54, tzinfo=UTC)),
        Approval(by="admin", commit="b" * 40, at=datetime(2026, 1, 17, 17, 10, 54, tzinfo=UTC)),
    )


def test_a_status_is_sent_once(server: Recorded, forge: RestForge) -> None:
    ask = f"POST {API}/statuses/{SHA}"
    first = {"context": "myelin/digits", "state": "pending", "description": "trains", "target_url": "https://m.example/x"}
    server.expect(
        Exchange(ask=ask, body=first, status=201, answer={"id": 1}),
        Exchange(
            ask=ask, body={"context": "myelin/digits", "state": "error", "description": "x" * 139 + "…"}, status=201, answer={}
        ),
    )
    for _ in range(2):
        forge.set_status(SHA, context="myelin/digits", state="pending", text="trains", url="https://m.example/x")
    for _ in range(2):
        forge.set_status(SHA, context="myelin/digits", state="error", text="x" * 141)


@pytest.mark.parametrize(
    ("root", "api"),
    [
        ("https://github.com", "https://api.github.com"),
        ("https://api.github.com", "https://api.github.com"),
        ("https://team.ghe.com", "https://api.team.ghe.com"),
        ("https://git.example.com", "https://git.example.com/api/v3"),
        ("http://127.0.0.1:3000/x", "http://127.0.0.1:3000/x/api/v3"),
    ],
)
def test_where_the_api_is(root: str, api: str) -> None:
    assert api_of(root) == api
