"""A task pinned to its inputs: a job that ends, or a server that stays, as an engine is asked for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from policies.terms.build import NO_RULES, BuildRules, BuildSecret
from policies.terms.digest import Digest
from policies.terms.source import Elsewhere, Submodule

Kept = Literal["model", "data"]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """A program that runs once and ends. Its name is derived from its inputs: starting it twice starts it once."""

    name: str
    """At most 63 characters of `[a-z0-9-]`."""
    axon: str
    task: str
    image: Digest
    is_laid_by_us: bool = True
    """Whether the image holds Myelin's own programs, as all do but those of Dockerfiles."""
    args: tuple[str, ...] = ()
    """Appended to the image's entrypoint."""
    env: Mapping[str, str] = field(default_factory=dict)
    """The environment contract except for the paths, which only the engine knows."""
    data: tuple[Digest, ...] = ()
    """Data artifacts laid over each other, later ones win, in the folder that `DATA_PATH` names."""
    earlier_data: Mapping[str, Digest] = field(default_factory=dict)
    """Task name -> its data, each in a folder that `DATA_PATH_<TaskName>` names."""
    model: Digest | None = None
    """A model artifact to start from, in the folder that `MODEL_PATH` names."""
    keeps: tuple[Kept, ...] = ()
    """Which of its folders become artifacts when it succeeded."""
    event: Mapping[str, Any] | None = None
    """The event that made it due, as a JSON file that `EVENT_PATH` names."""
    timeout_seconds: float | None = None
    resources: Mapping[str, Any] = field(default_factory=dict)
    """Requests and limits as Kubernetes has them; where it runs has no say in what comes of it."""
    node_selector: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobState:
    """What one look at a job found."""

    name: str
    phase: Literal["running", "succeeded", "failed"]
    exit_code: int | None = None
    reason: str = ""
    """`ExitCode`, `TimedOut`, `Lost`, `CannotStart`, `OutOfMemory`, `Evicted` or `Stopped` when it failed. Why it waits while
    it runs: `ImagePull`, `Unschedulable`, `Refused`, `CannotStart`; mostly empty."""
    message: str = ""
    """One line for a person, with the last line that the program printed where that helps."""
    started_at: datetime | None = None
    ended_at: datetime | None = None
    is_freed: bool = False
    """Whether its folders are gone; log and report are still there."""
    report: tuple[Mapping[str, Any], ...] = ()
    """Lines that the program reported, in order; see `runtime/myelin/report.py`."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Those of its spec."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSpec:
    """A program that stays up. A server of the same name with other content replaces the old one."""

    name: str
    """At most 63 characters of `[a-z0-9-]`."""
    image: Digest
    command: tuple[str, ...] = ()
    """Instead of the image's entrypoint, e.g. `("python", "-m", "myelin.proxy")`; empty: the image's own."""
    env: Mapping[str, str] = field(default_factory=dict)
    data: tuple[Digest, ...] = ()
    model: Digest | None = None
    config: Mapping[str, Any] | None = None
    """A JSON document whose path `MYELIN_CONFIG` names. A change of it alone never restarts the server."""
    port: int | None = None
    """Port wanted on the engine's address; None: any, kept while the name lives. The server finds it in `PORT`."""
    health_path: str = "/health"
    metrics_path: str = "/metrics"
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerState:
    """What one look at a server found."""

    name: str
    phase: Literal["starting", "ready", "failed"]
    address: str
    """`127.0.0.1:8080` or `name.namespace.svc:8080`, without scheme."""
    image: Digest
    restarts: int = 0
    reason: str = ""
    """`PortInUse`, `ExitCode`, `NotHealthy`, `CannotStart` …"""
    message: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSpec:
    """What an image is built from. Equal specs give equal bytes."""

    repository: str
    """Repository name within the registry, `[a-z0-9._/-]`."""
    commit: str
    """Commit of the watched repository whose files go in."""
    folder: str
    """Folder of that commit, no leading or trailing slash; empty: the whole tree."""
    tree: str
    """Git tree id of that folder, 40 hexadecimal characters."""
    base: str = "host"
    builder: str = "python"
    """`python` (wheels and source) or `dockerfile`."""
    dockerfile: str = ""
    event_set: str = ""
    """For the tag and provenance; no part of the identity."""
    source: Elsewhere | None = None
    """The other repository that folder and tree are of; None: the watched one. No part of the identity: the tree is."""
    source_commit: str = ""
    """Commit of that other repository, 40 hexadecimal characters."""
    largest_bytes: int = 100 << 20
    """Files of the source above it are refused before they are read."""
    submodules: tuple[Submodule, ...] = ()
    """Submodules that the folder holds or lies in, of the watched repository. No part of the identity: their commits are
    in the tree."""
    reads_submodules: bool = False
    """Whether those of the other repository are read too."""
    rules: BuildRules = NO_RULES
    builder_image: str = ""
    """What the manifest names as the earlier Myelin's builder image; empty for none."""
    network: bool = False
    """Whether steps of a Dockerfile may reach the network."""
    secrets: tuple[BuildSecret, ...] = ()
    checks_exists: bool = False
    """Whether an image of that repository and commit that is there already is taken as it is, if it is ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageState:
    """What one look at an image found."""

    phase: Literal["building", "built", "failed"]
    digest: Digest | None = None
    reason: str = ""
    message: str = ""
    """Progress while building; the fault when failed."""
    is_passing: bool = False
    """Whether what failed may work another time: somebody did not answer, or the disk was full."""
    materials: Mapping[str, Any] = field(default_factory=dict)
    """What went in: base, lock digest, wheels; goes into the ledger and the provenance."""
