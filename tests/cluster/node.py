"""A real one-node Kubernetes, in namespaces of its own: as a context manager, and from the command line.

    python -m tests.cluster.node up --state DIR            start everything; about 10 s
    python -m tests.cluster.node exec --state DIR -- CMD   run a command in the node's network, with KUBECONFIG set
    python -m tests.cluster.node down --state DIR          end everything

Never leaves anything outside of its state folder and the user's cache folder, see `guard.py`.
"""

from __future__ import annotations

import argparse
import base64
import ctypes
import json
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Self

from tests.cluster import base_image, binaries, cache, guard, needs, parts, wheels

CLONE_NEWNET = 0x40000000
# Unix sockets below the state folder must stay below 108 bytes; kubelet's are the longest.
LONGEST_STATE = 50
NOT_BELOW = ("/run", "/var/run", "/var/lib", "/var/log", "/proc", "/sys")
missing = needs.missing


class CommandError(RuntimeError):
    """A command in the node's network failed; the message is what it said."""


class Node:
    """A node: `with Node() as node:` starts one and ends it, `Node.at(state)` is one that runs.

    It also ends when the process that started it does, however that dies.

    Args:
        state: Folder for everything of the node; it must be new, empty, or of an earlier node. Default: a temporary one.
    """

    address = parts.ADDRESS
    """Where pods and those who entered reach what the node serves."""
    registry = parts.REGISTRY
    registry_user = parts.USER
    git_user = parts.USER
    wheels_url = f"http://{parts.ADDRESS}:8000/"
    """For `PIP_FIND_LINKS`; see `pip_environment`."""

    def __init__(self, state: Path | None = None) -> None:
        self.state = state.resolve() if state else Path(tempfile.gettempdir(), f"myelin-node-{secrets.token_hex(4)}").resolve()
        self._temporary = state is None
        self._facts: parts.Facts | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    @classmethod
    def at(cls, state: Path) -> Node:
        """The node that runs in this folder.

        Raises:
            RuntimeError: None does.
        """
        node = cls(state)
        if guard.read_guard(node.state) is None or not (node.state / "ready").exists():
            raise RuntimeError(f"{node.state}: expected a running node, got none; `up` starts one")
        node._facts = parts.read_facts(node.state)
        return node

    def __enter__(self) -> Self:
        """Start."""
        self.up(owner=os.getpid())
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self.down()

    def up(self, *, owner: int = 0) -> None:
        """Start everything, and wait until pods can run.

        Args:
            owner: Process that the node must not outlive; 0: none.
        Raises:
            RuntimeError: Something is missing, a node runs in this folder, or a part of it does not come up.
        """
        lacking = missing()
        if lacking:
            raise RuntimeError(f"a node needs: {'; '.join(lacking)}")
        self._claim_folder()
        layout = base_image.folder()
        facts = parts.Facts(
            state=self.state,
            programs=binaries.folder(),
            base=layout,
            wheels=wheels.folder(),
            base_digest=base_image.manifest_digest(layout),
            registry_password=secrets.token_hex(12),
            git_password=secrets.token_hex(12),
            temporary=self._temporary,
        )
        facts.write()
        (self.state / "logs").mkdir(exist_ok=True)
        listener, teller = os.pipe()
        command = [sys.executable, "-m", "tests.cluster.guard", str(self.state), str(owner), str(teller)]
        python = {"PYTHONPATH": str(parts.ROOT), "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        environment = {**os.environ, **python, "PATH": needs.search_path()}
        try:
            with (self.state / "logs/node.log").open("wb") as log:
                self._guard = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=environment,
                    pass_fds=(teller,),
                    start_new_session=True,
                    cwd="/",
                )
            os.close(teller)
            with os.fdopen(listener, "rb", buffering=0) as pipe:
                said = _read_word(pipe)
        except BaseException:
            self.down()
            raise
        if said != "ready":
            self.down()
            raise RuntimeError(f"the node did not start: {said or f'no word of why; see {self.state}/logs/node.log'}")
        self._facts = facts

    def down(self) -> None:
        """End everything that `up` started, at once; also what an earlier, killed node left in the folder."""
        living = guard.read_guard(self.state)
        number = self._guard.pid if self._guard and self._guard.poll() is None else living[0] if living else 0
        if number:
            process = os.pidfd_open(number)
            try:
                signal.pidfd_send_signal(process, signal.SIGTERM)
                ended, _, _ = select.select([process], [], [], 60)
            finally:
                os.close(process)
            if not ended:
                raise RuntimeError(f"process {number}: expected it to end the node within 60 s, got nothing")
        if self._guard:
            self._guard.wait()
            self._guard = None
        if (self.state / "node.json").exists():
            guard.sweep(parts.read_facts(self.state))
        self._facts = None

    @property
    def facts(self) -> parts.Facts:
        """What is known of the running node."""
        if self._facts is None:
            raise RuntimeError(f"{self.state}: expected a running node, got none; call up() first")
        return self._facts

    @property
    def kubeconfig(self) -> Path:
        """The admin's kubeconfig."""
        return self.state / "kubeconfigs/admin"

    @property
    def base(self) -> str:
        """The base image by digest."""
        return f"{self.registry}/base/python@{self.facts.base_digest}"

    @property
    def registry_password(self) -> str:
        """Password of `registry_user`."""
        return self.facts.registry_password

    @property
    def git_password(self) -> str:
        """Password of `git_user`."""
        return self.facts.git_password

    @property
    def pip_environment(self) -> dict[str, str]:
        """What makes pip take wheels from the node, and from nowhere else."""
        return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": self.wheels_url, "PIP_TRUSTED_HOST": self.address}

    @property
    def registry_login(self) -> str:
        """Content of a `kubernetes.io/dockerconfigjson` Secret for the registry, not encoded."""
        both = base64.b64encode(f"{self.registry_user}:{self.registry_password}".encode()).decode()
        entry = {"username": self.registry_user, "password": self.registry_password, "auth": both}
        return json.dumps({"auths": {self.registry: entry}})

    def git_url(self, name: str) -> str:
        """Where pods clone a repository from, without credentials."""
        return f"http://{self.address}:8001/{name}.git"

    def new_bare(self, name: str) -> Path:
        """Make an empty bare repository with branch `main`; it is served at `git_url(name)`."""
        place = self.state / f"git/{name}.git"
        subprocess.run(["git", "init", "--quiet", "--bare", "--initial-branch=main", str(place)], check=True)
        return place

    def run(
        self, *command: str, input: str | None = None, check: bool = True, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of this machine in the node's network, with KUBECONFIG set and the node's programs in PATH.

        Raises:
            CommandError: It failed, and `check`.
        """
        environment = {**self.environment, **(env or {})}
        done = subprocess.run(self.inside(*command), input=input, capture_output=True, text=True, env=environment, check=False)
        if check and done.returncode:
            said = done.stderr.strip() or done.stdout.strip()
            raise CommandError(f"{' '.join(command)}: ended with {done.returncode}: {said}")
        return done

    def inside(self, *command: str) -> list[str]:
        """The command line that runs a command in the node's network."""
        return ["nsenter", f"--net={self._network}", "--", *command]

    @property
    def environment(self) -> dict[str, str]:
        """Environment for commands in the node's network: the node's programs, its admin, its registry's credentials."""
        return {
            **os.environ,
            "PATH": f"{self.facts.programs}:{needs.search_path()}",
            "KUBECONFIG": str(self.kubeconfig),
            # By default what one node's API offers is kept for all nodes at this address.
            "KUBECACHEDIR": str(self.state / "home/kube"),
            "DOCKER_CONFIG": str(self.state / "docker"),
            "HELM_CACHE_HOME": str(self.state / "home/helm/cache"),
            "HELM_CONFIG_HOME": str(self.state / "home/helm/config"),
            "HELM_DATA_HOME": str(self.state / "home/helm/data"),
            "MYELIN_NODE_STATE": str(self.state),
        }

    def kubectl(self, *args: str, input: str | None = None, check: bool = True) -> str:
        """What kubectl says, as the admin; with `check` off, what it complains about as well."""
        return self._said("kubectl", *args, input=input, check=check)

    def helm(self, *args: str, input: str | None = None, check: bool = True) -> str:
        """What helm says, as the admin."""
        return self._said("helm", *args, input=input, check=check)

    def cosign(self, *args: str, input: str | None = None, check: bool = True) -> str:
        """What cosign says, with the registry's credentials."""
        return self._said("cosign", *args, input=input, check=check)

    def enter(self) -> int:
        """Move the calling thread, and those that it starts, into the node's network; the answer is for `leave`."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        target = os.open(self._network, os.O_RDONLY)
        try:
            _set_namespace(target)
        finally:
            os.close(target)
        return before

    @staticmethod
    def leave(before: int) -> None:
        """Move the calling thread back to where `enter` found it."""
        _set_namespace(before)
        os.close(before)

    def stop_api_server(self) -> None:
        """End the API server at once; everything else goes on without it."""
        self._order("stop apiserver")

    def start_api_server(self) -> None:
        """Start the API server again, and wait until it answers."""
        self._order("start apiserver")

    def token_kubeconfig(self, service_account: str, namespace: str) -> Path:
        """A kubeconfig with a fresh token of a service account, good for a day."""
        token = self.kubectl("create", "token", service_account, "--namespace", namespace, "--duration=24h").strip()
        place = self.state / f"kubeconfigs/{namespace}-{service_account}"
        place.touch(mode=0o600)
        place.write_text(parts.kubeconfig(self.state, token, namespace))
        return place

    def pull_secret(self, namespace: str, name: str = "registry-pull") -> None:
        """Make a Secret that lets pods of a namespace pull from the node's registry."""
        metadata = {"name": name, "namespace": namespace}
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "kubernetes.io/dockerconfigjson"}
        self.kubectl("apply", "-f", "-", input=json.dumps({**secret, "stringData": {".dockerconfigjson": self.registry_login}}))

    def push(self, layout: Path, path: str, tag: str = "") -> str:
        """Push the only image of an OCI layout to a path in the node's registry; the answer is its reference by digest."""
        command = [sys.executable, "-m", "tests.cluster.store", str(layout), f"{self.registry}/{path}", tag]
        both = f"{self.registry_user}\n{self.registry_password}"
        return self.run(*command, input=both, env={"PYTHONPATH": str(parts.ROOT)}).stdout.strip()

    def claims(self, count: int, *, gibibytes: int = 1, storage_class: str = "") -> None:
        """See to it that this many volumes are free for claims of a storage class.

        A volume is a folder that everybody may write to. Those whose claim was deleted, alone or with its namespace, are
        removed with their content, and new ones made, so call it again after a namespace was deleted.

        Args:
            count: Volumes that are free after the call. At least 0.
            gibibytes: Size that new ones claim to have.
            storage_class: What claims must name as `storageClassName`; the default is the empty one, not one left out.
        """
        listed = json.loads(self.kubectl("get", "persistentvolumes", "-o", "json"))["items"]
        folders = [item for item in listed if "hostPath" in item["spec"]]
        ours = [item for item in folders if item["spec"].get("storageClassName", "") == storage_class]
        gone = [item for item in ours if item["status"].get("phase") in ("Released", "Failed")]
        if gone:
            self.kubectl("delete", "persistentvolume", *(item["metadata"]["name"] for item in gone))
            for item in gone:
                shutil.rmtree(item["spec"]["hostPath"]["path"], ignore_errors=True)
        free = sum(item["status"].get("phase") in ("Pending", "Available") for item in ours)
        fresh = [self._new_volume(gibibytes, storage_class) for _ in range(count - free)]
        if fresh:
            self.kubectl("create", "-f", "-", input=json.dumps({"apiVersion": "v1", "kind": "List", "items": fresh}))

    def _new_volume(self, gibibytes: int, storage_class: str) -> dict[str, object]:
        name = f"volume-{secrets.token_hex(4)}"
        place = self.state / "volumes" / name
        place.mkdir()
        place.chmod(0o777)
        spec = {
            "capacity": {"storage": f"{gibibytes}Gi"},
            "accessModes": ["ReadWriteOnce", "ReadWriteMany"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": storage_class,
            "hostPath": {"path": str(place)},
        }
        return {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec}

    def _said(self, *command: str, input: str | None, check: bool) -> str:
        done = self.run(*command, input=input, check=check)
        return done.stdout if check else done.stdout + done.stderr

    def _order(self, order: str) -> None:
        with socket.socket(socket.AF_UNIX) as control:
            control.connect(str(self.state / "control"))
            control.sendall(order.encode())
            said = control.recv(10000).decode()
        if said != "done":
            raise CommandError(said or f"{order}: no answer")

    @property
    def _network(self) -> str:
        living = guard.read_guard(self.state)
        if living is None:
            raise RuntimeError(f"{self.state}: expected a running node, got one that ended")
        return f"/proc/{living[1]}/ns/net"

    def _claim_folder(self) -> None:
        """Make the folder ours, or clean what a killed node left in it.

        Raises:
            RuntimeError: It is somebody else's, in use, or in a place where it cannot be.
        """
        if len(str(self.state)) > LONGEST_STATE:
            raise RuntimeError(f"{self.state}: expected a path of at most {LONGEST_STATE} characters (sockets lie below it)")
        if any(self.state.is_relative_to(top) for top in NOT_BELOW):
            raise RuntimeError(
                f"{self.state}: expected a path outside of {', '.join(NOT_BELOW)}: they look different to the node"
            )
        if guard.read_guard(self.state) is not None:
            raise RuntimeError(f"{self.state}: a node runs here already; end it with: python -m tests.cluster.node down")
        if self._temporary:
            guard.sweep_forgotten(self.state.parent)
        if (self.state / "node.json").exists():
            guard.sweep(parts.read_facts(self.state))
        self.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        cache.hold(self.state)
        strangers = [entry.name for entry in self.state.iterdir() if entry.name not in guard.KEPT]
        if strangers:
            raise RuntimeError(f"{self.state}: expected a new folder or that of a node, got one with {strangers[0]}")
        for name in guard.KEPT:
            shutil.rmtree(self.state / name, ignore_errors=True)


def _read_word(pipe: IO[bytes]) -> str:
    """What the node's first process says once, up to its zero byte; nothing if it died before."""
    said = b""
    while not said.endswith(b"\0"):
        more = pipe.read(10000)
        if not more:
            return ""
        said += more
    return said[:-1].decode()


def _set_namespace(opened: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(opened, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns into the node's network")


def main(words: Sequence[str]) -> int:
    """The command line."""
    words = list(words)
    cut = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.node", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("do", choices=("up", "exec", "down"))
    parser.add_argument("--state", type=Path, required=True, help="folder for everything of the node")
    options = parser.parse_args(words[:cut])
    try:
        return _do(options.do, options.state, words[cut + 1 :])
    except (RuntimeError, OSError) as error:
        print(error, file=sys.stderr)
        return 1


def _do(verb: str, state: Path, command: list[str]) -> int:
    if verb == "up":
        node = Node(state)
        node.up()
        print(f"KUBECONFIG={node.kubeconfig}\nenter: python -m tests.cluster.node exec --state {state} -- bash")
    elif verb == "down":
        Node(state).down()
    else:
        node = Node.at(state)
        os.execvpe("nsenter", node.inside(*(command or ["bash"])), node.environment)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
