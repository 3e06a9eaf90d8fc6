"""`myelin keys` for an embedded Sigstore: a seed beside the other keys, and what whoever verifies has to know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from controller import keyring
from controller.adapters.sigstore.authority import Authority
from controller.adapters.sigstore.embedded import root_of
from controller.cli import app
from policies.errors import ControllerError, DesiredStateError


def ran(*words: str) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["keys", *words, "-o", "json"])
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_seed_is_made_with_the_other_keys_or_beside_them_and_never_over_one(tmp_path: Path) -> None:
    whole, later = tmp_path / "whole", tmp_path / "later"
    said = ran("new", "--sigstore", str(whole))
    assert {path.name for path in whole.iterdir()} == {"controller", "image.pem", "sigstore.seed"}
    plain = ran("new", str(later))
    assert not {"identity", "sigstore", "trustedRoot"} & set(plain)
    added = ran("new", "--sigstore", str(later))
    assert {key: added[key] for key in plain} == plain
    for folder, told in ((whole, said), (later, added)):
        assert (folder / "sigstore.seed").stat().st_mode & 0o777 == 0o600
        assert (told["identity"], told["issuer"]) == ("https://myelin/default/project", "https://myelin/embedded")
        assert told["trustedRoot"] == root_of(Authority.load(folder / "sigstore.seed"))
        assert json.loads((folder / "sigstore.seed").read_bytes())["seed"] not in json.dumps(told)
    before = (later / "sigstore.seed").read_bytes()
    with pytest.raises(ControllerError, match="never written over"):
        CliRunner().invoke(app, ["keys", "new", "--sigstore", str(later)], catch_exceptions=False)
    assert (later / "sigstore.seed").read_bytes() == before


def test_the_root_is_written_for_whoever_verifies_and_a_cluster_s_project_is_named(tmp_path: Path) -> None:
    folder, root = tmp_path / "keys", tmp_path / "root.json"
    made = ran("new", "--sigstore", "--project", "team-a/shop", str(folder))
    said = ran("show", "--trusted-root", str(root), "--project", "team-a/shop", str(folder))
    assert said == made
    assert said["identity"] == "https://myelin/team-a/shop"
    assert root.read_text() == said["trustedRoot"] + "\n"
    text = CliRunner().invoke(app, ["keys", "show", str(folder)]).stdout
    assert text.splitlines()[-1] == "https://myelin/default/project https://myelin/embedded"


@pytest.mark.parametrize("project", ["shop", "a/b/c", "/shop", "A/b", "a /b", "a/"])
def test_a_project_that_is_none_is_refused(project: str) -> None:
    with pytest.raises(DesiredStateError, match="expected NAMESPACE/NAME"):
        keyring.owner_of(project)


def test_no_root_is_written_where_there_is_none(tmp_path: Path) -> None:
    keyring.make(tmp_path / "keys")
    with pytest.raises(DesiredStateError, match="got no identity there"):
        keyring.write_root(keyring.shown(tmp_path / "keys"), tmp_path / "root.json")
    (tmp_path / "keys" / "sigstore.json").write_text("")
    (tmp_path / "keys" / "sigstore.identity").write_text("ada@example.org https://issuer.example")
    shown = keyring.shown(tmp_path / "keys")
    assert (shown["identity"], shown["trustedRoot"]) == ("ada@example.org", "")
    with pytest.raises(DesiredStateError, match="public good instance's, which clients bring along"):
        keyring.write_root(shown, tmp_path / "root.json")
    assert not (tmp_path / "root.json").exists()
