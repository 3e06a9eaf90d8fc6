"""Pushing samples to where alerts are read from. A push may get lost, is tried once, and never stops the program.

Standard library only.
"""

from __future__ import annotations

import base64
import http.client
import logging
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from urllib.parse import quote

LONGEST_SECONDS = 2.0
"""How long a push may hold up the program that pushes."""
ANSWER_SECONDS = 1.5
_log = logging.getLogger("myelin")


def gateway_url(name: str, namespace: str, port: int) -> str:
    """Address of a push gateway; empty when there is none.

    Args:
        name: A URL, `host:port` or full cluster name, all used as they are; another host name, which gets the port; or a
            bare service name, which is completed as the earlier client did.
        namespace: Of the service.
        port: Where `name` says none.
    """
    name = name.rstrip("/")
    if not name or "://" in name:
        return name
    if ":" in name or name.endswith("svc.cluster.local"):
        return f"http://{name}"
    if "." in name or not namespace:
        return f"http://{name}:{port}"
    return f"http://{name}.{namespace}.svc.cluster.local:{port}"


def push(url: str, job: str, group: Mapping[str, str], body: bytes) -> bool:
    """Try once to push samples in the text format; False, and one line in the log, when that came to nothing.

    Args:
        url: Of the gateway.
        job: First label of the group.
        group: Its other labels. An empty value says that there is no such label, not even the gateway's own.
        body: The samples.
    """
    place = "".join(f"/{key}" for key in (_label("job", job), *(_label(key, value) for key, value in sorted(group.items()))))
    done: list[bool] = []
    # A thread, because looking up a name has no bound of its own.
    thread = threading.Thread(target=lambda: done.append(_send(f"{url}/metrics{place}", body)), daemon=True)
    try:
        thread.start()
    except RuntimeError:
        return False  # the program is ending
    thread.join(LONGEST_SECONDS)
    if not done:
        _log.warning("%s: no answer within %g s; this sample is lost", url, LONGEST_SECONDS)
    return done == [True]


def _label(name: str, value: str) -> str:
    if value and "/" not in value:
        return f"{quote(name)}/{quote(value, safe='')}"
    return f"{quote(name)}@base64/{base64.urlsafe_b64encode(value.encode()).decode() or '='}"


def _send(url: str, body: bytes) -> bool:
    try:
        request = urllib.request.Request(url, data=body, headers={"Content-Type": "text/plain"}, method="POST")
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        _log.warning("%s: %s", url, error)
    except (OSError, ValueError, http.client.HTTPException) as error:
        _log.warning("%s: %s", url, error)
    return False
