"""Somebody new in a list of signers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.errors import DesiredStateError
from policies.signers import entry_of, with_signer
from policies.terms.project import Project, Signer

SAM = Signer(name="sam", ssh="ssh-ed25519 AAAAsam")
ADA = Signer(name="ada", identity="ada@example.org", issuer="https://issuer.example", paths=("docs/",), valid_from="2026-01-01")  # type: ignore[arg-type]
DOCUMENTS: list[dict[str, Any]] = [
    {},
    {"controller": "ssh-ed25519 AAAA"},
    {"kind": "Project"},
    {"kind": "Project", "spec": None},
    {"kind": "Project", "spec": {"branch": "main", "trust": {"ancestors": True, "signers": [{"name": "x", "ssh": "ssh-rsa A"}]}}},
]


def test_an_entry_says_what_was_given_and_nothing_else() -> None:
    assert entry_of(SAM) == {"name": "sam", "ssh": "ssh-ed25519 AAAAsam"}
    assert entry_of(ADA) == {
        "name": "ada",
        "identity": "ada@example.org",
        "issuer": "https://issuer.example",
        "paths": ["docs/"],
        "validFrom": "2026-01-01T00:00:00Z",
    }
    assert Signer.model_validate(entry_of(ADA)) == ADA


@given(st.sampled_from(DOCUMENTS))
def test_a_signer_comes_last_and_all_else_stays(document: dict[str, Any]) -> None:
    before = copy.deepcopy(document)
    made = with_signer(with_signer(document, SAM), ADA)
    assert document == before
    holder = made["spec"]["trust"] if document.get("kind") else made
    assert [item["name"] for item in holder["signers"]][-2:] == ["sam", "ada"]
    assert {key: made[key] for key in document if key not in ("spec", "signers")} == {
        key: before[key] for key in before if key not in ("spec", "signers")
    }
    if document.get("kind"):
        assert Project.model_validate(made).spec.trust.signers[-1] == ADA


@pytest.mark.parametrize(
    ("signer", "fault"),
    [
        (SAM, "signers: expected each signer's name once, got sam again"),
        (
            Signer(name="other", ssh="ssh-ed25519 AAAAsam home"),
            "signers: expected each key once, got that of sam again for other",
        ),
    ],
)
def test_nobody_and_no_key_is_named_twice(signer: Signer, fault: str) -> None:
    with pytest.raises(DesiredStateError) as raised:
        with_signer(with_signer({}, SAM), signer)
    assert raised.value.message == fault


@pytest.mark.parametrize("document", [{"spec": []}, {"spec": {"trust": 1}}, {"signers": "x"}, {"signers": [1]}])
def test_a_list_that_cannot_be_read_is_said(document: dict[str, Any]) -> None:
    with pytest.raises(DesiredStateError, match="expected"):
        with_signer(document, SAM)
