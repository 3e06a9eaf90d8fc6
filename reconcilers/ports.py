"""What we ask of the outside: one Protocol for each thing that can fail, and the frozen bundle of them.

Every method raises only the classes of `policies.errors`; adapters translate foreign exceptions once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from policies.terms.digest import Digest
from policies.terms.document import LoadedDocument
from policies.terms.event import Alert, Event
from policies.terms.metrics import AlertRule, Target
from policies.terms.project import Forge as ForgeSettings
from policies.terms.proposal import Approval, PullRequest, StatusState
from policies.terms.record import Entry, Statement
from policies.terms.revision import CommitFacts, TrustedKey
from policies.terms.source import Elsewhere, Resolved
from policies.terms.task import ImageSpec, ImageState, JobSpec, JobState, ServerSpec, ServerState
from policies.terms.trial import Experiment, Tell


class Clock(Protocol):
    """The one source of time."""

    def now(self) -> datetime:
        """This instant, aware, UTC."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeFile:
    """One file of a commit."""

    path: str
    """From the root of the repository."""
    blob: str
    """Git object id."""
    executable: bool
    symlink: bool
    size_bytes: int
    submodule: bool = False
    """Whether it is a commit of another repository, named by `blob`."""


class Repository(Protocol):
    """A Git repository: read at pinned commits, written by compare-and-swap."""

    url: str

    def fetch(self, branch: str, *, fresh: bool = False) -> str:
        """Bring the branch here and return its tip, 40 hexadecimal characters; empty when it has no commit.

        Args:
            branch: Its name.
            fresh: Ask the server now, even if it was asked a moment ago.

        Raises:
            SilentError: The repository does not answer or is not there.
            RefusedError: It refuses access.
        """
        ...

    def facts(self, *, since: str, until: str) -> tuple[CommitFacts, ...]:
        """All commits reachable from `until` and not from `since`, parents before children.

        An empty `since` means from the roots.
        """
        ...

    def tree_id(self, commit: str, path: str) -> str:
        """Git object id of the folder or file at `path` in `commit`; empty when there is none."""
        ...

    def committed_at(self, commit: str) -> datetime:
        """The committer's instant, UTC.

        Raises:
            DesiredStateError: There is no such commit here.
        """
        ...

    def files(self, commit: str, folder: str = "") -> tuple[TreeFile, ...]:
        """All files below `folder` in `commit`, sorted by path."""
        ...

    def read(self, commit: str, path: str) -> bytes:
        """Content of one file.

        Raises:
            DesiredStateError: There is no such file in that commit.
        """
        ...

    def read_many(self, commit: str, paths: Sequence[str]) -> Mapping[str, bytes]:
        """Contents of several files at once; a path that is not there is left out."""
        ...

    def push(
        self, *, branch: str, parent: str, changes: Mapping[str, bytes | None], message: str, at: datetime, author: str = ""
    ) -> str:
        """Commit `changes` (None removes) on `parent`, signed by the controller's key, and push it by compare-and-swap.

        Args:
            branch: Branch to move.
            parent: The commit that its tip must still be; empty when the branch must not exist yet.
            changes: Path -> new content.
            message: Commit message with trailers.
            at: Author and committer instant.
            author: `Name <address>`; empty: Myelin's own.
        Returns:
            The new commit.
        Raises:
            ConflictError: The branch moved meanwhile.
            RefusedError: The server refuses the push.
            SilentError: The server does not answer.
        """
        ...

    def propose(
        self,
        *,
        branch: str,
        parent: str,
        changes: Mapping[str, bytes | None],
        message: str,
        at: datetime,
        expected: str,
        author: str = "",
    ) -> str:
        """Commit `changes` on `parent` and make it the tip of a branch of ours, whatever that was based on before.

        Args:
            branch: A branch that is the controller's own, below `myelin/`; never the one that is followed.
            parent: What the commit is based on.
            changes: Path -> new content; None removes.
            message: Commit message with trailers.
            at: Author and committer instant.
            expected: The tip that the branch must still have; empty when it must not exist yet.
            author: `Name <address>`; empty: Myelin's own.
        Returns:
            The new commit; equal arguments make an equal one.
        Raises:
            ConflictError: Somebody else moved the branch meanwhile.
            RefusedError: The server refuses the push.
            SilentError: The server does not answer.
        """
        ...

    def withdraw(self, *, branch: str, expected: str) -> None:
        """Delete a branch of ours if its tip still is `expected`; one that is gone is passed over.

        Raises:
            ConflictError: Somebody else moved the branch meanwhile.
            OutsideError: As for `propose`.
        """
        ...


class Ledger(Protocol):
    """Append-only statements: a write-ahead log on disk, pushed to the branch `myelin/ledger`."""

    def entries(self) -> tuple[Entry, ...]:
        """All entries, pushed ones and those still in the write-ahead log, in order."""
        ...

    def since(self, number: int) -> Iterator[Entry]:
        """The entries after that number, in order, one at a time; those that `records.spent_by` names may be left out."""
        ...

    def holds(self, number: int, digest: str) -> bool:
        """Whether the entry of that number is the one with that digest, still; entry 0 is there, with an empty digest."""
        ...

    def knows(self, keys: Sequence[str]) -> Set[str]:
        """Which of these keys are recorded."""
        ...

    def record(self, statements: Sequence[Statement]) -> tuple[Entry, ...]:
        """Append, signed and chained, and return once they are safe on disk. Known keys are passed over."""
        ...

    def pending(self) -> int:
        """How many entries are only in the write-ahead log."""
        ...

    def push(self) -> int:
        """Push what is only in the write-ahead log, as one commit; return the number of entries pushed.

        Raises:
            OutsideError: They stay in the write-ahead log, in order.
        """
        ...


class Engine(Protocol):
    """Where jobs and servers run. Both outlive the controller."""

    def start(self, spec: JobSpec) -> None:
        """Start a job; one of that name that runs or ended already is left alone.

        Raises:
            OutsideError: It could not be started now (full disk, no process left).
            TrustError: The image is not what its digest or signature says.
        """
        ...

    def jobs(self) -> Mapping[str, JobState]:
        """All jobs that have not been removed, by name."""
        ...

    def collect(self, name: str) -> Mapping[str, Digest]:
        """Keep the folders that a succeeded job was asked to keep: `{"model": digest, "data": digest}`.

        Raises:
            OutsideError: No such job, or the store failed.
        """
        ...

    def stop(self, name: str) -> None:
        """End a job and all its processes; it becomes `failed`, reason `Stopped`. Unknown names are passed over."""
        ...

    def clean(self, name: str) -> None:
        """Free the folders of a job that ended; its log and report stay. Unknown names are passed over."""
        ...

    def remove(self, name: str) -> None:
        """Forget a job and its folder, after its record is safe."""
        ...

    def logs(self, name: str, *, last_bytes: int = 65536) -> str:
        """The end of what a job or server printed."""
        ...

    def serve(self, spec: ServerSpec) -> None:
        """Make a server be there as the spec says: start, replace, hand it a new config, or leave it alone."""
        ...

    def servers(self) -> Mapping[str, ServerState]:
        """All servers, by name. One that died is started again, with pauses, by the next `serve`."""
        ...

    def retire(self, name: str) -> None:
        """End a server and forget it. Unknown names are passed over."""
        ...


class Sources(Protocol):
    """Other repositories that images are built from."""

    def resolve(self, source: Elsewhere, folders: Sequence[str]) -> Resolved:
        """Which commit a revision is now, with the tree ids of folders in it.

        Raises:
            DesiredStateError: The repository is one that a manifest may not name.
            OutsideError: It does not answer, refuses access, or has nothing of that name.
        """
        ...


class Images(Protocol):
    """Builds images, out of the pass's way."""

    def look(self, spec: ImageSpec) -> ImageState | None:
        """What is known of this image; None when nobody started to build it."""
        ...

    def start(self, spec: ImageSpec) -> None:
        """Begin to build and sign it, unless that goes on or is done already. After a failure: try again."""
        ...

    def verify(self, digest: Digest) -> None:
        """Check an image before it is loaded.

        Raises:
            TrustError: A blob is missing or changed, or no key of the project signed the digest.
        """
        ...

    def lock(self, digest: Digest) -> str:
        """The text of the lock that was resolved for an image, out of its signed provenance.

        Raises:
            TrustError: No provenance that a key of the project signed has one.
            OutsideError: The store does not answer.
        """
        ...


class Sampler(Protocol):
    """Draws configurations. A pure function of its arguments: nothing is kept between calls."""

    def suggest(
        self, experiment: Experiment, tells: Sequence[tuple[Tell, Mapping[str, Any]]], number: int
    ) -> tuple[Mapping[str, Any], str]:
        """Draw suggestion `number` after these results, in the order in which they were told.

        Returns:
            The configuration in the manifest's types, and its origin: `random`, `model` or `default`.
        """
        ...


class Metrics(Protocol):
    """Recent samples, and PromQL over them."""

    def watch(self, targets: Sequence[Target]) -> None:
        """From now on, read these addresses."""
        ...

    def alerts(self, rules: Sequence[AlertRule], now: datetime) -> tuple[Alert, ...]:
        """Which conditions hold, one alert for each series, sorted."""
        ...

    def value(self, query: str, now: datetime) -> float | None:
        """The first value that a query gives, None when there is none."""
        ...


class Inbox(Protocol):
    """What came in by HTTP and is safe on disk, until a pass took it."""

    def received(self) -> tuple[Event, ...]:
        """Events of REST triggers, oldest first."""
        ...

    def taken(self, ids: Sequence[str]) -> None:
        """Forget these, their record is safe."""
        ...


class Forge(Protocol):
    """Pull requests and statuses of one repository. Every method raises `OutsideError`s only.

    RefusedError says which permission the token lacks; SilentError also stands for a rate limit.
    """

    def find(self, head: str) -> PullRequest | None:
        """The newest pull request from the branch `head` of this repository, in whatever state; None when there never was one."""
        ...

    def open(
        self, *, head: str, base: str, title: str, body: str, labels: Sequence[str], reviewers: Sequence[str]
    ) -> PullRequest:
        """Ask for `head` to be merged into `base`; an open one for the same two is returned as it is.

        Labels that the repository lacks are made. A reviewer that the forge refuses is left out.
        """
        ...

    def update(self, number: int, *, title: str, body: str) -> None:
        """Rewrite title and body, Markdown."""
        ...

    def close(self, number: int, *, comment: str) -> None:
        """Close without merging, and say why; one that is not open any more is left alone."""
        ...

    def comment(self, number: int, *, marker: str, body: str) -> None:
        """Say something once: a comment of ours that holds `marker` (an HTML comment) is rewritten, else a new one is made."""
        ...

    def approvals(self, number: int) -> tuple[Approval, ...]:
        """Who approved it, oldest first; whoever took the approval back or asked for changes since then is left out.

        So is whoever may not write there: anybody can review what anybody can read.
        """
        ...

    def set_status(self, commit: str, *, context: str, state: StatusState, text: str, url: str = "") -> None:
        """Set the status of a commit under one name.

        Args:
            commit: 40 hexadecimal characters.
            context: Its name, `myelin/digits`.
            state: How it stands.
            text: One line; what is longer than a forge takes is cut.
            url: Where to read more; empty for nowhere.
        """
        ...


class Keys(Protocol):
    """The controller's signing key. It never leaves the adapter."""

    def public(self) -> str:
        """The public key as `ssh-ed25519 AAAA…`, without comment."""
        ...

    def sign(self, data: bytes) -> str:
        """Base64 of the signature over `data`."""
        ...

    def is_signed(self, data: bytes, signature: str, public: str) -> bool:
        """Whether `signature` over `data` was made by the holder of `public`."""
        ...


class Forges(Protocol):
    """The forges that a project's `spec.writeBack.forge` may name."""

    def of(self, settings: ForgeSettings) -> Forge:
        """The forge that these settings mean.

        Raises:
            RefusedError: There is no token for it, or it lies where this controller's token must not be sent.
        """
        ...


class Documents(Protocol):
    """YAML that people and the controller both edit."""

    def render(self, value: Mapping[str, Any]) -> bytes:
        """A new document."""
        ...

    def edit(self, text: bytes, value: Mapping[str, Any]) -> bytes:
        """The document with `value` as content, keeping comments, order and quoting of what did not change."""
        ...

    def load(self, text: bytes, file: str) -> LoadedDocument:
        """Read a document with its line numbers.

        Raises:
            DesiredStateError: Not YAML, with line and what was expected.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """All of the outside that one project's pass may touch."""

    repository: Repository
    ledger: Ledger
    engine: Engine
    sources: Sources
    images: Images
    sampler: Sampler
    metrics: Metrics
    inbox: Inbox
    keys: Keys
    own: tuple[TrustedKey, ...]
    """Keys whose commits are the controller's own."""
    documents: Documents
    clock: Clock
    forges: Forges
