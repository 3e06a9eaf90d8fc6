"""All that would be due if everything went well: passes planned one after another, with each step taken as done.

Law: what is foreseen first is what the next pass plans. Nothing is started, built or written; digests of what is not
built yet are stand-ins, and `Foreseen.stand_ins` says what each of them stands for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from policies.canonical import digest_value
from policies.jobs import Surroundings
from policies.planning import plan
from policies.terms.desired import DesiredState
from policies.terms.digest import Digest
from policies.terms.observed import Observed, Recorded
from policies.terms.plan import (
    AnyStep,
    BuildImage,
    Deploy,
    FinishTask,
    FreeJobs,
    RecordEvent,
    RecordImage,
    ResolveAlert,
    ResolveSource,
    Retire,
    RollBack,
    RunJob,
    Serve,
    StartRun,
    SupersedeRun,
    Tune,
)
from policies.terms.run import TaskRun
from policies.terms.source import Resolved
from policies.terms.task import ImageState, ServerSpec, ServerState

MOST_PASSES = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreseen:
    """What would be done, in order."""

    steps: tuple[AnyStep, ...]
    stand_ins: Mapping[str, str]
    """Digest or version id that only stands in for one not known yet -> what it is."""


def foresee(desired: DesiredState, observed: Observed, *, now: datetime, around: Surroundings) -> Foreseen:
    """Plan pass after pass until nothing is due.

    Args:
        desired: What is asked for.
        observed: What is there now.
        now: This instant, UTC; it stands still.
        around: Where jobs and servers run.
    """
    steps: list[AnyStep] = []
    seen: set[str] = set()
    stand_ins: dict[str, str] = {}
    for _ in range(MOST_PASSES):
        due = plan(desired, observed, now=now, around=around).steps
        fresh = [step for step in due if not isinstance(step, FreeJobs) and _name(step) not in seen]
        if not fresh:
            break
        for step in fresh:
            seen.add(_name(step))
            steps.append(step)
            desired, observed = _done(step, desired, observed, stand_ins)
    return Foreseen(steps=tuple(steps), stand_ins=stand_ins)


def _name(step: AnyStep) -> str:
    """Two steps of one name are one: a pass repeats what it waits for."""
    match step:
        case RecordEvent():
            rest = step.event.id
        case StartRun() | SupersedeRun():
            rest = step.run.id
        case ResolveSource():
            rest = f"{step.run} {step.source}"
        case RecordImage():
            rest = step.image
        case BuildImage():
            rest = step.identity
        case RunJob() | Tune() | FinishTask() | Deploy() | RollBack():
            rest = step.result.id
        case Serve():
            rest = step.server.name
        case Retire():
            rest = step.server
        case _:
            rest = step.reason
    return f"{type(step).__name__} {step.axon} {step.task} {rest}"


def _done(step: AnyStep, desired: DesiredState, observed: Observed, stand_ins: dict[str, str]) -> tuple[DesiredState, Observed]:
    recorded = observed.recorded
    match step:
        case RecordEvent():
            recorded = replace(recorded, events={**recorded.events, step.event.id: step.event})
        case ResolveAlert():
            recorded = replace(recorded, resolved=recorded.resolved | {step.event_id})
        case StartRun():
            recorded = replace(recorded, runs={**recorded.runs, step.run.id: step.run})
        case SupersedeRun():
            over = replace(step.run, superseded=step.reason)
            recorded = replace(recorded, runs={**recorded.runs, over.id: over})
        case ResolveSource():
            found = _resolved(step, stand_ins)
            recorded = replace(recorded, sources={**recorded.sources, step.run: (*recorded.sources.get(step.run, ()), found)})
        case RecordImage():
            recorded = replace(recorded, images=recorded.images | {step.image})
        case BuildImage():
            digest = _stand_in(stand_ins, f"image {step.image.repository}, not built yet", step.identity)
            images = {**observed.images, step.identity: ImageState(phase="built", digest=digest)}
            observed = replace(observed, images=images)
        case RunJob() | Tune():
            result = step.result
            if "model" in step.job.keeps:
                result = replace(result, model=_stand_in(stand_ins, f"model of {step.task}, not trained yet", result.id))
            if "data" in step.job.keeps:
                result = replace(result, data=(_stand_in(stand_ins, f"data of {step.task}, not made yet", result.id),))
            recorded = _with_task(recorded, result)
        case FinishTask():
            recorded = _with_task(recorded, step.result)
        case Deploy():
            name = step.version.metadata.name
            if any(backend.image in stand_ins or backend.artifact in stand_ins for backend in step.version.spec.backends):
                stand_ins[name] = f"a new version of {step.version.spec.deployer}"
            key = (step.axon, step.release.metadata.name)
            desired = replace(
                desired,
                versions={**desired.versions, name: step.version},
                releases={**desired.releases, key: step.release},
            )
            recorded = _with_task(recorded, step.result)
            for server in step.servers:
                observed = _with_server(observed, server)
        case RollBack():
            key = (step.axon, step.release.metadata.name)
            desired = replace(desired, releases={**desired.releases, key: step.release})
            recorded = _with_task(recorded, step.result)
        case Serve():
            observed = _with_server(observed, step.server)
        case Retire():
            servers = {name: state for name, state in observed.servers.items() if name != step.server}
            observed = replace(observed, servers=servers)
        case _:
            pass
    # What was kept by axon while folding does not know of what is only foreseen.
    return desired, replace(observed, recorded=replace(recorded, slices=None))


def _stand_in(stand_ins: dict[str, str], text: str, *parts: str) -> Digest:
    digest = digest_value(["stand-in", text, *parts])
    stand_ins[digest] = text
    return digest


def _resolved(step: ResolveSource, stand_ins: dict[str, str]) -> Resolved:
    """What another repository may come to: it is not asked."""
    commit, *trees = (
        _stand_in(stand_ins, text, step.source.repo, step.source.revision)
        for text in (f"the commit of {step.source}", *(f"folder {folder or '/'} of {step.source}" for folder in step.folders))
    )
    return Resolved(
        repo=step.source.repo,
        revision=step.source.revision,
        commit=commit,
        trees=dict(zip(step.folders, trees, strict=True)),
        signer="somebody" if step.source.verify else "",
    )


def _with_task(recorded: Recorded, result: TaskRun) -> Recorded:
    inputs = {**recorded.inputs, result.inputs: result} if result.inputs and result.state == "Succeeded" else recorded.inputs
    return replace(recorded, tasks={**recorded.tasks, result.id: result}, inputs=inputs)


def _with_server(observed: Observed, server: ServerSpec) -> Observed:
    state = ServerState(name=server.name, phase="ready", address="127.0.0.1:0", image=server.image, labels=server.labels)
    return replace(observed, servers={**observed.servers, server.name: state})
