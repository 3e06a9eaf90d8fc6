"""A push to a local repository wakes whoever watches it; reading it does not."""

import threading
from datetime import UTC, datetime
from pathlib import Path

from controller.adapters.files import watch_repository
from controller.adapters.git import GitRepository, init_bare
from controller.adapters.keys import SshKey

AT = datetime(2026, 1, 31, 12, tzinfo=UTC)


def test_every_push_wakes_also_one_to_a_branch_that_is_there(tmp_path: Path) -> None:
    init_bare(tmp_path / "origin.git")
    repository = GitRepository(str(tmp_path / "origin.git"), tmp_path / "mirror", SshKey.generate(tmp_path / "key"))
    woken = threading.Event()
    stop = watch_repository(tmp_path / "origin.git", woken.set)
    try:
        parent = ""
        for number in range(3):
            parent = repository.push(branch="main", parent=parent, changes={"a": str(number).encode()}, message="change\n", at=AT)
            assert woken.wait(10), f"push {number} woke nobody"
            woken.clear()
    finally:
        stop()
        repository.close()
