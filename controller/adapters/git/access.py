"""How a Git server is told who asks: what a person or a Secret gives, and what `git` is started with because of it.

Secrets reach `git` by its environment and by files that only we may read, never by arguments. Where nothing is given, the
user's own set-up counts: SSH agent, credential helpers, certificates, proxies.
"""

from __future__ import annotations

import base64
import os
import shlex
import shutil
import stat
import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from controller.adapters.git.program import settings
from controller.adapters.git.urls import host_of, is_ssh, local_path
from policies.errors import DesiredStateError, RefusedError
from policies.terms.secret import NO_SECRET, Secret

KEYS = ("username", "password", "bearerToken", "identity", "passphrase", "known_hosts", "ca.crt", "tls.crt", "tls.key")
"""What the files of a folder, or the keys of a Secret, are called; as Flux and Kubernetes name theirs."""
SSH_AUTH = "ssh-privatekey"
"""What Kubernetes calls `identity` in Secrets of type `kubernetes.io/ssh-auth`."""
_PRIVATE = ("password", "bearerToken", "identity", SSH_AUTH, "passphrase", "tls.key")
LARGEST_BYTES = 1 << 20
_SSH = (
    "ssh -o BatchMode={batch} -o StrictHostKeyChecking=yes"
    " -o ConnectTimeout=15 -o ServerAliveInterval=15 -o ServerAliveCountMax=2"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GitAccess:
    """What one Git server is shown, and what it must show. What is empty is not used."""

    origin: str
    """Where this was read, for messages."""
    username: str = ""
    password: Secret = NO_SECRET
    token: Secret = NO_SECRET
    """A bearer token; it goes before user and password."""
    identity: Secret = NO_SECRET
    """A private key for SSH, as text."""
    passphrase: Secret = NO_SECRET
    """Opens `identity`."""
    known_hosts: str = ""
    """Host keys that the server may have, as in OpenSSH's file of that name."""
    authority: str = ""
    """PEM of the authorities that may have signed the server's certificate, in place of the system's."""
    certificate: str = ""
    """PEM of a client certificate."""
    certificate_key: Secret = NO_SECRET

    @property
    def header(self) -> Secret | None:
        """Value of the header `Authorization`; None where there is none."""
        if self.token:
            return Secret(f"Bearer {self.token.reveal()}")
        if not self.password:
            return None
        pair = f"{self.username}:{self.password.reveal()}"
        return Secret("Basic " + base64.b64encode(pair.encode()).decode())


def access_from(values: Mapping[str, str], url: str, *, origin: str) -> GitAccess:
    """Read an access out of named texts.

    Args:
        values: Name, one of `KEYS`, -> text; other names are passed over.
        url: The repository that it is for: SSH and HTTP need different ones.
        origin: Where they come from, for messages.

    Raises:
        DesiredStateError: Something that this URL needs is missing.
    """
    given = {key: values[key] for key in KEYS if values.get(key)}
    if values.get(SSH_AUTH):
        given.setdefault("identity", values[SSH_AUTH])
    there = ", ".join(sorted(name for name, value in values.items() if value)) or "nothing"

    def need(key: str, advice: str = "") -> None:
        if key not in given:
            text = f"{origin}: expected the key {key}, got {there}" + (f"; {advice}" if advice else "")
            raise DesiredStateError(text, reason="SecretIncomplete")

    if is_ssh(url):
        need("identity", "it is the private key that the server knows you by")
        need("known_hosts", f"{scan(url)} prints it; compare it with what the server's owner tells")
    elif local_path(url) is None:
        if "tls.crt" in given or "tls.key" in given:
            need("tls.crt")
            need("tls.key")
            if "ENCRYPTED" in given["tls.key"]:
                raise DesiredStateError(f"{origin}: tls.key: expected a key without passphrase", reason="SecretIncomplete")
        if not {"bearerToken", "tls.crt", "ca.crt"} & set(given) or "username" in given or "password" in given:
            need("username")
            need("password")
    one_line = {key: given.get(key, "").rstrip("\r\n") for key in ("username", "password", "bearerToken", "passphrase")}
    for key, value in one_line.items():
        if any(letter in value for letter in "\r\n\0"):
            raise DesiredStateError(f"{origin}: {key}: expected one line, got several", reason="SecretIncomplete")
    opening = one_line["passphrase"] or (one_line["password"] if is_ssh(url) else "")
    return GitAccess(
        origin=origin,
        username=one_line["username"],
        password=Secret(one_line["password"]),
        token=Secret(one_line["bearerToken"]),
        identity=Secret(given["identity"].strip() + "\n") if "identity" in given else NO_SECRET,
        passphrase=Secret(opening),
        known_hosts=given.get("known_hosts", ""),
        authority=given.get("ca.crt", ""),
        certificate=given.get("tls.crt", ""),
        certificate_key=Secret(given.get("tls.key", "")),
    )


def access_from_folder(folder: Path, url: str) -> GitAccess:
    """Read an access out of a folder with files named as `KEYS`.

    Raises:
        RefusedError: There is no such folder, or others may read what only its owner should.
        DesiredStateError: A file that this URL needs is missing, or is no text.
    """
    if not folder.is_dir():
        raise RefusedError(f"{folder}: expected a folder with {', '.join(KEYS)}, there is none", reason="SecretMissing")
    values = {}
    for key in (*KEYS, SSH_AUTH):
        path = folder / key
        if not path.is_file():
            continue
        about = path.stat()
        if key in _PRIVATE and about.st_mode & (stat.S_IROTH | stat.S_IWOTH):
            raise RefusedError(f"{path}: expected a file that only its owner may read; chmod 600 {path}", reason="SecretOpen")
        if about.st_size > LARGEST_BYTES:
            raise DesiredStateError(f"{path}: expected at most {LARGEST_BYTES} bytes, got {about.st_size}")
        try:
            values[key] = path.read_bytes().decode()
        except UnicodeDecodeError as error:
            raise DesiredStateError(f"{path}: expected text", reason="SecretIncomplete") from error
    return access_from(values, url, origin=str(folder))


def scan(url: str) -> str:
    """The command that prints a server's host keys."""
    host, _, port = host_of(url).partition(":")
    return f"`ssh-keyscan -p {port} {host}`" if port else f"`ssh-keyscan {host}`"


class Login:
    """What `git` is started with to reach one URL; its files are gone when it is closed.

    Args:
        access: What was given; None: the user's own set-up counts.
        url: The repository.
        own_ssh: Whether the user has a command for SSH of their own, which then stays.
    """

    def __init__(self, access: GitAccess | None, url: str, *, own_ssh: bool = False) -> None:
        self._folder: Path | None = None
        self.environment: dict[str, str] = {}
        if local_path(url) is not None:
            return
        if access is None:
            if is_ssh(url) and not own_ssh:
                self.environment["GIT_SSH_COMMAND"] = _SSH.format(batch="yes")
            return
        # Unlike its own `close`, a finaliser says nothing when somebody forgot about us.
        self._folder = Path(tempfile.mkdtemp(prefix="myelin-access-"))
        self._end = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self.environment = self._ssh(access) if is_ssh(url) else self._http(access)

    def close(self) -> None:
        """Remove the files."""
        if self._folder is not None:
            self._end()

    def __repr__(self) -> str:
        return "Login(***)"

    def _http(self, access: GitAccess) -> dict[str, str]:
        pairs = [("http.sslVerify", "true")]
        if (header := access.header) is not None:
            pairs.append(("http.extraHeader", f"Authorization: {header.reveal()}"))
            # Somebody else's password is not to be tried where this one is refused.
            pairs.append(("credential.helper", ""))
        found = settings(pairs)
        # Variables, as settings would give way to those that the user has.
        for variable, name, content in (
            ("GIT_SSL_CAINFO", "ca.crt", access.authority),
            ("GIT_SSL_CERT", "tls.crt", access.certificate),
            ("GIT_SSL_KEY", "tls.key", access.certificate_key.reveal()),
        ):
            if content:
                found[variable] = str(self._keep(name, content))
        return found

    def _ssh(self, access: GitAccess) -> dict[str, str]:
        key, hosts = self._keep("identity", access.identity.reveal()), self._keep("known_hosts", access.known_hosts)
        has_passphrase = bool(access.passphrase)
        options = {
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "UserKnownHostsFile": str(hosts),
            "GlobalKnownHostsFile": "/dev/null",
            # A connection that the user left open would be used with the user's key.
            "ControlPath": "none",
            "PreferredAuthentications": "publickey",
            "NumberOfPasswordPrompts": "1",
            "UpdateHostKeys": "no",
            "ForwardAgent": "no",
        }
        # In batch mode SSH asks nobody for a passphrase, not even the program that knows it.
        command = _SSH.format(batch="no" if has_passphrase else "yes") + f" -i {shlex.quote(str(key))}"
        command += "".join(f" -o {shlex.quote(f'{name}={value}')}" for name, value in options.items())
        found = {"GIT_SSH_COMMAND": command, "GIT_SSH_VARIANT": "ssh"}
        if has_passphrase:
            # Only the owner of a process may read its environment.
            ask = self._keep("ask", '#!/bin/sh\nprintf "%s\\n" "$MYELIN_PASSPHRASE"\n', mode=0o700)
            found |= {"SSH_ASKPASS": str(ask), "SSH_ASKPASS_REQUIRE": "force", "MYELIN_PASSPHRASE": access.passphrase.reveal()}
        return found

    def _keep(self, name: str, content: str, *, mode: int = 0o600) -> Path:
        assert self._folder is not None
        path = self._folder / name
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
            file.write(content)
        return path
