"""How images are built: what a project says of all of them, and what one build says of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from policies.terms.digest import Digest

Reproducibility = Literal["off", "sampled", "required"]
"""Whether an image is built a second time, elsewhere and later, and compared: never, now and then, or each one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseSigner:
    """Somebody whose signature lets a base image be built on."""

    name: str
    key: str = ""
    """Public key, PEM; empty for an identity."""
    identity: str = ""
    issuer: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSecret:
    """A secret that one build may read, mounted for its steps and never copied."""

    name: str
    """Name of the Secret in the project's namespace."""
    path: str
    """Where it is mounted, absolute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRules:
    """What a project says of how its images are built."""

    precompile: bool | None = None
    """Whether a layer of compiled modules goes in; None: into images that serve."""
    platforms: tuple[str, ...] = ()
    """`linux/amd64`, sorted; empty: the controller's own kind of machine alone."""
    stamps: bool = False
    """Whether commit and its time are written into the image, which then is another one for each commit."""
    reproducibility: Reproducibility = "off"
    requires_hashes: bool = False
    """Whether requirements that are not locked are refused; else they are resolved once, and the lock is recorded."""
    builds_wheels: bool = False
    """Whether setup code of source distributions may run."""
    index: str = ""
    """Where wheels come from; empty: what the machine is set up with."""
    memory_bytes: int = 4 << 30
    timeout_seconds: float = 3600.0
    disk_bytes: int = 20 << 30
    """Bounds of one build by Dockerfile."""
    buildkit: str = ""
    """Address of a BuildKit that builds Dockerfiles in buildah's place; empty for none."""
    base_signers: tuple[BaseSigner, ...] = ()
    """One of them must have signed a base image; empty: its digest is enough."""


NO_RULES = BuildRules()
"""What a project that says nothing says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedLock:
    """What the ledger says of a lock that was resolved while an image was built, as the folder had none that fits."""

    axon: str
    folder: str
    """Source folder, from the root of the repository; empty for the root."""
    tree: str
    """Git tree id of the folder that it was resolved for."""
    digest: Digest
    """Of its text, which the image's provenance has."""
    image: Digest
