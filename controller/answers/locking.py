"""`lock`: which files keep what was installed where requirements are not locked; as they are in the images themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from controller.adapters.attest.statements import PROVENANCE
from controller.adapters.attest.verifying import verify_image
from controller.answers.opened import opened, store_of
from controller.answers.proof import of_kind
from controller.project import Place
from policies.errors import RefusedError, SilentError
from policies.lock_files import proposed_lock
from policies.locks import Lock


def locks(place: Place, into: Path | None = None) -> dict[str, Any]:
    """The locks of the newest images whose requirements are not locked, one for each source folder.

    Args:
        place: The project.
        into: A work tree to write them into; None: nothing is written.

    Raises:
        SilentError: There is no image store on this machine.
        TrustError: An image is not what it should be.
        RefusedError: A file cannot be written, or another text is there.
    """
    newest: dict[str, str] = {}
    with opened(place) as project:
        for entry in of_kind(project.repository, project.ledger_head(), "image"):
            materials = entry.statement.body["materials"]
            if materials.get("lock") and "repo" not in materials:  # in another repository, others commit
                newest[str(materials["folder"])] = str(entry.statement.body["digest"])
        trust = project.images
    layout = store_of(place)
    if newest and layout is None:
        raise SilentError(f"{place.state}: expected the project's image store, there is none on this machine")
    found = []
    for folder, image in sorted(newest.items()):
        assert layout is not None
        inner = verify_image(layout, image, trust)[PROVENANCE]["buildDefinition"]["internalParameters"].get("lock")
        if inner is None:  # somebody committed it, and the same image was built by it
            continue
        file = proposed_lock(folder, Lock(text=inner["text"], origin=inner["origin"], resolved=True, wheels=()))
        is_written = into is not None and _write(into / file.path, file.content)
        found.append({"path": file.path, "image": image, "title": file.title, "text": inner["text"], "written": is_written})
    return {"locks": found}


def _write(path: Path, content: bytes) -> bool:
    try:
        if path.exists() and path.read_bytes() != content:
            raise RefusedError(f"{path}: expected no lock there, got another one; remove it first", reason="LockExists")
        if not path.parent.is_dir():
            raise RefusedError(
                f"{path.parent}: expected the source folder in this work tree, there is none", reason="FolderMissing"
            )
        path.write_bytes(content)
    except OSError as error:
        raise RefusedError(f"{path}: expected to write a lock, got {error.strerror or error}") from error
    return True
