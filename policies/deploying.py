"""Deployer and rollback tasks -> the version they make or unmake, and releases -> the servers that must be there.

Law: what serves follows from releases and version records alone, so it comes back wherever they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from policies.canonical import digest_value
from policies.errors import DesiredStateError
from policies.identity import image_identity, version_id
from policies.jobs import Surroundings, environment, image_spec
from policies.proposals import DECLINED, NOTHING_TO_ROLL_BACK, asking, declined, evidence_of_version, promotion_mode, proposal_of
from policies.reproducibility import check_promoted
from policies.rollout import promote, roll_back, to_hundred
from policies.selection import best_of
from policies.serving import is_ready, model_servers, proxy_server
from policies.sources import image_builds
from policies.tasks import TaskContext, context_result, image_steps, replace_state
from policies.terms.axon import BackendModel, Deployer, Model
from policies.terms.desired import DesiredState
from policies.terms.event import Event
from policies.terms.observed import Observed
from policies.terms.plan import AnyStep, Blocked, Deploy, FinishTask, Retire, RollBack, Serve
from policies.terms.project import WriteBackMode
from policies.terms.release import Release
from policies.terms.run import TaskRun
from policies.terms.task import ImageSpec
from policies.terms.verdict import Verdict
from policies.terms.version import BackendRecord, Version, VersionMetadata, VersionSpec
from policies.unbuilt import check_deployer, check_gate, check_task


def deploy_steps(context: TaskContext) -> Iterator[AnyStep]:
    """What is due for a deployer of a run.

    Raises:
        DesiredStateError: It cannot be done as the manifest says.
    """
    deployer = context.entry.deployer
    assert deployer is not None
    name = f"deploy:{deployer.name}"
    check_deployer(deployer)
    mode = promotion_mode(context.desired.project, deployer)
    check_gate(context.desired.project, "promotion")
    backends: list[BackendRecord] = []
    tasks: list[TaskRun] = []
    is_cached = True
    for model in deployer.models:
        for backend in model.backend_models:
            serving = context.task(backend.deployer or "")
            if serving.deploy is None:
                raise DesiredStateError(f"backend {backend.name}: expected a deploy task, {backend.deployer} is none")
            check_task(serving)
            is_cached = is_cached and serving.deploy.cache
            image = yield from image_steps(context, serving.name, serving.deploy)
            if image is None:
                continue
            check_promoted(context.desired.project.spec.builder.reproducibility, context.observed.images.values(), image)
            trained = _trained(context, backend)
            tasks += [trained] if trained else []
            env = environment(context.axon.document, (*serving.deploy.env, *context.entry.env), sensor=context.sensor)
            backends.append(
                BackendRecord(
                    model=model.name,
                    backend=backend.name,
                    image=image,
                    artifact=trained.model if trained else "",
                    task_run=trained.id if trained else "",
                    trial=trained.trial if trained else "",
                    replicas=deployer.replicas or 1,
                    task=serving.name,
                    env=env,
                )
            )
    if len(backends) < sum(len(model.backend_models) for model in deployer.models):
        return
    backends = [backend.model_copy(update={"weight": weight}) for backend, weight in _weighted(context, deployer, backends)]
    routes = tuple(route.model_dump(mode="json", by_alias=True, exclude_none=True) for route in deployer.routes)
    inputs = digest_value(
        {
            "axon": context.axon.name,
            "deployer": deployer.model_dump(mode="json", by_alias=True, exclude_none=True),
            "backends": [backend.model_dump(mode="json", by_alias=True, exclude={"task_run", "trial"}) for backend in backends],
        }
    )
    result = context_result(context, name, "deploy", inputs)
    earlier = context.observed.recorded.inputs.get(inputs)
    release = context.desired.releases.get((context.axon.name, deployer.name))
    if is_cached and earlier is not None and release is not None and earlier.version in context.desired.versions:
        equal, taken = earlier.version, replace(earlier, id=result.id, run=result.run, at=result.at, reused=earlier.id)
        if any(item.version == equal and item.share for item in release.spec.traffic):
            taken = replace(taken, reason="Reused")
            yield FinishTask(axon=context.axon.name, task=name, reason=f"equal to {equal}, which serves", result=taken)
            return
        if hold := next((item for item in release.spec.holds if item.version == equal), None):
            text = f"equal to {equal}, which is on hold: {hold.reason}; lift the hold to let it in"
            ended = replace_state(result, "Failed", "Held", text)
            yield FinishTask(axon=context.axon.name, task=name, reason=text, result=ended)
            return
    yield from _deploy(context, deployer, mode, name, backends, tasks, routes, result)


def _deploy(
    context: TaskContext,
    deployer: Deployer,
    mode: WriteBackMode,
    name: str,
    backends: Sequence[BackendRecord],
    tasks: Sequence[TaskRun],
    routes: tuple[dict[str, Any], ...],
    result: TaskRun,
) -> Iterator[AnyStep]:
    axon, run = context.axon.name, context.run
    _check_readable(context.desired, axon, deployer.name)
    others = versions_of(context.desired, axon, deployer.name)
    release = context.desired.releases.get((axon, deployer.name))
    known = context.observed.recorded.proposals.get(context.id)
    version = Version(
        metadata=VersionMetadata(
            name=version_id(
                commit=run.commit,
                events=run.event_set,
                images=(backend.image for backend in backends),
                models=(backend.artifact for backend in backends if backend.artifact),
            ),
            axon=axon,
        ),
        spec=VersionSpec(
            deployer=deployer.name,
            commit=run.commit,
            axon_digest=run.axon_digest,
            event_set=run.event_set,
            events=run.events,
            run=run.id,
            backends=tuple(backends),
            routes=routes,
            data=tuple(dict.fromkeys(digest for task in tasks for digest in task.data)),
            parameters={key: value for task in tasks for key, value in task.parameters.items()},
            metrics={key: value for task in tasks for key, value in task.metrics.items()},
            parent=_parent(release, others),
            # What people are asked about must not change while they look.
            created_at=known.at if known else context.now.replace(microsecond=0),
            previous=_record_digest(_newest(context.desired, axon)),
        ),
    )
    rule = deployer.rollout_spec[0] if deployer.rollout_spec else None
    weights: dict[int, int] = {}
    for destination in rule.destinations if rule else ():
        index = destination.destination_index or 0
        weights[index] = weights.get(index, 0) + int(destination.weight if destination.weight is not None else 100)
    wanted = promote(
        release,
        axon=axon,
        deployer=deployer.name,
        version=version.metadata.name,
        weights=weights,
        shadow_index=rule.shadow.destination_index if rule and rule.shadow else None,
        earlier=_eligible(release, others),
        is_by_hand=_is_by_hand(release, others),
        is_shadow_by_hand=_is_shadow_by_hand(release, others),
    )
    if isinstance(wanted, Release):
        says = wanted if mode != "manual" else release
        traffic = {share.version: share.share for share in says.spec.traffic} if says is not None else {}
        said = {"traffic": traffic, "shadow": says.spec.shadow if says is not None else ""}
        version = version.model_copy(update={"spec": version.spec.model_copy(update=said)})
    result = replace(result, version=version.metadata.name, metrics=version.spec.metrics)
    if version.metadata.name in context.desired.versions:
        yield FinishTask(axon=axon, task=name, reason=f"{version.metadata.name} is on the branch", result=result)
        return
    if version.metadata.name in context.desired.committed.versions:
        why = f"{version.metadata.name} was on the branch, and somebody took it off"
        yield FinishTask(axon=axon, task=name, reason=why, result=result)
        return
    if isinstance(wanted, Verdict):
        ended = replace_state(result, "Failed", "Held", "; ".join(wanted.reasons))
        yield FinishTask(axon=axon, task=name, reason="the release does not want it", result=ended)
        return
    asked = None
    if mode == "pull-request":
        evidence = evidence_of_version(version, result.inputs)
        if (no := declined(context.observed, evidence)) is not None and no.task_run != context.id:
            ended = replace_state(result, "Failed", DECLINED, f"its equal {no.version} was declined: {no.reason}")
            yield FinishTask(axon=axon, task=name, reason="people said no to this very evidence", result=ended)
            return
        proposal, is_recorded = proposal_of(
            context, kind="promotion", version=version.metadata.name, evidence=evidence, name=version.metadata.name
        )
        asked = asking(context, proposal, is_recorded, version=version, before=release, after=wanted)
    file, text = _release_file(context.desired, axon, deployer.name)
    yield Deploy(
        axon=axon,
        task=name,
        reason=f"{version.metadata.name} is made of what {run.sensor} waited for",
        version=version,
        servers=model_servers(version, context.around),
        release=wanted,
        release_file=file,
        release_text=text,
        result=result,
        started_at=context.observed.recorded.deploying.get(context.id),
        patience_seconds=context.around.patience_seconds,
        mode=mode,
        asking=asked,
    )


def rollback_steps(context: TaskContext) -> Iterator[AnyStep]:
    """What is due for a rollback task of a run.

    Raises:
        DesiredStateError: What the release says cannot be read.
    """
    assert context.entry.rollback is not None
    name, axon = f"rollback:{context.entry.rollback.deployer}", context.axon.name
    result = context_result(context, name, "rollback", "")
    event = context.observed.recorded.events[context.run.events[-1]]
    _check_readable(context.desired, axon, context.entry.rollback.deployer)
    current = context.desired.releases.get((axon, context.entry.rollback.deployer))
    held = next((hold for hold in (current.spec.holds if current else ()) if hold.alert == event.id), None)
    if held is not None:
        ended = replace(result, version=held.version, message=held.reason)
        yield FinishTask(axon=axon, task=name, reason=f"{held.version} is on hold on the branch", result=ended)
        return
    file, text = _release_file(context.desired, axon, context.entry.rollback.deployer)
    if (event.id, file) in context.desired.committed.rollbacks:
        ended = replace(result, message=alert_text(event))
        yield FinishTask(axon=axon, task=name, reason="it was rolled back on the branch already", result=ended)
        return
    decided = decide_rollback(context.desired, axon, context.entry.rollback.deployer, event)
    if isinstance(decided, Verdict):
        # A hold says that there is nothing to do, a deny that nothing can be done.
        state = "Succeeded" if decided.answer == "hold" else "Failed"
        ended = replace_state(result, state, NOTHING_TO_ROLL_BACK, "; ".join(decided.reasons))
        yield FinishTask(axon=axon, task=name, reason="no version to take out", result=ended)
        return
    version, release = decided
    mode = context.desired.project.spec.write_back.rollback_mode
    check_gate(context.desired.project, "rollback")
    asked = None
    if mode == "manual":
        why = f"alert {alert_text(event)}; `myelin rollback {axon}` takes {version} out, which this project leaves to people"
        yield Blocked(axon=axon, task=name, reason=why, subject=f"{axon}/{version}", word="RollbackWanted", state="waiting")
        return
    if mode == "pull-request":
        evidence = digest_value({"axon": axon, "version": version, "event": event.id})
        proposal, is_recorded = proposal_of(
            context, kind="rollback", version=version, evidence=evidence, name=f"{version}-{event.id.rpartition(':')[2][:8]}"
        )
        asked = asking(context, proposal, is_recorded, version=None, before=current, after=release)
    yield RollBack(
        axon=axon,
        task=name,
        reason=f"alert {event.sensor}: {alert_text(event)}",
        version=version,
        release=release,
        release_file=file,
        release_text=text,
        result=replace(result, version=version, message=alert_text(event)),
        event_id=event.id,
        text=alert_text(event),
        mode=mode,
        asking=asked,
    )


def decide_rollback(desired: DesiredState, axon: str, deployer: str, event: Event) -> tuple[str, Release] | Verdict:
    """Which version an alert takes out of traffic, and what the release then says."""
    release = desired.releases.get((axon, deployer))
    others = [item.metadata.name for item in versions_of(desired, axon, deployer)]
    if release is None or not others:
        return Verdict(answer="hold", reasons=("nothing is released",))
    named = str(event.data.get("version") or "")
    if named and named not in others:
        return Verdict(answer="hold", reasons=(f"{named} is no version of {deployer}",))
    served = [share.version for share in release.spec.traffic if share.share > 0]
    version = named or next((item for item in others if item in served), "")
    if version not in served:
        return Verdict(answer="hold", reasons=(f"{version or 'no version'} has no traffic",))
    decided = roll_back(
        release,
        version=version,
        reason=alert_text(event),
        alert=event.id,
        since=event.at.replace(microsecond=0),
        earlier=others[others.index(version) + 1 :],
    )
    return decided if isinstance(decided, Verdict) else (version, decided)


def alert_text(event: Event) -> str:
    """An alert's name, value and threshold, for people."""
    value, threshold = event.data.get("value"), event.data.get("threshold")
    text = f"{event.sensor}/{event.trigger}"
    if isinstance(value, (int, float)):
        text += f" value {value:.4g}"
    elif value is not None:
        text += " without data" if value == "nan" else f" value {value}"
    if isinstance(threshold, (int, float)):
        text += f", threshold {threshold:g}"
    return f"{text}: {event.data.get('condition', '')}"


def serving_steps(
    desired: DesiredState, observed: Observed, around: Surroundings, before: Sequence[AnyStep]
) -> Iterator[AnyStep]:
    """Servers and proxies that releases ask for, and those that nothing asks for any more.

    Args:
        desired: Releases and version records.
        observed: What runs.
        around: Where it runs.
        before: Steps planned already: a rollback among them counts at once, a version being deployed keeps its servers.
    """
    rolled = {(step.axon, step.release.metadata.name): step.release for step in before if isinstance(step, RollBack)}
    asked = [step for step in before if isinstance(step, Deploy) and step.asking is not None]
    needed: set[str] = {server.name for step in before if isinstance(step, Deploy) for server in step.servers}
    for key in sorted(desired.releases):
        release = rolled.get(key, desired.releases[key])
        versions = versions_of(desired, *key)
        kept = _kept(release, versions, around)
        # Who is asked about a version may try it, on the URL that it keeps.
        kept += [
            step.version
            for step in asked
            if (step.axon, step.release.metadata.name) == key and is_ready(step.version, observed.servers) and kept
        ]
        for version in kept:
            for server in model_servers(version, around):
                needed.add(server.name)
                state = observed.servers.get(server.name)
                if state is None or state.phase != "ready":
                    yield Serve(axon=key[0], task=version.metadata.name, reason="the release asks for it", server=server)
        if not kept:
            continue
        port = around.proxy_port if key == min(desired.releases) else None
        proxy = proxy_server(release, kept, observed.servers, program=versions[-1], around=around, port=port)
        needed.add(proxy.name)
        state = observed.servers.get(proxy.name)
        stale = state is None or state.phase != "ready" or state.labels.get("config") != proxy.labels["config"]
        # A proxy is not told of fewer versions while servers only restart: it finds out by itself and comes back.
        # Nor of fewer where a record that has traffic cannot be read, or was changed: what serves goes on until that is mended.
        named = {share.version for share in release.spec.traffic if share.share} | {release.spec.shadow}
        is_held = state is not None and state.phase == "ready" and bool(named & desired.unread_versions(key[0]))
        if stale and not is_held and (state is None or any(is_ready(version, observed.servers) for version in kept)):
            yield Serve(axon=key[0], task=key[1], reason="its routes follow the release", server=proxy)
    known = {axon for axon, _ in desired.releases} | set(desired.axons)
    for name in sorted(observed.servers):
        state = observed.servers[name]
        # What serves goes on serving while nobody can tell what the release or a record says.
        axon = state.labels.get("axon", "")
        is_unclear = desired.unread_release(axon) is not None or bool(desired.unread_versions(axon))
        if name not in needed and not is_unclear and (state.labels.get("axon") in known or desired.is_trusted):
            yield Retire(axon=state.labels.get("axon", ""), reason="nothing asks for it", server=name)


def versions_of(desired: DesiredState, axon: str, deployer: str) -> list[Version]:
    """Recorded versions of a deployer, newest first."""
    found = [
        version for version in desired.versions.values() if version.metadata.axon == axon and version.spec.deployer == deployer
    ]
    return sorted(found, key=lambda version: (version.spec.created_at, version.metadata.name), reverse=True)


def _check_readable(desired: DesiredState, axon: str, deployer: str) -> None:
    """Nothing is written over a release that cannot be read: what a person meant by it is not known.

    Raises:
        DesiredStateError: There is such a file, and no other one is this deployer's release.
    """
    fault = desired.unread_release(axon)
    if fault is not None and (axon, deployer) not in desired.releases:
        text = f"{fault.file}: expected a release that can be read, to change it for {deployer}; mend it, or delete it"
        raise DesiredStateError(text, reason="UnreadableRelease")


def _kept(release: Release, versions: Sequence[Version], around: Surroundings) -> list[Version]:
    named = {share.version for share in release.spec.traffic if share.share > 0} | {release.spec.shadow}
    recent = {version.metadata.name for version in versions[: around.kept_versions]}
    return [version for version in versions if version.metadata.name in named | recent]


def _trained(context: TaskContext, backend: BackendModel) -> TaskRun | None:
    """The training whose model a backend serves: of the run's own events first, else the newest that succeeded.

    With `best`, the best of those that are comparable to it: of the same axon digest, on the same data.
    """
    if not backend.trainer:
        return None
    recorded = context.observed.recorded
    causes = (recorded.tasks.get(str(recorded.events[event].data.get("taskRun", ""))) for event in context.run.events)
    found = [task for task in (*causes, *context.before) if task is not None and task.task == backend.trainer]
    all_of_it = [
        task
        for task in recorded.tasks.values()
        if task.axon == context.axon.name and task.task == backend.trainer and task.state == "Succeeded" and task.model
        if task.model not in recorded.swept
    ]
    found = found or all_of_it
    if not found or not found[-1].model:
        raise DesiredStateError(
            f"backend {backend.name}: {backend.trainer} has left no model yet; run it before this deployer", reason="NoModel"
        )
    newest = found[-1]
    train = context.task(backend.trainer).train
    if backend.model_selection_strategy != "best" or train is None or not train.loss_metric:
        return newest
    digest = recorded.runs[newest.run].axon_digest
    comparable = [item for item in all_of_it if recorded.runs[item.run].axon_digest == digest and item.data == newest.data]
    return best_of([*comparable, newest], train)


def _weighted(context: TaskContext, deployer: Deployer, backends: Sequence[BackendRecord]) -> Iterator[tuple[BackendRecord, int]]:
    """Each backend with its percent of its model's traffic."""
    for model in deployer.models:
        ours = [backend for backend in backends if backend.model == model.name]
        given = {item.destination_name: item.weight for strategy in model.routing_strategy for item in strategy.destinations}
        best = ""
        if not given and model.model_selection_strategy == "best" and len(ours) > 1:
            best = _best_backend(context, model, ours)
        for place, backend in enumerate(ours):
            if given:
                weight = given.get(backend.backend, 0)
                yield backend, 100 if weight is None else int(weight)
            elif best:
                yield backend, 100 if backend.backend == best else 0
            else:
                yield backend, 100 // len(ours) + (place < 100 % len(ours))


def _best_backend(context: TaskContext, model: Model, ours: Sequence[BackendRecord]) -> str:
    trains = [context.task(item.trainer).train for item in model.backend_models if item.trainer]
    kinds = {(train.loss_metric, train.loss_metric_selector) for train in trains if train is not None}
    if len(kinds) != 1 or not next(iter(kinds))[0]:
        raise DesiredStateError(
            f"model {model.name}: modelSelectionStrategy best: expected one lossMetric for all of its backends' trainings; "
            "say routingStrategy instead"
        )
    train = next(item for item in trains if item is not None)
    by_run = {backend.task_run: backend.backend for backend in ours if backend.task_run}
    return by_run[best_of([context.observed.recorded.tasks[run] for run in by_run], train).id]


def _eligible(release: Release | None, others: Sequence[Version]) -> list[str]:
    """Versions that a rollout may give traffic, newest first: one that had some and lost it does not get it back.

    So a version that a person took out stays out, with or without a hold.
    """
    served = {share.version for share in release.spec.traffic if share.share} if release else set()
    given = {name for item in others for name, share in item.spec.traffic.items() if share}
    names = [item.metadata.name for item in others]
    return [name for name in names if name in served or name not in given]


def _is_by_hand(release: Release | None, others: Sequence[Version]) -> bool:
    """Whether a person divided the traffic: it is not what the newest record says, nor what rollbacks since then left of that."""
    if release is None or not others:
        return False
    held = {hold.version for hold in release.spec.holds}
    left = {name: share for name, share in others[0].spec.traffic.items() if share and name not in held}
    served = {item.version: item.share for item in release.spec.traffic if item.share}
    return bool(left) and served not in (others[0].spec.traffic, to_hundred(left, list(left)))


def _is_shadow_by_hand(release: Release | None, others: Sequence[Version]) -> bool:
    """Whether a person chose who gets mirrored traffic: it is neither what the newest record says, nor gone because that one
    got a share or a hold since then."""
    if release is None or not others:
        return False
    spec, said = release.spec, others[0].spec.shadow
    busy = {item.version for item in spec.traffic if item.share} | {hold.version for hold in spec.holds}
    return spec.shadow != said and not (not spec.shadow and said in busy)


def _parent(release: Release | None, others: Sequence[Version]) -> str:
    shares = sorted(release.spec.traffic, key=lambda share: -share.share) if release else []
    if shares:
        return shares[0].version
    return others[0].metadata.name if others else ""


def _newest(desired: DesiredState, axon: str) -> Version | None:
    found = [version for version in desired.versions.values() if version.metadata.axon == axon]
    return max(found, key=lambda version: (version.spec.created_at, version.metadata.name), default=None)


def _record_digest(version: Version | None) -> str:
    return digest_value(version.model_dump(mode="json", by_alias=True)) if version else ""


def _release_file(desired: DesiredState, axon: str, deployer: str) -> tuple[str, bytes]:
    return desired.release_files.get((axon, deployer), (f"releases/{axon}/{deployer}.yaml", b""))


def image_identities(desired: DesiredState, observed: Observed, around: Surroundings) -> Mapping[str, ImageSpec]:
    """Identity -> spec of every image that a live run may ask for, so that a look can look at them."""
    specs: dict[str, ImageSpec] = {}
    project = desired.project.spec
    done = Counter(task.run for task in observed.recorded.tasks.values())
    for run in observed.recorded.runs.values():
        axon = desired.axons.get(run.axon)
        if axon is None or run.superseded or run.axon_digest != axon.digest:
            continue
        sensor = next((item for item in axon.document.spec.sensors if item.name == run.sensor), None)
        if sensor is not None and done[run.id] >= sum(len(group) for group in sensor.tasks):
            continue
        for _, build in image_builds(axon.document):
            try:
                spec = image_spec(axon, build, run, around, recorded=observed.recorded, project=project)
            except DesiredStateError:
                continue
            specs[image_identity(spec)] = spec
    return specs
