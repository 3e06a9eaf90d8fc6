"""Merge requests and statuses on GitLab, by its REST API, version 4.

Source: "REST API", docs.gitlab.com/api: merge requests, notes, merge request approvals, commits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import quote

from controller.adapters.forge.forge import Comment, RestForge
from controller.adapters.forge.rest import Call, Rest
from controller.adapters.forge.reviews import instant
from policies.errors import ConflictError
from policies.terms.proposal import Approval, PullRequest, StatusState
from policies.terms.secret import Secret

API = "scope api and the role Developer or higher"
APPROVED_NOTE = "approved this merge request"
STATES = {"pending": "pending", "success": "success", "failure": "failed", "error": "failed"}
"""Ours -> GitLab's. It has no word for an error; `running` would mean that it can be cancelled there."""


class GitLabForge(RestForge):
    """Implements `reconcilers.ports.Forge`; a number is a merge request's `iid`.

    Args:
        root: Of the forge, `https://gitlab.com`.
        repository: `group/subgroup/name`.
        token: Of a person, project or group.
        poll_seconds: As for `RestForge`.
        ca: As for `Rest`.
    """

    needs = API

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
        rest = Rest(f"{root}/api/v4", token, ca=ca, refused_seconds=poll_seconds)
        super().__init__(rest, f"/projects/{quote(repository, safe='')}", poll_seconds=poll_seconds, monotonic=monotonic)

    def newest(self, head: str) -> PullRequest | None:
        """The newest merge request from a branch of this very project."""
        query = {"source_branch": head, "state": "all", "order_by": "created_at", "sort": "desc"}
        call = self.call("GET", "/merge_requests", f"merge request of {head}", query=query)
        for item in self.rest.pages(call, items=20):
            with self.rest.reading(call.what):
                if item["source_project_id"] == item["target_project_id"] and item["source_branch"] == head:
                    return _pull_request(item)
        return None

    def show(self, number: int) -> PullRequest:
        """One merge request."""
        call = self.call("GET", f"/merge_requests/{number}", f"merge request {number}")
        value = self.rest.ask(call).value
        with self.rest.reading(call.what):
            return _pull_request(value)

    def make(
        self, *, head: str, base: str, title: str, body: str, labels: Sequence[str], reviewers: Sequence[str]
    ) -> PullRequest:
        """Make one; labels that are not there are made by GitLab, and without a licence it keeps one reviewer."""
        value: dict[str, Any] = {"source_branch": head, "target_branch": base, "title": title, "description": body}
        if labels:
            value["labels"] = ",".join(dict.fromkeys(labels))
        if known := [number for name in reviewers if (number := self._user(name))]:
            value["reviewer_ids"] = known
        call = self.call("POST", "/merge_requests", f"merge request of {head}", body=value, fine=(409,))
        answer = self.rest.ask(call)
        if answer.status == 409:
            return self._open_one(head, base)
        with self.rest.reading(call.what):
            return _pull_request(answer.value)

    def _open_one(self, head: str, base: str) -> PullRequest:
        query = {"source_branch": head, "target_branch": base, "state": "opened"}
        call = self.call("GET", "/merge_requests", f"merge request of {head}", query=query)
        for item in self.rest.pages(call):
            with self.rest.reading(call.what):
                if item["source_project_id"] == item["target_project_id"]:
                    return _pull_request(item)
        text = "expected the open one, it was closed meanwhile; looking again"
        raise ConflictError(f"forge {self.rest.host}: {call.what}: {text}")

    def _user(self, name: str) -> int:
        """A user's number; 0 for nobody."""
        call = Call(method="GET", path="/users", what=f"reviewer {name}", needs=API, query={"username": name})
        value = self.rest.ask(call).value
        with self.rest.reading(call.what):
            return next((int(item["id"]) for item in value if item["username"].lower() == name.lower()), 0)

    def rewrite(self, number: int, title: str, body: str) -> None:
        """Set title and description."""
        self._put(number, {"title": title, "description": body})

    def shut(self, number: int) -> None:
        """Close without merging."""
        self._put(number, {"state_event": "close"})

    def _put(self, number: int, body: Mapping[str, Any]) -> None:
        self.rest.ask(self.call("PUT", f"/merge_requests/{number}", f"merge request {number}", body=body))

    def reviewed(self, number: int) -> tuple[Approval, ...]:
        """Who approved it, each with the version that was the newest at that instant.

        GitLab does not tell which commit an approver saw. It tells when each version of a merge request, which is one push, came
        to be; whoever approved after one and before the next is taken to have seen that one. So somebody who approves on a page
        that they opened before a push counts for what was pushed: a project that minds lets GitLab remove approvals when commits
        are added. Older versions of GitLab tell the instant of an approval only in a note; an approval without either counts
        for nothing.
        """
        call = self.call("GET", f"/merge_requests/{number}/approvals", f"approvals of merge request {number}")
        value = self.rest.ask(call).value
        with self.rest.reading(call.what):
            given = {str(item["user"]["username"]): item.get("approved_at") for item in value["approved_by"]}
        if not given:
            return ()
        instants = {name: instant(text) for name, text in given.items() if text}
        if len(instants) < len(given):
            noted = self._noted_approvals(number)
            instants = {**{name: noted[name] for name in given if name in noted}, **instants}
        versions = self._versions(number)
        found = []
        for name, at in instants.items():
            seen = [commit for commit, created in versions if created <= at]
            if seen:
                found.append(Approval(by=name, commit=seen[-1], at=at))
        return tuple(sorted(found, key=lambda item: (item.at, item.by)))

    def _versions(self, number: int) -> list[tuple[str, datetime]]:
        """Head and instant of each version, oldest first."""
        call = self.call("GET", f"/merge_requests/{number}/versions", f"versions of merge request {number}")
        items = list(self.rest.pages(call))
        with self.rest.reading(call.what):
            found = [(str(item["head_commit_sha"]), instant(item["created_at"])) for item in items]
        return sorted(found, key=lambda item: item[1])

    def _noted_approvals(self, number: int) -> dict[str, datetime]:
        """Who approved when last, by the notes that GitLab makes of it."""
        found: dict[str, datetime] = {}
        call = self._notes(number)
        for item in self.rest.pages(call):
            with self.rest.reading(call.what):
                if item["system"] and str(item["body"]).strip() == APPROVED_NOTE:
                    found[str(item["author"]["username"])] = instant(item["created_at"])
        return found

    def own_name(self, number: int) -> str:
        """The token's user; projects and groups have one too."""
        call = Call(method="GET", path="/user", what="user of the token", needs=API)
        value = self.rest.ask(call).value
        with self.rest.reading(call.what):
            return str(value["username"])

    def comments(self, number: int) -> Iterable[Comment]:
        """All that people said; what GitLab notes by itself is left out."""
        call = self._notes(number)
        for item in self.rest.pages(call):
            with self.rest.reading(call.what):
                if not item["system"]:
                    yield Comment(id=int(item["id"]), by=str(item["author"]["username"]), body=str(item["body"]))

    def _notes(self, number: int) -> Call:
        query = {"sort": "asc", "order_by": "created_at"}
        return self.call("GET", f"/merge_requests/{number}/notes", f"notes of merge request {number}", query=query)

    def say(self, number: int, text: str) -> None:
        """Make a note."""
        path = f"/merge_requests/{number}/notes"
        self.rest.ask(self.call("POST", path, f"note on merge request {number}", body={"body": text}))

    def rewrite_comment(self, number: int, comment: int, text: str) -> None:
        """Change a note."""
        path = f"/merge_requests/{number}/notes/{comment}"
        self.rest.ask(self.call("PUT", path, f"note on merge request {number}", body={"body": text}))

    def send_status(self, commit: str, *, context: str, state: StatusState, text: str, url: str) -> None:
        """Set a status: one that pends is moved on, after its end a new one is made; pending twice is refused, which is fine."""
        value = {"state": STATES[state], "name": context, "description": text, **({"target_url": url} if url else {})}
        call = self.call("POST", f"/statuses/{commit}", f"status {context} of {commit[:12]}", body=value, fine=(400,))
        answer = self.rest.ask(call)
        if answer.status == 400 and "Cannot transition status" not in self.rest.said(answer):
            raise self.rest.refused(call, answer)


def _pull_request(item: Mapping[str, Any]) -> PullRequest:
    state = {"merged": "merged", "closed": "closed"}.get(item["state"], "open")  # `locked`: it is being merged just now
    ended_by = item.get("merge_user") or item.get("merged_by") if state == "merged" else item.get("closed_by")
    # After a fast-forward there is no commit of the merge's own: it is the squashed one, or the head.
    merge_commit = item.get("merge_commit_sha") or item.get("squash_commit_sha") or item["sha"]
    return PullRequest(
        number=int(item["iid"]),
        url=str(item["web_url"]),
        state="merged" if state == "merged" else "closed" if state == "closed" else "open",
        head=str(item["source_branch"]),
        head_commit=str(item["sha"] or ""),
        base=str(item["target_branch"]),
        merge_commit=str(merge_commit or "") if state == "merged" else "",
        ended_by=str((ended_by or {}).get("username", "")) if state != "open" else "",
        title=str(item["title"]),
        body=str(item["description"] or ""),
    )
