"""A job -> a Kubernetes Job: it runs once, brings its result back by itself, and is never started again by Kubernetes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from policies.canonical import canonical
from policies.errors import DesiredStateError
from policies.terms.digest import Digest
from policies.terms.task import JobSpec
from reconcilers.manifests.names import IMAGE, LABELS, Placement, encoded, job_name, labels, metadata
from reconcilers.manifests.pod import ANY_PYTHON, INPUTS, PYTHON, WORK, container, pod

RUNNER = f"{INPUTS}/run"
"""Where the program lies that runs a job, in images that do not have it."""
LARGEST_EVENT_BYTES = 100_000
"""Linux takes no longer variable of a program's environment than 128 KiB."""
GRACE_SECONDS = 15
"""From the end of its time to the end of its processes."""


def inputs(spec: JobSpec, runner: Digest | None = None) -> dict[str, tuple[Digest, ...]]:
    """Folder of the image -> artifacts that are laid there over each other.

    Args:
        spec: What is to run.
        runner: The program that runs it, where the image does not have it.
    """
    places: dict[str, tuple[Digest, ...]] = {}
    if spec.data:
        places[f"{INPUTS}/data"] = spec.data
    if spec.model is not None:
        places[f"{INPUTS}/model"] = (spec.model,)
    if runner is not None:
        places[RUNNER] = (runner,)
    places |= {f"{INPUTS}/earlier/{task}": (digest,) for task, digest in own_data(spec).items()}
    return {place.lstrip("/"): digests for place, digests in places.items()}


def own_data(spec: JobSpec) -> dict[str, Digest]:
    """Earlier tasks whose data is not all there is; the folder of one whose data is, is the data folder itself."""
    return {task: digest for task, digest in spec.earlier_data.items() if spec.data != (digest,)}


def job(
    spec: JobSpec,
    placement: Placement,
    *,
    image: Digest,
    entrypoint: Sequence[str],
    result_url: str,
    platforms: Collection[str] = (),
) -> dict[str, Any]:
    """The Job.

    Args:
        spec: What is to run.
        placement: Where.
        image: The image with the job's inputs in it.
        entrypoint: The image's own program.
        result_url: Where the job brings its result.
        platforms: What the image runs on, `linux/amd64`; empty: anything.
    """
    own = own_data(spec)
    env = {
        **spec.env,
        "DATA_PATH": f"{WORK}/data/",
        "MODEL_PATH": f"{WORK}/model/",
        "MYELIN_REPORT_PATH": f"{WORK}/report/report.jsonl",
        "MYELIN_JOB_INPUTS": INPUTS,
        "MYELIN_JOB_WORK": WORK,
        "MYELIN_JOB_KEEPS": ",".join(spec.keeps),
        "MYELIN_JOB_RESULT_URL": result_url,
    }
    env |= {f"DATA_PATH_{task}": f"{WORK}/{f'earlier/{task}' if task in own else 'data'}/" for task in spec.earlier_data}
    if spec.event is not None:
        text = canonical(dict(spec.event)).decode()
        if (size := len(text.encode())) > LARGEST_EVENT_BYTES:
            words = f"event of {spec.task}: expected at most {LARGEST_EVENT_BYTES} bytes on Kubernetes, got {size}"
            raise DesiredStateError(f"{words}; send an address of what it is about", reason="EventTooBig")
        env["EVENT_PATH"] = f"{WORK}/report/event.json"
        env["MYELIN_JOB_EVENT"] = text
    runner = (PYTHON, "-I", "-m", "myelin.job") if spec.is_laid_by_us else (ANY_PYTHON, "-I", RUNNER)
    main = container(
        placement,
        image,
        command=[*runner, "--", *entrypoint, *spec.args],
        env=env,
        mounts={"tmp": "/tmp", "work": WORK},
        needs=spec.resources,
    )
    annotations = {LABELS: encoded(spec.labels), IMAGE: str(spec.image)}
    wanted: dict[str, Any] = {
        "backoffLimit": 0,
        # A pod that a drained or full node lost says nothing about the program, so it is no failure of it.
        "podFailurePolicy": {
            "rules": [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]
        },
        "template": {
            "metadata": {"labels": labels(placement, "job", spec.name), "annotations": {IMAGE: str(spec.image)}},
            "spec": pod(
                placement,
                main,
                [{"name": "work", "emptyDir": {}}],
                restart="Never",
                platforms=platforms,
                node_selector=spec.node_selector,
                more={"terminationGracePeriodSeconds": GRACE_SECONDS},
            ),
        },
    }
    if spec.timeout_seconds is not None:
        wanted["activeDeadlineSeconds"] = max(round(spec.timeout_seconds), 1)
    return {
        "metadata": metadata(placement, job_name(spec.name), "job", shown=spec.name, annotations=annotations),
        "spec": wanted,
    }


def is_over(found: Mapping[str, Any]) -> str:
    """`Complete`, `Failed`, or nothing while a Job goes on."""
    for condition in found.get("status", {}).get("conditions", ()):
        if condition["status"] == "True" and condition["type"] in ("Complete", "Failed"):
            return str(condition["type"])
    return ""
