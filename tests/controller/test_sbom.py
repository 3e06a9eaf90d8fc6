"""Provenance is written and read back, and a bill of materials is made of it: the same bytes each time."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from cyclonedx.model.bom import Bom
from hypothesis import given
from hypothesis import strategies as st
from packageurl import PackageURL

from controller.adapters.attest.provenance import Making, finished, materials_of, provenance_of
from controller.adapters.attest.sbom import sbom_of
from policies.canonical import canonical
from policies.provenance import BUILD_TYPES, COMPOSED, PYTHON_BUILD, fault_of, image_purl, source_purl, wheel_purl
from policies.terms.build import BuildRules, BuildSecret
from policies.terms.digest import digest_of
from policies.terms.source import Elsewhere
from policies.terms.task import ImageSpec
from tests.fakes.provenance import where_from

BASE = f"registry.example:5000/library/python@{digest_of(b'base')}"
IMAGE = digest_of(b"image")
SPEC = ImageSpec(repository="digits", commit="c" * 40, folder="axons/digits", tree="d" * 40, base=BASE, event_set=digest_of(b"e"))
MATERIALS: dict[str, Any] = {
    "commit": "c" * 40,
    "folder": "axons/digits",
    "tree": "d" * 40,
    "base": BASE,
    "python": "3.11",
    "wheels": {
        "scikit_learn-1.5.0-cp311-cp311-manylinux_2_17_x86_64.whl": digest_of(b"sk"),
        "torch-2.1.0+cpu-cp311-cp311-linux_x86_64.whl": digest_of(b"torch"),
        "zope.interface-6.0-1-py3-none-any.whl": digest_of(b"zope"),
    },
    "data": {"app/data/digits.csv": "md5:" + "a" * 32},
    "submodules": {"lib": "https://git.example/lib.git@sha1:" + "e" * 40},
}
MAKING = Making(
    repository="https://git.example/shop.git",
    base_digest=digest_of(b"base"),
    internal={"python": "3.11", "runtime": digest_of(b"runtime"), "epoch": 315619200},
    tools={"uv": "0.9.0"},
)


def test_materials_are_read_back_from_provenance() -> None:
    said = provenance_of(SPEC, MATERIALS, MAKING)
    assert materials_of(said) == {**MATERIALS, "runtime": digest_of(b"runtime")}
    assert fault_of(said) == ""


def test_materials_of_source_from_elsewhere_are_read_back() -> None:
    spec = ImageSpec(
        repository="digits",
        commit="c" * 40,
        folder="src",
        tree="d" * 40,
        source=Elsewhere(repo="https://git.example/parts.git", revision="v1"),
        source_commit="f" * 40,
    )
    said = provenance_of(spec, {"wheels": {}}, Making(repository="https://git.example/shop.git"))
    assert materials_of(said) == {
        "commit": "c" * 40,
        "folder": "src",
        "tree": "d" * 40,
        "repo": "https://git.example/parts.git",
        "revision": "v1",
        "sourceCommit": "f" * 40,
        "base": "host",
        "wheels": {},
    }
    (source,) = said["buildDefinition"]["resolvedDependencies"]
    assert source == {"name": "source", "uri": "git+https://git.example/parts.git", "digest": {"gitCommit": "f" * 40}}


def test_provenance_says_what_was_asked_for_and_no_secret() -> None:
    rules = BuildRules(precompile=True, platforms=("linux/amd64", "linux/arm64"), stamps=True)
    spec = ImageSpec(
        repository="digits",
        commit="c" * 40,
        folder="",
        tree="d" * 40,
        builder="dockerfile",
        dockerfile="Dockerfile",
        network=True,
        secrets=(BuildSecret(name="index-login", path="/run/secrets/index"),),
        rules=rules,
    )
    making = Making(arguments={"MODE": "fast"}, images={"python:3.11": digest_of(b"from")})
    asked = provenance_of(spec, {}, making)["buildDefinition"]
    assert asked["externalParameters"] == {
        "source": {"commit": "c" * 40, "folder": "", "tree": "d" * 40},
        "eventSet": "",
        "builder": "dockerfile",
        "base": "host",
        "dockerfile": "Dockerfile",
        "arguments": {"MODE": "fast"},
        "network": True,
        "secrets": [{"name": "index-login", "path": "/run/secrets/index"}],
        "precompile": True,
        "platforms": ["linux/amd64", "linux/arm64"],
        "stamp": "commit",
    }
    assert {"name": "from python:3.11", "uri": "python:3.11", "digest": {"sha256": digest_of(b"from")[7:]}} in asked[
        "resolvedDependencies"
    ]


def test_times_are_in_the_metadata_of_the_run_alone() -> None:
    said = provenance_of(SPEC, MATERIALS, MAKING)
    assert provenance_of(SPEC, MATERIALS, MAKING) == said
    later = finished(said, datetime(2031, 1, 1, tzinfo=UTC), started_at=datetime(2030, 12, 31, tzinfo=UTC))
    assert later["buildDefinition"] == said["buildDefinition"]
    assert later["runDetails"]["metadata"] == {
        "finishedOn": "2031-01-01T00:00:00+00:00",
        "startedOn": "2030-12-31T00:00:00+00:00",
    }


def test_provenance_of_earlier_releases_is_read() -> None:
    old = {
        "buildDefinition": {
            "buildType": "myelin.io/builders/python/v1",
            "externalParameters": {"commit": "c" * 40, "folder": "x", "tree": "d" * 40, "eventSet": ""},
            "internalParameters": {"python": "3.11", "base": "host", "runtime": "sha256:1"},
            "resolvedDependencies": [{"name": "source", "digest": {"gitCommit": "c" * 40}}],
        },
        "runDetails": {"builder": {"id": "myelin.io/builders/python/v1"}},
    }
    assert fault_of(old) == ""
    found = {"commit": "c" * 40, "folder": "x", "tree": "d" * 40, "python": "3.11", "base": "host", "runtime": "sha256:1"}
    assert materials_of(old) == {**found, "wheels": {}}


NONE_OF_OURS: dict[str, tuple[Any, str]] = {
    "no mapping": ([], "expected a mapping"),
    "nothing in it": ({}, "expected buildDefinition and runDetails.builder"),
    "another builder": ({**where_from(), "runDetails": {"builder": {"id": "https://x.example"}}}, "expected a builder of Myelin"),
    "no parameters": (
        {**where_from(), "buildDefinition": {"buildType": PYTHON_BUILD, "resolvedDependencies": []}},
        "expected externalParameters",
    ),
    "no dependencies": (
        {**where_from(), "buildDefinition": {"buildType": PYTHON_BUILD, "externalParameters": {}}},
        "expected resolvedDependencies",
    ),
}


@pytest.mark.parametrize("name", NONE_OF_OURS)
def test_what_is_no_provenance_of_ours_has_a_fault(name: str) -> None:
    value, words = NONE_OF_OURS[name]
    assert words in fault_of(value)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda v: st.lists(v) | st.dictionaries(st.text(), v)))
def test_no_value_is_a_provenance_by_accident(value: Any) -> None:
    assert fault_of(value)
    assert fault_of({"buildDefinition": value, "runDetails": {"builder": {"id": PYTHON_BUILD}}})


def test_package_urls_are_as_their_own_library_writes_them() -> None:
    assert [wheel_purl(name) for name in MATERIALS["wheels"]] == [
        PackageURL("pypi", None, "scikit-learn", "1.5.0").to_string(),
        PackageURL("pypi", None, "torch", "2.1.0+cpu").to_string(),
        PackageURL("pypi", None, "zope-interface", "6.0").to_string(),
    ]
    qualifiers = {"repository_url": "registry.example:5000/library/python"}
    known = PackageURL("oci", None, "python", str(digest_of(b"base")), qualifiers).to_string()
    assert image_purl(BASE) == known
    assert image_purl(BASE.replace("python@", "python:3.11@")) == known
    assert wheel_purl("digits.tar.gz") == wheel_purl("app/x.whl") == ""
    assert source_purl("Zope.Interface-7.0+x.tar.gz") == (
        "pkg:pypi/zope-interface@7.0%2Bx?file_name=Zope.Interface-7.0%2Bx.tar.gz"
    )
    assert source_purl("app/x-1.0.zip") == source_purl("runtime") == source_purl("a-1.0-py3-none-any.whl") == ""
    assert image_purl("python:3.11") == image_purl("host") == ""


def test_a_bill_lists_each_part_with_its_digest_and_is_the_same_each_time() -> None:
    said = provenance_of(SPEC, MATERIALS, MAKING)
    bill = sbom_of(IMAGE, "digits", said)
    assert canonical(bill) == canonical(sbom_of(IMAGE, "digits", finished(said, datetime(2031, 1, 1, tzinfo=UTC))))
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert not {"serialNumber"} & set(bill)
    assert "timestamp" not in bill["metadata"]
    assert bill["metadata"]["component"]["version"] == IMAGE
    parts = {part["bom-ref"]: part for part in bill["components"]}
    assert set(parts) == {"source", "submodule lib", "base", "runtime", "python", "app/data/digits.csv", *MATERIALS["wheels"]}
    torch = parts["torch-2.1.0+cpu-cp311-cp311-linux_x86_64.whl"]
    assert torch["purl"] == "pkg:pypi/torch@2.1.0%2Bcpu"
    assert torch["hashes"] == [{"alg": "SHA-256", "content": digest_of(b"torch").removeprefix("sha256:")}]
    assert parts["source"]["version"] == "c" * 40
    assert parts["base"]["purl"] == image_purl(BASE)
    assert parts["app/data/digits.csv"]["hashes"] == [{"alg": "MD5", "content": "a" * 32}]
    (whole,) = [item for item in bill["dependencies"] if item["ref"] == f"image@{IMAGE}"]
    assert set(whole["dependsOn"]) == set(parts)


def test_the_library_reads_the_bill_back() -> None:
    bill = sbom_of(IMAGE, "digits", provenance_of(SPEC, MATERIALS, MAKING))
    read = Bom.from_json(json.loads(json.dumps(bill)))  # type: ignore[attr-defined]
    purls = {str(part.purl) for part in read.components if part.purl is not None}
    assert purls == {*(wheel_purl(name) for name in MATERIALS["wheels"]), image_purl(BASE)}


def test_a_bill_of_a_composed_image_holds_what_is_below_and_no_name_by_chance() -> None:
    artifacts = [digest_of(str(number).encode()) for number in range(3)]
    used = [("image", IMAGE), *(("myelin/in/data", item) for item in artifacts[:2]), ("myelin/in/model", artifacts[2])]
    composed = {
        "buildDefinition": {
            "buildType": COMPOSED,
            "externalParameters": {},
            "internalParameters": {},
            "resolvedDependencies": [{"name": name, "digest": {"sha256": digest[7:]}} for name, digest in used],
        },
        "runDetails": {"builder": {"id": COMPOSED}},
    }
    assert COMPOSED in BUILD_TYPES
    bill = sbom_of(digest_of(b"composed"), "run-1", composed, provenance_of(SPEC, MATERIALS, MAKING))
    assert canonical(bill) == canonical(
        sbom_of(digest_of(b"composed"), "run-1", composed, provenance_of(SPEC, MATERIALS, MAKING))
    )
    kinds = {part["bom-ref"]: part["type"] for part in bill["components"]}
    assert kinds["image"] == "container"
    assert kinds["myelin/in/data"] == kinds["myelin/in/data 2"] == "data"
    assert kinds["myelin/in/model"] == "machine-learning-model"
    assert "torch-2.1.0+cpu-cp311-cp311-linux_x86_64.whl" in kinds
