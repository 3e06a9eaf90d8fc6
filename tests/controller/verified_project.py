"""A project on this machine with an image that was really built, to be verified, built again and tampered with."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from controller import answers, project
from controller.adapters.clock import SystemClock
from controller.adapters.documents import YamlDocuments
from controller.adapters.git import GitRepository
from controller.adapters.images import SignedImages
from controller.adapters.keys import ImageSigner, SshKey
from controller.adapters.models import Models
from controller.adapters.oci.artifacts import ArtifactStore
from controller.adapters.oci.layout import Layout
from controller.keyring import controller_key, image_key
from policies.identity import version_id
from policies.terms.digest import Digest, digest_of
from policies.terms.task import ImageSpec
from policies.terms.version import BackendRecord, Version
from reconcilers.deploy import record_bytes
from tests.controller.people import NOW
from tests.fakes.provenance import trust_in
from tests.properties.strategies import version_of

APP = {"src/app.py": b"print('hello')\n", "src/notes/deep.txt": b"1\n"}
EVENTS = digest_of(b"events")


class Project:
    """A project, its store and its keys.

    Args:
        folder: Where.
        wheels: Cache that several of them share.
    """

    def __init__(self, folder: Path, wheels: Path) -> None:
        self.place = project.make(folder / "p", now=NOW)
        self.clone = folder / "p"
        self.signer = SshKey.load(folder / "p.myelin" / "signer")
        self.layout = Layout(self.place.state / "store")
        self.key: ImageSigner = image_key(self.place.state)
        self.own = controller_key(self.place.state)
        self.build = self.place.state / "build"
        self.build.mkdir(parents=True, exist_ok=True)
        (self.build / "wheels").symlink_to(wheels)
        self.models = Models(self.layout, self.key, trust_in(self.key))
        self.artifacts = ArtifactStore(self.layout, self.models)
        self.folder = folder

    def push(self, files: Mapping[str, bytes | None], message: str = "m\n", *, key: SshKey | None = None) -> str:
        """Commit and push as a person."""
        return project.push_as(self.place, key or self.signer, dict(files), message, now=NOW)

    def images(self, repository: GitRepository) -> SignedImages:
        """What builds and checks images here."""
        return SignedImages(repository, self.layout, self.build, self.key, trust_in(self.key), SystemClock())

    def image(self, files: Mapping[str, bytes | None] | None = None, **more: Any) -> Digest:
        """Push source, and build it."""
        commit = self.push(files or APP)
        repository = GitRepository(self.place.url, self.place.state / "git", self.own)
        try:
            repository.fetch("main")
            spec = ImageSpec(
                repository="src", commit=commit, folder="src", tree=repository.tree_id(commit, "src"), event_set=EVENTS, **more
            )
            images = self.images(repository)
            images.start(spec)
            deadline = time.monotonic() + 120
            while (state := images.look(spec)) is None or state.phase == "building":
                assert time.monotonic() < deadline, "never built"
                time.sleep(0.02)
            assert state.digest is not None, state.message
            return state.digest
        finally:
            repository.close()

    def model(self, files: Mapping[str, bytes]) -> Digest:
        """A model that is signed."""
        top = self.folder / f"m-{len(list(self.folder.iterdir()))}"
        for name, data in files.items():
            (top / name).parent.mkdir(parents=True, exist_ok=True)
            (top / name).write_bytes(data)
        return self.artifacts.keep("model", top)

    def version(
        self, image: str, model: str = "", data: tuple[str, ...] = (), *, axon: str = "digits", deployer: str = "deployer"
    ) -> Version:
        """A version of these, recorded on the branch by the controller."""
        name = version_id(commit="c" * 40, events="s", images=[image], models=[model] if model else [])
        plain = version_of(name, at=NOW, axon=axon, deployer=deployer)
        backends = (BackendRecord(model="M", backend="b", image=image, artifact=model),)
        spec = plain.spec.model_copy(
            update={"commit": "c" * 40, "event_set": "s", "backends": backends, "data": data, "previous": "", "parent": ""}
        )
        version = plain.model_copy(update={"spec": spec, "signature": ""})
        version = version.model_copy(update={"signature": self.own.sign(record_bytes(version))})
        text = YamlDocuments().render(version.model_dump(mode="json", by_alias=True))
        self.push({f"versions/{axon}/{name}.yaml": text}, f"{axon}: deploy\n", key=self.own)
        return version

    def verify(self, subject: str = "", *, rebuild: bool = False) -> dict[str, dict[str, Any]]:
        """Kind -> the last entry of that kind."""
        self.told: list[str] = []
        self.value = answers.verify(self.place, subject, rebuild=rebuild, tell=self.told.append)
        return {str(item["kind"]): item for item in self.value["checked"]}
