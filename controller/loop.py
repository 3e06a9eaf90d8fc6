"""The loop: one pass makes the observed state equal to the desired one, as far as it can be done now.

A wake-up only says *look now*. Dying between any two lines and starting again gives the same commits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import lru_cache
from typing import TypeVar, assert_never

from policies import planning
from policies.errors import ConflictError, ControllerError, DesiredStateError, RefusedError, TrustError
from policies.jobs import Surroundings, built_on
from policies.terms.desired import DesiredState
from policies.terms.metrics import AlertRule
from policies.terms.observed import Observed
from policies.terms.outcome import Outcome, Result
from policies.terms.plan import (
    AnyStep,
    Blocked,
    BuildImage,
    Deploy,
    EndProposal,
    FinishTask,
    FreeJobs,
    Plan,
    ProposeLock,
    RecordEvent,
    RecordImage,
    ResolveAlert,
    ResolveSource,
    Retire,
    RollBack,
    RunJob,
    Serve,
    SetStatus,
    StartRun,
    SupersedeRun,
    Tune,
)
from policies.terms.project import Forge, Project
from policies.terms.revision import Pin
from reconcilers import deploy, image, lock, observe, propose, publish, record, resolve, route, source, train, tune
from reconcilers.ports import Ports

faults = logging.getLogger("myelin.faults")
"""Faults of our own, with their traces; a person sees the outcome."""
Done = TypeVar("Done")


@dataclass(slots=True)
class Following:
    """One project that is followed: what was pinned from outside, and what may be forgotten."""

    branch: str
    pin: Pin
    around: Surroundings
    forge: Forge | None = None
    """The forge that is named outside of the repository; it goes before the repository's."""
    memory: source.Memory = field(default_factory=source.Memory)
    observed: Observed | None = None
    plan: Plan | None = None
    asked: tuple[DesiredState, DesiredState, tuple[AlertRule, ...]] | None = None
    """The newest desired state, as it was read and as it counts, and the conditions that it asks to watch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a pass came to."""

    at: datetime
    desired: DesiredState | None
    observed: Observed | None
    plan: Plan
    outcomes: tuple[Outcome, ...]

    @property
    def look_again(self) -> bool:
        """Whether there is more to do at once."""
        return any(outcome.look_again for outcome in self.outcomes)

    @property
    def is_busy(self) -> bool:
        """Whether something runs, builds or starts that the next look may find ended."""
        return any(outcome.state == "waiting" and not outcome.is_patient for outcome in self.outcomes)


def run_pass(following: Following, ports: Ports) -> Report:
    """Make it so, once. Whatever goes wrong becomes an outcome, and the next pass goes on."""
    now = ports.clock.now()
    report = Report(at=now, desired=None, observed=following.observed, plan=Plan(steps=()), outcomes=())
    fetched = attempt(lambda: _fetch(following, ports), following.branch)
    if isinstance(fetched, Outcome):
        report = replace(report, outcomes=(fetched,))
    # While Git is away the last known state is worked towards, so that what runs goes on.
    desired = following.memory.desired if isinstance(fetched, Outcome) else fetched
    if desired is None:
        return report
    report = replace(report, desired=desired, outcomes=(*report.outcomes, *_troubles(desired)))
    made = attempt(lambda: _make_so(report, desired, following, ports), following.branch)
    return replace(report, outcomes=(*report.outcomes, made)) if isinstance(made, Outcome) else made


def _make_so(report: Report, desired: DesiredState, following: Following, ports: Ports) -> Report:
    now = report.at
    before = following.observed.recorded if following.observed else None
    around = built_on(desired, following.around)
    if following.asked is None or following.asked[0] is not desired:
        following.asked = (desired, asked_at(desired, following.forge), observe.rules_of(desired))
    _, desired, rules = following.asked
    observed = following.observed = observe.look(desired, ports, around=around, now=now, before=before, rules=rules)
    plan = planning.plan(desired, observed, now=now, around=around, before=following.plan)
    following.plan = plan
    results = [_result(step, desired, observed, ports, now) for step in plan.steps]
    record.write(results, ports)
    pushed = publish.push(desired, results, ports, now=now, look=lambda: asked_at(_fetch(following, ports), following.forge))
    outcomes = (*report.outcomes, *(result.outcome for result in results), *pushed)
    return replace(report, observed=observed, plan=plan, outcomes=outcomes)


def attempt(work: Callable[[], Done], subject: str) -> Done | Outcome:
    """Try something; whatever goes wrong becomes an outcome, and everything else goes on."""
    try:
        return work()
    except ControllerError as error:
        return _outcome_of(error, subject)
    except Exception as error:  # noqa: BLE001  the one place where a fault of ours must not stop the others
        faults.error("fault at %s", subject, exc_info=error)
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return Outcome(state="stalled", subject=subject, reason="Bug", message=f"a fault in Myelin itself: {text}")


def _result(step: AnyStep, desired: DesiredState, observed: Observed, ports: Ports, now: datetime) -> Result:
    done = attempt(lambda: _act(step, desired, observed, ports, now), _subject(step))
    return Result(outcome=done) if isinstance(done, Outcome) else done


def _act(step: AnyStep, desired: DesiredState, observed: Observed, ports: Ports, now: datetime) -> Result:
    recorded, paths = observed.recorded, desired.project.spec.write_back.paths
    match step:
        case RecordEvent():
            return record.event(step, ports)
        case ResolveAlert():
            return record.alert_ended(step, ports)
        case StartRun():
            return record.run(step, ports)
        case SupersedeRun():
            return record.supersede(step, ports)
        case FinishTask():
            return record.task(step, ports)
        case ResolveSource():
            return resolve.resolve(step, ports)
        case RecordImage():
            return image.recorded(step, ports)
        case BuildImage():
            return image.build(step, ports)
        case RunJob():
            return train.run_job(step, ports)
        case Tune():
            task_run = step.experiment.id
            return tune.advance(step, ports, asks=recorded.asks.get(task_run, ()), tells=recorded.tells.get(task_run, ()))
        case Deploy():
            return deploy.deploy(step, ports, now=now, recorded=recorded, paths=paths)
        case RollBack():
            return deploy.roll_back(step, ports, recorded=recorded, paths=paths)
        case ProposeLock():
            return lock.propose_lock(step, ports, recorded=recorded)
        case EndProposal():
            return propose.end(step, ports, recorded=recorded)
        case SetStatus():
            return propose.set_status(step, ports)
        case Serve():
            return route.serve(step, ports)
        case Retire():
            return route.retire(step, ports)
        case FreeJobs():
            return train.free(step, ports)
        case Blocked():
            outcome = Outcome(
                state=step.state,
                subject=step.subject,
                reason=step.word,
                message=step.reason,
            )
            return Result(outcome=outcome)
        case _:
            assert_never(step)


def asked_at(desired: DesiredState, forge: Forge | None) -> DesiredState:
    """The desired state with the forge that is named outside of the repository, where there is one."""
    return desired if forge is None else replace(desired, project=_with_forge(desired.project, forge))


@lru_cache(maxsize=64)
def _with_forge(project: Project, forge: Forge) -> Project:
    """The same object for the same project: axons at rest are told by it that nothing is new."""
    spec = project.spec
    spec = spec.model_copy(update={"write_back": spec.write_back.model_copy(update={"forge": forge})})
    return project.model_copy(update={"spec": spec})


def _fetch(following: Following, ports: Ports) -> DesiredState:
    return source.fetch(ports, branch=following.branch, pin=following.pin, memory=following.memory)


def _troubles(desired: DesiredState) -> Iterator[Outcome]:
    """What is wrong with the revision itself."""
    branch = desired.revision.branch
    if desired.trust_fault:
        yield Outcome(state="stalled", subject=branch, reason="Untrusted", message=desired.trust_fault)
    for fault in desired.faults:
        yield Outcome(state="stalled", subject=fault.file, reason=fault.reason, message=str(fault))


def _outcome_of(error: ControllerError, subject: str) -> Outcome:
    """The class of an error decides what happens next."""
    if isinstance(error, (TrustError, DesiredStateError, RefusedError)):
        return Outcome(state="stalled", subject=subject, reason=error.reason, message=error.message)
    again = isinstance(error, ConflictError)
    return Outcome(state="waiting", subject=subject, reason=error.reason, message=error.message, look_again=again)


def _subject(step: AnyStep) -> str:
    return f"{step.axon}/{step.task}" if step.task else step.axon
