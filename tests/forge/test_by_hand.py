"""What a person types, on a real Gitea: a commit as a pull request, and what a pull request would do as a comment on it."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.forge.gitea import Gitea
from tests.forge.test_story import FILES, Team


@pytest.fixture
def team(gitea: Gitea, tmp_path: Path) -> Iterator[Team]:
    made = Team(gitea.repository(), tmp_path)
    made.push({"myelin.yaml": made.project(mode="commit", forge={"type": "gitea"}), **FILES}, "Start a project")
    made.until(lambda: not made.gitea.ask("GET", made.served.path)["empty"])  # Gitea notices a first push a moment later
    one = gitea.people["contributor"]
    login = base64.b64encode(f"{one.name}:{one.token}".encode()).decode()
    made.git("config", f"http.{gitea.url}/.extraHeader", f"Authorization: Basic {login}")
    try:
        yield made
    finally:
        made.stop()


def typed(team: Team, *args: str, expected: int = 0) -> Any:
    """What a person gets who types this in their clone, with their own token in the environment."""
    command = [sys.executable, "-m", "controller", *args, "-o", "json"]
    environment = {**os.environ, "MYELIN_FORGE_TOKEN": team.gitea.people["contributor"].token}
    done = subprocess.run(command, cwd=team.clone, capture_output=True, env=environment, timeout=120)
    assert done.returncode == expected, done.stderr.decode()
    return json.loads(done.stdout)


def test_a_commit_by_command_becomes_a_pull_request_where_the_branch_is_protected(team: Team) -> None:
    team.served.protect()
    team.git("config", "user.name", "contributor")
    team.git("config", "user.email", "contributor@example.invalid")
    tip = team.git("ls-remote", "origin", "refs/heads/main")
    told = typed(team, "suspend", "echo", "--reason", "the data is being mended", "--pull-request")
    assert team.git("ls-remote", "origin", "refs/heads/main") == tip
    (pull,) = team.served.pulls()
    assert told["pullRequest"] == pull["html_url"]
    assert pull["user"]["login"] == "contributor"
    assert pull["head"]["ref"] == told["branch"]
    assert "suspend" in pull["title"]
    (changed,) = told["changed"]
    assert changed == "axons/echo/axon.yaml"


def test_what_a_pull_request_would_do_is_one_comment_on_it_that_is_kept_up_to_date(team: Team) -> None:
    team.git("checkout", "--quiet", "-b", "better")
    for number, accuracy in enumerate(("0.95", "0.97")):
        path = team.clone / "axons/echo/training/train.py"
        path.write_text(path.read_text().replace("0.91", accuracy).replace("0.95", accuracy))
        team.git("commit", "--quiet", "-am", f"Train better {number}")
        team.git("push", "--quiet", "origin", "better")
        pull = next(iter(team.served.pulls()), None)
        made = pull["number"] if pull else team.served.make_pull("better")
        told = typed(team, "plan", "--against", "origin/main", "--comment", str(made), expected=1)
        assert told
        ((by, text),) = team.served.comments(made)
        assert by == "contributor"
        assert "fit" in text
