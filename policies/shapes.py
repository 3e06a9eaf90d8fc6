"""Document types -> what their places take, as JSON Schema or as a structural schema of Kubernetes.

Law: what the reference lets be written, in today's spelling or an old one, a schema takes; a null beside the one key of a
sensor's task it does not. A schema takes more than the parser: references, sums and keys that go together are the parser's
part. It holds no defaults, so that an API server writes none into an object: what was not said stays unsaid.

Structural schemas know one type for a place, or any. Where documents have several, as in numbers that may be quoted, any
is said, and each type that is not meant gets bounds that nothing fits. There, an API server that is told to be strict
names unknown keys as anywhere, but server-side apply drops them without a word.
Source: Kubernetes, Custom Resources, "Specifying a structural schema".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import AliasChoices, BaseModel
from pydantic.fields import FieldInfo

from policies.terms.axon import Destination, EnvVar, Free, Promotion, PromotionStep, RolloutRule, Sensor, SensorTask, Task
from policies.terms.document_types import Duration, Instant, Name, Number, Quantity, Text
from policies.terms.project import (
    BUILDKIT,
    GIT_URL,
    REGISTRY_PATH,
    SECRET_NAME,
    BuildKitAddress,
    GitUrl,
    MaybeSecretName,
    RegistryPath,
    SecretName,
)

ANYTHING = "x-kubernetes-preserve-unknown-fields"
INT_OR_STRING = "x-kubernetes-int-or-string"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a place of a document takes."""

    types: tuple[str, ...] = ()
    """JSON's types; none: any."""
    nullable: bool = False
    keys: Mapping[str, Shape] = field(default_factory=dict)
    """Of an object: the keys that it may have."""
    required: tuple[str, ...] = ()
    one_of: tuple[str, ...] = ()
    """Keys of which an object has exactly one; said only where nothing else refuses unknown keys."""
    values: Shape | None = None
    """Of a mapping: what its values take."""
    items: Shape | None = None
    choices: tuple[str, ...] = ()
    rules: Mapping[str, Any] = field(default_factory=dict)
    """Bounds, as JSON Schema (draft 7) writes them."""
    about: str = ""


def _like(pattern: str, about: str = "") -> Shape:
    return Shape(types=("string",), rules={"pattern": pattern}, about=about)


_NUMBER = Shape(
    types=("number", "string"),
    rules={"pattern": r"^\s*[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?\s*$"},
    about="A number, which may be quoted.",
)
SCALARS: Mapping[Any, Shape] = {
    str: Shape(types=("string",)),
    bool: Shape(types=("boolean",)),
    int: Shape(
        types=("integer", "string"),
        rules={"pattern": r"^[+-]?[0-9]+$"},
        about="A whole number, which may be quoted.",
    ),
    float: _NUMBER,
    Number: _NUMBER,
    Text: Shape(types=("string", "number"), about="Text, or a bare number."),
    Name: _like(r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$"),
    # A bare 0 is a duration, and no other number is.
    Duration: Shape(
        types=("integer", "string"),
        rules={"pattern": r"^(0|([0-9]+(\.[0-9]+)?(ms|s|m|h|d))+)$", "minimum": 0, "maximum": 0},
        about="A duration, such as 30s, 5m or 36h.",
    ),
    Quantity: Shape(
        types=("string", "number"),
        rules={"pattern": r"^[0-9]+(\.[0-9]+)?([munkMGTPE]|[KMGTPE]i|[eE][+-]?[0-9]+)?$", "minimum": 0},
        about="A quantity, such as 100Mi or 2G.",
    ),
    # Not the format date-time: that wants seconds and a zone, which documents may leave out.
    Instant: _like(
        r"^[0-9]{4}-[0-9]{2}-[0-9]{2}"
        r"([Tt _][0-9]{2}:[0-9]{2}(:[0-9]{2}([.,][0-9]+)?)?([Zz]|[+-][0-9]{2}:?[0-9]{2})?)?$",
        "An instant; in UTC where it says no zone.",
    ),
    BuildKitAddress: _like(f"^$|{BUILDKIT}", "Where a BuildKit listens, tcp://host:port or unix:///path; empty for none."),
    GitUrl: _like(GIT_URL, "A Git URL without a password, which belongs in the Secret."),
    RegistryPath: _like(REGISTRY_PATH, "The repository, as host[:port]/path."),
    SecretName: _like(SECRET_NAME, "A Secret in the same namespace."),
    MaybeSecretName: _like(f"^$|{SECRET_NAME}", "A Secret in the same namespace; empty for none."),
    Any: Shape(),
}
INSTEAD: Mapping[tuple[type[BaseModel], str], Any] = {
    (Sensor, "tasks"): tuple[SensorTask | tuple[SensorTask, ...], ...],
    (Promotion, "steps"): tuple[int | PromotionStep, ...],
    (RolloutRule, "match"): tuple[Free, ...] | Free | None,
}
"""Fields whose older or shorter forms a validator turns into today's before their type is asked."""
OLD: Mapping[type[BaseModel], Mapping[str, Any]] = {
    Task: {"env": tuple[EnvVar, ...] | None},
    Destination: {"destination": int | None},
}
"""Keys of older forms that are no fields."""
ONE_OF: Mapping[type[BaseModel], tuple[str, ...]] = {SensorTask: ("resourceExecutor", "trainer", "deployer", "rollback")}

_BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum", "pattern": "pattern"}
_RULED = {"pattern": "string", "minItems": "array"}
"""Rule -> the JSON type that it is for; all others are for numbers."""
_NONE_FITS: Mapping[str, Mapping[str, Any]] = {
    "object": {"minProperties": 1, "maxProperties": 0},
    "array": {"minItems": 1, "maxItems": 0},
    "string": {"minLength": 1, "maxLength": 0},
    "number": {"minimum": 1, "maximum": 0},
    "boolean": {"not": {"enum": [False, True]}},
}


def shape_of(hint: Any, within: tuple[type[BaseModel], ...] = ()) -> Shape:
    """What a type of the documents takes.

    Args:
        hint: A document type, a scalar of `document_types`, or made of those.
        within: The document types around it: one inside of itself is taken whatever it holds, as no schema is endless.
    Raises:
        TypeError: No type that documents are made of.
    """
    if hint in SCALARS:
        return SCALARS[hint]
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return Shape(types=("object",), values=Shape()) if hint in within else _document(hint, within)
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return Shape(types=("string",), choices=parts)
    if origin is tuple:
        return Shape(types=("array",), items=shape_of(parts[0], within))
    if origin is dict:
        return Shape(types=("object",), values=shape_of(parts[1], within))
    if origin in (Union, UnionType):
        return _any_of([shape_of(part, within) for part in parts if part is not NoneType], nullable=NoneType in parts)
    raise TypeError(f"{hint}: expected a type that documents are made of")


def draft_7(shape: Shape) -> dict[str, Any]:
    """A shape as JSON Schema of draft 7, the newest that all editors know."""
    found: dict[str, Any] = {"description": shape.about} if shape.about else {}
    types = [*shape.types, "null"] if shape.nullable and shape.types else list(shape.types)
    if types:
        found["type"] = types[0] if len(types) == 1 else types
    if shape.choices:
        found["enum"] = [*shape.choices, None] if shape.nullable else list(shape.choices)
    found |= shape.rules
    if shape.required:
        found["required"] = list(shape.required)
    if shape.keys:
        found["properties"] = {key: draft_7(item) for key, item in shape.keys.items()}
        found["additionalProperties"] = False
    if shape.values is not None and shape.values.types:
        found["additionalProperties"] = draft_7(shape.values)
    if shape.items is not None:
        found["items"] = draft_7(shape.items)
    return found


def structural(shape: Shape, *, unguarded: bool = False) -> dict[str, Any]:
    """A shape as a structural schema, whose unknown keys an API server refuses.

    Args:
        shape: What to say.
        unguarded: The API server takes unknown keys here by itself: the list around it may stand where other things may.
    """
    found: dict[str, Any] = {"description": shape.about} if shape.about else {}
    mixed = len(shape.types) > 1 and set(shape.types) != {"integer", "string"}
    if len(shape.types) == 1:
        found["type"] = shape.types[0]
    elif shape.types and not mixed:
        found[INT_OR_STRING] = True
    else:
        found[ANYTHING] = True
    if shape.nullable:
        found["nullable"] = True
    if mixed:
        for name, bounds in _NONE_FITS.items():
            found |= {} if name in _general(shape.types) else bounds
        found |= {"multipleOf": 1} if "integer" in shape.types else {}
    if shape.choices:
        # To an API server null is in no `enum`.
        named = "|".join(re.escape(choice) for choice in shape.choices)
        found |= {"pattern": f"^({named})$"} if shape.nullable else {"enum": list(shape.choices)}
    for rule, value in shape.rules.items():
        # OpenAPI 3.0 has a bound, and a mark that it is left out, where JSON Schema has two kinds of bounds.
        bound = rule.removeprefix("exclusive").lower()
        found |= {bound: value, rule: True} if rule.startswith("exclusive") else {rule: value}
    if shape.keys and (mixed or unguarded):
        found["anyOf"] = [{"required": list(keys), "maxProperties": len(keys)} for keys in _key_sets(shape)]
    elif shape.required:
        found["required"] = list(shape.required)
    if shape.keys:
        found["properties"] = {key: structural(item) for key, item in shape.keys.items()}
    if shape.values is not None:
        found |= {"additionalProperties": structural(shape.values)} if shape.values.types else {ANYTHING: True}
    if shape.items is not None:
        found["items"] = structural(shape.items, unguarded=mixed)
    return found


def _document(model: type[BaseModel], within: tuple[type[BaseModel], ...]) -> Shape:
    hints, within = get_type_hints(model, include_extras=True), (*within, model)
    keys: dict[str, Shape] = {}
    required = []
    for name, item in model.model_fields.items():
        shape = _bounded(shape_of(INSTEAD.get((model, name), hints[name]), within), item)
        today, *others = _spellings(name, item)
        keys |= {today: shape, **{other: replace(shape, about=f"Other spelling of {today}.") for other in others}}
        if item.is_required():
            required.append(today)
    keys |= {key: replace(shape_of(hint, within), about="Older form.") for key, hint in OLD.get(model, {}).items()}
    about = (model.__doc__ or "").partition("\n")[0]
    return Shape(types=("object",), keys=keys, required=tuple(required), one_of=ONE_OF.get(model, ()), about=about)


def _spellings(name: str, item: FieldInfo) -> list[str]:
    """All that a field is called in a document, today's first."""
    today = item.serialization_alias or item.alias or name
    choices = item.validation_alias.choices if isinstance(item.validation_alias, AliasChoices) else []
    return [today, *(choice for choice in choices if isinstance(choice, str) and choice != today)]


def _bounded(shape: Shape, item: FieldInfo) -> Shape:
    """The shape with the bounds that a field adds to its type's."""
    rules = dict(shape.rules)
    for part in item.metadata:
        rules |= {rule: getattr(part, sign) for sign, rule in _BOUNDS.items() if getattr(part, sign, None) is not None}
        if shortest := getattr(part, "min_length", None):
            rules["minItems" if "array" in shape.types else "minLength"] = shortest
    return replace(shape, rules=rules)


def _any_of(members: list[Shape], *, nullable: bool) -> Shape:
    """What any of several shapes takes. A rule stays where no other member has its type."""
    nullable = nullable or any(member.nullable for member in members)
    if len(members) == 1:
        return replace(members[0], nullable=nullable)
    if not all(member.types for member in members):
        return Shape(nullable=nullable)
    types = dict.fromkeys(name for member in members for name in member.types)
    if "number" in types:
        types.pop("integer", None)
    object_ = next((member for member in members if "object" in member.types), Shape())
    return Shape(
        types=tuple(types),
        nullable=nullable,
        keys=object_.keys,
        required=object_.required,
        one_of=object_.one_of,
        values=object_.values,
        items=next((member.items for member in members if "array" in member.types), None),
        rules={
            rule: value
            for member in members
            for rule, value in member.rules.items()
            if sum(_RULED.get(rule, "number") in _general(other.types) for other in members) == 1
        },
        about=object_.about,
    )


def _general(types: tuple[str, ...]) -> set[str]:
    return {"number" if name == "integer" else name for name in types}


def _key_sets(shape: Shape) -> Iterator[tuple[str, ...]]:
    """The sets of keys that an object may have. To have one of these, and no more keys than it, is to have no unknown key."""
    optional = [key for key in shape.keys if key not in (*shape.required, *shape.one_of)]
    ones: list[tuple[str, ...]] = [(key,) for key in shape.one_of] or [()]
    for one in ones:
        for size in range(len(optional) + 1):
            yield from ((*shape.required, *one, *others) for others in combinations(optional, size))
