"""`history`, `why` and `verify`: from Git, the ledger and the image store alone, also long afterwards."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from controller.adapters.attestor import verify_image
from controller.adapters.documents import YamlDocuments
from controller.adapters.keys import is_signed
from controller.adapters.oci.composed import inputs_of
from controller.adapters.oci.layout import Layout
from controller.answers.opened import Opened, opened, store_of
from controller.project import Place
from policies.canonical import digest_value
from policies.changes import changes_of
from policies.errors import ControllerError, DesiredStateError
from policies.ledger import check_chain
from policies.parsing import parse_document
from policies.records import fold
from policies.terms.desired import DesiredState
from policies.terms.digest import Digest, is_digest
from policies.terms.release import Release
from policies.terms.version import Version
from policies.trust import judge
from reconcilers.deploy import record_bytes

_VERSION = re.compile(r"v-[0-9a-z]{10}")


def history(place: Place, axon: str) -> list[dict[str, Any]]:
    """What happened to an axon's versions, newest first: read off the releases themselves, not off messages."""
    found: list[dict[str, Any]] = []
    with opened(place) as project:
        for facts in reversed(project.facts()):
            files = [path for path in facts.changed_paths if path.startswith(f"releases/{axon}/")]
            added = [path for path in facts.changed_paths if path.startswith(f"versions/{axon}/")]
            rows = []
            for file in files:
                before = _release_at(project, facts.parents[0], file) if facts.parents else None
                rows += list(changes_of(before, _release_at(project, facts.commit, file)))
            told = {row.version for row in rows}
            entries = [(row.version, row.what, row.why) for row in rows]
            entries += [(name, "version", "no traffic") for path in added if (name := _name_of(path)) not in told]
            for version, what, text in entries:
                found.append(
                    {
                        "version": version,
                        "at": _instant(facts.at),
                        "what": what,
                        "by": project.signer_of(facts),
                        "commit": facts.commit,
                        "why": f"{facts.subject}; {text}" if text and what != "rollback" else text or facts.subject,
                    }
                )
    return found


def why(place: Place, subject: str) -> dict[str, Any]:
    """Everything that a version was made of, and by whom.

    Args:
        place: The project.
        subject: A version, a URL that it answers on, the digest of its image or model, or a commit it was made from.

    Raises:
        DesiredStateError: Nothing fits, or several do; says which there are.
    """
    with opened(place) as project:
        desired = project.desired()
        record = _meant(desired, _code_image(place, subject))
        version, spec = record.metadata.name, record.spec
        recorded = fold(project.entries())
        facts = {item.commit: item for item in project.facts()}
        release = desired.releases.get((record.metadata.axon, spec.deployer))
        made_in = facts.get(spec.commit)
        entered = next((item for item in facts.values() if any(_name_of(path) == version for path in item.changed_paths)), None)
        events = [recorded.events[item] for item in spec.events if item in recorded.events]
        run = recorded.runs.get(spec.run)
        return {
            "version": version,
            "axon": record.metadata.axon,
            "share": sum(item.share for item in release.spec.traffic if item.version == version) if release else 0,
            "hold": [hold.reason for hold in release.spec.holds if hold.version == version] if release else [],
            "commit": spec.commit,
            "message": made_in.subject if made_in else "",
            "by": project.signer_of(made_in) if made_in else "",
            "recordedBy": project.signer_of(entered) if entered else "",
            "recordedIn": entered.commit if entered else "",
            "events": [{"id": item.id, "kind": item.kind, "sensor": item.sensor, "at": _instant(item.at)} for item in events],
            "sensor": run.sensor if run else "",
            "run": spec.run,
            "images": [backend.image for backend in spec.backends],
            "models": [backend.artifact for backend in spec.backends if backend.artifact],
            "trial": [backend.trial for backend in spec.backends if backend.trial],
            "data": list(spec.data),
            "parameters": dict(spec.parameters),
            "metrics": dict(spec.metrics),
            "parent": spec.parent,
            "createdAt": _instant(spec.created_at),
        }


def verify(place: Place, subject: str = "") -> dict[str, Any]:
    """Check commits, ledger, version records, images and models.

    Args:
        place: The project.
        subject: A version or the digest of an image or model: then only what belongs to it is checked, besides
            commits and ledger. Empty: everything.

    Raises:
        DesiredStateError: There is no such version, image or model.
    """
    checked: list[dict[str, Any]] = []

    def note(kind: str, name: str, reason: str = "") -> None:
        checked.append({"subject": name, "kind": kind, "ok": not reason, "reason": reason})

    with opened(place) as project:
        own = project.pin.controller.key if project.pin.controller else ""
        if not own:
            note("key", "controller", "its public key is not known here; pin it as `controller` in the trust file")
        facts = project.facts()
        note(
            "commits",
            f"{len(facts)} commits of {place.branch}",
            judge(project.pin, facts, trusted=None, branch=place.branch).fault,
        )
        entries = project.entries()
        faults = list(check_chain(entries, lambda data, proof: is_signed(data, proof, own)))
        shown = [f"entry {item.number}: {item.field} {item.message}" for item in faults[:5]]
        note("ledger", f"{len(entries)} entries", "; ".join(shown) + (f" and {len(faults) - 5} more" if len(faults) > 5 else ""))
        desired = project.desired()
        image_keys = project.image_keys
    layout = store_of(place)
    versions = {name: item for name, item in desired.versions.items() if not subject or subject in _subjects(item)}
    if subject and not versions:
        raise DesiredStateError(
            f"{subject}: expected a version, image or model of {', '.join(sorted(desired.versions)) or 'none yet'}"
        )
    for name, reason in _records(desired, lambda version: is_signed(record_bytes(version), version.signature, own)):
        if name in versions:
            note("version", name, reason)
    backends = [backend for version in versions.values() for backend in version.spec.backends]
    for image in dict.fromkeys(backend.image for backend in backends):
        note("image", image, _trouble(_check_image, layout, image, image_keys))
    for model in dict.fromkeys(backend.artifact for backend in backends if backend.artifact):
        note("model", model, _trouble(layout.check_all, model))
    for data in dict.fromkeys(item for version in versions.values() for item in version.spec.data):
        note("data", data, _trouble(layout.check_all, data))
    return {"ok": all(item["ok"] for item in checked), "checked": checked}


def _code_image(place: Place, subject: str) -> str:
    """The image that a version names, where a pod's own has its data and model laid over it; else the subject itself."""
    digest = subject.rsplit("@", 1)[-1]
    if not is_digest(digest) or not (layout := store_of(place)).is_here(digest):
        return subject
    try:
        return next(iter(inputs_of(layout, Digest(digest)).get("image", ())), subject)
    except ControllerError:
        return subject


def _meant(desired: DesiredState, subject: str) -> Version:
    """The version that a person means by what they have in hand."""
    named = _VERSION.search(subject)
    if named and named[0] in desired.versions:
        return desired.versions[named[0]]
    text = subject.rsplit("@", 1)[-1]
    fitting = [item for item in desired.versions.values() if text in _subjects(item)]
    if not fitting and re.fullmatch(r"[0-9a-f]{7,40}", text):
        fitting = [item for item in desired.versions.values() if item.spec.commit.startswith(text)]
    if not fitting and "://" in subject:
        # A public URL: the version that gets most of its traffic.
        axon = subject.split("://", 1)[1].partition("/")[2].split("/")[0]
        shares = [share for key, release in desired.releases.items() if key[0] == axon for share in release.spec.traffic]
        best = max(shares, key=lambda share: share.share, default=None)
        fitting = [desired.versions[best.version]] if best is not None and best.version in desired.versions else []
    if not fitting:
        there = ", ".join(sorted(desired.versions)) or "none yet"
        raise DesiredStateError(f"{subject}: expected a version, URL, image, model or commit of one of {there}")
    return max(fitting, key=lambda item: item.spec.created_at)


def _subjects(version: Version) -> set[str]:
    """All that names a version or a part of it."""
    parts = {part for backend in version.spec.backends for part in (backend.image, backend.artifact) if part}
    return {version.metadata.name, version.spec.commit, *parts}


def _release_at(project: Opened, commit: str, file: str) -> Release | None:
    text = project.repository.read_many(commit, [file]).get(file)
    if text is None:
        return None
    try:
        document = parse_document(YamlDocuments().load(text, file))
    except DesiredStateError:
        return None
    return document if isinstance(document, Release) else None


def _name_of(path: str) -> str:
    return path.rsplit("/", 1)[-1].removesuffix(".yaml") if path.startswith("versions/") else ""


def _records(desired: DesiredState, fits: Callable[[Version], bool]) -> Iterator[tuple[str, str]]:
    by_axon: dict[str, list[Version]] = {}
    for version in desired.versions.values():
        by_axon.setdefault(version.metadata.axon, []).append(version)
    for versions in by_axon.values():
        known = {""} | {digest_value(version.model_dump(mode="json", by_alias=True)) for version in versions}
        for version in sorted(versions, key=lambda item: item.spec.created_at):
            reason = "" if fits(version) else "signature: does not fit the record"
            if version.spec.previous not in known:
                reason = reason or f"spec.previous: names {version.spec.previous}, which is no record"
            yield version.metadata.name, reason


def _check_image(layout: Layout, digest: str, public_keys: tuple[str, ...]) -> None:
    layout.check_all(digest)
    verify_image(layout, digest, public_keys)


def _trouble(check: Callable[..., None], *args: Any) -> str:
    try:
        check(*args)
    except ControllerError as error:
        return error.message
    return ""


def _instant(at: Any) -> str:
    return str(at.isoformat()).replace("+00:00", "Z")
