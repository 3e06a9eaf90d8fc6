"""Debian's sshd on loopback, as the user who runs the tests: its own host key, one user key, Git and nothing else."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"
PASSPHRASE = 'open sesame\'s "door" $HOME'


class SshServer:
    """Serves every repository of this machine that its user may read.

    Args:
        folder: Where keys and settings go.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, mode=0o700)
        self.folder = folder
        for name, passphrase in (("host", ""), ("identity", ""), ("closed", PASSPHRASE), ("stranger", ""), ("other_host", "")):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-C", name, "-f", str(folder / name)]
            subprocess.run(command, check=True)
        keys = [(folder / f"{name}.pub").read_text() for name in ("identity", "closed")]
        (folder / "authorized_keys").write_text("".join(keys))
        self.port = _free_port()
        settings = [
            f"Port {self.port}",
            "ListenAddress 127.0.0.1",
            f"HostKey {folder / 'host'}",
            f"AuthorizedKeysFile {folder / 'authorized_keys'}",
            f"PidFile {folder / 'pid'}",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "UsePAM no",
            "PermitRootLogin prohibit-password",
            # The folder of a test is below one that everybody may write to.
            "StrictModes no",
            "AcceptEnv GIT_PROTOCOL",
            "SetEnv GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0=*",
            "MaxStartups 100",
        ]
        (folder / "sshd_config").write_text("\n".join(settings) + "\n")
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        self._log = (folder / "log").open("w")
        self._process = subprocess.Popen([SSHD, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=self._log)
        deadline = time.monotonic() + 20
        while not self._answers():
            if time.monotonic() > deadline or self._process.poll() is not None:
                said = (folder / "log").read_text()
                self.close()
                raise RuntimeError(f"sshd does not answer: {said}")
            time.sleep(0.02)

    @property
    def known_hosts(self) -> str:
        """The line that a person would have checked and kept."""
        kind, key = (self.folder / "host.pub").read_text().split()[:2]
        return f"[127.0.0.1]:{self.port} {kind} {key}\n"

    def key(self, name: str = "identity") -> str:
        """A private key: `identity`; `closed`, which needs the passphrase; `stranger`, which is not let in."""
        return (self.folder / name).read_text()

    def url(self, path: Path) -> str:
        """URL of a repository of this machine."""
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}{path}"

    def close(self) -> None:
        """Answer nobody any more."""
        self._process.terminate()
        self._process.wait(10)
        self._log.close()

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1) as found:
            return found.recv(4) == b"SSH-"
        return False


@contextmanager
def ssh_server(folder: Path) -> Iterator[SshServer]:
    """An SSH server as long as the block lasts; where there is none, the test is skipped and says so."""
    if not Path(SSHD).exists() or not shutil.which("ssh-keygen"):
        pytest.skip("sshd is not installed here (Debian: openssh-server)")
    server = SshServer(folder)
    try:
        yield server
    finally:
        server.close()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
