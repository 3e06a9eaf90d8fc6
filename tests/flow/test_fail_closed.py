"""One byte flipped anywhere, or a signature that does not count: nothing loads, it is said why, and all else goes on.

Real parts: Git, the image store, processes of this machine. What is mended comes back without a restart.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from controller import project
from controller.adapters.attest.signing import sign_image
from controller.adapters.attest.statements import BUNDLE, PROVENANCE, SIGNATURE
from controller.adapters.attest.verifying import verify_image
from controller.adapters.clock import SystemClock
from controller.adapters.documents import YamlDocuments
from controller.adapters.git import GitRepository
from controller.adapters.keys import ImageKey, hint_of
from controller.adapters.ledger import GitLedger
from controller.adapters.oci.layout import MANIFEST, Layout
from controller.loop import Report, run_pass
from controller.stopping import stop_servers
from controller.wiring import Wired, wire
from policies.canonical import canonical
from policies.errors import RefusedError, SilentError
from policies.records import run_statement
from policies.serving import proxy_name, server_name
from policies.terms.digest import Digest, digest_of
from policies.terms.plan import RunJob
from policies.terms.run import Run, TaskRun
from policies.terms.task import JobSpec
from policies.terms.version import Version
from reconcilers import train
from tests.controller.people import NOW
from tests.controller.verified_project import Project
from tests.fakes.provenance import trust_in, where_from

DEADLINE_SECONDS = 15.0
SERVER = b"""
import http.server, os
from pathlib import Path
said = (Path(os.environ["MODEL_PATH"]) / "w.bin").read_bytes() + (Path(os.environ["DATA_PATH"]) / "d.csv").read_bytes()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(said)
    def log_message(self, *args): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""


class Serving(Project):
    """A project with two axons that serve, each with a version of its own: `digits` is tampered with, `calm` is not."""

    def __init__(self, folder: Path, wheels: Path) -> None:
        super().__init__(folder, wheels)
        text = YamlDocuments().load((self.clone / "myelin.yaml").read_bytes(), "myelin.yaml").value
        files: dict[str, bytes | None] = {
            path.relative_to(self.clone).as_posix(): None for path in (self.clone / "axons").rglob("*") if path.is_file()
        }
        text["spec"]["writeBack"] = {"mode": "commit"}
        files["myelin.yaml"] = YamlDocuments().render(text)
        self.push(files, "Only what is served\n")
        self.first = self.image({"src/app.py": SERVER})
        self.calm = self.served("calm", self.image({"src/app.py": SERVER + b"# calm\n"}), b"calm")
        self.digits = self.served("digits", self.first, b"digits")

    def served(self, axon: str, image: str, content: bytes, *, name: str = "") -> Version:
        """A version of an axon, with all of its traffic."""
        data = self.folder / f"d-{axon}-{digest_of(content)[7:15]}"
        data.mkdir(exist_ok=True)
        (data / "d.csv").write_bytes(b"1," + content)
        version = self.version(
            image, self.model({"w.bin": content}), (self.artifacts.put_folder(data),), axon=axon, deployer="deployer"
        )
        self.release(axon, version.metadata.name)
        return version

    def release(self, axon: str, version: str) -> None:
        value = {"apiVersion": "myelin.io/v1alpha1", "kind": "Release", "metadata": {"name": "deployer", "axon": axon}}
        value["spec"] = {"traffic": [{"version": version, "share": 100}]}  # type: ignore[assignment]
        self.push({f"releases/{axon}/deployer.yaml": YamlDocuments().render(value)}, f"{axon}: serve {version}\n", key=self.own)

    def record(self, version: Version) -> str:
        return f"versions/{version.metadata.axon}/{version.metadata.name}.yaml"

    def text(self, path: str) -> bytes:
        return subprocess.run(["git", "-C", self.place.url, "show", f"main:{path}"], capture_output=True, check=True).stdout


class Passes:
    """A controller on real parts, one pass at a time."""

    def __init__(self, made: Serving, wired: Wired) -> None:
        self.made, self.wired, self.engine = made, wired, wired.ports.engine
        self.report: Report | None = None

    def until(self, holds: Callable[[], bool], what: str) -> Report:
        """Passes until something holds."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while True:
            self.report = run_pass(self.wired.following, self.wired.ports)
            if holds():
                return self.report
            said = [f"{item.state} {item.subject} {item.reason} {item.message}" for item in self.report.outcomes]
            assert time.monotonic() < deadline, f"expected {what}, got {said}"
            time.sleep(0.05)

    def is_ready(self, *names: str) -> bool:
        states = self.engine.servers()
        return all(name in states and states[name].phase == "ready" for name in names)

    def runs(self, *names: str) -> list[str]:
        """Which of these have a process."""
        states = self.engine.servers()
        return [name for name in names if name in states and states[name].phase != "failed"]

    def reasons(self) -> set[str]:
        assert self.report is not None
        return {item.reason for item in self.report.outcomes if item.state == "stalled"}

    def words(self) -> str:
        assert self.report is not None
        return "; ".join(item.message for item in self.report.outcomes if item.state == "stalled")

    def refuses(self, version: Version, *, reason: str, words: str = "", proxied: bool = False) -> None:
        """Nothing of a version is loaded, it is said why, and the other axon goes on.

        Args:
            version: It.
            reason: Why.
            words: What is said of it.
            proxied: Whether its proxy may run, which loads the image alone.
        """
        before = {name: state.address for name, state in self.engine.servers().items() if name in self.names(self.made.calm)}
        for name in self.names(version):
            self.engine.retire(name)
        report = self.until(lambda: reason in self.reasons(), f"a refusal for {reason}")
        assert words in self.words(), [item.message for item in report.outcomes]
        for _ in range(3):
            self.report = run_pass(self.wired.following, self.wired.ports)
            assert self.runs(*self.names(version)[: 1 if proxied else 2]) == [], self.engine.servers()
        assert reason in self.reasons()
        assert self.is_ready(*before), "what has nothing to do with it goes on"
        assert before == {name: self.engine.servers()[name].address for name in before}

    def comes_back(self, version: Version) -> None:
        """All of a version serves."""
        self.until(lambda: self.is_ready(*self.names(version)), f"{version.metadata.name} to serve")
        assert self.reasons() == set(), self.words()

    def names(self, version: Version) -> tuple[str, str]:
        """Its model server and its proxy."""
        backend = version.spec.backends[0]
        return server_name(version, backend), proxy_name(version.metadata.axon, version.spec.deployer)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("wheels")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, wheels: Path) -> Iterator[Serving]:
    serving = Serving(tmp_path_factory.mktemp("serving"), wheels)
    yield serving
    stop_servers(serving.place.state, jobs=True)


@pytest.fixture(scope="module")
def passes(made: Serving) -> Iterator[Passes]:
    with wire(project.settings_of(made.place, isolation="none")) as wired:
        running = Passes(made, wired)
        running.comes_back(made.calm)
        running.comes_back(made.digits)
        yield running


@pytest.fixture
def serving(passes: Passes) -> Passes:
    """All serves, whatever was done to it before."""
    passes.comes_back(passes.made.digits)
    return passes


def files_of(made: Serving) -> Mapping[str, str]:
    """Name -> digest of everything that is loaded of `digits`, or lets it be."""
    layout, version = made.layout, made.digits
    (backend,) = version.spec.backends
    image = layout.manifest(backend.image)
    found = {"image's manifest": backend.image, "image's config": image["config"]["digest"]}
    found |= {f"image's layer {number}": layer["digest"] for number, layer in enumerate(image["layers"])}
    model = layout.manifest(backend.artifact)
    found |= {"model's manifest": backend.artifact, "model's file": model["layers"][0]["digest"]}
    data = version.spec.data[0]
    found |= {"data's manifest": data, "data's file": layout.manifest(data)["layers"][0]["digest"]}
    for what, digest in (("image", backend.image), ("model", backend.artifact)):
        for entry in layout.listed():
            if entry.get("subject") == digest and entry.get("artifactType") == BUNDLE:
                kind = layout.manifest(entry["digest"])["annotations"]["dev.sigstore.bundle.predicateType"]
                found[f"{what}'s bundle manifest {kind}"] = entry["digest"]
                found[f"{what}'s bundle {kind}"] = layout.manifest(entry["digest"])["layers"][0]["digest"]
    return found


PLACES = (
    "image's manifest",
    "image's config",
    "image's layer 0",
    "image's layer 1",
    "image's layer 2",
    "image's layer 3",
    "image's bundle https://sigstore.dev/cosign/sign/v1",
    "image's bundle manifest https://sigstore.dev/cosign/sign/v1",
    "image's bundle https://slsa.dev/provenance/v1",
    "image's bundle manifest https://slsa.dev/provenance/v1",
    "image's bundle https://cyclonedx.org/bom",
    "image's bundle manifest https://cyclonedx.org/bom",
    "model's manifest",
    "model's file",
    "model's bundle https://model_signing/signature/v1.0",
    "model's bundle manifest https://model_signing/signature/v1.0",
    "data's manifest",
    "data's file",
)


def flip(path: Path) -> Callable[[], None]:
    """Change one bit of a file; the answer puts it back."""
    whole = path.read_bytes()
    at = len(whole) // 2
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    return lambda: put_back(path, whole)


def put_back(path: Path, whole: bytes) -> None:
    path.write_bytes(whole)


def test_the_table_below_has_all_that_is_loaded(serving: Passes) -> None:
    assert sorted(files_of(serving.made)) == sorted(PLACES)


@pytest.mark.parametrize("what", PLACES)
def test_one_byte_of_the_store_is_flipped(serving: Passes, what: str) -> None:
    digest = files_of(serving.made)[what]
    mend = flip(serving.made.layout.place(digest))
    try:
        serving.refuses(serving.made.digits, reason="BlobChanged", words=digest, proxied=not what.startswith("image"))
    finally:
        mend()
    serving.comes_back(serving.made.digits)


@pytest.mark.parametrize(
    "what", ["image's layer 3", "image's manifest", "model's file", "image's bundle https://slsa.dev/provenance/v1"]
)
def test_a_blob_is_gone(serving: Passes, what: str) -> None:
    place = serving.made.layout.place(files_of(serving.made)[what])
    whole = place.read_bytes()
    place.unlink()
    try:
        serving.refuses(serving.made.digits, reason="BlobMissing", proxied=not what.startswith("image"))
    finally:
        place.write_bytes(whole)
    serving.comes_back(serving.made.digits)


def test_what_was_laid_for_a_server_is_looked_at_again_before_it_is_started_again(serving: Passes) -> None:
    """Neither the copy of the model nor the unpacked image is believed because it was right once."""
    made, name = serving.made, serving.names(serving.made.digits)[0]
    place = made.place.state / "engine"
    root = place / "images" / made.first.removeprefix("sha256:")[:32]
    (place / "servers" / name / "model" / "w.bin").write_bytes(b"mine")
    (root / "app" / "app.py").write_bytes(b"import nothing\n")
    (root / "app" / "sitecustomize.py").write_bytes(b"raise SystemExit\n")
    for pid in _pids(place / "servers" / name):
        _end(pid)
    serving.until(lambda: not serving.is_ready(name), "the server to be seen to have ended")
    serving.comes_back(made.digits)
    assert (place / "servers" / name / "model" / "w.bin").read_bytes() == b"digits"
    assert (root / "app" / "app.py").read_bytes() == SERVER
    assert not (root / "app" / "sitecustomize.py").exists()


def test_a_server_that_ended_is_not_started_again_from_a_model_that_was_touched(serving: Passes) -> None:
    made, name = serving.made, serving.names(serving.made.digits)[0]
    mend = flip(made.layout.place(files_of(made)["model's file"]))
    assert serving.is_ready(name), "what runs goes on"
    for pid in _pids(made.place.state / "engine" / "servers" / name):
        _end(pid)
    serving.until(lambda: "BlobChanged" in serving.reasons(), "a refusal")
    assert serving.runs(name) == []
    assert serving.is_ready(*serving.names(made.calm))
    mend()
    serving.comes_back(made.digits)


@pytest.mark.parametrize(
    "what", ["image's layer 3", "image's bundle https://slsa.dev/provenance/v1", "model's file", "data's file"]
)
def test_a_job_is_not_started(serving: Passes, what: str) -> None:
    made = serving.made
    (backend,) = made.digits.spec.backends
    step = RunJob(
        axon="digits",
        task="look",
        reason="",
        job=JobSpec(
            name=f"job-{digest_of(what.encode())[7:15]}",
            axon="digits",
            task="look",
            image=Digest(backend.image),
            model=Digest(backend.artifact),
            data=tuple(map(Digest, made.digits.spec.data)),
            timeout_seconds=1.0,
        ),
        result=TaskRun(id="i", run="r", axon="digits", task="look", kind="container", state="Succeeded", at=NOW),
    )
    time.sleep(0.6)  # a look counts half a second; what comes after it is meant here
    mend = flip(made.layout.place(files_of(made)[what]))
    try:
        with pytest.raises(Exception, match=r"expected these bytes") as caught:
            train.run_job(step, serving.wired.ports)
    finally:
        mend()
    assert type(caught.value).__name__ == "TrustError"
    assert step.job.name not in serving.engine.jobs()
    assert train.run_job(step, serving.wired.ports).outcome.reason == "Started"


def _ledger_line(made: Serving) -> tuple[str, bytes]:
    (path,) = _git(made, "ls-tree", "-r", "--name-only", "myelin/ledger", "ledger").decode().split()
    return path, _git(made, "show", f"myelin/ledger:{path}")


def _git(made: Serving, *args: str) -> bytes:
    return subprocess.run(["git", "-C", made.place.url, *args], capture_output=True, check=True).stdout


def _write_ledger(made: Serving, path: str, text: bytes) -> str:
    """The branch with another text; the answer is where it was."""
    before = _git(made, "rev-parse", "myelin/ledger").decode().strip()
    repository = GitRepository(made.place.url, made.folder / "other-git", made.own)
    try:
        tip = repository.fetch("myelin/ledger")
        repository.push(branch="myelin/ledger", parent=tip, changes={path: text}, message="mine\n", at=NOW)
    finally:
        repository.close()
    return before


def test_a_ledger_that_was_changed_is_not_built_upon(serving: Passes, tmp_path: Path) -> None:
    made, ledger = serving.made, serving.wired.ports.ledger
    statements = [
        run_statement(
            Run(id=f"r{n}", axon="digits", sensor="s", events=(), event_set="e", axon_digest="d", commit="c", started_at=NOW)
        )
        for n in range(3)
    ]
    ledger.record(statements[:2])
    ledger.push()
    path, whole = _ledger_line(made)
    assert b'"axonDigest":"d"' in whole
    before = _write_ledger(made, path, whole.replace(b'"axonDigest":"d"', b'"axonDigest":"e"', 1))
    ledger.record(statements[2:])
    with pytest.raises(RefusedError, match="they were rewritten"):
        ledger.push()
    # One that starts without a memory believes nothing of it either.
    other = GitRepository(made.place.url, tmp_path / "git", made.own)
    with pytest.raises(RefusedError, match="as its digest says, it was changed; run `myelin verify`") as caught:
        GitLedger(other, tmp_path / "ledger", made.own, SystemClock())
    assert caught.value.reason == "LedgerBroken"
    assert serving.is_ready(*serving.names(made.digits), *serving.names(made.calm)), "what serves goes on"
    _git(made, "update-ref", "refs/heads/myelin/ledger", before)
    ledger.push()
    assert ledger.pending() == 0
    other.close()
    serving.comes_back(made.digits)


def test_a_copy_of_the_ledger_that_was_changed_on_disk_is_made_anew(tmp_path: Path, serving: Passes) -> None:
    made = serving.made
    serving.wired.ports.ledger.push()
    repository = GitRepository(made.place.url, tmp_path / "git", made.own)
    ledger = GitLedger(repository, tmp_path / "ledger", made.own, SystemClock())
    before = [entry.digest for entry in ledger.entries()]
    copy = tmp_path / "ledger" / "pushed.sqlite"
    whole = copy.read_bytes()
    assert b'"kind":"run"' in whole
    copy.write_bytes(whole.replace(b'"kind":"run"', b'"kind":"ran"', 1))
    with pytest.raises(SilentError, match="is not what its digest says; the copy is made anew"):
        ledger.entries()
    assert [entry.digest for entry in ledger.entries()] == before
    ledger.close()
    repository.close()


def test_a_record_is_changed_on_the_branch(serving: Passes) -> None:
    made, path = serving.made, serving.made.record(serving.made.digits)
    whole = made.text(path)
    changed = whole.replace(b"axonDigest: d", b"axonDigest: e")
    assert changed != whole
    made.push({path: changed}, "A person's hand\n")
    try:
        report = serving.until(lambda: "RecordNotSigned" in serving.reasons(), "a refusal")
        assert any(item.subject == path and "put it back" in item.message for item in report.outcomes)
        assert serving.is_ready(*serving.names(made.digits)), "what serves goes on while nobody can tell what the record says"
        serving.refuses(made.digits, reason="RecordNotSigned")
    finally:
        made.push({path: whole}, "As it was\n")
    serving.comes_back(made.digits)


def test_a_release_is_changed_by_a_stranger_or_cannot_be_read(serving: Passes) -> None:
    made, path = serving.made, "releases/digits/deployer.yaml"
    whole = made.text(path)
    made.push({path: whole.replace(b"kind: Release", b"kind: Releaze")}, "A person's hand\n")
    serving.until(lambda: any(item.subject == path for item in _outcomes(serving) if item.state == "stalled"), "a refusal")
    assert serving.is_ready(*serving.names(made.digits)), "what serves goes on"
    for name in serving.names(made.digits):
        serving.engine.retire(name)
    for _ in range(3):
        serving.report = run_pass(serving.wired.following, serving.wired.ports)
    assert serving.runs(*serving.names(made.digits)) == []
    assert serving.is_ready(*serving.names(made.calm))
    made.push({path: whole}, "As it was\n")
    serving.comes_back(made.digits)


def _outcomes(serving: Passes) -> tuple[Any, ...]:
    return serving.report.outcomes if serving.report is not None else ()


def _unsigned(made: Serving, text: bytes) -> Digest:
    """An image with the program of `digits` that nobody signed: its config differs."""
    manifest = deepcopy(made.layout.manifest(made.first))
    manifest["annotations"] = {**manifest["annotations"], "x": text.decode()}
    return made.layout.put(canonical(manifest))


def _another_builder(layout: Layout, image: Digest, made: Serving) -> None:
    predicate = where_from()
    predicate["runDetails"]["builder"]["id"] = "https://builder.example/v1"
    sign_image(layout, image, made.key, predicate)


def _unknown_key(layout: Layout, image: Digest, made: Serving) -> None:
    sign_image(layout, image, ImageKey.generate(made.folder / f"unknown-{image[7:15]}.pem"), where_from())


def _moved(layout: Layout, image: Digest, made: Serving) -> None:
    """The bundles of a good image, said to be about this one."""
    for entry in [item for item in layout.listed() if item.get("subject") == made.first and item.get("artifactType") == BUNDLE]:
        manifest = {**layout.manifest(entry["digest"]), "subject": layout.descriptor(image, MANIFEST)}
        layout.tag(f"moved-{entry['digest'][7:]}", layout.put(canonical(manifest)), {"subject": image, "artifactType": BUNDLE})


def _only_signature(layout: Layout, image: Digest, made: Serving) -> None:
    sign_image(layout, image, made.key, where_from())
    kinds = {SIGNATURE: "signature", PROVENANCE: "provenance"}
    names = [item["annotations"]["org.opencontainers.image.ref.name"] for item in layout.listed() if item.get("subject") == image]
    layout.unlist([name for name in names if f".{kinds[PROVENANCE]}." in name])


NOT_OURS: Mapping[str, tuple[Callable[[Layout, Digest, Serving], None], str]] = {
    "signed by nobody": (lambda layout, image, made: None, "nothing is attached to it"),
    "signed by a key that nobody knows": (_unknown_key, "it is signed by another key"),
    "with the signature of another image": (_moved, "what is attached is about another image"),
    "of another builder": (_another_builder, "expected a builder of Myelin, got 'https://builder.example/v1'"),
    "without provenance": (_only_signature, "expected a provenance by a key of the project, got none"),
}


@pytest.mark.parametrize("case", NOT_OURS)
def test_an_image_that_is_not_ours(serving: Passes, case: str) -> None:
    made = serving.made
    attach, words = NOT_OURS[case]
    image = _unsigned(made, case.encode())
    attach(made.layout, image, made)
    version = made.served("odd", image, b"odd")
    serving.refuses(version, reason="NotSigned", words=words)
    assert image in serving.words()
    # Once somebody who may has signed it, it loads.
    sign_image(made.layout, image, made.key, where_from())
    serving.comes_back(version)
    made.push({"releases/odd/deployer.yaml": None, made.record(version): None}, "No more of it\n")
    serving.until(lambda: not set(serving.names(version)) & set(serving.engine.servers()), "it to be retired")


def test_a_model_that_nobody_we_know_signed(serving: Passes) -> None:
    made = serving.made
    folder = made.folder / "stranger"
    folder.mkdir()
    (folder / "w.bin").write_bytes(b"strange")
    model = made.artifacts.put_folder(folder)
    version = made.version(made.first, model, made.digits.spec.data, axon="odd", deployer="deployer")
    made.release("odd", version.metadata.name)
    serving.refuses(version, reason="ModelNotSigned", words=f"model {model}: expected a signature by a key", proxied=True)
    made.models.sign(model)
    serving.comes_back(version)
    made.push({"releases/odd/deployer.yaml": None, made.record(version): None}, "No more of it\n")
    serving.until(lambda: not set(serving.names(version)) & set(serving.engine.servers()), "it to be retired")


def test_a_former_key_counts_as_long_as_it_is_kept_and_what_was_looked_at_meanwhile_outlives_it(
    tmp_path: Path, wheels: Path
) -> None:
    made = Serving(tmp_path, wheels)
    former, keys = ImageKey.generate(tmp_path / "former.pem"), made.place.state / "keys"
    image = _unsigned(made, b"by a former key")
    sign_image(made.layout, image, former, where_from())
    version = made.served("odd", image, b"odd")
    try:
        with wire(project.settings_of(made.place, isolation="none")) as wired:
            passes = Passes(made, wired)
            passes.until(lambda: passes.is_ready(*passes.names(made.calm)), "the other axon to serve")
            passes.refuses(version, reason="NotSigned", words="it is signed by another key")
        (keys / "image-1.pub.pem").write_text(former.public_pem)
        with wire(project.settings_of(made.place, isolation="none")) as wired:
            passes = Passes(made, wired)
            passes.comes_back(version)
            said = verify_image(made.layout, image, trust_in(made.key))
            assert PROVENANCE in said, f"looked at while both keys count, {hint_of(former.public_pem)} is not needed any more"
        (keys / "image-1.pub.pem").unlink()
        with wire(project.settings_of(made.place, isolation="none")) as wired:
            passes = Passes(made, wired)
            passes.comes_back(version)
    finally:
        stop_servers(made.place.state, jobs=True)


def _pids(place: Path) -> list[int]:
    return [int(json.loads((place / "program.json").read_bytes())["pid"])]


def _end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
