"""Everything that a project's images are built with: which driver builds what, and what they share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from controller.adapters.build.buildah import BuildahDriver
from controller.adapters.build.buildkit import BuildKitDriver, Daemon
from controller.adapters.build.by_file import DockerfileBuilder
from controller.adapters.build.driver import Driver
from controller.adapters.build.enclosure import OTHER, USUAL, Surroundings
from controller.adapters.build.pins import Pins
from controller.adapters.build.python import PythonBuilder
from controller.adapters.build.s2i import ByFile, InstallScripts
from controller.adapters.build.scanning import Scanner
from controller.adapters.image_source import SourceReader
from controller.adapters.oci.access import Access
from controller.adapters.oci.bases import Bases
from controller.adapters.oci.layout import Layout
from policies.errors import RefusedError
from policies.terms.build import BuildSecret
from policies.terms.secret import Secret

Secrets = Callable[[BuildSecret], Mapping[str, Secret]]
"""The files of a secret that a build names."""
LARGEST_SECRET_BYTES = 1 << 20


def drivers(
    reader: SourceReader,
    layout: Layout,
    folder: Path,
    access_for: Callable[[str], Access],
    secrets: Secrets,
    *,
    sigstore_root: str = "",
    reads_disk: bool = False,
    pins: Pins | None = None,
    buildkit: Daemon | None = None,
) -> Mapping[str, Driver]:
    """Ways to build, by what a manifest asks for.

    Args:
        reader: Reads source.
        layout: Where images go.
        folder: Wheels, memories and the storage of builds; may be deleted while nothing is built.
        access_for: Repository `host[:port]/path` -> how to reach it, for base images.
        secrets: Reads the secrets that builds name.
        sigstore_root: Trusted root for base images that were signed by an identity.
        reads_disk: Whether base images may lie in OCI layouts on this machine.
        pins: What the images of Dockerfiles are pinned by; None: by what their tags name now.
        buildkit: How a BuildKit is reached; None: as on a machine that was told nothing.
    """
    bases = Bases(layout, folder / "bases", access_for, sigstore_root=sigstore_root, reads_disk=reads_disk)
    pinned = pins if pins is not None else Pins(layout, access_for, bases.check_signed)

    daemon = buildkit if buildkit is not None else Daemon()

    def one(address: str, place: Path = folder / "by-file", surroundings: Surroundings = USUAL) -> ByFile:
        if where := address or daemon.address:
            return BuildKitDriver(place, pinned, where, daemon=daemon)
        return BuildahDriver(place, pinned, surroundings=surroundings)

    def again(address: str) -> ByFile:
        return one(address, folder / "by-file-again", OTHER)

    def scripts(address: str) -> InstallScripts:
        return InstallScripts(one(address), layout, folder / "installed")

    scanner = Scanner(folder)
    return {
        "python": PythonBuilder(reader, layout, folder, bases, scripts, secrets, scanner),
        "dockerfile": DockerfileBuilder(reader, layout, one, again, reader.committed_at, secrets, scanner),
    }


def secrets_in(folder: Path) -> Secrets:
    """Secrets of a machine: each a folder of files that only their owner may read."""

    def read(secret: BuildSecret) -> Mapping[str, Secret]:
        place = folder / secret.name
        try:
            files = sorted(path for path in place.iterdir() if path.is_file())
        except OSError as error:
            text = f"secret {secret.name}: expected its files in {place}, got {error.strerror or error}; lay them there"
            raise RefusedError(text, reason="SecretMissing") from error
        return {path.name: _file(path) for path in files}

    return read


def no_secrets(secret: BuildSecret) -> Mapping[str, Secret]:
    """For whoever builds without any."""
    raise RefusedError(f"secret {secret.name}: expected none in a build here", reason="SecretMissing")


def _file(path: Path) -> Secret:
    if path.stat().st_mode & 0o077:
        raise RefusedError(f"{path}: expected a secret that only its owner may read; run `chmod 600` on it", reason="OpenKey")
    if path.stat().st_size > LARGEST_SECRET_BYTES:
        raise RefusedError(f"{path}: expected at most {LARGEST_SECRET_BYTES} bytes of a secret", reason="SecretTooLarge")
    try:
        return Secret(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise RefusedError(f"{path}: expected a secret as text", reason="SecretMissing") from error
