"""The user's object, called as the earlier wrapper called it: plain synchronous code, a message in and a message out."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from myelin.serve.message import Question, decode, decode_feedback, encode
from myelin.serve.plain import ModelFault, plain

KINDS: Mapping[str, Any] = {"COUNTER": Counter, "GAUGE": Gauge, "TIMER": Histogram}


class Model:
    """Serves one object of the user's class.

    Args:
        user: With `predict(X, names)` or `predict(X, names, meta=…)`; optionally send_feedback, tags, metrics,
            class_names, predict_rest, send_feedback_rest. `names` is None where the caller gave none.
        axon: Suffix of its metrics' names.

    Raises:
        ModelFault: It has no predict.
    """

    def __init__(self, user: Any, axon: str) -> None:
        if not callable(getattr(user, "predict", None)) and not callable(getattr(user, "predict_rest", None)):
            raise ModelFault(f"class {type(user).__name__}: expected a method `predict`")
        self._user, self._metrics = user, ModelMetrics(axon)
        self._takes_meta = _takes(getattr(user, "predict", None), "meta")

    @property
    def is_thread_safe(self) -> bool:
        """Whether the class says that its methods may run side by side."""
        return bool(getattr(self._user, "thread_safe", False))

    def predict(self, message: Any) -> Any:
        """Answer a message.

        Raises:
            BadRequest: Not a message.
            ModelFault: The answer, the tags or the metrics are none.
        """
        if hasattr(self._user, "predict_rest"):
            return plain(self._user.predict_rest(message))
        question = decode(message)
        answer = encode(self._answer(question), question.encoding, self._class_names())
        return {**answer, "meta": self._meta()}

    def feedback(self, message: Any) -> dict[str, Any]:
        """Hand feedback on; a class that takes none is as good as one that does.

        Raises:
            BadRequest: Not feedback.
            ModelFault: The metrics are none.
        """
        if hasattr(self._user, "send_feedback_rest"):
            self._user.send_feedback_rest(message)
        else:
            given = decode_feedback(message)
            if hasattr(self._user, "send_feedback"):
                self._user.send_feedback(given.question.values, given.question.names, given.reward, given.truth)
        self._meta()
        return {}

    def exposition(self) -> bytes:
        """What `metrics()` said, in Prometheus' text format."""
        return self._metrics.exposition()

    def _answer(self, question: Question) -> Any:
        if self._takes_meta:
            return self._user.predict(question.values, question.names, meta=dict(question.meta))
        return self._user.predict(question.values, question.names)

    def _meta(self) -> dict[str, Any]:
        tags = plain(self._user.tags() or {}) if hasattr(self._user, "tags") else {}
        if not isinstance(tags, dict):
            raise ModelFault(f"tags(): expected a mapping, got {type(tags).__name__}")
        metrics = self._user.metrics() if hasattr(self._user, "metrics") else None
        return {"tags": tags, "metrics": self._metrics.take([] if metrics is None else metrics)}

    def _class_names(self) -> list[str] | None:
        names = getattr(self._user, "class_names", None)
        names = names() if callable(names) else names
        return [str(name) for name in names] if names is not None else None


class ModelMetrics:
    """What a model's `metrics()` says: counters to add, gauges to set, timers in milliseconds.

    Args:
        axon: Suffix of the names.
    """

    def __init__(self, axon: str) -> None:
        self._axon, self._guard = axon, threading.Lock()
        # One registry for each kind: a model may use one key with two of them.
        self._registries = {kind: CollectorRegistry() for kind in KINDS}
        self._known: dict[tuple[str, str], Any] = {}

    def take(self, items: Any) -> list[dict[str, Any]]:
        """Count what `metrics()` returned.

        Returns:
            The same, as JSON carries it.

        Raises:
            ModelFault: It is no list of `key`, numeric `value` and `type`; says what it is.
        """
        if isinstance(items, (str, bytes, Mapping)) or not hasattr(items, "__iter__"):
            raise ModelFault(f"metrics(): expected a list, got {type(items).__name__}")
        return [self._one(item) for item in items]

    def exposition(self) -> bytes:
        """All of them, in Prometheus' text format."""
        return b"".join(generate_latest(registry) for registry in self._registries.values())

    def _one(self, item: Any) -> dict[str, Any]:
        if not isinstance(item, Mapping):
            raise ModelFault(f"metrics(): expected objects with key, value and type, got {type(item).__name__}")
        key, kind, value = item.get("key"), item.get("type"), _number(item.get("value"))
        if not isinstance(key, str) or not key or kind not in KINDS or value is None:
            asked = f"key, numeric value and type of {', '.join(KINDS)}"
            raise ModelFault(f"metrics(): expected {asked}, got key {key!r}, value {item.get('value')!r}, type {kind!r}")
        try:
            self._count(key, str(kind), value)
        except ValueError as error:
            raise ModelFault(f"metrics(): {key}: {error}") from error
        return {**plain({name: part for name, part in item.items() if name != "value"}), "value": plain(value)}

    def _count(self, key: str, kind: str, value: float) -> None:
        name = f"{key}_{self._axon}".replace("-", "__")
        with self._guard:
            metric = self._known.get((name, kind))
            if metric is None:
                metric = KINDS[kind](name, f"{key}, from the model's metrics()", registry=self._registries[kind])
                self._known[name, kind] = metric
        if kind == "GAUGE":
            metric.set(value)
        elif kind == "COUNTER":
            metric.inc(value)
        else:
            metric.observe(value / 1000)  # Seldon's timers are in milliseconds


def _number(value: Any) -> int | float | None:
    """A number, numpy's and a framework's too; None for everything else."""
    try:
        found = value.item() if hasattr(value, "item") else value
        if isinstance(found, (bool, str, bytes)):
            return None
        return found if isinstance(found, int) else float(found)
    except (TypeError, ValueError, RuntimeError):
        return None  # no number, or an array of several


def _takes(function: Any, name: str) -> bool:
    """Whether a function can be called with this keyword."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    named = {parameter.name for parameter in parameters if parameter.kind is not parameter.POSITIONAL_ONLY}
    return name in named or any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
