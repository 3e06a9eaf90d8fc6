"""A release: which versions serve, with which share; the one file that people and the controller both edit."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from policies.terms.document_types import Instant


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class ReleaseMetadata(_Document):
    """Deployer and axon."""

    name: str
    axon: str


class Share(_Document):
    """A version's part of the traffic."""

    version: str
    share: int = Field(ge=0, le=100)
    """Percent, 0-100."""


class Hold(_Document):
    """A version that is not to be promoted until a commit lifts this."""

    version: str
    reason: str
    alert: str = ""
    """Event id of the alert, when one caused it."""
    since: Instant


class ReleaseSpec(_Document):
    """Shares sum to 100 when there are any."""

    traffic: tuple[Share, ...] = ()
    shadow: str = ""
    holds: tuple[Hold, ...] = ()


class Release(_Document):
    """kind: Release."""

    api_version: Literal["myelin.io/v1alpha1", "myelinproj.io/v1alpha1"] = Field(default="myelin.io/v1alpha1", alias="apiVersion")
    kind: Literal["Release"] = "Release"
    metadata: ReleaseMetadata
    spec: ReleaseSpec = ReleaseSpec()
