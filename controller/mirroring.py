"""Show a project in its cluster: Axon, Release and Version objects that mirror Git, and the status of all of them.

Git is the truth: what is edited here is put back, what is made here by hand is refused, and nothing is read back.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from controller.adapters.cluster import AXON, PROJECT, RELEASE, VERSION, Cluster, Kind
from controller.loop import Report
from policies.conditions import conditions, worst_of
from policies.errors import ControllerError, RefusedError
from policies.mirrors import Mirror, mirrors, shown
from policies.terms.outcome import Outcome
from reconcilers.manifests.drift import drift_of
from reconcilers.manifests.names import MANAGED_BY
from reconcilers.manifests.names import PROJECT as PROJECT_LABEL

KINDS: Mapping[str, Kind] = {"Axon": AXON, "Release": RELEASE, "Version": VERSION}
FILE = "myelin.io/file"
PUT_BACK = "PutBack"


class Seen:
    """Objects of our own kinds as the cluster's watches told of them. Threads share it."""

    def __init__(self) -> None:
        self._objects: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
        """(kind, namespace) -> name -> object. A pass asks for those of one namespace, and there may be 1,000 of them."""
        self._told_at: dict[tuple[str, str], dict[str, int]] = {}
        self._changes: dict[str, int] = {}
        self._number = 0
        self._guard = threading.Lock()

    def tell(self, kind: str, body: Mapping[str, Any], *, is_gone: bool) -> bool:
        """Take what a watch says; whether that matters to anybody: our own words in a status do not."""
        where, name = (kind, str(body["metadata"]["namespace"])), str(body["metadata"]["name"])
        with self._guard:
            self._note(where, name)
            return self._set(where, name, None if is_gone else body) or is_gone

    def mark(self) -> int:
        """A moment: what is told after it is newer than a list that was asked for then."""
        with self._guard:
            return self._number

    def changes(self, kind: str) -> int:
        """A number that is another one once an object of a kind came, went, or says something else than in its status."""
        with self._guard:
            return self._changes.get(kind, 0)

    def reset(self, kind: str, namespace: str, bodies: Sequence[Mapping[str, Any]], *, since: int | None = None) -> None:
        """Take all objects of a kind in a namespace as a list found them, but for those that were told of since a moment."""
        where, listed = (kind, namespace), {str(body["metadata"]["name"]): body for body in bodies}
        with self._guard:
            newer = {name for name, at in self._told_at.get(where, {}).items() if since is not None and at > since}
            for name in {*self._objects.get(where, ()), *listed} - newer:
                self._set(where, name, listed.get(name))
            self._told_at[where] = {name: at for name, at in self._told_at.get(where, {}).items() if name in newer}

    def put(self, kind: str, body: Mapping[str, Any]) -> None:
        """Take what a write came to."""
        where, name = (kind, str(body["metadata"]["namespace"])), str(body["metadata"]["name"])
        with self._guard:
            self._note(where, name)
            self._set(where, name, body)

    def get(self, kind: str, namespace: str, name: str) -> Mapping[str, Any] | None:
        """One object; None when there is none."""
        with self._guard:
            return self._objects.get((kind, namespace), {}).get(name)

    def all(self, kind: str, namespace: str = "") -> list[Mapping[str, Any]]:
        """Objects of a kind, in one namespace or all."""
        with self._guard:
            if namespace:
                return list(self._objects.get((kind, namespace), {}).values())
            return [item for (of, _), found in self._objects.items() if of == kind for item in found.values()]

    def namespaces(self, kind: str) -> set[str]:
        """Where objects of a kind are."""
        with self._guard:
            return {namespace for (of, namespace), found in self._objects.items() if of == kind and found}

    def _note(self, where: tuple[str, str], name: str) -> None:
        self._number += 1
        self._told_at.setdefault(where, {})[name] = self._number

    def _set(self, where: tuple[str, str], name: str, body: Mapping[str, Any] | None) -> bool:
        """Set an object, or take it out; whether that says something new."""
        known = self._objects.setdefault(where, {})
        before = known.pop(name, None)
        if body is not None:
            known[name] = body
        is_new = (before is None) != (body is None) or (
            before is not None and body is not None and before is not body and _told(before) != _told(body)
        )
        if is_new:
            self._changes[where[0]] = self._changes.get(where[0], 0) + 1
        return is_new


class Mirroring:
    """Keeps one project's objects as its last pass says.

    Args:
        cluster: The API server.
        seen: What its watches tell.
        namespace: The project's.
        project: Its name.
        owner: Reference to its object.
    """

    def __init__(self, cluster: Cluster, seen: Seen, *, namespace: str, project: str, owner: Mapping[str, Any]) -> None:
        self._cluster, self._seen, self._namespace, self._project, self._owner = cluster, seen, namespace, project, owner
        self._put_back: dict[tuple[str, str], dict[str, str]] = {}
        self._revision = ""

    def present(self, report: Report, now: datetime) -> list[Outcome]:
        """Make the objects be as a pass found things; returns what could not be written."""
        troubles: list[Outcome] = []
        if report.desired is not None and report.observed is not None:
            revision = str(report.desired.revision)
            if revision != self._revision:
                self._put_back, self._revision = {}, revision
            wanted = list(mirrors(report.desired, report.observed, report.outcomes))
            for mirror in wanted:
                troubles += _tried(f"{mirror.kind} {mirror.name}", partial(self._mirror, mirror, now))
            kept = {(mirror.kind, mirror.name) for mirror in wanted}
            for kind in KINDS:
                for found in self._seen.all(kind, self._namespace):
                    if (kind, found["metadata"]["name"]) not in kept:
                        name = f"{kind} {found['metadata']['name']}"
                        troubles += _tried(name, partial(self._unwanted, kind, found, report, now))
        status: dict[str, Any] = {"outcomes": shown(report.outcomes)}
        if report.desired is not None:
            desired = report.desired
            status |= {"revision": str(desired.revision), "signer": desired.revision.signer, "unsigned": desired.unsigned}
        outcomes = [*report.outcomes, *troubles]
        troubles += _tried(
            f"Project {self._project}",
            lambda: say(self._cluster, self._seen, self._namespace, self._project, outcomes, now=now, status=status),
        )
        return troubles

    def _mirror(self, mirror: Mirror, now: datetime) -> None:
        kind = KINDS[mirror.kind]
        found = self._seen.get(mirror.kind, self._namespace, mirror.name)
        meta = {
            "name": mirror.name,
            "namespace": self._namespace,
            "labels": {**MANAGED_BY, PROJECT_LABEL: self._project, "myelin.io/axon": mirror.axon[:63]},
            "annotations": {FILE: mirror.file},
            "ownerReferences": [dict(self._owner)],
        }
        wanted = {"metadata": meta, **_plain(mirror.content)}
        if found is None or (drift := self._edited(wanted, found)):
            if found is not None and _is_same_revision(found, mirror):
                self._note(mirror, found, drift, now)
            found = self._cluster.apply(kind, wanted)
            if self._edited(wanted, found):  # what somebody set beside ours, an apply leaves there
                found = self._cluster.replace(kind, {**wanted, "metadata": {**meta, "resourceVersion": _version(found)}})
            self._seen.put(mirror.kind, found)
        put_back = self._put_back.get((mirror.kind, mirror.name))
        more = [put_back] if put_back is not None else []
        self._status(kind, found, mirror.outcomes, mirror.status, now, more)

    def _edited(self, wanted: Mapping[str, Any], found: Mapping[str, Any]) -> str:
        """Where an object is not as Git says; its content counts as a whole, its metadata only where it is ours."""
        for key in sorted({*_content(wanted), *_content(found)}):
            ours, theirs = wanted.get(key), found.get(key)
            if ours != theirs:  # else they differ in order alone
                return drift_of(ours, theirs, key) or drift_of(theirs, ours, key) or key
        return drift_of(wanted["metadata"], found["metadata"], "metadata")

    def _note(self, mirror: Mirror, found: Mapping[str, Any], drift: str, now: datetime) -> None:
        others = [item for item in found["metadata"].get("managedFields", ()) if item.get("manager") != "myelin"]
        last = max(others, key=lambda item: str(item.get("time", "")), default=None)
        who = f" by {last['manager']} at {last.get('time', 'an unknown time')}" if last is not None else ""
        words = f"{drift}: was changed in the cluster{who} and is put back; change {mirror.file} in Git instead"
        self._put_back[mirror.kind, mirror.name] = {
            "type": PUT_BACK,
            "status": "True",
            "reason": "EditedByHand",
            "message": words,
        }

    def _unwanted(self, kind: str, found: Mapping[str, Any], report: Report, now: datetime) -> None:
        meta, door = found["metadata"], KINDS[kind]
        if meta.get("labels", {}).get(PROJECT_LABEL) != self._project:
            words = "is not in Git, so nothing is done about it; commit it to the repository, and delete this object"
            outcome = Outcome(state="stalled", subject=str(meta["name"]), reason="NotInGit", message=words)
            self._status(door, found, (outcome,), {}, now)
            return
        assert report.desired is not None
        file = meta.get("annotations", {}).get(FILE, "")
        faults = [fault for fault in report.desired.faults if fault.file == file]
        if faults:
            outcomes = [Outcome(state="stalled", subject=fault.file, reason=fault.reason, message=str(fault)) for fault in faults]
            status: dict[str, Any] = {"axon": meta["labels"].get("myelin.io/axon", "")}
            status |= {"outcomes": shown(outcomes)} if kind == "Axon" else {}  # the others' definitions have no such list
            self._status(door, found, outcomes, status, now)
        elif not report.desired.faults and report.desired.is_trusted:
            self._cluster.delete(door, self._namespace, str(meta["name"]))

    def _status(
        self,
        kind: Kind,
        found: Mapping[str, Any],
        outcomes: Sequence[Outcome],
        status: Mapping[str, Any],
        now: datetime,
        more: Sequence[Mapping[str, str]] = (),
    ) -> None:
        write_status(self._cluster, self._seen, kind, found, outcomes, status, now=now, more=more)


def say(
    cluster: Cluster,
    seen: Seen,
    namespace: str,
    name: str,
    outcomes: Sequence[Outcome],
    *,
    now: datetime,
    status: Mapping[str, Any] | None = None,
) -> None:
    """Write a Project's own conditions."""
    found = seen.get("Project", namespace, name)
    if found is not None:
        write_status(cluster, seen, PROJECT, found, outcomes, status or {"outcomes": shown(outcomes)}, now=now)


def write_status(
    cluster: Cluster,
    seen: Seen,
    kind: Kind,
    found: Mapping[str, Any],
    outcomes: Sequence[Outcome],
    status: Mapping[str, Any],
    *,
    now: datetime,
    more: Sequence[Mapping[str, str]] = (),
) -> None:
    """Write an object's status where it is not so already."""
    meta, before = found["metadata"], found.get("status", {})
    generation = int(meta.get("generation", 1))
    worst = worst_of(outcomes)
    wanted = {
        **{key: value for key, value in status.items() if value is not None},
        "observedGeneration": generation,
        "reason": worst.reason if worst is not None else "AsDesired",
        "message": worst.message[:1024] if worst is not None else "",
        "conditions": conditions(outcomes, now=now, generation=generation, before=before.get("conditions", ()), more=more),
    }
    wanted = _plain(wanted)
    if wanted == _plain(before):
        return
    written = cluster.apply_status(kind, str(meta["namespace"]), str(meta["name"]), wanted)
    if written is not None:
        seen.put(kind.kind, written)


def _tried(subject: str, work: Callable[[], None]) -> Iterator[Outcome]:
    """What kept an object from being written; the others are written all the same."""
    try:
        work()
    except ControllerError as error:
        stalled = isinstance(error, RefusedError)
        yield Outcome(state="stalled" if stalled else "waiting", subject=subject, reason=error.reason, message=error.message)


def _content(value: Mapping[str, Any]) -> dict[str, Any]:
    return {key: item for key, item in value.items() if key not in ("apiVersion", "kind", "metadata", "status")}


def _told(body: Mapping[str, Any]) -> Any:
    """What of an object a person can say: all but its status and what the API server notes on it."""
    meta = body["metadata"]
    parts = ("labels", "annotations", "deletionTimestamp", "finalizers", "ownerReferences", "uid")
    return {**_content(body), "metadata": {key: meta.get(key) for key in parts}}


def _is_same_revision(found: Mapping[str, Any], mirror: Mirror) -> bool:
    """Whether the cluster had shown this revision already, so that a difference is somebody's edit."""
    return bool(found.get("status", {}).get("revision") == mirror.status.get("revision"))


def _version(found: Mapping[str, Any]) -> str:
    return str(found["metadata"]["resourceVersion"])


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(value))
    return found
