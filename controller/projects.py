"""A Project object of a cluster and the Secrets that it names -> everything that is needed to follow it."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from controller.adapters.cluster import SECRET, Cluster
from controller.adapters.git.access import KEYS, SSH_AUTH, GitAccess, access_from
from controller.adapters.keys import ImageKey, SshKey
from controller.adapters.oci.access import Access, access_from_docker_config
from controller.adapters.signatures.openpgp import OpenpgpKey
from controller.keyring import OPENPGP
from controller.trustfile import TrustFile
from policies.errors import DesiredStateError, RefusedError
from policies.terms.project import Project
from policies.terms.secret import Secret
from policies.terms.source import Elsewhere
from reconcilers.manifests.names import LONGEST

GIT_KEYS = (*KEYS, SSH_AUTH)
DOCKER_CONFIG = ".dockerconfigjson"
MAKE_KEYS = (
    "make them with `myelin keys new DIR`, and "
    "`kubectl create secret generic myelin-keys --from-file=DIR/controller --from-file=DIR/image.pem`"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectObject:
    """One Project of a cluster, ready to be followed."""

    namespace: str
    name: str
    uid: str
    generation: int
    document: Project
    git_access: GitAccess | None
    """What the Git server is shown and must show."""
    access: Access
    """How the controller reaches the registry."""
    pull_secret: str
    docker_config: str
    """For base images on the same or another registry; never shown."""
    key: SshKey
    image_key: ImageKey
    openpgp: OpenpgpKey | None = None
    """Signs commits in place of `key`, where the Secret has one."""
    forge_token: Secret | None = None
    """What the forge that the object names is asked with; never shown."""

    def __repr__(self) -> str:
        return f"ProjectObject({self.namespace}/{self.name})"

    @property
    def url(self) -> str:
        """The repository's URL."""
        assert self.document.spec.repository is not None
        return self.document.spec.repository.url

    def access_for(self, repository: str) -> Access:
        """How to reach a registry that a base image lies in: the project's own Secret may know it, others are asked openly."""
        spec = self.document.spec.registry
        assert spec is not None
        is_ours = repository.partition("/")[0] == self.access.host
        plain = is_ours and spec.unsafe_plain_http
        if not self.docker_config:
            return Access(repository=repository, unsafe_plain_http=plain)
        try:
            return access_from_docker_config(self.docker_config, repository, origin=self.access.origin, unsafe_plain_http=plain)
        except DesiredStateError:
            if is_ours:
                raise
            return Access(repository=repository)

    @property
    def trust(self) -> TrustFile:
        """The pin, which comes from the object and not from the repository."""
        trust = self.document.spec.trust
        return TrustFile(
            signers=trust.signers,
            controller=self.key.public(),
            controller_openpgp=self.openpgp.certificate if self.openpgp is not None else "",
            images=(self.image_key.public_pem,),
            since=trust.since,
            ancestors=trust.ancestors,
            sigstore_root=trust.sigstore_root,
            unsafe_unsigned_commits=trust.unsafe_unsigned_commits,
        )

    @property
    def owner(self) -> dict[str, Any]:
        """How what belongs to it refers to it."""
        return {
            "apiVersion": "myelin.io/v1alpha1",
            "kind": "Project",
            "name": self.name,
            "uid": self.uid,
            "controller": True,
            "blockOwnerDeletion": False,
        }


def read_project(body: Mapping[str, Any]) -> Project:
    """The document of a Project object.

    Raises:
        DesiredStateError: The API server's schema admits it, our types do not; names the field.
    """
    meta = body["metadata"]
    value = {key: item for key, item in body.items() if key in ("apiVersion", "kind", "spec")}
    try:
        return Project.model_validate({**value, "metadata": {"name": meta["name"]}})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        # No cause is carried along: it shows what it could not read, which may be a password in a URL.
        raise DesiredStateError(f"{where}: {first['msg'].removeprefix('Value error, ')}", reason="Invalid") from None


def open_project(cluster: Cluster, body: Mapping[str, Any]) -> ProjectObject:
    """Read a Project object and its Secrets.

    Raises:
        DesiredStateError: It does not say enough, or a Secret lacks a key.
        RefusedError: A Secret is not there, or may not be read.
        TrustError: A key cannot be used.
        SilentError: The cluster does not answer.
    """
    meta, document = body["metadata"], read_project(body)
    spec, namespace = document.spec, str(meta["namespace"])
    if len(meta["name"]) > LONGEST:
        text = f"metadata.name: expected at most {LONGEST} characters, got {len(meta['name'])}; it is a label of its objects"
        raise DesiredStateError(text, reason="Invalid")
    if spec.repository is None or not spec.repository.url:
        raise DesiredStateError("spec.repository.url: expected the URL of a Git repository, got none", reason="RepositoryMissing")
    if spec.registry is None or not spec.registry.repository:
        text = "spec.registry.repository: expected host/path where images may go, got none"
        raise DesiredStateError(text, reason="RegistryMissing")
    if spec.keys is None or not spec.keys.secret_name:
        raise DesiredStateError(
            f"spec.keys.secretName: expected a Secret with the project's keys, got none; {MAKE_KEYS}", reason="KeyMissing"
        )
    keys = _Secrets(cluster, namespace, "spec.keys.secretName", spec.keys.secret_name)
    git_access = None
    if spec.repository.secret_name:
        git = _Secrets(cluster, namespace, "spec.repository.secretName", spec.repository.secret_name)
        git_access = access_from(git.texts(GIT_KEYS), spec.repository.url, origin=f"spec.repository.secretName: {git.origin}")
    docker_config, plain = "", spec.registry.unsafe_plain_http
    access = Access(repository=spec.registry.repository, unsafe_plain_http=plain)
    if spec.registry.secret_name:
        docker = _Secrets(cluster, namespace, "spec.registry.secretName", spec.registry.secret_name)
        docker_config = docker.text(DOCKER_CONFIG)
        access = access_from_docker_config(docker_config, spec.registry.repository, origin=docker.origin, unsafe_plain_http=plain)
    return ProjectObject(
        namespace=namespace,
        name=str(meta["name"]),
        uid=str(meta["uid"]),
        generation=int(meta.get("generation", 1)),
        document=document,
        git_access=git_access,
        access=access,
        pull_secret=spec.registry.pull_secret_name or spec.registry.secret_name or "",
        docker_config=docker_config,
        key=SshKey.parse(keys.text("controller", MAKE_KEYS).encode(), f"{keys.origin}: controller"),
        image_key=ImageKey.parse(keys.text("image.pem", MAKE_KEYS).encode(), f"{keys.origin}: image.pem"),
        openpgp=_openpgp_key(keys),
        forge_token=_forge_token(cluster, namespace, document),
    )


def _openpgp_key(keys: _Secrets) -> OpenpgpKey | None:
    """The OpenPGP key for commits; None where the Secret has none."""
    text = keys.texts([OPENPGP]).get(OPENPGP)
    return OpenpgpKey.parse(text.encode(), f"{keys.origin}: {OPENPGP}").check() if text else None


def _forge_token(cluster: Cluster, namespace: str, document: Project) -> Secret | None:
    """The token that the object's forge names; None where it names no forge.

    Raises:
        DesiredStateError: It names something else than a Secret: the controller's variables and files are not a project's.
    """
    forge = document.spec.write_back.forge
    if forge is None:
        return None
    field = "spec.writeBack.forge.tokenFrom.secret"
    if forge.token_from is None or forge.token_from.secret is None:
        raise DesiredStateError(
            f"{field}: expected name and key of a Secret with the forge's token, got none", reason="TokenMissing"
        )
    named = forge.token_from.secret
    return Secret(_Secrets(cluster, namespace, f"{field}.name", named.name).text(named.key).strip())


def source_access(cluster: Cluster, namespace: str, source: Elsewhere) -> GitAccess:
    """How another repository is reached whose manifest names a Secret.

    Raises:
        DesiredStateError: The Secret lacks a key.
        RefusedError: It is not there, or may not be read.
        SilentError: The cluster does not answer.
    """
    found = _Secrets(cluster, namespace, f"sshPrivateKeySecret of {source.repo}", source.secret)
    values = found.texts(GIT_KEYS)
    if source.secret_key and source.secret_key not in GIT_KEYS:
        values["identity"] = found.text(source.secret_key)
        del values[source.secret_key]
    return access_from(values, source.repo, origin=f"sshPrivateKeySecret of {source.repo}: {found.origin}")


class _Secrets:
    """One Secret, read once; what it says never shows."""

    def __init__(self, cluster: Cluster, namespace: str, field: str, name: str) -> None:
        self.origin = f"Secret {namespace}/{name}"
        self._field = field
        found = cluster.get(SECRET, namespace, name)
        if found is None:
            raise RefusedError(f"{field}: expected {self.origin}, there is none; create it", reason="SecretMissing")
        self._data: Mapping[str, str] = found.get("data") or {}

    def texts(self, keys: Sequence[str]) -> dict[str, str]:
        """The texts under those of the keys that are there; other keys count as there, and are not read."""
        return {key: self.text(key) if key in keys else "…" for key, value in self._data.items() if value}

    def text(self, key: str, advice: str = "") -> str:
        """The text under a key."""
        there = ", ".join(sorted(name for name, value in self._data.items() if value)) or "nothing"
        if not self._data.get(key):
            text = f"{self._field}: {self.origin}: expected the key {key}, got {there}" + (f"; {advice}" if advice else "")
            raise DesiredStateError(text, reason="SecretIncomplete")
        try:
            return base64.b64decode(self._data[key], validate=True).decode()
        except (binascii.Error, UnicodeDecodeError) as error:
            raise DesiredStateError(f"{self._field}: {self.origin}: {key}: expected text", reason="SecretIncomplete") from error
