"""Version records and releases of one commit, read one by one: a repository may have thousands."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from functools import cached_property

from controller.adapters.documents import YamlDocuments
from controller.answers.opened import Opened
from policies.errors import DesiredStateError
from policies.parsing import nearest, parse_document
from policies.terms.axon import Axon
from policies.terms.project import Project
from policies.terms.release import Release
from policies.terms.version import Version

NAME = re.compile(r"v-[0-9a-z]{10}")
MOST_NAMED = 8
"""How many versions a message names."""


class Records:
    """What one commit has below `versions/` and `releases/`.

    Args:
        project: The project.
        commit: The commit; the branch's tip when not given.
    """

    def __init__(self, project: Opened, commit: str = "") -> None:
        self._project, self._commit = project, commit or project.tip
        if not self._commit:
            raise DesiredStateError(f"branch {project.place.branch}: expected at least one commit, got none; push one")

    @cached_property
    def paths(self) -> Mapping[str, str]:
        """Version -> its file."""
        listed = self._project.repository.files(self._commit, "versions")
        return {name_of(item.path): item.path for item in listed if name_of(item.path) and not item.symlink}

    def get(self, name: str) -> Version | None:
        """A version's record; None when there is none, or when it cannot be read."""
        path = self.paths.get(name, "")
        found = read_document(self._project, self._commit, path) if path else None
        return found if isinstance(found, Version) else None

    def named(self, name: str) -> Version:
        """The same.

        Raises:
            DesiredStateError: There is none; names the nearest.
        """
        if (found := self.get(name)) is None:
            near = nearest(name, list(self.paths))
            words = f"the nearest is {near}" if near else f"there are {len(self.paths)}"
            raise DesiredStateError(
                f"{name}: expected a version that is recorded on the branch; {words}", reason="UnknownVersion"
            )
        return found

    def every(self, axon: str = "") -> list[Version]:
        """All that can be read, of one axon or of all, oldest first."""
        top = f"versions/{axon}/" if axon else "versions/"
        found = [self.get(name) for name, path in self.paths.items() if path.startswith(top)]
        return sorted((item for item in found if item is not None), key=lambda item: (item.spec.created_at, item.metadata.name))

    def having(self, text: str) -> list[Version]:
        """Those whose record has this text in it anywhere."""
        names = {path: name for name, path in self.paths.items()}
        texts = self._project.repository.read_many(self._commit, list(names))
        found = [self.get(names[path]) for path, content in texts.items() if text.encode() in content]
        return [item for item in found if item is not None]

    def releases(self, axon: str) -> list[Release]:
        """The releases of an axon."""
        listed = self._project.repository.files(self._commit, f"releases/{axon}")
        found = [read_document(self._project, self._commit, item.path) for item in listed]
        return [item for item in found if isinstance(item, Release)]

    def release_of(self, version: Version) -> Release | None:
        """The release that a version belongs to."""
        found = self.releases(version.metadata.axon)
        return next((item for item in found if item.metadata.name == version.spec.deployer), None)

    def meant(self, subject: str) -> list[Version]:
        """The versions that a person may mean by what they have in hand, the likeliest first.

        Args:
            subject: A version, a URL that it answers on, the digest of its image or model, or a commit it was made from.
        """
        text = subject.rsplit("@", 1)[-1]
        if (named := NAME.search(subject)) and (found := self.get(named[0])) is not None:
            return [found]
        if text.startswith("sha256:"):
            fitting = [item for item in self.having(text) if text in parts_of(item)]
        elif re.fullmatch(r"[0-9a-f]{7,40}", text):
            fitting = [item for item in self.having(text) if item.spec.commit.startswith(text)]
        else:
            fitting = self._by_url(subject)
        return sorted(fitting, key=lambda item: item.spec.created_at, reverse=True)

    def _by_url(self, subject: str) -> list[Version]:
        """Behind a public URL: the version that gets most of its traffic."""
        if "://" not in subject:
            return []
        axon = subject.split("://", 1)[1].partition("/")[2].split("/")[0]
        shares = [share for release in self.releases(axon) for share in release.spec.traffic] if axon else []
        best = max(shares, key=lambda share: share.share, default=None)
        found = self.get(best.version) if best is not None else None
        return [found] if found is not None else []

    def nothing_fits(self, subject: str) -> DesiredStateError:
        """The error that says what there is."""
        names = sorted(self.paths)
        there = ", ".join(names[:MOST_NAMED]) + (f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else "")
        return DesiredStateError(f"{subject}: expected a version, URL, image, model or commit of one of {there or 'none yet'}")


def read_document(project: Opened, commit: str, path: str) -> Project | Axon | Release | Version | None:
    """A document of a commit; None when it is not there, or cannot be read."""
    text = project.repository.read_many(commit, [path]).get(path)
    if text is None:
        return None
    try:
        return parse_document(YamlDocuments().load(text, path))
    except DesiredStateError:
        return None


def parts_of(version: Version) -> set[str]:
    """All that names a version or a part of it."""
    parts = {part for backend in version.spec.backends for part in (backend.image, backend.artifact) if part}
    return {version.metadata.name, version.spec.commit, *parts}


def name_of(path: str) -> str:
    """The version that a record's file is of; empty for any other file."""
    is_record = path.startswith("versions/") and path.endswith(".yaml")
    return path.rsplit("/", 1)[-1].removesuffix(".yaml") if is_record else ""


def instant(at: datetime) -> str:
    """RFC 3339 in UTC."""
    return at.isoformat().replace("+00:00", "Z")
