"""Where an image's source lies in the repository: build locations of manifests -> folders of a commit."""

from __future__ import annotations

from collections.abc import Iterator
from posixpath import normpath

from policies.errors import DesiredStateError
from policies.terms.axon import Artifact, Axon, ImageBuild, Task
from policies.unbuilt import check_artifact


def build_folder(axon: Axon, build: ImageBuild) -> str:
    """The folder, from the repository's root, that an image is built from; empty for the root.

    Raises:
        DesiredStateError: The build names no artifact of this repository, or a place outside of the artifact.
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
    """All folders that an axon's tasks are built from, sorted; what cannot be resolved is left out."""
    folders = set()
    for _, build in image_builds(axon):
        try:
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
