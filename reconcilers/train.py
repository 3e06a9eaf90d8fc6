"""Stage 4: one container or training run, from start to artifact."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from policies.records import task_statement
from policies.terms.outcome import Outcome, Result
from policies.terms.plan import FreeJobs, RunJob
from policies.terms.run import TaskRun
from policies.terms.task import JobState
from reconcilers.ports import Ports


def run_job(step: RunJob, ports: Ports) -> Result:
    """Start a job, wait for it, or take its result."""
    subject = f"{step.axon}/{step.task}"
    ports.images.verify(step.job.image)
    state = ports.engine.jobs().get(step.job.name)
    if state is None:
        ports.engine.start(step.job)
        return Result(outcome=Outcome(state="waiting", subject=subject, reason="Started", message=f"job {step.job.name} started"))
    if state.phase == "running":
        ports.engine.start(step.job)  # a job that was prepared but never started, because we died in between
        words = f"job {step.job.name} {f'waits: {state.message}' if state.message else f'runs{since(state)}'}"
        return Result(outcome=Outcome(state="waiting", subject=subject, reason=state.reason or "Running", message=words))
    ended = _ended(step, state, ports)

    outcome = Outcome(
        state="done" if ended.state == "Succeeded" else "stalled",
        subject=subject,
        reason=ended.reason or ended.state,
        message=ended.message or f"{step.task} succeeded",
        look_again=True,
    )
    return Result(outcome=outcome, statements=(task_statement(ended),))


def since(state: JobState) -> str:
    """Since when a job runs, in words; so that one which never ends is seen not to."""
    return f" since {state.started_at:%Y-%m-%d %H:%M:%S} UTC" if state.started_at is not None else ""


def free(step: FreeJobs, ports: Ports) -> Result:
    """Free what ended jobs hold."""
    for name in step.free:
        ports.engine.clean(name)
    for name in step.forget:
        ports.engine.remove(name)
    message = f"folders of {len(step.free)} ended jobs freed, {len(step.forget)} old ones forgotten"
    return Result(outcome=Outcome(state="done", subject="jobs", reason="Freed", message=message, is_quiet=True))


def reported_metrics(report: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The last finite value of each metric that a program reported, by name."""
    metrics: dict[str, float] = {}
    for line in report:
        if line.get("kind") == "metric":
            _keep(metrics, str(line.get("name")), line.get("value"))
        elif line.get("kind") == "result":
            for name, value in dict(line.get("metrics") or {}).items():
                _keep(metrics, str(name), value)
            if line.get("lossMetric"):
                _keep(metrics, str(line["lossMetric"]), line.get("loss"))
    return metrics


def reported_loss(report: Sequence[Mapping[str, Any]], metric: str = "") -> tuple[float | None, str]:
    """The last result that a program published.

    Args:
        report: Lines that it reported, in order.
        metric: The loss metric; where no result was published, its gauge counts, as it did for earlier programs.
    Returns:
        The value as the program gave it, and why there is none: `NoResult` or `NotFinite`.
    """
    values = [line.get("loss") for line in report if line.get("kind") == "result"]
    values = values or [line.get("value") for line in report if metric and line.get("name") == metric]
    if not values:
        return None, "NoResult"
    value = values[-1]
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None, "NotFinite"
    return (number, "") if math.isfinite(number) else (None, "NotFinite")


def _keep(metrics: dict[str, float], name: str, value: object) -> None:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return
    if math.isfinite(number) and name.isprintable():
        metrics[name] = number


def _ended(step: RunJob, state: JobState, ports: Ports) -> TaskRun:
    if state.phase == "failed":
        return replace(step.result, state="Failed", reason=state.reason, message=f"{step.job.name}: {state.message}")
    if step.loss_metric:
        value, why = reported_loss(state.report, step.loss_metric)
        if value is None:
            text = {
                "NoResult": f"expected a result by myelin.metric.publish_result with {step.loss_metric}, got none",
                "NotFinite": f"expected a finite {step.loss_metric}, got none",
            }[why]
            return replace(step.result, state="Failed", reason=why, message=f"{step.job.name}: {text}")
    kept = ports.engine.collect(step.job.name)
    data = step.result.data
    if "data" in kept and kept["data"] not in data:
        # A container's folder began with what was there before; a training's is kept where it wrote something.
        data = (kept["data"],) if step.result.kind == "container" else (*data, kept["data"])
    return replace(step.result, model=kept.get("model", ""), data=data, metrics=reported_metrics(state.report))
