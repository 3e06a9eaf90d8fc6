"""Builds by Dockerfile with Debian's buildah: no daemon, no root where user namespaces are allowed, in an enclosure of its own.

A build sees the commit's files, the images that it is built on and the secrets that it may read; it reaches no network unless it
asks for one. What comes out is the image and nothing else: storage and context are removed whatever happens.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from controller.adapters.build.dockerfile import EPOCH_ARG, Dockerfile, read_dockerfile, rewritten
from controller.adapters.build.enclosure import USUAL, Bounds, Enclosure, Surroundings, way_in
from controller.adapters.build.exported import PACKER, LaidByFile, adopt, check_leaks, read_export
from controller.adapters.build.leaks import MountedSecret, Needles, in_memory, refuse_leak
from controller.adapters.build.pins import Ground, Pins, with_place, write_ground
from controller.adapters.oci.assembly import ARCHITECTURE
from controller.adapters.oci.layers import Stored
from controller.adapters.oci.layout import Layout
from controller.adapters.oci.tar import EPOCH
from policies.errors import ControllerError, DesiredStateError
from policies.terms.build import NO_RULES, BuildRules
from policies.terms.digest import Digest

Progress = Callable[[str], None]
PLATFORM = f"linux/{ARCHITECTURE}"
IGNORED = (".containerignore", ".dockerignore")
SECRETS = "/secrets"
"""Where the inside finds the secrets of a build."""
_STEP = re.compile(r"(?:\[\S+\] )?STEP (\d+)/(\d+): (.*)")
_POLICY = '{"default":[{"type":"insecureAcceptAnything"}]}'
"""Of buildah: what it reads are layouts that we wrote, of bytes that were checked."""
_MOUNTS = "mkdir low up work over && mount -t overlay overlay -o lowerdir=low,upperdir=up,workdir=work over"


@dataclass(frozen=True, slots=True, kw_only=True)
class DockerfileJob:
    """One build by Dockerfile."""

    subject: str
    """What messages begin with, e.g. the image's repository."""
    folder: str = ""
    """Folder of the commit that `files` are of, for messages."""
    files: Mapping[str, Stored]
    """The context, by path from it; out of the commit, never out of a work tree."""
    links: Mapping[str, str] = field(default_factory=dict)
    dockerfile: str = "Dockerfile"
    """Its path in the context."""
    args: Mapping[str, str] = field(default_factory=dict)
    committed_at: int
    """Seconds since 1970; steps find it in SOURCE_DATE_EPOCH."""
    secrets: Sequence[MountedSecret] = ()
    network: bool = False
    rules: BuildRules = NO_RULES


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltByFile:
    """An image in the store, with what it came from."""

    digest: Digest
    bases: tuple[tuple[str, str], ...]
    """(reference as the Dockerfile has it, the same by digest) of every image that it names."""
    network: bool
    tool: str
    """`buildah 1.28.2 (overlay), zlib 1.3`: name and version, its storage, and what packed the layers."""
    layers: tuple[LaidByFile, ...]
    """Those that are not a base's."""
    peak_bytes: int = 0
    """The most memory that was seen in use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A Dockerfile with the images that it names."""

    dockerfile: Dockerfile
    pinned: Mapping[str, str]
    """Reference as written -> by digest."""
    grounds: Mapping[str, Ground]
    """By pinned reference."""


class BuildahDriver:
    """Builds with buildah.

    Args:
        folder: Where builds have their storage, each its own; nothing in it outlives a build.
        pins: Pins and opens images.
        surroundings: What a build sees of where it runs.
    """

    def __init__(self, folder: Path, pins: Pins, *, surroundings: Surroundings = USUAL) -> None:
        self._folder, self._pins, self._surroundings = folder, pins, surroundings

    def build(self, job: DockerfileJob, layout: Layout, progress: Progress) -> BuiltByFile:
        """Build an image into the store.

        Raises:
            DesiredStateError: It cannot be built as it is asked for: the Dockerfile, a step, a bound, a secret that came out; or
                this machine cannot build, which says what to install.
            TrustError: Something that goes in is not what its digest says.
            OutsideError: A registry said no or does not answer, or the disk is full.
        """
        way_in()
        opened = open_dockerfile(job, self._pins, progress)
        if opened.dockerfile.heredocs:
            place = f"{opened.dockerfile.file}:{opened.dockerfile.heredocs[0]}"
            text = f"{place}: expected an instruction on lines of its own, got a here-document, which this buildah cannot read"
            raise DesiredStateError(f"{text}; copy a script, or configure BuildKit (spec.builder.buildkit)", reason="NotBuilt")
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        until = time.monotonic() + job.rules.timeout_seconds
        with self._work(job, until) as enclosure:
            return _Build(job, opened, enclosure).run(layout, progress)

    @contextlib.contextmanager
    def _work(self, job: DockerfileJob, until: float) -> Iterator[Enclosure]:
        """A folder for one build, held by a lock; those that nobody holds are left over from builds that were killed."""
        rules = job.rules
        bounds = Bounds(memory_bytes=rules.memory_bytes, disk_bytes=rules.disk_bytes, until=until, seconds=rules.timeout_seconds)
        with contextlib.ExitStack() as held:
            with (self._folder / "lock").open("w") as alone:
                fcntl.flock(alone, fcntl.LOCK_EX)
                for other in self._folder.glob("build-*"):
                    if _is_left(other):
                        Enclosure(folder=other / "work", bounds=bounds, subject=job.subject).clear()
                        shutil.rmtree(other, ignore_errors=True)
                place = Path(tempfile.mkdtemp(dir=self._folder, prefix="build-"))
                fcntl.flock(held.enter_context((place / "lock").open("w")), fcntl.LOCK_EX)
            (place / "work").mkdir(mode=0o700)
            enclosure = Enclosure(
                folder=place / "work",
                bounds=bounds,
                subject=job.subject,
                has_network=job.network,
                surroundings=self._surroundings,
                redact=Needles(job.secrets).redacted,
            )
            try:
                yield enclosure
            finally:
                enclosure.clear()
                shutil.rmtree(place, ignore_errors=True)


class _Build:
    def __init__(self, job: DockerfileJob, opened: Opened, enclosure: Enclosure) -> None:
        self._job, self._opened = job, opened
        self._needles = Needles(job.secrets)
        self._work, self._inside = enclosure.folder, enclosure.surroundings.inside
        readable = {f"{self._inside}/bases": self._work / "bases"}
        self._enclosure = Enclosure(
            folder=enclosure.folder,
            bounds=enclosure.bounds,
            subject=enclosure.subject,
            has_network=enclosure.has_network,
            readable=readable,
            surroundings=enclosure.surroundings,
            redact=enclosure.redact,
        )
        self._leaked = ""

    def run(self, layout: Layout, progress: Progress) -> BuiltByFile:
        job, opened = self._job, self._opened
        progress("writing the context")
        self._enclosure.prepare()
        (self._work / "bases").mkdir(mode=0o700)
        write_context(job, self._work / "context")
        kind = self._storage()
        ids = self._pulled(layout, progress)
        names = {written: ids[pinned] for written, pinned in opened.pinned.items()}
        (self._work / "Dockerfile").write_text(rewritten(opened.dockerfile, names))
        with in_memory(job.secrets) as held:
            files = {places(job)[key]: descriptor for key, descriptor in held.items()}
            ended = self._enclosure.run(self._command(), lambda line: self._heard(line, progress), files=files)
        if self._leaked:
            raise refuse_leak(self._leaked, f"{job.subject}: log of the build")
        if ended.code:
            raise self._enclosure.failed(ended, "build")
        progress("exporting the image")
        image = (self._work / "image").read_text().strip()
        # As a plain folder: to a layout it would pack every layer, those of the base too.
        target = f"dir:{self._inside}/out"
        self._succeed(
            ["buildah", "push", *_trust(self._inside), "--quiet", "--disable-compression", "--format", "oci", image, target]
        )
        self._readable("out")
        export = read_export(self._work / "out")
        grounds = list(opened.grounds.values())
        if self._needles:
            progress("looking for secrets in what was built")
        check_leaks(export, self._needles, grounds, job.subject)
        digest, laid = adopt(export, layout, grounds)
        return BuiltByFile(
            digest=digest,
            bases=tuple(sorted(opened.pinned.items())),
            network=job.network,
            tool=f"{version()} ({kind}), {PACKER}",
            layers=laid,
            peak_bytes=ended.peak_bytes,
        )

    def _command(self) -> list[str]:
        job, inside = self._job, self._inside
        command = ["buildah", "build", *_trust(inside), "--isolation", "chroot", "--network", "host", "--pull=never", "--layers"]
        command += ["--format", "oci", "--timestamp", str(EPOCH), "--identity-label=false", "--http-proxy=true"]
        # What may change its root could leave it: chroot isolation is no wall against that.
        command += ["--cap-drop", "CAP_SYS_CHROOT"]
        command += ["--build-arg", f"{EPOCH_ARG}={job.committed_at}"]
        for name, value in sorted(job.args.items()):
            if name != EPOCH_ARG:
                command += ["--build-arg", f"{name}={value}"]
        for number, secret in enumerate(job.secrets):
            command += ["--volume", f"{SECRETS}/{number}:{secret.path}:ro"]
        command += secret_flags(job, places(job))
        ignored = f"{job.dockerfile}.dockerignore"
        if ignored in job.files:
            command += ["--ignorefile", f"{inside}/context/{ignored}"]
        return [*command, "--iidfile", f"{inside}/image", "--file", f"{inside}/Dockerfile", f"{inside}/context"]

    def _heard(self, line: str, progress: Progress) -> None:
        self._leaked = self._leaked or self._needles.in_bytes(line.encode("utf-8", "surrogateescape"))
        shown = self._needles.redacted(line)
        step = _STEP.fullmatch(shown)
        progress(f"step {step[1]} of {step[2]}: {step[3][:200]}" if step else shown[:200])

    def _storage(self) -> str:
        """Set up storage: overlay where that leaves no trace, else copies of whole trees, which take more time and disk.

        In a user namespace, overlay marks folders that it copied up, and buildah 1.28 packs the marks, which differ each time.
        """
        probe = self._work / "probe"
        probe.mkdir(mode=0o700)
        fine = not way_in() and not self._enclosure.run(["sh", "-c", f"cd {self._inside}/probe && {_MOUNTS}"]).code
        kind, inside = ("overlay" if fine else "vfs"), self._inside
        text = f'[storage]\ndriver = "{kind}"\nrunroot = "{inside}/run"\ngraphroot = "{inside}/root"\n'
        (self._work / "storage.conf").write_text(text)
        (self._work / "policy.json").write_text(_POLICY)
        return kind

    def _pulled(self, layout: Layout, progress: Progress) -> dict[str, str]:
        """Pinned reference -> id in buildah's storage."""
        found = {}
        for number, (pinned, ground) in enumerate(sorted(self._opened.grounds.items())):
            progress(f"unpacking {pinned}")
            found[pinned], _ = write_ground(ground, layout, self._work / "bases" / str(number))
            self._succeed(["buildah", "pull", *_trust(self._inside), "--quiet", f"oci:{self._inside}/bases/{number}:image"])
        return found

    def _readable(self, name: str) -> None:
        """Let us read what was written inside, whatever the umask was there."""
        self._succeed(["chmod", "-R", "u=rwX,go=", f"{self._inside}/{name}"])

    def _succeed(self, command: list[str]) -> None:
        ended = self._enclosure.run(command)
        if ended.code:
            raise self._enclosure.failed(ended, " ".join(command[:2]))


def open_dockerfile(job: DockerfileJob, pins: Pins, progress: Progress) -> Opened:
    """Read a job's Dockerfile, pin what it names and fetch that.

    Raises:
        DesiredStateError: It is not there or cannot be read, an image cannot be pinned, or it fetches without a network: with
            file and line.
        TrustError: An image is not what its digest says, or the project does not trust it.
        OutsideError: A registry said no, or does not answer.
    """
    place = f"{job.folder}/{job.dockerfile}".lstrip("/")
    content = job.files.get(job.dockerfile)
    if content is None:
        kind = "a link" if job.dockerfile in job.links else "none of that name"
        raise DesiredStateError(f"{place}: expected a Dockerfile in the commit, got {kind}", reason="DockerfileMissing")
    try:
        text = content.data.decode()
    except UnicodeDecodeError as error:
        raise DesiredStateError(f"{place}: expected text in UTF-8, got other bytes", reason="BadDockerfile") from error
    dockerfile = read_dockerfile(text, place, args=job.args, platform=PLATFORM)
    if dockerfile.fetched and not job.network:
        line, address = dockerfile.fetched[0]
        text = f"{place}:{line}: ADD: expected files of the context, got {_shown(address)}, and the build has no network"
        raise DesiredStateError(f"{text}; copy the file, or set imageBuild.dockerfile.network", reason="NeedsNetwork")
    pinned: dict[str, str] = {}
    grounds: dict[str, Ground] = {}
    for image in dockerfile.images:
        if image.reference in pinned:
            continue
        try:
            pinned[image.reference] = pins.pin(image.reference)
            if pinned[image.reference] not in grounds:
                progress(f"opening {pinned[image.reference]}")
                grounds[pinned[image.reference]] = pins.open(pinned[image.reference], job.rules.base_signers)
        except ControllerError as error:
            raise with_place(error, f"{place}:{image.line}: {image.said}") from error
    return Opened(dockerfile=dockerfile, pinned=pinned, grounds=grounds)


def write_context(job: DockerfileJob, folder: Path) -> None:
    """Write a job's files; modes and times are the same whatever the umask and the hour."""
    folders = {folder}
    folder.mkdir(mode=0o755)
    for path in sorted({*job.files, *job.links}):
        target = folder / path
        for parent in reversed(target.relative_to(folder).parents[:-1]):
            (folder / parent).mkdir(exist_ok=True)
            folders.add(folder / parent)
        if path in job.links:
            target.symlink_to(job.links[path])
        else:
            target.write_bytes(job.files[path].data)
            target.chmod(0o755 if job.files[path].executable else 0o644)
        os.utime(target, (EPOCH, EPOCH), follow_symlinks=False)
    for item in sorted(folders, reverse=True):
        item.chmod(0o755)
        os.utime(item, (EPOCH, EPOCH))


def places(job: DockerfileJob) -> dict[tuple[str, str], str]:
    """Where the inside finds the secrets of a build: (where it is mounted, its key) -> path."""
    return {(item.path, name): f"{SECRETS}/{number}/{name}" for number, item in enumerate(job.secrets) for name in item.files}


def secret_flags(job: DockerfileJob, files: Mapping[tuple[str, str], str]) -> list[str]:
    """The arguments with which `RUN --mount=type=secret` finds the secrets of a build.

    A file is `name.key` there, and `name` too where its secret has no other.

    Args:
        job: What is built.
        files: (where it is mounted, its key) -> path of its content.
    """
    flags = []
    for secret in job.secrets:
        for name in secret.files:
            ids = (f"{secret.name}.{name}", *((secret.name,) if len(secret.files) == 1 else ()))
            flags += [part for given in ids for part in ("--secret", f"id={given},src={files[secret.path, name]}")]
    return flags


def version() -> str:
    """`buildah 1.28.2`."""
    done = subprocess.run(["/usr/bin/env", "buildah", "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"version (\S+)", done.stdout)
    return f"buildah {found[1] if found else 'of unknown version'}"


def _trust(inside: str) -> list[str]:
    return ["--signature-policy", f"{inside}/policy.json"]


def _is_left(folder: Path) -> bool:
    """Whether nobody builds there any more."""
    try:
        with (folder / "lock").open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _shown(address: str) -> str:
    """An address without user and query."""
    return re.sub(r"//[^/@]*@", "//", address).partition("?")[0]
