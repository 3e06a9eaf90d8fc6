"""Other repositories: commits of the same world, under the names that people gave them."""

from __future__ import annotations

from collections.abc import Sequence

from policies.errors import RefusedError
from policies.terms.source import Elsewhere, Resolved
from tests.fakes.repository import FakeRepository
from tests.fakes.world import World


class FakeSources:
    """Implements `reconcilers.ports.Sources`."""

    def __init__(self, world: World) -> None:
        self._world, self._repository = world, FakeRepository(world, None)

    def resolve(self, source: Elsewhere, folders: Sequence[str]) -> Resolved:
        commit = self._world.outside.elsewhere.get((source.repo, source.revision))
        if commit is None:
            raise RefusedError(f"{source}: there is no such repository, or no access to it", reason="RepositoryGone")
        trees = {folder: self._repository.tree_id(commit, folder) for folder in folders}
        signed = self._repository.facts(since="", until=commit)[-1] if source.verify else None
        return Resolved(repo=source.repo, revision=source.revision, commit=commit, trees=trees, signed=signed)
