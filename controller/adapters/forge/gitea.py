"""Pull requests and statuses on Gitea and Forgejo, by their REST API, version 1.

Source: the API's own description at `/swagger.v1.json` of Gitea 1.26, and its source where that is silent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from controller.adapters.forge.forge import Comment, RestForge
from controller.adapters.forge.rest import Call, Rest
from controller.adapters.forge.reviews import Review, approvals_in, instant
from policies.errors import ConflictError
from policies.terms.proposal import Approval, PullRequest, StatusState
from policies.terms.secret import Secret

PULLS = "scopes write:repository and write:issue, of a user who may write to the repository"
READS = "scope read:repository"
NEW_ITEMS = 10
"""How many of the newest pull requests are asked for to see whether there is a new one: each costs the forge some Git."""
LABEL_COLOUR = "#6f5bd6"


class GiteaForge(RestForge):
    """Implements `reconcilers.ports.Forge`.

    The API lists pull requests by their base only, so we remember which branch each came from, which never changes; what is new
    since then stands at the head of the list.

    Args:
        root: Of the forge, `https://git.example.com`.
        repository: `owner/name`.
        token: Of a user who may write to the repository.
        poll_seconds: As for `RestForge`.
        ca: As for `Rest`.
    """

    def __init__(
        self,
        root: str,
        repository: str,
        token: Secret,
        *,
        poll_seconds: float,
        ca: str = "",
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        rest = Rest(f"{root}/api/v1", token, ca=ca, refused_seconds=poll_seconds)
        super().__init__(rest, f"/repos/{quote(repository)}", poll_seconds=poll_seconds, monotonic=monotonic)
        self._numbers: dict[str, int] = {}
        """Head branch -> the newest pull request from it."""
        self._highest = 0
        """All up to this number are in the table, if `_is_complete`."""
        self._is_complete = False
        self._ended: dict[int, tuple[str, PullRequest]] = {}
        """Number -> when it changed last, and what it was then: one that ended rarely changes."""

    def newest(self, head: str) -> PullRequest | None:
        """The newest pull request from a branch, by number."""
        self._look_for_new(head)
        number = self._numbers.get(head)
        return None if number is None else self.show(number)

    def _look_for_new(self, head: str) -> None:
        known = self._highest if self._is_complete or head in self._numbers else 0
        call = self.call("GET", "/pulls", f"pull request of {head}", READS, query={"state": "all"})
        highest = self._highest
        for item in self.rest.pages(call, limit_name="limit", **({"items": NEW_ITEMS} if known else {})):
            with self.rest.reading(call.what):
                number, branch = int(item["number"]), _head_branch(item)
            if number <= known:
                break
            highest = max(highest, number)
            if branch:
                self._numbers[branch] = max(number, self._numbers.get(branch, 0))
            if not known and branch == head:
                # Older ones of this branch do not matter; those of others are looked for when somebody asks.
                break
        else:
            self._is_complete = True
        self._highest = highest

    def show(self, number: int) -> PullRequest:
        """One pull request; for one that ended, its head as it was then and who ended it."""
        call = self.call("GET", f"/pulls/{number}", f"pull request {number}", READS)
        item = self.rest.ask(call).value
        with self.rest.reading(call.what):
            made = _pull_request(item)
            changed = str(item["updated_at"])
        if made.state == "open":
            self._ended.pop(number, None)
            return made
        if number in self._ended and self._ended[number][0] == changed:
            return self._ended[number][1]
        ended_by = made.ended_by or self._closed_by(number)
        made = PullRequest(
            number=number,
            url=made.url,
            state=made.state,
            head=made.head,
            head_commit=self._last_head(number) or made.head_commit,
            base=made.base,
            merge_commit=made.merge_commit,
            ended_by=ended_by,
            title=made.title,
            body=made.body,
        )
        self._ended[number] = (changed, made)
        return made

    def _last_head(self, number: int) -> str:
        # The branch may have moved on, or be gone; this ref stays where it was when the pull request ended.
        call = self.call("GET", f"/git/refs/pull/{number}/head", f"head of pull request {number}", READS, fine=(404,))
        value = self.rest.ask(call).value
        with self.rest.reading(call.what):
            refs = value if isinstance(value, list) else [value]
            return next((str(ref["object"]["sha"]) for ref in refs if ref.get("ref") == f"refs/pull/{number}/head"), "")

    def _closed_by(self, number: int) -> str:
        call = self.call("GET", f"/issues/{number}/timeline", f"history of pull request {number}", "scope read:issue")
        by = ""
        for item in self.rest.pages(call, limit_name="limit"):
            if item and item.get("type") == "close":
                by = str((item.get("user") or {}).get("login", ""))
        return by

    def make(
        self, *, head: str, base: str, title: str, body: str, labels: Sequence[str], reviewers: Sequence[str]
    ) -> PullRequest:
        """Make one, with labels at once and reviewers one by one."""
        value = {"head": head, "base": base, "title": title, "body": body, "labels": self._labels(labels)}
        call = self.call("POST", "/pulls", f"pull request of {head}", PULLS, body=value, fine=(409,))
        answer = self.rest.ask(call)
        if answer.status == 409:
            return self._open_one(head, base)
        with self.rest.reading(call.what):
            made = _pull_request(answer.value)
        for reviewer in reviewers:
            self._ask_for_review(made.number, reviewer)
        return made

    def _open_one(self, head: str, base: str) -> PullRequest:
        call = self.call("GET", "/pulls", f"pull request of {head}", READS, query={"state": "open", "base_branch": base})
        for item in self.rest.pages(call, limit_name="limit"):
            with self.rest.reading(call.what):
                made = _pull_request(item)
                if _head_branch(item) == head and made.base == base:
                    return made
        raise ConflictError(
            f"forge {self.rest.host}: pull request of {head}: expected the open one, it was closed meanwhile; looking again"
        )

    def _labels(self, names: Sequence[str]) -> list[int]:
        if not names:
            return []
        call = self.call("GET", "/labels", "labels", "scope write:issue")
        with self.rest.reading(call.what):
            known = {str(item["name"]): int(item["id"]) for item in self.rest.pages(call, limit_name="limit")}
        for name in names:
            if name not in known:
                made = self.call("POST", "/labels", f"label {name}", PULLS, body={"name": name, "color": LABEL_COLOUR})
                value = self.rest.ask(made).value
                with self.rest.reading(made.what):
                    known[name] = int(value["id"])
        return [known[name] for name in dict.fromkeys(names)]

    def _ask_for_review(self, number: int, reviewer: str) -> None:
        path, what = f"/pulls/{number}/requested_reviewers", f"reviewer {reviewer} of pull request {number}"
        # Nobody of that name, the author themselves, somebody who may not read: all of them are left out.
        self.rest.ask(self.call("POST", path, what, PULLS, body={"reviewers": [reviewer]}, fine=(403, 404, 409, 422)))

    def rewrite(self, number: int, title: str, body: str) -> None:
        """Set title and body."""
        self._patch(number, {"title": title, "body": body})

    def shut(self, number: int) -> None:
        """Close without merging; one that was merged meanwhile is left alone."""
        self._patch(number, {"state": "closed"}, fine=(412,))

    def _patch(self, number: int, body: Mapping[str, Any], *, fine: tuple[int, ...] = ()) -> None:
        self.rest.ask(self.call("PATCH", f"/pulls/{number}", f"pull request {number}", PULLS, body=body, fine=fine))

    def reviewed(self, number: int) -> tuple[Approval, ...]:
        """Who approved it, each with the commit that they saw.

        Only official reviews count: those of people who may write to the repository or whom the branch's protection names.
        Anybody who can read a repository can make the others.
        """
        call = self.call("GET", f"/pulls/{number}/reviews", f"reviews of pull request {number}", READS)
        items = list(self.rest.pages(call, limit_name="limit"))
        with self.rest.reading(call.what):
            return approvals_in(_reviews(items))

    def own_name(self, number: int) -> str:
        """The token's user; without the scope `read:user`, whoever opened the pull request."""
        call = Call(method="GET", path="/user", what="user of the token", needs="scope read:user", fine=(403,))
        answer = self.rest.ask(call)
        if answer.status == 403:
            answer = self.rest.ask(self.call("GET", f"/pulls/{number}", f"pull request {number}", READS))
            with self.rest.reading(call.what):
                return str(answer.value["user"]["login"])
        with self.rest.reading(call.what):
            return str(answer.value["login"])

    def comments(self, number: int) -> Iterable[Comment]:
        """All of them: this list has no pages."""
        call = self.call("GET", f"/issues/{number}/comments", f"comments of pull request {number}", "scope read:issue")
        items = self.rest.ask(call).value
        with self.rest.reading(call.what):
            return [Comment(id=int(it["id"]), by=str((it["user"] or {}).get("login", "")), body=str(it["body"])) for it in items]

    def say(self, number: int, text: str) -> None:
        """Make a comment."""
        self.rest.ask(
            self.call("POST", f"/issues/{number}/comments", f"comment on {number}", "scope write:issue", body={"body": text})
        )

    def rewrite_comment(self, number: int, comment: int, text: str) -> None:
        """Change a comment."""
        path = f"/issues/comments/{comment}"
        self.rest.ask(self.call("PATCH", path, f"comment on {number}", "scope write:issue", body={"body": text}))

    def send_status(self, commit: str, *, context: str, state: StatusState, text: str, url: str) -> None:
        """Add a status; the newest of a context counts."""
        value = {"context": context, "state": state, "description": text, "target_url": url}
        self.rest.ask(self.call("POST", f"/statuses/{commit}", f"status {context} of {commit[:12]}", PULLS, body=value))


def _head_branch(item: Mapping[str, Any]) -> str:
    """The branch of this repository that a pull request comes from; empty where it comes from a fork."""
    head = item["head"]
    # `ref` is a branch only while that is there, `label` is its name for ever.
    return str(head["label"]) if head["repo_id"] == item["base"]["repo_id"] else ""


def _pull_request(item: Mapping[str, Any]) -> PullRequest:
    is_merged = bool(item["merged"])
    return PullRequest(
        number=int(item["number"]),
        url=str(item["html_url"]),
        state="merged" if is_merged else "open" if item["state"] == "open" else "closed",
        head=str(item["head"]["label"]),
        head_commit=str(item["head"]["sha"]),
        base=str(item["base"]["ref"]),
        merge_commit=str(item["merge_commit_sha"] or "") if is_merged else "",
        ended_by=str((item.get("merged_by") or {}).get("login", "")),
        title=str(item["title"]),
        body=str(item["body"] or ""),
    )


def _reviews(items: Iterable[Mapping[str, Any]]) -> Iterator[Review]:
    for item in items:
        if item["state"] not in ("APPROVED", "REQUEST_CHANGES") or not item["user"]:
            continue
        counts = item["state"] == "APPROVED" and item["official"] and not item["dismissed"]
        yield Review(
            by=str(item["user"]["login"]),
            commit=str(item["commit_id"]),
            at=instant(item["submitted_at"]),
            verdict="approved" if counts else "withdrawn",
        )
