"""Stage 4: a tuning run, one look at a time: tell what ended, ask for what is due, start it.

Each ask is safe in the ledger before its trial starts, each tell before anything follows from it: whoever dies here
goes on where the ledger ends, and starts nothing twice, because a trial's job is named by its ask.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

from policies.canonical import short_name
from policies.experiment import hpo_params, trial_args, typed
from policies.identity import object_name, trial_run_id
from policies.ladder import describe, incumbent, is_finished, next_runs
from policies.records import ask_statement, task_statement, tell_statement
from policies.terms.outcome import Outcome, Result
from policies.terms.plan import Tune
from policies.terms.task import JobSpec, JobState
from policies.terms.trial import Ask, Tell, TrialRun
from reconcilers.ports import Ports
from reconcilers.train import reported_loss, reported_metrics, since

LONG = timedelta(minutes=5)
"""After which a trial that still runs is named, so that one which never ends is seen not to."""


def advance(step: Tune, ports: Ports, *, asks: Sequence[Ask], tells: Sequence[Tell]) -> Result:
    """Bring a tuning run on by one look.

    Args:
        step: The run.
        ports: The outside.
        asks: Its recorded suggestions, in order.
        tells: Its recorded results, in order.
    """
    subject = f"{step.axon}/{step.task}"
    ports.images.verify(step.job.image)
    asked, told = list(asks), list(tells)
    jobs = ports.engine.jobs()
    known = {(tell.run.trial, tell.run.rung) for tell in told}
    for ask in asked:
        if (ask.run.trial, ask.run.rung) in known:
            continue
        job = trial_job(step, ask)
        state = jobs.get(job.name)
        if state is None or state.phase == "running":
            if not is_finished(step.experiment, asked, told):
                ports.engine.start(job)
            continue
        tell = _tell(step, ask.run, state, ports, job.name)
        ports.ledger.record([tell_statement(step.axon, step.experiment.id, tell)])
        told.append(tell)
    places = step.places
    while not is_finished(step.experiment, asked, told) and places != 0:
        due = next_runs(step.experiment, asked, told)
        if not due:
            break
        places = places - 1 if places is not None else None
        ask = _ask(step, due[0], asked, told, ports, jobs)
        ports.ledger.record([ask_statement(step.axon, step.experiment.id, ask)])
        asked.append(ask)
        ports.engine.start(trial_job(step, ask))
    if is_finished(step.experiment, asked, told):
        return _finish(step, ports, asked, told)
    facts = describe(step.experiment)
    best = incumbent(step.experiment, told)
    running = len(asked) - len(told)
    text = f"{len(told)} of {facts.runs} trials done, {running} running"
    if best is not None and best.metric is not None:
        text += f", best {step.loss_metric} {best.metric:.4g} ({best.run.trial} at budget {best.run.budget:g})"
    trials = [job for job in jobs.values() if job.phase == "running" and job.labels.get("taskRun") == step.experiment.id]
    late = ports.clock.now() - LONG
    if oldest := next((job for job in trials if job.started_at is not None and job.started_at < late), None):
        text += f"; {oldest.name} runs{since(oldest)}"
    # A trial that was found running, as its ask was lost, may have ended by now: nothing else would bring the next look.
    told_next = {_trial_name(step, ask.run) for ask in asked[len(asks) :]}
    is_over = any(name in jobs and jobs[name].phase != "running" for name in told_next)
    held = next((job for job in trials if job.reason), None)
    if held is not None:
        text += f"; {held.name} waits: {held.message}"
    reason = held.reason if held is not None else "Tuning"
    return Result(outcome=Outcome(state="waiting", subject=subject, reason=reason, message=text, look_again=is_over))


def trial_job(step: Tune, ask: Ask) -> JobSpec:
    """The job of one trial at one rung, named by them."""
    name = _trial_name(step, ask.run)
    config = typed(step.experiment, ask.config)
    env = {**step.job.env, "HPO_PARAMS": hpo_params(ask.run, config, integer_budgets=step.experiment.integer_budgets)}
    env["MYELIN_POD_NAME"] = name
    if url := env.get("TRAIN_CONTROLLER_URL"):
        env["TRAIN_CONTROLLER_URL"] = url.rsplit("/", 1)[0] + f"/{name}"
    return replace(
        step.job,
        name=name,
        args=trial_args(ask.run, config, integer_budgets=step.experiment.integer_budgets),
        env=env,
        labels={
            **step.job.labels,
            "trial": ask.run.trial,
            "rung": str(ask.run.rung),
            "config": json.dumps({"config": dict(ask.config), "origin": ask.origin}, sort_keys=True),
        },
    )


def _trial_name(step: Tune, run: TrialRun) -> str:
    return object_name(step.axon, step.task, short_name(trial_run_id(step.experiment.id, run.trial, run.rung)))


def _ask(
    step: Tune, run: TrialRun, asks: Sequence[Ask], tells: Sequence[Tell], ports: Ports, jobs: Mapping[str, JobState]
) -> Ask:
    for ask in asks:
        if ask.run.trial == run.trial:
            return Ask(run=run, config=ask.config, origin="promoted")
    # A trial that runs already, whose ask was lost with a disk before it was pushed, says itself what it was started with.
    running = jobs.get(_trial_name(step, run))
    if running is not None and "config" in running.labels:
        found = json.loads(running.labels["config"])
        return Ask(run=run, config=found["config"], origin=found["origin"])
    configs = {ask.run.trial: ask.config for ask in asks}
    history: list[tuple[Tell, Mapping[str, Any]]] = [(tell, configs[tell.run.trial]) for tell in tells]
    config, origin = ports.sampler.suggest(step.experiment, history, run.number)
    return Ask(run=run, config=config, origin=origin)  # type: ignore[arg-type]


def _tell(step: Tune, run: TrialRun, state: JobState, ports: Ports, job: str) -> Tell:
    if state.phase == "failed":
        return Tell(run=run, loss=None, metric=None, reason=state.reason or "Failed")
    metric, why = reported_loss(state.report, step.loss_metric)
    if metric is None:
        return Tell(run=run, loss=None, metric=None, reason=why)
    kept = ports.engine.collect(job)
    loss = -metric if step.experiment.maximise else metric
    return Tell(run=run, loss=loss, metric=metric, model=kept.get("model", ""))


def _finish(step: Tune, ports: Ports, asks: Sequence[Ask], tells: Sequence[Tell]) -> Result:
    subject = f"{step.axon}/{step.task}"
    done = {(tell.run.trial, tell.run.rung) for tell in tells}
    for ask in asks:
        if (ask.run.trial, ask.run.rung) not in done:
            ports.engine.stop(trial_job(step, ask).name)
    best = incumbent(step.experiment, tells)
    if best is None or best.metric is None:
        reasons = sorted({tell.reason for tell in tells if tell.reason})
        message = f"all {len(tells)} trials failed ({', '.join(reasons) or 'no trial ran'}); see `myelin logs`"
        last = next((tell for tell in reversed(tells) if tell.reason), None)
        if last is not None:
            ask = next(item for item in asks if item.run == last.run)
            state = ports.engine.jobs().get(trial_job(step, ask).name)
            message = f"all {len(tells)} trials failed ({', '.join(reasons)}); the last one: {state.message if state else 'gone'}"
        ended = replace(step.result, state="Failed", reason="NoTrialSucceeded", message=message)
        outcome = Outcome(state="stalled", subject=subject, reason=ended.reason, message=message, look_again=True)
        return Result(outcome=outcome, statements=(task_statement(ended),))
    config = next(ask.config for ask in asks if ask.run.trial == best.run.trial)
    winner = next(ask for ask in asks if ask.run == best.run)
    state = ports.engine.jobs().get(trial_job(step, winner).name)
    metrics = reported_metrics(state.report) if state is not None else {}
    if step.loss_metric:
        metrics = {**metrics, step.loss_metric: best.metric}
    message = f"{len(tells)} trials; {best.run.trial} won with {step.loss_metric} {best.metric:.4g} at budget {best.run.budget:g}"
    ended = replace(
        step.result, model=best.model, trial=best.run.trial, parameters=dict(config), metrics=metrics, message=message
    )
    outcome = Outcome(state="done", subject=subject, reason="Tuned", message=message, look_again=True)
    return Result(outcome=outcome, statements=(task_statement(ended),))
