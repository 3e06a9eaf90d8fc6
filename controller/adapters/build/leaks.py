"""Secrets of a build, looked for in all that comes out of it: layers, configuration, history and log.

A secret is found as it is, line by line, and in the forms in which programs write things down: base64, hexadecimal, as part of
a URL or of JSON. What a step compressed or encrypted is not opened.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import os
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO
from urllib.parse import quote

from policies.errors import DesiredStateError, TrustError
from policies.terms.secret import Secret

SHORTEST_BYTES = 8
"""Shorter ones are found everywhere, and protect nothing."""
SHORTEST_LINE_BYTES = 20
"""A line of a longer secret that is looked for by itself."""
LONGEST_BYTES = 4096
"""Of a longer one, beginning and end are looked for."""
WRAPPED = 40
STARS = "***"
_BLOCK = 1 << 20
_MARKER = b"-----"
"""Lines of PEM that begin with it are the same in all files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MountedSecret:
    """What steps of one build may read, and never copy."""

    name: str
    path: str
    """Where its files lie, an absolute folder."""
    files: Mapping[str, Secret] = field(default_factory=dict)
    """Name -> content."""


class Needles:
    """What to look for.

    Args:
        secrets: Those of one build.
    """

    def __init__(self, secrets: Iterable[MountedSecret]) -> None:
        found: dict[bytes, str] = {}
        for secret in secrets:
            for name, content in secret.files.items():
                for form in _forms(content.reveal().encode("utf-8", "surrogateescape")):
                    found.setdefault(form, f"{secret.name}/{name}")
        self._found = dict(sorted(found.items(), key=lambda item: (-len(item[0]), item[0])))
        self._longest = max(map(len, self._found), default=0)

    def __bool__(self) -> bool:
        return bool(self._found)

    def in_bytes(self, data: bytes) -> str:
        """Which secret is in there, `name/file`; empty for none."""
        return next((name for form, name in self._found.items() if form in data), "")

    def in_stream(self, source: IO[bytes]) -> str:
        """The same for what is too long to hold."""
        kept = b""
        while block := source.read(_BLOCK):
            data = kept + block
            if name := self.in_bytes(data):
                return name
            kept = data[-(self._longest - 1) :] if self._longest > 1 else b""
        return ""

    def redacted(self, text: str) -> str:
        """A text in which stars stand for secrets."""
        data = text.encode("utf-8", "surrogateescape")
        for form in self._found:
            data = data.replace(form, STARS.encode())
        return data.decode("utf-8", "replace")

    def in_layer(self, blob: Path, *, is_packed: bool = True) -> tuple[str, str]:
        """(secret, path of the entry that has it) of the first one in a layer; empty for none.

        Raises:
            TrustError: It is no tar archive.
        """
        try:
            with blob.open("rb") as raw:
                stream = gzip.GzipFile(fileobj=raw) if is_packed else raw
                with tarfile.open(fileobj=stream, mode="r|") as archive:
                    for member in archive:
                        if name := self._in_member(archive, member):
                            return name, self.redacted(member.name)
        except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise TrustError(f"layer {blob.name}: expected a tar archive, got {error}", reason="BadLayer") from error
        return "", ""

    def _in_member(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> str:
        said = [member.name, member.linkname, member.uname, member.gname, *member.pax_headers, *member.pax_headers.values()]
        if name := self.in_bytes("\0".join(said).encode("utf-8", "surrogateescape")):
            return name
        content = archive.extractfile(member) if member.isreg() else None
        return self.in_stream(content) if content is not None else ""


@contextlib.contextmanager
def in_memory(secrets: Iterable[MountedSecret]) -> Iterator[dict[tuple[str, str], int]]:
    """Open files with the content of secrets, by secret and key; they lie in no folder, and are gone with whoever has them open.

    Raises:
        DesiredStateError: A key is no name of a file.
    """
    found: dict[tuple[str, str], int] = {}
    try:
        for secret in secrets:
            for name, content in secret.files.items():
                if "/" in name or name in ("", ".", "..") or "\0" in name:
                    text = f"secret {secret.name}: expected keys that are names of files, got {name!r}"
                    raise DesiredStateError(text, reason="BadSecret")
                found[secret.path, name] = os.memfd_create("secret")
                with os.fdopen(found[secret.path, name], "wb", closefd=False) as file:
                    file.write(content.reveal().encode("utf-8", "surrogateescape"))
                os.lseek(found[secret.path, name], 0, os.SEEK_SET)
        yield found
    finally:
        for descriptor in found.values():
            os.close(descriptor)


def refuse_leak(secret: str, place: str) -> DesiredStateError:
    """What to tell of a secret that came out."""
    text = f"{place}: expected nothing of the secret {secret}, which may be read but not kept, got its content"
    return DesiredStateError(f"{text}; leave it where it is mounted, and replace the secret", reason="SecretLeaked")


def _forms(content: bytes) -> Iterator[bytes]:
    """What to look for, of one file."""
    whole = content.strip()
    lines = [line.strip() for line in whole.splitlines()] if b"\n" in whole else []
    yield from (line for line in lines if len(line) >= SHORTEST_LINE_BYTES and not line.startswith(_MARKER))
    if len(whole) < SHORTEST_BYTES:
        return
    text = whole.decode("utf-8", "surrogateescape")
    yield from _ends(whole, LONGEST_BYTES)
    yield from _ends(json.dumps(text)[1:-1].encode(), LONGEST_BYTES)
    yield from _ends(json.dumps(text, ensure_ascii=False)[1:-1].encode("utf-8", "surrogateescape"), LONGEST_BYTES)
    yield from _ends(quote(whole, safe="").encode(), LONGEST_BYTES)
    # What programs write in lines of 60 or 76 letters is found by its beginning or end.
    yield from _ends(whole.hex().encode(), WRAPPED)
    yield from _ends(whole.hex().upper().encode(), WRAPPED)
    # Within longer text, base64 of it depends on where it begins; letters that its neighbours have a part in are left out.
    for before in range(3):
        coded = base64.b64encode(b"\0" * before + whole)
        inner = coded[(before * 8 + 5) // 6 : (before + len(whole)) * 8 // 6]
        yield from _ends(inner, WRAPPED)
        yield from _ends(inner.replace(b"+", b"-").replace(b"/", b"_"), WRAPPED)


def _ends(form: bytes, longest: int) -> Iterator[bytes]:
    yield form[:longest]
    yield form[-longest:]
