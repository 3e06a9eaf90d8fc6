"""Plain values -> documents: every fault at once, each with file and line.

Law: a document that parses says the same after its defaults are written out, whatever the order of its keys.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import AliasChoices, BaseModel, ValidationError
from pydantic.fields import FieldInfo

from policies.crossing import cross_faults
from policies.errors import DesiredStateError, Fault
from policies.salvage import is_made_up, salvage
from policies.terms.axon import Axon, EnvVar
from policies.terms.document import LoadedDocument
from policies.terms.project import Project
from policies.terms.release import Release
from policies.terms.version import Version

KINDS: Mapping[str, type[Project] | type[Axon] | type[Release] | type[Version]] = {
    "Project": Project,
    "Axon": Axon,
    "Release": Release,
    "Version": Version,
}


def parse_document(loaded: LoadedDocument) -> Project | Axon | Release | Version:
    """Read one document.

    Raises:
        DesiredStateError: Anything is wrong with it; carries all faults, sorted by line.
    """
    value = loaded.value
    if not isinstance(value, Mapping):
        raise _error(
            [Fault(file=loaded.file, line=1, path="", reason="NotAMapping", message=f"expected a mapping, got {_kind(value)}")]
        )
    kind = str(value.get("kind") or "")
    if kind not in KINDS:
        line = loaded.lines.get(("kind",), 1)
        message = f"expected one of {', '.join(KINDS)}, got {kind or 'nothing'}"
        raise _error([Fault(file=loaded.file, line=line, path="kind", reason="UnknownKind", message=message)])
    model = KINDS[kind]
    try:
        document = model.model_validate(value, by_alias=True, by_name=False)
    except ValidationError as error:
        found = _without_echoes([_fault(loaded, model, item) for item in error.errors()])
        raise _error([*found, *_faults_between(loaded, model)]) from None
    faults = list(cross_faults(document, loaded)) if isinstance(document, (Axon, Release)) else []
    if faults:
        raise _error(faults)
    return document


def defaulted(axon: Axon) -> Mapping[str, Any]:
    """An axon after defaults, in today's spelling, as JSON values: what its digest is made of."""
    value = axon.model_dump(mode="json", by_alias=True)
    value["apiVersion"] = "myelin.io/v1alpha1"
    return value


def nearest(word: str, known: list[str]) -> str:
    """The known word most like `word`; empty when none is."""
    lowered = {item.lower(): item for item in known}
    found = difflib.get_close_matches(word.lower(), list(lowered), n=1, cutoff=0.5)
    return lowered[found[0]] if found else ""


def _error(faults: list[Fault]) -> DesiredStateError:
    ordered = tuple(sorted(faults))
    return DesiredStateError(str(ordered[0]), reason=ordered[0].reason, faults=ordered)


def _without_echoes(faults: list[Fault]) -> list[Fault]:
    """A list whose entries are all wrong also counts as empty, one value of no allowed type is told for each type."""
    empty = "expected at least one entry, got none"
    first = {(fault.path, fault.reason): fault for fault in reversed(faults) if fault.reason == "WrongType"}
    return [
        fault
        for fault in faults
        if first.get((fault.path, fault.reason), fault) is fault
        if fault.message != empty or not any(other.path.startswith(f"{fault.path}[") for other in faults)
    ]


def _fault(loaded: LoadedDocument, model: type[BaseModel], item: Any) -> Fault:
    path = tuple(_real_path(_old_place(item["loc"], loaded.value), loaded.value))
    line = next(loaded.lines[path[:end]] for end in range(len(path), -1, -1) if path[:end] in loaded.lines)
    reason, message = _words(item, path, model)
    return Fault(file=loaded.file, line=line, path=_dotted(path), reason=reason, message=message)


def _faults_between(loaded: LoadedDocument, model: type[BaseModel]) -> Iterator[Fault]:
    """Faults between the parts of a document that has others as well, as far as they can be told from these."""
    saved = salvage(model, loaded.value, lambda loc, value: tuple(_real_path(_old_place(loc, value), value)))
    if saved is None or not isinstance(saved[0], (Axon, Release)):
        return
    for fault in cross_faults(saved[0], loaded):
        path = tuple(int(part) if part.isdigit() else part for part in re.findall(r"[^.\[\]]+", fault.path))
        if not is_made_up(path, fault.message, saved[1], loaded.value):
            yield fault


def _old_place(loc: tuple[Any, ...], value: Any) -> tuple[Any, ...]:
    """Variables of an `env` beside the kind were read behind the kind's own: back to where they stand."""
    if len(loc) < 6 or loc[:2] != ("spec", "tasks") or loc[4] != "env" or not isinstance(loc[5], int):
        return loc
    task = value["spec"]["tasks"][loc[2]]
    own = len(task[loc[3]].get("env") or ())
    return (*loc[:3], "env", loc[5] - own, *loc[6:]) if loc[5] >= own else loc


def _real_path(loc: tuple[Any, ...], value: Any) -> Iterator[str | int]:
    """The path as the document has it: without the groups and union arms that parsing put in between."""
    for part in loc:
        if isinstance(part, int):
            if isinstance(value, list) and part < len(value):
                value = value[part]
                yield part
            # a flat list of sensor tasks was read as groups of one: the group's own index is not in the document
        elif isinstance(value, Mapping):
            value = value.get(part)
            yield part


def _words(item: Any, path: tuple[str | int, ...], model: type[BaseModel]) -> tuple[str, str]:
    got, context = _show(item.get("input")), item.get("ctx") or {}
    match item["type"]:
        case "extra_forbidden":
            close = nearest(str(path[-1]), _known_keys(model, path[:-1]))
            hint = f"; the nearest known is `{close}`" if close else ""
            return "UnknownKey", f"unknown key `{path[-1]}`{hint}"
        case "missing":
            return "Missing", f"expected `{item['loc'][-1]}`, got nothing"
        case "value_error":
            return "Invalid", str(context.get("error", item["msg"]))
        case "literal_error" | "enum":
            return "NotAllowed", f"expected {context.get('expected', 'another value')}, got {got}"
        case "greater_than":
            return "OutOfRange", f"expected a number above {context['gt']:g}, got {got}"
        case "greater_than_equal":
            return "OutOfRange", f"expected a number of at least {context['ge']:g}, got {got}"
        case "less_than_equal":
            return "OutOfRange", f"expected a number of at most {context['le']:g}, got {got}"
        case kind if kind.startswith(("int_", "float_")):
            return "WrongType", f"expected a {'whole number' if kind.startswith('int') else 'number'}, got {got}"
        case kind if kind.startswith("string_pattern"):
            return "NotAllowed", f"expected lower-case letters, digits and dashes, at most 53, got {got}"
        case kind if kind.startswith("string"):
            return "WrongType", f"expected text, got {got}"
        case kind if kind.startswith("bool"):
            return "WrongType", f"expected true or false, got {got}"
        case kind if kind.startswith(("model", "dict")):
            return "WrongType", f"expected a mapping, got {got}"
        case kind if kind.startswith(("tuple", "list")):
            return "WrongType", f"expected a list, got {got}"
        case "too_short":
            return "Missing", "expected at least one entry, got none"
        case _:
            return "Invalid", f"{item['msg'][:1].lower()}{item['msg'][1:]}, got {got}"


def _known_keys(model: type[BaseModel], path: tuple[str | int, ...]) -> list[str]:
    """Keys that a document may have at `path`."""
    current: Any = model
    for part in path:
        if isinstance(part, int):
            continue
        found = next((item for name, item in current.model_fields.items() if part in _spellings(name, item)), None)
        nested = _nested(found.annotation) if found else EnvVar if part == "env" else None
        if nested is None:
            return []
        current = nested
    keys = [item.serialization_alias or item.alias or name for name, item in current.model_fields.items()]
    return [*keys, *getattr(current, "OLD_KEYS", ())]


def _spellings(name: str, item: FieldInfo) -> set[str]:
    """All that a field is called in a document."""
    old = item.validation_alias.choices if isinstance(item.validation_alias, AliasChoices) else [item.validation_alias]
    return {text for text in (name, item.alias, item.serialization_alias, *old) if isinstance(text, str)}


def _nested(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for part in getattr(annotation, "__args__", ()):
        if (found := _nested(part)) is not None:
            return found
    return None


def _dotted(path: tuple[str | int, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def _show(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, (Mapping, list, tuple)):
        return _kind(value)
    return str(value)[:80]


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a mapping"
    return "a list" if isinstance(value, (list, tuple)) else "nothing" if value is None else f"{str(value)[:40]!r}"
