"""What the answers are read from: the repository by a mirror of our own, its ledger, and the keys that are known."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from controller.adapters.clock import SystemClock
from controller.adapters.documents import YamlDocuments
from controller.adapters.git import GitRepository
from controller.adapters.ledger import BRANCH, read_branch
from controller.adapters.oci.layout import Layout
from controller.answers import in_cluster
from controller.keyring import public_keys
from controller.project import Place
from controller.trustfile import CONTROLLER, pin_of, read_trust, signers_of
from policies.errors import DesiredStateError, SilentError
from policies.terms.desired import DesiredState
from policies.terms.record import Entry
from policies.terms.revision import CommitFacts, Pin, Revision
from reconcilers.source import Memory, read


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """One project, open for reading."""

    place: Place
    repository: GitRepository
    pin: Pin
    image_keys: tuple[str, ...]
    tip: str
    """Of the branch; empty when it has no commit."""

    def facts(self) -> tuple[CommitFacts, ...]:
        """All commits of the branch, parents first."""
        return self.repository.facts(since="", until=self.tip) if self.tip else ()

    def desired(self) -> DesiredState:
        """What the branch's tip asks for, whether it is trusted or not.

        Raises:
            DesiredStateError: There is no commit.
        """
        branch = self.place.branch
        if not self.tip:
            raise DesiredStateError(f"branch {branch}: expected at least one commit, got none; push one")
        revision = Revision(branch=branch, commit=self.tip, at=SystemClock().now())
        return read(self.repository, YamlDocuments(), revision, memory=Memory())

    def entries(self) -> list[Entry]:
        """The ledger as its branch has it."""
        head = self.repository.fetch(BRANCH)
        return read_branch(self.repository, head) if head else []

    def signer_of(self, facts: CommitFacts) -> str:
        """Who signed a commit, by the name that people know; a claimed author where nobody did."""
        if facts.signature is None or not facts.signature.valid:
            return f"{facts.author} (not signed)"
        names = {signer.key: signer.name for signer in self.pin.signers}
        if self.pin.controller is not None:
            names[self.pin.controller.key] = CONTROLLER
        return names.get(facts.signature.key, facts.signature.fingerprint)


def store_of(place: Place) -> Layout:
    """Where a project's images and artifacts are: its state folder, and behind it, in the pod that follows it, the registry."""
    return in_cluster.store(place) if in_cluster.is_here(place) else Layout(place.state / "store")


@contextmanager
def opened(place: Place) -> Iterator[Opened]:
    """Open a project for reading, beside a controller that may be running.

    Where its origin does not answer, the clone's own memory of the origin is read: then the answer is as old as the
    last fetch.
    """
    trust = read_trust(place.trust)
    own, images = public_keys(place.state)
    with TemporaryDirectory(prefix="myelin-") as folder:
        repository = GitRepository(place.url, Path(folder) / "git", None, signers_of=signers_of)
        try:
            tip = repository.fetch(place.branch)
        except SilentError:
            repository.close()
            if place.work_tree is None:
                raise
            url = str(place.work_tree)
            repository = GitRepository(url, Path(folder) / "git", None, signers_of=signers_of, heads="refs/remotes/origin")
            tip = repository.fetch(place.branch)
        try:
            yield Opened(
                place=place,
                repository=repository,
                pin=pin_of(trust, own),
                image_keys=tuple(dict.fromkeys((*trust.images, *images))),
                tip=tip,
            )
        finally:
            repository.close()
