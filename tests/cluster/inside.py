"""The first process in a node's namespaces: mounts, network, then every part of the node in its order.

It is process 1 of a process namespace, so when it ends, for whatever reason, the kernel ends everything that the node ever
started, and its mounts and network go with it. Never cleans up anything itself.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from tests.cluster import parts, store

# What kubelet insists on, which would otherwise change the whole machine: the same figures, seen only in here.
TUNABLES = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
START_SECONDS = 90


class Node:
    """The parts of one node, running.

    Args:
        facts: Which node.
    """

    def __init__(self, facts: parts.Facts) -> None:
        self.facts = facts
        self.state = facts.state
        self.started = time.monotonic()
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.token = ""

    def boot(self) -> None:
        """Start everything, and wait until pods can run."""
        parts.write_settings(self.facts)
        kubeconfig = json.loads((self.state / "kubeconfigs/admin").read_text())
        self.token = kubeconfig["users"][0]["user"]["token"]
        self.say("settings written")
        for name in ("etcd", "apiserver", "containerd", "registry", "servers"):
            self.start(name)
        self._fill_containerd()
        self._fill_registry()
        self.wait_for_api()
        self.say("API server ready")
        for path, document in parts.name_server_rights():
            self.ask(path, document)
        for name in ("controller-manager", "scheduler", "kubelet", "proxy", "dns"):
            self.start(name)
        self.wait("kubelet", self._is_ready)
        self.say("node ready")
        self.wait("controller-manager", lambda: self.ask("/api/v1/namespaces/default/serviceaccounts/default") is not None)
        self.wait("dns", lambda: _resolves("kubernetes.default.svc.cluster.local"))
        self.say("everything ready")

    def start(self, name: str) -> None:
        """Start one part, unless it runs."""
        if name in self.running:
            return
        with (self.state / f"logs/{name}.log").open("ab") as log:
            command = parts.commands(self.facts)[name]
            own = {**os.environ, "HOME": str(self.state / "home"), "GIT_PASSWORD": self.facts.git_password}
            nothing = subprocess.DEVNULL
            self.running[name] = subprocess.Popen(command, stdin=nothing, stdout=log, stderr=log, env=own, cwd=self.state)

    def stop(self, name: str) -> None:
        """End one part at once, if it runs: like a machine that fails, and because the API server takes 10 s to end in peace."""
        process = self.running.pop(name, None)
        if process:
            process.kill()
            process.wait()

    def wait(self, name: str, holds: Callable[[], bool]) -> None:
        """Wait for a part to be ready.

        Raises:
            RuntimeError: It is not in time, or a part ended; with the last lines of its log.
        """
        end = time.monotonic() + START_SECONDS
        while not holds():
            for other, process in self.running.items():
                if process.poll() is not None:
                    raise RuntimeError(f"{other}: ended with {process.returncode}\n{self._last_lines(other)}")
            if time.monotonic() > end:
                raise RuntimeError(f"{name}: expected it to be ready in {START_SECONDS} s, got nothing\n{self._last_lines(name)}")
            time.sleep(0.05)

    def wait_for_api(self) -> None:
        """Wait until the API server answers."""
        self.wait("apiserver", lambda: self.ask("/readyz?verbose=0", raw=True) is not None)

    def ask(self, path: str, document: object = None, *, raw: bool = False) -> object:
        """What the API server says, or nothing while it says no."""
        trust = ssl.create_default_context(cafile=f"{self.state}/pki/ca.crt")
        fields = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        data = json.dumps(document).encode() if document is not None else None
        try:
            request = urllib.request.Request(parts.API + path, data, fields)
            with urllib.request.urlopen(request, context=trust, timeout=5) as answer:
                return answer.read() if raw else json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return None
        except OSError:
            return None

    def obey(self) -> None:
        """Do what is asked on the control socket, for ever: a line `start apiserver` or `stop apiserver`, answered by `done`."""
        with socket.socket(socket.AF_UNIX) as control:
            control.bind(str(self.state / "control"))
            control.listen()
            control.settimeout(1)
            while True:
                for name in [name for name, process in self.running.items() if process.poll() is not None]:
                    self.say(f"{name} ended with {self.running.pop(name).returncode}")
                try:
                    caller, _ = control.accept()
                except TimeoutError:
                    continue
                with caller:
                    caller.sendall(self._obey_one(caller.recv(1000).decode()).encode())

    def say(self, text: str) -> None:
        """Note an event of this node's life, with the seconds since its start."""
        print(f"{time.monotonic() - self.started:6.1f} s  {text}", flush=True)

    def _obey_one(self, order: str) -> str:
        verb, _, name = order.strip().partition(" ")
        self.say(order)
        if verb == "stop" and name in parts.commands(self.facts):
            self.stop(name)
        elif verb == "start" and name in parts.commands(self.facts):
            self.start(name)
            if name == "apiserver":
                try:
                    self.wait_for_api()
                except RuntimeError as error:
                    return str(error)
        else:
            return f"{order}: expected start or stop and one of {', '.join(parts.commands(self.facts))}"
        return "done"

    def _fill_containerd(self) -> None:
        ctr = ["ctr", "-a", f"{self.state}/containerd.sock", "-n", "k8s.io"]
        self.wait("containerd", lambda: subprocess.run([*ctr, "version"], capture_output=True, check=False).returncode == 0)
        subprocess.run([*ctr, "images", "import", f"{self.state}/conf/pause.tar"], stdout=subprocess.DEVNULL, check=True)

    def _fill_registry(self) -> None:
        self.wait("registry", lambda: _listens(5000))
        repository = f"{parts.REGISTRY}/base/python"
        store.push(self.facts.base, repository, user=parts.USER, password=self.facts.registry_password, tag="latest")
        self.wait("servers", lambda: _listens(8000) and _listens(8001))

    def _is_ready(self) -> bool:
        said = self.ask(f"/api/v1/nodes/{parts.NODE}")
        if not isinstance(said, dict) or said["spec"].get("taints"):
            return False
        return any(item["type"] == "Ready" and item["status"] == "True" for item in said["status"].get("conditions", ()))

    def _last_lines(self, name: str) -> str:
        return "\n".join((self.state / f"logs/{name}.log").read_text(errors="replace").splitlines()[-15:])


def _listens(port: int) -> bool:
    try:
        socket.create_connection((parts.ADDRESS, port), timeout=1).close()
    except OSError:
        return False
    return True


def _resolves(name: str) -> bool:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    question = struct.pack(">6H", 1, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">2H", 1, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.settimeout(0.3)
        try:
            asking.sendto(question, (parts.ADDRESS, 53))
            answer = asking.recv(512)
        except OSError:
            return False
    # No error, and at least one answer.
    return answer[3] & 15 == 0 and answer[7] > 0


def make_view(state: Path) -> None:
    """Give this mount namespace its own `/run`, `/var/lib` and `/var/log`, so that nothing of the node lands in the machine's."""
    _mount("--make-rshared", "/")
    for at, (name, value) in enumerate(TUNABLES.items()):
        place = Path("/proc/sys") / name
        if place.exists():
            fake = state / "tunables" / str(at)
            fake.parent.mkdir(exist_ok=True)
            fake.write_text(value + "\n")
            _mount("--bind", str(fake), str(place))
    # Without this, a look-up by one of the parts would wait for a name server that no packet reaches.
    names = state / "resolv.conf"
    names.write_text(f"nameserver {parts.ADDRESS}\noptions timeout:1 attempts:1\n")
    if Path("/etc/resolv.conf").exists():
        _mount("--bind", str(names), "/etc/resolv.conf")
    _mount("-t", "tmpfs", "tmpfs", "/run")
    for name in ("upper", "work"):
        Path("/run/var-lib", name).mkdir(parents=True)
    # Over the machine's own, which stays readable: somebody may keep their tools there.
    options = "lowerdir=/var/lib,upperdir=/run/var-lib/upper,workdir=/run/var-lib/work"
    _mount("-t", "overlay", "overlay", "-o", options, "/var/lib")
    (state / "var-log").mkdir(exist_ok=True)
    _mount("--bind", str(state / "var-log"), "/var/log")


def make_network() -> None:
    """Lay the node's network: loopback, and an address that is not, as kubelet demands, on a device that leads nowhere."""
    for line in (
        "link set lo up",
        "link add node0 type veth peer name node0p",
        f"addr add {parts.ADDRESS}/32 dev node0",
        "link set node0 up",
        "link set node0p up",
        # kube-proxy and kubelet look for a default route; nobody answers behind it.
        "route add default dev node0",
    ):
        subprocess.run(["ip", *line.split()], check=True)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def _live(state: Path, teller: int) -> None:
    node = Node(parts.read_facts(state))
    try:
        node.boot()
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        _tell(teller, str(error))
        raise
    (state / "ready").touch()
    _tell(teller, "ready")
    node.obey()


def _tell(teller: int, text: str) -> None:
    # The zero byte is the end: others hold the pipe open.
    os.write(teller, text.encode() + b"\0")
    os.close(teller)


def main(state: Path, teller: int) -> None:
    """Be process 1: start the node in a child, then do what is left to process 1, which is to reap.

    Args:
        state: The node's folder.
        teller: Descriptor of a pipe, which gets `ready` or what went wrong.
    """
    try:
        make_view(state)
        make_network()
    except (OSError, subprocess.CalledProcessError) as error:
        _tell(teller, str(error))
        raise
    child = os.fork()
    if child == 0:
        _live(state, teller)
        return
    os.close(teller)
    while True:
        ended, status = os.waitpid(-1, 0)
        if ended == child:
            raise SystemExit(os.waitstatus_to_exitcode(status) & 255)


if __name__ == "__main__":  # python -m tests.cluster.inside STATE DESCRIPTOR
    main(Path(sys.argv[1]), int(sys.argv[2]))
