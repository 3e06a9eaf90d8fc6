"""One repository of an OCI registry over HTTP (OCI distribution 1.1): what can be asked of it.

It checks every digest that it is asked by, and never decides whom to trust. Secrets are in no message.
"""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import urljoin

from controller.adapters.oci.access import Access, access_from_docker_config
from controller.adapters.oci.fetched import ANSWERS, Fetched
from controller.adapters.oci.layout import INDEX, MANIFEST
from controller.adapters.oci.one_each import OneEach
from controller.adapters.oci.references import (
    checked_digest,
    checked_reference,
    held_tag,
    index_entry,
    index_of,
    index_tag,
    is_tag,
    listed,
    tags_in,
)
from controller.adapters.oci.uploads import Uploads
from controller.adapters.oci.wire import LARGEST_ANSWER_BYTES, Answer, Wire, said_in
from policies.errors import RefusedError, SilentError, TrustError
from policies.terms.digest import Digest, digest_of, is_digest

DOCKER_MANIFESTS = (
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
NO_REFERRERS = (400, 404, 405, 406)
"""What servers without the referrers API answer to it."""
MOST_PAGES = 50
TAGS_A_PAGE = 1000
MOST_TAGS = 1_000_000
MOST_WRITERS = 5
"""How often another writer may come between before we say that nobody keeps what we list."""
MOMENT_SECONDS = 0.25
"""How long one who is about to write an index waits for others who are about to have something to list there."""
RELIED_SECONDS = 3600.0
"""How long we rely on a blob that we saw there. Registries refuse a manifest whose blobs were removed, and then we look again."""
MOST_RELIED = 10_000
__all__ = ["Access", "BlobsUnknownError", "Registry", "access_from_docker_config", "is_tag"]
_ACCEPT = {"Accept": ", ".join((MANIFEST, INDEX, *DOCKER_MANIFESTS))}


class BlobsUnknownError(RefusedError):
    """The registry has not all that a manifest names."""


class Registry:
    """One repository of a registry. Threads may share it.

    Args:
        access: Where it is, and as whom to go there.
        connect_seconds: How long to wait for a connection.
        read_seconds: How long to wait for each piece of an answer.
        tries: How often to ask somebody who does not answer, or asks us to come back. At least 1.
        sleep: Waits between tries.
        seconds: A clock that only goes forward.

    Raises:
        DesiredStateError: The access has a ca that is no certificate.

    Every method may raise `SilentError` (no answer, or one that asks to come back, after all tries) and `RefusedError`
    (reason `RegistryRefused`: not let in, or a request that it does not take).
    """

    def __init__(
        self,
        access: Access,
        *,
        connect_seconds: float = 10.0,
        read_seconds: float = 60.0,
        tries: int = 4,
        sleep: Callable[[float], None] = time.sleep,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self.access = access
        self._wire = Wire(access, connect_seconds=connect_seconds, read_seconds=read_seconds, tries=tries, sleep=sleep)
        self._uploads = Uploads(self._wire)
        self._seconds = seconds
        self._guard = threading.Lock()
        self._attaching = threading.Lock()
        self._waiting: dict[str, tuple[str, dict[str, Any]]] = {}
        """Digest of what threads are about to list -> the tag of its index, and its entry there."""
        self._coming: Counter[str] = Counter()
        """Tag of an index -> how many threads bring a manifest that it is to list."""
        self._arrived = threading.Condition()
        self._sending = OneEach()
        self._there: dict[str, float] = {}
        self._lists: tuple[bool, float] | None = None
        """Whether it has the referrers API, and until when we rely on that."""

    @property
    def repository(self) -> str:
        """`host[:port]/path`."""
        return self.access.repository

    def close(self) -> None:
        """End all connections."""
        self._wire.close()

    def has_blob(self, digest: str) -> bool:
        """Whether a blob is in the repository, as it says now."""
        answer = self._wire.ask("HEAD", f"/blobs/{checked_digest(digest)}", f"blob {digest}", (200, 404))
        return self._saw(digest, is_there=answer.status == 200)

    def put_blob(self, path: Path, digest: str, *, source: str = "") -> bool:
        """Bring a file into the repository, unless it is there; it is never held in memory.

        Args:
            path: The file.
            digest: The blob.
            source: Path of another repository of the same host that may have it, and then it is taken over from there.

        Returns:
            Whether it had to be sent.

        Raises:
            TrustError: The file is not what its digest says.
        """
        with self._sending.alone(checked_digest(digest)):
            with self._guard:
                if self._there.get(digest, 0.0) > self._seconds():
                    return False
            was_sent = self._uploads.send(path, digest, source)
            self._saw(digest, is_there=True)
        return was_sent

    def mount_blob(self, digest: str, source: str) -> bool:
        """Take a blob over from another repository of the same host, without sending it.

        Args:
            digest: The blob.
            source: The other repository's path on the host.

        Returns:
            Whether that was possible.
        """
        return self._uploads.take_over(digest, source) and self._saw(digest, is_there=True)

    def forget(self) -> None:
        """Rely on nothing that we saw there before: somebody removed something."""
        with self._guard:
            self._there.clear()

    def fetch_blob(self, digest: str, out: IO[bytes]) -> None:
        """Write a blob to `out`, an empty file that can seek; after an error, what is in it is worth nothing.

        A line that breaks is gone on with where it broke, if the registry can do so.

        Raises:
            TrustError: It is missing or not what its digest says.
        """
        got = Fetched(out)
        for _ in range(2):
            is_there = self._wire.arriving(f"/blobs/{checked_digest(digest)}", f"blob {digest}", ANSWERS, got.take, got.headers)
            if not is_there:
                self._saw(digest, is_there=False)
                raise TrustError(f"blob {digest}: expected it in {self.repository}, it is missing", reason="BlobMissing")
            if got.digest == digest:
                return
            if not got.is_patched:
                break
            # Perhaps the parts are of two answers that do not fit.
            got.begin()
        raise TrustError(f"blob {digest}: expected these bytes from {self.repository}, got {got.digest}", reason="BlobChanged")

    def manifest(self, reference: str) -> bytes | None:
        """A manifest or index by tag or digest; None when there is none.

        Raises:
            TrustError: It is not what its digest says, or of no sensible size.
        """
        answer = self._manifest("GET", reference)
        if answer.status == 404:
            return None
        if len(answer.body) > LARGEST_ANSWER_BYTES:
            text = f"manifest {reference}: expected at most {LARGEST_ANSWER_BYTES} bytes from {self.repository}, got more"
            raise TrustError(text, reason="ManifestTooBig")
        if is_digest(reference) and digest_of(answer.body) != reference:
            got = digest_of(answer.body)
            text = f"manifest {reference}: expected these bytes from {self.repository}, got {got}"
            raise TrustError(text, reason="BlobChanged")
        return answer.body

    def put_manifest(self, data: bytes, reference: str, media_type: str = MANIFEST) -> Digest:
        """Keep a manifest or index whose blobs are there, under a tag or its digest.

        Raises:
            TrustError: `reference` is the digest of something else.
            BlobsUnknownError: Something that it names is not there.
        """
        self._put_manifest(data, reference, media_type)
        return digest_of(data)

    def has_manifest(self, reference: str) -> bool:
        """Whether there is a manifest of this tag or digest."""
        return self.resolve(reference) is not None

    def resolve(self, reference: str) -> Digest | None:
        """The digest of the manifest that a tag names, or of a digest if it is there; None when there is none."""
        answer = self._manifest("HEAD", reference)
        if answer.status == 404:
            return None
        said = answer.headers.get("docker-content-digest", "")
        if is_digest(said):
            return Digest(said)
        data = self.manifest(reference)
        return None if data is None else digest_of(data)

    def tags(self) -> tuple[str, ...]:
        """All tags of the repository, as it lists them."""
        found: list[str] = []
        url = f"/tags/list?n={TAGS_A_PAGE}"
        while True:
            answer = self._wire.ask("GET", url, "tags", (200, 404))
            found += tags_in(answer.body) if answer.status == 200 else ()
            further = re.match(r'\s*<([^>]+)>\s*;\s*rel="?next"?', answer.headers.get("link", ""))
            if not further or len(found) > MOST_TAGS:
                return tuple(found)
            url = self._wire.nearby(urljoin(self._wire.url, further[1]))

    def delete_manifest(self, digest: str) -> bool:
        """Remove a manifest, with the tags that name it; its blobs stay until the registry is cleaned up by its own means.

        Returns:
            Whether it was there.

        Raises:
            RefusedError: The registry lets nobody remove anything, or not us.
        """
        what = f"manifest {digest}"
        answer = self._wire.ask("DELETE", f"/manifests/{checked_digest(digest)}", what, (200, 202, 204, 404, 405))
        if answer.status == 405:
            text = f"{what}: expected it to be removed, the registry lets nobody remove anything; turn deletion on there"
            raise self._wire.refused(text)
        return answer.status != 404

    def referrers(self, digest: str) -> list[dict[str, Any]]:
        """Descriptors of the manifests whose subject is `digest`, as the registry lists them: nothing here is proved."""
        found: list[dict[str, Any]] = []
        url = f"/referrers/{checked_digest(digest)}"
        for _ in range(MOST_PAGES if self._lists_them() is not False else 0):
            answer = self._wire.ask("GET", url, f"referrers of {digest}", (200, *NO_REFERRERS))
            if answer.status != 200 or INDEX not in answer.headers.get("content-type", ""):
                self._learn(lists_them=False)
                break
            self._learn(lists_them=True)
            found += listed(answer.body)
            further = re.match(r'\s*<([^>]+)>\s*;\s*rel="?next"?', answer.headers.get("link", ""))
            if not further:
                return found
            url = self._wire.nearby(urljoin(self._wire.url, further[1]))
        return found if self._lists_them() else listed(self.manifest(index_tag(digest)))

    def attach(self, subject: str, manifest: bytes, first: Callable[[], None] = lambda: None) -> None:
        """Keep a manifest that has a subject, so that `referrers` lists it on servers with that API and without.

        Without it there is an index under the tag `sha256-<hex>`, which is read, changed and written until it has what we
        wrote: another writer may come between. Such a server's clean-up removes what has no tag, though an index lists it, so
        the manifest gets one.

        Args:
            subject: What it refers to.
            manifest: Its bytes.
            first: Brings what it names; who writes the index meanwhile waits a moment for it, so that one index lists it all.

        Raises:
            SilentError: Others write all the time.
        """
        entry, tag = index_entry(manifest), index_tag(subject)
        held = held_tag(subject, entry["digest"])
        place = held if self._lists_them() is False else entry["digest"]
        with self._on_its_way(tag):
            first()
            answer = self._put_manifest(manifest, place, entry["mediaType"])
            if answer.headers.get("oci-subject"):
                self._learn(lists_them=True)
                return
            self._learn(lists_them=False)
            if place != held:
                self._put_manifest(manifest, held, entry["mediaType"])
            self._waiting[entry["digest"]] = (tag, entry)
        try:
            with self._attaching:
                with self._arrived:
                    # One index for all that are about to come costs as much as for one.
                    self._arrived.wait_for(lambda: not self._coming[tag], MOMENT_SECONDS)
                for failures in range(1, MOST_WRITERS + 1):
                    there = listed(self.manifest(tag))
                    if any(item["digest"] == entry["digest"] for item in there):
                        return
                    if failures > 1:
                        self._wire.pause(failures - 1)
                        there = listed(self.manifest(tag))
                    known = {item["digest"] for item in there}
                    # What other threads wait to write goes along: they find it there, and ask once.
                    waiting = [item for place, item in list(self._waiting.values()) if place == tag]
                    self._list([*there, *(item for item in waiting if item["digest"] not in known)], tag)
        finally:
            self._waiting.pop(entry["digest"], None)
        text = f"registry {self.repository}: index {tag}: expected our entry to stay, others wrote {MOST_WRITERS} times"
        raise SilentError(text, reason="RegistryBusy")

    @contextmanager
    def _on_its_way(self, tag: str) -> Iterator[None]:
        """While a manifest is brought that an index is to list."""
        with self._arrived:
            self._coming[tag] += 1
        try:
            yield
        finally:
            with self._arrived:
                self._coming -= Counter([tag])
                self._arrived.notify_all()

    def lists_referrers(self, subject: str) -> bool:
        """Whether it has the referrers API; where it has not, whoever cleans it up removes what has no tag."""
        if self._lists_them() is None:
            self.referrers(subject)
        return bool(self._lists_them())

    def _list(self, entries: list[dict[str, Any]], tag: str) -> None:
        """Write the index of what refers to a manifest."""
        try:
            self._put_manifest(index_of(entries), tag, INDEX)
        except RefusedError:
            # An index that names what a clean-up of the registry removed is not taken.
            left = [item for item in entries if self.has_manifest(item["digest"])]
            if left == entries:
                raise
            self._put_manifest(index_of(left), tag, INDEX)

    def _manifest(self, method: str, reference: str) -> Answer:
        url = f"/manifests/{checked_reference(reference)}"
        return self._wire.ask(method, url, f"manifest {reference}", (200, 404), headers=_ACCEPT)

    def _put_manifest(self, data: bytes, reference: str, media_type: str) -> Answer:
        if is_digest(reference) and digest_of(data) != reference:
            raise TrustError(f"manifest {reference}: expected these bytes, got {digest_of(data)}", reason="BlobChanged")
        url, what = f"/manifests/{checked_reference(reference)}", f"manifest {reference}"
        for failures in range(1, self._wire.tries + 1):
            answer = self._wire.ask("PUT", url, what, (201, 400, 404), headers={"Content-Type": media_type}, body=data)
            if "DIGEST_INVALID" not in said_in(answer.body) or failures == self._wire.tries:
                break
            # The bytes are those of the digest, we saw to it. Distribution says so when it reads what it writes at that moment.
            self._wire.pause(failures)
        if answer.status != 201:
            # Perhaps what we took to be there was removed: the next push looks again.
            self.forget()
            self._uploads.is_doubted = True
            refusal = self._wire.refusal(answer, what)
            if "UNKNOWN" in refusal.message:
                raise BlobsUnknownError(refusal.message, reason=refusal.reason)
            raise refusal
        self._uploads.is_doubted = False
        kept = answer.headers.get("docker-content-digest", "")
        if is_digest(kept) and kept != digest_of(data):
            text = f"manifest {reference}: expected {self.repository} to keep these bytes, it kept {kept}"
            raise TrustError(text, reason="BlobChanged")
        return answer

    def _saw(self, digest: str, *, is_there: bool) -> bool:
        now = self._seconds()
        with self._guard:
            if len(self._there) > MOST_RELIED:
                self._there = {other: until for other, until in self._there.items() if until > now}
            if is_there:
                self._there[digest] = now + RELIED_SECONDS
            else:
                self._there.pop(digest, None)
        return is_there

    def _lists_them(self) -> bool | None:
        with self._guard:
            return self._lists[0] if self._lists is not None and self._lists[1] > self._seconds() else None

    def _learn(self, *, lists_them: bool) -> None:
        with self._guard:
            self._lists = (lists_them, self._seconds() + RELIED_SECONDS)
