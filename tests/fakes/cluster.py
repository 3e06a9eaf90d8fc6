"""A Kubernetes API server in memory, with the methods of `controller.adapters.cluster.Cluster`.

Like the real one: an apply merges field by field and remembers whose each field is, where the spec of a mirror counts as one
field; `status` is written by its own call alone and keeps no key that its definition lacks; a write that changes nothing leaves
the `resourceVersion`, and one that changes more than metadata and status counts the `generation` up; who replaces must have read
what is there. Simpler: lists are one field, nothing else is checked, and nobody acts on what is written.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from controller.adapters.cluster import DEPLOYMENT, JOB, MANAGER, Kind
from policies.crds import DEFINITIONS, custom_resource_definition
from policies.errors import ConflictError, ControllerError, RefusedError

START = datetime(2026, 1, 31, 12, tzinfo=UTC)
COUNTED = {JOB.kind, DEPLOYMENT.kind, *DEFINITIONS}
"""Kinds that have a generation."""
MIRRORS = {kind for kind, definition in DEFINITIONS.items() if definition.is_mirror}
STATUS = {
    kind: set(
        custom_resource_definition(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]
    )
    for kind in DEFINITIONS
}
SYSTEM = ("uid", "creationTimestamp", "generation", "resourceVersion", "managedFields", "deletionTimestamp")
"""What only the server notes on an object."""
Key = tuple[str, str, str]
Path = tuple[str, ...]
Writer = tuple[str, str, str]
"""Who wrote, how, and which subresource."""


class FakeCluster:
    """An API server, as an account with all rights sees it.

    Args:
        now: Tells when, for `creationTimestamp` and the times of `managedFields`.
    """

    def __init__(self, now: Callable[[], datetime] = lambda: START) -> None:
        self._now, self._numbers = now, itertools.count(1)
        self.objects: dict[Key, dict[str, Any]] = {}
        self.calls: list[str] = []
        """Every call, as `apply Axon digits`."""
        self.warned: list[str] = []
        """Keys of a status that its definition lacks, as `Release outcomes`; each was dropped."""
        self.meanwhile: dict[str, Callable[[], object]] = {}
        """What happens while the answer to a list is on its way: `list Axon team-a` -> deed."""
        self.printed: dict[tuple[str, str, bool], str] = {}
        """Namespace, pod and whether an earlier container -> what it printed."""
        self.texts: dict[str, str] = {}
        """What it says at other paths, `openid/v1/jwks`."""
        self._owned: dict[Key, dict[Writer, set[Path]]] = {}
        self._written_at: dict[Key, dict[Writer, str]] = {}
        self._faults: dict[str, list[ControllerError]] = {}

    def fail(self, call: str, *errors: ControllerError) -> None:
        """Let the next calls of that method, or of that method on one object (`apply Axon digits`), fail one after the other."""
        self._faults.setdefault(call, []).extend(errors)

    def writes(self) -> list[str]:
        """The calls that may change something."""
        return [call for call in self.calls if call.split()[0] not in ("get", "list", "logs")]

    def edit(
        self, kind: Kind, namespace: str, name: str, patch: Mapping[str, Any], *, by: str = "kubectl-edit"
    ) -> dict[str, Any]:
        """Somebody else changes some fields, those of the status as well."""
        key = (kind.kind, namespace, name)
        after = _merged(self.objects[key], patch)
        return self._store(key, after, (by, "Update", ""))

    def get(self, kind: Kind, namespace: str, name: str) -> dict[str, Any] | None:
        self._called(f"get {kind.kind} {name}")
        found = self.objects.get((kind.kind, namespace, name))
        return copy.deepcopy(found) if found is not None else None

    def list(self, kind: Kind, namespace: str, selector: str = "", *, fields: str = "") -> list[dict[str, Any]]:
        self._called(f"list {kind.kind} {namespace}")
        found = [
            copy.deepcopy(item)
            for (of, where, _), item in sorted(self.objects.items())
            if of == kind.kind and namespace in ("", where)
            if _is_selected(item["metadata"].get("labels", {}), selector) and _has_fields(item, fields)
        ]
        self.meanwhile.pop(f"list {kind.kind} {namespace}", lambda: None)()
        return found

    def apply(self, kind: Kind, manifest: Mapping[str, Any]) -> dict[str, Any]:
        meta = manifest["metadata"]
        self._called(f"apply {kind.kind} {meta['name']}")
        key = (kind.kind, meta["namespace"], meta["name"])
        wanted = {part: value for part, value in copy.deepcopy(dict(manifest)).items() if part != "status"}
        return self._apply(key, kind, wanted, (MANAGER, "Apply", ""))

    def apply_status(self, kind: Kind, namespace: str, name: str, status: Mapping[str, Any]) -> dict[str, Any] | None:
        self._called(f"apply_status {kind.kind} {name}")
        key = (kind.kind, namespace, name)
        if key not in self.objects:
            return None
        unknown = set(status) - STATUS.get(kind.kind, set(status))
        self.warned += [f"{kind.kind} {part}" for part in sorted(unknown)]
        kept = {part: value for part, value in copy.deepcopy(dict(status)).items() if part not in unknown}
        return self._apply(key, kind, {"status": kept}, (MANAGER, "Apply", "status"))

    def merge(self, kind: Kind, namespace: str, name: str, patch: Mapping[str, Any]) -> dict[str, Any] | None:
        self._called(f"merge {kind.kind} {name}")
        key = (kind.kind, namespace, name)
        if key not in self.objects:
            return None
        after = _merged(self.objects[key], {part: value for part, value in patch.items() if part != "status"})
        return self._store(key, after, (MANAGER, "Update", ""))

    def create(self, kind: Kind, manifest: Mapping[str, Any]) -> dict[str, Any]:
        meta = manifest["metadata"]
        self._called(f"create {kind.kind} {meta['name']}")
        key = (kind.kind, meta["namespace"], meta["name"])
        if key in self.objects:
            raise ConflictError(f"cluster: POST {kind.plural}: {meta['name']} already exists")
        own = {part: item for part, item in copy.deepcopy(dict(meta)).items() if part not in SYSTEM}
        after = {**copy.deepcopy(dict(manifest)), **self._new(key, kind)}
        after["metadata"] = {**own, **after["metadata"]}
        return self._store(key, after, (MANAGER, "Update", ""))

    def replace(self, kind: Kind, manifest: Mapping[str, Any]) -> dict[str, Any]:
        meta = manifest["metadata"]
        self._called(f"replace {kind.kind} {meta['name']}")
        key = (kind.kind, meta["namespace"], meta["name"])
        before = self.objects.get(key)
        if before is None:
            raise RefusedError(f"cluster: PUT {kind.plural}: {meta['name']} not found", reason="NotFound")
        if "resourceVersion" not in meta:
            raise RefusedError(f"cluster: PUT {kind.plural}: resourceVersion must be specified for an update", reason="Invalid")
        if meta["resourceVersion"] != before["metadata"]["resourceVersion"]:
            raise ConflictError(f"cluster: PUT {kind.plural}: the object {meta['name']} has been modified")
        own = {part: item for part, item in before["metadata"].items() if part in SYSTEM}
        after = {**copy.deepcopy(dict(manifest)), "apiVersion": kind.api, "kind": kind.kind}
        after["metadata"] |= own
        after |= {"status": before["status"]} if "status" in before else {}
        return self._store(key, after, (MANAGER, "Update", ""))

    def delete(self, kind: Kind, namespace: str, name: str, *, grace_seconds: int | None = None) -> None:
        self._called(f"delete {kind.kind} {name}")
        key = (kind.kind, namespace, name)
        found = self.objects.get(key)
        if found is not None and found["metadata"].get("finalizers"):
            found["metadata"] |= {"deletionTimestamp": self._instant(), "resourceVersion": str(next(self._numbers))}
        else:
            self.objects.pop(key, None)
            self._owned.pop(key, None)
            self._written_at.pop(key, None)

    def read(self, path: str) -> str:
        self._called(f"read {path}")
        if path not in self.texts:
            raise RefusedError(f"cluster: GET {path}: 404", reason="NotFound")
        return self.texts[path]

    def logs(self, namespace: str, pod: str, *, last_lines: int, previous: bool = False) -> str:
        self._called(f"logs {pod}")
        lines = self.printed.get((namespace, pod, previous), "").splitlines(keepends=True)
        return "".join(lines[-last_lines:])

    def _called(self, call: str) -> None:
        self.calls.append(call)
        for name in (call, call.split()[0]):
            if self._faults.get(name):
                raise self._faults[name].pop(0)

    def _apply(self, key: Key, kind: Kind, wanted: dict[str, Any], writer: Writer) -> dict[str, Any]:
        after = copy.deepcopy(self.objects.get(key) or self._new(key, kind))
        leaves = dict(_leaves(kind.kind, wanted))
        owned = self._owned.get(key, {})
        others = {path for other, paths in owned.items() if other != writer for path in paths}
        for path in owned.get(writer, set()) - leaves.keys() - others:
            _remove(after, path)
        for path, value in leaves.items():
            _set(after, path, value)
        return self._store(key, after, writer, set(leaves))

    def _new(self, key: Key, kind: Kind) -> dict[str, Any]:
        _, namespace, name = key
        meta = {"name": name, "namespace": namespace, "uid": f"uid-{next(self._numbers)}", "creationTimestamp": self._instant()}
        return {"apiVersion": kind.api, "kind": kind.kind, "metadata": meta}

    def _store(self, key: Key, after: dict[str, Any], writer: Writer, applied: set[Path] | None = None) -> dict[str, Any]:
        before, owned = self.objects.get(key), self._owned.setdefault(key, {})
        changed = _changed(before or {"kind": key[0]}, after)
        for other in owned:
            owned[other] -= changed
        owned[writer] = applied if applied is not None else owned.get(writer, set()) | changed
        if before is not None and not changed:
            return copy.deepcopy(before)
        meta = after["metadata"]
        if key[0] in COUNTED and any(path[0] not in ("metadata", "status") for path in changed):
            meta["generation"] = int(meta.get("generation", 0)) + 1
        meta["resourceVersion"] = str(next(self._numbers))
        self._written_at.setdefault(key, {})[writer] = self._instant()
        meta["managedFields"] = [
            {"manager": who, "operation": how, "time": at} | ({"subresource": part} if part else {})
            for (who, how, part), at in self._written_at[key].items()
            if owned.get((who, how, part))
        ]
        self.objects[key] = after
        return copy.deepcopy(after)

    def _instant(self) -> str:
        return self._now().strftime("%Y-%m-%dT%H:%M:%SZ")


def _leaves(kind: str, value: Mapping[str, Any], path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Fields that are set as one."""
    for key, item in value.items():
        here = (*path, key)
        if here in (("metadata", "name"), ("metadata", "namespace"), ("apiVersion",), ("kind",)):
            continue
        is_one = here == ("spec",) and kind in MIRRORS
        if isinstance(item, Mapping) and item and not is_one:
            yield from _leaves(kind, item, here)
        else:
            yield here, item


def _set(value: dict[str, Any], path: Path, item: Any) -> None:
    for key in path[:-1]:
        if not isinstance(value.get(key), dict):
            value[key] = {}
        value = value[key]
    value[path[-1]] = copy.deepcopy(item)


def _remove(value: dict[str, Any], path: Path) -> None:
    inner = value.get(path[0])
    if len(path) == 1:
        value.pop(path[0], None)
    elif isinstance(inner, dict):
        _remove(inner, path[1:])
        if not inner:
            del value[path[0]]


def _merged(value: Any, patch: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON merge patch."""
    after = copy.deepcopy(value) if isinstance(value, dict) else {}
    for key, item in patch.items():
        if item is None:
            after.pop(key, None)
        else:
            after[key] = _merged(after.get(key), item) if isinstance(item, Mapping) else copy.deepcopy(item)
    return after


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> set[Path]:
    kind = str(before["kind"])
    known, found = dict(_leaves(kind, before)), dict(_leaves(kind, after))
    notes = {("metadata", part) for part in SYSTEM}
    return {path for path in known.keys() | found.keys() if path not in notes and known.get(path) != found.get(path)}


def _at(value: Any, path: Path) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _is_selected(labels: Mapping[str, str], selector: str) -> bool:
    for part in re.findall(r"[^,(]+(?:\([^)]*\))?", selector):
        name, _, value = part.partition("=")
        if (among := re.fullmatch(r"(\S+) in \(([^)]*)\)", part)) is not None:
            fits = labels.get(among[1]) in among[2].split(",")
        else:
            fits = name in labels and (not value or labels[name] == value)
        if not fits:
            return False
    return True


def _has_fields(item: Mapping[str, Any], fields: str) -> bool:
    pairs = [part.partition("=") for part in fields.split(",") if part]
    return all(str(_at(item, tuple(path.split(".")))) == value for path, _, value in pairs)
