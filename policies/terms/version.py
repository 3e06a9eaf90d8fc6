"""A version: what a deployer step makes; `versions/<axon>/<version>.yaml` is its immutable, signed record."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from policies.terms.document_types import Instant


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class VersionMetadata(_Document):
    """Name and owner."""

    name: str
    axon: str


class BackendRecord(_Document):
    """One backend of one model: an image that serves a model."""

    model: str
    """Logical model, the node's name in the graph."""
    backend: str
    image: str
    """Digest of the serving image."""
    artifact: str = ""
    """Digest of the model artifact; empty when the backend loads none."""
    task_run: str = Field(default="", alias="taskRun")
    """The training that made the artifact."""
    trial: str = ""
    """The winning trial of a tuning run."""
    weight: int = 100
    """Percent of the model's traffic, 0-100."""
    replicas: int = 1
    task: str = ""
    """The deploy task that the image was built for."""
    env: dict[str, str] = Field(default_factory=dict)
    """Environment of the server, from the deploy task. Never a secret."""


class VersionSpec(_Document):
    """Everything that is needed to serve this version again, and to say where it came from."""

    deployer: str
    commit: str
    axon_digest: str = Field(alias="axonDigest")
    event_set: str = Field(alias="eventSet")
    events: tuple[str, ...]
    run: str
    backends: tuple[BackendRecord, ...]
    routes: tuple[dict[str, Any], ...]
    """The deployer's routes as the manifest had them."""
    data: tuple[str, ...] = ()
    """Digests of the data that it was trained on."""
    parameters: dict[str, Any] = Field(default_factory=dict)
    metrics: dict[str, float] = Field(default_factory=dict)
    traffic: dict[str, int] = Field(default_factory=dict)
    """What the release said once this version was in: version -> percent."""
    shadow: str = ""
    """Who got mirrored traffic then; empty for nobody."""
    parent: str = ""
    """The version that served before it; empty for the first."""
    created_at: Instant = Field(alias="createdAt")
    previous: str = ""
    """Digest of the record before it in this axon; empty for the first."""
    verdicts: tuple[str, ...] = ()

    @model_serializer(mode="wrap")
    def _without_nobody(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Records that were signed before there was a `shadow` are what they were."""
        value: dict[str, Any] = dump(self)
        if not value.get("shadow"):
            value.pop("shadow", None)
        return value


class Version(_Document):
    """kind: Version."""

    api_version: Literal["myelin.io/v1alpha1", "myelinproj.io/v1alpha1"] = Field(default="myelin.io/v1alpha1", alias="apiVersion")
    kind: Literal["Version"] = "Version"
    metadata: VersionMetadata
    spec: VersionSpec
    signature: str = ""
    """Base64, by the controller's key, over the digest of the canonical form of everything else."""
