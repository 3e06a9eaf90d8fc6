"""`clean --dry-run` and `fetch`: what of the store nothing needs any more, and a model out of it with its signature."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from controller.adapters.clock import SystemClock
from controller.adapters.engine_local import Unpacked
from controller.adapters.models import check_folder, signer_of, verify_model
from controller.adapters.oci.artifacts import ArtifactStore, files_of
from controller.adapters.oci.layout import Layout
from controller.answers.opened import opened, store_of
from controller.caretaking import Store, remove
from controller.project import Place
from policies.errors import DesiredStateError, RefusedError, SilentError
from policies.jobs import Surroundings
from policies.records import fold
from policies.retention import in_use, why_nothing_goes
from policies.terms.digest import is_digest
from policies.terms.observed import Observed
from policies.terms.version import Version


def removable(place: Place, *, grace_seconds: float | None) -> dict[str, Any]:
    """What `clean` would remove, as far as branch and ledger tell: a job that runs may keep more.

    Raises:
        RefusedError: It cannot be told what is in use.
        SilentError: There is no store here.
    """
    layout, now = _store(place), SystemClock().now()
    with opened(place) as project:
        desired, trust = project.desired(), project.images
        limits = desired.project.spec.builder.store
        observed = Observed(recorded=fold(project.entries()))
    if why_not := why_nothing_goes(desired, observed):
        raise RefusedError(f"store: expected to tell what is in use: {why_not}; nothing would be removed", reason="UseUnknown")
    used = in_use(desired, observed, around=Surroundings(), now=now)
    tasks = observed.recorded.tasks.values()
    recorded = frozenset(digest for task in tasks for digest in (task.image, task.model, *task.data) if digest)
    store = Store(layout=layout, trust=trust, state=place.state, unpacked=Unpacked(place.state / "engine", layout).sweep)
    done = remove(store, used, limits, jobs=frozenset(), recorded=recorded, now=now, grace_seconds=grace_seconds, dry_run=True)
    return done.value()


def fetch(place: Place, subject: str, folder: Path) -> dict[str, Any]:
    """Lay a model into a folder, with its signature and the key that made it beside it, and check both with the library.

    Args:
        place: The project.
        subject: The digest of a model, or a version with one model.
        folder: Where to; it may not be there yet.

    Raises:
        DesiredStateError: There is no such version, or it has several models.
        TrustError: Nobody signed it who is trusted, or its bytes are not what was signed.
        RefusedError: Something is there already.
        SilentError: There is no store here.
    """
    layout = _store(place)
    with opened(place) as project:
        trust = project.images
        digest = subject if is_digest(subject) else _model_of(project.desired().versions, subject)
    beside = (folder.with_name(f"{folder.name}.sig"), folder.with_name(f"{folder.name}.pub"))
    for taken in (folder, *beside):
        if taken.exists():
            raise RefusedError(f"{taken}: expected nothing there yet, something is")
    bundle = verify_model(layout, digest, trust)
    ArtifactStore(layout).fetch_folder(digest, folder)
    public = signer_of(bundle, trust.keys)
    beside[0].write_bytes(bundle)
    if public:
        beside[1].write_text(public)
        check_folder(folder, bundle, public)
    files = [{"name": name, "digest": str(item["digest"])} for name, item in files_of(layout, digest).items()]
    key = str(beside[1]) if public else ""
    return {"model": digest, "folder": str(folder), "signature": str(beside[0]), "publicKey": key, "files": files}


def _model_of(versions: Mapping[str, Version], name: str) -> str:
    if name not in versions:
        raise DesiredStateError(f"{name}: expected the digest of a model, or a version on the branch, it is neither")
    models = sorted({backend.artifact for backend in versions[name].spec.backends if backend.artifact})
    if len(models) != 1:
        raise DesiredStateError(f"{name}: expected one model, it has {', '.join(models) or 'none'}; name one by its digest")
    return models[0]


def _store(place: Place) -> Layout:
    layout = store_of(place)
    if layout is None:
        raise SilentError(f"{place.state}: expected the project's image store, there is none on this machine")
    return layout
