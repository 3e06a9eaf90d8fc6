"""Whether a host takes connections at all: Git waits more than two minutes for one that says nothing, and a pass with it."""

from __future__ import annotations

import os
import socket
from urllib.parse import urlsplit

CONNECT_SECONDS = 5.0
TRUSTED_SECONDS = 60.0
"""A host that answered so short ago is not tried beforehand."""
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")


def is_direct(url: str, *, proxy: str) -> bool:
    """Whether Git itself connects to the host of an HTTP URL, and no proxy does.

    Args:
        url: The repository's.
        proxy: What Git's settings say of it; empty for nothing.
    """
    named = any(os.environ.get(name) or os.environ.get(name.upper()) for name in _PROXIES)
    return urlsplit(url).scheme in ("http", "https") and not proxy and not named


def says_nothing(url: str, *, seconds: float = CONNECT_SECONDS) -> bool:
    """Whether the host of a URL lets a connection wait; one that refuses, or that nobody knows, does say something."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=seconds).close()
    except TimeoutError:
        return True
    except OSError:
        return False
    return False
