"""`status`, `endpoint` and `logs`: what the controller's last pass found, and what programs printed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from controller.adapters.engine_local.supervise import born
from controller.answers import in_cluster
from controller.answers.in_cluster import Printed
from controller.answers.opened import opened
from controller.project import Place
from policies.errors import DesiredStateError, SilentError
from policies.terms.release import Release


def status(place: Place, axon: str = "") -> dict[str, Any]:
    """What the controller's last pass came to, and whether it still runs.

    Raises:
        SilentError: No controller ever ran here.
    """
    try:
        value: dict[str, Any] = json.loads((place.state / "status.json").read_bytes())
    except (OSError, ValueError) as error:
        raise SilentError(f"{place.state}: no controller has looked at this project yet; start `myelin run`") from error
    value["running"] = _runs(value)
    if axon:
        value["outcomes"] = [item for item in value["outcomes"] if item["subject"].split("/")[0] == axon]
        value["servers"] = [item for item in value["servers"] if item["labels"].get("axon") == axon]
    return value


def releases(place: Place) -> Mapping[tuple[str, str], Release]:
    """(axon, deployer) -> what its release says on the branch."""
    with opened(place) as project:
        return project.desired().releases


def endpoint(place: Place, axon: str) -> list[dict[str, Any]]:
    """URLs of an axon's deployers, in the earlier command's shape: `modelStable` first."""
    servers = status(place, axon)["servers"]
    known = releases(place)
    found = []
    for proxy in (item for item in servers if item["labels"].get("job") == "proxy"):
        base = f"http://{proxy['address']}/{axon}/"
        release = known.get((axon, proxy["labels"]["deployer"]))
        shares = sorted(release.spec.traffic, key=lambda share: -share.share) if release else []
        stable = shares[0].version if shares else ""
        models: dict[str, list[dict[str, Any]]] = {}
        for item in servers:
            labels = item["labels"]
            if labels.get("job") != "model" or labels["deployer"] != proxy["labels"]["deployer"]:
                continue
            backend = {
                "name": labels["backend"],
                "version": labels["version"],
                "url": f"{base}versions/{labels['version']}/",
                "address": f"http://{item['address']}/",
            }
            models.setdefault(labels["model"], []).append(backend)
        found.append(
            {
                "deployer": proxy["labels"]["deployer"],
                "modelStable": {"publicUrl": base, "url": f"{base}versions/{stable}/" if stable else base},
                "modelProxy": {"url": f"http://{proxy['address']}/"},
                "models": [{"name": name, "backends": backends} for name, backends in sorted(models.items())],
            }
        )
    return found


def logs(place: Place, name: str) -> list[tuple[str, str]]:
    """(job or server, what it printed) of all whose name, run or task is `name`, oldest first.

    Raises:
        DesiredStateError: There is none; says which there are.
    """
    found, known = [], []
    for item in in_cluster.printed(place) if in_cluster.is_here(place) else _printed(place):
        labels = item.labels
        known.append(item.name)
        names = {item.name, labels.get("run"), labels.get("taskRun"), labels.get("version")}
        names |= {
            f"{labels.get('axon')}/{labels.get('task')}",
            f"{labels.get('axon')}/{labels.get('task')}/{labels.get('trial')}",
        }
        if name in names:
            found.append((item.at, item.name, item.text))
    if not found:
        shown = ", ".join(known[:8]) + (", …" if len(known) > 8 else "")
        raise DesiredStateError(
            f"logs of {name}: expected AXON/TASK, AXON/TASK/TRIAL, a version, or one of {shown or 'none yet'}"
        )
    return [(job, text) for _, job, text in sorted(found)]


def _printed(place: Place) -> Iterator[Printed]:
    for folder in (place.state / "engine/jobs", place.state / "engine/servers"):
        for one in sorted(folder.iterdir()) if folder.is_dir() else ():
            log = one / "output.log"
            if log.exists():
                text = log.read_text(errors="replace")
                yield Printed(name=one.name, at=log.stat().st_mtime, labels=_labels(one), text=text)


def _labels(folder: Path) -> Mapping[str, str]:
    for file, key in (("spec.json", "labels"), ("labels.json", "")):
        try:
            value = json.loads((folder / file).read_bytes())
        except (OSError, ValueError):
            continue
        return dict(value[key] if key else value)
    return {}


def _runs(value: Mapping[str, Any]) -> bool:
    """Whether the controller that wrote a status is still there: a process of that number, born when it said."""
    try:
        return bool(born(int(value["pid"])) == value.get("born", ""))
    except (OSError, ValueError, KeyError):
        return False
