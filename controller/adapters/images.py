"""Images of commits: built one at a time, out of the pass's way; signed, pushed, found again and checked before they load."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from controller.adapters.attestor import PROVENANCE, sign_image, verify_image
from controller.adapters.build.driver import Built, Driver
from controller.adapters.build.python import PythonBuilder
from controller.adapters.git import OtherRepositories
from controller.adapters.image_source import SourceReader
from controller.adapters.keys import ImageKey
from controller.adapters.oci.assembly import read_memo, write_memo
from controller.adapters.oci.bases import Bases
from controller.adapters.oci.layout import Layout
from policies.errors import ControllerError, DesiredStateError, OutsideError, TrustError
from policies.retries import pause_seconds
from policies.terms.digest import Digest
from policies.terms.task import ImageSpec, ImageState
from reconcilers.ports import Clock, Repository

VERIFIED_SECONDS = 0.5
"""How long a look at an image's files counts: one pass may ask for the same image for hundreds of jobs."""
LONGEST_TAG = 128
faults = logging.getLogger("myelin.faults")


class SignedImages:
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
        self._layout, self._folder = layout, folder
        self._key, self._public_keys, self._clock, self._wake = key, public_keys, clock, wake
        reader = SourceReader(repository, sources, folder / "lfs")
        self._drivers: Mapping[str, Driver] = {"python": PythonBuilder(reader, layout, folder, bases)}
        self._states: dict[str, ImageState] = {}
        self._failures: dict[str, tuple[int, float]] = {}
        self._verified: dict[str, tuple[object, ...]] = {}
        self._looked_at: dict[str, float] = {}
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

    def _found(self, spec: ImageSpec, identity: str) -> tuple[Digest, Mapping[str, Any]] | None:
        """An image that a controller with our keys built from the same and pushed; None: nobody did."""
        digest = self._layout.resolve(_tags(spec, identity)[0])
        if digest is None:
            return None
        try:
            self._layout.check_all(digest)
            found = verify_image(self._layout, digest, self._public_keys)
            materials = self._driver(spec).materials(found[PROVENANCE], spec)
        except (TrustError, KeyError, TypeError, AttributeError, ValueError):
            # Whoever may write to the registry may move a tag, which then says nothing. It is built again.
            return None
        return None if materials is None else (digest, materials)

    def _build(self, spec: ImageSpec, identity: str) -> tuple[Digest, Mapping[str, Any]]:
        def progress(text: str) -> None:
            self._tell(identity, ImageState(phase="building", message=f"{spec.repository}: {text}"))

        built = self._driver(spec).build(spec, progress)
        progress("signing and pushing")
        sign_image(self._layout, built.digest, self._key, self._finished(built))
        self._layout.tag(f"{spec.repository}:{_label(spec)}", built.digest)
        self._layout.push(built.digest, tags=_tags(spec, identity))
        return built.digest, built.materials

    def _finished(self, built: Built) -> dict[str, Any]:
        details = built.provenance["runDetails"]
        return {**built.provenance, "runDetails": {**details, "metadata": {"finishedOn": self._clock.now().isoformat()}}}

    def _driver(self, spec: ImageSpec) -> Driver:
        driver = self._drivers.get(spec.builder)
        if driver is None:
            text = f"{spec.repository}: building from a Dockerfile is not part of Myelin yet; use s2i"
            raise DesiredStateError(text, reason="NotBuilt")
        return driver

    def _identity(self, spec: ImageSpec) -> Digest:
        # What nobody here builds has a name too, so that its fault can be told.
        return self._drivers.get(spec.builder, self._drivers["python"]).identity(spec)

    def _memo(self, identity: str) -> Path:
        return self._folder / f"image-{identity.removeprefix('sha256:')[:32]}.json"

    def _tell(self, identity: str, state: ImageState) -> None:
        with self._guard:
            self._states[identity] = state
        if state.phase != "building":
            self._wake()


def _label(spec: ImageSpec) -> str:
    return f"c-{spec.commit[:12]}-e-{spec.event_set.removeprefix('sha256:')[:12]}"


def _tags(spec: ImageSpec, identity: str) -> tuple[str, str]:
    """What an image is called in a registry: one name for us to find it, one for people."""
    end = f"-{_label(spec)}"
    name = spec.repository.replace("/", "-").lstrip(".-")[: LONGEST_TAG - len(end)] or "image"
    return f"i-{identity.removeprefix('sha256:')[:32]}", name + end
