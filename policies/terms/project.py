"""kind: Project, the document `myelin.yaml` at the root of the watched repository."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from policies.terms.document_types import Document


class Metadata(Document):
    """The project's name."""

    name: str = "project"


class Signer(Document):
    """Who may change desired state; exactly one kind of key."""

    name: str
    ssh: str | None = None
    openpgp: str | None = None
    identity: str | None = None
    issuer: str | None = None

    @model_validator(mode="after")
    def _one_key(self) -> Signer:
        if sum(value is not None for value in (self.ssh, self.openpgp, self.identity)) != 1:
            raise ValueError("expected exactly one of ssh, openpgp and identity")
        if (self.identity is None) != (self.issuer is None):
            raise ValueError("expected identity and issuer together: an identity means nothing without who vouches for it")
        return self


class Trust(Document):
    """Whose commits are acted on."""

    signers: tuple[Signer, ...] = ()
    ancestors: bool = True
    since: str = ""
    unsafe_unsigned_commits: bool = False

    @model_validator(mode="after")
    def _names_once(self) -> Trust:
        names = [signer.name for signer in self.signers]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"expected each signer's name once, got {', '.join(twice)} again")
        return self


class Author(Document):
    """The controller's identity in commits."""

    name: str = "Myelin"
    email: str = "myelin@localhost"


class Forge(Document):
    """Where pull requests are made."""

    type: Literal["github", "gitlab", "gitea"]
    url: str = ""
    token_from: dict[str, Any] | None = None


class WriteBack(Document):
    """What the controller may commit, and how."""

    mode: Literal["commit", "pull-request", "manual"] = "commit"
    author: Author = Author()
    forge: Forge | None = None
    paths: tuple[str, ...] = ("versions/", "releases/")


class Builder(Document):
    """How images are built."""

    base: str = "host"
    index: str | None = None
    require_hashes: bool = False
    allow_source_distributions: bool = False


class Limits(Document):
    """How much may run."""

    runs_per_day: int | None = Field(default=None, ge=0)
    retrains_per_day: int | None = Field(default=None, ge=0)
    accelerator_hours_per_day: float | None = Field(default=None, ge=0)
    max_concurrent_jobs: int | None = Field(default=None, ge=1)


class Policy(Document):
    """A rule that all promotions, runs, images or rollbacks must satisfy."""

    name: str
    on: Literal["promotion", "run", "image", "rollback"]
    require: str
    message: str = ""


class ProjectSpec(Document):
    """See extensions.md."""

    branch: str = "main"
    paths: tuple[str, ...] = ()
    trust: Trust = Trust()
    write_back: WriteBack = WriteBack()
    builder: Builder = Builder()
    policies: tuple[Policy, ...] = ()
    limits: Limits = Limits()


class Project(Document):
    """kind: Project."""

    api_version: Literal["myelin.io/v1alpha1", "myelinproj.io/v1alpha1"] = "myelin.io/v1alpha1"
    kind: Literal["Project"] = "Project"
    metadata: Metadata = Metadata()
    spec: ProjectSpec = ProjectSpec()
