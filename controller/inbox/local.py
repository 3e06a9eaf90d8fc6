"""The inbox of one machine: one project, on loopback, whose secrets lie in a file that only its owner can read."""

from __future__ import annotations

import http.client
import json
import os
import secrets
from pathlib import Path
from typing import Any
from urllib.parse import quote

from controller.adapters.results import programs_path
from controller.inbox.desk import Desk
from controller.inbox.handler import TIMEOUT_SECONDS
from controller.inbox.hooks import ADDRESS
from controller.inbox.receivers import Receivers
from policies.admin import ANY_PROJECT
from policies.errors import RefusedError, SilentError
from policies.hooks import KINDS, hook_text
from policies.terms.secret import Secret

HOW_TO_ENTER = (
    "GitHub     Settings, Webhooks: payload URL, content type application/json, secret; events: pushes, pull requests,",
    "           pull request reviews, issue comments",
    "GitLab     Settings, Webhooks: URL, secret token; triggers: push, merge request and comment events",
    "Gitea      Settings, Webhooks, Gitea: target URL, POST, application/json, secret; triggers: push, pull request events.",
    "           Forgejo the same",
    "Bitbucket  Repository settings, Webhooks: URL, secret; triggers: repository push, pull request events",
    "others     POST to the generic URL with X-Myelin-Signature: t=T,v1=HEX, where T is seconds since 1970 and HEX the",
    '           HMAC-SHA256 of `T.BODY` with the secret; the body may say {"branch": …, "paths": […]}, or be empty',
)
"""Where a person enters what `webhooks` answers."""


def serve(folder: Path, receivers: Receivers, *, port: int | None) -> tuple[Desk, str]:
    """Listen on loopback; address and tokens lie in `address.json`, readable by the owner alone.

    Returns:
        The server (already serving in a thread), and the address that jobs and servers are given,
        `http://127.0.0.1:<port>/programs/<secret>`: whoever else is on this machine can neither report nor push.

    Raises:
        RefusedError: The port is in use.
    """
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / "address.json"
    known = json.loads(place.read_bytes()) if place.exists() else {}
    token = known.get("token") or secrets.token_urlsafe(32)
    programs = known.get("programs") or secrets.token_urlsafe(16)
    hook = known.get("hook") or hook_text(secrets.token_bytes(32))
    desk = _open(port, int(known.get("port", 0)))
    desk.admit(ANY_PROJECT, receivers, token=token, programs=programs, hook=Secret(hook))
    got = desk.server_port
    leave_address(folder, port=got, token=token, programs=programs, hook=hook)
    desk.start()
    return desk, f"http://127.0.0.1:{got}{programs_path(programs)}"


def leave_address(folder: Path, **known: str | int) -> None:
    """Leave port and secrets for `fire` and for the next start, readable by the owner alone."""
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / "address.json"
    handle = os.open(place.with_suffix(".new"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w") as file:
        json.dump({"address": f"http://127.0.0.1:{known['port']}", **known}, file)
    place.with_suffix(".new").replace(place)


def webhooks(folder: Path, *, base: str = "") -> dict[str, Any]:
    """What to enter at a forge so that it wakes the controller: addresses and secret.

    Args:
        folder: The inbox's folder.
        base: What forges reach the inbox by, `https://hooks.example.com`; the inbox's own address when empty.

    Raises:
        SilentError: No controller that takes webhooks ever ran here.
    """
    known = _known(folder)
    if not known.get("hook"):
        raise SilentError("inbox: expected a secret for webhooks, an earlier controller left none; start `myelin run`")
    top = (base or str(known.get("public") or known["address"])).rstrip("/")
    project = quote(str(known.get("project", ANY_PROJECT)))
    return {"secret": known["hook"], "urls": {kind: f"{top}/{ADDRESS}/{project}/{kind}" for kind in KINDS}}


def fire(folder: Path, path: str, body: bytes) -> str:
    """Send a REST trigger's event as any client could; returns its id.

    Args:
        folder: The inbox's folder.
        path: `<axon>/<sensor>` or `<axon>/<sensor>/<trigger>`.
        body: JSON, or empty.
    """
    known = _known(folder)
    connection = http.client.HTTPConnection("127.0.0.1", known["port"], timeout=TIMEOUT_SECONDS)
    try:
        headers = {"Authorization": f"Bearer {known['token']}", "Content-Type": "application/json"}
        connection.request("POST", f"/sensors/{ANY_PROJECT}/{quote(path)}", body or b"{}", headers)
        answer = connection.getresponse()
        value = json.loads(answer.read())
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise SilentError(f"inbox at {known['address']}: no answer; is `myelin run` running?") from error
    finally:
        connection.close()
    if answer.status != 202:
        raise RefusedError(f"inbox: {value.get('message', answer.status)}")
    return str(value["id"])


def _known(folder: Path) -> dict[str, Any]:
    try:
        known: dict[str, Any] = json.loads((folder / "address.json").read_bytes())
    except OSError as error:
        raise SilentError("inbox: expected a running controller, there is none; start `myelin run`") from error
    return known


def _open(port: int | None, known: int) -> Desk:
    """A desk at the port that was asked for, or else at the one that was had before, or else at any."""
    try:
        return _desk(known if port is None else port)
    except RefusedError as error:
        if port is not None:
            raise RefusedError(f"{error.message} with --inbox-port", reason=error.reason) from error
        return _desk(0)


def _desk(port: int) -> Desk:
    return Desk("127.0.0.1", port, is_ready=lambda: True, is_alive=lambda: True)
