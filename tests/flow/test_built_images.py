"""Every way to build an image, from the push to the program that ran in it, on real parts: registry, buildah, processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from controller import answers, project
from controller.adapters.attest.statements import PROVENANCE, SBOM
from controller.adapters.attest.verifying import verify_image
from controller.adapters.build.enclosure import why_not
from controller.adapters.documents import YamlDocuments
from controller.adapters.engine_local.launch import bubblewrap
from controller.adapters.oci.artifacts import TITLE
from controller.adapters.oci.layout import Layout
from controller.adapters.oci.registry import Access, Registry
from controller.answers import locking
from controller.keyring import image_key
from controller.loop import Report, run_pass
from controller.stopping import stop_servers
from controller.wiring import Wired, wire
from policies.terms.digest import Digest
from policies.terms.project import Forge as ForgeSettings
from policies.terms.proposal import Approval, PullRequest, StatusState
from policies.terms.run import TaskRun
from reconcilers.ports import Forge
from tests.contracts.registry_server import RegistryServer, registry_server, why_no_registry
from tests.controller import host_base
from tests.controller.tiny_base import push
from tests.fakes.provenance import trust_in
from tests.flow.test_passes import Project, until, with_reason

WHY = why_not() or why_no_registry() or ("" if bubblewrap() else "bubblewrap: expected it to work here, it does not")
pytestmark = pytest.mark.skipif(bool(WHY), reason=WHY or "all is there")
SECRET = "correct-horse-battery-staple-4711"
AXON = """apiVersion: myelin.io/v1alpha1
kind: Axon
metadata: {name: made}
spec:
  artifacts: [{name: source, path: /src}]
  tasks:
    - name: look
      container:
        imageBuild:
          artifact: source
          buildLocation: /src/src
          BUILD
  sensors:
    - name: go
      tasks: [{resourceExecutor: {task: look}}]
"""
BY_FILE = """dockerfile: {path: Dockerfile}
          volumes: [{name: token, secret: {secretName: index}}]
          volumeMounts: [{name: token, mountPath: /var/secrets/index}]"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    with registry_server(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture(scope="module")
def base(server: RegistryServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A base with a shell and Python, by digest; it has the tag 1 too."""
    place = f"{server.address}/base/python"
    with closing(Registry(Access(repository=place, unsafe_plain_http=True))) as registry:
        parts = [host_base.programs(), host_base.python()]
        digest = push(registry, tmp_path_factory.mktemp("parts"), parts, settings={"Env": ["PATH=/usr/local/bin:/usr/bin"]})
        registry.put_manifest(registry.manifest(digest) or b"", "1")
    return f"{place}@{digest}"


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Project]:
    made = Project(tmp_path)
    yield made
    stop_servers(made.place.state, jobs=True)


def ended(wired: Wired) -> Callable[[Report], Any]:
    def found(report: Report) -> Any:
        observed = wired.following.observed
        return next(iter(observed.recorded.tasks.values()), None) if observed is not None else None

    return found


def written(made: Project, task: TaskRun) -> str:
    """What the program left in its data folder."""
    layout = Layout(made.place.state / "store")
    files = {item["annotations"][TITLE]: item["digest"] for item in layout.manifest(task.data[-1])["layers"]}
    return layout.get(files["out"]).decode()


def test_a_dockerfile_is_built_run_and_vouched_for_and_its_secret_is_nowhere(made: Project, base: str) -> None:
    name = base.partition("@")[0]
    secrets = made.place.state / "secrets" / "index"
    secrets.mkdir(parents=True)
    (secrets / "token").write_text(SECRET)
    (secrets / "token").chmod(0o600)
    dockerfile = (
        f"FROM {name}:1\nRUN test -s /var/secrets/index/token && echo built > /made\n"
        'COPY app.sh /app.sh\nENTRYPOINT ["sh", "/app.sh"]\n'
    )
    made.push(
        {
            "axons/digits/axon.yaml": None,
            "axons/made/axon.yaml": AXON.replace("BUILD", BY_FILE),
            "src/Dockerfile": dockerfile,
            "src/app.sh": 'cat /made > "$DATA_PATH/out"\n',
        }
    )
    with wire(project.settings_of(made.place)) as wired:
        _, task = until(wired, ended(wired))
        assert (task.state, task.reason) == ("Succeeded", ""), task
        image = Digest(task.image)
        wired.ports.images.verify(image)
        layout = Layout(made.place.state / "store")
        said = verify_image(layout, image, trust_in(image_key(made.place.state)))
        assert any(item.get("uri") == base for item in said[PROVENANCE]["buildDefinition"]["resolvedDependencies"])
        assert said[SBOM]["metadata"]["component"]["version"] == image
    assert written(made, task) == "built\n"
    found = [path for path in made.place.state.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert found == [secrets / "token"]
    assert answers.verify(made.place)["ok"]


@pytest.mark.parametrize("has_script", [False, True])
def test_an_image_on_a_base_runs_on_this_machine_with_its_own_system(made: Project, base: str, has_script: bool) -> None:
    with wire(project.settings_of(made.place)) as wired:
        tip = wired.ports.repository.fetch("main")
        project_file = wired.ports.repository.read(tip, "myelin.yaml").decode()
    files: dict[str, str | None] = {
        "axons/digits/axon.yaml": None,
        "axons/made/axon.yaml": AXON.replace("BUILD", "s2i: {}"),
        "myelin.yaml": f"{project_file.rstrip()}\n  builder: {{base: '{base}', reproducibility: required}}\n",
        "src/app.py": "import os, sys, pathlib\n"
        "seen = f\"{sys.prefix} {pathlib.Path('/made').exists()}\"\n"
        "open(os.environ['DATA_PATH'] + 'out', 'w').write(seen)\n",
    }
    if has_script:
        files |= {"src/.s2i/environment": "INSTALL_SCRIPT=install.sh\n", "src/install.sh": "echo made > /made\n"}
    made.push(files)
    with wire(project.settings_of(made.place)) as wired:
        _, task = until(wired, ended(wired))
        assert (task.state, task.reason) == ("Succeeded", ""), task
        image = Digest(task.image)
        said = verify_image(Layout(made.place.state / "store"), image, trust_in(image_key(made.place.state)))
        inner = said[PROVENANCE]["buildDefinition"]["internalParameters"]
        assert inner["reproducible"] is True
        assert ("script" in inner) == has_script
    assert written(made, task) == f"/opt/venv {has_script}"


def test_loose_requirements_are_resolved_once_and_their_lock_gives_the_same_image(made: Project, tmp_path: Path) -> None:
    files: dict[str, str | None] = {
        "axons/digits/axon.yaml": None,
        "axons/made/axon.yaml": AXON.replace("BUILD", "s2i: {}"),
        "src/app.py": "import idna, os\nopen(os.environ['DATA_PATH'] + 'out', 'w').write('1')\n",
        "src/requirements.txt": "idna>=3,<4\n",
    }
    made.push(files)
    with wire(project.settings_of(made.place)) as wired:
        _, first = until(wired, ended(wired))
        wired.ports.ledger.push()
    assert first.state == "Succeeded", first
    work = tmp_path / "work"
    (work / "src").mkdir(parents=True)
    value = locking.locks(made.place, work)
    assert [(item["path"], item["image"], item["written"]) for item in value["locks"]] == [
        ("src/requirements.lock", first.image, True)
    ]
    text = (work / "src" / "requirements.lock").read_text()
    assert "--hash=sha256:" in text
    made.push({"src/requirements.lock": text})
    with wire(project.settings_of(made.place)) as wired:
        run_pass(wired.following, wired.ports)

        def second(report: Report) -> Any:
            observed = wired.following.observed
            tasks = observed.recorded.tasks.values() if observed is not None else ()
            return next((task for task in tasks if task.id != first.id), None)

        _, again = until(wired, second)
    assert again.image == first.image


class Desk:
    """Implements `reconcilers.ports.Forges` and `reconcilers.ports.Forge`: one request, which people take by their own Git."""

    def __init__(self) -> None:
        self.request: PullRequest | None = None
        self.opened = 0

    def of(self, settings: ForgeSettings) -> Forge:
        return self

    def find(self, head: str) -> PullRequest | None:
        return self.request

    def open(
        self, *, head: str, base: str, title: str, body: str, labels: Sequence[str], reviewers: Sequence[str]
    ) -> PullRequest:
        self.opened += 1
        self.request = PullRequest(
            number=1, url="desk/1", state="open", head=head, head_commit="", base=base, title=title, body=body
        )
        return self.request

    def close(self, number: int, *, comment: str) -> None:
        assert self.request is not None
        self.request = replace(self.request, state="closed")

    def update(self, number: int, *, title: str, body: str) -> None:
        raise AssertionError("nothing of it is new")

    def comment(self, number: int, *, marker: str, body: str) -> None:
        pass

    def approvals(self, number: int) -> tuple[Approval, ...]:
        return ()

    def set_status(self, commit: str, *, context: str, state: StatusState, text: str, url: str = "") -> None:
        pass


def test_a_lock_is_asked_about_and_what_a_person_makes_of_it_gives_the_same_image(made: Project) -> None:
    with wire(project.settings_of(made.place)) as wired:
        tip = wired.ports.repository.fetch("main")
        text = wired.ports.repository.read(tip, "myelin.yaml")
    documents = YamlDocuments()
    value = documents.load(text, "myelin.yaml").value
    value["spec"]["writeBack"] = {"mode": "commit", "forge": {"type": "gitea", "url": "https://f.localhost", "repository": "a/b"}}
    made.push(
        {
            "myelin.yaml": documents.edit(text, value).decode(),
            "axons/digits/axon.yaml": None,
            "axons/made/axon.yaml": AXON.replace("BUILD", "s2i: {}"),
            "src/app.py": "import idna, os\nopen(os.environ['DATA_PATH'] + 'out', 'w').write('1')\n",
            "src/requirements.txt": "idna>=3,<4\n",
        }
    )
    desk = Desk()
    with wire(project.settings_of(made.place)) as wired:
        wired = replace(wired, ports=replace(wired.ports, forges=desk))
        until(wired, with_reason("InReview"))
        _, first = until(wired, ended(wired))
        assert desk.request is not None
        wired.ports.repository.fetch(desk.request.head)
        (proposal,) = wired.following.observed.recorded.proposals.values()  # type: ignore[union-attr]
        lock = wired.ports.repository.read(proposal.head, "src/requirements.lock").decode()
        assert "idna==3" in desk.request.body
        # As it is taken by `git cherry-pick -S`: the same file, signed by a person.
        made.push({"src/requirements.lock": lock})
        _, over = until(wired, with_reason("ProposalEnded"))
        assert over.message == "src/requirements.lock is there as proposed"
        assert (desk.request.state, desk.opened) == ("closed", 1)

        def second(report: Report) -> Any:
            observed = wired.following.observed
            tasks = observed.recorded.tasks.values() if observed is not None else ()
            return next((task for task in tasks if task.id != first.id), None)

        _, again = until(wired, second)
        # Nobody is asked again.
        report = run_pass(wired.following, wired.ports)
        assert not [item for item in report.outcomes if item.reason == "InReview"]
        wired.ports.ledger.push()
    assert (again.image, again.state) == (first.image, "Succeeded")
    # Its provenance says now that the lock lay in the commit: there is none left to write.
    assert locking.locks(made.place) == {"locks": []}


def test_a_commit_with_a_key_in_it_builds_nothing_and_says_where(made: Project) -> None:
    key = "-".join(["xoxb", "1" * 12, "2" * 12, "a" * 24])
    made.push(
        {
            "axons/digits/axon.yaml": None,
            "axons/made/axon.yaml": AXON.replace("BUILD", "s2i: {}"),
            "src/app.py": f"print(1)\nTOKEN = '{key}'\n",
        }
    )
    with wire(project.settings_of(made.place)) as wired:
        _, outcome = until(wired, with_reason("SecretFound"))
        assert "src/app.py:2" in outcome.message
        assert key not in outcome.message
        report = run_pass(wired.following, wired.ports)
        assert not [item for item in report.outcomes if item.reason == "Building"]
