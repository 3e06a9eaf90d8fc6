"""What the answers are read from: the repository by a mirror of our own, its ledger, and the keys that are known."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from controller.adapters.attest.verifying import ImageTrust
from controller.adapters.clock import SystemClock
from controller.adapters.documents import YamlDocuments
from controller.adapters.git import GitRepository
from controller.adapters.git.urls import local_path
from controller.adapters.ledger import BRANCH, lines_of
from controller.adapters.oci.layout import Layout
from controller.answers import in_cluster, proof
from controller.answers.signed import PROJECT_FILE, Judged, judge_each, name_among
from controller.keyring import image_identity, own_identity, public_certificate, public_keys
from controller.project import Place
from controller.trustfile import image_trust, pin_of, read_trust, signature_reader, signers_of, with_certificate, with_identity
from policies.errors import DesiredStateError, OutsideError
from policies.ledger import decode
from policies.records import fold
from policies.terms.desired import DesiredState
from policies.terms.observed import Recorded
from policies.terms.record import Entry
from policies.terms.revision import CommitFacts, Pin, Revision
from reconcilers.source import Memory, read


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """One project, open for reading."""

    place: Place
    repository: GitRepository
    pin: Pin
    images: ImageTrust
    """Whose images may be loaded."""
    tip: str
    """Of the branch; empty when it has no commit."""
    away: str = ""
    """Why the origin was not asked, and what the clone remembers of it is read instead; empty where it was."""

    def facts(self) -> tuple[CommitFacts, ...]:
        """All commits of the branch, parents first."""
        return self.repository.facts(since="", until=self.tip) if self.tip else ()

    def touching(self, paths: Sequence[str]) -> tuple[CommitFacts, ...]:
        """Commits of the branch's own line that touch any of some files or folders, oldest first."""
        return self.repository.facts(since="", until=self.tip, paths=paths) if self.tip else ()

    def judged(self, paths: Sequence[str]) -> list[Judged]:
        """The commits that touch any of some files or folders, or the signers, each judged by itself; oldest first."""
        paths = [*paths, PROJECT_FILE]
        line, after = self.touching(paths), frozenset[str]()
        if self.pin.since:
            later = self.repository.facts(since=self.pin.since, until=self.tip, paths=paths) if self.tip else ()
            after = frozenset(facts.commit for facts in later)
        pinned = {facts.commit for facts in line if self.pin.since and facts.commit not in after}
        return list(judge_each(self.pin, line, pinned=pinned, branch=self.place.branch))

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

    def judged_one(self, commit: str) -> Judged | None:
        """One commit, judged by the signers that its own line named before it; None when it is not here."""
        if not self.repository.tree_id(commit, ""):
            return None
        line = list(self.repository.facts(since="", until=commit, paths=[PROJECT_FILE]))
        if not line or line[-1].commit != commit:
            line += self.repository.facts(since="", until=commit, most=1)
        pinned: set[str] = set()
        if since := self.pin.since:
            later = (*self.repository.facts(since=since, until=commit, paths=[PROJECT_FILE]),)
            later += self.repository.facts(since=since, until=commit, most=1)
            pinned = {facts.commit for facts in line} - {facts.commit for facts in later}
        return list(judge_each(self.pin, line, pinned=pinned, branch=self.place.branch))[-1]

    def name_of(self, facts: CommitFacts) -> str:
        """Who signed a commit, by the names that the pin and the tip know."""
        listed = signers_of(self.repository.read_many(self.tip, [PROJECT_FILE]).get(PROJECT_FILE, b""))
        return name_among(facts, (*self.pin.signers, *self.pin.own, *listed))

    def recorded(self, keys: Collection[str]) -> Recorded:
        """What the ledger says under some keys, `event/…`, `run/…` or `task/…`."""
        return fold(proof.find(self.repository, self.ledger_head(), self.place.state / "ledger", keys))

    def ledger_head(self) -> str:
        """Tip of the ledger's branch; empty when there is none."""
        return self.repository.fetch(BRANCH)

    def entries(self) -> Iterator[Entry]:
        """The ledger as its branch has it, one entry at a time."""
        if head := self.ledger_head():
            yield from (decode(line.raw, where=line.where) for line in lines_of(self.repository, head))


def store_of(place: Place) -> Layout | None:
    """Where a project's images and artifacts are: its state folder, and behind it, in the pod that follows it, the registry.

    None where there is no store here, as with a clone alone: nothing is made by looking.
    """
    if in_cluster.is_here(place):
        return in_cluster.store(place)
    return Layout(place.state / "store") if (place.state / "store").is_dir() else None


@contextmanager
def opened(place: Place) -> Iterator[Opened]:
    """Open a project for reading, beside a controller that may be running.

    Where its origin does not answer, the clone's own memory of the origin is read: then the answer is as old as the
    last fetch.
    """
    trust = with_certificate(read_trust(place.trust), public_certificate(place.state))
    trust = with_identity(trust, own_identity(place.state))
    own, images = public_keys(place.state)
    with TemporaryDirectory(prefix="myelin-") as folder:
        mirror, away = Path(folder) / "git", ""
        for near in (local_path(place.url), place.work_tree):
            if near is not None:
                borrow(mirror, objects_of(near))
        pin = pin_of(trust, own)
        reader = signature_reader(trust)
        repository = GitRepository(
            place.url, mirror, None, signers_of=reader.signers_of, read_signature=reader.read, access=place.access
        )
        try:
            tip = repository.fetch(place.branch)
        except OutsideError as error:
            repository.close()
            if place.work_tree is None:
                raise
            away, url = error.message, str(place.work_tree)
            repository = GitRepository(
                url,
                mirror,
                None,
                signers_of=reader.signers_of,
                read_signature=reader.read,
                heads="refs/remotes/origin",
            )
            tip = repository.fetch(place.branch)
        try:
            yield Opened(
                place=place,
                repository=repository,
                pin=pin,
                images=image_trust(trust, images, image_identity(place.state)),
                tip=tip,
                away=away,
            )
        finally:
            repository.close()


def borrow(mirror: Path, objects: Path) -> None:
    """Let a mirror that is made anew read the objects of another repository of this machine, instead of copying them.

    Nothing is borrowed from a repository that lacks objects itself (a shallow or partial clone), or is not there.
    """
    if (objects.parent / "shallow").exists() or any((objects / "pack").glob("*.promisor")) or not objects.is_dir():
        return
    file = mirror / "objects/info/alternates"
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as lines:
        lines.write(f"{objects.resolve()}\n")


def objects_of(repository: Path) -> Path:
    """Where a bare repository, or the work tree of a clone, has its objects."""
    git = repository / ".git"
    if git.is_file():
        # A work tree of several: the file says where its own part lies, and that where the common one does.
        own = repository / git.read_text().partition("gitdir:")[2].strip()
        common = own / "commondir"
        git = own / common.read_text().strip() if common.is_file() else own
    return (git if git.is_dir() else repository) / "objects"
