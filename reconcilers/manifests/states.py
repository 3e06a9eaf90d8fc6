"""What Kubernetes says of pods -> a reason and words for a person."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

_WAITING = {
    "ErrImagePull": "ImagePull",
    "ImagePullBackOff": "ImagePull",
    "InvalidImageName": "ImagePull",
    "ErrImageNeverPull": "ImagePull",
    "ImageInspectError": "ImagePull",
    "RegistryUnavailable": "ImagePull",
    "SignatureValidationFailed": "ImagePull",
    "CreateContainerConfigError": "CannotStart",
    "CreateContainerError": "CannotStart",
    "RunContainerError": "CannotStart",
    "StartError": "CannotStart",
    "CrashLoopBackOff": "CrashLoop",
}
_NEXT = {
    "ImagePull": "see registry.pullSecretName of the Project and whether the node reaches the registry",
    "Unschedulable": "make room, ask for less in `resources` or `nodeSelector`, or build for these nodes (`builder.platforms`)",
    "OutOfMemory": "raise `resources.limits.memory`, or make it need less",
    "Evicted": "the node was short of what it says; ask for it in `resources.requests`",
}
SIGNALS = range(1, 65)
"""What Linux has; a shell, and our job's wrapper, say 128 more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """Why a pod does not do what it should."""

    reason: str
    message: str
    exit_code: int | None = None


def trouble_of(pod: Mapping[str, Any]) -> Trouble | None:
    """Why a pod waits or failed; None when nothing is wrong with it."""
    status = pod.get("status", {})
    if status.get("reason") == "Evicted":
        return _trouble("Evicted", f"the node put it out: {_line(status.get('message'))}")
    for condition in status.get("conditions", ()):
        if condition["type"] == "PodScheduled" and condition["status"] == "False" and condition.get("reason") == "Unschedulable":
            return _trouble("Unschedulable", f"no node takes it: {_line(condition.get('message'))}")
        if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
            # Its exit code says nothing about the program then.
            words = _line(condition.get("message")) or condition.get("reason", "")
            return _trouble("Lost", f"its node gave it up: {words}; another one takes its place")
    if status.get("reason") == "NodeLost":
        return _trouble("Lost", _line(status.get("message")) or "its node does not answer")
    for state in status.get("containerStatuses", ()):
        if (waiting := state.get("state", {}).get("waiting")) and (reason := _WAITING.get(waiting.get("reason", ""))):
            ended = _ended(state.get("lastState", {}).get("terminated"), pod)
            if reason == "CrashLoop":
                return ended or _trouble(reason, "ends with exit code 0 again and again, and a server has to stay")
            what = f"image {str(state.get('image', '')).rpartition('@')[2][:19]}: " if reason == "ImagePull" else ""
            return _trouble(reason, f"{what}{_line(waiting.get('message')) or waiting['reason']}")
        if (ended := _ended(state.get("state", {}).get("terminated"), pod)) is not None:
            return ended
    if status.get("phase") == "Failed":
        return _trouble("Lost", _line(status.get("message")) or _line(status.get("reason")) or "its pod failed")
    return None


def restarts_of(pod: Mapping[str, Any]) -> int:
    """How often a pod's program was started again."""
    return sum(int(state.get("restartCount", 0)) for state in pod.get("status", {}).get("containerStatuses", ()))


def is_ready(pod: Mapping[str, Any]) -> bool:
    """Whether a pod answers and is not about to go."""
    if "deletionTimestamp" in pod["metadata"]:
        return False
    conditions = pod.get("status", {}).get("conditions", ())
    return any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)


def instant(text: str | None) -> datetime | None:
    """An instant as the API writes it."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")) if text else None


def newest(pods: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The pod that was made last."""
    return max(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")), default=None)


def refusal(events: Iterable[Mapping[str, Any]]) -> Trouble | None:
    """Why no pod could be made, from the newest event that says so."""
    told = [event for event in events if event.get("reason") in ("FailedCreate", "FailedMount") and event.get("message")]
    last = max(told, key=lambda event: str(event.get("lastTimestamp") or event.get("eventTime") or ""), default=None)
    return _trouble("Refused", f"the cluster admits no pod of it: {_line(last['message'])}") if last is not None else None


def _ended(terminated: Mapping[str, Any] | None, pod: Mapping[str, Any]) -> Trouble | None:
    if terminated is None or (code := terminated.get("exitCode", 0)) == 0:
        return None
    if terminated.get("reason") == "OOMKilled":
        main: Mapping[str, Any] = next(iter(pod.get("spec", {}).get("containers", ())), {})
        limits = main.get("resources", {}).get("limits", {})
        bound = f"its limit of {limits['memory']}" if "memory" in limits else "the node has"
        return _trouble("OutOfMemory", f"was killed: it needed more memory than {bound}", code)
    if terminated.get("reason") in ("StartError", "ContainerCannotRun"):
        return _trouble("CannotStart", _line(terminated.get("message")), code)
    signal = f"was killed by signal {code - 128}" if code - 128 in SIGNALS else f"expected exit code 0, got {code}"
    return _trouble("ExitCode", signal, code)


def _trouble(reason: str, message: str, code: int | None = None) -> Trouble:
    advice = _NEXT.get(reason)
    return Trouble(reason=reason, message=f"{message}; {advice}" if advice else message, exit_code=code)


def _line(text: object) -> str:
    return " ".join(str(text or "").split())[:300]
