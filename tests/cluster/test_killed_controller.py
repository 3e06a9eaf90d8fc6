"""The controller's pod killed again and again in the middle of the story: the same commits come of it."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator

import pytest

from tests.cluster.node import CommandError, Node
from tests.cluster.story import SYSTEM, Story, single_training

KILLS = 20


@pytest.fixture(scope="module")
def calm(node: Node, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """A project that nobody disturbs, and its version."""
    told = Story(node, tmp_path_factory.mktemp("calm"), repository="calm", team="team-calm")
    told.build_controller()
    told.make_project(lambda text: single_training(text, epochs=6))
    told.prepare()
    told.install()
    told.apply(told.project_object())
    told.wait("the calm version", told.newest)
    yield told
    node.kubectl("delete", "project", "--all", "-A", "--wait=true", "--timeout=60s", check=False)
    node.helm("uninstall", "myelin", "--namespace", SYSTEM, check=False)
    node.kubectl("delete", "namespace", "team-calm", "team-wild", SYSTEM, "--wait=false", check=False)


def test_a_controller_killed_twenty_times_makes_the_same_commits(calm: Story) -> None:
    wild = calm.other("wild", like=calm)
    chance, killed = random.Random(KILLS), 0
    while killed < KILLS or not wild.newest():
        if name := calm.controller():
            try:
                calm.node.kubectl("delete", "pod", "-n", SYSTEM, name, "--force", "--grace-period=0")
                killed += 1
            except CommandError:
                pass
        assert killed <= 4 * KILLS, f"killed {killed} times and no version yet: {wild.troubles()}"
        # Some lives are too short to start, some long enough to look at registry and ledger, and to do one thing more.
        threading.Event().wait(chance.uniform(0.5, 18.0))
    wild.wait("the wild version", wild.newest)
    assert wild.shares() == calm.shares()
    assert wild.subjects() == calm.subjects()
    assert wild.trained() == calm.trained()
