"""One Gitea for the session (with pytest-xdist: for each worker), started by the first test that wants it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.forge import binary
from tests.forge.gitea import Gitea


@pytest.fixture(scope="session")
def gitea(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gitea]:
    """A running Gitea; tests share it, each makes repositories of its own."""
    if lacking := binary.missing():
        pytest.skip(f"a forge needs: {lacking}")
    with Gitea(tmp_path_factory.mktemp("gitea")) as running:
        yield running
