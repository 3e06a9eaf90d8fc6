"""The door to promql-parser: PromQL text -> our own small tree, and what it is worth over samples at an instant.

It follows Prometheus for the parts that alerts are made of: selectors, windows, aggregations, comparisons,
arithmetic and set operators. Everything else is refused by name when the manifest is read, never guessed.

Source: Prometheus' documentation, "Query language basics", "operators", "functions".
"""

from __future__ import annotations

import math
import re
import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import promql_parser

from policies.errors import DesiredStateError

LOOKBACK_SECONDS = 300.0
LONGEST_TEXT = 2000
DEEPEST = 60
"""Conditions that people write are far smaller; the parser and we recurse, and must come back."""
ARITHMETIC = ("+", "-", "*", "/")
COMPARISONS = ("==", "!=", "<", "<=", ">", ">=")
SETS = ("and", "or", "unless")


LARGE = 2.0**900


def _sum(values: Sequence[float]) -> float:
    """The exact sum where there is one; what is too large or no number comes out as such, and stops nothing."""
    try:
        if max((abs(value) for value in values if math.isfinite(value)), default=0.0) < LARGE:
            return math.fsum(values)
        # Near the largest number a sum on the way may be too large where the end is not, and that would hang on their order.
        total = math.fsum(value / LARGE for value in values)
        return total * LARGE
    except ValueError:
        return math.nan  # an infinity of each sign


def _extreme(values: Sequence[float], choose: Callable[[Sequence[float]], float]) -> float:
    """The least or the most of those values that are numbers."""
    return choose([value for value in values if not math.isnan(value)] or [math.nan])


AGGREGATIONS: Mapping[str, Callable[[Sequence[float]], float]] = {
    "sum": _sum,
    "avg": lambda values: _sum(values) / len(values),
    "min": lambda values: _extreme(values, min),
    "max": lambda values: _extreme(values, max),
    "count": lambda values: float(len(values)),
}
POINTWISE: Mapping[str, Callable[[float], float]] = {
    "abs": abs,
    "ceil": lambda value: float(math.ceil(value)) if math.isfinite(value) else value,
    "floor": lambda value: float(math.floor(value)) if math.isfinite(value) else value,
}
WINDOWS = (
    "avg_over_time",
    "sum_over_time",
    "min_over_time",
    "max_over_time",
    "count_over_time",
    "last_over_time",
    "rate",
    "increase",
    "delta",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One metric with its samples."""

    labels: Mapping[str, str]
    """With `__name__`."""
    points: Sequence[tuple[float, float]]
    """(seconds since the epoch, value), oldest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One result."""

    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A node of a query; `kind` says which fields count."""

    kind: str
    """`number`, `select`, `window`, `aggregate`, `pointwise`, `negate` or `binary`."""
    name: str = ""
    """Function, operator or aggregation."""
    number: float = 0.0
    matchers: tuple[tuple[str, str, str], ...] = ()
    """(label, one of = != =~ !~, value)."""
    range_seconds: float = 0.0
    parts: tuple[Query, ...] = field(default=())
    labels: tuple[str, ...] = ()
    keeps_labels: bool | None = None
    """For `by`/`on`: only these labels count (True); for `without`/`ignoring`: all but these (False); None: neither."""
    is_bool: bool = False


def parse(text: str) -> Query:
    """Read a query.

    Raises:
        DesiredStateError: Not PromQL, or a part of it that Myelin does not evaluate, by name.
    """
    if len(text) > LONGEST_TEXT or _depth(text) > DEEPEST:
        raise _refuse(f"a condition of {len(text)} characters, or nested deeper than {DEEPEST},")
    try:
        query = _read(promql_parser.parse(text))
    except (ValueError, OverflowError) as error:
        raise DesiredStateError(f"expected PromQL, got {text[:80]!r}: {error}", reason="NotPromql") from error
    except RecursionError:
        raise _refuse(f"a condition nested deeper than {DEEPEST}") from None
    waiting = [(query, 1)]
    while waiting:
        node, depth = waiting.pop()
        if node.kind == "range":
            raise _refuse("a range without a function")
        if depth > DEEPEST:
            raise _refuse(f"a condition nested deeper than {DEEPEST}")
        waiting += [(part, depth + 1) for part in node.parts]
    return query


def _depth(text: str) -> int:
    """How deep brackets and signs are nested in a text, before anybody parses it."""
    deepest = depth = signs = 0
    for char in text:
        depth += (char == "(") - (char == ")")
        signs = signs + 1 if char in "+-" else signs if char.isspace() else 0
        deepest = max(deepest, depth, signs)
    return deepest


def threshold_of(query: Query) -> float | None:
    """The number that a query compares with at its top, where it has that shape."""
    if query.kind != "binary" or query.name not in COMPARISONS:
        return None
    numbers = [part.number for part in query.parts if part.kind == "number"]
    return numbers[0] if len(numbers) == 1 else None


def evaluate(query: Query, series: Sequence[Series], at: float) -> tuple[Sample, ...]:
    """What a query is worth.

    Args:
        query: From `parse`.
        series: All that may be selected.
        at: Seconds since the epoch.
    Returns:
        One sample for each label set, sorted by labels; a number is one sample without labels.
    """
    found = _evaluate(query, series, at)
    samples = [Sample(labels={}, value=found)] if isinstance(found, float) else found
    return tuple(sorted(samples, key=lambda sample: sorted(sample.labels.items())))


def has_data(query: Query, series: Sequence[Series], at: float) -> bool:
    """Whether any selector of a query finds a sample at an instant."""
    if query.kind in ("select", "window", "range"):
        return any(_within(item, at, query.range_seconds or LOOKBACK_SECONDS) for item in _selected(query, series))
    return any(has_data(part, series, at) for part in query.parts)


def _refuse(what: str) -> DesiredStateError:
    return DesiredStateError(f"{what} is not among the parts of PromQL that Myelin evaluates by itself", reason="PromqlNotBuilt")


def _read(tree: Any) -> Query:
    match type(tree).__name__:
        case "NumberLiteral":
            return Query(kind="number", number=float(tree.val))
        case "ParenExpr":
            return _read(tree.expr)
        case "UnaryExpr":
            return Query(kind="negate", parts=(_read(tree.expr),))
        case "VectorSelector":
            return _selector(tree, "select", 0.0)
        case "MatrixSelector":
            return _selector(tree.vector_selector, "range", tree.range.total_seconds())
        case "Call":
            return _call(tree)
        case "AggregateExpr":
            name = str(tree.op)
            if name not in AGGREGATIONS:
                raise _refuse(f"aggregation {name}")
            labels, keeps = (), True
            if tree.modifier is not None:
                labels, keeps = tuple(tree.modifier.labels), str(tree.modifier.type).endswith("By")
            return Query(kind="aggregate", name=name, parts=(_read(tree.expr),), labels=labels, keeps_labels=keeps)
        case "BinaryExpr":
            return _binary(tree)
        case "SubqueryExpr":
            raise _refuse("a subquery")
        case other:
            raise _refuse(other)


def _selector(tree: Any, kind: str, seconds: float) -> Query:
    if tree.offset is not None:
        raise _refuse("offset")
    if tree.at is not None:
        raise _refuse("the @ modifier")
    if tree.matchers.or_matchers:
        raise _refuse("`or` between matchers")
    signs = {"MatchOp.Equal": "=", "MatchOp.NotEqual": "!=", "MatchOp.Re": "=~", "MatchOp.NotRe": "!~"}
    matchers = tuple((item.name, signs[str(item.op)], item.value) for item in tree.matchers.matchers)
    for _, sign, value in matchers:
        if sign in ("=~", "!~"):
            try:
                with warnings.catch_warnings():
                    # What Python warns of ([[:alpha:]], [a&&b]) means something else to Prometheus.
                    warnings.simplefilter("error")
                    re.compile(value)
            except (re.error, RecursionError, OverflowError, Warning) as error:
                raise _refuse(f"the regular expression {value!r} ({error})") from error
    if tree.name:
        matchers = (("__name__", "=", tree.name), *matchers)
    return Query(kind=kind, matchers=matchers, range_seconds=seconds)


def _call(tree: Any) -> Query:
    name = tree.func.name
    if name in WINDOWS:
        inner = _read(tree.args[0])
        if inner.kind != "range":
            raise DesiredStateError(f"{name}: expected a range such as metric[5m]", reason="NotPromql")
        return Query(kind="window", name=name, matchers=inner.matchers, range_seconds=inner.range_seconds)
    if name in POINTWISE:
        return Query(kind="pointwise", name=name, parts=(_read(tree.args[0]),))
    raise _refuse(f"function {name}")


def _binary(tree: Any) -> Query:
    name = str(tree.op)
    if name not in (*ARITHMETIC, *COMPARISONS, *SETS):
        raise _refuse(f"operator {name}")
    labels: tuple[str, ...] = ()
    keeps: bool | None = None
    is_bool = False
    if tree.modifier is not None:
        is_bool = bool(tree.modifier.return_bool)
        if not str(tree.modifier.card).endswith(("OneToOne", "ManyToMany")):
            raise _refuse("group_left and group_right")
        if tree.modifier.matching is not None:
            labels = tuple(tree.modifier.matching.labels)
            keeps = str(tree.modifier.matching.type).endswith("Include")
    return Query(
        kind="binary", name=name, parts=(_read(tree.lhs), _read(tree.rhs)), labels=labels, keeps_labels=keeps, is_bool=is_bool
    )


def _evaluate(query: Query, series: Sequence[Series], at: float) -> float | list[Sample]:
    match query.kind:
        case "number":
            return query.number
        case "negate":
            inner = _evaluate(query.parts[0], series, at)
            return -inner if isinstance(inner, float) else [_bare(item, -item.value) for item in inner]
        case "select":
            return [
                Sample(labels=item.labels, value=points[-1][1])
                for item in _selected(query, series)
                if (points := _within(item, at, LOOKBACK_SECONDS))
            ]
        case "window":
            return [
                Sample(labels=_without_name(item.labels), value=value)
                for item in _selected(query, series)
                if (value := _window(query.name, _within(item, at, query.range_seconds), at, query.range_seconds)) is not None
            ]
        case "pointwise":
            inner = _evaluate(query.parts[0], series, at)
            apply = POINTWISE[query.name]
            return apply(inner) if isinstance(inner, float) else [_bare(item, apply(item.value)) for item in inner]
        case "aggregate":
            inner = _evaluate(query.parts[0], series, at)
            return _aggregate(query, [Sample(labels={}, value=inner)] if isinstance(inner, float) else inner)
        case "binary":
            return _combine(query, _evaluate(query.parts[0], series, at), _evaluate(query.parts[1], series, at))
        case _:
            raise _refuse("a range without a function")


def _selected(query: Query, series: Sequence[Series]) -> Iterable[Series]:
    return (item for item in series if all(_fits(item.labels.get(name, ""), sign, value) for name, sign, value in query.matchers))


def _fits(got: str, sign: str, wanted: str) -> bool:
    if sign in ("=", "!="):
        return (got == wanted) == (sign == "=")
    return (re.fullmatch(wanted, got) is not None) == (sign == "=~")


def _within(series: Series, at: float, seconds: float) -> list[tuple[float, float]]:
    first = bisect_right(series.points, at - seconds, key=_instant)
    return list(series.points[first : bisect_right(series.points, at, lo=first, key=_instant)])


def _instant(point: tuple[float, float]) -> float:
    return point[0]


def _window(name: str, points: Sequence[tuple[float, float]], at: float, seconds: float) -> float | None:
    values = [value for _, value in points]
    if not values:
        return None
    match name:
        case "last_over_time":
            return values[-1]
        case "rate" | "increase" | "delta":
            return _slope(name, points, at, seconds)
        case _:
            return AGGREGATIONS[name.removesuffix("_over_time")](values)


def _slope(name: str, points: Sequence[tuple[float, float]], at: float, seconds: float) -> float | None:
    """Change over the window, drawn out to its borders as Prometheus does."""
    if len(points) < 2:
        return None
    change = points[-1][1] - points[0][1]
    if name != "delta":
        for (_, before), (_, after) in pairwise(points):
            change += before if after < before else 0.0
    covered = points[-1][0] - points[0][0]
    between = covered / (len(points) - 1)
    at_start, at_end = points[0][0] - (at - seconds), at - points[-1][0]
    limit = between * 1.1
    at_start = at_start if at_start < limit else between / 2
    if name != "delta" and change > 0 and points[0][1] >= 0:
        at_start = min(at_start, covered * points[0][1] / change)
    at_end = at_end if at_end < limit else between / 2
    change *= (covered + at_start + at_end) / covered if covered else 1.0
    return change / seconds if name == "rate" else change


def _aggregate(query: Query, samples: Sequence[Sample]) -> list[Sample]:
    groups: dict[tuple[tuple[str, str], ...], list[float]] = {}
    for sample in samples:
        groups.setdefault(_kept(sample.labels, query.labels, query.keeps_labels), []).append(sample.value)
    return [Sample(labels=dict(key), value=AGGREGATIONS[query.name](values)) for key, values in groups.items()]


def _combine(query: Query, left: float | list[Sample], right: float | list[Sample]) -> float | list[Sample]:
    if isinstance(left, float) and isinstance(right, float):
        return float(_apply(query.name, left, right))
    if query.name in SETS:
        return _set(query, _listed(left), _listed(right))
    found = []
    if isinstance(left, float) or isinstance(right, float):
        for item in _listed(left) if isinstance(right, float) else _listed(right):
            one = left if isinstance(left, float) else item.value
            other = right if isinstance(right, float) else item.value
            found += _keep(query, item, _apply(query.name, one, other), item.value)
        return found
    theirs = _one_each(query, right)
    ours = _one_each(query, [item for item in left if _matched(query, item.labels) in theirs])
    for key, item in ours.items():
        # As Prometheus has it: what was matched on stays, what was ignored goes.
        matched = item if query.keeps_labels is None else Sample(labels=dict(key), value=item.value)
        found += _keep(query, matched, _apply(query.name, item.value, theirs[key].value), item.value)
    return found


def _one_each(query: Query, samples: Sequence[Sample]) -> dict[tuple[tuple[str, str], ...], Sample]:
    """Samples by what they are matched by.

    Raises:
        DesiredStateError: Several match at once, which has no answer.
    """
    found: dict[tuple[tuple[str, str], ...], Sample] = {}
    for sample in samples:
        key = _matched(query, sample.labels)
        if key in found:
            shown = ", ".join(f"{name}={value}" for name, value in key) or "no label"
            raise DesiredStateError(f"operator {query.name}: several series match on {shown}", reason="PromqlAmbiguous")
        found[key] = sample
    return found


def _keep(query: Query, item: Sample, result: float, value: float) -> list[Sample]:
    if query.name not in COMPARISONS or query.is_bool:
        return [_bare(item, float(result))]
    return [Sample(labels=item.labels, value=value)] if result else []


def _apply(name: str, left: float, right: float) -> float:
    match name:
        case "+":
            return left + right
        case "-":
            return left - right
        case "*":
            return left * right
        case "/":
            if right == 0:
                return math.nan if left == 0 or math.isnan(left) else math.copysign(math.inf, left) * math.copysign(1, right)
            return left / right
        case "==":
            return float(left == right)
        case "!=":
            return float(left != right)
        case "<":
            return float(left < right)
        case "<=":
            return float(left <= right)
        case ">":
            return float(left > right)
        case _:
            return float(left >= right)


def _set(query: Query, left: Sequence[Sample], right: Sequence[Sample]) -> list[Sample]:
    theirs = {_matched(query, item.labels) for item in right}
    if query.name == "and":
        return [item for item in left if _matched(query, item.labels) in theirs]
    if query.name == "unless":
        return [item for item in left if _matched(query, item.labels) not in theirs]
    ours = {_matched(query, item.labels) for item in left}
    return [*left, *(item for item in right if _matched(query, item.labels) not in ours)]


def _listed(value: float | list[Sample]) -> list[Sample]:
    return [Sample(labels={}, value=value)] if isinstance(value, float) else value


def _matched(query: Query, labels: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return _kept(labels, query.labels, False if query.keeps_labels is None else query.keeps_labels)


def _kept(labels: Mapping[str, str], names: Sequence[str], keeps: bool | None) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((key, value) for key, value in labels.items() if key != "__name__" and (key in names) == bool(keeps)))


def _without_name(labels: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in labels.items() if key != "__name__"}


def _bare(item: Sample, value: float) -> Sample:
    return Sample(labels=_without_name(item.labels), value=value)
