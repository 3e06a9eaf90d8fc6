"""Builds images from a commit's files and locked wheels, one at a time, out of the pass's way; signs, pushes and checks them."""

from __future__ import annotations

import logging
import posixpath
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from controller.adapters.attestor import PROVENANCE, sign_image, verify_image
from controller.adapters.documents import YamlDocuments
from controller.adapters.git import OtherRepositories
from controller.adapters.image_source import SourceReader
from controller.adapters.keys import ImageKey
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
    read_memo,
    tree,
    venv,
    write_memo,
)
from controller.adapters.oci.bases import Bases
from controller.adapters.oci.layers import Laid, Stored, lay
from controller.adapters.oci.layout import Layout
from controller.adapters.oci.wheels import check_hashes, fetch_wheels, merged_lock
from policies.canonical import digest_value
from policies.errors import ControllerError, DesiredStateError, OutsideError, TrustError
from policies.identity import image_identity
from policies.pointers import LARGEST_POINTER_BYTES, pointers_of_dvc
from policies.retries import pause_seconds
from policies.terms.digest import Digest
from policies.terms.source import Submodule
from policies.terms.task import ImageSpec, ImageState
from reconcilers.ports import Clock, Repository

VERIFIED_SECONDS = 0.5
"""How long a look at an image's files counts: one pass may ask for the same image for hundreds of jobs."""
BUILDER = "myelin.io/builders/python/v1"
LONGEST_TAG = 128
MODULE = "submodule "
"""What a submodule is called in provenance, before its path."""
READ_HERE = ("requirements.txt", ".s2i/environment")
"""Files of a source folder that decide how it is built."""
faults = logging.getLogger("myelin.faults")
S2I_KEYS = ("MODEL_NAME", "API_TYPE", "SERVICE_TYPE", "PERSISTENCE", "TIMEOUT", "NUM_WORKERS", "APP_FILE")


class PythonImages:
    """Implements `reconcilers.ports.Images`.

    Args:
        repository: Where source comes from.
        layout: Where images go, and come from.
        folder: Wheels and memories of builds; may be deleted.
        key: Signs images.
        public_keys: PEM of all keys whose images may be loaded.
        clock: Tells when, for provenance.
        wake: Called when a build has ended.
        bases: Opens base images; None: only what goes onto the host's own system is built.
        sources: Opens other repositories; None: only the watched one is built from.
    """

    def __init__(
        self,
        repository: Repository,
        layout: Layout,
        folder: Path,
        key: ImageKey,
        public_keys: tuple[str, ...],
        clock: Clock,
        wake: Callable[[], None] = lambda: None,
        bases: Bases | None = None,
        sources: OtherRepositories | None = None,
    ) -> None:
        self._repository, self._layout, self._folder = repository, layout, folder
        self._key, self._public_keys, self._clock, self._wake = key, public_keys, clock, wake
        self._bases, self._wheel_layers, self._reader = (
            bases,
            WheelLayers(layout, folder),
            SourceReader(repository, sources, folder / "lfs"),
        )
        self._states: dict[str, ImageState] = {}
        self._failures: dict[str, tuple[int, float]] = {}
        self._verified: dict[str, tuple[object, ...]] = {}
        self._looked_at: dict[str, float] = {}
        self._runtime = ""
        self._guard = threading.Lock()
        self._building = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)

    def look(self, spec: ImageSpec) -> ImageState | None:
        """What is known of an image."""
        identity = self._identity(spec)
        with self._guard:
            state = self._states.get(identity)
        if state is not None:
            return state
        known = read_memo(self._memo(identity))
        # What was pushed to another registry is built again: where bytes are equal, that is quick.
        if known is None or known.get("place", self._layout.reference) != self._layout.reference:
            return None
        if not self._layout.has(known["digest"]):
            return None
        state = ImageState(phase="built", digest=Digest(known["digest"]), materials=known["materials"])
        with self._guard:
            self._states[identity] = state
        return state

    def start(self, spec: ImageSpec) -> None:
        """Begin to build, unless that goes on or is done already."""
        known = self.look(spec)
        if known is not None and known.phase != "failed":
            return
        identity = self._identity(spec)
        failures, again_at = self._failures.get(identity, (0, 0.0))
        if time.monotonic() < again_at:
            return
        # What fails again is tried less and less often; what is built is never asked for again.
        self._failures[identity] = (failures + 1, time.monotonic() + pause_seconds(failures + 1))
        self._tell(identity, ImageState(phase="building", message=f"building {spec.repository}"))
        threading.Thread(target=self._work, args=(identity, spec), name=f"build-{spec.repository}", daemon=True).start()

    def verify(self, digest: Digest) -> None:
        """Check blobs, signature and provenance of an image; what did not change since is not read again."""
        now = time.monotonic()
        if now - self._looked_at.get(digest, -VERIFIED_SECONDS) < VERIFIED_SECONDS:
            return
        seen = self._layout.stamp(digest)
        if self._verified.get(digest) == seen:
            self._looked_at[digest] = now
            return
        self._layout.check_all(digest)
        verify_image(self._layout, digest, self._public_keys)
        self._verified[digest] = seen

    def _work(self, identity: str, spec: ImageSpec) -> None:
        with self._building:
            try:
                digest, materials = self._found(spec, identity) or self._build(spec, identity)
                known = {"digest": digest, "materials": materials, "place": self._layout.reference}
                write_memo(self._memo(identity), known)
            except OutsideError as error:
                self._tell(identity, ImageState(phase="failed", reason=error.reason, message=error.message, is_passing=True))
                return
            except ControllerError as error:
                self._tell(identity, ImageState(phase="failed", reason=error.reason, message=error.message))
                return
            except OSError as error:
                text, reason = f"image store: {error.strerror or error}", "DiskFull" if error.errno == 28 else "Disk"
                self._tell(identity, ImageState(phase="failed", reason=reason, message=text, is_passing=True))
                return
            except Exception as error:  # noqa: BLE001  nobody else would hear of it, and it would build for ever
                faults.error("fault while building %s", spec.repository, exc_info=error)
                text = " ".join(f"{type(error).__name__}: {error}".split())
                self._tell(identity, ImageState(phase="failed", reason="Bug", message=f"a fault in Myelin itself: {text}"))
                return
            self._tell(identity, ImageState(phase="built", digest=digest, materials=materials))

    def _found(self, spec: ImageSpec, identity: str) -> tuple[Digest, dict[str, Any]] | None:
        """An image that a controller with our keys built from the same and pushed; None: nobody did."""
        digest = self._layout.resolve(_tags(spec, identity)[0])
        if digest is None:
            return None
        try:
            self._layout.check_all(digest)
            materials = self._materials_of(verify_image(self._layout, digest, self._public_keys)[PROVENANCE])
        except (TrustError, KeyError, TypeError, AttributeError, ValueError):
            # Whoever may write to the registry may move a tag, which then says nothing. It is built again.
            return None
        same = {"tree": spec.tree, "base": spec.base, "python": PYTHON, "runtime": self._runtime}
        if {key: materials.pop(key) if key == "runtime" else materials[key] for key in same} != same:
            return None
        return digest, materials

    def _build(self, spec: ImageSpec, identity: str) -> tuple[Digest, dict[str, Any]]:
        if spec.builder != "python":
            raise DesiredStateError(
                f"{spec.repository}: building from a Dockerfile is not part of Myelin yet; use s2i", reason="NotBuilt"
            )
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

        def progress(text: str) -> None:
            self._tell(identity, ImageState(phase="building", message=f"{spec.repository}: {text}"))

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
        progress("signing and pushing")
        sign_image(self._layout, digest, self._key, self._provenance(spec, materials, base, modules))
        self._layout.tag(f"{spec.repository}:{_label(spec)}", digest)
        self._layout.push(digest, tags=_tags(spec, identity))
        return digest, materials

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
                "internalParameters": {"python": PYTHON, "base": spec.base, "runtime": self._runtime},
                "resolvedDependencies": [_material(spec), *within, *below, *wheels, *data],
            },
            "runDetails": {"builder": {"id": BUILDER}, "metadata": {"finishedOn": self._clock.now().isoformat()}},
        }

    def _materials_of(self, provenance: Mapping[str, Any]) -> dict[str, Any]:
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

    def _identity(self, spec: ImageSpec) -> str:
        if not self._runtime:
            folder = package_folder("myelin")
            files = {path: item.data.decode(errors="replace") for path, item in _runtime_files(folder).items()}
            self._runtime = digest_value({**files, "requirements.txt": (folder / "requirements.txt").read_text()})
        return digest_value({"image": image_identity(spec), "python": PYTHON, "runtime": self._runtime, "format": BUILDER})

    def _memo(self, identity: str) -> Path:
        return self._folder / f"image-{identity.removeprefix('sha256:')[:32]}.json"

    def _tell(self, identity: str, state: ImageState) -> None:
        with self._guard:
            self._states[identity] = state
        if state.phase != "building":
            self._wake()


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


def _label(spec: ImageSpec) -> str:
    return f"c-{spec.commit[:12]}-e-{spec.event_set.removeprefix('sha256:')[:12]}"


def _tags(spec: ImageSpec, identity: str) -> tuple[str, str]:
    """What an image is called in a registry: one name for us to find it, one for people."""
    end = f"-{_label(spec)}"
    name = spec.repository.replace("/", "-").lstrip(".-")[: LONGEST_TAG - len(end)] or "image"
    return f"i-{identity.removeprefix('sha256:')[:32]}", name + end


def _sha256(digest: str) -> dict[str, str]:
    return {"sha256": digest.removeprefix("sha256:")}
