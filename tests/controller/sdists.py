"""Source distributions made for a test, each with a backend of its own: nothing has to be fetched to build them."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Mapping

from controller.adapters.build.standards import host
from policies.locks import Target, Wanted
from policies.terms.digest import digest_of

TREE = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
HOST = host()
TAG = "py3-none-any"
"""Of wheels that run everywhere."""

BACKEND = '''
import os, time, zipfile

def wheel(out, name, version, files, tag="{tag}", needs=()):
    """Write a wheel as bad backends do: with the time of day, and with modes by umask."""
    file = f"{{name}}-{{version}}-{{tag}}.whl"
    head = f"Metadata-Version: 2.1\\nName: {{name}}\\nVersion: {{version}}\\n"
    head += "".join(f"Requires-Dist: {{need}}\\n" for need in needs)
    every = {{**files, f"{{name}}-{{version}}.dist-info/METADATA": head, f"{{name}}-{{version}}.dist-info/WHEEL":
              f"Wheel-Version: 1.0\\nGenerator: x\\nRoot-Is-Purelib: true\\nTag: {{tag}}\\n",
              f"{{name}}-{{version}}.dist-info/RECORD": ""}}
    with zipfile.ZipFile(os.path.join(out, file), "w", zipfile.ZIP_DEFLATED) as archive:
        for path, text in (every.items() if os.getpid() % 2 else reversed(every.items())):
            info = zipfile.ZipInfo(path, time.gmtime()[:6])
            info.external_attr = (0o100666 & ~umask()) << 16
            archive.writestr(info, text)
    return file

def umask():
    now = os.umask(0)
    os.umask(now)
    return now

def build_wheel(out, settings=None, metadata=None):
    files = {{"{module}.py": "VALUE = 1\\n"}}
    {body}
    return wheel(out, "{module}", "{version}", files, needs={needs!r})
'''


def packed(name: str, version: str, files: Mapping[str, str | bytes]) -> bytes:
    """A source distribution of these files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for path, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(f"{name}-{version}/{path}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return gzip.compress(out.getvalue(), mtime=0)


def sdist(
    name: str = "a",
    version: str = "1.0",
    body: str = "pass",
    *,
    more: str = "",
    project: str = TREE,
    tag: str = TAG,
    needs: tuple[str, ...] = (),
) -> bytes:
    """A source distribution that builds itself.

    Args:
        name: Of the release.
        version: Of it.
        body: What its backend does while it builds; `files` is what goes into the wheel, `out` where that goes.
        more: Further hooks, or what happens when the backend is imported.
        project: Its `pyproject.toml`.
        tag: Of its wheel.
        needs: What it says that it needs.
    """
    module = name.replace("-", "_")
    indented = body.replace("\n", "\n    ")
    code = BACKEND.format(module=module, version=version, body=indented, tag=tag, needs=needs) + more
    return packed(module, version, {"pyproject.toml": project, "backend.py": code, "PKG-INFO": f"Name: {name}\n"})


def wanted(data: bytes, name: str = "a", version: str = "1.0", line: int = 7) -> Wanted:
    """The release of a lock that names this source distribution."""
    return Wanted(
        name=name, version=version, hashes=(digest_of(data),), line=line, file=f"{name}-{version}.tar.gz", is_source=True
    )


def base_target() -> Target:
    """A base image's system."""
    return Target(python=HOST.python, platform=HOST.platform)
