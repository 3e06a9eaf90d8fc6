"""The door to kopf: it watches our own objects, Jobs and what serves, and each event only wakes a pass.

This is the one place with `async`: kopf's loop runs in the calling thread, everything else in threads of its own.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import kopf

STOP_LOOK_SECONDS = 0.1
ASK_AGAIN_SECONDS = 5.0
FINALIZER = "myelin.io/finalizer"
OURS = {"myelin.io/kind": kopf.PRESENT}
GROUP, VERSION = "myelin.io", "v1alpha1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Callbacks:
    """Who hears of what. All are called in kopf's thread and must be quick."""

    project: Callable[[Mapping[str, Any], bool], None]
    """A Project as it is now, and whether it is gone."""
    mirror: Callable[[str, Mapping[str, Any], bool], None]
    """Kind of an Axon, Release or Version, as it is now, and whether it is gone."""
    work: Callable[[str, Mapping[str, Any], bool], None]
    """Plural kind of a Job, pod, or something that serves, as it is now, and whether it is gone."""
    removed: Callable[[str, str], bool]
    """Namespace and name of a Project that is being deleted; whether nothing acts on it any more."""


def watch(callbacks: Callbacks, namespaces: Sequence[str], stop: threading.Event, *, kubeconfig: bool = False) -> None:
    """Watch until told to stop. Not in the main thread, whose signals kopf would take for itself.

    Args:
        callbacks: Who hears of what.
        namespaces: Those that are watched.
        stop: When to end.
        kubeconfig: Whether the cluster is reached by the file that KUBECONFIG names; else as a pod in it does.
    """
    registry = _registry(callbacks, kubeconfig)
    logging.getLogger("kopf").setLevel(logging.ERROR)
    asyncio.run(_watch(registry, namespaces, stop))


async def _watch(registry: kopf.OperatorRegistry, namespaces: Sequence[str], stop: threading.Event) -> None:
    ending = asyncio.Event()
    operator = kopf.operator(
        registry=registry, settings=_settings(), namespaces=list(namespaces), standalone=True, stop_flag=ending
    )
    watching = asyncio.create_task(operator)
    # A flag of threads would keep a thread of the loop's waiting for it, and with that the loop's end.
    while not stop.is_set() and not watching.done():
        await asyncio.sleep(STOP_LOOK_SECONDS)
    ending.set()
    await watching


def _settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.persistence.finalizer = FINALIZER
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix="myelin.io")
    settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix="myelin.io")
    settings.posting.enabled = False  # what is to be said is in the conditions
    settings.scanning.disabled = True  # the kinds are known, and we may list neither CRDs nor namespaces
    settings.watching.server_timeout = 300
    return settings


def _registry(callbacks: Callbacks, kubeconfig: bool) -> kopf.OperatorRegistry:
    registry = kopf.OperatorRegistry()

    @kopf.on.event(GROUP, VERSION, "projects", registry=registry)
    async def project(event: kopf.RawEvent, **_: Any) -> None:
        callbacks.project(dict(event["object"]), event["type"] == "DELETED")

    def mirrored(kind: str, plural: str) -> None:
        @kopf.on.event(GROUP, VERSION, plural, registry=registry, id=f"mirror-{plural}")
        async def mirror(event: kopf.RawEvent, **_: Any) -> None:
            callbacks.mirror(kind, dict(event["object"]), event["type"] == "DELETED")

    for kind, plural in (("Axon", "axons"), ("Release", "releases"), ("Version", "versions")):
        mirrored(kind, plural)

    def working(group: str, version: str, plural: str) -> None:
        @kopf.on.event(group, version, plural, labels=OURS, registry=registry, id=f"work-{plural}")
        async def work(event: kopf.RawEvent, **_: Any) -> None:
            callbacks.work(plural, dict(event["object"]), event["type"] == "DELETED")

    for group, version, plural in (
        ("batch", "v1", "jobs"),
        ("apps", "v1", "deployments"),
        ("", "v1", "services"),
        ("", "v1", "configmaps"),
        ("", "v1", "pods"),
    ):
        working(group, version, plural)

    @kopf.on.delete(GROUP, VERSION, "projects", registry=registry)
    async def removed(namespace: str | None, name: str, **_: Any) -> None:
        if not await asyncio.to_thread(callbacks.removed, namespace or "", name):
            raise kopf.TemporaryError("its last pass has not ended yet", delay=ASK_AGAIN_SECONDS)

    kopf.on.login(registry=registry)(kopf.login_with_kubeconfig if kubeconfig else kopf.login_with_service_account)
    return registry
