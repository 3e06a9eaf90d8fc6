"""The world that all fakes share: what survives a controller, a clock moved by hand, faults and death by name.

Whatever lies outside of the controller's process is in `Outside`; a restart is `open()`, which forgets everything else.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypeVar

from policies.terms.event import Event
from policies.terms.metrics import Target
from policies.terms.revision import Signature
from policies.terms.task import ImageSpec, ImageState, JobSpec, JobState, ServerSpec

START = datetime(2026, 1, 31, 12, tzinfo=UTC)
Files = dict[str, bytes]
Key = tuple[tuple[str, str], ...]
Moment = Literal["before", "after"]
T = TypeVar("T")


class Crash(BaseException):
    """The controller dies here. No `except Exception` may survive it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """A commit of the simulated repository, whole."""

    id: str
    parents: tuple[str, ...]
    files: Mapping[str, bytes]
    at: datetime
    author: str
    message: str
    signature: Signature | None


@dataclass(slots=True)
class Disk:
    """A ledger's folder, line by line: what is pushed, and the write-ahead log."""

    pushed: list[bytes] = field(default_factory=list)
    pending: list[bytes] = field(default_factory=list)


@dataclass(slots=True)
class Job:
    """A job's folder: it stays until it is removed."""

    spec: JobSpec
    state: JobState
    folders: dict[str, Files]
    log: str = ""


@dataclass(slots=True)
class Server:
    """A server's folder."""

    spec: ServerSpec
    port: int
    phase: Literal["starting", "ready", "failed"] = "starting"
    restarts: int = 0
    log: str = ""


@dataclass(slots=True)
class Opinion:
    """What somebody thinks of one commit of a pull request."""

    by: str
    commit: str
    at: datetime
    verdict: Literal["approved", "withdrawn"]


@dataclass(slots=True)
class Pull:
    """A pull request; `head_commit` is what its branch was when somebody looked last."""

    number: int
    head: str
    head_commit: str
    base: str
    title: str
    body: str
    by: str
    is_fork: bool = False
    state: Literal["open", "merged", "closed"] = "open"
    merge_commit: str = ""
    ended_by: str = ""
    labels: list[str] = field(default_factory=list)
    reviewers: list[str] = field(default_factory=list)
    comments: list[tuple[str, str]] = field(default_factory=list)
    """Who said what, oldest first."""
    opinions: list[Opinion] = field(default_factory=list)


@dataclass(slots=True)
class Outside:
    """All that outlives a controller. Plain values only, so that two of them can be compared."""

    now: datetime = START
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    elsewhere: dict[tuple[str, str], str] = field(default_factory=dict)
    """URL and revision of another repository -> its commit."""
    disks: dict[str, Disk] = field(default_factory=dict)
    artifacts: dict[str, Files] = field(default_factory=dict)
    built: dict[str, ImageState] = field(default_factory=dict)
    tampered: set[str] = field(default_factory=set)
    locks: dict[str, str] = field(default_factory=dict)
    """Image -> the lock that was resolved for it, as its provenance says."""
    jobs: dict[str, Job] = field(default_factory=dict)
    started: list[str] = field(default_factory=list)
    """Names of all jobs that were really started, in order."""
    servers: dict[str, Server] = field(default_factory=dict)
    ports_taken: int = 0
    spool: dict[str, Event] = field(default_factory=dict)
    exposed: dict[str, list[tuple[dict[str, str], float]]] = field(default_factory=dict)
    """Address -> what it answers when its metrics are read."""
    samples: dict[Key, list[tuple[float, float]]] = field(default_factory=dict)
    pulls: dict[int, Pull] = field(default_factory=dict)
    """The forge's pull requests by number."""
    statuses: dict[tuple[str, str], list[tuple[str, str, str]]] = field(default_factory=dict)
    """Commit and context -> every state, text and URL that was set, oldest first."""


@dataclass(slots=True)
class Box:
    """What a program sees of its job."""

    image: str
    args: tuple[str, ...]
    env: Mapping[str, str]
    data: Files
    model: Files
    report: list[dict[str, Any]] = field(default_factory=list)
    printed: list[str] = field(default_factory=list)


Program = Callable[[Box], int | None]
"""What an image's program does: an exit code, or None when it never ends by itself."""


@dataclass(slots=True)
class _Fault:
    error: Exception
    times: int
    after: bool
    skip: int


class World:
    """Everything outside of one controller, and the ways in which it can fail it."""

    def __init__(self) -> None:
        self.outside = Outside()
        self.programs: dict[str, Program] = {}
        """Image digest, or source folder of an image -> what runs in it."""
        self.building: dict[str, ImageSpec] = {}
        """Builds that go on; they die with the controller."""
        self.failed: dict[str, ImageState] = {}
        """Builds that failed; the controller forgets them when it dies."""
        self.differs: list[dict[str, Any]] = []
        """What differs when an image is built again."""
        self.newest = "3.1"
        """The release of every package that loose requirements come to."""
        self.watched: tuple[Target, ...] = ()
        """Whose metrics are read; forgotten with the controller."""
        self.calls: list[str] = []
        """Every port call so far, by name."""
        self.faults_met = 0
        self.crash_at: int | None = None
        """Number of the port call, from 1, at which the controller dies once."""
        self.crash_moment: Moment = "before"
        self.probe: Callable[[int, Moment], None] | None = None
        """Called around each port call."""
        self._faults: dict[str, list[_Fault]] = {}
        self._meanwhile: dict[str, list[Callable[[], object]]] = {}

    def fail(self, call: str, error: Exception, *, times: int = 1, after: bool = False, skip: int = 0) -> None:
        """Let the next calls of that name fail; `after` their effect when only the answer is lost.

        Args:
            call: `repository.push`, `engine.start` …
            error: What is raised.
            times: How many calls fail.
            after: Whether the effect happens all the same.
            skip: How many calls pass before.
        """
        self._faults.setdefault(call, []).append(_Fault(error=error, times=times, after=after, skip=skip))

    def answer_again(self) -> None:
        """Let no call fail any more."""
        self._faults.clear()

    def meanwhile(self, call: str, deed: Callable[[], object]) -> None:
        """Let somebody do something just before the next call of that name takes effect."""
        self._meanwhile.setdefault(call, []).append(deed)

    def through(self, call: str, deed: Callable[[], T]) -> T:
        """One port call: counted, and failed or made the last one where somebody asked for that."""
        self.calls.append(call)
        number = len(self.calls)
        self._at(number, "before")
        fault = self._fault_of(call)
        if fault is not None and not fault.after:
            self.faults_met += 1
            raise fault.error
        if self._meanwhile.get(call):
            self._meanwhile[call].pop(0)()
        result = deed()
        self._at(number, "after")
        if fault is not None:
            self.faults_met += 1
            raise fault.error
        return result

    def move(self, seconds: int) -> None:
        """Move the clock, second by second; whoever is watched is read at each of them."""
        for _ in range(seconds):
            self.outside.now += timedelta(seconds=1)
            at = self.outside.now.timestamp()
            for target in self.watched:
                for labels, value in self.outside.exposed.get(target.address, ()):
                    key = tuple(sorted({**labels, **target.labels}.items()))
                    self.outside.samples.setdefault(key, []).append((at, value))

    def fingerprint(self) -> str:
        """Names all that a controller which dies now leaves behind."""
        return hashlib.sha256(pickle.dumps(self.outside)).hexdigest()

    def _at(self, number: int, moment: Moment) -> None:
        if self.probe is not None:
            self.probe(number, moment)
        if (self.crash_at, self.crash_moment) == (number, moment):
            self.crash_at = None
            raise Crash

    def _fault_of(self, call: str) -> _Fault | None:
        for fault in self._faults.get(call, ()):
            if fault.skip:
                fault.skip -= 1
            elif fault.times:
                fault.times -= 1
                return fault
        return None


class HandClock:
    """Implements `reconcilers.ports.Clock`: it stands still until the world's clock is moved."""

    def __init__(self, world: World) -> None:
        self._world = world

    def now(self) -> datetime:
        return self._world.outside.now
