"""What an inbox promises: the simulated one, and the spool on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from controller.adapters.spool import Spool
from policies.identity import event_id
from policies.terms.event import Event
from tests.fakes.inbox import FakeInbox
from tests.fakes.world import START, World

Open = Callable[[], Any]


@pytest.fixture(params=["fake", "real"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    world = World()
    return lambda: FakeInbox(world) if request.param == "fake" else Spool(tmp_path / "inbox")


def event(number: int, *, seconds: int = 0) -> Event:
    return Event(
        id=event_id("Rest", "digits", "s", "t", {"id": number}),
        kind="Rest",
        axon="digits",
        sensor="s",
        trigger="t",
        at=START + timedelta(seconds=seconds, microseconds=number),
        data={"id": number, "text": "ü", "list": [1, None, {"deep": True}]},
    )


def test_an_empty_inbox_has_nothing(opened: Open) -> None:
    assert opened().received() == ()
    opened().taken(["sha256:" + "0" * 64])


def test_events_come_oldest_first_as_they_were_sent(opened: Open) -> None:
    inbox = opened()
    sent = [event(1, seconds=5), event(2, seconds=1), event(3, seconds=3)]
    for item in sent:
        inbox.put(item)
    assert inbox.received() == (sent[1], sent[2], sent[0])
    assert inbox.received() == inbox.received()


def test_the_same_event_twice_is_one(opened: Open) -> None:
    inbox = opened()
    inbox.put(event(1))
    inbox.put(event(1))
    assert inbox.received() == (event(1),)


def test_what_was_taken_is_gone_and_the_rest_stays(opened: Open) -> None:
    inbox = opened()
    for number in range(3):
        inbox.put(event(number))
    inbox.taken([event(1).id, event(9).id])
    inbox.taken([event(1).id])
    assert inbox.received() == (event(0), event(2))
    inbox.taken([])
    inbox.taken([event(0).id, event(2).id])
    assert inbox.received() == ()


def test_what_was_received_survives_the_controller(opened: Open) -> None:
    opened().put(event(1))
    opened().put(event(2))
    opened().taken([event(1).id])
    assert opened().received() == (event(2),)


def test_events_at_the_same_instant_have_an_order_of_their_own(opened: Open) -> None:
    inbox = opened()
    sent = [replace(event(number), at=START) for number in range(5)]
    for item in sent:
        inbox.put(item)
    assert inbox.received() == tuple(sorted(sent, key=lambda item: item.id))
