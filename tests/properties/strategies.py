"""Documents as people could write them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

from policies.ledger import entry_of
from policies.parsing import parse_document
from policies.terms.axon import Axon
from policies.terms.desired import DesiredAxon
from policies.terms.document import LoadedDocument
from policies.terms.record import Entry, Statement
from policies.terms.version import BackendRecord, Version, VersionMetadata, VersionSpec

# A slow moment of the machine is no fault of a law.
settings.register_profile("laws", deadline=None)
settings.load_profile("laws")

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
names = st.from_regex(r"[A-Za-z][A-Za-z0-9-]{0,8}[A-Za-z0-9]", fullmatch=True)
texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8)
unicode = st.characters(exclude_categories=["Cs"])
"""Whatever can be written as UTF-8."""
digests = st.text("0123456789abcdef", min_size=64, max_size=64).map("sha256:{}".format)
instants = st.integers(0, 10**13).map(lambda number: datetime(2026, 1, 1, tzinfo=UTC) + timedelta(microseconds=number))
env = st.lists(st.fixed_dictionaries({"name": names, "value": texts}), max_size=2)


def _maybe(**entries: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=entries)


@st.composite
def tunings(draw: st.DrawFn) -> dict[str, Any]:
    lowest = draw(st.integers(1, 50))
    lower = draw(st.floats(0.001, 10))
    one, other = draw(st.lists(names, min_size=2, max_size=2, unique_by=str.lower))
    parameter = {
        "name": one,
        "type": "UniformFloat",
        "numerical": {"lower": lower, "upper": lower + draw(st.floats(0.5, 10)), "log": draw(st.booleans())},
    }
    choice = {
        "name": other,
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


def version_of(
    name: str, *, at: datetime, axon: str = "digits", deployer: str = "web", backends: tuple[BackendRecord, ...] = ()
) -> Version:
    """A version's record, with nothing in it that does not matter."""
    spec = VersionSpec(
        deployer=deployer,
        commit="c" * 40,
        axon_digest="d",
        event_set="e",
        events=(),
        run="r",
        backends=backends,
        routes=(),
        created_at=at,
    )
    return Version(metadata=VersionMetadata(name=name, axon=axon), spec=spec)


def axon_of(name: str = "digits", *, sensors: Sequence[dict[str, Any]], digest: str = "d1") -> DesiredAxon:
    """An axon as a commit could ask for it; a sensor without tasks has one that rolls back, its source is in `src`."""
    deployer = {"name": "web", "models": [{"name": "M", "backendModels": [{"name": "b", "trainer": "fit", "deployer": "serve"}]}]}
    build = {"artifact": "source", "buildLocation": "/src", "s2i": {"contextDir": "src"}}
    own = [{"name": "fit", "train": {"imageBuild": build}}, {"name": "serve", "deploy": {"imageBuild": build}}]
    ship = {"name": "ship", "triggers": [{"type": "Lifecycle", "task": "fit"}], "tasks": [{"deployer": deployer}]}
    guards = [{"tasks": [{"rollback": {"deployer": "web"}}], **sensor} for sensor in sensors]
    value = {
        "apiVersion": "myelin.io/v1alpha1",
        "kind": "Axon",
        "metadata": {"name": name},
        "spec": {"artifacts": [{"name": "source", "path": "/src"}], "tasks": own, "sensors": [*guards, ship]},
    }
    document = parse_document(LoadedDocument(file="axon.yaml", value=value, lines={(): 1}))
    assert isinstance(document, Axon)
    return DesiredAxon(name=name, file=f"axons/{name}/axon.yaml", document=document, digest=digest, trees={"src": "4" * 40})


def chain(statements: Sequence[Statement], *, at: datetime) -> list[Entry]:
    """Statements as a ledger's entries."""
    entries: list[Entry] = []
    for number, statement in enumerate(statements, start=1):
        previous = entries[-1].digest if entries else None
        entries.append(entry_of(statement, number=number, at=at, previous=previous, sign=lambda _: ""))
    return entries
