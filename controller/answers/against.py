"""`plan --against`: what this work tree would make the controller do that another revision would not, for who reviews it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from controller.adapters.clock import SystemClock
from controller.adapters.clone import Clone
from controller.adapters.documents import YamlDocuments
from controller.answers.foreseeing import desired_here, foreseen, known
from controller.answers.opened import opened
from controller.project import Place
from policies.differences import differences
from policies.errors import DesiredStateError
from policies.terms.desired import DesiredAxon, DesiredState
from policies.terms.project import Project
from policies.terms.revision import Revision
from reconcilers.source import Memory, read

MARKER = "<!-- myelin plan -->"
"""By which a comment of ours is found again."""
MOST_SHOWN = 40
"""How many lines of one kind a comment has."""
_VOLATILE = ("run", "events")
"""Names that follow from the commit, and say nothing of what is done."""


def against(place: Place, revision: str, events: Path | None = None) -> tuple[dict[str, Any], Project]:
    """What comes, goes or changes between the plan at a revision and that of the work tree.

    Args:
        place: The project; of a bare repository or URL the branch's tip is taken for the work tree.
        revision: A branch, tag or commit.
        events: JSON file with events that are taken to have happened, in both.
    Returns:
        The answer, and the project's document at the revision, which says where its forge is.
    Raises:
        DesiredStateError: There is no such revision here.
    """
    now = SystemClock().now()
    recorded, _ = known(place)
    with TemporaryDirectory(prefix="myelin-") as folder:
        after = desired_here(place, Path(folder), now)
    commit, before = _desired_at(place, revision)
    plans = [foreseen(place, desired, recorded, events, now) for desired in (before, after)]
    steps = _steps(*plans)
    value: dict[str, Any] = {
        "revision": str(after.revision) if place.work_tree is None else f"work tree of {place.work_tree}",
        "against": commit,
        "steps": steps,
        "project": _listed(_spec(before.project), _spec(after.project), "spec"),
        "axons": list(_axons(before, after)),
        "releases": list(_releases(before, after)),
        "faults": [str(fault) for fault in after.faults],
    }
    value["differs"] = any(value[part] for part in ("project", "axons", "releases", "faults")) or any(steps.values())
    return value, before.project


def _desired_at(place: Place, revision: str) -> tuple[str, DesiredState]:
    with opened(place) as project:
        commit = Clone(place.work_tree).resolve(revision) if place.work_tree is not None else ""
        if not commit and re.fullmatch(r"[0-9a-f]{40}", revision):
            commit = revision
        if not commit:
            commit = project.repository.fetch(revision.removeprefix("origin/"))
        if not commit or not project.repository.tree_id(commit, ""):
            raise DesiredStateError(
                f"{revision}: expected a branch, tag or commit that is here; fetch it first", reason="NoRevision"
            )
        pinned = Revision(branch=place.branch, commit=commit, at=SystemClock().now())
        return commit, read(project.repository, YamlDocuments(), pinned, memory=Memory())


def _steps(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    sides = [{_key(step): step for step in steps} for steps in (before, after)]
    both = [key for key in sides[1] if key in sides[0]]
    return {
        "added": [step for key, step in sides[1].items() if key not in sides[0]],
        "removed": [step for key, step in sides[0].items() if key not in sides[1]],
        "changed": [
            {"before": sides[0][key], "after": sides[1][key]} for key in both if _said(sides[0][key]) != _said(sides[1][key])
        ],
    }


def _key(step: Mapping[str, Any]) -> tuple[str, ...]:
    more = str(step["inputs"].get("server", "")) or (step["reason"] if step["kind"] == "Blocked" else "")
    return (step["kind"], step["axon"], step["task"], more)


def _said(step: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in step["inputs"].items() if key not in _VOLATILE}


def _axons(before: DesiredState, after: DesiredState) -> Iterator[dict[str, Any]]:
    for name in sorted({*before.axons, *after.axons}):
        old, new = before.axons.get(name), after.axons.get(name)
        keys = _listed(_spec(old.document), _spec(new.document), "spec") if old and new else []
        folders = sorted(folder for folder in {*_trees(old), *_trees(new)} if _trees(old).get(folder) != _trees(new).get(folder))
        if old is None or new is None:
            yield {"axon": name, "change": "added" if old is None else "removed", "keys": [], "folders": folders}
        elif keys or folders or old.file != new.file:
            keys += [{"path": "file", "before": old.file, "after": new.file}] if old.file != new.file else []
            yield {"axon": name, "change": "changed", "keys": keys, "folders": folders}


def _releases(before: DesiredState, after: DesiredState) -> Iterator[dict[str, Any]]:
    for key in sorted({*before.releases, *after.releases}):
        old, new = before.releases.get(key), after.releases.get(key)
        found = _listed(_spec(old) if old else None, _spec(new) if new else None, "spec")
        if found:
            yield {"axon": key[0], "deployer": key[1], "keys": found}


def _trees(axon: DesiredAxon | None) -> Mapping[str, str]:
    return axon.trees if axon else {}


def _spec(document: Any) -> dict[str, Any]:
    value: dict[str, Any] = document.model_dump(mode="json", by_alias=True, exclude_none=True)["spec"]
    return value


def _listed(one: Any, other: Any, path: str) -> list[dict[str, Any]]:
    return [{"path": item.path, "before": item.before, "after": item.after} for item in differences(one, other, path=path)]


def told(value: Mapping[str, Any]) -> list[str]:
    """The same for people, line by line."""
    lines = [f"{value['revision']} against {value['against'][:12]}", *(f"fault    {fault}" for fault in value["faults"])]
    lines += [f"project  {_change(item)}" for item in value["project"]]
    for axon in value["axons"]:
        lines.append(f"axon     {axon['axon']}: {axon['change']}")
        lines += [f"           {_change(item)}" for item in axon["keys"]]
        lines += [f"           source {folder or '/'}" for folder in axon["folders"]]
    for release in value["releases"]:
        lines += [f"release  {release['axon']}/{release['deployer']}: {_change(item)}" for item in release["keys"]]
    lines += [f"+ {_step(step)}" for step in value["steps"]["added"]]
    lines += [f"- {_step(step)}" for step in value["steps"]["removed"]]
    for pair in value["steps"]["changed"]:
        lines.append(f"~ {_step(pair['after'])}")
        lines += [f"           {_change(item)}" for item in _listed(_said(pair["before"]), _said(pair["after"]), "")]
    return lines if value["differs"] else [*lines, "nothing differs"]


def markdown(value: Mapping[str, Any]) -> str:
    """The same as a comment on a pull request."""
    lines = told(value)
    shown = lines[1:][:MOST_SHOWN]
    more = len(lines) - 1 - len(shown)
    steps = value["steps"]
    counts = ", ".join(f"{len(steps[word])} {word}" for word in ("added", "removed", "changed"))
    # What comes out of manifests is text of whoever wrote them: within a fence that none of it can end.
    body = "\n".join([*(line[:400] for line in shown), *([f"… and {more} lines more"] if more > 0 else [])])
    fence = "`" * (max((len(found) for found in re.findall(r"`+", body)), default=2) + 1)
    fence = max(fence, "```", key=len)
    head = f"### What Myelin would do\n\nAgainst `{value['against'][:12]}`: steps {counts}"
    faults = f"; **{len(value['faults'])} faults**" if value["faults"] else ""
    return f"{MARKER}\n{head}{faults}.\n\n{fence}diff\n{body}\n{fence}\n"


def _step(step: Mapping[str, Any]) -> str:
    what = " ".join(part for part in (step["axon"], step["task"]) if part)
    return f"{step['kind']} {what}: {step['reason']}"


def _change(item: Mapping[str, Any]) -> str:
    return f"{item['path']}: {_shown(item['before'])} -> {_shown(item['after'])}"


def _shown(value: Any) -> str:
    return "not there" if value is None else " ".join(str(value).split())[:120]
