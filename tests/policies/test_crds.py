"""Schemas: what the parser takes they take, what nobody knows they refuse, and an API server takes them."""

import importlib.util
import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from ruamel.yaml import YAML
from typer.testing import CliRunner, Result

from controller.adapters.documents import YamlDocuments
from controller.cli import app
from policies.crds import DEFINITIONS, as_yaml, custom_resource_definition, json_schema
from policies.parsing import KINDS, parse_document
from policies.shapes import SCALARS, Shape, shape_of, structural
from policies.terms.document import LoadedDocument
from policies.terms.document_types import Document, Duration, Instant, Name, Number, Text
from policies.terms.project import GitUrl, MaybeSecretName, RegistryPath, SecretName
from policies.terms.version import BackendRecord
from tests.policies.test_every_key import FILES, FOLDER, load, misspelt, strict_keys
from tests.properties.strategies import axons, version_of

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = [
    *sorted(path for path in FOLDER.iterdir() if path.suffix in (".yaml", ".yml")),
    *sorted(path for path in (ROOT / "example-repo").rglob("*.yaml")),
]
TYPES: Mapping[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "number": (int, float),
    "integer": int,
    "boolean": bool,
    "null": type(None),
}
ANYTHING, INT_OR_STRING = "x-kubernetes-preserve-unknown-fields", "x-kubernetes-int-or-string"


def is_of(value: Any, name: str) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    return isinstance(value, TYPES[name]) or (name == "integer" and isinstance(value, float) and value.is_integer())


def faults(value: Any, schema: Mapping[str, Any], place: str = "") -> Iterator[str]:
    """What a validator of OpenAPI 3.0 (as an API server's) or of JSON Schema's draft 7 says of a value."""
    if value is None and schema.get("nullable"):
        return
    names = schema.get("type", ["integer", "string"] if schema.get(INT_OR_STRING) else [])
    names = names if isinstance(names, list) else [names]
    if names and not any(is_of(value, name) for name in names):
        yield f"{place}: expected {names}, got {value!r}"
        return
    yield from (f"{place}: {rule}, got {value!r}" for rule in broken(value, schema))
    if isinstance(value, dict):
        known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        for key, item in value.items():
            if key in known:
                yield from faults(item, known[key], f"{place}.{key}")
            elif isinstance(others, Mapping):
                yield from faults(item, others, f"{place}.{key}")
            elif not others:
                yield f"{place}: unknown key {key}"
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from faults(item, schema.get("items", {}), f"{place}[{index}]")


def broken(value: Any, schema: Mapping[str, Any]) -> Iterator[str]:
    """The rules of one place that its value breaks; each is for one type."""
    # To Python true is 1.
    if "enum" in schema and not any(type(value) is type(item) and value == item for item in schema["enum"]):
        yield f"enum {schema['enum']}"
    if isinstance(value, str):
        if "pattern" in schema and not re.search(schema["pattern"], value):
            yield f"pattern {schema['pattern']}"
        if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
            yield "length"
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        lowest, above = schema.get("minimum"), schema.get("exclusiveMinimum", False)
        lowest, above = (above, True) if not isinstance(above, bool) else (lowest, above)
        highest, below = schema.get("maximum"), schema.get("exclusiveMaximum", False)
        highest, below = (below, True) if not isinstance(below, bool) else (highest, below)
        if lowest is not None and (value <= lowest if above else value < lowest):
            yield f"minimum {lowest}"
        if highest is not None and (value >= highest if below else value > highest):
            yield f"maximum {highest}"
        if value % schema.get("multipleOf", value or 1):
            yield "multiple"
    elif isinstance(value, list):
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            yield "entries"
    elif isinstance(value, dict):
        if not schema.get("minProperties", 0) <= len(value) <= schema.get("maxProperties", len(value)):
            yield "properties"
        yield from (f"required {key}" for key in schema.get("required", ()) if key not in value)
    if "not" in schema and not list(broken(value, schema["not"])):
        yield "not"
    if "anyOf" in schema and all(list(broken(value, part)) for part in schema["anyOf"]):
        yield "anyOf"


def pruned(value: Any, schema: Mapping[str, Any], place: str = "", *, unguarded: bool = False) -> Iterator[str]:
    """The keys that an API server would drop, or refuse when it is asked to be strict.

    Source: k8s.io/apiextensions-apiserver, pkg/apiserver/schema/pruning: a place that keeps unknown keys keeps those of
    its list's entries too, but not those further below.
    """
    unguarded = unguarded or schema.get(ANYTHING, False)
    if isinstance(value, dict):
        known, others = schema.get("properties", {}), schema.get("additionalProperties")
        for key, item in value.items():
            if key in known or others is not None:
                yield from pruned(item, known.get(key, others), f"{place}.{key}")
            elif not unguarded:
                yield f"{place}.{key}"
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from pruned(item, schema.get("items", {}), f"{place}[{index}]", unguarded=unguarded)


@cache
def schema_of(kind: str) -> dict[str, Any]:
    (version,) = custom_resource_definition(kind)["spec"]["versions"]
    return dict(version["schema"]["openAPIV3Schema"])


@cache
def in_git(kind: str) -> dict[str, Any]:
    return json_schema(kind)


def in_cluster(value: Mapping[str, Any]) -> dict[str, Any]:
    """A document as an object: of `metadata` only what Kubernetes knows."""
    metadata = {key: item for key, item in value["metadata"].items() if key in ("name", "namespace", "labels", "annotations")}
    return {**value, "apiVersion": "myelin.io/v1alpha1", "metadata": metadata}


def told(value: Mapping[str, Any]) -> list[str]:
    """All that both schemas have against a document."""
    kind = str(value["kind"])
    # The API server knows `metadata` by itself.
    object_ = {key: item for key, item in in_cluster(value).items() if key != "metadata"}
    names = {"metadata": {"name": value["metadata"]["name"]}}
    schema = schema_of(kind)
    return [
        *faults(dict(value), in_git(kind)),
        *faults({**object_, **names}, schema),
        *(f"pruned: {place}" for place in pruned(object_, schema)),
    ]


def mirrored(loaded: LoadedDocument) -> dict[str, Any]:
    """The document as the controller writes it into a cluster."""
    document = parse_document(loaded)
    return document.model_dump(mode="json", by_alias=True, exclude_unset=True)


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda path: path.name)
def test_a_manifest_fits_its_schemas_as_it_is_written_and_as_it_is_mirrored(file: Path) -> None:
    loaded = YamlDocuments().load(file.read_bytes(), file.name)
    assert told(loaded.value) == []
    assert told({"kind": loaded.value["kind"], **mirrored(loaded)}) == []


def test_a_versions_record_fits_its_schemas() -> None:
    backend = BackendRecord(model="m", backend="b", image="i", env={"A": "1"})
    version = version_of("v-1", at=datetime(2026, 1, 31, 12, 0, 0, 5, UTC), backends=(backend,))
    value = version.model_dump(mode="json", by_alias=True)
    value["spec"] |= {"routes": [{"path": "/", "dag": [{"model": "m"}]}], "metrics": {"a": 0.5}, "parameters": {"x": [1]}}
    value["signature"] = "c2lnbmVk"
    assert told(value) == []
    assert told({**value, "signatur": "x"}) == [": unknown key signatur", "pruned: .signatur"]


@given(axons())
@settings(max_examples=25)
def test_whatever_the_parser_takes_the_schemas_take(value: dict[str, Any]) -> None:
    assert told(value) == []
    assert told({"kind": "Axon", **mirrored(LoadedDocument(file="axon.yaml", value=value, lines={(): 1}))}) == []


@pytest.mark.parametrize("kind", FILES)
def test_each_key_misspelt_is_refused_by_both_schemas(kind: str) -> None:
    document, schema = load(kind), schema_of(kind)
    for path in strict_keys(document):
        value = misspelt(document, path, f"{path[-1]}x").value
        assert [fault for fault in faults(value, in_git(kind)) if f"unknown key {path[-1]}x" in fault], path
        if "metadata" not in path[:1] and len(path) > 1:
            assert [*pruned(value, schema), *faults(value, schema)] != [], path


@pytest.mark.parametrize("group", [False, True], ids=["alone", "in a group"])
@pytest.mark.parametrize("entry", [{"trainr": {"task": "a"}}, {"trainer": {"task": "a"}, "envv": []}, {}, 3, "a", True])
def test_an_entry_of_a_sensor_that_is_none_is_refused(entry: Any, group: bool) -> None:
    spec = {"sensors": [{"name": "s", "tasks": [[entry] if group else entry]}]}
    assert told({"kind": "Axon", "metadata": {"name": "a"}, "spec": spec}) != []


@pytest.mark.parametrize(
    ("hint", "taken", "refused"),
    [
        (Duration, ["0", 0, "1s", "1h30m", "1.5d"], ["", "5", 5, 0.5, "1w", [], {}, True]),
        (Number, [0, 0.5, -1, "0.5", " 1e-3 ", ".5", "5."], ["", "x", "1.2.3", [], {}]),
        (Text, ["", "a", 1, 0.5], [[], {}, True]),
        (Instant, ["2026-01-31T12:00:00Z", "2026-01-31T12:00Z", "2026-01-31 12:00:00.5+01:00"], ["", "today", [], {}, True]),
        (Name, ["a", "A.b-c_1", "a" * 63], ["", "-a", "a-", "a b", "a" * 64, 1, None]),
        (int, [0, -1, "80", 80.0], ["", "x", "1.5", 1.5, [], {}]),
        (float, [0, 0.5, "0.5"], ["", "x", [], {}]),
        (str, ["", "a"], [1, [], None]),
        (bool, [True], ["maybe", [], 2]),
        (
            GitUrl,
            ["https://git.example/a.git", "ssh://git@git.example:22/a", "git@git.example:a/b", "file:///a"],
            ["", "-x", "a b"],
        ),
        (GitUrl, [], ["https://ada:secret@git.example/a", "ext::sh", "https://a b/c"]),
        (RegistryPath, ["r.example/a", "r.example:5000/a/b-c__d"], ["", "r.example", "https://r.example/a", "r.example/a:1"]),
        (SecretName, ["a", "a.b-c"], ["", "A", "a_b", "-a"]),
        (MaybeSecretName, ["", "a"], ["A"]),
        (tuple[int, ...] | None, [None, [], [1]], ["a", {}, [[]]]),
        (str | int | float | bool, ["a", 1, 0.5, True], [[], {}]),
        (dict[str, str], [{}, {"a": "b"}], [[], {"a": 1}, "a"]),
    ],
)
def test_a_schema_takes_what_the_type_takes(hint: Any, taken: list[Any], refused: list[Any]) -> None:
    schema = structural(shape_of(hint))
    for value in taken:
        TypeAdapter(hint).validate_python(value)
        assert list(faults(value, schema)) == [], value
    for value in refused:
        with pytest.raises(ValidationError):
            TypeAdapter(hint).validate_python(value)
        assert value is None or list(faults(value, schema)) != [], value


TEXTS = (Duration, Name, GitUrl, RegistryPath, SecretName, MaybeSecretName)
ADAPTERS = [TypeAdapter(hint) for hint in TEXTS]
PATTERNS = [SCALARS[hint].rules["pattern"] for hint in TEXTS]
LIKE = [st.from_regex(pattern, alphabet=st.characters(max_codepoint=126)) for pattern in PATTERNS]


@given(st.data(), st.integers(0, len(TEXTS) - 1))
def test_a_pattern_says_what_its_validator_says(data: st.DataObject, which: int) -> None:
    pattern = PATTERNS[which]
    text = data.draw(LIKE[which] | st.text("azA0.-_/:@ \n15smhd", max_size=8))
    try:
        ADAPTERS[which].validate_python(text)
        is_taken = True
    except ValidationError:
        is_taken = False
    # RE2's `$`, which the API server has, is the very end.
    assert (re.search(pattern.replace("$", r"\Z"), text) is not None) == is_taken, text


# Source: Kubernetes, Custom Resources, "Specifying a structural schema", and its list of what is left out of OpenAPI.
NEVER = {
    *("$ref", "definitions", "dependencies", "deprecated", "discriminator", "id", "patternProperties", "readOnly"),
    *("writeOnly", "xml", "uniqueItems", "default"),
}
ONLY_OUTSIDE = {"description", "type", "default", "additionalProperties", "nullable", "title"}


def unstructural(schema: Mapping[str, Any], place: str, *, junctor: Mapping[str, Any] | None = None) -> Iterator[str]:
    """What of a schema breaks the rules for structural ones."""
    yield from (f"{place}: {key} is not allowed" for key in NEVER & schema.keys())
    if junctor is not None:
        own = [key for key in schema if key in ONLY_OUTSIDE or key.startswith("x-")]
        yield from (f"{place}: {key} inside of a logical junctor" for key in own)
        named = [*schema.get("properties", {}), *schema.get("required", ())]
        yield from (f"{place}: {key} is only known inside" for key in named if key not in junctor.get("properties", {}))
        return
    if schema.get(INT_OR_STRING):
        if "type" in schema:
            yield f"{place}: a type beside {INT_OR_STRING}"
    elif "type" not in schema and not schema.get(ANYTHING):
        yield f"{place}: no type"
    if schema.get("type", "object") not in ("object", "array", "string", "number", "integer", "boolean"):
        yield f"{place}: type {schema['type']}"
    if schema.get("type") == "array" and "items" not in schema:
        yield f"{place}: no items"
    if "additionalProperties" in schema and ("properties" in schema or schema["additionalProperties"] is False):
        yield f"{place}: additionalProperties"
    if None in schema.get("enum", ()):
        yield f"{place}: null in an enum"
    for key in ("minimum", "maximum"):
        if schema.get(f"exclusive{key.title()}") not in (None, True):
            yield f"{place}: exclusive{key.title()} is a number"
    if schema.get("x-kubernetes-list-type") == "map":
        keys = schema["x-kubernetes-list-map-keys"]
        yield from (f"{place}: map key {key} not required" for key in keys if key not in schema["items"]["required"])
    for key in ("allOf", "anyOf", "oneOf"):
        for index, part in enumerate(schema.get(key, ())):
            yield from unstructural(part, f"{place}.{key}[{index}]", junctor=schema)
    if "not" in schema:
        yield from unstructural(schema["not"], f"{place}.not", junctor=schema)
    for key, part in schema.get("properties", {}).items():
        yield from unstructural(part, f"{place}.{key}")
    for key in ("items", "additionalProperties"):
        if schema.get(key):
            yield from unstructural(schema[key], f"{place}.{key}")


@pytest.mark.parametrize("kind", KINDS)
def test_a_schema_is_structural(kind: str) -> None:
    schema = schema_of(kind)
    assert list(unstructural(schema, kind)) == []
    assert schema["type"] == "object"
    assert set(schema["properties"]["metadata"].get("properties", {})) <= {"name"}
    assert {"spec", "status"} <= set(schema["properties"])
    assert "patternProperties" not in json.dumps(json_schema(kind))


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {}},
        {"type": "object", "additionalProperties": False},
        {"type": "array"},
        {"type": "string", "default": "a"},
        {"type": "string", "nullable": True, "enum": ["a", None]},
        {"type": "object", "anyOf": [{"required": ["a"]}]},
        {"type": "object", "properties": {"a": {"$ref": "#"}}},
        {INT_OR_STRING: True, "type": "string"},
        {"x-kubernetes-preserve-unknown-fields": True, "anyOf": [{"type": "string"}]},
    ],
)
def test_a_schema_that_is_not_structural_is_seen(schema: dict[str, Any]) -> None:
    assert list(unstructural(schema, "it")) != []


def test_only_free_parts_keep_what_nobody_knows() -> None:
    """Where no type of ours is inside; and where several types may stand, with bounds for all others."""

    def free(schema: Mapping[str, Any], place: str) -> Iterator[str]:
        if schema.get(ANYTHING) and not {"not", "minProperties", "minItems", "minLength"} & schema.keys():
            yield place
        for key, part in schema.get("properties", {}).items():
            yield from free(part, f"{place}.{key}".lstrip("."))
        for key in ("items", "additionalProperties"):
            if key in schema:
                yield from free(schema[key], f"{place}[]")

    def last(kind: str) -> set[str]:
        return {place.rsplit(".", 1)[-1] for place in free(schema_of(kind), "")}

    assert last("Release") == set()
    assert last("Project") == set()
    assert last("Version") == {"parameters", "routes[]"}
    assert last("Axon") == {
        *("s3", "dvc", "volumeClaimTemplate", "volume", "sidecars[]", "tfJobSpec", "resources", "valueFrom", "secretFrom"),
        *("volumes[]", "volumeMounts[]", "securitySpec[]", "servers[]", "match[]", "matches[]", "condition[][]", "inputs[]"),
    }


class Branch(Document):
    """One that holds more of its kind."""

    name: str
    branches: tuple["Branch", ...] = ()


def test_a_document_inside_of_itself_ends() -> None:
    assert structural(shape_of(Branch)) == {
        "description": "One that holds more of its kind.",
        "type": "object",
        "required": ["name"],
        "properties": {
            "name": {"type": "string"},
            "branches": {"type": "array", "items": {"type": "object", ANYTHING: True}},
        },
    }
    with pytest.raises(TypeError, match="expected a type that documents are made of"):
        shape_of(complex)
    assert shape_of(Any) == Shape()


COLUMNS = {
    "Project": ["Revision", "Ready", "Reason", "Age", "Message wide"],
    "Axon": ["Revision", "Version", "Share integer", "Ready", "Reason"],
    "Release": ["Axon", "Version", "Share integer", "Traffic", "Ready", "Reason"],
    "Version": ["Axon", "Share integer", "Ready", "Reason", "URL wide"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_definition_names_its_kind_and_columns(kind: str) -> None:
    definition = custom_resource_definition(kind)
    spec = definition["spec"]
    (version,) = spec["versions"]
    assert definition["metadata"]["name"] == f"{spec['names']['plural']}.{spec['group']}" == f"{kind.lower()}s.myelin.io"
    assert (spec["scope"], version["name"], version["served"], version["storage"]) == ("Namespaced", "v1alpha1", True, True)
    assert (spec["names"]["categories"], version["subresources"]) == (["myelin"], {"status": {}})
    columns = version["additionalPrinterColumns"]
    shown = [
        " ".join([item["name"], *(["integer"] if item["type"] == "integer" else []), *(["wide"] if "priority" in item else [])])
        for item in columns
    ]
    assert shown == COLUMNS[kind]
    status = version["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]
    for item in columns:
        word = re.fullmatch(r"\.status\.(\w+)(?:\[.*)?", item["jsonPath"].partition("[")[0])
        assert item["name"] == "Age" or (word is not None and word[1] in status)


def test_short_names_and_descriptions_are_each_their_own() -> None:
    assert len({definition.short_name for definition in DEFINITIONS.values()}) == len(KINDS) == len(DEFINITIONS)
    assert len({definition.about for definition in DEFINITIONS.values()}) == len(KINDS)


def test_the_charts_definitions_are_what_the_types_say() -> None:
    place = ROOT / "docs/reference/generate.py"
    found = importlib.util.spec_from_file_location("generate_crds", place)
    assert found is not None
    assert found.loader is not None
    generate = importlib.util.module_from_spec(found)
    found.loader.exec_module(generate)
    written = dict(generate.definitions())
    assert {path.name for path in written} == {path.name for path in generate.CRDS.iterdir()}
    for path, text in written.items():
        assert path.read_text() == text, "run `make docs`"


def read(text: str, version: tuple[int, int]) -> Any:
    yaml = YAML(typ="safe", pure=True)
    yaml.version = version
    return yaml.load(text)


WORDS = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=12),
    st.sampled_from(
        ["on", "No", "y", "1e3", "0x1f", "1:30", "null", "~", "a: b", "a #b", "- a", "", " a", "a ", "*a", "é, ü; ß"]
    ),
)
LEAVES = st.one_of(WORDS, st.booleans(), st.none(), st.integers(-(2**53), 2**53))
VALUES = st.recursive(
    LEAVES, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(WORDS, inner, max_size=3)), max_leaves=12
)


@given(st.dictionaries(WORDS, VALUES, min_size=1, max_size=3))
@settings(max_examples=100)
def test_yaml_says_the_same_to_old_readers_and_new_ones(value: dict[str, Any]) -> None:
    text = as_yaml(value)
    assert read(text, (1, 1)) == value
    assert read(text, (1, 2)) == value


def test_the_key_that_old_readers_take_for_true_is_quoted() -> None:
    assert '"on":\n' in as_yaml(custom_resource_definition("Project"))


def ask(*words: str) -> Result:
    return CliRunner().invoke(app, ["schema", *words])


def test_the_command_says_what_the_types_say() -> None:
    assert json.loads(ask().stdout) == [json_schema(kind) for kind in KINDS]
    assert json.loads(ask("AXON").stdout) == json.loads(ask("axon", "-o", "json").stdout) == json_schema("Axon")
    assert json.loads(ask("--crd", "-o", "json").stdout) == [custom_resource_definition(kind) for kind in KINDS]
    for form in ("text", "yaml"):
        first, *documents = ask("--crd", "-o", form).stdout.split("---\n")
        assert first == ""
        assert [read(text, (1, 1)) for text in documents] == [custom_resource_definition(kind) for kind in KINDS]
    assert YamlDocuments().load(ask("version", "-o", "yaml").stdout.encode(), "s").value == json_schema("Version")
    wrong = ask("pipeline")
    assert (wrong.exit_code, wrong.stdout) == (2, "")
    assert "expected one of project, axon, release, version, got pipeline" in " ".join(wrong.stderr.split())
