"""Images by Dockerfile: a spec -> an image in the store, with what went in and whether it comes out the same twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from controller.adapters.attest.provenance import FROM_DOCKERFILE, MODULE
from controller.adapters.build.buildah import BuiltByFile, DockerfileJob
from controller.adapters.build.comparing import compare
from controller.adapters.build.driver import Built, Progress
from controller.adapters.build.leaks import MountedSecret
from controller.adapters.build.s2i import ByFile
from controller.adapters.build.scanning import Scanner
from controller.adapters.image_source import ImageSource, SourceReader
from controller.adapters.oci.layout import Layout
from policies.canonical import digest_value
from policies.identity import image_identity
from policies.provenance import DOCKERFILE_BUILD
from policies.reproducibility import Report, is_built_again
from policies.terms.build import BuildSecret
from policies.terms.digest import Digest
from policies.terms.secret import Secret
from policies.terms.task import ImageSpec

BUILDER = DOCKERFILE_BUILD
BASE = FROM_DOCKERFILE


class DockerfileBuilder:
    """Implements `controller.adapters.build.driver.Driver`.

    Args:
        reader: Reads source.
        layout: Where images go.
        driver_for: Address of a BuildKit, empty for none -> what builds.
        again_for: The same, in other surroundings, for second builds.
        committed_at: When the source's commit was made, in seconds since 1970.
        secret: The files of a Secret in the project's namespace.
        scanner: Refuses keys in contexts.
    """

    def __init__(
        self,
        reader: SourceReader,
        layout: Layout,
        driver_for: Callable[[str], ByFile],
        again_for: Callable[[str], ByFile],
        committed_at: Callable[[ImageSpec], int],
        secret: Callable[[BuildSecret], Mapping[str, Secret]],
        scanner: Scanner,
    ) -> None:
        self._reader, self._layout, self._committed_at, self._secret = reader, layout, committed_at, secret
        self._driver_for, self._again_for, self._scanner = driver_for, again_for, scanner

    def identity(self, spec: ImageSpec) -> Digest:
        """Source, Dockerfile, secrets by name and network; which image a tag names now is looked at when it is built."""
        return digest_value({"image": image_identity(spec), "format": BUILDER})

    def build(self, spec: ImageSpec, progress: Progress) -> Built:
        """Build an image into the store; a second time too where the project wants to know whether it comes out the same."""
        source = self._reader.read(spec)
        progress("looking for keys and passwords")
        self._scanner.refuse({path: item.data for path, item in source.files.items()}, spec.folder)
        job = self._job(spec, source)
        built = self._driver_for(spec.rules.buildkit).build(job, self._layout, progress)
        report = None
        if is_built_again(spec.rules.reproducibility, self.identity(spec)):
            progress("building again, to compare")
            second = self._again_for(spec.rules.buildkit).build(job, self._layout, lambda text: progress(f"again: {text}"))
            steps = {layer.diff_id: layer.step for layer in built.layers}
            report = compare((self._layout, built.digest), (self._layout, second.digest), steps)
        provenance = self._provenance(spec, job, built, source, report)
        return Built(digest=built.digest, materials=_materials_of(provenance), provenance=provenance)

    def materials(self, provenance: Mapping[str, Any], spec: ImageSpec) -> Mapping[str, Any] | None:
        """What went into an image; None: of another tree, Dockerfile or network, or not compared as the project wants it."""
        found = _materials_of(provenance)
        same = {"tree": spec.tree, "dockerfile": spec.dockerfile, "network": spec.network}
        if any(found[key] != value for key, value in same.items()):
            return None
        return None if spec.rules.reproducibility == "required" and "reproducible" not in found else found

    def _job(self, spec: ImageSpec, source: ImageSource) -> DockerfileJob:
        secrets = [MountedSecret(name=item.name, path=item.path, files=self._secret(item)) for item in spec.secrets]
        return DockerfileJob(
            subject=spec.repository,
            folder=spec.folder,
            files=source.files,
            links=source.links,
            dockerfile=_within(spec),
            committed_at=self._committed_at(spec),
            secrets=tuple(secrets),
            network=spec.network,
            rules=spec.rules,
        )

    def _provenance(
        self, spec: ImageSpec, job: DockerfileJob, built: BuiltByFile, source: ImageSource, report: Report | None
    ) -> dict[str, Any]:
        elsewhere = spec.source is not None
        commit = spec.source_commit if elsewhere else spec.commit
        first: dict[str, Any] = {"name": "source", "digest": {"gitCommit": commit}}
        if spec.source is not None:
            first["uri"] = spec.source.repo
        within = [
            {"name": f"{MODULE}{item.path}", "uri": item.url, "digest": {"gitCommit": item.commit}} for item in source.submodules
        ]
        below = [
            {"name": f"{BASE}{written}", "uri": pinned, "digest": {"sha256": pinned.rpartition(":")[2]}}
            for written, pinned in built.bases
        ]
        return {
            "buildDefinition": {
                "buildType": BUILDER,
                "externalParameters": {
                    "commit": spec.commit,
                    "folder": spec.folder,
                    "tree": spec.tree,
                    "eventSet": spec.event_set,
                    "dockerfile": spec.dockerfile,
                    "args": dict(job.args),
                    "network": built.network,
                    "secrets": [{"name": item.name, "path": item.path} for item in spec.secrets],
                    **({"repo": spec.source.repo, "revision": spec.source.revision} if spec.source is not None else {}),
                    **({"sourceCommit": spec.source_commit} if elsewhere else {}),
                },
                "internalParameters": {
                    "sourceDateEpoch": job.committed_at,
                    "tool": built.tool,
                    **({"reproducible": report.told()} if report is not None else {}),
                },
                "resolvedDependencies": [first, *within, *below],
            },
            "runDetails": {"builder": {"id": BUILDER}},
        }


def _within(spec: ImageSpec) -> str:
    """The Dockerfile's path in the source folder; manifests have it from there, or from the repository's root."""
    path = spec.dockerfile.removeprefix("./").lstrip("/")
    return path.removeprefix(f"{spec.folder}/") if spec.folder else path


def _materials_of(provenance: Mapping[str, Any]) -> dict[str, Any]:
    definition = provenance["buildDefinition"]
    if definition["buildType"] != BUILDER:
        raise ValueError(definition["buildType"])
    outer, inner = definition["externalParameters"], definition["internalParameters"]
    parts = definition["resolvedDependencies"]
    named = ("commit", "folder", "tree", "dockerfile", "network", "repo", "revision", "sourceCommit")
    modules = {
        item["name"].removeprefix(MODULE): f"{item['uri']}@sha1:{item['digest']['gitCommit']}"
        for item in parts
        if item["name"].startswith(MODULE)
    }
    return {
        **{key: outer[key] for key in named if key in outer},
        "bases": {item["name"].removeprefix(BASE): item["uri"] for item in parts if item["name"].startswith(BASE)},
        "tool": inner["tool"],
        **({"reproducible": inner["reproducible"]} if "reproducible" in inner else {}),
        **({"submodules": modules} if modules else {}),
    }
