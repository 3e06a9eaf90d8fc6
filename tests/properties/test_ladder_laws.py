import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.ladder import describe, incumbent, is_finished, lay_brackets, next_runs
from policies.terms.trial import Ask, Experiment, Tell


def experiment(low: float, high: float, brackets: int, optimiser: str = "HyperBand", concurrency: int = 2) -> Experiment:
    return Experiment(
        id="x",
        parameters=(),
        optimiser=optimiser,  # type: ignore[arg-type]
        min_budget=low,
        max_budget=high,
        reduction_factor=3,
        brackets=brackets,
        concurrency=concurrency,
        seed=1,
    )


@pytest.mark.parametrize(
    ("low", "high", "count", "optimiser", "sizes"),
    [
        (1000, 20000, 5, "HyperBand", [(9, 3, 1), (3, 1), (3,), (9, 3, 1), (3, 1)]),
        (10, 30, 2, "HyperBand", [(3, 1), (2,)]),
        (3, 10, 2, "HyperBand", [(3, 1), (2,)]),
        (3, 10, 2, "RandomSearch", [(2,), (2,)]),
        (3, 10, 1, "BOHB", [(3, 1)]),
    ],
)
def test_schedules_of_the_earlier_manifests(
    low: float, high: float, count: int, optimiser: str, sizes: list[tuple[int, ...]]
) -> None:
    assert [bracket.sizes for bracket in describe(experiment(low, high, count, optimiser)).brackets] == sizes


def run(item: Experiment, losses: st.DataObject, may_fail: bool) -> tuple[list[Ask], list[Tell]]:
    asks: list[Ask] = []
    tells: list[Tell] = []
    while not is_finished(item, asks, tells):
        due = next_runs(item, asks, tells)
        asks += [Ask(run=entry, config={}, origin="random") for entry in due]
        running = [ask for ask in asks if all(tell.run != ask.run for tell in tells)]
        assert 0 < len(running) <= item.concurrency
        ended = losses.draw(st.sampled_from(running))
        loss = losses.draw(st.floats(0, 1) | st.none() if may_fail else st.floats(0, 1))
        tells.append(Tell(run=ended.run, loss=loss, metric=loss))
    return asks, tells


@given(st.integers(1, 3), st.integers(1, 5), st.data())
def test_every_run_of_the_plan_is_done_once(brackets: int, concurrency: int, losses: st.DataObject) -> None:
    item = experiment(1, 9, brackets, concurrency=concurrency)
    asks, tells = run(item, losses, may_fail=False)
    names = [(ask.run.trial, ask.run.rung) for ask in asks]
    assert len(names) == len(set(names)) == len(tells) == describe(item).runs
    assert sorted(ask.run.number for ask in asks if ask.run.rung == 0) == list(range(sum(b.sizes[0] for b in lay_brackets(item))))


@given(st.integers(1, 3), st.data())
def test_failed_trials_never_advance_and_nobody_takes_their_place(brackets: int, losses: st.DataObject) -> None:
    item = experiment(1, 9, brackets)
    asks, tells = run(item, losses, may_fail=True)
    failed = {(tell.run.trial, tell.run.rung) for tell in tells if tell.loss is None}
    assert not any((ask.run.trial, ask.run.rung - 1) in failed for ask in asks)
    assert len(asks) <= describe(item).runs
    best = incumbent(item, tells)
    assert (best is None) == all(tell.loss is None for tell in tells)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::SyntaxWarning")  # hpbandster's own
@given(st.permutations([float(number) for number in range(13)]))
@settings(deadline=None)
def test_trials_advance_as_in_hpbandster(losses: list[float]) -> None:
    from hpbandster.core.dispatcher import Job
    from hpbandster.optimizers.iterations import SuccessiveHalving

    item = experiment(1, 9, 1, concurrency=1)
    bracket = lay_brackets(item)[0]
    theirs = SuccessiveHalving(
        HPB_iter=0, num_configs=list(bracket.sizes), budgets=list(bracket.budgets), config_sampler=lambda _: ({}, {})
    )
    asks: list[Ask] = []
    tells: list[Tell] = []
    for loss in losses:
        expected, _, budget = theirs.get_next_run()
        due = next_runs(item, asks, tells)
        assert due[0].trial == "_".join(map(str, expected))
        assert due[0].budget == budget
        asks.append(Ask(run=due[0], config={}, origin="random"))
        tells.append(Tell(run=due[0], loss=loss, metric=loss))
        job = Job(expected, config={}, budget=budget)
        job.result = {"loss": loss, "info": {}}
        theirs.register_result(job)
    assert is_finished(item, asks, tells)
