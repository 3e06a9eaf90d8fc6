"""Desired state: what one trusted revision asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from policies.committed import Committed
from policies.errors import Fault
from policies.terms.axon import Axon
from policies.terms.project import Project
from policies.terms.release import Release
from policies.terms.revision import Revision, TrustedKey
from policies.terms.source import Submodule
from policies.terms.version import Version


@dataclass(frozen=True, slots=True, kw_only=True)
class DesiredAxon:
    """An axon that can be read, with the names of what it is built from."""

    name: str
    file: str
    document: Axon
    digest: str
    trees: Mapping[str, str]
    """Source folder -> Git tree id, or what names a folder of a submodule; empty where the folder is missing."""
    refused: Mapping[str, tuple[Fault, ...]] = field(default_factory=dict)
    """Source folder -> its files that nobody may read; without those whose files all may be."""
    submodules: Mapping[str, tuple[Submodule, ...]] = field(default_factory=dict)
    """Source folder -> submodules that it holds or lies in, where the project asks for them; without those that have none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DesiredState:
    """Everything a pass works towards."""

    revision: Revision
    """The newest trusted commit."""
    tip: str
    """The branch's tip; differs from the revision's commit while it is not trusted."""
    project: Project
    axons: Mapping[str, DesiredAxon] = field(default_factory=dict)
    releases: Mapping[tuple[str, str], Release] = field(default_factory=dict)
    """(axon, deployer) -> its release."""
    release_files: Mapping[tuple[str, str], tuple[str, bytes]] = field(default_factory=dict)
    """(axon, deployer) -> path and text of its release."""
    versions: Mapping[str, Version] = field(default_factory=dict)
    """Version id -> its record."""
    faults: tuple[Fault, ...] = ()
    """All that is wrong with the documents of this revision."""
    warnings: tuple[Fault, ...] = ()
    """Mistakes that do not stop anything."""
    trust_fault: str = ""
    """Why the tip is not trusted; empty when it is."""
    unsigned: int = 0
    """Unsigned commits that were accepted because the pin allows it."""
    signers: tuple[TrustedKey, ...] = ()
    """Whom the revision trusts."""
    committed: Committed = field(default_factory=Committed)
    """What the controller has committed once: what is not there any more, somebody took away."""

    @property
    def is_trusted(self) -> bool:
        """Whether the tip itself is the revision worked from."""
        return not self.trust_fault

    def unread_release(self, axon: str) -> Fault | None:
        """What is wrong with a file that may be a release of this axon and cannot be read."""
        for fault in self.faults:
            folder, *rest = fault.file.split("/")
            if folder == "releases" and (len(rest) == 1 or rest[0] == axon):
                return fault
        return None

    def unread_versions(self, axon: str) -> frozenset[str]:
        """Versions of an axon whose records are there and cannot be read, or are not as the controller signed them."""
        parts = [fault.file.split("/") for fault in self.faults]
        return frozenset(item[-1].rsplit(".", 1)[0] for item in parts if item[0] == "versions" and axon in item[1:-1])
