"""Builds by Dockerfile with a BuildKit that runs elsewhere, under the rules that hold for buildah.

Images are handed to it by us, and its source policy denies all that it would fetch by itself; whether steps reach the network is
asked of it, and no entitlement is given. Its daemon bounds memory and disk; time is bounded here.
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
from controller.adapters.build.leaks import Needles, in_memory, refuse_leak
from controller.adapters.build.pins import Pins, write_ground
from controller.adapters.oci.layout import Layout
from policies.errors import DesiredStateError, SilentError
from policies.terms.digest import Digest

LAST_LINES = 12
LONGEST_LINE = 8192
_STEP = re.compile(r"#\d+ \[(?:\S+ )?(\d+)/(\d+)\] (.*)")
_AWAY = re.compile(r"connection refused|context deadline exceeded|no such host|connection error|i/o timeout|Unavailable")


class BuildKitDriver:
    """Builds with `buildctl`.

    Args:
        folder: Where contexts lie while they are built.
        pins: Pins and opens images.
        address: Of the daemon, `tcp://buildkitd.builds:1234` or `unix:///run/buildkit/buildkitd.sock`.
        certificates: Folder with `ca.pem`, `cert.pem` and `key.pem` for it; None: none.
    """

    def __init__(self, folder: Path, pins: Pins, address: str, *, certificates: Path | None = None) -> None:
        self._folder, self._pins, self._address, self._certificates = folder, pins, address, certificates

    def build(self, job: DockerfileJob, layout: Layout, progress: Progress) -> BuiltByFile:
        """Build an image into the store; raises what `BuildahDriver.build` raises."""
        if shutil.which("buildctl") is None:
            text = "buildctl: expected it on the machine that runs the controller, not installed; install BuildKit's client"
            raise DesiredStateError(f"{text}, or leave out spec.builder.buildkit", reason="CannotBuild")
        opened = open_dockerfile(job, self._pins, progress)
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=self._folder, prefix="buildkit-") as place, in_memory(job.secrets) as held:
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
            held: Its secrets, (where they are mounted, key) -> open file.
        """
        command = ["buildctl", "--addr", self._address]
        if self._certificates is not None:
            for flag, name in (("--tlscacert", "ca.pem"), ("--tlscert", "cert.pem"), ("--tlskey", "key.pem")):
                command += [flag, str(self._certificates / name)]
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
        # The client reads them as its own open files: they have no name in any folder.
        command += secret_flags(job, {key: f"/proc/self/fd/{descriptor}" for key, descriptor in held.items()})
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
            if any(_AWAY.search(line) for line in last):
                raise SilentError(
                    f"{job.subject}: BuildKit at {self._address}: expected an answer, got: {said}", reason="BuildKitAway"
                )
            text = f"{job.subject}: build: expected exit code 0, got {process.returncode}; it said: {said}"
            raise DesiredStateError(text, reason="BuildFailed")
        (work / "out").mkdir()
        with tarfile.open(work / "image.tar") as archive:
            archive.extractall(work / "out", filter="data")

    def _version(self) -> str:
        done = subprocess.run(["buildctl", "--version"], capture_output=True, text=True, check=False)
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


def source_policy(*, has_network: bool) -> dict[str, object]:
    """What BuildKit may fetch by itself: no image, whatever a base's triggers name; files only where the build has a network."""
    denied = ["docker-image://*"] + ([] if has_network else ["http://*", "https://*", "git://*"])
    return {"rules": [{"action": "DENY", "selector": {"identifier": name}} for name in denied]}
