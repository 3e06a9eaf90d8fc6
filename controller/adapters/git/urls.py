"""What a repository's URL says: whether it lies on this machine, how it is shown. Nothing is opened."""

from __future__ import annotations

import hashlib
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit


def shown(url: str) -> str:
    """A URL without user, password and query, for messages."""
    if "://" not in url:
        return url
    parts = urlsplit(url)
    host = parts.hostname or ""
    return urlunsplit((parts.scheme, f"{host}:{parts.port}" if parts.port else host, parts.path, "", ""))


def local_path(url: str) -> Path | None:
    """The folder that a URL means on this machine; None where it means another."""
    if url.startswith("file://"):
        return Path(url.removeprefix("file://"))
    return None if "://" in url or ":" in url.split("/")[0] else Path(url)


def is_ssh(url: str) -> bool:
    """Whether Git reaches it by SSH: `ssh://…`, or `user@host:path`."""
    if "://" in url:
        return urlsplit(url).scheme in ("ssh", "git+ssh", "ssh+git")
    return local_path(url) is None


def host_of(url: str) -> str:
    """`host` or `host:port`, lower case, as SSH and HTTP both mean it; empty for a path of this machine."""
    host, port = name_of(url), urlsplit(url).port if "://" in url else None
    return f"{host}:{port}" if port else host


def name_of(url: str) -> str:
    """The host alone, lower case, without its port; empty for a path of this machine."""
    if "://" in url:
        return (urlsplit(url).hostname or "").lower()
    return "" if local_path(url) is not None else url.split(":", 1)[0].rpartition("@")[2].lower()


def mirror_name(url: str) -> str:
    """What the folder of a URL's mirror is called; whoever logs in as somebody else has the same one."""
    return hashlib.sha256(shown(url).rstrip("/").removesuffix(".git").encode()).hexdigest()[:32]
