"""The same promises as in `tests/contracts/test_engine_contract.py`, kept by the engine on a real Kubernetes node."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import tests.contracts.test_engine_contract as contract
from controller.adapters.attest.signing import sign_image
from controller.adapters.attest.verifying import ImageTrust
from controller.adapters.clock import SystemClock
from controller.adapters.cluster import SERVICE, Cluster
from controller.adapters.engine_cluster import ClusterEngine, KeptJobs, KeptServers
from controller.adapters.keys import ImageKey, SshKey
from controller.adapters.models import Models
from controller.adapters.oci.assembly import Program, assemble, package_folder, tree, venv
from controller.adapters.oci.bases import Bases
from controller.adapters.oci.composed import Composer
from controller.adapters.oci.layers import Stored, lay
from controller.adapters.oci.mirrored import MirroredLayout
from controller.adapters.oci.registry import Access, Registry
from controller.adapters.spool import Spool
from controller.inbox import Desk, Receivers
from policies.terms.digest import Digest
from policies.terms.secret import Secret
from policies.terms.task import JobState, ServerSpec, ServerState
from reconcilers.manifests.names import Placement
from tests.cluster.node import Node
from tests.contracts.test_engine_contract import *  # noqa: F403  the suite itself
from tests.fakes.provenance import trust_in, where_from

PROGRAMS = "a-secret-of-the-tests"
contract.DEADLINE_SECONDS = 60


class Kubernetes:
    """A namespace of a real cluster, with an inbox for what its jobs bring back."""

    def __init__(self, node: Node, namespace: str, folder: Path) -> None:
        self.node, self.namespace, self.folder = node, namespace, folder
        self.key = SshKey.generate(folder / "controller")
        self.image_key = ImageKey.generate(folder / "image.pem")
        self.access = Access(
            repository=f"{node.registry}/tests/{namespace}",
            username=node.registry_user,
            password=Secret(node.registry_password),
            unsafe_plain_http=True,
        )
        self.layout = MirroredLayout(folder / "store", Registry(self.access))
        node.pull_secret(namespace, "registry-pull")
        self.desk = Desk(node.address, 0, is_ready=lambda: True, is_alive=lambda: True)
        self.inbox = f"http://{node.address}:{self.desk.start()}"
        self.image = self.made("job.py", Stored(data=contract.PROGRAM))
        self.server_image = self.made("server.py", Stored(data=contract.SERVER))
        self.restart()

    def restart(self) -> None:
        self.cluster = Cluster(self.node.kubeconfig)
        placement = Placement(
            namespace=self.namespace,
            project="tests",
            registry=self.access.repository,
            pull_secret="registry-pull",
            inbox=self.inbox,
        )
        clock = SystemClock()
        composer = Composer(self.layout, self.folder / "composed", self.image_key, trust_in(self.image_key), clock)
        models = Models(self.layout, self.image_key, ImageTrust(keys=(self.image_key.public_pem,)))
        self.engine: Any = ClusterEngine(
            self.cluster,
            placement,
            self.layout,
            composer.compose,
            programs=PROGRAMS,
            jobs=KeptJobs(self.folder / "jobs", self.layout, self.key, models),
            servers=KeptServers(self.folder / "servers"),
            clock=clock,
        )
        self.desk.dismiss("tests")
        receivers = Receivers(
            spool=Spool(self.folder / "inbox"),
            clock=clock,
            wake=lambda: None,
            report=self.engine.report,
            push=lambda labels, text: None,
            newest=lambda: None,
            place=lambda name, kind: "",
            namespace=self.namespace,
            result=self.engine.take_result,
            results=self.folder / "incoming",
        )
        self.desk.admit("tests", receivers, token="a-token-of-the-tests", programs=PROGRAMS)

    def job(self, name: str) -> JobState:
        return contract.until(lambda: self.engine.jobs()[name], lambda state: state.phase != "running")

    def server(self, name: str, spec: ServerSpec | None) -> ServerState:
        def look() -> ServerState:
            if spec is not None:
                self.engine.serve(spec)
            state: ServerState = self.engine.servers()[name]
            return state

        return contract.until(look, lambda state: state.phase == "ready")

    def ask(self, name: str) -> dict[str, Any]:
        def look() -> dict[str, Any]:
            try:
                with urllib.request.urlopen(f"http://{self._address(name)}/", timeout=5) as answer:
                    return dict(json.loads(answer.read()))
            except (OSError, http.client.HTTPException):
                return {}  # the node's proxy learns of a ready pod a moment after the API does

        return contract.until(look, bool)

    def kill(self, name: str) -> ServerState:
        assert self.ask(name)
        with pytest.raises((OSError, urllib.error.URLError, http.client.HTTPException)):
            urllib.request.urlopen(f"http://{self._address(name)}/die", timeout=5)
        return contract.until(lambda: self.engine.servers()[name], lambda state: state.phase == "failed" or state.restarts > 0)

    def close(self) -> None:
        self.desk.close()

    def _access(self, repository: str) -> Access:
        return replace(self.access, repository=repository)

    def _address(self, name: str) -> str:
        found = self.cluster.get(SERVICE, self.namespace, name)
        assert found is not None
        return f"{found['spec']['clusterIP']}:{found['spec']['ports'][0]['port']}"

    def made(self, program: str, text: Stored) -> Digest:
        """A signed image with one program, on the node's base."""
        base = Bases(self.layout, self.folder / "bases", self._access).open(self.node.base)
        files, links = venv(base)
        site = f"opt/venv/lib/python{base.version}/site-packages/myelin"
        runtime = lay(self.layout, tree(package_folder("myelin"), site, "*.py"))
        source = lay(self.layout, {**files, f"app/{program}": text}, links)
        run = Program(entrypoint=["/opt/venv/bin/python", f"/app/{program}"])
        digest = assemble(self.layout, [runtime, source], run, base=base, annotations={})
        sign_image(self.layout, digest, self.image_key, where_from())
        self.layout.push(digest, tags=(f"image-{program.partition('.')[0]}",))
        return digest


@pytest.fixture
def place(node: Node, namespace: str, tmp_path: Path) -> Iterator[Kubernetes]:
    made = Kubernetes(node, namespace, tmp_path)
    yield made
    made.close()
