"""An image that does not come out the same twice, on the simulated outside: trained with, and never promoted where it must."""

from __future__ import annotations

from controller.adapters.documents import YamlDocuments
from policies.reproducibility import sentence
from tests.fakes.story import Story, project_files

DIFFERS = [{"layer": "layer 3 of 5", "step": "RUN date", "class": "content", "count": 1, "paths": ["etc/built-at"]}]


def begin(story: Story, reproducibility: str) -> None:
    files = project_files()
    text = files["myelin.yaml"] or b""
    project = YamlDocuments().load(text, "myelin.yaml").value
    project["spec"]["builder"] = {"reproducibility": reproducibility}
    files["myelin.yaml"] = YamlDocuments().edit(text, project)
    story.push(files, "Start\n")
    story.settle()


def test_what_differs_is_not_promoted_where_that_is_required_and_the_reason_names_it() -> None:
    story = Story()
    story.world.differs = DIFFERS
    begin(story, "required")
    assert story.kinds()["task"] >= 1
    assert story.versions() == []
    told = {item.reason: item.message for item in story.settle().outcomes}
    assert "NotReproducible" in told
    assert sentence(DIFFERS) in told["NotReproducible"]
    assert "etc/built-at" in told["NotReproducible"]


def test_what_comes_out_the_same_is_promoted() -> None:
    story = Story()
    begin(story, "required")
    assert len(story.versions()) == 1


def test_what_differs_is_only_recorded_where_it_is_sampled() -> None:
    story = Story()
    story.world.differs = DIFFERS
    begin(story, "sampled")
    assert len(story.versions()) == 1
