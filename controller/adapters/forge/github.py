"""Pull requests and statuses on GitHub and GitHub Enterprise Server, by their REST API of 2022-11-28.

Source: "GitHub REST API documentation", docs.github.com/en/rest: pulls, issues, commits/statuses, collaborators, and "Best
practices for using the REST API" for conditional requests.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import quote, urlsplit

from controller.adapters.forge.forge import Comment, RestForge
from controller.adapters.forge.rest import Call, Rest
from controller.adapters.forge.reviews import Review, approvals_in, instant
from policies.errors import ConflictError
from policies.terms.proposal import Approval, PullRequest, StatusState
from policies.terms.secret import Secret

PULLS = "the permission pull requests: read and write"
STATUSES = "the permission commit statuses: read and write"
READS = "the permissions metadata and pull requests: read"
HEADERS = {"Accept": "application/vnd.github+json", "X-GitHub-Api-Version": "2022-11-28"}
LONGEST_BODY = 65536
"""Characters of a description or comment."""
LABEL_COLOUR = "6f5bd6"
MOST_KEPT = 1000


class GitHubForge(RestForge):
    """Implements `reconcilers.ports.Forge`.

    What did not change is asked for under condition (`ETag`), which costs nothing of the hourly limit.

    Args:
        root: Of the forge, `https://github.com`.
        repository: `owner/name`.
        token: Fine-grained or classic, or of an app's installation.
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
        rest = Rest(api_of(root), token, headers=HEADERS, ca=ca, refused_seconds=poll_seconds)
        super().__init__(rest, f"/repos/{quote(repository)}", poll_seconds=poll_seconds, monotonic=monotonic)
        self._repository = repository
        self._owner = repository.partition("/")[0]
        self._kept: dict[str, tuple[str, PullRequest | None]] = {}
        """Head branch -> entity tag of the list, and what was made of it."""

    def newest(self, head: str) -> PullRequest | None:
        """The newest pull request from a branch of this very repository."""
        # Of forks of the same owner there may be some in the list too; the newest page is more than enough.
        query = {"state": "all", "head": f"{self._owner}:{head}", "sort": "created", "direction": "desc", "per_page": "30"}
        call = self.call("GET", "/pulls", f"pull request of {head}", READS, query=query, fine=(304,))
        kept = self._kept.get(head)
        answer = self.rest.ask(replace(call, headers={"If-None-Match": kept[0]} if kept else {}))
        if answer.status == 304 and kept:
            return kept[1]
        with self.rest.reading(call.what):
            own = [item for item in answer.value if self._is_own(item) and item["head"]["ref"] == head]
        made = self._whole(own[0]) if own else None
        if len(self._kept) >= MOST_KEPT:
            self._kept.clear()
        self._kept[head] = (answer.headers.get("etag", ""), made)
        if not self._kept[head][0]:
            del self._kept[head]
        return made

    def _is_own(self, item: Mapping[str, Any]) -> bool:
        # The repository of a head is null where its fork is gone; names are the same in whatever case.
        name = (item["head"].get("repo") or {}).get("full_name", "")
        return bool(name.lower() == self._repository.lower() or name == item["base"]["repo"]["full_name"])

    def _whole(self, item: Mapping[str, Any]) -> PullRequest:
        """A list's item, with who ended it, which the list does not say."""
        with self.rest.reading("pull request"):
            made = _pull_request(item)
        if made.state == "open":
            return made
        if made.state == "merged":
            return self.show(made.number)
        return replace(made, ended_by=self._closed_by(made.number))

    def _closed_by(self, number: int) -> str:
        call = self.call("GET", f"/issues/{number}", f"pull request {number}", READS)
        value = self.rest.ask(call).value
        with self.rest.reading(call.what):
            return str((value.get("closed_by") or {}).get("login", ""))

    def show(self, number: int) -> PullRequest:
        """One pull request."""
        call = self.call("GET", f"/pulls/{number}", f"pull request {number}", READS)
        value = self.rest.ask(call).value
        with self.rest.reading(call.what):
            return _pull_request(value)

    def make(
        self, *, head: str, base: str, title: str, body: str, labels: Sequence[str], reviewers: Sequence[str]
    ) -> PullRequest:
        """Make one, then its labels, then ask for reviews one by one."""
        value = {"head": head, "base": base, "title": title, "body": _cut(body)}
        call = self.call("POST", "/pulls", f"pull request of {head}", PULLS, body=value, fine=(422,))
        answer = self.rest.ask(call)
        if answer.status == 422:
            if "already exists" not in self.rest.said(answer):
                raise self.rest.refused(call, answer)
            return self._open_one(head, base)
        with self.rest.reading(call.what):
            made = _pull_request(answer.value)
        self._label(made.number, labels)
        for reviewer in reviewers:
            path, what = f"/pulls/{made.number}/requested_reviewers", f"reviewer {reviewer} of pull request {made.number}"
            # Nobody of that name, the author themselves, no collaborator: all of them are left out.
            self.rest.ask(self.call("POST", path, what, PULLS, body={"reviewers": [reviewer]}, fine=(403, 404, 422)))
        return made

    def _label(self, number: int, labels: Sequence[str]) -> None:
        if not labels:
            return
        for name in dict.fromkeys(labels):
            # 422: it is there.
            value = {"name": name, "color": LABEL_COLOUR}
            self.rest.ask(self.call("POST", "/labels", f"label {name}", PULLS, body=value, fine=(422,)))
        value_of_all = {"labels": list(dict.fromkeys(labels))}
        self.rest.ask(self.call("POST", f"/issues/{number}/labels", f"labels of pull request {number}", PULLS, body=value_of_all))

    def _open_one(self, head: str, base: str) -> PullRequest:
        query = {"state": "open", "head": f"{self._owner}:{head}", "base": base}
        call = self.call("GET", "/pulls", f"pull request of {head}", READS, query=query)
        for item in self.rest.pages(call):
            with self.rest.reading(call.what):
                if self._is_own(item) and item["head"]["ref"] == head and item["base"]["ref"] == base:
                    return _pull_request(item)
        text = "expected the open one, it was closed meanwhile; looking again"
        raise ConflictError(f"forge {self.rest.host}: {call.what}: {text}")

    def rewrite(self, number: int, title: str, body: str) -> None:
        """Set title and body."""
        self._patch(number, {"title": title, "body": _cut(body)})

    def shut(self, number: int) -> None:
        """Close without merging; one that was merged meanwhile is left alone."""
        self._patch(number, {"state": "closed"}, fine=(422,))

    def _patch(self, number: int, body: Mapping[str, Any], *, fine: tuple[int, ...] = ()) -> None:
        self.rest.ask(self.call("PATCH", f"/pulls/{number}", f"pull request {number}", PULLS, body=body, fine=fine))

    def reviewed(self, number: int) -> tuple[Approval, ...]:
        """Who approved it, each with the commit that they saw, if they may write to the repository.

        Anybody who can read a public repository can review there; GitHub itself counts only those who may write.
        """
        call = self.call("GET", f"/pulls/{number}/reviews", f"reviews of pull request {number}", READS)
        items = list(self.rest.pages(call, items=100))
        with self.rest.reading(call.what):
            found = approvals_in(_reviews(items))
        return tuple(item for item in found if self._may_write(item.by))

    def _may_write(self, name: str) -> bool:
        path = f"/collaborators/{quote(name, safe='')}/permission"
        call = self.call("GET", path, f"permission of {name}", "the permission metadata: read", fine=(404,))
        answer = self.rest.ask(call)
        with self.rest.reading(call.what):
            return answer.status != 404 and answer.value["permission"] in ("admin", "write")

    def own_name(self, number: int) -> str:
        """The token's user; an app's installation has none, so whoever opened the pull request."""
        call = Call(method="GET", path="/user", what="user of the token", needs="a user", fine=(403, 404))
        answer = self.rest.ask(call)
        if answer.status in call.fine:
            answer = self.rest.ask(self.call("GET", f"/pulls/{number}", f"pull request {number}", READS))
            with self.rest.reading(call.what):
                return str(answer.value["user"]["login"])
        with self.rest.reading(call.what):
            return str(answer.value["login"])

    def comments(self, number: int) -> Iterable[Comment]:
        """All of the conversation; those on lines of the change are others."""
        call = self.call("GET", f"/issues/{number}/comments", f"comments of pull request {number}", READS)
        for item in self.rest.pages(call, items=100):
            with self.rest.reading(call.what):
                yield Comment(id=int(item["id"]), by=str((item["user"] or {}).get("login", "")), body=str(item["body"] or ""))

    def say(self, number: int, text: str) -> None:
        """Make a comment."""
        path, what = f"/issues/{number}/comments", f"comment on pull request {number}"
        self.rest.ask(self.call("POST", path, what, PULLS, body={"body": _cut(text)}))

    def rewrite_comment(self, number: int, comment: int, text: str) -> None:
        """Change a comment."""
        path, what = f"/issues/comments/{comment}", f"comment on pull request {number}"
        self.rest.ask(self.call("PATCH", path, what, PULLS, body={"body": _cut(text)}))

    def send_status(self, commit: str, *, context: str, state: StatusState, text: str, url: str) -> None:
        """Add a status; the newest of a context counts, and a commit takes 1000 of each."""
        value = {"context": context, "state": state, "description": text, **({"target_url": url} if url else {})}
        self.rest.ask(self.call("POST", f"/statuses/{commit}", f"status {context} of {commit[:12]}", STATUSES, body=value))


def api_of(root: str) -> str:
    """Where the API of a GitHub is: a name of its own on github.com and ghe.com, a path on a server of one's own."""
    parts = urlsplit(root)
    host = parts.hostname or ""
    if host in ("github.com", "www.github.com", "api.github.com"):
        return "https://api.github.com"
    if host.endswith(".ghe.com"):
        return f"https://api.{host.removeprefix('api.')}"
    return f"{root}/api/v3"


def _pull_request(item: Mapping[str, Any]) -> PullRequest:
    # Before the merge `merge_commit_sha` is that of a trial merge, which nobody ever sees.
    is_merged = bool(item.get("merged_at"))
    return PullRequest(
        number=int(item["number"]),
        url=str(item["html_url"]),
        state="merged" if is_merged else "open" if item["state"] == "open" else "closed",
        head=str(item["head"]["ref"]),
        head_commit=str(item["head"]["sha"]),
        base=str(item["base"]["ref"]),
        merge_commit=str(item["merge_commit_sha"] or "") if is_merged else "",
        ended_by=str((item.get("merged_by") or {}).get("login", "")),
        title=str(item["title"]),
        body=str(item["body"] or ""),
    )


def _reviews(items: Iterable[Mapping[str, Any]]) -> Iterator[Review]:
    for item in items:
        if item["state"] in ("APPROVED", "CHANGES_REQUESTED", "DISMISSED") and item["user"]:
            yield Review(
                by=str(item["user"]["login"]),
                commit=str(item["commit_id"] or ""),
                at=instant(item["submitted_at"]),
                verdict="approved" if item["state"] == "APPROVED" else "withdrawn",
            )


def _cut(text: str) -> str:
    note = "\n\n… cut here: GitHub takes no more."
    return text if len(text) <= LONGEST_BODY else text[: LONGEST_BODY - len(note)] + note
