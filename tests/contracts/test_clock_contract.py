"""What a clock promises: the one moved by hand, and the machine's."""

from __future__ import annotations

from datetime import timedelta

import pytest

from controller.adapters.clock import SystemClock
from reconcilers.ports import Clock
from tests.fakes.world import START, HandClock, World


@pytest.mark.parametrize("clock", [HandClock(World()), SystemClock()], ids=["fake", "real"])
def test_an_instant_is_utc_and_not_before_the_one_before(clock: Clock) -> None:
    instants = [clock.now() for _ in range(3)]
    assert {instant.utcoffset() for instant in instants} == {timedelta(0)}
    assert instants == sorted(instants)


def test_the_clock_of_the_world_stands_still_until_it_is_moved() -> None:
    world = World()
    clock = HandClock(world)
    assert clock.now() == clock.now() == START
    world.move(3)
    assert clock.now() - START == timedelta(seconds=3)
