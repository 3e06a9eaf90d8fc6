"""The node's registry, as the test set-up fills it: an OCI layout in, a reference by digest out.

Never used by what is tested, which has a registry client of its own.
"""

from __future__ import annotations

import base64
import ctypes
import json
import secrets
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO


def hashed(password: str) -> str:
    """A password as the registry's htpasswd file wants it: bcrypt, by the C library's own crypt."""
    crypt = ctypes.CDLL("libcrypt.so.1").crypt
    crypt.restype = ctypes.c_char_p
    # Cost 4: the registry computes this for each request.
    said = crypt(password.encode(), f"$2b$04${secrets.token_hex(11)}".encode())
    if not said or not said.startswith(b"$2b$"):
        raise RuntimeError("crypt: expected bcrypt from libcrypt.so.1, got another answer")
    return str(said.decode())


def push(layout: Path, repository: str, *, user: str, password: str, tag: str = "") -> str:
    """Push the only manifest of an OCI layout over plain HTTP; the answer is its reference by digest.

    Args:
        layout: Folder with `index.json` and `blobs/`.
        repository: `host:port/path`.
        user: Who pushes.
        password: Theirs.
        tag: A name for it, besides the digest.
    """
    host, _, path = repository.partition("/")
    place = f"http://{host}/v2/{path}"
    credentials = base64.b64encode(f"{user}:{password}".encode()).decode()

    def ask(method: str, url: str, data: bytes | IO[bytes] | None = None, **headers: str) -> tuple[int, str]:
        fields = {"Authorization": f"Basic {credentials}", **{key.replace("_", "-"): value for key, value in headers.items()}}
        request = urllib.request.Request(url, data=data, method=method, headers=fields)
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.status, str(answer.headers.get("Location", ""))
        except urllib.error.HTTPError as error:
            with error:
                return error.code, ""

    descriptor = json.loads((layout / "index.json").read_text())["manifests"][0]
    data = _blob(layout, descriptor["digest"]).read_bytes()
    manifest = json.loads(data)
    for blob in (manifest["config"], *manifest["layers"]):
        if ask("HEAD", f"{place}/blobs/{blob['digest']}")[0] == 200:
            continue
        _, upload = ask("POST", f"{place}/blobs/uploads/", b"")
        joint = "&" if "?" in upload else "?"
        with _blob(layout, blob["digest"]).open("rb") as content:
            length, kind = str(blob["size"]), "application/octet-stream"
            status, _ = ask("PUT", f"{upload}{joint}digest={blob['digest']}", content, Content_Length=length, Content_Type=kind)
        if status != 201:
            raise RuntimeError(f"{repository}: expected 201 for blob {blob['digest']}, got {status}")
    for reference in filter(None, (descriptor["digest"], tag)):
        status, _ = ask("PUT", f"{place}/manifests/{reference}", data, Content_Type=manifest["mediaType"])
        if status != 201:
            raise RuntimeError(f"{repository}: expected 201 for manifest {reference}, got {status}")
    return f"{repository}@{descriptor['digest']}"


def _blob(layout: Path, digest: str) -> Path:
    return layout / "blobs" / digest.replace(":", "/")


if __name__ == "__main__":  # python -m tests.cluster.store LAYOUT REPOSITORY TAG, with user and password on standard input
    who, secret = sys.stdin.read().split("\n")[:2]
    print(push(Path(sys.argv[1]), sys.argv[2], user=who, password=secret, tag=sys.argv[3]))
