"""Images of commits: built one at a time, out of the pass's way; signed, pushed, found again and checked before they load."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from controller.adapters.attest.provenance import finished, materials_of
from controller.adapters.attest.sbom import sbom_of
from controller.adapters.attest.signing import StatementSigner, name_of, say_again, sign_image, verify_and_renew
from controller.adapters.attest.statements import PROVENANCE
from controller.adapters.attest.verifying import ImageTrust, examine
from controller.adapters.build.buildkit import Daemon
from controller.adapters.build.driver import Built, Driver
from controller.adapters.build.drivers import Secrets, drivers, no_secrets
from controller.adapters.git import OtherRepositories
from controller.adapters.image_source import SourceReader
from controller.adapters.keys import ImageSigner
from controller.adapters.oci.access import Access, access_on_this_machine
from controller.adapters.oci.assembly import read_memo, write_memo
from controller.adapters.oci.layout import Layout, Stamp
from policies.errors import ControllerError, OutsideError, TrustError
from policies.retries import pause_seconds
from policies.terms.digest import Digest
from policies.terms.task import ImageSpec, ImageState
from reconcilers.ports import Clock, Repository

VERIFIED_SECONDS = 0.5
"""How long it counts what an image consists of: one pass may ask for the same image for hundreds of jobs."""
LONGEST_TAG = 128
faults = logging.getLogger("myelin.faults")


class SignedImages:
    """Implements `reconcilers.ports.Images`.

    Args:
        repository: Where source comes from.
        layout: Where images go, and come from.
        folder: Wheels and memories of builds; may be deleted.
        key: Signs images.
        trust: Whose images may be loaded.
        clock: Tells when, for provenance.
        wake: Called when a build has ended.
        access_for: Repository of a base image, `host[:port]/path` -> how to reach it.
        secrets: Reads the secrets that builds name.
        sigstore_root: Trusted root for base images that were signed by an identity.
        reads_disk: Whether base images may lie in OCI layouts on this machine.
        sources: Opens other repositories; None: only the watched one is built from.
        identity: Signs images as well, as an identity; None: the key alone does.
        buildkit: How a BuildKit is reached; None: as on a machine that was told nothing.
    """

    def __init__(
        self,
        repository: Repository,
        layout: Layout,
        folder: Path,
        key: ImageSigner,
        trust: ImageTrust,
        clock: Clock,
        wake: Callable[[], None] = lambda: None,
        access_for: Callable[[str], Access] = partial(access_on_this_machine, environ=os.environ),
        secrets: Secrets = no_secrets,
        sigstore_root: str = "",
        reads_disk: bool = False,
        sources: OtherRepositories | None = None,
        identity: StatementSigner | None = None,
        buildkit: Daemon | None = None,
    ) -> None:
        self._layout, self._folder = layout, folder
        self._key, self._trust, self._clock, self._wake = key, trust, clock, wake
        self._as_well = identity
        reader = SourceReader(repository, sources, folder / "lfs")
        self._drivers = drivers(
            reader,
            layout,
            folder,
            access_for,
            secrets,
            sigstore_root=sigstore_root,
            reads_disk=reads_disk,
            buildkit=buildkit,
        )
        self._states: dict[str, ImageState] = {}
        self._failures: dict[str, tuple[int, float]] = {}
        self._verified: dict[str, Stamp] = {}
        self._renewals: dict[str, tuple[int, float]] = {}
        """Digest -> how often somebody who signs could not yet, and when it is tried again."""
        self._unsigned: dict[str, tuple[Built, dict[str, Any]]] = {}
        """What was built and could not be signed or pushed yet, with its provenance: who signs it again says the same again."""
        self._looked_at: dict[str, float] = {}
        self._guard = threading.Lock()
        self._building = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)

    def look(self, spec: ImageSpec) -> ImageState | None:
        """What is known of an image."""
        identity = self._identity(spec)
        with self._guard:
            state = self._states.get(identity)
        # What was built may have been swept meanwhile, when nothing needed it; the same tree may come back.
        if state is not None and (state.phase != "built" or state.digest is None or self._layout.has(state.digest)):
            return state
        known = read_memo(self._memo(identity))
        # What was pushed to another registry is built again: where bytes are equal, that is quick.
        if known is None or known.get("place", self._layout.reference) != self._layout.reference:
            return None
        # What somebody signed who is not trusted any more is built again, and signed by who is.
        if known.get("signer", name_of(self._key)) not in self._trust.names or not self._layout.has(known["digest"]):
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
        known = self._verified.get(digest)
        is_recent = now - self._looked_at.get(digest, -VERIFIED_SECONDS) < VERIFIED_SECONDS
        if is_recent and known is not None and self._layout.is_stamped(known):
            return
        # A registry's clean-up may have taken what is deployed already.
        self._layout.mend(digest)
        seen = self._layout.stamp(digest)
        tries, again_at = self._renewals.get(digest, (0, 0.0))
        if known == seen and not (tries and now >= again_at):
            self._looked_at[digest] = now
            return
        postponed: list[OutsideError] = []
        verify_and_renew(self._layout, digest, self._key, self._trust, also=self._as_well, postponed=postponed.append)
        self._verified[digest] = seen
        self._renewals.pop(digest, None)
        if postponed:
            self._renewals[digest] = (tries + 1, now + pause_seconds(tries + 1))

    def lock(self, digest: Digest) -> str:
        """The text of the lock that was resolved for an image, out of its signed provenance."""
        # Nothing of the image is loaded, so its layers are not read. Several may have built the same, some of them by a lock that
        # lay in the commit: their provenance has none.
        found = examine(self._layout, digest, self._trust)
        for kind, _, predicate in found.claims:
            try:
                if kind == PROVENANCE:
                    return str(predicate["buildDefinition"]["internalParameters"]["lock"]["text"])
            except (KeyError, TypeError):
                continue
        why = f": {found.why_not}" if PROVENANCE not in found.predicates else ""
        raise TrustError(
            f"image {digest}: expected provenance with the lock that it was built by, got none{why}", reason="LockMissing"
        )

    def _work(self, identity: str, spec: ImageSpec) -> None:
        with self._building:
            try:
                digest, materials = self._found(spec, identity) or self._build(spec, identity)
                known = {"digest": digest, "materials": materials, "place": self._layout.reference, "signer": name_of(self._key)}
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
        """An image that a controller with our keys built from the same and pushed; None: nobody did.

        Where the manifest says that an image that exists is taken as it is, it may have been made by another runtime or tool.
        """
        ours, for_people = _tags(spec, identity)
        for tag in (ours, for_people) if spec.checks_exists else (ours,):
            digest = self._layout.resolve(tag)
            if digest is None:
                continue
            try:
                found = verify_and_renew(self._layout, digest, self._key, self._trust, also=self._as_well)
                if tag == ours:
                    materials = self._driver(spec).materials(found[PROVENANCE], spec)
                else:
                    told = materials_of(found[PROVENANCE])
                    materials = told if told.get("tree") == spec.tree else None
            except (TrustError, KeyError, TypeError, AttributeError, ValueError):
                # Whoever may write to the registry may move a tag, which then says nothing. It is built again.
                continue
            if materials is not None:
                return digest, materials
        return None

    def _build(self, spec: ImageSpec, identity: str) -> tuple[Digest, Mapping[str, Any]]:
        def progress(text: str) -> None:
            self._tell(identity, ImageState(phase="building", message=f"{spec.repository}: {text}"))

        kept = self._unsigned.pop(identity, None)
        built, provenance = kept if kept is not None else self._made(spec, progress)
        progress("signing and pushing")
        try:
            sbom = sbom_of(built.digest, spec.repository, provenance)
            sign_image(self._layout, built.digest, self._key, provenance, sbom)
            if self._as_well is not None:
                say_again(self._layout, built.digest, self._as_well, self._key)
            self._layout.tag(f"{spec.repository}:{_label(spec)}", built.digest)
            self._layout.push(built.digest, tags=_tags(spec, identity))
        except OutsideError:
            self._unsigned[identity] = (built, provenance)
            raise
        return built.digest, built.materials

    def _made(self, spec: ImageSpec, progress: Callable[[str], None]) -> tuple[Built, dict[str, Any]]:
        built = self._driver(spec).build(spec, progress)
        return built, finished(built.provenance, self._clock.now())

    def _driver(self, spec: ImageSpec) -> Driver:
        return self._drivers[spec.builder]

    def _identity(self, spec: ImageSpec) -> Digest:
        return self._driver(spec).identity(spec)

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
