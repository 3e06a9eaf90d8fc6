"""Where wheels come from: the index that a project names, else what pip is set up with on this machine.

pip's settings are asked of pip itself, so that the resolver looks where the fetcher does. Nothing with a password in it is
ever an argument of a program or part of a message.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit

from policies.errors import DesiredStateError
from policies.terms.secret import NO_SECRET, Secret

_SETTING = re.compile(r"^(?P<part>[^.=]+)\.(?P<name>[^=]+)=(?P<value>.*)$")
_PARTS = ("global", "download", ":env:")
"""Whose settings count, the last first (pip's reference, configuration precedence)."""
ASK_SECONDS = 60.0
PRIVATE = "MYELIN_"
"""What begins so in the environment is the controller's own: programs that fetch do not get it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """What a machine is set up with; URLs may hold passwords."""

    url: Secret = NO_SECRET
    """Empty: the usual one."""
    more: tuple[Secret, ...] = ()
    find_links: tuple[Secret, ...] = ()
    certificates: str = ""
    """File of those that are trusted; empty: the usual ones."""
    proxy: Secret = NO_SECRET
    trusted_hosts: tuple[str, ...] = ()
    is_off: bool = False
    """Whether only `find_links` count."""


def check_index(url: str) -> None:
    """See that the index that a project names can be one.

    Raises:
        DesiredStateError: It is no HTTP address, or it has a name or password in it, which everybody could read.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise DesiredStateError("spec.builder.index: expected https://host/path", reason="Invalid")
    if parts.username or parts.password or parts.query:
        text = "spec.builder.index: expected no name, password or query in it, got some"
        raise DesiredStateError(f"{text}; keep them in the controller's netrc file", reason="Invalid")


@lru_cache(maxsize=1)
def machine_index() -> Index:
    """What pip is set up with here; asked once."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "config", "list"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=ASK_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return Index()
    return index_of(done.stdout)


def index_of(listed: str) -> Index:
    """What `pip config list` says."""
    found: dict[str, tuple[int, str]] = {}
    for line in listed.splitlines():
        match = _SETTING.match(line)
        if match is None or match["part"] not in _PARTS:
            continue
        try:
            value = str(ast.literal_eval(match["value"]))
        except (ValueError, SyntaxError):
            continue
        rank = _PARTS.index(match["part"])
        if value and rank >= found.get(match["name"], (-1, ""))[0]:
            found[match["name"]] = (rank, value)
    said = {name: value for name, (_, value) in found.items()}
    return Index(
        url=Secret(said.get("index-url", "")),
        more=tuple(Secret(item) for item in said.get("extra-index-url", "").split()),
        find_links=tuple(Secret(item) for item in said.get("find-links", "").split() if _is_there(item)),
        certificates=said.get("cert", ""),
        proxy=Secret(said.get("proxy", "")),
        trusted_hosts=tuple(said.get("trusted-host", "").split()),
        is_off=said.get("no-index", "").lower() in ("1", "true", "yes", "on"),
    )


def pip_environment(index: str, folder: Path) -> dict[str, str]:
    """The environment of a pip that fetches.

    Args:
        index: What the project names; empty: the machine's settings are left as they are.
        folder: Where it may put what is on its way.
    """
    places = os.environ.get("PIP_FIND_LINKS", "").split()
    kept = {key: value for key, value in _passed_on().items() if key != "PIP_FIND_LINKS"}
    if index:
        # An empty value does not undo what a file of settings says; these do.
        kept = {key: value for key, value in kept.items() if key not in ("PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX")}
        kept |= {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": index}
        asked = machine_index()
        kept |= {"PIP_CERT": asked.certificates} if asked.certificates else {}
        kept |= {"PIP_PROXY": asked.proxy.reveal()} if asked.proxy else {}
        kept |= {"PIP_TRUSTED_HOST": " ".join(asked.trusted_hosts)} if asked.trusted_hosts else {}
    elif there := [place for place in places if _is_there(place)]:
        kept["PIP_FIND_LINKS"] = " ".join(there)
    return {**kept, "TMPDIR": str(folder), "PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_COLOR": "1"}


def uv_environment(index: str) -> dict[str, str]:
    """The environment of a uv that looks where pip would."""
    asked = machine_index()
    kept = {key: value for key, value in _passed_on().items() if not key.startswith("UV_") or key == "UV_HTTP_TIMEOUT"}
    if index:
        kept["UV_DEFAULT_INDEX"] = index
    else:
        kept |= {"UV_DEFAULT_INDEX": asked.url.reveal()} if asked.url else {}
        kept |= {"UV_INDEX": " ".join(item.reveal() for item in asked.more)} if asked.more else {}
        kept |= {"UV_FIND_LINKS": ",".join(item.reveal() for item in asked.find_links)} if asked.find_links else {}
        kept |= {"UV_NO_INDEX": "1"} if asked.is_off else {}
    if asked.certificates and "SSL_CERT_FILE" not in kept:
        kept["SSL_CERT_FILE"] = asked.certificates
    if asked.proxy:
        kept |= {"HTTP_PROXY": asked.proxy.reveal(), "HTTPS_PROXY": asked.proxy.reveal()}
    if asked.trusted_hosts:
        kept["UV_INSECURE_HOST"] = " ".join(asked.trusted_hosts)
    return {**kept, "NO_COLOR": "1", "UV_NO_PROGRESS": "1", "UV_PYTHON_DOWNLOADS": "never", "UV_KEYRING_PROVIDER": "disabled"}


def _passed_on() -> Mapping[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith(PRIVATE)}


def _is_there(place: str) -> bool:
    """Whether a place of wheels is worth asking: pip fails where a folder of its settings is gone."""
    return "://" in place or Path(place).exists()
