"""A task built from another repository, on the simulated outside: one commit for each run, whatever its branch does."""

from __future__ import annotations

from typing import Any

import pytest

from policies.errors import RefusedError, SilentError
from policies.foresight import foresee
from policies.jobs import Surroundings
from policies.terms.observed import Observed, Recorded
from policies.terms.plan import BuildImage, ResolveSource, StartRun
from tests.fakes.repository import FakeRepository
from tests.fakes.story import Story, project_files
from tests.fakes.wiring import PERSON, STRANGER

REPO = "https://git.example.com/team/parts.git"
AXON = f"""\
apiVersion: myelin.io/v1alpha1
kind: Axon
metadata: {{name: parts}}
spec:
  artifacts:
    - {{name: theirs, path: /src, git: {{repo: "{REPO}", revision: main}}}}
  tasks:
    - name: first
      container: {{imageBuild: {{repositoryName: a, artifact: theirs, buildLocation: /src/one}}}}
    - name: second
      container: {{imageBuild: {{repositoryName: b, artifact: theirs, buildLocation: /src/two}}}}
  sensors:
    - name: on-push
      tasks: [{{resourceExecutor: {{task: first}}}}, {{resourceExecutor: {{task: second}}}}]
"""


class Theirs:
    """The other repository."""

    def __init__(self, story: Story, key: Any = STRANGER) -> None:
        self.story, self.repository = story, FakeRepository(story.world, key)

    def push(self, files: dict[str, bytes | None]) -> str:
        """Move its branch."""
        outside = self.story.world.outside
        tip = self.repository.fetch("theirs")
        commit = self.repository.push(branch="theirs", parent=tip, changes=files, message="x", at=outside.now)
        outside.elsewhere[REPO, "main"] = commit
        return commit


@pytest.fixture
def story() -> Story:
    story = Story()
    story.world.programs |= {"one": lambda _: 0, "two": lambda _: 0}
    return story


def sources(story: Story) -> list[dict[str, Any]]:
    return [dict(item.body) for item in story.statements() if item.kind == "source"]


def begin(story: Story, axon: str = AXON) -> None:
    files = project_files()
    story.push({"myelin.yaml": files["myelin.yaml"], "axons/parts/axon.yaml": axon.encode()}, "Start\n")
    story.settle()


def test_a_run_asks_once_and_both_of_its_tasks_get_the_same_commit(story: Story) -> None:
    theirs = Theirs(story)
    first = theirs.push({"one/app.py": b"1", "two/app.py": b"1"})
    # The branch moves as soon as it was asked for, before anything is built.
    story.world.meanwhile("images.start", lambda: theirs.push({"one/app.py": b"2", "two/app.py": b"2"}))
    begin(story)
    said = sources(story)
    assert [(item["repo"], item["revision"], item["commit"], set(item["trees"])) for item in said] == [
        (REPO, "main", first, {"one", "two"})
    ]
    assert story.world.calls.count("sources.resolve") == 1
    assert story.kinds()["task"] == 2


def test_a_branch_that_moves_elsewhere_starts_nothing_by_itself(story: Story) -> None:
    theirs = Theirs(story)
    theirs.push({"one/app.py": b"1", "two/app.py": b"1"})
    begin(story)
    theirs.push({"one/app.py": b"2"})
    story.settle()
    assert (story.kinds()["run"], story.world.calls.count("sources.resolve")) == (1, 1)
    second = theirs.push({"one/app.py": b"3"})
    story.push({"axons/parts/axon.yaml": AXON.replace("b, artifact", "c, artifact").encode()}, "Again\n")
    story.settle()
    assert [item["commit"] for item in sources(story)][1:] == [second]
    assert story.kinds()["run"] == 2


@pytest.mark.parametrize("error", [SilentError("git.example.com: no answer"), RefusedError("git.example.com: no")])
def test_a_repository_that_fails_us_is_asked_again(story: Story, error: Exception) -> None:
    theirs = Theirs(story)
    commit = theirs.push({"one/app.py": b"1", "two/app.py": b"1"})
    story.world.fail("sources.resolve", error, times=2)
    begin(story)
    assert [item["commit"] for item in sources(story)] == [commit]
    assert story.kinds()["task"] == 2


def test_what_must_be_signed_is_built_once_somebody_whom_the_project_trusts_has_signed_it(story: Story) -> None:
    files = {"one/app.py": b"1", "two/app.py": b"1"}
    Theirs(story).push(dict(files))
    begin(story, AXON.replace("revision: main}", "revision: main, verify: true}"))
    told = {item.reason: item.message for item in story.settle().outcomes}
    assert told["NotSigned"].startswith(f"{REPO} at main: commit ")
    assert "spec.trust.signers" in told["NotSigned"]
    assert (sources(story), story.kinds().get("task", 0)) == ([], 0)
    trusted = Theirs(story, PERSON).push({"one/app.py": b"2"})
    story.settle()
    assert [(item["commit"], item["signer"]) for item in sources(story)] == [(trusted, "you")]
    assert story.kinds()["task"] == 2


def test_what_was_taken_unsigned_is_not_taken_where_a_signature_is_asked_for(story: Story) -> None:
    Theirs(story).push({"one/app.py": b"1", "two/app.py": b"1"})
    both = AXON.replace(
        "  tasks:", f'    - {{name: safe, path: /src, git: {{repo: "{REPO}", revision: main, verify: true}}}}\n  tasks:', 1
    ).replace("b, artifact: theirs", "b, artifact: safe")
    begin(story, both)
    assert [item.get("signer", "") for item in sources(story)] == [""]
    assert "NotSigned" in {item.reason for item in story.settle().outcomes}
    assert story.kinds()["task"] == 1


def test_whoever_dies_after_asking_builds_from_the_recorded_commit() -> None:
    endings = []
    for life in (0, *range(20, 60, 4)):
        story = Story(lives=(life,) if life else ())
        story.world.programs |= {"one": lambda _: 0, "two": lambda _: 0}
        theirs = Theirs(story)
        theirs.push({"one/app.py": b"1", "two/app.py": b"1"})
        begin(story)
        assert story.deaths == bool(life)
        endings.append((sources(story), story.kinds()))
    assert all(item == endings[0] for item in endings)


def test_a_folder_that_is_not_there_stops_its_task_with_the_commit_named(story: Story) -> None:
    theirs = Theirs(story)
    commit = theirs.push({"one/app.py": b"1"})
    files = project_files()
    story.push({"myelin.yaml": files["myelin.yaml"], "axons/parts/axon.yaml": AXON.encode()}, "Start\n")
    told = {item.reason: item.message for item in story.settle().outcomes}
    assert told["FolderMissing"] == f"folder two: expected source to build from, there is none in commit {commit[:12]} of {REPO}"


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("revision: main", 'revision: "--upload-pack=x"', "BadRevision"),
        ("revision: main", 'revision: "a:b"', "BadRevision"),
        ("revision: main", 'revision: "a..b"', "BadRevision"),
        ("https://git", "https://ada:hunter2@git", "BadUrl"),
        ("https://", "--upload-pack=x", "BadUrl"),
    ],
)
def test_what_git_would_misread_is_never_asked_for(story: Story, old: str, new: str, reason: str) -> None:
    files = project_files()
    axon = AXON.replace(old, new)
    story.push({"myelin.yaml": files["myelin.yaml"], "axons/parts/axon.yaml": axon.encode()}, "Start\n")
    told = {item.reason: item.message for item in story.settle().outcomes}
    assert reason in told
    assert "hunter2" not in str(told)
    assert story.world.calls.count("sources.resolve") == 0


def test_what_comes_is_foreseen_without_asking_anybody(story: Story) -> None:
    theirs = Theirs(story)
    theirs.push({"one/app.py": b"1", "two/app.py": b"1"})
    begin(story)
    desired = story.following.memory.desired
    assert desired is not None
    asked = story.world.calls.count("sources.resolve")
    found = foresee(desired, Observed(recorded=Recorded()), now=story.world.outside.now, around=Surroundings())
    kinds = [type(step) for step in found.steps if isinstance(step, StartRun | ResolveSource | BuildImage)]
    assert kinds == [StartRun, ResolveSource, BuildImage, BuildImage]
    assert story.world.calls.count("sources.resolve") == asked
