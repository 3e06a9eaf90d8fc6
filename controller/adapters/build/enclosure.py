"""Where a build runs: an own file tree, processes and network by bubblewrap, with bounds of time, memory and disk.

Buildah's chroot isolation is no wall by itself: it shares processes, devices and the network with whoever starts it, and it
refuses to take the network away. So the wall is around buildah. What runs inside sees programs and libraries, its own folder and
nothing else: no key, no token, no other build. When the one that started it dies, so does all of it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from policies.errors import DesiredStateError, SilentError

Lines = Callable[[str], None]
INSIDE = "/build"
SHARED_BYTES = 64 << 20
"""Of memory that processes of a step share by /dev/shm."""
LAST_LINES = 12
LONGEST_LINE = 8192
TICK_SECONDS = 0.1
MEASURED_SECONDS = 5.0
"""How often the folder is measured, if nothing says that it grows."""
_INSTALL = "apt install buildah bubblewrap uidmap util-linux"
_ROOTLESS = ("unshare", "--user", "--map-root-user", "--map-auto", "--")
_ASKED = (
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/nsswitch.conf",
    "/etc/ssl/certs",
    "/etc/ca-certificates",
    "/usr/local/share/ca-certificates",
)
_OWNER = ("--unshare-user", "--uid", "0", "--gid", "0", "--cap-add", "ALL")
_NOBODY = ("--unshare-user", "--uid", "65534", "--gid", "65534", "--cap-drop", "ALL")
_USERS = {"passwd": "root:x:0:0:root:/root:/bin/sh\n", "group": "root:x:0:\n"}
_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
_FILE_SIGNAL = 128 + 25
"""How a shell's child ends that wrote beyond the size that one file may have (SIGXFSZ)."""
_FULL = "no space left on device"
_MEMORY = re.compile(r"MemoryError|Cannot allocate memory|[Oo]ut of memory|bad_alloc|memory exhausted")
_FILE = re.compile(r"File too large|[Ff]ile size limit")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What one build may take, all of its steps together."""

    memory_bytes: int
    disk_bytes: int
    until: float
    """Monotonic instant at which it is ended."""
    seconds: float
    """How long that was at the beginning, for messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a build must not depend on; a second build is given others."""

    inside: str = INSIDE
    host: str = "build"
    umask: int = 0o022


USUAL = Surroundings()
OTHER = Surroundings(inside="/elsewhere/second", host="other", umask=0o077)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a program ended."""

    code: int
    last: tuple[str, ...]
    """Its last lines."""
    peak_bytes: int = 0
    """The most memory that was seen in use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Enclosure:
    """One folder as the only place that programs may write to.

    Args:
        folder: That folder; inside, it is `surroundings.inside`.
        bounds: What all programs may take together.
        has_network: Whether they reach the network.
        readable: Path inside -> folder outside, to be read.
        surroundings: What else they see.
        subject: What messages begin with.
    """

    folder: Path
    bounds: Bounds
    subject: str
    has_network: bool = False
    readable: Mapping[str, Path] = field(default_factory=dict)
    surroundings: Surroundings = USUAL
    redact: Callable[[str], str] = str
    has_root: bool = True
    """Whether programs are root of the inside, with all of its capabilities; else they are nobody, with none."""

    def prepare(self) -> None:
        """Lay out what programs expect of a system."""
        for name in ("home", "tmp"):
            (self.folder / name).mkdir(mode=0o700)
        for name, text in _USERS.items():
            (self.folder / name).write_text(text)

    def run(self, command: Sequence[str], on_line: Lines = lambda line: None, *, files: Mapping[str, int] | None = None) -> Ended:
        """Run a program to its end, whatever its exit code.

        Args:
            command: The program and its arguments.
            on_line: Called with each line that it prints, as it is.
            files: Path inside -> open file that is copied there, in memory; it is gone with the program.

        Raises:
            DesiredStateError: It took longer, or more memory or disk, than it may.
            SilentError: The disk is full.
        """
        limits = ["prlimit", f"--data={self.bounds.memory_bytes}", f"--fsize={self.bounds.disk_bytes}", "--core=0", "--"]
        process = subprocess.Popen(
            [*limits, *self._way(), *self._argv(command, files)],
            pass_fds=tuple((files or {}).values()),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={"PATH": _path()},
            umask=self.surroundings.umask,
            start_new_session=True,
        )
        last: deque[str] = deque(maxlen=LAST_LINES)
        reader = threading.Thread(target=self._read, args=(process, last, on_line), name="build-log", daemon=True)
        reader.start()
        watch = _Watch(self, process)
        try:
            watch.wait()
        finally:
            _end(process)
            reader.join(10)
        said = tuple(last)
        if watch.broken:
            raise DesiredStateError(f"{self.subject}: {watch.broken[1]}{_quoted(said)}", reason=watch.broken[0])
        if process.returncode and any(_FULL in line.lower() for line in said) and _is_full(self.folder):
            raise SilentError(f"{self.subject}: the disk under {self.folder} is full", reason="DiskFull")
        return Ended(code=process.returncode, last=said, peak_bytes=watch.peak_bytes)

    def failed(self, ended: Ended, what: str) -> DesiredStateError:
        """What to tell of a program that ended with a fault."""
        hint = ""
        if any(_MEMORY.search(line) for line in ended.last):
            hint = f"; a process may have {self.bounds.memory_bytes} bytes (spec.builder.limits.memory)"
        elif ended.code == _FILE_SIGNAL or any(_FILE.search(line) or _FULL in line.lower() for line in ended.last):
            hint = f"; a file may have {self.bounds.disk_bytes} bytes (spec.builder.limits.disk)"
        text = f"{self.subject}: {what}: expected exit code 0, got {ended.code}{_quoted(ended.last)}{hint}"
        return DesiredStateError(text, reason="BuildFailed")

    def used_bytes(self) -> int:
        """How much disk the folder takes. It is measured from inside, as its files may be of other users."""
        command = ["du", "-s", "-x", "--block-size=1", self.surroundings.inside]
        done = subprocess.run([*self._way(), *self._ours(command)], capture_output=True, env={"PATH": _path()}, check=False)
        # Files that vanish while it looks are no fault.
        found = re.match(rb"(\d+)\t", done.stdout)
        return int(found[1]) if found else 0

    def clear(self) -> None:
        """Remove the folder, with what users of the inside own in it."""
        if not self.folder.exists():
            return
        command = ["find", self.surroundings.inside, "-xdev", "-mindepth", "1", "-delete"]
        subprocess.run([*self._way(), *self._ours(command)], capture_output=True, env={"PATH": _path()}, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _way(self) -> tuple[str, ...]:
        return way_in() if self.has_root else ()

    def _ours(self, command: Sequence[str]) -> list[str]:
        """A program of ours, which looks behind whatever modes a program of others has set."""
        return self._argv(command, who=() if self.has_root else _OWNER)

    def _argv(
        self, command: Sequence[str], files: Mapping[str, int] | None = None, *, who: Sequence[str] | None = None
    ) -> list[str]:
        inside = self.surroundings.inside
        if who is None:
            who = () if self.has_root else nobody()
        wall = ["bwrap", *(who or ("--cap-add", "ALL")), "--unshare-pid", "--unshare-ipc", "--unshare-uts"]
        wall += ["--hostname", self.surroundings.host]
        wall += [] if self.has_network else ["--unshare-net"]
        wall += ["--die-with-parent", "--new-session", "--clearenv"]
        for name, value in self._environment().items():
            wall += ["--setenv", name, value]
        wall += ["--ro-bind", "/usr", "/usr", "--proc", "/proc", "--dev", "/dev"]
        for name in ("bin", "sbin", "lib", "lib32", "lib64"):
            place = Path("/", name)
            if place.is_symlink():
                wall += ["--symlink", os.readlink(place), str(place)]
            elif place.exists():
                wall += ["--ro-bind", str(place), str(place)]
        wall += ["--size", str(SHARED_BYTES), "--tmpfs", "/dev/shm", "--remount-ro", "/dev"]
        # What nobody's programs write to memory is bounded here: nothing else would count it.
        wall += ["--ro-bind", "/sys", "/sys"] if self.has_root else ["--size", str(SHARED_BYTES)]
        wall += ["--tmpfs", "/tmp"]
        wall += ["--dir", "/var/tmp", "--dir", "/run", "--dir", "/etc"]
        for place_of in _ASKED if self.has_network else ():
            wall += ["--ro-bind-try", place_of, place_of]
        # Nobody's programs run one after the other, and the first could make a link of a file that the second is shown.
        for name in _USERS if self.has_root else ():
            wall += ["--ro-bind-try", str(self.folder / name), f"/etc/{name}"]
        wall += ["--bind", str(self.folder), inside]
        for target, source in self.readable.items():
            wall += ["--ro-bind", str(source), target]
        for target, descriptor in (files or {}).items():
            wall += ["--perms", "0444", "--file", str(descriptor), target]
        if not self.has_root:
            wall += ["--remount-ro", "/"]
        return [*wall, "--chdir", inside, "--", *command]

    def _environment(self) -> dict[str, str]:
        inside = self.surroundings.inside
        found = {
            "PATH": "/usr/bin:/usr/sbin:/bin:/sbin",
            "LC_ALL": "C.UTF-8",
            "HOME": f"{inside}/home",
            "XDG_RUNTIME_DIR": f"{inside}/home",
            "TMPDIR": f"{inside}/tmp",
        }
        if self.has_root:
            found |= {"CONTAINERS_STORAGE_CONF": f"{inside}/storage.conf", "BUILDAH_ISOLATION": "chroot"}
        if self.has_network:
            # A proxy with a password in its address is for us alone.
            found |= {name: os.environ[name] for name in _PROXIES if os.environ.get(name) and "@" not in os.environ[name]}
        return found

    def _read(self, process: subprocess.Popen[bytes], last: deque[str], on_line: Lines) -> None:
        assert process.stdout is not None
        with process.stdout as stream:
            while line := stream.readline(LONGEST_LINE):
                rest = line
                while not rest.endswith(b"\n") and (rest := stream.readline(LONGEST_LINE)):
                    pass  # the rest of a line that nobody can read would cut a secret in two
                text = line.decode("utf-8", "replace").strip()
                if text:
                    on_line(text)
                    last.append(self.redact(text))


class _Watch:
    """Looks at a build while it runs, and ends it when it takes too much."""

    def __init__(self, enclosure: Enclosure, process: subprocess.Popen[bytes]) -> None:
        self._enclosure, self._process = enclosure, process
        self.broken: tuple[str, str] | None = None
        self.peak_bytes = 0
        self._free, self._measure_at = _free(enclosure.folder), time.monotonic() + MEASURED_SECONDS

    def wait(self) -> None:
        while self.broken is None:
            try:
                self._process.wait(TICK_SECONDS)
            except subprocess.TimeoutExpired:
                self.broken = self._too_long() or self._too_much_memory() or self._too_much_disk()
            else:
                return

    def _too_long(self) -> tuple[str, str] | None:
        bounds = self._enclosure.bounds
        if time.monotonic() < bounds.until:
            return None
        return "BuildTimeout", f"expected an end within {bounds.seconds:g} s (spec.builder.limits.time), it was ended"

    def _too_much_memory(self) -> tuple[str, str] | None:
        used, bound = _memory_below(self._process.pid), self._enclosure.bounds.memory_bytes
        self.peak_bytes = max(self.peak_bytes, used)
        if used <= bound:
            return None
        return "BuildMemory", f"expected at most {bound} bytes of memory (spec.builder.limits.memory), got {used}"

    def _too_much_disk(self) -> tuple[str, str] | None:
        bound = self._enclosure.bounds.disk_bytes
        free = _free(self._enclosure.folder)
        # To measure takes time, so it is done when the disk has become a good part of the bound fuller, by whomever.
        if self._free - free < bound // 8 and time.monotonic() < self._measure_at:
            return None
        used = self._enclosure.used_bytes()
        self._free, self._measure_at = _free(self._enclosure.folder), time.monotonic() + MEASURED_SECONDS
        if used <= bound:
            return None
        return "BuildDisk", f"expected at most {bound} bytes of disk (spec.builder.limits.disk), got {used}"


_way_in: list[tuple[str, ...]] = []
"""What makes whoever runs us root of the inside, once it was found."""


_nobody: list[tuple[str, ...]] = []
"""What makes whoever runs us nobody of the inside, once it was found."""


def nobody() -> tuple[str, ...]:
    """What bubblewrap is told, so that a program is nobody of the inside.

    Raises:
        DesiredStateError: This machine cannot.
    """
    if _nobody:
        return _nobody[0]
    if missing := what_nobody_misses(_path()):
        raise DesiredStateError(missing, reason="CannotBuild")
    said = ""
    with tempfile.TemporaryDirectory() as scratch:
        bounds = Bounds(memory_bytes=1 << 30, disk_bytes=1 << 30, until=0, seconds=0)
        probe = Enclosure(folder=Path(scratch), bounds=bounds, subject="probe", has_root=False)
        # Bubblewrap before 0.8 cannot forbid user namespaces inside.
        for who in ((*_NOBODY, "--disable-userns"), _NOBODY):
            command = probe._argv(["true"], who=who)
            done = subprocess.run(command, capture_output=True, text=True, env={"PATH": _path()}, check=False)
            if done.returncode == 0:
                _nobody.append(who)
                return who
            said = " ".join(done.stderr.split())[:300]
    text = f"user namespaces: expected them for setup code, got {said or 'no answer'}"
    raise DesiredStateError(f"{text}; allow them to this user", reason="CannotBuild")


def what_nobody_misses(path: str) -> str:
    """Which programs for setup code are not on a PATH, and what to install; empty when all are there."""
    missing = [name for name in ("bwrap", "prlimit") if shutil.which(name, path=path) is None]
    step = "not installed; apt install bubblewrap util-linux"
    return f"{', '.join(missing)}: expected on the machine that runs setup code, {step}" if missing else ""


def what_is_missing(path: str) -> str:
    """Which programs are not on a PATH, and what to install; empty when all are there."""
    missing = [name for name in ("buildah", "bwrap", "unshare", "prlimit") if shutil.which(name, path=path) is None]
    return f"{', '.join(missing)}: expected on the machine that builds, not installed; {_INSTALL}" if missing else ""


def why_not() -> str:
    """Why this machine cannot build by Dockerfile, and what to do; empty when it can."""
    if missing := what_is_missing(_path()):
        return missing
    if _way_in:
        return ""
    ways: tuple[tuple[str, ...], ...] = ((), _ROOTLESS) if os.geteuid() == 0 else (_ROOTLESS,)
    said = ""
    with tempfile.TemporaryDirectory() as scratch:
        for way in ways:
            bounds = Bounds(memory_bytes=1 << 30, disk_bytes=1 << 30, until=0, seconds=0)
            probe = Enclosure(folder=Path(scratch), bounds=bounds, subject="probe")
            command = [*way, *probe._argv(["true"])]
            done = subprocess.run(command, capture_output=True, text=True, env={"PATH": _path()}, check=False)
            if done.returncode == 0:
                _way_in.append(way)
                return ""
            said = " ".join(done.stderr.split())[:300]
    step = "allow user namespaces and give this user a range in /etc/subuid and /etc/subgid (package uidmap)"
    return f"user namespaces: expected them for builds by Dockerfile, got {said or 'no answer'}; {step}"


def way_in() -> tuple[str, ...]:
    """What to put before a command, so that it is root of the inside.

    Raises:
        DesiredStateError: This machine cannot.
    """
    if why := why_not():
        raise DesiredStateError(why, reason="CannotBuild")
    return _way_in[0]


def _path() -> str:
    return "/usr/bin:/usr/sbin:/bin:/sbin:" + os.environ.get("PATH", "")


def _quoted(lines: Sequence[str]) -> str:
    return f"; it said: {' | '.join(lines)}" if lines else ""


def _end(process: subprocess.Popen[bytes]) -> None:
    """End all of it: the wall is the first of its processes, and none outlives it."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _free(folder: Path) -> int:
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def _is_full(folder: Path) -> bool:
    return _free(folder) < 64 << 20


def _memory_below(pid: int) -> int:
    """Bytes of memory that a process and all below it have for themselves; what several share is left out."""
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            with contextlib.suppress(OSError, ValueError, IndexError):
                parents[int(entry)] = int(Path("/proc", entry, "stat").read_bytes().rpartition(b")")[2].split()[1])
    below, grown = {pid}, True
    while grown:
        more = {child for child, parent in parents.items() if parent in below} - below
        below, grown = below | more, bool(more)
    total = 0
    for one in below:
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = Path("/proc", str(one), "statm").read_bytes().split()
            total += int(fields[1]) - int(fields[2])
    return total * os.sysconf("SC_PAGESIZE")
