"""Where an image's source lies: build locations of manifests -> folders of a commit, of this repository or another."""

from __future__ import annotations

import re
from collections.abc import Iterator
from posixpath import normpath

from policies.errors import DesiredStateError
from policies.terms.axon import Artifact, Axon, ImageBuild, Task
from policies.terms.project import GIT_URL
from policies.terms.source import Elsewhere
from policies.unbuilt import check_artifact

_REVISION = re.compile(r"[A-Za-z0-9_](?!.*(\.\.|//|@\{|\.lock$|\.$|/$))[A-Za-z0-9_./@+#-]{0,254}")
"""What Git may be asked for by name: nothing that it would read as an option, a pattern or a way through history."""


def elsewhere_of(axon: Axon, build: ImageBuild) -> Elsewhere | None:
    """The other repository that an image is built from; None where it is this one.

    Raises:
        DesiredStateError: The artifact is not there, or its URL or revision cannot be one.
    """
    artifact = _artifact(axon, build)
    git = artifact.git
    if git is None or not git.repo:
        return None
    if not re.fullmatch(GIT_URL, git.repo):
        # The text is not shown: it may hold a password.
        raise DesiredStateError(f"artifact {artifact.name}: git.repo: expected a Git URL without a password", reason="BadUrl")
    if git.revision and not _REVISION.fullmatch(git.revision):
        text = f"artifact {artifact.name}: git.revision: expected a branch, tag or commit, got {git.revision!r}"
        raise DesiredStateError(text, reason="BadRevision")
    named = git.ssh_private_key_secret
    return Elsewhere(
        repo=git.repo,
        revision=git.revision,
        secret=named.name if named is not None else "",
        secret_key=named.key if named is not None else "",
        verify=git.verify,
    )


def build_folder(axon: Axon, build: ImageBuild) -> str:
    """The folder, from its repository's root, that an image is built from; empty for the root.

    Raises:
        DesiredStateError: The build names no artifact of a repository, or a place outside of the artifact.
    """
    artifact = _artifact(axon, build)
    check_artifact(artifact)
    root = normpath(artifact.path or "/")
    location = normpath(build.build_location or root)
    if location != root and not location.startswith(root.rstrip("/") + "/"):
        raise DesiredStateError(f"buildLocation {location}: expected a folder under the artifact's path {root}")
    context = build.s2i.context_dir if build.s2i is not None and build.s2i.context_dir else ""
    folder = normpath(f"{location[len(root) :].strip('/')}/{context}".strip("/") or ".")
    if folder.startswith(".."):
        raise DesiredStateError(f"contextDir {context}: expected a folder inside of the artifact")
    return "" if folder == "." else folder


def source_folders(axon: Axon) -> tuple[str, ...]:
    """All folders of this repository that an axon's tasks are built from, sorted; what cannot be resolved is left out."""
    return _folders(axon, None)


def folders_elsewhere(axon: Axon, source: Elsewhere) -> tuple[str, ...]:
    """All folders of another repository that an axon's tasks are built from, sorted."""
    return _folders(axon, source)


def _folders(axon: Axon, source: Elsewhere | None) -> tuple[str, ...]:
    folders = set()
    for _, build in image_builds(axon):
        try:
            if elsewhere_of(axon, build) == source:
                folders.add(build_folder(axon, build))
        except DesiredStateError:
            continue
    return tuple(sorted(folders))


def image_builds(axon: Axon) -> Iterator[tuple[Task, ImageBuild]]:
    """Every task that builds an image, with how."""
    for task in axon.spec.tasks:
        body = task.container or task.train or task.deploy or task.spark
        if body is not None and body.image_build is not None and not body.image:
            yield task, body.image_build


def _artifact(axon: Axon, build: ImageBuild) -> Artifact:
    for artifact in axon.spec.artifacts:
        if artifact.name == build.artifact:
            return artifact
    raise DesiredStateError(f"imageBuild.artifact {build.artifact}: no artifact of that name")
