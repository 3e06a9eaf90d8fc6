"""Jobs and servers as Kubernetes objects. They outlive the controller, and are found again by their labels."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from controller.adapters.cluster import CONFIG_MAP, DEPLOYMENT, EVENT, JOB, POD, SERVICE, Cluster, Kind
from controller.adapters.engine_cluster.kept import Ended, KeptJobs, KeptServers
from controller.adapters.engine_cluster.runner import keep_runner
from controller.adapters.oci.described import described
from controller.adapters.oci.layout import Layout
from controller.adapters.results import job_path
from policies.errors import OutsideError, RefusedError
from policies.terms.digest import Digest
from policies.terms.task import JobSpec, JobState, ServerSpec, ServerState
from reconcilers.manifests import job as jobs
from reconcilers.manifests import serving, states
from reconcilers.manifests.drift import drift_of
from reconcilers.manifests.names import CONFIG, IMAGE, KIND, NAME, STOPPED, Placement, decoded, job_name, kube_name, selector
from reconcilers.ports import Clock

LOOK_SECONDS = 0.2
"""How long one look at the cluster counts where nobody tells of changes: a pass asks often, and the answer is the same."""
CALM_SECONDS = 30.0
"""How long one counts where watches tell of changes by `stir`; a watch that misses one is made good by then."""
LOG_LINES = 5000
REFUSED_AFTER_SECONDS = 2.0
"""A Job without a pod for so long is asked for why."""


class Compose(Protocol):
    """Lays artifacts over a code image."""

    def __call__(self, image: Digest, places: Mapping[str, Sequence[Digest]]) -> Digest:
        """The image with these artifacts in these folders."""
        ...


@dataclass(slots=True, kw_only=True)
class _Look:
    """What one look at the cluster found, and what we wrote since; jobs and servers by their own names."""

    at: float
    jobs: dict[str, dict[str, Any]]
    pods: dict[str, list[dict[str, Any]]]
    """By the uid of their Job, or the name of their server."""
    deployments: dict[str, dict[str, Any]]
    services: dict[str, dict[str, Any]]
    configs: dict[str, dict[str, Any]]
    states: Mapping[str, JobState] | None = None
    """The jobs' states, once somebody asked for them."""
    changed: set[str] = field(default_factory=set)
    """Jobs whose state has to be told anew."""

    def take(self, kind: str, body: Mapping[str, Any], is_gone: bool) -> None:
        """Take a change into the look; what a write of our own brought later is not taken back by an earlier word."""
        labels = body["metadata"].get("labels", {})
        name, is_job = str(labels.get(NAME, "")), labels.get(KIND) == "job"
        if is_job:
            self.changed.add(name)
        if kind == "pods":
            listed = self.pods.setdefault(pod_key(body), [])
            listed[:] = [item for item in listed if item["metadata"]["uid"] != body["metadata"]["uid"]]
            if not is_gone:
                listed.append(dict(body))
            return
        known = {"jobs": self.jobs, "deployments": self.deployments, "services": self.services, "configmaps": self.configs}.get(
            kind
        )
        if known is None or not name or is_job != (kind == "jobs"):
            return
        before = known.get(name)
        if before is not None and _age(before) > _age(body):
            return
        if not is_gone and "deletionTimestamp" not in body["metadata"]:
            known[name] = dict(body)
        elif before is not None and before["metadata"]["uid"] == body["metadata"]["uid"]:
            del known[name]


class ClusterEngine:
    """Implements `reconcilers.ports.Engine`.

    Args:
        cluster: The API server.
        placement: Where the project's objects go.
        layout: Where images are.
        compose: Lays data and models over an image.
        programs: Secret that jobs' addresses at the inbox are made from.
        jobs: What is kept of jobs beyond their objects.
        servers: What is kept of servers beyond theirs.
        clock: Tells when.
        is_watched: Whether somebody calls `stir` when objects change.
    """

    def __init__(
        self,
        cluster: Cluster,
        placement: Placement,
        layout: Layout,
        compose: Compose,
        *,
        programs: str,
        jobs: KeptJobs,
        servers: KeptServers,
        clock: Clock,
        is_watched: bool = False,
    ) -> None:
        self._programs = programs
        self._longest = CALM_SECONDS if is_watched else LOOK_SECONDS
        self._changes: deque[tuple[str, Mapping[str, Any], bool]] = deque()
        self._runner: Digest | None = None
        self._cluster, self._placement, self._layout, self._compose = cluster, placement, layout, compose
        self._kept_jobs, self._kept_servers, self._clock = jobs, servers, clock
        self._seen: _Look | None = None
        self._ended: dict[str, tuple[str, JobState]] = {}

    def stir(self, kind: str, body: Mapping[str, Any], is_gone: bool) -> None:
        """An object changed, as a watch says, from its own thread; the next question takes it into the last look.

        Args:
            kind: Plural.
            body: The object as it is now, or was.
            is_gone: Whether it was deleted.
        """
        self._changes.append((kind, body, is_gone))

    def start(self, spec: JobSpec) -> None:
        """Start a job, unless one of that name runs or ended already."""
        if self._kept_jobs.ended(spec.name) is not None or spec.name in self._look().jobs:
            return
        if not spec.is_laid_by_us and self._runner is None:
            self._runner = keep_runner(self._layout)
        image = self._compose(spec.image, jobs.inputs(spec, None if spec.is_laid_by_us else self._runner))
        url = f"{self._placement.inbox}{job_path(self._programs, spec.name)}"
        own = described(self._layout, spec.image)
        program = own.program(has_args=bool(spec.args))
        manifest = jobs.job(spec, self._placement, image=image, entrypoint=program, result_url=url, platforms=own.platforms)
        try:
            made = self._cluster.apply(JOB, manifest)
        except RefusedError as error:
            # A Job cannot be changed: where one is there that an earlier controller made with another address, it counts.
            there = self._cluster.get(JOB, self._placement.namespace, job_name(spec.name))
            if error.reason != "Invalid" or there is None:
                raise
            made = there
        self._note(spec.name, lambda look: look.jobs.__setitem__(spec.name, made))

    def jobs(self) -> Mapping[str, JobState]:
        """All jobs, by name."""
        look = self._look()
        if look.states is not None and not look.changed:
            return look.states
        ended = self._kept_jobs.all_ended()
        before = look.states or {name: item.state for name, item in ended.items()}
        found = {name: state for name, state in before.items() if name not in look.changed}
        for name in look.changed if look.states is not None else look.jobs:
            if name in ended:
                # Whoever died between keeping what there is to know and deleting the Job left it for the next look.
                found[name] = replace(ended[name].state, is_freed=name not in look.jobs)
            elif name in look.jobs:
                found[name] = self._job_state(name, look.jobs[name], look)
        look.states, look.changed = dict(sorted(found.items())), set()
        return look.states

    def collect(self, name: str) -> Mapping[str, Digest]:
        """What a succeeded job brought back."""
        if self._kept_jobs.ended(name) is not None or name not in self._look().jobs:
            raise OutsideError(f"job {name}: expected it in the cluster, it is gone", reason="JobGone")
        result = self._kept_jobs.result(name)
        if result is None:
            raise OutsideError(f"job {name}: expected its result, it brought none", reason="JobGone")
        return result.kept

    def stop(self, name: str) -> None:
        """End a job and all its processes."""
        found = self._look().jobs.get(name)
        if found is None or jobs.is_over(found) or _is_stopped(found):
            return
        patch = {"metadata": {"annotations": {STOPPED: self._clock.now().isoformat()}}, "spec": {"suspend": True}}
        changed = self._cluster.merge(JOB, self._placement.namespace, found["metadata"]["name"], patch)
        if changed is not None:
            self._note(name, lambda look: look.jobs.__setitem__(name, changed))

    def clean(self, name: str) -> None:
        """Delete a Job that ended; what it printed and reported stays."""
        look = self._look()
        found = look.jobs.get(name)
        if found is None:
            return
        if self._kept_jobs.ended(name) is None:
            state = self._job_state(name, found, look)
            if state.phase == "running":
                return
            self._kept_jobs.end(name, Ended(state=replace(state, is_freed=True), log=self.logs(name)))
        self._cluster.delete(JOB, self._placement.namespace, found["metadata"]["name"])
        self._note(name, lambda look: look.jobs.pop(name, None))

    def remove(self, name: str) -> None:
        """Forget a job."""
        if name in self._look().jobs:
            self._cluster.delete(JOB, self._placement.namespace, job_name(name), grace_seconds=0)
        self._kept_jobs.forget(name)
        self._ended.pop(name, None)
        self._note(name, lambda look: look.jobs.pop(name, None))

    def logs(self, name: str, *, last_bytes: int = 65536) -> str:
        """The end of what a job or server printed."""
        ended = self._kept_jobs.ended(name)
        if ended is not None:
            return _tail(ended.log, last_bytes)
        look = self._look()
        if (found := look.jobs.get(name)) is not None:
            if jobs.is_over(found) and (result := self._kept_jobs.result(name)) is not None:
                return _tail(result.log, last_bytes)
            return _tail(self._printed(look.pods.get(found["metadata"]["uid"], ())), last_bytes)
        if name in look.deployments:
            pods = [pod for pod in look.pods.get(name, ()) if not self._kept_servers.is_kept(name, _name(pod))]
            return _tail(self._kept_servers.log(name) + self._printed(pods), last_bytes)
        return _tail(self._kept_servers.log(name), last_bytes)

    def report(self, name: str, line: Mapping[str, Any]) -> None:
        """Take a line of a running job's report, for programs that report by HTTP."""
        if self._known_job(name) is None:
            raise OutsideError(f"job {name[:80]!r}: there is none of that name", reason="JobGone")
        self._kept_jobs.report(name, line)

    def take_result(self, name: str, tar: Path) -> Mapping[str, str]:
        """Take what a job brings back, and make it safe before it ends."""
        found = self._known_job(name)
        if found is None:
            raise RefusedError(f"job {name[:80]!r}: there is none of that name", reason="JobGone")
        main = found["spec"]["template"]["spec"]["containers"][0]
        keeps = next((item.get("value", "") for item in main["env"] if item["name"] == "MYELIN_JOB_KEEPS"), "")
        return dict(self._kept_jobs.take(name, tar, keeps=tuple(keep for keep in keeps.split(",") if keep)))

    def serve(self, spec: ServerSpec) -> None:
        """Make a server be there as the spec says; its new pods answer before the old ones go."""
        look, name = self._look(), spec.name
        image = self._compose(spec.image, serving.inputs(spec))
        own = described(self._layout, spec.image)
        program = () if spec.command else own.program()
        deployment = serving.deployment(spec, self._placement, image=image, entrypoint=program, platforms=own.platforms)
        config = serving.config_map(spec, self._placement)
        wanted = {"deployment": deployment, "service": serving.service(spec, self._placement)}
        wanted |= {"config": config} if config is not None else {}
        wanted = json.loads(json.dumps(wanted))  # as it is kept: what is compared must be of one form
        before = self._kept_servers.applied(name)
        if before == wanted and not _drift(before, name, look):
            return
        if before is not None and name in look.deployments and _template(before) != _template(wanted):
            going = [pod for pod in look.pods.get(name, ()) if not self._kept_servers.is_kept(name, _name(pod))]
            self._kept_servers.keep_log(name, self._printed(going), [_name(pod) for pod in going])
        for part, kind in (("config", CONFIG_MAP), ("service", SERVICE), ("deployment", DEPLOYMENT)):
            if part in wanted and (before is None or before.get(part) != wanted[part] or _drift(before, name, look, part)):
                known = {"config": "configs", "service": "services", "deployment": "deployments"}[part]
                applied = self._cluster.apply(kind, wanted[part])
                self._note(name, partial(_take, known=known, name=name, found=applied))
                if part == "config":
                    # A pod that changes is looked at by its node at once, and gets the config as it is now with it.
                    patch = {"metadata": {"annotations": {CONFIG: str(applied["metadata"]["resourceVersion"])}}}
                    for pod in look.pods.get(name, ()):
                        self._cluster.merge(POD, self._placement.namespace, _name(pod), patch)
        self._kept_servers.apply(name, wanted)

    def servers(self) -> Mapping[str, ServerState]:
        """All servers, by name; one that was changed by hand is said to be starting, so that it is put back."""
        look = self._look()
        names = sorted({*look.deployments, *look.services, *look.configs})
        return {name: self._server_state(name, look) for name in names}

    def retire(self, name: str) -> None:
        """End a server and forget it."""
        look = self._look()
        for kind, known in ((DEPLOYMENT, look.deployments), (SERVICE, look.services), (CONFIG_MAP, look.configs)):
            if name in known:
                self._cluster.delete(kind, self._placement.namespace, kube_name(name))
                known.pop(name)
        self._kept_servers.forget(name)

    def _known_job(self, name: str) -> Mapping[str, Any] | None:
        """A job for another thread: what a pass saw last will do, so a result can be made safe while the cluster is away."""
        seen = self._seen
        found = seen.jobs.get(name) if seen is not None else None
        return found or self._cluster.get(JOB, self._placement.namespace, job_name(name))

    def _note(self, name: str, change: Callable[[_Look], object]) -> None:
        """Take what a write of our own came to into the last look, so that nobody has to ask for it."""
        if self._seen is not None:
            change(self._seen)
            self._seen.changed.add(name)

    def _look(self) -> _Look:
        seen = self._seen
        if seen is not None and time.monotonic() - seen.at < self._longest:
            while self._changes:
                seen.take(*self._changes.popleft())
            return seen
        at = time.monotonic()
        self._changes.clear()
        pods: dict[str, list[dict[str, Any]]] = {}
        for pod in self._list(POD, "job", "server", "proxy"):
            pods.setdefault(pod_key(pod), []).append(pod)
        self._seen = found = _Look(
            at=at,
            jobs=_by_name(self._list(JOB, "job")),
            pods=pods,
            deployments=_by_name(self._list(DEPLOYMENT, "server", "proxy")),
            services=_by_name(self._list(SERVICE, "server", "proxy")),
            configs=_by_name(self._list(CONFIG_MAP, "server", "proxy")),
        )
        return found

    def _list(self, kind: Kind, *kinds: str) -> list[dict[str, Any]]:
        return self._cluster.list(kind, self._placement.namespace, selector(self._placement, *kinds))

    def _job_state(self, name: str, found: Mapping[str, Any], look: _Look) -> JobState:
        meta, status = found["metadata"], found.get("status", {})
        known = self._ended.get(name)
        if known is not None and known[0] == meta["uid"]:
            return known[1]
        pods = look.pods.get(meta["uid"], ())
        started_at = states.instant(status.get("startTime"))
        running = JobState(name=name, phase="running", started_at=started_at, labels=decoded(meta))
        over = jobs.is_over(found)
        if _is_stopped(found):
            stopped_at = datetime.fromisoformat(meta["annotations"][STOPPED])
            stopped = replace(running, phase="failed", reason="Stopped", message="was stopped", ended_at=stopped_at)
            return self._remember(meta["uid"], stopped)
        if not over:
            trouble = states.trouble_of(pod) if (pod := states.newest(pods)) is not None else self._refusal(found)
            if trouble is None or trouble.exit_code is not None:  # with an exit code it is over in a moment
                return running
            return replace(running, reason=trouble.reason, message=trouble.message)
        condition = next(item for item in status["conditions"] if item["type"] == over)
        ended_at = states.instant(status.get("completionTime") or condition.get("lastTransitionTime"))
        result = self._kept_jobs.result(name)
        report = result.report if result is not None else self._kept_jobs.reported(name)
        ended = replace(running, ended_at=ended_at, report=report)
        if over == "Complete" and result is not None:
            return self._remember(meta["uid"], replace(ended, phase="succeeded", exit_code=0))
        return self._remember(meta["uid"], self._failed(ended, over, condition, pods))

    def _failed(self, ended: JobState, over: str, condition: Mapping[str, Any], pods: Sequence[Mapping[str, Any]]) -> JobState:
        if over == "Complete":
            message = "it ended well, but its result is nowhere to be found"
            return replace(ended, phase="failed", exit_code=0, reason="Lost", message=message)
        trouble = states.trouble_of(pod) if (pod := states.newest(pods)) is not None else None
        result = self._kept_jobs.result(ended.name)
        lines = [line.strip() for line in (result.log if result else self._printed(pods)).splitlines() if line.strip()]
        last = f": {lines[-1][:200]}" if lines else ", and printed nothing"
        if condition.get("reason") == "DeadlineExceeded":
            return replace(ended, phase="failed", reason="TimedOut", message=f"did not end in time{last}")
        if trouble is not None:
            message = trouble.message + (last if trouble.reason == "ExitCode" else "")
            return replace(ended, phase="failed", exit_code=trouble.exit_code, reason=trouble.reason, message=message)
        message = f"its pod is gone and left no exit code: {condition.get('message', '')}".rstrip(": ")
        return replace(ended, phase="failed", reason="Lost", message=message)

    def _remember(self, uid: str, state: JobState) -> JobState:
        self._ended[state.name] = (uid, state)
        return state

    def _refusal(self, found: Mapping[str, Any]) -> states.Trouble | None:
        """Why a Job has no pod."""
        made_at = states.instant(found["metadata"]["creationTimestamp"])
        if made_at is None or (self._clock.now() - made_at).total_seconds() < REFUSED_AFTER_SECONDS:
            return None
        return states.refusal(self._events("Job", str(found["metadata"]["name"])))

    def _events(self, kind: str, name: str) -> list[dict[str, Any]]:
        fields = f"involvedObject.kind={kind},involvedObject.name={name}"
        return self._cluster.list(EVENT, self._placement.namespace, fields=fields)

    def _server_state(self, name: str, look: _Look) -> ServerState:
        found = look.deployments.get(name)
        meta = (found or look.services.get(name) or look.configs[name])["metadata"]
        state = ServerState(
            name=name,
            phase="starting",
            address=serving.address(name, self._placement),
            image=Digest(meta.get("annotations", {}).get(IMAGE, "")),
            labels=decoded((look.services.get(name) or {}).get("metadata", {})),
        )
        if found is None:
            return replace(state, phase="failed", reason="Drifted", message="its Deployment is gone")
        pods = look.pods.get(name, [])
        state = replace(state, restarts=max((states.restarts_of(pod) for pod in pods), default=0))
        applied = self._kept_servers.applied(name)
        if drift := _drift(applied, name, look):
            return replace(state, reason="Drifted", message=f"{drift}: not as it was applied; it is put back")
        status, spec = found.get("status", {}), found["spec"]
        seen, wanted = status.get("observedGeneration") == meta["generation"], spec["replicas"]
        updated = status.get("updatedReplicas", 0)
        is_rolled_out = min(updated, status.get("availableReplicas", 0)) >= wanted and status.get("replicas", 0) <= updated
        if seen and is_rolled_out and any(states.is_ready(pod) for pod in pods):
            return replace(state, phase="ready")
        trouble = states.trouble_of(pod) if (pod := states.newest(pods)) is not None else None
        if trouble is None and seen and not pods:
            trouble = self._not_made(found)
        if trouble is None:
            return state
        if trouble.reason == "ExitCode" and pod is not None:
            lines = [line for line in self._printed([pod]).splitlines() if line.strip()]
            trouble = replace(trouble, message=trouble.message + (f": {lines[-1].strip()[:200]}" if lines else ""))
        return replace(state, phase="failed", reason=trouble.reason, message=trouble.message)

    def _not_made(self, deployment: Mapping[str, Any]) -> states.Trouble | None:
        for condition in deployment.get("status", {}).get("conditions", ()):
            if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
                return states.Trouble(
                    reason="Refused", message=f"the cluster admits no pod of it: {condition.get('message', '')}"
                )
        return None

    def _printed(self, pods: Sequence[Mapping[str, Any]]) -> str:
        parts = []
        for pod in sorted(pods, key=lambda item: str(item["metadata"].get("creationTimestamp", ""))):
            name = str(pod["metadata"]["name"])
            if states.restarts_of(pod):
                parts.append(self._cluster.logs(self._placement.namespace, name, last_lines=LOG_LINES, previous=True))
            parts.append(self._cluster.logs(self._placement.namespace, name, last_lines=LOG_LINES))
        return "".join(parts)


def pod_key(pod: Mapping[str, Any]) -> str:
    """What a pod is found by: its Job's uid, or its server's name."""
    labels, owners = pod["metadata"].get("labels", {}), pod["metadata"].get("ownerReferences", ())
    return str(owners[0]["uid"]) if labels.get(KIND) == "job" and owners else str(labels.get(NAME, ""))


def _age(found: Mapping[str, Any]) -> int:
    """How new an object is; the API server counts, though it does not promise to."""
    text = str(found["metadata"].get("resourceVersion", "0"))
    return int(text) if text.isdigit() else 0


def _by_name(items: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {str(item["metadata"]["labels"][NAME]): item for item in items if "deletionTimestamp" not in item["metadata"]}


def _take(look: _Look, *, known: str, name: str, found: dict[str, Any]) -> None:
    getattr(look, known)[name] = found


def _name(found: Mapping[str, Any]) -> str:
    return str(found["metadata"]["name"])


def _is_stopped(found: Mapping[str, Any]) -> bool:
    return STOPPED in found["metadata"].get("annotations", {})


def _drift(applied: Mapping[str, Any] | None, name: str, look: _Look, only: str = "") -> str:
    """Where a server's objects are not as they were applied; something also when nobody knows how that was."""
    if applied is None:
        return "all of it"
    for part, known in (("deployment", look.deployments), ("service", look.services), ("config", look.configs)):
        if part in applied and only in ("", part) and (found := drift_of(applied[part], known.get(name), part)):
            return found
    return ""


def _template(wanted: Mapping[str, Any]) -> Any:
    return wanted["deployment"]["spec"]["template"]


def _tail(text: str, last_bytes: int) -> str:
    return text.encode()[-last_bytes:].decode(errors="replace") if last_bytes else ""
