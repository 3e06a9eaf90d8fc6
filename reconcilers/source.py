"""Stage 1 and 2: fetch, verify, parse. Project -> desired state.

It never acts on a commit that trust refuses: then the newest trusted one goes on to be what is worked towards.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from posixpath import dirname

from policies.committed import Committed, below
from policies.errors import DesiredStateError, Fault, TrustError
from policies.hygiene import LONGEST_LINK_BYTES, bytes_of, refusals, why_odd
from policies.identity import axon_digest
from policies.lint import lint
from policies.parsing import defaulted, parse_document
from policies.sources import source_folders
from policies.submodules import LARGEST_MODULES_BYTES, MODULES_FILE, holder_of, submodules_in, tree_within
from policies.terms.axon import Axon
from policies.terms.desired import DesiredAxon, DesiredState
from policies.terms.document import LoadedDocument
from policies.terms.project import Project, Source
from policies.terms.release import Release
from policies.terms.revision import Pin, Revision
from policies.terms.source import Submodule
from policies.terms.version import Version
from policies.trust import TrustState, judge
from reconcilers.deploy import record_bytes
from reconcilers.ports import Documents, Ports, Repository, TreeFile

PROJECT_FILE = "myelin.yaml"
LARGEST_DOCUMENT_BYTES = 1 << 20

Parsed = Project | Axon | Release | Version | None


@dataclass(slots=True)
class Memory:
    """What a pass may remember of earlier ones: all of it can be found out again."""

    trust: TrustState | None = None
    tip: str = ""
    desired: DesiredState | None = None
    committed: Committed = field(default_factory=Committed)
    documents: dict[tuple[str, str], tuple[Parsed, tuple[Fault, ...], LoadedDocument | None]] = field(default_factory=dict)
    """(path, blob) -> what it says."""
    axons: dict[str, tuple[DesiredAxon, tuple[Fault, ...]]] = field(default_factory=dict)
    """Path -> the axon last read there, and its warnings."""
    rules: Source = field(default_factory=Source)
    """What of the repository was read, when those axons were."""
    vouched: Mapping[str, Version] = field(default_factory=dict)
    """Records whose signature was found to fit."""
    modules: str = ""
    """The file that told where submodules come from, by its object id, when those axons were read."""


def fetch(ports: Ports, *, branch: str, pin: Pin, memory: Memory) -> DesiredState:
    """Bring the branch here, decide which of its commits are trusted, and read the newest of those.

    Raises:
        OutsideError: The repository does not answer and was never read.
        TrustError: No commit of the branch is trusted.
        DesiredStateError: There is no commit, or no project can be read.
    """
    tip = ports.repository.fetch(branch)
    if not tip:
        raise DesiredStateError(f"branch {branch}: expected at least one commit, got none; push one", reason="Empty")
    if memory.desired is not None and memory.tip == tip:
        return memory.desired
    since = memory.trust.head if memory.trust is not None and memory.trust.head else pin.since
    commits = ports.repository.facts(since=since, until=tip)
    known = memory.trust
    if known is not None and tip == known.head:
        known = replace(known, fault="")  # what was not trusted was taken back
    trust = judge(pin, commits, trusted=known)
    if not trust.head:
        raise TrustError(trust.fault or f"{branch}@sha1:{tip}: nothing on this branch is trusted")
    memory.trust = trust
    memory.committed = memory.committed.with_more(below(commits, trust.head), pin.own)
    commit = trust.head
    revision = Revision(branch=branch, commit=commit, at=ports.clock.now(), signer=trust.signer_of.get(commit, ""))
    desired = read(
        ports.repository, ports.documents, revision, memory=memory, tip=tip, trust_fault=trust.fault, unsigned=trust.unsigned
    )
    desired = _vouched(replace(desired, committed=memory.committed, signers=trust.signers), ports, pin, memory)
    memory.tip, memory.desired = tip, desired
    return desired


def _vouched(desired: DesiredState, ports: Ports, pin: Pin, memory: Memory) -> DesiredState:
    """Without the records that the controller did not sign as they are: nothing is loaded by them, and it is said why.

    One that lay in the commit that the pin trusts just so is taken as it is: a controller's former key may have signed it.
    """
    own = pin.controller.key if pin.controller is not None else ports.keys.public()
    unsigned = [
        name
        for name, version in desired.versions.items()
        if memory.vouched.get(name) is not version and not ports.keys.is_signed(record_bytes(version), version.signature, own)
    ]
    paths = {name: f"versions/{desired.versions[name].metadata.axon}/{name}.yaml" for name in unsigned}
    if paths and pin.since:
        before = ports.repository.read_many(pin.since, list(paths.values()))
        now = ports.repository.read_many(desired.revision.commit, list(before))
        unsigned = [name for name in unsigned if paths[name] not in now or before.get(paths[name]) != now[paths[name]]]
    versions = {name: version for name, version in desired.versions.items() if name not in unsigned}
    memory.vouched = versions
    if not unsigned:
        return desired
    message = "expected the record as the controller signed it, got another; a record never changes: put it back, or delete it"
    faults = [Fault(file=paths[name], line=1, path="signature", reason="RecordNotSigned", message=message) for name in unsigned]
    return replace(desired, versions=versions, faults=tuple(sorted((*desired.faults, *faults))))


def read(
    repository: Repository,
    documents: Documents,
    revision: Revision,
    *,
    memory: Memory,
    tip: str = "",
    trust_fault: str = "",
    unsigned: int = 0,
) -> DesiredState:
    """Read everything that one commit asks for; faults of one document leave the others alone.

    Args:
        repository: Where the commit is.
        documents: Reader of YAML.
        revision: The commit.
        memory: Parsed documents of earlier reads, by blob.
        tip: The branch's tip; the revision's commit when empty.
        trust_fault: Why the tip is not the revision.
        unsigned: Unsigned commits that were accepted.
    """
    files = repository.files(revision.commit)
    listed = [item for item in files if _is_document(item)]
    found = _parse(repository, documents, revision.commit, listed, memory)
    project = next((item for path, (item, _, _) in found.items() if path == PROJECT_FILE and isinstance(item, Project)), None)
    faults = [fault for _, problems, _ in found.values() for fault in problems]
    project = project or Project.model_validate({"metadata": {"name": "project"}})
    paths = tuple(path.strip("/") for path in project.spec.paths or () if path.strip("./"))
    axons: dict[str, DesiredAxon] = {}
    releases: dict[tuple[str, str], Release] = {}
    release_files: dict[tuple[str, str], tuple[str, bytes]] = {}
    versions: dict[str, Version] = {}
    warnings: list[Fault] = []
    clean = _Folders(repository, revision.commit, files, project.spec.source)
    if (memory.rules, memory.modules) != (project.spec.source, clean.modules):
        memory.axons, memory.rules, memory.modules = {}, project.spec.source, clean.modules
    for path, (item, _, loaded) in found.items():
        if isinstance(item, Axon):
            if paths and not any(path == top or path.startswith(top + "/") for top in paths):
                continue
            name = item.metadata.name
            if name in axons:
                message = f"axon {name}: expected one manifest, {axons[name].file} is it already"
                faults.append(Fault(file=path, line=1, path="metadata.name", reason="Duplicate", message=message))
                continue
            trees = {folder: clean.tree(folder) for folder in source_folders(item)}
            known = memory.axons.get(path)
            if known is None or known[0].document is not item or known[0].trees != trees:
                if known is not None and known[0].document is item and _are_there(known[0].trees) == _are_there(trees):
                    found_warnings = known[1]
                else:
                    loaded = loaded or documents.load(repository.read(revision.commit, path), path)
                    found_warnings = lint(item, has_folder=lambda folder: bool(clean.trees.get(folder)), loaded=loaded)
                digest = axon_digest(defaulted(item), trees)
                refused = {folder: why for folder in trees if (why := clean.refusals(folder))}
                held = {folder: modules for folder in trees if (modules := clean.submodules(folder))}
                known = (
                    DesiredAxon(
                        name=name, file=path, document=item, digest=digest, trees=trees, refused=refused, submodules=held
                    ),
                    found_warnings,
                )
                memory.axons[path] = known
            axons[name] = known[0]
            warnings += known[1]
        elif isinstance(item, Release):
            key = (item.metadata.axon, item.metadata.name)
            releases[key] = item
            release_files[key] = (path, b"")
        elif isinstance(item, Version):
            versions[item.metadata.name] = item
    # Where a document's lines are is asked once, and takes more memory than all that it says.
    memory.documents = {key: (item, problems, None) for key, (item, problems, _) in memory.documents.items()}
    texts = repository.read_many(revision.commit, [path for path, _ in release_files.values()])
    return DesiredState(
        revision=revision,
        tip=tip or revision.commit,
        project=project,
        axons=axons,
        releases=releases,
        release_files={key: (path, texts.get(path, b"")) for key, (path, _) in release_files.items()},
        versions=versions,
        faults=tuple(sorted(faults)),
        warnings=tuple(sorted(warnings)),
        trust_fault=trust_fault,
        unsigned=unsigned,
    )


class _Folders:
    """Source folders of one commit, each looked through once, without reading its files."""

    def __init__(self, repository: Repository, commit: str, files: Sequence[TreeFile], rules: Source) -> None:
        self._repository, self._commit, self._files, self._rules = repository, commit, files, rules
        self._largest_bytes = bytes_of(rules.largest_file)
        self._paths = [item.path for item in files]
        self._gitlinks = {item.path: item.blob for item in files if item.submodule}
        told = next((item for item in files if item.path == MODULES_FILE), None) if rules.submodules else None
        self.modules = told.blob if told is not None else ""
        self._may_tell = told is not None and not told.symlink and told.size_bytes <= LARGEST_MODULES_BYTES
        self.trees: dict[str, str] = {}
        """Folder -> tree id, of those that were asked for."""
        self._refused: dict[str, tuple[Fault, ...]] = {}
        self._held: dict[str, tuple[tuple[Submodule, ...], tuple[Fault, ...]]] = {}

    def tree(self, folder: str) -> str:
        """Names what a folder holds; empty when there is none."""
        if folder not in self.trees:
            self.trees[folder] = self._repository.tree_id(self._commit, folder) or tree_within(folder, self._gitlinks)
        return self.trees[folder]

    def submodules(self, folder: str) -> tuple[Submodule, ...]:
        """The submodules that a folder holds or lies in, where the project asks for them."""
        return self._modules_of(folder)[0]

    def refusals(self, folder: str) -> tuple[Fault, ...]:
        """What keeps a folder from being read."""
        if folder not in self._refused:
            first = bisect_left(self._paths, f"{folder}/") if folder else 0
            # `0` is the letter that comes after `/`.
            end = bisect_left(self._paths, f"{folder}0") if folder else len(self._paths)
            below = list(self._files[first:end])
            if holder := holder_of(folder, self._gitlinks):
                below.append(self._files[bisect_left(self._paths, holder)])
            links = [item.path for item in below if item.symlink and item.size_bytes <= LONGEST_LINK_BYTES]
            texts = self._repository.read_many(self._commit, links) if links else {}
            targets = {path: text.decode(errors="surrogateescape") for path, text in texts.items()}
            asked = tuple(self._gitlinks) if self._rules.submodules else ()
            found = refusals(folder, below, targets, largest_bytes=self._largest_bytes, submodules=asked)
            self._refused[folder] = tuple(sorted((*found, *self._modules_of(folder)[1])))
        return self._refused[folder]

    def _modules_of(self, folder: str) -> tuple[tuple[Submodule, ...], tuple[Fault, ...]]:
        if not self._rules.submodules or not self._gitlinks:
            return (), ()
        if folder not in self._held:
            text = self._repository.read_many(self._commit, [MODULES_FILE]).get(MODULES_FILE) if self._may_tell else None
            self._held[folder] = submodules_in(folder, self._gitlinks, text, own=self._repository.url)
        return self._held[folder]


def _is_document(item: TreeFile) -> bool:
    return item.path.endswith((".yaml", ".yml")) and not item.submodule and (_is_ours(item.path) or not item.symlink)


def _are_there(trees: Mapping[str, str]) -> Mapping[str, bool]:
    """Which folders there are: of what is in them, lint knows nothing."""
    return {folder: bool(tree) for folder, tree in trees.items()}


def _parse(
    repository: Repository, documents: Documents, commit: str, listed: list[TreeFile], memory: Memory
) -> Mapping[str, tuple[Parsed, tuple[Fault, ...], LoadedDocument | None]]:
    unknown = [item for item in listed if (item.path, item.blob) not in memory.documents]
    small = [item.path for item in unknown if item.size_bytes <= LARGEST_DOCUMENT_BYTES and not _why_refused(item)]
    texts = repository.read_many(commit, small) if small else {}
    for item in unknown:
        memory.documents[item.path, item.blob] = _read_one(documents, item, texts.get(item.path))
    kept = {(item.path, item.blob) for item in listed}
    for key in [key for key in memory.documents if key not in kept]:
        del memory.documents[key]
    return {item.path: memory.documents[item.path, item.blob] for item in listed}


def _read_one(
    documents: Documents, item: TreeFile, text: bytes | None
) -> tuple[Parsed, tuple[Fault, ...], LoadedDocument | None]:
    if text is None:
        if not _is_ours(item.path):
            return None, (), None
        reason, message = _why_refused(item) or (
            "TooLarge",
            f"expected at most {LARGEST_DOCUMENT_BYTES} bytes, got {item.size_bytes}",
        )
        file = item.path if item.path.isprintable() else ascii(item.path)
        return None, (Fault(file=file, line=1, path="", reason=reason, message=message),), None
    loaded: LoadedDocument | None = None
    try:
        loaded = documents.load(text, item.path)
        if not _is_ours(item.path) and not _names_us(loaded.value):
            return None, (), None
        return parse_document(loaded), (), loaded
    except DesiredStateError as error:
        if loaded is None and not _is_ours(item.path) and b"myelin" not in text:
            return None, (), None
        faults = error.faults or (Fault(file=item.path, line=1, path="", reason=error.reason, message=error.message),)
        return None, faults, loaded


def _why_refused(item: TreeFile) -> tuple[str, str] | None:
    """Why a document is not even read, whatever is in it: (reason, words)."""
    if item.symlink:
        return "Link", "expected a plain file, got a link"
    if why := why_odd(item.path):
        return "OddName", f"expected a plain name, got {why}"
    return None


def _is_ours(path: str) -> bool:
    return (
        path == PROJECT_FILE
        or path.endswith(("/axon.yaml", "/axon.yml"))
        or dirname(path).split("/")[0] in ("releases", "versions")
    )


def _names_us(value: object) -> bool:
    return isinstance(value, dict) and str(value.get("apiVersion", "")).startswith(("myelin.io/", "myelinproj.io/"))
