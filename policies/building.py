"""What a project and a manifest say of how images are built -> what a builder needs to know."""

from __future__ import annotations

from functools import lru_cache

from policies.errors import DesiredStateError
from policies.hygiene import bytes_of
from policies.terms.axon import ImageBuild
from policies.terms.build import BaseSigner, BuildRules, BuildSecret
from policies.terms.document_types import parse_duration
from policies.terms.project import Builder


@lru_cache(maxsize=64)
def build_rules(builder: Builder) -> BuildRules:
    """What a project says of all of its images; worked out once, and asked for of each image in each pass."""
    limits = builder.limits
    return BuildRules(
        precompile=builder.precompile,
        platforms=tuple(sorted(set(builder.platforms))),
        stamps=builder.stamp == "commit",
        reproducibility=builder.reproducibility,
        requires_hashes=builder.require_hashes,
        builds_wheels=builder.allow_source_distributions,
        index=builder.index or "",
        memory_bytes=bytes_of(limits.memory),
        timeout_seconds=parse_duration(limits.time),
        disk_bytes=bytes_of(limits.disk),
        buildkit=builder.buildkit,
        base_signers=tuple(
            BaseSigner(name=item.name, key=item.key, identity=item.identity, issuer=item.issuer) for item in builder.base_signers
        ),
    )


def build_secrets(build: ImageBuild) -> tuple[BuildSecret, ...]:
    """The secrets that a build may read, sorted by where they are mounted.

    Raises:
        DesiredStateError: A mount without a volume, or a volume that is no Secret.
    """
    volumes = {str(volume.get("name", "")): volume for volume in build.volumes}
    found = []
    for mount in build.volume_mounts:
        name, path = str(mount.get("name", "")), str(mount.get("mountPath", ""))
        secret = volumes.get(name, {}).get("secret")
        held = str(secret.get("secretName", "")) if isinstance(secret, dict) else ""
        if not held:
            text = f"imageBuild.volumeMounts: {name or 'one'}: expected one of imageBuild.volumes with secret.secretName"
            raise DesiredStateError(
                f"{text}, got {'another volume' if name in volumes else 'none of that name'}", reason="Invalid"
            )
        if not path.startswith("/") or ".." in path.split("/"):
            text = f"imageBuild.volumeMounts: {name}: expected an absolute mountPath, got {path!r}"
            raise DesiredStateError(text, reason="Invalid")
        found.append(BuildSecret(name=held, path=path.rstrip("/")))
    return tuple(sorted(found, key=lambda item: item.path))
