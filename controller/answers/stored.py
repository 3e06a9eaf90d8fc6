"""Images, models and data of `verify`: are they whole, who signed them, and do they come out the same when built again?"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from controller.adapters.attest.statements import PROVENANCE
from controller.adapters.attest.verifying import attested
from controller.adapters.models import verify_model
from controller.adapters.oci.artifacts import FILES
from controller.adapters.oci.layout import Layout
from controller.answers import contents
from controller.answers.checked import Checked
from controller.answers.opened import Opened
from controller.answers.rebuilding import Rebuilder, Tell
from controller.trustfile import read_trust
from policies.building import build_rules
from policies.errors import ControllerError, DesiredStateError, SilentError
from policies.terms.digest import is_digest
from policies.terms.version import Version

NOT_HERE = "not here: no image store on this machine"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Something that a person named, and where it lies."""

    layout: Layout
    digest: str


@contextmanager
def found_in(layout: Layout | None, subject: str, tell: Tell) -> Iterator[Found | None]:
    """What a digest, a tag of the store or `host/path@sha256:…` names; None where that is nothing that is to be had.

    Args:
        layout: The store here; None: there is none.
        subject: What a person wrote.
        tell: Told when it has to be fetched, which needs the network.
    """
    repository, _, last = subject.rpartition("@")
    digest = last if is_digest(last) else str(layout.resolve_here(subject) or "") if layout is not None else ""
    if not digest:
        yield None
    elif layout is not None and layout.has(digest):
        yield Found(layout=layout, digest=digest)
    elif not repository:
        yield None
    else:
        # Heavy, and for those alone who name another place.
        from controller.adapters.oci.access import access_on_this_machine
        from controller.adapters.oci.mirrored import MirroredLayout
        from controller.adapters.oci.registry import Registry

        with ExitStack() as closes:
            folder = closes.enter_context(TemporaryDirectory(prefix="myelin-image-"))
            registry = closes.enter_context(closing(Registry(access_on_this_machine(repository, os.environ))))
            tell(f"{digest} is not in the store here; fetching it from {repository}")
            mirror = MirroredLayout(Path(folder), registry)
            if not mirror.has(digest):
                text = f"{subject}: expected it in that repository, it is not there; check path and digest"
                raise DesiredStateError(text, reason="ImageMissing")
            for blob in mirror.below(digest):
                mirror.path(blob)
            yield Found(layout=mirror, digest=digest)


class StoreChecks:
    """Checks what lies in a store, each thing once.

    Args:
        project: Whose it is.
        layout: Where it lies; None: there is no store here.
        tell: Told what goes on.
        rebuilds: Whether images are built again too.
    """

    def __init__(self, project: Opened, layout: Layout | None, tell: Tell, *, rebuilds: bool = False) -> None:
        self._project, self._layout, self._tell, self._rebuilds = project, layout, tell, rebuilds
        self._names = contents.names_of(project.place, project.images.keys)
        self._is_trusted = lru_cache(maxsize=None)(self._judged)

    def of_versions(self, versions: Iterable[Version], *, only: str = "") -> Iterator[Checked]:
        """What versions are made of.

        Args:
            versions: They.
            only: The one image that is built again; empty: all of them.
        """
        specs = [version.spec for version in versions]
        backends = [backend for spec in specs for backend in spec.backends]
        named = [("image", backend.image) for backend in backends]
        named += [("model", backend.artifact) for backend in backends if backend.artifact]
        named += [("data", item) for spec in specs for item in spec.data]
        for kind, digest in dict.fromkeys(named):
            yield from self.one(kind, digest, is_rebuilt=not only or digest == only)

    def one(self, kind: str, digest: str, *, is_rebuilt: bool = True) -> Iterator[Checked]:
        """One of them.

        Args:
            kind: `image`, `model` or `data`; empty: what its manifest says.
            digest: Its name.
            is_rebuilt: Whether it is built again, where that was asked for.
        """
        if self._layout is None:
            yield Checked(kind=kind, subject=digest, ok=None, reason=NOT_HERE)
            return
        kind = kind or self._kind_of(self._layout, digest)
        check = {"image": self._image, "model": self._model, "data": self._data}[kind]
        done = _tried(kind, digest, partial(check, self._layout, digest))
        yield done
        if kind == "image" and self._rebuilds and is_rebuilt and done.ok:
            yield self._rebuilt(self._layout, digest)

    def _image(self, layout: Layout, digest: str) -> dict[str, Any]:
        found = attested(layout, digest, self._project.images)
        said = contents.told_of_image(found, self._names, self._is_trusted)
        by = self._base_signer(said["base"]) if "@" in said["base"] else ""
        return said | ({"baseSignedBy": by} if by else {})

    def _model(self, layout: Layout, digest: str) -> dict[str, Any]:
        layout.check_all(digest)
        bundle = verify_model(layout, digest, self._project.images)
        return contents.told_of_model(bundle, self._project.images.keys, self._names)

    def _data(self, layout: Layout, digest: str) -> dict[str, Any]:
        layout.check_all(digest)
        return {}

    def _kind_of(self, layout: Layout, digest: str) -> str:
        try:
            return "model" if layout.manifest(digest).get("artifactType") == FILES else "image"
        except (ControllerError, ValueError):
            return "image"

    def _rebuilt(self, layout: Layout, digest: str) -> Checked:
        self._tell(f"building {digest} again")
        provenance = attested(layout, digest, self._project.images).predicates[PROVENANCE]
        made = Rebuilder(self._project, layout, self._tell).rebuild(digest, provenance)
        return Checked(kind="rebuild", subject=digest, ok=made.ok, reason=made.reason, details=made.details)

    def _judged(self, commit: str) -> bool | None:
        found = self._project.judged_one(commit)
        return found.is_trusted if found is not None else None

    def _base_signer(self, base: str) -> str:
        """Who signed a base, where the project asks for it and a build here found it out; nobody is asked now."""
        signers = build_rules(self._project.desired().project.spec.builder).base_signers
        folder = self._project.place.state / "build" / "bases"
        if not signers or not folder.is_dir():
            return ""
        from controller.adapters.attest.base_signers import BaseSigners

        root = read_trust(self._project.place.trust).sigstore_root
        return BaseSigners(folder, root).known(base.rpartition("@")[2], signers)


def ends_well(checked: Sequence[Checked]) -> bool:
    """Whether the answer is yes: nothing is wrong, and what was asked to be built again came out the same."""
    return all(item.ok is not False and (item.ok is True or item.kind != "rebuild") for item in checked)


def _tried(kind: str, subject: str, check: Callable[[], dict[str, Any]]) -> Checked:
    try:
        details = check()
    except SilentError as error:
        return Checked(kind=kind, subject=subject, ok=None, reason=f"not here: {error.message}")
    except ControllerError as error:
        return Checked(kind=kind, subject=subject, ok=False, reason=error.message)
    return Checked(kind=kind, subject=subject, ok=True, details=details)
