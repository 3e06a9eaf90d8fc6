"""A registry in memory: repositories of one host, with the methods of `Registry` and no HTTP."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from controller.adapters.oci.access import Access
from controller.adapters.oci.layout import MANIFEST
from controller.adapters.oci.references import (
    checked_digest,
    checked_reference,
    held_tag,
    index_entry,
    index_of,
    index_tag,
    listed,
)
from controller.adapters.oci.registry import BlobsUnknownError
from policies.errors import RefusedError, SilentError, TrustError
from policies.terms.digest import Digest, digest_of, is_digest


@dataclass(slots=True)
class Repository:
    """What one repository holds."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, bytes] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Host:
    """A registry: it outlives whoever talks to it."""

    name: str = "registry.test:5000"
    repositories: dict[str, Repository] = field(default_factory=dict)
    lists_referrers: bool = False
    """Whether it has the referrers API."""
    needs: tuple[str, str] | None = None
    """User and password of the only one that is let in."""
    is_silent: bool = False
    deletes: bool = True
    """Whether it lets anybody remove anything."""
    requests: int = 0
    received: int = 0
    """Bytes of blobs that were sent to it."""


class FakeRegistry:
    """One repository of a host, as `Registry` shows it."""

    def __init__(self, host: Host, access: Access) -> None:
        self.access = access
        self._host = host
        self._there: set[str] = set()

    @property
    def repository(self) -> str:
        return self.access.repository

    def close(self) -> None:
        pass

    def has_blob(self, digest: str) -> bool:
        found = checked_digest(digest) in self._ask().blobs
        (self._there.add if found else self._there.discard)(digest)
        return found

    def put_blob(self, path: Path, digest: str, *, source: str = "") -> bool:
        if digest in self._there or self.has_blob(digest) or (source and self.mount_blob(digest, source)):
            return False
        data = path.read_bytes()
        if digest_of(data) != digest:
            raise TrustError(f"blob {digest}: expected these bytes, got others", reason="BlobChanged")
        self._ask().blobs[digest] = data
        self._host.received += len(data)
        self._there.add(digest)
        return True

    def forget(self) -> None:
        self._there.clear()

    def lists_referrers(self, subject: str) -> bool:
        checked_digest(subject)
        return self._host.lists_referrers

    def mount_blob(self, digest: str, source: str) -> bool:
        repository = self._ask()
        data = self._host.repositories.get(source, Repository()).blobs.get(checked_digest(digest))
        if data is None:
            return False
        repository.blobs[digest] = data
        self._there.add(digest)
        return True

    def fetch_blob(self, digest: str, out: IO[bytes]) -> None:
        data = self._ask().blobs.get(checked_digest(digest))
        if data is None:
            raise TrustError(f"blob {digest}: expected it in {self.repository}, it is missing", reason="BlobMissing")
        out.write(data)
        _check(digest, data)

    def manifest(self, reference: str) -> bytes | None:
        repository = self._ask()
        checked_reference(reference)
        data = repository.manifests.get(repository.tags.get(reference, reference))
        if data is not None and is_digest(reference):
            _check(reference, data)
        return data

    def put_manifest(self, data: bytes, reference: str, media_type: str = MANIFEST) -> Digest:
        self._keep(data, reference)
        return digest_of(data)

    def has_manifest(self, reference: str) -> bool:
        return self.resolve(reference) is not None

    def resolve(self, reference: str) -> Digest | None:
        repository = self._ask()
        found = repository.tags.get(checked_reference(reference), reference)
        return Digest(found) if found in repository.manifests else None

    def tags(self) -> tuple[str, ...]:
        return tuple(sorted(self._ask().tags))

    def delete_manifest(self, digest: str) -> bool:
        repository = self._ask()
        if not self._host.deletes:
            text = f"registry {self.repository}: manifest {digest}: expected it to be removed, the registry lets nobody"
            raise RefusedError(text, reason="RegistryRefused")
        was_there = repository.manifests.pop(checked_digest(digest), None) is not None
        for tag in [tag for tag, named in repository.tags.items() if named == digest]:
            del repository.tags[tag]
        return was_there

    def referrers(self, digest: str) -> list[dict[str, Any]]:
        repository = self._ask()
        if self._host.lists_referrers:
            found = {item: json.loads(data) for item, data in repository.manifests.items()}
            return [
                index_entry(repository.manifests[item])
                for item, value in found.items()
                if _subject(value) == checked_digest(digest)
            ]
        return listed(self.manifest(index_tag(digest)))

    def attach(self, subject: str, manifest: bytes, first: Callable[[], None] = lambda: None) -> None:
        first()
        digest = digest_of(manifest)
        self._keep(manifest, digest if self._host.lists_referrers else held_tag(subject, digest))
        there = self.referrers(subject)
        if not self._host.lists_referrers and digest not in [item["digest"] for item in there]:
            left = [item for item in there if item["digest"] in self._ask().manifests]
            self._keep(index_of([*left, index_entry(manifest)]), index_tag(subject))

    def _keep(self, data: bytes, reference: str) -> None:
        repository = self._ask()
        digest, value = digest_of(data), json.loads(data)
        if is_digest(checked_reference(reference)):
            _check(reference, data)
        named = [item["digest"] for item in (*([value["config"]] if "config" in value else []), *value.get("layers", ()))]
        children = [item["digest"] for item in value.get("manifests", ())]
        if not (set(named) <= set(repository.blobs) and set(children) <= set(repository.manifests)):
            self._there.clear()
            text = f"registry {self.repository}: manifest {reference}: blob unknown"
            raise BlobsUnknownError(text, reason="RegistryRefused")
        repository.manifests[digest] = data
        if reference != digest:
            repository.tags[reference] = digest

    def _ask(self) -> Repository:
        self._host.requests += 1
        if self._host.is_silent:
            raise SilentError(f"registry {self.repository}: expected an answer, got none", reason="RegistrySilent")
        if self._host.needs not in (None, (self.access.username, self.access.password.reveal())):
            raise RefusedError(f"registry {self.repository}: got 401; look at {self.access.origin}", reason="RegistryRefused")
        return self._host.repositories.setdefault(self.access.path, Repository())


def _subject(manifest: dict[str, Any]) -> str:
    return str((manifest.get("subject") or {}).get("digest", ""))


def _check(digest: str, data: bytes) -> None:
    if digest_of(data) != digest:
        raise TrustError(f"blob {digest}: expected these bytes, got {digest_of(data)}", reason="BlobChanged")
