"""What every way to build an image answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from policies.terms.digest import Digest
from policies.terms.task import ImageSpec

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """An image in the store, not signed yet."""

    digest: Digest
    materials: Mapping[str, Any]
    """What went in, for the ledger."""
    provenance: Mapping[str, Any]
    """The same as a SLSA v1 predicate, without the run's times."""


class Driver(Protocol):
    """One way to build."""

    def identity(self, spec: ImageSpec) -> Digest:
        """What the image is named by here: equal names, equal images."""
        ...

    def build(self, spec: ImageSpec, progress: Progress) -> Built:
        """Build an image into the store.

        Raises:
            DesiredStateError: It cannot be built as it is asked for.
            TrustError: Something that goes in is not what its digest says.
            OutsideError: Somebody did not answer, or the disk is full.
        """
        ...

    def materials(self, provenance: Mapping[str, Any], spec: ImageSpec) -> Mapping[str, Any] | None:
        """What went into an image, out of its provenance; None: it is not what would be built of `spec` here.

        Raises:
            ValueError: It is the provenance of something else; also KeyError and TypeError.
        """
        ...
