"""What a project's BuildKit is shown, and has to show: three PEM files among the project's keys, in a folder or in its Secret.

The authority alone proves the daemon to us; certificate and key prove us to it, and are nothing without the authority.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from controller.adapters.build.buildkit import CA, CERTIFICATE, FLAGS, KEY, PROGRAM_VARIABLE, Daemon
from policies.errors import DesiredStateError, RefusedError
from policies.terms.secret import Secret


def daemon_in(folder: Path, environ: Mapping[str, str]) -> Daemon:
    """How a BuildKit is reached with what lies in a folder of keys.

    Raises:
        DesiredStateError: Not all is there that belongs together.
        RefusedError: Others may read the key, or a file cannot be read.
    """
    files = {name: folder / name for name in FLAGS if (folder / name).exists()}
    if KEY in files and files[KEY].stat().st_mode & 0o077:
        text = f"{files[KEY]}: expected a key that only its owner may read; run `chmod 600` on it"
        raise RefusedError(text, reason="OpenKey")
    texts = {}
    for name, path in files.items():
        try:
            texts[name] = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise RefusedError(f"{path}: expected PEM, it cannot be read", reason="NoKey") from error
    return daemon_of(texts, str(folder), environ)


def daemon_of(texts: Mapping[str, str], origin: str, environ: Mapping[str, str], *, address: str = "") -> Daemon:
    """How a BuildKit is reached with what a Secret says under its keys.

    Args:
        texts: Name -> PEM; other names count for nothing.
        origin: Where they lie, for messages.
        environ: Knows where the client is, if it is not found by itself.
        address: Where the daemon is if the repository does not say.

    Raises:
        DesiredStateError: Not all is there that belongs together.
    """
    shown = {name: texts[name] for name in FLAGS if texts.get(name)}
    if shown and not (CA in shown and (CERTIFICATE in shown) == (KEY in shown)):
        text = f"{origin}: expected {CA} alone, or with {CERTIFICATE} and {KEY}, got {' and '.join(shown)}"
        raise DesiredStateError(f"{text}; lay the others beside", reason="KeyMissing")
    for name, pem in shown.items():
        if "-----BEGIN " not in pem:
            raise DesiredStateError(f"{origin}: {name}: expected PEM, got something else", reason="BadKey")
    program = environ.get(PROGRAM_VARIABLE) or Daemon().program
    return Daemon(address=address, shown={name: Secret(pem) for name, pem in shown.items()}, program=program)
