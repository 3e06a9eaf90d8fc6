"""Follow one project: a pass after each wake-up, until stopped or idle. Status is left on disk for `myelin status`."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
from collections.abc import Callable, Sequence
from logging.handlers import RotatingFileHandler
from pathlib import Path

from controller.adapters import gauges
from controller.adapters.engine_local.supervise import born
from controller.adapters.files import watch_repository
from controller.loop import Report, run_pass
from controller.settings import JITTER, Settings
from controller.wiring import Waker, Wired, wire
from policies.terms.outcome import Outcome

IDLE_PASSES = 2
"""Quiet passes in a row after which there is nothing due or running."""


def follow(settings: Settings, *, tell: Callable[[str], None], once: bool = False, until_idle: bool = False) -> Report | None:
    """Run passes until a signal says stop, or as long as `once` or `until_idle` say.

    Args:
        settings: What to follow.
        tell: Takes one line for each outcome that is new.
        once: One pass.
        until_idle: Until nothing is due or running.
    """
    waker = Waker()
    keep_faults(settings.state)
    stopping: list[int] = []

    def stop_soon(number: int, _: object) -> None:
        stopping.append(number)
        waker.wake()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop_soon)
    with wire(settings, wake=waker.wake) as wired:
        local = Path(settings.repository)
        stop = watch_repository(local, waker.wake) if local.is_dir() else (lambda: None)
        wired.caretaker.tell = tell
        tell(f"following {settings.branch}; inbox at {wired.inbox_address}; jobs run with {wired.isolation}")
        try:
            return _passes(settings, wired, waker, stopping, tell=tell, once=once, until_idle=until_idle)
        finally:
            stop()


def keep_faults(state: Path) -> None:
    """Traces of faults of our own go to a file for whoever mends them; a person is told the outcome."""
    state.mkdir(parents=True, exist_ok=True)
    log = logging.getLogger("myelin.faults")
    log.propagate = False
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    log.addHandler(RotatingFileHandler(state / "faults.log", maxBytes=1 << 20, backupCount=1, delay=True))


def _passes(
    settings: Settings,
    wired: Wired,
    waker: Waker,
    stopping: list[int],
    *,
    tell: Callable[[str], None],
    once: bool,
    until_idle: bool,
) -> Report | None:
    report: Report | None = None
    told = Told(tell)
    quiet = 0
    while not stopping:
        wired.turn.work()
        report = run_pass(wired.following, wired.ports)
        count(report)
        told.tell(report.outcomes)
        write_status(settings.state, report, wired)
        if not report.look_again:
            wired.caretaker.look(wired.following, wired.ports)
        quiet = 0 if report.look_again or report.is_busy else quiet + 1
        if once or (until_idle and quiet >= IDLE_PASSES):
            break
        if report.look_again:
            continue
        waker.wait(settings.busy_seconds if report.is_busy or quiet < IDLE_PASSES else spread(settings.poll_seconds))
    return report


def spread(seconds: float) -> float:
    """A time between two looks, a little more or less than this: many controllers must not ask one server at once."""
    return seconds * random.uniform(1 - JITTER, 1 + JITTER)


def write_status(state: Path, report: Report, wired: Wired) -> None:
    """Leave what the last pass came to, for others to read."""
    since = _since(state, report)
    value = {
        "at": report.at.isoformat(),
        "pid": os.getpid(),
        "born": born(os.getpid()),
        "revision": str(report.desired.revision) if report.desired else "",
        "signer": report.desired.revision.signer if report.desired else "",
        "unsigned": report.desired.unsigned if report.desired else 0,
        "isolation": wired.isolation,
        "inbox": wired.inbox_address,
        "outcomes": [
            {
                "state": item.state,
                "subject": item.subject,
                "reason": item.reason,
                "message": item.message,
                "since": since.get((item.subject, item.reason), "") if item.state != "done" else "",
            }
            for item in report.outcomes
            if not item.is_quiet
        ],
        "servers": [
            {
                "name": item.name,
                "phase": item.phase,
                "address": item.address,
                "message": item.message,
                "labels": dict(item.labels),
            }
            for item in (report.observed.servers.values() if report.observed else ())
        ],
        "jobs": {
            phase: sum(job.phase == phase for job in report.observed.jobs.values()) if report.observed else 0
            for phase in ("running", "succeeded", "failed")
        },
    }
    place = state / "status.json"
    text = json.dumps(value)
    try:
        place.with_suffix(".new").write_text(text)
        place.with_suffix(".new").replace(place)
    except OSError:
        return  # a full disk is told by the outcomes of those who need the disk


def _since(state: Path, report: Report) -> dict[tuple[str, str], str]:
    """(subject, reason) -> since when it has not been done: what was left on disk goes on, also after a restart."""
    troubles = {(item.subject, item.reason) for item in report.outcomes if item.state != "done" and not item.is_quiet}
    known: dict[tuple[str, str], str] = {}
    if troubles:
        try:
            left = json.loads((state / "status.json").read_bytes())["outcomes"]
            known = {(item["subject"], item["reason"]): item.get("since", "") for item in left if item["state"] != "done"}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass  # nothing was left, or nothing that can be read
    return {key: known.get(key) or report.at.isoformat() for key in troubles}


class Told:
    """What a person was told: only what is new is said; silence when nothing changed."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._told: dict[str, Outcome] = {}

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        """Say what is new since the last pass."""
        told = self._told
        self._told = {f"{item.subject} {item.reason}": item for item in outcomes}
        for key, item in self._told.items():
            if item.is_quiet:
                continue
            if key not in told or (told[key].message != item.message and item.reason == "Tuning"):
                self._tell(f"{item.state:<8} {item.subject}: {item.reason}: {item.message}")


def count(report: Report) -> None:
    """Take a pass into the gauges."""
    gauges.PASSES.inc()
    for state in ("done", "waiting", "stalled"):
        gauges.OUTCOMES.labels(state).set(sum(item.state == state for item in report.outcomes))
    if report.observed is not None:
        gauges.LEDGER_ENTRIES.set(report.observed.recorded.entries)
    if report.desired is not None:
        gauges.UNSIGNED.set(report.desired.unsigned)
        gauges.UNTRUSTED.set(0 if report.desired.is_trusted else 1)
