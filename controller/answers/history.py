"""`history`: what happened to an axon's versions, read off the releases themselves, not off messages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from controller.answers.opened import Opened, opened
from controller.answers.signed import Judged
from controller.answers.versions import instant, name_of, read_document
from controller.project import Place
from policies.changes import Changed, changes_of
from policies.terms.release import Release
from policies.terms.version import Version


def history(place: Place, axon: str) -> list[dict[str, Any]]:
    """What happened to an axon's versions, newest first.

    Only commits that touch its releases, its version records or the signers are read, so that it is quick among many others.
    """
    with opened(place) as project:
        reading = _Reading(project)
        found: list[dict[str, Any]] = []
        for judged in project.judged([f"releases/{axon}", f"versions/{axon}"]):
            found += [_row(judged, axon, changed, reading) for changed in _changes(judged, axon, reading)]
    return found[::-1]


def _changes(judged: Judged, axon: str, reading: _Reading) -> Iterator[Changed]:
    facts = judged.facts
    parent = facts.parents[0] if facts.parents else ""
    rows: list[Changed] = []
    for file in facts.changed_paths:
        if file.startswith(f"releases/{axon}/"):
            rows += changes_of(reading.release(parent, file), reading.release(facts.commit, file))
    told = {row.version for row in rows}
    for file in facts.changed_paths:
        if file.startswith(f"versions/{axon}/") and (name := name_of(file)):
            if parent and reading.is_there(parent, file):
                gone = not reading.is_there(facts.commit, file)
                rows.append(
                    Changed(
                        version=name,
                        what="removal" if gone else "rewrite",
                        why="its record" if gone else "its record was changed",
                    )
                )
            elif name not in told:
                rows.append(Changed(version=name, what="version", why="no traffic"))
    # The list is turned round at the end: within a commit, too, what comes first is told last.
    yield from rows[::-1]


def _row(judged: Judged, axon: str, changed: Changed, reading: _Reading) -> dict[str, Any]:
    facts, text = judged.facts, changed.why
    signature = facts.signature
    return {
        "version": changed.version,
        "at": instant(facts.at),
        "what": changed.what,
        "by": judged.by,
        "commit": facts.commit,
        "why": f"{facts.subject}; {text}" if text and changed.what != "rollback" else text or facts.subject,
        "signed": bool(signature is not None and signature.valid),
        "trusted": judged.is_trusted,
        "fault": judged.fault,
        "alert": changed.alert,
        "evidence": reading.evidence(facts.commit, axon, changed.version),
    }


class _Reading:
    """Documents of many commits, each content read once."""

    def __init__(self, project: Opened) -> None:
        self._project = project
        self._releases: dict[tuple[str, str], Release | None] = {}
        self._evidence: dict[str, dict[str, Any]] = {}

    def release(self, commit: str, file: str) -> Release | None:
        """A release of a commit; None when it is not there, or cannot be read."""
        blob = self._project.repository.tree_id(commit, file) if commit else ""
        if not blob:
            return None
        if (file, blob) not in self._releases:
            found = read_document(self._project, commit, file)
            self._releases[file, blob] = found if isinstance(found, Release) else None
        return self._releases[file, blob]

    def is_there(self, commit: str, file: str) -> bool:
        """Whether a commit has a file."""
        return bool(self._project.repository.tree_id(commit, file))

    def evidence(self, commit: str, axon: str, version: str) -> dict[str, Any]:
        """What a version's record says that speaks for it; empty where there is no record any more."""
        if version not in self._evidence:
            for at in (self._project.tip, commit):
                record = read_document(self._project, at, f"versions/{axon}/{version}.yaml")
                if isinstance(record, Version):
                    spec = record.spec
                    self._evidence[version] = {
                        "commit": spec.commit,
                        "metrics": dict(spec.metrics),
                        "parameters": dict(spec.parameters),
                        "data": list(spec.data),
                        "events": list(spec.events),
                        "parent": spec.parent,
                    }
                    break
        return self._evidence.get(version, {})
