"""`plan`: what would be built, run, deployed and committed, and why. Nothing is done, nothing is asked of the network."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from controller.adapters import git
from controller.adapters.clock import SystemClock
from controller.adapters.documents import YamlDocuments
from controller.answers.opened import opened
from controller.answers.present import status
from controller.project import Place
from controller.trustfile import pin_of, read_trust
from policies.errors import ControllerError, DesiredStateError
from policies.foresight import Foreseen, foresee
from policies.identity import event_id
from policies.jobs import Surroundings
from policies.ladder import describe
from policies.records import fold
from policies.terms.desired import DesiredState
from policies.terms.digest import Digest
from policies.terms.event import Alert, Event
from policies.terms.observed import Observed, Recorded
from policies.terms.plan import AnyStep, Blocked, BuildImage, Deploy, RollBack, RunJob, Serve, StartRun, Tune
from policies.terms.revision import Revision
from policies.terms.task import ServerState
from policies.trust import judge
from reconcilers.source import Memory, read

LARGEST_FILE_BYTES = 100 << 20


def plan(place: Place, events: Path | None = None) -> dict[str, Any]:
    """What following this folder or repository would come to, if everything went well.

    A clone is planned as its files are now, as if they were committed and pushed; a bare repository or URL at its tip.

    Args:
        place: Where; its work tree may be any folder with manifests.
        events: JSON file with one event or a list of them that are taken to have happened: `axon`, `sensor`,
            optionally `trigger`, `data` and `kind` (`Rest` or `Alert`, the latter with `version`, `value`).
    """
    now = SystemClock().now()
    recorded, trust = known(place)
    with TemporaryDirectory(prefix="myelin-") as folder:
        desired = desired_here(place, Path(folder), now)
    return {
        "revision": str(desired.revision) if place.work_tree is None else f"work tree of {place.work_tree}",
        "trust": trust,
        "steps": foreseen(place, desired, recorded, events, now),
        "unresolved": list(_unresolved(desired)),
        "faults": [str(fault) for fault in desired.faults],
        "warnings": [str(fault) for fault in desired.warnings],
    }


def foreseen(place: Place, desired: DesiredState, recorded: Recorded, events: Path | None, now: datetime) -> list[dict[str, Any]]:
    """All that would be due, step by step, as the contract has it."""
    rest, alerts = _events(events, now) if events is not None else ((), ())
    observed = Observed(recorded=recorded, servers=_servers(place), received=rest, alerts=alerts)
    found = foresee(desired, observed, now=now, around=Surroundings())
    return [_step(step, found) for step in found.steps]


def known(place: Place) -> tuple[Recorded, str]:
    """What the ledger says was done, and what trust would say of the branch's tip."""
    if not place.url:
        return Recorded(), "no repository here: trust would refuse everything until it is committed, signed and pushed"
    try:
        with opened(place) as project:
            fault = judge(project.pin, project.facts(), trusted=None, branch=place.branch).fault if project.tip else ""
            return fold(project.entries()), fault
    except ControllerError as error:
        pin = pin_of(read_trust(place.trust), "")
        return Recorded(), error.message if pin.signers else f"{error.message}; nobody is trusted yet: pin with --trust FILE"


def desired_here(place: Place, scratch: Path, now: datetime) -> DesiredState:
    """What a place asks for: its files as they are now, or its branch's tip.

    Args:
        place: The project.
        scratch: An empty folder.
        now: This instant, UTC.
    """
    if place.work_tree is None:
        with opened(place) as project:
            return project.desired()
    bare = scratch / "bare"
    git.init_bare(bare)
    repository = git.GitRepository(str(bare), scratch / "git", None)
    try:
        files = {path: (place.work_tree / path).read_bytes() for path in _files(place.work_tree)}
        if not files:
            raise DesiredStateError(f"{place.work_tree}: expected manifests, the folder is empty")
        commit = repository.push(branch=place.branch, parent="", changes=files, message="work tree\n", at=now)
        revision = Revision(branch=place.branch, commit=commit, at=now)
        return read(repository, YamlDocuments(), revision, memory=Memory())
    finally:
        repository.close()


def _files(top: Path) -> Iterator[str]:
    """Files that a commit of a folder would have."""
    listed = git.would_commit(top)
    if listed is None:
        listed = [path.relative_to(top).as_posix() for path in sorted(top.rglob("*")) if ".git" not in path.parts]
    for name in listed:
        path = top / name
        if path.is_file() and not path.is_symlink() and path.stat().st_size <= LARGEST_FILE_BYTES:
            yield name


def _servers(place: Place) -> Mapping[str, ServerState]:
    try:
        known = status(place)["servers"]
    except ControllerError:
        return {}
    return {
        item["name"]: ServerState(
            name=item["name"],
            phase=item["phase"],
            address=item["address"],
            image=Digest(""),
            message=item["message"],
            labels=item["labels"],
        )
        for item in known
    }


def _events(file: Path, now: datetime) -> tuple[tuple[Event, ...], tuple[Alert, ...]]:
    try:
        value = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise DesiredStateError(f"{file}: expected a JSON file of events: {error}") from error
    rest: list[Event] = []
    alerts: list[Alert] = []
    for number, item in enumerate(value if isinstance(value, list) else [value]):
        if not isinstance(item, dict) or not {"axon", "sensor"} <= set(item):
            raise DesiredStateError(f"{file}: event {number}: expected a mapping with `axon` and `sensor`")
        axon, sensor, trigger = str(item["axon"]), str(item["sensor"]), str(item.get("trigger", ""))
        data = item.get("data") or {}
        if item.get("kind") == "Alert":
            version = str(item.get("version", ""))
            alerts.append(
                Alert(
                    axon=axon,
                    sensor=sensor,
                    trigger=trigger or "Alert-0",
                    condition=str(item.get("condition", "")),
                    labels={"version": version} if version else {},
                    value=float(item.get("value", 0)),
                    threshold=None,
                    since=now,
                    version=version,
                )
            )
            continue
        subject = {"source": str(file), "id": str(number)}
        identity = event_id("Rest", axon, sensor, trigger, subject)
        rest.append(Event(id=identity, kind="Rest", axon=axon, sensor=sensor, trigger=trigger, at=now, data=data))
    return tuple(rest), tuple(alerts)


def _step(step: AnyStep, foreseen: Foreseen) -> dict[str, Any]:
    """A step as the contract has it: kind, axon, task, reason, inputs."""
    inputs: dict[str, Any] = {}
    match step:
        case StartRun():
            inputs = {"run": step.run.id, "events": list(step.run.events)}
        case BuildImage():
            inputs = {key: value for key, value in asdict(step.image).items() if value and key not in ("commit", "event_set")}
        case RunJob():
            inputs = {"image": step.job.image, "data": list(step.job.data), "env": dict(step.job.env)}
        case Tune():
            facts = describe(step.experiment)
            inputs = {
                "image": step.job.image,
                "data": list(step.job.data),
                "optimiser": step.experiment.optimiser,
                "seed": step.experiment.seed,
                "parameters": [item.name for item in step.experiment.parameters],
                "brackets": [{"sizes": list(item.sizes), "budgets": list(item.budgets)} for item in facts.brackets],
                "trials": facts.runs,
                "fullBudgets": facts.full_budgets,
                "modelFromResult": facts.model_from,
            }
        case Deploy():
            files = [f"versions/{step.axon}/{step.version.metadata.name}.yaml", step.release_file]
            inputs = {"version": step.version.metadata.name, "traffic": _traffic(step), "commits": files}
        case RollBack():
            inputs = {"version": step.version, "traffic": _traffic(step), "commits": [step.release_file]}
        case Serve():
            inputs = {"server": step.server.name, "image": step.server.image}
        case Blocked():
            inputs = {"state": step.state}
        case _:
            pass
    value = {"kind": type(step).__name__, "axon": step.axon, "task": step.task, "reason": step.reason, "inputs": inputs}
    return dict(_named(value, foreseen.stand_ins))


def _traffic(step: Deploy | RollBack) -> dict[str, int]:
    return {item.version: item.share for item in step.release.spec.traffic}


def _named(value: Any, stand_ins: Mapping[str, str]) -> Any:
    """A value with words in the place of names that are not known yet."""
    if isinstance(value, Mapping):
        return {_named(key, stand_ins): _named(item, stand_ins) for key, item in value.items()}
    if isinstance(value, list):
        return [_named(item, stand_ins) for item in value]
    if not isinstance(value, str):
        return value
    if value in stand_ins:
        return f"({stand_ins[value]})"
    for name, text in stand_ins.items():
        value = value.replace(name, "v-…" if name.startswith("v-") else f"({text})")
    return value


def _unresolved(desired: DesiredState) -> Iterator[str]:
    for axon in desired.axons.values():
        for artifact in axon.document.spec.artifacts:
            if artifact.git is not None and artifact.git.repo:
                where = git.shown(artifact.git.repo)
                yield f"{axon.file}: artifact {artifact.name}: {where} at {artifact.git.revision or 'its default branch'}"
