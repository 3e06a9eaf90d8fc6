"""A plan: ordered steps, each with its reason. A step says what is due; the deed of its kind does it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from policies.errors import Fault
from policies.terms.desired import DesiredAxon
from policies.terms.event import Alert, Event
from policies.terms.observed import Recorded
from policies.terms.project import Forge, Project, WriteBackMode
from policies.terms.proposal import Asking, Proposal, StatusState
from policies.terms.release import Release
from policies.terms.revision import TrustedKey
from policies.terms.run import Run, TaskRun
from policies.terms.source import Elsewhere
from policies.terms.task import ImageSpec, JobSpec, ServerSpec
from policies.terms.trial import Experiment
from policies.terms.version import Version


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What every step says of itself."""

    axon: str
    task: str = ""
    reason: str
    """Why it is due, for a person."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordEvent(Step):
    """An occurrence that nobody wrote down yet."""

    event: Event


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolveAlert(Step):
    """An alert that was recorded does not hold any more."""

    event_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StartRun(Step):
    """A sensor fired."""

    run: Run


@dataclass(frozen=True, slots=True, kw_only=True)
class SupersedeRun(Step):
    """A newer revision does not need this run: its jobs are stopped."""

    run: Run
    jobs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolveSource(Step):
    """Another repository whose commit is to be looked up, once for a run, and written down."""

    run: str
    source: Elsewhere
    folders: tuple[str, ...]
    """Folders of it that the run builds from."""
    signers: tuple[TrustedKey, ...] = ()
    """Who may have signed it, where the manifest asks for that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordImage(Step):
    """An image that was built and is about to be used; nobody wrote down yet what went into it."""

    image: str
    materials: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildImage(Step):
    """An image that is not there yet, is being built or could not be built."""

    image: ImageSpec
    identity: str
    phase: str
    """`absent`, `building` or `failed`."""
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunJob(Step):
    """A job to start, to wait for, or to take the result of."""

    job: JobSpec
    result: TaskRun
    """How the record looks if it succeeds: names and inputs are filled in."""
    loss_metric: str = ""
    """Metric that the program must report; empty: it need not report."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tune(Step):
    """A tuning run to go on with."""

    experiment: Experiment
    job: JobSpec
    """The trial's job without name, arguments and trial environment."""
    result: TaskRun
    loss_metric: str
    places: int | None = None
    """How many trials may be started now, besides those that run; None: as many as it likes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishTask(Step):
    """A task whose end is decided: reused from an earlier equal one, or impossible."""

    result: TaskRun


@dataclass(frozen=True, slots=True, kw_only=True)
class Deploy(Step):
    """A version to bring up and, once it is ready, to commit with its share of traffic."""

    version: Version
    servers: tuple[ServerSpec, ...]
    release: Release
    """What the release will say."""
    release_file: str
    release_text: bytes
    """What it says now; empty when it is new."""
    result: TaskRun
    started_at: datetime | None
    """Since when its servers are being started."""
    patience_seconds: float = 120.0
    """How long they may take to answer before the version is given up."""
    mode: WriteBackMode = "commit"
    asking: Asking | None = None
    """What people are asked, with `pull-request`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RollBack(Step):
    """A version to take out of traffic, by a commit."""

    version: str
    release: Release
    release_file: str
    release_text: bytes
    result: TaskRun
    event_id: str
    text: str
    """The alert's name, value and threshold in words."""
    mode: WriteBackMode = "commit"
    asking: Asking | None = None
    """What people are asked, with `pull-request`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposeLock(Step):
    """A lock that was resolved, and that people are asked to keep; its text is in its image's provenance."""

    asking: Asking
    """What people are asked; the body is written once the text is read."""
    folder: str
    bounded: tuple[str, ...] = ()
    """Names of signers who may not change that file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndProposal(Step):
    """People are not to be asked any more: the request is closed, its branch goes, its status ends."""

    proposal: Proposal
    how: Literal["merged", "declined", "overtaken"]
    forge: Forge | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SetStatus(Step):
    """A forge is to be told how a commit fares."""

    commit: str
    context: str
    state: StatusState
    forge: Forge


@dataclass(frozen=True, slots=True, kw_only=True)
class Serve(Step):
    """A server that must be there, as its spec says."""

    server: ServerSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Retire(Step):
    """A server that nothing asks for any more."""

    server: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FreeJobs(Step):
    """Jobs whose result is recorded: what they hold may go."""

    free: tuple[str, ...] = ()
    """Their folders go, logs and reports stay."""
    forget: tuple[str, ...] = ()
    """Nothing of them stays."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocked(Step):
    """Something that cannot go on, or a part of Myelin that is not built yet; it only says so."""

    subject: str
    state: Literal["stalled", "waiting", "done"] = "stalled"
    word: str = "NotBuilt"
    """The reason for machines."""


AnyStep = (
    RecordEvent
    | ResolveAlert
    | StartRun
    | SupersedeRun
    | ResolveSource
    | RecordImage
    | BuildImage
    | RunJob
    | Tune
    | FinishTask
    | Deploy
    | RollBack
    | ProposeLock
    | EndProposal
    | SetStatus
    | Serve
    | Retire
    | FreeJobs
    | Blocked
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """All that an axon's steps follow from, besides the clock. Whole things are told apart by identity: they are frozen."""

    axon: DesiredAxon
    project: Project
    recorded: Recorded | None
    """The fold of its own entries; None where the fold was not kept by axon."""
    releases: tuple[Release, ...]
    versions: tuple[Version, ...]
    jobs: tuple[tuple[str, str], ...]
    """(name, phase) of each."""
    alerts: tuple[Alert, ...]
    received: tuple[str, ...]
    """Ids of events that came in by HTTP."""
    unread: Fault | None
    """What keeps a release of it from being read."""
    is_trusted: bool
    around: object


@dataclass(frozen=True, slots=True, kw_only=True)
class AtRest:
    """An axon of which nothing is due, and what that followed from."""

    seen: Circumstances
    steps: tuple[AnyStep, ...]
    """What is said of it at each look; nothing of it is done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is due, in order."""

    steps: tuple[AnyStep, ...]
    at_rest: Mapping[str, AtRest] = field(default_factory=dict, compare=False, repr=False)
    """Axons that need no planning until something about them is new."""
    planned: int = field(default=0, compare=False)
    """How many axons were planned anew."""
