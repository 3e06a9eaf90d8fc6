"""Images with wheels that were built: what their provenance and bill of materials say, and whether they come out again."""

from __future__ import annotations

from pathlib import Path

import pytest

from controller.adapters.attest.provenance import materials_of
from controller.adapters.attest.statements import PROVENANCE, SBOM
from controller.adapters.attest.verifying import verify_image
from controller.adapters.build.enclosure import nobody
from policies.errors import DesiredStateError
from policies.terms.build import BuildRules
from policies.terms.digest import digest_of
from tests.controller.sdists import sdist
from tests.controller.test_rebuild import Made
from tests.controller.verified_project import APP
from tests.controller.wheel_index import wheel_index
from tests.fakes.provenance import trust_in

try:
    nobody()
except DesiredStateError as error:
    WHY = error.message
else:
    WHY = ""
pytestmark = pytest.mark.skipif(bool(WHY), reason=WHY or "setup code can be walled in here")
CHANCE = 'import uuid\nfiles["made.py"] = f"ID = {uuid.uuid4().hex!r}\\n"'


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("wheels")


@pytest.fixture
def made(tmp_path: Path, wheels: Path) -> Made:
    found = Made(tmp_path, wheels)
    found.built(found.commit(APP))  # our runtime's own wheels come from the machine's index
    return found


def test_an_image_says_what_its_wheels_were_built_of_and_comes_out_again(made: Made) -> None:
    source = sdist("made-here", "1.0", needs=("needed",))
    with wheel_index() as index:
        index.add("made-here", "1.0", data=source, file="made_here-1.0.tar.gz")
        index.add("needed", "1.0")
        rules = BuildRules(index=index.address, builds_wheels=True, reproducibility="required")
        commit = made.commit({"src/requirements.txt": b"made-here\n"})
        refused = made.state(commit, rules=BuildRules(index=index.address))
        assert "expected requirements that fit together" in refused.message
        image = made.built(commit, rules=rules)
        assert made.proves(image)
        # What built it need not be asked for again, nor the source distribution.
        index.files.clear()
        assert made.proves(image)
    found = verify_image(made.layout, image, trust_in(made.key))
    provenance = found[PROVENANCE]
    inner, listed = (provenance["buildDefinition"][key] for key in ("internalParameters", "resolvedDependencies"))
    told = inner["builds"]["made_here-1.0-py3-none-any.whl"]
    assert (told["file"], told["digest"], told["backend"]) == ("made_here-1.0.tar.gz", digest_of(source), {})
    assert inner["reproducible"] is True
    assert [item for item in listed if item["name"] == "made_here-1.0.tar.gz"] == [
        {
            "name": "made_here-1.0.tar.gz",
            "uri": "pkg:pypi/made-here@1.0?file_name=made_here-1.0.tar.gz",
            "digest": {"sha256": digest_of(source).removeprefix("sha256:")},
        }
    ]
    materials = materials_of(provenance)
    assert materials["sources"] == {"made_here-1.0.tar.gz": digest_of(source)}
    assert {"made_here-1.0-py3-none-any.whl", "needed-1.0-py3-none-any.whl"} <= set(materials["wheels"])
    parts = {item["bom-ref"]: item for item in found[SBOM]["components"]}
    for name in ("made_here-1.0.tar.gz", "made_here-1.0-py3-none-any.whl"):
        assert (parts[name]["name"], parts[name]["version"]) == ("made-here", "1.0")
    assert parts["made_here-1.0.tar.gz"]["hashes"] == [{"alg": "SHA-256", "content": digest_of(source).removeprefix("sha256:")}]


def test_of_a_build_that_is_never_the_same_the_package_and_its_files_are_named(made: Made) -> None:
    source = sdist("made", "1.0", CHANCE)
    with wheel_index() as index:
        index.add("made", "1.0", data=source, file="made-1.0.tar.gz")
        rules = BuildRules(index=index.address, builds_wheels=True, reproducibility="required")
        commit = made.commit({"src/requirements.txt": f"made==1.0 --hash={digest_of(source)}\n".encode()})
        image = made.built(commit, rules=rules)
        said = made.rebuilt(image)
    inner = verify_image(made.layout, image, trust_in(made.key))[PROVENANCE]["buildDefinition"]["internalParameters"]
    (difference,) = [item for item in inner["reproducible"] if item["class"] == "content"]
    assert difference["paths"] == [f"opt/venv/lib/python{inner['python']}/site-packages/made.py"]
    assert said["ok"] is False
    assert "site-packages/made.py" in said["reason"]
    assert any(line.startswith("made 1.0: expected wheel sha256:") and "not reproducible" in line for line in made.told)
