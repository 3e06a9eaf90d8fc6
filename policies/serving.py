"""A version's record -> the servers that serve it; a release -> what the proxy in front of them does.

Law: everything needed to serve a version again is in its record.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from policies.canonical import digest_value
from policies.identity import object_name, task_run_id
from policies.jobs import Surroundings, identity_environment
from policies.terms.digest import Digest
from policies.terms.document_types import parse_duration
from policies.terms.release import Release
from policies.terms.task import ServerSpec, ServerState
from policies.terms.version import BackendRecord, Version


def server_name(version: Version, backend: BackendRecord) -> str:
    """Name of the server of one backend of one version."""
    return object_name(version.metadata.axon, version.metadata.name, backend.model, backend.backend)


def proxy_name(axon: str, deployer: str) -> str:
    """Name of a deployer's proxy."""
    return object_name(axon, deployer, "proxy")


def model_servers(version: Version, around: Surroundings) -> tuple[ServerSpec, ...]:
    """One server for each backend."""
    axon, name = version.metadata.axon, version.metadata.name
    specs = []
    for backend in version.spec.backends:
        server = server_name(version, backend)
        deployed = task_run_id(version.spec.run, f"deploy:{version.spec.deployer}")
        told = identity_environment(axon, backend.task or backend.backend, deployed, server, around)
        labels = {"axon": axon, "deployer": version.spec.deployer, "version": name, "model": backend.model}
        specs.append(
            ServerSpec(
                name=server,
                image=Digest(backend.image),
                env={**backend.env, **told},
                model=Digest(backend.artifact) if backend.artifact else None,
                data=tuple(Digest(item) for item in version.spec.data),
                labels={**labels, "backend": backend.backend, "job": "model"},
            )
        )
    return tuple(specs)


def proxy_server(
    release: Release,
    versions: Sequence[Version],
    servers: Mapping[str, ServerState],
    *,
    program: Version,
    around: Surroundings,
    port: int | None = None,
) -> ServerSpec:
    """The proxy of a deployer, with the versions that are ready.

    Args:
        release: Which version gets how much.
        versions: All versions that keep a URL, newest first.
        servers: What is running.
        program: The version whose image the proxy runs from. The proxy is the same program in every image, so the
            deployer's oldest one is taken: it stays, and the proxy is not restarted for a new version.
        around: Where it runs.
        port: Port wanted; None: any, kept.
    """
    axon, deployer = release.metadata.axon, release.metadata.name
    ready = {version.metadata.name: entry for version in versions if (entry := _proxied(version, servers))}
    config = {
        "axon": axon,
        "deployer": deployer,
        "versions": ready,
        "traffic": [
            {"version": share.version, "share": share.share}
            for share in release.spec.traffic
            if share.share > 0 and share.version in ready
        ],
        "shadow": release.spec.shadow if release.spec.shadow in ready else "",
    }
    name = proxy_name(axon, deployer)
    return ServerSpec(
        name=name,
        image=Digest(program.spec.backends[0].image),
        command=("python", "-m", "myelin.proxy"),
        env=identity_environment(axon, deployer, "", name, around),
        config=config,
        port=port,
        labels={"axon": axon, "deployer": deployer, "job": "proxy", "config": digest_value(config)},
    )


def is_ready(version: Version, servers: Mapping[str, ServerState]) -> bool:
    """Whether every backend of a version answers."""
    return _proxied(version, servers) is not None


def _proxied(version: Version, servers: Mapping[str, ServerState]) -> dict[str, Any] | None:
    models: dict[str, list[dict[str, Any]]] = {}
    for backend in version.spec.backends:
        state = servers.get(server_name(version, backend))
        if state is None or state.phase != "ready":
            return None
        entry = {"backend": backend.backend, "address": state.address, "weight": backend.weight}
        models.setdefault(backend.model, []).append(entry)
    return {"routes": [_route(route) for route in version.spec.routes], "models": models}


def _route(route: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "path": route["path"],
        "timeoutSeconds": parse_duration(str(route.get("timeout") or "30s")),
        "dag": [
            {
                "model": node.get("model", ""),
                "path": node.get("path") or "/predict",
                "dependencies": list(node.get("dependencies") or ()),
                "includeInput": bool(node.get("includeInput")),
                "timeoutSeconds": parse_duration(str(node["timeout"])) if node.get("timeout") else None,
                "fullPath": node.get("fullPath"),
                # A server of the earlier kind elsewhere reads form fields only; ours reads everything.
                "form": bool(node.get("fullPath")) and node.get("endpointRestType") == "Multipart",
            }
            for node in route.get("dag", ())
        ],
    }
