"""Of two Projects that want the same namespace, repository or registry repository, the older one is followed."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from controller.mirroring import Seen
from controller.projects import read_project
from policies.errors import DesiredStateError
from policies.terms.outcome import Outcome

Key = tuple[str, str]
"""Namespace and name of a Project."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What one Project may not share with others."""

    age: tuple[str, str, str]
    """The older one comes first; of two of the same second, the one whose name does."""
    place: tuple[str, str]
    """Repository and branch."""
    registry: str
    """Empty: none."""
    is_going: bool
    """Whether it is about to go, and so takes nothing."""

    @property
    def key(self) -> Key:
        """Whose it is."""
        return self.age[1], self.age[2]


def claim_of(body: Mapping[str, Any]) -> Claim:
    """What a Project wants for itself alone."""
    meta = body["metadata"]
    return Claim(
        age=(str(meta.get("creationTimestamp", "")), str(meta["namespace"]), str(meta["name"])),
        place=_place(body),
        registry=str((body.get("spec", {}).get("registry") or {}).get("repository", "")),
        is_going="deletionTimestamp" in meta,
    )


def refusals(claims: Sequence[Claim]) -> Mapping[Key, Outcome]:
    """Which Projects may not be followed beside the others, and why; who is refused itself takes nothing."""
    refused: dict[Key, Outcome] = {}
    namespaces: dict[str, Claim] = {}
    places: dict[tuple[str, str], Claim] = {}
    registries: dict[str, Claim] = {}
    for claim in sorted(claims, key=lambda item: item.age):
        namespace, name = claim.key
        found = (
            (namespaces.get(namespace), "NamespaceTaken"),
            (places.get(claim.place), "RepositoryTaken"),
            (registries.get(claim.registry), "RegistryTaken"),
        )
        taken = [(other, reason) for other, reason in found if other is not None]
        if taken:
            other, reason = min(taken, key=lambda item: item[0].age)  # the first of the reasons that name the oldest
            words = f"Project {'/'.join(other.key)} {_WORDS[reason]}"
            refused[claim.key] = Outcome(state="stalled", subject=name, reason=reason, message=words)
        elif not claim.is_going:
            namespaces[namespace] = places[claim.place] = claim
            if claim.registry:
                registries[claim.registry] = claim
    return refused


_WORDS = {
    "NamespaceTaken": "is followed in this namespace already; give this one a namespace of its own, or delete one",
    "RepositoryTaken": "follows this repository and branch already; delete one of them, or follow another branch",
    "RegistryTaken": "keeps its images in this registry repository already; give this Project one of its own",
}


class Rivals:
    """Who is refused among the Projects that were seen, found out anew when one of them changed. Threads share it."""

    def __init__(self, seen: Seen) -> None:
        self._seen = seen
        self._changes = -1
        self._claims: dict[Key, tuple[object, Claim]] = {}
        self._refused: Mapping[Key, Outcome] = {}
        self._guard = threading.Lock()

    def of(self, namespace: str, name: str) -> Outcome | None:
        """Why a Project may not be followed beside the others; None when it may, and when nobody sees it."""
        with self._guard:
            changes = self._seen.changes("Project")
            if changes != self._changes:
                self._claims = dict(map(self._claim, self._seen.all("Project")))
                self._refused, self._changes = refusals([claim for _, claim in self._claims.values()]), changes
            return self._refused.get((namespace, name))

    def _claim(self, body: Mapping[str, Any]) -> tuple[Key, tuple[object, Claim]]:
        """A Project's claim, read anew only when it says something else: reading takes much longer than comparing."""
        meta = body["metadata"]
        told = (body.get("spec"), meta.get("uid"), meta.get("creationTimestamp"), "deletionTimestamp" in meta)
        key = (str(meta["namespace"]), str(meta["name"]))
        known = self._claims.get(key)
        return key, known if known is not None and known[0] == told else (told, claim_of(body))


def shown_url(url: str) -> str:
    """A repository's URL without user, password and query."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}" if parts.scheme and host else url


def _place(body: Mapping[str, Any]) -> tuple[str, str]:
    try:
        spec = read_project(body).spec
    except DesiredStateError:
        return (str(body["metadata"]["uid"]), "")
    url = spec.repository.url if spec.repository is not None else str(body["metadata"]["uid"])
    return (shown_url(url).rstrip("/").removesuffix(".git").lower(), spec.branch)
