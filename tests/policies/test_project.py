"""The keys of a Project that only count in a cluster."""

import pytest

from controller.adapters.documents import YamlDocuments
from policies.errors import DesiredStateError, Fault
from policies.parsing import parse_document
from policies.terms.axon import Axon
from policies.terms.project import Project
from policies.unbuilt import axon_notes, project_notes


def read(spec: str) -> Project:
    document = parse_document(YamlDocuments().load(f"kind: Project\nspec: {spec}\n".encode(), "myelin.yaml"))
    assert isinstance(document, Project)
    return document


def faults(spec: str) -> tuple[Fault, ...]:
    with pytest.raises(DesiredStateError) as caught:
        read(spec)
    return caught.value.faults


GIT_URL = "expected a Git URL without a password, which belongs in the Secret that secretName names"
SECRET = "expected the name of a Secret in the project's namespace, got "
REGISTRY = "expected host[:port]/path without scheme, tag and digest, the path in lower case, got "
WRONG = {
    "a password in a URL": ('{repository: {url: "https://ada:secret@git.example/a"}}', "spec.repository.url", GIT_URL),
    "a program as URL": ('{repository: {url: "ext::sh"}}', "spec.repository.url", GIT_URL),
    "an option as URL": ('{repository: {url: "--upload-pack=sh"}}', "spec.repository.url", GIT_URL),
    "no URL": ("{repository: {}}", "spec.repository.url", "expected `url`, got nothing"),
    "a scheme": ('{registry: {repository: "http://r.example/a"}}', "spec.registry.repository", REGISTRY + "'http://r.example/a'"),
    "a tag": ('{registry: {repository: "r.example/a:1"}}', "spec.registry.repository", REGISTRY + "'r.example/a:1'"),
    "a host alone": ("{registry: {repository: r.example}}", "spec.registry.repository", REGISTRY + "'r.example'"),
    "capitals": ("{registry: {repository: r.example/A}}", "spec.registry.repository", REGISTRY + "'r.example/A'"),
    "a BuildKit that is a program here": (
        '{builder: {buildkit: "docker-container://builder"}}',
        "spec.builder.buildkit",
        "expected tcp://host:port or unix:///path of a BuildKit, got 'docker-container://builder'",
    ),
    "a BuildKit without a port": (
        '{builder: {buildkit: "tcp://builder"}}',
        "spec.builder.buildkit",
        "expected tcp://host:port or unix:///path of a BuildKit, got 'tcp://builder'",
    ),
    "no Secret": ('{keys: {secretName: ""}}', "spec.keys.secretName", SECRET + "''"),
    "no Secret's name": ("{keys: {secretName: My_keys}}", "spec.keys.secretName", SECRET + "'My_keys'"),
}


@pytest.mark.parametrize(("spec", "path", "message"), WRONG.values(), ids=list(WRONG))
def test_a_wrong_value_is_told_in_words(spec: str, path: str, message: str) -> None:
    (fault,) = faults(spec)
    assert (fault.line, fault.path, fault.message) == (2, path, message)
    assert "secret@" not in str(fault)


@pytest.mark.parametrize(
    "url",
    [
        "https://git.example/a.git",
        "http://ada@git.example:8080/a",
        "ssh://git@git.example:22/a",
        "git@git.example:team/a",
        "/srv/a",
    ],
)
def test_a_repository_may_lie_anywhere_that_git_reaches(url: str) -> None:
    repository = read(f'{{repository: {{url: "{url}"}}}}').spec.repository
    assert repository is not None
    assert (repository.url, repository.secret_name) == (url, "")


def test_a_project_without_them_is_what_it_was() -> None:
    project = read("{branch: main, paths: [axons]}")
    assert project.model_dump(by_alias=True, exclude_unset=True) == {
        "kind": "Project",
        "spec": {"branch": "main", "paths": ("axons",)},
    }
    assert (project.spec.repository, project.spec.registry, project.spec.keys) == (None, None, None)
    assert list(project_notes(project, branch="main")) == []


def test_in_a_repository_each_is_named_as_having_no_effect() -> None:
    spec = "{repository: {url: /srv/a}, registry: {repository: r.example/a}, keys: {secretName: k}}"
    notes = list(project_notes(read(spec), branch="main"))
    assert [key for _, key in notes] == ["spec.repository", "spec.registry", "spec.keys"]
    assert {"the Project object of a cluster" in part for part, _ in notes} == {True}


@pytest.mark.parametrize(
    ("platforms", "how", "said"),
    [
        (["linux/amd64", "linux/arm64"], "dockerfile: {path: Dockerfile}", ["spec.builder.platforms for look"]),
        (["linux/amd64"], "dockerfile: {path: Dockerfile}", []),
        (["linux/amd64", "linux/arm64"], "s2i: {contextDir: src}", []),
    ],
)
def test_platforms_that_no_dockerfile_is_built_for_are_named(platforms: list[str], how: str, said: list[str]) -> None:
    text = f"""apiVersion: myelin.io/v1alpha1
kind: Axon
metadata: {{name: a}}
spec:
  artifacts: [{{name: source, path: /src}}]
  tasks:
    - name: look
      container: {{imageBuild: {{repositoryName: a, artifact: source, buildLocation: /src, {how}}}}}
  sensors: []
"""
    axon = parse_document(YamlDocuments().load(text.encode(), "axon.yaml"))
    assert isinstance(axon, Axon)
    assert [key for _, key in axon_notes(axon, engine="local", platforms=platforms)] == said
