"""Turns: one at a time for each follower, several at once for many, and whoever hangs holds up nobody else."""

import logging
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from controller.turns import Turns

DEADLINE_SECONDS = 10.0


class Worker:
    """A follower whose turns do as they are told, and are counted."""

    def __init__(self, deed: Callable[[], float | None] = lambda: 3600.0) -> None:
        self.deed = deed
        self.turns = self.at_once = self.most_at_once = 0

    def turn(self) -> float | None:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            return self.deed()
        finally:
            self.turns += 1
            self.at_once -= 1


class Gate:
    """A turn that lasts until it is opened."""

    def __init__(self) -> None:
        self.entered, self.opened = threading.Event(), threading.Event()

    def __call__(self) -> float:
        self.entered.set()
        assert self.opened.wait(DEADLINE_SECONDS)
        return 3600.0


@pytest.fixture
def turns() -> Iterator[Turns]:
    made = Turns(workers=2, slow_seconds=0.05, most=6, rest_seconds=0.1)
    yield made
    assert made.end(wait_seconds=DEADLINE_SECONDS)


def wait_for(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_who_is_woken_has_a_turn_and_comes_again_after_his_pause(turns: Turns) -> None:
    one = Worker(lambda: 0.01)
    turns.wake(one)
    wait_for(lambda: one.turns >= 5)
    one.deed = lambda: None
    wait_for(lambda: turns.began_at(one) is None)


def test_nobody_has_two_turns_at_once_however_often_he_is_woken(turns: Turns) -> None:
    some = [Worker(lambda: 0.0) for _ in range(5)]
    for _ in range(300):
        for one in some:
            turns.wake(one)
    wait_for(lambda: all(one.turns > 50 for one in some))
    for one in some:
        one.deed = lambda: None
    assert {one.most_at_once for one in some} == {1}


def test_wakes_during_a_turn_come_to_one_more_turn(turns: Turns) -> None:
    gate = Gate()
    one = Worker(gate)
    turns.wake(one)
    assert gate.entered.wait(DEADLINE_SECONDS)
    for _ in range(10):
        turns.wake(one)
    gate.opened.set()
    wait_for(lambda: one.turns == 2 and turns.began_at(one) is None)
    other = Worker()
    turns.wake(other)
    wait_for(lambda: other.turns == 1)
    assert one.turns == 2


def test_wakes_before_a_turn_come_to_one_turn(turns: Turns) -> None:
    gates = [Gate(), Gate()]
    for gate in gates:
        turns.wake(Worker(gate))
    for gate in gates:
        assert gate.entered.wait(DEADLINE_SECONDS)
    one = Worker()
    for _ in range(10):
        turns.wake(one)
    for gate in gates:
        gate.opened.set()
    wait_for(lambda: one.turns == 1)
    assert turns.end(wait_seconds=DEADLINE_SECONDS)
    assert one.turns == 1


def test_those_who_hang_hold_up_nobody_else(turns: Turns) -> None:
    gates = [Gate() for _ in range(5)]  # more than there are workers
    hanging = [Worker(gate) for gate in gates]
    well = [Worker(lambda: 0.02) for _ in range(20)]
    for one in (*hanging, *well):
        turns.wake(one)
    for gate in gates:
        assert gate.entered.wait(DEADLINE_SECONDS)
    seen = [one.turns for one in well]
    wait_for(lambda: all(one.turns > before + 3 for one, before in zip(well, seen, strict=True)))
    assert all(turns.began_at(one) is not None for one in hanging)
    for gate in gates:
        gate.opened.set()


def test_no_more_hang_at_once_than_there_may_be_workers(turns: Turns) -> None:
    gates = [Gate() for _ in range(8)]
    hanging = [Worker(gate) for gate in gates]
    for one in hanging:
        turns.wake(one)
    wait_for(lambda: sum(gate.entered.is_set() for gate in gates) == 6)
    gates[0].opened.set()
    wait_for(lambda: sum(gate.entered.is_set() for gate in gates) == 7)
    for gate in gates:
        gate.opened.set()
    wait_for(lambda: all(one.turns for one in hanging))


def test_a_fault_in_a_turn_costs_nobody_a_turn_and_is_traced(
    turns: Turns, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down() -> float:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(logging.getLogger("myelin.faults"), "propagate", True)
    bad, good = Worker(break_down), Worker(lambda: 0.01)
    for one in (bad, good):
        turns.wake(one)
    wait_for(lambda: good.turns > 5)
    assert bad.turns == 1
    assert "fault in a turn" in caplog.text
    turns.wake(bad)  # it is not forgotten
    wait_for(lambda: bad.turns == 2)


def test_who_is_to_be_first_goes_before_all_that_are_ready(turns: Turns) -> None:
    gates, order = [Gate(), Gate()], list[int]()
    for gate in gates:
        turns.wake(Worker(gate))
    for gate in gates:
        assert gate.entered.wait(DEADLINE_SECONDS)

    def marked(number: int) -> Worker:
        def deed() -> None:
            order.append(number)

        return Worker(deed)

    first = marked(0)
    for number in range(1, 4):
        turns.wake(marked(number))
    turns.wake(first, first=True)
    for gate in gates:
        gate.opened.set()
    wait_for(lambda: len(order) == 4)
    assert 0 in order[:2]  # two workers, so one may overtake another


def test_the_end_waits_for_the_turns_that_go_on_and_begins_none() -> None:
    turns, gate = Turns(workers=1), Gate()
    one, other = Worker(gate), Worker()
    turns.wake(one)
    assert gate.entered.wait(DEADLINE_SECONDS)
    turns.wake(other)
    assert not turns.end()
    gate.opened.set()
    assert turns.end(wait_seconds=DEADLINE_SECONDS)
    turns.wake(other)
    assert (one.turns, other.turns) == (1, 0)


def test_workers_that_have_nothing_to_do_end(turns: Turns) -> None:
    before = threading.active_count()
    one = Worker()
    turns.wake(one)
    wait_for(lambda: one.turns == 1)
    wait_for(lambda: threading.active_count() <= before + 1)  # the one that hands out turns
    turns.wake(one)
    wait_for(lambda: one.turns == 2)
