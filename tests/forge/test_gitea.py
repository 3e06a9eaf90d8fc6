"""What a real Gitea does with pushes, protection, hooks, tokens and the signing of merges; our documentation says the same."""

from __future__ import annotations

import hashlib
import hmac
import json
import queue
import re
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from controller.adapters.forge import RestForge, forge_of
from controller.adapters.git import GitRepository
from policies.errors import RefusedError
from policies.terms.project import Forge as ForgeSettings
from policies.terms.secret import Secret
from tests.forge.gitea import ForgeRefusal, Gitea, Served, Style

HEAD = "myelin/deploy/digits/v-1"


@pytest.fixture
def served(gitea: Gitea) -> Served:
    made = gitea.repository()
    made.commit("main", {"README": "hello\n"}, by="owner")
    return made


@contextmanager
def opened(served: Served, token: str = "") -> Iterator[RestForge]:
    token = token or served.gitea.people["myelin"].token
    forge = forge_of(ForgeSettings(type="gitea"), served.url, Secret(token), poll_seconds=0)
    with closing(forge.rest):
        yield forge


def propose(forge: RestForge) -> int:
    return forge.open(head=HEAD, base="main", title="Promote", body="", labels=("myelin",), reviewers=("reviewer",)).number


def test_a_protected_branch_takes_no_direct_push_and_merges_when_all_is_there(served: Served, tmp_path: Path) -> None:
    served.protect(approvals=1, statuses=("myelin/review",))
    served.git(tmp_path, "clone", "--quiet", served.url, "clone", by="myelin")
    clone = tmp_path / "clone"
    (clone / "a").write_text("1\n")
    served.git(clone, "add", "a", by="myelin")
    served.git(clone, "commit", "--quiet", "-m", "change", by="myelin")
    with pytest.raises(ForgeRefusal, match=r"(?s)Not allowed to push to protected branch main.*pre-receive hook declined"):
        served.git(clone, "push", "--quiet", "origin", "HEAD:main", by="myelin")
    served.git(clone, "push", "--quiet", "origin", f"HEAD:{HEAD}", by="myelin")
    commit = served.tip(HEAD)
    with opened(served) as forge:
        number = propose(forge)
        with pytest.raises(ForgeRefusal, match="405"):
            served.merge(number)
        forge.set_status(commit, context="myelin/review", state="success", text="approved")
        with pytest.raises(ForgeRefusal, match="405"):
            served.merge(number)
        served.approve(number)
        merged = served.merge(number)
        assert (served.tip("main"), served.pull(number)["merged"]) == (merged, True)


STYLES: dict[Style, bool] = {"merge": True, "squash": True, "rebase-merge": True, "fast-forward-only": False, "rebase": False}


@pytest.mark.parametrize("style", STYLES)
def test_what_gitea_makes_of_a_merge_is_signed_by_its_own_key(served: Served, tmp_path: Path, style: Style) -> None:
    head = served.commit(HEAD, {"a": "1\n"}, by="myelin")
    merged = served.merge(served.make_pull(HEAD), style=style, by="reviewer")
    repository = GitRepository(served.url_as("myelin"), tmp_path / "mirror", None)
    with closing(repository):
        assert repository.fetch("main") == merged
        fact = repository.facts(since="", until=merged)[-1]
    if STYLES[style]:
        assert fact.signature is not None
        assert (fact.signature.key, fact.signature.valid) == (served.gitea.signing_key, True)
    else:
        # The head stands on the tip of main: it is taken as it is, with whatever signature it has.
        assert merged == head


def test_a_rebase_that_has_something_to_do_signs_anew(served: Served, tmp_path: Path) -> None:
    head = served.commit(HEAD, {"a": "1\n"}, by="myelin")
    number = served.make_pull(HEAD)
    served.commit("main", {"b": "1\n"}, by="owner")
    with pytest.raises(ForgeRefusal):
        served.merge(number, style="fast-forward-only")
    merged = served.merge(number, style="rebase")
    assert merged != head
    with closing(GitRepository(served.url_as("myelin"), tmp_path / "mirror", None)) as repository:
        repository.fetch("main")
        fact = repository.facts(since="", until=merged)[-1]
        assert fact.signature is not None
        assert fact.signature.key == served.gitea.signing_key


SCOPES = {
    "all that is needed": (("write:repository", "write:issue"), ""),
    "nothing of comments and labels": (("write:repository",), "scope write:issue"),
    "reading only": (("read:repository", "write:issue"), "scopes write:repository and write:issue"),
}


@pytest.mark.parametrize("case", SCOPES)
def test_the_scopes_that_a_token_needs(served: Served, case: str) -> None:
    scopes, lacking = SCOPES[case]
    commit = served.commit(HEAD, {"a": "1\n"}, by="myelin")
    token = served.gitea.token("myelin", scopes)
    with opened(served, token) as forge:
        assert forge.find(HEAD) is None
        if lacking:
            with pytest.raises(RefusedError, match=f"expected a token with {lacking}.*got 403") as caught:
                propose(forge)
            assert token not in caught.value.message
            return
        number = propose(forge)
        forge.update(number, title="Again", body="x")
        forge.set_status(commit, context="myelin/x", state="success", text="fine")
        forge.comment(number, marker="<!-- m -->", body="one")
        forge.comment(number, marker="<!-- m -->", body="two")
        served.approve(number)
        assert [item.by for item in forge.approvals(number)] == ["reviewer"]
        forge.close(number, comment="overtaken")
        found = forge.find(HEAD)
        assert found is not None
        assert (found.state, found.ended_by, len(served.comments(number))) == ("closed", "myelin", 2)


def test_a_token_that_is_none_and_a_user_who_may_not_are_refused(served: Served) -> None:
    served.commit(HEAD, {"a": "1\n"}, by="myelin")
    with opened(served, "0" * 40) as forge, pytest.raises(RefusedError, match="expected a token that is valid"):
        forge.find(HEAD)
    # A private repository is not there for strangers.
    with (
        opened(served, served.gitea.people["stranger"].token) as forge,
        pytest.raises(RefusedError, match="to be there, got 404"),
    ):
        forge.find(HEAD)


def test_dismissing_stale_approvals_drops_them_with_the_next_push(served: Served) -> None:
    served.protect(approvals=1, dismiss_stale=True)
    served.commit(HEAD, {"a": "1\n"}, by="myelin")
    with opened(served) as forge:
        number = propose(forge)
        served.approve(number)
        assert len(forge.approvals(number)) == 1
        served.commit(HEAD, {"a": "2\n"}, by="myelin")
        end = time.monotonic() + 30  # Gitea does it in a queue of its own
        while forge.approvals(number) and time.monotonic() < end:
            time.sleep(0.1)
        assert forge.approvals(number) == ()


def test_hooks_are_signed_and_tell_what_happened(served: Served) -> None:
    got: queue.Queue[tuple[str, str, bytes]] = queue.Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.put((self.headers["X-Gitea-Event"], self.headers["X-Hub-Signature-256"], body))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        served.hook(f"http://127.0.0.1:{server.server_address[1]}/", "hush")
        served.commit(HEAD, {"a": "1\n"}, by="myelin")
        number = served.make_pull(HEAD)
        served.approve(number)
        served.merge(number)
        events = set()
        while not {"push", "pull_request", "pull_request_approved"} <= events:
            event, signature, body = got.get(timeout=30)
            assert hmac.compare_digest(signature, "sha256=" + hmac.new(b"hush", body, hashlib.sha256).hexdigest())
            assert json.loads(body)["repository"]["full_name"] == f"owner/{served.name}"
            events.add(event)
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def test_it_ends_by_its_number_and_goes_on_where_it_was(tmp_path: Path, gitea: Gitea) -> None:
    with Gitea(tmp_path / "state") as first:
        name = first.repository().name
        pid, key = first.pid, first.signing_key
    assert not Path(f"/proc/{pid}").exists()
    with Gitea(tmp_path / "state") as second:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", second.url)
        assert second.signing_key == key
        assert second.ask("GET", f"/repos/owner/{name}")["private"] is True
