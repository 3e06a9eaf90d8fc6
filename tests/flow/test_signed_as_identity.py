"""A project with a seed, on real parts: what it builds and trains is signed as an identity, which others' programs verify."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from controller import answers, keyring, project
from controller.adapters.attest.statements import BUNDLE, PROVENANCE, SBOM, SIGNATURE
from controller.adapters.attest.verifying import Identity, ImageTrust, verify_image
from controller.adapters.clock import SystemClock
from controller.adapters.documents import YamlDocuments
from controller.adapters.git import GitRepository
from controller.adapters.keys import SshKey
from controller.adapters.ledger import BRANCH
from controller.adapters.oci.layout import Layout
from controller.adapters.oci.mirrored import MirroredLayout
from controller.adapters.oci.registry import Access, Registry
from controller.adapters.sigstore.authority import Authority
from controller.adapters.sigstore.choosing import make_seed
from controller.adapters.sigstore.embedded import ISSUER, Embedded
from controller.adapters.sigstore.keyless import verify_statement
from controller.adapters.sigstore.leaves import MemoryLeaves
from controller.adapters.sigstore.served import Served, serve
from controller.adapters.sigstore.tokens import Tokens
from controller.answers.proof import of_kind
from controller.cli import app
from controller.loop import Report, run_pass
from controller.project import Place
from controller.stopping import stop_servers
from controller.wiring import Wired, wire
from policies.errors import SilentError, TrustError
from policies.terms.digest import Digest
from policies.terms.secret import Secret
from policies.terms.task import ImageSpec, ImageState
from reconcilers.deploy import record_bytes
from tests.contracts import cosign as cosigns
from tests.contracts.cosign import Cosign
from tests.contracts.registry_server import registry_server, why_no_registry
from tests.controller.test_inbox import version
from tests.fakes.tokens import IDENTITY, Issuer
from tests.fakes.tokens import ISSUER as TOKENS
from tests.flow.test_passes import AXON, GOOD

WHO = "https://myelin/default/project"


class Story:
    """A project whose state folder has a seed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.place = folder, project.make(folder / "p", now=SystemClock().now())
        self.seed()
        self.person = SshKey.load(folder / "p.myelin" / "signer")
        self.push({"axons/digits/axon.yaml": None, "axons/small/axon.yaml": AXON.encode(), "src/app.py": GOOD.encode()})

    def seed(self) -> None:
        make_seed(self.place.state / "keys", SystemClock().now() - timedelta(minutes=1))

    def push(self, files: dict[str, bytes | None], key: SshKey | None = None, branch: str = "main") -> str:
        mirror = self.place.state / f"mirror-{id(key)}"
        repository = GitRepository(self.place.url, mirror, key or self.person, author="x", email="x@localhost")
        with contextlib.closing(repository):
            tip = repository.fetch(branch)
            return repository.push(branch=branch, parent=tip, changes=files, message="change\n", at=SystemClock().now())

    def passes(self, wired: Wired, found: Callable[[Report], Any]) -> Any:
        """Passes as `follow` runs them, until something is there."""
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            wired.turn.work()
            report = run_pass(wired.following, wired.ports)
            if it := found(report):
                return it
            if not report.look_again:
                time.sleep(0.05)
        raise AssertionError([(item.subject, item.reason, item.message) for item in report.outcomes])

    def train(self, wired: Wired) -> tuple[Digest, Digest]:
        """Image and model of the first run."""

        def ended(report: Report) -> Any:
            tasks = report.observed.recorded.tasks.values() if report.observed else ()
            return next(((Digest(task.image), Digest(task.model)) for task in tasks if task.model), None)

        found: tuple[Digest, Digest] = self.passes(wired, ended)
        return found

    def build(self, wired: Wired, program: bytes) -> ImageState:
        """Build another image."""
        commit = self.push({"src/app.py": program})
        wired.ports.repository.fetch("main")
        tree = wired.ports.repository.tree_id(commit, "src")
        spec = ImageSpec(repository="r", commit=commit, folder="src", tree=tree, base="host")
        return self.built(wired, spec)

    def built(self, wired: Wired, spec: ImageSpec) -> ImageState:
        wired.ports.images.start(spec)
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            wired.turn.work()
            state = wired.ports.images.look(spec)
            if state is not None and state.phase != "building":
                return state
            time.sleep(0.01)
        raise AssertionError("never built")

    def record(self, image: Digest, model: Digest) -> None:
        """Put both into the record of a version, as the controller does when it deploys."""
        own, plain = keyring.controller_key(self.place.state), version("v-0000000001", 0)
        backend = plain.spec.backends[0].model_copy(update={"image": image, "artifact": model})
        plain = plain.model_copy(update={"spec": plain.spec.model_copy(update={"backends": (backend,)})})
        signed = plain.model_copy(update={"signature": own.sign(record_bytes(plain))})
        text = YamlDocuments().render(signed.model_dump(mode="json", by_alias=True))
        self.push({f"versions/small/{signed.metadata.name}.yaml": text}, own)

    def elsewhere(self, name: str, *, with_store: bool = True) -> Place:
        """The place of somebody else: a clone, a trust file that pins the identity and no image key, and what was served."""
        state = self.folder / name
        state.mkdir()
        if with_store:
            shutil.copytree(self.place.state / "store", state / "store")
        assert self.place.trust is not None
        trust = YamlDocuments().load(self.place.trust.read_bytes(), "trust").value
        del trust["images"]
        trust["imageIdentities"] = [{"identity": WHO, "issuer": ISSUER, "root": self.root()}]
        (state / "trust.yaml").write_bytes(YamlDocuments().render(trust))
        subprocess.run(["git", "clone", "--quiet", self.place.url, str(state / "clone")], check=True)
        return replace(self.place, state=state, trust=state / "trust.yaml", work_tree=state / "clone")

    def shown(self, *words: str) -> dict[str, Any]:
        done = CliRunner().invoke(app, ["keys", "show", str(self.place.state / "keys"), "-o", "json", *words])
        assert done.exit_code == 0, done.output
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def root(self) -> str:
        return str(self.shown()["trustedRoot"])


def checked(place: Place, *kinds: str) -> list[tuple[str, Any, str]]:
    return [(item["kind"], item["ok"], item["reason"]) for item in answers.verify(place)["checked"] if item["kind"] in kinds]


def bundles(layout: Layout, digest: Digest) -> list[tuple[Path, dict[str, Any]]]:
    """Those of an identity."""
    found = [layout.path(item["layers"][0]["digest"]) for item in layout.referrers(digest) if item["artifactType"] == BUNDLE]
    held = [(path, json.loads(path.read_bytes())) for path in found]
    return [(path, bundle) for path, bundle in held if "certificate" in bundle["verificationMaterial"]]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Story, Digest, Digest]]:
    story = Story(tmp_path_factory.mktemp("story"))
    try:
        with wire(project.settings_of(story.place, inbox_port=0)) as wired:
            image, model = story.train(wired)
        story.record(image, model)
        yield story, image, model
    finally:
        stop_servers(story.place.state, jobs=True)


Told = tuple[Story, Digest, Digest]


def test_image_and_model_carry_the_word_of_key_and_identity(told: Told) -> None:
    story, image, model = told
    layout = Layout(story.place.state / "store")
    for digest, words in ((image, 3), (model, 1)):
        ours = bundles(layout, digest)
        assert len(ours) == words
        assert len([item for item in layout.referrers(digest) if item["artifactType"] == BUNDLE]) == 2 * words
    said = story.shown()
    assert (said["identity"], said["issuer"], said["sigstore"]) == (WHO, ISSUER, f"{WHO} {ISSUER}")


def test_a_clone_that_trusts_the_identity_alone_verifies_all_of_it(told: Told) -> None:
    story, _, _ = told
    place = story.elsewhere("other")
    said = answers.verify(place)
    assert said["ok"], said
    assert checked(place, "log", "image", "model") == [("log", True, ""), ("image", True, ""), ("model", True, "")]
    (log,) = [item for item in said["checked"] if item["kind"] == "log"]
    assert log["subject"] == "4 entries"
    # Without the origin and without a store, the tree is made anew all the same.
    origin = Path(story.place.url)
    alone = story.elsewhere("alone", with_store=False)
    subprocess.run(["git", "-C", str(alone.work_tree), "fetch", "--quiet", "origin"], check=True)
    origin.rename(origin.with_suffix(".away"))
    try:
        ((_, ok, reason),) = checked(alone, "log")
        assert (ok, reason.startswith("root "), reason.endswith("no bundle is here to compare it with")) == (True, True, True)
    finally:
        origin.with_suffix(".away").rename(origin)


def test_a_bundle_of_which_a_bit_is_flipped_is_refused_and_no_other_word_counts(told: Told) -> None:
    story, image, _ = told
    place, root = story.elsewhere("flipped"), story.root()
    layout = Layout(place.state / "store")
    for path, bundle in bundles(layout, image):
        whole = path.read_bytes()
        entry = bundle["verificationMaterial"]["tlogEntries"][0]
        payload = base64.b64decode(bundle["dsseEnvelope"]["payload"])
        assert verify_statement(whole, root, WHO, ISSUER) == payload
        for part in (
            bundle["dsseEnvelope"]["signatures"][0]["sig"],
            bundle["dsseEnvelope"]["payload"],
            bundle["verificationMaterial"]["certificate"]["rawBytes"],
            entry["inclusionProof"]["rootHash"],
            entry["inclusionProof"]["checkpoint"]["envelope"].splitlines()[2],
            entry["inclusionPromise"]["signedEntryTimestamp"],
            entry["canonicalizedBody"],
        ):
            at = whole.index(part.encode()) + len(part) // 2
            flipped = whole[:at] + (b"A" if whole[at : at + 1] != b"A" else b"B") + whole[at + 1 :]
            with pytest.raises(TrustError):
                verify_statement(flipped, root, WHO, ISSUER)
        # In the store it is passed over, as are the words of the key, which is not trusted there.
        path.write_bytes(flipped)
        ((_, ok, _),) = checked(place, "image")
        assert ok is False or json.loads(payload)["predicateType"] == SBOM
        path.write_bytes(whole)
    assert checked(place, "image") == [("image", True, "")]


LEDGER: dict[str, tuple[Callable[[list[bytes], list[int]], list[bytes]], str]] = {
    "a leaf is removed": (lambda lines, at: [line for number, line in enumerate(lines) if number != at[1]], "removed"),
    "a leaf is changed": (
        lambda lines, at: [
            line.replace(b'"integratedTime":1', b'"integratedTime":2') if number == at[0] else line
            for number, line in enumerate(lines)
        ],
        "",
    ),
    "what a leaf says is changed": (
        lambda lines, at: [line.replace(b'"dsse"', b'"dssf"') if number == at[0] else line for number, line in enumerate(lines)],
        "expected a leaf of the log with the digest in its key, it was changed",
    ),
}


@pytest.mark.parametrize("deed", LEDGER)
def test_a_leaf_that_was_touched_is_named(deed: str, told: Told) -> None:
    story, _, _ = told
    place = story.elsewhere(deed.replace(" ", "-"))
    bare = place.state / "origin.git"
    subprocess.run(["git", "clone", "--quiet", "--bare", story.place.url, str(bare)], check=True)
    act, words = LEDGER[deed]
    with contextlib.closing(GitRepository(str(bare), place.state / "spoiling", story.person)) as repository:
        head = repository.fetch(BRANCH)
        (path,) = [item.path for item in repository.files(head) if item.path.endswith(".jsonl")]
        lines = repository.read_many(head, [path])[path].splitlines(keepends=True)
        leaves = [number for number, line in enumerate(lines) if b'"kind":"log"' in line]
        text = b"".join(act(lines, leaves))
        repository.push(branch=BRANCH, parent=head, changes={path: text}, message="A deed\n", at=SystemClock().now())
    found = {item["kind"]: item for item in answers.verify(replace(place, url=str(bare), work_tree=None))["checked"]}
    assert found["ledger"]["ok"] is False
    if words:
        assert found["log"]["ok"] is False
        assert words in found["log"]["reason"]


@pytest.mark.parametrize("major", [2, 3])
def test_cosign_verifies_it_by_identity_and_by_key(major: int, told: Told, tmp_path: Path) -> None:
    if why := cosigns.missing(major) or why_no_registry():
        pytest.skip(why)
    story, image, _ = told
    cosign, root = Cosign(major, tmp_path / "cosign"), tmp_path / "trusted_root.json"
    shown = story.shown("--trusted-root", str(root))
    with registry_server(tmp_path / "registry") as server:
        access = Access(repository=f"{server.address}/team/shop", unsafe_plain_http=True)
        with contextlib.closing(Registry(access)) as registry:
            layout = MirroredLayout(story.place.state / "store", registry)
            layout.push(image)
            for item in layout.listed():
                if item.get("subject") == image:
                    layout.push(Digest(item["digest"]))
        known = ["--trusted-root", str(root), "--allow-http-registry", *(["--new-bundle-format"] if major == 2 else [])]
        reference = f"{access.repository}@{image}"

        def asked(*words: str, identity: str = WHO, issuer: str = ISSUER) -> subprocess.CompletedProcess[str]:
            who = ["--certificate-identity", identity, "--certificate-oidc-issuer", issuer]
            return cosign(*words, *known, *who, reference)

        for words in (
            ("verify",),
            ("verify-attestation", "--type", "slsaprovenance1"),
            ("verify-attestation", "--type", "cyclonedx"),
        ):
            done = asked(*words)
            assert done.returncode == 0, done.stderr
        assert asked("verify", identity="https://myelin/default/other").returncode != 0
        assert asked("verify", issuer="https://other").returncode != 0
        done = cosign.verify(reference, shown["image"])
        assert done.returncode == 0, done.stderr


def test_the_log_goes_on_after_a_restart_and_signs_nothing_twice(told: Told) -> None:
    story, image, _ = told

    def leaves() -> list[str]:
        with contextlib.closing(GitRepository(story.place.url, story.folder / "reader", None)) as reader:
            return [entry.statement.key for entry in of_kind(reader, reader.fetch(BRANCH), "log")]

    before = leaves()
    with wire(project.settings_of(story.place, inbox_port=0)) as wired:
        wired.ports.images.verify(image)
        assert leaves() == before
        state = story.build(wired, GOOD.encode() + b"\n# 2\n")
        assert state.phase == "built", state.message
        assert state.digest is not None
        places = sorted(
            int(bundle["verificationMaterial"]["tlogEntries"][0]["logIndex"])
            for _, bundle in bundles(Layout(story.place.state / "store"), state.digest)
        )
        assert places == [4, 5, 6]
    assert leaves()[:4] == before
    assert len(leaves()) == 7


def test_while_git_is_away_signing_waits_and_says_so_and_what_is_signed_goes_on(tmp_path: Path) -> None:
    story = Story(tmp_path)
    with wire(project.settings_of(story.place, inbox_port=0)) as wired:
        first = story.build(wired, b"print(1)\n")
        assert first.digest is not None
        commit = story.push({"src/app.py": b"print(2)\n"})
        wired.ports.repository.fetch("main")
        tree = wired.ports.repository.tree_id(commit, "src")
        spec = ImageSpec(repository="r", commit=commit, folder="src", tree=tree, base="host")
        origin = Path(story.place.url)
        origin.rename(origin.with_suffix(".away"))
        state = story.built(wired, spec)
        assert (state.phase, state.is_passing) == ("failed", True)
        assert "signing waits for it" in state.message
        wired.ports.images.verify(first.digest)
        origin.with_suffix(".away").rename(origin)
        deadline = time.monotonic() + 60
        while (state := story.built(wired, spec)).phase != "built":
            assert time.monotonic() < deadline, state.message
            time.sleep(0.05)
        assert state.digest is not None
        assert len(bundles(Layout(story.place.state / "store"), state.digest)) == 3
        assert wired.ports.ledger.pending() == 0


def test_what_was_signed_before_there_was_a_seed_goes_on_and_is_signed_as_it_is_looked_at(tmp_path: Path) -> None:
    story = Story(tmp_path)
    seed = story.place.state / "keys" / "sigstore.seed"
    seed.rename(tmp_path / "seed")
    with wire(project.settings_of(story.place, inbox_port=0)) as wired:
        state = story.build(wired, b"print(1)\n")
        assert state.digest is not None
        assert bundles(Layout(story.place.state / "store"), state.digest) == []
    (tmp_path / "seed").rename(seed)
    layout, origin = Layout(story.place.state / "store"), Path(story.place.url)
    with wire(project.settings_of(story.place, inbox_port=0)) as wired:
        # While Git is away the key's word is enough; it is tried again by itself.
        origin.rename(origin.with_suffix(".away"))
        wired.ports.images.verify(state.digest)
        assert bundles(layout, state.digest) == []
        origin.with_suffix(".away").rename(origin)
        deadline = time.monotonic() + 60
        while len(bundles(layout, state.digest)) < 3:
            assert time.monotonic() < deadline
            wired.ports.images.verify(state.digest)
            time.sleep(0.05)
    seed.unlink()
    with wire(project.settings_of(story.place, inbox_port=0)) as wired:
        wired.ports.images.verify(state.digest)


def test_an_instance_elsewhere_signs_images_and_without_a_named_identity_no_commits(tmp_path: Path) -> None:
    story, cluster = Story(tmp_path), Issuer()
    keys = story.place.state / "keys"
    (keys / "sigstore.seed").unlink()
    (keys / "identity.token").write_text(cluster.token())
    authority = Authority(Secret("01" * 32), SystemClock().now() - timedelta(days=30))
    made = Embedded(authority, MemoryLeaves(), identity=WHO)
    with serve(lambda url: Served(made, Tokens(TOKENS, cluster.keys), url=url)) as url:
        (keys / "sigstore.json").write_text(made.trust_config(url))
        with wire(project.settings_of(story.place, inbox_port=0)) as wired:
            state = story.build(wired, b"print(1)\n")
            assert state.digest is not None
            wired.ports.images.verify(state.digest)
            assert [key.kind for key in wired.ports.own] == ["ssh"]
        assert made.log.head()[0] == 3
        layout = Layout(story.place.state / "store")
        trust = ImageTrust(identities=(Identity(identity=IDENTITY, issuer=TOKENS, root=made.trusted_root()),))
        assert set(verify_image(layout, state.digest, trust)) == {SIGNATURE, PROVENANCE, SBOM}
        # A token of somebody else than who is named signs nothing.
        (keys / "sigstore.identity").write_text(f"{IDENTITY}-other {TOKENS}")
        with wire(project.settings_of(story.place, inbox_port=0)) as wired:
            state = story.build(wired, b"print(2)\n")
            assert (state.phase, state.reason) == ("failed", "OtherIdentity")
    # Away, it is not asked where it is said whom it calls us; what is signed loads.
    (keys / "sigstore.identity").write_text(f"{IDENTITY} {TOKENS}")
    with wire(project.settings_of(story.place, inbox_port=0)) as wired:
        assert [key.kind for key in wired.ports.own] == ["ssh", "sigstore"]
    (keys / "sigstore.identity").unlink()
    with pytest.raises(SilentError), wire(project.settings_of(story.place, inbox_port=0)):
        pass
