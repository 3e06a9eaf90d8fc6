"""As whom to go to a registry: one repository's address and credentials, and what a Docker configuration says of them."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from policies.errors import DesiredStateError
from policies.terms.secret import NO_SECRET, Secret

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(
    rf"(?P<host>[A-Za-z0-9.-]+(?::[0-9]+)?|\[[0-9a-f:]+\](?::[0-9]+)?)/(?P<path>{_COMPONENT}(?:/{_COMPONENT})*)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How to reach one repository.

    Raises:
        DesiredStateError: `repository` is no `host[:port]/path`.
    """

    repository: str
    """`host[:port]/path`, without scheme, tag and digest."""
    username: str = ""
    password: Secret = NO_SECRET
    unsafe_plain_http: bool = False
    ca: str = field(default="", repr=False)
    """Certificates in PEM that may vouch for the registry, besides the system's."""
    origin: str = ""
    """Where the credentials come from, for messages: `Secret team-a/registry-push`."""

    def __post_init__(self) -> None:
        if not _REPOSITORY.fullmatch(self.repository):
            raise DesiredStateError(
                f"{self.repository}: expected a repository as host[:port]/path in lower case, without scheme, tag or digest",
                reason="BadRepository",
            )

    @property
    def host(self) -> str:
        """`host[:port]`."""
        return self.repository.partition("/")[0]

    @property
    def path(self) -> str:
        """The repository's path on its host."""
        return self.repository.partition("/")[2]


def access_from_docker_config(
    text: str, repository: str, *, origin: str = "", unsafe_plain_http: bool = False, ca: str = ""
) -> Access:
    """Read the credentials for a repository from a `.dockerconfigjson`.

    Of several entries that fit, the one that names most of the path is taken.

    Args:
        text: The JSON, as in a Secret of the type `kubernetes.io/dockerconfigjson`.
        repository: `host[:port]/path`.
        origin: What to call the place that the text comes from.
        unsafe_plain_http: Whether to talk to the registry without TLS.
        ca: Certificates in PEM, besides the system's.

    Raises:
        DesiredStateError: No JSON of that form, no entry for the host, or an entry that lacks a field.
    """
    subject = origin or ".dockerconfigjson"
    try:
        auths = json.loads(text)["auths"]
        entries = {str(key): dict(value) for key, value in auths.items()}
    except json.JSONDecodeError as error:
        # No cause is carried along, here and below: it holds what it could not read.
        where = f"line {error.lineno} column {error.colno}"
        raise _bad_secret(f"{subject}: expected JSON, got something else at {where}") from None
    except (KeyError, TypeError, ValueError, AttributeError):
        raise _bad_secret(f'{subject}: expected a mapping {{"auths": {{host: …}}}}') from None
    bare = Access(repository=repository, unsafe_plain_http=unsafe_plain_http, ca=ca, origin=origin)
    fitting = [key for key in entries if f"{repository}/".startswith(f"{_place(key)}/")]
    if not fitting:
        there = ", ".join(sorted(_place(key) for key in entries)) or "none"
        raise _bad_secret(f'{subject}: expected auths."{bare.host}", got entries for {there}')
    key = max(fitting, key=lambda item: len(_place(item)))
    username, password = _credentials(entries[key], f'{subject}: auths."{key}"')
    return Access(
        repository=repository,
        username=username,
        password=Secret(password),
        unsafe_plain_http=unsafe_plain_http,
        ca=ca,
        origin=origin,
    )


def names_host(text: str, host: str) -> bool:
    """Whether a `.dockerconfigjson` says how to log in at a host: one that does not says nothing about it.

    What is no such file names all hosts that are in it, so that whoever reads it says what is wrong.
    """
    try:
        auths = json.loads(text)["auths"]
        return any(_place(str(key)).partition("/")[0] == host for key in auths)
    except (ValueError, KeyError, TypeError):
        return host in text


def access_on_this_machine(repository: str, environ: Mapping[str, str]) -> Access:
    """How this machine's user reaches a repository: as Docker's and Podman's own configuration says, else openly.

    Registries on loopback are reached without TLS, as Docker does.

    Raises:
        DesiredStateError: The configuration knows the registry, and its entry lacks a field.
    """
    host = repository.partition("/")[0]
    plain = re.fullmatch(r"(localhost|127(\.\d+){3}|\[::1\])(:\d+)?", host) is not None
    folder = environ.get("DOCKER_CONFIG") or f"{environ.get('HOME', '')}/.docker"
    path = Path(folder) / "config.json"
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError):
        text = ""
    if names_host(text, host):
        return access_from_docker_config(text, repository, origin=str(path), unsafe_plain_http=plain)
    return Access(repository=repository, unsafe_plain_http=plain)


def _credentials(entry: Mapping[str, Any], subject: str) -> tuple[str, str]:
    if entry.get("auth"):
        try:
            username, separator, password = base64.b64decode(str(entry["auth"]), validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            separator = username = password = ""
        if not separator or not username or not password:
            raise _bad_secret(f"{subject}.auth: expected base64 of username:password, got something else")
        return username, password
    for name in ("username", "password"):
        if not entry.get(name) or not isinstance(entry[name], str):
            raise _bad_secret(f"{subject}: expected auth, or username and password; {name} is missing")
    return str(entry["username"]), str(entry["password"])


def _place(key: str) -> str:
    """An entry's key as `host[:port][/path]`; kubectl and docker also write URLs."""
    return re.sub(r"/(v[12]/?)?$", "", key.split("://", 1)[-1])


def _bad_secret(text: str) -> DesiredStateError:
    return DesiredStateError(text, reason="BadSecret")
