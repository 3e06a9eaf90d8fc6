"""Which axons are at rest, and what would wake them: so that a thousand axons cost what those that changed cost.

Law: an axon whose circumstances are the same has the same steps, whatever the time, if it was at rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from policies.jobs import Surroundings
from policies.terms.desired import DesiredAxon, DesiredState
from policies.terms.observed import NOTHING, Observed
from policies.terms.plan import AnyStep, Blocked, Circumstances

Item = TypeVar("Item")


def is_at_rest(axon: DesiredAxon, steps: Sequence[AnyStep]) -> bool:
    """Whether nothing is due, and nothing becomes due only because time passes.

    Args:
        axon: The axon.
        steps: What was planned for it.
    """
    spec = axon.document.spec
    waits_for_time = (spec.suspend is not None and spec.suspend.until is not None) or any(
        sensor.cooldown != "0s" or sensor.max_per_day is not None for sensor in spec.sensors
    )
    return not waits_for_time and all(isinstance(step, Blocked) and step.state != "waiting" for step in steps)


def circumstances(desired: DesiredState, observed: Observed, around: Surroundings) -> Mapping[str, Circumstances]:
    """What each axon's steps follow from, by its name."""
    slices = observed.recorded.slices
    by_release = _grouped((key[0], release) for key, release in desired.releases.items())
    by_version = _grouped((version.metadata.axon, version) for version in desired.versions.values())
    jobs = _grouped((job.labels.get("axon", ""), (job.name, job.phase)) for job in observed.jobs.values())
    alerts = _grouped((alert.axon, alert) for alert in observed.alerts)
    received = _grouped((event.axon, event.id) for event in observed.received)
    return {
        name: Circumstances(
            axon=axon,
            project=desired.project,
            recorded=slices.get(name, NOTHING) if slices is not None else None,
            releases=tuple(by_release.get(name, ())),
            versions=tuple(by_version.get(name, ())),
            jobs=tuple(jobs.get(name, ())),
            alerts=tuple(alerts.get(name, ())),
            received=tuple(received.get(name, ())),
            unread=desired.unread_release(name),
            is_trusted=desired.is_trusted,
            around=around,
        )
        for name, axon in desired.axons.items()
    }


def says_the_same(one: DesiredState, other: DesiredState) -> bool:
    """Whether two revisions ask for the same in everything that a plan follows from, so that one plan is the other's too."""
    return (
        one.project == other.project
        and one.axons == other.axons
        and one.releases == other.releases
        and one.release_files == other.release_files
        and one.versions == other.versions
        and one.committed == other.committed
        and one.faults == other.faults
    )


def is_same(one: Circumstances, other: Circumstances) -> bool:
    """Whether nothing is new between two looks at one axon; never where the fold was not kept by axon."""
    return (
        one.axon is other.axon
        and one.project is other.project
        and one.recorded is other.recorded
        and one.recorded is not None
        and one.is_trusted == other.is_trusted
        and one.around == other.around
        and one.jobs == other.jobs
        and one.alerts == other.alerts
        and one.received == other.received
        and one.unread == other.unread
        and _are(one.releases, other.releases)
        and _are(one.versions, other.versions)
    )


def _are(some: Sequence[object], others: Sequence[object]) -> bool:
    return len(some) == len(others) and all(one is other for one, other in zip(some, others, strict=True))


def _grouped(items: Iterable[tuple[str, Item]]) -> dict[str, list[Item]]:
    found: dict[str, list[Item]] = {}
    for key, item in items:
        found.setdefault(key, []).append(item)
    return found
