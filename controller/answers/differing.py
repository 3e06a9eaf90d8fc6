"""`diff`: what differs between two versions: code, manifest, data, parameters, metrics, environment, routes, and what is in
their images."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator, Mapping
from typing import IO, Any

from controller.adapters.oci.layout import Layout
from controller.answers.opened import Opened, opened, store_of
from controller.answers.versions import Records, read_document
from controller.project import Place
from policies.differences import differences
from policies.errors import ControllerError
from policies.sources import source_folders
from policies.terms.axon import Axon
from policies.terms.version import BackendRecord, Version

MOST_NAMED = 200
"""How many files or commits of one kind are named; all are counted."""
_BLOCK = 1 << 20


def diff(place: Place, before: str, after: str) -> dict[str, Any]:
    """What differs between two versions.

    Args:
        place: The project.
        before: A version, or whatever `why` knows one by.
        after: Another.
    Raises:
        DesiredStateError: There is no such version.
    """
    with opened(place) as project:
        records = Records(project)
        one, other = _one(records, before), _one(records, after)
        value = {
            "before": one.metadata.name,
            "after": other.metadata.name,
            "code": _code(project, one, other),
            "manifest": _manifest(project, one, other),
        }
    store = store_of(place)
    return {
        **value,
        "data": _sets(one.spec.data, other.spec.data),
        "parameters": _listed(dict(one.spec.parameters), dict(other.spec.parameters)),
        "metrics": _metrics(one.spec.metrics, other.spec.metrics),
        "env": [item for name, (a, b) in _backends(one, other).items() for item in _listed(a and a.env, b and b.env, name)],
        "routes": _listed([dict(item) for item in one.spec.routes], [dict(item) for item in other.spec.routes], "routes"),
        "images": [_image(store, name, a, b) for name, (a, b) in _backends(one, other).items()],
    }


def _one(records: Records, subject: str) -> Version:
    fitting = records.meant(subject)
    return fitting[0] if fitting else records.named(subject)


def _code(project: Opened, one: Version, other: Version) -> dict[str, Any]:
    """Commits between, and files that differ in the folders that the axon is built from."""
    before, after = one.spec.commit, other.spec.commit
    missing = [commit for commit in (before, after) if not project.repository.tree_id(commit, "")]
    if missing:
        text = f"not here: commit {', '.join(missing)}"
        return {"before": before, "after": after, "commits": [], "count": None, "undone": None, "folders": [], "missing": text}
    between = project.repository.facts(since=before, until=after)
    undone = project.repository.facts(since=after, until=before)
    commits = [
        {"commit": item.commit, "subject": item.subject, "by": project.name_of(item)} for item in between[: -MOST_NAMED - 1 : -1]
    ]
    return {
        "before": before,
        "after": after,
        "commits": commits,
        "count": len(between),
        "undone": len(undone),
        "folders": [item for item in _folders(project, one, other) if item["changed"] + item["added"] + item["removed"]],
        "missing": "",
    }


def _folders(project: Opened, one: Version, other: Version) -> Iterator[dict[str, Any]]:
    before, after = one.spec.commit, other.spec.commit
    documents = [manifest_at(project, version.spec.commit, version.metadata.axon)[1] for version in (one, other)]
    for folder in sorted({folder for document in documents if document is not None for folder in source_folders(document)}):
        old, new = ({item.path: item.blob for item in project.repository.files(commit, folder)} for commit in (before, after))
        changed = sorted(path for path in old.keys() & new.keys() if old[path] != new[path])
        added, removed = sorted(new.keys() - old.keys()), sorted(old.keys() - new.keys())
        named = [f"~ {path}" for path in changed] + [f"+ {path}" for path in added] + [f"- {path}" for path in removed]
        yield {
            "folder": folder,
            "changed": len(changed),
            "added": len(added),
            "removed": len(removed),
            "files": named[:MOST_NAMED],
        }


def _manifest(project: Opened, one: Version, other: Version) -> list[dict[str, Any]]:
    """Keys of the axon's manifest that differ, as far as both commits have one."""
    documents = [manifest_at(project, version.spec.commit, version.metadata.axon)[1] for version in (one, other)]
    if any(document is None for document in documents):
        return []
    values = [
        document.model_dump(mode="json", by_alias=True, exclude_none=True) for document in documents if document is not None
    ]
    return _listed(values[0]["spec"], values[1]["spec"], "spec")


def manifest_at(project: Opened, commit: str, axon: str) -> tuple[str, Axon | None]:
    """Path and content of an axon's manifest in a commit; None where there is none, or it cannot be read."""
    if not project.repository.tree_id(commit, ""):
        return "", None
    likely = f"axons/{axon}/axon.yaml"
    if isinstance(found := read_document(project, commit, likely), Axon) and found.metadata.name == axon:
        return likely, found
    names = [item.path for item in project.repository.files(commit) if item.path.endswith((".yaml", ".yml")) and not item.symlink]
    texts = project.repository.read_many(commit, [name for name in names if not name.startswith(("releases/", "versions/"))])
    for path, text in texts.items():
        if b"Axon" in text and axon.encode() in text:
            document = read_document(project, commit, path)
            if isinstance(document, Axon) and document.metadata.name == axon:
                return path, document
    return "", None


def _backends(one: Version, other: Version) -> dict[str, tuple[BackendRecord | None, BackendRecord | None]]:
    """`model/backend` -> that backend in both versions."""
    sides = [{f"{item.model}/{item.backend}": item for item in version.spec.backends} for version in (one, other)]
    return {name: (sides[0].get(name), sides[1].get(name)) for name in dict.fromkeys((*sides[0], *sides[1]))}


def _image(store: Layout | None, name: str, one: BackendRecord | None, other: BackendRecord | None) -> dict[str, Any]:
    """How a backend's image and model differ: layers by digest, files by name where the store has both."""
    images = [backend.image if backend else "" for backend in (one, other)]
    models = [backend.artifact if backend else "" for backend in (one, other)]
    value: dict[str, Any] = {
        "backend": name,
        "before": images[0],
        "after": images[1],
        "modelBefore": models[0],
        "modelAfter": models[1],
        "layers": {"added": [], "removed": []},
        "files": [],
        "count": 0,
        "missing": "",
    }
    if images[0] == images[1]:
        return value
    if store is None:
        return {**value, "missing": "not here: no image store on this machine"}
    try:
        layers = [list(dict.fromkeys(_layers(store, image))) if image else [] for image in images]
        files = [_files(store, mine, other) for mine, other in ((layers[0], layers[1]), (layers[1], layers[0]))]
    except (ControllerError, OSError, tarfile.TarError) as error:
        return {**value, "missing": f"not here: {error}"}
    named = [f"~ {path}" for path in sorted(files[0].keys() & files[1].keys()) if files[0][path] != files[1][path]]
    named += [f"+ {path}" for path in sorted(files[1].keys() - files[0].keys())]
    named += [f"- {path}" for path in sorted(files[0].keys() - files[1].keys())]
    layers_value = {
        "added": [item for item in layers[1] if item not in layers[0]],
        "removed": [item for item in layers[0] if item not in layers[1]],
    }
    return {**value, "layers": layers_value, "files": named[:MOST_NAMED], "count": len(named)}


def _layers(store: Layout, image: str) -> list[str]:
    """An image's layers; of an index those of all of its images."""
    children = store.manifest(image).get("manifests")
    if children is None:
        return list(store.named(image)[1:])
    return [layer for child in children for layer in _layers(store, str(child["digest"]))]


def _files(store: Layout, layers: list[str], others: list[str]) -> Mapping[str, str]:
    """Path -> mode and digest of the content, of all files in layers that the other image does not have."""
    found: dict[str, str] = {}
    for layer in layers:
        if layer in others:
            continue
        store.check(layer)
        with tarfile.open(store.path(layer), mode="r|*") as archive:
            for member in archive:
                content = archive.extractfile(member) if member.isfile() else None
                if not member.isdir():
                    found[member.name.removeprefix("./")] = f"{member.mode:o} {_digest(content) if content else member.linkname}"
    return found


def _digest(content: IO[bytes]) -> str:
    sha = hashlib.sha256()
    while block := content.read(_BLOCK):
        sha.update(block)
    return sha.hexdigest()


def _metrics(one: Mapping[str, float], other: Mapping[str, float]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "before": one.get(name),
            "after": other.get(name),
            "difference": other[name] - one[name] if name in one and name in other else None,
        }
        for name in sorted({*one, *other})
    ]


def _sets(one: tuple[str, ...], other: tuple[str, ...]) -> dict[str, list[str]]:
    return {
        "added": [item for item in other if item not in one],
        "removed": [item for item in one if item not in other],
        "same": [item for item in one if item in other],
    }


def _listed(one: Any, other: Any, path: str = "") -> list[dict[str, Any]]:
    return [{"path": item.path, "before": item.before, "after": item.after} for item in differences(one, other, path=path)]


def told(value: Mapping[str, Any]) -> Iterator[str]:
    """The same for people, line by line."""
    yield f"{value['before']} -> {value['after']}"
    code = value["code"]
    if code["missing"]:
        yield f"code       {code['missing']}"
    elif code["before"] == code["after"]:
        yield f"code       the same commit, {code['before'][:12]}"
    else:
        undone = f", and {code['undone']} that only the first has" if code["undone"] else ""
        yield f"code       {code['before'][:12]} -> {code['after'][:12]}: {code['count']} commits{undone}"
        yield from (f"             {item['commit'][:12]} {item['subject']} by {item['by']}" for item in code["commits"][:10])
        for item in code["folders"]:
            counts = f"{item['changed']} files changed, {item['added']} added, {item['removed']} removed"
            yield f"folder     {item['folder'] or '/'}: {counts}"
            yield from (f"             {name}" for name in item["files"][:10])
    for part in ("manifest", "parameters", "env", "routes"):
        yield from (f"{part:<10} {item['path']}: {_shown(item['before'])} -> {_shown(item['after'])}" for item in value[part])
    for sign in ("added", "removed"):
        yield from (f"data       {sign} {item}" for item in value["data"][sign])
    for item in value["metrics"]:
        change = f" ({item['difference']:+.6g})" if item["difference"] is not None else ""
        yield f"metric     {item['name']}: {_shown(item['before'])} -> {_shown(item['after'])}{change}"
    for item in value["images"]:
        yield from _told_image(item)


def _told_image(item: Mapping[str, Any]) -> Iterator[str]:
    if item["before"] == item["after"]:
        yield f"image      {item['backend']}: the same, {item['before']}"
    else:
        yield f"image      {item['backend']}: {item['before'] or 'none'} -> {item['after'] or 'none'}"
        if item["missing"]:
            yield f"             {item['missing']}"
        layers = item["layers"]
        yield f"             {len(layers['added'])} layers added, {len(layers['removed'])} removed, {item['count']} files differ"
        yield from (f"             {name}" for name in item["files"][:20])
    if item["modelBefore"] != item["modelAfter"]:
        yield f"model      {item['backend']}: {item['modelBefore'] or 'none'} -> {item['modelAfter'] or 'none'}"


def _shown(value: Any) -> str:
    if value is None:
        return "not there"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
