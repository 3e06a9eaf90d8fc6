"""`myelin verify`: what is said of an image and by whom, and its digest proved again from its provenance alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from controller import answers
from controller.adapters.attest.provenance import Making, provenance_of, spec_of
from controller.adapters.attest.signing import sign_image
from controller.adapters.attest.statements import PROVENANCE
from controller.adapters.attest.verifying import verify_image
from controller.adapters.build.enclosure import why_not
from controller.adapters.clock import SystemClock
from controller.adapters.keys import ImageKey, SshKey
from controller.adapters.oci.access import Access
from controller.adapters.oci.composed import Composer
from controller.adapters.oci.layout import Layout
from controller.adapters.oci.mirrored import MirroredLayout
from controller.adapters.oci.registry import Registry
from controller.cli import app
from policies.errors import DesiredStateError
from policies.identity import image_identity
from policies.provenance import DOCKERFILE_BUILD, PYTHON_BUILD
from policies.terms.build import BuildRules, BuildSecret
from policies.terms.digest import Digest, digest_of
from policies.terms.source import Elsewhere, Submodule
from policies.terms.task import ImageSpec
from tests.contracts.registry_server import RegistryServer, registry_server, why_no_registry
from tests.controller.verified_project import APP, EVENTS, Project
from tests.fakes.provenance import trust_in

needs_registry = pytest.mark.skipif(bool(why_no_registry()), reason=why_no_registry() or "there is one")
REBUILD_SECONDS = 5.0
SPEC = ImageSpec(repository="src", commit="c" * 40, folder="src", tree="d" * 40, event_set="sha256:" + "e" * 64)
SPECS = {
    "plain": SPEC,
    "of the whole tree": replace(SPEC, folder="", repository="image"),
    "on a base, for two kinds of machine, compiled and stamped": replace(
        SPEC,
        base="h.example/p@sha256:" + "1" * 64,
        rules=BuildRules(platforms=("linux/amd64", "linux/arm64"), precompile=True, stamps=True),
    ),
    "by a Dockerfile, with network and a secret": replace(
        SPEC, builder="dockerfile", dockerfile="src/Dockerfile", network=True, secrets=(BuildSecret(name="s", path="/run/s"),)
    ),
    "of another repository": replace(
        SPEC, source=Elsewhere(repo="https://h.example/r.git", revision="v1"), source_commit="f" * 40
    ),
    "with a submodule": replace(SPEC, submodules=(Submodule(path="src/m", url="https://h.example/m.git", commit="a" * 40),)),
}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("wheels")


@pytest.fixture
def made(tmp_path: Path, wheels: Path) -> Project:
    return Project(tmp_path, wheels)


def run(made: Project, *args: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["verify", *args, "--repo", str(made.clone)])
    assert done.exit_code == code, done.output
    return done.stdout


@pytest.mark.parametrize("case", SPECS)
def test_what_was_asked_for_can_be_read_out_of_its_provenance(case: str) -> None:
    spec = SPECS[case]
    kind = PYTHON_BUILD if spec.builder == "python" else DOCKERFILE_BUILD
    modules = {item.path: f"{item.url}@sha1:{item.commit}" for item in spec.submodules}
    found = spec_of(provenance_of(spec, {"submodules": modules}, Making(build_type=kind, internal={"base": spec.base})))
    assert image_identity(found) == image_identity(spec)
    told = ("commit", "folder", "event_set", "source", "source_commit", "submodules")
    assert [getattr(found, name) for name in told] == [getattr(spec, name) for name in told]


def test_of_an_image_is_said_who_signed_it_and_what_went_in(made: Project) -> None:
    image = made.image()
    model = made.model({"w.bin": b"weights"})
    version = made.version(image, model)
    found = made.verify(image)
    said = found["image"]["details"]
    key = ImageKey.load(made.place.state / "keys" / "image.pem")
    assert found["image"]["ok"] is True
    assert [(item["key"], item["name"]) for item in said["signers"]] == [(key.hint, "image.pem")]
    assert (said["builder"], said["folder"], said["eventSet"], said["base"]) == (PYTHON_BUILD, "src", EVENTS, "host")
    assert (said["commitTrusted"], said["sbom"], said["reproducible"]) == (True, True, None)
    assert said["wheels"] > 0
    assert found["model"]["details"]["signers"] == said["signers"]
    assert (made.value["ok"], made.value["complete"], made.told) == (True, True, [])
    lines = run(made, version.metadata.name)
    assert f"signed by key {said['signers'][0]['id']} (image.pem)" in lines
    assert f"of commit {said['commit']} (trusted), src" in lines
    assert lines.endswith("everything fits\n")


def test_an_image_that_no_version_has_is_found_by_digest_and_by_tag(made: Project) -> None:
    image = made.image()
    (tag,) = [name for name, digest in made.layout.images() if digest == image]
    for subject in (image, tag, f"registry.example/team/digits@{image}"):
        assert made.verify(subject)["image"]["subject"] == image
    with pytest.raises(DesiredStateError, match="expected a version, URL, image, model or commit"):
        made.verify("no:such-tag")
    with pytest.raises(DesiredStateError, match="expected a version, URL, image, model or commit"):
        made.verify(digest_of(b"another"))


def test_a_commit_that_a_stranger_signed_is_said_not_to_be_trusted(made: Project) -> None:
    image = made.image()
    provenance = deepcopy(verify_image(made.layout, image, trust_in(made.key))[PROVENANCE])
    stranger = ImageKey.generate(made.folder / "stranger.pem")
    commit = made.push({"src/app.py": b"print('mine')\n"}, key=SshKey.generate(made.folder / "s"))
    provenance["buildDefinition"]["externalParameters"]["source"]["commit"] = commit
    sign_image(made.layout, image, stranger, later(provenance))
    made_by_us = made.verify(image)["image"]["details"]
    assert made_by_us["commitTrusted"] is True, "what a stranger says of an image is not told"
    sign_image(made.layout, image, made.key, later(provenance))
    found = made.verify(image)
    assert found["image"]["details"]["commitTrusted"] is False
    assert found["commits"]["ok"] is False


def test_a_digest_is_proved_again_from_the_provenance_alone(made: Project) -> None:
    image = made.image()
    before = sorted(path for path in made.layout.root.rglob("*") if path.is_file())
    found = made.verify(image, rebuild=True)
    assert found["rebuild"]["reason"].startswith("same digest in ")
    assert found["rebuild"]["details"]["digest"] == image
    assert found["rebuild"]["details"]["seconds"] <= REBUILD_SECONDS
    assert f"building {image} again" in made.told
    assert (made.value["ok"], made.value["complete"]) == (True, True)
    assert sorted(path for path in made.layout.root.rglob("*") if path.is_file()) == before, "a look leaves no trace"
    value = json.loads(run(made, image, "--rebuild", "-o", "json"))
    assert [item["ok"] for item in value["checked"] if item["kind"] == "rebuild"] == [True]


def test_bytes_in_the_store_are_no_part_of_the_proof(made: Project) -> None:
    """What is built again is made of the commit and the wheels, not of the layers that are there."""
    image = made.image()
    for memory in made.build.glob("layer-*.json"):
        memory.unlink()
    for layer in made.layout.manifest(image)["layers"]:
        made.layout.place(layer["digest"]).rename(made.folder / layer["digest"])
    found = made.verify(image, rebuild=True)
    assert found["image"]["ok"] is False
    assert "rebuild" not in found, "what is not whole is not proved"
    for layer in made.layout.manifest(image)["layers"]:
        (made.folder / layer["digest"]).rename(made.layout.place(layer["digest"]))
    assert made.verify(image, rebuild=True)["rebuild"]["ok"] is True


def test_an_image_that_is_not_what_its_provenance_says_is_named_by_layer_and_path(made: Project) -> None:
    image = made.image()
    provenance = deepcopy(verify_image(made.layout, image, trust_in(made.key))[PROVENANCE])
    other = made.push({"src/app.py": b"print('other')\n"})
    provenance["buildDefinition"]["externalParameters"]["source"]["commit"] = other
    sign_image(made.layout, image, made.key, later(provenance))
    found = made.verify(image, rebuild=True)["rebuild"]
    assert found["ok"] is False
    assert "1 content: app/app.py" in found["reason"]
    assert [(item["class"], item["paths"]) for item in found["details"]["differences"]] == [("content", ["app/app.py"])]
    assert made.value["ok"] is False
    run(made, image, "--rebuild", code=1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda inner: inner.update(runtime=digest_of(b"other")), f"it was made with {digest_of(b'other')}"),
        (lambda inner: inner.update(python="3.9"), "it was made with 3.9; take the controller that made it"),
    ],
    ids=["another runtime", "another Python"],
)
def test_what_another_controller_made_is_neither_proved_nor_disproved(
    made: Project, change: Callable[[dict[str, Any]], None], words: str
) -> None:
    image = made.image()
    provenance = deepcopy(verify_image(made.layout, image, trust_in(made.key))[PROVENANCE])
    change(provenance["buildDefinition"]["internalParameters"])
    sign_image(made.layout, image, made.key, later(provenance))
    found = made.verify(image, rebuild=True)
    assert found["image"]["ok"] is True
    assert found["rebuild"]["ok"] is None
    assert words in found["rebuild"]["reason"]
    assert (made.value["ok"], made.value["complete"]) == (False, False), "what was to be proved and is not, is no yes"
    assert "nothing was found wrong, and not everything could be built again" in run(made, image, "--rebuild", code=1)


def test_a_wheel_that_is_not_to_be_had_any_more_is_said_so(made: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    image = made.image()
    (made.build / "wheels").unlink()
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    found = made.verify(image, rebuild=True)["rebuild"]
    assert found["ok"] is None
    assert found["reason"].startswith("not rebuilt: wheels of its provenance: ")


def test_an_image_with_data_and_a_model_laid_over_it_is_laid_again(made: Project) -> None:
    image, model = made.image(), made.model({"w.bin": b"weights", "deep/run": b"1"})
    composer = Composer(made.layout, made.build / "composed", made.key, trust_in(made.key), SystemClock())
    composed = composer.compose(image, {"myelin/in/model": [model]})
    found = made.verify(composed, rebuild=True)
    assert found["image"]["details"]["composedOf"] == {"image": image, "places": {"myelin/in/model": [model]}}
    assert found["rebuild"]["ok"] is True, found["rebuild"]


@pytest.mark.skipif(bool(why_not()), reason=why_not() or "it is here")
def test_an_image_of_a_dockerfile_is_built_again(made: Project) -> None:
    files = {**APP, "src/Dockerfile": b'FROM scratch\nCOPY app.py /app.py\nENTRYPOINT ["/app.py"]\n'}
    image = made.image(files, builder="dockerfile", dockerfile="src/Dockerfile")
    found = made.verify(image, rebuild=True)
    assert found["image"]["details"]["builder"] == DOCKERFILE_BUILD
    assert found["rebuild"]["ok"] is True, found["rebuild"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    with registry_server(tmp_path_factory.mktemp("registry")) as running:
        yield running


@needs_registry
def test_an_image_that_is_not_here_is_fetched_from_where_it_is_named(made: Project, server: RegistryServer) -> None:
    image = made.image()
    where = f"{server.address}/team/digits"
    pushed(made.layout, image, where, made.key)
    alone = replace(made.place, state=made.folder / "elsewhere")
    told: list[str] = []
    value = answers.verify(alone, f"{where}@{image}", rebuild=True, tell=told.append)
    found: dict[str, Mapping[str, Any]] = {item["kind"]: item for item in value["checked"]}
    assert f"{image} is not in the store here; fetching it from {where}" in told
    assert [item["name"] for item in found["image"]["details"]["signers"]] == ["by the trust file"]
    assert (found["image"]["ok"], found["rebuild"]["ok"]) == (True, True), found["rebuild"]
    assert not (made.folder / "elsewhere").exists()
    with pytest.raises(DesiredStateError, match="expected it in that repository, it is not there"):
        answers.verify(alone, f"{where}@{digest_of(b'another')}")


def pushed(layout: Layout, image: Digest, where: str, key: Any) -> None:
    """Bring an image with all that is attached to it to a registry."""
    with closing(Registry(Access(repository=where, unsafe_plain_http=True))) as registry:
        there = MirroredLayout(layout.root, registry)
        sign_image(there, image, key, verify_image(layout, image, trust_in(key))[PROVENANCE])


def later(provenance: dict[str, Any]) -> dict[str, Any]:
    """As if a newer build said so."""
    details = provenance["runDetails"]
    return {**provenance, "runDetails": {**details, "metadata": {"finishedOn": "2099-01-01T00:00:00+00:00"}}}
