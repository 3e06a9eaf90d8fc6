"""A package index on loopback with wheels made for a test, and with the faults that indexes have."""

from __future__ import annotations

import base64
import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from policies.terms.digest import Digest, digest_of


def wheel_bytes(
    name: str, version: str, files: Mapping[str, bytes] | None = None, *, said: tuple[str, str] | None = None, needs: str = ""
) -> bytes:
    """A wheel.

    Args:
        name: Of the project.
        version: Of the release.
        files: What is in it, beside its metadata.
        said: Name and version in its metadata; None: its own.
        needs: A requirement of it.
    """
    inner, stated = name.replace("-", "_"), said or (name, version)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        metadata = f"Metadata-Version: 2.1\nName: {stated[0]}\nVersion: {stated[1]}\n" + (
            f"Requires-Dist: {needs}\n" if needs else ""
        )
        tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        head = {f"{inner}-{version}.dist-info/METADATA": metadata.encode(), f"{inner}-{version}.dist-info/WHEEL": tags.encode()}
        for path, data in {**(files or {f"{inner}.py": b"value = 1\n"}), **head}.items():
            archive.writestr(zipfile.ZipInfo(path), data)
        archive.writestr(zipfile.ZipInfo(f"{inner}-{version}.dist-info/RECORD"), b"")
    return out.getvalue()


@dataclass(slots=True)
class WheelIndex:
    """Files of releases, and what goes wrong with them."""

    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Project -> file name -> bytes."""
    faults: dict[str, str] = field(default_factory=dict)
    """File or project name -> `429`, `500`, `401`, `half` or `other` bytes."""
    asked: list[str] = field(default_factory=list)
    """Paths that were asked for, in order."""
    passwords: dict[str, str] = field(default_factory=dict)
    """User -> password; empty: everybody may read."""
    address: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, name: str, version: str, *, tags: str = "py3-none-any", data: bytes | None = None, file: str = "") -> Digest:
        """One more wheel, or another file."""
        data = wheel_bytes(name, version, {f"{name.replace('-', '_')}.py": tags.encode()}) if data is None else data
        self.files.setdefault(name, {})[file or f"{name.replace('-', '_')}-{version}-{tags}.whl"] = data
        return digest_of(data)

    def line(self, name: str, version: str, *digests: str) -> str:
        """The release as a line of a lock, with the hashes of all of its files unless others are given."""
        every = digests or tuple(digest_of(data) for file, data in self.files[name].items() if f"-{version}" in file)
        return f"{name}=={version}" + "".join(f" \\\n    --hash={digest}" for digest in every) + "\n"

    def fetched(self) -> list[str]:
        """Files that were asked for."""
        return [path.rsplit("/", 1)[1] for path in self.asked if path.endswith((".whl", ".tar.gz"))]


@contextmanager
def wheel_index() -> Iterator[WheelIndex]:
    """Serve an index (PEP 503)."""
    index = WheelIndex()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            with index.lock:
                index.asked.append(self.path)
            project, _, file = self.path.removeprefix("/simple/").partition("/")
            given = self.headers.get("Authorization", "").removeprefix("Basic ")
            if index.passwords and base64.b64decode(given).decode() not in {f"{u}:{p}" for u, p in index.passwords.items()}:
                return self.say(401, b"", {"WWW-Authenticate": 'Basic realm="x"'})
            fault = index.faults.get(file or project, "")
            if fault.isdigit():
                return self.say(int(fault), b"")
            known = index.files.get(project)
            if known is None:
                return self.say(404, b"")
            if not file:
                links = [f'<a href="{name}#sha256={hashlib.sha256(data).hexdigest()}">{name}</a>' for name, data in known.items()]
                return self.say(
                    200,
                    "\n".join(["<!DOCTYPE html><html><body>", *links, "</body></html>"]).encode(),
                    {"Content-Type": "text/html"},
                )
            data = known[file]
            if fault == "other":
                data = data[:-1] + bytes([data[-1] ^ 1])
            return self.say(200, data, half=fault == "half")

        do_HEAD = do_GET

        def say(self, status: int, body: bytes, headers: Mapping[str, str] | None = None, *, half: bool = False) -> None:
            self.send_response(status)
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body[: len(body) // 2] if half else body)
            if half:
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    index.address = f"http://127.0.0.1:{server.server_port}/simple/"
    try:
        yield index
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
