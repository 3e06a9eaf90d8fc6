from datetime import UTC, datetime
from pathlib import Path

import pytest

from controller.adapters.documents import YamlDocuments
from policies.errors import DesiredStateError
from policies.parsing import defaulted, parse_document
from policies.terms.axon import Axon

TEN_MISTAKES = b"""apiVersion: myelin.io/v1alpha1
kind: Axon
metadata: {name: digits}
spec:
  artifact: []
  tasks:
    - name: tune
      train:
        lossMetrc: accuracy
        lossMetricSelector: bigger
        hpTuning:
          minBudget: 0
          maxBudget: ten
          numIteration: 1.5
          params:
            - name: lr
              type: UniformFlot
            - name: units
              type: UniformInteger
              numerical: {lower: "8", upper: "2"}
    - container: {}
  sensors:
    - name: s
      when: sometimes
      tasks: []
"""

OLD_SPELLINGS = b"""apiVersion: myelinproj.io/v1alpha1
kind: Axon
metadata: {name: graph}
spec:
  artifacts: [{name: source, path: /src, git: {repo: "https://example.org/r.git", revision: master}}]
  tasks:
    - name: serve
      env: [{name: A, value: 1}]
      deploy:
        imageBuild: {artifact: source, s2i: {buiderImage: "docker.io/x:v1", contextDir: a}}
  sensors:
    - name: s
      tasks:
        - deployer:
            name: d
            rolloutSpec:
              - match: []
                destinations: [{destinationIndex: 0, weight: 80}, {destinationIndex: 1, weight: 20}]
                shadows: {destinationIndex: 2}
            models: [{name: M, backendModels: [{name: b, deployer: serve}]}]
            routes: [{path: /predict, dag: [{model: M, path: /predict, dependency: /predict}]}]
"""


def load(text: bytes) -> object:
    return parse_document(YamlDocuments().load(text, "axons/digits/axon.yaml"))


def test_a_manifest_with_ten_mistakes_gets_ten_lines() -> None:
    with pytest.raises(DesiredStateError) as caught:
        load(TEN_MISTAKES)
    assert [(fault.line, fault.reason) for fault in caught.value.faults] == [
        (5, "UnknownKey"),
        (9, "UnknownKey"),
        (10, "NotAllowed"),
        (12, "OutOfRange"),
        (13, "WrongType"),
        (14, "WrongType"),
        (17, "NotAllowed"),
        (20, "Invalid"),
        (21, "Missing"),
        (24, "NotAllowed"),
        (25, "Missing"),
    ]
    assert "the nearest known is `lossMetric`" in str(caught.value.faults[1])
    assert str(caught.value.faults[0]).startswith("axons/digits/axon.yaml:5: spec.artifact: unknown key `artifact`")


def test_old_spellings_mean_what_todays_mean() -> None:
    axon = load(OLD_SPELLINGS)
    assert isinstance(axon, Axon)
    assert axon.spec.tasks[0].deploy is not None
    assert axon.spec.tasks[0].deploy.env[0].value == "1"
    today = (
        OLD_SPELLINGS.replace(b"myelinproj.io", b"myelin.io")
        .replace(b"buiderImage", b"builderImage")
        .replace(b"shadows", b"shadow")
    )
    again = load(today)
    assert isinstance(again, Axon)
    assert defaulted(again) == defaulted(axon)


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        (b"a: 1\na: 2\n", 2, "DuplicateKey"),
        (b"a: [1\nb: 2\n", 2, "NotYaml"),
        (b"a:\n\tb: 1\n", 2, "NotYaml"),
        (b"\xff\xfe", 1, "NotYaml"),
        (b"- 1\n", 1, "NotAMapping"),
        (b"kind: Axom\n", 1, "UnknownKind"),
    ],
)
def test_what_is_no_document_is_refused_with_its_line(text: bytes, line: int, reason: str) -> None:
    with pytest.raises(DesiredStateError) as caught:
        load(text)
    assert (caught.value.faults[0].line, caught.value.faults[0].reason) == (line, reason)


def test_aliases_that_multiply_are_refused() -> None:
    bomb = b"a: &a [x,x,x,x,x,x,x,x,x,x]\n" + b"".join(
        b"%c: &%c [%s]\n" % (98 + n, 98 + n, b",".join([b"*%c" % (97 + n)] * 10)) for n in range(7)
    )
    with pytest.raises(DesiredStateError) as caught:
        load(bomb)
    assert caught.value.faults[0].reason == "TooLarge"


def test_an_edit_keeps_what_it_does_not_change() -> None:
    documents = YamlDocuments()
    before = b'# why\nspec:\n  traffic: # shares\n    - {version: "v-1", share: 100}\n'
    after = documents.edit(before, {"spec": {"traffic": [{"version": "v-1", "share": 80}, {"version": "v-2", "share": 20}]}})
    assert after.startswith(b'# why\nspec:\n  traffic: # shares\n    - {version: "v-1", share: 80}\n')
    assert documents.load(after, "r").value["spec"]["traffic"][1] == {"version": "v-2", "share": 20}


MANIFESTS = sorted((Path(__file__).parent / "manifests").glob("*.yaml"))


@pytest.mark.parametrize("file", MANIFESTS, ids=[file.stem for file in MANIFESTS])
def test_a_manifest_of_the_earlier_myelin_is_read_unchanged(file: Path) -> None:
    axon = load(file.read_bytes())
    assert isinstance(axon, Axon)
    assert axon.spec.tasks
    assert axon.spec.sensors


def test_there_are_six_manifests_of_the_earlier_myelin() -> None:
    assert [file.stem for file in MANIFESTS] == ["dist-mnist", "gpt2", "multi-model-dag", "recommender", "spark", "xgboost-hpo"]


def manifest(name: str) -> Axon:
    axon = load(next(file for file in MANIFESTS if file.stem == name).read_bytes())
    assert isinstance(axon, Axon)
    return axon


def test_groups_run_side_by_side_and_a_flat_list_one_after_another() -> None:
    groups = [
        [entry.trainer.task for entry in group if entry.trainer] for group in manifest("multi-model-dag").spec.sensors[0].tasks
    ]
    assert groups == [["Train1", "Train2"], ["Train3"]]
    assert [len(group) for group in manifest("recommender").spec.sensors[0].tasks] == [1, 1]


def test_quoted_numbers_are_numbers() -> None:
    train = manifest("xgboost-hpo").spec.tasks[0].train
    assert train is not None
    assert train.hp_tuning is not None
    range_of_rate = train.hp_tuning.params[0].numerical
    assert range_of_rate is not None
    assert (range_of_rate.lower, range_of_rate.upper, range_of_rate.default_value, range_of_rate.log) == (0.01, 0.3, 0.1, True)
    assert train.hp_tuning.min_budget == 3.33


def test_env_beside_the_kind_belongs_to_the_kind() -> None:
    train = manifest("dist-mnist").spec.tasks[0].train
    assert train is not None
    assert [(variable.name, variable.value) for variable in train.env] == [("STEPS", "{{workflow.parameters.steps}}")]
    assert train.tf_job_spec is not None
    assert train.tf_job_spec["tfReplicaSpecs"]["Worker"]["replicas"] == 4


def test_the_earliest_destination_is_an_index() -> None:
    deployer = manifest("xgboost-hpo").spec.sensors[1].tasks[0][0].deployer
    assert deployer is not None
    assert deployer.rollout_spec[0].destinations[0].destination_index == 0


def test_an_instant_without_a_zone_is_utc() -> None:
    axon = load(b"kind: Axon\nmetadata: {name: a}\nspec: {suspend: {reason: holidays, until: 2026-01-01}}\n")
    assert isinstance(axon, Axon)
    assert axon.spec.suspend is not None
    assert axon.spec.suspend.until == datetime(2026, 1, 1, tzinfo=UTC)


def test_one_value_of_no_allowed_type_is_one_fault() -> None:
    text = OLD_SPELLINGS.replace(b"env: [{name: A, value: 1}]", b"env: [{name: A, value: [1]}]")
    with pytest.raises(DesiredStateError) as caught:
        load(text)
    assert len(caught.value.faults) == 1
