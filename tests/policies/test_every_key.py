"""Every key of the reference tables, in manifests that use them all: none is missing, and each typo is named."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from controller.adapters.documents import YamlDocuments
from policies.errors import DesiredStateError, Fault
from policies.experiment import experiment_of
from policies.identity import axon_digest
from policies.ladder import describe
from policies.parsing import KINDS, defaulted, parse_document
from policies.terms.axon import Axon
from policies.terms.document import LoadedDocument

# `.yml`, because the folder's `.yaml` files are those of the earlier Myelin.
FOLDER = Path(__file__).parent / "manifests"
FILES = {"Axon": "every-key.yml", "Project": "every-key-project.yml", "Release": "every-key-release.yml"}

TOP = """
apiVersion kind metadata.name
spec.serviceAccountName spec.parameters[].name spec.parameters[].value
spec.artifacts[].name spec.artifacts[].path spec.artifacts[].git.repo spec.artifacts[].git.revision
spec.artifacts[].git.sshPrivateKeySecret.name spec.artifacts[].git.sshPrivateKeySecret.key
spec.artifacts[].git.verify
spec.artifacts[].s3
spec.volumeClaimTemplate.metadata.name spec.volumeClaimTemplate.spec.storageClassName
spec.volumeClaimTemplate.spec.accessModes spec.volumeClaimTemplate.spec.resources.requests.storage
spec.volume.name spec.volume.hostPath.path
spec.volume.flexVolume.driver spec.volume.flexVolume.fsType
spec.volume.flexVolume.options.fsName spec.volume.flexVolume.options.clusterNamespace
spec.tasks spec.sensors
"""

ANY_KIND = """
image
imageBuild.repositoryName imageBuild.artifact imageBuild.buildLocation imageBuild.dockerfile.path imageBuild.dockerfile.network
imageBuild.s2i.contextDir imageBuild.s2i.builderImage imageBuild.checkImageExists
imageBuild.volumes[].name imageBuild.volumes[].secret.secretName
imageBuild.volumeMounts[].name imageBuild.volumeMounts[].mountPath
env[].name env[].value env[].valueFrom nodeSelector resources.requests resources.limits
"""

TASKS = """
spec.tasks[].name spec.tasks[].container spec.tasks[].train spec.tasks[].deploy spec.tasks[].spark
spec.tasks[].inputs spec.tasks[].sidecars spec.tasks[].env[].name spec.tasks[].env[].value
spec.tasks[].train.lossMetric spec.tasks[].train.lossMetricSelector
spec.tasks[].train.metrics[].name spec.tasks[].train.metrics[].type
spec.tasks[].train.hpTuning.optimiser spec.tasks[].train.hpTuning.concurrency
spec.tasks[].train.hpTuning.minBudget spec.tasks[].train.hpTuning.maxBudget spec.tasks[].train.hpTuning.numIteration
spec.tasks[].train.hpTuning.params[].name spec.tasks[].train.hpTuning.params[].type
spec.tasks[].train.hpTuning.params[].numerical.lower spec.tasks[].train.hpTuning.params[].numerical.upper
spec.tasks[].train.hpTuning.params[].numerical.default_value spec.tasks[].train.hpTuning.params[].numerical.log
spec.tasks[].train.hpTuning.params[].categorical.values spec.tasks[].train.hpTuning.params[].categorical.default_value
spec.tasks[].train.tfJobSpec.cleanPodPolicy
spec.tasks[].train.tfJobSpec.tfReplicaSpecs.PS.replicas spec.tasks[].train.tfJobSpec.tfReplicaSpecs.PS.restartPolicy
spec.tasks[].train.tfJobSpec.tfReplicaSpecs.PS.template.spec.containers[].name
spec.tasks[].train.tfJobSpec.tfReplicaSpecs.Worker.replicas spec.tasks[].train.tfJobSpec.tfReplicaSpecs.Worker.restartPolicy
spec.tasks[].train.tfJobSpec.tfReplicaSpecs.Worker.template.spec.containers[].name
spec.tasks[].deploy.endpointType spec.tasks[].deploy.endpointRestType
spec.tasks[].spark.sparkSpec.properties spec.tasks[].spark.sparkSpec.propertiesConfigMap
spec.tasks[].spark.sparkSpec.propertiesConfigMapKey spec.tasks[].spark.sparkSpec.class spec.tasks[].spark.sparkSpec.jars
spec.tasks[].spark.sparkSpec.applicationFile spec.tasks[].spark.sparkSpec.args spec.tasks[].spark.sparkSpec.deployMode
"""

SENSORS = """
spec.sensors[].name
spec.sensors[].triggers[].type spec.sensors[].triggers[].name spec.sensors[].triggers[].task spec.sensors[].triggers[].condition
spec.sensors[].conditions[].name spec.sensors[].conditions[].type
spec.sensors[].conditions[].condition spec.sensors[].conditions[].task
spec.sensors[].parameters[].name spec.sensors[].parameters[].value
spec.sensors[].tasks[].resourceExecutor.task spec.sensors[].tasks[].trainer.task spec.sensors[].tasks[].deployer
spec.sensors[].tasks[].env[].name spec.sensors[].tasks[].env[].value
"""

DEPLOYER = """
name replicas
rolloutSpec[].destinations[].destinationIndex rolloutSpec[].destinations[].weight
rolloutSpec[].shadow.destinationIndex rolloutSpec[].shadow.destinationName rolloutSpec[].match
rolloutSpec[].shadows.destinationName
rolloutSpec[].matches[].uri rolloutSpec[].matches[].scheme rolloutSpec[].matches[].method rolloutSpec[].matches[].authority
rolloutSpec[].matches[].headers rolloutSpec[].matches[].port rolloutSpec[].matches[].sourceLabels
rolloutSpec[].matches[].gateways rolloutSpec[].matches[].queryParams rolloutSpec[].matches[].ignoreUriCase
models[].name models[].modelSelectionStrategy
models[].routingStrategy[].destinations[].destinationName models[].routingStrategy[].destinations[].weight
models[].backendModels[].name models[].backendModels[].trainer models[].backendModels[].deployer
models[].backendModels[].modelSelectionStrategy
routes[].path routes[].dag[].model routes[].dag[].path routes[].dag[].dependencies routes[].dag[].includeInput
routes[].dag[].dependency routes[].dag[].fullPath routes[].dag[].healthPath routes[].dag[].endpointRestType
volumes securitySpec[].jwt securitySpec[].mode securitySpec[].requestPrincipals securitySpec[].meshMTLSMode
servers[].port servers[].bind servers[].hosts servers[].tls servers[].defaultEndpoint gateway gatewayNamespace
deploymentType rolloutSpec[].destinations[].destination
"""

OURS = """
spec.artifacts[].dvc spec.suspend.reason spec.suspend.until
spec.sensors[].when spec.sensors[].cooldown spec.sensors[].maxPerDay
spec.sensors[].triggers[].schedule spec.sensors[].triggers[].timezone spec.sensors[].triggers[].catchUp
spec.sensors[].triggers[].paths spec.sensors[].triggers[].secretFrom spec.sensors[].triggers[].for
spec.sensors[].triggers[].noData spec.sensors[].triggers[].deployer spec.sensors[].tasks[].rollback.deployer
spec.tasks[].train.dataset spec.tasks[].train.seed spec.tasks[].train.tolerance
spec.tasks[].train.hpTuning.eta spec.tasks[].train.hpTuning.seed spec.tasks[].train.hpTuning.budgetType
spec.tasks[].train.hpTuning.trialTimeout spec.tasks[].train.hpTuning.stragglerFactor spec.tasks[].train.hpTuning.maxRetries
spec.tasks[].train.hpTuning.maxFailedTrials spec.tasks[].train.hpTuning.targetLoss spec.tasks[].train.hpTuning.patience
spec.tasks[].train.hpTuning.maxDuration spec.tasks[].train.hpTuning.warmStart
spec.tasks[].train.hpTuning.params[].condition
spec.tasks[].train.hpTuning.params[].numerical.mean spec.tasks[].train.hpTuning.params[].numerical.spread
spec.tasks[].container.cache spec.tasks[].train.cache spec.tasks[].deploy.cache
"""

OUR_DEPLOYER = """
promotion.mode promotion.require promotion.metric promotion.margin promotion.minSamples promotion.confidence promotion.soak
promotion.steps[].share promotion.steps[].for promotion.abortOn
routes[].timeout routes[].dag[].timeout autoscale.minReplicas autoscale.maxReplicas autoscale.targetConcurrency explainShadow
"""

PROJECT = """
apiVersion kind metadata.name
spec.branch spec.paths spec.trust.signers[].name spec.trust.signers[].ssh spec.trust.signers[].openpgp
spec.trust.signers[].identity spec.trust.signers[].issuer spec.trust.ancestors spec.trust.since
spec.trust.signers[].paths spec.trust.signers[].validFrom spec.trust.signers[].validUntil spec.trust.signers[].revoked
spec.trust.sigstoreRoot
spec.trust.unsafeUnsignedCommits spec.writeBack.mode spec.writeBack.rollbacks spec.writeBack.author.name
spec.writeBack.author.email spec.writeBack.forge.type spec.writeBack.forge.url spec.writeBack.forge.repository
spec.writeBack.forge.tokenFrom.secret.name spec.writeBack.forge.tokenFrom.secret.key spec.writeBack.paths
spec.writeBack.review.labels spec.writeBack.review.reviewers spec.writeBack.review.approvals
spec.writeBack.review.authorIsEnough spec.source.submodules spec.source.largestFile
spec.builder.base spec.builder.index spec.builder.requireHashes spec.builder.proposeLocks
spec.builder.allowSourceDistributions
spec.builder.precompile spec.builder.platforms spec.builder.stamp spec.builder.reproducibility spec.builder.buildkit
spec.builder.limits.memory spec.builder.limits.disk spec.builder.limits.time
spec.builder.store.keepResults spec.builder.store.keepUnused spec.builder.store.cache
spec.builder.baseSigners[].name spec.builder.baseSigners[].key spec.builder.baseSigners[].identity
spec.builder.baseSigners[].issuer
spec.policies[].name spec.policies[].on spec.policies[].require spec.policies[].message
spec.limits.runsPerDay spec.limits.retrainsPerDay spec.limits.acceleratorHoursPerDay spec.limits.maxConcurrentJobs
spec.repository.url spec.repository.secretName spec.registry.repository spec.registry.secretName spec.registry.pullSecretName
spec.registry.unsafePlainHttp spec.keys.secretName
"""

RELEASE = """
apiVersion kind metadata.name metadata.axon
spec.traffic[].version spec.traffic[].share spec.shadow
spec.holds[].version spec.holds[].reason spec.holds[].alert spec.holds[].since
"""

IN_NO_TABLE = """
metadata.namespace metadata.labels metadata.annotations
spec.tasks[].spark.cache
spec.sensors[].tasks[].env[].valueFrom spec.tasks[].deploy.imageBuild.s2i.buiderImage
"""
"""What the document types know besides: Kubernetes' usual metadata, and parts that several keys share."""

NOT_THERE = """
spec.sensors[].tasks[].deployer.rolloutSpec[].destinations[].destinationName
spec.sensors[].tasks[].deployer.models[].routingStrategy[].destinations[].destinationIndex
"""
"""Keys that the shared type `Destination` brings to where the tables have no use for them."""

EITHER = """
spec.writeBack.forge.tokenFrom.env spec.writeBack.forge.tokenFrom.file
"""
"""Keys that exclude one that the manifest has."""

FREE = """
metadata.labels metadata.annotations
spec.artifacts[].s3 spec.artifacts[].dvc spec.volumeClaimTemplate spec.volume
spec.tasks[].inputs spec.tasks[].sidecars[] spec.tasks[].train.tfJobSpec
spec.tasks[].train.hpTuning.warmStart spec.tasks[].train.hpTuning.params[].condition
spec.sensors[].triggers[].secretFrom spec.sensors[].tasks[].env[].valueFrom
spec.sensors[].tasks[].deployer.rolloutSpec[].matches[] spec.sensors[].tasks[].deployer.volumes[]
spec.sensors[].tasks[].deployer.securitySpec[] spec.sensors[].tasks[].deployer.servers[]
"""
FREE_IN_ANY_KIND = "imageBuild.volumes[] imageBuild.volumeMounts[] env[].valueFrom nodeSelector resources"
"""Parts whose inside is Kubernetes', Kubeflow's or Istio's, or not laid down yet: any key is taken there."""

OLD = {
    "buiderImage": "builderImage",
    "shadows": "shadow",
    "matches": "match",
    "destination": "destinationName",
}
"""Old spelling -> what a typo of it is answered with: today's."""


def of_each_kind(words: str) -> set[str]:
    return {f"spec.tasks[].{kind}.{word}" for kind in ("container", "train", "deploy", "spark") for word in words.split()}


def in_deployer(words: str) -> set[str]:
    return {f"spec.sensors[].tasks[].deployer.{word}" for word in words.split()}


TABLES = {
    "Axon": {*"".join((TOP, TASKS, SENSORS, OURS)).split(), *of_each_kind(ANY_KIND), *in_deployer(DEPLOYER + OUR_DEPLOYER)},
    "Project": set(PROJECT.split()),
    "Release": set(RELEASE.split()),
}
FREE_PARTS = {*FREE.split(), *of_each_kind(FREE_IN_ANY_KIND)}


def load(kind: str) -> LoadedDocument:
    return YamlDocuments().load((FOLDER / FILES[kind]).read_bytes(), FILES[kind])


@pytest.fixture(scope="module")
def loaded() -> Mapping[str, LoadedDocument]:
    return {kind: load(kind) for kind in FILES}


def shape(path: tuple[str | int, ...]) -> str:
    """A path without its numbers; groups of sensor tasks and flat ones look the same."""
    text = "".join("[]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
    return text.replace("[][]", "[]")


def keys_of(document: LoadedDocument) -> list[tuple[str | int, ...]]:
    return [path for path in document.lines if path and isinstance(path[-1], str)]


def is_free(text: str) -> bool:
    """Whether a key stands inside of a part that takes any."""
    return any(text.startswith((f"{part}.", f"{part}[")) and text != part for part in FREE_PARTS)


@pytest.mark.parametrize("kind", FILES)
def test_a_document_with_every_key_has_no_fault(kind: str, loaded: Mapping[str, LoadedDocument]) -> None:
    assert type(parse_document(loaded[kind])) is KINDS[kind]


@pytest.mark.parametrize("kind", FILES)
def test_no_key_of_the_tables_is_missing(kind: str, loaded: Mapping[str, LoadedDocument]) -> None:
    assert TABLES[kind] - {shape(path) for path in keys_of(loaded[kind])} == set()


@pytest.mark.parametrize("kind", FILES)
def test_every_key_of_the_manifest_is_in_a_table(kind: str, loaded: Mapping[str, LoadedDocument]) -> None:
    listed = TABLES[kind] | set(IN_NO_TABLE.split())
    above = {text[:end] for text in listed for end in range(len(text)) if text[end] in ".["}
    found = {shape(path) for path in keys_of(loaded[kind])}
    assert {text for text in found - listed - above if not is_free(text)} == set()


def schema(model: type[BaseModel], before: str = "") -> Iterator[str]:
    """Every key that a document type knows, in today's spelling."""
    for name, field in model.model_fields.items():
        text = f"{before}{field.serialization_alias or field.alias or name}"
        yield text
        for nested, is_list in parts(field.annotation, is_list=False):
            yield from schema(nested, f"{text}[]." if is_list else f"{text}.")


def parts(annotation: Any, *, is_list: bool) -> Iterator[tuple[type[BaseModel], bool]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, is_list
    for part in getattr(annotation, "__args__", ()):
        yield from parts(part, is_list=is_list or getattr(annotation, "__origin__", None) is tuple)


@pytest.mark.parametrize("kind", FILES)
def test_no_key_of_the_document_types_is_missing(kind: str, loaded: Mapping[str, LoadedDocument]) -> None:
    known = set(schema(KINDS[kind])) - set(NOT_THERE.split()) - set(EITHER.split())
    assert known - {shape(path) for path in keys_of(loaded[kind])} == set()


def misspelt(document: LoadedDocument, path: tuple[str | int, ...], wrong: str) -> LoadedDocument:
    """The document as it would be read if the key at `path` were written `wrong`."""

    def renamed(value: Any, rest: tuple[str | int, ...]) -> Any:
        if isinstance(value, list):
            return [renamed(item, rest[1:]) if index == rest[0] else item for index, item in enumerate(value)]
        if len(rest) == 1:
            return {wrong if key == rest[0] else key: item for key, item in value.items()}
        return {key: renamed(item, rest[1:]) if key == rest[0] else item for key, item in value.items()}

    cut = len(path)
    lines = {(*path[:-1], wrong, *place[cut:]) if place[:cut] == path else place: at for place, at in document.lines.items()}
    return LoadedDocument(file=document.file, value=renamed(document.value, path), lines=lines)


def faults_of(document: LoadedDocument) -> tuple[Fault, ...]:
    try:
        parse_document(document)
    except DesiredStateError as error:
        return error.faults
    return ()


TYPOS = {"a letter twice": lambda key: key + key[-1], "a letter missing": lambda key: key[:-1]}


def odd_answers(document: LoadedDocument, paths: Sequence[tuple[str | int, ...]], typo: Callable[[str], str]) -> list[Any]:
    """What is said of typos at some paths, where it is anything but one unknown key, its line and the right one."""
    odd = []
    for path in paths:
        key = str(path[-1])
        wrong = typo(key)
        if wrong in OLD.values():
            continue
        faults = faults_of(misspelt(document, path, wrong))
        # What the key would have said is missing then, and nothing else is wrong.
        told = [fault for fault in faults if fault.reason == "UnknownKey" or fault.message != f"expected `{key}`, got nothing"]
        message = f"unknown key `{wrong}`; the nearest known is `{OLD.get(key, key)}`"
        if [(fault.file, fault.line, fault.reason, fault.message) for fault in told] != [
            (document.file, document.lines[path], "UnknownKey", message)
        ]:
            odd.append((shape(path), [str(fault) for fault in faults]))
    return odd


def strict_keys(document: LoadedDocument) -> list[tuple[str | int, ...]]:
    """All keys but those of free parts, and but `kind`, without which nobody can say what the keys are."""
    return [path for path in keys_of(document) if not is_free(shape(path)) and path != ("kind",)]


@pytest.mark.parametrize("typo", TYPOS.values(), ids=list(TYPOS))
@pytest.mark.parametrize(("kind", "least"), [("Axon", 350), ("Project", 65), ("Release", 15)])
def test_a_misspelt_key_is_named_with_its_line_and_the_nearest_known_key(
    kind: str, least: int, typo: Callable[[str], str], loaded: Mapping[str, LoadedDocument]
) -> None:
    paths = strict_keys(loaded[kind])
    assert len(paths) > least
    assert odd_answers(loaded[kind], paths, typo) == []


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        ("Axon", "serviceAccountName: ", "serviceAcountName: "),
        ("Axon", "lossMetricSelector: ", "lossMetricSelectr: "),
        ("Axon", "rolloutSpec:", "rollOutSpec:"),
        ("Axon", "cooldown: ", "coolDown: "),
        ("Project", "unsafeUnsignedCommits: ", "unsafeUnsignedCommit: "),
        ("Release", "shadow: ", "shadows: "),
    ],
)
def test_a_typo_in_the_text_is_found_in_the_text(kind: str, right: str, wrong: str) -> None:
    text = (FOLDER / FILES[kind]).read_text()
    line = text[: text.index(right)].count("\n") + 1
    (fault,) = faults_of(YamlDocuments().load(text.replace(right, wrong, 1).encode(), "m.yaml"))
    assert (fault.file, fault.line, fault.reason) == ("m.yaml", line, "UnknownKey")
    assert fault.message == f"unknown key `{wrong.strip(': ')}`; the nearest known is `{right.strip(': ')}`"


SAME = {
    "the first group of the API": ("myelinproj.io/v1alpha1", "myelin.io/v1alpha1"),
    "no version of the API": ("apiVersion: myelinproj.io/v1alpha1\n", ""),
    "buiderImage": ("buiderImage", "builderImage"),
    "shadows": ("shadows:", "shadow:"),
    "matches": ("matches:", "match:"),
    "an empty match": ("              - match:\n                destinations:", "              - destinations:"),
    "a match of no rules": ("- match:\n", "- match: []\n"),
    "destination": ("destination: 0", "destinationIndex: 0"),
    "dependency": ("                    dependency: /predict\n", ""),
    "deploymentType": ("            deploymentType: canary\n", ""),
    "default_value": ("default_value: poly", "defaultValue: poly"),
    "numbers in quotes": ('lower: "0.01"', "lower: 0.01"),
    "a bare number as text": ("value: 100", 'value: "100"'),
    "a weight in quotes": ("weight: 80", 'weight: "80"'),
    "a default that is written out": ("        endpointType: REST\n", ""),
    "env beside the kind": (
        '      env:\n        - name: SIZE\n          value: "{{workflow.parameters.epoch-model1}}"\n      container:\n'
        "        image: registry.example/prepare:1\n",
        "      container:\n        image: registry.example/prepare:1\n        env: [{name: TOKEN, valueFrom: "
        '{secretKeyRef: {name: tokens, key: one}}}, {name: DEPTH, value: "3"}, {name: SIZE, value: '
        '"{{workflow.parameters.epoch-model1}}"}]\n',
    ),
    "a flat list of tasks": (
        "        - rollback:\n            deployer: graph-deployer\n",
        "        - - rollback:\n              deployer: graph-deployer\n",
    ),
    "the order of keys": (
        "    reason: holidays\n    until: 2026-01-31T12:00:00Z\n",
        "    {until: 2026-01-31T12:00Z, reason: holidays}\n",
    ),
}
LATER = (
    "        env:\n          - name: TOKEN\n            valueFrom: {secretKeyRef: {name: tokens, key: one}}\n"
    '          - name: DEPTH\n            value: "3"\n'
)


def digest(text: str) -> str:
    axon = parse_document(YamlDocuments().load(text.encode(), "axon.yaml"))
    assert isinstance(axon, Axon)
    return axon_digest(defaulted(axon), {})


@pytest.mark.parametrize(("old", "today"), SAME.values(), ids=list(SAME))
def test_an_old_spelling_means_the_same_axon(old: str, today: str) -> None:
    text = (FOLDER / FILES["Axon"]).read_text()
    assert old in text
    changed = text.replace(old, today, 1)
    if "name: SIZE" in old:
        assert changed.count(LATER) == 1
        changed = changed.replace(LATER, "")
    assert changed != text
    assert digest(changed) == digest(text)


def test_another_meaning_is_another_axon() -> None:
    text = (FOLDER / FILES["Axon"]).read_text()
    for right, other in (("weight: 80", "weight: 80.0"), ("lower: 0\n", "lower: 0.0\n")):
        assert digest(text.replace(right, other, 1)) == digest(text)
    for right, other in (("cooldown: 5m", "cooldown: 6m"), ("lossMetricSelector: greater", "lossMetricSelector: less")):
        assert digest(text.replace(right, other, 1)) != digest(text)


TUNING = """kind: Axon
metadata: {{name: golden}}
spec:
  tasks:
    - name: Tune
      train:
        image: registry.example/tune:1
        lossMetric: rmse
        hpTuning:
          {hyperband}
          params:
            - {{name: rate, type: UniformFloat, numerical: {{lower: "0.01", upper: "0.3"}}}}
            - {{name: depth, type: UniformInteger, numerical: {{lower: "2", upper: "9"}}}}
"""

GOLDEN = {
    "dist-mnist-hpo": (
        "{optimiser: HyperBand, concurrency: 5, minBudget: 1000, maxBudget: 20000, numIteration: 5}",
        (2222.2, 6666.7, 20000),
        [[9, 3, 1], [3, 1], [3], [9, 3, 1], [3, 1]],
        37,
    ),
    "mnist-with-summaries": (
        "{optimiser: HyperBand, concurrency: 2, minBudget: 10, maxBudget: 30, numIteration: 2}",
        (10, 30),
        [[3, 1], [2]],
        6,
    ),
    "xgboost-hpo-mnist": (
        "{optimiser: HyperBand, concurrency: 2, minBudget: 3, maxBudget: 10, numIteration: 2}",
        (3.33, 10),
        [[3, 1], [2]],
        6,
    ),
    "test-demo-hp": (
        "{optimiser: RandomSearch, concurrency: 2, minBudget: 3, maxBudget: 10, numIteration: 2}",
        (10,),
        [[2], [2]],
        4,
    ),
    "two-stage-vae": (
        "{optimiser: BOHB, concurrency: 2, minBudget: 3, maxBudget: 10, numIteration: 1}",
        (3.33, 10),
        [[3, 1]],
        4,
    ),
}


@pytest.mark.parametrize(("tuning", "budgets", "sizes", "runs"), GOLDEN.values(), ids=list(GOLDEN))
def test_the_schedules_of_the_earlier_manifests(
    tuning: str, budgets: tuple[float, ...], sizes: list[list[int]], runs: int
) -> None:
    hyperband = tuning.strip("{}").replace(", ", "\n          ")
    axon = parse_document(YamlDocuments().load(TUNING.format(hyperband=hyperband).encode(), "axon.yaml"))
    assert isinstance(axon, Axon)
    facts = describe(experiment_of(axon.spec.tasks[0], experiment_id="x", axon="golden"))
    assert [list(bracket.sizes) for bracket in facts.brackets] == sizes
    assert facts.runs == runs == sum(map(sum, sizes))
    for bracket in facts.brackets:
        assert bracket.budgets == pytest.approx(budgets[-len(bracket.budgets) :], rel=2e-3)
    assert {budget for bracket in facts.brackets for budget in bracket.budgets} <= set(facts.rungs)
    assert facts.model_from == 0
