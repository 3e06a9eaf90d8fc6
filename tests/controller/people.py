"""A project on real Git, with versions that serve, and a person's clone of it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from controller import project
from controller.adapters.documents import YamlDocuments
from controller.adapters.keys import SshKey
from controller.answers.opened import opened
from controller.cli import app
from controller.keyring import controller_key
from controller.project import Place
from policies.terms.revision import CommitFacts
from policies.trust import judge
from tests.properties.strategies import version_of

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
ONE, TWO, THREE = "v-1111111111", "v-2222222222", "v-3333333333"
RELEASE = "releases/digits/deployer.yaml"
TEXT = f"""# who serves what
apiVersion: myelin.io/v1alpha1
kind: Release
metadata: {{name: deployer, axon: digits}}
spec:
  traffic:
    # the good old one
    - {{version: "{ONE}", share: 80}}
    - {{version: "{TWO}", share: 20}}
"""


class World:
    """A project with two versions that serve and one that does not."""

    def __init__(self, folder: Path) -> None:
        self.place = project.make(folder / "p", now=NOW)
        self.clone = folder / "p"
        files: dict[str, bytes | None] = {RELEASE: TEXT.encode()}
        for day, name in enumerate((ONE, TWO, THREE)):
            record = version_of(name, at=NOW - timedelta(days=9 - day), deployer="deployer").model_dump(
                mode="json", by_alias=True
            )
            files[f"versions/digits/{name}.yaml"] = YamlDocuments().render(record)
        self.push(files, "digits: deploy\n", key=controller_key(self.place.state), name="Myelin")

    def push(self, files: Mapping[str, bytes | None], message: str, *, key: SshKey | None = None, name: str = "you") -> str:
        key = key or SshKey.load(self.clone.with_name("p.myelin") / "signer")
        return project.push_as(self.place, key, dict(files), message, now=NOW, name=name)

    def git(self, *args: str, folder: Path | None = None) -> str:
        return subprocess.run(
            ["git", *args], cwd=folder or self.clone, capture_output=True, text=True, check=True, env=os.environ | {"LC_ALL": "C"}
        ).stdout

    def run(self, *args: str, code: int = 0) -> Any:
        done = CliRunner().invoke(app, [*args, "--repo", str(self.clone), "-o", "json"])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == code, done.output
        return json.loads(done.stdout)

    def tip(self, branch: str = "main") -> CommitFacts:
        with opened(
            Place(url=self.place.url, state=self.place.state, trust=self.place.trust, work_tree=None, branch=branch)
        ) as it:
            facts = it.facts()
            assert judge(it.pin, facts, trusted=None).fault == ""
            return facts[-1]

    def file(self, path: str, branch: str = "main") -> str:
        return self.git("show", f"{branch}:{path}", folder=Path(self.place.url))

    def release(self, branch: str = "main") -> dict[str, Any]:
        spec: dict[str, Any] = YamlDocuments().load(self.file(RELEASE, branch).encode(), RELEASE).value["spec"]
        return spec

    def shares(self) -> dict[str, int]:
        return {item["version"]: item["share"] for item in self.release()["traffic"]}
