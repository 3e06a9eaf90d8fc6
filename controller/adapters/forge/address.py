"""Settings and a repository's URL -> where its forge is. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from policies.errors import DesiredStateError
from policies.terms.project import Forge

SSH_HOSTS = {"ssh.github.com": "github.com", "altssh.gitlab.com": "gitlab.com"}
"""Names that only answer SSH, for those behind a firewall, and where the forge is."""
_SCP = re.compile(r"(?:[^@/:]+@)?(?P<host>\[[0-9A-Fa-f:]+\]|[^/:@]+):(?P<path>[^/].*|/.+)")
_REPOSITORY = re.compile(r"[^/\s?#]+(?:/[^/\s?#]+)+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """One repository of one forge."""

    root: str
    """`https://git.example.com`, without a slash at the end."""
    repository: str
    """`owner/name`; on GitLab with its groups."""


def address_of(settings: Forge, repository_url: str) -> Address:
    """Where the forge of a repository is: what the settings say, else what the URL says.

    A forge reached by SSH is taken to answer at the same name by HTTPS. One that lives below a path of its host is found where
    `url` names that path, and for Gitea and GitHub, whose repositories have two names, also without.

    Raises:
        DesiredStateError: They do not say it.
    """
    root, path = _split(repository_url)
    if settings.url:
        given = urlsplit(settings.url)
        if given.scheme not in ("http", "https") or not given.hostname or given.username or given.query or given.fragment:
            raise _unknown("expected url as http(s)://host[:port][/path] without a user")
        root = f"{given.scheme}://{given.netloc}{given.path.rstrip('/')}"
        below = given.path.strip("/")
        if below and path.startswith(below + "/"):
            path = path[len(below) + 1 :]
    if settings.repository:
        path = settings.repository.strip("/")
    elif settings.type != "gitlab" and path.count("/") > 1:
        below, owner, name = path.rsplit("/", 2)
        path = f"{owner}/{name}"
        root = root if settings.url else f"{root}/{below}"
    if not root:
        raise _unknown("expected url and repository, since the repository's own URL names no host")
    if not _REPOSITORY.fullmatch(path) or (settings.type != "gitlab" and path.count("/") != 1):
        raise _unknown("expected repository as owner/name")
    return Address(root=root, repository=path)


def _split(url: str) -> tuple[str, str]:
    """Root and path that a repository's URL stands for; both empty where it names no host."""
    if "://" in url:
        parts = urlsplit(url)
        host = parts.hostname or ""
        host = f"[{host}]" if ":" in host else SSH_HOSTS.get(host, host)
        if parts.scheme in ("http", "https") and host:
            root = f"{parts.scheme}://{host}" + (f":{parts.port}" if parts.port else "")
        elif parts.scheme in ("ssh", "git+ssh", "git") and host:
            # The port is SSH's.
            root = f"https://{host}"
        else:
            return "", ""
        path = parts.path
    elif (found := _SCP.fullmatch(url)) is not None and not url.startswith(("/", ".")):
        root, path = f"https://{SSH_HOSTS.get(found['host'], found['host'])}", found["path"]
    else:
        return "", ""
    path = path.strip("/").removesuffix(".git")
    return root, path


def _unknown(text: str) -> DesiredStateError:
    return DesiredStateError(f"spec.writeBack.forge: {text}", reason="ForgeUnknown")
