"""How messages travel over HTTP: reading a request's, and the one shape of all errors."""

from __future__ import annotations

import json
import warnings
from typing import Any
from urllib.parse import parse_qs

from aiohttp import BadContentDispositionHeader, BadContentDispositionParam, web
from aiohttp.http_exceptions import HttpProcessingError

from myelin.serve.message import BadRequest

LARGEST_BODY_BYTES = 16 << 20
REASONS = {400: "BadRequest", 404: "NotFound", 413: "TooLarge", 500: "ModelError"}
MISSING = "expected a message: form field or query parameter `json`, or a JSON body"

for _kind in (BadContentDispositionHeader, BadContentDispositionParam):
    # What a caller got wrong is said to the caller; in our log, each would be a line of its own.
    warnings.filterwarnings("ignore", category=_kind)


async def read_message(request: web.Request) -> Any:
    """The message of a request: form field, query parameter or bare JSON, whatever the content type says.

    The field may be a part of any content type, or a file, of a multipart form, and stand at any place of a form.

    Raises:
        BadRequest: None of them.
        HTTPRequestEntityTooLarge: The body has more than `LARGEST_BODY_BYTES`.
    """
    raw: Any = request.query.get("json")
    if raw is None:
        is_form = request.content_type == "multipart/form-data"
        raw = await _part(request) if is_form else await request.read()
    try:
        text = raw.decode() if isinstance(raw, (bytes, bytearray)) else str(raw)
    except UnicodeDecodeError as error:
        raise BadRequest("expected UTF-8") from error
    # JSON that came with curl's default content type is told from a form by its first character.
    if text.lstrip()[:1] not in ("", "{", "[", '"') and (fields := parse_qs(text, keep_blank_values=True)).get("json"):
        text = fields["json"][0]
    if not text.strip():
        raise BadRequest(MISSING)
    try:
        return json.loads(text)
    except RecursionError as error:
        raise BadRequest("expected JSON, got a document that is nested too deeply") from error
    except ValueError as error:
        raise BadRequest(f"expected JSON: {error}") from error


async def _part(request: web.Request) -> Any:
    try:
        form = await request.post()
    except (ValueError, LookupError, AssertionError, RuntimeError, HttpProcessingError) as error:
        raise BadRequest(f"expected a multipart form: {str(error) or type(error).__name__}") from error
    found = form.get("json", "")
    if not isinstance(found, web.FileField):
        return found
    with found.file:
        return found.file.read()


def failure(code: int, text: str) -> web.Response:
    """An error: `{"status": {"code", "info", "reason", "status": "FAILURE"}}`.

    The earlier server said `code` -1 and `reason` MICROSERVICE_BAD_DATA for any bad message; here `code` is the HTTP
    status and `reason` one word for each.
    """
    status = {"code": code, "info": " ".join(text.split())[:500], "reason": REASONS.get(code, "Unavailable"), "status": "FAILURE"}
    return web.json_response({"status": status}, status=code)
