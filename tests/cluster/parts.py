"""What a node is made of: each program's command line and settings.

Never starts anything.
"""

from __future__ import annotations

import hashlib
import io
import json
import secrets
import subprocess
import sys
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

from tests.cluster import store

ADDRESS, PODS, SERVICES = "10.90.0.1", "10.91.0.0/24", "10.92.0.0/16"
FIRST_SERVICE = "10.92.0.1"
NODE = "node1"
API = f"https://{ADDRESS}:6443"
REGISTRY = f"{ADDRESS}:5000"
USER = "myelin"
"""Who has access to the registry and to Git."""
ROOT = Path(__file__).resolve().parents[2]
NAMES_ACCOUNT = "system:names"
"""Who the name server is for the API."""
QUIET = [f"system:kube-{name}" for name in ("proxy", "scheduler", "controller-manager")]
QUIET += [f"system:node:{NODE}", "system:apiserver", NAMES_ACCOUNT]
"""Whose calls are no news."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What everybody must know of one node; `node.json` in its state folder."""

    state: Path
    """Everything of the node is below it."""
    programs: Path
    """Folder with the programs from Go modules."""
    base: Path
    """OCI layout of the base image."""
    wheels: Path
    """Folder of wheels."""
    base_digest: str
    registry_password: str = field(repr=False)
    git_password: str = field(repr=False)
    temporary: bool = False
    """Whether the folder goes when the node goes."""

    @property
    def name(self) -> str:
        """What the control groups of this node are called."""
        return "myelin-" + hashlib.sha256(str(self.state).encode()).hexdigest()[:8]

    def write(self) -> None:
        """Leave the facts in the state folder."""
        said = {name: getattr(self, name) for name in self.__slots__ if name != "state"}
        (self.state / "node.json").write_text(json.dumps({key: v if isinstance(v, bool) else str(v) for key, v in said.items()}))


def read_facts(state: Path) -> Facts:
    """The facts of the node in this folder.

    Raises:
        FileNotFoundError: There is none.
    """
    said = json.loads((state / "node.json").read_text())
    programs, base, wheels = (Path(said.pop(key)) for key in ("programs", "base", "wheels"))
    return Facts(state=state, programs=programs, base=base, wheels=wheels, **said)


def write_settings(facts: Facts) -> None:
    """Write every file that the programs read."""
    conf = facts.state / "conf"
    for name in ("conf", "pki", "logs", "git", "cni", f"certs.d/{REGISTRY}", "home", "docker", "volumes", "kubeconfigs"):
        (facts.state / name).mkdir(parents=True, exist_ok=True)
    _write_keys(facts.state / "pki")
    _write_accounts(facts)
    host = f'server = "http://{REGISTRY}"\n[host."http://{REGISTRY}"]\n  capabilities = ["pull", "resolve"]\n'
    (facts.state / f"certs.d/{REGISTRY}/hosts.toml").write_text(host)
    (facts.state / "cni/10.conflist").write_text(json.dumps(_network(facts.state)))
    (conf / "containerd.toml").write_text(_containerd(facts.state))
    (conf / "kubelet.json").write_text(json.dumps(_kubelet(facts)))
    (conf / "proxy.json").write_text(json.dumps(_proxy(facts.state)))
    (conf / "audit.json").write_text(json.dumps(_audit()))
    (conf / "Corefile").write_text(_names(facts.state))
    (conf / "registry.json").write_text(json.dumps(_registry(facts.state)))
    (conf / "htpasswd").write_text(f"{USER}:{store.hashed(facts.registry_password)}\n")
    _write_pause(conf / "pause.tar")


def commands(facts: Facts) -> dict[str, list[str]]:
    """The command line of each part, by its name."""
    state, programs, pki = facts.state, facts.programs, facts.state / "pki"
    return {
        "etcd": ["etcd", f"--data-dir={state}/etcd", "--unsafe-no-fsync=true", "--log-level=warn"],
        "registry": ["docker-registry", "serve", f"{state}/conf/registry.json"],
        "servers": [sys.executable, "-m", "tests.cluster.servers", ADDRESS, str(facts.wheels), f"{state}/git", USER],
        "containerd": ["containerd", f"--config={state}/conf/containerd.toml"],
        "apiserver": [
            f"{programs}/kube-apiserver",
            "--etcd-servers=http://127.0.0.1:2379",
            *(f"--bind-address={ADDRESS}", f"--advertise-address={ADDRESS}", "--secure-port=6443"),
            *(f"--tls-cert-file={pki}/server.crt", f"--tls-private-key-file={pki}/server.key"),
            *(f"--client-ca-file={pki}/ca.crt", f"--token-auth-file={pki}/tokens.csv"),
            # No front proxy exists; without these, others wait for them and say so every few seconds.
            *(f"--requestheader-client-ca-file={pki}/ca.crt", "--requestheader-allowed-names=front-proxy"),
            "--requestheader-username-headers=X-Remote-User",
            *("--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction"),
            *(f"--service-account-key-file={pki}/accounts.pub", f"--service-account-signing-key-file={pki}/accounts.key"),
            *("--service-account-issuer=https://kubernetes.default.svc", f"--service-cluster-ip-range={SERVICES}"),
            *(f"--kubelet-client-certificate={pki}/client.crt", f"--kubelet-client-key={pki}/client.key"),
            # By name would need the node's name in DNS.
            "--kubelet-preferred-address-types=InternalIP",
            # What refuses privileged pods must be Pod Security admission.
            "--allow-privileged=true",
            *(f"--audit-policy-file={state}/conf/audit.json", f"--audit-log-path={state}/logs/audit.jsonl"),
        ],
        "controller-manager": [
            f"{programs}/kube-controller-manager",
            *_as_account(state, "controller-manager"),
            *(f"--service-account-private-key-file={pki}/accounts.key", f"--root-ca-file={pki}/ca.crt"),
            "--use-service-account-credentials=true",
            f"--flex-volume-plugin-dir={state}/kubelet-plugins",
            # There is no other node to move pods to: one that was cut off for a while shall just go on.
            "--node-monitor-grace-period=5m",
            *("--kube-api-qps=200", "--kube-api-burst=400"),
        ],
        "scheduler": [f"{programs}/kube-scheduler", *_as_account(state, "scheduler"), "--kube-api-qps=200"],
        "kubelet": [
            f"{programs}/kubelet",
            *(f"--config={state}/conf/kubelet.json", f"--kubeconfig={state}/kubeconfigs/kubelet"),
            *(f"--root-dir={state}/kubelet", f"--cert-dir={state}/pki/kubelet"),
            *(f"--hostname-override={NODE}", f"--node-ip={ADDRESS}"),
        ],
        "proxy": [f"{programs}/kube-proxy", f"--config={state}/conf/proxy.json", f"--hostname-override={NODE}"],
        "dns": [f"{programs}/dns", f"-conf={state}/conf/Corefile"],
    }


def name_server_rights() -> list[tuple[str, dict[str, object]]]:
    """What the name server may see: path and document of each object to create."""
    group, version = "rbac.authorization.k8s.io", "rbac.authorization.k8s.io/v1"
    reads = ["list", "watch"]
    rules = [
        {"apiGroups": [""], "resources": ["services", "namespaces", "endpoints"], "verbs": reads},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": reads},
    ]
    named = {"apiVersion": version, "metadata": {"name": NAMES_ACCOUNT}}
    who = [{"apiGroup": group, "kind": "User", "name": NAMES_ACCOUNT}]
    role = {"apiGroup": group, "kind": "ClusterRole", "name": NAMES_ACCOUNT}
    return [
        (f"/apis/{version}/clusterroles", {**named, "kind": "ClusterRole", "rules": rules}),
        (f"/apis/{version}/clusterrolebindings", {**named, "kind": "ClusterRoleBinding", "subjects": who, "roleRef": role}),
    ]


def kubeconfig(state: Path, token: str, namespace: str = "default") -> str:
    """A kubeconfig that authenticates by a token."""
    cluster = {"server": API, "certificate-authority": f"{state}/pki/ca.crt"}
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "node",
            "clusters": [{"name": "node", "cluster": cluster}],
            "users": [{"name": "user", "user": {"token": token}}],
            "contexts": [{"name": "node", "context": {"cluster": "node", "user": "user", "namespace": namespace}}],
        }
    )


def _as_account(state: Path, name: str) -> list[str]:
    path = f"{state}/kubeconfigs/{name}"
    files = [f"--{which}={path}" for which in ("kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig")]
    return [*files, "--leader-elect=false", "--bind-address=127.0.0.1"]


def _write_accounts(facts: Facts) -> None:
    # Each program has its own account, so that Kubernetes' own roles are what it lives on.
    accounts = {
        "admin": ("admin", "system:masters"),
        "kubelet": (f"system:node:{NODE}", "system:nodes"),
        "controller-manager": ("system:kube-controller-manager", ""),
        "scheduler": ("system:kube-scheduler", ""),
        "proxy": ("system:kube-proxy", ""),
        "dns": (NAMES_ACCOUNT, ""),
    }
    rows = []
    for name, (user, group) in accounts.items():
        token = secrets.token_hex(16)
        rows.append(f"{token},{user},{name}" + (f',"{group}"' if group else ""))
        (facts.state / "kubeconfigs" / name).write_text(kubeconfig(facts.state, token))
    (facts.state / "pki/tokens.csv").write_text("\n".join(rows) + "\n")
    secret = {"auths": {REGISTRY: {"username": USER, "password": facts.registry_password}}}
    (facts.state / "docker/config.json").write_text(json.dumps(secret))


def _write_keys(pki: Path) -> None:
    # A configuration of our own: the system's would make every certificate an authority.
    (pki / "openssl.cnf").write_text("[req]\ndistinguished_name = name\n[name]\n")
    new = ["openssl", "req", "-x509", "-config", str(pki / "openssl.cnf"), "-days", "30", "-noenc"]
    new += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    leaf = ["basicConstraints=critical,CA:FALSE", "authorityKeyIdentifier=keyid"]
    names = ",".join(f"DNS:kubernetes{end}" for end in ("", ".default", ".default.svc", ".default.svc.cluster.local"))
    server = f"subjectAltName={names},IP:{ADDRESS},IP:{FIRST_SERVICE},IP:127.0.0.1"
    for name, subject, facts in (
        ("ca", "/CN=node-ca", ["basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign"]),
        ("server", "/CN=kube-apiserver", [*leaf, "extendedKeyUsage=serverAuth", server]),
        ("client", "/O=system:masters/CN=kube-apiserver-kubelet-client", [*leaf, "extendedKeyUsage=clientAuth"]),
    ):
        signer = [] if name == "ca" else ["-CA", f"{pki}/ca.crt", "-CAkey", f"{pki}/ca.key"]
        extensions = [word for fact in ("subjectKeyIdentifier=hash", *facts) for word in ("-addext", fact)]
        _run(*new, *signer, "-subj", subject, *extensions, "-keyout", f"{pki}/{name}.key", "-out", f"{pki}/{name}.crt")
    _run("openssl", "ecparam", "-genkey", "-noout", "-name", "prime256v1", "-out", f"{pki}/accounts.key")
    _run("openssl", "ec", "-in", f"{pki}/accounts.key", "-pubout", "-out", f"{pki}/accounts.pub")


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:3])}: {done.stderr.strip()}")


def _network(state: Path) -> dict[str, object]:
    # ptp, not bridge: what goes from pod to pod by a service's address must pass the node's own routing to be translated back.
    ranges = {"type": "host-local", "ranges": [[{"subnet": PODS}]], "routes": [{"dst": "0.0.0.0/0"}], "dataDir": f"{state}/ipam"}
    plugins = [{"type": "ptp", "ipMasq": False, "ipam": ranges}, {"type": "portmap", "capabilities": {"portMappings": True}}]
    return {"cniVersion": "1.0.0", "name": "pods", "plugins": plugins}


def _containerd(state: Path) -> str:
    cri = 'plugins."io.containerd.grpc.v1.cri"'
    return f"""version = 2
root = "{state}/containerd"
[grpc]
  address = "{state}/containerd.sock"
[{cri}]
  sandbox_image = "localhost/pause:1"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [{cri}.cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{state}/cni"
  [{cri}.registry]
    config_path = "{state}/certs.d"
"""


def _kubelet(facts: Facts) -> dict[str, object]:
    state = facts.state
    authorities = {"clientCAFile": f"{state}/pki/ca.crt"}
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": ADDRESS,
        "authentication": {"anonymous": {"enabled": False}, "webhook": {"enabled": True}, "x509": authorities},
        "authorization": {"mode": "Webhook"},
        "readOnlyPort": 0,
        "healthzBindAddress": "127.0.0.1",
        "containerRuntimeEndpoint": f"unix://{state}/containerd.sock",
        "cgroupDriver": "cgroupfs",
        # Below a group of this node's own, which is removed with it.
        "cgroupRoot": f"/{facts.name}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "enforceNodeAllocatable": [],
        "volumePluginDir": f"{state}/kubelet-plugins",
        "resolvConf": "",
        "clusterDomain": "cluster.local",
        "clusterDNS": [ADDRESS],
        # A machine's disk may be 90 % full for reasons that are not ours.
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
        "serializeImagePulls": False,
        "registryPullQPS": 0,
        "eventRecordQPS": 0,
    }


def _proxy(state: Path) -> dict[str, object]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "clientConnection": {"kubeconfig": f"{state}/kubeconfigs/proxy"},
        "bindAddress": ADDRESS,
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        "clusterCIDR": PODS,
        # Zero: leave the kernel's own figures, which are the whole machine's.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    }


def _audit() -> dict[str, object]:
    # Who asks for what, except the node's own programs: what the figures on idle calls are read from.
    quiet = [{"level": "None", "users": QUIET}, {"level": "None", "userGroups": ["system:serviceaccounts:kube-system"]}]
    rules = [*quiet, {"level": "Metadata", "omitStages": ["RequestReceived"]}]
    return {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": rules}


def _names(state: Path) -> str:
    return f""".:53 {{
  bind {ADDRESS}
  errors
  kubernetes cluster.local in-addr.arpa {{
    kubeconfig {state}/kubeconfigs/dns node
    ttl 1
  }}
  template ANY ANY . {{
    rcode NXDOMAIN
  }}
}}
"""


def _registry(state: Path) -> dict[str, object]:
    return {
        "version": "0.1",
        "log": {"level": "warn"},
        "storage": {"filesystem": {"rootdirectory": f"{state}/registry"}, "delete": {"enabled": True}},
        "auth": {"htpasswd": {"realm": "node", "path": f"{state}/conf/htpasswd"}},
        "http": {"addr": REGISTRY, "secret": secrets.token_hex(16)},
    }


def _write_pause(path: Path) -> None:
    """The sandbox image, from busybox-static: a docker archive with one layer."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        _add(tar, "bin/busybox", Path("/bin/busybox").read_bytes())
        link = tarfile.TarInfo("bin/sleep")
        link.type, link.linkname = tarfile.SYMTYPE, "busybox"
        tar.addfile(link)
    blob = layer.getvalue()
    config = {
        "architecture": _run_for("dpkg", "--print-architecture"),
        "os": "linux",
        "config": {"Entrypoint": ["/bin/sleep", "2147483647"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(blob).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": ["localhost/pause:1"], "Layers": ["layer.tar"]}]
    with tarfile.open(path, "w") as tar:
        _add(tar, "layer.tar", blob)
        _add(tar, "config.json", json.dumps(config).encode())
        _add(tar, "manifest.json", json.dumps(manifest).encode())


def _run_for(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.mode, entry.size = 0o755, len(data)
    tar.addfile(entry, io.BytesIO(data))
