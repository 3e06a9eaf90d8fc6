"""Stage 3: ask engine, image store, ledger, metrics and inbox. -> observed state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from policies.alerts import expand
from policies.deploying import image_identities
from policies.errors import DesiredStateError
from policies.jobs import Surroundings
from policies.records import fold
from policies.sensors import triggers_of
from policies.terms.desired import DesiredState
from policies.terms.document_types import parse_duration
from policies.terms.metrics import AlertRule, Target
from policies.terms.observed import Observed, Recorded
from policies.terms.task import ImageState, ServerState
from reconcilers.ports import Ports


def look(
    desired: DesiredState,
    ports: Ports,
    *,
    around: Surroundings,
    now: datetime,
    before: Recorded | None = None,
    rules: Sequence[AlertRule] | None = None,
) -> Observed:
    """One look at everything but Git.

    Args:
        desired: What is worked towards; it tells where to look.
        ports: The outside.
        around: Where jobs and servers run.
        now: This instant, UTC.
        before: The fold of an earlier look at the same ledger, to fold only what is new.
        rules: What `rules_of` said of this desired state, where it was asked already.
    """
    # Another writer's entries may have come before ours that were not pushed yet: then their numbers are others now.
    if before is not None and not ports.ledger.holds(before.entries, before.head):
        before = None
    recorded = fold(ports.ledger.since(before.entries if before else 0), onto=before)
    servers = ports.engine.servers()
    ports.metrics.watch([_target(server) for server in servers.values() if server.phase == "ready"])
    partial = Observed(recorded=recorded)
    images: dict[str, ImageState] = {}
    for identity, spec in image_identities(desired, partial, around).items():
        state = ports.images.look(spec)
        if state is not None:
            images[identity] = state
    return Observed(
        recorded=recorded,
        is_pushed=ports.ledger.pending() == 0,
        jobs=ports.engine.jobs(),
        servers=servers,
        images=images,
        alerts=ports.metrics.alerts(rules if rules is not None else rules_of(desired), now),
        received=ports.inbox.received(),
    )


def _target(server: ServerState) -> Target:
    labels = {key: value for key, value in server.labels.items() if key != "config"}
    return Target(address=server.address, path="/metrics", labels=labels)


def rules_of(desired: DesiredState) -> tuple[AlertRule, ...]:
    """The conditions that all sensors wait for; those that cannot be read are told of elsewhere."""
    return tuple(_rules(desired))


def _rules(desired: DesiredState) -> Iterator[AlertRule]:
    for axon in desired.axons.values():
        for sensor in axon.document.spec.sensors:
            for name, trigger in triggers_of(sensor):
                if trigger is None or trigger.type != "Alert" or not trigger.condition:
                    continue
                try:
                    condition = expand(trigger.condition, axon.name)
                except DesiredStateError:
                    continue
                yield AlertRule(
                    axon=axon.name,
                    sensor=sensor.name,
                    trigger=name,
                    condition=condition,
                    for_seconds=parse_duration(trigger.for_ or "0s"),
                    no_data_fires=trigger.no_data == "fire",
                )
