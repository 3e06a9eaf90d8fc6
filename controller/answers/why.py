"""`why`: from what somebody has in hand back to commit, events, images, data, parameters, metrics, parent and signers."""

from __future__ import annotations

from typing import Any

from controller.adapters.oci.composed import inputs_of
from controller.answers.opened import opened, store_of
from controller.answers.versions import Records, instant
from controller.project import Place
from policies.errors import ControllerError
from policies.terms.digest import Digest, is_digest


def why(place: Place, subject: str) -> dict[str, Any]:
    """Everything that a version was made of, and by whom.

    Args:
        place: The project.
        subject: A version, a URL that it answers on, the digest of its image or model, or a commit it was made from.

    Raises:
        DesiredStateError: Nothing fits; says which there are.
    """
    with opened(place) as project:
        records = Records(project)
        fitting = records.meant(_code_image(place, subject))
        if not fitting:
            raise records.nothing_fits(subject)
        record = fitting[0]
        version, spec = record.metadata.name, record.spec
        release = records.release_of(record)
        made_in = project.judged_one(spec.commit)
        path = records.paths[version]
        entered = next(iter(project.touching([path])), None)
        recorded = project.judged_one(entered.commit) if entered is not None else None
        known = project.recorded([*(f"event/{item}" for item in spec.events), f"run/{spec.run}"])
        events = [known.events[item] for item in spec.events if item in known.events]
        run = known.runs.get(spec.run)
        return {
            "version": version,
            "axon": record.metadata.axon,
            "deployer": spec.deployer,
            "share": sum(item.share for item in release.spec.traffic if item.version == version) if release else 0,
            "hold": [hold.reason for hold in release.spec.holds if hold.version == version] if release else [],
            "commit": spec.commit,
            "message": made_in.facts.subject if made_in else "",
            "by": made_in.by if made_in else "",
            "trusted": made_in.is_trusted if made_in else None,
            "recordedBy": recorded.by if recorded else "",
            "recordedIn": recorded.facts.commit if recorded else "",
            "recordTrusted": recorded.is_trusted if recorded else None,
            "events": [{"id": item.id, "kind": item.kind, "sensor": item.sensor, "at": instant(item.at)} for item in events],
            "sensor": run.sensor if run else "",
            "run": spec.run,
            "images": [backend.image for backend in spec.backends],
            "models": [backend.artifact for backend in spec.backends if backend.artifact],
            "trial": [backend.trial for backend in spec.backends if backend.trial],
            "data": list(spec.data),
            "parameters": dict(spec.parameters),
            "metrics": dict(spec.metrics),
            "parent": spec.parent,
            "createdAt": instant(spec.created_at),
            "others": [item.metadata.name for item in fitting[1:]],
        }


def _code_image(place: Place, subject: str) -> str:
    """The image that a version names, where a pod's own has its data and model laid over it; else the subject itself."""
    digest = subject.rsplit("@", 1)[-1]
    if not is_digest(digest) or (layout := store_of(place)) is None or not layout.is_here(digest):
        return subject
    try:
        return next(iter(inputs_of(layout, Digest(digest)).get("image", ())), subject)
    except ControllerError:
        return subject
