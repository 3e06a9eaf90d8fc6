"""A folder in front of a registry: what is missing here is fetched and checked, what is whole is pushed.

The registry is the truth, the folder may be deleted. Nothing that comes from outside is kept before its digest was checked.
A push goes in this order, so that no tag ever names half an image: blobs, manifest by digest, what refers to it, tags.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from controller.adapters.oci.layout import MANIFEST, Layout, disk_error
from controller.adapters.oci.one_each import OneEach
from controller.adapters.oci.references import held_tag
from controller.adapters.oci.registry import BlobsUnknownError, Registry, is_tag
from controller.adapters.oci.seen import Seen
from policies.errors import OutsideError, TrustError
from policies.terms.digest import Digest

Read = TypeVar("Read")
PUSH_THREADS = 2
MOST_LOOKS = 3
"""How often a push begins again because a clean-up of the registry removed what it had brought."""
KNOWN_SECONDS = 300.0
"""How long we rely on what we pushed: somebody may remove it from the registry, and then a push puts it back."""


class MirroredLayout(Layout):
    """A layout whose blobs and manifests lie in a registry as well. Threads may share it.

    Args:
        root: The folder, which is a cache.
        registry: The repository behind it.
        seen: Where blobs were seen, shared by all repositories; None: a memory of this folder's own.
        seconds: A clock that only goes forward.
    """

    def __init__(
        self, root: Path, registry: Registry, *, seen: Seen | None = None, seconds: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(root)
        self.registry = registry
        self._seen = seen or Seen(root / "seen")
        self._seconds = seconds
        self._known: dict[str, float] = {}
        self._guard = threading.Lock()
        self._fetching = OneEach()

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
            with self._fetching.alone(digest):
                if not place.exists():
                    self._fetch(digest)
        # Nobody may clear the cache of what is about to be read.
        self.note(digest)
        return place

    def get(self, digest: str) -> bytes:
        """A blob's bytes; where they were changed in this folder, the registry's take their place."""
        return self._mended_here(digest, super().get)

    def check(self, digest: str) -> None:
        """Check a blob; the same."""
        self._mended_here(digest, super().check)

    def has(self, digest: str) -> bool:
        """Whether a blob or manifest is here or in the registry; nothing is fetched."""
        if self.is_here(digest) or self._is_known(digest):
            return True
        # Blobs first: Debian's registry 2.8 answers 500 to who asks for a big blob as if it were a manifest.
        return (self.registry.has_blob(digest) or self.registry.has_manifest(digest)) and self.note(digest, elsewhere=True)

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
        """Bring a manifest to the registry: its blobs, itself, what refers to it, then its tags. What is there is not sent again.

        A manifest with a subject is attached to it; an index goes with all of its manifests. What a clean-up of the registry
        removes meanwhile is brought again.

        Raises:
            TrustError: A blob is in neither place, or not what its digest says.
            OutsideError: The registry said no or nothing.
        """
        for looks in range(1, MOST_LOOKS + 1):
            try:
                self._push(digest, tags)
                return
            except BlobsUnknownError:
                if looks == MOST_LOOKS:
                    raise
                self._forget(digest)

    def mend(self, digest: str) -> tuple[str, ...]:
        """Put back into the registry what is gone there of a manifest, of its blobs and of what refers to it, and is here.

        Whether what refers to it is enough is for those to say who verify it: anybody may list what nobody has.

        Returns:
            What was put back. At most one look in `KNOWN_SECONDS`; the others find nothing.

        Raises:
            TrustError: Something is in neither place; names all of it, after the rest was put back.
            OutsideError: The registry said no or nothing.
        """
        if self._is_known(f"mended {digest}"):
            return ()
        put_back, lost = self._mended(digest)
        for referrer in self._attached(digest):
            found = self._mended(referrer)
            put_back, lost = put_back + found[0], lost + found[1]
        if lost:
            text = f"image {digest}: expected all of it here or in {self.reference}, missing in both: {', '.join(lost)}"
            raise TrustError(f"{text}; build it again", reason="BlobMissing")
        self._see_to_referrers(digest)
        self._know(f"mended {digest}")
        return tuple(put_back)

    def mount(self, digest: str, repository: str) -> bool:
        """Whether a blob of another repository `host/path` is now in this one, without a copy: on the same host it may be."""
        host, _, path = repository.partition("/")
        if host != self._host or not self.registry.mount_blob(digest, path):
            return False
        self._seen.note(self.reference, (digest,))
        return True

    def referrers(self, digest: str) -> list[dict[str, Any]]:
        """Manifests whose subject is `digest`, here and in the registry; what cannot be read there is left out."""
        found = super().referrers(digest)
        for listed in self._listed_there(digest):
            try:
                manifest = self.manifest(listed)
                is_new = manifest["subject"]["digest"] == digest and manifest not in found
            except (TrustError, ValueError, KeyError, TypeError):
                # Anybody who may write there may list anything; only what verifies counts.
                continue
            if is_new:
                found.append(manifest)
        return found

    def withdraw(self, digest: str, is_unused: Callable[[], bool] = lambda: True) -> bool:
        """Remove a manifest from the registry, with its tags; nothing about it is relied on any more.

        Args:
            digest: The manifest.
            is_unused: Asked while nobody can note a use: a push may have come to rely on it.

        Returns:
            Whether it is not there any more.

        Raises:
            RefusedError: The registry does not let us.
        """
        with self.using(alone=True):
            if not is_unused():
                return False
            self.registry.delete_manifest(digest)
        self._forget(digest)
        return True

    @property
    def _host(self) -> str:
        return self.reference.partition("/")[0]

    def _push(self, digest: str, tags: Sequence[str]) -> None:
        asked = [tag for tag in tags if not self._is_known(f"{tag}={digest}")]
        # What was here before probably has its names; what is new, or was seen nowhere, is not asked about in vain.
        is_new = self._is_known(f"brought {digest}") or not self._was_seen(digest)
        missing = [tag for tag in asked if is_new or self.registry.resolve(tag) != digest]
        was_brought = self._bring(digest, is_tagged=len(missing) < len(asked))
        if missing:
            self._see_to_referrers(digest)
            if not was_brought and not self._is_known(f"brought {digest}") and len(missing) == len(asked):
                missing = [tag for tag in missing if self.registry.resolve(tag) != digest]
        for tag in missing:
            media_type = str(self.manifest(digest).get("mediaType", MANIFEST))
            self.registry.put_manifest(self.get(digest), tag, media_type)
        for tag in asked:
            self._know_tag(tag, digest)

    def _bring(self, digest: str, *, is_tagged: bool = False, parent: str = "") -> bool:
        """See that a manifest is there with all that it names; whether it was put there now."""
        if self._is_known(digest):
            return False
        manifest = self.manifest(digest)
        subject = (manifest.get("subject") or {}).get("digest", "")
        blobs = _blobs(manifest)
        # A manifest that is there has all of its blobs there, but perhaps nobody lists it as a referrer yet.
        if not subject and (is_tagged or (self._was_seen(digest) and self.registry.has_manifest(digest))):
            self._know(digest)
            return False
        # The config is an image's own: who has it perhaps has all of it, who has not lacks the manifest as well.
        is_there = not self._upload(blobs[0]) if blobs else True
        if not subject and is_there and not self._was_seen(digest) and self.registry.has_manifest(digest):
            self._note(digest, blobs)
            return False
        for child in manifest.get("manifests", ()):
            if not self._bring(child["digest"], parent=digest) and not self.registry.lists_referrers(digest):
                # It was there, held by another index or by a name of its own, which may go before this one.
                self._hold(child["digest"], digest)
        data = self.get(digest)

        def upload() -> None:
            with ThreadPoolExecutor(PUSH_THREADS) as threads:
                list(threads.map(self._upload, blobs[1:]))

        if subject:
            self.registry.attach(subject, data, upload)
        else:
            upload()
            # What only an index lists has to have a name where clean-ups remove what has none.
            place = held_tag(parent, digest) if parent and not self.registry.lists_referrers(parent) else digest
            self.registry.put_manifest(data, place, str(manifest.get("mediaType", MANIFEST)))
        self._know(f"brought {digest}")
        self._note(digest, blobs)
        return True

    def _hold(self, digest: str, parent: str) -> None:
        media_type = str(self.manifest(digest).get("mediaType", MANIFEST))
        self.registry.put_manifest(self.get(digest), held_tag(parent, digest), media_type)

    def _note(self, digest: str, blobs: Sequence[str]) -> None:
        self._know(digest)
        self._seen.note(self.reference, (digest, *blobs))

    def _upload(self, digest: str) -> bool:
        """See that a blob is in the registry; whether it had to be sent."""
        places = self._seen.places(self._host, digest)
        source = "" if not places or self.registry.access.path in places else places[0]
        if self.is_here(digest):
            return self.registry.put_blob(self.place(digest), digest, source=source)
        if not (self.registry.has_blob(digest) or (source and self.registry.mount_blob(digest, source))):
            raise self._missing(digest)
        return False

    def _see_to_referrers(self, digest: str) -> None:
        """Attach what refers to a manifest, is here and is not listed there: another writer may have come between."""
        ours = [item for item in self._attached(digest) if not self._is_known(f"listed {item}")]
        listed = self._listed_there(digest) if ours else ()
        for item in ours:
            if item not in listed:
                self._forget(item)
                self._bring(item)
            self._know(f"listed {item}")

    def _attached(self, digest: str) -> list[str]:
        """Manifests in this folder whose subject is `digest`."""
        entries = [item["digest"] for item in self.listed() if item.get("subject") == digest and self.is_here(item["digest"])]
        return [item for item in entries if (self.manifest(item).get("subject") or {}).get("digest") == digest]

    def _listed_there(self, digest: str) -> list[str]:
        return [str(item.get("digest", "")) for item in self.registry.referrers(digest)]

    def _mended(self, digest: str) -> tuple[list[str], list[str]]:
        """What of one manifest was put back, and what is lost."""
        is_there = self.registry.has_manifest(digest)
        if not is_there and not self.is_here(digest):
            return [], [digest]
        manifest = self.manifest(digest)
        gone = [blob for blob in _blobs(manifest) if not self.registry.has_blob(blob)]
        if gone or not is_there:
            self._forget(digest)
        lost = [blob for blob in gone if not self.is_here(blob)]
        put_back = [blob for blob in gone if blob not in lost]
        for blob in put_back:
            self._upload(blob)
        if lost:
            return put_back, lost
        for child in manifest.get("manifests", ()):
            found = self._mended(child["digest"])
            put_back, lost = put_back + found[0], lost + found[1]
        if not is_there and not lost:
            self._bring(digest)
            put_back.append(digest)
        return put_back, lost

    def _was_seen(self, digest: str) -> bool:
        return self.registry.access.path in self._seen.places(self._host, digest)

    def _forget(self, digest: str) -> None:
        """Rely on nothing about a manifest in the registry, or what it names."""
        manifest = self.manifest(digest) if self.is_here(digest) else {}
        children = [item["digest"] for item in manifest.get("manifests", ())]
        for child in children:
            self._forget(child)
        self.registry.forget()
        self._seen.forget(self.reference, (digest, *_blobs(manifest)))
        with self._guard:
            self._known = {key: until for key, until in self._known.items() if digest not in key}

    def _touched(self, digest: str) -> tuple[int, ...]:
        return super()._touched(digest) if self.is_here(digest) else (0, 0)

    def _missing(self, digest: str) -> TrustError:
        return TrustError(f"blob {digest}: expected it here or in {self.reference}, it is missing", reason="BlobMissing")

    def _mended_here(self, digest: str, read: Callable[[str], Read]) -> Read:
        try:
            return read(digest)
        except TrustError as error:
            if error.reason != "BlobChanged":
                raise
            try:
                self._fetch(digest)
            except (TrustError, OutsideError):
                # What is here may be all that there is: it stays as it is, and is not used.
                raise error from None
            return read(digest)

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

    def _is_known(self, key: str) -> bool:
        with self._guard:
            return self._known.get(key, 0.0) > self._seconds()

    def _know(self, key: str) -> None:
        with self._guard:
            now = self._seconds()
            self._known = {other: until for other, until in self._known.items() if until > now} | {key: now + KNOWN_SECONDS}

    def _know_tag(self, tag: str, digest: str) -> None:
        with self._guard:
            self._known = {key: until for key, until in self._known.items() if not key.startswith(f"{tag}=")}
        self._know(f"{tag}={digest}")


def _blobs(manifest: Mapping[str, Any]) -> list[str]:
    """What a manifest names that is no manifest: its config, then its layers, each once."""
    named: Iterable[Mapping[str, Any]] = (*([manifest["config"]] if "config" in manifest else []), *manifest.get("layers", ()))
    return list(dict.fromkeys(str(item["digest"]) for item in named))
