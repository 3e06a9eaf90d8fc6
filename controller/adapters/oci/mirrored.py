"""A folder in front of a registry: what is missing here is fetched and checked, what is whole is pushed.

The registry is the truth, the folder may be deleted. Nothing that comes from outside is kept before its digest was checked.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from controller.adapters.oci.layout import MANIFEST, Layout, disk_error
from controller.adapters.oci.registry import Registry, is_tag
from policies.errors import TrustError
from policies.terms.digest import Digest

PUSH_THREADS = 2
KNOWN_SECONDS = 300.0
"""How long we rely on what we pushed: somebody may remove it from the registry, and then a push puts it back."""


class MirroredLayout(Layout):
    """A layout whose blobs and manifests lie in a registry as well. Threads may share it.

    Args:
        root: The folder, which is a cache.
        registry: The repository behind it.
        seconds: A clock that only goes forward.
    """

    def __init__(self, root: Path, registry: Registry, *, seconds: Callable[[], float] = time.monotonic) -> None:
        super().__init__(root)
        self.registry = registry
        self._seconds = seconds
        self._known: dict[str, float] = {}
        self._guard = threading.Lock()
        self._fetching: dict[str, threading.Lock] = {}

    @property
    def reference(self) -> str:
        """What signatures call this place."""
        return self.registry.repository

    def path(self, digest: str) -> Path:
        """A blob's file, fetched if it is not here.

        Raises:
            TrustError: It is in neither place, or not what its digest says.
            OutsideError: The registry said no or nothing, or the disk is full.
        """
        place = self.place(digest)
        if not place.exists():
            with self._alone(digest):
                if not place.exists():
                    self._fetch(digest)
        return place

    def has(self, digest: str) -> bool:
        """Whether a blob or manifest is here or in the registry; nothing is fetched."""
        if self.is_here(digest) or self._is_known(digest):
            return True
        # Blobs first: Debian's registry 2.8 answers 500 to who asks for a big blob as if it were a manifest.
        return self.registry.has_blob(digest) or self.registry.has_manifest(digest)

    def manifest(self, digest: str) -> dict[str, Any]:
        """A manifest's content, fetched if it is not here."""
        if not self.is_here(digest):
            data = self.registry.manifest(digest)
            if data is not None:
                self.put(data)
        return super().manifest(digest)

    def check_all(self, digest: str) -> None:
        """Check what a manifest names: what is here by its bytes, what is not by asking; whoever pulls it checks it anyway.

        Raises:
            TrustError: Anything is in neither place, or is here and not what its digest says.
        """
        for blob in self.named(digest):
            if self.is_here(blob):
                self.check(blob)
            elif not self.registry.has_blob(blob):
                raise self._missing(blob)

    def resolve(self, tag: str) -> Digest | None:
        """The manifest that a tag names in the registry, whatever it names here; what is no tag can only name something here."""
        return self.registry.resolve(tag) if is_tag(tag) else super().resolve(tag)

    def push(self, digest: str, *, tags: Sequence[str] = ()) -> None:
        """Bring a manifest to the registry: its blobs, then itself, then its tags. What is there is not sent again.

        A manifest with a subject is attached to it; an index goes with all of its manifests.

        Raises:
            TrustError: A blob is in neither place, or not what its digest says.
            OutsideError: The registry said no or nothing.
        """
        asked = [tag for tag in tags if not self._is_known(f"{tag}={digest}")]
        missing = [tag for tag in asked if self.registry.resolve(tag) != digest]
        self._bring(digest, is_tagged=len(missing) < len(asked))
        for tag in missing:
            media_type = str(self.manifest(digest).get("mediaType", MANIFEST))
            self.registry.put_manifest(self.get(digest), tag, media_type)
        for tag in asked:
            self._know(f"{tag}={digest}")

    def mount(self, digest: str, repository: str) -> bool:
        """Whether a blob of another repository `host/path` is now in this one, without a copy: on the same host it may be."""
        host, _, path = repository.partition("/")
        return host == self.reference.partition("/")[0] and self.registry.mount_blob(digest, path)

    def referrers(self, digest: str) -> list[dict[str, Any]]:
        """Manifests whose subject is `digest`, here and in the registry; what cannot be read there is left out."""
        found = super().referrers(digest)
        for listed in self.registry.referrers(digest):
            try:
                manifest = self.manifest(str(listed.get("digest", "")))
                is_new = manifest["subject"]["digest"] == digest and manifest not in found
            except (TrustError, ValueError, KeyError, TypeError):
                # Anybody who may write there may list anything; only what verifies counts.
                continue
            if is_new:
                found.append(manifest)
        return found

    def _bring(self, digest: str, *, is_tagged: bool = False) -> None:
        if self._is_known(digest):
            return
        manifest = self.manifest(digest)
        subject = manifest.get("subject")
        # A manifest that is there has all of its blobs there, but perhaps nobody lists it as a referrer yet.
        if subject is not None or not (is_tagged or self.registry.has_manifest(digest)):
            for child in manifest.get("manifests", ()):
                self._bring(child["digest"])
            named = [*([manifest["config"]] if "config" in manifest else []), *manifest.get("layers", ())]
            with ThreadPoolExecutor(PUSH_THREADS) as threads:
                list(threads.map(self._upload, dict.fromkeys(item["digest"] for item in named)))
            data = self.get(digest)
            if subject is not None:
                self.registry.attach(subject["digest"], data)
            else:
                self.registry.put_manifest(data, digest, str(manifest.get("mediaType", MANIFEST)))
        self._know(digest)

    def _touched(self, digest: str) -> tuple[int, int]:
        return super()._touched(digest) if self.is_here(digest) else (0, 0)

    def _upload(self, digest: str) -> None:
        if self.is_here(digest):
            self.registry.put_blob(self.place(digest), digest)
        elif not self.registry.has_blob(digest):
            raise self._missing(digest)

    def _missing(self, digest: str) -> TrustError:
        return TrustError(f"blob {digest}: expected it here or in {self.reference}, it is missing", reason="BlobMissing")

    def _fetch(self, digest: str) -> None:
        try:
            with self.writing() as file:
                try:
                    self.registry.fetch_blob(digest, file)
                except TrustError as error:
                    if error.reason != "BlobMissing":
                        raise
                    data = self.registry.manifest(digest)
                    if data is None:
                        raise
                    self.put(data)
                    return
                self.adopt(file, Digest(digest))
        except OSError as error:
            raise disk_error(self.root, error) from error

    @contextmanager
    def _alone(self, digest: str) -> Iterator[None]:
        """One fetch of a blob at a time; whoever comes second finds it here."""
        with self._guard:
            lock = self._fetching.setdefault(digest, threading.Lock())
        with lock:
            try:
                yield
            finally:
                with self._guard:
                    self._fetching.pop(digest, None)

    def _is_known(self, key: str) -> bool:
        with self._guard:
            return self._known.get(key, 0.0) > self._seconds()

    def _know(self, key: str) -> None:
        with self._guard:
            now = self._seconds()
            self._known = {other: until for other, until in self._known.items() if until > now} | {key: now + KNOWN_SECONDS}
