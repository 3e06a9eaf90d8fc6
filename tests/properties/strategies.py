"""Documents as people could write them."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

names = st.from_regex(r"[A-Za-z][A-Za-z0-9-]{0,8}[A-Za-z0-9]", fullmatch=True)
texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8)
env = st.lists(st.fixed_dictionaries({"name": names, "value": texts}), max_size=2)


def _maybe(**entries: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=entries)


@st.composite
def tunings(draw: st.DrawFn) -> dict[str, Any]:
    lowest = draw(st.integers(1, 50))
    lower = draw(st.floats(0.001, 10))
    parameter = {
        "name": draw(names),
        "type": "UniformFloat",
        "numerical": {"lower": lower, "upper": lower + draw(st.floats(0.5, 10)), "log": draw(st.booleans())},
    }
    choice = {
        "name": draw(names),
        "type": "Categorical",
        "categorical": {"values": draw(st.lists(names, min_size=1, max_size=3))},
    }
    return {
        "optimiser": draw(st.sampled_from(["BOHB", "HyperBand", "RandomSearch"])),
        "minBudget": lowest,
        "maxBudget": lowest * draw(st.integers(1, 81)),
        "params": [parameter, choice],
        **draw(_maybe(concurrency=st.integers(1, 9), seed=st.integers(0, 9), trialTimeout=st.sampled_from(["30s", "1h30m"]))),
    }


@st.composite
def axons(draw: st.DrawFn) -> dict[str, Any]:
    """A manifest, as plain values, that parses."""
    tasks = draw(st.lists(names, min_size=1, max_size=4, unique=True))
    build = {"artifact": "source", "buildLocation": "/src", "s2i": {"contextDir": draw(names), "builderImage": draw(names)}}
    bodies = [
        {"imageBuild": build, **draw(_maybe(env=env, lossMetric=names, hpTuning=tunings(), cache=st.booleans()))} for _ in tasks
    ]
    entries = [{"trainer": {"task": name}} for name in tasks]
    cut = draw(st.integers(0, len(entries)))
    grouped = [group for group in (entries[:cut], entries[cut:]) if group]
    deployer = {
        "name": draw(names),
        "rolloutSpec": [{"destinations": [{"destinationIndex": 0, "weight": 100}], "shadow": {"destinationIndex": 1}}],
        "models": [{"name": "M", "backendModels": [{"name": "b", "trainer": tasks[0], "deployer": "serve-it"}]}],
        "routes": [{"path": "/predict", "dag": [{"model": "M", "path": "/predict"}]}],
    }
    return {
        "apiVersion": "myelin.io/v1alpha1",
        "kind": "Axon",
        "metadata": {"name": draw(st.from_regex(r"[a-z][a-z0-9]{0,8}", fullmatch=True))},
        "spec": {
            "artifacts": [{"name": "source", "path": "/src"}],
            "tasks": [
                *({"name": name, "train": body} for name, body in zip(tasks, bodies, strict=True)),
                {"name": "serve-it", "deploy": {"image": "x"}},
            ],
            "sensors": [
                {"name": "start", "tasks": draw(st.sampled_from([entries, grouped]))},
                {"name": "deploy", "triggers": [{"type": "Lifecycle", "task": tasks[0]}], "tasks": [{"deployer": deployer}]},
            ],
        },
    }


def shuffled(value: Any, draw: st.DrawFn) -> Any:
    """The same value with its keys in another order."""
    if isinstance(value, dict):
        return {key: shuffled(value[key], draw) for key in draw(st.permutations(list(value)))}
    return [shuffled(item, draw) for item in value] if isinstance(value, list) else value
