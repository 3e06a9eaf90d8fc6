"""A lock on a real Gitea: asked about, squashed with the forge's key, and the same image; and what a wrong button does."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from tests.forge.test_story import Team, statuses, team

__all__ = ["team"]
LOCK = "axons/echo/training/requirements.lock"
FILES = {
    "axons/echo/axon.yaml": """apiVersion: myelin.io/v1alpha1
kind: Axon
metadata: {name: echo}
spec:
  artifacts: [{name: source, path: /src}]
  tasks:
    - name: look
      container: {imageBuild: {artifact: source, buildLocation: /src, s2i: {contextDir: axons/echo/training}}}
  sensors:
    - name: on-push
      tasks: [{resourceExecutor: {task: look}}]
""",
    "axons/echo/training/app.py": "import idna\nprint(idna.__version__)\n",
    "axons/echo/training/requirements.txt": "idna>=3,<4\n",
}


def entries(team: Team) -> list[dict[str, Any]]:
    """What the ledger says, oldest first."""
    command = [sys.executable, "-m", "controller", "ledger", "--repo", str(team.clone)]
    said = subprocess.run(command, check=True, capture_output=True).stdout
    return [json.loads(line) for line in said.splitlines()]


def images(team: Team) -> list[str]:
    """Images of the tasks that ended, in order."""
    return [row["body"]["image"] for row in entries(team) if row["kind"] == "task"]


def ended(team: Team) -> dict[str, Any] | None:
    """How the proposal ended, once it did."""
    return next((row["body"] for row in entries(team) if row["kind"] == "proposal-ended"), None)


def begin(team: Team) -> Any:
    """The request, once it is there."""
    forge = next(item for item in team.signers if item["name"] == "forge")
    forge["paths"] = ["releases/", "versions/", LOCK]
    team.push({"myelin.yaml": team.project(mode="commit", forge={"type": "gitea"}), **FILES}, "Start a project")
    team.start()
    pull = team.until(lambda: next(iter(team.served.pulls()), None))
    team.until(lambda: set(statuses(team, pull["head"]["sha"], "myelin/review")) == {"pending", "success"})
    return pull


def test_a_squash_by_the_forge_keeps_the_lock_and_the_image(team: Team) -> None:
    pull = begin(team)
    assert pull["title"] == "axons/echo/training: lock what was installed"
    assert "`idna==3" in pull["body"]
    assert "Not with the key" not in pull["body"]
    team.until(lambda: len(images(team)) == 1)
    changed = team.gitea.ask("GET", f"{team.served.path}/pulls/{pull['number']}/files")
    assert [(item["filename"], item["status"]) for item in changed] == [(LOCK, "added")]
    team.served.merge(pull["number"], style="squash")
    said = team.until(lambda: ended(team))
    assert (said["how"], said["reason"]) == ("merged", f"{LOCK} is there as proposed")
    first, again = team.until(lambda: found if len(found := images(team)) == 2 else None)
    assert first == again
    assert team.served.pulls() == []
    assert pull["head"]["ref"] not in {item["name"] for item in team.gitea.ask("GET", f"{team.served.path}/branches")}
    assert not [item for item in team.status()["outcomes"] if item["state"] == "stalled"]
    assert team.myelin("verify")["ok"]


def test_a_merge_commit_is_not_trusted_and_can_be_taken_back(team: Team) -> None:
    pull = begin(team)
    before = team.served.tip("main")
    team.served.merge(pull["number"], style="merge")
    said = team.until(lambda: team.outcome("Untrusted"))
    assert f"signed by the controller's key, which may not touch {LOCK}" in said["message"]
    team.served.move("main", before)
    over = team.until(lambda: ended(team))
    assert over["how"] == "declined"
    assert "was merged and taken back" in over["reason"]
    team.until(lambda: team.outcome("Untrusted") is None or None)
