"""Images with data and models laid over them, so that a pod finds what it reads in the image that its digest names.

Law: a composed image's bytes follow from the image below, the artifacts and their places alone; its name in the registry
is the digest of these, so a controller that lost its memory finds it again and lays nothing twice. Over an index of several
platforms the same layers are laid over each of its images, and what comes of it is one index: one name, signed as a whole.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from controller.adapters.attest.sbom import sbom_of
from controller.adapters.attest.signing import StatementSigner, say_again, sign_image
from controller.adapters.attest.statements import PROVENANCE
from controller.adapters.attest.verifying import REQUIRED, ImageTrust, examine, verify_image
from controller.adapters.keys import ImageSigner
from controller.adapters.models import verify_model
from controller.adapters.oci.artifacts import MODE, files_of
from controller.adapters.oci.assembly import read_memo, write_memo
from controller.adapters.oci.layers import Filed, Laid, lay
from controller.adapters.oci.layout import CONFIG, INDEX, MANIFEST, Layout
from policies.canonical import canonical, digest_value
from policies.errors import DesiredStateError, SilentError, TrustError
from policies.terms.digest import Digest
from reconcilers.ports import Clock

COMPOSER = "myelin.io/builders/compose/v1"
TOP = "myelin/in"
"""All that is laid over an image lies below this folder."""
MODEL = f"{TOP}/model"
"""What lies here must be signed, as an image is."""
PREFIX = "io.myelin."
IMAGE = "io.myelin.image"
MOST_LAYERS = 127
"""What engines mount at the most."""


class Composer:
    """Lays artifacts over images, signs and pushes what comes of it. Threads may share it.

    Args:
        layout: Where images and artifacts are, and composed images go.
        folder: Memories of layers and images; may be deleted.
        key: Signs composed images.
        trust: Whose images may be laid over.
        clock: Tells when, for provenance.
        identity: Signs them as well, as an identity; None: the key alone does.
    """

    def __init__(
        self,
        layout: Layout,
        folder: Path,
        key: ImageSigner,
        trust: ImageTrust,
        clock: Clock,
        *,
        identity: StatementSigner | None = None,
    ) -> None:
        self._layout, self._folder, self._key, self._as_well = layout, folder, key, identity
        self._trust, self._clock = trust, clock
        self._working = threading.Lock()
        self._admitted: dict[str, object] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def compose(self, image: Digest, places: Mapping[str, Sequence[Digest]]) -> Digest:
        """Lay artifacts over an image.

        Args:
            image: A code image, or an index of images for several platforms.
            places: `myelin/in/…` -> artifacts laid over each other in that folder, later ones win. Empty ones do not count.

        Returns:
            The composed image's digest; `image` itself when there is nothing to lay.

        Raises:
            DesiredStateError: A place elsewhere, a name that an image cannot hold, or too many layers.
            TrustError: No key of the project signed the image or a model, or a blob is missing or changed.
            OutsideError: The registry said no or nothing, or the disk is full.
        """
        wanted = {place: [str(item) for item in artifacts] for place, artifacts in sorted(places.items()) if artifacts}
        if not wanted:
            return image
        for place in wanted:
            if not place.startswith(f"{TOP}/") or not _is_plain(place):
                raise DesiredStateError(f"place {place!r}: expected a folder below {TOP}", reason="OddPlace")
        inputs = {"image": str(image), "places": wanted}
        name = f"run-{_short(digest_value({**inputs, 'format': COMPOSER}))}"
        memo = self._folder / f"{name}.json"
        try:
            with self._working:
                known = read_memo(memo)
                is_known = known is not None and known["place"] == self._layout.reference and self._layout.has(known["digest"])
                if is_known and self._is_admitted(known["digest"], wanted.get(MODEL, ())):
                    return Digest(known["digest"])
                digest = self._found(name, inputs) or self._laid(name, image, wanted, inputs)
                write_memo(memo, {"digest": digest, "place": self._layout.reference})
                return digest
        except OSError as error:
            reason = "DiskFull" if error.errno == 28 else "Disk"
            raise SilentError(f"image store: {error.strerror or error}", reason=reason) from error

    def _is_admitted(self, digest: str, models: Sequence[str]) -> bool:
        """Whether what was composed before may still be loaded; False: nobody who is trusted now signed it.

        Raises:
            TrustError: Nobody who is trusted now signed a model in it, or something is missing or changed.
        """
        if self._admitted.get(digest) == (seen := self._stamp(digest, models)):
            return True
        # What is here is asked first: what ran goes on running while the registry is away.
        here = Layout(self._layout.root)
        for model in models:
            try:
                verify_model(here, model, self._trust)
            except TrustError:
                verify_model(self._layout, model, self._trust)
        if not (self._is_signed(here, digest) or self._is_signed(self._layout, digest)):
            return False
        self._admitted[digest] = seen
        return True

    def _stamp(self, digest: str, models: Sequence[str]) -> tuple[object, ...]:
        return tuple(self._layout.stamp(item) for item in (digest, *models))

    def _is_signed(self, layout: Layout, digest: str) -> bool:
        try:
            return REQUIRED.keys() <= examine(layout, digest, self._trust).predicates.keys()
        except TrustError:
            return False

    def _found(self, name: str, inputs: Mapping[str, Any]) -> Digest | None:
        """What a controller with our keys composed of the same and pushed; None: nobody did."""
        digest = self._layout.resolve(name)
        if digest is None:
            return None
        try:
            definition = verify_image(self._layout, digest, self._trust)[PROVENANCE]["buildDefinition"]
            same = (definition["buildType"], definition["externalParameters"]) == (COMPOSER, inputs)
        except (TrustError, KeyError, TypeError, ValueError):
            # Whoever may write to the registry may move a tag, which then says nothing. It is laid again.
            return None
        if not same:
            return None
        self._layout.push(digest, tags=(name,))
        return digest

    def _laid(self, name: str, image: Digest, places: Mapping[str, Sequence[str]], inputs: Mapping[str, Any]) -> Digest:
        # Our signature on what we make says that we trust what is below it.
        below = verify_image(self._layout, image, self._trust)[PROVENANCE]
        for model in places.get(MODEL, ()):
            verify_model(self._layout, model, self._trust)
        digest = compose_into(self._layout, image, places, self._layer)
        provenance = self._provenance(inputs)
        sign_image(self._layout, digest, self._key, provenance, sbom_of(digest, name, provenance, below))
        if self._as_well is not None:
            say_again(self._layout, digest, self._as_well, self._key)
        self._layout.tag(name, digest)
        self._layout.push(digest, tags=(name,))
        return digest

    def _layer(self, place: str, artifact: str) -> Laid:
        """The layer of an artifact in a place; one that was laid before is taken again."""
        key = digest_value({"artifact": artifact, "place": place, "format": COMPOSER})
        memo = self._folder / f"files-{_short(key)}.json"
        known = read_memo(memo)
        if known is not None and self._layout.has(known["descriptor"]["digest"]):
            return Laid(descriptor=known["descriptor"], diff_id=known["diff_id"])
        laid = lay_artifact(self._layout, place, artifact)
        write_memo(memo, {"descriptor": laid.descriptor, "diff_id": laid.diff_id})
        return laid

    def _provenance(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        used = [("image", inputs["image"])]
        used += [(place, artifact) for place, artifacts in inputs["places"].items() for artifact in artifacts]
        return {
            "buildDefinition": {
                "buildType": COMPOSER,
                "externalParameters": dict(inputs),
                "internalParameters": {},
                "resolvedDependencies": [
                    {"name": name, "digest": {"sha256": digest.removeprefix("sha256:")}} for name, digest in used
                ],
            },
            "runDetails": {"builder": {"id": COMPOSER}, "metadata": {"finishedOn": self._clock.now().isoformat()}},
        }


def compose_into(layout: Layout, image: str, places: Mapping[str, Sequence[str]], layer: Callable[[str, str], Laid]) -> Digest:
    """Write the image that artifacts make of another one; nothing is verified, signed or pushed.

    The image for one platform of an index is what comes of that platform's image alone.

    Args:
        layout: Where all of it is.
        image: What lies below; an index gives an index.
        places: Folder -> artifacts, in order.
        layer: Lays an artifact (place, digest).

    Raises:
        DesiredStateError: Too many layers.
        TrustError: A blob is missing or changed.
    """
    laid = [layer(place, artifact) for place, artifacts in places.items() for artifact in artifacts]
    notes = {_annotation(place): ",".join(artifacts) for place, artifacts in places.items()}
    return _laid_over(layout, image, laid, notes)


def _laid_over(layout: Layout, image: str, laid: Sequence[Laid], notes: Mapping[str, str]) -> Digest:
    """An image with layers on top; of an index, the index of its images with them, each where its own was."""
    below = layout.manifest(image)
    try:
        about = {"annotations": {**(below.get("annotations") or {}), IMAGE: str(image), **notes}}
        if "manifests" not in below:
            return layout.put(canonical({**_with_layers(layout, image, below, laid), **about}))
        listed = [
            {**item, **layout.descriptor(_laid_over(layout, str(item["digest"]), laid, notes), MANIFEST)}
            for item in below["manifests"]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise TrustError(f"image {image}: expected a manifest, got another document", reason="BadManifest") from error
    return layout.put(canonical({"schemaVersion": 2, "mediaType": INDEX, "manifests": listed, **about}))


def _with_layers(layout: Layout, image: str, below: Mapping[str, Any], laid: Sequence[Laid]) -> dict[str, Any]:
    config = json.loads(layout.get(below["config"]["digest"]))
    layers = [*below["layers"], *(item.descriptor for item in laid)]
    if len(layers) > MOST_LAYERS:
        text = f"image {image}: expected at most {MOST_LAYERS} layers with all data and models, got {len(layers)}"
        raise DesiredStateError(text, reason="TooManyLayers")
    diff_ids = [*config["rootfs"]["diff_ids"], *(item.diff_id for item in laid)]
    config["rootfs"] = {**config["rootfs"], "diff_ids": diff_ids}
    described = layout.descriptor(layout.put(canonical(config)), CONFIG)
    return {"schemaVersion": 2, "mediaType": MANIFEST, "config": described, "layers": layers}


def lay_artifact(layout: Layout, place: str, artifact: str) -> Laid:
    """The layer that lays an artifact's files into a folder of an image.

    Raises:
        DesiredStateError: A name that an image cannot hold.
        TrustError: A blob is missing or changed.
    """
    files = {
        f"{place}/{name}": Filed(
            path=layout.path(item["digest"]),
            digest=item["digest"],
            size=int(item["size"]),
            executable=item["annotations"].get(MODE) == "true",
        )
        for name, item in files_of(layout, artifact).items()
    }
    return lay(layout, files, folders=(place,))


def inputs_of(layout: Layout, digest: str) -> dict[str, tuple[Digest, ...]]:
    """What a composed image was made of; empty for any other image.

    Returns:
        `image` -> the code image; `data`, `model`, `earlier/<task>` -> artifacts, in the order in which they lie.

    Raises:
        TrustError: Its manifest is missing or changed.
    """
    notes = layout.manifest(digest).get("annotations") or {}
    if IMAGE not in notes:
        return {}
    return {
        key.removeprefix(PREFIX).replace(".", "/", 1): tuple(Digest(item) for item in str(value).split(","))
        for key, value in notes.items()
        if key.startswith(PREFIX)
    }


def parts_of(notes: Mapping[str, Any]) -> tuple[str, ...]:
    """Digests of the image and the artifacts that the annotations of a composed image name."""
    return tuple(part for key, value in notes.items() if key.startswith(PREFIX) for part in str(value).split(","))


def _annotation(place: str) -> str:
    return PREFIX + place.removeprefix(f"{TOP}/").replace("/", ".", 1)


def _is_plain(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(path.parts) and path.as_posix() == name and not path.is_absolute() and ".." not in path.parts and "\0" not in name


def _short(digest: Digest) -> str:
    return digest.removeprefix("sha256:")[:32]
