"""What the three forges have in common: one newest answer kept for a while, each thing said once.

Never knows a forge's API.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from controller.adapters.forge.rest import Call, Rest
from policies.terms.proposal import Approval, PullRequest, StatusState

CLOSING = "<!-- myelin:closed -->"
"""Marks the comment that says why one was closed, so that it is said once though we die between saying and closing."""
LONGEST_STATUS = 140
"""Characters; what GitHub takes."""
LONGEST_TITLE = 250
"""Characters; the three take 255 or 256."""
MOST_STATUSES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Comment:
    """One comment on a pull request."""

    id: int
    by: str
    body: str


class RestForge:
    """The shared half of `reconcilers.ports.Forge`; a forge's own half is what follows `set_status`.

    Args:
        rest: Its API.
        below: The repository's path in it, `/repos/team/digits`.
        poll_seconds: `find` and `approvals` ask for one thing this often at most, unless something changed by our own hand or
            by `stir`.
        monotonic: Seconds; for tests.
    """

    needs = ""
    """The permission that every question needs, where one is enough for all."""

    def __init__(self, rest: Rest, below: str, *, poll_seconds: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.rest, self._below = rest, below
        self._poll_seconds, self._monotonic = poll_seconds, monotonic
        self._guard = threading.Lock()
        self._stirs = 0
        self._found: dict[str, tuple[float, PullRequest | None]] = {}
        self._approvals: dict[int, tuple[float, tuple[Approval, ...]]] = {}
        self._statuses: dict[tuple[str, str], tuple[str, str, str]] = {}
        self._name = ""

    def call(
        self,
        method: str,
        path: str,
        what: str,
        needs: str = "",
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        fine: tuple[int, ...] = (),
    ) -> Call:
        """A question about this repository; `path` is below it."""
        return Call(
            method=method,
            path=self._below + path,
            what=what,
            needs=needs or self.needs,
            query=query or {},
            body=body,
            fine=fine,
        )

    def close_connections(self) -> None:
        """Close all connections."""
        self.rest.close()

    def stir(self) -> None:
        """Something changed there, a webhook says: the next `find` asks again. Never waits."""
        with self._guard:
            self._stirs += 1
            self._found.clear()
            self._approvals.clear()

    def find(self, head: str) -> PullRequest | None:
        """The newest pull request from `head`, as it was `poll_seconds` ago at most."""
        now = self._monotonic()
        with self._guard:
            stirs, kept = self._stirs, self._found.get(head)
        if kept is not None and now < kept[0]:
            return kept[1]
        found = self.newest(head)
        with self._guard:
            if stirs == self._stirs:
                self._found[head] = (now + self._poll_seconds, found)
        return found

    def open(
        self, *, head: str, base: str, title: str, body: str, labels: Sequence[str], reviewers: Sequence[str]
    ) -> PullRequest:
        """Ask for a merge; an open one for the same two branches is returned as it is."""
        try:
            return self.make(head=head, base=base, title=_shortened(title), body=body, labels=labels, reviewers=reviewers)
        finally:
            self.stir()

    def update(self, number: int, *, title: str, body: str) -> None:
        """Rewrite title and body; one that says so already is left alone, or its webhook would wake us for nothing."""
        title = _shortened(title)
        now = self.show(number)
        if (now.title, _plain(now.body)) != (title, _plain(body)):
            self.rewrite(number, title, body)
            self.stir()

    def close(self, number: int, *, comment: str) -> None:
        """Say why, then close; one that is not open is left alone."""
        if self.show(number).state == "open":
            self.comment(number, marker=CLOSING, body=comment)
            self.shut(number)
            self.stir()

    def comment(self, number: int, *, marker: str, body: str) -> None:
        """Say something once; what somebody else says is never rewritten, whatever marker it bears."""
        text = body if marker in body else f"{marker}\n{body}"
        mine = self._name = self._name or self.own_name(number)
        for said in self.comments(number):
            if said.by == mine and marker in said.body:
                if _plain(said.body) != _plain(text):
                    self.rewrite_comment(number, said.id, text)
                return
        self.say(number, text)

    def set_status(self, commit: str, *, context: str, state: StatusState, text: str, url: str = "") -> None:
        """Set the status of a commit; what we set last is not set again, since forges keep each one."""
        text = " ".join(text.split())
        text = text if len(text) <= LONGEST_STATUS else text[: LONGEST_STATUS - 1] + "…"
        with self._guard:
            if self._statuses.get((commit, context)) == (state, text, url):
                return
        self.send_status(commit, context=context, state=state, text=text, url=url)
        with self._guard:
            if len(self._statuses) >= MOST_STATUSES:
                self._statuses.clear()
            self._statuses[(commit, context)] = (state, text, url)

    def approvals(self, number: int) -> tuple[Approval, ...]:
        """Who approved it, as it was `poll_seconds` ago at most."""
        now = self._monotonic()
        with self._guard:
            stirs, kept = self._stirs, self._approvals.get(number)
        if kept is not None and now < kept[0]:
            return kept[1]
        found = self.reviewed(number)
        with self._guard:
            if stirs == self._stirs:
                self._approvals[number] = (now + self._poll_seconds, found)
        return found

    def reviewed(self, number: int) -> tuple[Approval, ...]:
        """Ask who approved it."""
        raise NotImplementedError

    def newest(self, head: str) -> PullRequest | None:
        """Ask for the newest pull request from a branch of this repository."""
        raise NotImplementedError

    def make(
        self, *, head: str, base: str, title: str, body: str, labels: Sequence[str], reviewers: Sequence[str]
    ) -> PullRequest:
        """Ask for a merge."""
        raise NotImplementedError

    def show(self, number: int) -> PullRequest:
        """One pull request."""
        raise NotImplementedError

    def rewrite(self, number: int, title: str, body: str) -> None:
        """Set title and body."""
        raise NotImplementedError

    def shut(self, number: int) -> None:
        """Close without merging."""
        raise NotImplementedError

    def own_name(self, number: int) -> str:
        """Whose token it is that we have; where the token may not ask, who opened the pull request."""
        raise NotImplementedError

    def comments(self, number: int) -> Iterable[Comment]:
        """What was said about one."""
        raise NotImplementedError

    def say(self, number: int, text: str) -> None:
        """Make a comment."""
        raise NotImplementedError

    def rewrite_comment(self, number: int, comment: int, text: str) -> None:
        """Change a comment."""
        raise NotImplementedError

    def send_status(self, commit: str, *, context: str, state: StatusState, text: str, url: str) -> None:
        """Set a status."""
        raise NotImplementedError


def _shortened(title: str) -> str:
    title = " ".join(title.split())
    return title if len(title) <= LONGEST_TITLE else title[: LONGEST_TITLE - 1] + "…"


def _plain(text: str) -> str:
    """Text as a forge may give it back."""
    return text.replace("\r\n", "\n").strip()
