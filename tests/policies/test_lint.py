import pytest

from controller.adapters.documents import YamlDocuments
from policies.errors import Fault
from policies.lint import lint
from policies.parsing import parse_document
from policies.terms.axon import Axon

SOUND = """kind: Axon
metadata: {name: digits}
spec:
  artifacts: [{name: source, path: /src}]
  volumeClaimTemplate:
    spec: {accessModes: [ReadWriteMany]}
  tasks:
    - name: Tune
      train:
        imageBuild: {artifact: source, buildLocation: /src/train}
        lossMetric: rmse
        hpTuning:
          optimiser: HyperBand
          minBudget: 3
          maxBudget: 9
          params: [{name: rate, type: UniformFloat, numerical: {lower: 0.1, upper: 1}}]
    - name: Serve
      deploy:
        imageBuild: {artifact: source, buildLocation: /src/serve}
  sensors:
    - name: start
      tasks: [{trainer: {task: Tune}}]
    - name: again
      triggers: [{type: Alert, condition: "avg_over_time({{rmse}}[5m]) > 0.5"}]
      tasks: [[{trainer: {task: Tune}}]]
    - name: deploy
      triggers: [{type: Lifecycle, task: Tune}]
      tasks:
        - deployer:
            name: deployer
            rolloutSpec: [{destinations: [{destinationIndex: 0, weight: 100}]}]
            models: [{name: M, backendModels: [{name: b, trainer: Tune, deployer: Serve, modelSelectionStrategy: best}]}]
            routes: [{path: /predict, dag: [{model: M}]}]
"""


def lints(text: str, folders: tuple[str, ...] = ("train", "serve")) -> tuple[Fault, ...]:
    loaded = YamlDocuments().load(text.encode(), "axon.yaml")
    axon = parse_document(loaded)
    assert isinstance(axon, Axon)
    return lint(axon, has_folder=lambda folder: folder in folders, loaded=loaded)


def test_a_sound_manifest_has_nothing_to_say() -> None:
    assert lints(SOUND) == ()


MISTAKES = {
    "an accuracy is minimised": ("lossMetric: rmse", "lossMetric: test_accuracy", "MinimisedAccuracy", 11),
    "tuning has no loss metric": ("        lossMetric: rmse\n", "", "NoLossMetric", 11),
    "best of a training without a loss metric": ("        lossMetric: rmse\n", "", "BestOfNothing", 31),
    "a budget is no whole number": ("minBudget: 3", "minBudget: 4.5\n          eta: 2", "FractionalBudget", 14),
    "a random search has no small budget": ("optimiser: HyperBand", "optimiser: RandomSearch", "UnusedBudget", 14),
    "a model that never comes": ("optimiser: HyperBand", "optimiser: BOHB", "NeverAModel", 13),
    "an alert on what only feedback makes": ("{{rmse}}", "{{deploy_accuracy}}", "FeedbackOnly", 24),
    "a condition that is no PromQL": (
        "avg_over_time({{rmse}}[5m]) > 0.5",
        "avg_over_time({{rmse}}[5m) > 0.5",
        "PromqlRefused",
        24,
    ),
    "no share for the newest version": ("destinationIndex: 0", "destinationIndex: 1", "NoNewest", 31),
    "an image and a build": ("deploy:\n", "deploy:\n        image: x@sha256:00\n", "ImageWins", 19),
    "a volume that one node has": ("ReadWriteMany", "ReadWriteOnce", "SharedOnce", 6),
    "a secret in a build": (
        "buildLocation: /src/train}",
        "buildLocation: /src/train, volumes: [{name: s, secret: {secretName: s}}]}",
        "SecretInBuild",
        10,
    ),
    "a folder that is not there": ("/src/train", "/src/gone", "FolderMissing", 10),
    "a folder outside of the artifact": ("/src/train", "/etc", "DesiredState", 10),
}


@pytest.mark.parametrize(("sound", "mistake", "reason", "line"), MISTAKES.values(), ids=list(MISTAKES))
def test_a_known_mistake_is_named_with_its_line(sound: str, mistake: str, reason: str, line: int) -> None:
    assert sound in SOUND
    found = [fault for fault in lints(SOUND.replace(sound, mistake, 1)) if fault.reason == reason]
    assert [(fault.file, fault.line) for fault in found] == [("axon.yaml", line)]


def test_saying_what_no_data_means_is_enough_for_an_alert_on_feedback() -> None:
    text = SOUND.replace("{{rmse}}", "{{deploy_accuracy}}").replace("type: Alert,", "type: Alert, noData: pause,")
    assert lints(text) == ()


def test_whole_budgets_are_asked_for_by_budget_type() -> None:
    text = SOUND.replace("minBudget: 3", "minBudget: 4.5\n          eta: 2\n          budgetType: integer")
    assert "FractionalBudget" not in {fault.reason for fault in lints(text)}
