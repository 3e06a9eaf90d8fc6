import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.adapters.documents import YamlDocuments
from policies.canonical import canonical
from policies.errors import DesiredStateError
from policies.parsing import defaulted, parse_document
from policies.terms.axon import Axon
from policies.terms.document import LoadedDocument
from tests.properties.strategies import axons, shuffled

DOCUMENTS = YamlDocuments()


def parse(value: dict[str, Any]) -> Axon:
    document = parse_document(LoadedDocument(file="axon.yaml", value=value, lines={(): 1}))
    assert isinstance(document, Axon)
    return document


def mappings(value: Any) -> list[dict[str, Any]]:
    """All mappings of a document whose keys are ours."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    found = [part for item in inner for part in mappings(item)]
    return [value, *found] if isinstance(value, dict) else found


@settings(max_examples=40)
@given(axons())
def test_an_axon_written_out_with_its_defaults_says_the_same(value: dict[str, Any]) -> None:
    axon = parse(value)
    again = parse_document(DOCUMENTS.load(DOCUMENTS.render(defaulted(axon)), "axon.yaml"))
    assert isinstance(again, Axon)
    assert again == axon
    assert canonical(defaulted(again)) == canonical(defaulted(axon))


@given(axons(), st.data())
def test_the_order_of_keys_says_nothing(value: dict[str, Any], data: st.DataObject) -> None:
    assert canonical(defaulted(parse(shuffled(value, data.draw)))) == canonical(defaulted(parse(value)))


@given(axons())
def test_an_old_spelling_says_what_todays_says(value: dict[str, Any]) -> None:
    today = canonical(defaulted(parse(value)))
    value["apiVersion"] = "myelinproj.io/v1alpha1"
    for task in value["spec"]["tasks"]:
        body = task.get("train") or task["deploy"]
        if "imageBuild" in body:
            s2i = dict(body["imageBuild"]["s2i"])
            s2i["buiderImage"] = s2i.pop("builderImage")
            body["imageBuild"] = {**body["imageBuild"], "s2i": s2i}
        if "env" in body:
            task["env"] = body.pop("env")
        for parameter in body.get("hpTuning", {}).get("params", ()):
            if "numerical" in parameter:
                parameter["numerical"].update({key: repr(parameter["numerical"][key]) for key in ("lower", "upper")})
    deployer = value["spec"]["sensors"][1]["tasks"][0]["deployer"]
    deployer["deploymentType"] = "canary"
    rule = deployer["rolloutSpec"][0]
    rule["shadows"] = rule.pop("shadow")
    rule["matches"] = []
    rule["destinations"] = [{"destination": 0, "weight": "100"}]
    deployer["routes"][0]["dag"][0]["dependency"] = "/predict"
    assert canonical(defaulted(parse(value))) == today


@settings(max_examples=60)
@given(axons(), st.randoms(use_true_random=False))
def test_a_misspelt_key_is_named_with_its_line_and_the_nearest(value: dict[str, Any], chance: random.Random) -> None:
    part = chance.choice([item for item in mappings(value) if item])
    key = chance.choice([key for key in part if len(key) > 3])
    wrong = key[:-2] + key[-1] + key[-2] if key[-1] != key[-2] else key + "x"
    marker = list(part).index(key)
    items = list(part.items())
    items[marker] = (wrong, items[marker][1])
    part.clear()
    part.update(items)
    text = DOCUMENTS.render(value)
    with pytest.raises(DesiredStateError) as caught:
        parse_document(DOCUMENTS.load(text, "axon.yaml"))
    if key == "kind":
        assert caught.value.reason == "UnknownKind"
        return
    unknown = [fault for fault in caught.value.faults if fault.reason == "UnknownKey"]
    assert unknown
    assert all(f"`{wrong}`" in fault.message and f"`{key}`" in fault.message for fault in unknown)
    lines = text.decode().splitlines()
    assert all(f"{wrong}:" in lines[fault.line - 1] for fault in unknown)


@settings(max_examples=20)
@given(axons())
def test_every_fault_of_many_is_told(value: dict[str, Any]) -> None:
    for task in value["spec"]["tasks"]:
        task["wrong"] = 1
    with pytest.raises(DesiredStateError) as caught:
        parse_document(DOCUMENTS.load(DOCUMENTS.render(value), "axon.yaml"))
    assert len(caught.value.faults) == len(value["spec"]["tasks"])
    assert len({fault.line for fault in caught.value.faults}) == len(value["spec"]["tasks"])
