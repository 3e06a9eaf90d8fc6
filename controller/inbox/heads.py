"""The head of a request, read only as far as to see what it asks for and who asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote

from controller.inbox.front import END


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What a request says before its body."""

    method: str
    path: str
    """Without its query."""
    headers: Mapping[str, str]
    """By name in lower case; of one that comes twice the first."""
    size_bytes: int
    """Its own length."""

    @property
    def parts(self) -> list[str]:
        """The path's parts."""
        return path_parts(self.path)


def read_head(received: bytes) -> Head | None:
    """The head at the start of what was received; None while its end is missing. One that is no HTTP has no method."""
    end = received.find(END)
    if end < 0:
        return None
    first, *lines = received[:end].decode("latin-1").split("\r\n")
    method, _, rest = first.partition(" ")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            headers.setdefault(name.lower(), value.strip())
    is_http = rest.endswith((" HTTP/1.1", " HTTP/1.0"))
    path = rest.rpartition(" ")[0].partition("?")[0]
    return Head(method=method if is_http else "", path=path, headers=headers, size_bytes=end + len(END))


def path_parts(path: str) -> list[str]:
    """The parts of a path, decoded, without its query."""
    return [unquote(part) for part in path.partition("?")[0].strip("/").split("/")]


def body_size(headers: Mapping[str, str]) -> int:
    """How long a body says it is; -1 where it does not.

    Args:
        headers: By name in lower case.
    """
    given = headers.get("content-length") or ""
    is_plain = given.isascii() and given.isdigit() and len(given) < 19
    return int(given) if is_plain and not headers.get("transfer-encoding") else -1
