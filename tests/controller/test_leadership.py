"""Two candidates, one Lease and one clock moved by hand: there is never more than one who may act."""

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller import leadership
from controller.adapters.cluster import LEASE, POD
from controller.leadership import DURATION_SECONDS, LEADER, RENEW_WITHIN_SECONDS, Leadership
from policies.errors import ConflictError, ControllerError, RefusedError, SilentError
from tests.fakes.cluster import START, FakeCluster

DEADLINE_SECONDS = 10.0
SILENT = SilentError("cluster: no answer")


class Hand:
    """The clock of a machine: it stands still until it is moved."""

    def __init__(self) -> None:
        self.seconds = 1000.0
        self.meanwhile: Callable[[], object] | None = None
        """Happens at the next look at the clock."""

    def monotonic(self) -> float:
        deed, self.meanwhile = self.meanwhile, None
        if deed is not None:
            deed()
        return self.seconds


class Wall:
    """What a candidate's machine takes for the hour."""

    def __init__(self, hand: Hand, *, off_seconds: float = 0.0) -> None:
        self._hand, self._off = hand, off_seconds

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self._hand.seconds + self._off)


class Line(FakeCluster):
    """The API server as one candidate reaches it: over a line that may be slow or dead, and others may write meanwhile."""

    def __init__(self, server: FakeCluster, hand: Hand) -> None:
        super().__init__()
        self.objects, self._owned, self._numbers = server.objects, server._owned, server._numbers
        self._hand = hand
        self.delays: list[float] = []
        """How long the next answers take."""
        self.is_lost = False
        """Whether what is written arrives, and its answer does not."""
        self.before_write: Callable[[], object] = lambda: None
        self.after_write: Callable[[], object] = lambda: None

    def get(self, *given: Any) -> Any:
        found = super().get(*given)
        self._wait()
        return found

    def create(self, *given: Any) -> Any:
        return self._write(super().create, *given)

    def replace(self, *given: Any) -> Any:
        return self._write(super().replace, *given)

    def _write(self, write: Callable[..., Any], *given: Any) -> Any:
        self.before_write()
        done = write(*given)
        self.after_write()
        self._wait()
        if self.is_lost:
            raise SILENT
        return done

    def _wait(self) -> None:
        if self.delays:
            self._hand.seconds += self.delays.pop(0)


class World:
    """A Lease and two candidates for it."""

    def __init__(self) -> None:
        self.hand, self.server = Hand(), FakeCluster()
        self.lines = {name: Line(self.server, self.hand) for name in "ab"}
        self.candidates = {
            name: Leadership(line, "system", "myelin", name, Wall(self.hand, off_seconds=off))  # type: ignore[arg-type]
            for (name, line), off in zip(self.lines.items(), (0.0, -7200.0), strict=True)
        }

    def look(self, name: str) -> ControllerError | None:
        """One look of a candidate, as its thread does it."""
        try:
            self.candidates[name].look()
        except ControllerError as error:
            return error
        return None

    def leaders(self) -> str:
        return "".join(name for name, candidate in self.candidates.items() if candidate.is_leader)

    def spec(self) -> dict[str, Any]:
        spec: dict[str, Any] = self.server.objects["Lease", "system", "myelin"]["spec"]
        return spec

    def until_led(self, name: str) -> float:
        """How long a candidate that looks each second waits until it leads; the other one is dead."""
        for waited in range(60):
            self.look(name)
            if self.leaders() == name:
                return float(waited)
            self.hand.seconds += 1
        raise AssertionError(f"{name} never leads")


@pytest.fixture(autouse=True)
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    # The module's clock; what threads and the test's runner wait by goes on.
    monkeypatch.setattr(leadership, "time", made.hand)
    return made


def test_the_first_who_looks_leads_and_the_other_waits(world: World) -> None:
    assert world.leaders() == ""
    for _ in range(30):
        assert world.look("a") is world.look("b") is None
        assert world.leaders() == "a"
        world.hand.seconds += 3
    spec = world.spec()
    assert (spec["holderIdentity"], spec["leaseDurationSeconds"], spec["leaseTransitions"]) == ("a", DURATION_SECONDS, 0)
    assert spec["acquireTime"] == "2026-01-01T00:16:40.000000Z"
    assert spec["renewTime"] == "2026-01-01T00:18:07.000000Z"


def test_a_leader_that_cannot_renew_stops_before_another_may_start(world: World) -> None:
    world.look("a")
    world.look("b")
    for call in ("get", "replace"):
        world.lines["a"].fail(call, *[SILENT] * 200)
    stopped_at = started_at = 0
    for tenth in range(200):
        world.look("a")
        world.look("b")
        leaders = world.leaders()
        assert leaders in ("a", "b", "")
        stopped_at = stopped_at or (tenth if leaders != "a" else 0)
        started_at = started_at or (tenth if leaders == "b" else 0)
        world.hand.seconds += 0.1
    assert stopped_at / 10 == pytest.approx(RENEW_WITHIN_SECONDS, abs=0.2)
    assert started_at / 10 == pytest.approx(DURATION_SECONDS, abs=0.2)
    assert world.spec()["leaseTransitions"] == 1


def test_a_leader_counts_from_when_it_asked_and_not_from_when_it_was_answered(world: World) -> None:
    world.lines["a"].delays = [0.0, RENEW_WITHIN_SECONDS - 1]
    world.look("a")
    assert world.leaders() == "a"
    world.hand.seconds += 1
    assert world.leaders() == ""


def test_an_answer_that_comes_too_late_makes_nobody_a_leader(world: World) -> None:
    world.lines["a"].delays = [RENEW_WITHIN_SECONDS + 1]
    assert world.look("a") is None
    assert world.leaders() == ""


def test_a_write_whose_answer_was_lost_is_made_good_by_the_next_look(world: World) -> None:
    world.lines["a"].is_lost = True
    assert world.look("a") is SILENT
    assert world.leaders() == ""
    world.lines["a"].is_lost = False
    world.look("b")
    assert world.look("a") is None
    assert world.leaders() == "a"


def test_of_two_who_see_no_lease_one_gets_it(world: World) -> None:
    world.lines["a"].before_write = lambda: world.look("b")
    assert isinstance(world.look("a"), ConflictError)
    assert world.leaders() == "b"
    assert world.look("a") is None
    assert world.leaders() == "b"


def test_of_two_who_see_a_free_lease_one_gets_it(world: World) -> None:
    world.look("a")
    world.candidates["a"].end()
    world.lines["a"].before_write = lambda: world.look("b")
    assert isinstance(world.look("a"), ConflictError)
    assert world.leaders() == "b"


def test_a_leader_that_slept_finds_that_another_leads(world: World) -> None:
    world.look("a")
    world.look("b")
    world.hand.seconds += DURATION_SECONDS + 1
    world.look("b")
    assert world.leaders() == "b"
    for _ in range(3):  # what it read before it slept may be what it tries first
        assert isinstance(world.look("a"), ConflictError | None)
        assert world.leaders() == "b"
    assert world.spec()["holderIdentity"] == "b"


def test_a_leader_that_loses_the_lease_while_it_is_asked_whether_it_leads_says_so_the_next_time(world: World) -> None:
    world.look("a")
    lease = world.server.get(LEASE, "system", "myelin")
    assert lease is not None
    lease["spec"] |= {"holderIdentity": "b", "renewTime": "2026-01-01T00:16:41.000000Z"}
    world.server.replace(LEASE, lease)
    # The thread that keeps the Lease looks between two words of the one who asks.
    world.hand.meanwhile = lambda: [world.look("a") for _ in range(2)]
    assert world.candidates["a"].is_leader in (True, False)
    assert world.candidates["a"].is_leader is False


def test_who_ends_gives_the_lease_back_and_another_leads_at_once(world: World) -> None:
    world.look("a")
    world.look("b")
    world.candidates["a"].end()
    assert world.leaders() == ""
    assert world.until_led("b") == 0
    assert world.spec()["leaseTransitions"] == 1


def test_who_ends_leaves_the_lease_of_another_alone(world: World) -> None:
    world.look("a")
    world.look("b")
    world.hand.seconds += DURATION_SECONDS + 1
    world.look("b")
    before = world.spec()
    world.candidates["a"].end()
    assert world.spec() == before
    assert world.leaders() == "b"


def test_who_never_led_writes_nothing_at_its_end(world: World) -> None:
    world.look("a")
    world.look("b")
    world.candidates["b"].end()
    assert world.lines["b"].writes() == []
    assert world.leaders() == "a"


@pytest.mark.parametrize(("call", "error"), [("get", SILENT), ("replace", ConflictError("x")), ("replace", RefusedError("x"))])
def test_a_lease_that_cannot_be_given_back_runs_out_by_itself(world: World, call: str, error: ControllerError) -> None:
    world.look("a")
    world.look("b")
    world.lines["a"].fail(call, error)
    world.candidates["a"].end()
    assert world.leaders() == ""
    assert world.until_led("b") == pytest.approx(DURATION_SECONDS, abs=1.1)


STALE: dict[str, tuple[dict[str, Any], float]] = {
    "a holder that died long ago is waited for all the same: clocks differ": (
        {"holderIdentity": "x", "renewTime": "2020-01-01T00:00:00.000000Z", "leaseDurationSeconds": 12},
        12,
    ),
    "a holder from the future is waited for no longer": (
        {"holderIdentity": "x", "renewTime": "2099-01-01T00:00:00.000000Z", "leaseDurationSeconds": 12},
        12,
    ),
    "a holder that asked for more time gets it": (
        {"holderIdentity": "x", "renewTime": "2026-01-01T00:00:00.000000Z", "leaseDurationSeconds": 30},
        30,
    ),
    "a holder that says nothing of time gets ours": ({"holderIdentity": "x"}, DURATION_SECONDS),
    "a lease that was given back is taken at once": ({"holderIdentity": "", "leaseDurationSeconds": 1}, 0),
    "a lease that says nothing is taken at once": ({}, 0),
    "our own lease, from before a restart, is taken at once": (
        {"holderIdentity": "a", "renewTime": "2026-01-01T00:00:00.000000Z", "leaseDurationSeconds": 12},
        0,
    ),
}


@pytest.mark.parametrize(("spec", "seconds"), STALE.values(), ids=list(STALE))
def test_a_lease_that_lies_there_is_taken_when_nobody_renews_it(world: World, spec: dict[str, Any], seconds: float) -> None:
    world.server.create(LEASE, {"metadata": {"name": "myelin", "namespace": "system"}, "spec": spec})
    assert world.until_led("a") == pytest.approx(seconds, abs=1.1)


def test_a_lease_that_somebody_emptied_is_taken(world: World) -> None:
    world.server.create(LEASE, {"metadata": {"name": "myelin", "namespace": "system"}})
    assert world.until_led("a") == 0


def test_who_saw_lately_that_another_leads_is_in_touch(world: World) -> None:
    waiting = world.candidates["b"]
    assert not waiting.is_in_touch
    world.look("a")
    assert world.candidates["a"].is_in_touch
    world.look("b")
    assert waiting.is_in_touch
    world.lines["b"].fail("get", *[SILENT] * 100)
    for _ in range(3 * DURATION_SECONDS - 1):
        world.hand.seconds += 1
        world.look("b")
        assert waiting.is_in_touch
    world.hand.seconds += 1
    assert not waiting.is_in_touch


steps = st.tuples(
    st.sampled_from("ab"),
    st.sampled_from(["", "", "", "get", "replace", "lost", "overtaken", "watched"]),
    st.lists(st.floats(0, 25), max_size=2),
    st.floats(0, 6),
)


@given(st.lists(steps, min_size=5, max_size=40))
def test_there_is_never_more_than_one_leader(history: list[tuple[str, str, list[float], float]]) -> None:
    world = World()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leadership, "time", world.hand)
        for name, trouble, delays, pause in history:
            line, other = world.lines[name], "b" if name == "a" else "a"
            line.delays, line.is_lost = list(delays), trouble == "lost"
            if trouble in ("get", "replace"):
                line.fail(trouble, SILENT)
            if trouble == "overtaken":
                line.before_write = partial(world.look, other)
            if trouble == "watched":
                line.after_write = partial(world.look, other)
            world.look(name)
            line.before_write = line.after_write = lambda: None
            line.delays, line.is_lost = [], False
            assert world.leaders() in ("", "a", "b")
            world.hand.seconds += pause
            assert world.leaders() in ("", "a", "b")


# The thread.


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def running(world: World) -> Iterator[tuple[Leadership, FakeCluster, list[bool]]]:
    cluster, told = FakeCluster(), []
    cluster.create(POD, {"metadata": {"name": "pod-a", "namespace": "system", "labels": {"app": "myelin"}}})
    made = Leadership(
        cluster,  # type: ignore[arg-type]
        "system",
        "myelin",
        "pod-a",
        Wall(world.hand),
        changed=lambda: told.append(made.is_leader),
        pod="pod-a",
    )
    yield made, cluster, told
    made.end()


def test_the_thread_takes_the_lease_marks_its_pod_and_gives_the_lease_back(
    running: tuple[Leadership, FakeCluster, list[bool]],
) -> None:
    made, cluster, told = running
    made.start()
    wait_for(lambda: cluster.objects["Pod", "system", "pod-a"]["metadata"]["labels"].get(LEADER) == "true")
    assert made.is_leader
    assert told == [True]
    made.end()
    assert not made.is_leader
    assert cluster.objects["Lease", "system", "myelin"]["spec"]["holderIdentity"] == ""
    assert cluster.objects["Pod", "system", "pod-a"]["metadata"]["labels"]["app"] == "myelin"


def test_a_pod_that_waits_is_not_marked(running: tuple[Leadership, FakeCluster, list[bool]], world: World) -> None:
    made, cluster, told = running
    cluster.edit(POD, "system", "pod-a", {"metadata": {"labels": {LEADER: "true"}}})  # from before a restart
    spec = {"holderIdentity": "pod-b", "renewTime": str(START), "leaseDurationSeconds": 12}
    cluster.create(LEASE, {"metadata": {"name": "myelin", "namespace": "system"}, "spec": spec})
    made.start()
    wait_for(lambda: LEADER not in cluster.objects["Pod", "system", "pod-a"]["metadata"]["labels"])
    assert (made.is_leader, told) == (False, [])


def test_the_thread_survives_what_the_cluster_says(running: tuple[Leadership, FakeCluster, list[bool]]) -> None:
    made, cluster, _ = running
    cluster.fail("get", RefusedError("forbidden", reason="Forbidden"))
    cluster.fail("merge", SILENT)
    made.start()
    wait_for(lambda: made.is_leader)
