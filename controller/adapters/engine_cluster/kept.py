"""What outlives the objects of jobs and servers: results, logs and reports, and how a server was applied.

Results lie in the registry too, signed, before their job may end: a controller that lost its disk finds them there.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from controller.adapters.oci.artifacts import ArtifactStore, Gate
from controller.adapters.oci.layout import EMPTY, MANIFEST, Layout, disk_error, write_whole
from controller.adapters.results import Result, unpack
from policies.canonical import canonical
from policies.errors import TrustError
from policies.terms.digest import Digest
from policies.terms.task import JobState
from reconcilers.ports import Keys

RESULT = "application/vnd.myelin.job.v1"
RESULT_JSON = "application/vnd.myelin.job.result.v1+json"
LOG = "text/plain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Brought:
    """What a job brought back."""

    code: int
    report: tuple[Mapping[str, Any], ...]
    log: str
    kept: Mapping[str, Digest]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A job whose object is gone."""

    state: JobState
    log: str = field(repr=False)


class KeptJobs:
    """What is kept of jobs.

    Args:
        folder: One folder for each job; lost with the disk, all but logs of old jobs comes back from the registry.
        layout: Where artifacts and results go.
        keys: Signs results, so that nobody who may write to the registry can make one up.
        models: Signs models; without it none is taken.
    """

    def __init__(self, folder: Path, layout: Layout, keys: Keys, models: Gate | None = None) -> None:
        self._folder, self._layout, self._keys = folder, layout, keys
        self._artifacts = ArtifactStore(layout, models)
        folder.mkdir(parents=True, exist_ok=True)
        self._results: dict[str, Brought] = {}
        self._ended = {place.parent.name: _ended(place) for place in folder.glob("*/ended.json")}

    def take(self, name: str, tar: Path, *, keeps: Sequence[str]) -> Mapping[str, Digest]:
        """Make safe what a job brings back, and say what its folders are called now.

        Raises:
            RefusedError: It is no result.
            OutsideError: It cannot be kept now.
        """
        place = self._place(name)
        with tempfile.TemporaryDirectory(dir=self._folder.parent, prefix="result-") as folder:
            result = unpack(tar, Path(folder), keeps=keeps)
            kept = self._keep(result)
        report = (*self.reported(name), *result.report)
        value = {"job": name, "code": result.code, "report": list(report), "kept": dict(kept)}
        signed = {**value, "signature": self._keys.sign(canonical(value))}
        blobs = ((canonical(signed), RESULT_JSON), (result.log.encode(), LOG))
        layers = [self._layout.descriptor(self._layout.put(data), kind) for data, kind in blobs]
        config = self._layout.descriptor(self._layout.put(b"{}"), EMPTY)
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "artifactType": RESULT, "config": config, "layers": layers}
        digest = self._layout.put(canonical(manifest))
        self._layout.push(digest, tags=(f"job-{name}",))
        _write(place / "output.log", result.log.encode())
        _write(place / "result.json", canonical(signed))
        self._results.pop(name, None)
        return kept

    def result(self, name: str) -> Brought | None:
        """What a job brought back; None when it brought nothing.

        Raises:
            TrustError: Somebody else made it up.
            OutsideError: The registry does not answer.
        """
        if name in self._results:
            return self._results[name]
        place = self._folder / name
        try:
            text, log = (place / "result.json").read_bytes(), (place / "output.log").read_bytes()
        except OSError:
            digest = self._layout.resolve(f"job-{name}")
            if digest is None:
                return None
            layers = self._layout.manifest(digest)["layers"]
            text, log = self._layout.get(layers[0]["digest"]), self._layout.get(layers[1]["digest"])
        value = json.loads(text)
        signature = value.pop("signature", "")
        if value.get("job") != name or not self._keys.is_signed(canonical(value), signature, self._keys.public()):
            raise TrustError(f"job {name}: expected a result signed by this controller, got another", reason="ResultNotOurs")
        kept = {str(kind): Digest(digest) for kind, digest in value["kept"].items()}
        brought = Brought(code=value["code"], report=tuple(value["report"]), log=log.decode(errors="replace"), kept=kept)
        self._results[name] = brought
        return brought

    def is_ours(self, name: str) -> bool:
        """Whether a job's result is there, and this controller signed it; nothing of it is held on to."""
        try:
            return self.result(name) is not None
        except TrustError:
            return False
        finally:
            self._results.pop(name, None)

    def report(self, name: str, line: Mapping[str, Any]) -> None:
        """Keep a line that a running job reported by HTTP."""
        with (self._place(name) / "reported.jsonl").open("ab") as file:
            file.write(canonical(line) + b"\n")

    def reported(self, name: str) -> tuple[Mapping[str, Any], ...]:
        """Lines that a job reported by HTTP."""
        try:
            lines = (self._folder / name / "reported.jsonl").read_bytes().splitlines()
        except OSError:
            return ()
        return tuple(json.loads(line) for line in lines if line.endswith(b"}"))

    def end(self, name: str, ended: Ended) -> None:
        """Keep what there is to know of a job whose object goes."""
        place = self._place(name)
        _write(place / "ended.log", ended.log.encode())
        _write(place / "ended.json", json.dumps(asdict(ended.state), default=str).encode())
        self._ended[name] = ended

    def ended(self, name: str) -> Ended | None:
        """A job whose object is gone; None for one that is there or never was."""
        return self._ended.get(name)

    def all_ended(self) -> Mapping[str, Ended]:
        """All jobs whose objects are gone."""
        return dict(self._ended)

    def forget(self, name: str) -> None:
        """Keep nothing of a job."""
        self._ended.pop(name, None)
        self._results.pop(name, None)
        shutil.rmtree(self._folder / name, ignore_errors=True)

    def _keep(self, result: Result) -> dict[str, Digest]:
        kept = {}
        for kind, folder in sorted(result.folders.items()):
            kept[kind] = self._artifacts.keep(kind, folder)
        return kept

    def _place(self, name: str) -> Path:
        place = self._folder / name
        place.mkdir(parents=True, exist_ok=True)
        return place


class KeptServers:
    """What is kept of servers: how they were applied, and what earlier pods of theirs printed."""

    LONGEST_LOG_BYTES = 1 << 20

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._applied: dict[str, dict[str, Any]] = {}
        for place in folder.glob("*/applied.json"):
            self._applied[place.parent.name] = json.loads(place.read_bytes())
        self._kept_pods: dict[str, list[str]] = {}
        for place in folder.glob("*/pods.json"):
            self._kept_pods[place.parent.name] = json.loads(place.read_bytes())

    def applied(self, name: str) -> dict[str, Any] | None:
        """The manifests that a server was last applied with; None when nobody knows."""
        return self._applied.get(name)

    def apply(self, name: str, manifests: Mapping[str, Any]) -> None:
        """Note what was applied, as JSON would give it back."""
        _write(self._folder / name / "applied.json", json.dumps(manifests).encode())
        self._applied[name] = dict(manifests)

    def keep_log(self, name: str, text: str, pods: Sequence[str]) -> None:
        """Keep what these pods printed, which go now."""
        data = (self.log(name) + text).encode()[-self.LONGEST_LOG_BYTES :]
        _write(self._folder / name / "output.log", data)
        known = [*self._kept_pods.get(name, ()), *pods][-20:]
        _write(self._folder / name / "pods.json", json.dumps(known).encode())
        self._kept_pods[name] = known

    def is_kept(self, name: str, pod: str) -> bool:
        """Whether what a pod of a server printed is kept already; it may still be about to end."""
        return pod in self._kept_pods.get(name, ())

    def log(self, name: str) -> str:
        """What earlier pods of a server printed."""
        try:
            return (self._folder / name / "output.log").read_bytes().decode(errors="replace")
        except OSError:
            return ""

    def forget(self, name: str) -> None:
        """Keep nothing of a server."""
        self._applied.pop(name, None)
        self._kept_pods.pop(name, None)
        shutil.rmtree(self._folder / name, ignore_errors=True)


def _ended(place: Path) -> Ended:
    value = json.loads(place.read_bytes())
    for key in ("started_at", "ended_at"):
        value[key] = datetime.fromisoformat(value[key]) if value[key] else None
    value["report"] = tuple(value["report"])
    log = place.with_name("ended.log").read_bytes().decode(errors="replace")
    return Ended(state=JobState(**value), log=log)


def _write(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)
    except OSError as error:
        raise disk_error(path, error) from error
