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
