"""Locked requirements -> wheels on disk. pip fetches them: it knows the machine's index, proxies and certificates."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path

from policies.errors import DesiredStateError, SilentError
from policies.terms.digest import digest_of

_NAME = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)(\[[^\]]*\])?\s*==", re.MULTILINE)
_SILENT = ("connection", "timed out", "temporary failure", "max retries", "name resolution", "503", "502")


OURS = "myelin"
"""The earlier client's package on the index has this name; ours takes its place in every image."""


def merged_lock(own: str, runtime: str) -> str:
    """The user's lock without `myelin`, and with those requirements of the runtime that it does not pin itself."""
    kept = [block for block in re.split(r"(?m)^(?=[A-Za-z0-9])", own) if not _is_ours(block)]
    own = "".join(kept)
    pinned = {_plain(match[1]) for match in _NAME.finditer(own)}
    blocks = re.split(r"(?m)^(?=[A-Za-z0-9])", runtime)
    extra = [block for block in blocks if (match := _NAME.match(block)) and _plain(match[1]) not in pinned]
    return own.rstrip("\n") + "\n" + "".join(extra)


def _is_ours(block: str) -> bool:
    match = _NAME.match(block)
    return match is not None and _plain(match[1]) == OURS


def taken_out(lock: str, names: Collection[str]) -> tuple[str, dict[str, str]]:
    """A lock without these packages, and the versions that it pinned them to."""
    kept, versions = [], {}
    for block in re.split(r"(?m)^(?=[A-Za-z0-9])", lock):
        match = _NAME.match(block)
        if match is not None and _plain(match[1]) in names:
            versions[_plain(match[1])] = re.split(r"[\s;\\]", block[match.end() :].strip(), maxsplit=1)[0]
        else:
            kept.append(block)
    return "".join(kept), versions


def check_hashes(lock: str, file: str) -> None:
    """See that every requirement is pinned with its hashes.

    Raises:
        DesiredStateError: One is not; names file and line.
    """
    joined = re.sub(r"\\\n", lambda _: " \x00", lock)
    line = 1
    for text in joined.split("\n"):
        bare = text.split(" #")[0].replace("\x00", "").strip()
        if bare and not bare.startswith(("#", "-")) and ("==" not in bare or "--hash=sha256:" not in bare):
            expected = "expected name==version with --hash=sha256:…"
            message = f"{file}:{line}: {expected}, got {bare[:60]!r}; make it with `uv pip compile --generate-hashes`"
            raise DesiredStateError(message, reason="NotLocked")
        line += 1 + text.count("\x00")


def fetch_wheels(lock: str, cache: Path, *, file: str, progress: Callable[[str], None]) -> list[Path]:
    """All wheels of a lock for this machine, sorted by name; only what is missing is fetched.

    Raises:
        DesiredStateError: A hash does not fit, or there is no wheel.
        SilentError: The index does not answer.
    """
    cache.mkdir(parents=True, exist_ok=True)
    memo = cache / f"lock-{digest_of(f'{lock}{sys.version_info[:2]}'.encode()).removeprefix('sha256:')[:32]}.json"
    if memo.exists():
        names = json.loads(memo.read_bytes())
        if all((cache / name).exists() and _sha(cache / name) == sha for name, sha in names.items()):
            return [cache / name for name in sorted(names)]
    progress("fetching wheels")
    with tempfile.TemporaryDirectory(dir=cache, prefix="new-") as folder:
        requirements = Path(folder) / "requirements.txt"
        requirements.write_text(lock)
        found = Path(folder) / "wheels"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
        command += ["--require-hashes", "--no-deps", "--only-binary", ":all:", "--dest", str(found), "-r", str(requirements)]
        environment = {key: value for key, value in os.environ.items() if not _is_empty_place(key, value)}
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=environment, check=False)
        if done.returncode:
            raise _failed(done.stderr, file)
        names = {}
        for path in found.glob("*.whl") if found.exists() else ():
            names[path.name] = _sha(path)
            os.replace(path, cache / path.name)
    temporary = memo.with_suffix(".new")
    temporary.write_text(json.dumps(names))
    os.replace(temporary, memo)
    return [cache / name for name in sorted(names)]


def _failed(text: str, file: str) -> DesiredStateError | SilentError:
    lines = [
        line.removeprefix("ERROR: ").strip()
        for line in text.splitlines()
        if line.startswith("ERROR") or "Expected sha256" in line
    ]
    words = "; ".join(re.sub(r"\w+://\S+", "the index", line) for line in lines[:3]) or "pip gave no reason"
    if "no space left" in text.lower():
        return SilentError(f"wheels of {file}: no space left on the disk", reason="DiskFull")
    if any(word in text.lower() for word in _SILENT):
        return SilentError(f"wheels of {file}: {words}")
    return DesiredStateError(f"{file}: {words}", reason="NoWheel")


def _is_empty_place(key: str, value: str) -> bool:
    return key == "PIP_FIND_LINKS" and "://" not in value and not Path(value).exists()


def _sha(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
