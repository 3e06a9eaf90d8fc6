"""Laws of what is sent to a cluster: names, pods that nobody need trust, and what counts as a change."""

import copy
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from controller.adapters.cluster import DEPLOYMENT
from policies.canonical import canonical
from policies.errors import DesiredStateError
from policies.identity import object_name
from policies.terms.digest import Digest
from policies.terms.task import JobSpec, ServerSpec
from reconcilers.manifests import job as jobs
from reconcilers.manifests import serving
from reconcilers.manifests.drift import drift_of
from reconcilers.manifests.names import KIND, NAME, PROJECT, Placement, decoded, encoded, job_name, kube_name, selector
from reconcilers.manifests.pod import WORK
from tests.fakes.cluster import FakeCluster
from tests.properties.strategies import digests, names, shuffled, unicode

RFC_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
BY_DIGEST = re.compile(r"registry\.test:5000/team/digits@sha256:[0-9a-f]{64}")
LABEL = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")
OWNER = {"apiVersion": "myelin.io/v1alpha1", "kind": "Project", "name": "digits", "uid": "u-1", "controller": True}
INBOX = "http://myelin.system.svc:8090"
URL = f"{INBOX}/programs/s/jobs/j/result"

plain_names = st.from_regex(r"[a-z0-9-]{1,63}", fullmatch=True)
"""What a job or server may be called, `policies.terms.task`."""
near_names = st.text("ab-", min_size=45, max_size=63)
texts = st.text(unicode, max_size=8) | st.text("$()A", max_size=8)
environments = st.dictionaries(st.from_regex(r"[A-Z][A-Z_]{0,5}", fullmatch=True), texts, max_size=3)
tasks = st.from_regex(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,6}[A-Za-z0-9])?", fullmatch=True)
scalars = st.none() | st.booleans() | st.integers(-9, 9) | texts
configs = st.dictionaries(texts, scalars | st.lists(scalars, max_size=2), max_size=3)
quantities = st.fixed_dictionaries(
    {}, optional={part: st.dictionaries(st.sampled_from(["cpu", "memory"]), names) for part in ("requests", "limits")}
)
placements = st.builds(
    Placement,
    namespace=st.just("team-a"),
    project=st.just("digits"),
    registry=st.just("registry.test:5000/team/digits"),
    owner=st.sampled_from([None, OWNER]),
    pull_secret=st.sampled_from(["", "pull"]),
    inbox=st.just(INBOX),
    service_account=st.sampled_from(["", "nobody"]),
)
entrypoints = st.lists(texts, min_size=1, max_size=3)
job_specs = st.builds(
    JobSpec,
    name=plain_names.filter(lambda name: not name.startswith("-") and not name.endswith("-")),
    axon=names,
    task=names,
    image=digests.map(Digest),
    is_laid_by_us=st.booleans(),
    args=st.lists(texts, max_size=2).map(tuple),
    env=environments,
    data=st.lists(digests.map(Digest), max_size=2).map(tuple),
    earlier_data=st.dictionaries(tasks, digests.map(Digest), max_size=2),
    model=st.none() | digests.map(Digest),
    keeps=st.sampled_from([(), ("model",), ("data", "model")]),
    event=st.none() | configs,
    timeout_seconds=st.none() | st.floats(0, 1e6),
    resources=quantities,
    node_selector=st.dictionaries(names, names, max_size=1),
    labels=st.dictionaries(names, texts, max_size=2),
)
server_specs = st.builds(
    ServerSpec,
    name=plain_names.filter(lambda name: not name.startswith("-") and not name.endswith("-")),
    image=digests.map(Digest),
    command=st.sampled_from([(), ("python", "-m", "myelin.proxy"), ("serve", "$(HOME)")]),
    env=environments,
    data=st.lists(digests.map(Digest), max_size=1).map(tuple),
    model=st.none() | digests.map(Digest),
    config=st.none() | configs,
    health_path=st.sampled_from(["/health", "/"]),
    labels=st.fixed_dictionaries({}, optional={"job": st.sampled_from(["proxy", "model"]), "config": digests}),
)
platforms = st.sampled_from(["linux/amd64", "linux/arm64", "windows/amd64"])
ONE = "sha256:" + "1" * 64
SMALL = JobSpec(name="j", axon="digits", task="fit", image=Digest(ONE))
HERE = Placement(namespace="team-a", project="digits", registry="registry.test:5000/team/digits")


def job_of(spec: JobSpec, placement: Placement, image: str, entrypoint: list[str]) -> dict[str, Any]:
    return jobs.job(spec, placement, image=Digest(image), entrypoint=entrypoint, result_url=URL)


def server_of(spec: ServerSpec, placement: Placement, image: str, entrypoint: list[str]) -> dict[str, Any]:
    deployment = serving.deployment(spec, placement, image=Digest(image), entrypoint=entrypoint)
    made = {"deployment": deployment, "service": serving.service(spec, placement), "config": serving.config_map(spec, placement)}
    return {part: manifest for part, manifest in made.items() if manifest is not None}


def expanded(text: str, environment: Mapping[str, str]) -> str:
    """What the kubelet makes of a command's part or a variable's value, byte for byte.

    Source: third_party/forked/golang/expansion/expand.go of Kubernetes.
    """
    data, found, at = text.encode(), b"", 0
    while at < len(data):
        here, following = data[at : at + 1], data[at + 1 : at + 2]
        if here != b"$" or not following:
            found, at = found + here, at + 1
        elif following == b"$":
            found, at = found + b"$", at + 2
        elif following == b"(" and (end := data.find(b")", at)) > 0:
            name = data[at + 2 : end].decode()
            found, at = found + environment.get(name, f"$({name})").encode(), end + 1
        else:  # it takes a byte for a character
            found, at = found + b"$" + chr(following[0]).encode(), at + 2
    return found.decode(errors="replace")


# Names.


@given(st.lists(plain_names | near_names | st.lists(texts, min_size=1, max_size=3).map(lambda parts: object_name(*parts))))
def test_different_names_give_different_object_names_that_kubernetes_takes(given_names: list[str]) -> None:
    for limit, name_of in ((52, job_name), (63, kube_name)):
        made = {name: name_of(name) for name in given_names}
        # What was shortened once is a name as well.
        made |= {name: name_of(name) for name in made.values() if name not in made}
        assert len(set(made.values())) == len(made)
        for name in made.values():
            assert len(name) <= limit
            assert RFC_1035.fullmatch(name)


@given(st.text(unicode, max_size=70))
def test_whatever_the_name_the_object_has_one_that_kubernetes_takes(name: str) -> None:
    assert RFC_1035.fullmatch(kube_name(name))
    assert RFC_1035.fullmatch(job_name(name))


@given(st.from_regex(r"[a-z]([a-z0-9]+-){0,8}[a-z0-9]", fullmatch=True))
def test_a_name_that_kubernetes_takes_is_the_objects_name(name: str) -> None:
    assert (kube_name(name) == name) == (len(name) <= 63)
    assert (job_name(name) == name) == (len(name) <= 52)


@given(st.dictionaries(texts, texts))
def test_labels_of_the_port_are_read_back_as_they_were_written(value: dict[str, str]) -> None:
    assert decoded({"annotations": {"myelin.io/labels": encoded(value)}}) == value


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", "[" * 100_000])
def test_labels_that_somebody_damaged_are_none(text: str) -> None:
    assert decoded({"annotations": {"myelin.io/labels": text}}) == {}
    assert decoded({}) == {}


@given(server_specs, placements, digests)
def test_objects_are_found_by_their_selector_and_those_of_others_are_not(
    spec: ServerSpec, placement: Placement, image: str
) -> None:
    cluster, kind = FakeCluster(), serving.kind_of(spec)
    meta = server_of(spec, placement, image, ["x"])["deployment"]["metadata"]
    changes: tuple[dict[str, Any], ...] = ({}, {PROJECT: "other"}, {KIND: "other"}, {NAME: None})
    for number, change in enumerate(changes):
        labels = {key: value for key, value in {**meta["labels"], **change}.items() if value is not None}
        cluster.create(DEPLOYMENT, {"metadata": {"name": f"d-{number}", "namespace": "team-a", "labels": labels}})
    found = cluster.list(DEPLOYMENT, "team-a", selector(placement, "job", kind))
    assert [item["metadata"]["name"] for item in found] == ["d-0"]


# Manifests.


@given(job_specs, server_specs, placements, digests, entrypoints, st.data())
def test_manifests_follow_from_their_inputs_alone(
    job: JobSpec, server: ServerSpec, placement: Placement, image: str, entrypoint: list[str], data: st.DataObject
) -> None:
    before = copy.deepcopy((job, server, placement))
    made = [job_of(job, placement, image, entrypoint), server_of(server, placement, image, entrypoint)]
    draw: Any = data.draw
    again_env = shuffled(dict(job.env), draw)
    again = [
        job_of(copy.deepcopy(job), placement, image, list(entrypoint)),
        server_of(copy.deepcopy(server), placement, image, list(entrypoint)),
    ]
    assert json.dumps(made) == json.dumps(again)
    assert (job, server, placement) == before
    other = job_of(replace(job, env=again_env), placement, image, entrypoint)
    assert canonical(other) == canonical(made[0])


@given(job_specs, server_specs, placements, digests, entrypoints)
def test_every_pod_is_restricted_by_digest_and_without_token(
    job: JobSpec, server: ServerSpec, placement: Placement, image: str, entrypoint: list[str]
) -> None:
    templates = [job_of(job, placement, image, entrypoint)["spec"]["template"]]
    templates.append(server_of(server, placement, image, entrypoint)["deployment"]["spec"]["template"])
    for template in templates:
        pod = template["spec"]
        # Source: the profile `restricted` of Kubernetes' Pod Security Standards, control by control.
        assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC", "hostUsers", "initContainers", "ephemeralContainers"}
        assert all(volume.keys() - {"name"} <= {"emptyDir", "configMap"} for volume in pod["volumes"])
        assert pod["securityContext"] == {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "fsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        (main,) = pod["containers"]
        assert main["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert all("hostPort" not in port for port in main.get("ports", ()))
        assert main.keys().isdisjoint({"lifecycle", "envFrom", "volumeDevices", "args"})
        # No credentials of the cluster, of other services or of Secrets.
        assert (pod["automountServiceAccountToken"], pod["enableServiceLinks"]) == (False, False)
        assert all(item.keys() == {"name", "value"} for item in main["env"])
        assert BY_DIGEST.fullmatch(main["image"])
        assert main["image"].endswith(image)
        assert pod.get("imagePullSecrets", []) == ([{"name": "pull"}] if placement.pull_secret else [])
        # All that is mounted is there, and all that is there is mounted; each variable is said once.
        mounted = [mount["name"] for mount in main["volumeMounts"]]
        assert sorted(mounted) == sorted({volume["name"] for volume in pod["volumes"]})
        assert len({item["name"] for item in main["env"]}) == len(main["env"])
        assert all(LABEL.fullmatch(value) for value in template["metadata"]["labels"].values())


@given(job_specs, server_specs, digests, st.sets(platforms), platforms)
def test_a_pod_lands_on_no_node_that_its_image_does_not_run_on(
    job: JobSpec, server: ServerSpec, image: str, runs_on: set[str], node: str
) -> None:
    made = jobs.job(job, HERE, image=Digest(image), entrypoint=["x"], result_url=URL, platforms=runs_on)
    deployed = serving.deployment(server, HERE, image=Digest(image), entrypoint=["x"], platforms=runs_on)
    for manifest in (made, deployed):
        pod = manifest["spec"]["template"]["spec"]
        assert takes(pod.get("affinity"), node) == (node in runs_on or not runs_on)
    assert made["spec"]["template"]["spec"].get("nodeSelector", {}) == job.node_selector


def takes(affinity: Any, node: str) -> bool:
    """Whether the scheduler lets a pod onto a node: one term has to hold, and all of its expressions."""
    if affinity is None:
        return True
    system, machine = node.split("/")
    labels = {"kubernetes.io/os": system, "kubernetes.io/arch": machine}
    terms = affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert all(item["operator"] == "In" for term in terms for item in term["matchExpressions"])
    return any(all(labels[item["key"]] in item["values"] for item in term["matchExpressions"]) for term in terms)


@given(job_specs, placements, digests, entrypoints)
def test_a_job_runs_once_and_a_lost_node_is_no_failure_of_it(
    spec: JobSpec, placement: Placement, image: str, entrypoint: list[str]
) -> None:
    wanted = job_of(spec, placement, image, entrypoint)["spec"]
    assert (wanted["backoffLimit"], wanted["template"]["spec"]["restartPolicy"]) == (0, "Never")
    assert [rule["action"] for rule in wanted["podFailurePolicy"]["rules"]] == ["Ignore"]
    assert wanted.get("activeDeadlineSeconds", 1) >= 1
    assert ("activeDeadlineSeconds" in wanted) == (spec.timeout_seconds is not None)


@given(job_specs, placements, digests)
def test_every_input_of_a_job_is_laid_where_its_environment_says(spec: JobSpec, placement: Placement, image: str) -> None:
    laid = jobs.inputs(spec)
    pod = job_of(spec, placement, image, ["x"])["spec"]["template"]["spec"]
    env = {item["name"]: item["value"] for item in pod["containers"][0]["env"]}
    for task, digest in spec.earlier_data.items():
        folder = env[f"DATA_PATH_{task}"].removeprefix(f"{WORK}/").rstrip("/")
        assert laid[f"myelin/in/{folder}"] == (digest,)
    assert laid.get("myelin/in/data", ()) == spec.data
    assert laid.get("myelin/in/model") == ((spec.model,) if spec.model is not None else None)
    assert all(not place.startswith("/") for place in laid)


@given(st.text(unicode, max_size=9) | st.text("$(A)é", max_size=9), job_specs, placements, digests)
@example("$(A)", SMALL, HERE, ONE)
@example("$$(A)", SMALL, HERE, ONE)
@example("a$$b", SMALL, HERE, ONE)
@example("$é", SMALL, HERE, ONE)
def test_a_program_gets_what_it_was_given_to_the_letter(text: str, spec: JobSpec, placement: Placement, image: str) -> None:
    given_spec = replace(spec, args=(text,), env={**spec.env, "A": text})
    pod = job_of(given_spec, placement, image, ["run", text])["spec"]["template"]["spec"]
    (main,) = pod["containers"]
    around = {item["name"]: f"<{item['name']}>" for item in main["env"]}
    assert [expanded(part, around) for part in main["command"]][-3:] == ["run", text, text]
    assert {item["name"]: expanded(item["value"], around) for item in main["env"]}["A"] == text


@given(server_specs, placements, digests, configs, configs, digests)
def test_config_alone_never_changes_the_pod_template(
    spec: ServerSpec, placement: Placement, image: str, one: dict[str, Any], other: dict[str, Any], digest: str
) -> None:
    first = server_of(replace(spec, config=one), placement, image, ["x"])
    second = server_of(replace(spec, config=other, labels={**spec.labels, "config": digest}), placement, image, ["x"])
    assert first["deployment"]["spec"] == second["deployment"]["spec"]
    assert first["service"]["spec"] == second["service"]["spec"]
    assert json.loads(second["config"]["data"]["config.json"]) == other


@given(server_specs, digests, placements, digests)
def test_another_image_model_or_environment_does(spec: ServerSpec, digest: str, placement: Placement, image: str) -> None:
    assume(digest not in (spec.image, spec.model))
    template = server_of(spec, placement, image, ["x"])["deployment"]["spec"]["template"]
    changes: list[dict[str, Any]] = [{"image": Digest(digest)}, {"model": Digest(digest)}, {"env": {**spec.env, "X": digest}}]
    for change in changes:
        made = server_of(replace(spec, **change), placement, image, ["x"])["deployment"]["spec"]
        assert made["template"] != template
        # What a Deployment is found by can never be changed.
        assert made["selector"] == server_of(spec, placement, image, ["x"])["deployment"]["spec"]["selector"]


@given(server_specs, placements, digests)
def test_a_servers_service_finds_its_pods_and_no_others(spec: ServerSpec, placement: Placement, image: str) -> None:
    made = server_of(spec, placement, image, ["x"])
    labels = made["deployment"]["spec"]["template"]["metadata"]["labels"]
    for selected in (made["service"]["spec"]["selector"], made["deployment"]["spec"]["selector"]["matchLabels"]):
        assert selected.items() <= labels.items()
        assert selected[NAME] == spec.name
    (port,) = made["service"]["spec"]["ports"]
    (main,) = made["deployment"]["spec"]["template"]["spec"]["containers"]
    assert port["targetPort"] == main["ports"][0]["containerPort"]
    host = serving.address(spec.name, placement).partition(".")[0]
    assert host == made["service"]["metadata"]["name"] == made["deployment"]["metadata"]["name"]
    mounted = {volume.get("configMap", {}).get("name") for volume in made["deployment"]["spec"]["template"]["spec"]["volumes"]}
    assert ({made["config"]["metadata"]["name"]} if "config" in made else set()) == mounted - {None}


@pytest.mark.parametrize(
    ("letter", "letters"), [("a", 99_980), ("é", 49_990), ("…", 33_320)], ids=["one byte each", "two bytes", "three bytes"]
)
def test_an_event_that_no_variable_can_hold_is_refused_in_words(letter: str, letters: int) -> None:
    fits = replace(SMALL, event={"text": letter * letters})
    pod = job_of(fits, HERE, ONE, ["x"])["spec"]["template"]["spec"]
    (text,) = [item["value"] for item in pod["containers"][0]["env"] if item["name"] == "MYELIN_JOB_EVENT"]
    assert json.loads(text) == fits.event
    with pytest.raises(DesiredStateError) as caught:
        job_of(replace(SMALL, event={"text": letter * (letters + 30)}), HERE, ONE, ["x"])
    assert caught.value.reason == "EventTooBig"
    assert caught.value.message.startswith("event of fit: expected at most 100000 bytes on Kubernetes, got 100")


# Drift.


@st.composite
def trees(draw: st.DrawFn, depth: int = 3) -> dict[str, Any]:
    """What may be applied: folders, lists of named things, lists of plain ones."""
    leaf = st.booleans() | st.integers(-9, 9) | st.text("ab", max_size=2)
    if depth == 0:
        return draw(st.dictionaries(st.sampled_from("abcd"), leaf, max_size=2))
    inner = trees(depth - 1)
    named = st.lists(inner, min_size=1, max_size=3).map(
        lambda items: [{**item, "name": f"n{number}"} for number, item in enumerate(items)]
    )
    return draw(st.dictionaries(st.sampled_from("abcd"), leaf | inner | named | st.lists(leaf, max_size=2), max_size=3))


def with_defaults(value: Any, draw: Any) -> Any:
    """The same, as an API server gives it back: with more fields and more named things, in another order."""
    if isinstance(value, dict):
        found = {key: with_defaults(item, draw) for key, item in value.items()}
        added = draw(st.dictionaries(st.sampled_from(["x", "y"]), st.integers() | st.just({}), max_size=2))
        return {**added, **found}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        more = [{"name": "injected", "z": 1}] if draw(st.booleans()) else []
        return draw(st.permutations([*(with_defaults(item, draw) for item in value), *more]))
    return value


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for number, item in enumerate(value):
            yield from leaves(item, (*path, number))
    else:
        yield path


def changed(value: Any, path: tuple[Any, ...], item: Any) -> Any:
    found = copy.deepcopy(value)
    inner = found
    for key in path[:-1]:
        inner = inner[key]
    if item is GONE:
        del inner[path[-1]]
    else:
        inner[path[-1]] = item
    return found


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


GONE = object()
OTHERS = (GONE, None, 17, "other", ["other"], {"other": 1}, [{"name": "other"}])


@given(trees(), st.data())
def test_what_others_add_is_no_drift(applied: dict[str, Any], data: st.DataObject) -> None:
    assert drift_of(applied, applied) == ""
    assert drift_of(applied, with_defaults(applied, data.draw)) == ""


@given(trees().filter(bool), st.data())
def test_any_change_of_what_was_applied_is_found(applied: dict[str, Any], data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(leaves(applied), key=str) or [()]))
    assume(path)
    before, after = at(applied, path), data.draw(st.sampled_from(OTHERS))
    # The API leaves out what is empty, so to leave it out is no change.
    assume(not (before in ("", []) and (after is GONE or after is None)))
    live = with_defaults(changed(applied, path, after), data.draw)
    assert drift_of(applied, live).startswith(f".{path[0]}")


@given(trees(), st.sampled_from((None, 1, "x", [], [1])))
def test_something_that_is_no_object_at_all_is_drift_of_it(applied: dict[str, Any], live: Any) -> None:
    assert (drift_of(applied, live) == "") == (live is None and not applied)


@given(server_specs, placements, digests, entrypoints, st.data())
def test_servers_as_they_were_applied_have_not_drifted_and_each_change_by_hand_is_found(
    spec: ServerSpec, placement: Placement, image: str, entrypoint: list[str], data: st.DataObject
) -> None:
    made = server_of(spec, placement, image, entrypoint)
    wanted = made[data.draw(st.sampled_from(sorted(made)))]
    live = {**wanted, "metadata": {**wanted["metadata"], "resourceVersion": "7", "uid": "u"}, "status": {"replicas": 1}}
    assert drift_of(wanted, live) == ""
    path = data.draw(st.sampled_from(sorted(leaves(wanted), key=str)))
    assume(at(wanted, path) not in ("", [], {}))
    assert drift_of(wanted, changed(live, path, "by hand")) != ""
