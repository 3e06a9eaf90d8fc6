"""An image store: builds go on until the world is told to work, and die with the controller."""

from __future__ import annotations

from policies.canonical import digest_value
from policies.errors import TrustError
from policies.identity import image_identity
from policies.locks import OWN_LOCK, REQUIREMENTS
from policies.reproducibility import is_built_again
from policies.terms.digest import Digest, digest_of
from policies.terms.task import ImageSpec, ImageState
from tests.fakes.world import World


class FakeImages:
    """Implements `reconcilers.ports.Images`."""

    def __init__(self, world: World) -> None:
        self._world = world

    def look(self, spec: ImageSpec) -> ImageState | None:
        identity = image_identity(spec)
        if identity in self._world.building:
            return ImageState(phase="building", message=f"building {spec.repository}")
        return self._world.failed.get(identity) or self._world.outside.built.get(identity)

    def start(self, spec: ImageSpec) -> None:
        known = self.look(spec)
        if known is None or known.phase == "failed":
            self._world.failed.pop(image_identity(spec), None)
            self._world.building[image_identity(spec)] = spec

    def verify(self, digest: Digest) -> None:
        digests = {state.digest for state in self._world.outside.built.values()}
        if digest not in digests or digest in self._world.outside.tampered:
            raise TrustError(f"image {digest}: expected it in the store, it is missing", reason="BlobMissing")

    def lock(self, digest: Digest) -> str:
        if digest not in self._world.outside.locks:
            raise TrustError(f"image {digest}: expected provenance with the lock that it was built by, got none")
        return self._world.outside.locks[digest]


def resolved(world: World, requirements: str) -> str:
    """What loose requirements come to now."""
    names = [line.split(">")[0].strip() for line in requirements.splitlines() if line]
    return "# Resolved\n" + "".join(f"{name}=={world.newest} --hash={digest_of(name.encode())}\n" for name in names)


def finish_builds(world: World) -> bool:
    """Let all builds come to their end; returns whether there were any. A folder with an install script fails."""
    for identity, spec in world.building.items():
        top = f"{spec.folder}/" if spec.folder else ""
        files = world.outside.commits[spec.source_commit or spec.commit].files
        settings = files.get(f"{top}.s2i/environment", b"")
        if b"INSTALL_SCRIPT" in settings:
            message = f"{spec.repository}: INSTALL_SCRIPT: expected a base image to run it on, got the host's own system"
            world.failed[identity] = ImageState(phase="failed", reason="BaseMissing", message=message)
            continue
        digest = digest_value({"source": spec.tree, "settings": settings.hex()})
        told = {"reproducible": world.differs or True} if is_built_again(spec.rules.reproducibility, identity) else {}
        if spec.source is None and (loose := files.get(f"{top}{REQUIREMENTS}")):
            text = resolved(world, loose.decode())
            # As it is with real images: what was resolved lies in the image, which is the same once it lies in the commit.
            within = {path: content.hex() for path, content in sorted(files.items()) if path.startswith(top)}
            digest = digest_value({f"{top}{OWN_LOCK}": text.encode().hex(), **within})
            if f"{top}{OWN_LOCK}" not in files:
                told |= {"folder": spec.folder, "lock": digest_of(text.encode())}
                world.outside.locks[digest] = text
        world.outside.built[identity] = ImageState(phase="built", digest=digest, materials={"tree": spec.tree, **told})
        if spec.folder in world.programs:
            world.programs[digest] = world.programs[spec.folder]
    moved = bool(world.building)
    world.building.clear()
    return moved
