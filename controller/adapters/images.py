"""Builds images from a commit's files and locked wheels, one at a time, out of the pass's way; signs and checks them."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from controller.adapters.attestor import sign_image, verify_image
from controller.adapters.keys import ImageKey
from controller.adapters.oci.layers import BIG_WHEEL_BYTES, Laid, Stored, lay, lay_wheels
from controller.adapters.oci.layout import CONFIG, MANIFEST, Layout
from controller.adapters.oci.wheels import check_hashes, fetch_wheels, merged_lock
from policies.canonical import canonical, digest_value
from policies.errors import ControllerError, DesiredStateError, SilentError, TrustError
from policies.identity import image_identity
from policies.retries import pause_seconds
from policies.terms.digest import Digest
from policies.terms.task import ImageSpec, ImageState
from reconcilers.ports import Clock, Repository

BUILDER = "myelin.io/builders/python/v1"
PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
SITE = f"opt/venv/lib/python{PYTHON}/site-packages"
faults = logging.getLogger("myelin.faults")
S2I_KEYS = ("MODEL_NAME", "API_TYPE", "SERVICE_TYPE", "PERSISTENCE", "TIMEOUT", "NUM_WORKERS", "APP_FILE")


class PythonImages:
    """Implements `reconcilers.ports.Images`.

    Args:
        repository: Where source comes from.
        layout: Where images go.
        folder: Wheels and memories of builds; may be deleted.
        key: Signs images.
        public_keys: PEM of all keys whose images may be loaded.
        clock: Tells when, for provenance.
        wake: Called when a build has ended.
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
    ) -> None:
        self._repository, self._layout, self._folder = repository, layout, folder
        self._key, self._public_keys, self._clock, self._wake = key, public_keys, clock, wake
        self._states: dict[str, ImageState] = {}
        self._failures: dict[str, tuple[int, float]] = {}
        self._verified: dict[str, tuple[tuple[int, int], ...]] = {}
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
        memo = self._memo(identity)
        if not memo.exists():
            return None
        known = json.loads(memo.read_bytes())
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
        manifest = self._layout.manifest(digest)
        blobs = [digest, manifest["config"]["digest"], *(layer["digest"] for layer in manifest["layers"])]
        try:
            seen = tuple((status.st_mtime_ns, status.st_size) for status in (self._layout.path(blob).stat() for blob in blobs))
        except FileNotFoundError as error:
            raise TrustError(f"image {digest}: a blob is missing from the store", reason="BlobMissing") from error
        if self._verified.get(digest) == seen:
            return
        for blob in blobs[1:]:
            self._layout.check(blob)
        verify_image(self._layout, digest, self._public_keys)
        self._verified[digest] = seen

    def _work(self, identity: str, spec: ImageSpec) -> None:
        with self._building:
            try:
                digest, materials = self._build(spec, identity)
            except SilentError as error:
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
            memo = self._memo(identity)
            temporary = memo.with_suffix(".new")
            temporary.write_bytes(canonical({"digest": digest, "materials": materials}))
            os.replace(temporary, memo)
            self._tell(identity, ImageState(phase="built", digest=digest, materials=materials))

    def _build(self, spec: ImageSpec, identity: str) -> tuple[Digest, dict[str, Any]]:
        if spec.builder != "python":
            raise DesiredStateError(
                f"{spec.repository}: building from a Dockerfile is not part of Myelin yet; use s2i", reason="NotBuilt"
            )
        if spec.base != "host":
            raise DesiredStateError(
                f"{spec.repository}: base images are not part of Myelin yet; leave out builder.base", reason="NotBuilt"
            )
        source = self._source(spec)
        settings = _settings(source)
        if "INSTALL_SCRIPT" in settings:
            raise DesiredStateError(
                f"{spec.repository}: INSTALL_SCRIPT needs a container build, which is not part of Myelin yet", reason="NotBuilt"
            )
        file = f"{spec.folder}/requirements.txt".lstrip("/")
        own = source["app/requirements.txt"].data.decode() if "app/requirements.txt" in source else ""
        check_hashes(own, file)
        runtime = _runtime_folder()
        lock = merged_lock(own, (runtime / "requirements.txt").read_text())

        def progress(text: str) -> None:
            self._tell(identity, ImageState(phase="building", message=f"{spec.repository}: {text}"))

        wheels = fetch_wheels(lock, self._folder / "wheels", file=file, progress=progress)
        progress(f"{len(wheels)} wheels, laying layers")
        layers = [self._wheel_layer(group) for group in _groups(wheels)]
        layers.append(lay(self._layout, _runtime_files(runtime)))
        layers.append(lay(self._layout, {**source, **_venv_files()}))
        digest = self._assemble(spec, settings, layers)
        materials = {
            "commit": spec.commit,
            "folder": spec.folder,
            "tree": spec.tree,
            "base": spec.base,
            "python": PYTHON,
            "wheels": {wheel.name: _wheel_digest(wheel) for wheel in wheels},
        }
        sign_image(self._layout, digest, self._key, self._provenance(spec, materials))
        self._layout.tag(f"{spec.repository}:c-{spec.commit[:12]}-e-{spec.event_set.removeprefix('sha256:')[:12]}", digest)
        return digest, materials

    def _source(self, spec: ImageSpec) -> dict[str, Stored]:
        listed = self._repository.files(spec.commit, spec.folder)
        for item in listed:
            if item.symlink:
                raise DesiredStateError(f"{item.path}: expected plain files in an image's source, got a link", reason="OddFile")
        texts = self._repository.read_many(spec.commit, [item.path for item in listed])
        cut = len(spec.folder) + 1 if spec.folder else 0
        return {f"app/{item.path[cut:]}": Stored(data=texts[item.path], executable=item.executable) for item in listed}

    def _wheel_layer(self, wheels: list[Path]) -> Laid:
        """A layer of wheels depends on their bytes alone, so one that was laid before is taken again."""
        key = digest_value({"wheels": [_wheel_digest(wheel) for wheel in wheels], "site": SITE, "format": BUILDER})
        memo = self._folder / f"layer-{key.removeprefix('sha256:')[:32]}.json"
        if memo.exists():
            known = json.loads(memo.read_bytes())
            if self._layout.has(known["descriptor"]["digest"]):
                return Laid(descriptor=known["descriptor"], diff_id=known["diff_id"])
        laid = lay_wheels(self._layout, wheels, SITE)
        temporary = memo.with_suffix(".new")
        temporary.write_bytes(canonical({"descriptor": laid.descriptor, "diff_id": laid.diff_id}))
        os.replace(temporary, memo)
        return laid

    def _assemble(self, spec: ImageSpec, settings: Mapping[str, str], layers: list[Laid]) -> Digest:
        program = settings.get("APP_FILE", "app.py")
        serves = "MODEL_NAME" in settings
        entrypoint = ["/opt/venv/bin/python", "-m", "myelin.serve"] if serves else ["/opt/venv/bin/python", f"/app/{program}"]
        variables = {"PATH": "/opt/venv/bin:/usr/local/bin:/usr/bin:/bin", "MYELIN_PYTHON": PYTHON, **settings}
        config = {
            "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine()),
            "os": "linux",
            "config": {
                "Entrypoint": entrypoint,
                "Env": [f"{key}={value}" for key, value in sorted(variables.items())],
                "User": "65532:65532",
                "WorkingDir": "/app",
            },
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self._layout.descriptor(self._layout.put(canonical(config)), CONFIG),
            "layers": [layer.descriptor for layer in layers],
            "annotations": {"org.opencontainers.image.base.name": spec.base},
        }
        return self._layout.put(canonical(manifest))

    def _provenance(self, spec: ImageSpec, materials: Mapping[str, Any]) -> dict[str, Any]:
        wheels = [{"name": name, "digest": {"sha256": sha.removeprefix("sha256:")}} for name, sha in materials["wheels"].items()]
        return {
            "buildDefinition": {
                "buildType": BUILDER,
                "externalParameters": {"commit": spec.commit, "folder": spec.folder, "eventSet": spec.event_set},
                "internalParameters": {"python": PYTHON, "base": spec.base},
                "resolvedDependencies": [{"name": "source", "digest": {"gitCommit": spec.commit}}, *wheels],
            },
            "runDetails": {"builder": {"id": BUILDER}, "metadata": {"finishedOn": self._clock.now().isoformat()}},
        }

    def _identity(self, spec: ImageSpec) -> str:
        if not self._runtime:
            folder = _runtime_folder()
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


def _runtime_folder() -> Path:
    """Where the package lies that goes into every image; it is never imported here."""
    found = importlib.util.find_spec("myelin")
    if found is None or not found.submodule_search_locations:
        raise DesiredStateError(
            "package myelin: expected the runtime beside the controller; install both", reason="RuntimeMissing"
        )
    return Path(found.submodule_search_locations[0])


def _runtime_files(folder: Path) -> dict[str, Stored]:
    files = sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)
    return {f"{SITE}/myelin/{path.relative_to(folder).as_posix()}": Stored(data=path.read_bytes()) for path in files}


def _venv_files() -> dict[str, Stored]:
    text = f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {PYTHON}\n"
    return {"opt/venv/pyvenv.cfg": Stored(data=text.encode())}


def _groups(wheels: list[Path]) -> list[list[Path]]:
    """Big wheels alone, the small ones together."""
    big = [[wheel] for wheel in wheels if wheel.stat().st_size >= BIG_WHEEL_BYTES]
    small = [wheel for wheel in wheels if wheel.stat().st_size < BIG_WHEEL_BYTES]
    return [*big, *([small] if small else [])]


def _wheel_digest(wheel: Path) -> str:
    import hashlib

    with wheel.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
