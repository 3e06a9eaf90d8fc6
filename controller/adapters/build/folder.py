"""A source folder, read: its files, what `.s2i/environment` says, and data that it only points to."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from controller.adapters.documents import YamlDocuments
from controller.adapters.image_source import SourceReader
from controller.adapters.oci.layers import Stored
from policies.errors import DesiredStateError
from policies.locks import OWN_LOCK, PYLOCK, REQUIREMENTS, UV_LOCK
from policies.pointers import LARGEST_POINTER_BYTES, pointers_of_dvc
from policies.terms.source import Submodule
from policies.terms.task import ImageSpec

APP = "app/"
"""Where a source folder lies in an image."""
ENVIRONMENT = ".s2i/environment"
READ_HERE = (REQUIREMENTS, OWN_LOCK, UV_LOCK, PYLOCK, "pyproject.toml", ENVIRONMENT)
"""Files of a source folder that decide how it is built."""
S2I_KEYS = ("MODEL_NAME", "API_TYPE", "SERVICE_TYPE", "PERSISTENCE", "TIMEOUT", "NUM_WORKERS", "APP_FILE")
INSTALL_SCRIPT = "INSTALL_SCRIPT"


@dataclass(frozen=True, kw_only=True)
class Folder:
    """What a commit has in the folder that an image is built from."""

    files: Mapping[str, Stored]
    """By path from the folder."""
    links: Mapping[str, str]
    submodules: tuple[Submodule, ...]
    settings: Mapping[str, str]
    """What `.s2i/environment` says."""

    @property
    def serves(self) -> bool:
        """Whether our model server runs what is in it."""
        return "MODEL_NAME" in self.settings

    @property
    def variables(self) -> dict[str, str]:
        """What of the settings the program sees."""
        return {key: value for key, value in self.settings.items() if key != INSTALL_SCRIPT}

    @cached_property
    def texts(self) -> dict[str, bytes]:
        """Path -> content."""
        return {path: item.data for path, item in self.files.items()}

    def placed(self) -> dict[str, Stored]:
        """The files where they go in the image."""
        return {f"{APP}{path}": item for path, item in self.files.items()}

    def placed_links(self) -> dict[str, str]:
        """The links where they go in the image."""
        return {f"{APP}{path}": target for path, target in self.links.items()}

    def data(self) -> dict[str, str]:
        """Data that `.dvc` files stand for: where it would lie in the image -> its digest."""
        found = {}
        for path, item in self.files.items():
            if path.endswith(".dvc") and len(item.data) <= LARGEST_POINTER_BYTES:
                try:
                    value = YamlDocuments().load(item.data, path).value
                except DesiredStateError:
                    continue  # a file of that name which is none
                folder = posixpath.dirname(f"{APP}{path}")
                for pointer in pointers_of_dvc(value):
                    found[posixpath.normpath(posixpath.join(folder, pointer.path))] = pointer.identity
        return {path: name for path, name in sorted(found.items()) if path.startswith(APP)}


def read_folder(reader: SourceReader, spec: ImageSpec) -> Folder:
    """The source folder of an image.

    Raises:
        DesiredStateError: A file is refused, or what decides how it is built is no plain file or cannot be read.
        OutsideError: Another repository does not answer.
    """
    found = reader.read(spec)
    for path in found.links:
        if path in READ_HERE:
            raise DesiredStateError(f"{_place(spec, path)}: expected a plain file, got a link", reason="OddFile")
    text = found.files[ENVIRONMENT].data.decode(errors="replace") if ENVIRONMENT in found.files else ""
    return Folder(
        files=found.files, links=found.links, submodules=found.submodules, settings=_settings(text, _place(spec, ENVIRONMENT))
    )


def _settings(text: str, place: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        key, separator, value = (part.strip() for part in line.strip().partition("="))
        if not separator or key.startswith("#"):
            continue
        if key not in (*S2I_KEYS, INSTALL_SCRIPT):
            expected = ", ".join((*S2I_KEYS, INSTALL_SCRIPT))
            raise DesiredStateError(f"{place}:{number}: expected keys of {expected}, got {key}", reason="UnknownKey")
        found[key] = value
    for key, only in (("API_TYPE", "REST"), ("SERVICE_TYPE", "MODEL"), ("PERSISTENCE", "0")):
        if found.get(key, only) != only:
            text = f"{place}: {key}={found[key]} is not built into Myelin yet; expected {only}"
            raise DesiredStateError(text, reason="NotBuilt")
    return found


def _place(spec: ImageSpec, path: str) -> str:
    return f"{spec.folder}/{path}".lstrip("/")
