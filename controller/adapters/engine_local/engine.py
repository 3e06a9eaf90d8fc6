"""Jobs and servers as detached processes that outlive the controller and are picked up again by their folders."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from controller.adapters.engine_local import supervise
from controller.adapters.engine_local.launch import Launcher, bubblewrap
from controller.adapters.engine_local.processes import born
from controller.adapters.oci.artifacts import ArtifactStore
from controller.adapters.oci.layout import Layout
from policies.canonical import canonical, digest_value
from policies.errors import DesiredStateError, OutsideError, RefusedError, SilentError
from policies.retries import pause_seconds
from policies.terms.digest import Digest
from policies.terms.task import JobSpec, JobState, ServerSpec, ServerState
from reconcilers.ports import Clock

HEALTH_TIMEOUT_SECONDS = 1.0
HEALTH_MEMORY_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0
STOP_SECONDS = 5.0
CLAIM_SECONDS = 2.0
"""How long a supervisor may take to say who it is."""


@dataclass(slots=True)
class _Seen:
    """What was found out of a server lately."""

    asked_at: float = 0.0
    ready: bool = False
    failed_at: float = 0.0
    restarts: int = 0


class LocalEngine:
    """Implements `reconcilers.ports.Engine`.

    Args:
        folder: Where jobs, servers and unpacked images live.
        layout: Where images are.
        artifacts: Where models and data are; it signs models, and admits those that are signed.
        clock: Tells when.
        isolation: `bubblewrap` or `none`; None: bubblewrap where it works.
    """

    def __init__(
        self, folder: Path, layout: Layout, artifacts: ArtifactStore, clock: Clock, *, isolation: str | None = None
    ) -> None:
        self._jobs, self._servers = folder / "jobs", folder / "servers"
        for place in (self._jobs, self._servers):
            place.mkdir(parents=True, exist_ok=True)
        wrap = "" if isolation == "none" else bubblewrap()
        if isolation == "bubblewrap" and not wrap:
            raise RefusedError("isolation bubblewrap: expected a working bwrap on this machine, there is none")
        self.isolation = "bubblewrap" if wrap else "no isolation"
        self._launcher = Launcher(layout, folder / "images", wrap)
        self._artifacts, self._clock = artifacts, clock
        self._ended: dict[str, JobState] = {}
        self._seen: dict[str, _Seen] = {}

    def start(self, spec: JobSpec) -> None:
        """Start a job, unless one of that name runs or ended already."""
        place = self._jobs / spec.name
        if spec.name in self._ended or (place / "supervisor.json").exists():
            return
        with _disk(place):
            if place.exists():
                self._launcher.check(spec.image)  # it was prepared by a controller that died, perhaps long ago
            else:
                self._prepare(place, spec)
            self._supervise(place)

    def jobs(self) -> Mapping[str, JobState]:
        """All jobs, by name."""
        found = {}
        for place in sorted(self._jobs.iterdir()):
            if place.suffix == ".new":
                continue
            state = self._ended.get(place.name) or self._job_state(place)
            if state.phase != "running":
                self._ended[place.name] = state
            found[place.name] = state
        return found

    def collect(self, name: str) -> Mapping[str, Digest]:
        """Keep the folders that a job was asked to keep."""
        place = self._jobs / name
        try:
            spec = json.loads((place / "spec.json").read_bytes())
        except OSError as error:
            raise OutsideError(f"job {name}: expected its folder, it is gone", reason="JobGone") from error
        if not (place / "data").exists():
            raise OutsideError(f"job {name}: expected its folders, they were freed", reason="JobGone")
        return {kept: self._artifacts.keep(kept, place / kept) for kept in spec["keeps"]}

    def stop(self, name: str) -> None:
        """End a job and all its processes."""
        place = self._jobs / name
        if not place.exists() or (place / "exit.json").exists():
            return
        (place / "stopped").touch()
        self._kill(place)
        if not (place / "exit.json").exists():
            supervise.write(place / "exit.json", {"code": None, "reason": "Stopped"})

    def clean(self, name: str) -> None:
        """Free the folders of a job that ended; its log and report stay."""
        place = self._jobs / name
        if not place.exists() or self._job_state(place).phase == "running":
            return
        for kept in ("model", "data", "earlier"):
            shutil.rmtree(place / kept, ignore_errors=True)
        if name in self._ended:
            self._ended[name] = replace(self._ended[name], is_freed=True)

    def remove(self, name: str) -> None:
        """Forget a job and its folder."""
        self.stop(name)
        shutil.rmtree(self._jobs / name, ignore_errors=True)
        self._ended.pop(name, None)

    def logs(self, name: str, *, last_bytes: int = 65536) -> str:
        """The end of what a job or server printed."""
        for top in (self._jobs, self._servers):
            log = top / name / "output.log"
            if log.exists():
                with log.open("rb") as file:
                    file.seek(max(log.stat().st_size - last_bytes, 0))
                    return file.read().decode(errors="replace")
        return ""

    def report(self, name: str, line: Mapping[str, Any]) -> None:
        """Append a line to a running job's report, for programs that report by HTTP."""
        place = self._jobs / name / "report"
        if "/" in name or name.startswith(".") or not place.exists():
            raise OutsideError(f"job {name[:80]!r}: there is none of that name", reason="JobGone")
        with (place / "report.jsonl").open("ab") as file:
            file.write(canonical(line) + b"\n")

    def serve(self, spec: ServerSpec) -> None:
        """Make a server be there as the spec says."""
        place = self._servers / spec.name
        with _disk(place):
            identity = digest_value({**_plain(spec), "config": None, "labels": None})
            known = _load(place / "server.json")
            if known is not None and known["identity"] != identity:
                self._kill(place)
                for name in ("claim", "supervisor.json", "exit.json", "model", "data"):
                    _delete(place / name)
                known = None
            is_new = known is None
            if is_new:
                self._prepare_server(place, spec, identity)
            self._configure(place, spec)
            if self._is_alive(place):
                return
            self._revive(place, spec, is_laid=is_new)

    def servers(self) -> Mapping[str, ServerState]:
        """All servers, by name."""
        return {
            place.name: self._server_state(place) for place in sorted(self._servers.iterdir()) if (place / "server.json").exists()
        }

    def retire(self, name: str) -> None:
        """End a server and forget it."""
        place = self._servers / name
        if place.exists():
            self._kill(place)
            shutil.rmtree(place, ignore_errors=True)
        self._seen.pop(name, None)

    def _prepare(self, place: Path, spec: JobSpec) -> None:
        temporary = place.with_suffix(".new")
        shutil.rmtree(temporary, ignore_errors=True)
        for name in ("model", "data", "report"):
            (temporary / name).mkdir(parents=True)
        for digest in spec.data:
            self._artifacts.fetch_folder(digest, temporary / "data")
        # The folder of a task whose data is all there is, is the data folder itself, as earlier programs expect.
        own = {task: digest for task, digest in spec.earlier_data.items() if spec.data != (digest,)}
        for task, digest in own.items():
            self._artifacts.fetch_folder(digest, temporary / "earlier" / task)
        if spec.model is not None:
            self._artifacts.fetch_model(spec.model, temporary / "model")
        env = {
            **spec.env,
            "DATA_PATH": f"{place}/data/",
            "MODEL_PATH": f"{place}/model/",
            "MYELIN_REPORT_PATH": f"{place}/report/report.jsonl",
        }
        env |= {f"DATA_PATH_{task}": f"{place}/{f'earlier/{task}' if task in own else 'data'}/" for task in spec.earlier_data}
        if spec.event is not None:
            (temporary / "report" / "event.json").write_bytes(canonical(spec.event))
            env["EVENT_PATH"] = f"{place}/report/event.json"
        (temporary / "spec.json").write_bytes(canonical(_plain(spec)))
        try:
            program = self._launcher.program(
                spec.image,
                command=(),
                args=spec.args,
                env=env,
                writable=[place / name for name in ("model", "data", "report", "earlier") if (temporary / name).exists()],
            )
            launch = {"argv": program.argv, "env": program.env, "cwd": program.cwd, "timeout_seconds": spec.timeout_seconds}
            (temporary / "launch.json").write_text(json.dumps(launch))
        except DesiredStateError as error:
            supervise.write(temporary / "exit.json", {"code": None, "reason": error.reason, "message": error.message})
        os.rename(temporary, place)

    def _supervise(self, place: Path) -> None:
        """Start the supervisor of a prepared folder, detached from us."""
        if (place / "exit.json").exists():
            return
        argv = [sys.executable, "-I", "-S", supervise.__file__, str(place)]
        nothing = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in range(3)]
        os.posix_spawn(argv[0], argv, {"PATH": os.environ.get("PATH", "/usr/bin:/bin")}, file_actions=nothing, setsid=True)
        # The supervisor says itself who it is, so that a second one can never be taken for it.
        deadline = time.monotonic() + CLAIM_SECONDS
        while not (place / "supervisor.json").exists() and time.monotonic() < deadline:
            time.sleep(0.005)

    def _job_state(self, place: Path) -> JobState:
        spec = _load(place / "spec.json") or {}
        labels = spec.get("labels", {})
        started = _load(place / "supervisor.json")
        started_at = datetime.fromtimestamp((place / "supervisor.json").stat().st_mtime, UTC) if started else None
        ended = _load(place / "exit.json")
        if ended is None and (started is None or self._is_alive(place)):
            return JobState(name=place.name, phase="running", started_at=started_at, labels=labels, report=())
        ended = _load(place / "exit.json")  # it may have ended between the two looks
        ended_at = self._clock.now()
        if ended is None:
            message = "its supervisor is gone and left no exit code"
            return JobState(
                name=place.name,
                phase="failed",
                reason="Lost",
                message=message,
                started_at=started_at,
                ended_at=ended_at,
                is_freed=not (place / "data").exists(),
                labels=labels,
            )
        if (place / "exit.json").exists():
            ended_at = datetime.fromtimestamp((place / "exit.json").stat().st_mtime, UTC)
        code = ended["code"]
        reason = "Stopped" if (place / "stopped").exists() else ended["reason"]
        succeeded = code == 0 and reason == "ExitCode"
        return JobState(
            name=place.name,
            phase="succeeded" if succeeded else "failed",
            exit_code=code,
            reason="" if succeeded else reason,
            message="" if succeeded else self._why(place, code, reason, ended),
            started_at=started_at,
            ended_at=ended_at,
            is_freed=not (place / "data").exists(),
            report=_report(place / "report" / "report.jsonl"),
            labels=labels,
        )

    def _why(self, place: Path, code: int | None, reason: str, ended: Mapping[str, Any]) -> str:
        if ended.get("message"):
            return str(ended["message"])
        lines = [line.strip() for line in self.logs(place.name, last_bytes=4096).splitlines() if line.strip()]
        last = f": {lines[-1][:200]}" if lines else ", and printed nothing"
        if reason == "TimedOut":
            return f"did not end in time{last}"
        if reason == "Stopped":
            return "was stopped"
        if code is not None and code < 0:
            return f"was killed by signal {-code}{' (out of memory?)' if code == -signal.SIGKILL else ''}{last}"
        return f"expected exit code 0, got {code}{last}"

    def _prepare_server(self, place: Path, spec: ServerSpec, identity: str) -> None:
        self._lay(place, spec)
        before = _load(place / "port.json")
        port = spec.port or (before["port"] if before else _free_port())
        supervise.write(place / "port.json", {"port": port})
        env = {**spec.env, "PORT": str(port), "MODEL_PATH": f"{place}/model/", "DATA_PATH": f"{place}/data/"}
        writable = [place / "model", place / "data"]
        if spec.config is not None:
            (place / "config").mkdir(exist_ok=True)
            env["MYELIN_CONFIG"] = f"{place}/config/config.json"
            writable.append(place / "config")
        self._configure(place, spec)
        program = self._launcher.program(spec.image, command=spec.command, args=(), env=env, writable=writable)
        supervise.write(place / "launch.json", {"argv": program.argv, "env": dict(program.env), "cwd": program.cwd})
        supervise.write(place / "server.json", {"identity": identity, "image": spec.image, "health": spec.health_path})

    def _configure(self, place: Path, spec: ServerSpec) -> None:
        if spec.config is not None:
            (place / "config").mkdir(exist_ok=True)
            known = _load(place / "config" / "config.json")
            if known != json.loads(canonical(spec.config)):
                supervise.write(place / "config" / "config.json", dict(spec.config))
        labels = dict(spec.labels)
        if _load(place / "labels.json") != labels:
            supervise.write(place / "labels.json", labels)

    def _lay(self, place: Path, spec: ServerSpec) -> None:
        """Lay model and data of a server, checked; what it wrote beside them is gone, as it would be in a container."""
        for name in ("model", "data"):
            shutil.rmtree(place / name, ignore_errors=True)
            (place / name).mkdir(parents=True)
        if spec.model is not None:
            self._artifacts.fetch_model(spec.model, place / "model")
        for digest in spec.data:
            self._artifacts.fetch_folder(digest, place / "data")

    def _revive(self, place: Path, spec: ServerSpec, *, is_laid: bool) -> None:
        """Start a server that does not run; after a crash only when its pause is over.

        Raises:
            TrustError: What it would load is not what it should be, or nobody signed it who is trusted.
        """
        seen = self._seen.setdefault(spec.name, _Seen())
        if (place / "exit.json").exists():
            now = time.monotonic()
            seen.failed_at = seen.failed_at or now
            if now - seen.failed_at < pause_seconds(seen.restarts + 1, longest=LONGEST_PAUSE_SECONDS):
                return
            seen.restarts, seen.failed_at = seen.restarts + 1, 0.0
        seen.ready = False
        for name in ("claim", "supervisor.json", "exit.json"):
            _delete(place / name)
        port = (_load(place / "port.json") or {})["port"]
        if _is_taken(port):
            return
        if not is_laid:
            # What it ran from may have been touched since, here or in the store.
            self._launcher.check(spec.image)
            self._lay(place, spec)
        self._supervise(place)

    def _server_state(self, place: Path) -> ServerState:
        known = _load(place / "server.json") or {}
        port = (_load(place / "port.json") or {"port": 0})["port"]
        labels = _load(place / "labels.json") or {}
        seen = self._seen.setdefault(place.name, _Seen())
        phase, reason, message = "starting", "", "starting"
        if self._is_alive(place):
            if self._is_healthy(seen, port, known.get("health", "/health")):
                phase, message = "ready", ""
        else:
            ended = _load(place / "exit.json")
            phase, reason = "failed", "ExitCode"
            if _is_taken(port):
                reason, message = "PortInUse", f"port {port} is in use by another program; end that, or choose another port"
            elif ended is not None:
                message = self._why(place, ended["code"], ended["reason"], ended)
            else:
                reason, message = "NotStarted", "it does not run"
        return ServerState(
            name=place.name,
            phase=phase,  # type: ignore[arg-type]
            address=f"127.0.0.1:{port}",
            image=Digest(known.get("image", "")),
            restarts=seen.restarts,
            reason=reason,
            message=message,
            labels=labels,
        )

    def _is_healthy(self, seen: _Seen, port: int, path: str) -> bool:
        now = time.monotonic()
        if seen.ready and now - seen.asked_at < HEALTH_MEMORY_SECONDS:
            return True
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=HEALTH_TIMEOUT_SECONDS)
        try:
            connection.request("GET", path)
            seen.ready = connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            seen.ready = False
        finally:
            connection.close()
        seen.asked_at = now
        return seen.ready

    def _is_alive(self, place: Path) -> bool:
        started = _load(place / "supervisor.json")
        return started is not None and not (place / "exit.json").exists() and _born(started["pid"]) == started["born"]

    def _kill(self, place: Path) -> None:
        """End a supervisor and its program, and wait for both; a program that lost its supervisor is ended too."""
        started, deadline = _load(place / "supervisor.json"), time.monotonic() + STOP_SECONDS
        if started is not None and _born(started["pid"]) == started["born"]:
            _signal(started["pid"], signal.SIGTERM)
            while time.monotonic() < deadline and _born(started["pid"]) == started["born"]:
                time.sleep(0.02)
        program = _load(place / "program.json")
        if program is not None and _born(program["pid"]) == program["born"]:
            _signal(program["pid"], signal.SIGKILL, group=True)
            while time.monotonic() < deadline and _born(program["pid"]) == program["born"]:
                time.sleep(0.02)
        if started is not None and _born(started["pid"]) == started["born"]:
            _signal(started["pid"], signal.SIGKILL)


def _born(pid: int) -> str:
    """`born`; our own dead are reaped before."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        pass
    return born(pid)


def _signal(pid: int, number: int, *, group: bool = False) -> None:
    try:
        os.killpg(pid, number) if group else os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def _report(path: Path) -> tuple[Mapping[str, Any], ...]:
    """Lines that a program reported; a torn or foreign line is passed over."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return ()
    found = []
    for line in lines:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return tuple(found)


def _load(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _plain(spec: JobSpec | ServerSpec) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(json.dumps(asdict(spec)))
    return value


def _delete(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


@contextmanager
def _disk(place: Path) -> Iterator[None]:
    """A full or broken disk is the outside's fault, and nothing half-made stays."""
    try:
        yield
    except OutsideError:
        shutil.rmtree(place.with_suffix(".new"), ignore_errors=True)
        raise
    except OSError as error:
        shutil.rmtree(place.with_suffix(".new"), ignore_errors=True)
        raise SilentError(f"{place}: {error.strerror or error}", reason="DiskFull" if error.errno == 28 else "Disk") from error
