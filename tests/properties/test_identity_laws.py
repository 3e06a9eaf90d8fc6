import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from controller.adapters.documents import YamlDocuments
from policies.identity import axon_digest, event_id, event_set, image_identity, object_name, run_id, task_run_id, trial_run_id
from policies.identity import version_id as name_version
from policies.parsing import defaulted, parse_document
from policies.serving import proxy_name, server_name
from policies.terms.axon import Axon
from policies.terms.task import ImageSpec
from policies.terms.version import BackendRecord
from tests.properties.strategies import axons, digests, instants, names, shuffled, unicode, version_of

ROOT = Path(__file__).resolve().parents[2]
TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
MANIFEST = b"""apiVersion: myelin.io/v1alpha1
kind: Axon
metadata: {name: digits, labels: {stra\xc3\x9fe: \xc4\xb0}}
spec:
  artifacts: [{name: source, path: /src}]
  tasks:
    - name: tune
      train:
        lossMetric: rmse
        imageBuild: {artifact: source, buildLocation: /src, s2i: {contextDir: train}}
        hpTuning: {minBudget: 1, maxBudget: "9", params: [{name: lr, type: UniformFloat, numerical: {lower: "1e-4", upper: 0.1}}]}
  sensors:
    - {name: go, tasks: [{trainer: {task: tune}}]}
"""
IMAGE = ImageSpec(repository="digits", commit="c" * 40, folder="src/train", tree=TREE, base="host", event_set="sha256:e")
texts = st.text(unicode, max_size=6)
words = st.text("ab-", min_size=1, max_size=3)


def parse(value: dict[str, Any] | bytes) -> Axon:
    text = value if isinstance(value, bytes) else DOCUMENTS.render(value)
    document = parse_document(DOCUMENTS.load(text, "axon.yaml"))
    assert isinstance(document, Axon)
    return document


DOCUMENTS = YamlDocuments()


def all_names() -> dict[str, str]:
    """One name of every kind, of inputs that a machine could see differently: case, numbers, order, what is not ASCII."""
    digest = axon_digest({"name": "digits", "İ": [0.1, 1e21, None]}, {"src/train": TREE, "Ä": "", "I": TREE})
    event = event_id("Commit", "digits", "go", "commit", {"axonDigest": digest, "İ": 0.1, "n": 1e21})
    run = run_id("digits", digest, "go", {event, "b", "a", "I", "ı"})
    task = task_run_id(run, "tune")
    return {
        "manifest": axon_digest(defaulted(parse(MANIFEST)), {"src/train": TREE}),
        "axon": digest,
        "event": event,
        "event set": event_set({event, "b", "a", "I", "ı"}),
        "run": run,
        "task run": task,
        "trial run": trial_run_id(task, "0_0_14", 2),
        "image": image_identity(IMAGE),
        "version": name_version(commit="c" * 40, events=event, images={"a", "b", "I"}, models={"c", "d"}),
        "plain object": object_name("digits", "tune"),
        "odd object": object_name("DIGITS", "İıß", "tune"),
        "long object": object_name("digits", "x" * 70),
    }


def test_names_never_change() -> None:
    assert {kind: name for kind, name in all_names().items() if kind != "manifest"} == {
        "axon": "sha256:7e8bbf7c9279a72c9dd60147deaba0e89043a511022f8dd32ad2c75d9c771204",
        "event": "sha256:bad150097f918e46c37865bf4077574dd99249ab45493f5216149f781633dac0",
        "event set": "sha256:672db500eb64bcfd0c5b5b1c4e0f73deaad41096be651c080004a203091a8da1",
        "run": "sha256:8a484cc0a4f0605c5f772bb7c64e5ec848ded452bd73c11c7e5be68700ec37af",
        "task run": "sha256:f8183d9705162835bf9e3425cffb7753a451d574b5ae12739cfa7e4e75ade0e6",
        "trial run": "sha256:916b7073b1c3adbd96f76d8b9eced563cb210749865f3b9973970e351c7ca918",
        "image": "sha256:aeabef675c937260a51e6fc54ace108660ab02f5aaba8532ee75c518a4062aa4",
        "version": "v-zbbcrzvnf2",
        "plain object": "digits-tune",
        "odd object": "digits-i-tune--m571pyc0",
        "long object": "digits-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx--zcx47649",
    }


def test_the_digest_of_a_manifest_outlives_an_upgrade() -> None:
    """When this fails, every axon that is deployed somewhere starts anew with the next release of Myelin."""
    assert all_names()["manifest"] == "sha256:0331db70fd27699d32f8d7a50bd410c3a189faac69aaf160edf2146928b432ba"


@pytest.mark.parametrize(
    "surroundings",
    [
        {"PYTHONHASHSEED": "1", "TZ": "Pacific/Kiritimati", "LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8"},
        {"PYTHONHASHSEED": "4294967295", "TZ": "America/St_Johns", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONOPTIMIZE": "2"},
    ],
    ids=["a Turkish machine", "a plain C machine"],
)
def test_names_are_the_same_on_any_machine(surroundings: dict[str, str]) -> None:
    program = "import json; from tests.properties.test_identity_laws import all_names; print(json.dumps(all_names()))"
    env = {**os.environ, **surroundings}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == all_names()


@settings(max_examples=30)
@given(axons(), st.dictionaries(names, st.just(TREE), max_size=4), st.data())
def test_an_axon_digest_is_free_of_the_order_of_keys_and_folders(value: dict[str, Any], trees: dict[str, str], data: Any) -> None:
    again = axon_digest(defaulted(parse(shuffled(value, data.draw))), shuffled(trees, data.draw))
    assert again == axon_digest(defaulted(parse(value)), trees)


@settings(max_examples=30)
@given(axons(), st.dictionaries(names, st.just(TREE), min_size=1, max_size=4), st.data())
def test_another_tree_or_another_manifest_is_another_axon(value: dict[str, Any], trees: dict[str, str], data: Any) -> None:
    axon = parse(value)
    name = axon_digest(defaulted(axon), trees)
    folder = data.draw(st.sampled_from(sorted(trees)))
    others = [{**trees, folder: "5" * 40}, {**trees, folder: ""}, {key: trees[key] for key in trees if key != folder}]
    assert name not in [axon_digest(defaulted(axon), other) for other in others]
    value["spec"]["tasks"][0]["train"]["lossMetric"] = value["spec"]["tasks"][0]["train"].get("lossMetric", "") + "x"
    assert name != axon_digest(defaulted(parse(value)), trees)


def each_part_counts(name: Callable[..., str], parts: dict[str, Any], others: dict[str, Any]) -> None:
    """Changing any one part changes the name."""
    first = name(**parts)
    assert first == name(**parts)
    for key, other in others.items():
        assert (name(**{**parts, key: other}) == first) == (other == parts[key]), key


subjects = st.dictionaries(texts, texts | st.integers(-9, 9) | st.none(), max_size=3)
events = st.fixed_dictionaries({"kind": texts, "axon": texts, "sensor": texts, "trigger": texts, "subject": subjects})


@given(events, events)
def test_an_event_is_named_by_each_of_its_parts(one: dict[str, Any], other: dict[str, Any]) -> None:
    each_part_counts(event_id, one, other)


@given(events, events)
def test_different_events_have_different_names(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert (event_id(**one) == event_id(**other)) == (one == other)


@given(st.lists(words, max_size=4), st.lists(words, max_size=4))
def test_event_sets_are_equal_when_the_same_events_are_in_them(one: list[str], other: list[str]) -> None:
    assert (event_set(one) == event_set(other)) == (set(one) == set(other))
    assert (run_id("a", "d", "s", one) == run_id("a", "d", "s", other)) == (set(one) == set(other))


runs = st.fixed_dictionaries({"axon": words, "digest": words, "sensor": words, "events": st.tuples(words)})


@given(runs, runs)
def test_a_run_is_named_by_axon_digest_sensor_and_events(one: dict[str, Any], other: dict[str, Any]) -> None:
    each_part_counts(run_id, one, other)
    assert (run_id(**one) == run_id(**other)) == (one == other)


@given(st.tuples(words, words), st.tuples(words, words))
def test_a_task_run_is_named_by_run_and_task_wherever_one_ends(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert (task_run_id(*one) == task_run_id(*other)) == (one == other)


trials = st.tuples(words, st.text("01_", max_size=3), st.integers(0, 11))


@given(trials, trials)
def test_a_trial_run_is_named_by_task_run_trial_and_rung(one: tuple[str, str, int], other: tuple[str, str, int]) -> None:
    assert (trial_run_id(*one) == trial_run_id(*other)) == (one == other)


@given(words, words)
def test_names_of_different_kinds_are_different(one: str, other: str) -> None:
    found = [
        event_set([one, other]),
        event_id(one, other, one, other, {}),
        run_id(one, other, one, [other]),
        task_run_id(one, other),
        trial_run_id(one, other, 0),
        axon_digest({one: other}, {one: other}),
        image_identity(replace(IMAGE, repository=one, tree=other)),
    ]
    assert len(set(found)) == len(found)


@given(st.data())
def test_an_image_is_named_by_what_goes_in_and_not_by_who_asked_for_it(data: st.DataObject) -> None:
    counts = ("repository", "tree", "base", "builder", "dockerfile")
    labels = ("commit", "event_set")
    changed = {key: data.draw(words, label=key) for key in data.draw(st.sets(st.sampled_from((*counts, *labels)), min_size=1))}
    same = image_identity(replace(IMAGE, **changed)) == image_identity(IMAGE)
    assert same == (not set(changed) & set(counts))


made_of = st.fixed_dictionaries(
    {
        "commit": words,
        "events": words,
        "images": st.frozensets(digests, max_size=3),
        "models": st.frozensets(digests, max_size=3),
    }
)


@given(made_of, made_of, st.data())
def test_a_version_is_named_by_what_is_in_it(one: dict[str, Any], other: dict[str, Any], data: st.DataObject) -> None:
    again = {key: data.draw(st.permutations([*one[key], *one[key]])) for key in ("images", "models")}
    assert name_version(**{**one, **again}) == name_version(**one)
    each_part_counts(name_version, one, other)
    assert (name_version(**one) == name_version(**other)) == (one == other)
    assert re.fullmatch("v-[0-9a-hjkmnp-tv-z]{10}", name_version(**one))


@given(made_of)
def test_an_image_in_a_models_place_is_another_version(parts: dict[str, Any]) -> None:
    assume(parts["images"] != parts["models"])
    assert name_version(**parts) != name_version(**{**parts, "images": parts["models"], "models": parts["images"]})


@given(st.lists(st.text(unicode, max_size=40), min_size=1, max_size=4), st.integers(20, 63))
def test_an_object_name_is_one_that_kubernetes_takes(parts: list[str], limit: int) -> None:
    name = object_name(*parts, limit=limit)
    assert len(name) <= limit
    assert re.fullmatch("[a-z0-9]([a-z0-9-]*[a-z0-9])?", name)


@given(st.lists(names, min_size=1, max_size=4), st.lists(names, min_size=1, max_size=4))
def test_different_names_give_different_object_names(one: list[str], other: list[str]) -> None:
    assume("-".join(one) != "-".join(other))
    assert (object_name(*one) == object_name(*other)) == (one == other)


@settings(max_examples=50)
@given(st.lists(st.from_regex("[a-z]{1,2}(-[a-z]){0,2}", fullmatch=True), min_size=2, max_size=4), st.data())
def test_where_one_part_ends_and_the_next_begins_counts(parts: list[str], data: st.DataObject) -> None:
    letters = "-".join(parts).split("-")
    cut = data.draw(st.integers(1, len(letters) - 1))
    other = ["-".join(letters[:cut]), "-".join(letters[cut:])]
    assert (object_name(*parts) == object_name(*other)) == (parts == other)


@given(st.lists(texts.filter(bool), min_size=1, max_size=3), st.integers(1, 3))
def test_no_parts_can_be_chosen_to_take_the_name_of_others(parts: list[str], pieces: int) -> None:
    name = object_name(*parts)
    chosen = name.rsplit("-", pieces - 1)
    assume(chosen != parts)
    assert object_name(*chosen) != name


kebabs = st.from_regex("[ab](-[ab])?", fullmatch=True)


@example(("digits-eu", "web"), ("digits", "eu-web"))
@given(st.tuples(kebabs, kebabs), st.tuples(kebabs, kebabs))
def test_two_deployers_never_share_a_proxy(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert (proxy_name(*one) == proxy_name(*other)) == (one == other)


@given(instants, st.lists(st.tuples(st.text("aBb-", min_size=1, max_size=2), st.text("aBb", min_size=1, max_size=2)), min_size=2))
def test_two_backends_of_a_version_never_share_a_server(at: Any, pairs: list[tuple[str, str]]) -> None:
    backends = tuple(BackendRecord(model=model, backend=backend, image="sha256:x") for model, backend in pairs)
    version = version_of("v-0123456789", at=at, backends=backends)
    assert len({server_name(version, backend) for backend in backends}) == len(set(pairs))
