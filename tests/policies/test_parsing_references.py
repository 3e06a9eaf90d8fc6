import pytest

from controller.adapters.documents import YamlDocuments
from policies.errors import DesiredStateError, Fault
from policies.parsing import parse_document

AXON = """kind: Axon
metadata: {name: graph}
spec:
  artifacts: [{name: source, path: /src}]
  tasks:
    - {name: A, train: {imageBuild: {artifact: source}, resources: {limits: {memory: 1Gi}}}}
    - {name: B, train: {image: b}}
    - {name: S, deploy: {image: s}}
    - {name: P, container: {image: p}}
  sensors:
    - name: start
      tasks:
        - - trainer: {task: A}
          - trainer: {task: B}
        - - resourceExecutor: {task: P}
    - name: deploy
      triggers: [{type: Lifecycle, task: A}, {type: Calendar, schedule: 0 3 * * 1}]
      conditions: [{type: Metric, task: A, condition: rmse < 1}]
      tasks:
        - deployer:
            name: d
            rolloutSpec:
              - destinations: [{destinationIndex: 0, weight: 80}, {destinationIndex: 1, weight: 20}]
            models:
              - name: M
                routingStrategy: [{destinations: [{destinationName: x, weight: 90}, {destinationName: y, weight: 10}]}]
                backendModels:
                  - {name: x, trainer: A, deployer: S}
                  - {name: y, trainer: B, deployer: S}
              - name: N
                backendModels: [{name: z, trainer: B, deployer: S}]
            routes:
              - path: /predict
                dag: [{model: M}, {model: N, dependencies: [M]}]
    - name: back
      triggers: [{type: Alert, condition: "{{rmse}} > 9"}]
      tasks: [{rollback: {deployer: d}}]
"""
RELEASE = """kind: Release
metadata: {name: d, axon: graph}
spec:
  traffic:
    - {version: v-1, share: 80}
    - {version: v-2, share: 20}
"""
PROJECT = """kind: Project
spec:
  trust:
    signers:
      - {name: ann, ssh: ssh-ed25519 AAAA}
      - {name: bob, identity: bob@example.org, issuer: "https://issuer.example"}
  writeBack: {mode: commit}
"""


def faults(text: str) -> tuple[Fault, ...]:
    try:
        parse_document(YamlDocuments().load(text.encode(), "a.yaml"))
    except DesiredStateError as error:
        return error.faults
    return ()


@pytest.mark.parametrize("text", [AXON, RELEASE, PROJECT], ids=["axon", "release", "project"])
def test_what_fits_together_has_no_fault(text: str) -> None:
    assert faults(text) == ()


MISTAKES = {
    "a task twice": (AXON, "name: B, train", "name: A, train", "spec.tasks[1].name", "Duplicate"),
    "a sensor twice": (AXON, "name: back", "name: start", "spec.sensors[2].name", "Duplicate"),
    "an artifact that is not there": (AXON, "artifact: source", "artifact: sauce", "spec.tasks[0].train.imageBuild.artifact", 6),
    "a trainer of no task": (AXON, "trainer: {task: B}", "trainer: {task: X}", "spec.sensors[0].tasks[0][1].trainer.task", 14),
    "a trainer of a container": (
        AXON,
        "trainer: {task: B}",
        "trainer: {task: P}",
        "spec.sensors[0].tasks[0][1].trainer.task",
        14,
    ),
    "an executor of a train task": (AXON, "Executor: {task: P}", "Executor: {task: A}", "spec.sensors[0].tasks[1][0]", 15),
    "a lifecycle of no task": (AXON, "Lifecycle, task: A", "Lifecycle, task: X", "spec.sensors[1].triggers[0].task", 17),
    "a calendar without a schedule": (AXON, ", schedule: 0 3 * * 1", "", "spec.sensors[1].triggers[1].schedule", "NotASchedule"),
    "a schedule at no hour": (AXON, "0 3 * * 1", "0 33 * * 1", "spec.sensors[1].triggers[1].schedule", "NotASchedule"),
    "an alert without a condition": (AXON, ', condition: "{{rmse}} > 9"', "", "spec.sensors[2].triggers[0].condition", "Missing"),
    "a gate on no task": (AXON, "Metric, task: A", "Metric, task: X", "spec.sensors[1].conditions[0].task", 18),
    "a trainer of a backend": (AXON, "name: x, trainer: A", "name: x, trainer: S", "models[0].backendModels[0].trainer", 28),
    "a deployer of a backend": (
        AXON,
        "trainer: A, deployer: S",
        "trainer: A, deployer: A",
        "models[0].backendModels[0].deployer",
        28,
    ),
    "weights of versions": (AXON, "weight: 80", "weight: 70", "rolloutSpec[0].destinations", "NotAHundred"),
    "weights of backends": (AXON, "weight: 90", "weight: 70", "routingStrategy[0].destinations", "NotAHundred"),
    "a backend that is not there": (
        AXON,
        "destinationName: y",
        "destinationName: q",
        "destinations[1].destinationName",
        "UnknownName",
    ),
    "a backend twice": (AXON, "{name: y, trainer", "{name: x, trainer", "backendModels[1].name", "Duplicate"),
    "a node of no model": (AXON, "[{model: M}, {model: N", "[{model: M}, {model: Q", "dag[1].model", 34),
    "a node twice": (AXON, "[{model: M}, {model: N", "[{model: M}, {model: M", "dag[1].model", "Duplicate"),
    "a dependency that is no node": (AXON, "dependencies: [M]", "dependencies: [Q]", "dag[1].dependencies", "UnknownName"),
    "a circle": (AXON, "[{model: M},", "[{model: M, dependencies: [N]},", "routes[0].dag", "Cycle"),
    "a rollback of no deployer": (
        AXON,
        "rollback: {deployer: d}",
        "rollback: {deployer: e}",
        "spec.sensors[2].tasks[0].rollback",
        37,
    ),
    "no quantity": (AXON, "memory: 1Gi", "memory: lots", "spec.tasks[0].train.resources", 6),
    "a deployer outside of its folder": (AXON, "name: d\n", "name: ../../d\n", "spec.sensors[1].tasks[0].deployer.name", 21),
    "two kinds": (AXON, "container: {image: p}", "container: {image: p}, train: {}", "spec.tasks[3]", 9),
    "no kind": (AXON, ", container: {image: p}", "", "spec.tasks[3]", 9),
    "shares that are not all": (RELEASE, "share: 80", "share: 70", "spec.traffic", "NotAHundred"),
    "a version twice": (RELEASE, "v-2", "v-1", "spec.traffic[1].version", "Duplicate"),
    "a signer with two keys": (PROJECT, "AAAA}", "AAAA, openpgp: x}", "spec.trust.signers[0]", 5),
    "an identity that nobody vouches for": (PROJECT, ', issuer: "https://issuer.example"', "", "spec.trust.signers[1]", 6),
    "a signer twice": (PROJECT, "name: bob", "name: ann", "spec.trust", 3),
    "a mode that is none": (PROJECT, "mode: commit", "mode: comit", "spec.writeBack.mode", "NotAllowed"),
    "a key by its attribute": (PROJECT, "writeBack", "write_back", "spec.write_back", "UnknownKey"),
}


@pytest.mark.parametrize(("text", "right", "wrong", "path", "what"), MISTAKES.values(), ids=list(MISTAKES))
def test_a_mistake_is_named_where_it_stands(text: str, right: str, wrong: str, path: str, what: str | int) -> None:
    assert right in text
    found = [fault for fault in faults(text.replace(right, wrong, 1)) if path in fault.path]
    assert found
    assert what in (found[0].reason, found[0].line)
