"""A Project object and its Secrets: what is made of good ones, and one clear reason for each bad one. No secret ever shows."""

import base64
import copy
import json
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from controller import keyring
from controller.adapters.cluster import SECRET
from controller.adapters.keys import ImageKey, SshKey
from controller.projects import MAKE_KEYS, ProjectObject, open_project, read_project, source_access
from policies.errors import ControllerError, DesiredStateError, RefusedError, SilentError, TrustError
from policies.terms.secret import Secret
from policies.terms.source import Elsewhere
from tests.fakes.cluster import FakeCluster

PASSWORD, REGISTRY_PASSWORD = "hunter2-ünïcode:and-colon", "hunter3-registry"
SIGNER = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKeep"
Spec = dict[str, Any]
Secrets = dict[str, dict[str, bytes]]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("keys")
    keyring.make(folder / "own")
    return {name: (folder / "own" / name).read_bytes() for name in ("controller", "image.pem")}


def docker_config(host: str = "registry.test:5000", **entry: str) -> bytes:
    return json.dumps({"auths": {host: entry or {"username": "robot", "password": REGISTRY_PASSWORD}}}).encode()


def good_spec() -> Spec:
    return {
        "repository": {"url": "http://git.test/team/digits.git", "secretName": "git"},
        "branch": "main",
        "trust": {"signers": [{"name": "you", "ssh": SIGNER}], "since": "a" * 40},
        "registry": {"repository": "registry.test:5000/team/digits", "secretName": "push", "pullSecretName": "pull"},
        "keys": {"secretName": "myelin-keys"},
    }


def good_secrets(keys: dict[str, bytes]) -> Secrets:
    return {
        "myelin-keys": dict(keys),
        "git": {"username": b"ada", "password": PASSWORD.encode()},
        "push": {".dockerconfigjson": docker_config()},
    }


def cluster_with(secrets: Mapping[str, Mapping[str, bytes]]) -> FakeCluster:
    cluster = FakeCluster()
    for name, data in secrets.items():
        encoded = {key: base64.b64encode(value).decode() for key, value in data.items()}
        cluster.create(SECRET, {"metadata": {"name": name, "namespace": "team-a"}, "data": encoded})
    return cluster


def body_of(spec: Spec, name: str = "digits") -> dict[str, Any]:
    meta = {"name": name, "namespace": "team-a", "uid": "u-1", "generation": 3, "labels": {"a": "b"}}
    return {"apiVersion": "myelin.io/v1alpha1", "kind": "Project", "metadata": meta, "spec": spec, "status": {"reason": "x"}}


def opened(cluster: FakeCluster, spec: Spec) -> ProjectObject:
    return open_project(cluster, body_of(spec))  # type: ignore[arg-type]


def test_a_good_project_is_opened_with_all_that_it_needs(keys: dict[str, bytes]) -> None:
    project = opened(cluster_with(good_secrets(keys)), good_spec())
    assert (project.namespace, project.name, project.uid, project.generation) == ("team-a", "digits", "u-1", 3)
    assert project.url == "http://git.test/team/digits.git"
    assert project.git_access is not None
    assert project.git_access.header is not None
    assert project.git_access.header.reveal() == "Basic " + base64.b64encode(f"ada:{PASSWORD}".encode()).decode()
    assert (project.access.repository, project.access.username) == ("registry.test:5000/team/digits", "robot")
    assert project.access.password == Secret(REGISTRY_PASSWORD)
    assert project.pull_secret == "pull"
    assert project.owner == {
        "apiVersion": "myelin.io/v1alpha1",
        "kind": "Project",
        "name": "digits",
        "uid": "u-1",
        "controller": True,
        "blockOwnerDeletion": False,
    }
    own = SshKey.parse(keys["controller"], "x").public()
    assert (project.key.public(), project.trust.controller) == (own, own)
    assert project.trust.images == (ImageKey.parse(keys["image.pem"], "x").public_pem,)
    assert [(signer.name, signer.ssh) for signer in project.trust.signers] == [("you", SIGNER)]
    assert (project.trust.since, project.trust.unsafe_unsigned_commits) == ("a" * 40, False)


def test_former_keys_of_the_controller_are_known_from_a_secret(keys: dict[str, bytes], tmp_path: Path) -> None:
    former, secrets = SshKey.generate(tmp_path / "former").public(), good_secrets(keys)
    secrets["myelin-keys"] |= {"controller-2025.pub": f"{former} somebody\n".encode()}
    project = opened(cluster_with(secrets), good_spec())
    assert project.former_keys == {"controller-2025.pub": former}
    keyring.keep_public(tmp_path, project.key, project.image_key, former=project.former_keys)
    assert keyring.former_controllers(tmp_path) == (former,)
    keyring.keep_public(tmp_path, project.key, project.image_key)
    assert keyring.former_controllers(tmp_path) == ()
    secrets["myelin-keys"] |= {"controller-2025.pub": b"no key"}
    with pytest.raises(TrustError, match=r"controller-2025\.pub: expected the public key of a former controller"):
        opened(cluster_with(secrets), good_spec())


def test_former_image_keys_of_a_secret_are_trusted_too(keys: dict[str, bytes], tmp_path: Path) -> None:
    former, secrets = ImageKey.generate(tmp_path / "former.pem"), good_secrets(keys)
    secrets["myelin-keys"] |= {"image-1.pub.pem": former.public_pem.encode()}
    project = opened(cluster_with(secrets), good_spec())
    assert project.former_image_keys == {"image-1.pub.pem": former.public_pem}
    assert project.trust.images == (project.image_key.public_pem, former.public_pem)
    keyring.keep_public(tmp_path, project.key, project.image_key, project.former_image_keys)
    assert keyring.public_keys(tmp_path)[1] == project.trust.images
    secrets["myelin-keys"] |= {"image-1.pub.pem": b"no key"}
    with pytest.raises(TrustError, match=r"myelin-keys: image-1\.pub\.pem: expected a public key as PEM"):
        opened(cluster_with(secrets), good_spec())


def test_each_secret_is_read_once_and_nothing_is_written(keys: dict[str, bytes]) -> None:
    cluster = cluster_with(good_secrets(keys))
    cluster.calls.clear()
    opened(cluster, good_spec())
    assert sorted(cluster.calls) == ["get Secret git", "get Secret myelin-keys", "get Secret push"]


def test_an_open_repository_and_registry_need_no_secrets(keys: dict[str, bytes]) -> None:
    spec = good_spec() | {"repository": {"url": "http://git.test/a"}, "registry": {"repository": "registry.test/a"}}
    project = opened(cluster_with({"myelin-keys": keys}), spec)
    assert (project.git_access, project.access.username, project.pull_secret) == (None, "", "")
    assert not project.access.unsafe_plain_http
    assert project.access_for("elsewhere.test/python").username == ""


def test_images_are_pulled_as_they_are_pushed_unless_another_secret_is_named(keys: dict[str, bytes]) -> None:
    spec = good_spec()
    del spec["registry"]["pullSecretName"]
    assert opened(cluster_with(good_secrets(keys)), spec).pull_secret == "push"


def test_bases_elsewhere_are_asked_for_with_what_the_secret_knows_and_only_that(keys: dict[str, bytes]) -> None:
    spec, secrets = good_spec(), good_secrets(keys)
    spec["registry"]["unsafePlainHttp"] = True
    auths = {"registry.test:5000": {"username": "robot", "password": "p"}, "base.test": {"username": "reader", "password": "q"}}
    secrets["push"] = {".dockerconfigjson": json.dumps({"auths": auths}).encode()}
    project = opened(cluster_with(secrets), spec)
    found = {host: project.access_for(f"{host}/python") for host in ("registry.test:5000", "base.test", "open.test")}
    assert {host: access.username for host, access in found.items()} == {
        "registry.test:5000": "robot",
        "base.test": "reader",
        "open.test": "",
    }
    # Plain HTTP was allowed for one host.
    assert [host for host, access in found.items() if access.unsafe_plain_http] == ["registry.test:5000"]


def test_the_registrys_secret_may_hold_its_private_authority(keys: dict[str, bytes]) -> None:
    spec, secrets = good_spec(), good_secrets(keys)
    assert opened(cluster_with(secrets), spec).access.ca == ""
    secrets["push"]["ca.crt"] = b"PEM"
    project = opened(cluster_with(secrets), spec)
    assert project.access.ca == "PEM"
    # It vouches for that registry and for no other.
    assert project.access_for(f"{project.access.host}/python").ca == "PEM"
    assert project.access_for("open.test/python").ca == ""


def rsa_key() -> bytes:
    private = rsa.generate_private_key(65537, 2048)
    form = serialization.PrivateFormat.OpenSSH
    return private.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def other_curve() -> bytes:
    private = ec.generate_private_key(ec.SECP384R1())
    form = serialization.PrivateFormat.PKCS8
    return private.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


Damage = Callable[[Spec, Secrets], Any]
KEYS = "spec.keys.secretName: Secret team-a/myelin-keys: "
DOCKER = "Secret team-a/push: "
BAD: dict[str, tuple[Damage, type[ControllerError], str, str]] = {
    "no repository": (
        lambda spec, _: spec.pop("repository"),
        DesiredStateError,
        "RepositoryMissing",
        "spec.repository.url: expected the URL of a Git repository, got none",
    ),
    "no registry": (
        lambda spec, _: spec.pop("registry"),
        DesiredStateError,
        "RegistryMissing",
        "spec.registry.repository: expected host/path where images may go, got none",
    ),
    "no keys": (
        lambda spec, _: spec.pop("keys"),
        DesiredStateError,
        "KeyMissing",
        f"spec.keys.secretName: expected a Secret with the project's keys, got none; {MAKE_KEYS}",
    ),
    "a Secret with keys that is not there": (
        lambda _, secrets: secrets.pop("myelin-keys"),
        RefusedError,
        "SecretMissing",
        "spec.keys.secretName: expected Secret team-a/myelin-keys, there is none; create it",
    ),
    "a Secret for Git that is not there": (
        lambda _, secrets: secrets.pop("git"),
        RefusedError,
        "SecretMissing",
        "spec.repository.secretName: expected Secret team-a/git, there is none; create it",
    ),
    "a Secret for the registry that is not there": (
        lambda _, secrets: secrets.pop("push"),
        RefusedError,
        "SecretMissing",
        "spec.registry.secretName: expected Secret team-a/push, there is none; create it",
    ),
    "keys without the controller's": (
        lambda _, secrets: secrets["myelin-keys"].pop("controller"),
        DesiredStateError,
        "SecretIncomplete",
        f"{KEYS}expected the key controller, got image.pem; {MAKE_KEYS}",
    ),
    "keys without the images'": (
        lambda _, secrets: secrets["myelin-keys"].pop("image.pem"),
        DesiredStateError,
        "SecretIncomplete",
        f"{KEYS}expected the key image.pem, got controller; {MAKE_KEYS}",
    ),
    "keys in an empty Secret": (
        lambda _, secrets: secrets.update({"myelin-keys": {}}),
        DesiredStateError,
        "SecretIncomplete",
        f"{KEYS}expected the key controller, got nothing; {MAKE_KEYS}",
    ),
    "a key that is empty": (
        lambda _, secrets: secrets["myelin-keys"].update(controller=b""),
        DesiredStateError,
        "SecretIncomplete",
        f"{KEYS}expected the key controller, got image.pem; {MAKE_KEYS}",
    ),
    "a key that is no text": (
        lambda _, secrets: secrets["myelin-keys"].update(controller=b"\xff\xfe" + PASSWORD.encode()),
        DesiredStateError,
        "SecretIncomplete",
        f"{KEYS}controller: expected text",
    ),
    "a key that is none": (
        lambda _, secrets: secrets["myelin-keys"].update(controller=PASSWORD.encode()),
        TrustError,
        "NoKey",
        "Secret team-a/myelin-keys: controller: expected an OpenSSH key without passphrase, got another file"
        "; make one with `ssh-keygen -t ed25519`",
    ),
    "a key of another kind": (
        lambda _, secrets: secrets["myelin-keys"].update(controller=rsa_key()),
        TrustError,
        "NoKey",
        "Secret team-a/myelin-keys: controller: expected an ed25519 key, got another kind; make one with `ssh-keygen -t ed25519`",
    ),
    "an image key that is none": (
        lambda _, secrets: secrets["myelin-keys"].update({"image.pem": PASSWORD.encode()}),
        TrustError,
        "NoKey",
        "Secret team-a/myelin-keys: image.pem: expected a P-256 or Ed25519 key as PKCS#8 PEM, "
        "got something else or one with a password",
    ),
    "an image key of another curve": (
        lambda _, secrets: secrets["myelin-keys"].update({"image.pem": other_curve()}),
        TrustError,
        "NoKey",
        "Secret team-a/myelin-keys: image.pem: expected a P-256 or Ed25519 key as PKCS#8 PEM, got another kind of key",
    ),
    "a login without a password": (
        lambda _, secrets: secrets["git"].pop("password"),
        DesiredStateError,
        "SecretIncomplete",
        "spec.repository.secretName: Secret team-a/git: expected the key password, got username",
    ),
    "a Secret of another type for the registry": (
        lambda _, secrets: secrets.update(push={"username": b"robot", "password": REGISTRY_PASSWORD.encode()}),
        DesiredStateError,
        "SecretIncomplete",
        "spec.registry.secretName: Secret team-a/push: expected the key .dockerconfigjson, got password, username",
    ),
    "a Docker configuration that is no JSON": (
        lambda _, secrets: secrets["push"].update({".dockerconfigjson": b'{"auths": ' + REGISTRY_PASSWORD.encode()}),
        DesiredStateError,
        "BadSecret",
        f"{DOCKER}expected JSON, got something else at line 1 column 11",
    ),
    "a Docker configuration of another form": (
        lambda _, secrets: secrets["push"].update({".dockerconfigjson": b'["' + REGISTRY_PASSWORD.encode() + b'"]'}),
        DesiredStateError,
        "BadSecret",
        f'{DOCKER}expected a mapping {{"auths": {{host: …}}}}',
    ),
    "a Docker configuration for another host": (
        lambda _, secrets: secrets["push"].update({".dockerconfigjson": docker_config("other.test")}),
        DesiredStateError,
        "BadSecret",
        f'{DOCKER}expected auths."registry.test:5000", got entries for other.test',
    ),
    "a Docker configuration whose entry is incomplete": (
        lambda _, secrets: secrets["push"].update({".dockerconfigjson": docker_config(password=REGISTRY_PASSWORD)}),
        DesiredStateError,
        "BadSecret",
        f'{DOCKER}auths."registry.test:5000": expected auth, or username and password; username is missing',
    ),
    "a Docker configuration whose entry is damaged": (
        lambda _, secrets: secrets["push"].update({".dockerconfigjson": docker_config(auth=REGISTRY_PASSWORD)}),
        DesiredStateError,
        "BadSecret",
        f'{DOCKER}auths."registry.test:5000".auth: expected base64 of username:password, got something else',
    ),
    "a password in the URL": (
        lambda spec, _: spec.update(repository={"url": f"http://ada:{REGISTRY_PASSWORD}@git.test/a"}),
        DesiredStateError,
        "Invalid",
        "spec.repository.url: expected a Git URL without a password, which belongs in the Secret that secretName names",
    ),
    "two keys of one signer": (
        lambda spec, _: spec["trust"].update(signers=[{"name": "you", "ssh": SIGNER, "identity": "a", "issuer": "b"}]),
        DesiredStateError,
        "Invalid",
        "spec.trust.signers.0: expected exactly one of ssh, openpgp and identity",
    ),
    "two signers of one name": (
        lambda spec, _: spec["trust"].update(signers=[{"name": "you", "ssh": SIGNER}] * 2),
        DesiredStateError,
        "Invalid",
        "spec.trust: expected each signer's name once, got you again",
    ),
    "a registry with a tag": (
        lambda spec, _: spec["registry"].update(repository="registry.test/a:1"),
        DesiredStateError,
        "Invalid",
        "spec.registry.repository: expected host[:port]/path without scheme, tag and digest, the path in lower case, "
        "got 'registry.test/a:1'",
    ),
}


def told_of(error: BaseException) -> str:
    """All that a log could show of an error."""
    text = "".join(traceback.format_exception(error))
    while error.__cause__ is not None:
        error = error.__cause__
        text += repr(error)
    return text


@pytest.mark.parametrize(("damage", "kind", "reason", "message"), BAD.values(), ids=list(BAD))
def test_a_bad_project_says_one_clear_reason(
    keys: dict[str, bytes], damage: Damage, kind: type[ControllerError], reason: str, message: str
) -> None:
    spec, secrets = good_spec(), good_secrets(keys)
    damage(spec, secrets)
    with pytest.raises(kind) as caught:
        opened(cluster_with(secrets), spec)
    assert (caught.value.reason, caught.value.message) == (reason, message)


@pytest.mark.parametrize("damage", [item[0] for item in BAD.values()], ids=list(BAD))
def test_no_secret_shows_in_what_a_bad_project_says(keys: dict[str, bytes], damage: Damage) -> None:
    spec, secrets = good_spec(), good_secrets(keys)
    damage(spec, secrets)
    with pytest.raises(ControllerError) as caught:
        opened(cluster_with(secrets), spec)
    told = told_of(caught.value)
    assert PASSWORD not in told
    assert REGISTRY_PASSWORD not in told
    lines = keys["controller"].decode().splitlines()[1:-1] + keys["image.pem"].decode().splitlines()[1:-1]
    assert [line for line in lines if line in told] == []


def test_no_secret_shows_in_an_opened_project(keys: dict[str, bytes]) -> None:
    project = opened(cluster_with(good_secrets(keys)), good_spec())
    parts = [project, project.git_access, project.access, project.key, project.image_key, project.trust]
    told = "".join(f"{part!r} {part} {part:}" for part in parts)
    for secret in (PASSWORD, REGISTRY_PASSWORD, base64.b64encode(f"ada:{PASSWORD}".encode()).decode()):
        assert secret not in told
    assert "PRIVATE" not in told


SSH_URL = "ssh://git@git.test:2222/team/digits.git"
GIT_SECRETS: dict[str, tuple[str, dict[str, bytes], dict[str, str]]] = {
    "a token": ("https://git.test/a.git", {"bearerToken": b"abc"}, {"header": "Bearer abc"}),
    "an authority": ("https://git.test/a.git", {"ca.crt": b"PEM"}, {"authority": "PEM"}),
    "a client certificate": (
        "https://git.test/a.git",
        {"tls.crt": b"PEM", "tls.key": b"KEY", "ca.crt": b"CA"},
        {"certificate": "PEM", "certificate_key": "KEY", "authority": "CA"},
    ),
    "a key as Flux names it": (
        SSH_URL,
        {"identity": b"KEY", "identity.pub": b"x", "known_hosts": b"HOST", "password": b"open"},
        {"identity": "KEY\n", "known_hosts": "HOST", "passphrase": "open"},
    ),
    "a key as Kubernetes names it": (
        SSH_URL,
        {"ssh-privatekey": b"KEY", "known_hosts": b"HOST"},
        {"identity": "KEY\n", "known_hosts": "HOST"},
    ),
}


@pytest.mark.parametrize("name", GIT_SECRETS)
def test_a_git_server_is_reached_by_what_the_secret_holds(keys: dict[str, bytes], name: str) -> None:
    url, secret, wanted = GIT_SECRETS[name]
    spec = {**good_spec(), "repository": {"url": url, "secretName": "git"}}
    access = opened(cluster_with({**good_secrets(keys), "git": secret}), spec).git_access
    assert access is not None
    found = {field: getattr(access, field) for field in wanted}
    assert {field: value.reveal() if hasattr(value, "reveal") else value for field, value in found.items()} == wanted


def test_a_key_without_known_hosts_says_how_to_get_them(keys: dict[str, bytes]) -> None:
    spec = {**good_spec(), "repository": {"url": SSH_URL, "secretName": "git"}}
    with pytest.raises(DesiredStateError, match=r"the key known_hosts, got identity; `ssh-keyscan -p 2222 git\.test`"):
        opened(cluster_with({**good_secrets(keys), "git": {"identity": b"KEY"}}), spec)


@pytest.mark.parametrize("key", ["", "ssh-private-key"])
def test_another_repository_is_reached_by_the_secret_that_its_manifest_names(key: str) -> None:
    secret = {key or "identity": b"KEY", "known_hosts": b"HOST"}
    source = Elsewhere(repo="git@git.test:team/parts.git", revision="main", secret="parts", secret_key=key)
    access = source_access(cluster_with({"parts": secret}), "team-a", source)  # type: ignore[arg-type]
    assert (access.identity.reveal(), access.known_hosts) == ("KEY\n", "HOST")
    with pytest.raises(RefusedError, match="expected Secret team-a/parts, there is none"):
        source_access(cluster_with({}), "team-a", source)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["git", "push", "myelin-keys"])
@pytest.mark.parametrize(
    "error",
    [SilentError("cluster: no answer"), RefusedError('cluster: secrets "x" is forbidden', reason="Forbidden")],
    ids=["silent", "forbidden"],
)
def test_what_the_cluster_says_of_a_secret_is_told_as_it_is(keys: dict[str, bytes], name: str, error: ControllerError) -> None:
    cluster = cluster_with(good_secrets(keys))
    cluster.fail(f"get Secret {name}", error)
    with pytest.raises(type(error)) as caught:
        opened(cluster, good_spec())
    assert caught.value is error


def test_a_project_with_a_name_that_no_label_takes_is_refused_in_words(keys: dict[str, bytes]) -> None:
    with pytest.raises(DesiredStateError) as caught:
        open_project(cluster_with(good_secrets(keys)), body_of(good_spec(), "a" * 64))  # type: ignore[arg-type]
    assert caught.value.message.startswith("metadata.name: expected at most 63 characters, got 64")


def test_what_kubernetes_notes_on_an_object_is_no_part_of_the_document() -> None:
    body = body_of(good_spec())
    body["metadata"] |= {"managedFields": [{}], "finalizers": ["x"], "annotations": {"a": "b"}}
    before = copy.deepcopy(body)
    assert read_project(body).metadata.name == "digits"
    assert body == before


# The keys themselves.


def test_keys_are_made_once_for_their_owners_eyes_and_shown_without_their_private_parts(tmp_path: Path) -> None:
    public = keyring.make(tmp_path / "keys")
    assert public == keyring.shown(tmp_path / "keys")
    assert public["controller"].startswith("ssh-ed25519 ")
    assert public["image"].startswith("-----BEGIN PUBLIC KEY-----")
    assert {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "keys").iterdir()} == {
        "controller": 0o600,
        "image.pem": 0o600,
    }
    before = (tmp_path / "keys" / "controller").read_bytes()
    with pytest.raises(RefusedError):
        keyring.make(tmp_path / "keys")
    assert (tmp_path / "keys" / "controller").read_bytes() == before


def test_keys_that_are_not_there_or_open_to_others_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedError):
        keyring.shown(tmp_path)
    keyring.make(tmp_path / "keys")
    (tmp_path / "keys" / "image.pem").chmod(0o644)
    with pytest.raises(RefusedError):
        keyring.shown(tmp_path / "keys")


def test_a_state_folder_keeps_its_keys(tmp_path: Path) -> None:
    assert keyring.public_keys(tmp_path) == ("", ())
    assert not (tmp_path / "keys").exists()
    own, image = keyring.controller_key(tmp_path), keyring.image_key(tmp_path)
    assert keyring.controller_key(tmp_path).public() == own.public()
    assert keyring.image_key(tmp_path).public_pem == image.public_pem
    assert keyring.public_keys(tmp_path) == (own.public(), (image.public_pem,))
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o700


def test_of_keys_that_lie_in_a_cluster_a_state_folder_has_the_public_ones_only(tmp_path: Path, keys: dict[str, bytes]) -> None:
    key, image = SshKey.parse(keys["controller"], "x"), ImageKey.parse(keys["image.pem"], "x")
    keyring.keep_public(tmp_path, key, image)
    keyring.keep_public(tmp_path, key, image)
    assert keyring.public_keys(tmp_path) == (key.public(), (image.public_pem,))
    assert not any("PRIVATE" in path.read_text() for path in (tmp_path / "keys").iterdir())
