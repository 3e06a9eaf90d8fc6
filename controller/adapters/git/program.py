"""The door to GitPython: starts `git` in a folder, shut off from the user's hooks, templates and signing.

Proxies, certificates, SSH agent and credential helpers of the user do reach in.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from subprocess import PIPE
from typing import Any

Pairs = tuple[tuple[str, str], ...]

ENVIRONMENT: Mapping[str, str] = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_OPTIONAL_LOCKS": "0",
    "LC_ALL": "C",
    # A server that sends less than this many bytes a second for so many seconds is silent.
    "GIT_HTTP_LOW_SPEED_LIMIT": "100",
    "GIT_HTTP_LOW_SPEED_TIME": "30",
}
SETTINGS: Pairs = (
    ("core.hooksPath", "/dev/null"),
    ("commit.gpgSign", "false"),
    ("gc.auto", "0"),
    ("maintenance.auto", "false"),
    ("safe.directory", "*"),
    # One ref is asked for by its name; a server that does not know how lists them all.
    ("protocol.version", "2"),
    # A URL comes out of a repository, in the end: `ext::` would run a program.
    ("protocol.allow", "never"),
    *((f"protocol.{name}.allow", "always") for name in ("file", "http", "https", "ssh", "git")),
)


class GitFailed(Exception):
    """`git` ended with an error; the text is what it said."""


def settings(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Settings as environment, after those that always hold: arguments may be read by every process of a machine."""
    numbered = tuple(enumerate((*SETTINGS, *pairs)))
    found = {"GIT_CONFIG_COUNT": str(len(numbered))}
    for number, (key, value) in numbered:
        found |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    return found


class Program:
    """`git`, started in one folder.

    Args:
        folder: Where it is started.
    """

    def __init__(self, folder: Path) -> None:
        from git.cmd import Git

        self._git = Git(str(folder))
        self._git.update_environment(**ENVIRONMENT, **settings(()))

    def run(self, *args: str, stdin: bytes = b"", env: Mapping[str, str] | None = None) -> str:
        """What it prints; bytes that are no UTF-8 come as surrogates.

        Raises:
            GitFailed: It ended with an error.
        """
        from git.exc import GitError

        try:
            with tempfile.TemporaryFile() as source:
                source.write(stdin)
                source.seek(0)
                out = self._git.execute(
                    ["git", *args], istream=source, env=dict(env or {}), strip_newline_in_stdout=False, stdout_as_string=False
                )
        except (GitError, OSError) as error:
            said = f"{getattr(error, 'stderr', '')}\n{getattr(error, 'stdout', '')}".strip() or str(error)
            raise GitFailed(said) from error
        return bytes(out).decode(errors="surrogateescape")

    def start(self, *args: str) -> Process:
        """Start it and leave it running, to be asked on its standard input."""
        # In a session of its own: Ctrl-C in a terminal is for us, who end the pass first.
        return Process(self._git.execute(["git", *args], as_process=True, istream=PIPE, start_new_session=True))


class Process:
    """One `git` that goes on running."""

    def __init__(self, process: Any) -> None:
        self._process = process

    @property
    def is_over(self) -> bool:
        """Whether it ended."""
        return self._process.proc.poll() is not None

    def write(self, data: bytes) -> None:
        """Write to it, at once."""
        self._process.stdin.write(data)
        self._process.stdin.flush()

    def line(self) -> bytes:
        """The next line that it prints, with its end; empty when it ended."""
        return bytes(self._process.stdout.readline())

    def read(self, size: int) -> bytes:
        """The next `size` bytes."""
        return bytes(self._process.stdout.read(size))

    def end(self) -> None:
        """Let it end."""
        from git.exc import GitError

        try:
            self._process.stdin.close()
            self._process.wait()
        except (GitError, OSError):
            pass  # it is gone, which is what was wanted
