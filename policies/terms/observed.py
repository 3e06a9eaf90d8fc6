"""Observed state: what one look found outside of Git's main branch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from policies.terms.build import ResolvedLock
from policies.terms.event import Alert, Event
from policies.terms.proposal import Proposal
from policies.terms.run import Run, TaskRun
from policies.terms.source import Resolved
from policies.terms.task import ImageState, JobState, ServerState
from policies.terms.trial import Ask, Tell


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What the ledger says was done: the fold of its entries."""

    entries: int = 0
    head: str = ""
    """Digest of the newest entry."""
    events: Mapping[str, Event] = field(default_factory=dict)
    """Event id -> event, in the order of record."""
    runs: Mapping[str, Run] = field(default_factory=dict)
    tasks: Mapping[str, TaskRun] = field(default_factory=dict)
    """Task run id -> how it ended, in the order of record."""
    asks: Mapping[str, tuple[Ask, ...]] = field(default_factory=dict)
    """Task run id -> its suggestions, in the order of record."""
    tells: Mapping[str, tuple[Tell, ...]] = field(default_factory=dict)
    resolved: frozenset[str] = frozenset()
    """Event ids of alerts that ended."""
    inputs: Mapping[str, TaskRun] = field(default_factory=dict)
    """Inputs digest -> the newest succeeded task run made from them, of whatever axon."""
    deploying: Mapping[str, datetime] = field(default_factory=dict)
    """Task run id of a deployment -> since when its servers are being started."""
    sources: Mapping[str, tuple[Resolved, ...]] = field(default_factory=dict)
    """Run -> what the other repositories that it builds from came to."""
    proposals: Mapping[str, Proposal] = field(default_factory=dict)
    """Task run id, or a lock's evidence -> the change that people are or were asked about."""
    statuses: Mapping[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)
    """(commit, context) -> states that its forge was told, in order."""
    images: frozenset[str] = frozenset()
    """Digests of images of which is recorded what went into them."""
    locks: Mapping[tuple[str, str], ResolvedLock] = field(default_factory=dict)
    """(axon, source folder) -> the newest lock that was resolved for an image of it, in the order of record."""
    swept: frozenset[str] = frozenset()
    """Models and data that nothing needed any more, and that were removed: no later work takes them over."""
    slices: Mapping[str, Recorded] | None = field(default=None, compare=False, repr=False)
    """Axon -> the fold of its own entries: the same object for as long as it has no new ones. None: they were not kept apart."""

    def of(self, axon: str) -> Recorded:
        """What is recorded of one axon; `inputs` stay those of all, since equal work is done once for everybody."""
        if self.slices is not None:
            return replace(self.slices.get(axon, NOTHING), inputs=self.inputs)
        tasks = {key: task for key, task in self.tasks.items() if task.axon == axon}
        mine = {*tasks, *(key for key, item in self.proposals.items() if item.axon == axon)}
        return Recorded(
            entries=self.entries,
            head=self.head,
            events={key: event for key, event in self.events.items() if event.axon == axon},
            runs={key: run for key, run in self.runs.items() if run.axon == axon},
            tasks=tasks,
            asks=self.asks,
            tells=self.tells,
            resolved=self.resolved,
            inputs=self.inputs,
            deploying=self.deploying,
            sources=self.sources,
            proposals={key: item for key, item in self.proposals.items() if key in mine},
            statuses=self.statuses,
            images=self.images,
            locks={key: lock for key, lock in self.locks.items() if lock.axon == axon},
            swept=self.swept,
        )


NOTHING = Recorded()
"""What is recorded of an axon that nothing is recorded of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """One look."""

    recorded: Recorded
    is_pushed: bool = True
    """Whether all that is recorded has left this machine's write-ahead log."""
    jobs: Mapping[str, JobState] = field(default_factory=dict)
    servers: Mapping[str, ServerState] = field(default_factory=dict)
    images: Mapping[str, ImageState] = field(default_factory=dict)
    """Image identity -> what is known; absent when nobody started it."""
    alerts: tuple[Alert, ...] = ()
    """Conditions that hold now."""
    received: tuple[Event, ...] = ()
    """What came in by HTTP and is not recorded yet."""
