"""Builds by Dockerfile with a BuildKit that runs elsewhere, under the rules that hold for buildah.

Images are handed to it by us, and its source policy denies all that it would fetch by itself; whether steps reach the network is
asked of it, and no entitlement is given. Its daemon bounds memory and disk; time is bounded here. What the daemon is shown lies
in memory while its client runs: no key of ours is in a folder or a command line.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from controller.adapters.build.buildah import (
    BuiltByFile,
    DockerfileJob,
    Opened,
    Progress,
    open_dockerfile,
    secret_flags,
    write_context,
)
from controller.adapters.build.dockerfile import EPOCH_ARG, rewritten
from controller.adapters.build.exported import PACKER, adopt, check_leaks, read_export
from controller.adapters.build.leaks import MountedSecret, Needles, in_memory, refuse_leak
from controller.adapters.build.pins import Pins, write_ground
from controller.adapters.oci.layout import Layout
from policies.errors import DesiredStateError, RefusedError, SilentError, TrustError
from policies.terms.digest import Digest
from policies.terms.secret import Secret

CA, CERTIFICATE, KEY = "buildkit-ca.pem", "buildkit-cert.pem", "buildkit-key.pem"
"""What proves a daemon to us, and us to it: names of files, and of a Secret's keys."""
FLAGS = {CA: "--tlscacert", CERTIFICATE: "--tlscert", KEY: "--tlskey"}
PROGRAM_VARIABLE = "MYELIN_BUILDCTL"
"""Names the client where it is not found by itself: the chart lays it beside an image that has none."""
LAST_LINES = 12
LONGEST_LINE = 8192
_STEP = re.compile(r"#\d+ \[(?:\S+ )?(\d+)/(\d+)\] (.*)")
_AWAY = re.compile(r"connection refused|context deadline exceeded|no such host|connection error|i/o timeout|Unavailable")
_IN_LAYOUT = re.compile(r"oci-layout|index\.json|blobs/sha256/[0-9a-f]{64}")
# Go's own words. Who is not shown to be known may also be hung up on, which looks as a daemon that is away.
_UNKNOWN = re.compile(r"\btls: ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    """How the BuildKit of a project is reached."""

    address: str = ""
    """Where it is if the repository does not say, `tcp://buildkitd.builds:1234`; empty: Dockerfiles are buildah's then."""
    shown: Mapping[str, Secret] = field(default_factory=dict)
    """`CA`, `CERTIFICATE` and `KEY` -> PEM; empty: neither side proves who it is."""
    program: str = "buildctl"
    """The client, by name or by path."""


class BuildKitDriver:
    """Builds with `buildctl`.

    Args:
        folder: Where contexts lie while they are built.
        pins: Pins and opens images.
        address: Of the daemon, `tcp://buildkitd.builds:1234` or `unix:///run/buildkit/buildkitd.sock`.
        daemon: How it is reached, wherever it is.
    """

    def __init__(self, folder: Path, pins: Pins, address: str, *, daemon: Daemon | None = None) -> None:
        self._folder, self._pins, self._address = folder, pins, address
        self._daemon = daemon if daemon is not None else Daemon()

    def build(self, job: DockerfileJob, layout: Layout, progress: Progress) -> BuiltByFile:
        """Build an image into the store; raises what `BuildahDriver.build` raises."""
        if shutil.which(self._daemon.program) is None:
            text = f"{self._daemon.program}: expected BuildKit's client where the controller runs, got none"
            step = "install it, or name buildkit.image in the chart's values, or leave out spec.builder.buildkit"
            raise DesiredStateError(f"{text}; {step}", reason="CannotBuild")
        opened = open_dockerfile(job, self._pins, progress)
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        shown = MountedSecret(name="BuildKit", path="", files=self._daemon.shown)
        with tempfile.TemporaryDirectory(dir=self._folder, prefix="buildkit-") as place, in_memory((*job.secrets, shown)) as held:
            work = Path(place)
            handed = lay_out(job, opened, layout, work)
            self._run(job, self.command(job, work, handed, held), work, progress, tuple(held.values()))
            export = read_export(work / "out")
            grounds = list(opened.grounds.values())
            check_leaks(export, Needles(job.secrets), grounds, job.subject)
            digest, laid = adopt(export, layout, grounds)
        return BuiltByFile(
            digest=digest,
            bases=tuple(sorted(opened.pinned.items())),
            network=job.network,
            tool=f"{self._version()}, {PACKER}",
            layers=laid,
        )

    def command(
        self, job: DockerfileJob, work: Path, handed: Mapping[str, Digest], held: Mapping[tuple[str, str], int]
    ) -> list[str]:
        """The command line of a build.

        Args:
            job: What is built.
            work: Where `lay_out` wrote its files.
            handed: What `lay_out` answered.
            held: Its secrets, (where they are mounted, key) -> open file; what the daemon is shown is mounted nowhere.
        """
        # The client reads them as its own open files: they have no name in any folder.
        files = {key: f"/proc/self/fd/{descriptor}" for key, descriptor in held.items()}
        command = [self._daemon.program, "--addr", self._address]
        for name, flag in FLAGS.items():
            if name in self._daemon.shown:
                command += [flag, files["", name]]
        command += ["build", "--progress", "plain", "--frontend", "dockerfile.v0", "--no-cache"]
        command += ["--local", f"context={work / 'context'}", "--local", f"dockerfile={work / 'dockerfile'}"]
        command += ["--opt", "filename=Dockerfile", "--opt", f"build-arg:{EPOCH_ARG}={job.committed_at}"]
        command += ["--opt", f"force-network-mode={'sandbox' if job.network else 'none'}"]
        for name, value in sorted(job.args.items()):
            if name != EPOCH_ARG:
                command += ["--opt", f"build-arg:{name}={value}"]
        for name, digest in sorted(handed.items()):
            command += ["--oci-layout", f"{name}={work / 'bases' / name}"]
            command += ["--opt", f"context:{name}=oci-layout://{name}@{digest}"]
        command += secret_flags(job, files)
        command += ["--source-policy-file", str(work / "policy.json")]
        output = f"type=oci,dest={work / 'image.tar'},rewrite-timestamp=true,oci-mediatypes=true,compression=gzip"
        return [*command, "--output", output]

    def _run(self, job: DockerfileJob, command: Sequence[str], work: Path, progress: Progress, files: tuple[int, ...]) -> None:
        needles, last, leaked = Needles(job.secrets), deque[str](maxlen=LAST_LINES), list[str]()
        environment = {"PATH": os.environ.get("PATH", ""), "HOME": str(work), EPOCH_ARG: str(job.committed_at)}
        process = subprocess.Popen(
            command,
            pass_fds=files,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )

        def read(stream: IO[bytes]) -> None:
            while line := stream.readline(LONGEST_LINE):
                leaked.extend(filter(None, [needles.in_bytes(line)]))
                text = needles.redacted(line.decode("utf-8", "replace").strip())
                if text:
                    last.append(text)
                    step = _STEP.match(text)
                    progress(f"step {step[1]} of {step[2]}: {step[3][:200]}" if step else text[:200])

        assert process.stdout is not None
        reader = threading.Thread(target=read, args=(process.stdout,), name="build-log", daemon=True)
        reader.start()
        try:
            process.wait(job.rules.timeout_seconds)
        except subprocess.TimeoutExpired as error:
            text = f"expected an end within {job.rules.timeout_seconds:g} s (spec.builder.limits.time), it was ended"
            raise DesiredStateError(f"{job.subject}: {text}", reason="BuildTimeout") from error
        finally:
            process.kill()
            process.wait()
            reader.join(10)
            process.stdout.close()
        if leaked:
            raise refuse_leak(leaked[0], f"{job.subject}: log of the build")
        if process.returncode:
            said = " | ".join(last)
            # Only the client's own word counts: steps that are refused a connection say so in the same words.
            own = last[-1] if last and last[-1].startswith("error: ") and "did not complete" not in last[-1] else ""
            place = f"{job.subject}: BuildKit at {self._address}"
            if _UNKNOWN.search(own):
                step = f"look at {', '.join(FLAGS)} among the project's keys, and at the daemon's own"
                raise RefusedError(f"{place}: expected to know each other, got: {own}; {step}", reason="BuildKitRefused")
            if _AWAY.search(own):
                raise SilentError(f"{place}: expected an answer, got: {own}", reason="BuildKitAway")
            text = f"{job.subject}: build: expected exit code 0, got {process.returncode}; it said: {said}"
            raise DesiredStateError(text, reason="BuildFailed")
        unpack(work / "image.tar", work / "out")
        (work / "image.tar").unlink()

    def _version(self) -> str:
        done = subprocess.run([self._daemon.program, "--version"], capture_output=True, text=True, check=False)
        found = re.search(r"v?(\d+\.\d+\.\d+\S*)", done.stdout)
        return f"buildkit {found[1] if found else 'of unknown version'}"


def lay_out(job: DockerfileJob, opened: Opened, layout: Layout, work: Path) -> dict[str, Digest]:
    """Write what a build reads: context, Dockerfile, images and source policy; the answer is what the images are called."""
    handed: dict[str, Digest] = {}
    names: dict[str, str] = {}
    for number, (pinned, ground) in enumerate(sorted(opened.grounds.items())):
        names[pinned] = f"pinned-{number}"
        _, handed[names[pinned]] = write_ground(ground, layout, work / "bases" / names[pinned])
    write_context(job, work / "context")
    (work / "dockerfile").mkdir()
    flags = [
        f"--mount=type=secret,id={secret.name}.{name},target={secret.path}/{name},mode=0444"
        for secret in job.secrets
        for name in secret.files
    ]
    text = rewritten(opened.dockerfile, {key: names[pinned] for key, pinned in opened.pinned.items()}, run_flags=" ".join(flags))
    (work / "dockerfile" / "Dockerfile").write_text(text)
    ignored = f"{job.dockerfile}.dockerignore"
    if ignored in job.files:
        (work / "dockerfile" / "Dockerfile.dockerignore").write_bytes(job.files[ignored].data)
    (work / "policy.json").write_text(json.dumps(source_policy(has_network=job.network)))
    return handed


def unpack(archive: Path, folder: Path) -> None:
    """Unpack an image as BuildKit exports it. tarfile's own filters are newer than some systems' Python 3.11.

    Raises:
        TrustError: There is something else in it than the files of an OCI layout.
    """
    (folder / "blobs" / "sha256").mkdir(parents=True)
    with tarfile.open(archive) as source:
        for member in source:
            if member.isdir():
                continue
            content = source.extractfile(member) if member.isreg() and _IN_LAYOUT.fullmatch(member.name) else None
            if content is None:
                text = f"{member.name[:200]}: expected a file of an OCI layout in what BuildKit exported, got another entry"
                raise TrustError(text, reason="BadExport")
            with (folder / member.name).open("wb") as target:
                shutil.copyfileobj(content, target, 1 << 20)


def source_policy(*, has_network: bool) -> dict[str, object]:
    """What BuildKit may fetch by itself: no image, whatever a base's triggers name; files only where the build has a network."""
    denied = ["docker-image://*"] + ([] if has_network else ["http://*", "https://*", "git://*"])
    return {"rules": [{"action": "DENY", "selector": {"identifier": name}} for name in denied]}
