"""An event that came by HTTP is in the inbox until its record has left the machine."""

from __future__ import annotations

from typing import Any, cast

from policies.errors import SilentError
from policies.records import event_statement
from policies.terms.event import Event
from reconcilers import publish
from tests.fakes.wiring import open_ports
from tests.fakes.world import World


def test_an_event_is_kept_until_its_record_is_pushed() -> None:
    world = World()
    ports = open_ports(world)
    event = Event(id="sha256:" + "1" * 64, kind="Rest", axon="a", sensor="s", trigger="t", at=world.outside.now)
    other = Event(id="sha256:" + "2" * 64, kind="Rest", axon="a", sensor="s", trigger="t", at=world.outside.now)
    world.outside.spool |= {event.id: event, other.id: other}
    ports.ledger.record([event_statement(event)])
    desired: Any = cast(Any, None)  # nothing is to be committed, so nobody looks at it
    world.fail("repository.push", SilentError("git: no answer"))
    [outcome] = publish.push(desired, [], ports, now=world.outside.now, look=lambda: desired)
    assert outcome.subject == "ledger"
    assert {item.id for item in ports.inbox.received()} == {event.id, other.id}
    assert publish.push(desired, [], ports, now=world.outside.now, look=lambda: desired) == []
    assert {item.id for item in ports.inbox.received()} == {other.id}
