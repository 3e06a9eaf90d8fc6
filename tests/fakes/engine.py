"""An engine whose programs run when the world is told to work: nothing ends by itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from policies.canonical import canonical, digest_value
from policies.errors import OutsideError, TrustError
from policies.terms.digest import Digest
from policies.terms.task import JobSpec, JobState, ServerSpec, ServerState
from tests.fakes.world import Box, Files, Job, Server, World

FIRST_PORT = 20000


class FakeEngine:
    """Implements `reconcilers.ports.Engine`."""

    def __init__(self, world: World) -> None:
        self._world = world

    def start(self, spec: JobSpec) -> None:
        if spec.name in self._world.outside.jobs:
            return
        self._check(spec.image)
        folders: dict[str, Files] = {"data": {}, "model": {}}
        for digest in spec.data:
            folders["data"] |= self._artifact(digest)
        if spec.model is not None:
            folders["model"] |= self._artifact(spec.model)
        state = JobState(name=spec.name, phase="running", started_at=self._world.outside.now, labels=dict(spec.labels))
        self._world.outside.started.append(spec.name)
        self._world.outside.jobs[spec.name] = Job(spec=spec, state=state, folders=folders)

    def jobs(self) -> Mapping[str, JobState]:
        return {name: job.state for name, job in sorted(self._world.outside.jobs.items())}

    def collect(self, name: str) -> Mapping[str, Digest]:
        job = self._world.outside.jobs.get(name)
        if job is None or not job.folders:
            raise OutsideError(f"job {name}: expected its folder, it is gone", reason="JobGone")
        kept = {}
        for folder in job.spec.keeps:
            files = dict(job.folders[folder])
            digest = digest_value({path: content.hex() for path, content in files.items()})
            self._world.outside.artifacts[digest] = files
            kept[str(folder)] = digest
        return kept

    def stop(self, name: str) -> None:
        job = self._world.outside.jobs.get(name)
        if job is not None and job.state.phase == "running":
            end(self._world, job, None, reason="Stopped", message="was stopped")

    def remove(self, name: str) -> None:
        self._world.outside.jobs.pop(name, None)

    def clean(self, name: str) -> None:
        job = self._world.outside.jobs.get(name)
        if job is not None and job.state.phase != "running":
            job.folders, job.state = {}, replace(job.state, is_freed=True)

    def logs(self, name: str, *, last_bytes: int = 65536) -> str:
        found = self._world.outside.jobs.get(name) or self._world.outside.servers.get(name)
        return found.log.encode()[-last_bytes:].decode(errors="replace") if found is not None else ""

    def serve(self, spec: ServerSpec) -> None:
        self._check(spec.image)
        outside = self._world.outside
        server = outside.servers.get(spec.name)
        if server is None:
            outside.ports_taken += 1
            port = spec.port or FIRST_PORT + outside.ports_taken
            outside.servers[spec.name] = Server(spec=spec, port=port, log="up\n")
            return
        if _identity(spec) != _identity(server.spec):
            server.phase, server.log = "starting", server.log + "up\n"
        elif server.phase == "failed":
            server.phase, server.restarts, server.log = "starting", server.restarts + 1, server.log + "up\n"
        server.spec, server.port = spec, spec.port or server.port

    def servers(self) -> Mapping[str, ServerState]:
        return {name: _state(name, server) for name, server in sorted(self._world.outside.servers.items())}

    def retire(self, name: str) -> None:
        self._world.outside.servers.pop(name, None)

    def _check(self, image: str) -> None:
        if image not in self._world.programs or image in self._world.outside.tampered:
            raise TrustError(f"image {image}: expected it in the store, it is missing", reason="BlobMissing")

    def _artifact(self, digest: str) -> Files:
        files = self._world.outside.artifacts.get(digest)
        if files is None:
            raise TrustError(f"artifact {digest}: expected it in the store, it is missing", reason="BlobMissing")
        return files


def work(world: World) -> bool:
    """Let everything that goes on come to its end: builds, jobs, starting servers. Returns whether anything did."""
    from tests.fakes.images import finish_builds

    moved = finish_builds(world)
    for job in list(world.outside.jobs.values()):
        if job.state.phase == "running":
            moved = _run(world, job) or moved
    for server in world.outside.servers.values():
        if server.phase == "starting":
            server.phase, moved = "ready", True
    return moved


def end(world: World, job: Job, code: int | None, *, reason: str, message: str = "", report: tuple[Any, ...] = ()) -> None:
    """Write down how a job ended."""
    succeeded = code == 0
    job.state = replace(
        job.state,
        phase="succeeded" if succeeded else "failed",
        exit_code=code,
        reason="" if succeeded else reason,
        message="" if succeeded else message,
        ended_at=world.outside.now,
        report=report,
    )


def _run(world: World, job: Job) -> bool:
    box = Box(image=job.spec.image, args=job.spec.args, env=job.spec.env, data=job.folders["data"], model=job.folders["model"])
    code = world.programs[job.spec.image](box)
    job.log = "".join(line + "\n" for line in box.printed)
    if code is not None:
        last = f": {box.printed[-1]}" if box.printed else ", and printed nothing"
        report = tuple(json.loads(canonical(line)) for line in box.report)
        end(world, job, code, reason="ExitCode", message=f"expected exit code 0, got {code}{last}", report=report)
    elif job.spec.timeout_seconds is not None:
        end(world, job, None, reason="TimedOut", message="did not end in time, and printed nothing")
    return job.state.phase != "running"


def _identity(spec: ServerSpec) -> str:
    return digest_value({**json.loads(json.dumps(asdict(spec))), "config": None, "labels": None})


def _state(name: str, server: Server) -> ServerState:
    message = {"starting": "starting", "ready": "", "failed": "expected exit code 0, got 1"}[server.phase]
    return ServerState(
        name=name,
        phase=server.phase,
        address=f"127.0.0.1:{server.port}",
        image=server.spec.image,
        restarts=server.restarts,
        reason="ExitCode" if server.phase == "failed" else "",
        message=message,
        labels=dict(server.spec.labels),
    )
