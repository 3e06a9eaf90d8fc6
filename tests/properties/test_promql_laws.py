import math
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from itertools import pairwise, permutations
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from policies.alerts import expand, firing, why_refused
from policies.errors import DesiredStateError
from policies.ledger import decode, encode, entry_of
from policies.promql import Sample, Series, evaluate, parse, threshold_of
from policies.records import event_statement, fold
from policies.sensors import due_events
from policies.terms.metrics import AlertRule
from policies.terms.observed import Observed, Recorded
from tests.properties.strategies import axon_of

ROOT = Path(__file__).resolve().parents[2]
AT = 100.0
Labels = Mapping[str, str]
whole = st.integers(-9, 9).map(float)
any_value = st.floats() | st.sampled_from([math.nan, math.inf, -math.inf, 1e308, -0.0])


def points(values: st.SearchStrategy[float]) -> st.SearchStrategy[tuple[tuple[float, float], ...]]:
    """Samples at whole seconds, some of them before every window and some after the instant that is asked for."""
    found = st.lists(st.tuples(st.integers(60, 102).map(float), values), max_size=6, unique_by=lambda point: point[0])
    return found.map(lambda items: tuple(sorted(items)))


def series_lists(values: st.SearchStrategy[float] = whole) -> st.SearchStrategy[list[Series]]:
    labels = st.tuples(st.sampled_from("mn"), st.sampled_from(["1", "2", ""]), st.sampled_from("ab"))
    named = labels.map(lambda three: {"__name__": three[0], **({"x": three[1]} if three[1] else {}), "y": three[2]})
    one = st.builds(Series, labels=named, points=points(values))
    return st.lists(one, max_size=5, unique_by=lambda item: tuple(sorted(item.labels.items())))


def key(labels: Labels, *left_out: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, value) for name, value in labels.items() if name not in ("__name__", *left_out)))


def values_of(text: str, series: Sequence[Series]) -> dict[tuple[tuple[str, str], ...], float]:
    found = evaluate(parse(text), series, AT)
    assert len({key(sample.labels) for sample in found}) == len(found)
    return {key(sample.labels): sample.value for sample in found}


def last(item: Series, seconds: float = 300) -> float | None:
    inside = [value for at, value in item.points if AT - seconds < at <= AT]
    return inside[-1] if inside else None


def selected(series: Iterable[Series], name: str) -> list[tuple[Labels, float]]:
    return [(item.labels, value) for item in series if item.labels["__name__"] == name and (value := last(item)) is not None]


def shown(samples: Iterable[Sample]) -> list[tuple[list[tuple[str, str]], str]]:
    return sorted((sorted(sample.labels.items()), repr(sample.value)) for sample in samples)


OVER_TIME: Mapping[str, Callable[[list[float]], float]] = {
    "avg": fmean,
    "sum": sum,
    "min": min,
    "max": max,
    "count": len,
    "last": lambda values: values[-1],
}


@given(series_lists(), st.sampled_from(sorted(OVER_TIME)), st.integers(1, 40))
def test_a_function_over_time_is_that_of_the_samples_in_its_window(series: list[Series], name: str, seconds: int) -> None:
    inside = {
        key(item.labels): [value for at, value in item.points if AT - seconds < at <= AT]
        for item in series
        if item.labels["__name__"] == "m"
    }
    wanted = {labels: OVER_TIME[name](values) for labels, values in inside.items() if values}
    assert values_of(f"{name}_over_time(m[{seconds}s])", series) == pytest.approx(wanted)


def slope(name: str, inside: Sequence[tuple[float, float]], seconds: int) -> Fraction | None:
    """Prometheus' extrapolated rate, in exact numbers, from its documentation and `extrapolatedRate`."""
    if len(inside) < 2:
        return None
    exact = [(Fraction(at), Fraction(value)) for at, value in inside]
    steps = [(before, after) for (_, before), (_, after) in pairwise(exact)]
    grown = sum(after - before if name == "delta" or after >= before else after for before, after in steps)
    covered = exact[-1][0] - exact[0][0]
    mean = covered / len(steps)
    head, tail = exact[0][0] - Fraction(AT) + seconds, Fraction(AT) - exact[-1][0]
    head = head if head < mean * Fraction(11, 10) else mean / 2
    tail = tail if tail < mean * Fraction(11, 10) else mean / 2
    if name != "delta" and grown > 0 and exact[0][1] >= 0:
        head = min(head, covered * exact[0][1] / grown)
    total = grown * (covered + head + tail) / covered
    return total / seconds if name == "rate" else total


@given(points(st.integers(0, 9).map(float)), st.sampled_from(["rate", "increase", "delta"]), st.integers(1, 40))
def test_a_rate_is_what_prometheus_says(samples: Any, name: str, seconds: int) -> None:
    inside = [point for point in samples if AT - seconds < point[0] <= AT]
    mean = (inside[-1][0] - inside[0][0]) / (len(inside) - 1) if len(inside) > 1 else 0.0
    borders = [inside[0][0] - AT + seconds, AT - inside[-1][0]] if inside else []
    assume(all(abs(border - mean * 1.1) > 1e-9 for border in borders))
    wanted = slope(name, inside, seconds)
    found = values_of(f"{name}(m[{seconds}s])", [Series(labels={"__name__": "m"}, points=samples)])
    assert found == ({} if wanted is None else {(): pytest.approx(float(wanted))})


@given(st.lists(st.integers(0, 9), min_size=2, max_size=12), st.sampled_from(["rate", "increase"]))
def test_a_counter_that_began_anew_counts_as_if_it_had_gone_on(readings: list[int], name: str) -> None:
    total, unbroken = readings[0], [readings[0]]
    for before, after in pairwise(readings):
        total += after - before if after >= before else after
        unbroken.append(total)
    both = []
    for label, items in (("broken", readings), ("unbroken", unbroken)):
        samples = tuple((float(89 + at), float(value)) for at, value in enumerate(items))
        both.append(Series(labels={"__name__": "m", "x": label}, points=samples))
    found = values_of(f"{name}(m[15s])", both)
    assert found.get((("x", "broken"),)) == found.get((("x", "unbroken"),))
    assert all(value >= 0 for value in found.values())


AGGREGATIONS = {name: OVER_TIME[name] for name in ("avg", "sum", "min", "max", "count")}


@given(series_lists(), st.sampled_from(sorted(AGGREGATIONS)), st.sampled_from(["by", "without"]), st.sets(st.sampled_from("xyz")))
def test_an_aggregation_is_over_those_alike_in_what_is_kept(series: list[Series], name: str, how: str, labels: set[str]) -> None:
    groups: dict[tuple[tuple[str, str], ...], list[float]] = {}
    for item, value in selected(series, "m"):
        kept = tuple(pair for pair in key(item) if (pair[0] in labels) == (how == "by"))
        groups.setdefault(kept, []).append(value)
    wanted = {kept: AGGREGATIONS[name](values) for kept, values in groups.items()}
    for text in (f"{name} {how} ({', '.join(sorted(labels))}) (m)", f"{name}(m) {how} ({', '.join(sorted(labels))})"):
        assert values_of(text, series) == pytest.approx(wanted)
    everything = [value for _, value in selected(series, "m")]
    assert values_of(f"{name}(m)", series) == ({(): pytest.approx(AGGREGATIONS[name](everything))} if everything else {})


COMPARISONS: Mapping[str, Callable[[float, float], bool]] = {
    ">": lambda one, other: one > other,
    "<": lambda one, other: one < other,
    ">=": lambda one, other: one >= other,
    "<=": lambda one, other: one <= other,
    "==": lambda one, other: one == other,
    "!=": lambda one, other: one != other,
}


@given(series_lists(), st.sampled_from(sorted(COMPARISONS)), whole)
def test_a_comparison_keeps_what_holds_and_with_bool_says_whether(series: list[Series], sign: str, number: float) -> None:
    holds = COMPARISONS[sign]
    left = selected(series, "m")
    found = evaluate(parse(f"m {sign} {number}"), series, AT)
    wanted = [(labels, value) for labels, value in left if holds(value, number)]
    assert shown(found) == shown(Sample(labels=labels, value=value) for labels, value in wanted)
    assert values_of(f"m {sign} bool {number}", series) == {key(x): float(holds(value, number)) for x, value in left}
    assert values_of(f"{number} {sign} m", series) == {key(x): value for x, value in left if holds(number, value)}
    right = {key(labels): value for labels, value in selected(series, "n")}
    both = {key(labels): (value, right[key(labels)]) for labels, value in left if key(labels) in right}
    assert values_of(f"m {sign} n", series) == {name: pair[0] for name, pair in both.items() if holds(*pair)}
    assert values_of(f"m {sign} bool n", series) == {name: float(holds(*pair)) for name, pair in both.items()}


@given(series_lists(), whole)
def test_arithmetic_is_that_of_numbers_of_the_same_labels(series: list[Series], number: float) -> None:
    left, right = ({key(labels): value for labels, value in selected(series, name)} for name in "mn")
    common = left.keys() & right.keys()
    assert values_of("m + n", series) == {name: left[name] + right[name] for name in common}
    assert values_of("m * n - m", series) == {name: left[name] * right[name] - left[name] for name in common}
    assert values_of(f"{number} - m", series) == {name: number - value for name, value in left.items()}
    assert values_of("-m", series) == {name: -value for name, value in left.items()}
    quotients = values_of("m / n", series)
    assert quotients.keys() == common
    for name in common:
        assert math.isfinite(quotients[name]) == (right[name] != 0)
        assert math.isnan(quotients[name]) == (left[name] == right[name] == 0)
        assert right[name] == 0 or quotients[name] == left[name] / right[name]


MATCHINGS: Sequence[tuple[str, Callable[[Labels], Any]]] = (
    ("", lambda labels: key(labels)),
    ("on (x)", lambda labels: labels.get("x", "")),
    ("on ()", lambda labels: ""),
    ("ignoring (x)", lambda labels: key(labels, "x")),
)


@given(series_lists(), st.sampled_from(MATCHINGS))
def test_sets_are_those_of_what_the_matching_sees(series: list[Series], matching: tuple[str, Callable[[Labels], Any]]) -> None:
    text, seen = matching
    left, right = selected(series, "m"), selected(series, "n")
    ours, theirs = ({seen(labels) for labels, _ in side} for side in (left, right))
    wanted = {
        "and": [item for item in left if seen(item[0]) in theirs],
        "unless": [item for item in left if seen(item[0]) not in theirs],
        "or": [*left, *(item for item in right if seen(item[0]) not in ours)],
    }
    for name, items in wanted.items():
        found = evaluate(parse(f"m {name} {text} n"), series, AT)
        assert shown(found) == shown(Sample(labels=labels, value=value) for labels, value in items)


@given(series_lists(), st.sampled_from(["m / on (x) n", "m > on (x) n", "m > bool on (x) n", "m / ignoring (y) n"]))
def test_one_to_one_keeps_the_labels_that_were_matched(series: list[Series], text: str) -> None:
    one_each = [item for item in series if item.labels["y"] == "a"]
    assert all({name for name in sample.labels if name != "__name__"} <= {"x"} for sample in evaluate(parse(text), one_each, AT))


def vectors() -> st.SearchStrategy[str]:
    """Texts of queries that select by whole names and match by whole label sets."""
    leaves = st.sampled_from(
        ["m", "n", 'm{x="1"}', 'n{x!="1"}', 'm{y=~"a|c"}', 'm{x!~".+"}', "rate(m[30s])", "increase(n[40s])", "delta(m[20s])"]
    ) | st.sampled_from(sorted(OVER_TIME)).map("{}_over_time(m[25s])".format)
    signs = st.sampled_from(["+", "-", "*", "/", ">", "<", ">=", "<=", "==", "!=", "> bool", "== bool", "and", "or", "unless"])
    numbers = st.sampled_from(["0", "2", "-3.5", "Inf", "NaN", "1e308"])

    def more(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        return (
            st.tuples(st.sampled_from(["-", "abs", "ceil", "floor"]), inner).map(lambda two: f"{two[0]}({two[1]})")
            | st.tuples(
                st.sampled_from(sorted(AGGREGATIONS)), st.sampled_from(["", "by (x)", "without (x)", "without (y, x)"]), inner
            ).map(lambda three: f"{three[0]} {three[1]} ({three[2]})")
            | st.tuples(inner, signs, inner).map(lambda three: f"({three[0]}) {three[1]} ({three[2]})")
            | st.tuples(inner, signs.filter(lambda sign: not sign.isalpha()), numbers).map(" ".join).map("({})".format)
        )

    return st.recursive(leaves, more, max_leaves=4)


@settings(max_examples=200)
@given(vectors(), series_lists(), st.randoms(use_true_random=False))
def test_the_order_of_series_does_not_matter(text: str, series: list[Series], chance: Any) -> None:
    mixed = list(series)
    chance.shuffle(mixed)
    assert shown(evaluate(parse(text), mixed, AT)) == shown(evaluate(parse(text), series, AT))


@settings(max_examples=50)
@given(st.sampled_from(["min(m)", "max(m)", "avg(m)", "sum(m)"]), series_lists(any_value), st.randoms(use_true_random=False))
def test_the_order_of_series_does_not_matter_where_some_are_no_numbers(text: str, series: list[Series], chance: Any) -> None:
    mixed = list(series)
    chance.shuffle(mixed)
    assert shown(evaluate(parse(text), mixed, AT)) == shown(evaluate(parse(text), series, AT))


@given(st.sampled_from(["m / on (x) n", "m > on () n", "m + ignoring (y) n"]), series_lists(), st.randoms(use_true_random=False))
def test_the_order_of_series_does_not_matter_where_several_match(text: str, series: list[Series], chance: Any) -> None:
    mixed = list(series)
    chance.shuffle(mixed)
    assert shown_or_refused(text, mixed) == shown_or_refused(text, series)


def shown_or_refused(text: str, series: list[Series]) -> Any:
    try:
        return shown(evaluate(parse(text), series, AT))
    except DesiredStateError as error:
        return error.reason


def test_several_series_that_match_one_are_refused_as_prometheus_does() -> None:
    series = [Series(labels={"__name__": name, "x": "1", "y": y}, points=((AT, 1.0),)) for name, y in ("ma", "na", "nb")]
    assert shown_or_refused("m / on (x) n", series) == "PromqlAmbiguous"
    assert shown_or_refused("n / on (x) m", series) == "PromqlAmbiguous"


@pytest.mark.parametrize("name", ["min", "max"])
def test_the_least_and_the_most_are_of_what_is_a_number(name: str) -> None:
    for values in ((math.nan, 1.0), (1.0, math.nan)):
        series = [Series(labels={"__name__": "m", "x": str(at)}, points=((AT, value),)) for at, value in enumerate(values)]
        assert values_of(f"{name}(m)", series) == {(): 1.0}
        inside = Series(labels={"__name__": "m"}, points=((AT - 1, values[0]), (AT, values[1])))
        assert values_of(f"{name}_over_time(m[5s])", [inside]) == {(): 1.0}


@settings(max_examples=300)
@given(vectors(), series_lists(any_value))
def test_no_value_can_make_an_evaluation_fail(text: str, series: list[Series]) -> None:
    for sample in evaluate(parse(text), series, AT):
        assert isinstance(sample.value, float)


PATTERNS = [
    *("a|b", "(?P<n>a)", r"\\pL", r"\\x{61}", r"a\\z", "[[:alpha:]]"),
    *("(?U)a+", "(a{1,2}){1}", "a{1,1}{1}", "[a&&[^b]]", "[[a]b]", "("),
]
"""All of them fit `a`, where they are patterns."""


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_is_refused_when_it_is_read_or_fits_as_it_does_for_prometheus(pattern: str) -> None:
    text = f'm{{x=~"{pattern}"}}'
    if not why_refused(text, "digits"):
        fits = Series(labels={"__name__": "m", "x": "a"}, points=((AT, 1.0),))
        assert [sample.value for sample in evaluate(parse(text), [fits], AT)] == [1.0]


NOT_BUILT = {
    "m offset 5m": "offset",
    "m offset -5m": "offset",
    "m @ 5": "@",
    "m @ start()": "@",
    "sum_over_time(m[5m:1m])": "subquery",
    "sum_over_time(m[5m] offset 1m)": "offset",
    "sum_over_time(m[5m] @ 5)": "@",
    "quantile(0.9, m)": "quantile",
    "topk(1, m)": "topk",
    "bottomk(1, m)": "bottomk",
    "stddev(m)": "stddev",
    "stdvar(m)": "stdvar",
    "group(m)": "group",
    "count_values('v', m)": "count_values",
    "quantile_over_time(0.9, m[5m])": "quantile_over_time",
    "stddev_over_time(m[5m])": "stddev_over_time",
    "irate(m[5m])": "irate",
    "idelta(m[5m])": "idelta",
    "deriv(m[5m])": "deriv",
    "resets(m[5m])": "resets",
    "changes(m[5m])": "changes",
    "absent(m)": "absent",
    "histogram_quantile(0.9, m)": "histogram_quantile",
    "label_replace(m, 'a', '$1', 'b', '(.*)')": "label_replace",
    "label_join(m, 'a', '-', 'b')": "label_join",
    "clamp_max(m, 1)": "clamp_max",
    "round(m)": "round",
    "ln(m)": "ln",
    "vector(1)": "vector",
    "m * on (x) group_left n": "group_left",
    "m * on (x) group_right (y) n": "group_right",
    "m % 2": "%",
    "m ^ 2": "^",
    "m atan2 n": "atan2",
    'm{x="1" or x="2"}': "or",
}


@pytest.mark.parametrize("around", ["{}", "(({}))", "sum by (x) ({}) > 1", "n and -abs({})"])
@pytest.mark.parametrize(("text", "name"), NOT_BUILT.items())
def test_what_is_not_evaluated_is_refused_by_name(text: str, name: str, around: str) -> None:
    with pytest.raises(DesiredStateError) as caught:
        parse(around.format(text))
    assert caught.value.reason == "PromqlNotBuilt"
    assert name in caught.value.message
    assert why_refused(around.format(text), "digits") == caught.value.message


@pytest.mark.parametrize("text", ["time()", "m[5m]", "(m[5m])", "'text'", "scalar(m)"])
def test_what_is_no_condition_is_refused_when_it_is_read(text: str) -> None:
    with pytest.raises(DesiredStateError):
        parse(text)


WORDS = """m n 5m 1 1e999 0x 5m: 'x' {{m}} by without on group_left bool offset and or sum rate avg_over_time abs topk start()"""
TOKENS = [*"()[]{},+-*/%^@=!<>#", "\\", '"', "=~", "!~", "==", ">=", *WORDS.split()]
pieces = st.lists(st.sampled_from(TOKENS), max_size=12)
texts = st.text(max_size=20) | pieces.map(" ".join) | pieces.map("".join)


@settings(max_examples=300)
@given(texts, series_lists())
def test_any_text_is_read_or_refused_and_what_is_read_can_be_evaluated(text: str, series: list[Series]) -> None:
    try:
        query = parse(expand(text, "digits"))
    except DesiredStateError:
        return
    evaluate(query, series, AT)


DEEP = {"brackets": ("(", "m", ")"), "signs": ("-", "m", ""), "functions": ("abs(", "m", ")"), "sums": ("", "m", "+m")}
READ = """
import resource, sys
from policies.errors import DesiredStateError
from policies.promql import Series, evaluate, parse
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
before, middle, after = sys.argv[1:4]
for depth in (300, 1500, 20000):
    try:
        query = parse(before * depth + middle + after * depth)
    except DesiredStateError:
        continue
    evaluate(query, [Series(labels={"__name__": "m"}, points=((0.0, 1.0),))], 0.0)
"""


@pytest.mark.parametrize("shape", DEEP)
def test_no_depth_of_a_text_can_stop_the_program(shape: str) -> None:
    command = [sys.executable, "-c", READ, *DEEP[shape]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr[-200:]) == (0, "")


@given(vectors(), st.sampled_from(sorted(COMPARISONS)), st.integers(0, 99))
def test_the_threshold_is_the_number_on_either_side(text: str, sign: str, number: int) -> None:
    assert threshold_of(parse(f"({text}) {sign} {number}")) == number
    assert threshold_of(parse(f"{number} {sign} ({text})")) == number
    assert threshold_of(parse(f"({text}) {sign} n")) is None


START = 1_700_000_000
seconds_held = st.lists(st.booleans() | st.just(True), min_size=1, max_size=30)


def rule_of(seconds: float, condition: str = "m > 0") -> AlertRule:
    return AlertRule(axon="digits", sensor="guard", trigger="a", condition=condition, for_seconds=seconds)


def readings(holds: Sequence[bool], **labels: str) -> Series:
    """One sample a second."""
    values = tuple((float(START + at), 1.0 if held else -1.0) for at, held in enumerate(holds))
    return Series(labels={"__name__": "m", **labels}, points=values)


@settings(max_examples=200)
@given(seconds_held, st.integers(0, 40).map(lambda halves: halves / 2), st.sampled_from([0.0, 0.25]))
def test_an_alert_fires_when_its_condition_held_all_through_its_for(holds: list[bool], seconds: float, late: float) -> None:
    now = datetime.fromtimestamp(START + len(holds) - 1 + late, UTC)
    begin = len(holds) - 1 + late - seconds
    wanted = begin >= 0 and all(holds[math.floor(begin) :])
    assert [alert.value for alert in firing(rule_of(seconds), parse("m > 0"), [readings(holds)], now)] == [1.0] * wanted


@given(seconds_held, seconds_held, st.integers(0, 10))
def test_each_series_fires_by_itself(one: list[bool], other: list[bool], seconds: int) -> None:
    now = datetime.fromtimestamp(START + min(len(one), len(other)) - 1, UTC)
    both = [readings(one, version="v-1"), readings(other, version="v-2")]
    together = list(firing(rule_of(seconds), parse("m > 0"), both, now))
    assert together == list(firing(rule_of(seconds), parse("m > 0"), both[::-1], now))
    assert together == [alert for item in both for alert in firing(rule_of(seconds), parse("m > 0"), [item], now)]
    assert all((alert.version, alert.since, alert.threshold) == (alert.labels["version"], now, 0.0) for alert in together)


@given(seconds_held, st.integers(0, 10), st.integers(0, 30))
def test_a_longer_for_never_fires_where_a_shorter_one_does_not(holds: list[bool], seconds: int, more: int) -> None:
    now = datetime.fromtimestamp(START + len(holds) - 1, UTC)
    if list(firing(rule_of(seconds + more), parse("m > 0"), [readings(holds)], now)):
        assert list(firing(rule_of(seconds), parse("m > 0"), [readings(holds)], now))


odd_values = st.sampled_from([math.nan, math.inf, -math.inf, 1e308, 0.0, -1.5])
conditions = st.sampled_from(["m >= 0", "m != 1", "m > -Inf", "m == m", "1 / m > 0.5", "m < Inf", "m"])


@given(odd_values, conditions, st.booleans())
def test_an_alert_that_fires_can_be_written_down_whatever_its_value(value: float, condition: str, silent: bool) -> None:
    now = datetime.fromtimestamp(START, UTC)
    series = [] if silent else [Series(labels={"__name__": "m", "version": "v-1"}, points=((float(START), value),))]
    rule = AlertRule(axon="digits", sensor="guard", trigger="a", condition=condition, no_data_fires=silent)
    alerts = tuple(firing(rule, parse(condition), series, now))
    axon = axon_of(sensors=[{"name": "guard", "triggers": [{"type": "Alert", "name": "a", "condition": condition}]}])
    (events, again) = ([*due_events(axon, Observed(recorded=Recorded(), alerts=alerts), now)] for _ in range(2))
    assert len(events) == len(alerts)
    assert events == again
    for number, event in enumerate(events, start=1):
        entry = entry_of(event_statement(event), number=number, at=now, previous=None, sign=lambda _: "")
        assert fold([decode(encode(entry))]).events == {event.id: event}


@given(st.text(max_size=12), st.lists(st.sampled_from(["{{m}}", "{{ rmse-2 }}", "{{", "}}", "{{1}}", " > 1", "\n"]), max_size=4))
def test_a_condition_is_expanded_or_refused(text: str, pieces: list[str]) -> None:
    try:
        found = expand("".join([text, *pieces]), "my-axon")
    except DesiredStateError:
        return
    assert "{{" not in found
    assert expand("{{ rmse-2 }} > 1", "my-axon") == "rmse__2_my__axon > 1"


def test_an_alert_of_some_time_ago_is_found_again_by_its_samples() -> None:
    series, now = [readings([True] * 10)], datetime.fromtimestamp(START + 5, UTC)
    (then,) = firing(rule_of(3), parse("m > 0"), series, now)
    (later,) = firing(rule_of(3), parse("m > 0"), series, now + timedelta(seconds=4))
    assert (then.labels, then.value, then.since) == (later.labels, later.value, later.since - timedelta(seconds=4))


def test_a_sum_too_large_on_the_way_does_not_hang_on_the_order() -> None:
    values = [7.976931348623158e307, 1e308, -4.9896007738368e291]
    made = [Series(labels={"__name__": "m", "x": str(place)}, points=((60.0, value),)) for place, value in enumerate(values)]
    sums = {sample.value for order in permutations(made) for sample in evaluate(parse("sum(m)"), list(order), AT)}
    assert sums == {1.7976931348623157e308}
