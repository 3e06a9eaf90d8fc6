"""The simulated outside as one bundle of ports, each call of which goes through the world."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from controller.adapters.documents import YamlDocuments
from controller.adapters.keys import SshKey
from controller.trustfile import signers_of
from policies.terms.document import LoadedDocument
from policies.terms.project import Forge as ForgeSettings
from policies.terms.revision import TrustedKey
from reconcilers.ports import Clock, Forge, Keys, Ledger, Ports, Repository
from tests.fakes.engine import FakeEngine
from tests.fakes.forge import FakeForge
from tests.fakes.images import FakeImages
from tests.fakes.inbox import FakeInbox
from tests.fakes.ledger import FakeLedger
from tests.fakes.metrics import FakeMetrics
from tests.fakes.repository import FakeRepository
from tests.fakes.sampler import FakeSampler
from tests.fakes.sources import FakeSources
from tests.fakes.world import HandClock, World

MakeLedger = Callable[[World, Repository, Keys, Clock], Ledger]


def hand_key(number: int) -> SshKey:
    """A key that is the same each time, so that equal commits get equal ids."""
    return SshKey(Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32))


CONTROLLER, PERSON, STRANGER = hand_key(1), hand_key(2), hand_key(3)


class Documents(YamlDocuments):
    """The real ones, which are pure; what was read once is not read again, to be quick."""

    def load(self, text: bytes, file: str) -> LoadedDocument:
        known = _load(text, file)
        return replace(known, value=deepcopy(known.value))


def gate(world: World, name: str, inner: Any) -> Any:
    """A port as the controller sees it: every call is counted, and may fail or be the last."""
    return _Gate(world, name, inner)


def open_ports(world: World, *, ledger: MakeLedger = FakeLedger) -> Ports:
    """What a controller that starts now is given: only what survives the one before is still there."""
    world.building, world.failed, world.watched = {}, {}, ()
    clock = HandClock(world)
    repository = gate(world, "repository", FakeRepository(world, CONTROLLER, signers_of=signers_of))
    return Ports(
        repository=repository,
        ledger=gate(world, "ledger", ledger(world, repository, CONTROLLER, clock)),
        engine=gate(world, "engine", FakeEngine(world)),
        sources=gate(world, "sources", FakeSources(world)),
        images=gate(world, "images", FakeImages(world)),
        sampler=gate(world, "sampler", FakeSampler()),
        metrics=gate(world, "metrics", FakeMetrics(world)),
        inbox=gate(world, "inbox", FakeInbox(world)),
        keys=gate(world, "keys", CONTROLLER),
        own=(TrustedKey(name="myelin", key=CONTROLLER.public()),),
        documents=gate(world, "documents", Documents()),
        clock=gate(world, "clock", clock),
        forges=FakeForges(world),
    )


class FakeForges:
    """Implements `reconcilers.ports.Forges`: one forge, whatever the settings say."""

    def __init__(self, world: World) -> None:
        self._forge = gate(world, "forge", FakeForge(world))

    def of(self, settings: ForgeSettings) -> Forge:
        forge: Forge = self._forge
        return forge


class _Gate:
    def __init__(self, world: World, name: str, inner: Any) -> None:
        self._world, self._name, self._inner = world, name, inner

    def __getattr__(self, method: str) -> Any:
        found = getattr(self._inner, method)
        if not callable(found):
            return found
        return lambda *args, **more: self._world.through(f"{self._name}.{method}", partial(found, *args, **more))


@lru_cache(maxsize=1024)
def _load(text: bytes, file: str) -> LoadedDocument:
    return YamlDocuments().load(text, file)
