"""`verify --rebuild`: an image built again from its provenance alone, in a folder that remembers nothing; is it the same?

What is read is what the provenance pins: the commit's tree, wheels and bases by digest, artifacts of the store. Nothing is
written but below a temporary folder, so a controller that runs is not disturbed.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from controller.adapters.build.driver import Built
from controller.adapters.git import OtherRepositories
from controller.adapters.oci.beside import Beside
from controller.adapters.oci.layout import Layout
from controller.answers.opened import Opened
from policies.building import build_rules
from policies.errors import ControllerError, DesiredStateError, TrustError
from policies.provenance import COMPOSED, CONTROLLER_BUILD
from policies.reproducibility import sentence
from policies.terms.build import BuildRules
from policies.terms.digest import Digest

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilt:
    """What came of building an image again."""

    ok: bool | None
    """None: it could not be built here."""
    reason: str
    details: Mapping[str, Any] = field(default_factory=dict)


class Rebuilder:
    """Builds images of one project again.

    Args:
        project: The project; its commits are read.
        layout: Where the images are.
        tell: Told what goes on.
    """

    def __init__(self, project: Opened, layout: Layout, tell: Tell) -> None:
        self._project, self._layout, self._tell = project, layout, tell

    def rebuild(self, digest: str, provenance: Mapping[str, Any]) -> Rebuilt:
        """Build an image again and compare.

        Args:
            digest: The image.
            provenance: What those who are trusted say of where it is from.
        """
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="myelin-again-", ignore_cleanup_errors=True) as folder:
            beside = Beside(Path(folder) / "store", self._layout)
            try:
                again = self._built(digest, provenance, beside, Path(folder))
            except ControllerError as error:
                # Another runtime, a base that is not to be had: the digest is neither proved nor disproved.
                return Rebuilt(ok=False if isinstance(error, TrustError) else None, reason=f"not rebuilt: {error.message}")
            except (ValueError, KeyError, TypeError) as error:
                text = f"not rebuilt: its provenance does not say how: {type(error).__name__}: {error}"
                return Rebuilt(ok=None, reason=text)
            seconds = round(time.monotonic() - started, 1)
            if again == digest:
                return Rebuilt(ok=True, reason=f"same digest in {seconds} s", details={"seconds": seconds, "digest": again})
            return self._compared(digest, again, beside, seconds)

    def _built(self, digest: str, provenance: Mapping[str, Any], beside: Beside, folder: Path) -> Digest:
        definition = provenance["buildDefinition"]
        if definition["buildType"] == COMPOSED:
            return _composed(definition["externalParameters"], beside)
        if definition["buildType"] == CONTROLLER_BUILD:
            text = "expected an image of a commit, got the controller's own, which `python -m controller.own_image` makes"
            raise DesiredStateError(text, reason="NotBuilt")
        return self._from_source(digest, provenance, beside, folder)

    def _from_source(self, digest: str, provenance: Mapping[str, Any], beside: Beside, folder: Path) -> Digest:
        # Heavy, and for those alone who build.
        from controller.adapters.attest.provenance import spec_of
        from controller.adapters.build.by_file import DockerfileBuilder
        from controller.adapters.build.drivers import secrets_in
        from controller.adapters.build.python import PythonBuilder
        from controller.adapters.build.recorded import bases_of, recorded_drivers
        from controller.adapters.image_source import SourceReader
        from controller.adapters.oci.access import access_on_this_machine
        from controller.daemon_keys import daemon_in

        project, place = self._project, self._project.place
        spec = spec_of(provenance, self._rules())
        if spec.source is None and not project.repository.tree_id(spec.commit, spec.folder):
            text = f"commit {spec.commit[:12]}: expected it in {place.branch}, it is not here; fetch it"
            raise DesiredStateError(text, reason="CommitMissing")
        mirrors = place.state / "mirrors" if place.state.is_dir() else folder / "mirrors"
        others = OtherRepositories(mirrors, place.url, place.access)
        known = place.state / "build"
        for name in ("wheels", "lfs"):
            # Both are named by what they hold, and checked when they are read.
            if (known / name).is_dir():
                (folder / name).symlink_to(known / name)
        try:
            drivers = recorded_drivers(
                SourceReader(project.repository, others, folder / "lfs"),
                beside,
                folder,
                partial(access_on_this_machine, environ=os.environ),
                secrets_in(place.state / "secrets"),
                bases=bases_of(provenance),
                buildkit=daemon_in(place.state / "keys", os.environ),
            )
            driver = drivers[spec.builder]
            if isinstance(driver, PythonBuilder):
                return driver.rebuild(spec, provenance, beside, folder, self._tell)
            assert isinstance(driver, DockerfileBuilder)
            _check_machine(self._layout, digest)
            built = driver.build(spec, self._tell)
            _check_tool(digest, provenance, built)
            return built.digest
        finally:
            others.close()

    def _rules(self) -> BuildRules:
        """Where and within which bounds this project builds now."""
        return build_rules(self._project.desired().project.spec.builder)

    def _compared(self, digest: str, again: Digest, beside: Beside, seconds: float) -> Rebuilt:
        from controller.adapters.build.comparing import compare

        self._tell("comparing")
        report = compare((self._layout, Digest(digest)), (beside, again))
        told = report.told()
        differences = told if isinstance(told, list) else []
        words = sentence(differences).removeprefix("reproducibility: expected the same image from a second build, got ")
        return Rebuilt(
            ok=False,
            reason=f"expected {digest} again, got {again}: {words}",
            details={"seconds": seconds, "digest": again, "differences": differences},
        )


def _check_machine(layout: Layout, digest: str) -> None:
    """See that an image was built for this machine: what builds by Dockerfile builds for no other."""
    from controller.adapters.oci.assembly import PLATFORM
    from controller.adapters.oci.described import described

    made_for = described(layout, digest).platforms
    if made_for and made_for != (PLATFORM,):
        text = f"image {digest}: expected to build it on {', '.join(made_for)}, as it was made, this machine is {PLATFORM}"
        raise DesiredStateError(f"{text}; build it where that is", reason="OtherBuilder")


def _check_tool(digest: str, provenance: Mapping[str, Any], built: Built) -> None:
    """See that what another program builds comes out the same; else nothing is said of the image."""
    made, own = (item["buildDefinition"]["internalParameters"].get("tool") for item in (provenance, built.provenance))
    if built.digest != digest and made != own:
        text = f"image {digest}: expected to build it by {made}, as it was made, there is {own} here"
        raise DesiredStateError(f"{text}; build it where that is", reason="OtherBuilder")


def _composed(inputs: Mapping[str, Any], beside: Beside) -> Digest:
    from controller.adapters.oci.composed import compose_into, lay_artifact

    return compose_into(beside, str(inputs["image"]), inputs["places"], partial(lay_artifact, beside))
