"""Identity: everything that can be named by its inputs is.

Law: a name depends on its inputs alone, never on their order, the machine or the hour. See architecture.md 3.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from policies.canonical import digest_value, short_name
from policies.terms.digest import Digest
from policies.terms.task import ImageSpec


def axon_digest(manifest: Mapping[str, Any], trees: Mapping[str, str]) -> Digest:
    """Name what an axon asks for. Whether it is suspended is left out, so that neither its end nor a resumption is a new axon.

    Args:
        manifest: The manifest after defaults, as `policies.parsing.defaulted` gives it.
        trees: Source folder -> Git tree id; an empty id where the folder is missing.
    """
    spec = manifest.get("spec")
    if isinstance(spec, Mapping) and spec.get("suspend") is not None:
        manifest = {**manifest, "spec": {**spec, "suspend": None}}
    return digest_value({"manifest": manifest, "trees": dict(trees)})


def event_id(kind: str, axon: str, sensor: str, trigger: str, subject: Mapping[str, Any]) -> Digest:
    """Name one occurrence of a trigger's circumstance.

    Args:
        kind: `Commit`, `Lifecycle`, `Calendar`, `Rest`, `Alert` or `Release`.
        axon: The axon's name.
        sensor: The sensor's name.
        trigger: The trigger's name within the sensor.
        subject: What makes the occurrence unique: the axon digest, a task run id and phase, a scheduled instant, an
            alert's fingerprint and start, a CloudEvent's source and id.
    """
    return digest_value({"kind": kind, "axon": axon, "sensor": sensor, "trigger": trigger, "subject": subject})


def event_set(events: Iterable[str]) -> Digest:
    """Name the events that fired a sensor together; their order and repetitions do not matter."""
    return digest_value(sorted(set(events)))


def run_id(axon: str, digest: str, sensor: str, events: Iterable[str]) -> Digest:
    """Name one firing of a sensor."""
    return digest_value({"axon": axon, "axonDigest": digest, "sensor": sensor, "events": sorted(set(events))})


def task_run_id(run: str, task: str) -> Digest:
    """Name one step of a run."""
    return digest_value({"run": run, "task": task})


def trial_run_id(task_run: str, trial: str, rung: int) -> Digest:
    """Name one trial of a tuning run at one rung."""
    return digest_value({"taskRun": task_run, "trial": trial, "rung": rung})


@lru_cache(maxsize=4096)
def image_identity(spec: ImageSpec) -> Digest:
    """Name what an image is built from: commit and event set only label it, equal content keeps one name."""
    rules = spec.rules
    # What is as it always was is left out, so that an image keeps its name when a rule is added here.
    more = {
        "precompile": rules.precompile,
        "platforms": rules.platforms or None,
        "stamp": spec.commit if rules.stamps else None,
        "builderImage": spec.builder_image or None,
        "network": spec.network or None,
        "buildsWheels": rules.builds_wheels or None,
        "index": rules.index or None,
        "reproducibility": rules.reproducibility if rules.reproducibility != "off" else None,
        "requiresHashes": rules.requires_hashes or None,
        "baseSigners": [[item.key, item.identity, item.issuer] for item in rules.base_signers] or None,
        "secrets": [[item.name, item.path] for item in spec.secrets] or None,
    }
    return digest_value(
        {
            "repository": spec.repository,
            "tree": spec.tree,
            "base": spec.base,
            "builder": spec.builder,
            "dockerfile": spec.dockerfile,
            **{key: value for key, value in more.items() if value is not None},
        }
    )


def version_id(*, commit: str, events: str, images: Iterable[str], models: Iterable[str]) -> str:
    """Name a version: `v-` and 10 characters.

    Args:
        commit: 40 hexadecimal characters.
        events: The event set's digest.
        images: Image digests, in any order.
        models: Model artifact digests, in any order.
    """
    return "v-" + short_name(
        digest_value({"commit": commit, "eventSet": events, "images": sorted(set(images)), "models": sorted(set(models))})
    )


def object_name(*parts: str, limit: int = 63) -> str:
    """A name of `[a-z0-9-]` for a job or server.

    Law: different parts give different names. Where the parts alone cannot promise that (one has a dash or other
    letters, or all are too long), the name ends in `--` and a digest of them, which no plain name has.
    """
    plain = "-".join(parts)
    if len(plain) <= limit and all(part and part.isascii() and part.isalnum() and part == part.lower() for part in parts):
        return plain
    text = "".join(char if char.isascii() and char.isalnum() else "-" for char in plain.lower())
    shown = "-".join(word for word in text.split("-") if word)[: limit - 10].strip("-") or "x"
    return f"{shown}--{short_name(digest_value(list(parts)), length=8)}"
