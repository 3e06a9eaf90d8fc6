"""What a machine must have for a node to run on it, in words for a person.

Never installs anything.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.cluster import base_image, binaries, golang

PACKAGES = {
    "etcd": "etcd-server",
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "ip": "iproute2",
    "docker-registry": "docker-registry",
    "openssl": "openssl",
    "git": "git",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "mmdebstrap": "mmdebstrap",
    "dpkg": "dpkg",
}
"""Each program and Debian's package of it."""
PLUGINS = Path("/usr/lib/cni")
BUSYBOX = Path("/bin/busybox")
# What a node does first; an unprivileged container's root may not.
PROBE = "ip link add x0 type veth peer name x1 && mount -t tmpfs none /run && mount -t overlay none -o lowerdir=/usr:/etc /mnt"


def search_path() -> str:
    """Where programs are looked for: also in the administrator's folders, which `su` may leave out."""
    return f"{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/sbin:/sbin"


def missing() -> list[str]:
    """What is missing here for a node, one line each; nothing: a node can run."""
    if os.name != "posix" or os.uname().sysname != "Linux":
        return ["Linux"]
    found = [*_missing_programs(), *_missing_go()]
    if os.geteuid() != 0:
        return ["root (a node makes network namespaces and runs containers)", *found]
    return found or _missing_rights()


def _missing_programs() -> list[str]:
    lacking = {package for program, package in PACKAGES.items() if not shutil.which(program, path=search_path())}
    if not all((PLUGINS / name).exists() for name in ("ptp", "host-local", "portmap", "loopback")):
        lacking.add("containernetworking-plugins")
    if not BUSYBOX.exists() or b"/ld-linux" in BUSYBOX.read_bytes():
        lacking.add("busybox-static")
    return [f"Debian's package {name}" for name in sorted(lacking)]


def _missing_go() -> list[str]:
    if binaries.given() or binaries.are_built():
        return []
    why = golang.missing(binaries.OLDEST_GO, "Kubernetes", f"MYELIN_CLUSTER_BIN, a folder with {', '.join(binaries.NAMES)}")
    return [why] if why else []


def _missing_rights() -> list[str]:
    command = ["unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "sh", "-c", PROBE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return [f"the right to make namespaces, network devices and mounts ({done.stderr.strip() or 'refused'})"]
    if not os.access("/sys/fs/cgroup", os.W_OK):
        return ["control groups that may be written (/sys/fs/cgroup)"]
    try:
        if not base_image.is_made():
            base_image.sources()
    except (OSError, subprocess.CalledProcessError) as error:
        return [f"apt sources of this machine's own release of Debian ({error})"]
    return []
