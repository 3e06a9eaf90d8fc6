"""Answers about the past, from Git alone: who, what, when, on which evidence, and what was tampered with."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from controller import acting, answers, project
from controller.adapters.clock import SystemClock
from controller.adapters.documents import YamlDocuments
from controller.adapters.git import GitRepository
from controller.adapters.keys import SshKey
from controller.adapters.ledger import GitLedger
from controller.answers import against, differing
from controller.keyring import controller_key
from controller.project import Place
from policies.canonical import digest_value
from policies.errors import DesiredStateError, RefusedError
from policies.identity import version_id
from policies.records import event_statement, run_statement, task_statement
from policies.terms.digest import Digest
from policies.terms.event import Event
from policies.terms.project import Project
from policies.terms.run import Run, TaskRun
from policies.terms.version import BackendRecord, Version
from reconcilers.deploy import record_bytes
from tests.controller.people import NOW, RELEASE, World
from tests.properties.strategies import version_of

IMAGES = tuple("sha256:" + letter * 64 for letter in "ab")
MODELS = tuple("sha256:" + letter * 64 for letter in "cd")
DATA = "sha256:" + "e" * 64


class Told(World):
    """A project with two versions whose records, events and tasks fit together, and a rollback."""

    def __init__(self, folder: Path) -> None:
        self.place = project.make(folder / "p", now=NOW)
        self.clone = folder / "p"
        self.own = controller_key(self.place.state)
        first = self.tip().commit
        self.one = self.record(first, 0, {"learning_rate": 0.01}, 0.91, None)
        self.deploy(self.one, {self.one.metadata.name: 100})
        second = self.push({"axons/digits/training/train.py": b"print('better')\n", "notes.md": b"x\n"}, "Train better\n")
        self.two = self.record(second, 1, {"learning_rate": 0.02}, 0.95, self.one)
        self.deploy(self.two, {self.one.metadata.name: 80, self.two.metadata.name: 20})
        self.statements()

    def record(self, commit: str, number: int, parameters: dict[str, Any], accuracy: float, before: Version | None) -> Version:
        name = version_id(commit=commit, events="s", images=[IMAGES[number]], models=[MODELS[number]])
        plain = version_of(name, at=NOW + timedelta(hours=number), deployer="deployer")
        backend = BackendRecord(
            model="M", backend="b", image=IMAGES[number], artifact=MODELS[number], task_run=f"t{number}", env={"N": str(number)}
        )
        spec = plain.spec.model_copy(
            update={
                "commit": commit,
                "event_set": "s",
                "axon_digest": f"d{number}",
                "events": (f"e{number}",),
                "run": f"r{number}",
                "backends": (backend,),
                "parameters": parameters,
                "metrics": {"accuracy": accuracy},
                "data": (DATA,),
                "parent": before.metadata.name if before else "",
                "previous": digest_value(before.model_dump(mode="json", by_alias=True)) if before else "",
            }
        )
        version = plain.model_copy(update={"spec": spec})
        return version.model_copy(update={"signature": self.own.sign(record_bytes(version))})

    def deploy(self, version: Version, traffic: dict[str, int], key: SshKey | None = None, name: str = "Myelin") -> str:
        return self.push(
            {RELEASE: self.text(traffic), self.path(version): self.rendered(version)},
            f"digits: deploy {version.metadata.name}\n",
            key=key or self.own,
            name=name,
        )

    def text(self, traffic: dict[str, int], holds: list[dict[str, Any]] | None = None) -> bytes:
        spec = {"traffic": [{"version": name, "share": share} for name, share in traffic.items()]}
        value = {"apiVersion": "myelin.io/v1alpha1", "kind": "Release", "metadata": {"name": "deployer", "axon": "digits"}}
        return YamlDocuments().render({**value, "spec": spec | ({"holds": holds} if holds else {})})

    def path(self, version: Version) -> str:
        return f"versions/digits/{version.metadata.name}.yaml"

    def rendered(self, version: Version) -> bytes:
        return YamlDocuments().render(version.model_dump(mode="json", by_alias=True))

    def statements(self) -> None:
        repository = GitRepository(self.place.url, self.place.state / "git", self.own)
        ledger = GitLedger(repository, self.place.state / "ledger", self.own, SystemClock())
        for number, version in enumerate((self.one, self.two)):
            spec = version.spec
            event = Event(id=f"e{number}", kind="Commit", axon="digits", sensor="go", trigger="", at=NOW, data={})
            run = Run(
                id=spec.run,
                axon="digits",
                sensor="go",
                events=spec.events,
                event_set="s",
                axon_digest=spec.axon_digest,
                commit=spec.commit,
                started_at=NOW,
            )
            task = TaskRun(
                id=f"t{number}",
                run=spec.run,
                axon="digits",
                task="tune",
                kind="train",
                state="Succeeded",
                at=NOW,
                model=Digest(MODELS[number]),
                data=(Digest(DATA),),
                metrics=dict(spec.metrics),
                parameters=dict(spec.parameters),
            )
            ledger.record([event_statement(event), run_statement(run), task_statement(task)])
        ledger.push()
        ledger.close()
        repository.close()

    def checked(self, kind: str, place: Place | None = None) -> list[tuple[Any, str]]:
        return [(item["ok"], item["reason"]) for item in answers.verify(place or self.place)["checked"] if item["kind"] == kind]


@pytest.fixture
def told(tmp_path: Path) -> Told:
    return Told(tmp_path)


def test_history_says_who_what_when_on_which_evidence_and_whether_it_counted(told: Told) -> None:
    one, two = told.one.metadata.name, told.two.metadata.name
    hold = {"version": two, "reason": "accuracy 0.5 < 0.8", "alert": "sha256:e", "since": "2026-01-31T12:00:00Z"}
    told.push({RELEASE: told.text({one: 100}, [hold])}, f"digits: roll back {two}\n", key=told.own, name="Myelin")
    told.run("lift", two)
    told.run("promote", two, "--share", "5")
    rows = answers.history(told.place, "digits")
    assert [(row["what"], row["version"], row["by"], row["trusted"]) for row in rows] == [
        ("promotion", two, "you", True),
        ("lift", two, "you", True),
        ("rollback", two, "myelin", True),
        ("promotion", two, "myelin", True),
        ("promotion", one, "myelin", True),
    ]
    assert (rows[2]["alert"], rows[2]["why"]) == ("sha256:e", "accuracy 0.5 < 0.8")
    assert rows[0]["evidence"] == {
        "commit": told.two.spec.commit,
        "metrics": {"accuracy": 0.95},
        "parameters": {"learning_rate": 0.02},
        "data": [DATA],
        "events": ["e1"],
        "parent": one,
    }
    assert answers.history(told.place, "other") == []


def test_history_marks_whose_signature_did_not_count_when_it_came(told: Told, tmp_path: Path) -> None:
    one, stranger = told.one.metadata.name, SshKey.generate(tmp_path / "stranger")
    told.push({RELEASE: told.text({one: 100})}, "I say so\n", key=stranger, name="stranger")
    # Who comes in later did not count before.
    value = YamlDocuments().load(told.file("myelin.yaml").encode(), "myelin.yaml").value
    value["spec"]["trust"]["signers"].append({"name": "ada", "ssh": stranger.public()})
    told.push({"myelin.yaml": YamlDocuments().render(value)}, "Trust ada\n")
    told.push({RELEASE: told.text({told.two.metadata.name: 100})}, "Now I may\n", key=stranger, name="ada")
    rows = answers.history(told.place, "digits")
    assert [(row["by"], row["trusted"], "spec.trust.signers" in row["fault"]) for row in rows[:2]] == [
        ("ada", True, False),
        (stranger.fingerprint, False, True),
    ]
    unpinned = replace(told.place, trust=None, state=tmp_path / "nothing")
    assert {row["trusted"] for row in answers.history(unpinned, "digits")} == {None}


def test_a_record_that_is_taken_off_or_changed_is_in_the_history(told: Told) -> None:
    told.push({told.path(told.one): told.rendered(told.one) + b"# a note\n"}, "Note\n")
    told.push({told.path(told.one): None}, "Forget\n")
    assert [row["what"] for row in answers.history(told.place, "digits")][:2] == ["removal", "rewrite"]


@pytest.mark.parametrize(
    "subject",
    [
        lambda told: told.two.metadata.name,
        lambda told: f"http://127.0.0.1:8080/digits/versions/{told.two.metadata.name}/predict",
        lambda told: IMAGES[1],
        lambda told: f"registry.test/team@{IMAGES[1]}",
        lambda told: MODELS[1],
        lambda told: told.two.spec.commit,
        lambda told: told.two.spec.commit[:9],
    ],
    ids=["version", "url", "image", "pulled image", "model", "commit", "short commit"],
)
def test_why_goes_from_what_is_in_hand_to_all_that_it_was_made_of(told: Told, subject: Callable[[Told], str]) -> None:
    value = answers.why(told.place, subject(told))
    assert {
        key: value[key] for key in ("version", "share", "by", "trusted", "recordedBy", "recordTrusted", "sensor", "parent")
    } == {
        "version": told.two.metadata.name,
        "share": 20,
        "by": "you",
        "trusted": True,
        "recordedBy": "myelin",
        "recordTrusted": True,
        "sensor": "go",
        "parent": told.one.metadata.name,
    }
    assert (value["message"], value["metrics"], value["data"]) == ("Train better", {"accuracy": 0.95}, [DATA])
    assert [event["id"] for event in value["events"]] == ["e1"]


def test_why_of_a_public_url_is_who_gets_most_of_its_traffic(told: Told) -> None:
    assert answers.why(told.place, "https://models.example.com/digits/predict")["version"] == told.one.metadata.name


@pytest.mark.parametrize("subject", ["v-0000000000", "sha256:" + "0" * 64, "f" * 40, "http://x/other/predict", "nothing"])
def test_why_of_what_is_not_there_says_what_is(told: Told, subject: str) -> None:
    with pytest.raises(DesiredStateError, match="expected a version, URL, image, model or commit of one of v-"):
        answers.why(told.place, subject)


def test_diff_says_what_differs_in_code_parameters_metrics_and_environment(told: Told) -> None:
    value = told.run("diff", told.one.metadata.name, told.two.metadata.name)
    code = value["code"]
    assert [(item["subject"], item["by"]) for item in code["commits"]] == [
        ("Train better", "you"),
        (f"digits: deploy {told.one.metadata.name}", "myelin"),
    ]
    assert (code["count"], code["undone"]) == (2, 0)
    assert code["folders"] == [
        {
            "folder": "axons/digits/training",
            "changed": 1,
            "added": 0,
            "removed": 0,
            "files": ["~ axons/digits/training/train.py"],
        }
    ]
    assert value["parameters"] == [{"path": "learning_rate", "before": 0.01, "after": 0.02}]
    assert [(item["name"], round(item["difference"], 6)) for item in value["metrics"]] == [("accuracy", 0.04)]
    assert value["data"] == {"added": [], "removed": [], "same": [DATA]}
    assert value["env"] == [{"path": "M/b.N", "before": "0", "after": "1"}]
    assert value["routes"] == []
    (image,) = value["images"]
    assert (image["before"], image["after"], image["modelAfter"]) == (*IMAGES, MODELS[1])
    assert "not here" in image["missing"]
    assert any("accuracy: 0.91 -> 0.95 (+0.04)" in line for line in differing.told(value))
    back = told.run("diff", told.two.metadata.name, told.one.metadata.name)
    assert (back["code"]["count"], back["code"]["undone"]) == (0, 2)


def test_everything_fits_and_what_is_not_here_is_not_taken_for_checked(told: Told) -> None:
    value = answers.verify(told.place)
    assert value["ok"], value
    assert not value["complete"]
    assert {item["kind"] for item in value["checked"] if item["ok"]} == {"commits", "ledger", "version"}
    assert {(item["kind"], item["ok"]) for item in value["checked"] if not item["ok"]} == {
        ("image", None),
        ("model", None),
        ("data", None),
    }
    assert {item["reason"] for item in value["checked"] if item["ok"] is None} == {"not here: no image store on this machine"}
    # Looking makes nothing.
    assert not (told.place.state / "store").exists()


def changed(told: Told, field: str, value: Any) -> bytes:
    document = told.one.model_dump(mode="json", by_alias=True)
    inside: Any = document
    *way, last = [int(part) if part.isdigit() else part for part in field.replace("[", ".").replace("]", "").split(".")]
    for part in way:
        inside = inside[part]
    inside[last] = value
    return YamlDocuments().render(document)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("spec.metrics.accuracy", 0.99),
        ("spec.commit", "0" * 40),
        ("spec.backends[0].image", IMAGES[1]),
        ("spec.data[0]", IMAGES[0]),
        ("spec.createdAt", "2020-01-01T00:00:00Z"),
        ("signature", "AAAA"),
    ],
)
def test_a_record_that_a_later_commit_changed_is_named_with_field_commit_and_signer(told: Told, field: str, value: Any) -> None:
    commit = told.push({told.path(told.one): changed(told, field, value)}, "Nothing to see here\n")
    (found,) = [reason for ok, reason in told.checked("version") if not ok]
    assert found.startswith(f"{field}: was ")
    assert found.endswith(f"; changed by you in {commit[:12]}, and a record never changes")


@pytest.mark.parametrize(
    ("update", "words"),
    [
        ({"metrics": {"accuracy": 0.99}}, "spec.metrics.accuracy: was 0.95, is 0.99, by the ledger"),
        ({"parameters": {"learning_rate": 1}}, "spec.parameters.learning_rate: was 0.02, is 1, by the ledger"),
        ({"data": ()}, f"spec.data[0]: was {DATA[:60]}…, is not there, by the ledger"),
        ({"event_set": "other"}, "spec.eventSet: was s, is other, by the ledger"),
    ],
)
def test_a_record_that_came_in_wrong_is_compared_with_the_ledger(told: Told, update: dict[str, Any], words: str) -> None:
    three = told.two.model_copy(update={"metadata": told.two.metadata.model_copy(update={"name": "v-0000000003"})})
    three = three.model_copy(update={"spec": three.spec.model_copy(update=update)})
    told.deploy(three, {told.one.metadata.name: 100}, key=SshKey.load(told.clone.with_name("p.myelin") / "signer"), name="you")
    found = {item["subject"]: item["reason"] for item in answers.verify(told.place)["checked"] if item["kind"] == "version"}
    assert found["v-0000000003"] == f"signature: does not fit the record; {words}"


def test_a_record_that_a_person_took_off_is_said_and_what_follows_it_still_fits(told: Told) -> None:
    commit = told.push({told.path(told.one): None}, "Revert\n")
    assert told.checked("version").count((True, f"taken off the branch by you in {commit[:12]}")) == 1
    assert {ok for ok, _ in told.checked("version")} == {True}


@pytest.mark.parametrize("how", ["clone", "mirror"])
def test_all_of_it_works_years_later_from_a_clone_alone(told: Told, tmp_path: Path, how: str) -> None:
    """Without origin, state folder and network: only the repository and a pin."""
    kept = tmp_path / "kept"
    subprocess.run(["git", "clone", "-q", *(["--mirror"] if how == "mirror" else []), told.place.url, str(kept)], check=True)
    trust = tmp_path / "trust.yaml"
    assert told.place.trust is not None
    shutil.copyfile(told.place.trust, trust)
    for gone in (Path(told.place.url), told.clone, told.clone.with_name("p.myelin")):
        shutil.rmtree(gone)
    place = project.find(str(kept), state=str(tmp_path / "nothing"), trust=str(trust))
    assert len(answers.history(place, "digits")) == 2
    assert answers.why(place, IMAGES[1])["sensor"] == "go"
    assert answers.diff(place, told.one.metadata.name, told.two.metadata.name)["code"]["count"] == 2
    value = answers.verify(place)
    assert value["ok"], value
    assert [item["ok"] for item in value["checked"] if item["kind"] == "origin"] == ([None] if how == "clone" else [])
    assert not (tmp_path / "nothing").exists()
    assert os.listdir(tmp_path / "kept")


def test_a_version_can_be_verified_by_itself(told: Told) -> None:
    kinds = [(item["kind"], item["subject"]) for item in answers.verify(told.place, IMAGES[0])["checked"]]
    assert ("version", told.one.metadata.name) in kinds
    assert ("version", told.two.metadata.name) not in kinds
    with pytest.raises(DesiredStateError, match="expected a version, URL"):
        answers.verify(told.place, "v-0000000000")


def test_a_plan_against_a_branch_says_what_would_differ(told: Told) -> None:
    told.git("pull", "-q", "--ff-only")
    assert told.run("plan", "--against", "origin/main")["differs"] is False
    axon = told.clone / "axons/digits/axon.yaml"
    axon.write_text(axon.read_text().replace("maxBudget: 18", "maxBudget: 27"))
    (told.clone / "axons/digits/serving/predict.py").write_text("# other\n")
    (told.clone / "axons/extra").mkdir()
    (told.clone / "axons/extra/axon.yaml").write_text(axon.read_text().replace("  name: digits\n", "  name: extra\n", 1))
    value = told.run("plan", "--against", "origin/main", code=1)
    assert value["against"] == told.git("rev-parse", "origin/main").strip()
    changed = {item["axon"]: item for item in value["axons"]}
    assert (changed["digits"]["change"], changed["digits"]["folders"]) == ("changed", ["axons/digits/serving"])
    assert [(item["path"], item["before"], item["after"]) for item in changed["digits"]["keys"]] == [
        ("spec.tasks[1].train.hpTuning.maxBudget", 18.0, 27.0)
    ]
    assert changed["extra"]["change"] == "added"
    assert {step["axon"] for step in value["steps"]["added"]} == {"extra"}
    assert {pair["after"]["kind"] for pair in value["steps"]["changed"]} >= {"Tune"}
    assert value["project"] == value["releases"] == value["faults"] == []


def test_a_plan_against_a_branch_names_what_a_reviewer_must_see(told: Told) -> None:
    told.git("pull", "-q", "--ff-only")
    project_file = told.clone / "myelin.yaml"
    project_file.write_text(project_file.read_text().replace("name: you", "name: eve"))
    (told.clone / RELEASE).write_bytes(told.text({told.two.metadata.name: 100}))
    value = told.run("plan", "--against", "origin/main", code=1)
    assert [item["path"] for item in value["project"]] == ["spec.trust.signers[0].name"]
    assert [(item["axon"], item["deployer"]) for item in value["releases"]] == [("digits", "deployer")]
    text = against.markdown(value)
    assert text.startswith(against.MARKER)
    assert "spec.trust.signers[0].name: you -> eve" in text


def test_markdown_of_a_plan_has_a_fence_that_no_manifest_can_end(told: Told) -> None:
    value = {
        "revision": "x",
        "against": "a" * 40,
        "faults": ["```\n# Approved by everybody"],
        "project": [],
        "axons": [],
        "releases": [],
        "steps": {"added": [], "removed": [], "changed": []},
        "differs": True,
    }
    assert against.markdown(value).count("````") == 2


def test_what_a_plan_is_to_be_compared_with_must_be_here_and_a_comment_needs_a_forge(told: Told) -> None:
    with pytest.raises(DesiredStateError, match="nowhere: expected a branch, tag or commit"):
        told.run("plan", "--against", "nowhere")
    with pytest.raises(RefusedError, match="MYELIN_FORGE_TOKEN"):
        told.run("plan", "--against", "main", "--comment", "7")


def test_a_persons_token_goes_to_the_repositorys_own_host_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def project_with(url: str) -> Project:
        forge = {"type": "gitea", "url": url, "repository": "team/digits"}
        return Project.model_validate({"kind": "Project", "spec": {"writeBack": {"forge": forge}}})

    origin = "https://git.example.com/team/digits.git"
    assert acting.forge_for(project_with(""), origin) is None
    monkeypatch.setenv(acting.TOKEN, "hunter2")
    assert acting.forge_for(project_with(""), origin) is not None
    assert (
        acting.forge_for(project_with("https://git.example.com:3000"), "ssh://git@git.example.com:2222/team/digits") is not None
    )
    assert acting.forge_for(project_with("https://evil.example.com"), origin) is None
    assert acting.forge_for(Project(), origin) is None
