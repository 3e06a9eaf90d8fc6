"""Stage 4: bring a version up; once it answers, its record and its share of traffic are one commit."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from policies.canonical import digest_value
from policies.records import deploying_statement, task_statement
from policies.terms.observed import Recorded
from policies.terms.outcome import Change, Outcome, Result
from policies.terms.plan import Deploy, RollBack
from policies.terms.release import Release
from policies.terms.version import Version
from reconcilers import propose
from reconcilers.ports import Documents, Ports


def deploy(step: Deploy, ports: Ports, *, now: datetime, recorded: Recorded, paths: tuple[str, ...]) -> Result:
    """Start a version's servers; when all answer, ask for the commit that lets it in, or ask people first.

    Args:
        step: What is due.
        ports: The outside.
        now: This instant, UTC.
        recorded: What the ledger says of proposals and statuses.
        paths: What we may commit.
    """
    subject = f"{step.axon}/{step.version.metadata.name}"
    for server in step.servers:
        ports.images.verify(server.image)
        ports.engine.serve(server)
    states = ports.engine.servers()
    waiting = [server.name for server in step.servers if server.name not in states or states[server.name].phase != "ready"]
    is_asked = step.asking is not None and step.asking.is_recorded
    if waiting and not is_asked:  # who was asked already is not told to forget it because a server is started again
        since = step.started_at or now
        statements = () if step.started_at else (deploying_statement(step.axon, step.result.id, step.version.metadata.name),)
        state = states.get(waiting[0])
        words = state.message if state is not None and state.message else "starting"
        if now - since > timedelta(seconds=step.patience_seconds):
            return _give_up(step, subject, words, ports)
        outcome = Outcome(state="waiting", subject=subject, reason="Starting", message=f"{waiting[0]}: {words}")
        return Result(outcome=outcome, statements=statements)
    if step.asking is not None:
        return propose.ask(step.asking, lambda: _coming_in(step, ports), step.result, ports, recorded=recorded, paths=paths)
    name = step.version.metadata.name
    says = f"`myelin promote {name}` gives it traffic" if step.mode == "manual" else f"traffic: {_shares(step.release)}"
    outcome = Outcome(state="done", subject=subject, reason="Deployed", message=f"{name} is ready; {says}", look_again=True)
    return Result(outcome=outcome, change=_coming_in(step, ports))


def roll_back(step: RollBack, ports: Ports, *, recorded: Recorded, paths: tuple[str, ...]) -> Result:
    """Ask for the commit that takes a version out of traffic, or ask people. Its share moves before either."""
    if step.asking is not None:
        return propose.ask(step.asking, lambda: _going_out(step, ports), step.result, ports, recorded=recorded, paths=paths)
    message = f"{step.version} is out of traffic and on hold: {step.text}"
    outcome = Outcome(state="done", subject=f"{step.axon}/{step.version}", reason="RolledBack", message=message, look_again=True)
    return Result(outcome=outcome, change=_going_out(step, ports))


def record_bytes(version: Version) -> bytes:
    """What the signature of a version record is over: the digest of everything but the signature."""
    value = version.model_dump(mode="json", by_alias=True)
    value.pop("signature")
    return digest_value(value).encode()


def signed(version: Version, ports: Ports) -> dict[str, Any]:
    """A version record as it is written, with its signature."""
    value = version.model_dump(mode="json", by_alias=True)
    value["signature"] = ports.keys.sign(record_bytes(version))
    return value


def release_text(release: Release, before: bytes, documents: Documents) -> bytes:
    """A release as text; comments and order of what was there stay."""
    value = release.model_dump(mode="json", by_alias=True)
    spec = {key: item for key, item in value["spec"].items() if item}
    spec["holds"] = [{key: item for key, item in hold.items() if item} for hold in value["spec"]["holds"]]
    if not spec["holds"]:
        del spec["holds"]
    value["spec"] = spec
    return documents.edit(before, value) if before else documents.render(value)


def _coming_in(step: Deploy, ports: Ports) -> Change:
    """The record of a version and, unless people give it traffic by hand, its share of it."""
    name, is_manual = step.version.metadata.name, step.mode == "manual"
    files = {f"versions/{step.axon}/{name}.yaml": ports.documents.render(signed(step.version, ports))}
    if not is_manual:
        files[step.release_file] = release_text(step.release, step.release_text, ports.documents)
    return Change(
        subject=f"{step.axon}: {'record' if is_manual else 'deploy'} {name}",
        body=_evidence(step.version) + (f"\nTraffic: {_shares(step.release)}" if not is_manual else ""),
        files=files,
        trailers={
            "Myelin-Run": [step.version.spec.run],
            "Myelin-Event": list(step.version.spec.events),
            "Myelin-Version": [name],
        },
        statements=(task_statement(step.result),),
    )


def _going_out(step: RollBack, ports: Ports) -> Change:
    """The release without a version, and the hold on it."""
    return Change(
        subject=f"{step.axon}: roll back {step.version}",
        body=f"Alert {step.text}\n{step.version} is on hold until a commit lifts it.\nTraffic: {_shares(step.release)}",
        files={step.release_file: release_text(step.release, step.release_text, ports.documents)},
        trailers={
            "Myelin-Run": [step.result.run],
            "Myelin-Event": [step.event_id],
            "Myelin-Version": [step.version],
            "Myelin-Alert": [step.text],
        },
        statements=(task_statement(step.result),),
    )


def _shares(release: Release) -> str:
    return ", ".join(f"{share.version} {share.share}" for share in release.spec.traffic)


def _give_up(step: Deploy, subject: str, words: str, ports: Ports) -> Result:
    message = f"expected an answer within {step.patience_seconds:.0f} s, got none: {words}"
    for server in step.servers:
        ports.engine.retire(server.name)
    ended = replace(step.result, state="Failed", reason="NotReady", message=f"{step.version.metadata.name}: {message}")
    outcome = Outcome(state="stalled", subject=subject, reason="NotReady", message=message)
    return Result(outcome=outcome, statements=(task_statement(ended),))


def _evidence(version: Version) -> str:
    lines = [f"{name}: {value:.6g}" for name, value in sorted(version.spec.metrics.items())]
    lines += [f"{name} = {value}" for name, value in sorted(version.spec.parameters.items())]
    return "\n".join(lines)
