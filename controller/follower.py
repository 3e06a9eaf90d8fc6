"""Follows one Project of a cluster, a turn at a time, for as long as it is there and we lead.

One project's fault never stops another's pass.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from controller.adapters.clock import SystemClock
from controller.adapters.cluster import Cluster
from controller.follow import Told, count, spread, write_status
from controller.loop import Report, run_pass
from controller.mirroring import Mirroring, Seen, say
from controller.projects import ProjectObject, open_project
from controller.rivals import Rivals, shown_url
from controller.turns import Turns
from controller.wiring import ClusterSurroundings, Stirred, Wired, wire_in_cluster
from policies.errors import ControllerError, DesiredStateError, RefusedError, TrustError
from policies.retries import pause_seconds
from policies.terms.outcome import Outcome
from policies.unbuilt import object_notes

faults = logging.getLogger("myelin.faults")
IDLE_SECONDS, BUSY_SECONDS = 5.0, 1.0
"""Time between two looks while nothing, and while something runs; wake-ups make both shorter."""
AWAY_SECONDS, UNLED_SECONDS = 0.5, 1.0
"""Time between two looks whether we lead (again), with a project open and without."""
SHOWN_SECONDS = 1.0
"""So often the objects are brought up to date while the passes follow each other."""
FRESH_SECONDS = 30.0
"""So old the status on disk may be while nothing changes: who reads it sees that somebody looks."""
LONGEST_PAUSE_SECONDS = 30.0
STUCK_SECONDS = 900.0
"""A pass that lasts longer will not end."""


class Surroundings(Protocol):
    """What a follower knows of the others."""

    cluster: Cluster
    seen: Seen
    rivals: Rivals
    turns: Turns
    shared: ClusterSurroundings | None
    leads: Callable[[], bool]
    is_replaced: Callable[[], bool]
    tell: Callable[[str], None]


@dataclass(slots=True, kw_only=True)
class _Opened:
    """A project that is open."""

    project: ProjectObject
    wired: Wired
    mirroring: Mirroring
    state: Path
    notes: tuple[Outcome, ...]
    closing: ExitStack
    shown_at: float = 0.0
    troubles: tuple[Outcome, ...] = ()
    written_at: float = 0.0
    written: object = None
    """What the status on disk says."""


class Follower:
    """Follows one Project.

    Args:
        fleet: What all followers share.
        namespace: The Project's.
        name: Its name.
    """

    def __init__(self, fleet: Surroundings, namespace: str, name: str) -> None:
        self._fleet, self._namespace, self._project = fleet, namespace, name
        self._ending, self._ended = threading.Event(), threading.Event()
        self._engine: Stirred | None = None
        self._opened: _Opened | None = None
        self._began_at: float | None = None
        self._failures = 0
        self.key = (namespace, name)
        self.passes = 0
        """How many it ran."""
        self.is_settled = False
        """Whether the project was opened, or its conditions say why it was not."""
        self._told = Told(lambda line: fleet.tell(f"{namespace}/{name}: {line}"))

    def wake(self) -> None:
        """Ask for a look."""
        self._fleet.turns.wake(self)

    def stir(self, kind: str, body: Mapping[str, Any], is_gone: bool) -> None:
        """An object of the project's jobs or servers changed."""
        if self._engine is not None:
            self._engine.stir(kind, body, is_gone)

    def stop(self) -> None:
        """End after the pass that runs."""
        self._ending.set()
        self._fleet.turns.wake(self, first=True)

    def join(self, seconds: float) -> None:
        """Wait for the end."""
        self._ended.wait(seconds)

    @property
    def is_ending(self) -> bool:
        """Whether it was told to end."""
        return self._ending.is_set()

    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return not self._ended.is_set()

    def is_well(self) -> bool:
        """Whether its pass does not hang."""
        began_at = self._began_at
        return began_at is None or time.monotonic() - began_at < STUCK_SECONDS

    def turn(self) -> float | None:
        """Open the project, or run a pass; what keeps it from being opened is said in its conditions."""
        try:
            return self._turn()
        except ControllerError as error:
            stalled = isinstance(error, (DesiredStateError, TrustError, RefusedError))
            outcome = Outcome(
                state="stalled" if stalled else "waiting", subject=self._project, reason=error.reason, message=error.message
            )
        except Exception as error:  # noqa: BLE001  a fault of ours in one project must not stop the others
            faults.error("fault at project %s/%s", self._namespace, self._project, exc_info=error)
            text = " ".join(f"{type(error).__name__}: {error}".split())
            outcome = Outcome(state="stalled", subject=self._project, reason="Bug", message=f"a fault in Myelin itself: {text}")
        finally:
            self._began_at = None
        self._close()
        self._failures += 1
        self._say(outcome)
        return pause_seconds(self._failures, longest=LONGEST_PAUSE_SECONDS)

    def _turn(self) -> float | None:
        fleet = self._fleet
        if self._opened is not None and not self._stays(self._opened.project):
            self._close()
            self._failures = 0
        if self._ending.is_set():
            self._ended.set()
            return None
        if self._opened is None:
            body = fleet.seen.get("Project", self._namespace, self._project)
            if body is None or not fleet.leads():
                return UNLED_SECONDS
            if (rival := fleet.rivals.of(self._namespace, self._project)) is not None:
                self._say(rival)
                return IDLE_SECONDS
            self._opened = self._open(body)
        return self._pass(self._opened)

    def _open(self, body: Mapping[str, Any]) -> _Opened:
        fleet = self._fleet
        assert fleet.shared is not None
        project = open_project(fleet.cluster, body)
        notes = [
            Outcome(state="done", subject=self._project, reason="NoEffect", message=f"{why}, so this has no effect: {key}")
            for why, key in object_notes(project.document)
        ]
        with ExitStack() as closing:
            wired = closing.enter_context(wire_in_cluster(project, fleet.shared, wake=self.wake, stirred=self._take_engine))
            wired.caretaker.tell = lambda line: fleet.tell(f"{self._namespace}/{self._project}: {line}")
            state = fleet.shared.state_of(project)
            trust = project.trust.model_dump(mode="json", by_alias=True)
            note_place(state, project.url, project.document.spec.branch, trust, mirror=fleet.shared.mirror_of(project))
            opened = _Opened(
                project=project,
                wired=wired,
                mirroring=Mirroring(
                    fleet.cluster, fleet.seen, namespace=project.namespace, project=project.name, owner=project.owner
                ),
                state=state,
                notes=tuple(notes),
                closing=closing.pop_all(),
            )
        self.is_settled = True
        return opened

    def _pass(self, opened: _Opened) -> float:
        if not self._fleet.leads():  # the cluster is away: what comes in is taken, and nothing is done
            return AWAY_SECONDS
        wired = opened.wired
        self._began_at = time.monotonic()
        wired.turn.work()
        report = run_pass(wired.following, wired.ports)
        self.passes += 1
        count(report)
        # While there is more to do at once, doing it comes before telling of it.
        if not report.look_again or time.monotonic() - opened.shown_at > SHOWN_SECONDS:
            opened.shown_at = time.monotonic()
            told = replace(report, outcomes=(*opened.notes, *report.outcomes))
            opened.troubles = tuple(opened.mirroring.present(told, wired.ports.clock.now()))
            self._write(opened, report)
        self._began_at = None
        self._told.tell((*report.outcomes, *opened.troubles))
        if report.look_again:
            return 0.0
        self._failures = 0
        wired.caretaker.look(wired.following, wired.ports)
        is_busy = report.is_busy or opened.troubles or wired.ports.ledger.pending()
        return BUSY_SECONDS if is_busy else spread(IDLE_SECONDS)

    def _write(self, opened: _Opened, report: Report) -> None:
        """Leave the status on disk, unless it says the same and is not old."""
        said, now = _said(report), time.monotonic()
        if said != opened.written or now - opened.written_at > FRESH_SECONDS:
            opened.written, opened.written_at = said, now
            write_status(opened.state, report, opened.wired)

    def _close(self) -> None:
        opened, self._opened = self._opened, None
        self._engine, self.is_settled = None, False
        if opened is not None:
            opened.closing.close()

    def _take_engine(self, engine: Stirred) -> None:
        self._engine = engine

    def _stays(self, project: ProjectObject) -> bool:
        """Whether what was opened is still what is to be followed, by us."""
        if self._ending.is_set() or self._fleet.is_replaced():
            return False
        body = self._fleet.seen.get("Project", self._namespace, self._project)
        if body is None or "deletionTimestamp" in body["metadata"]:
            return False
        meta = body["metadata"]
        return (str(meta["uid"]), int(meta.get("generation", 1))) == (project.uid, project.generation) and (
            self._fleet.rivals.of(self._namespace, self._project) is None
        )

    def _say(self, outcome: Outcome) -> None:
        self.is_settled = True
        self._told.tell((outcome,))
        try:
            say(self._fleet.cluster, self._fleet.seen, self._namespace, self._project, [outcome], now=SystemClock().now())
        except ControllerError:
            pass  # the cluster is away; the next try says it again


def _said(report: Report) -> object:
    """What of a report its status says, but for when."""
    desired, observed = report.desired, report.observed
    return (
        (desired.revision, desired.unsigned) if desired is not None else None,
        [item for item in report.outcomes if not item.is_quiet],
        dict(observed.servers) if observed is not None else None,
        Counter(job.phase for job in observed.jobs.values()) if observed is not None else None,
    )


def note_place(state: Path, url: str, branch: str, trust: Mapping[str, Any], *, mirror: Path | None = None) -> None:
    """Leave what the answers need: they read the controller's own mirror, so they need no credentials."""
    state.mkdir(parents=True, exist_ok=True)
    place = {"url": str(mirror or state / "git"), "of": shown_url(url), "branch": branch}
    for name, value in (("trust.yaml", trust), ("place.json", place)):
        (state / f"{name}.new").write_text(json.dumps(value))
        (state / f"{name}.new").replace(state / name)
