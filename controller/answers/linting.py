"""`lint`: every fault and warning of manifests on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from controller.adapters.documents import YamlDocuments
from policies import lint as linting
from policies.errors import DesiredStateError, Fault
from policies.parsing import parse_document
from policies.terms.axon import Axon

STOPPING = ("PromqlRefused", "FolderMissing")
"""What the controller reads all the same, and what then never fires or never runs: a fault to whoever asks before a push."""


def lint(paths: Sequence[Path]) -> tuple[list[Fault], list[Fault]]:
    """Faults and warnings of all manifests below some paths, each sorted.

    Raises:
        DesiredStateError: A path is not there.
    """
    documents = YamlDocuments()
    faults: list[Fault] = []
    warnings: list[Fault] = []
    for top in paths:
        if not top.exists():
            raise DesiredStateError(f"{top}: expected a file or folder, there is none")
        for file in [top] if top.is_file() else sorted([*top.rglob("*.yaml"), *top.rglob("*.yml")]):
            if ".git" in file.parts or ".venv" in file.parts or not file.is_file():
                continue
            text = file.read_bytes()
            if top.is_dir() and b"myelin" not in text:
                continue
            try:
                loaded = documents.load(text, str(file))
                document = parse_document(loaded)
            except DesiredStateError as error:
                faults += error.faults or [Fault(file=str(file), line=1, path="", reason=error.reason, message=error.message)]
                continue
            if isinstance(document, Axon):
                root = next((folder for folder in file.resolve().parents if (folder / "myelin.yaml").exists()), None)
                has = (lambda folder, root=root: (root / folder).is_dir()) if root else None
                found = linting.lint(document, has_folder=has, loaded=loaded)
                faults += [item for item in found if item.reason in STOPPING]
                warnings += [item for item in found if item.reason not in STOPPING]
    return sorted(faults), sorted(warnings)
