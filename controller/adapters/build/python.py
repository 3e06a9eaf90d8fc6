"""The Python builder: source of a commit, locked wheels and our runtime, laid on a base. No daemon, no root, no container."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from controller.adapters.build.driver import Built, Progress
from controller.adapters.documents import YamlDocuments
from controller.adapters.image_source import SourceReader
from controller.adapters.oci.assembly import (
    INTERPRETER,
    PYTHON,
    SITE,
    Base,
    Program,
    WheelLayers,
    assemble,
    based_on,
    file_digest,
    package_folder,
    tree,
    venv,
)
from controller.adapters.oci.bases import Bases
from controller.adapters.oci.layers import Laid, Stored, lay
from controller.adapters.oci.layout import Layout
from controller.adapters.oci.wheels import check_hashes, fetch_wheels, merged_lock
from policies.canonical import digest_value
from policies.errors import DesiredStateError
from policies.identity import image_identity
from policies.pointers import LARGEST_POINTER_BYTES, pointers_of_dvc
from policies.terms.digest import Digest
from policies.terms.source import Submodule
from policies.terms.task import ImageSpec

BUILDER = "myelin.io/builders/python/v1"
MODULE = "submodule "
"""What a submodule is called in provenance, before its path."""
READ_HERE = ("requirements.txt", ".s2i/environment")
"""Files of a source folder that decide how it is built."""
S2I_KEYS = ("MODEL_NAME", "API_TYPE", "SERVICE_TYPE", "PERSISTENCE", "TIMEOUT", "NUM_WORKERS", "APP_FILE")


class PythonBuilder:
    """Implements `controller.adapters.build.driver.Driver`.

    Args:
        reader: Reads source.
        layout: Where images go.
        folder: Wheels and memories of layers; may be deleted.
        bases: Opens base images; None: only what goes onto the host's own system is built.
    """

    def __init__(self, reader: SourceReader, layout: Layout, folder: Path, bases: Bases | None) -> None:
        self._reader, self._layout, self._folder, self._bases = reader, layout, folder, bases
        self._wheel_layers = WheelLayers(layout, folder)
        self._runtime = ""

    def identity(self, spec: ImageSpec) -> Digest:
        """Source, base and rules; our runtime and Python too, as they are part of every image."""
        runtime = self._runtime_digest()
        return digest_value({"image": image_identity(spec), "python": PYTHON, "runtime": runtime, "format": BUILDER})

    def build(self, spec: ImageSpec, progress: Progress) -> Built:
        """Build an image into the store."""
        source, source_links, modules = self._source(spec)
        data = _data_of(source)
        settings = _settings(source)
        if "INSTALL_SCRIPT" in settings:
            raise DesiredStateError(
                f"{spec.repository}: INSTALL_SCRIPT needs a container build, which is not part of Myelin yet", reason="NotBuilt"
            )
        file = f"{spec.folder}/requirements.txt".lstrip("/")
        own = source["app/requirements.txt"].data.decode() if "app/requirements.txt" in source else ""
        check_hashes(own, file)
        runtime = package_folder("myelin")
        lock = merged_lock(own, (runtime / "requirements.txt").read_text())

        base = self._base(spec, progress)
        wheels = fetch_wheels(lock, self._folder / "wheels", file=file, progress=progress)
        progress(f"{len(wheels)} wheels, laying layers")
        layers = self._wheel_layers.laid(wheels)
        layers.append(lay(self._layout, _runtime_files(runtime)))
        files, links = venv(base)
        layers.append(lay(self._layout, {**source, **files}, {**source_links, **links}))
        digest = self._assemble(settings, layers, base)
        materials = {
            "commit": spec.commit,
            "folder": spec.folder,
            "tree": spec.tree,
            **_elsewhere(spec),
            "base": spec.base,
            "python": PYTHON,
            "wheels": {wheel.name: file_digest(wheel) for wheel in wheels},
            **({"data": data} if data else {}),
            **({"submodules": {item.path: f"{item.url}@sha1:{item.commit}" for item in modules}} if modules else {}),
        }
        return Built(digest=digest, materials=materials, provenance=self._provenance(spec, materials, base, modules))

    def materials(self, provenance: Mapping[str, Any], spec: ImageSpec) -> Mapping[str, Any] | None:
        """What went into an image; None: another tree, base, Python or runtime than would go in here."""
        found = _materials_of(provenance)
        same = {"tree": spec.tree, "base": spec.base, "python": PYTHON, "runtime": self._runtime_digest()}
        return None if {key: found.pop(key) if key == "runtime" else found[key] for key in same} != same else found

    def _runtime_digest(self) -> str:
        if not self._runtime:
            folder = package_folder("myelin")
            files = {path: item.data.decode(errors="replace") for path, item in _runtime_files(folder).items()}
            self._runtime = digest_value({**files, "requirements.txt": (folder / "requirements.txt").read_text()})
        return self._runtime

    def _base(self, spec: ImageSpec, progress: Callable[[str], None]) -> Base | None:
        if spec.base == "host":
            return None
        if self._bases is None:
            raise DesiredStateError(
                f"{spec.repository}: base images are not part of Myelin on one machine yet; leave out builder.base",
                reason="NotBuilt",
            )
        progress("opening the base image")
        return self._bases.open(spec.base)

    def _source(self, spec: ImageSpec) -> tuple[dict[str, Stored], dict[str, str], tuple[Submodule, ...]]:
        """Files of the source folder and its links, where they go in the image -> what they are; and its submodules."""
        found = self._reader.read(spec)
        for path in found.links:
            if path in READ_HERE:
                place = f"{spec.folder}/{path}".lstrip("/")
                raise DesiredStateError(f"{place}: expected a plain file, got a link", reason="OddFile")
        return (
            {f"app/{path}": item for path, item in found.files.items()},
            {f"app/{path}": target for path, target in found.links.items()},
            found.submodules,
        )

    def _assemble(self, settings: Mapping[str, str], layers: list[Laid], base: Base | None) -> Digest:
        serves = "MODEL_NAME" in settings
        entrypoint = (
            [INTERPRETER, "-m", "myelin.serve"] if serves else [INTERPRETER, f"/app/{settings.get('APP_FILE', 'app.py')}"]
        )
        program = Program(entrypoint=entrypoint, env={"MYELIN_PYTHON": PYTHON, **settings})
        return assemble(self._layout, layers, program, base=base, annotations=based_on(base))

    def _provenance(
        self, spec: ImageSpec, materials: Mapping[str, Any], base: Base | None, modules: Sequence[Submodule]
    ) -> dict[str, Any]:
        wheels = [{"name": name, "digest": _sha256(digest)} for name, digest in materials["wheels"].items()]
        data = [{"name": path, "digest": dict([name.split(":", 1)])} for path, name in materials.get("data", {}).items()]
        within = [{"name": f"{MODULE}{item.path}", "uri": item.url, "digest": {"gitCommit": item.commit}} for item in modules]
        below = [{"name": "base", "uri": base.reference, "digest": _sha256(base.digest)}] if base else []
        return {
            "buildDefinition": {
                "buildType": BUILDER,
                "externalParameters": {
                    "commit": spec.commit,
                    "folder": spec.folder,
                    "tree": spec.tree,
                    "eventSet": spec.event_set,
                    **_elsewhere(spec),
                },
                "internalParameters": {"python": PYTHON, "base": spec.base, "runtime": self._runtime_digest()},
                "resolvedDependencies": [_material(spec), *within, *below, *wheels, *data],
            },
            "runDetails": {"builder": {"id": BUILDER}},
        }


def _materials_of(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What went into an image, as its provenance says, and the digest of the runtime."""
    definition = provenance["buildDefinition"]
    if definition["buildType"] != BUILDER:
        raise ValueError(definition["buildType"])
    outer, inner = definition["externalParameters"], definition["internalParameters"]
    parts = [item for item in definition["resolvedDependencies"] if not item["name"].startswith(MODULE)]
    modules = [item for item in definition["resolvedDependencies"] if item["name"].startswith(MODULE)]
    data = [item for item in parts if item["name"].startswith("app/")]
    wheels = [item for item in parts if item["name"].endswith(".whl") and item not in data]
    within = {item["name"].removeprefix(MODULE): f"{item['uri']}@sha1:{item['digest']['gitCommit']}" for item in modules}
    return {
        **{key: outer[key] for key in ("commit", "folder", "tree", "repo", "revision", "sourceCommit") if key in outer},
        **{key: inner[key] for key in ("base", "python", "runtime")},
        "wheels": {item["name"]: "sha256:" + item["digest"]["sha256"] for item in wheels},
        **({"data": {item["name"]: ":".join(*item["digest"].items()) for item in data}} if data else {}),
        **({"submodules": within} if within else {}),
    }


def _data_of(source: Mapping[str, Stored]) -> dict[str, str]:
    """Data that `.dvc` files of a source folder stand for: where it would lie in the image -> its digest."""
    found = {}
    for path, item in source.items():
        if path.endswith(".dvc") and len(item.data) <= LARGEST_POINTER_BYTES:
            try:
                value = YamlDocuments().load(item.data, path).value
            except DesiredStateError:
                continue  # a file of that name which is none
            for pointer in pointers_of_dvc(value):
                found[posixpath.normpath(posixpath.join(posixpath.dirname(path), pointer.path))] = pointer.identity
    return {path: name for path, name in sorted(found.items()) if path.startswith("app/")}


def _elsewhere(spec: ImageSpec) -> dict[str, str]:
    """What is said of source in another repository."""
    if spec.source is None:
        return {}
    return {"repo": spec.source.repo, "revision": spec.source.revision, "sourceCommit": spec.source_commit}


def _material(spec: ImageSpec) -> dict[str, Any]:
    if spec.source is None:
        return {"name": "source", "digest": {"gitCommit": spec.commit}}
    return {"name": "source", "uri": spec.source.repo, "digest": {"gitCommit": spec.source_commit}}


def _settings(source: Mapping[str, Stored]) -> dict[str, str]:
    """What `.s2i/environment` says."""
    found = {}
    text = source["app/.s2i/environment"].data.decode() if "app/.s2i/environment" in source else ""
    for line in text.splitlines():
        key, separator, value = line.strip().partition("=")
        if separator and not key.startswith("#"):
            found[key.strip()] = value.strip()
    unknown = [key for key in found if key not in (*S2I_KEYS, "INSTALL_SCRIPT")]
    if unknown:
        raise DesiredStateError(
            f".s2i/environment: expected keys of {', '.join(S2I_KEYS)}, got {', '.join(unknown)}", reason="UnknownKey"
        )
    for key, only in (("API_TYPE", "REST"), ("SERVICE_TYPE", "MODEL"), ("PERSISTENCE", "0")):
        if found.get(key, only) != only:
            text = f".s2i/environment: {key}={found[key]} is not built into Myelin yet; expected {only}"
            raise DesiredStateError(text, reason="NotBuilt")
    return found


def _runtime_files(folder: Path) -> dict[str, Stored]:
    return tree(folder, f"{SITE}/myelin", "*.py")


def _sha256(digest: str) -> dict[str, str]:
    return {"sha256": digest.removeprefix("sha256:")}
