"""A Project object of a cluster and the Secrets that it names -> everything that is needed to follow it."""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from controller import image_keys
from controller.adapters.build.buildkit import FLAGS, Daemon
from controller.adapters.clock import SystemClock
from controller.adapters.cluster import SECRET, Cluster
from controller.adapters.git.access import KEYS, SSH_AUTH, GitAccess, access_from
from controller.adapters.keys import ImageSigner, SshKey, image_public
from controller.adapters.oci.access import Access, access_from_docker_config
from controller.adapters.signatures.openpgp import OpenpgpKey
from controller.adapters.signatures.sigstore_key import SigstoreKey
from controller.adapters.sigstore.files import CONFIG, IDENTITY, SEED, TOKEN_VARIABLE
from controller.daemon_keys import daemon_of
from controller.keyring import FORMER_CONTROLLERS, OPENPGP, former_controller, identified, identity_of
from controller.trustfile import OwnIdentity, TrustFile
from policies.errors import DesiredStateError, RefusedError, TrustError
from policies.terms.build import BuildSecret
from policies.terms.project import Project
from policies.terms.secret import Secret
from policies.terms.source import Elsewhere
from reconcilers.manifests.names import LONGEST

if TYPE_CHECKING:  # the authority's library takes its time, and few have one
    from controller.adapters.sigstore.choosing import Chosen

GIT_KEYS = (*KEYS, SSH_AUTH)
DOCKER_CONFIG = ".dockerconfigjson"
REGISTRY_CA = "ca.crt"
"""Of the registry's Secret: certificates that may vouch for it, besides the system's."""
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
    image_key: ImageSigner
    former_image_keys: Mapping[str, str] = field(default_factory=dict)
    """Name in the Secret -> public key, of those that signed images before."""
    former_keys: Mapping[str, str] = field(default_factory=dict)
    """Name in the Secret -> public key, of those that the controller signed with before."""
    openpgp: OpenpgpKey | None = None
    """Signs commits in place of `key`, where the Secret has one."""
    sigstore: SigstoreKey | None = None
    """The same as a Sigstore identity, which goes before both."""
    keyless: Chosen | None = None
    """The identity that images and models are signed as, besides `image_key`."""
    buildkit: Daemon = field(default_factory=Daemon)
    """How the BuildKit is reached that builds its Dockerfiles."""
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
        ca = self.access.ca if is_ours else ""
        if not self.docker_config:
            return Access(repository=repository, unsafe_plain_http=plain, ca=ca)
        try:
            origin = self.access.origin
            return access_from_docker_config(self.docker_config, repository, origin=origin, unsafe_plain_http=plain, ca=ca)
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
            controller_sigstore=identity_of(self.sigstore) if self.sigstore is not None else None,
            images=(self.image_key.public_pem, *self.former_image_keys.values()),
            image_identities=self._image_identities,
            since=trust.since,
            ancestors=trust.ancestors,
            sigstore_root=trust.sigstore_root,
            unsafe_unsigned_commits=trust.unsafe_unsigned_commits,
        )

    @property
    def _image_identities(self) -> tuple[OwnIdentity, ...]:
        if self.keyless is None:
            return ()
        known = self.keyless.identity
        return (OwnIdentity(identity=known.identity, issuer=known.issuer, root=known.root),)

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
        SilentError: The cluster does not answer, or a Sigstore instance that has to be asked whom it calls us.
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
        access = access_from_docker_config(
            docker_config,
            spec.registry.repository,
            origin=docker.origin,
            unsafe_plain_http=plain,
            # A Secret of the type `kubernetes.io/dockerconfigjson` may hold more; the registry's private authority goes with it.
            ca=docker.texts([REGISTRY_CA]).get(REGISTRY_CA, ""),
        )
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
        image_key=_image_key(keys),
        former_image_keys=_former_image_keys(keys),
        former_keys=_former_keys(keys),
        openpgp=_openpgp_key(keys),
        sigstore=_sigstore_key(keys),
        keyless=_keyless(keys, (namespace, str(meta["name"]))),
        buildkit=_buildkit(keys, spec.builder.buildkit),
        forge_token=_forge_token(cluster, namespace, document),
    )


def _image_key(keys: _Secrets) -> ImageSigner:
    """The key that images are signed with."""
    wanted = (*image_keys.KINDS, image_keys.TOKEN_PIN, image_keys.COSIGN_PASSWORD)
    texts = {name: text for name, text in keys.texts(wanted).items() if name in wanted}
    if not texts.keys() & {*image_keys.KINDS}:
        texts[image_keys.KEY] = keys.text(image_keys.KEY, MAKE_KEYS)
    return image_keys.signer_of(texts, keys.origin)


def _former_image_keys(keys: _Secrets) -> dict[str, str]:
    """Name in the Secret -> public key, of those that signed images before."""
    names = [name for name in keys.texts(()) if image_keys.is_former(name)]
    return {name: image_public(keys.text(name), f"{keys.origin}: {name}") for name in sorted(names)}


def _former_keys(keys: _Secrets) -> dict[str, str]:
    """Name in the Secret -> public key, of those that the controller signed with before."""
    names = sorted(name for name in keys.texts(()) if fnmatchcase(name, FORMER_CONTROLLERS))
    return {name: former_controller(keys.text(name), f"{keys.origin}: {name}") for name in names}


def _openpgp_key(keys: _Secrets) -> OpenpgpKey | None:
    """The OpenPGP key for commits; None where the Secret has none."""
    text = keys.texts([OPENPGP]).get(OPENPGP)
    return OpenpgpKey.parse(text.encode(), f"{keys.origin}: {OPENPGP}").check() if text else None


def _sigstore_key(keys: _Secrets) -> SigstoreKey | None:
    """The Sigstore identity for commits; None where the Secret names none. Its token is the controller's own."""
    texts = keys.texts([CONFIG, IDENTITY])
    if CONFIG not in texts or IDENTITY not in texts:
        return None
    return identified(texts[CONFIG].strip(), texts[IDENTITY], _token(keys), where=keys.origin)


def _keyless(keys: _Secrets, owner: tuple[str, str]) -> Chosen | None:
    """The identity for images and models; None where the Secret has none."""
    wanted = (CONFIG, IDENTITY, SEED)
    texts = {name: text for name, text in keys.texts(wanted).items() if name in wanted}
    if CONFIG not in texts and SEED not in texts:
        return None
    from controller.adapters.sigstore.choosing import chosen_of

    token = _token(keys) if CONFIG in texts else Path()
    return chosen_of(texts, SystemClock(), where=keys.origin, token=token, owner=owner)


def _buildkit(keys: _Secrets, address: str) -> Daemon:
    """How its BuildKit is reached; the object may say where, and the repository's own word goes before."""
    texts = {name: text for name, text in keys.texts(tuple(FLAGS)).items() if name in FLAGS}
    return daemon_of(texts, keys.origin, os.environ, address=address)


def _token(keys: _Secrets) -> Path:
    """Where the controller's identity token lies: a project has none of its own."""
    token = os.environ.get(TOKEN_VARIABLE, "")
    if not token:
        text = f"{keys.origin}: {CONFIG}: expected {TOKEN_VARIABLE} to name the controller's identity token, it is not set"
        raise TrustError(f"{text}; `extraEnv` and `extraVolumes` of the chart do", reason="NoToken")
    return Path(token)


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


def build_secret(cluster: Cluster, project: ProjectObject, secret: BuildSecret) -> Mapping[str, Secret]:
    """The files of a Secret that a build of a project names.

    Raises:
        RefusedError: It is not there, may not be read, or is one that the project itself is run with.
        SilentError: The cluster does not answer.
    """
    spec = project.document.spec
    forge = spec.write_back.forge
    token = forge.token_from.secret.name if forge and forge.token_from and forge.token_from.secret else ""
    own = {part.secret_name for part in (spec.keys, spec.repository, spec.registry) if part is not None} | {token}
    if secret.name in own:
        # Whoever may commit would else build the project's keys into an image.
        text = f"secret {secret.name}: expected one of the build's own, got one that the project is run with"
        raise RefusedError(text, reason="SecretRefused")
    found = _Secrets(cluster, project.namespace, "imageBuild.volumes", secret.name)
    return {name: Secret(found.text(name)) for name in found.names()}


class _Secrets:
    """One Secret, read once; what it says never shows."""

    def __init__(self, cluster: Cluster, namespace: str, field: str, name: str) -> None:
        self.origin = f"Secret {namespace}/{name}"
        self._field = field
        found = cluster.get(SECRET, namespace, name)
        if found is None:
            raise RefusedError(f"{field}: expected {self.origin}, there is none; create it", reason="SecretMissing")
        self._data: Mapping[str, str] = found.get("data") or {}

    def names(self) -> tuple[str, ...]:
        """Its keys that hold something, sorted."""
        return tuple(sorted(name for name, value in self._data.items() if value))

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
