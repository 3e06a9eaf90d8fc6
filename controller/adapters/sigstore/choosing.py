"""Which key-less signing a project's controller does: what lies in `keys/` of its state folder decides.

`keys/sigstore.json`, a client trust configuration, names an instance; an empty file, the public good one. `keys/sigstore.seed` is
an embedded one. Neither is made by itself: the one that lies there signs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from controller.adapters.keys import read_private
from controller.adapters.sigstore.authority import Authority
from controller.adapters.sigstore.embedded import Embedded, identity_of
from controller.adapters.sigstore.keyless import Keyless, check_config, token_in
from controller.adapters.sigstore.leaves import LedgerLeaves
from policies.errors import RefusedError
from reconcilers.ports import Clock, Ledger

CONFIG, SEED, TOKEN = "sigstore.json", "sigstore.seed", "identity.token"
"""Names of files in the folder of keys, and of keys in a Secret."""
TOKEN_VARIABLE = "MYELIN_IDENTITY_TOKEN_FILE"
"""Names the file of the identity token, where it lies elsewhere: a cluster's projected token."""


def keyless_signer(
    folder: Path, ledger: Ledger, clock: Clock, *, namespace: str, project: str, environ: Mapping[str, str] = os.environ
) -> Keyless | Embedded | None:
    """What signs without a key of years; None where nothing of it lies in the folder.

    Args:
        folder: The folder of keys.
        ledger: The project's, in which an embedded instance keeps its log.
        clock: The clock.
        namespace: The project's.
        project: Its name.
        environ: The environment.

    Raises:
        RefusedError: Both lie there, or a file cannot be read, or others may read a seed.
        TrustError: A file is none of its kind.
    """
    config, seed = folder / CONFIG, folder / SEED
    if config.exists() and seed.exists():
        raise RefusedError(
            f"{folder}: expected {CONFIG} or {SEED}, got both; remove the one that is not to sign", reason="TwoKeys"
        )
    if seed.exists():
        identity = identity_of(namespace, project)
        return Embedded(Authority.parse(read_private(seed), str(seed)), LedgerLeaves(ledger), identity=identity, now=clock.now)
    if not config.exists():
        return None
    try:
        text = config.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise RefusedError(f"{config}: expected a client trust configuration that can be read", reason="NoConfig") from error
    check_config(text)
    return Keyless(text, token_in(Path(environ.get(TOKEN_VARIABLE) or folder / TOKEN)), now=clock.now)


def make_seed(folder: Path, now: datetime) -> Authority:
    """Make the seed of an embedded instance in a folder of keys.

    Raises:
        RefusedError: One is there already, or the folder cannot be written.
    """
    return Authority.generate(folder / SEED, now)
