"""Source of an image: the files of one folder of a commit, those of submodules in it too, looked at before they are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from controller.adapters.git import OtherRepositories
from controller.adapters.git.urls import shown
from controller.adapters.oci.layers import Stored
from policies.errors import DesiredStateError
from policies.hygiene import LONGEST_LINK_BYTES, refusals, told
from policies.pointers import pointer_of, why_not_built_from
from policies.submodules import LARGEST_MODULES_BYTES, MODULES_FILE, submodules_in
from policies.terms.source import Elsewhere, Submodule
from policies.terms.task import ImageSpec
from reconcilers.ports import Repository, TreeFile


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSource:
    """What goes into an image from Git, by path from the folder."""

    files: Mapping[str, Stored]
    links: Mapping[str, str]
    """Path -> where it leads to."""
    submodules: tuple[Submodule, ...] = ()
    """Where a part of the files came from."""


class SourceReader:
    """Reads the source of images.

    Args:
        repository: The repository that is followed.
        others: Opens other repositories; None: only that one is built from.
        large: Where content of Git LFS is kept; no other project has the same folder.
    """

    def __init__(self, repository: Repository, others: OtherRepositories | None, large: Path) -> None:
        self._repository, self._others, self._large = repository, others, large

    @property
    def url(self) -> str:
        """The repository that is followed, without a login."""
        return shown(self._repository.url)

    def read(self, spec: ImageSpec) -> ImageSource:
        """All that an image is built from; nothing of it when one file of it must not be read.

        Raises:
            DesiredStateError: A file is refused, or a submodule cannot be told.
            OutsideError: Another repository does not answer, or has nothing of that name.
        """
        modules = self._modules(spec)
        places = self._places(spec, modules)
        listed = [item for place in places for item in place.files]
        links = self._texts(places, [item for item in listed if item.symlink and item.size_bytes <= LONGEST_LINK_BYTES])
        targets = {path: text.decode(errors="surrogateescape") for path, text in links.items()}
        paths = [module.path for module in modules]
        refused = refusals(spec.folder, listed, targets, largest_bytes=spec.largest_bytes, submodules=paths)
        if refused:
            raise DesiredStateError(f"folder {spec.folder or '/'}: {told(refused)}", reason=refused[0].reason)
        files = [item for item in listed if not item.symlink and not item.submodule]
        if not listed:
            where = f"commit {places[-1].commit[:12]}" + (f" of {places[-1].source.repo}" if places[-1].source else "")
            text = f"folder {spec.folder or '/'}: expected source to build from, there is none in {where}"
            hint = "" if modules or spec.reads_submodules else "; submodules are read with spec.source.submodules"
            raise DesiredStateError(text + hint, reason="FolderMissing")
        texts = self._texts(places, files)
        texts.update(self._contents(places, texts, spec.largest_bytes))
        cut = len(spec.folder) + 1 if spec.folder else 0
        return ImageSource(
            files={item.path[cut:]: Stored(data=texts[item.path], executable=item.executable) for item in files},
            links={path[cut:]: target for path, target in targets.items()},
            submodules=modules,
        )

    def committed_at(self, spec: ImageSpec) -> int:
        """When the source's commit was made, in seconds since 1970.

        Raises:
            DesiredStateError: There is no such commit.
            OutsideError: Another repository does not answer.
        """
        if spec.source is None:
            return int(self._repository.committed_at(spec.commit).timestamp())
        return int(self._need(spec.source).committed_at(spec.source, spec.source_commit).timestamp())

    def _modules(self, spec: ImageSpec) -> tuple[Submodule, ...]:
        if spec.source is None:
            return spec.submodules
        if not spec.reads_submodules:
            return ()
        others, commit = self._need(spec.source), spec.source_commit
        files = others.files(spec.source, commit, "")
        gitlinks = {item.path: item.blob for item in files if item.submodule}
        named = next((item for item in files if item.path == MODULES_FILE), None)
        text = None
        if gitlinks and named is not None and not named.symlink and named.size_bytes <= LARGEST_MODULES_BYTES:
            text = others.read_many(spec.source, commit, [MODULES_FILE]).get(MODULES_FILE)
        found, faults = submodules_in(spec.folder, gitlinks, text, own=spec.source.repo)
        if faults:
            raise DesiredStateError(f"{spec.source.repo}: {told(faults)}", reason=faults[0].reason)
        return found

    def _places(self, spec: ImageSpec, modules: Sequence[Submodule]) -> list[_Place]:
        """The folder itself, and each of its submodules."""
        if spec.source is None:
            own = self._repository.files(spec.commit, spec.folder)
        else:
            own = self._need(spec.source).files(spec.source, spec.source_commit, spec.folder)
        read = {module.path for module in modules}
        commit = spec.commit if spec.source is None else spec.source_commit
        found = [_Place(spec.source, commit, "", tuple(item for item in own if item.path not in read))]
        for module in modules:
            others = self._need(spec.source)
            source = others.beside(spec.source, module)
            # Where the folder lies in the submodule, only that part of it is wanted.
            inner = spec.folder[len(module.path) + 1 :] if spec.folder.startswith(f"{module.path}/") else ""
            below = others.files(source, module.commit, inner)
            files = tuple(replace(item, path=f"{module.path}/{item.path}") for item in below)
            found.append(_Place(source, module.commit, f"{module.path}/", files))
        return found

    def _texts(self, places: Sequence[_Place], wanted: Sequence[TreeFile]) -> dict[str, bytes]:
        """Contents by path, each out of its own repository."""
        known, found = {item.path for item in wanted}, {}
        for place in places:
            inner = [item.path[len(place.prefix) :] for item in place.files if item.path in known]
            if place.source is None:
                texts = self._repository.read_many(place.commit, inner)
            else:
                texts = self._need(place.source).read_many(place.source, place.commit, inner)
            found.update({place.prefix + path: text for path, text in texts.items()})
        return found

    def _contents(self, places: Sequence[_Place], texts: Mapping[str, bytes], largest_bytes: int) -> dict[str, bytes]:
        """What pointers of Git LFS stand for, by their paths."""
        pointers = {path: found for path, text in texts.items() if (found := pointer_of(text)) is not None}
        if not pointers:
            return {}
        if self._others is None:
            raise DesiredStateError(why_not_built_from(list(pointers.items())), reason="LargeFileMissing")
        for path, pointer in pointers.items():
            if pointer.is_extended:
                text = "expected content, got a Git LFS pointer with extensions, whose programs are not run; keep the file in Git"
                raise DesiredStateError(f"{path}: {text}", reason="NotBuilt")
            if (pointer.size_bytes or 0) > largest_bytes:
                text = f"expected at most {largest_bytes} bytes (spec.source.largestFile), got {pointer.size_bytes} in Git LFS"
                raise DesiredStateError(f"{path}: {text}", reason="FileTooLarge")
        made: dict[str, bytes] = {}
        for place in places:
            here = {item.path: pointers[item.path] for item in place.files if item.path in pointers}
            if here:
                contents = self._others.large_files(place.source, list(here.values()), self._large)
                made.update({path: contents[pointer.digest] for path, pointer in here.items()})
        return made

    def _need(self, source: Elsewhere | None) -> OtherRepositories:
        if self._others is None:
            what = source or "submodules"
            raise DesiredStateError(f"{what}: other repositories are not built from here", reason="NotBuilt")
        return self._others


@dataclass(frozen=True, slots=True)
class _Place:
    """Files of one commit, by their paths from the root of the repository that is built from."""

    source: Elsewhere | None
    """Where the commit is; None: the repository that is followed."""
    commit: str
    prefix: str
    """What its paths begin with, that they do not begin with in the commit."""
    files: tuple[TreeFile, ...]
