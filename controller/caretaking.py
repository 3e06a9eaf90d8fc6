"""Keeps the store from growing without end: once in a while, what nothing needs any more is removed.

What is removed is written down first, so that no later work takes over what is not there. The rest is done beside the passes:
who builds or pushes meanwhile loses nothing (`adapters/oci/cleaning.py`).
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from controller.adapters.attest.verifying import ImageTrust
from controller.adapters.oci.cleaning import Swept, evict, sweep
from controller.adapters.oci.layout import Layout, write_whole
from controller.adapters.oci.mirrored import MirroredLayout
from controller.adapters.oci.withdrawing import Ours, clear
from controller.loop import Following
from policies.errors import ControllerError, RefusedError
from policies.hygiene import bytes_of
from policies.jobs import built_on
from policies.planning import plan
from policies.records import swept_statement
from policies.retention import in_use, swept_of, why_nothing_goes
from policies.terms.desired import DesiredState
from policies.terms.document_types import parse_duration
from policies.terms.observed import Observed, Recorded
from policies.terms.plan import Plan
from policies.terms.project import StoreLimits
from reconcilers import observe, source
from reconcilers.ports import Ports

EVERY = timedelta(days=1)
faults = logging.getLogger("myelin.faults")


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """What there is to clean, and what tells what is ours."""

    layout: Layout
    trust: ImageTrust
    """Whose signatures make something in a registry ours."""
    state: Path
    """Folder for what is remembered from one time to the next; may be lost."""
    is_job: Callable[[str], bool] = lambda name: False
    """Whether a registry has the result of a job of this name, signed by us."""
    unpacked: Callable[[Collection[str], float, bool], Swept] | None = None
    """Removes unpacked images but for those that are in use, as `sweep` does; None: there are none here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cleaned:
    """What one time came to."""

    store: Swept = field(default_factory=Swept)
    registry: Swept | None = None
    cache: Swept | None = None
    unpacked: Swept | None = None
    why_not: str = ""
    """Why nothing could be removed; empty where it could."""

    def value(self) -> dict[str, Any]:
        """As the contract has it."""
        parts = [("store", self.store), ("registry", self.registry), ("cache", self.cache), ("unpacked", self.unpacked)]
        removed = [{"where": where, **item.value()} for where, part in parts if part is not None for item in part.removed]
        refused = self.why_not or (self.registry.refused if self.registry is not None else "")
        freed = sum(part.freed_bytes for _, part in parts if part is not None)
        return {"removed": removed, "freedBytes": freed, "kept": self.store.kept, "refused": refused}


class Caretaker:
    """Cleans a project's store once a day, beside its passes.

    Args:
        store: What there is to clean.
        tell: Takes one line when something was removed, or could not be and that is news.
    """

    def __init__(self, store: Store, *, tell: Callable[[str], None] = lambda line: None) -> None:
        self.store, self.tell = store, tell
        self._memory = store.state / "cleaned.json"
        self._work: threading.Thread | None = None
        self._next_at: datetime | None = None

    def look(self, following: Following, ports: Ports) -> None:
        """Clean if it is time; called after a pass, by the thread that runs the passes."""
        now = ports.clock.now()
        if (self._next_at is not None and now < self._next_at) or (self._work is not None and self._work.is_alive()):
            return
        before = self._before()
        at = _instant(before.get("at"))
        self._next_at = (at or now) + EVERY
        if at is None:
            # A new store has nothing to remove, and who lost this memory waits a day more.
            self._remember(now, before.get("refused", ""))
            return
        desired, observed = following.memory.desired, following.observed
        if now < self._next_at or desired is None or observed is None:
            return
        self._next_at = now + EVERY
        why_not, used = _judged(desired, observed, following, now, following.plan)
        if why_not:
            self._done(now, Cleaned(why_not=why_not), before)
            return
        ports.ledger.record(_statements(observed.recorded, used))
        jobs, recorded = frozenset(observed.jobs), _ours(observed.recorded)
        limits = desired.project.spec.builder.store
        work = lambda: self._clean(now, used, limits, jobs, recorded, before)  # noqa: E731  it is given to a thread, once
        self._work = threading.Thread(target=work, name="clean", daemon=True)
        self._work.start()

    def join(self, seconds: float) -> None:
        """Wait for what goes on."""
        if self._work is not None:
            self._work.join(seconds)

    def _clean(
        self,
        now: datetime,
        used: Mapping[str, str],
        limits: StoreLimits,
        jobs: frozenset[str],
        recorded: frozenset[str],
        before: Mapping[str, Any],
    ) -> None:
        try:
            done = remove(self.store, used, limits, jobs=jobs, recorded=recorded, now=now)
        except ControllerError as error:
            done = Cleaned(why_not=error.message)
        except Exception as error:  # noqa: BLE001  nobody else would hear of it
            faults.error("fault while cleaning", exc_info=error)
            done = Cleaned(why_not=f"a fault in Myelin itself: {type(error).__name__}")
        self._done(now, done, before)

    def _done(self, now: datetime, done: Cleaned, before: Mapping[str, Any]) -> None:
        value = done.value()
        if value["removed"]:
            self.tell(f"store cleaned: {value['freedBytes']} bytes removed that nothing needs any more")
        if value["refused"] and value["refused"] != before.get("refused"):
            self.tell(f"store not cleaned, or not all of it: {value['refused']}")
        self._remember(now, value["refused"])

    def _before(self) -> dict[str, Any]:
        try:
            value = json.loads(self._memory.read_bytes())
            return value if isinstance(value, dict) else {}
        except (OSError, ValueError):
            return {}

    def _remember(self, now: datetime, refused: str) -> None:
        try:
            write_whole(self._memory, json.dumps({"at": now.isoformat(), "refused": refused}).encode())
        except OSError:
            return  # a full disk is told by the outcomes of those who need the disk


def clean(
    store: Store, following: Following, ports: Ports, *, grace_seconds: float | None = None, dry_run: bool = False
) -> Cleaned:
    """Look, and remove what nothing needs any more, at once.

    Args:
        store: What there is to clean.
        following: The project; no pass is run.
        ports: The outside.
        grace_seconds: What was used this lately stays; None: as the project says.
        dry_run: Only tell what would go.

    Raises:
        OutsideError: The repository, the registry or the disk failed us.
    """
    now = ports.clock.now()
    desired = source.fetch(ports, branch=following.branch, pin=following.pin, memory=following.memory)
    around = built_on(desired, following.around)
    observed = observe.look(desired, ports, around=around, now=now)
    due = plan(desired, observed, now=now, around=around)
    why_not, used = _judged(desired, observed, following, now, due)
    if why_not:
        raise RefusedError(f"store: expected to tell what is in use: {why_not}; nothing is removed", reason="UseUnknown")
    if not dry_run:
        ports.ledger.record(_statements(observed.recorded, used))
    jobs, recorded = frozenset(observed.jobs), _ours(observed.recorded)
    limits = desired.project.spec.builder.store
    return remove(store, used, limits, jobs=jobs, recorded=recorded, now=now, grace_seconds=grace_seconds, dry_run=dry_run)


def remove(
    store: Store,
    used: Mapping[str, str],
    limits: StoreLimits = StoreLimits(),
    *,
    jobs: frozenset[str],
    recorded: frozenset[str],
    now: datetime,
    grace_seconds: float | None = None,
    dry_run: bool = False,
) -> Cleaned:
    """Remove all but what is in use from a store, and from the registry behind it.

    Args:
        store: What there is to clean.
        used: Digests that must stay -> why.
        limits: What the project says of its store.
        jobs: Jobs whose results must stay.
        recorded: Digests that our ledger names.
        now: This instant, UTC.
        grace_seconds: What was used this lately stays, instead of what the project says.
        dry_run: Only tell what would go.

    Raises:
        OutsideError: The registry or the disk failed us.
        TrustError: A manifest that is in use is damaged.
    """
    layout, grace = store.layout, parse_duration(limits.keep_unused) if grace_seconds is None else grace_seconds
    registry = cache = None
    if isinstance(layout, MirroredLayout):
        ours, memory = Ours(trust=store.trust, recorded=recorded, is_job=store.is_job), store.state / "unnamed.json"
        registry = clear(layout, used, ours, jobs=jobs, memory=memory, now=now, grace_seconds=grace, dry_run=dry_run)
    swept = sweep(layout, used, grace_seconds=grace, dry_run=dry_run)
    if isinstance(layout, MirroredLayout) and not dry_run:
        cache = evict(layout, bytes_of(limits.cache), is_elsewhere=layout.registry.has_blob)
    unpacked = store.unpacked(used, grace, dry_run) if store.unpacked is not None else None
    return Cleaned(store=swept, registry=registry, cache=cache, unpacked=unpacked)


def _judged(
    desired: DesiredState, observed: Observed, following: Following, now: datetime, due: Plan | None
) -> tuple[str, Mapping[str, str]]:
    """Why it cannot be told what is in use, and else what is."""
    around = built_on(desired, following.around)
    return why_nothing_goes(desired, observed), in_use(desired, observed, around=around, now=now, plan=due)


def _statements(recorded: Recorded, used: Mapping[str, str]) -> list[Any]:
    return [swept_statement(axon, digests, after=recorded.head) for axon, digests in swept_of(recorded, used).items()]


def _ours(recorded: Recorded) -> frozenset[str]:
    tasks = recorded.tasks.values()
    return frozenset(digest for task in tasks for digest in (task.image, task.model, *task.data) if digest)


def _instant(text: Any) -> datetime | None:
    try:
        at = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return at if at.tzinfo is not None else None
