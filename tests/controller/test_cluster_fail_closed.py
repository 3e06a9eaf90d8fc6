"""Before a pod is made: what it would load is whole, signed by somebody who is trusted now, and of a model as well."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from controller.adapters.attest.signing import sign_image
from controller.adapters.attest.verifying import ImageTrust, verify_image
from controller.adapters.clock import SystemClock
from controller.adapters.cluster import Cluster
from controller.adapters.engine_cluster import ClusterEngine, KeptJobs, KeptServers
from controller.adapters.images import SignedImages
from controller.adapters.keys import ImageKey
from controller.adapters.models import Models
from controller.adapters.oci.artifacts import ArtifactStore
from controller.adapters.oci.assembly import Program, assemble, based_on
from controller.adapters.oci.composed import Composer
from controller.adapters.oci.layers import Stored, lay
from controller.adapters.oci.mirrored import MirroredLayout
from controller.adapters.oci.registry import Access, Registry
from policies.errors import TrustError
from policies.terms.digest import Digest
from policies.terms.plan import RunJob, Serve
from policies.terms.run import TaskRun
from policies.terms.task import JobSpec, ServerSpec
from reconcilers import route, train
from reconcilers.manifests.names import Placement
from reconcilers.ports import Ports
from tests.fakes.cluster import FakeCluster
from tests.fakes.provenance import trust_in, where_from
from tests.fakes.registry import FakeRegistry, Host
from tests.fakes.wiring import CONTROLLER, open_ports
from tests.fakes.world import HandClock, World
from tests.properties.strategies import NOW

PLACEMENT = Placement(namespace="team-a", project="digits", registry="registry.test/digits")


class Team:
    """A project of a cluster, its registry in memory, and controllers that may lose what they remember."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.host, self.cluster = folder, Host(), FakeCluster()
        self.key = ImageKey.generate(folder / "image.pem")
        self.former = ImageKey.generate(folder / "former.pem")
        self.layout = MirroredLayout(folder / "store", self.registry())
        self.image = self.coded(b"print(1)\n")
        self.model = self.trained(b"weights", self.key)

    def registry(self) -> Registry:
        return cast(Registry, FakeRegistry(self.host, Access(repository=f"{self.host.name}/team-a/digits")))

    def coded(self, text: bytes, *signers: ImageKey) -> Digest:
        """A code image in the registry."""
        laid = lay(self.layout, {"app/app.py": Stored(data=text)})
        program = Program(entrypoint=("/opt/venv/bin/python", "/app/app.py"), env={"MYELIN_PYTHON": "3.11"})
        digest = assemble(self.layout, [laid], program, annotations=based_on(None))
        for signer in signers or (self.key,):
            sign_image(self.layout, digest, signer, where_from())
        self.layout.push(digest)
        return digest

    def trained(self, content: bytes, signer: ImageKey | None) -> Digest:
        """A model in the registry."""
        folder = self.folder / content.decode()
        folder.mkdir()
        (folder / "w.bin").write_bytes(content)
        store = ArtifactStore(self.layout, Models(self.layout, signer, trust_in(signer)) if signer is not None else None)
        return store.keep("model", folder) if signer is not None else store.put_folder(folder)

    def ports(self, trust: ImageTrust) -> Ports:
        """Those of a controller that starts now."""
        composer = Composer(self.layout, self.folder / "composed", self.key, trust, SystemClock())
        engine = ClusterEngine(
            cast(Cluster, self.cluster),
            PLACEMENT,
            self.layout,
            composer.compose,
            programs="secret",
            jobs=KeptJobs(self.folder / "jobs", self.layout, CONTROLLER),
            servers=KeptServers(self.folder / "servers"),
            clock=HandClock(World()),
        )
        ports = open_ports(World())
        images = SignedImages(ports.repository, self.layout, self.folder / "build", self.key, trust, SystemClock())
        return replace(ports, engine=engine, images=images)

    def asks(self, *, image: Digest | None = None, model: Digest | None = None) -> tuple[Serve, RunJob]:
        """A server and a job."""
        image = image or self.image
        done = TaskRun(id="i", run="r", axon="digits", task="t", kind="train", state="Succeeded", at=NOW)
        job = JobSpec(name="one", axon="digits", task="t", image=image, model=model)
        server = ServerSpec(name="s", image=image, model=model)
        return (
            Serve(axon="digits", task="t", reason="", server=server),
            RunJob(axon="digits", task="t", reason="", job=job, result=done),
        )

    def refuses(self, ports: Ports, *, reason: str, image: Digest | None = None, model: Digest | None = None) -> None:
        """Neither a server nor a job is made."""
        serve, job = self.asks(image=image, model=model)
        deeds: tuple[Callable[[], object], ...] = (lambda: route.serve(serve, ports), lambda: train.run_job(job, ports))
        for deed in deeds:
            with pytest.raises(TrustError) as caught:
                deed()
            assert caught.value.reason == reason, caught.value.message
        assert self.cluster.objects == {}, "nothing was asked of the cluster"

    def starts(self, ports: Ports, *, image: Digest | None = None, model: Digest | None = None) -> None:
        """Both are made."""
        serve, job = self.asks(image=image, model=model)
        route.serve(serve, ports)
        train.run_job(job, ports)
        assert {kind for kind, _, _ in self.cluster.objects} >= {"Job", "Deployment"}


@pytest.fixture
def team(tmp_path: Path) -> Team:
    return Team(tmp_path)


def test_what_is_ours_is_started(team: Team) -> None:
    team.starts(team.ports(trust_in(team.key)), model=team.model)


@pytest.mark.parametrize("with_model", [False, True], ids=["alone", "with a model over it"])
def test_an_image_of_a_stranger_is_not(team: Team, with_model: bool) -> None:
    image = team.coded(b"print('strange')\n", ImageKey.generate(team.folder / "stranger.pem"))
    team.refuses(team.ports(trust_in(team.key)), reason="NotSigned", image=image, model=team.model if with_model else None)


def test_a_model_that_nobody_signed_is_not_laid_over_an_image(team: Team) -> None:
    team.refuses(team.ports(trust_in(team.key)), reason="ModelNotSigned", model=team.trained(b"strange", None))


def test_what_was_composed_once_is_looked_at_again_by_a_controller_that_starts(team: Team) -> None:
    """That it is remembered lets nothing load that is not trusted any more."""
    model = team.trained(b"old", team.former)
    both = trust_in(team.key, team.former)
    team.starts(team.ports(both), model=model)
    team.cluster.objects.clear()
    for place in ("servers", "jobs"):
        _clear(team.folder / place)
    team.refuses(team.ports(trust_in(team.key)), reason="ModelNotSigned", model=model)


def test_what_a_former_key_signed_as_composed_is_composed_and_signed_again(team: Team) -> None:
    image = team.coded(b"print(2)\n", team.former, team.key)
    composer = Composer(team.layout, team.folder / "composed", team.former, trust_in(team.former, team.key), SystemClock())
    before = composer.compose(image, {"myelin/in/model": [team.model]})
    with pytest.raises(TrustError):
        verify_image(team.layout, before, trust_in(team.key))
    after = Composer(team.layout, team.folder / "composed", team.key, trust_in(team.key), SystemClock())
    assert after.compose(image, {"myelin/in/model": [team.model]}) == before
    verify_image(team.layout, before, trust_in(team.key))


@pytest.mark.parametrize("part", ["manifest", "config", "layer", "bundle"])
def test_what_was_touched_in_the_cache_comes_anew_from_the_registry(team: Team, part: str) -> None:
    manifest = team.layout.manifest(team.image)
    (first, *_) = [item for item in team.layout.listed() if item.get("subject") == team.image and "artifactType" in item]
    digest = {
        "manifest": team.image,
        "config": manifest["config"]["digest"],
        "layer": manifest["layers"][0]["digest"],
        "bundle": team.layout.manifest(first["digest"])["layers"][0]["digest"],
    }[part]
    place = team.layout.place(digest)
    whole = place.read_bytes()
    place.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    team.starts(team.ports(trust_in(team.key)))
    assert place.read_bytes() == whole


def test_what_was_touched_and_is_nowhere_else_is_left_as_it_is_and_not_used(team: Team) -> None:
    digest = team.layout.put(b"only here")
    team.layout.place(digest).write_bytes(b"only hers")
    with pytest.raises(TrustError, match="expected these bytes"):
        team.layout.get(digest)
    assert team.layout.place(digest).read_bytes() == b"only hers"


def _clear(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
