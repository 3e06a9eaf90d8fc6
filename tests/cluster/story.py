"""The story of the demo on a node: install the chart, apply a Project, push, and see what comes of it. `make cluster-demo`
tells it, and `test_story.py` asks it harder questions.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from controller import project
from controller.adapters.clock import SystemClock
from controller.adapters.git import pull
from controller.adapters.keys import SshKey
from controller.demo import WORSE, ask, classify, feed_back
from controller.keyring import make, shown
from controller.own_image import REQUIREMENTS
from tests.cluster import cache
from tests.cluster.node import CommandError, Node
from tests.cluster.parts import ROOT

SYSTEM, TEAM = "myelin-system", "team-a"
PATIENCE_SECONDS = 600.0
Found = TypeVar("Found")
_CONTROLLERS: dict[Path, str] = {}
"""State folder of a node -> the controller's image in its registry: what this process built it of does not change."""


class Story:
    """One installation and one project on a node.

    Args:
        node: The node.
        folder: Where the person's clone, keys and values lie.
        tell: Takes a line for a person.
    """

    def __init__(
        self,
        node: Node,
        folder: Path,
        *,
        tell: Callable[[str], None] = lambda _: None,
        repository: str = "digits",
        team: str = TEAM,
    ) -> None:
        self.node, self.folder, self.clone, self._tell = node, folder, folder / "digits", tell
        self.repository, self.team = repository, team
        self.place: project.Place | None = None
        self.image = ""
        self.namespaces = [team]

    def build_controller(self) -> str:
        """Build the controller's own image with its builder, push it, and return its reference by digest; once for a node."""
        if self.node.state in _CONTROLLERS:
            self.image = _CONTROLLERS[self.node.state]
            return self.image
        config = self.folder / "docker.json"
        config.write_text(self.node.registry_login)
        # Compiling the lock's wheels takes a minute of a busy machine; what comes of each is named by its digest.
        compiled = cache.keep("bytecode", cache.digest_of(REQUIREMENTS.read_bytes()), lambda place: None)
        (self.folder / "images.build").mkdir()
        (self.folder / "images.build/bytecode").symlink_to(compiled)
        command = [sys.executable, "-m", "controller.own_image", "--base", self.node.base, "--unsafe-plain-http"]
        command += ["--push", f"{self.node.registry}/myelin/controller", "--docker-config", str(config)]
        done = self.node.run(*command, "--layout", str(self.folder / "images"), env=self.node.pip_environment)
        self.image = _CONTROLLERS[self.node.state] = done.stdout.strip()
        return self.image

    def make_project(self, edit: Callable[[str], str] | None = None, *, files: Mapping[str, str | None] | None = None) -> None:
        """A person's clone of a repository that the node serves, and the keys of its controller."""
        self.place = project.make(self.clone, now=SystemClock().now())
        bare = self.node.new_bare(self.repository)
        self._git("push", "--quiet", str(bare), "main")
        self._git("remote", "set-url", "origin", str(bare))
        self.place = project.Place(url=str(bare), state=self.place.state, trust=self.place.trust, work_tree=self.clone)
        make(self.folder / "keys")
        if edit is not None:
            self.push(edit, "Change the example\n")
        if files is not None:
            self.push_files({path: text.encode() if text is not None else None for path, text in files.items()}, "Change it\n")

    def prepare(self) -> None:
        """Namespaces that admit only restricted pods, and their Secrets."""
        for name in (SYSTEM, self.team):
            labels = {"pod-security.kubernetes.io/enforce": "restricted"}
            self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
            self.node.pull_secret(name, "registry")
        keys = {name: (self.folder / "keys" / name).read_text() for name in ("controller", "image.pem")}
        self.secret("myelin-keys", keys)
        self.secret("git-credentials", {"username": self.node.git_user, "password": self.node.git_password})

    def secret(self, name: str, values: Mapping[str, str], namespace: str = "") -> None:
        """Make a Secret."""
        meta = {"name": name, "namespace": namespace or self.team}
        self.apply({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": dict(values)})

    def values(self, **more: Any) -> Path:
        """Values of the chart."""
        repository, _, digest = self.image.partition("@")
        extra = [{"name": name, "value": value} for name, value in self.node.pip_environment.items()]
        value: dict[str, Any] = {
            "image": {"repository": repository, "digest": digest},
            "imagePullSecrets": [{"name": "registry"}],
            "namespaces": self.namespaces,
            "extraEnv": extra,
            "state": {"claim": {"enabled": True, "size": "1Gi", "storageClassName": "manual"}},
            **more,
        }
        place = self.folder / "values.yaml"
        place.write_text(json.dumps(value))
        return place

    def install(self, **more: Any) -> None:
        """Install the chart, or upgrade it."""
        self.node.claims(2, gibibytes=2, storage_class="manual")
        values = self.values(**more)
        chart = str(ROOT / "charts/myelin")
        self.node.helm("upgrade", "--install", "myelin", chart, "--namespace", SYSTEM, "--values", str(values))

    def project_object(self, name: str = "digits", **spec: Any) -> dict[str, Any]:
        """The Project."""
        signer = (self.clone.with_name("digits.myelin") / "signer.pub").read_text().rsplit(" ", 1)[0]
        wanted: dict[str, Any] = {
            "repository": {"url": self.node.git_url(self.repository), "secretName": "git-credentials"},
            "branch": "main",
            "trust": {"signers": [{"name": "you", "ssh": signer.strip()}]},
            "registry": {
                "repository": f"{self.node.registry}/{self.team}/digits",
                "secretName": "registry",
                "pullSecretName": "registry",
                "unsafePlainHttp": True,
            },
            "keys": {"secretName": "myelin-keys"},
            "builder": {"base": self.node.base},
            **spec,
        }
        return {
            "apiVersion": "myelin.io/v1alpha1",
            "kind": "Project",
            "metadata": {"name": name, "namespace": self.team},
            "spec": wanted,
        }

    def apply(self, manifest: Mapping[str, Any]) -> None:
        """`kubectl apply`."""
        self.node.kubectl("apply", "-f", "-", input=json.dumps(manifest))

    def push(self, edit: Callable[[str], str], message: str) -> None:
        """A person changes the axon and pushes."""
        pull(self.clone)
        text = edit((self.clone / "axons/digits/axon.yaml").read_text())
        self.push_files({"axons/digits/axon.yaml": text.encode()}, message)

    def push_files(self, files: Mapping[str, bytes | None], message: str) -> None:
        """A person changes files and pushes."""
        assert self.place is not None
        key = SshKey.load(self.clone.with_name("digits.myelin") / "signer")
        project.push_as(self.place, key, dict(files), message, now=SystemClock().now())

    def push_worse(self) -> None:
        """A person pushes what looks fine in its own validation and is not."""
        self.push(lambda text: text.replace(*WORSE), "Train on fewer digits, it is faster\n")

    def get(self, kind: str, name: str = "", namespace: str = "") -> Any:
        """An object, or all of a kind; None where there is none."""
        try:
            text = self.node.kubectl("get", kind, *([name] if name else []), "-n", namespace or self.team, "-o", "json")
        except CommandError:
            return None
        value = json.loads(text)
        return value["items"] if not name else value

    def condition(self, kind: str, name: str, wanted: str = "Ready") -> dict[str, str]:
        """A condition of an object; empty while it has none."""
        found = self.get(kind, name) or {}
        conditions = found.get("status", {}).get("conditions", ())
        return next((dict(item) for item in conditions if item["type"] == wanted), {})

    def shares(self) -> dict[str, int]:
        """Version -> share, as the cluster shows it."""
        return {
            item["metadata"]["name"]: item["status"]["share"]
            for item in self.get("versions") or ()
            if item.get("status", {}).get("share")
        }

    def services(self) -> dict[str, str]:
        """Name of a Service -> address that this machine reaches."""
        return self.services_in(self.team)

    def services_in(self, namespace: str) -> dict[str, str]:
        """The same, of any namespace."""
        return {
            item["metadata"]["name"]: f"{item['spec']['clusterIP']}:{item['spec']['ports'][0]['port']}"
            for item in self.get("services", namespace=namespace) or ()
        }

    def url(self, version: str = "") -> str:
        """The public URL, or a version's own, as the node's network reaches it without its DNS."""
        found = self.get("versions", version) if version else (self.get("releases") or [None])[0]
        url = str((found or {}).get("status", {}).get("url", ""))
        host = url.removeprefix("http://").partition("/")[0]
        address = self.services().get(host.partition(".")[0], "")
        return url.replace(host, address) if url and address else ""

    def answers(self, version: str = "") -> bool:
        """Whether a URL answers."""
        url = self.url(version)
        try:
            return bool(url) and ask(url + "predict", {"data": {"ndarray": [[0] * 64]}})[0] == 200
        except (OSError, ValueError):
            return False

    def newest(self, besides: str = "") -> str:
        """A version with traffic that answers by its own URL."""
        for version in self.shares():
            if version != besides and self.answers(version):
                return version
        return ""

    def held(self) -> set[str]:
        """Versions on hold."""
        found = self.get("releases") or ()
        return {hold["version"] for item in found for hold in item["spec"].get("holds", ())}

    def samples(self) -> list[dict[str, Any]]:
        """Handwritten digits."""
        return list(json.loads((self.clone / "axons/digits/samples.json").read_bytes()))

    def feed_back(self, version: str) -> int:
        """Send all samples with the truth to a version; returns how many it got right."""
        url = self.url(version)
        return sum(feed_back(url, sample) for sample in self.samples())

    def classify(self, version: str = "", sample: int = 3) -> tuple[str, str]:
        """What a URL says of a sample: digit and version."""
        return classify(self.url(version), self.samples()[sample]["pixels"])

    def controller(self) -> str:
        """Name of the controller's pod; empty while there is none."""
        items = self.get("pods", namespace=SYSTEM) or ()
        names = [item["metadata"]["name"] for item in items if "deletionTimestamp" not in item["metadata"]]
        return next((name for name in names if name.startswith("myelin-")), "")

    def myelin(self, *args: str) -> str:
        """What a command says in the controller's pod."""
        return self.node.kubectl("exec", "-n", SYSTEM, self.controller(), "--", "myelin", *args, *self._meant(), check=False)

    def _meant(self) -> list[str]:
        return ["--repo", f"{self.team}/digits"] if len(self.namespaces) > 1 else []

    def public_image_key(self) -> str:
        """The key that images are signed with, for cosign."""
        return shown(self.folder / "keys")["image"]

    def verify_by_cosign(self, image: str, public: Path, *what: str) -> str:
        """What cosign says of an image's signature, or of what else is asked for."""
        known = ["--key", str(public), "--insecure-ignore-tlog=true", "--allow-http-registry"]
        return self.node.cosign(*(what or ("verify",)), *known, "--trusted-root", str(self._trusted_root()), image)

    def _trusted_root(self) -> Path:
        place = self.folder / "trusted_root.json"
        empty: dict[str, Any] = {key: [] for key in ("tlogs", "certificateAuthorities", "ctlogs", "timestampAuthorities")}
        place.write_text(json.dumps({"mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1", **empty}))
        return place

    def other(self, name: str, *, edit: Callable[[str], str] | None = None, like: Story | None = None) -> Story:
        """Another project under the same controller, in a namespace of its own, with the commits of people of `like`.

        Args:
            name: Of its repository; its namespace is `team-<name>`.
            edit: What a person changes before the project is applied.
            like: Whose first commits are taken; None: new ones.
        """
        place = self.folder / name
        place.mkdir()
        found = Story(self.node, place, tell=self._tell, repository=name, team=f"team-{name}")
        found.image = self.image
        if like is None:
            found.make_project(edit)
        else:
            found.take_over(like)
        self.namespaces.append(found.team)
        found.namespaces = self.namespaces
        found.prepare()
        self.install()
        found.apply(found.project_object())
        return found

    def take_over(self, like: Story) -> None:
        """Begin with the commits that people made in another repository, and with its keys."""
        shutil.copytree(like.clone.with_name("digits.myelin"), self.clone.with_name("digits.myelin"))
        shutil.copytree(like.folder / "keys", self.folder / "keys")
        theirs, bare = like.node.state / f"git/{like.repository}.git", self.node.new_bare(self.repository)
        last = like.log("log", "--author=you", "-1", "--format=%H").strip()
        _run(["git", "-C", str(theirs), "push", "--quiet", str(bare), f"{last}:refs/heads/main"])
        _run(["git", "clone", "--quiet", str(bare), str(self.clone)])
        self.place = project.Place(url=str(bare), state=self.folder / "state", trust=None, work_tree=self.clone)

    def subjects(self) -> list[str]:
        """Authors and subjects of all commits, oldest first."""
        return self.log("log", "--reverse", "--format=%an %s").splitlines()

    def log(self, *args: str) -> str:
        """What Git says of the person's clone, brought up to date."""
        pull(self.clone)
        return self._git(*args)

    def recorded(self) -> list[dict[str, Any]]:
        """All statements of the ledger, as a clone reads them."""
        bare = self.node.state / f"git/{self.repository}.git"
        listed = _run(["git", "-C", str(bare), "ls-tree", "-r", "--name-only", "myelin/ledger"]).split()
        texts = [_run(["git", "-C", str(bare), "show", f"myelin/ledger:{path}"]) for path in listed if path.endswith(".jsonl")]
        return [json.loads(line) for text in texts for line in text.splitlines() if line]

    def trained(self) -> dict[str, int]:
        """Kind of statement -> how many there are, for what must not be done twice."""
        kinds = [str(item["kind"]) for item in self.recorded()]
        return {kind: kinds.count(kind) for kind in ("run", "task", "ask", "tell")}

    def wait(self, what: str, look: Callable[[], Found], seconds: float = PATIENCE_SECONDS) -> Found:
        """What a look finds once it finds something."""
        deadline, told = time.monotonic() + seconds, ""
        while time.monotonic() < deadline:
            if found := look():
                return found
            said = self.progress()
            if said != told:
                self._tell(said)
                told = said
            time.sleep(0.5)
        raise AssertionError(f"waited {seconds:.0f} s for {what}; {self.progress()}\n{self.troubles()}")

    def progress(self) -> str:
        """What the Project says of itself, in one line."""
        found = (self.get("projects") or [{}])[0].get("status", {})
        return f"{found.get('reason', 'nothing yet')}: {found.get('message', '')}"[:170]

    def troubles(self) -> str:
        """What there is to see when something does not come."""
        lines = [self.node.kubectl("get", "pods", "-A", check=False)]
        lines += [self.node.kubectl("get", "events", "-A", "--sort-by=.lastTimestamp", check=False)[-3000:]]
        if name := self.controller():
            lines += [self.node.kubectl("logs", "-n", SYSTEM, name, "--tail=60", check=False)]
            lines += [self.node.kubectl("exec", "-n", SYSTEM, name, "--", "tail", "-60", "/state/faults.log", check=False)]
        return "\n".join(lines)

    def _git(self, *args: str) -> str:
        return _run(["git", "-C", str(self.clone), "-c", "color.ui=never", *args])


def quick(text: str) -> str:
    """The example's axon with a few trials, where the demo has many."""
    assert "maxBudget: 18" in text
    return text.replace("maxBudget: 18", "maxBudget: 6").replace("numIteration: 2", "numIteration: 1")


def single_training(text: str, *, epochs: int) -> str:
    """The example's axon with one plain training in place of its tuning."""
    head, _, rest = text.partition("        hpTuning:\n")
    tail = rest[rest.index("    - name: serve\n") :]
    env = f'        env:\n          - {{name: EPOCHS, value: "{epochs}"}}\n'
    return head + env + tail


def _run(command: Sequence[str]) -> str:
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True).stdout
