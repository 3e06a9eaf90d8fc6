"""A spool that survives the controller."""

from __future__ import annotations

from collections.abc import Sequence

from policies.terms.event import Event
from tests.fakes.world import World


class FakeInbox:
    """Implements `reconcilers.ports.Inbox`."""

    def __init__(self, world: World) -> None:
        self._world = world

    def put(self, event: Event) -> None:
        self._world.outside.spool[event.id] = event

    def received(self) -> tuple[Event, ...]:
        return tuple(sorted(self._world.outside.spool.values(), key=lambda event: (event.at, event.id)))

    def taken(self, ids: Sequence[str]) -> None:
        for identity in ids:
            self._world.outside.spool.pop(identity, None)
