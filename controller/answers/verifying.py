"""`verify`: does everything fit together still? What was changed is named with its first field, and by whom.

What cannot be checked here is said to be so, and never taken for checked.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from controller.adapters.documents import YamlDocuments
from controller.adapters.keys import is_signed
from controller.adapters.oci.layout import Layout
from controller.adapters.sigstore.leaves import KIND
from controller.answers.checked import Checked
from controller.answers.logged import check_log, said_in
from controller.answers.opened import Opened, opened, store_of
from controller.answers.proof import check_ledger, of_kind
from controller.answers.rebuilding import Tell
from controller.answers.stored import StoreChecks, ends_well, found_in
from controller.answers.versions import Records, name_of, parts_of
from controller.keyring import former_controllers
from controller.project import Place
from policies.canonical import digest_value
from policies.differences import first_difference
from policies.errors import DesiredStateError
from policies.identity import version_id
from policies.parsing import parse_document
from policies.terms.observed import Recorded
from policies.terms.version import Version
from policies.trust import judge
from reconcilers.deploy import record_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """One version's record through the branch's history."""

    path: str
    added_in: str
    original: bytes
    record: Version | None
    """What the original says; None: it cannot be read."""
    now: bytes | None
    """None: it was taken off the branch."""
    changed: tuple[tuple[str, str], ...]
    """(commit, who signed it) of all that changed or removed it later."""


def verify(place: Place, subject: str = "", *, rebuild: bool = False, tell: Tell = lambda _: None) -> dict[str, Any]:
    """Check commits, ledger, transparency log, version records, images and models.

    Args:
        place: The project.
        subject: A version, an image or a model: then only what belongs to it is checked, besides commits and ledger. An image
            is named by its digest, `host/path@sha256:…` or a tag in the store. Empty: everything.
        rebuild: Whether images are built again from their provenance, and compared.
        tell: Told what goes on.

    Raises:
        DesiredStateError: There is no such version, image or model.
        OutsideError: An image that is not here is to be fetched, and its registry said no or nothing.
    """
    with ExitStack() as closes:
        project = closes.enter_context(opened(place))
        kept = _kept(project)
        records = Records(project)
        name = subject.rpartition("@")[2]
        wanted = {version: item for version, item in kept.items() if not subject or name in (version, *_parts(item))}
        layout = store_of(place)
        found = closes.enter_context(found_in(layout, subject, tell)) if subject else None
        if subject and not wanted and found is None:
            raise records.nothing_fits(subject)
        versions = [item.record for _, item in sorted(wanted.items()) if item.record]
        checked = [*_commits(project), *_ledger(project), *_log(project, layout, versions)]
        recorded = project.recorded(_keys_of(item.record for item in wanted.values() if item.record is not None))
        own = project.pin.controller.key if project.pin.controller else ""
        digests = {digest_value(item.record.model_dump(mode="json", by_alias=True)) for item in kept.values() if item.record}
        checked += [_record(version, item, digests, own, recorded) for version, item in sorted(wanted.items())]
        store = StoreChecks(project, found.layout if found is not None else layout, tell, rebuilds=rebuild)
        images = {backend.image for version in versions for backend in version.spec.backends}
        checked += store.of_versions(versions, only=name if name in images else "")
        if found is not None and not any(item.subject == found.digest for item in checked):
            is_data = any(found.digest in item.record.spec.data for item in kept.values() if item.record)
            checked += store.one("data" if is_data else "", found.digest)
    return {
        "ok": ends_well(checked),
        "complete": all(item.ok is not None for item in checked),
        "checked": [item.value() for item in checked],
    }


def _commits(project: Opened) -> Iterator[Checked]:
    if project.pin.controller is None:
        text = "its public key is not known here; pin it as `controller` in the trust file"
        yield Checked(kind="key", subject="controller", ok=False, reason=text)
    facts = project.facts()
    branch = project.place.branch
    fault = judge(project.pin, facts, trusted=None, branch=branch).fault
    yield Checked(kind="commits", subject=f"{len(facts)} commits of {branch}", ok=not fault, reason=fault)
    if project.away:
        yield Checked(kind="origin", subject=branch, ok=None, reason=f"the clone's memory of it was read: {project.away}")


def _ledger(project: Opened) -> Iterator[Checked]:
    keys = [project.pin.controller.key] if project.pin.controller else []
    keys += former_controllers(project.place.state)
    folder = project.place.state / "ledger"
    found = check_ledger(
        project.repository,
        project.ledger_head(),
        keys,
        signer=project.name_of,
        folder=folder if folder.is_dir() else None,
    )
    yield Checked(kind="ledger", subject=f"{found.entries} entries", ok=not found.faults, reason=found.reason)


def _log(project: Opened, layout: Layout | None, versions: Sequence[Version]) -> Iterator[Checked]:
    """The embedded transparency log, where the project has one."""
    backends = [backend for version in versions for backend in version.spec.backends]
    subjects = dict.fromkeys(item for backend in backends for item in (backend.image, backend.artifact) if item)
    try:
        entries = of_kind(project.repository, project.ledger_head(), KIND)
        found = check_log(entries, said_in(layout, subjects, project.images))
    except DesiredStateError:
        return  # the ledger cannot be read, which its own line says
    if found.entries or found.faults:
        yield Checked(kind="log", subject=f"{found.entries} entries", ok=not found.faults, reason=found.reason)


def _kept(project: Opened) -> Mapping[str, Kept]:
    """Version -> its record through the branch's own line."""
    found: dict[str, Kept] = {}
    for facts in project.touching(["versions"]):
        for path in facts.changed_paths:
            if not (name := name_of(path)):
                continue
            now = project.repository.read_many(facts.commit, [path]).get(path)
            before = found.get(name)
            if before is None and now is not None:
                record = _read(now, path)
                found[name] = Kept(path=path, added_in=facts.commit, original=now, record=record, now=now, changed=())
            elif before is not None and now != before.now:
                judged = project.judged_one(facts.commit)
                changed = (*before.changed, (facts.commit, judged.by if judged else ""))
                found[name] = replace(before, now=now, changed=changed)
    return found


def _record(name: str, kept: Kept, digests: Collection[str], own: str, recorded: Recorded) -> Checked:
    def told(ok: bool, reason: str) -> Checked:
        return Checked(kind="version", subject=name, ok=ok, reason=reason)

    original = kept.record
    last = f"by {kept.changed[-1][1]} in {kept.changed[-1][0][:12]}" if kept.changed else ""
    if kept.now is not None and kept.now != kept.original:
        where = first_difference(_value(kept.original, kept.path), _value(kept.now, kept.path))
        if where is not None:
            return told(False, f"{where.told()}; changed {last}, and a record never changes")
    if original is None:
        return told(False, f"{kept.path}: cannot be read since {kept.added_in[:12]}")
    if original.metadata.name != name:
        return told(False, f"metadata.name: names {original.metadata.name}, and the file is called {name}")
    if not is_signed(record_bytes(original), original.signature, own):
        field = _against_the_ledger(original, recorded)
        return told(False, f"signature: does not fit the record{f'; {field}' if field else ''}")
    if original.spec.previous and original.spec.previous not in digests:
        return told(False, f"spec.previous: names {original.spec.previous}, which is no record")
    return told(True, f"taken off the branch {last}" if kept.now is None else "")


def _against_the_ledger(version: Version, recorded: Recorded) -> str:
    """The first field of a record that says something else than what its own inputs or the ledger say."""
    spec = version.spec
    made = version_id(
        commit=spec.commit,
        events=spec.event_set,
        images=(backend.image for backend in spec.backends),
        models=(backend.artifact for backend in spec.backends if backend.artifact),
    )
    said: dict[str, tuple[Any, Any]] = {}
    if (run := recorded.runs.get(spec.run)) is not None:
        said |= {"spec.commit": (run.commit, spec.commit), "spec.axonDigest": (run.axon_digest, spec.axon_digest)}
        said |= {"spec.eventSet": (run.event_set, spec.event_set), "spec.events": (list(run.events), list(spec.events))}
    trained = [recorded.tasks.get(backend.task_run) for backend in spec.backends]
    for index, (backend, task) in enumerate(zip(spec.backends, trained, strict=True)):
        if task is not None:
            said[f"spec.backends[{index}].artifact"] = (str(task.model), backend.artifact)
            said[f"spec.backends[{index}].trial"] = (task.trial, backend.trial)
    known = [task for task in trained if task is not None]
    if known and len(known) == sum(bool(backend.task_run) for backend in spec.backends):
        said["spec.data"] = (list(dict.fromkeys(item for task in known for item in task.data)), list(spec.data))
        said["spec.parameters"] = ({k: v for task in known for k, v in task.parameters.items()}, dict(spec.parameters))
        said["spec.metrics"] = ({k: v for task in known for k, v in task.metrics.items()}, dict(spec.metrics))
    for field, (ledger, record) in said.items():
        if (where := first_difference(ledger, record, path=field)) is not None:
            return f"{where.told()}, by the ledger"
    return f"metadata.name: its inputs make {made}" if made != version.metadata.name else ""


def _keys_of(versions: Iterable[Version]) -> set[str]:
    """Where the ledger speaks of what made these versions."""
    specs = [version.spec for version in versions]
    runs = {f"run/{spec.run}" for spec in specs}
    return runs | {f"task/{backend.task_run}" for spec in specs for backend in spec.backends if backend.task_run}


def _parts(kept: Kept) -> set[str]:
    return parts_of(kept.record) if kept.record is not None else set()


def _read(text: bytes, path: str) -> Version | None:
    try:
        document = parse_document(YamlDocuments().load(text, path))
    except DesiredStateError:
        return None
    return document if isinstance(document, Version) else None


def _value(text: bytes, path: str) -> Any:
    try:
        return YamlDocuments().load(text, path).value
    except DesiredStateError:
        return text.decode(errors="replace")
