"""Sigstore's verifier for Node (npm's `@sigstore/verify`): somebody else's eyes on what we sign."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from tests.cluster.cache import digest_of, keep

PEER = Path(__file__).parents[1] / "controller" / "node"
FILES = ("package.json", "package-lock.json", "verify.mjs")
"""Node looks for packages beside the script, so all lie in one folder."""
OLDEST_NODE = 20
EMPTY_ROOT: dict[str, Any] = {
    "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
    "tlogs": [],
    "certificateAuthorities": [],
    "ctlogs": [],
    "timestampAuthorities": [],
}
"""What trusts nobody: bundles that were made with a key need no more."""


@cache
def why_no_node() -> str:
    """Why there is no such verifier to test with; empty when there is one. It is fetched at the first call."""
    for program in ("node", "npm"):
        if not shutil.which(program):
            return f"{program}: expected Node {OLDEST_NODE} or newer with npm, it is not installed"
    said = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout
    if int(said.strip().removeprefix("v").split(".")[0]) < OLDEST_NODE:
        return f"node: expected {OLDEST_NODE} or newer, got {said.strip()}"
    try:
        _installed()
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return f"npm ci: expected the packages of tests/controller/node, got exit status {error.returncode}: {last}"
    return ""


def verify(bundle: Path, root_or_key: str, *, artifact: bytes | None = None, identity: str = "", issuer: str = "") -> str:
    """Why it refuses a bundle; empty where it takes it.

    Args:
        bundle: File of a Sigstore bundle in JSON.
        root_or_key: A trusted root in JSON, or a public key in PEM.
        artifact: What was signed, where the bundle holds no envelope.
        identity: Whom the certificate has to name; a regular expression to this verifier. Empty: anybody.
        issuer: Who has to have vouched for that.
    """
    is_key = root_or_key.lstrip().startswith("-----BEGIN")
    asked = {
        "bundle": json.loads(bundle.read_bytes()),
        "root": EMPTY_ROOT if is_key else json.loads(root_or_key),
        "key": root_or_key if is_key else "",
        "artifact": None if artifact is None else base64.b64encode(artifact).decode(),
        "identity": identity,
        "issuer": issuer,
    }
    command = ["node", _installed() / "verify.mjs"]
    done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, check=True, timeout=60)
    return str(json.loads(done.stdout)["refused"])


def _installed() -> Path:
    def make(folder: Path) -> None:
        for name in FILES:
            shutil.copy(PEER / name, folder / name)
        command = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
        subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=300)

    return keep("node", digest_of(*((PEER / name).read_bytes() for name in FILES)), make)
