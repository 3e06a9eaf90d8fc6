"""Our client of GitLab against the documented shapes of its API: no GitLab can run here, see `recorded.py`.

Source: "Merge requests API", "Notes API", "Merge request approvals API", "Commits API", docs.gitlab.com/api.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from controller.adapters.forge import RestForge, forge_of
from controller.adapters.forge.forge import CLOSING
from policies.errors import ConflictError, RefusedError
from policies.terms.project import Forge as ForgeSettings
from policies.terms.proposal import Approval, PullRequest
from policies.terms.secret import Secret
from tests.forge.recorded import TOKEN, Exchange, Recorded, recorded

API = "/api/v4/projects/team%2Fml%2Fdigits"
HEAD = "myelin/deploy/digits/v-1"
LIST = f"GET {API}/merge_requests?source_branch={HEAD}&state=all&order_by=created_at&sort=desc&per_page=20&page=1"
ONE = f"{API}/merge_requests/133"
SHA, MERGED, SQUASHED = "8" * 40, "9" * 40, "7" * 40


def request(**changes: Any) -> dict[str, Any]:
    item = {
        "id": 155016530,
        "iid": 133,
        "project_id": 15513260,
        "title": "Promote",
        "description": "**why**",
        "state": "opened",
        "source_branch": HEAD,
        "target_branch": "main",
        "source_project_id": 15513260,
        "target_project_id": 15513260,
        "author": {"username": "myelin-bot"},
        "sha": SHA,
        "merge_commit_sha": None,
        "squash_commit_sha": None,
        "merge_user": None,
        "merged_by": None,
        "closed_by": None,
        "web_url": "https://gitlab.example/team/ml/digits/-/merge_requests/133",
    }
    return {**item, **changes}


def shown(**changes: Any) -> PullRequest:
    facts: dict[str, Any] = {
        "number": 133,
        "url": "https://gitlab.example/team/ml/digits/-/merge_requests/133",
        "state": "open",
        "head": HEAD,
        "head_commit": SHA,
        "base": "main",
        "title": "Promote",
        "body": "**why**",
    }
    return PullRequest(**{**facts, **changes})


@pytest.fixture
def server() -> Iterator[Recorded]:
    with recorded() as running:
        yield running


@pytest.fixture
def forge(server: Recorded) -> Iterator[RestForge]:
    settings = ForgeSettings(type="gitlab", url=server.url)
    made = forge_of(settings, "https://gitlab.example/team/ml/digits.git", Secret(TOKEN), poll_seconds=0)
    yield made
    made.close_connections()


FOUND = {
    "nobody asked": ([], None),
    "only a fork has a branch of that name": ([request(source_project_id=1)], None),
    "an open one": ([request(source_project_id=1), request(), request(iid=1, state="merged")], shown()),
    "one that is being merged just now": ([request(state="locked")], shown()),
    "one without a description": ([request(description=None)], shown(body="")),
    "merged by a merge commit": (
        [request(state="merged", merge_commit_sha=MERGED, squash_commit_sha=SQUASHED, merge_user={"username": "root"})],
        shown(state="merged", merge_commit=MERGED, ended_by="root"),
    ),
    "squashed and fast-forwarded": (
        [request(state="merged", squash_commit_sha=SQUASHED, merged_by={"username": "root"})],
        shown(state="merged", merge_commit=SQUASHED, ended_by="root"),
    ),
    "fast-forwarded": (
        [request(state="merged", merge_user={"username": "root"})],
        shown(state="merged", merge_commit=SHA, ended_by="root"),
    ),
    "closed": ([request(state="closed", closed_by={"username": "root"})], shown(state="closed", ended_by="root")),
}


@pytest.mark.parametrize("case", FOUND)
def test_what_is_found(server: Recorded, forge: RestForge, case: str) -> None:
    listed, wanted = FOUND[case]
    server.expect(Exchange(ask=LIST, answer=listed))
    assert forge.find(HEAD) == wanted


def test_one_is_made_with_labels_and_reviewers(server: Recorded, forge: RestForge) -> None:
    body = {
        "source_branch": HEAD,
        "target_branch": "main",
        "title": "Promote",
        "description": "**why**",
        "labels": "myelin,model",
        "reviewer_ids": [7],
    }
    server.expect(
        Exchange(ask="GET /api/v4/users?username=nobody", answer=[]),
        Exchange(ask="GET /api/v4/users?username=Root", answer=[{"id": 7, "username": "root"}]),
        Exchange(ask=f"POST {API}/merge_requests", body=body, status=201, answer=request()),
    )
    labels, reviewers = ("myelin", "model", "myelin"), ("nobody", "Root")
    assert forge.open(head=HEAD, base="main", title="Promote", body="**why**", labels=labels, reviewers=reviewers) == shown()


def test_one_that_is_open_is_returned(server: Recorded, forge: RestForge) -> None:
    body = {"source_branch": HEAD, "target_branch": "main", "title": "x", "description": ""}
    said = {"message": ["Another open merge request already exists for this source branch: !133"]}
    listed = f"GET {API}/merge_requests?source_branch={HEAD}&target_branch=main&state=opened&per_page=50&page=1"
    for answer in ([request(source_project_id=1), request()], []):
        server.expect(
            Exchange(ask=f"POST {API}/merge_requests", body=body, status=409, answer=said), Exchange(ask=listed, answer=answer)
        )
    assert forge.open(head=HEAD, base="main", title="x", body="", labels=(), reviewers=()) == shown()
    with pytest.raises(ConflictError, match="closed meanwhile"):
        forge.open(head=HEAD, base="main", title="x", body="", labels=(), reviewers=())


def test_a_token_with_too_little_is_told_what_it_lacks(server: Recorded, forge: RestForge) -> None:
    said = {"error": "insufficient_scope", "error_description": "The request requires higher privileges", "scope": "api"}
    server.expect(Exchange(ask=LIST, status=403, answer=said))
    with pytest.raises(
        RefusedError, match=r"scope api and the role Developer or higher, got 403 \(insufficient_scope The request"
    ):
        forge.find(HEAD)


def test_title_and_description_are_rewritten_if_they_differ(server: Recorded, forge: RestForge) -> None:
    server.expect(
        Exchange(ask=f"GET {ONE}", answer=request()),
        Exchange(ask=f"GET {ONE}", answer=request()),
        Exchange(ask=f"PUT {ONE}", body={"title": "Again", "description": "y"}, answer=request()),
    )
    forge.update(133, title="Promote", body="**why**")
    forge.update(133, title="Again", body="y")


def test_closing_says_why_first_and_what_gitlab_notes_is_no_comment(server: Recorded, forge: RestForge) -> None:
    notes = [
        {"id": 1, "author": {"username": "myelin-bot"}, "system": True, "body": f"{CLOSING} changed the description"},
        {"id": 2, "author": {"username": "myelin-bot"}, "system": False, "body": f"{CLOSING}\nolder"},
    ]
    server.expect(
        Exchange(ask=f"GET {ONE}", answer=request()),
        Exchange(ask="GET /api/v4/user", answer={"id": 3, "username": "myelin-bot"}),
        Exchange(ask=f"GET {ONE}/notes?sort=asc&order_by=created_at&per_page=50&page=1", answer=notes),
        Exchange(ask=f"PUT {ONE}/notes/2", body={"body": f"{CLOSING}\novertaken"}, answer=notes[1]),
        Exchange(ask=f"PUT {ONE}", body={"state_event": "close"}, answer=request(state="closed")),
        Exchange(ask=f"GET {ONE}", answer=request(state="merged")),
    )
    forge.close(133, comment="overtaken")
    forge.close(133, comment="again")


def test_a_comment_is_made(server: Recorded, forge: RestForge) -> None:
    server.expect(
        Exchange(ask="GET /api/v4/user", answer={"username": "myelin-bot"}),
        Exchange(ask=f"GET {ONE}/notes?sort=asc&order_by=created_at&per_page=50&page=1", answer=[]),
        Exchange(ask=f"POST {ONE}/notes", body={"body": "<!-- m -->\none"}, status=201, answer={"id": 1}),
    )
    forge.comment(133, marker="<!-- m -->", body="one")


VERSIONS = [
    {"id": 3, "head_commit_sha": "c" * 40, "created_at": "2026-07-26T14:44:48.926Z", "state": "collected"},
    {"id": 2, "head_commit_sha": "b" * 40, "created_at": "2026-07-25T14:21:33.028Z", "state": "collected"},
]


def approval(by: str, at: str | None) -> dict[str, Any]:
    return {"user": {"id": 1, "username": by}, **({"approved_at": at} if at else {})}


def test_an_approval_counts_for_the_version_that_was_the_newest(server: Recorded, forge: RestForge) -> None:
    given = [
        approval("after", "2026-07-26T14:44:49.000Z"),
        approval("between", "2026-07-26T16:00:00.000+02:00"),
        approval("before-all", "2026-07-01T00:00:00.000Z"),
    ]
    server.expect(
        Exchange(ask=f"GET {ONE}/approvals", answer={"approvals_required": 2, "approved_by": given}),
        Exchange(ask=f"GET {ONE}/versions?per_page=50&page=1", answer=VERSIONS),
    )
    assert forge.approvals(133) == (
        Approval(by="between", commit="b" * 40, at=datetime(2026, 7, 26, 14, 0, tzinfo=UTC)),
        Approval(by="after", commit="c" * 40, at=datetime(2026, 7, 26, 14, 44, 49, tzinfo=UTC)),
    )


def test_an_older_gitlab_tells_the_instant_in_a_note_and_none_counts_for_nothing(server: Recorded, forge: RestForge) -> None:
    def note(by: str, body: str, at: str, *, system: bool = True) -> dict[str, Any]:
        return {"id": 1, "author": {"username": by}, "system": system, "body": body, "created_at": at}

    notes = [
        note("noted", "approved this merge request", "2026-07-25T15:00:00Z"),
        note("noted", "unapproved this merge request", "2026-07-25T15:01:00Z"),
        note("noted", "approved this merge request", "2026-07-27T00:00:00Z"),
        note("liar", "approved this merge request", "2026-07-27T00:00:00Z", system=False),
    ]
    server.expect(
        Exchange(ask=f"GET {ONE}/approvals", answer={"approved_by": [approval("noted", None), approval("liar", None)]}),
        Exchange(ask=f"GET {ONE}/notes?sort=asc&order_by=created_at&per_page=50&page=1", answer=notes),
        Exchange(ask=f"GET {ONE}/versions?per_page=50&page=1", answer=VERSIONS),
        Exchange(ask=f"GET {ONE}/approvals", answer={"approved_by": []}),
    )
    assert forge.approvals(133) == (Approval(by="noted", commit="c" * 40, at=datetime(2026, 7, 27, tzinfo=UTC)),)
    assert forge.approvals(133) == ()


def test_statuses_are_in_gitlabs_words_and_pending_twice_is_fine(server: Recorded, forge: RestForge) -> None:
    ask = f"POST {API}/statuses/{SHA}"

    def sent(state: str, **more: str) -> dict[str, str]:
        return {"state": state, "name": "myelin/digits", "description": "x", **more}

    twice = {"message": 'Cannot transition status via :enqueue from :pending (Reason(s): Status cannot transition via "enqueue")'}
    server.expect(
        Exchange(ask=ask, body=sent("pending"), status=400, answer=twice),
        Exchange(ask=ask, body=sent("success", target_url="https://m.example"), status=201, answer={"id": 1}),
        Exchange(ask=ask, body=sent("failed"), status=201, answer={"id": 1}),
        Exchange(ask=ask, body=sent("failed"), status=400, answer={"message": {"ref": ["is missing"]}}),
    )
    forge.set_status(SHA, context="myelin/digits", state="pending", text="x")
    forge.set_status(SHA, context="myelin/digits", state="success", text="x", url="https://m.example")
    forge.set_status(SHA, context="myelin/digits", state="failure", text="x")
    with pytest.raises(RefusedError, match="is missing"):
        forge.set_status(SHA, context="myelin/digits", state="error", text="x")
