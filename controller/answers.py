"""What the commands answer, as JSON values: read from Git, the ledger, the store and the last pass's status."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from controller.adapters.attestor import verify_image
from controller.adapters.clock import SystemClock
from controller.adapters.documents import YamlDocuments
from controller.adapters.git import GitRepository
from controller.adapters.oci.layout import Layout
from controller.project import Place
from controller.trustfile import read_pin, signers_of
from controller.wiring import controller_key, image_key
from policies import lint as linting
from policies import planning
from policies.canonical import digest_value
from policies.errors import ControllerError, DesiredStateError, Fault, SilentError
from policies.jobs import Surroundings
from policies.ledger import check_chain, decode
from policies.parsing import parse_document
from policies.records import fold
from policies.terms.axon import Axon
from policies.terms.desired import DesiredState
from policies.terms.observed import Observed
from policies.terms.record import Entry
from policies.terms.release import Release
from policies.terms.revision import CommitFacts, Revision, TrustedKey
from policies.terms.version import Version
from policies.trust import judge
from reconcilers.deploy import record_bytes
from reconcilers.source import Memory, read

LEDGER = "myelin/ledger"


def lint(paths: Sequence[Path]) -> tuple[list[Fault], list[Fault]]:
    """Faults and warnings of all manifests below some paths."""
    documents = YamlDocuments()
    faults: list[Fault] = []
    warnings: list[Fault] = []
    for top in paths:
        if not top.exists():
            raise DesiredStateError(f"{top}: expected a file or folder, there is none")
        files = [top] if top.is_file() else sorted([*top.rglob("*.yaml"), *top.rglob("*.yml")])
        for file in files:
            text = file.read_bytes()
            if top.is_dir() and (b"myelin" not in text or ".git" in file.parts or ".venv" in file.parts):
                continue
            try:
                loaded = documents.load(text, str(file))
                document = parse_document(loaded)
            except DesiredStateError as error:
                faults += error.faults or [Fault(file=str(file), line=1, path="", reason=error.reason, message=error.message)]
                continue
            if isinstance(document, Axon):
                root = _root(file)
                has = (lambda folder, root=root: (root / folder).is_dir()) if root else None
                warnings += linting.lint(document, has_folder=has, loaded=loaded)
    return sorted(faults), sorted(warnings)


def plan(place: Place) -> dict[str, Any]:
    """What a pass would do now, as far as Git and the ledger tell."""
    with _opened(place) as repository:
        desired = _desired(repository)
        recorded = fold(_entries(repository))
    made = planning.plan(desired, Observed(recorded=recorded), now=SystemClock().now(), around=Surroundings())
    steps = [
        {"kind": type(step).__name__, "axon": step.axon, "task": step.task, "reason": step.reason, "inputs": {}}
        for step in made.steps
    ]
    return {"revision": str(desired.revision), "steps": steps, "faults": [str(fault) for fault in desired.faults]}


def status(place: Place, axon: str) -> dict[str, Any]:
    """What the controller's last pass came to.

    Raises:
        SilentError: No controller ever ran here.
    """
    try:
        value: dict[str, Any] = json.loads((place.state / "status.json").read_bytes())
    except (OSError, ValueError) as error:
        raise SilentError(f"{place.state}: no controller has looked at this project yet; start `myelin run`") from error
    if axon:
        value["outcomes"] = [item for item in value["outcomes"] if item["subject"].split("/")[0] == axon]
        value["servers"] = [item for item in value["servers"] if item["labels"].get("axon") == axon]
    return value


def history(place: Place, axon: str) -> list[dict[str, Any]]:
    """What happened to an axon's versions, newest first, from the commits that touched its releases."""
    found = []
    with _opened(place) as repository:
        tip = repository.fetch("main")
        names = _signer_names(place)
        for facts in reversed(repository.facts(since="", until=tip) if tip else ()):
            if not any(path.startswith((f"releases/{axon}/", f"versions/{axon}/")) for path in facts.changed_paths):
                continue
            trailers = _trailers(facts)
            alert = " ".join(trailers.get("Myelin-Alert", []))
            what = "rollback" if alert else "promotion" if "Myelin-Version" in trailers else "edit"
            found.append(
                {
                    "version": " ".join(trailers.get("Myelin-Version", [])),
                    "at": facts.at.isoformat().replace("+00:00", "Z"),
                    "what": what,
                    "by": _by(facts, names),
                    "commit": facts.commit,
                    "why": alert or facts.subject,
                }
            )
    return found


def why(place: Place, version: str) -> dict[str, Any]:
    """Everything that a version was made of, and by whom.

    Raises:
        DesiredStateError: There is no such version.
    """
    with _opened(place) as repository:
        desired = _desired(repository)
        record = desired.versions.get(version)
        if record is None:
            raise DesiredStateError(f"version {version}: expected one of {', '.join(sorted(desired.versions)) or 'none yet'}")
        recorded = fold(_entries(repository))
        facts = {item.commit: item for item in repository.facts(since="", until=desired.tip)}
        names = _signer_names(place)
    spec = record.spec
    made_in = facts.get(spec.commit)
    events = [recorded.events[item] for item in spec.events if item in recorded.events]
    release = desired.releases.get((record.metadata.axon, spec.deployer))
    holds = [hold.reason for hold in release.spec.holds if hold.version == version] if release else []
    shares = [share.share for share in release.spec.traffic if share.version == version] if release else []
    return {
        "version": version,
        "axon": record.metadata.axon,
        "share": sum(shares),
        "hold": holds,
        "commit": spec.commit,
        "message": made_in.subject if made_in else "",
        "by": _by(made_in, names) if made_in else "",
        "events": [{"id": item.id, "kind": item.kind, "sensor": item.sensor, "at": item.at.isoformat()} for item in events],
        "run": spec.run,
        "images": [backend.image for backend in spec.backends],
        "models": [backend.artifact for backend in spec.backends],
        "trial": [backend.trial for backend in spec.backends],
        "data": list(spec.data),
        "parameters": dict(spec.parameters),
        "metrics": dict(spec.metrics),
        "parent": spec.parent,
        "createdAt": spec.created_at.isoformat().replace("+00:00", "Z"),
    }


def verify(place: Place) -> dict[str, Any]:
    """Check every commit, ledger entry, version record, image and model."""
    checked: list[dict[str, Any]] = []

    def note(kind: str, subject: str, reason: str = "") -> None:
        checked.append({"subject": subject, "kind": kind, "ok": not reason, "reason": reason})

    key = controller_key(place.state)
    public, image_public = key.public(), image_key(place.state).public_pem
    with _opened(place) as repository:
        tip = repository.fetch("main")
        facts = repository.facts(since="", until=tip) if tip else ()
        trust = judge(read_pin(place.trust, TrustedKey(name="myelin", key=public)), facts, trusted=None)
        note("commits", f"{len(facts)} commits of main", trust.fault)
        entries = _entries(repository)
        faults = list(check_chain(entries, lambda data, proof: key.is_signed(data, proof, public)))
        note(
            "ledger", f"{len(entries)} entries", "; ".join(f"entry {item.number}: {item.field} {item.message}" for item in faults)
        )
        desired = _desired(repository)
    layout = Layout(place.state / "store")
    for name, reason in _records(desired, lambda version: key.is_signed(record_bytes(version), version.signature, public)):
        note("version", name, reason)
    for version in desired.versions.values():
        for backend in version.spec.backends:
            note("image", backend.image, _trouble(lambda image=backend.image: _check_image(layout, image, image_public)))
            if backend.artifact:
                note("model", backend.artifact, _trouble(lambda model=backend.artifact: _check_blobs(layout, model)))
    return {"ok": all(item["ok"] for item in checked), "checked": checked}


def endpoint(place: Place, axon: str) -> list[dict[str, Any]]:
    """URLs of an axon's deployers, in the earlier command's shape."""
    servers = status(place, axon)["servers"]
    with _opened(place) as repository:
        desired = _desired(repository)
    found = []
    for proxy in (item for item in servers if item["labels"].get("job") == "proxy"):
        base = f"http://{proxy['address']}/{axon}/"
        release = desired.releases.get((axon, proxy["labels"]["deployer"]))
        shares = sorted(release.spec.traffic, key=lambda share: -share.share) if release else []
        stable = shares[0].version if shares else ""
        models: dict[str, list[dict[str, Any]]] = {}
        for item in (entry for entry in servers if entry["labels"].get("job") == "model"):
            labels = item["labels"]
            backend = {
                "name": labels["backend"],
                "version": labels["version"],
                "url": f"{base}versions/{labels['version']}/",
                "address": f"http://{item['address']}/",
            }
            models.setdefault(labels["model"], []).append(backend)
        found.append(
            {
                "modelStable": {"publicUrl": base, "url": f"{base}versions/{stable}/" if stable else base},
                "modelProxy": {"url": f"http://{proxy['address']}/"},
                "models": [{"name": name, "backends": backends} for name, backends in sorted(models.items())],
            }
        )
    return found


def releases(place: Place) -> Mapping[tuple[str, str], Release]:
    """(axon, deployer) -> what its release says on main."""
    with _opened(place) as repository:
        return _desired(repository).releases


def flat(value: Any) -> str:
    """A value on one line, for people."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {flat(item)}" for key, item in value.items())
    if isinstance(value, list):
        return "; ".join(flat(item) for item in value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


@contextmanager
def _opened(place: Place) -> Iterator[GitRepository]:
    """The repository by a mirror of our own, so that a running controller is not disturbed."""
    with TemporaryDirectory(prefix="myelin-") as folder:
        repository = GitRepository(place.url, Path(folder) / "git", None, signers_of=signers_of)
        try:
            yield repository
        finally:
            repository.close()


def _desired(repository: GitRepository) -> DesiredState:
    tip = repository.fetch("main")
    if not tip:
        raise DesiredStateError("branch main: expected at least one commit, got none")
    revision = Revision(branch="main", commit=tip, at=SystemClock().now())
    return read(repository, YamlDocuments(), revision, memory=Memory())


def _entries(repository: GitRepository) -> list[Entry]:
    head = repository.fetch(LEDGER)
    if not head:
        return []
    paths = sorted(item.path for item in repository.files(head, "ledger"))
    texts = repository.read_many(head, paths)
    return [decode(line, where=path) for path in paths for line in texts[path].splitlines() if line]


def _records(desired: DesiredState, is_signed: Any) -> Iterator[tuple[str, str]]:
    by_axon: dict[str, list[Version]] = {}
    for version in desired.versions.values():
        by_axon.setdefault(version.metadata.axon, []).append(version)
    for versions in by_axon.values():
        known = {""} | {digest_value(version.model_dump(mode="json", by_alias=True)) for version in versions}
        for version in sorted(versions, key=lambda item: item.spec.created_at):
            reason = "" if is_signed(version) else "signature does not fit the record"
            if version.spec.previous not in known:
                reason = reason or f"spec.previous names {version.spec.previous}, which is no record"
            yield version.metadata.name, reason


def _check_image(layout: Layout, digest: str, public: str) -> None:
    _check_blobs(layout, digest)
    verify_image(layout, digest, (public,))


def _check_blobs(layout: Layout, digest: str) -> None:
    manifest = layout.manifest(digest)
    for blob in (manifest["config"], *manifest["layers"]):
        layout.check(blob["digest"])


def _trouble(check: Any) -> str:
    try:
        check()
    except ControllerError as error:
        return error.message
    return ""


def _trailers(facts: CommitFacts) -> dict[str, list[str]]:
    """Trailers of a commit; they carry no trust, only words."""
    found: dict[str, list[str]] = {}
    for line in facts.message.strip().split("\n\n")[-1].splitlines():
        name, separator, value = line.partition(": ")
        if separator and name.startswith("Myelin-"):
            found.setdefault(name, []).append(value)
    return found


def _signer_names(place: Place) -> dict[str, str]:
    controller = TrustedKey(name="myelin", key=controller_key(place.state).public())
    pin = read_pin(place.trust, controller)
    return {item.key: item.name for item in (*pin.signers, controller)}


def _by(facts: CommitFacts, names: dict[str, str]) -> str:
    if facts.signature is None or not facts.signature.valid:
        return f"{facts.author} (not signed)"
    return names.get(facts.signature.key, facts.signature.fingerprint)


def _root(file: Path) -> Path | None:
    return next((folder for folder in file.resolve().parents if (folder / "myelin.yaml").exists()), None)
