"""What Kubernetes says of a pod, as it says it, and what a person is told of it."""

from datetime import UTC, datetime
from typing import Any

import pytest

from reconcilers.manifests.job import is_over
from reconcilers.manifests.states import Trouble, instant, is_ready, newest, refusal, restarts_of, trouble_of

IMAGE = "registry.test:5000/team/digits@sha256:0123456789abcdef" + "0" * 48
LIMITED = {"containers": [{"name": "main", "resources": {"limits": {"memory": "1Gi"}}}]}
UNLIMITED = {"containers": [{"name": "main", "resources": {"requests": {"memory": "1Gi"}}}]}


def pod(*, spec: dict[str, Any] | None = None, conditions: tuple[dict[str, str], ...] = (), **status: Any) -> dict[str, Any]:
    said = {"phase": "Running", "conditions": [{"type": "PodScheduled", "status": "True"}, *conditions], **status}
    return {"metadata": {"name": "p"}, "spec": spec or UNLIMITED, "status": said}


def waits(reason: str, message: str = "", last: dict[str, Any] | None = None) -> dict[str, Any]:
    state = {"waiting": {"reason": reason, "message": message} if message else {"reason": reason}}
    return {"name": "main", "image": IMAGE, "state": state, "lastState": {"terminated": last} if last else {}}


def ended(code: int, reason: str = "Error", **more: Any) -> dict[str, Any]:
    return {"exitCode": code, "reason": reason, **more}


def over(code: int, reason: str = "Error", **more: Any) -> dict[str, Any]:
    return {"name": "main", "image": IMAGE, "state": {"terminated": ended(code, reason, **more)}, "lastState": {}}


def starting(**status: Any) -> dict[str, Any]:
    return pod(phase="Pending", **status)


PULL = "; see registry.pullSecretName of the Project and whether the node reaches the registry"
MEMORY = "; raise `resources.limits.memory`, or make it need less"
RUNNING = {"name": "main", "image": IMAGE, "state": {"running": {"startedAt": "2026-01-31T12:00:00Z"}}, "lastState": {}}
DISRUPTED = {
    "type": "DisruptionTarget",
    "status": "True",
    "reason": "DeletionByTaintManager",
    "message": "Taint manager: deleting due to NoExecute taint",
}
SCENARIOS: dict[str, tuple[dict[str, Any], Trouble | None]] = {
    "nothing is said of a pod yet": ({"metadata": {"name": "p"}}, None),
    "a pod that runs": (pod(containerStatuses=[RUNNING]), None),
    "a pod whose program ended well": (pod(phase="Succeeded", containerStatuses=[over(0, "Completed")]), None),
    "a container that is being made": (starting(containerStatuses=[waits("ContainerCreating")]), None),
    "an image that is being pulled": (starting(containerStatuses=[waits("PodInitializing")]), None),
    "a program that runs again after it ended badly once": (
        pod(containerStatuses=[{**RUNNING, "lastState": {"terminated": ended(1)}}]),
        None,
    ),
    "no node has room for it": (
        {
            "metadata": {"name": "p"},
            "status": {
                "phase": "Pending",
                "conditions": [
                    {
                        "type": "PodScheduled",
                        "status": "False",
                        "reason": "Unschedulable",
                        "message": "0/3 nodes are available:\n 3 Insufficient cpu.",
                    }
                ],
            },
        },
        Trouble(
            reason="Unschedulable",
            message="no node takes it: 0/3 nodes are available: 3 Insufficient cpu."
            "; make room, ask for less in `resources` or `nodeSelector`, or build for these nodes (`builder.platforms`)",
        ),
    ),
    "the scheduler has not looked at it yet": (
        {"metadata": {}, "status": {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]}},
        None,
    ),
    "the registry wants another Secret": (
        starting(containerStatuses=[waits("ErrImagePull", "pull access denied, insufficient_scope")]),
        Trouble(reason="ImagePull", message=f"image sha256:0123456789ab: pull access denied, insufficient_scope{PULL}"),
    ),
    "the image is asked for less and less often": (
        starting(containerStatuses=[waits("ImagePullBackOff", 'Back-off pulling image "…"')]),
        Trouble(reason="ImagePull", message=f'image sha256:0123456789ab: Back-off pulling image "…"{PULL}'),
    ),
    "the registry does not answer the node": (
        starting(containerStatuses=[waits("RegistryUnavailable")]),
        Trouble(reason="ImagePull", message=f"image sha256:0123456789ab: RegistryUnavailable{PULL}"),
    ),
    "the node finds no signature that it trusts": (
        starting(containerStatuses=[waits("SignatureValidationFailed", "no signature")]),
        Trouble(reason="ImagePull", message=f"image sha256:0123456789ab: no signature{PULL}"),
    ),
    "its config is not there": (
        starting(containerStatuses=[waits("CreateContainerConfigError", 'configmap "digits-web-proxy" not found')]),
        Trouble(reason="CannotStart", message='configmap "digits-web-proxy" not found'),
    ),
    "its program is not in the image, and it is started once": (
        pod(phase="Failed", containerStatuses=[over(128, "StartError", message='exec: "nothing": not found in $PATH')]),
        Trouble(reason="CannotStart", message='exec: "nothing": not found in $PATH', exit_code=128),
    ),
    "its program is not in the image, and it is started again and again": (
        pod(containerStatuses=[waits("CrashLoopBackOff", "back-off 10s", ended(128, "StartError", message="no such file"))]),
        Trouble(reason="CannotStart", message="no such file", exit_code=128),
    ),
    "the runtime cannot start it": (
        pod(containerStatuses=[waits("RunContainerError", "failed to mount /x")]),
        Trouble(reason="CannotStart", message="failed to mount /x"),
    ),
    "it needed more memory than its limit": (
        pod(spec=LIMITED, phase="Failed", containerStatuses=[over(137, "OOMKilled")]),
        Trouble(reason="OutOfMemory", message=f"was killed: it needed more memory than its limit of 1Gi{MEMORY}", exit_code=137),
    ),
    "it needed more memory than there is": (
        pod(phase="Failed", containerStatuses=[over(137, "OOMKilled")]),
        Trouble(reason="OutOfMemory", message=f"was killed: it needed more memory than the node has{MEMORY}", exit_code=137),
    ),
    "it needs more memory each time": (
        pod(spec=LIMITED, containerStatuses=[waits("CrashLoopBackOff", "back-off 40s", ended(137, "OOMKilled"))]),
        Trouble(reason="OutOfMemory", message=f"was killed: it needed more memory than its limit of 1Gi{MEMORY}", exit_code=137),
    ),
    "memory ran out and nobody knows its spec": (
        {"metadata": {}, "spec": {"containers": []}, "status": {"containerStatuses": [over(137, "OOMKilled")]}},
        Trouble(reason="OutOfMemory", message=f"was killed: it needed more memory than the node has{MEMORY}", exit_code=137),
    ),
    "the node was short of disk": (
        pod(
            phase="Failed", reason="Evicted", message="The node was low on resource: ephemeral-storage. ", conditions=(DISRUPTED,)
        ),
        Trouble(
            reason="Evicted",
            message="the node put it out: The node was low on resource: ephemeral-storage."
            "; the node was short of what it says; ask for it in `resources.requests`",
        ),
    ),
    "its program ended badly": (
        pod(phase="Failed", containerStatuses=[over(3)]),
        Trouble(reason="ExitCode", message="expected exit code 0, got 3", exit_code=3),
    ),
    "its program said -1": (
        pod(phase="Failed", containerStatuses=[over(255)]),
        Trouble(reason="ExitCode", message="expected exit code 0, got 255", exit_code=255),
    ),
    "its program said 128": (
        pod(phase="Failed", containerStatuses=[over(128)]),
        Trouble(reason="ExitCode", message="expected exit code 0, got 128", exit_code=128),
    ),
    "its program was killed": (
        pod(phase="Failed", containerStatuses=[over(137)]),
        Trouble(reason="ExitCode", message="was killed by signal 9", exit_code=137),
    ),
    "its program ends badly again and again": (
        pod(containerStatuses=[waits("CrashLoopBackOff", "back-off 5m0s restarting failed container", ended(1))]),
        Trouble(reason="ExitCode", message="expected exit code 0, got 1", exit_code=1),
    ),
    "its program ends well again and again": (
        pod(containerStatuses=[waits("CrashLoopBackOff", "back-off 10s restarting", ended(0, "Completed"))]),
        Trouble(reason="CrashLoop", message="ends with exit code 0 again and again, and a server has to stay"),
    ),
    "it ended badly and is about to be started again": (
        pod(containerStatuses=[over(1)]),
        Trouble(reason="ExitCode", message="expected exit code 0, got 1", exit_code=1),
    ),
    "its node went away": (
        pod(phase="Failed", conditions=(DISRUPTED,), containerStatuses=[over(137)]),
        Trouble(
            reason="Lost",
            message="its node gave it up: Taint manager: deleting due to NoExecute taint; another one takes its place",
        ),
    ),
    "its node is being drained": (
        pod(conditions=({"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"},)),
        Trouble(reason="Lost", message="its node gave it up: EvictionByEvictionAPI; another one takes its place"),
    ),
    "a disruption that did not come": (
        pod(conditions=({"type": "DisruptionTarget", "status": "False"},), containerStatuses=[RUNNING]),
        None,
    ),
    "its node does not answer": (
        pod(reason="NodeLost", message="Node n-1 which was running pod p is unresponsive", containerStatuses=[RUNNING]),
        Trouble(reason="Lost", message="Node n-1 which was running pod p is unresponsive"),
    ),
    "the node would not have it": (
        pod(phase="Failed", reason="OutOfcpu", message="Node didn't have enough resource: cpu"),
        Trouble(reason="Lost", message="Node didn't have enough resource: cpu"),
    ),
    "it failed and nobody says why": (pod(phase="Failed"), Trouble(reason="Lost", message="its pod failed")),
}


@pytest.mark.parametrize(("found", "expected"), SCENARIOS.values(), ids=list(SCENARIOS))
def test_what_a_pod_says_becomes_a_reason_and_words(found: dict[str, Any], expected: Trouble | None) -> None:
    assert trouble_of(found) == expected


@pytest.mark.parametrize(("found", "expected"), SCENARIOS.values(), ids=list(SCENARIOS))
def test_words_are_one_line_however_long_the_cluster_talks(found: dict[str, Any], expected: Trouble | None) -> None:
    talked = {**found, "status": _talking(found.get("status", {}))}
    trouble = trouble_of(talked)
    assert (trouble and trouble.reason) == (expected and expected.reason)
    assert trouble is None or ("\n" not in trouble.message and len(trouble.message) < 500)


def _talking(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: "talk\n" * 1000 if key == "message" else _talking(item) for key, item in value.items()}
    return [_talking(item) for item in value] if isinstance(value, list) else value


def event(reason: str, message: str, at: str, **more: Any) -> dict[str, Any]:
    return {"reason": reason, "message": message, "lastTimestamp": at, **more}


POLICY = 'Error creating: pods "j-x" is forbidden: violates PodSecurity "restricted:latest"'
QUOTA = 'Error creating: pods "j-x" is forbidden: exceeded quota: team-a'
EVENTS: dict[str, tuple[list[dict[str, Any]], str]] = {
    "nothing was said": ([], ""),
    "all went well": ([event("SuccessfulCreate", "Created pod: j-x", "2026-01-31T12:00:00Z")], ""),
    "a rule of the namespace forbids it": ([event("FailedCreate", POLICY, "2026-01-31T12:00:00Z")], POLICY),
    "the newest word counts": (
        [
            event("FailedCreate", QUOTA, "2026-01-31T12:00:09Z"),
            event("FailedCreate", POLICY, "2026-01-31T12:00:01Z"),
            event("Suspended", "Job suspended", "2026-01-31T12:00:30Z"),
        ],
        QUOTA,
    ),
    "an event of the newer kind": (
        [
            event("FailedCreate", POLICY, "2026-01-31T12:00:01Z"),
            {"reason": "FailedCreate", "message": QUOTA, "lastTimestamp": None, "eventTime": "2026-01-31T12:00:09.000000Z"},
        ],
        QUOTA,
    ),
    "an event without words": ([{"reason": "FailedCreate", "message": ""}], ""),
}


@pytest.mark.parametrize(("events", "words"), EVENTS.values(), ids=list(EVENTS))
def test_why_there_is_no_pod_is_told_from_its_jobs_events(events: list[dict[str, Any]], words: str) -> None:
    expected = Trouble(reason="Refused", message=f"the cluster admits no pod of it: {words}") if words else None
    assert refusal(events) == expected


READY: dict[str, tuple[dict[str, Any], bool]] = {
    "it answers": (pod(conditions=({"type": "Ready", "status": "True"},)), True),
    "it does not answer yet": (pod(conditions=({"type": "Ready", "status": "False"},)), False),
    "nobody asked it yet": (pod(), False),
    "it answers and is about to go": (
        {**pod(conditions=({"type": "Ready", "status": "True"},)), "metadata": {"deletionTimestamp": "2026-01-31T12:00:00Z"}},
        False,
    ),
}


@pytest.mark.parametrize(("found", "expected"), READY.values(), ids=list(READY))
def test_a_pod_is_ready_when_it_answers_and_stays(found: dict[str, Any], expected: bool) -> None:
    assert is_ready(found) is expected


OVER: dict[str, tuple[list[dict[str, str]], str]] = {
    "it goes on": ([], ""),
    "it is being stopped": ([{"type": "Suspended", "status": "True"}, {"type": "Complete", "status": "False"}], ""),
    "it ended well": ([{"type": "SuccessCriteriaMet", "status": "True"}, {"type": "Complete", "status": "True"}], "Complete"),
    "its pods are not all gone yet": ([{"type": "FailureTarget", "status": "True"}], ""),
    "it failed": ([{"type": "FailureTarget", "status": "True"}, {"type": "Failed", "status": "True"}], "Failed"),
}


@pytest.mark.parametrize(("conditions", "expected"), OVER.values(), ids=list(OVER))
def test_a_job_is_over_when_kubernetes_says_so(conditions: list[dict[str, str]], expected: str) -> None:
    assert is_over({"status": {"conditions": conditions}}) == expected


def test_the_newest_pod_is_the_one_that_was_made_last() -> None:
    pods = [
        {"metadata": {"name": name, "creationTimestamp": f"2026-01-31T12:00:{at}Z"}} for name, at in (("a", "01"), ("b", "10"))
    ]
    assert newest(pods) == newest(reversed(pods)) == pods[1]
    assert newest([]) is None


def test_restarts_are_counted() -> None:
    assert restarts_of(pod(containerStatuses=[{**RUNNING, "restartCount": 3}])) == 3
    assert restarts_of(starting()) == 0


def test_instants_are_read_as_the_api_writes_them() -> None:
    assert instant("2026-01-31T12:00:00Z") == datetime(2026, 1, 31, 12, tzinfo=UTC)
    assert instant("2026-01-31T12:00:00.000001Z") == datetime(2026, 1, 31, 12, 0, 0, 1, tzinfo=UTC)
    assert instant(None) is instant("") is None
