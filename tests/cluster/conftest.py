"""One node for the session, one Kubernetes namespace for each test.

The tests that use the node run in a pytest process of their own (`python -m pytest -n 0 tests/cluster`), since that process
moves into the node's network; elsewhere, and where a node lacks something, they are skipped with that reason.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.node import Node, missing

HERE = Path(__file__).parent
STRANGERS = pytest.StashKey[bool]()
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Note whether tests that need the machine's own network run in this process as well."""
    config.stash[STRANGERS] = any(not item.path.is_relative_to(HERE) for item in items)


@pytest.fixture(scope="session")
def node(request: pytest.FixtureRequest) -> Iterator[Node]:
    """A running node, whose network this process is in: a new one, or that whose state folder `MYELIN_NODE_STATE` names."""
    if "PYTEST_XDIST_WORKER" in os.environ or request.config.stash.get(STRANGERS, False):
        pytest.skip("tests of the node run in a process of their own: python -m pytest -n 0 tests/cluster")
    running = os.environ.get("MYELIN_NODE_STATE")
    lacking = [] if running else missing()
    if lacking:
        pytest.skip(f"a Kubernetes node needs: {'; '.join(lacking)}")
    one = Node.at(Path(running)) if running else Node()
    if not running:
        one.up(owner=os.getpid())
    before = one.enter()
    try:
        yield one
    finally:
        Node.leave(before)
        if not running:
            one.down()


@pytest.fixture
def namespace(node: Node) -> Iterator[str]:
    """A fresh Kubernetes namespace that admits only restricted pods, deleted after the test."""
    name = f"test-{secrets.token_hex(4)}"
    document = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": RESTRICTED}}
    node.kubectl("create", "-f", "-", input=json.dumps(document))
    yield name
    node.kubectl("delete", "namespace", name, "--wait=false", "--ignore-not-found")
