"""kind: Project, the document `myelin.yaml` at the root of the watched repository."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from policies.terms.build import Reproducibility
from policies.terms.document_types import Document, Duration, Instant, Quantity
from policies.terms.revision import KeyKind

GIT_URL = r"^([a-z][a-z0-9+.-]*://([^\s/:@]+@)?[^\s/@]*(/\S*)?|[^\s/:-][^\s/:]*:/?[^\s/:]\S*|/\S*)$"
"""A URL, `host:path` as in SSH, or a path; a password in it would be shown to whoever may read the object."""
REGISTRY_PATH = r"^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]+)?(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)+$"
"""Host, port and path of one repository; the path's rule is that of the OCI Distribution Specification 1.1."""
SSH_KEYS = ("ssh-", "ecdsa-sha2-", "sk-ssh-", "sk-ecdsa-")
CERTIFICATE, PRIVATE_KEY = "-----BEGIN PGP PUBLIC KEY BLOCK-----", "-----BEGIN PGP PRIVATE KEY BLOCK-----"
BUILDKIT = r"^(tcp://([A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}|unix:///\S+)$"
"""Where a BuildKit listens."""
SECRET_NAME = r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$"
"""What Kubernetes lets a Secret be called."""


def _check_git_url(text: str) -> str:
    # The text is not shown: it may hold a password.
    if not re.fullmatch(GIT_URL, text):
        raise ValueError("expected a Git URL without a password, which belongs in the Secret that secretName names")
    return text


def _check_registry_path(text: str) -> str:
    if not re.fullmatch(REGISTRY_PATH, text):
        raise ValueError(f"expected host[:port]/path without scheme, tag and digest, the path in lower case, got {text!r}")
    return text


def _check_secret_name(text: str) -> str:
    if not re.fullmatch(SECRET_NAME, text):
        raise ValueError(f"expected the name of a Secret in the project's namespace, got {text!r}")
    return text


def _check_maybe_secret_name(text: str) -> str:
    return _check_secret_name(text) if text else text


def _check_buildkit(text: str) -> str:
    # Its client knows more kinds of addresses; for those it runs a program of this machine, which no commit shall choose.
    if text and not re.fullmatch(BUILDKIT, text):
        raise ValueError(f"expected tcp://host:port or unix:///path of a BuildKit, got {_shown(text)}")
    return text


def _check_ssh_key(text: str) -> str:
    words = text.split()
    if len(words) < 2 or not words[0].startswith(SSH_KEYS) or "\n" in text.strip():
        raise ValueError(f"expected a public SSH key on one line, `ssh-ed25519 AAAA…`, got {_shown(text)}")
    return text


def _check_certificate(text: str) -> str:
    if PRIVATE_KEY in text:
        raise ValueError("expected the public certificate, got a private key; write the output of `gpg --armor --export`")
    if not text.strip().startswith(CERTIFICATE):
        raise ValueError(
            f"expected an armored OpenPGP certificate, the output of `gpg --armor --export NAME`, got {_shown(text)}; "
            "a fingerprint alone verifies nothing"
        )
    return text


def _check_word(text: str) -> str:
    if not text or any(letter.isspace() or not letter.isprintable() for letter in text):
        raise ValueError(f"expected an address or a URL without spaces, got {_shown(text)}")
    return text


def _check_folder(text: str) -> str:
    parts = text.strip("/").split("/")
    if any(part in ("", ".", "..") for part in parts) or any(letter in text for letter in "*?[\\"):
        raise ValueError(f"expected a folder or a file from the root of the repository, `axons/digits/`, got {_shown(text)}")
    return text


def _check_commit(text: str) -> str:
    if text and not re.fullmatch(r"[0-9a-f]{40}", text):
        raise ValueError(f"expected a commit as 40 hexadecimal characters in lower case, got {_shown(text)}")
    return text


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "…")


BuildKitAddress = Annotated[str, AfterValidator(_check_buildkit)]
GitUrl = Annotated[str, AfterValidator(_check_git_url)]
RegistryPath = Annotated[str, AfterValidator(_check_registry_path)]
SecretName = Annotated[str, AfterValidator(_check_secret_name)]
"""The name of a Secret beside the Project object."""
MaybeSecretName = Annotated[str, AfterValidator(_check_maybe_secret_name)]
"""The same, or empty for none."""


class Metadata(Document):
    """The project's name."""

    name: str = "project"


class Signer(Document):
    """Who may change desired state; exactly one kind of key."""

    name: str
    ssh: str | None = None
    openpgp: str | None = None
    """An armored OpenPGP certificate."""
    identity: str | None = None
    """A Sigstore identity: the address or URI in the certificate's subject alternative name."""
    issuer: str | None = None
    """Who vouches for that identity, `https://accounts.example.com`."""
    paths: tuple[str, ...] = ()
    """What this signer may change; empty: everything."""
    valid_from: Instant | None = None
    """Commits before it are not this signer's; none: always."""
    valid_until: Instant | None = None
    """Commits from it on are not this signer's; none: for ever."""
    revoked: str = ""
    """Why nothing that this key signs counts any more; the signer stays named, so that messages can say so."""

    @field_validator("ssh")
    @classmethod
    def _is_ssh_key(cls, text: str | None) -> str | None:
        return text if text is None else _check_ssh_key(text)

    @field_validator("openpgp")
    @classmethod
    def _is_certificate(cls, text: str | None) -> str | None:
        return text if text is None else _check_certificate(text)

    @field_validator("identity", "issuer")
    @classmethod
    def _is_word(cls, text: str | None) -> str | None:
        return text if text is None else _check_word(text)

    @field_validator("paths")
    @classmethod
    def _are_folders(cls, paths: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_check_folder(path) for path in paths)

    @model_validator(mode="after")
    def _one_key(self) -> Signer:
        if sum(value is not None for value in (self.ssh, self.openpgp, self.identity)) != 1:
            raise ValueError("expected exactly one of ssh, openpgp and identity")
        if (self.identity is None) != (self.issuer is None):
            raise ValueError("expected identity and issuer together: an identity means nothing without who vouches for it")
        if self.valid_from is not None and self.valid_until is not None and self.valid_from >= self.valid_until:
            raise ValueError("expected validUntil after validFrom")
        return self

    @property
    def kind(self) -> KeyKind:
        """How this signer signs."""
        return "ssh" if self.ssh is not None else "openpgp" if self.openpgp is not None else "sigstore"

    @property
    def key(self) -> tuple[str, ...]:
        """What this signer signs with, comparable."""
        words = self.ssh.split()[:2] if self.ssh is not None else [self.openpgp or "", self.identity or "", self.issuer or ""]
        return self.kind, *words


class Trust(Document):
    """Whose commits are acted on."""

    signers: tuple[Signer, ...] = ()
    ancestors: bool = True
    since: str = ""
    unsafe_unsigned_commits: bool = False
    sigstore_root: str = ""
    """A Sigstore trusted root as JSON, for signers with an identity; empty: that of the public good instance."""

    @field_validator("since")
    @classmethod
    def _is_commit(cls, text: str) -> str:
        return _check_commit(text)

    @model_validator(mode="after")
    def _names_once(self) -> Trust:
        names = [signer.name for signer in self.signers]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"expected each signer's name once, got {', '.join(twice)} again")
        known: dict[tuple[str, ...], str] = {}
        for signer in self.signers:
            if signer.key in known:
                raise ValueError(f"expected each key once, got that of {known[signer.key]} again for {signer.name}")
            known[signer.key] = signer.name
        return self


class SecretKey(Document):
    """One key of a Secret."""

    name: SecretName
    key: str = "token"


WriteBackMode = Literal["commit", "pull-request", "manual"]


class Author(Document):
    """The controller's identity in commits."""

    name: str = "Myelin"
    email: str = "myelin@localhost"


class TokenFrom(Document):
    """Where a token lies; exactly one of the three. It is never in the repository itself."""

    env: str | None = None
    """Name of an environment variable of the controller."""
    file: str | None = None
    """A file on the controller's machine that only its owner may read."""
    secret: SecretKey | None = None
    """A key of a Secret beside the Project object."""

    @model_validator(mode="after")
    def _one_place(self) -> TokenFrom:
        if sum(value is not None for value in (self.env, self.file, self.secret)) != 1:
            raise ValueError("expected exactly one of env, file and secret")
        return self


class Forge(Document):
    """Where pull requests are made."""

    type: Literal["github", "gitlab", "gitea"]
    url: str = ""
    """Root of the forge, `https://git.example.com`; empty: the host of the repository's URL."""
    repository: str = ""
    """`owner/name` there, on GitLab with its groups; empty: the path of the repository's URL."""
    token_from: TokenFrom | None = None


class Review(Document):
    """What a pull request of the controller asks for."""

    labels: tuple[str, ...] = ("myelin",)
    reviewers: tuple[str, ...] = ()
    """User names on the forge."""
    approvals: int = Field(default=0, ge=0, le=100)
    """How many people must approve the very evidence before its status says success."""
    author_is_enough: bool = True
    """Whether the author of the training commit may be the only one who approves."""


class WriteBack(Document):
    """What the controller may commit, and how."""

    mode: WriteBackMode | None = None
    """None: `pull-request` where there is a forge, else `commit`."""
    rollbacks: WriteBackMode | None = None
    """How a version that an alert condemned is taken out for good; None: as `mode`. Its traffic moves at once in any case."""
    author: Author = Author()
    forge: Forge | None = None
    review: Review = Review()
    paths: tuple[str, ...] = ("versions/", "releases/")

    @property
    def promotion_mode(self) -> WriteBackMode:
        """How versions come in."""
        return self.mode or ("pull-request" if self.forge else "commit")

    @property
    def rollback_mode(self) -> WriteBackMode:
        """How versions are taken out."""
        return self.rollbacks or self.promotion_mode


class Source(Document):
    """What of a repository is read."""

    submodules: bool = False
    """Whether the content of submodules is part of a source folder."""
    largest_file: Quantity = "100Mi"
    """Files of a source folder above it are refused before they are read."""


class ImageSigner(Document):
    """Somebody whose signature lets a base image be built on: a public key, or an identity and who vouches for it."""

    name: str
    key: str = ""
    """Public key, PEM, as `cosign.pub`."""
    identity: str = ""
    issuer: str = ""

    @model_validator(mode="after")
    def _one_kind(self) -> ImageSigner:
        if bool(self.key) == bool(self.identity) or bool(self.identity) != bool(self.issuer):
            raise ValueError("expected either key, or identity and issuer")
        return self


class BuildLimits(Document):
    """How much one build by Dockerfile may take."""

    memory: Quantity = "4Gi"
    disk: Quantity = "20Gi"
    time: Duration = "1h"


class StoreLimits(Document):
    """How long and how much the store keeps of what nothing uses."""

    keep_results: Duration = "720h"
    """Versions and results younger than this stay: somebody may go back to them."""
    keep_unused: Duration = "24h"
    """What was used this lately stays; an hour at least."""
    cache: Quantity = "20Gi"
    """Of the folder in front of a cluster's registry."""


class Builder(Document):
    """How images are built."""

    base: str = "host"
    base_signers: tuple[ImageSigner, ...] = ()
    index: str | None = None
    require_hashes: bool = False
    propose_locks: bool = True
    allow_source_distributions: bool = False
    precompile: bool | None = None
    platforms: tuple[Literal["linux/amd64", "linux/arm64"], ...] = ()
    stamp: Literal["none", "commit"] = "none"
    reproducibility: Reproducibility = "off"
    buildkit: BuildKitAddress = ""
    limits: BuildLimits = BuildLimits()
    store: StoreLimits = StoreLimits()


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


class Repository(Document):
    """Where the repository of a cluster's project lies; only the Project object of a cluster can say it."""

    url: GitUrl
    secret_name: MaybeSecretName = ""


class Registry(Document):
    """Where a cluster's project keeps images and artifacts; only the Project object of a cluster can say it."""

    repository: RegistryPath
    secret_name: MaybeSecretName = ""
    pull_secret_name: MaybeSecretName = ""
    unsafe_plain_http: bool = False


class Keys(Document):
    """The keys that a cluster's project signs with; only the Project object of a cluster can say it."""

    secret_name: SecretName


class ProjectSpec(Document):
    """What is followed, whom it trusts, and where what it makes is kept."""

    branch: str = "main"
    paths: tuple[str, ...] = ()
    trust: Trust = Trust()
    write_back: WriteBack = WriteBack()
    source: Source = Source()
    builder: Builder = Builder()
    policies: tuple[Policy, ...] = ()
    limits: Limits = Limits()
    repository: Repository | None = None
    registry: Registry | None = None
    keys: Keys | None = None


class Project(Document):
    """kind: Project."""

    api_version: Literal["myelin.io/v1alpha1", "myelinproj.io/v1alpha1"] = "myelin.io/v1alpha1"
    kind: Literal["Project"] = "Project"
    metadata: Metadata = Metadata()
    spec: ProjectSpec = ProjectSpec()
